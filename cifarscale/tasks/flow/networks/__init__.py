"""Networks that give velocities."""

from typing import Any

import torch

from cifarscale.tasks.flow.networks.unet import UNet
from cifarscale.training.cost import ModelSummary, summarise

IMAGE_SHAPE = (3, 32, 32)
"""By which networks are compared."""
TIME_SHAPE = ()
"""Of one sample."""

_DESCRIBED: tuple[tuple[dict[str, Any], str], ...] = (
    ({}, "levels of 32x32, 16x16, 8x8"),
    ({"attention": 0}, "convolutions alone"),
    ({"blocks": [2, 1, 1]}, "more in full resolution"),
)


def summaries() -> tuple[ModelSummary, ...]:
    """The network with its defaults, and options worth comparing, one changed at a time; for one evaluation of it."""
    with torch.device("meta"):
        return tuple(
            summarise("flow unet", options, description, UNet(**options), IMAGE_SHAPE, TIME_SHAPE)
            for options, description in _DESCRIBED
        )
