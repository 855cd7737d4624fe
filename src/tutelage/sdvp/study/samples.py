"""Samples for the report: programs shown step by step, before and after teaching, with what the teacher says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tutelage.programs.trace import StepRecord, Trace
from tutelage.programs.types import Call, Module
from tutelage.programs.values import Box, Image
from tutelage.sdvp.questions import Question, score_answer, solve
from tutelage.sdvp.study import questions as study_questions
from tutelage.sdvp.study.arms import ArmScores
from tutelage.sdvp.study.setup import STAGES, StudySetup
from tutelage.sdvp.teacher_check import value_matches

SHOWN_TASKS = (*study_questions.CURRENT, "b_spatial", "b_digit", "c_mixed", "a_color")


def samples(
    setup: StudySetup, scores: ArmScores, after: Mapping[str, Module], each: int = 2, max_questions: int = 400
) -> list[dict[str, Any]]:
    """Up to ``each`` samples a task of each kind: mended by teaching, broken by it, still wrong, right throughout."""
    found = []
    for task in SHOWN_TASKS:
        questions = scores.questions(task, max_questions, gold=True)
        old, new = (solve(questions, modules, scores.dsl) for modules in (setup.modules, after))
        taken = {(False, True): 2 * each, (True, False): each, (False, False): each, (True, True): each // 2}
        for question, one, two in zip(questions, old, new):
            kind = score_answer(question, one.answer) > 0, score_answer(question, two.answer) > 0
            if taken[kind] > 0:
                taken[kind] -= 1
                found.append(_sample(setup, question, one, two, scores.dsl))
    return found


def _sample(setup: StudySetup, question: Question, old: Trace, new: Trace, dsl: str) -> dict[str, Any]:
    stage = question.task if question.task in STAGES else STAGES[-1]
    gold = question.gold.get(dsl, ())
    later = {record.call_no: record for record in new.steps}
    lines = question.programs[dsl].splitlines()
    steps, wrong_seen = [], False
    for record in old.steps:
        if record.module == "RESULT":
            continue
        truth = gold[record.step] if record.step < len(gold) else None
        wrong = not wrong_seen and truth is not None and not value_matches(record.output, truth)
        wrong_seen |= wrong
        steps.append(_step(setup, stage, record, later.get(record.call_no), truth, wrong, lines))
    return {
        "id": question.id,
        "task": question.task,
        "stage": stage,
        "question": question.text,
        "gold": _text(question.answer),
        "program": lines,
        "images": {name: image.data_uri(96, lossless=True) for name, image in question.images.items()},
        "arms": {
            "before": {"answer": _text(old.answer), "correct": score_answer(question, old.answer) > 0},
            "after": {"answer": _text(new.answer), "correct": score_answer(question, new.answer) > 0},
        },
        "steps": steps,
    }


def _step(
    setup: StudySetup, stage: str, old: StepRecord, new: StepRecord | None, gold: Any, wrong: bool, lines: Sequence[str]
) -> dict[str, Any]:
    image = old.args.get("image")
    teacher = setup.teachers[stage].get(old.module)
    label = teacher.label([Call(old.module, old.args, old.step)])[0] if teacher is not None else None
    before = _record_json(old)
    return {
        "n": old.step,
        "text": lines[old.step] if old.step < len(lines) else old.module,
        "module": old.module,
        "image": image.data_uri(96, lossless=True) if isinstance(image, Image) else None,
        "boxes": before.get("boxes", []),
        "before": before,
        "after": _record_json(new) if new is not None else None,
        "teacher": None
        if label is None
        else {"value": _text(label.value), "dist": _top(label.probabilities), "conf": round(label.confidence, 3)}
        | _boxes(label.value),
        "gold": _text(gold) if gold is not None else None,
        "wrong": wrong,
    }


def _record_json(record: StepRecord) -> dict[str, Any]:
    value: dict[str, Any] = {"value": _text(record.output), "dist": _top(record.output_dist)}
    if isinstance(record.output, Image):
        value["image"] = record.output.data_uri(96, lossless=True)
    image = record.args.get("image")
    if isinstance(image, Image):
        value["image"] = value.get("image", image.data_uri(96, lossless=True))
    return value | _boxes(record.output)


def _boxes(value: Any) -> dict[str, Any]:
    if isinstance(value, list) and all(isinstance(box, Box) for box in value):
        return {"boxes": [[round(float(x), 2) for x in box] for box in value]}
    return {}


def _top(dist: Mapping[str, float] | None, max_entries: int = 5) -> dict[str, float]:
    best = sorted((dist or {}).items(), key=lambda item: -item[1])[:max_entries]
    return {answer: round(p, 4) for answer, p in best if answer != "found"}


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Image):
        return f"{value.width} x {value.height} pixels"
    if isinstance(value, Box):
        return "box " + ", ".join(f"{x:.0f}" for x in value[:4])
    if isinstance(value, list):
        return "no box" if not value else f"{len(value)} box" + ("es" if len(value) > 1 else "")
    return str(value)
