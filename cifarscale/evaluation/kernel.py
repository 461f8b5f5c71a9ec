"""The kernel inception distance: unbiased for any number of samples, with a standard error."""

from dataclasses import dataclass

import torch

from cifarscale.cores import Cores
from cifarscale.distributed import Group
from cifarscale.errors import EvaluationError

BLOCK_SIZE = 1000
MIN_BLOCKS = 10
"""Where there are fewer samples than so many full blocks have, blocks are smaller."""


@dataclass(frozen=True)
class KernelDistance:
    """The squared maximum mean discrepancy; may be below 0, since its mean is what it estimates."""

    distance: float
    standard_error: float
    num_blocks: int


def kernel_distance(real: torch.Tensor, generated: torch.Tensor, group: Group, cores: Cores) -> KernelDistance:
    """The kernel distance between two sets of features (n, d), (m, d), with the kernel (x·y / d + 1)³.

    The mean over disjoint blocks of samples, and its standard error. The usual random subsets overlap, and so their
    spread says less about the error; disjoint ones are independent. The same on every rank, each of which computes
    some of the blocks.

    Raises: EvaluationError for too few samples.
    Source: Binkowski et al. 2018 (arXiv 1801.01401), section 3, with the unbiased estimate of Gretton et al. 2012.
    """
    num_samples = min(len(real), len(generated))
    size = min(BLOCK_SIZE, num_samples // MIN_BLOCKS)
    if size < 2:
        raise EvaluationError(
            f"the kernel distance needs at least {2 * MIN_BLOCKS} samples of each set, and there are {num_samples}; "
            "leave it out with --no-kernel"
        )
    num_blocks = num_samples // size
    ranks = group.ranks

    def of_block(block: int) -> float:
        rows = slice(block * size, (block + 1) * size)
        return _squared_discrepancy(real[rows].double(), generated[rows].double())

    mine = range(ranks.rank, num_blocks, ranks.world_size)
    table = torch.zeros(num_blocks, dtype=torch.float64)
    table[mine.start :: ranks.world_size] = torch.tensor(cores.map(of_block, mine), dtype=torch.float64)
    group.sum_(table)
    return KernelDistance(float(table.mean()), float(table.std()) / num_blocks**0.5, num_blocks)


def _squared_discrepancy(x: torch.Tensor, y: torch.Tensor) -> float:
    """The unbiased estimate from as many samples of each, (b, d): no sample is compared with itself."""
    size, dim = x.shape

    def kernel(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a @ b.T / dim + 1) ** 3

    def among(values: torch.Tensor) -> torch.Tensor:
        return (values.sum() - values.trace()) / (size * (size - 1))

    return float(among(kernel(x, x)) + among(kernel(y, y)) - 2 * kernel(x, y).mean())
