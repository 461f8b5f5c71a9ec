"""Times and throughput: the job's, and each rank's own."""

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from cifarscale.distributed.group import Group
from cifarscale.distributed.ranks import Ranks
from cifarscale.tracking.metrics import RATE_OF_RANK, differs
from cifarscale.training.timing import UNTIMED_STEPS, Timing

CPU = torch.device("cpu")
Over = Callable[[int, Callable[[Any], Any]], list[Any]]


class Clock(threading.local):
    """Of a thread; it stands still until it is moved."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    return clock


def test_throughput_leaves_out_the_first_steps_and_what_is_between_steps(clock: Clock) -> None:
    timing = Timing(Group(Ranks()), CPU, batch_size=8, own_batch_size=8)
    for step in range(UNTIMED_STEPS + 4):
        with timing.step():
            with timing.own(), timing.waiting():
                clock.now += 0.5
            clock.now += 4 if step < UNTIMED_STEPS else 1.5
        clock.now += 100  # an evaluation
    assert timing.images_per_second == 8 / 2
    assert timing.seconds == UNTIMED_STEPS * 4.5 + 4 * 2
    assert timing.data_seconds == (UNTIMED_STEPS + 4) * 0.5
    with timing.step():
        clock.now += 2
        figures = timing.metrics()
    assert figures == {"seconds": timing.seconds, "data_seconds": 7.0, "images_per_second": 4.0}
    assert all(map(differs, figures))


def test_the_log_tells_of_the_steps_since_its_last_line(clock: Clock) -> None:
    timing = Timing(Group(Ranks()), CPU, batch_size=8, own_batch_size=8)
    rates = []
    for step, seconds in enumerate([1] * (UNTIMED_STEPS + 4) + [4] * 4 + [2] * 4):
        with timing.step():
            clock.now += seconds
            if step % 4 == (UNTIMED_STEPS - 1) % 4:
                rates.append(timing.metrics()["images_per_second"])
    assert rates == [0.0, 0.0, 0.0, 8.0, 2.0, 4.0]
    assert timing.images_per_second == 8 * 12 / 28


def test_what_a_gpu_still_owes_at_a_line_is_waited_for_in_it_and_counts_in_it(clock: Clock) -> None:
    """Steps are only asked for; the line's fetch of the losses waits for all that were."""
    timing = Timing(Group(Ranks()), CPU, batch_size=8, own_batch_size=8)
    rates = []
    for step in range(1, UNTIMED_STEPS + 13):
        with timing.step():
            clock.now += 0.25
            if (step - UNTIMED_STEPS) % 4 == 0:
                clock.now += 3
                rates.append(timing.metrics()["images_per_second"])
    assert rates == [0.0, 0.0, 0.0, 8.0, 8.0, 8.0]


def test_before_there_is_a_timed_step_nothing_is_told(clock: Clock) -> None:
    timing = Timing(Group(Ranks()), CPU, batch_size=8, own_batch_size=8)
    with timing.step():
        clock.now += 1
        assert timing.metrics()["images_per_second"] == 0


def test_the_slow_rank_is_seen(clock: Clock, over_ranks: Over) -> None:
    """Both take as long a step, since the fast one waits for the slow one."""

    def rank(group: Any) -> dict[str, float]:
        own = (0.5, 2)[group.ranks.rank]
        timing = Timing(group, CPU, batch_size=8, own_batch_size=4)
        for _ in range(UNTIMED_STEPS + 3):
            with timing.step():
                with timing.own():
                    clock.now += own
                clock.now += 2 - own
                figures = timing.metrics()
        return figures

    for figures in over_ranks(2, rank):
        rates = {key: rate for key, rate in figures.items() if key.startswith(RATE_OF_RANK)}
        assert rates == {f"{RATE_OF_RANK}0": 8, f"{RATE_OF_RANK}1": 2}
        assert all(map(differs, rates))
