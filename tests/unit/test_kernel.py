"""The kernel distance: unbiased, with an honest standard error, and the same on any number of ranks."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from cifarscale.distributed.cpu_pool import CpuPool
from cifarscale.distributed.group import Group
from cifarscale.distributed.ranks import Ranks
from cifarscale.errors import EvaluationError
from cifarscale.evaluation.kernel import KernelDistance, kernel_distance, squared_discrepancy


def normals(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def distance(real: torch.Tensor, generated: torch.Tensor, num_cores: int = 1) -> KernelDistance:
    return kernel_distance(real, generated, Group(Ranks()), CpuPool(one_core_each=True, num_cores=num_cores))


def naive(x: torch.Tensor, y: torch.Tensor) -> float:
    """The definition, one pair after the other."""
    size, dim = x.shape

    def kernel(p: torch.Tensor, q: torch.Tensor) -> float:
        return (float(p @ q) / dim + 1) ** 3

    pairs = [(i, j) for i in range(size) for j in range(size)]
    within = sum(kernel(x[i], x[j]) + kernel(y[i], y[j]) for i, j in pairs if i != j) / (size * (size - 1))
    return within - 2 * sum(kernel(x[i], y[j]) for i, j in pairs) / size**2


def test_it_is_the_mean_of_the_definition_over_disjoint_blocks_in_order() -> None:
    real, generated = normals(60, 5, seed=1), normals(67, 5, seed=2) + 0.5
    blocks = [naive(real[i : i + 6], generated[i : i + 6]) for i in range(0, 60, 6)]
    result = distance(real, generated)
    assert result.num_blocks == 10
    assert result.distance == pytest.approx(np.mean(blocks), rel=1e-12)
    assert result.standard_error == pytest.approx(np.std(blocks, ddof=1) / np.sqrt(10), rel=1e-12)


@pytest.mark.parametrize(
    ("num_real", "num_generated", "block_size", "num_blocks"),
    [(20, 20, 2, 10), (29, 1000, 2, 14), (105, 99, 9, 11), (10_000, 12_999, 1000, 10), (12_500, 12_500, 1000, 12)],
)
def test_blocks_are_as_large_as_leaves_ten_of_them(
    num_real: int, num_generated: int, block_size: int, num_blocks: int
) -> None:
    real, generated = normals(num_real, 1, seed=1), normals(num_generated, 1, seed=2)
    result = distance(real, generated)
    assert result.num_blocks == num_blocks
    used = block_size * num_blocks
    parts = zip(real[:used].split(block_size), generated[:used].split(block_size), strict=True)
    expected = torch.stack([squared_discrepancy(x, y) for x, y in parts])
    assert result.distance == pytest.approx(float(expected.mean()), rel=1e-12)


def test_it_is_unbiased_where_the_sets_are_alike() -> None:
    found = torch.tensor([float(squared_discrepancy(*normals(2, 10, 4, seed=seed))) for seed in range(3000)])
    assert abs(float(found.mean())) < 3 * float(found.std()) / len(found) ** 0.5
    assert (found < 0).float().mean() > 0.3


def test_it_is_unbiased_where_the_distance_is_known() -> None:
    """In one dimension (xy + 1)³ compares moments: MMD² = 3 Δm1² + 3 Δm2² + Δm3², here of N(0, 1) and N(1, 1)."""
    found = torch.tensor(
        [float(squared_discrepancy(normals(10, 1, seed=s), 1 + normals(10, 1, seed=s + 10_000))) for s in range(3000)]
    )
    exact = 3 * (1 - 0) ** 2 + 3 * (2 - 1) ** 2 + (4 - 0) ** 2
    assert float(found.mean()) == pytest.approx(exact, abs=3 * float(found.std()) / len(found) ** 0.5)


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_the_standard_error_is_that_of_repeated_draws(shift: float) -> None:
    results = [distance(normals(200, 4, seed=s), shift + normals(200, 4, seed=s + 10_000)) for s in range(300)]
    spread = np.std([result.distance for result in results], ddof=1)
    stated = np.sqrt(np.mean([result.standard_error**2 for result in results]))
    assert stated == pytest.approx(spread, rel=0.15)  # 300 draws know their spread to 4 %


def test_it_grows_with_the_difference() -> None:
    real, generated = normals(1000, 8, seed=1), normals(1000, 8, seed=2)
    found = [distance(real, generated + shift).distance for shift in (0.1, 0.3, 1.0)]
    assert found == sorted(found)
    assert distance(real, generated + 1).standard_error < found[-1] / 10


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 16])
def test_every_bit_is_the_same_on_any_number_of_ranks_and_cores(
    over_ranks: Callable[..., list[Any]], world_size: int
) -> None:
    real, generated = normals(500, 33, seed=1).float(), normals(620, 33, seed=2).float()

    def on_rank(group: Any) -> KernelDistance:
        result = kernel_distance(real, generated, group, CpuPool(one_core_each=True, num_cores=2))
        assert len(group.sums) == 1
        return result

    assert set(over_ranks(world_size, on_rank)) == {distance(real, generated)}


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_features_of_any_dtype_are_compared_in_double_precision(dtype: torch.dtype) -> None:
    real, generated = normals(100, 8, seed=1).to(dtype), normals(100, 8, seed=2).to(dtype)
    assert distance(real, generated) == distance(real.double(), generated.double())


@pytest.mark.parametrize(("num_real", "num_generated", "named"), [(19, 30, "19 real"), (30, 0, "0 generated")])
def test_too_few_samples_are_refused(num_real: int, num_generated: int, named: str) -> None:
    message = f"^the kernel distance needs at least 20 samples of each set, and there are {named} ones. Give more$"
    with pytest.raises(EvaluationError, match=message):
        distance(normals(num_real, 3, seed=1), normals(num_generated, 3, seed=2))


def test_features_of_other_networks_are_refused() -> None:
    with pytest.raises(EvaluationError, match=r"^the real samples have 3 features and the generated ones 4, and only"):
        distance(normals(20, 3, seed=1), normals(20, 4, seed=2))


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_features_that_are_not_finite_are_refused(value: float) -> None:
    generated = normals(20, 3, seed=2)
    generated[4, 1] = generated[4, 2] = generated[7, 0] = value
    with pytest.raises(
        EvaluationError, match=r"^2 of 20 generated samples have features that are not finite: "
    ) as caught:
        distance(normals(20, 3, seed=1), generated)
    assert "\n" not in str(caught.value)
