"""Attention over channels and over positions, each a layer that keeps the shape (N, C, H, W)."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


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


class SelfAttention2d(nn.Module):
    """Adds to each position what it gathers from all H*W positions, times a learned gate that starts at zero.

    The zero gate makes a new layer the identity: the network first learns from neighbourhoods, then from afar. There
    is no encoding of positions, and no bias, as in the source.

    Args:
        channels: C of the input; a multiple of `num_heads`.
        num_heads: heads of C / num_heads channels each; the source has one.

    Raises: ValueError if the channels do not divide into the heads.
    Source: Zhang et al. 2019 (SAGAN, arXiv 1805.08318), section 3, with the scaled multi-head product of Vaswani et
        al. 2017 (arXiv 1706.03762), equation 1, in place of its one unscaled head.
    """

    def __init__(self, channels: int, num_heads: int = 2) -> None:
        super().__init__()
        if channels % num_heads:
            raise ValueError(f"{channels} channels do not divide into {num_heads} heads")
        self.num_heads = num_heads
        self.query_key_value = nn.Conv2d(channels, 3 * channels, kernel_size=1, bias=False)
        self.projection = nn.Conv2d(channels, channels, kernel_size=1, bias=False)
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        heads = self.query_key_value(x).flatten(2).unflatten(1, (3, self.num_heads, -1))  # (N, 3, heads, C/heads, H*W)
        query, key, value = heads.transpose(-1, -2).unbind(1)  # each (N, heads, H*W, C/heads)
        gathered = functional.scaled_dot_product_attention(query, key, value)
        gathered = gathered.transpose(-1, -2).reshape(x.shape)  # heads back into channels: (N, C, H, W)
        projected: Tensor = self.projection(gathered)
        return x + self.gate * projected
