"""What wrong programs cost distillation, and what the vote of several programs gives back.

A share of the programs of one stage is made wrong as a writer that misreads questions would
(``datasets/synthetic/program_noise.py``).
Gains are in accuracy points over the frozen modules on the same reported questions. All of it is our choice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from tutelage import storage
from tutelage.datasets.synthetic.program_noise import wrong_programs
from tutelage.errors import InputError
from tutelage.programs.generators.self_consistency import majority_vote
from tutelage.programs.types import Module
from tutelage.sdvp.compile import distill_task
from tutelage.sdvp.options import SdvpOptions
from tutelage.sdvp.questions import Question, accuracy, score_answer
from tutelage.sdvp.study import questions as study_questions
from tutelage.sdvp.study.setup import StudySizes, prepare
from tutelage.sdvp.votes import program_names, run_all_programs
from tutelage.seeds import numpy_rng

STAGE = "b_gqa"
DSL = "visprog"
ARMS = ("clean", "noisy", "voted")
"""Taught through right programs, through noisy ones, and through noisy ones whose records the vote has passed."""
GROUPS: Mapping[str, str] = MappingProxyType(
    {
        "collection": "noisy programs collect, and right ones are reported",
        "alike": "noisy programs collect and are reported: of the gain over the same programs before",
        "everywhere": "noisy programs collect and are reported: of the gain over right programs before",
    }
)
"""What gains are told apart, in words."""
SIZES = StudySizes(report=1200, stage_report=0, collect=1500, replay=300, probe=400, guarded=60)


@dataclass(frozen=True)
class ProgramNoise:
    """``share`` of all programs is wrong, each of the ``programs`` of a question by its own draw; a record passes where
    at least ``agree`` of the question's programs answer as the one it comes from."""

    share: float = 0.2
    programs: int = 3
    agree: float = 0.5


def add_noise(questions: Sequence[Question], noise: ProgramNoise, seed: int) -> list[Question]:
    """The questions with ``noise.programs`` VisProg programs each (``visprog``, ``visprog:1`` …), some of them wrong.

    A program of which nothing can be changed stays right.
    """
    found = []
    for question in questions:
        rng = numpy_rng(seed, "noise", question.id)
        programs = {}
        for number in range(noise.programs):
            wrong = rng.random() < noise.share
            programs[f"{DSL}:{number}" if number else DSL] = _wrong_program(question, rng) if wrong else question.programs[DSL]
        found.append(replace(question, programs=programs, gold={}))
    return found


def _wrong_program(question: Question, rng: np.random.Generator) -> str:
    try:
        return wrong_programs({DSL: question.programs[DSL]}, rng)[DSL]
    except InputError:
        return question.programs[DSL]


def wrong_share(questions: Sequence[Question], right: Sequence[Question]) -> float:
    """The share of all programs of ``questions`` that differ from the program of ``right``."""
    pairs = [(text, one.programs[DSL]) for many, one in zip(questions, right, strict=True) for text in many.programs.values()]
    return float(np.mean([text != truth for text, truth in pairs]))


def noise_cell(
    seed: int,
    store: storage.ContentStore,
    sizes: StudySizes = SIZES,
    noise: ProgramNoise = ProgramNoise(),  # noqa: B008  (frozen)
    options: SdvpOptions = SdvpOptions(),  # noqa: B008  (frozen)
    quick: bool = False,
    folder: Path | None = None,
    report: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """The figures of one seed, by arm, in points.

    ``collection``: gains where only the programs that collect are noisy and the reported ones are right. ``everywhere``
    and ``alike``: the reported programs are noisy too; the arm ``add_noise`` then answers by one program, ``voted`` by the
    majority of all. Gains of ``everywhere`` are over the frozen modules with right programs (``frozen``), so they hold
    what wrong answers cost as well; those of ``alike`` are over the frozen modules with the same programs and the same
    vote (``before``), so they hold what was learned alone. ``kept`` counts the records that pass, ``wrong`` is the share
    of wrong programs, ``failures`` counts by kind.
    """
    setting = prepare(seed, sizes, store, quick)
    stage = next(stage for stage in setting.stages if stage.name == STAGE)
    noisy = add_noise(stage.questions, noise, seed)
    reported = study_questions.questions_of(STAGE, seed, "report", sizes.report, (DSL,))
    misread = add_noise(reported, noise, seed)
    frozen = 100 * accuracy(reported, setting.modules, DSL)
    options = replace(options, seed=seed, dsl=DSL)
    arms: dict[str, tuple[Sequence[Question], SdvpOptions]] = {
        "clean": (stage.questions, options),
        "noisy": (noisy, options),
        "voted": (noisy, replace(options, filters=replace(options.filters, min_agreement=noise.agree))),
    }
    found: dict[str, Any] = {"seed": seed, "frozen": frozen, "wrong": wrong_share(noisy, stage.questions)}
    found |= {"before": {"clean": frozen}} | {where: {} for where in (*GROUPS, "kept", "failures")}
    for arm, (questions, chosen) in arms.items():
        if report:
            report(f"noise: {arm}")
        given = replace(stage, questions=questions)
        result = distill_task(setting.modules, given, chosen, folder / arm if folder is not None else None)
        gain = 100 * accuracy(reported, result.modules, DSL) - frozen
        found["collection"][arm] = gain
        found["kept"][arm] = {own_report.module: own_report.kept for own_report in result.reports}
        score = gain + frozen
        if arm != "clean":
            voted = arm == "voted"
            found["before"][arm], _ = answer_accuracy(misread, setting.modules, voted)
            score, found["failures"][arm] = answer_accuracy(misread, result.modules, voted)
        found["everywhere"][arm] = score - frozen
        found["alike"][arm] = score - found["before"][arm]
    return found


def answer_accuracy(questions: Sequence[Question], modules: Mapping[str, Module], voted: bool) -> tuple[float, dict[str, int]]:
    """Accuracy in points by the first program, or by the majority of all, and the programs' failures by kind."""
    names = program_names(questions, DSL) if voted else [DSL]
    restricted = [replace(q, programs={name: q.programs[name] for name in names}) for q in questions]
    cast = run_all_programs(restricted, modules, DSL)
    elections = [majority_vote([cast[q.id][name] for name in names]) for q in questions]
    failures: dict[str, int] = {}
    for election in elections:
        for kind, count in election.failures.items():
            failures[kind] = failures.get(kind, 0) + count
    right = [e.winner is not None and score_answer(q, e.answer) for q, e in zip(questions, elections, strict=True)]
    return 100 * float(np.mean(right)), failures


def noise_verdicts(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Whether voting restores at least half of the gain that noise costs, over seeds, in each of GROUPS."""
    verdicts = []
    for where, words in GROUPS.items():
        clean, wrong, voted = (np.array([cell[where][arm] for cell in cells]) for arm in ARMS)
        lost, restored = clean - wrong, voted - wrong
        mean, back = float(lost.mean()), float(restored.mean())
        share = back / mean if mean > 0 else None
        reason = ""
        if share is None:
            reason = "nothing was lost that could be restored: labels belong to calls, not to programs"
        elif len(cells) > 1 and mean <= 2 * lost.std(ddof=1) / np.sqrt(len(cells)):
            reason = "the loss itself does not stand out from the seeds' spread"
        verdicts.append(
            {
                "claim": f"Votes restore half of what is lost where {words}",
                "target": "at least 0.5 of the loss",
                "value": f"lost {mean:.1f}, restored {back:.1f}" + (f" ({share:.2f})" if share is not None else ""),
                "met": share is not None and share >= 0.5,
                "reason": reason,
                "lost": {"mean": mean, "by_seed": lost.tolist()},
                "restored": {"mean": back, "by_seed": restored.tolist()},
            }
        )
    return verdicts
