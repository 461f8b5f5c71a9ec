"""Precision and recall: those of a brute force, what the paper means by them, and the same on any number of ranks."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from cifarscale.distributed.cpu_pool import CpuPool
from cifarscale.distributed.group import Group
from cifarscale.distributed.ranks import Ranks
from cifarscale.errors import EvaluationError
from cifarscale.evaluation import neighbours
from cifarscale.evaluation.neighbours import PrecisionRecall, precision_recall


def normals(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def found(real: torch.Tensor, generated: torch.Tensor, num_neighbours: int = 3) -> PrecisionRecall:
    return precision_recall(real, generated, Group(Ranks()), CpuPool(one_core_each=True, num_cores=1), num_neighbours)


def brute_force(real: torch.Tensor, generated: torch.Tensor, num_neighbours: int) -> tuple[float, float]:
    def share_within(points: torch.Tensor, others: torch.Tensor) -> float:
        radii = np.sort(cdist(others, others), axis=1)[:, num_neighbours]  # the first is the point itself
        return float((cdist(points, others) <= radii).any(1).mean())

    return share_within(generated, real), share_within(real, generated)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "_BLOCK_ROWS", 37)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("num_neighbours", [1, 3, 5])
@pytest.mark.parametrize("dim", [1, 2, 16, 64])
@pytest.mark.parametrize(("num_real", "num_generated"), [(300, 200), (37, 75), (6, 6)])
def test_it_is_what_a_brute_force_finds(num_real: int, num_generated: int, dim: int, num_neighbours: int) -> None:
    real, generated = normals(num_real, dim, seed=1), 1.2 * normals(num_generated, dim, seed=2) + 0.3
    result = found(real, generated, num_neighbours)
    assert (result.precision, result.recall) == brute_force(real, generated, num_neighbours)
    assert result.num_neighbours == num_neighbours


def test_identical_sets_have_1_and_1() -> None:
    real = normals(300, 8, seed=1)
    assert found(real, real) == found(real, real.flip(0)) == PrecisionRecall(1.0, 1.0, 3)


def test_sets_far_apart_have_0_and_0() -> None:
    assert found(normals(100, 8, seed=1), normals(100, 8, seed=2) + 100) == PrecisionRecall(0.0, 0.0, 3)


def test_sets_of_one_distribution_have_high_figures_and_swapping_them_swaps_the_figures() -> None:
    real, generated = normals(800, 4, seed=1), normals(800, 4, seed=2)
    result, swapped = found(real, generated), found(generated, real)
    assert min(result.precision, result.recall) > 0.9
    assert (swapped.precision, swapped.recall) == (result.recall, result.precision)


def two_modes(num: int, seed: int) -> torch.Tensor:
    """Half of the samples around -10, half around +10."""
    signs = torch.arange(num).remainder(2).mul(2).sub(1).unsqueeze(1)
    return normals(num, 4, seed=seed) + 10 * signs


def test_a_mode_that_is_dropped_costs_recall_and_not_precision() -> None:
    result = found(two_modes(800, seed=1), two_modes(1600, seed=2)[::2])
    assert result.precision > 0.9
    assert 0.4 < result.recall < 0.5


def test_samples_of_no_mode_cost_precision_and_not_recall() -> None:
    generated = torch.cat([two_modes(800, seed=2), normals(800, 4, seed=3)])
    result = found(two_modes(800, seed=1), generated)
    assert 0.4 < result.precision < 0.5
    assert result.recall > 0.9


def test_one_good_sample_over_and_over_is_precise_and_recalls_nothing() -> None:
    """A point is not its own neighbour, but its copies are: all radii are 0, and no real sample lies within them."""
    real = normals(300, 8, seed=1).abs() + 1e3
    assert found(real, real.mean(0).expand(50, 8)) == PrecisionRecall(1.0, 0.0, 3)
    copies = real[:1].expand(50, 8)
    assert found(real, copies) == PrecisionRecall(1.0, 1 / 300, 3)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("dim", [1, 8, 500])
def test_copies_are_at_distance_0_wherever_they_stand(dim: int) -> None:
    """Four copies of each have radius 0, which holds the copies in the other set, and they alone."""
    points = 100 + normals(40, dim, seed=1).float()
    real, generated = points.repeat(4, 1), points[:30].repeat_interleave(5, 0)
    assert found(real, generated) == PrecisionRecall(1.0, 0.75, 3)
    assert found(real, generated * (1 + 1e-3)) == PrecisionRecall(0.0, 0.0, 3)


def test_a_point_is_told_from_its_copies_by_its_row_and_not_by_its_distance() -> None:
    """The copy is the nearest neighbour, so with k = 2 the radius is 1; were both left out, it would be 2."""
    real = torch.tensor([[0.0], [0.0], [1.0], [3.0]])
    outside, within = torch.tensor([[-1.5]]).repeat(3, 1), torch.tensor([[-0.5]]).repeat(3, 1)
    assert found(real, outside, 2).precision == 0
    assert found(real, within, 2).precision == 1


def test_a_mean_far_above_the_spread_costs_no_digits() -> None:
    real, generated = normals(200, 16, seed=1), 1.2 * normals(200, 16, seed=2)
    result = found(real, generated)
    assert found(real + 1e7, generated + 1e7) == result
    assert 0 < result.precision < 1


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 16])
def test_it_is_the_same_on_any_number_of_ranks_and_cores(over_ranks: Callable[..., list[Any]], world_size: int) -> None:
    real, generated = normals(300, 16, seed=1), 1.2 * normals(200, 16, seed=2)
    tables: dict[int, list[torch.Tensor]] = {}

    def on_rank(group: Any) -> PrecisionRecall:
        result = precision_recall(real, generated, group, CpuPool(one_core_each=True, num_cores=2))
        tables[group.ranks.rank] = group.sums
        return result

    def alone(group: Any) -> list[torch.Tensor]:
        precision_recall(real, generated, group, CpuPool(one_core_each=True, num_cores=1))
        return list(group.sums)

    assert set(over_ranks(world_size, on_rank)) == {found(real, generated)}
    (expected,) = over_ranks(1, alone)
    for i, table in enumerate(expected):  # the radii and the hits, not only the shares that come of them
        assert torch.equal(sum(mine[i] for mine in tables.values()), table)


def test_no_more_distances_are_in_memory_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "_BLOCK_DISTANCES", 1000)
    sizes = []
    original = neighbours._squared_distances

    def watched(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        sizes.append(len(x) * len(y))
        return original(x, y)

    monkeypatch.setattr(neighbours, "_squared_distances", watched)
    real, generated = normals(300, 4, seed=1), normals(101, 4, seed=2)
    result = found(real, generated)
    assert max(sizes) <= 1000
    assert sum(sizes) == 300 * 300 + 101 * 101 + 101 * 300
    assert (result.precision, result.recall) == brute_force(real, generated, 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_features_of_any_dtype_are_compared_in_double_precision(dtype: torch.dtype) -> None:
    real, generated = normals(100, 8, seed=1).to(dtype), normals(100, 8, seed=2).to(dtype)
    assert found(real, generated) == found(real.double(), generated.double())


@pytest.mark.parametrize(("num_real", "num_generated", "named"), [(3, 9, "3 real"), (9, 0, "0 generated")])
def test_too_few_samples_are_refused(num_real: int, num_generated: int, named: str) -> None:
    message = (
        f"^precision and recall with 3 neighbours needs at least 4 samples of each set, and there are {named} ones. "
    )
    with pytest.raises(EvaluationError, match=message):
        found(normals(num_real, 2, seed=1), normals(num_generated, 2, seed=2))
    found(normals(4, 2, seed=1), normals(4, 2, seed=2))


def test_features_of_other_networks_are_refused() -> None:
    with pytest.raises(EvaluationError, match=r"^the real samples have 3 features and the generated ones 4, and only"):
        found(normals(20, 3, seed=1), normals(20, 4, seed=2))


def test_features_that_are_not_finite_are_refused() -> None:
    real = normals(20, 3, seed=2)
    real[4, 1] = torch.nan
    with pytest.raises(EvaluationError, match=r"^1 of 20 real samples have features that are not finite: "):
        found(real, normals(20, 3, seed=1))
