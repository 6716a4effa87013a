import ast
import hashlib
import os
import subprocess
import sys
import zipfile
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
        (
            "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE. If you have updated ...\n"
            "    zict==3.0.0 from http://index/zict-3.0.0.whl (from -r /tmp/x.txt (line 3)):\n"
            "        Expected sha256 00\n             Got        11\nWARNING: Read timed out",
            "another file than the one whose SHA-256 is in requirements.lock, and did not install it: zict==3.0.0.",
        ),
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


def make_wheel(folder, name="toy_of_this_book", version="1.0"):
    """A wheel of an empty package, which pip can install without any index."""
    info = f"{name}-{version}.dist-info"
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.py", "")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def little_environment(tmp_path, monkeypatch):
    """Interpreter of a throw-away environment whose pip finds one wheel, and the wheel."""
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_CONSTRAINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    return install.interpreter(str(tmp_path / "venv")), make_wheel(tmp_path)


def test_a_file_with_another_hash_is_not_installed(little_environment, tmp_path, monkeypatch):
    """Real pip in a real environment: the wrong hash stops it, the right one does not."""
    python, wheel = little_environment
    right = hashlib.sha256(wheel.read_bytes()).hexdigest()
    real = install.run_pip

    def the_hashed_part(python, arguments, label):
        if "--require-hashes" in arguments:
            real(python, arguments, label)

    monkeypatch.setattr(install, "run_pip", the_hashed_part)
    lock = tmp_path / "requirements.lock"
    lock.write_text(f"torch==2.13.0\ntoy-of-this-book==1.0 \\\n    --hash=sha256:{'0' * 64}\n")
    with pytest.raises(install.InstallError, match="another file than the one .* toy-of-this-book==1.0"):
        install.install(python, str(tmp_path))
    assert subprocess.run([python, "-c", "import toy_of_this_book"], stderr=subprocess.DEVNULL).returncode == 1
    lock.write_text("torch==2.13.0\ntoy-of-this-book==1.0\n")
    with pytest.raises(install.InstallError, match="Hashes are required"):
        install.install(python, str(tmp_path))
    lock.write_text(
        f"torch==2.13.0\ntoy-of-this-book==1.0 \\\n    --hash=sha256:{'0' * 64} \\\n    --hash=sha256:{right}\n"
    )
    install.install(python, str(tmp_path))
    assert subprocess.run([python, "-c", "import toy_of_this_book"]).returncode == 0


def test_hashes_of_a_version():
    """Of the files for supported machines, and of this version alone; names with a plus sign too."""
    files = {
        "toy-1.0-py3-none-any.whl": "a",
        "toy-1.0-cp311-cp311-manylinux_2_28_x86_64.whl": "b",
        "toy-1.0-cp39-abi3-macosx_11_0_arm64.whl": "c",
        "toy-1.0-cp313-cp313-win_amd64.whl": "d",
        "toy-1.0.tar.gz": "e",
        "toy-1.0.0-py2.py3-none-any.whl": "f",
        "toy-1.0-cp310-cp310-win_amd64.whl": "1",
        "toy-1.0-cp314-cp314-win_amd64.whl": "1",
        "toy-1.0-cp314-abi3-win_amd64.whl": "1",
        "toy-1.0-cp313-cp313t-win_amd64.whl": "1",
        "toy-1.0-cp313-cp313-musllinux_1_2_x86_64.whl": "1",
        "toy-1.0-cp313-cp313-manylinux_2_28_s390x.whl": "1",
        "toy-1.0-cp313-cp313-win32.whl": "1",
        "toy-1.0-py2-none-any.whl": "1",
        "toy-1.0%2Blocal-py3-none-any.whl": "1",
        "toy-1.1-py3-none-any.whl": "1",
        "toy-1.0.win-amd64.exe": "1",
    }
    page = "".join(f'<a href="../files/{file}#sha256={digit * 64}">{file}</a><br>' for file, digit in files.items())
    assert install.hashes("toy", "1.0", page) == [digit * 64 for digit in "abcdef"]
    with pytest.raises(install.InstallError, match="no file of toy 2.0 with a SHA-256"):
        install.hashes("toy", "2.0", page)
    with pytest.raises(install.InstallError, match="no file of toy 1.0"):
        install.hashes("toy", "1.0", '<a href="toy-1.0-py3-none-any.whl">')


def test_the_index_is_the_one_that_pip_uses(monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    assert install.index_address() == "http://127.0.0.1:9/simple/"
    monkeypatch.delenv("PIP_INDEX_URL")
    assert install.index_address().startswith("http")


def make_checkout(folder):
    numpy = "numpy==2.4.6 \\\n    --hash=sha256:" + "0" * 64 + " \\\n    --hash=sha256:" + "1" * 64
    (folder / "requirements.lock").write_text(f"# exact versions\ntorch==2.13.0\n{numpy}\n")
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

    def run_pip(python, arguments, label):
        """Note the call, with the content of the files that are only there while it lasts."""
        calls.append([Path(word).read_text().splitlines() if word.endswith(".txt") else word for word in arguments])

    monkeypatch.setattr(install, "run_pip", run_pip)
    install.prepare(folder, root)
    hashed = ["numpy==2.4.6 --hash=sha256:" + "0" * 64 + " --hash=sha256:" + "1" * 64]
    assert calls == [
        "venv",
        ["install", "--no-deps", "--require-hashes", "-r", hashed],
        ["install", "torch==2.13.0", "-c", ["torch==2.13.0", "numpy==2.4.6"]],
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
