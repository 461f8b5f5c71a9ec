"""A private Ray starts, computes, and leaves nothing behind, however its driver ends."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from runs import wait_until
from sweep_runs import plasma

pytestmark = pytest.mark.sweep

PATIENCE_S = 240
"""After which something hangs: not a measure of anything."""

DRIVER = """
import os, sys, time
from cifarscale.errors import ClusterError
from cifarscale.sweeps.ray.cluster import ray_cluster
try:
    with ray_cluster(num_cpus=1) as cluster:
        import ray
        assert (cluster.folder / "token").stat().st_mode & 0o777 == 0o600
        ray.init(address=cluster.address, log_to_driver=False)
        assert ray.get(ray.remote(lambda x: x + 1).remote(1)) == 2
        try:
            with ray_cluster(num_cpus=1):
                raise AssertionError("a second one starts")
        except ClusterError as error:
            assert "Call ray.shutdown() first" in str(error)
        print(cluster.folder, flush=True)
        sys.stdin.readline()
        if {fails}:
            raise KeyError("the block")
        ray.shutdown()
except KeyError:
    print("raised")
"""


def start_driver(environment: Mapping[str, str], fails: bool = False) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", DRIVER.format(fails=fails)]
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def start(fails: bool = False) -> tuple[subprocess.Popen[str], Path]:
    """A driver whose Ray has computed something, and that waits for a line now; and its Ray's folder."""
    driver = start_driver(os.environ, fails)
    assert driver.stdout is not None
    return driver, Path(driver.stdout.readline().strip() or "/nothing")


def wait_until_nothing_is_left(folder: Path) -> None:
    wait_until(lambda: not mentioning(folder) and not folder.exists(), lambda: mentioning(folder) or folder)


def mentioning(folder: Path) -> dict[int, bytes]:
    """The processes whose command or environment names the folder, with both."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            told = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
        except OSError:
            continue
        if str(folder).encode() in told:
            found[int(process.name)] = told
    return found


@pytest.mark.parametrize("fails", [False, pytest.param(True, marks=pytest.mark.thorough)], ids=["ends", "raises"])
def test_it_leaves_nothing_when_the_block_ends(fails: bool) -> None:
    shared = plasma()
    driver, folder = start(fails)
    assert mentioning(folder)
    told, _ = driver.communicate("\n", timeout=PATIENCE_S)
    assert driver.returncode == 0
    assert ("raised" in told) == fails
    assert not mentioning(folder)
    assert not folder.exists()
    wait_until(lambda: plasma() <= shared, "files are left in shared memory")  # others' Rays have theirs for a moment


def test_it_leaves_nothing_when_its_driver_is_killed() -> None:
    driver, folder = start()
    assert mentioning(folder)
    driver.send_signal(signal.SIGKILL)
    driver.communicate(timeout=PATIENCE_S)
    wait_until_nothing_is_left(folder)


def test_a_ray_that_ends_while_it_starts_is_started_again(tmp_path: Path) -> None:
    driver = start_driver(os.environ | {"STARTED_BY": str(tmp_path)})
    starting = wait_until(
        lambda: [pid for pid, told in mentioning(tmp_path).items() if b"cifarscale.sweeps.ray.starter" in told],
        "no Ray starts",
    )
    os.kill(starting[0], signal.SIGKILL)
    told, _ = driver.communicate("\n", timeout=PATIENCE_S)
    assert driver.returncode == 0
    wait_until_nothing_is_left(Path(told.strip()))


@pytest.mark.thorough
def test_two_do_not_disturb_each_other() -> None:
    (first, first_folder), (second, second_folder) = start(), start()
    assert first_folder != second_folder
    first.communicate("\n", timeout=PATIENCE_S)
    assert mentioning(second_folder)
    second.communicate("\n", timeout=PATIENCE_S)
    assert (first.returncode, second.returncode) == (0, 0)
    wait_until_nothing_is_left(second_folder)


NODE = """
import sys
from pathlib import Path
from cifarscale.sweeps.ray.cluster import ray_over_nodes, serve_node
from cifarscale.errors import Interrupted
from cifarscale.distributed.ranks import ranks_from_environment
ranks, meeting, join_timeout_s = ranks_from_environment(), Path(sys.argv[1]), float(sys.argv[2])
if not ranks.is_first:
    serve_node(ranks, meeting, 1)
    sys.exit()
with ray_over_nodes(ranks, meeting, 1, join_timeout_s=join_timeout_s) as cluster:
    import ray, time
    ray.init(address=cluster.address, log_to_driver=False)
    @ray.remote
    def node():
        time.sleep(1)
        return ray.get_runtime_context().get_node_id()
    print(len(set(ray.get([node.remote() for _ in range(2)]))))
    ray.shutdown()
    if sys.argv[3:]:
        raise Interrupted("warned", to_continue=True)
"""


def start_rank(meeting: Path, rank: int, join_timeout_s: int, *options: str) -> subprocess.Popen[str]:
    environment = {"RANK": str(rank), "WORLD_SIZE": "2", "CIFARSCALE_ADDRESS": "127.0.0.1", "CIFARSCALE_NODES": "n1,n2"}
    return subprocess.Popen(
        [sys.executable, "-c", NODE, str(meeting), str(join_timeout_s), *options],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    "options", [(), pytest.param(("interrupted",), marks=pytest.mark.thorough)], ids=["ends", "is-interrupted"]
)
def test_nodes_join_compute_at_once_and_end_alike(tmp_path: Path, options: tuple[str, ...]) -> None:
    ranks = [start_rank(tmp_path, rank, PATIENCE_S, *options) for rank in range(2)]
    told = [rank.communicate(timeout=2 * PATIENCE_S) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [len(options)] * 2, told
    assert told[0][0].strip() == "2"
    assert all(("Interrupted: warned" in errors) == bool(options) for _, errors in told)
    assert not (tmp_path / "ray.json").exists()  # which held the token


def test_a_missing_node_is_named(tmp_path: Path) -> None:
    rank = start_rank(tmp_path, 0, 2)
    _, told = rank.communicate(timeout=PATIENCE_S)
    assert "no Ray from n2 within 2 s" in told
