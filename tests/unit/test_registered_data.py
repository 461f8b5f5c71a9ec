"""A data set that a user's file, a plugin or a recipe's own code registers: found by its name, and checked."""

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cifarscale.config import registry
from cifarscale.config.code import load_module
from cifarscale.config.load import load_recipe
from cifarscale.config.registry import dataset_names, registered_dataset
from cifarscale.data.build import build_shards, locate_shards
from cifarscale.data.manifest import Manifest
from cifarscale.errors import ConfigError, DataError
from cifarscale.launch.run import prepare

DOTS = """
import numpy as np
import cifarscale as cs

@cs.register_dataset("dots")
def dots({parameters}):
    images = np.arange(4 * 9 * 9 * 3).reshape(4, 9, 9, 3).astype(np.uint8)
    {line}
    return cs.ImageData(["a", "b"], (images, [0, 1, 0, 1]), (images + 1, [1, 0, 1, 0]))
"""


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    dataset_names()  # registers the built-in ones
    before = set(registry._DATASETS[""])
    yield
    for name in set(registry._DATASETS[""]) - before:
        del registry._DATASETS[""][name]


def write(line: str = "", parameters: str = "", name: str = "dots", file: str = "own.py") -> str:
    text = DOTS.format(line=line or "pass", parameters=parameters).replace('"dots"', f'"{name}"')
    Path(file).write_text(text, encoding="utf-8")
    return file


def load(module: str) -> str:
    return load_module(module, "shards build")


def test_a_file_s_set_is_found_by_its_name_for_whoever_names_the_file() -> None:
    code = load(write())
    assert "dots" in dataset_names(code)
    assert "dots" not in dataset_names()
    assert locate_shards("dots", code) == Path("shards/dots")
    manifest = Manifest.load(Path("shards/dots"))
    assert (manifest.dataset, manifest.fine_names, manifest.image_size) == ("dots", ("a", "b"), (9, 9))
    assert locate_shards("dots") == Path("shards/dots"), "its shards are here, whatever made them"


def test_a_set_gets_the_options_that_it_takes(tmp_path: Path) -> None:
    line = 'assert (source, size, cache.name) == (Path("x"), 5, "sets"); Path(cache / "made").touch()'
    code = load(write(f"from pathlib import Path; {line}", "source, cache, size=3, *, other=None"))
    with pytest.raises(DataError, match="--data dots needs --source"):
        build_shards("dots", code=code)
    with pytest.raises(DataError, match="--holdout has no effect with --data dots: it takes no holdout"):
        build_shards("dots", source=Path("x"), holdout=2, code=code)
    (tmp_path / "sets").mkdir()
    build_shards("dots", tmp_path / "sets/dots", source=Path("x"), size=5, code=code)
    assert (tmp_path / "sets/made").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1 / 0", r"data set 'dots': \S+own\.py, line 8: ZeroDivisionError: division by zero"),
        ("images = images / 2", r"data set 'dots': \S+own\.py: images of train have shape .* dtype float64"),
        ("raise SystemError('a\\\\nb')", r"own\.py, line 8: SystemError: a"),
    ],
)
def test_what_goes_wrong_in_it_names_the_file_and_line(line: str, message: str) -> None:
    code = load(write(line))
    with pytest.raises(DataError, match=message):
        locate_shards("dots", code)
    assert not Path("shards/dots").exists()


@pytest.mark.parametrize("name", ["cifar10", "folder", "synthetic"])
def test_a_name_that_is_taken_is_refused(name: str) -> None:
    with pytest.raises(
        ConfigError, match=f"data set '{name}' is registered already, by .*sets.py; choose another name"
    ):
        load(write(name=name))


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [("a/b", "", "'a/b': a name consists of letters"), ("dots", "colour", "parameter 'colour' needs a default")],
)
def test_what_cannot_be_registered_is_refused(name: str, parameters: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(write(name=name, parameters=parameters))


def test_a_module_that_is_missing_or_fails_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"shards build: modules: there is no file none\.py"):
        load("none.py")
    Path("own.py").write_text("x = 1 / 0", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"own\.py, line 1: ZeroDivisionError"):
        load("own.py")


def test_shards_of_an_older_file_are_used_and_it_is_said(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("cifarscale"), "propagate", True)
    locate_shards("dots", load(write()))
    locate_shards("dots", load(write()))
    assert not caplog.text
    code = load(write("images = images + 0"))
    build_shards("dots", code=code)
    locate_shards("dots", code)
    assert not caplog.text, "another file, that gives the same"
    code = load(write("images = images[::-1]"))
    locate_shards("dots", code)
    assert "shards/dots was built before" in caplog.text
    assert "shards build --data dots --module" in caplog.text
    with pytest.raises(DataError, match="what would be built now has"):
        build_shards("dots", code=code)
    caplog.clear()
    build_shards("dots", code=code, force=True)
    locate_shards("dots", code)
    assert not caplog.text


def test_a_sweep_over_it_is_checked_before_anything_starts() -> None:
    """Its shards are built, and a trial that cannot be trained on them is refused."""
    write()
    Path("base.toml").write_text(
        'task = "classifier"\nmodules = ["own.py"]\ndata = { dataset = "dots", num_validation = 2 }\n'
        "training = { max_steps = 2, global_batch_size = 4 }\n",
        encoding="utf-8",
    )
    sweep = 'task = "sweep"\nbase = "base.toml"\nnum_trials = 2\n[space]\n'
    Path("good.toml").write_text(sweep + '"augmentation.cutout" = { choice = [0, 9] }', encoding="utf-8")
    Path("bad.toml").write_text(sweep + '"augmentation.cutout" = { choice = [0, 10] }', encoding="utf-8")
    assert prepare(load_recipe("good.toml")).options.shards == Path("shards/dots").resolve()
    with pytest.raises(ConfigError, match="cutout = 10 is too much for images of 9 x 9: at most 9"):
        prepare(load_recipe("bad.toml"))
    with pytest.raises(ConfigError, match="metric = 'validation_top5' is not reported with 2 classes"):
        prepare(load_recipe("good.toml", ("metric=validation_top5",)))


def test_a_package_s_set_is_found_by_its_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And imported only if it is asked for; it is no task."""
    write(file="plugged_dots.py")
    info = tmp_path / "plugged-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugged\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[cifarscale.plugins]\ndataset.dots = plugged_dots\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    registry._modules.cache_clear()
    assert "dots" in dataset_names()
    assert not [name for name in registry.task_names() if "dots" in name]
    assert "plugged_dots" not in sys.modules
    assert registered_dataset("dots").file.endswith("plugged_dots.py")
    assert locate_shards("dots") == Path("shards/dots")
    del sys.modules["plugged_dots"]
