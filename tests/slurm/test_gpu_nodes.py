"""Two nodes of eight GPUs, which are files: what a job is shown of them, and what is offered to fill them."""

import re
import shlex
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import Run
from slurm_jobs import Job

import cifarscale as cs
from cifarscale.distributed.device import pick_device

pytestmark = pytest.mark.slurm
NODES, GPUS = 2, 8
BASE = 'partition = "main"\ncpus_per_task = 1\ntime = "00:30:00"\nwarning_seconds = 30\ninterface = "lo"\n'
CUDA = f"gpus_per_node = {GPUS}\n{BASE}"
SIXTEEN = "global_batch_size = 32\nmicrobatches = 16"


@pytest.fixture(scope="session")
def cluster(start_cluster: Callable[..., Any]) -> Any:
    """A second one, in the place of that of the other files."""
    return start_cluster("--nodes", NODES, "--cpus", GPUS, "--gpus", GPUS)


@pytest.fixture
def profile(tmp_path: Path) -> Callable[[str], Path]:
    def profile(text: str) -> Path:
        path = tmp_path / "eight.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return profile


def sees(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


@pytest.mark.parametrize(
    ("asked", "visible"),
    [
        ("", GPUS),
        ('gpu_request = "gres"\n', GPUS),
        ('gpu_request = "gpus_per_task"\n', 1),
        ('[sbatch]\ngpu-bind = "single:1"\n', 1),
    ],
)
def test_each_rank_takes_a_gpu_of_its_own_however_they_are_asked_for(
    asked: str,
    visible: int,
    cluster: Any,
    profile: Callable[[str], Path],
    shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
    output = tmp_path / "output"
    place = {"nodes": NODES, "profile": profile(CUDA + asked), "run_dir": tmp_path / "run"}
    planned = cs.plan("resnet-large", data=shards, on_cluster=True, **place)
    told = "echo $SLURM_NODEID $SLURM_PROCID $SLURM_LOCALID $CUDA_VISIBLE_DEVICES"
    script = re.sub(r"^srun .*$", f"srun --unbuffered sh -c '{told}'", planned.script, flags=re.MULTILINE)
    script = re.sub(r"^#SBATCH --output=.*$", f"#SBATCH --output={output}", script, flags=re.MULTILINE)
    (tmp_path / "script").write_text(script, encoding="utf-8")
    cluster.sbatch("--wait", str(tmp_path / "script"))
    rows = [line.split() for line in output.read_text(encoding="utf-8").splitlines()]
    assert sorted(int(rank) for _, rank, *_ in rows) == list(range(NODES * GPUS))
    taken: Counter[tuple[str, str]] = Counter()
    for node, _, local_rank, gpus in rows:
        shown = gpus.split(",")
        assert len(shown) == visible
        sees(monkeypatch, len(shown))
        taken[node, shown[pick_device("cuda", int(local_rank)).index]] += 1
    assert taken == {(str(node), str(gpu)): 1 for node in range(NODES) for gpu in range(GPUS)}


def test_every_offer_is_a_job_that_slurm_takes(
    cluster: Any, command: Callable[..., Any], profile: Callable[[str], Path], shards: Path, tmp_path: Path
) -> None:
    done = command("submit", "demo", "--nodes", NODES, "--profile", profile(CUDA), "--data", shards)
    assert done.returncode == 1
    assert f"and {NODES} nodes x {GPUS} GPUs are {NODES * GPUS}. Nothing is queued" in done.stderr
    offers = [shlex.split(line)[1:] for line in done.stderr.splitlines() if line.startswith("  cifarscale submit ")]
    assert len(offers) == 4
    for offer in offers:
        planned = command(*offer, "--dry-run")
        assert planned.returncode == 0, (offer, planned.stderr)
        script = tmp_path / "script"
        script.write_text(planned.stdout[planned.stdout.index("#!/bin/bash") :], encoding="utf-8")
        cluster.run("sbatch", "--test-only", str(script))
    assert not cluster.run("squeue", "-h").stdout
    assert not (tmp_path / "runs").exists()


def test_the_recipe_for_them_fits_as_it_stands(
    command: Callable[..., Any], profile: Callable[[str], Path], shards: Path
) -> None:
    arguments = ("submit", "resnet-large", "--nodes", NODES, "--profile", profile(CUDA), "--data", shards)
    done = command(*arguments, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert f"{NODES * GPUS}: {GPUS} a node, on {GPUS} GPUs" in done.stdout


@pytest.mark.thorough
def test_sixteen_ranks_on_two_nodes_equal_one_process(
    submit: Callable[..., Job],
    recipe: Callable[[int], Path],
    references: Callable[[Path], Run],
    profile: Callable[[str], Path],
) -> None:
    """On CPUs: sixteen processes share the few cores that there are."""
    path = recipe(4)
    text = path.read_text(encoding="utf-8").replace("[training]", f"[model]\nwidth = 2\n[training]\n{SIXTEEN}")
    path.write_text(text, encoding="utf-8")
    job = submit(path, "--profile", profile(f"gpus_per_node = 0\ntasks_per_node = {GPUS}\n{BASE}"), "--wait")
    job.run.assert_same_as(references(path))
    assert job.run.result()["world_size"] == NODES * GPUS
