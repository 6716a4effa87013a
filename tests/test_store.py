"""Maps on disk: what is read is what was computed, and nothing that happens on the way is lost, doubled or mixed."""

import hashlib

import numpy as np
import pytest
import xarray as xr
from test_attribution import probe, toy

from support import attribution, space, store

METHODS = ["saliency", "epsilon_lrp"]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of four images of 12 x 12, in files of two."""
    monkeypatch.setattr(store, "BLOCK", 4 * 144)
    monkeypatch.setattr(store, "CHUNK", 2 * 144)


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
    fill = attribution._fill
    monkeypatch.setattr(
        attribution, "_fill", lambda maps, encoder, *a, **k: calls.append(encoder.name) or fill(maps, encoder, *a, **k)
    )
    xr.testing.assert_identical(attribute([toy("c", seed=1), toy("b")], images, METHODS, out=tmp_path)[:, ::-1], first)
    assert calls == [] and tree(tmp_path) == before
    whole = store.append(tmp_path, toy("a", seed=2), images, device="cpu", progress=False)
    assert calls == 3 * ["a"] and list(whole.model.values) == ["a", "b", "c"]
    assert {k: v for k, v in tree(tmp_path).items() if not k.startswith("a/")} == before
    store.delete(tmp_path, "a")
    assert tree(tmp_path) == before
    np.testing.assert_allclose(
        space.affinity(first[0]), space.affinity(attribute([toy("b"), toy("c", seed=1)], images)), atol=1e-5
    )
