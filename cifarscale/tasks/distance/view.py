"""How distances between images are shown."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifarscale.config.recipe import Recipe
from cifarscale.runs.run_folder import RunFolder
from cifarscale.tasks.view import View

if TYPE_CHECKING:
    from cifarscale.tracking.charts import Line
    from cifarscale.tracking.parts import Fact


class DistanceView(View):
    def outcome(self, result: Mapping[str, Any]) -> str:
        return f"{result['metric']} {result['distance']:.2f}"

    def measured(
        self, folder: RunFolder, recipe: Recipe, result: Mapping[str, Any] | None, lines: "Sequence[Line]"
    ) -> "list[Fact]":
        from cifarscale.tracking.parts import Fact

        if result is None:
            return []
        return [Fact(str(result["metric"]), f"{result['distance']:.2f}", f"against {result['against']}")]

    def print_result(self, result: Mapping[str, Any], run_dir: Path, in_full: bool = False) -> None:
        from rich.console import Console
        from rich.table import Table

        console = Console(markup=False)
        step = f" after {result['step']:,} steps" if "step" in result else ""
        against = Path(result["against"]).name
        real = f"{result['num_real']:,} of {against}" if result["num_real"] else against
        console.print(
            f"{Path(result['images']).name}{step}: {result['num_samples']:,} images against {real}",
            highlight=False,
            soft_wrap=True,
        )
        table = Table("metric", "value")
        table.add_row(result["metric"], f"{result['distance']:.4f}")
        if "on_sample" in result:
            sample = result["on_sample"]
            deviation = sample["fast"] / sample["exact"] - 1 if sample["exact"] else 0.0
            table.add_row(f"  deviation from exact, on {sample['num_samples']} images of each", f"{deviation:+.2%}")
        elif result["computed"] == "fast":
            table.add_row("  deviation from exact", "not known")
        if "kernel_distance" in result:
            error = result["kernel_distance_standard_error"]
            table.add_row("kernel distance", f"{result['kernel_distance']:.6f} ± {error:.6f}")
        if "recall" in result:
            table.add_row("precision", f"{result['precision']:.4f}")
            table.add_row("recall", f"{result['recall']:.4f}")
        console.print(table)
        if "classes" in result:
            ranked = sorted(((value, name) for name, value in result["classes"].items() if value is not None))
            classes = Table("nearest classes", "distance", "farthest classes", "distance")
            for (near, near_name), (far, far_name) in list(zip(ranked, reversed(ranked), strict=True))[:5]:
                classes.add_row(near_name, f"{near:.2f}", far_name, f"{far:.2f}")
            console.print(classes)
