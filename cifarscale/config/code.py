"""A user's own code, which a recipe names by `modules`.

It is part of what is computed: the digest of the modules, and of the files beside them that they import, stands in the
recipe as `code`, and a run folder holds a copy, from which every rank imports. Edited files make another run, and
change nothing of one that was made before.
"""

import ast
import hashlib
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cifarscale.config.registry import registering
from cifarscale.errors import TRUST_VARIABLE, CifarscaleError, ConfigError, is_want_of_memory, writing_to

FOLDER = "code"
"""Where a run folder holds the copy."""


@dataclass(frozen=True)
class Code:
    """Modules with all that they import from beside them.

    Attributes:
        modules: files, relative to the folder in which a run keeps its copy.
        files: what is in each file, by its path relative to that; the modules among them.
        places: where each file lies.
    """

    modules: tuple[str, ...]
    files: dict[str, bytes]
    places: dict[str, Path]

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
        there = place(error, *code.places.values()) or ", ".join(code.modules)
        raise ConfigError(f"{what}: {there}: {type(error).__name__}: {first}") from error


def kind_of(value: Any) -> str:
    """What a user's own code has returned, in a few words: the type and shape of a tensor."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
    return f"a {type(value).__name__}{f' of {len(value)}' if isinstance(value, tuple | list) else ''}"


def _read(modules: Sequence[str], root: Path, is_copy: bool, where: str) -> Code:
    files: dict[str, bytes] = {}
    places: dict[str, Path] = {}
    names = []
    for module in modules:
        path, base = _locate(module, root, is_copy, where)
        names.append(path.relative_to(base).as_posix())
        for file in _closure(path, base):
            name = file.relative_to(base).as_posix()
            files[name], places[name] = file.read_bytes(), file
    return Code(tuple(names), files, places)


def _locate(module: str, root: Path, is_copy: bool, where: str) -> tuple[Path, Path]:
    """The file of a module, and the folder that its path in the code is relative to."""
    as_path = module if module.endswith(".py") else f"{module.replace('.', '/')}.py"
    is_elsewhere = Path(as_path).is_absolute() or ".." in Path(as_path).parts
    if is_elsewhere and is_copy:
        as_path = Path(as_path).name
    for path in (root / as_path, root / as_path.removesuffix(".py") / "__init__.py"):
        if path.is_file():
            return path.resolve(), path.resolve().parent if is_elsewhere else root.resolve()
    if not (module.endswith(".py") or is_copy):
        try:
            spec = importlib.util.find_spec(module)
        except (ImportError, ValueError):
            spec = None
        if spec is not None and spec.origin and spec.origin.endswith(".py"):
            path = Path(spec.origin).resolve()
            depth = len(module.split(".")) - (0 if path.name == "__init__.py" else 1)
            return path, path.parents[depth]
    raise ConfigError(
        f"{where}: modules: there is no file {root / as_path}"
        f"{'' if module.endswith('.py') else f', and no module {module} to import'}. The built-in names work without it"
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
                    waiting += [each.resolve() for each in files if candidate.name and each.is_file()]
    return found


def _imported_names(file: Path) -> Iterator[Path]:
    """What a file imports, as paths without a suffix relative to the folder of the import."""
    try:
        tree = ast.parse(file.read_bytes())
    except SyntaxError:
        return  # which importing it tells better
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (Path(*alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = Path(*[".."] * (node.level - 1), *(node.module.split(".") if node.module else ()))
            yield base
            yield from (base / alias.name for alias in node.names)


def _import(code: Code, where: str) -> None:
    """Imports each module from where it lies, whatever modules of the same names were imported before."""
    for path, file in code.places.items():
        name = _dotted(path)
        if name in sys.modules and getattr(sys.modules[name], "__file__", None) != str(file):
            del sys.modules[name]
    roots = {file.parents[path.count("/")] for path, file in code.places.items()}
    with _first_on_the_path(*roots, *({code.places[path].parent for path in code.modules} - roots)):
        for path in code.modules:
            file, name = code.places[path], _dotted(path)
            spec = importlib.util.spec_from_file_location(name, file)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[name] = module
            try:
                spec.loader.exec_module(module)
            except ConfigError:
                raise
            except Exception as error:
                del sys.modules[name]
                there = place(error, *code.places.values()) or ", ".join(code.modules)
                raise ConfigError(
                    f"{where}: modules: {there}: {type(error).__name__}: {error}. The built-in names work without it"
                ) from error


def _register(code: Code, where: str) -> None:
    """Imports code; what it registers belongs to it."""
    with registering(code.digest):
        _import(code, where)
    _IMPORTED[code.digest] = code


def _dotted(path: str) -> str:
    """The name that a file is imported by."""
    parts = path.removesuffix(".py").removesuffix("/__init__").split("/")
    return ".".join(re.sub(r"\W", "_", part) for part in parts)


@contextmanager
def _first_on_the_path(*folders: Path) -> Iterator[None]:
    """While modules are imported; later, for what they import inside of functions, the folders come last."""
    names = [str(folder) for folder in folders]
    sys.path[:0] = names
    try:
        yield
    finally:
        for name in names:
            sys.path.remove(name)
        sys.path.extend(name for name in names if name not in sys.path)


def place(error: Exception, *where: Path) -> str:
    """The file, one of these or below a folder of these, in which an error arose, and its line; empty for elsewhere."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    own = {path.resolve() for path in where}
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if own & {Path(frame.filename), *Path(frame.filename).parents}
    ]
    return f"{frames[-1].filename}, line {frames[-1].lineno}" if frames else ""
