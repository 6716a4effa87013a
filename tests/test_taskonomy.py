"""Taskonomy's encoders: our network against the published class, and downloads from a server that misbehaves."""

import concurrent.futures
import functools
import hashlib
import http.server
import importlib.util
import io
import json
import os
import pickle
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import skimage.color
import torch
import xarray as xr
from torch import nn

from support import attribution, store, taskonomy, zoo
from support.bank.tasks import TASKS
from support.chapters import original
from support.sources import shared, weights

DIGEST = "7eb0fe2c2b292e502540fc7bf8f0e2103b0da55aadcc330992ca47da926172ce"


@functools.cache
def visualpriors():
    """The module of the package visualpriors that holds the published class, loaded without the package's others."""
    path = shared.find("visualpriors", "visualpriors/taskonomy_network.py", DIGEST, "0.3.5")
    spec = importlib.util.spec_from_file_location("taskonomy_network", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def random_encoder():
    return taskonomy.encoder("edge3d", weights="random")


def photograph(size=256):
    values = np.random.default_rng(0).random((1, size, size, 3), np.float32)
    return xr.DataArray(values, dims=("image", "y", "x", "channel"), coords={"image": [0], "channel": list("rgb")})


def stirred():
    """Values for every key, with statistics and scales of batch normalisation that are not their first ones."""
    generator = torch.Generator().manual_seed(0)
    network = random_encoder().network
    state = {}
    for key, value in network.state_dict().items():
        change = torch.rand(value.shape, generator=generator)
        if value.ndim == 1:
            value = change + (0.5 if key.endswith(("weight", "running_var")) else -0.5)
        state[key] = value.clone()
    return state


# the network


def test_keys_and_shapes_are_those_of_the_published_class():
    ours, theirs = taskonomy.ResNet50().state_dict(), visualpriors().TaskonomyEncoder().state_dict()
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}


def test_outputs_and_gradients_are_those_of_the_published_class():
    ours, theirs = taskonomy.ResNet50().eval(), visualpriors().TaskonomyEncoder(normalize_outputs=False)
    for network in (ours, theirs):
        network.load_state_dict(stirred())
    inputs = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(1)) * 2 - 1
    outputs, gradients = [], []
    for network in (ours, theirs):
        seen = inputs.clone().requires_grad_()
        outputs.append(network(seen))
        weights = torch.rand(outputs[-1].shape, generator=torch.Generator().manual_seed(2))
        gradients.append(torch.autograd.grad((outputs[-1] * weights).sum(), seen)[0])
    assert outputs[0].shape == (1, 8, 16, 16)
    assert outputs[1].max() > 0 and gradients[1].abs().max() > 0
    for one, two in (outputs, gradients):
        torch.testing.assert_close(one / two.abs().max(), two / two.abs().max(), rtol=0, atol=1e-5)


def test_random_networks_are_alive_and_one_for_every_task_and_seed():
    state = torch.random.get_rng_state()
    encoder = taskonomy.encoder("edge3d", weights="random")
    assert torch.equal(torch.random.get_rng_state(), state)
    inputs = encoder.preprocess(photograph()).requires_grad_()
    representation = encoder.represent(inputs)
    (gradient,) = torch.autograd.grad(representation.mean(), inputs)
    assert representation.shape == (1, 8, 16, 16) and torch.isfinite(representation).all()
    assert representation.min() == 0 and 0.1 < (representation > 0).float().mean() < 0.9
    assert torch.isfinite(gradient).all() and (gradient != 0).float().mean() > 0.99
    first = [
        taskonomy.encoder(task, "random", seed).network.conv1.weight
        for task, seed in [("edge3d", 0), ("edge3d", 1), ("edge2d", 0)]
    ]
    assert torch.equal(first[0], encoder.network.conv1.weight)
    assert not torch.equal(first[0], first[1]) and not torch.equal(first[0], first[2])


def test_smaller_inputs_give_a_sixteenth_of_their_size():
    encoder = taskonomy.encoder("edge3d", "random", size=48)
    assert encoder.input_size == (48, 48) and "3 × 3 units" in encoder.card["representation"]
    assert encoder.represent(encoder.preprocess(photograph(30))).shape == (1, 8, 3, 3)
    for size in (16, 40, 512):
        with pytest.raises(ValueError, match=f"size is {size}, expected a multiple of 16 from 32 to 256"):
            taskonomy.encoder("edge3d", "random", size=size)


def test_encoder_is_frozen_described_and_sees_minus_one_to_one():
    encoder = random_encoder()
    assert (encoder.name, encoder.task, encoder.family) == ("edge3d", "edge3d", "ResNet-50")
    assert not encoder.network.training and not any(p.requires_grad for p in encoder.network.parameters())
    assert encoder.card["trained_on"] == "nothing: random weights of seed 0"
    assert encoder.card["parameters"] == sum(v.numel() for v in stirred().values() if v.is_floating_point())
    inputs = encoder.preprocess(np.full((1, 10, 12, 3), [0, 0.5, 1]))
    assert inputs.shape == (1, 3, 256, 256)
    torch.testing.assert_close(inputs.mean((0, 2, 3)), torch.tensor([-1.0, 0, 1]))


def test_epsilon_lrp_is_gradient_times_input():
    maps = attribution.attribute(
        random_encoder(), photograph(), ["gradient_x_input", "epsilon_lrp"], device="cpu", progress=False
    )
    one, two = maps.values.reshape(2, -1).astype(float)
    assert one @ two / np.linalg.norm(one) / np.linalg.norm(two) > 0.999


# colorization: one channel of lightness


@functools.cache
def colorization(size=64):
    return taskonomy.encoder("colorization", weights="random", size=size)


def test_colorization_has_one_channel_and_all_others_three():
    assert dict(taskonomy.published()["channels"]) == {task: 1 if task == "colorization" else 3 for task in TASKS}
    assert colorization().network.conv1.weight.shape == (64, 1, 7, 7)
    assert colorization().network.conv1.weight.std() > 0


def test_its_input_is_lightness_from_minus_one_to_one():
    inputs = colorization().preprocess(photograph(64))
    lab = skimage.color.rgb2lab(photograph(64).values[0].astype(np.float64))
    assert inputs.shape == (1, 1, 64, 64)
    np.testing.assert_allclose(inputs[0, 0], lab[..., 0] / 50 - 1, atol=1e-5)
    edges = colorization().preprocess(np.array([[0, 0, 0], [1, 1, 1]], float).reshape(2, 1, 1, 3))
    torch.testing.assert_close(edges[:, 0, 0, 0], torch.tensor([-1.0, 1]), atol=1e-5, rtol=0)


def test_it_is_resized_before_lightness_is_taken():
    halves = np.zeros((1, 64, 64, 3))
    halves[:, :, ::2] = 1  # black and white columns: grey of 0.5 at a quarter of the size
    inputs = colorization(32).preprocess(halves)
    grey = skimage.color.rgb2lab(np.full((1, 1, 3), 0.5))[0, 0, 0] / 50 - 1
    assert abs(inputs[0, 0, 8:24, 8:24].mean() - grey) < 0.02


def test_its_map_is_shared_equally_by_the_colours():
    network = colorization()
    one = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    for size in ((64, 64), (40, 48)):
        restored = network.restore(one, size)
        assert restored.shape == (1, *size, 3)
        torch.testing.assert_close(restored[..., 0], restored[..., 2])
        torch.testing.assert_close(restored.sum((1, 2, 3)), one.sum((1, 2, 3)), rtol=1e-4, atol=1e-3)
    with pytest.raises(ValueError, match="lightness is no weighted sum"):
        zoo.Encoder(
            "x", nn.Flatten(), task="", family="", input_size=(2, 2), channels="LIGHTNESS", grey=(0.5, 0.3, 0.2)
        )


@pytest.mark.parametrize("method", ["saliency", "gradient_x_input"])
def test_what_is_compared_is_the_map_of_the_one_channel(method):
    network, images = colorization(), photograph(64)
    inputs = network.preprocess(images).requires_grad_()
    (gradient,) = torch.autograd.grad(network.represent(inputs).mean(), inputs)
    expected = (gradient.abs() if method == "saliency" else gradient * inputs)[0, 0].detach().numpy().astype(float)
    found = attribution.attribute(network, images, method, device="cpu", progress=False).values[0, 0].astype(float)
    cosine = (found * expected).sum() / np.linalg.norm(found) / np.linalg.norm(expected)
    assert abs(cosine - 1) < 1e-5


# names


def test_table_has_taskonomys_twenty_tasks():
    table = taskonomy.published()
    assert list(table.index) == list(TASKS)
    assert table["sha256"].str.fullmatch("[0-9a-f]{64}").all() and table["sha256"].is_unique
    assert (table["url"] == taskonomy.URL + table["file"]).all()


def test_table_is_that_of_the_published_package():
    module = visualpriors()
    for task, row in taskonomy.published().iterrows():
        assert row["url"] == module.TASKONOMY_PRETRAINED_URLS[module.task_mapping[task] + "_encoder"]


def test_unknown_task_and_weights():
    with pytest.raises(ValueError, match="unknown task 'edge_3d', did you mean 'edge3d'.*rgb2sfnorm"):
        taskonomy.encoder("edge_3d")
    with pytest.raises(ValueError, match="expected 'published' or 'random'"):
        taskonomy.encoder("edge3d", weights="trained")


def test_folder_is_the_users_cache_or_the_one_named(monkeypatch, tmp_path):
    monkeypatch.delenv("TASKONOMY_FOLDER", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = taskonomy.published().loc["edge3d", "file"]
    assert taskonomy.location("edge3d").is_absolute() and taskonomy.location("edge3d").name == file
    assert "transferability-from-attribution-maps" in taskonomy.location("edge3d").parts
    monkeypatch.setenv("TASKONOMY_FOLDER", str(tmp_path / "own"))
    assert taskonomy.location("edge3d") == tmp_path / "own" / file
    monkeypatch.setenv("TASKONOMY_FOLDER", "~/own")
    assert taskonomy.location("edge3d") == Path.home() / "own" / file


# downloads


class Server(http.server.ThreadingHTTPServer):
    """Answers with one of the `files`, or else `content`, after `failures` answers that are `fault`."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.fault, self.failures, self.requests = b"", "", 0, 0
        self.files = {}
        self.released = threading.Event()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/encoder.pth"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests += 1
        fault = self.server.fault if self.server.requests <= self.server.failures else ""
        content = self.server.files.get(self.path[1:], self.server.content)
        if fault == "missing" or content is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        half = len(content) // 2
        self.wfile.write(content[:half])
        if fault == "stalls":
            self.wfile.flush()
            self.server.released.wait(60)
        if not fault:
            self.wfile.write(content[half:])

    def log_message(self, *arguments):
        """Keep the test's output quiet."""


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server
        server.released.set()
        server.shutdown()


def digest(content):
    return hashlib.sha256(content).hexdigest()


def saved(tmp_path, value, **options):
    torch.save(value, tmp_path / "saved.pth", **options)
    return (tmp_path / "saved.pth").read_bytes()


def test_a_file_is_downloaded_once(server, tmp_path):
    server.content = saved(tmp_path, {"state_dict": {"weight": torch.ones(3)}})
    target = tmp_path / "not" / "yet" / "encoder.pth"
    for _ in range(2):
        assert taskonomy.download(server.url, digest(server.content), target) == target
    assert target.read_bytes() == server.content and server.requests == 1
    assert list(target.parent.iterdir()) == [target]


def test_a_download_that_breaks_off_is_begun_again(server, tmp_path):
    server.content, server.fault, server.failures = b"0123456789" * 1000, "breaks", 1
    target = tmp_path / "encoder.pth"
    taskonomy.download(server.url, digest(server.content), target, progress=False)
    assert target.read_bytes() == server.content and server.requests == 2


@pytest.mark.parametrize(("fault", "reason"), [("breaks", "5000"), ("missing", "404"), ("stalls", "timed out")])
def test_a_download_that_fails_says_what_to_do_and_leaves_nothing(server, tmp_path, fault, reason):
    server.content, server.fault, server.failures = b"0123456789" * 1000, fault, 9
    target = tmp_path / "folder" / "encoder.pth"
    started, timeout = time.monotonic(), 0.3 if fault == "stalls" else 30
    with pytest.raises(FileNotFoundError, match=reason) as caught:
        taskonomy.download(server.url, digest(server.content), target, timeout=timeout, progress=False)
    assert time.monotonic() - started < 30
    assert f"fetch {server.url} " in str(caught.value) and f"save it as {target}" in str(caught.value)
    assert list(target.parent.iterdir()) == []
    server.failures = 0
    taskonomy.download(server.url, digest(server.content), target, progress=False)
    assert target.read_bytes() == server.content


def test_another_file_than_expected_is_not_kept(server, tmp_path):
    server.content = b"something else"
    with pytest.raises(ValueError, match=f"{server.url} does not send the file expected.*{digest(server.content)}"):
        taskonomy.download(server.url, digest(b"expected"), tmp_path / "encoder.pth", progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_is_named_and_not_overwritten(server, tmp_path):
    target = tmp_path / "encoder.pth"
    target.write_bytes(b"half")
    with pytest.raises(ValueError, match=f"{target} has SHA-256 {digest(b'half')}.*delete it"):
        taskonomy.download(server.url, digest(b"whole"), target)
    assert target.read_bytes() == b"half" and server.requests == 0


def test_progress_is_shown_when_asked_for(server, tmp_path, capsys):
    server.content = b"0123456789" * 1000
    taskonomy.download(server.url, digest(server.content), tmp_path / "quiet.pth", progress=False)
    assert "100%" not in capsys.readouterr().err
    taskonomy.download(server.url, digest(server.content), tmp_path / "shown.pth")
    assert "100%" in capsys.readouterr().err


def test_what_a_killed_download_left_is_cleared_away(server, tmp_path):
    server.content, server.fault, server.failures = b"0123456789" * 1000, "stalls", 1
    target = tmp_path / "folder" / "encoder.pth"
    call = f"from support import taskonomy; taskonomy.download({server.url!r}, 'x', {str(target)!r}, progress=False)"
    process = subprocess.Popen([sys.executable, "-c", call], cwd=Path(taskonomy.__file__).parents[1])
    limit = time.monotonic() + 60
    while not (drafts := list(target.parent.glob(f"{taskonomy.DRAFTS}/*"))) or not server.requests:
        assert time.monotonic() < limit and process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert drafts and drafts[0].exists()
    taskonomy.download(server.url, digest(server.content), target, progress=False)
    assert list(target.parent.iterdir()) == [target]


def test_two_downloads_of_one_file_are_one(server, tmp_path):
    server.content = b"0123456789" * 100_000
    target, wanted = tmp_path / "encoder.pth", digest(server.content)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(taskonomy.download, server.url, wanted, target, progress=False) for _ in range(4)]
        assert {call.result() for call in calls} == {target}
    assert server.requests == 1 and list(tmp_path.iterdir()) == [target]


class Runs:
    """A pickled object that writes a file when it is opened."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_file_does_not_run(server, tmp_path, legacy):
    mark = tmp_path / "it ran"
    server.content = saved(tmp_path, {"state_dict": Runs(mark)}, _use_new_zipfile_serialization=not legacy)
    path = taskonomy.download(server.url, digest(server.content), tmp_path / "encoder.pth", progress=False)
    with pytest.raises(ValueError, match="could run code: not loaded"):
        taskonomy.load(path)
    assert not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists()


@pytest.mark.parametrize("content", [b"", b"no checkpoint", pickle.dumps({"state_dict": {}}, 2)[:-3]])
def test_a_file_that_is_no_checkpoint(tmp_path, content):
    (tmp_path / "encoder.pth").write_bytes(content)
    with pytest.raises(ValueError, match="encoder.pth is damaged"):
        taskonomy.load(tmp_path / "encoder.pth")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.ones(2), r"holds no state dictionary, expected tensors by name \(or these as 'state_dict'\)"),
        (
            {"conv1.weight": torch.ones(2)},
            r"does not hold the values of a ResNet50 with 3 input channels: no bn1.bias, .*; conv1.weight is \(2,\)",
        ),
        ({"state_dict": {"conv1.weight": 1}}, "holds no state dictionary"),
        (
            {"state_dict": {"conv1.weight": torch.ones(64, 3, 7, 7)}},
            "does not hold the values of a ResNet50 with 3 input channels: no bn1.bias, bn1.running_mean, "
            "bn1.running_var and 266 more$",
        ),
    ],
)
def test_a_checkpoint_of_another_kind(tmp_path, value, message):
    saved(tmp_path, value)
    with pytest.raises(ValueError, match=r"(?s)" + message):
        taskonomy.load(tmp_path / "saved.pth")


# all twenty, in the published form: names, shapes and types, with few different values


def state_of(task, change=None):
    """A published file's dictionary in little space: every tensor is a view of a short row of numbers."""
    generator = torch.Generator().manual_seed(list(TASKS).index(task))
    with torch.device("meta"):
        network = taskonomy.ResNet50(1 if task == "colorization" else 3)
    state = {}
    for key, value in network.state_dict().items():
        if value.ndim < 4:
            low, high = (0.5, 1.5) if key.endswith(("weight", "running_var")) else (-0.1, 0.1)
            if key == "compress_bn.bias":
                low, high = 2, 3
            state[key] = torch.empty(value.shape).uniform_(low, high, generator=generator).to(value.dtype)
        else:
            n_out, n_in, height, width = value.shape
            strides = (1, 3, 7, 11)
            length = 1 + sum(stride * (size - 1) for stride, size in zip(strides, value.shape, strict=True))
            # numbers that repeat make a network ill-conditioned, and its units die: small steps beside the way through
            scale = {"compress1.weight": 1e-3}.get(key, 0.1 if key.endswith("conv3.weight") else 1)
            row = torch.randn(length, generator=generator) * scale * (2 / (n_in * height * width)) ** 0.5
            state[key] = row.as_strided(value.shape, strides)
    return {"state_dict": state | (change or {})}


@functools.cache
def published_content(task):
    buffer = io.BytesIO()
    torch.save(state_of(task), buffer)
    return buffer.getvalue()


@pytest.fixture
def publish_all(server, monkeypatch, tmp_path):
    """Let the twenty files be those of `state_of`, changed as a dictionary of tasks says; None is not there."""
    monkeypatch.setenv("TASKONOMY_FOLDER", str(tmp_path / "cache"))
    monkeypatch.setattr(weights, "LARGEST", 10**6)  # what is said twice is stored once here

    def publish(changes=None):
        table = pd.read_csv(taskonomy.TABLE, index_col="task")
        changes = changes or {}
        for task, row in table.iterrows():
            content = (
                published_content(task) if not changes.get(task) else saved(tmp_path, state_of(task, changes[task]))
            )
            table.loc[task, "sha256"] = digest(content)
            file = f"{row['published_name']}_encoder-{digest(content)}.pth"
            server.files[file] = None if changes.get(task, "") is None else content
        table.to_csv(tmp_path / "encoders.csv")
        monkeypatch.setattr(taskonomy, "TABLE", tmp_path / "encoders.csv")
        monkeypatch.setattr(taskonomy, "URL", server.url.removesuffix("encoder.pth"))
        taskonomy.published.cache_clear()

    yield publish
    taskonomy.published.cache_clear()


def test_twenty_files_are_fetched_looked_into_and_loaded(publish_all, server):
    publish_all()
    paths = taskonomy.fetch_all(list(TASKS), progress=False)
    assert paths == [taskonomy.location(task) for task in TASKS] and server.requests == 20
    encoder = zoo.load("taskonomy:colorization")
    assert server.requests == 20 and encoder.network.conv1.in_channels == 1
    wanted = state_of("colorization")["state_dict"]["conv1.weight"]
    assert torch.equal(encoder.network.conv1.weight, wanted)
    representation = encoder.represent(encoder.preprocess(photograph()))
    assert representation.shape == (1, 8, 16, 16) and (representation > 0).any()


def test_the_reduced_experiment_runs_through_with_published_files(publish_all, server, tmp_path):
    """Chapter 14 with all twenty encoders from a server, in processes that know of nothing but its address."""
    publish_all()
    (tmp_path / "sitecustomize.py").write_text(
        "from support import taskonomy\n"
        "from support.sources import weights\n"
        f"taskonomy.TABLE, taskonomy.URL = {str(taskonomy.TABLE)!r}, {taskonomy.URL!r}\n"
        f"weights.LARGEST = {weights.LARGEST}\n"
    )
    root = Path(__file__).parents[1]
    path = f"{tmp_path}{os.pathsep}{root}"
    environment = dict(os.environ, PYTHONPATH=path, JUPYTER_PATH=str(Path(sys.prefix, "share", "jupyter")))
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", "-k", "python3"]
    command += [str(root / "notebooks" / "14_reproduce_the_original.ipynb"), "out.ipynb"]
    command += ["-p", "weights", "published", "-p", "size", "32", "-p", "results", "maps"]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    assert server.requests == 20
    (folder,) = (tmp_path / "maps").iterdir()
    assert folder.name.startswith("published_0_32_") and sorted(store.open(folder).model.values) == sorted(TASKS)
    said = [
        "".join(output["data"]["text/markdown"])
        for cell in json.loads((tmp_path / "out.ipynb").read_text(encoding="utf-8"))["cells"]
        for output in cell.get("outputs", [])
        if "text/markdown" in output.get("data", {})
    ]
    assert "20 encoders with published weights" in said[0] and "These are results." in said[0]


def test_all_complaints_come_at_once_and_before_the_first_map(publish_all, monkeypatch, tmp_path):
    three = state_of("curvature")["state_dict"]["conv1.weight"]
    bias = torch.ones(64)
    publish_all(
        {
            "colorization": {"conv1.weight": three},
            "denoise": {"bn1.bias": bias.half()},
            "edge2d": {"bn1.bias": bias * float("nan")},
            "reshade": {"bn1.bias": bias[:63]},
            "room_layout": {"fc.weight": bias},
            "class_1000": None,
        }
    )
    monkeypatch.setattr(attribution, "attribute", lambda *_, **__: pytest.fail("a map was computed"))
    with pytest.raises(FileNotFoundError) as caught:
        original.affinities(original.tasks(), photograph(32), tmp_path / "maps", size=32, progress=False)
    lines = str(caught.value).splitlines()
    assert lines[0] == "6 of 20 encoders cannot be used:" and len(lines) == 8
    for task, words in {
        "colorization": r"with 1 input channel: conv1.weight is \(64, 3, 7, 7\) .*, expected \(64, 1, 7, 7\)",
        "denoise": r"bn1.bias is \(64,\) torch.float16, expected \(64,\) torch.float32$",
        "edge2d": "bn1.bias has values that are not finite$",
        "reshade": r"bn1.bias is \(63,\) torch.float32, expected \(64,\)",
        "room_layout": "unknown fc.weight$",
        "class_1000": "is not there and could not be downloaded.*404",
    }.items():
        (line,) = [line for line in lines[1:-1] if taskonomy.published().loc[task, "file"] in line]
        assert line.startswith("- ") and re.search(words, line), line
    assert lines[-1] == "To try the run without them: -p weights random"


def test_one_missing_file_is_said_as_for_one_alone(publish_all, server):
    publish_all()
    some = ["edge3d", "colorization", "edge2d"]
    taskonomy.fetch_all(some, progress=False)
    lost = taskonomy.location("edge3d")
    lost.unlink()
    server.fault, server.failures = "missing", 99
    with pytest.raises(FileNotFoundError, match=f"^{lost.name} is not there.*support.taskonomy edge3d$"):
        taskonomy.fetch_all(some, progress=False)
    taskonomy.location("edge2d").write_bytes(b"damaged")
    with pytest.raises(FileNotFoundError, match=r"(?s)^2 of 3 encoders cannot be used:.*edge_texture.*delete it"):
        taskonomy.fetch_all(some, progress=False)


# all together, with a file of full size


@pytest.fixture
def publish(server, monkeypatch, tmp_path):
    """Let edge3d's file be what the server sends; all others cannot be reached."""
    monkeypatch.setenv("TASKONOMY_FOLDER", str(tmp_path / "cache"))

    def publish(content):
        table = taskonomy.published().copy()
        table["url"] = "http://127.0.0.1:9/" + table["file"]
        table.loc["edge3d", ["url", "sha256"]] = server.url, digest(content)
        monkeypatch.setattr(taskonomy, "published", lambda: table)
        server.content = content

    return publish


def test_from_the_command_to_the_encoder(publish, server, tmp_path, capsys):
    state = {key: value for key, value in stirred().items() if not key.endswith("num_batches_tracked")}
    publish(saved(tmp_path, {"state_dict": state, "epoch": 3}, _use_new_zipfile_serialization=False))
    before = zoo.available().set_index("name")
    assert not before.loc["taskonomy:edge3d", "loadable"] and server.requests == 0
    assert before.loc["taskonomy:edge3d", "how"] == "python -m support.taskonomy edge3d"
    taskonomy.main(["edge3d"])
    assert capsys.readouterr().out == f"{taskonomy.location('edge3d')}\n"
    (encoder,) = zoo.load_all("taskonomy")
    assert encoder.name == "edge3d" and server.requests == 1
    assert encoder.card["file"] == taskonomy.location("edge3d").name
    assert encoder.card["sha256"] == digest(server.content) and encoder.card["licence"] == "MIT"
    for key, value in state.items():
        assert torch.equal(encoder.network.state_dict()[key], value)
    with pytest.raises(ValueError, match="taskonomy:edge3d has no seed"):
        zoo.load("taskonomy:edge3d", seed=1)


def test_without_weights_and_connection(publish):
    publish(b"")
    target = taskonomy.location("rgb2sfnorm")
    with pytest.raises(FileNotFoundError) as caught:
        zoo.load("taskonomy:rgb2sfnorm")
    for part in (target.name, f"fetch http://127.0.0.1:9/{target.name} ", f"save it as {target}"):
        assert part in str(caught.value)
    assert str(caught.value).endswith("python -m support.taskonomy rgb2sfnorm")
    with pytest.raises(SystemExit, match="^error: normal_encoder-.*could not be downloaded"):
        taskonomy.main(["rgb2sfnorm"])
    with pytest.raises(FileNotFoundError, match="no network of 'taskonomy'.*python -m support.taskonomy edge3d"):
        zoo.load_all("taskonomy")


def test_all_fetches_all_and_unknown_names_are_refused(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(taskonomy, "fetch_all", lambda tasks: asked.extend(tasks) or [])
    taskonomy.main(["all"])
    assert asked == list(TASKS)
    with pytest.raises(SystemExit):
        taskonomy.main(["edge4d"])
    assert "edge3d" in capsys.readouterr().err


def test_the_command_runs():
    run = subprocess.run(
        [sys.executable, "-m", "support.taskonomy", "--help"],
        cwd=Path(taskonomy.__file__).parents[1],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0 and "rgb2sfnorm" in run.stdout


@pytest.mark.parametrize("task", ["keypoint2d", "edge3d"])
def test_a_deep_network_whose_units_lie_at_bends_does_not_depend_on_its_batch(task):
    """Of keypoint2d, a unit at the bend of a ReLU changes the gradient by more than a hundredth of its length."""
    encoder = taskonomy.encoder(task, "random", size=64)
    assert encoder.check() is None
