"""Data of one's own, from a function and from a folder of odd files: trained, evaluated, measured and reported."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from processes import run_command
from runs import Run

from cifarscale.data.manifest import Manifest
from cifarscale.errors import TRUST_VARIABLE

RINGS = Path(__file__).parents[2] / "examples/rings"
SHORT = [part for key in ("max_steps=12", "checkpoint_every=6", "log_every=3") for part in ("--set", f"training.{key}")]
SHORT += ["--set", "evaluation.every=6"]
Command = Callable[..., str]


@pytest.fixture
def cifarscale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs `cifarscale` in the test's folder, for a user of this test's own. Returns: what it prints, or its error."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv(TRUST_VARIABLE, raising=False)

    def cifarscale(*arguments: object, code: int = 0) -> str:
        done = run_command(tmp_path, *arguments, code=code)
        return done.stderr if code else done.stdout

    return cifarscale


def page(path: Path) -> str:
    return re.sub(r"\s+", " ", (path / "report.html").read_text(encoding="utf-8"))


def test_a_drawn_set_is_trained_on_two_ranks_as_on_one(cifarscale: Command, tmp_path: Path) -> None:
    for file in ("rings.py", "rings.toml"):
        shutil.copy(RINGS / file, tmp_path)
    shown = cifarscale("train", "rings.toml", *SHORT, "--run-dir", "one")
    assert "top-1" in shown
    assert "top-5" not in shown
    assert Manifest.load(tmp_path / "one").image_size == (24, 24)
    cifarscale("train", "rings.toml", *SHORT, "--run-dir", "two", "--nproc", 2)
    Run(tmp_path / "one").assert_same_as(Run(tmp_path / "two"))

    shutil.rmtree(tmp_path / "shards")  # and now the run's copy of the code builds them
    (tmp_path / "rings.py").write_text("gone = 1 / 0", encoding="utf-8")
    evaluated = cifarscale("evaluate", "one")
    assert all(f"{i} ring" in evaluated for i in (1, 2, 3))
    result = json.loads((tmp_path / "one/evaluation-test.json").read_text())
    assert result["top1"] == Run(tmp_path / "one").result()["test"]["top1"]
    assert result["classes"].keys() == {"1 ring", "2 rings", "3 rings"}
    assert not {"superclasses", "top5"} & result.keys()

    assert cifarscale("predict", "one", RINGS.parents[1] / "docs/images/yellow_striped_ring.png").count("%") == 3
    cifarscale("report", "one")
    text = page(tmp_path / "one")
    assert "Percent of each class (row) that was taken for each (column): 150 images of the test split" in text
    assert "3 rings" in text
    assert "superclass" not in text
    assert "top-5" not in text

    refused = cifarscale("train", "dcgan", "--data", "rings", code=1)
    assert "squares of 8, 16, 32, 64, 128, 256 pixels a side, and the images of the data set have 24 x 24" in refused
    assert not (tmp_path / "runs").exists()
    small = ("schedule.warmup_steps=0", "model.widths=[4, 8]", "model.blocks=[1, 1]", "sampler.steps=1")
    sets = [argument for setting in small for argument in ("--set", setting)]
    cifarscale("train", "flow", "--data", "rings", *SHORT, *sets, "--run-dir", "flow")
    cifarscale("generate", "flow", "--num", 1, "--class", "2 rings", "--out", "drawn")
    assert Image.open(tmp_path / "drawn/000000.png").size == (24, 24)


def odd_files(folder: Path) -> None:
    """Three classes of images of every kind and size; each class has a brightness of its own."""
    random = np.random.default_rng(0)
    kinds = {
        "png": {},
        "jpg": {"quality": 90},
        "grey.png": {"mode": "L"},
        "one-bit.png": {"mode": "1"},
        "palette.png": {"mode": "P"},
        "print.jpg": {"mode": "CMYK"},
        "glass.png": {"mode": "RGBA"},
        "still.gif": {"mode": "P"},
        "webp": {"lossless": True},
        "16.tiff": {"deep": True},
        "turned.jpg": {"orientation": 6},
    }
    for level, label in enumerate(("dark", "grey", "light")):
        (folder / label).mkdir(parents=True)
        for i in range(2):
            for kind, options in kinds.items():
                options = dict(options)
                height, width = random.integers(16, 40, 2)
                pixels = random.integers(80 * level, 80 * level + 90, (height, width, 3)).astype(np.uint8)
                image = Image.fromarray(pixels).convert(options.pop("mode", "RGB"))
                if options.pop("deep", False):
                    image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
                if orientation := options.pop("orientation", 0):
                    options["exif"] = image.getexif()
                    options["exif"][0x0112] = orientation
                image.save(folder / label / f"{i}.{kind}", **options)


def test_a_folder_that_nobody_prepared_is_trained_evaluated_and_reported(cifarscale: Command, tmp_path: Path) -> None:
    odd_files(tmp_path / "photos")
    assert "sizes: " in cifarscale("shards", "build", "--data", "folder", "--source", "photos", "--holdout", 4, code=1)
    build = ("shards", "build", "--data", "folder", "--source", "photos", "--holdout", 4, "--size", 16)
    shown = cifarscale(*build, "--name", "tones")
    assert "3 classes, 16 x 16 pixels" in shown
    assert cifarscale(*build, "--name", "tones") == shown, "the same shards are found again"
    cifarscale("shards", "verify", "tones")

    batch = ("--set", "training.global_batch_size=16")
    cifarscale("train", "cnn", "--data", "tones", *SHORT, *batch, "--run-dir", "cnn")
    cifarscale("evaluate", "cnn", "--split", "train", "--classes")
    assert "dark" in cifarscale("predict", "cnn", tmp_path / "photos/dark/0.print.jpg")
    cifarscale("report", "cnn")
    assert "Percent of each class" in page(tmp_path / "cnn")

    narrow = (
        "--set",
        "model.generator_width=4",
        "--set",
        "model.discriminator_width=4",
        "--set",
        "model.conditional=true",
    )
    gan = ("train", "dcgan", "--data", "tones", *SHORT, *batch, *narrow)
    cifarscale(*gan, "--run-dir", "gan")
    cifarscale(*gan, "--run-dir", "gan2", "--nproc", 2)
    Run(tmp_path / "gan").assert_same_as(Run(tmp_path / "gan2"))
    cifarscale("generate", "gan", "--num", 3, "--class", "light", "--out", "drawn")
    assert [Image.open(path).size for path in sorted((tmp_path / "drawn").iterdir())] == [(16, 16)] * 3
    measured = ("--features", "cnn:cnn", "--num-samples", 60, "--allow-few-samples")
    assert "Fréchet distance" in cifarscale("fid", "gan", *measured)
    cifarscale("report", "gan")
    assert "Nearest real images" in page(tmp_path / "gan")
    (tmp_path / "others").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "others/large.png")
    refused = cifarscale("fid", "others", "--data", "tones", *measured, code=1)
    assert "takes images of 16 x 16, and these are 32 x 32" in refused
