"""Modules from a Python file that the user names: ``mine.py:Color``.

Such a file is trusted: it runs in this process with the user's own rights, as ``python mine.py`` would. It is imported by
its name from its own folder, so it can import the files beside it, and worker processes find it too.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import typer

from tutelage.errors import InputError, MissingExtra, TutelageError, did_you_mean

EXAMPLE = "give a function with type hints, or an object made by @tutelage.module or VisualModule.build"


def is_user_code(text: str) -> bool:
    """Whether ``text`` is FILE.py:NAME."""
    return text.partition(":")[0].endswith(".py") or text.rpartition(":")[0].endswith(".py")


def user_object(text: str) -> Any:
    """The object that FILE.py:NAME names; the file is imported.

    Raises:
        InputError: no such file, no such name in it, or the file raises; the message names the file and the line.
    """
    path, _, name = text.rpartition(":")
    if not path or not name.isidentifier():
        raise InputError("no name of a module in the file", where=text, remedy=f"--module {path or text}:NAME")
    module = _import_file(Path(path))
    if not hasattr(module, name):
        known = [key for key, value in vars(module).items() if not key.startswith("_") and callable(value)]
        raise InputError(f"no {name!r} in the file", where=path, remedy=did_you_mean(name, known) if known else "define it")
    return getattr(module, name)


def user_module(text: str) -> Any:
    """The module that FILE.py:NAME names: one made by ``@tutelage.module``, a ``VisualModule``, a function with type hints
    (its name in capitals becomes the module's name), or a class that builds one of these without arguments.

    Raises:
        InputError: as :func:`user_object`; also where the object is no module.
    """
    from tutelage.modules.function_module import module
    from tutelage.modules.visual_module import VisualModule

    found = user_object(text)
    try:
        if inspect.isclass(found):
            found = found.build(found.Config(), seed=0) if issubclass(found, VisualModule) else found()
        if inspect.isroutine(found):
            found = module(found)
    except TutelageError:
        raise
    except Exception as error:
        raise InputError(f"cannot be built: {type(error).__name__}: {error}", where=text, remedy=EXAMPLE) from error
    missing = [name for name in ("name", "signature", "run", "version") if not hasattr(found, name)]
    if missing:
        if callable(found):
            return module(name=text.rpartition(":")[2].upper())(found)
        raise InputError(f"no module: it has no {missing[0]}", where=text, remedy=EXAMPLE)
    return found


def _import_file(path: Path) -> ModuleType:
    """The file as a Python module; a second call returns the same one."""
    path = path.resolve()
    if not path.is_file():
        raise InputError("no such file", where=path, remedy="check the path before the colon")
    if not path.stem.isidentifier():
        raise InputError(f"{path.stem!r} is no name of a Python module", where=path, remedy="rename the file")
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # worker processes are given this path, and import the file by its name
    first = path.stem not in sys.modules
    if first:
        typer.echo(f"trusted code: {path} runs with your rights, outside the sandbox", err=True)
    try:
        module = importlib.import_module(path.stem)
    except MissingExtra:
        raise
    except (Exception, SystemExit) as error:
        raise InputError(f"the file raises {type(error).__name__}: {error}", where=_line(path, error), remedy="mend it") from error
    if Path(getattr(module, "__file__", None) or "").resolve() != path:
        raise InputError(f"another Python module is named {path.stem}", where=path, remedy="rename the file")
    return module


def _line(path: Path, error: BaseException) -> str:
    """The file and the last of its lines that the error passed."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f"{path}:{error.lineno}"
    trace, number = error.__traceback__, None
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            number = trace.tb_lineno
        trace = trace.tb_next
    return f"{path}:{number}" if number is not None else str(path)
