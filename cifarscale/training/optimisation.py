"""Optimizers, learning-rate schedules and the moving average of the weights."""

import copy
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.adamw import adamw

from cifarscale.config.recipe import AdamWConfig, MuonConfig, OptimizerConfig, ScheduleConfig
from cifarscale.distributed.step_values import Number
from cifarscale.errors import ConfigError

Rates = Sequence[tuple[str, float]]
"""Patterns of parameters' names, each with a factor of the learning rate."""
ONE_CYCLE_RISE = 0.3
"""Share of a one-cycle run in which the rate rises, unless the recipe says how many steps."""
ONE_CYCLE_START = 1 / 25
"""The rate that a one-cycle run starts from, as a fraction of its peak."""


def build_optimizer(module: nn.Module, config: OptimizerConfig, learning_rate: float, rates: Rates = ()) -> Optimizer:
    """The optimizer of all parameters, with weight decay on those of two and more dimensions.

    Args:
        rates: patterns of parameters' names with factors of the learning rate; the first that matches counts. The
            factors are the groups' `rate`, which is not there where it is 1.
    """
    named = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    factors = {name: next((rate for _, rate in _matching(name, rates)), 1.0) for name, _ in named}
    groups: list[dict[str, Any]] = []
    for rate in sorted(set(factors.values()), key=lambda rate: (rate != 1, rate)):
        parameters = [parameter for name, parameter in named if factors[name] == rate]
        own = {} if rate == 1 else {"rate": rate}
        groups += [
            {"params": [p for p in parameters if p.dim() > 1], "weight_decay": config.weight_decay, **own},
            {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0, **own},
        ]
    groups = [group for group in groups if group["params"]]
    if isinstance(config, AdamWConfig):
        on_gpu = next(module.parameters()).device.type == "cuda"
        return _AdamW(groups, learning_rate, config.betas, config.epsilon, fused=True, capturable=on_gpu)
    if isinstance(config, MuonConfig):
        return _Muon(groups, learning_rate, config)
    return _SGD(groups, learning_rate, config.momentum, nesterov=config.nesterov, fused=True)


def check_rates(networks: Mapping[str, nn.Module], rates: Rates) -> None:
    """Raises: ConfigError for a pattern that has no effect: that is the first to match for none of the parameters."""
    names = [name for network in networks.values() for name, _ in network.named_parameters()]
    used = {pattern for name in names for pattern, _ in _matching(name, rates)[:1]}
    if unused := [pattern for pattern, _ in rates if pattern not in used]:
        raise ConfigError(
            f"training.rates: {unused[0]!r} is no parameter's first match; parameters are {', '.join(names[:3])}, …, "
            f"{names[-1]}"
        )


def _matching(name: str, rates: Rates) -> list[tuple[str, float]]:
    return [(pattern, rate) for pattern, rate in rates if fnmatchcase(name, pattern)]


def _eager(optimizer: type[Optimizer]) -> Callable[..., Optimizer]:
    """An optimizer of torch's that is never compiled.

    torch wraps the methods of its own so that torch.compile leaves them out, and imports torch._dynamo for that at
    their first call, which is a third of the time to the first step. Ours are only called from outside.

    Nor has `step` the wrapper for profilers and hooks, which it would get unless it is marked: it takes as long as the
    update of a small network.
    """
    methods = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
    plain = {name: inspect.unwrap(getattr(optimizer, name)) for name in methods}
    step = torch.no_grad()(inspect.unwrap(optimizer.step))
    step.hooked = True
    return type(optimizer.__name__, (optimizer,), plain | {"step": step})


_AdamW, _SGD = _eager(torch.optim.AdamW), _eager(torch.optim.SGD)


class Muon(Optimizer):
    """Muon for dense kernels of convolutions, AdamW for all other parameters.

    torch's own Muon takes matrices only, one after the other. This one takes kernels (O, I, H, W) as matrices
    (O, I * H * W), and makes those of one shape orthogonal together, which on a GPU are a tenth of the launches.

    Source: Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon), with the update scaled to the usual root
        mean square of AdamW's by 0.2 * sqrt(max(O, I * H * W)): Liu et al. 2025 (arXiv 2502.16982), equation 4.
    """

    def __init__(self, groups: list[dict[str, Any]], learning_rate: float, config: MuonConfig) -> None:
        """
        Args:
            groups: as torch's optimizers take them.
        """
        parts = [
            {**group, "params": [p for p in group["params"] if _is_dense_kernel(p) == is_muon], "is_muon": is_muon}
            for group in groups
            for is_muon in (True, False)
        ]
        self._config = config
        super().__init__([part for part in parts if part["params"]], {"lr": learning_rate})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of all parameters."""
        for group in self.param_groups:
            parameters = group["params"]
            if group["is_muon"]:
                self._orthogonal(parameters, group["lr"], group["weight_decay"])
            else:
                self._adamw(parameters, group["lr"], group["weight_decay"])

    def _orthogonal(self, kernels: list[torch.Tensor], learning_rate: Number, weight_decay: float) -> None:
        momentum = self._config.momentum
        gradients = [kernel.grad for kernel in kernels if kernel.grad is not None]
        buffers = self._states(kernels, "momentum_buffer")
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
        updates = torch._foreach_lerp(gradients, buffers, momentum) if self._config.nesterov else buffers
        torch._foreach_mul_(kernels, 1 - learning_rate * weight_decay)
        shapes: dict[torch.Size, list[int]] = {}
        for i, kernel in enumerate(kernels):
            shapes.setdefault(kernel.shape, []).append(i)
        for shape, rows in shapes.items():
            orthogonal = orthogonalised(torch.stack([updates[i].flatten(1) for i in rows]))
            scale = 0.2 * max(orthogonal.shape[1:]) ** 0.5
            step = -learning_rate * scale
            for i, update in zip(rows, orthogonal.to(kernels[0].dtype), strict=True):
                if isinstance(step, torch.Tensor):
                    kernels[i].addcmul_(update.view(shape), step)
                else:
                    kernels[i].add_(update.view(shape), alpha=step)

    def _adamw(self, parameters: list[torch.Tensor], learning_rate: Number, weight_decay: float) -> None:
        for parameter in parameters:
            if "step" not in self.state[parameter]:
                self.state[parameter]["step"] = torch.zeros((), device=parameter.device)
        steps = [self.state[parameter]["step"] for parameter in parameters]
        adamw(
            parameters,
            [parameter.grad for parameter in parameters if parameter.grad is not None],
            self._states(parameters, "exp_avg"),
            self._states(parameters, "exp_avg_sq"),
            [],
            steps,
            fused=True,
            amsgrad=False,
            beta1=self._config.betas[0],
            beta2=self._config.betas[1],
            lr=learning_rate,
            weight_decay=weight_decay,
            eps=self._config.epsilon,
            maximize=False,
        )

    def _states(self, parameters: list[torch.Tensor], name: str) -> list[torch.Tensor]:
        """A state of each parameter, of its shape, that begins as zeros."""
        states = [self.state[parameter] for parameter in parameters]
        for state, parameter in zip(states, parameters, strict=True):
            if name not in state:
                state[name] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return [state[name] for state in states]


def _is_dense_kernel(parameter: torch.Tensor) -> bool:
    """Whether it is a convolution's kernel that mixes channels: a depthwise one is many small ones, and no matrix."""
    return parameter.dim() == 4 and parameter.shape[1] > 1


def orthogonalised(matrices: torch.Tensor) -> torch.Tensor:
    """The nearest semi-orthogonal matrices, roughly: singular values between 0.7 and 1.2; (n, A, B) bfloat16.

    Source: Jordan et al. 2024: five steps of a quintic Newton-Schulz iteration, in bfloat16.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices.bfloat16()
    if is_tall := x.shape[1] > x.shape[2]:
        x = x.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x


_Muon = _eager(Muon)


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
        """
        Args:
            network: whose weights are averaged.
        """
        self.network = copy.deepcopy(network).requires_grad_(False)
        self._decay = decay
        self._weights = [_places(each, "_parameters") for each in (self.network, network)]
        self._buffers = [_places(each, "_buffers") for each in (self.network, network)]

    def weight(self, step: int) -> float:
        """That of the weights after optimisation step `step`, in the average."""
        return 1 - min(self._decay, (1 + step) / (10 + step))

    @torch.no_grad()
    def update(self, weight: Number) -> None:
        """Takes in the weights as they are."""
        mine, theirs = ([table[name] for table, name in places] for places in self._weights)
        averages, weights = ([each for each in tensors if each.is_floating_point()] for tensors in (mine, theirs))
        if isinstance(weight, torch.Tensor):
            torch._foreach_lerp_(averages, weights, [weight.to(each.dtype) for each in averages])
        else:
            torch._foreach_lerp_(averages, weights, weight)
        mine, theirs = ([table[name] for table, name in places] for places in self._buffers)
        if mine:
            torch._foreach_copy_(mine, theirs)


def _places(network: nn.Module, kind: Literal["_parameters", "_buffers"]) -> list[tuple[dict[str, torch.Tensor], str]]:
    """Where a network's parameters or buffers are found, each once, whatever is assigned to their names later.

    To walk through its modules for them takes several times as long as to average what is found there.
    """
    tables: list[dict[str, torch.Tensor]] = [getattr(module, kind) for module in network.modules()]
    found = {id(table[name]): (table, name) for table in tables for name in table if table[name] is not None}
    return list(found.values())
