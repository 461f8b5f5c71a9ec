"""Parts for generators and discriminators: residual blocks that change the size, and layers that see the minibatch."""

import math

import torch
from torch import Tensor, nn

from cifarscale.training.norm_layers import Normalisation, normalisation


class UpBlock(nn.Module):
    """shortcut(x) + f(x) at twice the height and width; f = norm, ReLU, doubling, 3x3, norm, ReLU, 3x3.

    Doubling repeats the nearest neighbour. The shortcut is a 1x1 convolution, then the doubling: the same as the other
    way round, at a quarter of the cost.

    Source: the generator for CIFAR-10 of Miyato et al. 2018 (arXiv 1802.05957), after Gulrajani et al. 2017 (arXiv
        1704.00028); and their code, where the paper leaves something open.
    """

    def __init__(self, in_channels: int, channels: int, normalisation_kind: Normalisation) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            normalisation(normalisation_kind, in_channels),
            nn.ReLU(),
            nn.Upsample(scale_factor=2),
            _convolution(in_channels, channels, 3),
            normalisation(normalisation_kind, channels),
            nn.ReLU(),
            _convolution(channels, channels, 3),
        )
        self.shortcut = nn.Sequential(_convolution(in_channels, channels, 1), nn.Upsample(scale_factor=2))

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, channels, 2 H, 2 W)."""
        output: Tensor = self.shortcut(x) + self.residual(x)
        return output


class DownBlock(nn.Module):
    """shortcut(x) + f(x) at half the height and width; f = norm, ReLU, 3x3, norm, ReLU, 3x3, average pooling.

    The shortcut is average pooling, then a 1x1 convolution: the same as the other way round, at a quarter of the cost.

    Args:
        of_images: begins f with a convolution, since the activations of an image would lose half of it; and leaves
            normalisation out, as a discriminator's first layer does (Radford et al. 2016, section 3).

    Source: the discriminators of Miyato et al. 2018 (arXiv 1802.05957), after Gulrajani et al. 2017 (arXiv
        1704.00028); and their code, where the paper leaves something open.
    """

    def __init__(
        self, in_channels: int, channels: int, normalisation_kind: Normalisation, of_images: bool = False
    ) -> None:
        super().__init__()
        hidden = channels if of_images else in_channels
        entry = [] if of_images else [normalisation(normalisation_kind, in_channels), nn.ReLU()]
        self.residual = nn.Sequential(
            *entry,
            _convolution(in_channels, hidden, 3),
            nn.Identity() if of_images else normalisation(normalisation_kind, hidden),
            nn.ReLU(),
            _convolution(hidden, channels, 3),
            nn.AvgPool2d(2),
        )
        self.shortcut = nn.Sequential(nn.AvgPool2d(2), _convolution(in_channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W), H and W even, to (N, channels, H / 2, W / 2)."""
        output: Tensor = self.shortcut(x) + self.residual(x)
        return output


class MinibatchDiscrimination(nn.Module):
    """Appends how close each sample is to the others: num_kernels channels, each constant over the positions.

    o(x_i)_b = sum over j of exp(-|M_ib - M_jb|_1), where the tensor T, `projection`, takes the features of sample i
    to the matrix M_i. The samples are those of the call, with i itself among them, in evaluation as well.

    The features are the maps' means over positions, as in the authors' code for CIFAR-10, so that T stays small.

    Args:
        channels: C of the input, A in the source.
        num_kernels: rows of M, B in the source.
        kernel_size: columns of M, C in the source.

    Source: Salimans et al. 2016 (arXiv 1606.03498), section 3.2.
    """

    def __init__(self, channels: int, num_kernels: int = 16, kernel_size: int = 5) -> None:
        super().__init__()
        self.num_kernels = num_kernels
        self.projection = nn.Linear(channels, num_kernels * kernel_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C + num_kernels, H, W)."""
        projected = _at_least_float32(self.projection(x.mean((2, 3)))).view(len(x), self.num_kernels, -1)
        distances = (projected[:, None] - projected[None]).abs().sum(-1)  # (N, N, num_kernels)
        return _append(x, torch.exp(-distances).sum(1))


class MinibatchStandardDeviation(nn.Module):
    """Appends one channel, everywhere the mean over channels and positions of the standard deviation over the samples.

    The samples are those of the call, in evaluation as well.

    Source: Karras et al. 2018 (arXiv 1710.10196), section 3, over the whole minibatch.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C + 1, H, W)."""
        # Where a feature is the same in all samples the root's gradient would not be finite.
        deviations = (_at_least_float32(x).var(0, correction=0) + 1e-8).sqrt()
        return _append(x, deviations.mean().expand(len(x), 1))


def _at_least_float32(x: Tensor) -> Tensor:
    """Half precision, as autocast gives it, is too coarse for sums over samples."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _append(x: Tensor, features: Tensor) -> Tensor:
    """Each sample's features (N, F) as F more channels, constant over the positions, of x (N, C, H, W)."""
    constant = features.to(x.dtype)[:, :, None, None].expand(-1, -1, *x.shape[2:])
    return torch.cat([x, constant], 1)


def _convolution(in_channels: int, channels: int, size: int) -> nn.Conv2d:
    """A padded convolution, initialised as in the authors' code: Glorot's, with a gain where a ReLU comes before."""
    convolution = nn.Conv2d(in_channels, channels, size, padding=size // 2)
    nn.init.xavier_uniform_(convolution.weight, gain=math.sqrt(2) if size > 1 else 1.0)
    nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
    return convolution
