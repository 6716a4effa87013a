import math

import numpy as np
import pytest
import torch
from skimage import color

from support.bank import rooms, tasks

TASKS = tasks.TASKS


@pytest.fixture(scope="module")
def scene():
    blocks = [rooms.render(seed, 500, 548) for seed in (0, 1)]
    return {name: torch.cat([block[name] for block in blocks]) for name in blocks[0]}


@pytest.fixture(scope="module")
def targets(scene):
    return {name: task.target(scene) for name, task in TASKS.items()}


def changed(**values):
    """A scene of one image of 64 pixels that has only these fields."""
    return {name: torch.as_tensor(np.asarray(value, np.float32))[None] for name, value in values.items()}


def picture(grey):
    return np.repeat(np.asarray(grey, np.float32)[None], 3, 0)


# What there is


def test_the_twenty_tasks_of_the_paper():
    assert set(TASKS) == set(
        "autoencoder curvature denoise edge2d edge3d keypoint2d keypoint3d colorization reshade rgb2depth rgb2mist "
        "rgb2sfnorm room_layout segment25d segment2d vanishing_point segmentsemantic class_1000 class_places "
        "inpainting_whole".split()
    )
    assert all(name == task.name for name, task in TASKS.items())
    assert {name for name, task in TASKS.items() if not task.is_target} == {"colorization", "inpainting_whole"}


def test_groups_are_those_of_taskonomy():
    groups = {
        group: {n for n, task in TASKS.items() if task.group == group} for group in ("2D", "geometric", "semantic")
    }
    assert groups["semantic"] == {"class_1000", "class_places", "segmentsemantic"}
    assert groups["geometric"] == {"room_layout", "vanishing_point"}
    assert groups["2D"] == {
        "autoencoder", "colorization", "denoise", "edge2d", "inpainting_whole", "keypoint2d", "segment2d"
    }  # fmt: skip
    assert sum(task.group == "3D" for task in TASKS.values()) == 8


@pytest.mark.parametrize("name", TASKS)
def test_inputs_are_images_and_targets_have_the_shape_of_their_kind(name, scene, targets):
    task, target = TASKS[name], targets[name]
    seen = task.input(scene)
    assert seen.shape == (96, 3, 64, 64) and seen.dtype == torch.float32
    assert seen.min() >= 0 and seen.max() <= 1
    shape = {"image": (task.channels, 64, 64), "vector": (task.channels,), "pixels": (64, 64), "classes": ()}[task.kind]
    assert target.shape == (96, *shape)
    if task.kind in ("pixels", "classes"):
        assert target.dtype == torch.int64 and target.unique().tolist() == list(range(task.channels))
    else:
        assert target.dtype == torch.float32 and target.isfinite().all()
        means = target.transpose(0, 1).flatten(1).mean(1)
        assert means.abs().max() < 0.4 and target.square().mean().item() == pytest.approx(1, abs=0.3)


@pytest.mark.parametrize("name", TASKS)
def test_input_and_target_of_an_image_do_not_depend_on_the_batch(name, scene, targets):
    alone = {key: values[7:9] for key, values in scene.items()}
    assert torch.equal(TASKS[name].target(alone), targets[name][7:9])
    assert torch.equal(TASKS[name].input(alone), TASKS[name].input(scene)[7:9])


def test_calling_a_task_leaves_the_scene_alone(scene):
    before = scene["rgb"].clone()
    for task in TASKS.values():
        task.input(scene)
    assert torch.equal(scene["rgb"], before)


# Inputs


def test_noise_of_denoise(scene):
    difference = TASKS["denoise"].input(scene) - scene["rgb"]
    middle = (scene["rgb"] > 0.45) & (scene["rgb"] < 0.55)
    assert difference[middle].std().item() == pytest.approx(0.15, abs=0.01)
    assert not torch.equal(difference[0], difference[1])
    torch.testing.assert_close(TASKS["denoise"].target(scene), TASKS["autoencoder"].target(scene))


def test_grey_has_the_brightness_and_no_colour(scene):
    grey = TASKS["colorization"].input(scene)
    assert torch.equal(grey[:, 0], grey[:, 1]) and torch.equal(grey[:, 0], grey[:, 2])
    weights = torch.tensor([0.2125, 0.7154, 0.0721])  # ITU-R BT.709, as scikit-image has them
    torch.testing.assert_close(grey[:, 0], (scene["rgb"] * weights[:, None, None]).sum(1))


def test_middle_is_masked_and_nothing_else(scene):
    masked = TASKS["inpainting_whole"].input(scene)
    hole = torch.zeros(64, 64, dtype=torch.bool)
    hole[16:48, 16:48] = True
    assert (masked[..., hole] == 0.5).all()
    assert torch.equal(masked[..., ~hole], scene["rgb"][..., ~hole])


# Targets


def raw(name, scene):
    return TASKS[name].raw(scene)


def test_edges_are_where_brightness_steps():
    step = np.full((64, 64), 0.2)
    step[:, 32:] = 0.8
    response = raw("edge2d", changed(rgb=picture(step)))[0, 0]
    assert response[:, 31:33].min() > 0.1 and response[:, :26].max() < 1e-6 and response[:, 38:].max() < 1e-6


def test_corners_are_where_edges_meet():
    square = np.full((64, 64), 0.2)
    square[20:44, 20:44] = 0.8
    response = raw("keypoint2d", changed(rgb=picture(square)))[0, 0]
    assert response[18:23, 18:23].max() > 5 * response[32, 16:26].max()
    assert response[:10, :10].max() < 1e-6


def test_corners_of_surfaces_ignore_paint():
    normal = np.zeros((3, 64, 64), np.float32)
    normal[2] = -1
    flat = changed(rgb=np.random.default_rng(0).random((3, 64, 64)), normal=normal, depth_z=np.full((1, 64, 64), 2.0))
    assert raw("keypoint3d", flat).abs().max() < 1e-6
    normal[:, 20:44, 20:44] = [[[1]], [[0]], [[0]]]
    bent = changed(normal=normal, depth_z=np.full((1, 64, 64), 2.0))
    response = raw("keypoint3d", bent)[0, 0]
    assert response[18:23, 18:23].max() > 5 * response[32, 16:26].max()


def test_occlusion_edges_are_jumps_and_not_slopes():
    lines = np.linspace(-1, 1, 64)
    plane = 1 / (0.5 + 0.3 * lines[None] + 0.1 * lines[:, None])
    assert raw("edge3d", changed(depth_z=plane[None]))[0, 0, 2:-2, 2:-2].max() < 1e-4
    plane[:, 40:] += 1
    response = raw("edge3d", changed(depth_z=plane[None]))[0, 0, 2:-2, 2:-2]
    assert response[:, 36:39].amax(1).min() > 0.1 and response[:, :30].max() < 1e-3


def test_pairs_across_a_border_are_of_two_segments():
    halves = np.full((64, 64), 0.2)
    halves[:, 32:] = 0.8
    near_across, near_down, far_across, far_down = raw("segment2d", changed(rgb=picture(halves)))[0]
    assert (near_down == 1).all() and (far_down == 1).all()
    for across, reach in ((near_across, 2), (far_across, 6)):
        assert (across[:, 32 - reach : 32 + reach] == 0).float().mean() > 0.9
        assert (across[:, : 26 - reach] == 1).all() and (across[:, 38 + reach :] == 1).all()


def test_segments_of_space_follow_instances_better_than_those_of_colour(scene):
    same = scene["instance"][:, :, 12:] == scene["instance"][:, :, :-12]
    agreement = {}
    for name in ("segment2d", "segment25d"):
        across = raw(name, scene)[:, 2, :, 6:-6] == 1
        agreement[name] = (across == same).float().mean().item()
    assert agreement["segment25d"] > 0.85 and agreement["segment25d"] > agreement["segment2d"] + 0.05


def test_depth_and_distance_are_logarithms(scene, targets):
    for name, key in (("rgb2depth", "depth_z"), ("rgb2mist", "depth_euclidean")):
        task = TASKS[name]
        metres = (targets[name] * task.deviation + task.mean[0]).exp()
        torch.testing.assert_close(metres, scene[key], rtol=1e-4, atol=0)


def test_colours_are_those_of_lab(scene, targets):
    task = TASKS["colorization"]
    ab = targets["colorization"][3] * task.deviation + torch.tensor(task.mean)[:, None, None]
    expected = color.rgb2lab(scene["rgb"][3].permute(1, 2, 0).numpy())[..., 1:]
    np.testing.assert_allclose(ab.permute(1, 2, 0), expected, atol=1e-3)


def test_curvature_keeps_its_order_and_is_below_one(scene):
    bend = raw("curvature", scene)
    assert 0 <= bend.min() and bend.max() < 1
    first, order = scene["curvature"][:, 0].flatten().sort()
    assert (bend[:, 0].flatten()[order].diff() >= 0).all()
    assert bend[:, 0].flatten()[order[first == 0]].max() == 0


def test_labels_of_images_are_those_of_the_scene(scene, targets):
    assert torch.equal(targets["segmentsemantic"], scene["semantic"])
    assert torch.equal(targets["class_1000"] + rooms.SOLIDS.start, scene["dominant"])
    assert torch.equal(targets["class_places"], scene["style"])
    present = [int(k) in scene["semantic"][i] for i, k in enumerate(scene["dominant"])]
    assert all(present)


# Losses and the best constant


def one_of(kind):
    return next(task for task in TASKS.values() if task.kind == kind)


@pytest.mark.parametrize("name", ["rgb2sfnorm", "room_layout"])
def test_loss_of_numbers_is_the_mean_squared_error(name, targets):
    target = targets[name][:5]
    prediction = torch.randn(target.shape, generator=torch.Generator().manual_seed(0))
    loss = tasks.losses(TASKS[name], prediction, target)
    expected = ((prediction - target).numpy().reshape(5, -1) ** 2).mean(1)
    assert loss.shape == (5,) and loss.dtype == torch.float32
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert tasks.losses(TASKS[name], target, target).max() == 0
    assert tasks.losses(TASKS[name], prediction.bfloat16(), target).dtype == torch.float32


@pytest.mark.parametrize("name", ["segmentsemantic", "class_places"])
def test_loss_of_classes_is_the_cross_entropy(name, targets):
    task, target = TASKS[name], targets[name][:5]
    shape = (5, task.channels, *target.shape[1:])
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(0)).double().numpy()
    share = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = -np.log(np.take_along_axis(share, target.numpy()[:, None], 1)).reshape(5, -1).mean(1)
    loss = tasks.losses(task, torch.from_numpy(logits).float(), target)
    assert loss.shape == (5,) and loss.dtype == torch.float32
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["rgb2depth", "vanishing_point", "segmentsemantic", "class_1000"])
def test_no_other_constant_is_better(name, targets):
    task = TASKS[name]
    repeated = torch.cat([targets[name]] * 20)  # so that counting each class once more does not matter
    best = tasks.constant(task, repeated)
    assert best.shape[:2] == (1, task.channels)
    loss = tasks.losses(task, best, repeated[:96]).mean()
    generator = torch.Generator().manual_seed(0)
    for scale in (0.1, 0.3, 1.0):
        other = best + scale * torch.randn(best.shape, generator=generator)
        assert tasks.losses(task, other, repeated[:96]).mean() > loss


def test_constant_of_classes_is_their_shares():
    task = TASKS["class_places"]
    prediction = tasks.constant(task, torch.tensor([0, 0, 0, 1]))
    shares = (np.bincount([0, 0, 0, 1], minlength=task.channels) + 1) / (4 + task.channels)
    np.testing.assert_allclose(prediction.exp(), shares[None], rtol=1e-6)
    loss = tasks.losses(task, prediction, torch.tensor([1, 7]))
    np.testing.assert_allclose(loss, [-math.log(2 / 12), -math.log(1 / 12)], rtol=1e-6)


@pytest.mark.parametrize("kind", ["image", "pixels", "vector", "classes"])
def test_shapes_that_do_not_fit_are_refused(kind, targets):
    task = one_of(kind)
    target = targets[task.name][:4]
    good = torch.zeros(4, task.channels, *target.shape[1 if kind in ("pixels", "classes") else 2 :])
    assert tasks.losses(task, good, target).shape == (4,)
    for bad in (good[:, :-1], good[:3], torch.zeros(*good.shape, 1)):
        with pytest.raises(ValueError, match=task.name):
            tasks.losses(task, bad, target)
