"""The readout behind `similarity.predictivity`: ridge regression of one representation from another, held out."""

import copy
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy.linalg import cho_factor, cho_solve

NEIGHBOURHOOD = 3  # positions along a side that a readout sees, as the first convolution of a transfer's head does
RANDOM = 512  # random features of a readout
RIDGE = 0.1  # times the number of training samples, on standardised features
FOLDS = 5  # image i is held out in fold i mod 5
MOST_FEATURES = 4_096  # up to here products of features are kept, beyond it products of samples
KEPT = 2**25  # values of a source's features that are kept between targets, 256 MB; more are computed again for each
MOST_SAMPLES = 4_096  # of products of samples: positions are thinned out evenly to so many
ROWS = 8_192  # samples whose features are held in memory together
COLUMNS = 512  # channels of targets, or features of a wide source, that are held in memory together
CONSTANT = 1e-12  # of the largest value: a channel that deviates less says nothing


class Summary:
    """One network: its representations, standardised where they are read, and a readout of them when it is asked for.

    Parameters
    ----------
    values : numpy.ndarray
        (image, channel, y, x), real and finite, as `similarity.samples` makes "maps"; with one position there is no
        neighbourhood.
    name : str
        For messages.
    n_random, ridge, seed
        As for `similarity.predictivity`.

    Raises
    ------
    ValueError
        Fewer than five images, or all channels are constant.
    """

    def __init__(
        self, values: np.ndarray, name: str = "x", n_random: int = RANDOM, ridge: float = RIDGE, seed: int = 0
    ):
        self.settings = n_random, ridge, seed
        self.name = name
        self.values = values
        self.n_images, self.width, self.height, self.across = values.shape
        if self.n_images < FOLDS:
            raise ValueError(f"{name} has {self.n_images} images: at least {FOLDS} are needed, one a fold")
        self.positions = self.height * self.across
        self.reach = NEIGHBOURHOOD // 2 if self.positions > 1 else 0
        self.n_features = self.width * (2 * self.reach + 1) ** 2
        scale = np.abs(self.values).max((0, 2, 3)).astype(np.float64)
        self.scale = np.where(scale > 0, scale, 1)[:, None, None]  # first of all, so that no square overflows
        self.mean = np.mean([(one / self.scale).mean((1, 2)) for one in self.values], axis=0)[:, None, None]
        squares = np.mean([((one / self.scale - self.mean) ** 2).mean((1, 2)) for one in self.values], axis=0)
        self.varies = squares > CONSTANT**2
        if not self.varies.any():
            raise ValueError(f"{name} is constant: all its samples have the same features, so nothing can be compared")
        self.deviation = np.sqrt(np.where(self.varies, squares, np.inf))[:, None, None]

    @functools.cached_property
    def readout(self) -> "_Readout | _WideReadout":
        """The ridge regression on this network."""
        wide = self.n_features + self.settings[0] > MOST_FEATURES
        return (_WideReadout if wide else _Readout)(self, *self.settings)

    def moved(self, images: int) -> "Summary":
        """The same network with its images moved on by so many places, the last ones to the beginning."""
        return self.reordered(np.roll(np.arange(self.n_images), images))

    def reordered(self, order: np.ndarray) -> "Summary":
        """The same network with its images in another order."""
        other = copy.copy(self)
        other.__dict__.pop("readout", None)
        other.values = self.values[order]
        return other

    def blocks(self) -> Iterator[tuple[slice, slice]]:
        """(images, rows) of at most `ROWS` positions, or one row, that together are everything."""
        at_once, rows = max(1, ROWS // self.positions), max(1, ROWS // self.across)
        for start in range(0, self.n_images, at_once):
            for top in range(0, self.height, rows):
                yield slice(start, min(start + at_once, self.n_images)), slice(top, min(top + rows, self.height))

    def channels(self, images: slice, rows: slice, which: Any = slice(None)) -> np.ndarray:
        """(sample, channel), float64; images are slowest."""
        part = self.values[images, :, rows][:, which] / self.scale[which]
        part = (part - self.mean[which]) / self.deviation[which]
        return part.transpose(0, 2, 3, 1).reshape(-1, part.shape[1])

    def neighbourhoods(self, images: slice, rows: slice, which: Any = slice(None)) -> np.ndarray:
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


def errors(source: Summary, target: Summary) -> tuple[np.ndarray, np.ndarray]:
    """What the readout of a source misses of a target, image by image, and what there is to miss.

    Parameters
    ----------
    source, target : Summary
        Of the same images and positions.

    Returns
    -------
    missed, spread : numpy.ndarray
        float64 (image, channel), channels of the target that vary: sums over positions of the squared error of the
        held-out prediction, and of the squared deviation from the channel's mean.

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(size=(10, 4, 2, 2))
    >>> missed, spread = errors(Summary(x, n_random=0, ridge=1e-9), Summary(x[:, :2]))
    >>> missed.shape, bool((missed < 1e-6 * spread).all())
    ((10, 2), True)
    """
    channels = np.flatnonzero(target.varies)
    parts = [channels[start : start + COLUMNS] for start in range(0, len(channels), COLUMNS)]
    found = [source.readout.errors(target, part) for part in parts]
    return np.concatenate([missed for missed, _ in found], 1), np.concatenate([spread for _, spread in found], 1)


def explained(source: Summary, target: Summary) -> float:
    """Predictivity of a target from a source: mean over channels of 1 − missed / spread, see `errors`.

    Parameters
    ----------
    source, target : Summary

    Returns
    -------
    float

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(size=(10, 4, 2, 2))
    >>> round(explained(Summary(x, n_random=0, ridge=1e-9), Summary(x[:, :2])), 6)
    1.0
    """
    missed, spread = errors(source, target)
    return float((1 - missed.sum(0) / spread.sum(0)).mean())


class _Readout:
    """Ridge regression from sums of products of features: a pass over the images for all targets, five solutions."""

    def __init__(self, source, n_random, ridge, seed):
        self.source = source
        n_samples = source.n_images * source.positions
        sums = np.zeros((2, source.n_features))
        for images, rows in source.blocks():
            seen = source.neighbourhoods(images, rows)
            sums += seen.sum(0), (seen**2).sum(0)
        self.shift = sums[0] / n_samples
        self.spread = _spread(sums[1] / n_samples - self.shift**2)
        self.projection, self.bias = _draw(source.n_features, n_random, seed)
        self.mean, self.deviation = np.zeros(1), np.ones(1)
        width = source.n_features + n_random
        self.kept = [] if n_samples * width <= KEPT else None
        total, products = np.zeros((FOLDS, width)), np.zeros((FOLDS, width, width))
        for fold, features in self._by_fold():
            total[fold] += features.sum(0)
            products[fold] += features.T @ features
        self.mean = total.sum(0) / n_samples
        self.deviation = _spread(np.diagonal(products.sum(0)) / n_samples - self.mean**2)
        if self.kept is not None:
            self.kept = [(features - self.mean) / self.deviation for features in self.kept]
        self.count = source.positions * np.bincount(np.arange(source.n_images) % FOLDS, minlength=FOLDS)
        for fold, product in enumerate(products):  # products of features become those of standardised features
            product -= np.outer(total[fold], self.mean)
            product -= np.outer(self.mean, total[fold] - self.count[fold] * self.mean)
            product /= self.deviation[:, None]
            product /= self.deviation
        self.total = (total - self.count[:, None] * self.mean) / self.deviation
        everything = products.sum(0)
        self.solvers = []
        for fold in range(FOLDS):
            count, here = self._training(fold, self.count), self._training(fold, self.total)
            squares = everything - products[fold] - np.outer(here, here) / count
            squares[np.diag_indices_from(squares)] += ridge * count
            self.solvers.append(cho_factor(squares, overwrite_a=True, check_finite=False))

    @staticmethod
    def _training(fold, sums):
        return np.delete(sums, fold, 0).sum(0)

    def _features(self, images, rows):
        seen = (self.source.neighbourhoods(images, rows) - self.shift) / self.spread
        hidden = np.maximum(seen @ self.projection + self.bias, 0)
        return (np.concatenate([seen, hidden], 1) - self.mean) / self.deviation

    def _by_fold(self):
        for images, rows in self.source.blocks():
            features = self._features(images, rows)
            if self.kept is not None:
                self.kept.append(features)
            yield from ((fold, features[chosen]) for fold, chosen in _folds(images, len(features)))

    def _blocks(self):
        for number, (images, rows) in enumerate(self.source.blocks()):
            yield images, rows, self._features(images, rows) if self.kept is None else self.kept[number]

    def errors(self, target, channels):
        crossed = np.zeros((FOLDS, len(self.mean), len(channels)))
        total = np.zeros((FOLDS, len(channels)))
        for images, rows, features in self._blocks():
            wanted = target.channels(images, rows, channels)
            for fold, chosen in _folds(images, len(features)):
                crossed[fold] += features[chosen].T @ wanted[chosen]
                total[fold] += wanted[chosen].sum(0)
        weights, base = [], []
        for fold, solver in enumerate(self.solvers):
            count, here = self._training(fold, self.count), self._training(fold, self.total)
            there = self._training(fold, total)
            across = self._training(fold, crossed) - np.outer(here, there) / count
            weights.append(cho_solve(solver, across, check_finite=False))
            base.append((there - here @ weights[-1]) / count)
        missed, spread = np.zeros((2, target.n_images, len(channels)))
        for images, rows, features in self._blocks():
            wanted = target.channels(images, rows, channels)
            found = np.empty_like(wanted)
            for fold, chosen in _folds(images, len(features)):
                found[chosen] = features[chosen] @ weights[fold] + base[fold]
            shape = (images.stop - images.start, -1, len(channels))
            missed[images] += ((wanted - found) ** 2).reshape(shape).sum(1)
            spread[images] += (wanted**2).reshape(shape).sum(1)
        return missed, spread


class _WideReadout:
    """The same from products of samples, for a source with many features; positions may be thinned out."""

    def __init__(self, source, n_random, ridge, seed):
        kept = min(source.positions, MOST_SAMPLES // source.n_images)
        if not kept:
            raise ValueError(
                f"{source.name} has {source.n_features:,} features and {source.n_images:,} images: "
                f"use at most {MOST_SAMPLES:,} images"
            )
        self.ridge, self.n_images = ridge, source.n_images
        self.positions = np.linspace(0, source.positions - 1, kept).round().astype(int)
        self.fold = np.repeat(np.arange(source.n_images) % FOLDS, kept)
        self.products = np.zeros((source.n_images * kept,) * 2)
        projection, bias = _draw(source.n_features, n_random, seed)
        projection = projection.reshape(source.n_features // source.width, source.width, n_random)
        hidden, at_once = bias, max(1, COLUMNS // len(projection))
        for start in range(0, source.width, at_once):
            which = slice(start, min(start + at_once, source.width))
            seen = self._thinned(source, source.neighbourhoods, which)
            seen = (seen - seen.mean(0)) / _spread(seen.var(0))
            self.products += seen @ seen.T
            hidden = hidden + seen @ projection[:, which].reshape(seen.shape[1], n_random)
        if n_random:
            hidden = np.maximum(hidden, 0)
            hidden = (hidden - hidden.mean(0)) / _spread(hidden.var(0))
            self.products += hidden @ hidden.T

    def _thinned(self, network, read, which):
        samples = read(slice(0, network.n_images), slice(0, network.height), which)
        return samples.reshape(self.n_images, -1, samples.shape[1])[:, self.positions].reshape(-1, samples.shape[1])

    def errors(self, target, channels):
        wanted = self._thinned(target, target.channels, channels)
        missed = np.empty_like(wanted)
        for fold in range(FOLDS):
            train, test = self.fold != fold, self.fold == fold
            base, near = wanted[train].mean(0), self.products[train].mean(0)[train]
            own = self.products[np.ix_(train, train)] - near
            own -= near[:, None] - near.mean()
            own[np.diag_indices_from(own)] += self.ridge * train.sum()
            solver = cho_factor(own, overwrite_a=True, check_finite=False)
            dual = cho_solve(solver, wanted[train] - base, check_finite=False)
            crossed = self.products[np.ix_(test, train)] - near
            crossed -= crossed.mean(1, keepdims=True)
            missed[test] = (wanted[test] - base - crossed @ dual) ** 2
        shape = (self.n_images, -1, len(channels))
        return missed.reshape(shape).sum(1), ((wanted - wanted.mean(0)) ** 2).reshape(shape).sum(1)


def _folds(images, n_samples):
    """(fold, which samples of a block are held out in it), for the samples of a slice of images."""
    numbers = np.repeat(np.arange(images.start, images.stop) % FOLDS, n_samples // (images.stop - images.start))
    return [(fold, numbers == fold) for fold in np.unique(numbers)]


def _draw(n_features, n_random, seed):
    rng = np.random.default_rng(seed)
    return rng.normal(0, n_features**-0.5, (n_features, n_random)), rng.normal(0, 0.5, n_random)


def _spread(variances):
    """Standard deviations, infinite where there is nothing but rounding, so that such a feature becomes 0."""
    return np.sqrt(np.where(variances > CONSTANT, variances, np.inf))
