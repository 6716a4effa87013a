"""The twenty tasks of Taskonomy (Zamir et al. 2018) on rendered rooms: what a network sees and what it must say."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from skimage import color, feature, filters, segmentation

from support.bank import rooms

REACH = (4, 12)  # pixels, of a side of 64, between the two ends of a segmentation's pairs


def _rgb(scene):
    return scene["rgb"]


@dataclass(frozen=True)
class Task:
    """A task of the bank.

    Attributes
    ----------
    name : str
        Taskonomy's.
    kind : {"image", "pixels", "vector", "classes"}
        What the network says: an image of numbers, a class for every pixel, a few numbers, one class.
    channels : int
        Channels of the image, length of the vector, or number of classes.
    group : {"2D", "3D", "geometric", "semantic"}
        As in Taskonomy.
    raw : callable
        From a scene to the target before it is standardised.
    mean : tuple of float
        Of each channel over rooms, subtracted from the target; empty for classes.
    deviation : float
        Of all channels about their means, by which the target is divided.
    input : callable
        From a scene, as `rooms.render` returns it, to what the network sees: (n, 3, s, s) float32 in [0, 1].
    is_target : bool
        Whether the task is a target of transfers, too, and not only a source.
    """

    name: str
    kind: str
    channels: int
    group: str
    raw: Callable
    mean: tuple = ()
    deviation: float = 1.0
    input: Callable = _rgb
    is_target: bool = True

    def target(self, scene: dict[str, torch.Tensor]) -> torch.Tensor:
        """What the network must say.

        Parameters
        ----------
        scene : dict of str to torch.Tensor
            n rooms of s pixels a side, as `rooms.render` returns them.

        Returns
        -------
        torch.Tensor
            On the scene's device. float32, (n, channels, s, s) for "image" and (n, channels) for "vector", each channel
            with mean 0 and all of them together with variance 1 over many rooms; int64 below `channels`, (n, s, s) for
            "pixels" and (n,) for "classes".
        """
        raw = self.raw(scene)
        if self.kind in ("pixels", "classes"):
            return raw
        mean = torch.tensor(self.mean, device=raw.device).reshape(1, -1, *[1] * (raw.ndim - 2))
        return (raw - mean) / self.deviation


def _noisy(scene):
    """The image with noise of a fixed pattern for each image, of standard deviation 0.15."""
    noise = [
        rooms.gaussian(int(seed), int(index), 2, tuple(scene["rgb"].shape[1:]))
        for seed, index in zip(scene["seed"], scene["index"], strict=True)
    ]
    return (scene["rgb"] + 0.15 * torch.from_numpy(np.stack(noise)).to(scene["rgb"].device)).clamp(0, 1)


def _grey(scene):
    """The image without colours: Lab's lightness, three times."""
    grey = color.rgb2gray(_last(scene["rgb"]))
    return torch.from_numpy(grey.astype(np.float32)).to(scene["rgb"].device)[:, None].repeat(1, 3, 1, 1).clamp(0, 1)


def _masked(scene):
    """The image with its middle quarter grey."""
    image = scene["rgb"].clone()
    quarter = image.shape[-1] // 4
    image[..., quarter:-quarter, quarter:-quarter] = 0.5
    return image


def _last(images):
    """(n, s, s, channel) array of a (n, channel, s, s) tensor."""
    return images.permute(0, 2, 3, 1).cpu().numpy()


def _each(function, images):
    """Tensor (n, channel, s, s) of what a function makes of every (s, s, channel) array."""
    results = np.stack([function(image) for image in _last(images)]).astype(np.float32)
    return torch.from_numpy(results).to(images.device)


def _edges(image):
    """Gradient magnitude of the smoothed grey image."""
    return filters.sobel(filters.gaussian(image.mean(-1), 1))[None]


def _corners(image):
    """Square root of the smaller eigenvalue of the structure tensor, summed over channels (Shi and Tomasi 1994)."""
    tensors = [feature.structure_tensor(channel, sigma=1.5, mode="nearest") for channel in np.moveaxis(image, -1, 0)]
    return np.sqrt(feature.structure_tensor_eigenvalues(np.sum(tensors, axis=0)).min(0).clip(0))[None]


def _occlusions(image):
    """Smoothed relative second difference of 1/z, which is zero on planes, however they are tilted."""
    inverse = 1 / image[..., 0].astype(np.float64)
    jump = np.minimum(np.abs(filters.laplace(inverse)) / inverse, 1)
    return filters.gaussian(np.pad(jump[1:-1, 1:-1], 1, mode="edge"), 1)[None]


def _pairs(image, scale, sigma):
    """Whether the pixels on both sides of a pixel are of one segment: across and down, near and far.

    Segments are those of Felzenszwalb and Huttenlocher (2004).
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Got image with third dimension", RuntimeWarning)
        segments = segmentation.felzenszwalb(image, scale=scale, sigma=sigma, min_size=len(image) ** 2 // 100)
    same = []
    for reach in REACH:
        half = max(1, reach * len(image) // 128)
        padded = np.pad(segments, half, mode="edge")
        middle = slice(half, -half)
        same += [padded[middle, 2 * half :] == padded[middle, : -2 * half]]
        same += [padded[2 * half :, middle] == padded[: -2 * half, middle]]
    return np.stack(same)


def _keypoints3d(scene):
    """Corners of the surfaces: of the logarithm of depth and of the normals."""
    return _each(_corners, torch.cat([scene["depth_z"].log(), scene["normal"]], 1))


def _segments25d(scene):
    """Segments of colours and logarithm of depth, both with little weight, and of normals."""
    features = torch.cat([0.15 * scene["rgb"], 0.3 * scene["depth_z"].log(), scene["normal"]], 1)
    return _each(lambda image: _pairs(image, 600, 0), features)


def _segments2d(scene):
    return _each(lambda image: _pairs(image, 200, 0.8), scene["rgb"])


def _bend(scene):
    """Curvatures k brought to [0, 1) as k / (k + 4 per metre)."""
    return scene["curvature"] / (scene["curvature"] + 4)


def _colours(scene):
    """a and b of the Lab colours."""
    return _each(lambda image: np.moveaxis(color.rgb2lab(image)[..., 1:], -1, 0), scene["rgb"])


def _layout(scene):
    return scene["layout"]


def _vanishing_points(scene):
    return scene["vanishing_points"]


_ALL = [
    Task("autoencoder", "image", 3, "2D", _rgb, (0.485, 0.452, 0.428), 0.205),
    Task("curvature", "image", 2, "3D", _bend, (0.044, 0.02), 0.123),
    Task("denoise", "image", 3, "2D", _rgb, (0.485, 0.452, 0.428), 0.205, input=_noisy),
    Task("edge2d", "image", 1, "2D", lambda scene: _each(_edges, scene["rgb"]), (0.035,), 0.037),
    Task("edge3d", "image", 1, "3D", lambda scene: _each(_occlusions, scene["depth_z"]), (0.039,), 0.105),
    Task("keypoint2d", "image", 1, "2D", lambda scene: _each(_corners, scene["rgb"]), (0.27,), 0.224),
    Task("keypoint3d", "image", 1, "3D", _keypoints3d, (0.391,), 0.608),
    Task("colorization", "image", 2, "2D", _colours, (3.714, 5.389), 17.021, input=_grey, is_target=False),
    Task("reshade", "image", 1, "3D", lambda scene: scene["shading"], (0.675,), 0.228),
    Task("rgb2depth", "image", 1, "3D", lambda scene: scene["depth_z"].log(), (0.867,), 0.495),
    Task("rgb2mist", "image", 1, "3D", lambda scene: scene["depth_euclidean"].log(), (1.012,), 0.474),
    Task("rgb2sfnorm", "image", 3, "3D", lambda scene: scene["normal"], (-0.002, -0.079, -0.469), 0.508),
    Task(
        "room_layout",
        "vector",
        5,
        "geometric",
        _layout,
        (4.295, 2.451, 2.435, 1.346, 1.401),
        0.699,
    ),
    Task("segment25d", "image", 4, "3D", _segments25d, (0.779, 0.803, 0.555, 0.55), 0.454),
    Task("segment2d", "image", 4, "2D", _segments2d, (0.762, 0.764, 0.517, 0.495), 0.464),
    Task(
        "vanishing_point",
        "vector",
        9,
        "geometric",
        _vanishing_points,
        (0.933, 0.003, -0.012, 0.013, -0.148, 0.911, 0.0, -0.977, -0.159),
        0.182,
    ),
    Task("segmentsemantic", "pixels", len(rooms.KINDS), "semantic", lambda scene: scene["semantic"]),
    Task("class_1000", "classes", len(rooms.SOLIDS), "semantic", lambda scene: scene["dominant"] - rooms.SOLIDS.start),
    Task("class_places", "classes", len(rooms.STYLES), "semantic", lambda scene: scene["style"]),
    Task("inpainting_whole", "image", 3, "2D", _rgb, (0.485, 0.452, 0.428), 0.205, input=_masked, is_target=False),
]
TASKS = {task.name: task for task in _ALL}


def losses(task: Task, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Loss of every image.

    Parameters
    ----------
    task : Task
    prediction : torch.Tensor
        Floating point. The target's shape for "image" and "vector"; (n, channels, s, s) logits for "pixels" and
        (n, channels) for "classes". n may be 1, and is then repeated.
    target : torch.Tensor
        What `Task.target` returns.

    Returns
    -------
    torch.Tensor
        (n,) float32: the mean squared error over pixels and channels, or the cross-entropy in nats, mean over pixels.

    Raises
    ------
    ValueError
        The shapes do not fit.

    Examples
    --------
    >>> losses(TASKS["room_layout"], torch.zeros(2, 5), torch.ones(2, 5))
    tensor([1., 1.])
    """
    classes = task.kind in ("pixels", "classes")
    wanted = (len(target), task.channels, *target.shape[1 if classes else 2 :])
    if prediction.shape[1:] != wanted[1:] or len(prediction) not in (1, len(target)):
        raise ValueError(f"{task.name} needs a prediction of shape {wanted}, not {tuple(prediction.shape)}")
    prediction = prediction.float().expand(wanted)
    if classes:
        loss = F.cross_entropy(prediction, target, reduction="none")
    else:
        loss = (prediction - target).square()
    return loss.reshape(len(target), -1).mean(1)


def constant(task: Task, targets: torch.Tensor) -> torch.Tensor:
    """The best prediction that does not look at the image: what a network has to beat.

    Parameters
    ----------
    task : Task
    targets : torch.Tensor
        What `Task.target` returns for the images to learn it from.

    Returns
    -------
    torch.Tensor
        float32, a prediction of one image for `losses`, (1, channels, ...): the mean, for every pixel on its own; or
        logarithms of the classes' shares, for every pixel on its own, where each class counts once more than it occurs.

    Examples
    --------
    >>> constant(TASKS["room_layout"], torch.tensor([[0.0] * 5, [2.0] * 5]))
    tensor([[1., 1., 1., 1., 1.]])
    """
    if task.kind not in ("pixels", "classes"):
        return targets.mean(0, keepdim=True)
    counts = [(targets == k).sum(0, keepdim=True) + 1 for k in range(task.channels)]
    return torch.log(torch.stack(counts, 1) / (len(targets) + task.channels))
