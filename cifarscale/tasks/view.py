"""How the runs of a task are shown. What is here suits any task; a task says what it has to say beyond that."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from cifarscale.config.keys import dotted
from cifarscale.config.recipe import Recipe, TrainingRecipe
from cifarscale.errors import typed
from cifarscale.runs.run_folder import RunFolder

if TYPE_CHECKING:
    from cifarscale.tracking.charts import Chart, Line
    from cifarscale.tracking.parts import Drawing, Fact, Section


class View:
    """On the terminal, and as a part of the report."""

    chart_title: ClassVar[str] = "Curves"

    def outcome(self, result: Mapping[str, Any]) -> str:
        """The result of a complete run in a few words."""
        return "done"

    def print_result(self, result: Mapping[str, Any], run_dir: Path, in_full: bool = False) -> None:
        """Prints the result of a complete run, and what one may do next.

        Args:
            run_dir: as one would type it here.
            in_full: whether to show every class.
        """
        import click

        from cifarscale.tasks.text import OF_EVERY_TRAINING, computed, cost, place, rate
        from cifarscale.tracking.parts import shown

        if "parameters" in result:
            click.echo(f"{cost(result)}, {rate(result)}")
            if text := computed(result):
                click.echo(f"cost    {text}")
        for key, value in dotted(result):
            if key not in OF_EVERY_TRAINING:
                click.echo(f"{key.replace('.', ' ').replace('_', ' ')}: {shown(value)}")
        click.echo(place(run_dir))
        click.echo(f"next    cifarscale report {typed(run_dir)}")

    def facts(
        self, folder: RunFolder, recipe: Recipe, result: Mapping[str, Any] | None, lines: "Sequence[Line]"
    ) -> "list[Fact]":
        """What one looks for first: what was measured, and of an incomplete training its step.

        Args:
            result: None while the run is not complete.
            lines: of metrics.jsonl.
        """
        from cifarscale.tracking.parts import Fact

        found = self.measured(folder, recipe, result, lines)
        if result is not None or not isinstance(recipe, TrainingRecipe):
            return found
        step = max((line["step"] for line in lines), default=0)
        return [*found, Fact("step", f"{step:,}", f"of {recipe.training.max_steps:,}")]

    def measured(
        self, folder: RunFolder, recipe: Any, result: Mapping[str, Any] | None, lines: "Sequence[Line]"
    ) -> "list[Fact]":
        """The metrics by which a training can be compared, as far as they are known. Arguments as of `facts`."""
        from cifarscale.tracking.parts import Fact, shown

        if not isinstance(recipe, TrainingRecipe):
            return []
        final = dict(dotted(result or {}))
        facts = []
        for metric in recipe.metrics:
            name = metric.name.replace("_", " ").replace(".", " ")
            if result is not None and metric.is_final and metric.name in final:
                facts.append(Fact(name, shown(final[metric.name])))
            elif result is None and (line := next((line for line in reversed(lines) if metric.name in line), None)):
                facts.append(Fact(f"{name} so far", shown(line[metric.name]), f"at step {line['step']:,}"))
        return facts

    def charts(self) -> "Sequence[Chart]":
        """What is drawn of a run's log."""
        return ()

    def compared(self) -> "Sequence[Chart]":
        """What is drawn of the logs of several runs: a curve a run, of the first of a chart's metrics that it has."""
        return ()

    def drawings(self, folder: RunFolder, recipe: Any, lines: "Sequence[Line]", key: str) -> "list[Drawing]":
        """The charts of a run. `key` names the run in ids of the page."""
        from cifarscale.tracking.charts import run_drawings

        return run_drawings(key, self.charts(), lines, folder.environment())

    def sections(self, folder: RunFolder, recipe: Any, data: str | None) -> "list[Section]":
        """What a report shows of a run beside its log, recipe and environment. Nothing is written.

        Args:
            data: a data set or a folder of shards; None for the recipe's own.
        """
        return []

    def has_begun(self, folder: RunFolder) -> bool:
        """Whether anything has been computed."""
        return folder.metrics.is_file() or folder.checkpoints.is_dir()
