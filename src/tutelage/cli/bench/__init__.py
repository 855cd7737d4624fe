"""Side-by-side timings, their variants interleaved in one run."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

import typer

from tutelage.cli.lazy import LazyGroup


class Device(StrEnum):
    """Where networks compute."""

    cpu = "cpu"
    cuda = "cuda"


class Benchmarks(LazyGroup):
    """A file a benchmark."""

    folder, package = Path(__file__).parent, __name__


app = typer.Typer(cls=Benchmarks, no_args_is_help=True)


@app.callback()
def group() -> None:
    """Side-by-side timings, their variants interleaved in one run."""
