"""The attribution methods: an entry of `TABLE` each, with the scalar, the map and the title."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch

from support import epsilon_lrp

MEAN = "mean of the representation's units"
ENERGY = "whitened energy"


class Pass:
    """A batch of inputs and an encoder's representation of it. What several methods share is computed once.

    Parameters
    ----------
    represent : callable
        R: inputs → representation, float, (image, channel, y, x) or (image, feature), differentiable.
    inputs : torch.Tensor
        T(x), float, (image, channel, y, x) or (image, y, x, channel); not changed.
    epsilon : float
        Stabiliser of ε-LRP.
    whitening : tuple, optional
        As `passes.whitening` gives it; needed by methods of the group "invariant" only.

    Examples
    --------
    >>> a_pass = Pass(lambda x: x**2, torch.tensor([[1.0, 2.0]]), 1e-4)
    >>> TABLE["gradient_x_input"].rule(a_pass)
    tensor([[1., 4.]])
    """

    def __init__(self, represent: Callable, inputs: torch.Tensor, epsilon: float, whitening: tuple | None = None):
        self.represent, self.inputs = represent, inputs.detach()
        self.epsilon = epsilon
        self.whitening: Any = whitening

    def mean_unit(self, inputs: torch.Tensor) -> torch.Tensor:
        """Mean of all units, (image,)."""
        return self.represent(inputs).flatten(1).mean(1)

    @functools.cached_property
    def gradient(self) -> torch.Tensor:
        """Gradient of the mean unit, in the shape of the inputs."""
        inputs = self.inputs.detach().requires_grad_()
        with torch.enable_grad():
            return torch.autograd.grad(self.mean_unit(inputs).sum(), inputs)[0]

    @functools.cached_property
    def modified_gradient(self) -> torch.Tensor:
        """Gradient of the mean unit with the derivatives of ε-LRP, in the shape of the inputs."""
        return epsilon_lrp.modified_gradient(self.mean_unit, self.inputs, self.epsilon)

    @functools.cached_property
    def _units(self):
        inputs = self.inputs.detach().requires_grad_()
        with torch.enable_grad():
            return inputs, self.represent(inputs)

    def weighted(self, slope: torch.Tensor) -> torch.Tensor:
        """Gradient of Σ slope · R, in the shape of the inputs; slope in that of R, or with one image for all."""
        inputs, units = self._units
        return torch.autograd.grad(units, inputs, slope.expand_as(units), retain_graph=True)[0]

    def _whitening(self):
        if self.whitening is None:
            raise ValueError('a method that needs the whitening belongs to the group "invariant"')
        return self.whitening

    @functools.cached_property
    def energy_gradient(self) -> torch.Tensor:
        """Gradient of the whitened energy, in the shape of the inputs."""
        gradient, _ = self._whitening()
        return self.weighted(gradient(self._units[1].detach()))

    def similarity_gradients(self) -> torch.Tensor:
        """Gradients of the whitened similarity to each reference image times the inputs: (image, reference, …)."""
        _, at_references = self._whitening()
        return torch.stack([self.weighted(slope) * self.inputs for slope in at_references], 1)

    def unit_saliency(self) -> torch.Tensor:
        """Mean over all units of the absolute gradient of each, in the shape of the inputs."""
        inputs, units = self._units
        units, total = units.flatten(1), torch.zeros_like(inputs)
        for k in range(units.shape[1]):
            total += torch.autograd.grad(units[:, k].sum(), inputs, retain_graph=True)[0].abs()
        return total / units.shape[1]


@dataclasses.dataclass(frozen=True)
class Method:
    """What there is to know of an attribution method.

    Parameters
    ----------
    title : str
        How figures and tables call it.
    group : {"published", "invariant", "exploratory"}
        "published": of Song et al. (2019). "invariant": needs the whitening of the representation over all images.
    scalar : str
        What is attributed, in words.
    rule : callable
        `Pass` → map in the shape of the pass's inputs, or (image, reference, …) with `per_reference`.
    averaged : bool, default False
        Whether the evaluation averages its maps over the colours before it compares them.
    per_reference : bool, default False
        Whether its maps have one axis more, the reference image.

    Examples
    --------
    >>> Method("|gradient × input|", "exploratory", MEAN, lambda a_pass: (a_pass.gradient * a_pass.inputs).abs()).group
    'exploratory'
    """

    title: str
    group: str
    scalar: str
    rule: Callable[[Pass], torch.Tensor]
    averaged: bool = False
    per_reference: bool = False


TABLE: dict[str, Method] = {
    "saliency": Method("saliency", "published", MEAN, lambda p: p.gradient.abs(), averaged=True),
    "gradient_x_input": Method("gradient × input", "published", MEAN, lambda p: p.gradient * p.inputs, averaged=True),
    "epsilon_lrp": Method("ε-LRP", "published", MEAN, lambda p: p.inputs * p.modified_gradient, averaged=True),
    "whitened_energy": Method("whitened energy", "invariant", ENERGY, lambda p: p.energy_gradient),
    "whitened_energy_x_input": Method(
        "whitened energy × input", "invariant", ENERGY, lambda p: p.energy_gradient * p.inputs
    ),
    "relational": Method(
        "relational",
        "invariant",
        "whitened similarity to a reference image",
        Pass.similarity_gradients,
        per_reference=True,
    ),
    "gradient": Method("gradient", "exploratory", MEAN, lambda p: p.gradient),
    "unit_saliency": Method("unit saliency", "exploratory", "each of the representation's units", Pass.unit_saliency),
}  # a further method is a further entry, made here or from outside: TABLE["name"] = Method(…)


def names(*groups: str) -> tuple[str, ...]:
    """Names of the methods at this moment, those that were added from outside included.

    Parameters
    ----------
    *groups : str
        Of these groups only; all methods without one.

    Returns
    -------
    tuple of str
        In the order of `TABLE`.

    Examples
    --------
    >>> names("published")
    ('saliency', 'gradient_x_input', 'epsilon_lrp')
    """
    return tuple(name for name, method in TABLE.items() if not groups or method.group in groups)
