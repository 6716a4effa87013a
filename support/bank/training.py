"""Training of the task bank: one encoder and decoder per task, and the encoder with random weights."""

import contextlib

import torch
from torch import nn

from support.bank import RANDOM, networks, tasks, work

LEARNING_RATE = 4e-3  # the peak of the one-cycle schedule
GREY_INPUT = "colorization"  # the one task whose network is trained on grey images and then meets coloured ones
BASELINE = 2_000  # training images that the best constant prediction is found from
AT_ONCE = 200  # images of one forward pass without training


def fit(network, task, inputs, targets, steps, batch, generator):
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
    """
    if len(inputs) < batch:
        raise ValueError(f"{len(inputs)} images do not fill a batch of {batch}")
    network.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=LEARNING_RATE, total_steps=steps)
    curve = []
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
    curve = torch.stack(curve).cpu()
    if not torch.isfinite(curve).all():
        raise ValueError(f"training for {task.name} diverged: its loss is not finite")
    return curve.tolist()


def losses(network, task, inputs, targets):
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
    """
    parts = []
    with torch.no_grad():
        for some, wanted in zip(inputs.split(AT_ONCE), targets.split(AT_ONCE), strict=True):
            parts.append(tasks.losses(task, network(_as_input(some)), _as_target(wanted)).cpu())
    return torch.cat(parts)


def train(workshop, name):
    """Train one task's encoder and decoder, or measure the random encoder's normalisation, and store the piece.

    The encoder of colorization is made to see the grey of coloured images; those of denoise and inpainting_whole meet
    clean and whole ones in transfers, as in Taskonomy. The piece holds the values in half precision and, found with
    exactly these, the loss of every test image, which are of rooms that no training has seen; beside it that of the
    best constant prediction.

    Parameters
    ----------
    workshop : Workshop
    name : str
        A task, or ``"random"``: that encoder keeps its first weights, and its batch normalisation takes its means and
        variances from training images, so that its units are of the same size as those of the others.

    Raises
    ------
    FileNotFoundError
        Not rendered yet; the message gives the command.
    """
    plan, device = workshop.plan, workshop.device
    if name == RANDOM:
        encoder = build(networks.Encoder, workshop.generator("network", name)).to(device)
        _calibrate(encoder, workshop.images("train", plan.tasks[0])[:BASELINE].to(device))
        work.save_tensors(piece(workshop, name), _prefixed("encoder", networks.halved(encoder)))
        return
    task = tasks.TASKS[name]
    generator = workshop.generator("network", name)
    network = build(lambda: nn.Sequential(networks.Encoder(), networks.decoder(task)), generator).to(device)
    inputs, targets = workshop.images("train", name).to(device), workshop.targets("train", name).to(device)
    fit(network, task, inputs, targets, plan.steps, plan.batch, generator)
    if name == GREY_INPUT:
        networks.see_grey(network[0])
    stored = {"encoder": networks.halved(network[0]), "decoder": networks.halved(network[1])}
    for part, key in zip(network, stored, strict=True):
        networks.restore(part, stored[key])
    network.eval()
    constant = tasks.constant(task, _as_target(targets[:BASELINE]))
    inputs, targets = workshop.images("test", name).to(device), workshop.targets("test", name).to(device)
    work.save_tensors(
        piece(workshop, name),
        {
            **_prefixed("encoder", stored["encoder"]),
            **_prefixed("decoder", stored["decoder"]),
            "loss.own": losses(network, task, inputs, targets),
            "loss.constant": tasks.losses(task, constant, _as_target(targets)).cpu(),
        },
    )


def piece(workshop, name):
    """File of a trained encoder and decoder in the workshop."""
    return workshop.pieces / "networks" / f"{name}.safetensors"


def sources(workshop):
    """Names of all encoders: those of the tasks, then the random one."""
    return (*workshop.plan.tasks, RANDOM)


def collect(workshop):
    """Write the finished files ``encoders_seedS.safetensors`` and ``decoders_seedS.safetensors``.

    Parameters
    ----------
    workshop : Workshop
        Everything in it is trained.

    Returns
    -------
    list of Path
        The two files: float16, names ``TASK.VALUE``.
    """
    paths = []
    for part, names in (("encoder", sources(workshop)), ("decoder", workshop.plan.tasks)):
        tensors = {}
        for name in names:
            tensors |= _prefixed(name, networks.read(piece(workshop, name), part))
        paths.append(workshop.folder / f"{part}s_seed{workshop.seed}.safetensors")
        work.save_tensors(paths[-1], tensors)
    return paths


def _prefixed(prefix, tensors):
    return {f"{prefix}.{name}": value for name, value in tensors.items()}


def build(factory, generator):
    """A network whose first weights depend on a generator alone.

    Parameters
    ----------
    factory : callable
        Makes the network, from torch's global random numbers.
    generator : torch.Generator

    Returns
    -------
    torch.nn.Module
        On the CPU. The global random numbers are left as they were.
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
def _deterministic():
    """Only algorithms that give the same result every time, where there is a choice."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled, benchmark = torch.utils.deterministic.fill_uninitialized_memory, torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # nothing here reads what it has not written
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = filled
        torch.backends.cudnn.benchmark = benchmark
