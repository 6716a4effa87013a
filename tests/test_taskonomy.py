"""Taskonomy's encoders: our network against the published class, and downloads from a server that misbehaves."""

import functools
import hashlib
import http.server
import importlib.util
import pickle
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

from support import attribution, taskonomy, zoo
from support.bank.tasks import TASKS
from support.sources import shared

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
    """Answers with `content`, after `failures` answers that are `fault`."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.fault, self.failures, self.requests = b"", "", 0, 0
        self.released = threading.Event()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/encoder.pth"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests += 1
        fault = self.server.fault if self.server.requests <= self.server.failures else ""
        if fault == "missing":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.content)))
        self.end_headers()
        half = len(self.server.content) // 2
        self.wfile.write(self.server.content[:half])
        if fault == "stalls":
            self.wfile.flush()
            self.server.released.wait(60)
        if not fault:
            self.wfile.write(self.server.content[half:])

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
        ({"conv1.weight": torch.ones(2)}, "not the values of a ResNet50.*conv1.weight"),
        ({"state_dict": {"conv1.weight": 1}}, "holds no state dictionary"),
        ({"state_dict": {"conv1.weight": torch.ones(64, 3, 7, 7)}}, "not the values of a ResNet50.*bn1.weight"),
    ],
)
def test_a_checkpoint_of_another_kind(tmp_path, value, message):
    saved(tmp_path, value)
    with pytest.raises(ValueError, match=r"(?s)" + message):
        taskonomy.load(tmp_path / "saved.pth")


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
    monkeypatch.setattr(taskonomy, "fetch", lambda task: asked.append(task))
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
