"""Ranks of which one fails, or computes something else: it is said which, and nothing that was good is lost.

What fails is planted into the processes of an ordinary command.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from runs import planted

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="this torch has no gloo"),
]

PROGRAM = """
import sys
if any("cifarscale" in argument for argument in sys.orig_argv):
    import os
    import threading
    from pathlib import Path
    import torch
    import torch.distributed as dist
    from cifarscale.distributed import group
    from cifarscale.training import engine
"""
OTHER_WEIGHT = """
    check = engine.Engine._check_replicas
    def check_another(self):
        if os.environ.get("RANK") == "1" and self._step == 10:
            next(self._learner.networks["classifier"].parameters()).data[0, 0, 0, 0] += 1e-6
        check(self)
    engine.Engine._check_replicas = check_another
"""
FAILING_SAVE = """
    def fail(checkpoints, step, *more):
        raise OSError(28, "No space left on device", str(checkpoints))
    engine.save_checkpoint = fail
    leave = group._leave_at_once
    def leave_and_look(on_gpu):
        if os.environ["RANK"] == "0":
            error = Path({run!r}, "error.json")
            Path({seen!r}).write_text(error.read_text() if error.exists() else "{{}}")
        leave(on_gpu)
    group._leave_at_once, group.TEAR_DOWN_S = leave_and_look, 0.1
    dist.destroy_process_group = threading.Event().wait
"""
NO_COMPILER_ON_ONE = """
    def compile(module, *more, **options):
        if os.environ.get("RANK") == "1":
            raise RuntimeError("no compiler\\nin many lines")
        return module
    def compile_in_place(self, *more, **options):
        raise AssertionError("compiled although a rank could not")
    torch.compile, torch.nn.Module.compile = compile, compile_in_place
"""


@pytest.fixture
def train(
    start: Callable[..., Any], tiny: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """Trains the tiny recipe by two ranks, into which a program is planted, in the folder `run`."""

    def train(program: str, *overrides: str) -> Any:
        sets = [part for override in overrides for part in ("--set", override)]
        where = ("--data", shards, "--run-dir", tmp_path / "run", "--device", "cpu", "--nproc", 2)
        with monkeypatch.context() as patched:
            for name, value in planted(tmp_path, PROGRAM + program if program else "").items():
                patched.setenv(name, value)
            started = start("train", tiny, *where, *sets)
        return started.wait()

    return train


def test_a_rank_with_another_weight_is_named_at_the_next_checkpoint_and_the_last_good_one_stands(
    train: Callable[..., Any], train_here: Callable[..., Any], opened: Callable[..., Any], tmp_path: Path
) -> None:
    ended = train(OTHER_WEIGHT)
    assert ended.returncode == 1
    (error,) = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    (good,) = opened(tmp_path / "run").checkpoints()
    assert "the weights of rank 1 after step 10 are not those of rank 0" in error
    assert f"The last good checkpoint is {good}" in error
    assert opened(tmp_path / "run").state()["step"] == 5
    assert train("").returncode == 0
    opened(tmp_path / "run").assert_same_as(train_here(tmp_path / "alone"))


def test_an_error_in_a_save_is_on_disk_before_the_connections_are_torn_down_and_is_told_though_that_hangs(
    train: Callable[..., Any], tmp_path: Path
) -> None:
    run, seen = tmp_path / "run", tmp_path / "seen"
    ended = train(FAILING_SAVE.format(run=str(run), seen=str(seen)))
    assert ended.returncode == 1
    assert "No space left on device" in ended.stderr.splitlines()[-1]
    assert "No space left on device" in json.loads(seen.read_text())["message"]
    assert "No space left on device" in json.loads((run / "error.json").read_text())["message"]
    assert "No space left on device" in json.loads((run / "logs/rank-0.error.json").read_text())["message"]


def test_where_one_rank_cannot_compile_none_does(
    train: Callable[..., Any], train_here: Callable[..., Any], opened: Callable[..., Any], tmp_path: Path
) -> None:
    ended = train(NO_COMPILER_ON_ONE, "training.compile=true", "training.microbatches=0")
    assert ended.returncode == 0, ended.stderr
    assert "torch.compile failed on another rank, going on without it" in ended.stderr
    other = (tmp_path / "run/logs/rank-1.log").read_text()
    assert "torch.compile failed, going on without it: no compiler" in other
    expected = train_here(tmp_path / "alone", "training.microbatches=0").metrics()
    for mine, theirs in zip(opened(tmp_path / "run").metrics(), expected, strict=True):
        if "loss" in theirs:
            assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-3)
