"""The small-filters CNN: three 3x3 convolutions and one linear layer, with the options its authors named."""

from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn

from cifarscale.tasks.classifier.networks.attention import SqueezeExcitation
from cifarscale.training.attention import SelfAttention2d
from cifarscale.training.norm_layers import Normalisation, normalisation

Activation = Literal["relu", "leaky_relu", "silu"]
Attention = Literal["none", "squeeze_excitation", "self_attention"]

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "leaky_relu": nn.LeakyReLU, "silu": nn.SiLU}
_MONOTONE = ("relu", "leaky_relu")
_ATTENTIONS = ("none", "squeeze_excitation", "self_attention")


def activation(kind: Activation) -> nn.Module:
    """An element-wise non-linearity: "relu", "leaky_relu" (slope 0.01 below zero) or "silu".

    Raises: ValueError for another kind.
    """
    if kind not in _ACTIVATIONS:
        raise ValueError(f"activation {kind!r} is unknown; valid: {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[kind]()


class SmallFiltersCNN(nn.Module):
    """Classifier of RGB images; with the defaults 57,332 parameters.

    Three stages of (3x3 convolution with bias, normalisation, activation, 2x2 max pooling) with width, 2 width and
    4 width channels, then one linear layer. Parameters are created in the order of the layers, with torch's default
    initialisation, so that a seed gives the weights that a plain `nn.Sequential` of the same layers would get.

    Args:
        num_classes: number of logits.
        width: channels of the first stage.
        activation: "relu", "leaky_relu" or "silu".
        normalisation: "none", "batch", "group" or "sync_batch", between convolution and activation.
        residual: whether a `BasicBlock` follows the pooling of each stage.
        attention: "none"; "squeeze_excitation" at the end of each stage; or "self_attention" at the end of the second.
        image_size: height and width, 8 and more; an odd one loses a row or column in pooling.

    Raises: ValueError for an unknown option, or a width that does not suit it.
    """

    def __init__(
        self,
        num_classes: int = 100,
        width: int = 8,
        activation: Activation = "relu",
        normalisation: Normalisation = "none",
        residual: bool = False,
        attention: Attention = "none",
        image_size: tuple[int, int] = (32, 32),
    ) -> None:
        super().__init__()
        if attention not in _ATTENTIONS:
            raise ValueError(f"attention {attention!r} is unknown; valid: {', '.join(_ATTENTIONS)}")
        stages: list[nn.Module] = []
        in_channels = 3
        for channels in (width, 2 * width, 4 * width):
            layers = _convolution_and_pooling(in_channels, channels, activation, normalisation)
            if residual:
                layers.append(BasicBlock(channels, activation, normalisation))
            if attention == "squeeze_excitation":
                layers.append(SqueezeExcitation(channels))
            # Self-attention stands at 8x8 (of 32x32): a position there has seen 10 of 32 pixels each way, and the third
            # convolution can still use what it gathers. At 4x4 the linear layer sees every position anyway, and at
            # 16x16 the products over pairs of positions would cost more than the rest of the network.
            if attention == "self_attention" and channels == 2 * width:
                layers.append(SelfAttention2d(channels))
            stages.append(nn.Sequential(*layers))
            in_channels = channels
        self.stages = nn.Sequential(*stages)
        self.classifier = nn.Linear(4 * width * (image_size[0] // 8) * (image_size[1] // 8), num_classes)

    def features(self, x: Tensor) -> Tensor:
        """What the linear layer sees: images (N, 3, H, W) to (N, 4 * width * H / 8 * W / 8)."""
        maps: Tensor = self.stages(x)  # (N, 4 * width, H / 8, W / 8)
        return maps.flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, H, W) to logits (N, num_classes)."""
        logits: Tensor = self.classifier(self.features(x))
        return logits


class BasicBlock(nn.Module):
    """act(x + f(x)) with f = convolution, norm, act, convolution, norm, all 3x3 and of the same width.

    It ends in an activation, as the stage that it follows does, and so what comes next finds no difference.

    Source: He et al. 2016 (arXiv 1512.03385), figure 2, with the identity for a shortcut.
    """

    def __init__(self, channels: int, activation_kind: Activation, normalisation_kind: Normalisation) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(channels, channels, kernel_size=3, padding=1),
            normalisation(normalisation_kind, channels),
            activation(activation_kind),
            nn.Conv2d(channels, channels, kernel_size=3, padding=1),
            normalisation(normalisation_kind, channels),
        )
        self.activation = activation(activation_kind)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        output: Tensor = self.activation(x + self.residual(x))
        return output


def _convolution_and_pooling(
    in_channels: int, channels: int, activation_kind: Activation, normalisation_kind: Normalisation
) -> list[nn.Module]:
    """Convolution, normalisation, and activation and pooling in the quicker order: (N, C, H, W) to half the size."""
    convolution = nn.Conv2d(in_channels, channels, kernel_size=3, padding=1)
    layers = [convolution, normalisation(normalisation_kind, channels)]
    pooling, non_linearity = nn.MaxPool2d(2), activation(activation_kind)
    # A monotone function of the largest is the largest of the function: pooling first gives the same values and
    # gradients, and leaves the activation a quarter of the elements (on a CPU, 23 ms a step of 512 images rather than
    # 37). SiLU falls and then rises, so there the order matters, and stays as the network was described.
    return [*layers, pooling, non_linearity] if activation_kind in _MONOTONE else [*layers, non_linearity, pooling]
