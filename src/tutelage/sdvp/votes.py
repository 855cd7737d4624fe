"""Several programs a question: how far they agree with the one whose calls are collected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from tutelage.programs.answers import normalize_answer
from tutelage.programs.trace import Trace
from tutelage.programs.types import Module
from tutelage.sdvp.questions import Question, solve


def program_names(questions: Sequence[Question], dsl: str) -> list[str]:
    """The names under which the questions hold programs of ``dsl``: ``dsl`` itself, then ``dsl:1``, ``dsl:2`` …"""
    found = {name for question in questions for name in question.programs if name.split(":")[0] == dsl}
    return sorted(found, key=lambda name: (len(name), name))


def run_all_programs(questions: Sequence[Question], modules: Mapping[str, Module], dsl: str) -> dict[str, dict[str, Trace]]:
    """By question, the run of each of its programs, by the program's name."""
    cast: dict[str, dict[str, Trace]] = {question.id: {} for question in questions}
    for kind in program_names(questions, dsl):
        variants = [
            replace(question, programs={dsl: question.programs[kind]}) for question in questions if kind in question.programs
        ]
        for trace in solve(variants, modules, dsl):
            cast[trace.id][kind] = trace
    return cast


def program_agreement(questions: Sequence[Question], modules: Mapping[str, Module], dsl: str) -> dict[str, float]:
    """By question, the share of its programs that answer as ``dsl`` does, the program whose calls are collected (our choice).

    Programs that fail do not vote: 0 where the collected one fails, 1 where it alone answers.
    """
    shares = {}
    for name, runs in run_all_programs(questions, modules, dsl).items():
        answers = {kind: normalize_answer(trace.answer) for kind, trace in runs.items() if trace.status == "ok"}
        own = answers.get(dsl)
        shares[name] = 0.0 if own is None else list(answers.values()).count(own) / len(answers)
    return shares
