"""What all commands share: errors as messages and exit codes, ``--json``, progress, the stamp of a result."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tutelage.environment import command_line, run_metadata
from tutelage.errors import TutelageError
from tutelage.progress import ProgressBar, progress

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
