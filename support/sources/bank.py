"""``bank:TASK``: the encoders of the task banks, and one with random weights."""

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


def _file(seed: int | None) -> Path:
    return work.FOLDER / f"encoders_seed{seed or 0}.safetensors"


def how(name: str, seed: int | None = None) -> str:
    """Command that makes a network loadable.

    Parameters
    ----------
    name : str
        From `names`.
    seed : int, optional
        Which bank, 0 when None.

    Returns
    -------
    str
        Empty when it is loadable.

    Examples
    --------
    >>> how("edge2d", seed=17)
    'python -m support.bank all --seed 17'
    """
    return "" if _file(seed).is_file() else f"python -m support.bank all --seed {seed or 0}"


def load(name: str, *, seed: int | None = None) -> Encoder:
    """A network of a task bank; the representation is the network's output.

    Parameters
    ----------
    name : str
        From `names`; the encoder has the bare task as its name, as the oracle has.
    seed : int, optional
        Which bank, 0 when None.

    Returns
    -------
    Encoder

    Raises
    ------
    FileNotFoundError
        The bank has not been made; the message gives the command.

    Examples
    --------
    >>> load("edge2d").card["title"]
    'edge2d, bank 0'
    """
    seed = seed or 0
    if how(name, seed):
        raise FileNotFoundError(f"bank {seed} has not been made: {how(name, seed)}")
    network = networks.load_encoder(_file(seed), name)
    channels, height, width = network.shape
    end = "" if network.is_signed else ", after ReLU"
    rooms = f"{work.FULL.n_train:,} rendered rooms of seed {seed}"
    return Encoder(
        name,
        network,
        task=name,
        family=FAMILY,
        input_size=(network.size, network.size),
        mean=networks.MEAN,
        std=networks.STD,
        card={
            "title": f"{name}, bank {seed}",
            "trained_on": "nothing: random weights" if name == RANDOM else rooms,
            "licence": "MIT",
            "file": _file(seed).name,
            "sha256": shared.sha256(_file(seed)),
            "parameters": n_values(network),
            "representation": f"The encoder's output: {channels} feature maps of {height} × {width} units{end}.",
        },
    )
