"""Programs that nobody vouches for run in a child process that has nothing to misuse.

One warm child serves many programs at once. It holds handles in place of images and asks over a pipe. A program that
kills or blocks the child fails alone: the others are run again in a new child up to where they were, which costs no
module call, since their answers are known and programs are deterministic.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Generator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

from tutelage.programs.interpreter import child as child_program
from tutelage.programs.interpreter.meter import Limits
from tutelage.programs.interpreter.patches import Request
from tutelage.programs.interpreter.wire import (
    MAX_MESSAGE,
    NotAMessage,
    decode,
    decode_failure,
    decode_request,
    encode,
    encode_signatures,
    pack,
    unpack,
)
from tutelage.programs.language import LimitExceeded, ProgramFailure, RuntimeFailure, Signature, TimeoutFailure

START_SECONDS = 30.0
GRACE = 1.05
"""The child stops a program at its limit; where it cannot, it is killed at this many times the limit."""

WALL = 20.0
"""Where the machine is so busy that the child gets no processor: its wall time may be this many times its limit."""


FOLLOW = 64
"""The child is asked so often before it is put on its parent's processor again."""

_current_processor = getattr(ctypes.CDLL(None), "sched_getcpu", None)


class _Died(Exception):
    """The child ended while it was asked; the message says how."""


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


class _Child:
    """One process, asked one question at a time."""

    def __init__(self, limits: Limits, memory: int):
        self.dead = False
        self.used = 0.0
        self._asked = 0
        self.told: set[int] = set()
        self._limits = limits
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", str(Path(child_program.__file__).resolve())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={},
            cwd="/",
            close_fds=True,
            start_new_session=True,  # Ctrl-C at the terminal is the parent's to handle
            bufsize=0,
        )
        self.pid, self._owner = self._process.pid, os.getpid()  # after a fork, each process has its own child
        assert self._process.stdin is not None and self._process.stdout is not None
        self._in, self._out = self._process.stdin.fileno(), self._process.stdout.fileno()
        self._poll = select.poll()
        self._poll.register(self._out, select.POLLIN | select.POLLHUP)
        self.close = weakref.finalize(self, _end, self._process)
        try:
            ready = self.ask([asdict(limits), memory], START_SECONDS)
        except _Died as error:
            raise RuntimeFailure(f"the isolated process did not start: {error}") from None
        self.granted: dict[str, bool] = ready[1]

    @property
    def alive(self) -> bool:
        """Whether it can be asked."""
        return not self.dead and self._owner == os.getpid() and self._process.poll() is None

    def tell(self, message: list[Any]) -> None:
        """Send a message that has no reply.

        Raises:
            _Died: it ended before.
        """
        data = memoryview(pack(message))
        try:
            while data:
                data = data[os.write(self._in, data) :]
        except OSError as error:
            self.dead = True
            raise _Died(error.strerror) from None

    def ask(self, message: list[Any], seconds: float) -> list[Any]:
        """Send a message and wait for the reply; ``used`` is then the processor time it took.

        Raises:
            TimeoutFailure: the child worked longer than ``seconds``; it is killed.
            _Died: it ended, or sent what is no reply.
        """
        if self._asked % FOLLOW == 0:
            self._follow()
        self._asked += 1
        begun, clock = self._processor_time(), time.monotonic()
        try:
            self.tell(message)
            size = int.from_bytes(self._read(4, begun, clock, seconds), "big")
            if size > MAX_MESSAGE:
                raise _Died("a reply too long")
            reply = unpack(self._read(size, begun, clock, seconds))
        except NotAMessage as error:
            self.end()
            raise _Died(f"a reply that is none: {error}") from None
        except BaseException:
            self.end()
            raise
        self.used = self._processor_time() - begun
        return reply

    def end(self) -> None:
        """Kill it."""
        self.dead = True
        self.close()

    def _follow(self) -> None:
        """Put the child on this thread's processor: one waits while the other works, and a switch on the spot takes a
        tenth of the time that waking another processor takes."""
        if _current_processor is not None:
            with contextlib.suppress(OSError):
                os.sched_setaffinity(self.pid, {_current_processor()})

    def _processor_time(self) -> float:
        """Seconds of processor time used so far (Linux: MAKE_PROCESS_CPUCLOCK of another process)."""
        try:
            return time.clock_gettime((~self.pid << 3) | 2)
        except OSError:
            return 0.0  # it is dead, which the pipe will tell

    def _read(self, size: int, begun: float, clock: float, seconds: float) -> bytes:
        data, wait = b"", seconds
        while len(data) < size:
            if not self._poll.poll(1000 * wait):
                used = self._processor_time() - begun
                if used >= seconds or time.monotonic() - clock > WALL * seconds:
                    raise TimeoutFailure(f"more than {self._limits.seconds:g} s of the program's own time")
                wait = max(0.02, seconds - used)  # the machine is busy: it had no processor
                continue
            part = os.read(self._out, size - len(data))
            if not part:
                code = self._process.wait()
                if code == -signal.SIGXCPU:
                    raise TimeoutFailure(f"more than {self._limits.seconds:g} s of the program's own time")
                raise _Died(f"signal {-code}" if code < 0 else f"exit code {code}")
            data += part
        return data


@dataclass(slots=True)
class _Session:
    """A run: what it takes to begin it again, and the answers it has been given."""

    number: int
    modules: int
    source: str
    arguments: dict[str, Any]
    answers: list[Any] = field(default_factory=list)
    child: _Child | None = None
    used: float = 0.0


class Sandbox:
    """Runs restricted programs in a child process; give it back with :meth:`close`, or use it in ``with``.

    ``limits`` are those of each program; ``memory_mib`` is what the child may grow by, all its programs together.
    """

    def __init__(self, limits: Limits | None = None, memory_mib: int = 256):
        self.limits = limits or Limits()
        self._memory = memory_mib << 20
        self._numbers = count()
        self._lock = threading.RLock()
        self._current: _Child | None = None
        self._modules: list[tuple[Mapping[str, Signature], list[Any]]] = []

    def check(self, source: str, signatures: Mapping[str, Signature]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The initial variables a program reads, and the arguments it takes.

        Raises:
            ProgramFailure: it is no program of the language.
        """
        modules = self._number_of(signatures)
        with self._lock:
            reply, _ = self._ask(self._ready(modules), ["check", modules, source])
        match reply:
            case ["inputs", list(inputs), list(args)]:
                return tuple(map(str, inputs)), tuple(map(str, args))
        raise RuntimeFailure("the isolated process sent no answer to a check")

    def run(self, source: str, signatures: Mapping[str, Signature], arguments: Mapping[str, Any]) -> Generator[Request, Any, Any]:
        """Run a program: yields requests, is sent values, returns the answer.

        Raises:
            ProgramFailure: whatever stopped the program.
        """
        encoded = {name: encode(value) for name, value in arguments.items()}
        session = _Session(next(self._numbers), self._number_of(signatures), source, encoded)
        ended = False
        try:
            while True:
                try:
                    with self._lock:
                        reply = self._advance(session)
                    match reply:
                        case ["ask", *data]:
                            request = decode_request(data)
                        case ["done", data]:
                            ended = True
                            return decode(data)
                        case _:
                            raise NotAMessage("no reply to a run")
                except ProgramFailure:
                    ended = True
                    raise
                except (NotAMessage, RecursionError) as error:
                    raise RuntimeFailure(f"the isolated process sent nonsense: {error}") from None
                session.answers.append(encode((yield request)))
        finally:
            if not ended and session.child is not None and not session.child.dead:
                with self._lock:
                    self._drop(session)

    @property
    def granted(self) -> dict[str, bool]:
        """Which measures that need the system's leave the child was granted."""
        with self._lock:
            return dict(self._ready(None).granted)

    @property
    def pid(self) -> int:
        """The process that serves now."""
        with self._lock:
            return self._ready(None).pid

    def close(self) -> None:
        """End the child."""
        with self._lock:
            if self._current is not None:
                self._current.end()
                self._current = None

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _number_of(self, signatures: Mapping[str, Signature]) -> int:
        for number, (known, _) in enumerate(self._modules):
            if known is signatures:
                return number
        data = encode_signatures(signatures)
        for number, (_, encoded) in enumerate(self._modules):
            if encoded == data:
                return number
        self._modules.append((signatures, data))
        return len(self._modules) - 1

    def _ready(self, modules: int | None) -> _Child:
        """The living child, told of these modules."""
        while True:
            if self._current is None or not self._current.alive:
                self._current = _Child(self.limits, self._memory)
            child = self._current
            if modules is None or modules in child.told:
                return child
            try:
                child.tell(["modules", modules, self._modules[modules][1]])
                child.told.add(modules)
            except _Died:
                continue

    def _advance(self, session: _Session) -> list[Any]:
        child = session.child
        if child is not None and child.alive:
            message = ["answer", session.number, session.answers[-1]]
            reply, used = self._ask(child, message, session.used)
            session.used += used
            return reply
        child = session.child = self._ready(session.modules)
        message = ["run", session.number, session.modules, session.source, session.arguments]
        reply, session.used = self._ask(child, message)
        for answer in session.answers:  # its first child died under another program
            reply, used = self._ask(child, ["answer", session.number, answer], session.used)
            session.used += used
        return reply

    def _ask(self, child: _Child, message: list[Any], used: float = 0.0) -> tuple[list[Any], float]:
        """The reply, and the processor time it took; ``used`` is what the program took before."""
        try:
            reply = child.ask(message, GRACE * self.limits.seconds - used)
        except _Died as error:
            raise LimitExceeded(f"the program ended the isolated process ({error})", remedy="too much memory?") from None
        if reply[0] == "fail":
            raise decode_failure(reply[1:])
        return reply, child.used

    def _drop(self, session: _Session) -> None:
        with contextlib.suppress(_Died):
            if session.child is not None:
                session.child.tell(["drop", session.number])


@cache
def shared_sandbox(limits: Limits) -> Sandbox:
    """The sandbox of this process for programs with these limits, made on first use."""
    return Sandbox(limits)
