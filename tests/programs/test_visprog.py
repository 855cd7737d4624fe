from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.modules.symbolic import symbolic_modules
from tutelage.programs.types import (
    ForbiddenSyntax,
    LimitExceeded,
    ParseFailure,
    ProgramFailure,
    Signature,
    TypeFailure,
    UndefinedVariable,
    UnknownModule,
)
from tutelage.programs.visprog import MAX_SOURCE, Parser, VisProgProgram, parse

SIGNATURES = {name: module.signature for name, module in symbolic_modules().items()} | {
    "LOC": Signature({"image": "image", "object": "text"}, "boxes"),
    "VQA": Signature({"image": "image", "question": "text"}, "text"),
    "VERIFY": Signature({"image": "image", "object": "text", "property": "text"}, "bool"),
}
END = "\nFINAL_RESULT=RESULT(var=X)"


def read(text: str, inputs: tuple[str, ...] = ("IMAGE",)) -> VisProgProgram:
    return parse(text, SIGNATURES, inputs)


def test_a_program_of_every_usual_step() -> None:
    program = read(
        "BOX0=LOC(image=IMAGE,object='circle')\n"
        "# a comment, and an empty line\n\n"
        "IMAGE0=CROP(box=BOX0, image=IMAGE)\n"
        'ANSWER0=VQA(image=IMAGE0,question="What color is the circle?")\n'
        "ANSWER1=EVAL(expr=\"'yes' if {ANSWER0} == 'red' else 'no'\")\n"
        "FINAL_ANSWER=RESULT(var=ANSWER1)\n"
    )
    assert [str(step) for step in program.steps] == [
        "BOX0=LOC(image=IMAGE,object='circle')",
        "IMAGE0=CROP(box=BOX0,image=IMAGE)",
        "ANSWER0=VQA(image=IMAGE0,question='What color is the circle?')",
        "ANSWER1=EVAL(expr=\"'yes' if {ANSWER0} == 'red' else 'no'\")",
        "FINAL_ANSWER=RESULT(var=ANSWER1)",
    ]
    assert [step.line for step in program.steps] == [1, 4, 5, 6, 7]
    assert list(program.waves[1][0][2]) == ["image", "box"]


def test_a_run_yields_calls_and_takes_values() -> None:
    program = read("B=LOC(image=IMAGE,object='a')\nX=COUNT(box=B)" + END)
    run = program.start({"IMAGE": "an image", "OTHER": 1})
    call = next(run)
    assert (call.module, call.args, call.step) == ("LOC", {"image": "an image", "object": "a"}, 0)
    call = run.send(["box"])
    assert (call.module, call.args, call.step) == ("COUNT", {"box": ["box"]}, 1)
    call = run.send(1)
    assert (call.module, call.args, call.step) == ("RESULT", {"var": 1}, 2)
    with pytest.raises(StopIteration) as stop:
        run.send("the end")
    assert stop.value.value == "the end"


def test_eval_is_given_the_variables_it_reads() -> None:
    run = read("A=VQA(image=IMAGE,question='?')\nX=EVAL(expr=\"'{A}' == 'red'\")" + END).start({"IMAGE": 0})
    next(run)
    assert run.send("red").args == {"expr": "'{A}' == 'red'", "values": {"A": "red"}}


def test_a_variable_set_twice_is_read_as_it_stood() -> None:
    text = "X=VQA(image=IMAGE,question='1')\nY=LOC(image=IMAGE,object=X)\nX=VQA(image=IMAGE,question='2')" + END
    run = read(text).start({"IMAGE": 0})
    assert [(call.step, call.args["question"]) for call in next(run)] == [(0, "1"), (2, "2")]
    assert [call.args for call in run.send(["first", "second"])] == [{"image": 0, "object": "first"}, {"var": "second"}]
    with pytest.raises(StopIteration) as stop:
        run.send(["boxes", "the end"])
    assert stop.value.value == "the end"


def test_runs_of_one_program_do_not_meet() -> None:
    program = read("X=VQA(image=IMAGE,question='?')" + END)
    one, two = program.start({"IMAGE": 1}), program.start({"IMAGE": 2})
    assert (next(one).args["image"], next(two).args["image"]) == (1, 2)
    assert (one.send("a").args, two.send("b").args) == ({"var": "a"}, {"var": "b"})


@pytest.mark.parametrize(
    ("line", "question"),
    [
        ("X=VQA(image=IMAGE,question='What is on the man's head?')", "What is on the man's head?"),
        ("X=VQA(question='the dogs' and the cat's', image=IMAGE)", "the dogs' and the cat's"),
        ("  X = VQA(image=IMAGE, question = 'it's' )  # he said 'so'", "it's"),
        ("X=VQA(image=IMAGE,question='that\\'s it')", "that's it"),
        ("X=VQA(image=IMAGE,question='that\\'s the man's')", "that's the man's"),
        ('X=VQA(image=IMAGE,question="the man\'s")', "the man's"),
        ("X=VQA(image=IMAGE,question='a, b=c (d)')", "a, b=c (d)"),
        ("X=VQA(image=IMAGE,question='(what's) that?')", "(what's) that?"),
    ],
)
def test_texts_may_hold_apostrophes(line: str, question: str) -> None:
    (asked,) = [argument.value for argument in read(line + END).steps[0].arguments if argument.name == "question"]
    assert asked == question


def test_pairs() -> None:
    program = read("X=VQA(image=RIGHT,question='?')" + END, ("LEFT", "RIGHT"))
    assert next(program.start({"LEFT": 1, "RIGHT": 2})).args["image"] == 2
    with pytest.raises(UndefinedVariable, match="RIGHT"):
        next(program.start({"LEFT": 1}))


@pytest.mark.parametrize(
    ("text", "failure", "where", "says"),
    [
        ("", ParseFailure, "line 1", "FINAL_RESULT=RESULT"),
        ("X=VQA(image=IMAGE,question='?')", ParseFailure, "line 1", "FINAL_RESULT=RESULT"),
        ("X=VQA(image=IMAGE,question='?')\nFINAL_RESULT=COUNT(box=X)", ParseFailure, "line 2", "FINAL_RESULT=RESULT"),
        ("FINAL_RESULT=RESULT(var=IMAGE)\nX=VQA(image=IMAGE,question='?')", ParseFailure, "line 2", "FINAL_RESULT"),
        ("X=VQA(image=IMAGE,\n\nquestion='?'" + END, ParseFailure, "line 1", "VAR=MODULE"),
        ("B=LOC(image=IMAGE,object='a')\nX=VQA(image=)" + END, ParseFailure, "line 2", "VAR=MODULE"),
        ("\x00", ParseFailure, "line 1", ""),
        ("\ud800=1", ParseFailure, "line 1", ""),
        ("import os" + END, ForbiddenSyntax, "line 1", "VAR=MODULE"),
        ("X=1" + END, ForbiddenSyntax, "line 1", "VAR=MODULE"),
        ("X=os.system(command='ls')" + END, ForbiddenSyntax, "line 1", "VAR=MODULE"),
        ("for X in IMAGE: pass" + END, ForbiddenSyntax, "line 1", "VAR=MODULE"),
        ("X, Y=LOC(image=IMAGE,object='a')" + END, ForbiddenSyntax, "line 1", "VAR=MODULE"),
        ("X=COUNT(box=LOC(image=IMAGE,object='a'))" + END, ForbiddenSyntax, "line 1", "neither a variable nor a literal"),
        ("X=VQA(image=IMAGE,question=f'{IMAGE}')" + END, ForbiddenSyntax, "line 1", "neither a variable nor a literal"),
        ("X=VQA(**IMAGE)" + END, ForbiddenSyntax, "line 1", "not allowed"),
        ("X=LCO(image=IMAGE,object='a')" + END, UnknownModule, "line 1", "did you mean LOC"),
        ("X=__import__(name='os')" + END, UnknownModule, "line 1", "__import__"),
        ("B=LOC(image=IMGE,object='a')\nX=COUNT(box=B)" + END, UndefinedVariable, "line 1", "did you mean IMAGE"),
        ("X=COUNT(box=X)" + END, UndefinedVariable, "line 1", "'X'"),
        ("X=EVAL(expr='{ANSWER0} > 1')" + END, UndefinedVariable, "line 1", "ANSWER0"),
        ("X=LOC(IMAGE,'a')" + END, TypeFailure, "line 1", "by name"),
        ("X=LOC(image=IMAGE,objekt='a')" + END, TypeFailure, "line 1", "did you mean object"),
        ("X=LOC(image=IMAGE,object='a',object=3)" + END, TypeFailure, "line 1", "more than once"),
        ("X=LOC(image=IMAGE)" + END, TypeFailure, "line 1", "not given object"),
        ("X=COUNT(box=IMAGE)" + END, TypeFailure, "line 1", "IMAGE is image"),
        ("X=COUNT(box='two')" + END, TypeFailure, "line 1", "'two' is text"),
        ("X=LOC(image=IMAGE,object=3)" + END, TypeFailure, "line 1", "3 is number"),
        ("X=LOC(image=IMAGE,object=None)" + END, TypeFailure, "line 1", "nothing"),
        ("X=LOC(image=IMAGE,object=True)" + END, TypeFailure, "line 1", "True is bool"),
        ("X=EVAL(expr='1',values=IMAGE)" + END, TypeFailure, "line 1", "values"),
        ("Y=VQA(image=IMAGE,question='?')\nX=EVAL(expr=Y)" + END, TypeFailure, "line 2", "as a text"),
        ("X=EVAL(expr='1 +')" + END, ParseFailure, "line 1", "not an expression"),
        ("X=EVAL(expr='f(1)')" + END, ForbiddenSyntax, "line 1", "Call"),
        ("X=EVAL(expr='" + "not " * 300 + "1')" + END, LimitExceeded, "line 1", "nested"),
        ("#" * (MAX_SOURCE + 1), LimitExceeded, None, "20,000"),
        ("X=VQA(image=" + "(" * 5_000, ParseFailure, "line 1", "nested"),
        ("X=VQA(image=" + "-" * 15_000 + "1)" + END, LimitExceeded, None, "nested"),
    ],
)
def test_every_failure_names_the_line_and_the_remedy(
    text: str, failure: type[ProgramFailure], where: str | None, says: str
) -> None:
    with pytest.raises(ProgramFailure) as caught:
        read(text)
    assert type(caught.value) is failure
    assert caught.value.where == where
    assert says in str(caught.value)


def test_types_flow_through_result_and_reassignment() -> None:
    read("X=VQA(image=IMAGE,question='?')\nX=LOC(image=IMAGE,object=X)\nX=COUNT(box=X)" + END)
    read("Y=RESULT(var=IMAGE)\nX=VQA(image=Y,question='?')" + END)
    with pytest.raises(TypeFailure, match="Y is image"):
        read("Y=RESULT(var=IMAGE)\nX=COUNT(box=Y)" + END)


def test_optional_arguments_and_lists() -> None:
    read("O=SEG(image=IMAGE)\nX=SELECT(image=IMAGE,object=O,query='red',category=None)" + END)
    read("O=SEG(image=IMAGE)\nX=SELECT(image=IMAGE,object=O,query='red')" + END)
    program = read("O=SEG(image=IMAGE)\nX=CLASSIFY(image=IMAGE,object=O,categories=['red','blue'])" + END)
    assert program.steps[1].arguments[2].value == ["red", "blue"]


def test_a_parser_reads_each_text_once() -> None:
    parser = Parser(SIGNATURES, keep=2)
    text = "X=VQA(image=IMAGE,question='?')" + END
    program = parser.parse(text)
    assert parser.parse(text) is program
    assert parser.try_parse("X") is parser.try_parse("X")
    with pytest.raises(UndefinedVariable):
        parser.parse(text, ("LEFT", "RIGHT"))
    assert parser.parse(text) is not program  # only two are kept


_NAMES = st.from_regex(r"[A-Z]{1,8}[0-9]?", fullmatch=True)
_TEXTS = st.text(max_size=30)


@given(st.lists(st.tuples(_NAMES, _TEXTS), min_size=1, max_size=6), _TEXTS)
def test_writing_a_program_and_reading_it_gives_it_back(lines: list[tuple[str, str]], noun: str) -> None:
    written = [f"{target}=VQA(image=LEFT,question={text!r})" for target, text in lines]
    written += [f"B=LOC(image=LEFT,object={noun!r})", "B=COUNT(box=B)", f"FINAL_RESULT=RESULT(var={lines[0][0]})"]
    program = read("\n".join(written), ("LEFT", "RIGHT"))
    again = read("\n".join(map(str, program.steps)), ("LEFT", "RIGHT"))
    assert again.steps == program.steps
    assert [step.arguments[1].value for step in program.steps[: len(lines)]] == [text for _, text in lines]


_TOKENS = ["X", "=", "LOC", "VQA", "(", ")", ",", "image", "IMAGE", "'", '"', "object", "\n", " ", "{", "}", "EVAL"]
_TOKENS += ["expr", "FINAL_RESULT=RESULT(var=X)", "#", "\\", "[", "-", "1", "None", "é", "lambda", "\t", ":"]


@given(st.lists(st.sampled_from(_TOKENS), max_size=40).map("".join) | st.text(max_size=80))
def test_any_text_is_a_program_or_a_typed_failure(text: str) -> None:
    try:
        read(text)
    except ProgramFailure as failure:
        assert failure.kind in {"parse", "refused", "unknown_module", "undefined_var", "type", "limit"}


STEPS = "BOX0=LOC(image=IMAGE,object='cat')\nANSWER0=VQA(image=IMAGE,question='Why: what?')\nFINAL_RESULT=RESULT(var=ANSWER0)"


@pytest.mark.parametrize(
    "text",
    [
        f"Program:\n{STEPS}",
        f"Program: {STEPS}",
        f"{STEPS}\n\nQuestion: What next?\nProgram:\nBOX0=LOC(",
        f"Program:\n{STEPS}\nStatement: The left one is red.",
        f"```\n{STEPS}\n```",
        f"Here is the program:\n\n```python\n{STEPS}\n```\nIt's done.",
        "\n".join(f"{number}. {line}" for number, line in enumerate(STEPS.split("\n"), 1)),
        f"Question: What is it?\nProgram:\n{STEPS}",
    ],
)
def test_a_program_is_found_in_what_a_model_wrote(text: str) -> None:
    assert [str(step) for step in read(text).steps] == STEPS.split("\n")


def test_what_is_wrong_is_said_of_the_text_as_it_stands() -> None:
    with pytest.raises(ProgramFailure) as caught:
        read("Program:\nBOX0=LOC(image=IMAGE\nFINAL_RESULT=RESULT(var=BOX0)")
    assert str(caught.value.where).startswith("line")
