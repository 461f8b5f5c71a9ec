"""What a network costs, and a training: parameters, and multiply-accumulates of a sample."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cifarscale.config.recipe import BudgetConfig
from cifarscale.errors import ConfigError


@dataclass(frozen=True)
class ModelSummary:
    """One line of the table of models."""

    name: str
    options: str
    """Those that differ from the defaults, as KEY=VALUE."""
    description: str
    """In a few words."""
    parameters: int | None
    """Trainable parameters; None where that is not known."""
    macs: int | None
    """Multiply-accumulates of one forward pass on one sample; None where that is not known."""


@dataclass(frozen=True)
class Cost:
    """What a stage of a training costs.

    Attributes:
        parameters: of all networks that are trained.
        macs: multiply-accumulates of what is used in the end, for one sample; None if they are not known.
        training_macs: those of an optimisation step for each sample of its batch; None if they are not known.
    """

    parameters: int
    macs: int | None = None
    training_macs: int | None = None


BACKWARD = 2
"""Multiply-accumulates of a backward pass for each of the forward pass: the gradients of inputs and of weights."""


def check_budget(parameters: int, budget: BudgetConfig) -> None:
    """Raises: ConfigError if networks with so many parameters exceed the budget."""
    if 0 < budget.max_parameters < parameters:
        raise ConfigError(
            f"the networks have {parameters:,} parameters, and budget.max_parameters = {budget.max_parameters} allows "
            "no more than that: make them smaller, or raise the budget"
        )


def count_parameters(module: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def count_macs(module: nn.Module, input_shape: tuple[int, ...]) -> int:
    """Multiply-accumulates of one forward pass on one sample, in convolutions, matrix products and attention.

    The module is left as it was: a copy on the meta device runs in its place, and computes nothing.

    Args:
        module: takes one float32 tensor (N, *input_shape).
        input_shape: shape of a sample, without the batch.
    """
    outline = copy.deepcopy(module).to("meta").eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        outline(torch.empty(1, *input_shape, device="meta"))
    return int(counter.get_total_flops()) // 2


def summarise(
    name: str, options: dict[str, Any], description: str, module: nn.Module, input_shape: tuple[int, ...]
) -> ModelSummary:
    """The line of the table for one network."""
    changed = " ".join(f"{option}={str(value).lower()}" for option, value in options.items())
    return ModelSummary(name, changed, description, count_parameters(module), count_macs(module, input_shape))
