"""The slices of a global batch: each computed by itself, and summed in an order that never changes.

Floating-point sums depend on their order, and training amplifies the difference: one unit that falls on the other side
of a ReLU can change the gradient by a percent. So that a run does not depend on the number of ranks, its batch is cut
into a fixed number S of slices, slice s being the positions s, s + S, s + 2S, …; each is computed on one core (or one
GPU), always in the same way; and what they give is summed along one binary tree, whose first levels lie within a rank.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from cifarscale.cores import Cores
from cifarscale.distributed import Group
from cifarscale.training.task import Outputs

Tensors = tuple[torch.Tensor, ...] | list[torch.Tensor]
Loss = Callable[[str, Mapping[str, nn.Module], Any, int], tuple[torch.Tensor, Outputs]]
"""From an update's name, the networks, a slice and the step: the loss to descend on, and what else to return."""


def tree_mean(terms: Sequence[Tensors]) -> Tensors:
    """The means of 2**n lists of tensors, each added to the one half the number further on, again and again."""
    total = len(terms)
    while len(terms) > 1:
        half = len(terms) // 2
        terms = [torch._foreach_add(a, b) for a, b in zip(terms[:half], terms[half:], strict=True)]
    return torch._foreach_div(terms[0], total) if total > 1 else terms[0]


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
        replicated = (zip(*(r[name].buffers() for r in self.replicas), strict=True) for name in networks)
        originals = (network.buffers() for network in networks.values())
        self._buffers = list(zip(chain(*originals), chain(*replicated), strict=True))

    def update(self, name: str, loss: Loss) -> nn.Module:
        """The update of one network as a module, in DistributedDataParallel if the job has several ranks.

        Called with (the local slices, step) it returns a tensor whose `backward` sets the network's gradients, and the
        outputs of each slice.
        """
        update = _Update(name, self, loss, list(self._networks[name].parameters()))
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
        for buffer, copies in self._buffers:
            for mine in copies:
                mine.copy_(buffer)

    def end_step(self) -> None:
        """Sets the networks' buffers to the means over all slices of what the step made of them."""
        for buffer, copies in self._buffers:
            if buffer.is_floating_point():
                buffer.copy_(self._mean_over_ranks(tree_mean([[copy] for copy in copies])[0]))
            else:
                buffer.copy_(copies[0])  # a count of steps

    def _mean_over_ranks(self, local: torch.Tensor) -> torch.Tensor:
        world_size = self._group.ranks.world_size
        if world_size == 1:
            return local
        terms = [torch.empty_like(local) for _ in range(world_size)]
        dist.all_gather(terms, local)
        return tree_mean([[term] for term in terms])[0] if self._in_order else torch.stack(terms).mean(0)


class _Update(nn.Module):
    """Computes the gradients of a network over the local slices; a module so that DistributedDataParallel takes it."""

    def __init__(self, name: str, slices: Slices, loss: Loss, parameters: list[nn.Parameter]) -> None:
        super().__init__()
        self._name, self._slices, self._loss = name, slices, loss
        self._trained = nn.ParameterList(parameters)

    def forward(self, parts: Sequence[Any], step: int) -> tuple[torch.Tensor, list[Outputs]]:
        parameters = list(self._trained)

        def compute(i: int) -> tuple[Outputs, tuple[torch.Tensor, ...]]:
            loss, outputs = self._loss(self._name, self._slices.replicas[i], parts[i], step)
            gradients = torch.autograd.grad(loss, parameters)
            return tuple(output.detach() for output in outputs), gradients

        results = self._slices.map(compute)
        gradients = tree_mean([result[1] for result in results])
        return _WithGradients.apply(gradients, *parameters), [result[0] for result in results]


class _WithGradients(torch.autograd.Function):
    """A zero whose gradients are the ones given: they are computed already, slice by slice."""

    @staticmethod
    def forward(ctx: Any, gradients: Tensors, *parameters: torch.Tensor) -> torch.Tensor:
        ctx.gradients = gradients
        return parameters[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, *_: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return None, *ctx.gradients


def _mean_by_tree(_: object, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:  # type: ignore[name-defined]
    """DistributedDataParallel's hook: gathers the ranks' gradients and averages them in the order of the tree."""
    mine = bucket.buffer()
    terms = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    gathered = dist.all_gather(terms, mine, async_op=True)
    return gathered.get_future().then(lambda _: tree_mean([[term] for term in terms])[0])


def _replica(network: nn.Module) -> nn.Module:
    """A copy of the network with the same parameters, not equal ones, and buffers of its own."""
    return copy.deepcopy(network, {id(parameter): parameter for parameter in network.parameters()})
