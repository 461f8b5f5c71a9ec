"""The promise, proved where it matters: a run is a function of its recipe, regardless of ranks and interruptions.

A short run of a recipe, the same one killed and started again, and the same one on another number of ranks.
"""

import math
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from cifarscale.config.load import with_values
from cifarscale.config.recipe import TrainingRecipe
from cifarscale.errors import ClusterError, typed
from cifarscale.launch.run import prepare
from cifarscale.runs.checkpoint import load_checkpoint, newest_checkpoint
from cifarscale.runs.options import RunOptions
from cifarscale.runs.run_folder import RunFolder
from cifarscale.slurm import client as slurm
from cifarscale.slurm.plan import Plan, make_plan
from cifarscale.slurm.profile import Profile, with_options
from cifarscale.slurm.submission import PATIENCE_S, submit
from cifarscale.tasks.base import PreparedRun
from cifarscale.tracking.metrics import differs, read_metrics

TOLERANCE = 1e-4
"""Relative difference of the first loss that rounding may make where the recipe does not promise every bit."""
NOT_PROMISED = math.inf
"""What training makes of such a difference in later steps."""


class Running(Protocol):
    """A run that was started."""

    def end(self) -> str | None:
        """How it ended, None while it goes on."""

    def kill(self) -> None:
        """Ends all of its ranks by SIGKILL; returns when they are gone."""


Start = Callable[[PreparedRun, Profile, Plan], Running]


@dataclass(frozen=True)
class Comparison:
    """What two runs agree on.

    Attributes:
        deviation: largest relative difference; 0 where they are equal in every bit.
        allowed: what the recipe promises; NOT_PROMISED for what follows from rounding.
        first: the first step in which the runs differ, and what differs after it; empty where nothing does.
    """

    what: str
    metric: str
    deviation: float
    allowed: float
    first: str = ""

    @property
    def holds(self) -> bool:
        return self.deviation <= self.allowed


def shortened(recipe: TrainingRecipe, steps: int) -> TrainingRecipe:
    """The recipe with so many steps and no evaluation on the way, all of them logged."""
    changes: dict[str, Any] = {
        "training__max_steps": steps,
        "training__checkpoint_every": max(1, steps // 8),
        "training__log_every": 1,
        "evaluation__every": 0,
    }
    if recipe.schedule.warmup_steps >= steps:
        changes["schedule__warmup_steps"] = steps // 4
    return with_values(recipe, **changes)


def verify(
    recipe: TrainingRecipe, profile: Profile, nodes: int, data: str | None, folder: Path, say: Callable[[str], None]
) -> list[Comparison]:
    """Runs a recipe, which should be short, three times, and compares what came out.

    Args:
        folder: where the three run folders are made; an earlier call's are used again.
        say: is told what happens.
    Raises: ClusterError if a run fails, or ends before it can be killed.
    """
    start: Start = _start_here if profile.launcher == "local" else _queue
    device = "cuda" if profile.gpus_per_node else "cpu"

    def prepared(name: str) -> PreparedRun:
        options = RunOptions(device=device, patience_s=PATIENCE_S, timeouts=profile.timeouts, digests=True)
        return prepare(recipe, folder / name, data, options)

    plan = make_plan(recipe, profile, nodes)
    other_profile, other_nodes = _other_ranks(profile, plan)
    other_plan = make_plan(recipe, other_profile, other_nodes)
    say(f"uninterrupted on {plan.world_size} ranks, and on {other_plan.world_size}")
    straight, other, killed = map(prepared, ("uninterrupted", "other-ranks", "killed-and-resumed"))
    _complete(straight, start(straight, profile, plan))
    _complete(other, start(other, other_profile, other_plan))
    if RunFolder(killed.run_dir).result() is None:
        say(f"on {plan.world_size} ranks, killed at the first checkpoint, and started again")
        _kill_midway(killed, start(killed, profile, plan))
        _complete(killed, start(killed, profile, plan))
    exact = recipe.training.microbatches > 0
    again = compare(straight.run_dir, killed.run_dir, "killed and resumed", 0.0)
    return again + compare(
        straight.run_dir,
        other.run_dir,
        f"on {other_plan.world_size} ranks, not {plan.world_size}",
        0.0 if exact else TOLERANCE,
    )


def compare(one: Path, other: Path, what: str, allowed: float) -> list[Comparison]:
    """How far the losses, the weights and the final metrics of two complete runs lie apart."""
    losses = [_losses(run) for run in (one, other)]
    if losses[0].keys() != losses[1].keys():
        raise ClusterError(f"{one} and {other} have not logged the same steps; remove both and run this again")
    apart = {key: _apart(losses[0][key], losses[1][key]) for key in losses[0]}
    weights = _weights_apart(_networks(one), _networks(other))
    later = 0.0 if allowed == 0 else NOT_PROMISED
    first = first_difference(one, other)
    comparisons = [
        Comparison(what, "losses of all steps", max(apart.values(), default=0.0), later, first),
        Comparison(what, "final weights", weights, later, first),
    ]
    if allowed == 0:
        return comparisons
    begin = min(step for step, _ in apart)
    loss = max(value for (step, name), value in apart.items() if step == begin and name.endswith("loss"))
    return [Comparison(what, "loss of the first step", loss, allowed, first), *comparisons]


def first_difference(one: Path, other: Path) -> str:
    """The first step in which two runs differ, with what differs: the loss, and tensors by name; empty for none."""
    mine, theirs = _by_step(one), _by_step(other)
    for step in sorted(mine.keys() & theirs.keys()):
        names = [name for name, value in mine[step].items() if value != theirs[step].get(name, value)]
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            return f"step {step:,}: {', '.join(names[:3])}{more}"
    return ""


def _by_step(run: Path) -> dict[int, dict[str, float]]:
    """The loss of each step, and a digest of each tensor after it."""
    steps: dict[int, dict[str, float]] = {}
    for (step, key), value in _losses(run).items():
        if key.endswith("loss"):
            steps.setdefault(step, {})[key] = value
    for line in read_metrics(RunFolder(run).digests):
        steps.setdefault(line["step"], {}).update({key: value for key, value in line.items() if key != "step"})
    return steps


def _other_ranks(profile: Profile, plan: Plan) -> tuple[Profile, int]:
    """One rank where there were several; two where there was one."""
    if plan.world_size > 1:
        one = {"gpus_per_node": 1} if profile.gpus_per_node else {"tasks_per_node": 1}
        return with_options(profile, **one), 1
    return profile, 2


def _losses(run: Path) -> dict[tuple[int, str], float]:
    """All values of the log but times, by step and name."""
    lines = read_metrics(RunFolder(run).metrics)
    return {
        (line["step"], key): value
        for line in lines
        for key, value in line.items()
        if key != "step" and not differs(key) and isinstance(value, float)
    }


def _networks(run: Path) -> dict[str, dict[str, torch.Tensor]]:
    path = newest_checkpoint(RunFolder(run).checkpoints)
    if path is None:
        raise ClusterError(f"{run} has no checkpoint")
    networks: dict[str, dict[str, torch.Tensor]] = load_checkpoint(path)["networks"]
    return networks


def _weights_apart(one: dict[str, dict[str, torch.Tensor]], other: dict[str, dict[str, torch.Tensor]]) -> float:
    """The largest difference of two tensors, relative to the larger one's norm."""
    largest = 0.0
    for name, state in one.items():
        for key, tensor in state.items():
            theirs = other[name][key]
            if not torch.equal(tensor, theirs):
                norm = max(float(tensor.double().norm()), float(theirs.double().norm()))
                apart = float((tensor.double() - theirs.double()).norm()) / norm
                largest = max(largest, apart if math.isfinite(apart) else math.inf)
    return largest


def _apart(one: float, other: float) -> float:
    return 0.0 if one == other else abs(one - other) / max(abs(one), abs(other))


def _complete(prepared: PreparedRun, running: Running) -> None:
    """Waits for the end of a run. Raises: ClusterError if it is not complete then."""
    while (end := running.end()) is None:
        time.sleep(0.5)
    if RunFolder(prepared.run_dir).result() is None:
        raise ClusterError(f"{prepared.run_dir} did not complete: {end}. Run: cifarscale why {typed(prepared.run_dir)}")


def _kill_midway(prepared: PreparedRun, running: Running) -> None:
    """Kills a run when it has its first checkpoint. Raises: ClusterError if it ends before that."""
    folder = RunFolder(prepared.run_dir)
    while newest_checkpoint(folder.checkpoints) is None:
        if (end := running.end()) is not None:
            raise ClusterError(f"{prepared.run_dir} ended before it could be killed: {end}. Take more --steps")
        time.sleep(0.02)
    running.kill()
    if folder.result() is not None:
        raise ClusterError(
            f"{prepared.run_dir} was complete before it could be killed. Remove it, and take more --steps"
        )


class _Here:
    """Processes of this machine."""

    def __init__(self, prepared: PreparedRun, plan: Plan) -> None:
        prepared.make_folder()
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "cifarscale", "train", str(RunFolder(prepared.run_dir).recipe)),
                *(
                    "--run-dir",
                    str(prepared.run_dir),
                    "--data",
                    str(prepared.options.shards),
                    "--nproc",
                    str(plan.world_size),
                    *(["--digests"] if prepared.options.digests else []),
                ),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def end(self) -> str | None:
        if self._process.poll() is None:
            return None
        lines = self._process.communicate()[1].strip().splitlines()
        return f"code {self._process.returncode}{f', {lines[-1]}' if lines else ''}"

    def kill(self) -> None:
        self._process.kill()  # its ranks end with it
        self._process.wait()


class _Queued:
    """A job of SLURM's."""

    def __init__(self, job: slurm.JobKey) -> None:
        self._job = job

    def end(self) -> str | None:
        state = slurm.job_state(self._job)
        if state is not None and state.is_active:
            return None
        return f"job {self._job} is {state.state if state else 'unknown to SLURM'}"

    def kill(self) -> None:
        slurm.command("scancel", "--signal=KILL", self._job.job_id)
        while self.end() is None:
            time.sleep(0.5)


class _Ended:
    """A run that was complete before."""

    def end(self) -> str | None:
        return "complete"

    def kill(self) -> None:
        """Nothing is left to kill."""


def _start_here(prepared: PreparedRun, profile: Profile, plan: Plan) -> Running:
    return _Ended() if RunFolder(prepared.run_dir).result() else _Here(prepared, plan)


def _queue(prepared: PreparedRun, profile: Profile, plan: Plan) -> Running:
    if RunFolder(prepared.run_dir).result():
        return _Ended()
    return _Queued(submit([prepared], profile, plan)[0].key)
