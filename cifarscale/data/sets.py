"""The data sets that come with the package, each registered as one's own would be. Importing this loads no numpy."""

from pathlib import Path
from typing import TYPE_CHECKING

from cifarscale.config.registry import register_dataset

if TYPE_CHECKING:
    from cifarscale.data.source import Source


@register_dataset("cifar100")
def cifar100(cache: Path, source: Path | None = None) -> "Source":
    """CIFAR-100, downloaded where there is no copy of it."""
    from cifarscale.data.cifar import CIFAR_100, cifar_source

    return cifar_source(CIFAR_100, source, cache)


@register_dataset("cifar10")
def cifar10(cache: Path, source: Path | None = None) -> "Source":
    """CIFAR-10, downloaded where there is no copy of it."""
    from cifarscale.data.cifar import CIFAR_10, cifar_source

    return cifar_source(CIFAR_10, source, cache)


@register_dataset("synthetic")
def synthetic() -> "Source":
    """The drawn set."""
    from cifarscale.data.synthetic import synthetic_source

    return synthetic_source()


@register_dataset("folder")
def folder(source: Path, size: int = 0, holdout: int = 0) -> "Source":
    """A folder of image files."""
    from cifarscale.data.folder import folder_source

    return folder_source(source, size, holdout)
