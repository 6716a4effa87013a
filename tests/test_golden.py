"""Maps and matrices of a small fixed case are those that version 0.1.0 computed.

`python tests/test_golden.py` writes the file of expected values; that in git was written by the code of version 0.1.0.
On the kind of machine that wrote it (processor's instructions, version of torch) the bits have to agree. Elsewhere
sums are rounded in another order: there a map may differ by 1e-6 of its largest value, and an affinity by 1e-6.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from support import attribution, probe, space, zoo

FILE = Path(__file__).parent / "data" / "golden.npz"
NAMES = ("bank:edge2d", "bank:rgb2sfnorm", "package:mobilenet_v2", "package:open_nsfw")


def computed():
    """Arrays by name: maps (method, model, image, y, x), affinities (method, model, model), the machine, as text."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        encoders = [zoo.load(name) for name in NAMES]
        images = probe.load("rooms", n_images=2, size=32, seed=0)
        maps = attribution.attribute(encoders, images, attribution.PUBLISHED, device="cpu", progress=False)
    finally:
        torch.set_num_threads(threads)
    affinities = [space.affinity(maps.sel(attribution=method)).values for method in attribution.PUBLISHED]
    machine = f"{torch.__version__}, {torch.backends.cpu.get_cpu_capability()}"
    return {"maps": maps.values, "affinities": np.stack(affinities), "machine": np.array(machine)}


@pytest.fixture(scope="module")
def both():
    with np.load(FILE) as stored:
        return computed(), dict(stored)


@pytest.mark.parametrize("method", range(len(attribution.PUBLISHED)))
def test_maps_and_matrices_are_those_of_the_first_version(both, method):
    now, then = both
    for name in ("maps", "affinities"):
        found, expected = now[name][method], then[name][method]
        assert np.abs(expected).max() > 0 and found.dtype == expected.dtype
        if now["machine"] == then["machine"]:
            np.testing.assert_array_equal(found, expected)
        scale = np.abs(expected).max((-1, -2), keepdims=True)
        assert (np.abs(found - expected) <= 1e-6 * scale).all()


if __name__ == "__main__":
    np.savez_compressed(FILE, **computed())
