"""`cifarscale verify`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cifarscale.cli.options import set_option

if TYPE_CHECKING:
    from cifarscale.checks.verify import Comparison


@click.command(short_help="Verify that a recipe is reproducible on a cluster.")
@click.argument("recipe")
@click.option("--nodes", type=click.IntRange(min=1), default=1, show_default=True, help="Nodes of the job.")
@click.option("--profile", help="A cluster profile.  [default: $CIFARSCALE_PROFILE, or gpu]")
@click.option("--steps", type=click.IntRange(min=8), default=1000, show_default=True, help="Length of the short run.")
@set_option
@click.option("--data", help="A data set (cifar100, synthetic) or a folder of shards.  [default: the recipe's set]")
@click.option("--folder", type=click.Path(path_type=Path), help="For the runs.  [default: runs/.verify/NAME-HASH]")
def verify(
    recipe: str,
    nodes: int,
    profile: str | None,
    steps: int,
    overrides: tuple[str, ...],
    data: str | None,
    folder: Path | None,
) -> None:
    """Verify on your own cluster that RECIPE gives the same numbers regardless of ranks and interruptions.

    A short run of it; the same one killed and started again; the same one on another number of ranks. Shows what is
    equal in every bit, and how near the rest is; exit code 1 if the promise does not hold.
    """
    from cifarscale.checks.verify import shortened
    from cifarscale.checks.verify import verify as verify_runs
    from cifarscale.config.load import load_training_recipe, recipe_hash
    from cifarscale.runs.run_folder import RUNS_ROOT
    from cifarscale.slurm.profile import load_profile

    short = shortened(load_training_recipe(recipe, overrides), steps)
    chosen = load_profile(profile)
    folder = folder or RUNS_ROOT / ".verify" / f"{short.name}-{recipe_hash(short)}-{chosen.name}-{nodes}"
    comparisons = verify_runs(short, chosen, nodes, data, folder, lambda text: click.echo(text, err=True))
    _show(comparisons)
    if broken := [comparison for comparison in comparisons if not comparison.holds]:
        where = f": {broken[0].what}, the run differs first in {broken[0].first}" if broken[0].first else ""
        click.echo(f"error: the promise does not hold here{where}. What was run is in {folder}", err=True)
        sys.exit(1)
    click.echo(f"The promise holds here: {short.name}, {steps} steps, profile {chosen.name}, {nodes} nodes.")


def _show(comparisons: "list[Comparison]") -> None:
    from rich.console import Console
    from rich.table import Table

    from cifarscale.checks.verify import NOT_PROMISED

    table = Table("run", "metric", "compared with the uninterrupted run")
    for each in comparisons:
        agrees = "bit-identical" if each.deviation == 0 else f"differs by {each.deviation:.1e}"
        if each.allowed == NOT_PROMISED and each.deviation:
            allowed = ", not promised"
        elif each.holds:
            allowed = ""
        else:
            allowed = ", and must not" if each.allowed == 0 else f", more than {each.allowed:.0e}"
        table.add_row(each.what, each.metric, agrees + allowed)
    Console(markup=False).print(table)
