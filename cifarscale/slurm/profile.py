"""Cluster profiles: where and how jobs run on one cluster. Nothing in them changes what a job computes."""

import math
import os
import re
from pathlib import Path
from typing import Annotated, Literal, Self

import tomli_w
from pydantic import (
    AfterValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    model_validator,
)

from cifarscale.config.lookup import bundled_folders, find_file, named_files, read_toml
from cifarscale.config.recipe import Section
from cifarscale.config.validation import explain
from cifarscale.errors import ConfigError
from cifarscale.runs.options import Timeouts

PROFILE_VARIABLE = "CIFARSCALE_PROFILE"
"""Names the profile that is taken where none is given."""
DEFAULT_PROFILE = "gpu"

_DECIDED_ELSEWHERE = {
    "account": "account = …",
    "array": "cifarscale submit --array",
    "chdir": "the folder that you submit from",
    "clusters": "a login node of that cluster",
    "constraint": "constraint = …",
    "cpus-per-gpu": "cpus_per_task = …",
    "cpus-per-task": "cpus_per_task = …",
    "error": "cifarscale logs",
    "export": "environment = { … }",
    "export-file": "environment = { … }",
    "gpus": "gpus_per_node = …",
    "gpus-per-node": "gpus_per_node = …",
    "gpus-per-task": 'gpu_request = "gpus_per_task"',
    "input": "the sbatch script",
    "job-name": "the recipe's name",
    "mem": "memory_gb = …",
    "nodes": "cifarscale submit --nodes",
    "ntasks": "tasks_per_node = …, or gpus_per_node = …",
    "ntasks-per-gpu": "gpus_per_node = …",
    "ntasks-per-node": "tasks_per_node = …, or gpus_per_node = …",
    "open-mode": "the sbatch script",
    "output": "cifarscale logs",
    "parsable": "the sbatch script",
    "partition": "partition = …",
    "qos": "qos = …",
    "signal": "warning_seconds = …",
    "test-only": "cifarscale submit --dry-run",
    "time": "time = …",
    "wait": "cifarscale submit --wait",
    "wrap": "the sbatch script",
}
"""Options of sbatch that would contradict the plan of a job, or hide it from us; and what decides them instead."""
_SECRET = re.compile(r"\b\w*(?:API_KEY|TOKEN|SECRET|PASSWORD)(?:=|$)")
_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")


def minutes(time: str) -> int:
    """Whole minutes, rounded up, of a time as SLURM writes it: M, M:S, H:M:S, D-H, D-H:M or D-H:M:S.

    Raises: ConfigError.
    """
    match = _TIME.fullmatch(time)
    if match is None:
        raise ConfigError(f"time = {time!r} is not a time such as 04:00:00, 90 (minutes) or 1-12:00:00")
    days, *parts = match.groups()
    numbers = [int(part) for part in parts if part is not None]
    if days is not None:
        hours, mins, seconds = (*numbers, 0, 0)[:3]
    elif len(numbers) == 3:
        hours, mins, seconds = numbers
    else:
        hours, mins, seconds = 0, *(*numbers, 0)[:2]
    total = int(days or 0) * 1440 + hours * 60 + mins + math.ceil(seconds / 60)
    if total < 1:
        raise ConfigError(
            f"time = {time!r} is no time at all; SLURM takes 0 for no limit, and then never starts the job"
        )
    return total


def _is_time(text: str) -> str:
    try:
        minutes(text)
    except ConfigError as error:
        raise ValueError(str(error)) from error
    return text


Line = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]*$")]
"""Text on one line: a line break in it would end the line of the sbatch script that it stands in."""
Time = Annotated[str, AfterValidator(_is_time)]


class Profile(Section):
    """What a cluster needs to be told. An empty text or a 0 leaves the choice to the cluster."""

    name: Line = ""
    """Name of the profile; the file's name where it is empty."""
    description: Line = ""
    """One line for people."""
    launcher: Literal["slurm", "local"] = "slurm"
    """`slurm` queues a job; `local` runs the same plan as processes on this machine, now."""
    partition: Line = ""
    account: Line = ""
    qos: Line = ""
    constraint: Line = ""
    """Features that a node must have, as sbatch takes them."""
    gpus_per_node: NonNegativeInt = 1
    """GPUs of each node, one task each; 0 runs on CPUs."""
    gpu_type: Line = ""
    """Kind of GPU, as the cluster calls it."""
    gpu_request: Literal["gpus", "gres", "gpus_per_task"] = "gpus"
    """How GPUs are asked for: `--gpus-per-node`, or `--gres=gpu:…` where a cluster wants that; with `--gpus-per-task`
    each task sees its own alone, near to its cores where SLURM knows which those are."""
    tasks_per_node: NonNegativeInt = 0
    """Tasks (ranks) a node without GPUs; 0 is one."""
    cpus_per_task: PositiveInt = 4
    """Cores of each task."""
    memory_gb: NonNegativeFloat = 0
    """Memory of each node; 0 is the cluster's default."""
    time: Time = "04:00:00"
    """Time limit; a run that is longer goes on in the same job, which queues itself again."""
    warning_seconds: Annotated[int, Field(ge=10)] = 120
    """How long before the time limit SLURM warns the job, which then saves its state and queues itself again."""
    rendezvous_timeout_s: PositiveInt = 300
    """How long ranks wait for each other at the start; more where nodes read Python from a busy file server."""
    collective_timeout_s: PositiveInt = 600
    """How long a rank waits in an exchange for one that hangs; one that is gone is noticed at once."""
    control_timeout_s: PositiveInt = 1800
    """How long, with GPUs, ranks wait for what one of them does alone: reading, a checkpoint, an upload."""
    setup: tuple[Line, ...] = Field(default=(), strict=False)
    """Lines of shell that run on the first node before the tasks start, such as `module load cuda`."""
    container: Line = ""
    """Command that a task's Python is put behind, such as `apptainer exec --nv image.sif`."""
    python: Line = ""
    """Python of the tasks; the one that submits where it is empty."""
    shared_folder: Line = ""
    """Folder that all nodes share; run folders and shards must lie in it. Unchecked where it is empty."""
    interface: Line = ""
    """Network interface between the nodes, for NCCL and gloo, such as `ib0`."""
    environment: dict[Line, Line] = Field(default={})
    """Environment variables of the tasks. They stand in the sbatch script: no place for secrets."""
    sbatch: dict[Line, bool | int | Line] = Field(default={})
    """Further options of sbatch, such as `reservation = "class"`, `exclude = "node7"`, or `exclusive = true`."""

    @property
    def timeouts(self) -> Timeouts:
        """How long ranks wait for each other."""
        return Timeouts(self.rendezvous_timeout_s, self.collective_timeout_s, self.control_timeout_s)

    @model_validator(mode="after")
    def _gpus_decide_the_tasks(self) -> Self:
        if self.gpus_per_node and self.tasks_per_node not in (0, self.gpus_per_node):
            raise ValueError(
                f"tasks_per_node = {self.tasks_per_node} has no effect with gpus_per_node = {self.gpus_per_node}: "
                "there is one task a GPU"
            )
        if self.warning_seconds >= 60 * minutes(self.time):
            raise ValueError(f"warning_seconds = {self.warning_seconds} must be below time = {self.time!r}")
        for name in self.environment:
            if not re.fullmatch(r"[A-Za-z_]\w*", name):
                raise ValueError(f"environment.{name} is not the name of an environment variable")
        if secret := next(filter(None, map(_SECRET.search, (*self.environment, *self.setup))), None):
            raise ValueError(
                f"{secret[0].rstrip('=')} is no setting for a profile, whose lines stand in the sbatch script. SLURM "
                "hands your environment on to the job: export it before you submit, or for W&B run: wandb login"
            )
        for key, value in self.sbatch.items():
            if not re.fullmatch(r"[a-z][a-z-]*", key):
                raise ValueError(f"sbatch.{key} is not an option of sbatch; write it as in --option=value, without --")
            _check_option(key, value, self)
        return self


def _check_option(key: str, value: bool | int | str, profile: Profile) -> None:
    """Raises: ValueError for an option of sbatch that something else decides."""
    decides = _DECIDED_ELSEWHERE.get(key)
    if key == "gres" and "gpu" in str(value):
        decides = 'gpus_per_node = …, with gpu_request = "gres"'
    elif key == "gres" and profile.gpus_per_node and profile.gpu_request == "gres":
        decides = 'gpu_request = "gres", which asks for the GPUs; take gpu_request = "gpus"'
    elif key in ("mem-per-cpu", "mem-per-gpu") and profile.memory_gb:
        decides = f"memory_gb = {profile.memory_gb:g}"
    if decides:
        raise ValueError(f"sbatch.{key} = {value!r} has no place here: {decides} decides it")


def profile_folders() -> tuple[Path, ...]:
    """Where profiles are looked up by name: ./slurm/profiles, your own, those that come with the package."""
    home = Path(os.environ.get("XDG_CONFIG_HOME", Path.home() / ".config")) / "cifarscale" / "profiles"
    return (
        *(folder for folder in (Path("slurm/profiles"), home) if folder.is_dir()),
        *bundled_folders("slurm/profiles"),
    )


def profile_files() -> dict[str, Path]:
    """All profiles that can be named, name to file."""
    return named_files(profile_folders())


def find_profile(name_or_path: str | None = None) -> Path:
    """The file of a profile; None takes the one that CIFARSCALE_PROFILE names, else DEFAULT_PROFILE.

    Raises: ConfigError if there is none, with the nearest name.
    """
    return find_file("profile", name_or_path or os.environ.get(PROFILE_VARIABLE) or DEFAULT_PROFILE, profile_folders())


def load_profile(name_or_path: str | None = None) -> Profile:
    """A checked profile; None as for `find_profile`.

    Raises: ConfigError naming the key, the value, and what is valid.
    """
    path = find_profile(name_or_path)
    values = read_toml(path)
    values["name"] = values.get("name") or path.stem
    try:
        return Profile.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{path}: {explain(error, Profile)}") from error


def profile_toml(profile: Profile) -> str:
    """The profile as TOML with every default written out; loading it again gives an equal one."""
    return tomli_w.dumps(profile.model_dump(mode="json"))


def with_options(profile: Profile, **options: object) -> Profile:
    """The profile with what was given on the command line; None leaves it as it is.

    Raises: ConfigError.
    """
    changes = {key: value for key, value in options.items() if value is not None}
    if changes.get("gpus_per_node"):
        changes["tasks_per_node"] = 0
    try:
        return Profile.model_validate(profile.model_dump() | changes)
    except ValidationError as error:
        raise ConfigError(f"profile {profile.name}: {explain(error, Profile)}") from error
