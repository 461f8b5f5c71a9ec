"""`import cifarscale` in a script."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from runs import PATIENCE_S, Run

import cifarscale as cs
from cifarscale.api import training
from cifarscale.config.load import load_training_recipe
from cifarscale.errors import CifarscaleError, ConfigError, DataError, RunError
from cifarscale.training.signals import STOP_SIGNALS, StopRequest

SMALL = {"training.max_steps": 20, "training.global_batch_size": 16, "evaluation.every": 0, "training.log_every": 5}
INTERRUPTED = """
import signal

import cifarscale as cs
from cifarscale.errors import Interrupted

small = {"training.max_steps": 1000, "training.global_batch_size": 16, "training.log_every": 1, "evaluation.every": 0}

def go():
    return cs.train("cnn", set=small | {"model.width": 4}, data=DATA, nproc=NPROC, device="cpu", run_dir="run")

before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
try:
    go()
except Interrupted as stopped:
    print(stopped)
assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
print(go().result["steps"])
"""


def handlers() -> dict[signal.Signals, Any]:
    return {signum: signal.getsignal(signum) for signum in STOP_SIGNALS}


@pytest.fixture(scope="module")
def run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> cs.Run:
    """A complete run; not to be changed."""
    before = handlers()
    folder = tmp_path_factory.mktemp("trained") / "one"
    run = cs.train("cnn", set=SMALL, seed=3, data=shards, device="cpu", run_dir=folder)
    assert handlers() == before
    assert not run.was_complete
    return run


def test_a_run_is_loaded_and_used(run: cs.Run, shards: Path) -> None:
    assert run.recipe.seed == 3
    assert [line["step"] for line in run.metrics() if "loss" in line] == [5, 10, 15, 20]
    assert cs.load(run.path).result == run.result
    again = cs.train("cnn", set=SMALL, seed=3, data=shards, device="cpu", run_dir=run.path)
    assert again.result == run.result
    assert again.was_complete
    few = {"distance.allow_few_samples": True}
    values = cs.distance("test", features=f"cnn:{run.path}", set=few, data=shards)
    assert values["distance"] > 0
    evaluated = cs.evaluate(run, data=shards)
    assert evaluated["top1"] == run.result["test"]["top1"]
    assert json.loads((run.path / "evaluation-test.json").read_text()) == evaluated
    with pytest.raises(RunError, match="this needs a generator's"):
        run.generate(1)


def test_a_recipe_that_a_call_has_given_is_one_to_train(run: cs.Run, shards: Path, tmp_path: Path) -> None:
    """On two ranks, in a script without a guard around its calls."""
    changed = cs.train(run.recipe, set={"seed": 3}, data=shards, device="cpu", run_dir=run.path)
    assert changed.was_complete
    file = f"cs.train({str(run.path / 'recipe.toml')!r}, data={str(shards)!r}, device='cpu', run_dir='two', nproc=2)"
    (tmp_path / "script.py").write_text(f"import cifarscale as cs\n{file}\n")
    subprocess.run([sys.executable, "script.py"], cwd=tmp_path, check=True, timeout=PATIENCE_S)
    Run(run.path).assert_same_as(Run(tmp_path / "two"))


def test_a_classifiers_network_takes_images_as_they_are(run: cs.Run) -> None:
    pixels = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    network = run.network("cpu")
    with torch.inference_mode():
        assert torch.allclose(network(pixels), network(pixels / 255), atol=1e-4)
        assert network(pixels).shape == (4, 100)
    image = Path(__file__).parents[2] / "docs/images/yellow_striped_ring.png"
    assert run.predict(image) == run.predict([str(image)])


def test_pixels_are_predicted_as_files_are(run: cs.Run, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    expected = run.predict([tmp_path / "0.png", tmp_path / "1.png"])
    assert run.predict(pixels) == run.predict(torch.from_numpy(pixels).permute(0, 3, 1, 2)) == expected
    assert [guesses[0][0] for guesses in run.predict(pixels / 255)] == [guesses[0][0] for guesses in expected]
    assert run.predict([]) == run.predict(pixels[:0]) == []
    with pytest.raises(DataError, match=r"images of shape \(2, 8, 8, 3\) are not what this classifier takes"):
        run.predict(pixels[:, :8, :8])
    with pytest.raises(DataError, match=r"\(N, 3, H, W\)"):
        run.network()(torch.rand(2, 1, 32, 32))


def test_a_process_is_left_as_it_was(
    run: cs.Run, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also a run that was loaded by a relative path, when the folder is changed."""
    torch.manual_seed(5)
    before = torch.get_rng_state()
    cs.train("cnn", set=SMALL, data=shards, device="cpu", run_dir=tmp_path / "run")
    assert torch.equal(before, torch.get_rng_state())
    monkeypatch.chdir(run.path.parent)
    loaded = cs.load(run.path.name)
    monkeypatch.chdir(tmp_path)
    assert loaded.result == run.result


def test_a_second_training_in_one_process_is_refused(shards: Path, tmp_path: Path) -> None:
    with training._alone(), pytest.raises(RunError, match="another training is under way in this process"):
        cs.train("cnn", set=SMALL, data=shards, device="cpu", run_dir=tmp_path / "run")


def test_it_works_in_a_thread_and_beside_an_event_loop(shards: Path, tmp_path: Path) -> None:
    before = handlers()
    with ThreadPoolExecutor(1) as threads:
        options: dict[str, Any] = {"set": SMALL, "data": shards, "device": "cpu"}
        one = threads.submit(cs.train, "cnn", run_dir=tmp_path / "one", **options).result()
        two = threads.submit(cs.train, "cnn", run_dir=tmp_path / "two", nproc=2, **options).result()

    torch.set_num_threads(2)

    async def main() -> cs.Run:
        return cs.train("cnn", run_dir=tmp_path / "loop", **options)

    loop = asyncio.run(main())
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    assert handlers() == before
    for run in (two, loop):
        Run(one.path).assert_same_as(Run(run.path))


@pytest.mark.parametrize("nproc", [1, pytest.param(2, marks=pytest.mark.thorough)])
def test_ctrl_c_saves_and_raises_and_the_same_call_goes_on(nproc: int, shards: Path, tmp_path: Path) -> None:
    program = INTERRUPTED.replace("DATA", repr(str(shards))).replace("NPROC", str(nproc))
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    Run(tmp_path / "run").wait_for_step(5, process.poll)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, errors
    said, steps = output.splitlines()
    assert "the state is saved. Run the same command again to go on" in said
    assert steps == "1000"
    assert [line["step"] for line in Run(tmp_path / "run").metrics() if "loss" in line] == list(range(1, 1001))


def test_a_second_ctrl_c_does_not_end_an_interactive_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    stop = StopRequest()
    stop(signal.SIGINT, None)
    with pytest.raises(KeyboardInterrupt):
        stop(signal.SIGINT, None)


def test_values_of_python_and_texts_of_the_command_line_make_the_same_recipe(tmp_path: Path) -> None:
    from cifarscale.api.recipes import recipe_of

    values = {"optimizer.betas": (0.5, 0.9), "seed": np.int64(7), "training.learning_rate": np.float64(0.5)}
    texts = ["optimizer.betas=[0.5, 0.9]", "seed=7", "training.learning_rate=0.5"]
    assert recipe_of("cnn", values) == recipe_of("cnn", texts) == load_training_recipe("cnn", texts)
    assert recipe_of(recipe_of("cnn"), values) == recipe_of("cnn", texts)


def test_a_plan_is_made_and_run_without_a_cluster(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")
    planned = cs.plan("cnn", nodes=2, profile="cpu", set=SMALL, data=shards, array={"seed": [1, np.int64(2), 1]})
    assert planned.rows()["ranks"].startswith("2: 1 a node")
    assert planned.rows()["jobs"] == "2"
    assert "#SBATCH --nodes=2" in planned.script
    assert not planned.complete()
    assert not (tmp_path / "runs").exists()
    job = cs.submit("cnn", profile="local", set=SMALL, data=shards, run_dir="here")
    assert (job.id, job.state()) == (None, "COMPLETED")
    assert job.wait().result["steps"] == 20
    assert str(job.why()).startswith("here is complete")
    with pytest.raises(RunError, match="here was never submitted"):
        cs.job("here").cancel()
    with pytest.raises(RunError, match=r"here has no log of rank 1 yet. Run: cifarscale status here"):
        job.logs(rank=1)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: cs.train("cnn", set={"training.max_step": 1}), "unknown key 'training.max_step', did you mean"),
        (lambda: cs.train("cnn", set={"seed": 1, "seed.x": 2}), "--set 'seed.x=2': 'seed' is a value, not a section"),
        (lambda: cs.train("cnn", set={"model.width": object()}), "is no value of a recipe; valid are those of TOML"),
        (lambda: cs.train("cnn", data="synthetic", device="gpu"), "device = 'gpu' is not valid; valid are auto, cpu"),
        (lambda: cs.train("cnn", nproc=0), "cannot be split evenly over 0 ranks"),
        (lambda: cs.train("fid"), "fid is a recipe of task 'distance', which trains nothing"),
        (lambda: cs.evaluate("nowhere"), "nowhere is not a run folder"),
        (lambda: cs.sweep("fid"), "fid is a recipe of task 'distance', and this needs task = 'sweep'"),
        (lambda: cs.plan("cnn", nodes=0), "nodes = 0 is not valid; it takes at least 1"),
        (lambda: cs.plan("cnn", profile="cpu", array={"seed": []}), "array: seed has no values"),
        (lambda: cs.plan("cnn", profile="cpu", at_once=2), "--at-once 2 has no effect without --array"),
        (lambda: cs.job("nowhere"), "'nowhere' is neither a run folder .* nor a job's id"),
        (lambda: cs.load("nowhere"), "nowhere is not a run folder"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_errors_are_exceptions_with_the_text_of_the_command_line(
    call: Any, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = handlers()
    with pytest.raises(CifarscaleError, match=expected) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert handlers() == before
    assert os.listdir() in ([], ["shards"])


def test_what_a_run_is_asked_in_vain_is_one_line(run: cs.Run, shards: Path) -> None:
    with pytest.raises(ConfigError, match="count = 0 is not valid"):
        run.generate(0)
    with pytest.raises(ConfigError, match="nproc = 0 is not valid"):
        cs.evaluate(run, data=shards, nproc=0)
    with pytest.raises(ConfigError, match="split"):
        cs.evaluate(run, data=shards, split="tset")
    with pytest.raises(RunError, match="has no best trial: none has produced a result by now"):
        _ = cs.Sweep(run.path, run.recipe).best
