"""What is told of jobs, over made-up evidence: every way in which one waits, runs or ends."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cifarscale.cli.main import main
from cifarscale.config.load import load_recipe, recipe_toml
from cifarscale.errors import ClusterError
from cifarscale.explain.evidence import Evidence, gather
from cifarscale.explain.explanation import Explanation, duration
from cifarscale.explain.waiting import why_waiting
from cifarscale.explain.why import explain
from cifarscale.launch.failures import Failure
from cifarscale.runs.files import write_json_atomically
from cifarscale.runs.run_folder import RunFolder
from cifarscale.slurm import client as slurm
from cifarscale.slurm.client import Attempt, JobState
from cifarscale.slurm.job_log import Death, deaths, newest_attempt, said_by_slurm
from cifarscale.slurm.submitted import Submitted, submissions

NOW = datetime(2026, 5, 4, 12, 0, 0)
STARTED = "submitit INFO (2026-05-04 11:00:00,1) - Starting with JobEnvironment(job_id=12, global_rank=0(4))"
KILLED = (
    STARTED,
    "cnn  step 300/1,000  loss 3.1",
    "srun: error: n2: task 3: Killed",
    "srun: launch/slurm: _step_signal: Terminating StepId=12.0",
    "slurmstepd: error: *** STEP 12.0 ON n1 CANCELLED AT 2026-05-04T11:30:00 ***",
    "srun: error: n2: task 2: Terminated",
    "srun: error: n1: tasks 0-1: Terminated",
)


def attempt(step: str = "", state: str = "FAILED", **values: Any) -> Attempt:
    known: dict[str, Any] = {
        "job_id": "12",
        "exit_code": 1,
        "signal": 0,
        "submit": NOW - timedelta(hours=2),
        "eligible": NOW - timedelta(hours=2),
        "start": NOW - timedelta(hours=1),
        "end": NOW,
        "elapsed_s": 3600,
        "time_limit_min": 240,
        "nodes": "n[1-2]",
        "cpus": 8,
        "cpu_s": 7200.0,
        "max_memory_gb": None,
        "reason": "",
        "requested_memory_gb": None if step else 16.0,
        "num_nodes": 2,
        "tasks": 4 if step else 0,
    }
    return Attempt(step=step, state=state, **known | values)


def seen(state: str | JobState | None = "FAILED", **values: Any) -> Evidence:
    """A job of four ranks on two nodes that has come to step 300 of 1,000."""
    state = JobState("12", state, nodes="n[1-2]", start=NOW - timedelta(hours=1)) if isinstance(state, str) else state
    command = ["/opt/bin/cifarscale", "submit", "cnn", "--set", "model.name=a b"]
    known: dict[str, Any] = {
        "run": "runs/cnn-1",
        "job": Submitted("12", "/shared/runs/cnn-1/slurm", "big", 2, 4, "2026-05-04T08:00:00", command),
        "state": state,
        "attempts": (attempt(state=state.state if state else "FAILED"), attempt("0", max_memory_gb=1.5)),
        "log": (STARTED,),
        "step": 300,
        "max_steps": 1000,
        "now": NOW,
    }
    return Evidence(**known | values)


def failure(rank: int = 2, message: str = "ValueError: planted", **values: Any) -> Failure:
    trace = "Traceback (most recent call last):\n" + "".join(f"  line {i}\n" for i in range(20)) + f"{message}\n"
    known = {"host": "n2", "time": 1.0, "expected": False, "exit_code": 1, "traceback": trace}
    return Failure(rank=rank, message=message, **known | values)


def text(found: Explanation) -> str:
    quote = found.quote.lines if found.quote else ()
    return "\n".join((found.headline, *found.details, *quote, *found.advice))


def assert_told(evidence: Evidence, headline: Sequence[str], *words: str, but: Sequence[str] = ()) -> Explanation:
    """The headline has these words, the whole those, and none of the others."""
    found = explain(evidence)
    assert "\n" not in found.headline
    assert all(word in found.headline for word in headline), found.headline
    whole = text(found)
    assert all(word in whole for word in words), whole
    assert not any(word in whole for word in but), whole
    return found


AGAIN = "\ncifarscale submit cnn --set 'model.name=a b'"


# Jobs that wait.


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("", ("not looked at it yet",)),
        ("Resources", ("when enough nodes", "--time")),
        ("Priority", ("higher priority", "sprio -j 12")),
        ("Dependency", ("another job to end", "scontrol show job 12")),
        ("DependencyNeverSatisfied", ("ended in another way", "cifarscale cancel 12")),
        ("BeginTime", ("earliest time", "scontrol update jobid=12 starttime=now")),
        ("JobHeldUser", ("owner holds it", "scontrol release 12")),
        ("JobHeldAdmin", ("administrator",)),
        ("JobHoldMaxRequeue", ("could not start it", "scontrol release 12")),
        ("launch_failed_requeued_held", ("could not start it", "scontrol release 12")),
        ("JobArrayTaskLimit", ("--at-once", "arraytaskthrottle")),
        ("ReqNodeNotAvail,_UnavailableNodes:n[1-2]", ("down, drained, or reserved", "sinfo -R")),
        (
            "Nodes_required_for_job_are_DOWN,_DRAINED_or_reserved_for_jobs_in_higher_priority_partitions",
            ("down, drained, or reserved", "sinfo -R"),
        ),
        ("BadConstraints", ("no node has", "will not start as it is")),
        ("PartitionDown", ("starts no jobs now", "sinfo")),
        ("PartitionInactive", ("starts no jobs now",)),
        ("PartitionTimeLimit", ("more time than its partition", "will not start as it is")),
        ("PartitionNodeLimit", ("more nodes than its partition", "will not start as it is")),
        ("QOSMaxJobsPerUserLimit", ("your jobs use as much", "squeue -u")),
        ("QOSMaxCpuPerUserLimit", ("your jobs use as much", "squeue -u")),
        ("AssocMaxJobsLimit", ("your jobs use as much", "squeue -u")),
        ("QOSMaxGRESPerJob", ("than a job of yours may", "will not start as it is")),
        ("AssocMaxNodePerJobLimit", ("than a job of yours may", "will not start as it is")),
        ("QOSMaxWallDurationPerJobLimit", ("than a job of yours may", "will not start as it is")),
        ("QOSMinGRES", ("than a job of yours may", "will not start as it is")),
        ("AssocGrpCPUMinutesLimit", ("computing time of your group", "sshare")),
        ("QOSGrpGRESRunMinutes", ("computing time of your group", "sshare")),
        ("AssocGrpGRES", ("jobs of your group",)),
        ("QOSGrpNodeLimit", ("jobs of your group",)),
        ("MaxGRESPerAccount", ("your jobs use as much",)),
        ("InvalidAccount", ("not one that you may use", "sacctmgr")),
        ("InvalidQOS", ("not one that you may use", "sacctmgr")),
        ("Reservation", ("reservation has not begun",)),
        ("Licenses", ("licence",)),
        ("Prolog", ("being made ready",)),
        ("SomethingNew", ("(SomethingNew)", "a reason of SLURM's own", "job_reason_codes")),
    ],
)
def test_each_reason_of_a_pending_job_has_a_meaning_and_what_to_do(reason: str, words: tuple[str, ...]) -> None:
    state = JobState("12", "PENDING", reason)
    assert_told(seen(state, attempts=()), ("job 12 is pending",), *words, "does not tell yet when", but=("{job}",))


def test_the_expected_start_is_told() -> None:
    state = JobState("12", "PENDING", "Priority", start=NOW + timedelta(minutes=95))
    assert_told(seen(state), (), "2026-05-04 13:35:00 (in 1 h 35 min)")


def test_a_job_that_was_queued_again_is_held_for_two_minutes() -> None:
    state = JobState("12", "PENDING", "BeginTime", restarts=1, start=NOW + timedelta(seconds=100))
    evidence = seen(state, attempts=(attempt(state="REQUEUED"), attempt(state="PENDING", start=None)))
    words = ("by default 2 minutes", "Start 1 ended as REQUEUED after 1 h, at step 300")
    assert_told(evidence, ("queued again",), *words)
    assert "queued again" not in why_waiting("BeginTime").meaning


@pytest.mark.parametrize(("state", "word"), [("REQUEUE_HOLD", "holds it"), ("CONFIGURING", "being made ready")])
def test_other_states_before_the_start(state: str, word: str) -> None:
    assert_told(seen(state), (word,))


# Jobs that run.


def test_a_running_job_tells_how_far_it_has_come() -> None:
    found = assert_told(
        seen("RUNNING", silent_s=12.0, between_s=5.0),
        ("job 12 is running on n[1-2]",),
        *("step 300 of 1,000", "for 12 s", "every 5 s"),
    )
    assert not found.advice


@pytest.mark.parametrize(
    ("silent_s", "between_s", "step", "stuck"),
    [
        (110, 1, 300, False),
        (130, 1, 300, True),
        (500, 60, 300, False),
        (700, 60, 300, True),
        (200, None, None, False),
        (400, None, None, True),
    ],
)
def test_silence_is_suspicious_when_it_is_much_longer_than_usual(
    silent_s: float, between_s: float | None, step: int | None, stuck: bool
) -> None:
    evidence = seen("RUNNING", silent_s=silent_s, between_s=between_s, step=step)
    found = assert_told(evidence, ("looks stuck",) if stuck else ("running",))
    assert bool(found.advice) == stuck


def test_a_failed_rank_of_a_job_that_still_runs_is_told() -> None:
    assert_told(seen("RUNNING", failures=(failure(),)), ("rank 2 on n2 has failed",), "ValueError: planted", "cancel")


# Jobs that ended.


def test_the_exception_of_the_rank_that_died_first() -> None:
    log = (STARTED, "srun: error: n2: task 2: Exited with exit code 1", *KILLED[3:])
    lost = failure(0, "RuntimeError: Connection closed by peer", host="n1", time=2.0)
    found = assert_told(
        seen(log=log, failures=(failure(), lost)),
        ("job 12 failed: rank 2 on n2 died first: ValueError: planted",),
        *("step 300 of 1,000", "from its newest checkpoint", AGAIN),
        but=("line 3", "Connection closed", "CANCELLED"),
    )
    assert found.quote is not None
    assert found.quote.lines[-1] == "ValueError: planted"


def test_our_own_errors_say_what_to_do_themselves() -> None:
    message = "the loss of step 7 is not finite; try a lower training.learning_rate"
    found = assert_told(seen(failures=(failure(0, message, expected=True),)), (message,))
    assert found.quote is None


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("Killed", ("SIGKILL", "dmesg", "memory_gb")),
        ("Segmentation fault (core dumped)", ("SIGSEGV", 'exclude = "n2"')),
        ("Bus error", ("SIGBUS", "/dev/shm")),
        ("Aborted", ("SIGABRT", 'NCCL_DEBUG = "INFO"')),
        ("Terminated", ("SIGTERM",)),
        ("Trace/breakpoint trap", ("Trace/breakpoint trap",)),
    ],
)
def test_a_rank_that_a_signal_ended_is_the_cause_of_what_the_others_tell(how: str, words: tuple[str, ...]) -> None:
    log = tuple(line.replace("Killed", how) for line in KILLED)
    others = tuple(failure(rank, "RuntimeError: Connection reset by peer") for rank in (0, 1, 2))
    tails = {3: ["cnn  step 300/1,000", "its last words"], 0: ["of another"]}
    found = assert_told(
        seen(log=log, failures=others, tail=lambda rank: tails.get(rank, [])),
        ("job 12 failed: rank 3 on n2",),
        *words,
        AGAIN,
        but=("Connection reset", "rank 2", "{node}"),
    )
    assert found.quote is not None
    assert found.quote.lines[-1] == "its last words"


@pytest.mark.parametrize(("tasks", "words"), [("task 3", "rank 3 on n2 was"), ("tasks 2-3", "ranks 2, 3 on n2 were")])
def test_one_rank_was_killed_and_several_were(tasks: str, words: str) -> None:
    log = (STARTED, f"srun: error: n2: {tasks}: Killed")
    assert explain(seen(log=log)).headline == f"job 12 failed: {words} killed (SIGKILL)"


@pytest.mark.parametrize("state", ["OUT_OF_MEMORY", "FAILED"])
def test_a_kill_near_the_limit_of_memory_is_want_of_memory(state: str) -> None:
    """16 GiB on two nodes; each of the two tasks of a node used 3.9."""
    attempts = (attempt(state=state), attempt("batch", max_memory_gb=0.1, tasks=1), attempt("0", max_memory_gb=3.9))
    evidence = seen(state, log=KILLED, attempts=attempts)
    words = ("up to 7.8 GB a node of 8.0 GB", "memory_gb = 12 (a node) in profile big", "--num-workers")
    assert_told(evidence, ("memory", "rank 3 on n2"), *words, AGAIN)


def test_what_slurm_says_of_memory_is_believed_whatever_it_measured() -> None:
    log = (STARTED, "slurmstepd: error: Detected 1 oom_kill event in StepId=12.0.", *KILLED[2:])
    assert_told(seen("OUT_OF_MEMORY", log=log), ("ran out of memory",), "Detected 1 oom_kill event", "memory_gb = 12")
    log = (STARTED, "srun: error: n2: task 3: Out Of Memory")
    assert_told(seen(log=log, attempts=()), ("rank 3 on n2 ran out of memory",), "memory_gb (a node)")


def test_ranks_that_lost_another_one_point_at_those_that_told_nothing() -> None:
    others = tuple(failure(rank, "RuntimeError: Timed out waiting 120000ms") for rank in (0, 2, 3))
    evidence = seen(failures=others, tail=lambda rank: [f"rank {rank} was here"])
    assert_told(evidence, ("Timed out",), "cause lies there", "rank 1 told nothing", "rank 1 was here")


def test_a_rendezvous_that_nobody_came_to_names_who_was_missing() -> None:
    message = "rank 0 of 4 on n1 waited 300 s for rank 2 (n2), rank 3 (n2). See the logs of these"
    evidence = seen(failures=(failure(0, message, expected=True),), tail=lambda rank: [f"rank {rank} hung"])
    assert_told(evidence, ("waited 300 s for rank 2 (n2)",), "rank 2 hung", "cifarscale doctor")


@pytest.mark.parametrize(
    ("message", "word"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", "more ranks"),
        ("OSError: [Errno 28] No space left on device", "Free some space"),
        ("ModuleNotFoundError: No module named 'x'", "python, setup"),
        ("DistBackendError: NCCL error in: x", "interface"),
        ("OSError: [Errno 24] Too many open files", "ulimit"),
        ("OSError: [Errno 12] Cannot allocate memory", "memory_gb"),
    ],
)
def test_errors_of_others_come_with_a_hint(message: str, word: str) -> None:
    assert_told(seen(failures=(failure(message=message),)), (message[:20],), word)


def test_a_rank_that_ended_without_a_report_is_quoted() -> None:
    log = ("srun: error: n2: task 2: Exited with exit code 1", *KILLED[3:])
    evidence = seen(log=log, tail=lambda rank: ["submitit WARNING x", "No module named cifarscale"])
    found = assert_told(evidence, ("rank 2 on n2 exited with exit code 1", "told nothing"), "No module named")
    assert found.quote is not None
    assert len(found.quote.lines) == 1


def test_a_script_that_failed_before_any_rank_points_at_the_profile() -> None:
    evidence = seen(log=("slurm_script: line 9: module: command not found",), step=None)
    assert_told(evidence, ("before any rank ran",), "command not found", "setup", "profile big", "it begins again")


def test_a_failed_job_of_which_nothing_is_known() -> None:
    assert_told(seen(), ("job 12 failed", "nothing tells why"), AGAIN)


def test_a_time_limit_that_came_before_the_state_was_saved() -> None:
    evidence = seen("TIMEOUT", log=(STARTED, "stopped: after step 20 of 100; the state is saved"))
    assert_told(evidence, ("timed out", "limit of 4 h"), "too late", "warning_seconds in profile big", AGAIN)
    assert_told(seen("TIMEOUT"), ("timed out",), "not warned", "--time")
    refused = failure(0, "SLURM does not queue job 12 again (Access denied)", expected=True)
    assert_told(seen("TIMEOUT", failures=(refused,)), ("does not queue job 12 again",))


@pytest.mark.parametrize(
    ("state", "headline", "words"),
    [
        ("NODE_FAIL", ("n2 failed",), ('exclude = "n2"',)),
        ("PREEMPTED", ("was preempted", "higher priority"), ()),
        ("BOOT_FAIL", ("did not boot",), ("sinfo -R",)),
        ("DEADLINE", ("deadline",), ()),
        ("LAUNCH_FAILED", ("could not start",), ("sinfo -R",)),
        ("SOMETHING_NEW", ("job 12 something new",), ()),
    ],
)
def test_other_ends(state: str, headline: tuple[str, ...], words: tuple[str, ...]) -> None:
    assert_told(seen(state, log=(STARTED, "srun: error: Node failure on n2")), headline, *words, AGAIN)


def test_who_cancelled_it_and_what_was_saved() -> None:
    stop = failure(0, "after step 300 of 1,000; the state is saved", expected=True, exit_code=75)
    evidence = seen("CANCELLED", attempts=(attempt(state="CANCELLED", cancelled_by="ada"),), failures=(stop,))
    assert_told(evidence, ("job 12 was cancelled by ada",), "the state is saved", AGAIN, but=("before it started",))
    waiting = attempt(state="CANCELLED", cancelled_by="root", start=None)
    assert_told(seen("CANCELLED", attempts=(waiting,)), ("was cancelled by root before it started",))


def test_a_rank_that_was_asked_to_stop_did_not_fail() -> None:
    stop = failure(0, "after step 300 of 1,000; the state is saved", expected=True, exit_code=75)
    assert_told(seen(failures=(stop,)), ("asked to stop after step 300",), AGAIN, but=("died",))


@pytest.mark.parametrize("state", ["COMPLETED", "FAILED", None])
def test_a_complete_run_is_complete_whatever_became_of_the_job(state: str | None) -> None:
    found = assert_told(seen(state, is_complete=True), ("runs/cnn-1 is complete",), "result.json", but=(AGAIN,))
    assert any("nothing is missing" in line for line in found.details) == (state == "FAILED")


def test_a_job_without_an_error_and_without_a_result() -> None:
    assert_told(seen("COMPLETED"), ("job 12 completed", "no result"), "cifarscale logs runs/cnn-1")


# Jobs that SLURM does not tell of.


def test_a_job_that_slurm_has_forgotten_is_explained_by_its_folder() -> None:
    assert_told(seen(None), ("nothing tells why",), "does not know job 12 any more", AGAIN)
    assert_told(seen(None, failures=(failure(),)), ("rank 2 on n2 died first",), "does not know job 12 any more")
    assert_told(seen(None, log=KILLED), ("rank 3 on n2 was killed",))
    assert_told(seen(None, holder="process 7 on n1"), ("process 7 on n1",))


def test_without_a_slurm_its_trouble_is_told() -> None:
    assert_told(seen(None, trouble="sacct is not found"), (), "sacct is not found")


def test_a_run_that_was_never_submitted() -> None:
    here: Callable[..., Evidence] = lambda **values: replace(seen(None, log=()), job=None, **values)  # noqa: E731
    assert_told(here(holder="process 7 on here"), ("being written by process 7",), "never submitted")
    assert_told(here(), ("was interrupted",), "\ncifarscale train runs/cnn-1/recipe.toml")
    assert_told(here(step=None), ("has not begun",))
    assert_told(here(failures=(failure(),)), ("runs/cnn-1 failed: rank 2",), "ValueError: planted")
    assert_told(here(is_complete=True), ("complete",))


# Reading logs.


def test_deaths_are_read_in_their_order() -> None:
    lines = ["srun: error: n[1-2]: tasks 0-1,3: Killed", "task 9: Killed", "srun: error: a-b.c: task 12: Aborted"]
    assert deaths(lines) == [Death((0, 1, 3), "n[1-2]", "Killed"), Death((12,), "a-b.c", "Aborted")]


def test_only_the_newest_start_of_a_log_counts() -> None:
    assert newest_attempt([*KILLED, STARTED, "step 1"]) == [STARTED, "step 1"]
    assert newest_attempt(["no start"]) == ["no start"]
    assert newest_attempt([]) == []


def test_what_slurm_says_is_told_once_without_consequences() -> None:
    lines = [*KILLED, "slurmstepd: error: *** JOB 12 ON n1 CANCELLED AT 2026 DUE TO TIME LIMIT ***"] * 2
    assert said_by_slurm(lines) == ["JOB 12 ON n1 CANCELLED AT 2026 DUE TO TIME LIMIT"]
    assert said_by_slurm(["srun: fatal: no srun", "error: not SLURM's"]) == ["no srun"]


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0 s"), (59.4, "59 s"), (60, "1 min"), (90, "1 min 30 s"), (7322, "2 h 2 min"), (90_000, "1 d 1 h")],
)
def test_durations_are_shown_in_two_units(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


# From a run folder.


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder with a job that failed, on a machine without SLURM."""

    def no_slurm(*arguments: str) -> str:
        raise ClusterError(f"{arguments[0]} is not found: this machine has no SLURM")

    monkeypatch.setattr(slurm, "command", no_slurm)
    monkeypatch.chdir(tmp_path)
    run_dir = tmp_path / "runs" / "cnn 1"
    RunFolder(run_dir).path.mkdir(parents=True)
    (run_dir / "recipe.toml").write_text(recipe_toml(load_recipe("cnn")))
    (run_dir / "slurm/12-0").mkdir(parents=True)
    (run_dir / "slurm/12-1").mkdir()
    command = '["cifarscale", "submit", "cnn"]'
    (run_dir / "slurm/jobs.jsonl").write_text(
        f'{{"job_id": "12", "folder": "{run_dir}/slurm", "profile": "big", "nodes": 2, "world_size": 4, '
        f'"submitted": "2026-05-04T08:00:00", "command": {command}}}\n'
    )
    (run_dir / "slurm/12_0_log.out").write_text("\n".join([*KILLED, STARTED, "the second start"]))
    for restart, message in enumerate(("of the first start", "ValueError: planted")):
        report = vars(failure(message=message))
        write_json_atomically(run_dir / f"slurm/12-{restart}/rank-2.error.json", report)
    return run_dir


def test_the_newest_start_is_gathered_from_a_folder(run: Path) -> None:
    (run / "metrics.jsonl").write_text('{"step": 5, "images_per_second": 1.0, "time": 7.0}\n{"step": 10}\n')
    evidence = gather(run, "runs/cnn 1", submissions(run)[-1])
    assert [each.message for each in evidence.failures] == ["ValueError: planted"]
    assert evidence.log == (STARTED, "the second start")
    assert evidence.step == 10
    assert "this machine has no SLURM" in evidence.trouble


@pytest.mark.parametrize("name", ["12", "runs/cnn 1", "cnn 1"])
def test_why_prints_plain_lines_of_80_columns(name: str, run: Path) -> None:
    done = CliRunner().invoke(main, ["why", name])
    assert done.exit_code == 0, done.output
    assert "rank 2 on n2 died first: ValueError: planted" in " ".join(done.output.split())
    assert "| ValueError: planted" in done.output
    assert "      cifarscale submit cnn\n" in done.output
    assert all(len(line) <= 80 for line in done.output.splitlines())


def test_why_of_nothing_is_one_line(run: Path) -> None:
    done = CliRunner().invoke(main, ["why", "nothing"])
    assert done.exit_code == 1
    assert len(done.output.splitlines()) == 1
