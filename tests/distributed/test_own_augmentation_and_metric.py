"""An augmentation and metrics in a file of the user's: part of the run, the same on all ranks, shown and swept."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from processes import run_ranks
from runs import Run

from cifarscale.cli.main import main
from cifarscale.config.load import load_recipe, load_training_recipe, recipe_hash
from cifarscale.data.dataset import Dataset
from cifarscale.data.normalisation import training_normalisation
from cifarscale.distributed.ranks import ADDRESS_VARIABLE, FILE_VARIABLE, Ranks
from cifarscale.errors import TRUST_VARIABLE, ConfigError
from cifarscale.launch.run import prepare, run
from cifarscale.runs.options import RunOptions
from cifarscale.sweeps.space import check_sweep
from cifarscale.tasks.load import load_classifier
from cifarscale.tracking.metrics import read_metrics

pytestmark = pytest.mark.distributed

EXAMPLE = Path(__file__).parents[2] / "examples/posterize"
SHORT = {
    "model.width": 2,
    "training.max_steps": 40,
    "training.global_batch_size": 16,
    "training.log_every": 1,
    "training.checkpoint_every": 5,
    "evaluation.every": 20,
}
OPTIONS = [part for key, value in SHORT.items() for part in ("--set", f"{key}={value}")]
OWN = """
import random
import torch
import cifarscale as cs

@cs.register_augmentation("shift")
def shift(images, draws, most: float = 0.1):
    return images + most * draws.normal("shift", 1, 1, 1)

@cs.register_augmentation("drawn_elsewhere")
def drawn_elsewhere(images):
    return images * random.random()

@cs.register_augmentation("seldom_random")
def seldom_random(images):
    return images * (random.random() > 1e-9)

@cs.register_augmentation("own_generator")
class OwnGenerator:
    def __init__(self):
        self.generator = torch.Generator()

    def __call__(self, images):
        return images + torch.rand(images.shape, generator=self.generator)

@cs.register_augmentation("smaller")
def smaller(images, by: int = 1):
    return images[:, :, by:]

@cs.register_augmentation("failing")
class Failing:
    class Config(cs.Section):
        denominator: int = 0

    def __init__(self, config: Config) -> None:
        self.denominator = config.denominator

    def __call__(self, images):
        return images / (1 // self.denominator)

@cs.register_metric("entropy", direction="max")
def entropy(logits, labels):
    return -(logits.softmax(1) * logits.log_softmax(1)).sum(1)

@cs.register_metric("mean_entropy", direction="max")
def mean_entropy(logits, labels):
    return entropy(logits, labels).mean()

@cs.register_metric("failing_metric", direction="max")
def failing_metric(logits, labels):
    return logits[:, 1000]

@cs.register_metric("no_number", direction="max", reduce=lambda values: "high")
def no_number(logits, labels):
    return logits

@cs.register_metric("drawn_metric", direction="max")
def drawn_metric(logits, labels):
    return torch.rand(len(labels))

@cs.register_metric("random_metric", direction="max")
def random_metric(logits, labels):
    return labels * (random.random() > 1e-9)

@cs.register_metric("of_all", direction="max")
def of_all(logits, labels):
    return logits[:, 0] / logits[:, 0].norm()

@cs.register_metric("in_place", direction="max")
def in_place(logits, labels):
    return logits.exp_()[:, 0]

@cs.register_metric("undefined", direction="max", reduce=lambda values: float("nan"))
def undefined(logits, labels):
    return labels
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example lies in the test's folder; the user is one of this test's own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv(TRUST_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    for file in EXAMPLE.glob("posterize.*"):
        shutil.copy(file, tmp_path)


def _rank(rank: int, run_dir: Path, shards: Path) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", ADDRESS_VARIABLE: "127.0.0.1", "OMP_NUM_THREADS": "1"}
    os.environ[FILE_VARIABLE] = str(run_dir / "rendezvous")
    run(run_dir, RunOptions(shards, "cpu"))


def test_the_example_is_the_same_on_two_ranks_and_after_a_kill_and_is_shown(shards: Path, tmp_path: Path) -> None:
    one, two, killed = (Run(tmp_path / name) for name in ("one", "two", "killed"))
    overrides = [f"{key}={value}" for key, value in SHORT.items()]
    recipe = load_training_recipe("posterize.toml", overrides)
    command = [*("train", "posterize.toml", "--data", str(shards), "--run-dir", "killed", "--device", "cpu"), *OPTIONS]
    with subprocess.Popen([sys.executable, "-m", "cifarscale", *command], stderr=subprocess.DEVNULL) as process:
        killed.wait_for_step(7, process.poll)
        process.send_signal(signal.SIGKILL)
    for each in (one, two, killed):
        prepare(recipe, each.path, str(shards), RunOptions(device="cpu")).make_folder()
    run_ranks(_rank, 2, two.path, shards)
    for each in (one, killed):
        run(each.path, RunOptions(shards, "cpu"))
    one.assert_same_as(two)
    one.assert_same_as(killed)
    (line,) = [line for line in one.metrics() if "test_calibration_error" in line][-1:]
    assert line["test_margin"] == one.result()["test"]["margin"]
    assert one.result()["test"]["calibration_error"] == pytest.approx(by_definition(one, shards), abs=1e-6)
    shown = CliRunner().invoke(main, ["evaluate", "two", "--data", str(shards), "--nproc", "1", "--device", "cpu"])
    assert f"calibration error {one.result()['test']['calibration_error']:.4f}, margin " in shown.output
    assert CliRunner().invoke(main, ["report", "one", "--data", str(shards), "--out", "page.html"]).exit_code == 0
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Calibration error" in page
    assert "margin" in page
    again = CliRunner().invoke(main, command)
    assert "calibration error" in again.output


def by_definition(trained: Run, shards: Path) -> float:
    """The calibration error on the test split, bin by bin."""
    classifier = load_classifier(trained.path, torch.device("cpu"))
    split = Dataset(shards, classifier.recipe.data, torch.device("cpu")).split("test")
    normalise = training_normalisation(classifier.manifest, torch.device("cpu"))
    error = 0.0
    with torch.inference_mode():
        chunks = [(classifier.network(normalise(chunk.images)), chunk.labels) for chunk in split.chunks(Ranks(), 50)]
    logits, labels = (torch.cat(each) for each in zip(*chunks, strict=True))
    confidence, prediction = logits.double().softmax(1).max(1)
    for i in range(15):
        inside = (confidence >= i / 15) & (confidence < (i + 1) / 15 if i < 14 else confidence <= 1)
        if inside.any():
            hit = (prediction == labels)[inside].double().mean()
            error += float((hit - confidence[inside].mean()).abs()) * int(inside.sum()) / len(labels)
    return error


def test_without_it_the_run_is_another_one(shards: Path, tmp_path: Path) -> None:
    """Keys can be set, changed on the way, and the order counts."""
    (tmp_path / "own.py").write_text(OWN, encoding="utf-8")
    (tmp_path / "own.toml").write_text('task = "classifier"\nmodules = ["own.py"]\n', encoding="utf-8")
    plain = load_training_recipe("own.toml")
    shift, smaller = "augmentation.own.shift.most=0.2", "augmentation.own.smaller.by=0"
    changed = load_training_recipe("own.toml", (shift, smaller))
    other_order = load_training_recipe("own.toml", (smaller, shift))
    assert len({recipe_hash(recipe) for recipe in (plain, changed, other_order)}) == 3
    prepared = prepare(changed, tmp_path / "run", str(shards))
    prepared.make_folder()
    again = load_training_recipe(str(tmp_path / "run/recipe.toml"))
    assert again == prepared.recipe
    assert list(again.augmentation.own) == ["shift", "smaller"]  # type: ignore[attr-defined]
    later = 'later=[{step=5, set={"augmentation.own.shift.most"=0.5}}]'
    assert recipe_hash(load_training_recipe("own.toml", (shift, later))) != recipe_hash(changed)


def test_a_metric_that_is_no_number_is_left_out_and_ends_nothing(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN, encoding="utf-8")
    (tmp_path / "own.toml").write_text('task = "classifier"\nmodules = ["own.py"]\n', encoding="utf-8")
    short = ("training.max_steps=2", "training.global_batch_size=8", "evaluation.every=1")
    recipe = load_training_recipe("own.toml", ('evaluation.metrics=["undefined", "entropy"]', *short))
    prepared = prepare(recipe, tmp_path / "run", str(shards), RunOptions(device="cpu"))
    prepared.make_folder()
    result = run(prepared.run_dir, prepared.options)
    assert result["test"]["undefined"] is None
    assert result["test"]["entropy"] > 0
    assert json.loads((tmp_path / "run/result.json").read_text())["test"]["undefined"] is None
    assert not any("test_undefined" in line for line in read_metrics(tmp_path / "run/metrics.jsonl"))


SWEEP = """
task = "sweep"
base = "posterize.toml"
metric = "{metric}"
mode = "{mode}"
set = {{ "data.num_validation" = 100 }}
[space]
"{key}" = {{ choice = [2, 5] }}
"""


@pytest.mark.parametrize(
    ("metric", "mode", "key", "said"),
    [
        ("validation_calibration_error", "min", "augmentation.own.posterize.bits", ""),
        ("validation.margin", "max", "augmentation.own.posterize.bits", ""),
        ("validation_calibration_error", "max", "seed", "of validation_calibration_error 'min' is better"),
        ("validation_calibration_eror", "min", "seed", "did you mean 'validation_calibration_error'?"),
        ("validation.margin", "max", "augmentation.own.posterize.bit", "unknown key 'bit', did you mean 'bits'?"),
    ],
)
def test_a_sweep_takes_its_metrics_and_keys(metric: str, mode: str, key: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "sweep.toml").write_text(SWEEP.format(metric=metric, mode=mode, key=key), encoding="utf-8")
    sweep = load_recipe("sweep.toml")
    if not said:
        check_sweep(sweep)  # type: ignore[arg-type]
        return
    with pytest.raises(ConfigError) as caught:
        check_sweep(sweep)  # type: ignore[arg-type]
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("code", "override", "said"),
    [
        ("", "augmentation.own.shit.most=1.0", "unknown augmentation 'shit', did you mean 'shift'?; registered are: "),
        ("", "augmentation.own.shift.mots=1.0", "augmentation.own.shift: unknown key 'mots', did you mean 'most'?"),
        (
            "",
            "augmentation.own.shift.most=high",
            "augmentation.own.shift: most = 'high': input should be a valid number",
        ),
        ("", "augmentation.own.shift=1", "augmentation.own.shift = 1 is not a section of its keys"),
        ("", "augmentation.own.drawn_elsewhere={}", "'drawn_elsewhere' draws from another generator than torch's own"),
        ("", "augmentation.own.seldom_random={}", "'seldom_random' draws from another generator than torch's own"),
        ("", "augmentation.own.own_generator={}", "'own_generator' makes something else of the same images each time"),
        ("", "augmentation.own.smaller={}", "'smaller' returned float32 of shape (2, 3, 31, 32), and was given images"),
        (
            "",
            "augmentation.own.failing={}",
            "augmentation 'failing': OWN, line 39: ZeroDivisionError: integer division",
        ),
        ("", 'evaluation.metrics=["entrpy"]', "unknown metric 'entrpy', did you mean 'entropy'?; registered are: "),
        ("", 'evaluation.metrics=["top1"]', "evaluation.metrics: 'top1' is part of every evaluation; leave it out"),
        ("", 'evaluation.metrics=["mean_entropy"]', "metric 'mean_entropy' returned float32 of shape () for 3 samples"),
        ("", 'evaluation.metrics=["failing_metric"]', "metric 'failing_metric': OWN, line 51: IndexError: index 1000"),
        ("", 'evaluation.metrics=["no_number"]', "metric 'no_number': own.py: ValueError: could not convert string"),
        ("", 'evaluation.metrics=["drawn_metric"]', "metric 'drawn_metric' gives other numbers for the same samples"),
        ("", 'evaluation.metrics=["random_metric"]', "'random_metric' draws from another generator than torch's own"),
        ("", 'evaluation.metrics=["of_all"]', "'of_all' gives a sample another value beside other samples than alone"),
        ("", 'evaluation.metrics=["in_place"]', "'in_place' changes the logits or labels, which others are computed"),
        ('cs.register_metric("loss", direction="min")(entropy)', "seed=1", "metric 'loss' is part of every evaluation"),
        ('cs.register_metric("entropy", direction="min")(entropy)', "seed=1", "metric 'entropy' is registered already"),
        ('cs.register_metric("x", direction="up")(entropy)', "seed=1", "direction = 'up'; valid are 'max'"),
        ('cs.register_metric("a b", direction="min")(entropy)', "seed=1", "metric 'a b': take letters, digits and _"),
        ('cs.register_augmentation("shift")(shift)', "seed=1", "augmentation 'shift' is registered already"),
        (
            'cs.register_augmentation("y")(lambda images, amount: images)',
            "seed=1",
            "augmentation 'y': parameter 'amount' needs a type and a default",
        ),
    ],
)
def test_what_is_wrong_is_one_line_before_there_is_a_run(
    code: str, override: str, said: str, shards: Path, tmp_path: Path
) -> None:
    (tmp_path / "own.py").write_text(OWN + code, encoding="utf-8")
    (tmp_path / "own.toml").write_text('task = "classifier"\nmodules = ["own.py"]\n', encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        prepare(load_training_recipe("own.toml", (override,)), tmp_path / "run", str(shards))
    assert re.search(re.escape(said).replace("OWN", r"\S+own\.py"), str(caught.value))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_without_modules_nothing_of_ones_own_can_be_named() -> None:
    with pytest.raises(ConfigError, match="registered are: none, since modules names no code"):
        load_training_recipe("demo", ("augmentation.own.posterize={}",))


def test_a_recipe_whose_code_is_not_trusted_can_be_read(shards: Path, tmp_path: Path) -> None:
    recipe = load_training_recipe("posterize.toml")
    prepare(recipe, tmp_path / "run", str(shards)).make_folder()
    program = (
        "from pathlib import Path\n"
        "from cifarscale.runs.run_folder import RunFolder\n"
        "recipe = RunFolder(Path('run')).load_recipe()\n"
        "print(recipe.augmentation.own, recipe.evaluation.metrics)\n"
    )
    environment = os.environ | {"XDG_STATE_HOME": str(tmp_path / "another"), TRUST_VARIABLE: ""}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert "bits=3" in done.stdout, done.stderr
    assert "calibration_error" in done.stdout
