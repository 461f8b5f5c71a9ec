"""What both networks of a DCGAN descend on: each objective against its formula, and what makes it that objective."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from cifarscale.tasks.gan.objectives import discriminator_loss, generator_loss, gradient_penalty, needs_real_images
from cifarscale.tasks.gan.recipe import ObjectiveConfig

NAMES = ("bce", "hinge", "relativistic")


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


OF_DISCRIMINATORS: dict[str, Callable[[float, float], float]] = {
    "bce": lambda real, fake: -math.log(sigmoid(real)) - math.log(1 - sigmoid(fake)),
    "hinge": lambda real, fake: max(0, 1 - real) + max(0, 1 + fake),
    "relativistic": lambda real, fake: -math.log(sigmoid(real - fake)),
}
OF_GENERATORS: dict[str, Callable[[float, float], float]] = {
    "bce": lambda real, fake: -math.log(sigmoid(fake)),
    "hinge": lambda real, fake: -fake,
    "relativistic": lambda real, fake: -math.log(sigmoid(fake - real)),
}
"""The papers' losses of one real and one generated image."""


def logits(seed: int, count: int = 50) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed)) * 3


REAL, FAKE = logits(1), logits(2)


def gradient(loss: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """Of each sample's own loss: a mean's gradient, times the samples."""
    at = at.clone().requires_grad_()
    (of_mean,) = torch.autograd.grad(loss(at), at)
    return of_mean * len(at)


# The losses


@pytest.mark.parametrize("name", NAMES)
def test_losses_are_means_of_the_papers_formulas(name: str) -> None:
    pairs = list(zip(REAL.tolist(), FAKE.tolist(), strict=True))
    for loss, formula in ((discriminator_loss, OF_DISCRIMINATORS[name]), (generator_loss, OF_GENERATORS[name])):
        expected = sum(formula(real, fake) for real, fake in pairs) / len(pairs)
        assert loss(name, REAL, FAKE).shape == ()
        assert loss(name, REAL, FAKE).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_losses_and_their_gradients_stay_finite_for_logits_of_any_size(name: str) -> None:
    for size in (-1e4, 1e4):
        far = torch.full((3,), size)
        for loss in (discriminator_loss, generator_loss):
            assert loss(name, far, -far).isfinite()
            assert gradient(lambda fake, loss=loss, far=far: loss(name, far, fake), -far).isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_a_discriminator_wants_real_logits_up_and_generated_ones_down_and_a_generator_the_contrary(name: str) -> None:
    assert (gradient(lambda real: discriminator_loss(name, real, FAKE), REAL) <= 0).all()
    assert (gradient(lambda fake: discriminator_loss(name, REAL, fake), FAKE) >= 0).all()
    assert (gradient(lambda fake: generator_loss(name, REAL, fake), FAKE) < 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_only_a_generator_that_compares_needs_real_images(name: str) -> None:
    needs = needs_real_images(ObjectiveConfig(name=name))
    assert needs is (name == "relativistic")
    depends = not torch.equal(generator_loss(name, REAL, FAKE), generator_loss(name, REAL + 1, FAKE))
    assert depends is needs
    if not needs:
        assert torch.equal(generator_loss(name, None, FAKE), generator_loss(name, REAL, FAKE))


def test_bce_of_a_discriminator_that_cannot_tell_is_twice_the_log_of_2() -> None:
    none = torch.zeros(4)
    assert discriminator_loss("bce", none, none).item() == pytest.approx(2 * math.log(2))
    assert generator_loss("bce", None, none).item() == pytest.approx(math.log(2))


def test_bce_of_the_generator_does_not_saturate() -> None:
    """Where the discriminator is sure, log(1 - D(G(z))) would have no gradient; -log D(G(z)) has one of -1."""
    sure = torch.full((5,), -20.0)
    torch.testing.assert_close(gradient(lambda fake: generator_loss("bce", None, fake), sure), torch.full((5,), -1.0))
    fooled = -sure
    assert gradient(lambda fake: generator_loss("bce", None, fake), fooled).abs().max() < 1e-6


def test_hinge_and_its_gradient_are_0_beyond_the_margins_and_1_within() -> None:
    beyond, within = torch.tensor([1.0, 1.5, 80.0]), torch.tensor([0.9, 0.0, -70.0])
    assert discriminator_loss("hinge", beyond, -beyond) == 0
    for loss in (
        lambda real: discriminator_loss("hinge", real, -beyond),
        lambda real: discriminator_loss("hinge", beyond, -real),
    ):
        assert gradient(loss, beyond).eq(0).all()
        assert gradient(loss, within).eq(-1).all()
    assert discriminator_loss("hinge", within, -beyond).item() == pytest.approx((0.1 + 1 + 71) / 3)


def test_hinge_of_the_generator_has_the_same_gradient_everywhere() -> None:
    assert gradient(lambda fake: generator_loss("hinge", None, fake), FAKE).eq(-1).all()


def test_the_relativistic_losses_see_differences_alone() -> None:
    for loss in (discriminator_loss, generator_loss):
        torch.testing.assert_close(loss("relativistic", REAL + 7, FAKE + 7), loss("relativistic", REAL, FAKE))
    for name in ("bce", "hinge"):
        assert not torch.allclose(discriminator_loss(name, REAL + 7, FAKE + 7), discriminator_loss(name, REAL, FAKE))


def test_the_relativistic_loss_of_one_network_is_the_others_with_the_roles_swapped() -> None:
    assert torch.equal(discriminator_loss("relativistic", REAL, FAKE), generator_loss("relativistic", FAKE, REAL))
    equal = generator_loss("relativistic", REAL, REAL)
    assert equal.item() == pytest.approx(math.log(2))


def test_the_relativistic_loss_compares_each_image_with_the_one_at_its_place() -> None:
    order = torch.randperm(len(REAL), generator=torch.Generator().manual_seed(0))
    same = discriminator_loss("relativistic", REAL[order], FAKE[order])
    torch.testing.assert_close(same, discriminator_loss("relativistic", REAL, FAKE))
    assert not torch.allclose(discriminator_loss("relativistic", REAL[order], FAKE), same)


# Gradient penalties


def images(count: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(count, 3, 4, 4, dtype=torch.float64, generator=generator).requires_grad_()


def small_discriminator() -> nn.Sequential:
    """A smooth one, so that finite differences agree with derivatives."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Conv2d(4, 1, 2), nn.Softplus(), nn.Flatten(0)).double()


def test_the_penalty_of_a_linear_discriminator_is_half_its_weights_square_and_its_gradient_the_weights() -> None:
    weight = torch.randn(3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(4)).requires_grad_()
    x = images()
    penalty = gradient_penalty((x * weight).sum((1, 2, 3)) + 9, x)
    assert penalty.item() == pytest.approx(weight.square().sum().item() / 2)
    (of_weight,) = torch.autograd.grad(penalty, weight)
    torch.testing.assert_close(of_weight, weight.detach())


def test_the_penalty_of_a_quadratic_discriminator_is_the_analytic_one() -> None:
    """The logit a / 2 |x|^2 has the gradient a x: the penalty is the mean of a^2 / 2 |x|^2, and its derivative by a is
    that of a |x|^2."""
    a = torch.tensor(1.7, dtype=torch.float64, requires_grad=True)
    x = images()
    squares = x.detach().square().sum((1, 2, 3)).mean().item()
    penalty = gradient_penalty(a / 2 * x.square().sum((1, 2, 3)), x)
    assert penalty.item() == pytest.approx(1.7**2 / 2 * squares)
    assert torch.autograd.grad(penalty, a)[0].item() == pytest.approx(1.7 * squares)


def test_the_penaltys_gradient_by_every_weight_is_that_of_finite_differences() -> None:
    network, x = small_discriminator(), images()

    def penalty(*weights: Tensor) -> Tensor:
        values = dict(zip(dict(network.named_parameters()), weights, strict=True))
        return gradient_penalty(torch.func.functional_call(network, values, x), x)

    weights = tuple(parameter.detach().clone().requires_grad_() for parameter in network.parameters())
    assert torch.autograd.gradcheck(penalty, weights)


def test_the_penalty_of_a_sample_does_not_depend_on_the_others() -> None:
    network, x = small_discriminator(), images()
    whole = gradient_penalty(network(x), x)
    (of_images,) = torch.autograd.grad(whole, x, retain_graph=True)
    penalties = []
    for i in range(len(x)):
        one = x[i : i + 1].detach().requires_grad_()
        penalties.append(gradient_penalty(network(one), one))
        (of_one,) = torch.autograd.grad(penalties[-1], one)
        torch.testing.assert_close(of_images[i], of_one[0] / len(x))
    assert len({penalty.item() for penalty in penalties}) == len(x)
    torch.testing.assert_close(whole, torch.stack(penalties).mean())
