from __future__ import annotations

import functools
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tutelage.distillation.data.object_hash import LARGE, ObjectHash

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def name(value: object) -> str:
    return ObjectHash(value).hexdigest()


@given(PLAIN, PLAIN)
def test_equal_values_have_one_name_and_others_another(a, b) -> None:
    assert name(a) == name(a)
    if repr(a) != repr(b):
        assert a == b or name(a) != name(b)


def scaled(factor: float):
    return lambda x: factor * x


class Transform:
    def __init__(self, **state: object):
        self.__dict__.update(state)

    def __call__(self, x):
        return x + 1


class Other(Transform):
    def __call__(self, x):
        return x + 2


class Slotted:
    __slots__ = ("a",)

    def __init__(self, a: int):
        self.a = a


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (scaled(2), scaled(3)),
        (lambda x: x + 1, lambda x: x + 2),
        (lambda x, y=1: x, lambda x, y=2: x),
        (functools.partial(max, 1), functools.partial(max, 2)),
        (Transform(), Other()),
        (Transform(a=1), Transform(a=2)),
        (Slotted(1), Slotted(2)),
        (Transform(a=1).__call__, Transform(a=2).__call__),
        (torch.zeros(3), torch.zeros(3, 1)),
        (torch.zeros(3), torch.tensor([0, 0, 1.0])),
        (np.zeros(LARGE), np.ones(LARGE)),
        (torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)),
        (np.add, np.multiply),
        (torch.float32, torch.float64),
        (range(3), range(4)),
        (Path("a"), Path("b")),
        ({1, 2}, {1, 3}),
        ({"a": Transform()}, {"b": Transform()}),
    ],
)
def test_whatever_decides_what_is_done_changes_the_name(one, other) -> None:
    assert name(one) == name(one) != name(other)


def test_what_random_generators_hold_and_circles_do_not_matter() -> None:
    drawn = Transform(rng=np.random.default_rng(0), other=random.Random(1), third=torch.Generator())
    before = name(drawn)
    drawn.rng.random(), drawn.other.random(), torch.rand(1, generator=drawn.third)
    assert name(drawn) == before
    circle = Transform()
    circle.me = circle
    assert name(circle) == name(circle)


def test_an_object_can_name_itself() -> None:
    assert name(Transform(fingerprint="a", b=1)) == name(Transform(fingerprint="a", b=2)) != name(Transform(fingerprint="b"))
