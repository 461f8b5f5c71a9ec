"""Schedules, optimizers and the moving average, against torch's own and plain loops."""

import copy
import math

import pytest
import torch
from torch import nn

from cifarscale.config.recipe import AdamWConfig, MuonConfig, ScheduleConfig, SGDConfig
from cifarscale.errors import ConfigError
from cifarscale.training.optimisation import (
    MovingAverage,
    build_optimizer,
    check_rates,
    learning_rate_factor,
    orthogonalised,
)

STEPS = 50


def factors(**values: object) -> list[float]:
    config = ScheduleConfig.model_validate(values)
    return [learning_rate_factor(config, step, STEPS) for step in range(STEPS)]


def rates(make: type, **options: object) -> list[float]:
    """What a scheduler of torch makes of a peak of 1, step by step."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = make(optimizer, **options)
    seen = [optimizer.param_groups[0]["lr"]]
    for _ in range(STEPS - 1):
        optimizer.step()
        schedule.step()
        seen.append(optimizer.param_groups[0]["lr"])
    return seen


@pytest.mark.parametrize("final", [0.0, 0.01])
def test_cosine_is_cosine_annealing(final: float) -> None:
    expected = rates(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=STEPS, eta_min=final)
    assert factors(name="cosine", final_fraction=final) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("warmup", [0, 10, 20])
@pytest.mark.parametrize("final", [1e-9, 0.01])
def test_one_cycle_is_one_cycle_lr_with_cosine_sides(warmup: int, final: float) -> None:
    expected = rates(
        torch.optim.lr_scheduler.OneCycleLR,
        max_lr=1.0,
        total_steps=STEPS,
        pct_start=warmup / STEPS or 0.3,
        div_factor=25,
        final_div_factor=1 / 25 / final,
    )
    ours = factors(name="one_cycle", warmup_steps=warmup, final_fraction=final)
    assert ours == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", ["constant", "cosine"])
def test_warm_up_is_linear_and_precedes_the_shape(name: str) -> None:
    ours = factors(name=name, warmup_steps=5)
    assert ours[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert ours[5] == 1.0


def test_warm_up_is_linear_lr() -> None:
    expected = rates(torch.optim.lr_scheduler.LinearLR, start_factor=1 / 8, total_iters=7)
    assert factors(name="constant", warmup_steps=8) == pytest.approx(expected)


def test_constant_stays() -> None:
    assert factors(name="constant") == [1.0] * STEPS


@pytest.mark.parametrize("name", ["constant", "cosine", "one_cycle"])
@pytest.mark.parametrize("max_steps", [1, 2, 3, 7])
def test_factors_of_short_runs_are_fractions_of_the_peak(name: str, max_steps: int) -> None:
    config = ScheduleConfig.model_validate({"name": name})
    values = [learning_rate_factor(config, step, max_steps) for step in range(max_steps)]
    assert all(math.isfinite(value) and 0 <= value <= 1 for value in values)


def test_one_cycle_ends_at_the_final_fraction_in_the_last_step() -> None:
    assert factors(name="one_cycle", final_fraction=0.25)[-1] == pytest.approx(0.25)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 5))


def train(module: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 5) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        optimizer.zero_grad()
        module(torch.randn(6, 3, 8, 8, generator=generator)).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize(
    "config", [AdamWConfig(weight_decay=0.1), SGDConfig(weight_decay=0.1), MuonConfig(weight_decay=0.1)]
)
def test_weight_decay_is_applied_to_weights_of_two_and_more_dimensions(
    config: AdamWConfig | SGDConfig | MuonConfig,
) -> None:
    module = network()
    optimizer = build_optimizer(module, config, 1e-3)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert len(decay) == len(list(module.parameters()))
    for name, parameter in module.named_parameters():
        decayed = name in ("0.weight", "3.weight")
        assert decay[id(parameter)] == (0.1 if decayed else 0.0), name


def test_adamw_without_weight_decay_is_adam() -> None:
    ours, theirs = network(), network()
    train(ours, build_optimizer(ours, AdamWConfig(), 1e-3))
    train(theirs, torch.optim.Adam(theirs.parameters(), lr=1e-3, fused=True))
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_sgd_is_nesterov_momentum() -> None:
    ours, theirs = network(), network()
    train(ours, build_optimizer(ours, SGDConfig(momentum=0.8), 1e-2))
    train(theirs, torch.optim.SGD(theirs.parameters(), lr=1e-2, momentum=0.8, nesterov=True))
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_is_that_of_torch_for_kernels_and_adamw_for_the_rest(nesterov: bool) -> None:
    ours, theirs = network(), network()
    config = MuonConfig(momentum=0.9, nesterov=nesterov, weight_decay=0.1)
    train(ours, build_optimizer(ours, config, 1e-2))
    kernel = nn.Parameter(theirs[0].weight.detach().flatten(1))  # type: ignore[operator, arg-type]
    muon = torch.optim.Muon(
        [kernel], lr=1e-2, weight_decay=0.1, momentum=0.9, nesterov=nesterov, adjust_lr_fn="match_rms_adamw"
    )
    groups = [
        {"params": [theirs[3].weight], "weight_decay": 0.1},
        {"params": [p for p in theirs.parameters() if p.dim() == 1], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=1e-2, fused=True)

    class Both:
        def zero_grad(self) -> None:
            theirs.zero_grad()

        def step(self) -> None:
            kernel.grad = theirs[0].weight.grad.flatten(1)  # type: ignore[operator, union-attr]
            muon.step()
            adamw.step()

    train(theirs, Both())  # type: ignore[arg-type]
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-2, atol=1e-4)  # bfloat16, in another order


@pytest.mark.parametrize("shape", [(3, 8, 72), (2, 30, 10), (1, 1, 5)])
def test_orthogonalised_matrices_have_singular_values_near_one(shape: tuple[int, ...]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalised(matrices).float())
    assert values.min() > 0.6
    assert values.max() < 1.3
    alone = torch.cat([orthogonalised(matrix[None]) for matrix in matrices])
    torch.testing.assert_close(orthogonalised(matrices), alone, rtol=0.02, atol=0.02)


def test_muon_takes_no_depthwise_kernels_and_goes_on_from_its_state() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, groups=4), nn.Flatten(), nn.Linear(64, 5))
    twin = copy.deepcopy(module)
    optimizer = build_optimizer(module, MuonConfig(), 1e-2)
    kernels = [p for group in optimizer.param_groups for p in group["params"] if group["is_muon"]]
    assert len(kernels) == 1
    assert kernels[0] is module[0].weight
    train(module, optimizer, steps=2)
    twin.load_state_dict(module.state_dict())
    again = build_optimizer(twin, MuonConfig(), 1e-2)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(module, optimizer, steps=2)
    train(twin, again, steps=2)
    for mine, other in zip(module.parameters(), twin.parameters(), strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("config", [AdamWConfig(weight_decay=0.1), SGDConfig(), MuonConfig()])
def test_rates_are_factors_for_the_parameters_that_match_first(config: AdamWConfig | SGDConfig | MuonConfig) -> None:
    module = network()
    rates = [("3.*", 2.0), ("*.bias", 0.0)]
    optimizer = build_optimizer(module, config, 1e-2, rates)
    factors = {id(p): group.get("rate", 1.0) for group in optimizer.param_groups for p in group["params"]}
    by_name = {name: factors[id(p)] for name, p in module.named_parameters()}
    assert by_name == {
        "0.weight": 1.0,
        "0.bias": 0.0,
        "1.weight": 1.0,
        "1.bias": 0.0,
        "3.weight": 2.0,
        "3.bias": 2.0,
    }
    check_rates({"network": module}, rates)
    for unused in ("3.weight", "head"):  # the first is matched by an earlier pattern
        with pytest.raises(ConfigError, match=f"training.rates: '{unused}' is no parameter's first match"):
            check_rates({"network": module}, [*rates, (unused, 5.0)])


def test_parameters_that_are_frozen_are_left_alone() -> None:
    module = network()
    module[0].requires_grad_(False)
    optimizer = build_optimizer(module, AdamWConfig(), 1e-3)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 4


def test_moving_average_is_the_plain_loop() -> None:
    module = network()
    average = MovingAverage(module, 0.6)
    expected = [parameter.detach().double().clone() for parameter in module.parameters()]
    optimizer = build_optimizer(module, SGDConfig(), 0.1)
    for step in range(1, 13):
        train(module, optimizer, steps=1)
        average.update(average.weight(step))
        decay = min(0.6, (1 + step) / (10 + step))
        for mean, parameter in zip(expected, module.parameters(), strict=True):
            mean.mul_(decay).add_(parameter.detach().double(), alpha=1 - decay)
    for mine, mean in zip(average.network.parameters(), expected, strict=True):
        torch.testing.assert_close(mine.double(), mean, rtol=1e-5, atol=1e-7)


def test_moving_average_knows_tied_weights_and_buffers_that_are_assigned_anew() -> None:
    module = nn.Sequential(nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4), nn.Linear(4, 4, bias=False))
    module[2].weight = module[0].weight
    average = MovingAverage(module, 0.9)
    before = module[0].weight.detach().clone()
    with torch.no_grad():
        module[0].weight.add_(1)
    module[1].running_mean = torch.full((4,), 5.0)
    average.update(average.weight(1))
    torch.testing.assert_close(average.network[2].weight, before + 1 - 2 / 11)  # taken in once
    assert average.network[2].weight is average.network[0].weight
    assert torch.equal(average.network[1].running_mean, module[1].running_mean)


def test_moving_average_takes_buffers_over_and_leaves_the_network_alone() -> None:
    module = network()
    average = MovingAverage(module, 0.9)
    train(module, build_optimizer(module, SGDConfig(), 0.1))
    before = copy.deepcopy(module.state_dict())
    average.update(average.weight(1))
    for key, value in module.state_dict().items():
        assert torch.equal(value, before[key]), key
    for mine, theirs in zip(average.network.buffers(), module.buffers(), strict=True):
        assert torch.equal(mine, theirs)
        assert mine.data_ptr() != theirs.data_ptr()
    assert not any(parameter.requires_grad for parameter in average.network.parameters())


@pytest.mark.parametrize(
    "config",
    [AdamWConfig(weight_decay=0.1), SGDConfig(weight_decay=0.1, nesterov=True), MuonConfig(weight_decay=0.1)],
)
def test_numbers_may_be_tensors_as_a_gpu_wants_them(config: AdamWConfig | SGDConfig | MuonConfig) -> None:
    modules = []
    for number in (float, torch.tensor):
        module = network()
        optimizer, average = build_optimizer(module, config, 1.0), MovingAverage(module, 0.9)
        for rate in (0.125, 0.03125):
            for group in optimizer.param_groups:
                group["lr"] = number(rate)
            train(module, optimizer, steps=1)
            average.update(number(0.25))
        modules += [module, average.network]
    for of_floats, of_tensors in (modules[0::2], modules[1::2]):
        for one, other in zip(of_floats.parameters(), of_tensors.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)
