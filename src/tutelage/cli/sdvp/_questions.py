"""The questions that SOURCE, --layout, --split, --limit and --dsl name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tutelage.cli._options import Dsl, Layout
from tutelage.errors import InputError
from tutelage.terminal import progress

if TYPE_CHECKING:
    from tutelage.sdvp.questions import Question


def read_questions(
    source: Path, layout: Layout, split: str, images: Path | None, limit: int | None, dsl: Dsl, keep_all: bool = False
) -> tuple[list[Question], int]:
    """The questions that have a program (with ``keep_all``, the others too), and how many have none.

    Raises:
        InputError: a file that cannot be read, or no question with a program.
    """
    from tutelage.sdvp.sources import QuestionSource

    with progress("reading questions"):
        questions = QuestionSource(layout.value, source, split, images, limit).questions()
    with_program = [question for question in questions if dsl.value in question.programs]
    if not with_program:
        raise InputError(f"no question with a {dsl.value} program", where=source, remedy="check --layout, --split and --dsl")
    return (questions if keep_all else with_program), len(questions) - len(with_program)
