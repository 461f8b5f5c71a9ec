"""Numbers of microbatches that are chosen, and recipes for larger batches."""

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

import cifarscale as cs
from cifarscale.api.recipes import recipe_of
from cifarscale.cli.main import main
from cifarscale.config.load import load_recipe, load_training_recipe, recipe_hash, recipe_toml
from cifarscale.config.ranks import numbers_of_ranks, why_auto
from cifarscale.config.recipe import TrainingRecipe
from cifarscale.config.scale import differences, factor_for, scaled
from cifarscale.errors import ConfigError
from cifarscale.training.optimisation import learning_rate_factor

AUTO = "training.microbatches=auto"


def recipe(name: str, *overrides: str) -> TrainingRecipe:
    return load_training_recipe(name, overrides)


@pytest.mark.parametrize("batch", [1, 16, 31, 32, 64, 96, 100, 128, 1000, 1024, 4096, 6000])
@pytest.mark.parametrize(
    ("name", "overrides", "least", "together"),
    [
        ("cnn", (), 16, 1),
        ("cnn", ("model.normalisation=group",), 16, 1),
        ("cnn", ("model.normalisation=batch",), 32, 1),
        ("resnet", (), 32, 1),
        ("dcgan", (), 32, 1),
        ("dcgan", ("model.generator_normalisation=none", "model.discriminator_normalisation=none"), 16, 1),
        ("cnn", ("augmentation.mixup=0.2",), 16, 2),
    ],
)
def test_auto_is_the_largest_number_that_leaves_each_enough(
    name: str, overrides: tuple[str, ...], least: int, together: int, batch: int
) -> None:
    batch *= together
    chosen = recipe(name, f"training.global_batch_size={batch}", AUTO, *overrides)
    found = chosen.training.microbatches
    fit = [n for n in (1, 2, 4, 8, 16, 32, 64) if batch % (n * together) == 0 and batch // n >= least]
    assert found == max(fit, default=1)
    assert why_auto(chosen).startswith(f"{found}: ")
    assert found in numbers_of_ranks(chosen)


def test_auto_is_the_recipe_with_that_number() -> None:
    assert recipe("cnn", AUTO) == recipe("cnn", "training.microbatches=4")
    assert recipe_hash(recipe("cnn", AUTO)) == recipe_hash(recipe("cnn"))
    sweep = load_recipe("sweep-cnn", ["set.training.microbatches=auto"])
    assert "auto" in recipe_toml(sweep)  # it is chosen for each base


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("training.microbatches=automatic",), "training.microbatches = 'automatic'"),
        ((AUTO, "training.global_batch_size=0"), "training.global_batch_size = 0"),
        ((AUTO, "training.compile=true"), "training.microbatches = 4 promises"),
        ((AUTO, "model.normalisation=sync_batch"), "needs training.microbatches = 0"),
    ],
)
def test_what_auto_cannot_be_is_refused(overrides: tuple[str, ...], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        recipe("cnn", *overrides)


@pytest.mark.parametrize(("layer", "expected"), [("nn.BatchNorm2d(3)", 2), ("nn.Identity()", 4)])
def test_of_a_network_of_ones_own_it_is_seen_what_it_normalises(layer: str, expected: int, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "import cifarscale as cs\nfrom torch import nn\n\n\n"
        f'@cs.register_network("own")\ndef own(num_classes: int):\n'
        f"    return nn.Sequential({layer}, nn.Flatten(), nn.LazyLinear(num_classes))\n"
    )
    path = tmp_path / "own.toml"
    path.write_text(
        'task = "classifier"\nmodules = ["own.py"]\n[model]\nname = "own"\n[training]\nmicrobatches = "auto"\n'
    )
    assert recipe(str(path)).training.microbatches == expected


def test_jobs_show_says_what_auto_is_and_why() -> None:
    shown = CliRunner().invoke(main, ["jobs", "show", "resnet", "--set", AUTO]).stdout
    assert '# training.microbatches = "auto" is 4: the largest power of two up to 64 that divides 128 images' in shown
    assert "32 of them or more, for its batch normalisation" in shown
    assert "\nmicrobatches = 4\n" in shown
    assert "auto" not in CliRunner().invoke(main, ["jobs", "show", "resnet"]).stdout


@pytest.mark.parametrize("name", ["cnn", "resnet", "dcgan", "dcgan-plus", "cnn-best", "demo", "gan-demo"])
@pytest.mark.parametrize("factor", [2, 3, 16])
def test_a_larger_batch_sees_as_many_images_and_feeds_as_many_more_ranks(name: str, factor: int) -> None:
    small = recipe(name)
    large = scaled(small, factor)
    assert recipe_hash(large) != recipe_hash(small)
    assert load_recipe_of(recipe_toml(large), large)
    before, after = small.training, large.training
    assert after.global_batch_size == factor * before.global_batch_size
    images = before.max_steps * before.global_batch_size
    assert 0 <= after.max_steps * after.global_batch_size - images < after.global_batch_size
    for key in ("log_every", "checkpoint_every"):
        assert abs(getattr(after, key) * factor - getattr(before, key)) <= factor / 2 + factor % 2
    assert numbers_of_ranks(large)[-1] >= min(64, factor * numbers_of_ranks(small)[-1]) / (1 + factor % 2)
    assert scaled(small, 1) is small


def load_recipe_of(text: str, expected: TrainingRecipe) -> bool:
    """Whether the text of a recipe is read as this one."""
    import tomllib

    return type(expected).model_validate(tomllib.loads(text)) == expected


@pytest.mark.parametrize(
    ("overrides", "factor", "rate"),
    [
        (("optimizer.name=sgd",), 16, 1.6),
        (("optimizer.name=adamw",), 16, 0.4),
        (("optimizer.name=muon",), 16, 0.4),
        (("optimizer.name=sgd",), 3, 0.3),
    ],
)
def test_the_learning_rate_follows_the_optimizers_rule(overrides: tuple[str, ...], factor: int, rate: float) -> None:
    large = scaled(recipe("cnn", "training.learning_rate=0.1", *overrides), factor)
    assert large.training.learning_rate == pytest.approx(rate)


def test_a_rate_that_would_start_at_its_peak_gets_a_warmup_and_others_keep_theirs() -> None:
    assert scaled(recipe("cnn"), 10).schedule.warmup_steps == 56  # an eighteenth of 1,000 steps
    assert scaled(recipe("resnet"), 10).schedule.warmup_steps == 0  # one cycle rises by itself
    cosine = recipe("cnn", "schedule.name=cosine", "schedule.warmup_steps=500")
    large = scaled(cosine, 10)
    assert large.schedule.warmup_steps == 50
    for step in (0, 100, 499, 2000, 9999):
        old = learning_rate_factor(cosine.schedule, step, cosine.training.max_steps)
        new = learning_rate_factor(large.schedule, step // 10, large.training.max_steps)
        assert new == pytest.approx(old, abs=0.02)


def test_averages_and_what_changes_later_stand_at_the_same_images() -> None:
    small = recipe(
        "cnn",
        "model.normalisation=batch",
        "training.ema_decay=0.999",
        "training.ema_statistics=20",
        'later=[{step=4000, set={"training.learning_rate"=1e-4, "optimizer.weight_decay"=0.1}}]',
    )
    large = scaled(small, 16)
    assert large.training.ema_decay == pytest.approx(0.999**16, rel=1e-5)
    assert large.training.ema_statistics == 1
    (change,) = large.later
    assert change.step == 250
    assert change.set == {"training.learning_rate": 4e-4, "optimizer.weight_decay": 0.1}


def test_distances_of_a_gan_stay_multiples_of_its_evaluations() -> None:
    small = recipe("dcgan", "evaluation.every=1000", "distance.every=5000", "distance.features=inception")
    large = scaled(small, 16)
    assert (large.evaluation.every, large.distance.every) == (62, 310)


@pytest.mark.parametrize("ranks", [2, 4, 8, 16, 32, 64])
def test_a_factor_is_found_that_feeds_the_ranks(ranks: int) -> None:
    factor = factor_for(recipe("cnn"), ranks)
    assert factor is not None
    assert ranks in numbers_of_ranks(scaled(recipe("cnn"), factor))


def test_no_factor_feeds_more_ranks_than_there_are_microbatches() -> None:
    assert factor_for(recipe("cnn"), 128) is None
    assert factor_for(recipe("cnn", "training.microbatches=0"), 128) == 2


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: recipe_of("cnn", scale=0), "--scale 0 is not valid"),
        (lambda: recipe_of("sweep-cnn", scale=2), "sweep-cnn is a recipe of task 'sweep', which trains nothing"),
        (
            lambda: recipe_of("cnn", {"later": [{"step": s, "set": {"label_smoothing": 0.1}} for s in (1, 2)]}, 64),
            "--scale 64: .*step = 1 is not before 1",
        ),
    ],
)
def test_a_scale_that_cannot_be_is_refused_in_one_line(call: Callable[[], object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        call()


def test_scripts_and_the_command_line_scale_after_what_is_set(shards: Path, tmp_path: Path) -> None:
    changes = {"training.learning_rate": 0.1, "training.max_steps": 64}
    planned = cs.plan("cnn", set=changes, scale=4, data=shards, profile="local")
    (run,) = planned.runs
    assert isinstance(run.recipe, TrainingRecipe)
    assert run.recipe.training == scaled(recipe("cnn", *(f"{k}={v}" for k, v in changes.items())), 4).training
    shown = CliRunner().invoke(main, ["jobs", "show", "cnn", "--set", "training.learning_rate=0.1", "--scale", "4"])
    assert "# --scale 4: training.learning_rate 0.1 -> 0.2" in shown.stdout.splitlines()
    expected = [
        line.removeprefix("# --scale 4: ") for line in shown.stdout.splitlines() if line.startswith("# --scale")
    ]
    before = recipe("cnn", "training.learning_rate=0.1")
    assert expected == differences(before, scaled(before, 4))
