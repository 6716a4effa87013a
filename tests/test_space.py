import numpy as np
import pytest
import xarray as xr
from scipy.cluster.hierarchy import fcluster

from support import space

DIMS = ("model", "image", "y", "x", "channel")


def some_maps(models=5, images=7, side=6, channels=3, seed=0):
    values = np.random.default_rng(seed).normal(size=(models, images, side, side, channels)) + 0.3
    coords = {"model": [f"m{i}" for i in range(models)], "image": np.arange(images)}
    return xr.DataArray(values.astype(np.float32), coords, DIMS)


def equation_1(maps):
    """Distance of two models written out pair by pair and image by image, in double precision."""
    values = maps.values.astype(np.float64).reshape(*maps.shape[:2], -1)
    out = np.empty((len(values), len(values)))
    for i, a in enumerate(values):
        for j, b in enumerate(values):
            cosines = [u @ v / np.sqrt((u @ u) * (v @ v)) for u, v in zip(a, b, strict=True)]
            out[i, j] = len(cosines) / sum(cosines)
    return out


@pytest.mark.parametrize("channels", ["mean", "keep"])
def test_distance_is_equation_1_pair_by_pair(channels):
    maps = some_maps()
    compared = maps.mean("channel") if channels == "mean" else maps
    found = space.distance(space.affinity(maps, channels=channels))
    np.testing.assert_allclose(found.values, equation_1(compared), rtol=1e-5)


def test_mean_and_kept_channels_differ_and_the_mean_may_be_taken_before():
    maps = some_maps()
    mean, keep = space.affinity(maps, channels="mean"), space.affinity(maps, channels="keep")
    assert float(abs(mean - keep).max()) > 0.01
    xr.testing.assert_allclose(mean, space.affinity(maps.mean("channel"), channels="mean"))


def test_symmetric_with_ones_on_the_diagonal_and_named_axes():
    affinity = space.affinity(some_maps())
    assert affinity.dims == ("source", "target")
    np.testing.assert_array_equal(affinity, affinity.T)
    np.testing.assert_array_equal(np.diag(affinity), 1)


def test_bounds_hold_for_maps_that_differ_by_their_scale_only():
    one = some_maps(models=1, side=9)
    values = np.concatenate([one * scale for scale in (1, 3, 0.1, -7)]).astype(np.float32)
    affinity = space.affinity(xr.DataArray(values, {"model": list("abcd"), "image": np.arange(7)}, DIMS))
    assert float(abs(affinity).max()) <= 1 and float(space.distance(affinity).min()) >= 1
    np.testing.assert_allclose(abs(affinity), 1, atol=1e-6)


def test_invariant_to_the_scale_of_any_map_and_to_the_order_of_images():
    maps = some_maps()
    scale = xr.DataArray(10.0 ** np.random.default_rng(1).uniform(-20, 15, maps.shape[:2]), dims=("model", "image"))
    xr.testing.assert_allclose(space.affinity((maps * scale).astype("float32")), space.affinity(maps), rtol=1e-5)
    xr.testing.assert_allclose(space.affinity(maps.isel(image=slice(None, None, -1))), space.affinity(maps), rtol=1e-6)


def test_known_angles():
    maps = xr.zeros_like(some_maps(models=3, images=1).mean("channel"))
    maps[0, 0, 0, 0], maps[1, 0, 0, 0], maps[1, 0, 0, 1], maps[2, 0, 0, 0] = 1, 1, np.sqrt(3), -2
    affinity = space.affinity(maps)
    np.testing.assert_allclose(affinity[0], [1, 0.5, -1], atol=1e-6)
    np.testing.assert_allclose(space.distance(affinity)[0], [1, 2, np.inf], rtol=1e-6)


def test_blocks_of_images_change_nothing(monkeypatch):
    maps = some_maps()
    whole = space.affinity(maps)
    monkeypatch.setattr(space, "VALUES_AT_ONCE", 2 * maps.size // maps.sizes["image"])
    xr.testing.assert_allclose(space.affinity(maps), whole, rtol=1e-7)
    assert space.cosines(maps).sizes["image"] == maps.sizes["image"]


@pytest.mark.parametrize("channels", ["mean", "keep"])
def test_maps_for_several_references_count_as_maps_of_further_images(channels):
    several = [some_maps(seed=seed) for seed in range(4)]
    maps = xr.concat(several, "reference").transpose("model", "image", "reference", "y", "x", "channel")
    laid_in_a_row = xr.concat([one.assign_coords(image=one.image + 100 * n) for n, one in enumerate(several)], "image")
    expected = space.affinity(laid_in_a_row, channels)
    xr.testing.assert_allclose(space.affinity(maps, channels), expected, rtol=1e-6)
    by_image = space.cosines(maps, channels)
    assert by_image.dims == ("image", "source", "target") and by_image.sizes["image"] == 7
    xr.testing.assert_allclose(by_image, sum(space.cosines(one, channels) for one in several) / 4, rtol=1e-6)
    maps[2, 5, 3] = 0
    with pytest.raises(ValueError, match="model m2 for image 5 is zero"):
        space.affinity(maps, channels)


def test_affinity_is_the_mean_of_the_cosines():
    maps = some_maps()
    xr.testing.assert_allclose(space.cosines(maps).mean("image"), space.affinity(maps).drop_attrs(), rtol=1e-6)


@pytest.mark.parametrize("value, word", [(0, "zero everywhere"), (np.nan, "not finite"), (np.inf, "not finite")])
def test_a_map_without_direction_names_model_and_image(value, word):
    maps = some_maps().assign_coords(image=np.arange(7) + 40)
    maps[2, 3] = value
    with pytest.raises(ValueError, match=f"model m2 for image 43 is {word}"):
        space.affinity(maps)


def test_one_value_that_is_not_finite_is_enough():
    maps = some_maps()
    maps[1, 4, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="model m1 for image 4"):
        space.affinity(maps)


def test_wrong_input_says_what_is_expected():
    maps = some_maps()
    with pytest.raises(ValueError, match="select one"):
        space.affinity(maps.expand_dims(attribution=["saliency", "epsilon_lrp"]))
    with pytest.raises(ValueError, match="hold no channels"):
        space.affinity(maps.mean("channel"), channels="keep")
    with pytest.raises(ValueError, match="mean"):
        space.affinity(maps, channels="average")
    with pytest.raises(ValueError, match="dimensions"):
        space.affinity(maps.rename(image="picture"))
    with pytest.raises(ValueError, match="no map"):
        space.affinity(maps.isel(image=slice(0)))


def test_neighbours_are_sorted_and_leave_the_model_itself_out():
    affinity = space.affinity(some_maps())
    table = space.neighbours(affinity)
    assert table.shape == (5, 4)
    for target, names in table.iterrows():
        assert target not in names.values
        values = [float(affinity.sel(source=n, target=target)) for n in names]
        assert values == sorted(values, reverse=True)
    assert (space.neighbours(affinity, k=2) == table[[1, 2]]).all(axis=None)


def test_the_tree_joins_what_is_alike_first():
    first, second = some_maps(models=2, seed=0), some_maps(models=2, seed=1)
    noise = some_maps(models=4, seed=2).values * 0.05
    values = np.stack([first[0], second[0], first[0], second[0]]) + noise
    maps = xr.DataArray(values, {"model": list("abcd"), "image": np.arange(7)}, DIMS)
    groups = fcluster(space.tree(space.affinity(maps)), 2, "maxclust")
    assert groups[0] == groups[2] != groups[1] == groups[3]


def test_a_tree_needs_a_symmetric_square():
    affinity = space.affinity(some_maps())
    with pytest.raises(ValueError, match="symmetric"):
        space.tree(affinity.isel(source=slice(1, None)))
    lopsided = affinity.copy()
    lopsided[0, 1] += 0.5
    with pytest.raises(ValueError, match="symmetric"):
        space.tree(lopsided)


def test_trees_agree_with_themselves_and_not_with_noise():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(2, 12, 30))
    first, second = (labelled(np.corrcoef(p)) for p in points)
    assert space.cophenetic_agreement(first, first) == pytest.approx(1)
    order = [5, 2, 0, 1, 3, 4, 7, 6, 11, 10, 9, 8]
    assert space.cophenetic_agreement(first, first.isel(source=order, target=order)) == pytest.approx(1)
    assert abs(space.cophenetic_agreement(first, second)) < 0.5


def test_cophenetic_agreement_worked_by_hand():
    # a tree joins c and d at 0.2, a and b at 0.6, all at 0.9; the other b and c at 0.1, d at 0.5, a at 0.9
    first = labelled(1 - np.array([[0, 6, 9, 9], [6, 0, 9, 9], [9, 9, 0, 2], [9, 9, 2, 0]]) / 10)
    second = labelled(1 - np.array([[0, 9, 9, 9], [9, 0, 1, 5], [9, 1, 0, 5], [9, 5, 5, 0]]) / 10)
    expected = np.corrcoef([6, 9, 9, 9, 9, 2], [9, 9, 9, 1, 5, 5])[0, 1]
    assert space.cophenetic_agreement(first, second) == pytest.approx(expected)
    with pytest.raises(ValueError, match="three models in common, there are 2"):
        space.cophenetic_agreement(first[:2, :2], second)


def labelled(values):
    names = [f"m{i}" for i in range(len(values))]
    return xr.DataArray(values, {"source": names, "target": names}, ("source", "target"))


@pytest.mark.parametrize("channels", ["mean", "keep"])
def test_chance_is_the_mean_cosine_of_different_images(channels, monkeypatch):
    monkeypatch.setattr(space, "VALUES_AT_ONCE", 1100)  # two blocks of images
    maps = some_maps(models=3, images=4)
    found = space.chance(maps, channels)
    compared = (maps.mean("channel") if channels == "mean" else maps).values.astype(np.float64).reshape(3, 4, -1)
    for i, one in enumerate(compared):
        for j, other in enumerate(compared):
            pairs = [(one[a], other[b]) for a in range(4) for b in range(4) if a != b]
            expected = np.mean([u @ v / np.sqrt((u @ u) * (v @ v)) for u, v in pairs])
            np.testing.assert_allclose(found[i, j], expected, atol=1e-5)
    assert list(found.source.values) == list(maps.model.values) and np.array_equal(found, found.T)


def test_chance_is_the_affinity_of_models_that_see_nothing_of_the_image():
    maps = some_maps(models=2, images=1)
    same = maps.isel(image=[0, 0, 0]).assign_coords(image=[0, 1, 2])
    xr.testing.assert_allclose(space.chance(same), space.affinity(same).assign_attrs())
    with pytest.raises(ValueError, match="at least two"):
        space.chance(maps)


def test_chance_with_reference_images_is_the_mean_over_them():
    maps = some_maps(models=2, images=3).rename(channel="reference").transpose("model", "image", "reference", "y", "x")
    each = [space.chance(maps.isel(reference=r)).values for r in range(3)]
    np.testing.assert_allclose(space.chance(maps), np.mean(each, axis=0), atol=1e-6)
