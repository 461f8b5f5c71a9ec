"""`cifarscale`: the entry point and what all commands share."""

import os
import sys
from typing import Any, NoReturn

import click

from cifarscale.cli.dashboard import dashboard
from cifarscale.cli.doctor import doctor
from cifarscale.cli.evaluate import evaluate, predict
from cifarscale.cli.export import export
from cifarscale.cli.fid import fid
from cifarscale.cli.generate import generate
from cifarscale.cli.jobs import jobs, models
from cifarscale.cli.new import new
from cifarscale.cli.profiles import profiles
from cifarscale.cli.report import report
from cifarscale.cli.runs import runs
from cifarscale.cli.shards import shards
from cifarscale.cli.status import cancel, logs, status
from cifarscale.cli.submit import submit
from cifarscale.cli.sweep import sweep, sweep_status
from cifarscale.cli.sync import sync
from cifarscale.cli.train import train
from cifarscale.cli.verify import verify
from cifarscale.cli.why import why
from cifarscale.errors import EXIT_INTERRUPTED, TRUST_VARIABLE, CifarscaleError
from cifarscale.training.signals import StopSignal


class _Main(click.Group):
    """Shows our errors as one line, which commands to choose from may follow; the traceback only with --debug."""

    def invoke(self, ctx: click.Context) -> Any:
        from cifarscale.log import configure_logging

        debug = ctx.params.get("debug", False)
        configure_logging(debug=debug)
        try:
            return super().invoke(ctx)
        except StopSignal as stopped:
            _end_with(stopped.as_error())
        except CifarscaleError as error:
            if debug:
                raise
            _end_with(error)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, commands in _SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(command.name or "", command.get_short_help_str()) for command in commands])


def _end_with(error: CifarscaleError) -> NoReturn:
    kind = "stopped" if error.exit_code == EXIT_INTERRUPTED else "error"
    click.echo(f"{kind}: {error}", err=True)
    if error.details:
        click.echo(error.details, err=True)
    sys.exit(error.exit_code)


@click.group(cls=_Main, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="cifarscale")
@click.option("--debug", is_flag=True, help="Show debug messages, and the traceback of an error.")
@click.option("--trust-code", is_flag=True, help="Run code that a run folder brings and you have not trained yourself.")
def main(debug: bool, trust_code: bool) -> None:
    """Train and evaluate image models with the same numbers on a laptop and on a cluster.

    \b
    cifarscale train demo      two minutes, on built-in data
    cifarscale train cnn       on CIFAR-100
    """
    if trust_code:
        os.environ[TRUST_VARIABLE] = "all"


_SECTIONS: dict[str, tuple[click.Command, ...]] = {
    "Data, recipes and profiles": (shards, jobs, models, new, profiles),
    "On this machine": (train, evaluate, predict, generate, fid, sweep, export),
    "On a cluster": (submit, status, logs, why, cancel, doctor, verify),
    "Anywhere": (runs, sweep_status, report, sync, dashboard),
}
for commands in _SECTIONS.values():
    for command in commands:
        main.add_command(command)
