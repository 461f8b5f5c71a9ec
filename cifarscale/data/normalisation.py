"""Images as networks take them: normalised by the training split."""

import functools

import torch

from cifarscale.data.manifest import Manifest


class Normalisation:
    """uint8 images to float32 with mean 0 and standard deviation 1 for each channel over the training split."""

    def __init__(
        self, mean: tuple[float, float, float], std: tuple[float, float, float], device: torch.device | str
    ) -> None:
        self._mean = torch.tensor(mean, device=device).mul(255)
        self._std = torch.tensor(std, device=device).mul(255)
        self._of_rows = functools.cache(lambda width: (self._mean.repeat(width), self._std.repeat(width)))

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        pixels = images.permute(0, 2, 3, 1).to(torch.float32, memory_format=torch.contiguous_format)
        mean, std = self._of_rows(images.shape[-1])
        rows = pixels.flatten(2)  # (b, H, W · 3): arithmetic on long rows is several times as fast as on triples
        rows.sub_(mean).div_(std)
        return pixels.permute(0, 3, 1, 2)


def training_normalisation(manifest: Manifest, device: torch.device) -> Normalisation:
    """The normalisation by the training split's mean and standard deviation."""
    train = manifest.split("train")
    return Normalisation(train.mean, train.std, device)
