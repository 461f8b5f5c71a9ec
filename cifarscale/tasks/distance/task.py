"""The task `distance`: how close images are to real ones."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifarscale.config.load import with_values
from cifarscale.config.registry import register_task
from cifarscale.data.build import locate_shards
from cifarscale.errors import ConfigError, short_path
from cifarscale.runs.options import RunOptions
from cifarscale.runs.run_folder import RunFolder, default_run_dir
from cifarscale.tasks.base import PreparedRun
from cifarscale.tasks.distance.needs import absolute_paths, is_split, require_features
from cifarscale.tasks.distance.recipe import DistanceRecipe
from cifarscale.tasks.distance.view import DistanceView
from cifarscale.tasks.measuring import MeasuringTask
from cifarscale.tasks.training import locate_data

if TYPE_CHECKING:
    import torch

    from cifarscale.distributed.cpu_pool import CpuPool
    from cifarscale.distributed.group import Group


@register_task("distance")
class DistanceTask(MeasuringTask):
    """Compares images with real ones."""

    recipe = DistanceRecipe
    view = DistanceView()

    def prepare(
        self, recipe: DistanceRecipe, run_dir: Path | None, data: str | None, options: RunOptions
    ) -> PreparedRun:
        if not recipe.images:
            raise ConfigError(
                "fid needs the images to measure. Add: --set images=RUN, a folder of images, train or test"
            )
        require_features(recipe.distance)
        shards = _shards(recipe, data)
        changes = absolute_paths(recipe.distance)
        for key in ("images", "save_statistics"):
            path = getattr(recipe, key)
            if path and (key != "images" or not is_split(path)):
                changes[key] = str(Path(path).absolute())
        recipe = with_values(recipe, **{key.replace(".", "__"): value for key, value in changes.items()})
        folder = (run_dir or default_run_dir(recipe)).absolute()
        return PreparedRun(recipe, folder, options.on(shards and shards.resolve()))

    def measure(
        self, recipe: DistanceRecipe, options: RunOptions, group: "Group", pool: "CpuPool", device: "torch.device"
    ) -> dict[str, Any]:
        """Compares a generator's images, or those of a folder or a split, with real ones."""
        from cifarscale.data.dataset import Dataset
        from cifarscale.distributed.device import device_name
        from cifarscale.tasks.distance.reference import images_of, open_reference
        from cifarscale.tasks.load import load_generator

        path, config = Path(recipe.images), recipe.distance
        measured: dict[str, Any] = {"images": short_path(path)}
        conditional = False
        if RunFolder(path).recipe.exists():
            trained = load_generator(path, device)
            images = trained.images(recipe.seed, config.num_samples)
            conditional = trained.is_conditional
            measured |= {"step": trained.step, "seed": recipe.seed}
            if options.shards is not None:
                Dataset(options.shards, trained.recipe.data, device)  # checks that it is the very data of the run
        else:
            images, _ = images_of(recipe.images, options.shards, device)
        reference = open_reference(
            config, options.shards, images.num_images, conditional, group, pool, device, shows_progress=True
        )
        started = time.perf_counter()
        metrics = reference.metrics(images, Path(recipe.save_statistics) if recipe.save_statistics else None)
        return (
            measured
            | metrics
            | {
                "seconds": round(time.perf_counter() - started, 1),
                "world_size": group.ranks.world_size,
                "device": device_name(device),
            }
        )


def _shards(recipe: DistanceRecipe, data: str | None) -> Path | None:
    """The folder of shards that real images are read from; None if the recipe names no split.

    Args:
        data: a data set or a folder of shards; None for the recipe's own, else that of the run that is measured.
    """
    if not is_split(recipe.images) and not is_split(recipe.distance.against):
        return None
    folder = RunFolder(Path(recipe.images))
    data = data or recipe.dataset or None
    if folder.recipe.exists():
        return locate_data(folder.load_training_recipe(), data)
    return locate_shards(data or "cifar100")
