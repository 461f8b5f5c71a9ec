"""`cifarscale report`."""

from pathlib import Path

import click


@click.command(short_help="Build an HTML report of runs and sweeps.")
@click.argument(
    "runs",
    nargs=-1,
    required=True,
    metavar="RUN|SWEEP...",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The page.  [default: report.html in the folder of the run; of several, here]",
)
@click.option("--data", help="A data set or a folder of shards, for images.  [default: each run's set]")
def report(runs: tuple[Path, ...], out: Path | None, data: str | None) -> None:
    """Make one HTML page about runs and sweeps: recipe, curves, mistakes, samples, trials, and how to run it again.

    The page is self-contained. It also works on runs in progress.
    """
    from cifarscale.report.page import default_report, write_report

    out = out or default_report(runs)
    write_report(runs, out, data)
    click.echo(f"report  {out}")
