from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.datasets.synthetic.nlvr_statements import make_set
from tutelage.errors import InputError


@settings(max_examples=40)
@given(st.integers(0, 10**9))
def test_each_sentence_is_true_of_two_pairs(index: int) -> None:
    statements = make_set(3, index)
    assert len(statements) == 8
    by_text: dict[str, list[bool]] = {}
    for statement in statements:
        by_text.setdefault(statement.text, []).append(statement.truth)
        assert statement.gold_steps["visprog"][-1] == statement.truth
    assert [sorted(labels) for labels in by_text.values()] == [[False, False, True, True]] * 2
    assert len({statement.id for statement in statements}) == 8
    assert len({statement.left.id for statement in statements} | {statement.right.id for statement in statements}) == 8


def test_truth_is_read_off_the_scenes() -> None:
    checked = Counter()
    for index in range(60):
        for s in make_set(4, index):
            words = s.text.lower().replace(".", "").replace(",", "").split()
            if s.kind in ("sameColor", "differentColor"):
                colors = [next(t.color for t in side.of(words[at])) for side, at in ((s.left, 1), (s.right, 8))]
                assert s.truth == ((colors[0] == colors[1]) == (s.kind == "sameColor"))
            elif s.kind == "moreCount":
                noun = words[3].removesuffix("es") if words[3] == "crosses" else words[3].removesuffix("s")
                assert s.truth == (len(s.left.of(noun)) > len(s.right.of(noun)))
            elif s.kind == "bothCount":
                assert s.truth == (bool(s.left.of(words[-1])) and bool(s.right.of(words[-1])))
            elif s.kind == "eachColor":
                left, right = s.left.of(words[1])[0].color, s.right.of(words[10])[0].color
                assert s.truth == (left == words[7] and right == words[16])
            else:
                continue
            checked[s.kind] += 1
    assert set(checked) == {"sameColor", "differentColor", "moreCount", "bothCount", "eachColor"}


def test_too_many_sentences_are_refused() -> None:
    with pytest.raises(InputError, match="no four pairs fit 50 sentences"):
        make_set(0, 0, sentences=50)
