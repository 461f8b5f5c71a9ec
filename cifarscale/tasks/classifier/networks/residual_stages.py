"""A family of residual networks, laid out stage by stage, for small budgets of parameters."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from cifarscale.tasks.classifier.networks.attention import EfficientChannelAttention, SqueezeExcitation
from cifarscale.tasks.classifier.networks.small_filters_cnn import Activation, activation
from cifarscale.training.norm_layers import Normalisation, normalisation

BlockKind = Literal["basic", "bottleneck", "gated_depthwise"]
Downsampling = Literal["average_pool", "max_pool", "depthwise", "stride"]
ChannelAttention = Literal["none", "squeeze_excitation", "efficient_channel"]

_ATTENTIONS: dict[str, Callable[[int], nn.Module]] = {
    "none": lambda channels: nn.Identity(),
    "squeeze_excitation": SqueezeExcitation,
    "efficient_channel": EfficientChannelAttention,
}


class ResidualStages(nn.Module):
    """Classifier of small images: stages of residual blocks, each stage at half the size of the one before.

    A 3x3 convolution with normalisation; the blocks of the first stage; for each further one a change to its width at
    half the size, with normalisation, and its blocks; global average pooling, and one linear layer. In networks of
    `basic` and `bottleneck` blocks an activation follows the first convolution, each change of width and each sum.

    Args:
        num_classes: number of logits.
        image_shape: (channels, height, width) of the images.
        widths: channels of each stage.
        blocks: number of blocks of each stage.
        block: "basic" (`BasicBlock`), "bottleneck" (`Bottleneck`) or "gated_depthwise" (`GatedDepthwise`).
        inner_widths: channels of the 3x3 convolution in a bottleneck of each stage; empty for a quarter of `widths`.
        repeat: how often each block is applied, with the same convolutions and with norms of each time's own.
        attention: "none", "squeeze_excitation" or "efficient_channel", in each block.
        downsampling: "average_pool" or "max_pool" of 2x2, or a "depthwise" 3x3 convolution of stride 2, before a 1x1
            convolution; or "stride", a 3x3 convolution of stride 2.
        activation: "relu", "leaky_relu" or "silu".
        normalisation: "none", "batch", "group" or "sync_batch", after each convolution.
        zero_init: whether f starts at 0 in each x + f(x): the gain of its last norm does (Goyal et al. 2017,
            arXiv 1706.02677, section 5.1), or the last convolution where there is no norm.

    Raises: ValueError for an unknown option, lists of unequal length, or widths that do not suit the others.
    Source: He et al. 2016 (arXiv 1512.03385), with changes of width between the stages in place of projections beside
        a block.
    """

    def __init__(
        self,
        num_classes: int = 100,
        image_shape: tuple[int, int, int] = (3, 32, 32),
        widths: Sequence[int] = (40, 64, 88),
        blocks: Sequence[int] = (4, 3, 2),
        block: BlockKind = "bottleneck",
        inner_widths: Sequence[int] = (),
        repeat: int = 1,
        attention: ChannelAttention = "none",
        downsampling: Downsampling = "average_pool",
        activation: Activation = "relu",
        normalisation: Normalisation = "batch",
        zero_init: bool = True,
    ) -> None:
        super().__init__()
        if block not in _BLOCKS:
            raise ValueError(f"block {block!r} is unknown; valid: {', '.join(_BLOCKS)}")
        if attention not in _ATTENTIONS:
            raise ValueError(f"attention {attention!r} is unknown; valid: {', '.join(_ATTENTIONS)}")
        if downsampling not in _DOWNSAMPLINGS:
            raise ValueError(f"downsampling {downsampling!r} is unknown; valid: {', '.join(_DOWNSAMPLINGS)}")
        inner_widths = inner_widths or [max(1, width // 4) for width in widths]
        options = _Options(repeat, attention, activation, normalisation)
        in_channels = image_shape[0]
        stages: list[nn.Module] = []
        for width, number, inner in zip(widths, blocks, inner_widths, strict=True):
            layers = _DOWNSAMPLINGS[downsampling](in_channels, width, normalisation) if stages else []
            layers = layers or [_Normed(in_channels, width, 3, normalisation)]
            layers += _activations(_BLOCKS[block], activation)
            layers += [_BLOCKS[block](width, inner, options) for _ in range(number)]
            stages.append(nn.Sequential(*layers))
            in_channels = width
        self.stages = nn.Sequential(*stages)
        if zero_init:
            for layer in self.stages.modules():
                if isinstance(layer, ResidualBlock):
                    layer.last.start_at_zero()
        self.classifier = nn.Linear(in_channels, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """What the linear layer sees: images (N, C, H, W) to (N, widths[-1])."""
        maps: Tensor = self.stages(x)  # (N, widths[-1], H / 2^(stages - 1), W / 2^(stages - 1))
        return maps.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) to logits (N, num_classes)."""
        logits: Tensor = self.classifier(self.features(x))
        return logits


@dataclass(frozen=True)
class _Options:
    """What the blocks of a network have in common; see `ResidualStages`."""

    repeat: int
    attention: ChannelAttention
    activation: Activation
    normalisation: Normalisation


class _Normed(nn.Module):
    """A convolution, and the norm of each time that it is applied; with a bias only where there are no norms."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        size: int,
        kind: Normalisation,
        stride: int = 1,
        groups: int = 1,
        repeat: int = 1,
    ) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(
            in_channels, channels, size, stride, padding=size // 2, groups=groups, bias=kind == "none"
        )
        # By the fan-in: torch counts the fan-out of a depthwise convolution as if it were a dense one.
        nn.init.kaiming_normal_(self.convolution.weight, nonlinearity="relu")
        self.norms = nn.ModuleList(normalisation(kind, channels) for _ in range(repeat))

    def start_at_zero(self) -> None:
        """Makes the output 0 for any input: by the norms' gains, or by the convolution where there are no norms."""
        gains = [parameter for name, parameter in self.norms.named_parameters() if name.endswith("weight")]
        for parameter in gains or self.convolution.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, time: int = 0) -> Tensor:
        """(N, in_channels, H, W) to (N, channels, H / stride, W / stride), with the norm of this time (0 is first)."""
        normed: Tensor = self.norms[time](self.convolution(x))
        return normed


class ResidualBlock(nn.Module):
    """act(x + f(x)), or x + f(x), as often as `repeat` says; keeps the shape (N, channels, H, W).

    Args:
        inner: channels of the convolutions within, where the kind of block has such.
    """

    ends_in_activation: ClassVar[bool] = True
    last: _Normed
    """What f ends in, but for attention."""

    def __init__(self, channels: int, inner: int, options: _Options) -> None:
        super().__init__()
        self.repeat = options.repeat
        self.activation = activation(options.activation)

    def residual(self, x: Tensor, time: int) -> Tensor:
        """f(x) with the norms of this time."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) to the same shape."""
        for time in range(self.repeat):
            x = x + self.residual(x, time)
            if self.ends_in_activation:
                x = self.activation(x)
        return x


class BasicBlock(ResidualBlock):
    """f = 3x3 convolution, norm, act, 3x3 convolution, norm, attention. Source: He et al. 2016, figure 5 left."""

    def __init__(self, channels: int, inner: int, options: _Options) -> None:
        super().__init__(channels, inner, options)
        self.first = _Normed(channels, channels, 3, options.normalisation, repeat=self.repeat)
        self.last = _Normed(channels, channels, 3, options.normalisation, repeat=self.repeat)
        self.attention = _ATTENTIONS[options.attention](channels)

    def residual(self, x: Tensor, time: int) -> Tensor:
        scaled: Tensor = self.attention(self.last(self.activation(self.first(x, time)), time))
        return scaled


class Bottleneck(ResidualBlock):
    """f = 1x1 to `inner` channels, norm, act, 3x3, norm, act, 1x1 back, norm, attention.

    Source: He et al. 2016, figure 5 right.
    """

    def __init__(self, channels: int, inner: int, options: _Options) -> None:
        super().__init__(channels, inner, options)
        self.reduce = _Normed(channels, inner, 1, options.normalisation, repeat=self.repeat)
        self.spatial = _Normed(inner, inner, 3, options.normalisation, repeat=self.repeat)
        self.last = _Normed(inner, channels, 1, options.normalisation, repeat=self.repeat)
        self.attention = _ATTENTIONS[options.attention](channels)

    def residual(self, x: Tensor, time: int) -> Tensor:
        x = self.activation(self.reduce(x, time))
        x = self.activation(self.spatial(x, time))
        scaled: Tensor = self.attention(self.last(x, time))
        return scaled


class GatedDepthwise(ResidualBlock):
    """f = norm(1x1(attention(act(a) * b))), with a and b the halves of norm(1x1 of norm(depthwise 3x3)).

    The product is the only non-linearity: with "silu" the gated linear unit of Shazeer 2020 (arXiv 2002.05202) that
    is called SwiGLU there, over what a depthwise convolution (Howard et al. 2017, arXiv 1704.04861) gathers.
    """

    ends_in_activation = False

    def __init__(self, channels: int, inner: int, options: _Options) -> None:
        super().__init__(channels, inner, options)
        self.spatial = _Normed(channels, channels, 3, options.normalisation, groups=channels, repeat=self.repeat)
        self.widen = _Normed(channels, 2 * channels, 1, options.normalisation, repeat=self.repeat)
        self.attention = _ATTENTIONS[options.attention](channels)
        self.last = _Normed(channels, channels, 1, options.normalisation, repeat=self.repeat)

    def residual(self, x: Tensor, time: int) -> Tensor:
        gate, value = self.widen(self.spatial(x, time), time).chunk(2, dim=1)
        gated: Tensor = self.last(self.attention(self.activation(gate) * value), time)
        return gated


_BLOCKS: dict[str, type[ResidualBlock]] = {
    "basic": BasicBlock,
    "bottleneck": Bottleneck,
    "gated_depthwise": GatedDepthwise,
}


def _activations(block: type[ResidualBlock], kind: Activation) -> list[nn.Module]:
    """What precedes blocks that end in an activation, so that each of them sees the same kind of input."""
    return [activation(kind)] if block.ends_in_activation else []


def _pooled(pool: type[nn.MaxPool2d | nn.AvgPool2d]) -> Callable[[int, int, Normalisation], list[nn.Module]]:
    return lambda in_channels, channels, kind: [pool(2), _Normed(in_channels, channels, 1, kind)]


_DOWNSAMPLINGS: dict[str, Callable[[int, int, Normalisation], list[nn.Module]]] = {
    "average_pool": _pooled(nn.AvgPool2d),
    "max_pool": _pooled(nn.MaxPool2d),
    "depthwise": lambda in_channels, channels, kind: [
        _Normed(in_channels, in_channels, 3, kind, stride=2, groups=in_channels),
        _Normed(in_channels, channels, 1, kind),
    ],
    "stride": lambda in_channels, channels, kind: [_Normed(in_channels, channels, 3, kind, stride=2)],
}
