"""Maps on disk, in Zarr: written block by block as they are computed, resumable, a group a model; read lazily."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import urllib.parse
import warnings
from pathlib import Path

import filelock
import numpy as np
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

BLOCK = 2**22  # values of one method's maps that are computed and marked as done together
CHUNK = 2**19  # values in a file of the store: what reading one image costs
VERSION = 2  # of what the SHA-256 of an encoder covers and how a store is laid out; others are not read
DRAFT = ".draft_"  # how the names of folders begin that are made or removed, or needed only while a run lasts
_FAILURES = {
    getattr(errno, "EDQUOT", errno.ENOSPC): "the disk quota is used up",  # Windows has no such number
    errno.ENOSPC: "the disk is full",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "no permission to write there",
    errno.EPERM: "no permission to write there",
    errno.ENOTDIR: "a file is where a folder should be",
    errno.EEXIST: "a file is where a folder should be",
}


def open(path, models=None):
    """The maps of a store, read from disk only where and when they are used.

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
        it block by block; `.load()` reads all of it.

    Raises
    ------
    FileNotFoundError
        There is no store.
    ValueError
        The folder holds something else.
    KeyError
        A model that the store does not hold, or not completely; the message says which there are.

    Warns
    -----
    UserWarning
        Models left out because their run was interrupted.
    """
    there = _Store(path)
    names = there.models()
    complete = [name for name in names if not there.missing(name)]
    if models is None:
        models, partly = complete, sorted(set(names) - set(complete))
        if partly:
            warnings.warn(f"{there.path}: left out are models whose run was interrupted: {partly}", stacklevel=2)
    absent = [name for name in models if name not in complete]
    if absent:
        raise KeyError(f"{there.path} does not hold the maps of {absent}, or not all of them; it holds {complete}")
    maps = there.array(models)
    return maps if maps.sizes["attribution"] > 1 else maps.isel(attribution=0)


def append(path, encoders, images, **settings):
    """Add models to a store, with the method and the options that it was made with.

    Parameters
    ----------
    path : str or Path
        A store.
    encoders : Encoder or sequence of Encoder
        Networks; what the store already has of them is not computed again.
    images : xarray.DataArray
        The probe images that the store was made with.
    **settings
        `device`, `batch_size`, `progress` or `client` of `attribution.attribute`.

    Returns
    -------
    xarray.DataArray
        The whole store, as `open` gives it.

    Raises
    ------
    FileNotFoundError, ValueError, OSError, MemoryError
        As `open` and `attribution.attribute`.
    """
    from support import attribution

    header = _Store(path).header
    attribution.attribute(encoders, images, header["methods"], out=path, **header["options"], **settings)
    return open(path)


def delete(path, model):
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
    """
    there = _Store(path)
    with there.lock():
        if model not in there.models():
            raise KeyError(f"{there.path} has no model {model!r}; it has {there.models()}")
        draft = there.path / (DRAFT + there.folder(model).name)
        with told(there.path):
            os.rename(there.folder(model), draft)
            shutil.rmtree(draft)


def encoder_sha256(encoder):
    """SHA-256 of what an encoder computes with, so far as it can be read off: to tell networks of one name apart.

    It covers the modules as they print, all parameters and buffers, the preprocessing, and of a function that gives
    the representation the name, the source, and what is bound to it: numbers, strings, arrays, other functions, and
    the attributes of the object that it is or whose method it is, such as the name of a layer. It does not cover the
    code of a module's `forward`.

    Parameters
    ----------
    encoder : Encoder
        On any device.

    Returns
    -------
    str
        64 hexadecimal digits.
    """
    return encoder.fingerprint()


def header(methods, options, images, references, attrs):
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
            "format": "attribution maps",
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


def create(path, header):
    """Make a store, or find one that holds the same.

    Parameters
    ----------
    path : str or Path
        Folder; made with those above it, unless it is there.
    header : dict
        As the function `header` gives it.

    Returns
    -------
    _Store

    Raises
    ------
    ValueError
        The folder holds something else, or maps of other images, other methods or with other options.
    OSError
        It cannot be made or written to.
    """
    import zarr

    path = Path(path)
    if not (path / "zarr.json").exists():
        with told(path):
            path.mkdir(parents=True, exist_ok=True)
        with _locked(path), told(path):
            for rest in path.glob("zarr.*.partial"):
                rest.unlink(missing_ok=True)
            if not (path / "zarr.json").exists():
                strangers = [p.name for p in path.iterdir() if p.name != ".lock"]
                if strangers:
                    raise ValueError(
                        f"{path} is no store of maps and not empty ({strangers[0]}): choose another folder"
                    )
                zarr.create_group(path, attributes=header)
    there = _Store(path)
    there.check(header)
    return there


class _Store:
    """A folder: a Zarr group whose attributes are the header, in it a group a model with the arrays map and scale.

    map is float16, (attribution, image, …), each map divided by a power of two such that its largest absolute value
    lies in [2¹⁴, 2¹⁵); scale, float32, is that power. Dividing by it costs no digit, half precision then keeps 11
    binary digits of all values down to 2⁻²⁹ of the largest, and no map is too small or too large. The chunk of scale
    is written after those of map: where it is, the block is complete. Nothing is compressed (the maps of real networks
    shrink by a tenth only), so that the bytes depend on no version of a library.
    """

    def __init__(self, path):
        self.path = Path(path)
        try:
            text = (self.path / "zarr.json").read_text()
        except (FileNotFoundError, NotADirectoryError):
            raise FileNotFoundError(
                f"{path} is no store of maps: attribution.attribute(..., out={str(path)!r}) makes one"
            ) from None
        self.header = json.loads(text).get("attributes", {})
        if (self.header.get("format"), self.header.get("version")) != ("attribution maps", VERSION):
            raise ValueError(f"{path} is a Zarr folder, but no store of maps that this version can read")
        coords = {n: np.asarray(v, dtype) for n, (dtype, v) in self.header["coords"].items()}
        sizes = {"attribution": len(self.header["methods"]), "image": len(coords["image"])}
        if len(coords["reference"]):
            sizes["reference"] = len(coords["reference"])
        sizes |= dict(zip(("y", "x"), self.header["size"], strict=True))
        if self.header["options"]["channels"] == "keep":
            sizes["channel"] = 3
        self.sizes = sizes  # of one model's maps
        self.coords = {"attribution": self.header["methods"]} | {n: v for n, v in coords.items() if n in sizes}
        self.blocks = [
            slice(start, min(start + self.header["block"], sizes["image"]))
            for start in range(0, sizes["image"], self.header["block"])
        ]

    def check(self, header):
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

    def folder(self, name):
        """Where a model's group is: its name, with what file systems do not allow written as %XX."""
        quoted = urllib.parse.quote(name, safe="")
        return self.path / (f"%{ord(quoted[0]):02X}{quoted[1:]}" if quoted[0] in "._" else quoted)

    def models(self):
        """Sorted names of the models, complete or not."""
        folders = (p.name for p in self.path.iterdir() if not p.name.startswith(".") and (p / "zarr.json").exists())
        return sorted(urllib.parse.unquote(name) for name in folders)

    def missing(self, name):
        """Blocks of images of a model that are not complete, as slices."""
        key = "c.0.{}" + ".0" * ("reference" in self.sizes)
        scale = self.folder(name) / "scale"
        return [block for i, block in enumerate(self.blocks) if not (scale / key.format(i)).exists()]

    def check_encoder(self, name, sha256):
        """Refuse an encoder that is not the one whose maps are there."""
        file = self.folder(name) / "zarr.json"
        if file.exists():
            found = json.loads(file.read_text())["attributes"]
            if found != {"model": name, "encoder_sha256": sha256}:
                raise ValueError(
                    f"{self.path} holds maps of another encoder that is called {found['model']} too: SHA-256 "
                    f"{found['encoder_sha256'][:12]}… there, {sha256[:12]}… here. Rename one, choose another folder, "
                    f"or store.delete({str(self.path)!r}, {name!r})"
                )

    @contextlib.contextmanager
    def lock(self):
        """Be the only one who writes, wait for it where another process does; clear away what a killed one left."""
        with _locked(self.path):
            with told(self.path):
                for draft in self.path.glob(DRAFT + "*"):
                    shutil.rmtree(draft)
            yield

    def begin(self, name, sha256):
        """Make a model's group, or clear away what a killed process left in it.

        Workers of a caller that was killed may still be writing: a file of theirs may get its name, and so be gone.
        """
        import zarr

        self.check_encoder(name, sha256)
        folder = self.folder(name)
        with told(self.path):
            for rest in folder.rglob("*.partial"):
                rest.unlink(missing_ok=True)
            if folder.exists():
                return
            draft = self.path / (DRAFT + folder.name)
            group = zarr.create_group(draft, attributes={"model": name, "encoder_sha256": sha256})
            plain = {"fill_value": np.nan, "compressors": None, "filters": None}
            plain["chunk_key_encoding"] = {"name": "default", "separator": "."}
            maps, counted = tuple(self.sizes), self._counted()
            group.create_array(
                "map",
                shape=tuple(self.sizes.values()),
                chunks=(1, self.header["chunk"], *list(self.sizes.values())[2:]),
                dtype="float16",
                dimension_names=maps,
                **plain,
            )
            group.create_array(
                "scale",
                shape=tuple(self.sizes[d] for d in counted),
                chunks=(self.sizes["attribution"], self.header["block"], *(self.sizes[d] for d in counted[2:])),
                dtype="float32",
                dimension_names=counted,
                **plain,
            )
            os.rename(draft, folder)

    def write(self, name, block, maps):
        """Write one block of a model, (attribution, image, …) as float32, and mark it as complete."""
        axes = tuple(range(len(self._counted()), maps.ndim))
        largest = np.abs(maps).max(axes, keepdims=True)
        exponent = np.where(np.isfinite(largest) & (largest > 0), np.frexp(largest)[1] - 15, 0)
        exponent = np.maximum(exponent, -126)  # the smallest normal float32
        with told(self.path), np.errstate(over="ignore"):  # infinite stays infinite
            self._array(name, "map", "r+")[:, block] = np.ldexp(maps, -exponent).astype(np.float16)
            scale = np.ldexp(np.float32(1), exponent.squeeze(axes)).astype(np.float32)
            self._array(name, "scale", "r+")[:, block] = scale

    def read(self, name, key, values):
        """Fill an array with the float32 maps of one model, for an outer index (attribution, image, …)."""
        scale = self._array(name, "scale", "r").oindex[key[: len(self._counted())]]
        maps = self._array(name, "map", "r").oindex[key]
        np.multiply(maps, scale.reshape(*scale.shape, *[1] * (maps.ndim - scale.ndim)), out=values)

    def shape(self, block):
        """Of one model's maps of a block of images."""
        return tuple(block.stop - block.start if d == "image" else n for d, n in self.sizes.items())

    def array(self, models):
        """Maps of some models, (attribution, model, image, …), not read yet."""
        coords = self.coords | {"model": list(models)}
        data = _Lazy(self, list(models))
        variable = xr.Variable(data.dims, indexing.LazilyIndexedArray(data))
        return xr.DataArray(variable, coords, name="map", attrs=self.header["attrs"])

    def _counted(self):
        return tuple(d for d in ("attribution", "image", "reference") if d in self.sizes)

    def _array(self, name, what, mode):
        import zarr

        return zarr.open_array(self.folder(name) / what, mode=mode, config={"write_empty_chunks": True})


class _Lazy(BackendArray):
    """(attribution, model, image, …) of a store, for xarray to index before anything is read."""

    def __init__(self, store, models):
        self.store, self.models, self.dtype = store, models, np.dtype(np.float32)
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
            self.store.read(self.models[m], tuple(key), values[:, i])
        return values.squeeze(single)


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
def told(path):
    """Say of an error of the file system what it means for the store."""
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
