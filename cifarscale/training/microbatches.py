"""The microbatches of a global batch: each computed by itself, and summed in an order that never changes.

Floating-point sums depend on their order, and training amplifies the difference: one unit that falls on the other side
of a ReLU can change the gradient by a percent. So that a run does not depend on the number of ranks, its batch is cut
into a fixed number S of microbatches, microbatch s being the positions s, s + S, s + 2S, …; each is computed on one
core (or one GPU), always in the same way; and what they give is summed along one binary tree (`distributed/tree`),
whose first levels lie within a rank.
"""

import copy
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from cifarscale.distributed.all_reduce import AllReduce, Tensors
from cifarscale.distributed.cpu_pool import CpuPool
from cifarscale.distributed.group import Group
from cifarscale.distributed.randomness import seed_torch
from cifarscale.distributed.tree import Tree
from cifarscale.errors import ConfigError, first_line
from cifarscale.training.learner import Outputs
from cifarscale.training.norm_layers import with_statistics
from cifarscale.training.overlap import Overlap

Loss = Callable[[str, Mapping[str, nn.Module], Any, int], tuple[torch.Tensor, Outputs]]
"""From an update's name, the networks, a microbatch and the step: the loss to descend on, and what else to return."""


_OF_AUTOGRAD = re.compile(r"use_reentrant|inplace operation|does not require grad|second time|not differentiable")
"""What autograd says that refuses a network's computation."""

MAX_STREAMS = 8
"""On a GPU; each has memory of its own for what a microbatch needs."""
Result = TypeVar("Result")


class Microbatches:
    """A rank's microbatches: replicas of the networks to compute them with, and the way to the other ranks.

    Attributes:
        total: how many the global batch has.
        numbers: which of them are this rank's, ascending.
        local: how many these are.
        is_recorded: whether what is computed is being recorded as a graph: of networks that draw nothing, and on
            several of a GPU's streams side by side.

    A replica shares the networks' parameters and owns its buffers, so that microbatches can run side by side, and batch
    normalisation sees one microbatch at a time.

    What a network draws from torch's generators, as `nn.Dropout` does, is a function of the seed, the step and the
    microbatch: the generators are seeded before each. There is one on the CPU for all threads, so microbatches of a
    network that draws are computed in turn, where others are computed side by side. The first step that draws is
    computed again in turn.
    """

    def __init__(
        self, networks: dict[str, nn.Module], num_microbatches: int, group: Group, pool: CpuPool, seed: int = 0
    ) -> None:
        """
        Args:
            num_microbatches: of the global batch; 0 for one a rank, summed by all-reduce in whatever order that takes.
            seed: of what networks draw.
        """
        self._group, self._pool, self._seed = group, pool, seed
        self.is_recorded = False
        self._draws: dict[str, bool] = {}
        """Whether the computation of an update draws, which its first time shows."""
        ranks = group.ranks
        self._tree = Tree(num_microbatches, ranks.world_size) if num_microbatches else None
        self.total = num_microbatches or ranks.world_size
        self.numbers = self._tree.terms[ranks.rank] if self._tree else [ranks.rank]
        self.local = len(self.numbers)
        self.replicas = [{name: _replica(network) for name, network in networks.items()} for _ in range(self.local)]
        self._parameters = {name: list(network.parameters()) for name, network in networks.items()}
        self._averaged = [_buffers(each, averaged=True) for each in (networks, *self.replicas)]
        self._counted = [_buffers(each, averaged=False) for each in (networks, *self.replicas)]
        copies = zip(self._averaged[1:], self._counted[1:], strict=True)
        self._of_replicas = [[*floats, *others] for floats, others in copies]
        self._of_first = [
            buffer
            for network in networks.values()
            for name, buffer in network.named_buffers()
            if not buffer.is_floating_point() and not name.endswith("num_batches_tracked")
        ]
        """Buffers that ranks cannot average, and of which they may have made different things."""
        statistics = {id(each) for layer in with_statistics(networks.values()) for each in layer.buffers()}
        self._perhaps_constant = [i for i, each in enumerate(self._averaged[0]) if id(each) not in statistics]
        """Which of the buffers to average a step may leave as they are: all but those of normalisation layers."""
        self._side_by_side = pool.is_parallel and self.local > 1
        self._overlaps: dict[str, Overlap] = {}
        self._all_reduces: dict[tuple[str, bool], AllReduce] = {}
        """By the network whose gradients they are of, if any, and whether the buffers come along."""
        devices = (each.device for parameters in self._parameters.values() for each in parameters)
        self._device = next(devices, torch.device("cpu"))
        self._streams: list[torch.cuda.Stream] = []

    def gradients(
        self, name: str, loss: Loss, parts: Sequence[Any], step: int, earlier: int = 0
    ) -> tuple[list[Tensors], list[Outputs]]:
        """The gradients of one network's loss for each local microbatch, and the outputs for each.

        Args:
            parts: the local microbatches of the batch.
            earlier: updates of the same network in this step before this one.
        Raises: ConfigError if autograd refuses what the network does, or the loss is not one number.
        """
        parameters = trained(self._parameters[name])
        overlap = None if self._side_by_side else self._overlap(name)
        computed: list[Tensors] = []

        def compute(i: int) -> tuple[Outputs, Tensors]:
            value, outputs = loss(name, self.replicas[i], parts[i], step)
            if value.numel() != 1:
                shape = tuple(value.shape)
                raise ConfigError(f"a loss is one number, and this one has the shape {shape}: return its mean")
            is_last = i == self.local - 1
            with _naming_the_gradients(name), overlap.beside(computed) if overlap and is_last else nullcontext():
                gradients = torch.autograd.grad(value, parameters, materialize_grads=True)
            computed.append(gradients)
            return tuple(output.detach() for output in outputs), gradients

        results = self.compute(name, compute, step, earlier)
        return [gradients for _, gradients in results], [outputs for outputs, _ in results]

    def compute(self, name: str, function: Callable[[int], Result], step: int, earlier: int = 0) -> list[Result]:
        """The function's results for the local microbatches 0 … local - 1, each with draws of its own.

        Args:
            name: of the update that it computes.
            earlier: see `gradients`.
        """
        if self.is_recorded:
            return self._on_streams(function)
        if self._side_by_side and self._draws.get(name) is False:
            before = torch.default_generator.get_state()
            was = [[buffer.clone() for buffer in each] for each in self._of_replicas]
            results = self._pool.map(function, range(self.local))
            if not _has_drawn_since(before):
                return results
            # It begins to draw: what the threads have drawn is void, and nothing else has happened yet.
            for replica, buffers in zip(self._of_replicas, was, strict=True):
                _copy(replica, buffers)
        device = self._device
        results, draws = [], self._draws.get(name, False)
        purpose = f"{name} {earlier}" if earlier else name
        for i, number in enumerate(self.numbers):
            seed_torch(device, self._seed, purpose, step, number)
            before, on_gpu = torch.default_generator.get_state(), _state_on_gpu(device)
            results.append(function(i))
            draws = draws or _has_drawn_since(before) or not torch.equal(on_gpu, _state_on_gpu(device))
        self._draws[name] = draws
        return results

    @property
    def drawing(self) -> list[str]:
        """The updates whose computation draws, of those that were done."""
        return [name for name, draws in self._draws.items() if draws]

    @property
    def num_streams(self) -> int:
        """On how many of a GPU's streams microbatches are recorded."""
        return min(self.local, MAX_STREAMS)

    def _on_streams(self, function: Callable[[int], Result]) -> list[Result]:
        """The results for the local microbatches, which a GPU computes side by side as far as there are streams."""
        if self._device.type != "cuda" or self.local == 1:
            return [function(i) for i in range(self.local)]
        if not self._streams:
            streams = (torch.cuda.Stream(self._device) for _ in range(self.num_streams))  # type: ignore[no-untyped-call]
            self._streams = list(streams)
        here, results = torch.cuda.current_stream(self._device), []
        for stream in self._streams:
            stream.wait_stream(here)
        try:
            for i in range(self.local):
                with torch.cuda.stream(self._streams[i % len(self._streams)]):
                    results.append(function(i))
        finally:
            for stream in self._streams:  # also of a recording that fails: only a whole one is ended soundly
                here.wait_stream(stream)
        return results

    def exchange(self, name: str, gradients: Sequence[Tensors], ends_step: bool = False) -> None:
        """Sets the gradients of a network's parameters to the means over all microbatches.

        Args:
            gradients: of the local microbatches.
            ends_step: whether all updates of the step are computed, so that it ends as by `end_step`: the buffers
                travel with the gradients.
        """
        parameters = trained(self._parameters[name])
        overlap = self._overlap(name)
        means = overlap.means(gradients) if overlap else {}
        rest = [i for i in range(len(parameters)) if i not in means]
        like, terms = [parameters[i] for i in rest], [[each[i] for i in rest] for each in gradients]
        # Without a tree they go apart: where a number lies decides over the order of its sum on three ranks and more.
        with_buffers = ends_step and self._tree is not None
        if with_buffers:
            buffers, of_buffers = self._terms_of_buffers()
            terms = [[*each, *more] for each, more in zip(terms, of_buffers, strict=True)]
            found = self._mean((name, True), [*like, *buffers], terms)
            self._set_buffers(found[len(rest) :])
        else:
            found = self._mean((name, False), like, terms)
        means.update(zip(rest, found, strict=False))
        for i, parameter in enumerate(parameters):
            same_layout = means[i].stride() == parameter.stride()
            parameter.grad = means[i] if same_layout else torch.empty_like(parameter).copy_(means[i])
        if ends_step and not with_buffers:
            self.end_step()

    def _overlap(self, name: str) -> Overlap | None:
        """What exchanges the gradients of a network's last layers; None where nothing is saved by it."""
        ranks = self._group.ranks
        if self._tree is None or ranks.world_size == 1 or (self._device.type == "cpu" and ranks.on_one_node):
            return None
        if name not in self._overlaps:
            self._overlaps[name] = Overlap(trained(self._parameters[name]), self._group, self._tree)
        return self._overlaps[name]

    def begin_step(self) -> None:
        """Gives every replica the networks' buffers."""
        for original, *copies in (self._averaged, self._counted):
            for mine in copies:
                _copy(mine, original)

    def end_step(self) -> None:
        """Sets the networks' buffers to the means over all microbatches of what the step made of them.

        Elements that all microbatches have left alone stay as they are, even where their sum would overflow, as that
        of a mask's -1e38. Buffers that are no floats are those of the first microbatch.
        """
        buffers, terms = self._terms_of_buffers()
        self._set_buffers(self._mean(("", True), buffers, terms) if buffers else [])

    def _terms_of_buffers(self) -> tuple[list[torch.Tensor], list[list[torch.Tensor]]]:
        """Like what, and for each local microbatch: buffers, and where those have changed that a step may leave as
        they are.
        """
        original, *copies = self._averaged
        places = self._perhaps_constant
        if not places:
            return original, copies
        was, *now = (torch.cat([buffers[i].reshape(-1) for i in places]) for buffers in (original, *copies))
        terms = [[*buffers, (each != was).to(was.dtype)] for buffers, each in zip(copies, now, strict=True)]
        return [*original, was], terms

    def _set_buffers(self, means: Tensors) -> None:
        """Sets the networks' buffers, from the means of what `_terms_of_buffers` returns."""
        original, places = self._averaged[0], self._perhaps_constant
        if places:
            *means, changed = means
            pieces = torch.split(changed > 0, [original[i].numel() for i in places])
            for i, piece in zip(places, pieces, strict=True):
                means[i] = torch.where(piece.view(original[i].shape), means[i], original[i])
        _copy(original, means)
        original, *copies = self._counted
        _copy(original, copies[0])  # counts of steps
        if self._group.ranks.world_size > 1:
            for buffer in self._of_first:
                dist.broadcast(buffer, src=0)

    def _mean(self, purpose: tuple[str, bool], like: Sequence[torch.Tensor], terms: Sequence[Tensors]) -> Tensors:
        """The means over all microbatches of tensors of one purpose, always of the same shapes.

        Args:
            terms: of the local microbatches.
        """
        if purpose not in self._all_reduces:
            self._all_reduces[purpose] = AllReduce(like, self._group, self._tree)
        return self._all_reduces[purpose].mean(terms)


def trained(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """Those that are not frozen."""
    return [parameter for parameter in parameters if parameter.requires_grad]


@contextmanager
def _naming_the_gradients(name: str) -> Iterator[None]:
    """Turns autograd's refusal into one line, and passes on what else fails there: devices, memory, other ranks."""
    try:
        yield
    except RuntimeError as error:
        if not _OF_AUTOGRAD.search(str(error)):
            raise
        raise ConfigError(f"the gradients of the {name} cannot be computed: {first_line(error)}") from error


def _has_drawn_since(state: torch.Tensor) -> bool:
    """Whether torch's generator on the CPU has another state."""
    return not torch.equal(state, torch.default_generator.get_state())


def _state_on_gpu(device: torch.device) -> torch.Tensor:
    """Of torch's generator there; nothing without one."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.empty(0)


def _buffers(networks: Mapping[str, nn.Module], averaged: bool) -> list[torch.Tensor]:
    """The networks' buffers that are floats, or those that are not."""
    buffers = (buffer for network in networks.values() for buffer in network.buffers())
    return [buffer for buffer in buffers if buffer.is_floating_point() == averaged]


def _copy(into: Sequence[torch.Tensor], of: Sequence[torch.Tensor]) -> None:
    """All at once, which on a GPU are a few launches in place of one for each."""
    if into:
        torch._foreach_copy_(list(into), list(of))


def _replica(network: nn.Module) -> nn.Module:
    """A copy of the network with the same parameters, not equal ones, and buffers of its own."""
    return copy.deepcopy(network, {id(parameter): parameter for parameter in network.parameters()})
