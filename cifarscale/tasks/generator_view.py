"""How runs of generators are shown."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifarscale.config.recipe import Recipe
from cifarscale.errors import typed
from cifarscale.runs.run_folder import RunFolder
from cifarscale.tasks.view import View

if TYPE_CHECKING:
    from cifarscale.tracking.charts import Chart, Line
    from cifarscale.tracking.parts import Fact, Section


class GeneratorView(View):
    def outcome(self, result: Mapping[str, Any]) -> str:
        if "distance" not in result:
            return super().outcome(result)
        return f"{result['distance']['metric']} {result['distance']['distance']:.2f}"

    def print_result(self, result: Mapping[str, Any], run_dir: Path, in_full: bool = False) -> None:
        import click

        from cifarscale.tasks.text import computed, cost, place, rate

        click.echo(f"{cost(result)}, {rate(result)}")
        click.echo(f"cost    {computed(result)}")
        if "distance" in result:
            click.echo(self.outcome(result))
        click.echo(f"samples {run_dir / result['samples']}")
        click.echo(place(run_dir))
        click.echo(f"next    cifarscale generate {typed(run_dir)} --out samples.png")

    def measured(
        self, folder: RunFolder, recipe: Recipe, result: Mapping[str, Any] | None, lines: "Sequence[Line]"
    ) -> "list[Fact]":
        from cifarscale.tasks.generator_section import distance_facts

        return distance_facts(folder)

    def charts(self) -> "Sequence[Chart]":
        from cifarscale.tracking.charts import Chart

        distances = {"fid": "FID", "frechet_distance": "Fréchet distance"}
        return (Chart("Distance to real images", distances, "distance"),)

    def compared(self) -> "Sequence[Chart]":
        from cifarscale.tracking.charts import Chart

        return (
            Chart("Distance to real images", {"fid": ""}, "FID"),
            Chart("Distance to real images", {"frechet_distance": ""}, "Fréchet distance"),
        )

    def sections(self, folder: RunFolder, recipe: Any, data: str | None) -> "list[Section]":
        from cifarscale.tasks.generator_section import distances, nearest, samples

        return [*distances(folder), *samples(folder), nearest(folder.path, recipe, data)]
