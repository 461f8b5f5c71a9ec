"""The dashboard shows nothing that runs do not report, and W&B's library takes it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cifarscale.cli.main import main
from cifarscale.tracking.dashboard import CONFIG, SECTIONS, sections
from cifarscale.tracking.metrics import RATE_OF_RANK

Function = Callable[..., Any]
ELSEWHERE = {"gpu_memory_gb", "fid", "frechet_distance", RATE_OF_RANK}
"""Reported on a GPU, with `distance.features`, which asks for a trained classifier, and by several ranks: not by a tiny
run here."""


@pytest.fixture(scope="module")
def reported(train: Function, recorded: Function, tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """All that a classifier with and one without a validation split, and a generator, tell W&B."""
    folder = tmp_path_factory.mktemp("runs")
    offline = "tracking.wandb=offline"
    runs = [
        train(folder / "cnn", offline),
        train(folder / "validated", offline, "data.num_validation=107"),
        train(folder / "dcgan", offline, recipe="dcgan"),
    ]
    names: set[str] = set()
    for run in runs:
        found = recorded(run.path)
        names |= found.summary.keys() | {CONFIG + key for key in dotted(found.config)}
        for row in found.rows:
            names |= row.keys() | found.media(row)
    return names


def dotted(values: dict[str, Any], prefix: str = "") -> set[str]:
    return {
        key
        for name, value in values.items()
        for key in (dotted(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name})
    }


def test_every_panel_shows_what_runs_report(reported: set[str]) -> None:
    panels = [panel for section in SECTIONS.values() for panel in section]
    shown = {metric for panel in panels for metric in panel.metrics}
    assert shown - ELSEWHERE <= reported
    assert {panel.metrics for panel in panels if panel.kind == "family"} == {(RATE_OF_RANK,)}


def test_what_no_tiny_run_reports_stands_in_the_code_that_reports_it() -> None:
    package = Path(__file__).parents[2] / "cifarscale"
    code = "".join(
        (package / file).read_text() for file in ("training/engine.py", "training/timing.py", "tasks/generator_view.py")
    )
    assert all(f'"{name}' in code for name in ELSEWHERE)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the library's own
def test_the_workspaces_library_takes_every_panel() -> None:
    pytest.importorskip("wandb_workspaces")
    made = {section.name: section._to_model().panels for section in sections()}
    assert {name: len(panels) for name, panels in made.items()} == {
        name: len(panels) for name, panels in SECTIONS.items()
    }


def test_a_dry_run_shows_it_without_an_account() -> None:
    done = CliRunner().invoke(main, ["dashboard", "--dry-run"])
    assert done.exit_code == 0, done.output
    assert all(section in done.output for section in SECTIONS)


def test_without_an_account_it_says_so_in_one_line() -> None:
    done = CliRunner().invoke(main, ["dashboard"])
    assert done.exit_code == 1
    assert "wandb login" in done.output
    assert len(done.output.splitlines()) == 1
