"""`cifarscale`, as the pages' commands call it, with trainings of a few steps."""

import sys

from cifarscale.cli.main import main
from cifarscale.config.load import load_job, recipe_files
from cifarscale.config.recipe import Recipe
from cifarscale.config.sweep import SweepJob

STEPS = {"training.max_steps": "20", "training.log_every": "5", "training.checkpoint_every": "10"}
STEPS |= {"training.global_batch_size": "16", "evaluation.every": "10"}
SWEEP = {"num_trials": "2", "scheduler.grace_steps": "10", "set.data.num_validation": "100"}
SWEEP |= {f"set.{key}": value for key, value in STEPS.items()}
FEW = ("--num-samples", "100", "--allow-few-samples", "--no-classes")


def small(arguments: list[str]) -> list[str]:
    """The arguments, with more that make little work of them."""
    command = arguments[0] if arguments else ""
    if "--help" in arguments or command not in ("train", "submit", "sweep", "verify", "fid", "generate"):
        return arguments
    if command == "fid":
        return [*arguments, *FEW]
    if command == "generate":
        return arguments
    name = f"sweep-{arguments[1]}" if f"sweep-{arguments[1]}" in recipe_files() else arguments[1]
    job = load_job(name if command == "sweep" else arguments[1])
    if command == "verify":
        return [*arguments, "--steps", "40"]
    keys: dict[str, str] = {}
    if isinstance(job, SweepJob):
        keys = dict(SWEEP)
        if "--num-trials" in arguments:
            del keys["num_trials"]
            place = arguments.index("--num-trials") + 1
            arguments = [*arguments[:place], str(min(3, int(arguments[place]))), *arguments[place + 1 :]]
        keys |= {f"space.{key}.choice": "[16, 32]" for key in job.space if key.endswith("global_batch_size")}
        keys |= {f"space.{key}.choice": "[0, 5]" for key in job.space if key.endswith("warmup_steps")}
        for key in job.space:
            keys.pop(f"set.{key}", None)
    elif isinstance(job, Recipe):
        keys = STEPS | {"schedule.warmup_steps": "0"}
    return [*arguments, *(word for key, value in keys.items() for word in ("--set", f"{key}={value}"))]


if __name__ == "__main__":
    main(small(sys.argv[1:]), prog_name="cifarscale")
