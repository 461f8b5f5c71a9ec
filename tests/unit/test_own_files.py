"""Files of one's own to start from, and the table of networks with those in it."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cifarscale.cli.main import main

NETWORKS = """
import cifarscale as cs
from torch import nn

@cs.register_network("needy")
class Needy(nn.Module):
    class Config(cs.Section):
        width: int

    def __init__(self, config: Config, data: cs.DataSpec) -> None: ...

@cs.register_network("broken")
class Broken(nn.Module):
    def __init__(self, num_classes: int) -> None:
        raise ValueError("no way")

@cs.register_network("deciding")
class Deciding(nn.Module):
    "Looks at what it gets."

    def __init__(self, num_classes: int, bias: bool = True) -> None:
        super().__init__()
        self.head = nn.Linear(3072, num_classes, bias)

    def forward(self, images):
        return self.head(images.flatten(1)) if images.sum() > 0 else None
"""


@pytest.fixture
def invoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs `cifarscale` in this process, in the test's folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")

    def invoke(*arguments: object, code: int = 0) -> Result:
        done = CliRunner().invoke(main, list(map(str, arguments)))
        assert done.exit_code == code, done.output
        return done

    return invoke


def test_networks_of_ones_own_stand_in_the_table(invoke: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(NETWORKS, encoding="utf-8")
    (tmp_path / "own.toml").write_text(
        'task = "classifier"\nmodules = ["own.py"]\nmodel = { name = "deciding", bias = false }\n', encoding="utf-8"
    )
    expected = [
        "needy – – needs values for: width",
        "broken – – ValueError: no way",
        "deciding 307,300 – Looks at what it gets.",
    ]
    lines = [
        " ".join(line.split()) for line in invoke("models", "--module", "own.py").stdout.splitlines() if line.strip()
    ]
    assert "resnet 319,876 49.13 M 10 layers" in lines
    assert lines[-3:] == expected
    lines = [" ".join(line.split()) for line in invoke("models", "own.toml").stdout.splitlines() if line.strip()]
    assert lines[-4:] == [*expected, "bias=false 307,200 –"]
    assert "there is no file none.py" in invoke("models", "--module", "none.py", code=1).stderr


@pytest.mark.parametrize("kind", ["network", "task", "dataset"])
def test_what_is_written_lies_where_one_wants_and_replaces_nothing(
    kind: str, invoke: Callable[..., Result], tmp_path: Path
) -> None:
    said = invoke("new", kind, "größe_2", "--folder", "my lab").stdout
    assert "cifarscale train 'my lab/größe_2.toml'" in said
    files = sorted(path.name for path in (tmp_path / "my lab").iterdir())
    assert files == ["größe_2.py", "größe_2.toml", "test_größe_2.py"]
    module = (tmp_path / "my lab/größe_2.py").read_text(encoding="utf-8")
    assert ("class Größe2(" in module) == (kind != "dataset")
    assert "my_" not in module
    (tmp_path / "my lab/größe_2.py").unlink()
    assert "exists already, and is left as it is" in invoke("new", kind, "größe_2", "--folder", "my lab", code=1).stderr
    assert not (tmp_path / "my lab/größe_2.py").exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet", "there is a network 'resnet' already"),
        ("gan", "there is a task 'gan' already"),
        ("cifar10", "there is a data set 'cifar10' already"),
        ("json", "json.py would hide the module 'json'"),
        ("torch", "torch.py would hide the module 'torch'"),
        ("two words", "'two words' cannot name a network"),
        ("class", "'class' cannot name a network"),
        ("_x", "'_x' cannot name a network"),
        ("", "'' cannot name a network"),
    ],
)
def test_a_name_that_would_not_do_is_refused(
    name: str, words: str, invoke: Callable[..., Result], tmp_path: Path
) -> None:
    assert words in invoke("new", "network", name, code=1).stderr
    assert not list(tmp_path.iterdir())


def test_a_package_s_networks_are_found_by_their_entry_points(tmp_path: Path) -> None:
    """One that cannot be imported is left out, and said."""
    info = tmp_path / "plugged-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugged\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[cifarscale.plugins]\nnetwork.deciding = plugged_nets\nnetwork.gone = plugged_nets.gone\n"
    )
    (tmp_path / "plugged_nets.py").write_text(NETWORKS, encoding="utf-8")
    (tmp_path / "own.toml").write_text('task = "classifier"\nmodel = { name = "deciding", bias = false }\n')
    command = [sys.executable, "-m", "cifarscale", "models", "own.toml"]
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=True
    )
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "deciding 307,300 – Looks at what it gets." in lines
    assert "bias=false 307,200 –" in lines
    assert "the plugin network.gone = plugged_nets.gone of the package plugged cannot be imported: Module" in " ".join(
        done.stderr.split()
    )


TAKING = """
import cifarscale as cs
@cs.register_network("resnet")
def resnet(num_classes: int): ...
"""
PLUGINS = {
    "classifier": "plugged_taking",
    "network.resnet": "plugged_taking",
    "network.mute": "plugged_mute",
    "gone": "plugged_gone",
    "empty": "plugged_empty",
    "dataset.broken": "plugged_mute",
}


def test_what_is_wrong_with_a_package_is_said_and_breaks_nothing_else(tmp_path: Path) -> None:
    info = tmp_path / "plugged-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugged\nVersion: 1.0\n")
    lines = [f"{name} = {module}" for name, module in PLUGINS.items()]
    (info / "entry_points.txt").write_text("\n".join(["[cifarscale.plugins]", *lines]))
    (tmp_path / "plugged_taking.py").write_text(TAKING)
    (tmp_path / "plugged_mute.py").write_text("class E(BaseException):\n    def __str__(self): 1 / 0\nraise E")
    (tmp_path / "plugged_empty.py").write_text("")
    (tmp_path / "gone.toml").write_text("task = 'gone'")
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    script = """
from click.testing import CliRunner
from cifarscale.cli.main import main
commands = ("jobs list", "jobs show cnn", "models", "jobs keys", "jobs show gone.toml", "shards build --data broken")
for command in commands:
    done = CliRunner().invoke(main, command.split())
    print(command, done.exit_code, done.exception, done.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path, "COLUMNS": "400"},
        capture_output=True,
        text=True,
        check=True,
    )
    said = " ".join((done.stdout + done.stderr).split())
    assert "Traceback" not in said
    for words in (
        "jobs list 0",
        "jobs show cnn 0",
        "models 0",
        "jobs keys 0",
        "jobs show gone.toml 1",
        "shards build --data broken 1",
        "classifier = plugged_taking of the package plugged is left out: a task of this package has that name",
        "network.resnet = plugged_taking of the package plugged cannot be imported: ConfigError: network 'resnet' is",
        "network.mute = plugged_mute of the package plugged cannot be imported: E. All else",
        "the plugin gone = plugged_gone of the package plugged cannot be imported: ModuleNotFoundError",
        "the plugin empty = plugged_empty of the package plugged registers no task 'empty'",
    ):
        assert words in said
