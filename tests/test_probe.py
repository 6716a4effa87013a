import hashlib
import io
import itertools
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import warnings
import zlib

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from PIL import Image

from support import probe
from support.sources import shared


def picture(seed, width=64, height=64):
    """Textured uint8 RGB array (height, width, 3): coarse coloured noise, smooth enough to survive compression."""
    cells = 12 * height // min(width, height), 12 * width // min(width, height), 3
    noise = np.random.default_rng(seed).integers(0, 256, cells, dtype=np.uint8)
    return np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))


def write(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def fill(folder, count, width=64, height=64):
    for k in range(count):
        write(folder / f"{k:03d}.png", picture(k, width, height))


def only_image(folder, size=64):
    """The one tile of the one image in a folder, (size, size, 3)."""
    return probe.load(f"folder:{folder}", n_images=1, size=size).values[0]


def box_mean(pixels, size):
    """Second opinion on the filter: mean over square blocks, for sides that are a multiple of `size`."""
    factor = len(pixels) // size
    return pixels.reshape(size, factor, size, factor, 3).mean((1, 3))


@pytest.fixture(scope="module")
def indoor():
    return probe.load("indoor", n_images=50, size=64, seed=0)


@pytest.fixture
def opened(monkeypatch):
    """Files opened through Pillow, in order."""
    files = []
    original = Image.open

    def counting(file, *arguments, **options):
        files.append(file)
        return original(file, *arguments, **options)

    monkeypatch.setattr(Image, "open", counting)
    return files


# What a probe is


def test_probe_is_a_labelled_array(indoor):
    assert indoor.dims == ("image", "y", "x", "channel")
    assert indoor.shape == (50, 64, 64, 3)
    assert indoor.dtype == np.float32
    assert 0 <= indoor.values.min() < 0.1 and 0.9 < indoor.values.max() <= 1
    assert list(indoor.channel.values) == ["red", "green", "blue"]
    assert {"source": "indoor", "seed": 0, "size": 64, "units": "1"}.items() <= indoor.attrs.items()
    assert indoor.attrs["probe_sha256"] == hashlib.sha256(indoor.values.tobytes()).hexdigest()


def test_sample_of_the_design_page_is_there_and_even():
    images = probe.load("indoor", n_images=200, size=64, seed=0)
    assert images.shape == (200, 64, 64, 3)
    counts = probe.manifest(images)["file"].value_counts()
    for row in probe.photographs("indoor").itertuples():
        taken = counts.get(row.file, 0)
        if taken < counts.max() - 1:  # only a photograph without further tiles gives fewer
            with Image.open(shared.find(row.package, row.file)) as image:
                crops = [image.crop((x, y, x + side, y + side)) for x, y, side in probe._grid(*image.size, 64)]
            assert sum(probe._texture(crop) >= probe.TEXTURE for crop in crops) == taken, row.file


def test_same_seed_same_probe_and_other_seed_other_probe():
    first, again, other = (probe.load("photos", n_images=40, size=64, seed=seed) for seed in (0, 0, 1))
    xr.testing.assert_identical(first, again)
    assert list(first.file.values[:10]) != list(other.file.values[:10])


def test_first_tiles_of_seed_0_are_the_recorded_ones():
    recorded = [
        ("foolbox/data/imagenet_11_630.jpg", 256, 256, 256),
        ("foolbox/data/imagenet_03_990.jpg", 256, 256, 256),
        ("skimage/data/astronaut.png", 0, 256, 256),
        ("foolbox/data/imagenet_13_471.jpg", 256, 0, 256),
        ("foolbox/data/imagenet_02_438.jpg", 0, 0, 256),
        ("skimage/data/chelsea.png", 97, 22, 256),
    ]
    found = probe.manifest(probe.load("photos", n_images=6, size=64, seed=0))
    assert list(found[["file", "left", "top", "side"]].itertuples(index=False, name=None)) == recorded


def test_smaller_sample_is_the_beginning_of_a_larger_one(tmp_path):
    fill(tmp_path, 3, 300, 1100)
    for source, larger in (("photos", 80), (f"folder:{tmp_path}", 12)):
        images = probe.load(source, n_images=larger, size=64, seed=0)
        for n_images in (1, 2, larger // 2):
            smaller = probe.load(source, n_images=n_images, size=64, seed=0)
            xr.testing.assert_equal(smaller, images[:n_images])


def test_boxes_of_a_photograph_do_not_overlap():
    table = probe.manifest(probe.load("photos", n_images=80, size=32))
    for _, boxes in table.groupby("file"):
        for a, b in itertools.combinations(boxes.itertuples(), 2):
            assert max(abs(a.left - b.left), abs(a.top - b.top)) >= a.side


@pytest.mark.parametrize(
    ("width", "height", "size", "side", "columns", "rows"),
    [
        (1000, 600, 64, 256, 3, 2),
        (1000, 600, 300, 300, 3, 2),
        (200, 90, 64, 90, 2, 1),
        (64, 64, 64, 64, 1, 1),
        (256, 513, 64, 256, 1, 2),
    ],
)
def test_grid_is_centred_and_inside(width, height, size, side, columns, rows):
    boxes = np.array(probe._grid(width, height, size))
    assert len(boxes) == columns * rows and set(boxes[:, 2]) == {side}
    assert len(np.unique(boxes, axis=0)) == len(boxes)
    for start, length in ((boxes[:, 0], width), (boxes[:, 1], height)):
        before, after = start.min(), length - start.max() - side
        assert before >= 0 and after - before in (0, 1)


@pytest.mark.parametrize("seed", [0, 3])
def test_manifest_reproduces_every_tile_from_its_file(seed):
    images = probe.load("photos", n_images=20, size=64, seed=seed)
    for tile, row in zip(images.values, probe.manifest(images).itertuples(), strict=True):
        path = shared.find(row.package, row.file)
        assert shared.sha256(path) == row.sha256
        whole = np.asarray(Image.open(path).convert("RGB"), float) / 255
        crop = whole[row.top : row.top + row.side, row.left : row.left + row.side]
        np.testing.assert_allclose(tile, box_mean(crop, 64), atol=1.01 / 255)


def test_labels_licences_and_authors_reach_the_manifest():
    manifest = probe.manifest(probe.load("photos", n_images=26, size=64)).set_index("file")
    assert len(manifest) == 26 and manifest.index.is_unique
    assert manifest.loc["foolbox/data/imagenet_17_22.jpg", "label"] == 22
    assert manifest.loc["skimage/data/chelsea.png", ["licence", "author", "label"]].tolist() == [
        "CC0",
        "Stefan van der Walt",
        -1,
    ]


def test_manifest_of_one_tile_and_of_something_else(indoor):
    one = probe.manifest(indoor[7])
    pd.testing.assert_series_equal(one.iloc[0], probe.manifest(indoor).iloc[7], check_names=False)
    with pytest.raises(ValueError, match="licence"):
        probe.manifest(indoor.drop_vars("licence"))


def test_netcdf_brings_everything_back(indoor, tmp_path):
    indoor.to_netcdf(tmp_path / "probe.nc", engine="h5netcdf")
    with xr.open_dataarray(tmp_path / "probe.nc", engine="h5netcdf") as stored:
        pd.testing.assert_frame_equal(probe.manifest(stored), probe.manifest(indoor))
        assert stored.attrs == indoor.attrs
        assert stored.attrs["probe_sha256"] == hashlib.sha256(stored.values.tobytes()).hexdigest()


# What is left out


def test_tiles_without_texture_are_left_out(tmp_path):
    grass = picture(0, 256, 256)
    sky = np.broadcast_to(np.linspace(90, 230, 256).astype(np.uint8)[:, None, None], (256, 256, 3))
    wall = np.clip(np.random.default_rng(0).normal(200, 4, (256, 256, 3)), 0, 255).astype(np.uint8)
    write(tmp_path / "a.png", np.concatenate([sky, grass, wall], axis=1))
    images = probe.load(f"folder:{tmp_path}", n_images=1)
    assert images.left.item() == 256
    with pytest.raises(ValueError, match="has 1 textured"):
        probe.load(f"folder:{tmp_path}", n_images=2)


def test_near_duplicates_are_left_out(tmp_path):
    original = picture(1, 128, 128)
    write(tmp_path / "a.png", original)
    write(tmp_path / "brighter.png", (original * 0.8 + 40).astype(np.uint8))
    write(tmp_path / "compressed.jpg", original, quality=40)
    write(tmp_path / "smaller.png", np.asarray(Image.fromarray(original).resize((100, 100))))
    write(tmp_path / "b.png", picture(2, 128, 128))
    for seed in range(3):
        images = probe.load(f"folder:{tmp_path}", n_images=2, seed=seed)
        assert "b.png" in images.file.values
        with pytest.raises(ValueError, match="has 2 textured"):
            probe.load(f"folder:{tmp_path}", n_images=3, seed=seed)


def test_no_two_tiles_of_a_probe_have_close_hashes(indoor):
    table = probe.manifest(indoor)
    codes = []
    for row in table.itertuples():
        with Image.open(shared.find(row.package, row.file)) as image:
            grey = image.crop((row.left, row.top, row.left + row.side, row.top + row.side)).convert("L")
        wide = np.asarray(grey.resize((9, 8), Image.Resampling.BOX), int)
        tall = np.asarray(grey.resize((8, 9), Image.Resampling.BOX), int)
        codes.append(np.r_[(wide[:, 1:] > wide[:, :-1]).ravel(), (tall[1:] > tall[:-1]).ravel()])
    apart = min(np.count_nonzero(a != b) for a, b in itertools.combinations(codes, 2))
    assert apart > probe.DUPLICATE - 4  # grey before or after scaling rounds differently


# Folders


def test_folder_takes_the_same_tiles_wherever_it_lies(tmp_path):
    fill(tmp_path / "one" / "inner", 5, 300, 520)
    (tmp_path / "two" / "inner").mkdir(parents=True)
    for file in sorted((tmp_path / "one" / "inner").iterdir(), reverse=True):
        shutil.copy(file, tmp_path / "two" / "inner")
    one, two = (probe.load(f"folder:{tmp_path / name}", n_images=8, size=48, seed=5) for name in ("one", "two"))
    np.testing.assert_array_equal(one, two)
    columns = ["file", "left", "top", "side", "sha256"]
    pd.testing.assert_frame_equal(probe.manifest(one)[columns], probe.manifest(two)[columns])
    counts = probe.manifest(one)["file"].value_counts()
    assert len(counts) == 5 and set(counts) == {1, 2}
    assert one.file.values[0].startswith("inner/") and (one.package == str(tmp_path / "one")).all()
    assert one.sha256.values[0] == shared.sha256(tmp_path / "one" / one.file.values[0])
    assert (one.licence == "not stated").all() and (one.label == -1).all()


def test_folder_ignores_hidden_files_and_other_suffixes(tmp_path):
    write(tmp_path / "seen.JPG", picture(0), quality=95)
    write(tmp_path / ".hidden.png", picture(1))
    write(tmp_path / ".cache" / "hidden.png", picture(2))
    (tmp_path / "notes.txt").write_text("not an image")
    images = probe.load(f"folder:{tmp_path}", n_images=1)
    assert images.file.values.tolist() == ["seen.JPG"]
    with pytest.raises(ValueError, match="has 1 textured"):
        probe.load(f"folder:{tmp_path}", n_images=2)


def test_large_folder_is_opened_only_as_far_as_needed(tmp_path, opened):
    fill(tmp_path, 120, 32, 32)
    images = probe.load(f"folder:{tmp_path}", n_images=10, size=32)
    assert len(set(opened)) <= 15
    assert len(set(images.file.values)) == 10


def test_a_collection_of_forty_thousand_images_in_folders_is_opened_only_as_far_as_needed(tmp_path, opened):
    fill(tmp_path / "made", 200, 40, 32)
    for k in range(40_000):
        place = tmp_path / "archive" / f"{k % 80:02d}" / f"{k % 7}"
        if k < 560:
            place.mkdir(parents=True, exist_ok=True)
        os.link(tmp_path / "made" / f"{k % 200:03d}.png", place / f"{k}.png")
    images = probe.load(f"folder:{tmp_path / 'archive'}", n_images=6, size=32, crop="centre")
    assert len(opened) <= 9  # a few more where one picture comes twice
    assert len(set(images.file.values)) == 6 and all(name.count("/") == 2 for name in images.file.values)


def test_the_centre_is_the_largest_square_of_every_photograph(tmp_path):
    shapes = {"wide": (96, 64), "tall": (64, 129), "square": (64, 64)}
    for k, (name, shape) in enumerate(shapes.items()):
        write(tmp_path / f"{name}.png", picture(k, *shape))
    images = probe.load(f"folder:{tmp_path}", n_images=3, size=32, crop="centre")
    boxes = {f.removesuffix(".png"): box for f, *box in probe.manifest(images)[["file", "left", "top", "side"]].values}
    assert boxes == {"wide": [16, 0, 64], "tall": [0, 32, 64], "square": [0, 0, 64]}
    wide = images.values[images.file.values.tolist().index("wide.png")]
    np.testing.assert_allclose(wide, box_mean(picture(0, 96, 64)[:, 16:80] / 255, 32), atol=1.01 / 255)
    with pytest.raises(ValueError, match="has 3 textured"):
        probe.load(f"folder:{tmp_path}", n_images=4, size=32, crop="centre")
    with pytest.raises(ValueError, match="unknown crop 'center'; known: tiles, centre"):
        probe.load(f"folder:{tmp_path}", n_images=1, crop="center")


def test_a_photograph_is_not_decoded_for_every_tile(opened):
    probe.load("photos", n_images=54, size=64)
    assert len(opened) <= 2 * 27


def test_small_images_give_the_largest_tile_that_fits(tmp_path):
    write(tmp_path / "a.png", picture(0, 150, 100))
    images = probe.load(f"folder:{tmp_path}", n_images=1, size=50)
    assert (images.left.item(), images.top.item(), images.side.item()) == (25, 0, 100)
    expected = box_mean(picture(0, 150, 100)[:, 25:125] / 255, 50)
    np.testing.assert_allclose(images.values[0], expected, atol=1.01 / 255)


def test_order_of_the_file_system_does_not_matter(tmp_path, monkeypatch):
    fill(tmp_path, 5)
    walked = probe.load(f"folder:{tmp_path}", n_images=3)
    original = os.walk
    for reverse in (False, True):
        monkeypatch.setattr(
            os, "walk", lambda *a, r=reverse, **o: ((p, d, sorted(n, reverse=r)) for p, d, n in original(*a, **o))
        )
        xr.testing.assert_identical(probe.load(f"folder:{tmp_path}", n_images=3), walked)


# Formats


def png_16_bits(values):
    """Bytes of a grey PNG with 16 bits, written by hand: an opinion independent of Pillow's writer."""
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in values)

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("name", "options", "tolerance"),
    [
        ("a.png", {}, 0),
        ("a.tif", {}, 0),
        ("a.tiff", {"compression": "tiff_lzw"}, 0),
        ("a.webp", {"lossless": True}, 0),
        ("a.jpg", {"quality": 98, "subsampling": 0}, 0.03),
        ("a.jpeg", {"quality": 98, "subsampling": 0, "progressive": True}, 0.03),
    ],
)
def test_colour_files(tmp_path, name, options, tolerance):
    write(tmp_path / name, picture(3), **options)
    np.testing.assert_allclose(only_image(tmp_path), picture(3) / 255, atol=tolerance + 1e-6)


def test_grey_and_black_and_white_files(tmp_path):
    grey = picture(3)[..., 0]
    for mode in ("L", "1"):
        image = Image.fromarray(grey).convert(mode)
        image.save(tmp_path / "a.png")
        expected = np.asarray(image, float) / (255 if mode == "L" else 1)
        np.testing.assert_allclose(only_image(tmp_path), np.stack([expected] * 3, -1), atol=1e-6)


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    values = picture(3)[..., 0].astype(np.uint16) * 200 + 7
    values[0, :2] = 0, 65535
    expected = np.stack([values / 65535] * 3, -1)
    (tmp_path / "png").mkdir()
    (tmp_path / "png" / "a.png").write_bytes(png_16_bits(values))
    np.testing.assert_allclose(only_image(tmp_path / "png"), expected, atol=1e-6)
    assert only_image(tmp_path / "png").max() == 1
    write(tmp_path / "little" / "a.tif", values)
    np.testing.assert_allclose(only_image(tmp_path / "little"), expected, atol=1e-6)
    (tmp_path / "big").mkdir()
    Image.frombytes("I;16B", (64, 64), values.astype(">u2").tobytes()).save(tmp_path / "big" / "a.tif")
    np.testing.assert_allclose(only_image(tmp_path / "big"), expected, atol=1e-6)
    exif = Image.Exif()
    exif[274] = 6
    write(tmp_path / "turned" / "a.png", values, exif=exif)
    np.testing.assert_allclose(only_image(tmp_path / "turned"), np.rot90(expected, -1), atol=1e-6)


def test_cmyk_files(tmp_path):
    ink = np.concatenate([255 - picture(3), np.zeros((64, 64, 1), np.uint8)], axis=-1)
    Image.fromarray(ink, "CMYK").save(tmp_path / "a.tif")
    np.testing.assert_allclose(only_image(tmp_path), picture(3) / 255, atol=1e-6)
    (tmp_path / "a.tif").unlink()
    Image.fromarray(ink, "CMYK").save(tmp_path / "a.jpg", quality=98, subsampling=0)
    np.testing.assert_allclose(only_image(tmp_path), picture(3) / 255, atol=0.04)


def test_palette_files(tmp_path):
    colours = np.random.default_rng(0).integers(0, 256, (16, 3), dtype=np.uint8)
    index = np.repeat(np.repeat(np.random.default_rng(1).integers(0, 16, (16, 16), dtype=np.uint8), 4, 0), 4, 1)
    image = Image.fromarray(index)
    image.putpalette(colours.tobytes())
    assert image.mode == "P"
    image.save(tmp_path / "a.png")
    np.testing.assert_allclose(only_image(tmp_path), colours[index] / 255, atol=1e-6)
    image.save(tmp_path / "a.png", transparency=5)
    expected = np.where((index == 5)[..., None], 255, colours[index]) / 255
    np.testing.assert_allclose(only_image(tmp_path), expected, atol=1e-6)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.webp"])
def test_transparency_is_laid_on_white(tmp_path, name):
    alpha = np.broadcast_to(np.linspace(0, 255, 64).astype(np.uint8)[:, None, None], (64, 64, 1))
    pixels = np.concatenate([picture(3), alpha], axis=-1)
    write(tmp_path / name, pixels, **({"lossless": True, "exact": True} if name == "a.webp" else {}))
    expected = picture(3) / 255 * (alpha / 255) + (1 - alpha / 255)
    np.testing.assert_allclose(only_image(tmp_path), expected, atol=1.01 / 255)


def test_grey_with_transparency_is_laid_on_white(tmp_path):
    grey = picture(3)[..., :1]
    alpha = np.broadcast_to(np.linspace(0, 255, 64).astype(np.uint8)[None, :, None], (64, 64, 1))
    write(tmp_path / "a.png", np.concatenate([grey, alpha], axis=-1))
    expected = np.broadcast_to(grey / 255 * (alpha / 255) + (1 - alpha / 255), (64, 64, 3))
    np.testing.assert_allclose(only_image(tmp_path), expected, atol=1.01 / 255)


def test_of_a_jpeg_that_holds_several_pictures_the_first_is_taken(tmp_path):
    first, second = (Image.fromarray(picture(seed)) for seed in (3, 4))
    first.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[second], quality=98, subsampling=0)
    np.testing.assert_allclose(only_image(tmp_path), picture(3) / 255, atol=0.03)


# the stored pixels of an upright picture, for each value of the EXIF orientation
STORED = {
    1: lambda upright: upright,
    2: np.fliplr,
    3: lambda upright: np.rot90(upright, 2),
    4: np.flipud,
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: np.rot90(upright, 2).swapaxes(0, 1),
    8: lambda upright: np.rot90(upright, -1),
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.webp"])
def test_exif_orientation_turns_the_picture_upright(tmp_path, name, orientation):
    upright = picture(3, 96, 64)
    exif = Image.Exif()
    exif[274] = orientation
    options = {"a.jpg": {"quality": 98, "subsampling": 0}, "a.webp": {"lossless": True}}.get(name, {})
    write(tmp_path / name, np.ascontiguousarray(STORED[orientation](upright)), exif=exif, **options)
    images = probe.load(f"folder:{tmp_path}", n_images=1)
    assert (images.left.item(), images.top.item(), images.side.item()) == (16, 0, 64)
    np.testing.assert_allclose(images.values[0], upright[:, 16:80] / 255, atol=0.04 if name == "a.jpg" else 1e-6)


# Rooms


def test_rooms_are_a_labelled_array_of_images_kept_for_probes():
    from support.bank import rooms

    images = probe.load("rooms", n_images=3, size=24, seed=4)
    first = rooms.PROBE.start
    expected = rooms.render(4, first, first + 3, size=24)["rgb"].permute(0, 2, 3, 1)
    np.testing.assert_array_equal(images.values, expected)
    assert images.dims == ("image", "y", "x", "channel") and images.dtype == np.float32
    assert {"source": "rooms", "seed": 4, "size": 24, "units": "1"}.items() <= images.attrs.items()
    assert images.attrs["probe_sha256"] == hashlib.sha256(images.values.tobytes()).hexdigest()
    table = probe.manifest(images)
    assert table.file.tolist() == [f"room {first + k}" for k in range(3)]
    assert table.sha256.tolist() == [hashlib.sha256(image.tobytes()).hexdigest() for image in images.values]
    assert set(table.package) == {"support.bank.rooms"} and set(table.licence) == {"MIT (this project)"}
    assert table[["left", "top", "side", "label"]].drop_duplicates().values.tolist() == [[0, 0, 24, -1]]


def test_fewer_rooms_are_the_beginning_of_more_and_seeds_differ(monkeypatch):
    monkeypatch.setattr(probe, "ROOMS_AT_ONCE", 2)
    images = probe.load("rooms", n_images=5, size=16)
    np.testing.assert_array_equal(probe.load("rooms", n_images=3, size=16).values, images.values[:3])
    other = probe.load("rooms", n_images=5, size=16, seed=1).values
    assert all((a != b).mean() > 0.5 for a, b in zip(images.values, other, strict=True))


def test_more_rooms_than_are_kept_for_probes_gives_the_number():
    from support.bank import rooms

    with pytest.raises(ValueError, match=str(len(rooms.PROBE))):
        probe.load("rooms", n_images=len(rooms.PROBE) + 1)


# Errors


def test_unknown_source_lists_the_known_ones():
    for source in ("cellar", "folder:", "folder"):
        with pytest.raises(ValueError, match='"rooms", "indoor", "photos" or "folder:PATH"'):
            probe.load(source)


@pytest.mark.parametrize(
    "arguments",
    [{"n_images": 0}, {"n_images": -3}, {"size": 15}, {"size": 4096}, {"seed": -1}],
)
def test_arguments_out_of_range_are_named(arguments):
    (name,) = arguments
    with pytest.raises(ValueError, match=name):
        probe.load("indoor", **arguments)


def test_more_tiles_than_there_are_gives_the_number_available():
    with pytest.raises(ValueError) as caught:
        probe.load("photos", n_images=1000, size=64)
    available = int(str(caught.value).split(" has ")[1].split()[0])
    assert 60 < available < 110
    assert probe.load("photos", n_images=available, size=64).sizes["image"] == available


def test_missing_and_empty_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        probe.load(f"folder:{tmp_path / 'nowhere'}")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no image")
    with pytest.raises(ValueError, match="no images in .*empty"):
        probe.load(f"folder:{tmp_path / 'empty'}")


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("name", ["cut.jpg", "cut.png", "cut.webp", "cut.tif"])
def test_truncated_file_in_a_small_folder_is_named_for_every_seed(tmp_path, name):
    fill(tmp_path, 6)
    write(tmp_path / "inner" / name, picture(50))
    cut(tmp_path / "inner" / name)
    for seed in range(3):
        with pytest.raises(ValueError, match=f"inner/{name}"):
            probe.load(f"folder:{tmp_path}", n_images=1, seed=seed)


def test_files_that_are_no_images_are_all_named(tmp_path):
    fill(tmp_path, 3)
    (tmp_path / "text.png").write_text("this is text")
    (tmp_path / "nothing.jpg").touch()
    Image.fromarray(np.random.default_rng(0).random((64, 64), np.float32)).save(tmp_path / "floating.tif")
    with pytest.raises(ValueError) as caught:
        probe.load(f"folder:{tmp_path}", n_images=1)
    assert all(name in str(caught.value) for name in ("text.png", "nothing.jpg", "floating.tif"))


def test_broken_files_in_a_large_folder_are_a_warning(tmp_path):
    fill(tmp_path, 100, 32, 32)
    for k in range(5):
        cut(tmp_path / f"{k:03d}.png")
    with pytest.warns(UserWarning, match="5 entries of the folder left out") as caught:
        images = probe.load(f"folder:{tmp_path}", n_images=95, size=32)
    assert all(f"{k:03d}.png" in str(caught[0].message) for k in range(5))
    assert sorted(set(images.file.values)) == [f"{k:03d}.png" for k in range(5, 100)]


def test_image_smaller_than_the_tile_is_named(tmp_path):
    fill(tmp_path, 2)
    write(tmp_path / "narrow.png", picture(9, 40, 200))
    with pytest.raises(ValueError, match="narrow.png is 40 pixels"):
        probe.load(f"folder:{tmp_path}", n_images=1, size=64)
    assert probe.load(f"folder:{tmp_path}", n_images=3, size=40).sizes["image"] == 3


def test_images_smaller_than_the_tile_in_a_large_folder_are_a_warning(tmp_path):
    fill(tmp_path, 100, 32, 32)
    write(tmp_path / "007.png", picture(9, 20, 200))
    with pytest.warns(UserWarning, match="1 entries of the folder left out.*007.png is 20 pixels"):
        images = probe.load(f"folder:{tmp_path}", n_images=99, size=32)
    assert "007.png" not in images.file.values


def test_what_is_no_readable_file_is_left_out_with_a_warning_and_nothing_hangs(tmp_path, monkeypatch):
    fill(tmp_path, 3)
    expected = probe.load(f"folder:{tmp_path}", n_images=3)
    os.mkfifo(tmp_path / "pipe.png")
    end = socket.socket(socket.AF_UNIX)
    end.bind(str(tmp_path / "socket.png"))
    (tmp_path / "device.png").symlink_to("/dev/zero")
    (tmp_path / "nowhere.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    (tmp_path / "again").symlink_to(tmp_path)
    (tmp_path / "locked").mkdir()
    original = os.scandir

    def scandir(place):
        if str(place).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(place))
        return original(place)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.warns(UserWarning, match="7 entries of the folder left out") as caught:
        images = probe.load(f"folder:{tmp_path}", n_images=3)
    end.close()
    for name in ("pipe.png", "socket.png", "device.png", "nowhere.png", "loop.png", "again", "locked"):
        assert str(tmp_path / name) in str(caught[0].message)
    np.testing.assert_array_equal(images, expected)
    with pytest.raises(PermissionError, match="locked cannot be read .Permission denied.: change its permissions"):
        probe.load(f"folder:{tmp_path / 'locked'}")
    for path in tmp_path.glob("0*.png"):
        path.unlink()
    with pytest.raises(ValueError, match="no images in .*left out: .*locked cannot be read"):
        probe.load(f"folder:{tmp_path}")


@pytest.mark.parametrize("kind", ["EPS", "GIF", "BMP", "PPM", "TGA", "PDF", "ICO", "PCX"])
def test_only_the_formats_named_are_decoded_whatever_a_file_is_called(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **o: pytest.fail(f"a program was started: {a}"))
    buffer = io.BytesIO()
    Image.fromarray(picture(0)).save(buffer, kind)
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    for read in (
        lambda: probe.load(f"folder:{tmp_path}", n_images=1),
        lambda: probe.photograph("a.png", folder=tmp_path),
    ):
        with pytest.raises(ValueError, match="a.png is no JPEG, PNG, WEBP, TIFF file"):
            read()
    Image.fromarray(picture(0)).save(tmp_path / "a.png", "WEBP", lossless=True)  # of the four, the content decides
    np.testing.assert_allclose(only_image(tmp_path), picture(0) / 255, atol=1e-6)


def test_files_that_unpack_to_no_end_are_refused(tmp_path):
    lines = zlib.compress(bytes(1000))

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    def png(side, *chunks):
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
        return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IDAT", lines) + chunk(b"IEND", b"")

    text = b"t\0\0" + zlib.compress(bytes(2**28), 9)
    for content in (png(20_000), png(64, chunk(b"zTXt", text), chunk(b"iTXt", b"t\0\1\0\0\0" + text[3:]))):
        (tmp_path / "a.png").write_bytes(content)
        with pytest.raises(ValueError, match="a.png cannot be read"):
            probe.load(f"folder:{tmp_path}", n_images=1)


def test_where_nothing_can_be_taken_the_message_says_what_to_change(tmp_path):
    for k in range(3):
        write(tmp_path / "flat" / f"{k}.png", np.full((64, 64, 3), 40 * k, np.uint8))
    with pytest.raises(
        ValueError, match="no tile of 64 pixels with texture in its 3 photographs: choose a smaller size"
    ):
        probe.load(f"folder:{tmp_path / 'flat'}", n_images=1)
    fill(tmp_path / "small", 100, 32, 32)
    with (
        pytest.warns(UserWarning, match="100 entries"),
        pytest.raises(ValueError, match="000.png is 32 pixels") as caught,
    ):
        probe.load(f"folder:{tmp_path / 'small'}", n_images=1, size=40)
    assert "up to 0" not in str(caught.value)
    with pytest.raises(ValueError, match="no photograph of photos has 2048 pixels a side: choose size up to 683"):
        probe.load("photos", n_images=1, size=2048)
    fill(tmp_path / "three", 3)
    with pytest.raises(ValueError, match="has 3 textured.*choose n_images up to 3"):
        probe.load(f"folder:{tmp_path / 'three'}", n_images=10**12)


@pytest.mark.parametrize(
    "arguments",
    [{name: value} for name in ("n_images", "size", "seed") for value in ("3", 64.0, None, True, [16], np.nan)]
    + [{"source": value} for value in (3, None, b"photos", ["photos"])],
)
def test_arguments_of_another_type_are_named(arguments):
    ((name, value),) = arguments.items()
    with pytest.raises(TypeError, match=f"{name} is {re.escape(repr(value))}: give a"):
        probe.load(**{"source": "photos"} | arguments)


def test_whole_numbers_of_any_kind_are_taken(tmp_path):
    fill(tmp_path, 2)
    plain = probe.load(f"folder:{tmp_path}", n_images=2, size=32, seed=2**63 - 1)
    other = probe.load(f"folder:{tmp_path}", n_images=np.int8(2), size=np.uint16(32), seed=np.array(2**63 - 1))
    xr.testing.assert_identical(plain, other)
    with pytest.raises(ValueError, match="seed is 9223372036854775808, expected 0 to"):
        probe.load("photos", seed=2**63)
    with pytest.raises(TypeError, match="images is a ndarray"):
        probe.manifest(plain.values)


def test_packaged_photographs_smaller_than_the_tile_are_left_out():
    images = probe.load("photos", n_images=1, size=600)
    assert images.file.values.tolist() == ["foolbox/data/imagenet_10_541.jpg"]
    with pytest.raises(ValueError, match="has 1 textured"):
        probe.load("photos", n_images=2, size=600)


def test_no_warning_when_all_is_well(tmp_path):
    fill(tmp_path, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        probe.load(f"folder:{tmp_path}", n_images=3)


# The table


def test_table_tells_the_truth_about_every_file():
    table = probe.photographs()
    assert table["sha256"].is_unique
    for row in table.itertuples():
        path = shared.find(row.package, row.file, row.sha256, row.version)
        with Image.open(path) as image:
            assert image.size == (row.width, row.height)
        if row.package == "foolbox":
            assert row.label == int(path.stem.rsplit("_")[-1]) and row.label_name
        else:
            assert row.label == -1 and not row.label_name
        assert row.licence


def test_collections():
    assert len(probe.photographs("indoor")) + len(probe.photographs("photos")) == len(probe.photographs())
    assert probe.photographs("photos")["package"].value_counts().to_dict() == {
        "foolbox": 20,
        "scikit-image": 5,
        "scikit-learn": 2,
    }
    assert not probe.photographs("indoor")["file"].str.contains("36444540").any()  # a rendering
    assert probe.photographs("indoor")["file"].str.contains("730399[245]").sum() == 1  # three views of one table
    with pytest.raises(ValueError, match="known: indoor, photos"):
        probe.photographs("cellar")


def test_whole_photograph():
    astronaut = probe.photograph("astronaut.png")
    assert astronaut.shape == (512, 512, 3) and astronaut.dtype == np.float32
    with Image.open(io.BytesIO(shared.find("scikit-image", "skimage/data/astronaut.png").read_bytes())) as image:
        np.testing.assert_allclose(astronaut, np.asarray(image) / 255, atol=1e-7)
    np.testing.assert_array_equal(probe.photograph("skimage/data/astronaut.png"), astronaut)
    with pytest.raises(ValueError, match="chelsea.png"):
        probe.photograph("astronout.png")


def test_neither_torch_nor_the_photographs_packages_are_imported():
    code = (
        "import sys; from support import probe; probe.photograph('astronaut.png');"
        "assert not {'torch', 'skimage', 'sklearn', 'foolbox', 'interior_photos'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=probe.TABLE.parents[1])


def test_a_whole_photograph_of_a_folder_is_the_one_the_tiles_were_cut_from(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    tile = probe.load(f"folder:{tmp_path}", n_images=1, size=64)
    row = probe.manifest(tile).iloc[0]
    whole = probe.photograph(row.file, folder=row.package)
    np.testing.assert_array_equal(whole, pixels.astype(np.float32) / 255)
    cut = whole[row.top : row.top + row.side, row.left : row.left + row.side]
    np.testing.assert_array_equal(cut, tile[0].values)
    with pytest.raises(FileNotFoundError, match="b.png"):
        probe.photograph("b.png", folder=tmp_path)


def test_fewer_photographs_than_asked_for_are_taken_where_that_is_allowed(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(3):
        Image.fromarray(rng.integers(0, 255, (70, 80, 3), dtype=np.uint8)).save(tmp_path / f"{number}.png")
    with pytest.raises(ValueError, match="choose n_images up to 3"):
        probe.load(f"folder:{tmp_path}", 5, crop="centre")
    assert probe.load(f"folder:{tmp_path}", 5, crop="centre", fewer=True).sizes["image"] == 3
