"""What the heads of some networks answer, as text, boxes and points; only to see and to test that they work."""

import onnx
import torch
from torch.nn import functional

from support import wheels


def read(encoder, images):
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
    """
    model = onnx.load(wheels.find(*(encoder.card[key] for key in ("package", "file", "sha256", "version"))))
    known = next(entry.value for entry in model.metadata_props if entry.key == "character").split("\n")
    characters = ["", *known, " "]  # the first is CTC's blank
    with torch.no_grad():
        steps = encoder.predict(encoder.preprocess(images)).argmax(2).tolist()
    return ["".join(characters[a] for a, b in zip(s, [0, *s], strict=False) if a != b).strip() for s in steps]


def boxes(encoder, images, least=0.3, overlap=0.45):
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
        kept = []
        for k in score.argsort(descending=True).tolist():
            if all(_shared(corners[k], corners[j]) <= overlap for j in kept):
                kept.append(k)
        found.append(torch.cat([corners[kept], score[kept, None]], 1))
    return found


def _shared(one, other):
    """Area that two boxes share, as a part of their union."""
    area = (torch.minimum(one[2:], other[2:]) - torch.maximum(one[:2], other[:2])).clamp(0).prod()
    return area / ((one[2:] - one[:2]).prod() + (other[2:] - other[:2]).prod() - area)


def keypoints(encoder, images, n_points=100, reach=5):
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
    """
    height, width = encoder.input_size
    with torch.no_grad():
        _, logits, reliable = encoder.predict(encoder.preprocess(images))
        likely = functional.pixel_shuffle(logits.softmax(1)[:, :-1], 8)
        score = likely * functional.interpolate(reliable, likely.shape[2:], mode="bilinear", align_corners=False)
        best = functional.max_pool2d(likely, reach, 1, reach // 2) == likely
    places = (score * best).flatten(1).topk(n_points).indices.cpu()
    return torch.stack([(places % width + 0.5) / width, (places // width + 0.5) / height], -1)
