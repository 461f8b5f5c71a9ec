"""Sweeps that are run by the command line, for the tests of tests/sweep."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from processes import having
from runs import PATIENCE_S, wait_until

RECIPE = """
task = "sweep"
base = "demo"
num_trials = 4
max_concurrent = 2

[set]
"data.num_validation" = 100
"training.max_steps" = {max_steps}
"training.global_batch_size" = 16
"training.log_every" = 5
"training.checkpoint_every" = 10
"evaluation.every" = 10

[searcher]
name = "{searcher}"

[space]
{space}
"""
LEARNING_RATES = '"training.learning_rate" = { loguniform = [1e-4, 1e-2] }'
MARK = "CIFARSCALE_TEST_SWEEP"
"""Environment variable by which a test knows the processes that it has started."""


class Sweep:
    """A sweep that is run by the command line, in its folder."""

    def __init__(self, folder: Path, shards: Path) -> None:
        self.path, self._shards = folder / "swept", shards
        self.recipe = folder / "tiny.toml"
        self._started: list[subprocess.Popen[str]] = []

    def beside(self, name: str) -> "Sweep":
        """The same sweep in another folder."""
        other = Sweep(self.path.parent, self._shards)
        other.path, other.recipe, other._started = self.path.with_name(name), self.recipe, self._started
        return other

    def write(self, space: str = LEARNING_RATES, max_steps: int = 30, searcher: str = "random") -> None:
        self.recipe.write_text(RECIPE.format(space=space, max_steps=max_steps, searcher=searcher))

    def start(
        self, *options: str, command: str = "sweep", environment: dict[str, str] | None = None
    ) -> subprocess.Popen[str]:
        start = ["-m", "cifarscale", command, str(self.recipe), "--run-dir", str(self.path)]
        return self._start(*start, "--data", str(self._shards), *options, environment=environment)

    def _start(self, *arguments: str, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"CUDA_VISIBLE_DEVICES": "", MARK: str(self.path)} | (environment or {}),
        )
        self._started.append(process)
        return process

    def run(self, *options: str) -> str:
        """What a sweep prints that ends well."""
        process = self.start(*options)
        output, _ = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, output
        return output

    def script(self, program: str) -> str:
        """What a script prints that ends well; its arguments are the recipe, the shards and the sweep's folder."""
        process = self._start("-c", program, str(self.recipe), str(self._shards), str(self.path))
        output, _ = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, output
        return output

    def trials(self) -> list[dict[str, Any]]:
        try:
            trials: list[dict[str, Any]] = json.loads((self.path / "table.json").read_text())["trials"]
        except FileNotFoundError:
            return []
        return trials

    def states(self) -> list[str]:
        return [trial["state"] for trial in self.trials()]

    def result(self, trial: int) -> Path:
        return self.path / "trials" / self.trials()[trial]["folder"] / "result.json"

    def end(self) -> None:
        for process in self._started:
            process.kill()
            process.wait()


def started_for(folder: Path) -> set[int]:
    """Processes that a sweep of this test has started, Ray's among them: they inherit its environment."""
    return set(having({MARK: str(folder)}))


def plasma() -> set[Path]:
    return set(Path("/dev/shm").glob("plasma*"))


def process_of(sweep: Sweep) -> int:
    """The process of a trial that has a checkpoint to go on from."""
    found: list[int] = []

    def is_there() -> bool:
        for lease in sweep.path.glob("trials/*/.lease"):
            if list(lease.parent.glob("checkpoints/step-*")) and not (lease.parent / "result.json").exists():
                try:
                    found.append(json.loads(lease.read_text())["pid"])
                except FileNotFoundError:
                    continue
        return bool(found)

    wait_until(is_there, "no trial runs")
    return found[0]


def cifarscale(*arguments: str) -> str:
    command = [sys.executable, "-m", "cifarscale", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE_S).stdout


def command_of(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return []


def is_raylet(pid: int) -> bool:
    return command_of(pid)[0].endswith("/raylet")
