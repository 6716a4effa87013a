"""Profiles: which parameters each notebook gets, from ``notebooks/profiles.yml`` or a reader's own file."""

import re
from pathlib import Path

import yaml

from support.notebook import Parameter, closest, compare, declared_parameters


class BookError(Exception):
    """What stopped the book, and what to do about it: a message for the reader, without a traceback."""


def chapters(root: Path) -> list[Path]:
    """Notebooks of the book, in the order in which they run.

    Parameters
    ----------
    root : Path
        The repository.

    Returns
    -------
    list of Path
        ``notebooks/NN_name.ipynb``.

    Raises
    ------
    BookError
        There are none.

    Examples
    --------
    >>> [path.stem for path in chapters(Path("."))][:2]
    ['01_probe_data', '02_pretrained_networks']
    """
    found = sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    if not found:
        raise BookError(f"there are no notebooks (NN_name.ipynb) in {root / 'notebooks'}")
    return found


def folder_of(root: Path, profile: str) -> Path:
    """Where everything that a profile makes is put.

    Parameters
    ----------
    root : Path
        The repository.
    profile : str
        1 to 60 letters, digits, dots, dashes and underscores; the first and the last are no dot and no dash.

    Returns
    -------
    Path
        ``book/_build/<profile>``.

    Raises
    ------
    BookError
        Another name, e.g. one that would lead out of ``book/_build``.

    Examples
    --------
    >>> folder_of(Path("."), "smoke").as_posix()
    'book/_build/smoke'
    """
    if not isinstance(profile, str) or not re.fullmatch(r"\w([\w.-]{0,58}\w)?", profile):
        shown = repr(profile) if len(repr(profile)) < 70 else repr(profile)[:60] + " ..."
        raise BookError(
            f"{shown} is no name for a profile, because its pages are put in a folder of that name: choose 1 to 60 "
            "letters, digits, dots, dashes and underscores, beginning and ending with a letter or a digit"
        )
    return root / "book" / "_build" / profile


def read_file(path: Path) -> tuple[dict, dict]:
    """Profiles of a YAML file, and where in the file they stand.

    Parameters
    ----------
    path : Path
        Three levels of ``name: value``: profile, notebook, parameter.

    Returns
    -------
    dict of str to dict of str to dict
        Profile to notebook to parameters.
    dict of tuple to str
        ``(profile, …)`` to ``"FILE, line N"``.

    Raises
    ------
    BookError
        The file is not there or cannot be read as that; the message has its name and the line.

    Examples
    --------
    >>> profiles, lines = read_file(Path("notebooks/profiles.yml"))
    >>> list(profiles), lines[("smoke",)]
    (['smoke', 'book', 'paper'], 'notebooks/profiles.yml, line 4')
    """
    lines = {}

    def at(mark):
        return f"{path}, line {mark.line + 1}"

    def entries(loader, node, *above):
        what = " → ".join(above) or "the file"
        level = ("profiles", "notebooks", "parameters")[len(above)]
        if isinstance(node, yaml.ScalarNode) and node.tag.endswith(":null"):
            return {}
        if not isinstance(node, yaml.MappingNode):
            raise BookError(f"{at(node.start_mark)}: {what} must hold {level} as `name: value`, or nothing")
        found, once = {}, set()
        for key, _ in node.value:
            if key.tag.endswith(":str") and key.value in once:
                raise BookError(f"{at(key.start_mark)}: {key.value!r} stands twice in {what}; remove one of them")
            once.add(str(key.value))
        loader.flatten_mapping(node)  # puts what `<<` brings in its place; such names may stand twice
        for key, value in node.value:
            if not key.tag.endswith(":str"):
                raise BookError(f"{at(key.start_mark)}: a name in {what} is not text: put it in quotes")
            lines[*above, key.value] = at(key.start_mark)
            if len(above) < 2:
                found[key.value] = entries(loader, value, *above, key.value)
                continue
            parts = value.value if isinstance(value, yaml.SequenceNode) else [value]
            if not all(isinstance(part, yaml.ScalarNode) for part in parts):
                raise BookError(f"{at(key.start_mark)}: {key.value} must be a number, a text or a list of them")
            try:
                found[key.value] = loader.construct_object(value, deep=True)
            except (ValueError, LookupError, AttributeError, TypeError) as error:  # such as the 13th month of a date
                raise BookError(f"{at(key.start_mark)}: {key.value} cannot be read: {error}") from None
        return found

    try:
        text = path.read_bytes().decode("utf-8-sig")
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        profiles = entries(loader, node) if node else {}
    except OSError as error:
        raise BookError(f"the profiles in {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise BookError(f"{path}, line {line}: not UTF-8; save the file as UTF-8") from None
    except RecursionError:
        raise BookError(f"{path} is nested too deeply: it holds profiles, notebooks and parameters only") from None
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        raise BookError(f"{path}, line {line}: the character {chr(error.character)!r} is not allowed") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise BookError(f"{at(mark)}: {error.problem or error.context}") from None
    return profiles, lines


def read_profiles(root: Path, profile: str, given: dict | None = None, file: Path | None = None) -> dict[Path, dict]:
    """Parameters of each notebook in one profile.

    Parameters
    ----------
    root : Path
        The repository.
    profile : str
        Name of a profile of ``notebooks/profiles.yml``, or of `file`.
    given : dict, optional
        Parameters that take the place of the profile's, in every notebook that declares them.
    file : Path, optional
        The reader's own profiles, anywhere; their names are not those of the book's.

    Returns
    -------
    dict of Path to dict
        Notebook to its parameters, in the order in which they run; `results`, the folder where a notebook leaves
        what later ones read, is set for each notebook that declares it.

    Raises
    ------
    BookError
        The profile, a notebook or a parameter in it is unknown, a value is of the wrong kind, or no notebook declares
        what was given. A mistake in a file is named with its line.

    Examples
    --------
    >>> plan = read_profiles(Path("."), "smoke", {"n_images": 3})
    >>> plan[Path("notebooks/01_probe_data.ipynb")]
    {'n_images': 3, 'size': 64}
    """
    given, known = given or {}, root / "notebooks" / "profiles.yml"
    profiles, lines = read_file(file or known)
    if profile not in profiles:
        raise BookError(f"unknown profile {profile!r}; the profiles in {file or known} are: {', '.join(profiles)}")
    if file and file.resolve() != known.resolve() and profile in read_file(known)[0]:
        raise BookError(f"{lines[(profile,)]}: the book has a profile {profile!r} already; choose another name")
    try:
        folder = folder_of(root, profile)
    except BookError as error:
        raise BookError(f"{lines[(profile,)]}: {error}") from None
    asked, notebooks = profiles[profile], chapters(root)
    stems = [notebook.stem for notebook in notebooks]
    for name in asked.keys() - set(stems):
        raise BookError(f"{lines[profile, name]}: there is no notebook {name!r}{closest(name, stems)}")
    plan: dict[Path, dict] = {}
    everything: dict[str, Parameter] = {}
    for notebook in notebooks:
        declared = _declared(notebook)
        everything |= declared
        plan[notebook] = dict(asked.get(notebook.stem, {}))
        for name, value in plan[notebook].items():
            _compare({name: value}, declared, f"{lines[profile, notebook.stem, name]}: {notebook.stem}")
        suiting = {name: value for name, value in given.items() if name in declared}
        _compare(suiting, declared, notebook.stem)
        plan[notebook] |= suiting
        if "results" in declared:
            plan[notebook].setdefault("results", folder.relative_to(root).joinpath("results").as_posix())
    for name in given.keys() - everything.keys():
        raise BookError(f"no notebook has a parameter {name!r}{closest(name, everything)}")
    return plan


def table(root: Path, file: Path | None = None) -> str:
    """Chapters, their parameters with default and help, and what each profile sets, as one table.

    Parameters
    ----------
    root : Path
        The repository.
    file : Path, optional
        As for `read_profiles`: its profiles are shown in place of the book's.

    Returns
    -------
    str
        A line for each parameter; a cell of a profile is empty where the default stays.

    Raises
    ------
    BookError
        As for `read_file`, or there are no notebooks.

    Examples
    --------
    >>> table(Path(".")).splitlines()[0].split()
    ['chapter', 'parameter', 'default', 'smoke', 'book', 'paper', 'help']
    """
    profiles, _ = read_file(file or root / "notebooks" / "profiles.yml")
    rows = [["chapter", "parameter", "default", *profiles, "help"]]
    for notebook in chapters(root):
        for name, (default, told) in _declared(notebook).items():
            values = [asked.get(notebook.stem, {}).get(name) for asked in profiles.values()]
            shown = ["" if value is None else str(value) for value in values]
            rows.append([notebook.stem, name, repr(default), *shown, told])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    return "\n".join("  ".join(row).rstrip() for row in padded)


def _declared(notebook: Path) -> dict[str, Parameter]:
    try:
        return declared_parameters(notebook)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise BookError(f"{notebook} cannot be read: {error}") from None


def _compare(values, declared, where):
    try:
        compare(values, declared)
    except (ValueError, TypeError) as error:
        raise BookError(f"{where}: {error}") from None
