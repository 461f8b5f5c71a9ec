"""How evaluations of classifiers are shown."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifarscale.config.recipe import Recipe
from cifarscale.runs.run_folder import RunFolder
from cifarscale.tasks.view import View

if TYPE_CHECKING:
    from cifarscale.tracking.charts import Line
    from cifarscale.tracking.parts import Fact


class EvaluateView(View):
    def outcome(self, result: Mapping[str, Any]) -> str:
        return f"{result['split']} top-1 {result['top1']:.2%}"

    def measured(
        self, folder: RunFolder, recipe: Recipe, result: Mapping[str, Any] | None, lines: "Sequence[Line]"
    ) -> "list[Fact]":
        from cifarscale.tasks.text import accuracy_note
        from cifarscale.tracking.parts import Fact, percent

        if result is None:
            return []
        facts = [Fact(f"{result['split']} top-1", percent(result["top1"]), accuracy_note(result))]
        if flip := result.get("flip"):
            note = f"mean logits of image and mirror image; {accuracy_note(flip)}"
            facts.append(Fact(f"{result['split']} top-1, flip", percent(flip["top1"]), note))
        return facts

    def print_result(self, result: Mapping[str, Any], run_dir: Path, in_full: bool = False) -> None:
        from rich.console import Console
        from rich.table import Table

        from cifarscale.tasks.text import accuracy_note, own_metrics_note

        groups = "superclasses" if "superclasses" in result and not in_full else "classes"
        top5 = f", top-5 {result['top5']:.2%}" if "top5" in result else ""
        console = Console(markup=False)
        console.print(
            f"{result['run']} after {result['step']:,} steps on {result['samples']:,} {result['split']} samples: "
            f"top-1 {result['top1']:.2%}{top5}, loss {result['loss']:.4f}{own_metrics_note(result)}",
            highlight=False,
            soft_wrap=True,
        )
        if flip := result.get("flip"):
            console.print(
                "by the mean logits of each image and its mirror image: "
                f"top-1 {flip['top1']:.2%}, {accuracy_note(flip)}",
                highlight=False,
                soft_wrap=True,
            )
        ranked = sorted(result[groups].items(), key=lambda item: -(item[1] if item[1] is not None else -1))
        table = Table(groups, "top-1")
        for name, value in ranked:
            table.add_row(name, "–" if value is None else f"{value:7.2%}")
        console.print(table)
