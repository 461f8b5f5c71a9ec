"""The manifests that are published with the package."""

from pathlib import Path

import pytest

from cifarscale.data.build import DATASETS, build_shards
from cifarscale.data.manifest import published_manifest


def test_the_synthetic_set_is_the_published_one_on_every_machine(tmp_path: Path) -> None:
    assert build_shards("synthetic", tmp_path / "synthetic") == published_manifest("synthetic")


@pytest.mark.parametrize("dataset", DATASETS)
def test_every_known_set_has_a_published_manifest(dataset: str) -> None:
    manifest = published_manifest(dataset)
    assert manifest is not None
    assert manifest.dataset == dataset
    assert published_manifest("unknown") is None
