"""Transfers of the task bank: every frozen encoder to every target, with a small head; the loss of every test image."""

import functools
from pathlib import Path

import numpy as np
import torch

from support.bank import networks, training, work
from support.bank.tasks import TASKS, Task

RGB = "rgb"


def represent(encoder: networks.TaskEncoder, images: torch.Tensor) -> torch.Tensor:
    """Representations of images by a frozen encoder.

    Parameters
    ----------
    encoder : TaskEncoder
        In evaluation mode.
    images : torch.Tensor
        (image, 3, 64, 64), bytes or floats in [0, 1], on the encoder's device.

    Returns
    -------
    torch.Tensor
        (image, channel, y, x), of the encoder's `shape`, float32, in single precision throughout, on the same device.

    Examples
    --------
    >>> represent(networks.SeparableEncoder().eval(), torch.rand(2, 3, 64, 64)).shape
    torch.Size([2, 24, 6, 6])
    """
    resize = networks.Resize(encoder.size)
    with torch.no_grad():
        return torch.cat([encoder(resize(networks.normalise(some))) for some in images.split(training.AT_ONCE)])


def transfer(
    task: Task, features: torch.Tensor, targets: torch.Tensor, steps: int, batch: int, generator: torch.Generator
) -> tuple[networks.Head, list[float]]:
    """Train a head on representations: one transfer.

    Zamir et al. (2018), Section 3.2: a small readout network on top of the frozen representation of the source.

    Parameters
    ----------
    task : Task
        The target.
    features : torch.Tensor
        (image, channel, y, x), as `represent` gives them.
    targets : torch.Tensor
        (image, …), as the task gives them.
    steps, batch : int
        Number of steps, images a step.
    generator : torch.Generator
        Of the head's first weights and of the order of the images; on the CPU. The same state for every source gives
        all of them the same batches and the same start, but for the first convolution of another width.

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

    Examples
    --------
    >>> features, styles = torch.rand(20, 24, 6, 6), torch.zeros(20, dtype=torch.int64)
    >>> head, curve = transfer(TASKS["class_places"], features, styles, 3, 10, torch.Generator())
    >>> head(features).shape, len(curve)
    (torch.Size([20, 8]), 3)
    """
    _, *shape = features.shape  # channel, y, x
    head = training.build(lambda: networks.Head(task, (shape[0], shape[1], shape[2])), generator).to(features.device)
    curve = training.fit(head, task, features, targets, steps, batch, generator)
    return head.eval().requires_grad_(False), curve


def keep_features(workshop: work.Workshop, source: str) -> None:
    """Store the representations of all transfer and test images by one encoder, once for all targets.

    Parameters
    ----------
    workshop : Workshop
    source : str
        A task, a task and a family, or ``"random"``.

    Raises
    ------
    FileNotFoundError
        Not rendered or not trained yet; the message gives the command.

    Examples
    --------
    >>> keep_features(work.Workshop(work.TINY, folder=Path("elsewhere")), "edge2d")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    FileNotFoundError: the encoder of edge2d in bank 0 is not trained: python -m support.bank train --seed 0
    """
    try:
        encoder = networks.load_encoder(training.piece(workshop, source), "encoder").to(workshop.device)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"the encoder of {source} in bank {workshop.seed} is not trained: "
            f"python -m support.bank train --seed {workshop.seed}"
        ) from None
    tensors = {}
    for name in workshop.plan.targets:
        view = _view(workshop, name)
        for split in ("transfer", "test"):
            if f"{split}.{view}" not in tensors:
                tensors[f"{split}.{view}"] = represent(encoder, workshop.images(split, name).to(workshop.device))
    work.save_tensors(features_piece(workshop, source), tensors)


def keep_transfer(workshop: work.Workshop, target: str, source: str, steps: int) -> None:
    """Train one transfer and store its piece: the loss of every test image.

    Parameters
    ----------
    workshop : Workshop
    target, source : str
    steps : int
        Training steps of the head.

    Examples
    --------
    >>> keep_transfer(work.Workshop(work.TINY, folder=Path("elsewhere")), "edge2d", "reshade", 6)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    FileNotFoundError: there is no elsewhere/work/...: python -m support.bank all
    """
    plan, task = workshop.plan, TASKS[target]
    trained, tested = (
        networks.read(features_piece(workshop, source), split)[_view(workshop, target)].to(workshop.device)
        for split in ("transfer", "test")
    )
    wanted, held_out = _targets(workshop, target)
    head, _ = transfer(task, trained, wanted, steps, plan.batch, workshop.generator("transfer", target))
    work.save_tensors(
        piece(workshop, target, source, steps), {"loss.image": training.losses(head, task, tested, held_out)}
    )


@functools.lru_cache(maxsize=1)  # transfers to one target follow each other
def _targets(workshop, target):
    return tuple(workshop.targets(split, target).to(workshop.device) for split in ("transfer", "test"))


def _view(workshop, name):
    """What the inputs of a target are stored under: most see the plain image, and share it."""
    return RGB if workshop.sees_rgb(name) else name


def features_piece(workshop: work.Workshop, source: str) -> Path:
    """File of one encoder's representations in the workshop.

    Examples
    --------
    >>> features_piece(work.Workshop(), "edge2d").parent.name
    'features'
    """
    return workshop.pieces / "features" / f"{source}.safetensors"


def piece(workshop: work.Workshop, target: str, source: str, steps: int) -> Path:
    """File of one transfer in the workshop.

    Examples
    --------
    >>> piece(work.Workshop(), "reshade", "edge2d", 120).parts[-3:]
    ('transfers_120', 'reshade', 'edge2d.safetensors')
    """
    return workshop.pieces / f"transfers_{steps}" / target / f"{source}.safetensors"


def jobs(workshop: work.Workshop) -> list[tuple[str, str, int]]:
    """All transfers of the plan.

    Parameters
    ----------
    workshop : Workshop

    Returns
    -------
    list of (str, str, int)
        Target, source, training steps; those to one target follow each other.

    Examples
    --------
    >>> jobs(work.Workshop(work.TINY))[:2]
    [('rgb2depth', 'rgb2depth', 6), ('rgb2depth', 'edge2d', 6)]
    """
    plan = workshop.plan
    return _jobs(training.sources(workshop), plan.targets, [plan.head_steps]) + _jobs(
        training.sources(workshop), plan.doubled, [2 * plan.head_steps]
    )


def crossed_jobs(workshop: work.Workshop) -> list[tuple[str, str, int]]:
    """The transfers that the crossed part adds to those, as `jobs` gives them.

    Examples
    --------
    >>> crossed_jobs(work.Workshop(work.TINY))[0]
    ('rgb2depth', 'edge2d@separable', 6)
    """
    return _jobs(training.added(workshop), workshop.plan.targets, [workshop.plan.head_steps])


def budget_jobs(workshop: work.Workshop) -> list[tuple[str, str, int]]:
    """The transfers of the study of the budget, as `jobs` gives them: all, with other numbers of steps.

    Examples
    --------
    >>> sorted({steps for _, _, steps in budget_jobs(work.Workshop(work.TINY))})
    [3, 9]
    """
    return _jobs(training.sources(workshop), workshop.plan.targets, _budgets(workshop))


def _jobs(sources, targets, steps):
    return [(target, source, number) for target in targets for number in steps for source in sources]


def _budgets(workshop):
    return [steps for steps in workshop.plan.budgets if steps != workshop.plan.head_steps]


def collect(workshop: work.Workshop) -> Path:
    """Write the finished file ``losses_seedS.npz``, which `support.oracle.losses` reads.

    Parameters
    ----------
    workshop : Workshop
        Every transfer in it is trained.

    Returns
    -------
    Path
        The file: float16 losses, names and numbers of images.

    Examples
    --------
    >>> collect(work.Workshop(work.TINY, folder=Path("elsewhere")))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    FileNotFoundError: there is no elsewhere/work/...: python -m support.bank all
    """
    plan, names = workshop.plan, training.sources(workshop)
    path = workshop.folder / f"losses_seed{workshop.seed}.npz"
    work.save_arrays(
        path,
        loss=_measured(workshop, names, plan.targets, plan.head_steps),
        loss_double=_measured(workshop, names, plan.doubled, 2 * plan.head_steps),
        loss_own=_own(workshop, plan.tasks, "own"),
        loss_constant=_own(workshop, plan.tasks, "constant"),
        source=np.array(names),
        target=np.array(plan.targets),
        target_double=np.array(plan.doubled),
        task=np.array(plan.tasks),
        image=np.array(plan.images("test")),
    )
    return path


def collect_crossed(workshop: work.Workshop) -> Path:
    """Write the finished file ``crossed_seedS.npz``: every task of the crossed part in every family.

    Parameters
    ----------
    workshop : Workshop
        Every transfer in it is trained.

    Returns
    -------
    Path
        The file, which `support.oracle.crossed` reads: float16 ``loss`` (source, target, image) and ``loss_own``
        (source, image); sources are called ``TASK@FAMILY``.

    Examples
    --------
    >>> collect_crossed(work.Workshop(work.TINY, folder=Path("elsewhere")))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    FileNotFoundError: there is no elsewhere/work/...: python -m support.bank all
    """
    plan, names = workshop.plan, workshop.crossed
    path = workshop.folder / f"crossed_seed{workshop.seed}.npz"
    work.save_arrays(
        path,
        loss=_measured(workshop, names.values(), plan.targets, plan.head_steps),
        loss_own=_own(workshop, names.values(), "own"),
        source=np.array(list(names)),
        target=np.array(plan.targets),
        image=np.array(plan.images("test")),
    )
    return path


def collect_budget(workshop: work.Workshop) -> Path:
    """Write the finished file ``budget_seedS.npz``: the losses of all transfers with other numbers of training steps.

    Parameters
    ----------
    workshop : Workshop
        Every transfer in it is trained.

    Returns
    -------
    Path
        The file, which `support.oracle.budget` reads: float16 ``loss`` (steps, source, target, image). The plan's own
        number of steps, ``head_steps``, is not among them: its losses are in ``losses_seedS.npz``.

    Examples
    --------
    >>> collect_budget(work.Workshop(work.TINY, folder=Path("elsewhere")))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    FileNotFoundError: there is no elsewhere/work/...: python -m support.bank all
    """
    plan, names, budgets = workshop.plan, training.sources(workshop), _budgets(workshop)
    path = workshop.folder / f"budget_seed{workshop.seed}.npz"
    work.save_arrays(
        path,
        loss=np.stack([_measured(workshop, names, plan.targets, steps) for steps in budgets]),
        steps=np.array(budgets),
        head_steps=np.array(plan.head_steps),
        source=np.array(names),
        target=np.array(plan.targets),
        image=np.array(plan.images("test")),
    )
    return path


def _measured(workshop, names, targets, steps):
    pieces = [[piece(workshop, target, name, steps) for target in targets] for name in names]
    values = [[networks.read(path, "loss")["image"].numpy() for path in row] for row in pieces]
    return np.array(values).astype(np.float16)


def _own(workshop, names, kind):
    values = [networks.read(training.piece(workshop, name), "loss")[kind].numpy() for name in names]
    return np.stack(values).astype(np.float16)
