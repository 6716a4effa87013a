"""Pages from hand-written text and executed notebooks, made by jupyter-book."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

from support.notebook import FINDING, FINDINGS_HERE, LEFT, fill, findings
from support.profiles import BookError, folder_of
from support.runner import ROOT


def assemble(profile: str, root: Path = ROOT) -> Path:
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
        the table of the notebooks' findings stands on the first page, and what they left for other pages stands there.

    Examples
    --------
    >>> assemble("../elsewhere")
    Traceback (most recent call last):
        ...
    support.profiles.BookError: '../elsewhere' is no name for a profile, because ...
    """
    source = folder_of(root, profile) / "source"
    if source.is_dir():
        shutil.rmtree(source)
    shutil.copytree(root / "book", source, ignore=shutil.ignore_patterns("_build", "__pycache__", ".*"))
    executed = sorted((source.parent / "notebooks").glob("*.ipynb"))
    for notebook in executed:
        content = json.loads(notebook.read_text(encoding="utf-8"))
        for cell in content["cells"]:
            tags = cell["metadata"].get("tags", [])
            if "injected-parameters" in tags and "hide-input" not in tags:
                tags.append("hide-input")
                cell["metadata"]["mystnb"] = {"code_prompt_show": "Show the parameters of this run"}
            for output in cell.get("outputs", []):  # what is only for `findings` and `fill`, and no page can show
                for kind in (FINDING, LEFT):
                    output.get("data", {}).pop(kind, None)
        (source / notebook.name).write_text(json.dumps(content), encoding="utf-8")
    for page in source.glob("*.md"):
        text = fill(page.read_text(encoding="utf-8"), executed)
        page.write_text(text.replace(FINDINGS_HERE, findings(executed)), encoding="utf-8")
    return source


def build(profile: str, root: Path = ROOT) -> Path:
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

    Examples
    --------
    >>> build("../elsewhere")
    Traceback (most recent call last):
        ...
    support.profiles.BookError: '../elsewhere' is no name for a profile, because ...
    """
    folder = folder_of(root, profile)
    return render(folder / "source", folder / "html", root)


def render(source: Path, pages: Path, root: Path, strict: bool = True) -> Path:
    """Make HTML of a folder of pages.

    Parameters
    ----------
    source : Path
        With ``_toc.yml``.
    pages : Path
        The folder to make, in place of the one that was there.
    root : Path
        The repository, with ``_config.yml``.
    strict : bool
        A warning is an error.

    Returns
    -------
    Path
        ``index.html`` in `pages`.

    Raises
    ------
    BookError
        jupyter-book could not, or had something to warn of; the message has all it said of that.

    Examples
    --------
    >>> render(Path("no/such/folder"), Path("no/such/pages"), ROOT)
    Traceback (most recent call last):
        ...
    support.profiles.BookError: the book has errors: ...
    """
    work = pages.with_name("sphinx")
    if work.is_dir():
        shutil.rmtree(work)
    program = "from jupyter_book.cli.main import main; main()"
    command = [sys.executable, "-c", program, "build", str(source), "--path-output", str(work), "-q", "--keep-going"]
    command += ["--config", str(root / "_config.yml"), "--toc", str(source / "_toc.yml")] + ["-W", "-n"] * strict
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=root)
    said = re.sub(r"\x1b\[[0-9;]*m", "", result.stdout)  # sphinx prints warnings in colour
    made = work / "_build" / "html"
    if result.returncode or not (made / "index.html").is_file():
        lines = [line for line in said.splitlines() if "WARNING" in line or "ERROR" in line]
        raise BookError("the book has errors:\n" + ("\n".join(lines) or said.strip()))
    if pages.is_dir():
        shutil.rmtree(pages)
    made.rename(pages)
    shutil.rmtree(work)
    return pages / "index.html"
