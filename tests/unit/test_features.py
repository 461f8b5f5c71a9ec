"""The feature networks: pytorch-fid's Inception to rounding, and a classifier's last layer."""

from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from inception_weights import random_inception_weights
from PIL import Image
from pytorch_fid import inception as theirs
from torchvision.transforms.functional import to_tensor

from cifarscale.data.normalisation import Normalisation
from cifarscale.evaluation.features import FeatureNetwork, classifier_features, inception
from cifarscale.tasks.classifier.networks import classifier

CPU = torch.device("cpu")
HALF = (0.5, 0.5, 0.5)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    random_inception_weights(path, seed=0)
    return path


def pixels(count: int, size: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("size", [32, 50])
def test_inceptions_features_are_pytorch_fids(weights: Path, size: int) -> None:
    images = pixels(3, size)
    ours = inception(weights, CPU)(images)
    with mock.patch.object(theirs, "load_state_dict_from_url", return_value=torch.load(weights, weights_only=True)):
        network = theirs.InceptionV3([3]).eval()
    # As pytorch-fid reads a file: an RGB image of Pillow's, as a tensor.
    read = torch.stack([to_tensor(Image.fromarray(np.asarray(image.permute(1, 2, 0)))) for image in images])
    with torch.no_grad():
        expected = network(read)[0].flatten(1)
    assert ours.dtype == torch.float32
    assert ours.shape == (3, 2048)
    assert float((ours - expected).norm() / expected.norm()) < 1e-5


def test_fast_is_near_and_says_that_it_is_something_else(weights: Path) -> None:
    images = pixels(2)
    exact, fast = inception(weights, CPU), inception(weights, CPU, "fast")
    assert exact.identity == fast.identity
    assert exact.preprocessing != fast.preprocessing
    assert fast(images).dtype == torch.float32
    difference = (exact(images) - fast(images)).double().square().sum()
    assert 0 < float(difference) < (0.03 * float(exact(images).norm())) ** 2


def of(seed: int = 0, std: tuple[float, float, float] = HALF) -> FeatureNetwork:
    torch.manual_seed(seed)
    network = classifier("small_filters_cnn").eval()
    return classifier_features(network, Normalisation(HALF, std, "cpu"), "cnn:run", CPU)


def test_a_classifiers_features_are_what_its_last_layer_sees() -> None:
    torch.manual_seed(0)
    network = classifier("small_filters_cnn").eval()
    expected = network.features(pixels(5).float() / 127.5 - 1)
    found = of()
    assert found.dim == 512
    assert torch.allclose(found(pixels(5)), expected, atol=1e-5)


def test_the_identity_changes_with_the_weights_and_the_normalisation() -> None:
    assert of().identity == of().identity
    assert len({of().identity, of(seed=1).identity, of(std=(0.5, 0.5, 0.4)).identity}) == 3
