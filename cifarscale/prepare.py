"""What is settled before a job starts: where it runs, on which data, in which folder.

Launchers need this and no more, so nothing here imports torch.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from cifarscale.config.distance import DistanceRecipe
from cifarscale.config.load import recipe_hash, with_values
from cifarscale.config.recipe import Recipe, TrainingRecipe
from cifarscale.data.build import locate_shards
from cifarscale.data.manifest import Manifest
from cifarscale.errors import ConfigError
from cifarscale.runs.run_folder import RUNS_ROOT, RunFolder


@dataclass(frozen=True)
class RunOptions:
    """Where and how a job runs; none of it changes what the job computes.

    Attributes:
        shards: the folder of shards on this machine.
        device: `cpu`, `cuda` or `auto`.
        num_workers: reading processes a rank, for the streaming reader.
        patience_s: how long to wait for another job that still writes the run folder, before it is refused.
    """

    shards: Path
    device: str = "auto"
    num_workers: int = 0
    patience_s: float = 0

    def as_plain(self) -> dict[str, Any]:
        """As JSON takes it, to cross to another process."""
        return asdict(self) | {"shards": str(self.shards)}

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> Self:
        return cls(**values | {"shards": Path(values["shards"])})


def resolve(recipe: TrainingRecipe, shards: Path) -> TrainingRecipe:
    """The recipe tied to the shards that it runs on: the identity of a run is that of its data, too."""
    manifest = Manifest.load(shards)
    changes = {"data__dataset": manifest.dataset}
    if not recipe.data.fingerprint:
        changes["data__fingerprint"] = manifest.fingerprint
    return with_values(recipe, **changes)


def default_run_dir(job: Recipe) -> Path:
    """`runs/NAME-HASH`: the same job finds its run again, a changed one starts another."""
    return RUNS_ROOT / f"{job.name}-{recipe_hash(job)}"


def batch_size_per_rank(recipe: TrainingRecipe, world_size: int) -> int:
    """Samples that each rank computes in a step.

    Raises: ConfigError if the global batch cannot be split evenly, with the nearest number of ranks that can.
    """
    batch, microbatches = recipe.training.global_batch_size, recipe.training.microbatches
    pairs = recipe.samples_together
    splits = microbatches or batch // pairs
    valid = [n for n in range(1, splits + 1) if splits % n == 0 and batch % (n * pairs) == 0]
    if world_size not in valid:
        what = f"training.microbatches = {microbatches}" if microbatches else f"training.global_batch_size = {batch}"
        more = (
            f"; more ranks need a larger training.microbatches (a divisor of the batch, {batch}), or 0"
            if microbatches
            else ""
        )
        raise ConfigError(
            f"{what} cannot be split evenly over {world_size} ranks; valid numbers of ranks: "
            f"{', '.join(map(str, valid[:12]))}{' …' if len(valid) > 12 else ''}{more}"
        )
    return batch // world_size


def check_num_workers(recipe: TrainingRecipe, num_workers: int) -> None:
    """Raises: ConfigError for reading processes that the recipe's reader has no use for."""
    if num_workers and recipe.data.reader != "streaming":
        raise ConfigError(f"--num-workers {num_workers} has no effect with data.reader = {recipe.data.reader!r}")


def shards_to_measure(job: DistanceRecipe, data: str | None) -> Path | None:
    """The folder of shards that a job reads real images from; None if it names no split.

    Args:
        data: a data set or a folder of shards; None for the job's own, else that of the run that is measured.
    """
    folder = RunFolder(Path(job.images))
    dataset = (
        data or job.dataset or (folder.load_training_recipe().data.dataset if folder.recipe.exists() else "cifar100")
    )
    return locate_shards(dataset) if is_split(job.images) or is_split(job.distance.against) else None


def is_split(name: str) -> bool:
    """Whether this is to be a split of a data set, rather than a folder or a file of statistics."""
    return not name.endswith(".npz") and not Path(name).is_dir()
