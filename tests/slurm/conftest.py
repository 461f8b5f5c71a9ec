"""A real SLURM of two nodes with two CPUs each, for the tests of this folder."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from runs import PATIENCE_S, Run, planted_after, run_recipe, wait_until
from slurm_jobs import Job

from cifarscale.config.load import load_training_recipe
from cifarscale.runs.options import RunOptions
from cifarscale.tasks.training import resolve

SCRIPT = Path(__file__).parents[2] / "slurm/testcluster/testcluster"
TWO_RANKS = Path(__file__).with_name("two_ranks.toml")

CNN = """
task = "classifier"
[training]
max_steps = {steps}
log_every = 5
checkpoint_every = 20
[evaluation]
every = 0
"""

Script = Callable[..., subprocess.CompletedProcess[str]]


@dataclass(frozen=True)
class Cluster:
    """A cluster that is up."""

    folder: Path
    script: Script

    @cached_property
    def environment(self) -> dict[str, str]:
        """For every command that is to use this cluster, on top of os.environ; jobs have a rank a node."""
        return {"SLURM_CONF": f"{self.folder}/etc/slurm.conf", "CIFARSCALE_PROFILE": str(TWO_RANKS)}

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """One of SLURM's commands."""
        environment = os.environ | self.environment
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE_S)
        assert not check or done.returncode == 0, f"{' '.join(command)}: {done.stderr}{done.stdout}"
        return done

    def sbatch(self, *arguments: str) -> str:
        """Submits a job, and gives its id."""
        return self.run("sbatch", "--parsable", *arguments).stdout.strip()

    @cached_property
    def _fields(self) -> list[str]:
        known = self.run("sacct", "--helpformat").stdout.split()
        return [field for field in ("JobID", "State", "ExitCode", "NodeList", "Restarts") if field in known]

    def sacct(self, job_id: str) -> list[dict[str, str]]:
        """A row for the job and each step, and again for each time that the job was queued again, oldest first.

        The accounting lags behind `state` by up to some seconds. SLURM 22.05 has no field Restarts.
        """
        options = ("--noheader", "--parsable2", "--duplicates", f"--format={','.join(self._fields)}")
        lines = self.run("sacct", *options, "-j", job_id).stdout.splitlines()
        return [dict(zip(self._fields, line.split("|"), strict=True)) for line in lines]

    def state(self, job_id: str) -> str:
        """One word, such as RUNNING: from the controller while it knows the job, else from the accounting."""
        shown = self.run("scontrol", "--oneliner", "show", "job", job_id, check=False).stdout
        for word in shown.split():
            if word.startswith("JobState="):
                return word.removeprefix("JobState=")
        states = [row["State"] for row in self.sacct(job_id) if row["JobID"] == job_id]
        return states[-1].split()[0] if states else ""  # "CANCELLED by 0"

    def wait_for_state(self, job_id: str, states: Collection[str], timeout_s: float = PATIENCE_S) -> str:
        """The first of the states that the job is seen in."""
        return wait_until(
            lambda: state if (state := self.state(job_id)) in states else "",
            lambda: f"job {job_id} is {self.state(job_id)}, not {' or '.join(sorted(states))}",
            every_s=0.2,
            patience_s=timeout_s,
        )

    def kill(self, name: str) -> None:
        """SIGKILL for slurmctld, slurmdbd, n1 or n2; slurmctld has written down before which jobs run."""
        if name == "slurmctld":
            self._save_state()
        self._do("kill", name)

    def start(self, name: str) -> None:
        """Starts again what was killed, and returns when it answers."""
        self._do("start", name)

    def _save_state(self) -> None:
        """SLURM 22.05 saves within 5 s of a change to a job, but not when its backfill scheduler has started one."""
        saved, changed = self.folder / "state/job_state", time.time()
        for job in self.run("squeue", "-h", "-t", "RUNNING", "-o", "%i").stdout.split():
            self.run("scontrol", "update", f"jobid={job}", "comment=saved", check=False)
            wait_until(lambda: saved.exists() and saved.stat().st_mtime > changed, "slurmctld does not save its state")

    def _do(self, command: str, name: str) -> None:
        done = self.script(command, name, "--folder", self.folder)
        assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def script() -> Script:
    """Runs slurm/testcluster/testcluster with the arguments."""

    def run(*arguments: object, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, SCRIPT, *map(str, arguments)],
            env=os.environ | (environment or {}),
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )

    missing = run("packages").stdout.strip()
    if missing:
        pytest.skip(f"no SLURM on this machine; Debian's packages {missing} are missing")
    return run


@pytest.fixture(scope="session")
def start_cluster(script: Script) -> Iterator[Callable[..., Cluster]]:
    """Brings up a cluster in a new folder with a short path; all are taken down at the end."""
    folders: list[Path] = []

    def start(*options: object) -> Cluster:
        folders.append(Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp")))
        done = script("up", "--folder", folders[-1], *options)
        assert done.returncode == 0, done.stderr
        return Cluster(folders[-1], script)

    yield start
    left = [done.stderr for folder in folders if (done := script("down", "--folder", folder)).returncode]
    assert not left


@pytest.fixture(scope="session")
def cluster(start_cluster: Callable[..., Cluster]) -> Cluster:
    """A cluster of the nodes n1 and n2 with two CPUs each; every test leaves it with all its daemons running."""
    return start_cluster("--nodes", 2, "--cpus", 2)


@pytest.fixture(scope="session")
def data(shards: Path) -> Path:
    """What jobs train on, small as their time is that of starts."""
    return shards


@pytest.fixture
def command(cluster: Any, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `cifarscale` in the test's folder, against the test cluster."""

    def command(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "cifarscale", *map(str, arguments)],
            cwd=tmp_path,
            env=os.environ | cluster.environment | environment,
            capture_output=True,
            text=True,
            timeout=480,
            check=False,
        )

    return command


@pytest.fixture(scope="session")
def references(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Run]:
    """The same recipe trained by one uninterrupted process; each one once."""
    found: dict[tuple[str, Path], Run] = {}

    def reference(recipe: Path, data: Path = data) -> Run:
        key = recipe.read_text(encoding="utf-8"), data
        if key not in found:
            folder = tmp_path_factory.mktemp("reference") / "run"
            run_recipe(resolve(load_training_recipe(str(recipe)), data), folder, RunOptions(data, "cpu"))
            found[key] = Run(folder)
        return found[key]

    return reference


@pytest.fixture
def submit(cluster: Any, command: Callable[..., Any], data: Path, tmp_path: Path) -> Iterator[Callable[..., Job]]:
    """Submits a recipe on both nodes; whatever still runs at the end of the test is cancelled."""
    jobs: list[Job] = []

    def submit(
        recipe: Path | str,
        *options: object,
        run_dir: Path = tmp_path / "run",
        nodes: int = 2,
        data: Path = data,
        environment: dict[str, str] | None = None,
    ) -> Job:
        arguments = ("submit", recipe, "--nodes", nodes, "--data", data, "--run-dir", run_dir, *options)
        done = command(*arguments, **(environment or {}))
        assert done.returncode == 0, done.stderr
        jobs.append(Job(cluster, run_dir))
        assert jobs[-1].id in done.stdout
        return jobs[-1]

    yield submit
    for job in jobs:
        if job.has_ended() is None:
            subprocess.run(["scancel", job.id], env=os.environ | cluster.environment, check=False)


@pytest.fixture
def idling(tmp_path: Path) -> dict[str, str]:
    """The environment of a job that is to run, and not to compute: its ranks sleep between steps."""
    program = """
import time
train_step = Engine._train_step
def slowly(self, *arguments):
    train_step(self, *arguments)
    time.sleep(0.05)
Engine._train_step = slowly
"""
    return planted_after("cifarscale.training.engine", tmp_path, program, "SLURM_PROCID")


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[[int], Path]:
    """A small CNN's recipe of so many steps."""

    def recipe(steps: int) -> Path:
        path = tmp_path / "small.toml"
        path.write_text(CNN.format(steps=steps), encoding="utf-8")
        return path

    return recipe
