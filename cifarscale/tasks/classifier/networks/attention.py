"""Attention over channels, each a layer that keeps the shape (N, C, H, W)."""

import math

import torch
from torch import Tensor, nn


class SqueezeExcitation(nn.Module):
    """Scales each channel by a factor in (0, 1) that depends on all channels' means.

    Args:
        channels: C of the input.
        reduction: C over the width of the bottleneck. The paper's 16 is for hundreds of channels; at our 8 to 32 it
            would leave one or two, so the default is 4.

    Source: Hu et al. 2018 (arXiv 1709.01507), equations 2 to 4.
    """

    def __init__(self, channels: int, reduction: int = 4) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.excitation = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels))

    def scale(self, x: Tensor) -> Tensor:
        """The factors (N, C, 1, 1) by which `forward` scales the channels of x (N, C, H, W)."""
        squeezed = x.mean((2, 3))  # (N, C)
        return torch.sigmoid(self.excitation(squeezed))[:, :, None, None]

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        return x * self.scale(x)


class EfficientChannelAttention(nn.Module):
    """Scales each channel by a factor in (0, 1) that depends on the means of a few neighbouring channels.

    Args:
        channels: C of the input. The number of neighbours grows with it: 3 from 8 to 127 channels, 5 up to 2,047.

    Source: Wang et al. 2020 (ECA-Net, arXiv 1910.03151), section 3.2 with gamma = 2 and b = 1, rounded as in the
        authors' code.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        size = int((math.log2(channels) + 1) / 2)
        size += size % 2 == 0
        self.convolution = nn.Conv1d(1, 1, size, padding=size // 2, bias=False)

    def scale(self, x: Tensor) -> Tensor:
        """The factors (N, C, 1, 1) by which `forward` scales the channels of x (N, C, H, W)."""
        squeezed = x.mean((2, 3)).unsqueeze(1)  # (N, 1, C)
        return torch.sigmoid(self.convolution(squeezed)).squeeze(1)[:, :, None, None]

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        return x * self.scale(x)
