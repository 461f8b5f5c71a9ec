"""Code of a user's own: whatever it is and becomes, a run computes what its copy says."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cifarscale.config.code import load_code
from cifarscale.config.registry import networks
from cifarscale.errors import TRUST_VARIABLE, ConfigError

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
        ({"../n.py": "", "n.py": "x = 1"}, ["n.py", "../n.py"], "two files are called n.py. Rename one of them"),
        ({"own.py": "import random", "random.py": ""}, ["own.py"], "random.py would hide the module 'random'"),
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


def test_a_file_that_may_not_be_read_is_one_line(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(ConfigError, match=r"cannot read .*own.py: Permission denied"):
        load({"own.py": ""}, "own.py")
