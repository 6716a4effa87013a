"""Encoders of networks that nobody listed: what is assumed of them where nothing is said."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import nn

from support.encoder import PREPROCESSING, SINGLE, Encoder
from support.sources import representation, shared
from support.sources.weights import fill

SIZE = 224  # pixels along a side of the images
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's channels, in [0, 1]


def encoder(
    name: str,
    network: nn.Module,
    represent: Callable[[torch.Tensor], torch.Tensor] | None,
    preprocessing: Mapping,
    *,
    family: str,
    task: str = "not stated",
    title: str = "",
    trained_on: str = "not stated",
    licence: str = "not stated",
    file: Path | None = None,
    sources: Mapping[str, str] | None = None,
) -> Encoder:
    """An encoder with a card, normalised as ImageNet's images are unless `preprocessing` says otherwise.

    Parameters
    ----------
    name, network, represent, family, task, sources
        As for `Encoder`.
    preprocessing : mapping
        Arguments of `Encoder`, from `support.encoder.PREPROCESSING`.
    title, trained_on, licence : str, optional
        For the card; the title is the file's name where it is empty.
    file : Path, optional
        For the card: what the network was read from.

    Returns
    -------
    Encoder

    Raises
    ------
    ValueError
        An unknown key of `preprocessing`, or as for `Encoder`.

    Examples
    --------
    >>> made = encoder("mine", nn.Flatten(), None, {"channels": "GREY"}, family="toy", title="a toy")
    >>> made.input_size, made.card["licence"]
    ((224, 224), 'not stated')
    """
    unknown = set(preprocessing) - set(PREPROCESSING)
    if unknown:
        known = ", ".join(sorted(PREPROCESSING))
        raise ValueError(f"{name}: unknown preprocessing {', '.join(map(str, unknown))}; known: {known}")
    card = {"title": title or Path(file or name).name, "trained_on": trained_on, "licence": licence}
    if file is not None:
        card |= {"file": file.name, "sha256": shared.sha256(file)}
    grey = preprocessing.get("channels") in SINGLE
    normal = {"mean": sum(MEAN) / 3, "std": sum(STD) / 3} if grey else {"mean": MEAN, "std": STD}
    options = {"input_size": (SIZE, SIZE)} | normal | dict(preprocessing)
    return Encoder(name, network, task=task, family=family, represent=represent, card=card, sources=sources, **options)


def of_module(
    name: str, network: nn.Module, layer: str, preprocessing: Mapping, weights: str | Path | None, **about
) -> Encoder:
    """An encoder of a torch network, its representation found by `support.sources.representation.find`.

    Parameters
    ----------
    name : str
        The encoder's.
    network : torch.nn.Module
        The whole network.
    layer : str
        Path of the layer whose output is the representation; chosen where it is empty.
    preprocessing : mapping
        As for `encoder`.
    weights : str or Path, optional
        A file for `support.sources.weights.fill`.
    **about
        The other arguments of `encoder`.

    Returns
    -------
    Encoder

    Raises
    ------
    ValueError
        As for `encoder`, `fill` and `find`; or a network that cannot be run with two images.
    FileNotFoundError
        There is no file of weights.

    Examples
    --------
    >>> network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    >>> of_module("mine", network, "", {"input_size": (8, 8)}, None, family="toy", title="a toy").card["representation"]
    'The output of 1.'
    """
    made = encoder(name, network, None, preprocessing, **about)
    if weights is not None:
        file = shared.existing(weights)
        fill(network, file)
        made.card["trained_on"] = f"not stated; weights of {file.name}, SHA-256 {shared.sha256(file)}"
    try:
        found = representation.find(network, layer, made.trial(2), made.input_size)
    except MemoryError:
        raise
    except Exception as error:  # whatever the network stumbles over
        raise made.cannot_run(error) from error
    made.representation, what, made.card["alternatives"] = found
    made.card["representation"] = f"{what[0].upper()}{what[1:]}."
    return made
