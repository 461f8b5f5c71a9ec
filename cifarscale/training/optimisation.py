"""Optimizers, learning-rate schedules and the moving average of the weights."""

import copy
import inspect
import math
from collections.abc import Callable

import torch
from torch import nn
from torch.optim import Optimizer

from cifarscale.config.recipe import AdamWConfig, OptimizerConfig, ScheduleConfig

ONE_CYCLE_RISE = 0.3
"""Share of a one-cycle run in which the rate rises, unless the recipe says how many steps."""
ONE_CYCLE_START = 1 / 25
"""The rate that a one-cycle run starts from, as a fraction of its peak."""


def build_optimizer(module: nn.Module, config: OptimizerConfig, learning_rate: float) -> Optimizer:
    """The optimizer of all parameters, with weight decay on those of two and more dimensions."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if isinstance(config, AdamWConfig):
        return _AdamW(groups, learning_rate, config.betas, config.epsilon, fused=True)
    return _SGD(groups, learning_rate, config.momentum, nesterov=config.nesterov, fused=True)


def _eager(optimizer: type[Optimizer]) -> Callable[..., Optimizer]:
    """An optimizer of torch's that is never compiled.

    torch wraps the methods of its own so that torch.compile leaves them out, and imports torch._dynamo for that at
    their first call, which is a third of the time to the first step. Ours are only called from outside.
    """
    methods = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
    plain = {name: inspect.unwrap(getattr(optimizer, name)) for name in methods}
    return type(optimizer.__name__, (optimizer,), plain | {"step": torch.no_grad()(inspect.unwrap(optimizer.step))})


_AdamW, _SGD = _eager(torch.optim.AdamW), _eager(torch.optim.SGD)


def learning_rate_factor(config: ScheduleConfig, step: int, max_steps: int) -> float:
    """What the peak rate is multiplied by in optimisation step `step` (0 is the first)."""
    warmup, final = config.warmup_steps, config.final_fraction
    if config.name == "one_cycle":
        rise = (warmup or ONE_CYCLE_RISE * max_steps) - 1
        if step <= rise:
            return _cosine(ONE_CYCLE_START, 1.0, step / max(rise, 1))
        return _cosine(1.0, final, (step - rise) / max(max_steps - 1 - rise, 1))
    if step < warmup:
        return (step + 1) / warmup
    if config.name == "cosine":
        return _cosine(1.0, final, (step - warmup) / max(max_steps - warmup, 1))
    return 1.0


def _cosine(start: float, end: float, part: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * part)) / 2


def clip_gradient(network: nn.Module, largest: float) -> torch.Tensor:
    """The Euclidean norm of a network's gradient, which is then scaled down to at most `largest`; 0 leaves it alone."""
    parameters = list(network.parameters())
    norm = nn.utils.get_total_norm([each.grad for each in parameters if each.grad is not None])
    if largest:
        nn.utils.clip_grads_with_norm_(parameters, largest, norm)
    return norm


class MovingAverage:
    """Exponential moving average of a network's weights; buffers are taken over as they are.

    The decay starts at 0 and grows as (1 + k) / (10 + k) up to the given one, so that the first random weights are
    soon forgotten.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network).requires_grad_(False)
        self._decay = decay

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Takes in the weights after optimisation step `step`."""
        weight = 1 - min(self._decay, (1 + step) / (10 + step))
        mine: list[torch.Tensor] = list(self.network.parameters())
        theirs: list[torch.Tensor] = list(network.parameters())
        torch._foreach_lerp_(mine, theirs, weight)
        for average, buffer in zip(self.network.buffers(), network.buffers(), strict=True):
            average.copy_(buffer)
