"""Encoders made by hand: what is refused, and with which words; what a fingerprint covers; the check."""

import functools
import subprocess
import sys
import textwrap
import types
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from support import identity, zoo
from support.encoder import Encoder

SIZE = (8, 8)


def network(width=4, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.Flatten(), nn.Linear(width * 36, 2))


def made(net=None, **options):
    options = {"task": "none", "family": "toy", "input_size": SIZE} | options
    return Encoder("mine", network() if net is None else net, **options)


# the constructor


def compiled():
    return torch.compile(network())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("net", "message"),
    [
        (lambda: lambda x: x, "the network is a function, expected a torch.nn.Module"),
        (lambda: torch.jit.script(network().eval()), "a TorchScript network cannot be looked into"),
        (lambda: torch.jit.trace(network().eval(), torch.ones(2, 3, *SIZE)), "a TorchScript network"),
        (lambda: nn.Sequential(torch.jit.script(nn.ReLU())), "a TorchScript network"),
        (lambda: torch.export.export(network().eval(), (torch.ones(2, 3, *SIZE),)).module(), "of torch.export"),
        (compiled, "a network of torch.compile"),
    ],
)
def test_other_networks_are_refused(net, message):
    with pytest.raises(ValueError, match=f"^mine: .*{message}"):
        made(net())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_size": 8}, r"input_size is 8, expected \(height, width\)"),
        ({"input_size": (8, 8, 3)}, "input_size is"),
        ({"input_size": (8, 0)}, "input_size is"),
        ({"input_size": (8.5, 8)}, "input_size is"),
        ({"input_size": "ab"}, "input_size is 'ab'"),
        ({"input_size": None}, "input_size is None"),
        ({"represent": 3}, "represent is a int, expected a function"),
        ({"std": 0}, "std is 0, expected what the channels can be divided by"),
        ({"std": (1, 1, 0)}, "std is"),
        ({"std": (1, 1)}, "std has 2 values, expected 1 or 3"),
        ({"mean": "dark"}, "mean is 'dark', expected finite numbers"),
        ({"mean": float("nan")}, "mean is nan"),
        ({"scale": float("inf")}, "scale is inf"),
        ({"scale": 0}, "scale is 0"),
        ({"channels": "RGBA"}, "channels is 'RGBA'"),
        ({"layout": None}, "layout is None"),
        ({"grey": 0.3, "channels": "GREY"}, "grey is 0.3"),
        ({"card": "mine"}, "card is a str"),
    ],
)
def test_other_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=f"^mine: {message}"):
        made(**options)


def test_numbers_of_any_library_are_numbers():
    encoder = made(
        mean=np.array([1, 2, 3], np.float32), std=torch.tensor(2.0), scale=np.int64(255), input_size=np.array(SIZE)
    )
    found = encoder.preprocess(np.ones((1, *SIZE, 3)))[0, :, 0, 0]
    torch.testing.assert_close(found, (255 - torch.tensor([1.0, 2, 3])) / 2)
    with pytest.raises(ValueError, match="the name of an encoder is a NoneType"):
        Encoder(None, network(), task="", family="", input_size=SIZE)


@pytest.mark.parametrize("device", ["gpu", "cuda:7", 1.5])
def test_other_devices_are_refused(device):
    with pytest.raises(ValueError, match=f"mine: device '{device}' cannot be used here"):
        made().to(device)


def test_an_empty_sequential_may_be_the_representation():
    assert made(represent=nn.Sequential()).represent(torch.ones(1, 3, *SIZE)).shape == (1, 3, *SIZE)


# what it is run with


@pytest.mark.parametrize("call", ["represent", "predict"])
def test_inputs_stay_as_they_are(call):
    class InPlace(nn.Module):
        def forward(self, x):
            x -= 0.5
            return x

    encoder = made(InPlace())
    inputs = torch.rand(1, 3, *SIZE, requires_grad=True)
    before = inputs.detach().clone()
    torch.testing.assert_close(getattr(encoder, call)(inputs), inputs - 0.5)
    assert torch.equal(inputs, before)


class Function(nn.Module):
    def __init__(self, function, **parts):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.function(x)


GENERATOR = torch.Generator().manual_seed(0)
REFUSED = {
    "dropout": (lambda x: functional.dropout(x), "differs from call to call: the network is random at evaluation"),
    "slight noise": (lambda x: x + 1e-9 * torch.randn_like(x), "random at evaluation"),
    "noise of NumPy": (lambda x: x * float(np.random.rand()), "random at evaluation"),  # noqa: NPY002
    "noise of its own": (lambda x: x + torch.rand(x.shape, generator=GENERATOR), "depends on the other images"),
    "mean of the batch": (lambda x: x - x.mean(0, keepdim=True), "depends on the other images"),
    "detached mean of the batch": (lambda x: x - x.mean(0, keepdim=True).detach(), "depends on the other images"),
    "batch norm": (lambda x: functional.batch_norm(x, None, None, training=True), "depends on the other images"),
    "number of images": (lambda x: x * len(x), "depends on the other images"),
    "squeezed": (lambda x: x.flatten(1).squeeze(), "the representation of 1 images is a tensor of float32"),
    "tuple": (lambda x: (x, x), "is a tuple, expected floats"),
    "text": (lambda x: "cat", "is a str, expected floats"),
    "classes": (lambda x: x.flatten(1).argmax(1), "is a tensor of int64 of shape"),
    "one number": (lambda x: x.mean(), "is a tensor of float32 of shape \\(\\)"),
    "complex": (lambda x: torch.fft.fft2(x), "is a tensor of complex64"),
    "not finite": (lambda x: x / 0, "is not finite"),
    "detached": (lambda x: x.detach(), "has no gradient"),
    "constant": (lambda x: x * 0 + 1, "has no gradient"),
    "error": (lambda x: x.view(7), "^mine cannot be run with images of 8 × 8 pixels, RGB, NCHW: another input_size"),
    "own error": (lambda x: [][1], "^mine cannot be run with .*It says: list index out of range"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_attribution_could_do_nothing_with_is_refused(name):
    function, message = REFUSED[name]
    encoder = made(Function(function))
    with pytest.raises(ValueError, match=message) as caught:
        encoder.check()
    assert str(caught.value).startswith("mine")


@pytest.mark.parametrize(
    ("net", "options", "message"),
    [
        (lambda: network().half(), {}, "its weights are float16 and its inputs float32; call .float()"),
        (lambda: network().double(), {}, "its weights are float64"),
        (lambda: network().bfloat16(), {}, "its weights are bfloat16"),
        (lambda: nn.Conv2d(4, 2, 1), {}, "its first convolution reads 4 channels"),
        (lambda: nn.Conv2d(1, 2, 1), {}, "its first convolution reads 1 channels; channels='GREY' gives it that"),
        (lambda: nn.Conv2d(3, 2, 1), {"channels": "GREY"}, "channels='RGB' or 'BGR' gives it that"),
        (lambda: network(), {"input_size": (9, 9)}, "another input_size, channels or layout .* can say otherwise"),
    ],
)
def test_errors_of_the_network_say_what_may_help(net, options, message):
    with pytest.raises(ValueError, match=f"^mine cannot be run with images of .*{message}.* It says: "):
        made(net(), **options).check()


def test_a_network_in_training_mode_is_refused():
    encoder = made()
    encoder.check()
    encoder.network[1].train()
    with pytest.raises(ValueError, match=r"mine: the network is in training mode \(1\): call its eval\(\)"):
        encoder.check()


def test_two_passes_are_enough_and_nothing_changes():
    sizes = []
    encoder = made(Function(lambda x: sizes.append(len(x)) or torch.tanh(x)))
    state = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder.check()
    assert sizes == [2, 1] and torch.equal(torch.get_rng_state(), state)
    made(nn.Sequential(nn.Dropout(), nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1))).check()


# fingerprints


class Net(nn.Module):
    def __init__(self, factor=1.0, seed=0):
        super().__init__()
        self.inner, self.factor = network(seed=seed), factor

    def forward(self, x):
        return self.inner(x) * self.factor


def part(x, n):
    return x[:, :n]


class Places:
    def __init__(self, n):
        self.n = n

    def __call__(self, x):
        return part(x, self.n)

    def first(self, x):
        return part(x, self.n)


def test_fingerprints_tell_encoders_apart():
    net = network()
    with torch.no_grad():
        moved = network()
        moved[0].bias[0] += 1e-7
    encoders = [
        made(),
        made(moved),
        made(network(seed=1)),
        made(network().bfloat16()),
        made(input_size=(8, 9)),
        made(mean=0.5),
        made(std=0.5),
        made(scale=255),
        made(channels="BGR"),
        made(layout="NHWC"),
        made(channels="GREY"),
        made(channels="GREY", grey=(0.25, 0.5, 0.25)),
        made(sources={"net": "0"}),
        Encoder("other", network(), task="none", family="toy", input_size=SIZE),
        made(Net()),
        made(Net(factor=2.0)),
        *(made(net, represent=net[:k]) for k in (1, 2)),
        *(made(net, represent=functools.partial(part, n=n)) for n in (2, 3)),
        *(made(net, represent=lambda x, n=n: part(x, n)) for n in (2, 3)),
        *(made(net, represent=Places(n)) for n in (2, 3)),
        *(made(net, represent=Places(n).first) for n in (2, 3)),
        *(made(net, represent=function) for function in (torch.tanh, torch.sigmoid, functional.silu)),
        made(net, represent=lambda x: x + 1),
        made(net, represent=lambda x: x + 2),
        made(net, represent=lambda x: Net(seed=1)(x)),
    ]
    prints = [encoder.fingerprint() for encoder in encoders]
    assert len(set(prints)) == len(prints)
    assert prints == [encoder.fingerprint() for encoder in encoders]
    assert made().fingerprint() == prints[0] and all(len(one) == 64 for one in prints)
    encoders[0].preprocess(np.zeros((1, 5, 5, 3)))
    encoders[0].check()
    assert encoders[0].fingerprint() == prints[0]


CODE = """
import torch
from torch import nn
import helper
LIMIT = 6.0
WIDTHS = [4, 2]

def limited(x):
    return torch.clamp(x, max=LIMIT)

class Base(nn.Module):
    def end(self, x):
        return x * 2

class Net(Base):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, WIDTHS[0], 1)
        nn.init.constant_(self.layer.weight, 0.1)
        nn.init.constant_(self.layer.bias, 0.1)
    def forward(self, x):
        return self.end(helper.shift(limited(self.layer(x))))
"""
HELPER = "def shift(x):\n    return x + 1\n"


def hand_made(path, code=CODE, helper=HELPER):
    """The fingerprint, in a process of its own, of a network that is made by hand from two files."""
    path.mkdir(exist_ok=True)
    (path / "nets.py").write_text(code)
    (path / "helper.py").write_text(helper)
    program = f"""
    import sys
    sys.path.insert(0, {str(path)!r})
    import nets
    from support import zoo
    made = zoo.Encoder("mine", nets.Net(), task="", family="", input_size=(8, 8), represent=lambda x: nets.limited(x))
    print(made.fingerprint())
    """
    root = Path(zoo.__file__).parents[1]
    options = {"capture_output": True, "text": True, "check": True, "cwd": root, "timeout": 120}
    return subprocess.run([sys.executable, "-c", textwrap.dedent(program)], **options).stdout


def test_the_code_of_networks_that_are_made_by_hand_counts(tmp_path):
    first = hand_made(tmp_path / "a")
    assert hand_made(tmp_path / "b", code=f"# moved down\n\n{CODE}") == first
    changes = [("max=LIMIT", "min=LIMIT"), ("LIMIT = 6.0", "LIMIT = 7.0"), ("x * 2", "x * 3")]
    others = {hand_made(tmp_path / "c", code=CODE.replace(*change)) for change in changes}
    others.add(hand_made(tmp_path / "d", helper=HELPER.replace("+ 1", "+ 2")))
    assert len(others | {first}) == 5


def test_the_same_in_cells_that_are_typed():
    """Functions without a file, as in a notebook, and values that come in several kinds."""
    spaces = []
    for text in ("x + 1", "x + 1", "x + 2"):
        space = {"__name__": "__main__", "torch": torch}
        exec(f"def represent(x):\n    return {text}", space)
        spaces.append(space["represent"])
    one, same, other = map(identity.sha256, spaces)
    assert one == same != other
    kinds = [
        1,
        1.0,
        "1",
        b"1",
        None,
        True,
        (1,),
        [2],
        {1: 2},
        {3},
        np.float32(1),
        np.ones(1),
        torch.ones(1),
        torch.float16,
    ]
    kinds += [types.SimpleNamespace(a=1), types.SimpleNamespace(a=2), np.array(["a", None], object), range(3), nn.ReLU]
    assert len({identity.sha256(kind) for kind in kinds}) == len(kinds)
    loop = []
    loop.append(loop)
    assert identity.sha256(loop) == identity.sha256(loop)
