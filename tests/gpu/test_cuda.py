"""What holds on one CUDA device. `--device cuda` needs one; everything here skips without."""

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import Run, run_recipe
from torch.nn import functional

from cifarscale.config.load import load_training_recipe
from cifarscale.distributed.device import arithmetic, pick_device
from cifarscale.errors import ConfigError, Interrupted
from cifarscale.launch.run import prepare, run
from cifarscale.runs.checkpoint import load_checkpoint, newest_checkpoint
from cifarscale.runs.options import RunOptions
from cifarscale.tasks.classifier.learner import ClassifierLearner
from cifarscale.tasks.training import resolve
from cifarscale.training.signals import StopRequest

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def train(shards: Path, run_dir: Path, *settings: str) -> dict[str, torch.Tensor]:
    command = [sys.executable, "-m", "cifarscale", "train", "cnn", "--device", "cuda", "--data", str(shards)]
    sets = [item for setting in ("training.max_steps=60", *settings) for item in ("--set", setting)]
    subprocess.run([*command, "--run-dir", str(run_dir), *sets], check=True)
    path = newest_checkpoint(run_dir / "checkpoints")
    assert path is not None
    weights: dict[str, torch.Tensor] = load_checkpoint(path)["networks"]["classifier"]
    return weights


def test_the_same_recipe_twice_gives_the_same_weights(shards: Path, tmp_path: Path) -> None:
    first, second = train(shards, tmp_path / "a"), train(shards, tmp_path / "b")
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_the_first_losses_agree_with_the_cpu(shards: Path, tmp_path: Path) -> None:
    train(shards, tmp_path / "cuda", "training.max_steps=5", "training.log_every=1")
    command = [sys.executable, "-m", "cifarscale", "train", "cnn", "--device", "cpu", "--data", str(shards)]
    sets = ("--set", "training.max_steps=5", "--set", "training.log_every=1")
    subprocess.run([*command, "--run-dir", str(tmp_path / "cpu"), *sets], check=True)
    cuda, cpu = (
        [json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("cuda", "cpu")
    )
    assert cuda == pytest.approx(cpu, rel=1e-3)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("compiled", ["false", "true"])
def test_mixed_precision_trains(shards: Path, tmp_path: Path, precision: str, compiled: str) -> None:
    settings = (f"training.precision={precision}", f"training.compile={compiled}", "training.microbatches=0")
    weights = train(shards, tmp_path, *settings)
    assert all(weight.isfinite().all() for weight in weights.values())
    assert (tmp_path / "result.json").exists()


DEVICE = "cuda"
SHORT = ("training.max_steps=12", "training.checkpoint_every=6", "evaluation.every=0")
RECIPES = {
    "cnn": ("augmentation.crop_padding=4", "augmentation.flip=true", "augmentation.mixup=0.2"),
    "resnet": ("training.ema_decay=0.99", "training.gradient_clip_norm=1.0"),
    "dcgan": ("distance.features=none",),
    "dcgan-plus": ("distance.features=none", "distance.every=0"),
    "flow": ("schedule.warmup_steps=0", "sampler.steps=2"),
}


def trained(
    name: str, folder: Path, shards: Path, *changes: str, stop_after: int | None = None, graph: bool = True
) -> Run:
    """A short training in this process."""
    recipe = resolve(load_training_recipe(name, (*SHORT, *RECIPES[name], *changes)), shards)
    stop = StopRequest()
    stop.after_step = stop_after
    run_recipe(recipe, folder, RunOptions(shards, DEVICE, graph=graph), None, stop)
    return Run(folder)


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """What was said of graphs since it was asked last."""
    monkeypatch.setattr(logging.getLogger("cifarscale"), "propagate", True)
    caplog.set_level(logging.INFO, "cifarscale")

    def said() -> list[str]:
        lines = list(dict.fromkeys(line for line in caplog.messages if "graph" in line))
        caplog.clear()
        return lines

    return said


REPLAYED = "steps are replayed as a graph: the first replay has made the same of everything, to the last bit"


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_recipe_gives_the_same_bits_twice_and_resumed(
    name: str, precision: str, shards: Path, tmp_path: Path
) -> None:
    changes = (f"training.precision={precision}",)
    whole = trained(name, tmp_path / "whole", shards, *changes)
    with pytest.raises(Interrupted):
        trained(name, tmp_path / "again", shards, *changes, stop_after=5)
    trained(name, tmp_path / "again", shards, *changes).assert_same_as(whole)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_graph_changes_no_bit(
    name: str, precision: str, shards: Path, tmp_path: Path, said: Callable[[], list[str]]
) -> None:
    changes = (f"training.precision={precision}", "training.log_every=3")
    graph = trained(name, tmp_path / "graph", shards, *changes)
    assert said() == [REPLAYED]
    by_itself = trained(name, tmp_path / "by itself", shards, *changes, graph=False)
    assert said() == []
    graph.assert_same_as(by_itself)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        (
            "cnn",
            ("augmentation.cutout=8", "augmentation.mixup=0.2", "augmentation.cutmix=1.0", "augmentation.flip=true"),
        ),
        ("cnn", ("augmentation.alternating_flip=true", "augmentation.flip=false", "training.microbatches=16")),
        ("cnn", ("optimizer.name=muon", "training.ema_decay=0.9", "training.gradient_clip_norm=0.1")),
        ("resnet", ("training.microbatches=8",)),
        ("dcgan", ("objective.r1=1", "objective.penalty_every=3", "model.discriminator_normalisation=none")),
        (
            "dcgan",
            ("model.conditional=true", "model.spectral=true", "discriminator_updates=2", "augmentation.colour=true"),
        ),
    ],
)
def test_a_graph_changes_no_bit_whatever_is_on(
    name: str, changes: tuple[str, ...], shards: Path, tmp_path: Path, said: Callable[[], list[str]]
) -> None:
    """Steps of two kinds included, which have a graph each."""
    changes = (*changes, "training.max_steps=30")
    graph = trained(name, tmp_path / "graph", shards, *changes)
    lines = said()
    assert lines
    assert set(lines) == {REPLAYED}
    graph.assert_same_as(trained(name, tmp_path / "by itself", shards, *changes, graph=False))


def test_a_run_goes_on_with_a_graph_after_one_without_and_the_other_way_round(shards: Path, tmp_path: Path) -> None:
    """Before there is a graph, before it is checked, and after that; within a block of the tables each time."""
    whole = trained("resnet", tmp_path / "whole", shards, "training.max_steps=30")
    for step, graph in ((3, True), (7, True), (14, False), (21, True)):
        with pytest.raises(Interrupted):
            trained("resnet", tmp_path / "parts", shards, "training.max_steps=30", stop_after=step, graph=graph)
    trained("resnet", tmp_path / "parts", shards, "training.max_steps=30").assert_same_as(whole)


def test_a_recording_that_fails_changes_nothing(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Callable[[], list[str]]
) -> None:
    """The CPU reads a loss, which no graph can do, while microbatches are on several streams."""
    plain = ClassifierLearner.loss

    def read(self: ClassifierLearner, *arguments: Any) -> Any:
        loss, outputs = plain(self, *arguments)
        return loss * (2 if float(loss.detach()) > 1e9 else 1), outputs

    monkeypatch.setattr(ClassifierLearner, "loss", read)
    graph = trained("cnn", tmp_path / "graph", shards)
    (line,) = said()
    assert line.startswith("steps are not replayed as a graph: ")
    assert torch.rand(2, device=DEVICE).isfinite().all(), "networks of this process can draw still"
    graph.assert_same_as(trained("cnn", tmp_path / "by itself", shards, graph=False))


def test_a_replay_that_would_change_a_bit_is_found(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Callable[[], list[str]]
) -> None:
    plain = ClassifierLearner.loss

    def scaled(self: ClassifierLearner, update: str, networks: Any, part: Any, step: int) -> Any:
        loss, outputs = plain(self, update, networks, part, step)
        return loss / (1 + step), outputs

    monkeypatch.setattr(ClassifierLearner, "loss", scaled)
    graph = trained("cnn", tmp_path / "graph", shards)
    (line,) = said()
    assert line.startswith("steps are not replayed as a graph: the first replay has made something else of")
    graph.assert_same_as(trained("cnn", tmp_path / "by itself", shards, graph=False))


def test_float32_is_ieee_and_tf32_is_asked_for() -> None:
    torch.manual_seed(0)
    images, kernel = torch.randn(64, 32, 32, 32, device="cuda"), torch.randn(32, 32, 3, 3, device="cuda")
    matrix = torch.randn(1024, 1024, device="cuda")

    def errors(tf32: bool) -> list[float]:
        with arithmetic(images.device, tf32):
            found = [functional.conv2d(images, kernel, padding=1), matrix @ matrix]
        exact = [functional.conv2d(images.double(), kernel.double(), padding=1), matrix.double() @ matrix.double()]
        return [float((mine - true).norm() / true.norm()) for mine, true in zip(found, exact, strict=True)]

    assert max(errors(tf32=False)) < 1e-6
    assert errors(tf32=True)[1] > 1e-5  # of convolutions there are some that cuDNN does not round


def test_a_task_that_sees_one_gpu_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert pick_device("cuda", 3) == torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match=r"so 4 of them, and torch .* sees 2"):
        pick_device("cuda", 3)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_two_gpus_give_the_bits_of_one(shards: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cifarscale", "train", "cnn", "--device", "cuda", "--data", str(shards)]
    for nproc in (1, 2):
        more = ["--nproc", str(nproc), "--run-dir", str(tmp_path / str(nproc)), "--set", "training.max_steps=60"]
        subprocess.run([*command, *more], check=True)
    Run(tmp_path / "1").assert_same_as(Run(tmp_path / "2"))


@pytest.mark.parametrize("name", ["dropout", "noise", "frozen", "integer_buffer", "float64", "bfloat16"])
def test_unusual_networks_go_on_to_the_same_bits(
    name: str, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is drawn on the device included."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    modules = f"modules = [{json.dumps(str(Path(__file__).parents[1] / 'odd_networks.py'))}]"
    path = tmp_path / "odd.toml"
    path.write_text(f'task = "classifier"\n{modules}\nmodel = {{ name = "{name}" }}\n', encoding="utf-8")
    recipe = load_training_recipe(str(path), ("training.max_steps=6", "training.log_every=1", "evaluation.every=0"))
    runs = [prepare(recipe, tmp_path / each, str(shards), RunOptions(device="cuda")) for each in ("whole", "resumed")]
    stop = StopRequest()
    stop.after_step = 3
    for each in runs:
        each.make_folder()
    with pytest.raises(Interrupted):
        run(runs[1].run_dir, runs[1].options, None, stop)
    for each in runs:
        run(each.run_dir, each.options)
    Run(runs[0].run_dir).assert_same_as(Run(runs[1].run_dir))
