"""Evaluation in real processes: each sample counts once, and no figure depends on the number of ranks."""

import json
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from processes import run_ranks
from torch import nn
from torch.nn import functional as F

from cifarscale.config.load import parse_recipe
from cifarscale.data.batches import Chunk, EvaluationSplit
from cifarscale.data.in_memory import InMemorySplit
from cifarscale.data.manifest import Manifest
from cifarscale.data.normalisation import training_normalisation
from cifarscale.data.shards import read_split
from cifarscale.distributed.cpu_pool import CpuPool
from cifarscale.distributed.group import Group
from cifarscale.distributed.ranks import ADDRESS_VARIABLE, FILE_VARIABLE, Ranks
from cifarscale.errors import DistributedError, NonFiniteLossError
from cifarscale.evaluation.accuracy import Accuracy, check_ledger, evaluate_classifier
from cifarscale.launch.run import prepare, run
from cifarscale.runs.options import RunOptions
from cifarscale.tasks.load import load_classifier

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="this torch has no gloo"),
]

Function = Callable[..., Any]
"""A fixture of conftest.py that is called."""

CPU = torch.device("cpu")
READERS = ("in_memory", "streaming")
SPLITS = ("test", "validation", "train")
WORLD_SIZES = (2, 3)
OVERRIDES = (
    "training.max_steps=200",
    "training.learning_rate=3e-3",
    "model.width=8",
    "training.ema_decay=0.9",
    "evaluation.every=0",
    "evaluation.batch_size=13",
)
"""13 divides none of the splits: the last chunk is short, and no number of ranks gets equally many."""


@pytest.fixture(scope="module")
def trained(train_here: Function, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A complete run by its reader."""
    root = tmp_path_factory.mktemp("trained")
    more = {"in_memory": ("data.num_validation=57",), "streaming": ("data.reader=streaming",)}
    return {reader: train_here(root / reader, *OVERRIDES, *more[reader]) for reader in READERS}


def evaluate_run(run_dir: Path, split: str, shards: Path) -> dict[str, Any]:
    """Evaluates a run as the rank that the environment names, in a run folder beside it."""
    recipe = parse_recipe({"task": "evaluate", "run": str(run_dir), "split": split}, "evaluate")
    prepared = prepare(recipe, run_dir.with_name(f"{run_dir.name}-{split}"), str(shards), RunOptions(device="cpu"))
    prepared.make_folder()
    return run(prepared.run_dir, prepared.options)


def splits(reader: str) -> tuple[str, ...]:
    return tuple(split for split in SPLITS if reader == "in_memory" or split != "validation")


Evaluations = dict[tuple[str, str, int], dict[str, Any]]


@pytest.fixture(scope="module")
def evaluations(trained: dict[str, Any], shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Evaluations:
    """By reader, split and number of ranks."""
    jobs = [(reader, split, str(trained[reader].path)) for reader in READERS for split in splits(reader)]
    found: Evaluations = {}
    for reader, split, folder in jobs:
        found[reader, split, 1] = evaluate_run(Path(folder), split, shards)
    for world_size in WORLD_SIZES:
        output = tmp_path_factory.mktemp("evaluations")
        run_ranks(_rank, world_size, world_size, str(shards), jobs, str(output))
        for reader, split, _ in jobs:
            texts = {path.read_text() for path in output.glob(f"{reader}-{split}-*.json")}
            assert len(texts) == 1, "the ranks of one job disagree"
            found[reader, split, world_size] = json.loads(texts.pop())
    return found


def _rank(rank: int, world_size: int, shards: str, jobs: list[tuple[str, str, str]], output: str) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world_size), ADDRESS_VARIABLE: "127.0.0.1"}
    for reader, split, folder in jobs:
        os.environ[FILE_VARIABLE] = str(Path(output, f"{reader}-{split}.rendezvous"))
        result = evaluate_run(Path(folder), split, Path(shards))
        Path(output, f"{reader}-{split}-{rank}.json").write_text(json.dumps(result))


# Any number of ranks


@pytest.mark.parametrize("world_size", WORLD_SIZES)
@pytest.mark.parametrize(("reader", "split"), [(reader, split) for reader in READERS for split in splits(reader)])
def test_every_figure_is_the_same_on_any_number_of_ranks(
    reader: str, split: str, world_size: int, evaluations: Evaluations
) -> None:
    assert evaluations[reader, split, world_size] == evaluations[reader, split, 1]


def test_the_command_line_writes_the_same_bytes_on_any_number_of_ranks(
    trained: dict[str, Any], shards: Path, cifarscale: Function, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(trained["in_memory"].path, tmp_path / "run"))
    evaluate_run(folder, "validation", shards)
    path = folder / "evaluation-validation.json"
    expected = (tmp_path / "run-validation" / "result.json").read_bytes()
    ended = cifarscale("evaluate", folder, "--split", "validation", "--data", shards, "--nproc", 3)
    assert ended.returncode == 0, ended.stderr
    assert path.read_bytes() == expected
    assert str(path) in ended.stdout.replace("\n", "")


@pytest.mark.parametrize("reader", READERS)
def test_the_figures_of_a_result_are_those_of_evaluate(
    reader: str, trained: dict[str, Any], evaluations: Evaluations
) -> None:
    for split in splits(reader):
        evaluation = evaluations[reader, split, 1]
        assert trained[reader].result()[split] == {key: evaluation[key] for key in ("top1", "top5", "loss")}
        assert evaluation["step"] == 200


def test_splits_hold_what_the_recipe_says(evaluations: Evaluations, shards: Path) -> None:
    num_train = Manifest.load(shards).split("train").num_samples
    assert evaluations["in_memory", "train", 1]["samples"] == num_train - 57
    assert evaluations["in_memory", "validation", 1]["samples"] == 57
    assert evaluations["streaming", "train", 1]["samples"] == num_train


def test_figures_are_those_of_a_plain_loop(trained: dict[str, Any], evaluations: Evaluations, shards: Path) -> None:
    """One sample after the other, with the moving average of the weights; so for each class and superclass, too."""
    classifier = load_classifier(trained["in_memory"].path, CPU)
    manifest = Manifest.load(shards)
    samples = read_split(shards, manifest, "test")
    normalise = training_normalisation(manifest, CPU)
    right: dict[str, list[bool]] = defaultdict(list)
    top5, losses = [], []
    for image, label in zip(samples.images, samples.labels.tolist(), strict=True):
        with torch.no_grad():
            logits = classifier.network(normalise(torch.tensor(image).permute(2, 0, 1)[None]))[0]
        for name in ("", manifest.fine_names[label], manifest.coarse_names[manifest.coarse_of_fine[label]]):
            right[name].append(int(logits.argmax()) == label)
        top5.append(label in logits.topk(5).indices)
        losses.append(float(F.cross_entropy(logits, torch.tensor(label))))
    result = evaluations["in_memory", "test", 1]
    assert result["top1"] == pytest.approx(sum(right[""]) / 200)
    assert result["top1"] > 0.02, "a network that has learned nothing would not show a mistake"
    assert result["top5"] == pytest.approx(sum(top5) / 200)
    assert result["loss"] == pytest.approx(sum(losses) / 200, rel=1e-5)
    for kind in ("classes", "superclasses"):
        for name, value in result[kind].items():
            assert value == pytest.approx(sum(right[name]) / len(right[name])), name


# The ledger


class _Tampered:
    """A split of 20 samples in chunks, some of which are dropped, doubled or shifted."""

    num_samples = 20

    def __init__(self, tamper: Callable[[list[Chunk]], list[Chunk]] = lambda chunks: chunks) -> None:
        self._tamper = tamper

    def chunks(self, ranks: Ranks, batch_size: int) -> Iterator[Chunk]:
        rows = torch.arange(self.num_samples)
        images = torch.zeros(self.num_samples, 3, 32, 32, dtype=torch.uint8)
        whole = [Chunk(images[part], part % 10, part) for part in rows.split(batch_size)]
        yield from self._tamper(whole)


def evaluate(split: EvaluationSplit, network: nn.Module | None = None) -> Accuracy:
    torch.manual_seed(0)
    network = network or nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    pool = CpuPool(one_core_each=True, num_cores=1)
    return evaluate_classifier(network, split, lambda images: images.float(), Group(Ranks()), pool, 6, 10)


TAMPERED: dict[str, tuple[Callable[[list[Chunk]], list[Chunk]], str]] = {
    "first dropped": (lambda chunks: chunks[1:], r"^6 of 20 .* row 0, counted 0 times"),
    "last dropped": (lambda chunks: chunks[:-1], r"^2 of 20 .* row 18, counted 0 times"),
    "one doubled": (lambda chunks: [*chunks, chunks[1]], r"^6 of 20 .* row 6, counted 2 times"),
    "one in the place of another": (lambda chunks: [chunks[0], *chunks[:-1]], r"^8 of 20 .* row 0, counted 2 times"),
    "none": (lambda chunks: [], r"^20 of 20 .* row 0, counted 0 times"),
}


@pytest.mark.parametrize("how", TAMPERED)
def test_a_sample_that_is_missed_or_doubled_voids_the_figures(how: str) -> None:
    tamper, message = TAMPERED[how]
    with pytest.raises(DistributedError, match=message):
        evaluate(_Tampered(tamper))


def test_a_whole_split_passes_the_ledger_in_any_order() -> None:
    straight, backward = evaluate(_Tampered()), evaluate(_Tampered(lambda chunks: chunks[::-1]))
    assert straight.labels.tolist() == [*range(10), *range(10)]
    assert torch.equal(straight.losses, backward.losses)


@pytest.mark.parametrize("counts", [[1, 1, 0], [2, 1, 1], [1, 3, 1], [0, 2, 1]])
def test_the_ledger_is_right_only_if_each_count_is_one(counts: list[int]) -> None:
    check_ledger(torch.ones(3, dtype=torch.float64))
    with pytest.raises(DistributedError):
        check_ledger(torch.tensor(counts, dtype=torch.float64))


def test_evaluation_leaves_the_network_as_it_was(shards: Path) -> None:
    """In training or not, and with the same running statistics."""
    manifest = Manifest.load(shards)
    split = InMemorySplit(read_split(shards, manifest, "test"))
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 900, 100))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    for training in (True, False):
        network.train(training)
        evaluate(split, network)
        assert network.training == training
        assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_a_network_that_has_diverged_has_no_figures() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    nn.init.constant_(network[1].bias, float("nan"))
    with pytest.raises(NonFiniteLossError, match=r"the loss of 20 of 20 evaluated samples is not finite"):
        evaluate(_Tampered(), network)


def test_a_group_without_samples_has_no_accuracy() -> None:
    labels = torch.tensor([0, 0, 2])
    accuracy = Accuracy(labels, torch.tensor([0, 1, 2]), torch.ones(3, dtype=torch.bool), torch.zeros(3), 3)
    assert accuracy.per_group(torch.arange(4), 4) == [0.5, None, 1.0, None]
    assert accuracy.per_group(torch.tensor([1, 1, 1, 0]), 2) == [None, pytest.approx(2 / 3)]
