"""Classifiers by name."""

from collections.abc import Callable
from typing import Any

import torch

from cifarscale.tasks.classifier.networks.residual_stages import ResidualStages
from cifarscale.tasks.classifier.networks.resnet import ResNet
from cifarscale.tasks.classifier.networks.small_filters_cnn import SmallFiltersCNN
from cifarscale.training.cost import ModelSummary, summarise

Classifier = SmallFiltersCNN | ResNet | ResidualStages
"""What `classifier` builds: `forward` gives logits (N, num_classes), `features` what its last layer sees."""

IMAGE_SHAPE = (3, 32, 32)
"""By which networks are compared."""

_CLASSIFIERS: dict[str, Callable[..., Classifier]] = {
    "small_filters_cnn": SmallFiltersCNN,
    "resnet": ResNet,
    "residual_stages": ResidualStages,
}

_DESCRIBED: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("small_filters_cnn", {}, "three 3x3 convolutions"),
    ("small_filters_cnn", {"activation": "leaky_relu"}, "slope 0.01 below zero"),
    ("small_filters_cnn", {"activation": "silu"}, "x * sigmoid(x)"),
    ("small_filters_cnn", {"normalisation": "batch"}, "after each convolution"),
    ("small_filters_cnn", {"residual": True}, "after each pooling"),
    ("small_filters_cnn", {"attention": "squeeze_excitation"}, "scales channels"),
    ("small_filters_cnn", {"attention": "self_attention"}, "over 8x8 positions"),
    ("small_filters_cnn", {"width": 16}, "twice the channels"),
    ("resnet", {}, "10 layers"),
    ("resnet", {"blocks_per_stage": 2}, "16 layers"),
    ("resnet", {"width": 13}, "10 layers"),
    ("residual_stages", {}, "bottlenecks"),
    (
        "residual_stages",
        {"block": "gated_depthwise", "widths": [24, 40, 60], "blocks": [3, 3, 2], "attention": "efficient_channel"},
        "gated depthwise",
    ),
)


def classifier(name: str, **options: Any) -> Classifier:
    """A freshly initialised classifier of RGB images.

    Args:
        name: "small_filters_cnn", "resnet" or "residual_stages".
        options: keyword arguments of that class, `num_classes` among them.
    Raises: ValueError for an unknown name or value, TypeError for an unknown option.
    """
    if name not in _CLASSIFIERS:
        raise ValueError(f"classifier {name!r} is unknown; valid: {', '.join(_CLASSIFIERS)}")
    return _CLASSIFIERS[name](**options)


def summaries() -> tuple[ModelSummary, ...]:
    """Every classifier with its defaults, and the options worth comparing, one changed at a time."""
    with torch.device("meta"):
        return tuple(
            summarise(name, options, description, classifier(name, **options), IMAGE_SHAPE)
            for name, options, description in _DESCRIBED
        )
