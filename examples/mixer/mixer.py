"""A network in one file: an MLP-Mixer (Tolstikhin et al. 2021, arXiv 2105.01601) for images of 32 x 32."""

from torch import Tensor, nn

import cifarscale as cs


class Block(nn.Module):
    """Mixes what lies at different places, then what lies in different channels: (N, patches, width) to the same."""

    def __init__(self, patches: int, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.places = nn.Sequential(nn.Linear(patches, 2 * patches), nn.GELU(), nn.Linear(2 * patches, patches))
        self.channels = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.places(self.first(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.second(x))


@cs.register_network("mixer")
class Mixer(nn.Module):
    class Config(cs.Section):
        depth: int = 4
        """Blocks."""
        width: int = 32
        """Channels of a patch."""

    def __init__(self, config: Config, data: cs.DataSpec) -> None:
        super().__init__()
        channels, height, width = data.image_shape
        self.patches = nn.Conv2d(channels, config.width, 4, stride=4)
        self.blocks = nn.Sequential(*(Block(height * width // 16, config.width) for _ in range(config.depth)))
        self.head = nn.Linear(config.width, data.num_classes)

    def features(self, images: Tensor) -> Tensor:
        """(N, width): what the last layer sees, and what `fid --features cnn:RUN` compares images by."""
        return self.blocks(self.patches(images).flatten(2).transpose(1, 2)).mean(1)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))
