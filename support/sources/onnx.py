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
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import torch
from onnx import TensorProto, numpy_helper, reference
from torch import nn

from support.encoder import SINGLE, Encoder
from support.sources import onnx_graph, onnx_operators, representation, shared, wrap
from support.sources.representation import shape_of_one

ONNX2TORCH_VERSION = "1.5.15"
TOLERANCE = 1e-3  # of a converted tensor, in units of its root mean square over one image
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
    takes: tuple
    named: dict  # arguments after one that is left out
    makes: tuple


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

    def __init__(self, image, results, steps, parts):
        super().__init__()
        self.image, self.results, self.steps = image, list(results), list(steps)
        for name, part in parts.items():
            self.add_module(name, part)
        self._last = {name: None for name in self.results}  # tensor → step after which it is not needed
        for number, step in reversed(list(enumerate(self.steps))):
            for name in (*step.takes, *step.named.values(), *step.makes):
                self._last.setdefault(name, number)

    def forward(self, images, watch=None):
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

    def until(self, results):
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

    def __init__(self, whole, cut, channels_last):
        super().__init__()
        self.whole = whole
        self.cut = cut
        self.channels_last = channels_last

    def represent(self, inputs):
        """The representation, (image, channel, y, x) or (image, features); what comes after it is not computed."""
        values = self.cut(inputs)
        return values.permute(0, 3, 1, 2) if self.channels_last else values

    def forward(self, inputs):
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


def _network(path):
    """The graph of a file, renamed, and the SHA-256 of the file and its external data."""
    _converter()
    model, size, digest = onnx_graph.read(Path(path))
    return onnx_graph.rename(model, size, _converts), model.producer_name, digest


def convert(network, input_shape):
    """Differentiable torch network from a graph; the batch axis is free.

    Own converters (`support.sources.onnx_operators`) come first, onnx2torch's are used for all else. That package
    imports torchvision for two operators, non-maximum suppression and RoI align. Where torchvision cannot be imported,
    a stand-in takes its place in ``sys.modules`` during that import and is removed again; running one of the two
    operators then raises ImportError.

    Parameters
    ----------
    network : onnx_graph.Network
        The graph.
    input_shape : tuple of int
        Shape of one image in the graph's own layout, e.g. (3, 224, 224); replaces the shape the file declares.

    Returns
    -------
    Graph
        Its tensors have the names of `network`.

    Raises
    ------
    ValueError
        The graph has another number of axes than `input_shape` and the batch axis together; its shapes do not fit; it
        needs too much memory or time; an operator cannot be converted (it is named).
    NotImplementedError
        An operator can be converted, but not with these attributes.
    """
    if len(network.axes) != len(input_shape) + 1:
        raise ValueError(
            f"input_shape {tuple(input_shape)} has {len(input_shape)} axes, "
            f"the graph expects {len(network.axes) - 1} and the batch axis"
        )
    two = onnx_graph.shapes(network, input_shape, 2, is_bounded=True)
    free = onnx_graph.free(two, onnx_graph.shapes(network, input_shape, 7))
    graph = onnx_graph.fold(network, free)
    onnx_graph.refuse_operators(graph.node, network.opset, _converts, network.names)
    onnx_operators.pad_explicitly(graph, two)
    classes = importlib.import_module("onnx2torch.onnx_graph")
    view, steps, parts = classes.OnnxGraph(graph), [], {}
    constants = {tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in graph.initializer}
    for proto, node in zip(graph.node, view.nodes.values(), strict=True):
        ours = onnx_operators.OPERATORS.get(proto.op_type)
        made = ours(onnx_operators.Node(proto, network.opset, free, two, constants)) if ours else None
        if made is None:
            converter = _library(proto.op_type, network.opset)
            if converter is None:
                raise NotImplementedError(f"{proto.op_type} with these attributes cannot be converted")
            made, (inputs, _) = converter(node, view)
        else:
            made, inputs = made
        if "" in inputs:
            first = list(inputs).index("")
            keys = list(inspect.signature(made.forward).parameters)[first : len(inputs)]
            named = {key: name for key, name in zip(keys, inputs[first:], strict=True) if name}
            inputs = inputs[:first]
        else:
            named = {}
        parts[node.unique_name] = made
        steps.append(Step(node.unique_name, proto.op_type, tuple(inputs), named, tuple(proto.output)))
    holder = nn.Module()
    taken = {name for step in steps for name in (*step.takes, *step.named.values())}
    results = [value.name for value in graph.output]
    for name in constants:
        if name in taken or name in results:
            holder.register_buffer(name, constants[name])
    return Graph(network.image, results, steps, parts | {"initializers": holder}).eval().requires_grad_(False)


def cut(whole, network, representation, channels_last=False):
    """A converted graph together with its part up to the representation.

    Parameters
    ----------
    whole : Graph
        As `convert` gives it.
    network : onnx_graph.Network
        The graph, for the file's names.
    representation : str
        The file's name of the tensor that is the representation.
    channels_last : bool, optional
        As for `load`.

    Returns
    -------
    OnnxNetwork

    Raises
    ------
    ValueError
        The graph computes no tensor of that name from the image.
    """
    made = {network.names[name]: name for step in whole.steps for name in step.makes if name}
    if representation not in made:
        near = difflib.get_close_matches(representation, made, 3) or list(made)[-3:]
        near = ", ".join(map(onnx_graph.shown, near))
        shown = onnx_graph.shown(representation)
        raise ValueError(f"the graph computes no tensor named {shown} from the image; it has {near}")
    return OnnxNetwork(whole.until(whole.results), whole.until([made[representation]]), channels_last)


def load(path, representation, input_shape, channels_last=False):
    """A file of which it is known that it is converted rightly.

    Parameters
    ----------
    path : str or Path
        An ONNX file.
    representation : str
        Name of the ONNX tensor that is the representation.
    input_shape : tuple of int
        Shape of one image in the graph's own layout, e.g. (3, 224, 224); replaces the shape the file declares.
    channels_last : bool, optional
        The representation is (image, y, x, channel) in the graph; `OnnxNetwork.represent` turns it.

    Returns
    -------
    OnnxNetwork

    Raises
    ------
    ValueError, NotImplementedError
        As for `onnx_graph.read`, `onnx_graph.rename`, `convert` and `cut`.
    ImportError
        onnx2torch is not installed.
    """
    network, _, _ = _network(path)
    return cut(convert(network, input_shape), network, representation, channels_last)


# comparison


def expected(network, input_shape, tensors, images):
    """Tensors of a graph as a reference computes them: onnxruntime, or, where it is not installed, onnx itself.

    The reference gets the graph as it was before anything was folded or converted, without optimisation.

    Parameters
    ----------
    network : onnx_graph.Network
        The graph.
    input_shape : tuple of int
        Shape of one image.
    tensors : iterable of str
        Names of tensors, our own.
    images : numpy.ndarray
        A batch, float32.

    Returns
    -------
    dict of str to numpy.ndarray
        By the names.
    str
        What the reference is called.

    Raises
    ------
    ValueError
        It cannot compute them.
    """
    tensors = list(dict.fromkeys(tensors))
    model = onnx.ModelProto()
    model.CopyFrom(network.model)
    del model.graph.output[:]
    image = onnx.helper.make_tensor_value_info(network.image, TensorProto.FLOAT, ["image", *input_shape])
    model.graph.input.append(image)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors)
    try:
        runtime = importlib.import_module("onnxruntime")
    except ImportError:
        run, name = reference.ReferenceEvaluator(model).run, "onnx.reference"
    else:
        options = runtime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4
        run = runtime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"]).run
        name = "onnxruntime"
    return dict(zip(tensors, map(np.asarray, run(None, {network.image: images})), strict=True)), name


def deviation(found, wanted):
    """How far a tensor is from what it should be.

    Parameters
    ----------
    found, wanted : numpy.ndarray
        Two tensors, (image, …).

    Returns
    -------
    float
        Largest difference, in units of the root mean square of `wanted` over the image in question; the share of
        elements that differ, where these are no floats. Infinite for another shape or type, or where only one of the
        two is finite.

    Examples
    --------
    >>> import numpy as np
    >>> round(deviation(np.array([[1.0, 1.1]]), np.array([[1.0, 1.0]])), 3)
    0.1
    """
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        return np.inf
    if not np.issubdtype(wanted.dtype, np.floating):
        return float((found != wanted).mean()) if wanted.size else 0.0
    largest = 0.0
    for ours, theirs in zip(np.atleast_1d(found), np.atleast_1d(wanted), strict=True):
        is_finite = np.isfinite(theirs)
        if not np.array_equal(ours[~is_finite], theirs[~is_finite], equal_nan=True):
            return np.inf
        theirs, ours = theirs[is_finite].astype(np.float64), ours[is_finite].astype(np.float64)
        difference = np.abs(ours - theirs).max(initial=0)
        if difference > 1e-9 or np.isnan(difference):
            size = np.sqrt((theirs**2).mean())
            largest = max(largest, float(difference / size)) if size and np.isfinite(difference) else np.inf
    return largest


def compare(network, whole, input_shape, representation):
    """Refuse a converted graph whose outputs or representation are not those of the reference.

    Parameters
    ----------
    network : onnx_graph.Network
        The graph.
    whole : Graph
        As `convert` makes it.
    input_shape : tuple of int
        Shape of one image.
    representation : str
        Our own name of the tensor that is the representation.

    Raises
    ------
    ValueError
        A tensor deviates by more than `TOLERANCE`; the first one is named, with its operator.
    """
    shape = (2, *input_shape)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    images[1] *= 10  # small values do not reach the ends of what is clipped
    kept, kinds = {}, {}

    def watch(step, _, made):
        kinds.update(dict.fromkeys(step.makes, step.kind))
        kept.update({name: v.numpy() for name, v in zip(step.makes, made, strict=False) if name and name in wanted})

    wanted = {name for name in [*whole.results, representation] if any(name in step.makes for step in whole.steps)}
    with torch.no_grad():
        whole(images, watch)
    right, by = expected(network, input_shape, wanted, images.numpy())
    if all(deviation(kept[name], right[name]) <= TOLERANCE for name in wanted):
        return
    wanted = {name for step in whole.steps for name in step.makes if name}
    with torch.no_grad():
        whole(images, watch)
    right, _ = expected(network, input_shape, wanted, images.numpy())
    for name in (name for step in whole.steps for name in step.makes if name):
        found = deviation(kept[name], right[name])
        if found > TOLERANCE:
            ours, theirs = (f"{values.dtype} {values.shape}" for values in (kept[name], right[name]))
            what = f"is {ours}, expected {theirs}" if ours != theirs else f"deviates by {found:.1e} of its size"
            raise ValueError(
                f"the tensor {onnx_graph.shown(network.names[name])}, which {kinds[name]} makes, {what} from what {by} "
                f"computes for two random images (allowed: {TOLERANCE:.0e}): the graph is not converted rightly"
            )


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
    """
    place, tensor = shared.split(target)
    path = shared.existing(place)
    name = f"onnx:{path.name}" + (f"#{tensor}" if tensor else "")
    with _naming(path):
        network, producer, digest = _network(path)
        preprocessing, n_channels = _preprocessing(network.axes, dict(preprocessing or {}))
    size, layout = preprocessing["input_size"], preprocessing["layout"]
    shape = (*size, n_channels) if layout == "NHWC" else (n_channels, *size)
    with _naming(path, network):
        whole = convert(network, shape)
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
            results = [shape for result in results if (shape := shape_of_one(result))]
            passed = functools.partial(_is_passed, whole)
            feature, alternatives = representation.choose(record.made, record.read, results, size, passed)
            tensor = network.names[feature.name]
            alternatives = {network.names[name]: text for name, text in alternatives.items()}
        made = cut(whole, network, tensor)
        compare(network, whole, shape, made.cut.results[0])
    encoder = wrap.encoder(
        name,
        made,
        functools.partial(representation.said, made, size),
        preprocessing,
        family=f"ONNX graph{f' of {onnx_graph.shown(producer)[1:-1]}' if producer else ''}",
        file=path,
        sources={"graph": digest},
    )
    encoder.card |= {"sha256": digest, "representation": f"The tensor {tensor}.", "alternatives": alternatives}
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
