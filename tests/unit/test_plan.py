"""The plan of a job, and the sbatch script that comes out of it: pure, without a SLURM."""

import shlex
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import cifarscale as cs
from cifarscale.cli.main import main
from cifarscale.config.load import load_recipe
from cifarscale.config.recipe import Recipe
from cifarscale.errors import ClusterError, ConfigError
from cifarscale.launch.run import prepare
from cifarscale.slurm.client import Partition
from cifarscale.slurm.plan import Pace, Plan, make_plan
from cifarscale.slurm.profile import Profile
from cifarscale.slurm.submission import sbatch_script
from cifarscale.sweeps.recipe import SweepRecipe

GOLDEN = Path(__file__).parent / "golden"
GPU = Profile(name="gpus", gpus_per_node=4, cpus_per_task=8)
CPU = Profile(name="cpus", gpus_per_node=0, tasks_per_node=2, cpus_per_task=1)
PARTITION = Partition("main", nodes=4, cpus=64, gpus=4, max_time_min=24 * 60)


def job(name: str, *overrides: str) -> Recipe:
    return load_recipe(name, overrides)


def test_there_is_one_rank_a_gpu() -> None:
    plan = make_plan(job("cnn", "training.microbatches=8"), GPU, nodes=2, partition=PARTITION)
    assert (plan.world_size, plan.tasks_per_node, plan.device) == (8, 4, "cuda")
    assert (plan.batch_size_per_rank, plan.microbatches_per_rank) == (8, 1)


def test_without_gpus_the_profile_says_how_many_ranks() -> None:
    plan = make_plan(job("cnn"), CPU, nodes=2, partition=PARTITION)
    assert (plan.world_size, plan.device) == (4, "cpu")
    assert make_plan(job("cnn"), CPU.model_copy(update={"tasks_per_node": 0}), 1).world_size == 1


@pytest.mark.parametrize("nodes", [1, 2, 4])
@pytest.mark.parametrize("tasks", [1, 2, 4])
def test_all_ranks_together_compute_the_global_batch(nodes: int, tasks: int) -> None:
    profile = CPU.model_copy(update={"tasks_per_node": tasks})
    plan = make_plan(job("cnn", "training.microbatches=16", "training.global_batch_size=128"), profile, nodes)
    assert plan.batch_size_per_rank is not None
    assert plan.microbatches_per_rank is not None
    assert plan.batch_size_per_rank * plan.world_size == 128
    assert plan.microbatches_per_rank * plan.world_size == 16


def test_jobs_that_train_nothing_have_no_batch() -> None:
    assert make_plan(job("fid"), CPU, 2).batch_size_per_rank is None


def test_a_sweep_has_one_task_a_node_with_all_that_is_there() -> None:
    plan = make_plan(job("sweep-cnn"), CPU, nodes=2, partition=PARTITION)
    assert (plan.world_size, plan.tasks_per_node, plan.cpus_per_task) == (2, 1, 2)
    sweep = job("sweep-cnn", "gpus_per_trial=0.5", "cpus_per_trial=8")
    assert isinstance(sweep, SweepRecipe)
    plan = make_plan(sweep, GPU, nodes=2, partition=PARTITION)
    assert (plan.gpus_per_node, plan.cpus_per_task) == (4, 32)
    for changes, at_once in (({}, 8), ({"workers_per_trial": 3}, 2), ({"max_concurrent": 3}, 3)):
        rows = sweep.model_copy(update=changes).plan_rows(plan.nodes, plan.cpus_per_task, plan.gpus_per_node)
        assert rows == {"trials": f"16, {at_once} at a time"}


@pytest.mark.parametrize(
    ("profile", "overrides", "words"),
    [
        (CPU, ("cpus_per_trial=3",), "cpus_per_trial = 3, and a node of profile cpus has 2 cores"),
        (CPU, ("gpus_per_trial=1",), "gpus_per_trial = 1, and a node of profile cpus has 0 GPUs"),
        (GPU, (), "would leave the 4 GPUs of a node of profile gpus idle"),
        (GPU, ("gpus_per_trial=2",), "a worker uses one GPU"),
        (GPU, ("gpus_per_trial=0.5", "workers_per_trial=2"), "two workers of a trial cannot share a GPU"),
        (CPU, ("workers_per_trial=8",), "workers_per_trial = 8 of 1 cores each, and 2 times a node .* room for 4"),
    ],
)
def test_trials_that_do_not_fit_a_node_are_refused(profile: Profile, overrides: tuple[str, ...], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make_plan(job("sweep-cnn", *overrides), profile, nodes=2)


def test_a_known_pace_tells_what_to_expect() -> None:
    recipe = job("cnn", "training.max_steps=10000", "training.checkpoint_every=1000", "training.global_batch_size=64")
    profile = CPU.model_copy(update={"time": "00:10:00", "warning_seconds": 60})
    plan = make_plan(recipe, profile, 2, pace=Pace(images_per_second=640, step=1000))
    assert plan.checkpoint_seconds == 100
    assert plan.hours == pytest.approx(900 / 3600)
    assert plan.attempts == 2  # 900 s of work, 540 s before each warning
    assert plan.checkpoints == 6
    assert make_plan(recipe, profile, 2).checkpoints is None


@pytest.mark.parametrize(
    ("changes", "nodes", "words"),
    [
        ({}, 5, ("--nodes 5", "4 nodes", "main")),
        ({"time": "2-00:00:00"}, 1, ("2-00:00:00", "1440 minutes", "--time")),
        ({"gpus_per_node": 8}, 1, ("gpus_per_node = 8", "4 GPUs", "--gpus-per-node")),
        ({"cpus_per_task": 32}, 1, ("4 tasks", "cpus_per_task = 32", "64 cores")),
    ],
)
def test_more_than_the_partition_has_is_refused(changes: dict[str, Any], nodes: int, words: tuple[str, ...]) -> None:
    with pytest.raises(ClusterError) as caught:
        make_plan(job("cnn"), GPU.model_copy(update=changes), nodes, PARTITION)
    assert all(word in str(caught.value) for word in words), caught.value


def test_ranks_that_cannot_share_a_batch_are_refused_with_the_numbers_that_can() -> None:
    one_a_node = CPU.model_copy(update={"tasks_per_node": 1})
    with pytest.raises(ConfigError, match="there would be 5; valid numbers of ranks: 1 to 4"):
        make_plan(job("cnn"), one_a_node, 5)
    with pytest.raises(ConfigError, match="3 ranks; valid numbers of ranks: 1, 2, 4"):
        make_plan(job("cnn", "training.microbatches=0"), one_a_node, 3)


def test_the_largest_share_is_planned_with() -> None:
    plan = make_plan(job("cnn"), CPU.model_copy(update={"tasks_per_node": 1}), 3)
    assert (plan.batch_size_per_rank, plan.microbatches_per_rank) == (32, 2)


def test_more_readers_than_shards_are_refused() -> None:
    recipe = job("cnn", "data.reader=streaming")
    with pytest.raises(
        ConfigError, match=r"4 ranks x 8 readers need at least 32 shards, and there are 16.*--num-shards"
    ):
        make_plan(recipe, CPU, 2, num_shards=16, num_workers=8)
    assert make_plan(recipe, CPU, 2, num_shards=64, num_workers=2).shards_per_reader == 8


def test_a_time_limit_shorter_than_a_checkpoint_interval_is_refused_with_one_that_fits() -> None:
    recipe = job("cnn", "training.checkpoint_every=5000")
    profile = CPU.model_copy(update={"time": "00:05:00", "warning_seconds": 120})
    with pytest.raises(ConfigError, match=r"leaves 180 s.*take 1,000 s.*training.checkpoint_every=450"):
        make_plan(recipe, profile, 1, pace=Pace(images_per_second=320))


@pytest.fixture
def script(shards: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes the script of a profile's job in some folder."""
    monkeypatch.setattr("sys.executable", "/opt/python")

    def script(profile: Profile, run_dir: str = "/shared/runs/cnn-1", nodes: int = 2) -> str:
        prepared = prepare(job("cnn", "training.microbatches=8"), Path(run_dir), str(shards))
        return sbatch_script(prepared, profile, make_plan(prepared.recipe, profile, nodes))

    return script


FULL = Profile(
    name="full",
    partition="gpu",
    account="lab",
    qos="high",
    constraint="a100&ib",
    gpus_per_node=4,
    gpu_type="a100",
    cpus_per_task=8,
    memory_gb=64,
    time="1-00:00:00",
    setup=("module load cuda",),
    container="apptainer exec --nv image.sif",
    python="python3",
    interface="ib0",
    environment={"NCCL_DEBUG": "WARN"},
    sbatch={"reservation": "class", "nice": 100},
)


@pytest.mark.parametrize("name", ["cpu", "gpu", "full"])
def test_the_script_is_as_it_was(name: str, script: Any) -> None:
    """Golden files: read the difference, and if it is meant, copy what was made over them."""
    profile = {"cpu": CPU, "gpu": GPU, "full": FULL}[name]
    assert script(profile) == (GOLDEN / f"{name}.sbatch").read_text(encoding="utf-8")


EIGHT = Profile(name="eight", gpus_per_node=8, cpus_per_task=4)
WAYS_TO_ASK: dict[str, dict[str, Any]] = {
    "gpus": {},
    "gpus, of a type": {"gpu_type": "h100"},
    "gres": {"gpu_request": "gres"},
    "gres, of a type": {"gpu_request": "gres", "gpu_type": "h100"},
    "gpus_per_task": {"gpu_request": "gpus_per_task"},
    "gpus_per_task, of a type": {"gpu_request": "gpus_per_task", "gpu_type": "h100"},
    "gpus, a task bound to the nearest": {"sbatch": {"gpu-bind": "closest"}},
    "gpus, a task bound to one, nodes alone": {"sbatch": {"gpu-bind": "single:1", "exclusive": True}},
}


def test_two_nodes_of_eight_gpus_are_asked_for_as_they_were(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each way, the lines that ask: one golden file for all."""
    monkeypatch.setattr("sys.executable", "/opt/python")
    prepared = prepare(job("resnet-large"), Path("/shared/runs/large"), str(shards))
    parts = []
    for name, changes in WAYS_TO_ASK.items():
        profile = Profile.model_validate(EIGHT.model_dump() | changes)
        lines = sbatch_script(prepared, profile, make_plan(prepared.recipe, profile, nodes=2)).splitlines()
        asking = [line for line in lines if line.startswith(("#SBATCH", "srun --", "export SRUN"))]
        parts.append("\n".join([f"# {name}", *asking]) + "\n")
    assert "\n".join(parts) == (GOLDEN / "two-nodes-of-eight-gpus.sbatch").read_text(encoding="utf-8")


def test_the_large_recipe_is_planned_as_it_was(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")  # and no SLURM
    place = {"nodes": 2, "gpus_per_node": 8, "profile": "gpu", "run_dir": "/shared/runs/large"}
    rows = cs.plan("resnet-large", data=shards, **place).rows()
    text = "".join(f"{name}: {value}\n" for name, value in rows.items())
    assert text == (GOLDEN / "resnet-large.plan").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("ranks", "each", "said"),
    [(16, 2, "2"), (12, 3, "3 at most: 11 ranks would be as fast"), (24, 2, "2 at most: 16 ranks would be as fast")],
)
def test_a_plan_tells_of_ranks_that_wait_for_others(ranks: int, each: int, said: str, shards: Path) -> None:
    planned = cs.plan("resnet-large", profile="local", data=shards)
    shape = replace(planned.shape, tasks_per_node=ranks, microbatches_per_rank=each)
    assert replace(planned, shape=shape).rows()["microbatches a rank"] == said


def test_a_sweep_on_a_node_of_its_own_asks_for_all_gpus_of_the_node(shards: Path) -> None:
    profile = EIGHT.model_copy(update={"gpu_request": "gpus_per_task"})
    prepared = prepare(job("sweep-demo", "gpus_per_trial=1"), Path("/shared/runs/sweep"), str(shards))
    script = sbatch_script(prepared, profile, make_plan(prepared.recipe, profile, nodes=2))
    assert "#SBATCH --gpus-per-task=8" in script.splitlines()
    assert "#SBATCH --ntasks-per-node=1" in script.splitlines()


HOSTILE = 'it\'s $(touch pwned) `x` "q" ;& é\u200b'


def test_the_shell_sees_hostile_names_as_text(script: Any, tmp_path: Path) -> None:
    profile = CPU.model_copy(update={"partition": HOSTILE, "account": HOSTILE, "environment": {"NAME": HOSTILE}})
    text = script(profile, str(tmp_path / HOSTILE))
    for line in text.splitlines():
        if HOSTILE[:4] in line:
            assert any(HOSTILE in word for word in shlex.split(line.removeprefix("#SBATCH ")))
    fake = text.replace("srun --unbuffered", 'printf "%s\\n" "$NAME" "$@"; true')
    done = subprocess.run(["bash", "-c", fake], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert HOSTILE in done.stdout
    assert not (tmp_path / "pwned").exists()


def test_a_secret_of_the_environment_is_not_in_the_script(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "planted-secret")
    assert "planted-secret" not in script(FULL)


def test_a_plan_is_plain() -> None:
    assert make_plan(job("fid"), CPU, 2) == Plan(2, 2, 0, 1, 240)


@pytest.fixture
def submit(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`cifarscale submit` in an empty folder of a machine without SLURM."""
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(main, ["submit", *arguments, "--data", str(shards)])


def test_a_dry_run_needs_no_slurm_and_writes_nothing(submit: Any, tmp_path: Path) -> None:
    done = submit("cnn", "--nodes", "2", "--profile", "testcluster", "--dry-run")
    assert done.exit_code == 0, done.output
    for words in ("4: 2 a node, on CPUs", "not known before a first run", "runs/cnn-", "#SBATCH --nodes=2", "srun "):
        assert words in done.output
    assert not list(tmp_path.iterdir())


def test_an_array_is_planned_as_one_run_for_each_value(submit: Any) -> None:
    done = submit("cnn", "--profile", "testcluster", "--array", "seed=1,2,2", "--dry-run")
    assert done.exit_code == 0, done.output
    assert done.output.count("runs/cnn-") >= 2
    assert "jobs" in done.output


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--array", "seed"), ("--array 'seed'", "seed=0,1,2")),
        (("--array", "seed=0,1", "--run-dir", "here"), ("--run-dir", "--array")),
        (("--at-once", "2"), ("--at-once 2", "--array")),
        (("--num-workers", "2"), ("--num-workers 2", "in_memory")),
        (("--array", "training.microbatches=4,3"), ("training.microbatches = 3", "power of two")),
        (("--profile", "nowhere"), ("unknown profile 'nowhere'", "there are: cpu, gpu, local, testcluster")),
        ((), ("sinfo is not found", "--profile local")),
    ],
    ids=lambda value: " ".join(value[:2]),
)
def test_what_has_no_effect_or_sense_is_refused_in_one_line(
    options: tuple[str, ...], words: tuple[str, ...], submit: Any
) -> None:
    done = submit("cnn", *options)
    assert done.exit_code == 1
    (line,) = done.stderr.splitlines()
    assert all(word in line for word in words), line


@pytest.mark.parametrize(("name", "key"), [("fid", "images=RUN"), ("evaluate", "run=RUN")])
def test_jobs_that_need_a_run_say_how_to_name_it(name: str, key: str, submit: Any) -> None:
    done = submit(name, "--profile", "local")
    assert done.exit_code == 1
    assert key in done.stderr
