from __future__ import annotations

import pytest

from tutelage.modules.symbolic import symbolic_modules
from tutelage.programs import visprog
from tutelage.programs.generators import grammar
from tutelage.programs.generators.base import (
    Candidate,
    GenerationRequest,
    RepairingGenerator,
    RuleBasedGenerator,
    gold_generator,
    gqa_functional_generator,
    grammar_generator,
    tally,
)
from tutelage.programs.generators.from_file import StoredProgram
from tutelage.programs.types import ParseFailure, Signature

SIGNATURES = {name: module.signature for name, module in symbolic_modules().items()} | {
    "LOC": Signature({"image": "image", "object": "text"}, "boxes"),
    "VQA": Signature({"image": "image", "question": "text"}, "text"),
}
PARSER = visprog.Parser(SIGNATURES)
QUESTION = "What color is the circle?"


def test_the_grammar_writes_in_both_languages_and_says_what_it_cannot_read() -> None:
    requests = [GenerationRequest(QUESTION), GenerationRequest(QUESTION, "viper"), GenerationRequest("Tell me a joke")]
    drafts = [draft for (draft,) in grammar_generator().generate(requests, 3)]
    assert [draft.text for draft in drafts] == [*grammar.generate(QUESTION), ""]
    assert all(draft.source == "grammar" and draft.probability is None for draft in drafts)
    assert tally(draft.program(PARSER, ("IMAGE",)) for draft in (drafts[0], drafts[2])) == {"ok": 1, "parse": 1}


def test_the_grammar_knows_images_of_one_thing_and_pairs() -> None:
    ((draft,),) = grammar_generator(single=True).generate([GenerationRequest("What color is the shape?")])
    assert "LOC" not in draft.text
    ((draft,),) = grammar_generator().generate(
        [GenerationRequest("The left image contains a circle.", "visprog", ("LEFT", "RIGHT"))]
    )
    assert "LEFT" in draft.text


def test_stored_programs_are_found_by_id_then_by_question() -> None:
    stored = [
        StoredProgram("1", "visprog", "A", {}, "one?"),
        StoredProgram("2", "visprog", "B", {}),
        StoredProgram("3", "viper", "C", {}, "one?"),
    ]
    writer = gold_generator(stored)
    requests = [
        GenerationRequest("one?"),
        GenerationRequest("x", id="2"),
        GenerationRequest("one?", "viper"),
        GenerationRequest("x"),
        GenerationRequest("", "viper", id="9"),
    ]
    drafts = [draft for (draft,) in writer.generate(requests)]
    assert [draft.text for draft in drafts] == ["A", "B", "C", "", ""]
    assert drafts[3].failure is not None and "no stored visprog program" in drafts[3].failure.message


def test_functional_programs_are_translated() -> None:
    steps = [
        {"operation": "select", "argument": "circle (1)", "dependencies": []},
        {"operation": "query", "argument": "color", "dependencies": [0]},
    ]
    writer = gqa_functional_generator({"7": steps, "8": [{"operation": "fly", "argument": "", "dependencies": []}]})
    drafts = [
        draft
        for (draft,) in writer.generate(
            [GenerationRequest("?", id="7"), GenerationRequest("?", id="8"), GenerationRequest("?", id="9")]
        )
    ]
    assert drafts[0].text == grammar.generate(QUESTION).visprog
    assert [draft.failure is None for draft in drafts] == [True, False, False]


def test_a_draft_with_a_failure_is_never_parsed() -> None:
    failure = ParseFailure("cut")
    good = grammar.generate(QUESTION).visprog
    assert Candidate(good, "x", failure=failure).program(PARSER, ("IMAGE",)) is failure
    assert isinstance(Candidate("no program", "x").program(PARSER, ("IMAGE",)), ParseFailure)
    assert Candidate(good, "x").program(PARSER, ("IMAGE",)) is PARSER.parse(good)


def test_rules_cannot_repair_and_other_errors_are_not_swallowed() -> None:
    assert not isinstance(grammar_generator(), RepairingGenerator)
    broken = RuleBasedGenerator("broken", lambda request: request.nothing)  # type: ignore[attr-defined]
    with pytest.raises(AttributeError):
        broken.generate([GenerationRequest("x")])
