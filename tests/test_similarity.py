import numpy as np
import pytest
from scipy.stats import ortho_group, pearsonr, spearmanr
from sklearn.cross_decomposition import CCA
from sklearn.metrics.pairwise import laplacian_kernel
from sklearn.preprocessing import StandardScaler

from support import similarity

PAIRS = {name: getattr(similarity, name) for name, entry in similarity.METHODS.items() if not entry.directed}


def related(n_samples=120, features=(6, 9), shared=3, seed=0):
    """Two representations that share some directions; full rank, well conditioned, not centred."""
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(n_samples, shared))
    return [
        hidden @ rng.normal(size=(shared, count)) + 0.7 * rng.normal(size=(n_samples, count)) + rng.normal(size=count)
        for count in features
    ]


def maps(channels=4, side=4, images=40, seed=0):
    return np.random.default_rng(seed).normal(size=(images, channels, side, side)).astype(np.float32)


def svcca_by_data(x, y, variance):
    """SVCCA from the singular value decompositions of the data themselves."""
    bases = []
    for values in (x, y):
        u, s, _ = np.linalg.svd(values - values.mean(0), full_matrices=False)
        kept = 0
        while np.sum(s[:kept] ** 2) < variance * np.sum(s**2) * (1 - 1e-12):
            kept += 1
        bases.append(u[:, :kept])
    return np.linalg.svd(bases[0].T @ bases[1], compute_uv=False).mean()


@pytest.mark.parametrize("variance", [0.5, 0.9, 0.99, 1])
def test_svcca_by_the_data_agrees_with_the_covariance(variance):
    x, y = related()
    assert similarity.svcca(x, y, variance) == pytest.approx(svcca_by_data(x, y, variance), abs=1e-9)


@pytest.mark.parametrize("variance", [0.9, 0.99, 1])
def test_two_algorithms_agree_on_badly_scaled_features(variance):
    x, y = related()
    x *= 10.0 ** -np.arange(0, 4.2, 0.8)
    assert similarity.svcca(x, y, variance) == pytest.approx(svcca_by_data(x, y, variance), abs=1e-6)


def test_svcca_with_more_features_than_samples():
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(60, 5)) @ rng.normal(size=(5, 200)) for _ in range(2))
    assert similarity.svcca(x, y) == pytest.approx(svcca_by_data(x, y, 0.99), abs=1e-9)


def test_svcca_without_truncation_is_the_cca_of_scikit_learn():
    x, y = related(n_samples=400, features=(4, 5))
    one, other = CCA(n_components=4, max_iter=20_000, tol=1e-12).fit_transform(x, y)
    expected = np.mean([abs(np.corrcoef(one[:, i], other[:, i])[0, 1]) for i in range(4)])
    assert similarity.svcca(x, y, variance=1) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("degrees", [0, 30, 60, 90])
def test_two_subspaces_at_a_known_angle(degrees):
    signals = np.linalg.qr(np.random.default_rng(0).normal(size=(50, 4)))[0]
    signals = np.linalg.qr(signals - signals.mean(0))[0]
    angle = np.deg2rad(degrees)
    x = signals[:, :2]
    y = np.stack([signals[:, 0], np.cos(angle) * signals[:, 1] + np.sin(angle) * signals[:, 2]], axis=1)
    assert similarity.svcca(x, y) == pytest.approx((1 + np.cos(angle)) / 2, abs=1e-9)
    assert similarity.cka(x, y) == pytest.approx((1 + np.cos(angle) ** 2) / 2, abs=1e-9)


def test_invertible_linear_maps_change_svcca_only_where_it_truncates():
    x, y = related()
    mixed = x @ np.random.default_rng(3).normal(size=(6, 6)) * np.geomspace(1, 30, 6)
    assert similarity.svcca(mixed, y, variance=1) == pytest.approx(similarity.svcca(x, y, variance=1), abs=1e-8)
    assert abs(similarity.svcca(mixed, y, variance=0.6) - similarity.svcca(x, y, variance=0.6)) > 1e-3


@pytest.mark.parametrize("method", ["svcca", "cka"])
def test_invariant_to_orthogonal_maps_scaling_and_shift(method):
    x, y = related()
    turned = 1e-3 * x @ ortho_group.rvs(6, random_state=0) + 5
    assert PAIRS[method](turned, y) == pytest.approx(PAIRS[method](x, y), abs=1e-9)
    assert PAIRS[method](x, turned) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("method", PAIRS)
def test_every_method_is_symmetric_and_one_with_itself_and_sees_what_is_shared(method):
    x, y = related()
    stranger = np.random.default_rng(9).normal(size=y.shape)
    assert PAIRS[method](x, y) == pytest.approx(PAIRS[method](y, x), abs=1e-12)
    assert PAIRS[method](x, x) == pytest.approx(1, abs=1e-9)
    assert PAIRS[method](x, 3 * x) == pytest.approx(1, abs=1e-9)
    assert PAIRS[method](x, stranger) + 0.1 < PAIRS[method](x, y) < 0.99
    order = np.random.default_rng(1).permutation(len(x))
    assert PAIRS[method](x[order], y[order]) == pytest.approx(PAIRS[method](x, y), abs=1e-9)
    assert PAIRS[method](x[order], y) + 0.1 < PAIRS[method](x, y)


@pytest.mark.parametrize("features", [(6, 9), (6, 300), (300, 200)])
def test_cka_is_the_normalised_hsic_of_gram_matrices(features):
    x, y = related(features=features)
    centre = np.eye(len(x)) - 1 / len(x)

    def hsic(a, b):
        return np.trace(a @ a.T @ centre @ b @ b.T @ centre) / (len(a) - 1) ** 2

    assert similarity.cka(x, y) == pytest.approx(hsic(x, y) / np.sqrt(hsic(x, x) * hsic(y, y)), abs=1e-10)


def test_rsa_is_spearman_of_dissimilarities_by_loops():
    x, y = related(n_samples=15)
    triangles = [
        [1 - pearsonr(values[i], values[j]).statistic for i in range(15) for j in range(i + 1, 15)] for values in (x, y)
    ]
    assert similarity.rsa(x, y) == pytest.approx(spearmanr(*triangles).statistic, abs=1e-10)


def test_rsa_counts_dissimilarities_as_tied_in_spite_of_rounding():
    x, y = (np.random.default_rng(seed).normal(size=(12, 2)) for seed in (0, 1))  # correlations of two values are ±1
    triangles = []
    for values in (x, y):
        rises = values[:, 0] < values[:, 1]
        triangles.append([rises[i] != rises[j] for i in range(12) for j in range(i + 1, 12)])
    assert similarity.rsa(x, y) == pytest.approx(spearmanr(*triangles).statistic, abs=1e-10)


def test_dds_is_the_cosine_of_kernels_centred_without_bias():
    x, y = related(n_samples=14)
    x = np.column_stack([x, np.full(len(x), 0.1)])  # a constant feature counts, as zero
    n = len(x)
    centred = []
    for values in (x, y):
        kernel = laplacian_kernel(StandardScaler().fit_transform(values))
        np.fill_diagonal(kernel, 0)
        out = np.zeros((n, n))
        for i in range(n):
            for j in range(n):
                rows = kernel[i].sum() / (n - 2) + kernel[:, j].sum() / (n - 2)
                out[i, j] = 0 if i == j else kernel[i, j] - rows + kernel.sum() / ((n - 1) * (n - 2))
        centred.append(out.ravel())
    expected = centred[0] @ centred[1] / np.linalg.norm(centred[0]) / np.linalg.norm(centred[1])
    assert similarity.dds(x, y) == pytest.approx(expected, abs=1e-10)


def test_too_few_samples_say_how_many_are_needed():
    x = np.random.default_rng(0).normal(size=(29, 6))
    with pytest.raises(ValueError, match="y needs 6 directions for 0.99 of its variance, and so at least 30 samples"):
        similarity.svcca(x[:, :2], x)
    full = np.random.default_rng(0).normal(size=(30, 6))
    assert similarity.svcca(full, full) == pytest.approx(1)


@pytest.mark.parametrize("method", PAIRS)
def test_bad_input_is_refused_by_every_method(method):
    x, y = related()
    compare = PAIRS[method]
    with pytest.raises(ValueError, match="y is constant"):
        compare(x, np.full_like(y, 0.1))
    with pytest.raises(ValueError, match="x has 119 samples and y has 120"):
        compare(x[1:], y)
    with pytest.raises(ValueError, match="expected .samples, features."):
        compare(x, y[:, 0])
    with pytest.raises(ValueError, match="at least 4"):
        compare(x[:3], y[:3])
    for value in (np.nan, np.inf):
        broken = y.copy()
        broken[7, 2] = value
        with pytest.raises(ValueError, match=f"y is {value} at sample 7, feature 2"):
            compare(x, broken)


def test_refusals_of_single_methods():
    x, y = related()
    for variance in (0, 1.5):
        with pytest.raises(ValueError, match="variance"):
            similarity.svcca(x, y, variance)
    flat = y.copy()
    flat[5] = 2
    with pytest.raises(ValueError, match="sample 5 of y are all equal"):
        similarity.rsa(x, flat)
    with pytest.raises(ValueError, match="x are all equally far"):
        similarity.dds(np.eye(10), y[:10])
    with pytest.raises(ValueError, match="x are all equally far"):
        similarity.rsa(np.eye(10), y[:10])
    long = np.random.default_rng(0).normal(size=(similarity.MOST_SAMPLES + 1, 2))
    for compare in (similarity.rsa, similarity.dds):
        with pytest.raises(ValueError, match="at most 4096"):
            compare(long, long)


def test_directions_below_a_hundred_thousandth_of_the_largest_are_never_kept():
    signals = np.linalg.qr(np.random.default_rng(0).normal(size=(9, 3)) - 0.1)[0]
    signals = np.linalg.qr(signals - signals.mean(0))[0][:, :2]
    y = signals[:, :1]
    assert similarity.svcca(signals * [1, 0.5e-5], y, variance=1) == pytest.approx(1)
    with pytest.raises(ValueError, match="x needs 2 directions for 1 of its variance, and so at least 10 samples"):
        similarity.svcca(signals * [1, 2e-5], y, variance=1)


def test_samples_are_images_or_positions():
    values = maps(channels=3, side=2, images=5)
    assert similarity.samples(values, "images").shape == (5, 12)
    positions = similarity.samples(values, "positions")
    assert positions.shape == (20, 3) and positions.dtype == np.float64
    np.testing.assert_array_equal(positions[4 * 2 + 2 * 1 + 0], values[2, :, 1, 0])
    np.testing.assert_array_equal(similarity.samples(values, "images")[2], values[2].ravel())
    vectors = values[:, :, 0, 0]
    np.testing.assert_array_equal(similarity.samples(vectors, "positions"), vectors)


def test_resampling_averages_areas():
    values = maps(channels=2, side=6, images=3)
    blocks = values.reshape(3, 2, 2, 3, 3, 2).mean((3, 5)).transpose(0, 2, 3, 1).reshape(-1, 2)
    np.testing.assert_allclose(similarity.samples(values, "positions", grid=(2, 3)), blocks, atol=1e-6)
    line = np.array([1.0, 2, 4]).reshape(1, 1, 1, 3)  # three cells into two: 1 ½·2 | ½·2 4
    np.testing.assert_allclose(similarity.samples(line, "images", grid=(1, 2)), [[4 / 3, 10 / 3]])
    for grid in ((4, 4), (5, 7), (9, 6)):
        resampled = similarity.samples(values, "images", grid).reshape(3, 2, *grid)
        np.testing.assert_allclose(resampled.mean((2, 3)), values.mean((2, 3)), atol=1e-6)


def test_samples_refuse_what_they_cannot_read():
    with pytest.raises(ValueError, match="known: images, positions, maps"):
        similarity.samples(maps(), "pixels")
    with pytest.raises(ValueError, match="shape"):
        similarity.samples(maps()[0], "images")
    with pytest.raises(ValueError, match="shape"):
        similarity.samples(maps()[:0], "images")
    with pytest.raises(ValueError, match="grid is 0, expected at least 1"):
        similarity.samples(maps(), "images", grid=(0, 2))
    for grid in (2, (2,), "22", (2, 2, 2)):
        with pytest.raises(ValueError, match="two positive numbers"):
            similarity.matrix({"a": maps()}, grid=grid)
    with pytest.raises(TypeError, match="grid is 2.0: give a whole number"):
        similarity.samples(maps(), "images", grid=(2.0, 2))


@pytest.mark.parametrize("method", PAIRS)
@pytest.mark.parametrize("kind", ["images", "positions"])
def test_the_matrix_holds_the_pairwise_values(method, kind):
    base = maps(channels=2, side=2)
    reps = {"a": base, "b": base + 0.5 * maps(2, 2, seed=1), "c": maps(2, 2, seed=2)}
    found = similarity.matrix(reps, method, kind)
    assert found.dims == ("source", "target") and found.source.values.tolist() == ["a", "b", "c"]
    np.testing.assert_array_equal(found, found.T)
    np.testing.assert_array_equal(np.diag(found), 1)
    for one in reps:
        for other in reps:
            if one != other:
                rows = [similarity.samples(reps[name], kind) for name in (one, other)]
                pair = PAIRS[method](*rows)
                assert float(found.sel(source=one, target=other)) == pytest.approx(pair, abs=1e-12)
    assert found.attrs["n_samples"] == (40 if kind == "images" else 160)
    assert float(found.sel(source="a", target="b")) > float(found.sel(source="a", target="c"))


def test_networks_of_different_sizes_meet_on_the_smallest_grid():
    large, small = maps(channels=3, side=8), maps(channels=5, side=6, seed=1)[:, :, :4]
    found = similarity.matrix({"large": large, "small": small})
    rows = [similarity.samples(values, "positions", (4, 6)) for values in (large, small)]
    assert float(found[0, 1]) == pytest.approx(similarity.svcca(*rows), abs=1e-12)
    assert found.attrs["n_samples"] == 40 * 24
    coarse = similarity.matrix({"large": large, "small": small}, grid=(2, 2))
    assert coarse.attrs["n_samples"] == 40 * 4


def test_methods_take_the_samples_that_they_were_published_with():
    reps = {"a": maps(2, 2), "b": maps(2, 2, seed=1)}
    kinds = {method: similarity.matrix(reps, method).attrs["samples"] for method in PAIRS}
    assert kinds == {"svcca": "positions", "cka": "positions", "rsa": "images", "dds": "images"}
    vectors = {name: values[:, :, 0, 0] for name, values in reps.items()}
    assert similarity.matrix(vectors).attrs["n_samples"] == 40


@pytest.mark.parametrize("method, step", [("svcca", "eigh"), ("rsa", "corrcoef")])
def test_each_network_is_summarised_once(monkeypatch, method, step):
    owner = np.linalg if step == "eigh" else np
    original, calls = getattr(owner, step), []
    monkeypatch.setattr(owner, step, lambda *args: calls.append(1) or original(*args))
    similarity.matrix({str(seed): maps(2, 2, seed=seed) for seed in range(5)}, method)
    assert len(calls) == 5


def test_the_matrix_names_what_is_wrong():
    good = maps(2, 2)
    with pytest.raises(ValueError, match="known: svcca, cka, rsa, dds"):
        similarity.matrix({"a": good}, "pwcca")
    with pytest.raises(ValueError, match="no network"):
        similarity.matrix({})
    with pytest.raises(ValueError, match="known: images, positions, maps"):
        similarity.matrix({"a": good}, samples="pixels")
    with pytest.raises(ValueError, match="a and b have different numbers of images"):
        similarity.matrix({"a": good, "b": good[1:]})
    with pytest.raises(ValueError, match='representations of b have no positions: use samples="images"'):
        similarity.matrix({"a": good, "b": good[:, :, 0, 0]})
    with pytest.raises(ValueError, match="b is constant"):
        similarity.matrix({"a": good, "b": np.ones_like(good)})
    with pytest.raises(ValueError, match="b needs .* directions"):
        similarity.matrix({"a": good, "b": maps(16, 4)}, samples="images", grid=(4, 4))


def test_the_matrix_keeps_the_variance_it_is_told():
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, 60, 6, 2, 2)) * np.arange(1, 7)[:, None, None]
    one += other[:, ::-1]
    found = similarity.matrix({"a": one, "b": other}, "svcca", variance=0.6)[0, 1]
    pair = (similarity.samples(r, "positions") for r in (one, other))
    assert found == pytest.approx(similarity.svcca(*pair, variance=0.6))
    assert abs(found - similarity.matrix({"a": one, "b": other}, "svcca")[0, 1]) > 0.01
    with pytest.raises(ValueError, match="variance is 0,"):
        similarity.matrix({"a": one, "b": other}, "svcca", variance=0)


@pytest.mark.parametrize("images", [5, 6, 31])
@pytest.mark.parametrize("method", PAIRS)
def test_chance_is_the_mean_over_images_moved_on(method, images):
    kind = "images" if method in ("rsa", "dds") else "positions"
    reps = {name: maps(channels=2, images=images, seed=seed) for seed, name in enumerate("abc")}
    options = {"variance": 0.9} if method == "svcca" else {}
    found = similarity.chance(reps, method, variance=0.9)
    shifts = similarity._shifts(images)
    assert shifts == (list(range(1, images)) if images < 14 else sorted(shifts)) and len(shifts) == min(images - 1, 12)
    assert {images - k for k in shifts} == set(shifts) and 0 < min(shifts) <= max(shifts) < images
    forms = {name: similarity.samples(values, kind) for name, values in reps.items()}
    steps = 1 if kind == "images" else 16
    for one, other in ("ab", "cb", "aa"):
        pairs = [np.roll(forms[other], k * steps, 0) for k in shifts]
        expected = np.mean([PAIRS[method](forms[one], values, **options) for values in pairs])
        assert float(found.sel(source=one, target=other)) == pytest.approx(expected, abs=1e-9)
        assert float(found.sel(source=other, target=one)) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("kind", ["images", "positions", "maps"])
def test_one_entry_adds_a_directed_similarity(monkeypatch, kind):
    entry = similarity.Similarity(
        "Toy",
        summarise=lambda values, name, variance: variance * values.reshape(len(values), -1),
        compare=lambda source, target: 0.1 * source[0, 0] - 0.2 * target[0, 0],
        move=lambda summary, steps: np.roll(summary, steps, 0),
        samples=kind,
        directed=True,
        options=("variance",),
    )
    monkeypatch.setitem(similarity.METHODS, "toy", entry)
    reps = {name: maps(channels=2, side=2, images=6, seed=seed) for seed, name in enumerate("ab")}
    found = similarity.matrix(reps, "toy", variance=0.5)
    first = [0.5 * reps[name][0, 0, 0, 0] for name in "ab"]
    np.testing.assert_allclose(found, [[0.1 * s - 0.2 * t for t in first] for s in first], rtol=1e-6)
    assert found.attrs["n_samples"] == (24 if kind == "positions" else 6) and "Toy" in found.attrs["long_name"]
    others = 0.5 * reps["b"][1:, 0, 0, 0].mean()  # every other image takes the place of the first once
    expected = 0.1 * first[0] - 0.2 * others
    assert float(similarity.chance(reps, "toy", variance=0.5)[0, 1]) == pytest.approx(expected, rel=1e-6)
    flat = {name: values[:, :, 0, 0] for name, values in reps.items()}
    assert similarity.matrix(flat, "toy").attrs["n_samples"] == 6


def test_maps_keep_their_axes_and_meet_on_one_grid():
    values = maps(channels=3, side=4)
    np.testing.assert_array_equal(similarity.samples(values, "maps"), values)
    assert similarity.samples(values[:, :, 0, 0], "maps").shape == (40, 3, 1, 1)
    coarse = similarity.samples(values, "maps", grid=(2, 2))
    np.testing.assert_allclose(coarse, values.reshape(40, 3, 2, 2, 2, 2).mean((3, 5)), atol=1e-6)


def test_chance_needs_two_images():
    with pytest.raises(ValueError, match="at least two"):
        similarity.chance({name: maps(channels=2, images=1) for name in "ab"}, "cka")
