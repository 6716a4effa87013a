"""Run the notebooks through papermill and build the book with jupyter-book.

On the command line: ``python -m support.book --profile smoke|book|paper``; ``--help`` lists the options.
"""

import argparse
import ast
import contextlib
import difflib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from support.notebook import FINDINGS_HERE, compare, declared_parameters, findings

ROOT = Path(__file__).resolve().parents[1]


class BookError(Exception):
    """What stopped the book, and what to do about it: a message for the reader, without a traceback."""


def read_profiles(root, profile, given=None):
    """Parameters of each notebook in one profile.

    Parameters
    ----------
    root : Path
        The repository.
    profile : str
        Name of a profile of ``notebooks/profiles.yml``.
    given : dict, optional
        Parameters that take the place of the profile's, in every notebook that declares them.

    Returns
    -------
    dict of Path to dict
        Notebook to its parameters, in the order in which they run; `results`, the folder where a notebook leaves
        what later ones read, is set for each notebook that declares it.

    Raises
    ------
    BookError
        The profile, a notebook or a parameter in it is unknown, a value is of the wrong kind, or no notebook declares
        what was given.
    """
    import yaml

    given = given or {}

    profiles = yaml.safe_load((root / "notebooks" / "profiles.yml").read_text(encoding="utf-8"))
    if profile not in profiles:
        raise BookError(
            f"unknown profile {profile!r}; the profiles in notebooks/profiles.yml are: {', '.join(profiles)}"
        )
    notebooks = sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    if not notebooks:
        raise BookError(f"there are no notebooks (NN_name.ipynb) in {root / 'notebooks'}")
    asked = profiles[profile] or {}
    unknown = sorted(set(asked) - {notebook.stem for notebook in notebooks})
    if unknown:
        raise BookError(f"profile {profile!r} in notebooks/profiles.yml names unknown notebooks: {', '.join(unknown)}")
    plan, everything = {}, {}
    for notebook in notebooks:
        plan[notebook] = dict(asked.get(notebook.stem) or {})
        try:
            declared = declared_parameters(notebook)
            everything |= declared
            plan[notebook] |= {name: value for name, value in given.items() if name in declared}
            compare(plan[notebook], declared)
        except (ValueError, TypeError) as error:
            raise BookError(f"profile {profile!r}, notebook {notebook.stem}: {error}") from None
        if "results" in declared:
            plan[notebook].setdefault("results", f"book/_build/{profile}/results")
    for name in set(given) - set(everything):
        close = difflib.get_close_matches(name, everything, n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise BookError(f"no notebook has a parameter {name!r}{hint}")
    return plan


def keys(root, plan):
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
    """
    common = hashlib.sha256()
    files = [*(root / "support").glob("**/*.py"), *(root / "data").glob("**/*"), root / "requirements.lock"]
    for file in sorted(file for file in files if file.is_file() and "__pycache__" not in file.parts):
        common.update(file.relative_to(root).as_posix().encode() + b"\0")
        with open(file, "rb") as stream:
            common.update(hashlib.file_digest(stream, "sha256").digest())
    found, earlier = {}, []
    for notebook, parameters in plan.items():
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        content = [[cell["cell_type"], cell["metadata"], "".join(cell["source"])] for cell in cells]
        before = earlier if "results" in parameters else []
        text = json.dumps([common.hexdigest(), content, parameters, before], sort_keys=True)
        found[notebook] = hashlib.sha256(text.encode()).hexdigest()
        if "results" in parameters:
            earlier.append(found[notebook])
    return found


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


def _execute(notebook, output, parameters, root):
    """Run one notebook through papermill in the folder `root`; BookError says where it failed."""
    import papermill
    from nbclient.exceptions import CellControlSignal, DeadKernelError
    from papermill.exceptions import PapermillException, PapermillExecutionError

    partly = f"\nThe partly executed copy: {output}"
    try:
        with _kernel_environment():
            papermill.execute_notebook(
                str(notebook),
                str(output),
                parameters=parameters,
                kernel_name="python3",
                cwd=str(root),
                progress_bar=sys.stderr.isatty(),
                extra_arguments=["--log-level=40"],  # the kernel's own errors, not its warnings
            )
    except PapermillExecutionError as error:
        first = error.source.strip().splitlines()
        shown = "\n".join(f"    {line}" for line in first[:8]) + ("\n    ..." if len(first) > 8 else "")
        raise BookError(
            f"{notebook.stem} failed in cell [{error.exec_count}]:\n{shown}\n{error.ename}: {error.evalue}{partly}"
        ) from None
    except DeadKernelError:
        raise BookError(
            f"{notebook.stem} failed: its Python process died, most often because memory ran out; close other programs "
            f"or lower the notebook's parameters in notebooks/profiles.yml{partly}"
        ) from None
    except (PapermillException, CellControlSignal) as error:
        raise BookError(f"{notebook.stem} failed: {error}{partly}") from None


def _state(root, profile, plan, only):
    """For each notebook that was asked for: where its executed copy is, its key, whether the copy is up to date."""
    unknown = sorted(set(only or ()) - {notebook.stem for notebook in plan})
    if unknown:
        raise BookError(f"unknown notebook {unknown[0]!r}; there are: {', '.join(path.stem for path in plan)}")
    folder = root / "book" / "_build" / profile
    found = {}
    for notebook, key in keys(root, plan).items():
        output = folder / "notebooks" / notebook.name
        record = output.with_suffix(".json")
        is_done = output.is_file() and record.is_file() and json.loads(record.read_text())["key"] == key
        if not only or notebook.stem in only:
            is_done = is_done and ((folder / "results").is_dir() or "results" not in plan[notebook])
            found[notebook] = output, key, is_done
    return found


def _plan_of_the_original(parameters):
    from support import original

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


def dry_run(profile, root=ROOT, given=None, only=None):
    """Say what `run` would do, and what a notebook of hours would take: passes, disk, time. Nothing is run or written.

    Parameters
    ----------
    profile, root, given, only
        As for `run`.

    Returns
    -------
    str
        A few lines for each notebook.

    Raises
    ------
    BookError
        The profile, a notebook or a parameter is unknown, or a value is of the wrong kind.
    """
    plan = read_profiles(root, profile, given)
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


def run(profile, root=ROOT, force=False, given=None, only=None):
    """Run the notebooks of a profile in order, leaving out those that nothing has changed for.

    Parameters
    ----------
    profile : str
        Name of a profile of ``notebooks/profiles.yml``.
    root : Path
        The repository; notebooks run in this folder.
    force : bool
        Run all of them.
    given : dict, optional
        As for `read_profiles`.
    only : sequence of str, optional
        Stems of the notebooks to run; all by default.

    Returns
    -------
    list of str
        Stems of the notebooks that did run. The executed copies are in ``book/_build/<profile>/notebooks``.

    Raises
    ------
    BookError
        A notebook failed, or the profile is wrong.
    """
    plan = read_profiles(root, profile, given)
    folder = root / "book" / "_build" / profile
    todo = _state(root, profile, plan, only)
    (folder / "notebooks").mkdir(parents=True, exist_ok=True)
    (folder / "results").mkdir(exist_ok=True)
    ran = []
    for number, (notebook, (output, key, is_done)) in enumerate(todo.items(), start=1):
        record = output.with_suffix(".json")
        label = f"[{number}/{len(todo)}] {notebook.stem}"
        if is_done and not force:
            print(f"{label}: nothing changed", flush=True)
            continue
        print(f"{label} ...", flush=True)
        start = time.perf_counter()
        record.unlink(missing_ok=True)
        _execute(notebook, output, plan[notebook], root)
        seconds = time.perf_counter() - start
        record.write_text(json.dumps({"key": key, "seconds": round(seconds, 1)}))
        print(f"{label}: {seconds:.0f} s", flush=True)
        ran.append(notebook.stem)
    for output in (folder / "notebooks").glob("*.ipynb"):
        if output.name not in {notebook.name for notebook in plan}:
            output.unlink()
    return ran


def assemble(profile, root=ROOT):
    """Put the hand-written pages and the executed notebooks together in one folder.

    Parameters
    ----------
    profile : str
        A profile that was run.
    root : Path
        The repository.

    Returns
    -------
    Path
        ``book/_build/<profile>/source``, made anew. The cell that papermill added to a notebook is folded away there,
        and the table of the notebooks' findings stands on the first page.
    """
    source = root / "book" / "_build" / profile / "source"
    if source.is_dir():
        shutil.rmtree(source)
    shutil.copytree(root / "book", source, ignore=shutil.ignore_patterns("_build", "__pycache__", ".*"))
    for notebook in sorted((source.parent / "notebooks").glob("*.ipynb")):
        content = json.loads(notebook.read_text(encoding="utf-8"))
        for cell in content["cells"]:
            tags = cell["metadata"].get("tags", [])
            if "injected-parameters" in tags and "hide-input" not in tags:
                tags.append("hide-input")
                cell["metadata"]["mystnb"] = {"code_prompt_show": "Show the parameters of this run"}
        (source / notebook.name).write_text(json.dumps(content), encoding="utf-8")
    first = source / "intro.md"
    if first.is_file():
        text = first.read_text(encoding="utf-8").replace(FINDINGS_HERE, findings(sorted(source.glob("*.ipynb"))))
        first.write_text(text, encoding="utf-8")
    return source


def build(profile, root=ROOT):
    """Build the pages from what `assemble` put together; every warning is an error.

    Parameters
    ----------
    profile : str
        A profile that was assembled.
    root : Path
        The repository, with ``_config.yml``.

    Returns
    -------
    Path
        The first page, ``book/_build/<profile>/html/index.html``.

    Raises
    ------
    BookError
        jupyter-book had something to warn of; the message has all its warnings.
    """
    folder = root / "book" / "_build" / profile
    work = folder / "sphinx"
    if work.is_dir():
        shutil.rmtree(work)
    program = "from jupyter_book.cli.main import main; main()"
    command = [sys.executable, "-c", program, "build", str(folder / "source"), "--path-output", str(work)]
    command += ["--config", str(root / "_config.yml"), "--toc", str(folder / "source" / "_toc.yml")]
    command += ["-W", "-n", "--keep-going", "-q"]
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=root)
    said = re.sub(r"\x1b\[[0-9;]*m", "", result.stdout)  # sphinx prints warnings in colour
    made = work / "_build" / "html"
    if result.returncode or not (made / "index.html").is_file():
        lines = [line for line in said.splitlines() if "WARNING" in line or "ERROR" in line]
        raise BookError("the book has errors:\n" + ("\n".join(lines) or said.strip()))
    pages = folder / "html"
    if pages.is_dir():
        shutil.rmtree(pages)
    made.rename(pages)
    shutil.rmtree(work)
    return pages / "index.html"


def _value(text):
    """A parameter from the command line: a number or True or False where it looks like one, otherwise text."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return value if isinstance(value, int | float) else text


def main(arguments=None):
    """Run a profile and build its book; exits with status 1 and one message when something fails."""
    parser = argparse.ArgumentParser(prog="python -m support.book", description="Run the notebooks and build the book.")
    parser.add_argument("--profile", default="book", help="a profile of notebooks/profiles.yml (default: book)")
    parser.add_argument("--force", action="store_true", help="run notebooks for which nothing has changed, too")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be done and what it would take")
    parser.add_argument("--only", nargs="+", metavar="NOTEBOOK", help="run these notebooks only, and build no pages")
    parser.add_argument(
        "-p",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        dest="given",
        help="a parameter, for every notebook that has it; as for papermill",
    )
    options = parser.parse_args(arguments)
    given = {name: _value(text) for name, text in options.given}
    start = time.perf_counter()
    try:
        if options.dry_run:
            print(dry_run(options.profile, given=given, only=options.only))
            return
        run(options.profile, force=options.force, given=given, only=options.only)
        if options.only:
            print(f"executed notebooks: {ROOT / 'book' / '_build' / options.profile / 'notebooks'}")
            return
        print("building the pages ...", flush=True)
        assemble(options.profile)
        page = build(options.profile)
    except BookError as error:
        sys.exit(f"{error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; notebooks that had finished will not run again")
    print(f"The book ({options.profile}) is ready after {time.perf_counter() - start:.0f} s; open it in a browser:")
    print(f"  {page}\n  {page.as_uri()}")


if __name__ == "__main__":
    main()
