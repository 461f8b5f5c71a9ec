"""Code of a user's own: whatever it is and becomes, a run computes what its copy says."""

import importlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest

from cifarscale.config.code import _NOT_TO_BE_HIDDEN, following, is_trusted, load_code, trust
from cifarscale.config.load import load_recipe, load_training_recipe
from cifarscale.config.registry import networks
from cifarscale.errors import TRUST_VARIABLE, ConfigError
from cifarscale.runs.options import RunOptions
from cifarscale.sweeps.prepared import prepare_sweep
from cifarscale.sweeps.recipe import SweepRecipe
from cifarscale.sweeps.trials import SweepFolder

Load = Callable[..., dict[str, object]]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Writes files, and loads the modules; returns the value of each network that they register, by name."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv(TRUST_VARIABLE, "")
    path, finders = list(sys.path), list(sys.meta_path)

    def load(files: dict[str, str], *modules: str, folder: Path = tmp_path / "my recipes é") -> dict[str, object]:
        for name, text in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
        digest = load_code(modules, folder, "", of_run=False, where="own.toml")
        own = networks(digest).items() - networks().items()
        return {name: network.build(None, None) for name, network in own}  # type: ignore[arg-type]

    yield load
    assert sys.path == path
    sys.meta_path[:] = finders


def network(value: str, name: str = "own") -> str:
    return f"""
import cifarscale as cs
@cs.register_network({name!r}, config=cs.Section)
def {name}(config, data):
    return {value}
"""


LATER = (
    network("later().N")
    + """
def later():
    from p import h
    return h
"""
)
TWO = {"a/n.py": "import h", "a/h.py": "", "b/m.py": "import h"}
BARE = 'where a name belongs: write @cs.register_network("NAME") above it'
CONFIG = """
import cifarscale as cs
@cs.register_network("own")
class Own:
    class Config({}):
        {}
"""
TYPED = """
import cifarscale as cs
class K: ...
@cs.register_network("own")
def own(num_classes, k: K = {}): ...
"""
MUTE = "class E(Exception):\n    def __str__(self): return 1 / 0\nraise E"


@pytest.mark.parametrize(
    ("files", "modules"),
    [
        ({"own.py": "import sizes" + network("sizes.N"), "sizes.py": "N = 7"}, ["own.py"]),
        ({"a/own.py": "from . import sizes" + network("sizes.N"), "a/sizes.py": "N = 7"}, ["a/own.py"]),
        ({"a/own.py": "import sizes" + network("sizes.N"), "a/sizes.py": "N = 7"}, ["a/own.py"]),
        ({"a b/own.py": "from .sizes import N" + network("N"), "a b/sizes.py": "N = 7"}, ["a b/own.py"]),
        ({"lab/__init__.py": "from .nets import own", "lab/nets.py": network("7")}, ["lab"]),
        ({"lab/__init__.py": "from .nets import own", "lab/nets.py": network("7")}, ["lab/"]),
        ({"lab/__init__.py": "", "lab/b/n.py": "from ..m import N" + network("N"), "lab/m.py": "N = 7"}, ["lab.b.n"]),
        ({"größe 1.py": network("7")}, ["größe 1.py"]),
        ({"../beside.py": "import n" + network("n.N"), "../n.py": "N = 7"}, ["../beside.py"]),
        ({"own.py": network("later()") + "\ndef later():\n    import n\n    return n.N", "n.py": "N = 7"}, ["own.py"]),
        ({"a/own.py": "import x.y" + network("x.y.N"), "a/x/y.py": "N = 7"}, ["a/own.py"]),
        ({"a/own.py": "from . import rich" + network("rich.N"), "a/rich.py": "N = 7"}, ["a/own.py"]),
        ({"own.py": LATER, "p/h.py": "from .m import N", "p/m.py": "N = 7"}, ["own.py"]),
        ({"own.py": "import torch\nfrom torch import nn" + network("7 if nn else 0")}, ["own.py"]),
        ({"own.py": "print('hello')" + network("7")}, ["own.py"]),
    ],
)  # fmt: skip
def test_whatever_it_consists_of(
    files: dict[str, str], modules: list[str], load: Load, capsys: pytest.CaptureFixture[str]
) -> None:
    assert load(files, *modules) == {"own": 7}
    assert not capsys.readouterr().out


def test_an_edit_counts_also_in_a_process_that_has_imported_what_was_there_before(load: Load, tmp_path: Path) -> None:
    files = {"own.py": "import n" + network("n.N"), "n.py": "N = 7"}
    assert load(files, "own.py") == {"own": 7}
    stamp = (tmp_path / "my recipes é/n.py").stat()
    (tmp_path / "my recipes é/n.py").write_text("N = 8")
    os.utime(tmp_path / "my recipes é/n.py", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert load({}, "own.py") | {"sizes": 0} == {"own": 8, "sizes": 0}
    assert not list(tmp_path.rglob("*.pyc"))


def test_what_an_absolute_path_or_a_link_names_is_a_file_like_others(load: Load, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/nets.py").write_text(network("7"))
    assert load({}, str(tmp_path / "elsewhere/nets.py"), folder=tmp_path) == {"own": 7}
    (tmp_path / "link.py").symlink_to(tmp_path / "elsewhere/nets.py")
    assert load({"link.py": network("8")}, "link.py", folder=tmp_path) == {"own": 8}


@pytest.mark.parametrize(
    ("files", "modules", "words"),
    [
        ({"own.py": "def"}, ["own.py"], "own.py, line 1: SyntaxError"),
        ({"own.py": "import n", "n.py": "def"}, ["own.py"], "n.py, line 1: SyntaxError"),
        ({"own.py": "\0"}, ["own.py"], "null bytes"),
        ({"own.py": "\nimport sys\nsys.exit(0)"}, ["own.py"], "own.py, line 3: SystemExit: 0"),
        ({"own.py": "import gone_with_the_wind"}, ["own.py"], "own.py, line 1: ModuleNotFoundError: No module named"),
        ({"own.py": "from . import n", "n.py": ""}, ["own.py"], "line 1: ImportError: attempted relative import"),
        ({"a.py": network("1"), "b.py": network("2")}, ["a.py", "b.py"], "b.py, line 3: network 'own' is registered"),
        ({"a-b.py": "", "a_b.py": ""}, ["a-b.py", "a_b.py"], "a-b.py and a_b.py are both imported as a_b. Rename one"),
        (TWO | {"b/h.py": ""}, ["a/n.py", "b/m.py"], "b/m.py imports h, which could be a/h.py or b/h.py. Rename"),
        (TWO | {"h.py": ""}, ["a/n.py"], "a/n.py imports h, which could be a/h.py or h.py. Rename one of them"),
        ({"own.py": "class E(BaseException): ...\nraise E"}, ["own.py"], "own.py, line 2: E. "),
        ({"own.py": "raise KeyError('a\\nb')"}, ["own.py"], "own.py, line 1: KeyError: 'a"),
        ({"own.py": MUTE}, ["own.py"], "own.py, line 3: E. The built-in names"),
        ({"../n.py": "", "n.py": "x = 1"}, ["n.py", "../n.py"], "two files are called n.py. Rename one of them"),
        ({"own.py": "import random", "random.py": ""}, ["own.py"], "random.py would hide the module 'random'"),
        ({"own.py": "import rich", "rich.py": ""}, ["own.py"], "rich.py would hide the module 'rich'. Rename it"),
        ({}, ["json"], "json is a part of Python, not code of your own, which modules names. Leave it out"),
        ({}, ["torch.nn"], "torch.nn is a part of torch, not code of your own"),
        ({"own.py": "import cifarscale as cs\n@cs.register_network\ndef f(): ..."}, ["own.py"], BARE),
        ({"own.py": "import cifarscale as cs\n@cs.register_dataset\ndef f(): ..."}, ["own.py"], "register_dataset got"),
        ({"own.py": CONFIG.format("object", "k: int = 1")}, ["own.py"], "write class Config(cs.Section)"),
        ({"own.py": CONFIG.format("cs.Section", "name: int = 1")}, ["own.py"], "name: Literal['own'] = 'own'"),
        ({"own.py": CONFIG.format("cs.Section", "k: 'Nope' = 1")}, ["own.py"], "network 'own': its Config: "),
        ({"own.py": CONFIG.format("cs.Section", "k: object() = 1")}, ["own.py"], "own.py, line "),
        ({"own.py": TYPED.format("object()")}, ["own.py"], "'k' is of type K, which no key of"),
        ({"lab/__init__.py": "raise SystemExit(3)", "lab/n.py": ""}, ["lab.n"], "__init__.py, line 1: SystemExit: 3"),
        ({}, ["lab/"], "there is no file"),
        ({}, ["../gone.py"], "there is no file"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_it_is_one_line(files: dict[str, str], modules: list[str], words: str, load: Load) -> None:
    with pytest.raises(ConfigError) as caught:
        load(files, *modules)
    assert words in str(caught.value)
    assert str(caught.value).startswith("own.toml: modules: ")
    assert len(str(caught.value).splitlines()) == 1


def test_each_code_imports_what_is_its_own_whatever_else_has_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also inside of functions, with files of that name where Python looks first, and with a script's in use."""
    (tmp_path / "h.py").write_text("N = 0")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "h", raising=False)
    script = importlib.import_module("h")
    monkeypatch.setitem(sys.modules, "h", script)
    codes = {
        value: write_and_load(tmp_path / f"of {value}", LATER.replace("from p ", ""), f"N = {value}")
        for value in (1, 2)
    }
    for value in (1, 2, 1):
        assert networks(codes[value])["own"].build(None, None) == value  # type: ignore[arg-type]
        assert sys.modules["h"] is script
    with pytest.raises(ConfigError, match="ZeroDivisionError"):
        write_and_load(tmp_path / "failing", "import h\n1 / 0", "")
    assert sys.modules["h"] is script


def write_and_load(folder: Path, own: str, h: str) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "own.py").write_text(own)
    (folder / "h.py").write_text(h)
    return load_code(["own.py"], folder, "", of_run=False, where="own.toml")


@pytest.mark.parametrize("when", ["at once", "later"])
def test_a_file_that_no_import_statement_names_is_refused(
    when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its edits would change what a run computes, and its copy would lack it."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/unseen.py").write_text("N = 7")
    monkeypatch.setattr(sys, "path", list(sys.path))
    way = f"import importlib, sys\nsys.path.insert(0, {str(tmp_path / 'lib')!r})\n"
    way += network("importlib.import_module('unseen').N")
    (tmp_path / "own.py").write_text(way + ("import unseen" if when == "at once" else ""))
    words = r"unseen.py is imported in a way that cannot be followed.*Let an import statement name it"
    if when == "at once":
        for _ in range(2):
            with pytest.raises(ConfigError, match=f"own.toml: modules: .*{words}"):
                load_code(["own.py"], tmp_path, "", of_run=False, where="own.toml")
    else:
        digest = load_code(["own.py"], tmp_path, "", of_run=False, where="own.toml")
        with pytest.raises(ConfigError, match=f"own.py: .*{words}"), following(digest):
            assert networks(digest)["own"].build(None, None) == 7  # type: ignore[arg-type]


def test_what_is_installed_below_the_folder_is_no_part_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "env").mkdir()
    (tmp_path / "env/installed_there.py").write_text("N = 7")
    monkeypatch.syspath_prepend(str(tmp_path / "env"))
    (tmp_path / "own.py").write_text("import installed_there" + network("installed_there.N"))
    digest = load_code(["own.py"], tmp_path, "", of_run=False, where="own.toml")
    assert networks(digest)["own"].build(None, None) == 7  # type: ignore[arg-type]
    del sys.modules["installed_there"]


def test_no_module_of_what_the_package_requires_can_be_hidden() -> None:
    named = [each for each in requires("cifarscale") or () if not re.search("extra == .(test|dev)", each)]
    required = [re.split(r"[^\w-]", each)[0] for each in named]
    installed = packages_distributions()
    modules = {module for module, owners in installed.items() if {*owners} & {*required} and module.isidentifier()}
    assert {module for module in modules if not module.startswith("_")} <= _NOT_TO_BE_HIDDEN


@pytest.fixture
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What is written once somebody's code runs, which lies in `theirs`."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv(TRUST_VARIABLE, "")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/own.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w').close()" + network("7"))
    (tmp_path / "theirs/recipe.toml").write_text(
        "task = 'classifier'\nmodules = ['own.py']\nmodel.name = 'own'\ndata.num_validation = 20\n"
    )
    return tmp_path / "mark"


@pytest.mark.parametrize("made", ["manifest.json", "base.toml", "checkpoints"])
def test_code_beside_the_recipe_of_a_run_is_not_imported(made: str, mark: Path) -> None:
    assert load_recipe("theirs/recipe.toml")
    assert mark.exists()
    mark.unlink()
    Path("theirs", made).mkdir()
    Path("theirs/own.py").write_text(Path("theirs/own.py").read_text() + "# another digest\n")
    with pytest.raises(ConfigError, match=r"there is no file theirs/code/own.py"):
        load_recipe("theirs/recipe.toml")
    assert not mark.exists()


def test_the_folder_of_a_sweep_runs_no_code_that_its_recipe_leads_to(mark: Path) -> None:
    Path("sweep.toml").write_text(
        "task = 'sweep'\nbase = 'theirs/recipe.toml'\nspace.seed = { choice = [1, 2] }\nscheduler.name = 'none'\n"
    )
    sweep = load_recipe("sweep.toml")
    assert isinstance(sweep, SweepRecipe)
    SweepFolder(Path("swept")).prepare(sweep, load_training_recipe("cnn"))
    with pytest.raises(ConfigError, match=r"this run needs own.py, code that you have not trained"):
        prepare_sweep(sweep, Path("swept"), None, RunOptions())
    assert not mark.exists()


def test_code_is_trusted_by_all_digits_of_its_digest(mark: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_training_recipe("theirs/recipe.toml")
    trust(recipe.code, recipe.modules)
    kept = Path("state/cifarscale/trusted-code").read_text()
    (sha256,) = kept.split()
    assert len(sha256) == 64
    assert sha256.startswith(recipe.code)
    assert is_trusted(sha256)
    monkeypatch.setenv(TRUST_VARIABLE, "")
    assert is_trusted(sha256)
    Path("state/cifarscale/trusted-code").write_text(f"{recipe.code}\n")
    assert not is_trusted(sha256)


def test_a_file_that_may_not_be_read_is_one_line(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(ConfigError, match=r"cannot read .*own.py: Permission denied"):
        load({"own.py": ""}, "own.py")
