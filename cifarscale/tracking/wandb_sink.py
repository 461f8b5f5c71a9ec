"""Weights & Biases beside metrics.jsonl. This module alone imports wandb, in a thread that training never waits for.

The thread follows the run folder: metrics.jsonl is its queue, which neither overflows nor gets lost. Whenever training
starts, W&B is made whole from there: an offline file holds the run from its first step, and takes the place of the one
of the start before; online, the run goes on after the last step that the server has.
"""

import logging
import os
import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifarscale.config.recipe import TrainingRecipe, resolved
from cifarscale.errors import Interrupted, RunError, short_path, typed
from cifarscale.runs.checkpoint import newest_checkpoint
from cifarscale.tracking.wandb_folder import WandbFolder
from cifarscale.tracking.wandb_mode import why_unreachable
from cifarscale.tracking.wandb_rows import Row, Rows, flat

if TYPE_CHECKING:
    import wandb

log = logging.getLogger(__name__)

Media = Callable[[Path], dict[str, Any]]
"""Makes, of the folder of a complete run, the tables and plots that W&B gets at its end."""
PERIOD_S = 2.0
"""Seconds between two looks at metrics.jsonl."""
INIT_S = 15
"""How long W&B may take to open a run over the network, before it is offline."""
FINISH_S = 30
"""How long W&B may take at a run's end; what is not uploaded by then, `cifarscale sync` uploads."""
INTERRUPTED_S = 10
"""The same for a run that was interrupted: whoever did that will not wait for long."""
FAILED, KILLED = 1, 255
"""W&B's exit codes of a run that failed, and of one that was stopped."""


@dataclass(frozen=True)
class End:
    """How a run ended: with a result, or an error."""

    result: dict[str, Any] | None
    error: BaseException | None

    @property
    def is_warned(self) -> bool:
        """Whether it will go on in a new allocation."""
        return isinstance(self.error, Interrupted) and self.error.to_continue

    @property
    def exit_code(self) -> int:
        if self.error is None:
            return 0
        stopped = isinstance(self.error, Interrupted) or not isinstance(self.error, Exception)
        return KILLED if stopped and not self.is_warned else FAILED


class WandbSink:
    """Tells W&B of a run."""

    def __init__(self, run_dir: Path, recipe: TrainingRecipe, mode: str, media: Media) -> None:
        """
        Args:
            mode: `online` or `offline`.
        """
        self._folder, self._recipe, self._mode, self._media = WandbFolder(run_dir), recipe, mode, media
        self._ending = threading.Event()
        self._end = End(None, None)
        self._is_given_up = False
        self._thread = threading.Thread(target=self._run, name="wandb", daemon=True)

    def started(self, step: int) -> None:
        self._thread.start()

    def log(self, step: int, values: dict[str, float]) -> None:
        """The thread finds them in metrics.jsonl."""

    def finish(self, result: dict[str, Any] | None, error: BaseException | None) -> None:
        if not self._thread.is_alive():
            return
        self._end = End(result, error)
        self._ending.set()
        self._thread.join(FINISH_S if error is None else INTERRUPTED_S)
        if self._thread.is_alive():
            self._is_given_up = True
            log.warning("W&B takes too long to finish. Later run: cifarscale sync %s", short_path(self._folder.run_dir))

    def _run(self) -> None:
        try:
            self._follow()
        except Exception as error:  # whatever it is, it is not worth a training
            if self._is_given_up:
                return
            log.warning(
                "W&B is left out from here (%s). Later run: cifarscale sync %s", first_line(error), self._folder.run_dir
            )

    def _follow(self) -> None:
        run, after = open_run(self._folder, self._recipe, self._mode)
        where = short_path(self._folder.path), typed(short_path(self._folder.run_dir))
        later = "offline, in {}; to upload it run: cifarscale sync {}".format(*where)
        log.info("W&B %s", later if run.offline else run.url)
        rows = Rows(self._folder.run_dir, after)
        is_over = False
        while not is_over:
            is_over = self._ending.wait(PERIOD_S)
            log_rows(run, rows, to_the_end=is_over and not isinstance(self._end.error, Interrupted))
        close_run(run, self._folder, self._recipe, self._end, self._media)


def open_run(folder: WandbFolder, recipe: TrainingRecipe, mode: str) -> "tuple[wandb.Run, int]":
    """Opens the W&B run of a run folder, offline where the server cannot be used.

    Returns: the run, and the last step that it has already, -1 for none.
    """
    import wandb

    reason = why_unreachable(server_address()) if mode == "online" else ""
    if reason:
        log.warning("W&B is offline for this run: %s", reason)
        mode = "offline"
    before = folder.segments()
    folder.uploaded.unlink(missing_ok=True)
    try:
        run = _init(folder, recipe, mode)
    except (wandb.Error, TimeoutError) as error:
        if mode == "offline":
            raise
        log.warning("W&B is offline for this run: %s", first_line(error))
        mode = "offline"
        wandb.teardown()  # or the run's id stays in use by the one that did not open
        run = _init(folder, recipe, mode)
    for segment in before:
        shutil.rmtree(segment, ignore_errors=True)
    run.define_metric("*", step_metric="step")
    return run, run.starting_step - 1 if mode == "online" else -1


def server_address() -> str:
    """Where W&B uploads to, by its own settings; it prints nothing from here on."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # or it tells its maker of each run, and waits for that
    import wandb

    silent = wandb.Settings(silent=True, quiet=True, console="off")
    address: str = wandb.setup(silent).settings.base_url
    wandb.termsetup(silent, None)
    return address


def _init(folder: WandbFolder, recipe: TrainingRecipe, mode: str) -> "wandb.Run":
    import wandb

    os.environ["WANDB_DATA_DIR"] = str(folder.path.absolute() / "data")  # tables wait there for their upload
    server_address()
    settings = wandb.Settings(
        root_dir=str(folder.run_dir.absolute()),
        silent=True,
        quiet=True,
        console="off",
        init_timeout=INIT_S,
        finish_timeout=FINISH_S,
        finish_timeout_raises=True,
        disable_git=True,
        disable_code=True,
        x_save_requirements=False,
    )
    environment = folder.environment()
    return wandb.init(
        mode="online" if mode == "online" else "offline",
        resume="allow" if mode == "online" else None,
        id=folder.make_id(),
        name=folder.run_dir.absolute().name,
        project=folder.project(recipe.tracking),
        group=folder.group(recipe),
        job_type=recipe.task,
        tags=folder.tags(recipe.tracking),
        notes=recipe.description or None,
        config={**resolved(recipe), "environment": environment},
        reinit="create_new",
        settings=settings,
    )


def log_rows(run: "wandb.Run", rows: Rows, to_the_end: bool) -> None:
    """Tells W&B of the rows that are new, each dated as it was reported."""
    import wandb

    for row in rows.new(to_the_end):
        run.log(_values(row, wandb.Image), step=row.step)


def first_line(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


def _values(row: Row, image: Any) -> dict[str, Any]:
    values: dict[str, Any] = {**row.values, "step": row.step}
    if "time" in values:
        values["_timestamp"] = values.pop("time")
    if row.samples is not None:
        values["samples"] = image(str(row.samples), caption=f"step {row.step:,}")
    return values


def close_run(run: "wandb.Run", folder: WandbFolder, recipe: TrainingRecipe, end: End, media: Media) -> None:
    """Adds the final metrics and tables, and finishes the W&B run."""
    if end.result is not None:
        run.summary.update({key: value for key, value in flat(end.result).items() if key not in ("name", "task")})
        try:
            if tables := media(folder.run_dir):
                run.log(tables)
            if recipe.tracking.artifact:
                _log_checkpoint(run, folder.run_dir, recipe)
        except Exception as error:
            log.warning("W&B does not take the tables of %s: %s", folder.run_dir, first_line(error))
    if end.is_warned:
        run.mark_preempting()
    is_online = not run.offline
    run.finish(exit_code=end.exit_code)
    if is_online:
        folder.uploaded.touch()


def _log_checkpoint(run: "wandb.Run", run_dir: Path, recipe: TrainingRecipe) -> None:
    import wandb

    checkpoint = newest_checkpoint(run_dir / "checkpoints")
    if checkpoint is not None:
        artifact = wandb.Artifact(f"{recipe.name}-checkpoint", type="model", metadata={"file": checkpoint.name})
        artifact.add_file(str(checkpoint), policy="immutable", skip_cache=True)
        run.log_artifact(artifact)


def rebuild_offline(folder: WandbFolder, recipe: TrainingRecipe, result: dict[str, Any] | None, media: Media) -> None:
    """Makes the offline file of a run, whole, from its run folder."""
    run, after = open_run(folder, recipe, "offline")
    log_rows(run, Rows(folder.run_dir, after), to_the_end=True)
    close_run(run, folder, recipe, End(result, None if result else RunError("the run is not complete")), media)


def sinks_of(run_dir: Path, recipe: TrainingRecipe, mode: str, media: Media) -> Sequence[WandbSink]:
    """The sink that W&B's mode calls for, if any."""
    return () if mode == "off" else (WandbSink(run_dir, recipe, mode, media),)
