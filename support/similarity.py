"""How alike the representations of two networks are: SVCCA, linear CKA, RSA and duality diagram similarity."""

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from scipy.spatial.distance import pdist, squareform
from scipy.stats import rankdata

from support import labels, readout

SAMPLES_PER_DIRECTION = 5  # with fewer, canonical correlations are high for any two representations
FEWEST_SAMPLES = 4
SHIFTS = 12  # numbers of places by which `chance` moves the images on
MOST_SAMPLES = 4096  # of RSA and duality diagrams, which hold a value for every two samples
HIGH_CHANCE = 0.5  # CKA of shuffled samples from which on a warning says so


def svcca(x: Any, y: Any, variance: float = 0.99) -> float:
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
    TypeError, ValueError
        No real numbers, not two dimensions, different or fewer than 4 samples, values that are not finite or beyond
        ±1e304, the same features for all samples, `variance` out of range, or fewer than 5 samples per kept direction
        (the message says how many are needed).

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(size=(60, 3))
    >>> round(svcca(x, 1e-200 * x[:, ::-1] + 5e-200), 6)
    1.0
    """
    variance = labels.share(variance, "variance", closed=True)
    return _pair(x, y, partial(_basis, variance=variance), _mean_correlation)


def cka(x: Any, y: Any) -> float:
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
    TypeError, ValueError
        As for `svcca`, but for `variance` and the number of samples, of which 4 are enough.

    Warns
    -----
    UserWarning
        So few samples that CKA is high for any two representations: with the samples of one shuffled it would be above
        0.5 on average. The mean over all orders is √(d_x d_y) / (samples − 1), where d = (tr K)² / ‖K‖² is the number
        of directions that a centred Gram matrix K spreads over; the warning looks at one representation at a time.

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(size=(60, 3))
    >>> round(cka(x, 1e200 * x), 6)
    1.0
    """
    return _pair(x, y, _factor, _alignment)


def rsa(x: Any, y: Any) -> float:
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
    TypeError, ValueError
        As for `cka`, more than 4096 samples, a sample whose features are all equal (it has no correlation), or
        dissimilarities that are all equal.

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(size=(8, 3))
    >>> round(rsa(x, 1 + 2 * x), 6)
    1.0
    """
    return _pair(x, y, _ranks, _product)


def dds(x: Any, y: Any) -> float:
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
    TypeError, ValueError
        As for `cka`, more than 4096 samples, or samples that are all equally far from each other.

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(size=(8, 3))
    >>> round(dds(x, x * [1, 1e-100, 1e100]), 6)
    1.0
    """
    return _pair(x, y, _centred_kernel, _product)


def predictivity(
    x: Any, y: Any, *, n_random: int = readout.RANDOM, ridge: float = readout.RIDGE, seed: int = 0
) -> float:
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
    TypeError
        No array of real numbers.
    ValueError
        Other shapes, different or fewer than 5 images, values that are not finite, a network all of whose channels are
        constant, or a setting out of range.

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(size=(20, 4, 8, 8))
    >>> round(predictivity(x, -3 * x[:, :2], n_random=0, ridge=1e-6), 3)
    1.0
    """
    labels.count(n_random, "n_random", 0)
    if not 0 < float(ridge) < np.inf:
        raise ValueError(f"ridge is {ridge}, expected a positive number")
    pair = together({"x": x, "y": y}, "maps", None)
    settings = n_random, ridge, labels.count(seed, "seed", 0)
    return readout.explained(*(readout.Summary(values, name, *settings) for name, values in pair.items()))


def samples(representations: Any, kind: str, grid: tuple[int, int] | None = None) -> np.ndarray:
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
    TypeError, ValueError
        No real numbers, other kinds or dimensions, an empty array, values that are not finite or beyond ±1e304, or a
        grid that is not two positive whole numbers.

    Examples
    --------
    >>> samples(np.zeros((10, 3, 8, 8)), "positions", grid=(4, 4)).shape
    (160, 3)
    """
    return _samples(representations, kind, _grid(grid), "representations")


def _samples(representations, kind, grid, name):
    labels.choice(kind, "samples", ("images", "positions", "maps"))
    values = labels.real(representations, name)
    _shape(values, name)
    labels.finite(values, name, dict.fromkeys(("image", "channel", "y", "x")[: values.ndim]))
    if values.ndim == 2:
        return values[:, :, None, None] if kind == "maps" else values
    if grid is not None and grid != values.shape[2:]:
        down, across = (_area_means(old, new) for old, new in zip(values.shape[2:], grid, strict=True))
        values = down @ values @ across.T
    if kind == "maps":
        return values
    if kind == "images":
        return values.reshape(len(values), -1)
    return values.transpose(0, 2, 3, 1).reshape(-1, values.shape[1])


def _shape(values, name):
    """Shape of the representations of one network."""
    shape = np.shape(values if hasattr(values, "shape") else labels.real(values, name))
    if len(shape) not in (2, 4) or 0 in shape:
        raise ValueError(f"{name} has the shape {shape}, expected (image, channel, y, x) or (image, features)")
    return shape


def _grid(grid):
    """Numbers of positions (y, x), or None."""
    if grid is None:
        return None
    if isinstance(grid, str) or not hasattr(grid, "__len__") or len(grid) != 2:
        raise ValueError(f"grid is {grid!r}, expected two positive numbers of positions (y, x)")
    return tuple(labels.count(number, "grid") for number in grid)


def matrix(
    reps: Mapping[str, Any],
    method: str = "svcca",
    samples: str | None = None,
    grid: tuple[int, int] | None = None,
    variance: float = 0.99,
) -> xr.DataArray:
    """Similarity of the representations of every two networks.

    What a method of `METHODS` needs of one network (basis, factor, ranks of dissimilarities, kernel) is computed once.

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
        float64, (source, target), symmetric, 1 on the diagonal (neither where the method is directed); attrs:
        ``method``, ``samples``, ``n_samples``.

    Raises
    ------
    TypeError, ValueError
        `reps` is no dict or an empty one, unknown method, different numbers of images, networks with and without
        positions, or as for `samples` and for the function of that method; the network is named.

    Examples
    --------
    >>> a, b = np.random.default_rng(0).normal(size=(2, 10, 3, 4, 4))
    >>> matrix({"a": a, "b": 2 * a + b}, "cka").attrs["n_samples"]
    160
    """
    summaries, attrs = _summaries(reps, method, samples, grid, variance)
    entry, known = METHODS[method], list(summaries.values())
    result = np.eye(len(known))
    if entry.directed:
        for i, j in np.ndindex(result.shape):
            result[i, j] = entry.compare(known[i], known[j])
    else:
        for i, j in combinations(range(len(known)), 2):
            result[i, j] = result[j, i] = entry.compare(known[i], known[j])
    return _labelled(result, reps, attrs | {"long_name": f"{entry.title} similarity of representations"})


def chance(
    reps: Mapping[str, Any],
    method: str = "svcca",
    samples: str | None = None,
    grid: tuple[int, int] | None = None,
    variance: float = 0.99,
) -> xr.DataArray:
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
        float64, (source, target), symmetric unless the method is directed; on the diagonal, of a network with itself.
        The attrs of `matrix`.

    Raises
    ------
    TypeError, ValueError
        As for `matrix`, or fewer than two images.

    Examples
    --------
    >>> a, b = np.random.default_rng(0).normal(size=(2, 10, 3, 4, 4))
    >>> float(chance({"a": a, "b": a}, "rsa").sel(source="a", target="b")) < 0.1
    True
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
                    result[i, j] += entry.compare(one, moved) / len(places)
    if not entry.directed:
        result += np.triu(result, 1).T
    return _labelled(result, reps, attrs | {"long_name": f"{entry.title} similarity for different images"})


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
    entry = METHODS[labels.choice(method, "method", METHODS)]
    kind = entry.samples if samples is None else samples
    forms = together(reps, kind, grid)
    options = {"variance": labels.share(variance, "variance", closed=True)}
    options = {name: options[name] for name in entry.options}
    summaries = {}
    for name, form in forms.items():
        _checked(form.reshape(len(form), -1), name)
        summaries[name] = entry.summarise(form, name, **options)
    return summaries, {"units": "1", "method": method, "samples": kind, "n_samples": len(form)}


def together(reps: Mapping[str, Any], kind: str = "maps", grid: tuple[int, int] | None = None) -> dict[str, np.ndarray]:
    """Bring the representations of several networks into one form and on one grid.

    Parameters
    ----------
    reps : dict of str to array
        As for `matrix`.
    kind, grid
        As for `samples`; by default the smallest number of rows and of columns among the networks, but for "images".

    Returns
    -------
    dict of str to numpy.ndarray
        As `samples` gives them.

    Raises
    ------
    TypeError, ValueError
        As for `matrix`.

    Examples
    --------
    >>> found = together({"fine": np.zeros((5, 3, 8, 8)), "coarse": np.ones((5, 2, 4, 4))})
    >>> found["fine"].shape, found["coarse"].shape
    ((5, 3, 4, 4), (5, 2, 4, 4))
    """
    if not isinstance(reps, Mapping):
        raise TypeError(f"reps is a {type(reps).__name__}: pass a dict of the networks' names and representations")
    if not reps:
        raise ValueError("there is no network to compare")
    shapes = {name: _shape(values, name) for name, values in reps.items()}
    first = next(iter(shapes))
    for name, shape in shapes.items():
        if shape[0] != shapes[first][0]:
            raise ValueError(f"{first} and {name} have different numbers of images: {shapes[first][0]} and {shape[0]}")
    sizes = {name: shape[2:] for name, shape in shapes.items()}
    grid = _grid(grid)
    if kind != "images":
        flat = [name for name, size in sizes.items() if not size]
        if flat and len(flat) < len(sizes):
            raise ValueError(f'the representations of {", ".join(flat)} have no positions: use samples="images"')
        if not flat and grid is None:
            grid = tuple(int(side) for side in np.min(list(sizes.values()), axis=0))
    return {name: _samples(values, kind, grid, name) for name, values in reps.items()}


def _labelled(values, reps, attrs):
    labels.finite(values, "similarity", {"source": list(reps), "target": list(reps)})
    coords = {"source": list(reps), "target": list(reps)}
    return xr.DataArray(values, coords, ("source", "target"), name="similarity", attrs=attrs)


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
    return compare(summarise(x, "x"), summarise(y, "y"))


def _checked(values, name):
    """Real numbers as float64 (samples, features), enough of them and not all the same."""
    values = labels.real(values, name)
    if values.ndim != 2:
        raise ValueError(f"{name} has the shape {values.shape}, expected (samples, features)")
    if len(values) < FEWEST_SAMPLES:
        raise ValueError(f"{name} has {len(values)} samples: at least {FEWEST_SAMPLES} are needed")
    labels.finite(values, name, {"sample": None, "feature": None})
    if not labels.varies(values, axis=0).any():
        raise ValueError(f"{name} is constant: all its samples have the same features, so that nothing can be compared")
    return values


def _scaled(values, axis=None):
    """Values times powers of two, one for all or one for each row or column, so that their squares have a float64."""
    largest = np.abs(values).max(axis=axis, keepdims=True)
    return np.ldexp(values, -np.frexp(largest)[1])


def _centred(values):
    """Values without their means over the samples, zero where a feature differs by rounding only."""
    varies = labels.varies(values, axis=0)
    values = _scaled(values)
    return _scaled(np.where(varies, values - values.mean(axis=0), 0))


def _basis(values, name, variance=0.99):
    """Orthonormal basis (samples, directions) of the directions that hold `variance` of the variance."""
    values = _centred(values)
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
    return float(np.linalg.svd(one.T @ other, compute_uv=False).clip(0, 1).mean())


def _factor(values, name):
    """F with at most as many columns as rows, F Fᵀ proportional to the centred Gram matrix and ‖Fᵀ F‖ = 1."""
    n_samples, n_features = values.shape
    values = _centred(values)
    if n_features > n_samples:
        squares, vectors = np.linalg.eigh(values @ values.T)
        values = vectors * np.sqrt(squares.clip(0))
    length = np.linalg.norm(values.T @ values)
    by_chance = np.linalg.norm(values) ** 4 / length**2 / (n_samples - 1)
    if by_chance > HIGH_CHANCE:
        warnings.warn(
            f"{name} has {n_samples} samples of {n_features} features: CKA with representations like it is "
            f'{by_chance:.2f} on average for shuffled samples; use more images, or samples="positions"',
            stacklevel=4,
        )
    return values / np.sqrt(length)


def _alignment(one, other):
    return min(float(np.linalg.norm(one.T @ other) ** 2), 1.0)


def _product(one, other):
    return float(np.clip(one @ other, -1, 1))


def _few_enough(values, name):
    if len(values) > MOST_SAMPLES:
        raise ValueError(
            f"{name} has {len(values)} samples, and this method compares every two of them: at most {MOST_SAMPLES}; "
            'use samples="images", a coarser grid or fewer images'
        )


def _ranks(values, name):
    """Ranks of the dissimilarities of every two samples, centred and of unit length."""
    _few_enough(values, name)
    varies = labels.varies(values, axis=1)
    if not varies.all():
        raise ValueError(
            f"the features of sample {varies.argmin()} of {name} are all equal, so that it correlates with no other: "
            "leave that sample out, or compare by another method"
        )
    dissimilarity = 1 - np.corrcoef(_scaled(values, axis=1))
    ranks = rankdata(dissimilarity[np.triu_indices(len(values), 1)].round(12))
    ranks -= ranks.mean()
    return _unit(ranks, len(ranks), name)


def _centred_kernel(values, name):
    """Centred Laplacian kernel of every two samples, of unit length."""
    _few_enough(values, name)
    n_samples, n_features = values.shape
    varies = labels.varies(values, axis=0)
    values = _scaled(values, axis=0)
    deviations = np.where(varies, values.std(axis=0), np.inf)
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
    "rsa": Similarity("RSA", _ranks, _product, _roll_pairs, samples="images"),
    "dds": Similarity("DDS", _centred_kernel, _product, _roll_pairs, samples="images"),
    "predictivity": Similarity(
        "predictivity", readout.Summary, readout.explained, readout.Summary.moved, samples="maps", directed=True
    ),
    "predictivity_linear": Similarity(
        "linear predictivity",
        partial(readout.Summary, n_random=0),
        readout.explained,
        readout.Summary.moved,
        samples="maps",
        directed=True,
    ),
}
