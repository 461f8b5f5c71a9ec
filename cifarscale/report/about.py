"""A run or a sweep as a section of a page."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cifarscale.config.cnn import ClassifierRecipe
from cifarscale.config.dcgan import GanRecipe
from cifarscale.config.keys import dotted
from cifarscale.config.load import recipe_toml
from cifarscale.config.recipe import Recipe, TrainingRecipe
from cifarscale.config.sweep import SweepRecipe
from cifarscale.errors import RunError
from cifarscale.report.classifier import Mistakes, find_mistakes
from cifarscale.report.generator import Grid, Neighbours, distance_facts, distances, grids, measured, nearest
from cifarscale.report.logs import Line, restarts, run_drawings
from cifarscale.report.parts import Drawing, Fact, Table, data_uri, percent, shown
from cifarscale.report.recipes import Difference, command, differences
from cifarscale.report.sweeps import best_differences, sweep_drawings, sweep_facts, trials_table
from cifarscale.runs.run_folder import RunFolder
from cifarscale.slurm.status import folder_state
from cifarscale.sweep.trials import SweepFolder
from cifarscale.tracking.metrics import read_metrics


@dataclass
class About:
    """All that a page says of a run or a sweep.

    Attributes:
        key: names it in ids of the page.
        named: the recipe that differences are from, empty if there is none of that name.
        best: the keys of a sweep's best trial, with those of its base.
    """

    key: str
    title: str
    job: Recipe
    state: str
    facts: list[Fact]
    drawings: list[Drawing]
    recipe: str
    recipe_uri: str
    named: str
    changed: list[Difference]
    command: str
    environment: list[Fact]
    lines: list[Line] = field(default_factory=list)
    mistakes: Mistakes | None = None
    grids: list[Grid] = field(default_factory=list)
    neighbours: Neighbours | None = None
    distances: Table | None = None
    trials: Table | None = None
    best: list[Difference] = field(default_factory=list)


def about(path: Path, key: str, data: str | None) -> About:
    """Reads a folder, and computes what a page shows of it. Nothing is written.

    Raises: RunError if it is not a run's or a sweep's folder, or cannot be read.
    """
    folder = RunFolder(path)
    job = folder.load_recipe()
    try:
        found = _begin(folder, job, key)
        if isinstance(job, SweepRecipe):
            _add_sweep(found, SweepFolder(path), job)
        elif isinstance(job, ClassifierRecipe):
            found.mistakes = find_mistakes(path, job, data)
        elif isinstance(job, GanRecipe):
            found.grids = grids(folder)
            figures = measured(folder)
            found.facts[:0] = distance_facts(figures)
            found.distances = distances(figures)
            found.neighbours = nearest(path, job, data)
        return found
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        raise RunError(f"{path} cannot be read ({what}). Leave it out, or restore its files") from error


def _begin(folder: RunFolder, job: Recipe, key: str) -> About:
    result, lines, environment = folder.result(), read_metrics(folder.metrics), folder.environment()
    named, changed = differences(job)
    toml = recipe_toml(job)
    starts = restarts(
        lines, environment.get("starts") or [environment[name] for name in ("started",) if name in environment]
    )
    return About(
        key=key,
        title=folder.path.resolve().name,
        job=job,
        state=folder_state(folder, bool(lines)),
        facts=_facts(job, result, lines),
        drawings=run_drawings(key, lines, job.task, starts),
        recipe=toml,
        recipe_uri=data_uri(toml.encode(), "text/plain"),
        named=named,
        changed=changed,
        command=command(job, environment),
        environment=_environment(environment),
        lines=[*lines],
    )


def _add_sweep(found: About, folder: SweepFolder, sweep: SweepRecipe) -> None:
    folder.load()
    found.state = folder_state(RunFolder(folder.path), folder.table.is_file())
    found.facts = sweep_facts(folder, sweep, folder.result())
    found.drawings = sweep_drawings(folder, sweep, found.key)
    found.trials = trials_table(folder, sweep)
    found.best = best_differences(folder, sweep)
    found.changed = []


def _facts(job: Recipe, result: Mapping[str, Any] | None, lines: Sequence[Line]) -> list[Fact]:
    """The figures that one looks for first."""
    facts = []
    for split in ("test", "validation", "train"):
        if result and isinstance(result.get(split), dict):
            figures = result[split]
            note = f"top-5 {percent(figures['top5'])}, loss {figures['loss']:.3f}"
            facts.append(Fact(f"{split} top-1", percent(figures["top1"]), note))
    if result and isinstance(distance := result.get("distance"), float):  # of a job `fid`
        facts.append(Fact(str(result["metric"]), f"{distance:.2f}", f"against {result['against']}"))
    if result is None:
        facts += _facts_so_far(job, lines)
    for key, form in _OF_A_RESULT.items():
        if result and key in result:
            facts.append(Fact(*form(result[key])))
    return facts


def _facts_so_far(job: Recipe, lines: Sequence[Line]) -> list[Fact]:
    facts = []
    for key, name in (("validation_top1", "validation top-1"), ("test_top1", "test top-1")):
        if line := next((line for line in reversed(lines) if key in line), None):
            facts.append(Fact(f"{name} so far", percent(line[key]), f"at step {line['step']:,}"))
    if isinstance(job, TrainingRecipe):
        step = max((line["step"] for line in lines), default=0)
        facts.append(Fact("step", f"{step:,}", f"of {job.training.max_steps:,}"))
    return facts


_OF_A_RESULT: dict[str, Callable[[Any], tuple[str, str]]] = {
    "parameters": lambda value: ("parameters", f"{value:,}"),
    "steps": lambda value: ("steps", f"{value:,}"),
    "images_per_second": lambda value: ("images a second", f"{value:,.0f}"),
    "seconds": lambda value: ("time in steps", f"{value / 60:,.1f} min" if value >= 60 else f"{value:.1f} s"),
}


def _environment(environment: Mapping[str, Any]) -> list[Fact]:
    """What the run ran on; how it was called, where a person did."""
    facts = []
    for key, value in dotted({key: value for key, value in environment.items() if key not in ("command", "starts")}):
        if value is not None:
            facts.append(Fact(key.replace("_", " ").replace(".", " "), shown(value)))
    words = environment.get("command")
    if isinstance(words, list) and words and Path(str(words[0])).name in ("cifarscale", "__main__.py"):
        facts.append(Fact("called as", shlex.join(["cifarscale", *map(str, words[1:])])))
    starts = environment.get("starts", [])
    return [*facts, *([Fact("starts", str(len(starts)))] if len(starts) > 1 else [])]
