"""The reader's own task: a source that knows the target leads, noise cannot be told from chance, files are written."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from support import probe, rank, zoo


@pytest.fixture(scope="module")
def rooms():
    return probe.load("rooms", n_images=30, size=64, seed=1)


@pytest.fixture(scope="module")
def ranked(rooms):
    sources = [zoo.load(f"bank:{name}") for name in ("edge2d", "rgb2sfnorm", "rgb2mist")]
    return rank.table(rank.evidence(rooms, sources, zoo.load("bank:rgb2depth"), device="cpu"))


def test_the_nearest_task_leads_and_all_numbers_are_in_their_order(ranked):
    assert ranked.index[0] == "rgb2mist" and ranked.verdict.iloc[0] == "best"
    assert (ranked.low <= ranked.score).all() and (ranked.score <= ranked.high).all()
    assert ranked.score.is_monotonic_decreasing
    assert (ranked.chance < ranked.score).all()
    assert ranked.verdict["edge2d"] == "not told from chance"  # it explains no more than the mean does
    assert ranked.verdict["rgb2sfnorm"] == "behind the best" and (ranked.behind_low[1:] > 0).all()
    assert ranked.untrained.notna().all()


def test_the_score_is_predictivity(rooms, ranked):
    from support import passes, similarity

    reps = passes.representations([zoo.load("bank:edge2d"), zoo.load("bank:rgb2depth")], rooms, "cpu")
    assert ranked.score["edge2d"] == pytest.approx(similarity.predictivity(*reps.values()), abs=1e-9)


def test_labels_that_have_nothing_to_do_with_the_images_cannot_be_told_from_chance(rooms):
    labels = np.random.default_rng(0).normal(size=(30, 1))
    found = rank.table(rank.evidence(rooms, [zoo.load("bank:edge2d")], labels, device="cpu"))
    assert found.verdict.tolist() == ["not told from chance"]
    assert "says nothing" in rank.conclusion(found)


def test_labels_that_the_source_holds_are_found(rooms):
    from support import passes

    values = passes.representations([zoo.load("bank:rgb2depth")], rooms, "cpu")["rgb2depth"].mean((2, 3))
    labels = values[:, :2] @ [[3.0], [-1.0]]
    found = rank.table(rank.evidence(rooms, [zoo.load("bank:rgb2depth")], labels, device="cpu"))
    assert found.score.iloc[0] > 0.95 and found.verdict.iloc[0] == "best"
    assert rank.conclusion(found).startswith("Start from rgb2depth")


def test_a_source_that_leads_by_chance_is_not_the_best():
    rng = np.random.default_rng(0)
    lucky = rank.Evidence(rng.uniform(0, 1.6, (20, 1)), np.ones((20, 1)), np.array([0.5]), np.nan)
    sure = rank.Evidence(np.full((20, 1), 0.95), np.ones((20, 1)), np.array([-0.1]), np.nan)
    worse = rank.Evidence(np.full((20, 1), 1.2), np.ones((20, 1)), np.array([-0.9]), np.nan)
    found = rank.table({"lucky": lucky, "sure": sure, "worse": worse})
    assert found.index[0] == "lucky"
    assert found.verdict.to_dict() == {
        "lucky": "not told from chance",
        "sure": "best",
        "worse": "not told from chance",
    }
    assert rank.conclusion(found).startswith("Start from sure")


def test_what_may_be_concluded():
    rows = {"score": [0.5, 0.45, 0.2], "untrained": [0.1, 0.6, 0.1]}
    rows["verdict"] = ["best", "not told from the best", "behind the best"]
    said = rank.conclusion(pd.DataFrame(rows, index=["a", "b", "c"]))
    assert said.startswith("Start from a. These cannot be told from it with so few images: b.")
    assert "predicted as well from b" in said
    rows["verdict"][1] = "behind the best"
    assert "ahead of all other sources" in rank.conclusion(pd.DataFrame(rows, index=["a", "b", "c"]))


@pytest.fixture
def folder(tmp_path, rooms):
    (tmp_path / "images").mkdir()
    for number, image in enumerate(rooms.values[:12]):
        Image.fromarray((image * 255).astype(np.uint8)).save(tmp_path / "images" / f"{number:02d}.png")
    return tmp_path


def test_the_command_writes_a_table_a_picture_and_a_sentence(folder, capsys):
    options = [
        "--images",
        str(folder / "images"),
        "--network",
        "bank:rgb2depth",
        "--networks",
        "bank:edge2d bank:rgb2mist",
    ]
    rank.main([*options, "--pixels", "64", "--out", str(folder / "out"), "--device", "cpu"])
    written = pd.read_csv(folder / "out" / "rank.csv")
    assert sorted(written.source) == ["edge2d", "rgb2mist"]
    assert Image.open(folder / "out" / "rank.png").width > 500
    said = capsys.readouterr().out
    assert "Start from" in said or "says nothing" in said
    table = "file,label\n" + "".join(f"{n:02d}.png,{'ab'[n % 2]}\n" for n in range(12))
    (folder / "labels.csv").write_text(table)
    options[2:4] = ["--labels", str(folder / "labels.csv")]
    rank.main([*options, "--pixels", "64", "--out", str(folder / "by_label"), "--device", "cpu"])
    assert len(pd.read_csv(folder / "by_label" / "rank.csv")) == 2


def test_the_command_takes_the_habits_of_a_network(folder):
    code = "from torch import nn\n\n\ndef make():\n"
    code += "    return nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Conv2d(4, 1, 1))\n"
    (folder / "mine.py").write_text(code)
    options = ["--images", str(folder / "images"), "--network", f"python:{folder / 'mine.py'}:make", "--pixels", "32"]
    options += ["--networks", "bank:edge2d", "--out", str(folder / "out"), "--device", "cpu"]
    scores = []
    for habits in (["--size", "32", "--mean", "0", "--std", "1"], ["--size", "32", "--mean", "9", "9", "9"]):
        rank.main([*options, *habits])
        scores.append(pd.read_csv(folder / "out" / "rank.csv").score[0])
    assert scores[0] != scores[1]
    with pytest.raises(SystemExit, match="error: .*mean has 2 values, expected 1 or 3"):
        rank.main([*options, "--mean", "0.5", "0.5"])


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("file,label\n", "no label for 12 of 12 images, .*png for one"),
        ("name,label\na,b\n", "has the columns name, label: file and label are needed"),
        ("file,label\n00.png,a\n00.png,b\n", "names 00.png more than once"),
        ("file,label\n" + "".join(f"{n:02d}.png,a\n" for n in range(12)), "all images have the label a"),
        ("", "cannot be read as a table"),
    ],
)
def test_labels_that_cannot_be_used_are_said(folder, table, message):
    (folder / "labels.csv").write_text(table)
    with pytest.raises(ValueError, match=message):
        rank.read_labels(folder / "labels.csv", [f"{n:02d}.png" for n in range(12)])


def test_the_command_says_what_is_missing(folder, capsys):
    with pytest.raises(SystemExit):
        rank.main(["--images", str(folder / "images"), "--out", str(folder / "out")])
    assert "--network" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        rank.main(["--images", str(folder), "--network", "bank:edge2d", "--out", str(folder / "images" / "out")])
    assert "lies inside" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="error: .*hedgehog"):
        rank.main(["--images", str(folder / "images"), "--network", "package:hedgehog", "--out", str(folder / "out")])
