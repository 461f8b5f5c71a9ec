"""Putting a job into SLURM's queue: whatever can be known before is checked before, then submitit queues it."""

import json
import logging
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from submitit import SlurmExecutor
from submitit.core.utils import FailedJobError, FailedSubmissionError
from submitit.slurm import slurm as submitit_slurm

from cifarscale.errors import ClusterError, RunError, typed, writing_to
from cifarscale.launch.call import Call, typed_command
from cifarscale.launch.run import call_of
from cifarscale.runs.environment import git_state
from cifarscale.runs.files import write_text_atomically
from cifarscale.runs.lease import lease, living_holder
from cifarscale.runs.run_folder import RunFolder
from cifarscale.slurm import client as slurm
from cifarscale.slurm import requeue
from cifarscale.slurm.plan import Plan
from cifarscale.slurm.profile import Profile
from cifarscale.slurm.submitted import Submitted, submissions
from cifarscale.slurm.task import SlurmTask
from cifarscale.tasks.base import PreparedRun
from cifarscale.training.signals import REQUEUES_VARIABLE

log = logging.getLogger(__name__)

_NOT_NOW = (
    "Required node not available",
    "Requested nodes are busy",
    "Requested partition configuration not available now",
    "Partition in DOWN state",
    "Requested reservation is in use",
    "Requested reservation not usable now",
    "maintenance reservation",
    "Job can not start immediately",
    "Job is in held state",
    "Job dependency problem",
    "accounting/QOS policy",
    "Waiting for burst buffer",
)
"""What SLURM says of a job that it would take, and let wait."""
_NEVER_OR_NOT_NOW = "Requested node configuration is not available"
PATIENCE_S = 300
"""How long a job waits for one before it that has lost its node, and may still write the run folder."""
MAX_TIMEOUTS = 1_000_000
"""How often a job may reach its time limit: as often as it takes."""


def sbatch_script(prepared: PreparedRun, profile: Profile, plan: Plan) -> str:
    """The script that sbatch is given."""
    return _script(RunFolder(prepared.run_dir).slurm, prepared.recipe.name, profile, plan)


def _script(folder: Path, name: str, profile: Profile, plan: Plan) -> str:
    command = f"{_python(profile)} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    parameters = _parameters(folder, name, profile, plan)
    return submitit_slurm._make_sbatch_string(command=command, folder=folder, **parameters)


class _Executor(SlurmExecutor):
    """submitit's, which remembers the script that it gave to sbatch: a name of its own for each submission."""

    script = ""

    def _make_submission_command(self, submission_file_path: Path) -> list[str]:
        self.script = submission_file_path.name
        return super()._make_submission_command(submission_file_path)


def queue(
    calls: Sequence[Call], folder: Path, name: str, profile: Profile, plan: Plan, at_once: int = 0
) -> list[slurm.JobKey]:
    """Queues a call as one job, or several as an array.

    Args:
        folder: exists, and is where submitit's files and the ranks' logs go.
        at_once: how many of an array may run at the same time; 0 for any number.
    Raises: ClusterError for what SLURM refuses.
    """
    parameters = _parameters(folder, name, profile, plan)
    if at_once:
        parameters["array_parallelism"] = at_once
    executor = _Executor(folder=folder, max_num_timeout=MAX_TIMEOUTS, python=_python(profile))
    executor.update_parameters(**parameters)
    code = git_state()
    try:
        with slurm.in_plain_environment(), executor.batch():
            jobs = [executor.submit(SlurmTask(call, profile.interface, code)) for call in calls]
    except (FailedJobError, FailedSubmissionError) as error:
        message = _in_one_line(str(error))
        raise ClusterError(
            f"sbatch refused the job: {message}. Run: cifarscale profiles check {profile.name}"
        ) from error
    return [slurm.JobKey(job.job_id, executor.script) for job in jobs]


def submit(
    runs: Sequence[PreparedRun], profile: Profile, plan: Plan, at_once: int = 0, options: Sequence[str] = ()
) -> list[Submitted]:
    """Queues jobs of one plan: one alone, or several as an array.

    Args:
        at_once: how many of an array may run at the same time; 0 for any number.
        options: by which the command line would submit a run again that a script submits.
    Raises: RunError for one whose run is queued, runs or is complete; ClusterError for what SLURM refuses.
    """
    if trouble := slurm.require_accounting():
        log.warning("SLURM's accounting does not answer now, and jobs do without it: %s", trouble)
    if ignored := slurm.overridden():
        settings = ", ".join(f"{name}={value}" for name, value in ignored.items())
        log.warning("not used, since profile %s decides: %s", profile.name, settings)
    for prepared in runs:
        _require_free(prepared.run_dir)
        require_plain(prepared.run_dir, profile)
    folder = RunFolder(runs[0].run_dir).slurm if len(runs) == 1 else _array_folder(runs)
    waits = check_with_slurm(folder, runs[0].recipe.name, profile, plan)
    with writing_to(folder), _removed_if_refused(runs, folder):
        for prepared in runs:
            prepared.make_folder()
            RunFolder(prepared.run_dir).slurm.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _alone(runs):
            for prepared in runs:
                _require_free(prepared.run_dir)
            keys = queue([call_of(prepared) for prepared in runs], folder, runs[0].recipe.name, profile, plan, at_once)
            submitted = [
                _remember(prepared, key, folder, profile, plan, options)
                for prepared, key in zip(runs, keys, strict=True)
            ]
    if waits:
        log.warning("the job waits: %s. Run: cifarscale profiles check %s", waits, profile.name)
    return submitted


@contextmanager
def _removed_if_refused(runs: Sequence[PreparedRun], folder: Path) -> Iterator[None]:
    """New run folders, and the one of an array, are removed again if SLURM refuses the job."""
    new = [path for path in (*(prepared.run_dir for prepared in runs), folder) if not path.exists()]
    try:
        yield
    except ClusterError:
        if not any(submissions(prepared.run_dir) for prepared in runs):
            for path in new:
                shutil.rmtree(path, ignore_errors=True)
            with suppress(OSError):  # there are other arrays
                folder.parent.rmdir()
        raise


def check_with_slurm(folder: Path, name: str, profile: Profile, plan: Plan) -> str:
    """Has SLURM itself check the script, without queueing it. Returns: why it would have to wait, if it is
    for another reason than that others come first.

    Raises: ClusterError with SLURM's reason if it would refuse it.
    """
    script = _script(folder, name, profile, plan)
    done = subprocess.run(
        ["sbatch", "--test-only"],
        input=script,
        env=slurm.plain_environment(),
        capture_output=True,
        text=True,
        timeout=slurm.TIMEOUT_S,
        check=False,
    )
    if not done.returncode:
        return ""
    answer = _in_one_line(done.stderr)
    waits = any(words in answer for words in _NOT_NOW)
    if _NEVER_OR_NOT_NOW in answer:
        waits = any(map(slurm.is_away, slurm.node_states(profile.partition)))
    if not waits:
        raise ClusterError(f"SLURM would refuse the job: {answer}. Run: cifarscale profiles check {profile.name}")
    return answer.removeprefix("allocation failure: ")


def _parameters(folder: Path, name: str, profile: Profile, plan: Plan) -> dict[str, Any]:
    """submitit's parameters; what is empty is left to the cluster."""
    parameters: dict[str, Any] = {
        "job_name": name,
        "partition": profile.partition,
        "account": profile.account,
        "qos": profile.qos,
        "constraint": profile.constraint,
        "nodes": plan.nodes,
        "ntasks_per_node": plan.tasks_per_node,
        "cpus_per_task": plan.cpus_per_task,
        "time": plan.time_min,
        "signal_delay_s": profile.warning_seconds,
    }
    if profile.memory_gb:
        parameters["mem"] = f"{round(profile.memory_gb * 1024)}M"
    if profile.gpus_per_node:
        parameters |= _gpu_request(profile, plan)
    exports = [f"export {name}={shlex.quote(value)}" for name, value in profile.environment.items()]
    # Since 22.05 srun does not take the number of cores over from sbatch.
    setup = [
        *requeue.before_setup(folder),
        *(f"export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK {REQUEUES_VARIABLE}=1", *exports, *profile.setup),
        *requeue.AFTER_SETUP,
    ]
    return {key: value for key, value in parameters.items() if value != ""} | {
        "setup": setup,
        "teardown": requeue.after_ranks(folder),
        "stderr_to_stdout": True,
        "srun_args": ["--kill-on-bad-exit=1"],
        "wckey": None,
        "additional_parameters": _options(profile),
    }


def _gpu_request(profile: Profile, plan: Plan) -> dict[str, str]:
    """How GPUs are asked for; a task that is alone on a node, as that of a sweep, gets all of its GPUs."""
    per_task = profile.gpu_request == "gpus_per_task"
    number = plan.gpus_per_node // plan.tasks_per_node if per_task else plan.gpus_per_node
    gpus = f"{profile.gpu_type}:{number}" if profile.gpu_type else str(number)
    match profile.gpu_request:
        case "gpus":
            return {"gpus_per_node": gpus}
        case "gres":
            return {"gres": f"gpu:{gpus}"}
        case "gpus_per_task":
            return {"gpus_per_task": gpus}


def _options(profile: Profile) -> dict[str, Any]:
    """Further options of sbatch, without those that are switched off."""
    options = {"requeue": not profile.sbatch.get("no-requeue"), **profile.sbatch}
    return {key: value for key, value in options.items() if value is not False}


def _python(profile: Profile) -> str:
    """The command that starts Python in a task; a container's command is one of shell already."""
    python = shlex.quote(profile.python or sys.executable)
    return " ".join(filter(None, (requeue.HOLDING_SIGNALS, profile.container, python)))


def _require_free(run_dir: Path) -> None:
    """Raises: RunError if the run is queued, or something writes its folder."""
    if earlier := submissions(run_dir):
        state = slurm.job_state(earlier[-1].key)
        if state is not None and state.is_active:
            raise RunError(
                f"{run_dir} is {state.state.lower()} already, as job {state.job_id}. "
                f"Run: cifarscale status {typed(run_dir)}, or cifarscale cancel {typed(run_dir)}"
            )
    folder = RunFolder(run_dir)
    if holder := living_holder(folder.lease):
        raise folder.refusal(holder)


def require_plain(run_dir: Path, profile: Profile) -> None:
    """Raises: ClusterError for a folder that SLURM would misread, or that the nodes do not share."""
    if re.search(r"[%\\\x00-\x1f\x7f]", str(run_dir)):
        raise ClusterError(
            f"run folder {str(run_dir)!r}: SLURM gives %, \\ and line breaks in a log's path meanings of its own. "
            "Name another --run-dir, or work in another folder"
        )
    if profile.shared_folder:
        shared = Path(profile.shared_folder).resolve()
        if not run_dir.resolve().is_relative_to(shared):
            raise ClusterError(
                f"run folder {run_dir.resolve()} is not in {shared}, the folder that the nodes share "
                f"(profile {profile.name}); name another --run-dir, or submit from there"
            )


@contextmanager
def _alone(runs: Sequence[PreparedRun]) -> Iterator[None]:
    """One submission at a time looks at these run folders and queues them."""
    with ExitStack() as stack:
        for prepared in sorted(runs, key=lambda prepared: prepared.run_dir):
            folder = RunFolder(prepared.run_dir)
            stack.enter_context(lease(folder.slurm / ".lease", folder.refusal, patience_s=slurm.TIMEOUT_S))
        yield


def _array_folder(runs: Sequence[PreparedRun]) -> Path:
    """Where submitit keeps an array: beside the runs, named after the first of them."""
    return runs[0].run_dir.parent / f".arrays/{runs[0].run_dir.name}-{len(runs)}"


def _remember(
    prepared: PreparedRun, key: slurm.JobKey, folder: Path, profile: Profile, plan: Plan, options: Sequence[str]
) -> Submitted:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    command = typed_command() or _command(prepared, options)
    job = Submitted(key.job_id, str(folder), profile.name, plan.nodes, plan.world_size, now, command, key.script)
    lines = [*submissions(prepared.run_dir), job]
    text = "".join(json.dumps(asdict(line)) + "\n" for line in lines)
    write_text_atomically(RunFolder(prepared.run_dir).slurm / "jobs.jsonl", text)
    return job


def _command(prepared: PreparedRun, options: Sequence[str]) -> list[str]:
    """What submits a run again."""
    command = ["cifarscale", "submit", f"{prepared.run_dir}/recipe.toml", "--run-dir", str(prepared.run_dir)]
    if prepared.options.shards is not None:
        command += ["--data", str(prepared.options.shards)]
    return [*command, *options]


def _in_one_line(text: str) -> str:
    lines = [line.removeprefix("sbatch: ").removeprefix("error: ").strip() for line in text.splitlines()]
    return "; ".join(line for line in lines if line)
