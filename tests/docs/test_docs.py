"""What the pages say is so: their commands run, their links lead somewhere, their errors are those of the code."""

import re
from pathlib import Path

import click
import pytest
from docs_runner import NOT_RUN, PAGES, ROOT, commands, demo, run_block, run_page, sandbox

from cifarscale.cli.main import main

ON_A_CLUSTER = ("README.md", "slurm/README.md", "slurm/testcluster/README.md", "docs/sweeps.md")
"""Pages that tests/slurm/test_slurm_docs.py runs."""
TEXT = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}
FILES = [path for path in sorted((ROOT / "cifarscale").rglob("*")) if path.suffix in (".py", ".html")]
SOURCE = "\n".join(path.read_text(encoding="utf-8") for path in FILES)


@pytest.mark.parametrize("page", [page for page in PAGES if page not in ON_A_CLUSTER and commands(page)])
def test_every_command_of_a_page_runs(page: str, tmp_path: Path, shards: Path) -> None:
    run_page(page, tmp_path / "here", sandbox(tmp_path / "here", shards))


def test_the_demo_ends_with_a_report(tmp_path: Path, shards: Path) -> None:
    run_block(demo(), tmp_path / "here", sandbox(tmp_path / "here", shards))
    assert "sweep-demo" in (tmp_path / "here/runs/report.html").read_text(encoding="utf-8")


def test_what_is_not_run_is_there() -> None:
    lines = [line for page in PAGES for block in commands(page) for line in block]
    assert [pattern for pattern in NOT_RUN if not any(re.match(pattern, line) for line in lines)] == []


@pytest.mark.parametrize("page", PAGES)
def test_links_and_pictures_are_there(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", TEXT[page]):
        if not target.startswith("http"):
            path, _, anchor = target.partition("#")
            linked = (ROOT / page).parent / path if path else ROOT / page
            assert linked.exists(), target
            if anchor:
                titles = re.findall(r"^#+ (.*)", linked.read_text(encoding="utf-8"), re.MULTILINE)
                assert anchor in [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles], target


@pytest.mark.parametrize("page", PAGES)
def test_the_options_that_are_named_are_there(page: str) -> None:
    for block in commands(page):
        for line in block:
            words = line.split()
            if words[0] != "cifarscale":
                continue
            command: click.Command = main
            for word in words[1:]:
                if not isinstance(command, click.Group) or word not in command.commands:
                    break
                command = command.commands[word]
            known = {option for parameter in command.params for option in parameter.opts}
            named = {word.partition("=")[0] for word in words if word.startswith("--")}
            assert named <= known | {"--help"}, line


def test_every_command_stands_in_a_page() -> None:
    everything = "\n".join(TEXT.values())
    assert [name for name in main.commands if f"cifarscale {name}" not in everything] == []


def test_the_errors_that_are_explained_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| `([^`]*[a-z][^`]*)` \|", TEXT["docs/troubleshooting.md"], re.MULTILINE)
    assert len(rows) > 15
    parts = [part.strip(" :,.=") for row in rows for part in re.split(r"…|\b\d[\d,.]*\b|\bn2\b|\(.*?\)|'[^']*'", row)]
    assert [part for part in parts if len(part) > 4 and part not in _plain(SOURCE)] == []


def _plain(source: str) -> str:
    """The code with its strings joined and its insertions left out, as the pages show them."""
    joined = re.sub(r'"\s*\n\s*f?"', "", source)
    return re.sub(r"\{[^{}]*\}", "", joined)
