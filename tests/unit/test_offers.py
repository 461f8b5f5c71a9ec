"""What `submit` offers where a batch has nothing for some of the ranks: each is a command that works."""

import shlex
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import cifarscale as cs
from cifarscale.cli.main import main
from cifarscale.errors import TooManyRanksError
from cifarscale.evaluation import features

GPUS = ("--profile", "gpu", "--nodes", "2", "--gpus-per-node", "8")
TASKS = ("--profile", "testcluster", "--nodes", "2", "--set", "training.microbatches=2")


@pytest.fixture
def submit(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`cifarscale submit` in an empty folder of a machine without SLURM."""
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "it's mine").symlink_to(shards)
    monkeypatch.setattr(features, "_fetched_weights", lambda: b"")  # as where Inception's can be had

    def submit(*arguments: str) -> Result:
        return CliRunner().invoke(main, ["submit", *arguments, "--dry-run"])

    return submit


def commands(done: Result) -> list[list[str]]:
    """What is offered, after `cifarscale submit`."""
    lines = [shlex.split(line) for line in done.stderr.splitlines() if line.startswith("  cifarscale submit ")]
    return [words[2:] for words in lines]


@pytest.mark.parametrize(
    ("recipe", "options", "kinds"),
    [
        ("demo", GPUS, ["--gpus-per-node 4", "--scale 4", "--array seed=0,1,2,3 ", "submit sweep-demo "]),
        ("demo", (*GPUS, "--set", "seed=3", "--scale", "2"), ["-node 8", "--scale 4", "--array seed=3,4 "]),
        ("demo", (*GPUS, "--array", "seed=5,6"), ["--gpus-per-node 4", "--scale 4", "submit sweep-demo "]),
        ("demo", (*GPUS, "--set", "training.microbatches=0", "--set", "training.global_batch_size=6"), None),
        ("gan-demo", GPUS, ["--gpus-per-node 2", "--scale 8", "seed=0,1,2,3,4,5,6,7 ", "base=gan-demo"]),
        ("demo", TASKS, ["--nodes 1", "--scale 2", "--array seed=0,1 ", "submit sweep-demo "]),
        ("demo", (*GPUS, "--run-dir", "runs/o'k", "--time", "1-0"), ["--run-dir", "--run-dir", "--time 1-0", "--time"]),
    ],
    ids=lambda value: " ".join(value)[:50] if isinstance(value, tuple | list) else str(value),
)
def test_every_offer_is_a_command_that_works(
    recipe: str, options: tuple[str, ...], kinds: list[str] | None, submit: Any, tmp_path: Path
) -> None:
    done = submit(recipe, *options, "--data", "it's mine")
    assert done.exit_code == 1
    (error,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert " feed at most " in error
    offered = commands(done)
    assert offered
    for words in offered:
        again = submit(*words)
        assert again.exit_code == 0, (words, again.stderr)
        assert "feed at most" not in again.stderr
    if kinds is not None:
        assert len(offered) == len(kinds)
        for kind, words in zip(kinds, offered, strict=True):
            assert kind in f"submit {shlex.join(words)}"
    assert [path.name for path in tmp_path.iterdir()] == ["it's mine"]


def test_the_error_is_one_line_and_says_what_the_batch_feeds(submit: Any) -> None:
    done = submit("demo", *GPUS, "--data", "it's mine")
    first, *rest = done.stderr.splitlines()
    assert first == (
        "error: 64 images in 4 microbatches feed at most 4 ranks, and 2 nodes x 8 GPUs are 16. Nothing is queued: take "
        "fewer, or --scale 4"
    )
    assert "    training.global_batch_size 64 -> 256" in rest
    assert "    training.learning_rate 0.001 -> 0.002" in rest
    assert not done.stdout


def test_no_gpu_is_left_idle_by_what_is_offered(submit: Any) -> None:
    for words in commands(submit("demo", *GPUS, "--data", "it's mine")):
        rows = submit(*words).stdout
        if "--array" in words:
            assert "ranks                   │ 4: 4 a node" in rows
            assert "jobs                    │ 4" in rows
        elif words[0] == "sweep-demo":
            assert "16, 16 at a time" in rows
        elif "--scale" in words:
            assert "ranks                   │ 16: 8 a node" in rows
            assert "microbatches a rank     │ 1" in rows
        else:
            assert "ranks                   │ 4: 4 a node" in rows


def test_a_search_that_the_data_is_too_small_for_is_not_offered(submit: Any) -> None:
    done = submit("cnn", *GPUS, "--data", "it's mine")  # sweep-cnn sets 5,000 images aside
    assert "--scale 4" in done.stderr
    assert not any(words[0].startswith("sweep") for words in commands(done) if "base=cnn" not in words)


def test_scripts_get_the_same_error_with_the_commands_in_it(shards: Path, submit: Any) -> None:
    with pytest.raises(TooManyRanksError, match="feed at most 4 ranks") as caught:
        cs.plan("demo", nodes=2, gpus_per_node=8, profile="gpu", data=shards, set={"optimizer.betas": [0.9, 0.99]})
    assert "--set 'optimizer.betas=[0.9, 0.99]'" in caught.value.details
    recipe = cs.plan("demo", profile="local", data=shards).runs[0].recipe
    with pytest.raises(TooManyRanksError, match=r"take fewer, or --scale 4$") as caught:
        cs.plan(recipe, nodes=2, gpus_per_node=8, profile="gpu", data=shards)
    assert not caught.value.details
