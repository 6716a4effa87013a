import itertools
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from safetensors.torch import load_file, save_file
from torch import nn

from support import epsilon_lrp, oracle
from support.bank import networks, report, rooms, tasks, training, transfers, work
from support.bank.__main__ import main
from support.sources import shared

ROOT = Path(__file__).parents[1]
SEEDS = tuple(seed for seed in work.BANKS if (work.FOLDER / f"losses_seed{seed}.npz").is_file())
PLAIN = tuple(seed for seed in SEEDS if seed not in work.MIXED)
RESULTS = ("encoders_seed0.safetensors", "decoders_seed0.safetensors", "losses_seed0.npz")
MIXED = (*RESULTS, "crossed_encoders_seed0.safetensors", "crossed_seed0.npz", "budget_seed0.npz")
families = pytest.mark.parametrize("family", networks.FAMILIES)


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    """A bank of three tasks, two families and 200 rooms, made without interruption."""
    folder = tmp_path_factory.mktemp("bank")
    for stage in ("all", "budget"):
        main([stage, "--tiny", "--device", "cpu", "--folder", str(folder)])
    return folder


@pytest.fixture
def workshop(bank):
    return work.Workshop(work.TINY, 0, bank)


def stirred(network):
    """The network after a few forward passes, so that its statistics are those of its units, in evaluation mode."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        for _ in range(3):
            network(torch.randn(16, 3, network.size, network.size))
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


@families
def test_encoders_of_all_families(family):
    encoder = stirred(networks.FAMILIES[family]())
    images = torch.randn(8, 3, encoder.size, encoder.size)
    representation = encoder(images)
    assert representation.shape == (8, *encoder.shape)
    assert encoder.is_signed == bool(representation.min() < 0)
    assert 0.2 < (representation > 0).float().mean() < 0.8
    assert 120_000 < count(encoder) < 230_000
    torch.testing.assert_close(encoder(images[:1]), representation[:1], rtol=1e-3, atol=1e-4)  # images do not mix
    copy = networks.restore(networks.FAMILIES[family](), networks.halved(encoder))
    torch.testing.assert_close(copy(images), representation, rtol=0.05, atol=0.05)


@families
def test_ends_and_layers_are_those_of_the_family(family):
    encoder = networks.FAMILIES[family]()
    *_, last = (module for module in encoder.modules() if not list(module.children()))
    ends = {"plain": nn.ReLU, "residual": nn.ReLU, "separable": nn.BatchNorm2d, "transformer": nn.LayerNorm}
    assert type(last) is ends[family]
    kinds = {type(module) for module in encoder.modules()}
    assert (nn.GELU in kinds) == (nn.Softmax in kinds) == (family == "transformer")
    assert (
        (nn.Hardswish in kinds)
        == any(isinstance(module, nn.Conv2d) and module.groups > 1 for module in encoder.modules())
        == (family == "separable")
    )


@families
def test_epsilon_rules_are_there_where_a_family_says_so(family):
    encoder = stirred(networks.FAMILIES[family]()).requires_grad_(False)
    images = torch.randn(2, 3, encoder.size, encoder.size)

    def mean(inputs):
        return encoder(inputs).mean((1, 2, 3))

    if encoder.has_epsilon_rules:
        assert epsilon_lrp.modified_gradient(mean, images).abs().max() > 0
    else:
        with pytest.raises(ValueError, match="no rule for NativeLayerNorm"):
            epsilon_lrp.modified_gradient(mean, images)


@families
@pytest.mark.parametrize("name", tasks.TASKS)
def test_decoder_fits_its_task(name, family):
    task, representation = tasks.TASKS[name], networks.FAMILIES[family].shape
    decoder = networks.decoder(task, representation)
    shape = (2, task.channels) if task.kind in ("vector", "classes") else (2, task.channels, 64, 64)
    assert decoder(torch.rand(2, *representation)).shape == shape
    assert 40_000 < count(networks.decoder(task)) < 55_000
    assert networks.Head(task, representation)(torch.rand(2, *representation)).shape == shape


@pytest.mark.parametrize("name", ["edge2d", "class_1000"])
def test_heads_of_all_families_are_the_same_behind_the_first_convolution(name):
    heads = [
        training.build(lambda shape=encoder.shape: networks.Head(tasks.TASKS[name], shape), torch.Generator())
        for encoder in networks.FAMILIES.values()
    ]
    values = torch.rand(2, 32, 8, 8)
    rests = [nn.Sequential(*list(head)[1:]) for head in heads]
    for head, rest in zip(heads, rests, strict=True):
        assert torch.equal(rest(values), rests[0](values))
        (first,) = [module for module in head[0].modules() if isinstance(module, nn.Conv2d)]
        assert first.weight.shape[0] == 32 and first.weight.shape[2:] == (3, 3)
    assert count(heads[3]) - count(heads[0]) == 8 * 32 * 9  # sixteen channels instead of eight


def test_resampling_to_the_grid():
    assert torch.equal(networks.Resample(8)(torch.arange(64.0).view(1, 1, 8, 8)), torch.arange(64.0).view(1, 1, 8, 8))
    for side in (6, 12, 16):
        resample = networks.Resample(side)
        values = torch.rand(3, 5, side, side)
        expected = nn.functional.interpolate(values, (8, 8), mode="bilinear", antialias=True)
        torch.testing.assert_close(resample(values), expected)
        assert not resample.state_dict() and not list(resample.parameters())
    torch.testing.assert_close(
        networks.Resample(16)(torch.ones(1, 1, 16, 16)), torch.ones(1, 1, 8, 8)
    )  # the mean is kept


def test_resizing_is_that_of_the_zoo():
    images = torch.rand(2, 3, 64, 64)
    assert networks.Resize(64)(images) is images
    expected = nn.functional.interpolate(images, (96, 96), mode="bilinear", align_corners=False, antialias=True)
    torch.testing.assert_close(networks.Resize(96)(images), expected)
    encoder = stirred(networks.SeparableEncoder())
    bytes_ = (images * 255).round().to(torch.uint8)
    torch.testing.assert_close(
        transfers.represent(encoder, bytes_), encoder(networks.Resize(96)(networks.normalise(bytes_)))
    )


@pytest.mark.parametrize("seed", range(3, 7))
def test_families_are_dealt_evenly_over_tasks_and_groups(seed):
    plan = work.plan(seed)
    dealt = work.Workshop(plan, seed).families
    assert tuple(dealt) == plan.tasks
    if seed == 3:
        assert set(dealt.values()) == {"plain"}
        return
    assert Counter(dealt.values()) == dict.fromkeys(networks.FAMILIES, 5)
    for group in {task.group for task in tasks.TASKS.values()}:
        counts = Counter(dealt[name] for name in dealt if tasks.TASKS[name].group == group)
        counts = [counts[family] for family in networks.FAMILIES]
        assert max(counts) - min(counts) <= 1 and sum(count > 0 for count in counts) > 1
    assert dealt == work.Workshop(plan, seed, "elsewhere", "cuda").families  # the seed alone decides
    assert dealt != work.Workshop(plan, seed + 1).families


def test_plans_of_the_banks():
    assert [work.plan(seed) == work.FULL for seed in range(4)] == [True, True, True, False]
    assert [work.plan(seed).head_steps for seed in (0, 3, 4, 7)] == [120, 240, 240, 240]
    assert [seed for seed in range(9) if len(work.plan(seed).families) > 1] == [4, 5, 6]
    assert [seed for seed in range(9) if work.plan(seed).crossed] == [4]
    groups = Counter(tasks.TASKS[name].group for name in work.plan(4).crossed)
    assert groups == {"2D": 2, "3D": 2, "geometric": 1, "semantic": 1}
    workshop = work.Workshop(work.plan(4), 4)
    assert len(workshop.crossed) == 24 and len(training.added(workshop)) == 18
    for name, here in workshop.crossed.items():
        task, family = name.split("@")
        assert workshop.family(here) == family and here in (name, task)
    assert workshop.family(oracle.RANDOM) == "plain"


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


@families
def test_seeing_grey_is_a_change_of_weights(family):
    encoder = stirred(networks.FAMILIES[family]())
    images = torch.rand(4, 3, encoder.size, encoder.size)
    grey = tasks.TASKS["colorization"].input({"rgb": images})
    before = encoder(networks.normalise(grey))
    assert (encoder(networks.normalise(images)) - before).abs().max() > 0.01
    networks.see_grey(encoder)
    torch.testing.assert_close(encoder(networks.normalise(images)), before, rtol=1e-4, atol=2e-4)
    torch.testing.assert_close(encoder(networks.normalise(grey)), before, rtol=1e-4, atol=2e-4)


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
    work.save_tensors(tmp_path / "new.safetensors", {"edge2d.a": torch.ones(1)}, {"edge2d": "recurrent"})
    with pytest.raises(ValueError, match="edge2d is of the family 'recurrent'; known are plain, residual"):
        networks.load_encoder(tmp_path / "new.safetensors", "edge2d")


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


@families
def test_training_of_a_family_repeats_itself_and_learns(family):
    task = tasks.Task("brightness", "vector", 1, "2D", lambda scene: scene["rgb"].mean((1, 2, 3), keepdim=True))
    build = networks.FAMILIES[family]
    images = torch.randint(0, 256, (48, 3, 1, 1), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    images = images.expand(-1, -1, 64, 64).contiguous()
    targets = (images[:, :, 0, 0].float().mean(1, keepdim=True) - 127) / 40

    def trained():
        generator = torch.Generator().manual_seed(3)
        network = training.build(
            lambda: nn.Sequential(networks.Resize(build.size), build(), networks.decoder(task, build.shape)), generator
        )
        return network, training.fit(network, task, images, targets, 25, 16, generator)

    (network, curve), (again, same) = trained(), trained()
    assert np.mean(curve[-5:]) < 0.5 * np.mean(curve[:3])
    assert same == curve
    for one, other in zip(network.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(one, other)


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
        decoder = networks.load_decoder(bank / RESULTS[1], task, encoder.shape)
        with torch.no_grad():
            resized = networks.Resize(encoder.size)(networks.normalise(workshop.images("test", name)))
            said = decoder(encoder(resized))
        target = workshop.targets("test", name)
        target = target.float() if target.is_floating_point() else target.long()
        expected = tasks.losses(task, said, target)
        np.testing.assert_allclose(data["loss_own"].sel(task=name), expected, rtol=2e-3)
        learnt_from = workshop.targets("train", name)
        learnt_from = learnt_from.float() if learnt_from.is_floating_point() else learnt_from.long()
        constant = tasks.losses(task, tasks.constant(task, learnt_from), target)
        np.testing.assert_allclose(data["loss_constant"].sel(task=name), constant, rtol=2e-3)


@pytest.mark.parametrize(("source", "target"), [("edge2d", "rgb2depth"), ("rgb2depth", "edge2d")])
def test_a_transfer_done_by_hand_gives_the_losses_that_were_measured(bank, workshop, source, target):
    data = oracle.losses(0, bank)
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
    families = [type(networks.load_encoder(bank / RESULTS[0], name)) for name in ("edge2d", "rgb2depth", "random")]
    assert families == [networks.Encoder, networks.SeparableEncoder, networks.Encoder]
    truth = oracle.load("bank", seed=0, folder=bank)
    assert truth.shape == (3, 3)
    np.testing.assert_allclose(truth.sum("source"), 1)


def test_crossed_part_has_every_family_of_its_tasks(bank, workshop):
    with np.load(bank / "crossed_seed0.npz") as crossed, np.load(bank / RESULTS[2]) as losses:
        assert crossed["source"].tolist() == ["edge2d@plain", "edge2d@separable"]
        assert crossed["target"].tolist() == losses["target"].tolist() == ["rgb2depth", "edge2d", "class_places"]
        dealt = losses["source"].tolist().index("edge2d")
        assert np.array_equal(crossed["loss"][0], losses["loss"][dealt])
        assert crossed["loss"].shape == (2, 3, 40) and not np.array_equal(crossed["loss"][1], losses["loss"][dealt])
        assert np.array_equal(crossed["loss_own"][0], losses["loss_own"][losses["task"].tolist().index("edge2d")])
    other = networks.load_encoder(bank / "crossed_encoders_seed0.safetensors", "edge2d@separable")
    assert isinstance(other, networks.SeparableEncoder)
    with pytest.raises(ValueError, match="it holds edge2d@separable"):
        networks.load_encoder(bank / "crossed_encoders_seed0.safetensors", "edge2d@plain")


def test_budget_is_that_of_the_finished_bank(bank, workshop, tmp_path):
    with np.load(bank / "budget_seed0.npz") as budget, np.load(bank / RESULTS[2]) as losses:
        assert budget["steps"].tolist() == [3, 9] and budget["loss"].shape == (2, 4, 3, 40)
        assert budget["source"].tolist() == losses["source"].tolist()
        assert np.isfinite(budget["loss"]).all() and not np.array_equal(budget["loss"][0], budget["loss"][1])
        found = budget["loss"][1, 1, 0]
        features = [
            networks.read(transfers.features_piece(workshop, "edge2d"), split)["rgb"] for split in ("transfer", "test")
        ]
        assert budget["source"][1] == "edge2d" and budget["target"][0] == "rgb2depth"
    task, targets = tasks.TASKS["rgb2depth"], [workshop.targets(split, "rgb2depth") for split in ("transfer", "test")]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        head, _ = transfers.transfer(
            task, features[0], targets[0], 9, work.TINY.batch, workshop.generator("transfer", "rgb2depth")
        )
        np.testing.assert_allclose(found, training.losses(head, task, features[1], targets[1]), rtol=2e-3)
    finally:
        torch.set_num_threads(threads)
    with pytest.raises(SystemExit, match="no .*encoders_seed0.safetensors: python -m support.bank all --seed 0"):
        main(["budget", "--tiny", "--device", "cpu", "--folder", str(tmp_path)])


def test_pieces_lie_where_they_are_wanted(tmp_path):
    workshop = work.Workshop(work.TINY, 2, tmp_path / "bank", scratch=tmp_path / "pieces")
    assert workshop.pieces.parent == tmp_path / "pieces"
    assert workshop.pieces.name == work.Workshop(work.TINY, 2, tmp_path).pieces.name
    assert work.Workshop(work.TINY, 2, tmp_path).pieces.parent == tmp_path / "work"
    main(["render", "--tiny", "--seed", "2", "--folder", str(tmp_path / "bank"), "--work", str(tmp_path / "pieces")])
    assert workshop.images("test", "edge2d").shape == (40, 3, 64, 64) and not (tmp_path / "bank").exists()


def test_sweeping_leaves_other_banks_alone(tmp_path):
    mine, other = (work.Workshop(work.TINY, seed, tmp_path) for seed in (1, 11))
    drafts = [shop.pieces / "networks" / ".draft_7_edge2d.safetensors" for shop in (mine, other)]
    drafts += [tmp_path / f".draft_7_losses_seed{seed}.npz" for seed in (1, 11)]
    for draft in drafts:
        draft.parent.mkdir(parents=True, exist_ok=True)
        draft.write_bytes(b"half written")
    work.sweep(mine)
    assert [draft.exists() for draft in drafts] == [False, True, False, True]


def test_random_encoder_keeps_its_first_weights_and_measures_its_units(bank, workshop):
    encoder = networks.load_encoder(bank / RESULTS[0], "random")
    first = training.build(networks.Encoder, workshop.generator("network", "random"))
    for name, value in first.named_parameters():
        torch.testing.assert_close(encoder.get_parameter(name), value.detach().half().float(), rtol=0, atol=0)
    representation = transfers.represent(encoder, workshop.images("train", "edge2d"))
    assert 0.2 < representation.pow(2).mean().sqrt() < 2  # a unit normal variable after ReLU: 0.71
    encoders = [networks.load_encoder(bank / RESULTS[0], name)[0][0].weight for name in ("edge2d", "random")]
    assert all(not torch.equal(encoders[0], other) for other in encoders[1:])


def test_killed_half_way_and_resumed_a_bank_ends_the_same(bank, tmp_path):
    command = [sys.executable, "-m", "support.bank", "all", "--tiny", "--device", "cpu", "--folder", str(tmp_path)]
    budget = ["budget" if part == "all" else part for part in command]
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
    finished = subprocess.run(budget, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert finished.returncode == 0, finished.stderr
    for name in MIXED:
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
    for expected in ("halves", "double steps", "Taskonomy", "Random encoder", "semantic", *MIXED):
        assert expected in text
    assert "plain: edge2d, random\nseparable: class_places, rgb2depth" in text
    for seed in range(1, 7):
        assert f"Bank {seed} is not there: python -m support.bank all --seed {seed}" in text
    assert "Training steps of the heads, bank 0" in text and "over-fitting" in text
    assert "Crossed part of bank 0: mean priority among its 2 networks" in text


def test_orders_by_training_steps_are_compared_target_by_target():
    rng = np.random.default_rng(0)
    names = ["edge2d", "rgb2depth", "denoise", "reshade", "curvature", "class_1000", "random"]
    ladder = np.arange(7.0)[:, None, None] + 0.01 * rng.random((7, 2, 9))
    losses = xr.DataArray(
        np.stack([ladder, ladder[::-1], ladder + 3]),
        {"steps": [10, 20, 40], "source": names, "target": ["edge2d", "reshade"], "image": range(9)},
        ("steps", "source", "target", "image"),
    )
    found = report.by_steps(losses)
    assert found.attrs["relevant"] == 5
    np.testing.assert_allclose(found["spearman"].sel(steps=10), [[1, 1], [-1, -1], [1, 1]])
    np.testing.assert_allclose(found["precision"].sel(steps=10, other=20), [1, 1])  # all five candidates are relevant
    np.testing.assert_allclose(
        found["loss"].sel(target="edge2d"), losses.sel(target="edge2d")[:, 1:6].mean(("source", "image"))
    )
    three = losses.isel(source=[0, 1, 2, 6])
    assert report.by_steps(three).attrs["relevant"] == 2
    assert report.places_of_random(losses.sel(steps=10, drop=True)).values.tolist() == [1, 1]
    assert report.places_of_random(losses.sel(steps=20, drop=True)).values.tolist() == [0, 0]


def test_nearness_by_task_and_by_family_is_told_apart():
    names = [f"{task}@{family}" for task in ("edge2d", "reshade", "denoise") for family in ("plain", "residual")]
    rng = np.random.default_rng(0)
    distinct = xr.DataArray(rng.random((6, 6)), {"source": names, "target": names}, ("source", "target"))
    task, family = (np.array([name.split("@")[k] for name in names]) for k in (0, 1))
    by_task, by_family = (10.0 * (what[:, None] == what[None]) for what in (task, family))
    assert (report.same_task_nearer(distinct + by_task) == 1).all()
    assert (report.same_task_nearer(distinct + by_family) == 0).all()
    assert (report.same_task_nearer(distinct * 0) == 0.5).all()
    pairs = [
        distinct.sel(source="edge2d@residual", target="edge2d@plain") > distinct.sel(source=o, target="edge2d@plain")
        for o in ("reshade@plain", "denoise@plain")
    ]
    assert report.same_task_nearer(distinct).sel(target="edge2d@plain") == np.mean(pairs)
    assert report.same_task_nearer(distinct.isel(source=slice(None, None, -1))).sel(target="edge2d@plain") == np.mean(
        pairs
    )
    with pytest.raises(ValueError, match="not the same networks"):
        report.same_task_nearer(distinct[:5])
    with pytest.raises(ValueError, match="the scores of edge2d@residual are not all finite"):
        report.same_task_nearer(distinct.where(distinct.target != "edge2d@residual"))


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
    truths = {seed: oracle.load("bank", seed=seed) for seed in SEEDS}
    for first, second in itertools.combinations(PLAIN, 2):
        assert oracle.agreement(truths[first], truths[second]).mean() >= 0.85
    for seed, truth in truths.items():
        data = oracle.losses(seed)
        halves = oracle.half_splits(data["loss"], n_splits=2)
        assert np.mean([oracle.agreement(*pair) for pair in halves]) >= 0.9
        doubled = oracle.transferability(data["loss_double"].rename(target_double="target"))
        assert doubled.sizes["target"] >= 3 and oracle.agreement(truth, doubled).mean() >= 0.9
    pooled = oracle.load("bank")
    assert pooled.attrs["seeds"] == list(oracle.ALIKE) == [0, 1, 2]
    assert min(oracle.agreement(pooled, truths[seed]).mean() for seed in oracle.ALIKE) > 0.9


def test_shipped_random_encoder_is_in_the_last_third():
    for seed in PLAIN:
        losses, places = oracle.losses(seed)["loss"], []
        for target in losses.target.values:
            rivals = [name for name in losses.source.values if name != target]
            scores = oracle.ahp(oracle.win_rates(losses.sel(source=rivals, target=[target])))
            places.append((scores > scores.sel(source=oracle.RANDOM)).mean().item())
        assert np.mean(places) > 2 / 3


def test_shipped_files_are_the_documented_ones_and_small():
    text = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    files = sorted(work.FOLDER.glob("*_seed*.*"))
    assert {f"losses_seed{seed}.npz" for seed in range(3)} <= {path.name for path in files}
    assert max(path.stat().st_size for path in files) <= 8e6 and sum(path.stat().st_size for path in files) < 70e6
    for path in files:
        assert f"| `bank/{path.name}` | {path.stat().st_size:,} | `{shared.sha256(path)}` |" in text


def test_shipped_networks_are_of_the_families_that_the_seed_deals():
    for seed in SEEDS:
        workshop = work.Workshop(work.plan(seed), seed)
        found = networks.families(work.FOLDER / f"encoders_seed{seed}.safetensors")
        assert found == {name: workshop.family(name) for name in training.sources(workshop)}
        assert (work.FOLDER / f"decoders_seed{seed}.safetensors").is_file() == workshop.plan.ships_decoders


def test_shipped_loss_is_that_of_the_shipped_network():
    data, task = oracle.losses(0), tasks.TASKS["reshade"]
    scene = rooms.render(0, data.image.values[0], data.image.values[0] + 4)
    encoder = networks.load_encoder(work.FOLDER / "encoders_seed0.safetensors", "reshade")
    decoder = networks.load_decoder(work.FOLDER / "decoders_seed0.safetensors", task)
    found = tasks.losses(task, decoder(encoder(networks.normalise(scene["rgb"]))), task.target(scene))
    np.testing.assert_allclose(found, data["loss_own"].sel(task="reshade")[:4], rtol=0.01)
