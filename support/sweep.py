"""One notebook run with several values of one parameter, and a page that shows the runs side by side."""

import base64
import hashlib
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from support.pages import render
from support.profiles import BookError, folder_of, read_profiles
from support.runner import ROOT, command, execute, finished, keys

KINDS = ("image/png", "text/html", "text/markdown", "text/plain")


def sweep(
    name: str,
    values: Sequence,
    profile: str,
    root: Path = ROOT,
    *,
    given: dict | None = None,
    only: Sequence[str] | None = None,
    file: Path | None = None,
    force: bool = False,
    strict: bool = False,
) -> Path:
    """Run a notebook once for each value of a parameter, and put what the runs displayed into one page.

    Each run stands alone: what other notebooks left in the profile's folder is not read.

    Parameters
    ----------
    name : str
        Of the parameter.
    values : list of int, float, bool or str
        Two or more; one that stands twice is run once.
    profile, root, given, file, force, strict
        As for `support.runner.run`.
    only : sequence of str
        The notebook's stem, alone.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    BookError
        Not one notebook, not a parameter and its values, or a run failed.

    Examples
    --------
    >>> sweep("method", ["saliency"], "smoke", only=["03_attribution_maps"])
    Traceback (most recent call last):
        ...
    support.profiles.BookError: a sweep needs one notebook and at least two values, as in ...
    """
    values = list(dict.fromkeys(values))
    if not only or len(only) != 1 or len(values) < 2:
        raise BookError(
            "a sweep needs one notebook and at least two values, as in --only 03_attribution_maps "
            "--sweep method=saliency,epsilon_lrp"
        )
    folder = folder_of(root, profile) / "sweep"
    todo = {}
    for value in values:
        changed = (given or {}) | {name: value}
        plan = read_profiles(root, profile, changed, file)
        named = [path for path in plan if path.stem == only[0] and name in plan[path]]
        if not named:
            raise BookError(f"there is no notebook {only[0]!r} with a parameter {name!r}: --list shows what there is")
        (notebook,) = named
        if "results" not in changed:
            plan[notebook].pop("results", None)
        todo[f"{name} = {value}"] = plan[notebook], command(profile, notebook.stem, changed, file)
    folder.mkdir(parents=True, exist_ok=True)
    runs = {}
    for number, (title, (parameters, again)) in enumerate(todo.items(), start=1):
        key = keys(root, {notebook: parameters})[notebook]
        output = runs[title] = folder / f"{key}.ipynb"
        if force or finished(output).get("key") != key:
            print(f"[{number}/{len(todo)}] {notebook.stem} with {title} runs now", flush=True)
            execute(notebook, output, parameters, key, root, strict, again)
    for path in set(folder.glob("*.ipynb")) - set(runs.values()):
        path.unlink()
        path.with_suffix(".json").unlink(missing_ok=True)
    source = folder / "source"
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(root / "book", source, ignore=shutil.ignore_patterns("_build", "*.md", "_toc.yml"))
    (source / "_toc.yml").write_text("format: jb-book\nroot: sweep\n", encoding="utf-8")
    page = compare(runs, source, f"{notebook.stem}: {name} in {len(values)} runs")
    (source / "sweep.md").write_text(page, encoding="utf-8")
    return render(source, folder / "html", root, strict=False)


def compare(runs: dict[str, Path], pictures: Path, title: str) -> str:
    """Text of a page with what executed copies of one notebook displayed, cell by cell.

    Parameters
    ----------
    runs : dict of str to Path
        Title of a column to an executed copy.
    pictures : Path
        Where figures are put.
    title : str
        Of the page.

    Returns
    -------
    str
        MyST: a grid for each cell that displayed a sentence, a table or a figure, a column for each run; what is the
        same in all runs stands there once.

    Examples
    --------
    >>> chapter = Path("notebooks/01_probe_data.ipynb")  # not executed: nothing is displayed
    >>> compare({"seed = 0": chapter, "seed = 1": chapter}, Path("."), "Two seeds")
    '# Two seeds\\n'
    """
    copies = [json.loads(path.read_text(encoding="utf-8"))["cells"] for path in runs.values()]
    copies = [[c for c in cells if "injected-parameters" not in c["metadata"].get("tags", [])] for cells in copies]
    lines, heading = [f"# {title}", ""], ""
    for cells in zip(*copies, strict=True):
        if cells[0]["cell_type"] == "markdown":
            heading = (re.findall(r"^#{2,} .+", "".join(cells[0]["source"]), re.MULTILINE) or [heading])[-1]
            continue
        shown = [_displayed(cell, pictures) for cell in cells]
        if not any(shown):
            continue
        lines += [heading and re.sub("^#+", "##", heading), ""]
        heading = ""
        if shown.count(shown[0]) == len(shown):
            lines += ["*The same in all runs:*", "", shown[0], ""]
            continue
        lines += [f"::::{{grid}} 1 1 {min(len(runs), 4)} {min(len(runs), 4)}"]
        for column, text in zip(runs, shown, strict=True):
            lines += [":::{grid-item}", f"**{column}**", "", text or "*nothing*", "", ":::"]
        lines += ["::::", ""]
    return "\n".join(lines)


def _displayed(cell, pictures):
    """Sentences, tables and figures of a cell's output as MyST; figures are written to files."""
    parts = []
    for output in cell.get("outputs", []):
        data = {kind: "".join(output.get("data", {}).get(kind, "")) for kind in KINDS}
        if data["image/png"]:
            picture = base64.b64decode(data["image/png"])
            path = pictures / f"{hashlib.sha256(picture).hexdigest()[:16]}.png"
            path.write_bytes(picture)
            parts.append(f"![{data['text/plain']}]({path.name})")
        elif "<table" in data["text/html"]:
            parts.append("```{raw} html\n" + data["text/html"] + "\n```")
        elif data["text/markdown"]:
            parts.append(data["text/markdown"])
    return "\n\n".join(parts)
