"""ε-LRP as a modified gradient: inside `Rules`, every nonlinearity's derivative is f(z)/z.

Ancona et al. (2018), "Towards better understanding of gradient-based attribution methods for deep neural networks",
Proposition 1: layer-wise relevance propagation with the ε rule is the input times a gradient in which the derivative
of each nonlinearity f at its pre-activation z is replaced by the ratio f(z)/z. Everything that is linear in the
activations (convolution, batch norm in evaluation mode, addition, average pooling, padding, …) keeps its ordinary
gradient. Four operations need a decision:

* **Max-pooling** keeps its ordinary gradient: the winner takes all, as in Ancona et al.'s own program.
* **A gate times a signal** (squeeze-and-excite; SiLU or hard-swish written out): the gate counts as a constant and the
  signal takes all (Arras et al. 2017, "Explaining recurrent neural network predictions in sentiment analysis",
  Section 3). x · sigmoid(x) then has the ratio of SiLU. A gate is the output of a function that saturates on both
  sides, also after constants, gates or changes of shape were applied to it. Sigmoids, made for gating, come before
  clipped linear functions, which are activations as well (ReLU6); between two of one kind it is the one that is
  broadcast over the other.
* **Instance norm** subtracts the mean, which is linear, and divides by the standard deviation, which counts as a
  constant (Ali et al. 2022, "XAI for Transformers: better explanations through conservative propagation", Section 4,
  for layer norm). Its full gradient, multiplied by the input, would sum to zero, whatever comes after it.
* **Any other product of two activations**, matrix products too: each factor takes half (Achtibat et al. 2024,
  "AttnLRP", Section 3.3.2), so that the total is kept; the plain gradient would count it twice.

Softmax, layer norm, powers and all else without a rule raise an error that names the operation. So does what the rules
do not reach and autograd's graph does not show: a function of torch.autograd.Function, a change of a view in place by
compiled code, and what is computed again in the backward pass.
"""

import inspect
import numbers
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.graph import disable_saved_tensors_hooks
from torch.overrides import TorchFunctionMode

NONLINEARITIES = (
    "relu relu6 leaky_relu prelu elu selu celu gelu silu mish softplus logsigmoid hardswish hardsigmoid sigmoid "
    "tanh hardtanh clamp clamp_min clamp_max clip erf"
).split()
GATES = {"sigmoid": 2, "hardsigmoid": 2, "erf": 2, "relu6": 1, "hardtanh": 1, "clamp": 1, "clip": 1}  # saturating
PRODUCTS = {"mul", "multiply", "rmul", "imul", "matmul", "rmatmul", "bmm", "mm", "einsum"}
KEEP_GATE = {
    *"add radd iadd sub rsub isub mul multiply rmul imul div divide truediv itruediv neg".split(),
    *"view view_as reshape flatten unflatten squeeze unsqueeze expand expand_as broadcast_to repeat tile".split(),
    *"permute transpose movedim contiguous clone to float double half chunk split unbind getitem cat stack".split(),
    *"interpolate upsample pad dropout dropout2d".split(),
}
IN_PLACE = {"__iadd__", "__isub__", "__imul__", "__idiv__", "__itruediv__", "__ipow__", "__imod__", "__ifloordiv__"}
SAME_VALUES = {  # in-place methods that are linear, or change no value
    *"copy_ fill_ zero_ requires_grad_ detach_ squeeze_ unsqueeze_ transpose_ t_ swapaxes_ swapdims_ resize_".split(),
    *"as_strided_ set_ share_memory_ rename_ unflatten_".split(),
}
TWO_FACTORS = set(  # linear in one factor as long as the other is a constant
    "Mul Mm Bmm Mv Addmm Baddbmm Linear MkldnnLinear Convolution NativeBatchNorm CudnnBatchNorm MiopenBatchNorm".split()
)
LINEAR = set(  # nodes of the autograd graph, without their suffix "Backward0"
    "AccumulateGrad Convolution SlowConvDilated2D Addmm Mm Mv Bmm Baddbmm Linear MkldnnLinear Add Sub Rsub Neg Mul Div "
    "Sum Mean NativeBatchNorm CudnnBatchNorm MiopenBatchNorm AvgPool2D AdaptiveAvgPool2D AdaptiveAvgPool1D "
    "MaxPool2DWithIndices MaxPool3DWithIndices AdaptiveMaxPool2D MkldnnMaxPool2D View UnsafeView ReshapeAlias Alias T "
    "Permute Transpose Expand Squeeze Unsqueeze Cat Stack Split SplitWithSizes Chunk Unbind Slice Select Index "
    "IndexSelect ConstantPadNd ReflectionPad2D ReplicationPad2D UpsampleBilinear2D UpsampleBilinear2DAa "
    "UpsampleNearest2D UpsampleBicubic2D Clone Copy CopySlices AsStrided ToCopy PixelShuffle PixelUnshuffle "
    "Repeat Flip Roll Im2Col".split()
)


class Ratio(torch.autograd.Function):
    """y = f(z) whose derivative is f(z) / (z + ε sign z)."""

    @staticmethod
    def forward(ctx: Any, z: torch.Tensor, function: Callable, epsilon: float) -> torch.Tensor:
        y = function(z)
        ratio = torch.where(z < 0, z.new_tensor(-epsilon), z.new_tensor(epsilon)).add_(z)
        torch.div(y, ratio, out=ratio)
        ctx.save_for_backward(ratio)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple:
        (ratio,) = ctx.saved_tensors
        return gradient * ratio, None, None


class HalfEach(torch.autograd.Function):
    """A product of two activations whose gradient is shared equally between the factors."""

    @staticmethod
    def forward(ctx: Any, product: Callable, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            ctx.factors = first.detach().requires_grad_(), second.detach().requires_grad_()
            ctx.product = product(*ctx.factors)
        return ctx.product.detach()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple:
        first, second = torch.autograd.grad(ctx.product, ctx.factors, gradient)
        return None, first / 2, second / 2


def _instance_norm(values, weight=None, bias=None, eps=1e-5):
    """Instance norm, (image, channel, …), whose gradient takes the standard deviation for a constant."""
    axes = tuple(range(2, values.ndim))
    deviation = (values.var(axes, unbiased=False, keepdim=True) + eps).sqrt().detach()
    normal = (values - values.mean(axes, keepdim=True)) / deviation
    for parameter, apply in ((weight, torch.mul), (bias, torch.add)):
        normal = normal if parameter is None else apply(normal, parameter.reshape(-1, *[1] * len(axes)))
    return normal


def _functions(names):
    """Every form in which torch offers these operations (functional, method, in place) → its plain name."""
    places = (torch, torch.Tensor, torch.nn.functional, torch._C._nn, torch.special)
    found = {}
    for name in names:
        for place in places:
            for form in (name, f"{name}_"):
                function = getattr(place, form, None)
                if callable(function):
                    found[function] = name
    found[torch.special.expit] = "sigmoid"
    return found


_NONLINEAR = _functions(NONLINEARITIES)


def _in_place(function, args, kwargs):
    name = getattr(function, "__name__", "")
    if name in IN_PLACE or (name.endswith("_") and not name.startswith("__")):
        return True
    try:
        return bool(inspect.signature(function).bind(*args, **kwargs).arguments.get("inplace", False))
    except (TypeError, ValueError):  # built-in functions have no signature, and no such argument
        return False


def _activations(*values):
    """Tensors that depend on the input, among arguments and lists of them."""
    flat = [v for value in values for v in (value if isinstance(value, list | tuple) else [value])]
    return [v for v in flat if isinstance(v, torch.Tensor) and v.requires_grad]


def _gate(tensor):
    """0: no gate, 1: output of a clipped linear function, 2: output of a sigmoid."""
    return getattr(tensor, "gate", 0)


def _mark(result, gate):
    for tensor in result if isinstance(result, list | tuple) else [result]:
        if isinstance(tensor, torch.Tensor) and (gate or hasattr(tensor, "gate")):
            tensor.gate = gate
    return result


class Rules(TorchFunctionMode):
    """Context manager: operations run inside it get the ε-LRP gradient; outside, torch is as before.

    Values are unchanged. It acts on the calls themselves, so modules, functions, methods, operators and in-place
    variants are all covered, and nothing of the network is altered. Use `modified_gradient`, which also refuses
    operations that have no rule.

    Parameters
    ----------
    epsilon : float
        Stabiliser ε > 0, in units of the pre-activations.
    """

    def __init__(self, epsilon: float):
        super().__init__()
        self.epsilon = epsilon
        self.into_views: list = []  # nodes of changes of views that the rules have seen

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        changes = bool(args) and isinstance(args[0], torch.Tensor) and _in_place(function, args, kwargs)
        if changes and name not in SAME_VALUES and _activations(*args, *kwargs.values()):
            result = self._in_place(function, args, kwargs)
        else:
            result = self._apply(function, args, kwargs)
        if changes or name == "__setitem__":
            self.into_views.append((args[0] if args[0]._base is None else args[0]._base).grad_fn)
        return result

    def _in_place(self, function, args, kwargs):
        # In place, on a copy that then replaces the values: inside a view, autograd would hide the operation.
        target = args[0]
        result = self._apply(function, (_mark(target.clone(), _gate(target)), *args[1:]), kwargs, in_place=True)
        return _mark(target.copy_(result), _gate(result))

    def _apply(self, function, args, kwargs, in_place=False):
        plain_name = _NONLINEAR.get(function)
        if plain_name and _activations(*args[:1]) and len(_activations(*args, *kwargs.values())) == 1:
            z = args[0]

            def plain(values):
                return function(values.clone() if in_place else values, *args[1:], **kwargs)

            one_sided = (
                plain_name in {"clamp", "clip"} and sum(v is not None for v in (*args[1:], *kwargs.values())) < 2
            )
            return _mark(Ratio.apply(z, plain, self.epsilon), 0 if one_sided else GATES.get(plain_name, 0))
        if function is torch.nn.functional.instance_norm and _activations(*args[:1]):
            given = inspect.signature(function).bind(*args, **kwargs).arguments
            if given.get("use_input_stats", True):
                return _instance_norm(
                    given["input"], *(given.get(k) for k in ("weight", "bias")), given.get("eps", 1e-5)
                )
        name = getattr(function, "__name__", "").strip("_")
        involved = _activations(*args, *kwargs.values())
        gate = min(map(_gate, involved), default=0) if name in KEEP_GATE else 0
        places = [i for i, a in enumerate(args) if isinstance(a, torch.Tensor) and a.requires_grad]
        if name in PRODUCTS and len(places) == 2:
            return _mark(self._product(function, args, kwargs, places, in_place), gate)
        if name == "setitem":  # new values
            _mark(args[0], 0)
        return _mark(function(*args, **kwargs), gate)

    def _product(self, function, args, kwargs, places, in_place):
        def product(first, second):
            factors = list(args)
            factors[places[0]], factors[places[1]] = first, second
            if in_place:  # the factor itself must stay as it was, its value is needed for the gradient
                factors[0] = factors[0].clone()
            return function(*factors, **kwargs)

        first, second = (args[i] for i in places)
        rank_first, rank_second = ((_gate(a), -a.numel()) for a in (first, second))  # of two alike, the broadcast one
        if max(_gate(first), _gate(second)) == 0 or rank_first == rank_second:
            return HalfEach.apply(product, first, second)
        if rank_first > rank_second:
            return product(first.detach(), second)
        return product(first, second.detach())


def _operation(node):
    own = getattr(node, "_forward_cls", None)  # of torch.autograd.Function, whatever its name is
    if own is not None:
        return own.__name__ if own in (Ratio, HalfEach) else f"the function {own.__name__} of the network's own"
    return node.name().rsplit("::", 1)[-1].split("Backward")[0] or node.name()


def refuse_operations_without_rule(output: torch.Tensor, inputs: torch.Tensor, into_views: list | None = None) -> None:
    """Walk the autograd graph behind `output` and refuse what ε-LRP has no rule for.

    Parameters
    ----------
    output : torch.Tensor
        Result of a forward pass inside `Rules`.
    inputs : torch.Tensor
        What was passed forward.
    into_views : list, optional
        Of the `Rules`: the changes of views that they have seen. The graph does not say which operation such a change
        was, so that all others are refused.

    Raises
    ------
    ValueError
        The output does not depend differentiably on the input, an operation on the way has no rule (it is named), or
        the network has trainable parameters, which would count as activations.

    Examples
    --------
    >>> inputs = torch.ones(2, requires_grad=True)
    >>> refuse_operations_without_rule(inputs.softmax(0), inputs)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: ε-LRP has no rule for Softmax: ...
    """
    if output.grad_fn is None:
        raise ValueError("the representation does not depend on the input: its gradient was cut on the way")
    waiting, nodes = [output.grad_fn], {}
    while waiting:
        node = waiting.pop()
        if node not in nodes:
            nodes[node] = [parent for parent, _ in node.next_functions]
            waiting.extend(parent for parent in nodes[node] if parent is not None)
    if any(_operation(node) == "AccumulateGrad" and getattr(node, "variable", None) is not inputs for node in nodes):
        raise ValueError("the network has trainable parameters: freeze them with network.requires_grad_(False)")
    for node, parents in nodes.items():
        operation = _operation(node)
        factors = parents[1:] if operation in {"Addmm", "Baddbmm"} else parents  # their first operand is a summand
        trouble = None
        if operation not in LINEAR and operation not in ("Ratio", "HalfEach"):
            trouble = operation
        elif operation == "CopySlices" and node not in (into_views or ()):
            trouble = "a change of a view in place by code that the rules do not reach (TorchScript)"
        elif getattr(node, "_saved_training", False):
            trouble = f"{operation} with the statistics of its own input (batch norm in training mode)"
        elif operation == "Div" and parents[1] is not None:
            trouble = "division by an activation"
        elif operation in TWO_FACTORS and sum(parent is not None for parent in factors) > 1:
            trouble = f"{operation} of two activations, in a form that was not recognised"
        if trouble:
            raise ValueError(
                f"ε-LRP has no rule for {trouble}: take the representation before it, use another method "
                "(gradient_x_input), or add a rule to support/epsilon_lrp.py"
            )


def check_epsilon(epsilon: float, dtype: torch.dtype = torch.float32) -> None:
    """Refuse a stabiliser that is no positive number of a dtype.

    Parameters
    ----------
    epsilon : float
    dtype : torch.dtype, default torch.float32

    Raises
    ------
    ValueError
        It is not positive and finite, or too small or large for the dtype.

    Examples
    --------
    >>> check_epsilon(1e-4)
    """
    limits = torch.finfo(dtype)
    if not isinstance(epsilon, numbers.Real) or not limits.tiny <= epsilon <= limits.max:
        raise ValueError(
            f"epsilon must be positive and finite, from {limits.tiny:.0e} to {limits.max:.0e}, got {epsilon!r}"
        )


def modified_gradient(
    function: Callable[[torch.Tensor], torch.Tensor], inputs: torch.Tensor, epsilon: float = 1e-4
) -> torch.Tensor:
    """Gradient of a network's outputs with every nonlinearity's derivative replaced by f(z)/z.

    Parameters
    ----------
    function : callable
        Maps inputs to a float tensor of shape (batch,), each entry depending on its own input only; its parameters
        are frozen, its batch norms in evaluation mode.
    inputs : torch.Tensor
        Floating point, shape (batch, …).
    epsilon : float, default 1e-4
        Stabiliser: the ratio is f(z) / (z + ε sign z), with sign 0 = 1 (the default of Ancona et al.'s program).

    Returns
    -------
    torch.Tensor
        Same shape and dtype as `inputs`; times the inputs it is the ε-LRP attribution
        (Ancona et al. 2018, Proposition 1).

    Raises
    ------
    ValueError
        ε is not positive, or not finite in the dtype of the inputs; an operation of the network has no rule, it is
        named; the network has trainable parameters, or computes parts of itself again in the backward pass.

    Examples
    --------
    >>> modified_gradient(lambda x: torch.tanh(x).sum(1), torch.tensor([[0.0, 2.0]]))
    tensor([[0.0000, 0.4820]])
    """
    check_epsilon(epsilon, inputs.dtype)
    inputs = inputs.detach().requires_grad_()
    again = "ε-LRP does not reach what a network computes again in the backward pass (checkpointing, or other hooks "
    again += "for saved tensors): switch that off, or use another method (gradient_x_input)"
    with torch.enable_grad(), disable_saved_tensors_hooks(again), Rules(epsilon) as rules:
        output = function(inputs)
    refuse_operations_without_rule(output, inputs, rules.into_views)
    return torch.autograd.grad(output.sum(), inputs)[0]
