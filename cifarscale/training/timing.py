"""How fast training goes: of the whole job, and of each rank by itself."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from cifarscale.distributed.group import Group

UNTIMED_STEPS = 10
"""First steps of a process that throughput leaves out: memory is still being set up."""


class Timing:
    """Takes the time of training's steps, and of what this rank does in them without the others.

    Attributes:
        seconds: of training steps, over all restarts whose work counts.
        data_seconds: those of them that rank 0 waited for its data.
    """

    def __init__(self, group: Group, device: torch.device, batch_size: int, own_batch_size: int) -> None:
        """
        Args:
            batch_size: of all ranks together.
            own_batch_size: of this one.
        """
        self._group, self._device = group, device
        self._batch_size, self._own_batch_size = batch_size, own_batch_size
        self.seconds = self.data_seconds = 0.0
        self._steps = 0
        self._began = self._timed_seconds = self._own_seconds = 0.0
        self._line_steps, self._line_seconds = UNTIMED_STEPS, 0.0
        self._pending: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @property
    def images_per_second(self) -> float:
        """Throughput of the whole job in training alone, without warm-up, evaluation and checkpoints."""
        return (self._steps - UNTIMED_STEPS) * self._batch_size / self._timed_seconds if self._timed_seconds else 0.0

    def steps_in(self, seconds: float) -> int:
        """About how many steps, one at least, the job takes in this time; one before that is known, or alone."""
        if self._group.ranks.world_size == 1:
            return 1
        return max(1, int(seconds * self.images_per_second / self._batch_size))

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around a whole step."""
        if self._steps == UNTIMED_STEPS:
            self._own_seconds = 0.0
            self._pending.clear()
        self._began = time.perf_counter()
        yield
        seconds = time.perf_counter() - self._began
        self.seconds += seconds
        self._steps += 1
        if self._steps > UNTIMED_STEPS:
            self._timed_seconds += seconds

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around a wait for data, within a step."""
        began = time.perf_counter()
        yield
        self.data_seconds += time.perf_counter() - began

    @contextmanager
    def own(self) -> Iterator[None]:
        """Around what a rank does without the others, within a step; on a GPU, what its stream takes for it counts."""
        if self._group.ranks.world_size == 1:
            yield
        elif self._device.type == "cuda":
            began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            began.record()
            yield
            ended.record()
            self._pending.append((began, ended))
        else:
            start = time.perf_counter()
            yield
            self._own_seconds += time.perf_counter() - start

    def metrics(self) -> dict[str, float]:
        """Times up to now, and throughput since the last call, for the log; at a step's end, and on all ranks.

        The step counts: on a GPU, what steps before it took is waited for in it, when their losses are fetched.

        A rank's own throughput counts its images by the time of its own work: reading, augmentation, gradients. All
        ranks go at the pace of the slowest, and this tells which that is.
        """
        here = time.perf_counter() - self._began
        timed = self._timed_seconds + (here if self._steps >= UNTIMED_STEPS else 0)
        seconds, self._line_seconds = timed - self._line_seconds, timed
        steps = max(0, self._steps + 1 - self._line_steps)
        self._line_steps += steps
        metrics = {
            "seconds": round(self.seconds + here, 3),
            "data_seconds": round(self.data_seconds, 3),
            "images_per_second": round(steps * self._batch_size / seconds if seconds else 0.0, 1),
        }
        ranks = self._group.ranks
        if ranks.world_size > 1 and steps:
            for began, ended in self._pending:
                ended.synchronize()
                self._own_seconds += began.elapsed_time(ended) / 1000
            self._pending.clear()
            rates = torch.zeros(ranks.world_size, dtype=torch.float64)
            rates[ranks.rank] = steps * self._own_batch_size / self._own_seconds
            self._own_seconds = 0.0
            for rank, rate in enumerate(self._group.sum_(rates).tolist()):
                metrics[f"images_per_second_rank_{rank}"] = round(rate, 1)
        return metrics
