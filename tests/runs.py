"""What a run folder holds, for tests to compare."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import torch

from cifarscale.config.recipe import Recipe
from cifarscale.data.dataset import Dataset
from cifarscale.data.manifest import Manifest
from cifarscale.distributed.cpu_pool import CpuPool
from cifarscale.distributed.group import Group
from cifarscale.distributed.ranks import Ranks
from cifarscale.launch.run import run
from cifarscale.runs.checkpoint import load_checkpoint, newest_checkpoint
from cifarscale.runs.options import RunOptions
from cifarscale.runs.run_folder import RunFolder
from cifarscale.tasks.load import load_generator
from cifarscale.tracking.metrics import differs, read_metrics
from cifarscale.training.learner import LearnerContext

PATIENCE_S = 300
"""After which a test that waits gives up: for processes that hang, not a measure of anything."""

T = TypeVar("T")


def wait_until(
    holds: Callable[[], T],
    otherwise: Callable[[], object] | str,
    has_ended: Callable[[], object] = lambda: None,
    every_s: float = 0.05,
    patience_s: float = PATIENCE_S,
) -> T:
    """Waits until something is true of what goes on beside this test. Returns: it.

    Args:
        otherwise: what is the matter if that takes too long.
        has_ended: not None when it cannot become true any more.
    """
    deadline = time.monotonic() + patience_s
    while not (found := holds()):
        assert (end := has_ended()) is None, end
        assert time.monotonic() < deadline, otherwise() if callable(otherwise) else otherwise
        time.sleep(every_s)
    return found


class Run:
    """What a run folder holds."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def checkpoints(self) -> list[Path]:
        """Oldest first."""
        return sorted((self.path / "checkpoints").iterdir())

    def state(self) -> dict[str, Any]:
        """The newest checkpoint."""
        path = newest_checkpoint(self.path / "checkpoints")
        assert path is not None, f"no checkpoint in {self.path}"
        return load_checkpoint(path)

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of the log, without times."""
        lines = read_metrics(self.path / "metrics.jsonl")
        return [{key: value for key, value in line.items() if not differs(key)} for line in lines]

    def result(self) -> dict[str, Any]:
        result = RunFolder(self.path).result()
        assert result is not None, f"{self.path} is not complete"
        return result

    def samples(self) -> dict[str, bytes]:
        """A DCGAN's grids of images by the names of their files; none of a classifier."""
        return {path.name: path.read_bytes() for path in sorted((self.path / "samples").glob("*"))}

    def last_step(self) -> int:
        """Of the last line of the log; 0 before the first."""
        return max((line["step"] for line in read_metrics(self.path / "metrics.jsonl")), default=0)

    def wait_for_step(self, step: int, has_ended: Callable[[], object] = lambda: None, every_s: float = 0.02) -> None:
        """Returns when the log has come to a step.

        Args:
            has_ended: what is known of the end of whatever trains; None while it goes on. Asked once a second.
            every_s: between two looks at the log, which cost processor time that what trains would need.
        """
        asked = time.monotonic()
        deadline = asked + PATIENCE_S
        while self.last_step() < step:
            if time.monotonic() > asked + 1:
                asked = time.monotonic()
                assert (end := has_ended()) is None, f"ended before step {step}: {end}"
                assert asked < deadline, f"step {step} is not reached"
            time.sleep(every_s)

    def assert_same_as(self, other: "Run") -> None:
        """Both runs ended with the same weights, moments, losses, figures and images, to the last bit."""
        mine, theirs = self.state(), other.state()
        for part in ("step", "networks", "averages", "optimizers", "scaler"):
            assert_same(mine[part], theirs[part], part)
        assert self.metrics() == other.metrics()
        mine, theirs = self.result(), other.result()
        assert mine.keys() == theirs.keys()
        for key in mine.keys() & {"train", "test"}:
            assert mine[key] == theirs[key]
        assert self.samples() == other.samples()


def assert_same(one: Any, other: Any, where: str) -> None:
    """Equal values, and tensors equal in every bit, through dictionaries and lists."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key, value in one.items():
            assert_same(value, other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{where}.{i}")
    else:
        assert one == other or (one != one and other != other), where


def run_recipe(recipe: Recipe, run_dir: Path, options: RunOptions, *more: Any) -> dict[str, Any]:
    """Runs a resolved recipe in a folder that is made where it is missing, as the rank that the environment names.

    Args:
        more: further arguments of `launch.run.run`.
    """
    assert options.shards is not None
    RunFolder(run_dir).prepare(recipe, Manifest.load(options.shards))
    return run(run_dir, options, *more)


def generate(run_dir: Path, count: int, seed: int, device: torch.device, class_name: str | None = None) -> Any:
    """Images (count, 32, 32, 3) from a run's generator."""
    return load_generator(run_dir, device).generate(seed, count, class_name)


def learner_context(manifest: Manifest, run_dir: Path) -> LearnerContext:
    """What a learner is built in, on one core; it has no data."""
    data = cast(Dataset, SimpleNamespace(manifest=manifest))
    pool = CpuPool(one_core_each=True, num_cores=1)
    return LearnerContext(RunFolder(run_dir), data, Group(Ranks()), pool, torch.device("cpu"))


_AFTER = """
import importlib.util, sys
class Finder:
    def find_spec(self, name, path, target=None):
        if name != {module!r}:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module
        def load_more(module):
            load(module)
            exec({program!r}, vars(module))
        spec.loader.exec_module = load_more
        return spec
if {variable!r} in os.environ:
    sys.meta_path.insert(0, Finder())
"""


def planted(folder: Path, program: str) -> dict[str, str]:
    """The environment of a Python that runs the program first."""
    (folder / "sitecustomize.py").write_text(program, encoding="utf-8")
    return {"PYTHONPATH": os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))}


def planted_after(module: str, folder: Path, program: str, variable: str) -> dict[str, str]:
    """The environment of a Python that runs the program at the end of a module, where it comes to load that.

    Args:
        variable: of the environment, only where it is set.
    """
    return planted(folder, "import os" + _AFTER.format(module=module, program=program, variable=variable))
