"""Attribution maps in probe space: those of the paper, of the mean of a representation, and others beside them."""

import contextlib
import functools

import numpy as np
import torch
import xarray as xr
from tqdm import tqdm

from support import epsilon_lrp, invariant

PUBLISHED = ("saliency", "gradient_x_input", "epsilon_lrp")
INVARIANT = ("whitened_energy", "whitened_energy_x_input", "relational")
EXPLORATORY = ("gradient", "unit_saliency")
METHODS = PUBLISHED + INVARIANT + EXPLORATORY
_SCALARS = dict.fromkeys(METHODS, "mean of the representation's units") | {
    "whitened_energy": "whitened energy",
    "whitened_energy_x_input": "whitened energy",
    "relational": "whitened similarity to a reference image",
    "unit_saliency": "each of the representation's units",
}
PIXELS_AT_ONCE = {"cpu": 2**19, "cuda": 2**23}  # first guess of a batch, halved when memory runs out


def attribute(
    encoders,
    images,
    method="epsilon_lrp",
    *,
    epsilon=1e-4,
    ridge=1e-6,
    references=12,
    channels="mean",
    device="auto",
    batch_size=None,
    progress=True,
    out=None,
    client=None,
):
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
        Networks with distinct names.
    images : xarray.DataArray
        Probe images, (image, y, x, channel), float32 in [0, 1], as `probe.load` returns them.
    method : str or sequence of str, default "epsilon_lrp"
        From `METHODS`; "relational" only by itself, as its maps have an axis more. Several methods share their passes,
        see Notes.
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
        added at any time, and memory does not grow with the number of images and models.
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
        An unknown method, device or `channels`, "relational" together with another method, images with other axes, two
        encoders of one name, an operation that ε-LRP has no rule for (encoder and operation are named), a
        representation that cannot be whitened (the encoder is named), a `ridge` or `batch_size` that is not
        positive, or as for `reference_images`; a store `out` that was made with other images, methods or options, or
        that holds another encoder of the same name; a `client` without `out`.
    OSError
        `out` cannot be written: full disk, read-only folder. What was finished stays.
    MemoryError
        Not even one image (or not `batch_size` images) fits into memory.

    Notes
    -----
    Passes over all images: saliency, gradient and gradient × input need one forward and one backward pass together,
    ε-LRP another of each. For µ and C the invariant methods need a forward pass of their own; then one forward and
    one backward pass give both forms of the whitened energy, one forward pass and a backward pass per reference the
    relational maps. Unit saliency takes one forward pass and a backward pass per unit.

    With `out`, batches do not cross the blocks of images that a store is made of, so that a run which was interrupted
    ends with the same bytes as one that was not.
    """
    encoders = list(encoders) if isinstance(encoders, list | tuple) else [encoders]
    methods = [method] if isinstance(method, str) else list(method)
    _check(encoders, methods, images, ridge, channels, batch_size)
    if client is not None and out is None:
        raise ValueError("with a client, maps go from the workers to a store: give its folder as `out`")
    device = _device(device) if client is None else device  # otherwise each worker chooses
    size = images.sizes["y"], images.sizes["x"]
    n_images = images.sizes["image"]
    references = reference_images(n_images, references)
    sizes = {"attribution": len(methods), "model": len(encoders), "image": n_images}
    coords = {"attribution": methods, "model": [e.name for e in encoders], "image": images.image.values}
    if "relational" in methods:
        sizes["reference"], coords["reference"] = len(references), images.image.values[references]
    sizes |= {"y": size[0], "x": size[1]}
    if channels == "keep":
        sizes["channel"], coords["channel"] = 3, images.channel.values
    attrs = {f"probe_{k.removeprefix('probe_')}": v for k, v in images.attrs.items()}
    attrs |= {"channels": channels, "epsilon": epsilon, "ridge": ridge}
    attrs["scalar"] = "; ".join(dict.fromkeys(_SCALARS[m] for m in methods))
    fill = functools.partial(
        _fill, methods=methods, epsilon=epsilon, channels=channels, device=device, batch_size=batch_size
    )
    slopes = None
    if set(INVARIANT) & set(methods):
        slopes = functools.partial(_slopes, references=references, ridge=ridge, device=device, batch_size=batch_size)
    with tqdm(total=len(encoders) * n_images, unit="map", disable=not progress, desc=" + ".join(methods)) as bar:
        if out is None:
            maps = np.empty(tuple(sizes.values()), np.float32)
            for m, encoder in enumerate(encoders):
                with _on(encoder, device):
                    fill(maps[:, m], encoder, images, slopes and slopes(encoder, images, [slice(0, n_images)]), bar=bar)
            result = xr.DataArray(maps, coords, tuple(sizes), name="map")
        else:
            options = {"channels": channels, "epsilon": epsilon, "ridge": ridge, "references": references.tolist()}
            result = _into_store(out, client, encoders, images, fill, slopes, methods, options, attrs, bar)
    result.attrs = attrs
    return result if not isinstance(method, str) else result.sel(attribution=method)


def reference_images(n_images, references=12):
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
    """
    if np.ndim(references) == 0:
        references = np.linspace(0, n_images - 1, min(references, n_images)) if references > 0 else []
    positions = np.round(references).astype(int)
    if not len(positions) or positions.min() < 0 or positions.max() >= n_images:
        raise ValueError(
            f"references is a number from 1, or positions from 0 to {n_images - 1}; got {np.array(references).tolist()}"
        )
    return positions


def _fill(maps, encoder, images, slopes, *, methods, epsilon, channels, device, batch_size, bar):
    """Write the maps of all images into an array (method, image, …), batch by batch."""
    compute = functools.partial(_maps, encoder, methods, epsilon, slopes)
    for block, several in _batches(encoder, images, compute, device, batch_size):
        several = [_restore(encoder, one, (images.sizes["y"], images.sizes["x"])).cpu() for one in several]
        maps[:, block] = torch.stack([a if channels == "keep" else a.mean(-1) for a in several])
        bar.update(block.stop - block.start)


def _into_store(out, client, encoders, images, fill, slopes, methods, options, attrs, bar):
    """Compute what a store lacks; the maps of these encoders, read from it lazily."""
    from support import store

    references = slopes.keywords["references"] if "relational" in methods else []
    there = store.create(out, store.header(methods, options, images, references, attrs))
    hashes = {encoder.name: store.encoder_sha256(encoder) for encoder in encoders}
    for name, sha256 in hashes.items():
        there.check_encoder(name, sha256)
    if any(there.missing(name) for name in hashes):
        with there.lock():
            for name, sha256 in hashes.items():
                there.begin(name, sha256)
            todo = [(encoder, hashes[encoder.name], there.missing(encoder.name)) for encoder in encoders]
            todo = [(encoder, sha256, missing) for encoder, sha256, missing in todo if missing]
            bar.update(bar.total - sum(block.stop - block.start for *_, missing in todo for block in missing))
            if client is not None:
                from support import cluster

                cluster.compute(client, there, todo, images, fill, slopes, fill.keywords["device"], bar)
                todo = []
            for encoder, _, missing in todo:
                with _on(encoder, fill.keywords["device"]):
                    found = slopes and slopes(encoder, images, there.blocks)
                    for block in missing:
                        maps = np.empty(there.shape(block), np.float32)
                        fill(maps, encoder, images.isel(image=block), found, bar=bar)
                        there.write(encoder.name, block, maps)
    return there.array(list(hashes))


@contextlib.contextmanager
def _on(encoder, device):
    """Have an encoder on a device, and back where it was afterwards."""
    home = encoder.device
    try:
        encoder.to(device)
        yield
    finally:
        encoder.to(home)


def _check(encoders, methods, images, ridge, channels, batch_size):
    unknown = [m for m in methods if m not in METHODS]
    if unknown or not methods:
        raise ValueError(f"unknown attribution method {unknown}: the methods are {', '.join(METHODS)}")
    if "relational" in methods and len(methods) > 1:
        raise ValueError('the maps of "relational" have an axis more, the reference image: ask for it by itself')
    if not 0 < ridge < np.inf:
        raise ValueError(f"ridge must be positive and finite, got {ridge}")
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


def _batches(encoder, images, compute, device, batch_size):
    """Yield (slice of images, what `compute` makes of the encoder's inputs for them)."""
    height, width = encoder.input_size
    size = batch_size or max(1, PIXELS_AT_ONCE.get(device.type, 2**19) // (height * width))
    size = min(size, images.sizes["image"])
    start = 0
    while start < images.sizes["image"]:
        block = slice(start, min(start + size, images.sizes["image"]))
        try:
            result = compute(encoder.preprocess(images.isel(image=block)))
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
        yield block, result
        start = block.stop


def _slopes(encoder, images, blocks, *, references, ridge, device, batch_size):
    """Gradient of the whitened energy with respect to R, as a function of R, and its values at the references.

    Batches do not cross the blocks of images.
    """
    at_references = {}

    def representations():
        for whole in blocks:
            part = images.isel(image=whole)
            for block, values in _batches(encoder, part, torch.no_grad()(encoder.represent), device, batch_size):
                first = whole.start + block.start
                inside = [i for i in references if first <= i < whole.start + block.stop]
                at_references.update({i: values[i - first].clone() for i in inside})
                yield values

    try:
        gradient = invariant.energy_gradient(representations(), ridge)
    except ValueError as error:
        raise ValueError(f"{encoder.name}: {error}") from error
    return gradient, gradient(torch.stack([at_references[i] for i in references]))


def _maps(encoder, methods, epsilon, slopes, inputs):
    """One map, in the encoder's own input space, per method."""

    def mean_unit(x):
        return encoder.represent(x).flatten(1).mean(1)

    maps = {}
    if {"saliency", "gradient_x_input", "gradient"} & set(methods):
        with torch.enable_grad():
            gradient = torch.autograd.grad(mean_unit(inputs.requires_grad_()).sum(), inputs)[0]
        inputs = inputs.detach()
        maps = {"saliency": gradient.abs(), "gradient_x_input": gradient * inputs, "gradient": gradient}
    if "epsilon_lrp" in methods:
        try:
            maps["epsilon_lrp"] = inputs * epsilon_lrp.modified_gradient(mean_unit, inputs, epsilon)
        except ValueError as error:
            raise ValueError(f"{encoder.name}: {error}") from error
    if {*INVARIANT, "unit_saliency"} & set(methods):
        maps |= _maps_of_units(encoder, methods, slopes, inputs)
    return [maps[m] for m in methods]


def _maps_of_units(encoder, methods, slopes, inputs):
    """Maps by method of the scalars that are not the mean unit, all from one forward pass."""
    inputs = inputs.detach().requires_grad_()
    representation = encoder.represent(inputs)

    def weighted(slope):
        return torch.autograd.grad(representation, inputs, slope.expand_as(representation), retain_graph=True)[0]

    maps = {}
    if {"whitened_energy", "whitened_energy_x_input"} & set(methods):
        gradient, _ = slopes
        maps["whitened_energy"] = weighted(gradient(representation.detach()))
        maps["whitened_energy_x_input"] = maps["whitened_energy"] * inputs.detach()
    if "relational" in methods:
        _, at_references = slopes
        maps["relational"] = torch.stack([weighted(slope) * inputs.detach() for slope in at_references], 1)
    if "unit_saliency" in methods:
        units = representation.flatten(1)
        total = torch.zeros_like(inputs)
        for k in range(units.shape[1]):
            total += torch.autograd.grad(units[:, k].sum(), inputs, retain_graph=True)[0].abs()
        maps["unit_saliency"] = total / units.shape[1]
    return maps


def _restore(encoder, maps, size):
    """T⁻¹ of maps (image, …) or (image, reference, …)."""
    return encoder.restore(maps.flatten(0, -4), size).unflatten(0, maps.shape[:-3])
