"""The table's lines of networks that are not this package's, or not with the options of its table."""

from collections.abc import Collection
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from cifarscale.config.code import require_imported
from cifarscale.config.registry import DataSpec, RegisteredNetwork, networks
from cifarscale.errors import in_one_line
from cifarscale.tasks.classifier.networks import IMAGE_SHAPE
from cifarscale.tasks.classifier.recipe import ClassifierRecipe
from cifarscale.training.cost import ModelSummary, count_macs, count_parameters

_DATA = DataSpec(num_classes=100, image_shape=IMAGE_SHAPE)
"""What those of this package are counted for."""


def own_summaries(code: str, but: Collection[str]) -> list[ModelSummary]:
    """The networks of plugins and of a user's own code with their defaults; why, where one cannot be built by them.

    Args:
        code: its digest; empty for none.
        but: names of networks that are left out.
    """
    return [_summary(network, {}) for name, network in networks(code).items() if name not in but]


def summary_of(recipe: ClassifierRecipe) -> ModelSummary | None:
    """The network of a recipe with the options that differ from its defaults; None if none does.

    Raises: ConfigError for code of a run folder that was not imported, since this user has not trained it.
    """
    require_imported(recipe.code, recipe.modules)
    section = recipe.model
    fields = type(section).model_fields
    options = {key: value for key, value in section if key in fields and value != fields[key].default}
    return _summary(networks(recipe.code)[section.name], options) if options else None


def _summary(network: RegisteredNetwork, options: dict[str, Any]) -> ModelSummary:
    said = " ".join(
        f"{key}={value}".lower() if isinstance(value, bool) else f"{key}={value}" for key, value in options.items()
    )
    try:
        with torch.device("meta"):
            module: nn.Module = network.build(network.config.model_validate({"name": network.name, **options}), _DATA)
        parameters, description = count_parameters(module), _first_line(type(module).__doc__)
    except ValidationError as error:
        keys = ", ".join(str(item["loc"][0]) for item in error.errors() if item["loc"])
        return ModelSummary(network.name, said, f"needs values for: {keys}", None, None)
    except Exception as error:
        return ModelSummary(network.name, said, in_one_line(error), None, None)
    return ModelSummary(network.name, said, "" if options else description, parameters, _macs(module))


def _macs(module: nn.Module) -> int | None:
    """None for a network that decides by values what it computes, and so needs some."""
    try:
        return count_macs(module, IMAGE_SHAPE)
    except Exception:
        return None


def _first_line(text: Any) -> str:
    return next(iter(str(text or "").strip().splitlines()), "")
