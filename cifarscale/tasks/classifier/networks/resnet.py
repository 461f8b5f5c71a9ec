"""A residual network for small images: the stronger classifier, still small enough for a CPU."""

from torch import Tensor, nn

from cifarscale.tasks.classifier.networks.small_filters_cnn import Activation, activation
from cifarscale.training.norm_layers import Normalisation, normalisation


class ResNet(nn.Module):
    """Classifier of RGB images, 8x8 and larger: pre-activation residual blocks, 6 * blocks_per_stage + 4 layers deep.

    A 3x3 convolution; three stages of `PreActivationBlock` with width, 2 width and 4 width channels at the
    images' size, half and a quarter of it; normalisation, activation, global average pooling, and one linear layer.

    Args:
        num_classes: number of logits.
        blocks_per_stage: residual blocks, of two convolutions each, in a stage.
        width: channels of the first stage, 16 times the source's widening factor k.
        activation: "relu", "leaky_relu" or "silu".
        normalisation: "none", "batch", "group" or "sync_batch", before each activation.

    Raises: ValueError for an unknown option, or a width that does not suit it.
    Source: Zagoruyko & Komodakis 2016 (arXiv 1605.07146), table 1: WRN-10-2 with the defaults, but for the first
        convolution, which has `width` channels rather than 16, so that the first block's shortcut is the identity.
    """

    def __init__(
        self,
        num_classes: int = 100,
        blocks_per_stage: int = 1,
        width: int = 32,
        activation: Activation = "relu",
        normalisation: Normalisation = "batch",
    ) -> None:
        super().__init__()
        blocks: list[nn.Module] = [_convolution(3, width, 3, 1, normalisation)]
        in_channels = width
        for channels in (width, 2 * width, 4 * width):
            for _ in range(blocks_per_stage):
                blocks.append(PreActivationBlock(in_channels, channels, activation, normalisation))
                in_channels = channels
        self.blocks = nn.Sequential(*blocks, *_normalised_activation(in_channels, activation, normalisation))
        self.classifier = nn.Linear(in_channels, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """What the linear layer sees: images (N, 3, H, W) to (N, 4 * width)."""
        maps: Tensor = self.blocks(x)  # (N, 4 * width, H / 4, W / 4)
        return maps.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, H, W) to logits (N, num_classes)."""
        logits: Tensor = self.classifier(self.features(x))
        return logits


class PreActivationBlock(nn.Module):
    """x + f(x) with f = (norm, act, 3x3 convolution) twice; where channels change, it halves the size as well.

    There the shortcut is a 1x1 convolution of the activated input.

    Source: He et al. 2016 (arXiv 1603.05027), figure 4(e).
    """

    def __init__(
        self, in_channels: int, channels: int, activation_kind: Activation, normalisation_kind: Normalisation
    ) -> None:
        super().__init__()
        stride = 1 if in_channels == channels else 2
        self.activation = nn.Sequential(*_normalised_activation(in_channels, activation_kind, normalisation_kind))
        self.residual = nn.Sequential(
            _convolution(in_channels, channels, 3, stride, normalisation_kind),
            *_normalised_activation(channels, activation_kind, normalisation_kind),
            _convolution(channels, channels, 3, 1, normalisation_kind),
        )
        self.shortcut = None if stride == 1 else _convolution(in_channels, channels, 1, stride, normalisation_kind)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, channels, H, W), or half of H and W where the channels change."""
        activated = self.activation(x)
        shortcut: Tensor = x if self.shortcut is None else self.shortcut(activated)
        residual: Tensor = self.residual(activated)
        return shortcut + residual


def _normalised_activation(channels: int, activation_kind: Activation, kind: Normalisation) -> list[nn.Module]:
    return [normalisation(kind, channels), activation(activation_kind)]


def _convolution(in_channels: int, channels: int, size: int, stride: int, kind: Normalisation) -> nn.Conv2d:
    """A padded convolution with He initialisation, and a bias only where no normalisation follows to give one."""
    convolution = nn.Conv2d(in_channels, channels, size, stride, padding=size // 2, bias=kind == "none")
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return convolution
