"""GlobalBatchNorm2d on microbatches of a batch, in real processes, against BatchNorm2d on the whole of it in one."""

from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from processes import run_ranks
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from cifarscale.tasks.classifier.networks.small_filters_cnn import SmallFiltersCNN
from cifarscale.training.norm_layers import GlobalBatchNorm2d, average_over_batches, reset_statistics

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="this torch has no gloo"),
]

CHANNELS = 5
MICROBATCHES = {2: [(4, 4), (1, 7), (0, 8)], 3: [(3, 3, 3), (5, 1, 3), (4, 0, 5)]}
"""By number of ranks: how many samples of the batch each rank holds."""


@pytest.mark.parametrize("world_size", [2, 3])
def test_microbatches_give_what_the_whole_batch_gives(world_size: int, tmp_path: Path) -> None:
    """All properties in one start of the processes, which takes most of the time."""
    run_ranks(_rank, world_size, world_size, str(tmp_path / "store"))


def _rank(rank: int, world_size: int, store: str) -> None:
    torch.set_num_threads(1)
    # A file as the store needs no port. The timeout is for ranks that disagree on whether to communicate.
    file_store, timeout = dist.FileStore(store, world_size), timedelta(seconds=60)
    dist.init_process_group("gloo", store=file_store, rank=rank, world_size=world_size, timeout=timeout)
    for sizes in MICROBATCHES[world_size]:
        _matches(rank, sizes)
        _matches_in_half_precision(rank, sizes)
        _is_stable(rank, sizes)
        _averages(rank, sizes)
    _evaluates_without_the_other_ranks(rank)
    _trains_as_one_process_does(rank, world_size)
    dist.destroy_process_group()


def _matches(rank: int, sizes: tuple[int, ...]) -> None:
    """Output, gradients and running statistics, over two steps."""
    torch.manual_seed(0)
    reference, layer = _pair()
    for _ in range(2):
        x = torch.randn(sum(sizes), CHANNELS, 4, 6) * 3 + 2
        weights = torch.randn_like(x)  # makes the loss depend on every element in its own way
        whole = x.clone().requires_grad_()
        expected = reference(whole)
        reference.zero_grad()
        (expected * weights).sum().backward()

        part = x.split(sizes)[rank].clone().requires_grad_()
        output = layer(part)
        layer.zero_grad()
        (output * weights.split(sizes)[rank]).sum().backward()

        _close(output, expected.split(sizes)[rank])
        assert part.grad is not None
        assert whole.grad is not None
        _close(part.grad, whole.grad.split(sizes)[rank])
        for parameter, of_reference in zip(layer.parameters(), reference.parameters(), strict=True):
            assert parameter.grad is not None
            assert of_reference.grad is not None
            dist.all_reduce(parameter.grad)
            _close(parameter.grad, of_reference.grad, atol=2e-5)  # a sum of some hundred elements
    _same_state(layer, reference)


def _matches_in_half_precision(rank: int, sizes: tuple[int, ...]) -> None:
    """What autocast hands over is normalised with float32 statistics, and handed on in its own type."""
    torch.manual_seed(1)
    reference, layer = _pair()
    x = torch.randn(sum(sizes), CHANNELS, 4, 6).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = layer(x.split(sizes)[rank])
    assert output.dtype == torch.bfloat16
    expected = reference(x.float()).bfloat16().split(sizes)[rank]
    torch.testing.assert_close(output, expected)
    _same_state(layer, reference)


def _is_stable(rank: int, sizes: tuple[int, ...]) -> None:
    """A mean of ten thousand times the deviation leaves the variance right; E[x^2] - E[x]^2 would not."""
    torch.manual_seed(2)
    layer = GlobalBatchNorm2d(CHANNELS)
    x = torch.randn(sum(sizes), CHANNELS, 4, 6) + 10_000
    layer(x.split(sizes)[rank])
    expected = nn.BatchNorm2d(CHANNELS).double()
    expected(x.double())
    assert layer.running_var is not None
    assert expected.running_var is not None
    _close(layer.running_var, expected.running_var.float(), atol=1e-5)


def _averages(rank: int, sizes: tuple[int, ...]) -> None:
    """Plain means over batches, as for the statistics of averaged weights."""
    torch.manual_seed(4)
    reference, layer = _pair()
    average_over_batches([layer])
    reset_statistics(layer)
    reference.momentum = None
    reference.reset_running_stats()
    for _ in range(3):
        x = torch.randn(sum(sizes), CHANNELS, 4, 6) * 3 + 2
        reference(x)
        layer(x.split(sizes)[rank])
    _same_state(layer, reference)


def _evaluates_without_the_other_ranks(rank: int) -> None:
    """Evaluation communicates nothing, so that ranks may evaluate different numbers of batches."""
    reference, layer = _pair()
    for _ in range(rank):
        x = torch.randn(2, CHANNELS, 4, 6)
        assert torch.equal(layer.eval()(x), reference.eval()(x))


def _trains_as_one_process_does(rank: int, world_size: int) -> None:
    """The layer inside a network under DistributedDataParallel: after three steps, the weights of one process."""
    torch.manual_seed(3)
    reference = SmallFiltersCNN(normalisation="batch")
    model = SmallFiltersCNN(normalisation="sync_batch")
    model.load_state_dict(reference.state_dict())
    parallel = DistributedDataParallel(model)
    for _ in range(3):
        images, labels = torch.randn(4 * world_size, 3, 32, 32), torch.randint(100, (4 * world_size,))
        _step(reference, images, labels)
        _step(parallel, images.chunk(world_size)[rank], labels.chunk(world_size)[rank])
    _same_state(model, reference, atol=1e-5)


def _step(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    model.zero_grad()
    functional.cross_entropy(model(images), labels).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter -= 0.1 * parameter.grad


def _pair() -> tuple[nn.BatchNorm2d, GlobalBatchNorm2d]:
    """The two layers with the same random weights."""
    reference, layer = nn.BatchNorm2d(CHANNELS), GlobalBatchNorm2d(CHANNELS)
    nn.init.normal_(reference.weight)
    nn.init.normal_(reference.bias)
    layer.load_state_dict(reference.state_dict())
    return reference, layer


def _same_state(a: nn.Module, b: nn.Module, atol: float = 1e-6) -> None:
    for key, value in a.state_dict().items():
        _close(value, b.state_dict()[key], atol)


def _close(actual: Tensor, expected: Tensor, atol: float = 2e-6) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=atol)
