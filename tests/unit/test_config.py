"""Recipes: what loads, what a hash stands for, and how each mistake is answered."""

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cifarscale.config.load import (
    find_recipe,
    load_recipe,
    load_training_recipe,
    parse_recipe,
    recipe_files,
    recipe_hash,
    recipe_toml,
    with_values,
)
from cifarscale.config.lookup import copy_file
from cifarscale.config.recipe import AdamWConfig, SGDConfig
from cifarscale.errors import ConfigError
from cifarscale.tasks.classifier.recipe import ClassifierRecipe

CHECKOUT = Path(__file__).parents[2]

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a recipe file of the given lines below `task = "classifier"`."""

    def write(text: str = "") -> Path:
        path = tmp_path / "mine.toml"
        path.write_text(f'task = "classifier"\n{text}', encoding="utf-8")
        return path

    return write


def recipe_of(**values: Any) -> ClassifierRecipe:
    recipe = parse_recipe({"task": "classifier", "name": "test", **values}, "test")
    assert isinstance(recipe, ClassifierRecipe)
    return recipe


def bundled() -> list[str]:
    return sorted(path.stem for path in (CHECKOUT / "jobs").glob("*.toml"))


def all_values(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Every value of a resolved recipe by its dotted key."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= all_values(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


# What loads


@pytest.mark.parametrize("name", bundled())
def test_every_bundled_recipe_loads_and_has_a_description(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.description


@pytest.mark.parametrize("name", bundled())
def test_resolved_toml_gives_an_equal_recipe_with_an_equal_hash(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    path = tmp_path / "recipe.toml"
    path.write_text(recipe_toml(recipe), encoding="utf-8")
    again = load_recipe(str(path))
    assert again == recipe
    assert recipe_hash(again) == recipe_hash(recipe)


def test_resolved_toml_round_trips_with_every_value_off_its_default(tmp_path: Path) -> None:
    recipe = recipe_of(
        seed=2**63 - 1,
        description='quotes " and ünïcode\nand a second line',
        optimizer={"name": "sgd", "momentum": 0.5},
        model={"name": "resnet", "width": 8},
        augmentation={"mixup": 0.1 + 0.2},
        schedule={"name": "one_cycle", "warmup_steps": 3, "final_fraction": 1e-5},
        label_smoothing=1 / 3,
    )
    path = tmp_path / "recipe.toml"
    path.write_text(recipe_toml(recipe), encoding="utf-8")
    assert load_training_recipe(str(path)) == recipe


def test_resolved_toml_has_every_field_written_out() -> None:
    values = tomllib.loads(recipe_toml(recipe_of()))
    assert set(values) == set(ClassifierRecipe.model_fields)
    assert values["optimizer"] == {"name": "adamw", "betas": [0.9, 0.999], "epsilon": 1e-8, "weight_decay": 0.0}


OTHER_VALUES: dict[str, Any] = {
    "seed": 1,
    "label_smoothing": 0.1,
    "test_time_flip": True,
    "data.dataset": "synthetic",
    "data.fingerprint": "0123",
    "data.reader": "streaming",
    "data.num_validation": 10,
    "data.canonical_partitions": 4,
    "data.shuffle_buffer": 8,
    "optimizer.name": "sgd",
    "optimizer.betas": [0.8, 0.99],
    "optimizer.epsilon": 1e-7,
    "optimizer.weight_decay": 0.1,
    "schedule.name": "cosine",
    "schedule.warmup_steps": 5,
    "schedule.final_fraction": 0.5,
    "training.max_steps": 5,
    "training.global_batch_size": 32,
    "training.microbatches": 2,
    "training.learning_rate": 2e-3,
    "training.rates": [["classifier.*", 2.0]],
    "training.gradient_clip_norm": 1.0,
    "training.ema_decay": 0.9,
    "training.ema_statistics": 5,
    "training.precision": "bf16",
    "training.compile": True,
    "training.log_every": 5,
    "training.checkpoint_every": 5,
    "training.keep_checkpoints": 5,
    "evaluation.every": 5,
    "evaluation.batch_size": 5,
    "model.name": "resnet",
    "model.width": 16,
    "model.activation": "silu",
    "model.normalisation": "batch",
    "model.residual": True,
    "model.attention": "self_attention",
    "augmentation.crop_padding": 4,
    "augmentation.padding": "reflect",
    "augmentation.flip": True,
    "augmentation.alternating_flip": True,
    "augmentation.resolution": 24,
    "distillation.teacher": "runs/other",
    "distillation.weights": "0123",
    "distillation.temperature": 2.0,
    "distillation.weight": 1.0,
    "augmentation.cutout": 8,
    "augmentation.mixup": 0.2,
    "augmentation.cutmix": 1.0,
    "later": [{"step": 5, "set": {"training.learning_rate": 0.1}}],
}

NOT_COMPUTED: dict[str, Any] = {
    "budget.max_parameters": 1_000_000,
    "budget.max_steps": 1_000_000,
    "tracking.wandb": "offline",
    "tracking.project": "other",
    "tracking.group": "other",
    "tracking.tags": ["other"],
    "tracking.artifact": True,
}
"""What a run may cost, and who is told of it, make it no other run."""


def changed(key: str, value: Any) -> ClassifierRecipe:
    if key in ("optimizer.name", "model.name"):  # another variant has other fields
        return recipe_of(**{key.partition(".")[0]: {"name": value}})
    return with_values(base(key), **{key.replace(".", "__"): value})


def base(key: str) -> ClassifierRecipe:
    """A recipe in which the key may have another value."""
    needed = {
        "training.compile": {"training__microbatches": 0},
        "training.ema_statistics": {"training__ema_decay": 0.9, "model__normalisation": "batch"},
        "augmentation.padding": {"augmentation__crop_padding": 4},
    }
    if key in ("distillation.weights", "distillation.temperature", "distillation.weight"):
        needed[key] = {"distillation__teacher": "runs/other"}
    return with_values(recipe_of(), **needed.get(key, {}))


def test_the_list_of_other_values_is_complete() -> None:
    keys = set(all_values(tomllib.loads(recipe_toml(recipe_of())))) - {"task", "name", "description"}
    of_code = {"modules", "code", "augmentation.own", "evaluation.metrics"}  # tested in tests/distributed/test_own_*.py
    assert set(OTHER_VALUES) | set(NOT_COMPUTED) == keys - of_code


@pytest.mark.parametrize("key", OTHER_VALUES)
def test_hash_changes_with_any_value(key: str) -> None:
    assert recipe_hash(changed(key, OTHER_VALUES[key])) != recipe_hash(base(key))


def test_hash_is_the_same_whatever_name_and_description() -> None:
    assert recipe_hash(recipe_of(name="other", description="something")) == recipe_hash(recipe_of())


@pytest.mark.parametrize("key", NOT_COMPUTED)
def test_hash_is_the_same_whatever_is_no_part_of_what_is_computed(key: str) -> None:
    other = changed(key, NOT_COMPUTED[key])
    assert other != recipe_of()
    assert recipe_hash(other) == recipe_hash(recipe_of())


def test_a_teacher_is_known_by_its_weights_wherever_it_lies() -> None:
    def distilled(**values: Any) -> str:
        return recipe_hash(recipe_of(distillation=values))

    assert distilled(teacher="runs/a", weights="01") == distilled(teacher="elsewhere", weights="01")
    assert distilled(teacher="runs/a", weights="01") != distilled(teacher="runs/a", weights="02")


def test_hashes_are_those_that_runs_have_had_since_the_beginning() -> None:
    """Another one would leave every run folder that there is without its run."""
    assert {name: recipe_hash(load_training_recipe(name)) for name in ("cnn", "dcgan", "demo", "resnet")} == {
        "cnn": "5f4dd35e",
        "dcgan": "664d1960",
        "demo": "b7af239d",
        "resnet": "2a9cc9a3",
    }


def test_a_resolved_recipe_from_before_there_was_tracking_is_the_same_run(tmp_path: Path) -> None:
    text = recipe_toml(recipe_of())
    before = tmp_path / "recipe.toml"
    before.write_text(text[: text.index("[tracking]")] + text[text.index("[model]") :], encoding="utf-8")
    assert "tracking" not in before.read_text(encoding="utf-8")
    assert load_training_recipe(str(before)) == recipe_of()
    assert recipe_hash(load_training_recipe(str(before))) == recipe_hash(recipe_of())


def test_hash_is_the_same_for_the_same_number_written_in_another_way(write: Write) -> None:
    one = load_training_recipe(
        str(write("[training]\nlearning_rate = 0.001\nmax_steps = 10_000\n[augmentation]\nmixup = 1"))
    )
    two = load_training_recipe(
        str(write("[augmentation]\nmixup = 1.0\n[training]\nmax_steps = 10000\nlearning_rate = 1e-3"))
    )
    assert recipe_hash(one) == recipe_hash(two)


def test_a_recipe_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        recipe_of().training.max_steps = 3  # type: ignore[misc]


# Where recipes are found


def test_an_explicit_path_is_taken_before_any_name(write: Write) -> None:
    path = write("seed = 7")
    assert load_training_recipe(str(path)).seed == 7
    assert load_training_recipe(str(path)).name == "mine"


def test_jobs_in_the_current_folder_hide_those_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_training_recipe("cnn").seed == 0
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "cnn.toml").write_text('task = "classifier"\nseed = 7\n')
    assert load_training_recipe("cnn").seed == 7
    assert find_recipe("cnn") == Path("jobs/cnn.toml")
    assert recipe_files()["demo"].is_absolute()  # the others are still there


def test_recipes_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert set(bundled()) <= set(recipe_files())
    assert list(recipe_files()) == sorted(recipe_files())


@pytest.mark.parametrize("folder", ["with space", "quo'te\"", "ünïcode", "[brackets]"])
def test_a_recipe_may_lie_in_a_folder_of_any_name(folder: str, tmp_path: Path) -> None:
    path = tmp_path / folder / "mine.toml"
    path.parent.mkdir()
    path.write_text('task = "classifier"')
    assert load_training_recipe(str(path)).name == "mine"


# --set


def test_overrides_are_applied_in_order_and_parsed_as_toml(write: Write) -> None:
    overrides = ["training.max_steps=5", "training.max_steps = 6", "augmentation.flip=true", "label_smoothing=1e-1"]
    recipe = load_training_recipe(str(write()), overrides)
    assert isinstance(recipe, ClassifierRecipe)
    assert (recipe.training.max_steps, recipe.augmentation.flip, recipe.label_smoothing) == (6, True, 0.1)


def test_an_override_needs_no_quotes_around_a_name(write: Write) -> None:
    recipe = load_training_recipe(str(write()), ["data.dataset=synthetic", 'data.reader="streaming"'])
    assert (recipe.data.dataset, recipe.data.reader) == ("synthetic", "streaming")


def test_a_variant_is_the_default_one_where_no_name_is_given(write: Write) -> None:
    recipe = load_training_recipe(str(write()), ["optimizer.betas=[0.8, 0.9]"])
    assert isinstance(recipe.optimizer, AdamWConfig)
    assert recipe.optimizer.betas == (0.8, 0.9)
    assert load_training_recipe(str(write("[model]\nwidth = 16"))).model.name == "small_filters_cnn"


def test_a_key_of_another_variant_is_an_error_without_its_name(write: Write) -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'optimizer\.momentum'"):
        load_training_recipe(str(write()), ["optimizer.momentum=0.9"])
    recipe = load_training_recipe(str(write()), ["optimizer.momentum=0.8", "optimizer.name=sgd"])
    assert recipe.optimizer == SGDConfig(momentum=0.8)


# Mistakes, each answered in one line

MISTAKES: dict[str, tuple[list[str], list[str]]] = {
    "misspelt key": (["training.learning_rat=1"], ["'training.learning_rat'", "did you mean 'training.learning_rate'"]),
    "unlike any key": (["training.zzz=1"], ["'training.zzz'", "valid here: ", "max_steps"]),
    "misspelt section": (["trainign.max_steps=1"], ["'trainign'", "did you mean 'training'"]),
    "no section": (["log_every=5"], ["unknown key 'log_every', did you mean 'training.log_every'?"]),
    "another section": (["training.flip=true"], ["unknown key 'training.flip', did you mean 'augmentation.flip'?"]),
    "a word of many sections": (["augmentation.name=x"], ["unknown key 'augmentation.name'; valid here: ", "flip"]),
    "unknown section": (["quux.max_steps=1"], ["'quux'", "valid here: ", "training"]),
    "wrong type": (["training.max_steps=many"], ["training.max_steps = 'many'", "valid integer"]),
    "a number in quotes": (['training.learning_rate="0.1"'], ["training.learning_rate = '0.1'", "valid number"]),
    "a fraction of a step": (["training.max_steps=1.5"], ["training.max_steps = 1.5", "valid integer"]),
    "a number for a switch": (["augmentation.flip=1"], ["augmentation.flip = 1", "boolean"]),
    "below the range": (["training.max_steps=0"], ["training.max_steps = 0", "greater than 0"]),
    "above the range": (["label_smoothing=1.5"], ["label_smoothing = 1.5", "less than 1"]),
    "not a number": (["training.learning_rate=nan"], ["training.learning_rate = nan", "finite"]),
    "infinite": (["training.learning_rate=inf"], ["training.learning_rate = inf", "finite"]),
    "seed too large": (["seed=9223372036854775808"], ["seed = 9223372036854775808", "less than"]),
    "not one of the choices": (["schedule.name=cos"], ["schedule.name = 'cos'", "'constant', 'cosine' or 'one_cycle'"]),
    "unknown variant": (["model.name=vgg"], ["model.name = 'vgg'", "'small_filters_cnn', 'resnet'"]),
    "unknown optimizer": (["optimizer.name=lion"], ["optimizer.name = 'lion'", "'adamw', 'sgd'"]),
    "a list too short": (["optimizer.betas=[0.9]"], ["optimizer.betas"]),
    "beta of one": (["optimizer.betas=[0.9, 1.0]"], ["optimizer.betas.1 = 1.0", "less than 1"]),
    "a section as a value": (["training=5"], ["training = 5", "dictionary"]),
    "a variant as a value": (["model=resnet"], ["model = 'resnet'"]),
    "a value as a section": (["seed=1", "seed.x=2"], ["'seed.x=2'", "'seed' is a value, not a section"]),
    "no equals sign": (["training.max_steps"], ["'training.max_steps'", "key=value"]),
    "no key": (["=5"], ["'=5'", "key=value"]),
    "unknown task": (["task=cnn"], ["task = 'cnn'", "'classifier'"]),
    "a task of the wrong type": (['task=["gan"]'], ["task = ['gan']", "'classifier'"]),
    "warm-up longer than the run": (
        ["schedule.warmup_steps=9", "training.max_steps=9"],
        ["schedule.warmup_steps = 9", "training.max_steps = 9"],
    ),
    "compiled and exact": (["training.compile=true"], ["training.compile = true", "training.microbatches=0"]),
    "microbatches not a power of two": (["training.microbatches=3"], ["training.microbatches = 3", "power of two"]),
    "microbatches that do not divide the batch": (
        ["training.global_batch_size=36", "training.microbatches=8"],
        ["training.microbatches = 8", "training.global_batch_size = 36"],
    ),
    "mixing without pairs": (
        ["augmentation.mixup=1", "training.global_batch_size=36"],
        ["training.global_batch_size = 36", "multiple of 8"],
    ),
    "mixing an odd batch": (
        ["augmentation.cutmix=1", "training.global_batch_size=5", "training.microbatches=0"],
        ["training.global_batch_size = 5", "multiple of 2"],
    ),
    "sync_batch with microbatches": (
        ["model.normalisation=sync_batch"],
        ["model.normalisation = 'sync_batch'", "training.microbatches = 0"],
    ),
    "groups that do not divide the width": (
        ["model.normalisation=group", "model.width=6"],
        ["model.width = 6", "multiple of 4"],
    ),
    "nesterov without momentum": (["optimizer.name=sgd", "optimizer.momentum=0"], ["optimizer.momentum above 0"]),
    "validation while streaming": (
        ["data.reader=streaming", "data.num_validation=5"],
        ["data.num_validation", "data.reader = 'in_memory'"],
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_answered_in_one_line_with_key_value_and_what_is_valid(mistake: str, write: Write) -> None:
    overrides, expected = MISTAKES[mistake]
    with pytest.raises(ConfigError) as caught:
        load_training_recipe(str(write()), overrides)
    message = str(caught.value)
    assert "\n" not in message
    for part in expected:
        assert part in message


def test_several_mistakes_are_answered_together(write: Write) -> None:
    with pytest.raises(ConfigError, match=r"training\.max_steps = 0.*training\.learning_rate = -1"):
        load_training_recipe(str(write()), ["training.max_steps=0", "training.learning_rate=-1"])


def test_an_error_names_the_file(write: Write) -> None:
    path = write("[training]\nmax_step = 3")
    with pytest.raises(ConfigError) as caught:
        load_training_recipe(str(path))
    assert str(caught.value).startswith(f"{path}: ")
    assert "did you mean 'training.max_steps'" in str(caught.value)


def test_unknown_recipe_is_answered_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"unknown recipe 'cnnn', did you mean 'cnn'\?; there are: .*demo"):
        load_training_recipe("cnnn")


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match=r"no recipe file nowhere/mine\.toml"):
        load_training_recipe("nowhere/mine.toml")


@pytest.mark.parametrize("content", [b"task = ", b"task = 'classifier'\nseed = 1\nseed = 2", b"\xff\xfe"])
def test_a_file_that_is_not_toml_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_training_recipe(str(path))
    assert str(caught.value).startswith(f"{path} is not valid TOML: ")
    assert "\n" not in str(caught.value)


def test_a_recipe_without_a_task_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "empty.toml"
    path.write_text("")
    with pytest.raises(ConfigError, match=r"it has no task; a recipe needs one of: 'classifier'"):
        load_training_recipe(str(path))


# Copies


def test_a_copy_is_the_file_with_its_comments(tmp_path: Path) -> None:
    target = tmp_path / "new" / "mine.toml"
    copy_file(find_recipe("cnn"), target)
    assert target.read_bytes() == find_recipe("cnn").read_bytes()
    assert recipe_hash(load_training_recipe(str(target))) == recipe_hash(load_training_recipe("cnn"))


def test_a_copy_overwrites_nothing(tmp_path: Path) -> None:
    target = tmp_path / "mine.toml"
    target.write_text("mine")
    with pytest.raises(ConfigError, match="exists already"):
        copy_file(find_recipe("cnn"), target)
    assert target.read_text() == "mine"


@pytest.mark.parametrize("name", ["../elsewhere", "a/b", ".hidden", "-x"])
def test_a_name_that_would_leave_the_folder_of_runs_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"name = "):
        load_training_recipe("cnn", [f"name={name}"])


def test_an_empty_name_is_the_files() -> None:
    assert load_training_recipe("cnn", ['name=""']).name == "cnn"
