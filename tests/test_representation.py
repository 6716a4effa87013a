"""The rule for the representation of torch networks: no learned layer of the head is overlooked; what a tap gives."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations
from torch.utils import checkpoint

from support.encoder import NotARepresentation
from support.sources import representation

SIZE = (32, 32)


def body():
    layers = [nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Conv2d(4, 8, 3, 2), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Headed(nn.Module):
    """A body of convolutions, and a head that is a function of the module and the pooled features."""

    def __init__(self, head, **parts):
        super().__init__()
        self.body, self.head = body(), head
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.head(self, self.body(x))


class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(weight)
        return x @ weight.T

    @staticmethod
    def backward(ctx, gradient):
        return gradient @ ctx.saved_tensors[0], None


class Projection(nn.Linear):
    def project(self, x):
        return functional.linear(x, self.weight)


class Clamped(nn.Linear):
    """A layer that changes its own weights when it runs."""

    def forward(self, x):
        self.weight.clamp_(-1, 1)
        return super().forward(x)


def values(*shape):
    return nn.Parameter(torch.randn(*shape))


def linear(**options):
    return {"fc": nn.Linear(8, 2)} | options


def attended(net, x):
    x = x[:, None]
    return net.fc(query=x, key=x, value=x)[0][:, 0]


HEADS = {
    "plain": lambda: Headed(lambda net, x: net.fc(x), **linear()),
    "one output": lambda: Headed(lambda net, x: net.fc(x), fc=nn.Linear(8, 1)),
    "keyword": lambda: Headed(lambda net, x: net.fc(input=x), **linear()),
    "spectral norm": lambda: Headed(lambda net, x: net.fc(x), fc=parametrizations.spectral_norm(nn.Linear(8, 2))),
    "weight norm": lambda: Headed(lambda net, x: net.fc(x), fc=parametrizations.weight_norm(nn.Linear(8, 2))),
    "orthogonal": lambda: Headed(lambda net, x: net.fc(x), fc=parametrizations.orthogonal(nn.Linear(8, 2))),
    "old spectral norm": lambda: Headed(lambda net, x: net.fc(x), fc=nn.utils.spectral_norm(nn.Linear(8, 2))),
    "weights of a module": lambda: Headed(lambda net, x: functional.linear(x, net.fc.weight, net.fc.bias), **linear()),
    "parameter": lambda: Headed(lambda net, x: x @ net.w, w=values(8, 2)),
    "vector": lambda: Headed(lambda net, x: x @ net.w, w=values(8)),
    "list of parameters": lambda: Headed(lambda net, x: x @ net.w[0], w=nn.ParameterList([values(8, 2)])),
    "tensor that is no parameter": lambda: Headed(lambda net, x: x @ net.w, w=torch.randn(8, 2)),
    "two factors": lambda: Headed(lambda net, x: functional.linear(x, net.a @ net.b), a=values(2, 3), b=values(3, 8)),
    "made by another layer": lambda: Headed(
        lambda net, x: functional.linear(x, net.make(net.z).view(2, 8)), z=values(1, 4), make=nn.Linear(4, 16)
    ),
    "written out": lambda: Headed(lambda net, x: (x[:, None] * net.w).sum(-1), w=values(2, 8)),
    "written out for one output": lambda: Headed(lambda net, x: (x * net.w).sum(-1, keepdim=True), w=values(8)),
    "distances to prototypes": lambda: Headed(lambda net, x: (x[:, None] - net.w).pow(2).sum(-1), w=values(2, 8)),
    "cdist": lambda: Headed(lambda net, x: torch.cdist(x, net.w), w=values(2, 8)),
    "cosine": lambda: Headed(
        lambda net, x: functional.linear(functional.normalize(x), functional.normalize(net.w)), w=values(2, 8)
    ),
    "einsum": lambda: Headed(lambda net, x: torch.einsum("nc,oc->no", x, net.w), w=values(2, 8)),
    "functional call": lambda: Headed(
        lambda net, x: torch.func.functional_call(net.fc, dict(net.fc.named_parameters()), (x,)), **linear()
    ),
    "vmap": lambda: Headed(
        lambda net, x: torch.func.vmap(lambda w: functional.linear(x, w))(net.w).mean(0), w=values(3, 2, 8)
    ),
    "another method": lambda: Headed(lambda net, x: net.fc.project(x), fc=Projection(8, 2)),
    "forward itself": lambda: Headed(lambda net, x: net.fc.forward(x), **linear()),
    "attention": lambda: Headed(attended, fc=nn.MultiheadAttention(8, 2, batch_first=True)),
    "LSTM": lambda: Headed(lambda net, x: net.fc(x[:, None])[0][:, 0], fc=nn.LSTM(8, 2, batch_first=True)),
    "GRU": lambda: Headed(lambda net, x: net.fc(x[:, None])[0][:, 0], fc=nn.GRU(8, 2, batch_first=True)),
    "bilinear": lambda: Headed(lambda net, x: net.fc(x, x), fc=nn.Bilinear(8, 8, 2)),
    "own function": lambda: Headed(lambda net, x: Product.apply(x, net.w), w=values(2, 8)),
    "checkpoint": lambda: Headed(lambda net, x: checkpoint.checkpoint(net.fc, x, use_reentrant=False), **linear()),
    "old checkpoint": lambda: Headed(lambda net, x: checkpoint.checkpoint(net.fc, x, use_reentrant=True), **linear()),
    "nested": lambda: Headed(
        lambda net, x: net.fc(x), fc=nn.Sequential(nn.Dropout(), nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 2)))
    ),
    "dictionary": lambda: Headed(lambda net, x: {"logits": net.fc(x)}, **linear()),
    "changes its weights": lambda: Headed(lambda net, x: net.fc(x), fc=Clamped(8, 2)),
    "convolution": lambda: Headed(lambda net, x: net.fc(x[..., None, None]).flatten(1), fc=nn.Conv2d(8, 2, 1)),
}


def found(network, layer=""):
    network.eval().requires_grad_(False)
    inputs = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "None of the inputs have requires_grad|`torch.nn.utils.*deprecated")
        represent, what, alternatives = representation.find(network, layer, inputs, SIZE)
    assert not any(value.requires_grad for value in network.parameters())
    return represent(inputs), what, alternatives


@pytest.mark.parametrize("name", HEADS)
def test_no_head_is_overlooked(name):
    network = HEADS[name]()
    units, what, alternatives = found(network)
    assert what == "the output of body.3"
    assert alternatives == {"body.1": "4 × 15 × 15", "body.3": "8 × 7 × 7"}
    inputs = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    assert torch.equal(units, network.body[:4](inputs))


def test_norms_on_all_layers():
    network = HEADS["plain"]()
    for layer in (network.body[0], network.body[2], network.fc):
        parametrizations.spectral_norm(layer)
    assert found(network)[1] == "the output of body.3"


def test_what_is_added_or_scaled_is_no_learned_layer():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.scale, self.shift = body()[:4], values(8, 1, 1), values(8, 7, 7)

        def forward(self, x):
            return functional.relu(self.body(x) * self.scale + self.shift)

    assert found(Scaled())[1] == "the output of body.1"  # the last learned layer is the second convolution


def test_a_layer_that_is_called_again_in_the_head_is_taken_where_it_ends_the_body():
    relu = nn.ReLU()
    network = nn.Sequential(nn.Conv2d(3, 4, 3, 2), relu, nn.Conv2d(4, 8, 3, 2), relu, nn.AdaptiveAvgPool2d(1))
    network = nn.Sequential(*network, nn.Flatten(), nn.Linear(8, 6), relu, nn.Linear(6, 2))
    units, what, alternatives = found(network)
    assert what == "the output of 1, call 2"
    assert alternatives == {"1, call 1": "4 × 15 × 15", "1, call 2": "8 × 7 × 7"}
    assert units.shape == (2, 8, 7, 7) and units.min() == 0
    assert torch.equal(found(network, "1, call 2")[0], units)
    assert found(network, "1, call 1")[0].shape == (2, 4, 15, 15) and found(network, "1")[0].shape == (2, 6)
    with pytest.raises(NotARepresentation, match="layer '1' is not called 4 times"):
        found(network, "1, call 4")
    for name in ("1, call 0", "1, call x", "9, call 1"):
        with pytest.raises(NotARepresentation, match="unknown layer"):
            found(network, name)


class ByFunction(nn.Module):
    """The second convolution is a call of a function, so that no layer has its output."""

    def __init__(self):
        super().__init__()
        self.first, self.relu, self.second, self.fc = (
            nn.Conv2d(3, 4, 3, 2),
            nn.ReLU(),
            values(8, 4, 3, 3),
            nn.Linear(8, 2),
        )

    def forward(self, x):
        x = functional.conv2d(self.relu(self.first(x)), self.second, stride=2)
        return self.fc(functional.relu(x).mean((2, 3)))


def test_features_that_no_layer_makes_are_asked_for_and_not_replaced_by_earlier_ones():
    with pytest.raises(NotARepresentation, match="made by a function and not by a layer.*`represent`.*after a #"):
        found(ByFunction())
    assert found(ByFunction(), "relu")[0].shape == (2, 4, 15, 15)
    network = Headed(lambda net, x: x)
    network.forward = lambda x: functional.linear(
        functional.conv2d(x, network.body[0].weight).mean((2, 3)), torch.ones(2, 4)
    )
    with pytest.raises(NotARepresentation, match="made by a function"):
        found(network)


def test_an_output_without_gradient_is_told():
    with pytest.raises(NotARepresentation, match="what it gives has no gradient with respect to the image"):
        found(Headed(lambda net, x: net.fc(x).detach(), **linear()))


@pytest.mark.parametrize("layer", ["0", "2"])
@pytest.mark.parametrize("change", [nn.ReLU(True), nn.Hardswish(True), nn.Dropout(inplace=True), "mul_", "copy"])
def test_a_named_layer_gives_what_it_made_whatever_follows_in_place(layer, change):
    class Changes(nn.Module):
        def forward(self, x):
            return x.mul_(2) if change == "mul_" else x.copy_(x.flip(1))

    after = change if isinstance(change, nn.Module) else Changes()
    network = nn.Sequential(nn.Conv2d(3, 4, 3, 2), after, nn.Conv2d(4, 8, 3, 2), after)
    units, what, _ = found(network, layer)
    inputs = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    expected = network[0](inputs)
    if layer == "2":
        expected = network[2](after(expected))
    assert what == f"the output of {layer}" and torch.equal(units, expected)


def test_the_input_of_a_layer_is_what_it_read():
    class Reads(nn.Module):
        def forward(self, *, x):
            return x.mul_(0)

    network = Headed(lambda net, x: net.fc(x=x), fc=Reads())
    inputs = torch.randn(2, 3, *SIZE)
    assert torch.equal(representation.Tap(network, "fc", "input")(inputs), network.body(inputs))


def test_what_a_layer_cannot_give_is_told():
    network = Headed(lambda net, x: net.fc(x[:, None])[0][:, 0], fc=nn.LSTM(8, 2, batch_first=True), spare=nn.ReLU())
    with pytest.raises(NotARepresentation, match="layer 'fc' makes a tuple, expected one tensor"):
        found(network, "fc")
    with pytest.raises(NotARepresentation, match="layer 'spare' is not called"):
        found(network, "spare")
    with pytest.raises(NotARepresentation, match="unknown layer 'body.7'; near it are 'body.5'"):
        found(network, "body.7")
