"""Networks whose features images are compared by: pytorch-fid's Inception, or a classifier that was trained here."""

import hashlib
import io
import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from cifarscale.distributed.device import arithmetic
from cifarscale.errors import EvaluationError

Precision = Literal["exact", "fast"]
"""float32, or bfloat16 activations and weights."""

INCEPTION_DIM = 2048
CPU_CHUNK = 8
"""Images that a core takes through Inception at a time: with fewer it reads the weights too often, with more the maps
leave its cache."""
_INCEPTION_SIZE = 299


@dataclass(frozen=True)
class FeatureNetwork:
    """From images (b, 3, H, W) uint8 on its device to features (b, dim) float32.

    Attributes:
        name: `inception`, or `cnn:RUN`.
        identity: the first digits of the sha256 of its weights.
        preprocessing: what happens to an image, with the precision of the arithmetic; together with `identity` it says
            what the features are.
    """

    name: str
    identity: str
    preprocessing: str
    dim: int
    compute: Callable[[Tensor], Tensor]

    def __call__(self, images: Tensor) -> Tensor:
        with torch.inference_mode(), arithmetic(images.device):
            return self.compute(images).float()


def inception(weights: Path | None, device: torch.device, precision: Precision = "exact") -> FeatureNetwork:
    """pytorch-fid's Inception, up to the last average pooling: 2,048 features.

    Batch normalisation is folded into the convolutions, and channels are last in memory: the same but for rounding.

    Args:
        weights: a file of its weights; without one pytorch-fid's own is fetched, once, into torch's cache.
    Raises: EvaluationError if the weights cannot be fetched or read, are damaged, or are of another network.
    """
    from pytorch_fid import inception as theirs

    content = inception_weights(weights)
    where = weights or "the file that was fetched"
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError) as error:
        raise EvaluationError(f"{where} is not a file of weights that torch can read: {_first_line(error)}") from error
    try:
        # Its constructor fetches the weights by itself, and would not check them.
        with mock.patch.object(theirs, "load_state_dict_from_url", return_value=state):
            network = theirs.InceptionV3([3]).eval()
    except (RuntimeError, AttributeError, TypeError) as error:
        raise EvaluationError(
            f"{where} does not hold the weights of pytorch-fid's Inception: {_first_line(error)}"
        ) from error
    _fold_normalisation(network)
    dtype = torch.bfloat16 if precision == "fast" else torch.float32
    network.to(device, dtype, memory_format=torch.channels_last)

    def compute(images: Tensor) -> Tensor:
        if device.type == "cpu" and len(images) > CPU_CHUNK:
            return torch.cat([compute(chunk) for chunk in torch.split(images, CPU_CHUNK)])
        x = images.to(torch.float32, memory_format=torch.channels_last) / 255
        x = F.interpolate(x, (_INCEPTION_SIZE, _INCEPTION_SIZE), mode="bilinear", align_corners=False)
        x = (2 * x - 1).to(dtype)
        for block in network.blocks:
            x = block(x)
        return x.flatten(1)

    preprocessing = f"bilinear to {_INCEPTION_SIZE}, -1 to 1, {dtype}".replace("torch.", "")
    identity = hashlib.sha256(content).hexdigest()[:16]
    return FeatureNetwork("inception", identity, preprocessing, INCEPTION_DIM, compute)


def inception_weights(weights: Path | None) -> bytes:
    """A file of Inception's weights; without one pytorch-fid's own, which is fetched once.

    Raises: EvaluationError if it cannot be fetched or read, or is damaged.
    """
    return _fetched_weights() if weights is None else _read(weights)


def classifier_features(
    network: nn.Module,
    normalise: Callable[[Tensor], Tensor],
    name: str,
    device: torch.device,
    precision: Precision = "exact",
    image_size: tuple[int, int] = (32, 32),
) -> FeatureNetwork:
    """What the last layer of a classifier sees.

    Args:
        network: in evaluation mode on the device; its `features` take images (b, 3, *image_size) as floats.
        normalise: makes these from uint8.
    """
    content = io.BytesIO()
    torch.save({key: tensor.cpu() for key, tensor in network.state_dict().items()}, content)
    probe = normalise(torch.arange(256, dtype=torch.uint8, device=device).repeat(12).view(1, 3, 32, 32))
    # What the normalisation does to every value of each channel is part of what the features are.
    digest = hashlib.sha256(content.getvalue() + probe.cpu().numpy().tobytes())

    def compute(images: Tensor) -> Tensor:
        if images.shape[-2:] != image_size:
            raise EvaluationError(
                f"{name} takes images of {image_size[1]} x {image_size[0]}, and these are {images.shape[-1]} x "
                f"{images.shape[-2]}; use --features inception, or images of that size"
            )
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "fast"):
            features: Tensor = network.features(normalise(images)).flatten(1)  # type: ignore[operator]
            return features

    dim = compute(torch.zeros(1, 3, *image_size, dtype=torch.uint8, device=device)).shape[1]
    dtype = "bfloat16 by autocast" if precision == "fast" else "float32"
    return FeatureNetwork(name, digest.hexdigest()[:16], f"normalised as in training, {dtype}", dim, compute)


class _Convolution(nn.Module):
    """A convolution with the normalisation folded into it, and ReLU."""

    def __init__(self, convolution: nn.Conv2d, normalisation: nn.BatchNorm2d) -> None:
        super().__init__()
        self.convolution: nn.Conv2d = fuse_conv_bn_eval(convolution, normalisation)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.convolution(x), inplace=True)


def _fold_normalisation(network: nn.Module) -> None:
    from torchvision.models.inception import BasicConv2d

    for name, child in list(network.named_children()):
        if isinstance(child, BasicConv2d):
            setattr(network, name, _Convolution(child.conv, child.bn))
        else:
            _fold_normalisation(child)


def official_weights() -> tuple[str, Path]:
    """Where pytorch-fid's file is fetched from, and its place in torch's cache, where pytorch-fid looks for it too."""
    from pytorch_fid.inception import FID_WEIGHTS_URL

    return FID_WEIGHTS_URL, Path(torch.hub.get_dir(), "checkpoints", FID_WEIGHTS_URL.rpartition("/")[2])


def _fetched_weights() -> bytes:
    """pytorch-fid's file from torch's cache; fetched if it is not there."""
    url, path = official_weights()
    match = re.search(r"-([0-9a-f]{8,})\.", path.name)
    assert match is not None, f"no checksum in the name of {url}"
    prefix = match[1]
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), hash_prefix=prefix)
        except (OSError, RuntimeError) as error:
            raise EvaluationError(
                f"cannot fetch Inception's weights from {url}: {_first_line(error)}. Fetch the file elsewhere and name "
                "it with --weights FILE; or measure with a classifier's features, --features cnn:RUN"
            ) from error
    content = _read(path)
    if not hashlib.sha256(content).hexdigest().startswith(prefix):
        raise EvaluationError(f"{path} is damaged: its sha256 does not begin with {prefix}. Remove it, and run again")
    return content


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise EvaluationError(f"cannot read the weights {path}: {error.strerror}") from error


def _first_line(error: Exception) -> str:
    """An error of torch's in one line, without the thousand keys that may follow."""
    text = " ".join(str(error).split())
    return text if len(text) <= 160 else f"{text[:160]}…"
