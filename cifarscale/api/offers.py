"""What can be queued in the place of a job whose batch has nothing for some of its ranks."""

import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cifarscale.config.keys import dotted
from cifarscale.config.ranks import most_fed, numbers_of_ranks
from cifarscale.config.recipe import Recipe, TrainingRecipe
from cifarscale.config.scale import differences, factor_for, scaled
from cifarscale.data.manifest import Manifest
from cifarscale.errors import TooManyRanksError
from cifarscale.slurm.plan import shape
from cifarscale.slurm.profile import Profile
from cifarscale.sweeps.filling import filling_sweep
from cifarscale.tasks.base import PreparedRun


@dataclass(frozen=True)
class Request:
    """What is asked to be queued; see `cifarscale.plan`."""

    recipe: str | Path | Recipe
    nodes: int = 1
    gpus_per_node: int | None = None
    profile: str | Path | None = None
    time: str | None = None
    set: tuple[str | tuple[str, Any], ...] = ()
    seed: int | None = None
    scale: int = 1
    array: Mapping[str, Sequence[Any]] | str | None = None
    at_once: int | None = None
    data: str | Path | None = None
    run_dir: str | Path | None = None
    num_workers: int = 0
    graph: bool = True
    on_cluster: bool = False

    def place(self) -> list[str]:
        """The options that say where it runs."""
        given = {"nodes": self.nodes, "gpus-per-node": self.gpus_per_node, "profile": self.profile, "time": self.time}
        return [part for name, value in given.items() if value is not None for part in (f"--{name}", str(value))]

    def changes(self) -> list[str]:
        """The changed keys, as --set takes them."""
        changed = [*self.set, *([] if self.seed is None else [("seed", self.seed)])]
        return [line for change in changed for line in ([change] if isinstance(change, str) else _lines(*change))]

    def command(self) -> str:
        """What one types for it."""
        words = ["cifarscale", "submit", str(self.recipe), *self.place()]
        words += [word for change in self.changes() for word in ("--set", change)]
        if self.scale > 1:
            words += ["--scale", str(self.scale)]
        given = {"array": self.array, "at-once": self.at_once, "data": self.data, "run-dir": self.run_dir}
        given["num-workers"] = self.num_workers or None
        words += [word for name, value in given.items() if value is not None for word in (f"--{name}", str(value))]
        return shlex.join([*words, *([] if self.graph else ["--no-graph"])])


@dataclass(frozen=True)
class Offer:
    """Something else to queue.

    Attributes:
        what: in words.
        notes: what is to be known of it, in lines.
    """

    what: str
    request: Request
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n".join([f"{self.what}:", f"  {self.request.command()}", *(f"    {note}" for note in self.notes)])


def nothing_to_do(
    request: Request,
    runs: Sequence[PreparedRun],
    profile: Profile,
    is_possible: Callable[[Request], bool],
) -> TooManyRanksError:
    """The error to tell, with commands in its details; there are none for what a script gives as an object.

    Args:
        is_possible: tells whether what is offered can be queued as far as is known now: nothing else is offered.
    """
    recipes = [run.recipe for run in runs if isinstance(run.recipe, TrainingRecipe)]
    asked = shape(profile, request.nodes)
    where, nodes = "GPUs" if profile.gpus_per_node else "tasks", f"{asked.nodes} node{'s' if asked.nodes > 1 else ''}"
    least = min(recipes, key=lambda recipe: numbers_of_ranks(recipe)[-1])
    factor = _factor(recipes, asked.world_size)
    full = TooManyRanksError(
        f"{most_fed(least)}, and {nodes} x {asked.tasks_per_node} {where} are {asked.world_size}. Nothing is queued: "
        f"take fewer{f', or --scale {factor * request.scale}' if factor else ''}"
    )
    if isinstance(request.recipe, Recipe) or isinstance(request.array, Mapping):
        return full
    offers: list[Offer] = []
    fewer = _fewer(request, recipes, profile)
    if fewer and is_possible(fewer):
        offers.append(Offer(f"Fewer {where}, for the same run", fewer))
    if factor:
        larger = replace(request, scale=factor * request.scale)
        if is_possible(larger):
            changed = differences(recipes[0], scaled(recipes[0], factor))
            offers.append(Offer("A larger batch: a new recipe, with as many images", larger, tuple(changed)))
    if fewer and not request.array:
        ranks = shape(_shaped(profile, fewer), fewer.nodes).world_size
        seeds = range(recipes[0].seed, recipes[0].seed + asked.world_size // ranks)
        many = replace(fewer, array=f"seed={','.join(map(str, seeds))}", run_dir=None, seed=None)
        if len(seeds) > 1 and is_possible(many):
            offers.append(Offer(f"As many runs as there is room for, with other seeds ({len(seeds)})", many))
    manifest = runs[0].manifest
    if manifest and request.scale == 1 and (sweep := _sweep(request, recipes[0], manifest, profile)):
        offers.append(Offer("A search for better values, with trials side by side", sweep))
    full.details = "\n".join(map(str, offers))
    return full


def _factor(recipes: Sequence[TrainingRecipe], world_size: int) -> int | None:
    """By what all recipes are to be scaled to feed so many ranks."""
    factors = [factor_for(recipe, world_size) for recipe in recipes]
    return factors[0] if len(set(factors)) == 1 else None


def _fewer(request: Request, recipes: Sequence[TrainingRecipe], profile: Profile) -> Request | None:
    """The same on the most ranks that the batch feeds, on as few nodes as hold them; None if there is no such number.

    How many tasks a node without GPUs has is the profile's choice.
    """
    valid = set.intersection(*(set(numbers_of_ranks(recipe)) for recipe in recipes))
    tasks = shape(profile, 1).tasks_per_node
    sizes = range(1, tasks + 1) if profile.gpus_per_node else [tasks]
    shapes = [(nodes, size) for nodes in range(1, request.nodes + 1) for size in sizes if nodes * size in valid]
    if not shapes:
        return None
    nodes, size = max(shapes, key=lambda each: (each[0] * each[1], -each[0]))
    return replace(request, nodes=nodes, gpus_per_node=request.gpus_per_node if size == tasks else size)


def _shaped(profile: Profile, request: Request) -> Profile:
    gpus = request.gpus_per_node
    return profile if gpus is None else profile.model_copy(update={"gpus_per_node": gpus, "tasks_per_node": 0})


def _sweep(request: Request, recipe: TrainingRecipe, manifest: Manifest, profile: Profile) -> Request | None:
    found = filling_sweep(str(request.recipe), recipe, request.changes(), manifest, profile, request.nodes)
    if found is None:
        return None
    name, changes = found
    return replace(request, recipe=name, set=changes, seed=None, array=None, at_once=None, run_dir=None)


def _lines(key: str, value: Any) -> Iterator[str]:
    """A changed key as --set takes it; tables one key at a time."""
    for inner, plain in dotted({key: value}):
        yield f"{inner}={plain if isinstance(plain, str) else json.dumps(plain)}"
