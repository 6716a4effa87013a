import itertools
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from support import oracle
from support.bank import networks, rooms, tasks, training, transfers, work
from support.bank.__main__ import main
from support.sources import shared

ROOT = Path(__file__).parents[1]
SEEDS = (0, 1, 2)
RESULTS = ("encoders_seed0.safetensors", "decoders_seed0.safetensors", "losses_seed0.npz")


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    """A bank of three tasks and 200 rooms, made without interruption."""
    folder = tmp_path_factory.mktemp("bank")
    main(["all", "--tiny", "--device", "cpu", "--folder", str(folder)])
    return folder


@pytest.fixture
def workshop(bank):
    return work.Workshop(work.TINY, 0, bank)


def stirred(network):
    """The network after a few forward passes, so that no statistic has its first value, in evaluation mode."""
    with torch.no_grad():
        for _ in range(3):
            network(torch.randn(16, 3, 64, 64))
    return network.eval()


def count(network):
    return sum(value.numel() for value in network.parameters())


def test_encoder_ends_in_batch_normalisation_and_relu():
    encoder = stirred(networks.Encoder())
    ending = list(encoder.modules())[-3:]
    assert [type(module) for module in ending] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
    representation = encoder(torch.randn(8, 3, 64, 64))
    assert representation.shape == (8, 8, 8, 8)
    assert representation.min() == 0 and 0.1 < (representation > 0).float().mean() < 0.9


@pytest.mark.parametrize("name", tasks.TASKS)
def test_decoder_fits_its_task(name):
    task = tasks.TASKS[name]
    decoder = networks.decoder(task)
    shape = (2, task.channels) if task.kind in ("vector", "classes") else (2, task.channels, 64, 64)
    assert decoder(torch.rand(2, 8, 8, 8)).shape == shape
    assert 40_000 < count(decoder) < 55_000
    assert networks.Head(task)(torch.rand(2, 8, 8, 8)).shape == shape


def test_normalise_takes_bytes_and_floats():
    images = torch.tensor([0, 51, 255], dtype=torch.uint8)
    torch.testing.assert_close(networks.normalise(images), torch.tensor([-1.0, -0.6, 1.0]))
    torch.testing.assert_close(networks.normalise(images / 255), networks.normalise(images))


def test_stored_values_come_back_in_half_precision():
    encoder = stirred(networks.Encoder())
    state = networks.halved(encoder)
    assert {value.dtype for value in state.values()} == {torch.float16}
    copy = networks.restore(networks.Encoder(), state)
    assert not copy.training and not any(value.requires_grad for value in copy.parameters())
    for name, value in copy.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, encoder.state_dict()[name].half().float(), rtol=0, atol=0)
    images = torch.randn(4, 3, 64, 64)
    torch.testing.assert_close(copy(images), encoder(images), rtol=0.02, atol=0.02)


def test_storing_and_restoring_refuse_what_is_not_a_network():
    encoder = networks.Encoder()
    with pytest.raises(ValueError, match="not the values of a VectorDecoder"):
        networks.restore(networks.VectorDecoder(3), networks.halved(encoder))
    with torch.no_grad():
        encoder[0][0].weight[0, 0, 0, 0] = 1e6
    with pytest.raises(ValueError, match=r"0\.0\.weight is not finite in half precision"):
        networks.halved(encoder)


def test_seeing_grey_is_a_change_of_weights():
    encoder = stirred(networks.Encoder())
    images = torch.rand(4, 3, 64, 64)
    grey = tasks.TASKS["colorization"].input({"rgb": images})
    before = encoder(networks.normalise(grey))
    assert (encoder(networks.normalise(images)) - before).abs().max() > 0.01
    networks.see_grey(encoder)
    torch.testing.assert_close(encoder(networks.normalise(images)), before, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(encoder(networks.normalise(grey)), before, rtol=1e-4, atol=1e-4)


def test_reading_says_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="python -m support.bank all"):
        networks.read(tmp_path / "none.safetensors", "edge2d")
    save_file({"edge2d.a": torch.ones(1), "denoise.a": torch.ones(1)}, tmp_path / "some.safetensors")
    assert networks.read(tmp_path / "some.safetensors", "edge2d") == {"a": torch.ones(1)}
    with pytest.raises(ValueError, match="nothing for 'edge'; it holds denoise, edge2d"):
        networks.read(tmp_path / "some.safetensors", "edge")
    (tmp_path / "broken.safetensors").write_bytes((tmp_path / "some.safetensors").read_bytes()[:-3])
    with pytest.raises(ValueError, match="delete it"):
        networks.read(tmp_path / "broken.safetensors", "edge2d")


def test_unknown_kind_of_task():
    with pytest.raises(ValueError, match="'sound', expected image, pixels, vector or classes"):
        networks.decoder(tasks.Task("hum", "sound", 1, "2D", lambda scene: scene["rgb"]))


def fitted(seed=0, steps=60, inputs=None, targets=None):
    """A decoder that learns brightness from representations that hold it."""
    task = tasks.Task("brightness", "vector", 1, "2D", lambda scene: scene["rgb"].mean((1, 2, 3), keepdim=True))
    inputs = torch.rand(80, 8, 8, 8, generator=torch.Generator().manual_seed(1)) if inputs is None else inputs
    targets = (inputs.mean((1, 2, 3)) - 0.5)[:, None] * 40 if targets is None else targets
    generator = torch.Generator().manual_seed(seed)
    network = training.build(lambda: networks.decoder(task), generator)
    curve = training.fit(network, task, inputs, targets, steps, 20, generator)
    return network.eval(), curve, training.losses(network, task, inputs, targets)


def test_fit_learns_and_repeats_itself():
    _, curve, losses = fitted()
    assert len(curve) == 60
    assert np.mean(curve[-5:]) < 0.3 * np.mean(curve[:5])
    assert losses.shape == (80,) and losses.mean() < 0.3 * np.mean(curve[:5])
    torch.manual_seed(5)
    _, again, same = fitted()
    assert again == curve and torch.equal(losses, same)
    assert fitted(seed=1)[1] != curve


def test_losses_do_not_depend_on_the_company_of_an_image(monkeypatch):
    network, _, losses = fitted(steps=5)
    inputs = torch.rand(80, 8, 8, 8, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(training, "AT_ONCE", 7)
    _, _, alone = fitted(steps=5, inputs=inputs)
    torch.testing.assert_close(alone, losses)


def test_fit_refuses_too_few_images_and_divergence():
    with pytest.raises(ValueError, match="10 images do not fill a batch of 20"):
        fitted(inputs=torch.rand(10, 8, 8, 8))
    with pytest.raises(ValueError, match="brightness diverged"):
        fitted(steps=2, inputs=torch.rand(20, 8, 8, 8), targets=torch.full((20, 1), math.inf))


def test_building_leaves_global_random_numbers_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    one = training.build(networks.Encoder, torch.Generator().manual_seed(0))
    assert torch.equal(torch.rand(2), expected)
    other = training.build(networks.Encoder, torch.Generator().manual_seed(0))
    assert torch.equal(one[0][0].weight, other[0][0].weight)


def test_splits_share_no_image():
    for plan in (work.FULL, work.TINY):
        splits = [set(plan.images(split)) for split in ("train", "transfer", "test")]
        assert [len(split) for split in splits] == [plan.n_train, plan.n_transfer, plan.n_test]
        assert len(set.union(*splits)) == sum(map(len, splits))
        assert not set.union(*splits) & set(rooms.PROBE)
    parts = work.Workshop(work.Plan(shard=700)).shards()
    assert [number for split, *ends in parts if split == "test" for number in range(*ends)] == list(
        work.FULL.images("test")
    )
    with pytest.raises(ValueError, match="more images than there are"):
        work.Plan(n_transfer=len(rooms.TRANSFER)).images("test")
    with pytest.raises(ValueError, match="more images than there are"):
        work.Plan(n_train=len(rooms.TRAIN) + 1).images("train")


def test_full_plan_has_the_published_tasks():
    published = oracle.load("taskonomy")
    assert set(work.FULL.tasks) == set(published.source.values)
    assert set(work.FULL.targets) == set(published.target.values)
    assert len(work.FULL.doubled) >= 3 and set(work.FULL.doubled) <= set(work.FULL.targets)


def test_rendered_pieces_are_what_the_tasks_say(workshop):
    scene = rooms.render(0, 40, 80)
    torch.testing.assert_close(workshop.images("train", "edge2d")[40:80] / 255, scene["rgb"], atol=0.0021, rtol=0)
    depth = tasks.TASKS["rgb2depth"].target(scene)
    torch.testing.assert_close(workshop.targets("train", "rgb2depth")[40:80].float(), depth, atol=2e-3, rtol=2e-3)
    assert torch.equal(workshop.targets("train", "class_places")[40:80].long(), scene["style"])


def test_images_that_a_task_sees_otherwise_are_kept_apart(tmp_path):
    plan = work.Plan(tasks=("denoise", "edge2d"), n_train=3, n_transfer=2, n_test=2, shard=4)
    workshop = work.Workshop(plan, 1, tmp_path)
    for part in workshop.shards():
        work.render(workshop, *part)
    assert workshop.sees_rgb("edge2d") and not workshop.sees_rgb("denoise")
    scene = rooms.render(1, plan.images("test").start, plan.images("test").stop)
    noisy = tasks.TASKS["denoise"].input(scene)
    torch.testing.assert_close(workshop.images("test", "denoise") / 255, noisy, atol=0.0021, rtol=0)
    torch.testing.assert_close(workshop.images("test", "edge2d") / 255, scene["rgb"], atol=0.0021, rtol=0)
    for name in training.sources(workshop):
        save_file(
            {f"encoder.{key}": value for key, value in networks.halved(networks.Encoder()).items()},
            (workshop.pieces / "x").with_name("one.safetensors"),
        )
        training.piece(workshop, name).parent.mkdir(exist_ok=True)
        (workshop.pieces / "one.safetensors").replace(training.piece(workshop, name))
    transfers.keep_features(workshop, "edge2d")
    kept = load_file(transfers.features_piece(workshop, "edge2d"))
    assert set(kept) == {f"{split}.{view}" for split in ("transfer", "test") for view in ("rgb", "denoise")}
    encoder = networks.load_encoder(training.piece(workshop, "edge2d"), "encoder")
    torch.testing.assert_close(kept["test.denoise"], transfers.represent(encoder, workshop.images("test", "denoise")))


def test_shipped_files_give_the_losses_that_were_measured(bank, workshop):
    data = oracle.losses(0, bank)
    for name in work.TINY.tasks:
        task = tasks.TASKS[name]
        encoder = networks.load_encoder(bank / RESULTS[0], name)
        decoder = networks.load_decoder(bank / RESULTS[1], task)
        with torch.no_grad():
            said = decoder(encoder(networks.normalise(workshop.images("test", name))))
        target = workshop.targets("test", name)
        target = target.float() if target.is_floating_point() else target.long()
        expected = tasks.losses(task, said, target)
        np.testing.assert_allclose(data["loss_own"].sel(task=name), expected, rtol=2e-3)
        learnt_from = workshop.targets("train", name)
        learnt_from = learnt_from.float() if learnt_from.is_floating_point() else learnt_from.long()
        constant = tasks.losses(task, tasks.constant(task, learnt_from), target)
        np.testing.assert_allclose(data["loss_constant"].sel(task=name), constant, rtol=2e-3)


def test_a_transfer_done_by_hand_gives_the_losses_that_were_measured(bank, workshop):
    data = oracle.losses(0, bank)
    source, target = "edge2d", "rgb2depth"
    task, plan = tasks.TASKS[target], work.TINY
    encoder = networks.load_encoder(bank / RESULTS[0], source)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the bank's way: sums depend on how many threads share them
    try:
        features = [transfers.represent(encoder, workshop.images(split, target)) for split in ("transfer", "test")]
        generator = workshop.generator("transfer", target)
        wanted = workshop.targets("transfer", target)
        head, curve = transfers.transfer(task, features[0], wanted, plan.head_steps, plan.batch, generator)
        losses = training.losses(head, task, features[1], workshop.targets("test", target))
    finally:
        torch.set_num_threads(threads)
    assert len(curve) == plan.head_steps
    assert all(torch.equal(before[name], value) for name, value in encoder.state_dict().items())
    np.testing.assert_allclose(data["loss"].sel(source=source, target=target), losses, rtol=2e-3)


def test_losses_table_is_complete(bank):
    data = oracle.losses(0, bank)
    assert data.source.values.tolist() == ["edge2d", "rgb2depth", "class_places", "random"]
    assert data["loss"].shape == (4, 3, 40) and data["loss_double"].shape == (4, 1, 40)
    assert data.image.values.tolist() == list(work.TINY.images("test"))
    assert all(np.isfinite(values).all() for values in data.values())
    assert not np.allclose(data["loss_double"].sel(target_double="edge2d"), data["loss"].sel(target="edge2d"))
    truth = oracle.load("bank", seed=0, folder=bank)
    assert truth.shape == (3, 3)
    np.testing.assert_allclose(truth.sum("source"), 1)


def test_random_encoder_keeps_its_first_weights_and_measures_its_units(bank, workshop):
    encoder = networks.load_encoder(bank / RESULTS[0], "random")
    first = training.build(networks.Encoder, workshop.generator("network", "random"))
    for name, value in first.named_parameters():
        torch.testing.assert_close(encoder.get_parameter(name), value.detach().half().float(), rtol=0, atol=0)
    representation = transfers.represent(encoder, workshop.images("train", "edge2d"))
    assert 0.2 < representation.pow(2).mean().sqrt() < 2  # a unit normal variable after ReLU: 0.71
    encoders = [networks.load_encoder(bank / RESULTS[0], name)[0][0].weight for name in (*work.TINY.tasks, "random")]
    assert all(not torch.equal(encoders[0], other) for other in encoders[1:])


def test_killed_half_way_and_resumed_a_bank_ends_the_same(bank, tmp_path):
    command = [sys.executable, "-m", "support.bank", "all", "--tiny", "--device", "cpu", "--folder", str(tmp_path)]
    process = subprocess.Popen([*command, "--workers", "2"], cwd=ROOT, stderr=subprocess.DEVNULL)
    pieces = work.Workshop(work.TINY, 0, tmp_path).pieces
    deadline = time.monotonic() + 90
    while not list(pieces.glob("networks/[!.]*")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(2)  # its workers notice
    made = {path: path.stat().st_mtime_ns for path in pieces.rglob("[!.]*") if path.is_file()}
    assert made and not (tmp_path / RESULTS[2]).exists()
    (pieces / "networks" / ".draft_1_edge2d.safetensors").write_bytes(b"half written")
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert finished.returncode == 0, finished.stderr
    assert {path: path.stat().st_mtime_ns for path in made} == made
    for name in RESULTS:
        assert (tmp_path / name).read_bytes() == (bank / name).read_bytes(), name
    assert not list(tmp_path.rglob(".*"))


def test_a_finished_bank_is_not_made_again(bank, capsys):
    before = {path: path.stat().st_mtime_ns for path in (bank / "work").rglob("*") if path.is_file()}
    main(["all", "--tiny", "--device", "cpu", "--folder", str(bank)])
    assert {path: path.stat().st_mtime_ns for path in (bank / "work").rglob("*") if path.is_file()} == before
    assert "losses_seed0.npz" in capsys.readouterr().out


def test_nothing_half_written_takes_a_finished_name(tmp_path):
    class Unsaveable:
        def __array__(self, *_, **__):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work.save_arrays(tmp_path / "a.npz", good=np.ones(3), bad=Unsaveable())
    assert not list(tmp_path.iterdir())


def test_a_worker_that_is_killed_is_reported():
    with pytest.raises(RuntimeError, match="fewer --workers"):
        work.run(os._exit, [(9,), (9,)], 2, "victims")


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_the_order_of_the_jobs(workers):
    assert work.run(math.pow, [(k, 2) for k in range(5)], workers, "squares") == [0, 1, 4, 9, 16]


def test_an_error_in_a_worker_is_not_swallowed():
    with pytest.raises(ValueError, match="math domain error|nonnegative"):
        work.run(math.sqrt, [(4,), (-1,), (9,)], 2, "roots")


def test_report_prints_every_check(bank, capsys):
    main(["report", "--folder", str(bank)])
    text = capsys.readouterr().out
    data = oracle.losses(0, bank)
    better = (data["loss_own"].mean("image") < data["loss_constant"].mean("image")).sum().item()
    assert f"{better} of 3 networks are better than the constant" in text
    halves = [oracle.transferability(data["loss"].isel(image=slice(start, None, 2))) for start in (0, 1)]
    mean = oracle.agreement(*halves).mean().item()
    assert any(line.split()[:2] == ["mean", f"{mean:.2f}"] for line in text.splitlines())
    for expected in ("halves", "double steps", "Taskonomy", "Random encoder", "semantic", *RESULTS):
        assert expected in text


def test_command_line_says_what_to_do(tmp_path, capsys):
    with pytest.raises(SystemExit, match="python -m support.bank render --seed 0"):
        main(["train", "--tiny", "--folder", str(tmp_path)])
    with pytest.raises(SystemExit, match="python -m support.bank train --seed 0"):
        main(["transfer", "--tiny", "--folder", str(tmp_path)])
    with pytest.raises(SystemExit, match="python -m support.bank all"):
        main(["report", "--folder", str(tmp_path)])
    for arguments, message in (
        (["all", "--workers", "0"], "at least 1"),
        (["all", "--seed", "-1"], "0 or more"),
        (["all", "--device", "tpu"], "auto, cpu or cuda"),
        (["all", "--tiny"], "another --folder"),
    ):
        with pytest.raises(SystemExit):
            main(arguments)
        assert message in capsys.readouterr().err


# the banks that ship


def test_every_shipped_network_beats_the_constant():
    for seed in SEEDS:
        data = oracle.losses(seed)
        assert data.task.size == 20 and data.source.size == 21 and data.target.size == 18
        own, constant = data["loss_own"], data["loss_constant"]
        assert (own.mean("image") < 0.9 * constant.mean("image")).all()
        assert ((own < constant).mean("image") > 0.7).all()


def test_shipped_oracles_agree_with_themselves_and_each_other():
    truths = [oracle.load("bank", seed=seed) for seed in SEEDS]
    for first, second in itertools.combinations(truths, 2):
        assert oracle.agreement(first, second).mean() >= 0.85
    for seed, truth in zip(SEEDS, truths, strict=True):
        data = oracle.losses(seed)
        halves = oracle.half_splits(data["loss"], n_splits=2)
        assert np.mean([oracle.agreement(*pair) for pair in halves]) >= 0.9
        doubled = oracle.transferability(data["loss_double"].rename(target_double="target"))
        assert doubled.sizes["target"] >= 3 and oracle.agreement(truth, doubled).mean() >= 0.9
    pooled = oracle.load("bank")
    assert pooled.attrs["seeds"] == list(SEEDS)
    assert min(oracle.agreement(pooled, truth).mean() for truth in truths) > 0.9


def test_shipped_random_encoder_is_in_the_last_third():
    for seed in SEEDS:
        losses, places = oracle.losses(seed)["loss"], []
        for target in losses.target.values:
            rivals = [name for name in losses.source.values if name != target]
            scores = oracle.ahp(oracle.win_rates(losses.sel(source=rivals, target=[target])))
            places.append((scores > scores.sel(source=oracle.RANDOM)).mean().item())
        assert np.mean(places) > 2 / 3


def test_shipped_files_are_the_documented_ones_and_small():
    text = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    files = sorted(work.FOLDER.glob("*_seed*.*"))
    assert len(files) == 9 and sum(path.stat().st_size for path in files) < 30e6
    for path in files:
        assert f"| `bank/{path.name}` | {path.stat().st_size:,} | `{shared.sha256(path)}` |" in text


def test_shipped_loss_is_that_of_the_shipped_network():
    data, task = oracle.losses(0), tasks.TASKS["reshade"]
    scene = rooms.render(0, data.image.values[0], data.image.values[0] + 4)
    encoder = networks.load_encoder(work.FOLDER / "encoders_seed0.safetensors", "reshade")
    decoder = networks.load_decoder(work.FOLDER / "decoders_seed0.safetensors", task)
    found = tasks.losses(task, decoder(encoder(networks.normalise(scene["rgb"]))), task.target(scene))
    np.testing.assert_allclose(found, data["loss_own"].sel(task="reshade")[:4], rtol=0.01)
