from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.errors import InputError
from tutelage.modules.symbolic import symbolic_modules
from tutelage.programs import viper, visprog
from tutelage.programs.generators.base import FailedProgram, GenerationRequest
from tutelage.programs.generators.embedding import hashed_words
from tutelage.programs.generators.few_shot import (
    BUILT_IN,
    PAIR,
    Example,
    PromptBuilder,
    fixed,
    read_examples,
    retrieved,
    rules_of,
    sampled,
)
from tutelage.programs.run_context import Job, RunContext
from tutelage.programs.scheduler import run
from tutelage.programs.types import ParseFailure, Signature
from tutelage.programs.values import Box

from ..stubs import Stub, by_name, loc, picture, vqa

ONE = ("IMAGE",)
TEXTS = {"image": "image"}
MODULES = {
    **symbolic_modules(),
    **by_name(
        loc(),
        vqa(),
        Stub("VERIFY", Signature(TEXTS | {"object": "text", "property": "text"}, "bool"), lambda call: True),
        Stub("MATCH", Signature(TEXTS | {"options": "any"}, "text"), lambda call: call.args["options"][0]),
        Stub("DEPTH", Signature(TEXTS, "number"), lambda call: 1.0),
    ),
}
SIGNATURES = {name: module.signature for name, module in MODULES.items()}
PARSERS = {"visprog": visprog.Parser(SIGNATURES), "viper": viper.Parser(SIGNATURES)}
KINDS = [(dsl, inputs) for dsl in PARSERS for inputs in (ONE, PAIR)]
EXAMPLES = [Example(question, "P") for question in ("What color is the dog?", "How many dogs are there?", "Is it raining?")]


def shipped(dsl: str, inputs: tuple[str, ...]) -> tuple[Example, ...]:
    return read_examples(BUILT_IN / f"{dsl}-{'pair' if inputs == PAIR else 'one'}.txt", PARSERS[dsl], inputs)


@pytest.mark.parametrize(("dsl", "inputs"), KINDS)
def test_every_shipped_example_runs_to_an_answer(dsl: str, inputs: tuple[str, ...]) -> None:
    state = {name: picture(number) for number, name in enumerate(inputs)}
    examples = shipped(dsl, inputs)
    assert len(examples) >= 8 and len({example.question for example in examples}) == len(examples)
    jobs = [Job(example.question, PARSERS[dsl].parse(example.program, inputs), state) for example in examples]
    for trace in run(jobs, RunContext(MODULES)):
        assert trace.status == "ok", f"{trace.id}: {trace.error}"
        assert isinstance(trace.answer, (str, bool, int, Box, list)), trace.id


@pytest.mark.parametrize("inputs", [ONE, PAIR])
def test_both_languages_show_nearly_the_same_questions(inputs: tuple[str, ...]) -> None:
    ours, theirs = ({example.question for example in shipped(dsl, inputs)} for dsl in PARSERS)
    assert len(ours & theirs) >= 10


@pytest.mark.parametrize(("dsl", "inputs"), KINDS)
def test_a_prompt_ends_with_its_question(dsl: str, inputs: tuple[str, ...]) -> None:
    label = "Statement" if inputs == PAIR else "Question"
    prompt = PromptBuilder(SIGNATURES).prompt(GenerationRequest("Is  the\ndog brown?", dsl, inputs))
    assert prompt.text.endswith(f"{label}: Is the dog brown?\nProgram:\n")
    roles = [message["role"] for message in prompt.messages]
    assert roles == ["system", *["user", "assistant"] * 8, "user"]
    assert prompt.messages[0]["content"] == rules_of(dsl, SIGNATURES)


def test_the_rules_name_the_modules_that_are_there_and_no_others() -> None:
    some = {name: SIGNATURES[name] for name in ("LOC", "COUNT", "RESULT")} | {"WIDER": Signature({"image": "image"}, "bool")}
    visprog_rules, viper_rules = rules_of("visprog", some), rules_of("viper", some)
    assert "LOC(" in visprog_rules and "COUNT(" in visprog_rules and "VQA" not in visprog_rules
    assert "find(" in viper_rules and "simple_query" not in viper_rules and "COUNT" not in viper_rules
    for rules in (visprog_rules, viper_rules):
        assert "  WIDER(image: image) -> bool" in rules.splitlines() and "OTHERS" not in rules


def test_shipped_examples_that_need_absent_modules_are_left_out() -> None:
    some = {name: signature for name, signature in SIGNATURES.items() if name not in ("VERIFY", "MATCH", "DEPTH")}
    for dsl, inputs in KINDS:
        prompt = PromptBuilder(some, shots=99).prompt(GenerationRequest("What is it?", dsl, inputs))
        assert len(prompt.turns) > 9 and not any(name in prompt.text for name in ("VERIFY", "verify_property(", "MATCH", "depth"))


def test_random_examples_differ_between_samples_not_between_questions() -> None:
    prompts = PromptBuilder(SIGNATURES, "random", 4, seed=3)
    first, same, other = (prompts.prompt(GenerationRequest(q), s).turns[:-1] for q, s in (("a", 0), ("b", 0), ("a", 1)))
    assert first == same and first != other and len(first) == 8
    assert PromptBuilder(SIGNATURES, "random", 4, seed=3).prompt(GenerationRequest("a")).turns[:-1] == first
    assert PromptBuilder(SIGNATURES, "random", 4, seed=4).prompt(GenerationRequest("a")).turns[:-1] != first


def test_choosers_never_give_more_than_there_are() -> None:
    for choose in (fixed(EXAMPLES, 8), sampled(EXAMPLES, 8), retrieved(EXAMPLES, 8)):
        assert sorted(choose(GenerationRequest("x"), 0)) == sorted(EXAMPLES)


def test_retrieved_examples_stand_nearest_last() -> None:
    choose = retrieved(EXAMPLES, 2)
    assert [example.question for example in choose(GenerationRequest("What color is the dog now?"), 0)][-1] == EXAMPLES[0].question
    assert choose(GenerationRequest("How many cats are there?"), 0)[-1] == EXAMPLES[1]


def test_any_embedding_can_be_given() -> None:
    lengths = retrieved(EXAMPLES, 1, lambda texts: np.array([[len(text), 1000.0] for text in texts]))
    assert lengths(GenerationRequest("x" * 24), 0) == [EXAMPLES[1]] and lengths(GenerationRequest("x"), 0) == [EXAMPLES[2]]


@given(st.lists(st.text(max_size=30), min_size=1, max_size=5), st.text(max_size=30))
def test_a_text_is_nearest_to_itself(corpus: list[str], text: str) -> None:
    embed = hashed_words([*corpus, text])
    vectors = embed([*corpus, text])
    assert vectors.shape == (len(corpus) + 1, 1024) and np.isfinite(vectors).all()
    assert np.array_equal(embed([text])[0], vectors[-1])


GOOD = "Question: How many dogs are there?\nProgram:\nBOX0=LOC(image=IMAGE,object='dog')\nANSWER0=COUNT(box=BOX0)\n"
END = "FINAL_RESULT=RESULT(var=ANSWER0)\n"


@pytest.mark.parametrize(
    ("text", "line", "told"),
    [
        (GOOD + END + "\nQuestion: Again?\nProgram:\n\nANSWER0=CONT(box=BOX0)\n" + END, 10, "unknown module 'CONT'"),
        (GOOD + "# between\n" + END.replace("ANSWER0", "ANSWER9"), 6, "'ANSWER9' is not set"),
        (GOOD, 4, "does not give the result"),
        ("# note\n\n" + GOOD + "BOX1=(\n" + END, 7, "not a call"),
        ("Question: Empty?\nProgram:\n\n" + GOOD + END, 1, "without a program"),
        ("Question: Nothing?\n\n" + GOOD + END, 1, "without a program"),
        ("Question:\nProgram:\n" + END, 1, "without a program"),
        ("hello\n" + GOOD + END, 1, "not a question: 'hello'"),
    ],
)
def test_a_broken_example_is_an_error_with_its_line(tmp_path: Path, text: str, line: int, told: str) -> None:
    path = tmp_path / "mine.txt"
    path.write_text(text)
    with pytest.raises(InputError, match=told) as error:
        read_examples(path, PARSERS["visprog"])
    assert error.value.where == f"{path}:{line}" and error.value.remedy


def test_a_file_without_examples_or_none_at_all(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("# nothing yet\n")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    for name in ("empty.txt", "bytes.txt", "absent.txt"):
        with pytest.raises(InputError, match="no example|cannot read the examples"):
            read_examples(tmp_path / name, PARSERS["visprog"])


def test_own_examples_stand_in_the_place_of_the_shipped(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text(GOOD + END)
    prompts = PromptBuilder(SIGNATURES, own={("visprog", ONE): tmp_path / "mine.txt"})
    assert len(prompts.prompt(GenerationRequest("x")).turns) == 3
    assert len(prompts.prompt(GenerationRequest("x", "viper")).turns) == 17


def test_there_are_no_examples_for_other_inputs() -> None:
    with pytest.raises(ParseFailure, match="no examples for programs about"):
        PromptBuilder(SIGNATURES).prompt(GenerationRequest("x", "viper", ("VIDEO",)))


def test_a_repair_shows_the_program_and_its_error() -> None:
    failure = ParseFailure("not a call", where="line 2", remedy="…")
    prompt = PromptBuilder(SIGNATURES).repair(FailedProgram(GenerationRequest("What is it?"), "BROKEN", failure))
    assert [message["role"] for message in prompt.messages[-3:]] == ["user", "assistant", "user"]
    assert prompt.turns[-2] == "BROKEN" and "line 2: not a call" in prompt.turns[-1] and "(parse)" in prompt.turns[-1]
    assert prompt.text.endswith("Program:\n")
