"""cifarscale: train and evaluate on CIFAR-100, the same on a laptop and on a cluster."""

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cifarscale.api.runs import Run as Run
    from cifarscale.api.runs import distance as distance
    from cifarscale.api.runs import load as load
    from cifarscale.api.runs import train as train
    from cifarscale.config.recipe import Section as Section
    from cifarscale.config.registry import DataSpec as DataSpec
    from cifarscale.config.registry import register_dataset as register_dataset
    from cifarscale.config.registry import register_network as register_network
    from cifarscale.config.registry import register_task as register_task
    from cifarscale.data.source import ImageData as ImageData
    from cifarscale.data.source import Sample as Sample

__version__ = version("cifarscale")

_PUBLIC = {
    "DataSpec": "cifarscale.config.registry",
    "ImageData": "cifarscale.data.source",
    "Run": "cifarscale.api.runs",
    "Sample": "cifarscale.data.source",
    "Section": "cifarscale.config.recipe",
    "distance": "cifarscale.api.runs",
    "load": "cifarscale.api.runs",
    "register_dataset": "cifarscale.config.registry",
    "register_network": "cifarscale.config.registry",
    "register_task": "cifarscale.config.registry",
    "train": "cifarscale.api.runs",
}
"""The module of each public name, which is imported when the name is asked for."""


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(_PUBLIC)
