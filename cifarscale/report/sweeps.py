"""The trials of a sweep, ranked."""

from collections.abc import Mapping
from typing import Any

from cifarscale.config.keys import dotted
from cifarscale.config.load import load_training_recipe
from cifarscale.config.recipe import resolved
from cifarscale.config.sweep import SweepRecipe
from cifarscale.report.parts import Cell, Drawing, Fact, Table, drawing, percent, shown
from cifarscale.report.recipes import Difference
from cifarscale.sweep.plots import metric_name, sweep_curves, sweep_parallel
from cifarscale.sweep.trials import SweepFolder, origin_of, ranked


def trials_table(folder: SweepFolder, sweep: SweepRecipe) -> Table:
    """All trials, the best first, those without a figure last."""
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


def sweep_facts(folder: SweepFolder, sweep: SweepRecipe, result: Mapping[str, Any] | None) -> list[Fact]:
    order = ranked(folder.trials, sweep.mode)
    begun = sum(trial.origin is None for trial in folder.trials)
    facts = [Fact("trials", f"{begun} of {sweep.num_trials}")]
    if more := len(folder.trials) - begun:
        facts.append(Fact("from another's checkpoint", str(more)))
    if order:
        note = f"trial {order[0].number}, {split_of(sweep)}"
        facts.insert(0, Fact(f"best {metric_name(sweep.metric)}", metric_text(sweep, order[0].value), note))
    states: dict[str, int] = {}
    for trial in folder.trials:
        states[trial.state] = states.get(trial.state, 0) + 1
    facts += [Fact(state, str(number)) for state, number in states.items()]
    if result and result.get("ended"):
        facts.append(Fact("ended early", str(result["ended"])))
    return facts


def split_of(sweep: SweepRecipe) -> str:
    return "validation split" if sweep.metric.startswith("validation") else "measured in training"


def sweep_drawings(folder: SweepFolder, sweep: SweepRecipe, name: str) -> list[Drawing]:
    """The curves of all trials, and what each tried."""
    order = ranked(folder.trials, sweep.mode)
    curves, parallel = sweep_curves(folder, sweep), sweep_parallel(folder, sweep)
    best = f"Trial {order[0].number} is the best with {metric_text(sweep, order[0].value)}." if order else ""
    metric, found = metric_name(sweep.metric), []
    if curves is not None:
        spoken = f"The {metric} of {len(order)} trials over steps. {best} The table of trials has the figures."
        found.append(drawing(curves, f"{name}-curves", "All trials", spoken))
    if parallel is not None:
        spoken = f"What each of {len(order)} trials tried, and its {metric}. {best} The table has all values."
        caption = "A line is a trial; the stronger its colour, the better it is."
        found.append(drawing(parallel, f"{name}-parallel", "What was tried", spoken, caption))
    return found


def best_differences(folder: SweepFolder, sweep: SweepRecipe) -> list[Difference]:
    """The searched keys, as the base has them and as the best trial does."""
    order = ranked(folder.trials, sweep.mode)
    if not order or not folder.base.is_file():
        return []
    base = dict(dotted(resolved(load_training_recipe(str(folder.base)))))
    return [Difference(key, value, None, base.get(key)) for key, value in order[0].overrides.items()]


def metric_text(sweep: SweepRecipe, value: float | None) -> str:
    if value is None:
        return "–"
    return percent(value) if sweep.metric.endswith(("top1", "top5")) else f"{value:.4g}"


def _value(value: Any) -> Cell:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return Cell(shown(value), value if is_number else "" if value is None else str(value), is_number)
