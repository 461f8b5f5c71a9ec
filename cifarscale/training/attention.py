"""Attention over the positions of feature maps."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from cifarscale.training.norm_layers import Normalisation, normalisation


class SelfAttention2d(nn.Module):
    """Adds to each position what it gathers from all H*W positions, times a learned gate that starts at zero.

    The zero gate makes a new layer the identity: the network first learns from neighbourhoods, then from afar. There
    is no encoding of positions, and no bias, as in the source.

    Args:
        channels: C of the input; a multiple of `num_heads`.
        num_heads: heads of C / num_heads channels each; the source has one.
        normalisation_kind: of what is looked at, not of what it is added to; the source has none.

    Raises: ValueError if the channels do not divide into the heads.
    Source: Zhang et al. 2019 (SAGAN, arXiv 1805.08318), section 3, with the scaled multi-head product of Vaswani et
        al. 2017 (arXiv 1706.03762), equation 1, in place of its one unscaled head.
    """

    def __init__(self, channels: int, num_heads: int = 2, normalisation_kind: Normalisation = "none") -> None:
        super().__init__()
        if channels % num_heads:
            raise ValueError(f"{channels} channels do not divide into {num_heads} heads")
        self.num_heads = num_heads
        self.normalisation = normalisation(normalisation_kind, channels)
        self.query_key_value = nn.Conv2d(channels, 3 * channels, kernel_size=1, bias=False)
        self.projection = nn.Conv2d(channels, channels, kernel_size=1, bias=False)
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        projections = self.query_key_value(self.normalisation(x))
        heads = projections.flatten(2).unflatten(1, (3, self.num_heads, -1))  # (N, 3, heads, C/heads, H*W)
        query, key, value = heads.transpose(-1, -2).unbind(1)  # each (N, heads, H*W, C/heads)
        gathered = functional.scaled_dot_product_attention(query, key, value)
        gathered = gathered.transpose(-1, -2).reshape(x.shape)  # heads back into channels: (N, C, H, W)
        projected: Tensor = self.projection(gathered)
        return x + self.gate * projected
