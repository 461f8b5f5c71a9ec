"""The data set `my_dataset`: drawn discs, as a start. It becomes shards in shards/my_dataset when a run needs it."""

from collections.abc import Iterator

import numpy as np

import cifarscale as cs

SIZE = 32
CLASSES = ("dark", "bright")


def draw(label: int, random: np.random.Generator) -> np.ndarray:
    """An image (SIZE, SIZE, 3) uint8 with a dark or bright disc in it. In its place, read yours."""
    y, x = np.mgrid[:SIZE, :SIZE]
    centre = random.uniform(8, SIZE - 8, 2)
    image = random.uniform(100, 150, (SIZE, SIZE, 3))
    image[np.hypot(y - centre[0], x - centre[1]) < 6] = 220 if label else 30
    return image.astype(np.uint8)


@cs.register_dataset("my_dataset")
def my_dataset() -> Iterator[cs.Sample]:
    """Its samples, the same whenever it is built. A parameter `source: Path` is what `shards build --source` names."""
    random = np.random.default_rng(0)
    for split, count in (("train", 400), ("test", 100)):
        for i in range(count):
            label = i % len(CLASSES)
            yield cs.Sample(split, draw(label, random), CLASSES[label])
