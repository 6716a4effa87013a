"""Taskonomy's published encoders: the network, and its weights for twenty tasks, downloaded once.

The weights are those of Zamir et al. (2018), "Taskonomy", in the PyTorch port of Sax et al. (2018), "Mid-Level Visual
Representations Improve Generalization and Sample Efficiency for Learning Visuomotor Policies". About 95 MB a task:
``python -m support.taskonomy edge3d``, or ``all``.
"""

import argparse
import functools
import getpass
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import filelock
import pandas as pd
import pooch
import requests
import torch
from torch import nn

from support.bank.tasks import TASKS
from support.encoder import Encoder
from support.sources import shared
from support.sources.weights import n_values, read_tensors

SIZE = 256  # pixels along a side of the images
MEAN, STD = 0.5, 0.5  # taken off and divided into images in [0, 1]
TIMEOUT = 30  # seconds that a server may be silent
DRAFTS = ".unfinished"  # folder of what is being downloaded, beside the files
URL = "https://github.com/alexsax/visual-prior/raw/networks/assets/pytorch/"
TABLE = Path(__file__).parents[1] / "data" / "taskonomy" / "encoders.csv"


class _Bottleneck(nn.Module):
    """Residual block of three convolutions to four times `width` channels; the middle one has the stride."""

    def __init__(self, n_in, width, stride):
        super().__init__()
        n_out = 4 * width
        self.conv1 = nn.Conv2d(n_in, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, n_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(n_out)
        self.relu = nn.ReLU()
        if n_in != n_out:
            self.downsample = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))
        else:
            self.downsample = nn.MaxPool2d(1, stride)  # every stride-th position as it is

    def forward(self, inputs):
        hidden = self.relu(self.bn1(self.conv1(inputs)))
        hidden = self.relu(self.bn2(self.conv2(hidden)))
        return self.relu(self.downsample(inputs) + self.bn3(self.conv3(hidden)))


class ResNet50(nn.Module):
    """Taskonomy's encoder: (image, channel, 256, 256) in [−1, 1] to (image, 8, 16, 16), no unit negative.

    The ResNet-50 of He et al. (2016), "Deep Residual Learning for Image Recognition", table 1, with the changes of
    Taskonomy and of the TensorFlow library that it was trained with: the first two stages halve the resolution in their
    last block, the other two keep it, and pooling pads below and to the right only. A 3 × 3 convolution to eight
    channels with batch normalisation and ReLU takes the place of the classifier. The port of Sax et al. can further
    normalise each channel of each image, which needs no weights and is left out here: the paper's representation ends
    in ReLU. The keys of the state dictionary are those of the published files.

    Parameters
    ----------
    n_channels : int, default 3
        Of its inputs: the three colours, or 1 for lightness.
    """

    def __init__(self, n_channels: int = 3):
        super().__init__()
        self.conv1 = nn.Conv2d(n_channels, 64, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, ceil_mode=True)
        n_in = 64
        for number, (width, n_blocks, stride) in enumerate(((64, 3, 2), (128, 4, 2), (256, 6, 1), (512, 3, 1)), 1):
            blocks = []
            for block in range(1, n_blocks + 1):
                blocks.append(_Bottleneck(n_in, width, stride if block == n_blocks else 1))
                n_in = 4 * width
            self.add_module(f"layer{number}", nn.Sequential(*blocks))
        self.compress1 = nn.Conv2d(n_in, 8, 3, padding=1, bias=False)
        self.compress_bn = nn.BatchNorm2d(8)

    def forward(self, inputs):
        hidden = self.maxpool(self.relu(self.bn1(self.conv1(inputs))))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            hidden = stage(hidden)
        return self.relu(self.compress_bn(self.compress1(hidden)))


@functools.cache
def published():
    """The table of published encoders.

    Returns
    -------
    pandas.DataFrame
        One row a task, named as by Taskonomy (the index): file, url and sha256 (str), channels (int): of its inputs,
        3 for the colours, 1 for the lightness that colorization sees.
    """
    table = pd.read_csv(TABLE, index_col="task")
    files = table["published_name"] + "_encoder-" + table["sha256"] + ".pth"
    return pd.DataFrame({"file": files, "url": URL + files, "sha256": table["sha256"], "channels": table["channels"]})


def location(task):
    """Where the weights of a task are kept, whether they are there or not.

    Parameters
    ----------
    task : str
        Taskonomy's name, e.g. ``"edge3d"``.

    Returns
    -------
    Path
        In the folder that the environment variable TASKONOMY_FOLDER names, or else in the user's cache.

    Raises
    ------
    ValueError
        No such task; the message lists those there are.
    """
    known = published().index
    if task not in known:
        raise ValueError(f"unknown task {task!r}{shared.near(task, known)} Taskonomy's encoders are {', '.join(known)}")
    folder = os.environ.get("TASKONOMY_FOLDER") or pooch.os_cache("transferability-from-attribution-maps") / "taskonomy"
    return Path(folder).expanduser().absolute() / published().loc[task, "file"]


def download(url, sha256, path, *, timeout=TIMEOUT, progress=True):
    """A file by its address, unless it is there already; complete and checked, or not there.

    A download that breaks off is begun once more. What a killed one left is cleared away, and a user's downloads into
    one folder wait for each other, so that nothing that is still being written is taken for a leftover.

    Parameters
    ----------
    url : str
        Its address.
    sha256 : str
        64 hexadecimal digits.
    path : str or Path
        Where it goes.
    timeout : float, default 30
        Seconds without an answer, or between two parts of it, after which the server is given up.
    progress : bool, default True
        Show a progress bar on standard error.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    FileNotFoundError
        No connection, a server that says no, breaks off or falls silent; the message says what to put where by hand.
    ValueError
        The file that is there, or the one that the server sends, has another SHA-256; the latter is not kept.
    """
    path = Path(path).absolute()
    if path.is_file():
        return _checked(path, url, sha256)
    drafts = path.parent / DRAFTS
    store = pooch.Pooch(drafts, "", {path.name: sha256}, {path.name: url}, retry_if_failed=1)
    downloader = pooch.HTTPDownloader(progressbar=progress, chunk_size=2**16, timeout=timeout)
    with _alone_in(path.parent):
        shutil.rmtree(drafts, ignore_errors=True)
        if path.is_file():  # whoever was waited for has fetched it
            return _checked(path, url, sha256)
        try:
            os.replace(store.fetch(path.name, downloader=downloader), path)
        except requests.RequestException as error:
            raise FileNotFoundError(
                f"{path.name} is not there and could not be downloaded ({error}). To put it there by hand, fetch {url} "
                f"with a browser or on another machine and save it as {path}"
            ) from None
        except ValueError as error:
            raise ValueError(f"{url} does not send the file expected, and nothing was kept: {error}") from None
        finally:
            shutil.rmtree(drafts, ignore_errors=True)
    return path


def _checked(path, url, sha256):
    found = shared.sha256(path)
    if found != sha256:
        raise ValueError(
            f"{path} has SHA-256 {found}, expected {sha256}: another file, or a damaged one; delete it and it is "
            f"downloaded again, from {url}"
        )
    return path


def _alone_in(folder):
    """Lock of a user's downloads into a folder; the system lets go of it when its process is killed."""
    name = hashlib.sha256(f"{getpass.getuser()} {folder}".encode()).hexdigest()[:16]
    return filelock.FileLock(Path(tempfile.gettempdir()) / f"taskonomy-{name}.lock")


def names():
    """Names of the encoders, each with its task and its backbone, in the order of the task banks.

    Returns
    -------
    dict of str to (str, str)

    Examples
    --------
    >>> names()["edge3d"]
    ('edge3d', 'ResNet-50')
    """
    return {task: (task, "ResNet-50") for task in TASKS}


def how(name, seed=None):
    """Command that makes an encoder loadable without waiting for it.

    Parameters
    ----------
    name : str
        From `names`.
    seed : int, optional
        Not used.

    Returns
    -------
    str
        Empty when its weights are there.

    Examples
    --------
    >>> how("edge3d") in ("", "python -m support.taskonomy edge3d")
    True
    """
    return "" if location(name).is_file() else f"python -m support.taskonomy {name}"


def fetch(task, progress=True):
    """The published weights of a task, downloaded the first time.

    Parameters
    ----------
    task : str
        Taskonomy's name, e.g. ``"edge3d"``.
    progress : bool, default True
        Show a progress bar on standard error.

    Returns
    -------
    Path
        As `location` gives it.

    Raises
    ------
    FileNotFoundError, ValueError
        As for `location` and `download`.
    """
    target = location(task)
    row = published().loc[task]
    try:
        return download(row["url"], row["sha256"], target, progress=progress)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}. Once there is a connection: python -m support.taskonomy {task}") from None


def fetch_all(tasks: Sequence[str], progress: bool = True) -> list[Path]:
    """The published weights of several tasks, downloaded where they are not there, and looked into.

    Nothing is given back before all files are known to be usable: a run over many of them takes hours, and the last
    one may be the bad one.

    Parameters
    ----------
    tasks : sequence of str
        Taskonomy's names.
    progress : bool, default True
        Show a progress bar on standard error.

    Returns
    -------
    list of Path
        In the order of `tasks`.

    Raises
    ------
    FileNotFoundError
        A file is not there and cannot be downloaded; the message has all complaints, about the others too.
    ValueError
        None is missing, but at least one is as `fetch` or `load` refuses it; the message has all complaints.

    Examples
    --------
    >>> fetch_all([])
    []
    """
    paths, complaints = [], []
    for task in tasks:
        try:
            paths.append(fetch(task, progress))
            load(paths[-1], published().loc[task, "channels"])
        except (FileNotFoundError, ValueError) as error:
            complaints.append(error)
    if complaints:
        texts = [str(error) for error in complaints]
        if len(texts) > 1:
            texts = [f"{len(texts)} of {len(tasks)} encoders cannot be used:", *(f"- {text}" for text in texts)]
        is_missing = any(isinstance(error, FileNotFoundError) for error in complaints)
        raise (FileNotFoundError if is_missing else ValueError)("\n".join(texts))
    return paths


def load(path, n_channels=3):
    """The network with the weights of a published file; nothing in the file is run.

    Parameters
    ----------
    path : str or Path
        What torch saves of a dictionary whose ``"state_dict"`` holds the tensors of a `ResNet50`.
    n_channels : int, default 3
        Of the network's inputs.

    Returns
    -------
    ResNet50
        In evaluation mode, frozen, float32, on the CPU.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        A damaged file, anything else than tensors and plain values, no ``"state_dict"``, other names, shapes or types,
        or values that are not finite.
    """
    state = read_tensors(path)
    with torch.device("meta"):
        network = ResNet50(int(n_channels))
    counters = {name: torch.tensor(0) for name in network.state_dict() if name.endswith("num_batches_tracked")}
    state = state | counters  # of training; which of the published files have them does not matter
    differences = _differences(state, network.state_dict())
    if differences:
        raise ValueError(
            f"{path} does not hold the values of a ResNet50 with {n_channels} input channel"
            + ("s" if n_channels != 1 else "")
            + f": {'; '.join(differences)}"
        )
    network.load_state_dict(state, assign=True)
    return network.eval().requires_grad_(False)


def _differences(state, expected):
    """What the tensors of a file have in names, shapes, types and values that the network's have not, in words."""
    found = []
    for what, names in (("no", set(expected) - set(state)), ("unknown", set(state) - set(expected))):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            found.append(f"{what} {', '.join(sorted(map(str, names))[:3])}{more}")
    for name, wanted in expected.items():
        value = state.get(name, wanted)
        if value.shape != wanted.shape or value.dtype != wanted.dtype:
            found.append(f"{name} is {tuple(value.shape)} {value.dtype}, expected {tuple(wanted.shape)} {wanted.dtype}")
        elif name in state and not torch.isfinite(value.sum()):  # which one bad value spoils
            found.append(f"{name} has values that are not finite")
    return found


def _random(task, seed):
    with torch.device("meta"):
        network = ResNet50(int(published().loc[task, "channels"]))
    network.to_empty(device="cpu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed * len(published()) + published().index.get_loc(task))
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, nonlinearity="relu")
            elif isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()
    return network


def encoder(task, weights="published", seed=0, size=SIZE):
    """A published encoder of Taskonomy, or the same network with random weights to try a program with.

    Parameters
    ----------
    task : str
        Taskonomy's name, e.g. ``"edge3d"``.
    weights : {"published", "random"}, optional
        Downloaded where they are not there yet, or drawn.
    seed : int, optional
        Of random weights; every task has its own. Nothing else depends on it.
    size : int, optional
        Pixels along a side of its inputs: 256, or fewer to try a program in less time, a multiple of 16, at least 32.

    Returns
    -------
    Encoder
        Its name is the task. The representation is (image, 8, 16, 16), after ReLU; of smaller inputs a sixteenth of
        their size. Its inputs are the colours in [−1, 1], or for colorization the lightness L* of CIELAB, from [0, 100]
        to [−1, 1], as in the configuration that Taskonomy's authors trained it with.

    Raises
    ------
    FileNotFoundError
        The weights are not there and cannot be downloaded; the message says what to put where.
    ValueError
        An unknown task, other `weights`, a `size` out of range, or a file that is not the published one.
    """
    if size % 16 or not 32 <= size <= SIZE:
        raise ValueError(f"size is {size}, expected a multiple of 16 from 32 to {SIZE}")
    target = location(task)
    card = {"title": f"Taskonomy {task}", "licence": "MIT"}
    if weights == "published":
        network = load(fetch(task), published().loc[task, "channels"])
        card |= {
            "trained_on": "Taskonomy: about 4 million images of rooms in 600 buildings (Zamir et al. 2018)",
            "file": target.name,
            "sha256": published().loc[task, "sha256"],
        }
    elif weights == "random":
        network = _random(task, seed)
        card["trained_on"] = f"nothing: random weights of seed {seed}"
    else:
        raise ValueError(f"weights is {weights!r}, expected 'published' or 'random'")
    card["parameters"] = n_values(network)
    card["representation"] = f"The encoder's output: 8 feature maps of {size // 16} × {size // 16} units, after ReLU."
    return Encoder(
        task,
        network,
        task=task,
        family="ResNet-50",
        input_size=(size, size),
        mean=MEAN,
        std=STD,
        channels="RGB" if network.conv1.in_channels == 3 else "LIGHTNESS",
        card=card,
    )


def main(arguments=None):
    """Read the command line and download what it names.

    Parameters
    ----------
    arguments : list of str, optional
        ``sys.argv[1:]`` when None.
    """
    known = list(published().index)
    parser = argparse.ArgumentParser(
        prog="python -m support.taskonomy",
        description="Download published Taskonomy encoders, about 95 MB each, to where the book looks for them.",
    )
    parser.add_argument("tasks", nargs="+", choices=[*known, "all"], metavar="TASK", help=", ".join([*known, "all"]))
    tasks = parser.parse_args(arguments).tasks
    try:
        print(*fetch_all(known if "all" in tasks else tasks), sep="\n")
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
