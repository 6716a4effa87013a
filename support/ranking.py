"""How good a ranking of sources is: precision, recall, rank correlation, the yardsticks and their intervals."""

from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from scipy import stats
from scipy.cluster import hierarchy

from support import labels, oracle


class Interval(NamedTuple):
    """A mean and the bounds of its confidence interval."""

    mean: float
    low: float
    high: float


def precision_at_k(
    affinity: xr.DataArray, truth: xr.DataArray, k: int = 3, n_relevant: int = 5, mean: bool = True
) -> float | xr.DataArray:
    """Share of relevant sources among the k best that a score proposes: P@K of Song et al. (2019), Section 4.2.

    Every target of `truth` is a query. Candidates are the sources that both arrays have, without the target's own
    model; relevant are the `n_relevant` candidates that `truth` puts first. Tied candidates stand in alphabetical
    order, so that nothing depends on the order in which sources are listed.

    Parameters
    ----------
    affinity : xarray.DataArray
        (source, target), higher is better: the score that is judged. It may have other sources and targets besides.
    truth : xarray.DataArray
        (source, target), higher is better: what transfer really gives. It may have other sources besides.
    k : int, default 3
        How many sources are proposed, from 1 to the number of candidates.
    n_relevant : int, default 5
        How many sources are relevant, from 1 to the number of candidates.
    mean : bool, default True
        Average over the targets.

    Returns
    -------
    float or xarray.DataArray
        In [0, 1]; with ``mean=False`` float64 (target).

    Raises
    ------
    TypeError, ValueError
        As for `labels.matrix`, but for the scores of own models, a target that `affinity` lacks, no source in common,
        or a k or n_relevant that is no whole number in its range.

    Examples
    --------
    >>> truth = oracle.load("taskonomy")
    >>> precision_at_k(truth, truth, k=3), precision_at_k(-truth, truth, k=3)
    (1.0, 0.0)
    """
    return _averaged(_hits(affinity, truth, k, n_relevant) / k, f"precision at {k}", mean)


def recall_at_k(
    affinity: xr.DataArray, truth: xr.DataArray, k: int = 3, n_relevant: int = 5, mean: bool = True
) -> float | xr.DataArray:
    """Share of the relevant sources that are among the k best that a score proposes: R@K, as `precision_at_k`.

    Parameters
    ----------
    affinity, truth, k, n_relevant, mean
        As for `precision_at_k`.

    Returns
    -------
    float or xarray.DataArray
        In [0, 1]; with ``mean=False`` float64 (target). It is k / n_relevant times the precision.

    Raises
    ------
    TypeError, ValueError
        As for `precision_at_k`.

    Examples
    --------
    >>> truth = oracle.load("taskonomy")
    >>> round(recall_at_k(truth, truth, k=3), 6)
    0.6
    """
    return _averaged(_hits(affinity, truth, k, n_relevant) / n_relevant, f"recall at {k}", mean)


def spearman(affinity: xr.DataArray, truth: xr.DataArray, mean: bool = True) -> float | xr.DataArray:
    """Spearman rank correlation of a score with the truth, over the candidates of each target.

    Parameters
    ----------
    affinity, truth, mean
        As for `precision_at_k`.

    Returns
    -------
    float or xarray.DataArray
        In [−1, 1]; with ``mean=False`` float64 (target).

    Raises
    ------
    TypeError, ValueError
        As for `precision_at_k`, or a target whose candidates all have the same score, or of which there is only one.

    Examples
    --------
    >>> truth = oracle.load("taskonomy")
    >>> round(spearman(-truth, truth), 6)
    -1.0
    """
    scores, wanted, usable = _candidates(affinity, truth)
    values = []
    for column, target in enumerate(wanted.target.values):
        one, other = (matrix.values[usable[:, column], column] for matrix in (scores, wanted))
        if (one == one[0]).all() or (other == other[0]).all():
            raise ValueError(
                f"the candidates for {target} have all the same score, so that none is first: leave it out"
            )
        values.append(stats.spearmanr(one, other).statistic)
    return _averaged(xr.DataArray(values, wanted.target.coords), "Spearman rank correlation", mean)


def chance(n_sources: int, n_relevant: int) -> float:
    """Expected precision of a ranking at random.

    The number of relevant sources among k drawn without replacement is hypergeometric with the mean
    k · n_relevant / n_sources, so that the expected P@K is n_relevant / n_sources, whatever k is. The expected R@K is
    k / n_sources.

    Parameters
    ----------
    n_sources : int
        Number of candidates of a target, its own model not counted: 19 in the published Taskonomy evaluation.
    n_relevant : int
        How many of them are relevant.

    Returns
    -------
    float
        In (0, 1].

    Raises
    ------
    TypeError, ValueError
        `n_relevant` is not a whole number in 1 … `n_sources`.

    Examples
    --------
    >>> round(chance(19, 5), 3)
    0.263
    """
    n_sources = labels.count(n_sources, "n_sources")
    return labels.count(n_relevant, "n_relevant", 1, n_sources) / n_sources


def popularity(truth: xr.DataArray) -> xr.DataArray:
    """Score of a source for a target that knows nothing about the target: how well the source serves the others.

    The mean over the other targets of 1 / (1 + priority), the reciprocal of the source's rank in a list that the
    target's own model heads. Top-heavy, as P@K is. It needs the measured transfers to all other targets; a ranking that
    does not beat it is no better guide to this one. On the published Taskonomy rankings its P@1, P@3 and P@5 are 0.61,
    0.54 and 0.54. (They are 0.56, 0.48 and 0.51 if a target's own model stays among the candidates, where it can only
    take up a place.)

    Parameters
    ----------
    truth : xarray.DataArray
        (source, target), higher is better; only the own model of a target may be NaN, and it is not counted.

    Returns
    -------
    xarray.DataArray
        float64 (source, target), in (0, 0.5], NaN where the source is the target itself; higher is better. The column
        of a target does not depend on that column of `truth`.

    Raises
    ------
    TypeError, ValueError
        As for `precision_at_k`, or a source that no other target ranks.

    Examples
    --------
    >>> truth = oracle.load("taskonomy")
    >>> round(precision_at_k(popularity(truth), truth, k=1), 2)
    0.61
    """
    truth, _, own_left_out = _candidates(truth, truth, "truth")
    gains = 1 / (1 + oracle.priority(truth.where(own_left_out)).values)
    sums, counts = np.nansum(gains, axis=1, keepdims=True), np.isfinite(gains).sum(axis=1, keepdims=True)
    others = counts - own_left_out
    for source, target in np.argwhere((others == 0) & own_left_out)[:1]:
        raise ValueError(
            f"no target but {truth.target.values[target]} ranks {truth.source.values[source]}: "
            "popularity needs at least three targets"
        )
    with np.errstate(invalid="ignore", divide="ignore"):
        return truth.copy(data=(sums - gains) / others).rename("popularity").assign_attrs(long_name="popularity")


def symmetrised(truth: xr.DataArray) -> xr.DataArray:
    """Mean of the scores of both directions of transfer: what a symmetric score can be hoped to reach.

    Attribution distance and the similarities of representations are symmetric, transfer is not. Ranking by this matrix
    shows how much of the loss of a symmetric score is owed to its symmetry. It is a reference and no strict bound:
    another symmetric matrix may do better for one k.

    Parameters
    ----------
    truth : xarray.DataArray
        (source, target), higher is better, the scores of all targets on one scale.

    Returns
    -------
    xarray.DataArray
        float64 (source, target), sources in alphabetical order: mean of the two directions, the one there is where a
        task is not both source and target, and NaN where the source is the target itself.

    Raises
    ------
    TypeError, ValueError
        As for `precision_at_k`.

    Examples
    --------
    >>> names = {"source": ["a", "b", "c"], "target": ["a", "b"]}
    >>> truth = xr.DataArray([[np.nan, 1.0], [3.0, np.nan], [5.0, 6.0]], names, ("source", "target"))
    >>> symmetrised(truth).values.tolist()
    [[nan, 2.0], [2.0, nan], [5.0, 6.0]]
    """
    truth, _, own_left_out = _candidates(truth, truth, "truth")
    truth = truth.where(own_left_out)
    back = truth.rename(source="target", target="source").reindex_like(truth).transpose("source", "target")
    mean = np.where(np.isfinite(back), truth / 2 + back / 2, truth)
    return truth.copy(data=mean).rename("symmetrised").assign_attrs(long_name="mean of both directions of transfer")


def correlation_priority_curve(
    correlation: xr.DataArray, truth: xr.DataArray, mean: bool = True, n: int | None = None
) -> xr.DataArray:
    """How correlated representations are, against the priority of the source for the target.

    The correlation-priority curve of Song et al. (2019), Section 4.2: every target orders its sources, and the
    correlations of the sources that stand in the same place are averaged over the targets. A curve that falls says that
    more correlated sources have a higher priority.

    Parameters
    ----------
    correlation : xarray.DataArray
        (source, target): similarity of representations, such as `similarity.matrix` gives.
    truth : xarray.DataArray
        (source, target), higher is better: the order of the sources, measured transfers or the affinity of attribution
        maps. Ties stand in alphabetical order.
    mean : bool, default True
        Average over the targets.
    n : int, optional
        What the sum over the targets is divided by in the mean: N in the paper's formula. By default it is the number
        of targets, which makes the sum a mean. With N the number of networks, as the paper's text has it elsewhere,
        the whole curve is lower by a constant factor, 18/20 with Taskonomy's 18 targets and 20 networks.

    Returns
    -------
    xarray.DataArray
        float64 (priority), or (priority, target) with ``mean=False``; priority is 1, 2, … up to the smallest number of
        candidates of a target.

    Raises
    ------
    TypeError, ValueError
        As for `precision_at_k`, or `n` is not positive.

    Examples
    --------
    >>> truth = oracle.load("taskonomy")
    >>> correlation_priority_curve(truth, truth).values[:3].tolist()
    [18.0, 17.0, 16.0]
    >>> float(correlation_priority_curve(truth, truth, n=20)[0])
    16.2
    """
    if n is not None and n < 1:
        raise ValueError(f"n is {n}, expected a positive number")
    values, order, usable = _candidates(correlation, truth, "correlation")
    places = _order(order, usable)[: usable.sum(axis=0).min()]
    curve = xr.DataArray(
        np.take_along_axis(values.values, places, axis=0),
        {"priority": np.arange(1, len(places) + 1), "target": order.target.values},
        ("priority", "target"),
        name="correlation",
        attrs={"long_name": "correlation of representations", "units": "1"},
    )
    return curve.sum("target", keep_attrs=True) / (n or curve.sizes["target"]) if mean else curve


def regret(affinity: xr.DataArray, losses: xr.DataArray, k: int = 1, mean: bool = True) -> float | xr.DataArray:
    """How much worse than the best source the chosen one is, as a share of what a choice at random costs.

    With L(s) the mean test loss after transfer from a source s, and the choice s* the best of the k sources that the
    score proposes: (L(s*) − min L) / (mean L − min L), over the candidates of a target. 0 is the best source, 1 what a
    choice at random gives on average.

    Parameters
    ----------
    affinity : xarray.DataArray
        (source, target), higher is better: the score that is judged.
    losses : xarray.DataArray
        (source, target) or (source, target, image), lower is better, as in `oracle.losses`.
    k : int, default 1
        How many of the proposed sources are tried.
    mean : bool, default True
        Average over the targets.

    Returns
    -------
    float or xarray.DataArray
        Not negative; with ``mean=False`` float64 (target).

    Raises
    ------
    TypeError, ValueError
        As for `precision_at_k`, or a target for which all sources have the same loss.

    Examples
    --------
    >>> names = {"source": ["a", "b", "c"], "target": ["t"]}
    >>> losses = xr.DataArray([[1.0], [2.0], [6.0]], names, ("source", "target"))
    >>> regret(-losses, losses), regret(losses, losses)
    (0.0, 2.5)
    """
    if "image" in getattr(losses, "dims", ()):
        per_image = labels.labelled(losses, "losses", ("source", "target", "image"), others=("image",))
        losses = per_image.mean("image", skipna=False)
    losses = labels.labelled(losses, "losses", ("source", "target"))
    scores, gains, usable = _candidates(affinity, -losses, truth_is="minus the losses")
    k = labels.count(k, "k", 1, int(usable.sum(axis=0).min()))
    cost = np.where(usable, -gains.values, np.nan)
    chosen = np.take_along_axis(cost, _order(scores, usable)[:k], axis=0).min(axis=0)
    best, typical = np.nanmin(cost, axis=0), np.nanmean(cost, axis=0)
    for place in np.flatnonzero(np.nanmax(cost, axis=0) == best)[:1]:
        raise ValueError(f"all sources have the same loss for {gains.target.values[place]}: no choice can be wrong")
    return _averaged(xr.DataArray((chosen - best) / (typical - best), gains.target.coords), "regret", mean)


def assignment_regret(affinity: xr.DataArray, truth: xr.DataArray, budget: int) -> float:
    """What a budgeted choice of sources loses when it is made with a predicted score instead of the measured one.

    The integer program of Zamir et al. (2018), Section 3.4, needs scores of all targets on one scale, which a predicted
    affinity does not have. It is given 1 / (1 + priority) in its place, as in `popularity`. Its assignment is then
    worth what the measured scores say: (best − achieved) / (best − random), with the total of the best assignment, and
    the expected total of `budget` tasks at random with every other target served by a source at random.

    Parameters
    ----------
    affinity : xarray.DataArray
        (source, target), higher is better: the prediction.
    truth : xarray.DataArray
        (source, target), higher is better; every target is one of the sources.
    budget : int
        Number of tasks trained from full supervision, at least 1 and fewer than there are sources.

    Returns
    -------
    float
        0 for the best assignment, 1 for one as good as chance.

    Raises
    ------
    TypeError, ValueError
        As for `precision_at_k` and `oracle.select_sources`, a target that is no source, a budget out of range, or
        scores for which every choice is worth the same.

    Examples
    --------
    >>> names = ["a", "b", "c", "d"]
    >>> values = [[0, 3, 3, 1], [3, 0, 2, 2], [2, 2, 0, 3], [1, 1, 1, 0]]
    >>> truth = xr.DataArray(values, {"source": names, "target": names}, ("source", "target"))
    >>> assignment_regret(truth, truth, budget=1)
    0.0
    """
    scores, truth, usable = _candidates(affinity, truth)
    truth, scores = truth.where(usable), scores.where(usable)
    sources = truth.source.values.tolist()
    if usable.all(axis=0).any():
        raise ValueError("every target must be one of the sources, whose own network it may keep: leave the others out")
    budget = labels.count(budget, "budget", 1, len(sources) - 1)
    predicted = oracle.select_sources(1 / (1 + oracle.priority(scores)), budget)
    worth = truth.fillna(truth.max("source"))  # full supervision is taken to be as good as the best transfer
    achieved = sum(float(worth.sel(source=s, target=t)) for t, s in predicted.to_series().items())
    best = oracle.select_sources(truth, budget).attrs["total"]
    share = budget / len(sources)
    random = float((share * truth.max("source") + (1 - share) * truth.mean("source")).sum())
    if not labels.varies(np.array([best, random])):
        raise ValueError("every choice of sources is worth the same, so that none can be wrong")
    return (best - achieved) / (best - random)


def p_value(found: Any) -> float:
    """One-sided p-value of a permutation test: the share of the values that are at least as large as the first.

    The first is the value of the data as given and counts among the permutations, so that the share is never 0
    (Phipson and Smyth 2010). Values that differ by rounding only are equally large.

    Parameters
    ----------
    found : array, (permutation,)
        The statistic: of the data as given, then of every permutation.

    Returns
    -------
    float
        In (0, 1].

    Raises
    ------
    TypeError, ValueError
        No real numbers, another number of axes, none, or a value that is not finite.

    Examples
    --------
    >>> p_value([0.5, 0.1, 0.5, 0.9])
    0.75
    """
    found = labels.real(found, "the statistic")
    if found.ndim != 1 or not found.size:
        raise ValueError(f"the statistic has the shape {found.shape}, expected (permutation,), the given one first")
    labels.finite(found, "the statistic", {"permutation": None})
    return float((found >= found[0] - 1e-12 * np.abs(found).max()).mean())


def _permutations(n_permutations, seed):
    """How many permutations are drawn, and the generator that draws them."""
    return labels.count(n_permutations, "n_permutations"), np.random.default_rng(labels.count(seed, "seed", 0))


class Mantel(NamedTuple):
    """A correlation of two matrices, and how often chance gives one as large."""

    correlation: float
    p_value: float


def mantel(
    first: xr.DataArray, second: xr.DataArray, ranks: bool = False, n_permutations: int = 9_999, seed: int = 0
) -> Mantel:
    """Mantel's test: do two matrices of the same models say alike which pairs are near?

    Mantel, "The detection of disease clustering and a generalized regression approach", Cancer Research 27 (1967). The
    models of one matrix are relabelled at random, rows and columns together, since its entries are not independent.

    Parameters
    ----------
    first, second : xarray.DataArray
        (source, target), symmetric, of the same at least four models in any order; the diagonal does not count.
    ranks : bool, default False
        Spearman's correlation instead of Pearson's.
    n_permutations : int, default 9,999
        Number of relabellings.
    seed : int, default 0
        Of the relabellings.

    Returns
    -------
    Mantel
        correlation over all pairs of models; p_value, one-sided: the share of the relabellings, the given one counted
        among them, whose correlation is at least as large.

    Raises
    ------
    TypeError, ValueError
        As for `labels.matrix`, not the same models on all axes, fewer than four, a matrix whose pairs are all alike, or
        a number that is no whole one.

    Examples
    --------
    >>> names, values = list("abcdef"), np.random.default_rng(0).normal(size=(6, 6))
    >>> near = xr.DataArray(values + values.T, {"source": names, "target": names}, ("source", "target"))
    >>> mantel(near, 1e200 * near).p_value < 0.01
    True
    """
    n_permutations, rng = _permutations(n_permutations, seed)
    first = labels.matrix(first, "the first matrix", missing="own", symmetric=True, fewest=4)
    second = labels.matrix(second, "the second matrix", missing="own", symmetric=True, fewest=4)
    names = first.source.values
    if set(names.tolist()) != set(second.source.values.tolist()):
        raise ValueError("Mantel's test needs two matrices of the same models: select what both have")
    upper = np.triu_indices(len(names), 1)
    matrices = []
    for which, matrix in (("first", first), ("second", second)):
        pairs = matrix.sel(source=names, target=names).values[upper]
        if not labels.varies(pairs):
            raise ValueError(f"all pairs of the {which} matrix are equally near, so that it has no correlation")
        pairs = stats.rankdata(pairs) if ranks else pairs / np.abs(pairs).max()
        square = np.zeros((len(names), len(names)))
        square[upper] = (pairs - pairs.mean()) / np.linalg.norm(pairs - pairs.mean())
        matrices.append(square + square.T)
    orders = np.array([np.arange(len(names)), *(rng.permutation(len(names)) for _ in range(n_permutations))])
    found = matrices[0][orders[:, upper[0]], orders[:, upper[1]]] @ matrices[1][upper]
    return Mantel(float(np.clip(found[0], -1, 1)), p_value(found))


class Cohesion(NamedTuple):
    """How near the models of a group are to each other and to the others, and how often chance sets one so apart."""

    inside: float
    between: float
    p_value: float


def cohesion(affinity: xr.DataArray, members: Any, n_permutations: int = 9_999, seed: int = 0) -> Cohesion:
    """Are the models of a group nearer to each other than to the others? A permutation test.

    Parameters
    ----------
    affinity : xarray.DataArray
        (source, target), symmetric, the same models on both axes, higher is nearer; the diagonal does not count.
    members : array of bool, (model,)
        Which models are of the group, in the order of the sources: two at least, and not all.
    n_permutations : int, default 9,999
        Number of groups of that size drawn at random from all models.
    seed : int, default 0
        Of the draws.

    Returns
    -------
    Cohesion
        inside and between: mean affinity of the pairs in the group, and of those of a member and another model;
        p_value, one-sided: the share of the groups, the given one counted among them, for which inside − between is
        at least as large.

    Raises
    ------
    TypeError, ValueError
        As for `labels.matrix`, members that are not true or false, fewer than two of them or none outside.

    Examples
    --------
    >>> names, values = list("abcd"), np.kron(np.eye(2), np.ones((2, 2)))
    >>> near = xr.DataArray(values, {"source": names, "target": names}, ("source", "target"))
    >>> cohesion(near, [True, True, False, False])[:2]
    (1.0, 0.0)
    """
    n_permutations, rng = _permutations(n_permutations, seed)
    values = labels.matrix(affinity, "affinity", missing="own", symmetric=True).values
    values = np.where(np.eye(len(values), dtype=bool), 0, values)
    members = np.asarray(members)
    if members.dtype != bool or members.shape != (len(values),):
        raise TypeError(f"members is {members.dtype} {members.shape}: give true or false for each of the {len(values)}")
    n, rest = members.sum(), (~members).sum()
    if n < 2 or rest < 1:
        raise ValueError("a group has two members at least, and some model does not belong to it")
    scale = np.abs(values).max() or 1.0
    groups = np.array([members, *(rng.permutation(members) for _ in range(n_permutations))], float)
    near = groups @ (values / scale)
    inside, between = (near * groups).sum(1) / (n * (n - 1)), (near * (1 - groups)).sum(1) / (n * rest)
    return Cohesion(float(inside[0] * scale), float(between[0] * scale), p_value(inside - between))


def agreement_test(first: xr.DataArray, second: xr.DataArray, n_permutations: int = 9_999, seed: int = 0) -> Mantel:
    """Do two oracles of the same tasks agree better than if the tasks of one of them had been given other names?

    The measure is that of `spearman`: the rank correlation of a target's sources, as a mean over the targets. Under
    the null hypothesis the names in one oracle have nothing to do with those in the other. A task is relabelled as
    source and as target together, as in `mantel`, so that a target keeps its own list, its own model stays outside of
    it, and popular sources, targets that are alike and all else that each oracle has of its own stay as they are.
    Tasks that are sources only change their names among themselves.

    Parameters
    ----------
    first, second : xarray.DataArray
        (source, target), higher is better, of the same tasks in any order, every target one of the sources; at least
        four targets. Own models are not counted.
    n_permutations : int, default 9,999
        Number of relabellings.
    seed : int, default 0
        Of the relabellings.

    Returns
    -------
    Mantel
        correlation; p_value, one-sided: the share of the relabellings, the given one counted among them, whose
        correlation is at least as large.

    Raises
    ------
    TypeError, ValueError
        Not the same tasks in both, a target that is no source, fewer than four targets, or as for `spearman`.

    Examples
    --------
    >>> truth = oracle.load("taskonomy")
    >>> agreement_test(truth, truth, n_permutations=99)
    Mantel(correlation=1.0, p_value=0.01)
    """
    n_permutations, rng = _permutations(n_permutations, seed)
    first, second = (labels.labelled(m, w, ("source", "target")) for m, w in ((first, "first"), (second, "second")))
    if any(set(first[axis].values.tolist()) != set(second[axis].values.tolist()) for axis in ("source", "target")):
        raise ValueError("the test needs two oracles of the same tasks: select what both have")
    first, second, usable = _candidates(first, second, "first", "second")
    sources, targets = first.source.values.tolist(), first.target.values.tolist()
    if len(targets) < 4 or usable.all(axis=0).any():
        raise ValueError("the test needs at least four targets, each of them one of the sources")
    ranks = []
    for matrix in (first, second):
        values = np.where(usable, stats.rankdata(np.where(usable, matrix, np.inf), axis=0), np.nan)
        values -= np.nanmean(values, axis=0)
        norms = np.sqrt(np.nansum(values**2, axis=0))
        for target in np.flatnonzero(norms == 0)[:1]:
            raise ValueError(f"the candidates for {targets[target]} have all the same score: leave it out")
        ranks.append(np.nan_to_num(values / norms))
    rows = np.array([sources.index(target) for target in targets])
    alone = np.setdiff1d(np.arange(len(sources)), rows)
    found = np.empty(n_permutations + 1)
    for number in range(n_permutations + 1):
        columns = rng.permutation(len(targets)) if number else np.arange(len(targets))
        order = np.empty(len(sources), int)
        order[rows], order[alone] = rows[columns], rng.permutation(alone) if number else alone
        found[number] = (ranks[0] * ranks[1][order[:, None], columns]).sum() / len(targets)
    return Mantel(float(np.clip(found[0], -1, 1)), p_value(found))


def clusters(truth: xr.DataArray, least: float = 0.8) -> dict[str, int]:
    """Groups of targets that rank the sources alike, and so are hardly more than one observation.

    Average linkage of 1 − Spearman's correlation of two targets' sources, cut at 1 − `least`. The two targets' own
    models are left out of the correlation.

    Parameters
    ----------
    truth : xarray.DataArray
        (source, target) or (bank, source, target), higher is better. Of several banks, the mean priority is taken.
    least : float, default 0.8
        In (0, 1): mean correlation from which two groups are one.

    Returns
    -------
    dict of str to int
        The number of each target's cluster, from 1.

    Raises
    ------
    ValueError
        As for `oracle.priority`, or `least` out of range.

    Examples
    --------
    >>> names = list("abcdef")
    >>> alike = xr.DataArray(np.arange(6.0)[:, None] * [1, 2, -1], {"source": names, "target": ["x", "y", "z"]},
    ...                      ("source", "target"))
    >>> found = clusters(alike)
    >>> found["x"] == found["y"] != found["z"]
    True
    """
    least = labels.share(least, "least")
    banks = [truth.isel(bank=number) for number in range(truth.sizes["bank"])] if "bank" in truth.dims else [truth]
    priorities = [oracle.priority(bank) for bank in banks]
    places = sum(priorities[1:], priorities[0]) / len(banks)
    targets, sources = places.target.values.tolist(), places.source.values
    apart = []
    for number, one in enumerate(targets):
        for other in targets[number + 1 :]:
            usable = ~np.isin(sources, (one, other))
            pair = (places.sel(target=name).values[usable] for name in (one, other))
            apart.append(1 - stats.spearmanr(*pair).statistic)
    if not apart:
        return dict.fromkeys(targets, 1)
    groups = hierarchy.fcluster(hierarchy.linkage(np.array(apart), "average"), 1 - least, "distance")
    return dict(zip(targets, groups.tolist(), strict=True))


def bootstrap(
    values: Any,
    level: float = 0.95,
    n_resamples: int = 10_000,
    seed: int = 0,
    clusters: Mapping[str, Hashable] | None = None,
) -> Interval:
    """Mean of one score per target, and its percentile bootstrap interval.

    Targets are drawn with replacement. Where there are further dimensions, such as the seeds of several banks, each is
    drawn on its own and the draws are crossed, as the same targets occur in every bank (the pigeonhole bootstrap of
    Owen 2007).

    Parameters
    ----------
    values : xarray.DataArray
        (target) or (target, …), such as `precision_at_k(..., mean=False)`.
    level : float, default 0.95
        Coverage of the interval, inside (0, 1).
    n_resamples : int, default 10,000
        Number of draws.
    seed : int, default 0
        Of the draws.
    clusters : dict, optional
        The cluster of each target, as the function `clusters` gives it: clusters are drawn, with all their targets.
        Without it every target is drawn on its own.

    Returns
    -------
    Interval
        mean, low, high: the mean of all values and the interval's two bounds.

    Raises
    ------
    TypeError, ValueError
        No values, no dimension, a value that is no finite number (its place is named), a level outside (0, 1), or a
        number of draws or seed that is no whole number.
    KeyError
        A target without a cluster.

    Examples
    --------
    >>> bootstrap([0.2, 0.4, 0.6, 0.8], n_resamples=1000).mean
    0.5
    """
    data = labels.real(values, "the score")
    if not data.ndim or not data.size:
        raise ValueError(f"bootstrap needs at least one value per target, not the shape {data.shape}")
    named = [(str(axis), values[axis].values) for axis in getattr(values, "dims", ())]
    labels.finite(data, "the score", dict(named or ((f"axis {axis}, place", None) for axis in range(data.ndim))))
    level, n_resamples = labels.share(level, "level"), labels.count(n_resamples, "n_resamples")
    rng = np.random.default_rng(labels.count(seed, "seed", 0))
    means = np.broadcast_to(data, (n_resamples, *data.shape))
    for axis, length in zip(getattr(values, "dims", [None] * data.ndim), data.shape, strict=True):
        groups = np.arange(length)
        if clusters is not None and axis == "target":
            groups = np.unique([clusters[name] for name in values[axis].values.tolist()], return_inverse=True)[1]
        n_groups = groups.max() + 1
        shares = rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=n_resamples)[:, groups]
        shares = shares / shares.sum(1, keepdims=True)
        means = np.einsum("rd,rd...->r...", shares, means)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(data.mean()), float(low), float(high))


def paired_bootstrap(
    first: xr.DataArray,
    second: xr.DataArray,
    level: float = 0.95,
    n_resamples: int = 10_000,
    seed: int = 0,
    clusters: Mapping[str, Hashable] | None = None,
) -> Interval:
    """Mean difference of two methods on the same targets, and its bootstrap interval.

    Every draw takes the same targets for both methods, so that what makes a target hard for both cancels.

    Parameters
    ----------
    first, second : xarray.DataArray
        (target) or (target, …), the same names on both, in any order.
    level, n_resamples, seed, clusters
        As for `bootstrap`.

    Returns
    -------
    Interval
        mean, low, high of first − second: first is better where low is above 0.

    Raises
    ------
    TypeError, ValueError
        The two do not have the same dimensions and names, a name is missing or occurs twice, or as for `bootstrap`.

    Examples
    --------
    >>> first = xr.DataArray([0.6, 0.4], {"target": ["a", "b"]}, ("target",))
    >>> second = xr.DataArray([0.3, 0.4], {"target": ["b", "a"]}, ("target",))
    >>> round(paired_bootstrap(first, second).mean, 6)
    0.15
    """
    both = [(first, "the first"), (second, "the second")]
    axes, others = (list(labels.named(values, what).dims) for values, what in both)
    if set(axes) == set(others):
        first, second = (labels.labelled(values, what, axes) for values, what in both)
    if set(axes) != set(others) or any(
        set(first[axis].values.tolist()) != set(second[axis].values.tolist()) for axis in axes
    ):
        raise ValueError(
            f"the two methods are not measured on the same targets, {dict(first.sizes)} and {dict(second.sizes)}: "
            "select what both have"
        )
    second = second.sel({axis: first[axis].values for axis in axes})
    return bootstrap(first.copy(data=first.values - second.values), level, n_resamples, seed, clusters)


def _candidates(affinity, truth, first="affinity", truth_is="truth"):
    """Scores and truth, (source, target) with sources in alphabetical order, and the mask of what is to be ranked."""
    affinity = labels.labelled(affinity, first, ("source", "target"))
    truth = labels.labelled(truth, truth_is, ("source", "target"))
    targets = truth.target.values.tolist()
    missing = sorted(map(str, set(targets) - set(affinity.target.values.tolist())))
    if missing:
        raise ValueError(
            f"{first} lacks the targets {', '.join(missing)}: score them too, or leave them out of {truth_is}"
        )
    sources = sorted(set(affinity.source.values.tolist()) & set(truth.source.values.tolist()), key=str)
    usable = np.array([[source != target for target in targets] for source in sources], bool)
    if not len(sources) or not usable.any(axis=0).all():
        raise ValueError(f"{first} and {truth_is} have no source in common that is not the target itself")
    aligned = []
    for what, matrix in ((first, affinity), (truth_is, truth)):
        matrix = matrix.sel(source=sources, target=targets)
        labels.finite(matrix.values, what, {"source": sources, "target": targets}, ~usable)
        aligned.append(matrix)
    return *aligned, usable


def _order(matrix, usable):
    """Rows of each column from best to worst, what is not usable last."""
    return np.argsort(np.where(usable, -matrix.values, np.inf), axis=0, kind="stable")


def _hits(affinity, truth, k, n_relevant):
    affinity, truth, usable = _candidates(affinity, truth)
    n_candidates = int(usable.sum(axis=0).min())  # of the target that has the fewest
    chosen = {}
    for what, matrix, number in (("k", affinity, k), ("n_relevant", truth, n_relevant)):
        number = labels.count(number, what, 1, n_candidates)
        chosen[what] = np.zeros(matrix.shape, bool)
        np.put_along_axis(chosen[what], _order(matrix, usable)[:number], True, axis=0)
    return xr.DataArray((chosen["k"] & chosen["n_relevant"]).sum(axis=0), truth.target.coords)


def _averaged(values, long_name, mean):
    values = values.rename(long_name.replace(" ", "_").lower()).assign_attrs(long_name=long_name, units="1")
    return float(values.mean()) if mean else values
