"""A user's own code, which a recipe names by `modules`.

It is part of what is computed: the digest of the modules, and of the files beside them that they import, stands in the
recipe as `code`, and a run folder holds a copy, from which every rank imports. Edited files make another run, and
change nothing of one that was made before.
"""

import ast
import builtins
import hashlib
import importlib
import importlib.abc
import importlib.util
import os
import re
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.metadata import packages_distributions
from pathlib import Path
from types import ModuleType
from typing import Any

from cifarscale.config.registry import registering
from cifarscale.errors import (
    TRUST_VARIABLE,
    CifarscaleError,
    ConfigError,
    in_one_line,
    is_want_of_memory,
    short_path,
    text_of,
    writing_to,
)

FOLDER = "code"
"""Where a run folder holds the copy."""


@dataclass(frozen=True)
class Code:
    """Modules with all that they import from beside them.

    Attributes:
        modules: files, relative to `root`.
        files: what is in each file, by its path relative to `root`; the modules among them.
        folders: where the files were read: `root`, or for modules that lie elsewhere the folder of each.
    """

    root: Path
    modules: tuple[str, ...]
    files: dict[str, bytes]
    folders: frozenset[Path] = frozenset()

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits that change when any file does."""
        return self.sha256[:16]

    @property
    def sha256(self) -> str:
        """All digits, by which code is trusted: nobody can make other code that has them, too."""
        lines = (f"{path} {hashlib.sha256(content).hexdigest()}" for path, content in sorted(self.files.items()))
        return hashlib.sha256("\n".join([*self.modules, *lines]).encode()).hexdigest()


_IMPORTED: dict[str, Code] = {}
_FINDERS: "dict[str, _Finder]" = {}
"""What imported each of them, by its digest."""
_only_trusted: ContextVar[bool] = ContextVar("only_trusted", default=False)
_IMPORTING = threading.RLock()
"""Held while the modules of some code stand in `sys.modules` in place of others of their names."""


def load_code(modules: Sequence[str], folder: Path | None, digest: str, of_run: bool, where: str) -> str:
    """Imports the modules that a recipe names.

    The copy in a run folder is imported only if it is trusted; otherwise the recipe can be read, and not run.

    Args:
        modules: paths of files, relative to `folder`, or names of importable modules.
        folder: where the recipe lies; None if that is not known, which suffices for code that is imported already.
        digest: what the recipe says of the code; empty if nothing.
        of_run: whether `folder` is that of a run, whoever made it.
        where: stands in front of an error.
    Returns: the digest of the code.
    Raises: ConfigError for modules that are missing, have changed, or cannot be imported.
    """
    if digest and (digest in _IMPORTED or folder is None):
        return digest
    if folder is None:
        raise ConfigError(f"{where}: modules = {list(modules)} stand in no file. Put the recipe into one")
    is_copy = of_run or (folder / FOLDER).is_dir() or _is_run(folder)
    code = _read(modules, folder / FOLDER if is_copy else folder, is_copy, where)
    if digest and digest != code.digest:
        raise ConfigError(
            f"{where}: the files of modules = {list(modules)} have changed since this run was made (they are "
            f"{code.digest} now, and were {digest}). Restore them, or train the recipe that names them: another run"
        )
    if not (is_copy or _only_trusted.get()) or is_trusted(code.sha256):
        _register(code, where)
    return code.digest


def _is_run(folder: Path) -> bool:
    """Whether somebody's run or sweep lies here, whose recipe.toml is named as if it were one's own."""
    made = ("manifest.json", "base.toml", "table.json", "checkpoints", "trials")
    return (folder / "recipe.toml").is_file() and any((folder / name).exists() for name in made)


@contextmanager
def importing_only_trusted() -> Iterator[None]:
    """Inside the block code is imported only if it is trusted, wherever it lies."""
    token = _only_trusted.set(True)
    try:
        yield
    finally:
        _only_trusted.reset(token)


def load_module(module: str, where: str) -> str:
    """Imports a module that is named on the command line, a path or an importable name, and so trusted.

    Returns: the digest of its code.
    Raises: ConfigError as `load_code` does.
    """
    path = Path(module)
    folder, name = (path.parent, path.name) if module.endswith(".py") else (Path(), module)
    code = _read([name], folder, False, where)
    _register(code, where)
    return code.digest


def code_files(digest: str) -> dict[str, bytes]:
    """What is in each file of code that is imported, by its path."""
    return _IMPORTED[digest].files


def save_code(digest: str, run_dir: Path) -> None:
    """Copies imported code into a run folder."""
    for name, content in code_files(digest).items():
        path = run_dir / FOLDER / name
        with writing_to(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def require_imported(digest: str, modules: Sequence[str]) -> None:
    """Raises: ConfigError for code of a run folder that was not imported, since this user has not trained it."""
    if digest and digest not in _IMPORTED:
        raise ConfigError(
            f"this run needs {', '.join(modules)}, code that you have not trained. Read it in code/ of the run folder; "
            "if you trust it, run: cifarscale --trust-code …"
        )


@contextmanager
def following(digest: str) -> Iterator[None]:
    """Refuses what code imports inside the block if no import statement names it: when the code is tried.

    Such files are neither in its digest nor in the copy in a run folder.

    Raises: ConfigError.
    """
    known = set(sys.modules)
    yield
    if finder := _FINDERS.get(digest):
        finder.require_followed(known, ", ".join(_IMPORTED[digest].modules))


def trust(digest: str, modules: Sequence[str]) -> None:
    """Notes that imported code is this user's own: a run folder that holds it may be run without asking.

    Raises: ConfigError as `require_imported` does.
    """
    require_imported(digest, modules)
    if digest and not is_trusted(sha256 := _IMPORTED[digest].sha256):
        os.environ[TRUST_VARIABLE] = ",".join(filter(None, (os.environ.get(TRUST_VARIABLE), sha256)))  # for the ranks
        with suppress(OSError):  # a home that cannot be written, where only processes that we start know of it
            path = _trusted_list()
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.write(f"{sha256}\n")


def is_trusted(sha256: str) -> bool:
    """Whether code may be run: this user has trained or submitted it, or says so."""
    named = os.environ.get(TRUST_VARIABLE, "").split(",")
    if "all" in named or sha256 in named:
        return True
    try:
        return sha256 in _trusted_list().read_text(encoding="utf-8").split()
    except OSError:
        return False


def _trusted_list() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state"
    return Path(state) / "cifarscale/trusted-code"


@contextmanager
def naming_the_line(what: str, digest: str) -> Iterator[None]:
    """Turns an error in a user's own code into one line that says where in it; but for what the machine cannot do.

    Args:
        what: of the code is called, such as `network 'mixer'`.
        digest: of the code; empty for ours, whose errors pass.
    Raises: ConfigError.
    """
    try:
        yield
    except Exception as error:
        is_ours = isinstance(error, CifarscaleError) or digest not in _IMPORTED
        if is_ours or is_want_of_memory(error) or "deterministic implementation" in text_of(error):
            raise
        code = _IMPORTED[digest]
        there = place(error, code.root) or ", ".join(code.modules)
        raise ConfigError(f"{what}: {there}: {_said(error)}") from error


def kind_of(value: Any) -> str:
    """What a user's own code has returned, in a few words: the type and shape of a tensor."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
    return f"a {type(value).__name__}{f' of {len(value)}' if isinstance(value, tuple | list) else ''}"


def _read(modules: Sequence[str], root: Path, is_copy: bool, where: str) -> Code:
    files: dict[str, bytes] = {}
    names, folders = [], set()
    for module in modules:
        path, base = _locate(module, root, is_copy, where)
        names.append(path.relative_to(base).as_posix())
        folders.add(base)
        for file in sorted(_closure(path, base)):
            name = file.relative_to(base).as_posix()
            try:
                content = file.read_bytes()
            except OSError as error:
                raise ConfigError(f"{where}: modules: cannot read {file}: {error.strerror}") from error
            if files.setdefault(name, content) != content:
                raise ConfigError(f"{where}: modules: two files are called {name}. Rename one of them")
    return Code(_absolute(root), tuple(names), files, frozenset(folders))


_NEEDED = """
cifarscale click functorch IPython ipykernel ipykernel_launcher ipywidgets jinja2 matplotlib mpl_toolkits numpy onnx
onnxruntime onnxscript optuna PIL pydantic pylab pytorch_fid ray requests rich safetensors scipy submitit tomli_w torch
torchgen torchvision wandb wandb_workspaces webdataset

annotated_types attr attrs certifi charset_normalizer cloudpickle dateutil filelock fsspec google idna jsonschema
markdown_it markupsafe mpmath msgpack networkx packaging pandas psutil pyarrow pydantic_core pygments setuptools six
sympy tensorboardX triton typing_extensions typing_inspection urllib3 yaml
"""
"""Modules of what the package requires, with its extras, and of what these require."""
_NOT_TO_BE_HIDDEN = sys.stdlib_module_names | set(_NEEDED.split())


def _absolute(path: Path) -> Path:
    """Without `..`, and with links as they are: what lies beside a link is beside the file."""
    return Path(os.path.abspath(path))


def _locate(module: str, root: Path, is_copy: bool, where: str) -> tuple[Path, Path]:
    """The file of a module, and the folder that its path in the code is relative to.

    That is the recipe's for what lies below it, and the file's own for what lies elsewhere.
    """
    is_path = module.endswith(".py") or "/" in module
    name = Path(module.removesuffix(".py") if is_path else module.replace(".", "/"))
    lies_elsewhere = name.is_absolute() or ".." in name.parts
    if lies_elsewhere and is_copy:
        name = Path(name.name)
    for path in (root / f"{name}.py", root / name / "__init__.py"):
        if path.is_file():
            path = _absolute(path)
            own = path.parent.parent if path.name == "__init__.py" else path.parent
            return path, own if lies_elsewhere and not is_copy else _absolute(root)
    if not is_path and (top := module.partition(".")[0]) in _NOT_TO_BE_HIDDEN:
        whole = "Python" if top in sys.stdlib_module_names else top
        raise ConfigError(
            f"{where}: modules: {module} is a part of {whole}, not code of your own, which modules names. "
            "Leave it out; a file of yours needs another name"
        )
    if not (is_path or is_copy):
        try:
            spec = importlib.util.find_spec(module)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            if not isinstance(error, ImportError | ValueError):
                raise ConfigError(f"{where}: modules: {module}: {_said(error)}") from error
            spec = None
        if spec is not None and spec.origin and spec.origin.endswith(".py"):
            path = Path(spec.origin).resolve()
            depth = len(module.split(".")) - (0 if path.name == "__init__.py" else 1)
            return path, path.parents[depth]
    raise ConfigError(
        f"{where}: modules: there is no file {root / name}.py"
        f"{'' if is_path else f', and no module {module} to import'}. The built-in names work without this module"
    )


def _closure(path: Path, root: Path) -> set[Path]:
    """A file with all that it imports from beside it, directly or not, and the packages that these lie in."""
    found: set[Path] = set()
    waiting = [path]
    while waiting:
        file = waiting.pop()
        if file in found:
            continue
        found.add(file)
        packages = [folder / "__init__.py" for folder in file.parents if folder != root and root in folder.parents]
        waiting += [package for package in packages if package.is_file()]
        for level, names in _imports(file):
            name = Path(*[".."] * (level - 1), *names)
            for base in {root, file.parent}:
                for candidate in (base / name, *(base / name).parents):
                    if base not in candidate.parents:
                        break
                    files = (candidate.with_suffix(".py"), candidate / "__init__.py")
                    there = (_absolute(each) for each in files if candidate.name and each.is_file())
                    waiting += [each for each in there if root in each.parents]
    return found


def _imports(file: Path, content: bytes | None = None) -> Iterator[tuple[int, list[str]]]:
    """What the import statements of a file name: the number of dots in front, and what stands between dots."""
    try:
        tree = ast.parse(file.read_bytes() if content is None else content)
    except (SyntaxError, ValueError, OSError, RecursionError, MemoryError):
        return  # which importing it tells better
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module.split(".") if node.module else []
            yield node.level, base
            yield from ((node.level, [*base, alias.name]) for alias in node.names)


def _import(code: Code, where: str) -> "_Finder":
    """Imports each module as it was read, whatever modules of the same names were imported before."""
    finder, known, path = _Finder(code, where), set(sys.modules), list(sys.path)
    try:
        with finder.at_hand(), redirect_stdout(sys.stderr):  # what a command prints is not theirs
            for module in code.modules:
                importlib.import_module(_dotted(module))
        finder.require_followed(known, f"{where}: modules")
    except BaseException as error:
        sys.path[:] = path  # or the next try would take what they have added for Python's own
        if isinstance(error, KeyboardInterrupt | _NotFollowedError):
            raise
        there = place(error, code.root) or ", ".join(code.modules)
        raise ConfigError(
            f"{where}: modules: {there}: {_said(error)}. The built-in names work without this module"
        ) from error
    finder.show()
    return finder


class _NotFollowedError(ConfigError):
    """Code imports files that are no part of it."""


def _said(error: BaseException) -> str:
    return str(error) if isinstance(error, ConfigError) else in_one_line(error)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the modules of code as they were read, whatever their files hold by now, and keeps them.

    What a file of the code imports by one of their names is the code's own module, also inside of functions and when
    other modules of that name stand in `sys.modules`: those of a script, or of other code.
    """

    def __init__(self, code: Code, where: str) -> None:
        """Raises: ConfigError, which begins with `where`, if a name could mean two files, or others need it."""
        self._code = code
        self._content = {code.root / path: content for path, content in code.files.items()}
        self._places: dict[str, Path] = {}
        self._modules: dict[str, ModuleType] = {}
        self._is_at_hand = False
        self._path = [_absolute(Path(entry)) for entry in sys.path]
        folders = tuple(dict.fromkeys(("", *(path.rpartition("/")[0] for path in code.modules))))  # as in Python's path
        for folder in folders:
            for path in code.files:
                if not folder or path.startswith(f"{folder}/"):
                    file, name = code.root / path, _dotted(path.removeprefix(f"{folder}/"))
                    if (top := name.partition(".")[0]) in _NOT_TO_BE_HIDDEN:
                        if folder:
                            continue  # by a bare name; by a relative one it is found, and hides nothing
                        raise ConfigError(f"{where}: modules: {file} would hide the module {top!r}. Rename it")
                    if self._places.setdefault(name, file) != file and not folder:
                        one = self._places[name].relative_to(code.root).as_posix()
                        raise ConfigError(f"{where}: modules: {one} and {path} are both imported as {name}. Rename one")
        for path, content in code.files.items():
            self._check_names(path, content, folders, where)
        for name, file in list(self._places.items()):
            parents = (file.parent if file.name == "__init__.py" else file).parents[: name.count(".")]
            for i, parent in enumerate(parents, 1):  # packages without an __init__.py
                self._places.setdefault(name.rsplit(".", i)[0], parent)

    def _check_names(self, path: str, content: bytes, folders: Sequence[str], where: str) -> None:
        """Raises: ConfigError if the file imports by a bare name what it would find elsewhere than it has to."""
        own = path.rpartition("/")[0]
        bases = [Path(), *([Path(own)] if own in folders else [])]
        for level, names in _imports(Path(path), content):
            for end in range(1, len(names) + 1 if not level else 0):
                given = self._places.get(".".join(names[:end]))
                stems = [base.joinpath(*names[:end]) for base in bases]
                meant = {file for stem in stems for file in (stem.with_suffix(".py"), stem / "__init__.py")}
                found = {self._code.root / file for file in meant if file.as_posix() in self._code.files}
                if given and found and {given} != found:
                    one, other = sorted(file.relative_to(self._code.root).as_posix() for file in {given, *found})[:2]
                    raise ConfigError(
                        f"{where}: modules: {path} imports {'.'.join(names[:end])}, which could be {one} or {other}. "
                        "Rename one of them"
                    )

    @contextmanager
    def at_hand(self) -> Iterator[None]:
        """Inside the block the names of the code mean its modules, for all that imports."""
        with _IMPORTING:
            if self._is_at_hand:
                yield
                return
            others = self._taken_away()
            sys.modules.update(self._modules)
            sys.meta_path.insert(0, self)
            self._is_at_hand = True
            try:
                yield
            finally:
                self._is_at_hand = False
                sys.meta_path.remove(self)
                self._modules = self._taken_away()
                sys.modules.update(others)

    def _taken_away(self) -> dict[str, ModuleType]:
        return {name: sys.modules.pop(name) for name in self._places if name in sys.modules}

    def show(self) -> None:
        """Puts the modules where pickle, inspect and others look for them, if nothing but other code's is there."""
        for name, module in self._modules.items():
            if isinstance(getattr(sys.modules.get(name, module), "__loader__", None), _Loader):
                sys.modules[name] = module
            else:
                sys.modules.setdefault(name, module)

    def import_from_code(
        self,
        name: str,
        globals: Mapping[str, object] | None = None,
        locals: Mapping[str, object] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        """What an import statement in a file of the code calls, in place of `__import__`."""
        if not level and name.partition(".")[0] not in self._places:
            return builtins.__import__(name, globals, locals, fromlist or (), level)
        with self.at_hand():
            module = builtins.__import__(name, globals, locals, fromlist or (), level)
        for own, value in self._modules.items():
            sys.modules.setdefault(own, value)
        return module

    def require_followed(self, known: set[str], where: str) -> None:
        """Raises: ConfigError, which begins with `where`, for files beside the code that only running it has found.

        Args:
            known: modules that were imported before.
        """
        installed: Mapping[str, object] | None = None
        for name in set(sys.modules) - known - set(self._modules):
            module = sys.modules.get(name)
            file = getattr(module, "__file__", None)
            if not isinstance(file, str) or isinstance(getattr(module, "__loader__", None), _Loader):
                continue
            path, top = _absolute(Path(file)), name.partition(".")[0]
            beside = [folder for folder in {self._code.root, *self._code.folders} if folder in path.parents]
            # Not what Python has found below a folder of its own, such as that of an environment which lies here.
            if not beside or any(entry in path.parents and set(beside) & set(entry.parents) for entry in self._path):
                continue
            installed = packages_distributions() if installed is None else installed
            if top != "cifarscale" and top not in installed:
                del sys.modules[name]  # or the next try would find it there
                raise _NotFollowedError(
                    f"{where}: {short_path(path)} is imported in a way that cannot be followed, and so is no part of "
                    "the code that a run keeps. Let an import statement name it, as a file beside the module"
                )

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        file = self._places.get(fullname)
        if file is None:
            return None
        if file not in self._content:
            namespace = ModuleSpec(fullname, None, is_package=True)
            namespace.submodule_search_locations = [str(file)]
            return namespace
        return importlib.util.spec_from_file_location(
            fullname, file, loader=_Loader(fullname, file, self._content[file], self)
        )


class _Loader(SourceFileLoader):
    """Loads a module as it was read; without bytecode, which may be that of an edit of the same size and second."""

    def __init__(self, fullname: str, path: Path, content: bytes, finder: _Finder) -> None:
        super().__init__(fullname, str(path))
        self._content = content
        self._finder = finder

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__["__builtins__"] = {**vars(builtins), "__import__": self._finder.import_from_code}
        super().exec_module(module)

    def path_stats(self, path: Any) -> Any:
        raise OSError("bytecode is neither read nor written")

    def get_data(self, path: Any) -> bytes:
        return self._content if path == self.path else super().get_data(path)


def _register(code: Code, where: str) -> None:
    """Imports code, once in a process; what it registers belongs to it."""
    if code.digest in _IMPORTED:
        return
    with registering(code.digest):
        _FINDERS[code.digest] = _import(code, where)
    _IMPORTED[code.digest] = code


def _dotted(path: str) -> str:
    """The name that a file is imported by."""
    parts = path.removesuffix(".py").removesuffix("/__init__").split("/")
    return ".".join(re.sub(r"\W", "_", part) for part in parts)


def place(error: BaseException, root: Path) -> str:
    """The file below a folder in which an error arose, and its line; empty if it arose elsewhere."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    root, frames = root.resolve(), traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if root in Path(frame.filename).resolve().parents]
    return f"{own[-1].filename}, line {own[-1].lineno}" if own else ""
