"""The DCGAN's recipe: what each key takes, which of them go together, and what the bundled two cost."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import BaseModel
from runs import learner_context
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from cifarscale.config.load import (
    find_recipe,
    load_training_recipe,
    parse_recipe,
    recipe_hash,
    recipe_toml,
    with_values,
)
from cifarscale.config.recipe import AdamWConfig, TrainingRecipe, resolved
from cifarscale.data.batches import Batch
from cifarscale.data.manifest import published_manifest
from cifarscale.errors import ConfigError
from cifarscale.tasks.gan.learner import GanLearner, build_networks, cost_of
from cifarscale.tasks.gan.networks.dcgan import Generator
from cifarscale.tasks.gan.recipe import GanRecipe
from cifarscale.training.cost import count_macs, count_parameters

SEED_PARAMETERS = (370_624, 167_808)

COUNT = (["1", "50"], ["0", "-1", "2.5", "many", "true"])
WIDTH = (["2", "64"], ["0", "-1", "2.5", "wide", "true"])
SWITCH = (["true", "false"], ["1", "yes", '"true"'])
FRACTION = (["0", "0.125", "1", "1.0"], ["-0.1", "1.1", "nan", '"0.5"', "true"])
WEIGHT = (["0", "0.5", "1e3"], ["-1", "inf", "nan", '"1"', "true"])
RATE = (["2e-4", "1"], ["0", "-1", "nan", '"1"', "true"])
NETWORKS = ("generator", "discriminator")
NORMALISATION = (["none", "batch", "group"], ["layer", "", "1"])

VALUES: dict[str, tuple[list[str], list[str]]] = {
    "task": (["gan"], ["dcgan"]),
    "model.latent_size": COUNT,
    "model.generator_width": WIDTH,
    "model.discriminator_width": WIDTH,
    "model.generator_normalisation": NORMALISATION,
    "model.discriminator_normalisation": NORMALISATION,
    "model.upsampling": (["transposed", "residual"], ["nearest", "strided"]),
    "model.downsampling": (["strided", "residual"], ["pooling", "transposed"]),
    "model.spectral": SWITCH,
    "model.minibatch": (["none", "discrimination", "stddev"], ["std", "true"]),
    "model.conditional": SWITCH,
    "model.class_embedding": COUNT,
    "augmentation.flip": SWITCH,
    "augmentation.colour": SWITCH,
    "augmentation.translation": FRACTION,
    "augmentation.cutout": FRACTION,
    "objective.name": (["bce", "hinge", "relativistic"], ["wgan", "1"]),
    "objective.r1": WEIGHT,
    "objective.r2": WEIGHT,
    "objective.penalty_every": COUNT,
    "discriminator_updates": COUNT,
    **{f"{network}_optimizer.learning_rate": RATE for network in NETWORKS},
    **{f"{network}_optimizer.weight_decay": WEIGHT for network in NETWORKS},
    "distance.features": (["none", "cnn:runs/a", "inception"], ["resnet", "cnn:", '""']),
    "distance.weights": (["", "file.pth"], ["1"]),
    "distance.against": (["train", "statistics.npz"], ["1"]),
    "distance.num_samples": COUNT,
    "distance.batch_size": COUNT,
    "distance.precision": (["exact", "fast"], ["bf16", "true"]),
    "distance.kernel": SWITCH,
    "distance.neighbours": (["0", "5"], ["-1", "2.5", "true"]),
    "distance.classes": SWITCH,
    "distance.num_kept": COUNT,
    "distance.allow_few_samples": SWITCH,
    "distance.every": (["0", "2000"], ["-1", "2.5", "1500"]),
}
"""For each key what it takes, and what it does not."""

NEEDED = {
    "objective.r1": ("model.discriminator_normalisation=none",),
    "objective.penalty_every": ("objective.r1=1", "model.discriminator_normalisation=none"),
    "model.class_embedding": ("model.conditional=true",),
    "distance.every": ("distance.features=inception",),
}
NEEDED["objective.r2"] = NEEDED["objective.r1"]
"""What else a key wants set."""


def load(*overrides: str) -> GanRecipe:
    recipe = load_training_recipe("dcgan", overrides)
    assert isinstance(recipe, GanRecipe)
    return recipe


def refusal(*overrides: str) -> str:
    """The one line of error."""
    with pytest.raises(ConfigError) as caught:
        load(*overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def value_at(recipe: BaseModel, key: str) -> Any:
    value: Any = recipe
    for part in key.split("."):
        value = getattr(value, part)
    return value


def settings(index: int) -> list[tuple[str, str]]:
    return [(key, value) for key, values in VALUES.items() for value in values[index]]


# Keys and values


def test_the_table_has_every_key_that_only_a_dcgan_has() -> None:
    recipe = load()
    fields = {name: value_at(recipe, name) for name in GanRecipe.model_fields}
    own = {key: value for key, value in fields.items() if key not in TrainingRecipe.model_fields}
    sections = {key: type(value).model_fields for key, value in own.items() if isinstance(value, BaseModel)}
    keys = {f"{section}.{key}" for section, names in sections.items() for key in names} | own.keys() - sections.keys()
    of_optimizers = {f"{network}_optimizer.{key}" for network in NETWORKS for key in ("betas", "momentum")}
    assert set(VALUES) == (keys - of_optimizers) | {"task"}


@pytest.mark.parametrize(("key", "value"), settings(0))
def test_a_key_takes_what_is_valid(key: str, value: str) -> None:
    loaded = value_at(load(f"{key}={value}", *NEEDED.get(key, ())), key)
    assert str(loaded).lower() == value or float(loaded) == float(value)


@pytest.mark.parametrize(("key", "value"), settings(1))
def test_a_key_refuses_the_rest_and_names_itself_and_the_value(key: str, value: str) -> None:
    message = refusal(f"{key}={value}", *NEEDED.get(key, ()))
    assert f"{key} = " in message
    assert value.strip('"').lower() in message.split(" = ", 1)[1].lower()


@pytest.mark.parametrize("key", [key for key, (_, invalid) in VALUES.items() if invalid is NORMALISATION[1]])
def test_a_name_that_is_not_offered_is_answered_with_those_that_are(key: str) -> None:
    message = refusal(f"{key}=layer")
    for name in ("none", "batch", "sync_batch", "group"):
        assert f"'{name}'" in message


def test_the_hash_and_the_resolved_file_change_with_every_key(tmp_path: Path) -> None:
    others = {
        "model.generator_normalisation": "group",
        "model.discriminator_normalisation": "group",
        "model.upsampling": "residual",
        "model.downsampling": "residual",
        "model.minibatch": "stddev",
        "objective.name": "hinge",
        "objective.penalty_every": "50",
        "discriminator_updates": "50",
        "distance.kernel": "false",
        "distance.classes": "false",
    }
    hashes = {recipe_hash(load())}
    keys = [key for key in VALUES if key != "task"]
    for key in keys:
        value = others.get(key, VALUES[key][0][0] if VALUES[key] in (COUNT, WIDTH, SWITCH) else VALUES[key][0][1])
        recipe = load(f"{key}={value}", *NEEDED.get(key, ()))
        hashes.add(recipe_hash(recipe))
        path = tmp_path / "resolved.toml"
        path.write_text(recipe_toml(recipe), encoding="utf-8")
        assert load_training_recipe(str(path)) == recipe
    assert len(hashes) == 1 + len(keys)


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("model.spectrale=true", "did you mean 'model.spectral'"),
        ("augmentation.cutouts=0.5", "did you mean 'augmentation.cutout'"),
        ("objective.r3=1", "valid here: name, penalty_every, r1, r2"),
        ("objectives.r1=1", "did you mean 'objective'"),
        ("model.width=4", "generator_width"),
        ("training.betas=[0, 1]", "did you mean 'discriminator_optimizer.betas' or 'generator_optimizer.betas' or"),
        ("label_smoothing=0.1", "unknown key 'label_smoothing'"),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest_or_all(override: str, meant: str) -> None:
    assert meant in refusal(override)


# What goes together


@pytest.mark.parametrize("network", ["generator", "discriminator"])
def test_sync_batch_needs_microbatches_0(network: str) -> None:
    override = f"model.{network}_normalisation=sync_batch"
    message = refusal(override)
    assert f"model.{network}_normalisation = 'sync_batch'" in message
    assert "training.microbatches = 0" in message
    assert value_at(load(override, "training.microbatches=0"), f"model.{network}_normalisation") == "sync_batch"


RESIDUAL = "model.upsampling=residual", "model.downsampling=residual"
GROUP = "model.generator_normalisation=group", "model.discriminator_normalisation=group"


@pytest.mark.parametrize(
    ("network", "layers", "multiple"),
    [
        ("generator", (), 1),
        ("generator", RESIDUAL, 2),
        ("generator", GROUP, 4),
        ("generator", RESIDUAL + GROUP, 8),
        ("discriminator", (), 1),
        ("discriminator", RESIDUAL, 1),
        ("discriminator", GROUP, 4),
        ("discriminator", RESIDUAL + GROUP, 4),
    ],
)
def test_a_width_that_the_layers_cannot_have_is_refused_and_any_other_can_be_built(
    network: str, layers: tuple[str, ...], multiple: int
) -> None:
    manifest = published_manifest("cifar100")
    assert manifest is not None
    for width in (1, 2, 3, 4, 6, 8, 12):
        override = f"model.{network}_width={width}"
        if width % multiple:
            message = refusal(override, *layers)
            assert f"model.{network}_width = {width} must be a multiple of {multiple}" in message
        else:
            build_networks(load(override, *layers), manifest, torch.device("cpu"))


@pytest.mark.parametrize("penalty", ["r1", "r2"])
def test_penalties_are_refused_where_networks_are_compiled(penalty: str) -> None:
    compiled = ("training.compile=true", "training.microbatches=0")
    message = refusal(f"objective.{penalty}=1", "model.discriminator_normalisation=none", *compiled)
    assert "objective.r1 and r2 are differentiated twice, which torch.compile cannot do" in message
    assert load(*compiled).training.compile


@pytest.mark.parametrize("penalty", ["r1", "r2"])
@pytest.mark.parametrize("kind", ["batch", "sync_batch"])
def test_a_penalty_refuses_a_discriminator_that_mixes_its_samples(penalty: str, kind: str) -> None:
    overrides = (f"objective.{penalty}=0.1", f"model.discriminator_normalisation={kind}", "training.microbatches=0")
    message = refusal(*overrides)
    for part in ("objective.r1 and r2", f"model.discriminator_normalisation = '{kind}'", "'none' or 'group'"):
        assert part in message
    load(f"objective.{penalty}=0", *overrides[1:])
    for fine in ("none", "group"):
        load(overrides[0], f"model.discriminator_normalisation={fine}", "model.generator_normalisation=batch")


# Optimizers of their own


def test_a_network_has_what_is_set_for_it_and_the_rest_as_both_have_it() -> None:
    recipe = load("discriminator_optimizer.learning_rate=4e-4", "discriminator_optimizer.betas=[0.0, 0.9]")
    recipe = with_values(recipe, generator_optimizer__weight_decay=0.1, optimizer__epsilon=1e-6)
    (generator, slow), (discriminator, fast) = map(recipe.optimizer_of, NETWORKS)
    assert isinstance(generator, AdamWConfig)
    assert isinstance(discriminator, AdamWConfig)
    assert (slow, fast) == (recipe.training.learning_rate, 4e-4)
    assert (generator.betas, discriminator.betas) == ((0.5, 0.999), (0.0, 0.9))
    assert (generator.weight_decay, discriminator.weight_decay) == (0.1, 0)
    assert generator.epsilon == discriminator.epsilon == 1e-6


def test_optimizers_that_do_nothing_otherwise_are_those_of_before() -> None:
    """Recipes that were written before there were such tables are the same runs."""
    assert resolved(load())["generator_optimizer"] == {}
    plain = {key: value for key, value in resolved(load()).items() if not key.endswith("_optimizer")}
    assert recipe_hash(parse_recipe(plain, "plain")) == recipe_hash(load())


def test_a_network_takes_no_key_that_its_optimizer_has_not() -> None:
    message = refusal("discriminator_optimizer.momentum=0.5")
    assert "discriminator_optimizer.momentum has no effect with optimizer.name = 'adamw'" in message
    assert "valid are learning_rate, weight_decay, betas" in message
    assert "did you mean 'generator_optimizer.betas'" in refusal("generator_optimizer.beta=[0.0, 0.9]")
    for betas in ("[0.0]", "[0.0, 1.0]", "0.9"):
        assert "generator_optimizer.betas" in refusal(f"generator_optimizer.betas={betas}")


def test_a_rare_penalty_needs_one() -> None:
    assert "objective.penalty_every = 16 has no effect" in refusal("objective.penalty_every=16")


def test_statistics_are_estimated_for_the_generator_alone() -> None:
    """What is not evaluated needs none."""
    averaged = ("training.ema_decay=0.9", "training.ema_statistics=5")
    assert load(*averaged, "model.discriminator_normalisation=none").training.ema_statistics == 5
    message = refusal(*averaged, "model.generator_normalisation=group")
    assert "training.ema_statistics = 5 is for batch normalisation, and the network has none" in message


# What a training costs


class MacsCounter(TorchDispatchMode):
    """Counts as torch's FlopCounterMode, whose hooks on modules no gradient of a gradient passes."""

    macs = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func.overloadpacket in flop_registry:
            self.macs += flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=output) / 2
        return output


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("objective.name=relativistic", "model.conditional=true"),
        ("objective.r1=1", "model.discriminator_normalisation=none", "discriminator_updates=3"),
        ("objective.r1=1", "objective.r2=1", "objective.penalty_every=4", "model.discriminator_normalisation=none"),
    ],
)
def test_the_cost_is_that_of_the_losses_and_gradients_but_for_edges(settings: tuple[str, ...], tmp_path: Path) -> None:
    """Counted by torch in a step with penalties and one without, on a batch of 4 images; the gradients of images and of
    noise, which nothing needs, are what it has less."""
    recipe, manifest = (
        load(*settings, "model.generator_width=8", "model.discriminator_width=8"),
        published_manifest("cifar100"),
    )
    assert manifest is not None
    learner = GanLearner(recipe, learner_context(manifest, tmp_path))
    count = 4 * recipe.discriminator_updates
    images, rows = torch.zeros(count, 3, 32, 32, dtype=torch.uint8), torch.arange(count)
    prepared = learner.prepare(Batch(images, rows, rows, range(count)), 0)
    macs = []
    for step in (0, 1):
        with MacsCounter() as counter:
            for name, samples in learner.updates(prepared):
                loss, _ = learner.loss(name, learner.networks, samples, step)
                torch.autograd.grad(loss, list(learner.networks[name].parameters()))
        macs.append(counter.macs / 4)
    every = recipe.objective.penalty_every
    mean = macs[0] / every + macs[1] * (1 - 1 / every)
    cost = cost_of(recipe, manifest)
    assert cost.macs == count_macs(
        Generator(100, 8, num_classes=100 if recipe.model.conditional else 0),
        (100,),
        with_labels=recipe.model.conditional,
    )
    assert cost.training_macs == pytest.approx(mean, rel=0.1)


# The bundled recipes


def parameters(name: str) -> tuple[int, int]:
    recipe, manifest = load_training_recipe(name), published_manifest("cifar100")
    assert isinstance(recipe, GanRecipe)
    assert manifest is not None
    generator, discriminator = build_networks(recipe, manifest, torch.device("cpu"))
    return count_parameters(generator), count_parameters(discriminator)


def test_the_baselines_recipe_has_the_baselines_networks() -> None:
    assert parameters("dcgan") == SEED_PARAMETERS


def test_the_better_recipe_costs_no_more_than_the_seeds() -> None:
    assert sum(parameters("dcgan-plus")) <= sum(SEED_PARAMETERS) == 538_432
    plus, seed = load_training_recipe("dcgan-plus").training, load_training_recipe("dcgan").training
    assert (plus.max_steps, plus.global_batch_size) == (seed.max_steps, seed.global_batch_size) == (50_000, 64)


def test_the_best_recipe_keeps_the_seeds_budget() -> None:
    assert sum(parameters("gan-best")) == 520_959
    recipe = load_training_recipe("gan-best")
    assert (recipe.budget.max_parameters, recipe.budget.max_steps) == (sum(SEED_PARAMETERS), 50_000)
    assert recipe.training.max_steps == 50_000


@pytest.mark.parametrize("name", ["dcgan", "dcgan-plus", "gan-best"])
def test_a_recipes_comments_have_its_numbers_of_parameters(name: str) -> None:
    text = find_recipe(name).read_text(encoding="utf-8")
    assert all(f"{number:,}" in text for number in parameters(name))
