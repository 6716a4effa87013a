"""Make a task bank, or say how good the banks are: ``python -m support.bank all --seed 0 --workers 2``."""

import argparse
import os
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from support import oracle
from support.bank import tasks, training, transfers, work
from support.sources import shared

STAGES = ("render", "train", "transfer")


def make(workshop, stages, workers):
    """Make a bank, or part of one; what is already there is not made again.

    Parameters
    ----------
    workshop : work.Workshop
    stages : sequence of {"render", "train", "transfer"}
        In this order; each needs the one before.
    workers : int
        Number of processes.
    """
    work.sweep(workshop.folder)
    for stage in stages:
        started = time.monotonic()
        {"render": _render, "train": _train, "transfer": _transfer}[stage](workshop, workers)
        print(f"{stage}, bank {workshop.seed}: {time.monotonic() - started:.0f} s", flush=True)


def _missing(workshop, jobs, piece):
    return [(workshop, *job) for job in jobs if not piece(workshop, *job).exists()]


def _render(workshop, workers):
    jobs = _missing(workshop, workshop.shards(), lambda shop, split, start, _: shop.shard_folder(split, start))
    work.run(work.render, jobs, workers, "rooms, in parts")


def _train(workshop, workers):
    names = [(name,) for name in training.sources(workshop)]
    work.run(training.train, _missing(workshop, names, training.piece), workers, "encoders")
    print(*(f"wrote {path}" for path in training.collect(workshop)), sep="\n")


def _transfer(workshop, workers):
    names = [(name,) for name in training.sources(workshop)]
    jobs = _missing(workshop, names, transfers.features_piece)
    work.run(transfers.keep_features, jobs, workers, "representations")
    jobs = _missing(workshop, transfers.jobs(workshop), transfers.piece)
    work.run(transfers.keep_transfer, jobs, workers, "transfers")
    print(f"wrote {transfers.collect(workshop)}")


def report(folder):
    """What the banks of a folder are worth, as text.

    Parameters
    ----------
    folder : Path

    Returns
    -------
    str
        For every bank: each task's own loss against the best constant prediction; for every target the agreement of the
        oracle with itself (half of the test images against the other half, twice the training steps, the other banks)
        and with Taskonomy's published rankings; the place of the random encoder; the mean priority of sources by group;
        size and SHA-256 of the files.

    Raises
    ------
    FileNotFoundError
        There is no bank in the folder; the message gives the command.
    """
    oracle.load("bank", folder=folder)
    seeds = sorted(int(path.stem.removeprefix("losses_seed")) for path in Path(folder).glob("losses_seed*.npz"))
    banks = {seed: oracle.losses(seed, folder) for seed in seeds}
    truths = {seed: oracle.transferability(data["loss"]) for seed, data in banks.items()}
    published = oracle.load("taskonomy")
    texts = []
    for seed, data in banks.items():
        texts += [f"Bank {seed}", "=" * 6, "", _gains(data), "", _reliability(seed, data, truths, published), ""]
        texts += [_random(data), ""]
    pooled = oracle.load("bank", folder=folder)
    texts += ["Mean priority of the sources, all banks together (1 is best)", _by_group(pooled), ""]
    texts += ["The same in the published rankings", _by_group(published), ""]
    texts += ["Files"]
    texts += [
        f"{path.name}  {path.stat().st_size:>11,} bytes  {shared.sha256(path)}"
        for path in sorted(Path(folder).glob("*_seed*.*"))
    ]
    return "\n".join(texts)


def _gains(data):
    own, constant = data["loss_own"].mean("image").to_pandas(), data["loss_constant"].mean("image").to_pandas()
    won = (data["loss_own"] < data["loss_constant"]).mean("image").to_pandas()
    table = pd.DataFrame({"own": own, "constant": constant, "own/constant": own / constant, "images won": won})
    return (
        "Loss on held-out rooms, of each task's own network and of the best constant prediction\n"
        + table.rename_axis(None).to_string(float_format="%.3f")
        + f"\n{(own < constant).sum()} of {len(own)} networks are better than the constant."
    )


def _reliability(seed, data, truths, published):
    halves = [oracle.transferability(data["loss"].isel(image=slice(start, None, 2))) for start in (0, 1)]
    columns = {"halves": oracle.agreement(*halves)}
    doubled = data["loss_double"].rename(target_double="target")
    if doubled.sizes["target"]:
        columns["double steps"] = oracle.agreement(truths[seed], oracle.transferability(doubled))
    others = [oracle.agreement(truths[seed], truth) for other, truth in truths.items() if other != seed]
    if others:
        columns["other banks"] = sum(others) / len(others)
    columns["Taskonomy"] = oracle.agreement(truths[seed], published)
    table = pd.DataFrame({name: values.to_pandas() for name, values in columns.items()}).reindex(
        data.target.values.tolist()
    )
    table.loc["mean"] = table.mean()
    return "Agreement of the oracle (Spearman), by target\n" + table.rename_axis(None).to_string(
        float_format="%.2f", na_rep=""
    )


def _random(data):
    places = []
    for target in data.target.values.tolist():
        rivals = [name for name in data.source.values.tolist() if name != target]
        scores = oracle.ahp(oracle.win_rates(data["loss"].sel(source=rivals, target=[target])))
        place = float(oracle.priority(scores).sel(source=oracle.RANDOM, target=target))
        places.append((place - 1) / (len(rivals) - 1))
    return (
        f"Random encoder: its place among the sources, 0 best and 1 last, is {np.mean(places):.2f} on average "
        f"(in the last third for {np.mean(np.array(places) > 2 / 3):.0%} of the targets)."
    )


def _by_group(truth):
    places = oracle.priority(truth).to_series().dropna().reset_index()
    for axis in ("source", "target"):
        places[axis] = [tasks.TASKS[name].group for name in places[axis]]
    table = places.pivot_table("priority", "source", "target")
    return table.rename_axis(index="sources", columns="targets").to_string(float_format="%.1f", na_rep="")


def main(arguments=None):
    """Read the command line and do what it says.

    Parameters
    ----------
    arguments : list of str, optional
        ``sys.argv[1:]`` when None.
    """
    parser = argparse.ArgumentParser(prog="python -m support.bank", description=__doc__)
    parser.add_argument("stage", choices=[*STAGES, "all", "report"])
    parser.add_argument("--seed", type=int, default=0, help="which bank: of rooms, first weights and batches")
    parser.add_argument("--workers", type=int, default=1, help="processes; two on two cores")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--folder", type=Path, default=work.FOLDER, help="where the bank goes")
    parser.add_argument("--tiny", action="store_true", help="three tasks and 200 rooms: only to see that it works")
    options = parser.parse_args(arguments)
    if options.workers < 1:
        parser.error(f"--workers is {options.workers}, expected at least 1")
    if options.seed < 0:
        parser.error(f"--seed is {options.seed}, expected 0 or more")
    if options.device not in ("auto", "cpu", "cuda"):
        parser.error(f"--device is {options.device}, expected auto, cpu or cuda")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU here; leave it out")
    if options.tiny and options.folder == work.FOLDER and options.stage != "report":
        parser.error("--tiny would overwrite the bank: give another --folder")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it, CUDA's matrix products are not repeatable
    device = "cuda" if options.device == "auto" and torch.cuda.is_available() else options.device
    device = "cpu" if device == "auto" else device
    try:
        if options.stage == "report":
            print(report(options.folder))
        else:
            plan = work.TINY if options.tiny else work.FULL
            workshop = work.Workshop(plan, options.seed, options.folder, device)
            make(workshop, STAGES if options.stage == "all" else [options.stage], options.workers)
    except (FileNotFoundError, RuntimeError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
