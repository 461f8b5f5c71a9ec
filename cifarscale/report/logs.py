"""The log of a run as curves."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from itertools import pairwise
from typing import Any

from cifarscale.report.parts import Drawing, drawing, percent
from cifarscale.tracking.metrics import RATE_OF_RANK
from cifarscale.tracking.plots import Curve, curves

Line = Mapping[str, Any]
_POINTS = 250
"""Of a curve at most: more lines of a log are drawn as means of several."""
_LOSSES = {
    "loss": "training",
    "validation_loss": "validation",
    "test_loss": "test",
    "discriminator_loss": "discriminator",
    "generator_loss": "generator",
}
_ACCURACIES = {"accuracy": "training, augmented", "validation_top1": "validation", "test_top1": "test"}
_DISTANCES = {"fid": "FID", "frechet_distance": "Fréchet distance"}
_RATE = "images_per_second"
_RANKS = 8
"""Drawn at most; of more, the slowest and the fastest."""
_ABOUT = {
    "Throughput": "The mean since the process was started, of training steps alone.",
    "Throughput by rank": "A rank's images by the time of its own work, in which it waits for no other. All go at the "
    "pace of the slowest.",
}


def restarts(lines: Sequence[Line], starts: Sequence[str]) -> list[int]:
    """The last logged steps before a run was started again.

    Args:
        starts: when it was started, in ISO 8601.
    """
    found: set[int] = set()
    for start in starts:
        began = datetime.fromisoformat(start).timestamp()
        before = [line["step"] for line in lines if "time" in line and line["time"] < began]
        if before:
            found.add(max(before))
    return sorted(found)


def run_drawings(name: str, lines: Sequence[Line], task: str, starts: Sequence[int]) -> list[Drawing]:
    """The curves of a run, those of which there is something in its log."""
    losses = {key: label for key, label in _LOSSES.items() if task != "gan" or key != "loss"}  # there it is their sum
    kinds: list[tuple[str, dict[str, str], str, bool]] = [
        ("Loss", losses, "loss", False),
        ("Accuracy", _ACCURACIES, "top-1", True),
        ("Distance to real images", _DISTANCES, "distance", False),
        ("Throughput", {_RATE: "all ranks"}, "images a second", False),
        ("Throughput by rank", _ranks(lines), "images a second", False),
    ]
    again = f"Dotted lines: started again after {', '.join(f'step {step:,}' for step in starts)}." if starts else ""
    found: list[Drawing] = []
    for title, keys, unit, is_share in kinds:
        drawn = [_curve(lines, key, label, starts) for key, label in keys.items() if any(key in line for line in lines)]
        if drawn:
            plot = curves(drawn, f"{unit}, {drawn[0].label}" if len(drawn) == 1 else unit, is_share)
            spoken = _spoken(title, drawn, is_share)
            caption = " ".join(filter(None, (_ABOUT.get(title), again)))
            found.append(drawing(plot, f"{name}-{title.lower().replace(' ', '-')}", title, spoken, caption))
    return found


def compared_drawings(runs: Mapping[str, Sequence[Line]], task: str) -> list[Drawing]:
    """What logs of several runs of a task have in common, each run a curve."""
    found: list[Drawing] = []
    for title, keys, unit, is_share in (
        ("Training loss", ("loss",) if task != "gan" else (), "loss", False),
        ("Generator's loss", ("generator_loss",), "loss", False),
        ("Accuracy", ("validation_top1", "test_top1"), "top-1", True),
        ("Distance to real images", ("fid",), "FID", False),
        ("Distance to real images", ("frechet_distance",), "Fréchet distance", False),
        ("Throughput", (_RATE,), "images a second", False),
    ):
        drawn = []
        for number, (name, lines) in enumerate(runs.items()):
            key = next((key for key in keys if any(key in line for line in lines)), None)
            if key is not None:
                label = f"{name}, {key.partition('_')[0]}" if is_share else name
                drawn.append(replace(_curve(lines, key, label), colour=number))
        if len(drawn) > 1:
            place = f"compared-{task}-{len(found)}"
            found.append(drawing(curves(drawn, unit, is_share), place, title, _spoken(title, drawn, is_share)))
    return found


def _ranks(lines: Sequence[Line]) -> dict[str, str]:
    """The throughput of each rank, where that was recorded."""
    newest = {key: value for line in lines for key, value in line.items() if key.startswith(RATE_OF_RANK)}
    keys = list(newest)
    if len(keys) > _RANKS:
        keys = [min(keys, key=newest.__getitem__), max(keys, key=newest.__getitem__)]
    return {key: f"rank {key.removeprefix(RATE_OF_RANK)}" for key in keys}


def _curve(lines: Sequence[Line], key: str, label: str, starts: Sequence[int] = ()) -> Curve:
    """A figure over steps; of a long log means of as many lines each."""
    points = [(line["step"], line[key]) for line in lines if key in line]
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
