from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from tutelage.seeds import derive, numpy_rng, torch_rng


@given(st.integers(-(2**40), 2**40), st.lists(st.text(alphabet="abc/1 ", max_size=4), max_size=4))
def test_a_stream_is_a_63_bit_number_and_repeats(seed: int, names: list[str]) -> None:
    assert 0 <= derive(seed, *names) < 2**63
    assert derive(seed, *names) == derive(seed, *names)


def test_the_seeds_are_the_same_on_every_machine() -> None:
    assert derive(0, "train") == 3876249849110380661


def test_streams_differ_by_seed_name_and_grouping() -> None:
    streams = [(0,), (1,), (0, "a"), (0, "b"), (0, "a", "b"), (0, "ab"), (0, "a", 1), (0, 1)]
    assert len({derive(*stream) for stream in streams}) == len(streams)


def test_generators_repeat_and_differ_by_name() -> None:
    assert np.array_equal(numpy_rng(3, "x").random(8), numpy_rng(3, "x").random(8))
    assert not np.array_equal(numpy_rng(3, "x").random(8), numpy_rng(3, "y").random(8))
    first, second = (torch.rand(8, generator=torch_rng(3, "x")) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, torch.rand(8, generator=torch_rng(4, "x")))
