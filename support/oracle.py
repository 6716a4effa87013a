"""What transfer really gives: win rates, the analytic hierarchy process, priorities and the best choice of sources."""

import itertools
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from scipy import linalg, optimize, sparse, stats
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform

from support import labels
from support.bank import RANDOM

DATA = Path(__file__).parents[1] / "data"
CLIP = (0.001, 0.999)  # win rates are kept inside, as Taskonomy does
RATES = (1e-6, 1 - 1e-6)  # win rates that `ahp` takes: so far inside (0, 1) that rounding harms no ratio of two
ALIKE = (0, 1, 2)  # banks of one architecture and one training budget, whose images may be counted together


def win_rates(losses: xr.DataArray) -> xr.DataArray:
    """How often each source beats each other one, target by target.

    Zamir et al. (2018), Section 3.3: the share of the held-out images on which transfer from one source has a lower
    loss than transfer from another, clipped to [0.001, 0.999] so that no ratio of two rates is infinite.

    Parameters
    ----------
    losses : xarray.DataArray
        (source, target, image): loss of every test image after transfer; lower is better.

    Returns
    -------
    xarray.DataArray
        float64 (target, source, rival): share of images on which `source` beats `rival`, a tie counting one half;
        0.5 on the diagonal, and a rate and its mirror image add up to 1.

    Raises
    ------
    TypeError, ValueError
        As for `labels.matrix`; source and target of a loss that is not finite are named.

    Examples
    --------
    >>> names = {"source": ["a", "b"], "target": ["t"]}
    >>> losses = xr.DataArray([[[1.0, 2.0, 3.0, 4.0]], [[2.0, 2.0, 1.0, 5.0]]], names, ("source", "target", "image"))
    >>> win_rates(losses).sel(target="t", source="a", rival="b").item()
    0.625
    """
    losses = labels.labelled(losses, "losses", ("target", "source", "image"), others=("image",))
    values = losses.values
    labels.finite(values, "loss", {axis: losses[axis].values for axis in losses.dims})
    rates = np.empty((len(values), values.shape[1], values.shape[1]))
    for rate, value in zip(rates, values, strict=True):
        rate[:] = (np.sign(value[None] - value[:, None]).mean(axis=-1) + 1) / 2
    return xr.DataArray(
        rates.clip(*CLIP),
        dims=("target", "source", "rival"),
        coords={"target": losses.target.values, "source": losses.source.values, "rival": losses.source.values},
        name="win_rate",
        attrs={"units": "1", "long_name": "share of test images on which source beats rival"},
    )


def ahp(win_rates: xr.DataArray) -> xr.DataArray:
    """Transferability of each source to each target, by the analytic hierarchy process.

    Zamir et al. (2018), Section 3.3, after Saaty (1987): win rates W become ratios W / Wᵀ, whose principal right
    eigenvector, normalised to sum 1, holds the transferabilities.

    Parameters
    ----------
    win_rates : xarray.DataArray
        (target, source, rival), in (0, 1), as the function of that name gives them.

    Returns
    -------
    xarray.DataArray
        float64 (source, target), in (0, 1), sum 1 for every target; higher is better.

    Raises
    ------
    TypeError, ValueError
        As for `labels.matrix`, sources that are not the rivals, or a rate outside [1e-6, 1 − 1e-6].

    Examples
    --------
    >>> names = {"target": ["t"], "source": ["a", "b"], "rival": ["a", "b"]}
    >>> ahp(xr.DataArray([[[0.5, 0.75], [0.25, 0.5]]], names, ("target", "source", "rival"))).values.ravel().tolist()
    [0.75, 0.25]
    """
    win_rates = labels.labelled(win_rates, "win rates", ("target", "source", "rival"))
    if win_rates.source.values.tolist() != win_rates.rival.values.tolist():
        raise ValueError("sources and rivals of the win rates are not the same, in the same order")
    rates = win_rates.values
    axes = {axis: win_rates[axis].values for axis in win_rates.dims}
    labels.finite(rates, "win rate", axes, low=RATES[0], high=RATES[1])
    scores = np.array([_principal(rate / rate.T) for rate in rates]).reshape(rates.shape[:2])
    return _scores(scores.T, win_rates.source.values, win_rates.target.values)


def _principal(ratios):
    values, vectors = linalg.eig(ratios)
    vector = np.abs(vectors[:, np.argmax(values.real)].real)
    return vector / vector.sum()


def _scores(values, sources, targets):
    return xr.DataArray(
        values,
        dims=("source", "target"),
        coords={"source": list(sources), "target": list(targets)},
        name="transferability",
        attrs={"units": "1", "long_name": "transferability, higher is better"},
    )


def transferability(losses: xr.DataArray) -> xr.DataArray:
    """The oracle of measured transfers: win rates and hierarchy process over all sources but the target's own.

    Parameters
    ----------
    losses : xarray.DataArray
        (source, target, image), as for `win_rates`. The random encoder is left out, where there is one.

    Returns
    -------
    xarray.DataArray
        float64 (source, target): sum 1 for every target, NaN where the source is the target itself; higher is better.

    Raises
    ------
    TypeError, ValueError
        As for `win_rates`, or a target that no source but its own is measured for.

    Examples
    --------
    >>> names = {"source": ["a", "b", "random"], "target": ["a"]}
    >>> losses = xr.DataArray([[[0.0]], [[1.0]], [[9.0]]], names, ("source", "target", "image"))
    >>> transferability(losses).to_series().to_dict()
    {('a', 'a'): nan, ('b', 'a'): 1.0}
    """
    losses = labels.labelled(losses, "losses", ("source", "target", "image"), others=("image",))
    sources = [name for name in losses.source.values.tolist() if name != RANDOM]
    for target in losses.target.values.tolist():
        if not set(sources) - {target}:
            raise ValueError(f"no source but its own is measured for {target}: leave that target out")
    columns = [
        ahp(win_rates(losses.sel(source=[name for name in sources if name != target], target=[target])))
        for target in losses.target.values.tolist()
    ]
    return xr.concat(columns, "target", join="outer").reindex(source=sources).transpose("source", "target")


def priority(truth: xr.DataArray) -> xr.DataArray:
    """Place of each source in a target's order: 1 for the best one to transfer from.

    Parameters
    ----------
    truth : xarray.DataArray
        (source, target), higher is better; NaN where a source is not to be ranked, such as the target itself.

    Returns
    -------
    xarray.DataArray
        float64 (source, target): 1, 2, …, number of ranked sources; equal scores share the mean of their places; NaN
        where `truth` is NaN.

    Raises
    ------
    TypeError, ValueError
        As for `labels.matrix`; NaN is allowed.

    Examples
    --------
    >>> truth = xr.DataArray([[0.2], [0.7], [0.1]], {"source": list("abc"), "target": ["t"]}, ("source", "target"))
    >>> priority(truth).values.ravel().tolist()
    [2.0, 1.0, 3.0]
    """
    truth = labels.matrix(truth, "truth", missing="any")
    places = stats.rankdata(-truth.values, axis=0, nan_policy="omit")
    return xr.DataArray(
        places,
        dims=truth.dims,
        coords=truth.coords,
        name="priority",
        attrs={"units": "1", "long_name": "priority, 1 is best"},
    )


def mean_priority(truth: xr.DataArray) -> xr.DataArray:
    """Mean place of each source, as footnote 4 of Song et al. (2019) defines it: p_i = (1/N) Σ_j r_j^i.

    The sum is over the targets, N is their number, and a source counts 0 for the target that is its own task. A task
    that is a target too has therefore (N − 1) / N of the mean over the other targets, and one that is a source only
    has its plain mean.

    Parameters
    ----------
    truth : xarray.DataArray
        (source, target), higher is better.

    Returns
    -------
    xarray.DataArray
        float64 (source); smaller is better.

    Raises
    ------
    TypeError, ValueError
        As for `labels.matrix`; NaN is allowed.

    Examples
    --------
    >>> mean_priority(load("taskonomy")).sel(source=["curvature", "edge3d"]).round(2).values.tolist()
    [5.39, 5.83]
    """
    truth = labels.matrix(truth, "truth", missing="any")
    places = priority(truth.where(truth.source != truth.target)).fillna(0)
    return places.mean("target").rename("mean_priority").assign_attrs(units="1", long_name="mean priority, low is good")


def agreement(first: xr.DataArray, second: xr.DataArray) -> xr.DataArray:
    """Spearman rank correlation of two oracles, target by target.

    Parameters
    ----------
    first, second : xarray.DataArray
        (source, target). Targets that both have are compared over the sources that both rank, whatever their order.

    Returns
    -------
    xarray.DataArray
        float64 (target), in [−1, 1]; NaN for a target with fewer than two sources in common, or whose scores are all
        equal in one of the oracles.

    Raises
    ------
    TypeError, ValueError
        As for `priority`, or no target in common.

    Warns
    -----
    UserWarning
        Targets for which the result is NaN; they are named.

    Examples
    --------
    >>> truth = xr.DataArray([[0.2], [0.7], [0.1]], {"source": list("abc"), "target": ["t"]}, ("source", "target"))
    >>> agreement(truth, -truth).to_series().round(6).to_dict()
    {'t': -1.0}
    """
    first = labels.matrix(first, "the first oracle", missing="any")
    second = labels.matrix(second, "the second oracle", missing="any")
    first, second = xr.align(first, second, join="inner")
    if not first.sizes["target"]:
        raise ValueError("the two oracles have no target in common")
    values = []
    for target in first.target.values:
        one, other = first.sel(target=target).values, second.sel(target=target).values
        ranked = np.isfinite(one) & np.isfinite(other)
        is_defined = ranked.any() and np.ptp(one[ranked]) > 0 and np.ptp(other[ranked]) > 0
        values.append(stats.spearmanr(one[ranked], other[ranked]).statistic if is_defined else np.nan)
    undefined = ", ".join(map(str, first.target.values[np.isnan(values)]))
    if undefined:
        warnings.warn(f"no rank correlation for {undefined}: too few common sources, or equal scores", stacklevel=2)
    return xr.DataArray(
        values,
        dims="target",
        coords={"target": first.target.values},
        name="agreement",
        attrs={"units": "1", "long_name": "Spearman rank correlation"},
    )


def half_splits(losses: xr.DataArray, n_splits: int = 10, seed: int = 0) -> list[tuple[xr.DataArray, xr.DataArray]]:
    """Pairs of oracles, each from one half of the test images: how well one predicts the other is the noise ceiling.

    Parameters
    ----------
    losses : xarray.DataArray
        (source, target, image), as for `win_rates`.
    n_splits : int, default 10
        Number of random splits.
    seed : int, default 0
        Of the splits.

    Returns
    -------
    list of (xarray.DataArray, xarray.DataArray)
        What `transferability` makes of the two halves; of an odd number of images one is left out.

    Raises
    ------
    TypeError, ValueError
        Fewer than two images, an argument that is no whole number or out of range, or as for `transferability`.

    Examples
    --------
    >>> names, values = {"source": list("abc"), "target": ["a"]}, np.random.default_rng(0).random((3, 1, 8))
    >>> losses = xr.DataArray(values, names, ("source", "target", "image"))
    >>> [agreement(*pair).sizes["target"] for pair in half_splits(losses, n_splits=2)]
    [1, 1]
    """
    losses = labels.labelled(losses, "losses", ("source", "target", "image"), others=("image",))
    n_splits, seed = labels.count(n_splits, "n_splits"), labels.count(seed, "seed", 0)
    half = losses.sizes["image"] // 2
    if not half:
        raise ValueError(f"losses have the sizes {dict(losses.sizes)}: two halves need at least two images")
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(losses.sizes["image"]) for _ in range(n_splits)]
    halves = [(order[:half], order[half : 2 * half]) for order in orders]
    return [(transferability(losses.isel(image=a)), transferability(losses.isel(image=b))) for a, b in halves]


def tree(truth: xr.DataArray) -> np.ndarray:
    """Agglomerative clustering of the sources by where they transfer to, after the task tree of Zamir et al. (2018).

    Two sources are near when they stand in similar places for the same targets: 1 − Pearson's correlation of their
    priorities, over the targets that are neither of the two; average linkage.

    Parameters
    ----------
    truth : xarray.DataArray
        (source, target), higher is better, at least two sources and three targets besides the two that are compared.

    Returns
    -------
    numpy.ndarray
        float64, (sources − 1, 4): SciPy's linkage matrix, in the order of the sources.

    Raises
    ------
    TypeError, ValueError
        As for `priority`, or two sources that cannot be compared: fewer than three targets in common, or the same place
        for all of them.

    Examples
    --------
    >>> tree(load("taskonomy")).shape
    (19, 4)
    """
    truth = labels.matrix(truth, "truth", missing="any", fewest=2)
    places = priority(truth.where(truth.source != truth.target))
    distances = np.zeros((len(places), len(places)))
    for i, j in itertools.combinations(range(len(places)), 2):
        pair = places.values[[i, j]]
        pair = pair[:, np.isfinite(pair).all(axis=0)]
        if pair.shape[1] < 3 or (np.ptp(pair, axis=1) == 0).any():
            names = places.source.values
            raise ValueError(f"{names[i]} and {names[j]} cannot be compared: too few targets, or always the same place")
        distances[i, j] = distances[j, i] = 1 - np.corrcoef(pair)[0, 1]
    return hierarchy.linkage(squareform(distances, checks=False), method="average")


def select_sources(affinity: xr.DataArray, budget: int) -> xr.DataArray:
    """Which tasks to label, and which of them each target is transferred from: the first-order integer program.

    Zamir et al. (2018), Section 3.4, with every target of equal weight and every source of cost one: at most `budget`
    tasks are trained from full supervision; a target among them keeps its own network, and every other target gets one
    of them as its source, so that the total affinity is as large as possible.

    Parameters
    ----------
    affinity : xarray.DataArray
        (source, target), higher is better. NaN where a source cannot serve; NaN where source and target are the same
        task stands for the best affinity of that target, as full supervision is taken to be no worse than transfer.
    budget : int
        Largest number of tasks trained from full supervision, at least 1.

    Returns
    -------
    xarray.DataArray
        (target) of strings, the source of each target; attrs: ``chosen`` (list of str, the tasks to be labelled),
        ``total`` (float, the affinity reached).

    Raises
    ------
    TypeError, ValueError
        As for `priority`, a budget that is no whole number from 1, a target that no source can serve, or a budget too
        small to serve all targets.

    Examples
    --------
    >>> names = {"source": ["a", "b"], "target": ["s", "t"]}
    >>> best = select_sources(xr.DataArray([[0.9, 0.1], [0.6, 0.5]], names, ("source", "target")), budget=1)
    >>> best.values.tolist(), best.attrs["total"]
    (['b', 'b'], 1.1)
    """
    affinity, budget = labels.matrix(affinity, "affinity", missing="any"), labels.count(budget, "budget")
    sources, targets = affinity.source.values.tolist(), affinity.target.values.tolist()
    values = affinity.values.copy()
    for column, target in enumerate(targets):
        if not np.isfinite(values[:, column]).any():
            raise ValueError(f"no source has an affinity to {target}: leave that target out")
        if target in sources and not np.isfinite(values[sources.index(target), column]):
            values[sources.index(target), column] = np.nanmax(values[:, column])
    usable = np.isfinite(values)
    gains = np.where(usable, values - np.nanmin(values, axis=0), 0)  # the solver's tolerances are absolute
    gains /= gains.max() or 1
    n_sources, n_targets = values.shape
    assign = sparse.eye_array(n_sources * n_targets)  # one 0-1 variable per (source, target), after one per source
    label = sparse.kron(sparse.eye_array(n_sources), np.ones((n_targets, 1)))
    each = sparse.kron(np.ones((1, n_sources)), sparse.eye_array(n_targets))
    nothing = sparse.csr_array((n_targets, n_sources))
    own = [(sources.index(target), column) for column, target in enumerate(targets) if target in sources]
    own_label = sparse.csr_array(np.array([[row == source for row in range(n_sources)] for source, _ in own], float))
    constraints = [
        optimize.LinearConstraint(sparse.hstack([-label, assign]), ub=0),  # a source that is used is labelled
        optimize.LinearConstraint(sparse.hstack([nothing, each]), lb=1, ub=1),  # one source for each target
        optimize.LinearConstraint(np.r_[np.ones(n_sources), np.zeros(n_sources * n_targets)], ub=budget),
    ]
    if own:  # a labelled target keeps its own network
        own_assign = assign.tocsr()[[source * n_targets + column for source, column in own]]
        constraints.append(optimize.LinearConstraint(sparse.hstack([own_label, -own_assign]), lb=0, ub=0))
    result = optimize.milp(
        -np.r_[np.zeros(n_sources), gains.ravel()],
        constraints=constraints,
        integrality=1,
        bounds=optimize.Bounds(0, np.r_[np.ones(n_sources), usable.ravel().astype(float)]),
        options={"mip_rel_gap": 0},
    )
    if result.x is None:
        raise ValueError(f"{budget} labelled tasks cannot serve all targets ({result.message}): raise the budget")
    served = result.x[n_sources:].reshape(values.shape).argmax(axis=0)
    return xr.DataArray(
        [sources[row] for row in served],
        dims="target",
        coords={"target": targets},
        name="source",
        attrs={
            "chosen": [name for name, used in zip(sources, result.x[:n_sources] > 0.5, strict=True) if used],
            "total": float(values[served, np.arange(n_targets)].sum()),
        },
    )


def losses(seed: int, folder: str | Path = DATA / "bank") -> xr.Dataset:
    """Every measured loss of one task bank.

    Parameters
    ----------
    seed : int
        Seed of the bank.
    folder : str or Path, optional
        Where the bank is.

    Returns
    -------
    xarray.Dataset
        float32; ``loss`` (source, target, image): test loss after transfer; ``loss_double`` (source, target_double,
        image): the same with twice the training steps, for some targets; ``loss_own`` (task, image): loss of the task's
        own encoder and decoder; ``loss_constant`` (task, image): loss of the best constant prediction. Sources and
        tasks stand in the order of the Taskonomy table, the random encoder last; images bear their number in the bank.

    Raises
    ------
    TypeError, ValueError
        A seed that is no whole number from 0, or a damaged file.
    FileNotFoundError
        That bank has not been made; the message gives the command.

    Examples
    --------
    >>> losses(0)["loss"].dims
    ('source', 'target', 'image')
    """
    values = _arrays("losses", seed, folder, "all")
    dims = {
        "loss": ("source", "target", "image"),
        "loss_double": ("source", "target_double", "image"),
        "loss_own": ("task", "image"),
        "loss_constant": ("task", "image"),
    }
    data = xr.Dataset(
        {name: (axes, values.pop(name).astype(np.float32)) for name, axes in dims.items()},
        coords=values,
        attrs={"seed": seed, "units": "1"},
    )
    return _in_order(data, ("source", "target", "target_double", "task"))


def budget(seed: int = 0, folder: str | Path = DATA / "bank") -> xr.DataArray:
    """Losses of one bank's transfers after different numbers of training steps.

    Parameters
    ----------
    seed : int, default 0
        Seed of the bank.
    folder : str or Path, optional
        Where the bank is.

    Returns
    -------
    xarray.DataArray
        float32 (steps, source, target, image), steps in ascending order, the bank's own number among them; the rest as
        ``loss`` of `losses`. ``attrs["head_steps"]`` is the bank's own number of steps.

    Raises
    ------
    TypeError, FileNotFoundError, ValueError
        As for `losses`; a ValueError, too, where the two files do not have the same sources, targets and images.

    Examples
    --------
    >>> budget(0, folder="elsewhere")
    Traceback (most recent call last):
    FileNotFoundError: there is no elsewhere/budget_seed0.npz: python -m support.bank budget --seed 0
    """
    values = _arrays("budget", seed, folder, "budget")
    head_steps = int(values.pop("head_steps"))
    loss = values.pop("loss").astype(np.float32)
    others = xr.DataArray(loss, values, ("steps", "source", "target", "image"), name="loss")
    own = losses(seed, folder)["loss"].expand_dims(steps=[head_steps])
    together = xr.concat([_in_order(others, ("source", "target")), own], "steps", join="exact").sortby("steps")
    return together.assign_attrs(seed=seed, units="1", head_steps=head_steps)


def crossed(seed: int = 4, folder: str | Path = DATA / "bank") -> xr.Dataset:
    """Losses of the crossed part of a mixed bank: some tasks, each with a network of every family.

    Parameters
    ----------
    seed : int, default 4
        Seed of the bank.
    folder : str or Path, optional
        Where the bank is.

    Returns
    -------
    xarray.Dataset
        float32; ``loss`` (source, target, image): test loss after transfer; ``loss_own`` (source, image): loss of the
        network with its own decoder. Sources are called ``TASK@FAMILY``; ``task`` and ``family`` (source) are the parts
        of the name. Sources of the target's own task are among them.

    Raises
    ------
    TypeError, FileNotFoundError, ValueError
        As for `losses`.

    Examples
    --------
    >>> crossed(4, folder="elsewhere")
    Traceback (most recent call last):
    FileNotFoundError: there is no elsewhere/crossed_seed4.npz: python -m support.bank crossed --seed 4
    """
    values = _arrays("crossed", seed, folder, "crossed")
    parts = np.array([name.split("@") for name in values["source"].tolist()])
    data = xr.Dataset(
        {
            "loss": (("source", "target", "image"), values.pop("loss").astype(np.float32)),
            "loss_own": (("source", "image"), values.pop("loss_own").astype(np.float32)),
        },
        coords=values | {"task": ("source", parts[:, 0]), "family": ("source", parts[:, 1])},
        attrs={"seed": seed, "units": "1"},
    )
    return _in_order(data, ("target",))


def _arrays(kind, seed, folder, stage):
    """What a finished file of a bank holds: dict of str to numpy.ndarray."""
    seed = labels.count(seed, "seed", 0)
    path, command = Path(folder) / f"{kind}_seed{seed}.npz", f"python -m support.bank {stage} --seed {seed}"
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}: {command}")
    try:
        with np.load(path) as file:
            return {name: file[name] for name in file.files}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged ({error}): remove it and run {command}") from error


def _in_order(data, axes):
    """Tasks along some axes in the order of the Taskonomy table, unknown ones last."""
    order = {name: place for place, name in enumerate(_published()[1])}
    places = {axis: sorted(data[axis].values.tolist(), key=lambda name: order.get(name, len(order))) for axis in axes}
    return data.sel(places)


def load(name: str, seed: int | None = None, folder: str | Path = DATA / "bank") -> xr.DataArray:
    """An oracle by name.

    Parameters
    ----------
    name : {"taskonomy", "bank"}
        One of `ORACLES`: the published rankings of Taskonomy (Zamir et al., 2018; transfers with 16,000 images), or the
        transfers measured on this project's own task bank.
    seed : int, optional
        Of ``"bank"``: which bank; when None, the test images of the banks 0, 1 and 2 count together, as far as they are
        there: those of one architecture and one training budget.
    folder : str or Path, optional
        Of ``"bank"``: where the bank is.

    Returns
    -------
    xarray.DataArray
        float64 (source, target), higher is better, NaN where the source is the target itself. ``"taskonomy"``: 20 × 18,
        the number of other sources that the source was ranked above, from 18 down to 0. ``"bank"``: the result of
        `transferability`.

    Raises
    ------
    TypeError, ValueError, FileNotFoundError
        No such oracle, a seed given for ``"taskonomy"``, or as for `losses`.

    Examples
    --------
    >>> load("taskonomy").sel(source="rgb2sfnorm", target="curvature").item()
    18.0
    """
    return ORACLES[labels.choice(name, "oracle", ORACLES)](seed, folder)


def _bank(seed, folder):
    """The oracle of one bank, or of the images of the banks that are alike together."""
    there = [number for number in ALIKE if (Path(folder) / f"losses_seed{number}.npz").is_file()]
    seeds = there if seed is None else [seed]
    if not seeds:
        raise FileNotFoundError(f"there is no bank in {folder}: python -m support.bank all")
    banks = [losses(number, folder)["loss"].drop_vars("image") for number in seeds]
    truth = transferability(xr.concat(banks, "image", join="exact"))
    truth.attrs.update(oracle="bank", seeds=seeds)
    return truth


def _taskonomy(seed, folder):
    """The published rankings; there is one set of them."""
    if seed is not None:
        raise ValueError("the published rankings of Taskonomy have no seed: leave it out")
    return _published()[0]


def _published():
    """The published rankings as scores (source, target), and the names of all sources in order."""
    table = pd.read_csv(DATA / "taskonomy" / "source_rankings.csv", index_col="target")
    targets = table.index.tolist()
    sources = targets + sorted(set(table.values.ravel()) - set(targets))
    scores = pd.DataFrame(np.nan, index=sources, columns=targets)
    for target, ranking in table.iterrows():
        scores.loc[ranking.values, target] = np.arange(len(ranking))[::-1].astype(float)
    truth = _scores(scores.values, sources, targets)
    truth.attrs.update(oracle="taskonomy", long_name="sources ranked below, higher is better")
    return truth, sources


ORACLES: dict[str, Callable[[int | None, Any], xr.DataArray]] = {  # of seed and folder, (source, target)
    "bank": _bank,
    "taskonomy": _taskonomy,
}
