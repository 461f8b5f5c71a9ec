"""What a job will be on a cluster, worked out before it is queued."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from cifarscale.config.ranks import batch_size_per_rank, most_microbatches
from cifarscale.config.recipe import Recipe, TrainingRecipe
from cifarscale.errors import ClusterError, ConfigError
from cifarscale.runs.run_folder import RunFolder
from cifarscale.slurm.client import Partition
from cifarscale.slurm.profile import Profile, minutes
from cifarscale.tasks.base import PreparedRun
from cifarscale.tracking.metrics import read_metrics


@dataclass(frozen=True)
class Pace:
    """What is known of a run before it is queued.

    Attributes:
        images_per_second: of the whole job, as measured before; None where nothing was.
        step: steps that are done already.
    """

    images_per_second: float | None = None
    step: int = 0


def known_pace(prepared: PreparedRun, runs: Sequence[Path]) -> Pace:
    """How fast a run was before: in its own folder, or else in the newest run of a recipe of that name.

    Args:
        runs: other run folders.
    """
    own = read_metrics(RunFolder(prepared.run_dir).metrics)
    step = own[-1]["step"] if own else 0
    others = sorted(
        (run for run in runs if run.name.startswith(f"{prepared.recipe.name}-") and run != prepared.run_dir),
        key=lambda run: run.stat().st_mtime,
    )
    for metrics in chain([own], (read_metrics(RunFolder(run).metrics) for run in reversed(others))):
        rates = [line["images_per_second"] for line in metrics if line.get("images_per_second")]
        if rates:
            return Pace(rates[-1], step)
    return Pace(None, step)


@dataclass(frozen=True)
class Plan:
    """A job's shape. What does not apply to a job, or is not known, is None.

    Attributes:
        shards_per_reader: for the streaming reader.
        checkpoint_seconds: between two checkpoints.
        checkpoints: that are expected before the time limit.
        hours: that the rest of the run is expected to take.
        attempts: of the job after each other, each up to the time limit, that this takes.
    """

    nodes: int
    tasks_per_node: int
    gpus_per_node: int
    cpus_per_task: int
    time_min: int
    batch_size_per_rank: int | None = None
    microbatches_per_rank: int | None = None
    shards_per_reader: int | None = None
    checkpoint_seconds: float | None = None
    checkpoints: int | None = None
    hours: float | None = None
    attempts: int | None = None

    @property
    def world_size(self) -> int:
        return self.nodes * self.tasks_per_node

    @property
    def device(self) -> str:
        return "cuda" if self.gpus_per_node else "cpu"


def make_plan(
    recipe: Recipe,
    profile: Profile,
    nodes: int,
    partition: Partition | None = None,
    pace: Pace = Pace(),
    num_shards: int = 0,
    num_workers: int = 0,
) -> Plan:
    """The plan of a job on some nodes of a cluster.

    Args:
        partition: what the cluster offers; None where nothing is known of it.
        num_shards: shards of the training split.
        num_workers: reading processes a rank.
    Raises: ConfigError or ClusterError for whatever would fail later, in the queue or on the nodes.
    """
    plan = shape(profile, nodes)
    if recipe.one_rank_a_node:
        plan = _of_whole_nodes(plan)
        where = f"a node of profile {profile.name}"
        recipe.check_nodes(plan.nodes, plan.cpus_per_task, plan.gpus_per_node, where, are_reserved=True)
    if partition is not None and (unmet := unmet_resources(plan, profile, partition)):
        raise ClusterError(next(iter(unmet.values())))
    if not isinstance(recipe, TrainingRecipe):
        return plan
    training, world_size = recipe.training, plan.world_size
    known: dict[str, Any] = {"batch_size_per_rank": batch_size_per_rank(recipe, world_size)}
    if training.microbatches:
        known["microbatches_per_rank"] = most_microbatches(recipe, world_size)
    if recipe.data.reader == "streaming" and num_shards:
        readers = world_size * max(1, num_workers)
        if readers > num_shards:
            raise ConfigError(
                f"{world_size} ranks x {max(1, num_workers)} readers need at least {readers} shards, and there are "
                f"{num_shards}. Run: cifarscale shards build --num-shards {readers}"
            )
        known["shards_per_reader"] = num_shards // readers
    if pace.images_per_second:
        known |= _forecast(recipe, pace.images_per_second, pace.step, plan.time_min, profile)
    return replace(plan, **known)


def shape(profile: Profile, nodes: int) -> Plan:
    """What of a plan does not depend on the job."""
    tasks = profile.gpus_per_node or profile.tasks_per_node or 1
    return Plan(nodes, tasks, profile.gpus_per_node, profile.cpus_per_task, minutes(profile.time))


def _of_whole_nodes(plan: Plan) -> Plan:
    """One task a node, with all that the node's tasks would have had: a rank shares it out by itself."""
    return replace(plan, tasks_per_node=1, cpus_per_task=plan.tasks_per_node * plan.cpus_per_task)


def unmet_resources(plan: Plan, profile: Profile, partition: Partition) -> dict[str, str]:
    """What the partition does not offer of what a plan asks for: the errors, by `nodes`, `time`, `GPUs` and `cores`."""
    name = partition.name
    errors = {}
    if plan.nodes > partition.nodes:
        errors["nodes"] = f"--nodes {plan.nodes} is more than the {partition.nodes} nodes of partition {name}"
    if partition.max_time_min is not None and plan.time_min > partition.max_time_min:
        errors["time"] = (
            f"time = {profile.time!r} is longer than the {partition.max_time_min} minutes of partition {name}. "
            "Take less with --time: a run that is longer goes on in the same job, which queues itself again"
        )
    if plan.gpus_per_node > partition.gpus:
        errors["GPUs"] = (
            f"gpus_per_node = {plan.gpus_per_node} is more than the {partition.gpus} GPUs that a node of partition "
            f"{name} has. Take fewer with --gpus-per-node, another partition, or --profile cpu"
        )
    if plan.tasks_per_node * plan.cpus_per_task > partition.cpus:
        errors["cores"] = (
            f"{plan.tasks_per_node} tasks x cpus_per_task = {plan.cpus_per_task} are more than the {partition.cpus} "
            f"cores that a node of partition {name} has"
        )
    return errors


def _forecast(
    recipe: TrainingRecipe, images_per_second: float, step: int, time_min: int, profile: Profile
) -> dict[str, Any]:
    """What a known pace says. Raises: ConfigError if the time limit is shorter than one checkpoint interval."""
    training = recipe.training
    per_step = recipe.samples_per_step / images_per_second
    usable = 60 * time_min - profile.warning_seconds
    interval = training.checkpoint_every * per_step
    rest = (training.max_steps - step) * per_step
    if usable < min(interval, rest):
        raise ConfigError(
            f"time = {profile.time!r} leaves {usable} s before SLURM's warning, which is shorter than one checkpoint "
            f"interval: {training.checkpoint_every:,} steps take {interval:,.0f} s at {images_per_second:,.0f} images "
            "a second. "
            f"Take more with --time, or --set training.checkpoint_every={max(1, int(usable / per_step / 2))}"
        )
    return {
        "checkpoint_seconds": interval,
        "checkpoints": math.ceil(min(usable, rest) / interval),
        "hours": rest / 3600,
        "attempts": math.ceil(rest / usable),
    }
