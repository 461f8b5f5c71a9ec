"""What several test files need: one small drawn set, as it is in memory and as shards."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from preloaded import Popen, forking

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
    """Has `python -m cifarscale …` begin by a fork of a process that has imported torch; tests of the start undo it."""
    with forking() as path:
        yield path


@pytest.fixture
def as_users_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has commands start as users start them, each in a new Python."""
    monkeypatch.setattr(Popen, "fork", None)


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
def real_data() -> Path:
    """The folder that holds `cifar-100-python/`."""
    if "CIFARSCALE_REAL_DATA" not in os.environ:
        pytest.skip("CIFARSCALE_REAL_DATA does not name a folder with cifar-100-python/ in it")
    return Path(os.environ["CIFARSCALE_REAL_DATA"])
