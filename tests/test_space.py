import subprocess
import sys

import numpy as np
import pytest
import xarray as xr
from scipy.cluster.hierarchy import fcluster
from sklearn.random_projection import johnson_lindenstrauss_min_dim

from support import directions, library, space

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
    monkeypatch.setattr(directions, "VALUES_AT_ONCE", 2 * maps.size // maps.sizes["image"])
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


def filled(maps, **settings):
    index = space.ModelSpace(**settings)
    for name in maps.model.values:
        index.insert(str(name), maps.sel(model=name))
    return index


def unit_vectors(maps):
    """A model's vector written out: unit maps in a row, over the root of their number."""
    values = maps.values.astype(np.float64).reshape(*maps.shape[:2], -1)
    values /= np.linalg.norm(values, axis=-1, keepdims=True)
    return values.reshape(len(values), -1) / np.sqrt(values.shape[1])


@pytest.mark.parametrize("channels", ["mean", "keep"])
@pytest.mark.parametrize("references", [1, 3])
def test_the_index_has_the_affinity_of_all_maps_together(channels, references):
    maps = xr.concat([some_maps(seed=seed) for seed in range(references)], "reference")
    maps = maps.transpose("model", "image", "reference", "y", "x", "channel")
    maps = maps.isel(reference=0) if references == 1 else maps
    index = filled(maps, channels=channels)
    xr.testing.assert_allclose(index.affinity(), space.affinity(maps, channels), rtol=0, atol=1e-6)
    xr.testing.assert_identical(
        index.affinity().coords.to_dataset(), space.affinity(maps, channels).coords.to_dataset()
    )
    assert len(index) == 5 and index.models == list(maps.model.values) and "m3" in index and "m9" not in index


@pytest.mark.parametrize("size", [None, 64])
def test_the_order_of_insertion_does_not_matter(size):
    maps = some_maps().mean("channel")
    order = [3, 0, 4, 2, 1]
    index, other = filled(maps, sketch=size), filled(maps.isel(model=order), sketch=size)
    names = maps.model.values
    expected = index.affinity().sel(source=names, target=names)
    xr.testing.assert_allclose(other.affinity().sel(source=names, target=names), expected, rtol=0, atol=1e-6)
    for name in names:
        assert list(index.neighbours(name).index) == list(other.neighbours(name).index)


@pytest.mark.parametrize("size", [None, 64])
def test_removal_undoes_insertion(size):
    maps = some_maps().mean("channel")
    without = filled(maps.drop_sel(model="m2"), sketch=size)
    index = filled(maps, sketch=size)
    index.remove("m2")
    xr.testing.assert_identical(index.affinity(), without.affinity())
    assert list(index.neighbours("m4").index) == list(without.neighbours("m4").index)
    index.insert("m2", maps.sel(model="m2"))
    whole, names = filled(maps, sketch=size).affinity(), maps.model.values
    xr.testing.assert_allclose(index.affinity().sel(source=names, target=names), whole, rtol=0, atol=1e-6)
    for name in index.models:
        index.remove(name)
    assert len(index) == 0 and index.affinity().size == 0
    index.insert("other", some_maps(images=2, side=5).isel(model=0))  # an empty space takes maps of any probe


def test_an_insertion_reads_that_model_once_and_multiplies_it_once_with_each_other(monkeypatch):
    maps = some_maps().mean("channel")
    index = filled(maps[:4])
    read, products = [], []
    rows, dot = directions._rows, np.vecdot
    monkeypatch.setattr(directions, "_rows", lambda block, channels: read.append(block.size) or rows(block, channels))
    monkeypatch.setattr(np, "vecdot", lambda a, b: products.append(a.size) or dot(a, b))
    index.insert("m4", maps[4])
    one = maps[4].size
    assert sum(read) == one and products == [one] * 4
    index.affinity(), index.neighbours("m1"), index.remove("m0")
    assert sum(read) == one and len(products) == 4


@pytest.mark.parametrize("size", [None, 4096])
def test_the_nearest_of_a_model_and_of_maps(size):
    maps = some_maps().mean("channel")
    table, index = space.neighbours(space.affinity(maps)), filled(maps, sketch=size)
    near = 1e-6 if size is None else 0.1
    for name in maps.model.values:
        found = index.neighbours(name, k=3)
        assert name not in found and len(found) == 3 and (np.diff(found) <= 0).all()
        if size is None:
            assert list(found.index) == list(table.loc[name])[:3]
        expected = space.affinity(maps).sel(source=list(found.index), target=name)
        np.testing.assert_allclose(found, expected, atol=near)
        of_maps = index.neighbours(maps.sel(model=[name]), k=4)
        assert of_maps.index[0] == name and of_maps.iloc[0] == pytest.approx(1, abs=1e-6)
        np.testing.assert_allclose(of_maps.iloc[1:], found, atol=1e-6)
    assert len(index.neighbours("m0", k=99)) == 4 and len(index.neighbours(maps[0], k=99)) == 5
    assert len(space.ModelSpace(sketch=size).neighbours(maps[0])) == 0


def test_blocks_of_images_change_nothing_in_the_index(monkeypatch):
    maps = some_maps().mean("channel")
    whole = filled(maps, sketch=64).sketches()
    monkeypatch.setattr(directions, "VALUES_AT_ONCE", 1)
    np.testing.assert_array_equal(filled(maps, sketch=64).sketches(), whole)


def test_a_refused_model_leaves_the_index_as_it_was():
    maps = some_maps().assign_attrs(probe_sha256="a").assign_coords(attribution="saliency")
    for size in (None, 64):
        index = filled(maps, sketch=size)
        before = index.affinity()
        zero, other = maps[0].copy(), maps[0]
        zero[3] = 0
        for wrong, message in {
            "model m9 for image 3 is zero": zero,
            "another image": other.assign_coords(image=np.arange(7) + 1),
            "another sizes": other[:, :4],
            "another method": other.assign_coords(attribution="gradient"),
            "another probe_sha256": other.assign_attrs(probe_sha256="b"),
            "maps of 5 models": maps,
            "dimensions": other.rename(image="picture"),
        }.items():
            with pytest.raises(ValueError, match=wrong):
                index.insert("m9", message)
        with pytest.raises(ValueError, match="there is a model 'm1' already"):
            index.insert("m1", other)
        with pytest.raises(KeyError, match="no model 'm9' in this space of 5"):
            index.remove("m9")
        with pytest.raises(KeyError, match="no model 'm9'"):
            index.neighbours("m9")
        with pytest.raises(ValueError, match="k is 0, expected at least 1"):
            index.neighbours("m1", k=0)
        xr.testing.assert_identical(index.affinity(), before)
        assert index.models == list(maps.model.values)
    with pytest.raises(ValueError, match="multiple of 8"):
        space.ModelSpace(sketch=12)


def test_without_faiss_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert filled(some_maps()).neighbours("m0").size == 4
    with pytest.raises(ImportError, match="pip install"):
        space.ModelSpace(sketch=64)


def test_sketches_made_elsewhere_are_the_same_as_those_of_an_insertion():
    maps = some_maps().mean("channel")
    points, index = unit_vectors(maps), filled(maps, sketch=64, seed=3)
    made = space.sketch(points, 64, seed=3)
    np.testing.assert_allclose(index.sketches(), made, atol=1e-6)
    other = space.ModelSpace(sketch=64, seed=3)
    other.insert_sketches(maps.model.values, made)
    xr.testing.assert_allclose(other.affinity(), index.affinity(), rtol=0, atol=1e-5)
    np.testing.assert_allclose(index.affinity(), 1 - ((made[:, None] - made) ** 2).sum(2) / 2, atol=1e-5)
    for names, values, message in [
        (["m0"], made[:1], "already"),
        (["a", "a"], made[:2], "twice"),
        (["a"], made[:2], "expected"),
        (["a"], made[:1] * np.nan, "sketch is nan at model a, number 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            other.insert_sketches(names, values)
    with pytest.raises(ValueError, match="whole maps"):
        space.ModelSpace().insert_sketches(["a"], made[:1])
    with pytest.raises(ValueError, match="whole maps"):
        space.ModelSpace().sketches()
    with pytest.raises(ValueError, match="positive multiple"):
        space.sketch(points, 20)
    with pytest.raises(ValueError, match="shape"):
        space.sketch(points[None], 64)


class Counted(str):
    """A name that counts how often it is compared."""

    compared = 0
    __hash__ = str.__hash__

    def __eq__(self, other):
        Counted.compared += 1
        return str.__eq__(self, other)


def test_a_name_is_found_without_looking_at_the_others():
    index, names = space.ModelSpace(sketch=8), [str(i) for i in range(500)]
    index.insert_sketches(names, np.random.default_rng(0).normal(size=(500, 8)))
    for remove in ("250", "0", "499"):
        index.remove(remove)
        names.remove(remove)
        assert index.models == names and remove not in index and all(name in index for name in names)
    vectors = index.sketches()
    for name, vector in list(zip(names, vectors, strict=True))[::50]:
        np.testing.assert_array_equal(index._index.reconstruct(index._place(name)), vector)
    Counted.compared = 0
    assert Counted("498") in index and Counted("none") not in index
    index.neighbours(Counted("498"))
    index.insert_sketches([Counted("new")], vectors[:1])
    assert Counted.compared < 10


def test_a_sketch_is_linear_and_belongs_to_its_seed():
    points = unit_vectors(some_maps())
    one = space.sketch(points, 64)
    np.testing.assert_allclose(space.sketch(points[0] + 2 * points[1], 64), one[0] + 2 * one[1], atol=1e-6)
    assert not np.allclose(one, space.sketch(points, 64, seed=1), atol=0.01)


def spiky(models, values, seed=0):
    """Unit vectors of which four values hold nearly all."""
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(models, values)) * 0.01 / np.sqrt(values)
    points[:, :4] += rng.normal(size=(models, 4))
    return points / np.linalg.norm(points, axis=1, keepdims=True)


@pytest.mark.parametrize("hashes", [1, space.HASHES, 16])
@pytest.mark.parametrize("points", [unit_vectors(some_maps(models=2)), spiky(2, 756)], ids=["maps", "spikes"])
def test_squared_distances_of_sketches_have_the_stated_mean_and_deviation(points, hashes):
    difference = points[0] - points[1]
    sketches = np.stack([space.sketch(difference, 16, seed, hashes) for seed in range(2000)])
    ratios = (sketches**2).sum(1) / (difference @ difference)
    exact = np.sqrt(2 / 16 * (1 - (difference**4).sum() / (difference @ difference) ** 2))
    assert ratios.mean() == pytest.approx(1, abs=4 * exact / np.sqrt(2000) + 1e-6)
    assert exact <= np.sqrt(2 / 16)
    assert ratios.std() == pytest.approx(exact, rel=0.15)


@pytest.mark.parametrize("hashes", [space.HASHES, "dense"])
def test_the_bound_of_johnson_and_lindenstrauss_holds(hashes):
    """Share of projections in which any pair is off by more than the stated error, and of pairs for each error."""
    points = unit_vectors(some_maps(models=8, images=4))
    first, second = np.triu_indices(8, 1)
    differences = points[first] - points[second]
    size = space.sketch_size(8, error=0.5, failure=0.1)
    many = size if hashes == "dense" else hashes
    exact = (differences**2).sum(1)
    ratios = [(space.sketch(differences, size, s, many) ** 2).sum(1) / exact - 1 for s in range(200)]
    off = np.abs(ratios)
    assert (off.max(1) > 0.5).mean() <= 0.1
    for error in (0.2, 0.3, 0.4):
        assert (off > error).mean() <= 2 * np.exp(-size * (error**2 / 4 - error**3 / 6))
    assert (off > 0.1).mean() > 0.1  # the sketch is no copy


def test_size_of_a_sketch_agrees_with_scikit_learn_and_grows_as_it_must():
    for n_models, error in [(20, 0.2), (1000, 0.1), (100_000, 0.3)]:
        theirs = johnson_lindenstrauss_min_dim(n_models, eps=error)  # which leaves a chance of 1/n that all is well
        ours = space.sketch_size(n_models, error, failure=(n_models - 1) / n_models)
        assert theirs <= ours <= theirs + space.HASHES + 1
    assert space.sketch_size(100, 0.1) > space.sketch_size(100, 0.2) > space.sketch_size(10, 0.2)
    assert space.sketch_size(100, 0.1, 0.001) > space.sketch_size(100, 0.1, 0.1)
    assert space.sketch_size(100, 0.1) % space.HASHES == 0
    for wrong in [(9, 0, 0.01), (9, 1, 0.01), (9, 0.1, 0), (9, 0.1, 1), (9, np.nan, 0.01)]:
        with pytest.raises(ValueError, match="between 0 and 1"):
            space.sketch_size(*wrong)
    with pytest.raises(ValueError, match="n_models is 1, expected at least 2"):
        space.sketch_size(1, 0.1)


def test_larger_sketches_recall_more_of_the_nearest():
    rng = np.random.default_rng(0)
    kinds = rng.normal(size=(20, 3000))
    points = kinds[rng.integers(20, size=300)] + 1.2 * rng.normal(size=(300, 3000))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    exact = points @ points.T
    names = [str(i) for i in range(300)]
    recall = []
    for size in (16, 128, 1024):
        index = space.ModelSpace(sketch=size)
        index.insert_sketches(names, space.sketch(points, size))
        hits = 0
        for i in range(300):
            nearest = np.argsort(-exact[i], kind="stable")[1:11]
            hits += len({str(n) for n in nearest} & set(index.neighbours(str(i), k=10).index))
        recall.append(hits / 3000)
    assert recall[0] < recall[1] - 0.2 and recall[1] < recall[2] - 0.03 and recall[2] > 0.7


@pytest.mark.parametrize("channels", ["mean", "keep"])
def test_chance_is_the_mean_cosine_of_different_images(channels, monkeypatch):
    monkeypatch.setattr(directions, "VALUES_AT_ONCE", 1100)  # two blocks of images
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


def test_heights_of_the_tree_are_means_over_the_pairs_of_models():
    far = np.array([[0, 1, 5, 8], [1, 0, 7, 6], [5, 7, 0, 2], [8, 6, 2, 0]]) / 10
    found = space.tree(labelled(1 - far))
    np.testing.assert_allclose(found[:, 2], [0.1, 0.2, np.mean([5, 8, 7, 6]) / 10])
    three = space.tree(labelled(1 - far[:3, :3]))
    np.testing.assert_allclose(three, [[0, 1, 0.1, 2], [2, 3, 0.6, 3]])


def test_the_index_is_at_hand_in_both_modules_and_knows_nothing_of_this_one():
    assert space.ModelSpace is library.ModelSpace and space.sketch is library.sketch
    assert space.sketch_size is library.sketch_size and space.HASHES == library.HASHES
    code = "import sys; from support import library; assert 'support.space' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_images_without_labels_are_counted_through_all_blocks(monkeypatch):
    monkeypatch.setattr(directions, "VALUES_AT_ONCE", 1)
    maps = some_maps(models=2).drop_vars("image")
    assert space.cosines(maps).image.values.tolist() == list(range(7))
    maps[1, 5] = 0
    with pytest.raises(ValueError, match="model m1 for image 5 is zero"):
        space.affinity(maps)


def test_a_mean_over_channels_that_no_float32_holds():
    maps = some_maps(models=3)
    large = (maps / abs(maps).max() * 3e38).astype(np.float32)
    xr.testing.assert_allclose(space.affinity(large), space.affinity(maps), rtol=1e-5)
    xr.testing.assert_allclose(filled(large).affinity(), space.affinity(maps), rtol=0, atol=1e-5)


def test_maps_are_read_in_blocks_of_no_more_values_than_stated(monkeypatch):
    maps = some_maps(models=2, side=6).mean("channel")
    for values, images in ((2 * 36 * 3, [3, 3, 1]), (2 * 36 * 3 - 1, [2, 2, 2, 1]), (1, [1] * 7), (10**6, [7])):
        monkeypatch.setattr(directions, "VALUES_AT_ONCE", values)
        assert [len(points) for _, points in directions.blocks(maps, "mean")] == images
