"""What runs on the nodes: submitit starts one `SlurmTask` in each task of a SLURM job."""

import logging
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from submitit.slurm.slurm import SlurmJobEnvironment

from cifarscale.distributed.interface import interface_address
from cifarscale.distributed.ranks import ADDRESS_VARIABLE, FILE_VARIABLE, NODES_VARIABLE
from cifarscale.errors import EXIT_CONTINUE_LATER, CifarscaleError, Interrupted
from cifarscale.launch.call import Call
from cifarscale.launch.failures import LOGS_VARIABLE, report_failure
from cifarscale.runs.environment import git_state
from cifarscale.slurm.requeue import leave_word
from cifarscale.slurm.submitted import attempt_folder
from cifarscale.training.signals import STOP_SIGNALS, StopSignal, leave_on_signals

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SlurmTask:
    """Runs a call as one rank, with its place among the ranks from SLURM's environment.

    When SLURM warns, the ranks save at a step that they agree on, and the job's script queues it again (`requeue`).
    SLURM starts it from this very object then, so nothing here may depend on how far the run has come.
    """

    call: Call
    interface: str = ""
    code: dict[str, Any] | None = None
    """Commit of this package when the job was submitted."""

    def __call__(self) -> None:
        job = SlurmJobEnvironment()
        logs = attempt_folder(job.paths.folder, job.job_id, int(os.environ.get("SLURM_RESTART_COUNT", "0")))
        logs.mkdir(parents=True, exist_ok=True)
        for cut_short in job.paths.folder.glob(f"{job.job_id}_{job.global_rank}_*.save_tmp"):
            cut_short.unlink()  # submitit takes one that a killed attempt has left for its own
        os.environ.update(self._environment(job, logs))
        leave_on_signals()
        try:
            try:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)  # the job's script has held them back
                self._run(job)
            except StopSignal as stopped:
                raise stopped.as_error() from stopped
        except Interrupted as stop:
            if stop.to_continue:
                leave_word()
            code = _tell(stop)  # `why` quotes it where the job does not go on: it may have been cancelled
            sys.exit(EXIT_CONTINUE_LATER if stop.to_continue else code)
        except Exception as error:
            sys.exit(_tell(error))

    def _run(self, job: SlurmJobEnvironment) -> None:
        if self.interface:
            address = interface_address(self.interface)
            if job.global_rank == 0:
                os.environ[ADDRESS_VARIABLE] = address
        # They load torch, which may only start when the environment says how many cores it has.
        from cifarscale.launch.worker import run_call

        if job.global_rank == 0 and (now := git_state()) != self.code:
            log.warning("the code has changed since job %s was submitted: %s then, %s now", job.job_id, self.code, now)
        run_call(self.call)

    def _environment(self, job: SlurmJobEnvironment, logs: Path) -> dict[str, str]:
        tasks_per_node = job.num_tasks // job.num_nodes
        address = os.environ.get("SLURM_LAUNCH_NODE_IPADDR", job.hostnames[0])
        environment = {
            "RANK": str(job.global_rank),
            "WORLD_SIZE": str(job.num_tasks),
            "LOCAL_RANK": str(job.local_rank),
            "LOCAL_WORLD_SIZE": str(tasks_per_node),
            "OMP_NUM_THREADS": os.environ.get("SLURM_CPUS_PER_TASK", "1"),
            NODES_VARIABLE: ",".join(job.hostnames[rank // tasks_per_node] for rank in range(job.num_tasks)),
            FILE_VARIABLE: str(logs / "rendezvous.json"),
            ADDRESS_VARIABLE: address,
            LOGS_VARIABLE: str(logs),
        }
        if self.interface:
            environment |= {"NCCL_SOCKET_IFNAME": self.interface, "GLOO_SOCKET_IFNAME": self.interface}
        return environment


def _tell(error: Exception) -> int:
    """Puts the error into this rank's log, and where the others' errors are. Returns: the exit code to end with."""
    if isinstance(error, CifarscaleError):
        print(f"{'stopped' if isinstance(error, Interrupted) else 'error'}: {error}", file=sys.stderr, flush=True)
    else:
        sys.excepthook(type(error), error, error.__traceback__)
    return report_failure(error)
