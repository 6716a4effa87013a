"""What the modules of numbers ask of their arguments, and the sentence that says what is wrong with which of them."""

import operator
from collections.abc import Iterable
from typing import Any

import numpy as np
import xarray as xr

LARGEST = 1e300  # differences and sums of numbers up to here stay finite in float64
WHOLE = 2**53  # whole numbers up to here are exact in float64


def count(value: Any, name: str, low: int = 1, high: int | None = None) -> int:
    """A whole number in a range.

    Parameters
    ----------
    value
        What was given.
    name : str
        Its name, for the error.
    low, high : int
        The smallest and the largest number allowed; no largest one by default.

    Returns
    -------
    int

    Raises
    ------
    TypeError
        No whole number, such as ``"3"``, 3.0, True or None.
    ValueError
        Out of range.

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

    Raises
    ------
    TypeError
        No real number.
    ValueError
        Out of range, or NaN.

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
    """One of several names.

    Raises
    ------
    ValueError
        Another one; the message lists those known.

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
    """Real numbers of any shape as float64; NaN and infinity stay. It may share the memory of what was given.

    Raises
    ------
    TypeError
        Complex numbers, objects, texts, dates, or what is no array at all.
    ValueError
        Masked values, or whole numbers too large to be exact in float64.

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
    axes: dict[str, Any],
    apart: np.ndarray | None = None,
    low: float = -LARGEST,
    high: float = LARGEST,
) -> None:
    """Make sure that all values are numbers in a range, by default one in which sums and differences stay finite.

    Parameters
    ----------
    values : numpy.ndarray
        Floating point, of any shape.
    name : str
        What they are, for the error.
    axes : dict of str to sequence, or to None
        The name of each axis, and the names along it; None where they are 0, 1, 2, …
    apart : numpy.ndarray of bool, optional
        Values that may be anything.
    low, high : float, default ±1e300
        Bounds of the range.

    Raises
    ------
    ValueError
        NaN, infinity, or a number out of range; the first one is named.

    Examples
    --------
    >>> finite(np.array([0.5, np.nan]), "score", {"target": ["edge2d", "reshade"]})
    Traceback (most recent call last):
    ValueError: score is nan at target reshade: leave it out, or compute it again
    """
    top = float(np.finfo(values.dtype).max)
    kind = values.dtype.type
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
    """Whether values differ by more than rounding: by 1e-12 of the largest.

    Parameters
    ----------
    values : numpy.ndarray
        float64, finite as `finite` has it.
    axis : int, optional
        Along which they are compared; all of them by default.

    Returns
    -------
    bool or numpy.ndarray of bool

    Examples
    --------
    >>> bool(varies(np.array([0.3, 0.1 + 0.2])))
    False
    """
    return np.ptp(values, axis=axis) > 1e-12 * np.abs(values).max(axis=axis)


def labelled(values: Any, name: str, axes: Iterable[str], named: Iterable[str] | None = None) -> xr.DataArray:
    """A labelled array as float64, its axes in the order of `axes`; NaN and infinity stay.

    Parameters
    ----------
    values
        What was given.
    name : str
        What it is, for the error.
    axes : sequence of str
        Its dimensions, in the order wanted.
    named : sequence of str, optional
        Those that must have distinct names along them; all by default.

    Returns
    -------
    xarray.DataArray
        float64, with the coordinates and attributes given.

    Raises
    ------
    TypeError
        No DataArray, or no real numbers.
    ValueError
        Other dimensions, a dimension without names, a name missing or given twice, or nothing in the array.

    Examples
    --------
    >>> labelled(xr.DataArray([[1]], {"b": ["y"], "a": ["x"]}, ("b", "a")), "score", ("a", "b")).dims
    ('a', 'b')
    """
    axes = tuple(axes)
    if not isinstance(values, xr.DataArray):
        raise TypeError(
            f"{name} is a {type(values).__name__}: pass an xarray.DataArray with the dimensions {' and '.join(axes)}, "
            "and with the names along them as coordinates"
        )
    if sorted(map(str, values.dims)) != sorted(axes):
        raise ValueError(f"{name} has the dimensions {values.dims}, expected {' and '.join(axes)}")
    distinct(values, name, axes if named is None else named)
    if not values.size:
        raise ValueError(f"{name} is empty: its sizes are {dict(values.sizes)}, each must be at least one")
    values = values.transpose(*axes)
    return values.copy(data=real(values.data, name))


def distinct(values: xr.DataArray, name: str, axes: Iterable[str]) -> None:
    """Make sure that an array has names along some axes, and none of them twice.

    Raises
    ------
    ValueError
        No names along an axis, a name missing, or one given twice.

    Examples
    --------
    >>> distinct(xr.DataArray([1, 2], {"model": ["a", "a"]}, ("model",)), "affinity", ["model"])
    Traceback (most recent call last):
    ValueError: affinity has the model a more than once: keep one of them, or rename them
    """
    for axis in axes:
        index = values.indexes.get(axis)
        if index is None or index.hasnans:
            lacks = "no names" if index is None else "a missing name"
            raise ValueError(f"{name} has {lacks} along {axis}: name them with assign_coords({axis}=[…])")
        if not index.is_unique:
            twice = ", ".join(map(str, index[index.duplicated()].unique()))
            raise ValueError(f"{name} has the {axis} {twice} more than once: keep one of them, or rename them")


def matrix(values: Any, name: str, missing: str = "none", symmetric: bool = False, fewest: int = 1) -> xr.DataArray:
    """A matrix of sources and targets.

    Parameters
    ----------
    values
        What was given.
    name : str
        What it is, for the error.
    missing : {"none", "own", "any"}, default "none"
        What need not be a number: nothing, the pairs of a model with itself, or any pair, which is NaN then.
    symmetric : bool, default False
        Whether it must have the same names on both axes and the same values both ways.
    fewest : int, default 1
        Smallest number of sources.

    Returns
    -------
    xarray.DataArray
        float64 (source, target); of a symmetric one, the targets in the order of the sources.

    Raises
    ------
    TypeError
        No DataArray, or no real numbers.
    ValueError
        As for `labelled`; a value that is not finite where it has to be, source and target are named; not symmetric;
        or too few sources.

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
        found = found.sel(target=sources)
        targets = sources
    own = np.asarray(sources, object)[:, None] == np.asarray(targets, object)
    apart = {"none": np.zeros_like(own), "own": own, "any": np.isnan(found.values)}[missing]
    finite(found.values, name, {"source": sources, "target": targets}, apart)
    if symmetric:
        size = np.abs(found.values, where=~apart, out=np.zeros(found.shape))
        unequal = np.abs(found.values - found.values.T, where=~apart, out=np.zeros(found.shape)) > 1e-6 * size.max()
        for one, other in np.argwhere(unequal)[:1]:
            raise ValueError(
                f"{name} is not symmetric: {found.values[one, other]} from {sources[one]} to {sources[other]} and "
                f"{found.values[other, one]} back"
            )
    return found
