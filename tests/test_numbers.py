"""What space, similarity, ranking and oracle keep to over sizes, ties, scales and names, and what they refuse."""

import math
import warnings

import numpy as np
import pytest
import xarray as xr
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.stats import ortho_group

from support import labels, oracle, ranking, similarity, space

QUICK = settings(max_examples=25, deadline=None, derandomize=True, database=None)
PAIRS = {name: getattr(similarity, name) for name, entry in similarity.METHODS.items() if not entry.directed}
SEEDS = st.integers(0, 2**32)
POWERS = st.floats(-300, 300).map(lambda power: 10.0**power)
SCALES = POWERS | st.sampled_from([1e-300, 1e-160, 1e-155, 1.0, 1e155, 1e160, 1e300])
NAMES = st.text(min_size=1, max_size=6)


def labelled(values, sources=None, targets=None):
    values = np.asarray(values)
    sources = [f"s{i:02}" for i in range(len(values))] if sources is None else sources
    targets = sources[: values.shape[1]] if targets is None else targets
    return xr.DataArray(values, {"source": sources, "target": targets}, ("source", "target"))


@st.composite
def matrices(draw, smallest=4, largest=9, square=False, symmetric=False):
    """A labelled matrix of some size, with ties or without, of any scale and names."""
    n = draw(st.integers(smallest, largest))
    m = n if square or symmetric else draw(st.integers(smallest, n))
    rng = np.random.default_rng(draw(SEEDS))
    values = rng.integers(0, 4, (n, m)) * 1.0 if draw(st.booleans()) else rng.normal(size=(n, m))
    if symmetric:
        values = values + values.T
    return labelled(values, draw(st.lists(NAMES, min_size=n, max_size=n, unique=True)))


@st.composite
def representations(draw):
    """Two representations of the same samples, with something in common."""
    rng = np.random.default_rng(draw(SEEDS))
    n, first, second = draw(st.integers(40, 80)), draw(st.integers(2, 5)), draw(st.integers(2, 5))
    x = rng.normal(size=(n, first))
    return x, x @ rng.normal(size=(first, second)) + rng.normal(size=(n, second)), rng


def shuffled(matrix, seed):
    """The same matrix with its names, and its axes, in another order."""
    rng = np.random.default_rng(seed)
    order = {axis: rng.permutation(matrix.sizes[axis]) for axis in ("source", "target")}
    return matrix.isel(order).transpose("target", "source")


# similarity


@QUICK
@given(representations(), SCALES, SCALES)
@pytest.mark.parametrize("method", PAIRS)
def test_similarities_are_symmetric_bounded_and_blind_to_scale_and_to_the_order_of_samples(method, pair, one, other):
    (x, y, rng), compare = pair, PAIRS[method]
    found = compare(x, y)
    order = rng.permutation(len(x))
    assert -1 <= found <= 1
    assert compare(y, x) == pytest.approx(found, abs=1e-9)
    assert compare(x * one, y * other) == pytest.approx(found, abs=1e-9)
    assert compare(np.asfortranarray(x)[order], y[order]) == pytest.approx(found, abs=1e-9)
    assert compare(x, x * -one) == pytest.approx(1, abs=1e-9)
    matrix = similarity.matrix({"x": x * one, "y": y * other}, method)
    assert float(matrix[0, 1]) == pytest.approx(found, abs=1e-9) and float(matrix[0, 0]) == 1


@QUICK
@given(representations(), SCALES)
def test_invariances_that_the_papers_state(pair, scale):
    x, y, rng = pair
    turn = ortho_group.rvs(x.shape[1], random_state=rng) if x.shape[1] > 1 else np.eye(1)
    moved = (x @ turn + rng.normal(size=x.shape[1])) * scale
    for compare in (similarity.svcca, similarity.cka):  # Raghu et al., Section 2; Kornblith et al., Section 2.2
        assert compare(moved, y) == pytest.approx(compare(x, y), abs=1e-7)
    mixed = x @ (turn * np.geomspace(1, 10, x.shape[1]))
    assert similarity.svcca(mixed, y, variance=1) == pytest.approx(similarity.svcca(x, y, variance=1), abs=1e-7)
    rises = x * scale + rng.normal(size=(len(x), 1)) * scale  # of every sample by itself
    assert similarity.rsa(rises, y) == pytest.approx(similarity.rsa(x, y), abs=1e-7)
    each = (x + 3) * 10.0 ** rng.uniform(-250, 250, x.shape[1])  # z-scored feature by feature
    each = each[:, rng.permutation(x.shape[1])]
    assert similarity.dds(each, y) == pytest.approx(similarity.dds(x, y), abs=1e-7)


@QUICK
@given(st.integers(2, 12), st.integers(1, 200), SEEDS)
def test_the_warning_of_cka_is_the_mean_over_shuffled_samples(n_samples, n_features, seed):
    x = np.random.default_rng(seed).normal(size=(max(n_samples, 4), n_features))
    centre = x - x.mean(0)
    gram = centre @ centre.T
    by_chance = np.trace(gram) ** 2 / (gram**2).sum() / (len(x) - 1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        similarity.cka(x, x)
    assert bool(caught) == (by_chance > 0.5)
    for warning in caught:
        assert f"{len(x)} samples of {n_features} features" in str(warning.message)
        assert f"is {by_chance:.2f} on average" in str(warning.message)


def test_cka_of_few_samples_of_noise_is_high_as_the_warning_says():
    rng = np.random.default_rng(0)
    with pytest.warns(UserWarning, match="x has 8 samples of 64 features.* is 0.8.*use more images"):
        found = [similarity.cka(*rng.normal(size=(2, 8, 64))) for _ in range(50)]
    x, y = (np.random.default_rng(seed).normal(size=(8, 64)) for seed in (1, 2))
    gram = [(v - v.mean(0)) @ (v - v.mean(0)).T for v in (x, y)]
    spread = [np.trace(g) ** 2 / (g**2).sum() for g in gram]
    with pytest.warns(UserWarning):
        by_order = np.mean([similarity.cka(x[rng.permutation(8)], y) for _ in range(400)])
    assert by_order == pytest.approx(np.sqrt(spread[0] * spread[1]) / 7, abs=0.01)
    assert np.mean(found) == pytest.approx(by_order, abs=0.03)


@pytest.mark.parametrize("method", PAIRS)
@pytest.mark.parametrize("kind", [np.float16, np.float32, ">f8", np.longdouble, np.int8, np.uint16, np.int64, bool])
def test_similarities_of_any_real_type_are_those_of_its_float64(method, kind):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 4)) * 40 + 60
    x = (x > 60).astype(kind) if kind is bool else x.astype(kind)
    if kind is bool:  # no sample of equal features, which RSA cannot compare
        x[x.all(1) | ~x.any(1)] = [True, False, True, False]
    y = rng.normal(size=(60, 3))
    assert PAIRS[method](x, y) == PAIRS[method](x.astype(np.float64), y)


# ranking


@QUICK
@given(matrices(), matrices(), SEEDS, SCALES)
def test_rank_statistics_do_not_depend_on_scale_order_or_axes_and_agree_with_scipy(affinity, truth, seed, scale):
    n, m = min(len(affinity), len(truth)), min(affinity.shape[1], truth.shape[1])
    affinity = affinity[:n, :m]
    truth = labelled(truth.values[:n, :m], affinity.source.values, affinity.target.values)
    moved = shuffled(affinity * scale, seed), shuffled(truth * scale, seed + 1)
    for k in range(1, n):
        found = ranking.precision_at_k(affinity, truth, k, 2, mean=False)
        other = ranking.precision_at_k(*moved, k, 2, mean=False).sel(target=found.target)
        np.testing.assert_array_equal(found, other)
        recall = ranking.recall_at_k(affinity, truth, k, 2, mean=False)
        np.testing.assert_allclose(found * k, recall * 2)
    flat = [np.ptp(np.delete(x.values[:, t], t)) == 0 for t in range(m) for x in (affinity, truth)]
    if any(flat):
        with pytest.raises(ValueError, match="have all the same score"):
            ranking.spearman(affinity, truth)
        return
    found = ranking.spearman(affinity, truth, mean=False)
    for t in range(m):
        pair = [np.delete(x.values[:, t], t) for x in (affinity, truth)]
        assert float(found[t]) == pytest.approx(stats.spearmanr(*pair).statistic, abs=1e-12)
    np.testing.assert_allclose(ranking.spearman(*moved, mean=False).sel(target=found.target), found, atol=1e-12)


@QUICK
@given(matrices(symmetric=True), matrices(symmetric=True), SEEDS, SCALES, st.booleans())
def test_mantel_is_symmetric_and_blind_to_scale(first, second, seed, scale, ranks):
    n = min(len(first), len(second))
    first = first[:n, :n]
    second = labelled(second.values[:n, :n], first.source.values)
    upper = np.triu_indices(n, 1)
    if any(np.ptp(x.values[upper]) == 0 for x in (first, second)):
        with pytest.raises(ValueError, match="equally near"):
            ranking.mantel(first, second, ranks, 9)
        return
    found = ranking.mantel(first, second, ranks, 39)
    measure = stats.spearmanr if ranks else stats.pearsonr
    assert found.correlation == pytest.approx(measure(first.values[upper], second.values[upper])[0], abs=1e-9)
    assert 0 < found.p_value <= 1
    assert ranking.mantel(second, shuffled(first * scale, seed), ranks, 9).correlation == pytest.approx(
        found.correlation, abs=1e-9
    )
    assert ranking.mantel(first * scale, second, ranks, 39).p_value == found.p_value
    assert ranking.mantel(first, first * scale, ranks, 9).correlation == pytest.approx(1, abs=1e-9)


@QUICK
@given(matrices(symmetric=True), SEEDS, SCALES)
def test_cohesion_follows_scale_and_keeps_its_p_value(affinity, seed, scale):
    members = np.random.default_rng(seed).permutation(len(affinity)) < max(2, len(affinity) // 2)
    found, other = ranking.cohesion(affinity, members, 39), ranking.cohesion(affinity * scale, members, 39)
    assert other[:2] == pytest.approx((found.inside * scale, found.between * scale), rel=1e-9)
    assert 0 < found.p_value == other.p_value <= 1


@QUICK
@given(st.integers(1, 200), SCALES, SEEDS, st.integers(1, 5))
def test_p_values_count_what_is_as_large(n, scale, seed, n_kinds):
    found = np.random.default_rng(seed).integers(-n_kinds, n_kinds + 1, n).astype(float)
    p = ranking.p_value(found * scale)
    assert 1 / n <= p <= 1 and p * n == pytest.approx(sum(value >= found[0] for value in found.tolist()))


@QUICK
@given(SEEDS, st.integers(2, 12), SCALES)
def test_a_paired_difference_has_a_sign(seed, n, scale):
    rng = np.random.default_rng(seed)
    names = {"target": [f"t{i}" for i in range(n)]}
    first, second = (xr.DataArray(rng.normal(size=n) * scale, names, ("target",)) for _ in range(2))
    found = ranking.paired_bootstrap(first, second, n_resamples=200)
    back = ranking.paired_bootstrap(second, first.isel(target=slice(None, None, -1)), n_resamples=200)
    assert found.mean == pytest.approx(float((first - second).mean()), rel=1e-9, abs=1e-9 * scale)
    assert back.mean == pytest.approx(-found.mean, rel=1e-9, abs=1e-9 * scale)
    assert found.low <= found.high
    shift = 100 * scale
    below = ranking.paired_bootstrap(first - shift, second, n_resamples=50)
    assert below.low <= below.mean <= below.high < 0


# space


@QUICK
@given(SEEDS, st.integers(2, 4), st.integers(1, 4), st.sampled_from([np.float32, np.float64, np.float16, np.int16]))
def test_affinities_do_not_depend_on_the_scale_of_maps_nor_on_the_order_of_axes(seed, n_models, n_images, kind):
    rng = np.random.default_rng(seed)
    values = rng.integers(-99, 100, (n_models, n_images, 3, 4, 3)) + (rng.random((n_models, n_images, 3, 4, 3)) > 0.5)
    maps = xr.DataArray(
        values.astype(kind), {"model": list("abcd")[:n_models]}, ("model", "image", "y", "x", "channel")
    )
    assume((maps.mean("channel") != 0).any(("y", "x")).all())
    powers = {np.float32: 30, np.float64: 290, np.float16: 2, np.int16: 2}[kind]
    factors = 10.0 ** rng.integers(0 if kind is np.int16 else -powers, powers, (n_models, n_images))
    scale = xr.DataArray(factors, dims=("model", "image")).astype(kind)
    for channels in ("mean", "keep"):
        found = space.affinity(maps, channels)
        np.testing.assert_array_equal(found, found.T)
        exact = values.mean(-1) if channels == "mean" else values
        rows = exact.reshape(n_models, n_images, -1).astype(float)
        rows /= np.linalg.norm(rows, axis=-1, keepdims=True)
        np.testing.assert_allclose(found, np.einsum("ikv,jkv->ij", rows, rows) / n_images, atol=1e-5)
        near = 2e-3 if kind is np.float16 else 1e-5
        np.testing.assert_allclose(space.affinity((maps * scale).astype(kind), channels), found, atol=near)
        turned = maps.transpose("x", "channel", "model", "y", "image").isel(image=slice(None, None, -1))
        np.testing.assert_allclose(space.affinity(turned, channels), found, atol=1e-6)
        distance = space.distance(found)
        assert (distance >= 1).all() and (np.isinf(distance) == (found <= 0)).all()


@QUICK
@given(matrices(smallest=3, symmetric=True), SEEDS)
def test_trees_and_neighbours_do_not_depend_on_the_order_of_models(affinity, seed):
    affinity = affinity / (1 + abs(affinity).max())
    own = affinity.source == affinity.target
    moved = shuffled(affinity, seed)
    heights = space.tree(affinity)[:, 2]
    upper = np.unique(affinity.values[np.triu_indices(len(affinity), 1)])
    if len(upper) == len(affinity) * (len(affinity) - 1) // 2:  # with ties the tree depends on the order
        np.testing.assert_allclose(space.tree(moved)[:, 2], heights, atol=1e-12)
    np.testing.assert_array_equal(space.tree(xr.where(own, np.nan, affinity))[:, 2], heights)
    assert (np.diff(heights) >= -1e-12).all() and heights[0] == pytest.approx(1 - upper.max())
    table = space.neighbours(moved)
    for target, row in table.iterrows():
        near = affinity.sel(source=row.values, target=target).values
        assert sorted(row) == sorted(set(affinity.source.values) - {target}) and (np.diff(near) <= 0).all()


# oracle


@QUICK
@given(SEEDS, st.integers(2, 6), st.integers(1, 20), SCALES)
def test_oracles_see_the_order_of_losses_only(seed, n_sources, n_images, scale):
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 6, (n_sources, 2, n_images)).astype(float)
    losses = xr.DataArray(
        values * scale, {"source": list("abcdef")[:n_sources], "target": ["a", "x"]}, ("source", "target", "image")
    )
    rates = oracle.win_rates(losses)
    np.testing.assert_allclose(rates + rates.values.swapaxes(1, 2), 1)
    xr.testing.assert_allclose(rates, oracle.win_rates(losses.copy(data=values.astype(np.int8))))
    truth = oracle.transferability(losses.transpose("image", "target", "source"))
    np.testing.assert_allclose(truth.sum("source"), 1)
    means = values.mean(-1)[:, 1]
    if n_images == 1:
        places = oracle.priority(truth).sel(target="x")
        np.testing.assert_allclose(places, stats.rankdata(means), atol=1e-9)


@QUICK
@given(matrices(smallest=3, largest=5, square=True), SCALES, st.integers(1, 5), SEEDS)
def test_the_choice_of_sources_does_not_depend_on_scale(affinity, scale, budget, seed):
    noise = np.random.default_rng(seed).normal(size=affinity.shape)
    affinity = affinity.copy(data=noise)  # without ties there is one best choice
    found = oracle.select_sources(affinity, budget)
    other = oracle.select_sources(affinity * scale + scale, budget)
    assert other.attrs["total"] == pytest.approx((found.attrs["total"] + len(affinity)) * scale, rel=1e-9)
    assert found.values.tolist() == other.values.tolist()
    if budget < len(affinity):
        regret = ranking.assignment_regret(affinity, affinity * scale, budget)
        assert regret == pytest.approx(ranking.assignment_regret(affinity, affinity, budget), abs=1e-6)


# refusals


def of_one(values):
    """Calls of every function of one matrix, (source, target)."""
    return {
        "distance": lambda: space.distance(values),
        "neighbours": lambda: space.neighbours(values),
        "tree": lambda: space.tree(values),
        "cohesion": lambda: ranking.cohesion(values, np.arange(6) < 3, 9),
        "popularity": lambda: ranking.popularity(values),
        "symmetrised": lambda: ranking.symmetrised(values),
        "priority": lambda: oracle.priority(values),
        "oracle tree": lambda: oracle.tree(values),
        "select_sources": lambda: oracle.select_sources(values, 2),
    } | of_two(values, GOOD)


def of_two(values, other):
    pairs = {
        "cophenetic_agreement": space.cophenetic_agreement,
        "precision_at_k": ranking.precision_at_k,
        "recall_at_k": ranking.recall_at_k,
        "spearman": ranking.spearman,
        "curve": ranking.correlation_priority_curve,
        "regret": ranking.regret,
        "assignment_regret": lambda a, b: ranking.assignment_regret(a, b, 2),
        "mantel": lambda a, b: ranking.mantel(a, b, n_permutations=9),
        "agreement_test": lambda a, b: ranking.agreement_test(a, b, 9),
        "paired_bootstrap": lambda a, b: ranking.paired_bootstrap(a, b, n_resamples=9),
        "agreement": oracle.agreement,
    }
    calls = {f"{name} first": lambda f=f: f(values, other) for name, f in pairs.items()}
    return calls | {f"{name} second": lambda f=f: f(other, values) for name, f in pairs.items()}


POINTS = np.random.default_rng(0).uniform(0.1, 0.8, (6, 6))
GOOD = labelled((POINTS + POINTS.T) / 2)
HOLES_ALLOWED = ("priority", "select_sources", "agreement first", "agreement second", "oracle tree")


def test_what_the_refusals_are_made_from_is_accepted():
    for name, call in of_one(GOOD).items():
        assert call() is not None, name


@pytest.mark.parametrize("name", of_one(GOOD))
@pytest.mark.parametrize(
    "values, error, message",
    [
        (GOOD.values, TypeError, "is a ndarray: pass an? .*DataArray"),
        (GOOD.to_pandas(), TypeError, "is a DataFrame: pass an? .*DataArray"),
        (GOOD.to_dataset(name="loss"), TypeError, "is a Dataset: pass an? .*DataArray"),
        (None, TypeError, "is a NoneType: pass an? .*DataArray"),
        (GOOD.astype(complex), TypeError, "type complex128: give an array of real numbers"),
        (GOOD.astype(object), TypeError, "type object: give an array of real numbers"),
        (GOOD.astype(str), TypeError, "type <U[0-9]+: give an array of real numbers"),
        (GOOD.astype("datetime64[ns]"), TypeError, "type datetime64.*: give an array of real numbers"),
        ((GOOD * 1e18).astype(np.int64) + 2**60, ValueError, "whole numbers beyond 2.53"),
        (
            GOOD.rename(source="model"),
            ValueError,
            "has the dimensions .'model', 'target'|not measured",
        ),
        (GOOD[0], ValueError, "has the dimensions .'target'|not measured"),
        (GOOD.drop_vars("target"), ValueError, "has no names along target"),
        (GOOD.assign_coords(source=[*"abcde", None]), ValueError, "has a missing name along source"),
        (GOOD.isel(source=[0, 1, 2, 2, 4, 5]), ValueError, "has the source s02 more than once"),
        (GOOD.isel(source=slice(0)), ValueError, "is empty|has no|lacks|no models in common"),
    ],
)
def test_every_function_says_what_is_wrong_with_a_matrix(name, values, error, message):
    if name == "distance" and error is ValueError and "whole numbers" not in message:
        return  # of every value by itself: a selection of a matrix is as good
    with pytest.raises(error, match=message):
        of_one(values)[name]()


@pytest.mark.parametrize("name", of_one(GOOD))
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e305])
def test_every_function_names_the_pair_that_is_no_number(name, value):
    values = GOOD.copy()
    values.loc["s01", "s04"] = values.loc["s04", "s01"] = value
    if np.isnan(value) and name in HOLES_ALLOWED:
        assert of_one(values)[name]() is not None
        return
    with pytest.raises(ValueError, match="at (source s01, target s04|s01, s04|target s04, source s01)"):
        of_one(values)[name]()


@pytest.mark.parametrize("name", of_one(GOOD))
def test_no_function_gives_nan_or_an_impossible_number_where_all_values_are_equal(name):
    flat = GOOD * 0 + 0.5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            found = of_one(flat)[name]()
        except ValueError as error:
            assert any(word in str(error) for word in ("same", "equal", "one height", "compared")), error
            return
        except UserWarning as warning:
            assert "no rank correlation for s00" in str(warning)
            return
    if isinstance(found, xr.DataArray) and name != "select_sources":
        apart = np.eye(6, dtype=bool) if found.shape == (6, 6) else np.zeros(found.shape, bool)
        assert np.isfinite(found.values[~apart]).all()
    elif isinstance(found, float | np.ndarray | tuple):
        assert np.isfinite(np.asarray(found, float)).all()


NO_NUMBER = ["3", 2.0, True, None, [2], np.nan, 1 + 0j]
WHOLE = {
    "k": lambda v: ranking.precision_at_k(GOOD, GOOD, k=v),
    "n_relevant": lambda v: ranking.recall_at_k(GOOD, GOOD, n_relevant=v),
    "k of regret": lambda v: ranking.regret(GOOD, GOOD, k=v),
    "k of neighbours": lambda v: space.neighbours(GOOD, v),
    "n_sources": lambda v: ranking.chance(v, 5),
    "n_relevant of chance": lambda v: ranking.chance(19, v),
    "budget": lambda v: oracle.select_sources(GOOD, v),
    "budget of regret": lambda v: ranking.assignment_regret(GOOD, GOOD, v),
    "n_permutations": lambda v: ranking.mantel(GOOD, GOOD, n_permutations=v),
    "n_permutations of cohesion": lambda v: ranking.cohesion(GOOD, np.arange(6) < 3, n_permutations=v),
    "n_permutations of agreement": lambda v: ranking.agreement_test(GOOD, GOOD, n_permutations=v),
    "seed": lambda v: ranking.agreement_test(GOOD, GOOD, seed=v),
    "seed of mantel": lambda v: ranking.mantel(GOOD, GOOD, seed=v),
    "seed of cohesion": lambda v: ranking.cohesion(GOOD, np.arange(6) < 3, seed=v),
    "seed of bootstrap": lambda v: ranking.bootstrap([1, 2], seed=v),
    "n_resamples": lambda v: ranking.bootstrap([1, 2], n_resamples=v),
    "n_splits": lambda v: oracle.half_splits(GOOD.expand_dims(image=4), n_splits=v),
    "seed of splits": lambda v: oracle.half_splits(GOOD.expand_dims(image=4), seed=v),
    "seed of losses": lambda v: oracle.losses(v),
    "seed of load": lambda v: oracle.load("bank", seed=v),
    "size": lambda v: space.sketch(GOOD.values, v),
    "hashes": lambda v: space.sketch(GOOD.values, 8, hashes=v),
    "seed of sketch": lambda v: space.sketch(GOOD.values, 8, seed=v),
    "n_models": lambda v: space.sketch_size(v, 0.1),
    "sketch": lambda v: space.ModelSpace(sketch=v),
    "seed of space": lambda v: space.ModelSpace(seed=v),
    "grid": lambda v: similarity.matrix({"a": np.ones((9, 2, 3, 3))}, grid=(v, 2)),
}


@pytest.mark.parametrize("name", WHOLE)
def test_whole_numbers_are_asked_for_by_name(name):
    what = name.split()[0]
    for value in NO_NUMBER:
        if value is None and name in ("k of neighbours", "seed of load", "sketch"):
            continue  # all of them, every bank, whole maps
        with pytest.raises(TypeError, match=f"{what} is .*: give a whole number"):
            WHOLE[name](value)
    with pytest.raises(ValueError, match=f"{what} is -1"):
        WHOLE[name](-1)


@pytest.mark.parametrize("value", ["0.9", None, 1j, [0.9], math.nan, 0, 1.5, -0.1, math.inf])
def test_shares_are_asked_for_by_name(value):
    calls = {
        "level": lambda: ranking.bootstrap([1.0, 2.0], level=value),
        "error": lambda: space.sketch_size(10, value),
        "failure": lambda: space.sketch_size(10, 0.1, value),
        "variance": lambda: similarity.svcca(*np.ones((2, 9, 2)), variance=value),
    }
    for name, call in calls.items():
        with pytest.raises((TypeError, ValueError), match=f"^{name} is "):
            call()


@pytest.mark.parametrize("method", PAIRS)
def test_representations_that_have_no_similarity_are_refused_by_name(method):
    rng = np.random.default_rng(0)
    good = rng.normal(size=(60, 3))
    hidden = np.ma.masked_array(good, mask=np.arange(180).reshape(60, 3) == 7)
    for wrong, error, message in [
        (good + 1j, TypeError, "type complex128"),
        (good.astype(object), TypeError, "type object"),
        (good.astype(str), TypeError, "type <U"),
        ([[1.0], [1.0, 2.0]], TypeError, "no array of numbers"),
        (None, TypeError, "type object"),
        (hidden, ValueError, "has masked values"),
        (np.where(np.arange(3) == 1, np.nan, good), ValueError, "is nan at (sample|image) 0, (feature|channel) 1"),
        (np.where(np.arange(3) == 1, np.inf, good), ValueError, "is inf at (sample|image) 0, (feature|channel) 1"),
        (good * 1e308, ValueError, "e[+]30[0-9] at (sample|image) 0"),
        (good * 0 + 0.1, ValueError, "is constant"),
        (good[:0], ValueError, "samples|has the shape"),
        (good[:, :0], ValueError, "is constant|has the shape"),
        (good[:1], ValueError, "samples|different numbers of images"),
        (good[:, 0], ValueError, "has the shape"),
        (3.0, ValueError, "has the shape"),
    ]:
        with pytest.raises(error, match=f"y .*{message}"):
            PAIRS[method](good, wrong)
        with pytest.raises(error, match=f"b .*{message}"):
            similarity.matrix({"a": good, "b": wrong}, method)
    for reps in ([good, good], good, None):
        with pytest.raises(TypeError, match="reps is a .*: pass a dict"):
            similarity.matrix(reps, method)


def test_losses_that_are_no_numbers_are_refused_by_name():
    losses = GOOD.expand_dims(image=5).transpose("source", "target", "image").copy()
    for value in (np.nan, np.inf):
        wrong = losses.copy()
        wrong[1, 4, 2] = value
        for call in (oracle.win_rates, oracle.transferability, oracle.half_splits):
            with pytest.raises(ValueError, match=f"loss is {value} at target s0[0-5], source s01, image"):
                call(wrong)
        with pytest.raises(ValueError, match=f"losses is -?{value} at source s01, target s04"):
            ranking.regret(GOOD, wrong)
    for call in (oracle.win_rates, oracle.transferability, oracle.half_splits):
        with pytest.raises(TypeError, match="losses is a ndarray"):
            call(losses.values)
        with pytest.raises(ValueError, match="losses has the source s00 more than once"):
            call(losses.isel(source=[0, 0, 1]))
    exact = losses.astype(np.float16)
    xr.testing.assert_identical(oracle.transferability(exact), oracle.transferability(exact.astype(np.float64)))
    assert ranking.regret(GOOD, (losses * 40).astype(np.uint8)) == ranking.regret(GOOD, np.floor(losses * 40))


def test_maps_that_have_no_affinity_are_refused():
    maps = xr.DataArray(np.ones((2, 3, 2, 2)), {"model": ["a", "b"]}, ("model", "image", "y", "x"))
    for call in (space.affinity, space.chance, space.cosines, lambda m: space.ModelSpace().insert("a", m[:1])):
        for wrong, error, message in [
            (maps.values, TypeError, "maps is a ndarray: pass an xarray.DataArray"),
            (maps.astype(complex), TypeError, "complex128: real numbers"),
            (maps.astype(object), TypeError, "object: real numbers"),
            (maps.isel(y=slice(0)), ValueError, "no map to compare"),
            (maps.rename(y="row"), ValueError, "maps have the dimensions"),
            (maps.where(maps.image != 1, np.nan), ValueError, "the map of model a for image 1 is not finite"),
            (maps.where(maps.image != 1, 0), ValueError, "the map of model a for image 1 is zero everywhere"),
        ]:
            with pytest.raises(error, match=message):
                call(wrong)
    for wrong, message in [
        (maps.drop_vars("model"), "no names along model"),
        (maps.assign_coords(model=["a", "a"]), "the model a more than once"),
        (maps.assign_coords(model=["a", None]), "a missing name along model"),
    ]:
        with pytest.raises(ValueError, match=message):
            space.affinity(wrong)
    twice = space.cosines(xr.concat([maps, maps.roll(image=1)], "model"))
    np.testing.assert_array_equal(twice.values[:, :2, :2], space.cosines(maps))
    with pytest.raises(ValueError, match="no names along model"):
        space.cosines(maps.drop_vars("model"))
    for name in (3, None, ["a"]):
        with pytest.raises(TypeError, match="the name of a model is .*: give a text"):
            space.ModelSpace().insert(name, maps[0])
    for points, error, message in [
        (np.ones(9) * 1j, TypeError, "complex128"),
        ([1.0, np.nan], ValueError, "value is nan at value 1"),
        (np.full((2, 3), 1e39), ValueError, "value is inf at point 0, value 0"),
        (np.ones((2, 0)), ValueError, "shape"),
    ]:
        with pytest.raises(error, match=message):
            space.sketch(points, 8)


def test_distance_takes_a_selection_and_refuses_what_is_no_mean_of_cosines():
    assert space.distance(GOOD.sel(source="s00", target="s01")).item() == 1 / GOOD.values[0, 1]
    assert space.distance(GOOD * 0 + 1e-310).values.max() == np.inf
    assert space.distance(GOOD * 0 + 1 + 1e-8).values.min() == 1
    for value in (2.0, 1.00001, -1.00001, np.nan, np.inf):
        with pytest.raises(ValueError, match=f"affinity is {value} at source s00, target s00, expected"):
            space.distance(GOOD * 0 + value)
    with pytest.raises(ValueError, match="affinity is 18.0 at source s00, target s01, expected"):
        space.tree(GOOD * 0 + 18)


def test_a_choice_lists_what_there_is():
    for value in ("svca", None, 3, ["svcca"]):
        with pytest.raises(ValueError, match="unknown method .*; known: svcca, cka, rsa, dds"):
            similarity.matrix({"a": np.ones((9, 2))}, value)
        with pytest.raises(ValueError, match="unknown oracle .*; known: bank, taskonomy"):
            oracle.load(value)
        with pytest.raises(ValueError, match="unknown channels .*; known: mean, keep"):
            space.ModelSpace(channels=value)


def test_labels_take_what_is_right():
    assert labels.count(np.array(3), "k", 1, 3) == 3 and labels.share(np.float32(0.5), "level") == 0.5
    assert labels.share(1, "variance", closed=True) == 1.0
    turned = labels.matrix(GOOD.T[::-1], "truth", symmetric=True)
    assert turned.dims == ("source", "target") and turned.source.values.tolist() == turned.target.values.tolist()
    for value in (2**53, -(2**53)):
        assert labels.real(np.array([value]), "score")[0] == value
        with pytest.raises(ValueError, match="score has whole numbers beyond 2.53"):
            labels.real(np.array([value + np.sign(value)]), "score")
    labels.finite(np.array([1e304, -1e304]), "score", {"target": None})
    for value in (1.1e304, -1.1e304):
        with pytest.raises(ValueError, match="score is -?1.1e[+]304 at target 1: leave it out"):
            labels.finite(np.array([0, value]), "score", {"target": None})
    assert labels.varies(np.array([1, 1 + 1.2e-12])) and not labels.varies(np.array([1, 1 + 9e-13]))
    with pytest.raises(ValueError, match="truth has 6 sources, at least 7 are needed"):
        labels.matrix(GOOD, "truth", fewest=7)
    near = GOOD.copy()
    near.loc["s00", "s01"] += 5e-7 * float(GOOD.max())
    assert labels.matrix(near, "truth", symmetric=True, fewest=6).shape == (6, 6)
    assert labels.matrix(-near, "truth", symmetric=True).max() < 0
    mixed = labels.matrix(GOOD.assign_coords(source=[0, 1, 2, 3, 4, 5]), "truth")
    assert mixed.values.dtype == np.float64 and mixed.shape == (6, 6)
    lopsided = GOOD.copy()
    lopsided.loc["s00", "s01"] *= 1.01
    with pytest.raises(ValueError, match="truth is not symmetric: .* from s00 to s01 and .* back"):
        labels.matrix(lopsided * 1e-300, "truth", symmetric=True)
