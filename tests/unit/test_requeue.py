"""The end of the sbatch script: which jobs it queues again, by what srun and SLURM say."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from cifarscale.slurm.requeue import AFTER_SETUP, CONTINUE_NAME, HOLDING_SIGNALS, after_ranks, before_setup

RUNNING, CANCELLED = "JobId=7 JobState=RUNNING Reason=None", "JobId=7 JobState=CANCELLED Reason=None"
NOT_PREEMPTED, PREEMPTED = " PreemptTime=None Restarts=0", " PreemptTime=2026-11-26T11:30:00 Restarts=0"


def run(
    folder: Path, code: int, about: str, requeue: str = "true", setup: str = "", saves: str = "", **environment: str
) -> list[str]:
    """What a script whose srun ends with a code asks of scontrol, and prints. Its last line is its exit code.

    Args:
        saves: the folder of this start, if its ranks save and leave word.
    """
    leave_word = f"mkdir -p {saves} && touch {saves}/{CONTINUE_NAME}; " if saves else ""
    programs = folder / "bin"
    programs.mkdir(exist_ok=True)
    for name, body in {
        "srun": f"{leave_word}echo ranks ran; exit {code}",
        "scontrol": f'if [ "$1" = show ]; then echo {shlex.quote(about)}; else echo "$@" >> asked; {requeue}; fi',
        "sleep": "true",
    }.items():
        (programs / name).write_text(f"#!/bin/bash\n{body}\n")
        (programs / name).chmod(0o755)
    script = [*before_setup(folder), setup, *AFTER_SETUP, "srun -n 4 python", *after_ranks(folder)]
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)],
        cwd=folder,
        env={"PATH": f"{programs}:/usr/bin:/bin", "SLURM_JOB_ID": "7"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    asked = (folder / "asked").read_text().splitlines() if (folder / "asked").exists() else []
    return [*asked, *done.stdout.splitlines(), str(done.returncode)]


def test_a_warning_waits_until_a_rank_listens(tmp_path: Path) -> None:
    rank = (
        "import os, signal\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "signal.signal(signal.SIGTERM, lambda signum, frame: print('heard'))\n"
        "print('listens', flush=True)\n"
        "signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])"
    )
    (tmp_path / "rank.py").write_text(rank)
    script = [*before_setup(tmp_path), f"{HOLDING_SIGNALS} {sys.executable} {tmp_path}/rank.py"]
    environment = {"PATH": os.environ["PATH"], "SLURM_JOB_ID": "7"}
    output = subprocess.check_output(["bash", "-c", "\n".join(script)], env=environment, text=True)
    assert output.split() == ["listens", "heard"]


def leave_word(folder: Path, attempt: str) -> None:
    (folder / attempt).mkdir()
    (folder / attempt / CONTINUE_NAME).touch()


@pytest.mark.parametrize("code", [77, 137, 143])
def test_ranks_that_have_saved_go_on(tmp_path: Path, code: int) -> None:
    assert "requeue 7" in run(tmp_path, code, RUNNING + NOT_PREEMPTED, saves="7-0")


def test_of_an_array_the_task_goes_on(tmp_path: Path) -> None:
    more = {"SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "2", "SLURM_RESTART_COUNT": "1"}
    assert "requeue 5_2" in run(tmp_path, 77, RUNNING, saves="5_2-1", **more)


def test_word_of_an_earlier_start_does_not_count(tmp_path: Path) -> None:
    leave_word(tmp_path, "7-0")
    assert run(tmp_path, 1, RUNNING, SLURM_RESTART_COUNT="1") == ["ranks ran", "1"]
    assert (tmp_path / "7-0").exists()


def test_word_of_another_job_with_the_same_number_is_gone_at_the_first_start(tmp_path: Path) -> None:
    leave_word(tmp_path, "7-0")
    leave_word(tmp_path, "70-0")
    assert run(tmp_path, 1, RUNNING) == ["ranks ran", "1"]
    assert [(tmp_path / name).exists() for name in ("7-0", "70-0")] == [False, True]


@pytest.mark.parametrize(
    ("code", "about", "goes_on"),
    [
        (140, RUNNING + NOT_PREEMPTED, True),
        (143, RUNNING + PREEMPTED, True),
        (143, RUNNING + NOT_PREEMPTED, False),
        (140, CANCELLED + NOT_PREEMPTED, False),
        (137, RUNNING + NOT_PREEMPTED, False),
        (139, RUNNING + PREEMPTED, False),
        (1, RUNNING + PREEMPTED, False),
        (0, RUNNING + PREEMPTED, False),
        (140, "slurm_load_jobs error: Unable to contact slurm controller", False),
    ],
)
def test_a_warning_that_no_rank_could_hear_is_told_by_the_exit_code(
    tmp_path: Path, code: int, about: str, goes_on: bool
) -> None:
    found = run(tmp_path, code, about)
    assert ("requeue 7" in found) == goes_on
    assert found[-1] == str(code)


@pytest.mark.parametrize("signal", ["USR2", "TERM"])
def test_a_warning_in_the_lines_of_setup_keeps_the_ranks_from_starting(tmp_path: Path, signal: str) -> None:
    found = run(tmp_path, 0, RUNNING + NOT_PREEMPTED, setup=f"kill -s {signal} $$")
    assert "requeue 7" in found
    assert "ranks ran" not in found
    assert run(tmp_path, 0, CANCELLED, setup=f"kill -s {signal} $$")[-2:] != ["ranks ran", "0"]


def test_a_cancelled_job_stays_cancelled_whatever_its_ranks_left(tmp_path: Path) -> None:
    assert run(tmp_path, 77, CANCELLED + NOT_PREEMPTED, saves="7-0") == ["ranks ran", "77"]


def test_where_slurm_refuses_one_line_says_what_to_do(tmp_path: Path) -> None:
    refusal = 'echo "Requested operation is disabled" >&2; false'
    found = run(tmp_path, 77, RUNNING, requeue=refusal, saves="7-0")
    assert found[-2].startswith("error: SLURM does not queue job 7 again (Requested operation is disabled). Its state")
    assert found[-1] == "77"
