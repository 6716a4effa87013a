import itertools

import numpy as np
import pytest
import xarray as xr
from scipy import linalg
from scipy.cluster import hierarchy

from support import oracle


def matrix(values, sources=None, targets=None):
    values = np.asarray(values, dtype=float)
    sources = sources or [f"s{row}" for row in range(values.shape[0])]
    targets = targets or [f"t{column}" for column in range(values.shape[1])]
    return xr.DataArray(values, dims=("source", "target"), coords={"source": sources, "target": targets})


def losses_of(values, sources=None, targets=None):
    values = np.asarray(values, dtype=float)
    coords = {
        "source": sources or [f"s{row}" for row in range(values.shape[0])],
        "target": targets or [f"t{column}" for column in range(values.shape[1])],
    }
    return xr.DataArray(values, dims=("source", "target", "image"), coords=coords)


def rates_of(weights):
    """Win rates whose ratios are those of the weights: nobody contradicts anybody."""
    weights = np.asarray(weights, dtype=float)
    names = [f"s{row}" for row in range(weights.shape[-1])]
    return xr.DataArray(
        weights[:, :, None] / (weights[:, :, None] + weights[:, None]),
        dims=("target", "source", "rival"),
        coords={"target": [f"t{row}" for row in range(len(weights))], "source": names, "rival": names},
    )


def test_win_rates_count_images():
    losses = losses_of([[[1, 1, 1, 4]], [[2, 2, 1, 3]], [[9, 9, 9, 9]]])
    rates = oracle.win_rates(losses).sel(target="t0")
    assert rates.dims == ("source", "rival")
    assert rates.sel(source="s0", rival="s1") == pytest.approx((2 + 0.5) / 4)  # two wins, a tie, a defeat
    assert rates.sel(source="s1", rival="s0") == pytest.approx((1 + 0.5) / 4)
    np.testing.assert_allclose(np.diag(rates), 0.5)


def test_win_rates_are_clipped_as_taskonomy_does():
    rates = oracle.win_rates(losses_of([[[1.0, 2.0]], [[3.0, 4.0]]])).sel(target="t0")
    assert rates.sel(source="s0", rival="s1") == 0.999
    assert rates.sel(source="s1", rival="s0") == 0.001


def test_win_rates_agree_with_a_plain_loop():
    losses = losses_of(np.random.default_rng(0).integers(0, 5, (4, 3, 40)))
    rates = oracle.win_rates(losses.transpose("image", "source", "target"))
    for target, one, other in itertools.product(range(3), range(4), range(4)):
        pairs = zip(losses.values[one, target], losses.values[other, target], strict=True)
        share = np.mean([1.0 if a < b else 0.5 if a == b else 0.0 for a, b in pairs])
        assert rates.values[target, one, other] == pytest.approx(share)
    np.testing.assert_allclose(rates.values + rates.values.transpose(0, 2, 1), 1)


def test_win_rates_see_only_the_order_of_losses():
    losses = losses_of(np.random.default_rng(1).uniform(0, 1, (4, 2, 30)))
    xr.testing.assert_allclose(oracle.win_rates(losses), oracle.win_rates(np.exp(3 * losses) - 7))


def test_win_rates_refuse_what_they_cannot_compare():
    losses = losses_of(np.ones((2, 2, 3)))
    losses[1, 0, 2] = np.nan
    with pytest.raises(ValueError, match="loss is nan at target t0, source s1, image 2"):
        oracle.win_rates(losses)
    with pytest.raises(ValueError, match="expected target and source and image"):
        oracle.win_rates(losses.isel(image=0))
    with pytest.raises(ValueError, match="at least one"):
        oracle.win_rates(losses.isel(image=slice(0)))


def test_consistent_ratios_give_back_their_weights():
    weights = np.random.default_rng(2).dirichlet(np.ones(6), size=3)
    scores = oracle.ahp(rates_of(weights))
    assert scores.dims == ("source", "target")
    np.testing.assert_allclose(scores.values.T, weights, atol=1e-12)


def test_eigenvector_agrees_with_power_iteration_and_with_scipy():
    losses = losses_of(np.random.default_rng(3).normal(np.arange(7)[:, None, None] * 0.2, 1, (7, 2, 60)))
    rates = oracle.win_rates(losses)
    scores = oracle.ahp(rates)
    for target in range(2):
        ratios = rates.values[target] / rates.values[target].T
        vector = np.ones(7)
        for _ in range(200):
            vector = ratios @ vector
            vector /= vector.sum()
        np.testing.assert_allclose(scores.values[:, target], vector, atol=1e-12)
        values, vectors = linalg.eig(ratios)
        principal = vectors[:, np.abs(values).argmax()].real
        np.testing.assert_allclose(scores.values[:, target], principal / principal.sum(), atol=1e-12)


def test_lower_losses_give_higher_scores():
    losses = losses_of(np.random.default_rng(4).normal(np.array([0.0, 1.0, 2.0])[:, None, None], 0.5, (3, 1, 200)))
    scores = oracle.ahp(oracle.win_rates(losses)).sel(target="t0")
    assert scores.sel(source="s0") > scores.sel(source="s1") > scores.sel(source="s2")
    assert scores.sum() == pytest.approx(1)


def test_ahp_refuses_rates_without_a_ratio():
    rates = rates_of([[1, 2, 3]])
    rates[0, 0, 1] = 1
    with pytest.raises(ValueError, match="win rate is 1.0 at .*, rival s1, expected a number from 1e-06 to 0.999999"):
        oracle.ahp(rates)
    rates[0, 0, 1] = np.nan
    with pytest.raises(ValueError, match="win rate is nan at target t0, source s0, rival s1"):
        oracle.ahp(rates)
    with pytest.raises(ValueError, match="dimensions"):
        oracle.ahp(rates.isel(target=0))
    with pytest.raises(ValueError, match="same order"):
        oracle.ahp(rates_of([[1, 2, 3]]).isel(rival=[1, 0, 2]))


def test_transferability_leaves_out_the_target_and_the_random_encoder():
    names = ["a", "b", "c", "random"]
    losses = losses_of(np.random.default_rng(5).uniform(0, 1, (4, 2, 50)), names, ["a", "b"])
    truth = oracle.transferability(losses)
    assert truth.dims == ("source", "target")
    assert truth.source.values.tolist() == ["a", "b", "c"]
    assert np.isnan(truth.sel(source="a", target="a")) and np.isnan(truth.sel(source="b", target="b"))
    np.testing.assert_allclose(truth.sum("source"), 1)
    direct = oracle.ahp(oracle.win_rates(losses.sel(source=["a", "c"], target=["b"])))
    xr.testing.assert_allclose(truth.sel(source=["a", "c"], target=["b"]), direct)


def test_priority_is_the_place():
    truth = matrix([[0.1, np.nan], [0.5, 0.2], [0.3, 0.2], [0.1, 0.9]])
    places = oracle.priority(truth)
    np.testing.assert_array_equal(places.values, [[3.5, np.nan], [1, 2.5], [2, 2.5], [3.5, 1]])
    with pytest.raises(ValueError, match="source and target"):
        oracle.priority(truth.isel(target=0))


def test_agreement_of_an_oracle_with_itself_and_with_its_reverse():
    truth = matrix(np.random.default_rng(6).uniform(size=(6, 3)))
    truth[2, 1] = np.nan
    np.testing.assert_allclose(oracle.agreement(truth, truth.isel(source=[3, 1, 0, 5, 4, 2]) ** 3), 1)
    np.testing.assert_allclose(oracle.agreement(truth, -truth), -1)
    assert oracle.agreement(truth, truth.isel(target=[2])).target.values.tolist() == ["t2"]
    with pytest.raises(ValueError, match="no target in common"):
        oracle.agreement(truth, truth.assign_coords(target=["x", "y", "z"]))
    level = truth.copy()
    level[:, 2] = 0
    with pytest.warns(UserWarning, match="no rank correlation for t2:"):
        assert np.isnan(oracle.agreement(truth, level)).values.tolist() == [False, False, True]


def best_by_brute_force(values, sources, targets, budget):
    best = -np.inf
    for size in range(1, budget + 1):
        for chosen in itertools.combinations(range(len(sources)), size):
            total = 0
            for column, target in enumerate(targets):
                kept = [row for row in chosen if sources[row] == target]
                options = [values[row, column] for row in kept or chosen]
                total += np.nanmax(options) if np.isfinite(options).any() else -np.inf
            best = max(best, total)
    return best


@pytest.mark.parametrize("budget", [1, 2, 3, 5])
@pytest.mark.parametrize("seed", range(3))
def test_integer_program_agrees_with_brute_force(seed, budget):
    names = list("abcde")
    values = np.random.default_rng(seed).uniform(size=(5, 5))  # own affinities too, which may be worse than transfer
    picked = oracle.select_sources(matrix(values, names, names), budget)
    chosen = picked.attrs["chosen"]
    assert picked.attrs["total"] == pytest.approx(best_by_brute_force(values, names, names, budget))
    assert 1 <= len(chosen) <= budget
    assert set(picked.values) <= set(chosen)
    assert all(picked.sel(target=name) == name for name in chosen)
    reached = sum(values[names.index(source), column] for column, source in enumerate(picked.values))
    assert picked.attrs["total"] == pytest.approx(reached)


def test_integer_program_without_own_affinities_and_with_tasks_that_are_sources_only():
    sources, targets = list("abcdex"), list("abcde")
    values = np.random.default_rng(9).uniform(size=(6, 5))
    np.fill_diagonal(values, np.nan)
    filled = values.copy()
    np.fill_diagonal(filled, np.nanmax(values, axis=0))
    for budget in (1, 2, 4):
        picked = oracle.select_sources(matrix(values, sources, targets), budget)
        assert picked.attrs["total"] == pytest.approx(best_by_brute_force(filled, sources, targets, budget))


def test_integer_program_respects_sources_that_cannot_serve():
    affinity = matrix([[0.9, np.nan], [0.1, 0.2]])
    assert oracle.select_sources(affinity, 1).values.tolist() == ["s1", "s1"]
    assert oracle.select_sources(affinity, 2).values.tolist() == ["s0", "s1"]
    with pytest.raises(ValueError, match="raise the budget"):
        oracle.select_sources(matrix([[0.9, np.nan], [np.nan, 0.2]]), 1)
    with pytest.raises(ValueError, match="no source has an affinity to t1"):
        oracle.select_sources(matrix([[0.9, np.nan]]), 1)
    with pytest.raises(ValueError, match="budget is 0, expected at least 1"):
        oracle.select_sources(affinity, 0)
    with pytest.raises(ValueError, match="source and target"):
        oracle.select_sources(affinity.rename(source="model"), 1)


def test_published_rankings():
    truth = oracle.load("taskonomy")
    assert truth.dims == ("source", "target") and truth.shape == (20, 18)
    assert set(truth.source.values) - set(truth.target.values) == {"colorization", "inpainting_whole"}
    places = oracle.priority(truth)
    for target in truth.target.values:
        ranked = places.sel(target=target)
        assert np.isnan(ranked.sel(source=target))
        assert sorted(ranked.dropna("source").values) == list(range(1, 20))
    best = {
        "autoencoder": "denoise",
        "curvature": "rgb2sfnorm",
        "edge2d": "keypoint2d",
        "rgb2depth": "rgb2mist",
        "rgb2sfnorm": "reshade",
        "class_1000": "class_places",
        "vanishing_point": "rgb2sfnorm",
    }
    for target, source in best.items():
        assert places.sel(target=target, source=source) == 1
    assert places.sel(target="class_1000", source="rgb2depth") == 19
    assert places.sel(target="edge2d", source="inpainting_whole") == 6
    assert truth.max() == 18 and truth.min() == 0


def test_load_says_what_there_is(tmp_path):
    with pytest.raises(ValueError, match="known: bank, taskonomy"):
        oracle.load("imagenet")
    with pytest.raises(ValueError, match="no seed"):
        oracle.load("taskonomy", seed=1)
    with pytest.raises(FileNotFoundError, match="python -m support.bank all"):
        oracle.load("bank", folder=tmp_path)
    with pytest.raises(FileNotFoundError, match="python -m support.bank all --seed 3"):
        oracle.load("bank", seed=3, folder=tmp_path)


def write_bank(folder, seed, values, sources, targets):
    n_images = values.shape[-1]
    np.savez_compressed(
        folder / f"losses_seed{seed}.npz",
        loss=values.astype(np.float16),
        loss_double=values[:, :1].astype(np.float16),
        loss_own=np.ones((2, n_images), np.float16),
        loss_constant=np.ones((2, n_images), np.float16),
        source=np.array(sources),
        target=np.array(targets),
        target_double=np.array(targets[:1]),
        task=np.array(sources[:2]),
        image=np.arange(n_images) + 100 * seed,
    )


def test_load_pools_the_images_of_the_banks_that_are_alike(tmp_path):
    sources, targets = ["rgb2depth", "edge2d", "denoise", "random"], ["rgb2depth", "edge2d"]
    values = np.random.default_rng(7).uniform(size=(2, 4, 2, 30)).astype(np.float16)
    for seed in range(2):
        write_bank(tmp_path, seed, values[seed], sources, targets)
    data = oracle.losses(0, tmp_path)
    assert data.source.values.tolist() == ["denoise", "edge2d", "rgb2depth", "random"]  # the table's order
    np.testing.assert_array_equal(
        data["loss"].sel(source="random", target="edge2d"), values[0, 3, 1].astype(np.float32)
    )
    one = oracle.load("bank", seed=1, folder=tmp_path)
    xr.testing.assert_allclose(one, oracle.transferability(oracle.losses(1, tmp_path)["loss"]))
    pooled = oracle.load("bank", folder=tmp_path)
    assert pooled.attrs["seeds"] == [0, 1]
    write_bank(tmp_path, 3, values[0], sources, targets)  # of another training budget
    xr.testing.assert_identical(oracle.load("bank", folder=tmp_path), pooled)
    together = losses_of(np.concatenate(values, axis=-1), sources, targets)
    expected = oracle.transferability(together)
    xr.testing.assert_allclose(pooled, expected.reindex_like(pooled))


def test_losses_by_steps_have_the_steps_of_the_bank_among_them(tmp_path):
    sources, targets = ["rgb2depth", "edge2d", "random"], ["rgb2depth", "edge2d"]
    values = np.random.default_rng(7).uniform(size=(3, 3, 2, 5)).astype(np.float16)
    write_bank(tmp_path, 2, values[1], sources, targets)
    names = {"source": sources, "target": targets, "image": np.arange(5) + 200}
    with pytest.raises(FileNotFoundError, match="python -m support.bank budget --seed 2"):
        oracle.budget(2, tmp_path)
    np.savez(tmp_path / "budget_seed2.npz", loss=values[[0, 2]], steps=[60, 240], head_steps=120, **names)
    found = oracle.budget(2, tmp_path)
    assert found.steps.values.tolist() == [60, 120, 240] and found.attrs["head_steps"] == 120
    assert found.source.values.tolist() == ["edge2d", "rgb2depth", "random"]
    np.testing.assert_array_equal(found.sel(**names).transpose("steps", "source", "target", "image"), values)


def test_crossed_networks_bring_task_and_family(tmp_path):
    sources, targets = ["edge2d@plain", "edge2d@residual", "reshade@plain"], ["reshade", "edge2d", "curvature"]
    values = np.random.default_rng(8).uniform(size=(3, 3, 5)).astype(np.float16)
    with pytest.raises(FileNotFoundError, match="python -m support.bank crossed --seed 4"):
        oracle.crossed(folder=tmp_path)
    names = {"source": sources, "target": targets, "image": np.arange(5)}
    np.savez(tmp_path / "crossed_seed4.npz", loss=values, loss_own=values[:, 0], **names)
    found = oracle.crossed(folder=tmp_path)
    assert found.task.values.tolist() == ["edge2d", "edge2d", "reshade"]
    assert found.family.values.tolist() == ["plain", "residual", "plain"]
    assert found.target.values.tolist() == ["curvature", "edge2d", "reshade"]  # the table's order
    np.testing.assert_array_equal(found["loss"].sel(**names), values)
    np.testing.assert_array_equal(found["loss_own"], values[:, 0])


# halves and trees


def test_half_splits_use_every_image_once():
    rng = np.random.default_rng(0)
    losses = xr.DataArray(
        rng.random((4, 2, 7)),
        {"source": list("abcd"), "target": list("ab"), "image": range(7)},
        ("source", "target", "image"),
    )
    pairs = oracle.half_splits(losses, n_splits=3, seed=1)
    again = oracle.half_splits(losses, n_splits=3, seed=1)
    assert len(pairs) == 3
    for pair, other in zip(pairs, again, strict=True):
        for one, same in zip(pair, other, strict=True):
            xr.testing.assert_identical(one, same)
    order = np.random.default_rng(1).permutation(7)
    xr.testing.assert_identical(pairs[0][0], oracle.transferability(losses.isel(image=order[:3])))
    xr.testing.assert_identical(pairs[0][1], oracle.transferability(losses.isel(image=order[3:6])))
    with pytest.raises(ValueError, match="at least two images"):
        oracle.half_splits(losses.isel(image=[0]))


def test_halves_of_clear_losses_agree_and_of_noise_do_not():
    rng = np.random.default_rng(0)
    coords = {"source": [f"s{i}" for i in range(12)], "target": ["s0", "s1", "s2", "s3"], "image": range(200)}
    noise = xr.DataArray(rng.normal(size=(12, 4, 200)), coords, ("source", "target", "image"))
    clear = noise + xr.DataArray(np.arange(12) * 2.0, {"source": coords["source"]}, "source")
    for losses, low, high in ((clear, 0.99, 1), (noise, -0.4, 0.4)):
        found = np.mean([oracle.agreement(*pair) for pair in oracle.half_splits(losses)])
        assert low <= found <= high


def test_tree_joins_sources_that_serve_the_same_targets():
    rng = np.random.default_rng(0)
    names = [f"{kind}{i}" for kind in "xy" for i in range(4)]
    serves = np.kron(np.eye(2), np.ones((4, 4))) + 0.1 * rng.random((8, 8))
    truth = xr.DataArray(serves, {"source": names, "target": names}, ("source", "target"))
    linkage = oracle.tree(truth.where(truth.source != truth.target))
    assert linkage.shape == (7, 4)
    groups = hierarchy.fcluster(linkage, 2, "maxclust")
    assert len(set(groups[:4])) == len(set(groups[4:])) == 1 and groups[0] != groups[4]
    np.testing.assert_allclose(oracle.tree(truth), linkage)  # a target's own network does not count
    with pytest.raises(ValueError, match="x0 and x1 cannot be compared"):
        oracle.tree(truth.isel(target=slice(0, 4)))


def test_tree_of_the_published_rankings_keeps_2d_and_3d_tasks_apart():
    truth = oracle.load("taskonomy")
    groups = dict(zip(truth.source.values, hierarchy.fcluster(oracle.tree(truth), 2, "maxclust"), strict=True))
    assert groups["rgb2sfnorm"] == groups["reshade"] == groups["keypoint3d"] != groups["autoencoder"]
    assert groups["autoencoder"] == groups["denoise"]


def test_heights_of_the_tree_are_means_over_the_pairs_of_sources():
    rng = np.random.default_rng(3)
    truth = matrix(rng.random((4, 9)))
    places = oracle.priority(truth).values
    far = 1 - np.corrcoef(places)
    joined, found = [{0}, {1}, {2}, {3}], []
    while len(joined) > 1:
        pairs = list(itertools.combinations(joined, 2))
        heights = [np.mean([far[i, j] for i in one for j in other]) for one, other in pairs]
        one, other = pairs[int(np.argmin(heights))]
        found.append(min(heights))
        joined = [group for group in joined if group not in (one, other)] + [one | other]
    np.testing.assert_allclose(oracle.tree(truth)[:, 2], found)


def test_one_entry_adds_an_oracle(monkeypatch, tmp_path):
    mine = matrix([[0.1], [0.9]])
    monkeypatch.setitem(oracle.ORACLES, "mine", lambda seed, folder: mine + (seed or 0) + len(str(folder)))
    assert float(oracle.load("mine", seed=2, folder="abc")[0, 0]) == 5.1
    with pytest.raises(ValueError, match="known: bank, taskonomy, mine"):
        oracle.load("yours")


def test_a_damaged_bank_is_named_with_the_command_that_makes_it_again(tmp_path):
    path = tmp_path / "losses_seed3.npz"
    np.savez_compressed(path, loss=np.array([object()], object))
    whole = path.read_bytes()
    for content in (b"", b"no archive", whole, whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"losses_seed3.npz is damaged .*: remove it and run python -m support"):
            oracle.losses(3, tmp_path)


def test_a_target_needs_a_source_beside_its_own():
    losses = losses_of(np.ones((2, 1, 3)), ["a", "random"], ["a"])
    with pytest.raises(ValueError, match="no source but its own is measured for a"):
        oracle.transferability(losses)


def test_small_differences_count_in_the_integer_program():
    affinity = matrix([[1.0, 1.0 + 2e-9], [1.0 + 1e-9, 1.0]], ["a", "b"], ["t", "u"])
    assert oracle.select_sources(affinity, 1).values.tolist() == ["a", "a"]
    assert oracle.select_sources(affinity[::-1], 2).values.tolist() == ["b", "a"]


def test_two_sources_need_three_targets_in_common():
    truth = matrix([[3, 1, 2], [1, 2, 3], [2, 3, 1]])
    assert oracle.tree(truth).shape == (2, 4)
    with pytest.raises(ValueError, match="s0 and s1 cannot be compared: too few targets"):
        oracle.tree(truth[:, :2])
