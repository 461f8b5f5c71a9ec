"""How near one set of images is to another in a feature space, on all ranks, each image counted exactly once."""

import hashlib
import json
import logging
import os
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray

from cifarscale.config.distance import DistanceConfig
from cifarscale.data.images import ImageSet
from cifarscale.distributed.cpu_pool import CpuPool
from cifarscale.distributed.group import Group
from cifarscale.distributed.randomness import permutation
from cifarscale.errors import CifarscaleError, EvaluationError
from cifarscale.evaluation.accuracy import check_ledger
from cifarscale.evaluation.features import FeatureNetwork
from cifarscale.evaluation.frechet import frechet_distance
from cifarscale.evaluation.kernel import kernel_distance
from cifarscale.evaluation.moments import NUM_LANES, Moments, Statistics
from cifarscale.evaluation.neighbours import precision_recall
from cifarscale.tracking.progress import counting

log = logging.getLogger(__name__)

Result = TypeVar("Result")

CACHE_BYTES = 2 * 2**30
"""Of statistics that are kept for the next time: those of Inception's features take 34 MB and more each."""
SAMPLE_SIZE = 128
"""Images of each set by which `fast` is compared with `exact`."""


@dataclass(frozen=True)
class Collected:
    """What is known of a set of images in a feature space.

    Attributes:
        statistics: mean and covariance over all of them.
        kept: (k, d) float32, the features of some, drawn at random; None if only the statistics are known.
        by_class: the statistics of each class, if wanted; None for one with too few images for a covariance.
        sample: (2, s, d) float32, the features of a few images as they were computed, and in float32; None if all are.
    """

    statistics: Statistics
    kept: torch.Tensor | None = None
    by_class: tuple[Statistics | None, ...] = ()
    sample: torch.Tensor | None = None


class Measure:
    """Compares sets of images with a fixed one, in a fixed feature space."""

    def __init__(
        self,
        config: DistanceConfig,
        features: FeatureNetwork,
        group: Group,
        pool: CpuPool,
        device: torch.device,
        shows_progress: bool = False,
        exact: FeatureNetwork | None = None,
    ) -> None:
        """
        Args:
            exact: the same network in float32, if `features` is not, to tell how far it is from that.
        """
        self.features, self._exact = features, exact
        self._shows_progress = shows_progress and group.ranks.is_first
        self._config, self._group, self._pool, self._device = config, group, pool, device
        self._keeps = config.kernel or config.neighbours > 0

    def collect(self, images: ImageSet, num_classes: int = 0) -> Collected:
        """Runs the feature network over the images, each rank on its share.

        Which images are computed together does not depend on the number of ranks.

        Args:
            num_classes: of the labels, for statistics by class; 0 for none.
        Raises: EvaluationError if a feature is not finite, or there are too few images; DataError if one cannot be
            read; DistributedError if one was missed or counted twice. Always on all ranks.
        """
        total, dim = images.num_images, self.features.dim
        kept = torch.zeros(min(self._config.num_kept, total) if self._keeps else 0, dim)
        place = torch.full((total,), -1)  # in `kept`, which is in random order whatever order the images are in
        place[torch.from_numpy(permutation(0, "kept features", 0, total)[: len(kept)])] = torch.arange(len(kept))
        ledger = torch.zeros(total, dtype=torch.float64)
        moments, *by_class = (Moments(dim, self._device) for _ in range(1 + num_classes))

        def add(batch: int, features: torch.Tensor) -> None:
            moments.add(features, batch)
            if num_classes:
                assert images.labels is not None
                labels = images.labels[batch * self._config.batch_size :][: len(features)]
                for label in set(labels.tolist()):
                    by_class[label].add(features[(labels == label).to(features.device)], batch)

        helped, waiting = self._group.ranks.world_size > NUM_LANES, dict[int, torch.Tensor]()
        share = sum(len(rows) for _, rows in self._batches(total))
        progress = counting(f"{self.features.name} of {images.name}", share, self._shows_progress)
        with self._together(), progress as advance:
            computed = self._pool.stream(lambda each: self._compute(images, *each), self._batches(total))
            for batch, rows, features in computed:
                advance(len(rows))
                ledger[rows.start : rows.stop] += 1
                places = place[rows.start : rows.stop]
                kept[places[places >= 0]] = features[(places >= 0).to(features.device)].cpu()
                if helped:
                    waiting[batch] = features.cpu()
                else:
                    add(batch, features)
        for batch, features in self._of_own_lanes(waiting, total).items():
            add(batch, features)
        check_ledger(self._group.sum_(ledger))
        for each in (moments, *by_class):
            each.sum_over(self._group)
        classes = tuple(each.statistics() if each.count > dim else None for each in by_class)
        if self._keeps:
            self._group.sum_(kept)
        return Collected(moments.statistics(), kept if self._keeps else None, classes, self._sample(images))

    def collect_once(self, images: ImageSet, num_classes: int = 0) -> Collected:
        """`collect`, or what the cache holds of these very images through these very features."""
        if not images.identity:
            return self.collect(images, num_classes)
        kept = self._config.num_kept if self._keeps else 0
        key = self._key(images=images.identity, kept=kept, classes=num_classes)
        path = _cache_folder() / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"
        collected: Collected | None = self._group.from_first(_cached(path, key) if self._is_first else None)
        if collected is None:
            collected = self.collect(images, num_classes)
            if self._is_first:
                _keep(path, collected, key)
        return collected

    def save(self, path: Path, collected: Collected) -> None:
        """Saves what is known of a set for `load`, as a `.npz` that pytorch-fid reads, too."""
        if self._is_first:
            _save(path, collected, self._key())

    def load(self, path: Path) -> Collected:
        """What `save` or pytorch-fid wrote.

        Raises: EvaluationError if it cannot be read, or is of other features, as far as it says.
        """
        collected, key = _load(path)
        dim = len(collected.statistics.mean)
        if dim != self.features.dim:
            raise EvaluationError(f"{path} is of {dim} features, and {self.features.name} has {self.features.dim}")
        description = json.loads(key) if key else {}
        if key and any(description[part] != value for part, value in json.loads(self._key()).items()):
            raise EvaluationError(
                f"{path} was computed with other weights, preprocessing or precision ({description['features']}: "
                f"{description['preprocessing']}) than {self.features.name} ({self.features.identity}: "
                f"{self.features.preprocessing}). Compute it again, with --save-statistics"
            )
        return collected

    def frechet(self, real: Collected, generated: Collected) -> float:
        """The Fréchet distance alone, the same on every rank."""
        return self._on_first(lambda: frechet_distance(real.statistics, generated.statistics))

    def metrics(self, real: Collected, generated: Collected, class_names: tuple[str, ...] = ()) -> dict[str, Any]:
        """Every metric that the recipe wants, as plain values for JSON; the same on every rank.

        Args:
            class_names: for the distance of each class; without them it is left out.
        """
        metrics: dict[str, Any] = {"distance": self.frechet(real, generated)}
        if real.sample is not None and generated.sample is not None:
            pairs = zip(("fast", "exact"), real.sample, generated.sample, strict=True)
            distances = self._on_first(lambda: {name: _distance(one, other) for name, one, other in pairs})
            metrics["on_sample"] = {"num_samples": generated.sample.shape[1], **distances}
        if real.kept is not None and generated.kept is not None:
            if self._config.kernel:
                kernel = kernel_distance(real.kept, generated.kept, self._group, self._pool)
                metrics["kernel_distance"] = kernel.distance
                metrics["kernel_distance_standard_error"] = kernel.standard_error
            if self._config.neighbours:
                near = precision_recall(real.kept, generated.kept, self._group, self._pool, self._config.neighbours)
                metrics |= {"precision": near.precision, "recall": near.recall}
        if class_names:
            pairs = zip(class_names, real.by_class, generated.by_class, strict=True)
            metrics["classes"] = self._on_first(
                lambda: {name: None if a is None or b is None else frechet_distance(a, b) for name, a, b in pairs}
            )
        return metrics

    def _sample(self, images: ImageSet) -> torch.Tensor | None:
        """The features of some of the images, evenly spread, as they are computed and in float32."""
        if self._exact is None:
            return None
        count = min(SAMPLE_SIZE, images.num_images)
        rows = [int(row) for row in np.linspace(0, images.num_images - 1, count)]
        table = torch.zeros(2, count, self.features.dim)
        mine = range(self._group.ranks.rank, count, self._group.ranks.world_size)
        with self._together():
            for i, features in zip(mine, self._pool.stream(lambda i: self._both(images, rows[i]), mine), strict=True):
                table[:, i] = features.cpu()
        return self._group.sum_(table)

    def _both(self, images: ImageSet, row: int) -> torch.Tensor:
        """The features of one image as they are computed and in float32, (2, d)."""
        assert self._exact is not None
        pixels = images.images(range(row, row + 1))
        return torch.cat([self.features(pixels), self._exact(pixels)])

    @property
    def _is_first(self) -> bool:
        return self._group.ranks.is_first

    def _key(self, **more: Any) -> str:
        """Says what statistics are of: the features, and whatever else."""
        description = {"features": self.features.identity, "preprocessing": self.features.preprocessing, **more}
        return json.dumps(description, sort_keys=True)

    def _batches(self, total: int) -> Iterator[tuple[int, range]]:
        """The number and the rows of each batch that this rank computes: whole lanes of `Moments`, if it has any."""
        size, ranks = self._config.batch_size, self._group.ranks
        for batch, start in enumerate(range(0, total, size)):
            if batch % max(NUM_LANES, ranks.world_size) % ranks.world_size == ranks.rank:
                yield batch, range(start, min(start + size, total))

    def _of_own_lanes(self, computed: dict[int, torch.Tensor], total: int) -> dict[int, torch.Tensor]:
        """The features (b, d) of all batches of this rank's lane, ascending, where there are more ranks than lanes.

        Args:
            computed: those of the batches that this rank has computed; none where it has added them up already.
        """
        ranks, size, dim = self._group.ranks, self._config.batch_size, self.features.dim
        if ranks.world_size <= NUM_LANES:
            return {}
        own: dict[int, torch.Tensor] = {}
        sent, received = defaultdict[int, list[torch.Tensor]](list), defaultdict[int, list[torch.Tensor]](list)
        for batch, start in enumerate(range(0, total, size)):
            owner, helper = batch % NUM_LANES, batch % ranks.world_size
            if owner == ranks.rank:
                own[batch] = computed[batch] if batch in computed else torch.empty(min(size, total - start), dim)
            if owner != helper == ranks.rank:
                sent[owner].append(computed[batch])
            if owner == ranks.rank != helper:
                received[helper].append(own[batch])
        self._group.transfer(sent, received)
        return own

    def _compute(self, images: ImageSet, batch: int, rows: range) -> tuple[int, range, torch.Tensor]:
        return batch, rows, self.features(images.images(rows))

    def _on_first(self, compute: Callable[[], Result]) -> Result:
        """What rank 0 computes, on every rank; its error, too."""
        result = None
        with self._together():
            if self._is_first:
                result = compute()
        return cast(Result, self._group.from_first(result))

    @contextmanager
    def _together(self) -> Iterator[None]:
        """Raises one rank's error on all ranks at the end, so that none waits for one that is gone."""
        error: CifarscaleError | None = None
        try:
            yield
        except CifarscaleError as caught:
            error = caught
        self._group.raise_together(error)


def _distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """The Fréchet distance of two sets of features (n, d), (m, d)."""
    moments = Moments(one.shape[1]), Moments(one.shape[1])
    for each, features in zip(moments, (one, other), strict=True):
        each.add(features)
    return frechet_distance(moments[0].statistics(), moments[1].statistics())


def _save(path: Path, collected: Collected, key: str) -> None:
    """Saves all of it, with a key that says what it is of."""
    known = [(label, statistics) for label, statistics in enumerate(collected.by_class) if statistics is not None]
    arrays: dict[str, NDArray[Any]] = {"key": np.array(key), "num_classes": np.array(len(collected.by_class))}
    if collected.sample is not None:
        arrays["sample"] = collected.sample.numpy()
    if collected.kept is not None:
        arrays["kept"] = collected.kept.numpy()
    if known:
        arrays["classes"] = np.array([label for label, _ in known])
        arrays["class_num_samples"] = np.array([statistics.num_samples for _, statistics in known])
        arrays["class_mu"] = np.stack([statistics.mean.numpy() for _, statistics in known])
        arrays["class_sigma"] = np.stack([statistics.covariance.numpy() for _, statistics in known])
    collected.statistics.save(path, **arrays)


def _load(path: Path) -> tuple[Collected, str]:
    """What was saved, and its key, empty if it has none. Raises: EvaluationError."""
    statistics = Statistics.load(path)
    with np.load(path) as file:
        by_class: list[Statistics | None] = [None] * int(file["num_classes"]) if "num_classes" in file else []
        if "classes" in file:
            columns = (file[name] for name in ("classes", "class_num_samples", "class_mu", "class_sigma"))
            for label, count, mean, covariance in zip(*columns, strict=True):
                by_class[label] = Statistics(torch.from_numpy(mean), torch.from_numpy(covariance), int(count))
        kept = torch.from_numpy(file["kept"]) if "kept" in file else None
        sample = torch.from_numpy(file["sample"]) if "sample" in file else None
        return Collected(statistics, kept, tuple(by_class), sample), str(file["key"]) if "key" in file else ""


def _cached(path: Path, key: str) -> Collected | None:
    """What the cache holds; None if nothing, or something that is damaged or of another key."""
    if not path.exists():
        return None
    try:
        collected, saved_key = _load(path)
    except (EvaluationError, OSError, ValueError, KeyError, IndexError, zipfile.BadZipFile) as error:
        log.warning("%s is damaged, and is computed again: %s", path, str(error).splitlines()[0])
        return None
    if saved_key != key:
        return None
    with suppress(OSError):
        path.touch()  # it was used
    return collected


def _keep(path: Path, collected: Collected, key: str) -> None:
    """Puts it into the cache, and takes out what has not been used for longest; a cache that fails loses nothing."""
    try:
        _save(path, collected, key)
        files = sorted(path.parent.glob("*.npz"), key=lambda file: file.stat().st_mtime, reverse=True)
        total = 0
        for file in files:
            total += file.stat().st_size
            if total > CACHE_BYTES and file != path:
                file.unlink(missing_ok=True)
    except (CifarscaleError, OSError) as error:
        log.warning("the statistics are not kept for the next time: %s", error)


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cifarscale" / "statistics"
