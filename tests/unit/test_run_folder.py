"""A run folder's own recipe leads back to it."""

from pathlib import Path

from cifarscale.config.load import load_recipe, load_training_recipe
from cifarscale.data.manifest import Manifest
from cifarscale.runs.run_folder import RunFolder, folder_of
from cifarscale.tasks.training import resolve


def test_the_recipe_of_a_run_goes_on_in_its_folder(tmp_path: Path, shards: Path) -> None:
    run = RunFolder(tmp_path / "anywhere")
    run.prepare(resolve(load_training_recipe("demo"), shards), Manifest.load(shards))
    named = str(run.recipe)
    assert folder_of(named, load_recipe(named)) == run.path
    assert folder_of(named, load_recipe(named, ["seed=1"])) is None
    assert folder_of("demo", load_recipe("demo")) is None


def test_a_file_of_ones_own_that_is_called_so_is_no_run(tmp_path: Path) -> None:
    mine = tmp_path / "recipe.toml"
    mine.write_text('task = "classifier"\n')
    assert folder_of(str(mine), load_recipe(str(mine))) is None
