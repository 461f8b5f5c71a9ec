"""Plots: the same text each time, in the page's colours, of whatever trials there are."""

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from PIL import Image

from cifarscale.tracking.plots import INK, Curve, Plot, Point, Scale, curves, parallel_coordinates


def some_curves() -> Plot:
    lines = [
        Curve("one", [0, 10_000], [0.1, 0.2]),
        Curve("two", [500], [0.15], "faint"),
        Curve("three", [0, 10_000], [0.1, 0.3], "best", starts=[1000]),
    ]
    return curves(lines, "validation top-1", is_share=True)


def some_trials() -> Plot:
    scales = [
        Scale("training.learning_rate", is_log=True),
        Scale("optimizer.name", ["adamw", "sgd"]),
        Scale("optimizer.nesterov", [True, False]),
        Scale("training.ema_decay", [0.0]),
        Scale("top-1"),
    ]
    return parallel_coordinates(
        scales,
        [
            Point([1e-4, "adamw", None, 0.0, 0.4], "best"),
            Point([1e-1, "sgd", False, 0.0, 0.3], "normal", 0.5),
            Point([1e-3, "sgd", True, None, 0.1], "faint", 0.0),
        ],
    )


def texts(svg: str) -> list[str]:
    return [text for text in ET.fromstring(svg).itertext() if text.strip()]


@pytest.mark.parametrize("draw", [some_curves, some_trials])
def test_svg_is_the_same_each_time_and_has_the_colour_of_the_page(draw: type) -> None:
    svg = draw().svg("p1")
    assert svg == draw().svg("p1")
    assert INK not in svg
    assert "<style" not in svg
    assert "currentColor" in svg
    ids = [element.get("id") for element in ET.fromstring(svg).iter() if element.get("id")]
    assert ids
    assert all(each.startswith("p1-") for each in ids)


def test_curves_are_explained_and_large_numbers_have_separators() -> None:
    found = texts(some_curves().svg("p"))
    assert {"one", "two", "three", "10,000", "20 %"} <= set(found)


def test_a_key_that_a_trial_does_not_have_has_a_place_of_its_own() -> None:
    assert texts(some_trials().svg("p")).count("not set") == 2


def test_a_single_point_is_drawn() -> None:
    plot = parallel_coordinates([Scale("rate", is_log=True), Scale("loss")], [Point([1e-3, 2.5], "best")])
    assert "0.001" in texts(plot.svg("p"))


def test_text_of_others_is_escaped() -> None:
    assert "<script>" not in curves([Curve("<script>", [1], [1.0]), Curve("b", [1], [2.0])], "loss").svg("p")


def test_png_is_an_image(tmp_path: Path) -> None:
    some_curves().save_png(tmp_path / "plots" / "curves.png")
    with Image.open(tmp_path / "plots" / "curves.png") as image:
        assert image.width > 900
        assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
