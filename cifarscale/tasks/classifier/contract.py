"""What a user's own code must be like to be trained with, tried on a few images before anything is computed or queued.

What is found here is refused in one line; what passes is trained as torch has it, to the same bits on any number of
ranks.
"""

import copy
import logging
import random
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cifarscale.config.code import kind_of, naming_the_line
from cifarscale.config.registry import networks
from cifarscale.data.manifest import Manifest
from cifarscale.data.normalisation import training_normalisation
from cifarscale.distributed.randomness import seed_torch
from cifarscale.errors import ConfigError, in_one_line, is_want_of_memory
from cifarscale.evaluation.accuracy import reduced, values_of
from cifarscale.tasks.classifier.augmentation import OwnAugmentations
from cifarscale.tasks.classifier.learner import build_classifier
from cifarscale.tasks.classifier.recipe import ClassifierRecipe
from cifarscale.training.microbatches import trained

log = logging.getLogger(__name__)

_CPU = torch.device("cpu")
_TRAINABLE = (torch.float32, torch.float64, torch.bfloat16)
_OF_GPUS = re.compile(r"cuda|gpu|triton|nvidia|not implemented for '(\w+)'", re.IGNORECASE)
"""What errors say that code raises which needs a GPU."""
_GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
_OF_MODULES = vars(nn.Module()).keys()
"""Attributes that every module has: its parameters, hooks and the like."""


def check_contract(recipe: ClassifierRecipe, manifest: Manifest, is_for_gpu: bool) -> None:
    """Tries the network, the augmentations and the metrics of a recipe that names a user's own code.

    Args:
        is_for_gpu: whether the run will have a GPU: what fails here for want of one is then only a warning.
    Raises: ConfigError for what cannot be trained, or not to the same bits each time.
    """
    own = [network.name for network in networks(recipe.code).values() if network.code]
    if own and recipe.model.name not in own:
        log.warning("%s is trained, and not what the modules register: %s", recipe.model.name, ", ".join(own))
    with torch.random.fork_rng(devices=[]):
        try:
            _Trial(recipe, manifest, is_for_gpu).check_network()
        except ConfigError as error:
            if not (is_for_gpu and error.__cause__ and _OF_GPUS.search(str(error.__cause__))):
                raise
            log.warning("not tried before it runs on a GPU: %s", error)
        _check_augmentations(recipe, manifest)
        _check_metrics(recipe, manifest)


@dataclass(frozen=True)
class _Step:
    """A network after a step, and what the step has computed."""

    network: nn.Module
    outputs: list[Tensor]
    unused: list[str]


class _Trial:
    """A network with freshly drawn weights on the CPU, and images to try it on."""

    def __init__(self, recipe: ClassifierRecipe, manifest: Manifest, is_for_gpu: bool) -> None:
        self._recipe, self._manifest, self._is_for_gpu = recipe, manifest, is_for_gpu
        self._what = f"network {recipe.model.name!r}"
        states = _states()
        self._network = build_classifier(recipe, manifest, _CPU)
        if _drawn_from(states):
            again = build_classifier(recipe, manifest, _CPU)
            _restore(states)
            if not _same(list(self._network.state_dict().values()), list(again.state_dict().values())):
                raise self._refused(
                    "has other weights each time it is made: its constructor draws from another generator than torch's "
                    "own, which is seeded before. Draw by torch.rand and its like, or nn.init"
                )
        self._buffers = [buffer.clone() for buffer in self._network.buffers()]

    def check_network(self) -> None:
        """Raises: ConfigError for the first thing that cannot be trained."""
        self._check_modules()
        self._check_parameters()
        self._check_copies()
        size = self._recipe.training.global_batch_size // (self._recipe.training.microbatches or 1)
        first = self._step(min(size, 2))
        if first.unused:
            names = _listed(first.unused)
            log.info("%s does not use %s: the gradients of what a step does not use are 0", self._what, names)
        self._check_buffers(first.network)
        again = self._step(min(size, 2))
        if not (
            _same(first.outputs, again.outputs) and _same(list(first.network.buffers()), list(again.network.buffers()))
        ):
            raise self._refused(
                "gives other numbers when it computes the same images again: it draws from another generator than "
                "torch's own, which is seeded for each microbatch, or remembers what it has computed. Draw by "
                "torch.rand and its like, or nn.Dropout, and keep state in buffers"
            )
        self._check_evaluation()

    def _check_parameters(self) -> None:
        network = self._network
        if not trained(network.parameters()):
            frozen = " but frozen ones" if any(True for _ in network.parameters()) else ""
            raise self._refused(f"has no parameters{frozen}: there is nothing to train")
        for name, parameter in network.named_parameters():
            if parameter.requires_grad and parameter.dtype not in _TRAINABLE:
                raise self._refused(
                    f"has the parameter {name} of {_dtype(parameter)}, and parameters are of float32, float64 or "
                    "bfloat16. Keep it in float32; training.precision says what is computed in less"
                )
        for name, value in network.state_dict().items():
            if not isinstance(value, Tensor):
                raise self._refused(f"has state that is no tensor, {name}, and checkpoints hold tensors: use a buffer")

    def _check_modules(self) -> None:
        """Looks at what modules hold beside parameters, buffers and modules."""
        network, training = self._network, self._recipe.training
        registered = {id(each) for each in _tensors(network)}
        for prefix, module in network.named_modules():
            if isinstance(module, nn.SyncBatchNorm) and (training.microbatches or not self._is_for_gpu):
                raise self._refused(
                    f"has {prefix} of nn.SyncBatchNorm, whose statistics span the ranks: it needs "
                    "training.microbatches=0 and a GPU. nn.BatchNorm2d takes those of each microbatch"
                )
            if type(module).get_extra_state is not nn.Module.get_extra_state:
                raise self._refused(
                    f"has extra state ({type(module).__name__}.get_extra_state), which microbatches and ranks do not "
                    "share. Register it as a buffer"
                )
            for name, value in _attributes(module):
                where = f"{prefix}.{name}".lstrip(".")
                for each in _elements(value):
                    if isinstance(each, _GENERATORS):
                        raise self._refused(
                            f"has a random generator of its own, {where}, whose state is in no checkpoint. "
                            "Draw by torch.rand and its like, or nn.Dropout"
                        )
                    if any(id(tensor) not in registered for tensor in _tensors(each)):
                        kind = "Module" if isinstance(each, nn.Module) else "Parameter"
                        raise self._refused(
                            f"hides a {kind.lower()} in {where}: it would be neither trained nor saved. "
                            f"Use nn.{kind}List or nn.{kind}Dict"
                        )

    def _check_copies(self) -> None:
        try:
            copy.deepcopy(self._network)
        except Exception as error:
            raise self._refused(
                f"cannot be copied ({in_one_line(error)}), and each microbatch has a copy. "
                "Keep in it only modules, parameters, buffers and plain values"
            ) from error

    def _step(self, size: int) -> _Step:
        """What training on so many images makes of a copy of the network."""
        network = copy.deepcopy(self._network).train()
        tensors = dict([*network.named_parameters(), *network.named_buffers()])
        seed_torch(_CPU, 0, self._what, 0, 0)
        with _no_other_generator(self._what):
            logits = self._logits(network, size)
            if not logits.requires_grad:
                raise self._refused("returns logits that do not depend on its parameters; are they detached?")
            loss = F.cross_entropy(logits, torch.arange(size) % logits.shape[1])
            self._check_what_computing_changes(network, tensors)
            gradients = self._gradients(loss, network)
        self._check_what_computing_changes(network, tensors)
        names = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
        unused = [name for name, gradient in zip(names, gradients, strict=True) if gradient is None]
        used = {name: gradient for name, gradient in zip(names, gradients, strict=True) if gradient is not None}
        for name, tensor in {"logits": logits, **{f"gradients of {name}": each for name, each in used.items()}}.items():
            if not tensor.isfinite().all():
                raise self._refused(f"gives {name} that are not finite, for ordinary images and fresh weights")
        return _Step(network, [logits.detach(), *used.values()], unused)

    def _gradients(self, loss: Tensor, network: nn.Module) -> tuple[Tensor | None, ...]:
        parameters = trained(network.parameters())
        try:
            gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
            if any(gradient is None for gradient in gradients):
                loss.backward()  # type: ignore[no-untyped-call]
        except Exception as error:
            if is_want_of_memory(error):
                raise
            raise self._refused(f"computes what has no gradients: {in_one_line(error)}") from error
        seen = {id(each) for each, gradient in zip(parameters, gradients, strict=True) if gradient is not None}
        for name, parameter in network.named_parameters():
            if parameter.grad is not None and id(parameter) not in seen:
                raise self._refused(
                    f"computes with {name} where torch.autograd.grad does not see it. Give torch.utils.checkpoint "
                    "use_reentrant=False"
                )
        return gradients

    def _check_what_computing_changes(self, network: nn.Module, tensors: dict[str, Tensor]) -> None:
        """Compares a copy of the network, of these parameters and buffers, with the network that it was made of."""
        if not _same(list(self._network.buffers()), self._buffers):
            raise self._refused(
                "changes its buffers also where a copy of it computes: a function that it keeps, such as a lambda or a "
                "hook, refers to `self`, and each microbatch has a copy. Make it a method, or use the hook's module"
            )
        now = dict([*network.named_parameters(), *network.named_buffers()])
        for name, before in self._network.named_parameters():
            after = now.get(name)
            is_same = after is tensors[name] and after.requires_grad == before.requires_grad and _equal(after, before)
            if not is_same:
                raise self._refused(
                    f"changes its parameter {name} while it computes, which only the optimizer may. Compute with a "
                    "changed copy, or register it as a buffer"
                )
        for name, _ in self._network.named_buffers():
            if name in now and now[name].shape == tensors[name].shape and now[name] is not tensors[name]:
                raise self._refused(
                    f"puts another tensor in the place of the buffer {name} while it computes. Change the buffer "
                    f"itself: self.{name.rpartition('.')[2]}.copy_(...)"
                )
        was = dict(self._network.named_modules())
        for prefix, module in network.named_modules():
            before_it = dict(_attributes(was[prefix])) if prefix in was else {}
            for name, value in _attributes(module):
                if name in before_it and _has_changed(before_it[name], value):
                    raise self._refused(
                        f"changes the attribute {f'{prefix}.{name}'.lstrip('.')} while it computes, which is in no "
                        "checkpoint. Register a buffer for it"
                    )

    def _check_buffers(self, after: nn.Module) -> None:
        """Compares the network with what a step has made of it."""
        before, now = self._network.state_dict(), after.state_dict()
        if changed := [name for name in before.keys() | now.keys() if _shape(before, name) != _shape(now, name)]:
            raise self._refused(
                f"has {_listed(sorted(changed))} only after it has computed, or of another shape then. Make it in the "
                "constructor, of a shape that does not depend on the batch"
            )
        was = dict(self._network.named_buffers())
        for name, buffer in after.named_buffers():
            if name not in now and not _equal(buffer, was[name]):
                raise self._refused(
                    f"changes the buffer {name} while it trains, and does not save it: a run that goes on would have "
                    "lost it. Register it without persistent=False"
                )

    def _check_evaluation(self) -> None:
        network = copy.deepcopy(self._network).eval()
        tensors = dict([*network.named_parameters(), *network.named_buffers()])
        before = torch.default_generator.get_state(), [buffer.clone() for buffer in network.buffers()]
        with _no_other_generator(self._what), torch.inference_mode():
            for size in (3, 1):
                self._logits(network, size)
        if not torch.equal(before[0], torch.default_generator.get_state()):
            raise self._refused(
                "draws random numbers also in evaluation. Give nn.functional.dropout training=self.training"
            )
        self._check_what_computing_changes(network, tensors)
        names = [name for name, _ in network.named_buffers()]
        for name, buffer, was in zip(names, network.buffers(), before[1], strict=True):
            if not _equal(buffer, was):
                raise self._refused(f"changes the buffer {name} also in evaluation. Change it only if self.training")

    def _logits(self, network: nn.Module, size: int) -> Tensor:
        """Of so many images, in the recipe's precision. Raises: ConfigError if they are no logits."""
        images = training_normalisation(self._manifest, _CPU)(_images(size, self._manifest))
        in_bf16 = self._recipe.training.precision == "bf16"
        with naming_the_line(self._what, self._recipe.code), torch.autocast("cpu", torch.bfloat16, enabled=in_bf16):
            logits: Any = network(images)
        wanted = (size, self._manifest.spec.num_classes)
        if not isinstance(logits, Tensor) or tuple(logits.shape) != wanted or not logits.is_floating_point():
            raise self._refused(
                f"returns {kind_of(logits)} for {size} image{'s' if size > 1 else ''}, and not logits: real numbers of "
                f"shape {wanted}, a row for each image and a column for each class"
            )
        return logits

    def _refused(self, why: str) -> ConfigError:
        return ConfigError(f"{self._what} {why}")


def _check_augmentations(recipe: ClassifierRecipe, manifest: Manifest) -> None:
    num_microbatches = recipe.training.microbatches or 1
    size = num_microbatches * min(recipe.training.global_batch_size // num_microbatches, 2)
    for name, section in recipe.augmentation.own.items():
        alone = recipe.augmentation.model_copy(update={"own": {name: section}})
        augment = OwnAugmentations(recipe.model_copy(update={"augmentation": alone}))
        with _no_other_generator(f"augmentation {name!r}"):
            images = [augment(_images(size, manifest), range(size), 0) for _ in range(2)]
        if not images[0].isfinite().all():
            raise ConfigError(f"augmentation {name!r} gives pixels that are not finite, for ordinary images")
        if not torch.equal(*images):
            raise ConfigError(
                f"augmentation {name!r} makes something else of the same images each time: it draws from a generator "
                "of its own. Draw from `draws`, or by torch.rand and its like"
            )


def _check_metrics(recipe: ClassifierRecipe, manifest: Manifest) -> None:
    size, classes = 3, manifest.spec.num_classes
    logits = torch.arange(size * classes).mul(37).remainder(11).view(size, classes).float()
    labels = torch.arange(size) % classes
    for metric in recipe.own_metrics:
        what = f"metric {metric.name!r}"
        with _no_other_generator(what):
            values = []
            for seed in range(2):
                torch.default_generator.manual_seed(seed)
                given = logits.clone(), labels.clone()
                values.append(values_of(metric, *given))
                if not _same([logits, labels], list(given)):
                    raise ConfigError(f"{what} changes the logits or labels, which others are computed from. Copy them")
            alone = [values_of(metric, logits[i : i + 1].clone(), labels[i : i + 1].clone()) for i in range(size)]
            reduced(metric, values[0].clone())
        if not _equal(*values):
            raise ConfigError(f"{what} gives other numbers for the same samples each time: does it draw some?")
        # Vector units may round the same sample differently in a batch.
        if not all(
            one.shape == row.shape and torch.allclose(one, row, rtol=1e-4, atol=1e-6, equal_nan=True)
            for one, row in zip(alone, torch.split(values[0], 1), strict=True)
        ):
            raise ConfigError(
                f"{what} gives a sample another value beside other samples than alone, and batches are cut as the "
                "recipe says. Return what each sample contributes; what depends on all of them belongs into reduce="
            )


def _images(size: int, manifest: Manifest) -> Tensor:
    """(size, 3, H, W) uint8 of all values, channels last as the readers deliver them."""
    channels, height, width = manifest.spec.image_shape
    pixels = torch.arange(size * height * width * channels).mul(37).remainder(251)
    return pixels.to(torch.uint8).view(size, height, width, channels).permute(0, 3, 1, 2)


@contextmanager
def _no_other_generator(what: str) -> Iterator[None]:
    """Python's and NumPy's generators are as before after the block. Raises: ConfigError if the block draws."""
    states = _states()
    try:
        yield
        drawn = _drawn_from(states)
    finally:
        _restore(states)
    if drawn:
        raise ConfigError(
            f"{what} draws from another generator than torch's own, which is seeded for each microbatch: {drawn}'s. "
            "Draw by torch.rand and its like"
        )


def _states() -> tuple[Any, Any]:
    """Of Python's and NumPy's generators."""
    return random.getstate(), np.random.get_state()


def _restore(states: tuple[Any, Any]) -> None:
    random.setstate(states[0])
    np.random.set_state(states[1])


def _drawn_from(states: tuple[Any, Any]) -> str:
    """Whose generator has another state than it had; empty for none's."""
    python, numpy = _states()
    if python != states[0]:
        return "Python"
    return "" if all(map(np.array_equal, numpy, states[1])) else "NumPy"


def _attributes(module: nn.Module) -> Iterable[tuple[str, Any]]:
    """A module's attributes by name, but for those that every module has."""
    return ((name, value) for name, value in vars(module).items() if name not in _OF_MODULES)


def _elements(value: Any) -> Iterator[Any]:
    """A value, or what is in a list, tuple, set or dictionary of values."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple | set):
        for each in value:
            yield from _elements(each)
    else:
        yield value


def _tensors(value: Any) -> list[Tensor]:
    """The parameters and buffers of a module; a parameter itself; of anything else none."""
    if isinstance(value, nn.Module):
        return [*value.parameters(), *value.buffers()]
    return [value] if isinstance(value, nn.Parameter) else []


def _has_changed(before: Any, after: Any) -> bool:
    """Whether a plain value or a tensor is another one; not what is a step's result, through which gradients flow."""
    if isinstance(before, Tensor) and isinstance(after, Tensor):
        return not after.requires_grad and not _equal(before, after)
    is_plain = isinstance(before, bool | int | float | str) and isinstance(after, bool | int | float | str)
    is_nan = before != before and after != after
    return is_plain and before != after and not is_nan


def _same(some: list[Tensor], others: list[Tensor]) -> bool:
    return all(_equal(one, other) for one, other in zip(some, others, strict=True))


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether all numbers are equal; what is none equals itself."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return bool(((one == other) | ((one != one) & (other != other))).all())


def _shape(state: dict[str, Tensor], name: str) -> torch.Size | None:
    return state[name].shape if name in state else None


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _listed(names: list[str]) -> str:
    more = len(names) - 3
    return ", ".join(names[:3]) + (f" and {more} more" if more > 0 else "")
