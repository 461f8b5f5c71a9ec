"""Plots for people, as PNG files and as SVG for pages. Importing this loads matplotlib, but no pyplot: no display."""

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, MaxNLocator

from cifarscale.runs.files import write_atomically

INK = "#24292f"
"""Text and axes; `currentColor` in SVG, so that a page's theme colours them."""
COLOURS = ("#3b74c9", "#c75a12", "#16867a", "#8e5bc9", "#c2407a", "#76801a", "#8a6d5b", "#4f7f9b")
"""Each about as far from white as from black, so that one set serves light and dark pages."""
BEST, FAINT = COLOURS[1], "#8c959f"
_WIDTH_IN = 5.6
_LETTERS = 72
"""That fit beside each other in a legend."""
_MANY = 8
"""Points of a curve up to which each is marked."""
Weight = Literal["best", "normal", "faint"]
_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "legend.frameon": False,
    "text.parse_math": False,
    "figure.constrained_layout.w_pad": 0.12,  # a page's font may be wider than matplotlib's
    "svg.fonttype": "none",
    "svg.hashsalt": "cifarscale",
}
_FOR_A_PAGE = (
    (r"<defs>\s*<style[\s\S]*?</style>\s*</defs>", ""),  # it would hold for all of the page
    (r'^<svg ([^>]*?)width="[^"]*"([^>]*?)height="[^"]*"', r'<svg stroke-linejoin="round" \1\2'),
    (r"(\bid=\"|url\(#|href=\"#)", r"\1NAME-"),
    (r"(font(?:-family)?: (?:[\d.]+px )?)'[^;\"]*", r"\1system-ui, sans-serif"),
)
"""Patterns of matplotlib's SVG, and what replaces them where it stands within a page."""


@dataclass(frozen=True)
class Curve:
    """A metric over steps.

    Attributes:
        label: curves of the same label are explained once.
        weight: `best` and `faint` set a curve apart from the others.
        starts: steps after which the run was started again.
        colour: the number of its colour; None for that of its label.
    """

    label: str
    steps: Sequence[int]
    values: Sequence[float]
    weight: Weight = "normal"
    starts: Sequence[int] = ()
    colour: int | None = None


@dataclass(frozen=True)
class Scale:
    """An axis of parallel coordinates.

    Attributes:
        choices: its values in order; empty where it is of numbers, from the least to the greatest that there is.
        is_share: whether these are from 0 to 1, and shown in percent.
    """

    label: str
    choices: Sequence[Any] = ()
    is_log: bool = False
    is_share: bool = False


@dataclass(frozen=True)
class Point:
    """A trial in parallel coordinates: its value on each axis, None where it has none."""

    values: Sequence[Any]
    weight: Weight = "normal"
    goodness: float = 1.0
    """From 0, the worst, to 1."""


class Plot:
    """A drawn figure."""

    def __init__(self, figure: Figure) -> None:
        self._figure = figure

    def save_png(self, path: Path) -> None:
        """On white, at 180 dots an inch."""
        FigureCanvasAgg(self._figure)
        texts = [text for axes in self._figure.axes for text in axes.texts]
        for text in texts:  # within the plot, where lines cross them
            text.set_path_effects([withStroke(linewidth=2.5, foreground="white")])
        with mpl.rc_context(_STYLE):
            write_atomically(path, lambda file: self._figure.savefig(file, format="png", dpi=180, facecolor="white"))
        for text in texts:
            text.set_path_effects([])

    def svg(self, name: str) -> str:
        """As an <svg> element for a page, the same text whenever it is drawn.

        Args:
            name: that no other plot of the page has; ids begin with it.
        """
        FigureCanvasSVG(self._figure)
        text = io.StringIO()
        with mpl.rc_context(_STYLE):
            nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
            self._figure.savefig(text, format="svg", facecolor="none", metadata=nothing)
        element = text.getvalue()
        element = element[element.index("<svg") :].replace(INK, "currentColor")
        for pattern, instead in _FOR_A_PAGE:
            element = re.sub(pattern, instead.replace("NAME", name), element)
        return element


def curves(lines: Sequence[Curve], label: str, is_share: bool = False, height_in: float = 3.2) -> Plot:
    """Draws curves over the step, which of them is which in a legend.

    Args:
        label: of the vertical axis.
        is_share: whether values are from 0 to 1, and shown in percent.
    """
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH_IN, height_in), layout="constrained")
        axes = figure.subplots()
        labels = list(dict.fromkeys(line.label for line in lines if line.weight == "normal"))
        for line in sorted(lines, key=lambda line: ("faint", "normal", "best").index(line.weight)):
            colour = _apart(line.weight)
            if colour is None:
                number = labels.index(line.label) if line.colour is None else line.colour
                colour = COLOURS[number % len(COLOURS)]
            width = {"best": 2.2, "faint": 0.9}.get(line.weight, 1.4)
            marker = "o" if len(line.steps) <= _MANY else None
            axes.plot(
                line.steps, line.values, color=colour, linewidth=width, marker=marker, markersize=3, label=line.label
            )
            for step in line.starts:
                axes.axvline(step, color=colour, linewidth=0.9, linestyle=(0, (2, 3)))
        axes.set_xlabel("step")
        axes.set_ylabel(label)
        axes.xaxis.set_major_formatter(_thousands)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: _percent(y)) if is_share else _thousands)
        axes.grid(visible=True, color=FAINT, alpha=0.35, linewidth=0.4)
        _legend(figure, axes)
    return Plot(figure)


def parallel_coordinates(scales: Sequence[Scale], points: Sequence[Point]) -> Plot:
    """Draws each point as a line over axes that lie below each other, so that their names can be read.

    A point that has no value on an axis goes through a place of its own at the right.
    """
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(1.15 * _WIDTH_IN, 0.6 + 0.52 * len(scales)), layout="constrained")
        axes = figure.subplots()
        places = [_place(axes, row, scale, points) for row, scale in enumerate(scales)]
        order = sorted(points, key=lambda point: (point.weight == "best", point.goodness))
        for rank, point in enumerate(order):
            shift = 0.05 * (rank / max(1, len(order) - 1) - 0.5)  # lines through the same choices stay apart
            across = [place(value, shift) for place, value in zip(places, point.values, strict=True)]
            is_best = point.weight == "best"
            axes.plot(
                across,
                range(len(scales)),
                color=_apart(point.weight) or COLOURS[0],
                alpha=1.0 if is_best else 0.35 + 0.55 * point.goodness,
                linewidth=2.2 if is_best else 1.2,
                zorder=3 if is_best else 2,
            )
        axes.set_yticks(range(len(scales)), [scale.label for scale in scales])
        axes.set_ylim(len(scales) - 0.5, -0.5)
        axes.set_xlim(-0.06, 1.08)
        axes.set_xticks([])
        axes.tick_params(axis="y", length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        weights = {"best": "the best", "normal": "complete", "faint": "stopped early"}
        for weight, text in weights.items():
            if any(point.weight == weight for point in points):
                colour, width = _apart(weight) or COLOURS[0], 2.2 if weight == "best" else 1.2
                axes.add_line(Line2D([], [], color=colour, linewidth=width, label=text))
        _legend(figure, axes)
    return Plot(figure)


def _place(axes: Axes, row: int, scale: Scale, points: Sequence[Point]) -> Callable[[Any, float], float]:
    """Draws an axis. Returns: where a value lies on it, from 0 to 1, with a shift where it is a choice."""
    values = [point.values[row] for point in points]
    known = [value for value in values if value is not None]
    end = 0.86 if len(known) < len(values) else 1.0
    axes.plot([0, end], [row, row], color=INK, linewidth=0.6, zorder=1)
    if end < 1:
        _tick(axes, 1.0, row, "not set")
    if scale.choices or not known:
        step = end / max(1, len(scale.choices) - 1)
        for i, choice in enumerate(scale.choices):
            _tick(axes, i * step, row, _short(choice))
        return lambda value, shift: (1.0 if value is None else scale.choices.index(value) * step) + shift
    low, high = min(known), max(known)
    change: Callable[[float], float] = math.log if scale.is_log else float
    span = (change(high) - change(low)) or 1.0

    def place(value: Any, shift: float) -> float:
        return 1.0 + shift if value is None else end * (change(value) - change(low)) / span

    for value in [low, high] if high > low else [low]:
        _tick(axes, place(value, 0), row, _percent(value) if scale.is_share else _short(value))
    return place


def _tick(axes: Axes, across: float, row: int, text: str) -> None:
    axes.plot([across], [row], marker="|", markersize=5, color=INK, markeredgewidth=0.6, zorder=1)
    axes.annotate(
        text, (across, row), (0, 4), textcoords="offset points", ha="center", va="bottom", fontsize=8, zorder=4
    )


def _apart(weight: str) -> str | None:
    """The colour of what is set apart."""
    return {"best": BEST, "faint": FAINT}.get(weight)


def _legend(figure: Figure, axes: Axes) -> None:
    """Above the plot, each label once; none for a single curve."""
    handles, labels = axes.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    if len(once) > 1:
        columns = max(1, min(len(once), _LETTERS // (max(map(len, once)) + 8)))
        by_row = [name for column in range(columns) for name in list(once)[column::columns]]  # it fills columns
        figure.legend([once[name] for name in by_row], by_row, loc="outside upper left", ncols=columns, fontsize=9)


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _short(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.3g}" if isinstance(value, float) else str(value)


@FuncFormatter
def _thousands(value: float, _: int) -> str:
    """12,000 rather than 12000, and no more digits than a tick needs."""
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"
