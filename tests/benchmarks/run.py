"""Time and memory, side by side with what they are compared with: `make bench` writes data/benchmarks.csv.

python tests/benchmarks/run.py [TABLE]

A figure of time is the median, over interleaved repeats, of the quotient of two times measured one after the other,
with the quartiles. Figures of memory are the peak of a process of its own.
"""

import copy
import os
import platform
import subprocess
import sys
import tempfile
import time
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import xarray as xr
from captum.attr import InputXGradient, Saliency

from support import attribution, epsilon_lrp, passes, probe, similarity, space, zoo

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "data" / "benchmarks.csv"
REPEATS = 7
REST = 0.2  # seconds before each measurement, for the threads of the one before to fall asleep
ENCODERS = {"bank:rgb2sfnorm": ("rooms", 256, 64), "package:mobilenet_v2": ("indoor", 10, 224)}
MODELS, IMAGES, SIDE = 100, 1000, 64  # of the figures of memory
rows = []


def seconds(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def side_by_side(functions, repeats=REPEATS):
    """Times (repeat, function), after one round that does not count; each repeat has an order of its own."""
    for function in functions:
        function()
    times, rng = np.empty((repeats, len(functions))), np.random.default_rng(0)
    for repeat in times:
        for k in rng.permutation(len(functions)):  # what one leaves in caches and allocator meets each of the others
            time.sleep(REST)
            repeat[k] = seconds(functions[k])
    return times


def add(figure, group, values, unit="×", rule="", target=np.nan, note=""):
    """One row of the table, of the values of all repeats; `rule` is how the value has to lie to the target."""
    low, middle, high = np.percentile(np.atleast_1d(values), [25, 50, 75])
    row = {"figure": figure, "group": group, "value": middle, "low": low, "high": high, "repeats": np.size(values)}
    rows.append(row | {"unit": unit, "rule": rule, "target": target, "note": note})
    print(f"{group:12s} {figure:70s} {middle:9.3g} {unit} {rule} {'' if np.isnan(target) else target}", flush=True)


def attributions():
    for name, probed in ENCODERS.items():
        _attributions(name, zoo.load(name), probe.load(*probed))


def _attributions(name, encoder, images):
    at_once = max(1, passes.PIXELS_AT_ONCE["cpu"] // np.prod(encoder.input_size))
    batches = [encoder.preprocess(images[i : i + at_once]) for i in range(0, len(images), at_once)]
    few = torch.cat(batches)[: max(1, len(images) // 4)]
    trainable = copy.deepcopy(encoder)
    for module in trainable.modules():
        module.requires_grad_(True)  # as a network is when it was just loaded

    def mean_unit(x, network=encoder):
        return network.represent(x).flatten(1).mean(1)

    def gradient(batch):
        x = batch.detach().requires_grad_()
        return torch.autograd.grad(mean_unit(x).sum(), x)[0]

    def ours(method):
        return lambda: attribution.attribute(encoder, images, method, device="cpu", progress=False)

    def captum():
        for kind in (Saliency, InputXGradient):
            method = kind(lambda x: mean_unit(x, trainable))
            for batch in batches:
                method.attribute(batch.detach().requires_grad_())

    def image_by_image():
        for x in few.split(1):
            gradient(x), gradient(x), epsilon_lrp.modified_gradient(mean_unit, x)

    asked = ("saliency", "gradient_x_input", list(attribution.PUBLISHED), ["saliency", "gradient_x_input"])
    functions = [lambda: [gradient(batch) for batch in batches], *map(ours, asked), captum, image_by_image]
    bare, saliency, product, three, two, theirs, single = side_by_side(functions).T
    group = "attribution"
    add(f"saliency, throughput over the bare loop, {name}", group, bare / saliency, "×", ">=", 0.9)
    add(f"gradient × input, throughput over the bare loop, {name}", group, bare / product, "×", ">=", 0.9)
    add(f"all three methods, time over saliency alone, {name}", group, three / saliency, "×", "<=", 2.2)
    note = "two methods, a call each, network as loaded, not frozen"
    add(f"Captum as documented, time over ours, {name}", group, theirs / two, note=note)
    note = "three methods, a pass each, batches of one; a quarter of the images was measured"
    add(f"image by image, time over ours, {name}", group, len(images) / len(few) * single / three, note=note)


def affinities():
    values = np.random.default_rng(0).normal(size=(20, 50, 256, 256)).astype(np.float32)
    maps = xr.DataArray(values, {"model": [f"m{i}" for i in range(20)]}, ("model", "image", "y", "x"))
    double = values.reshape(20, 50, -1).astype(np.float64)

    def loop():
        result = np.eye(20)
        for i, j in combinations(range(20), 2):
            cosines = [u @ v / np.sqrt((u @ u) * (v @ v)) for u, v in zip(double[i], double[j], strict=True)]
            result[i, j] = result[j, i] = np.mean(cosines)
        return result

    def converting():  # a quarter of the pairs
        for i, j in list(combinations(range(20), 2))[::4]:
            for u, v in zip(*(values[k].reshape(50, -1).astype(np.float64) for k in (i, j)), strict=True):
                u @ v / np.sqrt((u @ u) * (v @ v))

    np.testing.assert_allclose(space.affinity(maps), loop(), atol=1e-6)
    t = side_by_side([loop, lambda: space.affinity(maps), values.sum, converting])
    note = "20 models, 50 images, 256²"
    add(
        "loop over pairs and images in double precision, time over ours",
        "affinity",
        t[:, 0] / t[:, 1],
        "×",
        ">=",
        20,
        note,
    )
    also = note + "; as before, but maps are kept in single precision and converted for each pair; 48 pairs measured"
    times = t[:, 3] / t[:, 1] * 190 / 48
    add("loop over pairs and images, converting to double, time over ours", "affinity", times, note=also)
    note += "; a read is the sum of all values"
    add("affinity, time over one plain read", "affinity", t[:, 1] / t[:, 2], "×", "<=", 4, note)
    index = space.ModelSpace()
    for name in maps.model.values[:-1]:
        index.insert(name, maps.sel(model=name))

    def insert():
        index.insert("m19", maps.sel(model="m19"))
        index.remove("m19")

    t = side_by_side([lambda: space.affinity(maps), insert])
    add("matrix of 20 models, time over the insertion of the last one", "affinity", t[:, 0] / t[:, 1])


def correlations():
    rng = np.random.default_rng(0)
    decay = 0.985 ** np.arange(512)
    mixed = [rng.normal(size=(2000, 512)) * decay @ rng.normal(size=(512, 512)) for _ in range(20)]
    reps = {f"m{i}": values for i, values in enumerate(mixed)}

    def basis(values):
        left, strengths, _ = np.linalg.svd(values - values.mean(0), full_matrices=False)
        held = np.cumsum(strengths**2) / np.sum(strengths**2)
        return left[:, : np.searchsorted(held, 0.99) + 1]

    def one_pair():
        return np.linalg.svd(basis(mixed[0]).T @ basis(mixed[1]), compute_uv=False).mean()

    np.testing.assert_allclose(similarity.matrix(reps)[0, 1], one_pair(), atol=1e-6)
    t = side_by_side([one_pair, lambda: similarity.matrix(reps)], repeats=3)
    note = "2,000 samples, 512 units; one pair of 190 was measured"
    add(
        "SVCCA of 20 models, SVD of both for every pair, time over ours",
        "SVCCA",
        190 * t[:, 0] / t[:, 1],
        "×",
        ">=",
        50,
        note,
    )


PEAK = """
import resource, sys, torch
from support import attribution, space, zoo
import numpy as np, xarray as xr
kind, n_models, n_images, side, folder = sys.argv[1], *map(int, sys.argv[2:5]), sys.argv[5]
torch.manual_seed(0)
def small(name):
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, 4), torch.nn.ReLU())
    return zoo.Encoder(name, network, task="none", family="one convolution", input_size=(side, side))
if kind == "bank":
    encoders = zoo.load_all("bank")[:n_models]
else:
    encoders = [small(f"m{i}") for i in range(n_models)]
pixels = np.random.default_rng(0).random((n_images, side, side, 3), np.float32)
images = xr.DataArray(pixels, {"channel": ["red", "green", "blue"]}, ("image", "y", "x", "channel"))
maps = attribution.attribute(encoders, images, "saliency", out=folder, device="cpu", progress=False)
space.affinity(maps)
unit = 1 if sys.platform == "darwin" else 1024
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9)
"""


def peak(kind, n_models, n_images):
    """Gigabytes at most resident while maps go to disk and are compared."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = [kind, n_models, n_images, SIDE, Path(folder) / "maps.zarr"]
        return float(child(PEAK, *arguments))


def child(code, *arguments):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT, env=dict(os.environ)).stdout


def memory():
    note = "encoders of one convolution, so that the maps and not the networks count"
    whole = peak("small", MODELS, IMAGES)
    add(
        f"{MODELS} models, {IMAGES} images of {SIDE}²: maps to disk, and affinity", "memory", whole, "GB", "<=", 2, note
    )
    flat = f"flat: within a tenth of a gigabyte, where the maps themselves take {MODELS * IMAGES * SIDE**2 * 2e-9:.2g}"
    more = whole - peak("small", MODELS // 2, IMAGES)
    add(f"{MODELS} models instead of {MODELS // 2}, more memory", "memory", more, "GB", "<=", 0.1, flat)
    more = whole - peak("small", MODELS, IMAGES // 2)
    own = IMAGES // 2 * SIDE**2 * 3 * 4e-9
    note = f"{flat}; the probe images, which are held, take {own:.2g} more"
    add(f"{IMAGES} images instead of {IMAGES // 2}, more memory", "memory", more, "GB", "<=", 0.1, note)
    add("4 encoders of the task bank, 250 images", "memory", peak("bank", 4, 250), "GB", "<=", 2)


def start_up():
    code = "import time; start = time.perf_counter(); import {}; print(time.perf_counter() - start)"
    lazy = "the package alone: what is imported when it is used, the next row has"
    for names, rule, target, note in [("support", "<=", 0.3, lazy), ("support.space, support.probe", "", np.nan, "")]:
        child(code.format(names))
        times = [float(child(code.format(names))) for _ in range(REPEATS)]
        add(f"import {names}", "start-up", times, "s", rule, target, note)
    t = side_by_side([lambda: probe.load("indoor", 200, 64)], repeats=3)
    add("200 tiles of photographs, files read before", "start-up", t[:, 0], "s", "<=", 5)


def machine():
    """Cores and family of the processor, in words."""
    name = platform.processor() or platform.machine()
    described = Path("/proc/cpuinfo")
    if described.exists():
        lines = [line for line in described.read_text().splitlines() if line.startswith("model name")]
        name = lines[0].split(":")[1].strip() if lines else name
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{os.cpu_count()} cores, {name}, {capability}, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    # memory first: on Linux the peak of a child begins at the size of the process that starts it
    for measure in (memory, attributions, affinities, correlations, start_up):
        measure()
    table = pd.DataFrame(rows).assign(machine=machine(), torch=torch.__version__.split("+")[0])
    table.to_csv(sys.argv[1] if len(sys.argv) > 1 else TABLE, index=False, float_format="%.4g")
