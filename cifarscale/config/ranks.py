"""How the samples of a step are shared among ranks."""

from cifarscale.config.recipe import TrainingRecipe
from cifarscale.errors import ConfigError


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
