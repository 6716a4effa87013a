import hashlib
import math

import numpy as np
import pytest
import torch

from support.bank import rooms


@pytest.fixture(scope="module")
def scenes():
    """A few hundred images over three seeds, at a size that is quick."""
    blocks = [rooms.render(seed, start, start + 80, size=32) for seed, start in ((0, 0), (1, 100_000), (2, 200_000))]
    return {name: torch.cat([block[name] for block in blocks]) for name in blocks[0]}


def solid(shape, centre, half, turn=0.0, kind="ball", instance=6):
    paint = (((0.5, 0.2, 0.2),) * 2, 0, 1.0, (0.0, 0.0, 0.0), (1, 0, 0))
    return rooms.Surface(rooms.SHAPES.index(shape), rooms.KINDS.index(kind), instance, centre, half, turn, *paint)


def room(*solids, **changes):
    """An empty room of 4 x 6 x 3 metres, seen straight from (2, 1, 1.5), with these solids."""
    empty = rooms.sample(0, 0)
    half = (2.0, 3.0, 1.5)
    planes = [s._replace(centre=half, half=half) for s in empty.surfaces[: rooms.PICTURES]]
    plain = {"size": (4.0, 6.0, 3.0), "camera": (2.0, 1.0, 1.5), "yaw": 0.0, "pitch": 0.0, "field_of_view": math.pi / 2}
    plain |= {"lights": [((2.0, 3.0, 2.8), (1.0, 1.0, 1.0)), ((2.0, 3.0, 2.8), (0.0, 0.0, 0.0))]}
    return empty._replace(**(plain | changes), surfaces=[*planes, *solids])


def pixel_rays(size, field_of_view=math.pi / 2):
    """(size, size, 3) directions through the pixels' centres in camera coordinates, float64, third component 1."""
    step = (2 * (np.arange(size) + 0.5) / size - 1) * math.tan(field_of_view / 2)
    x, y = np.meshgrid(step, step)
    return np.stack([x, y, np.ones_like(x)], -1)


def world_points(scene, number, description):
    """Camera (3), and the points that the pixels of an image show, (s, s, 3), in world coordinates, float64."""
    depth = scene["depth_z"][number, 0].double().numpy()
    rays = pixel_rays(len(depth), description.field_of_view)
    axes = rooms.camera_axes(description.yaw, description.pitch)
    camera = np.array(description.camera)
    return camera, camera + depth[..., None] * (rays @ axes)


def signed_distance(description, points):
    """Distance of points (..., 3) to the nearest surface, negative inside solids and outside the room."""
    inner = [np.minimum(points[..., k], description.size[k] - points[..., k]) for k in range(3)]
    distances = [np.min(inner, axis=0)]
    for s in description.surfaces[rooms.PICTURES :]:
        if s.kind == rooms.PICTURE:
            continue
        shape = rooms.SHAPES[s.shape]
        offset = points - np.array(s.centre)
        if shape == "sphere":
            distances.append(np.linalg.norm(offset, axis=-1) - s.half[0])
            continue
        along = math.cos(s.turn) * offset[..., 0] + math.sin(s.turn) * offset[..., 1]
        aside = math.cos(s.turn) * offset[..., 1] - math.sin(s.turn) * offset[..., 0]
        if shape == "box":
            out = np.stack([np.abs(along), np.abs(aside), np.abs(offset[..., 2])], -1) - np.array(s.half)
        else:
            out = np.stack([np.hypot(along, aside) - s.half[0], np.abs(offset[..., 2]) - s.half[2]], -1)
        distances.append(np.linalg.norm(out.clip(0), axis=-1) + out.max(-1).clip(max=0))
    return np.min(distances, axis=0)


# Rays


@pytest.mark.parametrize("centre", [(2.0, 4.0, 1.5), (2.7, 3.2, 1.0)])
def test_sphere_has_the_depth_normal_and_curvature_of_the_closed_form(centre):
    radius = 0.6
    scene = rooms.draw([room(solid("sphere", centre, (radius,) * 3))], 64)
    rays = pixel_rays(64)
    middle = np.array([centre[0] - 2, 1.5 - centre[2], centre[1] - 1])  # in camera coordinates
    unit = rays / np.linalg.norm(rays, axis=-1, keepdims=True)
    nearest = unit @ middle
    square = radius**2 - (middle @ middle - nearest**2)
    hit = square > 0
    assert 100 < hit.sum() < 2000
    distance = nearest - np.sqrt(square.clip(0))
    points = unit * distance[..., None]
    inside = square > 1e-3
    np.testing.assert_array_equal(
        (scene["instance"][0] == 6).numpy()[np.abs(square) > 1e-4], hit[np.abs(square) > 1e-4]
    )
    np.testing.assert_allclose(scene["depth_euclidean"][0, 0].numpy()[inside], distance[inside], atol=1e-4)
    np.testing.assert_allclose(scene["depth_z"][0, 0].numpy()[inside], points[inside][:, 2], atol=1e-4)
    normal = scene["normal"][0].permute(1, 2, 0).numpy()[inside]
    np.testing.assert_allclose(normal, ((points - middle) / radius)[inside], atol=1e-3)
    np.testing.assert_allclose(scene["curvature"][0].numpy()[:, inside], 1 / radius, rtol=1e-6)


def test_box_seen_straight_has_the_depth_and_outline_of_the_closed_form():
    scene = rooms.draw([room(solid("box", (2.1, 3.5, 1.2), (0.5, 0.5, 0.7)))], 64)
    rays = pixel_rays(64)
    at_front = rays * 2.0  # the front is at y = 3, two metres ahead
    front = (np.abs(at_front[..., 0] - 0.1) < 0.5) & (np.abs(1.5 - at_front[..., 1] - 1.2) < 0.7)
    assert front.sum() > 300
    np.testing.assert_allclose(scene["depth_z"][0, 0].numpy()[front], 2, rtol=1e-6)
    np.testing.assert_allclose(scene["normal"][0].numpy()[:, front].T, [[0, 0, -1]] * front.sum(), atol=1e-6)
    sides = (scene["instance"][0] == 6).numpy() & ~front
    assert not scene["curvature"][0].numpy()[:, front | sides].any()
    # the camera is higher than the middle and between left and right, so that no side but, perhaps, the top shows
    np.testing.assert_array_equal(scene["normal"][0].numpy()[1][sides], -1)


def test_empty_room_has_the_depth_of_its_planes():
    ball = solid("sphere", (2.0, 1.6, 1.5), (0.05,) * 3)
    scene = rooms.draw([room(ball)], 64)
    rays = pixel_rays(64)
    with np.errstate(divide="ignore"):
        ways = np.stack([2 / np.abs(rays[..., 0]), 1.5 / np.abs(rays[..., 1]), np.full((64, 64), 5.0)])
    seen = (scene["instance"][0] != 6).numpy()
    np.testing.assert_allclose(scene["depth_z"][0, 0].numpy()[seen], ways.min(0)[seen], rtol=1e-5)
    assert set(np.unique(scene["instance"][0].numpy()[seen])) == {0, 1, 3, 4, 5}
    left, above = scene["instance"][0, 32, 0], scene["instance"][0, 0, 32]
    assert (left, above) == (0, 5)


def test_rays_end_on_a_surface_and_pass_through_none_before():
    scene = rooms.render(5, 0, 24, size=24)
    for number in range(24):
        description = rooms.sample(5, number)
        camera, points = world_points(scene, number, description)
        assert np.abs(signed_distance(description, points)).max() < 2e-4
        way = np.linspace(0, 1, 80)[:, None, None, None]
        assert signed_distance(description, camera + way * (points - camera)).min() > -2e-4
        assert signed_distance(description, camera) > 0.1  # the camera is in the room and in nothing else


def test_normals_are_gradients_of_the_distance():
    scene = rooms.render(6, 0, 24, size=24)
    agreeing = 0
    for number in range(24):
        description = rooms.sample(6, number)
        _, points = world_points(scene, number, description)
        steps = 1e-3 * np.eye(3)
        here = [
            signed_distance(description, points + step) - signed_distance(description, points - step) for step in steps
        ]
        gradient = np.stack(here, -1) / 2e-3 @ rooms.camera_axes(description.yaw, description.pitch).T
        cosine = (gradient * scene["normal"][number].permute(1, 2, 0).numpy()).sum(-1)
        agreeing += (cosine > 0.99).mean() / 24
    assert agreeing > 0.97  # all but the pixels on an edge, or in a corner


def test_normals_are_unit_and_face_the_camera(scenes):
    rays = torch.stack(
        [torch.from_numpy(pixel_rays(32, view)).float() for view in scenes["field_of_view"].double().tolist()]
    ).permute(0, 3, 1, 2)
    cosine = (scenes["normal"] * rays / rays.norm(dim=1, keepdim=True)).sum(1, keepdim=True)
    torch.testing.assert_close(scenes["normal"].norm(dim=1), torch.ones(240, 32, 32))
    assert cosine.max() < 1e-4
    torch.testing.assert_close(scenes["shading"], (-cosine).clamp(0, 1), atol=1e-5, rtol=0)
    torch.testing.assert_close(scenes["depth_euclidean"], scenes["depth_z"] * rays.norm(dim=1, keepdim=True))


def test_depth_derivatives_agree_with_normals():
    scene = rooms.render(7, 0, 16, size=64)
    for number in range(16):
        points = pixel_rays(64, scene["field_of_view"][number].item()) * scene["depth_z"][number, 0].numpy()[..., None]
        normal = scene["normal"][number].permute(1, 2, 0).double().numpy()
        across, down = points[1:-1, 2:] - points[1:-1, :-2], points[2:, 1:-1] - points[:-2, 1:-1]
        measured = np.cross(down, across)
        measured /= np.linalg.norm(measured, axis=-1, keepdims=True)
        middle = normal[1:-1, 1:-1]
        instance = scene["instance"][number].numpy()
        neighbours = [(slice(2, None), slice(1, -1)), (slice(None, -2), slice(1, -1))]
        neighbours += [(columns, lines) for lines, columns in neighbours]
        smooth = np.ones((62, 62), bool)
        for place in neighbours:
            smooth &= (instance[place] == instance[1:-1, 1:-1]) & ((normal[place] * middle).sum(-1) > 0.98)
            smooth &= np.abs(((points[place] - points[1:-1, 1:-1]) * middle).sum(-1)) < 0.02  # not the next surface
        assert smooth.mean() > 0.3
        assert (measured * middle).sum(-1)[smooth].min() > 0.97


def test_depth_is_finite_and_positive(scenes):
    for name in ("depth_z", "depth_euclidean"):
        assert scenes[name].isfinite().all() and scenes[name].min() > 0.05
    assert scenes["depth_z"].max() < 8
    assert all(values.isfinite().all() for values in scenes.values())


def test_rays_along_the_axes_give_no_nan():
    scene = rooms.draw([room(solid("cylinder", (2.0, 3.0, 0.5), (0.4, 0.4, 0.5), kind="column"), pitch=0.0)], 9)
    assert all(values.isfinite().all() for values in scene.values())
    assert scene["depth_z"][0, 0, 4, 4] == 5  # the ray through the centre goes straight to the wall


def test_shadows_only_darken_and_lie_away_from_the_light():
    ball = solid("sphere", (2.0, 3.0, 1.0), (0.4,) * 3)
    speck = solid("sphere", (2.0, 3.0, 1.0), (0.06,) * 3)
    bare, shaded = (rooms.draw([room(s, pitch=-0.3)], 64) for s in (speck, ball))
    both = ((bare["instance"] != 6) & (shaded["instance"] != 6))[0]
    change = (shaded["rgb"] - bare["rgb"])[0].amax(0)
    assert change[both].max() < 1e-5
    darker = both & (change < -0.05)
    assert darker.sum() > 30 and (shaded["semantic"][0][darker] == rooms.FLOOR).float().mean() > 0.9


# One image, whatever the batch, machine, size


def test_image_depends_on_seed_and_index_alone():
    together = rooms.render(3, 10, 30, size=48)
    for first, last in ((10, 11), (17, 24), (29, 30)):
        alone = rooms.render(3, first, last, size=48)
        for name, values in alone.items():
            assert torch.equal(values, together[name][first - 10 : last - 10]), name
    assert together["index"].tolist() == list(range(10, 30)) and together["seed"].unique().tolist() == [3]


def test_image_is_the_same_on_every_machine():
    scene = rooms.render(0, 0, 6)
    digest = hashlib.sha256((scene["rgb"] * 255).round().to(torch.uint8).numpy().tobytes()).hexdigest()
    assert digest == "10647491039638714c501d3e79d6d23fa6683b4759f82a33ba3aacdd76bd1d63"
    digest = hashlib.sha256(scene["depth_z"].numpy().astype("<f4").tobytes()).hexdigest()
    assert digest == "7b8708f27b14d433335ccdc360ef3e0e08b87553e572ba3ff2341492656f1bfc"


def test_pixels_are_those_of_eight_bits(scenes):
    rgb = scenes["rgb"].numpy()
    eight = np.round(rgb * 255).astype(np.uint8)
    np.testing.assert_array_equal(rgb, eight.astype(np.float32) / 255)
    assert eight.min() < 20 and eight.max() > 235 and 0.3 < rgb.mean() < 0.6


def test_seeds_and_indices_give_different_rooms():
    sizes = {rooms.sample(seed, index).size for seed in range(3) for index in (*range(50), 100_000, 200_000)}
    assert len(sizes) == 3 * 52
    a, b = rooms.render(0, 0, 4, size=16)["rgb"], rooms.render(1, 0, 4, size=16)["rgb"]
    assert (a != b).float().mean() > 0.9


def test_room_does_not_depend_on_the_size_in_pixels():
    small, large = rooms.render(2, 0, 4, size=16), rooms.render(2, 0, 4, size=48)
    for name in ("pitch", "yaw", "vanishing_points", "layout", "style"):
        assert torch.equal(small[name], large[name])
    # with three times as many pixels, the centre of every small pixel is the centre of a large one
    assert torch.equal(small["instance"], large["instance"][:, 1::3, 1::3])


def test_noise_is_that_of_the_sensor():
    clean = rooms.draw([rooms.sample(0, k) for k in range(8)])["rgb"]
    noisy = rooms.render(0, 0, 8)["rgb"]
    for k in range(8):
        middle = (clean[k] > 0.1) & (clean[k] < 0.9)
        difference = (noisy[k] - clean[k])[middle]
        assert difference.mean().abs() < 0.001
        assert difference.std().item() == pytest.approx(rooms.sample(0, k).noise, rel=0.05)
    noise = rooms.gaussian(0, 0, 1, (200, 301))
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02
    assert not np.array_equal(noise, rooms.gaussian(0, 0, 2, (200, 301)))


def test_training_transfer_and_probe_share_no_image():
    ranges = [rooms.TRAIN, rooms.TRANSFER, rooms.PROBE]
    assert len(set().union(*ranges)) == sum(map(len, ranges))
    assert len(rooms.TRAIN) >= 8000


# Labels


def test_shapes_and_types(scenes):
    planes = {"rgb": 3, "depth_z": 1, "depth_euclidean": 1, "normal": 3, "curvature": 2, "shading": 1}
    for name, channels in planes.items():
        assert scenes[name].shape == (240, channels, 32, 32) and scenes[name].dtype == torch.float32
    for name in ("semantic", "instance"):
        assert scenes[name].shape == (240, 32, 32) and scenes[name].dtype == torch.int64
    vectors = {"pitch": (), "yaw": (), "field_of_view": (), "vanishing_points": (9,), "layout": (5,)}
    for name, shape in vectors.items():
        assert scenes[name].shape == (240, *shape) and scenes[name].dtype == torch.float32
    for name in ("dominant", "style", "seed", "index"):
        assert scenes[name].shape == (240,) and scenes[name].dtype == torch.int64


def test_every_class_occurs(scenes):
    assert set(scenes["semantic"].unique().tolist()) == set(range(len(rooms.KINDS)))
    assert set(scenes["dominant"].unique().tolist()) == set(rooms.SOLIDS)
    assert set(scenes["style"].unique().tolist()) == set(range(len(rooms.STYLES)))
    for name in ("dominant", "style"):
        assert scenes[name].bincount().max() < 0.35 * 240


def test_dominant_is_the_kind_of_the_solid_with_most_pixels(scenes):
    for semantic, instance, dominant in zip(
        scenes["semantic"].numpy(), scenes["instance"].numpy(), scenes["dominant"].tolist(), strict=True
    ):
        pixels = {k: (instance == k).sum() for k in np.unique(instance[semantic >= rooms.SOLIDS.start])}
        kinds = {semantic[instance == k][0] for k, count in pixels.items() if count == max(pixels.values())}
        assert dominant in kinds


def test_where_no_solid_is_seen_the_first_one_dominates():
    behind = [solid("box", (2.0, 0.4, z), (0.1,) * 3, kind=k, instance=6 + z) for z, k in ((1, "chest"), (2, "table"))]
    scene = rooms.draw([room(*behind)], 16)
    assert scene["semantic"].max() < rooms.SOLIDS.start
    assert scene["dominant"].tolist() == [rooms.KINDS.index("chest")]


def test_every_instance_is_of_one_kind_and_described_by_the_room(scenes):
    for number in range(0, 240, 20):
        seed, index = scenes["seed"][number].item(), scenes["index"][number].item()
        description = rooms.sample(seed, index)
        kinds = {s.instance: s.kind for s in description.surfaces}
        pairs = torch.stack([scenes["instance"][number], scenes["semantic"][number]]).flatten(1).unique(dim=1)
        assert all(kinds[instance] == kind for instance, kind in pairs.T.tolist())
        assert scenes["style"][number] == description.style
        solids = [s for s in description.surfaces if s.kind in rooms.SOLIDS]
        assert 3 <= len({s.instance for s in solids}) <= 8


def test_pictures_hang_on_walls(scenes):
    picture = scenes["semantic"] == rooms.PICTURE
    assert 0.003 < picture.float().mean() < 0.1
    up = scenes["vanishing_points"][:, 6:, None, None]
    assert (scenes["normal"] * up).sum(1)[picture].abs().max() < 1e-5
    assert scenes["curvature"].amax(1)[picture].max() == 0


def test_curvature_is_that_of_the_shape(scenes):
    first, second = scenes["curvature"].unbind(1)
    kind = scenes["semantic"]
    of = {name: kind == k for k, name in enumerate(rooms.KINDS)}
    for name in ("wall", "floor", "ceiling", "cabinet", "chest", "table", "chair"):
        assert first[of[name]].max() == 0 and second[of[name]].max() == 0
    assert torch.equal(first[of["ball"]], second[of["ball"]])
    assert 1.9 < first[of["ball"]].min() and first[of["ball"]].max() < 5.1
    assert second[of["column"]].max() == 0 and 3.2 < first[of["column"]].min() and first[of["column"]].max() < 8.5
    assert (first >= second).all() and (second >= 0).all()


def test_vanishing_points_are_the_rooms_axes(scenes):
    axes = scenes["vanishing_points"].reshape(-1, 3, 3)
    torch.testing.assert_close(axes @ axes.mT, torch.eye(3).expand(240, 3, 3), atol=1e-6, rtol=0)
    torch.testing.assert_close(torch.linalg.det(axes), torch.ones(240))
    right, far, up = axes.unbind(1)
    assert (right[:, 0] > 0.5).all() and (far[:, 2] > 0.5).all() and (up[:, 1] < -0.5).all()
    torch.testing.assert_close(up[:, 2], scenes["pitch"].sin())
    torch.testing.assert_close(right[:, 2], scenes["yaw"].sin() * scenes["pitch"].cos())
    floor = scenes["semantic"] == rooms.FLOOR
    normals = scenes["normal"].permute(0, 2, 3, 1)
    torch.testing.assert_close(normals[floor], up[:, None, None].expand_as(normals)[floor], atol=1e-5, rtol=0)


def test_layout_is_the_distance_to_planes(scenes):
    rays = torch.stack([torch.from_numpy(pixel_rays(32, v)).float() for v in scenes["field_of_view"].double().tolist()])
    points = rays * scenes["depth_z"].permute(0, 2, 3, 1)
    right, far, up = (scenes["vanishing_points"][:, 3 * k : 3 * k + 3, None] for k in range(3))
    along = {3: far, 0: -right, 1: right, 4: -up, 5: up}  # instance of the plane: its direction
    for column, (instance, direction) in enumerate(along.items()):
        measured = (points.flatten(1, 2) @ direction).reshape(240, 32, 32)
        seen = scenes["instance"] == instance
        assert seen.any()
        expected = scenes["layout"][:, column, None, None].expand_as(measured)
        torch.testing.assert_close(measured[seen], expected[seen], atol=1e-4, rtol=0)


def test_colour_goes_with_what_things_are():
    rgb = rooms.render(8, 0, 60, size=32)
    kind = rgb["semantic"].flatten()
    opponent = torch.stack([rgb["rgb"][:, 0] - rgb["rgb"][:, 1], rgb["rgb"][:, 2] - rgb["rgb"][:, 1]], -1).flatten(0, 2)
    total = (opponent - opponent.mean(0)).square().sum()
    within = sum((opponent[kind == k] - opponent[kind == k].mean(0)).square().sum() for k in kind.unique())
    assert 0.2 < 1 - within / total < 0.9


# Errors


@pytest.mark.parametrize("arguments", [(0, 5, 5), (0, 5, 3), (-1, 0, 1), (0, -1, 1), (0, 0, 1, 7)])
def test_arguments_out_of_range(arguments):
    with pytest.raises(ValueError, match="no images|must not be negative|8 pixels"):
        rooms.render(*arguments)


def test_no_room_and_an_empty_room():
    with pytest.raises(ValueError, match="at least one room"):
        rooms.draw([])
    with pytest.raises(ValueError, match="a room is empty"):
        rooms.draw([room(solid("box", (2.0, 2.0, 0.5), (0.1,) * 3, kind="chest")), room()], 16)
