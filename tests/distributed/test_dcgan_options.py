"""The DCGAN with its options on: what reaches the discriminator, and the same promises for whole jobs."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from PIL import Image
from runs import generate, learner_context, run_recipe
from torch import Tensor
from torch.nn import functional as F

from cifarscale.cli.main import main
from cifarscale.config.load import load_training_recipe
from cifarscale.data.batches import Batch
from cifarscale.data.dataset import Dataset
from cifarscale.data.manifest import Manifest, published_manifest
from cifarscale.data.source import Source
from cifarscale.distributed.group import Group
from cifarscale.distributed.randomness import normals
from cifarscale.distributed.ranks import Ranks
from cifarscale.runs.options import RunOptions
from cifarscale.runs.run_folder import RunFolder
from cifarscale.tasks.gan.differentiable_augmentation import NUM_DRAWS, augment
from cifarscale.tasks.gan.learner import GanBatch, GanLearner, build_networks
from cifarscale.tasks.gan.objectives import gradient_penalty
from cifarscale.tasks.gan.recipe import GanRecipe
from cifarscale.tasks.load import load_generator
from cifarscale.tasks.training import resolve

pytestmark = pytest.mark.distributed
Function = Callable[..., Any]
CPU = torch.device("cpu")

SMALL = (
    "training.global_batch_size=16",
    "training.microbatches=4",
    "model.generator_width=8",
    "model.discriminator_width=4",
)
AUGMENTED = ("augmentation.colour=true", "augmentation.translation=0.125", "augmentation.cutout=0.5")
PENALISED = ("objective.r1=0.5", "objective.r2=0.25", "model.discriminator_normalisation=none")
CONDITIONAL = ("model.conditional=true", "model.class_embedding=8")
SEVERAL = ("discriminator_updates=2", "discriminator_optimizer.learning_rate=1e-3", "optimizer.betas=[0.0, 0.9]")


# In the task


def build_task(*overrides: str) -> GanLearner:
    recipe = load_training_recipe("dcgan", SMALL + overrides)
    manifest = published_manifest("cifar100")
    assert isinstance(recipe, GanRecipe)
    assert manifest is not None
    return GanLearner(recipe, learner_context(manifest, Path("unused")))


def steep(*overrides: str) -> GanLearner:
    """A task whose discriminator is as steep as a trained one: at first its penalties are too small to show."""
    task = build_task(*overrides)
    with torch.no_grad():
        for parameter in task.networks["discriminator"].parameters():
            parameter.mul_(5)
    return task


def batch(positions: range = range(16)) -> Batch:
    """The samples at some positions of a batch of 16."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8, generator=generator)
    rows = torch.tensor(positions)
    return Batch(images[rows], (rows * 7) % 100, rows, positions)


def prepared(task: GanLearner, step: int = 3) -> GanBatch:
    return task.prepare(batch(), step)


def seen_in(task: GanLearner, update: str, part: GanBatch) -> list[tuple[Tensor, Tensor | None]]:
    """The images and labels that the discriminator is called with in an update, in order."""
    calls: list[tuple[Tensor, Tensor | None]] = []
    hook = task.networks["discriminator"].register_forward_pre_hook(lambda _, inputs: calls.append(inputs))
    task.loss(update, task.networks, part, 3)
    hook.remove()
    return calls


def relabelled(part: GanBatch) -> GanBatch:
    return GanBatch(part.images, part.latents, part.labels.flip(0), part.draws)


def gradients(task: GanLearner, update: str, part: GanBatch, network: str) -> list[Tensor]:
    loss, _ = task.loss(update, task.networks, part, 3)
    return list(torch.autograd.grad(loss, list(task.networks[network].parameters())))


def values(figures: Mapping[str, Tensor]) -> dict[str, float]:
    return {name: value.item() for name, value in figures.items()}


def test_real_and_generated_images_are_augmented_alike_with_draws_of_their_own() -> None:
    task = build_task(*AUGMENTED, "objective.name=relativistic")
    config = load_training_recipe("dcgan", AUGMENTED).augmentation  # type: ignore[attr-defined]
    part = prepared(task)
    assert part.draws.shape == (16, 4, NUM_DRAWS)
    uses = [part.draws[:, use] for use in range(4)]
    assert not any(torch.equal(one, other) for one, other in combinations(uses, 2))
    with torch.no_grad():
        generated = task.networks["generator"](part.latents)
    seen = [images for update in task.optimized_networks for images, _ in seen_in(task, update, part)]
    expected = [part.images, generated, generated, part.images]
    for images, original, draws in zip(seen, expected, uses, strict=True):
        assert torch.equal(images, augment(original, config, draws))
        assert not torch.allclose(images, original, atol=0.1)


def test_the_generators_gradient_comes_through_the_augmentation() -> None:
    task = build_task(*AUGMENTED[1:])
    config = load_training_recipe("dcgan", AUGMENTED[1:]).augmentation  # type: ignore[attr-defined]
    part = prepared(task)
    generator, discriminator = task.networks["generator"], task.networks["discriminator"]
    generated = generator(part.latents)
    loss = -F.logsigmoid(discriminator(augment(generated, config, part.draws[:, 2]))).mean()
    (of_images,) = torch.autograd.grad(loss, generated, retain_graph=True)
    hidden = of_images.eq(0).all(1).flatten(1).sum(1)  # what is cut out or shifted beyond the border
    assert (hidden > 0).any()
    assert hidden.max() < 32 * 32
    expected = torch.autograd.grad(loss, list(generator.parameters()))
    for gradient, reference in zip(gradients(task, "generator", part, "generator"), expected, strict=True):
        torch.testing.assert_close(gradient, reference)
        assert gradient.abs().sum() > 0


def test_with_everything_off_the_discriminator_sees_the_images_as_they_are() -> None:
    task = build_task("objective.name=relativistic")
    part = prepared(task)
    assert torch.equal(part.images, (batch().images.float() - 127.5) / 127.5)
    assert part.draws.numel() == 0
    with torch.no_grad():
        generated = task.networks["generator"](part.latents)
    (real, _), (fake, _) = seen_in(task, "discriminator", part)
    assert torch.equal(real, part.images)
    assert torch.equal(fake, generated)
    (fake, _), (real, _) = seen_in(task, "generator", part)
    assert torch.equal(real, part.images)
    assert torch.equal(fake, generated)


def test_a_samples_draws_are_its_own_whichever_ranks_share_the_batch() -> None:
    task = build_task(*AUGMENTED, "augmentation.flip=true")
    whole = prepared(task)
    assert len({tuple(row.flatten().tolist()) for row in whole.draws}) == 16
    assert not torch.equal(whole.draws, prepared(task, step=4).draws)
    for world_size in (2, 4, 16):
        for rank in range(world_size):
            positions = range(rank, 16, world_size)
            share, part = task.prepare(batch(positions), 3), whole.part(rank, world_size)
            for field in ("images", "latents", "labels", "draws"):
                assert torch.equal(getattr(share, field), getattr(part, field)), field


def test_a_generated_image_is_of_the_class_of_the_real_one_at_its_place() -> None:
    task = build_task(*CONDITIONAL, "objective.name=relativistic")
    part = prepared(task)
    asked: list[Tensor] = []
    task.networks["generator"].register_forward_pre_hook(lambda _, inputs: asked.append(inputs[1]))
    judged = [labels for update in task.optimized_networks for _, labels in seen_in(task, update, part)]
    assert (len(asked), len(judged)) == (2, 4)
    for labels in asked + judged:
        assert labels is not None
        assert torch.equal(labels, batch().labels)


@pytest.mark.parametrize("update", GanLearner.optimized_networks)
@pytest.mark.parametrize("overrides", [(), CONDITIONAL], ids=["unconditional", "conditional"])
def test_labels_matter_to_a_conditional_gan_alone(overrides: tuple[str, ...], update: str) -> None:
    task = build_task(*overrides, "model.generator_normalisation=none", "model.discriminator_normalisation=none")
    torch.nn.init.normal_(task.networks["discriminator"].output.weight)  # type: ignore[union-attr,arg-type]
    part = prepared(task)
    loss, other = (task.loss(update, task.networks, each, 3)[0] for each in (part, relabelled(part)))
    assert torch.equal(loss, other) is (not overrides)


@pytest.mark.parametrize("objective", ["bce", "hinge", "relativistic"])
@pytest.mark.parametrize("penalties", [(0.0, 0.0), (0.5, 0.0), (0.0, 0.25), (0.5, 0.25)])
def test_penalties_are_logged_and_weigh_in_with_their_gamma(penalties: tuple[float, float], objective: str) -> None:
    gammas = dict(zip(("r1", "r2"), penalties, strict=True))
    weights = [f"objective.{name}={gamma}" for name, gamma in gammas.items()]
    task = steep(*PENALISED, *AUGMENTED, f"objective.name={objective}", *weights)
    part = prepared(task)
    calls = seen_in(task, "discriminator", part)
    loss, outputs = task.loss("discriminator", task.networks, part, 3)
    figures = values(task.metrics("discriminator", part, outputs))
    shown = [name for name, gamma in gammas.items() if gamma]
    assert list(figures) == ["discriminator_loss", "real_score", "fake_score", *shown]
    for name, (images, _) in zip(gammas, calls, strict=True):
        if name in shown:
            images = images.detach().requires_grad_()
            penalty = gradient_penalty(task.networks["discriminator"](images), images)
            assert figures[name] == pytest.approx(penalty.item(), rel=1e-5)
            assert penalty > 0.01
    expected = figures["discriminator_loss"] + sum(gammas[name] * figures[name] for name in shown)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("penalty", "other"), [("r1", "r2"), ("r2", "r1")])
def test_a_penalty_changes_the_discriminators_gradient_by_gamma_times_its_own(penalty: str, other: str) -> None:
    by_gamma = []
    for gamma in (0, 1, 3):
        task = steep(*PENALISED, f"objective.{other}=0", f"objective.{penalty}={gamma}")
        by_gamma.append(gradients(task, "discriminator", prepared(task), "discriminator"))
    for none, one, three in zip(*by_gamma, strict=True):
        assert (one - none).abs().max() > 1e-3
        torch.testing.assert_close(three - none, 3 * (one - none), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("network", ["generator", "discriminator"])
def test_penalties_are_none_of_the_generators_update(network: str) -> None:
    plain, penalised = steep(*PENALISED, "objective.r1=0", "objective.r2=0"), steep(*PENALISED)
    for one, other in zip(
        *(gradients(task, "generator", prepared(task), network) for task in (plain, penalised)), strict=True
    ):
        assert torch.equal(one, other)
    _, outputs = penalised.loss("generator", penalised.networks, prepared(penalised), 3)
    assert list(penalised.metrics("generator", prepared(penalised), outputs)) == ["generator_loss"]


@pytest.mark.parametrize("overrides", [PENALISED, AUGMENTED, CONDITIONAL], ids=["penalties", "augmentation", "classes"])
def test_the_discriminators_loss_does_not_reach_the_generator_whatever_is_on(overrides: tuple[str, ...]) -> None:
    task = build_task(*overrides)
    loss, _ = task.loss("discriminator", task.networks, prepared(task), 3)
    loss.backward()
    assert all(parameter.grad is None for parameter in task.networks["generator"].parameters())


def test_the_figures_of_hinge_are_its_losses_and_the_mean_probabilities() -> None:
    task = build_task("objective.name=hinge", "model.discriminator_normalisation=none")
    part = prepared(task)
    real, fake = (task.networks["discriminator"](images) for images, _ in seen_in(task, "discriminator", part))
    loss, outputs = task.loss("discriminator", task.networks, part, 3)
    expected = {
        "discriminator_loss": ((1 - real).clamp(min=0) + (1 + fake).clamp(min=0)).mean().item(),
        "real_score": (1 / (1 + (-real).exp())).mean().item(),
        "fake_score": (1 / (1 + (-fake).exp())).mean().item(),
    }
    assert values(task.metrics("discriminator", part, outputs)) == pytest.approx(expected)
    assert loss.item() == pytest.approx(expected["discriminator_loss"])
    _, outputs = task.loss("generator", task.networks, part, 3)
    figures = values(task.metrics("generator", part, outputs))
    assert figures == pytest.approx({"generator_loss": -fake.mean().item()})


@pytest.mark.parametrize("objective", ["bce", "hinge", "relativistic"])
@pytest.mark.parametrize("penalties", [(), PENALISED], ids=["plain", "penalised"])
def test_losses_and_penalties_are_float32_in_mixed_precision(objective: str, penalties: tuple[str, ...]) -> None:
    task = build_task(*AUGMENTED, *penalties, f"objective.name={objective}")
    part = prepared(task)
    exact = {}
    for update in task.optimized_networks:
        exact |= values(task.metrics(update, part, task.loss(update, task.networks, part, 3)[1]))
    for update in task.optimized_networks:
        with torch.autocast("cpu", torch.bfloat16):
            loss, outputs = task.loss(update, task.networks, part, 3)
        assert loss.dtype == torch.float32
        figures = task.metrics(update, part, outputs)
        assert {figure.dtype for figure in figures.values()} == {torch.float32}
        for name, value in values(figures).items():
            assert value == pytest.approx(exact[name], rel=0.1, abs=0.02), name


# Whole jobs

JOB = (
    *SMALL,
    "training.max_steps=12",
    "training.log_every=1",
    "training.checkpoint_every=4",
    "evaluation.every=6",
    "augmentation.flip=true",
    "optimizer.betas=[0.0, 0.9]",
)
VARIANTS: dict[str, tuple[str, ...]] = {
    "by class": (
        *JOB,
        *AUGMENTED,
        *PENALISED,
        *CONDITIONAL,
        "objective.name=relativistic",
        "model.spectral=true",
        "model.minibatch=discrimination",
        "model.upsampling=residual",
        "model.downsampling=residual",
    ),
    "in half precision": (
        *JOB,
        "objective.name=hinge",
        "model.minibatch=stddev",
        "model.generator_normalisation=group",
        "model.discriminator_normalisation=group",
        "training.precision=bf16",
        "training.ema_decay=0.9",
    ),
    "in several updates": (
        *JOB,
        *SEVERAL,
        "objective.name=hinge",
        "objective.r1=0.5",
        "objective.penalty_every=3",
        "model.discriminator_normalisation=none",
        "model.spectral=true",
        "later=[{step=5, set={training.ema_decay=0.9, training.ema_statistics=2, "
        "discriminator_optimizer.weight_decay=0.1}}]",
    ),
}


def train_here(variant: str, shards: Path, folder: Path) -> None:
    """Trains, or goes on, by one rank in this process."""
    run_recipe(resolve(load_training_recipe("dcgan", VARIANTS[variant]), shards), folder, RunOptions(shards, "cpu"))


def command(variant: str, shards: Path, folder: Path, nproc: int) -> list[str | Path]:
    settings = [argument for override in VARIANTS[variant] for argument in ("--set", override)]
    where = ["--data", shards, "--run-dir", folder, "--nproc", str(nproc), "--device", "cpu"]
    return ["train", "dcgan", *where, *settings]


@pytest.fixture(scope="module")
def trained(shards: Path, opened: Function, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Each variant's complete run; not to be changed."""
    root = tmp_path_factory.mktemp("trained")
    for variant in VARIANTS:
        train_here(variant, shards, root / variant)
    return {variant: opened(root / variant) for variant in VARIANTS}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_bit_is_the_same_on_1_and_2_ranks(
    variant: str, trained: dict[str, Any], cifarscale: Function, opened: Function, shards: Path, tmp_path: Path
) -> None:
    done = cifarscale(*command(variant, shards, tmp_path / "run", 2))
    assert done.returncode == 0, done.stderr
    assert opened(tmp_path / "run").result()["world_size"] == 2
    opened(tmp_path / "run").assert_same_as(trained[variant])


@pytest.mark.parametrize("variant", VARIANTS)
def test_killed_and_resumed_ends_as_if_it_had_not_been(
    variant: str, trained: dict[str, Any], start: Function, opened: Function, shards: Path, tmp_path: Path
) -> None:
    run = opened(tmp_path / "run")
    started = start(*command(variant, shards, run.path, 1))
    run.wait_for_step(5, started.end)
    started.kill()
    train_here(variant, shards, run.path)
    run.assert_same_as(trained[variant])


def test_the_log_has_the_penalties_and_the_samples_are_saved(trained: dict[str, Any]) -> None:
    for variant, penalties in (
        ("by class", {"r1", "r2"}),
        ("in half precision", set()),
        ("in several updates", {"r1"}),
    ):
        lines = [line for line in trained[variant].metrics() if "loss" in line]
        assert [line["step"] for line in lines] == list(range(1, 13))
        every = 3 if variant == "in several updates" else 1
        for line in lines:
            assert line.keys() & {"r1", "r2"} == (penalties if (line["step"] - 1) % every == 0 else set())
        assert list(trained[variant].samples()) == ["step-00000006.png", "step-00000012.png"]


def test_variants_do_train(trained: dict[str, Any], shards: Path) -> None:
    """Or else the tests above would compare initial weights with themselves."""
    for variant, run in trained.items():
        recipe = load_training_recipe("dcgan", VARIANTS[variant])
        assert isinstance(recipe, GanRecipe)
        initial = build_networks(recipe, Manifest.load(shards), CPU)
        for network, name in zip(initial, ("generator", "discriminator"), strict=True):
            after = run.state()["networks"][name]
            assert not any(torch.equal(after[key], parameter) for key, parameter in network.named_parameters())


# Several updates, each with an optimizer of its own


def test_each_update_of_the_discriminator_has_samples_of_its_own_whichever_ranks_share_the_batch() -> None:
    task = build_task(*AUGMENTED, "training.global_batch_size=8", "discriminator_updates=2")
    updates = task.updates(prepared(task))
    assert [name for name, _ in updates] == ["discriminator", "discriminator", "generator"]
    (_, first), (_, second), (_, last) = updates
    assert len(first.images) == len(second.images) == 8
    assert torch.equal(torch.cat([first.images, second.images]), prepared(task).images)
    assert len({tuple(row.tolist()) for row in torch.cat([first.latents, second.latents])}) == 16
    assert torch.equal(last.latents, second.latents)
    for world_size in (2, 4):
        for rank in range(world_size):
            share = task.updates(task.prepare(batch(range(rank, 16, world_size)), 3))
            for (_, mine), (_, whole) in zip(share, updates, strict=True):
                for field in ("images", "latents", "labels", "draws"):
                    assert torch.equal(getattr(mine, field), getattr(whole.part(rank, world_size), field)), field


def test_a_rare_penalty_weighs_as_much_more_and_is_logged_only_where_it_is_taken() -> None:
    every = steep(*PENALISED)
    rare = steep(*PENALISED, "objective.penalty_every=3")
    part = prepared(every)
    for step in (3, 4, 5, 6):
        plain, outputs = every.loss("discriminator", every.networks, part, step)
        loss, others = rare.loss("discriminator", rare.networks, part, step)
        penalties = plain - outputs[0]
        assert penalties > 0.01
        expected = outputs[0] + (3 * penalties if step % 3 == 0 else 0)
        torch.testing.assert_close(loss, expected)
        logged = values(rare.metrics("discriminator", part, others))
        assert {math.isnan(logged[name]) for name in ("r1", "r2")} == {step % 3 != 0}


def test_a_step_is_that_of_a_plain_loop(shards: Path, opened: Function, tmp_path: Path) -> None:
    """Two updates of the discriminator, then the generator's, by two optimizers of torch's."""
    settings = (*SMALL, *SEVERAL, "training.microbatches=1", "training.max_steps=3", "evaluation.every=0")
    recipe = resolve(load_training_recipe("dcgan", settings), shards)
    assert isinstance(recipe, GanRecipe)
    run_recipe(recipe, tmp_path / "run", RunOptions(shards, "cpu"))
    data = Dataset(shards, recipe.data, CPU)
    context = dataclasses.replace(learner_context(data.manifest, tmp_path), data=data)
    learner = GanLearner(recipe, context)
    generator, discriminator = (learner.networks[name] for name in ("generator", "discriminator"))
    optimizers = {
        "discriminator": torch.optim.AdamW(discriminator.parameters(), 1e-3, (0.0, 0.9), weight_decay=0.0),
        "generator": torch.optim.AdamW(generator.parameters(), 2e-4, (0.0, 0.9), weight_decay=0.0),
    }
    for step, read in zip(range(3), data.reader(recipe, context.group).batches(0), strict=False):
        real = (read.images.float() - 127.5) / 127.5
        assert len(real) == 32
        latents = normals(recipe.seed, "latent", step, range(32), 100)
        for rows in (slice(0, 16), slice(16, 32)):
            with torch.no_grad():
                fake = generator(latents[rows])
            loss = F.softplus(-discriminator(real[rows])).mean() + F.softplus(discriminator(fake)).mean()
            descend(optimizers["discriminator"], loss)
        descend(optimizers["generator"], F.softplus(-discriminator(generator(latents[16:]))).mean())
    state = opened(tmp_path / "run").state()["networks"]
    for name, network in (("generator", generator), ("discriminator", discriminator)):
        for key, parameter in network.named_parameters():
            torch.testing.assert_close(state[name][key], parameter.detach(), rtol=1e-3, atol=1e-5)
    result = opened(tmp_path / "run").result()
    assert (result["steps"], result["images"], result["discriminator_updates"]) == (3, 96, 6)


def descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def test_learning_rates_are_logged_and_moments_kept_of_each_network(trained: dict[str, Any]) -> None:
    run = trained["in several updates"]
    line = next(line for line in run.metrics() if "loss" in line)
    assert (line["discriminator_learning_rate"], line["generator_learning_rate"]) == (1e-3, 2e-4)
    assert "learning_rate" not in line
    assert line["images"] == 32
    assert "learning_rate" in next(line for line in trained["by class"].metrics() if "loss" in line)
    groups = {name: state["param_groups"] for name, state in run.state()["optimizers"].items()}
    assert {name: each[0]["weight_decay"] for name, each in groups.items()} == {"discriminator": 0.1, "generator": 0}


def test_the_averaged_generator_has_the_statistics_of_the_next_batches(
    trained: dict[str, Any], shards: Path, tmp_path: Path
) -> None:
    """Means over what the updates of two steps beyond the last one make of it, each in four microbatches."""
    run = trained["in several updates"]
    recipe = RunFolder(run.path).load_recipe()
    assert isinstance(recipe, GanRecipe)
    average, weights = run.state()["averages"]["generator"], run.state()["networks"]["generator"]
    data = Dataset(shards, recipe.data, CPU)
    learner = GanLearner(recipe, dataclasses.replace(learner_context(data.manifest, tmp_path), data=data))
    means = []
    for step, read in zip(range(12, 14), data.reader(recipe, Group(Ranks())).batches(12), strict=False):
        for _, samples in learner.updates(learner.prepare(read, step)):
            for i in range(4):
                latents = samples.part(i, 4).latents[:, :, None, None]
                means.append(F.conv_transpose2d(latents, average["layers.0.weight"]).mean((0, 2, 3)))
    torch.testing.assert_close(average["layers.1.running_mean"], torch.stack(means).mean(0), rtol=1e-4, atol=1e-5)
    assert not torch.equal(average["layers.1.running_mean"], weights["layers.1.running_mean"])
    loaded = load_generator(run.path, CPU).network.state_dict()
    assert all(torch.equal(value, average[key]) for key, value in loaded.items())


# Images by class


def drawn(run: Any, count: int, seed: int = 1, class_name: str | None = None) -> NDArray[np.uint8]:
    return generate(run.path, count, seed, CPU, class_name)


def called(*arguments: str | Path) -> Result:
    return CliRunner(env={"COLUMNS": "250"}).invoke(main, ["generate", *map(str, arguments)])


def refused(*arguments: str | Path) -> str:
    """The one line of error."""
    result = called(*arguments)
    assert result.exit_code == 1, result.output
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


def test_an_image_of_a_class_depends_on_the_seed_its_number_and_the_class_alone(
    trained: dict[str, Any], source: Source, tmp_path: Path
) -> None:
    run, (one, other) = trained["by class"], (source.fine_names[3], source.fine_names[42])
    many = drawn(run, 70, class_name=one)
    for count in (1, 5, 64):
        assert np.array_equal(drawn(run, count, class_name=one), many[:count])
    for different in (drawn(run, 5, class_name=other), drawn(run, 5, seed=2, class_name=one)):
        assert not any(np.array_equal(image, same) for image, same in zip(different, many[:5], strict=True))

    result = called(run.path, "--class", one, "--num", "5", "--seed", "1", "--out", tmp_path / "images")
    assert result.exit_code == 0, result.output
    assert f"5 images of {run.path.name}, class {one}, seed 1" in result.stdout
    saved = [np.asarray(Image.open(path)) for path in sorted((tmp_path / "images").iterdir())]
    assert np.array_equal(np.stack(saved), many[:5])


def test_without_a_class_image_i_is_of_class_i_and_so_on_round(trained: dict[str, Any], source: Source) -> None:
    run, names = trained["by class"], source.fine_names
    mixed = drawn(run, 107)
    for i in (0, 1, 63, 64, 99, 100, 106):
        assert np.array_equal(drawn(run, i + 1, class_name=names[i % len(names)])[i], mixed[i])
        assert not np.array_equal(drawn(run, i + 1, class_name=names[(i + 1) % len(names)])[i], mixed[i])


def test_an_unknown_class_is_answered_in_one_line_with_the_nearest(
    trained: dict[str, Any], source: Source, tmp_path: Path
) -> None:
    name = source.fine_names[0]
    out = tmp_path / "none.png"
    error = refused(trained["by class"].path, "--class", name[:-1], "--out", out)
    assert f"unknown class {name[:-1]!r}, did you mean {name!r}?" in error
    error = refused(trained["by class"].path, "--class", "zzz", "--out", out)
    assert "did you mean" not in error
    assert all(each in error for each in source.fine_names)
    assert not out.exists()


def test_a_class_asked_of_a_generator_without_classes_is_refused_in_one_line(
    trained: dict[str, Any], source: Source, tmp_path: Path
) -> None:
    for name in (source.fine_names[0], "zzz"):
        error = refused(trained["in half precision"].path, "--class", name, "--out", tmp_path / "none.png")
        assert f"class {name!r}" in error
        assert "model.conditional=true" in error
    assert not (tmp_path / "none.png").exists()
