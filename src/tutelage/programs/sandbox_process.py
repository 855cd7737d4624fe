"""Starting and ending the sandbox's worker processes, and the limits of the programs in them.

A worker is started behind :mod:`~tutelage.programs.sandbox_launcher`. Where that cannot run, pydantic-monty is the only
fence, and a warning says so.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shlex
import shutil
import stat
import sys
import sysconfig
import tempfile
import warnings
import weakref
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tutelage.programs import sandbox_launcher
from tutelage.programs.types import RuntimeFailure

INSTALL = "pip install 'pydantic-monty>=1.4'"
BASE_MIB = 512
"""Address space of a worker that runs nothing, with room to spare: what the limit of its programs is added to."""
CPU_SECONDS = 600
"""The system ends a worker that has used so much processor time; it is replaced long before that."""
START_SECONDS = 10.0
"""A worker that does not answer for so long is no worker."""
GRACE = 0.1
"""Seconds past its limit after which a worker is killed that does not stop by itself."""
NO_WALL = "the sandbox of ViperGPT programs runs without the wall of the system: its launcher does not start ({error})"


@dataclass(frozen=True)
class Limits:
    """The most that one program may use; each limit is a typed failure when it is passed.

    Args:
        source: bytes of text.
        calls: calls of modules.
        depth: functions that call each other.
        seconds: the program's own time from its beginning to its next module call; waiting for modules is free. All its runs
            from its beginning together may take twice as long.
        memory_mib: values of all programs of a session.
        length: characters and items of the arguments of one module call; an answer may have four times as many.
        bits: of an integer that is answered or given to a module.
    """

    source: int = 20_000
    calls: int = 1_000
    depth: int = 100
    seconds: float = 1.0
    memory_mib: int = 64
    length: int = 100_000
    bits: int = 4_096


def unusable(error: Exception) -> RuntimeFailure:
    """The failure of programs where the sandbox cannot be started."""
    return RuntimeFailure(f"the sandbox of ViperGPT programs does not start: {type(error).__name__}: {error}", remedy=INSTALL)


@cache
def home() -> int:
    """The process in which the sandbox was first used: its children by fork must not use it (they would hang)."""
    return os.getpid()


def check_home() -> None:
    """Refuse to go on in a process that was forked after the sandbox was used.

    Raises:
        RuntimeFailure: it was.
    """
    if home() != os.getpid():
        raise RuntimeFailure(
            "this process was forked after the sandbox of ViperGPT programs was used",
            remedy="start processes by 'spawn' or 'forkserver'",
        )


def start_worker(limits: Limits) -> tuple[Any, Path]:
    """A running worker, behind the launcher where that works (else with a warning), and the file of the launcher's notes.

    Raises:
        RuntimeFailure: no worker starts, or this process was forked after the sandbox was used.
    """
    check_home()
    try:
        from pydantic_monty import Monty

        folder = Path(tempfile.mkdtemp(prefix="tutelage-sandbox-"))
        report = folder / "report.json"
        try:
            starts = [_launcher(folder, report, limits), _binary()]
            for number, path in enumerate(starts):
                monty = Monty(
                    binary_path=path,
                    min_processes=1,
                    max_processes=1,
                    feed_duration_limit_grace=GRACE,
                    request_timeout=START_SECONDS,
                )
                try:
                    monty.__enter__()
                    with monty.checkout() as session:
                        session.feed_run("1")
                    return monty, report
                except Exception as error:
                    report.write_text("{}")
                    if number + 1 == len(starts):
                        raise
                    warnings.warn(NO_WALL.format(error=f"{type(error).__name__}: {error}"), RuntimeWarning, stacklevel=2)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    except Exception as error:
        raise unusable(error) from None
    raise AssertionError


def _binary() -> str:
    """The worker's program, where pydantic-monty's own search would find it.

    Raises:
        FileNotFoundError: it is not installed.
    """
    if given := os.environ.get("MONTY_BIN"):
        return given
    scripts = Path(sysconfig.get_path("scripts")) / "monty"
    found = str(scripts) if scripts.is_file() else shutil.which("monty")
    if found is None:
        raise FileNotFoundError("the program 'monty' is not installed")
    return found


def _launcher(folder: Path, report: Path, limits: Limits) -> str:
    """A script in ``folder`` that starts the worker behind the wall."""
    (folder / "empty").mkdir()
    report.touch()
    folder.chmod(0o755)
    # A worker reuses memory of earlier sessions, but not all of it: twice the limit of one.
    memory = BASE_MIB + 2 * limits.memory_mib
    words = [sys.executable, "-I", "-S", "-B", str(Path(sandbox_launcher.__file__).resolve()), _binary(), str(report)]
    words += [str(folder / "empty"), str(memory), str(CPU_SECONDS)]
    script = folder / "worker"
    script.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
    script.chmod(stat.S_IRWXU)
    return str(script)


def close_sessions(sessions: list[Any]) -> None:
    """Close the open sessions of a worker; one that is lost already raises nothing."""
    while sessions:
        with contextlib.suppress(Exception):
            sessions.pop().__exit__(None, None, None)


def end_worker(monty: Any, sessions: list[Any], report: Path, owner: int) -> None:
    """End the worker and remove its folder, in the process ``owner`` that started it alone."""
    if os.getpid() == owner:
        close_sessions(sessions)
        with contextlib.suppress(Exception):
            monty.__exit__(None, None, None)
        shutil.rmtree(report.parent, ignore_errors=True)


def keep_after_fork(monty: Any) -> Any:
    """A hook that keeps a parent's worker from being given back by its forked child: the parent would hang."""
    held = weakref.ref(monty) if hasattr(type(monty), "__weakref__") else (lambda: monty)

    def keep() -> None:
        if (found := held()) is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(found))

    return keep
