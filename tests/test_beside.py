"""Python files in worlds of their own: neighbours of one name, late imports, packages, workers, fingerprints."""

import copy
import gc
import importlib
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import cloudpickle
import pytest
import torch

from support import attribution, probe, zoo
from support.sources import beside

NET = """
from torch import nn
def build(width):
    layers = [nn.Conv2d(3, width, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 2)]
    return nn.Sequential(*layers)
"""
SMALL = {"input_size": (16, 16)}


def folder(path, files):
    """A folder of Python files by their names without the ending."""
    for name, text in files.items():
        file = path / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text))
    return path


def width(path, function="make"):
    """Channels of the first layer of the network that a file makes."""
    return zoo.load(f"python:{path}:{function}", preprocessing=SMALL).network[0].out_channels


WAYS = {
    "at the top": "from model import build, WIDTH\ndef make():\n    return build(WIDTH)",
    "module": "import model\ndef make():\n    return model.build(model.WIDTH)",
    "renamed": "import model as m\ndef make():\n    return m.build(m.WIDTH)",
    "all": "from model import *\ndef make():\n    return build(WIDTH)",
    "in the factory": "def make():\n    from model import build, WIDTH\n    return build(WIDTH)",
    "relative": "from .model import build, WIDTH\ndef make():\n    return build(WIDTH)",
    "relative module": "from . import model\ndef make():\n    return model.build(model.WIDTH)",
    "by name": "import importlib\ndef make():\n    m = importlib.import_module('model')\n    return m.build(m.WIDTH)",
    "by name alone": """
        from importlib import import_module as get
        def make():
            return get("model").build(get("model").WIDTH)
        """,
    "by __import__": "def make():\n    m = __import__('model')\n    return m.build(m.WIDTH)",
    "own folder on the path": """
        import os, sys
        sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
        from model import build, WIDTH
        def make():
            return build(WIDTH)
        """,
}


@pytest.mark.parametrize("way", WAYS)
def test_two_files_have_neighbours_of_one_name(tmp_path, way):
    before, path = set(sys.modules), list(sys.path)
    for name, channels in (("a", 4), ("b", 6)):
        folder(tmp_path / name, {"net": WAYS[way], "model": f"{NET}\nWIDTH = {channels}"})
    assert [width(tmp_path / name / "net.py") for name in ("a", "b", "a")] == [4, 6, 4]
    assert "model" not in sys.modules and sys.path == path
    gc.collect()
    assert not [name for name in set(sys.modules) - before if name.startswith(beside.OWN)]  # nothing is left of them


def test_packages_and_folders_beside_a_file(tmp_path):
    wide = """
    from . import WIDTH
    from plain.build import build
    import nets.size
    def make():
        return build(nets.size.WIDTH)
    """
    net = "import nets.deep.thing\nimport nets.deep.thing as t\nfrom nets.wide import make\nassert nets.deep.thing is t"
    files = {
        "net": net,
        "nets/__init__": "from .size import WIDTH",
        "nets/wide": wide,
        "nets/deep/thing": "from ..size import WIDTH\nfrom ..wide import make",
        "plain/build": NET,  # in a folder without __init__.py
    }
    for name, channels in (("a", 4), ("b", 6)):
        folder(tmp_path / name, files | {"nets/size": f"WIDTH = {channels}"})
    assert [width(tmp_path / name / "net.py") for name in ("a", "b")] == [4, 6]


def test_a_file_inside_a_package_may_import_from_above(tmp_path):
    net = "from ..size import WIDTH\nfrom .build import build\ndef make():\n    return build(WIDTH)"
    files = {"kit/__init__": "", "kit/nets/__init__": "", "kit/nets/build": NET, "kit/nets/net": net}
    for name, channels in (("a", 4), ("b", 6)):
        folder(tmp_path / name, files | {"kit/size": f"WIDTH = {channels}"})
    assert [width(tmp_path / name / "kit" / "nets" / "net.py") for name in ("a", "b")] == [4, 6]


def test_other_folders_that_a_file_puts_on_the_path_are_its_own(tmp_path):
    net = """
    import sys, pathlib
    where = str(pathlib.Path(__file__).parent / "src")
    if where not in sys.path:
        sys.path.append(where)
    import lib
    def make():
        from later import WIDTH
        return lib.build(WIDTH)
    """
    for name, channels in (("a", 4), ("b", 6)):
        folder(tmp_path / name, {"net": net, "src/lib": NET, "src/later": f"WIDTH = {channels}"})
    path = list(sys.path)
    assert [width(tmp_path / name / "net.py") for name in ("a", "b", "a")] == [4, 6, 4]
    assert sys.path == path and not {"lib", "later"} & set(sys.modules)


def test_names_of_python_and_of_packages_may_be_taken(tmp_path):
    """A neighbour called as a module of Python or an installed package is found by the file, and by nobody else."""
    net = """
    from random import WIDTH
    from utils import build
    import json, numpy
    assert json.dumps([]) and numpy.ones(1)
    def make():
        from pandas import EXTRA
        return build(WIDTH + EXTRA)
    """
    files = {"net": net, "random": "WIDTH = 3", "utils": NET, "pandas": "EXTRA = 2"}
    files["timm"] = "import timm\nWIDTH = 9"  # asks for the package of that name, which is not itself
    files["torch/notes"] = "this is no Python"  # a folder that only happens to be called so
    folder(tmp_path, files)
    assert width(tmp_path / "net.py") == 5
    import random

    import pandas

    assert random.random() < 1 and pandas.DataFrame is not None
    with pytest.raises(ModuleNotFoundError, match="timm"):
        zoo.load(f"python:{tmp_path / 'timm.py'}:WIDTH")


LATE = """
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 4, 3, 2), nn.Linear(4, 2)
    def forward(self, x):
        from tools import activate
        from more.deep import scale
        return self.head((activate(self.first(x)) * scale()).mean((2, 3)))
"""


def late(path):
    tools = "import torch\ndef activate(x):\n    return torch.relu(x)"
    deep = "def scale():\n    import factor\n    return factor.F"
    return folder(path, {"net": LATE, "tools": tools, "more/__init__": "", "more/deep": deep, "factor": "F = 2.0"})


def test_imports_while_the_network_runs(tmp_path):
    encoder = zoo.load(f"python:{late(tmp_path) / 'net.py'}:Net", preprocessing=SMALL)
    assert sorted(encoder.sources) == ["factor", "more", "more.deep", "net", "tools"]
    for file in tmp_path.rglob("*.py"):
        file.unlink()  # what was read is kept
    network = encoder.network
    before = network(torch.ones(1, 3, 16, 16))
    del encoder
    gc.collect()
    assert torch.equal(network(torch.ones(1, 3, 16, 16)), before)


def test_another_process_needs_no_file(tmp_path):
    encoder = zoo.load(f"python:{late(tmp_path / 'there') / 'net.py'}:Net", preprocessing=SMALL)
    inputs = encoder.trial(2)
    expected = encoder.represent(inputs)
    for dumps in (pickle.dumps, cloudpickle.dumps):
        (tmp_path / "encoder.pickle").write_bytes(dumps(encoder))
        text = f"""
        import pickle, torch
        encoder = pickle.load(open({str(tmp_path / "encoder.pickle")!r}, "rb"))
        torch.save((encoder.represent(encoder.trial(2)), encoder.fingerprint()), {str(tmp_path / "units.pt")!r})
        """
        (tmp_path / "there").rename(tmp_path / "away")
        root = Path(zoo.__file__).parents[1]
        subprocess.run([sys.executable, "-c", textwrap.dedent(text)], check=True, cwd=root, timeout=120)
        (tmp_path / "away").rename(tmp_path / "there")
        units, fingerprint = torch.load(tmp_path / "units.pt")
        torch.testing.assert_close(units, expected)
        assert fingerprint == encoder.fingerprint()


def test_copies_share_the_modules_and_may_go_before_the_original(tmp_path):
    encoder = zoo.load(f"python:{late(tmp_path) / 'net.py'}:Net", preprocessing=SMALL)
    other = copy.deepcopy(encoder)
    assert other.sources is encoder.sources and type(other.network) is type(encoder.network)
    del other
    gc.collect()
    again = pickle.loads(pickle.dumps(encoder))
    assert type(again.network) is type(encoder.network) and again.fingerprint() == encoder.fingerprint()


def test_a_worker_of_dask_needs_no_file_either(tmp_path):
    distributed = pytest.importorskip("distributed")
    encoder = zoo.load(f"python:{late(tmp_path / 'there') / 'net.py'}:Net", preprocessing=SMALL)
    images = probe.load("rooms", n_images=2, size=16)
    expected = attribution.attribute(encoder, images, "saliency", progress=False, out=tmp_path / "one")
    (tmp_path / "there").rename(tmp_path / "away")
    options = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": None, "host": "127.0.0.1"}
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster) as client:
        maps = attribution.attribute(encoder, images, "saliency", progress=False, out=tmp_path / "two", client=client)
        assert (maps.values == expected.values).all()


def test_the_fingerprint_covers_the_file_and_its_neighbours_as_they_were_read(tmp_path):
    file = late(tmp_path) / "net.py"

    def load():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return zoo.load(f"python:{file}:Net", preprocessing=SMALL)

    first = load()
    (tmp_path / "unrelated.py").write_text("X = 1")
    before = first.fingerprint()
    assert load().fingerprint() == before
    seen = {before}
    for name in ("net", "tools", "more/__init__", "more/deep", "factor"):
        path = tmp_path / f"{name}.py"
        path.write_text(path.read_text() + "\n# changed")
        assert first.fingerprint() == before  # it runs what it was loaded with
        seen.add(load().fingerprint())
    assert len(seen) == 6


def test_an_edited_neighbour_is_read_again(tmp_path):
    folder(tmp_path, {"net": WAYS["at the top"], "model": f"{NET}\nWIDTH = 4"})
    assert width(tmp_path / "net.py") == 4
    (tmp_path / "model.py").write_text(f"{NET}\nWIDTH = 6")
    assert width(tmp_path / "net.py") == 6


def test_a_file_may_make_an_encoder_and_may_lie_beside_the_package(tmp_path):
    text = """
    from support import zoo
    from model import build
    def make():
        return zoo.Encoder("mine", build(4), task="none", family="own", input_size=(16, 16), represent=None)
    """
    folder(tmp_path, {"net": text, "model": NET, "support/__init__": "raise AssertionError('not this one')"})
    encoder = zoo.load(f"python:{tmp_path / 'net.py'}:make")
    assert sorted(encoder.sources) == ["model", "net"] and isinstance(encoder, zoo.Encoder)


def test_errors_in_files_leave_nothing_behind(tmp_path):
    files = {
        "broken": "def make(:",
        "raising": "import model\nraise KeyError('mine')",
        "missing": "import nowhere_at_all",
    }
    folder(tmp_path, files | {"model": NET})
    path = list(sys.path)
    for name, error in (("broken", SyntaxError), ("raising", KeyError), ("missing", ModuleNotFoundError)):
        with pytest.raises(error):
            zoo.load(f"python:{tmp_path / name}.py:make")
    left = [name for name in sys.modules if name.startswith(tuple(f"{beside.OWN}{name}" for name in files))]
    assert sys.path == path and not left
    (tmp_path / "net.txt").write_text(NET)
    with pytest.raises(ValueError, match="net.txt is no Python file"):
        zoo.load(f"python:{tmp_path / 'net.txt'}:build")


def test_compiled_neighbours_are_found(tmp_path):
    """A module without source, as a compiled one is."""
    import py_compile

    folder(tmp_path, {"net": WAYS["at the top"], "model": f"{NET}\nWIDTH = 4"})
    py_compile.compile(str(tmp_path / "model.py"), cfile=str(tmp_path / "model.pyc"))
    (tmp_path / "model.py").unlink()
    importlib.invalidate_caches()
    assert width(tmp_path / "net.py") == 4
