"""The microbatches of a global batch: each computed by itself, and summed in an order that never changes.

Floating-point sums depend on their order, and training amplifies the difference: one unit that falls on the other side
of a ReLU can change the gradient by a percent. So that a run does not depend on the number of ranks, its batch is cut
into a fixed number S of microbatches, microbatch s being the positions s, s + S, s + 2S, …; each is computed on one
core (or one GPU), always in the same way; and what they give is summed along one binary tree, whose first levels lie
within a rank.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from cifarscale.distributed.all_reduce import Tensors, mean_over_ranks, tree_mean
from cifarscale.distributed.cpu_pool import CpuPool
from cifarscale.distributed.group import Group
from cifarscale.training.learner import Outputs

Loss = Callable[[str, Mapping[str, nn.Module], Any, int], tuple[torch.Tensor, Outputs]]
"""From an update's name, the networks, a microbatch and the step: the loss to descend on, and what else to return."""


class Microbatches:
    """A rank's microbatches: replicas of the networks to compute them with, and the way to the other ranks.

    A replica shares the networks' parameters and owns its buffers, so that microbatches can run side by side, and batch
    normalisation sees one microbatch at a time.
    """

    def __init__(self, networks: dict[str, nn.Module], num_microbatches: int, group: Group, pool: CpuPool) -> None:
        """
        Args:
            num_microbatches: of the global batch; 0 for one a rank, summed by all-reduce in whatever order that takes.
        """
        self._networks, self._group, self._pool = networks, group, pool
        self._in_order = num_microbatches > 0
        self.total = num_microbatches or group.ranks.world_size
        self.local = self.total // group.ranks.world_size
        self.replicas = [{name: _replica(network) for name, network in networks.items()} for _ in range(self.local)]
        self._averaged = [_buffers(each, averaged=True) for each in (networks, *self.replicas)]
        self._counted = [_buffers(each, averaged=False) for each in (networks, *self.replicas)]

    def gradients(self, name: str, loss: Loss, parts: Sequence[Any], step: int) -> tuple[Tensors, list[Outputs]]:
        """The gradients of one network's loss, means over the local microbatches, and the outputs of each microbatch.

        Args:
            parts: the local microbatches of the batch.
        """
        parameters = list(self._networks[name].parameters())

        def compute(i: int) -> tuple[Outputs, tuple[torch.Tensor, ...]]:
            value, outputs = loss(name, self.replicas[i], parts[i], step)
            return tuple(output.detach() for output in outputs), torch.autograd.grad(value, parameters)

        results = self.map(compute)
        return tree_mean([gradients for _, gradients in results]), [outputs for outputs, _ in results]

    def exchange(self, name: str, gradients: Tensors) -> None:
        """Sets the gradients of a network's parameters to the means over all ranks."""
        parameters = self._networks[name].parameters()
        for parameter, gradient in zip(
            parameters, mean_over_ranks(gradients, self._group, self._in_order), strict=True
        ):
            same_layout = gradient.stride() == parameter.stride()
            parameter.grad = gradient if same_layout else torch.empty_like(parameter).copy_(gradient)

    def map(self, function: Callable[[int], Any]) -> list[Any]:
        """The function's results for the local microbatches 0 … local - 1."""
        return self._pool.map(function, range(self.local))

    def begin_step(self) -> None:
        """Gives every replica the networks' buffers."""
        for original, *copies in (self._averaged, self._counted):
            for mine in copies:
                _copy(mine, original)

    def end_step(self) -> None:
        """Sets the networks' buffers to the means over all microbatches of what the step made of them."""
        original, *copies = self._averaged
        if original:
            _copy(original, mean_over_ranks(tree_mean(copies), self._group, self._in_order))
        original, *copies = self._counted
        _copy(original, copies[0])  # counts of steps


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
