"""CIFAR-100 as its authors publish it, downloaded or from a folder; nothing is unpickled before its md5 was right."""

import hashlib
import io
import logging
import pickle
import tarfile
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import requests
import urllib3
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from cifarscale.data.source import Source, Split
from cifarscale.errors import DataError, writing_to
from cifarscale.log import console

logger = logging.getLogger(__name__)

URL = "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"
ARCHIVE = "cifar-100-python.tar.gz"
ARCHIVE_MD5 = "eb9058c3a382ffc7106e4002c42a8d85"
FOLDER = "cifar-100-python"
MEMBER_MD5 = {
    "train": "16019d7e3df5f24257cddd939b257f8d",
    "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    "meta": "7973b15100ade9c7d40fb424638fde48",
}
"""The md5 of each file that is read; torchvision checks the same."""

ATTEMPTS = 5
_CHUNK = 1 << 20
_TIMEOUT_S = 30
_ELSEWHERE = (
    f"Copy {ARCHIVE} to this machine and run: cifarscale shards build --source PATH; "
    "or train on built-in data: --data synthetic"
)


def cifar100_source(source: Path | None, cache_dir: Path, progress: bool = True) -> Source:
    """The whole set.

    Args:
        source: a folder that is or holds `cifar-100-python/`, or the archive; None downloads it into `cache_dir`.
    Raises: DataError if it cannot be had, or is not byte for byte the official one.
    """
    if source is None:
        source = cache_dir / ARCHIVE
        download(URL, source, ARCHIVE_MD5, progress)
    members = _read_folder(source) if source.is_dir() else _read_archive(source)
    for name, content in members.items():
        digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if digest != MEMBER_MD5[name]:
            raise DataError(
                f"{name!r} in {source} is not CIFAR-100's: its md5 is {digest}, and should be {MEMBER_MD5[name]}. "
                f"Fetch {URL} again"
            )
    unpickled = {name: pickle.loads(content, encoding="bytes") for name, content in members.items()}
    meta = unpickled["meta"]
    return Source(
        dataset="cifar100",
        fine_names=_text(meta[b"fine_label_names"]),
        coarse_names=_text(meta[b"coarse_label_names"]),
        splits=tuple(_split(name, unpickled[name]) for name in ("train", "test")),
    )


def download(url: str, target: Path, md5: str, progress: bool = True) -> None:
    """Fetches a file; a broken download goes on where it stopped, at the next attempt or the next call.

    `target` appears only when its md5 is right. A file that is there already with the right md5 is left alone.

    Raises: DataError if the server cannot be reached, or what it sends is not the file; CifarscaleError if the disk
        is full.
    """
    if target.exists() and _md5(target) == md5:
        return
    part = target.with_name(target.name + ".part")
    with writing_to(part):
        part.parent.mkdir(parents=True, exist_ok=True)
    logger.info("downloading %s to %s", url, target)
    for attempt in range(ATTEMPTS):
        try:
            resumed = _fetch(url, part, progress)
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            if attempt == ATTEMPTS - 1 or not part.exists():
                again = "Run the same command again to go on from there. " if part.exists() else ""
                raise DataError(f"cannot download {url}: {_reason(error)}. {again}{_ELSEWHERE}") from error
            time.sleep(2**attempt / 4)
            continue
        digest = _md5(part)
        if digest == md5:
            with writing_to(target):
                part.replace(target)
            return
        part.unlink()
        if not resumed:
            raise DataError(f"{url} is not the official file: its md5 is {digest}, and should be {md5}. {_ELSEWHERE}")
    raise DataError(f"cannot download {url}: the connection broke {ATTEMPTS} times. Run the same command again")


def _fetch(url: str, part: Path, progress: bool) -> bool:
    """Appends what is missing to `part`. Returns: whether it was begun before; a server may make us start again."""
    start = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT_S) as response:
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            return True  # nothing is missing, or all of it is wrong: the checksum tells which
        if response.status_code not in (requests.codes.ok, requests.codes.partial_content):
            raise DataError(
                f"cannot download {url}: the server answers {response.status_code} {response.reason}. {_ELSEWHERE}"
            )
        resumed: bool = response.status_code == requests.codes.partial_content
        start = start if resumed else 0
        total = start + int(response.headers.get("Content-Length", 0))
        with writing_to(part), part.open("ab" if resumed else "wb") as file, _bar(progress) as bar:
            task = bar.add_task(part.name.removesuffix(".part"), total=total or None, completed=start)
            # Raw: some servers call .gz a content encoding, which iter_content would undo. And its errors are OSErrors,
            # as a full disk is; urllib3's are not.
            for chunk in response.raw.stream(_CHUNK, decode_content=False):
                file.write(chunk)
                bar.advance(task, len(chunk))
    if part.stat().st_size < total:
        raise urllib3.exceptions.ProtocolError("the server closed it early")
    return resumed


def _bar(progress: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, TimeRemainingColumn(), console=console, disable=not progress or not console.is_terminal)


def _reason(error: BaseException) -> str:
    """What requests and urllib3 wrap in several layers, in a few words."""
    unreachable = type(error) in (requests.ConnectionError, requests.ConnectTimeout)
    while error.__context__ is not None:
        error = error.__context__
    detail = getattr(error, "strerror", None) or str(error)
    return f"{'no network' if unreachable else 'the connection broke'} ({detail})"


def _read_folder(folder: Path) -> dict[str, bytes]:
    inner = folder / FOLDER if (folder / FOLDER).is_dir() else folder
    try:
        return {name: (inner / name).read_bytes() for name in MEMBER_MD5}
    except OSError as error:
        raise DataError(f"cannot read {error.filename}: {error.strerror}. {folder} should hold {FOLDER}/") from error


def _read_archive(path: Path) -> dict[str, bytes]:
    """The members, straight from the archive into memory."""
    try:
        with tarfile.open(fileobj=io.BytesIO(path.read_bytes()), mode="r:gz") as tar:
            return {name: _read_member(tar, f"{FOLDER}/{name}") for name in MEMBER_MD5}
    except (OSError, EOFError, KeyError, tarfile.TarError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or (error.args[0] if error.args else "it is damaged")
        raise DataError(
            f"cannot read {path}: {reason}. --source takes {ARCHIVE} or the folder with {FOLDER}/"
        ) from error


def _read_member(tar: tarfile.TarFile, name: str) -> bytes:
    file = tar.extractfile(name)
    if file is None:
        raise tarfile.ReadError(f"{name} is not a file")
    return file.read()


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _split(name: str, content: dict[bytes, Any]) -> Split:
    planes = content[b"data"].reshape(-1, 3, 32, 32)
    return Split(
        name=name,
        images=np.ascontiguousarray(planes.transpose(0, 2, 3, 1)),
        fine=np.array(content[b"fine_labels"], np.int64),
        coarse=np.array(content[b"coarse_labels"], np.int64),
        filenames=_text(content[b"filenames"]),
    )


def _text(names: list[bytes]) -> tuple[str, ...]:
    return tuple(name.decode() for name in names)
