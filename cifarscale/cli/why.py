"""`cifarscale why`."""

import click

from cifarscale.errors import short_path


@click.command(short_help="Tell why a job is pending, or why it ended.")
@click.argument("job_or_run", metavar="JOB|RUN")
def why(job_or_run: str) -> None:
    """Tell why a job is pending, whether it goes on, or why it ended, and what to do."""
    import textwrap

    from cifarscale.explain.evidence import gather
    from cifarscale.explain.why import explain
    from cifarscale.slurm.submitted import find_run

    run_dir, job = find_run(job_or_run)
    explanation = explain(gather(run_dir, short_path(run_dir), job))

    def show(text: str, first: str, other: str) -> None:
        wrapped = textwrap.wrap(text, 78, initial_indent=first, subsequent_indent=other, break_on_hyphens=False)
        click.echo("\n".join(wrapped))

    show(explanation.headline, "", "")
    for detail in explanation.details:
        show(detail, "  ", "    ")
    if explanation.quote is not None:
        click.echo(f"\n{explanation.quote.title}:")
        for line in explanation.quote.lines:
            click.echo(f"  | {line}")
    if explanation.advice:
        click.echo("\nwhat to do:")
    for advice in explanation.advice:
        text, *commands = advice.splitlines()
        show(text, "  - ", "    ")
        for command in commands:
            click.echo(f"      {command}")
