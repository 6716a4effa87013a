import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

from support import attribution, oracle, passes, probe, ranking, similarity, space, zoo
from support.chapters import evaluation
from support.zoo import Encoder


@pytest.fixture(scope="module")
def encoders():
    torch.manual_seed(0)

    def network():
        return nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.Conv2d(4, 3, 2), nn.ReLU())

    return [Encoder(name, network(), task="toy", family="toy", input_size=(12, 12)) for name in "abcd"]


@pytest.fixture(scope="module")
def images():
    values = np.random.default_rng(0).random((8, 12, 12, 3), np.float32)
    return xr.DataArray(values, {"channel": list("rgb")}, ("image", "y", "x", "channel"))


def test_each_score_is_that_of_its_module(encoders, images):
    found = evaluation.affinities(encoders, images, device="cpu", progress=False)
    assert found.score.values.tolist() == list(evaluation.SCORES) and found.dims == ("score", "source", "target")
    for name in attribution.METHODS[:6]:
        maps = attribution.attribute(encoders, images, name, channels="keep", device="cpu", progress=False)
        expected = space.affinity(maps, channels="mean" if name in attribution.PUBLISHED else "keep")
        np.testing.assert_allclose(found.sel(score=name), expected, rtol=1e-5)
    units = {e.name: e.represent(e.preprocess(images)).numpy() for e in encoders}
    for name in similarity.METHODS:
        np.testing.assert_allclose(found.sel(score=name), similarity.matrix(units, name))


def test_one_score_alone_is_the_same_as_among_others(encoders, images):
    several = evaluation.affinities(encoders, images, ["rsa", "gradient", "saliency"], device="cpu", progress=False)
    assert several.score.values.tolist() == ["rsa", "gradient", "saliency"]
    for name in several.score.values:
        alone = evaluation.affinities(encoders, images, [name], device="cpu", progress=False)
        np.testing.assert_allclose(alone[0], several.sel(score=name), rtol=1e-6)


def test_quality_of_the_truth_is_perfect_and_of_its_opposite_is_not():
    truth = oracle.load("taskonomy")
    both = xr.concat([truth, -truth], "score").assign_coords(score=["truth", "opposite"])
    found = evaluation.quality(both, truth)
    assert found.dims == ("score", "measure", "target") and found.sizes["target"] == 18
    assert (found.sel(score="truth") == 1).all()
    assert found.sel(score="opposite", measure="Spearman").mean() == pytest.approx(-1)
    assert found.sel(score="opposite", measure="P@3").sum() == 0
    score = ranking.popularity(truth)
    assert float(evaluation.quality(score.expand_dims(score=["p"]), truth).sel(measure="P@5").mean()) == pytest.approx(
        ranking.precision_at_k(score, truth, k=5)
    )


def test_banks_are_judged_by_their_own_oracles():
    truth = evaluation.truths([0, 1])
    assert truth.dims == ("bank", "source", "target") and truth.sizes["bank"] == 2
    found = evaluation.quality(truth.expand_dims(score=["own"]), truth)
    assert set(found.dims) == {"score", "bank", "measure", "target"} and (found == 1).all()
    other = evaluation.quality(truth.assign_coords(bank=[1, 0]), truth).sel(measure="Spearman")
    assert 0.5 < other.mean() < 1
    np.testing.assert_allclose(
        other.sel(bank=1), ranking.spearman(oracle.load("bank", seed=0), oracle.load("bank", seed=1), mean=False)
    )


def test_another_bank_is_not_the_bank_itself():
    truth = evaluation.truths([0, 1, 2])
    found = evaluation.yardsticks(truth)
    assert found.dims == ("score", "bank", "source", "target") and found.bank.values.tolist() == [0, 1, 2]
    for bank in range(3):
        own, other = (oracle.load("bank", seed=seed) for seed in (bank, (bank + 1) % 3))
        for name, expected in (
            ("popularity", ranking.popularity(own)),
            ("symmetrised", ranking.symmetrised(own)),
            ("another bank", other),
        ):
            stacked = found.sel(score=name, bank=bank, drop=True)
            xr.testing.assert_equal(*(m.sortby(["source", "target"]).drop_attrs() for m in (stacked, expected)))
    means = evaluation.quality(found, truth).sel(score="another bank").mean(["bank", "target"]).to_series()
    assert means.round(2)[["P@3", "P@5", "Spearman"]].tolist() == [0.98, 0.89, 0.96]  # 1 for an oracle beside itself


def test_one_bank_has_no_other_beside_it():
    assert evaluation.yardsticks(evaluation.truths([1])).score.values.tolist() == ["popularity", "symmetrised"]


def test_scores_of_banks_are_those_of_their_networks_and_images():
    scores = ["gradient_x_input", "relational", "svcca"]
    found = evaluation.of_banks([1], 4, 3, scores, device="cpu")
    assert dict(found.sizes) == {"bank": 1, "probe": 2, "score": 3, "source": 20, "target": 20}
    assert found.score.values.tolist() == scores
    images = probe.load("photos", n_images=3, size=64, seed=1)
    expected = evaluation.affinities(zoo.load_all("bank", seed=1), images, scores, device="cpu", progress=False)
    np.testing.assert_allclose(found.sel(bank=1, probe="photographs"), expected, rtol=1e-5, atol=1e-7)  # other threads
    in_two = evaluation.of_banks([1], 4, 3, scores, device="cpu", workers=2)
    xr.testing.assert_identical(found, in_two)


def test_relational_in_pieces_is_relational_at_once(encoders, images, monkeypatch):
    at_once = space.affinity(
        attribution.attribute(encoders, images, "relational", channels="keep", device="cpu", progress=False),
        channels="keep",
    )
    for pieces in (1, 3, 8):
        monkeypatch.setattr(evaluation, "REFERENCES_AT_ONCE", pieces)
        found = evaluation.affinities(encoders, images, ["relational"], device="cpu", progress=False)
        np.testing.assert_allclose(found[0], at_once, rtol=1e-5, atol=1e-7)


def test_unknown_scores_are_named(encoders, images):
    with pytest.raises(ValueError, match="unknown scores nonsense; known: saliency"):
        evaluation.affinities(encoders, images, ["svcca", "nonsense"])
    with pytest.raises(ValueError, match="unknown scores"):
        evaluation.affinities(encoders, images, [])


def test_chance_is_what_different_images_give(encoders, images):
    scores = ["svcca", "whitened_energy", "saliency"]
    options = {"grid": (2, 2), "variance": 0.6}
    found = evaluation.with_chance(encoders, images, scores, **options, device="cpu", progress=False)
    assert found.dims == ("level", "score", "source", "target") and found.score.values.tolist() == scores
    raw = evaluation.affinities(encoders, images, scores[1:], device="cpu", progress=False)
    xr.testing.assert_allclose(found.sel(level="affinity", score=scores[1:], drop=True), raw)
    maps = attribution.attribute(encoders, images, scores[1:], channels="keep", device="cpu", progress=False)
    for name, choice in (("saliency", "mean"), ("whitened_energy", "keep")):
        expected = space.chance(maps.sel(attribution=name), choice)
        np.testing.assert_allclose(found.sel(level="chance", score=name), expected, atol=1e-6)
    samples = [similarity.samples(e.represent(e.preprocess(images)).numpy(), "positions", (2, 2)) for e in encoders]
    moved = [similarity.svcca(samples[0], np.roll(samples[1], 4 * k, 0), 0.6) for k in range(1, len(images))]
    svcca = found.sel(score="svcca", source="a", target="b")
    assert float(svcca.sel(level="chance")) == pytest.approx(np.mean(moved))
    assert float(svcca.sel(level="affinity")) == pytest.approx(similarity.svcca(*samples[:2], 0.6))
    np.testing.assert_allclose(found.sel(level="above"), found.sel(level="affinity") - found.sel(level="chance"))
    for score in ("svcca", "saliency"):
        with pytest.raises(ValueError, match="it needs at least two"):
            evaluation.with_chance(encoders, images[:1], [score], **options, device="cpu", progress=False)


@pytest.mark.parametrize("function", [evaluation.affinities, evaluation.with_chance])
def test_representations_are_computed_in_batches_on_the_device(encoders, images, monkeypatch, function):
    options, sizes, devices = {"device": "cpu", "progress": False}, [], []
    expected = function(encoders, images, ["cka"], **options)
    represent, to = Encoder.represent, Encoder.to
    monkeypatch.setattr(Encoder, "represent", lambda e, x: sizes.append(len(x)) or represent(e, x))
    monkeypatch.setattr(Encoder, "to", lambda e, device: devices.append(str(device)) or to(e, device))
    monkeypatch.setitem(passes.PIXELS_AT_ONCE, "cpu", 3 * 12 * 12)
    xr.testing.assert_allclose(function(encoders, images, ["cka"], **options), expected)
    assert sizes == len(encoders) * [3, 3, 2] and devices.count("cpu") == 2 * len(encoders)
    with pytest.raises(ValueError, match="device 'meta' cannot be used here"):
        function(encoders, images, ["cka"], device="meta", progress=False)


def test_a_difference_has_its_interval_and_its_worst_bank():
    axes = {"bank": [0, 1, 2], "target": list("abcd")}
    second = xr.DataArray(np.random.default_rng(0).random((3, 4)), axes, ("bank", "target"))
    gains = xr.DataArray([0.3, 0.2, -0.2], {"bank": [0, 1, 2]}, ("bank",))
    first = (second + gains).transpose("bank", "target")
    found = evaluation.difference(first, second.isel(target=[2, 0, 3, 1]))  # in another order
    assert (found.mean, found.worst) == (pytest.approx(0.1), pytest.approx(-0.2))
    assert (found.low, found.high) == pytest.approx(ranking.paired_bootstrap(first, second)[1:])
    one_cluster = evaluation.difference(first[:1], second[:1] * 0, dict.fromkeys("abcd", 1))
    assert one_cluster.low == pytest.approx(one_cluster.high)  # drawn together, the targets do not vary


GAIN = evaluation.Difference(mean=0.2, low=0.1, high=0.3, worst=0.1)
SAME = evaluation.Difference(mean=0.0, low=-0.04, high=0.04, worst=-0.02)


@pytest.mark.parametrize(
    ("gain", "rival", "expected"),
    [
        (GAIN, SAME, "confirmed"),
        (GAIN, SAME._replace(worst=-0.05), "confirmed"),  # no bank below the margin
        (GAIN, SAME._replace(worst=-0.06), "undecided"),
        (GAIN, SAME._replace(low=-0.05), "undecided"),  # not above the margin
        (GAIN._replace(low=0.0), SAME, "undecided"),
        (GAIN._replace(worst=0.0), SAME, "undecided"),
        (GAIN, evaluation.Difference(-0.1, -0.2, -0.06, -0.2), "refuted"),
        (GAIN, evaluation.Difference(-0.1, -0.2, -0.05, -0.2), "undecided"),
        (evaluation.Difference(-0.1, -0.2, -0.01, -0.2), SAME, "refuted"),
        (evaluation.Difference(-0.1, -0.2, 0.0, -0.2), SAME, "undecided"),
    ],
)
def test_first_hypothesis_is_judged_as_declared(gain, rival, expected):
    assert evaluation.first_hypothesis(gain, [rival, SAME]) == expected
    assert evaluation.first_hypothesis(gain, [SAME, rival]) == expected
