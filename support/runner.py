"""Run the notebooks of a profile through papermill, leaving out those that nothing has changed for."""

import contextlib
import hashlib
import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from support.notebook import declared_parameters
from support.profiles import BookError, folder_of, read_profiles

ROOT = Path(__file__).resolve().parents[1]
# What the kernel of a strict run does before the first cell: warnings of the notebook, of this package and of libraries
# of arrays are errors. Those inside other packages, which they may mend themselves, are not.
STRICT = r"""import warnings
for _kind in (UserWarning, FutureWarning, RuntimeWarning):
    warnings.filterwarnings("error", "", _kind, r"(__main__|support|numpy|xarray|pandas|scipy|zarr|dask)(\.|$)")
del warnings, _kind
"""


def keys(root: Path, plan: dict[Path, dict]) -> dict[Path, str]:
    """What each notebook's result depends on, as one hash.

    Parameters
    ----------
    root : Path
        The repository.
    plan : dict of Path to dict
        As `read_profiles` returns it.

    Returns
    -------
    dict of Path to str
        SHA-256 of the notebook's cells, its parameters, the package's source, ``data/`` and ``requirements.lock``;
        for a notebook with `results` also of the earlier ones with `results`.

    Examples
    --------
    >>> plan = read_profiles(ROOT, "smoke")
    >>> {len(key) for key in keys(ROOT, plan).values()}
    {64}
    """
    common = hashlib.sha256()
    files = [*(root / "support").glob("**/*.py"), *(root / "data").glob("**/*"), root / "requirements.lock"]
    for file in sorted(file for file in files if file.is_file() and "__pycache__" not in file.parts):
        common.update(file.relative_to(root).as_posix().encode() + b"\0")
        with open(file, "rb") as stream:
            common.update(hashlib.file_digest(stream, "sha256").digest())
    found: dict[Path, str] = {}
    earlier: list[str] = []
    for notebook, parameters in plan.items():
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        content = [[cell["cell_type"], cell["metadata"], "".join(cell["source"])] for cell in cells]
        before = earlier if "results" in parameters else []
        text = json.dumps([common.hexdigest(), content, parameters, before], sort_keys=True)
        found[notebook] = hashlib.sha256(text.encode()).hexdigest()
        if "results" in parameters:
            earlier.append(found[notebook])
    return found


def finished(output: Path) -> dict:
    """What was written down when a notebook had run to its end.

    Parameters
    ----------
    output : Path
        The executed copy.

    Returns
    -------
    dict
        `key` as of `keys`, `seconds` that it took and `sha256` of the copy. Empty where the copy or the record beside
        it is missing, damaged, or not of one another: a killed run or a full disk leaves such.

    Examples
    --------
    >>> finished(Path("no/such/notebook.ipynb"))
    {}
    """
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError, RecursionError):
        record = json.loads(output.with_suffix(".json").read_text(encoding="utf-8"))
        kinds = [type(record[name]) for name in ("key", "seconds", "sha256")]
        if kinds == [str, float, str] and record["sha256"] == hashlib.sha256(output.read_bytes()).hexdigest():
            return record
    return {}


@contextlib.contextmanager
def _kernel_environment():
    """Environment variables by which kernels are those of this Python and find this package; restored on exit."""
    before = dict(os.environ)
    try:
        os.environ["JUPYTER_PATH"] = str(Path(sys.prefix, "share", "jupyter"))
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), before.get("PYTHONPATH")]))
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def execute(notebook: Path, output: Path, parameters: dict, key: str, root: Path, strict: bool, again: str) -> float:
    """Run one notebook through papermill, and write down beside the copy that it came to its end.

    Parameters
    ----------
    notebook, output : Path
        The notebook and its executed copy, whose folder exists; what is at `output` and its record is replaced.
    parameters : dict
        For papermill.
    key : str
        What the record says the copy is made from.
    root : Path
        The folder in which it runs.
    strict : bool
        Warnings of this package and of the libraries of arrays stop the notebook.
    again : str
        The command that runs it alone, for the message.

    Returns
    -------
    float
        Seconds.

    Raises
    ------
    BookError
        The notebook failed. The message ends with the cell, the error and `again`.

    Examples
    --------
    >>> import tempfile, nbformat
    >>> folder = Path(tempfile.mkdtemp())
    >>> nbformat.write(nbformat.v4.new_notebook(), folder / "one.ipynb")
    >>> seconds = execute(folder / "one.ipynb", folder / "out.ipynb", {}, "key", folder, True, "the command")
    >>> finished(folder / "out.ipynb")["key"]
    'key'
    """
    import papermill
    from nbclient.exceptions import CellControlSignal, DeadKernelError
    from papermill.exceptions import PapermillException, PapermillExecutionError

    record = output.with_suffix(".json")
    for path in (record, output):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    start, said = time.perf_counter(), None
    try:
        with _kernel_environment():
            papermill.execute_notebook(
                str(notebook),
                str(output),
                parameters=parameters,
                kernel_name="python3",
                cwd=str(root),
                progress_bar=sys.stderr.isatty(),
                extra_arguments=["--log-level=40"] + [f"--IPKernelApp.exec_lines={STRICT}"] * strict,  # its errors only
            )
    except PapermillExecutionError as error:
        first = error.source.strip().splitlines()
        shown = "\n".join(f"    {line}" for line in first[:8]) + ("\n    ..." if len(first) > 8 else "")
        said = f"cell [{error.exec_count}]:\n{shown}\n{error.ename}: {error.evalue}"
    except DeadKernelError:
        said = (
            "its Python process died, most often because memory ran out: close other programs, or lower the "
            "notebook's parameters (-p, or notebooks/profiles.yml)"
        )
    except (PapermillException, CellControlSignal) as error:
        said = str(error)
    if said:
        where = f"The partly executed copy: {output}" if output.is_file() else "Nothing was executed."
        raise BookError(f"{notebook.stem} failed. {where}\n{said}\nTo run it alone again: {again}")
    seconds = time.perf_counter() - start
    digest = hashlib.sha256(output.read_bytes()).hexdigest()
    record.write_text(json.dumps({"key": key, "seconds": round(seconds, 1), "sha256": digest}), encoding="utf-8")
    return seconds


def command(profile: str, notebook: str, given: dict, file: Path | None) -> str:
    """The command line that runs one notebook of a profile alone.

    Parameters
    ----------
    profile, given, file
        As for `run`.
    notebook : str
        Its stem.

    Returns
    -------
    str
        It works in any folder.

    Examples
    --------
    >>> command("smoke", "07_svcca", {"seed": 1}, None).split("support.book ")[1]
    '--profile smoke --only 07_svcca -p seed 1'
    """
    words = [sys.executable, "-m", "support.book", "--profile", profile]
    words += ["--profiles", str(file.absolute())] if file else []
    words += ["--only", notebook]
    for name, value in given.items():
        words += ["-p", name, str(value)]
    return shlex.join(words)


def _state(root, profile, plan, only):
    """For each notebook that was asked for: where its executed copy is, its key, whether the copy is up to date."""
    unknown = sorted(set(only or ()) - {notebook.stem for notebook in plan})
    if unknown:
        raise BookError(f"unknown notebook {unknown[0]!r}; there are: {', '.join(path.stem for path in plan)}")
    folder, found = folder_of(root, profile), {}
    for notebook, key in keys(root, plan).items():
        if not only or notebook.stem in only:
            output = folder / "notebooks" / notebook.name
            is_done = finished(output).get("key") == key
            is_done = is_done and ((folder / "results").is_dir() or "results" not in plan[notebook])
            found[notebook] = output, key, is_done
    return found


def _plan_of_the_original(parameters):
    from support.chapters import original

    return original.plan(
        parameters["n_encoders"],
        parameters["n_images"],
        parameters["results"] or ".",
        weights=parameters["weights"],
        size=parameters["size"],
        probe_size=parameters["size"],
        device=parameters["device"],
    )


PLANS = {"14_reproduce_the_original": _plan_of_the_original}  # parameters → what a costly notebook will take


def dry_run(
    profile: str,
    root: Path = ROOT,
    given: dict | None = None,
    only: Sequence[str] | None = None,
    file: Path | None = None,
) -> str:
    """Say what `run` would do, and what a notebook of hours would take: passes, disk, time. Nothing is run or written.

    Parameters
    ----------
    profile, root, given, only, file
        As for `run`.

    Returns
    -------
    str
        A few lines for each notebook.

    Raises
    ------
    BookError
        The profile, a notebook or a parameter is unknown, or a value is of the wrong kind.

    Examples
    --------
    >>> dry_run("smoke", only=["01_probe_data"], given={"seed": 3}).split("(")[1]
    'n_images = 4, size = 64, seed = 3)'
    """
    plan = read_profiles(root, profile, given, file)
    lines = []
    for notebook, (_, _, is_done) in _state(root, profile, plan, only).items():
        told = ", ".join(f"{name} = {value!r}" for name, value in plan[notebook].items())
        lines.append(f"{notebook.stem}: {'nothing changed' if is_done else 'to be run'} ({told or 'its own defaults'})")
        if notebook.stem in PLANS:
            parameters = {name: known.default for name, known in declared_parameters(notebook).items()}
            try:
                told = PLANS[notebook.stem](parameters | plan[notebook])
            except ValueError as error:
                raise BookError(f"{notebook.stem}: {error}") from None
            lines += [f"    {line}" for line in str(told).splitlines()]
    return "\n".join(lines)


def run(
    profile: str,
    root: Path = ROOT,
    force: bool = False,
    given: dict | None = None,
    only: Sequence[str] | None = None,
    file: Path | None = None,
    strict: bool = False,
) -> list[str]:
    """Run the notebooks of a profile in order, leaving out those that nothing has changed for.

    Parameters
    ----------
    profile : str
        Name of a profile of ``notebooks/profiles.yml``, or of `file`.
    root : Path
        The repository; notebooks run in this folder.
    force : bool
        Run all of them.
    given : dict, optional
        As for `read_profiles`.
    only : sequence of str, optional
        Stems of the notebooks to run; all by default.
    file : Path, optional
        As for `read_profiles`.
    strict : bool
        As for `execute`.

    Returns
    -------
    list of str
        Stems of the notebooks that did run. The executed copies are in ``book/_build/<profile>/notebooks``.

    Raises
    ------
    BookError
        A notebook failed, or the profile is wrong.

    Examples
    --------
    >>> run("smok")
    Traceback (most recent call last):
        ...
    support.profiles.BookError: unknown profile 'smok'; the profiles in ... are: smoke, book, paper
    """
    plan = read_profiles(root, profile, given, file)
    folder = folder_of(root, profile)
    todo = _state(root, profile, plan, only)
    (folder / "notebooks").mkdir(parents=True, exist_ok=True)
    (folder / "results").mkdir(exist_ok=True)
    took = {notebook: finished(output).get("seconds") for notebook, (output, _, _) in todo.items()}
    waiting = [notebook for notebook, (_, _, is_done) in todo.items() if force or not is_done]
    ran: list[str] = []
    for number, (notebook, (output, key, _)) in enumerate(todo.items(), start=1):
        label = f"[{number}/{len(todo)}] {notebook.stem}"
        if notebook not in waiting:
            print(f"{label}: nothing changed", flush=True)
            continue
        left = _minutes(took, waiting[len(ran) :])
        print(f"{label} runs now; {len(ran)} done, {len(waiting) - len(ran)} to do{left}", flush=True)
        again = command(profile, notebook.stem, given or {}, file)
        took[notebook] = execute(notebook, output, plan[notebook], key, root, strict, again)
        print(f"{label}: {took[notebook]:.0f} s", flush=True)
        ran.append(notebook.stem)
    for output in (folder / "notebooks").glob("*.ipynb"):
        if output.name not in {notebook.name for notebook in plan}:
            output.unlink()
    return ran


def _minutes(took, waiting):
    """ ", about 12 min left" from what each notebook took the last time, or the others on average."""
    known = [seconds for seconds in took.values() if seconds]
    if not known:
        return ""
    seconds = sum(took[notebook] or sum(known) / len(known) for notebook in waiting)
    return f", about {max(1, round(seconds / 60))} min left"
