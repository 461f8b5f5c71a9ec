"""How a SLURM job that was warned goes on: its script, outside of any container and before any Python, queues it again.

A rank that hears the warning saves at a step that all ranks agree on, leaves CONTINUE_NAME in the folder of this
attempt, and ends. A warning that comes while Python starts waits until the rank listens (HOLDING_SIGNALS). Where `env`
is too old for that, it ends the rank, and the exit code tells of it. In either case the script asks SLURM whether the
job still runs: a job that was cancelled gets the same signals, and must not come back.
"""

import os
import shlex
import signal
from pathlib import Path

from cifarscale.errors import EXIT_CONTINUE_LATER
from cifarscale.launch.failures import LOGS_VARIABLE

CONTINUE_NAME = "continue"
_WAIT_S = 60
"""How long the script waits for SLURM to end it after SLURM has queued the job again."""

_ENDED_BY_USR2, _ENDED_BY_TERM = 128 + signal.SIGUSR2, 128 + signal.SIGTERM

HOLDING_SIGNALS = "$hold"
"""Stands before the command of a rank: warnings wait until the rank unblocks them."""
_BLOCKING = "env --block-signal=TERM --block-signal=USR2"
AFTER_SETUP = (f'srun() {{ if [ "$warned" ]; then return {EXIT_CONTINUE_LATER}; fi; command srun "$@"; }}',)


def before_setup(folder: Path) -> list[str]:
    """Lines of the script that come first.

    Args:
        folder: where submitit's files and the ranks' logs go.
    """
    return [
        "warned=",
        "trap 'warned=USR2' USR2",
        "trap 'warned=TERM' TERM",
        f'{_BLOCKING} true 2> /dev/null && hold="{_BLOCKING}" || hold=',
        "job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}; job=${job:-$SLURM_JOB_ID}",
        "# What is here at the first start is of another job that had this number before.",
        f'[ "${{SLURM_RESTART_COUNT:-0}}" -gt 0 ] || rm -rf {shlex.quote(str(folder))}/"$job"-*',
    ]


def after_ranks(folder: Path) -> list[str]:
    """Lines of the script that follow srun, whose exit code is 128 + N where signal N ended a rank.

    Args:
        folder: where submitit's files and the ranks' logs go.
    """
    return [
        "code=$?",
        f'saved={shlex.quote(str(folder))}/"$job-${{SLURM_RESTART_COUNT:-0}}"/{CONTINUE_NAME}',
        "goes_on() {  # whether this job was warned, and not cancelled",
        '  about=$(scontrol show job --oneliner "$SLURM_JOB_ID" 2>&1)',
        '  case $about in *" JobState=RUNNING "*) ;; *) return 1 ;; esac',
        f'  if [ "$warned" ] || [ -e "$saved" ] || [ $code -eq {_ENDED_BY_USR2} ]; then return 0; fi',
        "  # A rank may get SIGTERM for other reasons, such as the death of another rank.",
        f'  [ $code -eq {_ENDED_BY_TERM} ] && case $about in *" PreemptTime="[0-9]*) ;; *) false ;; esac',
        "}",
        "if [ $code -ne 0 ] && goes_on; then",
        '  if said=$(scontrol requeue "$job" 2>&1); then',
        '    echo "SLURM warned job $job, which is queued again"',
        f"    trap - TERM; sleep {_WAIT_S}",
        "  else",
        '    echo "error: SLURM does not queue job $job again ($said). Its state is saved: submit it again"',
        "  fi",
        "fi",
        "exit $code",
    ]


def leave_word() -> None:
    """Tells the script of this job that its ranks have saved, and are to go on."""
    Path(os.environ[LOGS_VARIABLE], CONTINUE_NAME).touch()
