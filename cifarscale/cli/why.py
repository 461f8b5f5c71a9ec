"""`cifarscale why`."""

import click


@click.command(short_help="Tell why a job is pending, or why it ended.")
@click.argument("job_or_run", metavar="JOB|RUN")
def why(job_or_run: str) -> None:
    """Tell why a job is pending, whether it goes on, or why it ended, and what to do."""
    from cifarscale.api.jobs import job

    click.echo(job(job_or_run).why())
