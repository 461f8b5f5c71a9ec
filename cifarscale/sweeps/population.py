"""Population-based training, generation by generation: what each member trains next.

All members train up to a step and wait. The worse ones are then replaced: a new trial begins at the end of a better
one's, with changed values from there on. Its recipe says so in `later`, so that it is a function of its recipe like
any run: the checkpoint that it takes over is the one that it would come to by itself, and `cifarscale train` on the
recipe alone gives the same bits. Since no member goes ahead, the whole sweep is a function of its recipe, too, however
many trials run side by side, and however often it was interrupted.
"""

import shutil

from cifarscale.config.load import recipe_hash
from cifarscale.config.recipe import TrainingRecipe
from cifarscale.data.manifest import Manifest
from cifarscale.runs.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from cifarscale.runs.run_folder import RunFolder
from cifarscale.sweeps.exploration import chosen, difference, explored, num_replaced
from cifarscale.sweeps.recipe import PbtConfig, SweepRecipe
from cifarscale.sweeps.space import sample
from cifarscale.sweeps.trials import (
    FAILED,
    REPEATED,
    STOPPED,
    WAITING,
    SweepFolder,
    Trial,
    add_trial,
    ranked,
)
from cifarscale.tracking.metrics import read_metrics, write_metrics


class Population:
    """Hands out the trials of one generation after the other."""

    def __init__(self, sweep: SweepRecipe, base: TrainingRecipe, folder: SweepFolder, manifest: Manifest) -> None:
        assert isinstance(sweep.scheduler, PbtConfig)
        self._sweep, self._base, self._folder, self._manifest = sweep, base, folder, manifest
        self._scheduler, self._last = sweep.scheduler, base.training.max_steps
        for member in range(len(folder.trials), sweep.num_trials):
            values = sample(sweep.space, sweep.seed, member, base)
            trial = add_trial(values, sweep, base, folder, manifest, [{"step": 0, "set": values}])
            trial.member, trial.until = member, sweep.scheduler.interval_steps
        self.waits = True
        self._running: set[int] = set()
        self._pending = self._unfinished()

    def next(self) -> Trial | None:
        if not self._pending and not self._running:
            self.waits = self._begin_generation()
        if not self._pending:
            return None
        trial = self._pending.pop(0)
        self._running.add(trial.number)
        return trial

    def ended(self, trial: Trial) -> None:
        self._running.discard(trial.number)

    def _members(self) -> list[Trial]:
        """The trial that each member is now."""
        return list({trial.member: trial for trial in self._folder.trials}.values())

    def _unfinished(self) -> list[Trial]:
        """Members that have not come to the end of their generation."""
        return [trial for trial in self._members() if not (trial.is_done or self._has_arrived(trial))]

    @staticmethod
    def _has_arrived(trial: Trial) -> bool:
        return trial.state == WAITING and trial.step == trial.until

    def _begin_generation(self) -> bool:
        """Replaces the worst members and lets all go on. Returns: whether there is anything to train."""
        members = self._members()
        good = ranked(filter(self._has_arrived, members), self._sweep.mode)
        if not good:  # complete, or failed
            return False
        step = good[0].step
        number = num_replaced(len(members), self._scheduler)
        lost = [trial for trial in members if trial not in good]
        worst = good[max(1, len(good) - max(0, number - len(lost))) :]
        until = min(step + self._scheduler.interval_steps, self._last)
        for trial in (*lost, *worst):
            self._replace(trial, good[: max(1, min(number, len(good) - len(worst)))], step)
        for trial in self._members():
            trial.until, trial.starts = until, 0
        self._pending = self._unfinished()
        return bool(self._pending)

    def _replace(self, trial: Trial, best: list[Trial], step: int) -> None:
        """Puts a new trial in the place of one, begun where one of the best stands."""
        assert trial.member is not None
        generation = step // self._scheduler.interval_steps
        parent = best[chosen(self._sweep, generation, trial.member, len(best))]
        values = explored(self._sweep, self._base, parent.overrides, generation, trial.member)
        change = {"step": step, "set": difference(self._base, parent.overrides, values)}
        schedule = [*parent.schedule, *([change] if change["set"] else [])]
        new = add_trial(values, self._sweep, self._base, self._folder, self._manifest, schedule)
        new.member, new.origin, new.since = trial.member, parent.number, step
        if trial.state not in (FAILED, REPEATED):
            trial.state, trial.reason = STOPPED, f"trial {new.number} took its place at step {step:,}"
        if new.state == WAITING:
            new.step, new.value = step, parent.value
            continue_from(self._folder.run(parent), self._folder.run(new))


def continue_from(origin: RunFolder, run: RunFolder) -> None:
    """Gives a run what another has computed that begins as it does: its newest checkpoint, log and samples."""
    path = newest_checkpoint(origin.checkpoints)
    if path is None:
        return  # it then computes that itself
    state = load_checkpoint(path)
    state["recipe"] = recipe_hash(run.load_training_recipe())
    save_checkpoint(run.checkpoints, state["step"], state, keep=1)
    write_metrics(run.metrics, [line for line in read_metrics(origin.metrics) if line["step"] <= state["step"]])
    if origin.samples.is_dir():
        shutil.copytree(origin.samples, run.samples, dirs_exist_ok=True)
