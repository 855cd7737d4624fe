"""Published protocols: what they ask of a split, and when an answer is right."""

from __future__ import annotations

import pytest

from tutelage.errors import InputError
from tutelage.sdvp.real_data.protocols import (
    PROTOCOLS,
    VIPER_GQA,
    VISPROG_GQA,
    VISPROG_NLVR2,
    exact_match,
    get_protocol,
    normalized_match,
    vipergpt_match,
)


def test_the_published_sizes() -> None:
    assert (VISPROG_GQA.split, VISPROG_GQA.subset, VISPROG_GQA.per_kind, VISPROG_GQA.runs) == ("testdev", "balanced", 20, 5)
    assert (VIPER_GQA.split, VIPER_GQA.total, VIPER_GQA.fallback) == ("testdev", 1000, True)
    assert (VISPROG_NLVR2.split, VISPROG_NLVR2.per_kind, VISPROG_NLVR2.total) == ("test1", None, None)
    assert len({preset.name for preset in PROTOCOLS}) == len(PROTOCOLS) and all(preset.unverified for preset in PROTOCOLS)


def test_a_task_has_a_default_and_unknown_names_are_told() -> None:
    assert get_protocol("gqa") is VISPROG_GQA and get_protocol("nlvr2") is VISPROG_NLVR2
    assert get_protocol("gqa", "viper-gqa") is VIPER_GQA
    with pytest.raises(InputError, match="did you mean visprog-gqa"):
        get_protocol("gqa", "visprog-gqq")
    with pytest.raises(InputError, match="no preset 'viper-gqa' of nlvr2"):
        get_protocol("nlvr2", "viper-gqa")


@pytest.mark.parametrize(
    ("answer", "gold", "right"),
    [
        (True, "yes", True),
        (False, "no", True),
        (["red", "blue"], "red", True),
        (None, "no", False),
        ("Red", "red", False),
        ("the red", "red", False),
        (2, "2", True),
    ],
)
def test_equal_texts(answer: object, gold: str, right: bool) -> None:
    assert exact_match(answer, gold) is right


def test_alike_as_the_house_spells() -> None:
    assert normalized_match("The Red.", "red") and normalized_match("two", "2") and not normalized_match("blue", "red")


@pytest.mark.parametrize(
    ("answer", "gold", "right"),
    [
        (None, "no", True),
        ([], "no", True),
        ("True", "yes", True),
        (True, "yes", True),
        (["Red", "blue"], "red", True),
        ("The red car.", "red car", True),
        ("two", "2", True),
        ("2", "two", False),  # the annotation is taken as it stands
        ("none", "0", True),
        ("t-shirt", "t-shirt", False),  # a hyphen between letters becomes a space
        ("t-shirt", "t shirt", True),
        ("left, right", "left right", True),  # beside a space it goes
        ("1,000", "1000", True),
        ("a\nb", "b", True),  # "a" is an article
        ("3.5", "3.5", True),
        ("blue", "red", False),
    ],
)
def test_vipergpts_rule(answer: object, gold: str, right: bool) -> None:
    assert vipergpt_match(answer, gold) is right
