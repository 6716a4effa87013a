"""Make the book's environment from requirements.lock, or make requirements.lock anew; standard library only.

Every Python has to be able to read this file, so that one that is too old can say so: no syntax newer than 2.7.
"""

from __future__ import print_function

import sys

OLDEST, NEWEST = (3, 11), (3, 13)
if not OLDEST <= tuple(sys.version_info[:2]) <= NEWEST:
    sys.exit(
        "Python %d.%d is too %s: this book needs 3.11, 3.12 or 3.13; run `make book PYTHON=python3.12`"
        % (sys.version_info[0], sys.version_info[1], "old" if tuple(sys.version_info[:2]) < OLDEST else "new")
    )

import argparse  # noqa: E402
import collections  # noqa: E402
import hashlib  # noqa: E402
import importlib  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import re  # noqa: E402
import shutil  # noqa: E402
import subprocess  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
DISK_NEEDED = 4e9  # bytes free where the environment goes; it takes 2.2e9 with torch's build without CUDA
TEMPORARY_NEEDED = 1e9  # bytes free where pip unpacks what it downloads
OF_THE_TORCH_BUILD = ("nvidia-", "cuda-", "triton")  # libraries that differ between torch's builds: not in the lock
NETWORK_SIGNS = (
    "Failed to establish a new connection",
    "Temporary failure in name resolution",
    "Name or service not known",
    "Could not resolve host",
    "Network is unreachable",
    "Connection refused",
    "Max retries exceeded",
    "ProxyError",
    "Read timed out",
    "ConnectTimeoutError",
    "NewConnectionError",
    "NameResolutionError",
    "No matching distribution found",
)


class InstallError(Exception):
    """What went wrong and what to do about it, in one sentence."""


def interpreter(folder):
    """Path of the Python of the virtual environment in `folder` (str), whether it exists or not."""
    if os.name == "nt":
        return os.path.join(folder, "Scripts", "python.exe")
    return os.path.join(folder, "bin", "python")


def requirements(root):
    """The entries of requirements.lock in `root` (str): list of str, each one line, with its hashes behind it."""
    with open(os.path.join(root, "requirements.lock")) as file:
        text = re.sub(r"\s*\\\n\s*", " ", file.read())
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def fingerprint(root):
    """What an environment was installed from: SHA-256 of `root`/requirements.lock, and `root` itself (str)."""
    with open(os.path.join(root, "requirements.lock"), "rb") as file:
        return hashlib.sha256(file.read()).hexdigest() + "\n" + root + "\n"


def is_current(folder, root):
    """Whether the environment in `folder` was completely installed from the present lock of this checkout.

    Parameters
    ----------
    folder, root : str
        The virtual environment; the repository.

    Returns
    -------
    bool
        False too when its Python no longer runs, e.g. after an upgrade of the system.
    """
    stamp = os.path.join(folder, "installed")
    if not os.path.isfile(stamp):
        return False
    with open(stamp) as file:
        if file.read() != fingerprint(root):
            return False
    try:
        return subprocess.call([interpreter(folder), "-c", ""]) == 0
    except OSError:
        return False


def check_modules():
    """Raise InstallError when this Python cannot make virtual environments (Debian ships that part separately)."""
    for name in ("venv", "ensurepip"):
        try:
            importlib.import_module(name)
            continue
        except ImportError:
            pass
        raise InstallError(
            "%s has no module %s: on Debian or Ubuntu run `sudo apt install python%d.%d-venv`, then the same command "
            "again; elsewhere choose another Python, e.g. `make book PYTHON=python3.12`"
            % (sys.executable, name, sys.version_info[0], sys.version_info[1])
        )


def check_disk(folder):
    """Raise InstallError when there is too little room for an environment in `folder` (str), or for pip's own files."""
    place = os.path.abspath(folder)
    while not os.path.isdir(place):
        place = os.path.dirname(place)
    free = shutil.disk_usage(place).free
    if free < DISK_NEEDED:
        raise InstallError(
            "the disk is too full: the environment needs about %.0f GB free and %s has %.1f GB; make room, or put it "
            "elsewhere with `make book VENV=/path/on/another/disk`" % (DISK_NEEDED / 1e9, place, free / 1e9)
        )
    place = tempfile.gettempdir()
    free = shutil.disk_usage(place).free
    if free < TEMPORARY_NEEDED:
        raise InstallError(
            "the disk is too full: pip needs about %.0f GB free for temporary files and %s has %.1f GB; make room, or "
            "set TMPDIR to a folder on another disk" % (TEMPORARY_NEEDED / 1e9, place, free / 1e9)
        )


def explain(output):
    """One sentence on why pip failed, from what it printed.

    Parameters
    ----------
    output : str
        Standard output and standard error of pip.

    Returns
    -------
    str
        What to do, or where nothing is recognised the last lines that pip printed.
    """
    if "No space left on device" in output or "Errno 28" in output or "not enough space on the disk" in output:
        return (
            "the disk filled up while packages were installed: make room and run the same command again (on Linux the "
            "default build of torch brings several gigabytes of CUDA libraries; README.md says how to get the build "
            "without them)"
        )
    if "DO NOT MATCH THE HASHES" in output:
        changed = re.findall(r"^ +(\S+==\S+) from ", output, re.MULTILINE)
        return (
            "pip was handed another file than the one whose SHA-256 is in requirements.lock, and did not install it: "
            "%s. Run the same command again; if it says so again, the package index or somebody between has changed "
            "the file" % (", ".join(changed) or "see above")
        )
    if any(sign in output for sign in NETWORK_SIGNS):
        missing = re.findall(r"No matching distribution found for (\S+)", output)
        return (
            "pip could not get %s: check that this machine reaches the Python package index (network, proxy, "
            "PIP_INDEX_URL) and run the same command again" % (missing[-1] if missing else "the packages")
        )
    lines = [line for line in output.splitlines() if line.strip() and " is ignored: it is " not in line]
    return "pip failed; its last words were:\n" + "\n".join(lines[-15:])


def run_pip(python, arguments, label):
    """Run pip with one line of progress.

    Parameters
    ----------
    python : str
        Path of the interpreter whose environment is changed.
    arguments : list of str
        What follows ``python -m pip``.
    label : str
        What the line of progress says.

    Raises
    ------
    InstallError
        pip failed; the message says why as far as it can be told.
    """
    start = time.time()
    live = sys.stdout.isatty()
    print(label + " ...", end="" if live else "\n")
    sys.stdout.flush()
    environment = dict(os.environ, PIP_DISABLE_PIP_VERSION_CHECK="1", PYTHONUNBUFFERED="1")
    environment.pop("PIP_REQUIRE_VIRTUALENV", None)
    command = [python, "-m", "pip"] + arguments + ["--no-input", "--progress-bar", "off"]
    output, collected = [], 0
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True, cwd=ROOT, env=environment
    )
    for line in process.stdout:
        output.append(line)
        if line.startswith("Collecting "):
            collected += 1
        if live:
            state = "installing" if line.startswith("Installing ") else "%d packages" % collected
            print("\r%s ... %s " % (label, state), end="")
            sys.stdout.flush()
    failed = process.wait() != 0
    if live:
        print("\r%s ... " % label, end="")
    print("failed" if failed else "%.0f s" % (time.time() - start))
    if failed:
        raise InstallError(explain("".join(output)))


def make_environment(folder):
    """An empty virtual environment in `folder` (str), in place of the one that was there.

    Raises
    ------
    InstallError
        `folder` holds something else, the disk is too full, or this Python cannot make virtual environments.
    """
    if os.path.isdir(folder) and os.listdir(folder) and not os.path.isfile(os.path.join(folder, "pyvenv.cfg")):
        raise InstallError("%s is not a virtual environment: choose another folder with VENV=..." % folder)
    check_modules()
    if os.path.isdir(folder):
        shutil.rmtree(folder)
    check_disk(folder)
    print("virtual environment in %s" % folder)
    sys.stdout.flush()
    result = subprocess.run(
        [sys.executable, "-m", "venv", folder],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        universal_newlines=True,
    )
    if result.returncode:
        raise InstallError("no virtual environment could be made in %s: %s" % (folder, result.stdout.strip()))


def install(python, root):
    """Install what requirements.lock says, and this book's own package, into one environment.

    Everything but torch has to have one of the SHA-256 of the lock, and nothing is resolved. Torch comes last and with
    its own dependencies: its file and the libraries that it needs are those of the build (CUDA or not) that the package
    index hands out.

    Parameters
    ----------
    python : str
        Path of the environment's interpreter.
    root : str
        The repository.

    Raises
    ------
    InstallError
        pip failed, or a file has another SHA-256.
    """
    entries = requirements(root)
    (torch,) = [entry for entry in entries if entry.startswith("torch==")]
    folder = tempfile.mkdtemp()
    try:
        hashed, plain = os.path.join(folder, "hashed.txt"), os.path.join(folder, "plain.txt")
        with open(hashed, "w") as file:
            file.write("".join(entry + "\n" for entry in entries if entry != torch))
        with open(plain, "w") as file:
            file.write("".join(entry.split(" --hash")[0] + "\n" for entry in entries))
        run_pip(python, ["install", "--no-deps", "--require-hashes", "-r", hashed], "1/3 everything but torch")
        run_pip(python, ["install", torch, "-c", plain], "2/3 " + torch.replace("==", " "))
    finally:
        shutil.rmtree(folder)
    run_pip(python, ["install", "--no-deps", "--no-build-isolation", "-e", root], "3/3 this book's own package")


def prepare(folder, root):
    """Make the environment in `folder` (str) unless it is there already and current; an interrupted one is redone."""
    if is_current(folder, root):
        return
    start = time.time()
    print("Installing the book's environment; this happens once and takes a few minutes.")
    make_environment(folder)
    install(interpreter(folder), root)
    with open(os.path.join(folder, "installed"), "w") as file:
        file.write(fingerprint(root))
    print("Installed in %.0f s." % (time.time() - start))
    sys.stdout.flush()


def lock(root):
    """Write requirements.lock anew: the newest versions that pyproject.toml allows, for every supported machine.

    A fresh environment is made in a temporary folder; then the requirements of all that was installed are followed
    for each supported Python and system, and what only another system needs is added with its marker.

    Parameters
    ----------
    root : str
        The repository, with its pyproject.toml.

    Raises
    ------
    InstallError
        pip failed.
    """
    import tomllib

    with open(os.path.join(root, "pyproject.toml"), "rb") as file:
        project = tomllib.load(file)
    direct = project["project"]["dependencies"] + project["project"]["optional-dependencies"]["test"]
    direct += project["build-system"]["requires"]
    wheels = project["dependency-groups"]["wheels"]
    folder = tempfile.mkdtemp()
    try:
        environment = os.path.join(folder, "environment")
        make_environment(environment)
        python = interpreter(environment)
        run_pip(python, ["install"] + direct, "1/3 direct dependencies")
        run_pip(python, ["install", "--no-deps"] + wheels, "2/3 wheels without dependencies")
        names = json.dumps([direct, wheels])
        print("3/3 other systems, and the hashes of all files")
        sys.stdout.flush()
        lines = subprocess.check_output([python, os.path.abspath(__file__), "--closure", names], cwd=folder)
    finally:
        shutil.rmtree(folder)
    header = (
        "# Exact versions of all that `make book` and `make test` install; Python 3.11-3.13, Linux, macOS, Windows.\n"
        "# Made by `make lock` from pyproject.toml; not meant to be edited. Complete: installed with --no-deps, and a\n"
        "# file must have one of the hashes here. Torch has none: every index hands out a build of its own (CUDA or\n"
        "# not), with libraries of that build. tools/install.py reads this file; pip alone would refuse torch's line.\n"
    )
    with open(os.path.join(root, "requirements.lock"), "w") as file:
        file.write(header + lines.decode())


def closure(direct, wheels):
    """Lines of requirements.lock, from what is installed in the running environment.

    Parameters
    ----------
    direct, wheels : list of str
        Requirements that are followed; requirements that are taken without their own dependencies.

    Returns
    -------
    list of str
        ``name==version``, with a marker where not every supported machine needs it, and a line for each hash; sorted
        by name.
    """
    import importlib.metadata

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    systems = {
        "linux": {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix"},
        "darwin": {"sys_platform": "darwin", "platform_system": "Darwin", "os_name": "posix"},
        "win32": {"sys_platform": "win32", "platform_system": "Windows", "os_name": "nt"},
    }
    known = {}

    def look_up(name):
        if name not in known:
            try:
                found = importlib.metadata.distribution(name)
                known[name] = (found.version.split("+")[0], found.requires or [])
            except importlib.metadata.PackageNotFoundError:
                known[name] = ask_index(name)
        return known[name]

    needed_by = collections.defaultdict(set)
    for version in ("3.11", "3.12", "3.13"):
        for system, markers in systems.items():
            environment = dict(markers, python_version=version, python_full_version=version + ".0")
            waiting = [(Requirement(text).name, frozenset(Requirement(text).extras)) for text in direct]
            seen = set()
            while waiting:
                name, extras = waiting.pop()
                name = canonicalize_name(name)
                if (name, extras) in seen or name.startswith(OF_THE_TORCH_BUILD):
                    continue
                seen.add((name, extras))
                needed_by[name].add((version, system))
                for requirement in map(Requirement, look_up(name)[1]):
                    if requirement.marker is None or any(
                        requirement.marker.evaluate(dict(environment, extra=extra)) for extra in extras | {""}
                    ):
                        waiting.append((requirement.name, frozenset(requirement.extras)))
            for name in wheels:
                needed_by[canonicalize_name(Requirement(name).name)].add((version, system))
    lines, index = [], index_address()
    versions = {"3.11", "3.12", "3.13"}
    for name, machines in needed_by.items():
        line = name + "==" + look_up(name)[0]
        pythons = {version for version, _ in machines}
        platforms = {system for _, system in machines}
        if machines != {(version, system) for version in pythons for system in platforms}:
            pythons, platforms = versions, set(systems)
        conditions = []
        if pythons != versions:
            conditions.append(" or ".join('python_version == "%s"' % version for version in sorted(pythons)))
        if platforms != set(systems):
            conditions.append(" or ".join('sys_platform == "%s"' % system for system in sorted(platforms)))
        if len(conditions) == 2:
            conditions = ["(%s)" % condition for condition in conditions]
        line += " ; " + " and ".join(conditions) if conditions else ""
        digests = [] if name == "torch" else hashes(name, look_up(name)[0], page_of(name, index))
        lines.append(" \\\n    --hash=sha256:".join([line] + digests))
    return sorted(lines)


def index_address():
    """Address of the package index that pip is configured to use: str, ending with a slash."""
    environment = dict(os.environ, COLUMNS="1000")
    command = [sys.executable, "-m", "pip", "install", "--help"]
    said = subprocess.check_output(command, env=environment, universal_newlines=True)
    return re.search(r"--index-url.*?\(default:? (\S+?)\)", said, re.DOTALL).group(1).rstrip("/") + "/"


def page_of(name, index):
    """What the package index at the address `index` (str) says of a package: HTML with a link for each file."""
    import requests

    answer = requests.get(index + name + "/", headers={"Accept": "text/html"}, timeout=60)
    answer.raise_for_status()
    return answer.text


def hashes(name, version, page):
    """SHA-256 of the files of one version of a package that a supported machine may be handed.

    Parameters
    ----------
    name, version : str
        Of the package.
    page : str
        As `page_of` returns it.

    Returns
    -------
    list of str
        64 hexadecimal digits each, sorted: wheels for Python 3.11-3.13 on 64-bit Linux, macOS and Windows, and the
        source.

    Raises
    ------
    InstallError
        The index has no such file, or no SHA-256 of it.
    """
    from packaging.utils import parse_sdist_filename, parse_wheel_filename
    from packaging.version import Version

    found = set()
    for file, digest in re.findall(r'href="[^"]*?([^/"]+)#sha256=([0-9a-f]{64})"', page):
        try:
            if file.endswith(".whl"):
                _, of, _, tags = parse_wheel_filename(file.replace("%2B", "+"))
            else:
                (_, of), tags = parse_sdist_filename(file.replace("%2B", "+")), None
        except ValueError:  # a kind of file that pip no longer installs
            continue
        if of == Version(version) and (tags is None or any(fits(tag) for tag in tags)):
            found.add(digest)
    if not found:
        raise InstallError("the package index has no file of %s %s with a SHA-256" % (name, version))
    return sorted(found)


def fits(tag):
    """Whether a wheel with this `tag` (packaging.tags.Tag) can be installed on a supported machine."""
    number = re.match(r"(cp|py)3(\d*)$", tag.interpreter)
    if not number:
        return False
    minor = int(number.group(2) or 11)
    of_python = minor in (11, 12, 13) or (minor < 13 and (tag.abi == "abi3" or number.group(1) == "py"))
    of_system = re.match(
        r"(any|(linux|manylinux|macosx|win)\w*_(x86_64|aarch64|amd64|arm64|universal2))$", tag.platform
    )
    return of_python and tag.abi in ("none", "abi3", tag.interpreter) and bool(of_system)


def ask_index(name):
    """Newest version of a package that this system does not need, and its requirements, from the package index."""
    for platform in ("any", "win_amd64", "macosx_11_0_arm64"):
        command = [sys.executable, "-m", "pip", "install", "-q", "--dry-run", "--ignore-installed", "--no-deps", name]
        command += [
            "--only-binary",
            ":all:",
            "--target",
            tempfile.gettempdir(),
            "--platform",
            platform,
            "--report",
            "-",
        ]
        result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, universal_newlines=True)
        if result.returncode == 0:
            metadata = json.loads(result.stdout)["install"][0]["metadata"]
            return metadata["version"], metadata.get("requires_dist", [])
    raise InstallError("the package index has no wheel of %s for any supported system" % name)


def main():
    """Command line: ``install.py FOLDER`` makes a virtual environment, ``--here`` installs into the running one."""
    parser = argparse.ArgumentParser(description="Install the book's environment from requirements.lock.")
    parser.add_argument("folder", nargs="?", default=os.path.join(ROOT, ".venv"), help="virtual environment to make")
    parser.add_argument("--here", action="store_true", help="install into the environment of the running Python")
    parser.add_argument("--lock", action="store_true", help="make requirements.lock anew from pyproject.toml")
    parser.add_argument("--closure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    try:
        if arguments.closure:
            print("\n".join(closure(*json.loads(arguments.closure))))
        elif arguments.lock:
            lock(ROOT)
        elif arguments.here:
            install(sys.executable, ROOT)
        else:
            prepare(os.path.abspath(arguments.folder), ROOT)
    except InstallError as error:
        sys.exit(str(error))
    except OSError as error:
        if error.errno == 28:
            sys.exit(explain("Errno 28"))
        raise


if __name__ == "__main__":
    main()
