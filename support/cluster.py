"""Attribution on many processes or machines, with Dask: a task a model and block of images, results to the store."""

import asyncio
import functools
import pickle
import shutil
import socket
import threading
import time

import numpy as np
import xarray as xr
from tqdm import tqdm

from support import attribution, store

_one_at_a_time = threading.Lock()  # a network with hooks in it serves one thread


def connect(address, timeout=10):
    """A client of a running scheduler, for `attribution.attribute(..., client=...)`.

    Parameters
    ----------
    address : str
        E.g. ``"tcp://10.0.0.1:8786"``; empty for none.
    timeout : float, default 10
        Seconds to wait for an answer.

    Returns
    -------
    distributed.Client or None
        None for an empty address: everything is then computed in this process.

    Raises
    ------
    ModuleNotFoundError
        Dask's distributed scheduler is not installed; the message gives the command.
    OSError
        No scheduler answers there.
    """
    if not address:
        return None
    try:
        import distributed
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'a cluster needs the package "distributed": pip install "distributed>=2025.1"'
        ) from error
    try:
        return distributed.Client(address, timeout=timeout)
    except (OSError, ValueError) as error:
        raise OSError(f"no Dask scheduler answers at {address!r}: start one with `dask scheduler` ({error})") from error


def compute(client, there, todo, images, fill, slopes, device, bar):
    """Have the workers compute and write blocks of a store.

    Every worker must see the store under the same path. What it needs besides, networks and images, lies there too
    while this runs, so that a task of a worker that died can be done by any other. Also after an error this returns
    only when no worker is computing or writing any more: a task that has begun cannot be stopped and is waited for.

    Parameters
    ----------
    client : distributed.Client
        A client of the cluster.
    there : store._Store
        The store, locked by this process, with the groups of the models begun.
    todo : list of tuple
        (Encoder, its SHA-256, blocks of images that it lacks as slices).
    images : xarray.DataArray
        Probe images, (image, y, x, channel).
    fill, slopes : callable
        `attribution._fill` and, for the invariant methods, `attribution._slopes` with their settings, but for the
        device.
    device : str
        As for `attribution.attribute`, chosen by each worker. Unless it is "cpu", tasks go to the workers that declare
        a resource "GPU" only, one at a time each, where there are such workers.
    bar : tqdm.tqdm
        Is moved on by the images of each block.

    Raises
    ------
    FileNotFoundError
        A worker does not see the store.
    ValueError, MemoryError, OSError
        Of a worker, as `attribution.attribute`.
    distributed.KilledWorker
        A task during which several workers died.
    """
    import cloudpickle
    import distributed

    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    resources = {"GPU": 1} if device != "cpu" and any("GPU" in w["resources"] for w in workers) else None
    submit = functools.partial(client.submit, pure=False, resources=resources)
    path = there.path.resolve()
    inputs = path / (store.DRAFT + "inputs")
    waiting = {}
    try:
        with store.told(path):
            inputs.mkdir()
            shape = tuple(images.sizes[d] for d in ("image", "y", "x", "channel"))
            values = np.lib.format.open_memmap(inputs / "images.npy", "w+", images.dtype, shape)
            for block in there.blocks:
                values[block] = images.isel(image=block).transpose("image", "y", "x", "channel").values
            values.flush()
        for encoder, sha256, missing in todo:
            file = inputs / f"{sha256}.pickle"  # a name that workers may remember
            home = encoder.device
            try:
                pickled = cloudpickle.dumps(encoder.to("cpu"))
            finally:
                encoder.to(home)
            with store.told(path):
                file.write_bytes(pickled)
            found = slopes and submit(_slopes_of, path, file, slopes, device)
            for block in missing:
                task = submit(_block_of, path, file, encoder.name, block, fill, found, device)
                waiting[task] = block.stop - block.start
        for task in distributed.as_completed(list(waiting)):
            task.result()
            bar.update(waiting[task])
    finally:
        client.cancel(list(waiting))
        _let_end(client, {task.key for task in waiting})
        shutil.rmtree(inputs, ignore_errors=True)


def _let_end(client, keys):
    """Wait until no worker has any of some cancelled tasks; cancelling does not stop those that have begun."""
    while client.status == "running" and any(keys.intersection(of_it) for of_it in client.processing().values()):
        time.sleep(0.02)
    if client.status == "running":
        client.run(_forget, keys, on_error="ignore")  # a worker that dies meanwhile writes nothing either


async def _forget(keys, dask_worker):
    while not keys.isdisjoint(dask_worker.state.tasks):
        await asyncio.sleep(0.02)


def _block_of(path, file, name, block, fill, found, device):
    """Task: compute and write one block of a model, unless a worker did that before it died."""
    with _one_at_a_time:
        there = _store(path)
        if block in there.missing(name):
            fill = functools.partial(fill, device=attribution._device(device), bar=tqdm(disable=True))
            maps = np.empty(there.shape(block), np.float32)
            fill(maps, _encoder(file, device), _images(path, file).isel(image=block), found)
            there.write(name, block, maps)


def _slopes_of(path, file, slopes, device):
    """Task: what the invariant methods need of all images."""
    with _one_at_a_time:
        slopes = functools.partial(slopes, device=attribution._device(device))
        return slopes(_encoder(file, device), _images(path, file), _store(path).blocks)


def _store(path):
    if not path.exists():
        raise FileNotFoundError(
            f"the worker on {socket.gethostname()} does not see {path}: the store must be on a file system that all "
            "workers share, under the same path"
        )
    return store._Store(path)


def _images(path, file):
    values = np.load(file.with_name("images.npy"), mmap_mode="r")
    return xr.DataArray(values, dims=("image", "y", "x", "channel"))


@functools.lru_cache(maxsize=1)
def _encoder(file, device):
    return pickle.loads(file.read_bytes()).to(attribution._device(device))
