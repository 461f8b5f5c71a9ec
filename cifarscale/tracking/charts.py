"""The log of a run as curves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import pairwise
from typing import Any

from cifarscale.tracking.metrics import RATE_OF_RANK
from cifarscale.tracking.parts import Drawing, drawing, percent
from cifarscale.tracking.plots import Curve, curves

Line = Mapping[str, Any]
_POINTS = 250
"""Of a curve at most: more lines of a log are drawn as means of several."""


@dataclass(frozen=True)
class Chart:
    """A plot of metrics over steps.

    Attributes:
        curves: what each metric is called, by its name in the log; those that are not in it are left out.
        unit: of the vertical axis.
        is_share: whether the values are shares of 1, which people read in percent.
    """

    title: str
    curves: Mapping[str, str]
    unit: str
    is_share: bool = False


_RATE = "images_per_second"
_RANKS = 8
"""Drawn at most; of more, the slowest and the fastest."""
_CAPTIONS = {
    "Throughput": "Since the point before, in training steps alone.",
    "Throughput by rank": "A rank's images by the time of its own work, in which it waits for no other. All go at the "
    "pace of the slowest.",
}


def restarts(lines: Sequence[Line], starts: Sequence[str]) -> list[int]:
    """The last logged steps before a run was started again.

    Args:
        starts: when it was started, in ISO 8601.
    """
    steps: set[int] = set()
    for start in starts:
        began = datetime.fromisoformat(start).timestamp()
        before = [line["step"] for line in lines if "time" in line and line["time"] < began]
        if before:
            steps.add(max(before))
    return sorted(steps)


def run_drawings(
    name: str, charts: Sequence[Chart], lines: Sequence[Line], environment: Mapping[str, Any]
) -> list[Drawing]:
    """The charts of a run and its throughput, as far as there is something in its log.

    Args:
        environment: what is in environment.json.
    """
    began = [environment[key] for key in ("started",) if key in environment]
    starts = restarts(lines, environment.get("starts") or began)
    own = (
        Chart("Throughput", {_RATE: "all ranks"}, "images a second"),
        Chart("Throughput by rank", _ranks(lines), "images a second"),
    )
    again = f"Dotted lines: started again after {', '.join(f'step {step:,}' for step in starts)}." if starts else ""
    drawings: list[Drawing] = []
    for chart in (*charts, *own):
        drawn = [
            _curve(lines, key, label, starts)
            for key, label in chart.curves.items()
            if any(_has(line, key) for line in lines)
        ]
        if drawn:
            unit = f"{chart.unit}, {drawn[0].label}" if len(drawn) == 1 else chart.unit
            caption = " ".join(filter(None, (_CAPTIONS.get(chart.title), again)))
            place = f"{name}-{chart.title.lower().replace(' ', '-')}"
            spoken = _spoken(chart.title, drawn, chart.is_share)
            drawings.append(drawing(curves(drawn, unit, chart.is_share), place, chart.title, spoken, caption))
    return drawings


def compared_drawings(runs: Mapping[str, Sequence[Line]], charts: Sequence[Chart], task: str) -> list[Drawing]:
    """What logs of several runs of a task have in common, each run a curve."""
    drawings: list[Drawing] = []
    for chart in (*charts, Chart("Throughput", {_RATE: ""}, "images a second")):
        drawn = []
        for number, (name, lines) in enumerate(runs.items()):
            key = next((key for key in chart.curves if any(_has(line, key) for line in lines)), None)
            if key is not None:
                label = ", ".join(filter(None, (name, chart.curves[key])))
                drawn.append(replace(_curve(lines, key, label), colour=number))
        if len(drawn) > 1:
            place = f"compared-{task}-{len(drawings)}"
            spoken = _spoken(chart.title, drawn, chart.is_share)
            drawings.append(drawing(curves(drawn, chart.unit, chart.is_share), place, chart.title, spoken))
    return drawings


def _ranks(lines: Sequence[Line]) -> dict[str, str]:
    """The throughput of each rank, where that was recorded."""
    newest = {key: value for line in lines for key, value in line.items() if key.startswith(RATE_OF_RANK)}
    keys = list(newest)
    if len(keys) > _RANKS:
        keys = [min(keys, key=newest.__getitem__), max(keys, key=newest.__getitem__)]
    return {key: f"rank {key.removeprefix(RATE_OF_RANK)}" for key in keys}


def _has(line: Line, key: str) -> bool:
    """Whether a line of the log has a value; a throughput of 0 says that the first steps are not timed."""
    return key in line and not (key == _RATE and line[key] == 0)


def _curve(lines: Sequence[Line], key: str, label: str, starts: Sequence[int] = ()) -> Curve:
    """A metric over steps; of a long log means of as many lines each."""
    points = [(line["step"], line[key]) for line in lines if _has(line, key)]
    size = -(-len(points) // _POINTS)
    bounds = [*range(0, len(points), size), len(points)]
    parts = [points[start:end] for start, end in pairwise(bounds)]
    means = [sum(value for _, value in part) / len(part) for part in parts]
    return Curve(label, [part[-1][0] for part in parts], means, starts=starts)


def _spoken(title: str, drawn: Sequence[Curve], is_share: bool) -> str:
    def text(value: float) -> str:
        return percent(value) if is_share else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"

    ends = (
        f"{curve.label}: {text(curve.values[0])} at step {curve.steps[0]:,}, "
        f"{text(curve.values[-1])} at step {curve.steps[-1]:,}"
        for curve in drawn
    )
    return f"{title} over steps. " + "; ".join(ends)
