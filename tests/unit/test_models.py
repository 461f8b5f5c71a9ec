"""The networks: their exact sizes, and that each option does what it says and nothing else."""

from itertools import product
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from cifarscale.tasks.classifier.networks import classifier, summaries
from cifarscale.tasks.classifier.networks.attention import SqueezeExcitation
from cifarscale.tasks.classifier.networks.resnet import PreActivationBlock, ResNet
from cifarscale.tasks.classifier.networks.small_filters_cnn import (
    Activation,
    Attention,
    BasicBlock,
    SmallFiltersCNN,
    activation,
)
from cifarscale.training.attention import SelfAttention2d
from cifarscale.training.cost import count_macs, count_parameters
from cifarscale.training.norm_layers import GlobalBatchNorm2d, Normalisation, normalisation

ACTIVATIONS, NORMALISATIONS, ATTENTIONS = get_args(Activation), get_args(Normalisation), get_args(Attention)


def as_described(non_linearity: nn.Module) -> nn.Sequential:
    """The network as it was published: convolution, activation, pooling; three times; then the linear layer."""
    layers: list[nn.Module] = []
    for in_channels, channels in ((3, 8), (8, 16), (16, 32)):
        layers += [nn.Conv2d(in_channels, channels, 3, padding=1), non_linearity, nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 100))


def seeded_images(count: int = 8) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    """The gradient of the input, then those of all parameters, for a loss that weighs every logit differently."""
    x = x.clone().requires_grad_()
    logits = model(x)
    loss = (logits * torch.randn(logits.shape, generator=torch.Generator().manual_seed(2))).sum()
    return list(torch.autograd.grad(loss, [x, *model.parameters()]))


# --- the small-filters CNN ---


def test_default_has_the_published_number_of_parameters() -> None:
    assert count_parameters(SmallFiltersCNN()) == 57_332


@pytest.mark.parametrize("kind", ACTIVATIONS)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_equals_the_plain_network_of_the_same_seed_to_the_last_bit(
    kind: Activation, memory_format: torch.memory_format
) -> None:
    """One seed gives both the same weights; pooling before a monotone activation changes no value and no gradient."""
    torch.manual_seed(0)
    plain = as_described(activation(kind)).to(memory_format=memory_format)
    torch.manual_seed(0)
    model = SmallFiltersCNN(activation=kind).to(memory_format=memory_format)
    images = seeded_images().to(memory_format=memory_format)
    for expected, parameter in zip(plain.parameters(), model.parameters(), strict=True):
        assert torch.equal(parameter, expected)
    assert torch.equal(model(images), plain(images))
    for expected, gradient in zip(gradients(plain, images), gradients(model, images), strict=True):
        assert torch.equal(gradient, expected)


@pytest.mark.parametrize("kind", ["relu", "leaky_relu"])
def test_monotone_activations_are_pooled_first(kind: Activation) -> None:
    stage = list(SmallFiltersCNN(activation=kind).stages[0])
    positions = {type(layer): position for position, layer in enumerate(stage)}
    assert positions[nn.MaxPool2d] < positions[type(activation(kind))]


def test_silu_would_differ_if_it_were_pooled_first() -> None:
    x = torch.tensor([[-6.0, -1.0], [-6.0, -6.0]])[None]
    assert functional.max_pool2d(functional.silu(x), 2) > functional.silu(functional.max_pool2d(x, 2))


@pytest.mark.parametrize(
    ("kind", "norm", "residual", "attention"), list(product(ACTIVATIONS, NORMALISATIONS, (False, True), ATTENTIONS))
)
def test_every_combination_of_options_trains(
    kind: Activation, norm: Normalisation, residual: bool, attention: Attention
) -> None:
    model = SmallFiltersCNN(10, 8, kind, norm, residual, attention)
    assert model.features(seeded_images(2)).shape == (2, 512)
    assert model(seeded_images(2)).shape == (2, 10)
    for gradient in gradients(model, seeded_images(2)):
        assert torch.isfinite(gradient).all()


def test_logits_are_the_linear_layer_of_the_features() -> None:
    for model in (SmallFiltersCNN(), ResNet(width=4)):
        model.eval()
        images = seeded_images(2)
        assert torch.equal(model(images), model.classifier(model.features(images)))


def test_options_add_layers_where_they_say() -> None:
    def stages_with(layer: type[nn.Module], **options: Any) -> list[bool]:
        return [any(isinstance(module, layer) for module in stage) for stage in SmallFiltersCNN(**options).stages]

    assert stages_with(BasicBlock, residual=True) == [True, True, True]
    assert stages_with(nn.BatchNorm2d, normalisation="batch") == [True, True, True]
    assert stages_with(SqueezeExcitation, attention="squeeze_excitation") == [True, True, True]
    assert stages_with(SelfAttention2d, attention="self_attention") == [False, True, False]


def test_width_scales_all_channels() -> None:
    model = SmallFiltersCNN(width=16)
    assert [stage[0].out_channels for stage in model.stages] == [16, 32, 64]
    assert model.features(seeded_images(1)).shape == (1, 1024)


def test_normalisation_does_not_cost_the_convolutions_their_biases() -> None:
    model = SmallFiltersCNN(normalisation="batch")
    assert count_parameters(model) == 57_332 + 2 * (8 + 16 + 32)


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_residual_block_without_its_residual_is_the_activation(kind: Activation) -> None:
    block = BasicBlock(8, kind, "none")
    x = torch.randn(2, 8, 4, 4)
    assert not torch.equal(block(x), block.activation(x))
    nn.init.zeros_(block.residual[-2].weight)
    nn.init.zeros_(block.residual[-2].bias)
    assert torch.equal(block(x), block.activation(x))


# --- attention ---


def test_squeeze_excitation_scales_whole_channels_by_factors_between_0_and_1() -> None:
    layer, x = SqueezeExcitation(16), torch.randn(2, 16, 5, 7)
    scale = layer.scale(x)
    assert scale.shape == (2, 16, 1, 1)
    assert ((scale > 0) & (scale < 1)).all()
    assert torch.equal(layer(x), x * scale)
    # Only the channels' means matter: where the positions stand does not.
    torch.testing.assert_close(layer.scale(x.flip(2, 3)), scale)


def test_self_attention_starts_as_the_identity_and_can_leave_it() -> None:
    layer, x = SelfAttention2d(16), torch.randn(2, 16, 8, 8)
    assert torch.equal(layer(x), x)
    layer(x).square().sum().backward()
    assert layer.gate.grad is not None
    assert layer.gate.grad != 0


def test_self_attention_equals_its_definition() -> None:
    layer, x = SelfAttention2d(6, num_heads=2), torch.randn(2, 6, 3, 5)
    nn.init.constant_(layer.gate, 0.5)
    positions = x.flatten(2).transpose(1, 2)  # (N, H*W, C)
    query, key, value = (positions @ layer.query_key_value.weight[:, :, 0, 0].T).chunk(3, dim=-1)
    heads = []
    for head in (slice(0, 3), slice(3, 6)):
        weights = torch.softmax(query[..., head] @ key[..., head].transpose(1, 2) / 3**0.5, dim=-1)
        heads.append(weights @ value[..., head])
    projected = torch.cat(heads, dim=-1) @ layer.projection.weight[:, :, 0, 0].T
    torch.testing.assert_close(layer(x), x + 0.5 * projected.transpose(1, 2).reshape(x.shape))


def test_self_attention_moves_with_its_positions() -> None:
    layer, x = SelfAttention2d(8), torch.randn(1, 8, 4, 4)
    nn.init.ones_(layer.gate)
    assert not torch.equal(layer(x), x)
    torch.testing.assert_close(layer(x.flip(2)), layer(x).flip(2))


def test_self_attention_refuses_channels_that_do_not_divide() -> None:
    with pytest.raises(ValueError, match="9 channels do not divide into 2 heads"):
        SelfAttention2d(9)


# --- normalisation ---


def test_group_normalisation_treats_each_sample_by_itself() -> None:
    layer, x = normalisation("group", 8), torch.randn(4, 8, 5, 5)
    torch.testing.assert_close(layer(x)[:1], layer(x[:1]))


def test_none_is_the_identity() -> None:
    x = torch.randn(2, 8, 4, 4)
    assert torch.equal(normalisation("none", 8)(x), x)


def test_global_batch_norm_is_batch_norm_in_one_process() -> None:
    torch.manual_seed(0)
    expected, layer = nn.BatchNorm2d(5), GlobalBatchNorm2d(5)
    nn.init.normal_(expected.weight)
    nn.init.normal_(expected.bias)
    layer.load_state_dict(expected.state_dict())
    for _ in range(3):
        x = torch.randn(4, 5, 6, 7) * 3 + 2
        assert torch.equal(layer(x), expected(x))
        for gradient, reference in zip(gradients(layer, x), gradients(expected, x), strict=True):
            assert torch.equal(gradient, reference)
    assert_same_state(layer, expected)
    assert torch.equal(layer.eval()(x), expected.eval()(x))


def test_global_batch_norm_exchanges_its_state_with_batch_norm() -> None:
    trained, other = GlobalBatchNorm2d(5), nn.BatchNorm2d(5)
    trained(torch.randn(4, 5, 6, 7))
    other.load_state_dict(trained.state_dict())
    assert_same_state(other, trained)
    back = GlobalBatchNorm2d(5)
    back.load_state_dict(other.state_dict())
    assert_same_state(back, trained)


def assert_same_state(a: nn.Module, b: nn.Module) -> None:
    assert list(a.state_dict()) == list(b.state_dict())
    for key, value in a.state_dict().items():
        assert torch.equal(value, b.state_dict()[key]), key


# --- the residual network ---


@pytest.mark.parametrize(("kind", "norm"), list(product(ACTIVATIONS, NORMALISATIONS)))
def test_resnet_trains_with_every_option(kind: Activation, norm: Normalisation) -> None:
    model = ResNet(num_classes=10, width=4, activation=kind, normalisation=norm)
    assert model.features(seeded_images(2)).shape == (2, 16)
    assert model(seeded_images(2)).shape == (2, 10)
    for gradient in gradients(model, seeded_images(2)):
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("blocks_per_stage", [1, 2, 3])
def test_resnet_is_as_deep_as_it_says(blocks_per_stage: int) -> None:
    model = ResNet(blocks_per_stage=blocks_per_stage, width=4)
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert len(layers) == 6 * blocks_per_stage + 4


def test_resnet_features_come_from_8x8_positions() -> None:
    model = ResNet(width=4)
    assert model.blocks(seeded_images(2)).shape == (2, 16, 8, 8)


def test_pre_activation_block_without_its_residual_is_the_identity() -> None:
    block, x = PreActivationBlock(8, 8, "relu", "batch"), torch.randn(2, 8, 4, 4)
    nn.init.zeros_(block.residual[-1].weight)
    assert torch.equal(block(x), x)


# --- the registry ---


def test_macs_of_the_default_as_computed_by_hand() -> None:
    first, second, third = 3 * 8 * 9 * 32 * 32, 8 * 16 * 9 * 16 * 16, 16 * 32 * 9 * 8 * 8
    assert count_macs(SmallFiltersCNN(), (3, 32, 32)) == first + second + third + 512 * 100 == 862_208


def test_macs_of_attention_as_computed_by_hand() -> None:
    positions, channels = 8 * 8, 16
    projections = positions * channels * 4 * channels
    products = 2 * positions * positions * channels  # query with key, weights with value
    assert count_macs(SelfAttention2d(channels), (channels, 8, 8)) == projections + products


def test_counting_macs_leaves_the_module_as_it_was() -> None:
    model = SmallFiltersCNN(normalisation="batch").train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    count_macs(model, (3, 32, 32))
    assert model.training
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])


def test_frozen_parameters_are_not_counted() -> None:
    model = SmallFiltersCNN()
    model.classifier.requires_grad_(False)
    assert count_parameters(model) == 57_332 - 512 * 100 - 100


def test_classifier_passes_its_options_on() -> None:
    assert isinstance(classifier("small_filters_cnn", width=16), SmallFiltersCNN)
    resnet = classifier("resnet", num_classes=20, width=4, blocks_per_stage=2)
    assert isinstance(resnet, ResNet)
    assert resnet(seeded_images(2)).shape == (2, 20)


def test_summaries_are_distinct_and_the_first_is_the_published_network() -> None:
    table = summaries()
    assert (table[0].name, table[0].parameters, table[0].macs) == ("small_filters_cnn", 57_332, 862_208)
    assert len({(summary.name, summary.options) for summary in table}) == len(table)
    assert all(summary.description and summary.parameters and summary.macs for summary in table)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: classifier("resnet50"), "'resnet50' is unknown; valid: small_filters_cnn, resnet, residual_stages"),
        (lambda: classifier("resnet", activation="gelu"), "'gelu' is unknown; valid: relu, leaky_relu, silu"),
        (lambda: SmallFiltersCNN(normalisation="layer"), "'layer' is unknown; valid: none, batch, group, sync_batch"),
        (lambda: SmallFiltersCNN(attention="se"), "'se' is unknown; valid: none, squeeze_excitation, self_attention"),
        (lambda: SmallFiltersCNN(width=6, normalisation="group"), "multiples of 4, and received 6"),
    ],
)
def test_what_is_not_offered_is_answered_with_what_is(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
