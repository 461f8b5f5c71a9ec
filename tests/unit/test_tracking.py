"""Whether W&B is on, and the rows that it gets: without W&B itself."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from cifarscale.cli.main import main
from cifarscale.config.load import load_recipe, load_training_recipe, recipe_hash
from cifarscale.config.recipe import TrackingConfig
from cifarscale.errors import ConfigError
from cifarscale.sweeps.recipe import SweepRecipe
from cifarscale.sweeps.space import base_of, sweep_hash
from cifarscale.tracking import wandb_mode as modes
from cifarscale.tracking.metrics import MetricsLog
from cifarscale.tracking.wandb_folder import WandbFolder
from cifarscale.tracking.wandb_mode import wandb_mode, why_unreachable
from cifarscale.tracking.wandb_rows import Row, Rows, flat

HOST = "https://wandb.example.org"


@pytest.fixture(autouse=True)
def netrc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The file of logins, which is not there yet; nobody has an account."""
    for name in ("API_KEY", "MODE", "PROJECT", "BASE_URL", "ENTITY", "TAGS", "RUN_GROUP", "IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    path = tmp_path / "netrc"
    monkeypatch.setenv("NETRC", str(path))
    monkeypatch.setattr(modes, "is_installed", lambda: True)
    return path


def auto() -> str:
    return wandb_mode(TrackingConfig(wandb="auto"))


# Modes


def test_it_is_off_unless_somebody_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "key")
    assert wandb_mode(load_training_recipe("cnn").tracking) == "off"


def test_auto_is_off_for_whoever_has_no_account() -> None:
    assert auto() == "off"


@pytest.mark.parametrize(
    ("variable", "value", "mode"),
    [
        ("WANDB_API_KEY", "key", "online"),
        ("WANDB_PROJECT", "mine", "online"),
        ("WANDB_MODE", "online", "online"),
        ("WANDB_MODE", "offline", "offline"),
        ("WANDB_MODE", "dryrun", "offline"),
        ("WANDB_MODE", "disabled", "off"),
    ],
)
def test_auto_goes_by_the_environment(variable: str, value: str, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, value)
    assert auto() == mode


@pytest.mark.parametrize("host", ["api.wandb.ai", "api.forge.coreweave.com"])
def test_auto_is_on_after_a_login(host: str, netrc: Path) -> None:
    netrc.write_text(f"machine {host} login user password key\n")
    assert auto() == "online"


def test_a_login_for_another_server_is_none(netrc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc.write_text("machine wandb.example.org login user password key\n")
    assert auto() == "off"
    monkeypatch.setenv("WANDB_BASE_URL", HOST)
    assert auto() == "online"


def test_a_damaged_netrc_is_none(netrc: Path) -> None:
    netrc.write_text("nonsense")
    assert auto() == "off"


def test_without_wandb_auto_is_off_and_anything_else_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "key")
    monkeypatch.setattr(modes, "is_installed", lambda: False)
    assert auto() == "off"
    assert wandb_mode(TrackingConfig()) == "off"
    with pytest.raises(ConfigError, match="pip install"):
        wandb_mode(TrackingConfig(wandb="offline"))


def test_without_a_key_the_server_is_not_asked() -> None:
    assert "wandb login" in why_unreachable(HOST)


def test_a_machine_without_a_network_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "key")
    assert "does not answer" in why_unreachable("http://127.0.0.1:9")


def test_a_run_without_wandb_does_not_import_it() -> None:
    program = "import sys, cifarscale.training.run; sys.exit('wandb' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


# Recipes


@pytest.mark.parametrize("command", ["train", "submit", "sweep"])
def test_commands_that_train_take_a_mode(command: str) -> None:
    done = CliRunner().invoke(main, [command, "cnn", "--wandb", "sometimes"])
    assert done.exit_code == 2
    assert "'auto', 'online', 'offline', 'off'" in done.output


def test_a_tracked_sweep_is_the_same_sweep_of_tracked_trials() -> None:
    plain, tracked = load_recipe("sweep-cnn"), load_recipe("sweep-cnn", ["set.tracking.wandb=offline"])
    assert isinstance(plain, SweepRecipe)
    assert isinstance(tracked, SweepRecipe)
    assert sweep_hash(plain) == sweep_hash(tracked)
    assert recipe_hash(base_of(plain)) == recipe_hash(base_of(tracked))
    assert base_of(tracked).tracking.wandb == "offline"


# Names


def test_a_trial_is_grouped_by_its_sweep(tmp_path: Path) -> None:
    recipe = load_training_recipe("cnn")
    trial = tmp_path / "sweep-cnn-1234" / "trials" / "sweep-cnn-5678"
    trial.mkdir(parents=True)
    assert WandbFolder(trial).group(recipe) == "cnn"
    (trial.parents[1] / "table.json").touch()
    assert WandbFolder(trial).group(recipe) == "sweep-cnn-1234"
    assert WandbFolder(trial).group(load_training_recipe("cnn", ["tracking.group=mine"])) == "mine"


def test_variables_of_wandb_are_respected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, folder = load_training_recipe("cnn", ['tracking.tags=["a"]']), WandbFolder(tmp_path)
    assert (folder.project(recipe.tracking), folder.tags(recipe.tracking)) == ("cifarscale", ["a"])
    monkeypatch.setenv("WANDB_PROJECT", "other")
    monkeypatch.setenv("WANDB_TAGS", "b, a")
    monkeypatch.setenv("WANDB_RUN_GROUP", "mine")
    assert (folder.project(recipe.tracking), folder.tags(recipe.tracking)) == ("other", ["a", "b"])
    assert folder.group(recipe) == "mine"


def test_the_id_is_drawn_once(tmp_path: Path) -> None:
    assert WandbFolder(tmp_path).make_id() == WandbFolder(tmp_path).make_id() != WandbFolder(tmp_path / "b").make_id()


# Rows


def test_a_row_is_given_when_a_later_step_has_reported(tmp_path: Path) -> None:
    log, rows = MetricsLog(tmp_path / "metrics.jsonl"), Rows(tmp_path, after=-1)
    assert list(rows.new()) == []
    log.log(2, {"loss": 1.0})
    assert list(rows.new()) == []
    log.log(2, {"test_top1": 0.5})
    log.log(4, {"loss": 0.9})
    assert list(rows.new()) == [Row(2, {"step": 2, "loss": 1.0, "test_top1": 0.5})]
    assert list(rows.new()) == []
    assert [row.step for row in rows.new(to_the_end=True)] == [4]
    assert list(rows.new(to_the_end=True)) == []


def test_what_the_server_has_is_left_out(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for step in range(5):
        log.log(step, {"loss": 1.0})
    assert [row.step for row in Rows(tmp_path, after=2).new(to_the_end=True)] == [3, 4]


def test_a_line_that_is_being_written_is_read_when_it_is_whole(tmp_path: Path) -> None:
    path, rows = tmp_path / "metrics.jsonl", Rows(tmp_path, after=-1)
    line = json.dumps({"step": 1, "loss": 0.5}) + "\n"
    path.write_text(line[:9])
    assert list(rows.new(to_the_end=True)) == []
    path.write_text(line)
    assert list(rows.new(to_the_end=True)) == [Row(1, {"step": 1, "loss": 0.5})]


def test_a_grid_of_samples_has_a_row_of_its_own_where_nothing_else_was_reported(tmp_path: Path) -> None:
    log, rows = MetricsLog(tmp_path / "metrics.jsonl"), Rows(tmp_path, after=-1)
    grid = tmp_path / "samples" / "step-00000003.png"
    grid.parent.mkdir()
    grid.touch()
    log.log(2, {"loss": 1.0})
    log.log(4, {"loss": 1.0})
    assert list(rows.new()) == [Row(2, {"step": 2, "loss": 1.0}), Row(3, {}, grid)]
    assert [row.step for row in rows.new(to_the_end=True)] == [4]


def test_nested_figures_are_named_by_where_they_stand() -> None:
    values = {"test": {"top1": 0.5, "classes": {"apple": 1.0}}, "device": "CPU", "list": [1], "none": None}
    assert flat(values) == {"test/top1": 0.5, "test/classes/apple": 1.0, "device": "CPU"}
