import json
import os
import re
import shlex
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import filelock
import nbformat
import pytest
from nbformat import v4

from support import book, notebook, profiles, runner
from support.chapters import original
from support.pages import assemble, build

ROOT = Path(__file__).resolve().parents[1]
PARAMETERS = 'method = "saliency"  # saliency or epsilon_lrp\nn_images = 4  # how many\nscale = 0.5  # of the map\n'
PARAMETERS += "keep = True  # keep channels\n"
CHECK = "from support import notebook\nnotebook.check_parameters()"


def write_notebook(path, *code, parameters=PARAMETERS):
    """A notebook with a parameters cell, the check of it, and cells of code."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [v4.new_markdown_cell(f"# {path.stem}")]
    cells += [v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}), v4.new_code_cell(CHECK)]
    cells += [v4.new_code_cell(source) for source in code]
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(v4.new_notebook(cells=cells, metadata=metadata), path)


def write_profiles(root, text):
    (root / "notebooks").mkdir(exist_ok=True)
    (root / "notebooks" / "profiles.yml").write_text(text)


@pytest.fixture
def root(tmp_path):
    """A small repository with nothing in it but a lock."""
    (tmp_path / "requirements.lock").write_text("torch==2.13.0\n")
    (tmp_path / "support").mkdir()
    (tmp_path / "data").mkdir()
    return tmp_path


# Parameters


def test_parse_parameters():
    parsed = notebook.parse_parameters(PARAMETERS + "ratio = -1.5  # below zero")
    assert list(parsed) == ["method", "n_images", "scale", "keep", "ratio"]
    assert parsed["method"] == notebook.Parameter("saliency", "saliency or epsilon_lrp")
    assert parsed["ratio"] == notebook.Parameter(-1.5, "below zero")


@pytest.mark.parametrize("source", ["a = 1 + b", "a = b = 1", "a, b = 1, 2", "print(1)", "a += 1"])
def test_parameters_are_plain_literals(source):
    with pytest.raises(ValueError, match="one name and one literal"):
        notebook.parse_parameters(source)


def test_unknown_name_is_refused_with_the_closest_and_all_known():
    with pytest.raises(ValueError, match="unknown parameter 'metod'; did you mean 'method'") as refused:
        notebook.compare({"n_images": 3, "metod": "x"}, notebook.parse_parameters(PARAMETERS))
    for line in ("method = 'saliency'  # saliency or epsilon_lrp", "n_images = 4  # how many", "keep = True"):
        assert line in str(refused.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [("n_images", "four"), ("n_images", 4.0), ("n_images", True), ("scale", "1"), ("scale", True), ("keep", 1)]
    + [("method", 3), ("method", None), ("method", ["saliency"])],
)
def test_value_of_another_kind_is_refused(name, value):
    with pytest.raises(TypeError, match=f"parameter '{name}' must be an? ") as refused:
        notebook.compare({name: value}, notebook.parse_parameters(PARAMETERS))
    assert "n_images = 4  # how many" in str(refused.value)


def test_values_of_the_right_kind_pass():
    declared = notebook.parse_parameters(PARAMETERS + "limit = None  # any value\n")
    right = {"method": "x", "n_images": 7, "scale": 2, "keep": False, "limit": 3.5}
    assert notebook.compare(right, declared) is None


def test_check_parameters_does_nothing_outside_ipython():
    assert notebook.check_parameters() is None


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["-p", "metod", "x"], "ValueError: unknown parameter 'metod'; did you mean 'method'?"),
        (["-p", "n_images", "four"], "TypeError: parameter 'n_images' must be an int such as 4, not 'four' (str)."),
        (["-p", "n_images", "5", "-p", "scale", "inf", "-r", "method", "7"], None),
        ([], None),
    ],
)
def test_papermill_called_directly(tmp_path, arguments, error):
    write_notebook(tmp_path / "01_one.ipynb", "print(method, n_images, scale)")
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", "01_one.ipynb", "out.ipynb", *arguments]
    environment = dict(os.environ, PYTHONPATH=str(ROOT), JUPYTER_PATH=str(Path(sys.prefix, "share", "jupyter")))
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    if error is None:
        assert result.returncode == 0, result.stderr
        printed = nbformat.read(tmp_path / "out.ipynb", 4).cells[-1].outputs[0].text
        assert printed == ("7 5 inf\n" if arguments else "saliency 4 0.5\n")
    else:
        assert result.returncode != 0
        assert error in result.stderr
        assert "n_images = 4  # how many" in result.stderr


def test_artefact(tmp_path):
    (tmp_path / "maps.zarr").mkdir()
    assert notebook.artefact(str(tmp_path / "maps.zarr"), "03_attribution_maps") == tmp_path / "maps.zarr"
    with pytest.raises(
        FileNotFoundError, match="papermill notebooks/03_attribution_maps.ipynb .*-p results"
    ) as missing:
        notebook.artefact(tmp_path / "nothing.zarr", "03_attribution_maps")
    assert "nothing.zarr" in str(missing.value) and str(tmp_path) in str(missing.value)


# What runs


def test_given_parameters_go_to_the_notebooks_that_have_them(root):
    write_notebook(root / "notebooks" / "01_one.ipynb", "print(n_images)")
    write_notebook(root / "notebooks" / "02_two.ipynb", "print(number)", parameters="number = 1  # a number\n")
    write_profiles(root, "smoke: {01_one: {n_images: 2, scale: 1.5}}")
    plan = profiles.read_profiles(root, "smoke", {"n_images": 7})
    assert list(plan.values()) == [{"n_images": 7, "scale": 1.5}, {}]
    with pytest.raises(profiles.BookError, match="no notebook has a parameter 'n_image'; did you mean 'n_images'"):
        profiles.read_profiles(root, "smoke", {"n_image": 7})
    with pytest.raises(profiles.BookError, match="01_one: parameter 'n_images' must be an int"):
        profiles.read_profiles(root, "smoke", {"n_images": "seven"})


def test_some_notebooks_only(root):
    for name in ("01_one", "02_two"):
        write_notebook(root / "notebooks" / f"{name}.ipynb", "print(n_images)")
    write_profiles(root, "smoke: {}")
    assert runner.run("smoke", root, only=["02_two"], given={"n_images": 5}) == ["02_two"]
    printed = nbformat.read(root / "book" / "_build" / "smoke" / "notebooks" / "02_two.ipynb", 4).cells[-1].outputs
    assert printed[0].text == "5\n"
    assert "02_two: nothing changed (n_images = 5)" in runner.dry_run("smoke", root, {"n_images": 5}, ["02_two"])
    assert runner.run("smoke", root, given={"n_images": 5}) == ["01_one"]
    with pytest.raises(profiles.BookError, match="unknown notebook '03_three'; there are: 01_one, 02_two"):
        runner.run("smoke", root, only=["03_three"])


def test_dry_run_runs_nothing_and_asks_costly_notebooks(root, monkeypatch):
    write_notebook(root / "notebooks" / "01_one.ipynb", "raise SystemExit")
    write_notebook(root / "notebooks" / "02_two.ipynb", "raise SystemExit")
    write_profiles(root, "smoke: {02_two: {n_images: 9}}")
    asked = []
    monkeypatch.setattr(runner, "PLANS", {"02_two": lambda parameters: asked.append(parameters) or "hours\nbytes"})
    said = runner.dry_run("smoke", root, given={"scale": 3.0})
    assert said.splitlines() == [
        "01_one: to be run (scale = 3.0)",
        "02_two: to be run (n_images = 9, scale = 3.0)",
        "    hours",
        "    bytes",
    ]
    assert asked == [{"method": "saliency", "n_images": 9, "scale": 3.0, "keep": True}]
    assert not (root / "book").exists()


def test_the_papers_profile_says_what_it_takes(monkeypatch, capsys):
    monkeypatch.setattr(original, "plan", lambda *numbers, **options: f"{numbers[:2]} {options}")
    book.main(["--profile", "paper", "--dry-run", "-p", "weights", "random", "--only", "14_reproduce_the_original"])
    said = capsys.readouterr().out
    assert said.startswith("14_reproduce_the_original: ") and "weights = 'random'" in said
    assert "(20, 1000) {'weights': 'random', 'size': 256, 'probe_size': 256, 'device': 'auto'}" in said


def test_values_from_the_command_line():
    texts = {"5": 5, "0.5": 0.5, "True": True, "random": "random", "folder:/a b": "folder:/a b", "'x'": "'x'"}
    assert {text: book.value_of(text) for text in texts} == texts
    assert all(type(book.value_of(text)) is type(value) for text, value in texts.items())


def test_repository_without_notebooks(root):
    write_profiles(root, "smoke: {}")
    with pytest.raises(profiles.BookError, match="no notebooks"):
        runner.run("smoke", root)


def test_command_line_ends_in_one_message():
    result = subprocess.run(
        [sys.executable, "-m", "support.book", "--profile", "nonsense"], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 1
    assert "unknown profile 'nonsense'" in result.stderr and "smoke" in result.stderr
    assert "Traceback" not in result.stderr


# What runs again


def test_keys_change_with_what_a_notebook_depends_on(root):
    """One change after the other, and which of the three notebooks it concerns."""
    first, second, third = (root / "notebooks" / f"0{i}_{name}.ipynb" for i, name in enumerate("abc", start=1))
    with_results = PARAMETERS + 'results = ""  # folder\n'
    write_notebook(first, "x = 1", parameters=with_results)
    write_notebook(second, "x = 2")
    write_notebook(third, "x = 3", parameters=with_results)
    write_profiles(root, "smoke: {}")

    def keys():
        return {path.stem: key for path, key in runner.keys(root, profiles.read_profiles(root, "smoke")).items()}

    def changed():
        before, keys_now = changed.before, keys()
        changed.before = keys_now
        return {stem for stem in keys_now if keys_now[stem] != before[stem]}

    changed.before = keys()
    everything = {"01_a", "02_b", "03_c"}
    assert changed() == set()
    write_profiles(root, "smoke: {02_b: {n_images: 5}}")
    assert changed() == {"02_b"}
    (root / "support" / "deep").mkdir()
    (root / "support" / "deep" / "module.py").write_text("x = 1\n")
    assert changed() == everything
    (root / "data" / "table.csv").write_text("a,b\n")
    assert changed() == everything
    (root / "requirements.lock").write_text("torch==2.13.1\n")
    assert changed() == everything
    write_notebook(second, "x = 22")
    assert changed() == {"02_b"}
    write_notebook(first, "x = 11", parameters=with_results)
    assert changed() == {"01_a", "03_c"}, "the third reads what the first leaves in the folder `results`"
    content = json.loads(third.read_text())
    content["cells"][-1]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": ["hello"]}]
    third.write_text(json.dumps(content))
    assert changed() == set(), "outputs do not count"


def test_second_run_runs_nothing_and_a_change_only_what_it_concerns(root, capsys):
    with_results = PARAMETERS + 'results = ""  # folder\n'
    leave = "from pathlib import Path\nPath(results, 'left.txt').write_text(str(n_images))"
    write_notebook(root / "notebooks" / "01_one.ipynb", leave, parameters=with_results)
    write_notebook(root / "notebooks" / "02_two.ipynb", "print(n_images)")
    write_profiles(root, "smoke: {01_one: {n_images: 3}}")
    assert runner.run("smoke", root) == ["01_one", "02_two"]
    folder = root / "book" / "_build" / "smoke"
    assert (folder / "results" / "left.txt").read_text() == "3"
    assert runner.run("smoke", root) == []
    assert capsys.readouterr().out.count("nothing changed") == 2
    write_profiles(root, "smoke: {01_one: {n_images: 3}, 02_two: {n_images: 9}}")
    assert runner.run("smoke", root) == ["02_two"]
    printed = nbformat.read(folder / "notebooks" / "02_two.ipynb", 4).cells[-1].outputs[0].text
    assert printed == "9\n"


def test_failing_notebook(root):
    """The message has the notebook, the error and the partly executed copy; the earlier notebook need not run again."""
    write_notebook(root / "notebooks" / "01_one.ipynb", "print('fine')")
    write_notebook(root / "notebooks" / "02_two.ipynb", "before = 1", "raise KeyError('no such model')", "after = 2")
    write_profiles(root, "smoke: {}")
    with pytest.raises(profiles.BookError) as failed:
        runner.run("smoke", root)
    copy = root / "book" / "_build" / "smoke" / "notebooks" / "02_two.ipynb"
    assert str(failed.value).startswith(
        f"02_two failed. The partly executed copy: {copy}\ncell [4]:\n    raise KeyError"
    )
    assert str(failed.value).splitlines()[-2] == "KeyError: 'no such model'"
    again = f"To run it alone again: {sys.executable} -m support.book --profile smoke --only 02_two"
    assert str(failed.value).splitlines()[-1] == again
    assert "Traceback" not in str(failed.value) and copy.is_file()
    write_notebook(root / "notebooks" / "02_two.ipynb", "before = 1")
    assert runner.run("smoke", root) == ["02_two"]


DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-5]),
    "other JSON": lambda path: path.write_text('{"cells": 3, "key": ["x"]}'),
    "a list": lambda path: path.write_text("[1, 2]"),
    "a number": lambda path: path.write_text("3"),
    "no text": lambda path: path.write_bytes(b"\xff\xfe\x00\x80"),
    "nested": lambda path: path.write_text("[" * 100_000),
    "one bit": lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]),
    "a folder": lambda path: (path.unlink(), path.mkdir(), (path / "x").write_text("y")),
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_record_or_copy_is_made_again(root, damage, monkeypatch):
    """With and without `force`; what is whole is left alone."""
    write_notebook(root / "notebooks" / "01_one.ipynb", "print(n_images)")
    write_notebook(root / "notebooks" / "02_two.ipynb", "print(n_images)")
    write_profiles(root, "smoke: {}")

    def papermill_that_copies(notebook, output, **_):
        Path(output).write_text(Path(notebook).read_text())

    monkeypatch.setattr("papermill.execute_notebook", papermill_that_copies)
    runner.run("smoke", root)
    for name in ("01_one.ipynb", "01_one.json"):
        path = root / "book" / "_build" / "smoke" / "notebooks" / name
        for force, ran in ((False, ["01_one"]), (True, ["01_one", "02_two"])):
            DAMAGES[damage](path)
            assert "01_one: to be run" in runner.dry_run("smoke", root)
            assert runner.run("smoke", root, force=force) == ran
            assert runner.run("smoke", root) == []


def test_progress_of_a_run(root, capsys, monkeypatch):
    """A line when a chapter starts: what runs, how many are done, and how long the rest took the last time."""
    for number in (1, 2, 3):
        write_notebook(root / "notebooks" / f"0{number}_chapter.ipynb", "print(n_images)")
    write_profiles(root, "smoke: {}")

    def papermill_that_copies(notebook, output, **_):
        Path(output).write_text(Path(notebook).read_text())

    monkeypatch.setattr("papermill.execute_notebook", papermill_that_copies)
    runner.run("smoke", root)
    assert capsys.readouterr().out.splitlines()[0] == "[1/3] 01_chapter runs now; 0 done, 3 to do"
    for number, seconds in ((1, 60.0), (2, 120.0), (3, 240.0)):
        path = root / "book" / "_build" / "smoke" / "notebooks" / f"0{number}_chapter.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"seconds": seconds}))
    write_notebook(root / "notebooks" / "02_chapter.ipynb", "print(scale)")
    (root / "requirements.lock").write_text("torch==2.13.1\n")
    runner.run("smoke", root)
    assert capsys.readouterr().out.splitlines() == [
        "[1/3] 01_chapter runs now; 0 done, 3 to do, about 7 min left",
        "[1/3] 01_chapter: 0 s",
        "[2/3] 02_chapter runs now; 1 done, 2 to do, about 6 min left",
        "[2/3] 02_chapter: 0 s",
        "[3/3] 03_chapter runs now; 2 done, 1 to do, about 4 min left",
        "[3/3] 03_chapter: 0 s",
    ]


def test_the_command_that_runs_a_chapter_again_has_its_parameters(tmp_path):
    words = shlex.split(runner.command("mine", "02_two", {"probe": "folder:/a b", "keep": True}, tmp_path / "my.yml"))
    assert words[:3] == [sys.executable, "-m", "support.book"]
    assert words[3:7] == ["--profile", "mine", "--profiles", str(tmp_path / "my.yml")]
    assert words[7:] == ["--only", "02_two", "-p", "probe", "folder:/a b", "-p", "keep", "True"]


FUTURE = """import xarray as xr
import numpy as np
def called():
    from xarray.core.utils import emit_user_level_warning
    emit_user_level_warning("this will change", FutureWarning)
called()"""
OTHERS = """import sys, types, warnings
other = types.ModuleType("some_other_package")
exec("import warnings\\ndef f(): warnings.warn('an old habit')", other.__dict__)
other.f()
warnings.warn("deprecated", DeprecationWarning)"""


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import warnings\nwarnings.warn('a second look')", "UserWarning: a second look"),
        ("import numpy as np\nnp.log(np.zeros(3))", "RuntimeWarning: divide by zero"),
        ("import numpy as np\nnp.nanmean([np.nan])", "RuntimeWarning: Mean of empty slice"),
        (FUTURE, "FutureWarning: this will change"),
        (OTHERS, None),
        ("assert 'warnings' not in globals() and '_kind' not in globals()", None),
    ],
)
def test_a_strict_run_stops_at_warnings_of_ours_and_of_arrays(root, code, said):
    write_notebook(root / "notebooks" / "01_one.ipynb", code)
    write_profiles(root, "smoke: {}")
    if said is None:
        assert runner.run("smoke", root, strict=True) == ["01_one"]
        return
    with pytest.raises(profiles.BookError, match=f"{said}.*\nTo run it alone"):
        runner.run("smoke", root, strict=True)


def test_a_run_that_is_not_strict_goes_on_after_a_warning(root):
    write_notebook(root / "notebooks" / "01_one.ipynb", "import warnings\nwarnings.warn('a second look')")
    write_profiles(root, "smoke: {}")
    assert runner.run("smoke", root) == ["01_one"]


def test_two_processes_do_not_run_one_profile_at_once(root, monkeypatch, capsys):
    write_notebook(root / "notebooks" / "01_one.ipynb", "print(n_images)")
    write_profiles(root, "smoke: {}")
    monkeypatch.setattr(book, "ROOT", root)
    (root / "book" / "_build" / "smoke").mkdir(parents=True)
    with filelock.FileLock(root / "book" / "_build" / "smoke" / ".lock"), pytest.raises(SystemExit) as stopped:
        book.main(["--profile", "smoke"])
    assert "another process is at work" in stopped.value.code


KILLED = """
import sys
from pathlib import Path
from support import book
book.ROOT = Path(sys.argv[1])
book.main(["--profile", "smoke", "--only", "01_one", "02_two"])
"""


def test_a_killed_run_leaves_nothing_that_breaks_the_next(root, monkeypatch):
    """Killed while the second notebook runs: the first is not run again, the second is, and the lock is free."""
    write_notebook(root / "notebooks" / "01_one.ipynb", "print(n_images)")
    wait = "from pathlib import Path\nimport time\nPath('runs').write_text('')\n"
    wait += "while Path('wait').exists(): time.sleep(0.1)"
    write_notebook(root / "notebooks" / "02_two.ipynb", wait)
    write_profiles(root, "smoke: {}")
    (root / "wait").write_text("")
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(root)], env=environment, stdout=subprocess.DEVNULL)
    while not (root / "runs").exists():
        assert process.poll() is None
        time.sleep(0.1)
    process.kill()
    process.wait()
    (root / "wait").unlink()
    monkeypatch.setattr(book, "ROOT", root)
    again = {}
    monkeypatch.setattr(book, "run", lambda *arguments, **options: again.update(ran=runner.run(*arguments, **options)))
    book.main(["--profile", "smoke", "--only", "01_one", "02_two"])
    assert again["ran"] == ["02_two"]


def test_full_disk_ends_in_one_message(root, monkeypatch):
    monkeypatch.setattr(book, "run", lambda *_, **__: os.write(os.open("/dev/full", os.O_WRONLY), b"x"))
    write_notebook(root / "notebooks" / "01_one.ipynb", "print(n_images)")
    write_profiles(root, "smoke: {}")
    monkeypatch.setattr(book, "ROOT", root)
    with pytest.raises(SystemExit, match="No space left on device.*run the same command again"):
        book.main(["--profile", "smoke"])


# The book itself


class Page(HTMLParser):
    """Pictures, loaded resources, links, anchors and the words of one page, code and formulas left out."""

    def __init__(self, path):
        super().__init__()
        self.pictures, self.resources, self.links, self.anchors = [], [], [], set()
        self.words, self.unread = [], []  # tags that are open and hold no words
        self.feed(path.read_text(encoding="utf-8"))

    def handle_data(self, data):
        if not self.unread:
            self.words.append(data)

    def handle_endtag(self, tag):
        if tag in self.unread:
            del self.unread[len(self.unread) - 1 - self.unread[::-1].index(tag) :]

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        is_formula = "math" in attributes.get("class", "").split()
        if (self.unread and tag == self.unread[-1]) or tag in ("pre", "code", "script", "style", "title") or is_formula:
            self.unread.append(tag)
        if "id" in attributes:
            self.anchors.add(attributes["id"])
        if tag == "img":
            self.pictures.append((attributes.get("src", ""), attributes.get("alt")))
        if tag in ("script", "img", "iframe", "source", "video") and attributes.get("src"):
            self.resources.append(attributes["src"])
        if tag == "link" and attributes.get("rel") != "canonical" and attributes.get("href"):
            self.resources.append(attributes["href"])
        if tag == "a" and attributes.get("href"):
            self.links.append(attributes["href"])


ROLES = (
    "glue cite doc numref ref eq term math download sub sup abbr note tip warning admonition figure image list-table"
)
RAW = {
    "a role": rf"\{{(?:{ROLES.replace(' ', '|')})(?::\w+)*\}}",
    "a fence": r":::|```|~~~",
    "a backtick": r"`",
    "bold or a link": r"\*\*|\]\(",
    "a formula": r"\$\$|\\\(|\$[^$\s][^$]*\$",
    "a directive's option": r"^:[a-z-]+: ",
}


def raw_markup(page):
    """Markup that a page shows instead of what it means: kind and surroundings."""
    text = "".join(page.words)
    found = [(kind, match) for kind, pattern in RAW.items() for match in re.finditer(pattern, text, re.MULTILINE)]
    return [(kind, text[max(0, match.start() - 40) : match.end() + 40]) for kind, match in found]


@pytest.mark.parametrize(
    ("html", "kinds"),
    [
        ("<p>All is <code>`well`</code> <pre>```{note}</pre> <span class='math notranslate'>\\(x\\)</span>.</p>", []),
        ("<pre>one <span>`a`</span> two</pre><p>well</p>", []),
        ("<p>Of {glue:text}`x` the</p>", ["a backtick", "a role"]),
        ("<p>See {numref}fig</p>", ["a role"]),
        ("<p>The set {edge2d}, {curvature, denoise}</p>", []),
        ("<code>x</code> is `y", ["a backtick"]),
        ("<p>:::</p>", ["a fence"]),
        ("<p>**0.26**, of</p>", ["bold or a link"]),
        ("<p>[text](page)</p>", ["bold or a link"]),
        ("<p>It is $x^2$ here</p>", ["a formula"]),
        ("<p>It costs $5.</p>", []),
        ("<p>:class: tip</p>", ["a directive's option"]),
    ],
)
def test_raw_markup_is_found(tmp_path, html, kinds):
    (tmp_path / "page.html").write_text(html)
    assert sorted({kind for kind, _ in raw_markup(Page(tmp_path / "page.html"))}) == kinds


@pytest.fixture(scope="module")
def smoke():
    """Folder of the smoke book, run and built from this checkout with warnings as errors."""
    runner.run("smoke", strict=True)
    assemble("smoke")
    return build("smoke").parent


@pytest.fixture(scope="module")
def pages(smoke):
    return {path: Page(path) for path in smoke.glob("*.html")}


def test_no_page_shows_raw_markup(pages):
    found = {path.name: raw_markup(page) for path, page in pages.items()}
    assert {name: raw for name, raw in found.items() if raw} == {}


def printed(cell):
    """What a cell prints, or the text of its value, however it is cut into pieces."""
    parts = [output.get("text") or output.get("data", {}).get("text/plain", "") for output in cell["outputs"]]
    return "".join("".join(part) for part in parts).strip()


def test_outputs_that_must_not_change(smoke):
    """The cells tagged nbval-check-output print in the smoke book what the notebooks keep."""
    count = 0
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        kept = json.loads(path.read_text(encoding="utf-8"))["cells"]
        made = json.loads((smoke.parent / "notebooks" / path.name).read_text(encoding="utf-8"))["cells"]
        made = [cell for cell in made if "injected-parameters" not in cell["metadata"].get("tags", [])]
        for cell, again in zip(kept, made, strict=True):
            if "nbval-check-output" in cell["metadata"].get("tags", []):
                assert printed(again) == printed(cell), f"{path.stem}: {''.join(cell['source'])}"
                count += 1
    assert count >= 10


def test_smoke_book_has_every_chapter(pages):
    names = {path.name for path in pages}
    assert {"index.html", "intro.html"} <= names
    assert {path.stem + ".html" for path in (ROOT / "notebooks").glob("*.ipynb")} <= names


def test_second_smoke_run_runs_nothing(smoke):
    assert runner.run("smoke") == []


def test_every_picture_exists_and_has_alternative_text(pages):
    count = 0
    for path, page in pages.items():
        for source, alternative in page.pictures:
            assert alternative and not alternative.startswith("_images"), f"{path.name}: {source} has no text"
            assert source.startswith("data:") or (path.parent / unquote(urlsplit(source).path)).is_file(), source
            count += 1
    assert count >= 4


def test_pages_load_nothing_from_elsewhere(pages):
    for path, page in pages.items():
        for resource in page.resources:
            address = urlsplit(resource)
            assert address.scheme in ("", "data") and not address.netloc, f"{path.name} loads {resource}"
            if not address.scheme and address.path:  # "#" is the page itself
                assert (path.parent / unquote(address.path)).is_file(), (
                    f"{path.name} loads {resource}, which is missing"
                )
        text = path.read_text(encoding="utf-8")
        for host in ("unpkg.com", "jsdelivr", "cdnjs"):
            assert host not in text, f"{path.name} names {host}"


def test_links_within_the_book_lead_somewhere(pages):
    for path, page in pages.items():
        for link in page.links:
            address = urlsplit(link)
            if address.scheme or address.netloc:
                continue
            target = path.parent / unquote(address.path) if address.path else path
            assert target.is_file(), f"{path.name} links to {link}"
            if address.fragment and target in pages:
                assert unquote(address.fragment) in pages[target].anchors, f"{path.name} links to {link}"


def test_warnings_are_errors(root):
    (root / "book").mkdir()
    (root / "_config.yml").write_text((ROOT / "_config.yml").read_text())
    (root / "book" / "_toc.yml").write_text("format: jb-book\nroot: intro\n")
    (root / "book" / "references.bib").write_text("")
    (root / "book" / "intro.md").write_text("# Title\n\nSee {numref}`no-such-figure`.\n")
    assemble("smoke", root)
    with pytest.raises(profiles.BookError, match=r"intro\.md.*WARNING.*no-such-figure"):
        build("smoke", root)
    (root / "book" / "intro.md").write_text("# Title\n\nAll is well: $x^2$.\n")
    assemble("smoke", root)
    assert "All is well" in (build("smoke", root).parent / "intro.html").read_text()
