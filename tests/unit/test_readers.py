"""The readers: one sequence of samples, whatever the number of ranks and workers, each sample once an epoch."""

from collections.abc import Callable, Iterator
from contextlib import closing
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from cifarscale.config.recipe import DataConfig, TrainingConfig
from cifarscale.data.batches import Batch, Reader
from cifarscale.data.dataset import Dataset
from cifarscale.data.in_memory import InMemoryReader, InMemorySplit
from cifarscale.data.manifest import Manifest
from cifarscale.data.order import validation_ids
from cifarscale.data.shards import read_split, write_shards
from cifarscale.data.source import Source
from cifarscale.data.streaming import StreamedSplit, StreamingReader
from cifarscale.data.synthetic import synthetic_source
from cifarscale.distributed.group import Group
from cifarscale.distributed.ranks import Ranks
from cifarscale.errors import ConfigError, DataError
from cifarscale.tasks.classifier.recipe import ClassifierRecipe

CPU = torch.device("cpu")
BATCH = 96
"""Divisible by 1, 2, 3 and 4 ranks of 1 and 2 workers; 507 samples are not a multiple of it."""
EPOCHS = 3
STEPS = -(-EPOCHS * 507 // BATCH)
SEED = 5

READERS = [
    pytest.param(kind, world_size, num_workers, id=f"{kind}-{world_size}-ranks-{num_workers}-workers")
    for kind, workers in (("in_memory", [0]), ("streaming", [0, 2]))
    for world_size in (1, 2, 3, 4)
    for num_workers in workers
]

Open = Callable[..., Reader]
Ids = NDArray[np.int64]


@pytest.fixture(scope="module")
def open_reader(shards: Path) -> Open:
    """Opens one rank's reader of the training split."""
    manifest = Manifest.load(shards)
    split = InMemorySplit(read_split(shards, manifest, "train"))

    def make(
        kind: str,
        ranks: Ranks = Ranks(),
        num_workers: int = 0,
        *,
        seed: int = SEED,
        batch: int = BATCH,
        num_microbatches: int = 0,
    ) -> Reader:
        if kind == "in_memory":
            return InMemoryReader(split, seed, batch, ranks, num_microbatches)
        config = DataConfig(reader="streaming", canonical_partitions=8, shuffle_buffer=32)
        return StreamingReader(
            shards, manifest.split("train"), seed, batch, config, ranks, num_workers, num_microbatches
        )

    return make


def take(reader: Reader, num_steps: int, first_step: int = 0) -> Iterator[Batch]:
    """The batches of some steps; the reader's workers end with the last one."""
    with closing(reader.batches(first_step)) as batches:
        yield from islice(batches, num_steps)


def ids_of(open_rank: Callable[[Ranks], Reader], world_size: int, num_steps: int, first_step: int = 0) -> Ids:
    """Ids by (step, position in the global batch) from all ranks; -1 where no rank delivers."""
    ids = np.full((num_steps, BATCH), -1)
    for rank in range(world_size):
        for step, batch in enumerate(take(open_rank(Ranks(rank, world_size)), num_steps, first_step)):
            assert (ids[step, batch.positions] == -1).all()
            ids[step, batch.positions] = batch.ids
    return ids


@pytest.fixture(scope="module")
def sequence(open_reader: Open) -> Callable[[str], Ids]:
    """The ids that one process reads."""
    return cache(lambda kind: ids_of(lambda ranks: open_reader(kind, ranks), 1, STEPS))


@pytest.mark.parametrize(("kind", "world_size", "num_workers"), READERS)
def test_all_ranks_and_workers_together_read_what_one_process_reads(
    kind: str, world_size: int, num_workers: int, open_reader: Open, sequence: Callable[[str], Ids], source: Source
) -> None:
    """The same samples at the same positions of the same steps; each image and label is that of its id."""
    images, labels = source.splits[0].images, source.splits[0].fine
    expected = sequence(kind)
    for rank in range(world_size):
        for step, batch in enumerate(take(open_reader(kind, Ranks(rank, world_size), num_workers), STEPS)):
            assert list(batch.positions) == list(range(rank, BATCH, world_size))
            np.testing.assert_array_equal(batch.ids, expected[step, batch.positions])
            np.testing.assert_array_equal(batch.labels, labels[batch.ids.numpy()])
            np.testing.assert_array_equal(batch.images.permute(0, 2, 3, 1), images[batch.ids.numpy()])


@pytest.mark.parametrize(("kind", "num_workers"), [("in_memory", 0), ("streaming", 0), ("streaming", 2)])
def test_ranks_with_uneven_shares_together_read_what_one_process_reads(
    kind: str, num_workers: int, open_reader: Open, sequence: Callable[[str], Ids]
) -> None:
    ids = ids_of(lambda ranks: open_reader(kind, ranks, num_workers, num_microbatches=16), 5, 6)
    np.testing.assert_array_equal(ids, sequence(kind)[:6])


@pytest.mark.parametrize("kind", ["in_memory", "streaming"])
def test_each_sample_comes_once_an_epoch(kind: str, sequence: Callable[[str], Ids]) -> None:
    """Also where a batch straddles two epochs."""
    for epoch in sequence(kind).ravel()[: EPOCHS * 507].reshape(EPOCHS, 507):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(507))


@pytest.mark.parametrize("num_partitions", [1, 3, 16, 99, 101, 500])
def test_each_sample_comes_once_an_epoch_for_any_number_of_partitions(num_partitions: int, tmp_path: Path) -> None:
    """Also if there are more partitions than samples, and shards of different lengths."""
    entry = write_shards(synthetic_source(100, 100), tmp_path, 7, lambda _: None).split("train")
    config = DataConfig(reader="streaming", canonical_partitions=num_partitions, shuffle_buffer=8)
    batches = take(StreamingReader(tmp_path, entry, SEED, 32, config), 10)
    for epoch in torch.cat([batch.ids for batch in batches])[:300].view(3, 100):
        assert epoch.sort().values.tolist() == list(range(100))


def test_seeds_and_epochs_have_their_own_orders_within_a_shard(tmp_path: Path) -> None:
    """Where there is one shard, and so nothing but the buffer to shuffle with."""
    entry = write_shards(synthetic_source(100, 100), tmp_path, 1, lambda _: None).split("train")
    config = DataConfig(reader="streaming", canonical_partitions=1, shuffle_buffer=100)
    epochs = [
        tuple(batch.ids.tolist())
        for seed in (0, 1)
        for batch in take(StreamingReader(tmp_path, entry, seed, 100, config), 3)
    ]
    assert len(set(epochs)) == 6


@pytest.mark.parametrize("kind", ["in_memory", "streaming"])
def test_a_batch_may_be_larger_than_the_set(kind: str, open_reader: Open) -> None:
    batches = list(take(open_reader(kind, batch=1200), 2))
    for epoch in torch.cat([batch.ids for batch in batches])[:2028].view(4, 507):
        assert epoch.sort().values.tolist() == list(range(507))


@pytest.mark.parametrize("kind", ["in_memory", "streaming"])
def test_batches_are_uint8_channels_last(kind: str, open_reader: Open) -> None:
    for num_workers in (0, 2) if kind == "streaming" else (0,):
        (batch,) = take(open_reader(kind, Ranks(1, 2), num_workers), 1)
        assert (batch.images.dtype, batch.labels.dtype, batch.ids.dtype) == (torch.uint8, torch.int64, torch.int64)
        assert batch.images.shape == (BATCH // 2, 3, 32, 32)
        assert batch.images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("first_step", [1, 5, 11])
@pytest.mark.parametrize(
    ("kind", "world_size", "num_workers"),
    [("in_memory", 2, 0), ("streaming", 1, 0), ("streaming", 3, 0), ("streaming", 2, 2)],
)
def test_starting_at_a_step_is_skipping_those_before_it(
    kind: str, world_size: int, num_workers: int, first_step: int, open_reader: Open, sequence: Callable[[str], Ids]
) -> None:
    """In the first epoch, in the batch that straddles two, and after it."""
    ids = ids_of(lambda ranks: open_reader(kind, ranks, num_workers), world_size, 3, first_step)
    np.testing.assert_array_equal(ids, sequence(kind)[first_step : first_step + 3])


@pytest.mark.parametrize("kind", ["in_memory", "streaming"])
def test_seeds_and_epochs_have_their_own_orders(kind: str, open_reader: Open) -> None:
    orders = []
    for seed in (0, 1):
        ids = ids_of(lambda ranks, seed=seed: open_reader(kind, ranks, seed=seed), 1, STEPS).ravel()
        orders += [ids[:507], ids[507:1014]]
    agreements = [np.mean(a == b) for i, a in enumerate(orders) for b in orders[:i]]
    assert max(agreements) < 0.05


def test_streaming_shuffles_across_shards(sequence: Callable[[str], Ids]) -> None:
    """Each batch draws on about as many shards as there are partitions, and neighbours do not stay together."""
    ids = sequence("streaming")
    assert np.mean([len(set(batch // 32)) for batch in ids]) > 6
    assert np.mean(np.abs(np.diff(ids.ravel())) == 1) < 0.02


@pytest.mark.parametrize(("world_size", "num_workers", "needed"), [(17, 0, 17), (1, 17, 17), (5, 4, 20)])
def test_fewer_shards_than_readers_is_refused_with_the_number_needed(
    world_size: int, num_workers: int, needed: int, open_reader: Open
) -> None:
    message = rf"need at least {needed} shards, and .* has 16\. Build again with --num-shards {needed} --force"
    with pytest.raises(DataError, match=message):
        open_reader("streaming", Ranks(0, world_size), num_workers)


def test_more_workers_than_samples_in_a_batch_are_refused(open_reader: Open) -> None:
    message = r"^--num-workers 5 is more than the 4 samples .* global batch of 8\. Run with --num-workers 4 or less$"
    with pytest.raises(ConfigError, match=message):
        open_reader("streaming", Ranks(1, 2), 5, batch=8)
    (batch,) = take(open_reader("streaming", Ranks(1, 2), 4, batch=8), 1)
    assert len(batch.ids) == 4


def test_as_many_readers_as_shards_read_everything(open_reader: Open, sequence: Callable[[str], Ids]) -> None:
    ids = ids_of(lambda ranks: open_reader("streaming", ranks), 16, 2)
    np.testing.assert_array_equal(ids, sequence("streaming")[:2])


# A folder, as a recipe sees it


def recipe(**data: Any) -> ClassifierRecipe:
    return ClassifierRecipe(
        seed=SEED, data=DataConfig(dataset="synthetic", **data), training=TrainingConfig(global_batch_size=BATCH)
    )


@pytest.mark.parametrize("kind", ["in_memory", "streaming"])
def test_a_dataset_opens_the_reader_that_the_recipe_names(kind: str, shards: Path) -> None:
    wanted = recipe(reader=kind)
    data = Dataset(shards, wanted.data, CPU)
    reader = data.reader(wanted, Group(Ranks()))
    assert isinstance(reader, InMemoryReader if kind == "in_memory" else StreamingReader)
    assert isinstance(data.split("test"), InMemorySplit if kind == "in_memory" else StreamedSplit)
    assert data.split("test").num_samples == 200
    (batch,) = take(reader, 1)
    assert len(batch.ids) == BATCH


def test_a_dataset_loads_a_split_once(shards: Path) -> None:
    data = Dataset(shards, DataConfig(), CPU)
    assert data.split("train") is data.split("train")


def test_validation_samples_are_not_trained_on(shards: Path, source: Source) -> None:
    wanted = recipe(num_validation=107)
    data = Dataset(shards, wanted.data, CPU)
    training, validation = validation_ids(507, 107)
    for name, ids in (("train", training), ("validation", validation)):
        split = data.split(name)
        assert isinstance(split, InMemorySplit)
        np.testing.assert_array_equal(split.ids, ids)
        np.testing.assert_array_equal(split.images, source.splits[0].images[ids])
        np.testing.assert_array_equal(split.labels, source.splits[0].fine[ids])
    batches = take(data.reader(wanted, Group(Ranks())), 13)
    drawn = torch.cat([batch.ids for batch in batches])[:1200].view(3, 400)
    for epoch in drawn:
        np.testing.assert_array_equal(epoch.sort().values, training)
    assert data.split("test").num_samples == 200


def test_no_validation_samples_is_an_error_where_they_are_asked_for(shards: Path) -> None:
    with pytest.raises(DataError, match=r"no validation samples aside \(data\.num_validation = 0\)"):
        Dataset(shards, DataConfig(), CPU).split("validation")


@pytest.mark.parametrize("num_validation", [507, 5000])
def test_validation_samples_must_leave_some_to_train_on(shards: Path, num_validation: int) -> None:
    with pytest.raises(ConfigError, match=rf"data\.num_validation = {num_validation} leaves none of 507"):
        Dataset(shards, DataConfig(num_validation=num_validation), CPU)


def test_an_unknown_split_is_refused(shards: Path) -> None:
    with pytest.raises(DataError, match="synthetic has no split 'holdout'; there are: train, test"):
        Dataset(shards, DataConfig(), CPU).split("holdout")


def test_other_shards_than_the_recipe_was_resolved_with_are_refused(shards: Path) -> None:
    fingerprint = Manifest.load(shards).fingerprint
    Dataset(shards, DataConfig(fingerprint=fingerprint), CPU)
    with pytest.raises(
        DataError, match=f"with fingerprint {fingerprint}, .* was resolved with 0123456789abcdef"
    ) as caught:
        Dataset(shards, DataConfig(fingerprint="0123456789abcdef"), CPU)
    assert "\n" not in str(caught.value)


def test_a_folder_without_shards_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a folder of shards"):
        Dataset(tmp_path, DataConfig(), CPU)


@pytest.fixture
def damaged(shards: Path, tmp_path: Path) -> Path:
    """A copy in which one byte of a training shard and of a test shard differs."""
    for path in shards.iterdir():
        content = bytearray(path.read_bytes())
        if path.name in ("synthetic-train-000007.tar", "synthetic-test-000001.tar"):
            content[12_345] ^= 1
        (tmp_path / path.name).write_bytes(content)
    return tmp_path


@pytest.mark.parametrize("kind", ["in_memory", "streaming"])
def test_a_damaged_shard_is_refused_before_the_first_batch(kind: str, damaged: Path) -> None:
    wanted = recipe(reader=kind)
    with pytest.raises(DataError, match=r"synthetic-train-000007\.tar is damaged"):
        Dataset(damaged, wanted.data, CPU).reader(wanted, Group(Ranks()))


@pytest.mark.parametrize("kind", ["in_memory", "streaming"])
def test_a_damaged_shard_is_refused_in_evaluation(kind: str, damaged: Path) -> None:
    with pytest.raises(DataError, match=r"synthetic-test-000001\.tar is damaged"):
        list(Dataset(damaged, DataConfig(reader=kind), CPU).split("test").chunks(Ranks(), 50))


# Evaluation


@pytest.mark.parametrize("kind", ["in_memory", "streaming"])
@pytest.mark.parametrize("batch_size", [1, 33, 50, 64, 500])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_the_ranks_together_evaluate_each_sample_once(
    kind: str, batch_size: int, world_size: int, shards: Path, source: Source
) -> None:
    """Also where the chunks do not divide the split, or are fewer than the ranks; and in the same chunks."""
    split = Dataset(shards, DataConfig(reader=kind), CPU).split("test")
    alone = {tuple(chunk.rows.tolist()) for chunk in split.chunks(Ranks(), batch_size)}
    chunks = [chunk for rank in range(world_size) for chunk in split.chunks(Ranks(rank, world_size), batch_size)]
    assert {tuple(chunk.rows.tolist()) for chunk in chunks} == alone
    rows = torch.cat([chunk.rows for chunk in chunks])
    assert rows.sort().values.tolist() == list(range(split.num_samples))
    assert max(len(chunk.rows) for chunk in chunks) <= batch_size
    for chunk in chunks:
        np.testing.assert_array_equal(chunk.labels, source.splits[1].fine[chunk.rows.numpy()])
        np.testing.assert_array_equal(chunk.images.permute(0, 2, 3, 1), source.splits[1].images[chunk.rows.numpy()])


def test_a_validation_split_is_evaluated_by_its_own_rows(shards: Path) -> None:
    split = Dataset(shards, DataConfig(num_validation=101), CPU).split("validation")
    rows = torch.cat([chunk.rows for rank in range(3) for chunk in split.chunks(Ranks(rank, 3), 20)])
    assert rows.sort().values.tolist() == list(range(101))
