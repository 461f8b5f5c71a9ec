"""A sweep that fills the nodes which one training has no use for."""

from collections.abc import Sequence

from cifarscale.config.load import load_recipe, recipe_files
from cifarscale.config.lookup import read_toml
from cifarscale.config.recipe import TrainingRecipe
from cifarscale.data.manifest import Manifest
from cifarscale.errors import CifarscaleError
from cifarscale.slurm.plan import make_plan, shape
from cifarscale.slurm.profile import Profile
from cifarscale.sweeps.prepared import check_trials
from cifarscale.sweeps.recipe import SweepRecipe
from cifarscale.sweeps.space import check_sweep

_SPREAD = 4.0
"""How far from the recipe's own learning rate is looked, up and down, where no sweep is written for the recipe."""


def filling_sweep(
    base: str, recipe: TrainingRecipe, changes: Sequence[str], manifest: Manifest, profile: Profile, nodes: int
) -> tuple[str, tuple[str, ...]] | None:
    """The name of a recipe of a sweep over a base, and what of it is to be changed; None if there is none that fits.

    The first that is written for the base is taken, else the first of the same task, to search the learning rate. All
    is checked but what would have to be fetched, such as Inception's weights.

    Args:
        base: a name or a path.
        recipe: what that is with its changes, each of which is KEY=VALUE.
        nodes: of the profile's, that are to be filled.
    """
    files = [(name, path) for name, path in recipe_files().items() if read_toml(path).get("task") == "sweep"]
    sweeps = [(name, sweep) for name, path in files if isinstance(sweep := load_recipe(str(path)), SweepRecipe)]
    for name, sweep in sorted(sweeps, key=lambda each: each[1].base != base):
        wanted = (*(f"set.{change}" for change in changes), *_changes(sweep, base, recipe, profile, nodes))
        try:
            changed = load_recipe(name, wanted)
            assert isinstance(changed, SweepRecipe)
            if (varied := check_sweep(changed)).task == recipe.task:
                check_trials(changed, varied, manifest)
                make_plan(changed, profile, nodes)
                return name, wanted
        except CifarscaleError:
            continue
    return None


def _changes(sweep: SweepRecipe, base: str, recipe: TrainingRecipe, profile: Profile, nodes: int) -> list[str]:
    changes = []
    if sweep.base != base:
        low, high = (float(f"{recipe.training.learning_rate * by:.3g}") for by in (1 / _SPREAD, _SPREAD))
        space = f'{{"training.learning_rate" = {{ loguniform = [{low}, {high}] }}}}'
        changes += [f"base={base}", f"name=sweep-{recipe.name}", f"space={space}"]
    if profile.gpus_per_node:
        changes.append("gpus_per_trial=1")
    if (room := shape(profile, nodes).world_size) > sweep.num_trials:
        changes.append(f"num_trials={room}")
    return changes
