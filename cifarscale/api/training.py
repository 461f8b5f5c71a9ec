"""Training in scripts and notebooks."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from cifarscale.api.recipes import folder_for, name_of, recipe_of
from cifarscale.api.runs import Run, load
from cifarscale.config.load import Changes, require_training
from cifarscale.config.recipe import Recipe
from cifarscale.config.scale import check_ranks
from cifarscale.errors import RunError
from cifarscale.launch.local import announce, run_here
from cifarscale.launch.run import prepare
from cifarscale.runs.options import RunOptions


def train(
    recipe: str | Path | Recipe,
    *,
    set: Changes | None = None,
    seed: int | None = None,
    scale: int = 1,
    data: str | Path | None = None,
    nproc: int = 1,
    device: str = "auto",
    run_dir: str | Path | None = None,
    num_workers: int = 0,
    digests: bool = False,
    graph: bool = True,
) -> Run:
    """Trains a recipe on this machine, or goes on with its run; returns at once if that is complete.

    Ctrl-C saves and raises Interrupted; the same call goes on.

    Args:
        recipe: a name, as in `cifarscale jobs list`, a .toml file, or a recipe such as `Run.recipe` and `Sweep.best`.
        set: dotted keys of the recipe that are changed, with their values; or texts `KEY=VALUE`.
        seed: shorthand for that key.
        scale: how many times as large its batches become, after `set`, with the learning rate and the steps to match:
            another recipe.
        data: a data set or a folder of shards; None for the recipe's own.
        nproc: ranks. With one it is this process.
        device: `auto`, `cpu` or `cuda`.
        run_dir: None for the recipe's own, `runs/NAME-HASH`.
        num_workers: reading processes a rank, where the recipe streams its data.
        digests: whether digests.jsonl keeps a digest of each tensor after each step, by which runs can be compared.
        graph: whether a GPU replays steps as a CUDA graph where it can; it changes no bit.
    Raises: CifarscaleError with the text that the command line prints.
    """
    with _alone():
        loaded = require_training(recipe_of(recipe, set, scale, seed=seed), name_of(recipe))
        check_ranks(loaded, nproc, name_of(recipe))
        options = RunOptions(device=device, num_workers=num_workers, digests=digests, graph=graph)
        prepared = prepare(loaded, folder_for(recipe, loaded, run_dir), str(data) if data else None, options)
    was_complete = prepared.result() is not None
    if not was_complete:
        announce(prepared)
        with _alone() if nproc == 1 else nullcontext():
            run_here(prepared, nproc)
    run = load(prepared.run_dir)
    run.was_complete = was_complete
    return run


_TRAINING = threading.Lock()


@contextmanager
def _alone() -> Iterator[None]:
    """Raises: RunError if a training is under way in this process: they would share torch's generators and threads."""
    if not _TRAINING.acquire(blocking=False):
        raise RunError(
            "another training is under way in this process. Wait for it, or start this one in a process of its own"
        )
    try:
        yield
    finally:
        _TRAINING.release()
