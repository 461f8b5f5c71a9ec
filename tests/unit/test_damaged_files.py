"""One damaged file of a run does not block the run, or the others."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from cifarscale.cli.main import main
from cifarscale.config.load import load_training_recipe
from cifarscale.data.manifest import Manifest
from cifarscale.runs.run_folder import RunFolder
from cifarscale.tasks.training import resolve
from cifarscale.tracking.metrics import MetricsLog, MetricsTail, read_metrics
from cifarscale.training import engine

LINES = [json.dumps({"step": step, "loss": 1.0, "images_per_second": 9.0}) for step in (1, 2, 3)]


@pytest.mark.parametrize("damage", ["", "\0" * 40, '{"step": 2, "lo', "[1, 2]", '{"loss": 1}', "nonsense"])
def test_a_damaged_line_is_left_out_and_repaired_when_the_run_goes_on(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f"{LINES[0]}\n{damage}\n{LINES[1]}\n{LINES[2][:9]}")
    assert [line["step"] for line in read_metrics(path)] == [1, 2]
    assert [line["step"] for line in MetricsTail(path).new_lines()] == [1, 2]
    MetricsLog(path).started(2)
    MetricsLog(path).log(3, {"loss": 1.0})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]


def test_bytes_that_are_no_text_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(LINES[0].encode() + b"\n\xff\xfe{\n" + LINES[1].encode() + b"\n")
    assert [line["step"] for line in read_metrics(path)] == [1, 2]


@pytest.mark.parametrize("content", ["", "{", "\0\0", "[]", "3"])
def test_a_damaged_result_does_not_count(tmp_path: Path, content: str) -> None:
    (tmp_path / "result.json").write_text(content)
    assert RunFolder(tmp_path).result() is None


@pytest.mark.parametrize("command", ["runs", "status"])
@pytest.mark.parametrize("content", ["", "task = ", "\0\0\0"])
def test_a_folder_that_cannot_be_read_is_a_row_that_says_so(
    tmp_path: Path, shards: Path, command: str, content: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")
    for name in ("good", "spoilt"):
        folder = RunFolder(tmp_path / "runs" / name)
        folder.prepare(resolve(load_training_recipe("demo"), shards), Manifest.load(shards))
        about = {
            "job_id": "1",
            "folder": "",
            "profile": "cpu",
            "nodes": 1,
            "world_size": 1,
            "submitted": "",
            "command": [],
        }
        folder.slurm.mkdir()
        (folder.slurm / "jobs.jsonl").write_text(json.dumps(about) + "\n")
    (tmp_path / "runs/spoilt/recipe.toml").write_text(content)
    done = CliRunner().invoke(main, [command])
    assert done.exit_code == 0, done.output
    assert "good" in done.stdout
    assert "damaged" in done.stdout
    assert "recipe.toml" in done.stdout


def test_lines_are_on_disk_before_the_checkpoint_after_which_nothing_computes_them_again(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    flush, save = MetricsLog.flush, engine.save_checkpoint
    monkeypatch.setattr(MetricsLog, "flush", lambda log: (order.append("lines"), flush(log)))
    monkeypatch.setattr(engine, "save_checkpoint", lambda *state: (order.append("checkpoint"), save(*state)))
    sets = ("training.max_steps=4", "training.checkpoint_every=2", "training.log_every=1", "evaluation.every=0")
    where = ["--data", str(shards), "--run-dir", str(tmp_path / "run")]
    done = CliRunner().invoke(main, ["train", "demo", *where, *(part for each in sets for part in ("--set", each))])
    assert done.exit_code == 0, done.output
    assert order == ["lines", "checkpoint"] * 2
