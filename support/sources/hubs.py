"""``torchvision:NAME`` and ``timm:NAME``: any registered architecture; weights of the hub, of a file, or random."""

import contextlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from support.encoder import Encoder
from support.sources import shared, wrap

FORM = "NAME[#layer.path]"


def _works(package):
    try:
        importlib.import_module(package)
    except Exception:  # built for another torch it fails with RuntimeError or OSError
        return False
    return True


def _matching_torchvision():
    """The requirement of the torchvision that belongs to this torch: 0.15.0 came with 2.0.0, 0.28.0 with 2.13.0."""
    release, _, build = importlib.metadata.version("torch").partition("+")
    major, minor, patch = release.split(".")[:3]
    name = f"0.{int(minor) + 15}.{patch}" if major == "2" else "*"
    return f"torchvision=={name}" + (f"+{build}" if build else "")


def how_torchvision(name: str = "", seed: int | None = None) -> str:
    """Command that makes torchvision usable.

    Parameters
    ----------
    name, seed
        Not used.

    Returns
    -------
    str
        Empty when it is usable.

    Examples
    --------
    >>> isinstance(how_torchvision(), str)
    True
    """
    if _works("torchvision"):
        return ""
    installed = importlib.util.find_spec("torchvision") is not None
    return f"pip install {'--force-reinstall --no-deps ' if installed else ''}{_matching_torchvision()}"


def how_timm(name: str = "", seed: int | None = None) -> str:
    """Commands that make timm, which needs torchvision, usable.

    Parameters
    ----------
    name, seed
        Not used.

    Returns
    -------
    str
        Empty when it is usable.

    Examples
    --------
    >>> isinstance(how_timm(), str)
    True
    """
    first = how_torchvision()
    second = "pip install timm" if first or not _works("timm") else ""
    return " && ".join(command for command in (first, second) if command)


def _package(scheme, command):
    if command:
        raise ImportError(f"{scheme}:{FORM} needs a torchvision built for torch {torch.__version__}: {command}")
    return importlib.import_module(scheme)


@contextlib.contextmanager
def _weights_only():
    """While open, torch.load makes tensors and plain values only, whatever its caller asks for."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _create(spec, make: Callable, weights, seed):
    """A network by `make` (pre-trained or not → network), the file of its weights, and what is said of random ones."""
    if seed is not None and weights != "random":
        raise ValueError(f"{spec} has no seed, which belongs to random weights and to the task bank: leave it out")
    if weights not in (None, "pretrained"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed or 0)
            network = make(False)
        return network, None if weights == "random" else weights, f"nothing: random weights of seed {seed or 0}"
    try:
        with _weights_only():
            return make(True), None, ""
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"the pre-trained weights of {spec} could not be had ({type(error).__name__}: {error}). Without a "
            'connection: weights="random", or weights=FILE with a state dictionary'
        ) from error


def _version(package):
    """What the code of a network of this package is told by."""
    module = importlib.import_module(package)
    return {package: str(getattr(module, "__version__", "unknown"))}


def from_torchvision(
    target: str,
    *,
    preprocessing: Mapping | None = None,
    weights: str | Path | None = None,
    seed: int | None = None,
) -> Encoder:
    """A network of torchvision, its preprocessing as its weights say, without the crop.

    Parameters
    ----------
    target : str
        Its name, and the layer whose output is the representation.
    preprocessing : mapping, optional
        What replaces that of the weights; as for `support.sources.wrap.encoder`.
    weights : str or Path, optional
        ``"pretrained"`` (downloaded; the default), ``"random"``, or a file.
    seed : int, optional
        Of random weights, 0 when None.

    Returns
    -------
    Encoder

    Raises
    ------
    ImportError
        torchvision is missing, or built for another torch; the message gives the command.
    ValueError
        An unknown name, a network that takes no images, weights that torchvision has not got, or as for
        `wrap.of_module`.
    FileNotFoundError
        The weights cannot be downloaded, or there is no such file.

    Examples
    --------
    >>> if not how_torchvision():
    ...     from_torchvision("resnet18#layer4", weights="random").card["representation"]
    ... else:
    ...     "The output of layer4."
    'The output of layer4.'
    """
    name, layer = shared.split(target)
    spec = f"torchvision:{name}"
    models: Any = importlib.import_module("torchvision.models") if _package("torchvision", how_torchvision()) else None
    known = models.list_models()
    if name not in known:
        raise shared.unknown(name, known, "network of torchvision")
    kind = models.get_model_builder(name).__module__.split(".")
    if {"detection", "video", "optical_flow", "quantization"}.intersection(kind):
        raise ValueError(f"{spec} is of {'.'.join(kind)}: it takes no batch of images, or has no gradient")
    trained = getattr(models.get_model_weights(name), "DEFAULT", None)

    def make(pretrained):
        if pretrained:
            return models.get_model(name, weights=trained)
        builder = inspect.signature(models.get_model_builder(name)).parameters
        backbone = {"weights_backbone": None} if "weights_backbone" in builder else {}
        quiet = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
        return models.get_model(name, weights=None, **backbone, **quiet)

    if trained is None and weights in (None, "pretrained"):
        raise ValueError(f'torchvision has no weights for {name}: weights="random", or weights=FILE')
    network, file, trained_on = _create(spec, make, weights, seed)
    own = trained.transforms() if trained is not None else None
    length = getattr(own, "crop_size", None) or getattr(own, "resize_size", None) or [wrap.SIZE]
    length = [length] if isinstance(length, int) else list(length)
    options = {"input_size": (length[0], length[-1])}
    options |= {key: tuple(getattr(own, key)) for key in ("mean", "std") if hasattr(own, key)}
    return wrap.of_module(
        f"torchvision:{target}",
        network,
        layer,
        options | dict(preprocessing or {}),
        file,
        task="semantic segmentation" if "segmentation" in kind else "object classification",
        family=type(network).__name__,
        title=f"torchvision's {name}",
        trained_on=trained_on or str(trained),
        sources=_version("torchvision"),
    )


def from_timm(
    target: str,
    *,
    preprocessing: Mapping | None = None,
    weights: str | Path | None = None,
    seed: int | None = None,
) -> Encoder:
    """A network of timm, its preprocessing that of its own configuration, without the crop.

    Parameters
    ----------
    target, preprocessing, weights, seed
        As for `from_torchvision`.

    Returns
    -------
    Encoder

    Raises
    ------
    ImportError, ValueError, FileNotFoundError
        As for `from_torchvision`.

    Examples
    --------
    >>> if not how_timm():
    ...     from_timm("resnet18", weights="random").card["licence"]
    ... else:
    ...     "apache-2.0"
    'apache-2.0'
    """
    name, layer = shared.split(target)
    spec = f"timm:{name}"
    timm = _package("timm", how_timm())
    known = timm.list_models()
    if name.split(".")[0] not in known:
        raise shared.unknown(name.split(".")[0], known, "network of timm")
    network, file, trained_on = _create(
        spec, lambda pretrained: timm.create_model(name, pretrained=pretrained), weights, seed
    )
    own = timm.data.resolve_model_data_config(network)
    options = {"input_size": tuple(own["input_size"][1:]), "mean": tuple(own["mean"]), "std": tuple(own["std"])}
    about = network.pretrained_cfg
    return wrap.of_module(
        f"timm:{target}",
        network,
        layer,
        options | dict(preprocessing or {}),
        file,
        task="object classification" if network.num_classes else "representation learning",
        family=about.get("architecture") or type(network).__name__,
        title=f"timm's {name}",
        trained_on=trained_on or f"timm's weights {about.get('tag') or 'without a tag'}",
        licence=about.get("license") or "not stated",
        sources=_version("timm"),
    )
