"""`cifarscale runs`: the run folders here, and in what two of them differ."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cifarscale.cli.status import steps
from cifarscale.log import plain_table

if TYPE_CHECKING:
    from cifarscale.report.difference import Row


class _ListByDefault(click.Group):
    """Lists where no command is named: `runs` and `runs FOLDER`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        named = bool(args) and (args[0] in self.commands or args[0] in ctx.help_option_names)
        return super().parse_args(ctx, args if named else ["list", *args])


@click.group(
    cls=_ListByDefault, short_help="List runs and their results; compare two.", subcommand_metavar="[FOLDER|COMMAND]"
)
def runs() -> None:
    """List all run folders below FOLDER (default: runs), or compare two runs."""


@runs.command("list", short_help="List runs and their results.")
@click.argument("folder", default="runs", type=click.Path(file_okay=False, path_type=Path))
def list_runs(folder: Path) -> None:
    """List all run folders below FOLDER (default: runs) with their state and result."""
    from rich.console import Console
    from rich.table import Column, Table

    from cifarscale.runs.run_folder import run_folders
    from cifarscale.slurm.status import run_statuses

    folders = run_folders(folder)
    if not folders:
        click.echo(f"there are no runs in {folder}. Run: cifarscale train RECIPE")
        return
    table = Table(Column("run", overflow="fold"), "state", Column("step", justify="right"), "result")
    statuses = run_statuses(folders)
    for status in statuses:
        table.add_row(status.run_dir.name, status.state, steps(status), _outcome(status.run_dir))
    console = Console(markup=False)
    console.print(table)
    for status in statuses:
        if status.state in ("damaged", "failed"):
            console.print(f"{status.run_dir.name}: {status.reason}", markup=False, highlight=False, soft_wrap=True)


@runs.command()
@click.argument("one", metavar="RUN|RECIPE")
@click.argument("other", metavar="RUN|RECIPE")
def diff(one: str, other: str) -> None:
    """Show in what two runs differ: keys, code, environment and result. A recipe can stand for a run of it."""
    from cifarscale.report.difference import difference

    found = difference(one, other)
    for letter, side in (("A", found.one), ("B", found.other)):
        click.echo(f"{letter}  {side.name}")
    if not found.is_of_what_is_computed:
        click.echo("both compute the same")
    _show_rows("key", found.keys)
    for line in found.code:
        click.secho(line, fg=_COLOURS.get(line[:1]), bold=line.startswith(("---", "+++")))
    _show_rows("environment", found.environment)
    if found.results:
        _show_rows("result", found.results)
    elif found.results is not None:
        click.echo("their results are equal")


_COLOURS = {"+": "green", "-": "red", "@": "cyan"}


def _show_rows(title: str, rows: "Sequence[Row]") -> None:
    from rich.console import Console
    from rich.table import Column

    from cifarscale.tracking.parts import shown

    if not rows:
        return
    table = plain_table(*(Column(name, overflow="fold") for name in (title, "A", "B")))
    for row in rows:
        one, other = shown(row.one), shown(row.other)
        if one == other:  # to four digits
            one, other = repr(row.one), repr(row.other)
        table.add_row(row.key, one, other)
    Console(markup=False).print(table)


def _outcome(run_dir: Path) -> str:
    from cifarscale.runs.run_folder import RunFolder
    from cifarscale.tasks.base import task_of

    folder = RunFolder(run_dir)
    result = folder.result()
    return "–" if result is None else task_of(folder.load_recipe()).view.outcome(result)
