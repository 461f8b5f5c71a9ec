"""A U-Net that sees a time, and a class where there are any."""

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from cifarscale.training.attention import SelfAttention2d
from cifarscale.training.norm_layers import normalisation

HIGHEST_FREQUENCY, LOWEST_FREQUENCY = 1000.0, 0.1
"""In radians, of the sines and cosines of a time in [0, 1]: those of Vaswani et al. 2017 for 1,000 positions."""


class VelocityNetwork(Protocol):
    """Images (N, C, H, W), times (N,) in [0, 1], and classes (N,) where there are any, to velocities (N, C, H, W).

    Attributes:
        num_classes: 0 without classes. A label of `num_classes` is that of no class, as labels None are.
    """

    num_classes: int

    def __call__(self, images: Tensor, times: Tensor, labels: Tensor | None = None) -> Tensor: ...


class ResidualBlock(nn.Module):
    """shortcut(x) + f(x, e); f = norm, SiLU, 3x3, norm, scale and shift by the embedding e, SiLU, 3x3.

    The last convolution begins as zeros, and with it f. Normalisation is of each sample by itself, in groups.

    Source: Ho et al. 2020 (arXiv 2006.11239), appendix B, with the scale and shift of Dhariwal & Nichol 2021 (arXiv
        2105.05233), section 3.
    """

    def __init__(self, in_channels: int, channels: int, embedding: int) -> None:
        super().__init__()
        self.norm1 = normalisation("group", in_channels)
        self.convolution1 = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.modulation = nn.Linear(embedding, 2 * channels)
        self.norm2 = normalisation("group", channels)
        self.convolution2 = _zeros(nn.Conv2d(channels, channels, 3, padding=1))
        self.shortcut = nn.Conv2d(in_channels, channels, 1) if in_channels != channels else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Maps (N, in_channels, H, W) and embeddings (N, E), activated, to (N, channels, H, W)."""
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, 1)
        hidden = self.convolution1(functional.silu(self.norm1(x)))
        hidden = self.norm2(hidden) * (1 + scale) + shift
        output: Tensor = self.shortcut(x) + self.convolution2(functional.silu(hidden))
        return output


class UNet(nn.Module):
    """Images at a time between noise and data to their velocity; with the defaults 494,742 parameters.

    The maps of each level have half the height and width of those above it: an average of 2x2 positions on the way
    down, a repetition on the way up, where each block sees what its counterpart on the way down has given.

    Args:
        widths: channels of each level, the highest resolution first; multiples of 4.
        blocks: residual blocks of each level on the way down, and as many on the way up.
        attention: levels, from the lowest resolution up, whose blocks are followed by self-attention.
        heads: of attention.
        embedding: size of the embedding of time and class, an even number.
        num_classes: 0, or the number of classes that images are of; one more is learned, for those of no class.
        channels: of images.

    Raises: ValueError for widths that do not divide into groups or heads.
    Source: Ronneberger et al. 2015 (arXiv 1505.04597) in the form of Ho et al. 2020 (arXiv 2006.11239).
    """

    def __init__(
        self,
        widths: Sequence[int] = (24, 32, 56),
        blocks: Sequence[int] = (1, 1, 1),
        attention: int = 1,
        heads: int = 2,
        embedding: int = 128,
        num_classes: int = 0,
        channels: int = 3,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.time_embedding = nn.Sequential(
            _TimeFeatures(embedding), nn.Linear(embedding, embedding), nn.SiLU(), nn.Linear(embedding, embedding)
        )
        self.class_embedding = nn.Embedding(num_classes + 1, embedding) if num_classes else None
        self.stem = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.down, self.middle, self.up = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        width, lowest = widths[0], len(widths) - 1
        heads_at = [heads if lowest - level < attention else 0 for level in range(len(widths))]
        for level, level_width in enumerate(widths):
            blocks_in = [width, *[level_width] * (blocks[level] - 1)]
            self.down.append(_level(blocks_in, level_width, embedding, heads_at[level]))
            width = level_width
        for with_heads in (heads_at[lowest], 0):
            self.middle.append(_Stage(width, width, embedding, with_heads))
        for level, level_width in reversed(list(enumerate(widths))):
            blocks_in = [width + level_width, *[2 * level_width] * (blocks[level] - 1)]
            self.up.append(_level(blocks_in, level_width, embedding, heads_at[level]))
            width = level_width
        self.output = nn.Sequential(
            normalisation("group", width), nn.SiLU(), _zeros(nn.Conv2d(width, channels, 3, padding=1))
        )

    def forward(self, images: Tensor, times: Tensor, labels: Tensor | None = None) -> Tensor:
        """(N, C, H, W), height and width divisible by 2 a level but one, times (N,) in [0, 1], and labels (N,) int64.

        Labels are from 0 to `num_classes`, which is that of no class; None is no class for all.

        Returns: (N, C, H, W), in autocast's precision.
        Raises: ValueError for labels without classes.
        """
        embedding = functional.silu(self._embedded(times, labels))
        maps = self.stem(images)
        skipped = []
        for level, stages in enumerate(self.down):
            if level:
                maps = functional.avg_pool2d(maps, 2)
            for stage in stages:  # type: ignore[attr-defined]
                maps = stage(maps, embedding)
                skipped.append(maps)
        for stage in self.middle:
            maps = stage(maps, embedding)
        for level, stages in enumerate(self.up):
            if level:
                maps = functional.interpolate(maps, scale_factor=2.0)
            for stage in stages:  # type: ignore[attr-defined]
                maps = stage(torch.cat([maps, skipped.pop()], 1), embedding)
        velocity: Tensor = self.output(maps)
        return velocity

    def _embedded(self, times: Tensor, labels: Tensor | None) -> Tensor:
        embedding: Tensor = self.time_embedding(times)
        if self.class_embedding is None:
            if labels is not None:
                raise ValueError("received labels, and the network was built with num_classes = 0")
            return embedding
        if labels is None:
            labels = times.new_full(times.shape, self.num_classes, dtype=torch.int64)
        of_class: Tensor = self.class_embedding(labels)
        return embedding + of_class


def _level(in_channels: Sequence[int], channels: int, embedding: int, heads: int) -> nn.ModuleList:
    """A stage for each number of channels that comes in."""
    return nn.ModuleList(_Stage(each, channels, embedding, heads) for each in in_channels)


class _Stage(nn.Module):
    """A residual block, and self-attention after it if it has heads."""

    def __init__(self, in_channels: int, channels: int, embedding: int, heads: int) -> None:
        super().__init__()
        self.block = ResidualBlock(in_channels, channels, embedding)
        self.attention = SelfAttention2d(channels, heads, "group") if heads else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        output: Tensor = self.attention(self.block(x, embedding))
        return output


class _TimeFeatures(nn.Module):
    """Sines and cosines of times, at frequencies in equal ratios."""

    def __init__(self, size: int) -> None:
        super().__init__()
        if size % 2:
            raise ValueError(f"embedding = {size} is not even: it has a sine and a cosine of each frequency")
        self._count = size // 2

    def forward(self, times: Tensor) -> Tensor:
        """(N,) to (N, size) float32."""
        places = torch.arange(self._count, device=times.device) / self._count
        frequencies = torch.exp(places * math.log(LOWEST_FREQUENCY / HIGHEST_FREQUENCY)) * HIGHEST_FREQUENCY
        angles = times.float()[:, None] * frequencies
        return torch.cat([angles.cos(), angles.sin()], 1)


def _zeros(convolution: nn.Conv2d) -> nn.Conv2d:
    """The convolution with weights and biases of 0."""
    for parameter in convolution.parameters():
        nn.init.zeros_(parameter)
    return convolution
