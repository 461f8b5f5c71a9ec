"""In which environment SLURM's commands run."""

import os

import pytest

from cifarscale.slurm.client import in_plain_environment, overridden, plain_environment
from cifarscale.training.signals import CONTINUE_LATER, REQUEUES_VARIABLE, STOP, StopRequest

STEERING = {
    "SBATCH_EXPORT": "NONE",
    "SBATCH_PARTITION": "urgent",
    "SLURM_TIME_FORMAT": "relative",
    "SACCT_FORMAT": "JobID",
    "SQUEUE_FORMAT2": "JobID",
    "SINFO_FORMAT": "%n",
    "SRUN_CPUS_PER_TASK": "9",
    "SLURM_RESTART_COUNT": "3",
    "SLURM_CLUSTERS": "elsewhere",
}


@pytest.fixture(autouse=True)
def _steered(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in STEERING.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLURM_CONF", "/etc/mine.conf")
    monkeypatch.setenv("SLURM_JWT", "credentials")


def test_what_steers_slurms_commands_is_left_out_and_where_it_is_stays() -> None:
    found = plain_environment()
    assert not found.keys() & STEERING.keys()
    assert (found["SLURM_CONF"], found["SLURM_JWT"]) == ("/etc/mine.conf", "credentials")
    assert found["PATH"] == os.environ["PATH"]


def test_what_is_submitted_inside_the_block_inherits_none_of_it_and_it_comes_back() -> None:
    before = dict(os.environ)
    with in_plain_environment():
        assert not os.environ.keys() & STEERING.keys()
    assert dict(os.environ) == before


def test_what_a_profile_decides_instead_can_be_said() -> None:
    assert overridden() == {"SBATCH_EXPORT": "NONE", "SBATCH_PARTITION": "urgent"}


def test_sigterm_is_a_warning_in_a_job_that_queues_itself_again(monkeypatch: pytest.MonkeyPatch) -> None:
    import signal

    request = StopRequest()
    request(signal.SIGTERM, None)
    assert request.requested == STOP
    monkeypatch.setenv(REQUEUES_VARIABLE, "1")
    request(signal.SIGTERM, None)
    assert request.requested == CONTINUE_LATER
