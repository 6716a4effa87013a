"""``python:FILE.py:FACTORY[#layer.path]``: the reader's own networks. The file runs, with all that it can do."""

from collections.abc import Mapping
from pathlib import Path

from torch import nn

from support.encoder import Encoder
from support.sources import beside, shared, wrap

FORM = "FILE.py:FACTORY[#layer.path]"


def load(target: str, *, preprocessing: Mapping | None = None, weights: str | Path | None = None) -> Encoder:
    """The network that a function (or class) of a Python file makes.

    Parameters
    ----------
    target : str
        Path of the file, the function, which takes no argument, and the layer whose output is the representation.
        The function returns a torch.nn.Module, or an `Encoder` with its own preprocessing. What the file imports is
        looked for beside it first, and belongs to it alone (see `support.sources.beside`).
    preprocessing : mapping, optional
        As for `support.sources.wrap.encoder`.
    weights : str or Path, optional
        A file of weights for the whole network.

    Returns
    -------
    Encoder
        Named as in `target`, without the folder; `Encoder.sources` has the SHA-256 of all files of code.

    Raises
    ------
    ValueError
        A target of another form, no such function, or something else than a network; as for `wrap.of_module`.
    FileNotFoundError
        There is no such file.

    Examples
    --------
    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "own.py"
    >>> layers = "nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)"
    >>> _ = file.write_text(f"from torch import nn\\ndef make():\\n    return nn.Sequential({layers})")
    >>> load(f"{file}:make", preprocessing={"input_size": (8, 8)}).card["representation"]
    'The output of 1.'
    """
    place, layer = shared.split(target)
    file, _, factory = place.rpartition(":")
    if not file or not factory.isidentifier():
        raise ValueError(f"python:{target} names no factory, expected python:{FORM}")
    if weights == "random":
        raise ValueError("what a factory makes is its own affair: leave out weights, or name a file")
    path = shared.existing(file).resolve()
    name = f"python:{path.name}:{factory}" + (f"#{layer}" if layer else "")
    made, sources = beside.call(path, factory)
    about = f"{factory} of {path.name}"
    if isinstance(made, Encoder):
        if layer or preprocessing or weights is not None:
            raise ValueError(
                f"{about} makes an Encoder, which has its representation, preprocessing and weights: say nothing else, "
                "or let it return the network"
            )
        made.name, made.sources = name, sources
        made.card.setdefault("file", path.name)
        return made
    if not isinstance(made, nn.Module):
        raise ValueError(f"{about} makes a {type(made).__name__}, expected a torch.nn.Module")
    encoder = wrap.of_module(
        name,
        made,
        layer,
        preprocessing or {},
        weights,
        family=type(made).__name__,
        title=about,
        file=path,
        sources=sources,
    )
    sources.renew()
    return encoder
