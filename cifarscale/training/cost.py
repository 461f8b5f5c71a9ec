"""What a network costs, and a training: parameters, and multiply-accumulates of a sample."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

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
        macs: multiply-accumulates of what is used in the end, for one sample; None if they are not known.
        training_macs: those of an optimisation step, for each sample of the global batch; None if they are not known.
    """

    macs: int | None
    training_macs: int | None


BACKWARD = 2
"""Multiply-accumulates of a backward pass for each of the forward pass: the gradients of inputs and of weights."""


def check_budget(networks: Mapping[str, nn.Module], budget: BudgetConfig) -> None:
    """Raises: ConfigError if the networks that are trained exceed the budget."""
    parameters = sum(map(count_parameters, networks.values()))
    if 0 < budget.max_parameters < parameters:
        raise ConfigError(
            f"the networks have {parameters:,} parameters, and budget.max_parameters = {budget.max_parameters} allows "
            "no more than that: make them smaller, or raise the budget"
        )


def count_parameters(module: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def count_macs(module: nn.Module, *input_shapes: tuple[int, ...], with_labels: bool = False) -> int:
    """Multiply-accumulates of one forward pass on one sample, in convolutions, matrix products and attention.

    The module is left as it was, and so are torch's generators: a copy on the CPU runs in its place; one on the meta
    device stays there, but torch's kernels for it import torch._dynamo, which takes longer than all of this.

    Args:
        module: takes float32 tensors (N, *input_shape).
        input_shapes: of a sample, without the batch.
        with_labels: whether it takes labels (N,) int64 after those.
    """
    device = torch.device("meta" if any(each.is_meta for each in module.parameters()) else "cpu")
    mine = copy.deepcopy(module).to(device).eval()
    labels = [torch.zeros(1, dtype=torch.int64, device=device)] if with_labels else []
    with torch.random.fork_rng(devices=[]), torch.no_grad(), _without_fast_path(), _FlopCounter() as counter:
        mine(*(torch.zeros(1, *shape, device=device) for shape in input_shapes), *labels)
    return int(counter.flops) // 2


@contextmanager
def _without_fast_path() -> Iterator[None]:
    """Layers of attention as several operations, each with a formula, and not as one that has none."""
    was = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(was)


class _FlopCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up what torch's own formulas say of the operations in its context.

    torch's FlopCounterMode wraps itself for torch.compile, and imports torch._dynamo for that.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        formula = flop_registry.get(func.overloadpacket)
        if formula is None:
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        if formula is not None:
            self.flops += int(formula(*args, **kwargs, out_val=result))
        return result


def summarise(
    name: str, options: dict[str, Any], description: str, module: nn.Module, *input_shapes: tuple[int, ...]
) -> ModelSummary:
    """The line of the table for one network."""
    changed = " ".join(f"{option}={str(value).lower()}" for option, value in options.items())
    return ModelSummary(name, changed, description, count_parameters(module), count_macs(module, *input_shapes))
