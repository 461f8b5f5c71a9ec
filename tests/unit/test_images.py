"""Reading images: as people see them, everywhere alike."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cifarscale.data.images import images_of_folder, read_image
from cifarscale.errors import DataError

CPU = torch.device("cpu")
GREY = np.random.default_rng(0).integers(0, 256, (4, 6), np.uint8)


@pytest.mark.parametrize("extension", ["png", "tif", "pgm"])
def test_65_536_greys_are_scaled_to_256(extension: str, tmp_path: Path) -> None:
    path = tmp_path / f"deep.{extension}"
    Image.fromarray(GREY.astype(np.uint16) * 257).save(path)
    assert (np.array(read_image(path)) == GREY[:, :, None]).all()


def test_a_photo_that_was_taken_upright_is_upright(tmp_path: Path) -> None:
    path, orientation = tmp_path / "turned.png", 0x0112
    image = Image.fromarray(GREY).convert("RGB")
    image.getexif()[orientation] = 6  # to be shown turned by 90 degrees clockwise
    image.save(path, exif=image.getexif())
    assert (np.array(read_image(path)) == np.rot90(GREY, -1)[:, :, None]).all()
    assert images_of_folder(tmp_path, CPU).images(range(1)).shape == (1, 3, 6, 4)


@pytest.mark.parametrize(("kind", "told"), [(np.float32, "floats"), (np.int32, "32-bit numbers")])
def test_pixels_whose_range_nobody_knows_are_refused(kind: type, told: str, tmp_path: Path) -> None:
    Image.fromarray(GREY.astype(kind)).save(tmp_path / "a.tif")
    for read in (lambda: read_image(tmp_path / "a.tif"), lambda: images_of_folder(tmp_path, CPU)):
        with pytest.raises(DataError, match=f"a.tif as an image: its pixels are {told}. Save it with 8 or 16 bits"):
            read()


def test_hidden_files_are_no_images_and_subfolders_are_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("cifarscale"), "propagate", True)
    for name in ("0.png", "class/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(GREY).save(tmp_path / name)
    (tmp_path / "._0.png").write_bytes(b"what macOS leaves on other file systems")
    assert images_of_folder(tmp_path, CPU).num_images == 1
    assert "images in its 1 subfolders, such as class, are left out" in caplog.text
    (tmp_path / "0.png").unlink()
    with pytest.raises(DataError, match="its subfolder class does: name that one"):
        images_of_folder(tmp_path, CPU)
