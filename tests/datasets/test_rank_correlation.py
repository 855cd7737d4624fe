from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.datasets.rank_correlation import average_ranks, recall_at_k, spearman
from tutelage.errors import InputError

few = st.lists(st.integers(-3, 3), min_size=2, max_size=12)


@given(few)
def test_ranks_sum_up_and_agree_with_the_order(values: list[int]) -> None:
    ranks = average_ranks(values)
    assert ranks.sum() == pytest.approx(len(values) * (len(values) + 1) / 2)
    for a, one in zip(values, ranks):
        for b, other in zip(values, ranks):
            assert (a < b) == (one < other)


@given(few, st.randoms(use_true_random=False))
def test_spearman_knows_order_alone(values: list[int], random: object) -> None:
    other = [random.randint(-3, 3) for _ in values]  # type: ignore[attr-defined]
    found = spearman(values, other)
    assert -1 - 1e-12 <= found <= 1 + 1e-12
    assert spearman(np.exp(values), other) == pytest.approx(found)
    assert spearman([-v for v in values], other) == pytest.approx(-found)


def test_spearman_by_hand() -> None:
    assert spearman([1, 2, 3], [1, 2, 3]) == pytest.approx(1)
    assert spearman([1, 1, 2], [1, 2, 3]) == pytest.approx(np.sqrt(0.75))  # ranks 1.5 1.5 3 against 1 2 3
    assert spearman([1, 1], [1, 2]) == 0


def test_recall() -> None:
    assert recall_at_k([5, 4, 3, 2], [0, 9, 8, 1], 2) == 0.5
    assert recall_at_k([1, 1, 1], [3, 2, 1], 1) == 1  # of equals the first
    assert recall_at_k([1, 2], [2, 1], 2) == 1


@pytest.mark.parametrize("call", [
    lambda: average_ranks([]), lambda: average_ranks([1, float("nan")]), lambda: spearman([1], [1]),
    lambda: spearman([1, 2], [1, 2, 3]), lambda: recall_at_k([1, 2], [1, 2], 3),
])  # fmt: skip
def test_what_has_no_rank_is_refused(call: object) -> None:
    with pytest.raises(InputError) as refused:
        call()  # type: ignore[operator]
    assert refused.value.remedy
