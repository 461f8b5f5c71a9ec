"""Shards: tar files in WebDataset's conventions that are at the same time arrays of fixed-size records.

A sample is three members with one key: `train-00000042.ppm` (the pixels), `.cls` (the fine label) and `.json` (both
labels with their names, and the original file name). All images of a set have one size. Each is stored as a binary PPM:
raw pixels behind a short header, which every image library reads, and which is the same on every machine, where the
bytes of a PNG depend on the version of zlib. Each member fills whole blocks of 512 bytes, so each sample takes the same
number of blocks (12 for 32 × 32), and NumPy reads a shard without parsing it; plain `webdataset` reads it with its
stock decoders.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cifarscale.data.manifest import Manifest, ShardEntry, SplitEntry
from cifarscale.data.source import Source, Split
from cifarscale.errors import DataError, typed, writing_to

_BLOCK = 512


def _ppm_header(image_size: tuple[int, int]) -> bytes:
    height, width = image_size
    return f"P6 {width} {height} 255\n".encode()


@cache
def record(image_size: tuple[int, int]) -> np.dtype[np.void]:
    """One sample of a shard as it lies in the file: the first tar header's name, the pixels, the label's digits.

    Args:
        image_size: height and width.
    """
    height, width = image_size
    header = len(_ppm_header(image_size))
    pixel_blocks = -(-(header + height * width * 3) // _BLOCK)
    return np.dtype(
        {
            "names": ["key", "pixels", "fine"],
            "formats": ["S100", (np.uint8, (height, width, 3)), "S8"],
            "offsets": [0, _BLOCK + header, (1 + pixel_blocks + 1) * _BLOCK],
            "itemsize": (1 + pixel_blocks + 2 + 2) * _BLOCK,
        }
    )


@dataclass(frozen=True)
class Samples:
    """Decoded samples: images (n, H, W, 3) uint8, fine labels (n,) int64, ids (n,) int64 within the split."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    ids: NDArray[np.int64]


def sample_key(split: str, sample_id: int) -> str:
    """WebDataset's `__key__` of a sample."""
    return f"{split}-{sample_id:08d}"


def write_shards(
    source: Source, folder: Path, num_shards: int, advance: Callable[[int], None], drawn_by: str = ""
) -> Manifest:
    """Writes a set as shards with their manifest, the manifest last.

    Args:
        num_shards: of the training split; the others get as many as keeps a shard's size about the same.
        advance: called with the number of samples just written.
        drawn_by: see `Manifest`.
    Returns: the manifest, a function of the arguments alone, as are all bytes written.
    Raises: DataError if the shards would not each get a sample; CifarscaleError if the disk is full.
    """
    num_train = len(source.splits[0].fine)
    if not 1 <= num_shards <= num_train:
        raise DataError(f"--num-shards {num_shards} is not between 1 and {num_train}, the number of training samples")
    splits = {}
    for split in source.splits:
        count = max(1, round(num_shards * len(split.fine) / num_train))
        bounds = [len(split.fine) * i // count for i in range(count + 1)]
        entries = []
        for i, (start, stop) in enumerate(pairwise(bounds)):
            name = f"{source.dataset}-{split.name}-{i:06d}.tar"
            content = _shard_bytes(source, split, start, stop)
            with writing_to(folder / name):
                (folder / name).write_bytes(content)
            digest = hashlib.sha256(content).hexdigest()
            entries.append(ShardEntry(name=name, num_samples=stop - start, sha256=digest))
            advance(stop - start)
        mean, std = _mean_and_std(split.images)
        splits[split.name] = SplitEntry(num_samples=len(split.fine), mean=mean, std=std, shards=tuple(entries))
    manifest = Manifest(
        dataset=source.dataset,
        fine_names=source.fine_names,
        coarse_names=source.coarse_names,
        coarse_of_fine=_coarse_of_fine(source) if source.coarse_names else (),
        image_size=source.image_size,
        drawn_by=drawn_by,
        splits=splits,
    )
    manifest.save(folder)
    return manifest


def read_shard(folder: Path, entry: ShardEntry, image_size: tuple[int, int]) -> Samples:
    """All samples of a shard, after its checksum was found right.

    Args:
        image_size: height and width, as in the manifest.
    Raises: DataError if the shard is missing, of another length, or differs in any byte.
    """
    content = _checked_bytes(folder, entry, image_size)
    records = np.frombuffer(content, record(image_size), count=entry.num_samples)
    ids = np.array([int(key.partition(b".")[0].rpartition(b"-")[2]) for key in records["key"].tolist()], np.int64)
    return Samples(records["pixels"], records["fine"].astype(np.int64), ids)


def read_split(folder: Path, manifest: Manifest, name: str) -> Samples:
    """A whole split in the order of its ids; shards are read and checked by several threads.

    Raises: DataError as `read_shard` does.
    """
    split = manifest.split(name)
    images = np.empty((split.num_samples, *manifest.image_size, 3), np.uint8)
    labels = np.empty(split.num_samples, np.int64)

    def load(entry: ShardEntry) -> None:
        shard = read_shard(folder, entry, manifest.image_size)
        images[shard.ids] = shard.images
        labels[shard.ids] = shard.labels

    with ThreadPoolExecutor() as pool:
        list(pool.map(load, split.shards))
    return Samples(images, labels, np.arange(split.num_samples))


def find_damage(folder: Path, manifest: Manifest, advance: Callable[[int], None] = lambda _: None) -> list[str]:
    """One line for each shard that is missing or differs from the manifest; empty if all is well."""
    entries = [entry for split in manifest.splits.values() for entry in split.shards]
    known = {entry.sha256: entry.name for entry in entries}

    def check(entry: ShardEntry) -> str | None:
        try:
            _checked_bytes(folder, entry, manifest.image_size, known)
        except DataError as error:
            return str(error)
        finally:
            advance(entry.num_samples)
        return None

    with ThreadPoolExecutor() as pool:
        problems = [problem for problem in pool.map(check, entries) if problem]
    if len(problems) == len(entries) > 1:
        return [f"no shard in {folder} is the one that its manifest describes: the manifest is from another build"]
    names = {entry.name for entry in entries}
    strangers = sorted(path.name for path in folder.glob("*.tar") if path.name not in names)
    if strangers:
        problems.append(f"{folder} holds {len(strangers)} shards that its manifest does not know: {strangers[0]} …")
    return problems


def _checked_bytes(
    folder: Path, entry: ShardEntry, image_size: tuple[int, int], known: dict[str, str] | None = None
) -> bytes:
    path = folder / entry.name
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"shard {path} is missing. {_rebuild(folder)}") from None
    except OSError as error:
        raise DataError(f"cannot read shard {path}: {error.strerror}") from error
    expected = (
        -(-(entry.num_samples * record(image_size).itemsize + 2 * _BLOCK) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE
    )
    if len(content) != expected:
        raise DataError(f"shard {path} has {len(content):,} bytes and should have {expected:,}. {_rebuild(folder)}")
    digest = hashlib.sha256(content).hexdigest()
    if digest != entry.sha256:
        what = f"holds the samples of {known[digest]}" if known and digest in known else "is damaged"
        raise DataError(
            f"shard {path} {what}: its sha256 starts with {digest[:12]}, "
            f"and the manifest says {entry.sha256[:12]}. {_rebuild(folder)}"
        )
    return content


def _rebuild(folder: Path) -> str:
    name = typed(folder)
    return f"Run: cifarscale shards verify {name}, then shards build --out {name} --force with its --data"


def _shard_bytes(source: Source, split: Split, start: int, stop: int) -> bytes:
    buffer, header = io.BytesIO(), _ppm_header(source.image_size)
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for i in range(start, stop):
            fine = int(split.fine[i])
            description: dict[str, int | str] = {"fine": fine, "fine_name": source.fine_names[fine]}
            if split.coarse is not None:
                coarse = int(split.coarse[i])
                description |= {"coarse": coarse, "coarse_name": source.coarse_names[coarse]}
            if split.filenames:
                description["filename"] = split.filenames[i]
            members = {
                "ppm": header + split.images[i].tobytes(),
                "cls": str(fine).encode(),
                "json": json.dumps(description).encode(),
            }
            for extension, content in members.items():
                member = tarfile.TarInfo(f"{sample_key(split.name, i)}.{extension}")
                member.size = len(content)  # mode 0644, owner 0 and time 0 are the defaults, the same everywhere
                tar.addfile(member, io.BytesIO(content))
            if len(members["json"]) > _BLOCK:
                raise DataError(f"the names of sample {i} of {split.name} are too long for one block of {_BLOCK} bytes")
    return buffer.getvalue()


def _mean_and_std(images: NDArray[np.uint8]) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Per channel, from a histogram: exact in integers, so the same whatever the order of summation."""
    values = np.arange(256)
    counts = np.stack([np.bincount(images[..., channel].ravel(), minlength=256) for channel in range(3)])
    total = counts[0].sum()
    first, second = counts @ values, counts @ values**2
    mean = first / (total * 255)
    std = np.sqrt(np.maximum(second / (total * 255**2) - mean**2, 0)).round(6)
    std[std == 0] = 1  # of a channel that never varies, which normalisation then leaves at 0
    return tuple(mean.round(6).tolist()), tuple(std.tolist())


def _coarse_of_fine(source: Source) -> tuple[int, ...]:
    """Superclass of each class. Raises: DataError if a class lies in two."""
    pairs = np.unique(
        np.concatenate([np.stack([s.fine, s.coarse], 1) for s in source.splits if s.coarse is not None]), axis=0
    )
    if len(pairs) != len(source.fine_names) or (pairs[:, 0] != np.arange(len(pairs))).any():
        raise DataError(f"{source.dataset}: each of its {len(source.fine_names)} classes needs exactly one superclass")
    return tuple(pairs[:, 1].tolist())
