"""One worker process of the sandbox, and the session in it that programs share.

The interpreter is pydantic-monty's: a Python written in Rust, in a process of its own that holds no file, no picture and no
network. :mod:`~tutelage.programs.sandbox_process` starts it; this module turns its errors into typed failures.
"""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import json
import os
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from tutelage.programs import sandbox_driver, sandbox_shims, viper_prelude
from tutelage.programs.sandbox_process import Limits, close_sessions, end_worker, keep_after_fork, start_worker, unusable

RECYCLE_CPU_SECONDS = 300.0
FOLLOW = 32
"""Turns between two looks at which processor the worker should be on."""
FRAMES = 40
"""Calls within calls that the driver and the prelude may add to a program's own."""


_processor = getattr(ctypes.CDLL(None), "sched_getcpu", None)


class SessionLost(Exception):
    """The session cannot go on. ``kind`` is timeout, memory or crash; ``line`` is that of the program, where it is known."""

    def __init__(self, kind: str, message: str, line: int | None = None):
        super().__init__(message)
        self.kind, self.message, self.line = kind, message, line


class Worker:
    """A worker process with one session at a time: :meth:`open` it, then :meth:`play` programs in it."""

    def __init__(self, limits: Limits):
        self.limits = limits
        self.session = -1
        """The number of the session: programs that are known in one must be described again to the next."""
        self.programs = 0
        self.suspended: int | None = None
        """The program that :meth:`live` left at a call."""
        self._snapshot: Any = None
        self._turns, self._single = FOLLOW - 4, True
        self._processors = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set[int]()
        self._settled = self._processors
        self._monty, self._report = start_worker(limits)
        self._open: list[Any] = []  # the session: a process lives as long as one of its sessions
        self.close = weakref.finalize(self, end_worker, self._monty, self._open, self._report, os.getpid())
        os.register_at_fork(after_in_child=keep_after_fork(self._monty))

    @property
    def granted(self) -> dict[str, bool]:
        """Which measures of the launcher the system granted; empty where it could not be used."""
        return dict(self._noted().get("granted", {}))

    @property
    def pid(self) -> int | None:
        """The worker process, where it is known."""
        return self._noted().get("pid")

    def cpu_seconds(self) -> float | None:
        """Processor time of the worker process so far, or None where the system does not tell."""
        pid = self.pid
        if pid is None or not hasattr(time, "clock_gettime"):
            return None
        try:
            return time.clock_gettime((~pid << 3) | 2)  # Linux: MAKE_PROCESS_CPUCLOCK of another process
        except OSError:
            return None

    @property
    def worn(self) -> bool:
        """Whether the process has worked so long that a new one should take its place."""
        used = self.cpu_seconds()
        return used is not None and used > RECYCLE_CPU_SECONDS

    def open(self, number: int, modules: Sequence[Any], seconds: float, state: bytes | None = None) -> bytes:
        """A new session, in which programs may call these ``modules`` and a turn takes at most ``seconds``.

        ``state`` is what an earlier call gave for the same modules and seconds; with it, opening takes a tenth of the time.

        Raises:
            SessionLost: the worker has died.
            RuntimeFailure: the sandbox cannot be used here; the remedy says what to install.
        """
        self.leave()
        limits = self.limits
        self.session = number
        self.programs = 0
        try:
            session = self._monty.checkout(
                script_name="program.py",
                limits={
                    "max_feed_duration_secs": seconds,
                    "max_memory": limits.memory_mib << 20,
                    "max_recursion_depth": limits.depth + FRAMES,
                    "max_suspensions": 10**9,
                    "gc_interval": 100_000,
                },
                os_policy={
                    "datetime": datetime.datetime(2000, 1, 1),
                    "sleep": "zero",
                    "process_time": "elapsed",
                    "random_start": {"seed": 0},
                },
            )
            self._open.append(session.__enter__())
            if state is not None:
                session.load_session(state)
                return state
            for text in _inside():
                session.feed_run(text, print_callback=_unread)
            given = {"calls": limits.calls, "length": limits.length, "bits": limits.bits}
            self._feed("setup(modules, limits)", {"modules": list(modules), "limits": given})
            dumped: bytes = session.dump()
            return dumped
        except Exception as error:
            if _is_crash(error):
                raise SessionLost("crash", str(error)) from None
            raise unusable(error) from None

    def play(self, opened: Sequence[Any], items: Sequence[Any], dropped: Sequence[int]) -> list[Any]:
        """Take programs as far as they go; a reply for each of ``items``.

        Raises:
            SessionLost: some program used up its time or memory, or the worker has died.
        """
        self.programs += len(opened)
        self._follow(len(items) == 1)
        given = {"opened": list(opened), "items": list(items), "dropped": list(dropped)}
        replies: list[Any] = self._feed("play(opened, items, dropped)", given)
        return replies

    def live(self, opened: Sequence[Any], number: int, outputs: Sequence[Any]) -> tuple[Any, ...]:
        """Take one program as far as its next call, and leave it suspended there: quicker than :meth:`play`, for a program that
        is the only one. Until it ends, the session is for :meth:`live` with the same ``number`` alone.

        Raises:
            SessionLost: as :meth:`play`.
        """
        suspended, self.suspended = self._snapshot, None
        self._snapshot = None
        if suspended is not None:
            snapshot = self._guarded(lambda: suspended.resume({"return_value": list(outputs)}))
        else:
            self.programs += len(opened)
            self._follow(True)
            given = {"opened": list(opened), "item": (number, list(outputs))}
            start = self._open[-1].feed_start
            snapshot = self._guarded(lambda: start("live(opened, item)", inputs=given, print_callback=_unread))
        while not hasattr(snapshot, "output"):
            name = getattr(snapshot, "function_name", None)
            if name == "_host":
                self._snapshot, self.suspended = snapshot, number
                return 0.0, "ask", snapshot.args[0]
            if name is None:  # a name that nothing defines
                answer = snapshot.resume
            elif snapshot.is_os_function:
                answer = snapshot.resume_not_handled
            else:
                answer = partial(snapshot.resume, {"exc_type": "NameError", "message": f"name {name!r} is not defined"})
            snapshot = self._guarded(answer)
        reply: tuple[Any, ...] = snapshot.output
        return reply

    def line_of(self, number: int) -> int | None:
        """The line of a program's text at which it fails.

        Raises:
            SessionLost: as :meth:`play`.
        """
        from pydantic_monty import MontyRuntimeError

        try:
            self._open[-1].feed_run("again(number)", inputs={"number": number}, print_callback=_unread)
        except MontyRuntimeError as error:
            if isinstance(error.exception(), TimeoutError | MemoryError):
                raise SessionLost("timeout", str(error)) from None
            return _line(error)
        except Exception as error:
            raise SessionLost("crash", str(error)) from None
        return None

    def leave(self) -> None:
        """Give the session back; what its programs left is gone."""
        self.suspended = self._snapshot = None
        close_sessions(self._open)

    def _follow(self, single: bool) -> None:
        """Choose the worker's processor. Where one program goes on at a time, it is that of this thread: one of the two waits
        while the other works, and waking another processor takes longer than most turns. Else it works beside its parent."""
        self._turns += 1
        self._single = self._single and single
        if self._turns % FOLLOW == 0:
            wanted = {_processor()} if self._single and _processor is not None else self._processors
            self._single = True
            if wanted != self._settled and self.pid is not None:
                self._settled = wanted
                with contextlib.suppress(OSError):
                    os.sched_setaffinity(self.pid, wanted)

    def _feed(self, code: str, inputs: Mapping[str, Any]) -> Any:
        return self._guarded(lambda: self._open[-1].feed_run(code, inputs=dict(inputs), print_callback=_unread))

    @staticmethod
    def _guarded(turn: Callable[[], Any]) -> Any:
        """One turn of the worker; its errors become ours."""
        from pydantic_monty import MontyRuntimeError

        try:
            return turn()
        except MontyRuntimeError as error:
            cause = error.exception()
            kind = "timeout" if isinstance(cause, TimeoutError) else "memory" if isinstance(cause, MemoryError) else "error"
            raise SessionLost(kind, str(error), _line(error)) from None
        except Exception as error:
            kind = ("timeout" if getattr(error, "timed_out", False) else "crash") if _is_crash(error) else "error"
            raise SessionLost(kind, f"{type(error).__name__}: {error}") from None

    def _noted(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads(self._report.read_text())
        except (OSError, ValueError):
            return {}
        return found


@cache
def _inside() -> tuple[str, ...]:
    """The text of the files that run inside the sandbox, without their imports of each other."""
    files = [viper_prelude, sandbox_shims, sandbox_driver]
    texts = [Path(str(file.__file__)).read_text(encoding="utf-8") for file in files]
    return tuple(text.partition("# Outside the sandbox: ")[0] for text in texts)


def _line(error: Any) -> int | None:
    lines = [frame.line for frame in error.traceback() if frame.filename == "<string>"]
    return lines[-1] if lines else None


def _is_crash(error: Exception) -> bool:
    from pydantic_monty import MontyCrashedError

    return isinstance(error, MontyCrashedError)


def _unread(stream: str, text: str) -> None:
    """What programs print, nobody reads."""
