"""What is read off SLURM's answers: whose job it is, and what is known while a part of SLURM is away."""

from collections.abc import Callable

import pytest

from cifarscale.errors import ClusterError
from cifarscale.slurm import client as slurm
from cifarscale.slurm.client import JobKey, attempts, job_state, job_states, require_accounting

OURS, FOREIGN = JobKey("7", ".submission_a.sh"), JobKey("7", ".submission_b.sh")
SHOWN = (
    "JobId=7 JobName=cnn JobState={state} Reason=BeginTime Dependency=(null) Requeue=1 Restarts=2 "
    "StartTime=2026-11-26T10:00:00 NodeList=n1 Command=/runs/cnn/slurm/.submission_a.sh WorkDir=/runs"
)
Answer = Callable[..., str]


def away(*_: str) -> str:
    raise ClusterError("sacct failed: Unable to connect to database")


def row(job_id: str, state: str, submit_line: str) -> str:
    values = {"JobID": job_id, "State": state, "ExitCode": "0:0", "SubmitLine": submit_line, "Reason": "BeginTime"}
    return "|".join(values.get(name, "") for name in slurm._ATTEMPT_FIELDS)


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Callable[[Answer, Answer], None]:
    """Has scontrol and sacct answer so."""

    def answers(scontrol: Answer, sacct: Answer) -> None:
        monkeypatch.setattr(slurm, "command", lambda name, *more: (scontrol if name == "scontrol" else sacct)(*more))

    return answers


def test_a_job_is_known_by_its_script_beside_its_number(answers: Callable[..., None]) -> None:
    answers(lambda *_: SHOWN.format(state="RUNNING"), lambda *_: "")
    for job in (OURS, JobKey("7")):
        state = job_state(job)
        assert state is not None
        assert (state.state, state.restarts, state.nodes) == ("RUNNING", 2, "n1")
    assert job_state(FOREIGN) is None


def test_starts_of_another_job_of_the_same_number_are_left_out_with_their_steps(answers: Callable[..., None]) -> None:
    rows = [
        row("7", "FAILED", "sbatch /old/.submission_b.sh"),
        row("7.0", "FAILED", "srun python | tee"),
        row("7", "COMPLETED", "sbatch /runs/.submission_a.sh"),
        row("7.0", "COMPLETED", "srun python"),
    ]
    answers(away, lambda *_: "\n".join(rows))
    assert [(each.step, each.state) for each in attempts(OURS)] == [("", "COMPLETED"), ("0", "COMPLETED")]
    assert [(each.step, each.state) for each in attempts(FOREIGN)] == [("", "FAILED"), ("0", "FAILED")]
    assert len(attempts(JobKey("7"))) == 4


@pytest.mark.parametrize(("state", "reason"), [("PENDING", "BeginTime"), ("FAILED", ""), ("RUNNING", "")])
def test_a_reason_is_of_a_job_that_waits(state: str, reason: str, answers: Callable[..., None]) -> None:
    answers(lambda *_: SHOWN.format(state=state), lambda *_: "")
    found = job_state(OURS)
    assert found is not None
    assert found.reason == reason


def test_without_the_database_the_controller_tells_what_it_knows(answers: Callable[..., None]) -> None:
    answers(lambda *_: SHOWN.format(state="RUNNING"), away)
    assert [state.state for state in job_states([OURS]).values()] == ["RUNNING"]
    assert require_accounting().endswith("Unable to connect to database")

    def forgotten(*_: str) -> str:
        raise ClusterError("scontrol failed: slurm_load_jobs error: Invalid job id specified")

    answers(forgotten, away)
    assert job_state(OURS) is None
    assert job_states([OURS]) == {}


def test_a_cluster_without_accounts_is_told_from_one_whose_database_is_away(answers: Callable[..., None]) -> None:
    def disabled(*_: str) -> str:
        raise ClusterError("sacct failed: Slurm accounting storage is disabled")

    answers(away, disabled)
    with pytest.raises(ClusterError, match="keeps no accounts"):
        require_accounting()
