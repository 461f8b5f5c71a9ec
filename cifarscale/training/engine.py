"""The one training loop: steps, mixed precision, checkpoints, signals and the log, for every learner."""

import contextlib
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from cifarscale.config.recipe import Stage
from cifarscale.data.batches import Batch, Reader
from cifarscale.distributed.device import arithmetic
from cifarscale.distributed.group import Group
from cifarscale.distributed.step_values import DIRECT, StepTables
from cifarscale.errors import (
    CheckpointError,
    ConfigError,
    DistributedError,
    Interrupted,
    NonFiniteLossError,
    first_line,
)
from cifarscale.runs.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from cifarscale.training.digest import digest_of
from cifarscale.training.graph import Graph, StepGraphs, StepResult, lacks_memory
from cifarscale.training.learner import Learner, LearnerContext, Outputs, Prepared
from cifarscale.training.metrics_buffer import MetricsBuffer
from cifarscale.training.microbatches import Microbatches, trained
from cifarscale.training.norm_layers import average_over_batches, has_statistics, reset_statistics
from cifarscale.training.optimisation import (
    MovingAverage,
    build_optimizer,
    check_rates,
    clip_gradient,
    learning_rate_factor,
)
from cifarscale.training.signals import CONTINUE_LATER, StopRequest
from cifarscale.training.timing import Timing

log = logging.getLogger(__name__)

STOP_HEARD_S = 0.25
"""About how often ranks tell each other whether they were asked to stop; one process alone looks at each step."""
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Observer(Protocol):
    """Sees what training reports; rank 0's alone is called."""

    def trained(self, step: int, values: dict[str, float]) -> None:
        """A line of the training log."""

    def evaluated(self, step: int, values: dict[str, float]) -> None:
        """Metrics of an evaluation during training."""

    def started(self, step: int) -> None:
        """Training goes on after `step` (0 at first); whatever was reported of later steps is void."""

    def stepped(self, step: int, networks: Mapping[str, nn.Module]) -> None:
        """A step is done, and has made this of the networks."""

    def saving(self) -> None:
        """A checkpoint is about to be written; what was reported must outlive it."""


class Engine:
    """Trains a learner by its recipe."""

    def __init__(
        self,
        stage: Stage,
        run: str,
        learner: Learner,
        reader: Reader,
        context: LearnerContext,
        observer: Observer,
        stop: StopRequest,
        make_graph: Callable[[], Graph] | None = None,
    ) -> None:
        """
        Args:
            stage: the part of the run to train.
            run: the hash of the whole recipe.
            context: that of the learner.
            make_graph: of what a step's operations are recorded in, and replayed; None to do without.
        """
        recipe, group, pool, device = stage.recipe, context.group, context.pool, context.device
        self._stage, self._run, self._recipe, self._learner, self._reader = stage, run, recipe, learner, reader
        self._group, self._pool, self._device = group, pool, device
        self._checkpoints, self._observer, self._stop = context.folder.checkpoints, observer, stop
        self._ahead: Future[Prepared] | None = None
        training = recipe.training
        self._microbatches = Microbatches(learner.networks, training.microbatches, group, pool, recipe.seed)
        self._batch_size = training.global_batch_size // self._microbatches.total
        optimized = {name: learner.networks[name] for name in learner.optimized_networks}
        check_rates(optimized, training.rates)
        self._optimizers = {
            name: build_optimizer(network, *recipe.optimizer_of(name), training.rates)
            for name, network in optimized.items()
        }
        self._averages = {
            name: MovingAverage(network, training.ema_decay)
            for name, network in optimized.items()
            if training.ema_decay
        }
        self._statistics: Microbatches | None = None
        if training.ema_statistics:
            if not has_statistics(self.networks.values()):
                raise ConfigError(
                    f"training.ema_statistics = {training.ema_statistics} is for batch normalisation, and the network "
                    "has none: set it to 0"
                )
            self._statistics = Microbatches(self.networks, training.microbatches, group, pool, recipe.seed)
            for replica in self._statistics.replicas:
                average_over_batches(replica.values())
        self._statistics_of = -1
        self._scaler = torch.amp.GradScaler(device.type, enabled=training.precision == "fp16")
        self._norms: dict[str, torch.Tensor] = {}
        self._buffer = MetricsBuffer(group, self._microbatches.total, self._microbatches.numbers)
        self._tables = StepTables(device, stage.until) if device.type != "cpu" or make_graph else None
        self._values = self._tables or DIRECT
        self._graphs = self._graphs_of(make_graph) if make_graph else None
        self._step = 0
        self._evaluated_at = 0
        of_rank = recipe.samples_per_step // self._microbatches.total * self._microbatches.local
        self.timing = Timing(group, device, recipe.samples_per_step, of_rank)

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The networks to evaluate: the moving averages where the recipe keeps them."""
        return self._learner.networks | {name: average.network for name, average in self._averages.items()}

    def train(self, begin: Path | None) -> None:
        """Trains up to the stage's last step.

        Args:
            begin: the newest checkpoint of the run, which is gone on from; None if there is none.
        Raises:
            NonFiniteLossError: a loss was not finite; the checkpoints before it stand.
            Interrupted: a stop was requested; the state is saved.
        """
        try:
            self._train(begin)
        finally:
            self._graphs = None  # and the memory that they hold: what follows may need it

    def _train(self, begin: Path | None) -> None:
        training = self._recipe.training
        last = min(self._stage.until, self._stop.after_step or self._stage.until)
        if begin:
            self._restore(begin)
        if self._group.ranks.is_first:
            self._observer.started(self._step)
        if training.compile:
            self._compile()
        batches = self._reader.batches(self._step, self._values)
        saved_at = asked_at = self._step
        while True:
            if self._due(self._recipe.evaluation.every) and self._evaluated_at != self._step:
                self._evaluate()
            if self._step > saved_at and (self._due(training.checkpoint_every) or self._step >= last):
                self._save()
                saved_at = self._step
            if self._step == self._stage.until:
                return
            if self._step >= last:
                raise Interrupted(f"after step {self._step:,}, where it was asked to stop; the state is saved")
            asked = self._step == asked_at
            if asked:
                stopping = self._group.max_later(self._stop.requested, self.timing.steps_in(STOP_HEARD_S))
            with self.timing.step():
                with self._products():
                    self._train_step(batches)
                if self._step % training.log_every == 0:
                    self._log()
            if not asked:
                continue
            stop, steps = stopping.result()
            asked_at = self._step - 1 + steps
            if stop:
                if self._step > saved_at:
                    self._save()
                self._group.wait()
                raise Interrupted(
                    f"after step {self._step:,} of {training.max_steps:,}; the state is saved. "
                    "Run the same command again to go on",
                    to_continue=stop == CONTINUE_LATER,
                )

    def _train_step(self, batches: Iterator[Batch]) -> None:
        """The step `self._step`, which then counts as done."""
        if self._tables:
            with self.timing.waiting():
                self._tables.advance(self._step)
        if self._graphs:
            result = self._graphs.run(self._learner.kind_of(self._step), partial(self._update, batches))
            if self._is_logged and not result.norms:
                result = replace(result, norms=self._norms_of(result))
        else:
            result = self._update(batches)
        self._norms = result.norms
        # What a graph leaves is overwritten by its next replay.
        self._buffer.add(result.metrics.clone() if self._graphs else result.metrics)
        self._step += 1
        if self._ahead is not None:
            with self.timing.waiting():
                wait([self._ahead])  # before anybody else reads; what it raises is raised in the step that it is for
        if self._group.ranks.is_first:
            self._observer.stepped(self._step, self._learner.networks)

    def _update(self, batches: Iterator[Batch]) -> StepResult:
        """The learner's updates, on the batch of step `self._step`."""
        training = self._recipe.training
        norms: dict[str, torch.Tensor] = {}
        if self._tables:
            self._tables.load()
        self._set_learning_rates()
        with self.timing.own():
            updates = self._learner.updates(self._next(batches))
        local = self._microbatches.local
        logged: list[dict[str, torch.Tensor]] = [{} for _ in range(local)]
        done: Counter[str] = Counter()
        self._microbatches.begin_step()
        for name, samples in updates:
            optimizer = self._optimizers[name]
            if done[name]:
                self._scaler.update()  # it takes one update of an optimizer at a time
            with self.timing.own():
                parts = [samples.part(i, local) for i in range(local)]
                gradients, outputs = self._microbatches.gradients(name, self._loss, parts, self._step, done[name])
            is_last = done.total() == len(updates) - 1
            if self._pool.is_parallel and not self._tables and is_last:
                # What is left of the step takes one core.
                self._ahead = self._pool.ahead(partial(self._prepare, batches, self._step + 1))
            self._microbatches.exchange(name, gradients, is_last)
            del gradients  # those of each microbatch, while the next update is computed
            for metrics, part, (loss, *others) in zip(logged, parts, outputs, strict=True):
                metrics.update(self._learner.metrics(name, part, tuple(others)), loss=metrics.get("loss", 0) + loss)
            if training.gradient_clip_norm or (self._is_logged and not self._microbatches.is_recorded):
                self._scaler.unscale_(optimizer)
                norms[name] = clip_gradient(self._learner.networks[name], training.gradient_clip_norm)
            self._scaler.step(optimizer)
            done[name] += 1
        self._scaler.update()
        self._update_averages()
        return StepResult(self._buffer.row(logged), norms, self._gradients())

    @property
    def _is_logged(self) -> bool:
        """Whether a line of the log follows step `self._step`."""
        return (self._step + 1) % self._recipe.training.log_every == 0

    def _gradients(self) -> list[tuple[nn.Parameter, torch.Tensor | None]]:
        """Those of all parameters, where a graph may leave them elsewhere; none without."""
        if not self._graphs:
            return []
        return [(each, each.grad) for name in self._optimizers for each in self._learner.networks[name].parameters()]

    def _norms_of(self, result: StepResult) -> dict[str, torch.Tensor]:
        """The norms of the gradients that a step has left."""
        for parameter, gradient in result.gradients:
            parameter.grad = gradient
        return {name: clip_gradient(self._learner.networks[name], 0) for name in self._optimizers}

    def _graphs_of(self, make_graph: Callable[[], Graph]) -> StepGraphs | None:
        """None where it is known already that a step cannot be recorded."""
        reason = self._obstacle_to_graphs()
        if not reason:
            if self._device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(self._device)  # that of the first steps is what a graph would take
            repeats = self._recipe.training.microbatches > 0
            return StepGraphs(make_graph, self._state, self._recording, self._obstacle_of_warm_up, repeats)
        if self._group.ranks.is_first:
            log.info("steps are not replayed as a graph: %s", reason)
        return None

    def _obstacle_to_graphs(self) -> str:
        training = self._recipe.training
        if self._group.ranks.world_size > 1:
            return "several ranks exchange gradients within a step"
        if training.compile:
            return "training.compile has one of its own"
        if self._scaler.is_enabled():
            return 'training.precision = "fp16" decides on the CPU whether a step counts'
        if not self._reader.is_on_device:
            return 'data.reader = "streaming" brings each batch from the CPU'
        return self._learner.obstacle_to_graphs()

    def _obstacle_of_warm_up(self) -> str:
        """What the first steps have shown."""
        if drawing := self._microbatches.drawing:
            return f"the {drawing[0]} draws random numbers of its own"
        state = sum(tensor.nbytes for tensor in self._state().values())
        return lacks_memory(self._device, self._microbatches.num_streams, state)

    @contextlib.contextmanager
    def _recording(self) -> Iterator[None]:
        assert self._tables is not None
        self._tables.wait()
        self._microbatches.is_recorded = self._tables.is_recorded = True
        try:
            yield
        finally:
            self._microbatches.is_recorded = self._tables.is_recorded = False

    def _state(self) -> dict[str, torch.Tensor]:
        """All that a step changes and the next one reads, by names."""
        assert self._tables is not None
        averages = {f"average of {name}": average.network for name, average in self._averages.items()}
        state = {
            f"{name}.{key}": tensor
            for name, network in (self._learner.networks | averages).items()
            for key, tensor in (*network.named_parameters(), *network.named_buffers())
        }
        for name, optimizer in self._optimizers.items():
            for i, values in enumerate(optimizer.state.values()):
                state |= {f"{name}'s {key} {i}": value for key, value in values.items() if torch.is_tensor(value)}
        return state | self._tables.state

    def _next(self, batches: Iterator[Batch]) -> Prepared:
        """The batch of step `self._step`, prepared already where the step before had a core left for it."""
        if self._ahead is None:
            if self._tables and self._reader.is_on_device:
                batches = self._reader.batches(self._step, self._values)
            with self.timing.waiting():
                batch = next(batches)
            return self._learner.prepare(batch.to(self._device), self._step)
        ahead, self._ahead = self._ahead, None
        return ahead.result()

    def _prepare(self, batches: Iterator[Batch], step: int) -> Prepared:
        """Reads and prepares the batch of a step."""
        return self._learner.prepare(next(batches).to(self._device), step)

    def _set_learning_rates(self) -> None:
        """Those of step `self._step`, for all groups of parameters."""
        schedule, max_steps = self._recipe.schedule, self._recipe.training.max_steps
        groups = [
            (group, self._recipe.optimizer_of(name)[1], group.get("rate", 1.0))
            for name, optimizer in self._optimizers.items()
            for group in optimizer.param_groups
        ]

        def rates(step: int) -> list[float]:
            factor = learning_rate_factor(schedule, step, max_steps)
            return [peak * factor * rate for _, peak, rate in groups]

        values = self._values.numbers(("learning rates", None), self._step, rates, self._device)
        for (group, *_), value in zip(groups, values, strict=True):
            group["lr"] = value

    def _update_averages(self) -> None:
        """Takes in the weights after step `self._step`."""
        averages = list(self._averages.values())
        if not averages:
            return
        first = averages[0]
        (weight,) = self._values.numbers(
            ("averages", None), self._step, lambda step: (first.weight(step + 1),), self._device
        )
        for average in averages:
            average.update(weight)

    def _loss(
        self, update: str, networks: Mapping[str, nn.Module], part: Any, step: int
    ) -> tuple[torch.Tensor, Outputs]:
        """The loss of one microbatch in the recipe's precision, scaled for fp16; before the outputs unscaled."""
        with self._autocast():
            loss, outputs = self._learner.loss(update, networks, part, step)
        return self._scaler.scale(loss), (loss, *outputs)

    def _log(self) -> None:
        """Writes the means of the steps since the last line."""
        self._check_losses()
        values = self._buffer.means()
        self._buffer.clear()
        timing = self.timing.metrics()
        if self._group.ranks.is_first:
            progress = {"images": self._step * self._recipe.samples_per_step, **self._learning_rates(), **timing}
            if self._device.type == "cuda":
                progress["gpu_memory_gb"] = round(torch.cuda.max_memory_allocated(self._device) / 1e9, 3)
            self._observer.trained(self._step, values | self._gradient_norms() | progress)

    def _learning_rates(self) -> dict[str, float]:
        """Of the last step: one for all networks where they have the same."""
        training = self._recipe.training
        factor = learning_rate_factor(self._recipe.schedule, self._step - 1, training.max_steps)
        rates = {name: self._recipe.optimizer_of(name)[1] * factor for name in self._optimizers}
        if len(set(rates.values())) == 1:
            return {"learning_rate": next(iter(rates.values()))}
        return {f"{name}_learning_rate": rate for name, rate in rates.items()}

    def _gradient_norms(self) -> dict[str, float]:
        """The norm of each network's gradient in the last step, before clipping; none that overflowed."""
        norms = {name: float(norm) for name, norm in self._norms.items()}
        alone = len(norms) == 1
        return {
            "gradient_norm" if alone else f"{name}_gradient_norm": norm
            for name, norm in norms.items()
            if math.isfinite(norm)
        }

    def _check_losses(self) -> None:
        """Fetches the pending losses. Raises: NonFiniteLossError if one is not finite."""
        behind = self._buffer.fetch()
        if behind is not None:
            raise self._diverged(f"the loss of step {self._step - behind:,} is not finite")

    def _check_weights(self) -> None:
        """Raises: NonFiniteLossError if the last update overflowed, which only the next loss would show."""
        networks = self._learner.networks.values()
        if not all(bool(parameter.isfinite().all()) for network in networks for parameter in network.parameters()):
            raise self._diverged(f"the weights after step {self._step:,} are not finite")

    def _check_replicas(self) -> None:
        """Raises: DistributedError if the ranks' networks, which must be equal, are not."""
        digests = self._group.of_all(digest_of(self._learner.networks))
        if other := next((rank for rank, digest in enumerate(digests) if digest != digests[0]), None):
            last = newest_on_first(self._checkpoints, self._group)
            raise DistributedError(
                f"the weights of rank {other} after step {self._step:,} are not those of rank 0: its device computes "
                "wrongly, or the network draws random numbers of its own. "
                f"{f'The last good checkpoint is {last}' if last else 'There is no checkpoint yet'}. "
                "Run: cifarscale doctor"
            )

    def _diverged(self, what: str) -> NonFiniteLossError:
        last = newest_on_first(self._checkpoints, self._group)
        where = f"the last good checkpoint is {last}" if last else "there is no checkpoint yet"
        return NonFiniteLossError(
            f"{what}; {where}. Try a lower training.learning_rate, training.gradient_clip_norm=1, or "
            'training.precision="fp32"'
        )

    def _evaluate(self) -> None:
        self._check_losses()
        self._check_weights()
        self._estimate_statistics()
        values = self._learner.evaluate(self.networks, self._step)
        self._evaluated_at = self._step
        if values and self._group.ranks.is_first:
            self._observer.evaluated(self._step, values)

    def _estimate_statistics(self) -> None:
        """Sets the averaged networks' statistics of batch normalisation to means over the batches of the next steps.

        What is trained is left as it is: the statistics of its own follow from what it has seen.
        """
        if self._statistics is None or self._statistics_of == self._step:
            return
        estimated, learner = self._statistics, self._learner
        for network in self.networks.values():
            reset_statistics(network)
        steps = range(self._step, self._step + self._recipe.training.ema_statistics)
        for step, batch in zip(steps, self._reader.batches(self._step), strict=False):
            prepared = learner.prepare(batch.to(self._device), step)
            estimated.begin_step()
            for name, samples in learner.updates(prepared):
                estimated.compute(name, partial(self._forward, name, samples, step), step)
            estimated.end_step()
        self._statistics_of = self._step

    def _forward(self, name: str, samples: Prepared, step: int, i: int) -> None:
        """What a loss makes of local microbatch i, by the averaged networks."""
        assert self._statistics is not None
        part = samples.part(i, self._statistics.local)
        with self._autocast():
            self._learner.loss(name, self._statistics.replicas[i], part, step)

    def _save(self) -> None:
        self._check_losses()
        self._check_weights()
        self._check_replicas()
        self._estimate_statistics()
        if not self._group.ranks.is_first:
            return
        state = {
            "recipe": self._run,
            "step": self._step,
            "networks": {name: network.state_dict() for name, network in self._learner.networks.items()},
            "averages": {name: average.network.state_dict() for name, average in self._averages.items()},
            "optimizers": {name: _state_of(optimizer) for name, optimizer in self._optimizers.items()},
            "scaler": self._scaler.state_dict(),
            "metrics_buffer": self._buffer.fetched,
            "evaluated_at": self._evaluated_at,
            "seconds": self.timing.seconds,
            "data_seconds": self.timing.data_seconds,
            "world_size": self._group.ranks.world_size,
        }
        self._observer.saving()
        save_checkpoint(self._checkpoints, self._step, state, self._recipe.training.keep_checkpoints)

    def _restore(self, path: Path) -> None:
        state = load_checkpoint(path, self._device)
        if state["recipe"] != self._run:
            raise CheckpointError(f"{path} belongs to another recipe ({state['recipe']}); name another --run-dir")
        for name, network in self._learner.networks.items():
            network.load_state_dict(state["networks"][name])
        for name, average in self._averages.items():
            # An average that this stage is the first to keep begins as the weights are.
            average.network.load_state_dict(state["averages"].get(name) or state["networks"][name])
        for name, optimizer in self._optimizers.items():
            options = [{**group, "params": None} for group in optimizer.param_groups]
            optimizer.load_state_dict(state["optimizers"][name])
            for group, mine in zip(optimizer.param_groups, options, strict=True):
                group.update(mine, params=group["params"])  # the stage's own, not those of the stage before
        self._scaler.load_state_dict(state["scaler"])
        self._step = state["step"]
        self._buffer.fetched = state["metrics_buffer"]
        self._evaluated_at = state["evaluated_at"]
        self.timing.seconds = state["seconds"]
        self.timing.data_seconds = state.get("data_seconds", 0.0)
        if self._group.ranks.is_first:
            log.info("resuming after step %s from %s", f"{self._step:,}", path.name)
            if state["world_size"] != self._group.ranks.world_size and not self._recipe.training.microbatches:
                log.info(
                    "it ran on %d ranks before: with training.microbatches = 0 that is equal to rounding only",
                    state["world_size"],
                )

    def _compile(self) -> None:
        """Compiles the replicas, after a trial; where compiling fails on a rank all of them stay as they are."""
        failure = ""
        try:
            for name in self._learner.optimized_networks:
                compiled = torch.compile(self._microbatches.replicas[0][name])
                with self._autocast():
                    output = compiled(*self._learner.example_inputs(self._batch_size)[name])
                torch.autograd.grad(
                    output.float().sum(), trained(self._learner.networks[name].parameters()), materialize_grads=True
                )
        except Exception as error:
            failure = first_line(error) or type(error).__name__
            log.warning("torch.compile failed, going on without it: %s", failure)
        if any(self._group.of_all(failure)):
            if not failure:
                log.warning("torch.compile failed on another rank, going on without it")
            return
        for replica in self._microbatches.replicas:
            for name in self._learner.optimized_networks:
                replica[name].compile()

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        precision = self._recipe.training.precision
        if precision not in _DTYPES:
            return contextlib.nullcontext()
        return torch.autocast(self._device.type, _DTYPES[precision])

    def _products(self) -> contextlib.AbstractContextManager[None]:
        """Evaluation, outside of this, is IEEE's whatever the recipe says."""
        training = self._recipe.training
        if training.precision != "tf32":
            return contextlib.nullcontext()
        return arithmetic(self._device, tf32=True, repeatable=training.microbatches > 0)

    def _due(self, every: int) -> bool:
        return every > 0 and self._step > 0 and self._step % every == 0


def _state_of(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What `load_state_dict` takes on any device: learning rates are numbers."""
    state = optimizer.state_dict()
    return state | {"param_groups": [group | {"lr": float(group["lr"])} for group in state["param_groups"]]}


def newest_on_first(checkpoints: Path, group: Group) -> Path | None:
    """The newest checkpoint as the first rank finds it; the others need not read them all."""
    newest: Path | None = group.from_first(newest_checkpoint(checkpoints) if group.ranks.is_first else None)
    return newest
