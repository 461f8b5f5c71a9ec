"""What the doctor makes of reports, and of what SLURM says of itself: made-up ones, for what no test cluster has."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cifarscale.checks.diagnosis import Expected, diagnose
from cifarscale.checks.finding import Finding
from cifarscale.checks.probe import Report, load_reports, shards_digest
from cifarscale.checks.profile_check import fits, partition_state, preemption, requeue, shared_folder
from cifarscale.cli.main import main
from cifarscale.errors import ClusterError, DataError
from cifarscale.runs.files import write_json_atomically
from cifarscale.slurm.client import Partition, known_partition
from cifarscale.slurm.plan import shape
from cifarscale.slurm.profile import Profile

EXPECTED = Expected(world_size=4, folder="/runs/x", token="token", shards="/shards", shards_digest="digest")


def report(rank: int, **changes: Any) -> Report:
    """What one of four ranks on two nodes finds where all is well."""
    healthy = Report(
        rank=rank,
        node=f"n{rank // 2 + 1}",
        python="3.11.2",
        torch="2.15.0, CUDA 13.2",
        torchvision_error="",
        driver="",
        gpus=(),
        token="token",
        shards="digest",
        shards_error="",
        unresolved=(),
        free_gb=100,
        weights="here" if rank % 2 == 0 else "unasked",
        wandb="reachable" if rank % 2 == 0 else "unasked",
        stage="done",
        meeting_s=1.5,
        clock_s=0.001 * rank,
        backend="gloo",
        sum_is_right=True,
        sum_s=0.1,
    )
    return replace(healthy, **changes)


def reports(**changes: Any) -> list[Report]:
    """Four reports; the last one is changed."""
    return [*map(report, range(3)), report(3, **changes)]


def finding(subject: str, found: list[Report], expected: Expected = EXPECTED) -> Finding:
    """The only one on a subject; the others are all well, or at least no failures of their own."""
    (chosen,) = [each for each in diagnose(found, expected) if each.subject == subject]
    return chosen


def others(subject: str, found: list[Report], expected: Expected = EXPECTED) -> set[str]:
    return {each.level for each in diagnose(found, expected) if each.subject != subject}


def test_where_all_is_well_nothing_is_wrong() -> None:
    found = diagnose(reports(), EXPECTED)
    assert {each.level for each in found} == {"ok"}
    assert not any(each.remedy for each in found)
    assert len({each.subject for each in found}) == len(found) == 12


@pytest.mark.parametrize(
    ("subject", "level", "changes", "part"),
    [
        ("run folder", "failure", {"token": ""}, "rank 3 (n2)"),
        ("run folder", "failure", {"token": "of another folder"}, "/runs/x"),
        ("shards", "failure", {"shards": "", "shards_error": "no manifest.json"}, "no manifest.json"),
        ("shards", "failure", {"shards": "other"}, "rank 3 (n2): others in /shards"),
        ("space", "warning", {"free_gb": 3}, "3.0 GB"),
        ("space", "failure", {"free_gb": 0.1}, "0.1 GB"),
        ("names", "warning", {"unresolved": ("n1",)}, "rank 3 (n2): no address for n1"),
        ("meeting", "failure", {"stage": "looked", "error": "no route. Run: x"}, "rank 3 (n2): did not meet"),
        ("all-reduce", "failure", {"stage": "met", "error": "timed out"}, "timed out"),
        ("all-reduce", "failure", {"stage": "met"}, "they ended during it"),
        ("all-reduce", "failure", {"sum_is_right": False}, "a wrong sum over gloo"),
        ("all-reduce", "warning", {"sum_s": 1.0}, "0.07 GB/s: slow"),
        ("software", "failure", {"torch": "2.11.0"}, "2.15.0, CUDA 13.2 on n1, n2; 2.11.0 on n2"),
        ("software", "failure", {"python": "3.12.1"}, "Python differs"),
        ("software", "failure", {"torchvision_error": "nms does not exist"}, "nms does not exist"),
        ("clocks", "warning", {"clock_s": -5}, "n2 is 5.0 s behind n1"),
        ("clocks", "failure", {"clock_s": 7200}, "n2 is 7,200.0 s ahead of n1"),
        ("weights", "warning", {"weights": "unreachable"}, "n2: neither"),
        ("W&B", "warning", {"wandb": "unreachable"}, "n2: not reachable"),
    ],
)
def test_what_is_wrong_on_one_rank_is_named_with_what_to_do(
    subject: str, level: str, changes: dict[str, Any], part: str
) -> None:
    found = finding(subject, reports(**changes))
    assert found.level == level
    assert part in found.text
    assert found.remedy
    assert others(subject, reports(**changes)) == {"ok"}


def test_a_rank_that_left_no_report_is_named() -> None:
    found = finding("ranks", reports()[:3])
    assert found.level == "failure"
    assert "rank 3 of 4" in found.text
    assert "ranks 0-2 of 4" in finding("ranks", reports()[3:]).text
    assert [each.subject for each in diagnose([], EXPECTED)] == ["ranks"]


def test_many_ranks_and_nodes_are_named_in_few_words() -> None:
    many = [replace(report(rank), node=f"n{rank}", token="") for rank in range(64) if rank not in (5, 7)]
    found = diagnose(many, replace(EXPECTED, world_size=64))
    assert "ranks 5, 7 of 64 left no report" in found[0].text
    assert "ranks 0-4, 6, 8-63 (n0, n1, n2, n3, n4, n6, n8, n9, 54 more)" in found[1].text


def test_those_who_waited_for_a_missing_rank_are_not_blamed() -> None:
    waited = [replace(each, stage="looked", error="rank 0 waited 5 s for rank 3 (n2). See …") for each in reports()[:3]]
    found = finding("meeting", waited)
    assert found.level == "failure"
    assert "rank 0 waited 5 s for rank 3 (n2)" in found.text
    assert "left no report" in found.remedy
    assert finding("all-reduce", waited).level == "warning"


def test_one_rank_has_none_to_meet() -> None:
    alone = report(0, meeting_s=0, backend="", sum_is_right=None, sum_s=0)
    assert {each.level for each in diagnose([alone], replace(EXPECTED, world_size=1))} == {"ok"}


def test_shards_that_are_not_there_yet_are_a_warning() -> None:
    none = [replace(each, shards="") for each in reports()]
    found = finding("shards", none, replace(EXPECTED, shards="", shards_digest=""))
    assert found.level == "warning"
    assert "cifarscale shards build" in found.remedy


def test_gpus_are_compared() -> None:
    expected = replace(EXPECTED, gpus_per_node=2)
    gpus = {"gpus": ("H100", "H100"), "driver": "580.1", "backend": "nccl"}
    found = [replace(each, **gpus) for each in reports()]
    assert finding("GPUs", found, expected).level == "ok"
    older = [*found[:2], *(replace(each, driver="570.2") for each in found[2:])]
    assert finding("GPUs", older, expected).level == "warning"
    assert "580.1 on n1; 570.2 on n2" in finding("GPUs", older, expected).text
    mixed = [*found[:2], *(replace(each, gpus=("A100", "A100")) for each in found[2:])]
    assert "H100 on n1; A100 on n2" in finding("GPUs", mixed, expected).text
    few = [*found[:3], replace(found[3], gpus=("H100",))]
    assert finding("GPUs", few, expected).level == "failure"
    assert "rank 3 (n2): torch 2.15.0, CUDA 13.2 sees 1" in finding("GPUs", few, expected).text


def test_weights_need_one_of_two_ways() -> None:
    assert "can be fetched" in finding("weights", reports(weights="reachable")).text
    assert finding("weights", [replace(each, weights="unasked") for each in reports()]).level == "warning"


def test_reports_come_back_as_they_were_left(tmp_path: Path) -> None:
    left = [replace(each, gpus=("A",), unresolved=("n9",)) for each in reports()]
    for each in reversed(left):
        write_json_atomically(tmp_path / f"rank-{each.rank}.probe.json", asdict(each))
    assert load_reports(tmp_path) == left


def test_shards_are_the_same_only_with_the_same_files(shards: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in shards.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    assert shards_digest(copy) == shards_digest(shards)
    first = sorted(copy.glob("*.tar"))[0]
    first.write_bytes(first.read_bytes()[:-512])
    assert shards_digest(copy) != shards_digest(shards)
    first.unlink()
    with pytest.raises(DataError, match=rf"{first.name}.*cifarscale shards verify"):
        shards_digest(copy)


# What SLURM says of itself


def test_a_partition_is_of_use_when_it_is_up_and_has_a_node_that_is() -> None:
    up = {"State": "UP"}
    assert partition_state("main", up, {"idle": 1, "down*": 1}) == Finding("ok", "partition", "main: 1 idle, 1 down*")
    assert partition_state("main", up, {"mixed": 1}).level == "ok"
    for states in ({}, {"down*": 2}, {"drained": 1, "draining": 1}, {"maint": 2}):
        found = partition_state("main", up, states)
        assert (found.level, found.text.rpartition(", ")[2]) == ("warning", "so jobs wait")
    assert partition_state("main", {"State": "DOWN"}, {"idle": 2}).text == "main: 2 idle; it is DOWN: jobs wait"
    assert partition_state("main", {"State": "DRAIN"}, {"idle": 2}).level == "failure"


def test_of_several_partitions_the_most_that_one_offers_counts() -> None:
    known = {"a": Partition("a", 4, 8, 0, 60), "b": Partition("b", 2, 64, 4, 600), "c": Partition("c", 1, 1, 0, None)}
    assert known_partition("a,b", known, "profile p") == Partition("a,b", 4, 64, 4, 600)
    assert known_partition("a,c", known, "profile p") == Partition("a,c", 4, 8, 0, None)
    with pytest.raises(ClusterError, match="partition = 'd' is not one of this cluster's: a, b, c"):
        known_partition("a,d", known, "profile p")


def test_what_a_node_lacks_is_a_line_each() -> None:
    profile = Profile(gpus_per_node=4, cpus_per_task=4, time="2-0")
    levels = {each.subject: each.level for each in fits(shape(profile, 1), profile, Partition("p", 2, 8, 2, 60))}
    assert levels == {"time": "failure", "cores": "failure", "GPUs": "failure"}
    roomy = Partition("p", 2, 64, 8, None)
    assert {each.level for each in fits(shape(profile, 1), profile, roomy)} == {"ok"}


PREEMPTS = {"PreemptType": "preempt/partition_prio", "KillWait": "30 sec"}


@pytest.mark.parametrize(
    ("configuration", "settings", "level", "part"),
    [
        ({"PreemptType": "preempt/none"}, {"GraceTime": "0"}, "ok", "not preempted"),
        (PREEMPTS, {"PreemptMode": "OFF", "GraceTime": "0"}, "ok", "not preempted"),
        (PREEMPTS, {"PreemptMode": "REQUEUE", "GraceTime": "0"}, "warning", "KillWait = 30 s after SIGTERM"),
        (PREEMPTS, {"PreemptMode": "REQUEUE", "GraceTime": "10"}, "warning", "GraceTime = 10 s after SIGTERM"),
        (PREEMPTS, {"PreemptMode": "REQUEUE", "GraceTime": "60"}, "ok", "60 s after SIGTERM"),
        (
            PREEMPTS | {"SlurmctldParameters": "enable_configless,preempt_send_user_signal"},
            {"PreemptMode": "REQUEUE", "GraceTime": "60"},
            "ok",
            "60 s after USR2",
        ),
    ],
)
def test_how_a_job_is_warned_is_said(
    configuration: dict[str, str], settings: dict[str, str], level: str, part: str
) -> None:
    found = preemption(configuration, settings, Profile())
    assert found.level == level
    assert part in found.text


def test_whether_jobs_may_queue_themselves_again_is_said() -> None:
    assert requeue({"JobRequeue": "1"}, Profile()).level == "ok"
    assert "ours ask" in requeue({"JobRequeue": "0"}, Profile()).text.replace("our jobs", "ours")
    assert requeue({"JobRequeue": "1"}, Profile(sbatch={"no-requeue": True})).level == "warning"


def test_a_shared_folder_must_be_there_and_be_ours(tmp_path: Path) -> None:
    assert shared_folder(Profile()).level == "warning"
    assert shared_folder(Profile(shared_folder=str(tmp_path))).level == "ok"
    assert shared_folder(Profile(shared_folder=str(tmp_path / "none"))).level == "failure"


# The commands, on a machine without SLURM


@pytest.fixture
def without_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.mark.usefixtures("without_slurm")
@pytest.mark.parametrize("command", [["doctor"], ["profiles", "check", "gpu"], ["doctor", "--profile", "testcluster"]])
def test_without_slurm_one_line_names_the_local_profile(command: list[str], tmp_path: Path) -> None:
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 1
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "this machine has no SLURM" in lines[0]
    assert "--profile local" in lines[0]
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("without_slurm")
def test_profiles_are_listed_shown_and_the_local_one_checked() -> None:
    runner = CliRunner(env={"COLUMNS": "250"})
    listed = runner.invoke(main, ["profiles", "list"])
    assert listed.exit_code == 0
    assert all(name in listed.output for name in ("gpu", "cpu", "local", "testcluster"))
    shown = runner.invoke(main, ["profiles", "show", "gpu"])
    assert 'launcher = "slurm"' in shown.output
    assert runner.invoke(main, ["profiles", "check", "local"]).exit_code == 0
    Path("own.toml").write_text('launcher = "local"\ngpus_per_node = 99')
    checked = runner.invoke(main, ["profiles", "check", "own.toml"])
    assert checked.exit_code == 1
    assert "gpus_per_node = 99" in checked.output


@pytest.mark.usefixtures("without_slurm")
def test_shards_that_are_named_must_be_there() -> None:
    result = CliRunner().invoke(main, ["doctor", "--profile", "local", "--data", "none"])
    assert result.exit_code == 1
    assert "none is not a folder of shards" in result.stderr
