"""How a run's generator came to what it draws, and how near that is to real images."""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from cifarscale.config.generator import GeneratorRecipe
from cifarscale.data.build import shards_that_are_here
from cifarscale.data.dataset import Dataset
from cifarscale.data.images import images_of_split
from cifarscale.errors import CifarscaleError
from cifarscale.runs.run_folder import RunFolder
from cifarscale.tasks.load import load_generator
from cifarscale.tracking.parts import Cell, Fact, Picture, PictureRows, Section, Slides, Table, data_uri, picture

_NEAREST = "Nearest real images"
_GRIDS = 10
"""Of a run at most, so that a page stays small."""
_GENERATED = 8
_NEIGHBOURS = 5
_WIDEST = 640
"""Pixels of a grid on a page: what 8 images of 64 pixels side by side need, and more than a half of it shows."""
_BLOCK = 5000 * 3 * 32 * 32
"""Numbers in the images that are compared at a time."""
_CPU = torch.device("cpu")


def samples(folder: RunFolder) -> list[Section]:
    """Grids of samples through training, the early ones closer together: that is when they change most."""
    paths = {_step(path): path for path in sorted(folder.samples.glob("step-*.png"))}
    slides = []
    for step in _chosen(sorted(paths)):
        uri = data_uri(_for_page(paths[step]), "image/png")
        slides.append((step, Picture(uri, f"A grid of images generated at step {step:,}")))
    block = Slides("always from the same noise", slides)
    return [Section("samples", "Samples through training", block, is_half=True)] if slides else []


def _for_page(path: Path) -> bytes:
    """A grid as it is, or scaled down: a page shows all of them at one width."""
    with Image.open(path) as image:
        if image.width <= _WIDEST:
            return path.read_bytes()
        image.thumbnail((_WIDEST, _WIDEST))
        file = io.BytesIO()
        image.save(file, "PNG")
        return file.getvalue()


def _measured(folder: RunFolder) -> list[Mapping[str, Any]]:
    """What was measured of the images at the end of the run, and by `cifarscale fid`."""
    result = folder.result() or {}
    results: list[Mapping[str, Any]] = [result["distance"]] if isinstance(result.get("distance"), dict) else []
    for path in sorted(folder.path.glob("distance-*.json")):
        results.append(json.loads(path.read_text(encoding="utf-8")))
    return results


def distance_facts(folder: RunFolder) -> list[Fact]:
    """The distances, each under its own name: FID is only what was computed with its own features and weights."""
    return [
        Fact(each["metric"], f"{each['distance']:.2f}", f"{each['num_samples']:,} images against {each['against']}")
        for each in _measured(folder)
    ]


def distances(folder: RunFolder) -> list[Section]:
    """All that was measured."""
    rows = [_row(each) for each in _measured(folder)]
    columns = ["metric", "distance", "against", "images", "kernel distance", "precision", "recall"]
    caption = "How far generated images are from real ones; smaller distances are better"
    return [Section("distances", "", Table(caption, columns, rows))] if rows else []


def nearest(run_dir: Path, recipe: GeneratorRecipe, data: str | None) -> Section:
    """The real training images that are nearest to some generated ones, pixel by pixel."""
    try:
        shards = shards_that_are_here(recipe.data.dataset, data)
        manifest = Dataset(shards, recipe.data, _CPU).manifest
        generated = load_generator(run_dir, _CPU).generate(0, _GENERATED)
        real = images_of_split(shards, manifest, "train", _CPU)
    except CifarscaleError as error:
        return Section("nearest", _NEAREST, None, note=f"Not computed: {error}", is_half=True)
    wanted = torch.from_numpy(generated).permute(0, 3, 1, 2).flatten(1).float()
    pixel_distances = torch.empty(_GENERATED, 0)
    block = max(1, _BLOCK // wanted.shape[1])
    for start in range(0, real.num_images, block):
        pixels = real.images(range(start, min(start + block, real.num_images))).flatten(1).float()
        pixel_distances = torch.cat([pixel_distances, torch.cdist(wanted, pixels)], 1)
    rows = []
    for i, places in enumerate(pixel_distances.topk(min(_NEIGHBOURS, real.num_images), largest=False).indices.tolist()):
        neighbours = []
        for place in places:
            name = "a real image"
            if real.labels is not None:
                name = manifest.fine_names[int(real.labels[place])].replace("_", " ")
            image = real.images(range(place, place + 1))[0].permute(1, 2, 0).numpy()
            neighbours.append(picture(image, f"Real: {name}", name))
        rows.append((picture(generated[i], f"Generated image {i + 1}"), neighbours))
    note = (
        "Generated images (seed 0), each with the training images nearest to it in Euclidean distance of the pixels. "
        "A copy of a training image would show here."
    )
    return Section("nearest", _NEAREST, PictureRows("generated", rows), note, is_half=True)


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
