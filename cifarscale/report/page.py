"""Runs and sweeps as one HTML file that needs nothing else: no network, no other file, and scripts only for comfort."""

import base64
import hashlib
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from cifarscale import __version__
from cifarscale.config.keys import dotted
from cifarscale.config.recipe import resolved
from cifarscale.report.run_part import RunPart, run_part
from cifarscale.runs.files import write_text_atomically
from cifarscale.tasks.base import task_of
from cifarscale.tracking.charts import compared_drawings
from cifarscale.tracking.parts import Cell, Drawing, Section, Table, shown

_TEMPLATES = Path(__file__).parent / "templates"
REPORT_NAME = "report.html"


def default_report(folders: Sequence[Path]) -> Path:
    """In the folder of what is reported; of several things, here."""
    return folders[0] / REPORT_NAME if len(folders) == 1 else Path(REPORT_NAME)


def write_report(folders: Sequence[Path], out: Path, data: str | None = None) -> None:
    """Writes a page about runs and sweeps.

    Args:
        data: a data set or a folder of shards, for images; None for what each recipe names.
    Raises: RunError if one is not a run's or a sweep's folder, or cannot be read.
    """
    write_text_atomically(out, render([run_part(folder, f"run-{i}", data) for i, folder in enumerate(folders, 1)]))


def render(runs: Sequence[RunPart]) -> str:
    """The page. All that comes from folders is escaped, and no script runs but the page's own, by its hash."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"shown": shown, "side_by_side": _side_by_side}
    script = (_TEMPLATES / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("page.html").render(
        runs=runs,
        compared=_compared(runs),
        keys=_compared_keys(runs),
        policy=f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'",
        style=Markup((_TEMPLATES / "report.css").read_text(encoding="utf-8")),  # the page's own
        script=Markup(script),  # the page's own
        version=__version__,
    )


def _side_by_side(sections: Sequence[Section]) -> list[list[Section]]:
    """Groups of sections that follow each other: those that take half of the page's width, and the others."""
    return [list(group) for _, group in groupby(sections, key=lambda section: section.is_half)]


def _compared(runs: Sequence[RunPart]) -> list[Drawing]:
    """Logs side by side, for each task that several are of."""
    drawings = []
    for task, same in _by_task(runs).items():
        logs = {f"{i}. {run.title}": run.lines for i, run in enumerate(runs, 1) if run in same}
        drawings += compared_drawings(logs, task_of(same[0].recipe).view.compared(), task)
    return drawings


def _compared_keys(runs: Sequence[RunPart]) -> list[Table]:
    """The keys that recipes of the same task do not have in common."""
    tables = []
    for task, same in _by_task(runs).items():
        recipes = [dict(dotted(resolved(run.recipe))) for run in same]
        keys = dict.fromkeys(
            key for recipe in recipes for key in recipe if key not in ("description", "name", "data.fingerprint")
        )
        differing = [key for key in keys if len({repr(recipe.get(key)) for recipe in recipes}) > 1]
        if len(same) > 1 and differing:
            rows = [[Cell(key), *(Cell(shown(recipe.get(key))) for recipe in recipes)] for key in differing]
            columns = ["key", *(run.title for run in same)]
            tables.append(Table(f"Keys in which the recipes of task {task} differ", columns, rows))
    return tables


def _by_task(runs: Sequence[RunPart]) -> dict[str, list[RunPart]]:
    tasks = dict.fromkeys(run.recipe.task for run in runs)
    return {task: [run for run in runs if run.recipe.task == task] for task in tasks}
