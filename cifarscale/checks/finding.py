"""What a check finds: one line for people, that says what to do where something is wrong."""

from dataclasses import dataclass
from typing import Literal

from cifarscale.errors import CifarscaleError

Level = Literal["ok", "warning", "failure"]


@dataclass(frozen=True)
class Finding:
    """One line of a check.

    Attributes:
        level: a failure stops jobs; a warning is for people to judge.
        subject: what was looked at, in a word or two.
        text: what was found.
        remedy: what to do; empty where nothing is.
    """

    level: Level
    subject: str
    text: str
    remedy: str = ""


def ok(subject: str, text: str) -> Finding:
    return Finding("ok", subject, text)


def warning(subject: str, text: str, remedy: str) -> Finding:
    return Finding("warning", subject, text, remedy)


def failure(subject: str, text: str, remedy: str) -> Finding:
    return Finding("failure", subject, text, remedy)


def without_command(error: CifarscaleError) -> str:
    """An error without the command that it recommends: where a finding recommends another."""
    return str(error).partition(". Run: ")[0]
