"""A data set in one file: rings on a dark ground, drawn; the classes say how many."""

from collections.abc import Iterator

import numpy as np

import cifarscale as cs

SIZE = 24
CLASSES = ("1 ring", "2 rings", "3 rings")


def draw(number: int, random: np.random.Generator) -> np.ndarray:
    """An image (SIZE, SIZE, 3) uint8 of so many rings at random places."""
    y, x = np.mgrid[:SIZE, :SIZE]
    image = random.uniform(0, 60, (SIZE, SIZE, 3))
    for _ in range(number):
        centre, radius = random.uniform(5, SIZE - 5, 2), random.uniform(3, 5)
        distance = abs(np.hypot(y - centre[0], x - centre[1]) - radius)
        image[distance < 1] = random.uniform(120, 255, 3)
    return image.astype(np.uint8)


@cs.register_dataset("rings")
def rings() -> Iterator[cs.Sample]:
    random = np.random.default_rng(0)  # a seed of its own: the same shards whenever they are built
    for split, count in (("train", 600), ("test", 150)):
        for i in range(count):
            label = i % len(CLASSES)
            yield cs.Sample(split, draw(label + 1, random), CLASSES[label])
