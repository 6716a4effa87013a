"""Unlabelled probe images, from photographs or rendered rooms, the same for the same seed on every machine."""

import hashlib
import itertools
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from support import labels
from support.sources import shared

TABLE = Path(__file__).parents[1] / "data" / "photographs.csv"
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff")
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF")  # what Pillow may take a file for, whatever its name says
CROP = 256  # source pixels along a tile's side, where the photograph and the size allow it
SIZES = (16, 2048)  # smallest and largest tile, in pixels
TEXTURE = 0.02  # mean grey step between neighbouring pixels of a tile brought to 32 x 32, in [0, 1]
DUPLICATE = 16  # two tiles are near-duplicates when at most so many of their 128 hash bits differ
ROOMS_AT_ONCE = 64
SMALL_FOLDER = 100  # a folder with fewer images is read in full, and a broken file in it is an error
_OF_FILE = ("file", "package", "licence", "author", "label")
PROVENANCE = ("file", "package", "sha256", "left", "top", "side", "licence", "author", "label")


class _Unreadable(ValueError):
    """An image file that cannot be decoded, or is too small."""


class _Photographs(NamedTuple):
    """Where the photographs of a source are."""

    rows: list[Any]  # a row of `photographs` each, with the columns that a manifest needs
    path: Callable[[Any], Path]  # of a row's file
    all_read: bool  # whether all are opened, and a broken one is an error
    left_out: list[str]  # what of the folder cannot be a photograph, and why


def load(
    source: str, n_images: int = 48, size: int = 64, seed: int = 0, crop: str = "tiles", fewer: bool = False
) -> xr.DataArray:
    """Sample square tiles from photographs, or render rooms.

    Photographs are taken in a random order and each gives one tile before any gives a second one, so that counts
    differ by at most one unless a photograph has no tile left. With ``crop="centre"`` a photograph gives one tile only,
    the largest square in its middle; otherwise tiles of a photograph do not overlap: they lie on a
    grid centred in it, ``max(256, size)`` pixels a side, or the shorter side of the photograph where that is less.
    Each is brought to `size` with Pillow's box filter, which averages the pixels that a new pixel covers. Left out are
    tiles without texture such as sky and blank wall (brought to 32 x 32 and to grey, neighbouring pixels differ by less
    than 0.02 of the range on average) and near-duplicates of tiles already taken (at most 16 of the 128 bits of
    a difference hash differ). A smaller sample of the same source, size and seed is the beginning of a larger one.

    Every image becomes RGB the right way up: EXIF orientation is applied, grey is repeated, transparency is laid on
    white, 16-bit grey is divided by 65535 (16-bit colour keeps its upper 8 bits), and of several frames the first is
    taken. Colour profiles are not applied. The content decides on the format, whatever the name says. A file of more
    than about 179 million pixels is not read, which is Pillow's protection against small files that unpack to no end.

    Rooms are rendered at `size`, from a range of images that no network of the task bank was trained or measured on
    (`support.bank.rooms.PROBE`); none is left out.

    Parameters
    ----------
    source : str
        ``"rooms"``, rendered; ``"indoor"`` or ``"photos"``, photographs that ship in installed packages (`photographs`
        lists them; those smaller than `size` are left out); or ``"folder:PATH"``, the JPEG, PNG, WebP and TIFF files in
        a folder and the folders below it, hidden ones and links to folders left out. Of 100 images and more only as
        many are opened as the sample needs.
    n_images : int
        Number of tiles.
    size : int
        Pixels along a tile's side, 16 to 2048.
    seed : int
        Not negative.
    crop : {"tiles", "centre"}, default "tiles"
        Pieces of photographs, or whole ones but for the ends of their longer side, as Song et al. (2019) take them.
        Nothing to rooms.
    fewer : bool, default False
        Take all that there are where these are fewer than `n_images`, instead of an error.

    Returns
    -------
    xarray.DataArray
        (image, y, x, channel), float32 in [0, 1], sRGB as stored in the files; channels are named red, green and blue.
        Coordinates along `image`: `file` (path in the package or folder), `package` (or the folder), `sha256` (of
        that file; of a room, of its pixels as `probe_sha256`), `left`, `top`, `side` (crop box in pixels of the upright
        photograph), `licence`, `author` (empty where not stated) and `label` (ImageNet class, or -1). Attributes:
        `source`, `seed`, `size`, `units`, `long_name` and `probe_sha256`, the SHA-256 of the pixels as little-endian
        float32 in the order of the dimensions.

    Raises
    ------
    TypeError
        A source that is no text, or a number that is no whole one.
    ValueError
        Unknown source or crop; `n_images`, `size` or `seed` out of range; a folder without images; more tiles asked for
        than there are (the message says how many); in a folder of fewer than 100 images, one that is smaller than
        `size`, or a file that cannot be decoded; a file of a package that is not the one in the table.
    FileNotFoundError
        No such folder, or a package that is not installed (the message gives the command).
    PermissionError
        The folder may not be read.

    Warns
    -----
    UserWarning
        What was left out of a folder: folders below it that cannot be read or are links, and what is no regular file,
        such as a pipe or a broken link. In a folder of 100 images or more also files that could not be decoded or are
        smaller than `size`. The sample is taken from the others.

    Examples
    --------
    Whole photographs, one of each file, for looking at:

    >>> load("photos", n_images=2, size=128, crop="centre").shape
    (2, 128, 128, 3)
    """
    if not isinstance(source, str):
        raise TypeError(f'source is {source!r}: give a text, such as "rooms", "photos" or "folder:PATH"')
    n_images, size = labels.count(n_images, "n_images"), labels.count(size, "size", *SIZES)
    seed, crop = labels.count(seed, "seed", 0, 2**63 - 1), labels.choice(crop, "crop", ("tiles", "centre"))
    if source == "rooms":
        return _rooms(n_images, size, seed)
    photographs = _locate(source, size)
    chosen, broken = _sample(photographs, n_images, size, seed, crop)
    broken += photographs.left_out
    shown = "; ".join(sorted(broken)[:20]) + "; ..." * (len(broken) > 20)
    if broken:
        warnings.warn(f"{len(broken)} entries of the folder left out of the sample: {shown}", stacklevel=2)
    if not chosen:
        raise ValueError(
            f"{source} has no tile of {size} pixels with texture in its {len(photographs.rows)} photographs"
            f"{f' ({shown})' if broken else ''}: choose a smaller size, or add photographs that show more"
        )
    if len(chosen) < n_images and not fewer:
        raise ValueError(
            f"{source} has {len(chosen)} textured, distinct tiles of {size} pixels with seed {seed}, "
            f"{n_images} were asked for: choose n_images up to {len(chosen)}, or add photographs"
        )
    return _of_photographs(chosen, photographs, source, seed, size)


def _locate(source, size):
    """The photographs of a source that may give a tile."""
    if source.startswith("folder:") and source != "folder:":
        folder = Path(os.path.expanduser(source.removeprefix("folder:")))
        table, left_out = _folder(folder)
        rows = list(table.itertuples(index=False))
        return _Photographs(rows, lambda row: folder / row.file, len(rows) < SMALL_FOLDER, left_out)
    if source not in _table()["collection"].unique():
        known = ", ".join(f'"{name}"' for name in ("rooms", *_table()["collection"].unique()))
        raise ValueError(f'unknown source "{source}": choose {known} or "folder:PATH"')
    table = photographs(source)
    shorter = table[["width", "height"]].min(axis=1)
    if shorter.max() < size:
        raise ValueError(f"no photograph of {source} has {size} pixels a side: choose size up to {shorter.max()}")
    rows = list(table[shorter >= size].itertuples(index=False))
    return _Photographs(rows, lambda row: shared.find(row.package, row.file, row.sha256, row.version), False, [])


def _sample(photographs, n_images, size, seed, crop):
    """Draw tiles, (index of the row, left, top, side, pixels) each, and say which files could not be used."""
    rows, order = photographs.rows, _shuffled(len(photographs.rows), seed)
    batch = 2 * -(-n_images // len(rows))  # tiles kept per opening: twice the even share
    streams = {k: _tiles(photographs.path, rows[k], size, crop, [seed, k], batch) for k in order}
    broken = []
    if photographs.all_read:
        for index, stream in sorted(streams.items()):
            try:
                streams[index] = itertools.chain(list(itertools.islice(stream, 1)), stream)
            except _Unreadable as error:
                broken.append(str(error))
        if broken:
            raise ValueError("remove or replace what cannot be used: " + "; ".join(broken))
    chosen, codes = [], np.empty((SMALL_FOLDER, 128), bool)
    with tqdm(total=n_images, desc="tiles", delay=2, leave=False) as bar:
        while order and len(chosen) < n_images:
            giving = []
            for index in order:
                try:
                    tile = next((t for t in streams[index] if not _duplicate(t[-1], codes[: len(chosen)])), None)
                except _Unreadable as error:
                    broken.append(str(error))
                    continue
                if tile is None:
                    streams.pop(index)
                    continue
                giving.append(index)
                *box, pixels, code = tile
                if len(chosen) == len(codes):
                    codes = np.concatenate([codes, codes])
                codes[len(chosen)] = code
                chosen.append((index, *box, pixels))
                bar.update()
                if len(chosen) == n_images:
                    break
            order = giving
    return chosen, broken


def _of_photographs(chosen, photographs, source, seed, size):
    """Tiles of photographs, labelled as `load` describes."""
    rows = photographs.rows
    digests = {index: rows[index].sha256 or shared.sha256(photographs.path(rows[index])) for index, *_ in chosen}
    values = np.stack([_rgb(pixels) for *_, pixels in chosen])
    provenance = {name: [getattr(rows[index], name) for index, *_ in chosen] for name in _OF_FILE}
    provenance["sha256"] = [digests[index] for index, *_ in chosen]
    provenance |= {name: [entry[k] for entry in chosen] for k, name in enumerate(("left", "top", "side"), start=1)}
    return _labelled(values, provenance, source, seed, size)


def _rooms(n_images, size, seed):
    """Rendered rooms, labelled as `load` describes."""
    from support.bank import rooms

    if n_images > len(rooms.PROBE):
        raise ValueError(
            f"rooms has {len(rooms.PROBE)} images, {n_images} were asked for: choose n_images up to {len(rooms.PROBE)}"
        )
    indices = rooms.PROBE[:n_images]
    blocks = []
    for start in tqdm(indices[::ROOMS_AT_ONCE], unit_scale=ROOMS_AT_ONCE, desc="rooms", delay=2, leave=False):
        scene = rooms.render(seed, start, min(start + ROOMS_AT_ONCE, indices.stop), size)
        blocks.append(scene["rgb"].permute(0, 2, 3, 1).numpy())
    values = np.ascontiguousarray(np.concatenate(blocks))
    same = {"package": "support.bank.rooms", "left": 0, "top": 0, "side": int(size)}
    same |= {"licence": "MIT (this project)", "author": "", "label": -1}
    provenance = {name: [value] * n_images for name, value in same.items()}
    provenance["file"] = [f"room {index}" for index in indices]
    provenance["sha256"] = [hashlib.sha256(image.astype("<f4").tobytes()).hexdigest() for image in values]
    return _labelled(values, provenance, "rooms", seed, size)


def _labelled(values, provenance, source, seed, size):
    """The array that `load` returns."""
    return xr.DataArray(
        values,
        dims=("image", "y", "x", "channel"),
        coords={"channel": ["red", "green", "blue"]} | {name: ("image", provenance[name]) for name in PROVENANCE},
        name="probe",
        attrs={
            "long_name": "sRGB intensity",
            "units": "1",
            "source": source,
            "seed": int(seed),
            "size": int(size),
            "probe_sha256": hashlib.sha256(values.astype("<f4").tobytes()).hexdigest(),
        },
    )


def manifest(images: xr.DataArray) -> pd.DataFrame:
    """Where each tile of a probe comes from.

    Parameters
    ----------
    images : xarray.DataArray
        What `load` returned, or a selection of it along `image`.

    Returns
    -------
    pandas.DataFrame
        One row a tile, in the order of the tiles; the columns are the coordinates along `image` that `load` describes.

    Raises
    ------
    TypeError
        No DataArray.
    ValueError
        `images` lacks one of these coordinates.

    Examples
    --------
    >>> manifest(load("rooms", n_images=2, size=16))["side"].tolist()
    [16, 16]
    """
    missing = [name for name in PROVENANCE if name not in labels.named(images, "images").coords]
    if missing:
        raise ValueError(f"images lack {', '.join(missing)}: pass what probe.load returned, or a selection of it")
    return pd.DataFrame({name: np.atleast_1d(images[name].values) for name in PROVENANCE})


def photographs(collection: str | None = None) -> pd.DataFrame:
    """Table of the photographs that ship in installed packages; no file is opened.

    Parameters
    ----------
    collection : str, optional
        ``"indoor"`` or ``"photos"``; all of them when None.

    Returns
    -------
    pandas.DataFrame
        One row a photograph: `collection`, `package`, `version`, `file` (path in the package), `sha256`, `width` and
        `height` in pixels, `licence`, `author` (empty where not stated), `label` (ImageNet class 0 to 999, or -1),
        `label_name` and `note`.

    Raises
    ------
    ValueError
        Unknown collection.
    FileNotFoundError
        The table is not there.

    Examples
    --------
    >>> len(photographs("photos"))
    27
    """
    table = _table()
    if collection is None:
        return table
    labels.choice(collection, "collection", table["collection"].unique())
    return table[table["collection"] == collection].reset_index(drop=True)


def photograph(file: str, folder: str | Path | None = None) -> np.ndarray:
    """One whole photograph, from an installed package or from a folder.

    Parameters
    ----------
    file : str
        A `file` of `photographs`, or only its last part, e.g. ``"astronaut.png"``; in a folder, the path below it.
    folder : str or Path, optional
        Where to look instead of the installed packages: the `package` of a tile that ``"folder:PATH"`` gave.

    Returns
    -------
    numpy.ndarray
        (height, width, 3), float32 in [0, 1], RGB, the right way up.

    Raises
    ------
    ValueError
        No such photograph in the table, the installed file is not the one in the table, or it cannot be decoded.
    FileNotFoundError
        The package is not installed; the message gives the command. Or there is no such file in the folder.

    Examples
    --------
    >>> photograph("astronaut.png").shape
    (512, 512, 3)
    """
    if folder is not None:
        path = Path(folder) / file
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {path}")
        return _rgb(np.asarray(_read(path, 1)))
    table = _table()
    match = table[(table["file"] == file) | (table["file"].str.rsplit("/").str[-1] == file)]
    if len(match) != 1:
        names = ", ".join(name.rsplit("/")[-1] for name in table["file"])
        raise ValueError(f'no photograph "{file}": choose one of {names}')
    row = match.iloc[0]
    return _rgb(np.asarray(_read(shared.find(row.package, row.file, row.sha256, row.version), 1)))


def _table():
    """The table of photographs, every cell of text a string."""
    if not TABLE.is_file():
        raise FileNotFoundError(f"{TABLE} is missing: install the package from its checkout with pip install -e .")
    return pd.read_csv(TABLE, keep_default_na=False)


def _folder(folder):
    """Table of a folder's images, sorted by relative name, with the columns that `load` needs; and what is left out."""
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"no folder {folder}: check the path after folder:")
    files, left_out = [], []

    def unreadable(error):
        if error.filename == str(folder):
            raise PermissionError(f"the folder {folder} cannot be read ({error.strerror}): change its permissions")
        left_out.append(f"{error.filename} cannot be read ({error.strerror})")

    for place, folders, names in os.walk(folder, onerror=unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        links = [path for path in (os.path.join(place, name) for name in folders) if os.path.islink(path)]
        left_out += [f"{path} is a link to a folder: name that folder itself" for path in links]
        for name in names:
            if name.startswith(".") or not name.lower().endswith(SUFFIXES):
                continue
            if os.path.isfile(path := os.path.join(place, name)):
                files.append(Path(path).relative_to(folder).as_posix())
            else:
                left_out.append(f"{path} is no regular file")
    if not files:
        raise ValueError(
            f"no images in {folder}: looked for {', '.join(SUFFIXES)} in it and in the folders below it"
            + "; left out: " * bool(left_out)
            + "; ".join(left_out[:20])
        )
    table = pd.DataFrame({"file": sorted(files)})
    return table.assign(package=str(folder), sha256="", licence="not stated", author="", label=-1), left_out


def _shuffled(count, seed):
    """The numbers below `count` in a random order that depends on the seed alone."""
    generator = np.random.Generator(np.random.PCG64(seed))
    return np.argsort(generator.random(count), kind="stable").tolist()


def _read(path, size):
    """Decode an image: Pillow, mode RGB, or F with grey values of 0 to 255 for 16 bits, upright, opaque."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            shorter = min(image.size)
            if shorter >= size:
                image.load()
                upright = ImageOps.exif_transpose(image)
                return _plain(upright)
    except UnidentifiedImageError as error:
        raise _Unreadable(f"{path} is no {', '.join(FORMATS)} file, or its beginning is damaged") from error
    except Exception as error:  # Pillow raises a dozen unrelated types for damaged files
        raise _Unreadable(f"{path} cannot be read ({error})") from error
    raise _Unreadable(
        f"{path} is {shorter} pixels at its shorter side: choose size up to {shorter}, or remove the file"
    )


def _plain(image):
    """Bring any of Pillow's modes to RGB, or to F with grey values of 0 to 255 for 16 bits."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        grey = np.asarray(image).astype(np.float32)
        if grey.min() < 0 or grey.max() > 65535:
            raise ValueError(f"grey values from {grey.min():.0f} to {grey.max():.0f}: more than 16 bits")
        return Image.fromarray(grey / np.float32(257))
    if image.mode == "F":
        raise ValueError("floating-point pixels have no agreed white: convert the file to 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _rgb(pixels):
    """(..., 3) or grey (...) array of 0 to 255, as float32 RGB in [0, 1]."""
    if pixels.ndim == 2:
        pixels = np.stack([pixels] * 3, axis=-1)
    return np.clip(pixels.astype(np.float32) / 255, 0, 1)


def _grid(width, height, size):
    """Crop boxes (left, top, side) of the tiles of one photograph, row by row."""
    side = min(max(CROP, size), width, height)
    columns, rows = width // side, height // side
    left, top = (width - columns * side) // 2, (height - rows * side) // 2
    return [(left + column * side, top + row * side, side) for row in range(rows) for column in range(columns)]


def _centre(width, height):
    """Crop box (left, top, side) of the largest square in the middle."""
    side = min(width, height)
    return (width - side) // 2, (height - side) // 2, side


def _tiles(locate, row, size, crop, seed, batch):
    """Textured tiles of one photograph in random order, as (left, top, side, pixels, hash).

    The photograph is opened when the first tile is asked for, and again after every `batch` tiles: decoded photographs
    are too large to keep, and decoding them for every tile would be slow.
    """
    boxes = None
    while boxes is None or boxes:
        image = _read(locate(row), size)
        if boxes is None:
            grid = _grid(*image.size, size) if crop == "tiles" else [_centre(*image.size)]
            boxes = [grid[k] for k in _shuffled(len(grid), seed)]
        found = []
        while boxes and len(found) < batch:
            left, top, side = boxes.pop(0)
            tile = image.crop((left, top, left + side, top + side))
            if _texture(tile) >= TEXTURE:
                pixels = np.asarray(tile.resize((size, size), Image.Resampling.BOX))
                found.append((left, top, side, pixels, _difference_hash(tile)))
        del image
        yield from found


def _grey(crop, width, height):
    """Grey values in [0, 1] of a crop brought to height x width."""
    return np.asarray(crop.resize((width, height), Image.Resampling.BOX).convert("L"), np.float32) / 255


def _texture(crop):
    """Mean grey step between neighbouring pixels of a crop brought to 32 x 32."""
    grey = _grey(crop, 32, 32)
    return float(np.abs(np.diff(grey, axis=0)).mean() + np.abs(np.diff(grey, axis=1)).mean()) / 2


def _difference_hash(crop):
    """128 bits: is the next of 8 x 8 coarse pixels brighter, to the right and downwards."""
    right = np.diff(_grey(crop, 9, 8), axis=1) > 0
    down = np.diff(_grey(crop, 8, 9), axis=0) > 0
    return np.concatenate([right.ravel(), down.ravel()])


def _duplicate(code, codes):
    """Whether a hash is within DUPLICATE bits of one of the hashes (tile, bit)."""
    return bool((np.count_nonzero(codes != code, axis=1) <= DUPLICATE).any())
