"""Questions about real photographs with answers checked by hand: how many the pretrained modules get right, and how fast.

The photographs come inside packages (assets ``photos`` and ``photos-more``). An answer is right where it is one of those
that the table accepts; to a question of the kind "read", where it contains one.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from tutelage import assets
from tutelage.errors import InputError
from tutelage.modules.pretrained import pretrained_modules
from tutelage.modules.symbolic import symbolic_modules
from tutelage.programs import visprog
from tutelage.programs.generators.base import GenerationRequest, grammar_generator
from tutelage.programs.run_context import Job, RunContext
from tutelage.programs.scheduler import run
from tutelage.programs.trace import Trace
from tutelage.programs.types import Program, ProgramFailure
from tutelage.programs.values import Image
from tutelage.storage import read_json_lines

PHOTOS = ("photos", "photos-more")
SIDE = 512
"""Pixels of both sides of the photographs that are timed."""
TARGET_MS = 150
LINE = '{"photo": file name, "question", "answers": [accepted], "kind"}'


@dataclass(frozen=True)
class PhotoQuestion:
    """A question about a photograph, the answers that are accepted, and its kind, by which failures are counted."""

    photo: str
    question: str
    answers: tuple[str, ...]
    kind: str

    def accepts(self, answer: Any) -> bool:
        """Whether ``answer`` is right."""
        text = "yes" if answer is True else "no" if answer is False else " ".join(str(answer).lower().split())
        return any(right in text if self.kind == "read" else right == text for right in self.answers)


def read_questions(path: str | Path) -> list[PhotoQuestion]:
    """The questions of a JSON-lines file, a line ``{"photo", "question", "answers", "kind"}``.

    Raises:
        InputError: no such file, or a line that is none; file and line are named.
    """
    questions = []
    for number, row in read_json_lines(path):
        match row:
            case {"photo": str(photo), "question": str(question), "answers": [*answers], "kind": str(kind)} if answers:
                questions.append(PhotoQuestion(photo, question, tuple(str(answer).lower() for answer in answers), kind))
            case _:
                raise InputError("not a question about a photograph", where=f"{path}:{number}", remedy=f"a line is {LINE}")
    return questions


def read_photos(names: Sequence[str]) -> dict[str, Image]:
    """The photographs by name, each decoded once.

    Raises:
        AssetAbsent, WrongHash: see :mod:`tutelage.assets`.
        InputError: no asset has a photograph of that name.
    """
    known = {name: path for asset in PHOTOS for name, path in assets.verify(asset).items()}
    for name in names:
        if name not in known:
            raise InputError(f"no photograph {name!r}", where="photo", remedy=f"one of {', '.join(known)}")
    return {name: Image.from_file(known[name]) for name in dict.fromkeys(names)}


def bench(questions: Sequence[PhotoQuestion], *, rounds: int = 5) -> dict[str, Any]:
    """Answer all ``questions`` as one batch, then time those about photographs of 512 x 512 one at a time, OCR left out.

    The time is wall time from the question's text to its answer (writing, parsing, running), networks loaded, nothing cached.

    Returns:
        {"questions", "right", "refused", "accuracy", "accuracy_of_answered", "kinds": {kind: {right, wrong, refused}},
        "rows": [{photo, question, accepted, answer, outcome, guessed, error, program}], "load_seconds", "solve_ms": {median,
        slowest (question's median), timed, rounds, target}, "assets"}; shares in 0..1.
    """
    photos = read_photos([question.photo for question in questions])
    started = time.perf_counter()
    modules = {**symbolic_modules(), **pretrained_modules()}
    load_seconds = time.perf_counter() - started
    parser, context = visprog.Parser({name: module.signature for name, module in modules.items()}), RunContext(modules)

    def written(photo_question: PhotoQuestion) -> Program | ProgramFailure:
        ((draft,),) = grammar_generator(photo=True).generate([GenerationRequest(photo_question.question)])
        return draft.program(parser, ("IMAGE",))

    def job(photo_question: PhotoQuestion) -> Job:
        return Job(
            photo_question.question, written(photo_question), {"IMAGE": photos[photo_question.photo]}, photo_question.question
        )

    jobs = [job(photo_question) for photo_question in questions]
    rows = [
        _row(photo_question, made, trace) for photo_question, made, trace in zip(questions, jobs, run(jobs, context), strict=True)
    ]
    timed = [it for it in questions if it.kind != "read" and (photos[it.photo].width, photos[it.photo].height) == (SIDE, SIDE)]
    seconds: dict[PhotoQuestion, list[float]] = {photo_question: [] for photo_question in timed}
    for _ in range(rounds):
        for photo_question in timed:
            started = time.perf_counter()
            run([job(photo_question)], context)
            seconds[photo_question].append(time.perf_counter() - started)
    each = [1000 * median(values) for values in seconds.values()] or [float("nan")]
    kinds = {it.kind: {"right": 0, "wrong": 0, "refused": 0} for it in questions}
    for photo_question, row in zip(questions, rows):
        kinds[photo_question.kind][row["outcome"]] += 1
    right, refused = (sum(row["outcome"] == outcome for row in rows) for outcome in ("right", "refused"))
    return {
        "questions": len(rows),
        "right": right,
        "refused": refused,
        "accuracy": right / max(1, len(rows)),
        "accuracy_of_answered": right / max(1, len(rows) - refused),
        "kinds": kinds,
        "rows": rows,
        "load_seconds": load_seconds,
        "solve_ms": {"median": median(each), "slowest": max(each), "timed": len(timed), "rounds": rounds, "target": TARGET_MS},
        "assets": {name: entry.source for name, entry in assets.manifest().items() if entry.find()},
    }


def _row(question: PhotoQuestion, job: Job, trace: Trace) -> dict[str, Any]:
    ok = trace.status == "ok"
    outcome = "refused" if not ok else "right" if question.accepts(trace.answer) else "wrong"
    return {
        "photo": question.photo,
        "question": question.question,
        "accepted": list(question.answers),
        "answer": trace.answer if ok else None,
        "outcome": outcome,
        "guessed": ok and trace.out_of_vocabulary > 0,
        "error": trace.error,
        "program": getattr(job.program, "text", ""),
    }
