import os
import sys
import types

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # as many processes as cores: a thread each, in their kernels too
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items):
    """The small book first: it takes longest, and the other tests run beside it."""
    items.sort(key=lambda item: item.path.name != "test_book.py")


@pytest.fixture(scope="session")
def zennit():
    """zennit, which imports torchvision only to name its model classes: an empty stand-in serves when it is missing."""
    stand_ins = {}
    try:
        import torchvision  # noqa: F401
    except ImportError:
        names = ("torchvision", "torchvision.models", "torchvision.models.resnet", "torchvision.models.vgg")
        stand_ins = {name: types.ModuleType(name) for name in names}
        for module in stand_ins.values():
            module.__getattr__ = lambda name: type(name, (), {})
    sys.modules.update(stand_ins)
    try:
        import zennit.composites
        import zennit.core
        import zennit.layer
        import zennit.rules
    finally:
        for name in stand_ins:
            del sys.modules[name]
    return zennit
