"""Downloads that go on where they broke, and are there only when their md5 is right."""

import hashlib
import logging
import time
from pathlib import Path

import requests
import urllib3
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from cifarscale.errors import DataError, writing_to
from cifarscale.log import console

logger = logging.getLogger(__name__)

ATTEMPTS = 5
_CHUNK = 1 << 20
_TIMEOUT_S = 30


def download(url: str, target: Path, md5: str, elsewhere: str, progress: bool = True) -> None:
    """Fetches a file; a broken download goes on where it stopped, at the next attempt or the next call.

    `target` appears only when its md5 is right. A file that is there already with the right md5 is left alone.

    Args:
        elsewhere: ends an error: how to go on without the download.
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
            resumed = _fetch(url, part, elsewhere, progress)
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            if attempt == ATTEMPTS - 1 or not part.exists():
                again = "Run the same command again to go on from there. " if part.exists() else ""
                raise DataError(f"cannot download {url}: {_reason(error)}. {again}{elsewhere}") from error
            time.sleep(2**attempt / 4)
            continue
        digest = _md5(part)
        if digest == md5:
            with writing_to(target):
                part.replace(target)
            return
        part.unlink()
        if not resumed:
            raise DataError(f"{url} is not the official file: its md5 is {digest}, and should be {md5}. {elsewhere}")
    raise DataError(f"cannot download {url}: the connection broke {ATTEMPTS} times. Run the same command again")


def _fetch(url: str, part: Path, elsewhere: str, progress: bool) -> bool:
    """Appends what is missing to `part`. Returns: whether it was begun before; a server may make us start again."""
    start = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT_S) as response:
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            return True  # nothing is missing, or all of it is wrong: the checksum tells which
        if response.status_code not in (requests.codes.ok, requests.codes.partial_content):
            raise DataError(
                f"cannot download {url}: the server answers {response.status_code} {response.reason}. {elsewhere}"
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
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, TimeRemainingColumn(), console=console, disable=not progress or not console.is_terminal)


def _reason(error: BaseException) -> str:
    """What requests and urllib3 wrap in several layers, in a few words."""
    unreachable = type(error) in (requests.ConnectionError, requests.ConnectTimeout)
    while error.__context__ is not None:
        error = error.__context__
    detail = getattr(error, "strerror", None) or str(error)
    return f"{'no network' if unreachable else 'the connection broke'} ({detail})"


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
