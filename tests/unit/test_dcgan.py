"""The DCGAN's networks: the baseline's exactly by default, and each option as its paper defines it."""

import copy
import math
from collections.abc import Mapping
from itertools import product
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from cifarscale.distributed.cpu_pool import CpuPool
from cifarscale.distributed.group import Group
from cifarscale.distributed.ranks import Ranks
from cifarscale.tasks.gan.networks import summaries
from cifarscale.tasks.gan.networks.blocks import DownBlock, MinibatchDiscrimination, MinibatchStandardDeviation, UpBlock
from cifarscale.tasks.gan.networks.dcgan import Discriminator, Downsampling, Generator, Minibatch, Upsampling
from cifarscale.training.cost import count_macs, count_parameters
from cifarscale.training.learner import Outputs
from cifarscale.training.microbatches import Microbatches
from cifarscale.training.norm_layers import Normalisation

NORMALISATIONS, UPSAMPLINGS = get_args(Normalisation), get_args(Upsampling)
DOWNSAMPLINGS, MINIBATCHES = get_args(Downsampling), get_args(Minibatch)
LABELS = torch.tensor([3, 0, 9, 3])


def seeded(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def seeded_images(count: int = 4) -> Tensor:
    return seeded(count, 3, 32, 32).tanh()


def as_described_generator() -> nn.Sequential:
    layers: list[nn.Module] = []
    for in_channels, channels, stride, padding in ((100, 128, 1, 0), (128, 64, 2, 1), (64, 32, 2, 1)):
        layers += [nn.ConvTranspose2d(in_channels, channels, 4, stride, padding, bias=False)]
        layers += [nn.BatchNorm2d(channels), nn.ReLU()]
    return nn.Sequential(*layers, nn.ConvTranspose2d(32, 3, 4, 2, 1, bias=False), nn.Tanh())


def as_described_discriminator() -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(3, 32, 4, 2, 1, bias=False), nn.LeakyReLU(0.2)]
    for in_channels, channels in ((32, 64), (64, 128)):
        layers += [nn.Conv2d(in_channels, channels, 4, 2, 1, bias=False), nn.BatchNorm2d(channels), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Conv2d(128, 1, 4, bias=False))


def initialise_as_described(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


def largest_singular_value(weight: Tensor) -> float:
    return torch.linalg.matrix_norm(weight.detach().flatten(1), 2).item()


# --- the defaults ---


def test_the_baselines_networks_have_the_baselines_parameters() -> None:
    assert count_parameters(Generator()) == 370_624
    assert count_parameters(Discriminator()) == 167_808


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("network", "describe", "inputs"),
    [
        (Generator, as_described_generator, seeded(4, 100)),
        (Discriminator, as_described_discriminator, seeded_images()),
    ],
    ids=["generator", "discriminator"],
)
def test_equals_the_plain_network_of_the_same_seed_to_the_last_bit(
    network: type[nn.Module], describe: Any, inputs: Tensor, memory_format: torch.memory_format
) -> None:
    torch.manual_seed(0)
    plain = describe().apply(initialise_as_described).to(memory_format=memory_format)
    torch.manual_seed(0)
    ours = network().to(memory_format=memory_format)
    for expected, parameter in zip(plain.parameters(), ours.parameters(), strict=True):
        assert torch.equal(parameter, expected)
    mapped = inputs[:, :, None, None] if inputs.dim() == 2 else inputs.to(memory_format=memory_format)
    expected = plain(mapped)
    output = ours(inputs if inputs.dim() == 2 else mapped)
    assert torch.equal(output, expected.flatten() if output.dim() == 1 else expected)
    output.sum().backward()
    expected.sum().backward()
    for parameter, reference in zip(ours.parameters(), plain.parameters(), strict=True):
        assert torch.equal(parameter.grad, reference.grad)
    for buffer, reference in zip(ours.buffers(), plain.buffers(), strict=True):
        assert torch.equal(buffer, reference)


def test_shapes_and_range() -> None:
    images = Generator()(seeded(5, 100))
    assert images.shape == (5, 3, 32, 32)
    assert images.abs().max() <= 1
    assert images.min() < 0 < images.max()
    assert Discriminator()(images).shape == (5,)
    assert Discriminator()(images[:1]).shape == (1,)


def test_macs_are_those_counted_by_hand() -> None:
    """16 weights for each pair of channels at each position of the smaller side."""
    generator = 16 * (100 * 128 + 128 * 64 * 16 + 64 * 32 * 64 + 32 * 3 * 256)
    discriminator = 16 * (3 * 32 * 256 + 32 * 64 * 64 + 64 * 128 * 16 + 128)
    assert count_macs(Generator(), (100,)) == generator == 4_792_320
    assert count_macs(Discriminator(), (3, 32, 32)) == discriminator == 4_589_568


def test_the_table_of_models_has_both_and_their_options() -> None:
    table = {f"{summary.name} {summary.options}".strip(): summary for summary in summaries()}
    assert (table["dcgan generator"].parameters, table["dcgan generator"].macs) == (370_624, 4_792_320)
    assert (table["dcgan discriminator"].parameters, table["dcgan discriminator"].macs) == (167_808, 4_589_568)
    assert table["dcgan generator upsampling=residual"].macs > table["dcgan generator"].macs


def test_only_the_middle_layers_of_the_discriminator_are_normalised() -> None:
    kinds = [type(layer).__name__ for layer in Discriminator().layers]
    middle = ["Conv2d", "BatchNorm2d", "LeakyReLU"]
    assert kinds == ["Conv2d", "LeakyReLU", *middle, *middle]


@pytest.mark.parametrize("network", [Generator, Discriminator])
def test_weights_are_drawn_as_in_the_paper(network: type[nn.Module]) -> None:
    torch.manual_seed(0)
    for module in network().modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            count = module.weight.numel()
            assert module.bias is None
            assert module.weight.mean().item() == pytest.approx(0, abs=4 * 0.02 / math.sqrt(count))
            assert module.weight.std().item() == pytest.approx(0.02, rel=4 / math.sqrt(2 * count))
        elif isinstance(module, nn.BatchNorm2d):
            count = module.weight.numel()
            assert module.weight.mean().item() == pytest.approx(1, abs=4 * 0.02 / math.sqrt(count))
            assert module.weight.std().item() == pytest.approx(0.02, rel=4 / math.sqrt(2 * count))
            assert module.bias.eq(0).all()


# --- all options ---


@pytest.mark.parametrize(("kind", "upsampling", "classes"), list(product(NORMALISATIONS, UPSAMPLINGS, (0, 10))))
def test_every_generator_trains(kind: Normalisation, upsampling: Upsampling, classes: int) -> None:
    generator = Generator(20, 8, kind, upsampling, classes, class_embedding=5)
    generator.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = generator(seeded(4, 20), LABELS if classes else None)
    assert images.shape == (4, 3, 32, 32)
    assert images.abs().max() <= 1
    assert_trains(generator, (images * seeded(4, 3, 32, 32)).sum())


@pytest.mark.parametrize(
    ("kind", "downsampling", "spectral", "minibatch", "classes"),
    list(product(NORMALISATIONS, DOWNSAMPLINGS, (False, True), MINIBATCHES, (0, 10))),
)
def test_every_discriminator_trains(
    kind: Normalisation, downsampling: Downsampling, spectral: bool, minibatch: Minibatch, classes: int
) -> None:
    discriminator = Discriminator(8, kind, downsampling, spectral, minibatch, classes)
    discriminator.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    labels = LABELS if classes else None
    images = seeded_images().to(memory_format=torch.channels_last)
    assert discriminator.features(images).shape == (4, 32, 4, 4)
    logits = discriminator(images, labels)
    assert logits.shape == (4,)
    # Two forward passes before the backward pass, as in the discriminator's own update.
    assert_trains(discriminator, (logits * seeded(4)).sum() + discriminator(images.flip(0), labels).square().sum())


def assert_trains(network: nn.Module, loss: Tensor) -> None:
    for gradient in torch.autograd.grad(loss, list(network.parameters())):
        assert torch.isfinite(gradient).all()
    state = network.state_dict()
    again = copy.deepcopy(network)
    for tensor in again.state_dict().values():
        tensor.zero_()
    again.load_state_dict(state)
    for key, tensor in again.state_dict().items():
        assert torch.equal(tensor, state[key])


@pytest.mark.parametrize(("downsampling", "minibatch"), list(product(DOWNSAMPLINGS, MINIBATCHES)))
def test_the_gradient_of_an_image_can_be_penalised(downsampling: Downsampling, minibatch: Minibatch) -> None:
    """Penalties such as R1's differentiate twice, which a layer's backward pass has to allow."""
    discriminator = Discriminator(8, "none", downsampling, True, minibatch)
    images = seeded_images().requires_grad_()
    (gradient,) = torch.autograd.grad(discriminator(images).sum(), images, create_graph=True)
    gradient.square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in discriminator.parameters() if p.grad is not None)
    assert discriminator.output.parametrizations.weight.original.grad.abs().sum() > 0


@pytest.mark.parametrize("minibatch", MINIBATCHES)
def test_half_precision_gives_nearly_the_same(minibatch: Minibatch) -> None:
    torch.manual_seed(0)
    discriminator = Discriminator(8, "none", "strided", True, minibatch, 10).eval()
    expected = discriminator(seeded_images(), LABELS)
    with torch.autocast("cpu", torch.bfloat16):
        logits = discriminator(seeded_images(), LABELS)
    torch.testing.assert_close(logits.float(), expected, rtol=0.02, atol=0.02)


# --- residual blocks ---


def test_residual_blocks_change_the_size_and_the_channels() -> None:
    assert UpBlock(6, 4, "batch")(seeded(2, 6, 5, 7)).shape == (2, 4, 10, 14)
    assert DownBlock(6, 4, "batch")(seeded(2, 6, 10, 14)).shape == (2, 4, 5, 7)
    assert DownBlock(3, 4, "batch", of_images=True)(seeded(2, 3, 10, 14)).shape == (2, 4, 5, 7)


def without_residual(block: nn.Module) -> nn.Module:
    last = [layer for layer in block.residual if isinstance(layer, nn.Conv2d)][-1]
    nn.init.zeros_(last.weight)
    return block


def test_without_its_residual_a_block_is_its_shortcut_whichever_way_round() -> None:
    up, down = without_residual(UpBlock(6, 4, "none")), without_residual(DownBlock(6, 4, "none"))
    x = seeded(2, 6, 8, 8)
    doubled = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(up(x), up.shortcut[0](doubled))
    torch.testing.assert_close(down(x), functional.avg_pool2d(down.shortcut[1](x), 2))


def test_the_residual_is_what_the_papers_draw() -> None:
    def kinds(block: nn.Module) -> list[str]:
        return [type(layer).__name__ for layer in block.residual]

    half = ["BatchNorm2d", "ReLU", "Conv2d"]
    assert kinds(UpBlock(6, 4, "batch")) == ["BatchNorm2d", "ReLU", "Upsample", "Conv2d", *half]
    assert kinds(DownBlock(6, 4, "batch")) == [*half, *half, "AvgPool2d"]
    assert kinds(DownBlock(3, 4, "batch", of_images=True)) == ["Conv2d", "Identity", "ReLU", "Conv2d", "AvgPool2d"]


def test_residual_networks_are_made_of_three_blocks() -> None:
    ups = [layer for layer in Generator(upsampling="residual").layers if isinstance(layer, UpBlock)]
    downs = [layer for layer in Discriminator(downsampling="residual").layers if isinstance(layer, DownBlock)]
    assert [block.shortcut[0].out_channels for block in ups] == [64, 32, 16]
    assert [block.shortcut[1].out_channels for block in downs] == [32, 64, 128]
    for block in (*ups, *downs):
        for convolution in (layer for layer in block.modules() if isinstance(layer, nn.Conv2d)):
            fans = convolution.weight[0].numel() + convolution.weight[:, 0].numel()
            gain = math.sqrt(2) if convolution.kernel_size == (3, 3) else 1
            assert convolution.weight.abs().max().item() == pytest.approx(gain * math.sqrt(6 / fans), rel=0.05)
            assert convolution.bias is not None
            assert convolution.bias.eq(0).all()


# --- the minibatch ---


def test_minibatch_discrimination_is_its_definition() -> None:
    """Each o(x_i)_b as a double loop over the samples gives it, from M_i = f(x_i) T with T of A x B x C."""
    layer, x = MinibatchDiscrimination(6, num_kernels=3, kernel_size=2).double(), seeded(5, 6, 4, 4).double()
    tensor = layer.projection.weight.T.reshape(6, 3, 2)
    matrices = torch.einsum("na,abc->nbc", x.mean((2, 3)), tensor)
    expected = torch.zeros(5, 3, dtype=torch.float64)
    for i, b in product(range(5), range(3)):
        for j in range(5):
            expected[i, b] += math.exp(-(matrices[i, b] - matrices[j, b]).abs().sum().item())
    output = layer(x)
    assert output.shape == (5, 9, 4, 4)
    assert torch.equal(output[:, :6], x)
    torch.testing.assert_close(output[:, 6:], expected[:, :, None, None].expand(5, 3, 4, 4))


def test_minibatch_discrimination_counts_equal_samples() -> None:
    layer, x = MinibatchDiscrimination(6), seeded(1, 6, 4, 4).repeat(7, 1, 1, 1)
    torch.testing.assert_close(layer(x)[:, 6:], torch.full((7, 16, 4, 4), 7.0))


def test_minibatch_standard_deviation_is_numpys() -> None:
    x = seeded(5, 6, 4, 4)
    output = MinibatchStandardDeviation()(x)
    assert output.shape == (5, 7, 4, 4)
    assert torch.equal(output[:, :6], x)
    expected = np.std(x.numpy(), axis=0).mean()
    np.testing.assert_allclose(output[:, 6].numpy(), np.full((5, 4, 4), expected), rtol=1e-5)


def test_minibatch_standard_deviation_of_equal_samples_has_a_finite_gradient() -> None:
    x = seeded(1, 6, 4, 4).repeat(3, 1, 1, 1).requires_grad_()
    output = MinibatchStandardDeviation()(x)
    assert output[:, 6:].max() < 1e-3
    output.sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("minibatch", ["discrimination", "stddev"])
def test_with_a_minibatch_layer_a_logit_depends_on_the_other_samples(minibatch: Minibatch) -> None:
    torch.manual_seed(0)
    images = seeded_images()
    others = torch.cat([images[:1], images[:1].expand(3, -1, -1, -1)])
    for kind, differs in (("none", False), (minibatch, True)):
        discriminator = Discriminator(normalisation="none", minibatch=kind)
        # The last layer's weights are small at first, so nearly equal logits may still be of another sum.
        nn.init.normal_(discriminator.output.weight)
        assert torch.allclose(discriminator(images)[0], discriminator(others)[0], atol=1e-5) is not differs


# --- spectral normalisation ---


@pytest.mark.parametrize("downsampling", DOWNSAMPLINGS)
def test_spectral_normalisation_gives_every_weight_a_largest_singular_value_of_one(downsampling: Downsampling) -> None:
    torch.manual_seed(0)
    discriminator = Discriminator(8, "none", downsampling, True, "discrimination", 10)
    with torch.no_grad():
        for parameter in discriminator.parameters():  # far from what the vectors were found for
            parameter.copy_(torch.randn_like(parameter))
        for _ in range(200):
            discriminator(seeded_images(), LABELS)
    discriminator.eval()
    normalised = [m for m in discriminator.modules() if isinstance(m, nn.Conv2d | nn.Linear | nn.Embedding)]
    assert len(normalised) == (4 if downsampling == "strided" else 10) + 2
    for module in normalised:
        assert largest_singular_value(module.weight) == pytest.approx(1, abs=0.02)
        assert largest_singular_value(module.parametrizations.weight.original) > 2


def test_spectral_normalisation_leaves_the_initial_weights_and_the_number_of_parameters() -> None:
    torch.manual_seed(0)
    plain = Discriminator()
    torch.manual_seed(0)
    spectral = Discriminator(spectral=True)
    assert count_parameters(spectral) == 167_808
    for expected, parameter in zip(
        sorted(plain.parameters(), key=lambda p: p.numel()),
        sorted(spectral.parameters(), key=lambda p: p.numel()),
        strict=True,
    ):
        assert torch.equal(parameter, expected)
    names = {name.rpartition(".")[2] for name, _ in spectral.named_buffers()}
    assert {"_u", "_v"} <= names


def test_spectral_vectors_move_in_training_alone() -> None:
    discriminator = Discriminator(8, "none", spectral=True)
    before = copy.deepcopy(discriminator.state_dict())
    discriminator.eval()(seeded_images())
    assert all(torch.equal(tensor, before[key]) for key, tensor in discriminator.state_dict().items())
    discriminator.train()(seeded_images())
    moved = {
        key.rpartition(".")[2] for key, tensor in discriminator.state_dict().items() if (tensor != before[key]).any()
    }
    assert moved == {"_u", "_v"}


def test_replicas_of_a_spectral_network_share_its_weights_and_own_their_vectors() -> None:
    """A step moves the vectors as the same passes in the network itself would, in however many microbatches."""
    torch.manual_seed(0)
    networks = {"discriminator": Discriminator(8, "none", spectral=True, minibatch="stddev")}
    original = networks["discriminator"]
    reference = copy.deepcopy(original)
    microbatches = Microbatches(dict(networks), 4, Group(Ranks()), CpuPool(one_core_each=True, num_cores=1))
    for replica in microbatches.replicas:
        for mine, theirs in zip(original.parameters(), replica["discriminator"].parameters(), strict=True):
            assert mine is theirs
        for mine, theirs in zip(original.buffers(), replica["discriminator"].buffers(), strict=True):
            assert mine is not theirs

    def loss(name: str, replica: Mapping[str, nn.Module], part: Any, step: int) -> tuple[Tensor, Outputs]:
        value = replica[name](part).mean() - replica[name](part.flip(3)).square().mean()
        return value, (value,)

    parts = [seeded_images(16)[i::4] for i in range(4)]
    microbatches.begin_step()
    gradients, _ = microbatches.gradients("discriminator", loss, parts, 0)
    microbatches.exchange("discriminator", gradients)
    microbatches.end_step()
    for _ in range(2):
        reference(parts[0])
    for buffer, expected in zip(original.buffers(), reference.buffers(), strict=True):
        assert torch.equal(buffer, expected)
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in original.parameters())


# --- classes ---


def test_the_projection_adds_the_product_of_the_classs_vector_and_the_summed_features() -> None:
    torch.manual_seed(0)
    plain = Discriminator().eval()
    torch.manual_seed(0)
    projected = Discriminator(num_classes=10).eval()
    images = seeded_images()
    assert projected.class_embedding is not None
    vectors = projected.class_embedding.weight[LABELS]
    summed = plain.features(images).sum((2, 3))
    expected = torch.stack([vector @ features for vector, features in zip(vectors, summed, strict=True)])
    torch.testing.assert_close(projected(images, LABELS) - plain(images), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(projected(images, LABELS), projected(images, LABELS.flip(0)))
    assert count_parameters(projected) == 167_808 + 10 * 128


def test_a_conditional_generators_images_depend_on_the_noise_and_the_label() -> None:
    generator = Generator(num_classes=10, class_embedding=7).eval()
    latents = seeded(2, 100)
    one, other = torch.tensor([1, 1]), torch.tensor([2, 2])
    images = generator(latents, one)
    assert torch.equal(images, generator(latents, one))
    assert not torch.allclose(images, generator(latents, other))
    assert not torch.allclose(images[0], images[1])
    assert count_parameters(generator) == 370_624 + 10 * 7 + 7 * 128 * 16


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Generator(upsampling="nearest"), "upsampling 'nearest' is unknown; valid: transposed, residual"),
        (lambda: Generator(width=5, upsampling="residual"), "halves the width, and received the odd width 5"),
        (lambda: Discriminator(downsampling="pool"), "downsampling 'pool' is unknown; valid: strided, residual"),
        (lambda: Discriminator(minibatch="std"), "minibatch 'std' is unknown; valid: none, discrimination, stddev"),
        (lambda: Discriminator(normalisation="layer"), "'layer' is unknown; valid: none, batch, group, sync_batch"),
        (lambda: Generator(num_classes=10)(seeded(4, 100)), "received no labels, .* num_classes = 10"),
        (lambda: Generator()(seeded(4, 100), LABELS), "received labels, .* num_classes = 0"),
        (lambda: Discriminator(num_classes=10)(seeded_images()), "received no labels, .* num_classes = 10"),
        (lambda: Discriminator()(seeded_images(), LABELS), "received labels, .* num_classes = 0"),
    ],
)
def test_what_is_not_offered_is_answered_with_what_is(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
