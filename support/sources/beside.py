"""Python files with modules beside them, each file in a world of its own: two of them may have a ``model.py`` each.

What a file imports is looked for beside it first, as when it is run as a program, and found there it belongs to that
file alone: it neither hides a module of the same name from others nor is hidden by one. It stays so for imports inside
functions, whenever they run. The text of every file is kept as it was read, and goes along when an encoder is pickled.
"""

import ast
import builtins
import contextlib
import hashlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import threading
import types
import uuid
import weakref
from pathlib import Path
from typing import Any

from support.sources import shared

OWN = "own_"  # how the names of packages begin that stand for the folder of a file
_folders: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()  # by these names
_one_at_a_time = threading.RLock()  # sys.path is changed meanwhile


class Sources(dict):
    """SHA-256 of each file that a network was made of, by its module's name; what `Encoder.sources` takes.

    Pickled, it takes the text of these files along, and where it is unpickled their modules can be imported. It has to
    come before objects of their classes: `Encoder` sees to that.
    """

    def __init__(self, folder: "_Folder"):
        super().__init__()
        self._folder = folder
        self.renew()
        folder.sources = weakref.ref(self)
        weakref.finalize(self, _forget, folder.package)

    def renew(self) -> None:
        """Take in what was imported since."""
        self.update((name, hashlib.sha256(file[2]).hexdigest()) for name, file in sorted(self._folder.files.items()))

    def __reduce__(self):
        return _again, (self._folder.package, self._folder.files)


def _again(package, files):
    """Sources in the process that unpickles them."""
    folder = _folders.get(package) or _Folder(package, files)
    return folder.sources() or Sources(folder)


def _forget(package):
    modules = {name: sys.modules[name] for name in list(sys.modules) if name.partition(".")[0] == package}
    for name in modules:
        del sys.modules[name]
    if package in _folders:
        _folders[package].modules = modules


class _Folder:
    """The world of one file: a package whose modules are the files beside it."""

    def __init__(self, package, files=None, paths=()):
        self.package = package
        self.files = files or {}  # name → path, whether it is a package, text
        self.paths = list(paths)  # folders to look in, the file's own first; none where it was unpickled
        self.before = None  # sys.path before the file ran, while it runs
        self.sources = lambda: None
        self.modules = {}  # its modules, once its `Sources` are gone; a network may still need them
        self.builtins = vars(builtins) | {"__import__": self._import}
        module = types.ModuleType(package)
        module.__path__ = []
        sys.modules[package] = module
        _folders[package] = self

    def added(self):
        """Folders that the file has put on sys.path while it runs."""
        return [] if self.before is None else [Path(path) for path in sys.path if path not in self.before]

    def look(self, name):
        """What a module is made of, or None: from memory, or from the folders, and then together with what it names."""
        if name in self.files:
            return self.files[name]
        parts = name.split(".")
        if parts[0] == "support":
            return None
        places = [folder.joinpath(*parts) for folder in (*self.paths, *self.added())]
        for place in places:
            for path, is_package in ((place / "__init__.py", True), (place.with_name(f"{parts[-1]}.py"), False)):
                if path.is_file():
                    self.keep(name, path, is_package)
                    return self.files[name]
        for place in places:  # a folder without __init__.py, where nothing that is installed has its name
            if place.is_dir() and next(place.glob("*.py"), None) and (len(parts) > 1 or not _is_known(name)):
                self.files[name] = (str(place), True, b"")
                return self.files[name]
        return None

    def keep(self, name, path, is_package):
        text = path.read_bytes()
        self.files[name] = (str(path), is_package, text)
        try:
            tree = ast.parse(text)
        except SyntaxError:  # it will be told when the module is imported
            return
        for node in ast.walk(tree):  # also what is imported later, by a function
            if isinstance(node, ast.Import):
                wanted = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                above = name.split(".") if is_package else name.split(".")[:-1]
                above = above[: len(above) - node.level + 1] if node.level else []
                base = ".".join([*above, *([node.module] if node.module else [])])
                wanted = [base, *(f"{base}.{alias.name}".strip(".") for alias in node.names)]
            else:
                continue
            for parts in [one.split(".") for one in wanted if one]:
                all(self.look(".".join(parts[: count + 1])) for count in range(len(parts)))

    def compiled(self, name, places=()):
        """The specification of a compiled module, or None."""
        spec = importlib.machinery.PathFinder.find_spec(name, places or [*map(str, (*self.paths, *self.added()))])
        return spec if spec is not None and spec.loader is not None else None

    def has(self, name):
        return self.look(name) is not None or (name != "support" and self.compiled(name) is not None)

    @contextlib.contextmanager
    def here(self):
        """While open, the modules can be imported."""
        if self.package in sys.modules:
            yield
        else:
            sys.modules.update(self.modules)
            try:
                yield
            finally:
                _forget(self.package)

    def _import(self, name, globals=None, locals=None, fromlist=(), level=0):
        """What `import` calls in the files of this folder."""
        with self.here():
            return self._imported(name, globals, locals, fromlist, level)

    def _imported(self, name, globals, locals, fromlist, level):
        top = name.partition(".")[0]
        if level == 0 and top == "importlib" and (name == top or not fromlist):
            builtins.__import__(name)
            found = types.ModuleType(top)
            vars(found).update(vars(importlib) | {"import_module": self._import_module})
            return found
        asks = globals or {}
        is_itself = asks.get("__name__") == f"{self.package}.{name}" and "__path__" not in asks  # not what is meant
        if level or is_itself or not self.has(top):
            return builtins.__import__(name, globals, locals, fromlist, level)
        if fromlist:
            return builtins.__import__(f"{self.package}.{name}", globals, locals, fromlist, 0)
        importlib.import_module(f"{self.package}.{name}")
        return sys.modules[f"{self.package}.{top}"]

    def _import_module(self, name, package=None):
        is_beside = not name.startswith(".") and self.has(name.partition(".")[0])
        with self.here():
            return importlib.import_module(f"{self.package}.{name}" if is_beside else name, package)


def _is_known(name):
    try:
        return name in sys.modules or importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the modules of all folders, by names that begin with that of the folder's package."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        package, _, rest = name.partition(".")
        folder = _folders.get(package)
        if folder is None or not rest:
            return None
        file = folder.look(rest)
        if file is None:
            return folder.compiled(name, path)
        place, is_package, text = file
        spec = importlib.machinery.ModuleSpec(name, _Loader(folder, file), origin=place, is_package=is_package)
        spec.has_location = Path(place).suffix == ".py"
        if is_package:
            spec.submodule_search_locations = [str(Path(place).parent if spec.has_location else place)]
        return spec


class _Loader(importlib.abc.InspectLoader):
    def __init__(self, folder, file):
        self.folder, (self.path, self.package, self.text) = folder, file

    def get_source(self, name):
        return importlib.util.decode_source(self.text)

    def is_package(self, name):
        return self.package

    def exec_module(self, module):
        module.__builtins__ = self.folder.builtins
        exec(compile(self.text, self.path, "exec", dont_inherit=True), vars(module))


sys.meta_path.insert(0, _Finder())  # before that which would find the files of packages too


def call(path: Path, function: str) -> tuple[Any, Sources]:
    """What a function (or class) of a Python file returns, called without arguments.

    The file runs, with all that it can do. What it adds to ``sys.path`` holds for its own imports only.

    Parameters
    ----------
    path : Path
        The file.
    function : str
        Name of the function.

    Returns
    -------
    object, Sources
        What it returned, and the files that were read.

    Raises
    ------
    ValueError
        No Python file, or no such function in it.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "width.py").write_text("WIDTH = 6")
    >>> _ = (folder / "net.py").write_text("def make():\\n    from width import WIDTH\\n    return WIDTH")
    >>> made, sources = call(folder / "net.py", "make")
    >>> made, sorted(sources), "width" in sys.modules
    (6, ['net', 'width'], False)
    """
    if path.suffix != ".py":
        raise ValueError(f"{path.name} is no Python file: its name has to end in .py")
    top, parts = path.parent, [path.stem.replace(".", "_")]
    if any(isinstance(node, ast.ImportFrom) and node.level for node in ast.walk(ast.parse(path.read_bytes()))):
        while (top / "__init__.py").is_file():  # it belongs to a package, and says so
            top, parts = top.parent, [top.name, *parts]
    folder = _Folder(f"{OWN}{parts[-1]}_{uuid.uuid4().hex}", paths=dict.fromkeys([path.parent, top]))
    name = ".".join(parts)
    with _one_at_a_time:
        folder.before = list(sys.path)
        try:
            for count in range(1, len(parts)):
                folder.look(".".join(parts[:count]))
            folder.keep(name, path, is_package=False)
            module = importlib.import_module(f"{folder.package}.{name}")
            made = getattr(module, function, None)
            if not callable(made):
                known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
                raise ValueError(f"{path.name}: {shared.unknown(function, known, 'factory')}")
            return made(), Sources(folder)
        except BaseException:
            _forget(folder.package)
            raise
        finally:
            folder.paths += folder.added()
            sys.path[:], folder.before = folder.before, None
