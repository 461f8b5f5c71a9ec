"""Shards read in sequence by webdataset, for sets that do not fit into memory.

An epoch's shards, in an order drawn anew, are one long sequence, which is cut into N equal *canonical partitions*. A
partition is read from front to back through a shuffle buffer, and position g of the epoch is item g // N of partition
g % N. Partitions belong to the recipe, not to the ranks, so the sequence is the same for any number of readers. A
reader (one worker of one rank) reads just the partitions in which its positions lie: a share of them if the number of
readers divides N, and otherwise all of them, decoding only its own samples.
"""

import random
import signal
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset as wds
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from webdataset.autodecode import Decoder, imagehandler

from cifarscale.config.recipe import DataConfig
from cifarscale.data.batches import Batch, Chunk
from cifarscale.data.in_memory import InMemorySplit
from cifarscale.data.manifest import Manifest, ShardEntry, SplitEntry
from cifarscale.data.order import rank_positions
from cifarscale.data.shards import read_shard
from cifarscale.distributed.randomness import permutation
from cifarscale.distributed.ranks import Ranks
from cifarscale.distributed.step_values import DIRECT, StepValues
from cifarscale.errors import ConfigError, DataError

_Sample = dict[str, Any]
_decode = Decoder([imagehandler("rgb8", extensions=["ppm"])])


class CanonicalPartitions:
    """Undecoded samples by (epoch, position), each partition read once from front to back."""

    def __init__(self, folder: Path, split: SplitEntry, seed: int, config: DataConfig) -> None:
        self._folder = folder
        self._split = split
        self._seed = seed
        self._num_partitions = config.canonical_partitions
        self._shuffle_buffer = config.shuffle_buffer
        self._epoch = -1
        self._open: dict[int, Iterator[_Sample]] = {}
        self._taken: dict[int, int] = {}

    def sample(self, position: int) -> _Sample:
        """The sample at a position of the endless sequence; positions must ascend from call to call."""
        epoch, place = divmod(position, self._split.num_samples)
        if epoch != self._epoch:
            self._epoch, self._open, self._taken = epoch, {}, {}
        item, partition = divmod(place, self._num_partitions)
        if partition not in self._open:
            self._open[partition], self._taken[partition] = self._read(epoch, partition), 0
        skipped = item - self._taken[partition]
        self._taken[partition] = item + 1
        return next(islice(self._open[partition], skipped, None))

    def _read(self, epoch: int, partition: int) -> Iterator[_Sample]:
        """All of a partition in its shuffled order."""
        samples, partitions = self._split.num_samples, self._num_partitions
        size = samples // partitions + (partition < samples % partitions)
        start = partition * (samples // partitions) + min(partition, samples % partitions)
        order = permutation(self._seed, "shard order", epoch, len(self._split.shards))
        in_sequence = self._from(start, [self._split.shards[i] for i in order])
        rng = random.Random(f"{self._seed} {epoch} {partition}")
        shuffled: Iterator[_Sample] = wds.shuffle(self._shuffle_buffer, initial=self._shuffle_buffer, rng=rng)(
            islice(in_sequence, size)
        )
        return shuffled

    def _from(self, start: int, shards: list[ShardEntry]) -> Iterator[_Sample]:
        """The samples of the shards, one after the other, from number `start` on."""
        while start >= shards[0].num_samples:
            start -= shards.pop(0).num_samples
        urls = [str(self._folder / shard.name) for shard in shards]
        read = wds.tarfile_to_samples(select_files=lambda name: not name.endswith(".json"))
        return islice(read({"url": url} for url in urls), start, None)


class _ReaderDataset(IterableDataset[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]):
    """What one worker reads: its part of each batch from a step on."""

    def __init__(self, reader: "StreamingReader", first_step: int) -> None:
        self._reader = reader
        self._first_step = first_step

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        worker = get_worker_info()
        return self._reader.read_part(self._first_step, worker.id if worker else 0)


class StreamingReader:
    """Reads a rank's samples from the shards as training goes on, in `num_workers` processes (0: in this one)."""

    def __init__(
        self,
        folder: Path,
        split: SplitEntry,
        seed: int,
        global_batch_size: int,
        config: DataConfig,
        ranks: Ranks = Ranks(),
        num_workers: int = 0,
        num_microbatches: int = 0,
    ) -> None:
        self._parts = max(1, num_workers)
        readers = ranks.world_size * self._parts
        if readers > len(split.shards):
            raise DataError(
                f"{ranks.world_size} ranks x {self._parts} workers need at least {readers} shards, and {folder} "
                f"has {len(split.shards)}. Build again with --num-shards {readers} --force, or use fewer readers"
            )
        every = (replace(ranks, rank=rank) for rank in range(ranks.world_size))
        share = min(len(rank_positions(global_batch_size, num_microbatches, each)) for each in every)
        if num_workers > share:
            raise ConfigError(
                f"--num-workers {num_workers} is more than the {share} samples that each rank takes from a global "
                f"batch of {global_batch_size}. Run with --num-workers {share} or less"
            )
        self._folder, self._split, self._seed, self._config = folder, split, seed, config
        self._global_batch_size = global_batch_size
        self._positions = rank_positions(global_batch_size, num_microbatches, ranks)
        self._num_workers = num_workers

    def read_part(self, first_step: int, worker: int) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Images, labels and ids of one worker's part of each batch."""
        partitions = CanonicalPartitions(self._folder, self._split, self._seed, self._config)
        positions = self._positions[worker :: self._parts]
        step = first_step
        while True:
            samples = [_decode(partitions.sample(step * self._global_batch_size + position)) for position in positions]
            images = np.stack([sample["ppm"] for sample in samples])
            labels = torch.tensor([sample["cls"] for sample in samples])
            ids = torch.tensor([int(sample["__key__"].rpartition("-")[2]) for sample in samples])
            yield torch.from_numpy(images).permute(0, 3, 1, 2), labels, ids
            step += 1

    def _loader(self, first_step: int) -> DataLoader[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        dataset = _ReaderDataset(self, first_step)
        return DataLoader(dataset, None, num_workers=self._num_workers, worker_init_fn=_leave_signals_to_parent)

    @property
    def is_on_device(self) -> bool:
        return False

    def batches(self, first_step: int, values: StepValues = DIRECT) -> Iterator[Batch]:
        loader = iter(self._loader(first_step))
        positions = self._positions
        while True:
            parts = [next(loader) for _ in range(self._parts)]
            images, labels, ids = (_interleave(tensors, len(positions)) for tensors in zip(*parts, strict=True))
            yield Batch(images, labels, ids, positions, values)


def _leave_signals_to_parent(worker: int) -> None:
    """A worker inherits the training process's handlers; it is the parent's to end it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _interleave(parts: tuple[torch.Tensor, ...], size: int) -> torch.Tensor:
    """The tensor whose every n-th row from row i on is part i of n."""
    if len(parts) == 1:
        return parts[0]
    whole = parts[0].new_empty((size, *parts[0].shape[1:]))
    if whole.dim() == 4:
        whole = whole.to(memory_format=torch.channels_last)
    for i, part in enumerate(parts):
        whole[i :: len(parts)] = part
    return whole


class StreamedSplit:
    """A split for evaluation, a shard at a time; each is checked before it is used."""

    def __init__(self, folder: Path, manifest: Manifest, name: str, device: torch.device | str = "cpu") -> None:
        self._folder, self._split, self._device = folder, manifest.split(name), device
        self._image_size = manifest.image_size

    @property
    def num_samples(self) -> int:
        return self._split.num_samples

    def chunks(self, ranks: Ranks, batch_size: int) -> Iterator[Chunk]:
        """A rank's share; which samples stand together in a chunk does not depend on the number of ranks."""
        for entry in self._split.shards[ranks.rank :: ranks.world_size]:
            shard = InMemorySplit(read_shard(self._folder, entry, self._image_size), self._device)
            for chunk in shard.chunks(Ranks(), batch_size):
                yield Chunk(chunk.images, chunk.labels, shard.ids[chunk.rows])
