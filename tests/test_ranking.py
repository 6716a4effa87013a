from itertools import combinations, permutations, product

import numpy as np
import pytest
import xarray as xr
from scipy.stats import hypergeom, pearsonr, spearmanr

from support import oracle, ranking


def scores(values, sources=None, targets=None):
    values = np.asarray(values, dtype=np.float64)
    sources = sources or [f"s{i}" for i in range(values.shape[0])]
    targets = targets or sources[: values.shape[1]]
    return xr.DataArray(values, {"source": sources, "target": targets}, ("source", "target"))


def at_random(n_sources=9, n_targets=7, seed=0):
    return scores(np.random.default_rng(seed).normal(size=(n_sources, n_targets)))


@pytest.fixture(scope="module")
def published():
    return oracle.load("taskonomy")


# Worked by hand. Rows are sources a b c d, columns targets a b c d; 9 on the diagonal must count for nothing.
TRUTH = scores(
    [[9, 3, 3, 1], [3, 9, 2, 2], [2, 2, 9, 3], [1, 1, 1, 9]],
    list("abcd"),
)  # relevant, two each: a: b c, b: a c, c: a b, d: c b
AFFINITY = scores(
    [[9, 0.1, 0.2, 0.9], [0.5, 9, 0.3, 0.1], [0.1, 0.7, 9, 0.2], [0.2, 0.8, 0.1, 9]],
    list("abcd"),
)  # order: a: b d c, b: d c a, c: b a d, d: a c b


@pytest.mark.parametrize(
    "k, precision, recall",
    [
        (1, [1, 0, 1, 0], [1 / 2, 0, 1 / 2, 0]),
        (2, [1 / 2] * 2 + [1, 1 / 2], [1 / 2] * 2 + [1, 1 / 2]),
        (3, [2 / 3] * 4, [1] * 4),
    ],
)
def test_the_example_worked_by_hand(k, precision, recall):
    found = ranking.precision_at_k(AFFINITY, TRUTH, k, 2, mean=False)
    assert found.target.values.tolist() == list("abcd")
    np.testing.assert_array_equal(found, precision)
    np.testing.assert_array_equal(ranking.recall_at_k(AFFINITY, TRUTH, k, 2, mean=False), recall)
    assert ranking.precision_at_k(AFFINITY, TRUTH, k, 2) == np.mean(precision)
    assert ranking.recall_at_k(AFFINITY, TRUTH, k, 2) == np.mean(recall)


def test_spearman_of_the_example():
    # places a: 1 3 2 against 1 2 3; b (a c d): 3 2 1 against 1 2 3; c (a b d): 2 1 3, 1 2 3; d (a b c): 1 3 2, 3 2 1
    np.testing.assert_allclose(ranking.spearman(AFFINITY, TRUTH, mean=False), [0.5, -1, 0.5, -0.5])
    assert ranking.spearman(AFFINITY, TRUTH) == pytest.approx(-0.125)


@pytest.mark.parametrize("seed", range(3))
def test_a_second_implementation_agrees(seed):
    rng = np.random.default_rng(seed)
    affinity, truth = scores(rng.integers(0, 5, (9, 9))), scores(rng.integers(0, 30, (9, 7)))
    for k, n_relevant in product((1, 3, 8), (1, 5, 8)):
        hits = []
        for target in truth.target.values:
            names = sorted(set(truth.source.values.tolist()) - {target})
            best = [
                sorted(names, key=lambda name: (-float(m.sel(source=name, target=target)), name))  # noqa: B023
                for m in (affinity, truth)
            ]
            hits.append(len(set(best[0][:k]) & set(best[1][:n_relevant])))
        assert ranking.precision_at_k(affinity, truth, k, n_relevant) == pytest.approx(np.mean(hits) / k, abs=1e-15)
        assert ranking.recall_at_k(affinity, truth, k, n_relevant) == pytest.approx(
            np.mean(hits) / n_relevant, abs=1e-15
        )


def test_the_oracle_against_itself(published):
    for k in range(1, 20):
        assert ranking.precision_at_k(published, published, k) == pytest.approx(min(1, 5 / k))
        assert ranking.recall_at_k(published, published, k) == pytest.approx(min(1, k / 5))
    assert ranking.spearman(published, published) == pytest.approx(1)
    assert ranking.precision_at_k(-published, published, 5) == 0
    assert ranking.spearman(-published, published) == pytest.approx(-1)


def test_random_scores_are_at_chance(published):
    rng = np.random.default_rng(0)
    draws = [published.copy(data=rng.normal(size=published.shape)) for _ in range(80)]
    for k in (1, 3, 5):
        found = np.mean([ranking.precision_at_k(draw, published, k) for draw in draws])
        assert found == pytest.approx(ranking.chance(19, 5), abs=0.03)
    assert np.mean([ranking.recall_at_k(draw, published, 3) for draw in draws]) == pytest.approx(3 / 19, abs=0.03)
    assert np.mean([ranking.spearman(draw, published) for draw in draws]) == pytest.approx(0, abs=0.03)


def test_chance_is_the_hypergeometric_mean():
    for k in range(1, 20):
        assert ranking.chance(19, 5) == pytest.approx(sum(i * hypergeom.pmf(i, 19, 5, k) for i in range(6)) / k)
    for n_relevant in (0, 20):
        with pytest.raises(ValueError, match="expected 1 to 19"):
            ranking.chance(19, n_relevant)


def every_score(affinity, truth):
    return [
        *(ranking.precision_at_k(affinity, truth, k, 3) for k in (1, 2, 3)),
        ranking.recall_at_k(affinity, truth, 3, 3),
        ranking.spearman(affinity, truth),
        *ranking.correlation_priority_curve(affinity, truth).values,
    ]


def test_only_the_order_counts():
    affinity, truth = at_random(seed=0), at_random(seed=1)
    monotone = np.exp(affinity) * xr.DataArray(np.arange(1, 8), dims="target") - 3
    np.testing.assert_allclose(every_score(monotone, truth)[:5], every_score(affinity, truth)[:5])
    by_order = [ranking.correlation_priority_curve(truth, order) for order in (affinity, monotone)]
    xr.testing.assert_allclose(*by_order)
    np.testing.assert_allclose(
        [ranking.precision_at_k(affinity, truth**3, 3, 3), ranking.spearman(affinity, truth**3)],
        [ranking.precision_at_k(affinity, truth, 3, 3), ranking.spearman(affinity, truth)],
    )


def test_names_and_not_places_align_the_arrays():
    affinity, truth = scores(np.random.default_rng(2).integers(0, 3, (9, 9))), at_random(seed=1)
    shuffled = affinity.isel(source=[4, 2, 8, 0, 1, 7, 3, 5, 6], target=[6, 0, 2, 1, 5, 4, 3, 8, 7]).transpose()
    np.testing.assert_allclose(every_score(shuffled, truth), every_score(affinity, truth))
    upside_down = truth.isel(source=slice(None, None, -1))
    np.testing.assert_allclose(every_score(affinity, upside_down), every_score(affinity, truth))


@pytest.mark.parametrize("own", [np.nan, np.inf, -np.inf, 1e9])
def test_the_own_model_is_never_counted(own):
    affinity, truth = at_random(seed=0), at_random(seed=1)
    mask = affinity.source == affinity.target
    changed = [xr.where(mask, own, matrix).transpose("source", "target") for matrix in (affinity, truth)]
    np.testing.assert_array_equal(every_score(*changed), every_score(affinity, truth))
    np.testing.assert_array_equal(ranking.popularity(changed[1]), ranking.popularity(truth))
    np.testing.assert_array_equal(ranking.symmetrised(changed[1]), ranking.symmetrised(truth))


def test_ties_stand_in_alphabetical_order():
    truth = scores([[0, 0, 0, 0], [3, 0, 0, 0], [2, 2, 0, 0], [1, 1, 1, 0]], list("dcba"))
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        flat = truth.copy(data=np.zeros((4, 4))).isel(source=order)
        found = ranking.precision_at_k(flat, truth, 1, 1, mean=False)
        assert found.sel(target="d").item() == 0  # a is proposed, c is best
        assert found.sel(target="a").item() == 1  # b is proposed, and b the first of the tied best


def test_sources_in_common_and_targets_of_the_truth():
    affinity, truth = at_random(9, 9, 0), at_random(9, 7, 1)
    more = xr.concat([affinity, affinity.isel(source=[0]).assign_coords(source=["extra"]) + 100], "source")
    np.testing.assert_allclose(every_score(more, truth), every_score(affinity, truth))
    np.testing.assert_allclose(
        every_score(affinity.isel(source=slice(1, None)), truth),
        every_score(affinity.isel(source=slice(1, None)), truth.isel(source=slice(1, None))),
    )
    with pytest.raises(ValueError, match="lacks the targets s2, s5"):
        ranking.precision_at_k(affinity.drop_sel(target=["s5", "s2"]), truth)
    with pytest.raises(ValueError, match="no source in common"):
        ranking.spearman(affinity.assign_coords(source=[f"x{i}" for i in range(9)]), truth)
    with pytest.raises(ValueError, match="truth is empty"):
        ranking.spearman(affinity, truth.isel(target=slice(0)))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_score_that_is_missing_names_source_and_target(value):
    affinity, truth = at_random(seed=0), at_random(seed=1)
    for what, matrices in (("affinity", [affinity.copy(), truth]), ("truth", [affinity, truth.copy()])):
        matrices[what == "truth"].loc["s4", "s2"] = value
        for judge in (ranking.precision_at_k, ranking.recall_at_k, ranking.spearman):
            with pytest.raises(ValueError, match=f"{what} is {value} at source s4, target s2"):
                judge(*matrices)
        what = what.replace("affinity", "correlation")
        with pytest.raises(ValueError, match=f"{what} is {value} at source s4, target s2"):
            ranking.correlation_priority_curve(*matrices)
    for judge in (ranking.popularity, ranking.symmetrised):
        with pytest.raises(ValueError, match=f"truth is {value} at source s4, target s2"):
            judge(matrices[1])


def test_wrong_arguments_say_what_is_expected():
    affinity, truth = at_random(seed=0), at_random(seed=1)
    for k, n_relevant, words in ((0, 5, "k is 0"), (9, 5, "k is 9, expected 1 to 8"), (1, 9, "n_relevant is 9")):
        with pytest.raises(ValueError, match=words):
            ranking.precision_at_k(affinity, truth, k, n_relevant)
    with pytest.raises(ValueError, match="affinity has the dimensions"):
        ranking.spearman(affinity.rename(source="model"), truth)
    with pytest.raises(ValueError, match="truth has the source s0 more than once"):
        ranking.spearman(affinity, truth.isel(source=[0, 0, 1]))
    with pytest.raises(ValueError, match="s3 have all the same score"):
        ranking.spearman(xr.where(affinity.target == "s3", 1, affinity).transpose("source", "target"), truth)


def popularity_by_loops(lists, source, target):
    """Mean reciprocal rank of a source in the lists of the other targets, each headed by the target itself."""
    ranks = [1 + names.index(source) for other, names in lists.items() if other not in (source, target)]
    return sum(1 / rank for rank in ranks) / len(ranks)


def test_popularity_on_the_published_rankings(published):
    popular = ranking.popularity(published)
    found = [ranking.precision_at_k(popular, published, k) for k in (1, 3, 5)]
    np.testing.assert_allclose(found, [11 / 18, 29 / 54, 49 / 90])
    # What the same score gives if the target's own model, never relevant, stays among the candidates.
    table, popular = published.to_pandas(), popular.to_pandas()
    lists = {target: [target, *table[target].dropna().sort_values(ascending=False).index] for target in table}
    values = {k: [] for k in (1, 3, 5)}
    for target, names in lists.items():
        score = {name: popularity_by_loops(lists, name, target) for name in names}
        for name in names[1:]:
            assert popular.loc[name, target] == pytest.approx(score[name], abs=1e-12)
        best = sorted(score, key=score.get, reverse=True)
        for k, shares in values.items():
            shares.append(len(set(best[:k]) & set(names[1:6])) / k)
    np.testing.assert_allclose([np.mean(shares) for shares in values.values()], [0.56, 0.48, 0.51], atol=0.005)


def test_popularity_does_not_look_at_the_target():
    truth = at_random()
    changed = truth.copy()
    changed.loc[:, "s3"] = np.random.default_rng(5).normal(size=9)
    np.testing.assert_allclose(
        ranking.popularity(truth).sel(target="s3").drop_sel(source="s3"),
        ranking.popularity(changed).sel(target="s3").drop_sel(source="s3"),
    )
    assert abs(ranking.popularity(truth) - ranking.popularity(changed)).max() > 0.01
    with pytest.raises(ValueError, match="at least three targets"):
        ranking.popularity(at_random(3, 2))


def test_popularity_finds_a_source_that_serves_all():
    truth = at_random()
    truth.loc["s8"] = 10
    assert (ranking.popularity(truth).sel(source="s8") == 0.5).all()


def test_the_symmetrised_oracle(published):
    matrix = ranking.symmetrised(published)
    both = matrix.sel(source=published.target.values)
    np.testing.assert_array_equal(both, both.T)
    one, other = published.sel(source="edge2d", target="reshade"), published.sel(source="reshade", target="edge2d")
    assert float(matrix.sel(source="edge2d", target="reshade")) == (float(one) + float(other)) / 2
    only = published.sel(source="colorization")
    np.testing.assert_array_equal(matrix.sel(source="colorization"), only)
    assert matrix.sizes == published.sizes
    symmetric = at_random(7, 7)
    symmetric = symmetric + symmetric.values.T
    off = ~np.eye(7, dtype=bool)
    np.testing.assert_allclose(ranking.symmetrised(symmetric).values[off], symmetric.values[off])
    assert ranking.chance(19, 5) < ranking.precision_at_k(matrix, published, 5) < 1


def test_the_correlation_priority_curve():
    curve = ranking.correlation_priority_curve(AFFINITY, TRUTH, mean=False)
    assert curve.dims == ("priority", "target") and curve.priority.values.tolist() == [1, 2, 3]
    np.testing.assert_allclose(
        curve.transpose("target", "priority"), [[0.5, 0.1, 0.2], [0.1, 0.7, 0.8], [0.2, 0.3, 0.1], [0.2, 0.1, 0.9]]
    )
    np.testing.assert_allclose(ranking.correlation_priority_curve(AFFINITY, TRUTH), [0.25, 0.3, 0.5])
    assert (np.diff(ranking.correlation_priority_curve(TRUTH, TRUTH)) < 0).all()


def test_the_curve_ends_with_the_target_that_has_the_fewest_candidates():
    truth = scores(np.arange(12).reshape(4, 3), list("abcd"), list("abx"))
    assert ranking.correlation_priority_curve(truth, truth).sizes["priority"] == 3


def test_bootstrap_against_the_normal_approximation():
    values = xr.DataArray(np.random.default_rng(0).normal(size=400), dims="target")
    found = ranking.bootstrap(values)
    half = 1.96 * values.std().item() / 20
    assert found.mean == pytest.approx(values.mean().item())
    assert found.low == pytest.approx(found.mean - half, abs=0.01)
    assert found.high == pytest.approx(found.mean + half, abs=0.01)
    wider = ranking.bootstrap(values, level=0.99)
    assert wider.low < found.low < found.high < wider.high
    assert ranking.bootstrap(values) == found != ranking.bootstrap(values, seed=1)


def test_bootstrap_crosses_targets_and_seeds():
    by_seed = xr.DataArray([[0.2], [0.8]] * np.ones((2, 30)), dims=("seed", "target"))
    assert ranking.bootstrap(by_seed.isel(seed=0)) == pytest.approx((0.2, 0.2, 0.2))
    assert ranking.bootstrap(by_seed) == pytest.approx((0.5, 0.2, 0.8))
    rng = np.random.default_rng(0)
    both = xr.DataArray(rng.normal(size=(12, 1)) + rng.normal(size=20), dims=("seed", "target"))
    found = ranking.bootstrap(both)
    variance = both.mean("seed").var().item() / 20 + both.mean("target").var().item() / 12
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * np.sqrt(variance), rel=0.08)


def test_paired_comparison_cancels_what_both_methods_find_hard():
    rng = np.random.default_rng(0)
    hard = rng.normal(size=40)
    names = [f"t{i}" for i in range(40)]
    second = xr.DataArray(hard, {"target": names}, ("target",))
    first = second + 0.1 + 0.01 * rng.normal(size=40)
    found = ranking.paired_bootstrap(first, second.isel(target=slice(None, None, -1)))
    assert 0.09 < found.low < found.mean < found.high < 0.11
    assert ranking.bootstrap(first).low < ranking.bootstrap(second).mean
    assert ranking.paired_bootstrap(first, first) == (0, 0, 0)
    for other in (second.isel(target=slice(5)), second.expand_dims(seed=[0, 1])):
        with pytest.raises(ValueError, match="not measured on the same targets"):
            ranking.paired_bootstrap(first, other)


@pytest.mark.parametrize("values", [[], [0.5, np.nan], 0.5])
def test_bootstrap_refuses_what_has_no_mean(values):
    with pytest.raises(ValueError, match="at least one value per target|the score is nan at axis 0, place 1"):
        ranking.bootstrap(values)
    with pytest.raises(ValueError, match="level is 95"):
        ranking.bootstrap([0.5], level=95)


# regret


def test_regret_worked_by_hand():
    # losses of b c d for a: 1 2 6, mean 3; the score proposes b, then d, then c
    losses = -TRUTH + 10  # a: b 7 c 8 d 9; b: a 7 c 8 d 9; c: a 7 b 8 d 9; d: c 7 b 8 a 9
    np.testing.assert_allclose(ranking.regret(AFFINITY, losses, mean=False), [0, 2, 1, 2])
    np.testing.assert_allclose(ranking.regret(AFFINITY, losses, k=2, mean=False), [0, 1, 0, 0])
    assert ranking.regret(AFFINITY, losses) == pytest.approx(1.25)


def test_regret_of_the_oracle_is_zero_and_of_chance_one():
    losses = at_random()
    assert ranking.regret(-losses, losses) == 0
    assert ranking.regret(losses, losses, k=8) == 0
    found = [ranking.regret(at_random(seed=seed), losses) for seed in range(1, 400)]
    assert np.mean(found) == pytest.approx(1, abs=0.05)


def test_regret_does_not_depend_on_the_unit_of_the_loss():
    losses, score = at_random(), at_random(seed=1)
    per_image = losses + scores(np.zeros(losses.shape)).expand_dims(image=[1, 2])
    per_image = per_image + xr.DataArray([-0.5, 0.5], dims="image")
    stretched = losses * xr.DataArray(np.arange(1, 8), {"target": losses.target}, "target") + 5
    for other in (stretched, per_image):
        np.testing.assert_allclose(ranking.regret(score, other, mean=False), ranking.regret(score, losses, mean=False))


def test_regret_refuses_what_cannot_be_judged():
    losses = at_random()
    with pytest.raises(ValueError, match="same loss for s1"):
        ranking.regret(losses, losses.where(losses.target != "s1", 3.0))
    with pytest.raises(ValueError, match="k is 9, expected 1 to 8"):
        ranking.regret(losses, losses, k=9)


def assignments(n_sources, n_targets, budget):
    """Every choice of at most `budget` sources, with every assignment that lets a chosen target serve itself."""
    for size in range(1, budget + 1):
        for chosen in combinations(range(n_sources), size):
            served = [[t] if t in chosen else chosen for t in range(n_targets)]
            yield from product(*served)


def test_assignment_regret_by_brute_force():
    truth, score = at_random(5, 5, seed=3), at_random(5, 5, seed=4)
    worth, wish = truth.values.copy(), 1 / (1 + oracle.priority(score.where(score.source != score.target)).values)
    for matrix in (worth, wish):
        np.fill_diagonal(matrix, -np.inf)
        np.fill_diagonal(matrix, np.nanmax(matrix, axis=0))
    truth = truth.where(truth.source != truth.target)
    for budget in (1, 2, 3):
        ways = list(assignments(5, 5, budget))
        totals = [sum(worth[s, t] for t, s in enumerate(way)) for way in ways]
        wishes = [sum(wish[s, t] for t, s in enumerate(way)) for way in ways]
        achieved = np.array([total for total, wish in zip(totals, wishes, strict=True) if wish > max(wishes) - 1e-9])
        sets = list(combinations(range(5), budget))
        random = [sum(worth[t, t] if t in c else worth[list(c), t].mean() for t in range(5)) for c in sets]
        expected = (max(totals) - achieved) / (max(totals) - np.mean(random))
        assert np.isclose(ranking.assignment_regret(score, truth, budget), expected).any()
        assert len(expected) < len(ways) / 4


def test_assignment_regret_of_the_truths_own_order_is_small_and_errors():
    truth = at_random(6, 6)
    assert ranking.assignment_regret(truth, truth, 5) < 0.5
    with pytest.raises(ValueError, match="budget is 6, expected 1 to 5"):
        ranking.assignment_regret(truth, truth, 6)
    with pytest.raises(ValueError, match="every target must be one"):
        four = ["s0", "s1", "s2", "s3"]
        ranking.assignment_regret(at_random(4, 4).isel(source=slice(3)), scores(np.eye(3, 4), four[:3], four), 1)


# Mantel's test


def symmetric(n, seed):
    values = np.random.default_rng(seed).normal(size=(n, n))
    return scores(values + values.T)


@pytest.mark.parametrize("ranks", [False, True])
def test_mantel_against_all_permutations(ranks):
    first, second = symmetric(5, 0), symmetric(5, 1)
    upper = np.triu_indices(5, 1)
    measure = spearmanr if ranks else pearsonr
    every = [measure(first.values[np.ix_(p, p)][upper], second.values[upper])[0] for p in permutations(range(5))]
    found = ranking.mantel(first, second, ranks=ranks, n_permutations=20_000)
    assert found.correlation == pytest.approx(every[0])
    assert found.p_value == pytest.approx(np.mean(np.array(every) >= every[0] - 1e-12), abs=0.02)


def test_mantel_finds_likeness_and_not_its_opposite():
    first = symmetric(8, 0)
    assert ranking.mantel(first, 3 * first + 1) == (pytest.approx(1), pytest.approx(1e-4, abs=1e-4))
    assert ranking.mantel(first, -first).p_value > 0.99
    shuffled = first.isel(source=[3, 1, 0, 2, 7, 6, 5, 4], target=[5, 0, 1, 2, 3, 4, 7, 6])
    assert ranking.mantel(first, shuffled).correlation == pytest.approx(1)


def test_mantel_has_its_level():
    p_values = [ranking.mantel(symmetric(6, s), symmetric(6, s + 500), n_permutations=199).p_value for s in range(300)]
    assert np.mean(np.array(p_values) <= 0.1) == pytest.approx(0.1, abs=0.05)


def test_mantel_refuses_what_it_cannot_permute():
    with pytest.raises(ValueError, match="3 sources, at least 4"):
        ranking.mantel(symmetric(3, 0), symmetric(3, 1))
    with pytest.raises(ValueError, match="the same models"):
        ranking.mantel(symmetric(5, 0), symmetric(6, 1))
    with pytest.raises(ValueError, match="symmetric"):
        ranking.mantel(at_random(5, 5), symmetric(5, 1))
    with pytest.raises(ValueError, match="equally near"):
        ranking.mantel(symmetric(5, 0), symmetric(5, 1) * 0)


def test_cohesion_against_all_groups():
    matrix, members = symmetric(7, 0), np.arange(7) < 3
    gains = []
    for group in combinations(range(7), 3):
        rest = [i for i in range(7) if i not in group]
        inside = np.mean([matrix.values[i, j] for i, j in combinations(group, 2)])
        gains.append(inside - matrix.values[np.ix_(group, rest)].mean())
    found = ranking.cohesion(matrix, members, n_permutations=20_000)
    assert found.inside - found.between == pytest.approx(gains[0])
    assert found.p_value == pytest.approx(np.mean(np.array(gains) >= gains[0] - 1e-12), abs=0.02)
    assert ranking.cohesion(matrix, ~members).between == pytest.approx(found.between)


def test_a_group_is_not_held_together_by_the_cohesion_of_the_others():
    members = np.arange(12) < 6
    matrix = symmetric(12, 0) * 0.01
    matrix[:6, :6] += 1
    assert ranking.cohesion(matrix, members).p_value < 0.01
    assert ranking.cohesion(matrix, ~members).p_value > 0.05


def test_cohesion_has_its_level_and_refuses_what_is_no_group():
    p_values = [ranking.cohesion(symmetric(8, s), np.arange(8) < 4, n_permutations=199).p_value for s in range(300)]
    assert np.mean(np.array(p_values) <= 0.1) == pytest.approx(0.1, abs=0.05)
    for members in ([True] + [False] * 4, [True] * 5):
        with pytest.raises(ValueError, match="two members at least"):
            ranking.cohesion(symmetric(5, 0), members)
    for members in ([True, True], ["s0", "s1", "s2", "s3", "s4"], [0, 1, 2, 3, 4], [0.0, np.nan, 1, 1, 0]):
        with pytest.raises(TypeError, match="give true or false for each of the 5"):
            ranking.cohesion(symmetric(5, 0), members)
    with pytest.raises(ValueError, match="symmetric"):
        ranking.cohesion(at_random(5, 5), [True, True, False, False, False])


def world(seed, popular=0.3, n_targets=12, n_alone=2, relation=None):
    """An oracle of tasks that like those on their own side, the more the further out both are; some are popular."""
    rng = np.random.default_rng(seed)
    n = n_targets + n_alone
    place = (rng if relation is None else np.random.default_rng(relation)).normal(size=n)
    values = np.outer(place, place) + popular * rng.normal(size=(n, 1)) + 0.2 * rng.normal(size=(n, n))
    names = [f"s{i}" for i in range(n)]
    return scores(np.where(np.eye(n, dtype=bool), np.nan, values)[:, :n_targets], names, names[:n_targets])


def test_agreement_against_all_relabellings():
    first, second = world(0, n_targets=4), world(1, n_targets=4)
    every = []
    for targets in permutations(range(4)):
        for alone in permutations((4, 5)):
            renamed = second.isel(source=[*targets, *alone], target=list(targets))
            renamed = renamed.assign_coords(source=second.source.values, target=second.target.values)
            every.append(ranking.spearman(first, renamed))
    found = ranking.agreement_test(first, second.isel(source=[3, 1, 0, 2, 5, 4]), n_permutations=20_000)
    assert found.correlation == pytest.approx(every[0]) == pytest.approx(float(oracle.agreement(first, second).mean()))
    assert found.p_value == pytest.approx(np.mean(np.array(every) >= every[0] - 1e-12), abs=0.02)
    ties = first.copy(data=(first * 2).round())
    assert ranking.agreement_test(ties, second).correlation == pytest.approx(ranking.spearman(ties, second))


@pytest.mark.parametrize("popular", [0.0, 1.0])
def test_agreement_test_has_its_level(popular):
    p_values = [
        ranking.agreement_test(world(s, popular), world(s + 1000, popular), n_permutations=199).p_value
        for s in range(250)
    ]
    assert np.mean(np.array(p_values) <= 0.1) == pytest.approx(0.1, abs=0.045)
    assert np.mean(p_values) == pytest.approx(0.5, abs=0.06)


def test_agreement_test_finds_a_common_structure():
    assert ranking.agreement_test(world(0, relation=7), world(1, relation=7)).p_value < 0.01
    assert ranking.agreement_test(world(0), -world(0)).p_value > 0.99


def test_agreement_test_refuses_what_it_cannot_relabel():
    with pytest.raises(ValueError, match="at least four targets"):
        ranking.agreement_test(world(0, n_targets=3), world(1, n_targets=3))
    with pytest.raises(ValueError, match="each of them one of the sources"):
        ranking.agreement_test(world(0).drop_sel(source="s2"), world(1).drop_sel(source="s2"))
    with pytest.raises(ValueError, match="same tasks"):
        ranking.agreement_test(world(0), world(1).drop_sel(source="s13"))
    flat = world(0)
    flat.loc[:, "s1"] = 1.0
    with pytest.raises(ValueError, match="s1 have all the same score"):
        ranking.agreement_test(flat, world(1))


# p-values


def test_a_p_value_counts_the_given_value_and_what_is_as_large():
    assert ranking.p_value([1.0, 1.0, 0.5, 2.0]) == 0.75
    assert ranking.p_value([2.0, 1.0, 0.5, 1.5]) == 0.25
    assert ranking.p_value([0.3, 0.1 + 0.2, 0.2]) == ranking.p_value([0.1 + 0.2, 0.3, 0.2]) == 2 / 3
    assert ranking.p_value([-1e-200, -2e-200, 0.0]) == 2 / 3
    for wrong in ([], 0.5, [[0.5]]):
        with pytest.raises(ValueError, match="the statistic has the shape"):
            ranking.p_value(wrong)
    with pytest.raises(ValueError, match="the statistic is nan at permutation 1"):
        ranking.p_value([0.5, np.nan])


def test_every_permutation_test_counts_ties():
    blocks = scores(np.kron(np.eye(2), np.ones((4, 4))))  # many relabellings give the same matrix
    same = np.mean([set(group) in ({0, 1, 2, 3}, {4, 5, 6, 7}) for group in combinations(range(8), 4)])
    assert ranking.cohesion(blocks, np.arange(8) < 4, 9_999).p_value == pytest.approx(same, abs=0.01)
    assert ranking.mantel(blocks, blocks, n_permutations=9_999).p_value == pytest.approx(same, abs=0.01)
    own = blocks.where(~np.eye(8, dtype=bool))
    assert ranking.agreement_test(own, own, n_permutations=4_999).p_value == pytest.approx(same, abs=0.01)


def test_the_first_is_better_where_the_difference_is_above_zero():
    first = xr.DataArray([0.1, 0.3, 0.2], {"target": list("abc")}, ("target",))
    found = ranking.paired_bootstrap(first, first + 0.5)
    assert found.mean == pytest.approx(-0.5) and found.low == pytest.approx(-0.5) == found.high
    assert ranking.paired_bootstrap(first + 0.5, first).low == pytest.approx(0.5)


def test_regret_of_a_bank_with_a_missing_loss_is_refused():
    losses = at_random(5, 4).expand_dims(image=3).copy()
    losses[1, 2, 0] = np.nan
    with pytest.raises(ValueError, match="losses is nan at source s2, target s0"):
        ranking.regret(at_random(5, 4), losses)


def test_assignment_regret_needs_choices_that_differ():
    with pytest.raises(ValueError, match="worth the same"):
        ranking.assignment_regret(at_random(5, 5), at_random(5, 5) * 0 + 1, 2)


def test_clusters_of_targets_are_those_declared():
    truth = xr.concat(
        [oracle.load("bank", seed=seed) for seed in (0, 1, 2)], "bank", coords="minimal", compat="override"
    )
    found = ranking.clusters(truth)
    groups = {frozenset(name for name in found if found[name] == number) for number in found.values()}
    large = {"reshade", "rgb2depth", "rgb2mist", "rgb2sfnorm", "room_layout", "vanishing_point"}
    assert groups == {
        frozenset(large),
        frozenset({"edge3d", "keypoint3d", "segmentsemantic"}),
        frozenset({"curvature", "class_1000"}),
        frozenset({"autoencoder", "denoise"}),
        *(frozenset({name}) for name in ("class_places", "edge2d", "keypoint2d", "segment2d", "segment25d")),
    }


def test_bootstrap_of_clusters_draws_all_their_targets_together():
    values = xr.DataArray([0.0, 0.0, 0.0, 1.0], {"target": list("abcd")}, ("target",))
    together = {"a": 1, "b": 1, "c": 1, "d": 2}
    found = ranking.bootstrap(values, clusters=together)
    assert found.mean == 0.25
    # of two clusters a draw takes the first twice, the second twice, or each once: means 0, 1 and 1/4
    assert (found.low, found.high) == (0, 1)
    alone = ranking.bootstrap(values)
    assert ranking.bootstrap(values, clusters=dict(zip("abcd", range(4), strict=True))) == alone
    assert alone.high < 1
    shifted = ranking.paired_bootstrap(values + 0.5, values, clusters=together)
    assert shifted == pytest.approx((0.5, 0.5, 0.5))


def test_a_target_without_a_cluster_is_named():
    values = xr.DataArray([0.0, 1.0], {"target": list("ab")}, ("target",))
    with pytest.raises(KeyError, match="b"):
        ranking.bootstrap(values, clusters={"a": 1})
