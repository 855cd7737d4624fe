from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.modules.vocabulary import Vocabulary, tokens

from .networks import VOCABULARY


def answers(question: str) -> set[str]:
    return {VOCABULARY.flat[i] for i in VOCABULARY.read(question).allowed}


@pytest.mark.parametrize(
    ("question", "allowed"),
    [
        ("What color is the circle?", {"red", "green", "blue"}),
        ("What size is the star?", {"small", "large"}),
        ("Is the circle red?", {"yes", "no"}),
        ("Is the color of the circle red?", {"yes", "no"}),
        ("Is the circle red or blue?", {"red", "blue"}),
        ("What is the color of the circle, red, green or blue?", {"red", "green", "blue"}),
        ("Is the circle red or a star?", {"yes", "no"}),
        ("", {"yes", "no"}),
    ],
)
def test_a_question_says_which_answers_it_may_get(question: str, allowed: set[str]) -> None:
    assert answers(question) == allowed


def test_unknown_words_are_marked_and_skipped() -> None:
    known, unknown = VOCABULARY.read("What color is the star?"), VOCABULARY.read("What color is the purple zebra?")
    assert known.known and not unknown.known
    assert unknown.allowed == known.allowed
    assert 0 in unknown.ids and 0 not in known.ids


def test_ids_are_those_of_the_words_in_order() -> None:
    ids, known = VOCABULARY.ids("the red star")
    assert known and [VOCABULARY.words[i - 1] for i in ids] == ["red", "star"]


def test_a_vocabulary_without_yes_and_no_offers_all_its_answers() -> None:
    colors = Vocabulary((("color", ("red", "blue")),), ("object",))
    assert colors.read("Is it red?").allowed == (0, 1)
    assert colors.group("size") == ()


@given(st.text())
def test_every_text_can_be_read(text: str) -> None:
    reading = VOCABULARY.read(text)
    assert reading.allowed and len(set(reading.allowed)) == len(reading.allowed)
    assert set(reading.allowed) <= set(range(len(VOCABULARY.flat)))
    assert all(0 <= i <= len(VOCABULARY.words) for i in reading.ids)
    assert reading.known == (0 not in reading.ids)
    assert all(word == word.lower() and word.isalnum() for word in tokens(text))
