"""Measurements by hand: a run like any other, in a temporary folder, whose result goes where one wants it."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cifarscale.api.runs import Run
from cifarscale.config.load import Changes, load_recipe, parse_recipe, require_task, with_values
from cifarscale.config.recipe import Recipe, resolved
from cifarscale.launch.local import run_once
from cifarscale.runs.files import write_json_atomically
from cifarscale.runs.options import RunOptions
from cifarscale.runs.run_folder import RunFolder


@dataclass(frozen=True)
class Measurement:
    """A recipe that trains nothing.

    Attributes:
        out: file for the result, as JSON; None for none.
        logs: folder for what ranks print; None for one that is removed.
    """

    recipe: Recipe
    out: Path | None
    logs: Path | None

    def run(self, data: str | Path | None = None, nproc: int = 1, device: str = "auto") -> dict[str, Any]:
        """The result, which is also written to `out`."""
        result = run_once(self.recipe, str(data) if data else None, RunOptions(device=device), nproc, self.logs)
        if self.out is not None:
            write_json_atomically(self.out, result)
        return result


def evaluate(
    run: Run | str | Path,
    *,
    split: str = "test",
    flip: bool = False,
    data: str | Path | None = None,
    nproc: int = 1,
    device: str = "auto",
) -> dict[str, Any]:
    """The accuracy of a run's classifier on a split, exact for any number of ranks; also that of each class.

    It is written to `evaluation-SPLIT.json` in the run folder as well.

    Args:
        split: `test`, `validation` or `train`.
        flip: also by the mean logits of each image and its mirror image, under `flip`.
        data, nproc, device: as in `train`.
    Raises: CifarscaleError with the text that the command line prints.
    """
    return evaluation(run, split, flip).run(data, nproc, device)


def distance(
    images: Run | str | Path,
    *,
    against: str | Path | None = None,
    features: str | None = None,
    set: Changes | None = None,
    data: str | Path | None = None,
    nproc: int = 1,
    device: str = "auto",
    out: str | Path | None = None,
) -> dict[str, Any]:
    """How close images are to real ones, as `cifarscale fid` has it.

    Of a run the values are written to a file in its folder as well.

    Args:
        images: a generator's run, a folder of images, or a split of the data set.
        against: the real images: a split, a folder, or statistics in a .npz file; None for the split `train`.
        features: `inception`, or `cnn:RUN` for those of a classifier that was trained here; None for `inception`.
        set: further keys of the recipe `fid`, such as `distance.num_samples`.
        data, nproc, device: as in `train`.
        out: another file for the values, as JSON.
    Raises: CifarscaleError with the text that the command line prints.
    """
    return distance_measurement(images, against, features, set, out).run(data, nproc, device)


def evaluation(run: Run | str | Path, split: str, flip: bool) -> Measurement:
    """What `evaluate` runs."""
    path = _path(run)
    values = {"task": "evaluate", "name": "evaluate", "run": str(path), "split": split, "flip": flip}
    recipe = parse_recipe(values, "evaluate")
    return Measurement(recipe, path / f"evaluation-{split}.json", path / "logs")


def distance_measurement(
    images: Run | str | Path,
    against: str | Path | None,
    features: str | None,
    changes: Changes | None,
    out: str | Path | None,
) -> Measurement:
    """What `distance` runs."""
    recipe = load_recipe("fid", changes or ())
    require_task(recipe, "distance", "fid")
    values = {
        "images": str(_path(images)),
        "distance__against": against and str(against),
        "distance__features": features,
    }
    recipe = with_values(recipe, **{key: value for key, value in values.items() if value is not None})
    folder = RunFolder(_path(images))
    is_run = folder.recipe.exists()
    if out is None and is_run:
        out = folder.path / f"{_file_name(recipe)}.json"
    return Measurement(recipe, Path(out) if out else None, folder.path / "logs" if is_run else None)


def _path(run: Run | str | Path) -> Path:
    return run.path if isinstance(run, Run) else Path(run)


def _file_name(recipe: Recipe) -> str:
    """`distance-FEATURES-AGAINST`, with the last part of paths."""
    distance = resolved(recipe)["distance"]
    parts = (distance["features"].rstrip("/"), distance["against"].rstrip("/"))
    return "-".join(["distance", *(re.sub(r"[^\w.]+", "-", re.sub(r"[^:]*/", "", part)) for part in parts)])
