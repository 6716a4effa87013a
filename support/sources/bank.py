"""``bank:TASK``: the encoders of the task banks, and one with random weights; ``crossed:TASK@FAMILY``."""

from pathlib import Path

from support.bank import RANDOM, networks, work
from support.bank.tasks import TASKS
from support.encoder import Encoder
from support.sources import shared
from support.sources.weights import n_values

FAMILY = "task bank encoder"


def names() -> dict[str, tuple[str, str]]:
    """Names of the networks, each with its task and its backbone.

    Returns
    -------
    dict of str to (str, str)

    Examples
    --------
    >>> names()["edge2d"]
    ('edge2d', 'task bank encoder')
    """
    return {task: (task, FAMILY) for task in (*TASKS, RANDOM)}


def crossed_names() -> dict[str, tuple[str, str]]:
    """Names of the networks of the crossed part, each with its task and its family.

    Returns
    -------
    dict of str to (str, str)

    Examples
    --------
    >>> crossed_names()["edge2d@residual"]
    ('edge2d', 'residual')
    """
    return {f"{task}@{family}": (task, family) for task in work.CROSSED for family in networks.FAMILIES}


def _place(name: str, seed: int | None) -> tuple[int, Path, str]:
    """Seed of the bank, file and name of the network in it."""
    if "@" not in name:
        seed = seed or 0
        return seed, work.FOLDER / f"encoders_seed{seed}.safetensors", name
    seed = work.CROSSED_BANK if seed is None else seed
    crossed = work.Workshop(work.plan(seed), seed).crossed
    if name not in crossed:
        raise ValueError(f"bank {seed} has no {name}: leave the seed out for that of bank {work.CROSSED_BANK}")
    key = crossed[name]
    prefix = "crossed_" if "@" in key else ""
    return seed, work.FOLDER / f"{prefix}encoders_seed{seed}.safetensors", key


def how(name: str, seed: int | None = None) -> str:
    """Command that makes a network loadable.

    Parameters
    ----------
    name : str
        From `names` or `crossed_names`.
    seed : int, optional
        Which bank; when None, 0, and 4 for the crossed part.

    Returns
    -------
    str
        Empty when it is loadable.

    Raises
    ------
    ValueError
        A bank without a crossed part.

    Examples
    --------
    >>> how("edge2d", seed=17)
    'python -m support.bank all --seed 17'
    """
    seed, file, _ = _place(name, seed)
    return "" if file.is_file() else f"python -m support.bank all --seed {seed}"


def load(name: str, *, seed: int | None = None) -> Encoder:
    """A network of a task bank; the representation is the network's output.

    Parameters
    ----------
    name : str
        From `names` or `crossed_names`; the encoder has it as its name, as the oracle has.
    seed : int, optional
        Which bank; when None, 0, and 4 for the crossed part.

    Returns
    -------
    Encoder
        Its `family` is one of `support.bank.networks.FAMILIES`.

    Raises
    ------
    FileNotFoundError
        The bank has not been made; the message gives the command.
    ValueError
        A bank without a crossed part.

    Examples
    --------
    >>> load("edge2d").card["title"]
    'edge2d, bank 0'
    """
    command = how(name, seed)
    seed, file, key = _place(name, seed)
    if command:
        raise FileNotFoundError(f"bank {seed} has not been made: {command}")
    network = networks.load_encoder(file, key)
    channels, height, width = network.shape
    rooms = f"{work.plan(seed).n_train:,} rendered rooms of seed {seed}"
    return Encoder(
        name,
        network,
        task=name.partition("@")[0],
        family=network.family,
        input_size=(network.size, network.size),
        mean=networks.MEAN,
        std=networks.STD,
        card={
            "title": f"{name}, bank {seed}",
            "trained_on": "nothing: random weights" if name == RANDOM else rooms,
            "licence": "MIT",
            "file": file.name,
            "sha256": shared.sha256(file),
            "parameters": n_values(network),
            "representation": f"The encoder's output: {channels} feature maps of {height} × {width} units, "
            f"{network.end}.",
        },
    )
