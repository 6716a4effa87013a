"""Maps on disk: written block by block as they are computed, resumable, a folder a model; read lazily and checked.

A store is a Zarr group (format 3) that any reader of Zarr can open. It is written here and not by a library, because
the order counts in which bytes reach the disk: nothing is called finished that a loss of power could still take away.
"""

import contextlib
import errno
import hashlib
import json
import math
import os
import shutil
import urllib.parse
import uuid
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import filelock
import google_crc32c
import numpy as np
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

BLOCK = 2**22  # values of one method's maps that are computed and marked as done together
CHUNK = 2**19  # values in a file of the store: what reading one image costs
FORMAT = "attribution maps"
VERSION = 3  # of how a store is laid out, and what fingerprints cover; others are not read
DRAFT = ".draft_"  # how the names of folders begin that are made or removed, or needed only while a run lasts
LONGEST = 200  # characters of a folder's name; file systems allow 255 bytes
_FAILURES = {
    getattr(errno, "EDQUOT", errno.ENOSPC): "the disk quota is used up",  # Windows has no such number
    errno.ENOSPC: "the disk is full",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "no permission to write there",
    errno.EPERM: "no permission to write there",
    errno.ENOTDIR: "a file is where a folder should be",
    errno.EEXIST: "a file is where a folder should be",
}


class Damaged(ValueError):
    """A piece of a store is not what was written there; the message names it and says what makes it again."""


def open(path: str | os.PathLike, models: Sequence[str] | None = None) -> xr.DataArray:
    """The maps of a store, read from disk only where and when they are used.

    Every piece has a checksum, which is looked at when the piece is read. An array of which a model was replaced or
    removed after it was opened is refused from then on.

    Parameters
    ----------
    path : str or Path
        Folder that `attribution.attribute(..., out=path)` made.
    models : sequence of str, optional
        Which models, in this order. By default all that are complete, sorted by name.

    Returns
    -------
    xarray.DataArray
        float32, (model, image, y, x), with the axes and attributes that `attribution.attribute` gives: "attribution"
        first where the store holds several methods, "reference" and "channel" where they are. `space.affinity` reads
        it block by block; `.load()` reads all of it. Reading raises `Damaged` where a piece is not what was written.

    Raises
    ------
    FileNotFoundError
        There is no store.
    ValueError
        The folder holds something else, or its header is damaged (`Damaged`).
    KeyError
        A model that the store does not hold, or not completely; the message says which there are.

    Warns
    -----
    UserWarning
        Models left out because their run was interrupted, or because they are damaged.

    Examples
    --------
    >>> open("nowhere")
    Traceback (most recent call last):
    FileNotFoundError: nowhere is no store of maps: attribution.attribute(..., out='nowhere') makes one
    """
    there = Store(path)
    names = there.models()
    troubles = {name: there.trouble(name) for name in names}
    complete = [name for name in names if not troubles[name]]
    if models is None:
        models = complete
        interrupted = [name for name in names if troubles[name] == "interrupted"]
        damaged = [f"{name} ({troubles[name]})" for name in names if troubles[name] not in ("", "interrupted")]
        if interrupted:
            message = f"{there.path}: left out are models whose run was interrupted: {interrupted}. {there.remedy}"
            warnings.warn(message, stacklevel=2)
        if damaged:
            message = f"{there.path}: left out are damaged models: {'; '.join(damaged)}. {there.remedy}"
            warnings.warn(message, stacklevel=2)
    absent = [name for name in models if name not in complete]
    if absent:
        why = "".join(f"; {name}: {troubles[name]}" for name in absent if troubles.get(name))
        raise KeyError(f"{there.path} does not hold the maps of {absent}, or not all of them; it holds {complete}{why}")
    maps = there.array(models)
    return maps if maps.sizes["attribution"] > 1 else maps.isel(attribution=0)


def delete(path: str | os.PathLike, model: str) -> None:
    """Remove a model's maps from a store; the others are not touched.

    Parameters
    ----------
    path : str or Path
        A store.
    model : str
        Name of the model, complete or not.

    Raises
    ------
    FileNotFoundError, ValueError
        As `open`.
    KeyError
        The store has no such model.
    OSError
        The folder cannot be written to.

    Examples
    --------
    >>> delete("nowhere", "a")
    Traceback (most recent call last):
    FileNotFoundError: nowhere is no store of maps: attribution.attribute(..., out='nowhere') makes one
    """
    there = Store(path)
    with there.lock():
        if model not in there.models():
            raise KeyError(f"{there.path} has no model {model!r}; it has {there.models()}")
        there.remove(model)


def header(methods: Sequence[str], options: dict, images: xr.DataArray, references: Sequence[int], attrs: dict) -> dict:
    """What all maps of a store have in common, as it is written into its attributes.

    Parameters
    ----------
    methods : sequence of str
        The attribution methods.
    options : dict
        The settings of `attribution.attribute` that change the maps.
    images : xarray.DataArray
        Probe images, (image, y, x, channel); read block by block.
    references : sequence of int
        Numbers of the reference images; empty without an axis "reference".
    attrs : dict
        Attributes of the array of maps.

    Returns
    -------
    dict
        Plain values, as JSON has them.

    Examples
    --------
    >>> images = xr.DataArray(np.zeros((2, 4, 4, 3), np.float32), dims=("image", "y", "x", "channel"))
    >>> header(["saliency"], {"channels": "mean"}, images, [], {})["size"]
    [4, 4]
    """
    sizes = images.sizes
    values = max(1, len(references)) * sizes["y"] * sizes["x"] * (3 if options["channels"] == "keep" else 1)
    block, chunk = (max(1, min(total // values, sizes["image"])) for total in (BLOCK, CHUNK))
    block = max(1, block // chunk) * chunk
    digest = hashlib.sha256()
    for start in range(0, sizes["image"], block):
        part = images.isel(image=slice(start, start + block)).transpose("image", "y", "x", "channel")
        digest.update(part.values.astype("<f4").tobytes())
    coords = {"image": images.image.values, "channel": images.channel.values}
    coords |= {"reference": coords["image"][np.asarray(references, int)]}
    return _plain(
        {
            "format": FORMAT,
            "version": VERSION,
            "probe_sha256": digest.hexdigest(),
            "methods": list(methods),
            "options": options,
            "size": [sizes["y"], sizes["x"]],
            "coords": {name: [str(values.dtype), values.tolist()] for name, values in coords.items()},
            "block": block,
            "chunk": chunk,
            "attrs": attrs,
        }
    )


def create(path: str | os.PathLike, header: dict) -> "Store":
    """Make a store, or find one that holds the same; a header that is lost or damaged is written again.

    Parameters
    ----------
    path : str or Path
        Folder; made with those above it, unless it is there.
    header : dict
        As the function `header` gives it.

    Returns
    -------
    Store

    Raises
    ------
    ValueError
        The folder holds something else, or maps of other images, other methods or with other options.
    OSError
        It cannot be made or written to.

    Examples
    --------
    >>> import tempfile
    >>> images = xr.DataArray(np.zeros((2, 4, 4, 3), np.float32), dims=("image", "y", "x", "channel"))
    >>> create(tempfile.mkdtemp(), header(["saliency"], {"channels": "mean"}, images, [], {})).models()
    []
    """
    path = Path(path)
    try:
        there = Store(path)
    except (FileNotFoundError, Damaged):
        with told(path):
            path.mkdir(parents=True, exist_ok=True)
        with _locked(path), told(path):
            for rest in path.glob("zarr.*.partial"):
                rest.unlink(missing_ok=True)
            _refuse_strangers(path, header)
            try:
                there = Store(path)  # another process may have made it meanwhile
            except (FileNotFoundError, Damaged):
                _put(path / "zarr.json", _group(header))
                _sync(path, path.parent)
                there = Store(path)
    there.check(header)
    return there


class Store:
    """A folder: a Zarr group whose attributes are the header, in it a group a model with the arrays map and scale.

    map is float16, (attribution, image, …), each map divided by a power of two such that its largest absolute value
    lies in [2¹⁴, 2¹⁵); scale, float32, is that power. Dividing by it costs no digit, half precision then keeps 11
    binary digits of all values down to 2⁻²⁹ of the largest, and no map is too small or too large. The chunk of scale
    is written after those of map are on the disk: where it is, the block is complete. Nothing is compressed (the maps
    of real networks shrink by a tenth only), so that the bytes depend on no version of a library. Each chunk ends with
    its CRC-32C, each header has its SHA-256.

    Parameters
    ----------
    path : str or Path
        Of a store.

    Raises
    ------
    FileNotFoundError
        There is none.
    ValueError
        The folder holds something else, or a store of another version; `Damaged`: the header is not what was written.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.remedy = f"The call that made them, attribution.attribute(..., out={str(path)!r}), computes again what is "
        self.remedy += "missing or damaged, and nothing else"
        file = self.path / "zarr.json"
        try:
            data = file.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise FileNotFoundError(
                f"{path} is no store of maps: attribution.attribute(..., out={str(path)!r}) makes one"
            ) from None
        self.header, intact = _attributes(data)
        known = self.header.get("format") == FORMAT
        if known and (intact or "sha256" not in self.header) and self.header.get("version") != VERSION:
            raise ValueError(
                f"{path} is no store of maps that this version can read: its format is version "
                f"{self.header.get('version')}, this is {VERSION}. Compute the maps again in another folder, or read "
                "them with the version of this package that wrote them"
            )
        if not intact and (known or (self.path / ".lock").exists()):
            raise Damaged(f"{file}, the header of the store, is damaged. {self.remedy}: it writes the header again")
        if not known:
            raise ValueError(f"{path} is a Zarr folder, but no store of maps that this version can read")
        self.identity = _identity(self.header)
        coords = {n: np.asarray(v, dtype) for n, (dtype, v) in self.header["coords"].items()}
        sizes = {"attribution": len(self.header["methods"]), "image": len(coords["image"])}
        if len(coords["reference"]):
            sizes["reference"] = len(coords["reference"])
        sizes |= dict(zip(("y", "x"), self.header["size"], strict=True))
        if self.header["options"]["channels"] == "keep":
            sizes["channel"] = 3
        self.sizes = sizes  # of one model's maps
        self.coords = {"attribution": self.header["methods"]} | {n: v for n, v in coords.items() if n in sizes}
        counted = [d for d in ("attribution", "image", "reference") if d in sizes]
        self.n_counted = len(counted)  # axes of scale, the first of map
        rest = tuple(list(sizes.values())[2:])
        self.chunks = {  # shape and dtype of the files of an array
            "map": ((1, self.header["chunk"], *rest), np.dtype("<f2")),
            "scale": ((sizes["attribution"], self.header["block"], *rest[: len(counted) - 2]), np.dtype("<f4")),
        }
        self.blocks = [
            slice(start, min(start + self.header["block"], sizes["image"]))
            for start in range(0, sizes["image"], self.header["block"])
        ]

    def check(self, header: dict) -> None:
        """Refuse a header that differs in anything that changes the maps."""
        mine = self.header
        different = [
            f"{what} {mine[key]} there, {header[key]} here"
            for key, what in (("methods", "methods"), ("size", "pixels of the maps"))
            if mine[key] != header[key]
        ]
        different += [
            f"{key} {mine['options'].get(key)} there, {value} here"
            for key, value in header["options"].items()
            if mine["options"].get(key) != value
        ]
        if mine["probe_sha256"] != header["probe_sha256"]:
            different.append(
                f"other probe images: SHA-256 {mine['probe_sha256'][:12]}… there, {header['probe_sha256'][:12]}… here"
            )
        elif mine["coords"] != header["coords"]:
            different.append("other names of the probe images")
        if different:
            raise ValueError(
                f"{self.path} holds other maps, which are not mixed with these: {'; '.join(different)}. "
                "Choose another folder, or remove this one"
            )

    def folder(self, name: str) -> Path:
        """Where a model's group is: its name, with what file systems do not allow written as %XX, or its SHA-256."""
        quoted = urllib.parse.quote(name, safe="", errors="surrogatepass")
        quoted = f"%{ord(quoted[0]):02X}{quoted[1:]}" if quoted[0] in "._" else quoted
        if len(quoted) > LONGEST:  # %- is in no quoted name
            digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()
            quoted = f"{quoted[: LONGEST - 66]}%-{digest}"
        return self.path / quoted

    def models(self) -> list[str]:
        """Sorted names of the models, complete or not."""
        return sorted(self._name(p) for p in self.path.iterdir() if not p.name.startswith(".") and p.is_dir())

    def _name(self, folder):
        if "%-" in folder.name:
            with contextlib.suppress(FileNotFoundError):
                return str(_attributes((folder / "zarr.json").read_bytes())[0].get("model", folder.name))
        return urllib.parse.unquote(folder.name, errors="surrogatepass")

    def mark(self, name: str) -> bytes:
        """What says which network a model's maps are of; raises `Damaged` where it is not what was written."""
        file = self.folder(name) / "zarr.json"
        try:
            data = file.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            data = b""
        found, intact = _attributes(data)
        if not intact or found.get("model") != name or found.get("store") != self.identity:
            reason = "damaged" if data else "missing"
            reason = "of another store or model" if intact else reason
            raise Damaged(f"{file}, which says whose maps are beside it, is {reason}. {self.remedy}")
        return data

    def missing(self, name: str, read: bool = False) -> list[slice]:
        """Blocks of images of a model that are not complete; with `read`, also those whose checksums are wrong."""
        return [block for block in self.blocks if self._trouble_in(name, block, read)]

    def is_complete(self, name: str, block: slice | None = None) -> bool:
        """Whether a model, or a block of it, is there as it was written; reads all of it."""
        try:
            self.mark(name)
        except Damaged:
            return False
        return not any(self._trouble_in(name, one, True) for one in ([block] if block else self.blocks))

    def trouble(self, name: str) -> str:
        """Why a model cannot be read as far as names and sizes of its files tell: "interrupted", or what is damaged."""
        try:
            self.mark(name)
        except Damaged as error:
            return str(error).split(". The call that")[0]
        return next(filter(None, (self._trouble_in(name, block, False) for block in self.blocks)), "")

    def _trouble_in(self, name, block, read):
        pieces = list(self._pieces(block))
        if not self._file(name, *pieces[-1]).exists():
            return "interrupted"
        try:
            for piece in pieces:
                self._chunk(name, *piece, read)
        except Damaged as error:
            return str(error).split(". The call that")[0]
        return ""

    def check_encoder(self, name: str, fingerprint: str) -> None:
        """Refuse an encoder that is not the one whose maps are there."""
        if not self.folder(name).exists():
            return
        try:
            found = _attributes(self.mark(name))[0]["encoder_sha256"]
        except Damaged:  # whose they are is not known: they will be made again
            return
        if found != fingerprint:
            raise ValueError(
                f"{self.path} holds maps of another encoder that is called {name} too: SHA-256 {found[:12]}… there, "
                f"{fingerprint[:12]}… here. Rename one, choose another folder, or "
                f"store.delete({str(self.path)!r}, {name!r})"
            )

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Be the only one who writes, wait for it where another process does; clear away what a killed one left."""
        with _locked(self.path):
            with told(self.path):
                for draft in self.path.glob(DRAFT + "*"):
                    shutil.rmtree(draft)
            yield

    def begin(self, name: str, fingerprint: str) -> None:
        """Make a model's group, or clear away what a killed process left in it.

        Workers of a caller that was killed may still be writing: a file of theirs may get its name, and so be gone.
        """
        self.check_encoder(name, fingerprint)
        folder = self.folder(name)
        with told(self.path):
            with contextlib.suppress(Damaged):
                self.mark(name)
                for rest in folder.rglob("*.partial"):
                    rest.unlink(missing_ok=True)
                for what in self.chunks:
                    file = folder / what / "zarr.json"
                    if not file.exists() or file.read_bytes() != self._array(what):
                        _put(file, self._array(what))
                return
            if folder.exists():
                self.remove(name)
            draft = self.path / (DRAFT + folder.name)
            for what in self.chunks:
                (draft / what).mkdir(parents=True)
                _put(draft / what / "zarr.json", self._array(what))
            _put(draft / "zarr.json", _group({"model": name, "encoder_sha256": fingerprint, "store": self.identity}))
            _sync(*(draft / what for what in self.chunks), draft)
            os.rename(draft, folder)
            _sync(self.path)

    def remove(self, name: str) -> None:
        """Take a model away, at once for all who look."""
        draft = self.path / (DRAFT + self.folder(name).name)
        with told(self.path):
            os.rename(self.folder(name), draft)
            _sync(self.path)
            shutil.rmtree(draft)

    def room(self, name: str, block: slice) -> np.ndarray:
        """Array for the maps of one block of a model, to be filled and given to `write`."""
        shape = (block.stop - block.start if d == "image" else n for d, n in self.sizes.items())
        return np.empty(tuple(shape), np.float32)

    def write(self, name: str, block: slice, maps: np.ndarray) -> None:
        """Write one block of a model, (attribution, image, …) as float32, and mark it as complete."""
        axes = tuple(range(self.n_counted, maps.ndim))
        largest = np.abs(maps).max(axes, keepdims=True)
        exponent = np.where(np.isfinite(largest) & (largest > 0), np.frexp(largest)[1] - 15, 0)
        exponent = np.maximum(exponent, -126)  # the smallest normal float32
        with told(self.path), np.errstate(over="ignore"):  # infinite stays infinite
            halves = np.ldexp(maps, -exponent).astype("<f2")
            scale = np.ldexp(np.float32(1), exponent.squeeze(axes)).astype("<f4")

            def put(piece):
                what, index = piece
                values = scale if what == "scale" else halves[index[0] : index[0] + 1]
                shape, dtype = self.chunks[what]
                start = index[1] * shape[1] - block.start
                whole = np.full(shape, np.nan, dtype)  # chunks at the end are as long as the others
                values = values[:, start : start + shape[1]]
                whole[:, : values.shape[1]] = values
                data = whole.tobytes()
                _put(self._file(name, what, index), data + google_crc32c.value(data).to_bytes(4, "little"))

            *chunks, mark = self._pieces(block)
            with ThreadPoolExecutor(8) as pool:  # who waits for the disk need not wait alone
                list(pool.map(put, chunks))
            _sync(self.folder(name) / "map")
            put(mark)
            _sync(self.folder(name) / "scale")

    def read(self, name: str, key: tuple, values: np.ndarray) -> None:
        """Fill an array with the float32 maps of one model, for an outer index (attribution, image, …)."""
        methods, images = (np.arange(n)[k] for n, k in zip(self.sizes.values(), key[:2], strict=False))
        references = key[2 : self.n_counted]
        block, chunk, zeros = self.header["block"], self.header["chunk"], [0] * (len(self.sizes) - 2)
        for b in np.unique(images // block):
            scale = self._chunk(name, "scale", (0, b, *zeros[: self.n_counted - 2]))
            for c in np.unique(images[images // block == b] // chunk):
                places = np.flatnonzero(images // chunk == c)
                inside = images[places]
                if (np.diff(inside) == 1).all():  # slices are read without a copy
                    places, inside = (slice(k[0], k[-1] + 1) for k in (places, inside))
                    local = [slice(inside.start - n, inside.stop - n) for n in (b * block, c * chunk)]
                else:
                    local = [inside - n for n in (b * block, c * chunk)]
                for i, method in enumerate(methods):
                    factors = _outer(scale[method], (local[0], *references))
                    part = self._chunk(name, "map", (method, c, *zeros))[0]
                    part = _outer(part, (local[1], *key[2:]))
                    factors = factors.reshape(*factors.shape, *[1] * (part.ndim - factors.ndim))
                    values[i, places] = part * factors

    def array(self, models: Sequence[str]) -> xr.DataArray:
        """Maps of some models, (attribution, model, image, …), not read yet."""
        coords = self.coords | {"model": list(models)}
        data = _Lazy(self, list(models))
        variable = xr.Variable(data.dims, indexing.LazilyIndexedArray(data))
        return xr.DataArray(variable, coords, name="map", attrs=self.header["attrs"])

    def _pieces(self, block):
        """Files of one block, the mark of its completeness last: ("map" or "scale", index of the chunk)."""
        chunk, zeros = self.header["chunk"], [0] * (len(self.sizes) - 2)
        for method in range(self.sizes["attribution"]):
            for c in range(block.start // chunk, -(-block.stop // chunk)):
                yield "map", (method, c, *zeros)
        yield "scale", (0, block.start // self.header["block"], *zeros[: self.n_counted - 2])

    def _file(self, name, what, index):
        return self.folder(name) / what / ".".join(map(str, ("c", *index)))

    def _chunk(self, name, what, index, read=True):
        """Values of one file; only its size is looked at without `read`."""
        (shape, dtype), file = self.chunks[what], self._file(name, what, index)
        size = math.prod(shape) * dtype.itemsize
        trouble, found, data = "is missing", None, b""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            data = file.read_bytes() if read else b""
            found = len(data) if read else file.stat().st_size
        if found is not None:
            trouble = f"has {found} bytes instead of {size + 4}" if found != size + 4 else ""
        values = np.frombuffer(
            data[:0] if trouble else data, dtype, count=0 if trouble or not read else math.prod(shape)
        )
        if read and not trouble and google_crc32c.value(values) != int.from_bytes(data[size:], "little"):
            trouble = "is damaged: its checksum is another one"
        if trouble:
            raise Damaged(f"{file} {trouble}. {self.remedy}")
        return values.reshape(shape) if read else None

    def _array(self, what):
        """Metadata of an array, as Zarr has them."""
        dims = list(self.sizes)
        shape, dtype = self.chunks[what]
        dims = dims if what == "map" else dims[: self.n_counted]
        return _json(
            {
                "shape": [self.sizes[d] for d in dims],
                "data_type": dtype.name,
                "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(shape)}},
                "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
                "fill_value": "NaN",
                "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
                "attributes": {},
                "dimension_names": dims,
                "zarr_format": 3,
                "node_type": "array",
                "storage_transformers": [],
            }
        )


class _Lazy(BackendArray):
    """(attribution, model, image, …) of a store, for xarray to index before anything is read."""

    def __init__(self, store, models):
        self.store, self.models, self.dtype = store, models, np.dtype(np.float32)
        self.marks = [store.mark(name) for name in models]
        (first, *rest), sizes = store.sizes, store.sizes
        self.dims = (first, "model", *rest)
        self.shape = (sizes[first], len(models), *(sizes[d] for d in rest))

    def __getitem__(self, key):
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._read)

    def _read(self, key):
        single = tuple(axis for axis, k in enumerate(key) if not isinstance(k, slice | np.ndarray))
        key = [slice(int(k), int(k) + 1) if axis in single else k for axis, k in enumerate(key)]
        chosen = np.arange(len(self.models))[key.pop(1)]
        lengths = [len(np.arange(n)[k]) for n, k in zip(self.store.sizes.values(), key, strict=True)]
        values = np.empty((lengths[0], len(chosen), *lengths[1:]), np.float32)
        for i, m in enumerate(chosen):
            try:
                self.store.read(self.models[m], tuple(key), values[:, i])
            finally:  # also where pieces are gone because the model is
                self._refuse_another(m)
        return values.squeeze(single)

    def _refuse_another(self, m):
        name, path = self.models[m], self.store.path
        if not self.store.folder(name).exists() or not (path / "zarr.json").exists():
            what = "removed"
        elif self.store.mark(name) != self.marks[m]:
            what = "replaced by those of another network"
        else:
            return
        raise ValueError(
            f"{path}: the maps of {name} were {what} after this array was opened: open the store again"
        ) from None


def _outer(values, key):
    """Outer index: a slice or an array of positions for each of the first axes."""
    for axis, k in enumerate(key):
        if not (isinstance(k, slice) and k == slice(None)):
            values = values[(slice(None),) * axis + (k,)]
    return values


def _json(value):
    return json.dumps(value, indent=2).encode()


def _sha256(value):
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _identity(header):
    """SHA-256 of what has to be the same for the maps of two models to be comparable."""
    return _sha256({key: value for key, value in header.items() if key not in ("attrs", "sha256")})


def _group(attributes):
    """Bytes of a Zarr group with attributes and their checksum."""
    attributes = {**attributes, "sha256": _sha256(attributes)}
    return _json({"attributes": attributes, "zarr_format": 3, "node_type": "group"})


def _attributes(data):
    """Attributes of a Zarr group, and whether they are as they were written."""
    try:
        group = json.loads(data)
        attributes = dict(group["attributes"])
    except (ValueError, KeyError, TypeError):
        return {}, False
    rest = {key: value for key, value in attributes.items() if key != "sha256"}
    intact = group == {"attributes": attributes, "zarr_format": 3, "node_type": "group"}
    return attributes, intact and attributes.get("sha256") == _sha256(rest)


def _refuse_strangers(path, header):
    """Refuse to write a header into a folder that holds anything but maps with that header."""
    for entry in path.iterdir():
        known = entry.name in (".lock", "zarr.json") or entry.name.startswith(DRAFT)
        if not known and _belongs_to(entry) != _identity(header):
            what = "no store of maps and not empty"
            if (path / "zarr.json").exists() or _belongs_to(entry):
                what = "a store of maps without an intact header (zarr.json), and holds what does not fit this call"
            raise ValueError(f"{path} is {what} ({entry.name}): choose another folder")


def _belongs_to(folder):
    """Identity of the store that a model's folder was made for; None where that cannot be told."""
    try:
        attributes, intact = _attributes((folder / "zarr.json").read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    return attributes.get("store") if intact else None


def _put(file, data):
    """Write a file that is there as a whole or not at all, and is on the disk before it has its name."""
    partial = file.with_name(f"{file.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        with partial.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, file)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _sync(*folders):
    """Have the names in folders on the disk."""
    if os.name != "nt":  # where a folder cannot be opened
        for folder in folders:
            handle = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


@contextlib.contextmanager
def _locked(path):
    lock = filelock.FileLock(path / ".lock")
    with told(path):
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            warnings.warn(f"{path} is being written by another process: waiting until it ends", stacklevel=4)
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def told(path: str | os.PathLike) -> Iterator[None]:
    """Say of an error of the file system what it means for the store.

    Parameters
    ----------
    path : str or Path
        Of the store.

    Raises
    ------
    OSError
        With the reason in words, of the same number.

    Examples
    --------
    >>> with told("maps"):  # doctest: +ELLIPSIS
    ...     raise OSError(errno.ENOSPC, "No space left on device")
    Traceback (most recent call last):
    OSError: [Errno 28] maps cannot be written: the disk is full ...
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FAILURES:
            raise
        raise OSError(
            error.errno,
            f"{path} cannot be written: {_FAILURES[error.errno]} ({error.filename or error.strerror}). What was "
            "finished stays; when that is mended, the same call goes on from there",
        ) from error


def _plain(value):
    """Value as JSON has it: numbers of NumPy become Python's, and what it has no form for a string."""
    return json.loads(json.dumps(value, default=lambda v: v.tolist() if hasattr(v, "tolist") else str(v)))
