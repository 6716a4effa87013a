"""The rules that every notebook of the book keeps."""

import ast
import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from support import notebook, profiles
from support.bank import tasks

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PROFILES = yaml.safe_load((ROOT / "notebooks" / "profiles.yml").read_text())

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path, kind=None):
    """Cells of a notebook, of one kind or all: dictionaries with `source` as one string and `tags` as a list."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    for cell in cells:
        cell["source"] = "".join(cell["source"])
        cell["tags"] = cell["metadata"].get("tags", [])
    return [cell for cell in cells if kind in (None, cell["cell_type"])]


def prose(path):
    return "\n\n".join(cell["source"] for cell in read(path, "markdown"))


def test_there_are_notebooks_and_all_are_numbered():
    assert len(NOTEBOOKS) >= 4
    numbers = [re.match(r"(\d\d)_[a-z0-9_]+$", path.stem) for path in NOTEBOOKS]
    assert all(numbers), [path.stem for path in NOTEBOOKS]
    assert len({number.group(1) for number in numbers}) == len(NOTEBOOKS)


@every_notebook
def test_parameters_cell(path):
    cells = [cell for cell in read(path, "code") if "parameters" in cell["tags"]]
    assert len(cells) == 1
    for line in cells[0]["source"].splitlines():
        assert line.count("=") == 1, f"papermill does not read a line with a second equals sign: {line}"
        assert re.search(r"  # \S", line), f"no trailing comment: {line}"
        assert len(ast.parse(line).body) == 1, f"not one parameter a line: {line}"
    declared = notebook.declared_parameters(path)
    assert declared
    for name, parameter in declared.items():
        assert type(parameter.default) in (int, float, str, bool), f"{name} is not a plain value"
        assert parameter.help


@every_notebook
def test_next_code_cell_checks_the_parameters(path):
    cells = read(path, "code")
    (place,) = [number for number, cell in enumerate(cells) if "parameters" in cell["tags"]]
    statements = [ast.unparse(node) for node in ast.parse(cells[place + 1]["source"]).body]
    assert statements == ["from support import notebook", "notebook.check_parameters()"]
    before = [ast.parse(cell["source"]).body for cell in cells[:place]]
    assert not any(before), "code before the parameters"


@every_notebook
def test_every_parameter_is_read(path):
    code = [cell["source"] for cell in read(path, "code") if "parameters" not in cell["tags"]]
    names = [node for source in code for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)]
    unread = set(notebook.declared_parameters(path)) - {name.id for name in names if isinstance(name.ctx, ast.Load)}
    assert unread == set()


@every_notebook
def test_unknown_parameter_is_refused_with_all_known_ones(path):
    """By what the cell after the parameters calls."""
    declared = notebook.declared_parameters(path)
    with pytest.raises(ValueError, match="unknown parameter 'n_imagse'") as refused:
        notebook.compare({"n_imagse": 4}, declared)
    for name, parameter in declared.items():
        assert f"{name} = {parameter.default!r}  # {parameter.help}" in str(refused.value)


def test_unknown_parameter_stops_papermill_in_any_folder(tmp_path):
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", "-k", "python3", str(NOTEBOOKS[0]), "out.ipynb"]
    environment = dict(os.environ, PYTHONPATH=str(ROOT), JUPYTER_PATH=str(Path(sys.prefix, "share", "jupyter")))
    result = subprocess.run(
        [*command, "-p", "n_imagse", "4"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert result.returncode != 0
    assert "ValueError: unknown parameter 'n_imagse'; did you mean 'n_images'?" in result.stderr


def test_a_chapter_runs_from_any_folder(tmp_path):
    """With plain papermill, from a folder that is not the repository's, on a copy that lies elsewhere."""
    path = tmp_path / "elsewhere" / NOTEBOOKS[0].name
    path.parent.mkdir()
    path.write_text(NOTEBOOKS[0].read_text(encoding="utf-8"), encoding="utf-8")
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", "-k", "python3", str(path), "out.ipynb"]
    environment = dict(os.environ, PYTHONPATH=str(ROOT), JUPYTER_PATH=str(Path(sys.prefix, "share", "jupyter")))
    result = subprocess.run(
        [*command, "-p", "n_images", "3", "-p", "size", "64"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out.ipynb").is_file()


@every_notebook
def test_what_is_imported_of_the_package_is_there(path):
    for cell in read(path, "code"):
        for node in ast.walk(ast.parse(cell["source"])):
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "support":
                found = {
                    alias.name for alias in node.names if hasattr(importlib.import_module(node.module), alias.name)
                }
                rest = {alias.name for alias in node.names} - found
                missing = {name for name in rest if importlib.util.find_spec(f"{node.module}.{name}") is None}
                assert missing == set(), f"{node.module} has no {missing}"


def test_no_chapter_names_a_place_by_the_folder_it_runs_in():
    """No path in the code of a chapter begins at the working folder, but those that the reader gives."""
    places = ("data/", "book/", "notebooks/", "support/", "tests/", "./", "../")
    for path in NOTEBOOKS:
        for cell in read(path, "code"):
            for node in ast.walk(ast.parse(cell["source"])):
                text = node.value if isinstance(node, ast.Constant) else ""
                assert not (isinstance(text, str) and text.startswith(places)), f"{path.stem}: {text!r}"


@every_notebook
def test_outputs_are_stripped(path):
    for number, cell in enumerate(read(path, "code")):
        if "nbval-check-output" in cell["tags"]:
            assert cell["outputs"], f"code cell {number} is to be compared with its output, and has none"
            assert cell["execution_count"] is not None, f"code cell {number}: nbval wants the number of a cell that ran"
            kinds = {output["output_type"] for output in cell["outputs"]}
            assert kinds <= {"stream", "execute_result"}, f"code cell {number} keeps more than text"
            assert not any("image/png" in output.get("data", {}) for output in cell["outputs"])
        else:
            assert cell["outputs"] == [], f"code cell {number} has outputs"
            assert cell["execution_count"] is None, f"code cell {number} has a number"


@every_notebook
def test_kernel_is_plain_python(path):
    metadata = json.loads(path.read_text(encoding="utf-8"))["metadata"]
    assert metadata["kernelspec"]["name"] == "python3" and metadata["kernelspec"]["language"] == "python"
    assert "papermill" not in metadata and "widgets" not in metadata


def test_table_of_contents_has_every_page():
    contents = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text())
    chapters = [chapter for part in contents["parts"] for chapter in part["chapters"]]
    listed = [contents["root"]] + [chapter["file"] for chapter in chapters]
    pages = {page.stem for page in (ROOT / "book").glob("*.md")} | {path.stem for path in NOTEBOOKS}
    assert sorted(listed) == sorted(pages)
    numbered = [name for name in listed if name[0].isdigit()]
    assert numbered == sorted(numbered)


@pytest.mark.parametrize("profile", PROFILES)
def test_profile_is_valid(profile):
    plan = profiles.read_profiles(ROOT, profile)
    assert list(plan) == NOTEBOOKS
    for path, parameters in plan.items():
        expected = {"results"} if "results" in notebook.declared_parameters(path) else set()
        assert set(parameters) == set((PROFILES[profile] or {}).get(path.stem) or {}) | expected


def test_profiles_are_the_documented_ones():
    assert set(PROFILES) == {"smoke", "book", "paper"}


@every_notebook
def test_figures_have_caption_name_and_alternative_text(path):
    names = []
    for number, cell in enumerate(read(path, "code")):
        draws = "plt.show()" in cell["source"]
        settings = cell["metadata"].get("mystnb", {})
        if not draws and "figure" not in settings:
            continue
        assert draws, f"code cell {number} has a caption but no plt.show()"
        assert settings.get("figure", {}).get("caption"), f"code cell {number} draws a figure without a caption"
        assert settings["figure"].get("name"), f"code cell {number} draws a figure without a name"
        assert settings.get("image", {}).get("alt"), f"code cell {number} draws a figure without alternative text"
        names.append(settings["figure"]["name"])
    assert len(names) == len(set(names))


def test_figure_names_are_unique_and_references_lead_somewhere():
    names = [
        cell["metadata"]["mystnb"]["figure"]["name"]
        for path in NOTEBOOKS
        for cell in read(path, "code")
        if "figure" in cell["metadata"].get("mystnb", {})
    ]
    assert len(names) == len(set(names))
    texts = [prose(path) for path in NOTEBOOKS] + [page.read_text() for page in (ROOT / "book").glob("*.md")]
    referred = {name for text in texts for name in re.findall(r"\{numref\}`(?:[^`<]*<)?([^`>]+)>?`", text)}
    assert {name for name in referred if name.startswith("fig")} <= set(names)


@every_notebook
def test_glued_numbers(path):
    made = set()
    for cell in read(path, "code"):
        for node in ast.walk(ast.parse(cell["source"])):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "glue":
                assert isinstance(node.args[0], ast.Constant), f"a name made at run time: {ast.unparse(node)}"
                assert node.args[0].value not in made, f"{node.args[0].value} is glued twice"
                made.add(node.args[0].value)
    used = {key.split(":")[0].split("::")[-1] for key in re.findall(r"\{glue:[a-z]*\}`([^`]+)`", prose(path))}
    used |= {key.split(":")[0] for key in re.findall(r"```\{glue:[a-z]*\} (\S+)", prose(path))}
    assert used - made == set(), "in the text, never glued"
    assert made - used == set(), "glued, not in the text"


@every_notebook
def test_exercises_and_solutions(path):
    cells = read(path)
    exercises = [
        number
        for number, cell in enumerate(cells)
        if cell["cell_type"] == "markdown" and re.search(r"\{(admonition|exercise)\} *Exercise \d", cell["source"])
    ]
    assert 2 <= len(exercises) <= 4
    for number in exercises:
        following = []
        for cell in cells[number + 1 :]:
            if cell["cell_type"] == "markdown" and ("Exercise" in cell["source"] or cell["source"].startswith("## ")):
                break
            following.append(cell)
        folded = [
            cell
            for cell in following
            if "hide-cell" in cell["tags"] or (cell["cell_type"] == "markdown" and "dropdown" in cell["source"])
        ]
        assert folded, f"no folded solution after {cells[number]['source'].splitlines()[0]}"


@every_notebook
def test_opening_and_closing(path):
    cells = read(path, "markdown")
    assert cells[0]["source"].startswith("# ")
    opening = "\n".join(cell["source"] for cell in cells[:2])
    for words in ("What this chapter shows", "What you need first", "Time"):
        assert words in opening
    headings = re.findall(r"^## (.+)$", prose(path), re.MULTILINE)
    assert headings[-3:] == ["Exercises", "Summary", "What comes next"]


@every_notebook
def test_tables_are_numbered_in_their_order(path):
    numbers = []
    for cell in read(path, "code"):
        for node in ast.walk(ast.parse(cell["source"])):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "notebook.table":
                numbers.append(re.match(r"f?['\"]Table (\d+\.\d+)\.", ast.unparse(node.args[1]))[1])
    assert numbers == [f"{int(path.stem[:2])}.{k}" for k in range(1, len(numbers) + 1)]


def said(path):
    """Texts of the sentences that a notebook says with the numbers of its run."""
    calls = [node for cell in read(path, "code") for node in ast.walk(ast.parse(cell["source"]))]
    calls = [node for node in calls if isinstance(node, ast.Call)]
    given = [node.args for node in calls if ast.unparse(node.func) in ("notebook.say", "notebook.finding")]
    parts = [part for arguments in given for argument in arguments for part in ast.walk(argument)]
    return [part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)]


@every_notebook
def test_there_is_more_prose_than_code(path):
    """On the page, where folded cells do not count."""
    folded = {"hide-input", "hide-cell", "remove-input", "remove-cell"}
    shown = [cell["source"] for cell in read(path, "code") if not folded & set(cell["tags"])]
    words = len(prose(path).split()) + sum(len(text.split()) for text in said(path))
    assert words > sum(len(source.split()) for source in shown), "more code than prose"


def test_glossary_explains_every_task_once():
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|", (ROOT / "book" / "glossary.md").read_text(), re.MULTILINE)
    assert sorted(rows) == sorted((task.name, task.group) for task in tasks.TASKS.values())


def test_first_page_has_a_place_for_the_findings():
    assert (ROOT / "book" / "intro.md").read_text().count(notebook.FINDINGS_HERE) == 1
