"""The command ``tutelage``: its commands are found by listing this folder, and loaded when they are called.

A file ``cli/NAME.py`` that defines ``app = typer.Typer(...)`` is the command ``tutelage NAME`` (or the name that
``typer.Typer(name="…")`` states): a group where the app has several commands or a callback, one command otherwise.
The first line of the file's docstring is its line in ``tutelage --help``. Both are read from the source without running
it, so the help needs none of the imports of the commands.
"""

from __future__ import annotations

import ast
import importlib
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

from tutelage.cli.common import reported
from tutelage.environment import collect_rarely


class Found(NamedTuple):
    """A command file: the command's name, its help, and the module that holds it."""

    name: str
    help: str
    module: str


def read_command(file: Path) -> Found | None:
    """What the command file ``file`` declares; None where it defines no ``app``."""
    source = file.read_text(encoding="utf-8")
    if "app = typer.Typer(" not in source:
        return None
    tree = ast.parse(source, file)
    name = file.stem.replace("_", "-")
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "app" and isinstance(node.value, ast.Call):
            stated = {word.arg: word.value for word in node.value.keywords}
            if isinstance(stated.get("name"), ast.Constant):
                name = stated["name"].value
    line = (ast.get_docstring(tree) or "").partition("\n")[0]
    help_line = line.removeprefix(f"``tutelage {name}``:").strip()
    return Found(name, help_line[:1].upper() + help_line[1:], f"{__package__}.{file.stem}")


@cache
def found_commands(folder: Path = Path(__file__).parent) -> dict[str, Found]:
    """Every command in ``folder``, by name, in alphabetical order."""
    files = (file for file in folder.glob("[!_]*.py") if file.stem not in ("main", "common"))
    commands = (read_command(file) for file in files)
    return {command.name: command for command in sorted(command for command in commands if command)}


class Deferred(TyperCommand):
    """A command that shows its name and help, and imports the file that holds it when it is called."""

    def __init__(self, found: Found):
        super().__init__(found.name, help=found.help, callback=None)
        self.module = found.module

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """The context of the real command: from here on, this one is out of play."""
        app = importlib.import_module(self.module).app
        app.pretty_exceptions_enable, app.rich_markup_mode = False, None
        command = typer.main.get_command(app)
        command.params = [it for it in command.params if it.name not in ("install_completion", "show_completion")]
        return command.make_context(info_name, args, parent=parent, **extra)


class Commands(TyperGroup):
    """The group of all commands, with one place that turns errors into messages and exit codes."""

    def __init__(self, **attrs: Any):
        super().__init__(**attrs)
        self.commands |= {name: Deferred(found) for name, found in found_commands().items()}

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        with reported():
            return super().invoke(ctx)


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # importing rich would take most of the help's time
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: tutelage demo --seed 0. `tutelage COMMAND --help` shows one for each command.",
)


def _version(asked: bool) -> None:
    if asked:
        from tutelage import __version__

        typer.echo(f"tutelage {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """Teach models with models: visual programs taught step by step, and a library of distillation systems."""


def main() -> None:
    """Run the command line and leave with its exit code."""
    collect_rarely()
    app(prog_name="tutelage")
