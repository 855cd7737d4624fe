"""A progress bar on standard error, where that is a terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any


class ProgressBar:
    """A progress bar: call it with (done, total), or :meth:`advance` it."""

    def __init__(self, progress: Any, task: Any):
        self._progress, self._task = progress, task

    def __call__(self, done: float, total: float | None = None) -> None:
        """``done`` units out of ``total`` are finished."""
        self._progress.update(self._task, completed=done, total=total)

    def advance(self, amount: float = 1) -> None:
        """``amount`` more units are finished."""
        self._progress.advance(self._task, amount)

    def describe(self, text: str) -> None:
        """Change the words beside the bar."""
        self._progress.update(self._task, description=text)


@contextlib.contextmanager
def progress(description: str, total: float | None = None) -> Iterator[ProgressBar]:
    """A progress bar on standard error while the block runs; silent where that is not a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    quiet = not sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=quiet) as shown:
        yield ProgressBar(shown, shown.add_task(description, total=total))
