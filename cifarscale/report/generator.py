"""How a run's generator came to what it draws, and how near that is to real images."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from cifarscale.config.dcgan import GanRecipe
from cifarscale.data.dataset import Dataset
from cifarscale.data.images import images_of_split
from cifarscale.errors import CifarscaleError
from cifarscale.inference import generate
from cifarscale.report.parts import Cell, Fact, Picture, Table, data_uri, picture
from cifarscale.report.shards import shards_of
from cifarscale.runs.run_folder import RunFolder

_GRIDS = 10
"""Of a run at most, so that a page stays small."""
_GENERATED = 8
_NEIGHBOURS = 5
_BLOCK = 5000
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Grid:
    """Samples after a number of steps."""

    step: int
    picture: Picture


@dataclass
class Neighbours:
    """Generated images, each with the real ones that are nearest; `note` says what is missing, and why."""

    rows: list[tuple[Picture, list[Picture]]] = field(default_factory=list)
    note: str = ""


def grids(folder: RunFolder) -> list[Grid]:
    """Grids of samples through training, the early ones closer together: that is when they change most."""
    paths = {_step(path): path for path in sorted(folder.samples.glob("step-*.png"))}
    return [
        Grid(
            step,
            Picture(data_uri(paths[step].read_bytes(), "image/png"), f"A grid of images generated at step {step:,}"),
        )
        for step in _chosen(sorted(paths))
    ]


def measured(folder: RunFolder) -> list[Mapping[str, Any]]:
    """What was measured of the images at the end of the run, and by `cifarscale fid`."""
    result = folder.result() or {}
    found: list[Mapping[str, Any]] = [result["distance"]] if isinstance(result.get("distance"), dict) else []
    for path in sorted(folder.path.glob("distance-*.json")):
        found.append(json.loads(path.read_text(encoding="utf-8")))
    return found


def distance_facts(measured: Sequence[Mapping[str, Any]]) -> list[Fact]:
    """The distances, each under its own name: FID is only what was computed with its own features and weights."""
    return [
        Fact(each["metric"], f"{each['distance']:.2f}", f"{each['num_samples']:,} images against {each['against']}")
        for each in measured
    ]


def distances(measured: Sequence[Mapping[str, Any]]) -> Table | None:
    """All that was measured; None if nothing was."""
    if not measured:
        return None
    columns = ["figure", "distance", "against", "images", "kernel distance", "precision", "recall"]
    caption = "How far generated images are from real ones; smaller distances are better"
    return Table(caption, columns, [_row(each) for each in measured])


def nearest(run_dir: Path, recipe: GanRecipe, data: str | None) -> Neighbours:
    """The real training images that are nearest to some generated ones, pixel by pixel."""
    try:
        shards = shards_of(recipe, data)
        manifest = Dataset(shards, recipe.data, _CPU).manifest
        generated = generate(run_dir, _GENERATED, 0, _CPU)
        real = images_of_split(shards, manifest, "train", _CPU)
    except CifarscaleError as error:
        return Neighbours(note=str(error))
    wanted = torch.from_numpy(generated).permute(0, 3, 1, 2).flatten(1).float()
    found = torch.empty(_GENERATED, 0)
    for start in range(0, real.num_images, _BLOCK):
        pixels = real.images(range(start, min(start + _BLOCK, real.num_images))).flatten(1).float()
        found = torch.cat([found, torch.cdist(wanted, pixels)], 1)
    rows = []
    for i, places in enumerate(found.topk(min(_NEIGHBOURS, real.num_images), largest=False).indices.tolist()):
        neighbours = []
        for place in places:
            name = "a real image"
            if real.labels is not None:
                name = manifest.fine_names[int(real.labels[place])].replace("_", " ")
            image = real.images(range(place, place + 1))[0].permute(1, 2, 0).numpy()
            neighbours.append(picture(image, f"Real: {name}", name))
        rows.append((picture(generated[i], f"Generated image {i + 1}"), neighbours))
    return Neighbours(rows)


def _chosen(steps: Sequence[int]) -> Iterator[int]:
    """At most _GRIDS of them, the first and the last among these, at even ratios."""
    if len(steps) <= _GRIDS:
        yield from steps
        return
    places = {round((len(steps)) ** (i / (_GRIDS - 1))) - 1 for i in range(_GRIDS)}
    rest = [place for place in range(len(steps)) if place not in places]
    while len(places) < _GRIDS:  # small places coincide
        places.add(rest.pop(0))
    yield from (steps[place] for place in sorted(places))


def _step(path: Path) -> int:
    digits = path.stem.removeprefix("step-")
    return int(digits) if digits.isdigit() else 0


def _row(measured: Mapping[str, Any]) -> list[Cell]:
    kernel = measured.get("kernel_distance")
    error = measured.get("kernel_distance_standard_error")
    kernel_text = "–" if kernel is None else f"{kernel:.3f}" + ("" if error is None else f" ± {error:.3f}")
    shares = (measured.get("precision"), measured.get("recall"))
    return [
        Cell(str(measured.get("metric", "–"))),
        _number(measured.get("distance"), ".2f"),
        Cell(str(measured.get("against", "–"))),
        Cell(f"{measured.get('num_samples', 0):,}", is_number=True),
        Cell(kernel_text, is_number=True),
        *(_number(share, ".3f") for share in shares),
    ]


def _number(value: float | None, form: str) -> Cell:
    return Cell("–" if value is None else format(value, form), is_number=True)
