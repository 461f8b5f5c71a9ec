"""`cifarscale sync`."""

import signal
import sys
from pathlib import Path

import click

from cifarscale.errors import short_path


@click.command(short_help="Upload runs to W&B that were offline, or untracked.")
@click.argument("runs", nargs=-1, type=click.Path(exists=True, file_okay=False, path_type=Path))
def sync(runs: tuple[Path, ...]) -> None:
    """Upload to Weights & Biases what RUNS, or all below runs/, wrote while they were offline.

    RUNS are run folders, or those of sweeps. A run that you name is uploaded even if W&B was off for it, from its
    metrics. What is uploaded already is left alone, so you can repeat this.
    """
    from cifarscale.errors import EXIT_ERROR, CifarscaleError, RunError
    from cifarscale.runs.run_folder import run_folders
    from cifarscale.tracking.wandb_sync import require_server, runs_to_upload

    run_dirs = runs_to_upload(runs or run_folders(), untracked_too=bool(runs))
    if not run_dirs:
        where = ", ".join(map(str, runs)) or "runs/"
        raise RunError(
            f"nothing to upload: W&B was on for no run in {where}. To upload one nevertheless, run: cifarscale sync RUN"
        )
    require_server()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: the upload under way ends, too
    failed = 0
    for run in run_dirs:
        try:
            click.echo(f"{short_path(run)}  {'uploaded' if _sync(run) else 'is uploaded already'}")
        except CifarscaleError as error:
            click.echo(f"{short_path(run)}  {error}", err=True)
            failed += 1
    if failed:
        sys.exit(EXIT_ERROR)


def _sync(run_dir: Path) -> bool:
    """`sync_run` with what the run's task has for W&B."""
    from cifarscale.runs.run_folder import RunFolder
    from cifarscale.tasks.base import task_of
    from cifarscale.tasks.training import TrainingTask
    from cifarscale.tracking.wandb_sync import sync_run

    task = task_of(RunFolder(run_dir).load_training_recipe())
    assert isinstance(task, TrainingTask)
    return sync_run(run_dir, task.wandb_tables)
