"""Make a task bank, or say how good the banks are: ``python -m support.bank all --seed 0 --workers 2``."""

import argparse
import dataclasses
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from support.bank import training, transfers, work
from support.bank.report import report

STAGES = ("render", "train", "transfer", "crossed")
BUDGET = "budget"


def make(workshop: work.Workshop, stages: Sequence[str], workers: int) -> None:
    """Make a bank, or part of one; what is already there is not made again.

    Parameters
    ----------
    workshop : work.Workshop
    stages : sequence of {"render", "train", "transfer", "crossed", "budget"}
        In this order; each needs the one before. Only ``"budget"`` needs nothing but the finished encoders.
    workers : int
        Number of processes.

    Examples
    --------
    >>> make(work.Workshop(folder=Path("elsewhere")), ["budget"], 1)  # only with a finished bank
    Traceback (most recent call last):
    FileNotFoundError: there is no elsewhere/encoders_seed0.safetensors: python -m support.bank all --seed 0
    """
    does = {"render": _render, "train": _train, "transfer": _transfer, "crossed": _crossed, BUDGET: _budget}
    work.sweep(workshop)
    for stage in stages:
        started = time.monotonic()
        does[stage](workshop, workers)
        print(f"{stage}, bank {workshop.seed}: {time.monotonic() - started:.0f} s", flush=True)


def _missing(workshop, jobs, piece):
    return [(workshop, *job) for job in jobs if not piece(workshop, *job).exists()]


def _render(workshop, workers):
    jobs = _missing(workshop, workshop.shards(), lambda shop, split, start, _: shop.shard_folder(split, start))
    work.run(work.render, jobs, workers, "rooms, in parts")


def _train(workshop, workers):
    _fit(workshop, training.sources(workshop), workers)
    print(*(f"wrote {path}" for path in training.collect(workshop)), sep="\n")


def _fit(workshop, names, workers):
    work.run(training.train, _missing(workshop, [(name,) for name in names], training.piece), workers, "encoders")


def _transfer(workshop, workers):
    _measure(workshop, training.sources(workshop), transfers.jobs(workshop), workers)
    print(f"wrote {transfers.collect(workshop)}")


def _measure(workshop, names, jobs, workers):
    missing = _missing(workshop, [(name,) for name in names], transfers.features_piece)
    work.run(transfers.keep_features, missing, workers, "representations")
    work.run(transfers.keep_transfer, _missing(workshop, jobs, transfers.piece), workers, "transfers")


def _crossed(workshop, workers):
    if not workshop.plan.crossed:
        return
    names = training.added(workshop)
    _fit(workshop, names, workers)
    print(f"wrote {training.collect_crossed(workshop)}")
    _measure(workshop, names, transfers.crossed_jobs(workshop), workers)
    print(f"wrote {transfers.collect_crossed(workshop)}")


def _budget(workshop, workers):
    plan = dataclasses.replace(workshop.plan, n_train=0, steps=0)  # the encoders are there: pieces of their own
    workshop = dataclasses.replace(workshop, plan=plan)
    work.sweep(workshop)
    training.unpack(workshop)
    _render(workshop, workers)
    _measure(workshop, training.sources(workshop), transfers.budget_jobs(workshop), workers)
    print(f"wrote {transfers.collect_budget(workshop)}")


def main(arguments: list[str] | None = None) -> None:
    """Read the command line and do what it says.

    Parameters
    ----------
    arguments : list of str, optional
        ``sys.argv[1:]`` when None.
    """
    parser = argparse.ArgumentParser(prog="python -m support.bank", description=__doc__)
    parser.add_argument("stage", choices=[*STAGES, "all", BUDGET, "report"])
    parser.add_argument("--seed", type=int, default=0, help="which bank: of rooms, first weights and batches")
    parser.add_argument("--workers", type=int, default=1, help="processes; two on two cores")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--folder", type=Path, default=work.FOLDER, help="where the bank goes")
    parser.add_argument("--work", type=Path, help="where the pieces go; ``work`` in --folder when left out")
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
            plan = work.TINY if options.tiny else work.plan(options.seed)
            workshop = work.Workshop(plan, options.seed, options.folder, device, options.work)
            make(workshop, STAGES if options.stage == "all" else [options.stage], options.workers)
    except (FileNotFoundError, RuntimeError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
