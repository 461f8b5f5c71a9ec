"""Generators and discriminators."""

from typing import Any

import torch

from cifarscale.tasks.gan.networks.dcgan import Discriminator, Generator
from cifarscale.training.cost import ModelSummary, summarise

IMAGE_SHAPE = (3, 32, 32)
LATENT_SHAPE = (100,)
"""Of one sample's noise, by the generator's default."""

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


def summaries() -> tuple[ModelSummary, ...]:
    """Both networks with their defaults, and the options worth comparing, one changed at a time."""
    with torch.device("meta"):
        generators = tuple(
            summarise("dcgan generator", options, description, Generator(**options), LATENT_SHAPE)
            for options, description in _GENERATORS
        )
        discriminators = tuple(
            summarise("dcgan discriminator", options, description, Discriminator(**options), IMAGE_SHAPE)
            for options, description in _DISCRIMINATORS
        )
    return (*generators, *discriminators)
