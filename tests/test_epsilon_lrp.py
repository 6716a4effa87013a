"""ε-LRP against the Jacobian written out, against zennit and Captum, and against what the papers state."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from captum.attr import LRP
from torch import nn

from support import epsilon_lrp

TINY = 1e-9


@pytest.fixture(autouse=True)
def double_precision():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def frozen(*layers):
    network = nn.Sequential(*layers).eval().requires_grad_(False)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for statistic in (layer.running_mean, layer.running_var, layer.weight, layer.bias):
                statistic.uniform_(0.5, 1.5)
    return network


def mean_unit(network):
    return lambda x: network(x).flatten(1).mean(1)


def modified(network, inputs, epsilon=TINY):
    return epsilon_lrp.modified_gradient(mean_unit(network), inputs, epsilon)


def plain(network, inputs):
    inputs = inputs.clone().requires_grad_()
    return torch.autograd.grad(mean_unit(network)(inputs).sum(), inputs)[0]


def images(batch=4, channels=3, side=8):
    return torch.randn(batch, channels, side, side)


def conv(channels_in=3, channels_out=5, bias=True):
    return nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=bias)


def test_equals_the_jacobian_of_three_layers_written_out():
    network = frozen(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.Sigmoid(), nn.Linear(4, 3))
    x, epsilon = torch.randn(2, 6), 1e-2
    (w1, b1), (w2, b2), (w3, _) = ((network[i].weight.numpy(), network[i].bias.numpy()) for i in (0, 2, 4))
    for row, found in zip(x.numpy(), modified(network, x, epsilon).numpy(), strict=True):
        z1 = w1 @ row + b1
        g1 = np.tanh(z1) / (z1 + epsilon * np.where(z1 < 0, -1, 1))
        z2 = w2 @ np.tanh(z1) + b2
        g2 = 1 / (1 + np.exp(-z2)) / (z2 + epsilon * np.where(z2 < 0, -1, 1))
        jacobian = w3 @ np.diag(g2) @ w2 @ np.diag(g1) @ w1
        np.testing.assert_allclose(found, jacobian.mean(0), rtol=1e-10)


def relu_network(bias=True):
    return frozen(
        conv(bias=bias), nn.ReLU(), conv(5, 6, bias), nn.LeakyReLU(), nn.MaxPool2d(2), conv(6, 4, bias), nn.ReLU()
    )


def test_is_gradient_times_input_for_relu_networks_as_epsilon_vanishes():
    network, x = relu_network(), images()
    errors = [(modified(network, x, e) - plain(network, x)).abs().max().item() for e in (1e-2, 1e-4, 1e-6, 1e-8)]
    assert errors == sorted(errors, reverse=True) and errors[0] > 1e-4
    assert errors[-1] < 1e-5 * plain(network, x).abs().max()


def test_differs_from_the_gradient_where_the_nonlinearity_bends():
    network, x = frozen(conv(), nn.Tanh(), conv(5, 4)), images()
    assert (modified(network, x) - plain(network, x)).norm() > 0.05 * plain(network, x).norm()


def test_total_is_the_output_without_biases():
    x = images()
    for network in (relu_network(bias=False), frozen(conv(bias=False), nn.Tanh(), conv(5, 4, bias=False), nn.SiLU())):
        total = (x * modified(network, x, 1e-12)).sum((1, 2, 3))
        torch.testing.assert_close(total, mean_unit(network)(x), rtol=1e-6, atol=1e-9)


def test_captums_lrp_agrees_where_captum_has_rules():
    network = frozen(conv(), nn.ReLU(), nn.MaxPool2d(2), conv(5, 6), nn.Tanh(), conv(6, 4), nn.AdaptiveAvgPool2d(1))
    x = images()
    expected = sum(LRP(network).attribute(x.clone().requires_grad_(), target=(i, 0, 0)) for i in range(4)) / 4
    torch.testing.assert_close(x * modified(network, x), expected.detach(), rtol=1e-5, atol=1e-7)


class Residual(nn.Module):
    """A block with batch norm and an addition that zennit can see (its Sum layer), or a plain one."""

    def __init__(self, activation, sum_layer):
        super().__init__()
        self.body = frozen(conv(5, 5), nn.BatchNorm2d(5), activation, conv(5, 5), nn.BatchNorm2d(5))
        self.sum_layer, self.activation = sum_layer, activation

    def forward(self, x):
        return self.activation(self.sum_layer(torch.stack([self.body(x), x], -1)))


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.Tanh()])
def test_zennits_epsilon_rule_agrees_on_a_residual_network_with_batch_norm(zennit, activation):
    network = frozen(conv(), activation, Residual(activation, zennit.layer.Sum()), nn.Flatten(), nn.Linear(320, 1))
    rules, x = zennit.rules, images().requires_grad_()
    linear = (nn.Conv2d, nn.Linear, nn.BatchNorm2d)
    composite = zennit.composites.LayerMapComposite(
        [
            (linear, rules.Epsilon(epsilon=TINY)),
            ((nn.ReLU, nn.Tanh), rules.Pass()),
            (zennit.layer.Sum, rules.Norm(stabilizer=TINY)),
        ]
    )
    with composite.context(network) as explained:
        output = explained(x)
        expected = torch.autograd.grad(output, x, output.detach())[0]
    torch.testing.assert_close(x.detach() * modified(network, x), expected, rtol=1e-5, atol=1e-7)


EVERY_NONLINEARITY = {
    "relu": F.relu,
    "relu6": F.relu6,
    "leaky_relu": F.leaky_relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "silu": F.silu,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "gelu": F.gelu,
    "elu": F.elu,
    "mish": F.mish,
    "softplus": F.softplus,
    "hardtanh": F.hardtanh,
    "clamp": lambda x: torch.clamp(x, 0.0, 6.0),
    "prelu": lambda x: F.prelu(x, torch.tensor([0.3])),
}


@pytest.mark.parametrize("name", EVERY_NONLINEARITY)
def test_the_derivative_of_every_nonlinearity_is_its_ratio(name):
    function, z = EVERY_NONLINEARITY[name], torch.tensor([[-3.0, -0.5, 0.2, 2.0, 7.0]])
    found = epsilon_lrp.modified_gradient(lambda x: function(x).sum(1), z, TINY)
    torch.testing.assert_close(found, function(z) / z, rtol=1e-6, atol=1e-8)


SPELLINGS = {
    "relu": [
        nn.ReLU(),
        nn.ReLU(inplace=True),
        F.relu,
        torch.relu,
        torch.relu_,
        lambda x: x.relu(),
        lambda x: F.relu(x, True),
    ],
    "relu6": [
        nn.ReLU6(),
        nn.ReLU6(True),
        F.relu6,
        lambda x: x.clamp(0, 6),
        lambda x: x.clamp_(0, 6),
        nn.Hardtanh(0, 6, True),
    ],
    "leaky": [nn.LeakyReLU(0.01), nn.LeakyReLU(0.01, inplace=True), F.leaky_relu, F.leaky_relu_],
    "sigmoid": [nn.Sigmoid(), torch.sigmoid, F.sigmoid, torch.sigmoid_, lambda x: x.sigmoid(), torch.special.expit],
    "tanh": [nn.Tanh(), torch.tanh, F.tanh, lambda x: x.tanh_()],
    "silu": [
        nn.SiLU(),
        nn.SiLU(inplace=True),
        F.silu,
        lambda x: x * torch.sigmoid(x),
        lambda x: torch.sigmoid(x) * x,
        lambda x: torch.mul(x, x.sigmoid()),
        lambda x: x.mul_(x.sigmoid()),
    ],
    "hardswish": [
        nn.Hardswish(),
        nn.Hardswish(inplace=True),
        F.hardswish,
        lambda x: x * F.hardsigmoid(x),
        lambda x: x * F.relu6(x + 3) / 6,
        lambda x: x * (F.relu6(3 + x) / 6),
        lambda x: x * torch.clamp(x / 6 + 0.5, 0, 1),
    ],
    "gelu": [nn.GELU(), F.gelu, lambda x: x * 0.5 * (1 + torch.erf(x / 2**0.5))],
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_of_an_activation_gives_the_same(name):
    first, x = frozen(conv()), images()
    last = frozen(conv(5, 4))
    networks = [lambda x, f=f: last(f(first(x))) for f in SPELLINGS[name]]
    for network in networks[1:]:
        torch.testing.assert_close(network(x), networks[0](x))
        torch.testing.assert_close(modified(network, x, 1e-14), modified(networks[0], x, 1e-14), rtol=1e-6, atol=1e-9)


def test_values_inside_the_rules_are_unchanged_also_of_what_was_changed_in_place():
    def network(x):
        y = x * 2
        F.relu_(y)  # result not used: y itself must have changed
        y *= torch.sigmoid(x)
        return y

    x = images()
    with epsilon_lrp.Rules(1e-4):
        torch.testing.assert_close(network(x.clone().requires_grad_()), network(x))
    torch.testing.assert_close(
        modified(network, x), 2 * (x > 0) * torch.sigmoid(x) / x[0].numel(), rtol=1e-6, atol=1e-9
    )


def test_a_squeeze_and_excite_gate_takes_nothing():
    squeeze = frozen(nn.AdaptiveAvgPool2d(1), nn.Conv2d(5, 2, 1), nn.ReLU(), nn.Conv2d(2, 5, 1), nn.Sigmoid())
    body, x = frozen(conv()), images()
    gate = squeeze(body(x))
    expected = plain(lambda x: body(x) * gate, x)
    torch.testing.assert_close(modified(lambda x: body(x) * squeeze(body(x)), x), expected)
    as_vector = modified(lambda x: body(x) * squeeze(body(x)).flatten(1)[:, :, None, None].expand(-1, -1, 8, 8), x)
    torch.testing.assert_close(as_vector, expected)


@pytest.mark.parametrize(
    "signal, gate",
    [
        (nn.ReLU(), nn.Sigmoid()),
        (nn.ReLU6(), nn.Sigmoid()),
        (nn.ReLU6(), nn.Hardsigmoid()),
        (nn.ReLU6(), nn.ReLU6(True)),
        (nn.Sigmoid(), nn.Sigmoid()),
        (nn.Hardswish(True), nn.Hardsigmoid(True)),
    ],
)
def test_a_gate_that_is_broadcast_takes_nothing_whatever_the_signal_went_through(signal, gate):
    body, squeeze, x = frozen(conv(), signal), frozen(nn.AdaptiveAvgPool2d(1), nn.Conv2d(5, 5, 1), gate), images()
    constant = squeeze(body(x))
    expected = modified(lambda x: body(x) * constant, x)
    torch.testing.assert_close(modified(lambda x: body(x) * squeeze(body(x)), x), expected)


def cut(x):
    return x[:, :2]


def replaced(gate, values):
    gate[:, :4] = values[:, :4]
    return gate


SAME_NETWORK = {  # written in place, and without; the second is a function of activations a, b, c
    "add to a gate": (lambda a, b, c: a.sigmoid().add_(b) * c, lambda a, b, c: (a.sigmoid() + b) * c),
    "scale a gate": (lambda a, b, c: a.sigmoid().mul_(b) * c, lambda a, b, c: (a.sigmoid() * b) * c),
    "skip into ReLU6": (
        lambda a, b, c: F.relu6(a).__iadd__(b) * c.sigmoid(),
        lambda a, b, c: (F.relu6(a) + b) * c.sigmoid(),
    ),
    "one-sided clamp": (lambda a, b, c: a * b.clamp(min=0), lambda a, b, c: a * F.relu(b)),
    "add by keyword": (lambda a, b, c: torch.add(a.sigmoid(), other=b) * c, lambda a, b, c: (a.sigmoid() + b) * c),
    "gate in pieces": (
        lambda a, b, c: c * torch.cat(a.sigmoid().chunk(5, 1), 1).clone(),
        lambda a, b, c: c * a.sigmoid(),
    ),
    "gate after dropout": (lambda a, b, c: c * F.dropout(a.sigmoid(), training=False), lambda a, b, c: c * a.sigmoid()),
    "gate of gates": (
        lambda a, b, c: c * (a.sigmoid() * b.sigmoid()),
        lambda a, b, c: c * (a.sigmoid() * b.sigmoid()).detach(),
    ),
    "gate resized": (
        lambda a, b, c: c * F.interpolate(a.sigmoid(), c.shape[2:]),
        lambda a, b, c: c * a.sigmoid().detach(),
    ),
    "values set": (lambda a, b, c: replaced(a.sigmoid(), b) * c, lambda a, b, c: replaced(a.sigmoid() + 0 * b, b) * c),
    "values replaced": (lambda a, b, c: a.sigmoid().copy_(b) * c, lambda a, b, c: b * c),
}


@pytest.mark.parametrize("name", SAME_NETWORK)
def test_in_place_or_not_a_gate_is_known_by_its_values(name):
    layers, x = [frozen(conv()) for _ in range(3)], images()
    found, expected = (modified(lambda x, f=f: f(*(layer(x) for layer in layers)), x) for f in SAME_NETWORK[name])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    "hidden, operation",
    [
        (lambda x: cut(x).exp_(), "Exp"),
        (lambda x: cut(x).pow_(2), "Pow"),
        (lambda x: x.view(-1).abs_(), "Abs"),
        (lambda x: cut(x).__ipow__(2), "Pow"),
        (lambda x: cut(x).div_(x[:, 2:4]), "division by an activation"),
        (lambda x: cut(x).mul_(other=x[:, 2:4]), "Mul of two activations"),
    ],
)
def test_an_operation_without_a_rule_cannot_hide_in_a_view(hidden, operation):
    def network(x):
        y = first(x) * 1
        hidden(y)
        return y

    first = frozen(conv())
    with pytest.raises(ValueError, match=operation):
        modified(network, images())


def test_a_rule_reaches_into_a_view():
    first, x = frozen(conv()), images()

    def in_place(x):
        y = first(x) * 1
        cut(y).tanh_()
        return y

    def apart(x):
        y = first(x)
        return torch.cat([torch.tanh(y[:, :2]), y[:, 2:]], 1)

    torch.testing.assert_close(modified(in_place, x), modified(apart, x))


def test_trainable_parameters_are_refused():
    with pytest.raises(ValueError, match="freeze"):
        modified(nn.Sequential(conv(), nn.ReLU()), images())


@pytest.mark.parametrize(
    "product",
    [
        lambda a, b: a * b,
        lambda a, b: (a * 1).mul_(b),
        lambda a, b: a @ b,
        lambda a, b: torch.matmul(a, b.transpose(-1, -2)),
        lambda a, b: torch.einsum("bcij,bcjk->bcik", a, b),
        lambda a, b: a * a,
    ],
)
def test_any_other_product_is_shared_equally_and_its_total_kept(product):
    first, second, x = frozen(conv(bias=False)), frozen(conv(bias=False)), images()

    def network(x):
        return product(first(x), second(x))

    torch.testing.assert_close((x * modified(network, x)).sum((1, 2, 3)), mean_unit(network)(x))
    torch.testing.assert_close(modified(network, x), plain(network, x) / 2)


@pytest.mark.parametrize("affine", [False, True])
def test_instance_norm_takes_its_deviation_for_a_constant(affine):
    norm = nn.InstanceNorm2d(3, eps=1e-3, affine=affine).requires_grad_(False)
    if affine:
        norm.weight.uniform_(0.5, 1.5), norm.bias.uniform_(-1, 1)
    first, last, x = frozen(conv(3, 3)), frozen(conv(3, 4), nn.ReLU()), images()

    def network(x):
        return last(norm(first(x)))

    deviation = (first(x).var((2, 3), unbiased=False, keepdim=True) + 1e-3).sqrt()

    def by_hand(x):
        values = first(x)
        values = (values - values.mean((2, 3), keepdim=True)) / deviation
        return last(values * norm.weight.view(3, 1, 1) + norm.bias.view(3, 1, 1) if affine else values)

    torch.testing.assert_close(network(x), by_hand(x))
    torch.testing.assert_close(modified(network, x), plain(by_hand, x), rtol=1e-5, atol=1e-7)
    assert (modified(network, x) - plain(network, x)).abs().max() > 1e-4


def test_instance_norm_keeps_the_total_that_its_gradient_loses():
    network, x = frozen(nn.InstanceNorm2d(3, eps=1e-12), conv(bias=False), nn.ReLU()), images()
    torch.testing.assert_close((x * modified(network, x)).sum((1, 2, 3)), mean_unit(network)(x))
    torch.testing.assert_close((x * plain(network, x)).sum((1, 2, 3)), torch.zeros(len(x)))


WITHOUT_RULE = {
    "Softmax": lambda x: x.softmax(1),
    "Exp": torch.exp,
    "Pow": lambda x: x**2,
    "Abs": torch.abs,
    "NativeLayerNorm": lambda x: F.layer_norm(x, x.shape[1:]),
    "its own input": lambda x: F.batch_norm(x, None, None, training=True),
    "division by an activation": lambda x: x / (x + 10),
    "Reciprocal": lambda x: 1 / x,
    "Maximum": lambda x: torch.maximum(x, -x),
    "Relu": torch.jit.script(nn.ReLU()),  # compiled code is not seen by the rules
    "gradient was cut": lambda x: x.detach(),
    "Convolution of two": lambda x: F.conv2d(x, x[:5, :, :3, :3].clone()),
}


@pytest.mark.parametrize("name", WITHOUT_RULE)
def test_an_operation_without_a_rule_is_named(name):
    first = frozen(conv(3, 5))
    with pytest.raises(ValueError, match=name):
        modified(lambda x: WITHOUT_RULE[name](first(x)), images(batch=5))


def test_batch_norm_in_training_mode_is_refused():
    network = frozen(conv(), nn.BatchNorm2d(5))
    modified(network, images())
    network.train()
    with pytest.raises(ValueError, match="training mode"):
        modified(network, images())


@pytest.mark.parametrize("epsilon", [0, -1e-3, float("nan")])
def test_epsilon_must_be_positive(epsilon):
    with pytest.raises(ValueError, match="positive"):
        modified(relu_network(), images(), epsilon)


def test_the_rules_are_undone_whatever_happens_inside():
    def fails(x):
        F.tanh(x)
        raise RuntimeError("inside")

    x, network = images(), frozen(conv(), nn.Tanh())
    before = plain(network, x)
    with pytest.raises(RuntimeError, match="inside"):
        modified(fails, x)
    torch.testing.assert_close(plain(network, x), before, rtol=0, atol=0)
    modified(network, x)
    torch.testing.assert_close(plain(network, x), before, rtol=0, atol=0)
