"""What the method costs, beside the transfers that it is to replace: a race on one machine, and how costs grow."""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from support import attribution, probe, similarity, space, zoo
from support.bank import networks, rooms, tasks, transfers, work


class Race(NamedTuple):
    """Seconds of one run on one machine, and what they bought.

    Attributes
    ----------
    n_models, n_images, n_transfers : int
        Networks, probe images, ordered pairs of source and target.
    epochs : float
        How often a transfer sees each of its training images.
    n_training : int
        Training images of a transfer.
    maps, affinity : float
        Seconds for the maps of all networks, and for comparing them.
    svcca : float
        Seconds for the representations of all networks and their SVCCA, from the same images.
    features, head : float
        Seconds for one network's representations of all training images, and for training one head.
    """

    n_models: int
    n_images: int
    n_transfers: int
    epochs: float
    n_training: int
    maps: float
    affinity: float
    svcca: float
    features: float
    head: float

    @property
    def attribution(self) -> float:
        """Seconds of attribution in all."""
        return self.maps + self.affinity

    @property
    def transfers(self) -> float:
        """Seconds of all transfers: heads, and each network's representations once."""
        return self.n_transfers * self.head + self.n_models * self.features

    @property
    def ratio(self) -> float:
        """How many times longer the transfers take."""
        return self.transfers / self.attribution

    @property
    def predicted(self) -> float:
        """The same, if every image of a training step cost what an image of attribution does."""
        return self.n_transfers * self.epochs * self.n_training / (self.n_models * self.n_images)


def speedup(epochs: float, n_training: int, n_models: int, n_images: int) -> float:
    """The cost model of the paper: E · N · (T − 1) / M.

    Each of T (T − 1) transfers passes E times over N training images, forward and backward; attribution passes once
    over M probe images for each of T networks. If all passes cost the same, this is the quotient.

    Parameters
    ----------
    epochs : float
        E, how often a transfer sees each of its training images.
    n_training : int
        N, training images of a transfer.
    n_models : int
        T, networks.
    n_images : int
        M, probe images.

    Returns
    -------
    float

    Raises
    ------
    ValueError
        A number that is not positive, or fewer than two networks.

    Examples
    --------
    The numbers of the paper: twenty networks, a thousand images, 16,000 training images seen once.

    >>> speedup(1, 16_000, 20, 1_000)
    304.0
    """
    if min(epochs, n_training, n_images) <= 0 or n_models < 2:
        raise ValueError("the cost model needs positive numbers, and two networks at least")
    return epochs * n_training * (n_models - 1) / n_images


def race(
    n_images: int,
    method: str = "epsilon_lrp",
    seed: int = 0,
    target: str = "rgb2sfnorm",
    source: str = "rgb2depth",
    device: str = "cpu",
) -> Race:
    """Attribution of all networks of a task bank against its transfers, one after the other on the same machine.

    The maps are all computed. Of the transfers one is trained for a tenth of its steps, on the features of two batches
    out of all its images, and multiplied up; nothing is kept.

    Parameters
    ----------
    n_images : int
        Probe images (rooms of 64 pixels).
    method : str, default "epsilon_lrp"
        As for `attribution.attribute`.
    seed : int, default 0
        Which bank.
    target, source : str, optional
        The transfer that is timed.
    device : str, default "cpu"
        Of both, a torch device.

    Returns
    -------
    Race

    Raises
    ------
    FileNotFoundError, ValueError
        As for `zoo.load_all`, `probe.load` and `attribution.attribute`.

    Examples
    --------
    >>> result = race(1, "saliency")
    >>> result.n_models, result.n_transfers
    (20, 342)
    """
    images = probe.load("rooms", n_images=n_images, size=64, seed=seed)
    encoders = zoo.load_all("bank", seed=seed)
    settings: dict[str, Any] = {"method": method, "device": device, "progress": False}
    attribution.attribute(encoders[:1], images, **settings)  # warms up
    seconds_maps, maps = timed(attribution.attribute, encoders, images, **settings)
    seconds_affinity, _ = timed(space.affinity, maps)
    seconds_svcca, _ = timed(_svcca, [encoder.to(device) for encoder in encoders], images)

    plan, task = work.plan(seed), tasks.TASKS[target]
    start, n_few, steps = plan.images("transfer").start, 2 * plan.batch, max(2, plan.head_steps // 10)
    scene = {name: value.to(device) for name, value in rooms.render(seed, start, start + n_few).items()}
    encoder = networks.load_encoder(work.FOLDER / f"encoders_seed{seed}.safetensors", source).to(device)
    inputs, wanted = task.input(scene), task.target(scene)
    features = transfers.represent(encoder, inputs)
    generator = torch.Generator().manual_seed(seed)
    transfers.transfer(task, features, wanted, 2, plan.batch, generator)  # warms up
    seconds_features, _ = timed(transfers.represent, encoder, inputs)
    seconds_head, _ = timed(transfers.transfer, task, features, wanted, steps, plan.batch, generator)
    names = [encoder.name for encoder in encoders]
    return Race(
        n_models=len(names),
        n_images=n_images,
        n_transfers=sum(name != goal for goal in plan.targets for name in names),
        epochs=plan.head_steps * plan.batch / plan.n_transfer,
        n_training=plan.n_transfer,
        maps=seconds_maps,
        affinity=seconds_affinity,
        svcca=seconds_svcca,
        features=seconds_features * plan.n_transfer / n_few,
        head=seconds_head * plan.head_steps / steps,
    )


def _svcca(encoders, images):
    with torch.no_grad():
        seen = {encoder.name: encoder.represent(encoder.preprocess(images)).cpu().numpy() for encoder in encoders}
    return similarity.matrix(seen, "svcca")


def timed(function: Callable, *arguments: Any, repeats: int = 1, **options: Any) -> tuple[float, Any]:
    """Seconds that a call takes, the least of several, and what it returns.

    Parameters
    ----------
    function : callable
    *arguments, **options
        Of the call.
    repeats : int, default 1
        How often it is called.

    Returns
    -------
    float
        Seconds; on a GPU, until its work is done.
    object
        What the last call returned.

    Examples
    --------
    >>> seconds, result = timed(sum, [1, 2, 3], repeats=2)
    >>> seconds < 1, result
    (True, 6)
    """
    least = np.inf
    for _ in range(repeats):
        start = time.perf_counter()
        result = function(*arguments, **options)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        least = min(least, time.perf_counter() - start)
    return least, result


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """How a cost grows: b of the power law seconds = a · size^b, by least squares on logarithms.

    Parameters
    ----------
    sizes, seconds : sequence of float
        Positive; at least two different sizes.

    Returns
    -------
    float
        b; with few and small sizes, less than what it tends to, since a part of each cost does not grow.

    Raises
    ------
    ValueError
        Other lengths, fewer than two different sizes, or a value that is not positive.

    Examples
    --------
    >>> round(exponent([1, 2, 4], [3, 12, 48]), 6)
    2.0
    """
    sizes, seconds = np.asarray(sizes, float), np.asarray(seconds, float)
    if sizes.shape != seconds.shape or len(np.unique(sizes)) < 2 or min(sizes.min(), seconds.min()) <= 0:
        raise ValueError("a power law is fitted to positive seconds at two different positive sizes or more")
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])
