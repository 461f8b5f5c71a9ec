"""A classifier's, a generator's and a sweep's folder, their page, and a browser to open it in."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from runs import run_recipe

from cifarscale.config.load import load_training_recipe, parse_recipe
from cifarscale.data.manifest import Manifest
from cifarscale.report.page import write_report
from cifarscale.runs.options import RunOptions
from cifarscale.runs.run_folder import RunFolder
from cifarscale.sweeps.recipe import SweepRecipe
from cifarscale.sweeps.space import base_of, trial_recipe
from cifarscale.sweeps.trials import COMPLETE, FAILED, STOPPED, SweepFolder, Trial
from cifarscale.tasks.training import resolve

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

HOSTILE = "</script><script>window.ran = true</script><img src=x onerror='window.ran = true'>"
"""What must stand in a page as it is, and not run."""
TINY = ("training.max_steps=40", "training.log_every=5", "training.checkpoint_every=10", "evaluation.every=10")


class _StopError(Exception):
    pass


class _StopsAt:
    """A sink that ends a run at an evaluation."""

    def __init__(self, step: int) -> None:
        self._step = step

    def started(self, step: int) -> None:
        pass

    def log(self, step: int, values: dict[str, float]) -> None:
        if step == self._step and "learning_rate" not in values:
            raise _StopError

    def finish(self, result: dict[str, Any] | None, error: BaseException | None) -> None:
        pass


@pytest.fixture(scope="session")
def cnn_run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run of a classifier, which was started twice."""
    run = tmp_path_factory.mktemp("runs") / "cnn-run"
    overrides = (*TINY, "optimizer.name=sgd", f'description="{HOSTILE}"')
    recipe = resolve(load_training_recipe("demo", overrides), shards)
    with pytest.raises(_StopError):
        run_recipe(recipe, run, RunOptions(shards, "cpu"), _StopsAt(20))
    run_recipe(recipe, run, RunOptions(shards, "cpu"))
    return run


@pytest.fixture(scope="session")
def dcgan_run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run of a generator, with a distance that `cifarscale fid` might have written."""
    run = tmp_path_factory.mktemp("runs") / "dcgan-run"
    overrides = (*TINY, "training.global_batch_size=16", "data.dataset=synthetic", "distance.features=none")
    run_recipe(resolve(load_training_recipe("dcgan", overrides), shards), run, RunOptions(shards, "cpu"))
    measured = {
        "metric": "Fréchet distance (cnn:resnet)",
        "against": "synthetic train",
        "num_samples": 1000,
        "distance": 20.9,
        "precision": 0.81,
        "recall": 0.14,
    }
    (run / "distance-cnn-resnet-train.json").write_text(json.dumps(measured))
    return run


@pytest.fixture(scope="session")
def swept(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a sweep of four trials: two complete, one stopped, one failed for a hostile reason."""
    values: dict[str, Any] = {
        "task": "sweep",
        "name": "swept",
        "base": "demo",
        "set": {"data.num_validation": 100, "training.max_steps": 30, "evaluation.every": 10},
        "space": {
            "training.learning_rate": {"loguniform": [1e-4, 1e-1]},
            "optimizer.name": {"choice": ["adamw", "sgd"]},
            "optimizer.nesterov": {"choice": [True, False], "when": {"optimizer.name": "sgd"}},
        },
    }
    sweep = parse_recipe(values, "swept")
    assert isinstance(sweep, SweepRecipe)
    base = resolve(base_of(sweep), shards)
    folder = SweepFolder(tmp_path_factory.mktemp("sweeps") / "swept")
    folder.prepare(sweep, base)
    tried: list[tuple[str, dict[str, Any], list[float]]] = [
        (COMPLETE, {"training.learning_rate": 1e-2, "optimizer.name": "adamw"}, [0.1, 0.2, 0.30]),
        (STOPPED, {"training.learning_rate": 9e-2, "optimizer.name": "adamw"}, [0.05]),
        (
            COMPLETE,
            {"training.learning_rate": 1e-3, "optimizer.name": "sgd", "optimizer.nesterov": False},
            [0.1, 0.3, 0.4],
        ),
        (FAILED, {"training.learning_rate": 5e-2, "optimizer.name": "adamw"}, []),
    ]
    for number, (state, overrides, figures) in enumerate(tried):
        trial = Trial(number, overrides, f"trial-{number}", state, 10 * len(figures), starts=1)
        trial.value = figures[-1] if figures else None
        trial.reason = HOSTILE if state == FAILED else ""
        folder.trials.append(trial)
        run = folder.run(trial)
        run.prepare(trial_recipe(sweep, base, overrides), Manifest.load(shards))
        lines = [{"step": 10 * i, "validation_top1": value} for i, value in enumerate(figures, 1)]
        run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    folder.save(60.0)
    best = {"trial": 2, "value": 0.4}
    (folder.path / "result.json").write_text(json.dumps({"metric": sweep.metric, "ended": "", "best": best}))
    return folder.path


@pytest.fixture(scope="session")
def page(cnn_run: Path, dcgan_run: Path, swept: Path, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of all three."""
    path = tmp_path_factory.mktemp("page") / "all of it.html"
    write_report([cnn_run, dcgan_run, swept], path, str(shards))
    return path


@pytest.fixture
def begun(tmp_path: Path, shards: Path) -> RunFolder:
    """A run that has not logged anything yet."""
    folder = RunFolder(tmp_path / "begun")
    folder.prepare(resolve(load_training_recipe("demo"), shards), Manifest.load(shards))
    return folder


@pytest.fixture(scope="session")
def browser() -> Iterator["Chrome"]:
    """A headless Chromium that keeps account of its console and of what it fetches."""
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in programs:
        text = "Chromium and its driver are not here; as root, `make browser-packages` installs them"
        pytest.fail(text) if os.environ.get("CI") else pytest.skip(text)
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(programs[0])
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(programs[1]))
    yield driver
    driver.quit()
