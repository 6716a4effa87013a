"""Attribution maps as unit vectors, block by block: what the affinity of maps and the index of models share."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray as xr

from support import labels

VALUES_AT_ONCE = 2**24  # values of maps held in memory by one step
AXES = ("model", "image", "reference", "y", "x", "channel")


def checked(maps: Any, channels: str, distinct: bool = True) -> xr.DataArray:
    """Maps, not read yet, with their axes in the order of `AXES`; reference and channel may be missing.

    Names along model must be there, and unless `distinct` is false none may occur twice.

    Raises
    ------
    TypeError, ValueError
        No DataArray of real numbers, other axes, wrong names, no map, no channels to keep, or `channels` is neither
        "mean" nor "keep".

    Examples
    --------
    >>> maps = xr.DataArray(np.ones((2, 2, 1, 3)), {"model": ["a"]}, ("y", "x", "model", "image"))
    >>> checked(maps, "mean").dims
    ('model', 'image', 'y', 'x')
    """
    labels.choice(channels, "channels", ("mean", "keep"))
    maps = labels.named(maps, "maps")
    if "attribution" in maps.dims:
        raise ValueError('the maps are of several methods: select one, e.g. maps.sel(attribution="saliency")')
    axes = [axis for axis in AXES if axis in maps.dims or axis not in ("reference", "channel")]
    if set(axes) != set(maps.dims):
        raise ValueError(
            "maps have the dimensions model, image, y and x, and where there are any reference and channel, "
            f"not {maps.dims}"
        )
    if channels == "keep" and "channel" not in maps.dims:
        raise ValueError('these maps hold no channels: compute them with attribute(..., channels="keep")')
    if not maps.size:
        raise ValueError(f"there is no map to compare: {dict(maps.sizes)}")
    if maps.dtype.kind not in "biuf":
        raise TypeError(f"the maps are of the type {maps.dtype}: real numbers are needed")
    models = maps.model if distinct else maps.model.drop_duplicates("model")
    labels.named(models, "maps", ["model"])
    return maps.transpose(*axes)


def blocks(maps: xr.DataArray, channels: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield labels of images and their maps, in blocks of at most `VALUES_AT_ONCE` values or one image.

    The maps come as float32 (image, reference, model, values), averaged over their channels or with the channels in the
    row too; as a view where they are float32 already. Those of another type may come multiplied by powers of two, so
    that their squares fit.

    Examples
    --------
    >>> maps = xr.DataArray(np.ones((1, 3, 2, 2)), {"model": ["a"]}, ("model", "image", "y", "x"))
    >>> [points.shape for _, points in blocks(maps, "mean")]
    [(3, 1, 1, 4)]
    """
    step = max(1, VALUES_AT_ONCE // (maps.size // maps.sizes["image"]))
    images = maps.image.values  # 0, 1, 2, … where they bear no labels
    for start in range(0, len(images), step):
        yield images[start : start + step], _rows(maps.isel(image=slice(start, start + step)), channels)


def _rows(block: xr.DataArray, channels: str) -> np.ndarray:
    """Maps of a block of images as float32 (image, reference, model, values)."""
    if "reference" not in block.dims:
        block = block.expand_dims("reference", 2)
    values, mean = block.values, channels == "mean" and "channel" in block.dims
    points = None
    if values.dtype in (np.float32, np.float16):
        points = values.astype(np.float32, copy=False)
        if mean:
            with np.errstate(over="ignore", invalid="ignore"):
                points = points.mean(axis=-1)
            points = points if np.isfinite(points).all() else None
    if points is None:  # no float32, or the sum over channels has none: scaled by powers of two, which rounds nothing
        values = values if values.dtype.kind == "f" and values.itemsize > 4 else values.astype(np.float64)
        largest = np.abs(values).max(axis=tuple(range(3, values.ndim)), keepdims=True)
        values = np.ldexp(values, -np.frexp(np.where(np.isfinite(largest), largest, 1))[1])
        points = (values.mean(axis=-1) if mean else values).astype(np.float32)
    return points.reshape(*points.shape[:3], -1).transpose(1, 2, 0, 3)


def unit(points: np.ndarray, models: Any, images: Any) -> np.ndarray:
    """Divide every map of (image, reference, model, values) by its length, also where its squares have no float32.

    Raises
    ------
    ValueError
        A map that is zero everywhere or not finite; model and image are named.

    Examples
    --------
    >>> unit(np.full((1, 1, 1, 4), 3e-30, np.float32), ["a"], [0]).ravel().tolist()
    [0.5, 0.5, 0.5, 0.5]
    """
    largest = np.abs(points).max(-1, keepdims=True)
    for i, r, m in np.argwhere(~(np.isfinite(largest) & (largest > 0))[..., 0])[:1]:
        what = "zero everywhere" if largest[i, r, m, 0] == 0 else "not finite"
        raise ValueError(
            f"the map of model {models[m]} for image {images[i]} is {what}: "
            "its direction, and so its cosine, is undefined; leave out that model or that image"
        )
    points = points / largest
    points /= np.linalg.norm(points, axis=-1, keepdims=True)
    return points


def matrix(values: np.ndarray, models: Any, name: str, channels: str) -> xr.DataArray:
    """Cosines of every two models as the labelled matrix that `space` and `library` return.

    Examples
    --------
    >>> matrix(np.eye(2), ["a", "b"], "affinity", "mean").sel(source="a", target="b").item()
    0.0
    """
    coords = {"source": models, "target": models}
    attrs = {"long_name": f"{name} (mean cosine of attribution maps)", "units": "1", "channels": channels}
    return xr.DataArray(values, coords, ("source", "target"), name=name, attrs=attrs)
