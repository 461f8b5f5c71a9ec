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
from cifarscale.distributed.group import Group, _leave_at_once
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


class _Large(nn.Module):
    """Four layers of 4 MiB each; the third is left out, so that its gradient is zero and no backward pass finds it."""

    def __init__(self, dropout: float = 0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(1024, 1024, bias=False) for _ in range(4))
        self.norm, self.dropout = nn.BatchNorm1d(1024), nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i in (0, 1, 3):
            x = self.layers[i](self.norm(self.dropout(x)).relu())
        return x


def _large(network: nn.Module, ranks: Ranks, num_cores: int) -> Microbatches:
    return Microbatches({"net": network}, 8, Group(ranks), CpuPool(one_core_each=True, num_cores=num_cores))


def _large_step(microbatches: Microbatches, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    images, labels = torch.randn(32, 1024, generator=generator), torch.randint(1024, (32,), generator=generator)
    microbatches.begin_step()
    mine = [(images[number::8], labels[number::8]) for number in microbatches.numbers]
    gradients, _ = microbatches.gradients("net", _loss, mine, step)
    microbatches.exchange("net", gradients, ends_step=True)


@pytest.mark.parametrize(
    ("world_size", "num_cores", "dropout"),
    [(2, 2, 0.0), (3, 1, 0.0), (4, 1, 0.5), (8, 2, 0.0), pytest.param(5, 2, 0.5, marks=pytest.mark.thorough)],
)
def test_a_large_network_has_the_bits_of_one_process(
    world_size: int, num_cores: int, dropout: float, tmp_path: Path
) -> None:
    run_ranks(_compare_with_alone, world_size, world_size, num_cores, dropout, str(tmp_path / "store"))


def _compare_with_alone(rank: int, world_size: int, num_cores: int, dropout: float, store: str) -> None:
    _meet(rank, world_size, store)
    network, alone = _Large(dropout), _Large(dropout)
    # Ranks of several cores and several microbatches compute these side by side, and others in turn.
    ours, theirs = _large(network, _of_nodes(rank, world_size), num_cores), _large(alone, Ranks(), 1)
    for step in range(3):
        _large_step(ours, step)
        _large_step(theirs, step)
        for mine, other in zip(network.parameters(), alone.parameters(), strict=True):
            assert mine.grad is not None
            assert other.grad is not None
            assert torch.equal(mine.grad, other.grad)
            for parameter in (mine, other):
                parameter.data -= 0.1 * parameter.grad  # type: ignore[operator]
        for mine, other in zip(network.buffers(), alone.buffers(), strict=True):
            assert torch.equal(mine, other)
    dist.destroy_process_group()


def test_the_last_layers_are_exchanged_before_the_first_have_gradients(tmp_path: Path) -> None:
    run_ranks(_wait_for_the_last_layer, 2, str(tmp_path / "store"))


def _wait_for_the_last_layer(rank: int, store: str) -> None:
    _meet(rank, 2, store)
    network = nn.Sequential(*(nn.Linear(1024, 1024, bias=False) for _ in range(3)))
    microbatches = _large(network, _of_nodes(rank, 2), 1)
    ended: list[int] = []

    def look(_: torch.Tensor) -> None:
        ended.append(len([each.result(60) for each in microbatches._overlaps["net"]._started]))

    next(network.parameters()).register_hook(look)  # type: ignore[no-untyped-call]
    for step in range(2):
        _large_step(microbatches, step)
    assert ended == [0, 0, 0, 2] * 2  # a rank has four microbatches, and the last one starts the exchange of two layers
    dist.destroy_process_group()


def test_an_error_in_a_backward_pass_ends_every_rank(tmp_path: Path) -> None:
    run_ranks(_fail, 2, str(tmp_path / "store"))


def _fail(rank: int, store: str) -> None:
    _meet(rank, 2, store)
    network = _Large()
    microbatches = _large(network, _of_nodes(rank, 2), 1)
    _large_step(microbatches, 0)
    if rank == 1:
        network.layers[0].weight.register_hook(lambda _: 1 / 0)  # type: ignore[union-attr,operator]
    with pytest.raises(ZeroDivisionError if rank else RuntimeError):
        _large_step(microbatches, 1)
    _leave_at_once(on_gpu=False)


def _of_nodes(rank: int, world_size: int) -> Ranks:
    """As if each were on a node of its own."""
    return Ranks(rank, world_size, 0, on_one_node=False)


def _meet(rank: int, world_size: int, store: str) -> None:
    torch.set_num_threads(1)
    file_store, timeout = dist.FileStore(store, world_size), timedelta(seconds=60)
    dist.init_process_group("gloo", store=file_store, rank=rank, world_size=world_size, timeout=timeout)


def _loss(name: str, networks: Mapping[str, nn.Module], part: Any, step: int) -> tuple[torch.Tensor, tuple[Any, ...]]:
    value = functional.cross_entropy(networks[name](part[0]), part[1])
    return value, (value,)


def _rank(rank: int, world_size: int, num_microbatches: int, store: str) -> None:
    _meet(rank, world_size, store)
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
