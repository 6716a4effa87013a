"""Rank pretrained networks for a task of your own: ``python -m support.rank --images FOLDER --network … --out DIR``."""

import argparse
import copy
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import xarray as xr
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import KFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from support import passes, probe, readout, similarity, zoo
from support.encoder import Encoder
from support.sources.architectures import randomise

CHANCES = 12  # times that the images of one side are moved on, or the labels shuffled
LEVEL = 0.95  # of intervals
FOLDS = 5  # of a linear probe
PENALTIES = np.logspace(-2, 6, 17)  # that it chooses from
FEWEST = 10  # images, from which an interval means something


class Evidence(NamedTuple):
    """How well one source predicts the target."""

    missed: np.ndarray  # (image, channel): squared error of held-out predictions
    spread: np.ndarray  # (image, channel): squared deviation from the mean
    chance: np.ndarray  # (repeat): the score when the target belongs to other images
    twin: float  # the score for an untrained twin of the target; nan with labels
    seconds: float = np.nan


def evidence(
    images: xr.DataArray,
    sources: Sequence[Encoder],
    target: Encoder | np.ndarray,
    *,
    seed: int = 0,
    device: str = "auto",
    progress: Callable[[str], None] = lambda text: None,
) -> dict[str, Evidence]:
    """Predictivity of a target from each source, with what chance and an untrained network give.

    Parameters
    ----------
    images : xarray.DataArray
        (image, y, x, channel), at least ten, as `probe.load` returns them.
    sources : sequence of Encoder
        The networks to be ranked, with distinct names.
    target : Encoder or numpy.ndarray
        The network that was trained for the task: its representation is predicted, at each position from the
        neighbourhood (see `similarity.predictivity`). Or labels (image, output), classes as columns of 0 and 1: they
        are predicted by a linear probe on the means of the source's channels over the positions.
    seed : int, default 0
        Of the twin's weights and of the shuffled labels.
    device : str, default "auto"
    progress : callable
        Called with the name of each source before it is computed.

    Returns
    -------
    dict of str to Evidence

    Raises
    ------
    ValueError
        Fewer than ten images, labels of other images, or as for `similarity.predictivity`; the network is named.

    Examples
    --------
    >>> images = probe.load("rooms", n_images=10, size=64)
    >>> found = evidence(images, [zoo.load("bank:rgb2mist")], zoo.load("bank:rgb2depth"), device="cpu")
    >>> found["rgb2mist"].missed.shape[0]
    10
    """
    n_images = images.sizes["image"]
    if n_images < FEWEST:
        raise ValueError(f"there are {n_images} images: at least {FEWEST} are needed to rank anything")
    names = [source.name for source in sources]
    if len(set(names)) < len(names):
        raise ValueError(f"two sources have one name: {', '.join(sorted(names))}")
    if isinstance(target, Encoder):
        compare = _of_network(images, target, seed, device)
    else:
        wanted = np.asarray(target, np.float64)
        if wanted.ndim != 2 or len(wanted) != n_images:
            raise ValueError(f"labels have the shape {wanted.shape}, expected one row for each of {n_images} images")
        compare = _of_labels(wanted, seed)
    found = {}
    for source in sources:
        progress(source.name)
        started = time.perf_counter()
        one = compare(source.name, passes.representations([source], images, device)[source.name])
        found[source.name] = one._replace(seconds=time.perf_counter() - started)
    return found


def _of_network(images, target, seed, device):
    """Comparison of a source's representations with those of a network for the task and of its untrained twin."""
    twin = copy.deepcopy(target)
    twin.name = "the untrained twin"
    randomise(twin.network, twin.preprocess(images[:32]), seed)
    targets = {one.name: passes.representations([one], images, device)[one.name] for one in (target, twin)}
    shifts = np.unique(np.linspace(1, images.sizes["image"] - 1, CHANCES).round().astype(int))

    def compare(name, values):
        reps = {name: values, "the target": targets[target.name], twin.name: targets[twin.name]}
        one, wanted, untrained = (readout.Summary(form, what) for what, form in similarity.together(reps).items())
        chance = np.array([readout.explained(one, wanted.moved(shift)) for shift in shifts])
        return Evidence(*readout.errors(one, wanted), chance, readout.explained(one, untrained))

    return compare


def _of_labels(wanted, seed):
    """Comparison of a source's representations, averaged over positions, with labels: a linear probe, held out."""
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(len(wanted)) for _ in range(CHANCES)]
    spread = (wanted - wanted.mean(0)) ** 2

    def compare(name, values):
        features = values.reshape(*values.shape[:2], -1).mean(2)
        missed = (wanted - _probe(features, wanted)) ** 2
        by_chance = [(wanted[order] - _probe(features, wanted[order])) ** 2 for order in orders]
        chance = np.array([(1 - each.sum(0) / spread.sum(0)).mean() for each in by_chance])
        return Evidence(missed, spread, chance, np.nan)

    return compare


def _probe(features, wanted):
    """Predictions for each fifth of the images by ridge regression on the others, which choose the penalty too."""
    model = make_pipeline(StandardScaler(), RidgeCV(PENALTIES))
    return cross_val_predict(model, features, wanted, cv=KFold(FOLDS)).reshape(wanted.shape)


def table(found: dict[str, Evidence], n_resamples: int = 2_000, seed: int = 0) -> pd.DataFrame:
    """The sources from best to worst, with intervals over images and a verdict.

    Parameters
    ----------
    found : dict of str to Evidence
        As `evidence` returns it.
    n_resamples : int, default 2,000
        Draws of images with replacement, the same for all sources.
    seed : int, default 0
        Of the draws.

    Returns
    -------
    pandas.DataFrame
        A row a source. ``score``: mean over channels of the held-out R²; ``low``, ``high``: its interval;
        ``behind_low``, ``behind_high``: interval of the difference to the best source, which is the first one whose
        interval lies above 0 and above chance; ``chance``: the highest of the scores with other images; ``untrained``:
        the score for the untrained twin; ``verdict``: "best", "not told from the best", "behind the best" or "not told
        from chance"; ``seconds``.

    Examples
    --------
    >>> near = Evidence(np.full((20, 1), 0.1), np.ones((20, 1)), np.zeros(3), np.nan, 0.1)
    >>> far = near._replace(missed=np.full((20, 1), 0.5))
    >>> table({"far": far, "near": near}).verdict.to_dict()
    {'near': 'best', 'far': 'behind the best'}
    """
    rng = np.random.default_rng(seed)
    n_images = len(next(iter(found.values())).missed)
    draws = rng.multinomial(n_images, np.full(n_images, 1 / n_images), n_resamples)
    scores = {name: _score(one.missed, one.spread, np.ones((1, n_images)))[0] for name, one in found.items()}
    drawn = {name: _score(one.missed, one.spread, draws) for name, one in found.items()}
    order = sorted(scores, key=lambda name: scores[name], reverse=True)
    edges = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    bounds = {name: np.quantile(drawn[name], edges) for name in order}
    chance = {name: found[name].chance.max() for name in order}
    told = [name for name in order if bounds[name][0] > max(chance[name], 0)]  # 0: no better than the mean
    best = told[0] if told else order[0]
    rows = []
    for name in order:
        low, high = bounds[name]
        behind = np.quantile(drawn[best] - drawn[name], edges)
        verdict = "best" if name == best else "behind the best" if behind[0] > 0 else "not told from the best"
        rows.append(
            {
                "source": name,
                "score": scores[name],
                "low": low,
                "high": high,
                "behind_low": behind[0],
                "behind_high": behind[1],
                "chance": chance[name],
                "untrained": found[name].twin,
                "verdict": verdict if name in told else "not told from chance",
                "seconds": found[name].seconds,
            }
        )
    return pd.DataFrame(rows).set_index("source")


def _score(missed, spread, draws):
    """Mean R² over channels for each draw of images; a channel that does not vary in a draw is left out of it."""
    misses, spreads = draws @ missed, draws @ spread
    usable = spreads > 1e-12 * spread.sum(0)
    return np.where(usable, 1 - misses / np.where(usable, spreads, 1), 0).sum(1) / usable.sum(1).clip(1)


def conclusion(ranked: pd.DataFrame) -> str:
    """What may be concluded from a `table`, in one or two sentences.

    Examples
    --------
    >>> one = Evidence(np.full((20, 1), 0.1), np.ones((20, 1)), np.zeros(3), np.nan, 0.1)
    >>> conclusion(table({"near": one}))
    'Start from near: it is ahead of all other sources, beyond what the choice of images explains.'
    """
    told = ranked[ranked.verdict != "not told from chance"]
    if told.empty:
        return (
            "No source can be told from chance with these images: the ranking says nothing. "
            "Use more images, or images that are nearer to the task."
        )
    best, rest = told.index[0], told[1:]
    near = rest.index[rest.verdict == "not told from the best"].tolist()
    if near:
        said = f"Start from {best}. These cannot be told from it with so few images: {', '.join(near)}."
    else:
        said = f"Start from {best}: it is ahead of all other sources, beyond what the choice of images explains."
    if (told.untrained >= told.score).any():
        named = ", ".join(told.index[told.untrained >= told.score])
        said += f" An untrained network of the target's architecture is predicted as well from {named}: "
        said += "there the score speaks of the images and not of the task."
    return said


def draw(ranked: pd.DataFrame, title: str = "") -> plt.Figure:
    """Scores with their intervals, beside chance and the untrained twin.

    Parameters
    ----------
    ranked : pandas.DataFrame
        As `table` returns it.
    title : str

    Returns
    -------
    matplotlib.figure.Figure

    Examples
    --------
    >>> one = Evidence(np.full((20, 1), 0.1), np.ones((20, 1)), np.zeros(3), np.nan, 0.1)
    >>> draw(table({"near": one})).axes[0].get_xlabel()
    'share of the target explained, held out (R²)'
    """
    figure, ax = plt.subplots(figsize=(7, 1.4 + 0.34 * len(ranked)), layout="constrained")
    rows = np.arange(len(ranked))[::-1]
    widths = [ranked.score - ranked.low, ranked.high - ranked.score]
    ax.errorbar(ranked.score, rows, xerr=np.abs(widths), fmt="o", color="C0", linewidth=2, label="score, 95 % interval")
    ax.plot(ranked.chance, rows, "|", color="black", markersize=14, markeredgewidth=2.5, label="chance")
    if ranked.untrained.notna().any():
        ax.plot(ranked.untrained, rows, "x", color="C3", label="untrained twin of the target")
    ax.set_yticks(rows, ranked.index)
    ax.margins(y=0.3 / len(ranked) + 0.05)
    ax.set(xlabel="share of the target explained, held out (R²)", title=title)
    ax.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


def read_labels(path: str | Path, files: Sequence[str]) -> np.ndarray:
    """Labels of images from a CSV file with the columns ``file`` and ``label``.

    Parameters
    ----------
    path : str or Path
    files : sequence of str
        The images' files, as ``images.file`` has them: paths inside the folder.

    Returns
    -------
    numpy.ndarray
        float64 (image, output): numbers as they are, one column; anything else as classes, a column each.

    Raises
    ------
    ValueError
        The file cannot be read, a column is missing, an image has no label or two, or all labels are equal.

    Examples
    --------
    >>> import io
    >>> read_labels(io.StringIO("file,label\\na.png,cat\\nb.png,dog"), ["b.png", "a.png"]).tolist()
    [[0.0, 1.0], [1.0, 0.0]]
    """
    try:
        rows = pd.read_csv(path)
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise ValueError(f"{path} cannot be read as a table: {error}") from None
    if not {"file", "label"} <= set(rows.columns):
        raise ValueError(f"{path} has the columns {', '.join(map(str, rows.columns))}: file and label are needed")
    twice = rows.file[rows.file.duplicated()]
    if len(twice):
        raise ValueError(f"{path} names {twice.iloc[0]} more than once")
    known = rows.set_index("file").label
    missing = [name for name in files if name not in known.index or pd.isna(known[name])]
    if missing:
        raise ValueError(f"{path} has no label for {len(missing)} of {len(files)} images, {missing[0]} for one")
    known = known.loc[list(files)]
    if known.nunique() < 2:
        raise ValueError(f"all images have the label {known.iloc[0]}: there is nothing to tell apart")
    if pd.api.types.is_float_dtype(known):
        return known.to_numpy(np.float64)[:, None]
    return pd.get_dummies(known).to_numpy(np.float64)


def load_sources(specs: str) -> list[Encoder]:
    """Networks by their strings, or all of a scheme.

    Parameters
    ----------
    specs : str
        ``"package"``, or strings as `zoo.load` takes them, with spaces between.

    Returns
    -------
    list of Encoder

    Raises
    ------
    ValueError, FileNotFoundError
        As for `zoo.load`.

    Examples
    --------
    >>> [source.name for source in load_sources("bank:edge2d bank:rgb2mist")]
    ['edge2d', 'rgb2mist']
    """
    names = specs.split()
    if not names:
        raise ValueError('no networks are named: write "package", or strings such as "package:hed onnx:FILE"')
    return [one for name in names for one in ([zoo.load(name)] if ":" in name else zoo.load_all(name))]


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, rank, and write ``rank.csv`` and ``rank.png``."""
    parser = argparse.ArgumentParser(prog="python -m support.rank", description=__doc__)
    parser.add_argument("--images", required=True, help="folder of images of the task; labels are not needed")
    parser.add_argument("--network", help='network trained for the task, e.g. "onnx:FILE" or "python:FILE.py:FACTORY"')
    parser.add_argument(
        "--mean", type=float, nargs="+", help="of the network's preprocessing, a number or one a channel"
    )
    parser.add_argument("--std", type=float, nargs="+", help="of the network's inputs")
    parser.add_argument("--size", type=int, help="pixels along a side of the network's input")
    parser.add_argument("--labels", help="CSV with the columns file and label: instead of --network")
    parser.add_argument("--networks", default="package", help='the sources: "package", or strings with spaces between')
    parser.add_argument("--n", type=int, default=100, help="images that are used, at most")
    parser.add_argument("--pixels", type=int, default=224, help="side of the images that all networks see")
    parser.add_argument("--seed", type=int, default=0, help="of the sample of images, the draws and the untrained twin")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--out", type=Path, required=True, help="folder for rank.csv and rank.png")
    given = parser.parse_args(arguments)
    if bool(given.network) == bool(given.labels):
        parser.error("give --network (no labels needed), or --labels (no network needed), and not both")
    if given.out.resolve().is_relative_to(Path(given.images).resolve()):
        parser.error("--out lies inside --images: its picture would be an image of the next run; choose another folder")
    try:
        sources = load_sources(given.networks)
        if given.network:
            wanted = {"mean": given.mean, "std": given.std, "input_size": given.size and [given.size] * 2}
            target = zoo.load(given.network, preprocessing={k: v for k, v in wanted.items() if v is not None} or None)
        images = probe.load(f"folder:{given.images}", given.n, given.pixels, given.seed, crop="centre", fewer=True)
        if given.labels:
            target = read_labels(given.labels, images.file.values.tolist())
        found = evidence(
            images,
            sources,
            target,
            seed=given.seed,
            device=given.device,
            progress=lambda name: print(f"{name} …", file=sys.stderr, flush=True),
        )
    except (ValueError, TypeError, FileNotFoundError, ImportError) as error:
        sys.exit(f"error: {error}")
    ranked = table(found, seed=given.seed)
    given.out.mkdir(parents=True, exist_ok=True)
    ranked.to_csv(given.out / "rank.csv", float_format="%.6g")
    title = f"{given.network or given.labels}, {images.sizes['image']} images"
    draw(ranked, title).savefig(given.out / "rank.png", dpi=150)
    print(ranked[["score", "low", "high", "chance", "untrained", "verdict"]].to_string(float_format="%.3f"))
    print(conclusion(ranked))
    print(f"wrote {given.out / 'rank.csv'} and {given.out / 'rank.png'}")


if __name__ == "__main__":
    main()
