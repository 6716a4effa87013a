"""Every score of every two networks, and how well each ranks the sources: what the chapters 8 to 11 share."""

import torch
import xarray as xr

from support import attribution, ranking, similarity, space

AVERAGED = attribution.PUBLISHED  # maps averaged over their colours before the cosine, as in the authors' program
SCORES = (*attribution.PUBLISHED, *attribution.INVARIANT, *similarity.METHODS)
MEASURES = {
    "P@1": lambda score, truth: ranking.precision_at_k(score, truth, k=1, mean=False),
    "P@3": lambda score, truth: ranking.precision_at_k(score, truth, k=3, mean=False),
    "P@5": lambda score, truth: ranking.precision_at_k(score, truth, k=5, mean=False),
    "Spearman": lambda score, truth: ranking.spearman(score, truth, mean=False),
}


def affinities(encoders, images, scores=SCORES, *, ridge=1e-6, device="auto", progress=True):
    """Several scores of every two networks, from the same images.

    Parameters
    ----------
    encoders : sequence of Encoder
        Networks with distinct names and representations of one shape.
    images : xarray.DataArray
        (image, y, x, channel), as `probe.load` returns them.
    scores : sequence of str, default `SCORES`
        From `attribution.METHODS`, as mean cosine of the maps, or from `similarity.METHODS`. The maps of the published
        methods are averaged over their colours, those of all others are not.
    ridge, device, progress
        As for `attribution.attribute`.

    Returns
    -------
    xarray.DataArray
        float64 (score, source, target), higher is nearer.

    Raises
    ------
    ValueError
        An unknown score, or as for `attribution.attribute`, `space.affinity` and `similarity.matrix`.
    """
    unknown = set(scores) - {*attribution.METHODS, *similarity.METHODS}
    if unknown or not len(scores):
        known = ", ".join((*attribution.METHODS, *similarity.METHODS))
        raise ValueError(f"unknown scores {', '.join(sorted(unknown)) or '(none)'}; known: {known}")
    found = {}
    attributions = [name for name in scores if name in attribution.METHODS]
    alone = [name for name in attributions if name == "relational"]
    together = [name for name in attributions if name != "relational"]
    for methods in filter(None, (together, alone)):
        maps = attribution.attribute(
            encoders, images, methods, ridge=ridge, channels="keep", device=device, progress=progress
        )
        for name in methods:
            choice = "mean" if name in AVERAGED else "keep"
            found[name] = space.affinity(maps.sel(attribution=name), channels=choice)
    if set(scores) - set(attributions):
        with torch.no_grad():
            representations = {e.name: e.represent(e.preprocess(images)).cpu().numpy() for e in encoders}
        found |= {name: similarity.matrix(representations, name) for name in scores if name in similarity.METHODS}
    return _stacked({name: found[name] for name in scores}, "score", "affinity")


def quality(affinities, truth, measures=MEASURES):
    """How well each score ranks the sources of each target.

    Parameters
    ----------
    affinities : xarray.DataArray
        (score, source, target), higher is better.
    truth : xarray.DataArray
        (source, target), higher is better, as `oracle.load` returns it.
    measures : dict of str to callable
        (affinity, truth) → (target); `MEASURES` by default.

    Returns
    -------
    xarray.DataArray
        float64 (score, measure, target), higher is better.

    Raises
    ------
    ValueError
        As for `ranking.precision_at_k` and `ranking.spearman`.
    """
    rows = {
        name: _stacked({key: m(affinities.sel(score=name), truth) for key, m in measures.items()}, "measure", "quality")
        for name in affinities.score.values.tolist()
    }
    return _stacked(rows, "score", "quality")


def _stacked(arrays, dim, name):
    parts = [array.drop_vars([c for c in array.coords if c not in array.dims]) for array in arrays.values()]
    result = xr.concat(parts, dim, combine_attrs="drop").assign_coords({dim: list(arrays)})
    return result.rename(name).assign_attrs(units="1")
