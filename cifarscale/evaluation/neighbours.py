"""Precision and recall of generated samples, by nearest neighbours."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from cifarscale.cores import Cores
from cifarscale.distributed import Group
from cifarscale.errors import EvaluationError

BLOCK_SIZE = 500
"""Rows of the matrix of distances that are computed at a time."""


@dataclass(frozen=True)
class PrecisionRecall:
    """`precision`: how many generated samples look real; `recall`: how many real ones could have been generated."""

    precision: float
    recall: float


def precision_recall(
    real: torch.Tensor, generated: torch.Tensor, group: Group, cores: Cores, num_neighbours: int = 3
) -> PrecisionRecall:
    """Precision and recall of generated features (m, d) with respect to real ones (n, d).

    A set is taken for the union of balls around its samples, each as large as the distance to its k-th nearest
    neighbour in the set. Precision is the share of generated samples in the real set's, recall the reverse. The same on
    every rank, each of which computes some of the rows.

    Raises: EvaluationError for too few samples.
    Source: Kynkaanniemi et al. 2019 (arXiv 1904.06991), section 2, equations 1 and 2.
    """
    if min(len(real), len(generated)) <= num_neighbours:
        raise EvaluationError(
            f"precision and recall by {num_neighbours} neighbours need at least {num_neighbours + 1} samples of each "
            f"set, and there are {len(real)} and {len(generated)}; leave them out with --no-neighbours"
        )
    # Distances do not change with the origin, and products of centred features lose fewer digits.
    centre = real.double().mean(0)
    sets = [(features.double() - centre).contiguous() for features in (real, generated)]

    def nearest(one: torch.Tensor) -> torch.Tensor:
        """For each sample the squared distance to its k-th neighbour; the sample itself is the nearest of all."""

        def of_rows(rows: slice) -> torch.Tensor:
            distances = _squared_distances(one[rows], one)
            distances[torch.arange(len(distances)), torch.arange(rows.start, rows.stop)] = 0.0
            return distances.kthvalue(num_neighbours + 1, dim=1).values

        return _by_rows(of_rows, len(one), group, cores)

    def covered(points: torch.Tensor, centres: torch.Tensor) -> float:
        """The share of the points that lie in a ball around a centre."""
        radii = nearest(centres)

        def of_rows(rows: slice) -> torch.Tensor:
            return (_squared_distances(points[rows], centres) <= radii).any(1).double()

        return float(_by_rows(of_rows, len(points), group, cores).mean())

    return PrecisionRecall(covered(sets[1], sets[0]), covered(sets[0], sets[1]))


def _by_rows(function: Callable[[slice], torch.Tensor], num_rows: int, group: Group, cores: Cores) -> torch.Tensor:
    """A number for each row, (num_rows,) float64; the ranks take blocks of rows in turn."""
    ranks = group.ranks
    starts = range(ranks.rank * BLOCK_SIZE, num_rows, ranks.world_size * BLOCK_SIZE)
    blocks = [slice(start, min(start + BLOCK_SIZE, num_rows)) for start in starts]
    table = torch.zeros(num_rows, dtype=torch.float64)
    for rows, values in zip(blocks, cores.stream(function, blocks), strict=True):
        table[rows] = values
    return group.sum_(table)


def _squared_distances(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Squared Euclidean distances (n, m) between rows of (n, d) and (m, d) in float64."""
    products = torch.addmm(y.square().sum(1), x, y.T, alpha=-2).add_(x.square().sum(1)[:, None])
    return products.clamp_(min=0.0)
