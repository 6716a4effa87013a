"""pyproject.toml, requirements.lock, environment.yml and what is installed say the same."""

import functools
import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from install import OF_THE_TORCH_BUILD, requirements
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
WHEELS = PROJECT["dependency-groups"]["wheels"]
DIRECT = (
    PROJECT["project"]["dependencies"]
    + PROJECT["project"]["optional-dependencies"]["test"]
    + PROJECT["build-system"]["requires"]
    + WHEELS
)
CONDA_NAMES = {"pytorch": "torch", "matplotlib-base": "matplotlib"}
NOT_LOCKED = {"pip", "wheel", "setuptools", canonicalize_name(PROJECT["project"]["name"])}
SYSTEMS = {
    "linux": {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix"},
    "darwin": {"sys_platform": "darwin", "platform_system": "Darwin", "os_name": "posix"},
    "win32": {"sys_platform": "win32", "platform_system": "Windows", "os_name": "nt"},
}


def locked(environment=None):
    """Name to exact version of the lock, for the machine that `environment` describes, or for this one."""
    found = {}
    for requirement in (Requirement(entry.split(" --hash")[0]) for entry in requirements(str(ROOT))):
        if requirement.marker is None or requirement.marker.evaluate(environment):
            (pin,) = requirement.specifier
            assert pin.operator == "==" and not pin.version.endswith("*"), f"{requirement} is not an exact version"
            name = canonicalize_name(requirement.name)
            assert name not in found, f"{name} is in the lock twice for one machine"
            found[name] = pin.version
    return found


@functools.cache
def installed():
    return {
        canonicalize_name(distribution.metadata["Name"]): distribution.version
        for distribution in importlib.metadata.distributions()
    }


@functools.cache
def requirements_of(name):
    return [Requirement(text) for text in importlib.metadata.requires(name) or []]


def brought_by_torch():
    """Libraries of this build of torch (CUDA or not), which the lock leaves to torch's own requirements."""
    return {name for name in installed() if name.startswith(OF_THE_TORCH_BUILD)}


@pytest.mark.parametrize("text", DIRECT)
def test_direct_dependency_is_locked_within_its_range(text):
    requirement = Requirement(text)
    assert requirement.specifier.contains(locked()[canonicalize_name(requirement.name)])


def test_everything_but_torch_has_hashes():
    """Two at least where there are wheels for several systems; torch's file differs between indexes."""
    for entry in requirements(str(ROOT)):
        name, *digests = re.split(r"\s+--hash=sha256:", entry)
        assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in digests), entry
        assert len(set(digests)) == len(digests)
        assert (len(digests) == 0) == name.startswith("torch=="), entry
    numpy = next(entry for entry in requirements(str(ROOT)) if entry.startswith("numpy=="))
    assert numpy.count("--hash") >= 15, "three Pythons times five kinds of machine, and the source"


def test_torch_is_named_exactly():
    assert "torch==2.13.0" in PROJECT["project"]["dependencies"]
    assert locked()["torch"] == "2.13.0"


def test_environment_yml_equals_the_lock():
    content = yaml.safe_load((ROOT / "environment.yml").read_text())
    pins = dict(
        line.split("=", 1) for line in content["dependencies"] if "=" in line and not line.startswith("python>")
    )
    assert set(pins) >= {"captum", "jupyter-book", "jupyterlab", "nbval", "numpy", "papermill", "pytest", "pytorch"}
    lock = locked()
    assert {name: lock[CONDA_NAMES.get(name, name)] for name in pins} == pins
    python = next(line for line in content["dependencies"] if line.startswith("python>"))
    assert python == "python" + PROJECT["project"]["requires-python"]


def test_installed_environment_equals_the_lock():
    present = {name: version for name, version in installed().items() if name not in NOT_LOCKED | brought_by_torch()}
    lock = {name: version for name, version in locked().items() if name not in NOT_LOCKED}
    assert sorted(lock.keys() - present.keys()) == [], "in the lock, not installed: remove .venv and run make install"
    assert sorted(present.keys() - lock.keys()) == [], (
        "installed, not in the lock: name it in pyproject.toml, make lock"
    )
    different = {
        name: (lock[name], version)
        for name, version in present.items()
        if Version(version).public != Version(lock[name]).public
    }
    assert different == {}, "locked and installed versions differ"


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_lock_is_complete_and_consistent(python, system):
    """Every locked package finds its requirements in the lock, except the wheels installed without theirs."""
    environment = dict(SYSTEMS[system], python_version=python, python_full_version=python + ".0")
    lock, here = locked(environment), installed()
    without_theirs = {canonicalize_name(Requirement(text).name) for text in WHEELS}
    missing, checked = [], 0
    for name in lock.keys() - without_theirs:
        if name not in here:
            continue  # needed on another system only: its requirements cannot be read here
        checked += 1
        for requirement in requirements_of(name):
            needed = requirement.marker is None or requirement.marker.evaluate(dict(environment, extra=""))
            version = lock.get(canonicalize_name(requirement.name))
            if not needed or requirement.name.startswith(OF_THE_TORCH_BUILD):
                continue
            if version is None or not requirement.specifier.contains(version, prereleases=True):
                missing.append(f"{name} needs {requirement}, the lock has {version}")
    assert missing == []
    assert checked > 100


def test_torchvision_is_not_installed():
    assert "torchvision" not in locked() and "torchvision" not in installed()
