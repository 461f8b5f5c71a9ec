"""Reading images: as people see them, everywhere alike."""

import logging
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cifarscale.data.images import fitted, images_of_folder, read_image
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


COLOURS = np.random.default_rng(1).integers(0, 256, (4, 6, 3), np.uint8)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_what_is_transparent_lies_on_white(mode: str, tmp_path: Path) -> None:
    alpha = np.zeros((4, 6), np.uint8)
    alpha[:, :3] = 255
    image = Image.fromarray(COLOURS).convert({"RGBA": "RGB", "LA": "L", "PA": "P"}[mode])
    image = image.convert("RGBA") if mode == "PA" else image.convert(mode)
    image.putalpha(Image.fromarray(alpha))
    image.save(tmp_path / "a.png")
    read = np.array(read_image(tmp_path / "a.png"))
    assert (read[:, 3:] == 255).all()
    np.testing.assert_array_equal(read[:, :3], np.array(image.convert("RGB"))[:, :3])


def test_a_palette_s_transparent_colour_is_white(tmp_path: Path) -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([9, 9, 9, 50, 60, 70])
    image.putpixel((0, 0), 0)
    image.save(tmp_path / "a.gif", transparency=0)
    read = np.array(read_image(tmp_path / "a.gif"))
    assert read[0, 0].tolist() == [255, 255, 255]
    assert read[1, 1].tolist() == [50, 60, 70]


@pytest.mark.parametrize("extension", ["gif", "png", "webp", "tiff"])
def test_of_an_animation_the_first_frame_counts(extension: str, tmp_path: Path) -> None:
    first, second = Image.new("RGB", (8, 8), (0, 0, 255)), Image.new("RGB", (8, 8), (255, 0, 0))
    path = tmp_path / f"a.{extension}"
    options = {"lossless": True} if extension == "webp" else {}
    first.save(path, save_all=True, append_images=[second], **options)
    assert np.abs(np.array(read_image(path)).astype(int) - [0, 0, 255]).max() <= 1


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK"])
def test_every_other_kind_is_converted_as_pillow_does(mode: str, tmp_path: Path) -> None:
    image = Image.fromarray(COLOURS).convert(mode)
    image.save(tmp_path / "a.tif")
    np.testing.assert_array_equal(np.array(read_image(tmp_path / "a.tif")), np.array(image.convert("RGB")))


@pytest.mark.parametrize("extension", ["png", "jpg", "gif", "bmp", "webp", "tif", "ppm"])
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_a_damaged_file_is_one_line_wherever_the_damage_is(extension: str, tmp_path: Path) -> None:
    """Or still an image: formats without checksums do not tell. No other exception passes."""
    path, random = tmp_path / f"a.{extension}", np.random.default_rng(2)
    Image.fromarray(random.integers(0, 256, (16, 16, 3), np.uint8)).save(path)
    whole = path.read_bytes()
    for _ in range(60):
        content = bytearray(whole[: random.integers(len(whole) // 2, len(whole) + 1)])
        content[random.integers(len(content))] ^= 1 << random.integers(8)
        path.write_bytes(content)
        with suppress(DataError):
            read_image(path)


def test_an_image_of_the_right_size_is_left_alone() -> None:
    image = Image.fromarray(COLOURS)
    assert fitted(image, (4, 6)) is image
    assert fitted(image, (2, 2)).size == (2, 2)
