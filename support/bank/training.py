"""Training of the task bank: one encoder and decoder per task, and the encoder with random weights."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from support.bank import RANDOM, networks, tasks, work

LEARNING_RATE = 4e-3  # the peak of the one-cycle schedule
GREY_INPUT = "colorization"  # the one task whose network is trained on grey images and then meets coloured ones
BASELINE = 2_000  # training images that the best constant prediction is found from
AT_ONCE = 200  # images of one forward pass without training
Made = TypeVar("Made")


def fit(
    network: nn.Module,
    task: tasks.Task,
    inputs: torch.Tensor,
    targets: torch.Tensor,
    steps: int,
    batch: int,
    generator: torch.Generator,
) -> list[float]:
    """Train a network: AdamW, one-cycle schedule with its peak at 4e-3, bfloat16 where the machine has it.

    Parameters
    ----------
    network : torch.nn.Module
        Changed in place; on the device of `inputs`.
    task : Task
        Gives the loss.
    inputs : torch.Tensor
        (image, …): images as bytes, or representations as floats.
    targets : torch.Tensor
        (image, …): as the task gives them, in any float or integer type, on the device of `inputs`.
    steps, batch : int
        Number of steps, images a step. The images come in random order, shuffled anew when fewer than a batch are left.
    generator : torch.Generator
        Of the order of the images; on the CPU.

    Returns
    -------
    list of float
        Mean loss of each step's batch.

    Raises
    ------
    ValueError
        Fewer images than a batch has, or a loss that is not finite.

    Examples
    --------
    >>> task, inputs = tasks.TASKS["class_places"], torch.rand(20, 8, 8, 8)
    >>> network = build(lambda: networks.decoder(task), torch.Generator())
    >>> len(fit(network, task, inputs, torch.zeros(20, dtype=torch.int64), 3, 10, torch.Generator()))
    3
    """
    if len(inputs) < batch:
        raise ValueError(f"{len(inputs)} images do not fill a batch of {batch}")
    network.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=LEARNING_RATE, total_steps=steps)
    curve: list[torch.Tensor] = []
    order = torch.empty(0, dtype=torch.int64)
    with _deterministic():
        for _ in range(steps):
            if len(order) < batch:
                order = torch.randperm(len(inputs), generator=generator)
            chosen, order = order[:batch].to(inputs.device), order[batch:]
            optimizer.zero_grad()
            with _bfloat16(inputs.device):
                prediction = network(_as_input(inputs[chosen]))
            loss = tasks.losses(task, prediction, _as_target(targets[chosen])).mean()
            loss.backward()
            optimizer.step()
            schedule.step()
            curve.append(loss.detach())
    measured = torch.stack(curve).cpu()
    if not torch.isfinite(measured).all():
        raise ValueError(f"training for {task.name} diverged: its loss is not finite")
    return measured.tolist()


def losses(network: nn.Module, task: tasks.Task, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Loss of every image, in single precision.

    Parameters
    ----------
    network : torch.nn.Module
        In evaluation mode.
    task : Task
    inputs, targets : torch.Tensor
        As for `fit`.

    Returns
    -------
    torch.Tensor
        (image), float32, on the CPU.

    Examples
    --------
    >>> task = tasks.TASKS["class_places"]
    >>> losses(networks.decoder(task).eval(), task, torch.rand(20, 8, 8, 8), torch.zeros(20, dtype=torch.int64)).shape
    torch.Size([20])
    """
    parts = []
    with torch.no_grad():
        for some, wanted in zip(inputs.split(AT_ONCE), targets.split(AT_ONCE), strict=True):
            parts.append(tasks.losses(task, network(_as_input(some)), _as_target(wanted)).cpu())
    return torch.cat(parts)


def train(workshop: work.Workshop, name: str) -> None:
    """Train one encoder with its decoder, or measure the random encoder's normalisation, and store the piece.

    The encoder of colorization is made to see the grey of coloured images; those of denoise and inpainting_whole meet
    clean and whole ones in transfers, as in Taskonomy. The piece holds the values in half precision and, found with
    exactly these, the loss of every test image, which are of rooms that no training has seen; beside it that of the
    best constant prediction.

    Parameters
    ----------
    workshop : Workshop
    name : str
        A task; a task and a family, as ``"edge2d@residual"``; or ``"random"``: that encoder keeps its first weights,
        and its batch normalisation takes its means and variances from training images, so that its units are of the
        same size as those of the others.

    Raises
    ------
    FileNotFoundError
        Not rendered yet; the message gives the command.

    Examples
    --------
    >>> train(work.Workshop(work.TINY, folder=Path("elsewhere")), "edge2d")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    FileNotFoundError: the rooms of bank 0 are not all rendered: python -m support.bank render --seed 0
    """
    plan, device = workshop.plan, workshop.device
    build_encoder = networks.FAMILIES[workshop.family(name)]
    told = {"encoder": workshop.family(name)}
    if name == RANDOM:
        encoder = build(build_encoder, workshop.generator("network", name)).to(device)
        _calibrate(encoder, workshop.images("train", plan.tasks[0])[:BASELINE].to(device))
        work.save_tensors(piece(workshop, name), _prefixed("encoder", networks.halved(encoder)), told)
        return
    task = tasks.TASKS[name.partition("@")[0]]
    generator = workshop.generator("network", name)

    def untrained():
        return build_encoder(), networks.decoder(task, build_encoder.shape)

    encoder, decoder = build(untrained, generator)
    network = nn.Sequential(networks.Resize(build_encoder.size), encoder, decoder).to(device)
    inputs, targets = (getattr(workshop, kind)("train", task.name).to(device) for kind in ("images", "targets"))
    fit(network, task, inputs, targets, plan.steps, plan.batch, generator)
    if task.name == GREY_INPUT:
        networks.see_grey(encoder)
    stored = {"encoder": networks.halved(encoder), "decoder": networks.halved(decoder)}
    networks.restore(encoder, stored["encoder"])
    networks.restore(decoder, stored["decoder"])
    network.eval()
    constant = tasks.constant(task, _as_target(targets[:BASELINE]))
    inputs, targets = (getattr(workshop, kind)("test", task.name).to(device) for kind in ("images", "targets"))
    work.save_tensors(
        piece(workshop, name),
        {
            **_prefixed("encoder", stored["encoder"]),
            **_prefixed("decoder", stored["decoder"]),
            "loss.own": losses(network, task, inputs, targets),
            "loss.constant": tasks.losses(task, constant, _as_target(targets)).cpu(),
        },
        told,
    )


def piece(workshop: work.Workshop, name: str) -> Path:
    """File of a trained encoder and decoder in the workshop.

    Examples
    --------
    >>> piece(work.Workshop(), "edge2d").name
    'edge2d.safetensors'
    """
    return workshop.pieces / "networks" / f"{name}.safetensors"


def sources(workshop: work.Workshop) -> tuple[str, ...]:
    """Names of all encoders: those of the tasks, then the random one.

    Examples
    --------
    >>> sources(work.Workshop(work.TINY))
    ('rgb2depth', 'edge2d', 'class_places', 'random')
    """
    return (*workshop.plan.tasks, RANDOM)


def added(workshop: work.Workshop) -> tuple[str, ...]:
    """Names of the encoders that the crossed part has beside those.

    Examples
    --------
    >>> added(work.Workshop(work.TINY))
    ('edge2d@separable',)
    """
    return tuple(name for name in workshop.crossed.values() if "@" in name)


def collect(workshop: work.Workshop) -> list[Path]:
    """Write the finished files ``encoders_seedS.safetensors`` and, where the plan says so, ``decoders_seedS``.

    Parameters
    ----------
    workshop : Workshop
        Everything in it is trained.

    Returns
    -------
    list of Path
        The files: float16, names ``TASK.VALUE``.

    Examples
    --------
    >>> collect(work.Workshop(work.TINY, folder=Path("elsewhere")))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    FileNotFoundError: there is no elsewhere/work/...: python -m support.bank all
    """
    paths = [_collect(workshop, "encoder", sources(workshop), "")]
    if workshop.plan.ships_decoders:
        paths.append(_collect(workshop, "decoder", workshop.plan.tasks, ""))
    return paths


def collect_crossed(workshop: work.Workshop) -> Path:
    """Write the finished file ``crossed_encoders_seedS.safetensors``: the networks of `added`.

    Parameters
    ----------
    workshop : Workshop
        Everything in it is trained.

    Returns
    -------
    Path
        The file: float16, names ``TASK@FAMILY.VALUE``.

    Examples
    --------
    >>> collect_crossed(work.Workshop(work.TINY, folder=Path("elsewhere")))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    FileNotFoundError: there is no elsewhere/work/...: python -m support.bank all
    """
    return _collect(workshop, "encoder", added(workshop), "crossed_")


def _collect(workshop, part, names, prefix):
    tensors = {}
    for name in names:
        tensors |= _prefixed(name, networks.read(piece(workshop, name), part))
    path = workshop.folder / f"{prefix}{part}s_seed{workshop.seed}.safetensors"
    families = {name: workshop.family(name) for name in names} if part == "encoder" else None
    work.save_tensors(path, tensors, families)
    return path


def unpack(workshop: work.Workshop) -> None:
    """Lay the finished encoders of a bank out as pieces of another workshop with the same seed.

    Parameters
    ----------
    workshop : Workshop
        Whose pieces are wanted; the finished file is in its folder.

    Raises
    ------
    FileNotFoundError
        The bank is not made; the message gives the command.

    Examples
    --------
    >>> unpack(work.Workshop(folder=Path("elsewhere")))
    Traceback (most recent call last):
    FileNotFoundError: there is no elsewhere/encoders_seed0.safetensors: python -m support.bank all --seed 0
    """
    path = workshop.folder / f"encoders_seed{workshop.seed}.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}: python -m support.bank all --seed {workshop.seed}")
    for name in sources(workshop):
        told = {"encoder": workshop.family(name)}
        work.save_tensors(piece(workshop, name), _prefixed("encoder", networks.read(path, name)), told)


def _prefixed(prefix, tensors):
    return {f"{prefix}.{name}": value for name, value in tensors.items()}


def build(factory: Callable[[], Made], generator: torch.Generator) -> Made:
    """Networks whose first weights depend on a generator alone.

    Parameters
    ----------
    factory : callable
        Makes them, from torch's global random numbers.
    generator : torch.Generator

    Returns
    -------
    object
        What the factory makes, on the CPU. The global random numbers are left as they were.

    Examples
    --------
    >>> one, other = (build(networks.Encoder, torch.Generator().manual_seed(3)) for _ in range(2))
    >>> torch.equal(one[0][0].weight, other[0][0].weight)
    True
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch.randint(2**53, (1,), generator=generator).item())
        return factory()


def _calibrate(encoder, images):
    normalisations = [module for module in encoder.modules() if isinstance(module, nn.BatchNorm2d)]
    for module in normalisations:
        module.reset_running_stats()
        module.momentum = None  # the plain mean over batches
    encoder.train()
    with torch.no_grad():
        for some in images.split(AT_ONCE):
            encoder(networks.normalise(some))


def _as_input(inputs):
    if inputs.dtype == torch.uint8:
        inputs = networks.normalise(inputs)
    return inputs.contiguous(memory_format=torch.channels_last)


def _as_target(targets):
    return targets.to(torch.float32) if targets.is_floating_point() else targets.to(torch.int64)


def _bfloat16(device):
    """Automatic mixed precision where it is faster: a GPU, or a CPU with instructions for it."""
    helps = device.type == "cuda" or any(
        torch.cpu.get_capabilities().get(feature, False) for feature in ("avx512_bf16", "amx_bf16")
    )
    return torch.autocast(device.type, torch.bfloat16, enabled=helps)


@contextlib.contextmanager
def _deterministic() -> Iterator[None]:
    """Only algorithms that give the same result every time, where there is a choice."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    settings: Any = torch.utils.deterministic
    filled, benchmark = settings.fill_uninitialized_memory, torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True, warn_only=True)
    settings.fill_uninitialized_memory = False  # nothing here reads what it has not written
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        settings.fill_uninitialized_memory = filled
        torch.backends.cudnn.benchmark = benchmark
