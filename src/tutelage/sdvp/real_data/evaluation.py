"""Programs written once and kept, and questions answered part by part, so that a stopped run goes on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from tutelage import storage
from tutelage.programs.image_cache import Album, Views
from tutelage.programs.types import Module
from tutelage.programs.scheduler import Context, Job, direct_vqa, stream
from tutelage.programs.generators.self_consistency import elect
from tutelage.programs.generators.base import Draft, NoDraft, Request, Writer
from tutelage.sdvp.teachers import StepTeacher
from tutelage.sdvp.collect import call_of
from tutelage.sdvp.real_data.datasets import Item
from tutelage.sdvp.real_data.splits import Items
from tutelage.sdvp.real_data.protocols import Preset, said
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
            storage.write_json_lines(file, rows)
        for _, row in storage.read_json_lines(file):
            written[row["id"]] = Texts(tuple(row["texts"]), tuple(row["probabilities"]), row["failures"])
        if done is not None:
            done(min(len(items), (number + 1) * PART), len(items))
    return written


def _row(drafts: Sequence[Draft]) -> dict[str, Any]:
    good = [draft for draft in drafts if draft.failure is None]
    failures = Counter(draft.failure.kind for draft in drafts if draft.failure is not None)
    return {"texts": [d.text for d in good], "probabilities": [d.probability for d in good], "failures": failures}


@dataclass(frozen=True)
class Material:
    """The records of each part, their pictures' paths by record id, and their programs by part."""

    items: Items
    paths: Mapping[str, Mapping[str, Path]]
    written: Mapping[str, Written]

    def questions(self, part: str, pictures: Album, dsl: str, *, answers: bool) -> list[Question]:
        """The part's records that have a program, as questions with their first; with ``answers`` they keep theirs."""
        found = []
        for item in self.items[part]:
            if texts := self.written[part][item.id].texts:
                views, answer = Views(pictures, self.paths[item.id]), item.answer if answers else None
                found.append(Question(item.id, "", views, item.text, {dsl: texts[0]}, answer, item.kind, item.image_id))
        return found


@dataclass(frozen=True)
class Exam:
    """Records to be answered, by a preset's rules; of each call it is noted whether the ``teachers`` could answer it."""

    items: Sequence[Item]
    paths: Mapping[str, Mapping[str, Path]]
    album: Album
    dsl: str
    preset: Preset
    teachers: Mapping[str, StepTeacher] = field(default_factory=dict)

    def answers(
        self, folder: Path, modules: Mapping[str, Module], written: Written, done: Done | None = None
    ) -> list[dict[str, Any]]:
        """What the programs answer on ``modules``, a row a record: {id, answer, right, status, fallback, unknown, calls,
        covered}; kept in ``folder`` part by part, and read back where it is there.

        Of several programs the majority's answer is taken. What is no program, or fails, is a wrong answer, or under the
        preset's fallback VQA's. ``covered``: so many of the ``calls`` the teachers could answer.
        """
        parse = Programs(self.dsl, modules)
        context = Context(modules, window=WINDOW, fallback=direct_vqa if self.preset.fallback else None)
        rows: list[dict[str, Any]] = []
        for number, part in _parts(self.items):
            file = folder / f"{number:05d}.jsonl"
            if not file.exists():
                storage.write_json_lines(file, self._rows(part, written, parse, context))
            rows += [row for _, row in storage.read_json_lines(file)]
            if done is not None:
                done(len(rows), len(self.items))
        return rows

    def _rows(self, items: Sequence[Item], written: Written, parse: Programs, context: Context) -> Iterator[dict[str, Any]]:
        traces = stream((job for item in items for job in self._jobs(item, written[item.id].texts, parse)), context)
        for item in items:
            texts = written[item.id]
            votes = list(islice(traces, max(1, len(texts.texts))))
            winner = elect(votes, texts.probabilities).winner if len(votes) > 1 else None
            shown = votes[winner or 0]
            steps = [step for vote in votes for step in vote.steps]
            yield {
                "id": item.id,
                "answer": said(shown.answer),
                "right": (shown.status == "ok" or shown.fallback) and self.preset.match(shown.answer, item.answer),
                "status": shown.status,
                "fallback": shown.fallback,
                "unknown": shown.out_of_vocabulary > 0,
                "calls": len(steps),
                "covered": sum(s.module in self.teachers and self.teachers[s.module].covers(call_of(s)) for s in steps),
            }

    def _jobs(self, item: Item, texts: Sequence[str], parse: Programs) -> Iterator[Job]:
        """A job a program; a record without one is a program that fails."""
        views = Views(self.album, self.paths[item.id])
        asked = [Question(item.id, "", views, item.text, {self.dsl: text}) for text in texts]
        for program in [parse.of(question) for question in asked] or [NoDraft("no program was written", where=item.id)]:
            yield Job(item.id, program, dict(views), item.text)


def _parts(items: Sequence[Item]) -> Iterator[tuple[int, Sequence[Item]]]:
    for number in range(-(-len(items) // PART)):
        yield number, items[number * PART : (number + 1) * PART]
