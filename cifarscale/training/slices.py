"""The slices of a global batch: each computed by itself, and summed in an order that never changes.

Floating-point sums depend on their order, and training amplifies the difference: one unit that falls on the other side
of a ReLU can change the gradient by a percent. So that a run does not depend on the number of ranks, its batch is cut
into a fixed number S of slices, slice s being the positions s, s + S, s + 2S, …; each is computed on one core (or one
GPU), always in the same way; and what they give is summed along one binary tree, whose first levels lie within a rank.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from cifarscale.cores import Cores
from cifarscale.data.batches import Batch
from cifarscale.distributed import Group

Losses = Callable[[str, Mapping[str, nn.Module], Batch, int], tuple[torch.Tensor, dict[str, torch.Tensor]]]
"""From an update's name, the networks, a slice and the step: the loss to descend on, and scalars to log."""


def tree_mean(terms: Sequence[torch.Tensor]) -> torch.Tensor:
    """The mean of 2**n tensors, each added to the one half the number further on, then again, down to one."""
    total = len(terms)
    while len(terms) > 1:
        half = len(terms) // 2
        terms = [a + b for a, b in zip(terms[:half], terms[half:], strict=True)]
    return terms[0] / total if total > 1 else terms[0]


class Slices:
    """A rank's slices: replicas of the networks to compute them with, and the way to the other ranks.

    A replica shares the networks' parameters and owns its buffers, so that slices can run side by side, and batch
    normalisation sees one slice at a time.
    """

    def __init__(self, networks: dict[str, nn.Module], num_slices: int, group: Group, cores: Cores) -> None:
        """
        Args:
            num_slices: of the global batch; 0 for one a rank, summed by all-reduce in whatever order that takes.
        """
        self._networks, self._group, self._cores = networks, group, cores
        self._in_order = num_slices > 0
        self.total = num_slices or group.ranks.world_size
        self.local = self.total // group.ranks.world_size
        self.replicas = [{name: _replica(network) for name, network in networks.items()} for _ in range(self.local)]

    def update(self, name: str, losses: Losses) -> nn.Module:
        """The update of one network as a module, in DistributedDataParallel if the job has several ranks.

        Called with (batch, step) it returns a tensor whose `backward` sets the network's gradients, and what was
        logged for each local slice.
        """
        update = _Update(name, self, losses, list(self._networks[name].parameters()))
        if self._group.ranks.world_size == 1:
            return update
        parallel = DistributedDataParallel(update, gradient_as_bucket_view=True)
        if self._in_order:
            parallel.register_comm_hook(None, _mean_by_tree)
        return parallel

    def map(self, function: Callable[[int], Any]) -> list[Any]:
        """The function's results for the local slices 0 … local - 1."""
        return self._cores.map(function, range(self.local))

    def begin_step(self) -> None:
        """Gives every replica the networks' buffers."""
        for replica in self.replicas:
            for name, network in self._networks.items():
                for mine, buffer in zip(replica[name].buffers(), network.buffers(), strict=True):
                    mine.copy_(buffer)

    def end_step(self) -> None:
        """Sets the networks' buffers to the means over all slices of what the step made of them."""
        for name, network in self._networks.items():
            for buffer, *copies in zip(network.buffers(), *(r[name].buffers() for r in self.replicas), strict=True):
                if buffer.is_floating_point():
                    buffer.copy_(self._mean_over_ranks(tree_mean(copies)))
                else:
                    buffer.copy_(copies[0])  # a count of steps

    def _mean_over_ranks(self, local: torch.Tensor) -> torch.Tensor:
        world_size = self._group.ranks.world_size
        if world_size == 1:
            return local
        terms = [torch.empty_like(local) for _ in range(world_size)]
        dist.all_gather(terms, local)
        return tree_mean(terms) if self._in_order else torch.stack(terms).mean(0)


class _Update(nn.Module):
    """Computes the gradients of a network over the local slices; a module so that DistributedDataParallel takes it."""

    def __init__(self, name: str, slices: Slices, losses: Losses, parameters: list[nn.Parameter]) -> None:
        super().__init__()
        self._name, self._slices, self._losses = name, slices, losses
        self._trained = nn.ParameterList(parameters)

    def forward(self, batch: Batch, step: int) -> tuple[torch.Tensor, list[dict[str, torch.Tensor]]]:
        parameters = list(self._trained)

        def compute(i: int) -> tuple[dict[str, torch.Tensor], tuple[torch.Tensor, ...]]:
            part = batch.part(i, self._slices.local)
            loss, values = self._losses(self._name, self._slices.replicas[i], part, step)
            return values, torch.autograd.grad(loss, parameters)

        results = self._slices.map(compute)
        gradients = [tree_mean(terms) for terms in zip(*(result[1] for result in results), strict=True)]
        return _WithGradients.apply(gradients, *parameters), [result[0] for result in results]


class _WithGradients(torch.autograd.Function):
    """A zero whose gradients are the ones given: they are computed already, slice by slice."""

    @staticmethod
    def forward(ctx: Any, gradients: list[torch.Tensor], *parameters: torch.Tensor) -> torch.Tensor:
        ctx.gradients = gradients
        return parameters[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, *_: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return None, *ctx.gradients


def _mean_by_tree(_: object, bucket: Any) -> torch.futures.Future[torch.Tensor]:
    """DistributedDataParallel's hook: gathers the ranks' gradients and averages them in the order of the tree."""
    mine = bucket.buffer()
    terms = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    gathered = dist.all_gather(terms, mine, async_op=True)
    return gathered.get_future().then(lambda _: tree_mean(terms))


def _replica(network: nn.Module) -> nn.Module:
    """A copy of the network with the same parameters, not equal ones, and buffers of its own."""
    return copy.deepcopy(network, {id(parameter): parameter for parameter in network.parameters()})
