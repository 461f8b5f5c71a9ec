"""The task `classifier`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifarscale.config.load import with_values
from cifarscale.config.recipe import Recipe
from cifarscale.config.registry import DataSpec, is_imported, networks, register_task
from cifarscale.data.manifest import Manifest
from cifarscale.errors import ConfigError
from cifarscale.tasks.classifier.recipe import ClassifierRecipe, check_metric_names, classifier_recipe
from cifarscale.tasks.classifier.view import ClassifierView
from cifarscale.tasks.training import TrainingTask

if TYPE_CHECKING:
    import torch
    from torch import nn

    from cifarscale.tasks.trained import TrainedClassifier
    from cifarscale.training.cost import Cost, ModelSummary
    from cifarscale.training.learner import Learner, LearnerContext


@register_task("classifier")
class ClassifierTask(TrainingTask):
    """Trains an image classifier."""

    recipe = ClassifierRecipe
    view = ClassifierView()
    trains = "classifier"
    progress_metrics = ("loss", "accuracy")

    def schema(self, code: str = "") -> type[ClassifierRecipe]:
        check_metric_names(code)
        return classifier_recipe(tuple(networks(code).values()), bool(code) and not is_imported(code))

    def check_data(self, recipe: ClassifierRecipe, data: DataSpec, metric: str = "") -> None:
        if data.num_classes < 2:
            raise ConfigError(f"a classifier needs two classes or more, and the data set has {data.num_classes}")
        if metric.endswith("top5") and data.num_classes <= 5:
            raise ConfigError(
                f"metric = {metric!r} is not reported with {data.num_classes} classes, where it is always 1. Take "
                f"{metric[:-1]}1"
            )
        check = getattr(recipe.model, "check_data", None)
        try:
            if check is not None:
                check(data)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        recipe.augmentation.check_data(data)

    def tie(self, recipe: ClassifierRecipe) -> ClassifierRecipe:
        if not recipe.distillation.teacher or recipe.distillation.weights:
            return recipe
        from cifarscale.tasks.classifier.teacher import find_teacher

        path, weights = find_teacher(recipe)
        return with_values(recipe, distillation__teacher=str(path), distillation__weights=weights)

    def check_needs(self, recipe: ClassifierRecipe, of_sweep: bool = False) -> None:
        if recipe.distillation.weights:
            from cifarscale.tasks.classifier.teacher import find_teacher

            find_teacher(recipe)

    def networks(self, recipe: ClassifierRecipe, manifest: Manifest) -> "Mapping[str, nn.Module]":
        import torch

        from cifarscale.tasks.classifier.learner import build_classifier

        return {"classifier": build_classifier(recipe, manifest, torch.device("cpu"))}

    def cost(self, recipe: ClassifierRecipe, manifest: Manifest) -> "Cost":
        from cifarscale.tasks.classifier.learner import cost_of

        return cost_of(recipe, manifest)

    def learner(self, recipe: ClassifierRecipe, context: "LearnerContext") -> "Learner":
        from cifarscale.tasks.classifier.learner import ClassifierLearner

        return ClassifierLearner(recipe, context)

    def check_code(self, recipe: ClassifierRecipe, manifest: Manifest, device: str) -> None:
        from cifarscale.distributed.device import pick_device
        from cifarscale.tasks.classifier.contract import check_contract

        check_contract(recipe, manifest, device == "cuda" or pick_device(device).type == "cuda")

    def gives_features(self, recipe: ClassifierRecipe, manifest: Manifest) -> bool:
        return not recipe.code or hasattr(self.networks(recipe, manifest)["classifier"], "features")

    def load(
        self, recipe: ClassifierRecipe, manifest: Manifest, state: dict[str, Any], device: "torch.device"
    ) -> "TrainedClassifier":
        from cifarscale.tasks.classifier.learner import build_classifier
        from cifarscale.tasks.trained import TrainedClassifier

        network = build_classifier(recipe, manifest, device)
        network.load_state_dict((state["averages"] or state["networks"])["classifier"])
        return TrainedClassifier(recipe, manifest, network.eval(), state["step"], device, recipe.own_metrics)

    def wandb_tables(self, run_dir: Path) -> dict[str, Any]:
        from cifarscale.tasks.classifier.wandb_tables import tables

        return tables(run_dir)

    def models(self, code: str = "", recipe: Recipe | None = None) -> "Sequence[ModelSummary]":
        from cifarscale.tasks.classifier.networks import summaries
        from cifarscale.tasks.classifier.own_networks import own_summaries, summary_of

        lines = summaries()
        own = own_summaries(code, {line.name for line in lines})
        chosen = summary_of(recipe) if isinstance(recipe, ClassifierRecipe) else None
        return (*lines, *own, *([chosen] if chosen else []))
