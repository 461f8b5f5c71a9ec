"""Features of a set of images on ranks that are threads: the same bits on any number, of which all compute some."""

from collections import Counter
from collections.abc import Callable, Iterator
from threading import get_ident
from typing import Any

import pytest
import torch

from cifarscale.config.distance import DistanceConfig
from cifarscale.data.images import ImageSet
from cifarscale.distributed.cpu_pool import CpuPool
from cifarscale.errors import DataError
from cifarscale.evaluation.distance import Collected, Measure
from cifarscale.evaluation.features import FeatureNetwork
from cifarscale.evaluation.moments import NUM_LANES

NUM_IMAGES, BATCH = 301, 5
Over = Callable[[int, Callable[..., Any]], list[Any]]


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """`CpuPool` sets torch's number of threads for the whole process; other tests get theirs back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def collect(group: Any, computed: Counter[int], fails_at: int = -1) -> Collected:
    """Features of noise by eight numbers an image, with four classes.

    Args:
        computed: takes the number of images of each thread.
        fails_at: an image that cannot be read.
    """
    pixels = torch.randint(0, 256, (NUM_IMAGES, 3, 4, 4), generator=torch.Generator().manual_seed(0))
    mix = torch.randn(48, 8, generator=torch.Generator().manual_seed(1))

    def images(rows: range) -> torch.Tensor:
        if fails_at in rows:
            raise DataError("cannot be read")
        computed[get_ident()] += len(rows)
        return pixels[rows.start : rows.stop].to(torch.uint8)

    network = FeatureNetwork("mixed", "0", "none", 8, lambda each: each.flatten(1).float() @ mix)
    pool = CpuPool(one_core_each=True, num_cores=1)
    measure = Measure(DistanceConfig(batch_size=BATCH), network, group, pool, torch.device("cpu"))
    return measure.collect(ImageSet("noise", NUM_IMAGES, images, torch.arange(NUM_IMAGES) % 4), 4)


@pytest.mark.parametrize("world_size", [2, 3, 12, 16, 20, 37, 64])
def test_every_bit_is_the_same_and_all_ranks_share_the_work(world_size: int, over_ranks: Over) -> None:
    (alone,) = over_ranks(1, lambda group: collect(group, Counter()))
    computed: Counter[int] = Counter()
    for found in over_ranks(world_size, lambda group: collect(group, computed)):
        for mine, expected in zip(
            (found.statistics, *found.by_class), (alone.statistics, *alone.by_class), strict=True
        ):
            assert torch.equal(mine.mean, expected.mean)
            assert torch.equal(mine.covariance, expected.covariance)
            assert mine.num_samples == expected.num_samples
        assert torch.equal(found.kept, alone.kept)
    num_batches = -(-NUM_IMAGES // BATCH)
    assert len(computed) == min(world_size, num_batches)
    if world_size > NUM_LANES:
        assert max(computed.values()) <= BATCH * -(-num_batches // world_size)


@pytest.mark.parametrize("world_size", [2, 20])
def test_an_image_that_cannot_be_read_is_an_error_on_every_rank(world_size: int, over_ranks: Over) -> None:
    def on_rank(group: Any) -> str:
        with pytest.raises(DataError) as caught:
            collect(group, Counter(), fails_at=98)
        return str(caught.value)

    assert over_ranks(world_size, on_rank) == ["cannot be read"] * world_size


def test_a_set_costs_two_exchanges_of_a_part_of_the_sums(over_ranks: Over) -> None:
    def on_rank(group: Any) -> int:
        collect(group, Counter())
        return int(group.sent_bytes)

    world_size, sums = 4, 5 * 8 * (8 * 8 + 8 + 1)  # bytes of all images' and each class's
    lanes = NUM_LANES // world_size
    assert max(over_ranks(world_size, on_rank)) <= 1.05 * (lanes + 1) * sums * (world_size - 1) / world_size
