"""The network `my_network`. This file is part of the runs that it trains: an edited one makes another run."""

from torch import Tensor, nn

import cifarscale as cs


@cs.register_network("my_network")
class MyNetwork(nn.Module):
    """Two strided convolutions, averaged over the image."""

    class Config(cs.Section):
        """The keys of `[model]`, each with its default."""

        width: int = 16
        """Channels of the first convolution; the second has twice as many."""

    def __init__(self, config: Config, data: cs.DataSpec) -> None:
        super().__init__()
        channels, width = data.image_shape[0], config.width
        self.layers = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.ReLU(),
        )
        self.head = nn.Linear(2 * width, data.num_classes)

    def features(self, images: Tensor) -> Tensor:
        """(N, 2 * width): what the last layer sees. Needed only for `cifarscale fid --features cnn:RUN`."""
        return self.layers(images).mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W) to logits (N, num_classes)."""
        return self.head(self.features(images))
