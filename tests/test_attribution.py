"""Attribution maps of small hand-built encoders: Captum as a second opinion, and what must not change them."""

import numpy as np
import pytest
import torch
import xarray as xr
from captum.attr import InputXGradient, Saliency
from torch import nn

from support import attribution, passes
from support.zoo import Encoder

TOGETHER = [m for m in attribution.METHODS if m != "relational"]  # maps of the same axes


def toy(name="toy", side=12, seed=0, activation=None, bias=True, **settings):
    torch.manual_seed(seed)
    layers = (
        nn.Conv2d(3, 6, 3, padding=1, bias=bias),
        activation or nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 4, 3, bias=bias),
    )
    return Encoder(name, nn.Sequential(*layers), task="toy", family="toy", input_size=(side, side), **settings)


def probe(n=6, side=12, seed=0):
    values = np.random.default_rng(seed).uniform(size=(n, side, side, 3)).astype(np.float32)
    coords = {"image": np.arange(n), "channel": ["red", "green", "blue"]}
    return xr.DataArray(values, coords, ("image", "y", "x", "channel"), attrs={"source": "random"})


def attribute(encoders, images, method, **settings):
    return attribution.attribute(encoders, images, method, device="cpu", progress=False, **settings)


def mean_unit(encoder):
    return lambda x: encoder.represent(x).flatten(1).mean(1)


@pytest.mark.parametrize("method, captums", [("saliency", Saliency), ("gradient_x_input", InputXGradient)])
def test_captum_gives_the_same_maps(method, captums):
    encoder, images = toy(activation=nn.Tanh()), probe()
    inputs = encoder.preprocess(images).requires_grad_()
    expected = captums(mean_unit(encoder)).attribute(inputs).detach().permute(0, 2, 3, 1)
    found = attribute(encoder, images, method, channels="keep")
    assert found.dims == ("model", "image", "y", "x", "channel")
    np.testing.assert_allclose(found[0], expected, rtol=1e-5, atol=1e-8)


def test_saliency_is_the_absolute_gradient_of_the_mean_not_the_mean_of_absolute_gradients():
    encoder, images = toy(), probe(n=1)
    x = encoder.preprocess(images).requires_grad_()
    units = encoder.represent(x).flatten()
    gradients = torch.stack([torch.autograd.grad(u, x, retain_graph=True)[0][0] for u in units]).permute(0, 2, 3, 1)
    found = attribute(encoder, images, "saliency", channels="keep")[0, 0].values
    np.testing.assert_allclose(found, gradients.mean(0).abs(), rtol=1e-4, atol=1e-8)
    assert abs(found - gradients.abs().mean(0).numpy()).max() > 1e-4
    exploratory = attribute(encoder, images, attribution.EXPLORATORY, channels="keep")[:, 0, 0]
    np.testing.assert_allclose(exploratory.sel(attribution="gradient"), gradients.mean(0), rtol=1e-4, atol=1e-8)
    np.testing.assert_allclose(
        exploratory.sel(attribution="unit_saliency"), gradients.abs().mean(0), rtol=1e-4, atol=1e-8
    )


def test_one_by_one_or_together_the_maps_are_the_same():
    encoders, images = [toy("a"), toy("b", side=8, seed=1)], probe()
    together = attribute(encoders, images, TOGETHER)
    assert together.dims == ("attribution", "model", "image", "y", "x")
    for method in TOGETHER:
        for encoder in encoders:
            single = attribute(encoder, images, method)
            np.testing.assert_array_equal(single[0], together.sel(attribution=method, model=encoder.name))
            assert single.attribution == method


def test_batches_of_one_and_of_thirty_two_agree():
    encoder, images = toy(), probe(n=33)
    for method in attribution.METHODS:
        one, many = (attribute(encoder, images, method, batch_size=b) for b in (1, 32))
        assert np.linalg.norm(one - many) < 1e-4 * np.linalg.norm(one)  # f(z)/z amplifies rounding where z is near ε


def test_permuting_the_batch_permutes_the_maps():
    encoder, images = toy(), probe()
    order = [3, 0, 5, 1, 4, 2]
    for method in TOGETHER:
        found = attribute(encoder, images.isel(image=order), method)
        expected = attribute(encoder, images, method).isel(image=order)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * abs(expected).max())
        assert list(found.image.values) == order


def test_total_of_gradient_times_input_is_the_mean_unit_without_biases_also_after_resizing():
    encoder, images = toy(side=10, bias=False), probe(side=17)
    expected = mean_unit(encoder)(encoder.preprocess(images)).detach()
    for method in ("gradient_x_input", "epsilon_lrp"):
        maps = attribute(encoder, images, method, channels="keep", epsilon=1e-8)
        assert maps.shape == (1, 6, 17, 17, 3)
        np.testing.assert_allclose(maps.sum(("y", "x", "channel"))[0], expected, rtol=1e-4, atol=1e-6)


def test_epsilon_lrp_is_gradient_times_input_for_relu_and_is_not_for_tanh():
    images = probe()

    def likeness(encoder, epsilon):
        a, b = (attribute(encoder, images, m, epsilon=epsilon).values.ravel() for m in attribution.PUBLISHED[1:])
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    assert likeness(toy(), 1e-7) > 0.99999 > likeness(toy(), 1e-1)
    assert likeness(toy(activation=nn.Tanh()), 1e-7) < 0.9999


def test_mean_of_channels_is_the_mean_of_the_kept_ones():
    encoder, images = toy(), probe()
    kept = attribute(encoder, images, "gradient_x_input", channels="keep")
    np.testing.assert_allclose(
        attribute(encoder, images, "gradient_x_input"), kept.mean("channel"), rtol=1e-5, atol=1e-9
    )


def test_bgr_and_nhwc_networks_give_their_maps_in_rgb_order():
    class Swapped(nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward(self, x):
            return self.network(x.permute(0, 3, 1, 2).flip(1))

    images, straight = probe(), toy()
    swapped = Encoder(
        "swapped", Swapped(toy().network), task="toy", family="toy", input_size=(12, 12), channels="BGR", layout="NHWC"
    )
    expected = attribute(straight, images, "gradient_x_input", channels="keep")
    found = attribute(swapped, images, "gradient_x_input", channels="keep")
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-8)


def test_a_batch_that_does_not_fit_is_halved(monkeypatch):
    encoder, images, sizes = toy(), probe(n=8), []
    represent = encoder.represent

    def short_of_memory(x):
        sizes.append(len(x))
        if len(x) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return represent(x)

    expected, relational = attribute(encoder, images, "saliency"), attribute(encoder, images, "relational")
    monkeypatch.setattr(encoder, "represent", short_of_memory)
    passes.check(encoder)
    assert sizes == [2, 1]
    sizes.clear()
    np.testing.assert_allclose(attribute(encoder, images, "saliency"), expected, rtol=1e-4, atol=1e-8)
    assert sizes == [8, 4, 2, 2, 2, 2]
    sizes.clear()
    np.testing.assert_allclose(attribute(encoder, images, "relational"), relational, rtol=1e-3, atol=1e-5)
    assert sizes == 2 * [8, 4, 2, 2, 2, 2]  # a pass for the covariance, a pass for the maps
    with pytest.raises(MemoryError, match="toy: 4 images"):
        attribute(encoder, images, "saliency", batch_size=4)


def test_other_errors_are_not_taken_for_a_lack_of_memory(monkeypatch):
    encoder = toy()

    def broken(x):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(encoder, "represent", broken)
    with pytest.raises(ValueError, match="toy.*shapes do not match"):
        attribute(encoder, probe(), "saliency")


def test_provenance_travels_with_the_maps_and_can_be_written(tmp_path):
    maps = attribute([toy("a"), toy("b", seed=1)], probe(), TOGETHER)
    assert maps.attrs["probe_source"] == "random" and maps.attrs["epsilon"] == 1e-4 and maps.dtype == np.float32
    assert maps.attrs["scalar"].startswith("mean of the representation's units; whitened energy; ")
    maps.to_dataset().to_zarr(tmp_path / "maps.zarr", zarr_format=2)
    xr.testing.assert_identical(xr.open_zarr(tmp_path / "maps.zarr")["map"].load(), maps)


def test_weights_get_no_gradient_and_the_network_is_left_as_it_was():
    encoder = toy()
    before = {k: v.clone() for k, v in encoder.network.state_dict().items()}
    attribute(encoder, probe(), TOGETHER)
    attribute(encoder, probe(), "relational")
    assert all(p.grad is None and not p.requires_grad for p in encoder.network.parameters())
    assert all(torch.equal(v, before[k]) for k, v in encoder.network.state_dict().items())


def test_wrong_input_says_what_is_known():
    images = probe()
    with pytest.raises(ValueError, match="saliency, gradient_x_input, epsilon_lrp"):
        attribute(toy(), images, "gradcam")
    with pytest.raises(ValueError, match="given twice.*toy"):
        attribute([toy(), toy()], images, "saliency")
    with pytest.raises(ValueError, match="no encoder"):
        attribute([], images, "saliency")
    with pytest.raises(ValueError, match="mean"):
        attribute(toy(), images, "saliency", channels="max")
    with pytest.raises(ValueError, match="at least 1"):
        attribute(toy(), images, "saliency", batch_size=0)
    with pytest.raises(ValueError, match="relational.*by itself"):
        attribute(toy(), images, ["relational", "saliency"])
    for ridge in (0, -1e-6, np.nan, np.inf):
        with pytest.raises(ValueError, match="ridge must be positive"):
            attribute(toy(), images, "whitened_energy", ridge=ridge)
    for references in (0, [], [0, 99], [-1]):
        with pytest.raises(ValueError, match="references is a number from 1, or positions from 0"):
            attribute(toy(), images, "relational", references=references)
    with pytest.raises(ValueError, match="axes image, y, x and channel"):
        attribute(toy(), images.rename(image="picture"), "saliency")


NO_GOOD = {
    "encoders": [
        ("bank:edge2d", r"got the str 'bank:edge2d': zoo.load\('bank:edge2d'\) makes one"),
        (["bank:edge2d"], "zoo.load"),
        (None, "got the NoneType None: zoo.load makes them"),
        (nn.ReLU(), "got the ReLU"),
        ({"a": toy()}, "got the dict"),
        (np.zeros(3), "got the ndarray"),
        ([toy(), 3], "got the int 3"),
        ((), "no encoder"),
    ],
    "images": [
        (np.zeros((2, 12, 12, 3)), "images must be a DataArray"),
        (None, "images must be a DataArray"),
        (probe().to_dataset(name="images"), "images must be a DataArray"),
        (probe()[:0], "expected at least one"),
        (probe()[..., :2], "three channels"),
        (probe() * 255, "toy: images lie in"),
        (probe().where(probe() > 0.1), "toy: images hold values that are not finite"),
    ],
    "method": [
        (None, "unknown attribution method"),
        (3, "unknown attribution method"),
        ([], "unknown attribution method"),
        ([["saliency"]], "unknown attribution method"),
        ({"saliency": 1}, "unknown attribution method"),
        (["saliency", "gradient", "saliency"], "a method is given twice: saliency, gradient, saliency"),
        (["relational", "relational"], "twice"),
    ],
    "epsilon": [
        (value, "epsilon must be positive") for value in (np.inf, 0, np.nan, -1, 1e-50, 1e39, "1", None, [1e-4])
    ],
    "ridge": [(value, "ridge must be positive") for value in ("1", None, [1e-6], 1j)],
    "references": [(v, "references is a number from 1") for v in ("12", None, 2.5, [0.5], [[0]], -3, np.nan, True, {})],
    "channels": [(value, 'channels is "mean" or "keep"') for value in (None, ["mean"], 3, "MEAN")],
    "batch_size": [(value, "batch_size must be a whole number") for value in ("3", 2.5, -1, [2], True)],
    "device": [(value, "cannot be used here") for value in (None, 3.5, ["cpu"], "", "cuda:99")],
}


@pytest.mark.parametrize("argument", NO_GOOD)
def test_what_is_no_good_is_told_in_a_sentence(argument):
    for value, message in NO_GOOD[argument]:
        arguments = {"encoders": toy(), "images": probe(), "method": "relational", "device": "cpu"} | {argument: value}
        with pytest.raises(ValueError, match=message):
            attribution.attribute(**arguments, progress=False)


@pytest.mark.parametrize("device", ["abacus", "meta", "mps:9"])
def test_a_device_that_is_not_here_is_refused_and_the_encoder_stays_where_it_was(device):
    encoder = toy()
    with pytest.raises(ValueError, match="cannot be used here"):
        attribution.attribute(encoder, probe(), "saliency", device=device, progress=False)
    assert encoder.device.type == "cpu" and all(p.device.type == "cpu" for p in encoder.network.parameters())
    attribute(encoder, probe(), "saliency")


def test_the_encoder_goes_home_also_after_an_error(monkeypatch):
    encoder, moves = toy(activation=nn.Softmax(1)), []
    monkeypatch.setattr(encoder, "to", lambda device: moves.append(str(device)))
    monkeypatch.setattr(Encoder, "device", property(lambda encoder: torch.device("cuda:7")))
    monkeypatch.setattr(encoder, "preprocess", lambda images: torch.zeros(len(images), 3, 12, 12))
    with pytest.raises(ValueError, match="Softmax"):
        attribute(encoder, probe(), "epsilon_lrp")
    assert moves == 2 * ["cpu", "cuda:7"]  # for the check, and for the maps


def test_the_order_of_the_axes_of_the_images_does_not_matter():
    images = probe(n=3, side=12)
    turned = attribute(toy(), images.transpose("y", "channel", "x", "image"), "saliency", batch_size=2)
    np.testing.assert_array_equal(turned, attribute(toy(), images, "saliency", batch_size=2))


def test_an_operation_without_a_rule_names_encoder_and_operation():
    with pytest.raises(ValueError, match="toy: .*Softmax"):
        attribute(toy(activation=nn.Softmax(1)), probe(), "epsilon_lrp")


def test_progress_goes_to_standard_error_and_can_be_silenced(capsys):
    attribution.attribute(toy(), probe(), "saliency", device="cpu")
    assert "6/6" in capsys.readouterr().err
    attribute(toy(), probe(), "saliency")
    assert capsys.readouterr().err == ""
