"""What the tests of W&B share: tiny trainings, and W&B's own reader of the files that it writes."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from runs import PATIENCE_S, Run, run_recipe
from wandb_server import KEY, WandbServer, serving

from cifarscale.config.load import load_training_recipe
from cifarscale.runs.options import RunOptions
from cifarscale.tasks.training import resolve
from cifarscale.tracking.wandb_folder import WandbFolder

pytest.importorskip("wandb")

CNN = """
task = "classifier"
[model]
width = 4
[training]
max_steps = 20
global_batch_size = 16
log_every = 2
checkpoint_every = 5
[evaluation]
every = 10
batch_size = 60
"""
DCGAN = """
task = "gan"
[model]
generator_width = 8
discriminator_width = 8
[training]
max_steps = 6
global_batch_size = 16
log_every = 4
[evaluation]
every = 3
[distance]
features = "none"
"""
SERVICE = "WANDB_SERVICE"
"""Where W&B notes its own process for this one and its children."""


@dataclass
class Recorded:
    """What a .wandb file holds, as `wandb leet inspect` reads it."""

    records: list[dict[str, Any]]

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [record[kind] for record in self.records if record["type"] == kind]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The history, a row a step."""
        return [history["item"] for history in self.of("history")]

    def media(self, row: dict[str, Any]) -> set[str]:
        """The names of images and tables in a row."""
        return {key.removesuffix("._type") for key in row if key.endswith("._type")}

    @property
    def steps(self) -> list[int]:
        return [row["step"] for row in self.rows]

    @property
    def config(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for run in self.of("run"):
            found |= run["config"]["update"]
        return found

    @property
    def summary(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for summary in self.of("summary"):
            found |= summary.get("update", {})
        return found

    @property
    def files(self) -> list[str]:
        return [file["path"] for files in self.of("files") for file in files["files"]]


def offline_file(run_dir: Path) -> Path:
    """The one .wandb file of a run that is offline."""
    (segment,) = WandbFolder(run_dir).segments()
    assert segment.name.startswith("offline-")
    (file,) = segment.glob("*.wandb")
    return file


@pytest.fixture(scope="session")
def recorded() -> Callable[[Path], Recorded]:
    """Reads what W&B wrote of an offline run."""

    def read(run_dir: Path) -> Recorded:
        command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(offline_file(run_dir))]
        ended = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE_S)
        return Recorded([json.loads(line) for line in ended.stdout.splitlines()])

    return read


@pytest.fixture(scope="session")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of cnn.toml and dcgan.toml, which take a fraction of a second."""
    folder = tmp_path_factory.mktemp("recipes")
    (folder / "cnn.toml").write_text(CNN, encoding="utf-8")
    (folder / "dcgan.toml").write_text(DCGAN, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def train(recipes: Path, shards: Path) -> Callable[..., Run]:
    """Trains a recipe with overrides in a folder, in this process."""

    def train(folder: Path, *overrides: str, recipe: str = "cnn") -> Run:
        job = load_training_recipe(str(recipes / f"{recipe}.toml"), overrides)
        run_recipe(resolve(job, shards), folder, RunOptions(shards, "cpu"))
        return Run(folder)

    return train


@pytest.fixture
def start(shards: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `cifarscale` with arguments in a process of its own, and ends it with the test."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str | Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "cifarscale", *map(str, arguments)]
        pipe = subprocess.PIPE
        environment = {name: value for name, value in os.environ.items() if name != SERVICE}
        environment["OMP_NUM_THREADS"] = "1"
        started.append(subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def cifarscale(start: Callable[..., subprocess.Popen[str]]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `cifarscale` with arguments in a process of its own, to its end."""

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        process = start(*arguments)
        output, errors = process.communicate(timeout=PATIENCE_S)
        return subprocess.CompletedProcess(process.args, process.returncode, output, errors)

    return run


@pytest.fixture(autouse=True)
def _no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whoever runs the tests may have one."""
    for name in [name for name in os.environ if name.startswith("WANDB_") and name != SERVICE]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("WANDB_DATA_DIR", "")  # is set by each run, and then as it was


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """A server of W&B on this machine, with a key for it in the environment."""
    import wandb

    wandb.teardown()  # it reads the environment once
    with serving() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.address)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        yield server
        wandb.teardown()
