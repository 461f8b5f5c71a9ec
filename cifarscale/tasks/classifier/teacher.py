"""The classifier that a recipe distils: found by its run, and known by its weights."""

import hashlib
from pathlib import Path

import torch
from torch import nn

from cifarscale.errors import ConfigError, typed
from cifarscale.runs.run_folder import RunFolder
from cifarscale.tasks.classifier.recipe import ClassifierRecipe
from cifarscale.tasks.load import load_classifier

_CPU = torch.device("cpu")


def find_teacher(recipe: ClassifierRecipe) -> tuple[Path, str]:
    """The teacher's folder as an absolute path, and the digest of its weights: the recipe's, if it has one.

    Raises: ConfigError if no classifier is trained there to the end, or one that does not suit the recipe; see
        `load_teacher` also.
    """
    config = recipe.distillation
    folder = RunFolder(Path(config.teacher).absolute())
    if not folder.recipe.is_file() or folder.result() is None:
        data = "" if recipe.data.dataset == "cifar100" else f" --data {typed(recipe.data.dataset)}"
        raise ConfigError(
            f"distillation.teacher = {config.teacher!r}: there is no complete run. "
            + (
                f"The one with the weights {config.weights} may lie elsewhere by now: --set distillation.teacher=RUN"
                if config.weights
                else f"Run: cifarscale train resnet{data} --run-dir {typed(config.teacher)}; or name another run with "
                "--set distillation.teacher=RUN"
            )
        )
    trained = load_classifier(folder.path, _CPU)
    theirs = trained.recipe.data
    if theirs.fingerprint != recipe.data.fingerprint:
        raise ConfigError(
            f"distillation.teacher = {config.teacher!r} was trained on other data ({theirs.dataset} "
            f"{theirs.fingerprint}) than this recipe's ({recipe.data.dataset} {recipe.data.fingerprint})"
        )
    if theirs.num_validation < recipe.data.num_validation:
        raise ConfigError(
            f"distillation.teacher = {config.teacher!r} has trained on images that this recipe sets aside for "
            f"validation: its data.num_validation = {theirs.num_validation}, and here it is "
            f"{recipe.data.num_validation}"
        )
    digest = digest_of_weights(trained.network)
    _check(recipe, digest)
    return folder.path, digest


def load_teacher(recipe: ClassifierRecipe, device: torch.device) -> nn.Module:
    """The teacher, in evaluation mode and frozen. Raises: ConfigError if its weights are not those of the recipe."""
    network = load_classifier(Path(recipe.distillation.teacher), device).network
    _check(recipe, digest_of_weights(network))
    return network.requires_grad_(False)


def _check(recipe: ClassifierRecipe, digest: str) -> None:
    config = recipe.distillation
    if config.weights not in ("", digest):
        raise ConfigError(
            f"distillation.teacher = {config.teacher!r} has other weights ({digest}) than those that this recipe names "
            f"(distillation.weights = {config.weights!r})"
        )


def digest_of_weights(network: nn.Module) -> str:
    """Sixteen hexadecimal digits of a network's weights and statistics, the same on any device."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        digest.update(values.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
