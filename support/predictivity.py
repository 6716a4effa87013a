"""How much of one network's representation a small readout predicts from another's: directed, and without labels."""

from collections.abc import Mapping

import numpy as np
import xarray as xr
from scipy.linalg import cho_factor, cho_solve

NEIGHBOURHOOD = 3  # positions along a side that a readout sees, as the first convolution of a transfer's head does
RANDOM = 512  # random features of a readout
RIDGE = 0.1  # times the number of training samples, on standardised features
FOLDS = 5  # image i is held out in fold i mod 5
MOST_FEATURES = 4_096  # up to here products of features are kept, beyond it products of samples
MOST_SAMPLES = 8_192  # of products of samples: positions are thinned out evenly to so many
ROWS = 8_192  # samples whose features are held in memory together
COLUMNS = 512  # channels of targets, or features of a wide source, that are held in memory together
CONSTANT = 1e-12  # of the largest value: a channel that deviates less says nothing


def predictivity(x, y, *, n_random: int = RANDOM, ridge: float = RIDGE, seed: int = 0) -> float:
    """How much of y a ridge regression on x predicts, for images that it has not seen.

    A transfer trains a small head from the source's representation to the labels of the target. Without labels there
    is the target's own network, and its representation takes the labels' place. At every position of every image the
    readout sees the 3 × 3 neighbourhood of x (edge values repeated), each value standardised over all positions and
    images, and `n_random` random features of it, max(0, W x + b) with W ~ N(0, 1 / number of values) and
    b ~ N(0, 1/4), standardised too. Linear predictivity is an old measure (Yamins et al. 2014, PNAS 111; as regression
    transferability with labels, Nguyen et al. 2023); random features stand for the head's nonlinearity.

    Parameters
    ----------
    x, y : array
        (image, channel, y, x) of the source and the target, real, the same images in the same order; or
        (image, features), which have no neighbourhood. Different grids are resampled to the smaller numbers of rows
        and columns, by the means of the areas that they cover.
    n_random : int, default 512
        Number of random features; 0 leaves a linear readout.
    ridge : float, default 0.1
        Times the number of training samples: the weight of the squared coefficients. The intercept has none.
    seed : int, default 0
        Of the random features: one draw for all networks of one width.

    Returns
    -------
    float
        Mean over the target's channels of R² = 1 − Σ squared error on held-out images / Σ squared deviation from the
        mean; five folds, image i in fold i mod 5. At most 1; 0 is as good as the mean, and below 0 is worse. With
        n_random = 0 and a small ridge, invertible linear maps of x do not change it.

    Raises
    ------
    ValueError
        Other shapes, different or fewer than 5 images, values that are not finite, a network all of whose channels are
        constant, or a setting out of range.

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(size=(20, 4, 8, 8))
    >>> round(predictivity(x, -3 * x[:, :2], n_random=0, ridge=1e-6), 3)
    1.0
    """
    return float(matrix({"x": x, "y": y}, n_random=n_random, ridge=ridge, seed=seed)[0, 1])


def matrix(
    reps: Mapping, *, grid: tuple | None = None, n_random: int = RANDOM, ridge: float = RIDGE, seed: int = 0
) -> xr.DataArray:
    """`predictivity` of every two networks.

    The products that a source's readout needs are computed once for all targets, in blocks of images, so that memory
    grows neither with images nor with networks, but for the representations themselves.

    Parameters
    ----------
    reps : dict of str to array
        Name of each network and its representations of the same images: (image, channel, y, x), or (image, features)
        for all of them.
    grid : tuple of int, optional
        (y, x): positions that all are resampled to; by default the smallest numbers of rows and columns among them.
    n_random, ridge, seed
        As for `predictivity`.

    Returns
    -------
    xarray.DataArray
        float64 (source, target), directed: how much of the target the source predicts; attrs: ``method``,
        ``n_samples``.

    Raises
    ------
    ValueError
        As for `predictivity`; the network is named.

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(size=(10, 4, 2, 2))
    >>> matrix({"whole": x, "part": x[:, :1]}, n_random=0, ridge=1e-6).round(1).values.tolist()
    [[1.0, 1.0], [-0.4, 1.0]]
    """
    _check_settings(n_random, ridge, seed)
    networks = _networks(reps, grid)
    result = np.empty((len(networks), len(networks)))
    for row, source in zip(result, networks, strict=True):
        wide = source.n_features + n_random > MOST_FEATURES
        readout = (_WideReadout if wide else _Readout)(source, n_random, ridge, seed)
        row[:] = [readout.explains(target) for target in networks]
    attrs = {"units": "1", "method": "predictivity", "long_name": "predictivity of the target from the source"}
    coords = {"source": list(reps), "target": list(reps)}
    attrs["n_samples"] = networks[0].n_images * networks[0].positions
    return xr.DataArray(result, coords, ("source", "target"), name="predictivity", attrs=attrs)


def resample(values, grid: tuple) -> np.ndarray:
    """Bring representations to another number of positions, each the mean of the area that it covers.

    Parameters
    ----------
    values : array
        (image, channel, y, x), real.
    grid : tuple of int
        (y, x), positive.

    Returns
    -------
    numpy.ndarray
        (image, channel, *grid), float64; `values` themselves where they have that grid.

    Raises
    ------
    ValueError
        A grid that is not two positive numbers.

    Examples
    --------
    >>> resample(np.arange(4.0).reshape(1, 1, 2, 2), (1, 1)).tolist()
    [[[[1.5]]]]
    """
    if len(grid) != 2 or min(grid) < 1:
        raise ValueError(f"grid is {grid}, expected two positive numbers of positions (y, x)")
    if tuple(grid) == values.shape[2:]:
        return values
    down, across = (_area_means(old, new) for old, new in zip(values.shape[2:], grid, strict=True))
    return down @ values.astype(np.float64) @ across.T


def _area_means(old, new):
    """Weights (new, old) with which each of `new` equal parts of a line averages `old` equal parts of it."""
    edges = np.linspace(0, old, new + 1)
    cells = np.arange(old)
    overlap = np.minimum(edges[1:, None], cells + 1) - np.maximum(edges[:-1, None], cells)
    return overlap.clip(0) * new / old


class _Network:
    """Representations (image, channel, y, x), standardised by channel where they are read."""

    def __init__(self, name, values):
        if values.ndim == 2:
            values, self.reach = values[:, :, None, None], 0
        else:
            self.reach = NEIGHBOURHOOD // 2
        self.name, self.values = name, values
        self.n_images, self.width, self.height, self.across = values.shape
        self.positions = self.height * self.across
        self.n_features = self.width * (2 * self.reach + 1) ** 2
        scale = np.abs(values).max((0, 2, 3)).astype(np.float64)
        self.scale = np.where(scale > 0, scale, 1)[:, None, None]  # first of all, so that no square overflows
        self.mean = np.mean([(one / self.scale).mean((1, 2)) for one in values], axis=0)[:, None, None]
        squares = np.mean([((one / self.scale - self.mean) ** 2).mean((1, 2)) for one in values], axis=0)
        self.varies = squares > CONSTANT**2
        if not self.varies.any():
            raise ValueError(f"{name} is constant: all its samples have the same features, so nothing can be compared")
        self.deviation = np.sqrt(np.where(self.varies, squares, np.inf))[:, None, None]

    def blocks(self):
        """(fold, images, rows): slices of at most `ROWS` positions, or one row, that together are everything."""
        at_once = max(1, ROWS // self.positions)
        rows = max(1, ROWS // self.across)
        for fold in range(FOLDS):
            indices = np.arange(fold, self.n_images, FOLDS)
            for start in range(0, len(indices), at_once):
                for top in range(0, self.height, rows):
                    yield fold, indices[start : start + at_once], slice(top, min(top + rows, self.height))

    def channels(self, images, rows, which=slice(None)):
        """(sample, channel), float64."""
        part = self.values[images, :, rows][:, which] / self.scale[which]
        part = (part - self.mean[which]) / self.deviation[which]
        return part.transpose(0, 2, 3, 1).reshape(-1, part.shape[1])

    def neighbourhoods(self, images, rows, which=slice(None)):
        """(sample, neighbour · channel): what a readout sees."""
        if not self.reach:
            return self.channels(images, rows, which)
        down = np.arange(rows.start - self.reach, rows.stop + self.reach).clip(0, self.height - 1)
        along = np.arange(-self.reach, self.across + self.reach).clip(0, self.across - 1)
        part = self.values[images][:, which][:, :, down][..., along] / self.scale[which]
        part = ((part - self.mean[which]) / self.deviation[which]).transpose(0, 2, 3, 1)
        height, size = rows.stop - rows.start, range(2 * self.reach + 1)
        seen = [part[:, dy : dy + height, dx : dx + self.across] for dy in size for dx in size]
        return np.concatenate(seen, -1).reshape(-1, len(seen) * part.shape[-1])


class _Readout:
    """Ridge regression on one source, from sums of products of features: one pass over the images, five solutions."""

    def __init__(self, source, n_random, ridge, seed):
        self.source, self.ridge = source, ridge
        n_samples = source.n_images * source.positions
        sums = np.zeros((2, source.n_features))
        for _, images, rows in source.blocks():
            seen = source.neighbourhoods(images, rows)
            sums += seen.sum(0), (seen**2).sum(0)
        self.shift = sums[0] / n_samples
        self.spread = _spread(sums[1] / n_samples - self.shift**2)
        self.projection, self.bias = _draw(source.n_features, n_random, seed)
        width = source.n_features + n_random
        self.count = np.zeros(FOLDS)
        self.total = np.zeros((FOLDS, width))
        products = np.zeros((FOLDS, width, width))
        for fold, images, rows in source.blocks():
            features = self._features(images, rows)
            self.count[fold] += len(features)
            self.total[fold] += features.sum(0)
            products[fold] += features.T @ features
        self.mean = self.total.sum(0) / n_samples
        self.deviation = _spread(np.diagonal(products.sum(0)) / n_samples - self.mean**2)
        for fold, product in enumerate(products):  # of features, to products of standardised features
            product -= np.outer(self.total[fold], self.mean)
            product -= np.outer(self.mean, self.total[fold] - self.count[fold] * self.mean)
            product /= self.deviation[:, None]
            product /= self.deviation
        self.total = (self.total - self.count[:, None] * self.mean) / self.deviation
        self.products = products
        self.solvers = [self._solver(fold) for fold in range(FOLDS)]

    def _features(self, images, rows):
        seen = (self.source.neighbourhoods(images, rows) - self.shift) / self.spread
        return np.concatenate([seen, np.maximum(seen @ self.projection + self.bias, 0)], 1)

    def _solver(self, fold):
        train = np.arange(FOLDS) != fold
        count, total = self.count[train].sum(), self.total[train].sum(0)
        squares = self.products[train].sum(0) - np.outer(total, total) / count
        squares[np.diag_indices_from(squares)] += self.ridge * count
        return cho_factor(squares, overwrite_a=True, check_finite=False)

    def explains(self, target):
        """Mean held-out R² over the target's channels."""
        channels = np.flatnonzero(target.varies)
        parts = [channels[start : start + COLUMNS] for start in range(0, len(channels), COLUMNS)]
        return np.concatenate([self._explained(target, part) for part in parts]).mean()

    def _explained(self, target, channels):
        width = len(self.mean)
        crossed = np.zeros((FOLDS, width, len(channels)))
        total, squares = np.zeros((2, FOLDS, len(channels)))
        for fold, images, rows in self.source.blocks():
            features, wanted = self._features(images, rows), target.channels(images, rows, channels)
            crossed[fold] += ((features - self.mean) / self.deviation).T @ wanted
            total[fold] += wanted.sum(0)
            squares[fold] += (wanted**2).sum(0)
        missed = np.zeros(len(channels))
        for fold in range(FOLDS):
            train = np.arange(FOLDS) != fold
            count, here, there = self.count[train].sum(), self.total[train].sum(0), total[train].sum(0)
            weights = cho_solve(
                self.solvers[fold], crossed[train].sum(0) - np.outer(here, there) / count, check_finite=False
            )
            base = (there - here @ weights) / count
            missed += squares[fold] - 2 * (weights * crossed[fold]).sum(0) - 2 * base * total[fold]
            missed += (weights * (self.products[fold] @ weights)).sum(0)
            missed += 2 * base * (self.total[fold] @ weights) + self.count[fold] * base**2
        return 1 - missed / squares.sum(0)


class _WideReadout:
    """The same from products of samples, for a source of more features than samples; positions may be thinned out."""

    def __init__(self, source, n_random, ridge, seed):
        self.ridge, self.n_images = ridge, source.n_images
        kept = min(source.positions, MOST_SAMPLES // source.n_images)
        if not kept:
            raise ValueError(
                f"{source.name} has {source.n_features:,} features and {source.n_images:,} images: "
                f"use at most {MOST_SAMPLES:,} images"
            )
        self.positions = np.linspace(0, source.positions - 1, kept).round().astype(int)
        everything = np.arange(source.n_images), slice(0, source.height)
        n_samples = source.n_images * kept
        products = np.zeros((n_samples, n_samples))
        hidden = 0
        projection, self.bias = _draw(source.n_features, n_random, seed)
        projection = projection.reshape(-1, source.width, n_random)
        for start in range(0, source.width, COLUMNS // projection.shape[0] or 1):
            which = slice(start, min(start + (COLUMNS // projection.shape[0] or 1), source.width))
            seen = self._thinned(source.neighbourhoods(*everything, which))
            seen -= seen.mean(0)
            seen /= _spread((seen**2).mean(0))
            products += seen @ seen.T
            hidden = hidden + seen @ projection[:, which].reshape(-1, n_random)
        if n_random:
            hidden = np.maximum(hidden + self.bias, 0)
            hidden -= hidden.mean(0)
            hidden /= _spread((hidden**2).mean(0))
            products += hidden @ hidden.T
        self.products = products
        self.fold = np.repeat(np.arange(source.n_images) % FOLDS, kept)

    def _thinned(self, samples):
        return samples.reshape(self.n_images, -1, samples.shape[1])[:, self.positions].reshape(-1, samples.shape[1])

    def explains(self, target):
        """Mean held-out R² over the target's channels."""
        everything = np.arange(target.n_images), slice(0, target.height)
        wanted = self._thinned(target.channels(*everything, np.flatnonzero(target.varies)))
        missed = 0
        for fold in range(FOLDS):
            train, test = self.fold != fold, self.fold == fold
            base, near = wanted[train].mean(0), self.products[train].mean(0)
            own = self.products[np.ix_(train, train)]
            own -= near[train]
            own -= near[train][:, None] - near[train].mean()
            own[np.diag_indices_from(own)] += self.ridge * train.sum()
            dual = cho_solve(
                cho_factor(own, overwrite_a=True, check_finite=False), wanted[train] - base, check_finite=False
            )
            crossed = self.products[np.ix_(test, train)] - near[train]
            crossed -= crossed.mean(1, keepdims=True)
            missed = missed + ((wanted[test] - base - crossed @ dual) ** 2).sum(0)
        return (1 - missed / ((wanted - wanted.mean(0)) ** 2).sum(0)).mean()


def _draw(n_features, n_random, seed):
    rng = np.random.default_rng(seed)
    return rng.normal(0, n_features**-0.5, (n_features, n_random)), rng.normal(0, 0.5, n_random)


def _spread(variances):
    """Standard deviations, infinite where there is nothing but rounding, so that such a feature becomes 0."""
    return np.sqrt(np.where(variances > CONSTANT, variances, np.inf))


def _check_settings(n_random, ridge, seed):
    whole = all(isinstance(value, (int, np.integer)) and value >= 0 for value in (n_random, seed))
    if not whole or not 0 < ridge < np.inf:
        raise ValueError(
            f"n_random is {n_random!r}, seed {seed!r} and ridge {ridge!r}: "
            "expected whole numbers from 0, and a positive number"
        )


def _networks(reps, grid):
    if not reps:
        raise ValueError("there is no network to compare")
    values = {name: np.asarray(value) for name, value in reps.items()}
    for name, value in values.items():
        if value.ndim not in (2, 4) or not value.size:
            raise ValueError(
                f"{name} has the shape {value.shape}, expected (image, channel, y, x) or (image, features)"
            )
        if value.dtype.kind not in "fiub":
            raise ValueError(f"{name} is of the type {value.dtype}, expected real numbers")
        if not np.isfinite(value).all():
            raise ValueError(f"{name} is not finite at {np.argwhere(~np.isfinite(value))[0].tolist()}: leave it out")
    first, one = next(iter(values.items()))
    for name, value in values.items():
        if len(value) != len(one) or value.ndim != one.ndim:
            raise ValueError(
                f"{first} has the shape {one.shape} and {name} {value.shape}: "
                "expected the same images, and positions in all networks or in none"
            )
    if len(one) < FOLDS:
        raise ValueError(f"there are {len(one)} images: at least {FOLDS} are needed, one a fold")
    if one.ndim == 4:
        grid = tuple(grid or np.min([value.shape[2:] for value in values.values()], axis=0))
        values = {name: resample(value, grid) for name, value in values.items()}
    return [_Network(name, value) for name, value in values.items()]
