"""Normalisation layers by name, and a batch normalisation whose batch is the global one on every backend."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

Normalisation = Literal["none", "batch", "group", "sync_batch"]

NUM_GROUPS = 4
"""Groups of "group" (Wu & He 2018, arXiv 1803.08494): two channels each in the narrowest stage that we build, of 8."""


def normalisation(kind: Normalisation, channels: int) -> nn.Module:
    """A normalisation of feature maps (N, channels, H, W).

    Args:
        kind: "none", "batch" (over this rank's batch), "group" (each sample by itself, in `NUM_GROUPS` groups of
            channels), or "sync_batch" (over the global batch).
        channels: number of channels; for "group" a multiple of `NUM_GROUPS`.
    Raises: ValueError for another kind, or channels that do not divide into the groups.
    """
    if kind not in _LAYERS:
        raise ValueError(f"normalisation {kind!r} is unknown; valid: {', '.join(_LAYERS)}")
    if kind == "group" and channels % NUM_GROUPS:
        raise ValueError(f"normalisation 'group' needs channels in multiples of {NUM_GROUPS}, and received {channels}")
    return _LAYERS[kind](channels)


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation with the statistics of the global batch: its result does not depend on the number of ranks.

    In one process, and in evaluation, it is `nn.BatchNorm2d`; the state_dict is the same too. In training on several
    ranks all of them call it together: two all-reduces of `num_features` numbers forward, two backward. Their parts may
    be of unequal size, or empty. Gradients of the input are those of the sum of all ranks' losses; gradients of weight
    and bias are this rank's share, to be reduced like any other parameter's.

    `nn.SyncBatchNorm` does the same on accelerators, and refuses CPU tensors; this one runs wherever an all-reduce
    does, so that the tests compare it with one process.

    Source: Ioffe & Szegedy 2015 (arXiv 1502.03167), algorithm 1, over the union of the ranks' microbatches.
    """

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__(num_features, eps=eps, momentum=momentum)

    def forward(self, input: Tensor) -> Tensor:
        """Normalises (N, C, H, W) to the same shape and dtype."""
        if not (self.training and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return super().forward(input)
        self._check_input_dim(input)
        # Half precision, as autocast's convolutions give it, is too coarse to sum in.
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        over_positions = (0, 2, 3)
        count = x.new_full((1,), x.numel() // self.num_features)
        totals = _sum_over_ranks(torch.cat([x.sum(over_positions), count]))  # (C + 1,)
        mean, count = totals[:-1] / totals[-1], totals[-1].detach()
        # The mean first, then squares of what is left: E[x^2] - E[x]^2 in one pass cancels in float32.
        centred = x - mean[:, None, None]
        squares = _sum_over_ranks(centred.square().sum(over_positions))  # (C,)
        self._track(mean.detach(), squares.detach() / (count - 1))
        scale = self.weight * (squares / count + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(input.dtype)

    def _track(self, mean: Tensor, unbiased_variance: Tensor) -> None:
        """Moves the running statistics towards the batch's, as `nn.BatchNorm2d` does."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        weight = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, weight)
        self.running_var.lerp_(unbiased_variance, weight)


def has_statistics(networks: Iterable[nn.Module]) -> bool:
    """Whether there is a batch normalisation in one of the networks."""
    return any(True for _ in with_statistics(networks))


def average_over_batches(networks: Iterable[nn.Module]) -> None:
    """Makes the running statistics of batch normalisation plain means over all batches since their last reset."""
    for layer in with_statistics(networks):
        layer.momentum = None


def reset_statistics(network: nn.Module) -> None:
    """Forgets the running statistics of batch normalisation."""
    for layer in with_statistics([network]):
        layer.reset_running_stats()


def with_statistics(networks: Iterable[nn.Module]) -> Iterator[_NormBase]:
    """The networks' layers that keep running statistics of batches."""
    return (layer for network in networks for layer in network.modules() if isinstance(layer, _NormBase))


class _SumOverRanks(torch.autograd.Function):
    """Forward: the sum of every rank's tensor. Backward: the sum of every rank's gradient, since all used the sum."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _sum_over_ranks(gradient)


def _sum_over_ranks(tensor: Tensor) -> Tensor:
    total: Tensor = _SumOverRanks.apply(tensor)
    return total


_LAYERS: dict[str, Callable[[int], nn.Module]] = {
    "none": lambda channels: nn.Identity(),
    "batch": nn.BatchNorm2d,
    "group": lambda channels: nn.GroupNorm(NUM_GROUPS, channels),
    "sync_batch": GlobalBatchNorm2d,
}
