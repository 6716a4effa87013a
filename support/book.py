"""Run the notebooks through papermill and build the book with jupyter-book.

On the command line: ``python -m support.book --profile smoke|book|paper``; ``--help`` lists the options.
"""

import argparse
import ast
import contextlib
import sys
import time
from pathlib import Path

import filelock

from support.pages import assemble, build
from support.profiles import BookError, folder_of, read_profiles, table
from support.runner import ROOT, dry_run, run
from support.sweep import sweep


def value_of(text: str) -> int | float | bool | str:
    """A parameter from the command line: a number or True or False where it looks like one, otherwise text.

    Examples
    --------
    >>> value_of("5"), value_of("0.5"), value_of("True"), value_of("saliency")
    (5, 0.5, True, 'saliency')
    """
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return value if isinstance(value, int | float) else text


@contextlib.contextmanager
def _alone(folder):
    """Hold the lock of a profile's folder; BookError where another process has it. It ends with the process."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(folder / ".lock", timeout=0):
            yield
    except filelock.Timeout:
        raise BookError(
            f"another process is at work in {folder}: wait for its end, or choose another profile"
        ) from None


def main(arguments: list[str] | None = None) -> None:
    """Run a profile and build its book; exits with status 1 and one message when something fails."""
    parser = argparse.ArgumentParser(prog="python -m support.book", description="Run the notebooks and build the book.")
    parser.add_argument("--list", action="store_true", help="only show chapters, parameters and profiles as a table")
    parser.add_argument("--profile", help="a profile of notebooks/profiles.yml (default: book), or of --profiles")
    parser.add_argument("--profiles", type=Path, metavar="FILE", help="a file with profiles of your own, anywhere")
    parser.add_argument("--force", action="store_true", help="run notebooks for which nothing has changed, too")
    parser.add_argument("--strict", action="store_true", help="warnings of a notebook are errors")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be done and what it would take")
    parser.add_argument("--only", nargs="+", metavar="NOTEBOOK", help="run these notebooks only, and build no pages")
    parser.add_argument("--sweep", metavar="NAME=VALUE,…", help="run one notebook with each value; one page compares")
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
    start = time.perf_counter()
    try:
        page = _obey(options)
    except BookError as error:
        sys.exit(f"{error}")
    except OSError as error:
        sys.exit(f"{error}: mend that and run the same command again; notebooks that had finished will not run again")
    except KeyboardInterrupt:
        sys.exit("interrupted; notebooks that had finished will not run again")
    if page:
        print(f"The pages are ready after {time.perf_counter() - start:.0f} s; open them in a browser:")
        print(f"  {page}\n  {page.as_uri()}")


def _obey(options):
    """Do what the command line says; the first page, where pages were built."""
    if options.list:
        print(table(ROOT, options.profiles))
        return None
    profile = options.profile or "book"
    given = {name: value_of(text) for name, text in options.given}
    settings = {"root": ROOT, "given": given, "only": options.only, "file": options.profiles}
    if options.dry_run:
        print(dry_run(profile, **settings))
        return None
    read_profiles(ROOT, profile, given, options.profiles)  # before a folder is made for it
    with _alone(folder_of(ROOT, profile)):
        if options.sweep:
            name, _, values = options.sweep.partition("=")
            values = [value_of(value) for value in values.split(",") if value]
            return sweep(name, values, profile, force=options.force, strict=options.strict, **settings)
        run(profile, force=options.force, strict=options.strict, **settings)
        if options.only:
            print(f"executed notebooks: {folder_of(ROOT, profile) / 'notebooks'}")
            return None
        print("building the pages ...", flush=True)
        assemble(profile, ROOT)
        return build(profile, ROOT)


if __name__ == "__main__":
    main()
