"""CONTRIBUTING.md: its recipes run as they are written, from outside, and what they add is found everywhere."""

import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
import yaml
from install import requirements
from torch import nn

from support import attribution, figures, methods, oracle, ranking, similarity, zoo
from support.chapters import evaluation

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
RECIPES = dict(re.findall(r"### ([^\n]+)\n[^#]*?```python\n(.*?)```", TEXT, re.DOTALL))
MOST_LINES = 15


@pytest.fixture(autouse=True)
def tables_as_before():
    """What a recipe adds is gone after the test."""
    tables = (methods.TABLE, similarity.METHODS, zoo.SOURCES, oracle.ORACLES)
    before = [dict(table) for table in tables]
    yield
    for table, entries in zip(tables, before, strict=True):
        table.clear()
        table.update(entries)


@pytest.fixture(scope="module")
def encoders():
    networks = []
    for seed in range(3):
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
        networks.append(zoo.Encoder(f"toy{seed}", network, task="none", family="one layer", input_size=(16, 16)))
    return networks


@pytest.fixture(scope="module")
def images():
    values = np.random.default_rng(0).random((6, 16, 16, 3), np.float32)
    coordinates = {"image": np.arange(6), "channel": ["red", "green", "blue"]}
    return xr.DataArray(values, coordinates, ("image", "y", "x", "channel"))


def follow(recipe):
    """Run a recipe; the names that it leaves."""
    names = {}
    exec(compile(RECIPES[recipe], recipe, "exec"), names)
    return names


def test_every_recipe_is_short():
    assert list(RECIPES) == [
        "An attribution method",
        "A similarity of representations",
        "A source of networks",
        "An oracle",
    ]
    for recipe, code in RECIPES.items():
        assert len([line for line in code.splitlines() if line.strip()]) <= MOST_LINES, recipe


def test_a_method_is_found_everywhere(encoders, images):
    assert "absolute_product" not in attribution.METHODS
    follow("An attribution method")
    assert "absolute_product" in attribution.METHODS and "absolute_product" not in attribution.PUBLISHED
    maps = attribution.attribute(
        encoders, images, ["gradient_x_input", "absolute_product"], channels="keep", progress=False
    )
    new, old = maps.sel(attribution="absolute_product"), maps.sel(attribution="gradient_x_input")
    np.testing.assert_array_equal(new.values, abs(old.values))
    drawn = figures.map_grid(images[:1], maps.isel(image=[0], channel=0))
    assert "|gradient × input|" in [ax.get_ylabel() for ax in drawn.axes]
    assert figures.METHOD_TITLES["absolute_product"] == "|gradient × input|"
    found = evaluation.affinities(encoders, images, ["saliency", "absolute_product"], progress=False)
    assert found.score.values.tolist() == ["saliency", "absolute_product"] and (found >= 0).all()


def test_a_similarity_is_found_everywhere(encoders, images):
    follow("A similarity of representations")
    found = evaluation.with_chance(encoders, images, ["cka", "lengths"], progress=False)
    by_hand = [np.linalg.norm(encoder.represent(encoder.preprocess(images)).flatten(1), axis=1) for encoder in encoders]
    mine = found.sel(level="affinity", score="lengths")
    np.testing.assert_allclose(mine, np.corrcoef(by_hand), atol=1e-5)
    assert not np.allclose(found.sel(level="chance", score="lengths"), mine)
    assert similarity.METHODS["lengths"].title == "lengths"


def test_a_source_is_found_everywhere(images):
    names = follow("A source of networks")
    encoder = zoo.load("layer:5")
    assert encoder.represent(encoder.preprocess(images)).shape == (6, 5, 30, 30)
    with pytest.raises(ValueError, match="layer"):
        zoo.load("layr:5")
    zoo.SOURCES["layer"] = zoo.Source("untrained layers", names["layer"], lambda: {"5": ("none", "one layer")})
    assert "layer:5" in zoo.available().name.to_list()


def test_an_oracle_is_found_everywhere():
    follow("An oracle")
    truth = oracle.load("alphabet")
    assert ranking.precision_at_k(truth, truth, k=1, n_relevant=1) == 1
    with pytest.raises(ValueError, match="alphabet"):
        oracle.load("alphabt")


# Habits


def test_pre_commit_has_the_lock_s_ruff():
    (ruff,) = [entry.split()[0] for entry in requirements(str(ROOT)) if entry.startswith("ruff==")]
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [hook["rev"] for hook in hooks] == ["v" + ruff.removeprefix("ruff==")]


def test_changelog_has_this_version_and_what_comes():
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert headings[:2] == ["Unreleased", version]


def test_templates_are_complete():
    """Every form of an issue asks for something, and what it asks for is explained."""
    forms = [path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config"]
    assert len(forms) >= 2
    for path in forms:
        form = yaml.safe_load(path.read_text())
        assert form["name"] and form["description"] and form["body"], path.name
        for field in form["body"]:
            assert field["type"] in ("textarea", "input") and field["attributes"]["description"], path.name
    assert "make test" in (ROOT / ".github" / "PULL_REQUEST_TEMPLATE.md").read_text()
