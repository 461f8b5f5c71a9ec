"""The task `my_task`: an autoencoder, as a start. This file is part of the runs that it trains."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from torch import nn
from torch.nn import functional as F

import cifarscale as cs
from cifarscale.config.recipe import Metric, TrainingRecipe
from cifarscale.data.batches import Batch
from cifarscale.data.manifest import Manifest
from cifarscale.data.normalisation import training_normalisation
from cifarscale.distributed.ranks import Ranks
from cifarscale.tasks.trained import Trained
from cifarscale.tasks.training import TrainingTask
from cifarscale.tasks.view import View
from cifarscale.tracking.charts import Chart
from cifarscale.training.learner import Learner, LearnerContext, Outputs


class MyTaskConfig(cs.Section):
    """The keys of `[model]`, each with its default."""

    width: int = 8
    """Channels of the code."""


class MyTaskRecipe(TrainingRecipe):
    """The keys that all trainings have, and these."""

    needs_validation: ClassVar[bool] = True

    task: Literal["my_task"] = "my_task"
    model: MyTaskConfig = MyTaskConfig()

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """By what a sweep can compare runs: what `evaluate` returns below, and keys of `result`."""
        return Metric("validation_error", "min"), Metric("validation.error", "min", is_final=True)


class Autoencoder(nn.Module):
    """Normalised images (N, C, H, W) to the same."""

    def __init__(self, config: MyTaskConfig, data: cs.DataSpec) -> None:
        super().__init__()
        self.encode = nn.Conv2d(data.image_shape[0], config.width, 4, stride=4)
        self.decode = nn.ConvTranspose2d(config.width, data.image_shape[0], 4, stride=4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.decode(F.relu(self.encode(images)))


def build(recipe: MyTaskRecipe, data: cs.DataSpec, device: torch.device) -> nn.Module:
    """The network with freshly drawn weights, a function of the seed."""
    torch.manual_seed(recipe.seed)
    return Autoencoder(recipe.model, data).to(device)


@dataclass(frozen=True)
class Images:
    """A rank's share of a global batch."""

    images: torch.Tensor

    def part(self, i: int, parts: int) -> Self:
        """Microbatch i of `parts`."""
        return type(self)(self.images[i::parts])


class MyTaskLearner(Learner):
    """How the network is trained and evaluated."""

    optimized_networks = ("autoencoder",)

    def __init__(self, recipe: MyTaskRecipe, context: LearnerContext) -> None:
        manifest = context.data.manifest
        self._data, self._device, self._spec = context.data, context.device, manifest.spec
        self._normalise = training_normalisation(manifest, context.device)
        self._split = "validation" if recipe.data.num_validation else "test"
        self.networks = {"autoencoder": build(recipe, manifest.spec, context.device)}

    def prepare(self, batch: Batch, step: int) -> Images:
        """What is augmented or drawn here must depend on the seed, the step and the sample alone."""
        return Images(self._normalise(batch.images))

    def loss(
        self, update: str, networks: Mapping[str, nn.Module], part: Images, step: int
    ) -> tuple[torch.Tensor, Outputs]:
        """A mean over the samples of a microbatch."""
        return F.mse_loss(networks[update](part.images), part.images), ()

    def metrics(self, update: str, part: Images, outputs: Outputs) -> dict[str, torch.Tensor]:
        """Further scalars for the log."""
        return {}

    def example_inputs(self, batch_size: int) -> dict[str, tuple[torch.Tensor, ...]]:
        """Inputs of the right shapes."""
        return {"autoencoder": (torch.zeros(batch_size, *self._spec.image_shape, device=self._device),)}

    def evaluate(self, networks: Mapping[str, nn.Module], step: int) -> dict[str, float]:
        """Metrics for the log."""
        return {f"{self._split}_error": self._error(networks)}

    def result(self, networks: Mapping[str, nn.Module]) -> dict[str, Any]:
        """What result.json holds at the end."""
        return {self._split: {"error": self._error(networks)}}

    def _error(self, networks: Mapping[str, nn.Module]) -> float:
        """Of the whole split, on every rank, and so the same."""
        split = self._data.split(self._split)
        with torch.inference_mode():
            errors = [
                F.mse_loss(networks["autoencoder"](images), images, reduction="sum") / images[0].numel()
                for images in (self._normalise(chunk.images) for chunk in split.chunks(Ranks(), 100))
            ]
        return float(torch.stack(errors).sum()) / split.num_samples


class MyTaskView(View):
    """What the terminal and the report show."""

    def outcome(self, result: Mapping[str, Any]) -> str:
        """A few words for `cifarscale runs`."""
        return f"error {(result.get('validation') or result['test'])['error']:.3f}"

    def charts(self) -> tuple[Chart, ...]:
        """What is drawn of the log."""
        return (
            Chart(
                "Reconstruction",
                {"loss": "training", "validation_error": "validation", "test_error": "test"},
                "squared error",
            ),
        )


@cs.register_task("my_task")
class MyTask(TrainingTask):
    """What `task = "my_task"` does."""

    recipe = MyTaskRecipe
    view = MyTaskView()

    def learner(self, recipe: MyTaskRecipe, context: LearnerContext) -> Learner:
        """What the engine trains."""
        return MyTaskLearner(recipe, context)

    def load(self, recipe: MyTaskRecipe, manifest: Manifest, state: dict[str, Any], device: torch.device) -> Trained:
        """What was trained, from a checkpoint: `cs.load(RUN).network()`."""
        network = build(recipe, manifest.spec, device)
        network.load_state_dict((state["averages"] or state["networks"])["autoencoder"])
        return Trained(recipe, manifest, network.eval(), state["step"], device)
