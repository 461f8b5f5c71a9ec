"""cifarscale: train and evaluate on CIFAR-100, the same on a laptop and on a cluster."""

from importlib.metadata import version

__version__ = version("cifarscale")
