"""Microbatches of a batch in one process: their mean is the whole batch's gradient, and its bits depend on no core."""

import copy
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cifarscale.distributed.cpu_pool import CpuPool
from cifarscale.distributed.group import Group
from cifarscale.distributed.ranks import Ranks
from cifarscale.errors import ConfigError
from cifarscale.tasks.classifier.networks.small_filters_cnn import SmallFiltersCNN
from cifarscale.training.learner import Outputs
from cifarscale.training.microbatches import Microbatches
from cifarscale.training.overlap import BUCKET_BYTES, early_buckets

BATCH = 32
Part = tuple[torch.Tensor, torch.Tensor]


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """`CpuPool` sets torch's number of threads for the whole process; other tests get theirs back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def network(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    return SmallFiltersCNN(num_classes=10, width=4, **options)


def batch() -> Part:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(BATCH, 3, 32, 32, generator=generator)
    return images, torch.randint(10, (BATCH,), generator=generator)


def cut(num_microbatches: int) -> list[Part]:
    images, labels = batch()
    return [(images[i::num_microbatches], labels[i::num_microbatches]) for i in range(num_microbatches)]


def loss(update: str, networks: Mapping[str, nn.Module], part: Part, step: int) -> tuple[torch.Tensor, Outputs]:
    logits = networks[update](part[0])
    value = F.cross_entropy(logits, part[1])
    return value, (value, logits)


def one_process(module: nn.Module, num_microbatches: int, num_cores: int = 1) -> Microbatches:
    return Microbatches(
        {"net": module}, num_microbatches, Group(Ranks()), CpuPool(one_core_each=True, num_cores=num_cores)
    )


def step(module: nn.Module, num_microbatches: int, num_cores: int = 1) -> list[Outputs]:
    """Sets the module's gradients to those of the batch, computed in microbatches. Returns: their outputs."""
    microbatches = one_process(module, num_microbatches, num_cores)
    microbatches.begin_step()
    gradients, outputs = microbatches.gradients("net", loss, cut(num_microbatches), 0)
    microbatches.exchange("net", gradients, ends_step=True)
    return outputs


@pytest.mark.parametrize("num_microbatches", [1, 2, 4, 8])
def test_gradient_of_the_microbatches_is_that_of_the_whole_batch(num_microbatches: int) -> None:
    whole, sliced = network(), network()
    images, labels = batch()
    F.cross_entropy(whole(images), labels).backward()
    outputs = step(sliced, num_microbatches)
    for mine, theirs in zip(sliced.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-6)
    assert len(outputs) == num_microbatches
    assert not any(value.requires_grad for output in outputs for value in output)


@pytest.mark.parametrize("num_cores", [2, 4])
@pytest.mark.parametrize("normalisation", ["none", "batch"])
def test_every_bit_is_the_same_on_any_number_of_cores(normalisation: str, num_cores: int) -> None:
    one, several = network(normalisation=normalisation), network(normalisation=normalisation)
    outputs, others = step(one, 4), step(several, 4, num_cores)
    for mine, theirs in zip(several.parameters(), one.parameters(), strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        assert torch.equal(mine.grad, theirs.grad)
    for (key, mine), theirs in zip(several.state_dict().items(), one.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs), key
    for output, other in zip(outputs, others, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(output, other, strict=True))


def test_buffers_after_a_step_are_the_means_over_the_microbatches() -> None:
    sliced, original = network(normalisation="batch"), network(normalisation="batch")
    step(sliced, 4)
    copies = []
    for images, _ in cut(4):
        copies.append(copy.deepcopy(original))
        copies[-1](images)
    for (name, mine), *theirs in zip(sliced.named_buffers(), *(c.buffers() for c in copies), strict=True):
        if mine.is_floating_point():
            torch.testing.assert_close(mine, torch.stack(theirs).mean(0), rtol=1e-6, atol=1e-7)
        else:
            assert mine == 1, name  # one step, however many microbatches


def test_each_step_starts_every_replica_from_the_same_buffers() -> None:
    module = network(normalisation="batch")
    microbatches = one_process(module, 4)
    for _ in range(2):
        microbatches.begin_step()
        for replica in microbatches.replicas:
            for mine, original in zip(replica["net"].buffers(), module.buffers(), strict=True):
                assert torch.equal(mine, original)
        microbatches.gradients("net", loss, cut(4), 0)
        microbatches.end_step()


def test_replicas_share_the_parameters_and_own_their_buffers() -> None:
    module = network(normalisation="batch")
    microbatches = one_process(module, 4)
    assert len(microbatches.replicas) == microbatches.local == microbatches.total == 4
    pointers = {buffer.data_ptr() for buffer in module.buffers()}
    for replica in microbatches.replicas:
        assert all(a is b for a, b in zip(replica["net"].parameters(), module.parameters(), strict=True))
        mine = {buffer.data_ptr() for buffer in replica["net"].buffers()}
        assert not mine & pointers
        pointers |= mine


def test_no_microbatches_are_one_a_rank() -> None:
    assert (one_process(network(), 0).total, one_process(network(), 0).local) == (1, 1)


@pytest.mark.parametrize("one_core_each", [True, False])
@pytest.mark.parametrize("num_cores", [1, 3])
def test_cores_return_results_in_the_order_of_the_items(one_core_each: bool, num_cores: int) -> None:
    assert CpuPool(one_core_each, num_cores).map(lambda item: item * 2, range(20)) == list(range(0, 40, 2))


@pytest.mark.parametrize("num_cores", [1, 3])
def test_cores_that_work_apart_compute_on_one_thread_each(num_cores: int) -> None:
    pool = CpuPool(one_core_each=True, num_cores=num_cores)
    assert set(pool.map(lambda _: torch.get_num_threads(), range(8))) == {1}


@pytest.mark.parametrize("num_cores", [1, 3])
def test_cores_pass_an_error_on(num_cores: int) -> None:
    with pytest.raises(ZeroDivisionError):
        CpuPool(one_core_each=True, num_cores=num_cores).map(lambda item: 1 // item, [1, 0, 2])


def test_the_calling_thread_is_one_of_those_that_compute() -> None:
    both = threading.Barrier(2, timeout=60)

    def name(_: int) -> str:
        both.wait()  # neither is free for another item before both have one
        return threading.current_thread().name

    names = CpuPool(one_core_each=True, num_cores=2).map(name, range(8))
    assert threading.current_thread().name in names
    assert len(set(names)) == 2


def test_after_an_error_no_further_item_is_taken() -> None:
    taken = []

    def fail(item: int) -> None:
        taken.append(item)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        CpuPool(one_core_each=True, num_cores=3).map(fail, range(100))
    assert len(taken) <= 3


class Drawing(nn.Module):
    """Draws from a step on, by torch's generator."""

    def __init__(self, since: int) -> None:
        super().__init__()
        self.head, self.since = nn.Linear(3072, 10), since
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        hidden = images.flatten(1)
        return self.head(F.dropout(hidden) if self.calls > self.since else hidden)


def drawn(num_cores: int, steps: int, since: int = 0) -> list[torch.Tensor]:
    """The logits of microbatches of several steps."""
    torch.manual_seed(0)
    module = Drawing(since)
    microbatches = one_process(module, 4, num_cores)
    found = []
    for number in range(steps):
        torch.manual_seed(num_cores)  # which no longer counts
        _, outputs = microbatches.gradients("net", loss, cut(4), number)
        found += [logits for _, logits in outputs]
    return found


def test_what_a_network_draws_does_not_depend_on_the_cores() -> None:
    one, two = drawn(1, 3), drawn(2, 3)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert not torch.equal(one[0], one[4])


def test_a_network_that_begins_to_draw_beside_others_is_computed_again_in_turn() -> None:
    one, two = drawn(1, 4, since=2), drawn(2, 4, since=2)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


class Constants(nn.Module):
    """Has values whose sum over the microbatches would overflow, and one that each microbatch changes."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3072, 10)
        self.register_buffer("mask", torch.tensor([torch.finfo(torch.float32).min, -1e38, 0.1, -torch.inf, torch.nan]))
        self.register_buffer("large", torch.tensor([1e308, 0.1], dtype=torch.float64))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.mask[2] = images.mean()
        return self.head(images.flatten(1))


def test_what_no_microbatch_changes_of_a_buffer_is_left_as_it_is() -> None:
    module, before = Constants(), Constants()
    step(module, 4)
    means = torch.stack([images.mean() for images, _ in cut(4)])
    before.mask[2] = ((means[0] + means[2]) + (means[1] + means[3])) / 4
    torch.testing.assert_close(
        module.state_dict(),
        before.state_dict() | {"head.weight": module.head.weight, "head.bias": module.head.bias},
        rtol=0,
        atol=0,
        equal_nan=True,
    )


class Impossible(nn.Module):
    """Changes what its gradient needs."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3072, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(images.flatten(1)).exp().add_(1)


def test_gradients_that_autograd_refuses_are_one_line() -> None:
    with pytest.raises(
        ConfigError, match="the gradients of the net cannot be computed: one of the variables"
    ) as caught:
        step(Impossible(), 4)
    assert "\n" not in str(caught.value)


def test_a_loss_that_is_no_number_is_one_line() -> None:
    def losses(*arguments: Any) -> tuple[torch.Tensor, Outputs]:
        value, _ = loss(*arguments)
        return torch.stack([value, value]), ()

    with pytest.raises(ConfigError, match=r"a loss is one number, and this one has the shape \(2,\): return its mean"):
        one_process(network(), 4).gradients("net", losses, cut(4), 0)


def test_what_the_loss_does_not_use_has_gradients_of_zero() -> None:
    module = network()
    module.unused = nn.Parameter(torch.ones(3))
    step(module, 4)
    assert torch.equal(module.unused.grad, torch.zeros(3))


@pytest.mark.parametrize(
    ("sizes", "buckets"),
    [
        ([], []),
        ([10], []),  # the first layer's are never early
        ([1, 4, 4], [[2], [1]]),
        ([4, 1, 3], [[1, 2]]),
        ([1, 1, 4, 1, 1, 3], [[4, 5], [2, 3]]),
        ([4, 4], [[1]]),
        ([1, 1, 1], []),
    ],
)
def test_what_is_exchanged_early(sizes: list[int], buckets: list[list[int]]) -> None:
    assert early_buckets([size * BUCKET_BYTES // 4 for size in sizes]) == buckets
