"""In what two runs differ."""

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cifarscale.cli.main import main
from cifarscale.config.load import load_recipe
from cifarscale.errors import TRUST_VARIABLE
from cifarscale.launch.run import prepare
from cifarscale.runs.files import write_json_atomically

NETWORK = """import sizes
import cifarscale as cs
from torch import nn

@cs.register_network("plain")
class Plain(nn.Module):
    def __init__(self, num_classes: int, bias: bool = True) -> None:
        super().__init__()
        self.head = nn.Linear(sizes.INPUTS, num_classes, bias)

    def forward(self, images):
        return self.head(images.flatten(1))
"""
RECIPE = """
task = "classifier"
modules = ["own.py"]
model = { name = "plain" }
training = { max_steps = 1, global_batch_size = 16 }
evaluation = { every = 0 }
"""
SWEEP = """
task = "sweep"
base = "own.toml"
metric = "validation.top1"
set = { "data.num_validation" = 60, "data.dataset" = "synthetic" }
space = { "training.learning_rate" = { choice = [1e-3, 1e-2] } }
"""


@pytest.fixture
def invoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs `cifarscale` in this process, in the test's folder, where a network and its recipe lie."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv(TRUST_VARIABLE, "")
    monkeypatch.setenv("COLUMNS", "80")
    for name, text in {"own.py": NETWORK, "sizes.py": "INPUTS = 3072\n", "own.toml": RECIPE}.items():
        (tmp_path / name).write_text(text, encoding="utf-8")

    def invoke(*arguments: object, code: int = 0) -> Result:
        done = CliRunner().invoke(main, list(map(str, arguments)))
        assert done.exit_code == code, done.output
        return done

    return invoke


def test_keys_code_environment_and_results_of_two_runs_are_compared(
    invoke: Callable[..., Result], shards: Path, tmp_path: Path
) -> None:
    invoke("train", "own.toml", "--data", shards, "--device", "cpu")
    (before,) = tmp_path.glob("runs/own-*")
    assert "both compute the same" in invoke("runs", "diff", before, before / "recipe.toml").stdout
    (tmp_path / "sizes.py").write_text("INPUTS = 3 * 32 * 32\n")
    refused = invoke("train", "own.toml", "--data", shards, "--run-dir", before, code=1).stderr
    assert f"cifarscale runs diff runs/{before.name} RECIPE shows in what they differ" in refused
    said = invoke("train", "own.toml", "--data", shards, "--device", "cpu").stderr
    (now,) = set(tmp_path.glob("runs/own-*")) - {before}
    names = (f"runs/{before.name}", f"runs/{now.name}")
    assert f"this is another run. Compare: cifarscale runs diff {names[0]} {names[1]}" in said
    assert "another run" not in invoke("train", "own.toml", "--data", shards, "--set", "seed=1").stderr
    write_json_atomically(now / "environment.json", {"torch": "3.0.0", "started": "now"})
    shown = invoke("runs", "diff", *names).stdout
    assert "-INPUTS = 3072\n+INPUTS = 3 * 32 * 32\n" in shown
    assert "own.py" not in shown
    assert "3.0.0" in shown
    assert "started" not in shown
    assert "their results are equal" in shown
    (tmp_path / "own.toml").write_text(RECIPE.replace("= 1,", "= 7,"), encoding="utf-8")
    against_recipe = invoke("runs", "diff", names[0], "own.toml").stdout
    assert ["training.max_steps", "1", "7"] in [line.split() for line in against_recipe.splitlines()]
    assert "fingerprint" not in against_recipe
    assert max(map(len, against_recipe.splitlines())) <= 80


def test_what_is_not_computed_is_shown_and_does_not_count(invoke: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "tagged.toml").write_text(f'{RECIPE}tracking = {{ project = "mine" }}\n', encoding="utf-8")
    shown = invoke("runs", "diff", "own.toml", "tagged.toml").stdout
    assert "both compute the same" in shown
    assert "tracking.project" in shown


def test_sweeps_differ_in_their_bases_too(invoke: Callable[..., Result], tmp_path: Path) -> None:
    for name, width in (("one", 4), ("two", 8)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "base.toml").write_text(f"[model]\nwidth = {width}\n")
        (tmp_path / name / "recipe.toml").write_text(
            'task = "sweep"\nbase = "cnn"\n[space]\n"seed" = { choice = [1] }\n'
        )
    assert "base.model.width" in invoke("runs", "diff", "one", "two").stdout


def test_a_sweeps_recipe_stands_for_it_with_the_base_that_it_names(
    invoke: Callable[..., Result], shards: Path, tmp_path: Path
) -> None:
    (tmp_path / "swept.toml").write_text(SWEEP, encoding="utf-8")
    prepared = prepare(load_recipe("swept.toml"), tmp_path / "swept", str(shards))
    prepared.make_folder()
    shown = invoke("runs", "diff", "swept", "swept.toml").stdout
    assert shown.splitlines() == ["A  swept", "B  swept.toml", "both compute the same"]
    (tmp_path / "own.toml").write_text(RECIPE.replace("= 16", "= 32"), encoding="utf-8")
    (tmp_path / "sizes.py").write_text("INPUTS = 3 * 32 * 32\n", encoding="utf-8")
    shown = invoke("runs", "diff", "swept", "swept.toml").stdout
    assert ["base.training.global_batch_size", "16", "32"] in [line.split() for line in shown.splitlines()]
    assert "-INPUTS = 3072\n+INPUTS = 3 * 32 * 32\n" in shown
    assert shown.count("base.") == 1


def test_runs_are_listed_as_before_and_a_folder_is_no_command(invoke: Callable[..., Result], tmp_path: Path) -> None:
    assert invoke("runs").stdout == invoke("runs", "list").stdout
    assert "there are no runs in elsewhere" in invoke("runs", "elsewhere").stdout
    assert "diff" in invoke("runs", "--help").stdout
    assert (
        "there is no run folder runs/none. Run: cifarscale runs"
        in invoke("runs", "diff", "runs/none", "cnn", code=1).stderr
    )
    assert "unknown recipe 'cmn', did you mean 'cnn'" in invoke("runs", "diff", "cnn", "cmn", code=1).stderr
