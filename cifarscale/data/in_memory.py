"""A whole split in memory: decoded once into a uint8 tensor on the device, where shuffling is indexing."""

from collections.abc import Iterator

import numpy as np
import torch

from cifarscale.data.batches import Batch, Chunk
from cifarscale.data.order import EpochOrder, rank_positions
from cifarscale.data.shards import Samples
from cifarscale.distributed.ranks import Ranks


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

    def batches(self, first_step: int) -> Iterator[Batch]:
        split, positions = self._split, self._positions
        places = np.array(positions)
        step = first_step
        while True:
            index = torch.from_numpy(self._order.at(step * self._global_batch_size + places)).to(
                split.images.device, non_blocking=True
            )
            images = split.images.index_select(0, index).permute(0, 3, 1, 2)
            yield Batch(images, split.labels[index], split.ids[index], positions)
            step += 1
