"""What the tests of whole jobs share: a tiny recipe, and the command line in processes of its own."""

import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from processes import descendants, of_process, wait_until_gone
from runs import PATIENCE_S, Run, run_recipe

from cifarscale.config.load import load_training_recipe
from cifarscale.runs.options import RunOptions
from cifarscale.tasks.training import resolve

TINY = """
task = "classifier"
[model]
width = 4
[training]
max_steps = 20
global_batch_size = 16
log_every = 1
checkpoint_every = 5
[evaluation]
every = 10
batch_size = 60
"""


@dataclass
class Started:
    """A command that runs."""

    process: subprocess.Popen[str]

    def wait(self) -> subprocess.CompletedProcess[str]:
        """The command when it has ended, with what it printed."""
        output, errors = self.process.communicate(timeout=PATIENCE_S)
        return subprocess.CompletedProcess(self.process.args, self.process.returncode, output, errors)

    def end(self) -> subprocess.CompletedProcess[str] | None:
        """What `wait` returns, None while the command runs."""
        return None if self.process.poll() is None else self.wait()

    def send(self, signum: signal.Signals) -> None:
        self.process.send_signal(signum)

    def kill(self) -> None:
        """SIGKILL, as from a scheduler that has lost its patience. Returns when the ranks are gone, too."""
        ranks = self.ranks()
        self.process.kill()
        self.process.wait(PATIENCE_S)
        wait_until_gone(ranks.values())

    def ranks(self) -> dict[int, int]:
        """Process ids of the ranks that were started by this command and live, by rank."""
        found = {}
        for pid in descendants(self.process.pid):
            name = re.fullmatch(rb"rank-(\d+)\n", of_process(f"/proc/{pid}/comm"))
            if name:
                found[int(name[1])] = pid
        return found


@pytest.fixture(autouse=True, scope="session")
def one_core_a_process() -> Iterator[None]:
    """For processes that tests start, and none that started the tests as a rank."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("OMP_NUM_THREADS", "1")
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
            patched.delenv(name, raising=False)
        yield


@pytest.fixture
def start() -> Iterator[Callable[..., Started]]:
    """Starts `cifarscale` with arguments in a process of its own, and ends it with the test."""
    started: list[Started] = []

    def start(*arguments: str | Path) -> Started:
        command = [sys.executable, "-m", "cifarscale", *map(str, arguments)]
        pipe = subprocess.PIPE
        started.append(Started(subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True)))
        return started[-1]

    yield start
    for each in started:
        if each.process.poll() is None:
            each.kill()


@pytest.fixture
def cifarscale(start: Callable[..., Started]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `cifarscale` with arguments in a process of its own, to its end."""
    return lambda *arguments: start(*arguments).wait()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a recipe that takes a fraction of a second."""
    path = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    path.write_text(TINY, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def train_here(tiny: Path, shards: Path) -> Callable[..., Run]:
    """Trains the tiny recipe with overrides in a folder, by one rank in this process."""

    def train(folder: Path, *overrides: str, shards: Path = shards) -> Run:
        run_recipe(resolve(load_training_recipe(str(tiny), overrides), shards), folder, RunOptions(shards, "cpu"))
        return Run(folder)

    return train


@pytest.fixture(scope="session")
def opened() -> type[Run]:
    """Opens a run folder."""
    return Run
