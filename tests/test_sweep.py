"""A sweep: one notebook, several values, one page."""

import re
from pathlib import Path

import pytest
from test_book import write_notebook, write_profiles

from support import book
from support.profiles import BookError
from support.sweep import sweep

ROOT = Path(__file__).resolve().parents[1]
SAYS = "from support.notebook import say\nsay('Scale times two is **{x:.1f}**.', x=2 * scale)"
TABLE = "import pandas as pd\npd.DataFrame({'method': [method]})"
FIGURE = "import matplotlib.pyplot as plt\nplt.plot([0, scale])\nplt.show()"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A small repository with one notebook that displays a sentence, a table, a figure and what does not change."""
    root = tmp_path_factory.mktemp("repository")
    cells = [SAYS, TABLE, FIGURE, SAYS.replace("2 * scale", "7"), "print(results)"]
    parameters = 'method = "saliency"  # of attribution\nscale = 0.5  # of the map\nresults = ""  # folder\n'
    write_notebook(root / "notebooks" / "01_one.ipynb", *cells, parameters=parameters)
    write_profiles(root, "smoke: {}")
    (root / "requirements.lock").write_text("torch==2.13.0\n")
    (root / "book").mkdir()
    (root / "book" / "intro.md").write_text("# Not in the sweep\n")
    (root / "book" / "references.bib").write_text("")
    (root / "_config.yml").write_text((ROOT / "_config.yml").read_text())
    return root


def test_page_shows_the_runs_side_by_side(root, capsys):
    page = sweep("scale", [0.5, 1.5, 1.5], "smoke", root, only=["01_one"]).with_name("sweep.html")
    text = re.sub(r"\s+", " ", page.read_text())
    assert capsys.readouterr().out.count("runs now") == 2, "the same value is one run"
    assert text.count("<strong>scale = 0.5</strong>") == text.count("<strong>scale = 1.5</strong>") == 2
    said = [text.index(f"Scale times two is <strong>{x}</strong>") for x in ("1.0", "3.0", "7.0")]
    assert said == sorted(said)
    assert text.count("saliency</td>") == 1 and text.count("<strong>7.0</strong>") == 1, "what is the same stands once"
    pictures = re.findall(r'<img alt="[^"]*" src="(_images/[^"]+)"', text)
    assert len(set(pictures)) == 2 and all((page.parent / picture).is_file() for picture in pictures)
    assert "book/_build/smoke/results" not in text and not (root / "book" / "_build" / "smoke" / "results").exists()


def test_what_has_run_does_not_run_again_and_old_runs_go(root, capsys):
    sweep("scale", [1.5, 2.5], "smoke", root, only=["01_one"])
    assert capsys.readouterr().out.splitlines()[0] == "[2/2] 01_one with scale = 2.5 runs now"
    assert len(list((root / "book" / "_build" / "smoke" / "sweep").glob("*.ipynb"))) == 2


@pytest.mark.parametrize(
    ("name", "values", "only", "said"),
    [
        ("scale", [1.5], ["01_one"], "at least two values"),
        ("scale", [], ["01_one"], "at least two values"),
        ("scale", [1.5, 2.5], None, "needs one notebook"),
        ("scale", [1.5, 2.5], ["01_one", "02_two"], "needs one notebook"),
        ("scale", [1.5, 2.5], ["02_two"], "no notebook '02_two' with a parameter 'scale'"),
        ("scala", [1.5, 2.5], ["01_one"], "no notebook has a parameter 'scala'; did you mean 'scale'"),
        ("scale", [1.5, "much"], ["01_one"], "'scale' must be a float"),
    ],
)
def test_a_wrong_sweep_runs_nothing(root, name, values, only, said, monkeypatch):
    monkeypatch.setattr("support.sweep.execute", lambda *arguments: pytest.fail("it ran"))
    with pytest.raises(BookError, match=said):
        sweep(name, values, "smoke", root, only=only, force=True)


def test_command_line(root, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(book, "ROOT", root)
    monkeypatch.setattr(book, "sweep", lambda *arguments, **_: asked.append(arguments) or root / "page.html")
    for text in ("scale=1.5,2.5", "method=saliency,gradient", "scale"):
        book.main(["--profile", "smoke", "--only", "01_one", "--sweep", text])
    names = [("scale", [1.5, 2.5], "smoke"), ("method", ["saliency", "gradient"], "smoke"), ("scale", [], "smoke")]
    assert asked == names
    assert (root / "page.html").as_uri() in capsys.readouterr().out
