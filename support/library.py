"""A library of models as an index that grows and shrinks model by model, and the random projection it may keep."""

import importlib
import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import xarray as xr
from scipy import sparse

from support import directions, labels

HASHES = 8  # projections of a sketch that look at one and the same value of a map


class ModelSpace:
    """A library of models as an index: insert, remove, look up the nearest; nothing is computed twice.

    A model is one long unit vector: each of its maps divided by its length, all laid in a row, over √(number of maps).
    The product of two such vectors is the mean cosine of their maps, `affinity`. An insertion takes one pass over the
    maps of that model and one product with each of the others.

    With `sketch`, a random projection of the vector is kept instead of the vector, and no matrix: each model takes
    4 · sketch bytes, 1 − affinity is right up to a standard error of √(2 / sketch) of itself (see `sketch` and
    `sketch_size`), and neighbours are searched by faiss, which the optional requirement ``index`` installs.

    Parameters
    ----------
    channels : {"mean", "keep"}, default "mean"
        As for `affinity`.
    sketch : int, optional
        Dimensions to project to, a multiple of 8. By default none: whole vectors, exact affinities.
    seed : int, default 0
        Of the projection.

    Raises
    ------
    TypeError, ValueError
        Other channels, `sketch` is not a positive multiple of 8, or the seed no whole number from 0.
    ImportError
        A sketch was asked for and faiss is not installed; the message gives the command.

    Examples
    --------
    >>> index = ModelSpace()
    >>> index.insert("a", xr.DataArray([[[1.0, 0.0]]], dims=("image", "y", "x")))
    >>> index.insert("b", xr.DataArray([[[3.0, 4.0]]], dims=("image", "y", "x")))
    >>> index.neighbours("a").round(6).to_dict()
    {'b': 0.6}
    """

    def __init__(self, channels: str = "mean", sketch: int | None = None, seed: int = 0) -> None:
        self.channels = labels.choice(channels, "channels", ("mean", "keep"))
        self.sketch, self.seed = sketch, labels.count(seed, "seed", 0)
        self._names: list[str] = []
        self._places: dict[str, int] = {}  # of each name in the list
        self._probe = None  # labels and attributes of the maps, the same for all models
        self._vectors: list[np.ndarray] = []
        self._affinity = np.empty((0, 0))
        if sketch is not None:
            self.sketch = _multiple(sketch, "sketch", HASHES)
            self._index = _faiss().IndexFlatL2(self.sketch)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: str) -> bool:
        return name in self._places

    @property
    def models(self) -> list[str]:
        """Names of the models, in the order of insertion."""
        return list(self._names)

    def insert(self, name: str, maps: xr.DataArray) -> None:
        """Add a model.

        Parameters
        ----------
        name : str
            Not in the space yet.
        maps : xarray.DataArray
            Its maps, (image, y, x), or with the axes reference and channel as for `affinity`, or with a model axis of
            length one; of the same images as those of the first model. Read in blocks of images.

        Raises
        ------
        TypeError
            The name is no text, or the maps are no DataArray of real numbers.
        ValueError
            The name is taken, the maps are of other images, another size or another method than those of the models
            there, or as for `affinity`. The space is as before then.
        """
        self._free([name])
        vector, probe = self._vector(name, maps)
        if self.sketch is None:
            column = self._products(vector)
            self._affinity = np.block([[self._affinity, column[:, None]], [column, np.ones(1)]])
            self._vectors.append(vector)
        else:
            self._index.add(vector[None])
        self._named([name])
        self._probe = self._probe or probe

    def insert_sketches(self, names: Sequence[str], sketches: np.ndarray) -> None:
        """Add many models whose sketches were made elsewhere: `sketch` of their unit vectors, same size and seed.

        Parameters
        ----------
        names : sequence of str
            Distinct, none in the space yet.
        sketches : array
            (model, sketch), as `sketches` returns them.

        Raises
        ------
        TypeError
            A name that is no text, or sketches that are no real numbers.
        ValueError
            The space has no sketches, a name is taken or given twice, another shape, or values that are not finite.
        """
        names = list(names)
        if self.sketch is None:
            raise ValueError("this space keeps whole maps: make it with sketch=SIZE")
        self._free(names)
        points = _single(sketches, "sketches")
        if points.shape != (len(names), self.sketch):
            raise ValueError(f"expected sketches of the shape ({len(names)}, {self.sketch}), got {points.shape}")
        labels.finite(points, "sketch", {"model": names, "number": None})
        self._index.add(points)
        self._named(names)

    def sketches(self) -> np.ndarray:
        """The sketches of all models, (model, sketch), float32.

        Raises
        ------
        ValueError
            The space keeps whole maps.
        """
        if self.sketch is None:
            raise ValueError("this space keeps whole maps: make it with sketch=SIZE")
        return self._index.reconstruct_n(0, len(self)) if self._names else np.empty((0, self.sketch), np.float32)

    def remove(self, name: str) -> None:
        """Take a model out; what is left is as if it had never been there.

        Parameters
        ----------
        name : str

        Raises
        ------
        KeyError
            No such model.
        """
        place = self._place(name)
        if self.sketch is None:
            self._affinity = np.delete(np.delete(self._affinity, place, 0), place, 1)
            del self._vectors[place]
        else:
            self._index.remove_ids(np.array([place]))
        names = self._names[:place] + self._names[place + 1 :]
        self._names, self._places = [], {}
        self._named(names)
        self._probe = self._probe if self._names else None

    def affinity(self) -> xr.DataArray:
        """Mean cosine similarity of every two models.

        Returns
        -------
        xarray.DataArray
            float64, (source, target), in [−1, 1], symmetric, 1 on the diagonal: `affinity` of all maps together, or its
            estimate from the sketches, with ``attrs["relative_error"]``, the standard error of 1 − affinity over
            itself. Of sketches the matrix is made anew, with models² · 8 bytes.
        """
        if self.sketch is None:
            return directions.matrix(self._affinity.copy(), self.models, "affinity", self.channels)
        points = self.sketches().astype(np.float64)
        squares = (points**2).sum(1)
        values = np.clip(1 - (squares[:, None] + squares) / 2 + points @ points.T, -1, 1)
        np.fill_diagonal(values, 1.0)
        result = directions.matrix(values, self.models, "affinity", self.channels)
        result.attrs |= {"sketch": self.sketch, "relative_error": float(np.sqrt(2 / self.sketch))}
        return result

    def neighbours(self, model: str | xr.DataArray, k: int = 10) -> pd.Series:
        """The models nearest to one, from near to far.

        Parameters
        ----------
        model : str or xarray.DataArray
            A model of the space, which is left out of the answer, or the maps of any model, as for `insert`.
        k : int, default 10
            How many.

        Returns
        -------
        pandas.Series
            Affinity, by name; ties in the order of insertion. Shorter where there are fewer models.

        Raises
        ------
        TypeError, ValueError
            k is not a positive whole number, or as for `insert`.
        KeyError
            No such model.
        """
        k = labels.count(k, "k")
        itself = self._place(model) if isinstance(model, str) else None
        if self.sketch is None:
            products = self._affinity[itself] if itself is not None else self._products(self._vector("", model)[0])
            order = np.argsort(-products, kind="stable")
            values = products[order]
        else:
            query = self._index.reconstruct(itself) if itself is not None else self._vector("", model)[0]
            most = min(k + (itself is not None), len(self))
            squares, order = self._index.search(query[None], max(most, 1))
            values, order = np.clip(1 - squares[0] / 2, -1, 1), order[0]
        kept = (order != itself) & (order >= 0)  # faiss fills up with −1
        names = [self._names[place] for place in order[kept][:k]]
        return pd.Series(
            values[kept][:k].astype(np.float64), pd.Index(names, name="model", dtype=object), name="affinity"
        )

    def _place(self, name):
        if name not in self._places:
            raise KeyError(f"there is no model {name!r} in this space of {len(self)}")
        return self._places[name]

    def _free(self, names):
        """Make sure that models may be given these names."""
        for name in names:
            if not isinstance(name, str):
                raise TypeError(f"the name of a model is {name!r}: give a text")
            if name in self._places:
                raise ValueError(f"there is a model {name!r} already: remove it first, or choose another name")
        if len(set(names)) < len(names):
            raise ValueError("a name is given twice")

    def _named(self, names):
        self._places.update(zip(names, range(len(self._names), len(self._names) + len(names)), strict=True))
        self._names += names

    def _products(self, vector):
        """Affinity of a vector (map, values) with every model, each map's cosine in float32, their mean in float64."""
        return np.array([np.clip(np.vecdot(other, vector), -1, 1).mean(dtype=np.float64) for other in self._vectors])

    def _vector(self, name, maps):
        """Unit maps (map, values) of a model, or their sketch; and what the maps of other models have to agree in."""
        if isinstance(maps, xr.DataArray) and "model" not in maps.dims:
            maps = maps.drop_vars("model", errors="ignore").expand_dims(model=[name])
        maps = directions.checked(maps, self.channels)
        if maps.sizes["model"] != 1:
            raise ValueError(f"these are the maps of {maps.sizes['model']} models: insert one at a time")
        sizes = {axis: size for axis, size in maps.sizes.items() if self.channels == "keep" or axis != "channel"}
        probe = {"sizes": sizes, "image": list(maps.image.values)}
        probe["method"] = str(maps.attribution.item()) if "attribution" in maps.coords else None
        probe["probe_sha256"] = maps.attrs.get("probe_sha256")
        for what, value in (self._probe or probe).items():
            if probe[what] != value:
                shown = "" if what == "image" else f": {probe[what]}, not {value}"
                raise ValueError(f"the maps of {name or 'this model'} have another {what} than those there{shown}")
        blocks = directions.blocks(maps, self.channels)
        units = [directions.unit(points, [name or "given"], images) for images, points in blocks]
        vector = np.concatenate([block.reshape(-1, block.shape[-1]) for block in units])
        if self.sketch is None:
            return vector, probe
        vector /= np.sqrt(np.float32(len(vector)))
        return sketch(vector.ravel(), self.sketch, self.seed), probe


def sketch(points: np.ndarray, size: int, seed: int = 0, hashes: int = HASHES) -> np.ndarray:
    """Random projection of points to fewer dimensions, which nearly keeps their distances.

    Every value is added, with a random sign, to one of size / hashes numbers, drawn at random; that is done `hashes`
    times over with fresh draws, and the results, divided by √hashes, are laid in a row (Kane and Nelson, "Sparser
    Johnson-Lindenstrauss transforms", Journal of the ACM 61, 2014, the block construction). With ``hashes=size`` it is
    the dense matrix of random signs of Achlioptas (2003), with ``hashes=1`` feature hashing (Weinberger et al. 2009).

    For any x and y, ‖S x − S y‖² has the expectation ‖x − y‖² and a standard deviation of at most √(2 / size) of it,
    whatever `hashes` is.

    Parameters
    ----------
    points : array
        (point, value) or (value,), real numbers within the range of float32.
    size : int
        Dimensions of the result, a multiple of `hashes`.
    seed : int, default 0
        The same seed, the same projection: only sketches of one seed and one number of values can be compared.
    hashes : int, default 8
        How many numbers of the sketch each value is added to. More cost time and guard against points of which a few
        values hold nearly all.

    Returns
    -------
    numpy.ndarray
        float32, (point, size) or (size,). Linear in `points`.

    Raises
    ------
    TypeError
        Points that are no real numbers, or an argument that is no whole number.
    ValueError
        Size no positive multiple of `hashes`, a negative seed, another number of axes, or a value that is not finite in
        float32; it is named.

    Examples
    --------
    >>> sketch(np.eye(1000)[:2], 64).shape
    (2, 64)
    """
    hashes, seed = labels.count(hashes, "hashes"), labels.count(seed, "seed", 0)
    size = _multiple(size, "size", hashes)
    points = _single(points, "points")
    if points.ndim not in (1, 2) or not points.shape[-1]:
        raise ValueError(f"points have the shape {points.shape}, expected (point, value) or (value,)")
    labels.finite(points, "value", dict.fromkeys(("point", "value")[-points.ndim :]))
    n_values = points.shape[-1]
    width = size // hashes
    parts = []
    for number in range(hashes):
        rng = np.random.default_rng([seed, number])
        signs = 2 * rng.integers(0, 2, n_values, np.int8).astype(np.float32) - 1
        places = rng.integers(0, width, n_values, np.int32)
        matrix = sparse.csc_array((signs, places, np.arange(n_values + 1)), shape=(width, n_values))
        parts.append(matrix @ points.T)
    return np.concatenate(parts).T / np.float32(np.sqrt(hashes))


def sketch_size(n_models: int, error: float, failure: float = 0.01) -> int:
    """Dimensions that a sketch needs for 1 − affinity of every two models to be right up to a factor of 1 ± error.

    Johnson and Lindenstrauss's lemma with Achlioptas's constants ("Database-friendly random projections", Journal of
    Computer and System Sciences 66, 2003): for one pair a dense sketch is off by more than that with a probability of
    at most 2 exp(−size (error² / 4 − error³ / 6)), and the probabilities of all pairs are added. 1 − affinity is half
    the squared distance. The size depends neither on the number of images nor on that of pixels. The lemma is proved
    for ``hashes=size``; that fewer hashes keep to it is an observation, on random maps, which the tests repeat.

    Parameters
    ----------
    n_models : int
        At least two.
    error : float
        In (0, 1).
    failure : float, default 0.01
        Probability, in (0, 1), that any pair is off by more.

    Returns
    -------
    int
        A multiple of `HASHES`.

    Raises
    ------
    TypeError, ValueError
        An argument of another type or out of range.

    Examples
    --------
    >>> sketch_size(1000, error=0.2)
    2128
    """
    n_models = labels.count(n_models, "n_models", 2)
    error, failure = labels.share(error, "error"), labels.share(failure, "failure")
    log_of_pairs = math.log(n_models) + math.log(n_models - 1) - math.log(failure)  # of 2 · pairs / failure
    size = log_of_pairs / (error**2 / 4 - error**3 / 6)
    return int(-(-size // HASHES)) * HASHES


def _multiple(size, name, hashes):
    """A positive multiple of `hashes`."""
    if labels.count(size, name, -math.inf) < 1 or size % hashes:
        raise ValueError(f"{name} is {size}: choose a positive multiple of {hashes}")
    return int(size)


def _single(values, name):
    """Real numbers as contiguous float32, infinite where they are beyond its range."""
    if getattr(values, "dtype", None) != np.float32:
        values = labels.real(values, name)
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(values, np.float32)


def _faiss():
    try:
        return importlib.import_module("faiss")
    except ImportError as error:
        raise ImportError('sketches are searched by faiss: install it with pip install "faiss-cpu>=1.12"') from error
