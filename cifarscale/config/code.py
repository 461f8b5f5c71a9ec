"""A user's own code, which a recipe names by `modules`.

It is part of what is computed: the digest of the modules, and of the files beside them that they import, stands in the
recipe as `code`, and a run folder holds a copy, from which every rank imports. Edited files make another run, and
change nothing of one that was made before.
"""

import ast
import hashlib
import importlib
import importlib.abc
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from cifarscale.config.registry import registering
from cifarscale.errors import TRUST_VARIABLE, CifarscaleError, ConfigError, is_want_of_memory, writing_to

FOLDER = "code"
"""Where a run folder holds the copy."""


@dataclass(frozen=True)
class Code:
    """Modules with all that they import from beside them.

    Attributes:
        modules: files, relative to `root`.
        files: what is in each file, by its path relative to `root`; the modules among them.
    """

    root: Path
    modules: tuple[str, ...]
    files: dict[str, bytes]

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits that change when any file does."""
        lines = (f"{path} {hashlib.sha256(content).hexdigest()}" for path, content in sorted(self.files.items()))
        return hashlib.sha256("\n".join([*self.modules, *lines]).encode()).hexdigest()[:16]


_IMPORTED: dict[str, Code] = {}


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
    is_copy = of_run or (folder / FOLDER).is_dir()
    code = _read(modules, folder / FOLDER if is_copy else folder, is_copy, where)
    if digest and digest != code.digest:
        raise ConfigError(
            f"{where}: the files of modules = {list(modules)} have changed since this run was made (they are "
            f"{code.digest} now, and were {digest}). Restore them, or train the recipe that names them: another run"
        )
    if not is_copy or is_trusted(code.digest):
        _register(code, where)
    return code.digest


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


def trust(digest: str, modules: Sequence[str]) -> None:
    """Notes that imported code is this user's own: a run folder that holds it may be run without asking.

    Raises: ConfigError as `require_imported` does.
    """
    require_imported(digest, modules)
    if digest and not is_trusted(digest):
        os.environ[TRUST_VARIABLE] = ",".join(filter(None, (os.environ.get(TRUST_VARIABLE), digest)))  # for the ranks
        with suppress(OSError):  # a home that cannot be written, where only processes that we start know of it
            path = _trusted_list()
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.write(f"{digest}\n")


def is_trusted(digest: str) -> bool:
    """Whether code may be run: this user has trained or submitted it, or says so."""
    named = os.environ.get(TRUST_VARIABLE, "").split(",")
    if "all" in named or digest in named:
        return True
    try:
        return digest in _trusted_list().read_text(encoding="utf-8").split()
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
        if is_ours or is_want_of_memory(error) or "deterministic implementation" in str(error):
            raise
        code, first = _IMPORTED[digest], next(iter(str(error).strip().splitlines()), "")
        there = place(error, code.root) or ", ".join(code.modules)
        raise ConfigError(f"{what}: {there}: {type(error).__name__}: {first}") from error


def kind_of(value: Any) -> str:
    """What a user's own code has returned, in a few words: the type and shape of a tensor."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
    return f"a {type(value).__name__}{f' of {len(value)}' if isinstance(value, tuple | list) else ''}"


def _read(modules: Sequence[str], root: Path, is_copy: bool, where: str) -> Code:
    files: dict[str, bytes] = {}
    names = []
    for module in modules:
        path, base = _locate(module, root, is_copy, where)
        names.append(path.relative_to(base).as_posix())
        for file in _closure(path, base):
            name = file.relative_to(base).as_posix()
            try:
                content = file.read_bytes()
            except OSError as error:
                raise ConfigError(f"{where}: modules: cannot read {file}: {error.strerror}") from error
            if files.setdefault(name, content) != content:
                raise ConfigError(f"{where}: modules: two files are called {name}. Rename one of them")
            if (top := name.split("/")[0].removesuffix(".py")) in _NOT_TO_BE_HIDDEN:
                raise ConfigError(f"{where}: modules: {file} would hide the module {top!r}. Rename it")
    return Code(_absolute(root), tuple(names), files)


_NOT_TO_BE_HIDDEN = sys.stdlib_module_names | {"cifarscale", "numpy", "PIL", "pydantic", "ray", "torch", "torchvision"}


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
    if not (is_path or is_copy):
        try:
            spec = importlib.util.find_spec(module)
        except (Exception, SystemExit) as error:
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
        for name in _imported_names(file):
            for base in {root, file.parent}:
                for candidate in (base / name, *(base / name).parents):
                    if base not in candidate.parents:
                        break
                    files = (candidate.with_suffix(".py"), candidate / "__init__.py")
                    there = (_absolute(each) for each in files if candidate.name and each.is_file())
                    waiting += [each for each in there if root in each.parents]
    return found


def _imported_names(file: Path) -> Iterator[Path]:
    """What a file imports, as paths without a suffix relative to the folder of the import."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return  # which importing it tells better
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (Path(*alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = Path(*[".."] * (node.level - 1), *(node.module.split(".") if node.module else ()))
            yield base
            yield from (base / alias.name for alias in node.names)


def _import(code: Code, where: str) -> None:
    """Imports each module as it was read, whatever modules of the same names were imported before."""
    finder = _Finder(code)
    for name in finder.names:
        sys.modules.pop(name, None)
    sys.meta_path.insert(0, finder)
    try:
        with redirect_stdout(sys.stderr):  # what a command prints is not theirs
            for path in code.modules:
                importlib.import_module(_dotted(path))
    except (Exception, SystemExit) as error:
        for name in finder.names:
            sys.modules.pop(name, None)
        there = place(error, code.root) or ", ".join(code.modules)
        raise ConfigError(
            f"{where}: modules: {there}: {_said(error)}. The built-in names work without this module"
        ) from error
    finally:
        sys.meta_path.remove(finder)
    # What is imported inside of functions comes after all other modules, the newest code's first.
    finders = (i for i, each in enumerate(sys.meta_path) if isinstance(each, _Finder))
    sys.meta_path.insert(next(finders, len(sys.meta_path)), finder)


def _said(error: BaseException) -> str:
    return str(error) if isinstance(error, ConfigError) else f"{type(error).__name__}: {error}"


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the modules of code as they were read, whatever their files hold by now."""

    def __init__(self, code: Code) -> None:
        self._content = {code.root / path: content for path, content in code.files.items()}
        self._places: dict[str, Path] = {}
        for folder in dict.fromkeys(("", *(path.rpartition("/")[0] for path in code.modules))):  # as in Python's path
            for path in code.files:
                if not folder or path.startswith(f"{folder}/"):
                    self._places.setdefault(_dotted(path.removeprefix(f"{folder}/")), code.root / path)
        for name, file in list(self._places.items()):
            folders = (file.parent if file.name == "__init__.py" else file).parents[: name.count(".")]
            for i, parent in enumerate(folders, 1):  # packages without an __init__.py
                self._places.setdefault(name.rsplit(".", i)[0], parent)

    @property
    def names(self) -> list[str]:
        """Of all modules and packages."""
        return list(self._places)

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
            fullname, file, loader=_Loader(fullname, file, self._content[file])
        )


class _Loader(SourceFileLoader):
    """Loads a module as it was read; without bytecode, which may be that of an edit of the same size and second."""

    def __init__(self, fullname: str, path: Path, content: bytes) -> None:
        super().__init__(fullname, str(path))
        self._content = content

    def path_stats(self, path: Any) -> Any:
        raise OSError("bytecode is neither read nor written")

    def get_data(self, path: Any) -> bytes:
        return self._content if path == self.path else super().get_data(path)


def _register(code: Code, where: str) -> None:
    """Imports code, once in a process; what it registers belongs to it."""
    if code.digest in _IMPORTED:
        return
    with registering(code.digest):
        _import(code, where)
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
