"""Stepwise distillation of visual programs: collect, label, train and evaluate; and the study of it all."""

from __future__ import annotations

from pathlib import Path

import typer

from tutelage.cli.lazy import LazyGroup


class SdvpCommands(LazyGroup):
    """One file for each command."""

    folder, package = Path(__file__).parent, __name__


app = typer.Typer(cls=SdvpCommands, no_args_is_help=True)


@app.callback()
def group() -> None:
    """Stepwise distillation of visual programs: collect, label, train and evaluate; and the study of it all."""
