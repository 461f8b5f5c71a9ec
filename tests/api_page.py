"""Writes docs/api.md, the page of all public names, out of their signatures and docstrings: `make docs`."""

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cifarscale

PAGE = Path(__file__).parents[1] / "docs/api.md"
HEAD = """\
# Python API

What `import cifarscale as cs` offers, by name. [scripts.md](scripts.md) shows it in use. `make docs` writes this page.
"""
WIDTH = 100


def api_page() -> str:
    """The page as Markdown."""
    return "\n".join([HEAD, *(_entry(name, getattr(cifarscale, name)) for name in dir(cifarscale))])


def _entry(name: str, value: Any) -> str:
    parts = [f"## {name}", _described(value)]
    if inspect.ismodule(value):
        parts += [part for member in _of_module(value) for part in _parts_of(name, *member)]
    elif inspect.isclass(value):
        parts += [_member(name, *member) for member in _members(value)]
    else:
        parts.insert(1, _code(_signature(value)))
    return "\n\n".join(parts) + "\n"


def _of_module(module: Any) -> Iterator[tuple[str, Any]]:
    """The public functions and classes that a module itself has, in the order in which they are written."""
    for name, value in vars(module).items():
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__:
            yield name, value


def _parts_of(module: str, name: str, value: Any) -> list[str]:
    if not inspect.isclass(value):
        return [_member(module, name, value, is_method=False)]
    members = [_member(f"{module}.{name}", *member) for member in _members(value)]
    return [f"### {module}.{name}\n\n{_described(value)}", *members]


def _members(kind: type) -> Iterator[tuple[str, Any]]:
    """The public methods and properties that a class itself has, in the order in which they are written."""
    for name, value in vars(kind).items():
        if not name.startswith("_") and (isinstance(value, property) or inspect.isfunction(value)):
            yield name, value


def _member(owner: str, name: str, value: Any, is_method: bool = True) -> str:
    if isinstance(value, property):
        return f"### {owner}.{name}\n\n{_described(value.fget)}"
    return f"### {owner}.{name}\n\n{_code(_signature(value, is_method))}\n\n{_described(value)}"


def _signature(function: Any, is_method: bool = False) -> str:
    """As it is written, without the quotes of types that are imported late; one argument a line if it is long."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    assert isinstance(definition, ast.FunctionDef)
    parts, returned = list(_parts(definition.args)), _unquoted(definition.returns)
    parts = parts[1:] if is_method else parts
    line = f"{definition.name}({', '.join(parts)}) -> {returned}"
    if len(line) <= WIDTH:
        return line
    listed = "".join(f"    {part},\n" for part in parts)
    return f"{definition.name}(\n{listed}) -> {returned}"


def _parts(arguments: ast.arguments) -> Iterator[str]:
    """Each argument with its default."""
    without = [None] * (len(arguments.args) - len(arguments.defaults))
    for argument, default in zip(arguments.args, [*without, *arguments.defaults], strict=True):
        yield _part(argument, default)
    if arguments.vararg:
        yield f"*{_unquoted(arguments.vararg)}"
    elif arguments.kwonlyargs:
        yield "*"
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        yield _part(argument, default)


def _part(argument: ast.arg, default: ast.expr | None) -> str:
    return _unquoted(argument) + (f" = {ast.unparse(default)}" if default else "").replace("'", '"')


def _unquoted(node: Any) -> str:
    """Source text in which types stand without quotes; `Changes` is spelt out."""
    for each in ast.walk(node):
        for field in ("annotation", "returns"):
            if isinstance(inner := getattr(each, field, None), ast.Constant) and isinstance(inner.value, str):
                setattr(each, field, ast.parse(inner.value).body[0].value)  # type: ignore[attr-defined]
    text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ast.unparse(node)
    return str(text).replace("Changes", "Mapping[str, Any] | Iterable[str]")


def _code(text: str) -> str:
    return f"```py\n{text}\n```"


def _described(value: Any) -> str:
    """A docstring in Google's style as Markdown: its sections become lists."""
    lines: list[str] = []
    in_list = False
    for line in (inspect.getdoc(value) or "").splitlines():
        section = re.fullmatch(r"(Args|Attributes|Raises|Returns|Yields|Source):(.*)", line)
        item = re.fullmatch(r"    (\S[^:]*): (.*)", line)
        if section:
            in_list = section[1] in ("Args", "Attributes")
            lines += ["", f"**{section[1]}:**{section[2]}", *([""] if in_list else [])]
        elif in_list and item:
            names = ", ".join(f"`{name}`" for name in item[1].split(", "))
            lines.append(f"- {names}: {item[2]}")
        elif in_list and line.strip():
            lines[-1] += f" {line.strip()}"
        else:
            lines.append(line.strip())
    return re.sub("\n{3,}", "\n\n", "\n".join(map(_wrapped, lines)))


def _wrapped(line: str) -> str:
    indent = "  " if line.startswith("- ") else ""
    return textwrap.fill(line, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


if __name__ == "__main__":
    PAGE.write_text(api_page(), encoding="utf-8")
