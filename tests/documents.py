"""The project's pages, the commands in them, and a folder where these take seconds."""

import os
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import tomli_w
from markdown_it import MarkdownIt
from markdown_it.token import Token
from preloaded import write_client

from cifarscale.data.build import DEFAULT_NUM_SHARDS
from cifarscale.data.shards import write_shards
from cifarscale.data.source import Source

ROOT = Path(__file__).parents[1]
HERE, ON_SLURM = "bash", "bash slurm"
"""What a block of commands is marked with, after its ```: where it is run. Blocks of Python are run here, too."""
NOT_RUN = {
    "make demo": "install",
    "make test": "install",
    "python3 -m venv .venv && . .venv/bin/activate": "pip",
    "pip install -c constraints.txt -e '.[dev]'": "pip",
    "pip install examples/autoencoder": "pip",
    "pytest": "pip",
    "pytest test_vit.py": "pip",
    "cifarscale fid runs/dcgan-*": "network",
    "cifarscale fid runs/dcgan-* --weights pt_inception-2015-12-05-6726825d.pth": "network",
    "wandb leet runs/demo-*/wandb": "terminal",
    "cifarscale sync": "login",
    "cifarscale sync runs/cnn-1a2b3c4d": "login",
    "apt-get install --no-install-recommends slurmctld slurmd slurm-client slurmdbd slurm-wlm-mysql-plugin munge "
    "mariadb-server": "as root",
}
"""Commands that no test runs, and the words that tell readers why, in the same section of the page. The tests run with
what pip and make install; W&B's uploads are tested in tests/tracking, against a server of their own."""
PATIENCE_S = 870


@dataclass(frozen=True)
class Block:
    """Lines between ``` and ```, and the text of the section that they stand in."""

    language: str
    text: str
    section: str

    @property
    def commands(self) -> list[str]:
        """A command a line, without comments; what ends in a backslash goes on in the next line."""
        if self.language == "python":
            return [f"python - <<'PYTHON'\n{self.text}PYTHON"]
        if self.language not in (HERE, ON_SLURM):
            return []
        lines = (line.partition(" #")[0].strip() for line in self.text.replace("\\\n", " ").splitlines())
        return [" ".join(line.split()) for line in lines if line]


@dataclass(frozen=True)
class Page:
    """A Markdown file."""

    path: Path

    @property
    def name(self) -> str:
        return str(self.path.relative_to(ROOT))

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def tokens(self) -> list[Token]:
        """All of them in order, those within lines included."""
        blocks = MarkdownIt("commonmark").enable("table").parse(self.text)
        return [token for block in blocks for token in (block, *(block.children or ()))]

    @cached_property
    def blocks(self) -> list[Block]:
        found, lines, start = [], self.text.splitlines(), 0
        starts = [token.map[0] for token in self.tokens if token.type == "heading_open" and token.map]
        for token in self.tokens:
            if token.type == "fence" and token.map:
                start = max((line for line in starts if line < token.map[0]), default=0)
                end = min((line for line in starts if line > token.map[0]), default=len(lines))
                found.append(Block(token.info.strip(), token.content, "\n".join(lines[start:end])))
        return found

    @property
    def code(self) -> Iterator[str]:
        """What stands between ` and ` in a line."""
        return (token.content for token in self.tokens if token.type == "code_inline")

    def commands(self, where: str) -> list[str]:
        """The commands of its blocks that are run there, in order."""
        blocks = (block for block in self.blocks if block.language in (where, "python" if where == HERE else where))
        return [command for block in blocks for command in block.commands if command not in NOT_RUN]

    def links(self) -> Iterator[str]:
        """Targets of its links and pictures."""
        for token in self.tokens:
            if target := token.attrGet("href") or token.attrGet("src"):
                yield str(target)


README, EXAMPLE = Page(ROOT / "README.md"), Page(ROOT / "examples/autoencoder/README.md")
PAGES = [
    README,
    *(
        Page(ROOT / folder / "README.md")
        for folder in ("jobs", "shards", "slurm", "slurm/testcluster", "examples/autoencoder")
    ),
    *(Page(path) for path in sorted((ROOT / "docs").glob("*.md"))),
]


def furnish(folder: Path, source: Source) -> None:
    """Makes a folder like a clone with shards, but that these are small, and the jobs short."""
    for name in ("docs", "examples"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "slurm/profiles").mkdir(parents=True)
    (folder / "slurm/testcluster").symlink_to(ROOT / "slurm/testcluster")
    for dataset in ("cifar100", "synthetic"):
        (folder / "shards" / dataset).mkdir(parents=True)
        write_shards(replace(source, dataset=dataset), folder / "shards" / dataset, DEFAULT_NUM_SHARDS, lambda _: None)
    (folder / "jobs").mkdir()
    for path in (ROOT / "jobs").glob("*.toml"):
        job = tomllib.loads(path.read_text(encoding="utf-8"))
        (folder / "jobs" / path.name).write_text(tomli_w.dumps(_shortened(job)), encoding="utf-8")


def run_commands(commands: list[str], folder: Path, preloaded: Callable[[], str] | None = None) -> None:
    """Runs them by one bash in the folder, with this Python's `cifarscale`. The first that fails ends it.

    Args:
        preloaded: the fixture, for a `cifarscale` that begins by a fork.
    """
    programs = folder / ".programs"
    programs.mkdir(exist_ok=True)
    if preloaded:
        write_client(programs / "cifarscale", preloaded())
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("CIFARSCALE_", "WANDB_"))}
    done = subprocess.run(
        ["bash", "-euxo", "pipefail", "-c", "\n".join(commands)],
        cwd=folder,
        env=environment
        | {
            "PATH": os.pathsep.join((str(programs), str(Path(sys.executable).parent), os.environ["PATH"])),
            "XDG_CACHE_HOME": str(folder / "cache"),
            "CUDA_VISIBLE_DEVICES": "",
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, f"exit code {done.returncode}:\n{done.stdout[-4000:]}"


_SHORT = {"max_steps": 20, "global_batch_size": 16, "log_every": 5, "checkpoint_every": 10}
_DISTANCE = {"num_samples": 200, "every": 10}


def _shortened(job: dict[str, Any]) -> dict[str, Any]:
    """The same job in a second or two."""
    if job["task"] in ("classifier", "gan", "flow"):
        schedule = {"schedule": job["schedule"] | {"warmup_steps": 0}} if "schedule" in job else {}
        sampler = {"sampler": job["sampler"] | {"steps": 2}} if "sampler" in job else {}
        later = {"later": [each | {"step": 10 + i} for i, each in enumerate(job["later"])]} if "later" in job else {}
        short = {"training": job["training"] | _SHORT, "evaluation": {"every": 10}}
        return {**job, **schedule, **sampler, **later, **short}
    if job["task"] == "distance":
        return {**job, "distance": job["distance"] | {"num_samples": 200}}
    if job["task"] == "sweep":
        # The base, which is shortened too, trains the trials; what the sweep sets for them must not undo that.
        kept = {
            key: value
            for key, value in job["set"].items()
            if not key.startswith(("training", "schedule", "evaluation"))
        }
        validation = {"data.num_validation": 100} if "data.num_validation" in kept else {}
        distance = {f"distance.{key}": value for key, value in _DISTANCE.items() if "distance.every" in kept}
        space = dict(job["space"])
        if "schedule.warmup_steps" in space:
            space["schedule.warmup_steps"] = space["schedule.warmup_steps"] | {"choice": [0, 5]}
        scheduler = job["scheduler"] | {"grace_steps": 10}
        shorter = {"num_trials": 2, "set": kept | validation | distance, "space": space, "scheduler": scheduler}
        return {**job, **shorter}
    return job
