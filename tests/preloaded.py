"""Starts `cifarscale` by a fork of a process that has imported torch already, which saves two or three seconds a start.

A server (`python tests/preloaded.py SOCKET`) has one thread, imports what the command line needs, and forks at each
request. `Popen` is subprocess's, but that a command of ours begins by such a fork; from there on all is as in a process
of its own: arguments, environment, folder, pipes, signals, exit code, children, PYTHONPATH. What a fork cannot stand
for is started as users start it: another Python, another variable that Python reads at its start, a terminal.
"""

import atexit
import ctypes
import fcntl
import importlib
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

COMMANDS = {"cifarscale": "cifarscale.cli.main", "cifarscale.launch.rank_launcher": "cifarscale.launch.rank_launcher"}
"""Modules that are run as `python -m …`, and where the `main` of each lies."""
SLOW_IMPORTS = (
    *("cifarscale.launch.worker", "cifarscale.training.run", "cifarscale.checks.verify", "cifarscale.checks.doctor"),
    *("cifarscale.evaluation.features", "cifarscale.report.page", "cifarscale.data.streaming", "rich.table"),
    "pytorch_fid.inception",
)
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_HEAD = struct.Struct("!I")
_HIGH = 500
_ENDING_S = 1.0


class Popen(subprocess.Popen):  # type: ignore[type-arg]
    """subprocess.Popen, by a fork of the server where that can be: the process is then a child of this one, too."""

    fork: Callable[[dict[str, Any], Sequence[int]], int] | None = None
    """Gives the id of the new process; None starts every process as subprocess does."""

    def _execute_child(
        self,
        args: Any,
        executable: Any,
        preexec_fn: Any,
        close_fds: Any,
        pass_fds: Any,
        cwd: Any,
        env: Any,
        startupinfo: Any,
        creationflags: Any,
        shell: Any,
        p2cread: int,
        p2cwrite: int,
        c2pread: int,
        c2pwrite: int,
        errread: int,
        errwrite: int,
        *more: Any,
    ) -> None:
        request = _request(args, cwd, env, pass_fds, new_session=more[6])
        pipes = [own if own != -1 else i for i, own in enumerate((p2cread, c2pwrite, errwrite))]
        if request is None or Popen.fork is None or any(os.isatty(pipe) for pipe in pipes):
            super()._execute_child(  # type: ignore[misc]
                *(args, executable, preexec_fn, close_fds, pass_fds, cwd, env, startupinfo, creationflags, shell),
                *(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite, *more),
            )
            return
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = Popen.fork(request, [*pipes, *pass_fds])
        self._child_created = True
        self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)  # type: ignore[attr-defined]


def _request(args: Any, cwd: Any, env: Any, pass_fds: Any, new_session: bool) -> dict[str, Any] | None:
    """What the server is to do; None where a fork of it would be something else."""
    command = [os.fspath(each) for each in args] if isinstance(args, list | tuple) else []
    environment = {os.fsdecode(key): os.fsdecode(value) for key, value in (os.environ if env is None else env).items()}
    if command[:2] != [sys.executable, "-m"] or len(command) < 3 or command[2] not in COMMANDS:
        return None
    if _for_python(environment) != _FOR_PYTHON or (Popen.fork is _fork_here and not _without_threads()):
        return None
    return {
        "module": command[2],
        "arguments": command[3:],
        "folder": os.fspath(cwd or os.getcwd()),
        "environment": environment,
        "pass_fds": list(pass_fds),
        "new_session": new_session,
    }


def _for_python(environment: Mapping[str, str]) -> dict[str, str]:
    """What Python, or a library of it, reads when it starts. A fork can follow a PYTHONPATH that starts no program."""
    followed = not any(Path(folder, "sitecustomize.py").exists() for folder in _python_path(environment))
    return {
        name: value
        for name, value in environment.items()
        if name.startswith(("PYTHON", "LC_", "LANG")) and not (followed and name == "PYTHONPATH")
    }


def _python_path(environment: Mapping[str, str]) -> list[str]:
    """The folders that PYTHONPATH names."""
    return [os.path.abspath(each) for each in environment.get("PYTHONPATH", "").split(os.pathsep) if each]


_FOR_PYTHON = _for_python(os.environ)


class _Server:
    """The process that forks, which begins at the first request."""

    def __init__(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="preloaded-")
        self._path, self._lock = f"{self._folder}/socket", threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._started = threading.Event()

    @property
    def path(self) -> str:
        """Of its socket, on which it answers."""
        with self._lock:
            if self._process is None:
                # What the server forks becomes a child of this process.
                ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
                threading.Thread(target=self._start, daemon=True).start()
                self._started.wait()
                assert self._process is not None
                assert self._process.stdout is not None
                assert self._process.stdout.readline(), "the server does not start"
        return self._path

    def _start(self) -> None:
        """Starts it from a thread that never ends: the kernel ends the server when the thread that started it does."""
        command = [sys.executable, __file__, self._path]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)
        self._started.set()
        threading.Event().wait()

    def fork(self, request: dict[str, Any], fds: Sequence[int]) -> int:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(self.path)
            _send(connection, request | {"reports": False}, fds)
            pid = int(_HEAD.unpack(_receive_exactly(connection, _HEAD.size))[0])
        while not _is_child(pid):
            time.sleep(0.001)
        return pid

    def end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
        shutil.rmtree(self._folder)


def _is_child(pid: int) -> bool:
    """Whether a process has come to this one, as it does when the one that forked it has ended."""
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


@contextmanager
def forking() -> Iterator[Callable[[], str]]:
    """Commands of ours begin by a fork of a server inside the block. Gives the path of the server's socket."""
    server, real = _Server(), subprocess.Popen
    subprocess.Popen, Popen.fork = Popen, server.fork  # type: ignore[misc]
    try:
        yield lambda: server.path
    finally:
        subprocess.Popen, Popen.fork = real, None  # type: ignore[misc]
        server.end()


CLIENT = """\
#!{python} -IS
import json, os, socket, struct, sys
request = {{"module": "cifarscale", "arguments": sys.argv[1:], "folder": os.getcwd(), "environment": dict(os.environ)}}
content = json.dumps(request | {{"pass_fds": [], "new_session": False, "reports": True}}).encode()
with socket.socket(socket.AF_UNIX) as connection:
    connection.connect({path!r})
    socket.send_fds(connection, [struct.pack("!I", len(content))], [0, 1, 2])
    connection.sendall(content)
    sys.exit(struct.unpack("!I", connection.recv(4))[0])
"""


def write_client(file: Path, path: str) -> None:
    """Writes a program that does what the command `cifarscale` does, for a shell.

    Args:
        path: of the server's socket.
    """
    file.write_text(CLIENT.format(python=sys.executable, path=path), encoding="utf-8")
    file.chmod(0o755)


def _send(connection: socket.socket, request: dict[str, Any], fds: Sequence[int]) -> None:
    content = json.dumps(request).encode()
    socket.send_fds(connection, [_HEAD.pack(len(content))], list(fds))
    connection.sendall(content)


def _receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    head, fds, _, _ = socket.recv_fds(connection, _HEAD.size, 32)
    return json.loads(_receive_exactly(connection, _HEAD.unpack(head)[0])), list(fds)


def _receive_exactly(connection: socket.socket, size: int) -> bytes:
    content = b""
    while len(content) < size:
        more = connection.recv(size - len(content))
        assert more, "the other end has gone"
        content += more
    return content


# The server, and what it forks.


def serve(path: str) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the tests
    for name in COMMANDS.values():
        importlib.import_module(name)
    for name in SLOW_IMPORTS:
        with suppress(ModuleNotFoundError):  # a GPU's machine may have little more than torch
            importlib.import_module(name)
    assert _num_threads() == 1, "a process with threads does not fork soundly"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen(64)
        print("ready", flush=True)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those between this one and a command
        while True:
            connection, _ = listening.accept()
            if os.fork() == 0:
                listening.close()
                _between(connection)
            connection.close()


def _between(connection: socket.socket) -> None:
    """Forks the command, and tells of its process, or waits for its end and tells of that."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    request, fds = _receive(connection)
    between = os.getpid()
    pid = os.fork()
    if pid == 0:
        while os.getppid() == between and not request["reports"]:
            time.sleep(0.001)  # or a command that is to end with its parent would take this process for that
        become(request, fds)
    if request["reports"]:
        pid = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) % 256
    connection.sendall(_HEAD.pack(pid))
    os._exit(0)


def become(request: dict[str, Any], fds: Sequence[int]) -> None:
    """Is the command from here on, to its end."""
    atexit._clear()  # what the process that was forked is to tidy up at its own end
    if request["new_session"]:
        os.setsid()
    targets = [0, 1, 2, *request["pass_fds"]]
    kept = [fcntl.fcntl(fd, fcntl.F_DUPFD, _HIGH) for fd in fds]  # out of the way of the places that they go to
    for fd, target in zip(kept, targets, strict=True):
        os.dup2(fd, target, inheritable=True)
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in targets:
            try:
                os.close(int(name))
            except OSError:
                continue
    os.chdir(request["folder"])
    before = _python_path(os.environ)
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.path[:] = [*_python_path(os.environ), *(each for each in sys.path if each not in before)]
    for signum in (signal.SIGTERM, signal.SIGUSR2, signal.SIGCHLD, signal.SIGALRM):
        signal.signal(signum, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    subprocess.Popen, Popen.fork = Popen, _fork_here  # type: ignore[misc]
    sys.argv = [request["module"], *request["arguments"]]
    code: Any = 1
    try:
        code = importlib.import_module(COMMANDS[request["module"]]).main()
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    if isinstance(code, str):
        print(code, file=sys.stderr)
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            code = 120
    os._exit(code if isinstance(code, int) else int(code is not None))


def _fork_here(request: dict[str, Any], fds: Sequence[int]) -> int:
    """The same by this process itself, which stands where `python -m …` would have been started."""
    pid = os.fork()
    if pid == 0:
        become(request, fds)
    return pid


def _without_threads() -> bool:
    """Whether this process has one thread alone, or soon has: one that was asked to end may need a moment for it."""
    deadline = time.monotonic() + _ENDING_S
    while _num_threads() > 1 and time.monotonic() < deadline:
        time.sleep(0.005)
    return _num_threads() == 1


def _num_threads() -> int:
    return len(os.listdir("/proc/self/task"))


if __name__ == "__main__":
    sys.modules["preloaded"] = sys.modules["__main__"]
    serve(sys.argv[1])
