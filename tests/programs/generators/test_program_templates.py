from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.datasets.synthetic.tasks import make_task
from tutelage.programs.generators.grammar import generate
from tutelage.programs.generators.paraphrases import INPUTS, make_pairs, read_paraphrases
from tutelage.programs.generators.program_templates import PLURAL, ProgramPart, join_program, split_program, to_program_pair, words
from tutelage.programs.types import ParseFailure, ProgramFailure

COLOR = generate("What color is the dog?").visprog


def test_a_question_is_read_word_by_word_with_plurals_and_numbers_taken_apart() -> None:
    assert words("How many Crosses are there?") == ("how", "many", "cross", PLURAL, "are", "there")
    assert words("Exactly three dogs.") == ("exactly", "3", "dog", PLURAL)
    assert words("What is the dog's colour?") == ("what", "is", "the", "dog", "of", "color")
    assert words("") == ()


@given(st.text(max_size=60))
def test_any_text_can_be_read(text: str) -> None:
    assert all(word == PLURAL or (word and word == word.lower()) for word in words(text))


def test_arguments_that_the_question_names_become_holes_and_others_stay() -> None:
    parts = split_program(COLOR, words("What color is the dog?"))
    assert parts[0] == ProgramPart("BOX0=LOC(image=IMAGE,object='@')", ("dog",))
    assert parts[2] == ProgramPart("ANSWER0=VQA(image=IMAGE0,question='What @ is the @?')", ("color", "dog"))
    (kept, *_) = split_program(COLOR, words("Which hue does it have?"))
    assert kept == ProgramPart("BOX0=LOC(image=IMAGE,object='dog')")
    chosen = split_program(generate("Is the dog to the left or to the right of the cat?").visprog, ("left", "right", "dog", "cat"))
    assert ProgramPart("ANSWER1=EVAL(expr=\"'@' if {ANSWER0} > 0 else '@'\")", ("left", "right")) in chosen
    yes = split_program(generate("Is there a dog?").visprog, ("yes", "no", "dog", "0"))
    assert ProgramPart("ANSWER1=EVAL(expr=\"'yes' if {ANSWER0} > 0 else 'no'\")") in yes


def test_programs_of_every_wording_come_together_again_in_both_languages() -> None:
    for pair in make_pairs(read_paraphrases(), np.random.default_rng(0), rounds=1):
        if pair.program is not None:
            assert join_program(split_program(pair.program, words(pair.question))) == pair.program
            assert to_program_pair(pair.program, INPUTS[pair.about]).visprog == pair.program


@pytest.mark.parametrize("task", ["b_gqa", "b_nlvr", "b_spatial", "b_grounding", "c_mixed"])
def test_the_world_s_programs_are_composed_alike_from_their_visprog_lines(task: str) -> None:
    for sample in make_task(task, 100, "select", 40):
        found = to_program_pair(sample.programs["visprog"], tuple(sample.images))
        assert found == (sample.programs["visprog"], sample.programs["viper"])


@pytest.mark.parametrize(
    "text",
    [
        "ANSWER0=COUNT(box=BOX0)\nFINAL_RESULT=RESULT(var=ANSWER0)",
        "IMAGE0=CROP_BEHIND(image=IMAGE,box=IMAGE)\nFINAL_RESULT=RESULT(var=IMAGE0)",
        "BOX0=LOC(image=IMAGE)\nFINAL_RESULT=RESULT(var=BOX0)",
        "BOX0=LOC(image=IMAGE,object='a')\nANSWER0=EVAL(expr=\"{X} > 0\")\nFINAL_RESULT=RESULT(var=ANSWER0)",
        "no sense",
        "",
    ],
)
def test_what_is_no_such_program_is_a_typed_failure(text: str) -> None:
    with pytest.raises(ParseFailure):
        to_program_pair(text)


@given(st.lists(st.sampled_from([*COLOR.splitlines(), "ANSWER0=COUNT(box=BOX0)", "X=SEG(image=IMAGE)"]), max_size=6))
def test_lines_in_any_order_compose_or_fail_with_a_type(lines: list[str]) -> None:
    try:
        found = to_program_pair("\n".join(lines))
    except ProgramFailure:
        return
    assert found.viper.startswith("def execute_command(image):")
