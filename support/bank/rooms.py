"""Rendered rooms with exact labels: image i of seed s depends on (s, i) alone, on every machine and in every batch.

Lengths are in metres, angles in radians. World: x to the right, y away from the camera, z up; the room is the box from
the origin to `Room.size`. Camera: x to the right, y down, z forward.

Scenes are sampled with numpy, one generator an image. Rays are cast with torch, and with nothing but additions,
multiplications, divisions, square roots, comparisons and roundings, which IEEE 754 defines to the last bit: no sine, no
power, no matrix product, whose last bit depends on the processor and on the shape of the batch.
"""

import colorsys
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

TRAIN = range(0, 12_000)
TRANSFER = range(100_000, 106_000)
PROBE = range(200_000, 300_000)

KINDS = (
    "wall",
    "floor",
    "ceiling",
    "picture",
    "cabinet",
    "chest",
    "table",
    "chair",
    "ball",
    "column",
    "lamp",
    "plant",
)
WALL, FLOOR, CEILING, PICTURE = range(4)
SOLIDS = range(4, len(KINDS))  # codes of the kinds that stand on the floor
TEXTURES = ("plain", "checker", "stripes", "wood", "mottled")
_OFTEN = (*SOLIDS, *(KINDS.index(kind) for kind in ("chest", "ball", "lamp")))  # those that hide behind others
SHAPES = ("plane", "box", "sphere", "cylinder")
PICTURES = 6  # the first picture among the surfaces and instances of a room, after four walls, floor and ceiling

HUES = {"cabinet": 0.07, "chest": 0.0, "table": 0.13, "chair": 0.6, "ball": 0.92, "column": 0.5, "lamp": 0.17}
HUES |= {"plant": 0.33, "picture": 0.76}


class Style(NamedTuple):
    """Hue and saturation of walls and floor, textures they may have, saturation of the furniture, colour of light."""

    name: str
    wall: tuple
    floor: tuple
    wall_textures: tuple
    floor_textures: tuple
    saturation: float
    light: tuple


STYLES = (
    Style("cottage", (0.12, 0.35), (0.07, 0.55), ("stripes", "mottled"), ("wood",), 0.9, (1.0, 0.9, 0.75)),
    Style("gallery", (0.12, 0.06), (0.08, 0.35), ("plain",), ("wood", "plain"), 1.0, (1.0, 1.0, 1.0)),
    Style("kitchen", (0.55, 0.22), (0.1, 0.12), ("checker", "plain"), ("checker",), 0.8, (0.92, 0.97, 1.0)),
    Style("workshop", (0.6, 0.1), (0.6, 0.08), ("mottled",), ("mottled", "plain"), 0.6, (0.85, 0.95, 1.0)),
    Style("nursery", (0.93, 0.28), (0.14, 0.4), ("stripes", "plain"), ("checker", "stripes"), 0.95, (1.0, 0.95, 0.88)),
    Style("library", (0.04, 0.45), (0.03, 0.6), ("wood", "plain"), ("wood", "stripes"), 0.85, (1.0, 0.85, 0.65)),
    Style("garden", (0.3, 0.28), (0.27, 0.3), ("stripes", "mottled"), ("checker", "mottled"), 0.9, (0.95, 1.0, 0.9)),
    Style("night", (0.67, 0.35), (0.7, 0.3), ("plain", "mottled"), ("plain", "stripes"), 0.8, (0.7, 0.8, 1.0)),
)

RAYS_AT_ONCE = {"cpu": 2**15, "cuda": 2**22}
NEAR = 1e-4  # a ray that starts on a surface does not hit it again
LIFT = 2e-3  # metres that a shadow ray starts above its surface


class Surface(NamedTuple):
    """A solid, a plane of the room or a picture, with what is painted on it.

    `centre` (3) and half extents `half` (3, the radius in the first two for spheres and cylinders) in metres, `turn`
    about the vertical in radians; `kind`, `texture` and `shape` index `KINDS`, `TEXTURES` and `SHAPES`. The texture
    blends `colours` (two of linear RGB) with a `period` in metres; `phase` (3) shifts it and `grain` (3) is its
    direction. A picture has one of `half` equal to zero, which tells its wall.
    """

    shape: int
    kind: int
    instance: int
    centre: tuple
    half: tuple
    turn: float
    colours: tuple
    texture: int
    period: float
    phase: tuple
    grain: tuple


class Room(NamedTuple):
    """A room: all that `draw` needs.

    `size` (3) and `camera` (3) in metres, `yaw` (positive to the right), `pitch` (positive upwards) and `field_of_view`
    in radians; `style` indexes `STYLES`; `lights` are two of (position (3), linear RGB (3)), the second perhaps black;
    `ambient` is linear grey; `noise` the standard deviation of the sensor's noise, in units of the brightest white. The
    first six surfaces are the walls at x = 0, at the largest x, at y = 0 and at the largest y, the floor, the ceiling.
    """

    size: tuple
    camera: tuple
    yaw: float
    pitch: float
    field_of_view: float
    style: int
    lights: list
    ambient: float
    noise: float
    surfaces: list


def sample(seed: int, index: int) -> Room:
    """Furnish a room.

    At least three objects stand on the floor without touching, and the first of them is in view.

    Parameters
    ----------
    seed : int
        Of the bank; not negative.
    index : int
        Of the image; not negative. See `TRAIN`, `TRANSFER` and `PROBE`.

    Returns
    -------
    Room
        The same for the same seed and index on every machine, whatever the size in pixels.

    Raises
    ------
    ValueError
        Seed or index negative.

    Examples
    --------
    >>> room = sample(0, 17)
    >>> len(room.size), room == sample(0, 17), room == sample(1, 17)
    (3, True, False)
    """
    if seed < 0 or index < 0:
        raise ValueError(f"seed {seed} and index {index} must not be negative")
    draw_number = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, index]))).random

    def between(low, high):
        return low + (high - low) * draw_number()

    def choose(options):
        return options[int(draw_number() * len(options))]

    while True:
        room = _attempt(between, choose)
        if room is not None:
            return room


def _attempt(between, choose):
    """A room, or None when the furniture did not fit."""
    style = choose(range(len(STYLES)))
    size = between(3.2, 6.5), between(3.8, 7.0), between(2.3, 3.2)
    camera = size[0] * between(0.25, 0.75), between(0.3, 0.35 * size[1]), between(1.0, 1.7)
    yaw, pitch, view = between(-0.65, 0.65), between(-0.4, 0.1), between(1.05, 1.45)
    axes = camera_axes(yaw, pitch)

    surfaces = _shell(size, STYLES[style], between, choose)
    for _ in range(choose((1, 2, 3, 4))):
        surfaces += _picture(size, surfaces, between, choose)

    places = [(*camera[:2], 0.3)]
    wanted = choose(range(3, 9))
    for _ in range(wanted):
        kind = choose(_OFTEN)
        parts = _furniture(KINDS[kind], size[2], between)
        radius = max(math.hypot(x, y) + r for (_, (x, y, _), _, r) in parts)
        turn = choose((0, 0.5, 1, 1.5)) * math.pi if between(0, 1) < 0.6 else between(0, 2 * math.pi)
        for _ in range(40):
            x, y = between(radius, size[0] - radius), between(radius, size[1] - radius)
            free = all(math.hypot(x - a, y - b) > radius + r + 0.05 for a, b, r in places)
            first_part = (x, y, parts[0][1][2])
            ahead = (y - camera[1]) * math.cos(yaw) + (x - camera[0]) * math.sin(yaw) > 0
            if free and ahead and (len(places) > 1 or _in_view(first_part, camera, axes, view)):
                break
        else:
            if len(places) == 1:
                return None
            continue
        places.append((x, y, radius))
        instance = surfaces[-1].instance + 1
        surfaces += _place(kind, parts, (x, y), turn, instance, STYLES[style], between, choose)
    if len(places) < 4:
        return None

    lights = []
    for strength in (between(1.2, 1.8), choose((0, 1)) * between(0.4, 0.9)):
        for _ in range(40):
            x, y = size[0] * between(0.15, 0.85), size[1] * between(0.15, 0.85)
            if all(math.hypot(x - a, y - b) > r + 0.1 for a, b, r in places[1:]):
                break
        else:
            return None
        tint = tuple(strength * c * between(0.93, 1.07) for c in STYLES[style].light)
        lights.append(((x, y, size[2] - 0.15), tint))
    return Room(size, camera, yaw, pitch, view, style, lights, between(0.2, 0.36), between(0.008, 0.02), surfaces)


def camera_axes(yaw: float, pitch: float) -> np.ndarray:
    """Directions of a camera's x (right), y (down) and z (forward) in the world.

    Parameters
    ----------
    yaw, pitch : float
        Radians; positive to the right and upwards.

    Returns
    -------
    numpy.ndarray
        (3, 3), float64; the rows are the camera's axes, the columns are the directions of the room's axes as the
        camera sees them.

    Examples
    --------
    >>> camera_axes(0.0, 0.0)[2]
    array([0., 1., 0.])
    """
    right = math.cos(yaw), -math.sin(yaw), 0
    forward = math.cos(pitch) * math.sin(yaw), math.cos(pitch) * math.cos(yaw), math.sin(pitch)
    down = math.sin(pitch) * math.sin(yaw), math.sin(pitch) * math.cos(yaw), -math.cos(pitch)
    return np.array([right, down, forward])


def _in_view(point, camera, axes, view):
    """Whether a point is within the middle three quarters of the image, and neither too near nor too far."""
    x, y, z = axes @ np.subtract(point, camera)
    edge = 0.75 * math.tan(view / 2) * z
    return 0.6 < z < 4 and abs(x) < edge and abs(y) < edge


def _linear(hue, saturation, value):
    """Linear RGB of a colour given as hue, saturation and value; the display's curve is a square root."""
    red, green, blue = colorsys.hsv_to_rgb(hue % 1, min(max(saturation, 0), 1), min(max(value, 0), 1))
    return red * red, green * green, blue * blue


def _paint(hue, saturation, value, contrast, texture, between):
    """The fields of `Surface` that say what is painted on it, but for period and grain."""
    second = (
        hue + between(-0.03, 0.03),
        saturation * between(0.7, 1.2),
        value * (1 - contrast if texture != "plain" else 0.94),
    )
    return {
        "colours": (_linear(hue, saturation, value), _linear(*second)),
        "texture": TEXTURES.index(texture),
        "phase": (between(0, 1), between(0, 1), between(0, 1)),
    }


def _shell(size, style, between, choose):
    """Four walls, floor and ceiling."""
    hue, saturation = style.wall
    hue, saturation = hue + between(-0.07, 0.07), saturation * between(0.4, 1.4)
    walls = _paint(hue, saturation, between(0.6, 0.92), between(0.12, 0.35), choose(style.wall_textures), between)
    grain = choose(((1, 1, 0), (1, 1, 0), (0, 0, 1)))
    walls |= {"period": between(0.25, 0.7), "grain": grain}
    hue, saturation = style.floor
    hue, saturation = hue + between(-0.07, 0.07), saturation * between(0.4, 1.4)
    floor = _paint(hue, saturation, between(0.4, 0.75), between(0.2, 0.5), choose(style.floor_textures), between)
    floor |= {"period": between(0.3, 0.8), "grain": choose(((1, 0, 0), (0, 1, 0)))}
    ceiling = _paint(style.wall[0], style.wall[1] * 0.3, between(0.8, 0.95), 0.1, "plain", between)
    ceiling |= {"period": 0.5, "grain": (1, 0, 0)}
    half = tuple(s / 2 for s in size)
    paints = [walls] * 4 + [floor, ceiling]
    kinds = [WALL] * 4 + [FLOOR, CEILING]
    return [
        Surface(0, kind, k, half, half, 0.0, **paint) for k, (kind, paint) in enumerate(zip(kinds, paints, strict=True))
    ]


def _picture(size, surfaces, between, choose):
    """A picture on one of the three walls that the camera may see, or nothing where another one hangs."""
    wall = choose((0, 1, 3, 3))
    along = 0 if wall == 3 else 1
    half = between(0.2, 0.6), between(0.2, 0.45)
    place = between(half[0] + 0.1, size[along] - half[0] - 0.1)
    height = between(max(1.2, half[1] + 0.5), min(1.9, size[2] - half[1] - 0.1))
    centre = (place, size[1], height) if wall == 3 else (0.0 if wall == 0 else size[0], place, height)
    half = (half[0], 0.0, half[1]) if wall == 3 else (0.0, half[0], half[1])
    for other in surfaces[PICTURES:]:
        if all(abs(a - b) <= g + h for a, b, g, h in zip(centre, other.centre, half, other.half, strict=True)):
            return []
    hue = HUES["picture"] + between(-0.08, 0.08)
    paint = _paint(hue, between(0.3, 0.8), between(0.5, 0.95), between(0.3, 0.7), choose(TEXTURES), between)
    paint |= {"period": between(0.15, 0.4), "grain": choose(((1, 1, 0), (0, 0, 1)))}
    return [Surface(0, PICTURE, surfaces[-1].instance + 1, centre, half, 0.0, **paint)]


def _furniture(kind, ceiling, between):
    """Parts of a piece of furniture: (shape, centre, half extents, radius of the footprint about that centre)."""

    def box(x, y, z, a, b, c):
        return "box", (x, y, z), (a, b, c), math.hypot(a, b)

    def cylinder(z, radius, half):
        return "cylinder", (0, 0, z), (radius, radius, half), radius

    def sphere(z, radius):
        return "sphere", (0, 0, z), (radius, radius, radius), radius

    if kind == "cabinet":
        height = between(0.55, 1.0)
        return [box(0, 0, height, between(0.25, 0.6), between(0.2, 0.32), height)]
    if kind == "chest":
        height = between(0.18, 0.36)
        return [box(0, 0, height, between(0.3, 0.65), between(0.22, 0.38), height)]
    if kind == "table":
        a, b, height = between(0.4, 0.8), between(0.3, 0.5), between(0.6, 0.8)
        sides = [box(s * (a - 0.08), 0, height / 2, 0.04, b - 0.06, height / 2) for s in (-1, 1)]
        return [box(0, 0, height + 0.04, a, b, 0.04), *sides]
    if kind == "chair":
        a, b, height, back = between(0.25, 0.42), between(0.25, 0.35), between(0.2, 0.25), between(0.42, 0.6)
        return [box(0, 0, height, a, b, height), box(0, b + 0.07, back, a, 0.07, back)]
    if kind == "ball":
        radius = between(0.2, 0.5)
        return [sphere(radius, radius)]
    if kind == "column":
        return [cylinder(ceiling / 2, between(0.12, 0.3), ceiling / 2)]
    if kind == "lamp":
        height, radius = between(0.9, 1.4), between(0.16, 0.28)
        return [sphere(height + radius, radius), cylinder(height / 2, 0.035, height / 2), cylinder(0.03, radius, 0.03)]
    height, radius = between(0.15, 0.28), between(0.25, 0.48)
    return [sphere(2 * height + 0.8 * radius, radius), cylinder(height, between(0.14, 0.24), height)]


def _place(kind, parts, place, turn, instance, style, between, choose):
    """Surfaces of a piece of furniture on the floor."""
    name = KINDS[kind]
    texture = {"lamp": "plain", "plant": "mottled"}.get(name) or choose(("plain", "plain", *TEXTURES))
    hue, saturation = HUES[name] + between(-0.025, 0.025), style.saturation * between(0.55, 0.9)
    value = between(0.5, 0.9)
    if name == "lamp":
        saturation, value = 0.5 * saturation, between(0.9, 1.0)
    paint = _paint(hue, saturation, value, between(0.3, 0.6), texture, between)
    second = _paint(0.05, 0.5, between(0.35, 0.55), 0.3, "plain", between) if name in ("lamp", "plant") else paint
    common = {"period": between(0.16, 0.4), "grain": choose(((1, 0, 0), (1, 1, 0), (0, 0, 1)))}
    cosine, sine = math.cos(turn), math.sin(turn)
    surfaces = []
    for number, (shape, (x, y, z), half, _) in enumerate(parts):
        centre = place[0] + cosine * x - sine * y, place[1] + sine * x + cosine * y, z
        look = common | (second if number else paint)
        surfaces.append(Surface(SHAPES.index(shape), kind, instance, centre, half, turn, **look))
    return surfaces


# Drawing. Rays and points are tuples of three tensors (image, ray); a scene's surfaces are one tensor (image, surface,
# column) with the columns below.

_CENTRE, _HALF, _COS, _SIN, _FIRST, _SECOND = 0, 3, 6, 7, 8, 11
_TEXTURE, _PERIOD, _PHASE, _GRAIN, _KIND, _INSTANCE, _SHAPE, _COLUMNS = 14, 15, 16, 19, 22, 23, 24, 25
# stands in where a room has fewer solids than another of its batch: under every floor, so that no ray meets it
_NOWHERE = Surface(1, FLOOR, 0, (0, 0, -1e3), (0.1,) * 3, 0.0, ((0,) * 3,) * 2, 0, 1.0, (0,) * 3, (1, 0, 0))


def _row(s):
    turn = math.cos(s.turn), math.sin(s.turn)
    paint = *s.colours[0], *s.colours[1], s.texture, s.period, *s.phase, *s.grain
    return *s.centre, *s.half, *turn, *paint, s.kind, s.instance, s.shape


def render(
    seed: int, start: int, stop: int, size: int = 64, device: str | torch.device = "cpu"
) -> dict[str, torch.Tensor]:
    """Images start to stop - 1 of a seed, with their labels.

    Parameters
    ----------
    seed : int
        Of the bank; not negative.
    start, stop : int
        Range of images, from 0; see `TRAIN`, `TRANSFER` and `PROBE`.
    size : int
        Pixels along a side. The room does not depend on it, the noise does.
    device : str or torch.device
        Where to cast the rays, and where the result lies.

    Returns
    -------
    dict of str to torch.Tensor
        What `draw` returns, with the noise of a sensor added to `rgb`, which is then rounded to multiples of 1/255;
        and `seed` and `index`, (n,) int64. Images depend on their seed and index alone, not on the range.

    Raises
    ------
    ValueError
        An empty range, a negative seed or index, or a size of less than 8 pixels.

    Examples
    --------
    >>> scene = render(0, 17, 19)
    >>> scene["rgb"].shape, scene["index"]
    (torch.Size([2, 3, 64, 64]), tensor([17, 18]))
    """
    if stop <= start:
        raise ValueError(f"no images from {start} to {stop - 1}: stop must be larger than start")
    levels = torch.from_numpy(np.arange(256, dtype=np.float32) / np.float32(255)).to(device)
    many = _at_once(size, device)
    blocks = []
    for first in range(start, stop, many):
        indices = range(first, min(first + many, stop))
        rooms = [sample(seed, index) for index in indices]
        block = draw(rooms, size, device)
        noise = np.stack(
            [room.noise * gaussian(seed, i, 1, (3, size, size)) for i, room in zip(indices, rooms, strict=True)]
        )
        noisy = block["rgb"] + torch.from_numpy(noise.astype(np.float32)).to(device)
        block["rgb"] = levels[(noisy.clamp(0, 1) * 255 + 0.5).floor().long()]
        block["seed"] = torch.full((len(rooms),), seed, device=device)
        block["index"] = torch.tensor(indices, device=device)
        blocks.append(block)
    return {name: torch.cat([block[name] for block in blocks]) for name in blocks[0]}


def gaussian(seed: int, index: int, stream: int, shape: tuple[int, ...]) -> np.ndarray:
    """Nearly Gaussian noise that belongs to an image: the sum of four random bytes, standardised.

    Parameters
    ----------
    seed, index : int
        The image.
    stream : int
        Which noise of that image: 1 is the sensor's.
    shape : tuple of int

    Returns
    -------
    numpy.ndarray
        float32 of that shape, mean 0 and standard deviation 1, within 3.5.

    Examples
    --------
    >>> noise = gaussian(0, 17, 1, (100, 100))
    >>> round(float(noise.std()), 1), noise.dtype
    (1.0, dtype('float32'))
    """
    count = math.prod(shape)
    raw = np.random.PCG64(np.random.SeedSequence([seed, index, stream])).random_raw(-(-count // 2))
    quarters = raw.astype("<u8").view(np.uint8).reshape(-1, 4)[:count]
    total = quarters.sum(axis=1, dtype=np.int32)
    return ((total - 510).astype(np.float32) / np.float32(math.sqrt((256**2 - 1) / 3))).reshape(shape)


def _at_once(size, device):
    return max(1, RAYS_AT_ONCE.get(torch.device(device).type, RAYS_AT_ONCE["cpu"]) // size**2)


def draw(rooms: Sequence[Room], size: int = 64, device: str | torch.device = "cpu") -> dict[str, torch.Tensor]:
    """Cast one ray through the centre of every pixel of every room, and to the lights from where it ends.

    Parameters
    ----------
    rooms : sequence of Room
        All at once in memory; `render` cuts longer ranges into blocks.
    size : int
        Pixels along a side, at least 8.
    device : str or torch.device

    Returns
    -------
    dict of str to torch.Tensor
        n images of s pixels a side. Float32 unless said otherwise, directions in camera coordinates, metres, radians.

        rgb : (n, 3, s, s), in [0, 1], no noise
        depth_z : (n, 1, s, s), along the optical axis, finite and positive
        depth_euclidean : (n, 1, s, s), from the camera
        normal : (n, 3, s, s), unit length, facing the camera
        curvature : (n, 2, s, s), principal curvatures in 1/metre, larger first
        shading : (n, 1, s, s), in [0, 1], Lambert's law for a light at the camera
        semantic : (n, s, s) int64, index into `KINDS`
        instance : (n, s, s) int64, number within the room: walls 0 to 3, floor 4, ceiling 5, pictures, then solids
        pitch, yaw, field_of_view : (n,)
        vanishing_points : (n, 9), where the room's edges lead: unit vectors to its right, far and up, one after another
        layout : (n, 5), distances to the wall ahead, the wall on the left, on the right, the floor and the ceiling
        dominant : (n,) int64, kind (index into `KINDS`) of the solid with the most pixels, the first where there
            are several, or none can be seen
        style : (n,) int64, index into `STYLES`

    Raises
    ------
    ValueError
        No room, a size of less than 8 pixels, or a room without a solid.

    Examples
    --------
    >>> draw([sample(0, 17)], size=16)["normal"].shape
    torch.Size([1, 3, 16, 16])
    """
    if not rooms or size < 8:
        raise ValueError(f"{len(rooms)} rooms of {size} pixels: at least one room and 8 pixels are needed")
    if any(all(s.kind not in SOLIDS for s in room.surfaces) for room in rooms):
        raise ValueError("a room is empty: put at least one solid into it")

    def tensor(values):
        return torch.from_numpy(np.array(values, np.float32)).to(device)

    most = max(len(room.surfaces) for room in rooms) + 1
    table = tensor([[_row(s) for s in r.surfaces] + [_row(_NOWHERE)] * (most - len(r.surfaces)) for r in rooms])
    solids = [_slots(rooms, table, shape) for shape in (1, 2, 3)]
    room_size = tensor([room.size for room in rooms])
    camera = tensor([room.camera for room in rooms])
    axes = tensor([camera_axes(room.yaw, room.pitch) for room in rooms])
    zoom = tensor([math.tan(room.field_of_view / 2) for room in rooms])[:, None]

    step = (torch.arange(size, dtype=torch.float32, device=device) * 2 + (1 - size)) * (1.0 / size)
    across, down = step.repeat(size)[None] * zoom, step.repeat_interleave(size)[None] * zoom
    origin = tuple(camera[:, k, None] for k in range(3))
    ray = tuple(axes[:, 2, k, None] + across * axes[:, 0, k, None] + down * axes[:, 1, k, None] for k in range(3))

    depth, plane = _leave(origin, ray, room_size)
    where = _along(origin, ray, depth)
    plane = _hang(plane, where, table, max(_count(room, PICTURE) for room in rooms))
    nearest, solid = _meet(origin, ray, solids)
    depth, surface = torch.minimum(depth, nearest), torch.where(nearest < depth, solid, plane)
    where = _along(origin, ray, depth)

    hit = table.gather(1, surface[..., None].expand(-1, -1, _COLUMNS)).unbind(-1)
    local = _turned([where[k] - hit[_CENTRE + k] for k in range(3)], hit[_COS], hit[_SIN])
    normal, curvature = _shape_of(hit, local, _turned(ray, hit[_COS], hit[_SIN]))
    normal = _turned(normal, hit[_COS], -hit[_SIN])
    colour = _colour(hit, local)
    light = _light(rooms, where, normal, solids, tensor)
    rgb = torch.stack([(colour[k] * light[k]).clamp(0, 1).sqrt() for k in range(3)], 1)

    far = (1 + across * across + down * down).sqrt()
    facing = -(_dot(normal, ray) / far)
    semantic, instance = hit[_KIND].long(), hit[_INSTANCE].long()
    directions = [axes[:, :, k] for k in range(3)]
    w, length, height = room_size.unbind(1)
    x, y, z = camera.unbind(1)

    def image(*channels):
        return torch.stack(channels, 1).unflatten(-1, (size, size))

    assert depth.isfinite().all() and (depth > 0).all()
    return {
        "rgb": rgb.unflatten(-1, (size, size)),
        "depth_z": image(depth),
        "depth_euclidean": image(depth * far),
        "normal": image(*(_dot(normal, axes[:, k].T[..., None]) for k in range(3))),
        "curvature": image(*curvature),
        "shading": image(facing.clamp(0, 1)),
        "semantic": semantic.unflatten(-1, (size, size)),
        "instance": instance.unflatten(-1, (size, size)),
        "pitch": tensor([room.pitch for room in rooms]),
        "yaw": tensor([room.yaw for room in rooms]),
        "field_of_view": tensor([room.field_of_view for room in rooms]),
        "vanishing_points": torch.cat(directions, 1),
        "layout": torch.stack([length - y, x, w - x, z, height - z], 1),
        "dominant": _dominant(rooms, instance),
        "style": torch.tensor([room.style for room in rooms], device=device),
    }


def _count(room, kind):
    return sum(s.kind == kind for s in room.surfaces)


def _slots(rooms, table, shape):
    """(surface index (image, slot), rows of `table` (image, slot, column)) of the solids of one shape."""
    lists = [[k for k, s in enumerate(room.surfaces) if s.shape == shape] for room in rooms]
    most = max(map(len, lists))
    index = torch.tensor([one + [table.shape[1] - 1] * (most - len(one)) for one in lists], device=table.device).long()
    return index, table.gather(1, index[..., None].expand(-1, -1, _COLUMNS))


def _dot(a, b):
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _along(origin, ray, distance):
    return tuple(o + r * distance for o, r in zip(origin, ray, strict=True))


def _turned(v, cosine, sine):
    """A vector in a frame that is turned about the vertical."""
    return cosine * v[0] + sine * v[1], cosine * v[1] - sine * v[0], v[2]


def _inverse(x):
    """1 / x, with a tiny number of the same sign instead of one that is too near zero."""
    return 1 / torch.where(x.abs() < 1e-7, torch.where(x < 0, -1e-7, 1e-7), x)


def _leave(origin, ray, room_size):
    """How far a ray goes to leave the room, and which of the six planes it meets."""
    ways = []
    for k in range(3):
        end = torch.where(ray[k] < 0, 0.0, room_size[:, k, None])
        ways.append((end - origin[k]) * _inverse(ray[k]))
    nearest = torch.minimum(torch.minimum(*ways[:2]), ways[2])
    low = torch.where(ways[0] == nearest, 0, torch.where(ways[1] == nearest, 2, 4))
    back = torch.where(low == 0, ray[0] < 0, torch.where(low == 2, ray[1] < 0, ray[2] < 0))
    return nearest, torch.where(back, low, low + 1)


def _hang(plane, where, table, most):
    """The surfaces met on the room's planes, where pictures may hang on the walls."""
    for k in range(PICTURES, PICTURES + most):
        row = table[:, k, :, None]
        wall = torch.where(row[:, _HALF] == 0, torch.where(row[:, _CENTRE] == 0, 0, 1), 3)
        inside = (plane == wall) & (row[:, _KIND] == PICTURE)
        for axis in range(3):
            half = row[:, _HALF + axis]
            inside &= ((where[axis] - row[:, _CENTRE + axis]).abs() <= half) | (half == 0)
        plane = torch.where(inside, k, plane)
    return plane


def _slab(origin, ray, half):
    """Where a ray enters and leaves the space between two parallel planes."""
    inverse = _inverse(ray)
    a, b = (-half - origin) * inverse, (half - origin) * inverse
    return torch.minimum(a, b), torch.maximum(a, b)


def _quadratic(a, b, c):
    """Where a ray enters and leaves a quadric a t² + 2 b t + c = 0; nowhere if it misses it."""
    inside = b * b - a * c
    root = inside.clamp(min=0).sqrt()
    inverse = 1 / a.clamp(min=1e-12)
    enters = torch.where(inside > 0, (-b - root) * inverse, math.inf)
    return enters, (root - b) * inverse


def _through_box(origin, ray, half):
    enters, leaves = zip(*(_slab(origin[k], ray[k], half[k]) for k in range(3)), strict=True)
    return (
        torch.maximum(torch.maximum(enters[0], enters[1]), enters[2]),
        torch.minimum(torch.minimum(leaves[0], leaves[1]), leaves[2]),
    )


def _through_sphere(origin, ray, half):
    return _quadratic(_dot(ray, ray), _dot(origin, ray), _dot(origin, origin) - half[0] * half[0])


def _through_cylinder(origin, ray, half):
    a = ray[0] * ray[0] + ray[1] * ray[1]
    b = origin[0] * ray[0] + origin[1] * ray[1]
    c = origin[0] * origin[0] + origin[1] * origin[1] - half[0] * half[0]
    enters, leaves = _quadratic(a, b, c)
    low, high = _slab(origin[2], ray[2], half[2])
    return torch.maximum(enters, low), torch.minimum(leaves, high)


_THROUGH = (_through_box, _through_sphere, _through_cylinder)


def _meet(origin, ray, solids):
    """How far a ray goes to the nearest solid, in units of its length (infinite if it meets none), and which it is."""
    nearest = torch.full_like(ray[0], math.inf)
    which = torch.zeros_like(ray[0], dtype=torch.long)
    for (index, rows), through in zip(solids, _THROUGH, strict=True):
        for slot in range(index.shape[1]):
            row = rows[:, slot, :, None]
            start = [origin[k] - row[:, _CENTRE + k] for k in range(3)]
            direction = ray
            if through is _through_box:
                start = _turned(start, row[:, _COS], row[:, _SIN])
                direction = _turned(ray, row[:, _COS], row[:, _SIN])
            enters, leaves = through(start, direction, [row[:, _HALF + k] for k in range(3)])
            closer = (enters < leaves) & (enters > NEAR) & (enters < nearest)
            nearest = torch.where(closer, enters, nearest)
            which = torch.where(closer, index[:, slot, None], which)
    return nearest, which


def _shape_of(hit, local, ray):
    """Normal towards the camera, in the frame of the surface, and both principal curvatures."""
    ball, tube = hit[_SHAPE] == 2, hit[_SHAPE] == 3
    plane = hit[_SHAPE] == 0
    faces = []
    for k in range(3):  # the face that a point lies on is the one it is relatively farthest out, and turned to the ray
        out = (local[k] * _inverse(hit[_HALF + k])).abs()
        back = (local[k] * ray[k] >= 0) != plane
        faces.append(torch.where(plane & (hit[_HALF + k] == 0), 2.0, torch.where(back, -1.0, out)))
    radial = (local[0] * local[0] + local[1] * local[1]).sqrt()
    side = radial / hit[_HALF].clamp(min=1e-7)
    side = torch.where(local[0] * ray[0] + local[1] * ray[1] >= 0, -1.0, side)
    on_side = tube & (side >= faces[2])
    face = torch.where(tube | (faces[2] > torch.maximum(faces[0], faces[1])), 2, torch.where(faces[1] > faces[0], 1, 0))
    inverse = torch.where(ball, 1 / (_dot(local, local)).sqrt(), 1 / radial.clamp(min=1e-7))
    normal = []
    for k in range(3):
        flat = torch.where(face == k, torch.where(ray[k] > 0, -1.0, 1.0), 0.0)
        curved = local[k] * inverse if k < 2 else torch.where(ball, local[2] * inverse, 0.0)
        normal.append(torch.where(ball | on_side, curved, flat))
    bend = 1 / hit[_HALF].clamp(min=1e-7)
    return normal, (torch.where(ball | on_side, bend, 0.0), torch.where(ball, bend, 0.0))


def _wave(x):
    """A smooth wave of period 1 between -1 and 1: a triangle, rounded off."""
    triangle = (x - (x + 0.5).floor()).abs() * 4 - 1
    return triangle * (1.5 - 0.5 * (triangle * triangle))


def _colour(hit, local):
    """Linear RGB of the surface."""
    inverse = 1 / hit[_PERIOD]
    x, y, z = (local[k] * inverse + hit[_PHASE + k] for k in range(3))
    along = x * hit[_GRAIN] + y * hit[_GRAIN + 1] + z * hit[_GRAIN + 2]
    cells = x.floor() + y.floor() + z.floor()
    swirl = _wave(0.37 * x + 0.61 * y + 0.43 * z + 0.25 * _wave(0.83 * y - 0.59 * z + 0.31 * x))
    fine = _wave(1.71 * z - 1.37 * x + 0.4 * swirl) + _wave(1.53 * y + 1.19 * x - 0.87 * z + 0.5 * swirl)
    textures = (
        0.5 + 0.5 * swirl,
        cells - 2 * (0.5 * cells).floor(),
        (0.5 + 3 * _wave(along)).clamp(0, 1),
        0.5 + 0.35 * _wave(along + 0.3 * swirl) + 0.15 * _wave(4 * along + 0.7 * swirl),
        0.5 + 0.25 * (swirl + 0.5 * fine),
    )
    blend = textures[0]
    for k, texture in enumerate(textures[1:], start=1):
        blend = torch.where(hit[_TEXTURE] == k, texture, blend)
    rim = torch.zeros_like(blend, dtype=torch.bool)
    for k in range(3):
        rim |= (local[k].abs() > hit[_HALF + k] - 0.05) & (hit[_HALF + k] > 0)
    framed = torch.where(rim & (hit[_KIND] == PICTURE), 0.08, 1.0)
    return [(hit[_FIRST + k] * (1 - blend) + hit[_SECOND + k] * blend) * framed for k in range(3)]


def _light(rooms, where, normal, solids, tensor):
    """Linear RGB of the light on each point: from all sides, more from above, and from the lights in sight."""
    ambient = tensor([room.ambient for room in rooms])[:, None] * (0.8 + 0.3 * normal[2] + 0.15 * normal[0])
    total = [ambient, ambient, ambient]
    start = _along(where, normal, LIFT)
    for k in range(len(rooms[0].lights)):
        position = tensor([room.lights[k][0] for room in rooms])
        tint = tensor([room.lights[k][1] for room in rooms])
        way = tuple(position[:, axis, None] - start[axis] for axis in range(3))
        square = _dot(way, way)
        steep = (_dot(way, normal) / square.sqrt()).clamp(min=0)
        seen = _meet(start, way, solids)[0] > 1
        falling = torch.where(seen, steep, 0.0) / (0.35 + 0.16 * square)
        total = [total[c] + tint[:, c, None] * falling for c in range(3)]
    return total


def _dominant(rooms, instance):
    """Kind of the solid that has the most pixels; of equals, the first."""
    most = max(s.instance for room in rooms for s in room.surfaces) + 1
    kinds = np.zeros((len(rooms), most), np.int64)
    for number, room in enumerate(rooms):
        for s in room.surfaces:
            kinds[number, s.instance] = s.kind
    kinds = torch.from_numpy(kinds).to(instance.device)
    counts = torch.zeros_like(kinds).scatter_add_(1, instance, torch.ones_like(instance))
    ordered = counts * most - torch.arange(most, device=instance.device)
    largest = torch.where(kinds >= SOLIDS.start, ordered, -most).argmax(1, keepdim=True)
    return kinds.gather(1, largest)[:, 0]
