"""Programs written once and kept, and questions answered part by part, so that a stopped run goes on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from tutelage import files
from tutelage.programs.language import Module, Program, ProgramFailure
from tutelage.programs.pictures import Pictures, Views
from tutelage.programs.scheduler import Context, Job, direct_vqa, stream
from tutelage.programs.writers.voting import elect
from tutelage.programs.writers.writer import Draft, NoDraft, Request, Writer
from tutelage.sdvp.adapt import StepTeacher
from tutelage.sdvp.collect import call_of
from tutelage.sdvp.official.datasets import Item
from tutelage.sdvp.official.presets import Preset, said
from tutelage.sdvp.questions import Programs, Question

PART = 512
"""Questions that are answered, or written programs for, between two savings."""
WINDOW = 512
"""Programs under way at once: their pictures stay decoded while their steps look at them."""
Done = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Texts:
    """The programs written for one question, with the mean probability of their tokens where it is known, and how many
    could not be written, by kind."""

    texts: tuple[str, ...]
    probabilities: tuple[float | None, ...]
    failures: Mapping[str, int]


Written = dict[str, Texts]
"""Programs by question id."""


def write_programs(
    folder: Path, items: Sequence[Item], writer: Writer, dsl: str, inputs: tuple[str, ...], n: int, done: Done | None = None
) -> Written:
    """``n`` programs a question (rules write one), kept in ``folder`` part by part; what is there is read back."""
    written: Written = {}
    for number, part in _parts(items):
        file = folder / f"{number:05d}.jsonl"
        if not file.exists():
            asked = [Request(item.text, dsl, inputs, item.id) for item in part]
            drafts = writer.write(asked, n)
            rows = [{"id": item.id, **_row(found)} for item, found in zip(part, drafts, strict=True)]
            files.write_json_lines(file, rows)
        for _, row in files.read_json_lines(file):
            written[row["id"]] = Texts(tuple(row["texts"]), tuple(row["probabilities"]), row["failures"])
        if done is not None:
            done(min(len(items), (number + 1) * PART), len(items))
    return written


def _row(drafts: Sequence[Draft]) -> dict[str, Any]:
    good = [draft for draft in drafts if draft.failure is None]
    failures = Counter(draft.failure.kind for draft in drafts if draft.failure is not None)
    return {"texts": [d.text for d in good], "probabilities": [d.probability for d in good], "failures": failures}


def questions(
    items: Sequence[Item], paths: Mapping[str, Mapping[str, Path]], written: Written, pictures: Pictures, dsl: str, answers: bool
) -> list[Question]:
    """The items as questions, with their first program; with ``answers`` they keep theirs."""
    found = []
    for item in items:
        texts = written[item.id].texts
        views = Views(pictures, paths[item.id])
        programs = {dsl: texts[0]} if texts else {}
        answer = item.answer if answers else None
        found.append(Question(item.id, "", views, item.text, programs, answer, item.kind, item.image_id))
    return found


def answer(
    folder: Path,
    items: Sequence[Item],
    paths: Mapping[str, Mapping[str, Path]],
    written: Written,
    pictures: Pictures,
    modules: Mapping[str, Module],
    dsl: str,
    preset: Preset,
    teachers: Mapping[str, StepTeacher],
    done: Done | None = None,
) -> list[dict[str, Any]]:
    """What the programs answer, a row an item: {id, answer, right, status, fallback, unknown, calls, covered}; kept in
    ``folder`` part by part. Of several programs the majority's answer is taken; what is no program, or fails, is a wrong
    answer, or under the preset's fallback VQA's. ``covered``: so many of its calls the ``teachers`` could answer.
    """
    parse = Programs(dsl, modules)
    context = Context(modules, window=WINDOW, fallback=direct_vqa if preset.fallback else None)
    rows: list[dict[str, Any]] = []
    for number, part in _parts(items):
        file = folder / f"{number:05d}.jsonl"
        if not file.exists():
            files.write_json_lines(file, _answers(part, paths, written, pictures, parse, context, preset, teachers))
        rows += [row for _, row in files.read_json_lines(file)]
        if done is not None:
            done(len(rows), len(items))
    return rows


def _answers(
    items: Sequence[Item],
    paths: Mapping[str, Mapping[str, Path]],
    written: Written,
    pictures: Pictures,
    parse: Programs,
    context: Context,
    preset: Preset,
    teachers: Mapping[str, StepTeacher],
) -> Iterator[dict[str, Any]]:
    def programs(item: Item) -> list[Program | ProgramFailure]:
        asked = [Question(item.id, "", Views(pictures, paths[item.id]), item.text, {parse.dsl: t}) for t in written[item.id].texts]
        return [parse.of(question) for question in asked] or [NoDraft("no program was written", where=item.id)]

    def jobs() -> Iterable[Job]:
        for item in items:
            for program in programs(item):
                yield Job(item.id, program, dict(Views(pictures, paths[item.id])), item.text)

    traces = stream(jobs(), context)
    for item in items:
        votes = list(islice(traces, max(1, len(written[item.id].texts))))
        elected = elect(votes, written[item.id].probabilities or None) if len(votes) > 1 else None
        shown = votes[0] if elected is None or elected.winner is None else votes[elected.winner]
        steps = [step for vote in votes for step in vote.steps]
        yield {
            "id": item.id,
            "answer": said(shown.answer),
            "right": preset.match(shown.answer, item.answer) if shown.status == "ok" or shown.fallback else False,
            "status": shown.status,
            "fallback": shown.fallback,
            "unknown": shown.out_of_vocabulary > 0,
            "calls": len(steps),
            "covered": sum(step.module in teachers and teachers[step.module].covers(call_of(step)) for step in steps),
        }


def _parts(items: Sequence[Item]) -> Iterator[tuple[int, Sequence[Item]]]:
    for number in range(-(-len(items) // PART)):
        yield number, items[number * PART : (number + 1) * PART]
