"""The doctor, and the check of profiles, on a real SLURM of two nodes."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cifarscale.slurm.profile import load_profile, profile_toml

pytestmark = pytest.mark.slurm

PATIENCE_S = 300

Command = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(cluster: Any, tmp_path: Path) -> Iterator[Command]:
    """Starts `cifarscale` in the test's folder, against the test cluster, and ends it with the test."""
    started: list[subprocess.Popen[str]] = []
    quiet = {"COLUMNS": "200", "WANDB_MODE": "offline", "TORCH_HOME": str(tmp_path)}

    def start(*arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "cifarscale", *map(str, arguments)]
        environment = os.environ | cluster.environment | quiet
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=pipe, stderr=pipe, text=True))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def run(start: Command) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `cifarscale` to its end."""

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        process = start(*arguments)
        output, errors = process.communicate(timeout=PATIENCE_S)
        return subprocess.CompletedProcess(process.args, process.returncode, output, errors)

    return run


@pytest.fixture
def profile(tmp_path: Path) -> Callable[..., Path]:
    """Writes the test cluster's profile with some keys changed."""

    def profile(**changes: Any) -> Path:
        path = tmp_path / "changed.toml"
        path.write_text(profile_toml(load_profile("testcluster").model_copy(update=changes)), encoding="utf-8")
        return path

    return profile


@pytest.fixture
def occupied(cluster: Any) -> Iterator[str]:
    """Both nodes are taken by another job while the test runs."""
    job_id = cluster.sbatch("--nodes=2", "--exclusive", "--output=/dev/null", "--wrap", "srun sleep 600")
    cluster.wait_for_state(job_id, ["RUNNING"])
    yield job_id
    cluster.run("scancel", job_id)
    cluster.wait_for_state(job_id, ["CANCELLED"])


def levels(shown: str) -> dict[str, str]:
    """Level by subject, of what was printed."""
    lines = re.findall(r"^(ok|warning|failure) +(.+?)(?:  |$)", shown, re.MULTILINE)
    return {subject: level for level, subject in lines}


def text(shown: str) -> str:
    """What was printed, without the line breaks of the table."""
    return " ".join(shown.split())


def test_two_nodes_that_are_well(
    run: Callable[..., subprocess.CompletedProcess[str]], cluster: Any, shards: Path, tmp_path: Path
) -> None:
    done = run("doctor", "--data", shards)
    assert done.returncode == 0, done.stdout + done.stderr
    found = levels(done.stdout)
    assert {subject for subject, level in found.items() if level == "ok"} >= {
        *("SLURM", "accounting", "job", "ranks", "run folder", "shards", "meeting", "all-reduce", "software", "clocks"),
        *("GPUs", "W&B"),
    }
    assert "all 2 started, on 2 nodes" in done.stdout
    assert not (tmp_path / "runs").exists()
    job_id = re.search(r"^ok +job +(\d+) ran on n\[1-2\]", done.stdout, re.MULTILINE)
    assert job_id is not None
    assert {row["State"] for row in cluster.sacct(job_id[1])} <= {"COMPLETED", "RUNNING", "COMPLETING"}


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"interface": "no-such-net"}, "interface = 'no-such-net' has no IPv4 address"),
        ({"python": "/no/such/python"}, "No such file or directory"),
        ({"setup": ("echo an error of the setup lines; exit 3",)}, "an error of the setup lines"),
    ],
)
def test_what_ended_the_job_is_said_and_its_folder_kept(
    run: Callable[..., subprocess.CompletedProcess[str]],
    profile: Callable[..., Path],
    tmp_path: Path,
    changes: dict[str, Any],
    part: str,
) -> None:
    done = run("doctor", "--profile", profile(**changes), "--nodes", 1)
    assert done.returncode == 1
    assert levels(done.stdout)["job"] == "failure"
    assert part in text(done.stdout)
    (kept,) = (tmp_path / "runs" / ".doctor").iterdir()
    assert str(kept) in done.stderr


@pytest.mark.usefixtures("occupied")
def test_a_job_that_does_not_start_in_time_is_cancelled_with_slurm_s_reason(
    run: Callable[..., subprocess.CompletedProcess[str]], cluster: Any
) -> None:
    done = run("doctor", "--time-limit-s", 3)
    assert done.returncode == 1
    said = re.search(
        r"failure job (\d+) did not start within 3 s, and is cancelled: SLURM says (\w+)", text(done.stdout)
    )
    assert said is not None, done.stdout
    assert said[2] in ("Resources", "Priority")
    assert "--time-limit-s" in done.stdout
    assert cluster.state(said[1]) == "CANCELLED"


@pytest.mark.usefixtures("occupied")
def test_ctrl_c_cancels_the_job(start: Command, cluster: Any) -> None:
    process = start("doctor")
    assert process.stderr is not None
    line = process.stderr.readline()
    job_id = re.search(r"job (\d+): PENDING", line)
    assert job_id is not None, line
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE_S) != 0
    cluster.wait_for_state(job_id[1], ("CANCELLED",))


@pytest.mark.parametrize(
    ("changes", "nodes", "part"),
    [
        ({}, 3, "--nodes 3 is more than the 2 nodes of partition main"),
        ({"partition": "mian"}, 1, "partition = 'mian' is not one of this cluster's: main, urgent"),
        ({"gpus_per_node": 2, "tasks_per_node": 0}, 1, "gpus_per_node = 2 is more than the 0 GPUs"),
        ({"shared_folder": "/no/such/folder"}, 1, "/no/such/folder is not a folder here"),
        ({"constraint": "infiniband"}, 1, "SLURM would refuse the job"),
    ],
)
def test_what_slurm_would_refuse_is_said_and_nothing_queued(
    run: Callable[..., subprocess.CompletedProcess[str]],
    profile: Callable[..., Path],
    cluster: Any,
    changes: dict[str, Any],
    nodes: int,
    part: str,
) -> None:
    done = run("doctor", "--profile", profile(**changes), "--nodes", nodes)
    assert done.returncode == 1
    assert part in text(done.stdout)
    assert "cifarscale-doctor" not in cluster.run("squeue", "--noheader", "--format", "%j").stdout


def test_a_profile_is_checked_by_slurm_itself(
    run: Callable[..., subprocess.CompletedProcess[str]], profile: Callable[..., Path], tmp_path: Path
) -> None:
    done = run("profiles", "check", "testcluster")
    assert done.returncode == 0, done.stdout + done.stderr
    found = levels(done.stdout)
    assert "failure" not in found.values()
    assert {"SLURM", "accounting", "partition", "time", "cores", "GPUs", "sbatch", "requeue"} <= {
        subject for subject, level in found.items() if level == "ok"
    }
    assert "main: 2" in text(done.stdout)
    assert "after USR2" in text(done.stdout)
    done = run("profiles", "check", profile(gpus_per_node=8, tasks_per_node=0, time="2-0", shared_folder="/no/where"))
    assert done.returncode == 1
    found = levels(done.stdout)
    failed = {subject for subject, level in found.items() if level == "failure"}
    assert failed == {"time", "cores", "GPUs", "sbatch", "shared folder"}
    done = run("profiles", "check", profile(shared_folder=str(tmp_path)))
    assert levels(done.stdout)["shared folder"] == "ok"


def test_a_node_that_is_down_is_counted(run: Callable[..., subprocess.CompletedProcess[str]], cluster: Any) -> None:
    try:
        cluster.run("scontrol", "update", "nodename=n1,n2", "state=drain", "reason=test")
        done = run("profiles", "check", "testcluster")
        assert done.returncode == 0
        assert "main: 2 drained: none runs jobs now, so jobs wait" in text(done.stdout)
    finally:
        cluster.run("scontrol", "update", "nodename=n1,n2", "state=resume")
