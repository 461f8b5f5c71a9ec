"""A drawn stand-in for CIFAR-100: as many classes, and the same sizes and types, with nothing to download.

A fine class is a colour, a texture and a shape ("red_striped_disc"); its superclass is the texture and the shape
("striped_disc"). Place, size, rotation, tint, background and noise vary. It is there for demos, tests and clusters
without a network: a network does learn it, and its accuracy or FID says nothing about CIFAR-100.

The bytes are the same everywhere: the random numbers are raw draws of a counter-based generator, and what follows are
single operations that IEEE 754 defines to the last bit (+ - * /, square root, floor, comparisons), never a sine or a
dot product.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from cifarscale.data.source import Source, Split
from cifarscale.distributed.randomness import permutation, uniforms

Array = NDArray[np.floating]
"""float32 throughout; NumPy's types lose that beside a Python number, its arithmetic does not."""

_SIZE = 32
_COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.86, 0.16, 0.18),
    "yellow": (0.96, 0.80, 0.16),
    "green": (0.20, 0.68, 0.28),
    "blue": (0.18, 0.36, 0.88),
    "white": (0.94, 0.94, 0.94),
}


def _disc(x: Array, y: Array) -> Array:
    return np.sqrt(x * x + y * y) - 1


def _square(x: Array, y: Array) -> Array:
    return np.maximum(abs(x), abs(y)) - 0.85


def _triangle(x: Array, y: Array) -> Array:
    return np.maximum(abs(x) * 0.8660254 - y * 0.5, y) - 0.58


def _ring(x: Array, y: Array) -> Array:
    return abs(np.sqrt(x * x + y * y) - 0.75) - 0.28


def _cross(x: Array, y: Array) -> Array:
    distance: Array = np.maximum(np.maximum(abs(x), abs(y)) - 1, np.minimum(abs(x), abs(y)) - 0.34)
    return distance


_SHAPES: dict[str, Callable[[Array, Array], Array]] = {
    "disc": _disc,
    "square": _square,
    "triangle": _triangle,
    "ring": _ring,
    "cross": _cross,
}
"""Distance to the outline, negative inside, of a shape about as large as the unit circle."""


def _wave(x: Array) -> Array:
    """A triangle wave of period 1: -0.25 at the whole numbers, 0.25 halfway."""
    from_half: Array = abs(x - np.floor(x) - 0.5)
    return 0.25 - from_half


def _plain(x: Array, y: Array) -> Array:
    return np.full_like(x, 1)


def _striped(x: Array, y: Array) -> Array:
    return _wave(x)


def _checked(x: Array, y: Array) -> Array:
    return _wave(x) * _wave(y) * 4


def _dotted(x: Array, y: Array) -> Array:
    x, y = _wave(x) + 0.25, _wave(y) + 0.25
    return np.sqrt(x * x + y * y) - 0.28


_TEXTURES: dict[str, Callable[[Array, Array], Array]] = {
    "plain": _plain,
    "striped": _striped,
    "checked": _checked,
    "dotted": _dotted,
}
"""Distance to the nearest change of ink, negative where the ink is dark, of a pattern of period 1."""

_COARSE = tuple(f"{texture}_{shape}" for shape in _SHAPES for texture in _TEXTURES)
_FINE = tuple(f"{colour}_{coarse}" for coarse in _COARSE for colour in _COLOURS)
_PARTS = (2, 1, 1, 2, 3, 3, 3, 2, _SIZE * _SIZE * 3)
"""Random numbers a sample: centre, size, rotation, phase, tint, ground, its change and where to; then the noise."""


def synthetic_source(num_train: int = 10_000, num_test: int = 2_000) -> Source:
    """The drawn set, with every class equally often in each hundred samples.

    A sample depends on its split and its place in it alone, so a larger set begins with the smaller one.
    """
    return Source("synthetic", _FINE, _COARSE, (_split("train", num_train), _split("test", num_test)))


def _split(name: str, num_samples: int) -> Split:
    blocks = range(-(-num_samples // len(_FINE)))  # a block holds each fine class once
    fine = [permutation(0, f"synthetic {name} labels", block, len(_FINE)) for block in blocks]
    images = np.empty((len(blocks), len(_FINE), _SIZE, _SIZE, 3), np.uint8)
    for block in blocks:
        draws = uniforms(0, f"synthetic {name}", block, range(len(_FINE)), sum(_PARTS))
        images[block] = _draw(fine[block], draws)
    labels = np.concatenate([*fine, np.empty(0, np.int64)])[:num_samples]
    return Split(
        name,
        images.reshape(-1, _SIZE, _SIZE, 3)[:num_samples],
        labels,
        labels // len(_COLOURS),
        tuple(f"{_FINE[label]}_s_{i:06d}.png" for i, label in enumerate(labels)),
    )


def _draw(fine: NDArray[np.int64], draws: Array) -> NDArray[np.uint8]:
    """Images (n, 32, 32, 3) of classes (n,) from n rows of random numbers in [0, 1)."""
    coarse, colour = np.divmod(fine, len(_COLOURS))
    shape, texture = np.divmod(coarse, len(_TEXTURES))
    parts = np.split(draws[:, :, None, None], np.cumsum(_PARTS[:-1]), axis=1)
    centre, size, rotation, phase, tint, ground, change, towards, noise = parts  # each (n, k, 1, 1)

    # The shape's own frame: pixels relative to a centre, turned by an angle a with tan(a / 2) = t, |a| <= 45°.
    pixel = np.arange(_SIZE, dtype=np.float32) - np.float32((_SIZE - 1) / 2)
    radius = 9 + 4 * size[:, 0]
    right = pixel[None, None, :] - (centre[:, 0] - 0.5) * 8
    down = pixel[None, :, None] - (centre[:, 1] - 0.5) * 8
    t = (rotation[:, 0] - 0.5) * 0.8284271
    cos, sin = (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)
    x, y = (cos * right + sin * down) / radius, (cos * down - sin * right) / radius
    u, v = x * 1.8 + phase[:, 0], y * 1.8 + phase[:, 1]

    outline, ink = np.empty_like(x), np.empty_like(x)
    for i, distance in enumerate(_SHAPES.values()):
        outline[shape == i] = distance(x[shape == i], y[shape == i])
    for i, distance in enumerate(_TEXTURES.values()):
        ink[texture == i] = distance(u[texture == i], v[texture == i])
    inside = np.clip(0.5 - outline * radius, 0, 1)[..., None]  # (n, 32, 32, 1); edges blend over one pixel
    light = np.clip(0.5 + ink * radius / 1.8, 0, 1)[..., None]

    def rgb(part: Array) -> Array:
        return part.reshape(-1, 1, 1, 3)

    paint = np.array(list(_COLOURS.values()), np.float32)[colour][:, None, None] + (rgb(tint) - 0.5) * 0.3
    slope = ((towards[:, 0] - 0.5) * pixel[None, None, :] + (towards[:, 1] - 0.5) * pixel[None, :, None]) / _SIZE
    backdrop = 0.2 + 0.6 * rgb(ground) + slope[..., None] * (rgb(change) - 0.5) * 2
    image: Array = backdrop + inside * (paint * (0.3 + 0.7 * light) - backdrop)
    image += (noise.reshape(image.shape) - 0.5) * 0.2
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
