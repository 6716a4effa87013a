"""Attribution maps: saliency, gradient × input and ε-LRP of the mean of a representation, in probe space."""

import numpy as np
import torch
import xarray as xr
from captum.attr import Saliency
from tqdm import tqdm

from support import epsilon_lrp

METHODS = ("saliency", "gradient_x_input", "epsilon_lrp")
PIXELS_AT_ONCE = {"cpu": 2**19, "cuda": 2**23}  # first guess of a batch, halved when memory runs out


def attribute(
    encoders,
    images,
    method="epsilon_lrp",
    *,
    epsilon=1e-4,
    channels="mean",
    device="auto",
    batch_size=None,
    progress=True,
):
    """Attribution maps of each encoder's mean representation for each image, brought back to the probe's size.

    Song et al. (2019), Section 3.2. The attributed scalar is the mean of all units of R(T(x)); saliency is the
    absolute value of its gradient, gradient × input that gradient times T(x), ε-LRP a modified gradient times T(x)
    (Ancona et al. 2018; see `support.epsilon_lrp`). The maps are those of the encoder's own input T(x), returned to
    the probe by `Encoder.restore`.

    Parameters
    ----------
    encoders : Encoder or sequence of Encoder
        Networks with distinct names.
    images : xarray.DataArray
        Probe images, (image, y, x, channel), float32 in [0, 1], as `probe.load` returns them.
    method : str or sequence of str, default "epsilon_lrp"
        From `METHODS`. Several methods share their passes: both gradient methods need one forward and one backward
        pass together, ε-LRP another of each.
    epsilon : float, default 1e-4
        Stabiliser of ε-LRP.
    channels : {"mean", "keep"}, default "mean"
        Average the maps over the colour channels (the authors' program), or keep them (the paper's equation).
    device : str, default "auto"
        "auto" takes a GPU where there is one; otherwise a torch device name.
    batch_size : int, optional
        Images at a time. By default a guess from the input size, halved until a batch fits into memory.
    progress : bool, default True
        Show a progress bar on standard error.

    Returns
    -------
    xarray.DataArray
        float32, (model, image, y, x), with "channel" last when kept, and "attribution" (the method) first when a
        sequence of methods was asked for. Unit: that of the mean representation (for saliency: that unit per unit of
        the encoder's input).

    Raises
    ------
    ValueError
        An unknown method, device or `channels`, images with other axes, two encoders of one name, an operation that
        ε-LRP has no rule for (encoder and operation are named), or a `batch_size` that is not positive.
    MemoryError
        Not even one image (or not `batch_size` images) fits into memory.
    """
    encoders = list(encoders) if isinstance(encoders, list | tuple) else [encoders]
    methods = [method] if isinstance(method, str) else list(method)
    _check(encoders, methods, images, channels, batch_size)
    device = _device(device)
    size = images.sizes["y"], images.sizes["x"]
    colours = ("channel",) if channels == "keep" else ()
    shape = (len(methods), len(encoders), images.sizes["image"], *size) + (3,) * len(colours)
    maps = np.empty(shape, np.float32)
    with tqdm(total=len(encoders) * shape[2], unit="map", disable=not progress, desc=" + ".join(methods)) as bar:
        for m, encoder in enumerate(encoders):
            home = encoder.device
            try:
                encoder.to(device)
                for block, several in _batches(encoder, images, methods, epsilon, device, batch_size):
                    several = [encoder.restore(one, size).cpu() for one in several]
                    maps[:, m, block] = torch.stack([a if colours else a.mean(-1) for a in several])
                    bar.update(block.stop - block.start)
            finally:
                encoder.to(home)
    coords = {"attribution": methods, "model": [e.name for e in encoders], "image": images.image.values}
    if colours:
        coords["channel"] = images.channel.values
    result = xr.DataArray(maps, coords, ("attribution", "model", "image", "y", "x", *colours), name="map")
    result.attrs = {f"probe_{k.removeprefix('probe_')}": v for k, v in images.attrs.items()}
    result.attrs |= {"channels": channels, "epsilon": epsilon, "scalar": "mean of the representation's units"}
    return result if not isinstance(method, str) else result.sel(attribution=method)


def _check(encoders, methods, images, channels, batch_size):
    unknown = [m for m in methods if m not in METHODS]
    if unknown or not methods:
        raise ValueError(f"unknown attribution method {unknown}: the methods are {', '.join(METHODS)}")
    if channels not in ("mean", "keep"):
        raise ValueError(f'channels is "mean" or "keep", not {channels!r}')
    names = [e.name for e in encoders]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice or not names:
        raise ValueError(f"encoders need distinct names; given twice: {twice}" if twice else "no encoder was given")
    if set(getattr(images, "dims", ())) != {"image", "y", "x", "channel"}:
        raise ValueError("images must be a DataArray with the axes image, y, x and channel, as probe.load returns it")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")


def _device(name):
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).sum().item()  # "meta" has no values
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        message = (
            f'device {name!r} cannot be used here: choose "auto", "cpu", or "cuda" where torch sees a GPU ({error})'
        )
        raise ValueError(message) from None
    return device


def _batches(encoder, images, methods, epsilon, device, batch_size):
    """Yield (slice of images, one map in the encoder's own input space per method)."""
    height, width = encoder.input_size
    size = batch_size or max(1, PIXELS_AT_ONCE.get(device.type, 2**19) // (height * width))
    size = min(size, images.sizes["image"])
    start = 0
    while start < images.sizes["image"]:
        block = slice(start, min(start + size, images.sizes["image"]))
        try:
            maps = _maps(encoder, encoder.preprocess(images.isel(image=block)), methods, epsilon)
        except RuntimeError as error:
            text = str(error).lower()
            if "out of memory" not in text and "allocate memory" not in text:
                raise
            if batch_size or size == 1:
                raise MemoryError(
                    f"{encoder.name}: {size} images of {height}×{width} do not fit into memory"
                ) from error
            size //= 2
            continue
        yield block, maps
        start = block.stop


def _maps(encoder, inputs, methods, epsilon):
    def mean_unit(x):
        return encoder.represent(x).flatten(1).mean(1)

    maps = {}
    if {"saliency", "gradient_x_input"} & set(methods):
        gradient = Saliency(mean_unit).attribute(inputs.requires_grad_(), abs=False)
        inputs = inputs.detach()
        maps = {"saliency": gradient.abs(), "gradient_x_input": gradient * inputs}
    if "epsilon_lrp" in methods:
        try:
            maps["epsilon_lrp"] = inputs * epsilon_lrp.modified_gradient(mean_unit, inputs, epsilon)
        except ValueError as error:
            raise ValueError(f"{encoder.name}: {error}") from error
    return [maps[m] for m in methods]
