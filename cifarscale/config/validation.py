"""What pydantic found wrong with a file of ours, in one line: key, value, what is valid, and which key was meant."""

import difflib
from collections.abc import Iterable, Iterator
from typing import Any, get_args

from pydantic import BaseModel, ValidationError


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """All of a ValidationError in one line; an unknown key with that of another section, or the nearest one."""
    keys = sorted(set(_dotted_keys(model)))
    variants = variants_of(model)
    parts = []
    for item in error.errors():
        # Pydantic puts the chosen variant's name into an error's path; users never typed it there.
        key = ".".join(str(part) for i, part in enumerate(item["loc"]) if i != 1 or item["loc"][0] not in variants)
        key = "".join(character if character.isprintable() else repr(character)[1:-1] for character in key)
        if item["type"] == "extra_forbidden":
            section, dot, word = key.rpartition(".")
            siblings = _keys_of_variant(model, item["loc"]) or [
                name.removeprefix(section + dot) for name in keys if name.rpartition(".")[0] == section
            ]
            near = (
                _of_other_sections(key, word, keys)
                or nearest(word, siblings, section + dot)
                or f"; valid here: {', '.join(siblings)}"
            )
            parts.append(f"unknown key {key!r}{near}")
        elif item["type"] == "union_tag_invalid":
            parts.append(f"{key}.name = {item['ctx']['tag']!r}: valid are {item['ctx']['expected_tags']}")
        elif item["type"] == "value_error":
            parts.append(item["msg"].removeprefix("Value error, "))
        else:
            hint = _in_toml(item["input"])
            if not hint and item["type"] in ("tuple_type", "list_type") and isinstance(item["input"], str):
                # An element of a list that is itself no list: one of the pairs of a name and a number.
                is_element = isinstance(item["loc"][-1], int)
                hint = (
                    f'; write a {"pair" if is_element else "list"}: ["{item["input"]}"{", 0.1" if is_element else ""}]'
                )
            parts.append(f"{key} = {item['input']!r}: {item['msg'][0].lower()}{item['msg'][1:]}{hint}")
    return "; ".join(parts)


def _keys_of_variant(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """The keys of the section that was chosen by its name, where an error lies in such a one; else none."""
    if len(loc) < 2 or loc[0] not in variants_of(model):
        return []
    sections = sections_of(model.model_fields[str(loc[0])].annotation)
    return [
        key for section in sections if section.model_fields["name"].default == loc[1] for key in section.model_fields
    ]


def _of_other_sections(key: str, word: str, valid: Iterable[str]) -> str:
    """The valid keys with the same last word, where they are few; none for a key of the variant that was not chosen."""
    others = [name for name in valid if name.rpartition(".")[2] == word]
    return _meant(others) if key not in others and len(others) < 4 else ""


def _in_toml(value: Any) -> str:
    """How one writes in TOML what is Python's."""
    if isinstance(value, str) and value in ("True", "False"):
        return f"; write {value.lower()}"
    if isinstance(value, str) and value.startswith("(") and value.endswith(")"):
        return f"; write [{value[1:-1]}]"
    return ""


def nearest(word: str, valid: Iterable[str], prefix: str = "") -> str:
    return _meant([prefix + match for match in difflib.get_close_matches(word, list(valid), n=1)])


def _meant(names: Iterable[str]) -> str:
    question = " or ".join(map(repr, names))
    return f", did you mean {question}?" if question else ""


def sections_of(annotation: Any) -> list[type[BaseModel]]:
    """The models in a field's type, through unions and `Annotated`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for argument in get_args(annotation) for section in sections_of(argument)]


def _dotted_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield prefix + name
        for section in sections_of(field.annotation):
            yield from _dotted_keys(section, f"{prefix}{name}.")


def variants_of(model: type[BaseModel]) -> dict[str, tuple[str, ...]]:
    """Fields that choose between sections by their `name` (`model`, `optimizer`), with the names, default first."""
    variants = {}
    for key, field in model.model_fields.items():
        sections = sections_of(field.annotation)
        if len(sections) > 1:
            named = (get_args(section.model_fields["name"].annotation) for section in sections)
            names = (name[0] for name in named if name)
            variants[key] = (field.default.name, *names)
    return variants
