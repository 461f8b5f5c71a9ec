"""Accuracy of a classifier over a split, each sample counted exactly once whatever the number of ranks."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from cifarscale.data.batches import Chunk, EvaluationSplit
from cifarscale.distributed.cpu_pool import CpuPool
from cifarscale.distributed.group import Group
from cifarscale.errors import DistributedError, NonFiniteLossError


@dataclass(frozen=True)
class Accuracy:
    """What a classifier does on each sample of a split.

    Attributes:
        labels, predictions: (n,) int64.
        in_top5: (n,) bool, whether the label is among the five largest logits.
        losses: (n,) float64, cross-entropy in nats.
        num_classes: how many logits there are.
    """

    labels: torch.Tensor
    predictions: torch.Tensor
    in_top5: torch.Tensor
    losses: torch.Tensor
    num_classes: int

    @property
    def metrics(self) -> dict[str, float]:
        """`top1` and `top5` as fractions, and the mean `loss` in nats; of up to five classes no `top5`, always 1."""
        top5 = {"top5": float(self.in_top5.double().mean())} if self.num_classes > 5 else {}
        return {
            "top1": float((self.predictions == self.labels).double().mean()),
            **top5,
            "loss": float(self.losses.mean()),
        }

    def per_group(self, group_of_label: torch.Tensor, num_groups: int) -> list[float | None]:
        """Top-1 accuracy of the samples in each group of labels; None for a group without samples."""
        groups = group_of_label[self.labels]
        total = torch.bincount(groups, minlength=num_groups)
        right = torch.bincount(groups[self.predictions == self.labels], minlength=num_groups)
        return [int(r) / int(n) if n else None for r, n in zip(right, total, strict=True)]

    def confusion(self) -> torch.Tensor:
        """(num_classes, num_classes) int64: how many samples of each label were given each prediction."""
        pairs = self.labels * self.num_classes + self.predictions
        return torch.bincount(pairs, minlength=self.num_classes**2).view(self.num_classes, self.num_classes)


class FlipAveraged(nn.Module):
    """A classifier whose logits are the means of those of an image and of its mirror image."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.training = network.training

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = (self.network(images) + self.network(images.flip(-1))) / 2
        return logits


def evaluate_classifier(
    network: nn.Module,
    split: EvaluationSplit,
    normalise: Callable[[torch.Tensor], torch.Tensor],
    group: Group,
    pool: CpuPool,
    batch_size: int,
    num_classes: int,
) -> Accuracy:
    """Runs the network over the split, each rank on its share, and gathers every sample's outcome.

    Each rank fills in the rows of its samples in a table of zeros; summed over the ranks, the table's first column is
    a ledger that says how often each sample was counted. Which samples are computed together does not depend on the
    number of ranks, so neither does any bit of the result.

    Raises: DistributedError if a sample was missed or counted twice; NonFiniteLossError if a loss is not a number.
    """
    table = torch.zeros(split.num_samples, 5, dtype=torch.float64)
    training = network.training
    network.eval()
    outcome = partial(_outcome, network, normalise)
    for rows, outcomes in pool.map(outcome, split.chunks(group.ranks, batch_size)):
        table[rows] += outcomes
    network.train(training)
    group.sum_(table)
    check_ledger(table[:, 0])
    if overflowed := int((~table[:, 4].isfinite()).sum()):
        raise NonFiniteLossError(
            f"the loss of {overflowed} of {split.num_samples} evaluated samples is not finite: the network diverged. "
            "Try a lower training.learning_rate, or training.gradient_clip_norm=1"
        )
    counts = table.T
    return Accuracy(counts[1].long(), counts[2].long(), counts[3].bool(), counts[4].contiguous(), num_classes)


@torch.inference_mode()
def _outcome(
    network: nn.Module, normalise: Callable[[torch.Tensor], torch.Tensor], chunk: Chunk
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows (b,) of a chunk, and (b, 5) float64: 1, label, prediction, label among the top five, loss."""
    logits = network(normalise(chunk.images)).float()
    losses = F.cross_entropy(logits, chunk.labels, reduction="none")
    top5 = logits.topk(min(5, logits.shape[1]), dim=1).indices
    in_top5 = (top5 == chunk.labels.unsqueeze(1)).any(1)
    columns = (torch.ones_like(losses), chunk.labels, top5[:, 0], in_top5, losses)
    return chunk.rows.cpu(), torch.stack([column.double() for column in columns], 1).cpu()


def check_ledger(counts: torch.Tensor) -> None:
    """Raises: DistributedError unless each of the counts, one a sample, is 1."""
    wrong = (counts != 1).nonzero().flatten().tolist()
    if wrong:
        raise DistributedError(
            f"{len(wrong)} of {len(counts)} samples were not counted exactly once; the first is row {wrong[0]}, "
            f"counted {int(counts[wrong[0]])} times. The metrics are void: do all ranks see the same shards?"
        )
