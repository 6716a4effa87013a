"""What a notebook calls: a check of its parameters, what earlier ones left, sentences, tables and findings of a run."""

import ast
import contextlib
import difflib
import io
import json
import math
import re
import string
import tokenize
from collections.abc import Iterable, Mapping
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from IPython.display import Markdown, display
from pandas.io.formats.style import Styler

from support.ranking import Interval

DATA = Path(__file__).resolve().parents[1] / "data"
INJECTED = "# Parameters"  # first line of the cell that papermill adds
FINDING = "application/vnd.transferability.finding+json"  # how an executed notebook carries a finding to the first page
FINDINGS_HERE = "<!-- findings -->"  # the place on the first page where their table is put
LEFT = "application/vnd.transferability.left+json"  # how it carries what a chapter leaves for the hand-written pages
LEFT_HERE = re.compile(r"<!-- found: (.+?) -->")  # the places on them


class Parameter(NamedTuple):
    """One line of a notebook's `parameters` cell: its default (int, float, str, bool, list or None) and its comment."""

    default: object
    help: str


def parse_parameters(source: str) -> dict[str, Parameter]:
    """Read a `parameters` cell without running it.

    Parameters
    ----------
    source : str
        The cell: lines of the form ``name = literal  # help``.

    Returns
    -------
    dict of str to Parameter
        In the order of the cell.

    Raises
    ------
    ValueError
        A statement is not one name and one literal.

    Examples
    --------
    >>> parse_parameters("n_images = 4  # how many")
    {'n_images': Parameter(default=4, help='how many')}
    """
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    parameters = {}
    for statement in ast.parse(source).body:
        text = ast.get_source_segment(source, statement)
        if (
            not isinstance(statement, ast.Assign)
            or len(statement.targets) != 1
            or not isinstance(statement.targets[0], ast.Name)
        ):
            raise ValueError(f"a parameter is one name and one literal, not {text!r}")
        value = statement.value
        if isinstance(value, ast.Call) and ast.unparse(value.func) == "float":  # how papermill writes nan and infinity
            default = float(ast.literal_eval(value.args[0]))
        else:
            try:
                default = ast.literal_eval(value)
            except ValueError:
                raise ValueError(f"a parameter is one name and one literal, not {text!r}") from None
        parameters[statement.targets[0].id] = Parameter(default, comments.get(statement.end_lineno or 0, ""))
    return parameters


def declared_parameters(path: str | Path) -> dict[str, Parameter]:
    """Parameters that a notebook declares in its cell tagged `parameters`.

    Parameters
    ----------
    path : str or Path
        The notebook.

    Returns
    -------
    dict of str to Parameter
        Empty when there is no such cell.

    Examples
    --------
    >>> declared_parameters("notebooks/01_probe_data.ipynb")["seed"].default
    0
    """
    for cell in json.loads(Path(path).read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code" and "parameters" in cell["metadata"].get("tags", []):
            return parse_parameters("".join(cell["source"]))
    return {}


def closest(name: str, known: Iterable[str]) -> str:
    """A hint at the name that was probably meant.

    Parameters
    ----------
    name : str
        Unknown.
    known : iterable of str
        The names to choose from.

    Returns
    -------
    str
        "; did you mean …?", or nothing where none is similar.

    Examples
    --------
    >>> closest("metod", ["method", "seed"])
    "; did you mean 'method'?"
    """
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def _is_same_kind(value, default):
    """Whether `value` may stand where the notebook has `default`: the same type, or an int for a float."""
    if default is None:
        return True
    return type(value) is type(default) or (type(value) is int and type(default) is float)


def compare(given: Mapping[str, object], declared: Mapping[str, Parameter]) -> None:
    """Refuse parameters that a notebook does not know, and values of another kind than its defaults.

    Parameters
    ----------
    given : dict
        Name to value, as papermill was told.
    declared : dict of str to Parameter
        What the notebook's `parameters` cell says.

    Raises
    ------
    ValueError
        A name is unknown; the message has the closest known one, and lists all with default and help.
    TypeError
        A value is of another kind than the default; an int will do for a float. Same list.

    Examples
    --------
    >>> compare({"n_imagse": 4}, {"n_images": Parameter(8, "how many")})
    Traceback (most recent call last):
        ...
    ValueError: unknown parameter 'n_imagse'; did you mean 'n_images'?
    This notebook's parameters are:
      n_images = 8  # how many
    """
    lines = [f"  {name} = {known.default!r}  # {known.help}" for name, known in declared.items()]
    known_ones = "\nThis notebook's parameters are:\n" + "\n".join(lines)
    for name, value in given.items():
        if name not in declared:
            raise ValueError(f"unknown parameter {name!r}{closest(name, declared) or '.'}{known_ones}")
        default = declared[name].default
        if not _is_same_kind(value, default):
            article = "an" if type(default).__name__[0] in "aeiou" else "a"
            raise TypeError(
                f"parameter {name!r} must be {article} {type(default).__name__} such as {default!r}, "
                f"not {value!r} ({type(value).__name__}).{known_ones}"
            )


def check_parameters() -> None:
    """Refuse misspelt parameters and values of the wrong kind that papermill was given.

    To be called in the cell right after a notebook's `parameters` cell. Plain papermill only warns of an unknown name
    and goes on with the default, so that a sweep over a misspelt parameter looks like a success. The cell that
    papermill adds is found in IPython's input history and compared with the cell that ran before it. Does nothing
    outside IPython, or when papermill has added no cell.

    Raises
    ------
    ValueError, TypeError
        As `compare` says.

    Examples
    --------
    >>> check_parameters()  # papermill has added nothing here
    """
    with contextlib.suppress(ImportError):
        from IPython import get_ipython

        shell = get_ipython()
        history = shell.user_ns["In"] if shell is not None else []
        added = [index for index, cell in enumerate(history) if cell.startswith(INJECTED + "\n")]
        if added:
            given = parse_parameters(history[added[-1]])
            before = [cell for cell in history[: added[-1]] if cell.strip() and not cell.startswith(INJECTED + "\n")]
            compare({name: value.default for name, value in given.items()}, parse_parameters(before[-1]))


def artefact(path: str | Path, notebook: str) -> Path:
    """Path of something that an earlier notebook leaves on disk.

    Parameters
    ----------
    path : str or Path
        File or folder.
    notebook : str
        Stem of the notebook that makes it, e.g. ``"03_attribution_maps"``.

    Returns
    -------
    Path
        `path`, which exists.

    Raises
    ------
    FileNotFoundError
        It does not exist; the message has the command that makes it.

    Examples
    --------
    >>> artefact("notebooks", "01_probe_data").name
    'notebooks'
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist yet. The notebook {notebook} makes it; from the top folder of the repository run: "
            f"papermill notebooks/{notebook}.ipynb {notebook}_out.ipynb -p results {path.parent}"
        )
    return path


def say(text: str, **values: object) -> None:
    """Show a finding of the run as a sentence, in JupyterLab, Colab, on GitHub and in the book alike.

    The cell's input is hidden in the book by the tag ``remove-input``.

    Parameters
    ----------
    text : str
        Markdown, with the values in braces as for `str.format`.
    **values
        Their names and values.

    Raises
    ------
    KeyError
        A name in braces that no value has.
    ValueError
        A value that the sentence does not use, or that is not finite: a number that is missing is not a finding.

    Examples
    --------
    >>> say("Chance is {chance:.2f}.", chance=5 / 19)
    Chance is 0.26.
    """
    display(_Sentence(_filled(text, values)))


def _filled(text, values):
    """A text with its values, each of which it uses."""
    wanted = {name.split(".")[0].split("[")[0] for _, name, _, _ in string.Formatter().parse(text) if name}
    if unused := set(values) - wanted:
        raise ValueError(f"the sentence does not say {', '.join(sorted(unused))}")
    for name, value in values.items():
        if isinstance(value, Real) and not math.isfinite(value):
            raise ValueError(f"{name} is {value}: a sentence needs a number")
    return text.format(**values)


class _Sentence(Markdown):
    """Markdown that is its own text where nothing renders it."""

    def __repr__(self):
        return self.data


def compared(
    interval: Interval,
    to: float = 0.0,
    above: str = "above",
    below: str = "below",
    undecided: str = "not surely different from",
) -> str:
    """Where an interval lies beside a number, in words that a sentence can go on with.

    Parameters
    ----------
    interval : ranking.Interval
        Such as `ranking.bootstrap` and `ranking.paired_bootstrap` return; the difference of two scores, mostly.
    to : float, default 0
        The number that it is held against.
    above, below, undecided : str, optional
        What to say where the whole interval lies above the number, below it, or neither.

    Returns
    -------
    str
        One of the three.

    Raises
    ------
    ValueError
        A bound or the number is not finite, or the bounds are exchanged.

    Examples
    --------
    >>> compared(Interval(mean=0.47, low=0.42, high=0.52), to=0.26) + " chance"
    'above chance'
    >>> compared(Interval(-0.02, -0.07, 0.03), above="better than", below="worse than") + " popularity"
    'not surely different from popularity'
    """
    low, high = interval.low, interval.high
    if not (math.isfinite(low) and math.isfinite(high) and math.isfinite(to)) or low > high:
        raise ValueError(f"[{low}, {high}] cannot be compared to {to}: an interval has two finite bounds, low first")
    if low > to:
        return above
    return below if high < to else undecided


def table(
    frame: pd.DataFrame | pd.Series | Styler,
    caption: str,
    digits: int = 2,
    formats: dict[str, str] | None = None,
) -> Styler:
    """A table with its number and caption above it, the same in JupyterLab and in the book.

    Parameters
    ----------
    frame : pandas.DataFrame, pandas.Series or pandas.io.formats.style.Styler
        The table; a Styler keeps the formats that it has.
    caption : str
        Begins with "Table", the number of the chapter, a point and the number of the table in it: "Table 4.1. ...".
    digits : int, default 2
        After the point of a float.
    formats : dict of str to str, optional
        Of the columns that want something else: ``{"share": "{:.0%}"}``.

    Returns
    -------
    pandas.io.formats.style.Styler
        To be the last line of a cell. Its anchor in the page is ``T_table-4-1``.

    Raises
    ------
    ValueError
        The caption does not begin with a number.

    Examples
    --------
    >>> shown = table(pd.DataFrame({"P@5": [0.7312]}, index=["SVCCA"]), "Table 8.1. Precision of one score.")
    >>> "Table 8.1. Precision of one score." in shown.to_html(), "0.73" in shown.to_html()
    (True, True)
    """
    number = re.match(r"Table (\d+)\.(\d+)\. \S", caption)
    if not number:
        raise ValueError(f'a caption begins with the number of the table, such as "Table 4.1. ", not {caption[:20]!r}')
    if isinstance(frame, Styler):
        styler = frame
    else:
        frame = frame.to_frame() if isinstance(frame, pd.Series) else frame
        styler = frame.style.format(precision=digits, na_rep="–", thousands=",", escape="html")
        for column, form in (formats or {}).items():
            styler.format(form, subset=[column], na_rep="–")
    styler.set_uuid(f"table-{number[1]}-{number[2]}").set_caption(caption).set_table_attributes('class="dataframe"')
    return styler.set_table_styles(
        [{"selector": "caption", "props": "caption-side: top; text-align: left"}], overwrite=False
    )


def finding(question: str, answer: str, number: str, **values: object) -> None:
    """Show what a chapter found, as a quotation, and leave it in the notebook for the table of the first page.

    The cell's input is hidden in the book by the tag ``remove-input``.

    Parameters
    ----------
    question : str
        One sentence.
    answer : str
        One or two sentences, with values in braces as for `say`.
    number : str
        The number that the answer rests on, with what it is and its interval; values in braces.
    **values
        Names and values of both.

    Raises
    ------
    KeyError, ValueError
        As for `say`.

    Examples
    --------
    >>> finding("Do maps rank sources?", "No better than a fixed list.", "P@5 {p:.2f}", p=0.47)
    > **Do maps rank sources?** No better than a fixed list. (P@5 0.47)
    """
    answer, number = _filled(f"{answer}\n{number}", values).rsplit("\n", 1)
    display(_Finding({"question": question, "answer": answer, "number": number}))


class _Finding(_Sentence):
    """A finding, to be read and to be collected."""

    def __init__(self, said):
        super().__init__("> **{question}** {answer} ({number})".format(**said))
        self.said = said

    def _repr_mimebundle_(self, include=None, exclude=None):
        return {FINDING: self.said}


def leave(texts: dict[str, str]) -> None:
    """Leave results of a run in the notebook, for the hand-written pages that ask for them by name.

    A page has ``<!-- found: NAME -->`` where the text belongs. The cell is hidden in the book by the tag
    ``remove-cell``.

    Parameters
    ----------
    texts : dict of str to str
        Name and text, in Markdown on one line.

    Raises
    ------
    ValueError
        A text of more than one line.

    Examples
    --------
    >>> leave({"popularity": "holds: 0.54"})
    left for other pages: popularity
    """
    for name, text in texts.items():
        if "\n" in text:
            raise ValueError(f"{name}: what is left for a page is one line of text")
    display(_Left(texts))


class _Left(_Sentence):
    """Texts, to be collected."""

    def __init__(self, texts):
        super().__init__(f"left for other pages: {', '.join(texts)}")
        self.texts = dict(texts)

    def _repr_mimebundle_(self, include=None, exclude=None):
        return {LEFT: self.texts}


def fill(page: str, executed: list[Path]) -> str:
    """Put what executed notebooks have left into a page.

    Parameters
    ----------
    page : str
        MyST Markdown.
    executed : list of Path
        Executed notebooks.

    Returns
    -------
    str
        The page; where nothing was left under a name, it says so.

    Examples
    --------
    >>> fill("Popularity: <!-- found: popularity -->.", [])
    'Popularity: not in this run.'
    """
    left: dict[str, Any] = {}
    for path in executed if LEFT_HERE.search(page) else []:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        for output in (output for cell in cells for output in cell.get("outputs", [])):
            left |= output.get("data", {}).get(LEFT, {})
    return LEFT_HERE.sub(lambda place: left.get(place[1], "not in this run").replace("|", "\\|"), page)


def findings(executed: list[Path]) -> str:
    """Table of what executed notebooks found, in MyST Markdown, a row a finding with a link to its chapter.

    Parameters
    ----------
    executed : list of Path
        Executed notebooks, in the order of the chapters.

    Returns
    -------
    str
        Empty where none of them has a finding.

    Examples
    --------
    >>> findings([])
    ''
    """
    rows = []
    for path in executed:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        for output in (output for cell in cells for output in cell.get("outputs", [])):
            said = output.get("data", {}).get(FINDING)
            if said:
                columns = [said["question"], said["answer"], said["number"], f"{{doc}}`{path.stem}`"]
                rows.append("| " + " | ".join(text.replace("|", "\\|") for text in columns) + " |")
    header = ["| question | answer | number | chapter |", "|---|---|---|---|"]
    return "\n".join([*header, *rows]) if rows else ""
