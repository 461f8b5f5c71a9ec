"""Logging of our own logger alone: plain lines on standard error, with the rank in front where there are several."""

import io
import logging
import sys

from rich.console import Console

console = Console(stderr=True)
"""Where progress, tables and log lines go together; rich keeps them from overwriting each other."""


class _ConsoleHandler(logging.Handler):
    """Prints through the console, so that a live progress bar stays below the lines."""

    def emit(self, record: logging.LogRecord) -> None:
        console.print(self.format(record), markup=False, highlight=False, soft_wrap=True)


def configure_logging(rank: int = 0, world_size: int = 1, debug: bool = False) -> None:
    """Sends `cifarscale`'s log to standard error: info from rank 0, warnings from all ranks."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as standard error is: no figure is lost for a character
    logger = logging.getLogger("cifarscale")
    prefix = f"[rank {rank}] " if world_size > 1 else ""
    handler: logging.Handler = _ConsoleHandler() if sys.stderr.isatty() else logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(prefix + "%(message)s"))
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(logging.DEBUG if debug else logging.INFO if rank == 0 else logging.WARNING)
