"""What Python objects compute with, as one hash: to tell two networks, or two functions, of one name apart."""

import argparse
import dis
import enum
import functools
import hashlib
import re
import sys
import types
from pathlib import Path

import numpy as np
import torch
from torch import nn

_PLAIN = (str, bytes, int, float, complex, range, slice, Path, torch.dtype, torch.device, np.generic)
_SETTINGS = (types.SimpleNamespace, argparse.Namespace)
# What every module has, and what torch.fx keeps to write its code; neither says anything of a network.
_OF_MODULES = {*vars(nn.Module()), "_graph", "_code", "_lineno_map", "_prologue_start"}
_OF_CLASSES = {"__module__", "__doc__", "__dict__", "__weakref__", "__firstlineno__", "__static_attributes__"}


def sha256(*values: object) -> str:
    """SHA-256 of what values compute with; the same in every process of one version of Python.

    Of a network: its modules as they print, all parameters and buffers, and of classes that are not of an installed
    package the code and the attributes. Of a function: its compiled code, its defaults, what is bound to it, and what
    it uses of its file: functions, classes, numbers, strings, arrays. Nothing of a library but names is covered, and
    no module's hooks.

    Parameters
    ----------
    *values : object
        Networks, functions, tensors, arrays, numbers, strings, and lists, tuples, sets and dictionaries of these.

    Returns
    -------
    str
        64 hexadecimal digits.

    Examples
    --------
    >>> sha256(nn.ReLU(), [1, 2.5]) == sha256(nn.ReLU(), [1, 2.5])
    True
    >>> sha256(torch.relu) == sha256(torch.tanh)
    False
    """
    read = _Reader()
    return hashlib.sha256(repr([read(value) for value in values]).encode()).hexdigest()


def _is_own(module):
    """Whether the module of this name is neither of Python, nor of an installed package, nor of this one."""
    if module.partition(".")[0] in {"support", *sys.stdlib_module_names}:
        return False
    file = getattr(sys.modules.get(module), "__file__", None) or ""
    return module == "__main__" or not {"site-packages", "dist-packages"}.intersection(Path(file).parts)


def _array(values):
    if isinstance(values, torch.Tensor):
        kind = (str(values.dtype), tuple(values.shape))
        values = values.detach().cpu()
        values = (values.to_dense() if values.layout != torch.strided else values).contiguous()
        values = values.reshape(-1).view(torch.uint8).numpy()  # NumPy has no bfloat16
    else:
        kind = (str(values.dtype), values.shape)
    return [*kind, hashlib.sha256(values.tobytes()).hexdigest()]


def _codes(code):
    """A code object and those inside it."""
    yield code
    for one in code.co_consts:
        if isinstance(one, types.CodeType):
            yield from _codes(one)


class _Reader:
    """Turns values into nested lists of numbers and strings; what comes again is told by when it came first."""

    def __init__(self):
        self.seen = {}  # id → number, and the value itself, so that no other value gets its id

    def __call__(self, value):
        if isinstance(value, torch.Tensor) or (isinstance(value, np.ndarray) and value.dtype != object):
            return _array(value)
        if isinstance(value, tuple):
            return [self(one) for one in value]
        if isinstance(value, set | frozenset):
            return sorted(repr(self(one)) for one in value)
        if isinstance(value, types.ModuleType):
            return value.__name__.rpartition(".")[2]
        if isinstance(value, enum.Enum):
            return [type(value).__qualname__, value.name]
        if value is None or isinstance(value, _PLAIN):
            return repr(value)
        if id(value) not in self.seen:
            self.seen[id(value)] = len(self.seen), value
            return self.compound(value)
        return self.seen[id(value)][0]

    def compound(self, value):
        if isinstance(value, list | np.ndarray):
            return [self(one) for one in value]
        if isinstance(value, dict):
            return [[self(key), self(one)] for key, one in value.items()]
        if isinstance(value, functools.partial):
            return [self(one) for one in (value.func, value.args, value.keywords)]
        if isinstance(value, types.MethodType):
            return [self(value.__func__), self(value.__self__)]
        if isinstance(value, property):
            return self(value.fget)
        if isinstance(value, nn.Module):
            return self.network(value)
        if isinstance(value, type):
            return self.type(value)
        if isinstance(value, types.FunctionType) and _is_own(value.__module__ or ""):
            return self.function(value)
        if hasattr(value, "__wrapped__"):  # a static method, or a function with a cache
            return [type(value).__qualname__, self(value.__wrapped__)]
        kind = type(value)
        if kind in _SETTINGS or kind.__module__.partition(".")[0] == "support" or _is_own(kind.__module__):
            return [self(kind), self(dict(sorted(getattr(value, "__dict__", {}).items())))]
        return [kind.__qualname__, getattr(value, "__qualname__", getattr(value, "__name__", None))]

    def function(self, function):
        cells = []
        for cell in function.__closure__ or ():
            try:
                cells.append(self(cell.cell_contents))
            except ValueError:  # nothing is in it yet
                cells.append(None)
        names, attributes = set(), set()
        for code in _codes(function.__code__):
            attributes.update(code.co_names)
            names.update(i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME"))
        used = {name: function.__globals__[name] for name in sorted(names) if name in function.__globals__}
        for alias, module in list(used.items()):
            if isinstance(module, types.ModuleType) and _is_own(module.__name__):
                used |= {(alias, name): vars(module)[name] for name in sorted(attributes & vars(module).keys())}
        rest = (function.__defaults__, function.__kwdefaults__, used)
        return [self.code(function.__code__), cells, [self(one) for one in rest]]

    def code(self, code):
        constants = [self.code(one) if isinstance(one, types.CodeType) else self(one) for one in code.co_consts]
        counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount)
        return [code.co_code.hex(), code.co_exceptiontable.hex(), code.co_names, code.co_freevars, counts, constants]

    def type(self, kind):
        if not _is_own(kind.__module__):
            return kind.__qualname__
        attributes = {key: value for key, value in vars(kind).items() if key not in _OF_CLASSES}
        return [kind.__qualname__, [self(base) for base in kind.__bases__], self(attributes)]

    def network(self, network):
        parts = [re.sub(" at 0x[0-9a-f]+", "", str(network))]
        for name, module in network.named_modules():
            own = {key: value for key, value in sorted(vars(module).items()) if key not in _OF_MODULES}
            parts.append([name, self(type(module)), self(own)])
        for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
            parts.append([name, _array(tensor)])
        return parts
