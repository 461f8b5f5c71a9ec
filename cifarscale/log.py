"""Logging of our own logger alone: plain lines on standard error, with the rank in front where there are several."""

import io
import logging
import os
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from rich.console import Console

if TYPE_CHECKING:
    from rich.table import Column, Table

console = Console(stderr=True, markup=False)
"""Where progress, tables and log lines go together; rich keeps them from overwriting each other."""


def shows_live() -> bool:
    """Whether the console can show what changes: a terminal can, and a notebook that has ipywidgets."""
    return console.is_terminal or (console.is_jupyter and find_spec("ipywidgets") is not None)


class _ConsoleHandler(logging.Handler):
    """Prints through the console, so that a live progress bar stays below the lines."""

    def emit(self, record: logging.LogRecord) -> None:
        console.print(self.format(record), markup=False, highlight=False, soft_wrap=True)


class _ForReader(io.FileIO):
    """A file descriptor whose reader may go away, as those of pipes do: what is written after that is for nobody."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return len(data)


def _outlive_readers() -> None:
    """Work goes on when nobody reads what it prints any more: `train | head`, or a Ctrl-C that ends `tee` first."""
    for name, own in (("stdout", sys.__stdout__), ("stderr", sys.__stderr__)):
        stream = getattr(sys, name)
        if stream is not own or not isinstance(stream, io.TextIOWrapper):
            continue  # somebody else's
        stream.flush()
        raw = _ForReader(stream.fileno(), "wb", closefd=False)
        buffered = io.BufferedWriter(raw)
        tolerant = io.TextIOWrapper(
            buffered,
            stream.encoding,
            stream.errors,
            line_buffering=stream.line_buffering,
            write_through=name == "stderr",
        )
        setattr(sys, name, tolerant)


def configure_logging(rank: int = 0, world_size: int = 1, debug: bool = False) -> None:
    """Sends `cifarscale`'s log to standard error: info from rank 0, warnings from all ranks."""
    _outlive_readers()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as standard error is: no value is lost for a character
    logger = logging.getLogger("cifarscale")
    prefix = f"[rank {rank}] " if world_size > 1 else ""
    handler: logging.Handler = _ConsoleHandler() if sys.stderr.isatty() else logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(prefix + "%(message)s"))
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(logging.DEBUG if debug else logging.INFO if rank == 0 else logging.WARNING)


def plain_table(*columns: "Column | str") -> "Table":
    """A table without lines between its columns, for one row a line at 80 columns."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    return Table(*columns, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
