"""How often SLURM is asked of a job, and for how long it may not answer."""

from collections.abc import Callable, Iterator

import pytest

from cifarscale.errors import ClusterError
from cifarscale.slurm import client as slurm
from cifarscale.slurm.client import JobKey, JobState, Watch

RUNNING, DONE = JobState("7", "RUNNING"), JobState("7", "COMPLETED")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[float]]]:
    """asked(watch, answers, seconds): when SLURM was asked, by a clock that a look each second moves on."""
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr(slurm, "available", lambda: True)

    def asked(watch: Watch, answer: Callable[[float], JobState | None], seconds: int) -> list[float]:
        times: list[float] = []

        def job_state(job: JobKey) -> JobState | None:
            times.append(now[0] - 1000)
            return answer(now[0] - 1000)

        monkeypatch.setattr(slurm, "job_state", job_state)
        for _ in range(seconds):
            watch.look()
            now[0] += 1
        return times

    return asked


def away(_: float) -> JobState | None:
    raise ClusterError("scontrol failed: Unable to contact slurm controller")


def test_it_asks_ever_less_often_while_nothing_changes(asked: Callable[..., list[float]]) -> None:
    watch = Watch(JobKey("7"))
    assert asked(watch, lambda _: RUNNING, 300) == [0, 2, 6, 14, 30, 62, 122, 182, 242]
    assert watch.is_active


def test_a_change_is_told_and_looked_at_closely(asked: Callable[..., list[float]]) -> None:
    watch = Watch(JobKey("7"), longest_s=10)
    assert asked(watch, lambda second: RUNNING if second < 20 else DONE, 40)[:7] == [0, 2, 6, 14, 24, 26, 30]
    assert (watch.state, watch.is_active) == (DONE, False)


def test_a_controller_that_is_away_for_minutes_ends_nothing(asked: Callable[..., list[float]]) -> None:
    watch = Watch(JobKey("7"))
    asked(watch, lambda second: RUNNING if second < 10 else away(second), 400)
    assert (watch.state, watch.is_active) == (RUNNING, True)


def test_one_that_stays_away_is_an_error(asked: Callable[..., list[float]]) -> None:
    with pytest.raises(ClusterError, match="Unable to contact"):
        asked(Watch(JobKey("7"), patience_s=100), away, 400)


def test_a_machine_without_slurm_is_an_error_at_once(
    asked: Callable[..., list[float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm, "available", lambda: False)
    with pytest.raises(ClusterError):
        asked(Watch(JobKey("7")), away, 1)
