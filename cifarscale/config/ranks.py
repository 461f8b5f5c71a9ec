"""How the samples of a step are shared among ranks."""

from cifarscale.config.recipe import MOST_MICROBATCHES, TrainingRecipe
from cifarscale.errors import ConfigError, TooManyRanksError


def numbers_of_ranks(recipe: TrainingRecipe) -> list[int]:
    """All numbers of ranks that can share the recipe's global batch, the smallest first.

    Any number shares microbatches, up to theirs; without them shares must be equal.
    """
    if microbatches := recipe.training.microbatches:
        return list(range(1, microbatches + 1))
    splits = recipe.training.global_batch_size // recipe.samples_together
    return [n for n in range(1, splits + 1) if splits % n == 0]


def batch_size_per_rank(recipe: TrainingRecipe, world_size: int) -> int:
    """Samples that a rank computes in a step, at most.

    Raises: TooManyRanksError if there is nothing left for some; ConfigError if the global batch cannot be split evenly
        where it must be, with the numbers of ranks for which it can.
    """
    batch, microbatches = recipe.training.global_batch_size, recipe.training.microbatches
    valid = numbers_of_ranks(recipe)
    listed = f"{', '.join(map(str, valid[:12]))}{' …' if len(valid) > 12 else ''}"
    shown = f"1 to {microbatches}" if microbatches > 1 else listed
    if world_size > valid[-1]:
        raise TooManyRanksError(f"{most_fed(recipe)}, and there would be {world_size}; valid numbers of ranks: {shown}")
    if world_size not in valid:
        raise ConfigError(
            f"training.global_batch_size = {batch} cannot be split evenly over {world_size} ranks; valid numbers of "
            f"ranks: {shown}"
        )
    return batch // microbatches * most_microbatches(recipe, world_size) if microbatches else batch // world_size


def most_microbatches(recipe: TrainingRecipe, world_size: int) -> int:
    """Microbatches that a rank computes in a step, at most: by them goes the pace of all."""
    return -(-recipe.training.microbatches // world_size)


def most_fed(recipe: TrainingRecipe) -> str:
    """How many ranks a recipe has something to do for, in words."""
    batch, microbatches, most = (
        recipe.training.global_batch_size,
        recipe.training.microbatches,
        numbers_of_ranks(recipe)[-1],
    )
    parts = f" in {microbatches} microbatch{'es' if microbatches > 1 else ''}" if microbatches else ""
    return f"{batch:,} images{parts} feed at most {most} rank{'s' if most > 1 else ''}"


def why_auto(recipe: TrainingRecipe) -> str:
    """Why `training.microbatches = "auto"` is what it is in this recipe, in words."""
    least = recipe.least_samples_of_microbatch
    reason = ", for its batch normalisation" if recipe.takes_batch_statistics else ""
    chosen, batch = recipe.training.microbatches, recipe.training.global_batch_size
    if chosen == 1:
        return f"1: {batch:,} images leave two microbatches less than {least} images each{reason}, or uneven"
    return (
        f"{chosen}: the largest power of two up to {MOST_MICROBATCHES} that divides {batch:,} images and leaves each "
        f"microbatch {least} of them or more{reason}"
    )


def check_num_workers(recipe: TrainingRecipe, num_workers: int) -> None:
    """Raises: ConfigError for reading processes that the recipe's reader has no use for."""
    if num_workers and recipe.data.reader != "streaming":
        raise ConfigError(f"--num-workers {num_workers} has no effect with data.reader = {recipe.data.reader!r}")
