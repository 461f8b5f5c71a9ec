"""The keys of every kind of recipe, as a page: `cifarscale jobs keys`."""

import ast
import inspect
import textwrap
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from cifarscale.config.registry import registered_task, registered_tasks
from cifarscale.config.validation import sections_of


def reference(task: str = "") -> str:
    """The keys of one task, or of all, as Markdown.

    Raises: KeyError for an unknown task.
    """
    tasks = {task: registered_task(task)} if task else registered_tasks()
    models = {name: each.recipe for name, each in tasks.items()}
    pages = [f"## {name}\n\n{inspect.getdoc(model)}\n\n{_table(model)}" for name, model in models.items()]
    return "\n\n".join(pages) + "\n"


def _table(model: type[BaseModel]) -> str:
    rows = ["| key | default | what it is |", "| --- | --- | --- |"]
    return "\n".join([*rows, *(f"| `{key}` | {default} | {text} |" for key, default, text in _keys(model))])


def _keys(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Dotted keys with their defaults and docstrings; those of a section that is chosen by its name say which."""
    for name, field in model.model_fields.items():
        key, sections = prefix + name, sections_of(field.annotation)
        if not isinstance(field.default, BaseModel):
            yield key, _default(field), _described(model, name, field)
        elif len(sections) == 1:
            yield from _keys(sections[0], f"{key}.")
        else:
            chosen = {section.model_fields["name"].default: section for section in sections}
            yield f"{key}.name", f'`"{field.default.name}"`', f"One of {_listed(chosen)}, each with keys of its own."  # type: ignore[attr-defined]
            for choice, section in chosen.items():
                for inner, default, text in _keys(section, f"{key}."):
                    if inner != f"{key}.name":
                        yield inner, default, f"With `{choice}`: {text}"


def _listed(values: Iterable[object]) -> str:
    return ", ".join(f"`{value}`" for value in values)


def _default(field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True)
    if field.is_required() or default in (None, "", (), [], {}):
        return ""
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if isinstance(default, tuple):
        return f"`{list(default)}`"
    return f'`"{default}"`' if isinstance(default, str) else f"`{default}`"


def _described(model: type[BaseModel], name: str, field: FieldInfo) -> str:
    """The docstring of a field, after the values that it may have, where they can be listed."""
    values = [value for kind in (field.annotation, *get_args(field.annotation)) for value in _literals(kind)]
    listed = f"One of {_listed(values)}. " if len(values) > 1 else ""
    return listed + next((docs[name] for kind in model.__mro__ if name in (docs := _docstrings(kind))), "")


def _literals(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) is Literal else ()


@cache
def _docstrings(model: type) -> dict[str, str]:
    """The text that stands below each field of a class, in one line."""
    if not (isinstance(model, type) and issubclass(model, BaseModel)) or model is BaseModel:
        return {}
    try:
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(model))).body
    except OSError:  # made of another class, which has them
        return {}
    assert isinstance(definition, ast.ClassDef)
    texts = {}
    for field, below in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
            assert isinstance(below.value, ast.Constant)
            texts[field.target.id] = " ".join(str(below.value.value).split()).replace("|", "\\|")
    return texts
