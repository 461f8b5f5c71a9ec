"""The networks for small budgets: their exact sizes, and that each block is what its paper says."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cifarscale.config.load import load_recipe
from cifarscale.errors import ConfigError
from cifarscale.tasks.classifier.networks.attention import EfficientChannelAttention
from cifarscale.tasks.classifier.networks.residual_stages import GatedDepthwise, ResidualBlock, ResidualStages
from cifarscale.training.cost import count_macs, count_parameters

GATED: dict[str, Any] = {
    "block": "gated_depthwise",
    "widths": (24, 40, 60),
    "blocks": (3, 3, 2),
    "attention": "efficient_channel",
    "activation": "silu",
}
SMALL: dict[str, Any] = {"widths": (8, 12), "blocks": (2, 1)}


def seeded(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def drawn(network: nn.Module) -> nn.Module:
    """The network in evaluation, with random numbers for every parameter and statistic, so that none is 0 or 1."""
    generator = torch.Generator().manual_seed(2)
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.is_floating_point():
            tensor.data = torch.rand(tensor.shape, generator=generator) + 0.1
    return network.eval()


def block_of(network: nn.Module) -> ResidualBlock:
    return next(layer for layer in network.modules() if isinstance(layer, ResidualBlock))


@pytest.mark.parametrize(
    ("options", "parameters", "macs"), [({}, 56_452, 13_489_248), (GATED, 56_868, 12_456_216)], ids=["default", "gated"]
)
def test_sizes_are_those_that_were_counted_by_hand(options: dict[str, Any], parameters: int, macs: int) -> None:
    network = ResidualStages(**options)
    assert count_parameters(network) == parameters
    assert count_macs(network, (3, 32, 32)) == macs


@pytest.mark.parametrize("block", ["basic", "bottleneck", "gated_depthwise"])
@pytest.mark.parametrize("attention", ["none", "squeeze_excitation", "efficient_channel"])
def test_every_block_with_every_attention_trains_all_its_parameters(block: Any, attention: Any) -> None:
    network = drawn(ResidualStages(block=block, attention=attention, repeat=2, **SMALL)).train()
    logits = network(seeded(4, 3, 32, 32))
    assert logits.shape == (4, 100)
    (logits * seeded(4, 100)).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())


@pytest.mark.parametrize("downsampling", ["average_pool", "max_pool", "depthwise", "stride"])
def test_each_stage_has_half_the_size_of_the_one_before(downsampling: Any) -> None:
    network = ResidualStages(
        num_classes=7, image_shape=(1, 48, 48), downsampling=downsampling, widths=(4, 8, 12), blocks=(1, 1, 1)
    )
    assert network.stages(seeded(2, 1, 48, 48)).shape == (2, 12, 12, 12)
    assert network.features(seeded(2, 1, 48, 48)).shape == (2, 12)
    assert network(seeded(2, 1, 48, 48)).shape == (2, 7)


def test_efficient_channel_attention_equals_a_loop_over_neighbours() -> None:
    layer = drawn(EfficientChannelAttention(24))
    x, weight = seeded(2, 24, 5, 5), layer.convolution.weight.flatten()
    assert len(weight) == 3
    means = F.pad(x.mean((2, 3)), (1, 1))
    for channel in range(24):
        scale = torch.sigmoid((means[:, channel : channel + 3] * weight).sum(1))
        assert torch.allclose(layer(x)[:, channel], x[:, channel] * scale[:, None, None])


@pytest.mark.parametrize(("channels", "neighbours"), [(1, 1), (8, 3), (64, 3), (128, 5), (256, 5), (512, 5)])
def test_efficient_channel_attention_sees_as_many_neighbours_as_the_authors_code(
    channels: int, neighbours: int
) -> None:
    assert EfficientChannelAttention(channels).convolution.kernel_size == (neighbours,)


def test_a_gated_block_equals_its_formula() -> None:
    network = drawn(ResidualStages(**GATED))
    block = block_of(network)
    assert isinstance(block, GatedDepthwise)
    x = seeded(2, 24, 8, 8)

    def norm(layer: Any, y: Tensor) -> Tensor:
        of = layer.norms[0]
        return F.batch_norm(y, of.running_mean, of.running_var, of.weight, of.bias, eps=1e-5)

    y = norm(block.spatial, F.conv2d(x, block.spatial.convolution.weight, padding=1, groups=24))
    y = norm(block.widen, torch.einsum("nchw,oc->nohw", y, block.widen.convolution.weight[:, :, 0, 0]))
    y = block.attention(F.silu(y[:, :24]) * y[:, 24:])
    y = norm(block.last, torch.einsum("nchw,oc->nohw", y, block.last.convolution.weight[:, :, 0, 0]))
    assert torch.allclose(block(x), x + y, rtol=1e-4)


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_a_block_ends_in_the_activation_of_its_sum(block: Any) -> None:
    made = block_of(drawn(ResidualStages(block=block, **SMALL)))
    x = seeded(2, 8, 8, 8)
    assert torch.equal(made(x), F.relu(x + made.residual(x, 0)))


@pytest.mark.parametrize("block", ["basic", "bottleneck", "gated_depthwise"])
@pytest.mark.parametrize("normalisation", ["batch", "group", "none"])
def test_with_zero_init_blocks_begin_as_the_identity(block: Any, normalisation: Any) -> None:
    options = {"block": block, "normalisation": normalisation, "widths": (16, 32), "blocks": (1, 1), "repeat": 2}
    x = seeded(2, 16, 8, 8).relu()
    assert torch.equal(block_of(ResidualStages(**options))(x), x)
    assert not torch.equal(block_of(ResidualStages(zero_init=False, **options))(x), x)


@pytest.mark.parametrize("block", ["basic", "bottleneck", "gated_depthwise"])
def test_a_repeated_block_shares_its_convolutions_and_has_norms_of_its_own(block: Any) -> None:
    once, twice = (block_of(ResidualStages(block=block, repeat=times, **SMALL)) for times in (1, 2))

    def count(module: nn.Module, kind: type[nn.Module]) -> int:
        return sum(count_parameters(layer) for layer in module.modules() if isinstance(layer, kind))

    assert count(twice, nn.Conv2d) == count(once, nn.Conv2d)
    assert count(twice, nn.BatchNorm2d) == 2 * count(once, nn.BatchNorm2d)
    drawn(twice)
    x = seeded(2, 8, 8, 8)
    act = twice.activation if twice.ends_in_activation else nn.Identity()
    first = act(x + twice.residual(x, 0))
    assert torch.equal(twice(x), act(first + twice.residual(first, 1)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            ["model.blocks=[1, 2]"],
            r"model.blocks = \[1, 2\] needs a value for each stage: model.widths = \[40, 64, 88\]",
        ),
        (["model.inner_widths=[8]"], r"model.inner_widths = \[8\] needs a value for each stage"),
        (
            ["model.block=basic", "model.inner_widths=[8, 8, 8]"],
            "model.inner_widths is for model.block = 'bottleneck', and not for 'basic'",
        ),
        (["model.widths=[]", "model.blocks=[]"], "model.widths"),
        (["model.widths=[40, 0, 88]"], "model.widths"),
        (["model.block=dense"], "model.block = 'dense'"),
        (
            ["model.normalisation=group"],
            "'group' needs multiples of 4 channels, and the network has 10, 16, 22, 40, 64, 88",
        ),
    ],
)
def test_what_is_not_offered_is_answered_in_one_line(changes: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_recipe("cnn", ["model={name = 'residual_stages'}", *changes])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["block", "attention", "downsampling", "activation", "normalisation"])
def test_an_unknown_option_is_answered_with_the_valid_ones(key: str) -> None:
    options: dict[str, Any] = {key: "other"}
    with pytest.raises(ValueError, match=f"{key} 'other' is unknown; valid: "):
        ResidualStages(**options)
