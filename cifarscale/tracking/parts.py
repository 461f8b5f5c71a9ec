"""What a report is made of."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from cifarscale.tracking.plots import Plot


@dataclass(frozen=True)
class Fact:
    """A value with its name; `note` says more of it."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Drawing:
    """A plot.

    Attributes:
        spoken: what it shows, for those who do not see it.
    """

    title: str
    svg: Markup
    spoken: str
    caption: str = ""


@dataclass(frozen=True)
class Picture:
    """An image.

    Attributes:
        source: a data URI.
        alt: what it shows, for those who do not see it.
        caption: below it.
        good: whether what the caption says is right; None where nothing is said.
    """

    source: str
    alt: str
    caption: str = ""
    good: bool | None = None


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        key: what rows are sorted by.
    """

    text: str
    key: float | str = ""
    is_number: bool = False


@dataclass(frozen=True)
class Table:
    """A table with a caption; the first cell of a row names it."""

    kind: ClassVar[str] = "table"
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    is_sortable: bool = False


@dataclass(frozen=True)
class Matrix:
    """Shares of a whole by row and column, as a table of colours.

    Attributes:
        counts: whose shares of their row are shown.
    """

    kind: ClassVar[str] = "matrix"
    caption: str
    names: Sequence[str]
    counts: Sequence[Sequence[int]]

    def share(self, row: int, column: int) -> float:
        return self.counts[row][column] / max(1, sum(self.counts[row]))


@dataclass(frozen=True)
class Card:
    """Images with a title and a few words."""

    title: str
    note: str
    text: str
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Cards:
    """Cards side by side."""

    kind: ClassVar[str] = "cards"
    cards: Sequence[Card]


@dataclass(frozen=True)
class Slides:
    """Images by training step, of which one is shown at a time, the last one at first."""

    kind: ClassVar[str] = "slides"
    caption: str
    slides: Sequence[tuple[int, Picture]]


@dataclass(frozen=True)
class PictureRows:
    """Images, each with others that are compared with it.

    Attributes:
        name: what the first image of a row is.
    """

    kind: ClassVar[str] = "picture_rows"
    name: str
    rows: Sequence[tuple[Picture, Sequence[Picture]]]


@dataclass(frozen=True)
class Section:
    """A part of a report with a title; without one a block by itself.

    Attributes:
        key: names it in ids of the page.
        note: stands above the block.
        is_half: whether it takes half of the page's width, beside the next one.
    """

    key: str
    title: str
    block: Table | Matrix | Cards | Slides | PictureRows | None
    note: str = ""
    is_half: bool = False


def drawing(plot: Plot, name: str, title: str, spoken: str, caption: str = "") -> Drawing:
    """A plot for the page. `name`: that no other plot of the page has."""
    return Drawing(title, Markup(plot.svg(name)), spoken, caption)  # matplotlib escapes what it draws


def data_uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def picture(pixels: NDArray[np.uint8], alt: str, caption: str = "", good: bool | None = None) -> Picture:
    """An image (H, W, 3) as it is, to the last pixel."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", optimize=True)
    return Picture(data_uri(file.getvalue(), "image/png"), alt, caption, good)


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def shown(value: object) -> str:
    """A value of a recipe as people write it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(shown, value)) + "]"
    return "–" if value is None else str(value) or "(empty)"
