"""What W&B is told of trainings: read back from its own files by its own reader, and from a server on this machine."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from runs import Run
from wandb_server import ILLNESSES, KEY, WandbServer

from cifarscale.config.load import load_training_recipe
from cifarscale.config.recipe import resolved
from cifarscale.errors import ConfigError, Interrupted
from cifarscale.slurm.profile import load_profile
from cifarscale.tracking import wandb_sink
from cifarscale.tracking.metrics import RATE_OF_RANK, read_metrics

Function = Callable[..., Any]
OFFLINE, ONLINE = "tracking.wandb=offline", "tracking.wandb=online"
EVERY_STEP = "training.log_every=1"
LONG = ("training.max_steps=400", "training.log_every=1", "training.checkpoint_every=20", "evaluation.every=50")
"""For a run that can be interrupted on its way."""


def steps_of(run: Run) -> list[int]:
    return sorted({line["step"] for line in run.metrics()})


# Offline


@pytest.fixture(scope="module")
def classifier(train: Function, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(tmp_path_factory.mktemp("runs") / "tiny-0123", OFFLINE, 'tracking.tags=["a", "b"]')


def test_each_step_stands_there_once_with_all_that_was_reported_of_it(classifier: Run, recorded: Function) -> None:
    lines = read_metrics(classifier.path / "metrics.jsonl")
    expected: dict[int, dict[str, Any]] = {}
    for line in lines:
        expected.setdefault(line["step"], {}).update(line)
    rows = recorded(classifier.path).rows
    assert [row["step"] for row in rows] == [row["_step"] for row in rows] == sorted(expected)
    for row in rows:
        wanted = expected[row["step"]]
        del wanted["time"]
        assert {key: row[key] for key in wanted} == wanted
    assert {"loss", "learning_rate", "gradient_norm", "images_per_second", "test_top1"} <= rows[-1].keys()


def test_the_own_step_is_the_x_axis(classifier: Run, recorded: Function) -> None:
    (metric,) = recorded(classifier.path).of("metric")
    assert (metric["glob_name"], metric["step_metric"]) == ("*", "step")


def test_name_group_kind_and_config_are_those_of_the_run(classifier: Run, recorded: Function) -> None:
    found = recorded(classifier.path)
    (run,) = found.of("run")
    assert run["display_name"] == "tiny-0123"
    assert run["run_group"] == "cnn"
    assert run["job_type"] == "classifier"
    assert run["project"] == "cifarscale"
    assert run["tags"] == ["a", "b"]
    assert run["run_id"] == (classifier.path / "wandb" / "id").read_text().strip()
    recipe = json.loads(json.dumps(resolved(load_training_recipe(str(classifier.path / "recipe.toml")))))
    assert {key: found.config[key] for key in recipe} == recipe
    assert found.config["environment"] == json.loads((classifier.path / "environment.json").read_text())


def test_the_summary_has_the_final_figures(classifier: Run, recorded: Function) -> None:
    summary, result = recorded(classifier.path).summary, classifier.result()
    for split in ("train", "test"):
        for figure, value in result[split].items():
            assert summary[f"{split}/{figure}"] == value


def test_classes_and_the_confusion_of_superclasses_are_tables(classifier: Run, recorded: Function) -> None:
    found = recorded(classifier.path)
    (folder,) = (classifier.path / "wandb").glob("offline-*/files")
    tables = {Path(file).name.partition("_20_")[0]: json.loads((folder / file).read_text()) for file in found.files}
    assert tables.keys() == {"classes", "confusion_matrix_table"}
    confusion = tables["confusion_matrix_table"]["data"]
    assert sum(count for _, _, count in confusion) == 200  # images of the test set
    samples = sum(row[2] for row in tables["classes"]["data"])
    right = sum(row[2] * row[3] for row in tables["classes"]["data"])
    assert samples == 200
    assert right / samples == pytest.approx(classifier.result()["test"]["top1"])
    assert found.media(found.rows[-1]) == tables.keys()


def test_grids_of_samples_stand_at_their_steps(train: Function, recorded: Function, tmp_path: Path) -> None:
    run = train(tmp_path / "gan", OFFLINE, recipe="dcgan")
    found = recorded(run.path)
    with_samples = [row["step"] for row in found.rows if "samples" in found.media(row)]
    assert with_samples == [3, 6]
    assert found.steps == [3, 4, 6]
    (folder,) = (run.path / "wandb").glob("offline-*/files")
    assert [(folder / file).read_bytes() for file in found.files] == list(run.samples().values())
    assert {"discriminator_gradient_norm", "generator_gradient_norm"} <= found.rows[1].keys()


def test_it_changes_nothing_of_the_training(classifier: Run, train: Function, tmp_path: Path) -> None:
    classifier.assert_same_as(train(tmp_path / "alone"))


@pytest.mark.distributed
@pytest.mark.skipif(not dist.is_available(), reason="this torch has no process groups")
def test_four_ranks_write_what_one_writes(
    recipes: Path, shards: Path, classifier: Run, recorded: Function, cifarscale: Function, tmp_path: Path
) -> None:
    where = ("--data", shards, "--run-dir", tmp_path / "four", "--nproc", "4", "--wandb", "offline")
    ended = cifarscale("train", recipes / "cnn.toml", *where)
    assert ended.returncode == 0, ended.stderr
    four, one = recorded(tmp_path / "four"), recorded(classifier.path)
    assert four.steps == one.steps
    assert [row.get("loss") for row in four.rows] == [row.get("loss") for row in one.rows]
    assert {f"{RATE_OF_RANK}{rank}" for rank in range(4)} <= four.rows[-2].keys()
    assert "wandb:" not in ended.stdout + ended.stderr
    (line,) = [line for line in ended.stderr.splitlines() if "W&B" in line]
    assert f"cifarscale sync {tmp_path / 'four'}" in line


def test_a_run_that_was_killed_and_resumed_is_one_run_with_each_step_once(
    recipes: Path, shards: Path, train: Function, recorded: Function, start: Function, tmp_path: Path
) -> None:
    settings = [argument for override in LONG for argument in ("--set", override)]
    run = Run(tmp_path / "killed")
    where = ("--data", shards, "--run-dir", run.path, "--wandb", "offline")
    process = start("train", recipes / "cnn.toml", *settings, *where)
    run.wait_for_step(105, process.poll)
    process.kill()
    process.wait()
    (run.path / ".lease").unlink(missing_ok=True)
    name = (run.path / "wandb" / "id").read_text() if (run.path / "wandb" / "id").exists() else None
    train(run.path, OFFLINE, *LONG)
    found = recorded(run.path)
    assert found.steps == steps_of(run) == list(range(1, 401))
    assert name in (None, found.of("run")[0]["run_id"] + "\n")
    run.assert_same_as(train(tmp_path / "straight", *LONG))


def test_an_interrupted_run_is_told_without_its_last_step_which_may_get_an_evaluation(
    train: Function, recorded: Function, tmp_path: Path
) -> None:
    run = interrupted_at(10, tmp_path / "run", train, OFFLINE, EVERY_STEP)
    assert steps_of(run)[-1] == 10
    assert recorded(run.path).steps == [*range(1, 10)]
    train(run.path, OFFLINE, EVERY_STEP)
    found = recorded(run.path)
    assert found.steps == steps_of(run)
    assert "test_top1" in found.rows[9]


def interrupted_at(step: int, folder: Path, train: Function, *overrides: str, signum: int = signal.SIGTERM) -> Run:
    """A run that is sent a signal in the step before, and so ends with this one; each step is to be logged."""
    from cifarscale.tracking.metrics import MetricsLog

    log = MetricsLog.log

    def log_and_stop(self: MetricsLog, at: int, values: dict[str, float]) -> None:
        log(self, at, values)
        if at == step - 1:
            os.kill(os.getpid(), signum)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(MetricsLog, "log", log_and_stop)
        with pytest.raises(Interrupted):
            train(folder, *overrides)
    return Run(folder)


# Online


def test_a_run_online(train: Function, server: WandbServer, tmp_path: Path) -> None:
    run = train(tmp_path / "online", ONLINE, "tracking.artifact=true", "tracking.group=mine")
    (uploaded,) = server.runs.values()
    assert [row["step"] for row in uploaded.rows] == steps_of(run)
    assert uploaded.exit_code == 0
    assert uploaded.about["displayName"] == "online"
    assert uploaded.about["groupName"] == "mine"
    assert uploaded.summary["test/top1"] == run.result()["test"]["top1"]
    assert any("classes" in file for file in uploaded.files)
    assert run.checkpoints()[-1].name in server.artifact_files


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGUSR2])
def test_a_run_that_goes_on_online_is_one_run_with_each_step_once(
    signum: int, train: Function, server: WandbServer, tmp_path: Path
) -> None:
    run = interrupted_at(10, tmp_path / "run", train, ONLINE, EVERY_STEP, signum=signum)
    (uploaded,) = server.runs.values()
    assert uploaded.exit_code == (255 if signum == signal.SIGTERM else 1)
    assert uploaded.preempting == (signum == signal.SIGUSR2)
    train(run.path, ONLINE, EVERY_STEP)
    assert list(server.runs.values()) == [uploaded]
    assert [row["step"] for row in uploaded.rows] == steps_of(run) == [*range(1, 21)]
    assert [row["_step"] for row in uploaded.rows] == [*range(1, 21)]
    assert "test_top1" in uploaded.rows[9]
    assert uploaded.exit_code == 0


def test_a_run_that_began_offline_goes_on_online_from_its_first_step(
    train: Function, server: WandbServer, tmp_path: Path
) -> None:
    run = interrupted_at(10, tmp_path / "run", train, OFFLINE, EVERY_STEP)
    assert not server.runs
    train(run.path, ONLINE, EVERY_STEP)
    (uploaded,) = server.runs.values()
    assert [row["step"] for row in uploaded.rows] == [*range(1, 21)]


# A server that is ill


@pytest.mark.parametrize("illness", ILLNESSES)
def test_an_ill_server_changes_nothing_and_what_it_lacks_is_uploaded_later(
    illness: str,
    classifier: Run,
    train: Function,
    server: WandbServer,
    cifarscale: Function,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(wandb_sink, "INIT_S", 1)
    monkeypatch.setattr(wandb_sink, "FINISH_S", 2)
    monkeypatch.setattr("cifarscale.tracking.wandb_mode.CHECK_S", 0.5)
    server.illness = illness
    run = train(tmp_path / "run", ONLINE)
    run.assert_same_as(classifier)
    assert not any(uploaded.rows for uploaded in server.runs.values())
    server.illness = ""
    ended = cifarscale("sync", run.path)
    assert ended.returncode == 0, ended.stderr
    (uploaded,) = server.runs.values()
    assert [row["step"] for row in uploaded.rows] == steps_of(run)
    assert uploaded.summary["test/top1"] == run.result()["test"]["top1"]


def test_a_folder_that_cannot_be_written_changes_nothing(
    classifier: Run, train: Function, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cifarscale.tracking.wandb_folder.write_text_atomically", full)
    train(tmp_path / "run", OFFLINE).assert_same_as(classifier)


# Keys


def test_no_key_is_in_the_run_folder(
    recipes: Path, shards: Path, server: WandbServer, cifarscale: Function, tmp_path: Path
) -> None:
    for mode in ("online", "offline"):
        folder = tmp_path / mode
        where = ("--data", shards, "--run-dir", folder, "--wandb", mode, "--set", "training.max_steps=4")
        ended = cifarscale("--debug", "train", recipes / "cnn.toml", *where)
        assert ended.returncode == 0, ended.stderr
        files = [path for path in folder.rglob("*") if path.is_file()]
        assert any(path.suffix == ".wandb" for path in files)
        assert not [path for path in files if KEY.encode() in path.read_bytes()]
        assert KEY not in ended.stdout + ended.stderr


def test_no_key_is_in_the_script_for_sbatch(
    recipes: Path,
    shards: Path,
    server: WandbServer,
    cifarscale: Function,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "no-slurm"))
    where = ("--data", shards, "--run-dir", tmp_path / "run", "--wandb", "online")
    ended = cifarscale("submit", recipes / "cnn.toml", *where, "--dry-run", "--profile", "cpu")
    assert ended.returncode == 0, ended.stderr
    assert "sbatch" in ended.stdout.lower()
    assert KEY not in ended.stdout + ended.stderr


def test_a_profile_takes_no_key(tmp_path: Path) -> None:
    profile = tmp_path / "mine.toml"
    profile.write_text(f'[environment]\nWANDB_API_KEY = "{KEY}"\n', encoding="utf-8")
    with pytest.raises(ConfigError, match="WANDB_API_KEY") as caught:
        load_profile(str(profile))
    assert KEY not in str(caught.value)
