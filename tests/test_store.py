"""Maps on disk: what is read is what was computed, and nothing that happens on the way is lost, doubled or mixed."""

import errno
import functools
import hashlib
import io
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
import warnings
from pathlib import Path

import filelock
import numpy as np
import pytest
import torch
import xarray as xr
import zarr
from test_attribution import probe, toy
from torch import nn

from support import attribution, directions, passes, space, store, zoo
from support.encoder import Encoder
from support.sources import representation

METHODS = ["saliency", "epsilon_lrp"]
processes = multiprocessing.get_context("forkserver")  # children of a process that has imported all and begun nothing
processes.set_forkserver_preload(
    ["support.attribution", "support.store", "support.zoo", "zarr", "dask.array", "pytest"]
)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of four images of 12 x 12, in files of two; sums in the order of one thread, as in the children."""
    monkeypatch.setattr(store, "BLOCK", 4 * 144)
    monkeypatch.setattr(store, "CHUNK", 2 * 144)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def attribute(encoders, images, method="saliency", **settings):
    return attribution.attribute(encoders, images, method, device="cpu", progress=False, **settings)


def tree(path):
    """What lies in a folder: SHA-256 by name of file, the lock left out."""
    files = (p for p in path.rglob("*") if p.is_file() and p.name != ".lock")
    return {str(p.relative_to(path)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.mark.parametrize("channels", ["mean", "keep"])
@pytest.mark.parametrize("method", ["saliency", ["gradient"], ["whitened_energy", "epsilon_lrp"], "relational"])
def test_the_array_is_that_of_memory_up_to_half_precision(tmp_path, method, channels):
    encoders, images = [toy("b:x/y"), toy("a", seed=1, side=8)], probe(n=11)
    expected = attribute(encoders, images, method, channels=channels)
    found = attribute(encoders, images, method, channels=channels, out=tmp_path / "maps")
    opened = store.open(tmp_path / "maps", ["b:x/y", "a"])
    for maps in (found, opened.expand_dims("attribution") if method == ["gradient"] else opened):
        assert maps.dims == expected.dims and maps.attrs == expected.attrs and maps.dtype == np.float32
        assert set(maps.coords) == set(expected.coords)
        assert all(maps[c].equals(expected[c]) and maps[c].dtype == expected[c].dtype for c in expected.coords)
        largest = abs(expected).max(("y", "x") + (("channel",) if channels == "keep" else ()))
        assert (abs(maps - expected) <= 1e-3 * largest).all()
    part = {"image": [9, 1], "y": slice(10, 2, -3), "model": 1}
    xr.testing.assert_identical(found.isel(part).load(), found.load().isel(part))


def test_a_second_call_computes_nothing_and_another_model_is_added(tmp_path, monkeypatch):
    images, calls = probe(n=9), []
    first = attribute([toy("b"), toy("c", seed=1)], images, METHODS, out=tmp_path)
    before = tree(tmp_path)
    fill = passes.fill
    monkeypatch.setattr(
        passes, "fill", lambda maps, encoder, *a, **k: calls.append(encoder.name) or fill(maps, encoder, *a, **k)
    )
    xr.testing.assert_identical(attribute([toy("c", seed=1), toy("b")], images, METHODS, out=tmp_path)[:, ::-1], first)
    assert calls == [] and tree(tmp_path) == before
    assert store.append is attribution.append
    whole = attribution.append(tmp_path, toy("a", seed=2), images, device="cpu", progress=False)
    assert calls == 3 * ["a"] and list(whole.model.values) == ["a", "b", "c"]
    assert {k: v for k, v in tree(tmp_path).items() if not k.startswith("a/")} == before
    store.delete(tmp_path, "a")
    assert tree(tmp_path) == before
    np.testing.assert_allclose(
        space.affinity(first[0]), space.affinity(attribute([toy("b"), toy("c", seed=1)], images)), atol=1e-5
    )


def two():
    return [toy("a"), toy("b", seed=1, side=8)]


def run_and_die(path, last, delete=None):
    """In a child: fill a store; at the last-th opening or renaming of a file that is written, die by SIGKILL.

    A file that is about to get its name is cut to half before: as if the process had died while it wrote.
    """
    count = 0

    def hook(event, arguments):
        nonlocal count
        writing = event == "open" and str(arguments[0]).endswith(".partial")
        if writing or event in ("os.rename", "os.rmdir"):
            count += 1
            if count > last:
                if event == "os.rename" and str(arguments[0]).endswith(".partial"):
                    os.truncate(arguments[0], os.stat(arguments[0]).st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)

    store.BLOCK, store.CHUNK = 4 * 144, 2 * 144
    torch.set_num_threads(1)
    sys.addaudithook(hook)
    if delete:
        store.delete(path, delete)
    else:
        attribute(two(), probe(n=7), METHODS, out=path)


def child(*arguments):
    process = processes.Process(target=run_and_die, args=arguments)
    process.start()
    process.join()
    return process.exitcode


def blocks_computed(monkeypatch):
    """List that grows by a name with each block that is computed from now on."""
    computed, fill = [], passes.fill

    def counting(maps, encoder, *arguments, **settings):
        computed.append(encoder.name)
        return fill(maps, encoder, *arguments, **settings)

    monkeypatch.setattr(passes, "fill", counting)
    return computed


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Tree of the store that a run leaves which nobody disturbs."""
    path = tmp_path_factory.mktemp("finished")
    assert child(path, np.inf) == 0
    return tree(path)


def test_killed_at_any_moment_the_next_run_computes_what_is_missing_and_ends_with_the_same_bytes(
    tmp_path, monkeypatch, finished
):
    computed, last = blocks_computed(monkeypatch), 0
    while child(tmp_path / str(last), last) == -signal.SIGKILL:
        left = tree(tmp_path / str(last))
        done = sum(f"/scale/c.0.{block}" in name for name in left for block in (0, 1) if "partial" not in name)
        computed.clear()
        found = attribute(two(), probe(n=7), METHODS, out=tmp_path / str(last))
        assert len(computed) == 4 - done and np.isfinite(found).all()
        assert tree(tmp_path / str(last)) == finished
        last += 3  # files are opened and renamed in turn: an odd step meets both
    assert last > 50 and tree(tmp_path / str(last)) == finished


def test_killed_again_and_again_a_store_gets_ready(tmp_path, finished):
    deaths = 0
    while child(tmp_path / "maps", 17) == -signal.SIGKILL:
        deaths += 1
    assert 2 < deaths < 10 and tree(tmp_path / "maps") == finished


def test_killed_while_it_deletes_a_model_a_store_has_it_or_has_it_not(tmp_path, finished):
    child(tmp_path, np.inf)
    others = {name: value for name, value in finished.items() if not name.startswith("a/")}
    deaths = 0
    while child(tmp_path, deaths, "a") == -signal.SIGKILL:
        deaths += 1
        assert store.open(tmp_path).model.values.tolist() == (["a", "b"] if deaths == 1 else ["b"])
        attribute(two(), probe(n=7), METHODS, out=tmp_path)
        assert tree(tmp_path) == finished
    assert deaths > 2 and tree(tmp_path) == others
    with pytest.raises(KeyError, match="no model 'a'"):
        store.delete(tmp_path, "a")


def test_an_interrupted_model_is_left_out_and_named(tmp_path):
    assert child(tmp_path, 50) == -signal.SIGKILL
    with pytest.warns(UserWarning, match=r"interrupted: \['b'\]"):
        assert list(store.open(tmp_path).model.values) == ["a"]
    with pytest.raises(KeyError, match=r"\['b'\].*it holds \['a'\]"):
        store.open(tmp_path, ["a", "b"])


def test_two_processes_on_one_store_leave_what_one_leaves(tmp_path, finished):
    both = [processes.Process(target=run_and_die, args=(tmp_path / "maps", np.inf)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0] and tree(tmp_path / "maps") == finished


def hold(path, held, enough):
    with filelock.FileLock(path / ".lock"):
        held.set()
        enough.wait()


def test_who_waits_for_another_process_is_told(tmp_path):
    attribute(toy("a"), probe(), out=tmp_path)
    held, enough = processes.Event(), processes.Event()
    other = processes.Process(target=hold, args=(tmp_path, held, enough))
    other.start()
    held.wait()
    threading.Timer(0.5, enough.set).start()
    with pytest.warns(UserWarning, match="written by another process: waiting"):
        attribute(toy("b"), probe(), out=tmp_path)
    assert enough.is_set()
    other.join()
    assert list(store.open(tmp_path).model.values) == ["a", "b"]


def test_other_images_methods_options_or_encoders_are_refused_and_nothing_is_mixed(tmp_path):
    images = probe()
    attribute(toy("a"), images, out=tmp_path)
    before = tree(tmp_path)
    other = images.copy(deep=True)
    other[3, 5, 5, 0] = 0.5
    refused = {
        "other probe images": {"images": other},
        "other names of the probe images": {"images": images.assign_coords(image=list("abcdef"))},
        "methods": {"method": METHODS},
        r"pixels of the maps \[12, 12\] there, \[10, 12\] here": {"images": images[:, :10]},
        "epsilon 0.0001 there, 0.001 here": {"epsilon": 1e-3},
        "channels mean there, keep here": {"channels": "keep"},
    }
    for message, settings in refused.items():
        with pytest.raises(ValueError, match=f"holds other maps.*{message}"):
            attribute(**{"encoders": toy("b"), "images": images} | settings, out=tmp_path)
    strangers = [toy("a", seed=1), toy("a", scale=2), toy("a", channels="BGR"), toy("a", activation=nn.Tanh())]
    network = toy().network
    strangers += [toy("a", channels="GREY"), toy("a", channels="GREY", grey=(0.25, 0.5, 0.25))]
    strangers += [Encoder("a", network, task="", family="", input_size=(12, 12), represent=network[:k]) for k in (2, 3)]
    strangers += [
        Encoder("a", network, task="", family="", input_size=(12, 12), represent=functools.partial(part, n=n))
        for n in (2, 3)
    ]
    strangers += [
        Encoder("a", network, task="", family="", input_size=(12, 12), represent=lambda x, n=n: part(x, n))
        for n in (2, 3)
    ]
    for represent in (
        *(representation.Tap(network, layer) for layer in ("1", "2")),
        representation.Tap(network, "2", "input"),
        *(Places(n) for n in (2, 3)),
        *(Places(n).first for n in (2, 3)),
    ):
        strangers.append(Encoder("a", network, task="", family="", input_size=(12, 12), represent=represent))
    assert len({encoder.fingerprint() for encoder in [toy("a"), *strangers]}) == len(strangers) + 1
    for encoder in strangers:
        with pytest.raises(ValueError, match="another encoder that is called a too.*store.delete"):
            attribute([toy("b"), encoder], images, out=tmp_path)
    assert tree(tmp_path) == before
    attribute(toy("a"), images.transpose("channel", "y", "image", "x"), out=tmp_path)
    with pytest.raises(ValueError, match="other probe images"):
        store.append(tmp_path, toy("b"), other)


def part(x, n):
    return x[:, :n]


class Places:
    """A representation that is an object with a number, or a method of it."""

    def __init__(self, n):
        self.n = n

    def __call__(self, x):
        return part(x, self.n)

    def first(self, x):
        return part(x, self.n)


def test_a_folder_that_is_no_store_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"not empty \(notes.txt\)"):
        attribute(toy(), probe(), out=tmp_path)
    with pytest.raises(FileNotFoundError, match="no store of maps"):
        store.open(tmp_path)
    xr.Dataset({"map": 1}).to_zarr(tmp_path / "other", zarr_format=3, consolidated=False)
    for call in (store.open, lambda path: attribute(toy(), probe(), out=path)):
        with pytest.raises(ValueError, match="no store of maps that this version can read"):
            call(tmp_path / "other")
    with pytest.raises(OSError, match="a file is where a folder should be"):
        attribute(toy(), probe(), out=tmp_path / "notes.txt" / "maps")


def test_a_store_of_an_earlier_version_is_refused(tmp_path):
    attribute(toy("a"), probe(), out=tmp_path)
    attributes = dict(zarr.open_group(tmp_path, mode="r").attrs) | {"version": store.VERSION - 1}
    del attributes["sha256"]  # there were no checksums
    zarr.open_group(tmp_path, mode="r+").attrs.put(attributes)
    for call in (store.open, lambda path: attribute(toy("b"), probe(), out=path)):
        with pytest.raises(ValueError, match="no store of maps that this version can read"):
            call(tmp_path)


def test_files_that_a_worker_of_a_killed_caller_finishes_meanwhile_do_not_end_a_run(tmp_path, monkeypatch):
    expected, removed, original = attribute(two(), probe(n=7), METHODS, out=tmp_path / "maps"), [], Path.unlink
    new = tmp_path / "new"
    new.mkdir()
    (tmp_path / "maps" / "a" / "map" / "c.0.0.0.0.1.partial").touch()
    (new / "zarr.1.partial").touch()
    for file in (tmp_path / "maps" / "b" / "scale").glob("c.*"):
        file.unlink()  # so that there is something to do

    def too_late(self, missing_ok=False):
        if self.suffix == ".partial":
            removed.append(self.name)
            os.remove(self)
        original(self, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", too_late)
    for path in (tmp_path / "maps", new):
        xr.testing.assert_identical(attribute(two(), probe(n=7), METHODS, out=path), expected)
    assert {"c.0.0.0.0.1.partial", "zarr.1.partial"} <= set(removed)


def test_a_full_disk_is_an_error_and_what_was_finished_stays(tmp_path, monkeypatch):
    opened, original, room = [], Path.open, np.inf

    class Full(io.FileIO):
        def write(self, data):
            super().write(bytes(data)[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def limited(self, mode="r", *arguments, **settings):
        if self.suffix == ".partial":
            opened.append(self)
            if len(opened) > room:
                return Full(self, "w")
        return original(self, mode, *arguments, **settings)

    monkeypatch.setattr(Path, "open", limited)
    attribute(two(), probe(n=7), METHODS, out=tmp_path / "finished")
    computed, expected, total = blocks_computed(monkeypatch), tree(tmp_path / "finished"), len(opened)
    for written in (0, 1, 3, 10, total - 1):
        path, room = tmp_path / str(written), written
        opened.clear()
        with pytest.raises(OSError, match="cannot be written: the disk is full.*What was finished stays") as error:
            attribute(two(), probe(n=7), METHODS, out=path)
        assert error.value.errno == errno.ENOSPC
        end = time.monotonic() + 10
        while list(path.rglob("*.partial")) and time.monotonic() < end:
            time.sleep(0.01)  # Zarr writes several files at once: those beside the one that failed come to their end
        assert not list(path.rglob("*.partial"))
        room = np.inf
        computed.clear()
        attribute(two(), probe(n=7), METHODS, out=path)
        assert tree(path) == expected
    assert computed == ["b"]


def test_a_read_only_folder_is_an_error_and_its_maps_can_be_read(tmp_path, monkeypatch):
    expected = attribute(two(), probe(n=7), METHODS, out=tmp_path)

    def read_only(*arguments, **settings):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / ".lock"))

    monkeypatch.setattr(filelock.FileLock, "acquire", read_only)
    xr.testing.assert_identical(attribute(two(), probe(n=7), METHODS, out=tmp_path), expected)
    xr.testing.assert_identical(store.open(tmp_path), expected)
    for write in (
        lambda: attribute(toy("c"), probe(n=7), METHODS, out=tmp_path),
        lambda: store.delete(tmp_path, "a"),
    ):
        with pytest.raises(PermissionError, match="cannot be written: no permission"):
            write()


@pytest.mark.parametrize("size", [1e-38, 1e-8, 1.0, 1e30])
def test_half_precision_turns_no_map_by_more_than_its_rounding(tmp_path, monkeypatch, size):
    """Rounding to 11 binary digits turns a map by at most asin(2⁻¹¹); so a cosine moves by at most 2⁻¹⁰."""
    monkeypatch.setattr(store, "BLOCK", 2**22)
    generator = np.random.default_rng(0)
    images = probe(n=20, side=32)
    maps = generator.normal(size=(3, 20, 32, 32)) * 10 ** generator.uniform(-7, 0, (3, 20, 32, 32))
    maps = (size * maps).astype(np.float32)
    there = store.create(tmp_path, store.header(["saliency"], {"channels": "mean"}, images, [], {}))
    for name, values in zip("abc", maps, strict=True):
        there.begin(name, "")
        there.write(name, slice(0, 20), values[None])
    found, expected = store.open(tmp_path), store.open(tmp_path).copy(data=maps)
    assert abs(space.cosines(found) - space.cosines(expected)).max() < 2**-10
    assert abs(space.affinity(found) - space.affinity(expected)).max() < 1e-5
    if size > 1e-30:
        considerable = abs(expected) > 2**-28 * abs(expected).max(("y", "x"))
        assert considerable.mean() > 0.9
        assert (abs(found - expected) <= 2**-11 * abs(expected)).where(considerable, True).all()


def test_maps_that_are_zero_or_not_finite_are_kept_as_they_are(tmp_path):
    there = store.create(tmp_path, store.header(["saliency"], {"channels": "mean"}, probe(n=4), [], {}))
    maps = np.ones((1, 4, 12, 12), np.float32)
    maps[0, 0], maps[0, 1, 2, 3], maps[0, 2, 2, 3] = 0, np.nan, np.inf
    there.begin("a", "")
    assert len(there.missing("a")) == 1
    there.write("a", slice(0, 4), maps)
    assert there.missing("a") == []
    np.testing.assert_array_equal(store.open(tmp_path)[0], maps[0])
    with pytest.raises(ValueError, match="model a for image 0 is zero everywhere"):
        space.affinity(store.open(tmp_path))


def test_zarr_alone_can_read_a_store(tmp_path):
    images = probe(n=7)
    expected = attribute(two(), images, METHODS, out=tmp_path)
    whole = zarr.open_group(tmp_path, mode="r")
    model = xr.open_zarr(tmp_path, group="b", zarr_format=3, consolidated=False, mask_and_scale=False)
    assert model["map"].dtype == np.float16 and model["map"].dims == ("attribution", "image", "y", "x")
    np.testing.assert_array_equal(model["map"].astype(np.float32) * model["scale"], expected.sel(model="b"))
    assert whole.attrs["methods"] == METHODS and whole.attrs["options"]["epsilon"] == 1e-4
    assert whole.attrs["probe_sha256"] == hashlib.sha256(images.values.tobytes()).hexdigest()
    there = model.attrs
    assert there == {
        "model": "b",
        "encoder_sha256": two()[1].fingerprint(),
        "store": there["store"],
        "sha256": there["sha256"],
    }


def test_memory_is_flat_in_images_and_models(tmp_path, monkeypatch):
    monkeypatch.setattr(directions, "VALUES_AT_ONCE", 8 * 4096)
    monkeypatch.setattr(store, "BLOCK", 4 * 4096)
    monkeypatch.setattr(store, "CHUNK", 2 * 4096)

    def peak(n_images, n_models):
        path = tmp_path / f"{n_images}_{n_models}"
        np.save(f"{path}.npy", probe(n=n_images, side=64).values)
        images = xr.DataArray(np.load(f"{path}.npy", mmap_mode="r"), dims=("image", "y", "x", "channel"))
        encoders = [toy(f"toy {i}", seed=i) for i in range(n_models)]
        tracemalloc.start()
        try:
            maps = attribute(encoders, images, out=path)
            space.affinity(maps)
            return tracemalloc.get_traced_memory()[1], maps.nbytes
        finally:
            tracemalloc.stop()

    peak(4, 2)  # what is imported and compiled at the first call
    (small, _), (more_images, bytes_of_images), (more_models, bytes_of_models) = peak(16, 2), peak(160, 2), peak(16, 12)
    assert more_images < small + 0.1 * bytes_of_images
    assert more_models < small + 0.2 * bytes_of_models


def test_the_package_does_not_import_zarr_or_dask_until_it_needs_them():
    code = "import sys, support.attribution; print({'zarr', 'dask', 'distributed', 'filelock'} & {*sys.modules})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "zarr" not in run.stdout and "d" not in run.stdout.replace("filelock", "")


def flipped(file):
    data = bytearray(file.read_bytes())
    data[np.random.default_rng(len(data)).integers(len(data))] ^= 1
    file.write_bytes(data)


DAMAGE = {
    "a bit": flipped,
    "first byte": lambda file: file.write_bytes(bytes([file.read_bytes()[0] ^ 255]) + file.read_bytes()[1:]),
    "short": lambda file: os.truncate(file, file.stat().st_size - 1),
    "half": lambda file: os.truncate(file, file.stat().st_size // 2),
    "empty": lambda file: os.truncate(file, 0),
    "long": lambda file: file.write_bytes(file.read_bytes() + b"\0"),
    "gone": Path.unlink,
    "zeros": lambda file: file.write_bytes(bytes(file.stat().st_size)),
}


def read(path):
    """What can be read of a store, and everything that was said."""
    said = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            maps = store.open(path).load()
        except (ValueError, FileNotFoundError) as error:
            maps, said = None, [str(error)]
    return maps, " ".join(said + [str(w.message) for w in caught])


@pytest.mark.parametrize("kind", DAMAGE)
def test_whatever_happens_to_a_file_is_named_and_the_same_call_mends_it(tmp_path, monkeypatch, kind):
    expected = attribute(two(), probe(n=7), METHODS, out=tmp_path).load()
    before, computed = tree(tmp_path), blocks_computed(monkeypatch)
    for name in before:
        file = tmp_path / name
        DAMAGE[kind](file)
        maps, said = read(tmp_path)
        whose = name.partition("/")[0]
        only_for_others = name.endswith(("map/zarr.json", "scale/zarr.json"))  # whose content the header says
        if only_for_others:
            assert said == ""
            xr.testing.assert_identical(maps, expected)
        elif name == "zarr.json":
            assert maps is None and str(tmp_path) in said and "attribution.attribute(..., out=" in said
        else:
            interrupted = "/scale/" in name and kind == "gone"
            assert ("interrupted: ['" + whose if interrupted else str(file)) in said, (name, said)
            assert "attribution.attribute(..., out=" in said
            if maps is not None:
                assert whose not in maps.model.values
                xr.testing.assert_identical(maps, expected.sel(model=maps.model.values))
            with pytest.raises((KeyError, store.Damaged), match=whose):
                store.open(tmp_path, [whose]).load()
        computed.clear()
        xr.testing.assert_identical(attribute(two(), probe(n=7), METHODS, out=tmp_path).load(), expected)
        assert len(computed) == (0 if only_for_others or name == "zarr.json" else 2 if "/c." not in name else 1)
        if not only_for_others:
            assert tree(tmp_path) == before, name
        DAMAGE["gone"](tmp_path / "b" / "scale" / "c.0.0")  # so that there is something to do
        attribute(two(), probe(n=7), METHODS, out=tmp_path)
        assert tree(tmp_path) == before, name


def test_killed_and_then_damaged_a_store_ends_with_the_same_bytes(tmp_path, finished):
    for last in (22, 35, 49):
        path = tmp_path / str(last)
        assert child(path, last) == -signal.SIGKILL
        for file in sorted(path.rglob("c.*"))[:: last % 4 + 1]:
            flipped(file)
        attribute(two(), probe(n=7), METHODS, out=path)
        assert tree(path) == finished


def test_files_of_another_model_or_store_are_not_taken_for_its_own(tmp_path):
    expected = attribute(two(), probe(n=7), METHODS, out=tmp_path / "one").load()
    attribute(two(), probe(n=7, seed=1), METHODS, out=tmp_path / "other")
    before = tree(tmp_path / "one")
    shutil.copytree(tmp_path / "other" / "a", tmp_path / "one" / "c")
    shutil.copytree(tmp_path / "one" / "b", tmp_path / "one" / "d")
    maps, said = read(tmp_path / "one")
    xr.testing.assert_identical(maps, expected)
    assert f"{tmp_path / 'one' / 'c' / 'zarr.json'}, which says whose maps are beside it, is of another" in said
    assert str(tmp_path / "one" / "d") in said
    (tmp_path / "one" / "zarr.json").unlink()
    with pytest.raises(ValueError, match="without an intact header.*choose another folder|not empty"):
        attribute(two(), probe(n=7), METHODS, out=tmp_path / "one")
    for name in "cd":
        shutil.rmtree(tmp_path / "one" / name)
    attribute(two(), probe(n=7), METHODS, out=tmp_path / "one")
    assert tree(tmp_path / "one") == before
    (tmp_path / "one" / "zarr.json").unlink()
    with pytest.raises(ValueError, match="not empty|without an intact header"):
        attribute(two(), probe(n=7), "saliency", out=tmp_path / "one")


def test_an_open_array_refuses_once_its_model_was_replaced_or_removed(tmp_path):
    images = probe(n=7)
    maps, expected = attribute(two(), images, out=tmp_path), attribute(two(), images)
    store.delete(tmp_path, "a")
    with pytest.raises(ValueError, match="maps of a were removed after this array was opened: open the store again"):
        maps.load()
    np.testing.assert_allclose(maps.sel(model="b"), expected.sel(model="b"), rtol=2e-3, atol=1e-6)
    attribute(toy("a", seed=5), images, out=tmp_path)
    with pytest.raises(ValueError, match="maps of a were replaced by those of another network"):
        maps.isel(model=0, image=3).load()
    store.delete(tmp_path, "a")
    attribute(toy("a"), images, out=tmp_path)
    np.testing.assert_allclose(maps, expected, rtol=2e-3, atol=1e-6)
    shutil.rmtree(tmp_path)
    with pytest.raises(ValueError, match="were removed"):
        maps.load()
    attribute(two(), probe(n=7, seed=3), out=tmp_path)
    with pytest.raises(ValueError, match="were replaced|is of another store"):
        maps.load()


def test_any_name_is_a_folder(tmp_path):
    names = [
        "网" * 27,
        "网" * 28,
        "络" * 300,
        "a" * 248,
        "b" * 5000,
        "b" * 5001,
        ".",
        "..",
        "a/b",
        "%-",
        "x%2Fy",
        "Å\ud800",
    ]
    names += ["CON", ".draft_a", "_", " ", "\n", "é" * 40]
    encoders = [toy(name, seed=i) for i, name in enumerate(names)]
    maps = attribute(encoders, probe(n=2), out=tmp_path)
    assert sorted(store.open(tmp_path).model.values.tolist()) == sorted(names)
    np.testing.assert_allclose(maps, attribute(encoders, probe(n=2)), rtol=2e-3, atol=1e-6)
    for name in names:
        store.delete(tmp_path, name)
    assert store.open(tmp_path).sizes["model"] == 0
    with pytest.raises(ValueError, match="name of an encoder is a text of one character"):
        attribute(toy(""), probe(n=2), out=tmp_path)


def test_what_is_called_finished_is_on_the_disk(tmp_path, monkeypatch):
    flushed, named, original, replace = [], [], os.fsync, os.replace

    def fsync(handle):
        flushed.append(os.readlink(f"/proc/self/fd/{handle}"))
        original(handle)

    def renamed(source, target):
        assert str(source) in flushed, "named before its bytes were on the disk"
        if "/scale/c." in str(target):  # the mark
            block = int(str(target).rpartition(".")[2])
            chunks = [f for f in named if f.startswith(f"{Path(target).parents[1]}/map/c.")]
            assert len(chunks) == len(METHODS) * 2 * (block + 1)
            assert flushed[-2] == f"{Path(target).parents[1]}/map", "marked before the names of its files were"
        named.append(str(target))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", renamed)
    attribute(two(), probe(n=8), METHODS, out=tmp_path / "maps")
    assert flushed[-1] == str(tmp_path / "maps" / "b" / "scale")
    assert {str(tmp_path), str(tmp_path / "maps"), str(tmp_path / "maps" / "a")} <= {
        f.replace("/.draft_", "/") for f in flushed
    }
    assert len(named) == len(tree(tmp_path / "maps"))


def test_an_edited_file_is_another_network(tmp_path):
    file = tmp_path / "net.py"
    code = "import torch\nfrom torch import nn\ndef net():\n    torch.manual_seed(0)\n"
    code += "    return nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Conv2d(4, 4, 3, 2), nn.ReLU(), Head())\n"
    code += "class Head(nn.Module):\n    def forward(self, x): return torch.relu(x)\n"
    preprocessing = {"input_size": (24, 24)}

    def load(text):
        file.write_text(text)
        return zoo.load(f"python:{file}:net#4", preprocessing=preprocessing)

    maps = attribute(load(code), probe(n=2), out=tmp_path / "maps").load()
    xr.testing.assert_identical(attribute(load(code), probe(n=2), out=tmp_path / "maps").load(), maps)
    with pytest.raises(ValueError, match="another encoder that is called python:net.py:net#4 too"):
        attribute(load(code.replace("torch.relu(x)", "torch.tanh(x)")), probe(n=2), out=tmp_path / "maps")
