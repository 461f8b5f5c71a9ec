"""How sweeps are shown: their trials, ranked."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifarscale.config.keys import dotted
from cifarscale.config.recipe import resolved
from cifarscale.errors import short_path, typed
from cifarscale.runs.run_folder import RunFolder
from cifarscale.sweeps.recipe import SweepRecipe
from cifarscale.sweeps.trials import FAILED, REPEATED, SweepFolder, Trial, metric_name, origin_of, ranked, shown_changes
from cifarscale.tasks.view import View

if TYPE_CHECKING:
    from rich.table import Table as TextTable

    from cifarscale.tracking.charts import Line
    from cifarscale.tracking.parts import Cell, Drawing, Fact, Section, Table


class SweepView(View):
    chart_title = "Trials"

    def outcome(self, result: Mapping[str, Any]) -> str:
        best = result["best"]
        if best is None:
            return f"no trial of {result['trials']} produced a result"
        return f"{result['metric']} {best['value']:.4f} in trial {best['trial']}"

    def has_begun(self, folder: RunFolder) -> bool:
        return SweepFolder(folder.path).table.is_file()

    def facts(
        self, folder: RunFolder, recipe: Any, result: Mapping[str, Any] | None, lines: "Sequence[Line]"
    ) -> "list[Fact]":
        from cifarscale.tracking.parts import Fact

        trials = SweepFolder(folder.path)
        trials.load()
        order = ranked(trials.trials, recipe.mode)
        begun = sum(trial.origin is None for trial in trials.trials)
        facts = [Fact("trials", f"{begun} of {recipe.num_trials}")]
        if more := len(trials.trials) - begun:
            facts.append(Fact("from another's checkpoint", str(more)))
        if order:
            note = f"trial {order[0].number}, {split_of(recipe)}"
            facts.insert(0, Fact(f"best {metric_name(recipe.metric)}", metric_text(recipe, order[0].value), note))
        states: dict[str, int] = {}
        for trial in trials.trials:
            states[trial.state] = states.get(trial.state, 0) + 1
        facts += [Fact(state, str(number)) for state, number in states.items()]
        if result and result.get("ended"):
            facts.append(Fact("ended early", str(result["ended"])))
        return facts

    def drawings(self, folder: RunFolder, recipe: Any, lines: "Sequence[Line]", key: str) -> "list[Drawing]":
        from cifarscale.sweeps.plots import sweep_curves, sweep_parallel
        from cifarscale.tracking.parts import drawing

        trials = SweepFolder(folder.path)
        trials.load()
        order = ranked(trials.trials, recipe.mode)
        curves, parallel = sweep_curves(trials, recipe), sweep_parallel(trials, recipe)
        best = f"Trial {order[0].number} is the best with {metric_text(recipe, order[0].value)}." if order else ""
        metric, drawings = metric_name(recipe.metric), []
        if curves is not None:
            spoken = f"The {metric} of {len(order)} trials over steps. {best} The table of trials has the values."
            drawings.append(drawing(curves, f"{key}-curves", "All trials", spoken))
        if parallel is not None:
            spoken = f"What each of {len(order)} trials tried, and its {metric}. {best} The table has all values."
            caption = "A line is a trial; the stronger its colour, the better it is."
            drawings.append(drawing(parallel, f"{key}-parallel", "What was tried", spoken, caption))
        return drawings

    def sections(self, folder: RunFolder, recipe: Any, data: str | None) -> "list[Section]":
        from cifarscale.tracking.parts import Section

        trials = SweepFolder(folder.path)
        trials.load()
        return [Section("trials", "", trials_table(trials, recipe)), *_best(trials, recipe)]

    def print_result(self, result: Mapping[str, Any], run_dir: Path, in_full: bool = False) -> None:
        import click
        from rich.console import Console

        folder = SweepFolder(run_dir)
        folder.load()
        order = ranked(folder.trials, result["mode"])
        if order:
            table = trials_text(order, result["metric"])
            is_validation = result["metric"].startswith("validation")
            split = "on the validation split" if is_validation else "the distance to the images that the recipe names"
            table.title = f"{result['name']}: {len(folder.trials)} trials by {result['metric']}, the best first"
            table.caption = f"{result['metric']} is {split}; no trial was chosen by the test set"
            Console(markup=False).print(table)
        for trial in folder.trials:
            if trial.state in (FAILED, REPEATED):
                click.echo(f"trial {trial.number} {trial.state}: {trial.reason}")
        if result["ended"]:
            click.echo(f"the sweep ended early: {result['ended']}")
        if result["best"] is None:
            click.echo("No trial produced a result.")
            return
        for path in sorted(folder.plots.glob("*.png")):
            click.echo(f"plot    {short_path(path)}")
        click.echo(f"best    {short_path(folder.best)} (trial {result['best']['trial']})")
        if result["best"]["overrides"].get("later"):
            click.echo("        it changes keys in the middle of the run, as that trial and those before it did")
        click.echo(f"next    cifarscale train {typed(short_path(folder.best))}")


def trials_text(trials: Sequence[Trial], metric: str, in_full: bool = True) -> "TextTable":
    """A row a trial; of one line, where the changed keys are not to be seen in full."""
    from rich.table import Column

    from cifarscale.log import plain_table

    columns = [
        Column("trial", justify="right"),
        Column("state", no_wrap=True),
        Column("step", justify="right"),
        Column(metric, justify="right"),
        Column("changed keys", overflow="fold" if in_full else "ellipsis", no_wrap=not in_full),
    ]
    table = plain_table(*columns)
    for trial in trials:
        value = "–" if trial.value is None else f"{trial.value:.4f}"
        table.add_row(str(trial.number), trial.state, f"{trial.step:,}", value, shown_changes(trial))
    return table


def trials_table(folder: SweepFolder, sweep: SweepRecipe) -> "Table":
    """All trials, the best first, those without a value last."""
    from cifarscale.tracking.parts import Cell, Table

    order = ranked(folder.trials, sweep.mode)
    rest = [trial for trial in folder.trials if trial not in order]
    keys = list(sweep.space)
    rows = []
    for place, trial in enumerate([*order, *rest], 1):
        value = trial.value
        cells = [
            Cell(str(trial.number), trial.number, is_number=True),
            Cell(str(place) if value is not None else "–", place, is_number=True),
            Cell(": ".join(filter(None, (trial.state, trial.reason or origin_of(trial)))), trial.state),
            Cell(f"{trial.step:,}", trial.step, is_number=True),
            Cell(metric_text(sweep, value), "" if value is None else value, is_number=True),
        ]
        rows.append([*cells, *(_value(trial.overrides.get(key)) for key in keys)])
    columns = ["trial", "rank", "state", "step", metric_name(sweep.metric), *keys]
    return Table(
        f"{len(folder.trials)} trials by {metric_name(sweep.metric)}; {split_note(sweep)}",
        columns,
        rows,
        is_sortable=True,
    )


def split_note(sweep: SweepRecipe) -> str:
    """Which images the trials were compared on."""
    if sweep.metric.startswith("validation"):
        return "on the validation split, which is cut from the training set; no trial was chosen by the test set"
    return "as training itself measured it; no trial was chosen by the test set"


def split_of(sweep: SweepRecipe) -> str:
    return "validation split" if sweep.metric.startswith("validation") else "measured in training"


def _best(folder: SweepFolder, sweep: SweepRecipe) -> "list[Section]":
    """The searched keys, as the base has them and as the best trial does."""
    from cifarscale.tracking.parts import Cell, Section, Table, shown

    order = ranked(folder.trials, sweep.mode)
    if not order or not folder.base.is_file() or not order[0].overrides:
        return []
    base = dict(dotted(resolved(folder.load_base())))
    rows = [[Cell(key), Cell(shown(value)), Cell(shown(base.get(key)))] for key, value in order[0].overrides.items()]
    note = (
        "best.toml in the sweep's folder trains this on all samples, and looks at the test set once, at its end: "
        "cifarscale train best.toml"
    )
    table = Table("Keys of the space", ["key", "the best trial", "the base"], rows)
    return [Section("best", "What the best trial changes", table, note)]


def metric_text(sweep: SweepRecipe, value: float | None) -> str:
    from cifarscale.tracking.parts import percent

    if value is None:
        return "–"
    return percent(value) if sweep.metric.endswith(("top1", "top5")) else f"{value:.4g}"


def _value(value: Any) -> "Cell":
    from cifarscale.tracking.parts import Cell, shown

    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return Cell(shown(value), value if is_number else "" if value is None else str(value), is_number)
