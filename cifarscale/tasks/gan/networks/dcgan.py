"""The DCGAN of Radford et al. 2016 (arXiv 1511.06434) for square images, and what later papers added to it."""

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from cifarscale.tasks.gan.networks.blocks import DownBlock, MinibatchDiscrimination, MinibatchStandardDeviation, UpBlock
from cifarscale.training.norm_layers import Normalisation
from cifarscale.training.norm_layers import normalisation as build_normalisation

Upsampling = Literal["transposed", "residual"]
Downsampling = Literal["strided", "residual"]
Minibatch = Literal["none", "discrimination", "stddev"]

_UPSAMPLINGS = ("transposed", "residual")
_DOWNSAMPLINGS = ("strided", "residual")
_MINIBATCHES = ("none", "discrimination", "stddev")


class Generator(nn.Module):
    """Noise to images; with the defaults 4x4 transposed convolutions without biases, 370,624 parameters.

    For 32x32: one transposed convolution from the noise to 4x4 positions with 4 width channels, then three that double
    the size, to 2 width, width and 3 channels, with normalisation and ReLU before each, and tanh at the end. Another
    size has more or fewer doublings, and with them channels at 4x4.

    Args:
        latent_size: standard normal numbers that an image is generated from.
        width: channels of the last hidden layer; the ones before it have twice and four times as many.
        normalisation: "none", "batch", "group" or "sync_batch".
        upsampling: "transposed", or "residual": an `UpBlock` for each doubling, to 2 width, width and width / 2
            channels, then normalisation, ReLU and a 3x3 convolution.
        num_classes: 0, or how many classes an image can be asked of.
        class_embedding: learned numbers a class, which are appended to the noise (Mirza & Osindero 2014, arXiv
            1411.1784, section 3.2, but for the embedding). Without effect where `num_classes` is 0.
        image_size: pixels a side: 4, doubled once or more.

    Raises: ValueError for an unknown option, or a width that does not suit it.
    """

    def __init__(
        self,
        latent_size: int = 100,
        width: int = 32,
        normalisation: Normalisation = "batch",
        upsampling: Upsampling = "transposed",
        num_classes: int = 0,
        class_embedding: int = 32,
        image_size: int = 32,
    ) -> None:
        super().__init__()
        _check("upsampling", upsampling, _UPSAMPLINGS)
        if upsampling == "residual" and width % 2:
            raise ValueError(f"upsampling 'residual' halves the width, and received the odd width {width}")
        self.latent_size, self.num_classes = latent_size, num_classes
        in_channels = latent_size + class_embedding if num_classes else latent_size
        stages = [width << i for i in reversed(range(_num_doublings(image_size)))]
        layers: list[nn.Module] = [nn.ConvTranspose2d(in_channels, stages[0], 4, bias=False)]
        for channels in stages:
            if upsampling == "residual":
                layers.append(UpBlock(channels, channels // 2, normalisation))
            else:
                following = channels // 2 if channels > width else 3
                layers += [
                    build_normalisation(normalisation, channels),
                    nn.ReLU(),
                    nn.ConvTranspose2d(channels, following, 4, stride=2, padding=1, bias=False),
                ]
        if upsampling == "residual":
            half = width // 2
            layers += [build_normalisation(normalisation, half), nn.ReLU(), nn.Conv2d(half, 3, 3, padding=1)]
        self.layers = nn.Sequential(*layers, nn.Tanh())
        _initialise(self.layers)
        # Drawn from N(0, 1), as the noise is.
        self.class_embedding = nn.Embedding(num_classes, class_embedding) if num_classes else None

    def forward(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """(N, latent_size), and labels (N,) int64 where there are classes, to images (N, 3, H, H) in [-1, 1]."""
        classes = _embedded(self.class_embedding, labels)
        if classes is not None:
            latents = torch.cat([latents, classes], 1)
        images: Tensor = self.layers(latents[:, :, None, None])
        return images


class Discriminator(nn.Module):
    """Images to logits of being real; with the defaults 4x4 convolutions without biases, 167,808 parameters.

    For 32x32: three convolutions that halve the size, to width, 2 width and 4 width channels, all but the first with
    normalisation, all with LeakyReLU 0.2; then one of the 4x4 positions that are left. Another size has more or fewer.

    Args:
        width: channels of the first layer; the next two have twice and four times as many.
        normalisation: "none", "batch", "group" or "sync_batch".
        downsampling: "strided", or "residual": a `DownBlock` for each halving, and ReLU.
        spectral: whether every weight is divided by its largest singular value, which is followed by one power
            iteration a forward pass in training (Miyato et al. 2018, arXiv 1802.05957, algorithm 1; there in the place
            of normalisation). The parameters keep their initial values, and are called `parametrizations.*.original`;
            the iteration's vectors are buffers.
        minibatch: what the last layer sees of the other samples of the call: "none", "discrimination" for
            `MinibatchDiscrimination`, or "stddev" for `MinibatchStandardDeviation`.
        num_classes: 0, or the number of classes in the labels. The logit then has a second term, the product of a
            learned vector of the class with the last features, summed over positions (the projection of Miyato &
            Koyama 2018, arXiv 1802.05637).
        image_size: pixels a side: 4, doubled once or more.

    Raises: ValueError for an unknown option, or a width that does not suit it.
    """

    def __init__(
        self,
        width: int = 32,
        normalisation: Normalisation = "batch",
        downsampling: Downsampling = "strided",
        spectral: bool = False,
        minibatch: Minibatch = "none",
        num_classes: int = 0,
        image_size: int = 32,
    ) -> None:
        super().__init__()
        _check("downsampling", downsampling, _DOWNSAMPLINGS)
        self.num_classes = num_classes
        layers: list[nn.Module] = []
        in_channels = 3
        for channels in (width << i for i in range(_num_doublings(image_size))):
            first = channels == width
            if downsampling == "residual":
                layers.append(DownBlock(in_channels, channels, normalisation, of_images=first))
            else:
                layers.append(nn.Conv2d(in_channels, channels, 4, stride=2, padding=1, bias=False))
                if not first:
                    layers.append(build_normalisation(normalisation, channels))
                layers.append(nn.LeakyReLU(0.2))
            in_channels = channels
        if downsampling == "residual":
            layers.append(nn.ReLU())
        self.layers = nn.Sequential(*layers)
        self.minibatch, appended = _minibatch_layer(minibatch, in_channels)
        self.output = nn.Conv2d(in_channels + appended, 1, 4, bias=False)
        _initialise([*self.layers, self.output])
        self.class_embedding = nn.Embedding(num_classes, in_channels) if num_classes else None
        if self.class_embedding is not None:
            nn.init.normal_(self.class_embedding.weight, 0.0, 0.02)
        if spectral:
            _normalise_spectrally(self)

    def features(self, images: Tensor) -> Tensor:
        """What the last layer sees, but for what `minibatch` appends: (N, 3, H, H) to (N, C, 4, 4)."""
        maps: Tensor = self.layers(images)
        return maps

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """(N, 3, H, H) in [-1, 1], and labels (N,) int64 where there are classes, to the logits (N,)."""
        classes = _embedded(self.class_embedding, labels)
        maps = self.features(images)
        logits: Tensor = self.output(self.minibatch(maps)).flatten()
        return logits if classes is None else logits + (classes * maps.sum((2, 3))).sum(1)


def _num_doublings(image_size: int) -> int:
    """How often 4 is doubled to the size. Raises: ValueError for another size."""
    number = (image_size // 4).bit_length() - 1
    if number < 1 or 4 << number != image_size:
        raise ValueError(f"image_size {image_size} is not 4, doubled once or more")
    return number


def _check(option: str, value: str, valid: tuple[str, ...]) -> None:
    if value not in valid:
        raise ValueError(f"{option} {value!r} is unknown; valid: {', '.join(valid)}")


def _minibatch_layer(kind: Minibatch, channels: int) -> tuple[nn.Module, int]:
    """A layer that sees the whole minibatch, and how many channels it appends."""
    _check("minibatch", kind, _MINIBATCHES)
    if kind == "discrimination":
        layer = MinibatchDiscrimination(channels)
        return layer, layer.num_kernels
    return (MinibatchStandardDeviation(), 1) if kind == "stddev" else (nn.Identity(), 0)


def _embedded(embedding: nn.Embedding | None, labels: Tensor | None) -> Tensor | None:
    """The vectors of the labels' classes, a row each; None without classes.

    Raises: ValueError for classes without labels, or labels without classes.
    """
    if embedding is None:
        if labels is not None:
            raise ValueError("received labels, and the network was built with num_classes = 0")
        return None
    if labels is None:
        raise ValueError(f"received no labels, and the network was built with num_classes = {embedding.num_embeddings}")
    vectors: Tensor = embedding(labels)
    return vectors


def _initialise(layers: Iterable[nn.Module]) -> None:
    """Convolutions from N(0, 0.02) as in the paper, scales of normalisations from N(1, 0.02), as is usual; no biases.

    Residual blocks are left as they are: they have initialised themselves.
    """
    for layer in layers:
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(layer.weight, 0.0, 0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.BatchNorm2d | nn.GroupNorm):
            nn.init.normal_(layer.weight, 1.0, 0.02)


def _normalise_spectrally(network: nn.Module) -> None:
    """Registers spectral normalisation on every layer's weight; their values must have been drawn already."""
    for module in list(network.modules()):
        if isinstance(module, nn.Conv2d | nn.Linear | nn.Embedding):
            spectral_norm(module)
