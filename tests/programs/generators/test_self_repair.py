from __future__ import annotations

from collections.abc import Sequence

import pytest

from tutelage.modules.symbolic import symbolic_modules
from tutelage.programs.generators.base import Candidate, FailedProgram, GenerationRequest, grammar_generator
from tutelage.programs.generators.self_repair import RepairRequest, can_repair, run_and_repair
from tutelage.programs.run_context import RunContext, direct_vqa
from tutelage.programs.types import ParseFailure, ProgramFailure, RuntimeFailure, UndefinedVariable, UnknownModule
from tutelage.programs.visprog import Parser

from ..stubs import Stub, by_name, loc, picture, vqa

RIGHT = "BOX0=LOC(image=IMAGE,object='star')\nANSWER0=COUNT(box=BOX0)\nFINAL_RESULT=RESULT(var=ANSWER0)"
FAULTY = {
    "parse": "no sense",
    "unknown_module": RIGHT.replace("LOC", "LOOK"),
    "undefined_var": RIGHT.replace("box=BOX0", "box=BOX1"),
    "type": RIGHT.replace("object=", "noun="),
    "runtime": RIGHT.replace("star", "breaks"),
}


class Mender:
    """Writes RIGHT for every fault, or another text; keeps the faults it was told."""

    name = "mender"

    def __init__(self, text: str = RIGHT):
        self.text, self.told = text, list[FailedProgram]()

    def generate(self, requests: Sequence[GenerationRequest], n: int = 1) -> list[list[Candidate]]:
        return [[Candidate(RIGHT, self.name)] for _ in requests]

    def repair(self, failed_programs: Sequence[FailedProgram]) -> list[Candidate]:
        self.told += failed_programs
        return [Candidate(self.text, self.name) for _ in failed_programs]


def context(**options: object) -> RunContext:
    plain = loc()

    def answer(call):  # noqa: ANN001, ANN202
        if call.args["object"] == "breaks":
            raise RuntimeFailure("it breaks")
        return plain.answer(call)

    return RunContext(symbolic_modules() | by_name(Stub("LOC", plain.signature, answer), vqa()), **options)


def asked(*texts: str) -> list[RepairRequest]:
    return [
        RepairRequest(GenerationRequest("How many stars are there?", id=str(i)), Candidate(t, "t"), {"IMAGE": picture(i)})
        for i, t in enumerate(texts)
    ]


def test_every_kind_of_failure_goes_back_once_with_its_text_and_type() -> None:
    writer, where = Mender(), context()
    found = run_and_repair(asked(*FAULTY.values(), RIGHT), writer, Parser(where.signatures), where)
    assert [trace.status for trace in found.traces] == ["ok"] * 6 and {trace.answer for trace in found.traces} == {3}
    assert [(fault.text, fault.failure.kind) for fault in writer.told] == [(text, kind) for kind, text in FAULTY.items()]
    assert found.stats.failed == found.stats.sent == found.stats.mended == dict.fromkeys(FAULTY, 1)
    assert found.stats.after == {} and "5 were mended" in found.stats.text
    assert [draft.source for draft in found.candidates] == ["mender"] * 5 + ["t"]


@pytest.mark.parametrize(("kind", "type_"), [("unknown_module", UnknownModule), ("undefined_var", UndefinedVariable)])
def test_the_writer_is_told_the_failure_itself_with_line_and_remedy(kind: str, type_: type[ProgramFailure]) -> None:
    writer, where = Mender(), context()
    run_and_repair(asked(FAULTY[kind]), writer, Parser(where.signatures), where)
    (fault,) = writer.told
    assert isinstance(fault.failure, type_) and "line" in str(fault.failure) and "remedy" in str(fault.failure)


def test_a_failure_of_the_run_names_what_was_raised() -> None:
    writer, where = Mender(), context()
    run_and_repair(asked(FAULTY["runtime"]), writer, Parser(where.signatures), where)
    assert isinstance(writer.told[0].failure, RuntimeFailure) and "it breaks" in str(writer.told[0].failure)


def test_there_is_one_round_and_what_fails_again_keeps_its_later_failure() -> None:
    writer, where = Mender(FAULTY["unknown_module"]), context()
    found = run_and_repair(asked("no sense", RIGHT), writer, Parser(where.signatures), where)
    assert len(writer.told) == 1 and found.traces[0].status == "unknown_module"
    assert (found.stats.failed, found.stats.mended, found.stats.after) == ({"parse": 1}, {}, {"unknown_module": 1})


def test_a_writer_by_rules_is_not_asked_and_a_draft_without_text_not_sent() -> None:
    where, rules = context(), grammar_generator()
    assert not can_repair(rules) and can_repair(Mender())
    found = run_and_repair(asked("no sense"), rules, Parser(where.signatures), where)
    assert found.stats.sent == {} and found.stats.after == {"parse": 1}
    empty = [RepairRequest(GenerationRequest("?"), Candidate("", "t", failure=ParseFailure("nothing")), {"IMAGE": picture(0)})]
    writer = Mender()
    assert run_and_repair(empty, writer, Parser(where.signatures), where).stats.failed == {"parse": 1}
    assert writer.told == []


def test_the_fallback_is_for_what_repair_could_not_mend() -> None:
    where = context(fallback=direct_vqa)
    mended = run_and_repair(asked("no sense"), Mender(), Parser(where.signatures), where)
    assert not mended.traces[0].fallback and mended.traces[0].answer == 3
    broken = run_and_repair(asked("no sense"), Mender("still no sense"), Parser(where.signatures), where)
    assert broken.traces[0].fallback and broken.traces[0].status == "parse" and broken.stats.after == {"parse": 1}
