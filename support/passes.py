"""What every pass through a network shares: device, batches, precision, and the check of a network before all others."""

import contextlib
import dataclasses
import random
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.utils.checkpoint
import xarray as xr
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from support import invariant
from support.methods import Method, Pass
from support.encoder import Encoder

PIXELS_AT_ONCE = {"cpu": 2**19, "cuda": 2**23}  # first guess of a batch, halved when memory runs out
HALF = (torch.float16, torch.bfloat16)
TOLERANCES = {"value": 1e-3, "gradient": 1e-2}  # between an image alone and in a batch, relative to the Euclidean norm
_checked: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # encoder → (its state when checked, result)


@dataclasses.dataclass(frozen=True)
class Options:
    """What a job of attribution needs to know besides network and images; goes to other processes as it is.

    Parameters
    ----------
    methods : mapping of str to Method
        By name, in the order of the maps.
    epsilon, ridge : float
        Of ε-LRP, and of the whitening.
    references : tuple of int
        Positions of the reference images.
    channels : {"mean", "keep"}
    device : str or torch.device
        As `torch_device` takes it.
    batch_size : int or None
        Images at a time; None for a guess that is halved until it fits.
    """

    methods: Mapping[str, Method]
    epsilon: float
    ridge: float
    references: tuple[int, ...]
    channels: str
    device: str | torch.device
    batch_size: int | None = None

    @property
    def whitens(self) -> bool:
        """Whether a method needs the mean and the covariance of the representation over all images."""
        return any(method.group == "invariant" for method in self.methods.values())

    @property
    def per_reference(self) -> bool:
        """Whether the maps have an axis of reference images."""
        return any(method.per_reference for method in self.methods.values())


class Job(NamedTuple):
    """A network and what is missing of it: `check` says what `single` is."""

    encoder: Encoder
    single: bool
    missing: Sequence[slice]


def torch_device(name: str | torch.device) -> torch.device:
    """A device that is here.

    Parameters
    ----------
    name : str or torch.device
        "auto" takes a GPU where there is one; otherwise a torch device name.

    Returns
    -------
    torch.device

    Raises
    ------
    ValueError
        There is no such device, or it cannot compute.

    Examples
    --------
    >>> torch_device("cpu")
    device(type='cpu')
    """
    if isinstance(name, str) and name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).sum().item()  # "meta" has no values
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        message = (
            f'device {name!r} cannot be used here: choose "auto", "cpu", or "cuda" where torch sees a GPU ({error})'
        )
        raise ValueError(message) from None
    return device


@contextlib.contextmanager
def on(encoder: Encoder, device: str | torch.device) -> Iterator[None]:
    """Have an encoder on a device, and back where it was afterwards.

    Parameters
    ----------
    encoder : Encoder
    device : str or torch.device

    Examples
    --------
    >>> with on(encoder, "cpu"):  # doctest: +SKIP
    ...     encoder.represent(inputs)
    """
    home = encoder.device
    try:
        encoder.to(device)
        yield
    finally:
        encoder.to(home)


class _Single(TorchFunctionMode):
    """Context manager: what would be computed in float16 or bfloat16 is computed in float32.

    Gradients of a mean of many units underflow in float16, and bfloat16 has 8 binary digits. Weights are converted
    where they are used, so that nothing of the network changes; casts become casts to float32; autocast has no effect.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        def single(value):
            if isinstance(value, torch.Tensor):
                return value.float() if value.dtype in HALF else value
            return torch.float32 if isinstance(value, torch.dtype) and value in HALF else value

        if function in (torch.Tensor.half, torch.Tensor.bfloat16):
            function = torch.Tensor.float
        args, kwargs = tree_map(single, (args, kwargs or {}))
        with contextlib.ExitStack() as stack:
            for kind in ("cpu", "cuda"):
                if torch.is_autocast_enabled(kind):
                    stack.enter_context(torch.autocast(kind, enabled=False))
            return function(*args, **kwargs)


class _NoCheckpoint:
    """In the place of `torch.utils.checkpoint.CheckpointFunction`: calls the function."""

    @staticmethod
    def apply(function, preserve_rng_state, *args):
        return function(*args)


def _keep_all(*_, **__):
    """In the place of checkpointing's generator: does nothing before and after the function is called."""
    yield


@contextlib.contextmanager
def _plainly(single):
    """Networks run as they are written: operation by operation, once, in at least single precision.

    Checkpointing would run parts of a network again in the backward pass, where no rule reaches them, and torch.compile
    would run other operations than those that are written.
    """
    module = torch.utils.checkpoint
    before = module.CheckpointFunction, module._checkpoint_without_reentrant_generator
    with contextlib.ExitStack() as stack:
        if "torch._dynamo" in sys.modules:  # otherwise nothing is compiled
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        if single:
            stack.enter_context(_Single())
        module.CheckpointFunction, module._checkpoint_without_reentrant_generator = _NoCheckpoint, _keep_all
        try:
            yield
        finally:
            module.CheckpointFunction, module._checkpoint_without_reentrant_generator = before


def represent(encoder: Encoder, inputs: torch.Tensor, single: bool = False) -> torch.Tensor:
    """R of an encoder, run as attribution needs it.

    Checkpointing and torch.compile are off meanwhile; a network that changes its inputs in place changes a copy.

    Parameters
    ----------
    encoder : Encoder
    inputs : torch.Tensor
        As `Encoder.preprocess` gives them.
    single : bool, default False
        Compute in float32 what the network would compute in float16 or bfloat16, as `check` says.

    Returns
    -------
    torch.Tensor
        (image, channel, y, x) or (image, feature), float32 or float64.
    """
    with _plainly(single):
        units = encoder.represent(inputs.clone())
        return units.float() if isinstance(units, torch.Tensor) and units.dtype in HALF else units


def representations(
    encoders: Sequence[Encoder], images: xr.DataArray, device: str | torch.device = "auto"
) -> dict[str, np.ndarray]:
    """Representations by name, computed in batches on a device.

    Parameters
    ----------
    encoders : sequence of Encoder
    images : xarray.DataArray
        (image, y, x, channel), as `probe.load` returns them.
    device : str or torch.device
        As for `torch_device`.

    Returns
    -------
    dict of str to numpy.ndarray
        float32, (image, channel, y, x) or (image, feature).
    """
    device, found = torch_device(device), {}
    for encoder in encoders:
        with on(encoder, device), torch.no_grad():
            parts = batches(encoder, images, lambda inputs, e=encoder: represent(e, inputs), device)
            found[encoder.name] = np.concatenate([values.cpu().numpy() for _, values in parts])
    return found


def _is_lack_of_memory(error):
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "allocate memory" in text


def batches(
    encoder: Encoder, images: xr.DataArray, compute: Callable, device: torch.device, batch_size: int | None = None
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Compute something of all images, as many at a time as fit into memory.

    Parameters
    ----------
    encoder : Encoder
        On `device`.
    images : xarray.DataArray
        (image, y, x, channel).
    compute : callable
        Of the encoder's inputs for some images.
    device : torch.device
    batch_size : int, optional
        Images at a time. By default a guess from the input size, halved until a batch fits.

    Yields
    ------
    slice, object
        Which images, and what `compute` makes of them.

    Raises
    ------
    MemoryError
        Not even one image (or not `batch_size` images) fits into memory.
    ValueError
        The network cannot be run, or has no rule; the encoder is named.
    """
    height, width = encoder.input_size
    size = batch_size or max(1, PIXELS_AT_ONCE.get(device.type, 2**19) // (height * width))
    size = min(size, images.sizes["image"])
    start = 0
    while start < images.sizes["image"]:
        block = slice(start, min(start + size, images.sizes["image"]))
        try:
            result = compute(encoder.preprocess(images.isel(image=block)))
        except RuntimeError as error:
            if not _is_lack_of_memory(error):
                raise ValueError(f"{encoder.name}: {error}") from error
            if batch_size or size == 1:
                raise MemoryError(
                    f"{encoder.name}: {size} images of {height}×{width} do not fit into memory"
                ) from error
            size //= 2
            continue
        except ValueError as error:
            raise ValueError(f"{encoder.name}: {error}") from error
        yield block, result
        start = block.stop


def whitening(
    encoder: Encoder, images: xr.DataArray, blocks: Sequence[slice], options: Options, single: bool = False
) -> tuple | None:
    """What the methods of the group "invariant" need of all images, from one pass over them.

    Parameters
    ----------
    encoder : Encoder
        On the device of `options`.
    images : xarray.DataArray
        All probe images, (image, y, x, channel).
    blocks : sequence of slice
        Batches do not cross these blocks of images.
    options : Options
    single : bool
        As for `represent`.

    Returns
    -------
    tuple or None
        Gradient of the whitened energy with respect to R, as a function of R, and its values at the reference images;
        None where no method needs it.

    Raises
    ------
    ValueError, MemoryError
        The representation cannot be whitened, or as for `batches`; the encoder is named.
    """
    if not options.whitens:
        return None
    device, at_references = torch_device(options.device), {}

    def values():
        for whole in blocks:
            part = images.isel(image=whole)
            compute = torch.no_grad()(lambda inputs: represent(encoder, inputs, single))
            for block, units in batches(encoder, part, compute, device, options.batch_size):
                first = whole.start + block.start
                inside = [i for i in options.references if first <= i < whole.start + block.stop]
                at_references.update({i: units[i - first].clone() for i in inside})
                yield units

    try:
        gradient = invariant.energy_gradient(values(), options.ridge)
    except ValueError as error:
        if str(error).startswith(f"{encoder.name}: "):  # it came from a batch
            raise
        raise ValueError(f"{encoder.name}: {error}") from error
    return gradient, gradient(torch.stack([at_references[i] for i in options.references]))


def fill(
    maps: np.ndarray,
    encoder: Encoder,
    images: xr.DataArray,
    options: Options,
    whitened: tuple | None = None,
    single: bool = False,
    done: Callable[[int], object] = lambda n_images: None,
) -> list[tuple[str, object]]:
    """Write the maps of all images into an array, batch by batch.

    Parameters
    ----------
    maps : numpy.ndarray
        float32, (method, image, …), in the order of `options.methods`; written to.
    encoder : Encoder
        On the device of `options`.
    images : xarray.DataArray
        (image, y, x, channel).
    options : Options
    whitened : tuple, optional
        As `whitening` gives it.
    single : bool
        As for `represent`.
    done : callable, optional
        Is told after each batch how many images it had.

    Returns
    -------
    list of tuple
        (method, label of the image) of maps that are zero everywhere.

    Raises
    ------
    ValueError, MemoryError
        A map is not finite (encoder, method and image are named), or as for `batches`.
    """
    size, labels, zero = (images.sizes["y"], images.sizes["x"]), images.image.values, []

    def compute(inputs):
        one = Pass(lambda values: represent(encoder, values, single), inputs, options.epsilon, whitened)
        return [method.rule(one) for method in options.methods.values()]

    for block, several in batches(encoder, images, compute, torch_device(options.device), options.batch_size):
        several = [encoder.restore(one.flatten(0, -4), size).unflatten(0, one.shape[:-3]).cpu() for one in several]
        several = torch.stack([one if options.channels == "keep" else one.mean(-1) for one in several])
        maps[:, block] = several
        largest = several.flatten(2).abs().amax(2)
        if not (largest > 0).all():  # which is not a number either
            for name, values in zip(options.methods, largest.tolist(), strict=True):
                zero += [(name, label) for label, value in zip(labels[block], values, strict=True) if value == 0]
        if not largest.isfinite().all():
            method, image = (int(i) for i in (~largest.isfinite()).nonzero()[0])
            raise ValueError(
                f"{encoder.name}: the {list(options.methods)[method]} map of image {labels[block][image]} is not "
                "finite, so that it has no direction: leave out this image or network, or use another method or epsilon"
            )
        done(block.stop - block.start)
    return zero


class _Watch(TorchDispatchMode):
    """Context manager: notes whether anything is computed in half precision, and which operations draw numbers."""

    def __init__(self):
        super().__init__()
        self.half, self.random = None, None

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if torch.Tag.nondeterministic_seeded in function.tags:
            self.random = str(function)
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.dtype in HALF:
                self.half = str(tensor.dtype).removeprefix("torch.")
        return result


def _state(encoder):
    """What tells whether a network is still what it was: modes, plain attributes, versions of all tensors."""
    found = [id(encoder.network), id(vars(encoder).get("represent")), id(vars(encoder).get("preprocess"))]
    for path, module in encoder.network.named_modules():
        found += [(path, k, v) for k, v in vars(module).items() if isinstance(v, bool | int | float | str)]
        tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        found += [(path, k, id(v), 0 if v.is_inference() else v._version) for k, v in tensors]
    return found


def check(encoder: Encoder) -> bool:
    """Refuse a network that attribution would give wrong maps for, and say how to run the others.

    Two passes through the network are made, of two small images and of the first of them alone, each with a gradient;
    a third where the network draws random numbers or changes its own state, and two more where it computes in half
    precision. The result is kept as long as the network stays as it is.

    Parameters
    ----------
    encoder : Encoder
        Any, made by `zoo.load` or by hand.

    Returns
    -------
    bool
        Whether float16 or bfloat16 occur inside, which `represent` then replaces by float32.

    Raises
    ------
    ValueError
        The encoder is named, and what is wrong: a part in training mode; inputs or outputs that are not finite floats
        of the right shape; a network that cannot be run; one whose gradient is cut or zero; one that is random or
        remembers; one in which an image depends on the others of its batch, by more than `TOLERANCES`.
    """
    state = _state(encoder)
    if _checked.get(encoder, (None,))[0] != state:
        training = [path or "the whole" for path, module in encoder.network.named_modules() if module.training]
        if training:
            _refuse(encoder, f"its network is in training mode ({training[0]}): call encoder.network.eval()")
        inputs = _trial(encoder)
        tensors = [*encoder.network.parameters(), *encoder.network.buffers()]
        single = any(tensor.dtype in HALF for tensor in tensors)
        found = _examine(encoder, inputs, single)
        if found and not single:
            single, found = True, _examine(encoder, inputs, True)
        if found:
            _refuse(encoder, f"its network computes in {found} where that cannot be changed, and gradients would "
                    "underflow: convert it with network.float(), or give it as ordinary modules")  # fmt: skip
        _checked[encoder] = _state(encoder), single
    return _checked[encoder][1]


def _refuse(encoder, reason):
    raise ValueError(f"{encoder.name}: {reason}")


def _trial(encoder):
    """Inputs of two images that differ in brightness and contrast, alike from call to call."""
    images = np.random.default_rng(0).random((2, *encoder.input_size, 3), np.float32)
    images[1] *= 0.25
    inputs = encoder.preprocess(images)
    if not (isinstance(inputs, torch.Tensor) and inputs.is_floating_point() and len(inputs) == 2):
        _refuse(encoder, "its preprocessing makes no tensor of floats with an axis of images")
    if not inputs.isfinite().all():
        _refuse(encoder, "its preprocessing makes values that are not finite: look at its scale, mean and std")
    return inputs


def _draws():
    """State of the common generators of random numbers."""
    torchs = [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [])]
    _, words, *rest = np.random.get_state()  # noqa: NPY002
    return [state.tolist() for state in torchs], words.tobytes(), rest, random.getstate()


def _examine(encoder, inputs, single):
    """The half precision that occurs inside, or None; refuses what `check` says."""
    watch = _Watch()
    with watch:
        together, of_both = _values_and_gradient(encoder, inputs, single)
    if watch.half:
        return watch.half
    if len(of_both) > 1 and of_both[1:].any():
        _refuse(encoder, "the representation of an image depends on the other images of its batch")
    before = _draws(), _state(encoder)
    alone, of_one = _values_and_gradient(encoder, inputs[:1], single)
    after = _draws(), _state(encoder)
    if before[0] != after[0]:
        _refuse(encoder, f"its network draws random numbers ({watch.random or 'not by torch'}), also in evaluation "
                "mode, so that no two maps of it are the same: take that out of its forward or backward pass")  # fmt: skip
    if watch.random or before[1] != after[1]:
        again, of_it = _values_and_gradient(encoder, inputs[:1], single)
        if not (torch.equal(alone, again) and torch.equal(of_one, of_it)):
            _refuse(encoder, "the same image gives another result at the second time: the network is random, or "
                    "changes its own state when it is run")  # fmt: skip
    factor = 1 if inputs.device.type == "cpu" else 10  # TF32, and other algorithms for other sizes
    pairs = {"value": (alone[0], together[0]), "gradient": (of_one[0], of_both[0])}
    for what, (one, other) in pairs.items():
        if not (one - other).norm() <= TOLERANCES[what] * factor * other.norm():
            _refuse(encoder, f"the {what} of its representation is another one for an image alone than in a batch: "
                    "the network is random, remembers, or uses statistics of the batch")  # fmt: skip
    return None


def _refuse_running(encoder, inputs, error):
    if _is_lack_of_memory(error):
        raise MemoryError(f"{encoder.name}: {len(inputs)} images of its input size do not fit into memory") from error
    line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    dtypes = {tensor.dtype for tensor in encoder.network.parameters()} - {torch.float32, *HALF}
    hint = f"; its weights are {dtypes.pop()}, convert them with network.float()" if dtypes else ""
    raise ValueError(
        f"{encoder.name}: its network cannot be run and differentiated with inputs of shape {tuple(inputs.shape)}, "
        f"{inputs.dtype}{hint}. It says: {line}"
    ) from error


def _values_and_gradient(encoder, inputs, single):
    """Representation, and the gradient of a sum of the first image's units with signs at random, both checked."""
    leaf = inputs.detach().requires_grad_()
    try:
        with torch.enable_grad():
            units = represent(encoder, leaf, single)
    except Exception as error:  # whatever a network of somebody else's raises
        _refuse_running(encoder, inputs, error)
    expected = "expected a tensor of floats, (image, channel, y, x) or (image, feature)"
    if not isinstance(units, torch.Tensor):
        _refuse(encoder, f"its representation is a {type(units).__name__}, {expected}")
    what = f"its representation of {len(inputs)} images is {units.dtype} of shape {tuple(units.shape)}, {expected}"
    if not units.is_floating_point() or units.ndim not in (2, 4) or len(units) != len(inputs) or 0 in units.shape:
        _refuse(encoder, what)
    if not units.isfinite().all():
        _refuse(encoder, "its representation of random images is not finite: look at its weights and preprocessing")
    if not units.requires_grad:
        _refuse(encoder, "its representation does not depend on the input: its gradient was cut on the way "
                "(detach, no_grad, or a detour over NumPy)")  # fmt: skip
    signs = torch.from_numpy(np.random.default_rng(0).choice([-1.0, 1.0], units.shape[1:])).to(units)
    try:
        (gradient,) = torch.autograd.grad((units[0] * signs).sum(), leaf, allow_unused=True)
    except Exception as error:
        _refuse_running(encoder, inputs, error)
    if gradient is None or not gradient[0].any():
        _refuse(encoder, "its representation has no gradient with respect to the image")
    if not gradient.isfinite().all():
        _refuse(encoder, "the gradient of its representation is not finite for random images")
    return units.detach(), gradient
