"""What the tests of whole jobs share: a tiny recipe, and the command line in processes of its own."""

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from cifarscale.checkpoint import load_checkpoint, newest_checkpoint
from cifarscale.config.load import load_recipe
from cifarscale.run import Placement, resolve, run_job
from cifarscale.run_folder import RunFolder
from cifarscale.tracking.metrics import read_metrics

PATIENCE_S = 120
"""After which a test that waits gives up: for processes that hang, not a measure of anything."""

TINY = """
task = "cnn"
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

TIMES = ("seconds", "images_per_second")
"""What differs between two runs that compute the same."""


@dataclass
class Started:
    """A command that runs."""

    process: subprocess.Popen[str]

    def wait(self) -> subprocess.CompletedProcess[str]:
        """The command when it has ended, with what it printed."""
        output, errors = self.process.communicate(timeout=PATIENCE_S)
        return subprocess.CompletedProcess(self.process.args, self.process.returncode, output, errors)

    def send(self, signum: signal.Signals) -> None:
        self.process.send_signal(signum)

    def kill(self) -> None:
        """SIGKILL, as from a scheduler that has lost its patience. Returns when the ranks are gone, too."""
        ranks = self.ranks()
        self.process.kill()
        self.process.wait(PATIENCE_S)
        _wait_until_gone(ranks.values())

    def ranks(self) -> dict[int, int]:
        """Process ids of the ranks that were started by this command and live, by rank."""
        found = {}
        for pid in _children(self.process.pid):
            rank = re.search(rb"(?:^|\0)RANK=(\d+)\0", _read(f"/proc/{pid}/environ"))
            if rank and b"cluster.worker" in _read(f"/proc/{pid}/cmdline"):
                found[int(rank[1])] = pid
        return found


class Run:
    """What a run folder holds."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def checkpoints(self) -> list[Path]:
        """Oldest first."""
        return sorted((self.path / "checkpoints").iterdir())

    def state(self) -> dict[str, Any]:
        """The newest checkpoint."""
        path = newest_checkpoint(self.path / "checkpoints")
        assert path is not None, f"no checkpoint in {self.path}"
        return load_checkpoint(path)

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of the log, without times."""
        lines = read_metrics(self.path / "metrics.jsonl")
        return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]

    def result(self) -> dict[str, Any]:
        result = RunFolder(self.path).result()
        assert result is not None, f"{self.path} is not complete"
        return result

    def samples(self) -> dict[str, bytes]:
        """A DCGAN's grids of images by the names of their files; none of a classifier."""
        return {path.name: path.read_bytes() for path in sorted((self.path / "samples").glob("*"))}

    def last_step(self) -> int:
        """Of the last line of the log; 0 before the first."""
        return max((line["step"] for line in read_metrics(self.path / "metrics.jsonl")), default=0)

    def wait_for_step(self, step: int, started: Started) -> None:
        """Returns when the log has come to a step. Fails if the command ends before that."""
        deadline = time.monotonic() + PATIENCE_S
        while self.last_step() < step:
            if started.process.poll() is not None:
                pytest.fail(f"ended before step {step}: {started.wait()}")
            assert time.monotonic() < deadline, f"step {step} is not reached"
            time.sleep(0.005)

    def assert_same_as(self, other: "Run") -> None:
        """Both runs ended with the same weights, moments, losses, figures and images, to the last bit."""
        mine, theirs = self.state(), other.state()
        for part in ("step", "networks", "averages", "optimizers", "scaler"):
            _assert_same(mine[part], theirs[part], part)
        assert self.metrics() == other.metrics()
        mine, theirs = self.result(), other.result()
        assert mine.keys() == theirs.keys()
        for key in mine.keys() & {"train", "test"}:
            assert mine[key] == theirs[key]
        assert self.samples() == other.samples()


def _assert_same(one: Any, other: Any, where: str) -> None:
    """Equal values, and tensors equal in every bit, through dictionaries and lists."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key, value in one.items():
            _assert_same(value, other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            _assert_same(a, b, f"{where}.{i}")
    else:
        assert one == other, where


@pytest.fixture(autouse=True, scope="session")
def one_core_a_process() -> Iterator[None]:
    """For processes that tests start, and none that started the tests as a rank."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("OMP_NUM_THREADS", "1")
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
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
        run_job(resolve(load_recipe(str(tiny), overrides), shards), folder, Placement(shards, "cpu"))
        return Run(folder)

    return train


@pytest.fixture(scope="session")
def opened() -> type[Run]:
    """Opens a run folder."""
    return Run


@pytest.fixture(scope="session")
def wait_until_gone() -> Callable[[Iterable[int]], None]:
    """Returns when none of the processes of these ids runs."""
    return _wait_until_gone


def _wait_until_gone(pids: Iterable[int]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    for pid in pids:
        while (stat := _read(f"/proc/{pid}/stat")) and stat.rpartition(b")")[2].split()[0] not in (b"Z", b"X"):
            assert time.monotonic() < deadline, f"process {pid} goes on"
            time.sleep(0.01)


def _children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task")
    found = [_read(str(task / "children")) for task in tasks.iterdir()] if tasks.is_dir() else []
    return [int(child) for children in found for child in children.split()]


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""
