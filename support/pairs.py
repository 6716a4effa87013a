"""How sure the affinity of two networks is: every image crossed with every other, chance, and bootstrap intervals."""

import itertools

import numpy as np
import pandas as pd
import xarray as xr

from support import directions


def crossed(maps: xr.DataArray, channels: str = "mean") -> xr.DataArray:
    """Cosine of every model's map of every image with every model's map of every image.

    Where both images are the same, its mean is `space.affinity`. Where they differ, it is `space.chance`.

    Parameters
    ----------
    maps : xarray.DataArray
        As for `space.affinity`, without the axis reference. They are held in memory.
    channels : {"mean", "keep"}, default "mean"
        As for `space.affinity`.

    Returns
    -------
    xarray.DataArray
        float32, (source, target, image, other), in [−1, 1]: the source's map of `image`, the target's of `other`.

    Raises
    ------
    TypeError, ValueError
        As for `space.affinity`, or maps with the axis reference.

    Examples
    --------
    >>> maps = xr.DataArray([[[[1.0, 0.0]], [[0.0, 1.0]]]], {"model": ["a"]}, ("model", "image", "y", "x"))
    >>> crossed(maps)[0, 0].values.tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    maps = directions.checked(maps, channels)
    if "reference" in maps.dims:
        raise ValueError("images are crossed for maps without the axis reference: select one reference image")
    names, (n_models, n_images) = maps.model.values, maps.shape[:2]
    blocks = directions.blocks(maps, channels)
    points = np.concatenate([directions.unit(points, names, images) for images, points in blocks])
    points = points.reshape(n_images * n_models, -1)
    cosines = np.clip(points @ points.T, -1, 1).reshape(n_images, n_models, n_images, n_models)
    coords = {"source": names, "target": names}
    return xr.DataArray(cosines.transpose(1, 3, 0, 2), coords, ("source", "target", "image", "other"))


def means(cosines: xr.DataArray, weights: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Affinity and chance of every pair of models, with images counted as often as the weights say.

    Chance takes images of two different groups only, since tiles of one photograph look alike.

    Parameters
    ----------
    cosines : xarray.DataArray
        (source, target, image, other), as `crossed` returns them.
    weights : numpy.ndarray
        (draw, image), not negative.
    groups : numpy.ndarray
        (image,): the photograph that each image was cut from, as a number or a name.

    Returns
    -------
    affinity, chance : numpy.ndarray
        float64, (draw, pair), pairs in the order of `itertools.combinations`. Chance is not a number in a draw that has
        images of one group only.

    Examples
    --------
    >>> maps = np.array([[[[1.0, 0.0]], [[0.0, 1.0]]], [[[1.0, 0.0]], [[1.0, 0.0]]]])
    >>> cosines = crossed(xr.DataArray(maps, {"model": ["a", "b"]}, ("model", "image", "y", "x")))
    >>> affinity, chance = means(cosines, np.ones((1, 2)), np.array(["one photograph", "another"]))
    >>> affinity.tolist(), chance.tolist()
    ([[0.5]], [[0.5]])
    """
    weights = np.asarray(weights, np.float64)
    apart = np.not_equal.outer(groups, groups)
    both = ((weights @ apart) * weights).sum(1)
    affinity, chance = [], []
    for first, second in itertools.combinations(range(cosines.sizes["source"]), 2):
        values = cosines.values[first, second].astype(np.float64)
        affinity.append(weights @ np.diagonal(values) / weights.sum(1))
        with np.errstate(invalid="ignore"):  # no two groups: not a number, as promised
            chance.append(((weights @ (values * apart)) * weights).sum(1) / both)
    return np.stack(affinity, 1), np.stack(chance, 1)


def intervals(
    cosines: xr.DataArray, groups: np.ndarray, level: float = 0.95, n_resamples: int = 2000, seed: int = 0
) -> pd.DataFrame:
    """Affinity of every pair of models, its chance level and their difference, with bootstrap intervals.

    Groups of images are drawn with replacement, and so are the images that chance is taken from. The intervals are for
    each pair by itself; nothing is corrected for looking at many pairs.

    Parameters
    ----------
    cosines : xarray.DataArray
        (source, target, image, other), as `crossed` returns them.
    groups : numpy.ndarray
        (image,): the photograph that each image was cut from.
    level : float, default 0.95
        Coverage of the intervals, inside (0, 1).
    n_resamples : int, default 2000
        Number of draws.
    seed : int, default 0
        Of the draws.

    Returns
    -------
    pandas.DataFrame
        A row a pair, indexed by source and target; columns `affinity`, `low` and `high`, `chance`, `above` (affinity
        less chance), `above_low` and `above_high`, `first` (share of draws in which no other pair is further above
        chance).

    Raises
    ------
    ValueError
        Fewer than two models or three groups, groups for another number of images, or a level outside (0, 1).

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> image = rng.normal(size=(1, 20, 8, 8))  # what two networks see of 20 images, and a third does not
    >>> maps = np.concatenate([image + rng.normal(size=image.shape), image, rng.normal(size=image.shape)])
    >>> cosines = crossed(xr.DataArray(maps, {"model": list("abc")}, ("model", "image", "y", "x")))
    >>> (intervals(cosines, np.arange(20)).above_low > 0).tolist()
    [True, False, False]
    """
    names, numbers = np.unique(groups, return_inverse=True)
    if len(numbers) != cosines.sizes["image"]:
        raise ValueError(f"{len(numbers)} groups for {cosines.sizes['image']} images: give one for each image")
    if cosines.sizes["source"] < 2 or len(names) < 3:
        raise ValueError(
            f"intervals need two models and three groups of images, not {cosines.sizes['source']} and {len(names)}"
        )
    if not 0 < level < 1:
        raise ValueError(f"level is {level}, expected a share inside (0, 1), such as 0.95")
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=n_resamples)
    draws = draws[(draws > 0).sum(1) > 1]  # one group alone has no chance level
    affinity, chance = means(cosines, draws[:, numbers], numbers)
    (found,), (by_chance,) = means(cosines, np.ones((1, len(numbers))), numbers)
    ends = [(1 - level) / 2, (1 + level) / 2]
    low, high = np.quantile(affinity, ends, axis=0)
    above_low, above_high = np.quantile(affinity - chance, ends, axis=0)
    index = pd.MultiIndex.from_tuples(itertools.combinations(cosines.source.values, 2), names=["source", "target"])
    columns = {"affinity": found, "low": low, "high": high, "chance": by_chance, "above": found - by_chance}
    columns |= {"above_low": above_low, "above_high": above_high}
    columns["first"] = np.bincount((affinity - chance).argmax(1), minlength=len(index)) / len(draws)
    return pd.DataFrame(columns, index)
