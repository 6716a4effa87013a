"""The house rules: which module may import which, typed and explained functions, prose that can be read aloud.

What does not keep a rule yet stands in ``still_open.txt``, a line each, and nothing else may: a line that is no longer
needed fails too. ``python tests/test_house.py`` takes such lines out.
"""

import ast
import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
STILL_OPEN = Path(__file__).parent / "still_open.txt"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PAGES = sorted((ROOT / "book").glob("*.md"))

# From the bottom to the top: a module imports from its own line or the lines above it. A name with a dot ending means
# all modules of a folder.
LAYERS = [
    "labels identity running sources.shared sources.weights epsilon_lrp invariant store directions readout",
    "bank bank.networks bank.rooms bank.tasks bank.work",
    "probe encoder",
    "sources. taskonomy",
    "zoo",
    "methods passes cluster attribution",
    "library space pairs",
    "similarity",
    "oracle",
    "ranking supervised",
    "bank.training bank.transfers bank.report bank.__main__",
    "notebook figures",
    "chapters.",
    "profiles runner pages sweep book rank",
]
FOLDED = {"hide-input", "hide-cell", "remove-input", "remove-cell"}
MOST_LINES = 15  # of a visible cell
CODE = {"{code-block}", "{code}", "{math}", "{raw}", "{bibliography}", "{toctree}", "{glue:figure}"}
LONG = 30  # words of a sentence that is too long
MOST_LONG = 0.04  # share of them
MOST_SEMICOLONS = 0.03  # in a sentence, on average


def modules():
    """Name to syntax tree of every module of the package; a package has the name of its folder."""
    found = {}
    for path in sorted((ROOT / "support").rglob("*.py")):
        parts = path.relative_to(ROOT / "support").with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        if name:
            found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def imported(tree, known):
    """Modules of the package that a module imports, wherever in it, and the names that it takes from each."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "support":
            within = node.module.partition(".")[2]
            for alias in node.names:
                inner = f"{within}.{alias.name}".strip(".")
                if inner in known:
                    found.setdefault(inner, set())
                else:
                    found.setdefault(within, set()).add(alias.name)
        elif isinstance(node, ast.ImportFrom) and node.level:
            raise AssertionError(f"line {node.lineno}: write the whole name, from support...")
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("support."):
                    found.setdefault(alias.name.partition(".")[2], set())
    return found


def layer(name):
    """Height of a module, 0 at the bottom; an exact name counts before the folder."""
    for wanted in (name, name.rpartition(".")[0] + "."):
        for height, line in enumerate(LAYERS):
            if wanted in line.split():
                return height
    raise AssertionError(f"support.{name} has no place in LAYERS: decide where it belongs")


def circles(arrows):
    """Modules that can be reached from themselves."""
    found = set()
    for start in arrows:
        waiting, seen = list(arrows[start]), set()
        while waiting:
            name = waiting.pop()
            if name not in seen:
                seen.add(name)
                waiting += arrows.get(name, ())
        if start in seen:
            found.add(start)
    return found


def privates(tree, known):
    """Names that begin with an underscore and belong to another module of the package."""
    taken = imported(tree, known)
    found = {f"{module}.{name}" for module, names in taken.items() for name in names if name.startswith("_")}
    aliases = {module.rpartition(".")[2]: module for module in taken}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in aliases:
            if node.attr.startswith("_") and not node.attr.startswith("__"):
                found.add(f"{aliases[node.value.id]}.{node.attr}")
    return found


def functions(tree):
    """Public functions of a module and public methods of its public classes, with their dotted names."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node.name, node
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef) and (inner.name == "__init__" or inner.name[0] != "_"):
                    yield f"{node.name}.{inner.name}", inner


def is_typed(function):
    """Whether every parameter of a function has a type, and what it returns."""
    every = function.args
    named = [*every.posonlyargs, *every.args, *every.kwonlyargs, every.vararg, every.kwarg]
    named = [parameter for parameter in named if parameter and parameter.arg not in ("self", "cls")]
    return all(parameter.annotation for parameter in named) and bool(function.returns or function.name == "__init__")


def cells(path, kind):
    """Source and tags of a notebook's cells of one kind."""
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == kind:
            yield "".join(cell["source"]), set(cell["metadata"].get("tags", []))


def prose(path):
    """What a page says: Markdown, and the texts of the sentences that a notebook fills with numbers."""
    if path.suffix == ".md":
        return path.read_text(encoding="utf-8")
    texts = [text for text, _ in cells(path, "markdown")]
    for source, _ in cells(path, "code"):
        calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
        calls = [node for node in calls if ast.unparse(node.func) in ("notebook.say", "say", "notebook.finding")]
        texts += [text.value for call in calls for text in call.args if isinstance(text, ast.Constant)]
    return "\n\n".join(texts)


def without_code(markdown):
    """Lines of Markdown that are in no code block; the content of other directives stays."""
    kept, stack = [], []  # of the fences that are open: their marks, and whether code is inside
    for line in markdown.splitlines():
        mark, directive = re.match(r"\s*(`{3,}|:{3,}|)(\{[\w:-]+\})?", line).groups()
        if mark and stack and mark[0] == stack[-1][0][0] and len(mark) >= len(stack[-1][0]) and not directive:
            stack.pop()
        elif mark and not any(is_code for _, is_code in stack):
            stack.append((mark, mark[0] == "`" and (not directive or directive in CODE)))
        elif not any(is_code for _, is_code in stack):
            kept.append(line)
            continue
        kept.append("")
    return "\n".join(kept)


def sentences(markdown):
    """Sentences of a page, without code, tables, formulas, headings, options and the marks of Markdown."""
    text = without_code(markdown)
    text = re.sub(r"(?s)\$\$.*?\$\$(?: *\([\w-]+\))?", " ", text)
    text = re.sub(r"(?m)^\s*(:\w[\w-]*:.*|\|.*|#.*|\([\w-]+\)=|---+)$", "\n", text)
    text = re.sub(r"(?:\{[\w:-]+\})?`(?:[^`\n]|\n(?!\s*\n))+`|\$[^$\n]+\$", "X", text)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"(?m)^\s*(?:[-*+]|\d+\.)\s+", "\n\n", text)
    text = re.sub(r"\b(e\.g|i\.e|cf|vs|al|Fig|Eq|No|approx)\.", r"\1", text)
    found = []
    for paragraph in re.split(r"\n\s*\n", text):
        for sentence in re.split(r"(?<=[.!?])[*_\"')\]]*\s+(?=[*_\"'(\[]*[A-Z0-9{X])", " ".join(paragraph.split())):
            if len(re.findall(r"\w[\w’'.-]*", sentence)) > 1:
                found.append(sentence)
    return found


def is_plain(path):
    """Whether few sentences of a page are long, and few have semicolons."""
    said = sentences(prose(path))
    long = [text for text in said if len(re.findall(r"\w[\w’'.-]*", text)) > LONG]
    semicolons = sum(text.count(";") for text in said)
    return len(long) <= max(1, MOST_LONG * len(said)) and semicolons <= max(1, MOST_SEMICOLONS * len(said))


@cache
def types_that_disagree():
    """Modules in which mypy finds a mistake, and what it says."""
    result = subprocess.run([sys.executable, "-m", "mypy", "support"], cwd=ROOT, capture_output=True, text=True)
    if result.returncode not in (0, 1):
        raise AssertionError(result.stdout + result.stderr)
    found = {}
    for line in result.stdout.splitlines():
        if ": error: " in line:
            path = Path(line.split(":")[0]).relative_to("support").with_suffix("")
            found.setdefault(".".join(path.parts), []).append(line)
    return found


@cache
def open_ends():
    """Everything that does not keep a rule, as lines ``rule: what``."""
    trees = modules()
    found = set()
    for name, tree in trees.items():
        for other in imported(tree, trees):
            if other and layer(other) > layer(name):
                found.add(f"imports go down: {name} imports {other}")
        found |= {f"private names stay at home: {name} uses {other}" for other in privates(tree, trees)}
        for function, node in functions(tree):
            if not is_typed(node):
                found.add(f"public functions are typed: {name}.{function}")
            if "." not in function and function != "main" and "Examples\n" not in (ast.get_docstring(node) or ""):
                found.add(f"public functions have an example: {name}.{function}")
    arrows = {name: set(imported(tree, trees)) for name, tree in trees.items()}
    found |= {f"no circles: {name}" for name in circles(arrows)}
    for path in NOTEBOOKS:
        if "glue:text" in prose(path):
            found.add(f"no glue: {path.stem}")
        shown = [text.splitlines() for text, tags in cells(path, "code") if not FOLDED & tags]
        if any(len([line for line in lines if line.strip()]) > MOST_LINES for lines in shown):
            found.add(f"visible cells are short: {path.stem}")
    found |= {f"types agree: {name}" for name in types_that_disagree()}
    found |= {f"prose is plain: {path.stem}" for path in [*NOTEBOOKS, *PAGES] if not is_plain(path)}
    return found


def still_open():
    return {line for line in STILL_OPEN.read_text(encoding="utf-8").splitlines() if line and line[0] != "#"}


RULES = [
    "imports go down",
    "no circles",
    "private names stay at home",
    "public functions are typed",
    "public functions have an example",
    "types agree",
    "visible cells are short",
    "prose is plain",
    "no glue",
]


@pytest.mark.parametrize("rule", RULES)
def test_rule(rule):
    """Nothing breaks it but what is known, and what is known still does."""
    broken = {line for line in open_ends() if line.startswith(f"{rule}: ")}
    known = {line for line in still_open() if line.startswith(f"{rule}: ")}
    told = types_that_disagree() if rule == "types agree" else {}
    assert sorted(broken - known) == [], f"breaks the rule {told or ''}"
    assert sorted(known - broken) == [], "keeps the rule by now: run `python tests/test_house.py`"


def test_every_open_end_is_of_a_rule():
    assert {line.split(": ")[0] for line in still_open() | open_ends()} <= set(RULES)


# The checks themselves


def test_imports_are_found_wherever_they_stand():
    known = {"space", "probe", "bank", "bank.rooms", "zoo"}
    text = """
from support import space, probe as p
from support.bank import rooms, RANDOM
def f():
    import support.zoo
    from numpy import array
"""
    found = imported(ast.parse(text), known)
    assert found == {"space": set(), "probe": set(), "bank.rooms": set(), "bank": {"RANDOM"}, "zoo": set()}
    with pytest.raises(AssertionError, match="line 1: write the whole name"):
        imported(ast.parse("from . import space"), known)


def test_circles_are_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == {"b", "c"}
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == set()
    assert circles({"a": {"a"}}) == {"a"}


def test_layers_go_from_the_probe_to_the_book():
    order = "probe zoo attribution space similarity oracle ranking notebook chapters.evaluation book".split()
    heights = [layer(name) for name in order]
    assert heights == sorted(set(heights))
    assert layer("bank.rooms") < layer("probe") and layer("bank.training") > layer("oracle")
    with pytest.raises(AssertionError, match="has no place in LAYERS"):
        layer("nonsense")


def test_private_names_are_found():
    text = "from support import space\nfrom support.zoo import _load, Encoder\nspace._x\nspace.__doc__\nself._y\n"
    assert privates(ast.parse(text), {"space", "zoo"}) == {"space._x", "zoo._load"}


def test_types_are_asked_of_public_functions():
    text = """
def f(x: int, *rest: int, y: str = "", **more: str) -> int: ...
def g(x: int): ...
def h(x: int, *rest) -> int: ...
def _i(x): ...
class C:
    def __init__(self, x: int): ...
    def j(self) -> int: ...
    def k(self, x) -> int: ...
    def _l(self, x): ...
class _D:
    def m(self, x): ...
"""
    kinds = {name: is_typed(node) for name, node in functions(ast.parse(text))}
    assert kinds == {"f": True, "g": False, "h": False, "C.__init__": True, "C.j": True, "C.k": False}


def test_only_prose_is_counted():
    text = """# A heading; with a semicolon

:::{admonition} Words of a directive
:class: tip
One sentence, e.g. with `code; here` and $x; y$. And one more; with a semicolon!
:::

```python
a = 1; b = 2
```

| a table | with; cells |
|---|---|

$$ x; y $$ (eq-name)

- An item of a list
- Another {doc}`page` of a *list*. **Bold words** begin this. X is et al. said so

````{note}
```{code-block} python
c = 3; d = 4
```
````

Last words.
"""
    found = sentences(text)
    starts = [one.split()[0] for one in found]
    assert starts == ["One", "And", "An", "Another", "**Bold", "X", "Last"]
    assert sum(one.count(";") for one in found) == 1


def test_long_sentences_and_semicolons_are_counted(tmp_path):
    path, short = tmp_path / "page.md", "This is a short sentence. "
    for text, plain in (
        (short * 20, True),
        (short * 20 + "Word " * 30 + "end. ", True),
        (short * 20 + ("Word " * 30 + "end. ") * 2, False),
        (short * 20 + "One; two. ", True),
        (short * 20 + "One; two. " * 2, False),
        (short * 100 + "One; two. " * 3, True),
    ):
        path.write_text(text)
        assert is_plain(path) == plain, text[-40:]


def test_the_package_says_that_it_is_typed():
    assert (ROOT / "support" / "py.typed").read_text() == ""


if __name__ == "__main__":
    kept = sorted(still_open() & open_ends())
    header = [line for line in STILL_OPEN.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    STILL_OPEN.write_text("\n".join([*header, *kept]) + "\n", encoding="utf-8")
    print(f"{len(kept)} left in {STILL_OPEN.name}")
