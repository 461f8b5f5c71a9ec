"""The test cluster is a SLURM: jobs, accounting, preemption and failures are those of a real one."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runs import wait_until

pytestmark = pytest.mark.slurm
Cluster = Any
"""That of conftest.py."""


def processes_of(folder: Path) -> list[str]:
    """Command lines of the processes that have a file in the folder open, work in it, or name it."""
    mark, found = str(folder).encode(), []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            links = [os.readlink(link).encode() for link in (process / "cwd", *(process / "fd").iterdir())]
            command = (process / "cmdline").read_bytes()
            texts = [*links, command, (process / "environ").read_bytes()]
        except OSError:  # it has ended, or is another user's
            continue
        if any(mark in text for text in texts):
            found.append(command.replace(b"\0", b" ").decode(errors="replace"))
    return found


def node_state(cluster: Cluster, name: str) -> str:
    return cluster.run("sinfo", "-h", "-p", "main", "-N", "-n", name, "-o", "%T").stdout.strip()


# Jobs


def test_a_job_runs_on_both_nodes_and_every_step_is_accounted_for(cluster: Cluster, tmp_path: Path) -> None:
    output = tmp_path / "output"
    command = "srun sh -c 'echo $SLURM_PROCID $SLURMD_NODENAME'"
    job = cluster.sbatch("--wait", "-N2", "--ntasks-per-node=2", "-o", str(output), "--wrap", command)
    assert sorted(output.read_text().splitlines()) == ["0 n1", "1 n1", "2 n2", "3 n2"]
    wait_until(lambda: len(cluster.sacct(job)) == 3, "sacct does not show the steps")
    wait_until(lambda: {row["State"] for row in cluster.sacct(job)} == {"COMPLETED"}, str(cluster.sacct(job)))
    assert [row["JobID"] for row in cluster.sacct(job)] == [job, f"{job}.batch", f"{job}.0"]
    assert {row["ExitCode"] for row in cluster.sacct(job)} == {"0:0"}
    # For some seconds the list is one of the nodes that are not free again yet.
    wait_until(lambda: cluster.sacct(job)[0]["NodeList"] == "n[1-2]", str(cluster.sacct(job)))


def test_a_failed_step_is_told_from_the_job(cluster: Cluster) -> None:
    job = cluster.sbatch("-N2", "-o", "/dev/null", "--wrap", "srun sh -c 'exit 3'; true")
    assert cluster.wait_for_state(job, ["COMPLETED", "FAILED"]) == "COMPLETED"
    wait_until(
        lambda: [row["ExitCode"] for row in cluster.sacct(job)] == ["0:0", "0:0", "3:0"], str(cluster.sacct(job))
    )


PREEMPTED = """#!/bin/sh
echo "start ${SLURM_RESTART_COUNT:-0}"
srun sh -c 'trap "echo warned; scontrol requeue $SLURM_JOB_ID; sleep 30" USR2; echo ready; sleep 60 & wait; wait'
"""


def test_a_preempted_job_has_its_signal_at_once_and_is_queued_again(cluster: Cluster, tmp_path: Path) -> None:
    output, script = tmp_path / "output", tmp_path / "job.sh"
    output.touch()
    script.write_text(PREEMPTED)
    options = ("-N2", "-n1", "--exclusive", "--time=10", "--signal=USR2@30", "--open-mode=append", "-o", str(output))
    job = cluster.sbatch(*options, str(script))
    wait_until(lambda: "ready" in output.read_text(), "the job does not start")
    urgent = cluster.sbatch("-p", "urgent", "-N2", "-n4", "-o", "/dev/null", "--wrap", "srun true")
    wait_until(lambda: "warned" in output.read_text(), "a preempted job is not warned")
    assert cluster.wait_for_state(urgent, ["COMPLETED", "FAILED"]) == "COMPLETED"
    cluster.wait_for_state(job, ["PENDING"])
    wait_until(lambda: "start 1" in output.read_text(), "the job does not start again")
    cluster.run("scancel", job)
    cluster.wait_for_state(job, ["CANCELLED"])
    states = [row["State"].split()[0] for row in cluster.sacct(job) if row["JobID"] == job]
    assert states == ["REQUEUED", "CANCELLED"]


# Failures


def test_a_killed_node_is_seen_down_and_comes_back(cluster: Cluster) -> None:
    cluster.kill("n2")
    assert "n2         dead" in cluster.script("status", "--folder", cluster.folder).stdout
    wait_until(lambda: node_state(cluster, "n2") == "down*", "SLURM does not miss its node")
    wait_until(lambda: node_state(cluster, "n1") == "idle", "the other node is not as it was")
    cluster.start("n2")
    wait_until(lambda: node_state(cluster, "n2") == "idle", "the node does not come back")
    cluster.run("srun", "-N2", "true")


def test_a_restarted_controller_knows_its_jobs(cluster: Cluster, tmp_path: Path) -> None:
    started, end = tmp_path / "started", tmp_path / "end"
    job = cluster.sbatch("-o", "/dev/null", "--wrap", f"touch {started}; until [ -e {end} ]; do sleep 0.1; done")
    wait_until(started.exists, "the job does not start")
    cluster.kill("slurmctld")
    cluster.start("slurmctld")
    assert cluster.state(job) == "RUNNING"
    end.touch()
    cluster.wait_for_state(job, ["COMPLETED"])


def test_the_accounting_comes_back(cluster: Cluster) -> None:
    job = cluster.sbatch("--wait", "-o", "/dev/null", "--wrap", "true")
    cluster.kill("slurmdbd")
    assert cluster.run("sacct", check=False).returncode
    assert cluster.state(job) == "COMPLETED"
    cluster.start("slurmdbd")
    wait_until(lambda: [row["State"] for row in cluster.sacct(job)][:1] == ["COMPLETED"], "no accounting of the job")


# The script


def test_two_clusters_live_side_by_side_and_down_leaves_nothing(
    cluster: Cluster, start_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    other, output = start_cluster("--nodes", 1, "--cpus", 1, "--gpus", 2), tmp_path / "output"
    assert other.run("sinfo", "-h", "-p", "main", "-o", "%D %c %G").stdout.split() == ["1", "1", "gpu:2"]
    command = "setsid sleep 300 & echo $CUDA_VISIBLE_DEVICES; sleep 300"
    job = other.sbatch("--gpus-per-node=2", "-o", str(output), "--wrap", command)
    wait_until(lambda: output.exists() and output.read_text() == "0,1\n", "the job has no GPUs")
    assert job not in cluster.run("squeue", "-h", "-o", "%i").stdout.split()
    other.kill("n1")
    assert any("slurmstepd" in command for command in processes_of(other.folder))
    assert any("sleep 300" in command for command in processes_of(other.folder))

    for _ in range(2):
        done = cluster.script("down", "--folder", other.folder)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert not other.folder.exists()
        assert not processes_of(other.folder)
    assert cluster.run("srun", "-N2", "sh", "-c", "echo $SLURMD_NODENAME").stdout.split() in (
        ["n1", "n2"],
        ["n2", "n1"],
    )


def test_up_twice_is_up_once(cluster: Cluster) -> None:
    done = cluster.script("up", "--folder", cluster.folder)
    assert done.returncode == 0
    assert done.stderr == f"{cluster.folder} is up already\n"
    exports = {"SLURM_CONF": cluster.environment["SLURM_CONF"], "CIFARSCALE_PROFILE": "testcluster"}
    assert set(done.stdout.splitlines()) == {f"export {name}={value}" for name, value in exports.items()}


def test_status_shows_every_daemon_and_node(cluster: Cluster) -> None:
    lines = [line.split() for line in cluster.script("status", "--folder", cluster.folder).stdout.splitlines()]
    daemons = ["munged", "mariadbd", "slurmdbd", "slurmctld", "n1", "n2"]
    assert [line[:2] for line in lines[:6]] == [[name, "running"] for name in daemons]
    nodes = sorted((line[0], line[1].strip("*")) for line in lines[7:])
    assert nodes == [("n1", "main"), ("n1", "urgent"), ("n2", "main"), ("n2", "urgent")]


def assert_one_line(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("testcluster: ")
    assert all(part in done.stderr for part in parts), done.stderr


def test_a_taken_folder_stays_as_it_is(script: Callable[..., Any]) -> None:
    folder = Path(__file__).parent
    before = sorted(folder.iterdir())
    assert_one_line(script("up", "--folder", folder), str(folder), "--folder")
    assert_one_line(script("down", "--folder", folder), str(folder))
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize("folder", ["/tmp/two words", "/tmp/ä", "/tmp/" + 60 * "x"])
def test_a_folder_that_slurm_cannot_use_is_refused(folder: str, script: Callable[..., Any]) -> None:
    assert_one_line(script("up", "--folder", folder), folder, "--folder")
    assert not Path(folder).exists()


def test_a_taken_port_is_named(script: Callable[..., Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert_one_line(script("up", "--folder", "/tmp/no-cluster", "--base-port", port), str(port), "--base-port")
    assert not Path("/tmp/no-cluster").exists()


def test_missing_packages_are_named(script: Callable[..., Any], tmp_path: Path) -> None:
    path = Path(__file__).parents[2] / "slurm/testcluster/testcluster"
    code = f"import runpy; main = runpy.run_path({str(path)!r})['main']; main.__globals__['PATH'] = ''; exit(main())"
    command = [sys.executable, "-c", code, "up", "--folder", str(tmp_path / "x")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert_one_line(done, "apt-get install", "mariadb-server", "munge", "slurm-wlm-mysql-plugin", "slurmctld")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("kill", "n3"), ("n3", "slurmctld, slurmdbd, n1, n2")),
        (("start", "munged"), ("munged", "slurmctld, slurmdbd, n1, n2")),
        (("start", "n1"), ("n1", "running already")),
    ],
)
def test_a_wrong_name_is_answered_with_the_right_ones(
    arguments: tuple[str, ...], parts: tuple[str, ...], cluster: Cluster
) -> None:
    assert_one_line(cluster.script(*arguments, "--folder", cluster.folder), *parts)


def test_commands_without_a_cluster_say_so(script: Callable[..., Any], tmp_path: Path) -> None:
    for arguments in (("status",), ("kill", "n1"), ("start", "n1")):
        assert_one_line(script(*arguments, "--folder", tmp_path), str(tmp_path), "testcluster up")


def test_an_up_that_fails_shows_the_log_and_is_taken_down(script: Callable[..., Any], tmp_path: Path) -> None:
    broken = tmp_path / "bin/slurmd"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\necho this node is on fire\nexit 3\n")
    broken.chmod(0o755)
    folder = Path(f"/tmp/broken-{os.getpid()}")
    done = script("up", "--folder", folder, environment={"PATH": f"{broken.parent}:{os.environ['PATH']}"})
    assert (done.returncode, done.stdout) == (1, "")
    first, *log = done.stderr.splitlines()
    assert first == "testcluster: n1 ended by itself; the end of its log:"
    assert log == ["    this node is on fire"]
    assert not folder.exists()
    assert not processes_of(folder)
