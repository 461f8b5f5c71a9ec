"""The DCGAN of Radford et al. 2016 (arXiv 1511.06434) for 32 x 32 images."""

from torch import Tensor, nn

from cifarscale.models.normalisation import Normalisation
from cifarscale.models.normalisation import normalisation as build_normalisation


class Generator(nn.Module):
    """Noise to images by 4x4 transposed convolutions without biases; with the defaults 370,624 parameters."""

    def __init__(self, latent_size: int = 100, width: int = 32, normalisation: Normalisation = "batch") -> None:
        """
        Args:
            width: channels of the last hidden layer; the ones before it have twice and four times as many.
        """
        super().__init__()
        self.latent_size = latent_size
        layers: list[nn.Module] = [nn.ConvTranspose2d(latent_size, 4 * width, 4, bias=False)]
        for channels in (4 * width, 2 * width, width):
            following = channels // 2 if channels > width else 3
            layers += [
                build_normalisation(normalisation, channels),
                nn.ReLU(),
                nn.ConvTranspose2d(channels, following, 4, stride=2, padding=1, bias=False),
            ]
        self.layers = nn.Sequential(*layers, nn.Tanh())
        _initialise(self)

    def forward(self, latents: Tensor) -> Tensor:
        """(N, latent_size) to images (N, 3, 32, 32) in [-1, 1]."""
        images: Tensor = self.layers(latents[:, :, None, None])
        return images


class Discriminator(nn.Module):
    """Images to logits by 4x4 convolutions without biases; with the defaults 167,808 parameters."""

    def __init__(self, width: int = 32, normalisation: Normalisation = "batch") -> None:
        """
        Args:
            width: channels of the first layer, which is not normalised; the next two have twice and four times as many.
        """
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, width, 4, stride=2, padding=1, bias=False), nn.LeakyReLU(0.2)]
        for channels in (2 * width, 4 * width):
            layers += [
                nn.Conv2d(channels // 2, channels, 4, stride=2, padding=1, bias=False),
                build_normalisation(normalisation, channels),
                nn.LeakyReLU(0.2),
            ]
        self.layers = nn.Sequential(*layers, nn.Conv2d(4 * width, 1, 4, bias=False))
        _initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, 32, 32) in [-1, 1] to the logits (N,) of being real."""
        logits: Tensor = self.layers(images).flatten()
        return logits


def _initialise(network: nn.Module) -> None:
    """Convolutions from N(0, 0.02) as in the paper, scales of normalisations from N(1, 0.02), as is usual."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, 0.0, 0.02)
        elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
            nn.init.normal_(module.weight, 1.0, 0.02)
