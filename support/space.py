"""Model space: a network is the point made of all its attribution maps; affinity and distance of two networks.

`affinity` compares the models of one array of maps. A library that grows and shrinks model by model is
`library.ModelSpace`, which this module passes on with `sketch` and `sketch_size`.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from scipy.cluster.hierarchy import cophenet, linkage
from scipy.spatial.distance import squareform

from support import directions, labels
from support.library import HASHES, ModelSpace, sketch, sketch_size  # noqa: F401, passed on

SQUARES = (1e-24, 1e30)  # a map's sum of squares within these bounds is as exact in float32 as its values are
ROUNDING = 1e-6  # by so much a mean of cosines in float32 may be beyond 1


def affinity(maps: xr.DataArray, channels: str = "mean") -> xr.DataArray:
    """Mean cosine similarity of the attribution maps of every two models.

    Song et al. (2019), Section 3.3: (1/N_p) Σ_k cos(A_k^i, A_k^j), the reciprocal of equation (1).

    Parameters
    ----------
    maps : xarray.DataArray
        (model, image, y, x) or (model, image, y, x, channel), as `attribution.attribute` returns them, with the axis
        reference where an image has a map per reference image: its cosine is the mean over them. The axes may stand in
        any order. Read in blocks of images, so that an array on disk need not fit into memory.
    channels : {"mean", "keep"}, default "mean"
        Average the maps over their channels before the cosine (the authors' program), or take the cosine over all
        y · x · channel values (the paper's equation). "keep" needs maps that were computed with channels="keep".

    Returns
    -------
    xarray.DataArray
        float64, (source, target), in [−1, 1]: symmetric, 1 on the diagonal. It does not depend on the scale of a map.

    Raises
    ------
    TypeError, ValueError
        No DataArray of real numbers, wrong dimensions (several methods: select one), a model without a name or two of
        one name, or a map that is zero everywhere or not finite; model and image are named.

    Examples
    --------
    >>> maps = xr.DataArray([[[[1.0, 0.0]]], [[[3.0, 4.0]]]], {"model": ["a", "b"]}, ("model", "image", "y", "x"))
    >>> affinity(maps).values.round(6).tolist()
    [[1.0, 0.6], [0.6, 1.0]]
    """
    maps = directions.checked(maps, channels)
    total = sum(values.sum(0) for _, values in _cosines(maps, channels))
    total = (total + total.T) / 2 / maps.sizes["image"]
    np.fill_diagonal(total, 1.0)
    return directions.matrix(total, maps.model.values, "affinity", channels)


def chance(maps: xr.DataArray, channels: str = "mean") -> xr.DataArray:
    """Affinity that two models have for different images: mean cosine over all pairs of two of the images.

    What remains when it is subtracted from `affinity` is owed to both models seeing the same image. It is what the
    affinity becomes, on average, when the images of one model are shuffled so that none keeps its place.

    Parameters
    ----------
    maps, channels
        As for `affinity`; at least two images.

    Returns
    -------
    xarray.DataArray
        float64, (source, target), in [−1, 1]: symmetric; on the diagonal that of a model with itself.

    Raises
    ------
    TypeError, ValueError
        As for `affinity`, or fewer than two images.

    Examples
    --------
    >>> maps = xr.DataArray([[[[1.0, 0.0]], [[0.0, 1.0]]]], {"model": ["a"]}, ("model", "image", "y", "x"))
    >>> chance(maps).item()
    0.0
    """
    maps = directions.checked(maps, channels)
    n_images = maps.sizes["image"]
    if n_images < 2:
        raise ValueError("chance needs maps of different images: at least two")
    sums: Any = 0
    same: Any = 0
    for images, points in directions.blocks(maps, channels):
        points = directions.unit(points, maps.model.values, images)
        sums = sums + points.sum(0, dtype=np.float64)
        same = same + (points @ points.swapaxes(2, 3)).sum((0, 1), dtype=np.float64)
    products = (sums @ sums.swapaxes(1, 2)).sum(0) - same
    mean = products / (len(sums) * n_images * (n_images - 1))
    return directions.matrix((mean + mean.T) / 2, maps.model.values, "affinity of different images", channels)


def cosines(maps: xr.DataArray, channels: str = "mean") -> xr.DataArray:
    """Cosine similarity of the maps of every two models, image by image.

    Parameters
    ----------
    maps, channels
        As for `affinity`, which is the mean of what this returns. A model may occur twice here, for example beside
        itself with its images shuffled; select such models by their places.

    Returns
    -------
    xarray.DataArray
        float64, (image, source, target), in [−1, 1].

    Raises
    ------
    TypeError, ValueError
        As for `affinity`.

    Examples
    --------
    >>> maps = xr.DataArray([[[[2.0, 0.0]], [[0.0, 1.0]]]], {"model": ["a"]}, ("model", "image", "y", "x"))
    >>> cosines(maps).values.ravel().tolist()
    [1.0, 1.0]
    """
    maps = directions.checked(maps, channels, distinct=False)
    images, values = zip(*_cosines(maps, channels), strict=True)
    coords = {"image": np.concatenate(images), "source": maps.model.values, "target": maps.model.values}
    return xr.DataArray(np.concatenate(values), coords, ("image", "source", "target"))


def _cosines(maps: xr.DataArray, channels: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield, for blocks of images, their labels and the cosines (image, source, target)."""
    for images, points in directions.blocks(maps, channels):
        with np.errstate(over="ignore", invalid="ignore"):  # looked at below
            products = _products(points)
        squares = np.diagonal(products, axis1=2, axis2=3)
        if (squares > SQUARES[0]).all() and (squares < SQUARES[1]).all():  # False for what is not a number
            lengths = np.sqrt(squares)
            products /= lengths[..., None]
            products /= lengths[..., None, :]
        else:
            products = _products(directions.unit(points, maps.model.values, images))
        yield images, np.clip(products, -1, 1).astype(np.float64).mean(1)


def _products(points: np.ndarray) -> np.ndarray:
    """Products of every two rows of (image, reference, model, values); torch's are twice as fast as NumPy's here."""
    import torch  # which takes a second, and most of this module does without

    usable = points.flags.writeable and min(points.strides) >= 0
    values = torch.from_numpy(points if usable else points.copy())
    return torch.matmul(values, values.transpose(2, 3)).numpy()


def distance(affinity: xr.DataArray) -> xr.DataArray:
    """Distance of two models, equation (1) of Song et al. (2019): N_p / Σ_k cos(A_k^i, A_k^j) = 1 / affinity.

    It is no metric: a model's distance to itself is 1. Where the mean cosine is not positive, the quotient would be
    negative and sort before everything; such models are infinitely far apart here.

    Parameters
    ----------
    affinity : xarray.DataArray
        (source, target), as the function `affinity` returns it, or a selection of it.

    Returns
    -------
    xarray.DataArray
        float64, of the same axes, in [1, ∞].

    Raises
    ------
    TypeError, ValueError
        No DataArray of real numbers, or a value that is NaN or outside [−1, 1]; its place is named.

    Examples
    --------
    >>> names = {"source": ["a", "b"], "target": ["c"]}
    >>> distance(xr.DataArray([[0.5], [-0.1]], names, ("source", "target"))).values.ravel().tolist()
    [2.0, inf]
    """
    values = labels.real(labels.named(affinity, "affinity").data, "affinity")
    axes = {str(axis): affinity[axis].values for axis in affinity.dims}
    labels.finite(values, "affinity", axes, low=-1 - ROUNDING, high=1 + ROUNDING)
    with np.errstate(divide="ignore", over="ignore"):
        far = np.where(values > 0, 1 / np.clip(values, 0, 1), np.inf)
    return affinity.copy(data=far).rename("distance").assign_attrs(long_name="distance, equation (1)")


def neighbours(affinity: xr.DataArray, k: int | None = None) -> pd.DataFrame:
    """For every target, the other models from nearest to farthest.

    Parameters
    ----------
    affinity : xarray.DataArray
        (source, target), higher is nearer; the pairs of a model with itself need no value.
    k : int, optional
        How many to list, at least one; all by default.

    Returns
    -------
    pandas.DataFrame
        One row a target, columns 1 … k: names of sources, the target's own model left out. Ties keep the order of
        the sources. The row of a target that has fewer sources than another ends with None.

    Raises
    ------
    TypeError, ValueError
        As for `labels.matrix`, or k is not a positive whole number.

    Examples
    --------
    >>> names = ["a", "b", "c"]
    >>> near = [[1.0, 0.2, 0.7], [0.2, 1.0, 0.4], [0.7, 0.4, 1.0]]
    >>> neighbours(xr.DataArray(near, {"source": names, "target": names}, ("source", "target")), k=1)[1].tolist()
    ['c', 'c', 'a']
    """
    affinity = labels.matrix(affinity, "affinity", missing="own")
    k = None if k is None else labels.count(k, "k")
    sources, rows = affinity.source.values.tolist(), {}
    for target, column in zip(affinity.target.values.tolist(), affinity.values.T, strict=True):
        order = np.argsort(-column, kind="stable")
        rows[target] = [sources[place] for place in order if sources[place] != target][:k]
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.columns = range(1, table.shape[1] + 1)
    return table.rename_axis(index="target", columns="rank")


def tree(affinity: xr.DataArray) -> np.ndarray:
    """Agglomerative clustering of the models: average linkage on 1 − affinity.

    1 − affinity orders pairs as equation (1) does, is 0 for identical maps and stays finite.

    Parameters
    ----------
    affinity : xarray.DataArray
        (source, target), symmetric, not above 1, at least two models; the pairs of a model with itself need no value.

    Returns
    -------
    numpy.ndarray
        float64, (models − 1, 4): SciPy's linkage matrix, in the order of the sources.

    Raises
    ------
    TypeError, ValueError
        As for `labels.matrix`, or a value above 1; the pair is named.

    Examples
    --------
    >>> names = ["a", "b", "c"]
    >>> near = [[1.0, 0.2, 0.7], [0.2, 1.0, 0.4], [0.7, 0.4, 1.0]]
    >>> tree(xr.DataArray(near, {"source": names, "target": names}, ("source", "target")))[:, 2].round(6).tolist()
    [0.3, 0.7]
    """
    affinity = labels.matrix(affinity, "affinity", missing="own", symmetric=True, fewest=2)
    own = np.eye(len(affinity), dtype=bool)
    axes = {axis: affinity[axis].values for axis in affinity.dims}
    labels.finite(affinity.values, "affinity", axes, own, high=1 + ROUNDING)
    values = np.where(own, 1, affinity.values)
    return linkage(squareform(np.clip(1 - values, 0, None), checks=False), method="average")


def cophenetic_agreement(first: xr.DataArray, second: xr.DataArray) -> float:
    """How far the trees of two matrices agree: correlation of the heights at which two models share a branch.

    Sokal and Rohlf, "The comparison of dendrograms by objective methods", Taxon 11 (1962).

    Parameters
    ----------
    first, second : xarray.DataArray
        (source, target), as for `tree`. The models that both have are compared; at least three.

    Returns
    -------
    float
        Pearson's correlation over all pairs of models, in [−1, 1]; 1 for trees of the same shape and proportions.

    Raises
    ------
    TypeError, ValueError
        As for `tree`, fewer than three models in common, or all models of one matrix equally far from each other.

    Examples
    --------
    >>> names = ["a", "b", "c"]
    >>> near = [[1.0, 0.2, 0.7], [0.2, 1.0, 0.4], [0.7, 0.4, 1.0]]
    >>> near = xr.DataArray(near, {"source": names, "target": names}, ("source", "target"))
    >>> round(cophenetic_agreement(near, near / 2), 6)
    1.0
    """
    first = labels.matrix(first, "the first matrix", missing="any")
    second = labels.matrix(second, "the second matrix", missing="any")
    common = [name for name in first.source.values if name in second.source.values]
    if len(common) < 3:
        raise ValueError(f"two trees need at least three models in common, there are {len(common)}")
    heights = []
    for which, matrix in (("first", first), ("second", second)):
        absent = sorted(map(str, set(common) - set(matrix.target.values.tolist())))
        if absent:
            raise ValueError(f"{', '.join(absent)} of the {which} matrix are sources only: a tree needs both axes")
        height = cophenet(tree(matrix.sel(source=common, target=common)))
        if not labels.varies(height):
            raise ValueError(f"the {which} tree joins all models at one height, so that it agrees with no other")
        heights.append(height / height.max())
    return float(np.corrcoef(heights)[0, 1])
