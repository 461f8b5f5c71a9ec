"""`cifarscale dashboard`."""

import os

import click


@click.command(short_help="Create a W&B workspace for the runs.")
@click.option("--entity", help="W&B user or team.  [default: $WANDB_ENTITY, or the login's]")
@click.option("--project", help="W&B project.  [default: $WANDB_PROJECT, or cifarscale]")
@click.option("--dry-run", is_flag=True, help="Show sections and panels; needs no account.")
def dashboard(entity: str | None, project: str | None, dry_run: bool) -> None:
    """Create a workspace in Weights & Biases with panels for classifiers, generators, sweeps and throughput."""
    if dry_run:
        _show()
        return
    from cifarscale.config.recipe import TrackingConfig
    from cifarscale.errors import CifarscaleError
    from cifarscale.tracking.dashboard import create_workspace
    from cifarscale.tracking.wandb_sync import require_server

    require_server()
    import wandb

    project = project or os.environ.get("WANDB_PROJECT") or TrackingConfig().project
    try:
        entity = entity or os.environ.get("WANDB_ENTITY") or wandb.Api().default_entity
        click.echo(f"dashboard {create_workspace(entity or '', project)}")
    except Exception as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CifarscaleError(
            f"W&B makes no workspace in {entity}/{project}: {line}. Is there a run in that project yet?"
        ) from error


def _show() -> None:
    from rich.console import Console
    from rich.table import Table

    from cifarscale.tracking.dashboard import SECTIONS

    table = Table("section", "panel", "kind", "metrics")
    for name, panels in SECTIONS.items():
        for i, panel in enumerate(panels):
            table.add_row("" if i else name, panel.title, panel.kind, ", ".join(panel.metrics), end_section=False)
        table.add_section()
    Console(markup=False).print(table)
