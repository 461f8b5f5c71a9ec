"""Kernel inception distance: how far apart two sets of features are, with no Gaussian assumed and no bias."""

from dataclasses import dataclass

import torch

from cifarscale.distributed.cpu_pool import CpuPool
from cifarscale.distributed.group import Group
from cifarscale.evaluation.moments import require_features

LARGEST_BLOCK = 1000
LEAST_BLOCKS = 10


@dataclass(frozen=True)
class KernelDistance:
    """The mean over blocks of samples, and its standard error; both are often given times 1000."""

    distance: float
    standard_error: float
    num_blocks: int


def kernel_distance(real: torch.Tensor, generated: torch.Tensor, group: Group, pool: CpuPool) -> KernelDistance:
    """Squared maximum mean discrepancy of two sets, unbiased, with the kernel (x·y/d + 1)³.

    The mean over disjoint blocks of up to 1000 samples of each set, and at least 10 blocks, rather than over random
    subsets as is usual: subsets overlap, so the spread of theirs says too little about the error of their mean. Blocks
    are taken in order, so the order must not depend on the content: sets that are sorted by class must be shuffled
    first. Samples beyond the shorter set or the last whole block are left out.

    All ranks pass the same sets and share the blocks; no bit depends on the number of ranks if each stays on one core.

    Args:
        real, generated: (n, d) and (m, d), of any float dtype; the estimates are computed in float64.
    Returns: a distance that may be below 0 where the sets are alike, since it is unbiased.
    Raises: EvaluationError if a set has fewer than 20 samples or a value that is not finite, or d differs.
    Source: Bińkowski et al. 2018 (arXiv 1801.01401), section 4.
    """
    require_features(real, generated, 2 * LEAST_BLOCKS, "the kernel distance")
    num_samples = min(len(real), len(generated))
    block_size = min(LARGEST_BLOCK, num_samples // LEAST_BLOCKS)
    num_blocks = num_samples // block_size

    def estimate(block: int) -> torch.Tensor:
        rows = slice(block * block_size, (block + 1) * block_size)
        return squared_discrepancy(real[rows], generated[rows])

    mine = range(group.ranks.rank, num_blocks, group.ranks.world_size)
    table = torch.zeros(num_blocks, dtype=torch.float64)
    for block, estimated in zip(mine, pool.stream(estimate, mine), strict=True):
        table[block] = estimated
    group.sum_(table)  # one rank's number and zeros: exact
    return KernelDistance(float(table.mean()), float(table.std()) / num_blocks**0.5, num_blocks)


@torch.inference_mode()
def squared_discrepancy(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Unbiased estimate of the squared maximum mean discrepancy from (b, d) samples each, a float64 scalar."""
    size, dim = x.shape
    x, y = x.double(), y.double()
    xx, yy, xy = ((p @ q.T / dim + 1) ** 3 for p, q in ((x, x), (y, y), (x, y)))
    within = xx.sum() - xx.trace() + yy.sum() - yy.trace()
    return within / (size * (size - 1)) - 2 * xy.mean()
