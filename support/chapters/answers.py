"""What the heads of some networks answer, as text, boxes and points; only to see and to test that they work."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import onnx
import torch
import xarray as xr
from PIL import Image, ImageDraw, ImageFont
from torch.nn import functional

from support import probe
from support.encoder import Encoder
from support.sources import shared

FACE = (160, 50, 290, 180)  # left, top, right and bottom of the face in astronaut.png, in pixels
LETTERS = {"R": (70, 70), "K": (260, 90), "7": (120, 270), "A": (290, 300)}  # written on coffee.png at these places


def read(encoder: Encoder, images: xr.DataArray | np.ndarray) -> list[str]:
    """Text that a line recogniser with a CTC head reads: the likeliest character of each step, repetitions merged.

    Graves et al., "Connectionist temporal classification", ICML 2006, Section 3.2 (best path decoding).

    Parameters
    ----------
    encoder : Encoder
        ``package:ppocr_rec``; its ONNX file has the characters in its metadata.
    images : xarray.DataArray or array
        (image, y, x, channel), RGB, floats in [0, 1], one line of text each.

    Returns
    -------
    list of str
        One an image; empty where it reads nothing.

    Examples
    --------
    >>> from support import zoo
    >>> sign = probe.photograph("pexels-4543103.jpg")[280:1280, 380:1440]
    >>> read(zoo.load("package:ppocr_rec"), sign[None])
    ['CAFE']
    """
    model = onnx.load(shared.find(*(encoder.card[key] for key in ("package", "file", "sha256", "version"))))
    known = next(entry.value for entry in model.metadata_props if entry.key == "character").split("\n")
    characters = ["", *known, " "]  # the first is CTC's blank
    with torch.no_grad():
        steps = torch.as_tensor(encoder.predict(encoder.preprocess(images))).argmax(2).tolist()
    return ["".join(characters[a] for a, b in zip(s, [0, *s], strict=False) if a != b).strip() for s in steps]


def boxes(
    encoder: Encoder, images: xr.DataArray | np.ndarray, least: float = 0.3, overlap: float = 0.45
) -> list[torch.Tensor]:
    """Boxes of a YOLOX head with one class: decoded, and of those that overlap the surest kept.

    Ge et al., "YOLOX: Exceeding YOLO Series in 2021", 2021, Section 2 (anchor-free decoding at strides 8, 16, 32).

    Parameters
    ----------
    encoder : Encoder
        ``package:captcha_det``.
    images : xarray.DataArray or array
        (image, y, x, channel), RGB, floats in [0, 1].
    least : float, default 0.3
        Lowest score that counts, in [0, 1].
    overlap : float, default 0.45
        Boxes that share more than this part of their union are one.

    Returns
    -------
    list of torch.Tensor
        (boxes, 5) for each image, surest first: left, top, right and bottom as shares of the image's sides, and score.

    Examples
    --------
    >>> from support import zoo
    >>> nothing = np.ones((1, 64, 64, 3), np.float32)
    >>> boxes(zoo.load("package:captcha_det"), nothing)[0].shape
    torch.Size([0, 5])
    """
    height, width = encoder.input_size
    grids, strides = [], []
    for stride in (8, 16, 32):
        y, x = torch.meshgrid(torch.arange(height // stride), torch.arange(width // stride), indexing="ij")
        grids.append(torch.stack([x, y], -1).flatten(0, 1))
        strides.append(torch.full((len(grids[-1]), 1), stride))
    grid, stride = torch.cat(grids), torch.cat(strides)
    found = []
    for inputs in encoder.preprocess(images).split(1):  # the graph was exported for one image
        with torch.no_grad():
            output = encoder.predict(inputs)[0].cpu()
        score = output[:, 4] * output[:, 5]
        output, near, far, score = (v[score >= least] for v in (output, grid, stride, score))
        centre, size = (output[:, :2] + near) * far, output[:, 2:4].exp() * far
        corners = torch.cat([centre - size / 2, centre + size / 2], 1) / torch.tensor([width, height] * 2)
        kept: list[int] = []
        for k in score.argsort(descending=True).tolist():
            if all(_shared(corners[k], corners[j]) <= overlap for j in kept):
                kept.append(k)
        found.append(torch.cat([corners[kept], score[kept, None]], 1))
    return found


def _shared(one, other):
    """Area that two boxes share, as a part of their union."""
    area = (torch.minimum(one[2:], other[2:]) - torch.maximum(one[:2], other[:2])).clamp(0).prod()
    return area / ((one[2:] - one[:2]).prod() + (other[2:] - other[:2]).prod() - area)


def keypoints(encoder: Encoder, images: xr.DataArray | np.ndarray, n_points: int = 100, reach: int = 5) -> torch.Tensor:
    """Keypoints of XFeat: local maxima of the probability to be one, times the reliability of the place.

    Potje et al., "XFeat: Accelerated Features for Lightweight Image Matching", CVPR 2024, Section 3.2.

    Parameters
    ----------
    encoder : Encoder
        ``package:xfeat``.
    images : xarray.DataArray or array
        (image, y, x, channel), RGB, floats in [0, 1].
    n_points : int, default 100
        How many, the best ones.
    reach : int, default 5
        Side of the window, in pixels of the network's input, in which a point must be the best; odd.

    Returns
    -------
    torch.Tensor
        float32 (image, n_points, 2): x and y as shares of the image's sides, best first.

    Examples
    --------
    >>> from support import zoo
    >>> keypoints(zoo.load("package:xfeat"), probe.photograph("china.jpg")[None], n_points=7).shape
    torch.Size([1, 7, 2])
    """
    height, width = encoder.input_size
    with torch.no_grad():
        _, logits, reliable = encoder.predict(encoder.preprocess(images))
        likely = functional.pixel_shuffle(logits.softmax(1)[:, :-1], 8)
        score = likely * functional.interpolate(reliable, likely.shape[2:], mode="bilinear", align_corners=False)
        best = functional.max_pool2d(likely, reach, 1, reach // 2) == likely
    places = (score * best).flatten(1).topk(n_points).indices.cpu()
    return torch.stack([(places % width + 0.5) / width, (places // width + 0.5) / height], -1)


class Example(NamedTuple):
    """What one network says of one picture.

    Attributes
    ----------
    picture : numpy.ndarray
        (y, x, channel) in [0, 1].
    title : str
        The network, and its answer where that is a word.
    drawn : dict
        What `figures.overlay` draws over the picture: heat, points or boxes.
    is_right : bool or None
        Whether the answer is right; None where an answer can only be looked at.
    """

    picture: np.ndarray
    title: str
    drawn: dict
    is_right: bool | None


def examples(encoders: Mapping[str, Encoder]) -> list[Example]:
    """Answers of eight networks to a picture each, of which it is known what they should be.

    Parameters
    ----------
    encoders : dict of str to Encoder
        Those of the scheme "package", under their full names.

    Returns
    -------
    list of Example
        HED, CenterFace, text detection and recognition, page orientation, XFeat, O-Net and the captcha detector.

    Examples
    --------
    >>> from support import zoo
    >>> encoders = {encoder.name: encoder for encoder in zoo.load_all("package")}
    >>> [example.title for example in examples(encoders) if example.is_right is False]
    []
    """
    astronaut, cap, temple = (probe.photograph(file) for file in ("astronaut.png", "imagenet_09_455.jpg", "china.jpg"))
    sign = probe.photograph("pexels-4543103.jpg")[280:1280, 380:1440]
    left, top, right, bottom = FACE
    face = astronaut[top:bottom, left:right]
    page = Image.open(shared.find("scikit-image", "skimage/data/page.png")).convert("RGB")
    page = np.rot90(np.asarray(page, np.float32) / 255, axes=(1, 0)).copy()  # a quarter to the right
    captcha = _captcha()

    def answer(name, picture):
        encoder = encoders[f"package:{name}"]
        with torch.no_grad():
            return encoder.predict(encoder.preprocess(picture[None]))

    edges = functional.interpolate(answer("hed", temple), temple.shape[:2], mode="bilinear").clamp(0, 1)
    drawing = (1 - edges)[0].permute(1, 2, 0).expand(-1, -1, 3).numpy()  # black on white
    heat = answer("centerface", astronaut)[0].squeeze().numpy()
    row, column = np.unravel_index(heat.argmax(), heat.shape)
    y, x = 512 * (row + 0.5) / heat.shape[0], 512 * (column + 0.5) / heat.shape[1]
    text = answer("ppocr_det", cap)[0, 0].numpy()
    word = read(encoders["package:ppocr_rec"], sign[None])[0]
    turned = 90 * int(answer("page_orientation", page).argmax())
    points = keypoints(encoders["package:xfeat"], temple[None])[0]
    is_face, _, parts = answer("mtcnn_onet", face)
    found = boxes(encoders["package:captcha_det"], captcha[None])[0]
    return [
        Example(drawing, "HED: edges", {}, None),
        Example(astronaut, "CenterFace: face", {"heat": heat}, bool(left <= x <= right and top <= y <= bottom)),
        Example(cap, "PP-OCR: text", {"heat": text}, bool(text.max() > 0.3)),
        Example(sign, f"PP-OCR: “{word}”", {}, word == "CAFE"),
        Example(page, f"page: turned {turned}°", {}, turned == 90),
        Example(temple, "XFeat: keypoints", {"points": points}, None),
        Example(face, f"O-Net: face, {float(is_face):.2f}", {"points": parts.reshape(2, 5).T}, bool(is_face > 0.5)),
        Example(captcha, "captcha: letters", {"boxes": found}, len(found) == len(LETTERS)),
    ]


def _captcha():
    """Four letters on a photograph of a cup of coffee, as (y, x, channel)."""
    picture = Image.fromarray((probe.photograph("coffee.png") * 255).astype(np.uint8)).resize((416, 416))
    edge = {"stroke_width": 2, "stroke_fill": "white", "anchor": "mm"}
    for letter, place in LETTERS.items():
        ImageDraw.Draw(picture).text(place, letter, "darkred", ImageFont.load_default(50), **edge)
    return np.asarray(picture, np.float32) / 255
