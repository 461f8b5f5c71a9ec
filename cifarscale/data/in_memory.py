"""A whole split in memory: decoded once into a uint8 tensor on the device, where shuffling is indexing."""

from collections.abc import Iterator

import numpy as np
import torch

from cifarscale.data.batches import Batch, Chunk
from cifarscale.data.order import EpochOrder, rank_positions
from cifarscale.data.shards import Samples
from cifarscale.distributed.ranks import Ranks
from cifarscale.distributed.step_values import DIRECT, StepValues


class InMemorySplit:
    """Images (n, H, W, 3) uint8, labels (n,) and ids (n,) int64 on the device."""

    def __init__(self, samples: Samples, device: torch.device | str = "cpu") -> None:
        self.images = torch.tensor(samples.images, device=device)
        self.labels = torch.tensor(samples.labels, device=device)
        self.ids = torch.tensor(samples.ids, device=device)

    @property
    def num_samples(self) -> int:
        return len(self.ids)

    def chunks(self, ranks: Ranks, batch_size: int) -> Iterator[Chunk]:
        """A rank's share; which samples stand together in a chunk does not depend on the number of ranks."""
        rows = torch.arange(self.num_samples, device=self.ids.device)
        for start in range(ranks.rank * batch_size, self.num_samples, ranks.world_size * batch_size):
            take = slice(start, start + batch_size)
            yield Chunk(self.images[take].permute(0, 3, 1, 2), self.labels[take], rows[take])


class InMemoryReader:
    """Serves an in-memory split in the order of the seed, from any step on."""

    def __init__(
        self,
        split: InMemorySplit,
        seed: int,
        global_batch_size: int,
        ranks: Ranks = Ranks(),
        num_microbatches: int = 0,
    ) -> None:
        self._split = split
        self._order = EpochOrder(split.num_samples, seed)
        self._global_batch_size = global_batch_size
        self._positions = rank_positions(global_batch_size, num_microbatches, ranks)

        self._places = np.array(self._positions)

    @property
    def is_on_device(self) -> bool:
        return True

    def batches(self, first_step: int, values: StepValues = DIRECT) -> Iterator[Batch]:
        split = self._split
        step = first_step
        while True:
            index = values.tensor(("samples", None), step, self._rows, split.images.device)
            images = split.images.index_select(0, index).permute(0, 3, 1, 2)
            yield Batch(images, split.labels[index], split.ids[index], self._positions, values)
            step += 1

    def _rows(self, step: int) -> torch.Tensor:
        """Which rows of the split are the samples of a step, (b,)."""
        return torch.from_numpy(self._order.at(step * self._global_batch_size + self._places))
