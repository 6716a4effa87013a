"""Transfers of the task bank: every frozen encoder to every target, with a small head; the loss of every test image."""

import functools

import numpy as np
import torch

from support.bank import networks, training, work
from support.bank.tasks import TASKS

RGB = "rgb"


def represent(encoder, images):
    """Representations of images by a frozen encoder.

    Parameters
    ----------
    encoder : Encoder
        In evaluation mode.
    images : torch.Tensor
        (image, 3, 64, 64), bytes or floats in [0, 1], on the encoder's device.

    Returns
    -------
    torch.Tensor
        (image, 8, 8, 8), float32, in single precision throughout, on the same device.
    """
    with torch.no_grad():
        return torch.cat([encoder(networks.normalise(some)) for some in images.split(training.AT_ONCE)])


def transfer(task, features, targets, steps, batch, generator):
    """Train a head on representations: one transfer.

    Zamir et al. (2018), Section 3.2: a small readout network on top of the frozen representation of the source.

    Parameters
    ----------
    task : Task
        The target.
    features : torch.Tensor
        (image, 8, 8, 8), as `represent` gives them.
    targets : torch.Tensor
        (image, …), as the task gives them.
    steps, batch : int
        Number of steps, images a step.
    generator : torch.Generator
        Of the head's first weights and of the order of the images; on the CPU. The same state for every source gives
        all of them the same start and the same batches.

    Returns
    -------
    Head
        Trained, frozen, in evaluation mode.
    list of float
        Mean loss of each step's batch.

    Raises
    ------
    ValueError
        As for `training.fit`.
    """
    head = training.build(functools.partial(networks.Head, task), generator).to(features.device)
    curve = training.fit(head, task, features, targets, steps, batch, generator)
    return head.eval().requires_grad_(False), curve


def keep_features(workshop, source):
    """Store the representations of all transfer and test images by one encoder, once for all targets.

    Parameters
    ----------
    workshop : Workshop
    source : str
        A task, or ``"random"``.

    Raises
    ------
    FileNotFoundError
        Not rendered or not trained yet; the message gives the command.
    """
    try:
        state = networks.read(training.piece(workshop, source), "encoder")
    except FileNotFoundError:
        raise FileNotFoundError(
            f"the encoder of {source} in bank {workshop.seed} is not trained: "
            f"python -m support.bank train --seed {workshop.seed}"
        ) from None
    encoder = networks.restore(networks.Encoder(), state).to(workshop.device)
    tensors = {}
    for name in workshop.plan.targets:
        view = _view(workshop, name)
        for split in ("transfer", "test"):
            if f"{split}.{view}" not in tensors:
                tensors[f"{split}.{view}"] = represent(encoder, workshop.images(split, name).to(workshop.device))
    work.save_tensors(features_piece(workshop, source), tensors)


def keep_transfer(workshop, target, source, doubled):
    """Train one transfer and store its piece: the loss of every test image.

    Parameters
    ----------
    workshop : Workshop
    target, source : str
    doubled : bool
        Train with twice the steps.
    """
    plan, task = workshop.plan, TASKS[target]
    trained, tested = (
        networks.read(features_piece(workshop, source), split)[_view(workshop, target)].to(workshop.device)
        for split in ("transfer", "test")
    )
    wanted, held_out = _targets(workshop, target)
    head, _ = transfer(
        task, trained, wanted, plan.head_steps * (1 + doubled), plan.batch, workshop.generator("transfer", target)
    )
    work.save_tensors(
        piece(workshop, target, source, doubled), {"loss.image": training.losses(head, task, tested, held_out)}
    )


@functools.lru_cache(maxsize=1)  # transfers to one target follow each other
def _targets(workshop, target):
    return tuple(workshop.targets(split, target).to(workshop.device) for split in ("transfer", "test"))


def _view(workshop, name):
    """What the inputs of a target are stored under: most see the plain image, and share it."""
    return RGB if workshop.sees_rgb(name) else name


def features_piece(workshop, source):
    """File of one encoder's representations in the workshop."""
    return workshop.pieces / "features" / f"{source}.safetensors"


def piece(workshop, target, source, doubled):
    """File of one transfer in the workshop."""
    return workshop.pieces / ("transfers_doubled" if doubled else "transfers") / target / f"{source}.safetensors"


def jobs(workshop):
    """All transfers of the plan.

    Parameters
    ----------
    workshop : Workshop

    Returns
    -------
    list of (str, str, bool)
        Target, source, whether with twice the steps; those to one target follow each other.
    """
    wanted = [(target, False) for target in workshop.plan.targets] + [(name, True) for name in workshop.plan.doubled]
    return [(target, source, doubled) for target, doubled in wanted for source in training.sources(workshop)]


def collect(workshop):
    """Write the finished file ``losses_seedS.npz``, which `support.oracle.losses` reads.

    Parameters
    ----------
    workshop : Workshop
        Every transfer in it is trained.

    Returns
    -------
    Path
        The file: float16 losses, names and numbers of images.
    """
    plan, names = workshop.plan, training.sources(workshop)

    def measured(targets, doubled):
        pieces = [[piece(workshop, target, name, doubled) for target in targets] for name in names]
        values = [[networks.read(path, "loss")["image"].numpy() for path in row] for row in pieces]
        return np.array(values).astype(np.float16)

    own = [networks.read(training.piece(workshop, name), "loss") for name in plan.tasks]
    path = workshop.folder / f"losses_seed{workshop.seed}.npz"
    work.save_arrays(
        path,
        loss=measured(plan.targets, False),
        loss_double=measured(plan.doubled, True),
        loss_own=np.stack([losses["own"].numpy() for losses in own]).astype(np.float16),
        loss_constant=np.stack([losses["constant"].numpy() for losses in own]).astype(np.float16),
        source=np.array(names),
        target=np.array(plan.targets),
        target_double=np.array(plan.doubled),
        task=np.array(plan.tasks),
        image=np.array(plan.images("test")),
    )
    return path
