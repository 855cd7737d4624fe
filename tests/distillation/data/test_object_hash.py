from __future__ import annotations

import functools
import importlib
import random
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tutelage.distillation.data.object_hash import LARGE, ObjectHash, callable_fingerprint
from tutelage.errors import InputError

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


def test_equal_tuples_are_one_whatever_object_they_are() -> None:
    one = (0.0, 1.0)
    assert name([one, one]) == name([one, tuple(map(float, range(2)))])


TABLE = {"a": 1}
NETWORK = torch.nn.Linear(2, 2)


def helper(x):
    return x + TABLE["a"]


def uses_a_helper(xs):
    return max(helper(x) for x in xs)  # inside a generator, whose code is a part of this one's


def uses_a_network(x):
    return NETWORK(x)


def test_what_a_function_takes_from_its_module_counts(monkeypatch) -> None:
    before = name(uses_a_helper), name(uses_a_network)
    monkeypatch.setitem(TABLE, "a", 2)
    with torch.no_grad():
        NETWORK.bias.add_(1)
    assert name(uses_a_helper) != before[0] and name(uses_a_network) != before[1]


def test_a_function_of_another_file_counts(tmp_path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)

    def hashed(number: int) -> tuple[str, str]:
        (tmp_path / "users_helpers.py").write_text(f"def add(x):\n    return x + {number}\n")
        for loaded in ("users_helpers", "users_teacher"):
            sys.modules.pop(loaded, None)
        importlib.invalidate_caches()
        code = "import users_helpers\nfrom users_helpers import add\n"
        (tmp_path / "users_teacher.py").write_text(
            code + "def by_name(x):\n    return add(x)\ndef by_module(x):\n    return users_helpers.add(x)\n"
        )
        found = importlib.import_module("users_teacher")
        return name(found.by_name), name(found.by_module)

    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    one, again, other = hashed(1), hashed(1), hashed(2)
    assert one == again and one[0] != other[0] and one[1] != other[1]


def test_a_network_is_its_code_settings_and_weights_but_not_its_mode() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.1))
    before, code = name(network), ObjectHash(network, weights=False).hexdigest()
    network.train()
    handle = network[0].register_forward_hook(lambda *_: None)
    assert name(network) == before == name(network.eval())
    handle.remove()
    network[1].p = 0.2
    assert name(network) != before and ObjectHash(network, weights=False).hexdigest() != code
    network[1].p = 0.1
    with torch.no_grad():
        network[0].weight.add_(1)
    assert name(network) != before and ObjectHash(network, weights=False).hexdigest() == code


def test_what_cannot_be_looked_into_asks_for_a_version() -> None:
    with open(__file__) as file:

        def reads(x):
            return file.read(), x

        assert ObjectHash(reads).opaque == ("TextIOWrapper",)
        with pytest.raises(InputError, match="reads change: it holds TextIOWrapper") as caught:
            callable_fingerprint(reads, "teacher")
        assert caught.value.where == "teacher" and 'version="…"' in caught.value.remedy
        assert callable_fingerprint(reads, "teacher", "May") == "May"
    assert not ObjectHash((threading.Lock(), torch.nn.functional.relu, np.argmax, "a".upper, [].append)).opaque
    assert callable_fingerprint(scaled(2), "teacher") != callable_fingerprint(scaled(3), "teacher")


def test_an_object_can_name_itself() -> None:
    assert name(Transform(fingerprint="a", b=1)) == name(Transform(fingerprint="a", b=2)) != name(Transform(fingerprint="b"))
