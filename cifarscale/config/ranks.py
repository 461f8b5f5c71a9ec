"""How the samples of a step are shared among ranks."""

from cifarscale.config.recipe import TrainingRecipe
from cifarscale.errors import ConfigError


def batch_size_per_rank(recipe: TrainingRecipe, world_size: int) -> int:
    """Samples that a rank computes in a step, at most.

    With microbatches, any number of ranks shares them that is not larger than theirs. Without, shares must be equal.

    Raises: ConfigError if the global batch cannot be shared so, with the numbers of ranks for which it can.
    """
    batch, microbatches = recipe.training.global_batch_size, recipe.training.microbatches
    if microbatches:
        if not 1 <= world_size <= microbatches:
            raise ConfigError(
                f"training.microbatches = {microbatches} cannot be split over {world_size} ranks; valid numbers of "
                f"ranks: 1 to {microbatches}; more ranks need a larger training.microbatches (a divisor of the batch, "
                f"{batch}), or 0"
            )
        return batch // microbatches * most_microbatches(recipe, world_size)
    splits = batch // recipe.samples_together
    valid = [n for n in range(1, splits + 1) if splits % n == 0]
    if world_size not in valid:
        raise ConfigError(
            f"training.global_batch_size = {batch} cannot be split evenly over {world_size} ranks; valid numbers of "
            f"ranks: {', '.join(map(str, valid[:12]))}{' …' if len(valid) > 12 else ''}"
        )
    return batch // world_size


def most_microbatches(recipe: TrainingRecipe, world_size: int) -> int:
    """Microbatches that a rank computes in a step, at most: by them goes the pace of all."""
    return -(-recipe.training.microbatches // world_size)


def check_num_workers(recipe: TrainingRecipe, num_workers: int) -> None:
    """Raises: ConfigError for reading processes that the recipe's reader has no use for."""
    if num_workers and recipe.data.reader != "streaming":
        raise ConfigError(f"--num-workers {num_workers} has no effect with data.reader = {recipe.data.reader!r}")
