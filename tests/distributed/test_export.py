"""Trained networks as files that are read without this package."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from runs import run_recipe
from torch import nn

import cifarscale as cs
from cifarscale.config.code import trust
from cifarscale.config.load import load_training_recipe
from cifarscale.errors import TRUST_VARIABLE, CifarscaleError, ConfigError, RunError
from cifarscale.runs.options import RunOptions
from cifarscale.tasks import export as exporting
from cifarscale.tasks.training import resolve

PLAIN = """
task = "classifier"
modules = ["networks.py"]
model = { name = "NAME" }
training = { max_steps = 2, global_batch_size = 16 }
evaluation = { every = 0 }
"""
NETWORKS = """
import torch
from torch import nn
import cifarscale as cs

class Linear(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(3072, num_classes)
        self.same = self.head

    def forward(self, images):
        return self.head(images.flatten(1))

cs.register_network("linear")(Linear)

@cs.register_network("branching")
class Branching(Linear):
    def forward(self, images):
        return super().forward(images if images.sum() > 0 else -images)

@cs.register_network("restless")
class Restless(Linear):
    def forward(self, images):
        return super().forward(images) + torch.rand(1)
"""
GAN = """
task = "gan"
[model]
conditional = true
generator_width = 4
discriminator_width = 4
[training]
max_steps = 2
global_batch_size = 16
[evaluation]
every = 0
"""
ELSEWHERE = """
import json, sys
sys.modules["cifarscale"] = None  # cannot be imported
import onnxruntime, torch
from safetensors import safe_open
from torch.nn import functional as F

def onnx(path, **inputs):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
    return torch.from_numpy(output), session.get_modelmeta().custom_metadata_map

expected = torch.load("expected.pt")
extra = {"classes": ""}
program = torch.export.load("cnn.pt2", extra_files=extra).module()
torch.testing.assert_close(program(expected["pixels"] / 255), expected["cnn"])
logits, said = onnx("cnn.onnx", images=expected["pixels"])
torch.testing.assert_close(logits, expected["cnn"], rtol=1e-3, atol=1e-3)
assert len(json.loads(said["classes"])) == len(json.loads(extra["classes"])) == logits.shape[1]

images = torch.export.load("gan.pt2").module()(expected["latents"], expected["labels"])
assert images.dtype == torch.uint8 and (images.int() - expected["images"].int()).abs().max() <= 1
images, _ = onnx("gan.onnx", latents=expected["latents"], labels=expected["labels"])
assert (images * 255 - expected["images"]).abs().max() <= 1

with safe_open("linear.safetensors", "pt") as file:
    said = {key: json.loads(file.metadata()[key]) for key in ("recipe", "classes", "mean", "std", "image_shape")}
    weights = {name: file.get_tensor(name) for name in file.keys()}
mean, std = (torch.tensor(said[key]).view(3, 1, 1) for key in ("mean", "std"))
images = (expected["pixels"] / 255 - mean) / std
logits = F.linear(images.flatten(1), weights["head.weight"], weights["head.bias"])
torch.testing.assert_close(logits, expected["linear"])
assert said["recipe"]["model"]["name"] == "linear" and said["image_shape"] == [3, 32, 32]
"""


@pytest.fixture(scope="module")
def trained(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], cs.Run]:
    """The run of a recipe after two steps; each one once. Recipes: `cnn`, `gan`, and the networks above."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "networks.py").write_text(NETWORKS, encoding="utf-8")

    def trained(name: str) -> cs.Run:
        if not (folder / name).exists():
            (folder / f"{name}.toml").write_text(GAN if name == "gan" else PLAIN.replace("NAME", name), "utf-8")
            overrides = ("training.max_steps=2", "evaluation.every=0", "model.normalisation=batch")
            recipe = "cnn" if name == "cnn" else str(folder / f"{name}.toml")
            loaded = resolve(load_training_recipe(recipe, overrides if name == "cnn" else ()), shards)
            with pytest.MonkeyPatch.context() as patched:
                patched.setenv("XDG_STATE_HOME", str(folder))
                patched.setenv(TRUST_VARIABLE, os.environ.get(TRUST_VARIABLE, ""))
                trust(loaded.code, loaded.modules)
                run_recipe(loaded, folder / name, RunOptions(shards, "cpu"))
        return cs.load(folder / name)

    return trained


def test_what_is_exported_is_read_without_this_package(trained: Callable[[str], cs.Run], tmp_path: Path) -> None:
    cnn, gan, linear = trained("cnn"), trained("gan"), trained("linear")
    cnn.export(tmp_path / "cnn.pt2")
    cnn.export(tmp_path / "cnn.onnx", pixels="uint8")
    gan.export(tmp_path / "gan.pt2", pixels="uint8")
    gan.export(tmp_path / "gan.onnx")
    linear.export(tmp_path / "linear.safetensors")
    noise = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (7, 3, 32, 32), dtype=torch.uint8, generator=noise)
    latents, labels = torch.randn(7, 100, generator=noise), torch.arange(7)
    with torch.inference_mode():
        expected = {
            "pixels": pixels,
            "cnn": cnn.network("cpu")(pixels),
            "linear": linear.network("cpu")(pixels),
            "latents": latents,
            "labels": labels,
            "images": gan.network("cpu")(latents, labels).add(1).mul(127.5).round().to(torch.uint8),
        }
    torch.save(expected, tmp_path / "expected.pt")
    done = subprocess.run([sys.executable, "-c", ELSEWHERE], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert str(tmp_path.parents[1]).encode() not in (tmp_path / "cnn.onnx").read_bytes()


@pytest.mark.parametrize(
    ("name", "file", "words"),
    [
        ("branching", "model.pt2", "torch.export cannot trace the network of .*branching: .* --to .*model.safetensors"),
        ("restless", "model.onnx", "model.onnx is not kept: on a batch of 1 its output .* differs by up to"),
        ("linear", "model.pth", r"cannot export to .*model.pth: its name must end in one of .pt2, .safetensors, .onnx"),
    ],
)
def test_what_cannot_be_exported_is_one_line_and_leaves_nothing(
    name: str, file: str, words: str, trained: Callable[[str], cs.Run], tmp_path: Path
) -> None:
    with pytest.raises(CifarscaleError, match=words) as caught:
        trained(name).export(tmp_path / file)
    assert len(str(caught.value).splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_there_stays_unless_one_says_so(trained: Callable[[str], cs.Run], tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_text("mine")
    mode = path.stat().st_mode
    with pytest.raises(ConfigError, match=r"exists already, and is left as it is. Name another file, or add --force"):
        trained("cnn").export(path)
    assert path.read_text() == "mine"
    trained("cnn").export(path, force=True)
    assert path.stat().st_size > 200_000
    assert path.stat().st_mode == mode


def test_a_damaged_file_is_not_kept(
    trained: Callable[[str], cs.Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "_same_weights", lambda one, other: False)
    with pytest.raises(RunError, match="is not kept: other weights are read from it"):
        trained("cnn").export(tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_package_that_is_missing_is_named(
    trained: Callable[[str], cs.Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs safetensors, .* Run: pip install 'cifarscale\[export\]'"):
        trained("cnn").export(tmp_path / "model.safetensors")


def test_a_task_that_does_not_say_what_its_network_takes_has_its_weights_exported(
    trained: Callable[[str], cs.Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cifarscale.tasks.trained import Trained

    run = trained("cnn")
    loaded = Trained(
        run.recipe,
        exporting.load_trained(run.path, torch.device("cpu")).manifest,
        nn.Linear(2, 2),
        1,
        torch.device("cpu"),
    )
    monkeypatch.setattr(exporting, "load_trained", lambda *_: loaded)
    with pytest.raises(RunError, match="does not say what its network takes and gives"):
        run.export(tmp_path / "model.onnx")
    assert run.export(tmp_path / "model.safetensors").exists()
