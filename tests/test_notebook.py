import math
import re
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from nbclient import NotebookClient
from nbformat import v4

from support import notebook, ranking
from support.pages import assemble


def test_a_sentence_shows_its_values_as_text_and_as_markdown(capsys):
    notebook.say("Chance is **{chance:.2f}**, {who}.", chance=5 / 19, who="by hand")
    assert capsys.readouterr().out == "Chance is **0.26**, by hand.\n"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_missing_number_is_no_finding(value):
    with pytest.raises(ValueError, match="chance is"):
        notebook.say("{chance:.2f}", chance=value)


def test_every_value_is_said_and_every_name_has_a_value():
    with pytest.raises(ValueError, match="does not say b"):
        notebook.say("{a}", a=1, b=2)
    with pytest.raises(KeyError, match="a"):
        notebook.say("{a}")


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [(0.3, 0.5, "above"), (0.1, 0.2, "below"), (0.2, 0.3, "not surely different from"), (0.26, 0.3, "above")]
    + [(0.25, 0.3, "not surely different from"), (0.2, 0.25, "not surely different from")],
)
def test_an_interval_is_compared_in_words(low, high, word):
    interval = ranking.Interval((low + high) / 2, low, high)
    assert notebook.compared(interval, to=0.25) == word
    other = notebook.compared(interval, to=0.25, above="better", below="worse", undecided="alike")
    assert other == {"above": "better", "below": "worse", "not surely different from": "alike"}[word]


@pytest.mark.parametrize(
    ("low", "high", "to"), [(float("nan"), 1, 0), (0, float("inf"), 0), (1, 0, 0), (0, 1, math.nan)]
)
def test_what_is_no_interval_is_not_compared(low, high, to):
    with pytest.raises(ValueError, match="two finite bounds"):
        notebook.compared(ranking.Interval(0.5, low, high), to)


def test_a_table_has_number_caption_formats_and_an_anchor():
    frame = pd.DataFrame({"share": [0.5], "seconds": [1234.567], "name": ["a<b"], "empty": [float("nan")]}, index=["x"])
    page = notebook.table(frame, "Table 3.2. Two numbers.", digits=1, formats={"share": "{:.0%}"}).to_html()
    assert re.search(r"<caption>Table 3\.2\. Two numbers\.</caption>", page)
    assert 'id="T_table-3-2" class="dataframe"' in page
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", page)
    assert cells == ["50%", "1,234.6", "a&lt;b", "–"]


def test_a_table_of_a_series_and_of_a_styler():
    series = pd.Series({"a": 0.123}, name="value")
    assert ">0.1230<" in notebook.table(series, "Table 1.1. One.", digits=4).to_html()
    styler = series.to_frame().style.format("{:.1%}")
    page = notebook.table(styler, "Table 1.1. One.").to_html()
    assert ">12.3%<" in page and "<caption>Table 1.1. One.</caption>" in page


@pytest.mark.parametrize("caption", ["Neighbours.", "Table 4. Neighbours.", "Table 4.1.", "table 4.1. Neighbours."])
def test_a_table_without_a_number_is_refused(caption):
    with pytest.raises(ValueError, match="begins with the number"):
        notebook.table(pd.DataFrame(), caption)


def test_a_finding_is_read_in_its_chapter_and_collected_for_the_first_page(tmp_path):
    said = 'notebook.finding("Near?", "Yes, {n} pairs.", "{share:.0%} | all", n=3, share=0.2)'
    paths = []
    for name, source in {"04_space": said, "05_bank": "1 + 1", "06_oracle": said.replace("Near", "Far")}.items():
        cells = [v4.new_code_cell("from support import notebook"), v4.new_code_cell(source)]
        content = v4.new_notebook(cells=cells)
        NotebookClient(content, resources={"metadata": {"path": Path(__file__).parents[1]}}).execute()
        paths.append(tmp_path / f"{name}.ipynb")
        nbformat.write(content, paths[-1])
    (output,) = nbformat.read(paths[0], 4).cells[1].outputs
    assert output.data["text/markdown"] == output.data["text/plain"] == "> **Near?** Yes, 3 pairs. (20% | all)"
    assert notebook.findings(paths).splitlines() == [
        "| question | answer | number | chapter |",
        "|---|---|---|---|",
        "| Near? | Yes, 3 pairs. | 20% \\| all | {doc}`04_space` |",
        "| Far? | Yes, 3 pairs. | 20% \\| all | {doc}`06_oracle` |",
    ]
    assert notebook.findings(paths[1:2]) == ""


def test_a_finding_says_all_its_values_and_only_finite_ones():
    with pytest.raises(ValueError, match="does not say b"):
        notebook.finding("Q?", "{a}", "1", a=1, b=2)
    with pytest.raises(ValueError, match="p is nan"):
        notebook.finding("Q?", "Yes.", "{p:.2f}", p=float("nan"))


def test_the_first_page_gets_the_table(tmp_path):
    made = tmp_path / "book" / "_build" / "smoke" / "notebooks"
    made.mkdir(parents=True)
    data = {notebook.FINDING: {"question": "Near?", "answer": "Yes.", "number": "3"}, "text/plain": "Yes."}
    cell = v4.new_code_cell("1", outputs=[v4.new_output("display_data", data)])
    nbformat.write(v4.new_notebook(cells=[cell]), made / "04_space.ipynb")
    (tmp_path / "book" / "intro.md").write_text(f"# Title\n\n{notebook.FINDINGS_HERE}\n\nAfter.\n")
    page = (assemble("smoke", tmp_path) / "intro.md").read_text()
    assert "| Near? | Yes. | 3 | {doc}`04_space` |\n\nAfter." in page and notebook.FINDINGS_HERE not in page
    assert notebook.FINDINGS_HERE in (tmp_path / "book" / "intro.md").read_text()


def test_what_a_chapter_leaves_is_put_into_a_page(tmp_path):
    said = 'notebook.leave({"popularity": "holds | 0.54", "other": "no"})'
    cells = [v4.new_code_cell("from support import notebook"), v4.new_code_cell(said)]
    content = v4.new_notebook(cells=cells)
    NotebookClient(content, resources={"metadata": {"path": Path(__file__).parents[1]}}).execute()
    made = tmp_path / "book" / "_build" / "smoke" / "notebooks"
    made.mkdir(parents=True)
    nbformat.write(content, made / "11_claims.ipynb")
    page = "| a | <!-- found: popularity --> | <!-- found: other -->. <!-- found: nobody -->. |\n"
    (tmp_path / "book" / "paper.md").write_text(page)
    filled = (assemble("smoke", tmp_path) / "paper.md").read_text()
    assert filled == "| a | holds \\| 0.54 | no. not in this run. |\n"
    assert (tmp_path / "book" / "paper.md").read_text() == page
    with pytest.raises(ValueError, match="x: what is left for a page is one line"):
        notebook.leave({"x": "a\nb"})
