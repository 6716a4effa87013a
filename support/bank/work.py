"""The workshop of the task bank: what is made, where it lies, and how it is made once only, in pieces that survive."""

import dataclasses
import hashlib
import itertools
import json
import multiprocessing
import multiprocessing.connection
import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tqdm import tqdm

from support.bank import networks, rooms
from support.bank.tasks import TASKS

DRAFT = ".draft_"  # how names begin while they are being written
FOLDER = Path(__file__).parents[2] / "data" / "bank"
PLAIN = ("plain",)
CROSSED = ("edge2d", "segment2d", "rgb2depth", "rgb2sfnorm", "room_layout", "segmentsemantic")


@dataclasses.dataclass(frozen=True)
class Plan:
    """How much of everything a bank is made of.

    Attributes
    ----------
    tasks : tuple of str
        Names of the source tasks.
    doubled : tuple of str
        Targets whose transfers are trained a second time, with twice the steps.
    n_train, n_transfer, n_test : int
        Images to train encoders with, to train transfers with, and to measure losses on.
    shard : int
        Images rendered and stored together.
    batch : int
        Images of a training step.
    steps, head_steps : int
        Training steps of an encoder with its decoder, and of a transfer.
    families : tuple of str
        Of `networks.FAMILIES`: those that the tasks' networks are dealt.
    crossed : tuple of str
        Tasks that have a network of every family.
    budgets : tuple of int
        Training steps of a transfer that the order of the sources is compared at; those of `head_steps` are among them.
    ships_decoders : bool
        Whether the tasks' own decoders are among the finished files.
    """

    tasks: tuple = tuple(TASKS)
    doubled: tuple = ("segment2d", "rgb2sfnorm", "class_1000")
    n_train: int = 12_000
    n_transfer: int = 1_600
    n_test: int = 800
    shard: int = 200
    batch: int = 64
    steps: int = 1_000
    head_steps: int = 120
    families: tuple = PLAIN
    crossed: tuple = ()
    budgets: tuple = (60, 120, 240, 480)
    ships_decoders: bool = True

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the tasks that are transferred to."""
        return tuple(name for name in self.tasks if TASKS[name].is_target)

    def images(self, split: str) -> range:
        """The numbers, in a bank, of the images of a split.

        Parameters
        ----------
        split : {"train", "transfer", "test"}

        Returns
        -------
        range

        Raises
        ------
        ValueError
            The bank has not so many images.

        Examples
        --------
        >>> TINY.images("test")
        range(100040, 100080)
        """
        if split == "train":
            chosen, there = rooms.TRAIN[: self.n_train], len(rooms.TRAIN) >= self.n_train
        else:
            first, count = (0, self.n_transfer) if split == "transfer" else (self.n_transfer, self.n_test)
            chosen, there = rooms.TRANSFER[first : first + count], len(rooms.TRANSFER) >= first + count
        if not there:
            raise ValueError(f"the plan asks for more images than there are in {rooms.TRAIN} and {rooms.TRANSFER}")
        return chosen


FULL = Plan()
TINY = Plan(
    tasks=("rgb2depth", "edge2d", "class_places"),
    doubled=("edge2d",),
    n_train=120,
    n_transfer=40,
    n_test=40,
    shard=40,
    batch=20,
    steps=12,
    head_steps=6,
    families=("plain", "separable"),
    crossed=("edge2d",),
    budgets=(3, 6, 9),
)
BANKS = range(7)  # that the book speaks of
MIXED = (4, 5, 6)
CROSSED_BANK = MIXED[0]


def plan(seed: int) -> Plan:
    """What the bank of a seed is made of.

    Parameters
    ----------
    seed : int

    Returns
    -------
    Plan
        0, 1 and 2: plain networks, heads trained for 120 steps. All others: heads trained for 240 steps, no decoders
        kept. 4, 5 and 6: mixed, networks of all four families; 4: six tasks have one of each.

    Examples
    --------
    >>> plan(0).head_steps, plan(3).head_steps, plan(4).families
    (120, 240, ('plain', 'residual', 'separable', 'transformer'))
    """
    if seed < 3:
        return FULL
    return dataclasses.replace(
        FULL,
        head_steps=240,
        families=tuple(networks.FAMILIES) if seed in MIXED else PLAIN,
        crossed=CROSSED if seed == CROSSED_BANK else (),
        ships_decoders=False,
    )


@dataclasses.dataclass(frozen=True)
class Workshop:
    """One bank in the making.

    Attributes
    ----------
    plan : Plan
        What is made.
    seed : int
        Which bank: of rooms, first weights and batches.
    folder : Path
        Where the finished files go.
    device : str
        ``"cpu"`` or ``"cuda"``.
    scratch : Path, optional
        Where the pieces lie, which may be deleted when all is done; ``work`` below `folder` when None.
    """

    plan: Plan = FULL
    seed: int = 0
    folder: Path = FOLDER
    device: str = "cpu"
    scratch: Path | None = None

    @property
    def pieces(self) -> Path:
        """Folder of this bank's unfinished pieces; another plan or another kind of device has another one."""
        told = repr((self.plan, self.device)).encode()
        scratch = Path(self.folder) / "work" if self.scratch is None else Path(self.scratch)
        return scratch / f"seed{self.seed}_{hashlib.sha256(told).hexdigest()[:8]}"

    @property
    def families(self) -> dict[str, str]:
        """Family of every task's network, dealt like cards: dict of str to str.

        The tasks are shuffled within their groups, and the groups laid one behind the other. The families, shuffled
        too, are then dealt in turn. So each gets as many tasks as any other, of the whole and of every group, or one
        more. Only the seed decides.

        Examples
        --------
        >>> families = Workshop(plan(4), 4).families
        >>> families["autoencoder"], sorted(families.values()).count("plain")
        ('transformer', 5)
        """
        generator = self.generator("families")
        turns = [self.plan.families[k] for k in torch.randperm(len(self.plan.families), generator=generator)]
        cards = []
        for group in dict.fromkeys(TASKS[name].group for name in self.plan.tasks):
            names = [name for name in self.plan.tasks if TASKS[name].group == group]
            cards += [names[k] for k in torch.randperm(len(names), generator=generator)]
        dealt = dict(zip(cards, itertools.cycle(turns), strict=False))
        return {name: dealt[name] for name in self.plan.tasks}

    def family(self, name: str) -> str:
        """Family of a network.

        Parameters
        ----------
        name : str
            A task; a task and a family, as ``"edge2d@residual"``; or the random encoder, which is plain in every bank.

        Returns
        -------
        str

        Examples
        --------
        >>> Workshop(plan(4), 4).family("edge2d@residual")
        'residual'
        """
        task, _, family = name.partition("@")
        return family or self.families.get(task, PLAIN[0])

    @property
    def crossed(self) -> dict[str, str]:
        """Every network of the crossed part and what it is called here: dict of str to str.

        Keys are a task and a family, as ``"edge2d@residual"``; the value is the same, or the bare task for the network
        that the bank has of it in any case.

        Examples
        --------
        >>> Workshop(TINY).crossed
        {'edge2d@plain': 'edge2d', 'edge2d@separable': 'edge2d@separable'}
        """
        dealt = self.families
        return {
            f"{task}@{family}": task if dealt[task] == family else f"{task}@{family}"
            for task in self.plan.crossed
            for family in self.plan.families
        }

    def generator(self, *names: Any) -> torch.Generator:
        """A random generator of its own for each purpose.

        Parameters
        ----------
        *names : str
            The purpose.

        Returns
        -------
        torch.Generator
            On the CPU; the same for the same seed and names.
        """
        digest = hashlib.sha256("/".join(map(str, (self.seed, *names))).encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7]))

    def shards(self) -> list[tuple[str, int, int]]:
        """The parts that images are rendered in.

        Returns
        -------
        list of (str, int, int)
            Split, first image, image after the last one.

        Examples
        --------
        >>> Workshop(TINY).shards()[0]
        ('train', 0, 40)
        """
        parts = []
        for split in ("train", "transfer", "test"):
            images = self.plan.images(split)
            for start in images[:: self.plan.shard]:
                parts.append((split, start, min(start + self.plan.shard, images.stop)))
        return parts

    def shard_folder(self, split: str, start: int) -> Path:
        """Folder of a rendered part; it is there when it is complete."""
        return self.pieces / split / f"{start:06d}"

    def images(self, split: str, task: str) -> torch.Tensor:
        """What a task's network sees.

        Parameters
        ----------
        split : {"train", "transfer", "test"}
        task : str

        Returns
        -------
        torch.Tensor
            (image, 3, 64, 64) bytes.

        Raises
        ------
        FileNotFoundError
            Not rendered yet; the message gives the command.
        """
        return self._stored(split, f"input_{task}.npy", "rgb.npy")

    def targets(self, split: str, task: str) -> torch.Tensor:
        """What a task's network shall say.

        Parameters
        ----------
        split : {"train", "transfer", "test"}
        task : str

        Returns
        -------
        torch.Tensor
            The task's targets, images first: float16, or bytes for classes.

        Raises
        ------
        FileNotFoundError
            Not rendered yet; the message gives the command.
        """
        return self._stored(split, f"target_{task}.npy")

    def sees_rgb(self, task: str) -> bool:
        """Whether a task's network sees the plain image, as most do."""
        split, start, _ = self.shards()[0]
        return not (self.shard_folder(split, start) / f"input_{task}.npy").is_file()

    def _stored(self, split, *names):
        parts = []
        for part, start, _ in self.shards():
            if part == split:
                shard = self.shard_folder(split, start)
                found = [shard / name for name in names if (shard / name).is_file()]
                if not found:
                    raise FileNotFoundError(
                        f"the rooms of bank {self.seed} are not all rendered: "
                        f"python -m support.bank render --seed {self.seed}"
                    )
                parts.append(np.load(found[0]))
        return torch.from_numpy(np.concatenate(parts))


def render(workshop: Workshop, split: str, start: int, stop: int) -> None:
    """Render a part of a bank's rooms and store what every task sees and shall say.

    Parameters
    ----------
    workshop : Workshop
    split, start, stop
        One of its `shards`.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     workshop = Workshop(dataclasses.replace(TINY, n_train=0, n_transfer=0, n_test=2), folder=Path(folder))
    ...     render(workshop, *workshop.shards()[0])
    ...     print(workshop.targets("test", "class_places").shape)
    torch.Size([2])
    """
    scene = rooms.render(workshop.seed, start, stop, size=networks.SIZE, device=workshop.device)
    target_folder = workshop.shard_folder(split, start)
    with _complete(target_folder) as folder:
        folder.mkdir(parents=True)
        np.save(folder / "rgb.npy", _as_bytes(scene["rgb"]))
        for name in workshop.plan.tasks:
            task = TASKS[name]
            seen = task.input(scene)
            if not torch.equal(seen, scene["rgb"]):
                np.save(folder / f"input_{name}.npy", _as_bytes(seen))
            target = task.target(scene).cpu()
            if not target.is_floating_point():
                if target.min() < 0 or target.max() > 255:
                    raise ValueError(f"{name} has classes outside 0 … 255")
                target = target.to(torch.uint8)
            elif not torch.isfinite(target.to(torch.float16)).all():
                raise ValueError(f"{name} of the images {start} to {stop} of bank {workshop.seed} is not finite")
            else:
                target = target.to(torch.float16)
            np.save(folder / f"target_{name}.npy", target.numpy())


def _as_bytes(images):
    return (images * 255).round().clamp(0, 255).to("cpu", torch.uint8).numpy()


class _complete:
    """A path beside the one wanted, which takes its place when the block ends without error: complete or not there."""

    def __init__(self, path):
        self.path = Path(path)
        self.draft = self.path.with_name(f"{DRAFT}{os.getpid()}_{self.path.name}")

    def __enter__(self):
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._clear()
        return self.draft

    def __exit__(self, kind, *_):
        if kind is None:
            try:
                self.draft.replace(self.path)
            except OSError:  # a folder that another process has completed meanwhile: the same content
                if not self.path.is_dir():
                    raise
        self._clear()

    def _clear(self):
        _remove(self.draft)


def _remove(path):
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def sweep(workshop: Workshop) -> None:
    """Remove what processes that were killed have left half written of a bank.

    Parameters
    ----------
    workshop : Workshop
        Nobody else works on it; others may work on other banks in the same folder.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Path(folder, ".draft_1_losses_seed0.npz").touch()
    ...     sweep(Workshop(folder=Path(folder)))
    ...     print(list(Path(folder).iterdir()))
    []
    """
    finished = Path(workshop.folder).glob(f"{DRAFT}*_seed{workshop.seed}.*")
    for path in [*finished, *workshop.pieces.rglob(DRAFT + "*")]:
        _remove(path)


def save_tensors(path: str | Path, tensors: dict[str, torch.Tensor], families: dict[str, str] | None = None) -> None:
    """Write a safetensors file that is either complete or not there.

    Parameters
    ----------
    path : str or Path
    tensors : dict of str to torch.Tensor
    families : dict of str to str, optional
        Family of the encoder whose values begin with a name, where it is not plain; `networks.load_encoder` reads it.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_tensors(Path(folder) / "a.safetensors", {"edge2d.x": torch.ones(1)}, {"edge2d": "residual"})
    ...     print(networks.families(Path(folder) / "a.safetensors"))
    {'edge2d': 'residual'}
    """
    unusual = {name: family for name, family in (families or {}).items() if family != PLAIN[0]}
    metadata = {"families": json.dumps(unusual)} if unusual else None  # one entry: several come in any order
    with _complete(path) as draft:
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, draft, metadata)


def save_arrays(path: str | Path, **arrays: np.ndarray) -> None:
    """Write a compressed npz file that is either complete or not there.

    Parameters
    ----------
    path : str or Path
    **arrays : numpy.ndarray

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_arrays(Path(folder) / "a.npz", ones=np.ones(3))
    ...     print([path.name for path in Path(folder).iterdir()])
    ['a.npz']
    """
    with _complete(path) as draft:
        with open(draft, "wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def run(function: Callable, jobs: list[tuple], workers: int, title: str) -> list:
    """Do independent jobs, in this process or in several, with a progress bar.

    Every process computes with one thread, so that results do not depend on the number of processes.

    Parameters
    ----------
    function : callable
        Importable; called with each job's arguments.
    jobs : list of tuple
    workers : int
        Number of processes; 1 stays in this one.
    title : str
        Of the progress bar.

    Returns
    -------
    list
        What the function returns for each job, in their order.

    Raises
    ------
    RuntimeError
        A process was killed from outside, most often for want of memory.

    Examples
    --------
    >>> run(pow, [(2, 3), (3, 2)], 1, "powers")
    [8, 9]
    """
    with tqdm(total=len(jobs), desc=title, disable=not jobs) as bar:
        if workers == 1 or len(jobs) < 2:
            threads = torch.get_num_threads()
            torch.set_num_threads(1)
            try:
                results = []
                for job in jobs:
                    results.append(function(*job))
                    bar.update()
                return results
            finally:
                torch.set_num_threads(threads)
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(min(workers, len(jobs)), context, _begin)
        try:
            futures = [pool.submit(function, *job) for job in jobs]
            for done in as_completed(futures):
                done.result()
                bar.update()
            return [done.result() for done in futures]
        except BrokenProcessPool:
            raise RuntimeError(
                f"{title}: a worker process was killed, perhaps for want of memory; what is finished is kept, so run "
                "the same command again, with fewer --workers"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _begin():
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent():
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)
