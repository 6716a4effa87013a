"""Any network by one string: ONNX files, the reader's own Python files, torchvision and timm.

`support.zoo.load` calls this module for the schemes in `SCHEMES`. What runs and what does not: an ONNX graph is data
and is interpreted with a fixed set of operators; a weight file (safetensors, or what torch saves of tensors) is data
and no object in it is made; ``python:`` runs the file that it names, with all that it can do.
"""

import contextlib
import difflib
import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import math
import os
import sys
import warnings
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from support import wheels
from support.sources import onnx

SCHEMES = {
    "onnx": "onnx:FILE[#tensor]",
    "python": "python:FILE.py:FACTORY[#layer.path]",
    "torchvision": "torchvision:NAME[#layer.path]",
    "timm": "timm:NAME[#layer.path]",
}
OWN = "own_"  # how the modules are called that python: makes of files
SIZE = 224  # pixels along a side of the images, where nothing else is said
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's channels, in [0, 1]


def load(spec, seed=None, *, preprocessing=None, weights=None):
    """An encoder from one of `SCHEMES`.

    **The representation** is the tensor (ONNX) or the output of the layer (as ``named_modules()`` calls it) that
    follows the ``#``. Without one it is the most compact features before the head, by this rule. Features have a place
    in the image, four axes and more than one position, and a learned layer (convolution or matrix) after them. The
    coarsest grid is taken. On it, what everything has to pass through: where a finer grid follows (a decoder) the
    narrowest, otherwise (pooling, flattening) the last; the last on that grid, where all is bypassed, as in a U-Net.
    If the last features are tokens, (image, token, channel), it is what the next learned layer reads, where that is
    one vector an image (the class token, or a mean), and otherwise the tokens. A network in which nothing has a place:
    the last vector before a learned layer. An object of a class with a method ``represent``, and networks with timm's
    ``forward_features`` and ``forward_head``, say themselves what it is. `Encoder.card` has the choice and, as
    "alternatives", the last features on each grid with their channels and positions.

    **Its axes**: the two axes that stand to each other as height and width of the image are y and x, and the channels
    are put before them; tokens are averaged.

    **The preprocessing** of torchvision and timm is that of their own configuration, without the crop. Other networks
    get RGB images of the size that the file declares (224 × 224 where it is free), normalised with ImageNet's mean and
    standard deviation, unless `preprocessing` says otherwise.

    Parameters
    ----------
    spec : str
        ``"onnx:FILE[#tensor]"``, opset 9 to 20; ``"python:FILE.py:FACTORY[#layer.path]"``, where FACTORY takes no
        argument and returns a torch.nn.Module, or a `support.zoo.Encoder` with its own preprocessing;
        ``"torchvision:NAME[#layer.path]"`` or ``"timm:NAME[#layer.path]"``, any of their registered architectures.
    seed : int, optional
        Of ``weights="random"``, 0 when None.
    preprocessing : dict, optional
        From the arguments of `support.zoo.Encoder`: input_size, scale, mean, std, channels, layout.
    weights : str or Path, optional
        Of torchvision and timm: ``"pretrained"`` (downloaded from their hub; the default) or ``"random"``. Of these two
        and of python: a file, .safetensors or what torch saves of a state dictionary, for the whole network.

    Returns
    -------
    support.zoo.Encoder
        Named as in `spec`, without the folder.

    Raises
    ------
    ValueError
        A spec of another form; an unknown name, layer, tensor or preprocessing key (the nearest known ones are named);
        an operator that cannot be converted (named), or another opset; weights that do not fit, are damaged or hold
        other objects than tensors; a representation that is no tensor with an axis of images, is not finite, depends
        on other images of the batch, or has no gradient.
    FileNotFoundError
        A file that is not there, or pre-trained weights that cannot be downloaded.
    ImportError
        A package is missing, or is not of this torch; the message gives the command.

    Warns
    -----
    UserWarning
        The mean of the representation's units does not depend on the image.
    """
    from support.zoo import Encoder  # which itself imports this module

    known = set(inspect.signature(Encoder).parameters) - {"name", "network", "task", "family", "represent", "card"}
    unknown = set(preprocessing or {}) - known
    if unknown:
        raise ValueError(f"unknown preprocessing {', '.join(sorted(unknown))}; known: {', '.join(sorted(known))}")
    scheme, _, rest = spec.partition(":")
    target, layer = _split(rest)
    if not target:
        raise ValueError(f"{spec!r} names no network, expected {SCHEMES[scheme]}")
    if seed is not None and weights != "random":
        raise ValueError(
            f"{spec} has no seed, only random weights and the networks of the task bank have: leave it out"
        )
    readers = {"onnx": onnx.from_file, "python": _from_python, "torchvision": _from_torchvision, "timm": _from_timm}
    made = readers[scheme](target, layer, dict(preprocessing or {}), weights, seed or 0)
    made.name = f"{scheme}:{Path(target).name}" + (f"#{layer}" if layer else "")
    _check(made)
    return made


def how(scheme):
    """Command that makes a scheme usable.

    Parameters
    ----------
    scheme : str
        One of `SCHEMES`.

    Returns
    -------
    str
        Empty when it is usable.
    """
    if scheme == "onnx":
        missing = importlib.util.find_spec("onnx2torch") is None
        return f"pip install --no-deps onnx2torch=={onnx.ONNX2TORCH_VERSION}" if missing else ""
    if scheme == "python":
        return ""
    commands = []
    if not _works("torchvision"):
        installed = importlib.util.find_spec("torchvision") is not None
        commands.append(f"pip install {'--force-reinstall --no-deps ' if installed else ''}{_matching_torchvision()}")
    if scheme == "timm" and (commands or not _works("timm")):
        commands.append("pip install timm")
    return " && ".join(commands)


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


def _package(scheme):
    command = how(scheme)
    if command:
        raise ImportError(f"{SCHEMES[scheme]} needs a torchvision built for torch {torch.__version__}: {command}")
    return importlib.import_module(scheme)


def _split(rest):
    """Target and representation of "TARGET#REPRESENTATION"; the latter empty where there is none."""
    if Path(rest).is_file():  # a number sign in its name
        return rest, ""
    target, _, layer = rest.partition("#")
    return target, layer


def _file(path):
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path} (looked for in {Path.cwd()})")
    return path


def _name_among(name, known, what):
    near = difflib.get_close_matches(name, known, 3, cutoff=0.4) or list(known)[-3:]
    return f"unknown {what} {name!r}; near it are {', '.join(map(repr, near))}"


def _first_line(error):
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _count(network):
    tensors = {tensor.data_ptr(): tensor for tensor in [*network.parameters(), *network.buffers()]}
    return sum(tensor.numel() for tensor in tensors.values() if tensor.is_floating_point())


# which tensor


class Feature(NamedTuple):
    """What one layer makes (or, `of` "input", reads) for one image."""

    name: str
    shape: tuple  # without the axis of images
    order: int  # when
    of: str = "output"
    goes_on: bool = True  # whether it may reach a learned layer


def _grid(shape, size):
    """Channels and (height, width) of one image's features; the channels may be last."""

    def is_reduced(height, width):  # by the same factor in both directions, up to rounding
        return abs(height - width * size[0] / size[1]) < 1

    channels_last = is_reduced(*shape[:2]) and not is_reduced(*shape[1:])
    return (shape[2], shape[:2]) if channels_last else (shape[0], shape[1:])


def _positions(shape, size):
    return math.prod(_grid(shape, size)[1]) if len(shape) == 3 else 0


def choose(made, read, results, size, is_passed):
    """The representation, by the rule of `load`.

    Parameters
    ----------
    made : list of Feature
        What the layers make, in the order in which they run.
    read : list of Feature
        What the learned layers read, in the same order.
    results : list of tuple of int
        Shapes of what the network as a whole gives for one image.
    size : tuple of int
        (height, width) of the images.
    is_passed : callable
        Feature → whether all that the network says depends on the images through it alone.

    Returns
    -------
    Feature, dict of str to str
        The choice, and the last features on every grid, from fine to coarse.

    Raises
    ------
    ValueError
        Nothing comes before a learned layer.
    """
    last_read = max((feature.order for feature in read), default=0)
    before = [feature for feature in made if feature.order < last_read and feature.goes_on]
    maps = [feature for feature in before if _positions(feature.shape, size) > 1]
    tokens = [feature for feature in before if len(feature.shape) == 2 and feature.shape[0] > 1]
    if not maps and not tokens:
        vectors = [feature for feature in before if math.prod(feature.shape) > 1]
        if not vectors:
            raise ValueError("no layer comes before a learned one: name the representation after a #")
        return vectors[-1], {vectors[-1].name: f"{math.prod(vectors[-1].shape)} features"}
    if not maps or (tokens and tokens[-1].order > maps[-1].order):
        last = tokens[-1]
        head = next(feature for feature in read if feature.order > last.order)
        alternatives = {last.name: "{} tokens of {} channels".format(*last.shape)}
        return (head if len(head.shape) == 1 else last), alternatives
    grids = {}
    for feature in maps:
        grids.setdefault(_positions(feature.shape, size), []).append(feature)
    alternatives = {}
    for _, features in sorted(grids.items(), reverse=True):
        channels, (height, width) = _grid(features[-1].shape, size)
        alternatives[features[-1].name] = f"{channels} × {height} × {width}"
    candidates = grids[min(grids)]
    later = [feature.shape for feature in made if feature.order > candidates[-1].order] + list(results)
    if any(_positions(shape, size) > min(grids) for shape in later):  # a decoder: the narrowest, last of equals, first
        order = sorted(candidates, key=lambda feature: (_grid(feature.shape, size)[0], -feature.order))
    else:
        order = candidates[::-1]
    return next((feature for feature in order if is_passed(feature)), candidates[-1]), alternatives


def _trial(size, layout, n_channels=3):
    """Two random images for a network, alike from call to call."""
    images = torch.randn(2, n_channels, *size, generator=torch.Generator().manual_seed(0))
    return images.permute(0, 2, 3, 1).contiguous() if layout == "NHWC" else images


def _tensors(value):
    if torch.is_tensor(value):
        return [value]
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else []
    return [tensor for one in values for tensor in _tensors(one)]


def _shape(value):
    """Shape of what is made for one of two images; None where there is no axis of images."""
    return tuple(value.shape[1:]) if torch.is_tensor(value) and value.ndim > 1 and len(value) == 2 else None


class _Tap:
    """What a layer of a network makes or reads, as the rest of the network gets it, when the network is called."""

    def __init__(self, network, layer, of="output", size=None):
        modules = dict(network.named_modules())
        if layer not in modules:
            raise ValueError(_name_among(layer, [name for name in modules if name], "layer"))
        self.network, self.layer, self.of, self.size = network, layer, of, size
        self._module = modules[layer]

    def __call__(self, inputs):
        caught = []
        if self.of == "input":
            handle = self._module.register_forward_pre_hook(lambda _, values: caught.append(values[0]))
        else:
            handle = self._module.register_forward_hook(lambda _, values, made: caught.append(made))
        try:
            self.network(inputs)
        finally:
            handle.remove()
        if not caught:
            raise ValueError(f"layer {self.layer!r} is not called when the network is")
        if not torch.is_tensor(caught[-1]):
            kind = type(caught[-1]).__name__
            raise ValueError(f"layer {self.layer!r} makes a {kind}, expected one tensor: name a layer inside it")
        return _orient(caught[-1], self.size)


def _orient(values, size):
    """Representation as (image, channel, y, x) or (image, features)."""
    if values.ndim == 3:
        return values.mean(1)
    if values.ndim == 4:
        _, grid = _grid(values.shape[1:], size)
        return values if grid == values.shape[2:] else values.permute(0, 3, 1, 2)
    return values


def _layers(network, inputs):
    """What the layers of a torch network make and its learned layers read: `choose`'s arguments but the size."""
    made, read, handles, nodes = [], [], [], {}
    order = iter(range(sys.maxsize))
    inputs = inputs.clone().requires_grad_().clone()

    def entering(name, module):
        learned = any(parameter.ndim > 1 for parameter in module.parameters(recurse=False))

        def hook(_, values):
            if learned and values and _shape(values[0]):
                read.append(Feature(name, _shape(values[0]), next(order), "input"))

        return hook

    def leaving(name):
        def hook(_, values, result):
            if _shape(result):
                made.append(Feature(name, _shape(result), next(order)))
                nodes[name] = result.grad_fn

        return hook

    for name, module in network.named_modules():
        if name:
            handles.append(module.register_forward_pre_hook(entering(name, module)))
            handles.append(module.register_forward_hook(leaving(name)))
    try:
        results = _tensors(network(inputs))
    finally:
        for handle in handles:
            handle.remove()
    latest = {feature.name: feature for feature in made}  # a layer that runs twice counts where it runs last
    made = sorted(latest.values(), key=lambda feature: feature.order)
    ends = [tensor.grad_fn for tensor in results]
    passed = functools.partial(_is_passed, nodes, inputs.grad_fn, ends)
    return made, read, [_shape(tensor) for tensor in results if _shape(tensor)], passed


def _is_passed(nodes, start, ends, feature):
    """Whether every way back through autograd's graph, from the results to the images, goes through one layer."""
    seen, waiting = {None, nodes[feature.name]}, list(ends)
    while waiting:
        node = waiting.pop()
        if node is start:
            return False
        if node not in seen:
            seen.add(node)
            waiting += [before for before, _ in node.next_functions]
    return True


def _represent(network, layer, inputs, size):
    """R of a torch network, what to say of it, and the alternatives."""
    if layer:
        return _Tap(network, layer, size=size), f"the output of {layer}", {}
    if hasattr(network, "represent"):
        return (lambda values: _orient(network.represent(values), size)), "what the network's `represent` gives", {}
    if hasattr(network, "forward_features") and hasattr(network, "forward_head"):
        return functools.partial(_timm_features, network, size), "the features before timm's forward_head", {}
    made, read, results, is_passed = _layers(network, inputs)
    chosen, alternatives = choose(made, read, results, size, is_passed)
    return _Tap(network, chosen.name, chosen.of, size), f"the {chosen.of} of {chosen.name}", alternatives


def _timm_features(network, size, inputs):
    features = network.forward_features(inputs)
    return _orient(features, size) if features.ndim == 4 else network.forward_head(features, pre_logits=True)


def _check(encoder):
    """Refuse a representation that attribution could do nothing with."""
    shape = encoder.preprocess(torch.full((1, 8, 8, 3), 0.5)).shape
    inputs = torch.randn(2, *shape[1:], generator=torch.Generator().manual_seed(0)).requires_grad_()
    try:
        units = encoder.represent(inputs)
    except (RuntimeError, TypeError, AttributeError, NotImplementedError) as error:
        sizes = " × ".join(map(str, encoder.input_size))
        raise ValueError(
            f"{encoder.name} cannot be run with two images of {sizes} pixels, {encoder.channels}, {encoder.layout}; "
            f"preprocessing can say otherwise. It says: {_first_line(error)}"
        ) from error
    if not torch.is_tensor(units) or units.ndim not in (2, 4) or len(units) != 2 or not units.is_floating_point():
        what = f"a tensor of shape {tuple(units.shape)}" if torch.is_tensor(units) else f"a {type(units).__name__}"
        raise ValueError(f"{encoder.name}: the representation of two images is {what}, expected an axis of two images")
    if not torch.isfinite(units).all():
        raise ValueError(f"{encoder.name}: the representation of random images is not finite")
    signs = torch.randint(0, 2, units.shape, generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    slopes = [torch.zeros_like(inputs)] * 2
    if units.requires_grad:
        means = [values.flatten(1).mean(1)[0] for values in (units, units * signs)]
        slopes = [torch.autograd.grad(mean, inputs, retain_graph=True)[0].abs() for mean in means]
    if slopes[1][1].max() > 0:
        raise ValueError(f"{encoder.name}: the representation of an image depends on the other images of the batch")
    if not slopes[1][0].max() > 0:
        raise ValueError(
            f"{encoder.name}: the representation has no gradient with respect to the image: name another layer or "
            "tensor after a #"
        )
    if slopes[0][0].max() < 1e-5 * slopes[1][0].max():
        warnings.warn(
            f"{encoder.name}: the mean of the representation's units does not depend on the image, so that the methods "
            "of the paper have nothing to attribute (so it is after a softmax, and after a layer norm with random "
            "weights); name an earlier layer or tensor after a #",
            stacklevel=4,
        )


def _encoder(network, represent, preprocessing, *, task="not stated", family, representation, alternatives, file=None,
             title=None, trained_on="not stated", licence="not stated"):  # fmt: skip
    from support.zoo import Encoder

    card = {"title": title or Path(file).name, "trained_on": trained_on, "licence": licence}
    if file is not None:
        card |= {"file": Path(file).name, "sha256": wheels.sha256(file)}
    card |= {"parameters": _count(network), "representation": f"{representation[0].upper()}{representation[1:]}."}
    card["alternatives"] = alternatives
    grey = preprocessing.get("channels") == "GREY"
    normal = {"mean": sum(MEAN) / 3, "std": sum(STD) / 3} if grey else {"mean": MEAN, "std": STD}
    options = {"input_size": (SIZE, SIZE)} | normal | preprocessing
    return Encoder("", network, task=task, family=family, represent=represent, card=card, **options)


def _from_module(network, layer, preprocessing, weights, **about):
    """Encoder of a torch network; weights, where there are any, from a file."""
    if weights is not None:
        _restore(network, _file(weights))
        about["trained_on"] = f"not stated; weights of {Path(weights).name}, SHA-256 {wheels.sha256(_file(weights))}"
    network.eval().requires_grad_(False)
    size = tuple(preprocessing.setdefault("input_size", (SIZE, SIZE)))
    n_channels = 1 if preprocessing.get("channels") == "GREY" else 3
    inputs = _trial(size, preprocessing.get("layout", "NCHW"), n_channels)
    try:
        represent, representation, alternatives = _represent(network, layer, inputs, size)
    except (RuntimeError, TypeError, AttributeError, NotImplementedError) as error:
        raise ValueError(
            f"a {type(network).__name__} cannot be called with a tensor of shape {tuple(inputs.shape)}; preprocessing "
            f"can say otherwise. It says: {_first_line(error)}"
        ) from error
    return _encoder(
        network, represent, preprocessing, representation=representation, alternatives=alternatives, **about
    )


def _restore(network, path):
    """Put the tensors of a file into a network; nothing in the file is run."""
    try:
        if path.suffix == ".safetensors":
            state = safetensors.torch.load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except (SafetensorError, Exception):  # whatever its reader stumbles over
        raise ValueError(
            f"{path} is damaged, or holds other objects than tensors and plain values, which could run code: not loaded"
        ) from None
    state = state.get("state_dict", state) if isinstance(state, dict) else None
    if not isinstance(state, dict) or not all(torch.is_tensor(value) for value in state.values()):
        raise ValueError(f"{path} holds no state dictionary, expected tensors by name (or these as 'state_dict')")
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{path.name} has not the weights of a {type(network).__name__}: {error}") from None


# python


def _from_python(target, layer, preprocessing, weights, seed):
    file, _, factory = target.rpartition(":")
    if not file or not factory.isidentifier():
        raise ValueError(f"python:{target} names no factory, expected {SCHEMES['python']}")
    if weights == "random":
        raise ValueError("what a factory makes is its own affair: leave out weights, or name a file")
    path = _file(file).resolve()
    make = _function(path, factory)
    network = make()
    about = {"file": path, "title": f"{factory} of {path.name}"}
    from support.zoo import Encoder

    if isinstance(network, Encoder):
        if layer or preprocessing or weights is not None:
            raise ValueError(
                f"{factory} of {path.name} makes an Encoder, which has its representation, preprocessing and weights: "
                "say nothing else, or let it return the network"
            )
        network.card.setdefault("file", path.name)
        return network
    if not isinstance(network, nn.Module):
        raise ValueError(f"{factory} of {path.name} makes a {type(network).__name__}, expected a torch.nn.Module")
    return _from_module(network, layer, preprocessing, weights, family=type(network).__name__, **about)


def _function(path, name):
    """A function (or class) of a Python file, which runs; modules beside the file can be imported by it."""
    unique = f"{OWN}{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    specification = importlib.util.spec_from_file_location(unique, path)
    if specification is None:
        raise ValueError(f"{path.name} is no Python file: its name has to end in .py")
    module = importlib.util.module_from_spec(specification)
    sys.modules[unique] = module
    sys.path.insert(0, str(path.parent))
    try:
        specification.loader.exec_module(module)
    except BaseException:
        del sys.modules[unique]
        raise
    finally:
        sys.path.remove(str(path.parent))
    function = getattr(module, name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ValueError(f"{path.name}: {_name_among(name, known, 'factory')}")
    return function


# torchvision and timm


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


def _create(scheme, name, make, weights, seed):
    """A network of a package by `make` (pre-trained or not → network), and what is to be said of random weights."""
    if weights not in (None, "pretrained"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return make(False), f"nothing: random weights of seed {seed}"
    try:
        with _weights_only():
            return make(True), ""
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"the pre-trained weights of {scheme}:{name} could not be had ({type(error).__name__}: {error}). Without a "
            'connection: weights="random", or weights=FILE with a state dictionary'
        ) from error


def _from_torchvision(name, layer, preprocessing, weights, seed):
    models = importlib.import_module("torchvision.models") if _package("torchvision") else None
    known = models.list_models()
    if name not in known:
        raise ValueError(_name_among(name, known, "network of torchvision"))
    kind = models.get_model_builder(name).__module__.split(".")
    if {"detection", "video", "optical_flow", "quantization"}.intersection(kind):
        raise ValueError(f"torchvision:{name} is of {'.'.join(kind)}: it takes no batch of images, or has no gradient")
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
    network, trained_on = _create("torchvision", name, make, weights, seed)
    own = trained.transforms() if trained is not None else None
    length = getattr(own, "crop_size", None) or getattr(own, "resize_size", None) or [SIZE]
    length = [length] if isinstance(length, int) else list(length)
    options = {"input_size": (length[0], length[-1])}
    options |= {key: tuple(getattr(own, key)) for key in ("mean", "std") if hasattr(own, key)}
    return _from_module(
        network,
        layer,
        options | preprocessing,
        None if weights in ("pretrained", "random") else weights,
        task="semantic segmentation" if "segmentation" in kind else "object classification",
        family=type(network).__name__,
        title=f"torchvision's {name}",
        trained_on=trained_on or str(trained),
    )


def _from_timm(name, layer, preprocessing, weights, seed):
    timm = _package("timm")
    known = timm.list_models()
    if name.split(".")[0] not in known:
        raise ValueError(_name_among(name.split(".")[0], known, "network of timm"))
    network, trained_on = _create(
        "timm", name, lambda pretrained: timm.create_model(name, pretrained=pretrained), weights, seed
    )
    own = timm.data.resolve_model_data_config(network)
    options = {"input_size": tuple(own["input_size"][1:]), "mean": tuple(own["mean"]), "std": tuple(own["std"])}
    cfg = network.pretrained_cfg
    return _from_module(
        network,
        layer,
        options | preprocessing,
        None if weights in ("pretrained", "random") else weights,
        task="object classification" if network.num_classes else "representation learning",
        family=cfg.get("architecture") or type(network).__name__,
        title=f"timm's {name}",
        trained_on=f"timm's weights {cfg.get('tag') or 'without a tag'}"
        if trained_on == "see the package"
        else trained_on,
        licence=cfg.get("license") or "not stated",
    )
