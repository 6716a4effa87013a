"""What the modules of numbers ask of their arguments, and the sentence that says what is wrong with which of them.

`name` is always what the argument is called in that sentence. TypeError is for what is of the wrong kind, such as
an array without names, and ValueError for what is of the right kind and out of range.
"""

import operator
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import numpy as np
import xarray as xr

LARGEST = 1e304  # differences and sums of a thousand numbers up to here stay finite in float64
WHOLE = 2**53  # whole numbers up to here are exact in float64


def count(value: Any, name: str, low: int = 1, high: int | None = None) -> int:
    """A whole number from `low` to `high`; True is none.

    Examples
    --------
    >>> count(np.int64(3), "k", 1, 5)
    3
    """
    try:
        number = None if isinstance(value, bool | np.bool_) else operator.index(value)
    except TypeError:
        number = None
    if number is None:
        raise TypeError(f"{name} is {value!r}: give a whole number")
    if number < low or (high is not None and number > high):
        raise ValueError(f"{name} is {number}, expected {f'at least {low}' if high is None else f'{low} to {high}'}")
    return number


def share(value: Any, name: str, closed: bool = False) -> float:
    """A number in (0, 1), or with `closed` in (0, 1].

    Examples
    --------
    >>> share(0.95, "level")
    0.95
    """
    given = real(value, name)
    if given.ndim:
        raise TypeError(f"{name} is an array of the shape {given.shape}: give one number")
    if not (0 < given < 1 or (closed and given == 1)):
        raise ValueError(f"{name} is {value}, expected a number between 0 and 1" + ", or 1" * closed)
    return float(given)


def choice(value: Any, name: str, known: Iterable[str]) -> str:
    """One of the names known, which the error lists.

    Examples
    --------
    >>> choice("mean", "channels", ("mean", "keep"))
    'mean'
    """
    known = list(known)
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"unknown {name} {value!r}; known: {', '.join(known)}")
    return value


def real(values: Any, name: str) -> np.ndarray:
    """Real numbers of any shape as float64, NaN and infinity too; the memory may be that of what was given.

    Refused are complex numbers, objects, texts, dates, masked values, and whole numbers that float64 rounds.

    Examples
    --------
    >>> real([[True, False]], "hits")
    array([[1., 0.]])
    """
    try:
        given = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} is no array of numbers: {error}") from error
    if given.dtype.kind not in "biuf":
        raise TypeError(f"{name} is of the type {given.dtype}: give an array of real numbers")
    if np.ma.is_masked(values):
        raise ValueError(f"{name} has masked values: leave them out, or fill them")
    if given.dtype.kind in "iu" and given.size and max(-int(given.min()), int(given.max())) > WHOLE:
        raise ValueError(f"{name} has whole numbers beyond 2^53, which float64 rounds: divide them, or rank them")
    with np.errstate(over="ignore"):  # of long double, infinite then
        return given.astype(np.float64, copy=False)


def finite(
    values: np.ndarray,
    name: str,
    axes: Mapping[Any, Any],
    apart: np.ndarray | None = None,
    low: float = -LARGEST,
    high: float = LARGEST,
) -> None:
    """Make sure that all values but those in the mask `apart` are numbers from `low` to `high`.

    `axes` has the name of each axis, and the names along it (None for 0, 1, 2, …), by which the first other is named.

    Examples
    --------
    >>> finite(np.array([0.5, np.nan]), "score", {"target": ["edge2d", "reshade"]})
    Traceback (most recent call last):
    ValueError: score is nan at target reshade: leave it out, or compute it again
    """
    top, kind = float(np.finfo(values.dtype).max), values.dtype.type
    wrong = ~((values >= kind(max(low, -top))) & (values <= kind(min(high, top))))
    if apart is not None:
        wrong &= ~apart
    for place in np.argwhere(wrong)[:1]:
        steps = zip(axes.items(), place.tolist(), strict=True)
        where = ", ".join(f"{axis} {at if names is None else names[at]}" for (axis, names), at in steps)
        found = f"{name} is {values[tuple(place)]}" + f" at {where}" * bool(where)
        if (low, high) == (-LARGEST, LARGEST):
            raise ValueError(f"{found}: leave it out, or compute it again")
        raise ValueError(f"{found}, expected a number from {low:g} to {high:g}")


def varies(values: np.ndarray, axis: int | None = None) -> Any:
    """Whether finite values, all or along an axis, differ by more than rounding: by 1e-12 of the largest.

    Examples
    --------
    >>> bool(varies(np.array([0.3, 0.1 + 0.2])))
    False
    """
    return np.ptp(values, axis=axis) > 1e-12 * np.abs(values).max(axis=axis)


def named(values: Any, name: str, axes: Iterable[Hashable] = ()) -> xr.DataArray:
    """A DataArray that has names along some axes, none of them missing or given twice.

    Examples
    --------
    >>> named(xr.DataArray([1, 2], {"model": ["a", "a"]}, ("model",)), "affinity", ["model"])
    Traceback (most recent call last):
    ValueError: affinity has the model a more than once: keep one of them, or rename them
    """
    if not isinstance(values, xr.DataArray):
        raise TypeError(f"{name} is a {type(values).__name__}: pass an xarray.DataArray with names along its axes")
    for axis in axes:
        index = values.indexes.get(axis)
        if index is None or index.hasnans:
            lacks = "no names" if index is None else "a missing name"
            raise ValueError(f"{name} has {lacks} along {axis}: name them with assign_coords({axis}=[…])")
        if not index.is_unique:
            twice = ", ".join(map(str, index[index.duplicated()].unique()))
            raise ValueError(f"{name} has the {axis} {twice} more than once: keep one of them, or rename them")
    return values


def labelled(values: Any, name: str, axes: Iterable[Hashable], others: Iterable[str] = ()) -> xr.DataArray:
    """A labelled array as float64, NaN and infinity too, its axes in the order given; those in `others` need no names.

    Examples
    --------
    >>> labelled(xr.DataArray([[1]], {"b": ["y"], "a": ["x"]}, ("b", "a")), "score", ("a", "b")).dims
    ('a', 'b')
    """
    axes = tuple(axes)
    if set(named(values, name).dims) != set(axes):
        raise ValueError(f"{name} has the dimensions {values.dims}, expected {' and '.join(map(str, axes))}")
    named(values, name, set(axes) - set(others))
    if not values.size:
        raise ValueError(f"{name} is empty: its sizes are {dict(values.sizes)}, each must be at least one")
    values = values.transpose(*axes)
    return values.copy(data=real(values.data, name))


def matrix(values: Any, name: str, missing: str = "none", symmetric: bool = False, fewest: int = 1) -> xr.DataArray:
    """A matrix of sources and targets as float64 (source, target).

    Parameters
    ----------
    values, name
        What was given, and what it is called.
    missing : {"none", "own", "any"}, default "none"
        What need not be a number: nothing, the pairs of a model with itself, or any pair, which is NaN then.
    symmetric : bool, default False
        Whether it must have the same names on both axes, and the same values both ways; targets are then brought into
        the order of the sources.
    fewest : int, default 1
        Smallest number of sources.

    Raises
    ------
    TypeError
        No DataArray, or no real numbers.
    ValueError
        Other dimensions, a name that is missing or given twice, a value that is not finite (its pair is named), a
        matrix that is not symmetric, or one that is too small.

    Examples
    --------
    >>> matrix(xr.DataArray([[1, 0]], {"source": ["a"], "target": ["b", "c"]}, ("source", "target")), "truth").shape
    (1, 2)
    """
    found = labelled(values, name, ("source", "target"))
    sources, targets = found.indexes["source"], found.indexes["target"]
    if len(sources) < fewest:
        raise ValueError(f"{name} has {len(sources)} sources, at least {fewest} are needed")
    if symmetric:
        if set(sources) != set(targets):
            raise ValueError(f"{name} has different sources and targets: a symmetric matrix of the same is needed")
        found, targets = found.sel(target=sources), sources
    own = np.asarray(sources, object)[:, None] == np.asarray(targets, object)
    apart = {"none": np.zeros_like(own), "own": own, "any": np.isnan(found.values)}[missing]
    finite(found.values, name, {"source": sources, "target": targets}, apart)
    if symmetric:
        kept = np.where(apart, 0, found.values)
        for one, other in np.argwhere(np.abs(kept - kept.T) > 1e-6 * np.abs(kept).max())[:1]:
            raise ValueError(
                f"{name} is not symmetric: {kept[one, other]} from {sources[one]} to {sources[other]} and "
                f"{kept[other, one]} back"
            )
    return found
