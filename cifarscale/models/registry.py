"""Networks by name, and what each costs."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cifarscale.models.cnn import SmallFiltersCNN
from cifarscale.models.dcgan import Discriminator, Generator
from cifarscale.models.resnet import ResNet

Classifier = SmallFiltersCNN | ResNet
"""What `classifier` builds: `forward` gives logits (N, num_classes), `features` what its last layer sees."""

IMAGE_SHAPE = (3, 32, 32)
LATENT_SHAPE = (100,)
"""Of one sample's noise, by the generator's default."""

_CLASSIFIERS: dict[str, Callable[..., Classifier]] = {"small_filters_cnn": SmallFiltersCNN, "resnet": ResNet}

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
)

_GENERATORS: tuple[tuple[dict[str, Any], str], ...] = (
    ({}, "transposed convolutions"),
    ({"upsampling": "residual"}, "residual blocks"),
)
_DISCRIMINATORS: tuple[tuple[dict[str, Any], str], ...] = (
    ({}, "strided convolutions"),
    ({"downsampling": "residual"}, "residual blocks"),
    ({"minibatch": "discrimination"}, "sees distances"),
    ({"minibatch": "stddev"}, "sees their deviation"),
)


@dataclass(frozen=True)
class ModelSummary:
    """One line of the table of models."""

    name: str
    options: str
    """Those that differ from the defaults, as KEY=VALUE."""
    description: str
    """In a few words."""
    parameters: int
    """Trainable parameters."""
    macs: int
    """Multiply-accumulates of one forward pass on one sample."""


def classifier(name: str, **options: Any) -> Classifier:
    """A freshly initialised classifier of 32x32 RGB images.

    Args:
        name: "small_filters_cnn" or "resnet".
        options: keyword arguments of that class, `num_classes` among them.
    Raises: ValueError for an unknown name or value, TypeError for an unknown option.
    """
    if name not in _CLASSIFIERS:
        raise ValueError(f"classifier {name!r} is unknown; valid: {', '.join(_CLASSIFIERS)}")
    return _CLASSIFIERS[name](**options)


def count_parameters(module: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def count_macs(module: nn.Module, input_shape: tuple[int, ...]) -> int:
    """Multiply-accumulates of one forward pass on one sample, in convolutions, matrix products and attention.

    The module is left as it was: a copy on the meta device runs in its place, and computes nothing.

    Args:
        module: takes one float32 tensor (N, *input_shape).
        input_shape: shape of a sample, without the batch.
    """
    outline = copy.deepcopy(module).to("meta").eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        outline(torch.empty(1, *input_shape, device="meta"))
    return int(counter.get_total_flops()) // 2


def summarise(
    name: str, options: dict[str, Any], description: str, module: nn.Module, input_shape: tuple[int, ...]
) -> ModelSummary:
    """The line of the table for one network."""
    changed = " ".join(f"{option}={str(value).lower()}" for option, value in options.items())
    return ModelSummary(name, changed, description, count_parameters(module), count_macs(module, input_shape))


def summaries() -> tuple[ModelSummary, ...]:
    """Every network with its defaults, and the options worth comparing, one changed at a time."""
    with torch.device("meta"):
        classifiers = tuple(
            summarise(name, options, description, classifier(name, **options), IMAGE_SHAPE)
            for name, options, description in _DESCRIBED
        )
        generators = tuple(
            summarise("dcgan generator", options, description, Generator(**options), LATENT_SHAPE)
            for options, description in _GENERATORS
        )
        discriminators = tuple(
            summarise("dcgan discriminator", options, description, Discriminator(**options), IMAGE_SHAPE)
            for options, description in _DISCRIMINATORS
        )
    return (*classifiers, *generators, *discriminators)
