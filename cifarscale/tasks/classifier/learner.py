"""How a classifier is trained: cross-entropy on augmented images; evaluated by accuracy."""

import logging
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.parameter import is_lazy

from cifarscale.config.code import kind_of, naming_the_line, require_imported
from cifarscale.config.registry import is_built_in, networks
from cifarscale.data.batches import Batch
from cifarscale.data.manifest import Manifest
from cifarscale.data.normalisation import training_normalisation
from cifarscale.errors import ConfigError
from cifarscale.evaluation.accuracy import Accuracy, FlipAveraged, evaluate_classifier
from cifarscale.tasks.classifier.augmentation import Augmentation, Epochs, LabelledImages, OwnAugmentations
from cifarscale.tasks.classifier.recipe import ClassifierRecipe
from cifarscale.tasks.classifier.teacher import load_teacher
from cifarscale.training.cost import BACKWARD, Cost, count_macs
from cifarscale.training.learner import Learner, LearnerContext, Outputs

log = logging.getLogger(__name__)


def build_classifier(recipe: ClassifierRecipe, manifest: Manifest, device: torch.device) -> nn.Module:
    """The recipe's classifier with freshly drawn weights, a function of the seed; channels last in memory."""
    require_imported(recipe.code, recipe.modules)
    torch.manual_seed(recipe.seed)
    with naming_the_line(f"network {recipe.model.name!r}", recipe.code):
        network: nn.Module = networks(recipe.code)[recipe.model.name].build(recipe.model, manifest.spec)
    if not isinstance(network, nn.Module):
        raise ConfigError(f"network {recipe.model.name!r} is {kind_of(network)}, and no nn.Module")
    tensors = [*network.named_parameters(), *network.named_buffers()]
    if lazy := [name for name, tensor in tensors if is_lazy(tensor)]:
        raise ConfigError(f"network {recipe.model.name!r} leaves the shape of {lazy[0]} open; say how large it is")
    # torch knows no such order of five dimensions, and refuses the whole network for one tensor of them.
    order = torch.preserve_format if any(tensor.dim() == 5 for _, tensor in tensors) else torch.channels_last
    return network.to(device, memory_format=order)  # type: ignore[call-overload,no-any-return]


def cost_of(recipe: ClassifierRecipe, manifest: Manifest) -> Cost:
    """What a stage costs; in training a teacher classifies every image, too.

    Raises: ConfigError if a network does not take images of the stage's resolution.
    """
    cpu = torch.device("cpu")
    all_networks = [build_classifier(recipe, manifest, cpu)]
    if recipe.distillation.teacher:
        all_networks.append(load_teacher(recipe, cpu))
    shape, side = manifest.spec.image_shape, recipe.augmentation.resolution
    macs = [_macs(network, shape) for network in all_networks]
    trained = [_macs(network, (shape[0], side, side)) for network in all_networks] if side else macs
    if None in trained and None not in macs:
        raise ConfigError(
            f"augmentation.resolution = {side}: not every network here takes images of that size; "
            f"set it to 0 for {shape[1]} x {shape[2]} pixels, or take a network that pools over all positions"
        )
    own, *teachers = trained
    training_macs = None if own is None or None in teachers else (1 + BACKWARD) * own + sum(filter(None, teachers))
    return Cost(macs[0], training_macs)


def _macs(network: nn.Module, shape: tuple[int, ...]) -> int | None:
    """None where that cannot be counted: a network of one's own may do what the meta device does not."""
    try:
        return count_macs(network, shape)
    except Exception as error:
        log.debug("multiply-accumulates are not counted: %s", error)
        return None


def _epochs(recipe: ClassifierRecipe, manifest: Manifest) -> Epochs:
    total = manifest.split("train").num_samples
    return Epochs(total - recipe.data.num_validation, total, recipe.training.global_batch_size)


class ClassifierLearner(Learner):
    optimized_networks: ClassVar[tuple[str, ...]] = ("classifier",)

    def __init__(self, recipe: ClassifierRecipe, context: LearnerContext) -> None:
        self._recipe, self._data, self._device = recipe, context.data, context.device
        self._group, self._pool = context.group, context.pool
        manifest = context.data.manifest
        self.networks = {"classifier": build_classifier(recipe, manifest, context.device)}
        self._normalise = training_normalisation(manifest, context.device)
        own = OwnAugmentations(recipe) if recipe.augmentation.own else None
        epochs = _epochs(recipe, manifest)
        self._augment = Augmentation(recipe.augmentation, self._normalise, recipe.seed, epochs, own)
        self._evaluated: dict[str, Accuracy] = {}
        self._teacher = load_teacher(recipe, context.device) if recipe.distillation.teacher else None

    def prepare(self, batch: Batch, step: int) -> LabelledImages:
        return self._augment(batch, step)

    def obstacle_to_graphs(self) -> str:
        """Code of one's own may do something else in each step, as nobody can see here."""
        if self._recipe.augmentation.own:
            return f"augmentation {next(iter(self._recipe.augmentation.own))!r} is code of your own"
        taught = [self._teacher] if self._teacher is not None else []
        own = [network for network in (*self.networks.values(), *taught) if not is_built_in(type(network))]
        return f"network {type(own[0]).__name__} is code of your own" if own else ""

    def kind_of(self, step: int) -> bool:
        """Whether it mixes images by mixup."""
        return self._augment.is_mixup(step)

    def loss(
        self, update: str, networks: Mapping[str, nn.Module], part: LabelledImages, step: int
    ) -> tuple[torch.Tensor, Outputs]:
        with naming_the_line(f"network {self._recipe.model.name!r}", self._recipe.code):
            logits = networks[update](part.images)
        smoothing = self._recipe.label_smoothing
        loss = F.cross_entropy(logits, part.labels, label_smoothing=smoothing)
        if part.are_mixed:
            others = F.cross_entropy(logits, part.others, label_smoothing=smoothing)
            loss = part.weight * loss + part.rest * others
        if self._teacher is not None:
            # Here and not in `prepare`: what it says to the last bit depends on the images that it sees together.
            with torch.no_grad():
                taught = self._teacher(part.images)
            config = self._recipe.distillation
            loss = torch.lerp(loss, distillation_loss(logits, taught, config.temperature), config.weight)
        return loss, (logits,)

    def metrics(self, update: str, part: LabelledImages, outputs: Outputs) -> dict[str, torch.Tensor]:
        return {"accuracy": (outputs[0].argmax(1) == part.labels).float().mean()}

    def example_inputs(self, batch_size: int) -> dict[str, tuple[torch.Tensor, ...]]:
        images = torch.zeros(batch_size, *self._data.manifest.spec.image_shape, device=self._device)
        return {"classifier": (images.to(memory_format=torch.channels_last),)}

    def evaluate(self, networks: Mapping[str, nn.Module], step: int) -> dict[str, float]:
        split = "validation" if self._recipe.data.num_validation else "test"
        values = self._accuracy(networks, split)
        return {f"{split}_{key}": value for key, value in values.items() if value is not None}

    def result(self, networks: Mapping[str, nn.Module]) -> dict[str, Any]:
        splits = ["train", "validation", "test"] if self._recipe.data.num_validation else ["train", "test"]
        result = {split: self._accuracy(networks, split) for split in splits}
        if self._recipe.test_time_flip:
            result |= {f"{split}_flip": self._accuracy(networks, split, flip=True) for split in splits}
        return result

    def tables(self) -> dict[str, Any]:
        """How often each class of the test set was taken for which: rows are labels, columns predictions.

        Superclasses are empty lists where the data set has none.
        """
        manifest = self._data.manifest
        matrix = self._evaluated["test"].confusion()
        confusion = {
            "classes": manifest.fine_names,
            "superclasses": manifest.coarse_names,
            "superclass_of_class": manifest.coarse_of_fine,
            "matrix": matrix.tolist(),
        }
        return {"confusion-test": confusion}

    def _accuracy(self, networks: Mapping[str, nn.Module], split: str, flip: bool = False) -> dict[str, float | None]:
        samples = self._data.split(split)
        batch_size, number = self._recipe.evaluation.batch_size, len(self._data.manifest.fine_names)
        network = networks["classifier"]
        accuracy = evaluate_classifier(
            FlipAveraged(network) if flip else network,
            samples,
            self._normalise,
            self._group,
            self._pool,
            batch_size,
            number,
            self._recipe.own_metrics,
        )
        if not flip:
            self._evaluated[split] = accuracy
        return accuracy.metrics


def distillation_loss(logits: torch.Tensor, taught: torch.Tensor, temperature: float) -> torch.Tensor:
    """The divergence of softened predictions from the teacher's, times the squared temperature, a mean over samples.

    Args:
        logits, taught: (b, classes), of the network and of its teacher.
    Source: Hinton et al. 2015 (arXiv 1503.02531), section 2.
    """
    softened, target = ((each.float() / temperature).log_softmax(1) for each in (logits, taught))
    return F.kl_div(softened, target, reduction="batchmean", log_target=True) * temperature**2
