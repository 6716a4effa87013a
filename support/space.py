"""Model space: a network is the point made of all its attribution maps; affinity and distance of two networks."""

import numpy as np
import pandas as pd
import xarray as xr
from scipy.cluster.hierarchy import cophenet, linkage
from scipy.spatial.distance import squareform

VALUES_AT_ONCE = 2**24  # float32 values of maps held in memory by one step


def affinity(maps, channels="mean"):
    """Mean cosine similarity of the attribution maps of every two models.

    Song et al. (2019), Section 3.3: (1/N_p) Σ_k cos(A_k^i, A_k^j), the reciprocal of equation (1).

    Parameters
    ----------
    maps : xarray.DataArray
        (model, image, y, x) or (model, image, y, x, channel), as `attribution.attribute` returns them, with the axis
        reference after image where an image has a map per reference image: its cosine is the mean over them. Read in
        blocks of images, so that an array on disk need not fit into memory.
    channels : {"mean", "keep"}, default "mean"
        Average the maps over their channels before the cosine (the authors' program), or take the cosine over all
        y · x · channel values (the paper's equation). "keep" needs maps that were computed with channels="keep".

    Returns
    -------
    xarray.DataArray
        float64, (source, target), in [−1, 1]: symmetric, 1 on the diagonal.

    Raises
    ------
    ValueError
        Wrong dimensions (several methods: select one), or a map that is zero everywhere or not finite; model and image
        are named.
    """
    n_images = maps.sizes.get("image", 0)
    total = sum(block.sum("image").values for block in _cosines(maps, channels))
    total = (total + total.T) / 2 / n_images
    np.fill_diagonal(total, 1.0)
    return _matrix(total, maps.model.values, "affinity", channels)


def chance(maps, channels="mean"):
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
    ValueError
        Fewer than two images, or as for `affinity`.
    """
    n_images = maps.sizes.get("image", 0)
    if n_images == 1:
        raise ValueError("chance needs maps of different images: at least two")
    sums, same = 0, 0
    for _, points in _directions(maps, channels):
        sums = sums + points.sum(0, dtype=np.float64)
        same = same + (points @ points.swapaxes(2, 3)).sum((0, 1), dtype=np.float64)
    products = (sums @ sums.swapaxes(1, 2)).sum(0) - same
    mean = products / (len(sums) * n_images * (n_images - 1))
    return _matrix((mean + mean.T) / 2, maps.model.values, "affinity of different images", channels)


def cosines(maps, channels="mean"):
    """Cosine similarity of the maps of every two models, image by image.

    Parameters
    ----------
    maps, channels
        As for `affinity`, which is the mean of what this returns.

    Returns
    -------
    xarray.DataArray
        float64, (image, source, target), in [−1, 1].

    Raises
    ------
    ValueError
        As for `affinity`.
    """
    return xr.concat(list(_cosines(maps, channels)), "image")


def distance(affinity):
    """Distance of two models, equation (1) of Song et al. (2019): N_p / Σ_k cos(A_k^i, A_k^j) = 1 / affinity.

    It is no metric: a model's distance to itself is 1. Where the mean cosine is not positive, the quotient would be
    negative and sort before everything; such models are infinitely far apart here.

    Parameters
    ----------
    affinity : xarray.DataArray
        (source, target), as `affinity` returns it.

    Returns
    -------
    xarray.DataArray
        (source, target), in [1, ∞].
    """
    result = xr.where(affinity > 0, 1 / affinity.where(affinity > 0, 1), np.inf).rename("distance")
    result.attrs = affinity.attrs | {"long_name": "distance, equation (1)"}
    return result


def neighbours(affinity, k=None):
    """For every target, the other models from nearest to farthest.

    Parameters
    ----------
    affinity : xarray.DataArray
        (source, target), higher is nearer.
    k : int, optional
        How many to list; all by default.

    Returns
    -------
    pandas.DataFrame
        One row a target, columns 1 … k: names of sources, the target's own model left out. Ties keep the order of
        the sources.
    """
    sources = affinity.source.values
    rows = {}
    for target in affinity.target.values:
        order = np.argsort(-affinity.sel(target=target).values, kind="stable")
        rows[target] = [name for name in sources[order] if name != target][:k]
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.columns = range(1, table.shape[1] + 1)
    return table.rename_axis(index="target", columns="rank")


def tree(affinity):
    """Agglomerative clustering of the models: average linkage on 1 − affinity.

    1 − affinity orders pairs as equation (1) does, is 0 for identical maps and stays finite.

    Parameters
    ----------
    affinity : xarray.DataArray
        (source, target), symmetric, at least two models.

    Returns
    -------
    numpy.ndarray
        float64, (models − 1, 4): SciPy's linkage matrix.

    Raises
    ------
    ValueError
        The matrix is not square and symmetric with the same models on both axes.
    """
    values = affinity.values
    same = list(affinity.source.values) == list(affinity.target.values)
    if not same or not np.allclose(values, values.T) or len(values) < 2:
        raise ValueError("a tree needs a symmetric matrix of at least two models, the same on both axes")
    return linkage(squareform(np.clip(1 - values, 0, None), checks=False), method="average")


def cophenetic_agreement(first, second):
    """How far the trees of two matrices agree: correlation of the heights at which two models share a branch.

    Sokal and Rohlf, "The comparison of dendrograms by objective methods", Taxon 11 (1962).

    Parameters
    ----------
    first, second : xarray.DataArray
        (source, target), higher is nearer, symmetric. The models that both have are compared; at least three.

    Returns
    -------
    float
        Pearson's correlation over all pairs of models, in [−1, 1]; 1 for trees of the same shape and proportions.

    Raises
    ------
    ValueError
        Fewer than three models in common, or as for `tree`.
    """
    common = [name for name in first.source.values if name in second.source.values]
    if len(common) < 3:
        raise ValueError(f"two trees need at least three models in common, there are {len(common)}")
    heights = [cophenet(tree(matrix.sel(source=common, target=common))) for matrix in (first, second)]
    return float(np.corrcoef(heights)[0, 1])


def _matrix(values, models, name, channels):
    coords = {"source": models, "target": models}
    attrs = {"long_name": f"{name} (mean cosine of attribution maps)", "units": "1", "channels": channels}
    return xr.DataArray(values, coords, ("source", "target"), name=name, attrs=attrs)


def _cosines(maps, channels):
    """Yield (image, source, target) cosines for blocks of images."""
    models = maps.model.values
    for images, points in _directions(maps, channels):
        values = np.clip(points @ points.swapaxes(2, 3), -1, 1).astype(np.float64).mean(1)
        yield xr.DataArray(values, {"image": images, "source": models, "target": models}, ("image", "source", "target"))


def _directions(maps, channels):
    """Yield, for blocks of images, their labels and the maps as unit vectors (image, reference, model, values)."""
    if channels not in ("mean", "keep"):
        raise ValueError(f'channels is "mean" or "keep", not {channels!r}')
    if "attribution" in maps.dims:
        raise ValueError('the maps are of several methods: select one, e.g. maps.sel(attribution="saliency")')
    missing = {"reference", "channel"} - set(maps.dims)
    if maps.dims != tuple(d for d in ("model", "image", "reference", "y", "x", "channel") if d not in missing):
        raise ValueError(
            "maps have dimensions (model, image, y, x), or (model, image, reference, y, x), or these and channel, "
            f"not {maps.dims}"
        )
    if channels == "keep" and "channel" not in maps.dims:
        raise ValueError('these maps hold no channels: compute them with attribute(..., channels="keep")')
    if not maps.size:
        raise ValueError(f"there is no map to compare: {dict(maps.sizes)}")
    step = max(1, VALUES_AT_ONCE // (maps.size // maps.sizes["image"]))
    for start in range(0, maps.sizes["image"], step):
        block = maps.isel(image=slice(start, start + step))
        if channels == "mean" and "channel" in maps.dims:
            block = block.mean("channel", skipna=False)
        if "reference" in missing:
            block = block.expand_dims("reference", 2)
        points = block.values.astype(np.float32).reshape(*block.shape[:3], -1)
        points = points.transpose(1, 2, 0, 3)  # (image, reference, model, values)
        largest = np.abs(points).max(-1, keepdims=True)
        for i, r, m in np.argwhere(~(np.isfinite(largest) & (largest > 0))[..., 0])[:1]:
            what = "zero everywhere" if largest[i, r, m, 0] == 0 else "not finite"
            raise ValueError(
                f"the map of model {maps.model.values[m]} for image {block.image.values[i]} is {what}: "
                "its direction, and so its cosine, is undefined; leave out that model or that image"
            )
        points = points / largest  # squares of very small or large values stay representable
        points /= np.linalg.norm(points, axis=-1, keepdims=True)
        yield block.image.values, points
