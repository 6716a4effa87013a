"""The paper's experiment, cut down: three random encoders, eight images."""

import gc
import json
import weakref
from pathlib import Path

import distributed
import numpy as np
import pytest
import xarray as xr
from torch import nn

from support import attribution, space, taskonomy
from support.chapters import original

NAMES = original.tasks(3)
SIZE = 32
NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "14_reproduce_the_original.ipynb"

CHECKED = 3  # images that a network sees before its first map: two, and one of them alone


@pytest.fixture(scope="module")
def images():
    values = np.random.default_rng(0).random((8, SIZE, SIZE, 3), np.float32)
    return xr.DataArray(values, {"image": np.arange(8), "channel": list("rgb")}, ("image", "y", "x", "channel"))


@pytest.fixture
def run(images, tmp_path):
    """The experiment with random weights; its maps are in `tmp_path / "maps"`."""

    def run(names=NAMES, **options):
        settings = {"weights": "random", "size": SIZE, "device": "cpu", "progress": False} | options
        return original.affinities(names, images, tmp_path / "maps", **settings)

    return run


@pytest.fixture
def passes(monkeypatch):
    """Images that went forward through each network, by number of the network."""
    counts = []
    make = taskonomy.encoder

    def counting(*arguments, **options):
        encoder = make(*arguments, **options)
        counts.append(0)
        number = len(counts) - 1

        def count(_, inputs, __):
            counts[number] += len(inputs[0])

        encoder.network.register_forward_hook(count)
        return encoder

    monkeypatch.setattr(taskonomy, "encoder", counting)
    return counts


class Small(nn.Sequential):
    """In the place of the ResNet-50 where nothing depends on it but time."""

    def __init__(self, n_channels=3):
        first = nn.Conv2d(n_channels, 8, 8, 8, bias=False)
        super().__init__(first, nn.ReLU(), nn.Conv2d(8, 8, 1, bias=False), nn.ReLU())

    @property
    def conv1(self):
        return self[0]


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(taskonomy, "ResNet50", Small)


def test_it_is_attribution_and_affinity_of_each_method(run, images):
    found = run()
    encoders = [taskonomy.encoder(name, "random", size=SIZE) for name in NAMES]
    maps = attribution.attribute(encoders, images, original.METHODS, device="cpu", progress=False)
    assert found.dims == ("attribution", "source", "target") and list(found.source.values) == NAMES
    for method in original.METHODS:
        expected = space.affinity(maps.sel(attribution=method))
        np.testing.assert_allclose(found.sel(attribution=method), expected, atol=2e-3)  # half precision
    assert abs(found.sel(attribution="saliency") - found.sel(attribution="epsilon_lrp")).max() > 0.01


def test_plan_counts_what_is_done(small, run, passes, images, tmp_path):
    run()
    on_disk = sum(file.stat().st_size for file in (tmp_path / "maps").rglob("*") if file.is_file())
    done = sum(passes)
    plan = original.plan(3, 8, tmp_path / "not" / "yet", size=SIZE, probe_size=SIZE, weights="random", device="cpu")
    assert plan.passes == done - 3 * CHECKED == 2 * 3 * 8
    # names and attributes, a dozen kilobytes, do not grow with the maps
    assert 0 <= on_disk - plan.map_bytes < 30_000
    assert plan.map_bytes == 3 * 3 * 8 * (2 * SIZE**2 + 4)
    assert 0 < plan.seconds_maps < 600 and 0 < plan.seconds_affinity < 600
    assert not (tmp_path / "not").exists()


def test_plan_at_full_size_in_words(small, tmp_path, monkeypatch):
    monkeypatch.setenv("TASKONOMY_FOLDER", str(tmp_path))
    monkeypatch.setattr(taskonomy, "SIZE", SIZE)
    plan = original.plan(20, 1000, tmp_path, size=SIZE, device="cpu")
    assert plan.passes == 40_000 and plan.map_bytes == 3 * 20 * 1000 * (2 * 256**2 + 4)
    text = str(plan._replace(seconds_maps=3 * 3600, seconds_affinity=90, free_bytes=10**9))
    for words in ("20 encoders × 1,000 images: 40,000 forward", "7.86 GB, of 1.00 GB free", "download: 1.90 GB"):
        assert words in text
    assert "3 h for the maps and 1.5 min for the affinities" in text and "THE DISK IS TOO SMALL" in text
    assert "on disk: 23.6 MB" in str(plan._replace(map_bytes=23_593_680))
    assert "download: none" in str(plan._replace(download_bytes=0))
    assert "TOO SMALL" not in str(plan._replace(free_bytes=10**12))
    assert original.plan(20, 1000, tmp_path, weights="random", size=SIZE, device="cpu").download_bytes == 0


def test_expected_time_grows_with_models_and_images(small, tmp_path, monkeypatch):
    ticks = iter(range(1000))
    monkeypatch.setattr(original.time, "perf_counter", lambda: next(ticks))  # every measurement takes one second
    small, large = (original.plan(*n, tmp_path, size=SIZE, probe_size=SIZE, device="cpu") for n in ((3, 8), (6, 80)))
    assert (small.seconds_maps, small.seconds_affinity) == (24, 0.5 * 3 * 8)
    assert (large.seconds_maps, large.seconds_affinity) == (480, 0.5 * 3 * 80)


def test_an_interrupted_run_goes_on_and_a_finished_one_computes_nothing(small, run, passes, monkeypatch):
    calls = []
    attribute = attribution.attribute

    def interrupted(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return attribute(*arguments, **options)

    monkeypatch.setattr(attribution, "attribute", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert passes == [16 + CHECKED, 16 + CHECKED, 0]
    found = run()
    assert passes[3:] == [0, 0, 16 + CHECKED]
    xr.testing.assert_identical(run(), found)
    assert passes[6:] == [0, 0, 0]


def test_a_cluster_gives_the_same(small, run, images, tmp_path):
    expected = run()
    with distributed.Client(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=None) as client:
        options = {"weights": "random", "size": SIZE, "device": "cpu", "progress": False, "client": client}
        found = original.affinities(NAMES, images, tmp_path / "of the cluster", **options)
    xr.testing.assert_allclose(found, expected, rtol=1e-6)


def test_one_network_is_in_memory_at_a_time(small, run, monkeypatch):
    made, alive = [], []
    make = taskonomy.encoder

    def watched(*arguments, **options):
        gc.collect()
        alive.append(sum(reference() is not None for reference in made))
        encoder = make(*arguments, **options)
        made.append(weakref.ref(encoder.network))
        return encoder

    monkeypatch.setattr(taskonomy, "encoder", watched)
    run()
    assert alive == [0, 0, 0]


def test_other_weights_are_not_mixed(small, run):
    run()
    with pytest.raises(ValueError, match="another encoder that is called autoencoder"):
        run(seed=1)


def test_published_weights_are_asked_for_before_anything_is_computed(run, passes, monkeypatch, tmp_path):
    def fetch(task, progress):
        raise FileNotFoundError("no connection")

    monkeypatch.setattr(taskonomy, "fetch", fetch)
    with pytest.raises(FileNotFoundError, match="(?s)no connection.*To try the run without them: -p weights random"):
        run(weights="published")
    assert passes == [] and not (tmp_path / "maps").exists()


def test_numbers_out_of_range(tmp_path):
    for n in (2, 21):
        with pytest.raises(ValueError, match=f"n_encoders is {n}, expected 3 to 20"):
            original.tasks(n)
    with pytest.raises(ValueError, match="n_images is 0"):
        original.plan(3, 0, tmp_path, size=SIZE)
    with pytest.raises(ValueError, match="weights is 'trained'"):
        original.plan(3, 1, tmp_path, weights="trained", size=SIZE)
    assert original.tasks() == list(taskonomy.published().index)


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.034, "0.034 s"), (48, "48 s"), (95, "1.6 min"), (5300, "88 min"), (5500, "1.5 h")]
)
def test_durations_in_words(seconds, words):
    assert original.duration(seconds) == words


def test_every_figure_of_the_chapter_bears_the_stamp():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    drawing = ["".join(cell["source"]) for cell in cells if "plt.show()" in "".join(cell["source"])]
    assert len(drawing) >= 3
    assert all("figures.stamp(" in source for source in drawing)


def test_memory_does_not_grow_with_the_images(small, images, tmp_path, monkeypatch):
    """No array that leaves torch holds the maps of more than one block."""
    from support import store

    monkeypatch.setattr(store, "BLOCK", 2 * SIZE**2)
    monkeypatch.setattr(store, "CHUNK", SIZE**2)
    sizes = []
    write = store.Store.write

    def watched(self, name, block, maps):
        sizes.append(maps.nbytes)
        return write(self, name, block, maps)

    monkeypatch.setattr(store.Store, "write", watched)
    settings = {"weights": "random", "size": SIZE, "device": "cpu", "progress": False}
    original.affinities(NAMES, images, tmp_path / "maps", **settings)
    assert len(sizes) == 3 * 4 and max(sizes) == 3 * 2 * SIZE**2 * 4
