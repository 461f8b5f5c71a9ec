"""The pages are true: their links lead somewhere, and the options and errors that they name exist."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from api_page import PAGE, api_page
from click.testing import CliRunner
from documents import HERE, NOT_RUN, ON_SLURM, PAGES, ROOT, Page

import cifarscale
from cifarscale.cli.main import main
from cifarscale.config.reference import reference

OTHERS_OPTIONS = {
    "--gres": "sbatch",
    "--gpus-per-task": "sbatch",
    "--gpu-bind": "sbatch",
    "--signal": "sbatch",
    "--mem": "sbatch",
    "--kill-on-bad-exit": "srun",
    "--test-only": "sbatch",
    "--folder": "slurm/testcluster/testcluster",
    "--nodes": "slurm/testcluster/testcluster",
    "--cpus": "slurm/testcluster/testcluster",
    "--gpus": "slurm/testcluster/testcluster",
    "--base-port": "slurm/testcluster/testcluster",
    "--num-images": "tests/bench/bench_fid.py",
    "--rounds": "tests/bench/bench_fid.py",
    "--seconds": "tests/bench/bench_training.py",
}
"""Options of other programs that pages name, and whose they are."""
by_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@by_page
def test_commands_stand_in_blocks_that_are_run(page: Page) -> None:
    for block in page.blocks:
        if block.language not in (HERE, ON_SLURM):
            found = re.findall(r"^(?:cifarscale|make|pip|python3?|bash|\./\S+) .*", block.text, re.MULTILINE)
            assert not found, f"mark this block as {HERE!r} or {ON_SLURM!r}"


@by_page
def test_readers_are_told_what_a_command_needs_that_no_test_runs(page: Page) -> None:
    for block in page.blocks:
        for command in block.commands:
            assert NOT_RUN.get(command, "") in block.section, command


def test_what_is_not_run_stands_in_a_page() -> None:
    assert set(NOT_RUN) <= {command for page in PAGES for block in page.blocks for command in block.commands}


@by_page
def test_links_and_pictures_lead_somewhere(page: Page) -> None:
    for target in page.links():
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        path = page.path.parent / name if name else page.path
        assert path.exists(), target
        if anchor:
            assert anchor in anchors(Page(path)), target


def anchors(page: Page) -> list[str]:
    """What GitHub makes of a page's headings."""
    titles = re.findall(r"^#+ (.*)", page.text, re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]


def commands_of(group: click.Command, path: tuple[str, ...] = ("cifarscale",)) -> Iterator[tuple[str, click.Command]]:
    """All commands that are no groups, by what one types."""
    if isinstance(group, click.Group):
        for name, command in group.commands.items():
            yield from commands_of(command, (*path, name))
    else:
        yield " ".join(path), group


COMMANDS = dict(commands_of(main))


def options_of(command: click.Command) -> set[str]:
    return {name for parameter in command.params for name in parameter.opts} | {"--help", "-h"}


@by_page
def test_tables_have_a_head_and_as_many_cells_in_each_row(page: Page) -> None:
    """Rows after a blank line are no table, but a paragraph of bars."""
    for table in re.findall(r"(?:^\|.*\n)+", page.text, re.MULTILINE):
        rows = table.splitlines()
        assert len(rows) > 2, table
        assert re.fullmatch(r"\|(?: *:?-+:? *\|)+", rows[1]), table
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1, table


def test_every_command_stands_in_a_page() -> None:
    text = "\n".join(page.text for page in PAGES)
    assert [name for name in COMMANDS if name not in text] == []


@by_page
def test_options_exist(page: Page) -> None:
    everybodys = {option for command in COMMANDS.values() for option in options_of(command)}
    everybodys |= {option for parameter in main.params for option in parameter.opts}
    for text in [*page.code, *(command for block in page.blocks for command in block.commands)]:
        named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text))
        whose = max((name for name in COMMANDS if text.startswith(name)), key=len, default=None)
        known = options_of(COMMANDS[whose]) if whose else everybodys | set(OTHERS_OPTIONS)
        if text.startswith(("cifarscale", "--")):
            assert named <= known, text


def literals(tree: ast.AST) -> Iterator[str]:
    """All strings of a module, with … for what is put into them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield re.sub(r"%[sd]", "…", node.value)


def test_quoted_errors_are_said() -> None:
    """Each line in the first column of troubleshooting.md stands in the code, with … for what varies."""
    package = Path(cifarscale.__file__).parent
    said = [text for path in package.rglob("*.py") for text in literals(ast.parse(path.read_text(encoding="utf-8")))]
    rows = re.findall(r"^\| (`.*?) \|", (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8"), re.MULTILINE)
    quoted = [line for row in rows for line in re.findall(r"`(.*?)`", row)]
    assert len(quoted) > 30
    for line in set(quoted) - {"Got unexpected extra argument"}:  # click's
        pattern = ".*".join(map(re.escape, line.strip("… ").split("…")))
        assert any(re.search(pattern, text) for text in said), line


@by_page
def test_examples_of_toml_are_toml(page: Page) -> None:
    for block in page.blocks:
        if block.language == "toml":
            tomllib.loads(block.text)


def test_the_page_of_keys_is_what_the_command_prints() -> None:
    """After a change of a key or of its docstring: make docs."""
    page = (ROOT / "docs/recipes.md").read_text(encoding="utf-8")
    assert page.partition("<!-- cifarscale jobs keys -->\n")[2] == reference()


def test_the_page_of_the_api_holds_all_public_names_and_no_others() -> None:
    """After a change of a public name, its signature or its docstring: make docs."""
    assert PAGE.read_text(encoding="utf-8") == api_page()
    assert re.findall(r"^## (\w+)", api_page(), re.MULTILINE) == dir(cifarscale)
    for name in dir(cifarscale):
        assert getattr(cifarscale, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = cifarscale.trian


def test_every_key_says_what_it_is() -> None:
    rows = [line.split(" | ") for line in reference().splitlines() if line.startswith("| `")]
    assert not [row[0] for row in rows if len(row[2].removesuffix(" |").rstrip(" .")) < 10]


def test_the_keys_of_one_task_are_shown_alone() -> None:
    shown = CliRunner().invoke(main, ["jobs", "keys", "distance"]).stdout
    assert shown == reference("distance")
    assert "`distance.features`" in shown
    assert "training.max_steps" not in shown
    refused = CliRunner().invoke(main, ["jobs", "keys", "clasifier"])
    assert refused.exit_code == 1
    assert "unknown task 'clasifier', did you mean 'classifier'?" in refused.stderr
