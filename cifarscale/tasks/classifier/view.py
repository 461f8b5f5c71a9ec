"""How runs of classifiers are shown."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifarscale.config.recipe import Recipe
from cifarscale.errors import typed
from cifarscale.runs.run_folder import RunFolder
from cifarscale.tasks.classifier.recipe import EVERY_EVALUATION, ClassifierRecipe
from cifarscale.tasks.text import number
from cifarscale.tasks.view import View

if TYPE_CHECKING:
    from cifarscale.tracking.charts import Chart, Line
    from cifarscale.tracking.parts import Drawing, Fact, Section


class ClassifierView(View):
    def outcome(self, result: Mapping[str, Any]) -> str:
        return f"test top-1 {result['test']['top1']:.2%}"

    def print_result(self, result: Mapping[str, Any], run_dir: Path, in_full: bool = False) -> None:
        import click
        from rich.console import Console
        from rich.table import Table

        from cifarscale.tasks.text import computed, cost, place, rate

        table = Table()
        top5 = ("top5",) if "top5" in result["test"] else ()
        own = [key for key in result["test"] if key not in EVERY_EVALUATION]
        for column in ("split", "top-1", *("top-5" for _ in top5), "loss", *(key.replace("_", " ") for key in own)):
            table.add_column(column, justify="left" if column == "split" else "right")
        for split in ("train", "validation", "test", "train_flip", "validation_flip", "test_flip"):
            if split in result:
                metrics = result[split]
                shares = (f"{metrics[name]:.2%}" for name in ("top1", *top5))
                table.add_row(split.replace("_", ", "), *shares, *(number(metrics[key]) for key in ("loss", *own)))
        click.echo(cost(result))
        Console(markup=False).print(table)
        click.echo(f"speed   {rate(result)}")
        if text := computed(result):
            click.echo(f"cost    {text}")
        click.echo(place(run_dir))
        click.echo(f"next    cifarscale evaluate {typed(run_dir)}")

    def measured(
        self, folder: RunFolder, recipe: Recipe, result: Mapping[str, Any] | None, lines: "Sequence[Line]"
    ) -> "list[Fact]":
        from cifarscale.tasks.text import accuracy_note
        from cifarscale.tracking.parts import Fact, percent

        facts = []
        for split in ("test", "test_flip", "validation", "train"):
            if result and split in result:
                metrics = result[split]
                name = split.replace("_", ", ")
                facts.append(Fact(f"{name} top-1", percent(metrics["top1"]), accuracy_note(metrics)))
            elif not result and (line := next((line for line in reversed(lines) if f"{split}_top1" in line), None)):
                facts.append(Fact(f"{split} top-1 so far", percent(line[f"{split}_top1"]), f"at step {line['step']:,}"))
        return facts

    def charts(self) -> "Sequence[Chart]":
        from cifarscale.tracking.charts import Chart

        losses = {"loss": "training", "validation_loss": "validation", "test_loss": "test"}
        accuracies = {"accuracy": "training, augmented", "validation_top1": "validation", "test_top1": "test"}
        return Chart("Loss", losses, "loss"), Chart("Accuracy", accuracies, "top-1", is_share=True)

    def drawings(
        self, folder: RunFolder, recipe: ClassifierRecipe, lines: "Sequence[Line]", key: str
    ) -> "list[Drawing]":
        from cifarscale.tracking.charts import Chart, run_drawings

        own = (
            Chart(words.capitalize(), {f"validation_{name}": "validation", f"test_{name}": "test"}, words)
            for name in recipe.evaluation.metrics
            for words in (name.replace("_", " "),)
        )
        return run_drawings(key, (*self.charts(), *own), lines, folder.environment())

    def compared(self) -> "Sequence[Chart]":
        from cifarscale.tracking.charts import Chart

        accuracies = {"validation_top1": "validation", "test_top1": "test"}
        return Chart("Training loss", {"loss": ""}, "loss"), Chart("Accuracy", accuracies, "top-1", is_share=True)

    def sections(self, folder: RunFolder, recipe: ClassifierRecipe, data: str | None) -> "list[Section]":
        from cifarscale.tasks.classifier.section import mistakes

        return mistakes(folder.path, recipe, data)
