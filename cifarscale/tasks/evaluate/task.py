"""The task `evaluate`: exact accuracy of a run's classifier on a split."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifarscale.config.load import with_values
from cifarscale.config.registry import register_task
from cifarscale.errors import ConfigError
from cifarscale.runs.options import RunOptions
from cifarscale.runs.run_folder import RunFolder, default_run_dir
from cifarscale.tasks.base import PreparedRun
from cifarscale.tasks.evaluate.recipe import EvaluateRecipe
from cifarscale.tasks.evaluate.view import EvaluateView
from cifarscale.tasks.measuring import MeasuringTask
from cifarscale.tasks.training import locate_data

if TYPE_CHECKING:
    import torch

    from cifarscale.distributed.cpu_pool import CpuPool
    from cifarscale.distributed.group import Group


@register_task("evaluate")
class EvaluateTask(MeasuringTask):
    """Evaluates a trained classifier."""

    recipe = EvaluateRecipe
    view = EvaluateView()

    def prepare(
        self, recipe: EvaluateRecipe, run_dir: Path | None, data: str | None, options: RunOptions
    ) -> PreparedRun:
        if not recipe.run:
            raise ConfigError("evaluate needs the run to evaluate. Add: --set run=RUN")
        recipe = with_values(recipe, run=str(Path(recipe.run).absolute()))
        trained = RunFolder(Path(recipe.run)).load_training_recipe()
        folder = (run_dir or default_run_dir(recipe)).absolute()
        return PreparedRun(recipe, folder, options.on(locate_data(trained, data).resolve()))

    def measure(
        self, recipe: EvaluateRecipe, options: RunOptions, group: "Group", pool: "CpuPool", device: "torch.device"
    ) -> dict[str, Any]:
        """Returns: step, split, samples, metrics, and accuracy by the names of classes and, if any, superclasses."""
        import torch

        from cifarscale.data.dataset import Dataset
        from cifarscale.data.normalisation import training_normalisation
        from cifarscale.evaluation.accuracy import FlipAveraged, evaluate_classifier
        from cifarscale.tasks.load import load_classifier

        assert options.shards is not None
        run_dir, split = Path(recipe.run), recipe.split
        trained = load_classifier(run_dir, device)
        config, manifest = trained.recipe, trained.manifest
        samples = Dataset(options.shards, config.data, device).split(split)
        normalise = training_normalisation(manifest, device)
        number, size = len(manifest.fine_names), config.evaluation.batch_size
        more = trained.metrics
        accuracy = evaluate_classifier(trained.network, samples, normalise, group, pool, size, number, more)
        flipped = {}
        if recipe.flip:
            both = evaluate_classifier(
                FlipAveraged(trained.network), samples, normalise, group, pool, size, number, more
            )
            flipped = {"flip": both.metrics}
        coarse_names = manifest.coarse_names
        by_superclass = {}
        if coarse_names:
            shares = accuracy.per_group(torch.tensor(manifest.coarse_of_fine), len(coarse_names))
            by_superclass = {"superclasses": _by_name(coarse_names, shares)}
        return {
            "run": run_dir.name,
            "step": trained.step,
            "split": split,
            "samples": samples.num_samples,
            **accuracy.metrics,
            **flipped,
            **by_superclass,
            "classes": _by_name(manifest.fine_names, accuracy.per_group(torch.arange(number), number)),
        }


def _by_name(names: Sequence[str], values: Sequence[float | None]) -> dict[str, float | None]:
    return dict(zip(names, values, strict=True))
