"""Networks that are unusual in one way each, which recipes of `test_odd_networks` name in their `modules`."""

import random
import threading
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils.checkpoint import checkpoint

import cifarscale as cs

PIXELS = 3 * 32 * 32


class Plain(nn.Module):
    """What the others differ from."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(PIXELS, 8), nn.Linear(8, num_classes)

    def hidden(self, images: Tensor) -> Tensor:
        return self.first(images.flatten(1)).relu()

    def forward(self, images: Tensor) -> Any:
        return self.head(self.hidden(images))


# Those that work


@cs.register_network("batch_norm")
class WithBatchNorm(Plain):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.norm = nn.BatchNorm1d(8)

    def hidden(self, images: Tensor) -> Tensor:
        return self.norm(super().hidden(images))


@cs.register_network("dropout")
class WithDropout(Plain):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.dropout = nn.Dropout(0.3)

    def hidden(self, images: Tensor) -> Tensor:
        return self.dropout(super().hidden(images))


@cs.register_network("noise")
class WithNoise(Plain):
    def hidden(self, images: Tensor) -> Tensor:
        hidden = super().hidden(images)
        return hidden + 0.1 * torch.randn_like(hidden) if self.training else hidden


@cs.register_network("frozen")
class WithFrozenLayer(Plain):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.first.requires_grad_(False)
        self.places = nn.Parameter(torch.arange(8), requires_grad=False)

    def hidden(self, images: Tensor) -> Tensor:
        return super().hidden(images)[:, self.places]


@cs.register_network("unused")
class WithUnusedLayer(Plain):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.unused = nn.Linear(8, 8)


@cs.register_network("sometimes_unused")
class WithSometimesUnusedLayer(Plain):
    """A layer that only some microbatches use."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.sometimes = nn.Linear(8, 8)

    def hidden(self, images: Tensor) -> Tensor:
        hidden = super().hidden(images)
        return self.sometimes(hidden) if images[0, 0, 0, 0] > 0 else hidden


@cs.register_network("integer_buffer")
class WithIntegerBuffer(Plain):
    """Remembers what the microbatch looked like, and computes with it."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.register_buffer("counts", torch.zeros(8, dtype=torch.int64))
        self.register_buffer("seen", torch.zeros(8, dtype=torch.bool))

    def hidden(self, images: Tensor) -> Tensor:
        hidden = super().hidden(images)
        if self.training:
            self.counts += (hidden > 0).sum(0)
            self.seen |= hidden[0] > 0.5
        return hidden * (1 + self.counts.float().log1p()) + self.seen


@cs.register_network("shared")
class WithSharedParameters(Plain):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.one, self.other = nn.Linear(8, 8), nn.Linear(8, 8)
        self.other.weight = self.one.weight
        self.again = self.one

    def hidden(self, images: Tensor) -> Tensor:
        return self.again(self.other(self.one(super().hidden(images))))


@cs.register_network("float64")
class WithFloat64(Plain):
    """Both kinds of parameters, and a buffer."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.head.double()
        self.register_buffer("mean", torch.zeros(8, dtype=torch.float64))

    def hidden(self, images: Tensor) -> Tensor:
        hidden = super().hidden(images).double()
        if self.training:
            self.mean.lerp_(hidden.detach().mean(0), 0.1)
        return hidden - self.mean


@cs.register_network("bfloat16")
class InBfloat16(Plain):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.bfloat16()

    def hidden(self, images: Tensor) -> Tensor:
        return super().hidden(images.bfloat16())


@cs.register_network("five_dimensions")
class WithFiveDimensions(Plain):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.scale = nn.Parameter(torch.ones(1, 1, 1, 1, 8))

    def hidden(self, images: Tensor) -> Tensor:
        return super().hidden(images) * self.scale.flatten()


@cs.register_network("spectral")
class WithSpectralNorm(Plain):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.head = spectral_norm(self.head)


@cs.register_network("mask")
class WithMask(Plain):
    """Has constants whose sum over the microbatches would overflow, beside a mean that changes."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.register_buffer("mask", torch.tensor([torch.finfo(torch.float32).min] * 2 + [0.1] * 6))

    def hidden(self, images: Tensor) -> Tensor:
        hidden = super().hidden(images)
        if self.training:
            self.mask[2:].lerp_(hidden.detach().mean(0)[2:], 0.1)
        return hidden.where(self.mask.isfinite(), hidden * 0) + self.mask.clamp(min=-1)


@cs.register_network("begins_to_draw")
class BeginsToDraw(Plain):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def hidden(self, images: Tensor) -> Tensor:
        self.calls += self.training
        return F.dropout(super().hidden(images), 0.3, self.training and bool(self.calls > 2))


@cs.register_network("nan_buffer")
class WithNanBuffer(Plain):
    """And with attributes that change and are no state, modules in lists that are registered, or have no state."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.register_buffer("last", torch.full((), torch.nan))
        self.register_buffer("unsaved", torch.full((), torch.nan), persistent=False)
        self.layers, self.relu, self.shown = [self.first, self.head], [nn.ReLU()], None

    def hidden(self, images: Tensor) -> Tensor:
        self.shown = super().hidden(images).detach()
        return self.relu[0](super().hidden(images))


# Those that are refused


@cs.register_network("no_parameters")
class NoParameters(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, : self.num_classes]


@cs.register_network("all_frozen")
class AllFrozen(Plain):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.requires_grad_(False)


@cs.register_network("half")
class InHalf(Plain):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.half()


@cs.register_network("complex_parameter")
class WithComplexParameter(Plain):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.turn = nn.Parameter(torch.ones(8, dtype=torch.complex64))


@cs.register_network("complex_output")
class ComplexOutput(Plain):
    def forward(self, images: Tensor) -> Any:
        return torch.fft.fft(super().forward(images))


@cs.register_network("integer_output")
class IntegerOutput(Plain):
    def forward(self, images: Tensor) -> Any:
        return super().forward(images).long()


@cs.register_network("tuple")
class ReturnsTuple(Plain):
    def forward(self, images: Tensor) -> Any:
        hidden = self.hidden(images)
        return self.head(hidden), hidden


@cs.register_network("wrong_classes")
class WrongClasses(Plain):
    def forward(self, images: Tensor) -> Any:
        return self.hidden(images)


@cs.register_network("one_row")
class OneRow(Plain):
    def forward(self, images: Tensor) -> Any:
        return super().forward(images).mean(0)


@cs.register_network("squeezed")
class Squeezed(Plain):
    """Loses a dimension with the last image of a split."""

    def forward(self, images: Tensor) -> Any:
        return super().forward(images).squeeze()


@cs.register_network("gives_nan")
class GivesNan(Plain):
    def forward(self, images: Tensor) -> Any:
        return super().forward(images).sub(1e6).log()


@cs.register_network("detached")
class Detached(Plain):
    def forward(self, images: Tensor) -> Any:
        return super().forward(images).detach()


@cs.register_network("lazy")
class Lazy(Plain):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.head = nn.LazyLinear(num_classes)


@cs.register_network("grows")
class Grows(Plain):
    """Has a buffer of another size with each size of a batch."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.register_buffer("last", torch.zeros(0, 8))

    def hidden(self, images: Tensor) -> Tensor:
        self.last = super().hidden(images).detach()
        return super().hidden(images)


@cs.register_network("not_saved")
class NotSaved(Plain):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.register_buffer("calls", torch.zeros(()), persistent=False)

    def hidden(self, images: Tensor) -> Tensor:
        self.calls += self.training
        return super().hidden(images) * self.calls


@cs.register_network("changes_in_evaluation")
class ChangesInEvaluation(Plain):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.register_buffer("calls", torch.zeros(()))

    def hidden(self, images: Tensor) -> Tensor:
        self.calls += 1
        return super().hidden(images)


@cs.register_network("always_drops")
class AlwaysDrops(Plain):
    def hidden(self, images: Tensor) -> Tensor:
        return F.dropout(super().hidden(images))


@cs.register_network("another_generator")
class AnotherGenerator(Plain):
    def hidden(self, images: Tensor) -> Tensor:
        return super().hidden(images) * random.random()


@cs.register_network("not_copied")
class NotCopied(Plain):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.lock = threading.Lock()


@cs.register_network("more_state")
class MoreState(Plain):
    def get_extra_state(self) -> Any:
        return "words"

    def set_extra_state(self, state: Any) -> None:
        pass


@cs.register_network("changes_parameter")
class ChangesParameter(Plain):
    def hidden(self, images: Tensor) -> Tensor:
        self.head.weight.data.mul_(0.99)
        return super().hidden(images)


@cs.register_network("freezes")
class Freezes(Plain):
    def hidden(self, images: Tensor) -> Tensor:
        self.first.bias.requires_grad_(False)
        return super().hidden(images)


@cs.register_network("max_norm")
class MaxNorm(Plain):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.places = nn.Embedding(8, 8, max_norm=0.1)

    def hidden(self, images: Tensor) -> Tensor:
        return super().hidden(images) + self.places(torch.arange(len(images)) % 8)


@cs.register_network("replaces_buffer")
class ReplacesBuffer(Plain):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.register_buffer("mean", torch.zeros(8))

    def hidden(self, images: Tensor) -> Tensor:
        hidden = super().hidden(images)
        if self.training:
            self.mean = self.mean.lerp(hidden.detach().mean(0), 0.1)
        return hidden - self.mean


@cs.register_network("seldom_random")
class SeldomRandom(Plain):
    def hidden(self, images: Tensor) -> Tensor:
        return super().hidden(images) * (random.random() > 1e-9)


@cs.register_network("seldom_numpy")
class SeldomNumpy(Plain):
    """Draws from NumPy's generator, and only in the backward pass."""

    def hidden(self, images: Tensor) -> Tensor:
        hidden = super().hidden(images)
        if self.training:
            hidden.register_hook(lambda gradient: gradient * (np.random.random() > 1e-9))
        return hidden


@cs.register_network("own_generator")
class OwnGenerator(Plain):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.first.generators = [torch.Generator()]


@cs.register_network("counts_in_attribute")
class CountsInAttribute(Plain):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.first.calls = 0

    def hidden(self, images: Tensor) -> Tensor:
        self.first.calls += 1
        return super().hidden(images)


@cs.register_network("tensor_in_attribute")
class TensorInAttribute(Plain):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.seen = torch.zeros(())

    def hidden(self, images: Tensor) -> Tensor:
        self.seen = self.seen + 1
        return super().hidden(images)


@cs.register_network("hidden_modules")
class HiddenModules(Plain):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.blocks = {"relu": [nn.ReLU()], "more": [nn.Linear(8, 8)]}


@cs.register_network("hidden_parameters")
class HiddenParameters(Plain):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.scales = [self.head.bias, nn.Parameter(torch.ones(8))]


@cs.register_network("sync_batch_norm")
class WithSyncBatchNorm(Plain):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.norm = nn.SyncBatchNorm(8)


@cs.register_network("drawn_weights")
class DrawnWeights(Plain):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.head.bias.data[0] = random.random()


@cs.register_network("refers_to_self")
class RefersToSelf(WithBatchNorm):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.normalised = lambda hidden: self.norm(hidden)

    def hidden(self, images: Tensor) -> Tensor:
        return self.normalised(Plain.hidden(self, images))


@cs.register_network("counts_in_evaluation")
class CountsInEvaluation(Plain):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.calls = 0

    def hidden(self, images: Tensor) -> Tensor:
        self.calls += not self.training
        return super().hidden(images)


@cs.register_network("no_gradients")
class NoGradients(Plain):
    def forward(self, images: Tensor) -> Any:
        return checkpoint(self.head, self.hidden(images), use_reentrant=True)


@cs.register_network("unseen_gradients")
class UnseenGradients(Plain):
    def hidden(self, images: Tensor) -> Tensor:
        return checkpoint(super().hidden, images.requires_grad_(), use_reentrant=True)


@cs.register_network("needs_gpu")
class NeedsGpu(Plain):
    def forward(self, images: Tensor) -> Any:
        if not images.is_cuda:
            raise RuntimeError("this kernel is CUDA's alone")
        return super().forward(images)


@cs.register_network("fails")
class Fails(Plain):
    def hidden(self, images: Tensor) -> Tensor:
        return self.first(images)


@cs.register_network("fails_to_be_made")
class FailsToBeMade(Plain):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes // 0)


@cs.register_network("no_module")
def no_module(num_classes: int) -> Any:
    return lambda images: images


# One that obeys in the trial, and not in a run: what `verify` is for

CALLS: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()


@cs.register_network("counts_calls")
class CountsCalls(Plain):
    """Computes with a number that no checkpoint holds, and that lies where the trial does not look."""

    def hidden(self, images: Tensor) -> Tensor:
        if self.training:
            CALLS[self] = CALLS.get(self, 0) + 1
        return super().hidden(images) * (1 + 0.1 * CALLS.get(self, 0))
