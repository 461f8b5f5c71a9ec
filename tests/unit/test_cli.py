"""The command line: what each command shows, and that whatever goes wrong is one line and a non-zero exit code."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

import cifarscale
from cifarscale.cli.main import main
from cifarscale.config.load import load_training_recipe
from cifarscale.data.manifest import Manifest
from cifarscale.errors import DataError

TINY = """
task = "classifier"
[model]
width = 2
[training]
max_steps = 2
global_batch_size = 8
[evaluation]
every = 0
"""


def run(*arguments: str | Path) -> Result:
    """Runs a command in this process, on a terminal wide enough that no table is folded."""
    return CliRunner(env={"COLUMNS": "250"}).invoke(main, [str(argument) for argument in arguments])


def succeeds(*arguments: str | Path) -> str:
    """What the command prints."""
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def fails(*arguments: str | Path) -> str:
    """The one line of error that the command prints."""
    result = run(*arguments)
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    lines = [line for line in result.stderr.splitlines() if not line.startswith("run folder ")]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    return lines[0].removeprefix("error: ")


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("WORLD_SIZE", raising=False)


@pytest.fixture
def tiny() -> str:
    Path("tiny.toml").write_text(TINY)
    return "tiny.toml"


@pytest.fixture(scope="module")
def trained(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run; not to be changed."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "tiny.toml").write_text(TINY)
    succeeds("train", folder / "tiny.toml", "--data", shards, "--device", "cpu", "--run-dir", folder / "run")
    return folder / "run"


@pytest.fixture
def own_shards(shards: Path, tmp_path: Path) -> Path:
    """A copy of the shards, to be damaged."""
    return Path(shutil.copytree(shards, tmp_path / "copy of shards"))


# jobs and models


def test_jobs_list_names_every_recipe_with_its_description() -> None:
    listed = succeeds("jobs", "list")
    for name in ("cnn", "demo"):
        assert name in listed
        assert load_training_recipe(name).description in listed


def test_jobs_show_prints_a_recipe_that_loads_as_the_same_one() -> None:
    Path("shown.toml").write_text(succeeds("jobs", "show", "cnn", "--set", "seed=5"))
    assert load_training_recipe("shown.toml") == load_training_recipe("cnn", ["seed=5"])


def test_jobs_copy_makes_a_recipe_of_ones_own() -> None:
    assert "cifarscale train jobs/cnn.toml" in succeeds("jobs", "copy", "cnn")
    assert load_training_recipe("cnn") == load_training_recipe("jobs/cnn.toml")
    succeeds("jobs", "copy", "demo", "other/name.toml")
    assert load_training_recipe("other/name.toml").training == load_training_recipe("demo").training


def test_models_names_every_network_with_its_parameters() -> None:
    shown = succeeds("models")
    for part in ("small_filters_cnn", "resnet", "57,332"):
        assert part in shown


def test_version_is_the_package_s() -> None:
    assert cifarscale.__version__ in succeeds("--version")


@pytest.mark.parametrize("command", [[], ["train"], ["evaluate"], ["predict"], ["shards", "build"], ["jobs", "show"]])
def test_every_command_has_help(command: list[str]) -> None:
    assert "Usage:" in succeeds(*command, "--help")
    assert "Usage:" in succeeds(*command, "-h")


# shards


def test_shards_info_says_what_is_in_a_folder(shards: Path) -> None:
    shown = succeeds("shards", "info", shards)
    for part in ("train", "test", "507", "200", "100 classes in 20 superclasses"):
        assert part in shown


def test_shards_verify_finds_whole_shards_whole(shards: Path) -> None:
    shown = succeeds("shards", "verify", shards)
    assert "all 22 shards" in shown
    assert Manifest.load(shards).fingerprint in shown


def test_shards_build_makes_the_synthetic_set_where_it_is_found_by_name() -> None:
    shown = succeeds("shards", "build", "--data", "synthetic", "--num-shards", "5")
    manifest = Manifest.load(Path("shards/synthetic"))
    assert manifest.fingerprint in shown
    assert len(manifest.split("train").shards) == 5
    assert "10,000" in shown
    succeeds("shards", "verify", "shards/synthetic")


def test_shards_verify_names_each_damaged_shard(own_shards: Path) -> None:
    first, second = sorted(own_shards.glob("*train*.tar"))[:2]
    first.write_bytes(b"\0" + first.read_bytes()[1:])
    second.unlink()
    result = run("shards", "verify", own_shards)
    assert result.exit_code == 1
    lines = result.stderr.splitlines()
    assert len(lines) == 2
    assert any(first.name in line and "damaged" in line for line in lines)
    assert any(second.name in line and "missing" in line for line in lines)
    assert lines[-1].startswith("error: ")


# Training and what follows, in one process


def test_train_evaluate_and_predict_work_one_after_the_other(tiny: str, shards: Path) -> None:
    shown = succeeds("train", tiny, "--data", shards, "--device", "cpu")
    (folder,) = Path("runs").iterdir()
    assert folder.name.startswith("tiny-")
    assert f"cifarscale evaluate {folder}" in shown
    shown = succeeds("evaluate", folder, "--data", shards, "--device", "cpu")
    assert "after 2 steps on 200 test samples" in shown
    result = json.loads((folder / "result.json").read_text())
    evaluation = json.loads((folder / "evaluation-test.json").read_text())
    assert {key: evaluation[key] for key in ("top1", "top5", "loss")} == result["test"]
    Image.new("RGB", (32, 32)).save("image.png")
    assert "image.png" in succeeds("predict", folder, "image.png", "--device", "cpu")


def test_evaluate_shows_superclasses_or_classes(trained: Path, shards: Path) -> None:
    manifest = Manifest.load(shards)
    shown = succeeds("evaluate", trained, "--data", shards)
    assert all(name in shown for name in manifest.coarse_names)
    shown = succeeds("evaluate", trained, "--data", shards, "--classes")
    assert all(name in shown for name in manifest.fine_names)


# What goes wrong


def test_an_unknown_recipe_is_answered_with_the_nearest() -> None:
    assert "did you mean 'cnn'?" in fails("train", "cnnn")
    assert "did you mean 'demo'?" in fails("jobs", "show", "demoo")
    assert "did you mean 'demo'?" in fails("jobs", "copy", "demoo")


def test_a_wrong_override_names_its_key(tiny: str, shards: Path) -> None:
    assert "'training.max_step'" in fails("train", tiny, "--data", shards, "--set", "training.max_step=3")
    assert "key=value" in fails("jobs", "show", "cnn", "--set", "seed")


def test_a_copy_overwrites_nothing() -> None:
    Path("mine.toml").write_text("mine")
    assert "mine.toml exists already" in fails("jobs", "copy", "cnn", "mine.toml")


def test_a_broken_recipe_in_the_list_is_named() -> None:
    Path("jobs").mkdir()
    Path("jobs/broken.toml").write_text("task = ")
    assert "jobs/broken.toml is not valid TOML" in fails("jobs", "list")


def test_data_that_is_nowhere_is_named(tiny: str) -> None:
    message = fails("train", tiny, "--data", "nowhere")
    assert "nowhere" in message
    assert "cifar100, synthetic" in message


@pytest.mark.parametrize("command", ["info", "verify"])
def test_a_folder_without_shards_is_named(command: str, tmp_path: Path) -> None:
    assert "has no manifest.json" in fails("shards", command, "nowhere")
    assert "has no manifest.json" in fails("shards", command, tmp_path)


def test_a_damaged_manifest_is_named(own_shards: Path) -> None:
    manifest = own_shards / "manifest.json"
    manifest.write_text(manifest.read_text()[:-20])
    assert f"{manifest} is damaged" in fails("shards", "info", own_shards)


@pytest.mark.parametrize("arguments", [["--num-shards", "0"], ["--num-shards", "10001"], ["--source", "here"]])
def test_shards_are_not_built_from_wrong_arguments(arguments: list[str]) -> None:
    assert arguments[0] in fails("shards", "build", "--data", "synthetic", *arguments)
    assert not Path("shards/synthetic").exists()


def test_shards_replace_nothing_unasked() -> None:
    Path("mine").mkdir()
    Path("mine/file").write_text("mine")
    assert "mine exists" in fails("shards", "build", "--data", "synthetic", "--out", "mine")
    assert Path("mine/file").read_text() == "mine"


def test_shards_cannot_be_built_below_a_file() -> None:
    Path("file").write_text("mine")
    assert "cannot write" in fails("shards", "build", "--data", "synthetic", "--out", "file/shards")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_said_with_what_to_do(tiny: str, shards: Path, trained: Path) -> None:
    assert "--device cpu" in fails("train", tiny, "--data", shards, "--device", "cuda")
    assert "--device cpu" in fails("evaluate", trained, "--data", shards, "--device", "cuda")


def test_ranks_that_do_not_divide_the_batch_are_refused_before_anything_is_written(tiny: str, shards: Path) -> None:
    message = fails("train", tiny, "--data", shards, "--nproc", "3", "--set", "training.microbatches=0")
    assert "cannot be split evenly over 3 ranks; valid numbers of ranks: 1, 2, 4" in message
    assert not Path("runs").exists()


def test_more_ranks_than_a_batch_feeds_are_told_what_to_run_instead(tiny: str, shards: Path) -> None:
    message = fails("train", tiny, "--data", shards, "--nproc", "8")
    assert "in 4 microbatches feed at most 4 ranks, and --nproc is 8. Run with --nproc 4, or with --scale 2" in message
    show = shlex.split(message.partition("another recipe: ")[2])
    shown = CliRunner().invoke(main, show[1:])
    assert "# --scale 2: training.microbatches 4 -> 8" in shown.stdout.splitlines()
    assert not Path("runs").exists()


@pytest.mark.parametrize("nproc", ["1", "2"])
def test_a_run_folder_that_is_something_else_is_left_alone(nproc: str, tiny: str, shards: Path) -> None:
    arguments = ["train", tiny, "--data", str(shards), "--nproc", nproc, "--run-dir"]
    Path("file").write_text("mine")
    assert "file" in fails(*arguments, "file")
    assert "file" in fails(*arguments, "file/run")
    assert Path("file").read_text() == "mine"
    if nproc == "1":  # with several ranks it is they who find out, see the tests of whole jobs
        Path("folder").mkdir()
        Path("folder/thesis.txt").write_text("mine")
        assert "folder exists and is not a run folder" in fails(*arguments, "folder")
        assert [path.name for path in Path("folder").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_a_folder_that_is_no_run_is_named(command: str, tmp_path: Path) -> None:
    Image.new("RGB", (32, 32)).save("image.png")
    images = ["image.png"] if command == "predict" else []
    assert f"{tmp_path} is not a run folder" in fails(command, tmp_path, *images)


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_a_run_without_a_checkpoint_is_told_to_train_first(command: str, trained: Path, shards: Path) -> None:
    folder = Path(shutil.copytree(trained, "young", ignore=shutil.ignore_patterns("checkpoints", "result.json")))
    Image.new("RGB", (32, 32)).save("image.png")
    rest = ["image.png"] if command == "predict" else ["--data", str(shards)]
    message = fails(command, folder, *rest)
    assert "has no checkpoint yet" in message
    assert "cifarscale train young/recipe.toml" in message


def test_a_split_that_the_recipe_does_not_have_is_named(trained: Path, shards: Path) -> None:
    assert "data.num_validation" in fails("evaluate", trained, "--data", shards, "--split", "validation")


def test_evaluation_on_other_shards_is_refused(trained: Path, own_shards: Path) -> None:
    manifest = Manifest.load(own_shards)
    manifest.model_copy(update={"dataset": "other"}).save(own_shards)
    message = fails("evaluate", trained, "--data", own_shards)
    assert manifest.fingerprint in message


def test_an_error_shows_its_traceback_only_with_debug() -> None:
    assert fails("train", "cnn", "--data", "nowhere")
    assert isinstance(run("--debug", "train", "cnn", "--data", "nowhere").exception, DataError)
    command = [sys.executable, "-m", "cifarscale"]
    for options in ([], ["--debug"]):
        ended = subprocess.run([*command, *options, "jobs", "show", "cnnn"], capture_output=True, text=True)
        assert ended.returncode == 1
        assert ("Traceback" in ended.stderr) == bool(options)


# Images of all kinds


def save_image(path: Path, mode: str, size: tuple[int, int] = (32, 32), **options: object) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, **options)
    return path


IMAGES = {
    "rgb.png": ("RGB", (32, 32)),
    "grey.png": ("L", (32, 32)),
    "one-bit.png": ("1", (32, 32)),
    "palette.png": ("P", (32, 32)),
    "rgba.png": ("RGBA", (32, 32)),
    "grey-alpha.png": ("LA", (32, 32)),
    "photo.jpg": ("RGB", (640, 480)),
    "grey.jpg": ("L", (100, 30)),
    "print.jpg": ("CMYK", (64, 64)),
    "animated.gif": ("P", (40, 40)),
    "one-pixel.png": ("RGB", (1, 1)),
    "narrow.png": ("RGB", (2000, 3)),
    "large.png": ("RGB", (3000, 2000)),
    "ünïcode name [x].ppm": ("RGB", (33, 31)),
}


def test_predict_takes_images_of_every_kind_and_size(trained: Path, tmp_path: Path) -> None:
    paths = [save_image(tmp_path / name, mode, size) for name, (mode, size) in IMAGES.items()]
    shown = succeeds("predict", trained, *paths)
    for path in paths:
        assert path.name in shown
    assert shown.count("%") == 5 * len(paths)


def test_predict_uses_an_image_of_32_pixels_as_it_is(trained: Path, tmp_path: Path) -> None:
    """The same image in another lossless format gets the same answer, alone or among others."""
    png, bmp = (save_image(tmp_path / f"image.{kind}", "RGB") for kind in ("png", "bmp"))
    other = save_image(tmp_path / "other.png", "L")
    alone = succeeds("predict", trained, png)
    assert succeeds("predict", trained, bmp).splitlines()[1:] == alone.splitlines()[1:]
    assert succeeds("predict", trained, png, other).startswith(alone)


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n"])
def test_predict_names_a_file_that_is_no_image(content: bytes, trained: Path) -> None:
    Path("file.png").write_bytes(content)
    assert "cannot read file.png as an image" in fails("predict", trained, "file.png")


def test_predict_scales_an_image_of_16_bits(trained: Path) -> None:
    """To the answer for the same image in 8 bits."""
    grey = np.random.default_rng(0).integers(0, 256, (32, 32), np.uint8)
    Image.fromarray(grey).save("8-bit.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save("16-bit.png")
    shallow, deep = (succeeds("predict", trained, f"{bits}-bit.png").splitlines()[1:] for bits in (8, 16))
    assert deep == shallow


def test_predict_names_an_image_that_is_cut_short(trained: Path, tmp_path: Path) -> None:
    for name in ("cut.png", "cut.jpg"):
        path = save_image(tmp_path / name, "RGB", (200, 200))
        os.truncate(path, path.stat().st_size // 2)
        assert f"cannot read {path} as an image" in fails("predict", trained, path)


def test_predict_names_an_image_that_would_fill_the_memory(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_image(Path("large.png"), "RGB", (100, 100))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert "cannot read large.png as an image" in fails("predict", trained, "large.png")
