"""Accuracy of a classifier over a split, each sample counted exactly once whatever the number of ranks."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from cifarscale.config.code import kind_of, naming_the_line
from cifarscale.config.registry import RegisteredMetric
from cifarscale.data.batches import Chunk, EvaluationSplit
from cifarscale.distributed.cpu_pool import CpuPool
from cifarscale.distributed.group import Group
from cifarscale.errors import ConfigError, DistributedError, NonFiniteLossError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Accuracy:
    """What a classifier does on each sample of a split.

    Attributes:
        labels, predictions: (n,) int64.
        in_top5: (n,) bool, whether the label is among the five largest logits.
        losses: (n,) float64, cross-entropy in nats.
        num_classes: how many logits there are.
        own: further metrics by name; None for one that is not a finite number.
    """

    labels: torch.Tensor
    predictions: torch.Tensor
    in_top5: torch.Tensor
    losses: torch.Tensor
    num_classes: int
    own: Mapping[str, float | None] = field(default_factory=dict)

    @property
    def metrics(self) -> dict[str, float | None]:
        """`top1` and, of more than five classes, `top5` as fractions, the mean `loss` in nats, and further metrics."""
        top5 = {"top5": float(self.in_top5.double().mean())} if self.num_classes > 5 else {}
        return {
            "top1": float((self.predictions == self.labels).double().mean()),
            **top5,
            "loss": float(self.losses.mean()),
            **self.own,
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
    metrics: Sequence[RegisteredMetric] = (),
) -> Accuracy:
    """Runs the network over the split, each rank on its share, and gathers every sample's outcome.

    Each rank fills in the rows of its samples in a table of zeros; summed over the ranks, the table's first column is
    a ledger that says how often each sample was counted. Which samples are computed together does not depend on the
    number of ranks, so neither does any bit of the result.

    Args:
        metrics: computed beside the accuracy.
    Raises: DistributedError if a sample was missed or counted twice; NonFiniteLossError if a loss is not a number;
        ConfigError for what is wrong with a user's own metric.
    """
    table = torch.zeros(split.num_samples, 5, dtype=torch.float64)
    training = network.training
    network.eval()
    outcome = partial(_outcome, network, normalise, metrics)
    own: list[tuple[torch.Tensor, list[torch.Tensor]]] = []
    for rows, outcomes, values in pool.map(outcome, split.chunks(group.ranks, batch_size)):
        table[rows] += outcomes
        own.append((rows, values))
    network.train(training)
    group.sum_(table)
    check_ledger(table[:, 0])
    if overflowed := int((~table[:, 4].isfinite()).sum()):
        raise NonFiniteLossError(
            f"the loss of {overflowed} of {split.num_samples} evaluated samples is not finite: the network diverged. "
            "Try a lower training.learning_rate, or training.gradient_clip_norm=1"
        )
    counts = table.T
    reduced = {
        metric.name: _reduced(metric, [(rows, values[i]) for rows, values in own], split.num_samples, group)
        for i, metric in enumerate(metrics)
    }
    return Accuracy(counts[1].long(), counts[2].long(), counts[3].bool(), counts[4].contiguous(), num_classes, reduced)


@torch.inference_mode()
def _outcome(
    network: nn.Module,
    normalise: Callable[[torch.Tensor], torch.Tensor],
    metrics: Sequence[RegisteredMetric],
    chunk: Chunk,
) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Rows (b,) of a chunk, (b, 5) float64: 1, label, prediction, label among the top five, loss; and each metric's."""
    logits = network(normalise(chunk.images)).float()
    losses = F.cross_entropy(logits, chunk.labels, reduction="none")
    top5 = logits.topk(min(5, logits.shape[1]), dim=1).indices
    in_top5 = (top5 == chunk.labels.unsqueeze(1)).any(1)
    columns = (torch.ones_like(losses), chunk.labels, top5[:, 0], in_top5, losses)
    values = [values_of(metric, logits, chunk.labels) for metric in metrics]
    return chunk.rows.cpu(), torch.stack([column.double() for column in columns], 1).cpu(), values


def values_of(metric: RegisteredMetric, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """A metric's values of samples, (b, k) float64 on the CPU. Raises: ConfigError if they are of another shape."""
    with naming_the_line(f"metric {metric.name!r}", metric.code):
        values = metric.of_samples(logits, labels)
    is_right = isinstance(values, torch.Tensor) and values.dim() in (1, 2) and len(values) == len(labels)
    if not is_right or values.is_complex():
        raise ConfigError(
            f"metric {metric.name!r} returned {kind_of(values)} for {len(labels)} samples; it returns real numbers of "
            f"shape ({len(labels)},) or ({len(labels)}, k), and what is no mean of them belongs into reduce="
        )
    table: torch.Tensor = values.double().view(len(labels), -1).cpu()
    return table


def reduced(metric: RegisteredMetric, values: torch.Tensor) -> float:
    """A metric from the values (n, k) of all samples. Raises: ConfigError if it is no number."""
    if metric.reduce is None:
        return float(values.mean())
    with naming_the_line(f"metric {metric.name!r}", metric.code):
        return float(metric.reduce(values.squeeze(1)))


def _reduced(
    metric: RegisteredMetric, chunks: Sequence[tuple[torch.Tensor, torch.Tensor]], num_samples: int, group: Group
) -> float | None:
    """A metric over the ranks' chunks of rows (b,) and values (b, k); the same on every rank."""
    width = max(group.of_all(max((values.shape[1] for _, values in chunks), default=0)))
    table = torch.zeros(num_samples, width, dtype=torch.float64)
    for rows, values in chunks:
        table[rows] = values
    value = reduced(metric, group.sum_(table))
    if math.isfinite(value):
        return value
    if group.ranks.is_first:
        log.warning("metric %r is %s, and is left out", metric.name, value)
    return None


def check_ledger(counts: torch.Tensor) -> None:
    """Raises: DistributedError unless each of the counts, one a sample, is 1."""
    wrong = (counts != 1).nonzero().flatten().tolist()
    if wrong:
        raise DistributedError(
            f"{len(wrong)} of {len(counts)} samples were not counted exactly once; the first is row {wrong[0]}, "
            f"counted {int(counts[wrong[0]])} times. The metrics are void: do all ranks see the same shards?"
        )
