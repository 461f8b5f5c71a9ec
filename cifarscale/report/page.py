"""Runs and sweeps as one HTML file that needs nothing else: no network, no other file, and scripts only for comfort."""

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from cifarscale import __version__
from cifarscale.config.keys import dotted
from cifarscale.config.recipe import resolved
from cifarscale.files import write_text_atomically
from cifarscale.report.about import About, about
from cifarscale.report.logs import compared_drawings
from cifarscale.report.parts import Cell, Drawing, Table, percent, shown

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
    abouts = [about(folder, f"run-{i}", data) for i, folder in enumerate(folders, 1)]
    write_text_atomically(out, render(abouts))


def render(abouts: Sequence[About]) -> str:
    """The page. All that comes from folders is escaped, and no script runs but the page's own, by its hash."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "shown": shown}
    script = (_TEMPLATES / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("page.html").render(
        abouts=abouts,
        compared=_compared(abouts),
        keys=_compared_keys(abouts),
        policy=f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'",
        style=Markup((_TEMPLATES / "report.css").read_text(encoding="utf-8")),  # the page's own
        script=Markup(script),  # the page's own
        version=__version__,
    )


def _compared(abouts: Sequence[About]) -> list[Drawing]:
    """Logs side by side, for each task that several are of."""
    found = []
    for task in dict.fromkeys(each.job.task for each in abouts):
        runs = {f"{i}. {each.title}": each.lines for i, each in enumerate(abouts, 1) if each.job.task == task}
        found += compared_drawings(runs, task)
    return found


def _compared_keys(abouts: Sequence[About]) -> list[Table]:
    """The keys that recipes of the same task do not have in common."""
    found = []
    for task in dict.fromkeys(each.job.task for each in abouts):
        same = [each for each in abouts if each.job.task == task]
        recipes = [dict(dotted(resolved(each.job))) for each in same]
        keys = dict.fromkeys(
            key for recipe in recipes for key in recipe if key not in ("description", "name", "data.fingerprint")
        )
        differing = [key for key in keys if len({repr(recipe.get(key)) for recipe in recipes}) > 1]
        if len(same) > 1 and differing:
            rows = [[Cell(key), *(Cell(shown(recipe.get(key))) for recipe in recipes)] for key in differing]
            columns = ["key", *(each.title for each in same)]
            found.append(Table(f"Keys in which the recipes of task {task} differ", columns, rows))
    return found
