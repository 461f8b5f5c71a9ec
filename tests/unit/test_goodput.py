"""Where the hours of a run went, over made-up accounts; the parts add up to the whole."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cifarscale.config.load import load_recipe, recipe_toml
from cifarscale.errors import RunError
from cifarscale.explain.goodput import Goodput, Usage, better_request, goodput, goodput_rows, rows, slow_rank, usage
from cifarscale.slurm import client as slurm
from cifarscale.slurm.client import Attempt

ZERO = datetime(2026, 5, 4, 12, 0, 0)
NOW = 100_000.0


def at(seconds: float | None) -> datetime | None:
    return None if seconds is None else ZERO + timedelta(seconds=seconds)


def stamp(seconds: float) -> float:
    return ZERO.timestamp() + seconds


def start(
    submit: float, begin: float | None, end: float | None, step: str = "", job: str = "12", **values: Any
) -> Attempt:
    """Times in seconds after ZERO."""
    known: dict[str, Any] = {
        "state": "COMPLETED",
        "exit_code": 0,
        "signal": 0,
        "submit": at(submit),
        "eligible": at(submit),
        "start": at(begin),
        "end": at(end),
        "elapsed_s": int((end or begin or 0) - (begin or 0)),
        "time_limit_min": 240,
        "nodes": "n[1-2]",
        "cpus": 16,
        "cpu_s": 0.0,
        "max_memory_gb": None,
        "reason": "",
        "requested_memory_gb": 32.0,
        "num_nodes": 2,
    }
    return Attempt(job_id=job, step=step, **known | values)


def line(step: int, time: float, seconds: float, waited: float = 0.0) -> dict[str, float]:
    return {"step": step, "time": stamp(time), "seconds": seconds, "data_seconds": waited, "images_per_second": 640.0}


def measured(
    attempts: Sequence[Attempt], lines: Sequence[Mapping[str, Any]], now: float = NOW, is_complete: bool = True
) -> Goodput:
    """The goodput, of which the parts must add up."""
    found = goodput(attempts, lines, stamp(now), is_complete)
    assert found.starting is not None
    assert found.between_steps is not None
    assert found.lost is not None
    assert found.silent is not None
    parts = found.computing + found.waiting_for_data + found.starting + found.between_steps + found.lost + found.silent
    assert parts == pytest.approx(found.allocated)
    assert found.total == found.queued + found.allocated
    return found


def test_a_start_without_interruption() -> None:
    """20 s until the first step, an evaluation of 30 s in the middle, 10 s for the final figures."""
    lines = [line(50, 160, 40, 4), line(100, 200, 80, 8), {"step": 100, "test_loss": 3.0}, line(150, 270, 120, 12)]
    found = measured([start(0, 100, 280)], lines)
    assert found == Goodput(
        queued=100,
        allocated=180,
        computing=108,
        waiting_for_data=12,
        starting=20,
        between_steps=40,
        lost=0,
        num_attempts=1,
    )


def test_a_hang_is_not_taken_for_an_evaluation() -> None:
    lines = [line(50, 160, 40), line(100, 200, 80)]
    found = measured([start(0, 100, None)], lines, now=900, is_complete=False)
    assert (found.between_steps, found.silent) == (0, 700)
    assert ("since its last line", "11 min 40 s, 77.8%") in rows(found)


def test_what_was_computed_again_is_lost() -> None:
    """Killed at 300, 100 s after the newest line that remains; it goes on there, after 15 s."""
    attempts = [start(0, 100, 300, state="NODE_FAIL"), start(300, 420, 500)]
    lines = [line(50, 160, 40), line(100, 200, 80), line(150, 475, 120), line(200, 500, 145)]
    found = measured(attempts, lines)
    assert (found.queued, found.computing, found.lost) == (100 + 120, 145, 100)
    assert (found.starting, found.between_steps, found.num_attempts) == (20 + 15, 0, 2)


def test_a_requeued_job_waits_from_its_last_end_also_while_slurm_holds_it() -> None:
    attempts = [start(0, 10, 100), replace(start(100, 230, 300), eligible=at(220))]
    assert goodput(attempts, [], stamp(NOW)).queued == 10 + 130


def test_the_time_between_two_jobs_of_a_run_is_nobodys() -> None:
    attempts = [start(0, 10, 100), start(5000, 5007, 5100, job="13")]
    assert goodput(attempts, [], stamp(NOW)).queued == 10 + 7


def test_a_start_of_which_nothing_remains_is_lost_unless_it_goes_on() -> None:
    assert measured([start(0, 10, 100)], []).lost == 90
    running = measured([start(0, 10, None)], [], now=100)
    assert (running.lost, running.starting) == (0, 90)


def test_a_job_that_waits_or_was_cancelled_before_its_start_has_waited_only() -> None:
    assert measured([start(0, None, None)], [], now=50) == Goodput(50, 0, 0, 0, 0, 0, 0, 0)
    assert measured([start(0, None, 30)], [], now=50).queued == 30


def test_lines_without_a_time_tell_less() -> None:
    """As older runs have them."""
    lines = [{key: value for key, value in line(50, 160, 40, 4).items() if key != "time"}]
    found = goodput([start(0, 100, 280)], lines, stamp(NOW))
    assert (found.starting, found.between_steps, found.lost) == (None, None, None)
    assert ("starting, evaluating, lost", "2 min 20 s, 50.0%") in rows(found)


def test_steps_of_jobs_are_no_starts() -> None:
    assert measured([start(0, 100, 280), start(100, 100, 280, step="0")], []).num_attempts == 1


def test_the_rows_show_hours_and_parts_of_the_whole() -> None:
    found = Goodput(3600, 32_400, 25_200, 3600, 900, 1800, 900, 2)
    assert rows(found) == [
        ("queued", "1 h, 10.0%"),
        ("computing", "7 h, 70.0%"),
        ("waiting for data", "1 h, 10.0%"),
        ("starting", "15 min, 2.5%"),
        ("evaluating, saving", "30 min, 5.0%"),
        ("lost to restarts", "15 min, 2.5%"),
        ("total", "10 h, in 2 starts"),
    ]


# What to ask for.

LONG = Goodput(0, 4000, 3600, 0, 100, 300, 0, 1)
"""An hour of training."""
USED = Usage(memory_gb=3.0, requested_memory_gb=16.0, busy_cores=1.5, cores=4, time_limit_s=14_400)


def better(found: Goodput = LONG, used: Usage | None = USED, step: int = 3600, complete: bool = True) -> dict[str, str]:
    return dict(better_request(found, used, step, 3600, pace=1.0, is_complete=complete))


def test_a_complete_run_shows_what_would_have_done() -> None:
    assert better() == {
        "better time": "in one go it takes about 1 h 6 min; --time 01:25:00 would do",
        "better memory": "uses 3.0 GB a node of 16.0; memory_gb = 4 would do",
        "better cores": "keeps 1.5 of 4 cores a task busy; cpus_per_task = 2 would do",
        "rests on": "1 h of training, 3,600 steps, 1 start",
    }


def test_a_request_that_fits_is_called_right() -> None:
    found = better(used=Usage(3.0, 4.0, 3.2, 4, 5400))
    assert found["better time"].endswith("the limit of 1 h 30 min is right")
    assert found["better memory"].endswith("of 4.0, which is right")
    assert found["better cores"].endswith("which is right")


def test_the_rest_of_a_run_is_what_counts_while_it_is_not_complete() -> None:
    assert better(replace(LONG, computing=1800), step=1800, complete=False)["better time"].startswith("the rest takes")


def test_too_much_used_is_told_as_well() -> None:
    assert (
        "memory_gb = 5 would do" in better(used=replace(USED, memory_gb=4.0, requested_memory_gb=4.2))["better memory"]
    )


def test_waiting_for_data_is_worth_a_change_above_a_limit() -> None:
    assert "better reading" not in better(replace(LONG, computing=3500, waiting_for_data=100))
    assert "--num-workers" in better(replace(LONG, computing=3300, waiting_for_data=300))["better reading"]


@pytest.mark.parametrize("used", [None, USED])
def test_nothing_is_suggested_from_too_little(used: Usage | None) -> None:
    found = better(replace(LONG, computing=60), used)
    assert list(found) == ["better request"]
    assert "2 min" in found["better request"]


def test_what_slurm_does_not_tell_is_left_out() -> None:
    assert set(better(used=Usage(None, None, None, None, None))) == {"better time", "rests on"}


def test_usage_is_that_of_the_newest_start_that_was_long_enough() -> None:
    """Two nodes of two tasks with four cores each, of which a task kept three busy."""
    long = start(0, 0, 1000)
    step = start(0, 0, 1000, step="0", max_memory_gb=2.0, tasks=4, cpu_s=12_000.0, requested_memory_gb=None)
    script = start(0, 0, 1000, step="batch", max_memory_gb=0.5, tasks=1, num_nodes=1)
    short = start(2000, 2000, 2010)
    found = usage([long, script, step, short, replace(step, max_memory_gb=9.0)])
    assert found == Usage(4.0, 16.0, 3.0, 4.0, 14_400)
    assert usage([short]) is None
    assert usage([]) is None


@pytest.mark.parametrize(
    ("rates", "told"),
    [
        ([100.0, 98.0, 40.0, 102.0], [("slowest rank", "rank 2, at 40% of the others' pace; all wait for it")]),
        ([50.0, 100.0], [("slowest rank", "rank 0, at 50% of the others' pace; all wait for it")]),
        ([100.0, 85.0], []),
        ([100.0], []),
        ([], []),
    ],
)
def test_a_rank_that_all_others_wait_for_is_named(rates: list[float], told: list[tuple[str, str]]) -> None:
    line = {"images_per_second": 1.0} | {f"images_per_second_rank_{rank}": rate for rank, rate in enumerate(rates)}
    assert (
        slow_rank([{"images_per_second_rank_0": 1.0, "images_per_second_rank_1": 9.0}, line, {"test_top1": 0.5}])
        == told
    )


def test_a_run_that_was_never_submitted_has_no_goodput(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="never submitted"):
        goodput_rows(tmp_path)


def test_rows_of_a_run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipe.toml").write_text(recipe_toml(load_recipe("cnn")))
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm/jobs.jsonl").write_text(
        '{"job_id": "12", "folder": "/x", "profile": "gpu", "nodes": 2, "world_size": 4, "submitted": "", '
        '"command": []}\n'
    )
    monkeypatch.setattr(slurm, "attempts", lambda job_id: [start(0, 100, 280)])
    found = dict(goodput_rows(tmp_path))
    assert found["lost to restarts"] == "3 min, 64.3%"
    assert "better request" in found
