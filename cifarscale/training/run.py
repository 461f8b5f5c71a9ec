"""The one way in which anything is trained."""

import json
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from cifarscale.config.load import recipe_hash
from cifarscale.config.ranks import batch_size_per_rank
from cifarscale.config.recipe import TrainingRecipe, stages_of
from cifarscale.data.dataset import Dataset
from cifarscale.data.manifest import Manifest
from cifarscale.distributed.cpu_pool import CpuPool
from cifarscale.distributed.device import arithmetic, device_name, pick_device
from cifarscale.distributed.group import Group, process_group
from cifarscale.distributed.ranks import ranks_from_environment
from cifarscale.errors import Interrupted, RunError, is_want_of_memory
from cifarscale.runs.checkpoint_files import checkpoint_step
from cifarscale.runs.environment import describe_environment
from cifarscale.runs.files import write_json_atomically, write_text_atomically
from cifarscale.runs.lease import lease
from cifarscale.runs.options import RunOptions
from cifarscale.runs.run_folder import RunFolder
from cifarscale.tracking.metrics import MetricsLog, read_metrics
from cifarscale.tracking.progress import TrainingProgress
from cifarscale.tracking.sink import Sink, Sinks
from cifarscale.tracking.wandb_mode import wandb_mode
from cifarscale.tracking.wandb_sink import Media, sinks_of
from cifarscale.training.cost import Cost, check_budget, count_parameters
from cifarscale.training.digest import digests_of
from cifarscale.training.engine import Engine, newest_on_first
from cifarscale.training.graph import CudaGraph
from cifarscale.training.learner import Learner, LearnerContext
from cifarscale.training.signals import StopRequest, stop_on_signals

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trainee:
    """What is trained, as its task gives it.

    Attributes:
        build: makes the learner of a stage of the recipe.
        cost: what a stage costs; None if that is not known.
        progress_metrics: logged values that the progress bar shows.
        media: see `Media`.
    """

    build: Callable[[TrainingRecipe, LearnerContext], Learner]
    cost: Callable[[TrainingRecipe, Manifest], Cost | None]
    progress_metrics: tuple[str, ...]
    media: Media


def train(
    trainee: Trainee,
    recipe: TrainingRecipe,
    folder: RunFolder,
    options: RunOptions,
    sink: Sink | None = None,
    stop: StopRequest | None = None,
) -> dict[str, Any]:
    """Trains by a resolved recipe to its end on all ranks, from the newest checkpoint on if there is one.

    Args:
        sink: takes what rank 0 reports, beside metrics.jsonl; what it raises ends the run, whose checkpoints stand.
        stop: how the caller asks the run to stop; None for signals.
    Returns: the result, the same on every rank; that of a complete run without computing anything.
    Raises: Interrupted if it was asked to stop; NonFiniteLossError if it diverged; other CifarscaleErrors for what
        was found wrong before the first step.
    """
    ranks = ranks_from_environment()
    for stage in stages_of(recipe):
        batch_size_per_rank(stage.recipe, ranks.world_size)
    device = pick_device(options.device, ranks.local_rank)
    stopping = nullcontext(stop) if stop else stop_on_signals()
    repeatable = recipe.training.microbatches > 0
    with (
        process_group(ranks, device, timeouts=options.timeouts) as group,
        arithmetic(device, repeatable=repeatable),
        _in_our_words(device),
    ):
        if not ranks.is_first:
            return _run(trainee, recipe, folder, options, group, device, sink, stopping)
        with lease(folder.lease, folder.refusal, options.patience_s):
            return _run(trainee, recipe, folder, options, group, device, sink, stopping)


@contextmanager
def _in_our_words(device: torch.device) -> Iterator[None]:
    """Raises: RunError in one line where torch, or Python, has no memory left, no repeatable way to compute, or nothing
    to take statistics of."""
    try:
        yield
    except ValueError as error:
        if not str(error).startswith("Expected more than 1 value per channel when training"):
            raise
        raise RunError(
            "batch normalisation has one value a channel in a microbatch, and needs more. Take a larger "
            "training.global_batch_size, fewer training.microbatches, or more pixels at that layer"
        ) from error
    except (RuntimeError, MemoryError) as error:
        message = str(error).splitlines()[0] if str(error) else "MemoryError"
        if operation := re.match("(.+) does not have a deterministic implementation", message):
            raise RunError(
                f"{operation[1]} gives other bits each time on a GPU, and training.microbatches promises the same. "
                "Take another layer in its place, or --set training.microbatches=0"
            ) from error
        if not is_want_of_memory(error):
            raise
        message = message[message.find(": ") + 1 :].strip()
        raise RunError(
            f"the memory of {device_name(device)} does not suffice ({message}). Take a smaller network or "
            "training.global_batch_size, more ranks, or more training.microbatches, which are computed in turn"
        ) from error


def _run(
    trainee: Trainee,
    recipe: TrainingRecipe,
    folder: RunFolder,
    options: RunOptions,
    group: Group,
    device: torch.device,
    sink: Sink | None,
    stopping: AbstractContextManager[StopRequest],
) -> dict[str, Any]:
    result: dict[str, Any] | None = group.from_first(folder.result())
    if result is not None:
        return result
    data, error, sinks = None, None, Sinks([MetricsLog(folder.metrics)])
    try:
        assert options.shards is not None
        data = Dataset(options.shards, recipe.data, device)
        if group.ranks.is_first:
            mode = wandb_mode(recipe.tracking)
            folder.error_file.unlink(missing_ok=True)
            folder.describe(describe_environment(torch.__version__, device_name(device), group.ranks.world_size))
            more = (sink,) if sink else ()
            sinks = Sinks([MetricsLog(folder.metrics), *sinks_of(folder.path, recipe, mode, trainee.media), *more])
    except Exception as caught:
        error = caught
    group.raise_together(error)
    assert data is not None
    try:
        context = LearnerContext(folder, data, group, _pool(recipe, device), device)
        result = _train(trainee, recipe, context, sinks, options, stopping)
    except BaseException as end:
        if group.ranks.is_first and isinstance(end, Exception) and not isinstance(end, Interrupted):
            folder.note_error(end)
        sinks.finish(None, end)
        raise
    sinks.finish(result, None)
    return result


def _pool(recipe: TrainingRecipe, device: torch.device) -> CpuPool:
    return CpuPool(one_core_each=device.type == "cpu" and recipe.training.microbatches > 0)


def _train(
    trainee: Trainee,
    recipe: TrainingRecipe,
    context: LearnerContext,
    sinks: Sink,
    options: RunOptions,
    stopping: AbstractContextManager[StopRequest],
) -> dict[str, Any]:
    """Trains to the end, and writes the result."""
    folder, data, group, device = context.folder, context.data, context.group, context.device
    if recipe.training.precision == "fp16" and device.type == "cpu" and group.ranks.is_first:
        log.warning("precision = 'fp16' is 40 to 75 times slower than 'fp32' on a CPU; 'bf16' is not")
    newest = newest_on_first(folder.checkpoints, group)
    if newest is None and group.ranks.is_first and folder.saved_step() is not None:
        log.warning("%s begins again at step 0: what it had trained is lost", folder.path)
    trained = checkpoint_step(newest) if newest else 0
    *others, final = stages_of(recipe)
    stages = [*(stage for stage in others if stage.until > trained), final]
    max_steps = recipe.training.max_steps
    make_graph = partial(CudaGraph, device) if options.graph and device.type == "cuda" else None
    with TrainingProgress(recipe.name, max_steps, trainee.progress_metrics) as progress, stopping as stop:
        digests = MetricsLog(folder.digests) if options.digests else None
        observer = _Observer(sinks, progress, MetricsLog(folder.metrics), digests)
        macs = _macs(trainee, recipe, data.manifest)  # before training: a teacher costs too, and may go away
        for stage in stages:
            learner = trainee.build(stage.recipe, context)
            check_budget(learner.networks, recipe.budget)
            reader = data.reader(stage.recipe, group, options.num_workers)
            engine = Engine(stage, recipe_hash(recipe), learner, reader, context, observer, stop, make_graph)
            engine.train(newest)
            newest = newest_on_first(folder.checkpoints, group)
    result = {
        "name": recipe.name,
        "task": recipe.task,
        "parameters": sum(map(count_parameters, learner.networks.values())),
        "steps": max_steps,
        "images": max_steps * recipe.samples_per_step,
        **macs,
        "images_per_second": round(engine.timing.images_per_second or _last_rate(folder), 1),
        "seconds": round(engine.timing.seconds, 1),
        "world_size": group.ranks.world_size,
        "device": device_name(device),
        **learner.result(engine.networks),
    }
    if group.ranks.is_first:
        for name, table in learner.tables().items():
            write_text_atomically(folder.path / f"{name}.json", json.dumps(table) + "\n")
        write_json_atomically(folder.result_file, result)
    group.wait()
    return result


def _macs(trainee: Trainee, recipe: TrainingRecipe, manifest: Manifest) -> dict[str, int]:
    """Multiply-accumulates for a sample in the end, and floating-point operations of the training, if known."""
    stages = stages_of(recipe)
    costs = [trainee.cost(stage.recipe, manifest) for stage in stages]
    last = costs[-1]
    known = {"macs": last.macs} if last and last.macs is not None else {}
    total, before = 0, 0
    for stage, cost in zip(stages, costs, strict=True):
        if cost is None or cost.training_macs is None:
            return known
        total += (stage.until - before) * recipe.training.global_batch_size * cost.training_macs
        before = stage.until
    return {**known, "training_flops": 2 * total}


def _last_rate(folder: RunFolder) -> float:
    """The throughput that an earlier start has logged, for one that only evaluates."""
    rates = [line["images_per_second"] for line in read_metrics(folder.metrics) if line.get("images_per_second")]
    return rates[-1] if rates else 0.0


class _Observer:
    """Passes what the engine reports to the sinks and to the progress display."""

    def __init__(
        self, sinks: Sink, progress: TrainingProgress, metrics: MetricsLog, digests: MetricsLog | None
    ) -> None:
        self._sinks, self._progress, self._metrics, self._digests = sinks, progress, metrics, digests

    def started(self, step: int) -> None:
        if self._digests:
            self._digests.started(step)
        self._sinks.started(step)
        self._progress.start_at(step)

    def trained(self, step: int, values: dict[str, float]) -> None:
        self._sinks.log(step, self._dated(values))
        self._progress.trained(step, values)

    def evaluated(self, step: int, values: dict[str, float]) -> None:
        self._sinks.log(step, self._dated(values))
        self._progress.evaluated(step, values)

    def stepped(self, step: int, networks: Mapping[str, nn.Module]) -> None:
        if self._digests:
            self._digests.log(step, digests_of(networks))

    def saving(self) -> None:
        self._metrics.flush()

    @staticmethod
    def _dated(values: dict[str, float]) -> dict[str, float]:
        """With the seconds since 1970, by which one can tell which start of a job wrote a line."""
        return {**values, "time": round(time.time(), 3)}
