"""The DCGAN's networks."""

import pytest
import torch
from torch import nn

from cifarscale.models.dcgan import Discriminator, Generator
from cifarscale.models.registry import count_macs, count_parameters


def test_the_seeds_networks_have_the_seeds_parameters() -> None:
    assert count_parameters(Generator()) == 370_624
    assert count_parameters(Discriminator()) == 167_808


def test_shapes_and_range() -> None:
    images = Generator()(torch.randn(5, 100))
    assert images.shape == (5, 3, 32, 32)
    assert images.abs().max() <= 1
    assert Discriminator()(images).shape == (5,)


def test_macs_are_those_counted_by_hand() -> None:
    """16 weights for each pair of channels at each position of the smaller side."""
    generator = 16 * (100 * 128 + 128 * 64 * 16 + 64 * 32 * 64 + 32 * 3 * 256)
    discriminator = 16 * (3 * 32 * 256 + 32 * 64 * 64 + 64 * 128 * 16 + 128)
    assert count_macs(Generator(), (100,)) == generator
    assert count_macs(Discriminator(), (3, 32, 32)) == discriminator


def test_only_the_middle_layers_of_the_discriminator_are_normalised() -> None:
    kinds = [type(layer).__name__ for layer in Discriminator().layers]
    middle = ["Conv2d", "BatchNorm2d", "LeakyReLU"]
    assert kinds == ["Conv2d", "LeakyReLU", *middle, *middle, "Conv2d"]


@pytest.mark.parametrize("network", [Generator, Discriminator])
def test_weights_are_drawn_as_in_the_paper(network: type[nn.Module]) -> None:
    torch.manual_seed(0)
    for module in network().modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            assert module.bias is None
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.1)
        elif isinstance(module, nn.BatchNorm2d):
            assert module.weight.mean().item() == pytest.approx(1, abs=0.02)
            assert module.bias.eq(0).all()


@pytest.mark.parametrize("kind", ["none", "batch", "group", "sync_batch"])
def test_every_normalisation_trains(kind: str) -> None:
    generator, discriminator = Generator(width=8, normalisation=kind), Discriminator(width=8, normalisation=kind)
    discriminator(generator(torch.randn(4, 100))).sum().backward()
    assert all(p.grad is not None for network in (generator, discriminator) for p in network.parameters())
