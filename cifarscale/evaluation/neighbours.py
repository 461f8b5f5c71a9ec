"""Precision and recall of generated samples: how many look real, and how much of the real variety they cover."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from cifarscale.distributed.cpu_pool import CpuPool
from cifarscale.distributed.group import Group
from cifarscale.evaluation.moments import require_features

_BLOCK_ROWS = 1000
_BLOCK_DISTANCES = 10_000_000
"""At most so many distances are in memory at once on a core, 80 MB, and a few times that while they are computed."""
_EPS = torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class PrecisionRecall:
    """Shares from 0 to 1.

    Attributes:
        precision: of the generated samples that lie within the manifold of the real ones.
        recall: of the real samples that lie within the manifold of the generated ones.
        num_neighbours: k, which defines a manifold: the balls around its samples that reach their k-th neighbour.
    """

    precision: float
    recall: float
    num_neighbours: int


def precision_recall(
    real: torch.Tensor, generated: torch.Tensor, group: Group, pool: CpuPool, num_neighbours: int = 3
) -> PrecisionRecall:
    """Improved precision and recall of generated samples.

    Both depend on the sizes of the sets; compare only values with equal sizes (50,000 of each in the paper). All
    ranks pass the same sets and share the rows; no bit depends on the number of ranks if each stays on one core.

    Args:
        real, generated: (n, d) and (m, d), of any float dtype. Distances are computed in float64, of copies of both.
    Raises: EvaluationError if a set has no more than num_neighbours samples, a value that is not finite, or another d.
    Source: Kynkäänniemi et al. 2019 (arXiv 1904.06991), section 2.
    """
    require_features(real, generated, num_neighbours + 1, f"precision and recall with {num_neighbours} neighbours")
    real, generated = _centred(real, generated)
    real_radii = _squared_radii(real, num_neighbours, group, pool)
    generated_radii = _squared_radii(generated, num_neighbours, group, pool)

    @torch.inference_mode()
    def hits(rows: slice) -> tuple[slice, torch.Tensor, torch.Tensor]:
        """The rows, how many real balls each is in (b,), and in how many of their balls each real sample is (n,)."""
        distances = _squared_distances(generated[rows], real)
        in_real = (distances <= real_radii.to(distances)).sum(1)
        in_generated = (distances <= generated_radii[rows].to(distances).unsqueeze(1)).sum(0)
        return rows, in_real.cpu(), in_generated.cpu()

    table = torch.zeros(len(generated) + len(real), dtype=torch.int64)
    generated_hits, real_hits = table[: len(generated)], table[len(generated) :]
    for rows, in_real, in_generated in pool.stream(hits, _blocks(len(generated), len(real), group)):
        generated_hits[rows] = in_real
        real_hits += in_generated
    group.sum_(table)
    precision, recall = (float((counts > 0).double().mean()) for counts in (generated_hits, real_hits))
    return PrecisionRecall(precision, recall, num_neighbours)


def _squared_radii(points: torch.Tensor, num_neighbours: int, group: Group, pool: CpuPool) -> torch.Tensor:
    """Squared distance of each of (n, d) points to its k-th nearest other point, (n,) float64 on the CPU."""

    @torch.inference_mode()
    def radii(rows: slice) -> tuple[slice, torch.Tensor]:
        distances = _squared_distances(points[rows], points)
        distances.diagonal(rows.start).fill_(torch.inf)  # a point is not its own neighbour, but a copy of it is one
        return rows, distances.kthvalue(num_neighbours, dim=1).values.cpu()

    table = torch.zeros(len(points), dtype=torch.float64)
    for rows, block_radii in pool.stream(radii, _blocks(len(points), len(points), group)):
        table[rows] = block_radii
    return group.sum_(table)  # one rank's number and zeros: exact


def _blocks(num_rows: int, num_columns: int, group: Group) -> Iterator[slice]:
    """This rank's blocks of rows. How rows are cut depends on no rank, so neither does any bit of a distance."""
    size = max(1, min(_BLOCK_ROWS, _BLOCK_DISTANCES // num_columns))
    for start in range(0, num_rows, size)[group.ranks.rank :: group.ranks.world_size]:
        yield slice(start, min(start + size, num_rows))


def _centred(real: torch.Tensor, generated: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both sets in float64, less the mean of one, which both have in common: the digits then go to the differences."""
    mean = real.double().mean(0)
    return real.double() - mean, generated.double() - mean


def _squared_distances(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """(a, b) squared distances between (a, d) and (b, d) points, as |x|² + |y|² - 2 x·y.

    Rounding is up to about (d + 4)·eps·(|x|² + |y|²). What is no larger is taken for 0, so that copies are at distance
    0 wherever they stand; float32 features tell no finer differences apart either.
    """
    scale = torch.linalg.vector_norm(x, dim=1).square().unsqueeze(1) + torch.linalg.vector_norm(y, dim=1).square()
    distances = torch.addmm(scale, x, y.T, alpha=-2)
    return distances.masked_fill_(distances <= scale * ((x.shape[1] + 4) * _EPS), 0.0)
