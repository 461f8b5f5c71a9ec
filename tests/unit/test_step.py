"""A step of the shipped recipes on the meta device, which computes nothing: what a GPU is asked for, and by which line;
and on the CPU, where the next batch is prepared while a step ends.

The whole of the engine's step runs, the reader included, as rank 0 of several runs it with one microbatch, or a process
alone with all those of the recipe. Two things differ from a GPU: there is no autocast for the meta device, so the
precision is fp32; and no rank sends anything.

An *operation* is whatever torch dispatches for the device below autograd, views included: a tensor of the device goes
in or comes out. What is done on the CPU alone, such as drawing random numbers, does not count.
"""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from emulated_graph import WAITS
from runs import learner_context
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import cifarscale
from cifarscale.config.load import load_training_recipe
from cifarscale.config.recipe import TrainingRecipe, stages_of
from cifarscale.data.batches import Batch
from cifarscale.data.in_memory import InMemoryReader, InMemorySplit
from cifarscale.data.manifest import Manifest
from cifarscale.data.shards import Samples
from cifarscale.distributed import all_reduce, step_values
from cifarscale.distributed.cpu_pool import CpuPool
from cifarscale.distributed.group import Group
from cifarscale.distributed.ranks import Ranks
from cifarscale.errors import DataError
from cifarscale.tasks.classifier.learner import ClassifierLearner
from cifarscale.tasks.classifier.recipe import ClassifierRecipe
from cifarscale.tasks.flow.learner import FlowLearner
from cifarscale.tasks.flow.recipe import FlowRecipe
from cifarscale.tasks.gan.learner import GanLearner
from cifarscale.tasks.gan.recipe import GanRecipe
from cifarscale.training.digest import digests_of
from cifarscale.training.engine import Engine
from cifarscale.training.learner import Learner, LearnerContext
from cifarscale.training.signals import StopRequest

META = torch.device("meta")
PACKAGE = str(Path(cifarscale.__file__).parent)
BUDGETS = {"cnn": (75, 255), "resnet": (165, 530), "dcgan": (225, 425), "dcgan-plus": (345, 650)}
"""Most operations of a step: with one microbatch, and with those of the recipe, all in one process."""
BLOCK_STEPS = 2
"""Steps that one copy from the host is for, in place of 256."""

OPTIONS = {
    "cnn, all on": "cnn model.activation=silu model.normalisation=batch model.residual=true "
    "model.attention=self_attention",
    "cnn, grouped": "cnn model.activation=leaky_relu model.normalisation=group model.attention=squeeze_excitation",
    "resnet": "resnet augmentation.resolution=24",
    "basic": "cnn model.name=residual_stages model.block=basic model.downsampling=max_pool "
    "model.attention=squeeze_excitation",
    "bottleneck": "cnn model.name=residual_stages model.downsampling=depthwise",
    "gated": "cnn model.name=residual_stages model.block=gated_depthwise model.attention=efficient_channel "
    "model.downsampling=average_pool",
    "stride": "cnn model.name=residual_stages model.block=basic model.downsampling=stride",
    "augmented": "cnn augmentation.crop_padding=4 augmentation.padding=reflect augmentation.alternating_flip=true "
    "augmentation.cutout=8 augmentation.mixup=0.4 augmentation.cutmix=1.0 label_smoothing=0.1",
    "muon": "cnn optimizer.name=muon training.gradient_clip_norm=1.0 training.ema_decay=0.9",
    "gan, residual": "dcgan model.upsampling=residual model.downsampling=residual model.spectral=true "
    "model.discriminator_normalisation=none model.minibatch=discrimination model.conditional=true",
    "gan, augmented": "dcgan model.minibatch=stddev model.generator_normalisation=group objective.name=hinge "
    "augmentation.flip=true augmentation.colour=true augmentation.translation=0.125 augmentation.cutout=0.5",
    "gan, penalties": "dcgan model.discriminator_normalisation=group objective.name=relativistic objective.r1=1 "
    "objective.r2=1",
}
"""Recipes and changes with which each option of the networks, the augmentations and the objectives is on once."""

NOT_DETERMINISTIC = (
    *("_adaptive_avg_pool2d_backward", "_adaptive_avg_pool3d_backward", "adaptive_max_pool2d_backward"),
    *("avg_pool3d_backward", "fractional_max_pool2d_backward", "fractional_max_pool3d_backward"),
    *("max_unpool2d", "max_unpool3d", "reflection_pad1d_backward", "reflection_pad2d_backward"),
    *("reflection_pad3d_backward", "upsample_linear1d_backward", "upsample_bilinear2d_backward"),
    *("upsample_bicubic2d_backward", "upsample_trilinear3d_backward", "_upsample_bilinear2d_aa_backward"),
    *("_upsample_bicubic2d_aa_backward", "nll_loss2d_forward", "_ctc_loss_backward", "_embedding_bag_dense_backward"),
    *("put_", "histc", "bincount", "median", "grid_sampler_2d_backward", "grid_sampler_3d_backward", "kthvalue"),
    *("scatter_reduce", "scatter_reduce_", "_scaled_dot_product_efficient_attention_backward"),
    *("_scaled_dot_product_flash_attention_backward",),
)
"""For which torch.use_deterministic_algorithms raises an error on a GPU: its documentation, torch 2.15."""


@dataclass(frozen=True)
class Call:
    """One operation: what it is, what it is given but for the values of tensors, and our line that asked for it."""

    name: str
    given: tuple[Any, ...]
    line: str
    is_copy: bool

    def __str__(self) -> str:
        return f"{self.name} at {self.line}"


@dataclass
class Recorder(TorchDispatchMode):
    """Records the operations of the device."""

    calls: list[Call] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = tree_leaves((args, kwargs or {}))
        name = str(function).rpartition(".")[0]
        if name in WAITS and any(map(_on_device, given)):
            raise AssertionError(f"{name} at {_our_line()} makes the CPU wait for the device")
        # torch has no shapes for fused optimizers, which return nothing.
        result = None if name in ("aten._fused_sgd_", "aten._fused_adamw_") else function(*args, **kwargs or {})
        results = tree_leaves(result)
        came = any(map(_on_device, given))
        if came or any(map(_on_device, results)):
            if came and name in ("aten._to_copy", "aten.copy_") and not any(map(_on_device, results)):
                raise AssertionError(f"{name} at {_our_line()} copies from the device")
            is_copy = name in ("aten._to_copy", "aten.copy_") and any(map(_on_host, given))
            shapes = tuple(tuple(each.shape) if isinstance(each, torch.Tensor) else each for each in given)
            self.calls.append(Call(name, shapes, _our_line(), is_copy))
        return result


def _on_device(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.device == META


def _on_host(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.device.type == "cpu" and value.dim() > 0


def _our_line() -> str:
    frame = sys._getframe(2)
    while not frame.f_code.co_filename.startswith(PACKAGE) and frame.f_back is not None:
        frame = frame.f_back
    return f"cifarscale{frame.f_code.co_filename.removeprefix(PACKAGE)}:{frame.f_lineno}"


NUM_SAMPLES = 507
"""As many as the shards have from which the manifest is."""


class _Unheard:
    """An observer that nobody listens to."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


def engine_of(recipe: TrainingRecipe, context: LearnerContext) -> tuple[Engine, Iterator[Batch]]:
    """An engine at step 0, and batches of noise for it."""
    learner: Learner
    if isinstance(recipe, ClassifierRecipe):
        learner = ClassifierLearner(recipe, context)
    elif isinstance(recipe, FlowRecipe):
        learner = FlowLearner(recipe, context)
    else:
        assert isinstance(recipe, GanRecipe)
        learner = GanLearner(recipe, context)
    noise = np.random.default_rng(0).integers(0, 256, (NUM_SAMPLES, 32, 32, 3), np.uint8)
    numbers = np.arange(NUM_SAMPLES)
    split = InMemorySplit(Samples(noise, numbers % 100, numbers), context.device)
    reader = InMemoryReader(split, recipe.seed, recipe.training.global_batch_size)
    (stage,) = stages_of(recipe)
    return Engine(stage, "", learner, reader, context, _Unheard(), StopRequest()), reader.batches(0)


def steps_of(recipe: TrainingRecipe, folder: Path, manifest: Manifest, number: int) -> list[list[Call]]:
    """The operations of some steps after the first, in which optimizers make their states."""
    engine, batches = engine_of(recipe, replace(learner_context(manifest, folder), device=META))
    steps = []
    for _ in range(1 + number):
        with Recorder() as recorder:
            engine._train_step(batches)
        steps.append(recorder.calls)
    return steps[1:]


@pytest.fixture
def _like_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch refuses on the meta device alone: fused optimizers, and to switch autocast off. And short blocks."""
    optimizers = sys.modules[torch.optim.Optimizer.__module__]
    monkeypatch.setattr(optimizers, "_get_fused_kernels_supported_devices", lambda: ["cpu", "meta"])
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    monkeypatch.setattr(step_values, "BLOCK_STEPS", BLOCK_STEPS)


@pytest.fixture
def manifest(shards: Path) -> Manifest:
    return Manifest.load(shards)


def shipped(name: str, *changes: str) -> TrainingRecipe:
    return load_training_recipe(name, ('training.precision="fp32"', *changes))


def listed(calls: list[Call]) -> str:
    """The lines that ask for most."""
    return "\n".join(f"{number:4} {call}" for call, number in Counter(map(str, calls)).most_common(40))


@pytest.mark.usefixtures("_like_a_gpu")
@pytest.mark.parametrize("name", BUDGETS)
def test_a_step_keeps_within_its_budget(name: str, manifest: Manifest, tmp_path: Path) -> None:
    for changes, most in zip((("training.microbatches=1",), ()), BUDGETS[name], strict=True):
        *_, calls = steps_of(shipped(name, *changes), tmp_path, manifest, 2)
        assert len(calls) <= most, f"{len(calls)} operations:\n{listed(calls)}"


@pytest.mark.usefixtures("_like_a_gpu")
@pytest.mark.parametrize("options", [*BUDGETS, "flow", *(each for each in OPTIONS.values() if "augment" in each)])
def test_a_block_of_steps_takes_one_copy_from_the_host(options: str, manifest: Manifest, tmp_path: Path) -> None:
    """Recording raises for what reads from the device."""
    steps = steps_of(shipped(*options.split()), tmp_path, manifest, 2 * BLOCK_STEPS)
    copies = [[call for call in calls if call.is_copy] for calls in steps]
    assert [len(each) for each in copies] == [1, 0] * 2, "\n".join(listed(each) for each in copies)


@pytest.mark.usefixtures("_like_a_gpu")
@pytest.mark.parametrize("name", BUDGETS)
def test_two_steps_are_the_same_operations_on_the_same_shapes_and_numbers(
    name: str, manifest: Manifest, tmp_path: Path
) -> None:
    _, first, _, second = steps_of(shipped(name), tmp_path, manifest, 4)
    assert [call.name for call in first] == [call.name for call in second]
    assert not [str(one) for one, other in zip(first, second, strict=True) if one.given != other.given]


@pytest.mark.usefixtures("_like_a_gpu")
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_no_option_reads_from_the_device_or_gives_other_bits_each_time(
    options: str, manifest: Manifest, tmp_path: Path
) -> None:
    """Recording raises for what reads."""
    name, *changes = options.split()
    (calls,) = steps_of(shipped(name, *changes, "training.microbatches=1"), tmp_path, manifest, 1)
    assert not [str(call) for call in calls if call.name.removeprefix("aten.") in NOT_DETERMINISTIC]


def test_what_reads_from_the_device_is_named_with_our_line() -> None:
    with pytest.raises(AssertionError, match=r"_local_scalar_dense at .*\d+ makes the CPU wait"), Recorder():
        torch.zeros((), device=META).item()


class Collectives(TorchDispatchMode):
    """Counts a rank's collectives."""

    number = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += str(function).startswith("c10d.")
        return function(*args, **kwargs or {})


@pytest.fixture
def _first_of_two() -> Iterator[None]:
    """This process is rank 0 of two, of which the other never answers."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("_first_of_two")
@pytest.mark.parametrize(
    ("name", "changes", "updates"),
    [("cnn", ("model.normalisation=batch",), 1), ("dcgan", (), 2), ("dcgan", ("discriminator_updates=2",), 3)],
)
def test_a_step_is_one_exchange_for_each_update(
    name: str, changes: tuple[str, ...], updates: int, manifest: Manifest, tmp_path: Path, monkeypatch: Any
) -> None:
    """Buffers have none of their own."""
    monkeypatch.setattr(all_reduce, "GATHERED_BYTES", 1 << 40)  # so that each is one collective
    recipe = shipped(name, "training.global_batch_size=8", *changes)
    context = replace(learner_context(manifest, tmp_path), group=Group(Ranks(0, 2)))
    engine, batches = engine_of(recipe, context)
    for _ in range(2):
        with Collectives() as collectives:
            engine._train_step(batches)
        assert collectives.number == updates


AUGMENTED = ("augmentation.crop_padding=4", "augmentation.flip=true", "augmentation.mixup=0.4")


@pytest.fixture
def context(manifest: Manifest, tmp_path: Path) -> Iterator[LearnerContext]:
    """One in which two microbatches are computed side by side, and the next batch is prepared while a step ends."""
    before = torch.get_num_threads()
    context = learner_context(manifest, tmp_path)
    yield replace(context, pool=CpuPool(one_core_each=True, num_cores=2))
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["cnn", "dcgan"])
def test_what_is_prepared_ahead_is_what_is_prepared_in_turn(name: str, context: LearnerContext) -> None:
    recipe = shipped(name, "training.global_batch_size=16", *(AUGMENTED if name == "cnn" else ()))
    found = []
    for pool in (context.pool, CpuPool(one_core_each=True, num_cores=1)):
        engine, batches = engine_of(recipe, replace(context, pool=pool))
        for _ in range(3):
            engine._train_step(batches)
        found.append(digests_of(engine.networks))
    assert found[0] == found[1]


def test_an_error_of_the_next_batch_is_raised_in_its_own_step(context: LearnerContext) -> None:
    engine, batches = engine_of(shipped("cnn", "training.global_batch_size=16"), context)

    def broken() -> Iterator[Batch]:
        yield from islice(batches, 2)
        raise DataError("a shard is damaged")

    reading = broken()
    for _ in range(2):
        engine._train_step(reading)
    assert engine._step == 2
    with pytest.raises(DataError, match="a shard is damaged"):
        engine._train_step(reading)
