"""What ranks exchange in a step: the gradients of DistributedDataParallel, and nothing that a start would pay for."""

import sys
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from processes import run_ranks
from runs import run_recipe
from torch import nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from cifarscale.config.load import load_training_recipe
from cifarscale.config.recipe import AdamWConfig
from cifarscale.distributed.cpu_pool import CpuPool
from cifarscale.distributed.group import Group
from cifarscale.distributed.ranks import Ranks
from cifarscale.runs.options import RunOptions
from cifarscale.tasks.classifier.networks.small_filters_cnn import SmallFiltersCNN
from cifarscale.tasks.training import resolve
from cifarscale.training.microbatches import Microbatches
from cifarscale.training.optimisation import build_optimizer

SLOW = "it takes as long as importing torch, and a training has no use for it"
pytestmark = [
    pytest.mark.distributed,
    pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="this torch has no gloo"),
]


@pytest.mark.parametrize(
    ("world_size", "num_microbatches"),
    [(2, 0), (4, 4), *(pytest.param(*case, marks=pytest.mark.thorough) for case in ((2, 4), (4, 0)))],
)
def test_gradients_are_those_of_distributed_data_parallel(
    world_size: int, num_microbatches: int, tmp_path: Path
) -> None:
    run_ranks(_rank, world_size, world_size, num_microbatches, str(tmp_path / "store"))


@pytest.mark.parametrize("task", ["classifier", "gan"])
def test_a_training_imports_nothing_that_its_start_would_pay_for(task: str, shards: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "short.toml"
    recipe.write_text(f'task = "{task}"\n[training]\nmax_steps = 2\nglobal_batch_size = 8\n', encoding="utf-8")
    run_ranks(_whole_training, 1, recipe, shards, tmp_path / "run")


def _whole_training(rank: int, recipe: Path, shards: Path, folder: Path) -> None:
    run_recipe(resolve(load_training_recipe(str(recipe)), shards), folder, RunOptions(shards, "cpu"))
    assert "torch._dynamo" not in sys.modules, SLOW


def _loss(name: str, networks: Mapping[str, nn.Module], part: Any, step: int) -> tuple[torch.Tensor, tuple[Any, ...]]:
    value = functional.cross_entropy(networks[name](part[0]), part[1])
    return value, (value,)


def _rank(rank: int, world_size: int, num_microbatches: int, store: str) -> None:
    torch.set_num_threads(1)
    file_store, timeout = dist.FileStore(store, world_size), timedelta(seconds=60)
    dist.init_process_group("gloo", store=file_store, rank=rank, world_size=world_size, timeout=timeout)
    torch.manual_seed(0)
    network, reference = SmallFiltersCNN(), SmallFiltersCNN()
    reference.load_state_dict(network.state_dict())
    optimizer = build_optimizer(network, AdamWConfig(), 1e-3)
    images, labels = torch.randn(16, 3, 32, 32), torch.randint(100, (16,))
    microbatches = Microbatches(
        {"net": network}, num_microbatches, Group(Ranks(rank, world_size)), CpuPool(one_core_each=True, num_cores=1)
    )
    mine = [(images[i :: microbatches.total], labels[i :: microbatches.total]) for i in microbatches.numbers]
    for _ in range(2):
        microbatches.begin_step()
        gradients, _ = microbatches.gradients("net", _loss, mine, 0)
        microbatches.exchange("net", gradients, ends_step=True)
        optimizer.step()
    assert "torch._dynamo" not in sys.modules, SLOW
    network.load_state_dict(reference.state_dict())
    gradients, _ = microbatches.gradients("net", _loss, mine, 0)
    microbatches.exchange("net", gradients)
    parallel = DistributedDataParallel(reference)
    functional.cross_entropy(parallel(torch.cat([x for x, _ in mine])), torch.cat([y for _, y in mine])).backward()
    for ours, theirs in zip(network.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)
    dist.destroy_process_group()
