"""What a CUDA graph does, on the CPU: records operations with the memory that they read and write, and does them again.

Like a CUDA graph it knows nothing of Python: a replay runs the same operations on the same tensors, in the same order.
Recording leaves all memory as it was, and whatever makes the CPU wait for the device cannot be recorded.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves

T = TypeVar("T")
WAITS = ("aten._local_scalar_dense", "aten.item", "aten.is_nonzero", "aten.equal", "aten.nonzero", "aten.masked_select")
"""Operations whose result the CPU must know."""


@dataclass(frozen=True)
class _Operation:
    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: list[torch.Tensor]
    """Tensors that it made anew, to which each replay writes."""
    places: list[int]
    """Where they are among all that it returns."""

    def run(self) -> None:
        results = tree_leaves(self.function(*self.args, **self.kwargs))
        for place, result in zip(self.places, self.results, strict=True):
            result.copy_(results[place])


class EmulatedGraph(TorchDispatchMode):
    """Takes the place of `CudaGraph`.

    Attributes:
        num_replays: how often it was replayed.
    """

    def __init__(self) -> None:
        super().__init__()
        self._operations: list[_Operation] = []
        self._before: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._made: set[int] = set()
        self._is_within = False
        self.num_replays = 0

    def capture(self, update: Callable[[], T]) -> T:
        try:
            with self:
                return update()
        finally:
            with torch.no_grad():
                for tensor, before in self._before.values():
                    tensor.copy_(before)
            self._before.clear()

    @torch.no_grad()
    def replay(self) -> None:
        self.num_replays += 1
        for operation in self._operations:
            operation.run()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = str(function).rpartition(".")[0]
        if name in WAITS:
            raise RuntimeError(f"operation not permitted when stream is capturing: {name}")
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        for tensor in _written(function, args, kwargs):
            self._keep(tensor)
        result = function(*args, **kwargs)
        leaves = tree_flatten(result)[0]
        memory = {_memory(tensor) for tensor in given}
        places = [
            place for place, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor) and _memory(leaf) not in memory
        ]
        self._made |= {_memory(leaves[place]) for place in places}
        made = [leaves[place].detach() for place in places]
        self._operations.append(_Operation(function, args, kwargs, made, places))
        return result

    def _keep(self, tensor: torch.Tensor) -> None:
        """What memory from outside held before it is written to."""
        if _memory(tensor) in self._made or _memory(tensor) in self._before:
            return
        whole = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
        self._before[_memory(tensor)] = whole, whole.clone()


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _written(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[torch.Tensor]:
    """The tensors that an operation writes to, by its schema."""
    written: list[torch.Tensor] = []
    for i, argument in enumerate(function._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[i] if i < len(args) else kwargs.get(argument.name)
            written += [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]
    return written
