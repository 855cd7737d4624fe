"""Commands found by listing a folder, and loaded when they are called.

A file ``NAME.py`` that defines ``app = typer.Typer(...)`` is the command NAME (or the name that ``typer.Typer(name="…")``
states): a group where the app has several commands or a callback, one command otherwise. A folder ``NAME/`` whose
``__init__.py`` defines it is a group of the commands in that folder. The first line of the file's docstring is its line in
the help. Both are read from the source without running it, so the help needs none of the imports of the commands.
"""

from __future__ import annotations

import ast
import importlib
from functools import cache, wraps
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

from tutelage.errors import TutelageError


class CommandSpec(NamedTuple):
    """A command file: the command's name, its help, and the module that holds it."""

    name: str
    help: str
    module: str


def read_command(file: Path, package: str) -> CommandSpec | None:
    """What the command file ``file`` of ``package`` declares; None where it defines no ``app``."""
    source = file.read_text(encoding="utf-8")
    if "app = typer.Typer(" not in source:
        return None
    tree = ast.parse(source, file)
    stem = file.parent.name if file.name == "__init__.py" else file.stem
    name = stem.replace("_", "-")
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "app" and isinstance(node.value, ast.Call):
            stated = {word.arg: word.value for word in node.value.keywords}
            if isinstance(stated.get("name"), ast.Constant):
                name = stated["name"].value
    line = (ast.get_docstring(tree) or "").partition("\n")[0]
    help_line = line.removeprefix(f"``tutelage {name}``:").strip()
    return CommandSpec(name, help_line[:1].upper() + help_line[1:], f"{package}.{stem}")


@cache
def found_commands(folder: Path, package: str) -> dict[str, CommandSpec]:
    """Every command in ``folder``, which is the Python package ``package``, by name, in alphabetical order."""
    files = [file for file in folder.glob("[!_]*.py") if file.stem not in ("main", "lazy")]
    commands = (read_command(file, package) for file in [*files, *folder.glob("[!_]*/__init__.py")])
    return {command.name: command for command in sorted(command for command in commands if command)}


class LazyCommand(TyperCommand):
    """A command that shows its name and help, and imports the file that holds it when it is called."""

    def __init__(self, spec: CommandSpec):
        super().__init__(spec.name, help=spec.help, callback=None)
        self.module = spec.module

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """The context of the real command, which replaces this one."""
        app = importlib.import_module(self.module).app
        app.pretty_exceptions_enable, app.rich_markup_mode = False, None
        command = typer.main.get_command(app)
        _name_options(command)
        command.params = [param for param in command.params if param.name not in ("install_completion", "show_completion")]
        return command.make_context(info_name, args, parent=parent, **extra)


def _name_options(command: Any) -> None:
    """Have errors of the command, and of those below it, name the option (``--scene-graphs``) where the library named its
    argument (``scene_graphs``)."""
    for inner in getattr(command, "commands", {}).values():
        if not isinstance(inner, LazyCommand):  # which comes here when it is called
            _name_options(inner)
    if command.callback is None:
        return
    callback = command.callback
    options = {param.name: param.opts[0] for param in command.params if param.opts[0].startswith("--")}

    @wraps(callback)
    def named(*args: Any, **kwargs: Any) -> Any:
        try:
            return callback(*args, **kwargs)
        except TutelageError as error:
            error.where = options.get(error.where, error.where) if isinstance(error.where, str) else error.where
            raise

    command.callback = named


class LazyGroup(TyperGroup):
    """The group of the commands in ``folder``, which is the Python package ``package``."""

    folder: ClassVar[Path]
    package: ClassVar[str]

    def __init__(self, **attrs: Any):
        super().__init__(**attrs)
        self.commands |= {name: LazyCommand(spec) for name, spec in found_commands(self.folder, self.package).items()}
