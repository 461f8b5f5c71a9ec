"""W&B's workspace of this project as data, and as W&B's own workspaces library makes it."""

from dataclasses import dataclass
from typing import Any, Literal

from cifarscale.tracking.metrics import RATE_OF_RANK

VIEW = "cifarscale"
CONFIG = "config."
"""Stands before the keys of recipes; what is without it is reported by runs."""


@dataclass(frozen=True)
class Panel:
    """A panel of the dashboard.

    Attributes:
        kind: `curves` over steps; `family`, curves of all metrics whose names begin so; `images` by step; `table`;
            `numbers`, the newest; `parallel` coordinates of runs; `importance` of recipes' keys for the one metric.
        metrics: what runs report, in metrics.jsonl or at their end, or keys of recipes.
    """

    title: str
    kind: Literal["curves", "family", "images", "table", "numbers", "parallel", "importance"]
    metrics: tuple[str, ...]


SECTIONS: dict[str, tuple[Panel, ...]] = {
    "Classifiers": (
        Panel("Training loss", "curves", ("loss",)),
        Panel("Training accuracy", "curves", ("accuracy",)),
        Panel("Top-1 accuracy", "curves", ("validation_top1", "test_top1")),
        Panel("Top-5 accuracy", "curves", ("validation_top5", "test_top5")),
        Panel("Evaluation loss", "curves", ("validation_loss", "test_loss")),
        Panel("Learning rate", "curves", ("learning_rate",)),
        Panel("Gradient norm", "curves", ("gradient_norm",)),
        Panel("Final top-1 on the test set", "numbers", ("test/top1",)),
        Panel("Classes, the hardest first", "table", ("classes",)),
    ),
    "Generators": (
        Panel("Samples by step", "images", ("samples",)),
        Panel("Losses", "curves", ("discriminator_loss", "generator_loss")),
        Panel("Loss of a flow", "curves", ("loss",)),
        Panel("What the discriminator says", "curves", ("real_score", "fake_score")),
        Panel("Distance to real images", "curves", ("fid", "frechet_distance")),
        Panel("Gradient norms", "curves", ("discriminator_gradient_norm", "generator_gradient_norm")),
    ),
    "Sweeps": (
        Panel(
            "Settings and what came of them",
            "parallel",
            (
                "config.training.learning_rate",
                "config.training.global_batch_size",
                "config.optimizer.weight_decay",
                "validation_top1",
            ),
        ),
        Panel("What mattered", "importance", ("validation_top1",)),
        Panel("Validation accuracy of the trials", "curves", ("validation_top1",)),
    ),
    "Throughput": (
        Panel("Images a second", "curves", ("images_per_second",)),
        Panel("Images a second of each rank's own work", "family", (RATE_OF_RANK,)),
        Panel("Seconds of training", "curves", ("seconds",)),
        Panel("Seconds spent waiting for data", "curves", ("data_seconds",)),
        Panel("GPU memory, GB", "curves", ("gpu_memory_gb",)),
        Panel("Images a second, over the whole run", "numbers", ("images_per_second",)),
    ),
}


def create_workspace(entity: str, project: str) -> str:
    """Makes the dashboard in a project of W&B. Returns: its address."""
    import wandb_workspaces.workspaces as ws

    workspace = ws.Workspace(entity=entity, project=project, name=VIEW, sections=sections())
    workspace.save()  # type: ignore[no-untyped-call]
    return str(workspace.url)


def sections() -> list[Any]:
    """SECTIONS as the workspaces library has them."""
    import wandb_workspaces.workspaces as ws

    return [
        ws.Section(name=name, panels=[_panel(panel) for panel in panels], is_open=True)
        for name, panels in SECTIONS.items()
    ]


def _panel(panel: Panel) -> Any:
    import wandb_workspaces.reports.v2.interface as wr

    metrics: list[Any] = list(panel.metrics)
    match panel.kind:
        case "curves":
            return wr.LinePlot(title=panel.title, x="Step", y=metrics)
        case "family":
            return wr.LinePlot(title=panel.title, x="Step", metric_regex=f"{metrics[0]}.*")
        case "images":
            return wr.MediaBrowser(title=panel.title, media_keys=metrics, mode="gallery", gallery_axis="step")
        case "table":
            return wr.WeavePanelSummaryTable(table_name=metrics[0])
        case "numbers":
            return wr.ScalarChart(title=panel.title, metric=wr.SummaryMetric(metrics[0]))
        case "importance":
            return wr.ParameterImportancePlot(with_respect_to=metrics[0])
    columns = [
        wr.Config(metric.removeprefix(CONFIG)) if metric.startswith(CONFIG) else wr.SummaryMetric(metric)
        for metric in metrics
    ]
    coordinates = [wr.ParallelCoordinatesPlotColumn(metric=column) for column in columns]
    return wr.ParallelCoordinatesPlot(title=panel.title, columns=coordinates)
