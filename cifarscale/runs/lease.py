"""A lease on a folder: one process at a time writes there, and a crash does not lock it for ever.

The lease is a file that is created exclusively, which works on NFS as well, and touched while its holder lives. It may
be taken over when its holder is gone: on the same host that is seen at once, elsewhere after EXPIRES_AFTER_S.
File systems without hard links (exFAT, some network drives) create it in two steps, and its content comes second.
"""

import errno
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cifarscale.errors import writing_to

TOUCHED_EVERY_S = 10
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
EXPIRES_AFTER_S = 60


@contextmanager
def lease(path: Path, refuse: Callable[[str], Exception], patience_s: float = 0) -> Iterator[None]:
    """Holds the lease at `path` inside the block.

    Args:
        refuse: makes the error from a description of who holds the lease.
        patience_s: how long to wait for another holder to release it, or for its lease to expire.
    Raises: what `refuse` makes, if another process holds it; CifarscaleError if the folder cannot be written.
    """
    with writing_to(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + patience_s
        while not _create(path):
            holder = living_holder(path)
            if not holder:
                _remove_expired(path)
            elif time.monotonic() > deadline:
                raise refuse(holder)
            else:
                time.sleep(1)
    released = threading.Event()
    threading.Thread(target=_keep_alive, args=(path, released), daemon=True).start()
    try:
        yield
    finally:
        released.set()
        if _is_mine(path):  # one that slept for long may have lost it
            path.unlink(missing_ok=True)


def _create(path: Path) -> bool:
    """Whether this process made the file; a reader finds it whole, where it can be linked into place."""
    mine = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}")
    mine.write_text(json.dumps(_this_process()))
    try:
        os.link(mine, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        try:
            with path.open("x") as file:
                file.write(json.dumps(_this_process()))
        except FileExistsError:
            return False
    finally:
        mine.unlink()
    return True


def living_holder(path: Path) -> str:
    """Who holds the lease, or an empty string if nobody does any more."""
    try:
        text = path.read_text()
        age = _now_there(path) - path.stat().st_mtime
    except FileNotFoundError:
        return ""
    if abs(age) > EXPIRES_AFTER_S:  # one from the future was written by a clock that was wrong: none touches it now
        return ""
    try:
        holder = json.loads(text)
    except json.JSONDecodeError:  # a machine that lost its power may leave an empty file
        return "an unknown process"
    if holder["host"] == socket.gethostname() and not _lives(holder["pid"], holder.get("started")):
        return ""
    return f"process {holder['pid']} on {holder['host']}"


def _lives(pid: int, started: str | None) -> bool:
    """Whether the process of that number lives and is the one meant, where `started` tells it from a later one."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    state, now_started = _state_and_start(pid)
    return state not in ("Z", "X") and started in (None, now_started)


def _state_and_start(pid: int) -> tuple[str, str | None]:
    """Linux's letter for a process (Z: dead, and not yet known to its parent), and when it started, in clock ticks."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # another system, or gone since
        return "", None
    return fields[0], fields[19]


def _now_there(path: Path) -> float:
    """The file server's own time, which may differ from this machine's; that where nothing may be written."""
    probe = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}.now")
    try:
        probe.touch()
    except OSError:
        return time.time()
    try:
        return probe.stat().st_mtime
    finally:
        probe.unlink()


def _remove_expired(path: Path) -> None:
    """Those who find it expired lock that very file and look again, so that none removes the lease of one before it."""
    with suppress(FileNotFoundError), path.open("r+") as file:
        with suppress(OSError):  # a file system without locks leaves a window of microseconds
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.path.samestat(os.fstat(file.fileno()), path.stat()) and not living_holder(path):
            path.unlink()


def _keep_alive(path: Path, released: threading.Event) -> None:
    while not released.wait(TOUCHED_EVERY_S):
        with suppress(OSError):  # the file server may be away for a while; the next try may succeed
            if _is_mine(path):
                os.utime(path)


def _is_mine(path: Path) -> bool:
    try:
        holder: dict[str, object] = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError):
        return False
    return holder == _this_process()


def _this_process() -> dict[str, object]:
    pid = os.getpid()
    return {"host": socket.gethostname(), "pid": pid, "started": _state_and_start(pid)[1]}
