"""Model space: a network is the point made of all its attribution maps; affinity and distance of two networks.

`affinity` compares the models of one array of maps. `ModelSpace` is a library that grows and shrinks model by model, of
whole maps or, for many thousands of models, of random projections of them (`sketch`, `sketch_size`).
"""

import importlib

import numpy as np
import pandas as pd
import xarray as xr
from scipy import sparse
from scipy.cluster.hierarchy import cophenet, linkage
from scipy.spatial.distance import squareform

VALUES_AT_ONCE = 2**24  # float32 values of maps held in memory by one step
SQUARES = (1e-24, 1e30)  # a map's sum of squares within these bounds is as exact in float32 as its values are
HASHES = 8  # projections of a sketch that look at one and the same value of a map


def affinity(maps, channels="mean"):
    """Mean cosine similarity of the attribution maps of every two models.

    Song et al. (2019), Section 3.3: (1/N_p) Σ_k cos(A_k^i, A_k^j), the reciprocal of equation (1).

    Parameters
    ----------
    maps : xarray.DataArray
        (model, image, y, x) or (model, image, y, x, channel), as `attribution.attribute` returns them, with the axis
        reference after image where an image has a map per reference image: its cosine is the mean over them. Read in
        blocks of images, so that an array on disk need not fit into memory.
    channels : {"mean", "keep"}, default "mean"
        Average the maps over their channels before the cosine (the authors' program), or take the cosine over all
        y · x · channel values (the paper's equation). "keep" needs maps that were computed with channels="keep".

    Returns
    -------
    xarray.DataArray
        float64, (source, target), in [−1, 1]: symmetric, 1 on the diagonal.

    Raises
    ------
    ValueError
        Wrong dimensions (several methods: select one), or a map that is zero everywhere or not finite; model and image
        are named.
    """
    n_images = maps.sizes.get("image", 0)
    total = sum(block.sum("image").values for block in _cosines(maps, channels))
    total = (total + total.T) / 2 / n_images
    np.fill_diagonal(total, 1.0)
    return _matrix(total, maps.model.values, "affinity", channels)


def chance(maps, channels="mean"):
    """Affinity that two models have for different images: mean cosine over all pairs of two of the images.

    What remains when it is subtracted from `affinity` is owed to both models seeing the same image. It is what the
    affinity becomes, on average, when the images of one model are shuffled so that none keeps its place.

    Parameters
    ----------
    maps, channels
        As for `affinity`; at least two images.

    Returns
    -------
    xarray.DataArray
        float64, (source, target), in [−1, 1]: symmetric; on the diagonal that of a model with itself.

    Raises
    ------
    ValueError
        Fewer than two images, or as for `affinity`.
    """
    n_images = maps.sizes.get("image", 0)
    if n_images == 1:
        raise ValueError("chance needs maps of different images: at least two")
    sums, same = 0, 0
    for _, points in _directions(maps, channels):
        sums = sums + points.sum(0, dtype=np.float64)
        same = same + (points @ points.swapaxes(2, 3)).sum((0, 1), dtype=np.float64)
    products = (sums @ sums.swapaxes(1, 2)).sum(0) - same
    mean = products / (len(sums) * n_images * (n_images - 1))
    return _matrix((mean + mean.T) / 2, maps.model.values, "affinity of different images", channels)


def cosines(maps, channels="mean"):
    """Cosine similarity of the maps of every two models, image by image.

    Parameters
    ----------
    maps, channels
        As for `affinity`, which is the mean of what this returns.

    Returns
    -------
    xarray.DataArray
        float64, (image, source, target), in [−1, 1].

    Raises
    ------
    ValueError
        As for `affinity`.
    """
    return xr.concat(list(_cosines(maps, channels)), "image")


def distance(affinity):
    """Distance of two models, equation (1) of Song et al. (2019): N_p / Σ_k cos(A_k^i, A_k^j) = 1 / affinity.

    It is no metric: a model's distance to itself is 1. Where the mean cosine is not positive, the quotient would be
    negative and sort before everything; such models are infinitely far apart here.

    Parameters
    ----------
    affinity : xarray.DataArray
        (source, target), as `affinity` returns it.

    Returns
    -------
    xarray.DataArray
        (source, target), in [1, ∞].
    """
    result = xr.where(affinity > 0, 1 / affinity.where(affinity > 0, 1), np.inf).rename("distance")
    result.attrs = affinity.attrs | {"long_name": "distance, equation (1)"}
    return result


def neighbours(affinity, k=None):
    """For every target, the other models from nearest to farthest.

    Parameters
    ----------
    affinity : xarray.DataArray
        (source, target), higher is nearer.
    k : int, optional
        How many to list; all by default.

    Returns
    -------
    pandas.DataFrame
        One row a target, columns 1 … k: names of sources, the target's own model left out. Ties keep the order of
        the sources.
    """
    sources = affinity.source.values
    rows = {}
    for target in affinity.target.values:
        order = np.argsort(-affinity.sel(target=target).values, kind="stable")
        rows[target] = [name for name in sources[order] if name != target][:k]
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.columns = range(1, table.shape[1] + 1)
    return table.rename_axis(index="target", columns="rank")


def tree(affinity):
    """Agglomerative clustering of the models: average linkage on 1 − affinity.

    1 − affinity orders pairs as equation (1) does, is 0 for identical maps and stays finite.

    Parameters
    ----------
    affinity : xarray.DataArray
        (source, target), symmetric, at least two models.

    Returns
    -------
    numpy.ndarray
        float64, (models − 1, 4): SciPy's linkage matrix.

    Raises
    ------
    ValueError
        The matrix is not square and symmetric with the same models on both axes.
    """
    values = affinity.values
    same = list(affinity.source.values) == list(affinity.target.values)
    if not same or not np.allclose(values, values.T) or len(values) < 2:
        raise ValueError("a tree needs a symmetric matrix of at least two models, the same on both axes")
    return linkage(squareform(np.clip(1 - values, 0, None), checks=False), method="average")


def cophenetic_agreement(first, second):
    """How far the trees of two matrices agree: correlation of the heights at which two models share a branch.

    Sokal and Rohlf, "The comparison of dendrograms by objective methods", Taxon 11 (1962).

    Parameters
    ----------
    first, second : xarray.DataArray
        (source, target), higher is nearer, symmetric. The models that both have are compared; at least three.

    Returns
    -------
    float
        Pearson's correlation over all pairs of models, in [−1, 1]; 1 for trees of the same shape and proportions.

    Raises
    ------
    ValueError
        Fewer than three models in common, or as for `tree`.
    """
    common = [name for name in first.source.values if name in second.source.values]
    if len(common) < 3:
        raise ValueError(f"two trees need at least three models in common, there are {len(common)}")
    heights = [cophenet(tree(matrix.sel(source=common, target=common))) for matrix in (first, second)]
    return float(np.corrcoef(heights)[0, 1])


def sketch(points, size, seed=0, hashes=HASHES):
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
        (point, value) or (value,), float.
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
    ValueError
        Size no positive multiple of `hashes`, or another number of axes.
    """
    points = np.asarray(points, np.float32)
    if hashes < 1 or size < 1 or size % hashes:
        raise ValueError(f"size is {size}: choose a positive multiple of {hashes}")
    if points.ndim not in (1, 2):
        raise ValueError(f"points have the shape {points.shape}, expected (point, value) or (value,)")
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


def sketch_size(n_models, error, failure=0.01):
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
    ValueError
        An argument out of range.
    """
    if n_models < 2 or not 0 < error < 1 or not 0 < failure < 1:
        raise ValueError(
            f"expected at least two models, error and failure between 0 and 1, got {n_models}, {error} and {failure}"
        )
    pairs = n_models * (n_models - 1) / 2
    size = np.log(2 * pairs / failure) / (error**2 / 4 - error**3 / 6)
    return int(-(-size // HASHES)) * HASHES


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
    ValueError
        `sketch` is not a positive multiple of 8.
    ImportError
        A sketch was asked for and faiss is not installed; the message gives the command.
    """

    def __init__(self, channels="mean", sketch=None, seed=0):
        self.channels, self.sketch, self.seed = channels, sketch, seed
        self._names, self._places = [], {}  # the place of each name in the list
        self._probe = None  # labels and attributes of the maps, the same for all models
        self._vectors, self._affinity = [], np.empty((0, 0))
        if sketch is not None:
            if sketch < 1 or sketch % HASHES:
                raise ValueError(f"sketch is {sketch}: choose a positive multiple of {HASHES}, or None for whole maps")
            self._index = _faiss().IndexFlatL2(sketch)

    def __len__(self):
        return len(self._names)

    def __contains__(self, name):
        return name in self._places

    @property
    def models(self):
        """Names of the models, in the order of insertion."""
        return list(self._names)

    def insert(self, name, maps):
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
        ValueError
            The name is taken, the maps are of other images, another size or another method than those of the models
            there, or as for `affinity`. The space is as before then.
        """
        if name in self._places:
            raise ValueError(f"there is a model {name!r} already: remove it first, or choose another name")
        vector, probe = self._vector(name, maps)
        if self.sketch is None:
            column = self._products(vector)
            self._affinity = np.block([[self._affinity, column[:, None]], [column, np.ones(1)]])
            self._vectors.append(vector)
        else:
            self._index.add(vector[None])
        self._named([name])
        self._probe = self._probe or probe

    def insert_sketches(self, names, sketches):
        """Add many models whose sketches were made elsewhere: `sketch` of their unit vectors, same size and seed.

        Parameters
        ----------
        names : sequence of str
            Distinct, none in the space yet.
        sketches : array
            (model, sketch), as `sketches` returns them.

        Raises
        ------
        ValueError
            The space has no sketches, a name is taken or given twice, another shape, or values that are not finite.
        """
        names, sketches = list(names), np.ascontiguousarray(sketches, np.float32)
        if self.sketch is None:
            raise ValueError("this space keeps whole maps: make it with sketch=SIZE")
        if sketches.shape != (len(names), self.sketch) or not np.isfinite(sketches).all():
            raise ValueError(f"expected finite sketches ({len(names)}, {self.sketch}), got {sketches.shape}")
        if len(set(names)) < len(names) or not self._places.keys().isdisjoint(names):
            raise ValueError("a name is given twice, or is there already")
        self._index.add(sketches)
        self._named(names)

    def sketches(self):
        """The sketches of all models, (model, sketch), float32.

        Raises
        ------
        ValueError
            The space keeps whole maps.
        """
        if self.sketch is None:
            raise ValueError("this space keeps whole maps: make it with sketch=SIZE")
        return self._index.reconstruct_n(0, len(self)) if self._names else np.empty((0, self.sketch), np.float32)

    def remove(self, name):
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

    def affinity(self):
        """Mean cosine similarity of every two models.

        Returns
        -------
        xarray.DataArray
            float64, (source, target), in [−1, 1], symmetric, 1 on the diagonal: `affinity` of all maps together, or its
            estimate from the sketches, with ``attrs["relative_error"]``, the standard error of 1 − affinity over
            itself. Of sketches the matrix is made anew, with models² · 8 bytes.
        """
        if self.sketch is None:
            return _matrix(self._affinity.copy(), self.models, "affinity", self.channels)
        points = self.sketches().astype(np.float64)
        squares = (points**2).sum(1)
        values = np.clip(1 - (squares[:, None] + squares) / 2 + points @ points.T, -1, 1)
        np.fill_diagonal(values, 1.0)
        result = _matrix(values, self.models, "affinity", self.channels)
        result.attrs |= {"sketch": self.sketch, "relative_error": float(np.sqrt(2 / self.sketch))}
        return result

    def neighbours(self, model, k=10):
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
        ValueError
            k is not positive, or as for `insert`.
        KeyError
            No such model.
        """
        if k < 1:
            raise ValueError(f"k is {k}: ask for at least one neighbour")
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

    def _named(self, names):
        self._places.update(zip(names, range(len(self._names), len(self._names) + len(names)), strict=True))
        self._names += names

    def _products(self, vector):
        """Affinity of a vector (map, values) with every model, each map's cosine in float32, their mean in float64."""
        return np.array([np.clip(np.vecdot(other, vector), -1, 1).mean(dtype=np.float64) for other in self._vectors])

    def _vector(self, name, maps):
        """Unit maps (map, values) of a model, or their sketch; and what the maps of other models have to agree in."""
        if "model" not in maps.dims:
            maps = maps.expand_dims(model=[name])
        if maps.sizes["model"] != 1:
            raise ValueError(f"these are the maps of {maps.sizes['model']} models: insert one at a time")
        _check(maps, self.channels)
        sizes = {axis: size for axis, size in maps.sizes.items() if self.channels == "keep" or axis != "channel"}
        probe = {"sizes": sizes, "image": list(maps.image.values)}
        probe["method"] = str(maps.attribution.item()) if "attribution" in maps.coords else None
        probe["probe_sha256"] = maps.attrs.get("probe_sha256")
        for what, value in (self._probe or probe).items():
            if probe[what] != value:
                shown = "" if what == "image" else f": {probe[what]}, not {value}"
                raise ValueError(f"the maps of {name or 'this model'} have another {what} than those there{shown}")
        blocks = [_unit(_rows(block, self.channels), [name], block.image.values) for block in _blocks(maps)]
        vector = np.concatenate([block.reshape(-1, block.shape[-1]) for block in blocks])
        if self.sketch is None:
            return vector, probe
        vector /= np.sqrt(np.float32(len(vector)))
        return sketch(vector.ravel(), self.sketch, self.seed), probe


def _faiss():
    try:
        return importlib.import_module("faiss")
    except ImportError as error:
        raise ImportError('sketches are searched by faiss: install it with pip install "faiss-cpu>=1.12"') from error


def _matrix(values, models, name, channels):
    coords = {"source": models, "target": models}
    attrs = {"long_name": f"{name} (mean cosine of attribution maps)", "units": "1", "channels": channels}
    return xr.DataArray(values, coords, ("source", "target"), name=name, attrs=attrs)


def _check(maps, channels):
    if channels not in ("mean", "keep"):
        raise ValueError(f'channels is "mean" or "keep", not {channels!r}')
    if "attribution" in maps.dims:
        raise ValueError('the maps are of several methods: select one, e.g. maps.sel(attribution="saliency")')
    missing = {"reference", "channel"} - set(maps.dims)
    if maps.dims != tuple(d for d in ("model", "image", "reference", "y", "x", "channel") if d not in missing):
        raise ValueError(
            "maps have dimensions (model, image, y, x), or (model, image, reference, y, x), or these and channel, "
            f"not {maps.dims}"
        )
    if channels == "keep" and "channel" not in maps.dims:
        raise ValueError('these maps hold no channels: compute them with attribute(..., channels="keep")')
    if not maps.size:
        raise ValueError(f"there is no map to compare: {dict(maps.sizes)}")


def _blocks(maps):
    """Yield slices of the maps along image, of at most `VALUES_AT_ONCE` values or one image."""
    step = max(1, VALUES_AT_ONCE // (maps.size // maps.sizes["image"]))
    for start in range(0, maps.sizes["image"], step):
        yield maps.isel(image=slice(start, start + step))


def _cosines(maps, channels):
    """Yield (image, source, target) cosines for blocks of images."""
    _check(maps, channels)
    models = maps.model.values
    for block in _blocks(maps):
        points = _rows(block, channels)
        with np.errstate(over="ignore", invalid="ignore"):  # looked at below
            products = _products(points)
        squares = np.diagonal(products, axis1=2, axis2=3)
        if (squares > SQUARES[0]).all() and (squares < SQUARES[1]).all():  # False for what is not a number
            lengths = np.sqrt(squares)
            products /= lengths[..., None]
            products /= lengths[..., None, :]
        else:
            products = _products(_unit(points, models, block.image.values))
        values = np.clip(products, -1, 1).astype(np.float64).mean(1)
        coords = {"image": block.image.values, "source": models, "target": models}
        yield xr.DataArray(values, coords, ("image", "source", "target"))


def _products(points):
    """Products of every two rows of (image, reference, model, values); torch's are twice as fast as NumPy's here."""
    import torch  # which takes a second, and most of this module does without

    values = torch.from_numpy(points if points.flags.writeable else points.copy())
    return torch.matmul(values, values.transpose(2, 3)).numpy()


def _directions(maps, channels):
    """Yield, for blocks of images, their labels and the maps as unit vectors (image, reference, model, values)."""
    _check(maps, channels)
    for block in _blocks(maps):
        yield block.image.values, _unit(_rows(block, channels), maps.model.values, block.image.values)


def _rows(block, channels):
    """Maps of a block of images as float32 (image, reference, model, values); a view where they are float32 already."""
    if channels == "mean" and "channel" in block.dims:
        block = block.mean("channel", skipna=False)
    if "reference" not in block.dims:
        block = block.expand_dims("reference", 2)
    values = block.values.astype(np.float32, copy=False)
    return values.reshape(*values.shape[:3], -1).transpose(1, 2, 0, 3)


def _unit(points, models, images):
    """Divide every map of (image, reference, model, values) by its length, also where its squares have no float32."""
    largest = np.abs(points).max(-1, keepdims=True)
    for i, r, m in np.argwhere(~(np.isfinite(largest) & (largest > 0))[..., 0])[:1]:
        what = "zero everywhere" if largest[i, r, m, 0] == 0 else "not finite"
        raise ValueError(
            f"the map of model {models[m]} for image {images[i]} is {what}: "
            "its direction, and so its cosine, is undefined; leave out that model or that image"
        )
    points = points / largest
    points /= np.linalg.norm(points, axis=-1, keepdims=True)
    return points
