"""Opens what a `[distance]` names: the feature network, and the real images that others are compared with."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cifarscale.config.distance import DistanceConfig
from cifarscale.data.images import ImageSet, images_of_folder, images_of_split
from cifarscale.data.manifest import Manifest
from cifarscale.data.normalisation import training_normalisation
from cifarscale.distributed.cpu_pool import CpuPool
from cifarscale.distributed.group import Group
from cifarscale.errors import EvaluationError, short_path
from cifarscale.evaluation.distance import Collected, Measure
from cifarscale.evaluation.features import FeatureNetwork, Precision, classifier_features, inception
from cifarscale.evaluation.frechet import require_samples
from cifarscale.tasks.distance.needs import is_split, lacks_features
from cifarscale.tasks.load import load_classifier

log = logging.getLogger(__name__)

OFFICIAL_WEIGHTS = "6726825d"
"""What the sha256 of pytorch-fid's weights begins with; only with these is a distance called FID."""


@dataclass(frozen=True)
class Reference:
    """Real images in a feature space: what others are compared with.

    Attributes:
        metric: what the distance is called.
        name: of the real images.
        class_names: for the distance of each class; empty where it is left out.
    """

    config: DistanceConfig
    measure: Measure
    metric: str
    name: str
    real: Collected
    class_names: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """What the distance is called in the log."""
        return "fid" if self.metric == "FID" else "frechet_distance"

    def frechet(self, images: ImageSet) -> float:
        """The Fréchet distance alone, the same on every rank."""
        return self.measure.frechet(self.real, self.measure.collect(images))

    def metrics(self, images: ImageSet, save: Path | None = None) -> dict[str, Any]:
        """Every metric that the recipe wants, the same on every rank.

        Args:
            save: where to save the statistics of the images, for another call to compare with.
        """
        collected = self.measure.collect(images, len(self.class_names))
        if save is not None:
            self.measure.save(save, collected)
        return {
            "metric": self.metric,
            "features": self.measure.features.name,
            "computed": self.config.precision,
            "against": self.name,
            "num_real": self.real.statistics.num_samples,
            "num_samples": images.num_images,
            **self.measure.metrics(self.real, collected, self.class_names),
        }


def open_reference(
    config: DistanceConfig,
    shards: Path | None,
    num_images: int,
    conditional: bool,
    group: Group,
    pool: CpuPool,
    device: torch.device,
    shows_progress: bool = False,
) -> Reference:
    """What `config` compares with; computed now, where it is not in the cache.

    Args:
        shards: where the splits of the data set lie; not needed where `config.against` names something else.
        num_images: that will be compared, so that too few are found before anything is computed.
        conditional: whether they will have classes.
    Raises: EvaluationError, RunError or DataError for whatever cannot be opened, or does not fit.
    """
    features = _features(config, config.precision, group, device)

    def require(number: int | None, what: str) -> None:
        if not config.allow_few_samples:
            require_samples(number, features.dim, what)

    require(num_images, "measured images")
    exact = _features(config, "exact", group, device) if config.precision == "fast" else None
    measure = Measure(config, features, group, pool, device, shows_progress, exact)
    metric = f"Fréchet distance ({features.name})"
    if config.features == "inception":
        official = features.identity.startswith(OFFICIAL_WEIGHTS)
        metric = "FID" if official else f"Fréchet distance (Inception, weights {features.identity[:8]})"
    if config.against.endswith(".npz"):
        real = measure.load(Path(config.against))
        require(real.statistics.num_samples, "real images")
        return Reference(config, measure, metric, short_path(Path(config.against)), real)
    images, names = images_of(config.against, shards, device)
    require(images.num_images, "real images")
    wanted = config.classes and conditional and images.labels is not None
    if wanted and (fewest := min(images.num_images, num_images) // len(names)) <= features.dim:
        log.info(
            "distances by class are left out: they need more than %d images of each class, and there are %d",
            features.dim,
            fewest,
        )
        wanted = False
    real = measure.collect_once(images, len(names) if wanted else 0)
    return Reference(config, measure, metric, images.name, real, names if wanted else ())


def _features(config: DistanceConfig, precision: Precision, group: Group, device: torch.device) -> FeatureNetwork:
    """The feature network. With several ranks the first one fetches the weights, and the others find them."""
    if config.features == "inception":
        weights = Path(config.weights) if config.weights else None
        network, error = None, None
        try:
            if group.ranks.is_first:
                network = inception(weights, device, precision)
        except EvaluationError as caught:
            error = caught
        group.raise_together(error)
        return network or inception(weights, device, precision)
    if config.weights:
        raise EvaluationError(f"weights {config.weights} have no effect with features {config.features}; leave one out")
    run = Path(config.features.removeprefix("cnn:"))
    trained = load_classifier(run, device)
    if not hasattr(trained.network, "features"):
        raise EvaluationError(lacks_features(str(run)))
    normalise = training_normalisation(trained.manifest, device)
    size = trained.manifest.image_size
    return classifier_features(trained.network, normalise, f"cnn:{run.name}", device, precision, size)


def images_of(name: str, shards: Path | None, device: torch.device) -> tuple[ImageSet, tuple[str, ...]]:
    """The images of a folder or of a split, and the names of a split's classes.

    Raises: EvaluationError if the name is neither; DataError for a folder without images.
    """
    if shards is None or not is_split(name):
        return images_of_folder(Path(short_path(Path(name))), device), ()
    manifest = Manifest.load(shards)
    if name not in manifest.splits:
        splits = ", ".join(manifest.splits)
        raise EvaluationError(f"{name} is neither a folder nor a split of {manifest.dataset}; the splits are: {splits}")
    return images_of_split(shards, manifest, name, device), manifest.fine_names
