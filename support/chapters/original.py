"""The paper's experiment: Taskonomy's encoders, one at a time, their maps on disk, and what that takes beforehand."""

import shutil
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import xarray as xr

from support import attribution, passes, space, store, taskonomy

METHODS = attribution.PUBLISHED
BYTES = 2  # of a value of a map on disk, half precision
WEIGHTS_BYTES = 95e6  # of a published file, about


class Plan(NamedTuple):
    """What the experiment takes.

    Attributes
    ----------
    encoders, images : int
        Number of networks and of probe images.
    passes : int
        Forward passes of one image through one network; there are as many backward passes.
    map_bytes : int
        Of the maps on disk, but for names and attributes.
    download_bytes : int
        Of the published weights that are not there yet, about.
    free_bytes : int
        What is free where the maps are to go.
    seconds_maps, seconds_affinity : float
        Expected time of the passes and of the comparison of the maps: a short measurement times the number of images.
    device : str
        What it was measured on.
    """

    encoders: int
    images: int
    passes: int
    map_bytes: int
    download_bytes: int
    free_bytes: int
    seconds_maps: float
    seconds_affinity: float
    device: str

    def __str__(self):
        lines = [
            f"{self.encoders} encoders × {self.images:,} images: {self.passes:,} forward and as many backward passes",
            f"maps on disk: {_bytes(self.map_bytes)}, of {_bytes(self.free_bytes)} free",
            f"weights to download: {_bytes(self.download_bytes)}",
            f"expected time on this machine ({self.device}), extrapolated from a few images:",
            f"  {duration(self.seconds_maps)} for the maps and {duration(self.seconds_affinity)} for the affinities",
        ]
        if self.map_bytes > self.free_bytes:
            lines.append("THE DISK IS TOO SMALL: choose another folder, fewer images or smaller maps")
        return "\n".join(lines)


def duration(seconds):
    """A time in words, with two digits: "48 s", "12 min", "5.4 h"."""
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.2g} {unit}"
    return f"{seconds:.2g} s"


def _bytes(number):
    return f"{number / 1e9:.2f} GB" if number >= 1e9 else f"{number / 1e6:.3g} MB" if number else "none"


def tasks(n_encoders=20):
    """Names of the first encoders, in the order of Taskonomy's table.

    Parameters
    ----------
    n_encoders : int, default 20
        3 to 20.

    Returns
    -------
    list of str

    Raises
    ------
    ValueError
        `n_encoders` is out of range.
    """
    known = list(taskonomy.published().index)
    if not 3 <= n_encoders <= len(known):
        raise ValueError(f"n_encoders is {n_encoders}, expected 3 to {len(known)}")
    return known[:n_encoders]


def affinities(
    names,
    images,
    out,
    *,
    weights="published",
    seed=0,
    size=taskonomy.SIZE,
    device="auto",
    batch_size=None,
    progress=True,
    client=None,
):
    """Affinities of Taskonomy's encoders by the three methods of the paper, out of core.

    One encoder is in memory at a time, and its maps go to disk block by block. What is there already is not computed
    again, so that an interrupted run goes on with the same call.

    Parameters
    ----------
    names : sequence of str
        Taskonomy's names of the tasks.
    images : xarray.DataArray
        (image, y, x, channel), as `probe.load` returns them.
    out : str or Path
        Folder of the maps; one for every set of images, kind of weights and size.
    weights, seed, size
        As for `taskonomy.encoder`.
    device, batch_size, progress, client
        As for `attribution.attribute`.

    Returns
    -------
    xarray.DataArray
        float64 (attribution, source, target): mean cosine of the maps, averaged over their colours.

    Raises
    ------
    FileNotFoundError, ValueError
        Published weights that are not there and cannot be downloaded, or are not what they should be. All files are
        looked into before anything is computed (`taskonomy.fetch_all`), and the message has all complaints.
    ValueError, OSError, MemoryError
        As for `attribution.attribute`.
    """
    if weights == "published":
        try:
            taskonomy.fetch_all(names, progress)
        except (FileNotFoundError, ValueError) as error:
            raise type(error)(f"{error}\nTo try the run without them: -p weights random") from None
    for name in names:
        encoder = taskonomy.encoder(name, weights, seed, size)
        attribution.attribute(
            encoder, images, METHODS, device=device, batch_size=batch_size, progress=progress, out=out, client=client
        )
        del encoder  # before the next is made
    maps = store.open(out, list(names))
    matrices = [space.affinity(maps.sel(attribution=method)) for method in METHODS]
    return xr.concat(matrices, "attribution").assign_coords(attribution=list(METHODS))


def plan(
    n_encoders, n_images, out, *, weights="published", size=taskonomy.SIZE, probe_size=256, device="auto", n_timed=None
):
    """What the experiment will take, from a short measurement with random weights and random images.

    Parameters
    ----------
    n_encoders, n_images : int
        Number of networks and of probe images.
    out : str or Path
        Where the maps are to go; it need not exist, and nothing is written there.
    weights, size
        As for `affinities`.
    probe_size : int, default 256
        Pixels along a side of the probe images, and so of the maps.
    device : str, default "auto"
        As for `attribution.attribute`.
    n_timed : int, optional
        How many images are timed, after as many that are not; by default 1 on a CPU and 64 on a GPU.

    Returns
    -------
    Plan

    Raises
    ------
    ValueError
        As for `tasks`, `taskonomy.encoder` and `attribution.attribute`, no image, or other `weights`.
    """
    names = tasks(n_encoders)
    if n_images < 1:
        raise ValueError(f"n_images is {n_images}, expected at least one")
    if weights not in ("published", "random"):
        raise ValueError(f"weights is {weights!r}, expected 'published' or 'random'")
    kind = passes.torch_device(device).type
    n_timed = min(n_timed or (64 if kind == "cuda" else 1), n_images)
    rng = np.random.default_rng(0)
    images = xr.DataArray(
        rng.random((n_timed, probe_size, probe_size, 3), np.float32),
        {"image": np.arange(n_timed), "channel": ["red", "green", "blue"]},
        ("image", "y", "x", "channel"),
    )
    encoder = taskonomy.encoder(names[0], "random", size=size)
    for _ in range(2):  # the first warms up
        start = time.perf_counter()
        maps = attribution.attribute(encoder, images, METHODS, device=device, progress=False)
        per_image = (time.perf_counter() - start) / n_timed
    one = maps.sel(attribution=METHODS[0]).isel(model=[0] * n_encoders, image=[0, 0])
    one = one.assign_coords(model=names).load()
    start = time.perf_counter()
    space.affinity(one)
    per_comparison = (time.perf_counter() - start) / 2
    missing = sum(not taskonomy.location(name).is_file() for name in names) if weights == "published" else 0
    folder = Path(out).absolute()
    while not folder.exists():
        folder = folder.parent
    return Plan(
        encoders=n_encoders,
        images=n_images,
        passes=2 * n_encoders * n_images,  # the gradient methods share one, ε-LRP takes another
        map_bytes=len(METHODS) * n_encoders * n_images * (BYTES * probe_size**2 + 4),  # and the scale of each map
        download_bytes=int(missing * WEIGHTS_BYTES),
        free_bytes=shutil.disk_usage(folder).free,
        seconds_maps=per_image * n_encoders * n_images,
        seconds_affinity=per_comparison * len(METHODS) * n_images,
        device=_device_name(kind),
    )


def _device_name(kind):
    """What "cpu" or "cuda" is here, in words."""
    if kind == "cuda":
        return torch.cuda.get_device_name()
    return f"CPU, {torch.get_num_threads()} thread" + "s" * (torch.get_num_threads() > 1)
