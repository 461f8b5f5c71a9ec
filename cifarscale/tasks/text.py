"""Words that the results of several tasks share."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

OF_EVERY_EVALUATION = (
    *("run", "step", "split", "samples", "flip", "superclasses", "classes"),
    *("top1", "top5", "loss"),
)
"""What the result of an evaluation has, beside metrics of the user's own."""
OF_EVERY_TRAINING = (
    *("name", "task", "parameters", "steps", "images", "macs", "training_flops"),
    *("images_per_second", "seconds", "world_size", "device"),
)
"""What the result of a training has, beside what its task reports."""


def cost(result: Mapping[str, Any]) -> str:
    """What was trained, and for how long."""
    return f"{result['name']}: {result['parameters']:,} parameters, {result['steps']:,} steps"


def accuracy_note(metrics: Mapping[str, Any]) -> str:
    """What goes with a top-1 accuracy."""
    top5 = f"top-5 {100 * metrics['top5']:.1f} %, " if "top5" in metrics else ""
    return f"{top5}loss {metrics['loss']:.3f}{own_metrics_note(metrics)}"


def own_metrics_note(metrics: Mapping[str, Any]) -> str:
    """The metrics of the user's own among those of an evaluation, or of its result."""
    own = {key: value for key, value in metrics.items() if key not in OF_EVERY_EVALUATION}
    return "".join(f", {key.replace('_', ' ')} {number(value)}" for key, value in own.items())


def rate(result: Mapping[str, Any]) -> str:
    """How fast, where that is known, and on what."""
    speed = f"{result['images_per_second']:,.0f} images/s " if result["images_per_second"] else ""
    return f"{speed}on {result['world_size']} × {result['device']}"


def computed(result: Mapping[str, Any]) -> str:
    """What it took to train that, and what it takes to use it, as far as it is known."""
    more = result.get("discriminator_updates", 0)
    parts = [f"{more:,} updates of the discriminator" if more > result.get("steps", more) else ""]
    parts += [f"{result['images']:,} images seen" if "images" in result else ""]
    parts += [f"{result['training_flops']:.2g} FLOPs in training" if "training_flops" in result else ""]
    parts += [f"{result['macs'] / 1e6:.2f} M multiply-accumulates an image" if "macs" in result else ""]
    return ", ".join(part for part in parts if part)


def place(run_dir: Path) -> str:
    """Where a result is kept."""
    return f"result  {run_dir / 'result.json'}"


def number(value: float | None) -> str:
    """A metric to four places; a dash for none."""
    return "–" if value is None else f"{value:.4f}"
