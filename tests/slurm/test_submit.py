"""Jobs on a real SLURM of two nodes: the same numbers as in one process."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from runs import Run
from slurm_jobs import ENDED, FOUR_RANKS, Job, preempt

import cifarscale as cs
from cifarscale.cli.main import main
from cifarscale.config.load import load_training_recipe
from cifarscale.errors import RunError
from cifarscale.slurm.submitted import submissions

pytestmark = pytest.mark.slurm

WIDE_NETWORK = """
import cifarscale as cs
from torch import nn

@cs.register_network("wide")
class Wide(nn.Sequential):
    class Config(cs.Section):
        width: int = 1024

    def __init__(self, config, data):
        width = config.width
        layers = (nn.Linear(192, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        super().__init__(nn.AvgPool2d(4), nn.Flatten(), *layers, nn.ReLU(), nn.Linear(width, data.num_classes))
"""
DCGAN = """
task = "gan"
[model]
generator_width = 8
discriminator_width = 8
[training]
max_steps = 20
global_batch_size = 16
microbatches = 4
log_every = 5
checkpoint_every = 10
[distance]
features = "none"
"""


@pytest.mark.parametrize("name", ["shards", pytest.param("cifar100", marks=pytest.mark.thorough)])
def test_a_training_on_two_nodes_equals_one_process_and_every_step_is_completed(
    name: str,
    submit: Callable[..., Job],
    recipe: Callable[[int], Path],
    references: Callable[..., Run],
    request: pytest.FixtureRequest,
) -> None:
    data = request.getfixturevalue(name)
    job = submit(recipe(60), "--wait", *FOUR_RANKS, data=data)
    job.run.assert_same_as(references(recipe(60), data))
    assert job.run.result()["world_size"] == 4
    assert {row["State"] for row in job.rows()} == {"COMPLETED"}
    assert len(job.rows()) > 1


def test_a_network_whose_gradients_travel_early_equals_one_process(
    submit: Callable[..., Job], command: Callable[..., Any], data: Path, tmp_path: Path
) -> None:
    """Those of its last layers, which two nodes exchange while the first ones' are computed."""
    (tmp_path / "wide.py").write_text(WIDE_NETWORK, encoding="utf-8")
    recipe = tmp_path / "wide.toml"
    text = 'task = "classifier"\nmodules = ["wide.py"]\n[model]\nname = "wide"\n[training]\nmax_steps = 10\n'
    recipe.write_text(text, encoding="utf-8")
    alone = command("train", recipe, "--data", data, "--run-dir", tmp_path / "alone")
    assert alone.returncode == 0, alone.stderr
    submit(recipe, "--wait").run.assert_same_as(Run(tmp_path / "alone"))


@pytest.mark.thorough
def test_a_dcgan_and_its_distance_equal_those_of_one_process(
    submit: Callable[..., Job],
    command: Callable[..., Any],
    references: Callable[[Path], Run],
    recipe: Callable[[int], Path],
    data: Path,
    tmp_path: Path,
) -> None:
    gan = tmp_path / "gan.toml"
    gan.write_text(DCGAN, encoding="utf-8")
    job = submit(gan, "--wait", run_dir=tmp_path / "gan")
    job.run.assert_same_as(references(gan))
    classifier = references(recipe(60)).path
    options = ("--features", f"cnn:{classifier}", "--num-samples", 600, "--data", data)
    here = command("fid", job.run.path, *options, "--against", "test", "--out", tmp_path / "here.json")
    assert here.returncode == 0, here.stderr
    settings = {
        "images": job.run.path,
        "distance.features": f"cnn:{classifier}",
        "distance.num_samples": 600,
        "distance.against": "test",
    }
    sets = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    measured = submit("fid", *sets, "--wait", run_dir=tmp_path / "fid")
    one, many = json.loads((tmp_path / "here.json").read_text()), json.loads((tmp_path / "fid/result.json").read_text())
    assert many["world_size"] == 2
    assert many["distance"] == pytest.approx(one["distance"], rel=1e-6)
    assert {row["State"] for row in measured.rows()} == {"COMPLETED"}


def test_evaluate_is_a_job_like_the_others(
    submit: Callable[..., Job], references: Callable[[Path], Run], recipe: Callable[[int], Path], tmp_path: Path
) -> None:
    trained = references(recipe(60))
    submit("evaluate", "--set", f"run={trained.path}", "--wait", run_dir=tmp_path / "evaluated")
    found = json.loads((tmp_path / "evaluated/result.json").read_text())
    assert found["top1"] == trained.result()["test"]["top1"]


@pytest.mark.thorough
@pytest.mark.parametrize("num_jobs", [4, 10])
def test_jobs_at_once_all_succeed(
    submit: Callable[..., Job], recipe: Callable[[int], Path], tmp_path: Path, num_jobs: int
) -> None:
    """The last two of four ranks, the others of one."""
    alone = tmp_path / "alone.toml"
    alone.write_text('gpus_per_node = 0\ncpus_per_task = 1\ntime = "00:10:00"\ninterface = "lo"\n')
    jobs = [
        submit(recipe(20), "--set", f"seed={seed}", *options, run_dir=tmp_path / str(seed), nodes=nodes)
        for seed in range(num_jobs)
        for nodes, options in [(1, ("--profile", alone)) if seed < num_jobs - 2 else (2, FOUR_RANKS)]
    ]
    for job in jobs:
        job.complete()
    assert len({json.dumps(job.run.metrics()) for job in jobs}) == num_jobs


def test_an_array_is_one_job_for_each_value(
    cluster: Any, command: Callable[..., Any], recipe: Callable[[int], Path], data: Path, tmp_path: Path
) -> None:
    done = command("submit", recipe(20), "--data", data, "--array", "seed=3,4", "--at-once", 2, "--wait")
    assert done.returncode == 0, done.stderr
    runs = sorted((tmp_path / "runs").iterdir())
    runs = [run for run in runs if not run.name.startswith(".")]
    assert sorted(load_training_recipe(str(run / "recipe.toml")).seed for run in runs) == [3, 4]
    ids = {submissions(run)[-1].job_id for run in runs}
    assert {job_id.partition("_")[2] for job_id in ids} == {"0", "1"}


def test_a_run_that_is_queued_or_runs_is_not_submitted_twice_and_a_complete_one_shows_its_result(
    submit: Callable[..., Job],
    command: Callable[..., Any],
    recipe: Callable[[int], Path],
    references: Callable[[Path], Run],
    idling: dict[str, str],
    data: Path,
) -> None:
    job = submit(recipe(20_000), environment=idling)
    again = ("submit", recipe(20_000), "--nodes", 2, "--data", data, "--run-dir", job.run.path)
    refused = command(*again)
    assert refused.returncode == 1
    assert job.id in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    job.wait_for_step(30)
    assert command(*again).returncode == 1
    status = command("status", job.id).stdout
    assert "RUNNING" in status
    assert command("cancel", job.id).returncode == 0
    job.cluster.wait_for_state(job.id, ENDED, 60)
    time.sleep(3)  # it got the signal by which others are warned, and does not come back
    assert job.state() == "CANCELLED"
    assert sum(row["JobID"] == job.id for row in job.cluster.sacct(job.id)) == 1
    complete = shutil.copytree(references(recipe(60)).path, job.run.path.with_name("complete"))
    shown = command("submit", recipe(60), "--nodes", 2, "--data", data, "--run-dir", complete)
    assert shown.returncode == 0
    assert "complete" in shown.stdout
    assert "test top-1" in command("runs", ".").stdout


@pytest.fixture
def refused(
    cluster: Any, data: Path, recipe: Callable[[int], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """The line by which a submit is refused, in this process; nothing is queued."""
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)

    def refused(*options: object) -> str:
        arguments = ("submit", recipe(20), "--data", data, *options)
        done = CliRunner().invoke(main, list(map(str, arguments)))
        assert done.exit_code == 1, done.output
        (line,) = done.stderr.splitlines()
        assert not cluster.run("squeue", "--noheader").stdout
        return line

    return refused


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--profile", "testclustre"), ("unknown profile 'testclustre'", "did you mean 'testcluster'?")),
        (("--nodes", 3), ("--nodes 3", "2 nodes", "partition main")),
        (
            (*FOUR_RANKS, "--nodes", 2, "--set", "training.global_batch_size=6", "--set", "training.microbatches=0"),
            ("4 ranks", "1, 2, 3"),
        ),
        (("--time", "2-00:00:00"), ("2-00:00:00", "partition main")),
        (("--time", "soon"), ("time = 'soon'", "04:00:00")),
        (("--gpus-per-node", 2), ("gpus_per_node = 2", "partition main")),
        (("--run-dir", "100%"), ("100%", "--run-dir")),
    ],
    ids=lambda value: " ".join(map(str, value)) if str(value[0]).startswith("--") else "",
)
def test_what_cannot_work_is_refused_before_it_is_queued(
    options: tuple[object, ...],
    words: tuple[str, ...],
    refused: Callable[..., str],
) -> None:
    line = refused(*options)
    assert all(word in line for word in words), line


@pytest.mark.parametrize(
    ("profile", "words"),
    [
        ('partition = "nowhere"', ("partition = 'nowhere'", "main, urgent")),
        ('cpus_per_task = 1\npartition = "main"\nconstraint = "a100"', ("SLURM would refuse", "profiles check")),
        ('cpus_per_task = 1\npartition = "main"\nshared_folder = "/elsewhere"', ("/elsewhere", "the nodes share")),
        ('partition = "main"\ncpus_per_task = 64', ("cpus_per_task = 64", "cores")),
        ('partitoin = "main"', ("unknown key 'partitoin'", "'partition'")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_profile_that_does_not_fit_the_cluster_is_refused_before_it_is_queued(
    profile: str,
    words: tuple[str, ...],
    refused: Callable[..., str],
    tmp_path: Path,
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(f"gpus_per_node = 0\n{profile}\n")
    line = refused("--profile", path)
    assert all(word in line for word in words), line


def test_a_time_limit_that_an_earlier_run_shows_to_be_too_short_is_refused(
    refused: Callable[..., str], recipe: Callable[[int], Path], tmp_path: Path
) -> None:
    earlier = tmp_path / "runs/small-earlier"
    earlier.mkdir(parents=True)
    shutil.copyfile(recipe(20), earlier / "recipe.toml")
    (earlier / "metrics.jsonl").write_text('{"step": 20, "images_per_second": 1.0}\n')
    line = refused("--time", "00:10:00")
    assert "20 steps take 1,280 s at 1 images a second" in line
    assert "--time" in line


def test_a_script_submits_waits_reads_and_cancels(
    cluster: Any, data: Path, recipe: Callable[[int], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    job = cs.submit(recipe(20), nodes=2, seed=1, data=data, run_dir="short")
    assert job.wait().result["world_size"] == 2
    assert job.state() == "COMPLETED"
    assert "step 20/20" in job.logs()
    assert cs.job(job.id).path.resolve() == job.path
    (long,) = cs.plan(recipe(20_000), nodes=2, data=data, array={"seed": [1]}).submit()
    assert long.state() in ("PENDING", "CONFIGURING", "RUNNING")
    with pytest.raises(TimeoutError, match=f"job {long.id} is .* after 0 s"):
        long.wait(timeout=0)
    with pytest.raises(RunError, match="already, as job"):
        cs.submit(recipe(20_000), nodes=2, seed=1, data=data)
    assert long.cancel()
    with pytest.raises(RunError, match=r"is not complete. Run: cifarscale why"):
        long.wait(timeout=480)
    assert not long.cancel()
    assert f"cifarscale submit {long.path}/recipe.toml --run-dir {long.path} --data {data}" in str(long.why())


@pytest.mark.thorough
def test_the_promise_is_verified_on_the_cluster(
    command: Callable[..., Any], recipe: Callable[[int], Path], data: Path
) -> None:
    done = command("verify", recipe(20), "--nodes", 2, "--steps", 300, "--data", data)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("bit-identical") == 4


def test_without_a_slurm_one_line_says_so(data: Path, recipe: Callable[[int], Path], tmp_path: Path) -> None:
    python = Path(sys.executable)
    done = subprocess.run(
        [python, "-m", "cifarscale", "submit", recipe(20), "--data", data, "--profile", "cpu"],
        cwd=tmp_path,
        env=os.environ | {"PATH": str(python.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: sinfo is not found")
    assert "--profile local" in done.stderr


def test_without_accounting_it_is_refused(
    refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A `sacct` as it answers where there is no slurmdbd, before the others of the path."""
    fake = tmp_path / "bin/sacct"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\necho 'Slurm accounting storage is disabled' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}{os.pathsep}{os.environ['PATH']}")
    assert "keeps no accounts" in refused()


def test_neither_a_hostile_environment_nor_a_folder_of_a_hostile_name_changes_a_job_and_no_secret_is_written(
    submit: Callable[..., Job], command: Callable[..., Any], recipe: Callable[[int], Path], tmp_path: Path
) -> None:
    """Variables of a user's, and those that a job has from within which one submits."""
    hostile = {
        "SBATCH_EXPORT": "NONE",
        "SBATCH_PARTITION": "urgent",
        "SBATCH_TIMELIMIT": "1",
        "SLURM_TIME_FORMAT": "relative",
        "SACCT_FORMAT": "JobID",
        "SQUEUE_FORMAT": "%i",
        "SLURM_RESTART_COUNT": "3",
        "SLURM_ARRAY_JOB_ID": "1",
        "SLURM_ARRAY_TASK_ID": "7",
        "SLURM_MEM_PER_CPU": "1",
        "SLURM_NTASKS": "9",
    }
    run_dir, secret = tmp_path / 'it\'s $(touch pwned) `x` "q" ;& é', "planted-0123456789"
    job = submit(recipe(20), "--wait", run_dir=run_dir, environment=hostile | {"WANDB_API_KEY": secret})
    assert job.run.result()["world_size"] == 2
    shown = job.cluster.run("scontrol", "show", "job", job.id).stdout
    assert "Partition=main" in shown
    assert "Restarts=0" in shown
    goodput = command("status", job.run.path, "--goodput", **hostile).stdout
    assert all(float(share) <= 100 for share in re.findall(r"([\d.,]+) ?%", goodput.replace(",", "")))
    assert not list(tmp_path.glob("**/pwned"))
    for path in run_dir.rglob("*"):
        assert not path.is_file() or secret.encode() not in path.read_bytes(), path
    assert (run_dir / "slurm").stat().st_mode & 0o077 == 0


def test_the_local_profile_runs_the_same_plan_here(
    command: Callable[..., Any],
    recipe: Callable[[int], Path],
    references: Callable[[Path], Run],
    data: Path,
    tmp_path: Path,
) -> None:
    done = command("submit", recipe(60), "--nodes", 2, "--profile", "local", "--data", data, "--run-dir", "run")
    assert done.returncode == 0, done.stderr
    run = Run(tmp_path / "run")
    assert run.result()["world_size"] == 2
    run.assert_same_as(references(recipe(60)))


def test_a_task_of_another_package_is_submitted(submit: Callable[..., Job], example_task: str, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text('task = "autoencoder"\n[training]\nmax_steps = 20\nglobal_batch_size = 16\n', encoding="utf-8")
    job = submit(recipe, nodes=1, environment={"PYTHONPATH": example_task})
    job.complete()
    assert job.run.result()["validation"]["error"] > 0


def test_ones_own_network_runs_on_two_nodes_as_it_was_submitted(
    submit: Callable[..., Job], command: Callable[..., Any], data: Path, tmp_path: Path
) -> None:
    """The file is broken while the job is pending, its folder renamed and deleted while it runs; it is preempted."""
    own = shutil.copytree(Path(__file__).parents[2] / "examples/mixer", tmp_path / "my networks é")
    recipe = own / "mixer.toml"
    size = ("--set", "model.depth=1", "--set", "model.width=8", "--set", "training.global_batch_size=16")
    size += (
        "--set",
        "training.max_steps=150",
        "--set",
        "training.checkpoint_every=20",
        "--set",
        "training.log_every=1",
    )
    size += ("--set", "evaluation.every=0")
    alone = command("train", recipe, "--data", data, "--run-dir", tmp_path / "alone", *size)
    assert alone.returncode == 0, alone.stderr
    job = submit(recipe, *size)
    (own / "mixer.py").write_text("def", encoding="utf-8")
    job.wait_for_step(30)
    own.rename(tmp_path / "renamed")
    job.wait_for_step(40)
    shutil.rmtree(tmp_path / "renamed")
    preempt(job.cluster, job)
    job.complete()
    job.run.assert_same_as(Run(tmp_path / "alone"))
    assert sum(row["JobID"] == job.id for row in job.cluster.sacct(job.id)) == 2
    assert re.search(r"resuming after step (\d+)", job.log())  # the step at which it was warned is saved
