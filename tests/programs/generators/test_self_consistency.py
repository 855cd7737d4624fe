from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from tutelage.modules.symbolic import symbolic_modules
from tutelage.programs.answers import normalize_answer
from tutelage.programs.generators.base import Candidate, GenerationRequest
from tutelage.programs.generators.self_consistency import VoteRequest, count_statuses, majority_vote, run_and_vote
from tutelage.programs.run_context import RunContext, direct_vqa
from tutelage.programs.trace import Trace
from tutelage.programs.types import STATUSES, RuntimeFailure
from tutelage.programs.visprog import Parser

from ..stubs import by_name, loc, picture, vqa


def said(*answers: object) -> list[Trace]:
    """A run for each answer; an answer ``!kind`` is a failure of that kind."""
    return [
        Trace(str(i), status=a[1:], error="x") if isinstance(a, str) and a.startswith("!") else Trace(str(i), answer=a)
        for i, a in enumerate(answers)
    ]


ANSWERS = st.one_of(
    st.sampled_from(["red", "Red", "a red", "blue", "yes", "no"]),
    st.booleans(),
    st.integers(0, 2),
    st.sampled_from([f"!{kind}" for kind in STATUSES if kind != "ok"]),
)


@given(st.lists(st.tuples(ANSWERS, st.one_of(st.none(), st.floats(0, 1))), max_size=7))
def test_the_elected_answer_has_no_rival_with_more_votes_and_failures_do_not_vote(cast: list[tuple[object, float | None]]) -> None:
    traces = said(*(answer for answer, _ in cast))
    found = majority_vote(traces, [p for _, p in cast])
    valid = [normalize_answer(trace.answer) for trace in traces if trace.status == "ok"]
    counts = Counter(valid)
    assert sum(found.failures.values()) == len(traces) - len(valid)
    if not valid:
        assert found.winner is None and found.answer is None and found.share == 0
        return
    own = normalize_answer(found.answer)
    assert counts[own] == max(counts.values()) and found.share == counts[own] / len(valid)
    assert traces[found.winner].status == "ok" and normalize_answer(traces[found.winner].answer) == own
    assert all(normalize_answer(t.answer) != own for t in traces[: found.winner] if t.status == "ok"), "the first of its camp"


@given(st.lists(st.sampled_from(["red", "blue", "!parse"]), min_size=1, max_size=6), st.data())
def test_a_failed_program_changes_nothing_wherever_it_stands(cast: list[str], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(cast)))
    more = [*cast[:place], "!runtime", *cast[place:]]
    one, two = majority_vote(said(*cast)), majority_vote(said(*more))
    assert (one.answer, one.share) == (two.answer, two.share)


@given(st.permutations(["red", "red", "blue", "!limit", "blue", "blue"]))
def test_a_clear_majority_wins_in_any_order(cast: list[str]) -> None:
    found = majority_vote(said(*cast))
    assert found.answer == "blue" and found.share == 3 / 5 and found.failures == {"limit": 1}


def test_ties_go_to_the_more_probable_camp_and_then_to_the_first() -> None:
    assert majority_vote(said("red", "blue")).answer == "red"
    assert majority_vote(said("red", "blue"), [0.4, 0.6]).answer == "blue"
    assert majority_vote(said("red", "blue", "red", "blue"), [0.9, 0.5, 0.2, 0.7]).answer == "blue", "0.6 to 0.55"
    assert majority_vote(said("red", "blue", "blue"), [1.0, 0.1, 0.1]).answer == "blue", "votes come first"
    assert majority_vote(said("red", "blue"), [None, 0.1]).answer == "blue"


def test_answers_are_compared_as_they_are_scored_and_returned_as_given() -> None:
    found = majority_vote(said("no", True, "Yes"))
    assert found.answer is True and found.winner == 1 and found.share == 2 / 3


RIGHT = "BOX0=LOC(image=IMAGE,object='star')\nANSWER0=COUNT(box=BOX0)\nFINAL_RESULT=RESULT(var=ANSWER0)"
OTHER = RIGHT.replace("star", "circle")


def test_all_programs_of_all_questions_share_the_batches() -> None:
    module = loc(batch_size=64)
    where = RunContext(symbolic_modules() | by_name(module, vqa()))
    texts = [RIGHT, OTHER, RIGHT, "no sense"]
    drafts = [Candidate(text, "test", 0.5) for text in texts] + [Candidate("", "test", failure=RuntimeFailure("gone"))]
    polls = [VoteRequest(GenerationRequest("how many?"), drafts, {"IMAGE": picture(i)}) for i in range(5)]
    found = run_and_vote(polls, Parser(where.signatures), where)
    assert [election.answer for election in found] == [3] * 5, "star has four letters"
    assert len(module.batches) == 1, "ten distinct calls in one batch"
    assert found[0].failures == {"parse": 1, "runtime": 1} and found[0].share == 2 / 3
    assert count_statuses(found) == {"parse": 5, "runtime": 5, "ok": 15}


def test_the_answer_of_a_fallback_does_not_vote() -> None:
    where = RunContext(symbolic_modules() | by_name(loc(), vqa()), fallback=direct_vqa)
    poll = VoteRequest(
        GenerationRequest("what?"),
        [Candidate("no sense", "t"), Candidate("no sense", "t"), Candidate(OTHER, "t")],
        {"IMAGE": picture(0)},
    )
    (found,) = run_and_vote([poll], Parser(where.signatures), where)
    assert found.winner == 2 and found.answer == 5 and found.failures == {"parse": 2}
    assert [trace.fallback for trace in found.traces] == [True, True, False]
