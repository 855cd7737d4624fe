"""What all commands share: errors as messages and exit codes, ``--json``, progress, the stamp of a result."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tutelage.environment import command_line, run_metadata
from tutelage.errors import TutelageError

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["ProgressBar", "JsonOut", "console", "emit", "run_metadata", "progress", "reported"]

JsonOut = Annotated[
    str | None, typer.Option("--json", metavar="PATH", help="Write the result as JSON to PATH; - is standard output.")
]
"""The type of the option ``--json PATH``: write ``json: JsonOut = None``, and pass it to :func:`emit`."""


@contextlib.contextmanager
def reported() -> Iterator[None]:
    """Turn the library's errors into a message on standard error and the error's exit code.

    Ctrl-C leaves with 130 and prints the command that goes on. ``TUTELAGE_DEBUG=1`` lets the traceback through. Any
    other exception is a fault of the library and keeps its traceback.
    """
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(f"\nstopped; what was finished is kept. To go on:\n  {command_line()}", err=True)
        raise typer.Exit(130) from None
    except TutelageError as error:
        if os.environ.get("TUTELAGE_DEBUG"):
            raise
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(error.exit_code) from None


def emit(value: Any, path: str | None) -> None:
    """Write ``value`` as JSON to ``path``, atomically; ``-`` prints it, None does nothing.

    Raises:
        StorageError: the path cannot be written.
    """
    from tutelage.storage import encode_text, to_plain, write_json

    if path == "-":
        typer.echo(encode_text(json.dumps(to_plain(value), indent=1, ensure_ascii=False)))
    elif path is not None:
        write_json(Path(path), value)


def console(json: str | None = None) -> Console:
    """Where tables and text go: standard output, or standard error where that carries the JSON (``--json -``)."""
    from rich.console import Console

    shown = Console(stderr=json == "-", highlight=False)
    if not shown.is_terminal:
        shown.width = 120
    return shown


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
