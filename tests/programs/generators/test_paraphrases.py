from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tutelage.errors import InputError
from tutelage.programs.generators.paraphrases import fillers, make_pairs, plural, read_paraphrases
from tutelage.programs.generators.program_templates import words


def test_our_wordings_are_read_and_cover_every_kind_of_question() -> None:
    forms = read_paraphrases()
    assert {form.about for form in forms} == {"image", "pair", "single", "none"}
    assert all(form.paraphrases and form.held_out for form in forms)
    assert all((form.canonical == "") == (form.about == "none") for form in forms)


def test_held_out_wordings_are_not_among_the_others() -> None:
    forms = read_paraphrases()
    said = {(form.about, text) for form in forms for text in (form.canonical, *form.paraphrases)}
    assert not said & {(form.about, text) for form in forms for text in form.held_out}


def test_wordings_of_one_form_give_one_program_with_the_words_of_the_question() -> None:
    found = list(make_pairs(read_paraphrases(), np.random.default_rng(0), rounds=2, held_out=True))
    assert len(found) == 2 * sum(len(form.held_out) for form in read_paraphrases())
    for pair in found:
        assert (pair.program is None) == (pair.about == "none")
        assert "{" not in pair.question
        if pair.program is not None and "LOC" in pair.program:
            noun = pair.program.split("object='")[1].split("'")[0]
            assert noun in words(pair.question)


def test_words_are_drawn_from_the_seed_and_differ_within_a_question() -> None:
    rng = np.random.default_rng(0)
    drawn = [fillers(rng) for _ in range(200)]
    assert drawn[0] == fillers(np.random.default_rng(0))
    assert all(one["n"] != one["m"] and one["w"] != one["x"] and one["s"] != one["t"] for one in drawn)
    assert plural("box") == "boxes" and plural("dog") == "dogs"


@pytest.mark.parametrize(
    ("text", "where", "words_"),
    [
        ("image: What {k} is the {n}?\n  The {k} of the {nn}?\n", ":2", "no slot"),
        ("# a comment\n  The {k} of the {n}?\n", ":2", "before the first form"),
        ("picture: What {k} is the {n}?\n", ":1", "unknown form"),
        ("\nimage: Colour me surprised, {n}\n", ":2", "the grammar does not read"),
    ],
)
def test_a_broken_file_is_refused_with_its_line(tmp_path: Path, text: str, where: str, words_: str) -> None:
    file = tmp_path / "wordings.txt"
    file.write_text(text)
    with pytest.raises(InputError, match=words_) as caught:
        read_paraphrases(file)
    assert str(caught.value.where) == f"{file}{where}"


def test_an_absent_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        read_paraphrases(tmp_path / "none.txt")
