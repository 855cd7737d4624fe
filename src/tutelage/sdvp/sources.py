"""Questions from files: programs given as JSON lines, and the folders of GQA and NLVR2 through the grammar writer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import MappingProxyType

from tutelage.datasets import gqa, nlvr2
from tutelage.errors import InputError, did_you_mean
from tutelage.programs.generators.from_file import read_programs
from tutelage.programs.generators.grammar import generate
from tutelage.programs.image_cache import ImageCache, LazyImages
from tutelage.programs.types import ParseFailure
from tutelage.sdvp.questions import Question


def questions_from(programs: str | Path, images: str | Path = ".", task: str = "own") -> list[Question]:
    """The questions of a JSON-lines file, a line a program: {id, dsl, program, images, question?, answer?}.

    Paths of images are relative to the folder ``images``; every picture is opened once, and again when it is used.

    Raises:
        InputError: the file or a picture is absent or broken; the line is named.
    """
    found, album = [], ImageCache()
    for stored in read_programs(programs):
        views = LazyImages(album, {name: Path(images) / path for name, path in stored.images.items()})
        for path in views.paths.values():
            try:
                album.key_and_size(path)
            except InputError as error:
                line = f"{programs}:{stored.line}"
                raise InputError(f"{error.where}: {error.message}", where=line, remedy=error.remedy) from error
        group = "+".join(stored.images.values())
        text = stored.question or stored.program
        kind = str(stored.extra.get("kind", ""))
        found.append(Question(stored.id, task, views, text, {stored.dsl: stored.program}, stored.answer, kind, group))
    return found


@dataclass(frozen=True)
class QuestionSource:
    """Where questions come from: a ``layout``, its folder (``programs``: the JSON-lines file), and which part of it.

    ``images``: where relative paths of ``programs`` begin; None: beside the file. ``split``: of the dataset.
    """

    layout: str
    path: Path
    split: str = "val"
    images: Path | None = None
    limit: int | None = None

    def questions(self) -> list[Question]:
        """The questions in file order; those the grammar does not read have no program.

        Raises:
            InputError: an unknown layout; a folder, file, field or picture that is absent or broken.
        """
        if self.layout not in LAYOUTS:
            raise InputError(f"unknown layout {self.layout!r}", where="layout", remedy=did_you_mean(self.layout, list(LAYOUTS)))
        return list(islice(LAYOUTS[self.layout](self), self.limit))


def _programs(source: QuestionSource) -> Iterator[Question]:
    yield from questions_from(source.path, source.images or source.path.parent)


def _gqa(source: QuestionSource) -> Iterator[Question]:
    folder, pictures = gqa.GqaFolder(source.path), ImageCache()
    for record in gqa.read_questions(folder.questions(source.split), annotated=source.split not in ("test", "challenge")):
        views = LazyImages(pictures, {"IMAGE": folder.image(record.image_id)})
        yield Question(
            record.id,
            "gqa",
            views,
            record.question,
            grammar_programs(record.question),
            record.answer,
            record.detailed or record.structural,
            record.image_id,
        )


def _nlvr2(source: QuestionSource) -> Iterator[Question]:
    folder, pictures = nlvr2.Nlvr2Folder(source.path), ImageCache()
    for record in nlvr2.read_examples(folder.examples(source.split)):
        left, right = folder.images(record)
        views = LazyImages(pictures, {"LEFT": left, "RIGHT": right})
        answer = None if record.label is None else "yes" if record.label else "no"
        programs = grammar_programs(record.sentence, ("LEFT", "RIGHT"))
        yield Question(record.identifier, "nlvr2", views, record.sentence, programs, answer, "", record.pair)


LAYOUTS: Mapping[str, Callable[[QuestionSource], Iterator[Question]]] = MappingProxyType(
    {"gqa": _gqa, "nlvr2": _nlvr2, "programs": _programs}
)


def grammar_programs(question: str, inputs: tuple[str, ...] = ("IMAGE",)) -> dict[str, str]:
    """The grammar's programs of a question by DSL; none where it does not read it."""
    try:
        return generate(question, inputs)._asdict()
    except ParseFailure:
        return {}
