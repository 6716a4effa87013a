"""ONNX graphs as differentiable torch modules, cut at the tensor that is their representation."""

import contextlib
import difflib
import importlib
import operator
import sys
import types

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper, reference, shape_inference
from torch import fx, nn

ONNX2TORCH_VERSION = "1.5.15"


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


def _find(converted, tensor):
    """The node of the converted graph that makes an ONNX tensor, as (node, output number or None)."""
    names = []
    for node in converted.graph.nodes:
        if node.op == "call_module":
            outputs = converted.get_submodule(node.target).onnx_mapping.outputs
            if tensor in outputs:
                return node, outputs.index(tensor) if len(outputs) > 1 else None
            names += outputs
    near = difflib.get_close_matches(tensor, names, 3) or names[-3:]
    near = ", ".join(map(repr, near))
    raise ValueError(f"the graph computes no tensor named {tensor!r} from the image; it has {near}")


def _part(converted, tensor):
    """The part of a converted graph that makes one ONNX tensor; its modules are those of the whole."""
    last, number = _find(converted, tensor)
    graph, copies = fx.Graph(), {}
    graph.graph_copy(converted.graph, copies)
    result = copies[last]
    if number is not None:
        result = graph.call_function(operator.getitem, (result, number))
    graph.output(result)
    part = fx.GraphModule(converted, graph)
    part.graph.eliminate_dead_code()
    return fx.GraphModule(part, part.graph)  # takes along only the modules that the shortened graph still calls


def _dimensions(value):
    """Sizes of the axes of a value of the graph; None for a free axis."""
    return [axis.dim_value if axis.HasField("dim_value") else None for axis in value.type.tensor_type.shape.dim]


def _evaluate(node, constants, model):
    """Outputs of one node whose inputs are all constants."""
    arrays = [numpy_helper.from_array(constants[name], name) for name in dict.fromkeys(node.input) if name]
    outputs = [helper.make_empty_tensor_value_info(name) for name in node.output if name]
    graph = helper.make_graph([node], "constant", [], outputs, arrays)
    alone = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    return zip([value.name for value in outputs], reference.ReferenceEvaluator(alone).run(None, {}), strict=True)


def _known_sizes(node, sizes, constants, model):
    """The axis lengths that a Gather or Slice node picks from a shape, where all of them are known; else None."""
    shape = sizes.get(node.input[0]) if node.op_type in ("Gather", "Slice") else None
    if not shape or not all(name in constants for name in node.input[1:] if name):
        return None
    lengths = np.array([-1 if length is None else length for length in shape], np.int64)
    ((_, picked),) = _evaluate(node, {**constants, node.input[0]: lengths}, model)
    return picked if picked.size and (picked >= 0).all() else None


def _fold(model):
    """Replace, in place, the nodes that do not depend on the image by constants."""
    graph = model.graph
    inferred = shape_inference.infer_shapes(model).graph
    shapes = {value.name: _dimensions(value) for value in [*inferred.input, *inferred.value_info]}
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    results = {value.name for value in graph.output}
    sizes, kept = {}, []
    for node in graph.node:
        if node.op_type == "Shape" and not node.attribute:
            sizes[node.output[0]] = shapes.get(node.input[0], [])
        if node.op_type == "Cast" and node.input[0] in sizes:
            sizes[node.output[0]] = sizes[node.input[0]]
        size = _known_sizes(node, sizes, constants, model)
        known = node.op_type == "Constant" or (node.input and all(name in constants for name in node.input if name))
        nested = any(attribute.HasField("g") for attribute in node.attribute)
        if results.intersection(node.output) or nested or not (known or size is not None):
            kept.append(node)
        elif size is not None:
            constants[node.output[0]] = size
        else:
            constants.update(_evaluate(node, constants, model))
    used = {name for node in kept for name in node.input}
    arrays = [numpy_helper.from_array(constants[name], name) for name in constants if name in used]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(kept)
    graph.initializer.extend(arrays)


def _fixed(model, input_shape):
    """Copy of a graph for images of one shape, batch axis free, with all that does not depend on the image a constant.

    Exporters leave arithmetic on shapes in the graph (how much to pad, for one); here it is done once. Folding one
    piece lets shape inference see further, so it is repeated until nothing changes.
    """
    if isinstance(model, onnx.ModelProto):
        original, model = model, onnx.ModelProto()
        model.CopyFrom(original)
    else:
        model = onnx.load(model)
    graph = model.graph
    initialised = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in initialised]
    if len(inputs) != 1:
        raise ValueError(f"the graph has {len(inputs)} inputs, expected one: a batch of images")
    declared = inputs[0].type.tensor_type
    if len(declared.shape.dim) != len(input_shape) + 1:
        raise ValueError(
            f"input_shape {tuple(input_shape)} has {len(input_shape)} axes, "
            f"the graph expects {len(declared.shape.dim) - 1} and the batch axis"
        )
    image = helper.make_tensor_value_info(inputs[0].name, declared.elem_type, ["image", *input_shape])
    del graph.input[:], graph.value_info[:]
    graph.input.append(image)
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")
    before = None
    while before != len(graph.node):
        before = len(graph.node)
        _fold(model)
    return model


def image_input(model):
    """The input of a graph that takes the images.

    Parameters
    ----------
    model : onnx.ModelProto
        The graph.

    Returns
    -------
    list of (int or None)
        Lengths of its axes, with that of the images; None for a free one.

    Raises
    ------
    ValueError
        Not exactly one input, or another type than float32.
    """
    initialised = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in initialised]
    if len(inputs) != 1:
        raise ValueError(f"the graph has {len(inputs)} inputs, expected one: a batch of images")
    kind = inputs[0].type.tensor_type.elem_type
    if kind != onnx.TensorProto.FLOAT:
        raise ValueError(f"the graph takes {onnx.TensorProto.DataType.Name(kind)} images, expected FLOAT (float32)")
    return [length or None for length in _dimensions(inputs[0])]


def _check_operators(model):
    registry = importlib.import_module("onnx2torch.node_converters.registry")
    opset = {entry.domain: entry.version for entry in model.opset_import}
    lacking = {}
    for node in model.graph.node:
        try:
            registry.get_converter(node.op_type, opset.get(node.domain, 1), node.domain)
        except (NotImplementedError, onnx.defs.SchemaError):
            domain = f"{node.domain}." if node.domain else ""
            lacking[f"{domain}{node.op_type}"] = node.output[0]
    if lacking:
        what = ", ".join(f"{name} (which makes {output!r})" for name, output in lacking.items())
        raise ValueError(f"no converter for the operators {what}, in opset {opset.get('', opset)}")


def convert(model, input_shape):
    """Differentiable torch network from an ONNX graph with one input; the batch axis is free.

    The conversion is onnx2torch's. That package imports torchvision for two operators, non-maximum suppression and
    RoI align. Where torchvision cannot be imported, a stand-in takes its place in ``sys.modules`` during that import
    and is removed again; running one of the two operators then raises ImportError.

    Parameters
    ----------
    model : str, Path or onnx.ModelProto
        File or graph; float32.
    input_shape : tuple of int
        Shape of one image in the graph's own layout, e.g. (3, 224, 224); replaces the shape the file declares.

    Returns
    -------
    torch.fx.GraphModule
        Each of its modules has, as `onnx_mapping`, the names of the tensors that it takes and makes.

    Raises
    ------
    ValueError
        The graph has not exactly one input, its input has another number of axes than `input_shape` and the batch axis
        together, or the converter lacks an operator (all of these are named).
    ImportError
        onnx2torch is not installed.
    """
    converter = _converter()
    model = _fixed(model, input_shape)
    _check_operators(model)
    return converter.convert(model, attach_onnx_mapping=True)


def cut(whole, representation, channels_last=False):
    """A converted graph together with its part up to the representation.

    Parameters
    ----------
    whole : torch.fx.GraphModule
        As `convert` gives it.
    representation, channels_last
        As for `load`.

    Returns
    -------
    OnnxNetwork

    Raises
    ------
    ValueError
        The graph computes no tensor of that name from the image.
    """
    part = _part(whole, representation)
    whole.graph.eliminate_dead_code()
    whole.recompile()
    whole.delete_all_unused_submodules()
    return OnnxNetwork(whole, part, channels_last)


def load(model, representation, input_shape, channels_last=False):
    """`convert` and `cut` in one.

    Parameters
    ----------
    model : str, Path or onnx.ModelProto
        File or graph; float32.
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
    ValueError, ImportError
        As for `convert` and `cut`.
    """
    return cut(convert(model, input_shape), representation, channels_last)
