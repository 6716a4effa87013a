"""What every pass through a network shares: device, batches, precision, and the check that comes before."""

import contextlib
import dataclasses
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.utils.checkpoint
import xarray as xr
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from support import invariant
from support.encoder import Encoder
from support.methods import Method, Pass
from support.running import HALF, plainly

PIXELS_AT_ONCE = {"cpu": 2**19, "cuda": 2**23}  # first guess of a batch, halved when memory runs out
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
    >>> encoder = Encoder("mine", torch.nn.Flatten(), task="none", family="toy", input_size=(2, 2))
    >>> with on(encoder, "cpu"):
    ...     encoder.represent(encoder.trial(1)).shape
    torch.Size([1, 12])
    """
    home = encoder.device
    try:
        encoder.to(device)
        yield
    finally:
        encoder.to(home)


def represent(encoder: Encoder, inputs: torch.Tensor, single: bool = False) -> torch.Tensor:
    """R of an encoder, run as attribution needs it.

    Checkpointing and torch.compile are off meanwhile.

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

    Examples
    --------
    >>> encoder = Encoder("mine", torch.nn.AvgPool2d(2), task="none", family="toy", input_size=(4, 4))
    >>> represent(encoder, encoder.trial(2)).shape
    torch.Size([2, 3, 2, 2])
    """
    with plainly(single):
        units = encoder.represent(inputs)
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

    Examples
    --------
    >>> encoder = Encoder("mine", torch.nn.AvgPool2d(2), task="none", family="toy", input_size=(4, 4))
    >>> images = xr.DataArray(np.ones((3, 4, 4, 3), np.float32), dims=("image", "y", "x", "channel"))
    >>> representations([encoder], images, "cpu")["mine"].shape
    (3, 3, 2, 2)
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

    Examples
    --------
    >>> encoder = Encoder("mine", torch.nn.AvgPool2d(2), task="none", family="toy", input_size=(4, 4))
    >>> images = xr.DataArray(np.ones((3, 4, 4, 3), np.float32), dims=("image", "y", "x", "channel"))
    >>> [len(result) for _, result in batches(encoder, images, encoder.represent, torch.device("cpu"), 2)]
    [2, 1]
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

    Examples
    --------
    >>> encoder = Encoder("mine", torch.nn.AvgPool2d(2), task="none", family="toy", input_size=(4, 4))
    >>> images = xr.DataArray(np.ones((3, 4, 4, 3), np.float32), dims=("image", "y", "x", "channel"))
    >>> from support.methods import TABLE
    >>> options = Options({"gradient": TABLE["gradient"]}, 1e-4, 1e-6, (0,), "mean", "cpu")
    >>> whitening(encoder, images, [slice(0, 3)], options) is None  # no method needs it
    True
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

    Examples
    --------
    >>> encoder = Encoder("mine", torch.nn.AvgPool2d(2), task="none", family="toy", input_size=(4, 4))
    >>> images = xr.DataArray(np.ones((3, 4, 4, 3), np.float32), dims=("image", "y", "x", "channel"))
    >>> from support.methods import TABLE
    >>> options = Options({"gradient": TABLE["gradient"]}, 1e-4, 1e-6, (0,), "mean", "cpu")
    >>> maps = np.empty((1, 3, 4, 4), np.float32)
    >>> fill(maps, encoder, images, options), maps[0, 0, 0, 0] * 3 * 4 * 4
    ([], np.float32(1.0))
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


def check(encoder: Encoder) -> bool:
    """Refuse a network that attribution would give wrong maps for, and say how to run the others.

    `Encoder.check` tries the network, and is watched here. The result is kept as long as the network stays as it is.

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
    ValueError, MemoryError
        As `Encoder.check`; half precision occurs where it cannot be replaced; the encoder is named.

    Examples
    --------
    >>> network = torch.nn.Conv2d(3, 2, 3).bfloat16()
    >>> check(Encoder("mine", network, task="none", family="toy", input_size=(8, 8)))
    True
    """
    state = encoder.state()
    if _checked.get(encoder, (None,))[0] != state:
        tensors = [*encoder.network.parameters(), *encoder.network.buffers()]
        single = any(tensor.dtype in HALF for tensor in tensors)
        watch = _watched_check(encoder, single)
        if watch.half and not single:
            single, watch = True, _watched_check(encoder, True)
        if watch.half:
            raise ValueError(
                f"{encoder.name}: its network computes in {watch.half} where that cannot be changed, and gradients "
                "would underflow: convert it with network.float(), or give it as ordinary modules"
            )
        if watch.random:  # by a generator of its own: drawn always alike, or not
            inputs = encoder.trial(1)
            if not torch.equal(*(represent(encoder, inputs, single).detach() for _ in range(2))):
                raise ValueError(f"{encoder.name}: its network is random at evaluation ({watch.random})")
        _checked[encoder] = encoder.state(), single
    return _checked[encoder][1]


def _watched_check(encoder, single):
    with plainly(single), _Watch() as watch:
        encoder.check()
    return watch
