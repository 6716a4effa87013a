"""The whitened energy against its formula written out, and what must not change its maps."""

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

from support import attribution, invariant, space
from support.zoo import Encoder


def probe(n=9, side=6, seed=0):
    values = np.random.default_rng(seed).uniform(size=(n, side, side, 3)).astype(np.float32)
    coords = {"image": [f"image {i}" for i in range(n)], "channel": ["red", "green", "blue"]}
    return xr.DataArray(values, coords, ("image", "y", "x", "channel"))


def encoder(name, *layers, side=6):
    return Encoder(name, nn.Sequential(*layers), task="toy", family="toy", input_size=(side, side))


def layers(seed=0):
    torch.manual_seed(seed)
    return nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 4, 2, padding=1), nn.Tanh()


def linear(matrix, shift):
    """The channels, mapped linearly and shifted."""
    layer = nn.Conv2d(matrix.shape[1], len(matrix), 1)
    layer.weight.data = torch.as_tensor(matrix, dtype=torch.float32)[:, :, None, None]
    layer.bias.data = torch.as_tensor(shift, dtype=torch.float32)
    return layer


def attribute(encoders, images, method, **settings):
    settings = {"device": "cpu", "progress": False, "channels": "keep"} | settings
    return attribution.attribute(encoders, images, method, **settings)


def test_known_mean_and_variances():
    corners = torch.tensor([[0.0, 0], [2, 0], [0, 4], [2, 4]])  # mean (1, 2), variances 1 and 4, uncorrelated
    gradient = invariant.energy_gradient([corners], ridge=1e-12)
    np.testing.assert_allclose(gradient(corners), [[-1, -0.5], [1, -0.5], [-1, 0.5], [1, 0.5]], rtol=1e-6)
    assert gradient(corners).dtype == torch.float32


@pytest.mark.parametrize("shape", [(40, 5), (10, 5, 3, 4)])
@pytest.mark.parametrize("mean", [0, 1000])
def test_numpy_gives_the_same_gradient_in_whatever_batches(shape, mean):
    mixing = np.random.default_rng(1).normal(size=(5, 5))
    values = np.moveaxis(np.random.default_rng(0).normal(size=shape), 1, -1) @ mixing + mean
    rows = values.reshape(-1, 5)
    covariance = np.cov(rows.T, ddof=0)
    covariance += 0.01 * np.trace(covariance) / 5 * np.eye(5)
    expected = np.moveaxis(((rows - rows.mean(0)) @ np.linalg.inv(covariance)).reshape(values.shape), -1, 1)
    representation = torch.from_numpy(np.moveaxis(values, -1, 1))
    for size in (1, 3, len(representation)):
        found = invariant.energy_gradient(iter(representation.split(size)), ridge=0.01)(representation)
        assert found.shape == shape and found.dtype == torch.float64
        np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-9)


def test_more_channels_than_positions_solve_the_equation_with_the_ridge():
    representation = torch.randn(40, 1280, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = invariant.energy_gradient([representation], ridge=1e-6)(representation)
    centred = representation - representation.mean(0)
    variance = centred.square().mean()
    back = centred.T @ (centred @ found.T) / 40 + 1e-6 * variance * found.T
    np.testing.assert_allclose(back.T, centred, atol=1e-8)


def test_the_map_is_the_slope_of_the_energy_measured_by_finite_differences():
    toy, images = encoder("toy", *layers()), probe(n=4)
    inputs = toy.preprocess(images).double()
    maps = attribute(toy, images, ["whitened_energy", "whitened_energy_x_input"]).isel(model=0, image=2)
    toy.network.double()

    def rows(x):
        return toy.represent(x).movedim(1, -1).reshape(-1, 4).numpy()

    of_probe = rows(inputs)
    covariance = np.cov(of_probe.T, ddof=0)
    inverse = np.linalg.inv(covariance + 1e-6 * np.trace(covariance) / 4 * np.eye(4))

    def energy(x):
        away = rows(x[None]) - of_probe.mean(0)
        return 0.5 * np.einsum("pi,ij,pj->", away, inverse, away)

    steps = 1e-6 * torch.eye(inputs[2].numel(), dtype=torch.float64).view(-1, *inputs[2].shape)
    slopes = [(energy(inputs[2] + step) - energy(inputs[2] - step)) / 2e-6 for step in steps]
    slopes = np.reshape(slopes, inputs[2].shape).transpose(1, 2, 0)
    np.testing.assert_allclose(maps[0], slopes, rtol=1e-3, atol=1e-4 * abs(slopes).max())
    np.testing.assert_allclose(maps[1], slopes * images[2], rtol=1e-3, atol=1e-4 * abs(slopes).max())


@pytest.mark.parametrize("ridge", [1e-6, 0.3])
def test_a_linear_encoder_has_the_maps_of_the_closed_form(ridge):
    torch.manual_seed(0)
    toy, images = encoder("linear", nn.Flatten(), nn.Linear(12, 3), side=2), probe(n=9, side=2)
    matrix = toy.network[1].weight.numpy().astype(np.float64)
    inputs = toy.preprocess(images).flatten(1).numpy().astype(np.float64)
    centred = (inputs - inputs.mean(0)) @ matrix.T  # the bias falls out
    covariance = centred.T @ centred / 9
    covariance += ridge * np.trace(covariance) / 3 * np.eye(3)
    gradients = centred @ np.linalg.inv(covariance) @ matrix

    def as_maps(values):  # (…, channel · y · x) → (…, y, x, channel)
        return np.moveaxis(values.reshape(*values.shape[:-1], 3, 2, 2), -3, -1)

    found = attribute(toy, images, ["whitened_energy", "whitened_energy_x_input"], ridge=ridge)
    assert found.attrs["ridge"] == ridge
    np.testing.assert_allclose(found[0, 0], as_maps(gradients), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(found[1, 0], as_maps(gradients * inputs), rtol=1e-3, atol=1e-5)
    relational = attribute(toy, images, "relational", ridge=ridge, references=3)
    expected = as_maps(gradients[[0, 4, 8]] * inputs[:, None])
    np.testing.assert_allclose(relational[0], expected, rtol=1e-3, atol=1e-5)


MIXING = np.random.default_rng(3).normal(size=(4, 4)) + 2 * np.eye(4)
CHANGES = {
    "signs": (np.diag([1, -1, -1, 1]), [0, 0, 0, 0]),
    "scales": (np.diag([0.5, 2, 1, 3]), [0, 0, 0, 0]),
    "rotation and shift": (np.linalg.qr(MIXING)[0], [5, -3, 0, 1]),
    "any": (MIXING, [0, 1, 0, 2]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_invertible_linear_maps_of_the_channels_change_the_published_maps_only(change):
    images = probe()
    encoders = [encoder("one", *layers()), encoder("other", *layers(), linear(*CHANGES[change]))]
    for method in attribution.INVARIANT:
        one, other = (maps / abs(maps).max() for maps in attribute(encoders, images, method))
        np.testing.assert_allclose(one, other, atol=1e-4)  # the ridge changes with the scale of the units
        assert space.affinity(attribute(encoders, images, method), "keep")[0, 1] > 1 - 1e-4
    for method in attribution.PUBLISHED:
        assert space.affinity(attribute(encoders, images, method), "keep")[0, 1] < 0.99


def test_the_invariant_maps_still_tell_networks_apart():
    encoders = [encoder("one", *layers()), encoder("other", *layers(seed=1))]
    for method in attribution.INVARIANT:
        assert space.affinity(attribute(encoders, probe(), method), "keep")[0, 1] < 0.9


def test_relative_to_itself_an_image_has_the_map_of_its_energy():
    images = probe()
    relational = attribute(encoder("toy", *layers()), images, "relational", references=len(images))
    energy = attribute(encoder("toy", *layers()), images, "whitened_energy_x_input")
    for i in range(len(images)):
        np.testing.assert_allclose(relational[0, i, i], energy[0, i], rtol=1e-4, atol=1e-5)
    assert abs(relational[0, 0, 1] - energy[0, 0]).max() > 0.1


def test_references_are_spread_evenly_and_named():
    images, toy = probe(n=25), encoder("toy", *layers())
    maps = attribute(toy, images, "relational", references=4, channels="mean")
    assert maps.dims == ("model", "image", "reference", "y", "x") and maps.shape == (1, 25, 4, 6, 6)
    assert list(maps.reference.values) == [f"image {i}" for i in (0, 8, 16, 24)]
    assert attribute(toy, images, "relational").sizes["reference"] == 12
    assert list(attribute(toy, images[:3], "relational").reference.values) == list(images.image.values[:3])
    kept = attribute(toy, images, ["relational"], references=4)
    assert kept.dims == ("attribution", "model", "image", "reference", "y", "x", "channel")
    np.testing.assert_allclose(kept[0].mean("channel"), maps, rtol=1e-4, atol=1e-6)
    every = attribute(toy, images, "relational", references=25, channels="mean")
    np.testing.assert_allclose(every.isel(reference=[0, 8, 16, 24]), maps, rtol=1e-4, atol=1e-6)
    chosen = attribute(toy, images, "relational", references=[16, 8], channels="mean")
    xr.testing.assert_allclose(chosen, maps.isel(reference=[2, 1]), rtol=1e-4, atol=1e-6)


def test_a_dead_channel_contributes_nothing():
    images = probe()
    alive = encoder("alive", *layers())
    for constant in (0, 5):
        wider = np.eye(6)[:, :4]  # two more channels that are the constant everywhere
        dead = encoder("dead", *layers(), linear(wider, [0, 0, 0, 0, constant, constant]))
        with torch.no_grad():
            representation = dead.represent(dead.preprocess(images))
        assert not invariant.energy_gradient([representation])(representation)[:, 4:].any()
        for method in attribution.INVARIANT:
            maps = attribute([alive, dead], images, method)
            np.testing.assert_allclose(maps[0], maps[1], atol=1e-4 * float(abs(maps).max()))


class Below(nn.Module):
    def __init__(self, constant):
        super().__init__()
        self.constant = constant

    def forward(self, x):
        return torch.relu(-x) + self.constant


def test_what_cannot_be_whitened_names_the_encoder():
    images = probe(n=3)
    for constant in (0, 0.1):  # for images, not for numbers below zero, with which the network is tried
        flat = encoder("flat", Below(constant))
        with pytest.raises(ValueError, match="^flat: the mean variance .* nothing to whiten"):
            attribute(flat, images, "whitened_energy")
    one = torch.tensor([[0.1]])
    with pytest.raises(ValueError, match="nothing to whiten"):
        invariant.energy_gradient([torch.cat([one, torch.nextafter(one, one + 1)])])  # the next number of float32
    twice = torch.tensor([[1.0, 1], [-1, -1]])
    with pytest.raises(ValueError, match="singular with ridge 1e-30: raise it"):
        invariant.energy_gradient([twice], ridge=1e-30)
    assert torch.isfinite(invariant.energy_gradient([twice])(twice)).all()
