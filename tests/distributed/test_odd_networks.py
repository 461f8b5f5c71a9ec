"""Unusual networks of the user's: each trains to the same bits on any number of ranks, or is refused in one line."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import run_ranks
from runs import Run

from cifarscale.config.load import load_recipe, load_training_recipe
from cifarscale.distributed.ranks import ADDRESS_VARIABLE, FILE_VARIABLE
from cifarscale.errors import TRUST_VARIABLE, ConfigError, Interrupted
from cifarscale.launch.run import prepare, run
from cifarscale.runs.options import RunOptions
from cifarscale.tasks.base import PreparedRun
from cifarscale.tasks.classifier import contract
from cifarscale.training.signals import StopRequest

pytestmark = pytest.mark.distributed

RECIPE = f"""
task = "classifier"
modules = ["{Path(__file__).parents[1] / "odd_networks.py"}"]
[optimizer]
weight_decay = 0.01
[training]
max_steps = 4
global_batch_size = 16
log_every = 1
checkpoint_every = 2
gradient_clip_norm = 1.0
ema_decay = 0.9
[evaluation]
every = 2
batch_size = 67
"""
WORK = (
    *("batch_norm", "dropout", "noise", "frozen", "unused", "sometimes_unused", "integer_buffer", "shared"),
    *("float64", "bfloat16", "five_dimensions", "spectral", "mask", "begins_to_draw"),
)
REFUSED = {
    "no_parameters": "network 'no_parameters' has no parameters: there is nothing to train",
    "all_frozen": "has no parameters but frozen ones",
    "half": "has the parameter first.weight of float16, and parameters are of float32, float64 or bfloat16",
    "complex_parameter": "has the parameter turn of complex64",
    "complex_output": "returns complex64 of shape (2, 100) for 2 images, and not logits",
    "integer_output": "returns int64 of shape (2, 100) for 2 images, and not logits",
    "tuple": "returns a tuple of 2 for 2 images, and not logits: real numbers of shape (2, 100)",
    "wrong_classes": "returns float32 of shape (2, 8) for 2 images",
    "one_row": "returns float32 of shape (100,) for 2 images",
    "squeezed": "returns float32 of shape (100,) for 1 image, and not logits",
    "gives_nan": "gives logits that are not finite",
    "detached": "returns logits that do not depend on its parameters",
    "lazy": "leaves the shape of head.weight open",
    "grows": "has last only after it has computed, or of another shape then",
    "not_saved": "changes the buffer calls while it trains, and does not save it",
    "changes_in_evaluation": "changes the buffer calls also in evaluation",
    "always_drops": "draws random numbers also in evaluation",
    "another_generator": "draws from another generator than torch's own",
    "not_copied": "cannot be copied (TypeError: cannot pickle '_thread.lock' object)",
    "more_state": "has extra state (MoreState.get_extra_state), which microbatches and ranks do not share",
    "changes_parameter": "changes its parameter head.weight while it computes",
    "freezes": "changes its parameter first.bias while it computes",
    "max_norm": "changes its parameter places.weight while it computes",
    "replaces_buffer": "puts another tensor in the place of the buffer mean while it computes",
    "seldom_random": "draws from another generator than torch's own, which is seeded for each microbatch: Python's",
    "seldom_numpy": "draws from another generator than torch's own, which is seeded for each microbatch: NumPy's",
    "own_generator": "has a random generator of its own, first.generators",
    "counts_in_attribute": "changes the attribute first.calls while it computes",
    "tensor_in_attribute": "changes the attribute seen while it computes",
    "hidden_modules": "hides a module in blocks: it would be neither trained nor saved. Use nn.ModuleList",
    "hidden_parameters": "hides a parameter in scales: it would be neither trained nor saved. Use nn.ParameterList",
    "sync_batch_norm": "has norm of nn.SyncBatchNorm, whose statistics span the ranks",
    "drawn_weights": "has other weights each time it is made: its constructor draws from another generator",
    "refers_to_self": "changes its buffers also where a copy of it computes: a function that it keeps",
    "counts_in_evaluation": "changes the attribute calls while it computes",
    "no_gradients": "computes what has no gradients: RuntimeError: When use_reentrant=True",
    "unseen_gradients": "computes with first.weight where torch.autograd.grad does not see it",
    "needs_gpu": "RuntimeError: this kernel is CUDA's alone",
    "fails": "odd_networks.py, line 518: RuntimeError: ",
    "fails_to_be_made": "ZeroDivisionError: integer division or modulo by zero",
    "no_module": "network 'no_module' is a function, and no nn.Module",
}


@pytest.fixture(autouse=True, scope="module")
def nobody(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Code is trusted by nobody's list."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        patched.setenv(TRUST_VARIABLE, "all")
        yield


def prepared(name: str, folder: Path, shards: Path, device: str = "cpu") -> PreparedRun:
    path = folder / "odd.toml"
    path.write_text(RECIPE, encoding="utf-8")
    recipe = load_training_recipe(str(path), (f"model.name={name}",))
    return prepare(recipe, folder / name, str(shards), RunOptions(device=device))


@pytest.fixture(scope="module")
def on_two_ranks(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of all runs that work, by two processes."""
    folder = tmp_path_factory.mktemp("two")
    for name in WORK:
        prepared(name, folder, shards).make_folder()
    run_ranks(_rank, 2, folder, shards)
    return folder


def _rank(rank: int, folder: Path, shards: Path) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", ADDRESS_VARIABLE: "127.0.0.1", "OMP_NUM_THREADS": "1"}
    for name in WORK:
        os.environ[FILE_VARIABLE] = str(folder / f"{name}.rendezvous")
        run(folder / name, RunOptions(shards, "cpu"))


@pytest.mark.parametrize("name", WORK)
def test_it_is_the_same_on_two_ranks_on_two_cores_and_after_an_interruption(
    name: str, shards: Path, tmp_path: Path, on_two_ranks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = prepared(name, tmp_path, shards)
    once.make_folder()
    monkeypatch.setenv("OMP_NUM_THREADS", "2")  # microbatches side by side, but for those of networks that draw
    stop = StopRequest()
    stop.after_step = 3
    with pytest.raises(Interrupted):
        run(once.run_dir, once.options, None, stop)
    run(once.run_dir, once.options)
    Run(once.run_dir).assert_same_as(Run(on_two_ranks / name))


@pytest.mark.parametrize(("name", "said"), REFUSED.items())
def test_it_is_refused_in_one_line_before_there_is_a_run(name: str, said: str, shards: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        prepared(name, tmp_path, shards)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / name).exists()


def test_what_is_no_number_is_not_taken_for_a_change(shards: Path, tmp_path: Path) -> None:
    prepared("nan_buffer", tmp_path, shards)


def test_what_needs_a_gpu_is_not_refused_where_there_is_none_for_a_job_that_will_have_one(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(contract.log, "warning", lambda text, *values: said.append(text % values))
    prepared("needs_gpu", tmp_path, shards, "cuda")
    assert "not tried before it runs on a GPU: network 'needs_gpu': " in said[0]
    with pytest.raises(ConfigError, match="not logits"):
        prepared("wrong_classes", tmp_path, shards, "cuda")


def test_a_network_without_features_is_refused_before_anything_is_compared(on_two_ranks: Path, shards: Path) -> None:
    run_dir = on_two_ranks / "shared"
    for name, overrides in (("fid", ("images=train",)), ("gan-demo", ("distance.every=100",))):
        recipe = load_recipe(name, (f"distance.features=cnn:{run_dir}", *overrides))
        with pytest.raises(ConfigError) as caught:
            prepare(recipe, on_two_ranks / "distance", str(shards))
        assert f"the network of {run_dir} has no method `features`" in str(caught.value)
