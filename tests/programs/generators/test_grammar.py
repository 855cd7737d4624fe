from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.datasets.synthetic.nlvr_statements import make_set
from tutelage.datasets.synthetic.question_types import QUESTION_TYPES
from tutelage.datasets.synthetic.scene import make_scene
from tutelage.datasets.synthetic.tasks import make_task
from tutelage.modules.symbolic import symbolic_modules
from tutelage.programs import viper, visprog
from tutelage.programs.generators.grammar import generate, singular
from tutelage.programs.types import ParseFailure, Signature

PAIR = ("LEFT", "RIGHT")
SIGNATURES = {name: module.signature for name, module in symbolic_modules().items()} | {
    "LOC": Signature({"image": "image", "object": "text"}, "boxes"),
    "VQA": Signature({"image": "image", "question": "text"}, "text"),
    "VERIFY": Signature({"image": "image", "object": "text", "property": "text"}, "bool"),
}


@settings(max_examples=25)
@given(st.integers(0, 10**9), st.sampled_from([None, 1]))
def test_every_question_of_the_world_becomes_its_gold_program(index: int, count: int | None) -> None:
    scene, rng = make_scene(21, index, "B", count=count), np.random.default_rng(index)
    for kind in QUESTION_TYPES:
        for draft in QUESTION_TYPES[kind](scene, rng):
            question = draft.build(rng, "q")
            written = generate(question.text)
            assert written.visprog == question.programs["visprog"], question.text
            assert written.viper == question.programs["viper"], question.text


@settings(max_examples=25)
@given(st.integers(0, 10**9))
def test_every_statement_about_a_pair_becomes_its_gold_program(index: int) -> None:
    for statement in make_set(22, index):
        written = generate(statement.text, PAIR)
        assert (written.visprog, written.viper) == (statement.programs["visprog"], statement.programs["viper"])


def test_where_questions() -> None:
    for sample in make_task("b_grounding", 100, "select", 20):
        assert generate(sample.question)._asdict() == sample.programs


def lines(question: str, **options: object) -> list[str]:
    written = generate(question, **options)  # type: ignore[arg-type]
    inputs = tuple(options.get("inputs", ("IMAGE",)))  # type: ignore[arg-type]
    visprog.parse(written.visprog, SIGNATURES, inputs)
    viper.parse(written.viper, SIGNATURES)
    return written.visprog.splitlines()[:-1]


@pytest.mark.parametrize(
    ("question", "last"),
    [
        ("what colour is the fire hydrant", "VQA(image=IMAGE0,question='What color is the fire hydrant?')"),
        ("Is there no star?", "EVAL(expr=\"'yes' if {ANSWER0} == 0 else 'no'\")"),
        ("Are there any dogs in the picture?", "EVAL(expr=\"'yes' if {ANSWER0} > 0 else 'no'\")"),
        ("Is the cup red?", "VERIFY(image=IMAGE0,object='cup',property='red')"),
        ("Is the cup above the table?", "EVAL(expr=\"'yes' if {ANSWER0} > 0 else 'no'\")"),
        ("How many crosses are there?", "COUNT(box=BOX0)"),
    ],
)
def test_phrasings_of_gqa(question: str, last: str) -> None:
    assert lines(question)[-1].partition("=")[2] == last


@pytest.mark.parametrize(
    ("sentence", "last"),
    [
        ("The left image contains exactly two dogs.", 'EVAL(expr="{ANSWER0} == 2")'),
        ("The right image contains no dog.", 'EVAL(expr="{ANSWER0} == 0")'),
        ("There are fewer dogs in the right image than in the left image.", 'EVAL(expr="{ANSWER0} > {ANSWER1}")'),
        ("There are at most 3 dogs in both images.", 'EVAL(expr="{ANSWER0} + {ANSWER1} <= 3")'),
        ("None of the images contains a dog.", 'EVAL(expr="not ({ANSWER0} > 0 or {ANSWER1} > 0)")'),
        ("The dog in the right image is brown.", "VERIFY(image=IMAGE0,object='dog',property='brown')"),
    ],
)
def test_statements_in_the_manner_of_nlvr2(sentence: str, last: str) -> None:
    assert lines(sentence, inputs=PAIR)[-1].partition("=")[2] == last


def test_a_single_thing_is_asked_about_whole() -> None:
    color, shape = "ANSWER0=VQA(image=IMAGE,question='What color is the shape?')", "What shape is in the image?"
    assert lines("what is the color of the triangle?", single=True) == [color]
    assert lines("is there not a red shape?", single=True) == [color, "ANSWER1=EVAL(expr=\"{ANSWER0} != 'red'\")"]
    assert lines("is a circle present?", single=True)[1] == "ANSWER1=EVAL(expr=\"{ANSWER0} == 'circle'\")"
    assert shape in lines("what is the blue shape?", single=True)[0]


def test_every_question_of_easy_vqa_is_read() -> None:
    try:
        root = Path(str(distribution("easy-vqa").locate_file("easy_vqa/data")))
    except PackageNotFoundError:
        pytest.skip("the package easy-vqa is not installed")
    colors = "black gray teal brown red green blue yellow".split()
    for split in ("train", "test"):
        rows = json.loads((root / split / "questions.json").read_text())
        truth: dict[int, dict[str, str]] = {}
        for _, answer, image in rows:
            if answer not in ("yes", "no"):
                truth.setdefault(image, {})["color" if answer in colors else "shape"] = answer
        right = set()
        for question, answer, image in rows:
            program = generate(question, single=True).visprog.splitlines()
            asked = truth.get(image, {}).get("color" if "What color" in program[0] else "shape")
            if asked is None:
                continue
            if len(program) == 3:  # the comparison that EVAL makes, made here
                wanted, negated = program[1].split("'")[1], "!=" in program[1]
                asked = "yes" if (asked == wanted) != negated else "no"
            assert asked == answer, (question, image)
            right.add(question)
        assert right == {question for question, _, _ in rows}


@pytest.mark.parametrize("question", ["", "Why?", "What is love", "Is there a red circle and a blue star here?", "a" * 5000])
def test_what_no_rule_reads_is_a_parse_failure(question: str) -> None:
    with pytest.raises(ParseFailure, match="does not read"):
        generate(question)


def test_other_failures() -> None:
    with pytest.raises(ParseFailure, match="one property"):
        generate("is there a red circle?", single=True)
    with pytest.raises(ParseFailure, match="no programs are written"):
        generate("Is there a circle?", ("VIDEO",))


@given(st.text(max_size=80))
def test_any_text_is_read_or_refused_and_what_is_written_parses(text: str) -> None:
    for inputs in (("IMAGE",), PAIR):
        try:
            written = generate(text, inputs)
        except ParseFailure:
            continue
        visprog.parse(written.visprog, SIGNATURES, inputs)


def test_singular() -> None:
    words = ("circles", "crosses", "boxes", "benches", "cross", "star")
    assert [singular(word) for word in words] == ["circle", "cross", "box", "bench", "cross", "star"]
