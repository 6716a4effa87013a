"""ONNX operators that onnx2torch does not convert, or converts to something else.

`OPERATORS` maps the name of an operator to a function that takes a `Node` and returns a module and the tensors that
the module takes; or None, where onnx2torch's converter does it rightly. The definitions are those of the ONNX
specification (onnx.ai/onnx/operators).
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn
from torch.nn import functional

from support.sources.onnx_graph import Types, attributes_of, dimensions


class Node:
    """One operator of a graph, with what is known of its tensors.

    Parameters
    ----------
    proto : onnx.NodeProto
        The operator.
    opset : int
        Version of the operator set.
    types : dict of str to onnx.TypeProto
        Of all tensors, for any number of images.
    constants : dict of str to torch.Tensor
        What does not depend on the images.
    """

    def __init__(self, proto: onnx.NodeProto, opset: int, types: Types, constants: dict[str, torch.Tensor]):
        self.kind, self.opset, self.attributes = proto.op_type, opset, attributes_of(proto)
        self.inputs, self.outputs = list(proto.input), list(proto.output)
        self._types, self.constants = types, constants

    def get(self, attribute: str, default: Any = None) -> Any:
        """An attribute."""
        return self.attributes.get(attribute, default)

    def has(self, number: int) -> bool:
        """Whether an input is given."""
        return len(self.inputs) > number and self.inputs[number] != ""

    def read(self, number: int, default: Any = None) -> Any:
        """An input as a list or number; the graph has to know it beforehand."""
        if not self.has(number):
            return default
        if self.inputs[number] not in self.constants:
            raise NotImplementedError(f"{self.kind} whose input {number} is computed from the images")
        return self.constants[self.inputs[number]].tolist()

    def shape(self, number: int = 0, of: str = "inputs") -> list[Any]:
        """Lengths of the axes of an input or output; None for a free one."""
        return dimensions(self._types[getattr(self, of)[number]])

    @property
    def rank(self) -> int:
        """Number of axes of the first input."""
        return len(self.shape())


class Operation(nn.Module):
    """A function of tensors, with settings."""

    def __init__(self, function: Callable, **settings: Any):
        super().__init__()
        self.function, self.settings = function, settings

    def forward(self, *tensors: torch.Tensor, **named: torch.Tensor) -> Any:
        """What the function gives."""
        return self.function(*tensors, **named, **self.settings)

    def extra_repr(self) -> str:
        """Function and settings, for whoever prints the network."""
        return f"{getattr(self.function, '__name__', self.function)}, {self.settings}"


def _alone(function, node, **settings):
    """An operation on the first input of a node."""
    return Operation(function, **settings), node.inputs[:1]


# reductions


def _product(x, dim, keepdim):
    for axis in sorted((axis % x.ndim for axis in dim), reverse=True):
        x = x.prod(axis, keepdim)
    return x


REDUCTIONS = {
    "ReduceL1": lambda x, dim, keepdim: x.abs().sum(dim, keepdim),
    "ReduceL2": torch.linalg.vector_norm,
    "ReduceLogSum": lambda x, dim, keepdim: x.sum(dim, keepdim).log(),
    "ReduceLogSumExp": torch.logsumexp,
    "ReduceMax": torch.amax,
    "ReduceMean": torch.mean,
    "ReduceMin": torch.amin,
    "ReduceProd": _product,
    "ReduceSum": torch.sum,
    "ReduceSumSquare": lambda x, dim, keepdim: x.square().sum(dim, keepdim),
}


def _reduced(x, kind, dim, keepdim):
    """One of `REDUCTIONS` over some axes."""
    return REDUCTIONS[kind](x, dim=dim, keepdim=keepdim)


def _reduction(node):
    axes = node.read(1, node.get("axes", []))
    if not axes and node.get("noop_with_empty_axes", 0):
        return nn.Identity(), node.inputs[:1]
    axes = sorted(axis % node.rank for axis in axes) or list(range(node.rank))
    return _alone(_reduced, node, kind=node.kind, dim=axes, keepdim=node.get("keepdims", 1) == 1)


# windows


def pad_explicitly(graph: onnx.GraphProto, types: Types) -> None:
    """Replace, in place, ``auto_pad`` of convolutions and pools by the padding that it stands for.

    Parameters
    ----------
    graph : onnx.GraphProto
        The graph.
    types : dict of str to onnx.TypeProto
        Of all tensors, for images of one size.

    Examples
    --------
    >>> node = onnx.helper.make_node("MaxPool", ["a"], ["b"], kernel_shape=[3, 3], auto_pad="SAME_UPPER")
    >>> graph, types = onnx.GraphProto(node=[node]), onnx.helper.make_tensor_type_proto(1, [2, 3, 8, 8])
    >>> pad_explicitly(graph, {"a": types, "b": types})
    >>> attributes_of(graph.node[0])["pads"]
    [1, 1, 1, 1]
    """
    for node in graph.node:
        attributes = attributes_of(node)
        mode = attributes.get("auto_pad", "NOTSET")
        if node.op_type not in ("Conv", "AveragePool", "MaxPool", "LpPool") or mode not in ("SAME_UPPER", "SAME_LOWER"):
            continue
        lengths, made = ([n or 0 for n in dimensions(types[name])[2:]] for name in (node.input[0], node.output[0]))
        kernel: list[Any] = attributes.get("kernel_shape") or dimensions(types[node.input[1]])[2:]
        begin, end = [], []
        for axis, (length, count) in enumerate(zip(lengths, made, strict=True)):
            stride, dilation = (attributes.get(key, [1] * len(kernel))[axis] for key in ("strides", "dilations"))
            total = max((count - 1) * stride + (kernel[axis] - 1) * dilation + 1 - length, 0)
            begin.append(total // 2 if mode == "SAME_UPPER" else total - total // 2)
            end.append(total - begin[-1])
        kept = [attribute for attribute in node.attribute if attribute.name not in ("auto_pad", "pads")]
        del node.attribute[:]
        node.attribute.extend(kept)
        node.attribute.append(onnx.helper.make_attribute("pads", begin + end))


def _torch_padding(begin, end):
    """Padding as torch has it: (begin, end) of the last axis first."""
    return [amount for pair in zip(begin[::-1], end[::-1], strict=True) for amount in pair]


def _of_rank(name, rank):
    function = getattr(functional, f"{name}{rank}d", None)
    if function is None:
        raise NotImplementedError(f"{name} along {rank} axes")
    return function


def _windows(node):
    """Kernel, strides, dilations, padding at the begin and, up to the end of the last window, at the end."""
    kernel = node.attributes["kernel_shape"]
    strides, dilations = (node.get(key) or [1] * len(kernel) for key in ("strides", "dilations"))
    begin = (node.get("pads") or [0] * len(kernel))[: len(kernel)]
    end = []
    for axis, (length, count) in enumerate(zip(node.shape()[2:], node.shape(0, "outputs")[2:], strict=True)):
        if length is None or count is None:
            raise NotImplementedError(f"{node.kind} of an axis that varies with the number of images")
        reach = (count - 1) * strides[axis] + (kernel[axis] - 1) * dilations[axis] + 1
        end.append(reach - length - begin[axis])
    return kernel, strides, dilations, begin, end


class _AveragePool(nn.Module):
    """Mean over windows of which each counts its own number of values."""

    def __init__(self, pool, kernel, strides, padding, count):
        super().__init__()
        self.pool, self.kernel, self.strides, self.padding = pool, kernel, strides, padding
        self.register_buffer("count", count)

    def forward(self, x):
        """The means."""
        return self.pool(functional.pad(x, self.padding), self.kernel, self.strides) / self.count

    def extra_repr(self) -> str:
        """The windows."""
        return f"{self.kernel}, {self.strides}, {self.padding}"


def _is_plain(node):
    """Whether padding is the same on both sides, and no window goes beyond it."""
    pads = node.get("pads") or [0]
    return pads[: len(pads) // 2] == pads[len(pads) // 2 :] and not node.get("ceil_mode", 0)


def _is_within(padding, kernel):
    """Whether no more than half of a window lies in the padding."""
    return all(2 * amount <= length for amount, length in zip(padding, kernel, strict=True))


def _average_pool(node):
    kernel, strides, dilations, begin, end = _windows(node)
    if set(dilations) != {1}:
        raise NotImplementedError("AveragePool with dilations")
    if _is_plain(node) and _is_within(begin, kernel):
        return None
    pool = _of_rank("avg_pool", len(kernel))
    counted = torch.ones(1, 1, *node.shape()[2:])
    if node.get("count_include_pad", 0):
        pads = node.get("pads") or [0] * 2 * len(kernel)
        counted = functional.pad(counted, _torch_padding(pads[: len(kernel)], pads[len(kernel) :]), value=1.0)
        rest = [far - near for far, near in zip(end, pads[len(kernel) :], strict=True)]
        counted = functional.pad(counted, _torch_padding([0] * len(kernel), rest))
    else:
        counted = functional.pad(counted, _torch_padding(begin, end))
    count = pool(counted, kernel, strides)
    return _AveragePool(pool, kernel, strides, _torch_padding(begin, end), count), node.inputs[:1]


def _maxima(x, kernel, strides, dilations, padding):
    """Largest value of each window; padding is never the largest."""
    pool = _of_rank("max_pool", len(kernel))
    return pool(functional.pad(x, padding, value=-math.inf), kernel, strides, 0, dilations)


def _max_pool(node):
    kernel, strides, dilations, begin, end = _windows(node)
    if _is_plain(node) and _is_within(begin, kernel):
        return None
    padding = _torch_padding(begin, end)
    settings = {"kernel": kernel, "strides": strides, "dilations": dilations, "padding": padding}
    return _alone(_maxima, node, **settings)


def _global_max(node):
    return _alone(torch.amax, node, dim=list(range(2, node.rank)), keepdim=True)


def _norms(x, p, kernel, strides, padding):
    """p-norm of each window."""
    mean = _of_rank("avg_pool", len(kernel))(functional.pad(x, padding).abs() ** p, kernel, strides)
    return (mean * math.prod(kernel)) ** (1 / p)


def _lp_pool(node):
    kernel, strides, dilations, begin, end = _windows(node)
    if set(dilations) != {1}:
        raise NotImplementedError("LpPool with dilations")
    settings = {"p": node.get("p", 2), "kernel": kernel, "strides": strides, "padding": _torch_padding(begin, end)}
    return _alone(_norms, node, **settings)


def _convolved(x, weight, bias=None, *, strides, dilations, groups, padding):
    """Convolution with a weight that is an input."""
    convolution = _of_rank("conv", weight.ndim - 2)
    return convolution(functional.pad(x, padding), weight, bias, strides, 0, dilations, groups)


def _convolution(node):
    if all(not node.has(number) or node.inputs[number] in node.constants for number in (1, 2)):
        return None
    rank = node.rank - 2
    pads = node.get("pads") or [0] * 2 * rank
    settings = {"strides": node.get("strides", 1), "dilations": node.get("dilations", 1)}
    settings |= {"groups": node.get("group", 1), "padding": _torch_padding(pads[:rank], pads[rank:])}
    return Operation(_convolved, **settings), node.inputs


def _convolved_transposed(x, weight, bias=None, *, strides, dilations, groups, more, padding):
    """Transposed convolution, cut (or, with zeros, filled up) to the size that the graph wants."""
    convolution = _of_rank("conv_transpose", weight.ndim - 2)
    values = convolution(x, weight, None, strides, 0, more, groups, dilations)
    values = functional.pad(values, padding)
    return values if bias is None else values + bias.reshape(-1, *[1] * (weight.ndim - 2))


def _transposed_convolution(node):
    weight, rank = node.shape(1), node.rank - 2
    pads, mode = node.get("pads") or [0] * 2 * rank, node.get("auto_pad", "NOTSET")
    is_constant = all(not node.has(number) or node.inputs[number] in node.constants for number in (1, 2))
    is_plain = mode in ("NOTSET", "VALID") and pads[:rank] == pads[rank:] and not node.get("output_shape")
    if is_constant and is_plain:
        return None
    strides, dilations, more = (
        node.get(key) or [default] * rank for key, default in (("strides", 1), ("dilations", 1), ("output_padding", 0))
    )
    begin, end = list(pads[:rank]), list(pads[rank:])
    for axis in range(rank):
        length, wanted = node.shape()[2 + axis], node.shape(0, "outputs")[2 + axis]
        total = (length - 1) * strides[axis] + (weight[2 + axis] - 1) * dilations[axis] + 1 + more[axis] - wanted
        if mode != "NOTSET" or node.get("output_shape"):
            begin[axis] = total // 2 if mode == "SAME_UPPER" else total - total // 2
            end[axis] = total - begin[axis]
    padding = _torch_padding([-amount for amount in begin], [-amount for amount in end])
    settings = {"strides": strides, "dilations": dilations, "groups": node.get("group", 1), "more": more}
    return Operation(_convolved_transposed, padding=padding, **settings), node.inputs


# other sizes


def _padded(x, mode, begin, end, value=0.0):
    """Padding along any axes; values outside are a constant, or found inside by ``mode``."""
    if mode == "constant":
        return functional.pad(x, _torch_padding(begin, end), value=value)
    if mode != "wrap" and x.ndim == 4 and not any(begin[:2] + end[:2]):
        if min(begin + end) >= 0:
            return functional.pad(x, _torch_padding(begin[2:], end[2:]), {"edge": "replicate"}.get(mode, mode))
    for axis, (before, after) in enumerate(zip(begin, end, strict=True)):
        if before or after:
            inside = np.arange(max(-before, 0), x.shape[axis] - max(-after, 0))
            places = np.pad(inside, (max(before, 0), max(after, 0)), mode)
            x = x.index_select(axis, torch.from_numpy(places).to(x.device))
    return x


def _pad(node):
    pads = node.get("pads") or node.read(1)
    axes = node.read(3, list(range(node.rank)))
    begin, end = [0] * node.rank, [0] * node.rank
    for axis, before, after in zip(axes, pads[: len(axes)], pads[len(axes) :], strict=True):
        begin[axis], end[axis] = before, after
    value = node.read(2, node.get("value", 0.0))
    value = value[0] if isinstance(value, list) else value
    mode = node.get("mode", "constant")
    return _alone(_padded, node, mode=mode, begin=begin, end=end, value=value)


class _Resize(nn.Module):
    """Each value of an axis as a weighted sum of few values before."""

    def __init__(self, taps):
        super().__init__()
        self.axes = [axis for axis, _, _ in taps]
        for axis, places, weights in taps:
            self.register_buffer(f"places{axis}", torch.from_numpy(places))
            self.register_buffer(f"weights{axis}", torch.from_numpy(weights.astype(np.float32)))

    def forward(self, x):
        """The values at the new places."""
        for axis in self.axes:
            places, weights = getattr(self, f"places{axis}"), getattr(self, f"weights{axis}")
            shape = [-1 if one == axis else 1 for one in range(x.ndim)]
            parts = zip(places, weights, strict=True)
            x = sum(x.index_select(axis, place) * weight.reshape(shape) for place, weight in parts)
        return x


def _places(count, length, scale, mode):
    """Where the new values of an axis lie among the old ones."""
    new, scale = np.arange(count, dtype=np.float32), np.float32(scale)  # the reference rounds as float32 does
    if mode == "align_corners":
        return new * (length - 1) / (count - 1) if count > 1 else np.zeros(1, np.float32)
    if mode == "asymmetric":
        return new / scale
    if mode == "tf_half_pixel_for_nn":
        return (new + 0.5) / scale
    if mode == "pytorch_half_pixel" and count == 1:
        return np.zeros(1, np.float32)
    if mode == "half_pixel_symmetric":
        rest = count / (scale * length)
        return length / 2 * (1 - rest) + (new + 0.5) / scale - 0.5
    if mode in ("half_pixel", "pytorch_half_pixel"):
        return (new + 0.5) / scale - 0.5
    raise NotImplementedError(f"Resize with the coordinates {mode}")


def _cubic(distance, a):
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0))


NEAREST = {
    "round_prefer_floor": lambda place: np.ceil(place - 0.5),
    "round_prefer_ceil": lambda place: np.floor(place + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


def _taps(node, count, length, scale):
    """Which old values make each new value of an axis, and their weights: two arrays (tap, new value)."""
    mode = node.get("mode", "nearest")
    coordinates = node.get("coordinate_transformation_mode", "half_pixel" if node.opset > 10 else "asymmetric")
    places = _places(count, length, scale, coordinates)
    if mode == "nearest":
        old = "ceil" if scale < 1 else "floor"
        rounded = NEAREST[node.get("nearest_mode", "round_prefer_floor" if node.opset > 10 else old)](places)
        return np.clip(rounded, 0, length - 1).astype(np.int64)[None], np.ones((1, count))
    wide = max(1.0, 1 / scale) if node.get("antialias", 0) else 1.0
    reach = math.ceil((2 if mode == "cubic" else 1) * wide)
    taps = np.floor(places).astype(np.int64) + np.arange(1 - reach, 1 + reach)[:, None]
    distance = np.abs(taps - places) / wide
    weights = np.clip(1 - distance, 0, None) if mode == "linear" else _cubic(distance, node.get("cubic_coeff_a", -0.75))
    if node.get("exclude_outside", 0):
        weights = np.where((taps >= 0) & (taps < length), weights, 0)
    if node.get("exclude_outside", 0) or wide > 1:
        weights = weights / weights.sum(0)
    return np.clip(taps, 0, length - 1), weights


def _resize(node):
    before, after = node.shape(), node.shape(0, "outputs")
    scales = node.read(1 if node.opset == 10 or node.kind == "Upsample" else 2) or None
    axes = [axis % node.rank for axis in node.get("axes") or range(node.rank)]
    if node.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise NotImplementedError("Resize that keeps the aspect ratio")
    taps, scaled = [], {}
    for number, axis in enumerate(axes):
        scale = scales[number] if scales else None if before[axis] is None else after[axis] / before[axis]
        if scale == 1 or (before[axis] is None and after[axis] is None and scale is None):
            continue
        if before[axis] is None or after[axis] is None:
            raise NotImplementedError("Resize of the axis of images")
        scaled[axis] = scale
        taps.append((axis, *_taps(node, after[axis], before[axis], scale)))
    if _is_repeat(node, taps, before, after):
        factor = [after[axis] // before[axis] for axis in (2, 3)]
        return _alone(functional.interpolate, node, scale_factor=factor, mode="nearest")
    if _is_bilinear(node, scaled, before, after):
        aligned = node.get("coordinate_transformation_mode") == "align_corners"
        settings = {"size": after[2:], "mode": "bilinear", "align_corners": aligned}
        return _alone(functional.interpolate, node, **settings)
    return _Resize(taps), node.inputs[:1]


def _is_repeat(node, taps, before, after):
    """Whether each pixel becomes a block of pixels."""
    if node.get("mode", "nearest") != "nearest" or [axis for axis, _, _ in taps] != [2, 3] or node.rank != 4:
        return False
    return all(
        after[axis] % before[axis] == 0
        and np.array_equal(places[0], np.arange(after[axis]) * before[axis] // after[axis])
        for axis, places, _ in taps
    )


def _is_bilinear(node, scales, before, after):
    """Whether torch's own bilinear interpolation does the same."""
    plain = not any(node.get(key) for key in ("antialias", "exclude_outside")) and node.rank == 4
    mode = node.get("coordinate_transformation_mode", "half_pixel" if node.opset > 10 else "asymmetric")
    if node.get("mode") != "linear" or not plain or mode not in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        return False
    return all(axis in (2, 3) and scale == after[axis] / before[axis] for axis, scale in scales.items())


def _pieces(x, sizes, axis):
    """Pieces of these lengths, and what is left of the axis."""
    left = x.shape[axis] - sum(sizes)
    return torch.split(x, [*sizes, left] if left else sizes, axis)


def _split(node):
    axis = node.get("axis", 0) % node.rank
    sizes = [node.shape(number, "outputs")[axis] for number in range(len(node.outputs))]
    if None in sizes:
        raise NotImplementedError("Split of the axis of images")
    return _alone(_pieces, node, sizes=sizes, axis=axis)


def _sliced(x, slices):
    """Values from ``start`` to ``end`` by ``step`` along some axes."""
    for axis, (start, end, step) in slices.items():
        if step > 0:
            x = x[(*[slice(None)] * axis, slice(start, end, step))]
        else:
            places = range(x.shape[axis])[start:end:step]
            x = x.index_select(axis, torch.tensor(places, dtype=torch.long, device=x.device))
    return x


def _cut(node):
    if node.opset < 10:
        starts, ends, axes, steps = node.get("starts"), node.get("ends"), node.get("axes"), None
    else:
        starts, ends, axes, steps = (node.read(number) for number in (1, 2, 3, 4))
    axes = [axis % node.rank for axis in axes or range(len(starts))]
    slices = dict(zip(axes, zip(starts, ends, steps or [1] * len(starts), strict=True), strict=True))
    return _alone(_sliced, node, slices=slices)


def _squeeze(node):
    axes = node.read(1, node.get("axes")) or [axis for axis, length in enumerate(node.shape()) if length == 1]
    return _alone(torch.squeeze, node, dim=tuple(axes))


def _unsqueezed(x, axes):
    """New axes of length one, at these places of the result."""
    for axis in axes:
        x = x.unsqueeze(axis)
    return x


def _unsqueeze(node):
    axes = node.read(1, node.get("axes"))
    rank = node.rank + len(axes)
    return _alone(_unsqueezed, node, axes=sorted(axis % rank for axis in axes))


def _reshaped(x, shape):
    """Other axes; where a length is None, that of the axis in the same place is kept."""
    return x.reshape([x.shape[axis] if length is None else length for axis, length in enumerate(shape)])


def _reshape(node):
    if node.inputs[1] not in node.constants:
        return None
    shape = [None if length == 0 and not node.get("allowzero", 0) else length for length in node.read(1)]
    return _alone(_reshaped, node, shape=shape)


def _flatten(node):
    is_first = node.get("axis", 1) in (0, -node.rank)
    return (Operation(_reshaped, shape=[1, -1]), node.inputs[:1]) if is_first else None


def _depth_as_space(x, block, columns_first):
    """Channels as blocks of pixels."""
    n, c, height, width = x.shape
    if columns_first:
        x = x.reshape(n, c // block**2, block, block, height, width).permute(0, 1, 4, 2, 5, 3)
    else:
        x = x.reshape(n, block, block, c // block**2, height, width).permute(0, 3, 4, 1, 5, 2)
    return x.reshape(n, c // block**2, height * block, width * block)


def _space_as_depth(x, block):
    """Blocks of pixels as channels."""
    n, c, height, width = x.shape
    x = x.reshape(n, c, height // block, block, width // block, block).permute(0, 3, 5, 1, 2, 4)
    return x.reshape(n, c * block**2, height // block, width // block)


# values


def _clip(node):
    if node.opset < 11:
        low, high = node.get("min"), node.get("max")
    elif all(not node.has(number) or node.inputs[number] in node.constants for number in (1, 2)):
        low, high = node.read(1), node.read(2)
        low, high = (value[0] if isinstance(value, list) else value for value in (low, high))
    else:
        raise NotImplementedError("Clip with limits that are computed from the images")
    if low == 0 and high in (6, None):
        return nn.ReLU6() if high == 6 else nn.ReLU(), node.inputs[:1]
    if low is None and high is None:
        return nn.Identity(), node.inputs[:1]
    return _alone(torch.clamp, node, min=low, max=high)


def _cumulated(x, axis, is_exclusive, is_reverse):
    """Sums of all values up to each one."""
    x = x.flip(axis) if is_reverse else x
    sums = x.cumsum(axis)
    sums = sums - x if is_exclusive else sums
    return sums.flip(axis) if is_reverse else sums


def _cumulate(node):
    axis = node.read(1)
    axis = axis[0] if isinstance(axis, list) else axis
    settings = {"is_exclusive": bool(node.get("exclusive", 0)), "is_reverse": bool(node.get("reverse", 0))}
    return _alone(_cumulated, node, axis=axis, **settings)


def _normalised_groups(x, scale, bias, groups, epsilon, is_by_group):
    """Group normalisation, of opset 18 (scale and bias by group) or 21 (by channel)."""
    if is_by_group:
        scale, bias = (values.repeat_interleave(x.shape[1] // groups) for values in (scale, bias))
    return functional.group_norm(x, groups, scale, bias, epsilon)


def _groups(node):
    settings = {"groups": node.get("num_groups"), "epsilon": node.get("epsilon", 1e-5)}
    return Operation(_normalised_groups, is_by_group=node.opset < 21, **settings), node.inputs


def _gelu(node):
    return _alone(functional.gelu, node, approximate=node.get("approximate", "none"))


def _depth_to_space(node):
    columns_first = node.get("mode", "DCR") == "CRD"
    return _alone(_depth_as_space, node, block=node.get("blocksize"), columns_first=columns_first)


OPERATORS: dict[str, Callable[[Node], Any]] = {
    **dict.fromkeys(REDUCTIONS, _reduction),
    **{name: functools.partial(_alone, getattr(torch, name.lower())) for name in "Acosh Asinh Atanh Cosh Sinh".split()},
    "AveragePool": _average_pool,
    "Clip": _clip,
    "Conv": _convolution,
    "ConvTranspose": _transposed_convolution,
    "CumSum": _cumulate,
    "DepthToSpace": _depth_to_space,
    "Gelu": _gelu,
    "Flatten": _flatten,
    "GlobalMaxPool": _global_max,
    "GroupNormalization": _groups,
    "LpPool": _lp_pool,
    "MaxPool": _max_pool,
    "Mish": functools.partial(_alone, functional.mish),
    "Pad": _pad,
    "Reshape": _reshape,
    "Resize": _resize,
    "Slice": _cut,
    "SpaceToDepth": lambda node: _alone(_space_as_depth, node, block=node.get("blocksize")),
    "Split": _split,
    "Squeeze": _squeeze,
    "ThresholdedRelu": lambda node: _alone(functional.threshold, node, threshold=node.get("alpha", 1.0), value=0.0),
    "Unsqueeze": _unsqueeze,
    "Upsample": _resize,
}
