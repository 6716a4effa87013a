"""Any network by one string: ONNX files, Python files, torchvision and timm; the rule for the representation."""

import importlib.metadata
import io
import os
import pickle
import sys
import types
import warnings
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from support import attribution, probe, zoo
from support.sources import hubs, wrap
from support.sources import onnx as onnx_files

SIZE = (24, 32)


def bottleneck(inside):
    """A residual block that narrows inside."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.down, self.up = nn.Conv2d(16, inside, 1), nn.Conv2d(inside, 16, 1)

        def forward(self, x):
            return torch.relu(x + self.up(torch.relu(self.down(x))))

    return Block()


def stem():
    return [nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU()]


def seeded(function):
    def make():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            return function().eval()

    return make


@seeded
def classifier():
    return nn.Sequential(*stem(), bottleneck(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))


@seeded
def autoencoder():
    narrow = [nn.Conv2d(16, 6, 1), nn.ReLU(), nn.Conv2d(6, 16, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*stem(), bottleneck(4), *narrow, nn.ConvTranspose2d(16, 3, 4, 4))


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.pool, self.inner = nn.Conv2d(3, 8, 3, padding=1), nn.MaxPool2d(2), nn.Conv2d(8, 12, 1)
        self.up, self.last = nn.ConvTranspose2d(12, 8, 2, 2), nn.Conv2d(16, 2, 1)

    def forward(self, x):
        x = torch.relu(self.first(x))
        return self.last(torch.cat([x, self.up(self.inner(self.pool(x)))], 1))


class Tokens(nn.Module):
    """A transformer of one block on patches, read at its class token or at the mean of its tokens."""

    def __init__(self, pool="class"):
        super().__init__()
        self.pool = pool
        self.patches = nn.Conv2d(3, 8, 8, 8)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.mixed, self.norm, self.head = nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 4)
        nn.init.uniform_(self.norm.weight)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        x = x + torch.softmax(self.mixed(x) @ x.transpose(1, 2), -1) @ x
        x = self.norm(x)
        return self.head(x[:, 0]) if self.pool == "class" else self.head(x).mean(1)


def export(network, path, opset=17, size=SIZE, free=True):
    axes = {"image": {0: "n"}} if free else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network.eval(), (torch.zeros(1, 3, *size),), path, dynamo=False, opset_version=opset,
            input_names=["image"], output_names=["answer"], dynamic_axes=axes, do_constant_folding=False,
            training=torch.onnx.TrainingMode.EVAL,
        )  # fmt: skip
    return path


def images(n=2):
    return np.random.default_rng(0).random((n, 40, 50, 3), np.float32)


# which tensor


def wrapped(network, tmp_path, scheme):
    """The same network by its ONNX file or as a module."""
    if scheme == "onnx":
        return zoo.load(f"onnx:{export(network, tmp_path / 'own.onnx')}")
    encoder = of_module(network, SIZE)
    encoder.check()
    return encoder


def of_module(network, size):
    return wrap.of_module("own", network, "", {"input_size": size}, None, family="own", title="own")


both = pytest.mark.parametrize("scheme", ["onnx", "module"])


@both
def test_of_a_classifier_the_last_features_with_a_place(tmp_path, scheme):
    network = classifier()
    encoder = wrapped(network, tmp_path, scheme)
    inputs = encoder.preprocess(images())
    torch.testing.assert_close(encoder.represent(inputs), network[:6](inputs), rtol=0, atol=1e-5)
    assert list(encoder.card["alternatives"].values()) == ["8 × 12 × 16", "16 × 6 × 8"]


@both
def test_of_an_autoencoder_the_narrowest_that_all_passes_through(tmp_path, scheme):
    network = autoencoder()
    encoder = wrapped(network, tmp_path, scheme)  # not the four channels inside the residual block
    inputs = encoder.preprocess(images())
    torch.testing.assert_close(encoder.represent(inputs), network[:8](inputs), rtol=0, atol=1e-5)


@both
def test_of_a_unet_the_last_on_the_coarsest_grid(tmp_path, scheme):
    network = seeded(UNet)()
    encoder = wrapped(network, tmp_path, scheme)
    inputs = encoder.preprocess(images())
    expected = network.inner(network.pool(torch.relu(network.first(inputs))))
    torch.testing.assert_close(encoder.represent(inputs), expected, rtol=0, atol=1e-5)


@both
@pytest.mark.parametrize("pool", ["class", "each"])
def test_of_a_transformer_what_the_head_reads_or_the_mean_of_the_tokens(tmp_path, scheme, pool):
    network = seeded(lambda: Tokens(pool))()
    encoder = wrapped(network, tmp_path, scheme)
    inputs = encoder.preprocess(images())
    seen = []
    handle = network.norm.register_forward_hook(lambda module, values, made: seen.append(made))
    network(inputs)
    handle.remove()
    expected = seen[0][:, 0] if pool == "class" else seen[0].mean(1)
    torch.testing.assert_close(encoder.represent(inputs), expected, rtol=0, atol=1e-5)


def test_without_a_place_the_last_vector_before_a_learned_layer():
    network = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 9), nn.ReLU(), nn.Linear(9, 2)))()
    encoder = of_module(network, (8, 8))
    inputs = encoder.preprocess(images())
    torch.testing.assert_close(encoder.represent(inputs), network[:3](inputs))


def test_nothing_before_a_learned_layer():
    with pytest.raises(ValueError, match="own: no layer comes before"):
        of_module(nn.Conv2d(3, 4, 1), (8, 8))


# python


FILE = """
import torch
from torch import nn
from beside import WIDTH

def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, WIDTH, 3, 2, 1), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(WIDTH * 64, 2))

class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = make()

    def represent(self, x):
        return self.body[:2](x)

    def forward(self, x):
        return self.body(x), {"again": x}

def encoder():
    from support import zoo
    return zoo.Encoder("mine", make()[:2], task="own task", family="own", input_size=(6, 7), channels="BGR")

def number():
    return 3

def mixing():
    class Mixing(nn.Module):
        def forward(self, x):
            return x - x.mean(0, keepdim=True)
    return nn.Sequential(Mixing(), *make())

def steps():
    class Steps(nn.Module):
        def forward(self, x):
            return torch.sign(x).detach()
    return nn.Sequential(*make()[:2], Steps(), nn.Conv2d(6, 1, 1))

def constant():
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.Softmax(1), nn.Conv2d(4, 2, 1))
"""


@pytest.fixture
def own(tmp_path):
    (tmp_path / "own.py").write_text(FILE)
    (tmp_path / "beside.py").write_text("WIDTH = 6\n")
    return f"python:{tmp_path / 'own.py'}"


SMALL = {"input_size": (16, 16)}


def test_factory(own):
    encoder = zoo.load(f"{own}:make", preprocessing=SMALL)
    assert encoder.name == "python:own.py:make" and encoder.family == "Sequential"
    inputs = encoder.preprocess(images())
    units = encoder.represent(inputs)
    assert units.shape == (2, 6, 8, 8) and units.min() == 0  # after the ReLU
    assert not any(parameter.requires_grad for parameter in encoder.network.parameters())
    gradient = attribution.attribute(
        encoder, probe.load("rooms", n_images=2, size=16, seed=0), "epsilon_lrp", progress=False
    )
    assert gradient.shape == (1, 2, 16, 16) and float(abs(gradient).max()) > 0


def test_default_preprocessing_is_imagenets_and_can_be_said(own):
    grey = np.full((1, 8, 8, 3), 0.5, np.float32)
    found = zoo.load(f"{own}:make", preprocessing=SMALL).preprocess(grey)[0, :, 0, 0]
    np.testing.assert_allclose(found, (0.5 - np.array(wrap.MEAN)) / np.array(wrap.STD), rtol=1e-5)
    said = {"scale": 255, "mean": (1, 2, 3), "std": (2, 2, 2), "channels": "BGR"}
    found = zoo.load(f"{own}:make", preprocessing=SMALL | said).preprocess(grey)[0, :, 0, 0]
    np.testing.assert_allclose(found, (127.5 - np.array([1, 2, 3])) / 2, rtol=1e-5)
    with pytest.raises(ValueError, match="unknown preprocessing sdt; known: channels, .*std"):
        zoo.load(f"{own}:make", preprocessing={"sdt": 1})


def test_layer_by_its_path(own):
    encoder = zoo.load(f"{own}:Named#body.0", preprocessing=SMALL)
    inputs = encoder.preprocess(images())
    assert encoder.name == "python:own.py:Named#body.0"
    # the ReLU that follows works in place, and yet it is the output of the convolution
    assert torch.equal(encoder.represent(inputs), encoder.network.body[0](inputs))
    assert encoder.represent(inputs).min() < 0
    with pytest.raises(ValueError, match="^python:own.py:Named#body.9: unknown layer .*near it are .*'body.1'"):
        zoo.load(f"{own}:Named#body.9", preprocessing=SMALL)


def test_a_network_may_say_itself_what_its_representation_is(own):
    encoder = zoo.load(f"{own}:Named", preprocessing=SMALL)
    inputs = encoder.preprocess(images())
    torch.testing.assert_close(encoder.represent(inputs), encoder.network.body[:2](inputs))
    assert "represent" in encoder.card["representation"]


def test_an_encoder_keeps_its_own_preprocessing(own):
    encoder = zoo.load(f"{own}:encoder")
    assert encoder.channels == "BGR" and encoder.task == "own task" and encoder.name == "python:own.py:encoder"
    with pytest.raises(ValueError, match="makes an Encoder"):
        zoo.load(f"{own}:encoder", preprocessing=SMALL)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("mak", "unknown factory 'mak'; near it are 'make'"),
        ("number", "makes a int, expected a torch.nn.Module"),
        ("mixing", "depends on the other images"),
        ("steps", "has no gradient"),
        ("", "names no factory"),
        ("a b", "names no factory"),
    ],
)
def test_other_factories_are_refused(own, factory, message):
    with pytest.raises(ValueError, match=message):
        zoo.load(f"{own}:{factory}", preprocessing=SMALL)


def test_a_mean_that_is_constant_is_warned_of(own):
    with pytest.warns(UserWarning, match="python:own.py:constant: the mean of .* does not depend on the image"):
        zoo.load(f"{own}:constant", preprocessing=SMALL)


def test_another_size_than_the_network_takes_is_told(own):
    with pytest.raises(ValueError, match="preprocessing can say otherwise"):
        zoo.load(f"{own}:make")  # its head wants 16 × 16
    with pytest.raises(FileNotFoundError, match="nowhere.py"):
        zoo.load("python:nowhere.py:make")


@pytest.mark.parametrize("suffix", ["pt", "pth", "safetensors"])
def test_weights_from_a_file(own, tmp_path, suffix):
    network = zoo.load(f"{own}:make", preprocessing=SMALL).network
    state = {name: torch.full_like(value, 0.5) for name, value in network.state_dict().items()}
    path = tmp_path / f"own.{suffix}"
    if suffix == "safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save({"state_dict": state} if suffix == "pth" else state, path)
    encoder = zoo.load(f"{own}:make", preprocessing=SMALL, weights=path)
    assert (encoder.network[0].weight == 0.5).all() and path.name in encoder.card["trained_on"]
    with pytest.raises(ValueError, match="has not the weights of a Named"):
        zoo.load(f"{own}:Named", preprocessing=SMALL, weights=path)


class Bomb:
    exploded = []

    def __reduce__(self):
        return Bomb.exploded.append, ("boom",)


@pytest.mark.parametrize("name", ["own.pt", "own.safetensors"])
def test_weights_are_never_run(own, tmp_path, name):
    for write in (torch.save, lambda state, path: path.write_bytes(pickle.dumps(state))):
        write({"0.weight": Bomb()}, tmp_path / name)
        with pytest.raises(ValueError, match="could run code: not loaded"):
            zoo.load(f"{own}:make", preprocessing=SMALL, weights=tmp_path / name)
    assert Bomb.exploded == []


# torchvision and timm: stand-ins with the parts of their interfaces that are used. The real ones are tried by hand.


@pytest.fixture
def stand_ins(monkeypatch):
    class Trained:
        @staticmethod
        def transforms():
            return types.SimpleNamespace(crop_size=[16], resize_size=[20], mean=[0.1, 0.2, 0.3], std=[1.0, 2.0, 4.0])

        def __str__(self):
            return "Small_Weights.V1"

    trained = Trained()

    def build(name, weights=None):
        network = nn.Sequential(*stem(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))
        if weights is trained:
            if name == "offline":
                raise OSError("name or service not known")
            assert os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] == "1"  # what torch.load of a download obeys
            for parameter in network.parameters():
                nn.init.constant_(parameter, 0.25)
        return network

    models = types.ModuleType("torchvision.models")

    def detector():
        raise AssertionError("not to be called")

    detector.__module__ = "torchvision.models.detection.own"
    models.list_models = lambda: ["small", "offline", "detector"]
    models.get_model_weights = lambda name: types.SimpleNamespace(DEFAULT=trained)
    models.get_model_builder = lambda name: detector if name == "detector" else build
    models.get_model = build

    class Vision(nn.Module):
        num_classes, pretrained_cfg = 5, {"architecture": "small_vit", "tag": "in1k", "license": "mit"}

        def __init__(self):
            super().__init__()
            self.patches, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 5)

        def forward_features(self, x):
            return self.patches(x).flatten(2).transpose(1, 2)

        def forward_head(self, x, pre_logits=False):
            return x[:, 0] if pre_logits else self.head(x[:, 0])

        def forward(self, x):
            return self.forward_head(self.forward_features(x))

    timm = types.ModuleType("timm")
    timm.list_models = lambda: ["small_vit"]
    timm.create_model = lambda name, pretrained: Vision()
    config = {"input_size": (3, 8, 12), "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    timm.data = types.SimpleNamespace(resolve_model_data_config=lambda network: config)
    package = types.ModuleType("torchvision")
    package.models = models
    for name, module in {"torchvision": package, "torchvision.models": models, "timm": timm}.items():
        monkeypatch.setitem(sys.modules, name, module)


def test_torchvision_by_name(stand_ins):
    encoder = zoo.load("torchvision:small")
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ
    assert all((parameter == 0.25).all() for parameter in encoder.network.parameters())
    assert encoder.input_size == (16, 16) and encoder.card["trained_on"] == "Small_Weights.V1"
    np.testing.assert_allclose(encoder.preprocess(np.ones((1, 4, 4, 3)))[0, :, 0, 0], [0.9, 0.4, 0.175], rtol=1e-5)
    one, again, other = (zoo.load("torchvision:small", weights="random", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.network[0].weight, again.network[0].weight) and "seed 1" in one.card["trained_on"]
    assert not torch.equal(one.network[0].weight, other.network[0].weight)
    assert zoo.load("torchvision:small#1", weights="random").represent(torch.rand(1, 3, 16, 16)).shape == (1, 8, 8, 8)


def test_torchvision_with_weights_of_a_file(stand_ins, tmp_path):
    state = zoo.load("torchvision:small", weights="random", seed=5).network.state_dict()
    safetensors.torch.save_file(state, tmp_path / "own.safetensors")
    encoder = zoo.load("torchvision:small", weights=tmp_path / "own.safetensors")
    assert torch.equal(encoder.network[0].weight, state["0.weight"]) and "own.safetensors" in encoder.card["trained_on"]


def test_pretrained_weights_that_cannot_be_had(stand_ins):
    with pytest.raises(FileNotFoundError, match='torchvision:offline .*weights="random"'):
        zoo.load("torchvision:offline")
    with pytest.raises(ValueError, match="unknown network of torchvision 'smal'; near it are 'small'"):
        zoo.load("torchvision:smal")
    with pytest.raises(ValueError, match="torchvision:detector is of .*detection"):
        zoo.load("torchvision:detector")
    with pytest.raises(ValueError, match="has no seed"):
        zoo.load("torchvision:small", seed=1)


def test_timm_by_name_is_read_at_the_class_token(stand_ins):
    encoder = zoo.load("timm:small_vit.in1k")
    inputs = encoder.preprocess(images())
    torch.testing.assert_close(encoder.represent(inputs), encoder.network.patches(inputs)[..., 0, 0])
    assert encoder.input_size == (8, 12) and encoder.card["licence"] == "mit" and encoder.family == "small_vit"
    with pytest.raises(ValueError, match="unknown network of timm 'small_vt'; near it are 'small_vit'"):
        zoo.load("timm:small_vt")


def test_epsilon_lrp_of_a_transformer_is_refused_by_name(tmp_path):
    encoder = wrapped(seeded(Tokens)(), tmp_path, "module")
    encoder.name = "own:transformer"
    pictures = probe.load("rooms", n_images=2, size=32, seed=0)
    with pytest.raises(ValueError, match="own:transformer: .*([Ss]oftmax|[Ll]ayer)"):
        attribution.attribute(encoder, pictures, "epsilon_lrp", progress=False)
    assert attribution.attribute(encoder, pictures, "saliency", progress=False).shape == (1, 2, 32, 32)


# what is there


def test_available_has_a_row_for_every_scheme():
    table = zoo.available().set_index("name")
    forms = ["onnx:FILE[#tensor]", "python:FILE.py:FACTORY[#layer.path]", "torchvision:NAME[#layer.path]"]
    assert list(table.index[-4:]) == [*forms, "timm:NAME[#layer.path]"]
    assert table.loc[forms[:2], "loadable"].all()


@pytest.mark.parametrize(
    ("torch_version", "requirement"),
    [
        ("2.13.0+cpu", "torchvision==0.28.0+cpu"),
        ("2.14.1", "torchvision==0.29.1"),
        ("2.0.0", "torchvision==0.15.0"),
    ],
)
def test_the_command_names_the_torchvision_of_this_torch(monkeypatch, torch_version, requirement):
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: torch_version if name == "torch" else real(name))
    monkeypatch.setattr(hubs, "_works", lambda package: False)
    monkeypatch.setattr(hubs.importlib.util, "find_spec", lambda name: None)
    assert hubs.how_torchvision() == f"pip install {requirement}"
    assert hubs.how_timm() == f"pip install {requirement} && pip install timm"
    assert onnx_files.how() == f"pip install --no-deps onnx2torch=={onnx_files.ONNX2TORCH_VERSION}"
    monkeypatch.setattr(hubs.importlib.util, "find_spec", lambda name: name)
    assert hubs.how_torchvision() == f"pip install --force-reinstall --no-deps {requirement}"
    for spec in ("torchvision:resnet18", "timm:resnet18"):
        with pytest.raises(ImportError, match="needs a torchvision built for torch .*pip install"):
            zoo.load(spec)


def test_listed_networks_keep_their_preprocessing():
    with pytest.raises(ValueError, match="bank:edge2d has its own preprocessing"):
        zoo.load("bank:edge2d", preprocessing={"scale": 2})
    with pytest.raises(ValueError, match="bank:edge2d has its own weights"):
        zoo.load("bank:edge2d", weights="random")


# files of weights that ask for more memory than they may


def compressed(path, network):
    """A file of torch whose parts are compressed, as no file of torch's own is."""
    torch.save(network.state_dict(), path)
    parts = zipfile.ZipFile(io.BytesIO(path.read_bytes()))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name in parts.namelist():
            file.writestr(name, parts.read(name))


def test_weights_that_need_much_more_memory_than_the_file_has_bytes(own, tmp_path, monkeypatch):
    path = tmp_path / "own.pt"
    network = nn.Linear(1000, 1000)
    nn.init.zeros_(network.weight)
    compressed(path, network)
    monkeypatch.setattr(torch, "load", lambda *args, **options: pytest.fail("it was read"))
    with pytest.raises(ValueError, match="own.pt has .* bytes and its tensors need .* more than 4 times as many"):
        zoo.load(f"{own}:make", preprocessing=SMALL, weights=path)
    monkeypatch.undo()
    torch.save({"0.weight": torch.zeros(1).expand(10**9)}, path)
    with pytest.raises(ValueError, match="its tensors need 4,000,000,000, more than 4 times"):
        zoo.load(f"{own}:make", preprocessing=SMALL, weights=path)
