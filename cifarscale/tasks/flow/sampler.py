"""Images from noise, by the velocity that a network gives."""

import math

import torch
from torch import Tensor, nn

from cifarscale.tasks.flow.networks.unet import VelocityNetwork
from cifarscale.tasks.flow.recipe import SamplerConfig


class Sampler(nn.Module):
    """Solves dx/dt = v(x, t) from noise at time 0 to images at time 1, in equal steps.

    Attributes:
        latent_size: numbers of an image, and of the noise that it begins as.
        num_classes: of the network.

    Source: Euler's and Heun's methods; guidance is that of Ho & Salimans 2022 (arXiv 2207.12598), equation 6, for
        velocities, with guidance = 1 + w.
    """

    def __init__(self, network: VelocityNetwork, config: SamplerConfig, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.network, self._config, self._image_shape = network, config, image_shape
        self.latent_size, self.num_classes = math.prod(image_shape), network.num_classes

    def forward(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """(N, latent_size), and labels (N,) int64 where there are classes, to images (N, C, H, W) in [-1, 1]."""
        x = latents.view(-1, *self._image_shape).contiguous(memory_format=torch.channels_last)
        steps = self._config.steps
        for i in range(steps):
            velocity = self._velocity(x, i / steps, labels)
            ahead = x + velocity / steps
            if self._config.name == "heun":
                ahead = x + (velocity + self._velocity(ahead, (i + 1) / steps, labels)) / (2 * steps)
            x = ahead
        return x.clamp(-1, 1)

    def _velocity(self, x: Tensor, time: float, labels: Tensor | None) -> Tensor:
        """The velocities at one time, (N, C, H, W); guided, where that is wanted."""
        guidance = self._config.guidance
        times = x.new_full((x.shape[0],), time)  # with len(x), torch.export would take one number of samples alone
        if labels is None or guidance == 1:
            return self.network(x, times, labels)
        labels = torch.cat([labels, torch.full_like(labels, self.num_classes)])
        of_class, of_none = self.network(torch.cat([x, x]), torch.cat([times, times]), labels).tensor_split(2)
        return of_none + guidance * (of_class - of_none)
