"""Every score of every two networks, and how well each ranks the sources: what the chapters from 8 on share."""

import itertools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import xarray as xr

from support import attribution, methods, oracle, passes, probe, ranking, similarity, space, zoo
from support.bank import work
from support.encoder import Encoder

# maps averaged over their colours before the cosine, as in the authors' program
AVERAGED = tuple(name for name, method in methods.TABLE.items() if method.averaged)
REFERENCES_AT_ONCE = 4  # of relational attribution: its maps of all networks are held in memory together
SCORES = (*attribution.PUBLISHED, *attribution.INVARIANT, *similarity.METHODS)
MEASURES = {
    "P@1": lambda score, truth: ranking.precision_at_k(score, truth, k=1, mean=False),
    "P@3": lambda score, truth: ranking.precision_at_k(score, truth, k=3, mean=False),
    "P@5": lambda score, truth: ranking.precision_at_k(score, truth, k=5, mean=False),
    "Spearman": lambda score, truth: ranking.spearman(score, truth, mean=False),
}


def affinities(
    encoders: Sequence[Encoder],
    images: xr.DataArray,
    scores: Sequence[str] = SCORES,
    *,
    ridge: float = 1e-6,
    device: str = "auto",
    progress: bool = True,
) -> xr.DataArray:
    """Several scores of every two networks, from the same images.

    Parameters
    ----------
    encoders : sequence of Encoder
        Networks with distinct names and representations of one shape.
    images : xarray.DataArray
        (image, y, x, channel), as `probe.load` returns them.
    scores : sequence of str, default `SCORES`
        From `attribution.METHODS`, as mean cosine of the maps, or from `similarity.METHODS`. The maps of the published
        methods are averaged over their colours, those of all others are not.
    ridge, device, progress
        As for `attribution.attribute`; representations are computed on `device` too, in batches.

    Returns
    -------
    xarray.DataArray
        float64 (score, source, target), higher is nearer.

    Raises
    ------
    ValueError
        An unknown score, or as for `attribution.attribute`, `space.affinity` and `similarity.matrix`.

    Examples
    --------
    >>> encoders = [zoo.load(f"bank:{task}") for task in ("edge2d", "rgb2depth")]
    >>> images = probe.load("rooms", n_images=4, size=64)
    >>> found = affinities(encoders, images, ["saliency", "rsa"], progress=False)
    >>> dict(found.sizes)
    {'score': 2, 'source': 2, 'target': 2}
    """
    unknown = set(scores) - {*attribution.METHODS, *similarity.METHODS}
    if unknown or not len(scores):
        known = ", ".join((*attribution.METHODS, *similarity.METHODS))
        raise ValueError(f"unknown scores {', '.join(sorted(unknown)) or '(none)'}; known: {known}")
    options: dict[str, Any] = {"ridge": ridge, "channels": "keep", "device": device, "progress": progress}
    found: dict[str, xr.DataArray] = {}
    attributions = [name for name in scores if name in attribution.METHODS]
    together = [name for name in attributions if name != "relational"]
    if together:
        maps = attribution.attribute(encoders, images, together, **options)
        for name in together:
            choice = "mean" if methods.TABLE[name].averaged else "keep"
            found[name] = space.affinity(maps.sel(attribution=name), channels=choice)
    if "relational" in attributions:
        references, parts = attribution.reference_images(images.sizes["image"]), []
        for start in range(0, len(references), REFERENCES_AT_ONCE):
            some = references[start : start + REFERENCES_AT_ONCE]
            maps = attribution.attribute(encoders, images, "relational", references=some.tolist(), **options)
            parts.append(space.affinity(maps, channels="keep") * len(some))
        found["relational"] = sum(parts[1:], parts[0]) / len(references)
    if set(scores) - set(attributions):
        representations = passes.representations(encoders, images, device)
        found |= {name: similarity.matrix(representations, name) for name in scores if name in similarity.METHODS}
    return _stacked({name: found[name] for name in scores}, "score", "affinity")


def with_chance(
    encoders: Sequence[Encoder],
    images: xr.DataArray,
    scores: Sequence[str],
    *,
    grid: tuple[int, int] | None = None,
    variance: float = 0.99,
    device: str = "auto",
    progress: bool = True,
) -> xr.DataArray:
    """Several scores of every two networks, what chance makes of them, and what is left above it.

    Chance is what a score is when the two networks see different images: of attribution maps, the mean cosine over all
    pairs of images (`space.chance`); of representations, the mean similarity over about a dozen ways to move the images
    of one network on (`similarity.chance`).

    Parameters
    ----------
    encoders : sequence of Encoder
        Networks with distinct names.
    images : xarray.DataArray
        (image, y, x, channel), as `probe.load` returns them; at least two.
    scores : sequence of str
        From `attribution.METHODS`, without "relational", or from `similarity.METHODS`.
    grid, variance
        As for `similarity.matrix`.
    device, progress
        As for `attribution.attribute`; representations are computed on `device` too, in batches.

    Returns
    -------
    xarray.DataArray
        float64 (level, score, source, target), level "affinity", "chance" and "above", their difference. On the
        diagonal the affinity is 1, and chance that of a network with itself.

    Raises
    ------
    ValueError
        Fewer than two images, or as for `attribution.attribute`, `space.chance` and `similarity.chance`.

    Examples
    --------
    >>> encoders = [zoo.load(f"bank:{task}") for task in ("edge2d", "rgb2depth")]
    >>> images = probe.load("rooms", n_images=4, size=64)
    >>> with_chance(encoders, images, ["saliency"], progress=False).level.values.tolist()
    ['affinity', 'chance', 'above']
    """
    if images.sizes["image"] < 2:
        raise ValueError("chance is what different images give: it needs at least two")
    affinity, chance = {}, {}
    by_maps = [name for name in scores if name in attribution.METHODS]
    if by_maps:
        options: dict[str, Any] = {"channels": "keep", "device": device, "progress": progress}
        maps = attribution.attribute(encoders, images, by_maps, **options)
        for name in by_maps:
            choice = "mean" if methods.TABLE[name].averaged else "keep"
            affinity[name] = space.affinity(maps.sel(attribution=name), choice)
            chance[name] = space.chance(maps.sel(attribution=name), choice)
    if len(by_maps) < len(scores):
        units = passes.representations(encoders, images, device)
        for name in (name for name in scores if name not in by_maps):
            affinity[name] = similarity.matrix(units, name, grid=grid, variance=variance)
            chance[name] = similarity.chance(units, name, grid=grid, variance=variance)
    levels = [_stacked({name: level[name] for name in scores}, "score", "affinity") for level in (affinity, chance)]
    return _stacked(
        dict(zip(("affinity", "chance", "above"), (*levels, levels[0] - levels[1]), strict=True)), "level", "affinity"
    )


def of_banks(
    banks: Sequence[int],
    n_images: int,
    n_photographs: int,
    scores: Sequence[str] = SCORES,
    *,
    device: str = "auto",
    workers: int = 1,
) -> xr.DataArray:
    """Scores of every two networks of several task banks, with rooms and with photographs as probe.

    Shows a progress bar on standard error.

    Parameters
    ----------
    banks : sequence of int
        Their seeds, which are the seeds of the probe images as well.
    n_images, n_photographs : int
        Number of rooms, and of tiles of the collection "photos", 64 pixels a side.
    scores, device
        As for `affinities`.
    workers : int, default 1
        Number of processes, each of which computes with one thread and takes up to 1.5 GB for 300 images; 1 stays in
        this one.

    Returns
    -------
    xarray.DataArray
        float64 (bank, probe, score, source, target), probe "rooms" and "photographs".

    Raises
    ------
    ValueError
        As for `affinities` and `probe.load`.
    FileNotFoundError
        As for `zoo.load_all`.
    RuntimeError
        As for `work.run`.

    Examples
    --------
    >>> of_banks([0], 2, 2, ["saliency"]).dims
    ('bank', 'probe', 'score', 'source', 'target')
    """
    probes = {"rooms": ("rooms", n_images), "photographs": ("photos", n_photographs)}
    relational = tuple(name for name in scores if name == "relational")  # by far the longest: a job of its own
    groups = [group for group in (relational, tuple(name for name in scores if name not in relational)) if group]
    jobs = list(itertools.product(probes, groups, banks))
    made = work.run(_of_bank, [(b, *probes[p], g, device) for p, g, b in jobs], workers, "banks × probes × scores")
    parts = dict(zip(jobs, made, strict=True))

    def whole(bank, kind):
        return xr.concat([parts[kind, group, bank] for group in groups], "score").sel(score=list(scores))

    found = {bank: _stacked({kind: whole(bank, kind) for kind in probes}, "probe", "affinity") for bank in banks}
    return _stacked(found, "bank", "affinity").assign_attrs(n_images=n_images, n_photographs=n_photographs)


def _of_bank(bank, source, count, scores, device):
    images = probe.load(source, n_images=count, size=64, seed=bank)
    return affinities(zoo.load_all("bank", seed=bank), images, scores, device=device, progress=False)


def truths(banks: Sequence[int]) -> xr.DataArray:
    """Oracles of several task banks: `oracle.load` of each, stacked to (bank, source, target).

    Examples
    --------
    >>> truths([0, 1]).dims
    ('bank', 'source', 'target')
    """
    return _stacked({bank: oracle.load("bank", seed=bank) for bank in banks}, "bank", "transferability")


def yardsticks(truths: xr.DataArray) -> xr.DataArray:
    """Rankings of the sources that need no score of two networks, and that a score is held against.

    Parameters
    ----------
    truths : xarray.DataArray
        (bank, source, target), as `truths` returns them.

    Returns
    -------
    xarray.DataArray
        float64 (score, bank, source, target), higher is better: "popularity" and "symmetrised", as in `ranking`, and
        where there are several banks "another bank", the oracle of the next one, of the first one for the last.

    Raises
    ------
    ValueError
        As for `ranking.popularity` and `ranking.symmetrised`.

    Examples
    --------
    >>> yardsticks(truths([0, 1])).score.values.tolist()
    ['popularity', 'symmetrised', 'another bank']
    """
    found = {
        "popularity": [ranking.popularity(truth).reindex_like(truth) for truth in truths],
        "symmetrised": [ranking.symmetrised(truth).reindex_like(truth) for truth in truths],
    }
    if truths.sizes["bank"] > 1:
        found["another bank"] = [*truths[1:], truths[0]]
    banks = truths.bank.values.tolist()
    # `_stacked` drops the coordinate `bank` of each oracle: by it xarray would put every oracle back to its own bank
    stacked = {
        name: _stacked(dict(zip(banks, several, strict=True)), "bank", "yardstick") for name, several in found.items()
    }
    return _stacked(stacked, "score", "yardstick")


def quality(affinities: xr.DataArray, truth: xr.DataArray, measures: Mapping[str, Callable] = MEASURES) -> xr.DataArray:
    """How well scores rank the sources of each target.

    Parameters
    ----------
    affinities : xarray.DataArray
        (…, source, target), higher is better.
    truth : xarray.DataArray
        (source, target), higher is better, as `oracle.load` returns it; or (bank, source, target) where the affinities
        are of several banks.
    measures : dict of str to callable
        (affinity, truth) → (target); `MEASURES` by default.

    Returns
    -------
    xarray.DataArray
        float64 (…, measure, target).

    Raises
    ------
    ValueError
        As for `ranking.precision_at_k` and `ranking.spearman`.

    Examples
    --------
    >>> truth = oracle.load("bank", seed=0)
    >>> float(quality(truth, truth).sel(measure="P@3").mean())
    1.0
    """
    outer = [dim for dim in affinities.dims if dim not in ("source", "target")]
    if outer:
        dim = outer[0]
        parts = {}
        for name in affinities[dim].values.tolist():
            of_it = truth.sel(bank=name) if dim == "bank" and "bank" in truth.dims else truth
            parts[name] = quality(affinities.sel({dim: name}), of_it, measures)
        return _stacked(parts, dim, "quality")
    return _stacked({name: measure(affinities, truth) for name, measure in measures.items()}, "measure", "quality")


class Difference(NamedTuple):
    """A mean difference over targets and banks, the bounds of its interval, and the mean of the worst bank."""

    mean: float
    low: float
    high: float
    worst: float


def difference(first: xr.DataArray, second: xr.DataArray, clusters: Mapping[str, Hashable] | None = None) -> Difference:
    """How much better one score is than another, over targets and banks, and in the worst bank.

    Parameters
    ----------
    first, second : xarray.DataArray
        (bank, target), one measure of one score each, from `quality`; the same banks and targets.
    clusters : dict, optional
        As for `ranking.bootstrap`.

    Returns
    -------
    Difference
        Of first − second: `ranking.paired_bootstrap`, 95 per cent, and the smallest mean of any bank.

    Raises
    ------
    TypeError, ValueError, KeyError
        As for `ranking.paired_bootstrap`.

    Examples
    --------
    >>> second = xr.DataArray([[0.2, 0.4], [0.4, 0.6]], {"bank": [0, 1], "target": ["a", "b"]}, ("bank", "target"))
    >>> first = second + xr.DataArray([0.5, -0.25], {"bank": [0, 1]}, ("bank",))
    >>> found = difference(first, second)
    >>> round(found.mean, 3), round(found.worst, 3)
    (0.125, -0.25)
    """
    interval = ranking.paired_bootstrap(first, second, clusters=clusters)
    return Difference(*interval, float((first - second).mean("target").min()))


def first_hypothesis(gain: Difference, rest: Sequence[Difference], margin: float = 0.05) -> str:
    """What the rule that chapter 8 declares makes of hypothesis 1, for one form and one probe.

    Parameters
    ----------
    gain : Difference
        P@5 of the whitened energy minus that of gradient × input.
    rest : sequence of Difference
        P@5 of the whitened energy minus that of SVCCA, and minus that of RSA.
    margin : float, default 0.05
        By how much less still counts as not worse.

    Returns
    -------
    str
        "confirmed" where the gain is positive in every bank and its interval above 0, and all intervals of the rest
        are above −margin with no bank below it. "refuted" where the interval of the gain is below 0, or one of the
        rest below −margin. Otherwise "undecided".

    Examples
    --------
    >>> first_hypothesis(Difference(0.2, 0.1, 0.3, 0.1), [Difference(0.0, -0.04, 0.04, -0.01)])
    'confirmed'
    >>> first_hypothesis(Difference(0.2, 0.1, 0.3, 0.1), [Difference(0.0, -0.06, 0.06, -0.01)])
    'undecided'
    """
    not_worse = all(one.low > -margin and one.worst >= -margin for one in rest)
    if gain.low > 0 and gain.worst > 0 and not_worse:
        return "confirmed"
    refuted = gain.high < 0 or any(one.high < -margin for one in rest)
    return "refuted" if refuted else "undecided"


def _stacked(arrays, dim, name):
    parts = [array.drop_vars([c for c in array.coords if c not in array.dims]) for array in arrays.values()]
    result = xr.concat(parts, dim, combine_attrs="drop").assign_coords({dim: list(arrays)})
    return result.rename(name).assign_attrs(units="1")
