"""Random numbers as a function of where they are used: (seed, purpose, step, position), never of who draws them.

A counter-based generator (Philox 4x64: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") can be
read at any place. Each sample of each global batch owns a fixed place in it, so a rank draws the numbers of its own
samples alone and still gets those that any other split of the batch over ranks would give it.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from cifarscale.distributed.step_values import DIRECT, StepValues

_BLOCK = 4
"""Numbers that Philox 4x64 makes from one value of its counter."""


def _philox(seed: int, purpose: str, place: int) -> np.random.Philox:
    """The generator of one purpose, with its counter at a place that leaves 2**64 blocks before the next one."""
    return np.random.Philox(
        key=np.array([seed, _stream(purpose)], np.uint64), counter=np.array([0, place, 0, 0], np.uint64)
    )


@lru_cache
def _stream(purpose: str) -> int:
    return int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:8], "little")


def permutation(seed: int, purpose: str, place: int, size: int) -> NDArray[np.int64]:
    """A random order of 0 … size - 1, shape (size,): a stable sort of raw draws, so the same in every NumPy."""
    return np.argsort(_philox(seed, purpose, place).random_raw(size), kind="stable")


def uniforms(seed: int, purpose: str, step: int, positions: Sequence[int], draws: int) -> NDArray[np.float32]:
    """Uniform numbers in [0, 1) for samples of the global batch of one step.

    Args:
        positions: P places in the global batch, ascending.
        draws: numbers a sample.
    Returns: (P, draws) float32; row i depends on (seed, purpose, step, positions[i]) alone.
    """
    raw = _raw(seed, purpose, step, positions, draws)
    return (raw >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)


def uniform_tensor(seed: int, purpose: str, step: int, positions: Sequence[int], draws: int) -> torch.Tensor:
    """`uniforms` as torch has them."""
    return torch.from_numpy(uniforms(seed, purpose, step, positions, draws))


def normals(
    seed: int, purpose: str, step: int, positions: Sequence[int], draws: int, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Standard normal numbers for samples of the global batch of one step, (P, draws) float32.

    By the inverse of the distribution function, element by element in double precision: a function of each uniform
    number alone, unlike methods that reject, or whose last bits depend on how a vector unit takes the elements.

    Args:
        device: which computes them, and has them then: images of noise are worth a GPU's time.
    """
    return normals_of(places(seed, purpose, step, positions, draws).to(device))


def places(seed: int, purpose: str, step: int, positions: Sequence[int], draws: int) -> torch.Tensor:
    """Whole numbers of 52 bits, each as likely, from which `normals_of` makes normal ones, (P, draws) int64."""
    raw = _raw(seed, purpose, step, positions, draws)
    return torch.from_numpy((raw >> np.uint64(12)).view(np.int64))


def normals_of(places: torch.Tensor) -> torch.Tensor:
    """The standard normal number at each of the places that 52 bits tell apart, float32 on the same device."""
    normal: torch.Tensor = torch.special.ndtri((places.double() + 0.5) * 2.0**-52)  # of (0, 1), never an end
    return normal.float()


def _raw(seed: int, purpose: str, step: int, positions: Sequence[int], draws: int) -> NDArray[np.uint64]:
    """The generator's 64-bit numbers at the samples' places, (P, draws)."""
    if not positions:
        return np.empty((0, draws), np.uint64)
    generator = _philox(seed, purpose, step)
    blocks = -(-draws // _BLOCK)  # a sample owns whole blocks, so that a reader can start at any sample
    first, last = positions[0], positions[-1]
    generator.advance(first * blocks)
    raw = generator.random_raw((last - first + 1) * blocks * _BLOCK).reshape(-1, blocks * _BLOCK)
    return raw[np.asarray(positions) - first, :draws]


def batch_generator(seed: int, purpose: str, step: int) -> np.random.Generator:
    """A generator for what the whole global batch shares, such as the mixing weight of mixup."""
    return np.random.Generator(_philox(seed, purpose, step))


@dataclass(frozen=True)
class Draws:
    """Random numbers for samples of the global batch of one step, each by a name that says what it is for.

    A number is a function of the seed, the purpose, the name, the step and the sample's position in the global batch
    alone: whoever asks, whenever, and however often.

    Attributes:
        positions: of the N samples.
        device: on which the numbers are wanted.
        values: brings them there.
    """

    seed: int
    purpose: str
    step: int
    positions: Sequence[int]
    device: torch.device
    values: StepValues = DIRECT

    def uniform(self, name: str, *shape: int) -> torch.Tensor:
        """Uniform numbers in [0, 1), (N, *shape) float32: `uniform("angle")` is (N,)."""
        return self._drawn(f"{self.purpose} {name}", shape, uniform_tensor)

    def normal(self, name: str, *shape: int) -> torch.Tensor:
        """Standard normal numbers, (N, *shape) float32."""
        return self._drawn(f"{self.purpose} {name}", shape, normals)

    def integers(self, name: str, low: int, high: int, *shape: int) -> torch.Tensor:
        """Whole numbers from low to high - 1, each as likely, (N, *shape) int64."""
        return (self.uniform(name, *shape) * (high - low)).long() + low

    def shared(self, name: str) -> np.random.Generator:
        """A generator for what the whole global batch shares."""
        return batch_generator(self.seed, f"{self.purpose} {name}", self.step)

    def _drawn(self, purpose: str, shape: tuple[int, ...], draw: Callable[..., torch.Tensor]) -> torch.Tensor:
        seed, positions, number = self.seed, self.positions, math.prod(shape)
        key = purpose, (draw.__name__, seed, tuple(positions), number)
        drawn = self.values.tensor(
            key, self.step, lambda step: draw(seed, purpose, step, positions, number), self.device
        )
        return drawn.clone().view(len(positions), *shape)  # whoever asked may change it


def seed_torch(device: torch.device, seed: int, purpose: str, step: int, place: int) -> None:
    """Makes what torch's own generators of this process draw next a function of the arguments.

    They are one a process and device, so whoever draws next must not run beside another that draws.
    """
    digest = hashlib.sha256(f"{seed} {purpose} {step} {place}".encode()).digest()
    number = int.from_bytes(digest[:8], "little") >> 1
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        torch.cuda.manual_seed(number)
