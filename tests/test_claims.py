"""Claims with known answers: the verdicts, the tally, and each yardstick where its value is known beforehand."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from support import oracle, ranking, zoo
from support.chapters import claims, evaluation
from support.ranking import Interval, Mantel

NAMES = list("abcdefgh")


def square(values, names=NAMES):
    return xr.DataArray(values, {"source": list(names), "target": list(names)}, ("source", "target"))


def random_symmetric(seed, names=NAMES):
    values = np.random.default_rng(seed).random((len(names), len(names)))
    return square(values + values.T, names)


@pytest.mark.parametrize(
    ("low", "high", "bounds", "verdict"),
    [
        (0.01, 0.2, {"low": 0}, claims.HOLDS),
        (0.0, 0.2, {"low": 0}, claims.UNDECIDED),  # a bound itself is not above it
        (-0.1, 0.2, {"low": 0}, claims.UNDECIDED),
        (-0.2, -0.1, {"low": 0}, claims.FAILS),
        (-0.2, 0.0, {"low": 0}, claims.FAILS),
        (-0.2, -0.1, {"high": 0}, claims.HOLDS),
        (0.1, 0.2, {"high": 0}, claims.FAILS),
        (-0.04, 0.04, {"low": -0.05, "high": 0.05}, claims.HOLDS),
        (-0.04, 0.06, {"low": -0.05, "high": 0.05}, claims.UNDECIDED),
        (0.06, 0.2, {"low": -0.05, "high": 0.05}, claims.FAILS),
    ],
)
def test_an_interval_is_judged_by_its_bounds(low, high, bounds, verdict):
    claim = claims.by_interval("x", "1", "difference", Interval((low + high) / 2, low, high), **bounds)
    assert claim.verdict == verdict and claim.interval.low == low and claim.evidence == "x"
    assert f"[{low:+.2f}, {high:+.2f}]" in claim.measured


def test_rules_say_their_bounds():
    interval = Interval(0, -1, 1)
    rules = [claims.by_interval("x", "1", "d", interval, **b).rule for b in ({"low": 0.5}, {"high": 2})]
    assert [rule.split(";")[0] for rule in rules] == ["the interval lies above 0.5", "the interval lies below 2"]
    assert "between -0.1 and 0.1" in claims.by_interval("x", "1", "d", interval, -0.1, 0.1).rule
    for bad in ({}, {"low": 1, "high": 0}):
        with pytest.raises(ValueError, match="x: the bounds are"):
            claims.by_interval("x", "1", "d", interval, **bad)


@pytest.mark.parametrize(
    ("p_values", "verdict"),
    [
        ([0.01, 0.04], claims.HOLDS),
        ([0.01, 0.05], claims.UNDECIDED),
        ([0.5, 0.97], claims.UNDECIDED),
        ([0.96, 0.97], claims.FAILS),
    ],
)
def test_tests_are_judged_by_all_their_p_values(p_values, verdict):
    assert claims.by_tests("x", "1", "c", [Mantel(0.3, p) for p in p_values]).verdict == verdict
    with pytest.raises(ValueError, match="no test"):
        claims.by_tests("x", "1", "c", [])


@pytest.mark.parametrize(
    ("number", "holds", "fails", "verdict"),
    [
        (101, 100, 10, claims.HOLDS),
        (100, 100, 10, claims.UNDECIDED),
        (9.9, 100, 10, claims.FAILS),
        (19, 20, 40, claims.HOLDS),
        (30, 20, 40, claims.UNDECIDED),
        (41, 20, 40, claims.FAILS),
    ],
)
def test_a_number_is_judged_in_both_directions(number, holds, fails, verdict):
    claim = claims.by_number("x", "1", "time", number, holds, fails, unit="hours")
    assert claim.verdict == verdict and ("below 20 hours" in claim.rule) == (holds == 20)
    for bad in ((float("nan"), 1, 2), (1, 2, 2)):
        with pytest.raises(ValueError, match="cannot be judged"):
            claims.by_number("x", "1", "time", *bad)


def test_evidence_is_counted_once_and_disagreement_is_said():
    def made(claim, low, evidence=""):
        return claims.by_interval(claim, "1", "d", Interval(low + 0.1, low, low + 0.2), 0, evidence=evidence)

    every = [made("a", 0.1), made("b", 0.1, "maps"), made("c", 0.2, "maps"), made("d", -0.1), made("e", -0.5)]
    assert claims.tally(every) == {claims.HOLDS: 2, claims.UNDECIDED: 1, claims.FAILS: 1, claims.DIVIDED: 0}
    every.append(made("f", -0.5, "maps"))
    assert claims.tally(every) == {claims.HOLDS: 1, claims.UNDECIDED: 1, claims.FAILS: 1, claims.DIVIDED: 1}
    assert claims.table(every).index.tolist() == list("abcdef")
    assert claims.table(every).columns.tolist() == ["section", "verdict", "measured", "rule"]


def test_an_oracle_judged_by_itself_is_perfect_and_by_another_it_is_not():
    truths = evaluation.truths([0, 1])
    itself = claims.of_oracles(lambda number: truths[number], truths)
    assert (itself == 1).all() and itself.bank.values.tolist() == [0, 1]
    another = claims.of_oracles(lambda number: truths[number - 1], truths)
    assert another.sel(measure="P@5").mean() < 0.99 and another.sel(measure="Spearman").max() < 1
    expected = ranking.precision_at_k(truths.sel(bank=1, drop=True), truths.sel(bank=0, drop=True), k=5)
    assert another.sel(measure="P@5", bank=0).mean() == pytest.approx(expected)


def test_darker_rows_where_the_answer_is_known():
    rng = np.random.default_rng(0)
    size = np.arange(len(NAMES))[::-1].astype(float)  # "a" is most alike to all, and the best source of all
    correlation = square(np.add.outer(size, size))
    truth = square(np.broadcast_to(size[:, None], (8, 8)).copy())
    result = claims.darker_rows(correlation, truth)
    assert result.correlation == pytest.approx(1) and result.p_value < 0.001
    turned = claims.darker_rows(correlation, -truth)
    assert turned.correlation == pytest.approx(-1) and turned.p_value > 0.999
    order = rng.permutation(8)
    assert claims.darker_rows(correlation[order][:, order], truth) == result  # names count, not places
    with pytest.raises(ValueError, match="different networks"):
        claims.darker_rows(correlation[:5, :5], truth)


def test_darker_rows_have_a_p_value_that_is_one():
    p_values = [
        claims.darker_rows(random_symmetric(seed), random_symmetric(100 + seed), 99).p_value for seed in range(60)
    ]
    assert 0.3 < np.mean(p_values) < 0.7 and np.mean(np.array(p_values) <= 0.1) < 0.25


@pytest.mark.parametrize("name", ["taskonomy", "bank"])
def test_the_best_symmetric_matrix_is_symmetric_and_nearly_perfect(name):
    truth = oracle.load(name, seed=None if name == "taskonomy" else 0)
    found = claims.best_symmetric(truth)
    square = found.sel(source=truth.target.values).values
    np.testing.assert_allclose(square, square.T)
    assert ranking.precision_at_k(found, truth, k=5) > 0.98
    assert ranking.precision_at_k(found, truth, k=5) > ranking.precision_at_k(ranking.symmetrised(truth), truth, k=5)
    with pytest.raises(ValueError, match="one of the sources"):
        claims.best_symmetric(truth.drop_sel(source=truth.target.values[0]))


def test_what_the_diagonal_does():
    """Two matrices that have nothing to do with each other, all values near 0.2 but the diagonals."""
    names = [f"n{number}" for number in range(20)]
    near = [square(0.2 + 0.1 * random_symmetric(seed, names).values, names) for seed in (0, 1)]
    for matrix in near:
        np.fill_diagonal(matrix.values, 1)
    table = claims.diagonal(*near)
    alone, whole = table.loc["pairs alone"], table.loc["with the diagonal"]
    assert abs(alone["Pearson", "names dealt out anew"]) < 0.05
    assert whole["Pearson", "names dealt out anew"] > 0.9
    assert 0.05 < whole["Spearman", "names dealt out anew"] < 0.25  # twenty of four hundred places
    upper = np.triu_indices(20, 1)
    expected = np.corrcoef(near[0].values[upper], near[1].values[upper])[0, 1]
    assert alone["Pearson", "as they are"] == pytest.approx(expected)
    other = near[1][::-1, ::-1]
    pd.testing.assert_frame_equal(claims.diagonal(near[0], other), table)
    with pytest.raises(ValueError, match="different networks"):
        claims.diagonal(near[0], near[1][1:, 1:])


def test_the_mean_over_images_removes_what_single_images_add():
    truth = random_symmetric(3)
    rng = np.random.default_rng(4)
    noise = rng.normal(size=(400, 8, 8))
    cosines = (truth + xr.DataArray(noise, dims=("image", "source", "target"))).transpose("image", ...)
    measures = {"Spearman": evaluation.MEASURES["Spearman"]}
    together, alone = claims.aggregation(cosines, truth, measures)
    assert together.mean() > 0.9 and 0 < alone.mean() < 0.6
    one, same = claims.aggregation(xr.concat([truth] * 3, "image"), truth, measures)
    assert (one == 1).all() and (same == 1).all()


def test_a_contrast_is_a_difference_of_means_and_its_p_value_is_one():
    traits = pd.Series(list("aaaabbbb"))
    same = claims.same_trait(traits)
    assert same[0, 3] and not same[0, 4] and same.diagonal().all()
    apart = square(np.where(same, 0.8, 0.3))
    found = claims.contrast(apart, same, ~same)
    assert found.correlation == pytest.approx(0.5) and found.p_value < 0.05
    assert claims.contrast(-apart, same, ~same).p_value == 1
    p_values = [claims.contrast(random_symmetric(seed), same, ~same, 99).p_value for seed in range(60)]
    assert 0.3 < np.mean(p_values) < 0.7
    for bad in ((apart, same, same & False), (apart + square(np.arange(64).reshape(8, 8)), same, ~same)):
        with pytest.raises(ValueError, match="a contrast needs"):
            claims.contrast(*bad)


def test_costs_grow_with_the_units_and_not_with_the_maps():
    table = claims.costs((64, 4096), n_images=60, side=32, n_directions=5)
    assert table.index.tolist() == [64, 4096] and table["maps"].nunique() == 1
    assert table.loc[4096, "svcca"] > table.loc[64, "svcca"] > 0
    np.testing.assert_allclose(table["ratio"], table["svcca"] / table["maps"])


def test_mean_priority_is_that_of_the_footnote():
    """Numbers that the paper's text gives, and to which tasks they belong by its own formula."""
    found = oracle.mean_priority(oracle.load("taskonomy"))
    by_task = {"curvature": 5.39, "edge3d": 5.83, "vanishing_point": 14.17, "colorization": 11.72}
    assert {task: round(float(found.sel(source=task)), 2) for task in by_task} == by_task
    plain = oracle.priority(oracle.load("taskonomy")).mean("target")
    np.testing.assert_allclose(found.sel(source="curvature"), plain.sel(source="curvature") * 17 / 18)
    np.testing.assert_allclose(found.sel(source="colorization"), plain.sel(source="colorization"))
    assert oracle.mean_priority(square(np.ones((8, 8)))).values == pytest.approx(4 * 7 / 8)  # ties: all are fourth


def test_the_correlation_priority_curve_is_the_formula():
    truth = oracle.load("taskonomy")
    rho = random_symmetric(0, truth.source.values)
    places = oracle.priority(truth)
    curve = ranking.correlation_priority_curve(rho, truth, n=20)
    for p in (1, 7, 19):
        chosen = rho.sel(target=truth.target.values).values[places.values == p]
        assert len(chosen) == 18
        assert float(curve.sel(priority=p)) == pytest.approx(chosen.sum() / 20)
    np.testing.assert_allclose(curve, ranking.correlation_priority_curve(rho, truth) * 18 / 20)
    with pytest.raises(ValueError, match="n is 0"):
        ranking.correlation_priority_curve(rho, truth, n=0)


def test_observations_where_the_answer_is_known():
    names, columns = list("abcdefghijkl"), ["task", "backbone", "data"]
    rows = [("objects", "x", "1"), ("objects", "x", "2"), ("objects", "y", "3"), ("objects", "y", "4")]
    rows += [("faces", "x", "5"), ("faces", "x", "6"), ("faces", "y", "7"), ("faces", "y", "8")]
    rows += [("text", "x", "9"), ("text", "x", "10"), ("text", "y", "11"), ("text", "y", "12")]
    table = pd.DataFrame(rows, names, columns)
    task, backbone = claims.same_trait(table["task"]), claims.same_trait(table["backbone"])
    noise = 0.01 * random_symmetric(0, names)
    near = square(0.5 * task + 0.3 * (task & backbone), names) + noise
    found = {claim.claim: claim for claim in claims.observations(near, near, table)}
    assert len(found) == 4 and {claim.section for claim in found.values()} == {"4.3"}
    assert {claim.verdict for claim in found.values()} == {claims.HOLDS}
    turned = {claim.claim: claim.verdict for claim in claims.observations(-near, near, table)}
    assert set(turned.values()) == {claims.FAILS}
    table["task"] = names  # no two of one task: nothing can be said of tasks
    assert [claim.claim for claim in claims.observations(near, near, table)] == [next(iter(found))]
    assert claims.observations(near[:3, :3], near[:3, :3], table[:3]) == []


def test_the_second_group_is_that_of_section_4_1():
    group = claims.second_group()
    assert group.index.tolist() == [
        "VGG16",
        "VGG19",
        *(f"ResNet{depth}" for depth in (50, 101, 152)),
        "Inception V3",
        "Inception-ResNet V2",
        *("MobileNet", "0.5 MobileNet", "0.25 MobileNet"),
        *(f"Inpainting, {data}" for data in ("ImageNet", "CelebA", "CelebA-HQ", "Places")),
        *("FCRN", "FCN", "PRN", "Tiny Face Detector"),
    ]
    assert (group[["reference", "download", "licence"]] != "").all(axis=None)
    for network, row in group.iterrows():
        scheme, _, name = row["load"].partition(":")
        assert row["load"] == "" or scheme in zoo.SOURCES and name, network
        assert (row["load"] == "") == row["download"].startswith("none known"), network
        if scheme in ("onnx", "python"):
            assert name.startswith("FILE") and "not tried here" in row["differs"], network


@pytest.mark.parametrize("package", ["torchvision", "timm"])
def test_names_of_the_second_group_are_those_of_the_package(package):
    """Where the package is installed, and fits this torch."""
    module = pytest.importorskip(package, exc_type=(ImportError, RuntimeError, OSError))
    names = [load.split(":")[1] for load in claims.second_group()["load"] if load.startswith(package)]
    if package == "torchvision":
        assert len(names) == 7
        for name in names:
            assert list(module.models.get_model_weights(name)), f"{name} has no weights"
    else:
        assert len(names) == 2 and set(names) <= set(module.list_pretrained())


def test_traits_are_our_sorting_or_the_encoders_own():
    table = pd.read_csv(oracle.DATA / "traits.csv", index_col="name")
    packaged = zoo.available().query("name.str.startswith('package:')").name.tolist()
    assert sorted(table.index) == sorted(packaged)

    class Known:
        name, task, family = "package:hed", "edges", "VGG16"

    class Other:
        name, task, family = "onnx:mine.onnx", "unknown", "mine"

    found = claims.traits([Other, Known])
    assert found.loc["package:hed"].tolist() == ["contours and points", "VGG", "ImageNet and others"]
    assert found.loc["onnx:mine.onnx"].tolist() == ["unknown", "mine", "those of onnx:mine.onnx"]
    assert found.index.tolist() == ["onnx:mine.onnx", "package:hed"]
