"""Training throughput of the built-in recipes on one GPU, by precision, by microbatches, and with steps replayed as a
graph or not: a table in Markdown.

Each figure is a run of its own in this process, one after the other, on drawn data (speed does not depend on it), its
log and checkpoint included, without evaluation; the first steps are left out.

    python tests/bench/bench_gpu.py [--steps N] [--recipe cnn:64 …] [--precision fp32 …] [--graph-only] [--compiled] …

A recipe's number of microbatches may follow its batch, `gan-best:64:1`; otherwise its own is measured, and none. A step
that could not be replayed as a graph is marked, and the log's line goes to standard error.
"""

import logging
import sys
import tempfile
from pathlib import Path

import click
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from runs import run_recipe

from cifarscale.config.load import load_training_recipe
from cifarscale.data.build import build_shards
from cifarscale.runs.options import RunOptions
from cifarscale.tasks.training import resolve

RECIPES = ("cnn:64", "cnn:512", "resnet:128", "dcgan:64", "dcgan-plus:64")
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")


def images_per_second(name: str, changes: tuple[str, ...], steps: int, shards: Path, device: str, graph: bool) -> float:
    """Of a training of `steps` steps."""
    settings = [f"training.max_steps={steps}", "evaluation.every=0", "schedule.warmup_steps=0", "later=[]"]
    if "dcgan" in name:
        settings += ['distance.features="none"', "distance.every=0"]
    recipe = load_training_recipe(name, (*settings, *changes))
    with tempfile.TemporaryDirectory() as folder:
        result = run_recipe(resolve(recipe, shards), Path(folder) / "run", RunOptions(shards, device, graph=graph))
        return float(result["images_per_second"])


class Said(logging.Handler):
    """Keeps what the log says of graphs last."""

    line = ""

    def emit(self, record: logging.LogRecord) -> None:
        if "as a graph" in record.getMessage():
            self.line = record.getMessage()


@click.command()
@click.option("--steps", default=200)
@click.option("--recipe", "recipes", multiple=True, default=RECIPES, help="NAME:BATCH[:MICROBATCHES]")
@click.option("--precision", "precisions", multiple=True, default=PRECISIONS)
@click.option("--graph-only", is_flag=True, help="Only with steps replayed as a graph.")
@click.option("--compiled", is_flag=True, help="Also with training.compile, where microbatches are 0.")
@click.option("--compiled-only", is_flag=True, help="With training.compile alone.")
@click.option("--device", default="cuda")
def main(
    steps: int,
    recipes: tuple[str, ...],
    precisions: tuple[str, ...],
    graph_only: bool,
    compiled: bool,
    compiled_only: bool,
    device: str,
) -> None:
    """Print the table."""
    graphs = (False,) if device != "cuda" else (True,) if graph_only else (True, False)
    said = Said()
    logging.getLogger("cifarscale").addHandler(said)
    logging.getLogger("cifarscale").setLevel(logging.INFO)
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    click.echo(f"{name}, torch {torch.__version__}; images a second, one run each of {steps} steps\n")
    click.echo(f"| recipe, batch | microbatches | graph | {' | '.join(precisions)} |")
    click.echo(f"| --- | --- | --- | {' | '.join('---:' for _ in precisions)} |")
    with tempfile.TemporaryDirectory() as folder:
        shards = Path(folder, "synthetic")
        build_shards("synthetic", shards)
        for each in recipes:
            recipe, batch, *given = each.split(":")
            own = str(load_training_recipe(recipe, ()).training.microbatches)
            microbatches = given or dict.fromkeys((own, "0"))
            ways: list[tuple[str, bool, tuple[str, ...]]] = []
            if not compiled_only:
                for graph in graphs:
                    ways += [(number, graph, (f"training.microbatches={number}",)) for number in microbatches]
            if compiled or compiled_only:
                ways.append(("0, compiled", False, ("training.microbatches=0", "training.compile=true")))
            for way, graph, changes in ways:
                rates = []
                for precision in precisions:
                    more = (f"training.global_batch_size={batch}", f'training.precision="{precision}"')
                    said.line = ""
                    try:
                        rate = images_per_second(recipe, (*changes, *more), steps, shards, device, graph)
                        rates.append(f"{rate:,.0f}" + " (no graph)" * (graph and "are not" in said.line))
                        if graph:
                            click.echo(f"{each} {way} {precision}: {said.line}", err=True)
                    except Exception as error:
                        click.echo(f"{each} {way} {precision}: {error}", err=True)
                        rates.append("failed")
                with_graph = "yes" if graph else "no"
                click.echo(f"| `{recipe}`, {batch} | {way} | {with_graph} | {' | '.join(rates)} |")


if __name__ == "__main__":
    main()
