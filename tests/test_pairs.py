import itertools

import numpy as np
import pytest
import xarray as xr

from support import pairs, space


def some_maps(n_models=4, n_images=6, seed=0):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(n_models, n_images, 5, 7)) + rng.normal(size=(1, n_images, 5, 7)) + 0.3
    return xr.DataArray(values, {"model": list("abcdefgh"[:n_models])}, ("model", "image", "y", "x"))


def test_crossed_images_give_affinity_and_chance():
    maps = some_maps()
    cosines = pairs.crossed(maps)
    assert cosines.dims == ("source", "target", "image", "other") and cosines.dtype == np.float32
    a, b = maps.values[1, 2].ravel(), maps.values[3, 5].ravel()
    assert cosines.values[1, 3, 2, 5] == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-6)
    affinity, chance = pairs.means(cosines, np.ones((1, 6)), np.arange(6))
    first, second = np.array(list(itertools.combinations(range(4), 2))).T
    np.testing.assert_allclose(affinity[0], space.affinity(maps).values[first, second], atol=1e-6)
    np.testing.assert_allclose(chance[0], space.chance(maps).values[first, second], atol=1e-6)


def test_colours_count_where_they_were_kept():
    rng = np.random.default_rng(1)
    maps = xr.DataArray(
        rng.normal(size=(2, 3, 4, 4, 3)), {"model": ["a", "b"]}, ("model", "image", "y", "x", "channel")
    )
    affinity, _ = pairs.means(pairs.crossed(maps, "keep"), np.ones((1, 3)), np.arange(3))
    assert affinity[0, 0] == pytest.approx(float(space.affinity(maps, "keep")[0, 1]), abs=1e-6)


def test_a_map_without_direction_is_named():
    maps = some_maps()
    maps[2, 4] = 0
    with pytest.raises(ValueError, match="model c for image 4"):
        pairs.crossed(maps)


def test_maps_of_reference_images_are_refused():
    with pytest.raises(ValueError, match="select one reference"):
        pairs.crossed(some_maps().expand_dims("reference", 2))


def test_weights_count_images_and_groups_are_left_out_of_chance():
    maps = some_maps(n_models=2)
    groups = np.array([0, 0, 1, 1, 2, 2])
    weights = np.array([[1, 2, 0, 1, 0, 3], [1, 1, 1, 1, 1, 1], [4, 1, 0, 0, 0, 0]])
    affinity, chance = pairs.means(pairs.crossed(maps), weights, groups)
    for weight, found, by_chance in zip(weights, affinity[:, 0], chance[:, 0], strict=True):
        drawn = np.repeat(np.arange(6), weight)
        taken = maps.isel(image=drawn)
        assert found == pytest.approx(float(space.affinity(taken)[0, 1]), abs=1e-6)
        cosines = pairs.crossed(taken).values[0, 1]
        apart = groups[drawn][:, None] != groups[drawn]
        assert by_chance == pytest.approx(cosines[apart].mean(), abs=1e-6) if apart.any() else np.isnan(by_chance)


def test_intervals_cover_what_is_true_about_as_often_as_they_say():
    covered = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        photograph = np.repeat(np.arange(15), 2)
        seen = rng.normal(size=(15, 1, 40))[photograph]  # two tiles of a photograph look alike
        values = np.stack([seen + rng.normal(size=(30, 1, 40)), seen + rng.normal(size=(30, 1, 40))])
        maps = xr.DataArray(values, {"model": ["a", "b"]}, ("model", "image", "y", "x"))
        table = pairs.intervals(pairs.crossed(maps), photograph, n_resamples=300, seed=seed)
        covered.append(table.above_low.iloc[0] < 0.495 < table.above_high.iloc[0])  # ½, less than that in 40 dimensions
    assert 0.8 < np.mean(covered) <= 1


def test_intervals_name_the_pairs_and_lie_around_the_estimates():
    maps = some_maps(n_images=12)
    table = pairs.intervals(pairs.crossed(maps), np.arange(12), n_resamples=200)
    assert list(table.index) == list(itertools.combinations("abcd", 2))
    assert (table.low <= table.affinity).all() and (table.affinity <= table.high).all()
    assert (table.above_low <= table.above).all() and (table.above <= table.above_high).all()
    np.testing.assert_allclose(table.above, table.affinity - table.chance)
    assert table["first"].sum() == pytest.approx(1)
    assert table.equals(pairs.intervals(pairs.crossed(maps), np.array(list("abcdefghijkl")), n_resamples=200))


@pytest.mark.parametrize(
    ("n_models", "groups", "level", "said"),
    [(2, [0, 1], 0.95, "2 groups for 6 images"), (2, [0, 0, 0, 1, 1, 1], 0.95, "three groups of images, not 2 and 2")]
    + [(1, range(6), 0.95, "not 1 and 6"), (2, range(6), 1, "inside")],
)
def test_what_has_no_interval_is_refused(n_models, groups, level, said):
    with pytest.raises(ValueError, match=said):
        pairs.intervals(pairs.crossed(some_maps(n_models)), np.array(groups), level)
