"""What the makers of all methods share."""

from typing import Any

import numpy as np

Arrays = dict[str, Any]


def noise(rng: np.random.Generator, *shape: int, scale: float = 1.0) -> np.ndarray:
    return (rng.normal(size=shape) * scale).astype(np.float32)


def objects(rng: np.random.Generator, number: int, height: int, width: int) -> np.ndarray:
    """(G, 4), some of them partly outside."""
    centre = rng.uniform([0, 0], [width, height], (number, 2))
    size = rng.uniform(10, 0.7 * height, (number, 2))
    return np.concatenate([centre - size / 2, centre + size / 2], axis=1).astype(np.float32)


def single(values: Arrays) -> Arrays:
    """In single precision, as the files hold them."""
    return {name: np.float32(value) for name, value in values.items()}
