"""Flow matching: its paths and times, the samplers, the network, and what its recipe takes."""

import math
from pathlib import Path
from typing import Literal

import pytest
import torch
from runs import learner_context
from torch import Tensor, nn

from cifarscale.config.load import find_recipe, load_training_recipe
from cifarscale.data.batches import Batch
from cifarscale.data.manifest import Manifest, published_manifest
from cifarscale.errors import ConfigError
from cifarscale.tasks.base import task_of
from cifarscale.tasks.flow.learner import FlowLearner, build_network, cost_of
from cifarscale.tasks.flow.networks.unet import UNet
from cifarscale.tasks.flow.paths import draw_times, on_path
from cifarscale.tasks.flow.recipe import FlowObjectiveConfig, FlowRecipe, SamplerConfig
from cifarscale.tasks.flow.sampler import Sampler
from cifarscale.tasks.training import TrainingTask
from cifarscale.training.cost import count_parameters

CPU = torch.device("cpu")
SMALL = ("model.widths=[4, 8]", "model.blocks=[1, 1]", "model.embedding=8", "training.global_batch_size=64")


def load(*overrides: str) -> FlowRecipe:
    recipe = load_training_recipe("flow", overrides)
    assert isinstance(recipe, FlowRecipe)
    return recipe


def manifest() -> Manifest:
    published = published_manifest("cifar100")
    assert published is not None
    return published


def learner(*overrides: str) -> FlowLearner:
    return FlowLearner(load(*SMALL, *overrides), learner_context(manifest(), Path("unused")))


def batch(count: int = 64) -> Batch:
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    ids = torch.arange(count)
    return Batch(images, ids % 100, ids, range(count))


def awake(network: UNet) -> UNet:
    """Without the zeros that its blocks and its output begin with."""
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    return network


# Paths and times


def test_a_path_leads_from_noise_to_the_image_at_a_constant_velocity() -> None:
    noise, images = torch.randn(5, 3, 4, 4), torch.randn(5, 3, 4, 4)
    for time in (0.0, 0.25, 1.0):
        place, velocity = on_path(noise, images, torch.full((5,), time))
        torch.testing.assert_close(place, noise + time * (images - noise))
        assert torch.equal(velocity, images - noise)


def test_the_loss_is_that_of_the_papers() -> None:
    """E |v(t x1 + (1 - t) x0, t) - (x1 - x0)|^2, with x0 standard normal: Liu et al. 2022, equation 1."""
    task = learner("model.conditional=false", "sampler.guidance=1", "augmentation.flip=false")
    network = awake(task.networks["velocity"])  # type: ignore[arg-type]
    given, part = batch(), task.prepare(batch(), step=3)
    images = given.images.float() / 127.5 - 1
    noise = (part.places - part.times.view(-1, 1, 1, 1) * images) / (1 - part.times.view(-1, 1, 1, 1))
    assert noise.mean().item() == pytest.approx(0, abs=0.02)
    assert noise.std().item() == pytest.approx(1, abs=0.02)
    expected = (network(part.places, part.times) - (images - noise)).square().mean()
    loss, _ = task.loss("velocity", task.networks, part, 3)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        assert task.loss("velocity", task.networks, part, 3)[0].dtype == torch.float32


def test_times_are_distributed_as_the_recipe_says() -> None:
    uniform = draw_times(FlowObjectiveConfig(times="uniform"), 0, 0, range(4000))
    assert uniform.quantile(torch.tensor([0.25, 0.5, 0.75])).tolist() == pytest.approx([0.25, 0.5, 0.75], abs=0.03)
    normal = draw_times(FlowObjectiveConfig(location=-0.5, scale=0.7), 0, 0, range(4000)).logit()
    assert (normal.mean().item(), normal.std().item()) == pytest.approx((-0.5, 0.7), abs=0.04)


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_a_share_of_the_images_is_shown_without_its_class(rate: float) -> None:
    task, given = learner(f"objective.class_dropout={rate}", "sampler.guidance=1"), batch(2000)
    labels = task.prepare(given, step=0).labels
    dropped = labels == 100
    assert dropped.float().mean().item() == pytest.approx(rate, abs=0.04)
    assert torch.equal(labels[~dropped], given.labels[~dropped])


def test_what_a_sample_is_trained_on_depends_on_its_position_alone() -> None:
    task, whole = learner(), batch()
    of_whole = task.prepare(whole, step=5)
    share = Batch(whole.images[1::2], whole.labels[1::2], whole.ids[1::2], range(1, 64, 2))
    of_share = task.prepare(share, step=5)
    for key in ("places", "velocities", "times", "labels"):
        assert torch.equal(getattr(of_share, key), getattr(of_whole, key)[1::2])
    assert not torch.equal(task.prepare(whole, step=6).times, of_whole.times)


def test_half_of_the_images_are_mirrored_where_the_recipe_says_so() -> None:
    given = batch(400)
    plain, flipped = (learner(f"augmentation.flip={flip}").prepare(given, 0) for flip in ("false", "true"))
    images, ours = (each.places + (1 - each.times.view(-1, 1, 1, 1)) * each.velocities for each in (plain, flipped))
    mirrored = [torch.allclose(a, b.flip(2), atol=1e-5) for a, b in zip(ours, images, strict=True)]
    same = [torch.allclose(a, b, atol=1e-5) for a, b in zip(ours, images, strict=True)]
    assert sum(mirrored) == pytest.approx(200, abs=40)
    assert sum(same) == 400 - sum(mirrored)


# Samplers


class Growing(nn.Module):
    """dx/dt = cos(t) x, whose solution is x exp(sin t)."""

    num_classes = 0

    def forward(self, images: Tensor, times: Tensor, labels: Tensor | None = None) -> Tensor:
        return images * times.cos().view(-1, 1, 1, 1)


class OfClass(nn.Module):
    """The velocity of class c is c + 1, and that of no class 10, everywhere and always."""

    num_classes = 2

    def forward(self, images: Tensor, times: Tensor, labels: Tensor | None = None) -> Tensor:
        assert labels is not None
        return torch.tensor([1.0, 2.0, 10.0])[labels].view(-1, 1, 1, 1).expand_as(images) / 100


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("heun", 2)])
def test_a_samplers_error_falls_with_its_order(name: str, order: int) -> None:
    latents = torch.full((1, 4), 0.1, dtype=torch.float64)
    exact = 0.1 * math.exp(math.sin(1))

    def error(steps: int) -> float:
        config = SamplerConfig(name=name, steps=steps)  # type: ignore[arg-type]
        return abs(Sampler(Growing(), config, (1, 2, 2))(latents)[0, 0, 0, 0].item() - exact)

    assert error(20) / error(40) == pytest.approx(2**order, rel=0.1)


@pytest.mark.parametrize("name", ["euler", "heun"])
@pytest.mark.parametrize("guidance", [0.0, 1.0, 3.0])
def test_guidance_goes_from_no_class_to_the_class_and_beyond(guidance: float, name: Literal["euler", "heun"]) -> None:
    sampler = Sampler(OfClass(), SamplerConfig(steps=1, name=name, guidance=guidance), (1, 1, 1))
    images = sampler(torch.zeros(2, 1), torch.tensor([0, 1])).flatten()
    expected = [(10 + guidance * (velocity - 10)) / 100 for velocity in (1, 2)]
    assert images.tolist() == pytest.approx(expected, abs=1e-6)


def test_guidance_1_is_none() -> None:
    network = awake(UNet((4, 8), (1, 1), embedding=8, num_classes=3)).eval()
    latents, labels = torch.randn(2, 3 * 8 * 8), torch.tensor([0, 2])
    with torch.inference_mode():
        velocity = network(latents.view(2, 3, 8, 8), torch.zeros(2), labels)
        images = Sampler(network, SamplerConfig(steps=1, name="euler"), (3, 8, 8))(latents, labels)
        nearly = Sampler(network, SamplerConfig(steps=1, name="euler", guidance=1.000001), (3, 8, 8))(latents, labels)
    torch.testing.assert_close(images, (latents.view(2, 3, 8, 8) + velocity).clamp(-1, 1))
    torch.testing.assert_close(nearly, images, atol=1e-4, rtol=1e-4)


# The network


def test_the_networks_have_the_published_numbers_of_parameters() -> None:
    assert count_parameters(UNet()) == 494_742
    recipe = load()
    assert recipe.budget.max_parameters == 538_432
    assert recipe.training.max_steps == recipe.budget.max_steps == 50_000
    cost = cost_of(recipe, manifest())
    assert f"{count_parameters(build_network(recipe, manifest(), CPU)):,}" == "527,350"
    assert "527,350" in find_recipe("flow").read_text(encoding="utf-8")
    assert cost.macs is not None
    assert cost.training_macs is not None
    assert cost.macs / cost.training_macs == 25 * 2 * 2 / 3  # Heun's two evaluations, with and without the class


def test_a_network_begins_at_rest_and_takes_every_even_size() -> None:
    network = UNet((4, 8, 12), (2, 1, 1), attention=2, embedding=8, num_classes=3)
    for height, width in ((8, 8), (16, 24)):
        velocity = network(torch.randn(2, 3, height, width), torch.rand(2), torch.tensor([0, 3]))
        assert velocity.shape == (2, 3, height, width)
        assert not velocity.any()


def test_a_velocity_depends_on_time_and_class_and_on_no_other_sample() -> None:
    network = awake(UNet((4, 8), (1, 1), embedding=8, num_classes=3)).eval()
    images, times, labels = torch.randn(3, 3, 8, 8), torch.tensor([0.1, 0.5, 0.9]), torch.tensor([0, 1, 3])
    velocities = network(images, times, labels)
    for i in range(3):
        alone = network(images[i : i + 1], times[i : i + 1], labels[i : i + 1])
        torch.testing.assert_close(alone, velocities[i : i + 1], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(network(images, times + 0.05, labels), velocities, atol=1e-3)
    of_none = network(images, times)
    torch.testing.assert_close(of_none[2], velocities[2], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(of_none[0], velocities[0], atol=1e-3)
    with pytest.raises(ValueError, match="num_classes = 0"):
        UNet((4, 8), (1, 1))(images, times, labels)


def test_initial_weights_depend_on_the_seed_alone() -> None:
    one, other, another = (
        build_network(load(*SMALL, f"seed={seed}"), manifest(), CPU).state_dict() for seed in (0, 0, 1)
    )
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert not torch.equal(one["stem.weight"], another["stem.weight"])


# The recipe


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.widths=[24, 30, 56]"], r"model.widths = \[24, 30, 56\] must be multiples of 4"),
        (["model.blocks=[1, 1]"], r"model.blocks = \[1, 1\] needs a value for each level"),
        (["model.attention=4"], "model.attention = 4 is more than the 3 levels"),
        (["model.heads=3"], "model.heads = 3 does not divide the 56 channels"),
        (["model.attention=0", "model.heads=4"], "model.heads = 4 has no effect with model.attention = 0"),
        (["model.embedding=33"], "model.embedding = 33"),
        (["objective.times=cosine"], "objective.times = 'cosine'.*'logit_normal'"),
        (["objective.times=uniform", "objective.scale=2"], "objective.scale = 2.0 has no effect with .* 'uniform'"),
        (["sampler.steps=0"], "sampler.steps = 0"),
        (["sampler.name=rk4"], "sampler.name = 'rk4'.*'heun'"),
        (["objective.class_dropout=0"], "sampler.guidance = 1.5 needs objective.class_dropout above 0"),
        (["model.conditional=false"], "sampler.guidance = 1.5 has no effect with model.conditional = false"),
        (
            ["model.conditional=false", "sampler.guidance=1", "objective.class_dropout=0.2"],
            "objective.class_dropout = 0.2 has no effect with model.conditional = false",
        ),
        (["distance.every=1500", "distance.features=inception"], "must be a multiple of evaluation.every = 5000"),
        (["training.max_steps=60_000"], "is more than budget.max_steps = 50000"),
        (["training.ema_statistics=2"], "training.ema_statistics = 2 is for batch normalisation, and the network has"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load(*overrides)
    assert "\n" not in str(caught.value)


def test_networks_beyond_the_budget_are_refused() -> None:
    recipe = load("model.embedding=128")
    task = task_of(recipe)
    assert isinstance(task, TrainingTask)
    with pytest.raises(ConfigError, match=r"the networks have 568,534 parameters, and budget.max_parameters = 538432"):
        task.check_cost(recipe, manifest())
