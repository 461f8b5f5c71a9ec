"""A training step as a graph: recorded once, and from then on replayed by one launch in place of hundreds.

On a GPU a step of small kernels takes as long as the CPU needs to launch them. A CUDA graph launches all of them at
once: the same kernels in the same order on the same memory, so the same bits. What changes from step to step must lie
in that memory, see `step_values`.
"""

import gc
import logging
from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch

from cifarscale.errors import first_line

log = logging.getLogger(__name__)

WARM_UP_STEPS = 3
"""Steps of a kind before it is recorded: optimizers make their states, libraries choose their kernels."""


@dataclass(frozen=True)
class StepResult:
    """What a step leaves beside the state of training.

    Attributes:
        metrics: (microbatches, names), what `MetricsBuffer.add` takes.
        norms: of the gradients of networks by their names, where the step has computed them.
        gradients: of parameters.
    """

    metrics: torch.Tensor
    norms: dict[str, torch.Tensor]
    gradients: list[tuple[torch.nn.Parameter, torch.Tensor | None]]


Update = Callable[[], StepResult]
"""One step."""


class Graph(Protocol):
    """The device's work, to be done again and again."""

    def capture(self, update: Update) -> StepResult:
        """Records the work of an update without doing it.

        Returns: what each replay fills.
        Raises: whatever cannot be recorded.
        """
        ...

    def replay(self) -> None:
        """Does the work once."""
        ...


class CudaGraph:
    """One of CUDA's, with memory of its own."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._graph = device, torch.cuda.CUDAGraph()

    def capture(self, update: Update) -> StepResult:
        gc.collect()  # a graph that dies while another is recorded would spoil it
        with torch.cuda.device(self._device):
            try:
                # torch leaves the stream of a recording that fails as the current one: the outer block takes it back.
                with torch.cuda.stream(torch.cuda.current_stream()):
                    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
                    # What other threads do meanwhile does not matter to it.
                    with torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):
                        return update()
            except BaseException:
                # Also its random generator, as one that is recorded, which then refuses to draw: a copy is not.
                generator = torch.cuda.default_generators[torch.cuda.current_device()]
                generator.graphsafe_set_state(generator.clone_state())
                raise

    def replay(self) -> None:
        self._graph.replay()


def lacks_memory(device: torch.device, num_streams: int, state_bytes: int) -> str:
    """Why a graph of steps such as those that were done would not fit into a GPU's memory; empty if it does.

    Beside it there must be room for a step and an evaluation without it, and for two copies of the state of training,
    with which the first replay is checked.
    """
    if device.type != "cuda":
        return ""
    allocated = torch.cuda.memory_allocated(device)
    step = torch.cuda.max_memory_allocated(device) - allocated
    free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - allocated
    if free >= (num_streams + 2) * step + 2 * state_bytes:
        return ""
    return f"it would take up to {num_streams * step / 1e9:.1f} GB of {free / 1e9:.1f} that are free"


@dataclass
class _Recorded:
    graph: Graph
    result: StepResult
    is_checked: bool = False


class StepGraphs:
    """Does steps: the first of each kind one operation at a time, then as a graph.

    The first replay is checked: the step is also done without the graph, from the same state. Where its bits differ, or
    where recording fails, there are no graphs from then on.
    """

    def __init__(
        self,
        make: Callable[[], Graph],
        state: Callable[[], Mapping[str, torch.Tensor]],
        recording: Callable[[], AbstractContextManager[None]],
        obstacle: Callable[[], str],
        repeats: bool = True,
    ) -> None:
        """
        Args:
            state: all that a step changes and the next one reads, by names; always the same tensors.
            recording: a block within which an update is recorded.
            obstacle: why steps like those that were done cannot be recorded; empty if they can.
            repeats: whether a step by itself makes the same bits each time.
        """
        self._repeats = repeats
        self._make, self._state, self._recording, self._obstacle = make, state, recording, obstacle
        self._recorded: dict[Hashable, _Recorded] = {}
        self._done: Counter[Hashable] = Counter()
        self._is_off = False

    def run(self, kind: Hashable, update: Update) -> StepResult:
        """Does a step.

        Args:
            kind: steps of one kind are the same operations on tensors of the same shapes.
        Returns: what holds until the next step.
        """
        if self._is_off:
            return update()
        recorded = self._recorded.get(kind)
        if recorded is None:
            self._done[kind] += 1
            if self._done[kind] > WARM_UP_STEPS:
                self._record(kind, update)
            return update()
        if not recorded.is_checked:
            return self._check(recorded, update)
        recorded.graph.replay()
        return recorded.result

    def _record(self, kind: Hashable, update: Update) -> None:
        if reason := self._obstacle():
            self._turn_off(reason)
            return
        try:
            graph = self._make()
            with self._recording():
                self._recorded[kind] = _Recorded(graph, graph.capture(update))
        except Exception as error:
            self._turn_off(_reason(error))

    def _check(self, recorded: _Recorded, update: Update) -> StepResult:
        """The step with the graph, and once more without it, whose result counts."""
        state = self._state()
        before: dict[str, torch.Tensor] = {}
        try:
            before = _copies(state)
            recorded.graph.replay()
            replayed = _copies({**state, "metrics": recorded.result.metrics})
        except Exception as error:
            _restore(state, before)
            self._turn_off(_reason(error))
            return update()
        _restore(state, before)
        result = update()
        now = {**state, "metrics": result.metrics}
        if other := next((name for name in now if not _same_bits(now[name], replayed[name])), None):
            reason = f"the first replay has made something else of {other} than the step by itself"
            if self._repeats:
                self._turn_off(reason, logging.WARNING)
            else:
                self._turn_off(f"{reason}, which without microbatches may differ from itself, too")
        else:
            recorded.is_checked = True
            log.info("steps are replayed as a graph: the first replay has made the same of everything, to the last bit")
        return result

    def _turn_off(self, reason: str, level: int = logging.INFO) -> None:
        self._is_off = True
        self._recorded.clear()
        log.log(level, "steps are not replayed as a graph: %s", reason)


def _copies(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


@torch.no_grad()
def _restore(state: Mapping[str, torch.Tensor], before: Mapping[str, torch.Tensor]) -> None:
    for name, tensor in before.items():
        state[name].copy_(tensor)


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Also where both are not a number."""
    return torch.equal(_bits(one.detach()), _bits(other))


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    return tensor.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])


def _reason(error: BaseException) -> str:
    """In one line what failed first: the end of a recording that has failed fails, too."""
    first = error.__context__ or error
    return first_line(first) or type(first).__name__
