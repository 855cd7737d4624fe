"""The command ``tutelage``: its commands are the files of this folder (see ``lazy.py``)."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import typer

from tutelage.cli._renamed import name_the_new
from tutelage.cli.lazy import LazyGroup
from tutelage.environment import tune_garbage_collector
from tutelage.terminal import reported


class Commands(LazyGroup):
    """The group of all commands, with one place that turns errors into messages and exit codes."""

    folder, package = Path(__file__).parent, str(__package__)

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        with reported():
            try:
                return super().invoke(ctx)
            except Exception as error:
                name_the_new(error)
                raise


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # importing rich would take most of the help's time
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: tutelage demo --seed 0. `tutelage COMMAND --help` shows one for each command.",
)


def _version(requested: bool) -> None:
    if requested:
        from tutelage import __version__

        typer.echo(f"tutelage {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """Teach models with models: stepwise distillation of visual programs, and a library of distillation methods."""


def main() -> None:
    """Run the command line and leave with its exit code."""
    tune_garbage_collector()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a text from outside may hold characters that the terminal cannot write
    app(prog_name="tutelage")
