"""What several test files need: one small drawn set, as it is in memory and as shards."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from preloaded import forking

from cifarscale.data.build import build_shards
from cifarscale.data.shards import write_shards
from cifarscale.data.source import Source
from cifarscale.data.synthetic import synthetic_source

NUM_TRAIN, NUM_TEST, NUM_SHARDS = 507, 200, 16
"""507 is a multiple of neither a batch nor the shards: both come out uneven."""


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Small tensors gain nothing from more, and workers of pytest-xdist would fight over the cores."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def preloaded() -> Iterator[Callable[[], str]]:
    """Has `python -m cifarscale …` begin by a fork of a process that has imported torch."""
    with forking() as path:
        yield path


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c_reaches_what_tests_start() -> None:
    """A shell's background jobs ignore it, and so would whatever they start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def source() -> Source:
    """The set that `shards` holds."""
    return synthetic_source(NUM_TRAIN, NUM_TEST)


@pytest.fixture(scope="session")
def shards(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `source` in 16 training shards of 31 and 32 samples, and 6 test shards; not to be changed."""
    folder = tmp_path_factory.mktemp("shards")
    write_shards(source, folder, NUM_SHARDS, lambda _: None)
    return folder


@pytest.fixture(scope="session")
def example_task(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What PYTHONPATH is where the task of examples/autoencoder is installed."""
    folder = tmp_path_factory.mktemp("example")
    source = shutil.copytree(Path(__file__).parents[1] / "examples/autoencoder", folder / "source")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(folder / "installed"), str(source)], check=True)
    return os.pathsep.join(filter(None, (str(folder / "installed"), os.environ.get("PYTHONPATH"))))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder that holds `cifar-100-python/`."""
    if "CIFARSCALE_REAL_DATA" not in os.environ:
        pytest.skip("CIFARSCALE_REAL_DATA does not name a folder with cifar-100-python/ in it")
    return Path(os.environ["CIFARSCALE_REAL_DATA"])


@pytest.fixture(scope="session")
def cifar100(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real set as shards, which the first worker of pytest-xdist that asks for it builds for all."""
    all_workers = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        all_workers = all_workers.parent
    folder = all_workers / "cifar100"
    with FileLock(all_workers / "cifar100.lock"):
        if not folder.exists():
            build_shards("cifar100", folder, source=real_data)
    return folder


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--thorough", default="10%", metavar="SHARE|all", help="how many tests marked `thorough` run [10%%]"
    )
    parser.addoption("--thorough-seed", default="", metavar="TEXT", help="which ones [the day]")


def _thorough(config: pytest.Config) -> tuple[float, str]:
    """The share of thorough tests that run, and the seed that picks them; the same in every worker of pytest-xdist."""
    share = config.getoption("--thorough")
    seed = config.getoption("--thorough-seed") or time.strftime("%Y-%m-%d")
    return 1.0 if share == "all" else float(share.removesuffix("%")) / 100, seed


def pytest_report_header(config: pytest.Config) -> str:
    share, seed = _thorough(config)
    return f"thorough tests: {share:.0%} of them, those that --thorough-seed {seed} picks; all with --thorough all"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out the thorough tests that are not this run's; one that is named on the command line always runs."""
    share, seed = _thorough(config)
    if any("::" in argument for argument in config.args):
        return
    left_out = [
        item
        for item in items
        if item.get_closest_marker("thorough")
        and int(hashlib.sha256(f"{seed} {item.nodeid}".encode()).hexdigest()[:8], 16) >= share * 2**32
    ]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
