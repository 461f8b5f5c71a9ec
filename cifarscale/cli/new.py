"""`cifarscale new`: files to start from."""

from pathlib import Path

import click

from cifarscale.errors import typed


@click.command(short_help="Write a network, task or data set of your own, to start from.")
@click.argument("kind", type=click.Choice(["network", "task", "dataset"]))
@click.argument("name")
@click.option(
    "--folder", type=click.Path(file_okay=False, path_type=Path), default=Path(), help="Where.  [default: here]"
)
def new(kind: str, name: str, folder: Path) -> None:
    """Write NAME.py, a recipe that names it, and a test. They run as they are; change them to what you want."""
    from cifarscale.config.templates import write_template

    files = {path.name: typed(path) for path in write_template(kind, name, folder)}
    click.echo(f"wrote  {', '.join(files.values())}")
    click.echo(f"next   cifarscale train {files[f'{name}.toml']}")
    click.echo(f"test   pytest {files[f'test_{name}.py']}")
