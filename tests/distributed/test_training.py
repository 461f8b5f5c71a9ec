"""Whole trainings in real processes: the same to the last bit on any number of ranks, however often interrupted.

What is compared are checkpoints (weights, moments, averages), the lines of the log, and the final figures.
"""

import logging
import os
import random
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from processes import run_ranks, wait_until_gone
from runs import planted, run_recipe, wait_until

from cifarscale.config.load import load_training_recipe
from cifarscale.config.ranks import batch_size_per_rank
from cifarscale.data.manifest import Manifest
from cifarscale.distributed.ranks import ADDRESS_VARIABLE, FILE_VARIABLE
from cifarscale.errors import (
    CheckpointError,
    CifarscaleError,
    ConfigError,
    DataError,
    Interrupted,
    NonFiniteLossError,
    RunError,
)
from cifarscale.launch.run import prepare
from cifarscale.runs.options import RunOptions
from cifarscale.runs.run_folder import default_run_dir
from cifarscale.tasks.load import load_classifier
from cifarscale.tasks.training import resolve

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.skipif(sys.platform != "linux", reason="looks processes up in /proc"),
    pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="this torch has no gloo"),
]

Function = Callable[..., Any]
"""A fixture of conftest.py that is called."""

SLOW_EVALUATION = """
import sys
if any("cifarscale" in argument for argument in sys.orig_argv):
    import time
    from pathlib import Path
    from cifarscale.tasks.classifier import learner
    evaluate = learner.evaluate_classifier
    def slowly(*arguments, **more):
        Path({mark!r}).touch()
        for _ in range(300):
            time.sleep(0.1)
        return evaluate(*arguments, **more)
    learner.evaluate_classifier = slowly
"""
LONG = ("training.max_steps=160", "training.checkpoint_every=10", "evaluation.every=50", "augmentation.flip=true")
"""Overrides for a run that lasts long enough to be interrupted on its way."""

VARIANTS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "batch normalisation": ("model.normalisation=batch",),
    "mixup, crop and flip": ("augmentation.mixup=0.5", "augmentation.crop_padding=4", "augmentation.flip=true"),
    "cutmix and cutout": ("augmentation.cutmix=1", "augmentation.cutout=8", "training.microbatches=8"),
    "moving average and clipping": ("training.ema_decay=0.9", "training.gradient_clip_norm=0.1"),
    "all at once": (
        "model.normalisation=batch",
        "augmentation.mixup=0.5",
        "augmentation.crop_padding=4",
        "training.ema_decay=0.9",
        "training.gradient_clip_norm=0.1",
        "optimizer.name=sgd",
        "schedule.name=one_cycle",
        "label_smoothing=0.1",
        "data.num_validation=107",
    ),
    "streaming": ("data.reader=streaming", "data.canonical_partitions=8", "data.shuffle_buffer=32"),
}
SIXTEEN: dict[str, tuple[str, ...]] = {
    "sixteen microbatches": ("training.microbatches=16",),
    "sixteen of a residual network": (
        "training.microbatches=16",
        "training.global_batch_size=32",
        "training.max_steps=5",
        "model.name=resnet",
        "model.width=4",
    ),
}
VARIANTS |= SIXTEEN
TO_ROUNDING: dict[str, tuple[str, ...]] = {
    "no microbatches": ("training.microbatches=0",),
    "batch normalisation over the ranks": (
        "training.microbatches=0",
        "model.normalisation=sync_batch",
        "optimizer.name=sgd",
    ),
}

MANY_RANKS = ("all at once", "no microbatches")
"""Variants that are always trained on 4 ranks, too; the others now and then."""
ON_RANKS = [
    *(
        pytest.param(variant, ranks, marks=() if ranks == 2 or variant in MANY_RANKS else pytest.mark.thorough)
        for variant in VARIANTS | TO_ROUNDING
        if variant not in SIXTEEN
        for ranks in (2, 4)
    ),
    pytest.param("all at once", 3),
    pytest.param("streaming", 3, marks=pytest.mark.thorough),
    *(pytest.param(variant, 6) for variant in SIXTEEN),
    pytest.param("sixteen microbatches", 8),
    *(pytest.param(variant, ranks, marks=pytest.mark.thorough) for variant in SIXTEEN for ranks in (2, 3, 5, 16)),
]


@pytest.fixture(scope="module")
def runs(
    tiny: Path, shards: Path, train_here: Function, opened: Function, tmp_path_factory: pytest.TempPathFactory
) -> Function:
    """Gives a variant trained on a number of ranks; each once."""
    root, found = tmp_path_factory.mktemp("runs"), {}

    def run(variant: str, world_size: int) -> Any:
        if (variant, world_size) not in found:
            folder, overrides = root / f"{variant} {world_size}", (VARIANTS | TO_ROUNDING)[variant]
            if world_size == 1:
                train_here(folder, *overrides)
            else:
                run_ranks(_rank, world_size, world_size, str(shards), str(tiny), overrides, str(folder))
            found[variant, world_size] = opened(folder)
        return found[variant, world_size]

    return run


def _rank(rank: int, world_size: int, shards: str, recipe: str, overrides: tuple[str, ...], folder: str) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world_size), ADDRESS_VARIABLE: "127.0.0.1"}
    os.environ[FILE_VARIABLE] = f"{folder}.rendezvous"
    run_recipe(
        resolve(load_training_recipe(recipe, overrides), Path(shards)), Path(folder), RunOptions(Path(shards), "cpu")
    )


# Any number of ranks


@pytest.mark.parametrize(("variant", "world_size"), [each for each in ON_RANKS if each.values[0] in VARIANTS])
def test_every_bit_is_the_same_on_any_number_of_ranks(variant: str, world_size: int, runs: Function) -> None:
    runs(variant, world_size).assert_same_as(runs(variant, 1))


@pytest.mark.parametrize(("variant", "world_size"), [each for each in ON_RANKS if each.values[0] in TO_ROUNDING])
def test_without_microbatches_a_run_is_the_same_to_rounding(variant: str, world_size: int, runs: Function) -> None:
    mine, one = runs(variant, world_size), runs(variant, 1)
    for (key, tensor), other in zip(
        mine.state()["networks"]["classifier"].items(), one.state()["networks"]["classifier"].values(), strict=True
    ):
        torch.testing.assert_close(tensor, other, rtol=1e-2, atol=1e-3, msg=lambda text, key=key: f"{key}: {text}")
    for line, expected in zip(mine.metrics(), one.metrics(), strict=True):
        if "loss" in line:
            assert line["loss"] == pytest.approx(expected["loss"], rel=1e-3)


def test_variants_do_differ(runs: Function) -> None:
    """Or else the tests above would compare one thing with itself."""
    figures = [runs(variant, 1).result()["test"]["loss"] for variant in VARIANTS]
    assert len(set(figures)) == len(figures)


def test_the_command_line_starts_as_many_ranks_and_workers_as_it_is_told(
    runs: Function, tiny: Path, shards: Path, opened: Function, cifarscale: Function, tmp_path: Path
) -> None:
    folder = tmp_path / "run folder with späces"
    overrides = [argument for override in VARIANTS["streaming"] for argument in ("--set", override)]
    where = ["--data", shards, "--run-dir", folder, "--nproc", 2, "--num-workers", 2]
    ended = cifarscale("train", tiny, *where, *overrides)
    assert ended.returncode == 0, ended.stderr
    assert opened(folder).result()["world_size"] == 2
    opened(folder).assert_same_as(runs("streaming", 1))


@pytest.mark.parametrize(
    ("overrides", "world_size", "valid"),
    [
        ((), 5, "1 to 4"),
        (("training.microbatches=2",), 4, "1 to 2"),
        (("training.microbatches=0",), 3, "1, 2, 4, 8, 16"),
        (("training.microbatches=0", "augmentation.mixup=1"), 16, "1, 2, 4, 8"),
    ],
)
def test_ranks_that_cannot_share_a_batch_are_refused_with_those_that_can(
    overrides: tuple[str, ...], world_size: int, valid: str, tiny: Path
) -> None:
    recipe = load_training_recipe(str(tiny), overrides)
    with pytest.raises(ConfigError, match=rf"{world_size}( ranks)?; valid numbers of ranks: {valid}(;|$)"):
        batch_size_per_rank(recipe, world_size)
    for number in re.findall(r"\d+", valid):
        assert batch_size_per_rank(recipe, int(number)) * int(number) == 16


# Interruptions


@pytest.fixture(scope="module")
def uninterrupted(train_here: Function, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return train_here(tmp_path_factory.mktemp("uninterrupted") / "run", *LONG)


@pytest.fixture
def run(tmp_path: Path, opened: Function) -> Any:
    """The run folder that the test's commands share."""
    return opened(tmp_path / "run")


@pytest.fixture
def start_long(tiny: Path, shards: Path, run: Any, start: Function) -> Function:
    """Starts training the long recipe in `run`."""
    overrides = [argument for override in LONG for argument in ("--set", override)]

    def start_long(*options: str | int) -> Any:
        command = ["train", str(tiny), "--data", str(shards), "--run-dir", str(run.path), *overrides]
        return start(*command, "--device", "cpu", *options)

    return start_long


def completes(started: Any) -> str:
    """What the command says on its way to a good end."""
    ended = started.wait()
    assert ended.returncode == 0, ended.stderr
    return ended.stderr


def random_steps(*ranges: tuple[int, int]) -> list[int]:
    steps = [random.randrange(*each) for each in ranges]
    print(f"interrupted at steps {steps}")
    return steps


def test_a_run_that_is_killed_again_and_again_ends_as_if_it_had_not_been(
    start_long: Function, run: Any, uninterrupted: Any
) -> None:
    for step in random_steps((12, 45), (55, 85), (95, 120)):
        started = start_long()
        run.wait_for_step(step, started.end)
        started.kill()
        assert (run.path / ".lease").exists()  # the next one finds its holder gone
    assert "resuming after step" in completes(start_long())
    run.assert_same_as(uninterrupted)
    assert [line["step"] for line in run.metrics() if "loss" in line] == list(range(1, 161))


def test_a_run_goes_on_after_a_rank_was_killed_and_after_its_launcher_was(
    start_long: Function, run: Any, uninterrupted: Any
) -> None:
    (step,), rank = random_steps((12, 80)), random.randrange(2)
    started = start_long("--nproc", 2)
    run.wait_for_step(step, started.end)
    ranks = started.ranks()
    assert sorted(ranks) == [0, 1]
    os.kill(ranks[rank], signal.SIGKILL)
    ended = started.wait()
    assert ended.returncode == 1
    said = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert len(said) == 1, ended.stderr
    assert said[0].startswith(f"error: rank {rank} was ended by SIGKILL")
    wait_until_gone(ranks.values())

    (step,) = random_steps((95, 120))
    started = start_long("--nproc", 2)
    run.wait_for_step(step, started.end)
    assert len(started.ranks()) == 2
    started.kill()  # returns when the ranks are gone

    assert "resuming after step" in completes(start_long())  # on one rank, after two
    run.assert_same_as(uninterrupted)
    assert [line["step"] for line in run.metrics() if "loss" in line] == list(range(1, 161))


def test_a_run_that_is_killed_on_six_ranks_goes_on_on_two(
    start_long: Function, run: Any, train_here: Function, tmp_path: Path
) -> None:
    sixteen = ("training.microbatches=16", "training.max_steps=60")
    overrides = [argument for override in sixteen for argument in ("--set", override)]
    on_six = start_long("--nproc", 6, *overrides)
    run.wait_for_step(*random_steps((12, 30)), on_six.end)
    on_six.kill()
    completes(start_long("--nproc", 2, *overrides))
    run.assert_same_as(train_here(tmp_path / "uninterrupted", *LONG, *sixteen))


def test_a_run_that_is_asked_to_stop_saves_that_step_and_goes_on_from_there(
    start_long: Function, run: Any, uninterrupted: Any
) -> None:
    """By either signal, on one rank or two, which go on from one another."""
    asked = [(signal.SIGTERM, 1), (signal.SIGINT, 2)]
    for (signum, nproc), step in zip(asked, random_steps((12, 60), (70, 120)), strict=True):
        started = start_long("--nproc", nproc)
        run.wait_for_step(step, started.end)
        started.send(signum)
        ended = started.wait()
        assert ended.returncode == 75, ended.stderr
        stopped = run.last_step()
        assert f"stopped: after step {stopped:,} of 160; the state is saved." in ended.stderr.splitlines()[-1]
        assert "Traceback" not in ended.stderr
        assert run.state()["step"] == stopped >= step
        assert not (run.path / "result.json").exists()
    completes(start_long())
    run.assert_same_as(uninterrupted)


@pytest.mark.parametrize(("signum", "nproc"), [(signal.SIGTERM, 1), (signal.SIGINT, 2)])
def test_a_run_that_is_asked_to_stop_while_it_is_evaluated_last_goes_on_with_that(
    start: Function, run: Any, tiny: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    signum: signal.Signals, nproc: int,
) -> None:  # fmt: skip
    where = ("train", tiny, "--data", shards, "--run-dir", run.path, "--nproc", nproc, "--device", "cpu")
    with monkeypatch.context() as patched:
        for name, value in planted(tmp_path, SLOW_EVALUATION.format(mark=str(tmp_path / "evaluates"))).items():
            patched.setenv(name, value)
        started = start(*where, "--set", "evaluation.every=0")
    wait_until((tmp_path / "evaluates").exists, "nothing is evaluated", started.end)
    started.send(signum)
    ended = started.wait()
    assert ended.returncode == 75, ended.stderr
    assert "Traceback" not in ended.stderr
    assert f"stopped: by {signum.name} outside of training" in ended.stderr.splitlines()[-1]
    assert not (run.path / "result.json").exists()
    completes(start(*where, "--set", "evaluation.every=0"))
    assert run.result()["images_per_second"] > 0


@pytest.mark.parametrize("nproc", [1, 2])
def test_the_second_ctrl_c_leaves_at_once(nproc: int, start_long: Function, run: Any) -> None:
    """In the middle of a step: a step of one rank takes seconds, and one of two waits for ever, for a rank at rest."""
    size = ["--set", "training.global_batch_size=1024", "--set", "model.width=64"] if nproc == 1 else []
    started = start_long("--nproc", nproc, *size)
    run.wait_for_step(1, started.end)
    ranks = started.ranks()
    if nproc == 2:
        os.kill(ranks[1], signal.SIGSTOP)
    step, checkpoints = run.last_step(), run.checkpoints() if (run.path / "checkpoints").exists() else []
    while started.process.poll() is None:  # two signals that meet before a process looks count as one
        started.send(signal.SIGINT)
        time.sleep(0.1)
    assert started.wait().returncode == 76
    wait_until_gone(ranks.values())
    if nproc == 1:
        assert run.last_step() <= step + 1
        assert (run.checkpoints() if (run.path / "checkpoints").exists() else []) == checkpoints


def test_of_two_trainings_in_one_folder_the_second_is_refused(
    start_long: Function, run: Any, train_here: Function
) -> None:
    first = start_long()
    run.wait_for_step(10, first.end)
    first.send(signal.SIGSTOP)  # it holds the folder for as long as the others take
    before, refusal = run.metrics(), f"{run.path} is being written by process {first.process.pid} on "
    with pytest.raises(RunError, match=re.escape(refusal)):
        train_here(run.path, *LONG)
    second = start_long("--nproc", 2).wait()
    assert second.returncode == 1
    assert refusal in second.stderr.splitlines()[-1]
    assert "Traceback" not in second.stderr
    assert run.metrics() == before
    first.send(signal.SIGTERM)
    first.send(signal.SIGCONT)
    assert first.wait().returncode == 75


# Folders


def test_a_complete_run_shows_its_result_and_computes_nothing(
    runs: Function, tiny: Path, shards: Path, cifarscale: Function, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(runs("plain", 1).path, tmp_path / "run"))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    ended = cifarscale("train", tiny, "--data", shards, "--run-dir", folder)
    assert ended.returncode == 0
    assert "is complete; its result:" in ended.stdout
    assert "tiny: 27,276 parameters, 20 steps" in ended.stdout
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_changed_recipe_gets_another_folder(tiny: Path, shards: Path) -> None:
    folders = {
        default_run_dir(resolve(load_training_recipe(str(tiny), overrides), shards))
        for overrides in ((), ("seed=1",), ("training.learning_rate=2e-3",))
    }
    assert len(folders) == 3
    assert default_run_dir(resolve(load_training_recipe(str(tiny), ["description=other"]), shards)) in folders


def test_a_folder_of_another_recipe_is_refused(runs: Function, train_here: Function, tmp_path: Path) -> None:
    ignored = shutil.ignore_patterns("result.json")
    folder = Path(shutil.copytree(runs("plain", 1).path, tmp_path / "run", ignore=ignored))
    with pytest.raises(RunError, match=r"holds a run of another recipe \(tiny-\w{8}, not tiny-\w{8}\)"):
        train_here(folder, "seed=1")


def test_a_complete_run_of_another_recipe_is_not_taken_for_this_one(
    runs: Function, train_here: Function, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(runs("plain", 1).path, tmp_path / "run"))
    with pytest.raises(RunError, match="holds a run of another recipe"):
        train_here(folder, "seed=1")


def test_a_folder_that_holds_something_else_is_refused(train_here: Function, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(RunError, match="is not a run folder"):
        train_here(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def unfinished(run: Any, folder: Path) -> Path:
    """A copy of a run as if it had ended between its last checkpoint and its result."""
    return Path(shutil.copytree(run.path, folder, ignore=shutil.ignore_patterns("result.json")))


def test_a_damaged_newest_checkpoint_is_passed_over_for_the_one_before(
    runs: Function, train_here: Function, opened: Function, tmp_path: Path
) -> None:
    folder = unfinished(runs("all at once", 1), tmp_path / "run")
    newest = opened(folder).checkpoints()[-1]
    newest.write_bytes(newest.read_bytes()[:-1] + b"\xff")
    assert opened(folder).state()["step"] == 15
    train_here(folder, *VARIANTS["all at once"]).assert_same_as(runs("all at once", 1))


def test_a_run_without_a_whole_checkpoint_starts_anew_and_says_so(
    runs: Function,
    train_here: Function,
    opened: Function,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(logging.getLogger("cifarscale"), "propagate", True)
    folder = unfinished(runs("plain", 1), tmp_path / "run")
    for path in opened(folder).checkpoints():
        path.write_bytes(b"")
    train_here(folder).assert_same_as(runs("plain", 1))
    assert any("all checkpoints are damaged" in message for message in caplog.messages)
    assert f"{folder} begins again at step 0: what it had trained is lost" in caplog.messages


def test_a_complete_run_without_a_whole_checkpoint_says_that_its_weights_are_lost(
    runs: Function, opened: Function, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(runs("plain", 1).path, tmp_path / "run"))
    for path in opened(folder).checkpoints():
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"is complete, but its weights are lost: .*\. Remove result\.json"):
        load_classifier(folder, torch.device("cpu"))


def test_a_checkpoint_of_another_recipe_is_refused(
    runs: Function, train_here: Function, opened: Function, tmp_path: Path
) -> None:
    folder = unfinished(runs("plain", 1), tmp_path / "run")
    for path in opened(folder).checkpoints():
        path.unlink()
    foreign = runs("moving average and clipping", 1).checkpoints()[-1]
    shutil.copy(foreign, folder / "checkpoints")
    with pytest.raises(CheckpointError, match="belongs to another recipe"):
        train_here(folder)


def test_no_evaluation_is_missing_or_doubled_when_a_run_stops_where_one_is_due(
    runs: Function, train_here: Function, opened: Function, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every step is stopped once, those of evaluations and checkpoints among them."""
    folder = tmp_path / "run"
    while not (folder / "result.json").exists():
        with monkeypatch.context() as patched:
            patched.setattr("cifarscale.training.signals.StopRequest.__init__", _ask_at_once)
            with pytest.raises(Interrupted):
                train_here(folder)
        if opened(folder).last_step() == 20:
            train_here(folder)
    opened(folder).assert_same_as(runs("plain", 1))


def _ask_at_once(request: Any) -> None:
    request.requested = True


# What a run is refused for, and what ends it


def test_training_on_other_shards_than_before_is_refused(
    runs: Function, tiny: Path, shards: Path, tmp_path: Path
) -> None:
    recipe = resolve(load_training_recipe(str(tiny)), shards)
    other = Path(shutil.copytree(shards, tmp_path / "shards"))
    Manifest.load(other).model_copy(update={"dataset": "other"}).save(other)
    with pytest.raises(DataError, match=f"the recipe was resolved with {recipe.data.fingerprint}"):
        prepare(recipe, tmp_path / "run", str(other))


@pytest.mark.parametrize("reader", ["in_memory", "streaming"])
def test_training_on_a_damaged_shard_is_refused(
    reader: str, train_here: Function, shards: Path, tmp_path: Path
) -> None:
    damaged = Path(shutil.copytree(shards, tmp_path / "shards"))
    path = sorted(damaged.glob("*train*.tar"))[3]
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"{path.name} is damaged"):
        train_here(tmp_path / "run", f"data.reader={reader}", shards=damaged)
    assert not (tmp_path / "run" / "checkpoints").exists()


DIVERGING = ("optimizer.name=sgd", "training.learning_rate=1e30", "training.log_every=20", "evaluation.every=0")


@pytest.mark.parametrize("nproc", [1, 2])
def test_a_loss_that_is_not_finite_ends_the_run_and_says_where(
    nproc: int, tiny: Path, shards: Path, start: Function, train_here: Function, opened: Function, tmp_path: Path
) -> None:
    """The loss overflows after the first checkpoint, and long before a line of the log is due."""
    folder, overrides = tmp_path / "run", (*DIVERGING, "training.checkpoint_every=1")
    if nproc == 1:
        with pytest.raises(NonFiniteLossError) as caught:
            train_here(folder, *overrides)
        message = str(caught.value)
    else:
        changes = [argument for override in overrides for argument in ("--set", override)]
        ended = start("train", tiny, "--data", shards, "--run-dir", folder, "--nproc", nproc, *changes).wait()
        assert ended.returncode == 1
        errors = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, ended.stderr  # beside what torch's own threads may have to say of a rank that is gone
        message = errors[0].removeprefix("error: ")
    found = re.fullmatch(
        r"the loss of step (\d+) is not finite; the last good checkpoint is (.*)\. Try a lower training.*",
        message,
    )
    assert found
    newest = opened(folder).checkpoints()[-1]
    assert str(newest) == found[2]
    assert opened(folder).state()["step"] == int(found[1]) - 1 > 0
    for path in opened(folder).checkpoints():
        assert all(tensor.isfinite().all() for tensor in torch.load(path)["networks"]["classifier"].values())
    assert not (folder / "result.json").exists()


@pytest.mark.parametrize("every", [0, 1])
def test_weights_that_overflow_in_the_last_step_are_no_result(every: int, train_here: Function, tmp_path: Path) -> None:
    """The loss of that step, taken before its update, is still finite."""
    folder = tmp_path / "run"
    overrides = ("training.learning_rate=1e45", "training.max_steps=1", f"evaluation.every={every}")
    with pytest.raises(NonFiniteLossError, match="weights after step 1 are not finite; there is no checkpoint yet"):
        train_here(folder, *DIVERGING, *overrides)
    assert not (folder / "result.json").exists()
    assert not (folder / "checkpoints").exists()


def test_a_loss_that_is_not_finite_is_found_before_it_is_logged(
    train_here: Function, opened: Function, tmp_path: Path
) -> None:
    """Also where an evaluation is due before a line of the log."""
    overrides = (*DIVERGING, "training.checkpoint_every=20", "evaluation.every=10")
    with pytest.raises(NonFiniteLossError, match=r"the loss of step \d+ is not finite; there is no checkpoint yet"):
        train_here(tmp_path / "run", *overrides)
    assert opened(tmp_path / "run").metrics() == []


def test_a_full_disk_is_one_clear_line(
    train_here: Function, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: Function
) -> None:
    """And the run goes on when there is space again."""
    folder, replace = tmp_path / "run", Path.replace

    def full(path: Path, target: Path) -> Path:
        if target.suffix == ".pt" and target.name.startswith("step-00000010"):
            raise OSError(28, "No space left on device", str(target))
        return replace(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", full)
        with pytest.raises(CifarscaleError, match=r"cannot write .*: No space left on device"):
            train_here(folder)
    train_here(folder).assert_same_as(runs("plain", 1))


# Precision and compilation


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_nearly_as_single(
    precision: str, train_here: Function, runs: Function, tmp_path: Path
) -> None:
    run = train_here(tmp_path / "run", f"training.precision={precision}")
    for line, expected in zip(run.metrics(), runs("plain", 1).metrics(), strict=True):
        if "loss" in line:
            assert line["loss"] == pytest.approx(expected["loss"], rel=0.02)
    assert all(tensor.dtype == torch.float32 for tensor in run.state()["networks"]["classifier"].values())
    assert run.metrics() != runs("plain", 1).metrics()


@pytest.mark.thorough
def test_compiled_networks_train_nearly_as_others(
    runs: Function, tiny: Path, shards: Path, opened: Function, cifarscale: Function, tmp_path: Path
) -> None:
    """Where there is a compiler; else the run says so and goes on without."""
    overrides = ["--set", "training.compile=true", "--set", "evaluation.every=0", "--set", "training.microbatches=0"]
    ended = cifarscale("train", tiny, "--data", shards, "--run-dir", tmp_path / "run", *overrides)
    assert ended.returncode == 0, ended.stderr
    expected = [line["loss"] for line in runs("plain", 1).metrics() if "loss" in line]
    assert [line["loss"] for line in opened(tmp_path / "run").metrics()] == pytest.approx(expected, rel=1e-3)


def test_where_compiling_fails_the_run_says_so_and_goes_on(
    train_here: Function,
    runs: Function,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(module: Any) -> None:
        raise RuntimeError("no compiler\nin many lines")

    monkeypatch.setattr(torch, "compile", refuse)
    monkeypatch.setattr(logging.getLogger("cifarscale"), "propagate", True)
    run = train_here(tmp_path / "run", "training.compile=true", "training.microbatches=0")
    assert "torch.compile failed, going on without it: no compiler" in caplog.messages
    assert run.metrics() == runs("no microbatches", 1).metrics()
