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
from torch import nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from cifarscale.config.recipe import AdamWConfig
from cifarscale.distributed.cpu_pool import CpuPool
from cifarscale.distributed.group import Group
from cifarscale.distributed.ranks import Ranks
from cifarscale.tasks.classifier.networks.small_filters_cnn import SmallFiltersCNN
from cifarscale.training.microbatches import Microbatches
from cifarscale.training.optimisation import build_optimizer

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="this torch has no gloo"),
]


@pytest.mark.parametrize(("world_size", "num_microbatches"), [(2, 0), (2, 4), (4, 0), (4, 4)])
def test_gradients_are_those_of_distributed_data_parallel(
    world_size: int, num_microbatches: int, tmp_path: Path
) -> None:
    run_ranks(_rank, world_size, world_size, num_microbatches, str(tmp_path / "store"))


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
        microbatches.exchange("net", gradients)
        microbatches.end_step()
        optimizer.step()
    assert "torch._dynamo" not in sys.modules, "it would take a third of the time to the first step"
    network.load_state_dict(reference.state_dict())
    gradients, _ = microbatches.gradients("net", _loss, mine, 0)
    microbatches.exchange("net", gradients)
    parallel = DistributedDataParallel(reference)
    functional.cross_entropy(parallel(torch.cat([x for x, _ in mine])), torch.cat([y for _, y in mine])).backward()
    for ours, theirs in zip(network.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)
    dist.destroy_process_group()
