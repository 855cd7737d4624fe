"""Programs written once and kept, and questions answered part by part, so that a stopped run goes on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from tutelage import storage
from tutelage.programs.generators.base import Candidate, GenerationFailed, GenerationRequest, ProgramGenerator
from tutelage.programs.generators.self_consistency import majority_vote
from tutelage.programs.image_cache import ImageCache, LazyImages
from tutelage.programs.run_context import Job, RunContext, direct_vqa
from tutelage.programs.scheduler import stream
from tutelage.programs.types import Module
from tutelage.sdvp.collect import call_of
from tutelage.sdvp.questions import ProgramParser, Question
from tutelage.sdvp.real_data.datasets import Item
from tutelage.sdvp.real_data.protocols import Protocol, to_text
from tutelage.sdvp.real_data.splits import Items
from tutelage.sdvp.teachers import ModuleTeacher

SHARD_SIZE = 512
"""Questions that are answered, or written programs for, between two savings."""
WINDOW = 512
"""Programs under way at once: their pictures stay decoded while their steps look at them."""
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class GeneratedPrograms:
    """The programs written for one question, with the mean probability of their tokens where it is known, and how many
    could not be written, by kind."""

    texts: tuple[str, ...]
    probabilities: tuple[float | None, ...]
    failures: Mapping[str, int]


ProgramsByQuestion = dict[str, GeneratedPrograms]
"""Programs by question id."""


def generate_programs(
    folder: Path,
    items: Sequence[Item],
    generator: ProgramGenerator,
    dsl: str,
    inputs: tuple[str, ...],
    n: int,
    on_progress: Progress | None = None,
) -> ProgramsByQuestion:
    """``n`` programs a question (rules write one), kept in ``folder`` part by part; what is there is read back."""
    written: ProgramsByQuestion = {}
    for number, part in _shards(items):
        file = folder / f"{number:05d}.jsonl"
        if not file.exists():
            requests = [GenerationRequest(item.text, dsl, inputs, item.id) for item in part]
            drafts = generator.generate(requests, n)
            rows = [{"id": item.id, **_row(found)} for item, found in zip(part, drafts, strict=True)]
            storage.write_json_lines(file, rows)
        for _, row in storage.read_json_lines(file):
            written[row["id"]] = GeneratedPrograms(tuple(row["texts"]), tuple(row["probabilities"]), row["failures"])
        if on_progress is not None:
            on_progress(min(len(items), (number + 1) * SHARD_SIZE), len(items))
    return written


def _row(drafts: Sequence[Candidate]) -> dict[str, Any]:
    good = [draft for draft in drafts if draft.failure is None]
    failures = Counter(draft.failure.kind for draft in drafts if draft.failure is not None)
    return {"texts": [d.text for d in good], "probabilities": [d.probability for d in good], "failures": failures}


@dataclass(frozen=True)
class StudyData:
    """The records of each part, their pictures' paths by record id, and their programs by part."""

    items: Items
    paths: Mapping[str, Mapping[str, Path]]
    programs: Mapping[str, ProgramsByQuestion]

    def questions(self, split: str, pictures: ImageCache, dsl: str, *, answers: bool) -> list[Question]:
        """The part's records that have a program, as questions with their first; with ``answers`` they keep theirs."""
        found = []
        for item in self.items[split]:
            if texts := self.programs[split][item.id].texts:
                views, answer = LazyImages(pictures, self.paths[item.id]), item.answer if answers else None
                found.append(Question(item.id, "", views, item.text, {dsl: texts[0]}, answer, item.kind, item.image_id))
        return found


@dataclass(frozen=True)
class Evaluator:
    """Records to be answered, by a preset's rules; of each call it is noted whether the ``teachers`` could answer it."""

    items: Sequence[Item]
    paths: Mapping[str, Mapping[str, Path]]
    album: ImageCache
    dsl: str
    protocol: Protocol
    teachers: Mapping[str, ModuleTeacher] = field(default_factory=dict)

    def answers(
        self, folder: Path, modules: Mapping[str, Module], programs: ProgramsByQuestion, on_progress: Progress | None = None
    ) -> list[dict[str, Any]]:
        """What the programs answer on ``modules``, a row a record: {id, answer, right, status, fallback, unknown, calls,
        covered}; kept in ``folder`` part by part, and read back where it is there.

        Of several programs the majority's answer is taken. What is no program, or fails, is a wrong answer, or under the
        preset's fallback VQA's. ``covered``: so many of the ``calls`` the teachers could answer.
        """
        parse = ProgramParser(self.dsl, modules)
        context = RunContext(modules, window=WINDOW, fallback=direct_vqa if self.protocol.fallback else None)
        rows: list[dict[str, Any]] = []
        for number, part in _shards(self.items):
            file = folder / f"{number:05d}.jsonl"
            if not file.exists():
                storage.write_json_lines(file, self._rows(part, programs, parse, context))
            rows += [row for _, row in storage.read_json_lines(file)]
            if on_progress is not None:
                on_progress(len(rows), len(self.items))
        return rows

    def _rows(
        self, items: Sequence[Item], programs: ProgramsByQuestion, parse: ProgramParser, context: RunContext
    ) -> Iterator[dict[str, Any]]:
        traces = stream((job for item in items for job in self._jobs(item, programs[item.id].texts, parse)), context)
        for item in items:
            texts = programs[item.id]
            votes = list(islice(traces, max(1, len(texts.texts))))
            winner = majority_vote(votes, texts.probabilities).winner if len(votes) > 1 else None
            shown = votes[winner or 0]
            steps = [step for vote in votes for step in vote.steps]
            yield {
                "id": item.id,
                "answer": to_text(shown.answer),
                "right": (shown.status == "ok" or shown.fallback) and self.protocol.match(shown.answer, item.answer),
                "status": shown.status,
                "fallback": shown.fallback,
                "unknown": shown.out_of_vocabulary > 0,
                "calls": len(steps),
                "covered": sum(s.module in self.teachers and self.teachers[s.module].supports(call_of(s)) for s in steps),
            }

    def _jobs(self, item: Item, texts: Sequence[str], parse: ProgramParser) -> Iterator[Job]:
        """A job a program; a record without one is a program that fails."""
        views = LazyImages(self.album, self.paths[item.id])
        questions = [Question(item.id, "", views, item.text, {self.dsl: text}) for text in texts]
        for program in [parse.parse(question) for question in questions] or [
            GenerationFailed("no program was written", where=item.id)
        ]:
            yield Job(item.id, program, dict(views), item.text)


def _shards(items: Sequence[Item]) -> Iterator[tuple[int, Sequence[Item]]]:
    for number in range(-(-len(items) // SHARD_SIZE)):
        yield number, items[number * SHARD_SIZE : (number + 1) * SHARD_SIZE]
