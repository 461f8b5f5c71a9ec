"""CIFAR-10 and CIFAR-100 as their authors publish them; nothing is unpickled before its md5 was right."""

import hashlib
import io
import pickle
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cifarscale.data.download import download
from cifarscale.data.source import Source, Split
from cifarscale.errors import DataError


@dataclass(frozen=True)
class Archive:
    """One of the two sets, as it is published for Python.

    Attributes:
        members: the md5 of each file that is read; torchvision checks the same.
        train, test: the files of each split, in order.
        meta: the file that holds the names.
        labels: the key of a split's labels.
        fine_names: the key of their names.
        coarse_names: the key of the superclasses' names; empty for none.
    """

    dataset: str
    title: str
    url: str
    md5: str
    folder: str
    members: Mapping[str, str] = field(repr=False)
    train: tuple[str, ...]
    test: tuple[str, ...]
    meta: str
    labels: bytes
    fine_names: bytes
    coarse_names: bytes = b""

    @property
    def file(self) -> str:
        """The archive's name."""
        return self.url.rpartition("/")[2]


CIFAR_100 = Archive(
    dataset="cifar100",
    title="CIFAR-100",
    url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    md5="eb9058c3a382ffc7106e4002c42a8d85",
    folder="cifar-100-python",
    members={
        "train": "16019d7e3df5f24257cddd939b257f8d",
        "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
        "meta": "7973b15100ade9c7d40fb424638fde48",
    },
    train=("train",),
    test=("test",),
    meta="meta",
    labels=b"fine_labels",
    fine_names=b"fine_label_names",
    coarse_names=b"coarse_label_names",
)
CIFAR_10 = Archive(
    dataset="cifar10",
    title="CIFAR-10",
    url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    md5="c58f30108f718f92721af3b95e74349a",
    folder="cifar-10-batches-py",
    members={
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e",
        "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
    },
    train=tuple(f"data_batch_{i}" for i in range(1, 6)),
    test=("test_batch",),
    meta="batches.meta",
    labels=b"labels",
    fine_names=b"label_names",
)


def cifar_source(archive: Archive, source: Path | None, cache_dir: Path, progress: bool = True) -> Source:
    """The whole set.

    Args:
        source: a folder that is or holds the archive's folder, or the archive; None downloads it into `cache_dir`.
    Raises: DataError if it cannot be had, or is not byte for byte the official one.
    """
    if source is None:
        source = cache_dir / archive.file
        elsewhere = (
            f"Copy {archive.file} to this machine and run: cifarscale shards build --data {archive.dataset} "
            "--source PATH; or train on built-in data: --data synthetic"
        )
        download(archive.url, source, archive.md5, elsewhere, progress)
    members = _read_folder(archive, source) if source.is_dir() else _read_archive(archive, source)
    for name, content in members.items():
        digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if digest != archive.members[name]:
            raise DataError(
                f"{name!r} in {source} is not {archive.title}'s: its md5 is {digest}, and should be "
                f"{archive.members[name]}. Fetch {archive.url} again"
            )
    unpickled = {name: pickle.loads(content, encoding="bytes") for name, content in members.items()}
    meta, splits = unpickled[archive.meta], {"train": archive.train, "test": archive.test}
    return Source(
        dataset=archive.dataset,
        fine_names=_text(meta[archive.fine_names]),
        coarse_names=_text(meta[archive.coarse_names]) if archive.coarse_names else (),
        splits=tuple(_split(archive, name, [unpickled[file] for file in files]) for name, files in splits.items()),
    )


def _read_folder(archive: Archive, folder: Path) -> dict[str, bytes]:
    inner = folder / archive.folder if (folder / archive.folder).is_dir() else folder
    try:
        return {name: (inner / name).read_bytes() for name in archive.members}
    except OSError as error:
        raise DataError(
            f"cannot read {error.filename}: {error.strerror}. {folder} should hold {archive.folder}/; of images of "
            "your own: --data folder"
        ) from error


def _read_archive(archive: Archive, path: Path) -> dict[str, bytes]:
    """The members, straight from the archive into memory."""
    try:
        with tarfile.open(fileobj=io.BytesIO(path.read_bytes()), mode="r:gz") as tar:
            return {name: _read_member(tar, f"{archive.folder}/{name}") for name in archive.members}
    except (OSError, EOFError, KeyError, tarfile.TarError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or (error.args[0] if error.args else "it is damaged")
        raise DataError(
            f"cannot read {path}: {reason}. --source takes {archive.file} or the folder with {archive.folder}/"
        ) from error


def _read_member(tar: tarfile.TarFile, name: str) -> bytes:
    file = tar.extractfile(name)
    if file is None:
        raise tarfile.ReadError(f"{name} is not a file")
    return file.read()


def _split(archive: Archive, name: str, parts: list[dict[bytes, Any]]) -> Split:
    """A split from its files, one after the other."""
    planes = np.concatenate([part[b"data"] for part in parts]).reshape(-1, 3, 32, 32)

    def labels(key: bytes) -> NDArray[np.int64]:
        return np.concatenate([np.array(part[key], np.int64) for part in parts])

    return Split(
        name=name,
        images=np.ascontiguousarray(planes.transpose(0, 2, 3, 1)),
        fine=labels(archive.labels),
        coarse=labels(b"coarse_labels") if archive.coarse_names else None,
        filenames=_text([filename for part in parts for filename in part[b"filenames"]]),
    )


def _text(names: Sequence[bytes]) -> tuple[str, ...]:
    return tuple(name.decode() for name in names)
