"""The doctor with real processes as ranks: what it says where all is well, and where something is not."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cifarscale.checks.diagnosis import Expected, diagnose
from cifarscale.checks.probe import TOKEN_NAME, load_reports
from cifarscale.distributed.ranks import ADDRESS_VARIABLE, FILE_VARIABLE, NODES_VARIABLE
from cifarscale.launch.failures import LOGS_VARIABLE

pytestmark = pytest.mark.distributed


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # the network of the machine is not what is tested
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


def levels(shown: str) -> dict[str, str]:
    """Level by subject, of what the doctor printed."""
    lines = re.findall(r"^(ok|warning|failure) +(.+?)(?:  |$)", shown, re.MULTILINE)
    return {subject: level for level, subject in lines}


def test_two_ranks_of_this_machine_are_well(
    cifarscale: Callable[..., subprocess.CompletedProcess[str]], shards: Path, tmp_path: Path
) -> None:
    done = cifarscale("doctor", "--profile", "local", "--nodes", 2, "--data", shards)
    assert done.returncode == 0, done.stderr
    found = levels(done.stdout)
    assert {subject for subject, level in found.items() if level == "ok"} >= {
        *("job", "ranks", "run folder", "shards", "names", "meeting", "all-reduce", "software", "GPUs", "clocks"),
    }
    assert found["W&B"] == "warning"
    assert re.search(r"all-reduce +right; 64 MiB over gloo in [\d.,]+ ms, \d+\.\d\d GB/s", done.stdout)
    assert not (tmp_path / "runs").exists()


def test_gpus_that_are_not_there_fail_and_the_rest_is_still_looked_at(
    cifarscale: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (tmp_path / "gpus.toml").write_text('launcher = "local"\ngpus_per_node = 2')
    done = cifarscale("doctor", "--profile", "gpus.toml")
    assert done.returncode == 1
    found = levels(done.stdout)
    assert [subject for subject, level in found.items() if level == "failure"] == ["GPUs"]
    assert found["all-reduce"] == "ok"
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    (kept,) = (tmp_path / "runs" / ".doctor").iterdir()
    assert "1 check failed" in error
    assert str(kept) in error
    assert len(load_reports(kept)) == 2


def test_a_rank_that_does_not_come_is_named_after_the_time_limit(tmp_path: Path, shards: Path) -> None:
    """Two of three ranks, as where the third one's node does not start Python."""
    (tmp_path / TOKEN_NAME).write_text("token")
    environment = os.environ | {
        FILE_VARIABLE: str(tmp_path / "rendezvous.json"),
        ADDRESS_VARIABLE: "127.0.0.1",
        NODES_VARIABLE: "localhost,localhost,no-such-host.invalid",
        LOGS_VARIABLE: str(tmp_path),
        "WORLD_SIZE": "3",
    }
    program = f"from pathlib import Path; from cifarscale.checks.probe import probe; probe(Path({str(tmp_path)!r}), "
    program += f"Path({str(shards)!r}), 'cpu', 10)"
    ranks = [
        subprocess.Popen([sys.executable, "-c", program], env=environment | {"RANK": rank, "LOCAL_RANK": rank})
        for rank in ("0", "1")
    ]
    assert [rank.wait(120) for rank in ranks] == [0, 0]
    reports = load_reports(tmp_path)
    assert [report.rank for report in reports] == [0, 1]
    found = {each.subject: each for each in diagnose(reports, Expected(3, str(tmp_path), "token"))}
    assert "rank 2 of 3 left no report" in found["ranks"].text
    assert "rank 2 (no-such-host.invalid)" in found["meeting"].text
    assert "no address for no-such-host.invalid" in found["names"].text
    assert found["run folder"].level == "ok"
