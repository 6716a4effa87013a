import ast
import os
import subprocess
import sys
from pathlib import Path

import install
import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "tools" / "install.py"


def run_as(version, *arguments):
    """Run install.py under an interpreter that says it is Python `version`."""
    program = (
        f"import sys, runpy; sys.version_info = {version!r}; sys.argv = ['install.py', *{list(arguments)!r}]; "
        f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    )
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)


@pytest.mark.parametrize(
    ("version", "said"),
    [((3, 8, 10), "Python 3.8 is too old"), ((2, 7, 18), "Python 2.7 is too old"), ((3, 14, 0), "3.14 is too new")],
)
def test_unsuitable_python_is_refused_in_one_line(version, said):
    result = run_as(version)
    assert result.returncode == 1
    assert said in result.stderr and "make book PYTHON=python3.12" in result.stderr
    assert result.stderr.count("\n") == 1


def test_every_python_can_read_the_file():
    """An older Python parses the whole file before it runs the first line: nothing in it may be newer than 2.7."""
    tree = ast.parse(SCRIPT.read_text())
    newer = (ast.JoinedStr, ast.NamedExpr, ast.AnnAssign, ast.AsyncFunctionDef, ast.Match, ast.Nonlocal)
    for node in ast.walk(tree):
        assert not isinstance(node, newer), f"line {node.lineno}"
        if isinstance(node, ast.Raise):
            assert node.cause is None, f"line {node.lineno}: raise ... from"
        if isinstance(node, ast.arguments):
            assert not node.kwonlyargs and not any(argument.annotation for argument in node.args)
        if isinstance(node, ast.Dict):
            assert None not in node.keys
        if isinstance(node, ast.ClassDef):
            assert not node.keywords
    assert SCRIPT.read_text().isascii()


def test_only_the_standard_library_is_imported_at_the_start():
    imported = {
        name.split(".")[0]
        for node in ast.parse(SCRIPT.read_text()).body
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    }
    assert imported <= sys.stdlib_module_names


@pytest.mark.parametrize("module", ["venv", "ensurepip"])
def test_missing_venv_module(monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(install.InstallError, match=rf"no module {module}: on Debian or Ubuntu run `sudo apt install"):
        install.check_modules()


def test_full_disk_is_noticed_before(monkeypatch, tmp_path):
    usage = type("usage", (), {"free": 1.5e9})
    monkeypatch.setattr(install.shutil, "disk_usage", lambda place: usage)
    with pytest.raises(install.InstallError, match=r"needs about 4 GB free and .* has 1.5 GB.*VENV="):
        install.check_disk(str(tmp_path / "not" / "made" / "yet"))


def test_full_temporary_folder_is_noticed_before(monkeypatch, tmp_path):
    def usage(place):
        return type("usage", (), {"free": 1e8 if place == str(tmp_path) else 1e11})

    monkeypatch.setattr(install.shutil, "disk_usage", usage)
    monkeypatch.setattr(install.tempfile, "gettempdir", lambda: str(tmp_path))
    with pytest.raises(install.InstallError, match="TMPDIR"):
        install.check_disk(os.path.expanduser("~"))


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "disk filled up"),
        ("NewConnectionError: Failed to establish a new connection: [Errno -3]", "network"),
        ("ERROR: No matching distribution found for zarr==3.1.6", "zarr==3.1.6"),
        ("ERROR: something new", "something new"),
    ],
)
def test_reasons_for_which_pip_fails(output, said):
    assert said in install.explain(output)


def test_pip_without_a_network_ends_in_one_sentence(monkeypatch, capfd):
    """Real pip, and an index to which nothing answers."""
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(install.InstallError, match=r"^pip could not get .*run the same command again$"):
        install.run_pip(sys.executable, ["download", "--no-deps", "no-such-package-of-this-book"], "trying")
    assert "failed" in capfd.readouterr().out


def make_checkout(folder):
    (folder / "requirements.lock").write_text("torch==2.13.0\nnumpy==2.4.6\n")
    return str(folder)


def test_environment_is_made_once_redone_when_the_lock_changes_or_after_an_interruption(monkeypatch, tmp_path):
    root = make_checkout(tmp_path)
    folder = str(tmp_path / "venv")
    calls = []

    def make_environment(place):
        os.makedirs(os.path.dirname(install.interpreter(place)), exist_ok=True)
        if not os.path.exists(install.interpreter(place)):
            os.symlink(sys.executable, install.interpreter(place))
        calls.append("venv")

    monkeypatch.setattr(install, "make_environment", make_environment)
    monkeypatch.setattr(install, "run_pip", lambda python, arguments, label: calls.append(arguments))
    install.prepare(folder, root)
    lock = os.path.join(root, "requirements.lock")
    assert calls == [
        "venv",
        ["install", "torch==2.13.0", "-c", lock],
        ["install", "--no-deps", "-r", lock],
        ["install", "--no-deps", "--no-build-isolation", "-e", root],
    ]
    install.prepare(folder, root)
    assert len(calls) == 4
    (tmp_path / "requirements.lock").write_text("torch==2.13.0\nnumpy==2.4.7\n")
    install.prepare(folder, root)
    assert len(calls) == 8

    def interrupted(python, arguments, label):
        raise KeyboardInterrupt

    (tmp_path / "requirements.lock").write_text("torch==2.13.0\n")
    monkeypatch.setattr(install, "run_pip", interrupted)
    with pytest.raises(KeyboardInterrupt):
        install.prepare(folder, root)
    assert not install.is_current(folder, root)


def test_environment_whose_python_is_gone_is_not_current(tmp_path):
    root = make_checkout(tmp_path)
    (tmp_path / "venv").mkdir()
    (tmp_path / "venv" / "installed").write_text(install.fingerprint(root))
    assert not install.is_current(str(tmp_path / "venv"), root)


def test_folder_with_other_content_is_left_alone(tmp_path):
    (tmp_path / "letter.txt").write_text("dear reader")
    with pytest.raises(install.InstallError, match="not a virtual environment"):
        install.make_environment(str(tmp_path))
    assert (tmp_path / "letter.txt").read_text() == "dear reader"


def test_make_help_lists_every_target():
    makefile = (ROOT / "Makefile").read_text()
    targets = makefile.split(".PHONY:")[1].splitlines()[0].split()
    shown = subprocess.run(["make", "-C", str(ROOT), "help"], capture_output=True, text=True, check=True).stdout
    assert [target for target in targets if target != "help" and f"make {target} " not in shown] == []


def test_make_names_a_python_that_is_not_there():
    result = subprocess.run(
        ["make", "-C", str(ROOT), "install", "PYTHON=no-such-python"], capture_output=True, text=True
    )
    assert result.returncode != 0 and "no-such-python was not found" in result.stdout
