"""The page "The paper, item by item": nothing of the paper is missing, every link leads somewhere."""

import csv
import json
import re
from pathlib import Path

import pandas as pd
import pytest

from support import notebook, oracle, ranking
from support.chapters import claims

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "book" / "paper.md").read_text(encoding="utf-8")
SECTIONS = ["3.1", "3.2", "3.3", "3.4", "4.1", "4.2.1", "4.2.2", "4.2.3", "4.3"]


def items():
    with open(ROOT / "data" / "paper_items.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def rows():
    """Section, and the four cells of each row, of the tables with a column "item"."""
    section, found, inside = None, [], False
    for line in PAGE.splitlines():
        if line.startswith("## Section "):
            section = re.match(r"## Section ([\d.]+):", line)[1]
        if not line.startswith("|"):
            inside = False
        elif line == "| item | where | found | what differs |":
            inside = True
        elif inside and not line.startswith("|---"):
            found.append((section, *(cell.strip() for cell in line.strip("|").split(" | "))))
    return found


def chapters():
    """Source of every cell of every notebook, by its stem."""
    paths = sorted((ROOT / "notebooks").glob("*.ipynb"))
    return {
        path.stem: ["".join(cell["source"]) for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]]
        for path in paths
    }


def test_no_item_of_the_list_is_missing_and_their_order_is_the_papers():
    assert [(section, item) for section, item, *_ in rows()] == [(row["section"], row["item"]) for row in items()]
    assert list(dict.fromkeys(row["section"] for row in items())) == SECTIONS
    assert len({row["item"] for row in items()}) == len(items())
    kinds = {"definition", "equation", "table", "figure", "footnote", "experiment", "number"}
    assert {row["kind"] for row in items()} == kinds


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("figure", ["Figure 1", *["Figure 2"], *["Figure 3"] * 3, *["Figure 4"] * 3, "Figure 5"]),
        ("table", ["Table 1"]),
        ("footnote", [f"Footnote {number}" for number in (1, 2, 3, 4, 5)]),
    ],
)
def test_every_numbered_thing_of_the_paper_is_listed(kind, wanted):
    names = [re.match(r"(\w+ \d)", row["item"])[1] for row in items() if row["kind"] == kind]
    assert names == wanted


def test_every_row_says_where_and_has_four_cells():
    for row in rows():
        assert len(row) == 5 and all(row[1:]), row
        assert "{" in row[2] or row[2].startswith("The drawing"), f"{row[1]}: no link"


def test_every_link_leads_somewhere():
    cells = chapters()
    text = PAGE + "\n".join("\n".join(sources) for sources in cells.values())
    pages = {path.stem for path in (ROOT / "book").glob("*.md")} | set(cells)
    figures = set()
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            figures.add(cell["metadata"].get("mystnb", {}).get("figure", {}).get("name"))
    known = {
        "doc": pages,
        "numref": figures,
        "eq": set(re.findall(r"^\$\$ \((eq-[\w-]+)\)", text, re.MULTILINE)),
        "ref": set(re.findall(r"^\(([\w-]+)\)=$", text, re.MULTILINE)),
    }
    links = re.findall(r"\{(doc|numref|eq|ref)\}`(?:[^`<]*<)?([^`>]+)>?`", PAGE)
    assert len(links) > 60
    for role, target in links:
        assert target in known[role], f"{role} {target}"


def test_every_number_of_a_run_is_left_by_a_chapter():
    cells = chapters()
    left = "\n".join(source for sources in cells.values() for source in sources)
    left += Path(claims.__file__).read_text(encoding="utf-8")
    names = notebook.LEFT_HERE.findall(PAGE)
    assert len(names) > 20
    for name in names:
        assert f'"{re.sub(", by (P@5|Spearman)$", "", name)}' in left, name
    assert sum("notebook.leave(" in source for sources in cells.values() for source in sources) >= 3


def test_numbers_that_need_no_run_are_computed_again():
    places = oracle.mean_priority(oracle.load("taskonomy"))
    for task, value in re.findall(r"(curvature|edge3d|vanishing_point) \((\d+\.\d\d)\)", PAGE):
        assert f"{float(places.sel(source=task)):.2f}" == value
    assert f"Colorization has {float(places.sel(source='colorization')):.2f}" in PAGE
    curves = pd.read_csv(oracle.DATA / "taskonomy" / "published_precision.csv")
    third = curves.query("method == 'epsilon_lrp' and k == 3")
    shares = {row.probe: round(row.precision * 54) / 54 for row in third.itertuples()}  # three of eighteen targets
    assert f"{shares['coco']:.2f}"[1:] + " for COCO" in PAGE and f"{shares['indoor']:.2f}"[1:] + " for indoor" in PAGE
    assert f"5/19 = {ranking.chance(19, 5):.2f}" in PAGE
    group = claims.second_group()["load"]
    words = {9: "Nine", 1: "one"}
    assert f"{words[group.str.startswith(('torchvision:', 'timm:')).sum()]} load by a name" in PAGE
    assert f"For {words[(group == '').sum()]} nothing is known" in PAGE


def test_the_passage_that_knew_no_text_is_gone():
    for path in [*(ROOT / "notebooks").glob("*.ipynb"), *(ROOT / "book").glob("*.md"), ROOT / "README.md"]:
        assert "not lie before" not in path.read_text(encoding="utf-8"), path.name
