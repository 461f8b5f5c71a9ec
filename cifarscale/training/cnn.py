"""The classifier's task: cross-entropy on augmented images; evaluated by accuracy."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from cifarscale.config.cnn import ClassifierRecipe
from cifarscale.data.augmentation import Augmentation, LabelledImages, Normalisation
from cifarscale.data.batches import Batch
from cifarscale.data.dataset import Dataset
from cifarscale.data.manifest import Manifest
from cifarscale.distributed.cores import Cores
from cifarscale.distributed.group import Group
from cifarscale.evaluation.accuracy import Accuracy, evaluate_classifier
from cifarscale.models.registry import classifier
from cifarscale.training.task import Outputs, Task


def build_classifier(recipe: ClassifierRecipe, manifest: Manifest, device: torch.device) -> nn.Module:
    """The recipe's classifier with freshly drawn weights, a function of the seed; channels last in memory."""
    torch.manual_seed(recipe.seed)
    network: nn.Module = classifier(num_classes=len(manifest.fine_names), **recipe.model.model_dump())
    return network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


class CnnTask(Task):
    updates: ClassVar[tuple[str, ...]] = ("classifier",)
    shown: ClassVar[tuple[str, ...]] = ("loss", "accuracy")

    def __init__(
        self, recipe: ClassifierRecipe, data: Dataset, group: Group, cores: Cores, device: torch.device
    ) -> None:
        self._recipe, self._data, self._group, self._cores, self._device = recipe, data, group, cores, device
        self.networks = {"classifier": build_classifier(recipe, data.manifest, device)}
        self._normalise = training_normalisation(data.manifest, device)
        self._augment = Augmentation(recipe.augmentation, self._normalise, recipe.seed)
        self._evaluated: dict[str, Accuracy] = {}

    def prepare(self, batch: Batch, step: int) -> LabelledImages:
        return self._augment(batch, step)

    def loss(
        self, update: str, networks: Mapping[str, nn.Module], part: LabelledImages, step: int
    ) -> tuple[torch.Tensor, Outputs]:
        logits = networks[update](part.images)
        smoothing = self._recipe.label_smoothing
        loss = F.cross_entropy(logits, part.labels, label_smoothing=smoothing)
        if part.weight < 1:
            others = F.cross_entropy(logits, part.others, label_smoothing=smoothing)
            loss = part.weight * loss + (1 - part.weight) * others
        return loss, (logits,)

    def figures(self, update: str, part: LabelledImages, outputs: Outputs) -> dict[str, torch.Tensor]:
        return {"accuracy": (outputs[0].argmax(1) == part.labels).float().mean()}

    def example_inputs(self, batch_size: int) -> dict[str, tuple[torch.Tensor, ...]]:
        images = torch.zeros(batch_size, 3, 32, 32, device=self._device)
        return {"classifier": (images.to(memory_format=torch.channels_last),)}

    def evaluate(self, networks: Mapping[str, nn.Module], step: int) -> dict[str, float]:
        split = "validation" if self._recipe.data.num_validation else "test"
        return {f"{split}_{key}": value for key, value in self._figures(networks, split).items()}

    def result(self, networks: Mapping[str, nn.Module]) -> dict[str, Any]:
        splits = ["train", "validation", "test"] if self._recipe.data.num_validation else ["train", "test"]
        return {split: self._figures(networks, split) for split in splits}

    def tables(self) -> dict[str, Any]:
        """How often each class of the test set was taken for which: rows are labels, columns predictions."""
        manifest = self._data.manifest
        matrix = self._evaluated["test"].confusion(len(manifest.fine_names))
        confusion = {
            "classes": manifest.fine_names,
            "superclasses": manifest.coarse_names,
            "superclass_of_class": manifest.coarse_of_fine,
            "matrix": matrix.tolist(),
        }
        return {"confusion-test": confusion}

    def _figures(self, networks: Mapping[str, nn.Module], split: str) -> dict[str, float]:
        samples = self._data.split(split)
        batch_size = self._recipe.evaluation.batch_size
        self._evaluated[split] = evaluate_classifier(
            networks["classifier"], samples, self._normalise, self._group, self._cores, batch_size
        )
        return self._evaluated[split].figures


def training_normalisation(manifest: Manifest, device: torch.device) -> Normalisation:
    """The normalisation by the training split's mean and standard deviation."""
    train = manifest.split("train")
    return Normalisation(train.mean, train.std, device)
