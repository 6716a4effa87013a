"""Networks whose maps would be wrong are refused by name; half precision, checkpointing, compiling change nothing."""

import copy
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_attribution import attribute, probe, toy
from torch import nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from support import attribution, methods, passes, similarity
from support.encoder import Encoder


class Net(nn.Module):
    """Two convolutions, and what is done between them and after them."""

    def __init__(self, between=torch.relu, after=lambda x: x, around=lambda function, x: function(x)):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 4, 3, 1, 1)
        self.between, self.after, self.around = between, after, around
        self.register_buffer("kept", torch.zeros(6, 1, 1))
        self.calls = 0

    def forward(self, x):
        return self.after(self.around(lambda x: self.last(self.between(self.first(x))), x))


def encoder(network, name="mine", **settings):
    return Encoder(name, network, task="toy", family="toy", input_size=(12, 12), **settings)


def remembers(net):
    def between(x):
        net.kept = 0.9 * net.kept + 0.1 * x.detach().mean((0, 2, 3))[:, None, None]
        return torch.relu(x - 1e-4 * net.kept)

    net.between = between
    return net


def counts(net):
    def after(x):
        net.calls += 1
        return x * (1 + 1e-6 * net.calls)

    net.after = after
    return net


def noisy_gradient(x):
    x.register_hook(lambda gradient: gradient + torch.randn_like(gradient))
    return x


class NoisyBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 1

    @staticmethod
    def backward(ctx, gradient):
        return gradient * torch.from_numpy(np.random.default_rng().uniform(0, 2, gradient.shape).astype(np.float32))


class CutBelow(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 1

    @staticmethod
    def backward(ctx, gradient):
        return gradient * torch.nan


OWN = torch.Generator().manual_seed(0)
REFUSED = {
    "functional dropout": (lambda: Net(lambda x: F.dropout(x, 0.5)), "random at evaluation"),
    "dropout of hardly anything": (lambda: Net(lambda x: F.dropout(x, 1e-6)), "random at evaluation"),
    "noise": (lambda: Net(lambda x: x + 1e-7 * torch.randn_like(x)), "random at evaluation"),
    "bernoulli": (lambda: Net(lambda x: x * torch.bernoulli(torch.full_like(x, 0.5))), "random at evaluation"),
    "NumPy's numbers": (lambda: Net(lambda x: x * np.random.uniform()), "random at evaluation"),  # noqa: NPY002
    "little noise of its own": (
        lambda: Net(lambda x: x + 1e-7 * torch.randn(x.shape, generator=OWN)),
        "random at evaluation",
    ),
    "much noise of its own": (
        lambda: Net(lambda x: x + torch.from_numpy(np.random.default_rng().normal(size=x.shape)).float()),
        "depends on the other|random at evaluation",
    ),
    "random gradient": (lambda: Net(noisy_gradient), "random at evaluation"),
    "random backward": (lambda: Net(NoisyBackward.apply), "depends on the other|random at evaluation"),
    "detached mean of the batch": (lambda: Net(lambda x: x - x.mean(0).detach()), "other images of its batch"),
    "detached deviation of the batch": (
        lambda: Net(lambda x: x / x.std((0, 2, 3), keepdim=True).detach()),
        "other images of its batch",
    ),
    "mean of the batch": (lambda: Net(lambda x: x - x.mean(0)), "other images of its batch"),
    "batch norm in training": (
        lambda: Net(lambda x: F.batch_norm(x, None, None, training=True)),
        "other images of its batch",
    ),
    "size of the batch": (lambda: Net(lambda x: x / len(x)), "other images of its batch"),
    "rank in the batch": (lambda: Net(lambda x: x * torch.arange(1, len(x) + 1)[:, None, None, None].flip(0)), "batch"),
    "squeezed": (lambda: Net(after=lambda x: x.mean((2, 3)).squeeze()), "expected floats"),
    "remembers in a buffer": (lambda: remembers(Net()), "remembers"),
    "remembers in a number": (lambda: counts(Net()), "remembers"),
    "a tuple": (lambda: Net(after=lambda x: (x, x)), "is a tuple, expected floats"),
    "nothing": (lambda: Net(after=lambda x: None), "is a NoneType"),
    "detached": (lambda: Net(after=lambda x: x.detach()), "no gradient with respect to the image"),
    "through NumPy": (lambda: Net(lambda x: torch.from_numpy(x.detach().numpy())), "no gradient"),
    "no gradient mode": (lambda: Net(torch.no_grad()(torch.relu)), "no gradient"),
    "whole numbers": (lambda: Net(after=lambda x: x.long()), "int64"),
    "complex": (lambda: Net(after=torch.fft.fft), "complex64"),
    "three axes": (lambda: Net(after=lambda x: x.flatten(2)), "expected floats"),
    "without an axis of images": (lambda: Net(after=lambda x: x.mean(0, keepdim=True)), "axis of 2 images"),
    "not finite": (lambda: Net(after=lambda x: x / 0), "not finite"),
    "gradient not finite": (lambda: Net(CutBelow.apply), "gradient of the representation is not finite"),
    "constant": (lambda: Net(after=lambda x: x * 0), "no gradient"),
    "double": (lambda: Net().double(), "float64.*call .float"),
    "another size": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 11 * 11, 4)), "cannot be run.*12 × 12"),
    "an error of its own": (lambda: Net(lambda x: {}["key"]), "cannot be run"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_would_give_wrong_maps_is_refused_by_name(kind):
    make, message = REFUSED[kind]
    with pytest.raises(ValueError, match=f"(?s)^mine.*({message})"):
        attribute([toy("good"), encoder(make())], probe(n=2), "saliency")


def test_training_mode_is_refused_wherever_it_is():
    one = encoder(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.BatchNorm2d(4))))
    attribute(one, probe(n=2), "saliency")
    one.network[1][0].train()
    with pytest.raises(ValueError, match=r"mine: .*training mode \(1.0\)"):
        attribute(one, probe(n=2), "saliency")
    one.network.eval()
    one.network[0].weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="mine: .*not finite"):
        attribute(one, probe(n=2), "saliency")


def fixed_noise(x):
    return x + torch.randn(x.shape[1:], generator=torch.Generator().manual_seed(0))


class Cached(nn.Module):
    """What is computed at the first call and kept is not what was seen."""

    def __init__(self):
        super().__init__()
        self.grid, self.convolution = None, nn.Conv2d(3, 4, 3)

    def forward(self, x):
        if self.grid is None:
            self.grid = torch.linspace(0, 1, x.shape[-1])
        return self.convolution(x * self.grid)


def test_what_looks_alike_and_is_right_is_not_refused():
    rights = [Net(fixed_noise), Cached(), Net(lambda x: F.dropout(x, 0.5, training=False)), Net(nn.Dropout().eval())]
    counting = Net()
    counting.after = lambda x: setattr(counting, "calls", counting.calls + 1) or x
    for network in [*rights, counting]:
        network.eval()
        first, second = (attribute(encoder(network), probe(n=3), "saliency").values for _ in range(2))
        np.testing.assert_array_equal(first, second)


def test_a_network_is_tried_with_two_passes_and_only_once():
    sizes, one = [], toy()
    one.network.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    attribute(one, probe(n=4), "saliency")
    assert sizes == [2, 1, 4]
    attribute(one, probe(n=4), "saliency")
    assert sizes == [2, 1, 4, 4]
    one.network[0].weight.mul_(2)
    attribute(one, probe(n=4), "saliency")
    assert sizes == [2, 1, 4, 4, 2, 1, 4]


def cosines(found, expected):
    p, q = (np.asarray(maps, np.float64).reshape(-1, np.prod(maps.shape[-2:])) for maps in (found, expected))
    return (p * q).sum(1) / np.linalg.norm(p, axis=1) / np.linalg.norm(q, axis=1)


def deep():
    torch.manual_seed(0)
    layers, n = [nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU()], 32
    for m in (64, 128, 256):
        layers += [nn.Conv2d(n, m, 3, 2, 1, bias=False), nn.BatchNorm2d(m), nn.ReLU()]
        n = m
    return nn.Sequential(*layers).eval()


class Inside(nn.Module):
    """A network in half precision with other ends."""

    def __init__(self, network, dtype, how):
        super().__init__()
        self.network, self.dtype, self.how = network, dtype, how
        if how in ("weights", "output"):
            self.network.to(dtype)

    def forward(self, x):
        if self.how == "autocast":
            with torch.autocast("cpu", dtype=self.dtype):
                return self.network(x)
        if self.how == "activations":
            return self.network[3:](self.network[:3](x).to(self.dtype).float())
        if self.how == "asked for":
            return self.network(x.to(next(self.network.parameters()).dtype))
        values = self.network(x.half() if self.dtype is torch.float16 else x.bfloat16())
        return values if self.how == "output" else values.float()


@pytest.mark.parametrize("how", ["weights", "output", "autocast", "activations"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inside_gives_the_maps_of_single_precision(tmp_path, how, dtype):
    half, images = Inside(deep(), dtype, how), probe(n=2, side=96)
    single = copy.deepcopy(half.network).float()
    settings = {"task": "toy", "family": "toy", "input_size": (96, 96)}
    one, other = Encoder("half", half, **settings), Encoder("half", single, **settings)
    before = [values.clone() for values in half.state_dict().values()]
    for name in ("saliency", "gradient_x_input", "epsilon_lrp", "whitened_energy"):
        out = {"out": tmp_path / name} if name == "saliency" else {}
        assert cosines(attribute(one, images, name, **out), attribute(other, images, name)).min() > 0.9999
    assert all(torch.equal(a, b) for a, b in zip(before, half.state_dict().values(), strict=True))
    units = passes.representations([one], images, "cpu")["half"]
    assert units.dtype == np.float32 and np.isfinite(similarity.matrix({"a": units, "b": units}, "cka")).all()


def test_float16_of_a_network_with_single_ends_underflows_without_this(monkeypatch):
    half, images = Inside(deep(), torch.float16, "weights"), probe(n=1, side=224)
    one = Encoder("half", half, task="toy", family="toy", input_size=(224, 224))
    good = attribute(one, images, "gradient_x_input")
    monkeypatch.setattr(passes, "check", lambda encoder: False)
    assert cosines(attribute(one, images, "gradient_x_input"), good).max() < 0.999


def test_half_precision_that_cannot_be_reached_is_refused():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        compiled = torch.jit.script(nn.Conv2d(6, 6, 1).half().requires_grad_(False))

    def inside(x):
        with torch._C.DisableTorchFunction():
            return compiled(x.half()).float()

    with pytest.raises(ValueError, match="mine: .*(float16|Half)"):
        attribute(encoder(Net(inside)), probe(n=2), "saliency")


def checkpointed(reentrant):
    return lambda function, x: checkpoint(function, x, use_reentrant=reentrant)


AROUND = {
    "not reentrant": checkpointed(False),
    "reentrant": checkpointed(True),
    "nested": lambda function, x: checkpoint(
        lambda x: checkpoint(function, x, use_reentrant=True), x, use_reentrant=False
    ),
    "in pieces": lambda function, x: checkpoint_sequential([lambda x: x * 1, function], 2, x, use_reentrant=False),
    "compiled": lambda function, x: torch.compile(function, backend="aot_eager")(x),
    "compiled as a method": torch.compile(lambda function, x: function(x), backend="aot_eager"),
}


@pytest.mark.parametrize("name", AROUND)
def test_checkpointing_and_compiling_change_no_map(name):
    plain, other = (encoder(Net(F.silu, around=around)) for around in (lambda f, x: f(x), AROUND[name]))
    for method in attribution.METHODS:
        found, expected = (attribute(one, probe(n=3), method) for one in (other, plain))
        np.testing.assert_array_equal(found, expected, err_msg=method)
    assert torch.utils.checkpoint.CheckpointFunction.__name__ == "CheckpointFunction"


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 3 * ctx.saved_tensors[0] ** 2


Ratio = type("Ratio", (Cube,), {})
View = type("View", (Cube,), {})
with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)

    @torch.jit.script
    def half_of_it(x: torch.Tensor):
        x = x * 1
        x[:, :3].tanh_()
        return x


def packed(x):
    with torch.autograd.graph.saved_tensors_hooks(lambda v: v, lambda v: v):
        return torch.tanh(x)


def untouched(x):
    with torch._C.DisableTorchFunction():
        x = x * 1
        x[:, :3].tanh_()
        return x


def by_operator(x):
    x = x * 1
    torch.ops.aten.tanh_.default(x[:, :3])
    return x


ROUND_THE_RULES = {
    "function of its own": (Cube.apply, "Cube"),
    "function with the name of ours": (Ratio.apply, "Ratio"),
    "function with the name of a linear one": (View.apply, "View"),
    "compiled change of a view": (half_of_it, "view in place"),
    "change of a view with the rules switched off": (untouched, "view in place"),
    "change of a view by an operator": (by_operator, "view in place|Tanh"),
    "operator": (torch.ops.aten.tanh.default, "Tanh"),
    "hooks of saved tensors": (packed, "again in the backward pass"),
    "vmap": (torch.vmap(torch.tanh), "."),
    "gradient inside": (torch.func.vmap(torch.func.grad(lambda v: (v**3).sum())), "."),
    "attention": (
        lambda x: F.scaled_dot_product_attention(*[x.flatten(2)] * 3).view_as(x),
        "ScaledDotProduct|Softmax|Bmm of two",
    ),
    "recurrent": (lambda x: LSTM(x.flatten(2))[0].reshape(x.shape), "Sigmoid|Tanh|Rnn"),
    "many heads": (lambda x: HEADS(*[x.flatten(2)] * 3)[0].view_as(x), "Softmax|ScaledDotProduct|Bmm of two"),
    "an encoder's layer": (lambda x: LAYER(x.flatten(2)).view_as(x), "Softmax|ScaledDotProduct|LayerNorm"),
    "lookup": (lambda x: torch.where(x > 0, x, 0.1 * x), "Where"),
    "two activations in one function": (lambda x: torch.clamp(x, min=x.flip(1)), "Clamp"),
}
LSTM = nn.LSTM(36, 36, batch_first=True).eval().requires_grad_(False)
HEADS = nn.MultiheadAttention(36, 2, batch_first=True).eval().requires_grad_(False)
LAYER = nn.TransformerEncoderLayer(36, 2, 8, batch_first=True).eval().requires_grad_(False)


@pytest.mark.parametrize("name", ROUND_THE_RULES)
def test_what_runs_round_the_rules_of_epsilon_lrp_is_refused_by_name(name):
    between, message = ROUND_THE_RULES[name]
    one = encoder(Net(between))
    assert np.isfinite(attribute(one, probe(n=2), "saliency")).all()
    with pytest.raises(ValueError, match=f"^mine: (?s:.*)({message})"):
        attribute(one, probe(n=2), "epsilon_lrp")


def test_changes_of_views_that_the_rules_see_are_no_trouble():
    def in_place(x):
        x = x * 1
        x[:, :3].tanh_()
        x = x * 1
        x[:, 3:] = x[:, 3:] * 2
        x[:, 1].copy_(x[:, 2])
        return x

    def apart(x):
        first = torch.tanh(x[:, :3])
        return torch.cat([first[:, :1], first[:, 2:], first[:, 2:], x[:, 3:] * 2], 1)

    found, expected = (attribute(encoder(Net(between)), probe(n=2), "epsilon_lrp") for between in (in_place, apart))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)


def test_a_network_that_changes_its_input_has_the_maps_of_one_that_does_not():
    def forward(x, in_place):
        if in_place:
            x -= 0.5
            return x * 2
        return (x - 0.5) * 2

    pair = [encoder(Net(around=lambda f, x, p=p: f(forward(x, p)))) for p in (True, False)]
    for method in attribution.METHODS:
        np.testing.assert_array_equal(*(attribute(one, probe(n=3), method) for one in pair))


def test_maps_that_are_zero_or_not_finite_are_named():
    images = probe(n=3)
    images[1] = 0
    with pytest.warns(UserWarning, match=r"zero everywhere .*: toy, image 1 \(gradient_x_input\)\."):
        maps = attribute(toy(), images, ["saliency", "gradient_x_input"])
    assert (maps[1, 0, 1] == 0).all() and (maps[0, 0] != 0).any(("y", "x")).all()

    def bad_where_dark(x):
        return x * torch.where(x.mean((1, 2, 3), keepdim=True) == 0, torch.nan, 1.0)

    with pytest.raises(ValueError, match="mine: the saliency map of image 1 is not finite"):
        attribute(encoder(Net(around=lambda f, x: f(bad_where_dark(x)))), images, "saliency")


def test_a_method_from_outside_is_one_entry(monkeypatch):
    from support import figures
    from support.chapters import evaluation

    entry = methods.Method("|gradient × input|", "exploratory", methods.MEAN, lambda p: (p.gradient * p.inputs).abs())
    monkeypatch.setitem(methods.TABLE, "size", entry)
    images, encoders = probe(n=3), [toy("a"), toy("b", seed=1)]
    assert attribution.METHODS[-1] == "size" and "size" in attribution.EXPLORATORY
    assert figures.METHOD_TITLES["size"] == "|gradient × input|"
    maps = attribute(encoders, images, ["gradient_x_input", "size"], channels="keep")
    np.testing.assert_allclose(maps[1], abs(maps[0]), rtol=1e-6)
    scores = evaluation.affinities(encoders, images, ["size", "saliency"], device="cpu", progress=False)
    assert scores.score.values.tolist() == ["size", "saliency"] and np.isfinite(scores).all()
    with pytest.raises(AttributeError, match="NAMES"):
        getattr(attribution, "NAMES")  # noqa: B009


def test_a_file_with_checkpointing_loads_and_has_the_maps_of_one_without(tmp_path):
    from support import zoo

    code = "import torch\nfrom torch import nn\nfrom torch.utils.checkpoint import checkpoint\n"
    code += "class Net(nn.Module):\n    def __init__(self, way):\n        super().__init__()\n"
    code += (
        "        torch.manual_seed(0)\n        self.a, self.b, self.way = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), way\n"
    )
    code += "    def part(self, x):\n        return self.b(nn.functional.silu(self.a(x)))\n    def forward(self, x):\n"
    code += "        if self.way == 'plain':\n            return self.part(x)\n"
    code += "        return checkpoint(self.part, x, use_reentrant=self.way == 'reentrant')\n"
    code += "".join(f"def {way}(): return Net({way!r})\n" for way in ("plain", "reentrant", "other"))
    (tmp_path / "net.py").write_text(code)
    plain, reentrant, other = (
        zoo.load(f"python:{tmp_path / 'net.py'}:{way}#b", preprocessing={"input_size": (12, 12)})
        for way in ("plain", "reentrant", "other")
    )
    expected = attribute(plain, probe(n=2), "epsilon_lrp")
    for one in (reentrant, other):
        np.testing.assert_array_equal(attribute(one, probe(n=2), "epsilon_lrp"), expected)
