"""Runs the commands of the pages, each page in a folder of its own, where everything is small."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "jobs/README.md", "shards/README.md", "slurm/README.md", "slurm/testcluster/README.md")
PAGES += tuple(sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))
PATIENCE_S = 600
_FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_PROGRAMS = (
    "cifarscale",
    "make",
    "python",
    "python3",
    "pip",
    "pytest",
    "wandb",
    "export",
    "slurm/testcluster/testcluster",
)
NOT_RUN = {
    r"make |pip |python3 -m venv|pytest$": "what continuous integration does itself",
    r"cifarscale shards build( --source \S+)?$": "downloads CIFAR-100; tests/unit/test_cifar100_source.py has a server",
    r"cifarscale fid \S+$|.*--weights": "needs Inception's weights; tests/distributed/test_fid.py has some",
    r"wandb leet runs": "waits for a key",
    r"cifarscale sync": "needs an account; tests/tracking/test_sync.py has a server",
}
"""Commands that no test runs from the pages, and why."""


def commands(page: str) -> list[list[str]]:
    """The commands of a page, block by block, without comments."""
    blocks = []
    for language, text in _FENCED.findall((ROOT / page).read_text(encoding="utf-8")):
        lines = [re.sub(r"\s+#.*", "", line).strip() for line in text.splitlines()]
        lines = [line for line in lines if line and not line.startswith("#")]
        if language in ("", "bash") and lines and lines[0].split()[0] in _PROGRAMS:
            blocks.append(lines)
    return blocks


def is_run(command: str) -> bool:
    return not any(re.match(pattern, command) for pattern in NOT_RUN)


def sandbox(folder: Path, shards: Path) -> dict[str, str]:
    """Makes a folder in which the pages' commands run. Returns: their environment."""
    (folder / "shards").mkdir(parents=True)
    (folder / "shards/cifar100").symlink_to(shards)
    (folder / "shards/synthetic").symlink_to(shards)
    (folder / "slurm/profiles").mkdir(parents=True)
    (folder / "slurm/testcluster").symlink_to(ROOT / "slurm/testcluster")
    (folder / "jobs").mkdir()
    (folder / "docs").symlink_to(ROOT / "docs")
    program = folder / "bin/cifarscale"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {Path(__file__).with_name("docs_small.py")} "$@"\n')
    program.chmod(0o755)
    path = os.pathsep.join((str(program.parent), str(Path(sys.executable).parent), os.environ["PATH"]))
    return {**os.environ, "PATH": path, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "COLUMNS": "80"}


def demo() -> list[str]:
    """The commands of `make demo`."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    (target,) = re.findall(r"^demo:.*\n((?:\t.*\n)+)", text, re.MULTILINE)
    return [line.strip().removeprefix("$(BIN)/") for line in target.splitlines()]


def run_page(page: str, folder: Path, environment: dict[str, str]) -> None:
    """Runs a page's blocks in their order."""
    for block in commands(page):
        run_block([line for line in block if is_run(line)], folder, environment)


def run_block(lines: list[str], folder: Path, environment: dict[str, str]) -> None:
    """Runs commands; one that fails is shown with all that was printed before it."""
    done = subprocess.run(
        ["bash", "-c", "set -euxo pipefail\n" + "\n".join(lines)],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
