"""Python's, NumPy's and torch's global generators, seeded for one item at a time.

A random transform written for any library draws from one of these three. If each of them is seeded from the item's
view seed before the item is read, the same item and seed give the same bytes, in any process and in any order.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from tutelage.distillation.data import hash64

STREAMS = np.array([0x1F83D9AB, 0x5BE0CD19, 0x9B05688C], dtype=np.uint64)
"""One constant for each generator: NumPy and torch run the same algorithm, and equal seeds would give equal draws."""


def generator_seeds(view_seeds: np.ndarray) -> list[list[int]]:
    """The seeds of the three generators for each view seed [B]: B lists of three integers below 2**32."""
    hashed = hash64(hash64(view_seeds.astype(np.uint64))[:, None] ^ STREAMS)
    return (hashed >> np.uint64(32)).tolist()


def seed_generators(seeds: list[int]) -> None:
    """Seed Python's, NumPy's and torch's global generators with one number each."""
    random.seed(seeds[0])
    np.random.seed(seeds[1])
    torch.default_generator.manual_seed(seeds[2])


def generator_states() -> tuple[Any, ...]:
    """The states of the three global generators, in a form that ``==`` compares."""
    numpy: Any = np.random.get_state(legacy=False)
    inner = numpy["state"]
    gauss = numpy["has_gauss"], numpy["gauss"]
    return (
        random.getstate(),
        (inner["key"].tobytes(), inner["pos"], *gauss),
        torch.get_rng_state().numpy().tobytes(),
    )


@contextlib.contextmanager
def preserved_generators() -> Iterator[None]:
    """Give the three global generators back as they were before the block."""
    python, numpy, tensors = random.getstate(), np.random.get_state(legacy=False), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(tensors)
