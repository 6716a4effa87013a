"""Predictivity against scikit-learn, the properties that it claims, and what it refuses."""

import tracemalloc

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.model_selection import GroupKFold

from support import readout, similarity

RNG = np.random.default_rng(0)
X = RNG.normal(size=(25, 3, 5, 4))


def by_sklearn(x, y, n_random, ridge):
    """The definition, written down once more: neighbourhoods, random features, folds over images, R²."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    height, across = x.shape[2:]
    seen = [padded[:, :, dy : dy + height, dx : dx + across] for dy in range(3) for dx in range(3)]
    features = np.concatenate(seen, 1).transpose(0, 2, 3, 1).reshape(-1, 9 * x.shape[1])
    features = (features - features.mean(0)) / features.std(0)
    rng = np.random.default_rng(0)
    weights, bias = (
        rng.normal(0, features.shape[1] ** -0.5, (features.shape[1], n_random)),
        rng.normal(0, 0.5, n_random),
    )
    hidden = np.maximum(features @ weights + bias, 0)
    features = np.concatenate([features, (hidden - hidden.mean(0)) / hidden.std(0)], 1) if n_random else features
    wanted = y.transpose(0, 2, 3, 1).reshape(-1, y.shape[1])
    wanted = (wanted - wanted.mean(0)) / wanted.std(0)
    image = np.repeat(np.arange(len(x)), height * across)
    missed = np.zeros(y.shape[1])
    for train, test in GroupKFold(5).split(features, wanted, image % 5):
        model = Ridge(alpha=ridge * len(train)).fit(features[train], wanted[train])
        missed += ((wanted[test] - model.predict(features[test])) ** 2).sum(0)
    return (1 - missed / (wanted**2).sum(0)).mean()


@pytest.mark.parametrize(("n_random", "ridge"), [(0, 1e-3), (64, 0.1), (512, 0.1)])
@pytest.mark.parametrize("wide", [False, True])
def test_equals_ridge_regression_of_scikit_learn(n_random, ridge, wide, monkeypatch):
    monkeypatch.setattr(readout, "MOST_FEATURES", 1 if wide else 4096)
    y = np.maximum(np.einsum("cd,ndyx->ncyx", RNG.normal(size=(2, 3)), X), 0) + 0.3 * RNG.normal(size=(25, 2, 5, 4))
    found = similarity.predictivity(X, y, n_random=n_random, ridge=ridge)
    assert found == pytest.approx(by_sklearn(X, y, n_random, ridge), abs=1e-10)


@pytest.mark.parametrize("rows", [1, 7, 60])
def test_blocks_do_not_matter(rows, monkeypatch):
    y = X[:, :2] ** 2
    whole = similarity.predictivity(X, y)
    monkeypatch.setattr(readout, "ROWS", rows)
    monkeypatch.setattr(readout, "KEPT", 0)
    monkeypatch.setattr(readout, "COLUMNS", 1)
    assert similarity.predictivity(X, y) == pytest.approx(whole, abs=1e-12)


def test_one_for_an_invertible_map_and_about_zero_for_noise():
    mixed = np.einsum("cd,ndyx->ncyx", RNG.normal(size=(3, 3)), X) + 5
    assert similarity.predictivity(X, mixed, n_random=0, ridge=1e-9) == pytest.approx(1, abs=1e-6)
    noise = similarity.predictivity(X, RNG.normal(size=X.shape), n_random=0)
    assert -0.2 < noise < 0.05


@pytest.mark.parametrize("scale", [1e-290, 1e-150, 1, 1e150, 1e290])
def test_linear_maps_of_the_source_and_scales_of_both_do_not_matter(scale):
    y = X[:, :2] + RNG.normal(size=(25, 2, 5, 4))
    mixed = np.einsum("cd,ndyx->ncyx", RNG.normal(size=(3, 3)), X)
    linear = {"n_random": 0, "ridge": 1e-9}
    assert similarity.predictivity(mixed * scale, y / scale, **linear) == pytest.approx(
        similarity.predictivity(X, y, **linear), abs=1e-5
    )


def test_it_is_directed_and_dead_channels_count_for_nothing():
    more = np.concatenate([X, RNG.normal(size=X.shape)], 1)
    for method, least in (("predictivity", 0.8), ("predictivity_linear", 0.95)):
        both = similarity.matrix({"less": X, "more": more}, method)
        assert both.sel(source="more", target="less") > least
        assert both.sel(source="less", target="more") < 0.6
        assert both.sel(source="less", target="more") != both.sel(source="more", target="less")
    options = {"predictivity": {}, "predictivity_linear": {"n_random": 0}}
    for method, settings in options.items():
        one = similarity.matrix({"less": X, "more": more}, method)[0, 1]
        assert one == similarity.predictivity(X, more, **settings)
    dead = np.concatenate([X, np.full((25, 1, 5, 4), 7.0)], 1)
    assert similarity.predictivity(X, dead) == similarity.predictivity(X, X)
    assert similarity.predictivity(dead, X, n_random=0) == pytest.approx(
        similarity.predictivity(X, X, n_random=0), abs=1e-12
    )


def test_grids_meet_at_the_coarser_one_and_features_without_positions_have_no_neighbours():
    fine = np.repeat(np.repeat(X, 2, 2), 3, 3)
    assert similarity.predictivity(fine, X) == pytest.approx(similarity.predictivity(X, X), abs=1e-12)
    flat = RNG.normal(size=(200, 10))
    assert similarity.predictivity(flat, flat[:, :4], n_random=0, ridge=1e-9) == pytest.approx(1, abs=1e-6)


def test_errors_of_images_add_up_to_the_score_and_moved_images_to_chance():
    source, target = readout.Summary(X), readout.Summary(X[:, :2])
    missed, spread = readout.errors(source, target)
    assert missed.shape == spread.shape == (25, 2)
    assert (1 - missed.sum(0) / spread.sum(0)).mean() == similarity.predictivity(X, X[:, :2])
    assert readout.explained(source, target.moved(3)) == pytest.approx(
        similarity.predictivity(X, np.roll(X[:, :2], 3, 0)), abs=1e-12
    )
    assert readout.explained(source.moved(3), target) < 0.2


def test_wide_sources_are_thinned_out_evenly_and_their_features_are_never_all_in_memory(monkeypatch):
    monkeypatch.setattr(readout, "MOST_FEATURES", 1_000)
    monkeypatch.setattr(readout, "MOST_SAMPLES", 606)
    x = RNG.normal(size=(6, 200, 30, 30))  # 1,800 features of 5,400 samples: 78 MB
    tracemalloc.start()
    wide = readout.Summary(x, n_random=0).readout
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(wide.positions) == 101 and wide.products.shape == (606, 606)
    assert np.diff(wide.positions).min() >= 8
    assert peak < 60e6
    with pytest.raises(ValueError, match="x has 1,800 features and 700 images: use at most 606 images"):
        readout.explained(*[readout.Summary(np.concatenate([x[:, :, :2, :1]] * 117)[:700], "x", 0)] * 2)


@pytest.mark.parametrize(
    ("x", "y", "options", "error", "message"),
    [
        (X, X[:5], {}, ValueError, "x and y have different numbers of images: 25 and 5"),
        (X, X.reshape(25, -1), {}, ValueError, "y have no positions"),
        (X[:4], X[:4], {}, ValueError, "x has 4 images"),
        (X, np.where(X > 2, np.nan, X), {}, ValueError, "y .*nan"),
        (X, np.ones_like(X), {}, ValueError, "y is constant"),
        (X.astype(complex), X, {}, TypeError, "x"),
        (X[0], X, {}, ValueError, "x has the shape"),
        (X, X, {"ridge": 0}, ValueError, "ridge is 0"),
        (X, X, {"ridge": np.nan}, ValueError, "ridge is nan"),
        (X, X, {"n_random": -1}, ValueError, "n_random is -1"),
        (X, X, {"n_random": 1.5}, TypeError, "n_random is 1.5"),
        (X, X, {"seed": -1}, ValueError, "seed is -1"),
    ],
)
def test_what_has_no_score_is_refused(x, y, options, error, message):
    with pytest.raises(error, match=message):
        similarity.predictivity(x, y, **options)
