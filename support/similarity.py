"""How alike the representations of two networks are: SVCCA, linear CKA, RSA and duality diagram similarity."""

from collections.abc import Callable
from itertools import combinations
from typing import NamedTuple

import numpy as np
import xarray as xr
from scipy.spatial.distance import pdist, squareform
from scipy.stats import rankdata

SAMPLES_PER_DIRECTION = 5  # with fewer, canonical correlations are high for any two representations
FEWEST_SAMPLES = 4
SHIFTS = 12  # numbers of places by which `chance` moves the images on
MOST_SAMPLES = 4096  # of RSA and duality diagrams, which hold a value for every two samples


def svcca(x, y, variance=0.99):
    """Singular vector canonical correlation analysis.

    Raghu et al. (2017), Section 2: both representations are centred and reduced to the smallest number of singular
    directions that hold `variance` of their variance; the canonical correlations are the singular values of the product
    of the two orthonormal bases, and their mean over the smaller number of directions is the result.

    Parameters
    ----------
    x, y : array
        (samples, features), real; the same samples, features of any number.
    variance : float, default 0.99
        Share of the variance to keep, in (0, 1]. Directions whose singular value is below 1e-5 of the largest are
        never kept.

    Returns
    -------
    float
        In [0, 1]; 1 for one and the same representation, also after an orthogonal map or scaling (after any invertible
        linear map if ``variance=1``).

    Raises
    ------
    ValueError
        Not two dimensions, different or fewer than 4 samples, values that are not finite, the same features for all
        samples, `variance` out of range, or fewer than 5 samples per kept direction (the message says how many are
        needed).
    """
    _check_variance(variance)
    return _pair(x, y, lambda values, name: _basis(values, name, variance), _mean_correlation)


def cka(x, y):
    """Linear centred kernel alignment.

    Kornblith et al. (2019), Section 3, equation (5): ‖Yᵀ X‖² / (‖Xᵀ X‖ ‖Yᵀ Y‖) in Frobenius norms, X and Y centred; the
    same as HSIC(X Xᵀ, Y Yᵀ), normalised.

    Parameters
    ----------
    x, y : array
        (samples, features), real; the same samples, features of any number.

    Returns
    -------
    float
        In [0, 1]; 1 for one and the same representation, also after an orthogonal map or scaling.

    Raises
    ------
    ValueError
        Not two dimensions, different or fewer than 4 samples, values that are not finite, or the same features for all
        samples.
    """
    return _pair(x, y, _factor, _alignment)


def rsa(x, y):
    """Representational similarity analysis.

    Kriegeskorte et al. (2008): the dissimilarity of two samples is 1 − Pearson's correlation of their features; the
    result is Spearman's correlation of the upper triangles of both dissimilarity matrices. Dissimilarities that agree
    to 12 decimals are ties.

    Parameters
    ----------
    x, y : array
        (samples, features), real; the same samples, at most 4096, features of any number from 2.

    Returns
    -------
    float
        In [−1, 1]; 1 for one and the same representation, also after scaling.

    Raises
    ------
    ValueError
        Not two dimensions, different, fewer than 4 or more than 4096 samples, values that are not finite, the same
        features for all samples, a sample whose features are all equal (it has no correlation), or dissimilarities
        that are all equal.
    """
    return _pair(x, y, _ranks, np.dot)


def dds(x, y):
    """Duality diagram similarity.

    Dwivedi et al. (2020), in the variant that did best on Taskonomy there: features brought to mean 0 and variance 1
    over the samples (z-scoring; a constant feature becomes 0), Laplacian kernel exp(−‖a − b‖₁ / number of features),
    Gram matrices centred without bias (Székely and Rizzo 2014, which leaves the diagonal out), and their cosine.

    Parameters
    ----------
    x, y : array
        (samples, features), real; the same samples, at most 4096, features of any number.

    Returns
    -------
    float
        In [−1, 1]; 1 for one and the same representation, also after shifting, scaling or permuting its features.

    Raises
    ------
    ValueError
        Not two dimensions, different, fewer than 4 or more than 4096 samples, values that are not finite, the same
        features for all samples, or samples that are all equally far from each other.
    """
    return _pair(x, y, _centred_kernel, np.dot)


def samples(representations, kind, grid=None):
    """Bring the representations of one network into the form (samples, features).

    Parameters
    ----------
    representations : array
        (image, channel, y, x), or (image, features), which have no positions: each image is one sample then.
    kind : {"images", "positions", "maps"}
        Each image is a sample with channel · y · x features, or each position of each image is one with as many
        features as there are channels, or the axes stay as they are.
    grid : tuple of int, optional
        (y, x): resample to so many positions before, each the mean of the area that it covers. As it is, by default.

    Returns
    -------
    numpy.ndarray
        float64, (image, channel · y · x) or (image · y · x, channel), images slowest, or (image, channel, y, x), where
        what has no positions has one.

    Raises
    ------
    ValueError
        Other kinds or dimensions, an empty array, or a grid that is not two positive numbers.
    """
    if kind not in ("images", "positions", "maps"):
        raise ValueError(f'samples are "images" or "positions" (or "maps"), not {kind!r}')
    if grid is not None and (len(grid) != 2 or min(grid) < 1):
        raise ValueError(f"grid is {grid}, expected two positive numbers of positions (y, x)")
    values = np.asarray(representations)
    if values.ndim not in (2, 4) or not values.size:
        raise ValueError(
            f"representations have the shape {values.shape}, expected (image, channel, y, x) or (image, features)"
        )
    values = values.astype(np.float64)
    if values.ndim == 2:
        return values[:, :, None, None] if kind == "maps" else values
    if grid is not None and tuple(grid) != values.shape[2:]:
        down, across = (_area_means(old, new) for old, new in zip(values.shape[2:], grid, strict=True))
        values = down @ values @ across.T
    if kind == "maps":
        return values
    if kind == "images":
        return values.reshape(len(values), -1)
    return values.transpose(0, 2, 3, 1).reshape(-1, values.shape[1])


def matrix(reps, method="svcca", samples=None, grid=None, variance=0.99):
    """Similarity of the representations of every two networks.

    What a method needs of one network (basis, factor, ranks of dissimilarities, kernel) is computed once.

    Parameters
    ----------
    reps : dict of str to array
        Name of each network and its representations of the same images in the same order: (image, channel, y, x), or
        (image, features) for all of them if the samples are positions.
    method : {"svcca", "cka", "rsa", "dds"}, default "svcca"
        One of `METHODS`.
    samples : {"images", "positions"}, optional
        What a sample is, see the function `samples`. By default positions for SVCCA and CKA, and images for RSA and
        duality diagrams, which were published so.
    grid : tuple of int, optional
        (y, x): positions per image that all representations are resampled to. By default, positions are resampled to
        the smallest number of rows and of columns among the networks, and images are left as they are.
    variance : float, default 0.99
        Share of the variance that SVCCA keeps, see `svcca`.

    Returns
    -------
    xarray.DataArray
        float64, (source, target), symmetric, 1 on the diagonal; attrs: ``method``, ``samples``, ``n_samples``.

    Raises
    ------
    ValueError
        Unknown method, no network, `variance` out of range, different numbers of images, networks with and without
        positions, or as for the function of that method; the network is named.
    """
    summaries, attrs = _summaries(reps, method, samples, grid, variance)
    entry, known = METHODS[method], list(summaries.values())
    result = np.eye(len(known))
    if entry.directed:
        for i, j in np.ndindex(result.shape):
            result[i, j] = _clipped(entry.compare(known[i], known[j]))
    else:
        for i, j in combinations(range(len(known)), 2):
            result[i, j] = result[j, i] = _clipped(entry.compare(known[i], known[j]))
    return _labelled(result, reps, attrs | {"long_name": f"{METHODS[method].title} similarity of representations"})


def chance(reps, method="svcca", samples=None, grid=None, variance=0.99):
    """Similarity of the representations of every two networks when they are given different images.

    The images of one of the two networks are moved on by a number of places, the last ones to the beginning, so that
    each meets another image. The result is the mean over all numbers of places, from 1 to the number of images − 1, or,
    with more than `SHIFTS` + 1 images, over `SHIFTS` of them at most, spread evenly. With a number of places its
    opposite is taken always, so that either network may be the one that is moved.

    Parameters
    ----------
    reps, method, samples, grid, variance
        As for `matrix`. What a method needs of one network is computed once, not once for each number of places.

    Returns
    -------
    xarray.DataArray
        float64, (source, target), symmetric; on the diagonal, of a network with itself. The attrs of `matrix`.

    Raises
    ------
    ValueError
        As for `matrix`, or fewer than two images.
    """
    summaries, attrs = _summaries(reps, method, samples, grid, variance)
    n_images = len(next(iter(reps.values())))
    if n_images < 2:
        raise ValueError("chance is what different images give: it needs at least two")
    entry = METHODS[method]
    result = np.zeros((len(reps), len(reps)))
    places = _shifts(n_images)
    for j, other in enumerate(summaries.values()):
        for shift in places:
            moved = entry.move(other, shift * attrs["n_samples"] // n_images)
            for i, one in enumerate(summaries.values()):
                if entry.directed or i <= j:
                    result[i, j] += _clipped(entry.compare(one, moved)) / len(places)
    if not entry.directed:
        result += np.triu(result, 1).T
    return _labelled(result, reps, attrs | {"long_name": f"{METHODS[method].title} similarity for different images"})


def _shifts(n_images):
    """Numbers of places to move n images on by: with each k also n − k."""
    half = n_images // 2
    few = {round(k) for k in np.linspace(1, half, min(SHIFTS // 2, half))}
    return sorted(few | {n_images - k for k in few})


def _roll_rows(summary, steps):
    """A summary (sample, value) of samples moved on."""
    return np.roll(summary, steps, 0)


def _roll_pairs(summary, steps):
    """A summary with a value for every two samples, of samples moved on."""
    return squareform(np.roll(squareform(summary), (steps, steps), (0, 1)), checks=False)


def _summaries(reps, method, samples, grid, variance):
    """What a method needs of each network, by name, and the attrs of a matrix."""
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; known: {', '.join(METHODS)}")
    entry = METHODS[method]
    if not reps:
        raise ValueError("there is no network to compare")
    _check_variance(variance)
    kind = samples or entry.samples
    shapes = {name: np.shape(values) for name, values in reps.items()}
    _same({name: shape[:1] for name, shape in shapes.items()}, "numbers of images")
    sizes = {name: shape[2:] for name, shape in shapes.items()}
    if kind != "images":
        flat = [name for name, size in sizes.items() if not size]
        if flat and len(flat) < len(sizes):
            raise ValueError(f'the representations of {", ".join(flat)} have no positions: use samples="images"')
        if not flat and grid is None and all(len(size) == 2 for size in sizes.values()):
            grid = tuple(int(side) for side in np.min(list(sizes.values()), axis=0))
    options = {name: value for name, value in {"variance": variance}.items() if name in entry.options}
    summaries = {}
    for name, values in reps.items():
        form = _form(values, kind, grid)
        _checked(form.reshape(len(form), -1), name)
        summaries[name] = entry.summarise(form, name, **options)
    return summaries, {"units": "1", "method": method, "samples": kind, "n_samples": len(form)}


def _labelled(values, reps, attrs):
    coords = {"source": list(reps), "target": list(reps)}
    return xr.DataArray(values, coords, ("source", "target"), name="similarity", attrs=attrs)


_form = samples  # `matrix` has an argument of that name


def _check_variance(variance):
    if not 0 < variance <= 1:
        raise ValueError(f"variance is {variance}, expected a share in (0, 1], such as 0.99")


def _same(values, what):
    first = next(iter(values))
    for name, value in values.items():
        if value != values[first]:
            raise ValueError(f"{first} and {name} have different {what}: {values[first]} and {value}")


def _area_means(old, new):
    """Weights (new, old) with which each of `new` equal parts of a line averages `old` equal parts of it."""
    edges = np.linspace(0, old, new + 1)
    cells = np.arange(old)
    overlap = np.minimum(edges[1:, None], cells + 1) - np.maximum(edges[:-1, None], cells)
    return overlap.clip(0) * new / old


def _pair(x, y, summarise, compare):
    x, y = _checked(x, "x"), _checked(y, "y")
    if len(x) != len(y):
        raise ValueError(f"x has {len(x)} samples and y has {len(y)}: both must represent the same samples")
    return _clipped(compare(summarise(x, "x"), summarise(y, "y")))


def _clipped(value):
    return float(np.clip(value, -1, 1))


def _checked(values, name):
    values = np.asarray(values)
    if values.ndim != 2:
        raise ValueError(f"{name} has the shape {values.shape}, expected (samples, features)")
    values = values.astype(np.float64)
    if len(values) < FEWEST_SAMPLES:
        raise ValueError(f"{name} has {len(values)} samples: at least {FEWEST_SAMPLES} are needed")
    if not np.isfinite(values).all():
        sample, feature = np.argwhere(~np.isfinite(values))[0]
        raise ValueError(f"{name} is {values[sample, feature]} at sample {sample}, feature {feature}: leave it out")
    if not _varies(values).any():
        raise ValueError(f"{name} is constant: all its samples have the same features, so that nothing can be compared")
    return values


def _varies(values):
    """Which features differ between samples by more than rounding."""
    return np.ptp(values, axis=0) > 1e-12 * np.abs(values).max(axis=0)


def _basis(values, name, variance=0.99):
    """Orthonormal basis (samples, directions) of the directions that hold `variance` of the variance."""
    values = values - values.mean(axis=0)
    n_samples, n_features = values.shape
    wide = n_features > n_samples
    squares, vectors = np.linalg.eigh(values @ values.T if wide else values.T @ values)
    squares, vectors = squares[::-1].clip(0), vectors[:, ::-1]
    held = np.cumsum(squares) / squares.sum()
    n_kept = min(np.searchsorted(held, variance) + 1, np.count_nonzero(squares > 1e-10 * squares[0]))
    needed = SAMPLES_PER_DIRECTION * n_kept
    if n_samples < needed:
        raise ValueError(
            f"{name} needs {n_kept} directions for {variance:g} of its variance, and so at least {needed} samples; "
            f'there are {n_samples}: use more images, or samples="positions"'
        )
    kept = vectors[:, :n_kept]
    return kept if wide else values @ kept / np.sqrt(squares[:n_kept])


def _mean_correlation(one, other):
    return np.linalg.svd(one.T @ other, compute_uv=False).clip(0, 1).mean()


def _factor(values, name):
    """F with at most as many columns as rows, F Fᵀ proportional to the centred Gram matrix and ‖Fᵀ F‖ = 1."""
    values = values - values.mean(axis=0)
    if values.shape[1] > len(values):
        squares, vectors = np.linalg.eigh(values @ values.T)
        values = vectors * np.sqrt(squares.clip(0))
    return values / np.sqrt(np.linalg.norm(values.T @ values))


def _alignment(one, other):
    return np.linalg.norm(one.T @ other) ** 2


def _few_enough(values, name):
    if len(values) > MOST_SAMPLES:
        raise ValueError(
            f"{name} has {len(values)} samples, and this method compares every two of them: at most {MOST_SAMPLES}; "
            'use samples="images", a coarser grid or fewer images'
        )


def _ranks(values, name):
    """Ranks of the dissimilarities of every two samples, centred and of unit length."""
    _few_enough(values, name)
    flat = np.ptp(values, axis=1) <= 1e-12 * np.abs(values).max(axis=1)
    if flat.any():
        raise ValueError(
            f"the features of sample {flat.argmax()} of {name} are all equal, so that it correlates with no other: "
            "leave that sample out, or compare by another method"
        )
    dissimilarity = 1 - np.corrcoef(values)
    ranks = rankdata(dissimilarity[np.triu_indices(len(values), 1)].round(12))
    ranks -= ranks.mean()
    return _unit(ranks, len(ranks), name)


def _centred_kernel(values, name):
    """Centred Laplacian kernel of every two samples, of unit length."""
    _few_enough(values, name)
    n_samples, n_features = values.shape
    deviations = np.where(_varies(values), values.std(axis=0), np.inf)
    kernel = squareform(np.exp(-pdist((values - values.mean(axis=0)) / deviations, "cityblock") / n_features))
    means = kernel.sum(axis=0) / (n_samples - 2)
    means -= means.sum() / (2 * (n_samples - 1))
    return _unit((kernel - means[:, None] - means)[np.triu_indices(n_samples, 1)], 1, name)


def _unit(vector, scale, name):
    length = np.linalg.norm(vector)
    if length <= 1e-12 * scale:
        raise ValueError(f"the samples of {name} are all equally far from each other, so that nothing can be compared")
    return vector / length


class Similarity(NamedTuple):
    """An entry of `METHODS`. In what follows, values are what `samples` makes of one network, float64."""

    title: str  # as figures and tables write it
    summarise: Callable  # (values, name) to what is needed of one network; further arguments are named in `options`
    compare: Callable  # (summary, summary) to the similarity; of source and target where it is directed
    move: Callable  # (summary, steps) to the summary of samples moved on by so many, the last ones to the beginning
    samples: str = "positions"  # the form that `samples` brings representations into, unless told otherwise
    directed: bool = False  # whether source and target may not be exchanged; the diagonal is computed then
    options: tuple[str, ...] = ()  # arguments of `matrix` that `summarise` takes


METHODS = {
    "svcca": Similarity("SVCCA", _basis, _mean_correlation, _roll_rows, options=("variance",)),
    "cka": Similarity("CKA", _factor, _alignment, _roll_rows),
    "rsa": Similarity("RSA", _ranks, np.dot, _roll_pairs, samples="images"),
    "dds": Similarity("DDS", _centred_kernel, np.dot, _roll_pairs, samples="images"),
}
