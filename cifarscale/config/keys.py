"""Dotted keys, such as `training.max_steps`, and the nested tables that they lead into."""

from collections.abc import Iterator, Mapping
from typing import Any


def dotted(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The (dotted key, value) pairs of nested tables; lists are values."""
    for key, value in table.items():
        if isinstance(value, Mapping) and value:
            yield from dotted(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def set_key(table: dict[str, Any], key: str, value: Any) -> None:
    """Sets a dotted key; tables on the way are made where they are missing.

    Raises: ValueError if there is a value in the place of one.
    """
    *sections, last = key.split(".")
    for section in sections:
        table = table.setdefault(section, {})
        if not isinstance(table, dict):
            raise ValueError(f"{section!r} is a value, not a section")
    table[last] = value
