"""cifarscale: train and evaluate on CIFAR-100, the same on a laptop and on a cluster."""

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cifarscale.api.jobs import Job as Job
    from cifarscale.api.jobs import JobPlan as JobPlan
    from cifarscale.api.jobs import job as job
    from cifarscale.api.jobs import plan as plan
    from cifarscale.api.jobs import submit as submit
    from cifarscale.api.measurements import distance as distance
    from cifarscale.api.measurements import evaluate as evaluate
    from cifarscale.api.runs import Run as Run
    from cifarscale.api.runs import Sweep as Sweep
    from cifarscale.api.runs import load as load
    from cifarscale.api.sweeps import sweep as sweep
    from cifarscale.api.training import train as train
    from cifarscale.config.recipe import Section as Section
    from cifarscale.config.registry import DataSpec as DataSpec
    from cifarscale.config.registry import register_augmentation as register_augmentation
    from cifarscale.config.registry import register_dataset as register_dataset
    from cifarscale.config.registry import register_metric as register_metric
    from cifarscale.config.registry import register_network as register_network
    from cifarscale.config.registry import register_task as register_task
    from cifarscale.data.source import ImageData as ImageData
    from cifarscale.data.source import Sample as Sample
    from cifarscale.distributed import randomness as randomness

__version__ = version("cifarscale")

_PUBLIC = {
    "DataSpec": "cifarscale.config.registry",
    "ImageData": "cifarscale.data.source",
    "Job": "cifarscale.api.jobs",
    "JobPlan": "cifarscale.api.jobs",
    "Run": "cifarscale.api.runs",
    "Sample": "cifarscale.data.source",
    "Section": "cifarscale.config.recipe",
    "Sweep": "cifarscale.api.runs",
    "distance": "cifarscale.api.measurements",
    "evaluate": "cifarscale.api.measurements",
    "job": "cifarscale.api.jobs",
    "load": "cifarscale.api.runs",
    "plan": "cifarscale.api.jobs",
    "randomness": "cifarscale.distributed.randomness",
    "register_augmentation": "cifarscale.config.registry",
    "register_dataset": "cifarscale.config.registry",
    "register_metric": "cifarscale.config.registry",
    "register_network": "cifarscale.config.registry",
    "register_task": "cifarscale.config.registry",
    "submit": "cifarscale.api.jobs",
    "sweep": "cifarscale.api.sweeps",
    "train": "cifarscale.api.training",
}
"""The module of each public name, or the module that it is; imported when the name is asked for."""


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(_PUBLIC[name])
    return module if module.__name__.endswith(f".{name}") else getattr(module, name)


def __dir__() -> list[str]:
    return sorted(_PUBLIC)
