"""What a sweep's trials did, as plots. Importing this loads matplotlib."""

from collections.abc import Sequence
from pathlib import Path

from cifarscale.sweeps.recipe import SweepRecipe
from cifarscale.sweeps.space import values_of
from cifarscale.sweeps.trials import COMPLETE, SweepFolder, Trial, history, metric_name, ranked
from cifarscale.tracking.plots import Curve, Plot, Point, Scale, Weight, curves, parallel_coordinates


def plot_sweep(folder: SweepFolder, sweep: SweepRecipe) -> list[Path]:
    """Writes plots/curves.png and plots/parallel.png. Returns: those for which there were values."""
    drawn = {"curves": sweep_curves(folder, sweep), "parallel": sweep_parallel(folder, sweep)}
    written = []
    for name, plot in drawn.items():
        if plot is not None:
            written.append(folder.plots / f"{name}.png")
            plot.save_png(written[-1])
    return written


def sweep_curves(folder: SweepFolder, sweep: SweepRecipe) -> Plot | None:
    """The metric of all trials over the step; None if none was evaluated."""
    order = ranked(folder.trials, sweep.mode)
    lines = []
    for trial in order:
        weight = _weight(trial, order)
        label = {"best": f"trial {trial.number}, the best", "normal": "complete", "faint": "stopped early"}[weight]
        points = _evaluations(folder, trial, sweep.metric)
        if points:
            steps, values = zip(*points, strict=True)
            lines.append(Curve(label, steps, values, weight))
    return curves(lines, metric_name(sweep.metric), is_share=_is_share(sweep.metric)) if lines else None


def sweep_parallel(folder: SweepFolder, sweep: SweepRecipe) -> Plot | None:
    """What each trial tried, and what came of it; None if no trial has a value."""
    order = ranked(folder.trials, sweep.mode)
    if not order:
        return None
    scales = []
    for key, distribution in sweep.space.items():
        is_number = distribution.kind in ("uniform", "loguniform")
        scales.append(Scale(key, [] if is_number else values_of(distribution), distribution.kind == "loguniform"))
    scales.append(Scale(metric_name(sweep.metric), is_share=_is_share(sweep.metric)))
    places = sorted(order, key=lambda trial: trial.value or 0.0, reverse=sweep.mode == "min")
    points = [
        Point(
            [*(trial.overrides.get(key) for key in sweep.space), trial.value],
            _weight(trial, order),
            places.index(trial) / max(1, len(places) - 1),
        )
        for trial in order
    ]
    return parallel_coordinates(scales, points)


def _evaluations(folder: SweepFolder, trial: Trial, metric: str) -> Sequence[tuple[int, float]]:
    """Of the metric as it stands in the log: `validation.top1` of the result is `validation_top1` there."""
    names = [metric, metric.replace(".", "_"), *(["fid", "frechet_distance"] if metric.startswith("distance") else [])]
    return next((points for name in names if (points := history(folder.run(trial), name))), [])


def _weight(trial: Trial, order: Sequence[Trial]) -> Weight:
    if trial is order[0]:
        return "best"
    return "normal" if trial.state == COMPLETE else "faint"


def _is_share(metric: str) -> bool:
    return metric.endswith(("top1", "top5"))
