"""The grammar on everyday questions about photographs: the steps of each, in both languages."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.modules.symbolic import symbolic_modules
from tutelage.programs import viper, visprog
from tutelage.programs.generators.grammar import generate
from tutelage.programs.types import ParseFailure, Signature

SIGNATURES = {name: module.signature for name, module in symbolic_modules().items()} | {
    "LOC": Signature({"image": "image", "object": "text"}, "boxes"),
    "VQA": Signature({"image": "image", "question": "text"}, "text"),
    "VERIFY": Signature({"image": "image", "object": "text", "property": "text"}, "bool"),
}


@pytest.mark.parametrize(
    ("question", "lines"),
    [
        ("How many people are there?", ["LOC(image=IMAGE,object='people')", "COUNT(box=BOX0)"]),
        ("How many cats do you see in the picture?", ["LOC(image=IMAGE,object='cat')", "COUNT(box=BOX0)"]),
        ("How many cups can you see?", ["LOC(image=IMAGE,object='cup')", "COUNT(box=BOX0)"]),
        ("Can you see a dog?", ["LOC(image=IMAGE,object='dog')", "COUNT(box=BOX0)", "'yes' if {ANSWER0} > 0"]),
        ("Is there any dog in the photo?", ["LOC(image=IMAGE,object='dog')", "COUNT(box=BOX0)"]),
        ("Are there more people than dogs?", ["object='people'", "object='dog'", "{ANSWER0} > {ANSWER1}"]),
        ("Is the cup left of the spoon?", ["object='spoon'", "CROP_LEFTOF", "LOC(image=IMAGE0,object='cup')"]),
        ("Is the cup under the lamp?", ["object='lamp'", "CROP_BELOW", "object='cup'"]),
        ("What colour is the motorcycle?", ["object='motorcycle'", "CROP(", "VQA(image=IMAGE0"]),
        ("What is in the picture?", ["VQA(image=IMAGE,question='What is in the picture?')"]),
        ("What does the sign say?", ["VQA(image=IMAGE,question='What does the sign say?')"]),
        ("What is the person's name?", ['VQA(image=IMAGE,question="What is the person\'s name?")']),
    ],
)
def test_a_question_becomes_these_steps(question: str, lines: list[str]) -> None:
    written = generate(question, photo=True)
    place = 0
    for line in lines:
        place = written.visprog.find(line, place)
        assert place >= 0, f"{line} is not in\n{written.visprog}"


@given(st.text(max_size=60))
def test_whatever_is_asked_of_a_photograph_becomes_a_program_of_both_languages(question: str) -> None:
    try:
        written = generate(question, photo=True)
    except ParseFailure:
        text = " ".join(question.split()).rstrip("?. ")
        assert not text or not text.isprintable()
        return
    for parser, text in ((visprog.Parser(SIGNATURES), written.visprog), (viper.Parser(SIGNATURES), written.viper)):
        parsed = parser.try_parse(text, ("IMAGE",))
        assert getattr(parsed, "dsl", None), f"{text}\n{parsed}"


def test_drawn_scenes_keep_their_rules() -> None:
    for question in ("What is in the picture?", "How many cups can you see?", "Who is this?"):
        with pytest.raises(ParseFailure):
            generate(question)
