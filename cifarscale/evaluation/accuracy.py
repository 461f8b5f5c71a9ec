"""Accuracy of a classifier over a split, each sample counted exactly once whatever the number of ranks."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from cifarscale.data.batches import EvaluationSplit
from cifarscale.distributed import Group
from cifarscale.errors import DistributedError


@dataclass(frozen=True)
class Accuracy:
    """What a classifier does on each sample of a split.

    Attributes:
        labels, predictions: (n,) int64.
        in_top5: (n,) bool, whether the label is among the five largest logits.
        losses: (n,) float64, cross-entropy in nats.
    """

    labels: torch.Tensor
    predictions: torch.Tensor
    in_top5: torch.Tensor
    losses: torch.Tensor

    @property
    def figures(self) -> dict[str, float]:
        """`top1` and `top5` as fractions, and the mean `loss` in nats."""
        return {
            "top1": float((self.predictions == self.labels).double().mean()),
            "top5": float(self.in_top5.double().mean()),
            "loss": float(self.losses.mean()),
        }

    def per_group(self, group_of_label: torch.Tensor, num_groups: int) -> list[float | None]:
        """Top-1 accuracy of the samples in each group of labels; None for a group without samples."""
        groups = group_of_label[self.labels]
        total = torch.bincount(groups, minlength=num_groups)
        right = torch.bincount(groups[self.predictions == self.labels], minlength=num_groups)
        return [int(r) / int(n) if n else None for r, n in zip(right, total, strict=True)]


@torch.inference_mode()
def evaluate_classifier(
    network: nn.Module,
    split: EvaluationSplit,
    normalise: Callable[[torch.Tensor], torch.Tensor],
    group: Group,
    batch_size: int,
) -> Accuracy:
    """Runs the network over the split, each rank on its share, and gathers every sample's outcome.

    Each rank fills in the rows of its samples in a table of zeros; summed over the ranks, the table's first column is
    a ledger that says how often each sample was counted. Which samples share a batch does not depend on the number of
    ranks, so neither does any bit of the result.

    Raises: DistributedError if a sample was missed or counted twice.
    """
    table = torch.zeros(split.num_samples, 5, dtype=torch.float64)
    training = network.training
    network.eval()
    for chunk in split.chunks(group.ranks, batch_size):
        logits = network(normalise(chunk.images)).float()
        losses = F.cross_entropy(logits, chunk.labels, reduction="none")
        top5 = logits.topk(min(5, logits.shape[1]), dim=1).indices
        in_top5 = (top5 == chunk.labels.unsqueeze(1)).any(1)
        outcome = torch.stack([torch.ones_like(losses), chunk.labels, top5[:, 0], in_top5, losses.double()], 1)
        table[chunk.rows.cpu()] += outcome.double().cpu()
    network.train(training)
    group.sum_(table)
    check_ledger(table[:, 0])
    counts = table.T
    return Accuracy(counts[1].long(), counts[2].long(), counts[3].bool(), counts[4].contiguous())


def check_ledger(counts: torch.Tensor) -> None:
    """Raises: DistributedError unless each of the counts, one a sample, is 1."""
    wrong = (counts != 1).nonzero().flatten().tolist()
    if wrong:
        raise DistributedError(
            f"{len(wrong)} of {len(counts)} samples were not counted exactly once; the first is row {wrong[0]}, "
            f"counted {int(counts[wrong[0]])} times. The figures are void: do all ranks see the same shards?"
        )
