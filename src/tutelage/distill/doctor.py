"""The doctor, in progress."""

from __future__ import annotations

from tutelage.distill.data import Batch
from tutelage.distill.lesson import Lesson


def first_look(lesson: Lesson, batch: Batch) -> None:
    """Look at the first batch before anything is trained."""
