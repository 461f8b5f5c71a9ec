"""A task that another package brings: an autoencoder that `cifarscale` finds by its entry point."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import PositiveInt
from torch import nn
from torch.nn import functional as F

from cifarscale.config.recipe import Metric, Section, TrainingRecipe
from cifarscale.config.registry import register_task
from cifarscale.data.batches import Batch
from cifarscale.data.manifest import Manifest
from cifarscale.data.normalisation import training_normalisation
from cifarscale.distributed.ranks import Ranks
from cifarscale.runs.run_folder import RunFolder
from cifarscale.tasks.trained import Trained
from cifarscale.tasks.training import TrainingTask
from cifarscale.tasks.view import View
from cifarscale.tracking.charts import Chart
from cifarscale.tracking.parts import Cell, Table
from cifarscale.tracking.parts import Section as ReportSection
from cifarscale.training.learner import Learner, LearnerContext


class AutoencoderConfig(Section):
    width: PositiveInt = 4
    """Channels of the code."""


class AutoencoderRecipe(TrainingRecipe):
    """Trains an autoencoder."""

    needs_validation: ClassVar[bool] = True

    task: Literal["autoencoder"] = "autoencoder"
    model: AutoencoderConfig = AutoencoderConfig()

    @property
    def metrics(self) -> tuple[Metric, ...]:
        return Metric("validation_error", "min"), Metric("validation.error", "min", is_final=True)


class Autoencoder(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.encode = nn.Conv2d(3, width, 4, stride=4)
        self.decode = nn.ConvTranspose2d(width, 3, 4, stride=4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        decoded: torch.Tensor = self.decode(F.relu(self.encode(images)))
        return decoded


def build(recipe: AutoencoderRecipe, device: torch.device) -> Autoencoder:
    torch.manual_seed(recipe.seed)
    return Autoencoder(recipe.model.width).to(device)


@dataclass(frozen=True)
class Images:
    images: torch.Tensor

    def part(self, i: int, parts: int) -> Self:
        return type(self)(self.images[i::parts])


class AutoencoderLearner(Learner):
    optimized_networks = ("autoencoder",)

    def __init__(self, recipe: AutoencoderRecipe, context: LearnerContext) -> None:
        self._recipe, self._data, self._device = recipe, context.data, context.device
        self._normalise = training_normalisation(context.data.manifest, context.device)
        self.networks = {"autoencoder": build(recipe, context.device)}

    def prepare(self, batch: Batch, step: int) -> Images:
        return Images(self._normalise(batch.images))

    def loss(
        self, update: str, networks: Mapping[str, nn.Module], part: Images, step: int
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        return F.mse_loss(networks[update](part.images), part.images), ()

    def metrics(self, update: str, part: Images, outputs: tuple[torch.Tensor, ...]) -> dict[str, torch.Tensor]:
        return {"brightness": part.images.mean()}

    def example_inputs(self, batch_size: int) -> dict[str, tuple[torch.Tensor, ...]]:
        shape = self._data.manifest.spec.image_shape
        return {"autoencoder": (torch.zeros(batch_size, *shape, device=self._device),)}

    def evaluate(self, networks: Mapping[str, nn.Module], step: int) -> dict[str, float]:
        return {"validation_error": self._error(networks)}

    def result(self, networks: Mapping[str, nn.Module]) -> dict[str, Any]:
        return {"validation": {"error": self._error(networks)}}

    def _error(self, networks: Mapping[str, nn.Module]) -> float:
        """On every rank the whole split, and so the same."""
        split = self._data.split("validation" if self._recipe.data.num_validation else "test")
        with torch.inference_mode():
            errors = [
                F.mse_loss(networks["autoencoder"](images), images, reduction="sum")
                for images in (self._normalise(chunk.images) for chunk in split.chunks(Ranks(), 100))
            ]
        return float(torch.stack(errors).sum()) / split.num_samples


class AutoencoderView(View):
    def outcome(self, result: Mapping[str, Any]) -> str:
        return f"error {result['validation']['error']:.1f}"

    def charts(self) -> tuple[Chart, ...]:
        return (Chart("Reconstruction", {"loss": "training"}, "squared error"),)

    def sections(self, folder: RunFolder, recipe: AutoencoderRecipe, data: str | None) -> list[ReportSection]:
        table = Table("Size of the code", ["what", "numbers"], [[Cell("code"), Cell(str(64 * recipe.model.width))]])
        return [ReportSection("code", "The code", table)]


@register_task("autoencoder")
class AutoencoderTask(TrainingTask):
    """Trains an autoencoder."""

    recipe = AutoencoderRecipe
    view = AutoencoderView()
    progress_metrics = ("loss", "brightness")

    def learner(self, recipe: AutoencoderRecipe, context: LearnerContext) -> Learner:
        return AutoencoderLearner(recipe, context)

    def load(
        self, recipe: AutoencoderRecipe, manifest: Manifest, state: dict[str, Any], device: torch.device
    ) -> Trained:
        network = build(recipe, device)
        network.load_state_dict(state["networks"]["autoencoder"])
        return Trained(recipe, manifest, network.eval(), state["step"], device)

    def wandb_tables(self, run_dir: Path) -> dict[str, Any]:
        return {"code": 64}
