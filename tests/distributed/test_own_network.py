"""A network in a file of the user's: all commands take it, and its code is part of the run."""

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from processes import run_command
from runs import Run, wait_until

from cifarscale.errors import TRUST_VARIABLE

MIXER = Path(__file__).parents[2] / "examples/mixer"
IMAGE = MIXER.parents[1] / "docs/images/yellow_striped_ring.png"
SMALL = ("--set", "model.width=8", "--set", "model.depth=1", "--set", "training.global_batch_size=16")
SWEEP = """
task = "sweep"
base = "mixer.toml"
num_trials = 2
max_concurrent = 1
[set]
"data.num_validation" = 100
"model.width" = 8
"training.max_steps" = 60
"training.global_batch_size" = 16
"training.checkpoint_every" = 5
"evaluation.every" = 20
[space]
"model.depth" = { choice = [1, 2] }
[searcher]
name = "grid"
"""
PLAIN = """
import cifarscale as cs
from torch import nn

@cs.register_network("plain")
class Plain(nn.Module):
    def __init__(self, num_classes: int, bias: bool = True) -> None:
        super().__init__()
        self.head = nn.Linear(3072, num_classes, bias)

    def forward(self, images):
        return self.head(images.flatten(1))
"""
Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def cifarscale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs `cifarscale` in the test's folder, where the mixer lies, for a user of this test's own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv(TRUST_VARIABLE, raising=False)
    for file in ("mixer.py", "mixer.toml"):
        shutil.copy(MIXER / file, tmp_path)

    def cifarscale(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        return run_command(tmp_path, *arguments, code=code)

    return cifarscale


def train(shards: Path, run_dir: str, steps: int, *more: object) -> list[Any]:
    steps_of_it = ("--set", f"training.max_steps={steps}", "--set", "evaluation.every=0")
    return ["train", "mixer.toml", "--data", shards, "--run-dir", run_dir, *SMALL, *steps_of_it, *more]


def test_its_run_is_the_same_on_two_ranks_and_is_shown(cifarscale: Command, shards: Path, tmp_path: Path) -> None:
    cifarscale(*train(shards, "one", 20))
    cifarscale(*train(shards, "two", 20, "--nproc", 2))
    Run(tmp_path / "one").assert_same_as(Run(tmp_path / "two"))
    assert (tmp_path / "one/code/mixer.py").read_bytes() == (MIXER / "mixer.py").read_bytes()
    cifarscale("evaluate", "one", "--data", shards)
    cifarscale("report", "one", "two", "--data", shards)
    distance = ("--features", "cnn:one", "--allow-few-samples", "--no-neighbours", "--no-kernel")
    cifarscale("fid", "test", "--against", "train", "--data", shards, *distance)


def test_an_edited_file_is_another_run_and_changes_nothing_of_one_that_goes_on(
    cifarscale: Command, shards: Path, tmp_path: Path
) -> None:
    whole, killed = Run(tmp_path / "whole"), Run(tmp_path / "killed")
    command = train(shards, "killed", 300, "--set", "training.checkpoint_every=10", "--set", "training.log_every=1")
    with subprocess.Popen(
        [sys.executable, "-m", "cifarscale", *map(str, command)], cwd=tmp_path, stderr=subprocess.DEVNULL
    ) as process:
        killed.wait_for_step(20, process.poll)
        process.send_signal(signal.SIGKILL)
    cifarscale(*train(shards, "whole", 300, "--set", "training.checkpoint_every=10", "--set", "training.log_every=1"))
    edited = (tmp_path / "mixer.py").read_text(encoding="utf-8").replace("nn.GELU", "nn.ReLU")
    (tmp_path / "mixer.py").write_text(edited, encoding="utf-8")
    assert "another recipe" in cifarscale(*command, code=1).stderr
    cifarscale("train", "killed/recipe.toml", "--data", shards)
    killed.assert_same_as(whole)
    (tmp_path / "mixer.py").unlink()
    renamed = (tmp_path / "killed").rename(tmp_path / "renamed é")
    cifarscale("evaluate", renamed, "--data", shards)
    cifarscale("report", renamed, "--data", shards)
    cifarscale("export", renamed, "--to", "mixer.safetensors")
    assert len(cifarscale("predict", renamed, IMAGE).stdout.splitlines()) > 5


@pytest.mark.thorough
def test_a_sweep_of_it_goes_on_with_its_copy_whatever_becomes_of_the_file(
    cifarscale: Command, shards: Path, tmp_path: Path
) -> None:
    (tmp_path / "sweep.toml").write_text(SWEEP, encoding="utf-8")
    sweep = ("sweep", "sweep.toml", "--data", shards, "--run-dir", "swept")
    with subprocess.Popen(
        [sys.executable, "-m", "cifarscale", *map(str, sweep)], cwd=tmp_path, stderr=subprocess.DEVNULL
    ) as process:
        saved = "swept/trials/*/checkpoints/step-*"
        wait_until(lambda: list(tmp_path.glob(saved)), "no trial saves", process.poll)
        (tmp_path / "mixer.py").write_text("import sys\nsys.exit(3)\n", encoding="utf-8")  # while it runs
        process.send_signal(signal.SIGKILL)
    assert "mixer.py, line 2: SystemExit: 3" in cifarscale("jobs", "show", "mixer.toml", code=1).stderr
    assert "this sweep goes on with its copy in swept" in cifarscale(*sweep, "--resume").stderr
    assert len(list((tmp_path / "swept/trials").glob("*/result.json"))) == 2
    copies = {path.read_bytes() for path in tmp_path.glob("swept/**/code/mixer.py")}
    assert copies == {(MIXER / "mixer.py").read_bytes()}
    edited = (MIXER / "mixer.py").read_text(encoding="utf-8").replace("nn.GELU", "nn.ReLU")
    (tmp_path / "mixer.py").write_text(edited, encoding="utf-8")
    assert "has changed since: this sweep goes on with its copy" in cifarscale(*sweep).stderr
    (tmp_path / "mixer.py").unlink()
    cifarscale("train", "swept/best.toml", "--data", shards, "--run-dir", "best")


def test_the_code_of_others_runs_only_when_one_says_so(
    cifarscale: Command, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "imported"
    with (tmp_path / "mixer.py").open("a", encoding="utf-8") as file:
        file.write(f"\nopen({str(mark)!r}, 'w').close()\n")
    cifarscale(*train(shards, "runs/theirs", 2))
    mark.unlink()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another user"))
    assert "theirs" in cifarscale("runs").stdout
    cifarscale("report", "runs/theirs", "--data", shards)
    theirs = shutil.copytree(tmp_path / "runs/theirs", tmp_path / "runs/younger")
    (theirs / "result.json").unlink()
    sly = shutil.copytree(theirs, tmp_path / "runs/sly")  # its code where a recipe of one's own would have it
    shutil.move(sly / "code/mixer.py", sly)
    (sly / "code").rmdir()
    cifarscale("runs")
    cifarscale("status", "runs/sly", code=1)
    for command in (("evaluate", "runs/theirs"), ("train", "runs/younger/recipe.toml")):
        refused = cifarscale(*command, "--data", shards, code=1).stderr
        assert "mixer.py, code that you have not trained" in refused
    assert not mark.exists()
    cifarscale("--trust-code", "evaluate", "runs/theirs", "--data", shards)
    assert mark.exists()


def test_a_network_without_options_of_its_own_has_its_arguments_as_keys(
    cifarscale: Command, shards: Path, tmp_path: Path
) -> None:
    (tmp_path / "plain.py").write_text(PLAIN, encoding="utf-8")
    (tmp_path / "plain.toml").write_text(
        'task = "classifier"\nmodules = ["plain.py"]\nmodel = { name = "plain", bias = false }\n', encoding="utf-8"
    )
    options = ("--data", shards, "--set", "training.max_steps=2", "--run-dir", "run")
    assert "3072" in cifarscale("train", "plain.toml", *options).stdout.replace(",", "").replace("307200", "3072")
    distance = ("--features", "cnn:run", "--allow-few-samples")
    refused = cifarscale("fid", "test", "--data", shards, *distance, code=1)
    assert "has no method `features`" in refused.stderr


@pytest.mark.parametrize(
    ("code", "modules", "part"),
    [
        ("x = 1 / 0", '["own.py"]', "own.py, line 1: ZeroDivisionError: division by zero"),
        ("def", '["own.py"]', "own.py, line 1: SyntaxError"),
        ("", '["none.py"]', "there is no file none.py"),
        ("", '["no.such.module"]', "no module no.such.module to import"),
        (PLAIN.replace('"plain"', '"resnet"'), '["own.py"]', "network 'resnet' is registered already"),
        (PLAIN.replace("bias: bool = True", "bias"), '["own.py"]', "parameter 'bias' needs a type and a default"),
        (PLAIN, '["own.py"]', "unknown key 'model.bais', did you mean 'model.bias'?"),
    ],
)
def test_what_is_wrong_with_it_is_one_line(
    code: str, modules: str, part: str, cifarscale: Command, shards: Path, tmp_path: Path
) -> None:
    (tmp_path / "own.py").write_text(code, encoding="utf-8")
    (tmp_path / "own.toml").write_text(
        f'task = "classifier"\nmodules = {modules}\nmodel = {{ name = "plain", bais = true }}\n', encoding="utf-8"
    )
    (line,) = cifarscale("train", "own.toml", "--data", shards, code=1).stderr.strip().splitlines()
    assert part in line
    assert not (tmp_path / "runs").exists()
