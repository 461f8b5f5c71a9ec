"""The manifests that are published with the package."""

from pathlib import Path

import pytest

from cifarscale.data.build import build_shards
from cifarscale.data.manifest import published_manifest


def test_the_synthetic_set_is_the_published_one_on_every_machine(tmp_path: Path) -> None:
    assert build_shards("synthetic", tmp_path / "synthetic") == published_manifest("synthetic")


@pytest.mark.parametrize("dataset", ["cifar100", "synthetic"])
def test_it_is_published_what_a_known_set_holds(dataset: str) -> None:
    manifest = published_manifest(dataset)
    assert manifest is not None
    assert manifest.dataset == dataset
    assert published_manifest("unknown") is None
