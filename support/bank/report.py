"""What the banks of a folder are worth: losses, families, and how far each oracle can be trusted, as text."""

from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from support import oracle, ranking
from support.bank import networks, tasks, work
from support.sources import shared

RELEVANT = 5  # sources that a target has; fewer where there are not so many


def report(folder: str | Path = work.FOLDER) -> str:
    """What the banks of a folder are worth, as text.

    Parameters
    ----------
    folder : str or Path, optional

    Returns
    -------
    str
        For every bank: the families of its networks; each task's own loss against the best constant prediction; for
        every target the agreement of the oracle with itself (half of the test images against the other half, twice the
        training steps, the other plain and the other mixed banks) and with Taskonomy's published rankings; the place of
        the random encoder; where they were measured, other numbers of training steps, and the crossed part. Banks that
        are not there are named, with the command. Then the mean priority of sources by group; size and SHA-256 of the
        files.

    Raises
    ------
    FileNotFoundError
        There is no bank in the folder; the message gives the command.

    Examples
    --------
    >>> "20 of 20 networks are better than the constant" in report()
    True
    """
    folder = Path(folder)
    seeds = (int(path.stem.removeprefix("losses_seed")) for path in folder.glob("losses_seed*.npz"))
    found = sorted(seed for seed in seeds if _encoders(folder, seed).is_file())
    if not found:
        raise FileNotFoundError(f"there is no bank in {folder}: python -m support.bank all")
    banks = {seed: oracle.losses(seed, folder) for seed in found}
    families = {seed: networks.families(_encoders(folder, seed)) for seed in found}
    truths = {seed: oracle.transferability(data["loss"]) for seed, data in banks.items()}
    published = oracle.load("taskonomy")
    texts = []
    for seed in sorted({*work.BANKS, *found}):
        if seed not in banks:
            texts += [f"Bank {seed} is not there: python -m support.bank all --seed {seed}", ""]
            continue
        texts += [_title(seed, families[seed]), _gains(banks[seed], families[seed]), ""]
        texts += [_reliability(seed, banks[seed], truths, families, published), "", _random(banks[seed]), ""]
        for kind, tell in (("budget", _budget), ("crossed", _crossed)):
            if (folder / f"{kind}_seed{seed}.npz").is_file():
                texts += [tell(seed, folder), ""]
    for seeds, truth in _together(truths, families):
        texts += [f"Mean priority of the sources, banks {seeds} (1 is best)", _by_group(truth), ""]
    texts += ["The same in the published rankings", _by_group(published), ""]
    texts += ["Files"]
    texts += [
        f"{path.name}  {path.stat().st_size:>11,} bytes  {shared.sha256(path)}"
        for path in sorted(folder.glob("*_seed*.*"))
    ]
    return "\n".join(texts)


def by_steps(losses: xr.DataArray) -> xr.Dataset:
    """How the order of the sources moves with the number of training steps.

    Parameters
    ----------
    losses : xarray.DataArray
        (steps, source, target, image), as `support.oracle.budget` gives them.

    Returns
    -------
    xarray.Dataset
        float64. ``spearman`` and ``precision`` (steps, other, target): agreement of the orders after two numbers of
        steps, as Spearman's rank correlation and as P@5 with five relevant sources (fewer where there are not so many).
        ``loss`` (steps, target): mean over the sources, without the target's own and the random one, and the images.

    Raises
    ------
    ValueError
        As for `support.oracle.transferability`.

    Examples
    --------
    >>> losses = oracle.losses(0)["loss"].isel(image=slice(50)).expand_dims(steps=[120])
    >>> by_steps(losses)["spearman"].mean().item()
    1.0
    """
    steps, targets = losses.steps.values.tolist(), losses.target.values.tolist()
    truths = {number: oracle.transferability(losses.sel(steps=number, drop=True)) for number in steps}
    relevant = min(RELEVANT, truths[steps[0]].sizes["source"] - 1)
    pairs = [[(truths[one], truths[other]) for other in steps] for one in steps]
    precision = [[ranking.precision_at_k(*pair, relevant, relevant, mean=False) for pair in row] for row in pairs]
    coords = {"steps": steps, "other": steps, "target": targets}
    taken = (losses.source != losses.target) & (losses.source != oracle.RANDOM)
    return xr.Dataset(
        {
            "spearman": (tuple(coords), [[oracle.agreement(*pair).sel(target=targets) for pair in r] for r in pairs]),
            "precision": (tuple(coords), [[xr.DataArray(p).sel(target=targets) for p in row] for row in precision]),
            "loss": losses.astype(np.float64).where(taken).mean(("source", "image")),
        },
        coords,
        attrs={"relevant": relevant},
    )


def places_of_random(losses: xr.DataArray) -> xr.DataArray:
    """Where the random encoder stands among the sources of each target.

    Parameters
    ----------
    losses : xarray.DataArray
        (source, target, image), as ``loss`` of `support.oracle.losses`.

    Returns
    -------
    xarray.DataArray
        float64 (target): 0 if it is the best source and 1 if it is the worst, the target's own network left out.

    Examples
    --------
    >>> round(places_of_random(oracle.losses(0)["loss"]).sel(target="edge2d").item(), 2)
    0.84
    """
    places = []
    for target in losses.target.values.tolist():
        rivals = [name for name in losses.source.values.tolist() if name != target]
        scores = oracle.ahp(oracle.win_rates(losses.sel(source=rivals, target=[target])))
        place = float(oracle.priority(scores).sel(source=oracle.RANDOM, target=target))
        places.append((place - 1) / (len(rivals) - 1))
    return xr.DataArray(places, {"target": losses.target.values}, name="place", attrs={"units": "1"})


def same_task_nearer(scores: xr.DataArray) -> xr.DataArray:
    """What is nearer to a network of the crossed part: its task in another family, or its family on another task.

    Parameters
    ----------
    scores : xarray.DataArray
        (source, target), higher is nearer; both axes the same names, ``TASK@FAMILY``.

    Returns
    -------
    xarray.DataArray
        float64 (target): of all pairs of a source of the target's task in another family, and a source of the target's
        family on another task, the share in which the first is nearer; a tie counts one half. NaN where there is none.

    Raises
    ------
    ValueError
        The two axes have not the same names, or a score of such a pair is not finite.

    Examples
    --------
    >>> names = ["edge2d@plain", "edge2d@residual", "reshade@plain", "reshade@residual"]
    >>> by_task = [[name[0] == other[0] for name in names] for other in names]
    >>> scores = xr.DataArray(np.array(by_task, float), {"source": names, "target": names}, ("source", "target"))
    >>> same_task_nearer(scores).values
    array([1., 1., 1., 1.])
    """
    names = scores.source.values.tolist()
    if sorted(names) != sorted(scores.target.values.tolist()):
        raise ValueError("sources and targets are not the same networks")
    parts = {name: name.split("@") for name in names}
    shares = []
    for target in names:
        of_task = [n for n in names if n != target and parts[n][0] == parts[target][0]]
        of_family = [n for n in names if n != target and parts[n][1] == parts[target][1]]
        column = scores.sel(target=target).to_series()
        if not np.isfinite(column[of_task + of_family]).all():
            raise ValueError(f"the scores of {target} are not all finite")
        difference = column[of_task].to_numpy()[:, None] - column[of_family].to_numpy()[None]
        shares.append((np.sign(difference).mean() + 1) / 2 if difference.size else np.nan)
    return xr.DataArray(shares, {"target": names}, name="share", attrs={"units": "1"})


def _encoders(folder, seed):
    return folder / f"encoders_seed{seed}.safetensors"


def _title(seed, families):
    by_family = {}
    for name, family in families.items():
        by_family.setdefault(family, []).append(name)
    lines = [f"{family}: {', '.join(sorted(names))}" for family, names in sorted(by_family.items())]
    lines = lines if len(lines) > 1 else [f"All networks are of one family: {next(iter(by_family))}."]
    return "\n".join([f"Bank {seed}", "=" * 6, "", *lines, ""])


def _gains(data, families):
    own, constant = data["loss_own"].mean("image").to_pandas(), data["loss_constant"].mean("image").to_pandas()
    won = (data["loss_own"] < data["loss_constant"]).mean("image").to_pandas()
    table = pd.DataFrame({"own": own, "constant": constant, "own/constant": own / constant, "images won": won})
    table["family"] = [families[name] for name in table.index]
    means = table.groupby("family")["own/constant"].mean()
    return (
        "Loss on held-out rooms, of each task's own network and of the best constant prediction\n"
        + table.rename_axis(None).to_string(float_format="%.3f")
        + f"\n{(own < constant).sum()} of {len(own)} networks are better than the constant; mean own/constant: "
        + ", ".join(f"{family} {mean:.3f}" for family, mean in means.items())
    )


def _is_mixed(families):
    return len(set(families.values())) > 1


def _reliability(seed, data, truths, families, published):
    halves = [oracle.transferability(data["loss"].isel(image=slice(start, None, 2))) for start in (0, 1)]
    columns = {"halves": oracle.agreement(*halves)}
    doubled = data["loss_double"].rename(target_double="target")
    if doubled.sizes["target"]:
        columns["double steps"] = oracle.agreement(truths[seed], oracle.transferability(doubled))
    for title, mixed in (("plain banks", False), ("mixed banks", True)):
        others = [n for n in truths if n != seed and _is_mixed(families[n]) == mixed]
        if others:
            columns[title] = sum(oracle.agreement(truths[seed], truths[n]) for n in others) / len(others)
    columns["Taskonomy"] = oracle.agreement(truths[seed], published)
    table = pd.DataFrame({name: values.to_pandas() for name, values in columns.items()}).reindex(
        data.target.values.tolist()
    )
    table.loc["mean"] = table.mean()
    return "Agreement of the oracle (Spearman), by target; other banks: mean over them\n" + table.rename_axis(
        None
    ).to_string(float_format="%.2f", na_rep="")


def _random(data):
    places = places_of_random(data["loss"])
    return (
        f"Random encoder: its place among the sources, 0 best and 1 last, is {float(places.mean()):.2f} on average "
        f"(in the last third for {float((places > 2 / 3).mean()):.0%} of the targets)."
    )


def _budget(seed, folder):
    losses = oracle.budget(seed, folder)
    found = by_steps(losses)
    own = losses.attrs["head_steps"]
    against = found.sel(other=own).to_dataframe().reset_index()
    tables = {
        f"Spearman with {own} steps": against.pivot_table("spearman", "target", "steps"),
        f"P@{found.attrs['relevant']} with {own} steps": against.pivot_table("precision", "target", "steps"),
        "mean loss": found["loss"].T.to_pandas(),
    }
    table = pd.concat(tables, axis=1).reindex(losses.target.values.tolist())
    risen = found["loss"].isel(steps=-1) > found["loss"].min("steps")
    names = [name for name, is_so in zip(losses.target.values.tolist(), risen.values, strict=True) if is_so]
    table.loc["mean"] = table.mean()
    return (
        f"Training steps of the heads, bank {seed}\n"
        + table.to_string(float_format="%.2f", na_rep="")
        + f"\nMean loss not least after the most steps (over-fitting): {', '.join(names) or 'none'}."
    )


def _crossed(seed, folder):
    data = oracle.crossed(seed, folder)
    targets = [name for name in data.target.values.tolist() if name in data.task.values]
    places = oracle.priority(oracle.transferability(data["loss"].sel(target=targets).drop_vars(["task", "family"])))
    places = places.sel(source=data.source)  # in the order of the coordinates
    own = data.task == places.target
    tables = {
        "same task": places.where(own).mean("source").to_pandas(),
        "other tasks": places.where(~own).mean("source").to_pandas(),
        **{
            f"other tasks, {family}": places.where(~own & (data.family == family)).mean("source").to_pandas()
            for family in dict.fromkeys(data.family.values.tolist())
        },
    }
    table = pd.DataFrame(tables).reindex(targets)
    table.loc["mean"] = table.mean()
    return (
        f"Crossed part of bank {seed}: mean priority among its {data.sizes['source']} networks (1 is best), by target\n"
        + table.rename_axis(None).to_string(float_format="%.1f")
    )


def _together(truths, families):
    """Mean oracle of the banks of a kind, for what is said of all of them together."""
    for mixed in (False, True):
        seeds = [seed for seed in truths if _is_mixed(families[seed]) == mixed]
        if seeds:
            places = [oracle.priority(truths[seed]) for seed in seeds]
            yield ", ".join(map(str, seeds)), -xr.concat(places, "bank").mean("bank")


def _by_group(truth):
    places = oracle.priority(truth).to_series().dropna().reset_index()
    for axis in ("source", "target"):
        places[axis] = [tasks.TASKS[name].group for name in places[axis]]
    table = places.pivot_table("priority", "source", "target")
    return table.rename_axis(index="sources", columns="targets").to_string(float_format="%.1f", na_rep="")
