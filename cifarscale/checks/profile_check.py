"""What SLURM itself says of a profile, before any job is queued with it."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from cifarscale.checks.finding import Finding, failure, ok, warning, without_command
from cifarscale.errors import ClusterError
from cifarscale.runs.run_folder import RUNS_ROOT
from cifarscale.slurm import client as slurm
from cifarscale.slurm.client import Partition
from cifarscale.slurm.plan import Plan, shape, unmet_resources
from cifarscale.slurm.profile import Profile
from cifarscale.slurm.submission import check_with_slurm

SHORT_GRACE_S = 30
"""Less than this is hardly enough to save a checkpoint on a busy file server."""


def check_profile(profile: Profile) -> Iterator[Finding]:
    """What is right and what is not, one line after the other.

    Raises: ClusterError if the profile needs SLURM and this machine has none, or it does not answer.
    """
    plan = shape(profile, 1)
    if profile.launcher == "local":
        yield from _this_machine(plan)
        if profile.shared_folder:
            yield shared_folder(profile)
        return
    configuration = slurm.configuration()
    yield ok("SLURM", f"version {configuration.get('SLURM_VERSION', '?')}")
    yield accounting()
    try:
        partition = slurm.known_partition(profile.partition, slurm.partitions(), f"profile {profile.name}")
    except ClusterError as error:
        yield failure("partition", str(error), "name one of these in the profile: partition = …")
        return
    settings = {name: slurm.partition_settings(name) for name in partition.name.split(",")}
    for name, each in settings.items():
        yield partition_state(name, each, slurm.node_states(name))
    yield from fits(plan, profile, partition)
    yield _accepted(profile, plan)
    yield shared_folder(profile)
    yield from dict.fromkeys(preemption(configuration, each, profile) for each in settings.values())
    yield requeue(configuration, profile)


def partition_state(name: str, settings: Mapping[str, str], states: Mapping[str, int]) -> Finding:
    """Whether a partition takes jobs, and starts them.

    Args:
        settings: what `scontrol show partition` says of it.
        states: its nodes by their states.
    """
    counts = ", ".join(f"{number} {state}" for state, number in states.items())
    text = f"{name}: {counts or 'no nodes'}"
    if (state := settings.get("State", "UP")) != "UP":
        if state == "DOWN":
            return warning("partition", f"{text}; it is DOWN: jobs wait", "take another one, or ask")
        return failure("partition", f"{text}; it is {state}", "take another one, or wait until it is open again")
    if all(map(slurm.is_away, states)):
        return warning(
            "partition", f"{text}: none runs jobs now, so jobs wait", "take another one, or ask; sinfo -R says why"
        )
    return ok("partition", text)


def fits(plan: Plan, profile: Profile, partition: Partition) -> Iterator[Finding]:
    """Whether a node of the partition has what the profile asks for."""
    limit = "no limit" if partition.max_time_min is None else f"at most {partition.max_time_min} minutes"
    gpus = f"{plan.gpus_per_node} of {partition.gpus} a node" if plan.gpus_per_node else "none asked for"
    errors = unmet_resources(plan, profile, partition)
    texts = {
        "time": f"{profile.time}; {limit} in {partition.name}",
        "cores": f"{plan.tasks_per_node} tasks x {plan.cpus_per_task} of {partition.cpus} a node",
        "GPUs": gpus,
    }
    for subject, text in texts.items():
        if subject in errors:
            what, _, remedy = errors[subject].partition(". ")
            yield failure(subject, what, remedy or "change cpus_per_task or tasks_per_node in the profile")
        else:
            yield ok(subject, text)


def shared_folder(profile: Profile) -> Finding:
    """Whether the folder that the nodes are to share is there, and can be written from here."""
    if not profile.shared_folder:
        return warning(
            "shared folder",
            "not named, so submit does not check run folders",
            "if only some folders are shared, name "
            "one: shared_folder = …; cifarscale doctor tells whether the nodes share this one",
        )
    folder = Path(profile.shared_folder)
    if not folder.is_dir():
        return failure("shared folder", f"{folder} is not a folder here", "make it, or correct shared_folder = …")
    if not os.access(folder, os.W_OK | os.X_OK):
        return failure(
            "shared folder", f"{folder} cannot be written by you", "name one of your own in it: shared_folder = …"
        )
    return ok("shared folder", str(folder))


def preemption(configuration: Mapping[str, str], settings: Mapping[str, str], profile: Profile) -> Finding:
    """What a job hears before it must make room for another.

    Args:
        configuration: of the cluster, by names in slurm.conf.
        settings: of the partition.
    """
    mode = settings.get("PreemptMode") or configuration.get("PreemptMode", "OFF")
    if configuration.get("PreemptType", "preempt/none") == "preempt/none" or mode == "OFF":
        return ok(
            "warning signal", f"USR2 {profile.warning_seconds} s before the time limit; jobs are not preempted here"
        )
    sends_signal = "preempt_send_user_signal" in configuration.get("SlurmctldParameters", "")
    name = "USR2" if sends_signal else "SIGTERM"
    grace_s = int(settings.get("GraceTime") or 0)
    kill_s = configuration.get("KillWait", "30").split()[0]
    if grace_s >= SHORT_GRACE_S:
        return ok("warning signal", f"USR2 before the time limit; a preempted job has {grace_s} s after {name}")
    time_left = f"GraceTime = {grace_s} s" if grace_s else f"no GraceTime, only KillWait = {kill_s} s"
    return warning(
        "warning signal",
        f"USR2 before the time limit; a preempted job has {time_left} after {name}",
        "save often enough (training.checkpoint_every): what is after the last checkpoint may be computed again",
    )


def requeue(configuration: Mapping[str, str], profile: Profile) -> Finding:
    """Whether a job that is preempted, or warned, can queue itself again."""
    if profile.sbatch.get("no-requeue"):
        return warning(
            "requeue",
            "sbatch.no-requeue is set: a job that is warned or preempted ends",
            "leave it out, or submit again",
        )
    if configuration.get("JobRequeue", "1") == "0":
        return ok("requeue", "off by default (JobRequeue = 0), and our jobs ask for it")
    return ok("requeue", "allowed")


def accounting() -> Finding:
    """Whether SLURM keeps accounts, from which ended jobs are known."""
    try:
        trouble = slurm.require_accounting()
    except ClusterError as error:
        return failure("accounting", str(error), "without it submit refuses jobs")
    if trouble:
        return warning("accounting", f"on, but it does not answer: {trouble}", "jobs run; how they ended is told later")
    return ok("accounting", "on: SLURM can tell how a job ended")


def _accepted(profile: Profile, plan: Plan) -> Finding:
    """Whether sbatch takes a job of one node: account, qos, constraint, memory and all."""
    asked = {key: getattr(profile, key) for key in ("account", "qos", "constraint")}
    named = ", ".join(f"{key} {value}" for key, value in asked.items() if value)
    try:
        waits = check_with_slurm(RUNS_ROOT.absolute(), "cifarscale-check", profile, plan)
    except ClusterError as error:
        text = without_command(error)
        return failure(
            "sbatch",
            f"{text}{f' (with {named})' if named else ''}",
            "correct the profile; sacctmgr show associations user=$USER lists your accounts and qos",
        )
    text = f"takes a job of one node{f', with {named}' if named else ''}"
    if waits:
        return warning("sbatch", f"{text}, and lets it wait now: {waits}", "submit: it starts when it can")
    return ok("sbatch", text)


def _this_machine(plan: Plan) -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0))
    if plan.tasks_per_node > cores:
        yield warning("cores", f"{plan.tasks_per_node} tasks on {cores} cores", "tasks take turns: use fewer")
    else:
        yield ok("cores", f"{plan.tasks_per_node} of {cores}")
    if not plan.gpus_per_node:
        yield ok("GPUs", "none asked for")
        return
    import torch

    gpus = torch.cuda.device_count()
    if plan.gpus_per_node > gpus:
        yield failure(
            "GPUs", f"torch sees {gpus}, and gpus_per_node = {plan.gpus_per_node}", "use fewer: gpus_per_node = …"
        )
    else:
        yield ok("GPUs", f"{plan.gpus_per_node} of {gpus}")
