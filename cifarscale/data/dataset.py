"""An opened folder of shards: what a job trains on and is evaluated on."""

from functools import cache
from pathlib import Path

import numpy as np
import torch

from cifarscale.config.recipe import DataConfig, TrainingRecipe
from cifarscale.data.batches import EvaluationSplit, Reader
from cifarscale.data.in_memory import InMemoryReader, InMemorySplit
from cifarscale.data.manifest import Manifest
from cifarscale.data.order import validation_ids
from cifarscale.data.shards import Samples, find_damage, read_split
from cifarscale.distributed.group import Group
from cifarscale.errors import ConfigError, DataError


class Dataset:
    """The splits of a folder of shards as a recipe sees them. Whatever is read is checked against the manifest."""

    def __init__(self, folder: Path, config: DataConfig, device: torch.device) -> None:
        """Raises: DataError if the folder holds no shards, or not those that the recipe was resolved with."""
        self.folder = folder
        self.manifest = Manifest.load(folder)
        self._config = config
        self._device = device
        self.manifest.require(config.fingerprint, folder)
        num_train = self.manifest.split("train").num_samples
        if config.num_validation >= num_train:
            raise ConfigError(f"data.num_validation = {config.num_validation} leaves none of {num_train} to train on")
        self.split = cache(self._split)

    def reader(self, recipe: TrainingRecipe, group: Group, num_workers: int = 0) -> Reader:
        """A reader of the training split for this rank. Raises: DataError if a shard is damaged."""
        seed, batch_size, num_microbatches = recipe.seed, recipe.samples_per_step, recipe.training.microbatches
        if self._config.reader == "in_memory":
            split = self.split("train")
            assert isinstance(split, InMemorySplit)
            return InMemoryReader(split, seed, batch_size, group.ranks, num_microbatches)
        from cifarscale.data.streaming import StreamingReader  # webdataset, which an in-memory job does not need

        problems = find_damage(self.folder, self.manifest) if group.ranks.is_first else []
        if problems := group.from_first(problems):
            raise DataError(problems[0])
        entry = self.manifest.split("train")
        return StreamingReader(
            self.folder, entry, seed, batch_size, self._config, group.ranks, num_workers, num_microbatches
        )

    def _split(self, name: str) -> EvaluationSplit:
        """`train`, `validation` (if the recipe sets one aside) or `test`; loaded at the first call.

        Raises: DataError if there is no such split, or a shard is damaged.
        """
        if name == "validation" and not self._config.num_validation:
            raise DataError("the recipe sets no validation samples aside (data.num_validation = 0)")
        stored = "train" if name == "validation" else name
        entry = self.manifest.split(stored)
        if self._config.reader == "streaming":
            from cifarscale.data.streaming import StreamedSplit

            return StreamedSplit(self.folder, self.manifest, stored, self._device)
        samples = read_split(self.folder, self.manifest, stored)
        if stored == "train" and self._config.num_validation:
            training, validation = validation_ids(entry.num_samples, self._config.num_validation)
            samples = _take(samples, validation if name == "validation" else training)
        return InMemorySplit(samples, self._device)


def _take(samples: Samples, rows: np.ndarray) -> Samples:
    return Samples(samples.images[rows], samples.labels[rows], samples.ids[rows])
