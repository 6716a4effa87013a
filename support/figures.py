"""Pictures that more than one notebook draws. Importing it sets the look of figures and tables."""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.figure import FigureBase
from pandas.io.formats.style import Styler
from scipy.cluster.hierarchy import dendrogram

from support import ranking
from support.methods import TABLE

plt.rcParams.update(
    {
        "figure.dpi": 110,
        "savefig.bbox": "tight",
        "font.size": 11,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "image.interpolation": "nearest",
        "figure.constrained_layout.use": True,
    }
)
pd.set_option("display.max_colwidth", None)
xr.set_options(display_expand_data=False)


def __getattr__(name):
    """METHOD_TITLES: what the methods are called in figures and tables, those added from outside included."""
    if name == "METHOD_TITLES":
        return {method: entry.title for method, entry in TABLE.items()}
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def short(name: object) -> str:
    """A model's name without its scheme: "package:hed" → "hed".

    Examples
    --------
    >>> short("package:hed")
    'hed'
    """
    return str(name).split(":", 1)[-1]


def stamp(figure: plt.Figure, text: str) -> plt.Figure:
    """Write a warning across a figure, so that nobody takes it for what it is not.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
    text : str
        A word or two; nothing is written where it is empty.

    Returns
    -------
    matplotlib.figure.Figure

    Examples
    --------
    >>> stamp(plt.figure(), "random weights").texts[0].get_text()
    'random weights'
    """
    if text:
        figure.text(0.5, 0.5, text, fontsize=34, color="C3", alpha=0.3, rotation=20, ha="center", va="center", zorder=9)
    return figure


def gallery(images: xr.DataArray | np.ndarray, titles: Sequence[str] | None = None, columns: int = 8) -> plt.Figure:
    """Draw images in a grid.

    Parameters
    ----------
    images : xarray.DataArray or array
        (image, y, x, channel), float in [0, 1].
    titles : sequence of str, optional
        One a picture.
    columns : int, default 8
        Pictures a row.

    Returns
    -------
    matplotlib.figure.Figure

    Examples
    --------
    >>> len(gallery(np.zeros((5, 8, 8, 3)), titles="abcde", columns=3).axes)
    6
    """
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(8, 8 / columns * rows * (1.2 if titles else 1)), squeeze=False)
    for i, ax in enumerate(axes.flat):
        ax.axis("off")
        if i < len(images):
            ax.imshow(np.asarray(images[i]))
            if titles is not None:
                ax.set_title(titles[i], fontsize=9)
    return figure


def overlay(
    ax: plt.Axes,
    picture: np.ndarray,
    title: str = "",
    *,
    heat: np.ndarray | None = None,
    points: np.ndarray | None = None,
    boxes: np.ndarray | None = None,
    cmap: str | None = None,
) -> None:
    """Draw a picture, and over it what a network said of it.

    Parameters
    ----------
    ax : matplotlib.axes.Axes
    picture : array
        (y, x, channel) in [0, 1]; or (y, x), a map of a square picture, drawn as a square whatever its shape.
    title : str, optional
    heat : array, optional
        (y, x), not negative, covering the picture: transparent where it is 0.
    points : array, optional
        (points, 2): x and y as shares of the picture's sides.
    boxes : array, optional
        (boxes, 4 or more): left, top, right and bottom as shares of the picture's sides.
    cmap : str, optional
        Colours of a picture without channels.

    Examples
    --------
    >>> _, ax = plt.subplots()
    >>> overlay(ax, np.zeros((10, 20, 3)), "two points", points=[[0.5, 0.5], [0.1, 0.9]])
    >>> ax.get_title(), len(ax.lines[0].get_xdata())
    ('two points', 2)
    """
    picture = np.asarray(picture)
    shape = picture.shape[1] / picture.shape[0] if picture.ndim == 3 else 1
    frame: dict[str, Any] = {"extent": (0, 1, 1, 0), "aspect": 1 / shape}
    ax.imshow(picture, cmap=cmap, **frame)
    if heat is not None:
        heat = np.asarray(heat)
        ax.imshow(heat, cmap="autumn", alpha=heat / heat.max(), **frame)
    if points is not None:
        ax.plot(*np.asarray(points).T, "o", color="#d62728", markeredgecolor="white", markeredgewidth=0.3, markersize=4)
    for left, top, right, bottom, *_ in [] if boxes is None else np.asarray(boxes):
        ax.plot([left, right, right, left, left], [top, top, bottom, bottom, top], color="#d62728")
    ax.set_title(title, fontsize=9)
    ax.axis("off")


def draw_map(ax: plt.Axes, values: xr.DataArray | np.ndarray) -> None:
    """Draw one attribution map: signed maps red (for) and blue (against), others from black to white.

    The scale is the map's own, up to the 99th percentile of its absolute values: only directions count in the model
    space, not the size.

    Parameters
    ----------
    ax : matplotlib.axes.Axes
    values : array
        (y, x), float.

    Examples
    --------
    >>> _, ax = plt.subplots()
    >>> draw_map(ax, np.array([[-1.0, 0.0], [0.5, 1.0]]))
    >>> ax.images[0].get_cmap().name
    'RdBu_r'
    """
    values = np.asarray(values)
    limit = np.percentile(abs(values), 99) or 1
    signed = values.min() < 0
    ax.imshow(values, cmap="RdBu_r" if signed else "inferno", vmin=-limit if signed else 0, vmax=limit)
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


def map_grid(images: xr.DataArray, maps: xr.DataArray) -> plt.Figure:
    """Draw an image a row and, beside it, the map of every model.

    Parameters
    ----------
    images : xarray.DataArray
        (image, y, x, channel), float32 in [0, 1].
    maps : xarray.DataArray
        (model, image, y, x) or (attribution, model, image, y, x): then a row is drawn for each image and method.

    Returns
    -------
    matplotlib.figure.Figure

    Examples
    --------
    >>> images = xr.DataArray(np.zeros((2, 8, 8, 3)), dims=("image", "y", "x", "channel"))
    >>> maps = xr.DataArray(np.ones((3, 2, 8, 8)), {"model": ["a", "b", "c"]}, ("model", "image", "y", "x"))
    >>> maps = maps.expand_dims(attribution=["saliency"])
    >>> len(map_grid(images, maps).axes)  # for each of two images itself and three maps
    8
    """
    maps = maps if "attribution" in maps.dims else maps.expand_dims("attribution")
    methods = [str(m) for m in maps.attribution.values]
    rows = [(i, m) for i in range(maps.sizes["image"]) for m in range(len(methods))]
    columns = maps.sizes["model"] + 1
    figure, axes = plt.subplots(
        len(rows), columns, figsize=(1.25 * columns, 1.25 * len(rows) + 0.4), squeeze=False, layout="constrained"
    )
    for (i, m), line in zip(rows, axes, strict=True):
        line[0].imshow(images[i].values)
        line[0].set(xticks=[], yticks=[])
        line[0].spines[:].set_visible(False)
        line[0].set_ylabel(TABLE[methods[m]].title if methods[m] in TABLE else methods[m], fontsize=9)
        for n, ax in enumerate(line[1:]):
            draw_map(ax, maps[m, n, i])
    for name, ax in zip(["image", *map(short, maps.model.values)], axes[0], strict=True):
        ax.set_title(name.replace("_", "\n"), fontsize=9)
    return figure


def heat(maps: xr.DataArray, block: int = 4) -> np.ndarray:
    """Where maps are large, whatever their sign: mean absolute value over squares of pixels.

    A gradient changes its sign from pixel to pixel, so that a map printed small looks like noise. Only for looking at.

    Parameters
    ----------
    maps : xarray.DataArray
        (..., y, x), float.
    block : int, default 4
        Pixels along a square's side; what is left over at the right and at the bottom is cut off.

    Returns
    -------
    numpy.ndarray
        (..., y / block, x / block), float, not negative.

    Raises
    ------
    ValueError
        A map is smaller than a square.

    Examples
    --------
    >>> heat(xr.DataArray([[1.0, -1.0, 3.0], [-1.0, 1.0, 3.0]], dims=("y", "x")), block=2)
    array([[1.]])
    """
    values = np.abs(maps.values)
    rows, columns = (length // block for length in values.shape[-2:])
    if not rows or not columns:
        raise ValueError(f"maps of {values.shape[-2]} × {values.shape[-1]} pixels have no square of {block} pixels")
    values = values[..., : rows * block, : columns * block]
    return values.reshape(*values.shape[:-2], rows, block, columns, block).mean((-3, -1))


def heat_grid(images: xr.DataArray, maps: xr.DataArray, columns: int = 4, block: int = 4) -> plt.Figure:
    """Draw images and, beside each, where every model's map of it is large: as Figure 2 of Song et al. (2019).

    Parameters
    ----------
    images : xarray.DataArray
        (image, y, x, channel), float32 in [0, 1].
    maps : xarray.DataArray
        (model, image, y, x), float, of these images and perhaps of more. Each is drawn on a scale of its own, up to the
        99th percentile of its heat.
    columns : int, default 4
        Maps beside an image; where there are more models, they go on in the next row.
    block : int, default 4
        As for `heat`.

    Returns
    -------
    matplotlib.figure.Figure

    Examples
    --------
    >>> images = xr.DataArray(np.zeros((2, 8, 8, 3)), dims=("image", "y", "x", "channel"))
    >>> maps = xr.DataArray(np.ones((5, 2, 8, 8)), {"model": list("abcde")}, ("model", "image", "y", "x"))
    >>> len(heat_grid(images, maps).axes)  # for two images two rows each, of one place and four
    20
    """
    names = [short(name).replace("_", "\n") for name in maps.model.values]
    rows = -(-len(names) // columns)  # of an image
    shape = len(images) * rows, columns + 1
    figure, axes = plt.subplots(*shape, figsize=(7, 1.65 * shape[0]), squeeze=False, dpi=160)
    for ax in axes.flat:
        ax.axis("off")
    for k in range(len(images)):
        first = axes[k * rows, 0]
        first.imshow(images[k].values)
        first.set_title("image", fontsize=10)
        places = axes[k * rows : (k + 1) * rows, 1:].flat
        for ax, name, values in zip(places, names, heat(maps[:, k], block), strict=False):
            ax.imshow(values, cmap="inferno", vmin=0, vmax=np.percentile(values, 99) or 1)
            ax.set_title(name, fontsize=10)
    return figure


def matrix(values: xr.DataArray, label: str, ax: plt.Axes | None = None) -> FigureBase:
    """Draw a (source, target) matrix as a heat map, with its numbers where they are readable.

    A model beside itself is left grey, so that the colours are spent on the pairs.

    Parameters
    ----------
    values : xarray.DataArray
        (source, target), float.
    label : str
        What the colour means, with its unit.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure by default.

    Returns
    -------
    matplotlib.figure.Figure

    Examples
    --------
    >>> names = {"source": ["a", "b"], "target": ["a", "b"]}
    >>> affinity = xr.DataArray([[1, 0.2], [0.2, 1]], names, ("source", "target"))
    >>> matrix(affinity, "affinity (1)").axes[0].get_xlabel()
    'target'
    """
    if ax is None:
        _, ax = plt.subplots(figsize=(6.4, 5.4))
    itself = values.source.values[:, None] == values.target.values[None]
    numbers = np.where(itself, np.nan, values.values.astype(float))
    picture = ax.imshow(numbers, cmap="viridis")
    ax.set_facecolor("0.9")
    names = [[short(n) for n in values[axis].values] for axis in ("target", "source")]
    ax.set_xticks(range(len(names[0])), names[0], rotation=40, ha="right")
    ax.set_yticks(range(len(names[1])), names[1])
    ax.set(xlabel="target", ylabel="source")
    ax.spines[:].set_visible(False)
    ax.figure.colorbar(picture, ax=ax, label=label, shrink=0.8)
    if numbers.size <= 12**2:
        middle = (np.nanmin(numbers) + np.nanmax(numbers)) / 2
        for (row, column), number in np.ndenumerate(values.values):
            colour = "black" if itself[row, column] or number > middle else "white"
            ax.text(column, row, f"{number:.2f}", ha="center", va="center", color=colour, fontsize=9)
    return ax.figure


def panel(ax: plt.Axes, values: xr.DataArray, title: str, *, signed: bool = False, size: float = 7) -> None:
    """Draw a (source, target) matrix with small names and a colour bar below, to stand beside others.

    Parameters
    ----------
    ax : matplotlib.axes.Axes
    values : xarray.DataArray
        (source, target), float; a model beside itself is left blank.
    title : str
    signed : bool, default False
        Red above zero and blue below, with the same reach; otherwise from dark to bright.
    size : float, default 7
        Of the names, in points.

    Examples
    --------
    >>> names = {"source": ["a", "b"], "target": ["a", "b"]}
    >>> matrix = xr.DataArray([[1.0, 0.2], [0.2, 1.0]], names, ("source", "target"))
    >>> figure, ax = plt.subplots()
    >>> panel(ax, matrix, "alike")
    >>> ax.get_title(), [label.get_text() for label in ax.get_yticklabels()]
    ('alike', ['a', 'b'])
    """
    itself = values.source.values[:, None] == values.target.values[None]
    numbers = np.where(itself, np.nan, values.values.astype(float))
    reach = np.nanmax(abs(numbers)) or 1
    look = {"cmap": "RdBu_r", "vmin": -reach, "vmax": reach} if signed else {"cmap": "viridis"}
    picture = ax.imshow(numbers, **look)
    ax.set_facecolor("0.9")
    names = [[short(name) for name in values[axis].values] for axis in ("target", "source")]
    ax.set_xticks(range(len(names[0])), names[0], rotation=90, fontsize=size)
    ax.set_yticks(range(len(names[1])), names[1], fontsize=size)
    ax.spines[:].set_visible(False)
    ax.set_title(title)
    ax.figure.colorbar(picture, ax=ax, orientation="horizontal", shrink=0.8)


def priority_curve(ax: plt.Axes, correlation: xr.DataArray, truth: xr.DataArray) -> None:
    """Draw the correlation-priority curve, and the middle half of the targets around it.

    Parameters
    ----------
    ax : matplotlib.axes.Axes
    correlation, truth : xarray.DataArray
        As for `ranking.correlation_priority_curve`.

    Examples
    --------
    >>> names = {"source": [*"abc"], "target": [*"abc"]}
    >>> truth = xr.DataArray(np.arange(9.0).reshape(3, 3), names, ("source", "target"))
    >>> figure, ax = plt.subplots()
    >>> priority_curve(ax, truth, truth)
    >>> len(ax.lines)
    1
    """
    single = ranking.correlation_priority_curve(correlation, truth, mean=False)
    low, high = np.percentile(single, [25, 75], axis=1)
    ax.fill_between(single.priority, low, high, alpha=0.2)
    ax.plot(single.priority, ranking.correlation_priority_curve(correlation, truth), "o-")
    ax.set(xlabel="place of the source (1 is best)", ylabel="correlation with the target (1)")


def intervals(claims: Sequence[Any]) -> plt.Figure:
    """Draw claims that are judged by an interval, one a line, beside the band where the interval has to lie.

    Parameters
    ----------
    claims : sequence
        With the attributes claim, verdict, interval (mean, low, high) and bounds (low, high; one may be infinite).

    Returns
    -------
    matplotlib.figure.Figure

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> interval = ranking.Interval(0.1, 0.05, 0.15)
    >>> claim = SimpleNamespace(claim="better", verdict="holds", interval=interval, bounds=(0, np.inf))
    >>> [label.get_text() for label in intervals([claim]).axes[0].get_yticklabels()]
    ['better']
    """
    figure, ax = plt.subplots(figsize=(8, 0.36 * len(claims) + 1.2))
    colours = {"holds": "C2", "undecided": "0.45"}
    ends = [end for claim in claims for end in (*claim.interval[1:], *filter(np.isfinite, claim.bounds))]
    reach = min(ends) - 0.1, max(ends) + 0.1
    for y, claim in enumerate(claims):
        low, high = np.clip(claim.bounds, *reach)
        ax.barh(y, high - low, left=low, height=0.8, color="0.93", zorder=0)
        mean, *bounds = claim.interval
        colour = colours.get(claim.verdict, "C3")
        ax.plot(bounds, [y, y], color=colour, linewidth=2)
        ax.plot(mean, y, "o", color=colour)
    for verdict, colour in {**colours, "does not hold here": "C3"}.items():
        ax.plot([], [], "o-", color=colour, label=verdict)
    ax.set_yticks(range(len(claims)), [claim.claim for claim in claims], fontsize=9)
    ax.set(xlabel="difference, or P@5 (1)", xlim=reach)
    ax.axvline(0, color="0.6", linewidth=0.8)
    ax.invert_yaxis()
    figure.legend(loc="outside lower center", ncols=3, fontsize=9)
    return figure


def hover_matrix(values: xr.DataArray, digits: int = 2) -> Styler:
    """A (source, target) matrix as a coloured table that tells source, target and value under the mouse.

    Parameters
    ----------
    values : xarray.DataArray
        (source, target), float; a model beside itself is left blank.
    digits : int, default 2
        Digits after the point.

    Returns
    -------
    pandas.io.formats.style.Styler
        Shown by a notebook; plain HTML, which needs no script.

    Examples
    --------
    >>> names = {"source": ["a", "b"], "target": ["a", "b"]}
    >>> affinity = xr.DataArray([[1, 0.2], [0.2, 1]], names, ("source", "target"))
    >>> "a → b: 0.20" in hover_matrix(affinity).to_html()
    True
    """
    values = values.transpose("source", "target")
    itself = values.source.values[:, None] == values.target.values[None]
    names = {axis: [short(name) for name in values[axis].values] for axis in ("source", "target")}
    table = pd.DataFrame(np.where(itself, np.nan, values.values.astype(float)), names["source"], names["target"])
    tips = [[f"{s} → {t}: {table.loc[s, t]:.{digits}f}" for t in names["target"]] for s in names["source"]]
    return (
        table.style.format(lambda _: "")
        .background_gradient("viridis", axis=None)
        .highlight_null("#e6e6e6")
        .set_tooltips(pd.DataFrame(tips, *names.values()).mask(itself), as_title_attribute=True)
        .set_table_styles(
            [
                {"selector": "th.col_heading", "props": "writing-mode: vertical-rl; padding: 2px; font-size: 75%"},
                {"selector": "th.row_heading", "props": "padding: 0 4px; font-size: 75%"},
                {"selector": "td", "props": "min-width: 14px; height: 14px; padding: 0"},
            ]
        )
    )


def tree(linkage: np.ndarray, names: Sequence[str], ax: plt.Axes | None = None) -> FigureBase:
    """Draw a tree of models, root on the left.

    Parameters
    ----------
    linkage : numpy.ndarray
        (models − 1, 4), as `space.tree` returns it.
    names : sequence of str
        Models, in the order of the matrix that the tree was made from.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure by default.

    Returns
    -------
    matplotlib.figure.Figure

    Examples
    --------
    >>> joined = np.array([[0, 1, 0.2, 2], [2, 3, 0.7, 3]])
    >>> [label.get_text() for label in tree(joined, ["a", "b", "c"]).axes[0].get_yticklabels()]
    ['c', 'a', 'b']
    """
    if ax is None:
        _, ax = plt.subplots(figsize=(6.4, 0.42 * len(names) + 1))
    labels = [short(n) for n in names]
    dendrogram(linkage, labels=labels, orientation="left", ax=ax, color_threshold=0, above_threshold_color="0.3")
    ax.set_xlabel("1 − affinity at which two groups are joined")
    ax.tick_params(axis="y", labelsize=11)
    ax.spines["left"].set_visible(False)
    return ax.figure
