"""What training steps take from the host: tensors and numbers that are functions of the step.

Each copy to a GPU costs the host as much as a small kernel, and the CPU that makes it must have drawn it before. So
there what the first step asks for is recorded, and from then on a thread makes it for a block of steps ahead, which one
copy brings to the device. A step takes its row from there.
"""

import logging
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import torch

log = logging.getLogger(__name__)

BLOCK_STEPS = 256
"""Most steps that are made ahead and copied at once."""
BLOCK_BYTES = 1 << 26
"""Most bytes of that, unless one step takes more; on the device they lie once, in the memory of the host twice."""
ALIGNMENT_BYTES = 512
"""As a GPU's allocator aligns a tensor of its own."""
_WORD = torch.int64

Key = tuple[str, Hashable]
"""What a value is for, as people call it, and whatever else it is a function of beside the step."""
Number = float | torch.Tensor
"""One that changes from step to step: on a device other than the CPU a tensor () float32, so that a step is static."""


class StepValues:
    """Makes and copies each value when it is asked for."""

    def tensor(
        self, key: Key, step: int, make: Callable[[int], torch.Tensor], device: torch.device | str
    ) -> torch.Tensor:
        """What `make` makes on the CPU of a step, on the device; to be read within that step, and not to be changed.

        Args:
            make: a function of the step alone, always of the same shape and dtype. A thread may call it for later
                steps, in place of those that are passed in under the same key after the first.
        """
        return make(step).to(device, non_blocking=True)

    def numbers(
        self, key: Key, step: int, make: Callable[[int], Sequence[float]], device: torch.device
    ) -> Sequence[Number]:
        """Several numbers of a step, see `tensor`; as they are on the CPU."""
        if device.type == "cpu":
            return make(step)
        return self.tensor(key, step, lambda step: torch.tensor(make(step), dtype=torch.float32), device).unbind()


DIRECT = StepValues()


@dataclass(frozen=True)
class _Column:
    """Where a value lies in each row of a table of words."""

    make: Callable[[int], torch.Tensor]
    shape: torch.Size
    dtype: torch.dtype
    first: int

    @property
    def end(self) -> int:
        num_bytes = self.shape.numel() * self.dtype.itemsize
        return self.first + -(-num_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES // _WORD.itemsize

    def of(self, rows: torch.Tensor) -> torch.Tensor:
        """The value in each of n rows, (n, *shape), in their memory."""
        values = rows[:, self.first : self.end].view(self.dtype)[:, : self.shape.numel()]
        return values.view(len(rows), *self.shape)


class StepTables(StepValues):
    """Makes the values of many steps ahead, and copies them in one piece.

    A step calls `advance`, then `load`, and then may ask for values. `load` gives the device the same work in each
    step, and the values lie where they lay in the step before: a graph may do it again.

    Attributes:
        is_recorded: whether the device's work is being recorded as a graph: a value that the tables lack is refused.
    """

    def __init__(self, device: torch.device, until: int) -> None:
        """
        Args:
            until: the step before which training ends.
        """
        self.is_recorded = False
        self._device, self._until = device, until
        self._step, self._block = -1, range(0)
        self._recorded: dict[Key, tuple[Callable[[int], torch.Tensor], torch.Tensor]] = {}
        self._columns: list[_Column] = []
        self._values: dict[Key, torch.Tensor] = {}
        self._numbers: dict[Key, tuple[torch.Tensor, ...]] = {}
        self._unknown: set[Key] = set()
        self._thread = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,))
        self._ahead: tuple[range, Future[torch.Tensor]] | None = None

    @property
    def state(self) -> dict[str, torch.Tensor]:
        """What `load` changes and reads again."""
        return {"row of the table": self._counter} if self._columns else {}

    def wait(self) -> None:
        """Returns when the thread is idle."""
        if self._ahead:
            wait([self._ahead[1]])

    def advance(self, step: int) -> None:
        """Makes the row of a step the next that is loaded. The first step has none: it is recorded."""
        if self._step < 0:
            self._step = step
            return
        if not self._columns:
            self._lay_out()
        if step not in self._block:
            self._copy_block(step)
        elif step != self._step + 1:
            self._counter.fill_(step - self._block.start)
        self._step = step

    def load(self) -> None:
        """Takes the next row from the table, on the device."""
        if self._columns:
            torch.index_select(self._table, 0, self._counter, out=self._row)
            self._counter += 1

    def tensor(
        self, key: Key, step: int, make: Callable[[int], torch.Tensor], device: torch.device | str
    ) -> torch.Tensor:
        """The value of the row, or one that is made now where the table lacks it.

        Raises: RuntimeError where that is refused.
        """
        if key in self._values and step == self._step:
            return self._values[key]
        if self.is_recorded:
            raise RuntimeError(f"{key[0]!r} is copied from the host in each step")
        value = make(step)
        if step == self._step and not self._columns:
            self._recorded.setdefault(key, (make, value))
        elif key not in self._unknown:
            self._unknown.add(key)
            log.debug("%r, which the first step did not ask for, is copied from the host in each step", key[0])
        return value.to(device, non_blocking=True)

    def numbers(
        self, key: Key, step: int, make: Callable[[int], Sequence[float]], device: torch.device
    ) -> Sequence[Number]:
        """As tensors on any device."""
        if key in self._numbers and step == self._step:
            return self._numbers[key]
        return self.tensor(key, step, lambda step: torch.tensor(make(step), dtype=torch.float32), device).unbind()

    def _lay_out(self) -> None:
        end = 0
        for make, value in self._recorded.values():
            self._columns.append(_Column(make, value.shape, value.dtype, end))
            end = self._columns[-1].end
        num_rows = max(1, min(BLOCK_STEPS, BLOCK_BYTES // max(1, end * _WORD.itemsize), self._until - self._step))
        self._table = torch.zeros(num_rows, end, dtype=_WORD, device=self._device)
        self._row = torch.zeros(1, end, dtype=_WORD, device=self._device)
        self._counter = torch.zeros(1, dtype=torch.int64, device=self._device)
        self._values = {key: column.of(self._row)[0] for key, column in zip(self._recorded, self._columns, strict=True)}
        self._numbers = {key: value.unbind() for key, value in self._values.items() if value.dim() == 1}
        self._recorded.clear()

    def _copy_block(self, step: int) -> None:
        """Brings the block from a step on to the device, and has the one after it made."""
        block, making = self._ahead or (range(0), None)
        if making is None or block.start != step:
            block = self._block_from(step)
            making = self._thread.submit(self._made, block)
        # The memory of the host that it comes from is kept by torch until the copy is done.
        self._table[: len(block)].copy_(making.result(), non_blocking=True)
        self._counter.zero_()
        self._block, self._ahead = block, None
        if following := self._block_from(block.stop):
            self._ahead = following, self._thread.submit(self._made, following)

    def _block_from(self, step: int) -> range:
        return range(step, min(step + len(self._table), self._until))

    def _made(self, block: range) -> torch.Tensor:
        """The rows of a block's steps, in the host's memory."""
        rows = torch.zeros(
            len(block), self._row.shape[1], dtype=_WORD, device="cpu", pin_memory=self._device.type == "cuda"
        )
        for column in self._columns:
            for place, step in zip(column.of(rows), block, strict=True):
                place.copy_(column.make(step))
        return rows
