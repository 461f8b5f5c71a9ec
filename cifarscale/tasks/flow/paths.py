"""Straight paths from noise to images, and where on them a network is trained."""

import math
from collections.abc import Sequence

import torch

from cifarscale.distributed.randomness import normals, uniforms
from cifarscale.tasks.flow.recipe import FlowObjectiveConfig


def on_path(noise: torch.Tensor, images: torch.Tensor, times: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the paths from noise to images are at their times, and their velocities; each (b, C, H, W).

    Args:
        noise, images: (b, C, H, W), where the paths are at times 0 and 1.
        times: (b,).
    Source: Liu et al. 2022 (arXiv 2209.03003), equation 1: X_t = t X_1 + (1 - t) X_0, whose velocity is X_1 - X_0; the
        optimal transport path of Lipman et al. 2022 (arXiv 2210.02747), equations 22 and 23, with sigma_min = 0.
    """
    t = times.view(-1, 1, 1, 1)
    return t * images + (1 - t) * noise, images - noise


def draw_times(config: FlowObjectiveConfig, seed: int, step: int, positions: Sequence[int] | range) -> torch.Tensor:
    """The times (P,) of the samples at some positions of a global batch, float32 in [0, 1].

    Source: Esser et al. 2024 (arXiv 2403.03206), section 3.1, equation 19, for "logit_normal".
    """
    if config.times == "uniform":
        return torch.from_numpy(uniforms(seed, "time", step, positions, 1)).flatten()
    logits = normals(seed, "time", step, positions, 1).flatten().tolist()
    # One by one: the last bit of a vector unit's result depends on the place in the vector.
    return torch.tensor([_sigmoid(config.location + config.scale * logit) for logit in logits])


def _sigmoid(x: float) -> float:
    return 0.5 * (1 + math.tanh(x / 2))
