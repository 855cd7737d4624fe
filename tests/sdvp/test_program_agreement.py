from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tutelage import storage
from tutelage.sdvp.options import SdvpOptions
from tutelage.sdvp.study import questions as study_questions
from tutelage.sdvp.study.noise import (
    ARMS,
    DSL,
    GROUPS,
    ProgramNoise,
    _wrong_program,
    add_noise,
    answer_accuracy,
    noise_cell,
    noise_verdicts,
    wrong_share,
)
from tutelage.sdvp.study.setup import SMOKE
from tutelage.sdvp.votes import program_agreement, program_names, run_all_programs
from tutelage.seeds import numpy_rng

from . import small

CONSTANT = "ANSWER0=EVAL(expr=\"'{}'\")\nFINAL_RESULT=RESULT(var=ANSWER0)"


def asked(*answers: str) -> list:
    """One question whose programs say ``answers`` (an empty one: a broken program)."""
    names = ["visprog", *(f"visprog:{i}" for i in range(1, len(answers)))]
    programs = {name: CONSTANT.format(a) if a else "no sense" for name, a in zip(names, answers, strict=True)}
    return small.questions(1, programs=programs)


@pytest.mark.parametrize(
    ("answers", "share"),
    [
        (("a",), 1.0),
        (("a", "a", "b"), 2 / 3),
        (("b", "a", "a"), 1 / 3),
        (("b", "", ""), 1.0),
        (("a", "", "b"), 0.5),
        (("", "a", "a"), 0.0),
        (("", "", ""), 0.0),
        (("b", "B.", " b"), 1.0),
    ],
)
def test_agreement_is_with_the_program_that_was_collected(answers: tuple[str, ...], share: float) -> None:
    assert program_agreement(asked(*answers), small.modules(), "visprog") == {"q0": pytest.approx(share)}


def test_programs_of_a_question_are_told_apart_by_name_and_the_language_s_own_comes_first() -> None:
    many = asked(*"abcdefghijkl")
    names = program_names(many, "visprog")
    assert names[0] == "visprog" and names[-1] == "visprog:11" and len(names) == 12
    assert [trace.answer for trace in run_all_programs(many, small.modules(), "visprog")["q0"].values()] == list("abcdefghijkl")


def test_noise_draws_each_program_of_a_question_by_itself() -> None:
    right = study_questions.questions_of("b_gqa", 100, "select", 150)
    wrong = add_noise(right, ProgramNoise(0.2, 3), seed=5)
    assert wrong == add_noise(right, ProgramNoise(0.2, 3), seed=5)
    assert [sorted(q.programs) for q in wrong] == [[DSL, f"{DSL}:1", f"{DSL}:2"]] * 150
    assert 0.12 < wrong_share(wrong, right) < 0.28
    assert wrong_share(add_noise(right, ProgramNoise(0.0), 5), right) == 0
    assert wrong_share(add_noise(right, ProgramNoise(1.0), 5), right) > 0.9
    assert len({q.programs[f"{DSL}:1"] == q.programs[DSL] for q in wrong}) == 2
    assert all(not q.gold for q in wrong), "the true steps of another program are not these"


def test_a_program_with_nothing_to_change_stays() -> None:
    question = small.questions(1)[0]
    assert _wrong_program(question, numpy_rng(0)) == small.PROGRAM


def test_the_majority_answers_and_failures_are_counted() -> None:
    broken = {"visprog": "no sense", "visprog:1": "worse", "visprog:2": CONSTANT.format("blue")}
    questions = [*asked("blue", "red", "red"), *small.questions(1, first=3, programs=broken)]
    assert answer_accuracy(questions, small.modules(), voted=False) == (0.0, {"parse": 1})
    assert answer_accuracy(questions, small.modules(), voted=True) == (50.0, {"parse": 1, "refused": 1})


def cell(**gains: tuple[float, float, float]) -> dict:
    return {where: dict(zip(ARMS, gains.get(where, (1, 1, 1)), strict=True)) for where in GROUPS}


def test_the_verdict_is_the_share_of_the_loss_that_came_back() -> None:
    cells = [cell(collection=(10, 10.5, 10), alike=(10, 2, 7)), cell(collection=(9, 9, 9), alike=(11, 2, 6))]
    collection, alike, _ = noise_verdicts(cells)
    assert not collection["met"] and "nothing was lost" in collection["reason"]
    assert alike["met"] and alike["lost"] == {"mean": 8.5, "by_seed": [8, 9]} and "(0.53)" in alike["value"]
    assert alike["restored"]["mean"] == 4.5
    *_, missed = noise_verdicts([cell(everywhere=(10, 2, 5))])
    assert not missed["met"] and missed["reason"] == ""
    spread = [cell(collection=(5, 0, 4)), cell(collection=(0, 3, 0))]
    assert "spread" in noise_verdicts(spread)[0]["reason"]


@pytest.mark.slow
def test_a_cell_holds_the_gains_of_every_arm(tmp_path: Path) -> None:
    options = replace(SdvpOptions(), settings=replace(SdvpOptions().settings, steps=3, warmup=1))
    found = noise_cell(
        100, storage.ContentStore(tmp_path / "store"), SMOKE, options=options, quick=True, folder=tmp_path / "lessons"
    )
    for where in GROUPS:
        assert set(found[where]) == set(ARMS)
    for arm in ARMS:
        assert found["everywhere"][arm] + found["frozen"] == pytest.approx(found["alike"][arm] + found["before"][arm])
    assert found["collection"]["clean"] == found["everywhere"]["clean"] == found["alike"]["clean"]
    assert 0.1 < found["wrong"] < 0.3 and set(found["kept"]["voted"]) == {"LOC", "VERIFY", "VQA"}
    assert len(noise_verdicts([found])) == len(GROUPS)
