"""Attribution maps in probe space: those of the paper, of the mean of a representation, and others beside them."""

import functools
import numbers
import os
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from tqdm import tqdm

from support import cluster, epsilon_lrp, methods, passes, store
from support.encoder import Encoder
from support.passes import Job

if TYPE_CHECKING:
    import distributed


def __getattr__(name: str) -> tuple[str, ...]:
    """METHODS, and of them PUBLISHED, INVARIANT and EXPLORATORY: names of what `methods.TABLE` has at this moment."""
    if name not in ("METHODS", "PUBLISHED", "INVARIANT", "EXPLORATORY"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return methods.names(*(() if name == "METHODS" else (name.lower(),)))


def attribute(
    encoders: Encoder | Sequence[Encoder],
    images: xr.DataArray,
    method: str | Sequence[str] = "epsilon_lrp",
    *,
    epsilon: float = 1e-4,
    ridge: float = 1e-6,
    references: int | Sequence[int] = 12,
    channels: str = "mean",
    device: str | torch.device = "auto",
    batch_size: int | None = None,
    progress: bool = True,
    out: str | os.PathLike | None = None,
    client: "distributed.Client | None" = None,
) -> xr.DataArray:
    """Attribution maps of each encoder for each image, brought back to the probe's size.

    The maps are those of the encoder's own input T(x), returned to the probe by `Encoder.restore`. Of which scalar:

    * `PUBLISHED` (Song et al. 2019, Section 3.2): the mean of all units of R(T(x)). Saliency is the absolute value of
      its gradient, gradient × input that gradient times T(x), ε-LRP a modified gradient times T(x) (Ancona et al.
      2018; see `support.epsilon_lrp`).
    * `INVARIANT`: scalars that an invertible linear map of the channels of R leaves as they are, so that the network's
      choice of units does not count. "whitened_energy" is the signed gradient of E = ½ Σ (r − µ)ᵀ C⁻¹ (r − µ), summed
      over positions, with µ and C the mean and covariance of the channels over all positions of all the images given
      (see `invariant.energy_gradient`); "whitened_energy_x_input" is that gradient times T(x). "relational" is
      gradient × input, with respect to x alone, of Σ (r(x) − µ)ᵀ C⁻¹ (r(x′) − µ), for each of several reference
      images x′ spread evenly over the images given. For x′ = x that is "whitened_energy_x_input".
    * `EXPLORATORY`: "gradient" is the signed gradient of the mean unit, "unit_saliency" the mean over all units of the
      absolute gradient of each.

    Parameters
    ----------
    encoders : Encoder or sequence of Encoder
        Networks with distinct names. Each is tried first, with two small passes (see `passes.check`).
    images : xarray.DataArray
        Probe images, (image, y, x, channel), float32 in [0, 1], as `probe.load` returns them.
    method : str or sequence of str, default "epsilon_lrp"
        From `METHODS`, the entries of `methods.TABLE`; "relational" only by itself, as its maps have an axis more.
        Several methods share their passes, see Notes.
    epsilon : float, default 1e-4
        Stabiliser of ε-LRP.
    ridge : float, default 1e-6
        What the `INVARIANT` methods add to the diagonal of C, as a share of the channels' mean variance.
    references : int or sequence of int, default 12
        Reference images of "relational": how many, spread evenly over `images`, all where there are fewer; or which,
        by their position.
    channels : {"mean", "keep"}, default "mean"
        Average the maps over the colour channels (the authors' program), or keep them (the paper's equation).
    device : str, default "auto"
        "auto" takes a GPU where there is one; otherwise a torch device name.
    batch_size : int, optional
        Images at a time. By default a guess from the input size, halved until a batch fits into memory.
    progress : bool, default True
        Show a progress bar on standard error.
    out : str or Path, optional
        Folder of a store (see `support.store`), made where it is not there: maps go there in half precision as they
        are computed, and what is there already is not computed again. So a run that was killed goes on, a model can be
        added at any time, and memory does not grow with the number of images and models. What is there is read once
        and its checksums looked at; a piece that is damaged is computed again.
    client : distributed.Client, optional
        Of a Dask cluster (see `support.cluster`), whose workers compute a model and a block of images at a time and
        write them to `out` themselves; all of them must see that folder. Several threads of a worker take turns.

    Returns
    -------
    xarray.DataArray
        float32, (model, image, y, x), with "channel" last when kept, and "attribution" (the method) first when a
        sequence of methods was asked for. "relational" has the axis "reference" after "image", labelled with the
        reference image; `space.affinity` takes the mean of the cosines over it. With `out`, read from there when and
        where it is used. Unit: that of the representation; 1 for the invariant methods; per unit of the encoder's
        input where the gradient is not multiplied with it.

    Raises
    ------
    ValueError
        An argument of another kind or out of range; "relational" together with another method; two encoders or methods
        of one name; a network that maps would be wrong for (see `passes.check`), an operation that ε-LRP has no rule
        for, a representation that cannot be whitened, a map that is not finite (the encoder is named each time); a
        store `out` that was made with other images, methods or options, or that holds another encoder of the same
        name; a `client` without `out`.
    OSError
        `out` cannot be written: full disk, read-only folder. What was finished stays.
    MemoryError
        Not even one image (or not `batch_size` images) fits into memory.

    Warns
    -----
    UserWarning
        Maps that are zero everywhere, named by model and image: they have no direction, and so no cosine.

    Notes
    -----
    Networks run as they are written: checkpointing and torch.compile are off meanwhile, and what would be computed in
    float16 or bfloat16 is computed in float32, because gradients of a mean of many units underflow.

    Passes over all images: saliency, gradient and gradient × input need one forward and one backward pass together,
    ε-LRP another of each. For µ and C the invariant methods need a forward pass of their own; then one forward and
    one backward pass give both forms of the whitened energy, one forward pass and a backward pass per reference the
    relational maps. Unit saliency takes one forward pass and a backward pass per unit.

    With `out`, batches do not cross the blocks of images that a store is made of, so that a run which was interrupted
    ends with the same bytes as one that was not.

    Examples
    --------
    >>> encoder = Encoder("mine", torch.nn.Conv2d(3, 4, 3), task="none", family="toy", input_size=(8, 8))
    >>> images = xr.DataArray(np.full((2, 16, 16, 3), 0.5, np.float32), dims=("image", "y", "x", "channel"))
    >>> attribute(encoder, images, ["saliency", "gradient"], progress=False).sizes["attribution"]
    2
    """
    encoders = _encoders(encoders)
    several = [method] if isinstance(method, str) else method
    options = _options(several, images, epsilon, ridge, references, channels, device, batch_size)
    if client is not None and out is None:
        raise ValueError("with a client, maps go from the workers to a store: give its folder as `out`")
    if client is not None and not hasattr(client, "submit"):
        raise ValueError(f"client is {client!r}, expected a distributed.Client: cluster.connect(ADDRESS) makes one")
    names, attrs = [encoder.name for encoder in encoders], _attrs(images, options)
    with tqdm(total=len(encoders) * images.sizes["image"], disable=not progress, unit="map") as bar:
        bar.set_description(" + ".join(options.methods))
        if out is None:
            there = _Memory(names, images, options)
            jobs = [Job(encoder, _checked(encoder, options), there.blocks) for encoder in encoders]
            zero = _run_here(there, jobs, images, options, bar.update)
        else:
            executor = _run_here if client is None else functools.partial(cluster.run, client)
            there, zero = _into_store(out, encoders, images, options, attrs, executor, bar)
    if zero:
        found = "; ".join(f"{name}, image {image} ({of})" for name, of, image in zero[:5])
        more = f" and {len(zero) - 5} more" if len(zero) > 5 else ""
        warnings.warn(
            f"maps that are zero everywhere have no direction, and no cosine: {found}{more}. Leave out these images or "
            "networks before maps are compared",
            stacklevel=2,
        )
    result = there.array(names).assign_attrs(attrs)
    return result if not isinstance(method, str) else result.sel(attribution=method)


def append(
    path: str | os.PathLike, encoders: Encoder | Sequence[Encoder], images: xr.DataArray, **settings: Any
) -> xr.DataArray:
    """Add models to a store, with the method and the options that it was made with; `store.append` is the same.

    Parameters
    ----------
    path : str or Path
        A store.
    encoders : Encoder or sequence of Encoder
        Networks; what the store already has of them is not computed again.
    images : xarray.DataArray
        The probe images that the store was made with.
    **settings
        `device`, `batch_size`, `progress` or `client` of `attribute`.

    Returns
    -------
    xarray.DataArray
        The whole store, as `store.open` gives it.

    Raises
    ------
    FileNotFoundError, ValueError, OSError, MemoryError
        As `store.open` and `attribute`.

    Examples
    --------
    >>> append("nowhere", [], None)
    Traceback (most recent call last):
    FileNotFoundError: nowhere is no store of maps: attribution.attribute(..., out='nowhere') makes one
    """
    header = store.Store(path).header
    attribute(encoders, images, header["methods"], out=path, **header["options"], **settings)
    return store.open(path)


setattr(store, "append", append)  # noqa: B010 - where users of a store look for it; the store itself computes nothing


def reference_images(n_images: int, references: int | Sequence[int] = 12) -> np.ndarray:
    """Which of the probe images are the reference images of "relational".

    Parameters
    ----------
    n_images : int
        Number of probe images.
    references : int or sequence of int, default 12
        As for `attribute`.

    Returns
    -------
    numpy.ndarray
        int, their positions among the images.

    Raises
    ------
    ValueError
        No reference, or one that there is no image for.

    Examples
    --------
    >>> reference_images(100, 3)
    array([ 0, 50, 99])
    """
    try:
        positions = np.asarray(references)
    except ValueError:  # lists of different lengths
        positions = np.empty(0)
    if positions.dtype.kind not in "iu" or positions.ndim > 1:
        positions = np.empty(0, int)
    elif positions.ndim == 0:
        positions = np.round(np.linspace(0, n_images - 1, np.clip(positions, 0, n_images))).astype(int)
    if not len(positions) or positions.min() < 0 or positions.max() >= n_images:
        raise ValueError(f"references is a number from 1, or positions from 0 to {n_images - 1}; got {references!r}")
    return positions


class _Memory:
    """Maps of all encoders in an array of memory; used as a `store.Store`."""

    def __init__(self, names, images, options):
        sizes = {"attribution": len(options.methods), "model": len(names), "image": images.sizes["image"]}
        self.coords = {"attribution": list(options.methods), "model": names, "image": images.image.values}
        if options.per_reference:
            sizes["reference"] = len(options.references)
            self.coords["reference"] = images.image.values[list(options.references)]
        sizes |= {"y": images.sizes["y"], "x": images.sizes["x"]}
        if options.channels == "keep":
            sizes["channel"], self.coords["channel"] = 3, images.channel.values
        self.names, self.dims, self.blocks = names, tuple(sizes), [slice(0, images.sizes["image"])]
        self.values = np.empty(tuple(sizes.values()), np.float32)

    def room(self, name, block):
        return self.values[:, self.names.index(name), block]

    def write(self, name, block, maps):
        pass  # `room` is where they belong

    def array(self, names):
        return xr.DataArray(self.values, self.coords, self.dims, name="map")


def _run_here(there, jobs, images, options, done):
    """Compute and write what is missing of each encoder; (encoder, method, image) of maps that are zero."""
    zero = []
    for job in jobs:
        name = job.encoder.name
        with passes.on(job.encoder, passes.torch_device(options.device)):
            whitened = passes.whitening(job.encoder, images, there.blocks, options, job.single)
            for block in job.missing:
                maps, part = there.room(name, block), images.isel(image=block)
                found = passes.fill(maps, job.encoder, part, options, whitened, job.single, done)
                there.write(name, block, maps)
                zero += [(name, *which) for which in found]
    return zero


def _into_store(out, encoders, images, options, attrs, executor, bar):
    """Have computed what a store lacks; the store, and which maps are zero."""
    given = {"channels": options.channels, "epsilon": options.epsilon, "ridge": options.ridge}
    given["references"] = list(options.references)
    references = options.references if options.per_reference else ()
    there = store.create(out, store.header(list(options.methods), given, images, references, attrs))
    prints = {encoder.name: encoder.fingerprint() for encoder in encoders}
    for name, fingerprint in prints.items():
        there.check_encoder(name, fingerprint)
    todo = [encoder for encoder in encoders if not there.is_complete(encoder.name)]
    zero, todo = [], [(encoder, _checked(encoder, options)) for encoder in todo]
    if todo:
        with there.lock():
            for name, fingerprint in prints.items():
                there.begin(name, fingerprint)
            jobs = [Job(encoder, single, there.missing(encoder.name, read=True)) for encoder, single in todo]
            bar.update(bar.total - sum(block.stop - block.start for job in jobs for block in job.missing))
            zero = executor(there, [job for job in jobs if job.missing], images, options, bar.update)
    else:
        bar.update(bar.total)
    return there, zero


def _checked(encoder, options):
    with passes.on(encoder, passes.torch_device(options.device)):
        return passes.check(encoder)


def _attrs(images, options):
    attrs = {f"probe_{k.removeprefix('probe_')}": v for k, v in images.attrs.items()}
    attrs |= {"channels": options.channels, "epsilon": options.epsilon, "ridge": options.ridge}
    attrs["scalar"] = "; ".join(dict.fromkeys(method.scalar for method in options.methods.values()))
    return attrs


def _encoders(given):
    """List of encoders with distinct names."""
    encoders = list(given) if isinstance(given, list | tuple) else [given]
    for encoder in encoders:
        if not isinstance(encoder, Encoder):
            how = f"zoo.load({encoder!r}) makes one" if isinstance(encoder, str) else "zoo.load makes them"
            raise ValueError(
                f"encoders are Encoder objects, one or a list; got the {type(encoder).__name__} {encoder!r}: {how}"
            )
    names = [encoder.name for encoder in encoders]
    twice = sorted({str(n) for n in names if names.count(n) > 1})
    if twice or not names:
        raise ValueError(f"encoders need distinct names; given twice: {twice}" if twice else "no encoder was given")
    nameless = [name for name in names if not isinstance(name, str) or not name]
    if nameless:
        raise ValueError(f"the name of an encoder is a text of one character or more, got {nameless[0]!r}")
    return encoders


def _options(names, images, epsilon, ridge, references, channels, device, batch_size):
    """Checked `passes.Options`."""
    names = [names] if not isinstance(names, list | tuple | np.ndarray) else list(names)
    unknown = [name for name in names if not isinstance(name, str) or name not in methods.TABLE]
    if unknown or not names:
        raise ValueError(f"unknown attribution method {unknown}: the methods are {', '.join(methods.TABLE)}")
    if len(set(names)) < len(names):
        raise ValueError(f"a method is given twice: {', '.join(names)}")
    chosen = {str(name): methods.TABLE[name] for name in names}
    if len(names) > 1 and any(method.per_reference for method in chosen.values()):
        name = next(name for name, method in chosen.items() if method.per_reference)
        raise ValueError(f'the maps of "{name}" have an axis more, the reference image: ask for it by itself')
    if not isinstance(images, xr.DataArray) or set(images.dims) != {"image", "y", "x", "channel"}:
        raise ValueError("images must be a DataArray with the axes image, y, x and channel, as probe.load returns it")
    if 0 in images.shape or images.sizes["channel"] != 3:
        raise ValueError(f"images have the sizes {dict(images.sizes)}, expected at least one, with three channels")
    epsilon_lrp.check_epsilon(epsilon)
    if not isinstance(ridge, numbers.Real) or not 0 < ridge < np.inf:
        raise ValueError(f"ridge must be positive and finite, got {ridge!r}")
    if not isinstance(channels, str) or channels not in ("mean", "keep"):
        raise ValueError(f'channels is "mean" or "keep", not {channels!r}')
    whole = isinstance(batch_size, numbers.Integral) and not isinstance(batch_size, bool)
    if batch_size is not None and not (whole and batch_size > 0):
        raise ValueError(f"batch_size must be a whole number and at least 1, got {batch_size!r}")
    references = tuple(reference_images(images.sizes["image"], references).tolist())
    return passes.Options(chosen, epsilon, ridge, references, channels, device, batch_size)
