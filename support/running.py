"""How networks of other people's are run: as they are written, without what torch offers to save memory or time."""

import contextlib
import sys
from collections.abc import Iterator

import torch
import torch.utils.checkpoint
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

HALF = (torch.float16, torch.bfloat16)


class _Single(TorchFunctionMode):
    """Context manager: what would be computed in float16 or bfloat16 is computed in float32.

    Gradients of a mean of many units underflow in float16, and bfloat16 has 8 binary digits. Weights are converted
    where they are used, so that nothing of the network changes; casts become casts to float32; autocast has no effect.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        def single(value):
            if isinstance(value, torch.Tensor):
                return value.float() if value.dtype in HALF else value
            return torch.float32 if isinstance(value, torch.dtype) and value in HALF else value

        if function in (torch.Tensor.half, torch.Tensor.bfloat16):
            function = torch.Tensor.float
        args, kwargs = tree_map(single, (args, kwargs or {}))
        with contextlib.ExitStack() as stack:
            for kind in ("cpu", "cuda"):
                if torch.is_autocast_enabled(kind):
                    stack.enter_context(torch.autocast(kind, enabled=False))
            return function(*args, **kwargs)


class _NoCheckpoint:
    """In the place of `torch.utils.checkpoint.CheckpointFunction`: calls the function."""

    @staticmethod
    def apply(function, preserve_rng_state, *args):
        return function(*args)


def _keep_all(*_, **__):
    """In the place of checkpointing's generator: does nothing before and after the function is called."""
    yield


_INSTEAD = {"CheckpointFunction": _NoCheckpoint, "_checkpoint_without_reentrant_generator": _keep_all}


@contextlib.contextmanager
def plainly(single: bool = False) -> Iterator[None]:
    """Context manager: networks run as they are written, operation by operation, once.

    Checkpointing would run parts of a network again in the backward pass, where no rule reaches them, and torch.compile
    would run other operations than those that are written.

    Parameters
    ----------
    single : bool, default False
        Compute in float32 what would be computed in float16 or bfloat16.

    Examples
    --------
    >>> with plainly(single=True):
    ...     torch.ones(1, dtype=torch.bfloat16).exp().dtype
    torch.float32
    """
    module = torch.utils.checkpoint
    with contextlib.ExitStack() as stack:
        if "torch._dynamo" in sys.modules:  # otherwise nothing is compiled
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        if single:
            stack.enter_context(_Single())
        for name, instead in _INSTEAD.items():
            stack.callback(setattr, module, name, getattr(module, name))
            setattr(module, name, instead)
        yield
