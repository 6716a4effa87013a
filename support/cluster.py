"""Attribution on many processes or machines, with Dask: a task a model and block of images, results to the store."""

import asyncio
import functools
import ipaddress
import pickle
import shutil
import socket
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import numpy as np
import xarray as xr

from support import passes, store

if TYPE_CHECKING:
    import distributed

ENCRYPTED = {"tls", "wss", "inproc"}  # ways to a scheduler that nobody else can listen to
_one_at_a_time = threading.Lock()  # a network with hooks in it serves one thread


def connect(
    address: str,
    timeout: float = 10,
    security: "distributed.Security | None" = None,
) -> "distributed.Client | None":
    """A client of a running scheduler, for `attribution.attribute(..., client=...)`.

    A scheduler runs what any client sends it, and workers unpickle what the scheduler sends. Between machines it has to
    be reached by TLS, so that only who has a certificate is a client.

    Parameters
    ----------
    address : str
        E.g. ``"tcp://127.0.0.1:8786"`` or ``"tls://node1:8786"``; empty for none.
    timeout : float, default 10
        Seconds to wait for an answer.
    security : distributed.Security, optional
        Certificates for TLS. By default those that Dask's configuration names.

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
    ValueError
        The address is no text.

    Warns
    -----
    UserWarning
        The address is on another machine, or reached over the network, and not encrypted.

    Examples
    --------
    >>> connect("") is None
    True
    """
    if not isinstance(address, str):
        raise ValueError(f"the address of a scheduler is a text such as 'tcp://127.0.0.1:8786', got {address!r}")
    if not address:
        return None
    try:
        import distributed
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'a cluster needs the package "distributed": pip install "distributed>=2025.1"'
        ) from error
    if is_exposed(address):
        warnings.warn(
            f"{address} is not encrypted and not on this machine's loopback: whoever reaches that network can run "
            "programs on the scheduler and its workers. Use TLS, as the page on clusters of this book says",
            stacklevel=2,
        )
    try:
        return distributed.Client(address, timeout=timeout, security=security)
    except (OSError, ValueError, TypeError) as error:
        raise OSError(f"no Dask scheduler answers at {address!r}: start one with `dask scheduler` ({error})") from error


def is_exposed(address: str) -> bool:
    """Whether an address is neither encrypted nor on the loopback of this machine, however that is spelled.

    Parameters
    ----------
    address : str
        As for `connect`.

    Returns
    -------
    bool

    Examples
    --------
    >>> [is_exposed(a) for a in ("tcp://localhost:8786", "[::1]:8786", "tls://192.0.2.1:8786", "192.0.2.1:8786")]
    [False, False, False, True]
    """
    parts = urlsplit(address if "://" in address else f"tcp://{address}")
    if parts.scheme in ENCRYPTED:
        return False
    try:
        found = {str(entry[4][0]).partition("%")[0] for entry in socket.getaddrinfo(parts.hostname, None)}
    except (OSError, UnicodeError):
        return True
    addresses = [ipaddress.ip_address(one) for one in found]
    return not all((getattr(one, "ipv4_mapped", None) or one).is_loopback for one in addresses)


def run(
    client: "distributed.Client",
    there: store.Store,
    jobs: Sequence[passes.Job],
    images: xr.DataArray,
    options: passes.Options,
    done: Callable[[int], object],
) -> list[tuple[str, str, object]]:
    """Have the workers compute and write blocks of a store.

    Every worker must see the store under the same path. What it needs besides, networks and images, lies there too
    while this runs, so that a task of a worker that died can be done by any other. Also after an error this returns
    only when no worker is computing or writing any more: a task that has begun cannot be stopped and is waited for.

    Parameters
    ----------
    client : distributed.Client
        A client of the cluster.
    there : store.Store
        The store, locked by this process, with the groups of the models begun.
    jobs : sequence of passes.Job
        Networks, and the blocks of images that the store lacks of each.
    images : xarray.DataArray
        Probe images, (image, y, x, channel).
    options : passes.Options
        The device is chosen by each worker. Unless it is "cpu", tasks go to the workers that declare a resource "GPU"
        only, one at a time each, where there are such workers.
    done : callable
        Is told after each block how many images it had.

    Returns
    -------
    list of tuple
        (model, method, label of the image) of maps that are zero everywhere.

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
    resources = {"GPU": 1} if options.device != "cpu" and any("GPU" in w["resources"] for w in workers) else None
    submit = functools.partial(client.submit, pure=False, resources=resources)
    path = there.path.resolve()
    inputs, waiting, zero = path / (store.DRAFT + "inputs"), {}, []
    try:
        with store.told(path):
            inputs.mkdir()
            shape = tuple(images.sizes[d] for d in ("image", "y", "x", "channel"))
            values = np.lib.format.open_memmap(inputs / "images.npy", "w+", images.dtype, shape)
            for block in there.blocks:
                values[block] = images.isel(image=block).transpose("image", "y", "x", "channel").values
            values.flush()
        for job in jobs:
            file = inputs / f"{uuid.uuid4().hex}.pickle"  # a name that no worker remembers
            with passes.on(job.encoder, "cpu"):
                pickled = cloudpickle.dumps(job.encoder)
            with store.told(path):
                file.write_bytes(pickled)
            found = submit(_whitening, path, file, options, job.single) if options.whitens else None
            for block in job.missing:
                task = submit(_block, path, file, job.encoder.name, block, options, job.single, found)
                waiting[task] = job.encoder.name, block.stop - block.start
        for task in distributed.as_completed(list(waiting)):
            name, n_images = waiting[task]
            zero += [(name, *which) for which in task.result()]
            done(n_images)
    finally:
        client.cancel(list(waiting))
        _let_end(client, {task.key for task in waiting})
        shutil.rmtree(inputs, ignore_errors=True)
    return sorted(zero, key=str)


def _let_end(client, keys):
    """Wait until no worker has any of some cancelled tasks; cancelling does not stop those that have begun."""
    while client.status == "running" and any(keys.intersection(of_it) for of_it in client.processing().values()):
        time.sleep(0.02)
    if client.status == "running":
        client.run(_forget, keys, on_error="ignore")  # a worker that dies meanwhile writes nothing either


async def _forget(keys, dask_worker):
    while not keys.isdisjoint(dask_worker.state.tasks):
        await asyncio.sleep(0.02)


def is_busy() -> bool:
    """Whether this process, a worker, is computing a task.

    Examples
    --------
    >>> is_busy()
    False
    """
    return _one_at_a_time.locked()


def _block(path, file, name, block, options, single, whitened):
    """Task: compute and write one block of a model, unless a worker did that before it died; which maps are zero."""
    with _one_at_a_time:
        there = _store(path)
        if there.is_complete(name, block):
            return []
        maps, images = there.room(name, block), _images(there, file).isel(image=block)
        zero = passes.fill(maps, _encoder(file, options.device), images, options, whitened, single)
        there.write(name, block, maps)
        return zero


def _whitening(path, file, options, single):
    """Task: what the invariant methods need of all images."""
    with _one_at_a_time:
        there = _store(path)
        return passes.whitening(_encoder(file, options.device), _images(there, file), there.blocks, options, single)


def _store(path):
    if not path.exists():
        raise FileNotFoundError(
            f"the worker on {socket.gethostname()} does not see {path}: the store must be on a file system that all "
            "workers share, under the same path"
        )
    return store.Store(path)


def _images(there, file):
    values = np.load(file.with_name("images.npy"), mmap_mode="r")
    return xr.DataArray(values, {"image": there.coords["image"]}, ("image", "y", "x", "channel"))


@functools.lru_cache(maxsize=1)
def _encoder(file, device):
    return pickle.loads(file.read_bytes()).to(passes.torch_device(device))
