"""Jobs on a SLURM cluster in scripts and notebooks."""

import itertools
import math
import time as clock
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifarscale.api.offers import Request, nothing_to_do
from cifarscale.api.recipes import folder_for, recipe_of
from cifarscale.api.runs import Run, load
from cifarscale.config.load import Changes, recipe_hash
from cifarscale.config.recipe import Recipe, TrainingRecipe
from cifarscale.errors import CifarscaleError, ConfigError, RunError, TooManyRanksError, short_path, typed
from cifarscale.launch.local import announce, run_here
from cifarscale.launch.run import prepare
from cifarscale.runs.options import RunOptions
from cifarscale.runs.run_folder import RunFolder, run_folders
from cifarscale.slurm import client as slurm
from cifarscale.slurm.plan import Plan, known_pace, make_plan, shape
from cifarscale.slurm.profile import Profile, load_profile, with_options
from cifarscale.slurm.status import require_rank_log
from cifarscale.slurm.submitted import Submitted, find_run, submissions
from cifarscale.tasks.base import PreparedRun

if TYPE_CHECKING:
    from cifarscale.explain.explanation import Explanation

UNKNOWN = "UNKNOWN"


class Job:
    """A run with its job in SLURM's queue.

    Attributes:
        path: the run folder.
        id: SLURM's number, such as 12, or 12_3 of an array; None of a run that no job was queued for.
    """

    def __init__(self, path: Path, submitted: Submitted | None) -> None:
        self.path, self._submitted = path, submitted
        self.id = submitted.job_id if submitted else None

    def __repr__(self) -> str:
        return f"Job({self.id or str(self.path)!r})"

    @property
    def run(self) -> Run:
        """The run, as `load` gives it."""
        return load(self.path)

    def state(self) -> str:
        """In SLURM's words: PENDING, RUNNING, COMPLETED, FAILED, …; UNKNOWN if it has forgotten the job.

        Without a job it is COMPLETED if the run is complete, else UNKNOWN.
        """
        if self._submitted is None:
            return "COMPLETED" if RunFolder(self.path).result() is not None else UNKNOWN
        state = slurm.job_state(self._submitted.key)
        return state.state if state else UNKNOWN

    def wait(self, timeout: float | None = None) -> Run:
        """The run, when the job has ended.

        Args:
            timeout: seconds; None is no limit.
        Raises: RunError if the run is not complete then; TimeoutError if the job goes on after the time.
        """
        for _ in changes([self], timeout):
            pass
        return completed(self)

    def logs(self, rank: int = 0) -> str:
        """What a rank has printed. Raises: RunError if there is nothing yet."""
        return require_rank_log(self.path, rank).read_text(encoding="utf-8", errors="replace")

    def why(self) -> "Explanation":
        """Why the job is pending, whether it goes on, or why it ended, and what to do: to be printed."""
        from cifarscale.explain.evidence import gather
        from cifarscale.explain.why import explain

        return explain(gather(self.path, short_path(self.path), self._submitted))

    def cancel(self) -> bool:
        """Cancels the job; its run saves its state first, and goes on when it is submitted again.

        Returns: whether there was anything to cancel: False if the job has ended.
        Raises: RunError if there is no job.
        """
        if self._submitted is None:
            raise RunError(f"{short_path(self.path)} was never submitted; a run of this machine's own ends with Ctrl-C")
        state = slurm.job_state(self._submitted.key)
        if state is None or not state.is_active:
            return False
        slurm.cancel(self._submitted.job_id)
        return True


@dataclass(frozen=True)
class JobPlan:
    """What jobs will be, worked out and checked before they are queued.

    Attributes:
        runs: what is to run, each in its folder (`run_dir`).
        profile: the cluster profile.
        shape: nodes, ranks, cores and time of each job.
        at_once: most jobs that run at the same time; 0 for any number.
    """

    runs: tuple[PreparedRun, ...]
    profile: Profile
    shape: Plan
    at_once: int = 0
    _options: tuple[str, ...] = field(default=(), repr=False)

    @property
    def script(self) -> str:
        """What sbatch is given; empty where there is no SLURM in it (profile `local`)."""
        from cifarscale.slurm.submission import sbatch_script

        return sbatch_script(self.runs[0], self.profile, self.shape) if self.profile.launcher == "slurm" else ""

    def rows(self) -> dict[str, str]:
        """What `cifarscale submit --dry-run` shows."""
        recipe, plan = self.runs[0].recipe, self.shape
        on, cores = f"{plan.gpus_per_node} GPUs" if plan.gpus_per_node else "CPUs", f"{plan.cpus_per_task} cores"
        whole = recipe.one_rank_a_node
        rows: dict[str, object] = {
            "profile": f"{self.profile.name} ({self.profile.launcher})",
            "nodes": plan.nodes,
            "ranks": None if whole else f"{plan.world_size}: {plan.tasks_per_node} a node, on {on}, {cores} each",
            "a node": f"{cores}, {plan.gpus_per_node} GPUs" if whole else None,
            **recipe.plan_rows(plan.nodes, plan.cpus_per_task, plan.gpus_per_node),
            "batch a rank": plan.batch_size_per_rank,
            "microbatches a rank": _microbatches(recipe, plan),
            "shards a reader": plan.shards_per_reader,
            "time limit": f"{self.profile.time}, warned {self.profile.warning_seconds} s before",
            "jobs": len(self.runs) if len(self.runs) > 1 else None,
            "run folder": "\n".join(_named(run.run_dir) for run in self.runs),
        }
        if plan.checkpoint_seconds is not None and plan.hours is not None:
            rows |= {
                "a checkpoint every": f"{plan.checkpoint_seconds:,.0f} s",
                "checkpoints in the time": plan.checkpoints,
                "whole run": f"about {plan.hours:.1f} h, {plan.attempts} starts",
            }
        elif plan.batch_size_per_rank is not None:
            rows["checkpoints in the time"] = "not known before a first run has shown its pace"
        return {name: str(value) for name, value in rows.items() if value is not None}

    def complete(self) -> list[Run]:
        """Those of the runs that are complete, and will not be queued."""
        return [load(run.run_dir) for run in self.runs if run.result() is not None]

    def submit(self, tell: Callable[[Job], None] = lambda job: None) -> list[Job]:
        """Queues what is not complete; with the profile `local` it runs here, one after the other.

        Args:
            tell: is called with each job when it is queued, or has run.
        Returns: a job for each run.
        Raises: CifarscaleError with the text that the command line prints; nothing is queued then.
        """
        from cifarscale.slurm.submission import submit

        waiting = [run for run in self.runs if run.result() is None]
        if self.profile.launcher == "local":
            for run in waiting:
                announce(run)
                run_here(run, self.shape.world_size)
                tell(Job(run.run_dir, None))
        elif waiting:
            submitted = submit(waiting, self.profile, self.shape, self.at_once, self._options)
            for run, job in zip(waiting, submitted, strict=True):
                tell(Job(run.run_dir, job))
        return [_newest_job(run.run_dir) for run in self.runs]


def job(job_or_run: str | int | Path | Run) -> Job:
    """The job of a number such as 12 or "12_3", or the newest that was queued for a run.

    Raises: RunError for what is neither a job's number, nor a run folder or its name below runs/.
    """
    return Job(*find_run(str(job_or_run.path if isinstance(job_or_run, Run) else job_or_run)))


def plan(
    recipe: str | Path | Recipe,
    *,
    nodes: int = 1,
    gpus_per_node: int | None = None,
    profile: str | Path | None = None,
    time: str | None = None,
    set: Changes | None = None,
    seed: int | None = None,
    scale: int = 1,
    array: Mapping[str, Sequence[Any]] | str | None = None,
    at_once: int | None = None,
    data: str | Path | None = None,
    run_dir: str | Path | None = None,
    num_workers: int = 0,
    graph: bool = True,
    on_cluster: bool = False,
) -> JobPlan:
    """What `submit` would queue: `.rows()` and `.script` show it, `.submit()` queues it.

    With `array` it is one job for each value of a key, as a job array:
    `cs.plan("cnn", array={"seed": range(3)}).submit()`.

    Args:
        recipe, nodes, gpus_per_node, profile, time, set, seed, scale, data, run_dir, num_workers, graph: as in
            `submit`.
        array: keys with the values that they have in turn, in all combinations; or a text `KEY=V1,V2,…`.
        at_once: most jobs of the array that run at the same time.
        on_cluster: whether SLURM has to be there; otherwise a plan is made without it, and checked as far as it can be.
    Raises: CifarscaleError with the text that the command line prints.
    """
    request = Request(
        recipe,
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        profile=profile,
        time=time,
        set=tuple(set.items() if isinstance(set, Mapping) else [set] if isinstance(set, str) else set or ()),
        seed=seed,
        scale=scale,
        array=array,
        at_once=at_once,
        data=data,
        run_dir=run_dir,
        num_workers=num_workers,
        graph=graph,
        on_cluster=on_cluster,
    )
    planned = _prepared(request)
    try:
        return replace(planned, shape=_shape(planned.runs, planned.profile, nodes, on_cluster))
    except TooManyRanksError as error:
        raise nothing_to_do(request, planned.runs, planned.profile, _is_possible) from error


def _prepared(request: Request, tell: bool = True) -> JobPlan:
    """A plan that is not checked against a cluster yet. `tell`: as of `recipe_of`."""
    options = {"gpus_per_node": request.gpus_per_node, "time": request.time}
    chosen = with_options(load_profile(str(request.profile) if request.profile else None), **options)
    if request.nodes < 1:
        raise ConfigError(f"nodes = {request.nodes} is not valid; it takes at least 1")
    if request.array and request.run_dir:
        raise ConfigError("--run-dir has no place for the several runs of --array; leave it out")
    if request.at_once and not request.array:
        raise ConfigError(f"--at-once {request.at_once} has no effect without --array")
    from cifarscale.slurm.submission import PATIENCE_S

    device = "cuda" if chosen.gpus_per_node else "cpu"
    placed = RunOptions(None, device, request.num_workers, PATIENCE_S, chosen.timeouts, graph=request.graph)
    named, variants = request.recipe, _variants(request.array) if request.array else [()]
    recipes = [recipe_of(named, [*request.set, *more], request.scale, tell, seed=request.seed) for more in variants]
    recipes = list({recipe_hash(each): each for each in recipes}.values())
    folders = [folder_for(named, each, request.run_dir) for each in recipes]
    where = str(request.data) if request.data else None
    runs = tuple(prepare(each, folder, where, placed) for each, folder in zip(recipes, folders, strict=True))
    return JobPlan(runs, chosen, shape(chosen, request.nodes), request.at_once or 0, tuple(request.place()))


def _is_possible(request: Request) -> bool:
    try:
        planned = _prepared(request, tell=False)
        _shape(planned.runs, planned.profile, request.nodes, request.on_cluster)
    except CifarscaleError:
        return False
    return True


def submit(
    recipe: str | Path | Recipe,
    *,
    nodes: int = 1,
    gpus_per_node: int | None = None,
    profile: str | Path | None = None,
    time: str | None = None,
    set: Changes | None = None,
    seed: int | None = None,
    scale: int = 1,
    data: str | Path | None = None,
    run_dir: str | Path | None = None,
    num_workers: int = 0,
    graph: bool = True,
) -> Job:
    """Queues a recipe on a SLURM cluster; a complete run is left as it is. The same call goes on with its run.

    Args:
        recipe: of any task, a sweep's included; a name, a .toml file, or a recipe, as in `train`.
        nodes: of the job.
        gpus_per_node: with one rank each; None for the profile's.
        profile: a cluster profile, by name or as a .toml file; None for $CIFARSCALE_PROFILE, or `gpu`.
        time: limit as SLURM writes it, such as 04:00:00; None for the profile's.
        set, seed, scale, data, run_dir, graph: as in `train`.
        num_workers: reading processes a rank, where the recipe streams its data.
    Raises: CifarscaleError with the text that the command line prints; nothing is queued then. The `details` of a
        TooManyRanksError, for a batch that has nothing for some of the ranks, are commands to choose from.
    """
    planned = plan(
        recipe,
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        profile=profile,
        time=time,
        set=set,
        seed=seed,
        scale=scale,
        data=data,
        run_dir=run_dir,
        num_workers=num_workers,
        graph=graph,
        on_cluster=True,
    )
    return planned.submit()[0]


def changes(jobs: Sequence[Job], timeout: float | None = None) -> Iterator[tuple[Job, str]]:
    """Each new state of a job, with SLURM's reason, until all have ended.

    Raises: TimeoutError if one goes on after so many seconds.
    """
    ends = float("inf") if timeout is None else clock.monotonic() + timeout
    shown: dict[str, str] = {}
    watches = [(job, slurm.Watch(job._submitted.key, longest_s=10)) for job in jobs if job._submitted is not None]
    while watches:
        for job, watch in list(watches):
            if not watch.look():
                continue
            state = watch.state
            text = "unknown to SLURM" if state is None else f"{state.state} {state.reason}".strip()
            if shown.get(watch.job.job_id) != text:
                shown[watch.job.job_id] = text
                yield job, text
            if not watch.is_active:
                watches.remove((job, watch))
        if watches and clock.monotonic() > ends:
            job, watch = watches[0]
            raise TimeoutError(f"job {watch.job} is {shown.get(watch.job.job_id, UNKNOWN)} after {timeout:g} s")
        if watches:
            clock.sleep(1)


def completed(job: Job) -> Run:
    """The run of a job that has ended. Raises: RunError if it is not complete."""
    if RunFolder(job.path).result() is None:
        name = short_path(job.path)
        raise RunError(f"{name} is not complete. Run: cifarscale why {typed(name)}")
    return job.run


def _newest_job(run_dir: Path) -> Job:
    return Job(run_dir, next(reversed(submissions(run_dir)), None))


def _named(run_dir: Path) -> str:
    return short_path(run_dir) + (" (complete)" if RunFolder(run_dir).result() else "")


def _microbatches(recipe: Recipe, plan: Plan) -> str | None:
    """Microbatches of a rank; where some have less, how many ranks would do."""
    each = plan.microbatches_per_rank
    if each is None or not isinstance(recipe, TrainingRecipe):
        return None
    enough = math.ceil(recipe.training.microbatches / each)
    return str(each) if enough >= plan.world_size else f"{each} at most: {enough} ranks would be as fast"


def _variants(array: Mapping[str, Sequence[Any]] | str) -> list[list[str | tuple[str, Any]]]:
    """The changes of each job of an array."""
    if isinstance(array, str):
        key, separator, values = array.partition("=")
        if not separator or not values.strip(","):
            raise ConfigError(f"--array {array!r} is not of the form KEY=V1,V2,…, such as seed=0,1,2")
        return [[f"{key}={value}"] for value in values.split(",")]
    if empty := next((key for key, values in array.items() if not len(values)), None):
        raise ConfigError(f"array: {empty} has no values; valid is such as {{'seed': [0, 1, 2]}}")
    return [list(zip(array, values, strict=True)) for values in itertools.product(*array.values())]


def _shape(runs: Sequence[PreparedRun], profile: Profile, nodes: int, on_cluster: bool) -> Plan:
    """The plan of each, checked against the cluster; that of the first is all's."""
    partition = None
    if profile.launcher == "slurm" and (on_cluster or slurm.available()):
        partition = slurm.known_partition(profile.partition, slurm.partitions(), f"profile {profile.name}")
    others = run_folders(runs[0].run_dir.parent)
    plans = [
        make_plan(
            run.recipe, profile, nodes, partition, known_pace(run, others), run.num_shards, run.options.num_workers
        )
        for run in runs
    ]
    return plans[0]
