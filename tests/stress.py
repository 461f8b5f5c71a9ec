"""Faults at random moments of short runs: `python tests/stress.py --injections 200`, with `--slurm` on a test cluster.

Whatever happens, each run must end with the weights, losses and figures of an uninterrupted one. It may compute again
only what came after its newest checkpoint, no job may stay dead, and nothing may hang. The seed that is printed repeats
what is injected, and how often, but for the moments.
"""

import argparse
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from processes import children, descendants
from runs import Run
from slurm_jobs import ENDED, processes_of

from cifarscale.data.shards import write_shards
from cifarscale.data.synthetic import synthetic_source
from cifarscale.runs.checkpoint import newest_checkpoint
from cifarscale.runs.checkpoint_files import checkpoint_step
from cifarscale.slurm.submitted import submissions

ROOT = Path(__file__).resolve().parents[1]
TESTCLUSTER = ROOT / "slurm/testcluster/testcluster"
STEPS = 150
RECIPE = f"""
task = "classifier"
[training]
max_steps = {STEPS}
log_every = 5
checkpoint_every = 20
[evaluation]
every = 50
"""
SLOW = """
import os
if "SLURM_PROCID" in os.environ:
    import time
    from cifarscale.training.engine import Engine
    train_step = Engine._train_step
    def slowly(self, *arguments):
        train_step(self, *arguments)
        time.sleep(0.1)
    Engine._train_step = slowly
"""
"""So that there is time for a fault in a job."""


@dataclass
class Tally:
    """What was injected, and what went wrong."""

    injected: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    runs: int = 0

    @property
    def injections(self) -> int:
        return sum(self.injected.values())

    def expect(self, holds: bool, what: str) -> None:
        if not holds:
            self.wrong.append(what)
            print(f"WRONG: {what}", flush=True)


class Witness:
    """Sees that a run which goes on writes no checkpoint anew that it had."""

    def __init__(self, run: Run) -> None:
        self._folder = run.path / "checkpoints"
        newest = newest_checkpoint(self._folder)
        self.step = checkpoint_step(newest) if newest else 0
        self._before = self._files()

    def _files(self) -> dict[str, int]:
        try:
            found = {path: path.stat().st_mtime_ns for path in self._folder.glob("step-*.pt")}
        except FileNotFoundError:  # one that is removed just now
            return self._files()
        return {path.name: moment for path, moment in found.items() if checkpoint_step(path) <= self.step}

    def lost_steps(self) -> list[str]:
        """Names of what was computed again, and was there."""
        return [name for name, moment in self._files().items() if self._before.get(name) != moment]


# On this machine

_CODES = {
    name: {75, 0, -signum}  # the signal itself ends a Python that has only begun
    for name, signum in {"SIGINT": signal.SIGINT, "SIGTERM": signal.SIGTERM, "USR2": signal.SIGUSR2}.items()
}
"""With which a run may end that was asked to stop; any else may after other faults."""


def _to_launcher(signum: signal.Signals) -> Callable[[subprocess.Popen[bytes]], None]:
    return lambda process: process.send_signal(signum)


def _kill_a_rank(process: subprocess.Popen[bytes], rng: random.Random) -> None:
    """Of several; else the only process."""
    ranks = [pid for child in children(process.pid) for pid in (children(child) or [child])]
    os.kill(rng.choice(ranks or [process.pid]), signal.SIGKILL)


def _fill_the_disk(process: subprocess.Popen[bytes]) -> None:
    """No file may grow beyond what a log takes: a checkpoint fails as on a full disk."""
    for pid in (process.pid, *descendants(process.pid)):
        try:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (200_000, 200_000))
        except ProcessLookupError:
            continue


def _cut(path: Path, least: int, rng: random.Random) -> None:
    """Behind so many bytes."""
    os.truncate(path, rng.randint(least, path.stat().st_size))


def _zero_the_end(path: Path, least: int, rng: random.Random) -> None:
    """As a file system leaves the last blocks of a file that a crash has overtaken."""
    size = path.stat().st_size
    begin = rng.randint(least, size)
    with path.open("r+b") as file:
        file.seek(begin)
        file.write(bytes(size - begin))


def _damage(run: Run, rng: random.Random) -> str:
    """Damages a file of a run that nothing writes. Returns: what was done."""
    checkpoints = list((run.path / "checkpoints").glob("step-*.pt"))
    victims = {"checkpoint": sorted(checkpoints)[-1:], "metrics": [run.path / "metrics.jsonl"]}
    victims["environment"] = [run.path / "environment.json"]
    found = [(name, path) for name, paths in victims.items() for path in paths if path.is_file()]
    if not found:
        return ""
    name, path = rng.choice(found)
    damage = rng.choice([_cut, _zero_the_end])
    damage(path, _saved_bytes(run) if name == "metrics" else 0, rng)
    return f"{damage.__name__.strip('_')} of {name}"


def _saved_bytes(run: Run) -> int:
    """Of metrics.jsonl: what was put on disk before the newest checkpoint, and cannot be lost."""
    newest = newest_checkpoint(run.path / "checkpoints")
    until, end = checkpoint_step(newest) if newest else 0, 0
    for line in (run.path / "metrics.jsonl").read_bytes().splitlines(keepends=True):
        if not line.endswith(b"\n") or json.loads(line)["step"] > until:
            break
        end += len(line)
    return end


def stress_here(
    folder: Path, shards: Path, reference: Run, injections: int, rng: random.Random, patience_s: float
) -> Tally:
    """Runs of one to two ranks as processes of this machine, with faults until there were so many."""
    tally = Tally()
    while tally.injections < injections:
        _stress_one_here(folder, shards, reference, tally, rng, patience_s)
    return tally


def _stress_one_here(
    folder: Path, shards: Path, reference: Run, tally: Tally, rng: random.Random, patience_s: float
) -> None:
    run = Run(folder / f"here-{tally.runs}")
    tally.runs += 1
    faults: dict[str, Callable[[subprocess.Popen[bytes]], None]] = {
        "SIGINT": _to_launcher(signal.SIGINT),
        "SIGTERM": _to_launcher(signal.SIGTERM),
        "USR2": _to_launcher(signal.SIGUSR2),
        "SIGKILL of the launcher": _to_launcher(signal.SIGKILL),
        "SIGKILL of a rank": lambda process: _kill_a_rank(process, rng),
        "full disk": _fill_the_disk,
    }
    planned = [rng.choice(list(faults)) for _ in range(rng.randint(1, 4))]
    command = [sys.executable, "-m", "cifarscale", "train", folder / "stress.toml", "--data", shards]
    command += ["--run-dir", run.path, "--nproc", str(rng.choice([1, 2]))]
    for name in (*planned, ""):
        witness = Witness(run)
        with (folder / "output").open("ab") as output:
            process = subprocess.Popen(list(map(str, command)), stdout=output, stderr=output, start_new_session=True)
        about = f"{run.path.name}, {name or 'no fault'} at step {run.last_step()}"
        if name:
            _at_a_random_moment(run, process, rng)
            if process.poll() is None:
                tally.injected[name] += 1
                ranks = descendants(process.pid)
                faults[name](process)
                _expect_the_end(process, ranks, _CODES.get(name), tally, about, patience_s)
        else:
            _expect_the_end(process, [], {0}, tally, about, 10 * patience_s)
        lost = witness.lost_steps()
        tally.expect(not lost, f"{about}: {lost} computed again, and step {witness.step} was saved")
        if _is_complete(run):
            break
        if name and rng.random() < 0.4 and (done := _damage(run, rng)):
            tally.injected[done] += 1
    _expect_the_same(run, reference, tally)


def _is_complete(run: Run) -> bool:
    return (run.path / "result.json").is_file()


def _at_a_random_moment(run: Run, process: subprocess.Popen[bytes], rng: random.Random) -> None:
    """Some time after the start, or some steps later than where the run goes on."""
    until = time.monotonic() + rng.uniform(0, 4)
    goal = run.last_step() + rng.randint(1, 60) if rng.random() < 0.7 else None
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        if (run.last_step() >= goal) if goal else (time.monotonic() > until):
            return
        time.sleep(0.01)


def _expect_the_end(
    process: subprocess.Popen[bytes],
    ranks: Sequence[int],
    codes: set[int] | None,
    tally: Tally,
    about: str,
    patience_s: float,
) -> None:
    """Of a process and its ranks, within the patience, with one of these codes."""
    deadline = time.monotonic() + patience_s
    try:
        code = process.wait(patience_s)
    except subprocess.TimeoutExpired:
        tally.expect(False, f"{about}: it hangs")
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return
    tally.expect(codes is None or code in codes, f"{about}: it ended with code {code}")
    for rank in ranks:
        while _lives(rank) and time.monotonic() < deadline:
            time.sleep(0.05)
        tally.expect(not _lives(rank), f"{about}: process {rank} outlives it")


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _expect_the_same(run: Run, reference: Run, tally: Tally) -> None:
    try:
        run.assert_same_as(reference)
    except AssertionError as error:
        tally.expect(False, f"{run.path.name} differs from an uninterrupted run: {str(error).splitlines()[:1]}")


# On a test cluster


@dataclass(frozen=True)
class Slurm:
    """A test cluster of the nodes n1 and n2."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {"SLURM_CONF": f"{self.folder}/etc/slurm.conf", "CIFARSCALE_PROFILE": "testcluster"}

    def run(self, *command: str) -> str:
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=120, check=False)
        return done.stdout

    def daemon(self, what: str, name: str) -> None:
        command = [sys.executable, str(TESTCLUSTER), what, name, "--folder", str(self.folder)]
        subprocess.run(command, capture_output=True, check=True, timeout=120)

    def state(self, job: str) -> str:
        found = re.search(r"JobState=(\w+)", self.run("scontrol", "show", "job", "--oneliner", job))
        return found[1] if found else ""


def _kill_node(cluster: Slurm, job: str, rng: random.Random) -> None:
    node = rng.choice(["n1", "n2"])
    cluster.daemon("kill", node)
    deadline = time.monotonic() + 120
    while cluster.state(job) == "RUNNING" and time.monotonic() < deadline:
        time.sleep(0.2)
    cluster.daemon("start", node)


def _restart_controller(cluster: Slurm, job: str, rng: random.Random) -> None:
    cluster.run("scontrol", "update", f"jobid={job}", "comment=saved")
    time.sleep(6)  # it writes down within 5 s which jobs run
    cluster.daemon("kill", "slurmctld")
    time.sleep(rng.uniform(0, 3))
    cluster.daemon("start", "slurmctld")


def _kill_a_task(cluster: Slurm, job: str, rng: random.Random) -> None:
    ranks = [pid for pid, environment in processes_of(cluster, job).items() if "SLURM_PROCID" in environment]
    if ranks:
        os.kill(rng.choice(ranks), signal.SIGKILL)


def _preempt(cluster: Slurm, job: str, rng: random.Random) -> None:
    cluster.run("sbatch", "-p", "urgent", "-N2", "--ntasks-per-node=2", "-o", "/dev/null", "--wrap", "sleep 1")


SLURM_FAULTS: dict[str, Callable[[Slurm, str, random.Random], object]] = {
    "USR2 to a job": lambda cluster, job, rng: cluster.run("scancel", "--signal=USR2", job),
    "SIGTERM to a job": lambda cluster, job, rng: cluster.run("scancel", "--signal=TERM", job),
    "preemption": _preempt,
    "SIGKILL of a task": _kill_a_task,
    "SIGKILL of a node's daemon": _kill_node,
    "restart of the controller": _restart_controller,
}
ENDS_THE_JOB = ("SIGKILL of a task",)
"""After which the same command is typed again."""


def stress_slurm(
    cluster: Slurm, folder: Path, shards: Path, reference: Run, injections: int, rng: random.Random, patience_s: float
) -> Tally:
    """Jobs of two nodes with two tasks each, with faults until there were so many."""
    tally = Tally()
    (folder / "sitecustomize.py").write_text(SLOW, encoding="utf-8")
    while tally.injections < injections:
        run = Run(folder / f"job-{tally.runs}")
        tally.runs += 1
        command = [sys.executable, "-m", "cifarscale", "submit", folder / "stress.toml", "--nodes", 2]
        command += ["--data", shards, "--run-dir", run.path]
        environment = cluster.environment | {"PYTHONPATH": str(folder)}
        job = _Job(cluster, run, list(map(str, command)), environment, tally, patience_s)
        for _ in range(rng.randint(1, 3)):
            if not job.comes_to(run.last_step() + rng.choice([0, 0, rng.randint(1, 40)])):
                break
            time.sleep(rng.uniform(0, 3))
            if not job.suffer(rng.choice(list(SLURM_FAULTS)), rng):
                break
        if job.wait_for("an end", job.has_ended):
            tally.expect(_is_complete(run), f"{job}: it has ended without a result")
        if _is_complete(run):
            _expect_the_same(run, reference, tally)
    return tally


class _Job:
    """A run's job under stress."""

    def __init__(
        self,
        cluster: Slurm,
        run: Run,
        command: Sequence[str],
        environment: dict[str, str],
        tally: Tally,
        patience_s: float,
    ) -> None:
        self._cluster, self._run, self._tally, self._patience_s = cluster, run, tally, patience_s
        self._command, self._environment = command, environment
        self._submit()

    def __str__(self) -> str:
        return f"{self._run.path.name}, job {self._id} ({self._cluster.state(self._id)})"

    def has_ended(self) -> bool:
        return self._cluster.state(self._id) in ENDED

    def is_running(self) -> bool:
        return self._cluster.state(self._id) == "RUNNING"

    def wait_for(self, what: str, holds: Callable[[], bool]) -> bool:
        """Whether it comes within the patience."""
        deadline = time.monotonic() + self._patience_s
        while not holds():
            if time.monotonic() > deadline:
                self._tally.expect(False, f"{self}: {what} does not come")
                return False
            time.sleep(0.2)
        return True

    def comes_to(self, step: int) -> bool:
        """Whether it runs, and comes to a step."""
        return (
            self.wait_for("a start", lambda: self.is_running() or self.has_ended())
            and self.wait_for(f"step {step}", lambda: self._run.last_step() >= step or self.has_ended())
            and self.is_running()
        )

    def suffer(self, name: str, rng: random.Random) -> bool:
        """Injects a fault, and sees it go on. Returns: whether it does."""
        witness = Witness(self._run)
        self._tally.injected[name] += 1
        SLURM_FAULTS[name](self._cluster, self._id, rng)
        time.sleep(2)
        if name in ENDS_THE_JOB and self.wait_for("an end", self.has_ended) and not _is_complete(self._run):
            self._submit()
        self.wait_for("a start", lambda: self.is_running() or self.has_ended())
        is_dead = self.has_ended() and not _is_complete(self._run)
        self._tally.expect(not is_dead, f"{self}: it stays dead after {name}")
        if is_dead:
            self._submit()
        goes_on = self.wait_for("progress", lambda: self._run.last_step() > witness.step or self.has_ended())
        lost = witness.lost_steps()
        self._tally.expect(not lost, f"{self}: {lost} computed again after {name}, and step {witness.step} was saved")
        return goes_on

    def _submit(self) -> None:
        done = subprocess.run(self._command, env=self._environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        self._id = submissions(self._run.path)[-1].job_id


# By hand


def make_reference(folder: Path, shards: Path) -> Run:
    """The run that all others must equal, uninterrupted, and the recipe beside it."""
    (folder / "stress.toml").write_text(RECIPE, encoding="utf-8")
    where = ["--data", str(shards), "--run-dir", str(folder / "reference")]
    command = [sys.executable, "-m", "cifarscale", "train", str(folder / "stress.toml"), *where]
    subprocess.run(command, check=True, capture_output=True)
    return Run(folder / "reference")


@contextmanager
def _cluster() -> Iterator[Slurm]:
    with tempfile.TemporaryDirectory(prefix="stress-", dir="/tmp") as folder:
        where = ["--folder", f"{folder}/c"]
        up = [sys.executable, str(TESTCLUSTER), "up", *where, "--nodes", "2", "--cpus", "2"]
        subprocess.run(up, check=True, capture_output=True)
        try:
            yield Slurm(Path(folder) / "c")
        finally:
            subprocess.run([sys.executable, str(TESTCLUSTER), "down", *where], check=True, capture_output=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--injections", type=int, default=200)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--slurm", action="store_true", help="on a test cluster, which this starts, instead of here")
    parser.add_argument(
        "--patience-s", type=float, default=0, help="after which something hangs  [60, with --slurm 240]"
    )
    chosen = parser.parse_args()
    print(f"seed {chosen.seed}", flush=True)
    rng, began = random.Random(chosen.seed), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="stress-") as name:
        folder, shards = Path(name), Path(name) / "shards"
        shards.mkdir()
        write_shards(synthetic_source(507, 200), shards, 16, lambda _: None)
        reference = make_reference(folder, shards)
        common: tuple[Any, ...] = (folder, shards, reference, chosen.injections, rng)
        if chosen.slurm:
            with _cluster() as cluster:
                tally = stress_slurm(cluster, *common, chosen.patience_s or 240)
        else:
            tally = stress_here(*common, chosen.patience_s or 60)
    print(json.dumps(dict(tally.injected), indent=2))
    print(
        f"{tally.injections} injections into {tally.runs} runs in {time.monotonic() - began:.0f} s: "
        f"{len(tally.wrong)} wrong; seed {chosen.seed}"
    )
    return 1 if tally.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
