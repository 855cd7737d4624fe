"""The child process that runs programs: it locks itself in, then answers messages until its input ends.

Started by path, with an empty environment. Before the first message is read it can open no file and no socket, start
no process, and grow only so far. Messages in: ``modules`` (signatures under a number), ``check``, ``run``, ``answer``,
``drop``; out, with the microseconds of processor time each took: ``ready``, ``inputs``, ``ask``, ``done``, ``fail``.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # the package's own folder, and nothing of the user's
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import contextlib
import ctypes
import difflib  # noqa: F401  (did_you_mean needs it, and nothing can be imported once the door is shut)
import gc
import mmap
import os
import resource
import time
from collections import OrderedDict
from collections.abc import Generator
from typing import Any, BinaryIO

from tutelage.programs.interpreter.library import viper_library
from tutelage.programs.interpreter.meter import Limits
from tutelage.programs.interpreter.reader import Reader
from tutelage.programs.interpreter.run import CompiledProgram
from tutelage.programs.interpreter.wire import (
    GATHERED,
    LONGEST,
    PLACE,
    NotAMessage,
    decode,
    decode_signatures,
    dump,
    encode,
    encode_failure,
    encode_requests,
    frame,
    unpack,
)
from tutelage.programs.types import LimitExceeded, ProgramFailure, RuntimeFailure

KEPT = 1024
"""Compiled programs that are kept."""

HELD = 0.002
"""Seconds of processor time that a reply may be held back, to go with others, before the next message is begun."""

RECURSION = 4_000
NOBODY = 65_534
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 4, 38


def lock_in(memory: int) -> dict[str, bool]:
    """Give up every right that a program could misuse; ``memory``: bytes this process may still grow by.

    Returns which of the measures that need the system's leave were granted.
    """
    os.chdir("/")
    os.environ.clear()
    granted = {"network_namespace": False, "no_new_privileges": False, "no_root": os.getuid() != 0}
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "unshare"):
        granted["network_namespace"] = libc.unshare(CLONE_NEWNET) == 0 or libc.unshare(CLONE_NEWUSER | CLONE_NEWNET) == 0
    if not granted["no_root"]:
        with contextlib.suppress(OSError):
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            granted["no_root"] = True
    if hasattr(libc, "prctl"):
        granted["no_new_privileges"] = libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
        libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    for name, amount in (("CORE", 0), ("FSIZE", 0), ("NPROC", 0), ("NOFILE", 0), ("AS", _address_space() + memory)):
        kind = getattr(resource, f"RLIMIT_{name}")
        _, hard = resource.getrlimit(kind)
        amount = amount if hard == resource.RLIM_INFINITY else min(amount, hard)
        resource.setrlimit(kind, (amount, amount))
    return granted


def _address_space() -> int:
    """Bytes of address space in use."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:
        return 256 << 20


class Server:
    """The state of the child: readers, compiled programs, and runs that wait for an answer."""

    def __init__(self, limits: Limits):
        self.limits = limits
        self.readers: dict[int, Reader] = {}
        self.programs: OrderedDict[tuple[int, str], CompiledProgram] = OrderedDict()
        self.runs: dict[int, Generator[Any, Any, Any]] = {}

    def program(self, modules: int, source: str) -> CompiledProgram:
        """The compiled program, from memory if it is there."""
        key = (modules, source)
        if key in self.programs:
            self.programs.move_to_end(key)
            return self.programs[key]
        program = self.readers[modules].read(source)
        self.programs[key] = program
        if len(self.programs) > KEPT:
            self.programs.popitem(last=False)
        return program

    def handle(self, message: list[Any]) -> list[Any] | None:
        """The reply to one message; None where none is expected."""
        try:
            match message:
                case ["answer", int(number), data]:
                    return self.advance(number, decode(data))
                case ["modules", int(number), data]:
                    self.readers[number] = Reader(viper_library(decode_signatures(data)), self.limits)
                    return None
                case ["check", int(modules), str(source)]:
                    program = self.program(modules, source)
                    return ["inputs", program.inputs, program.args, bool(program.texts)]
                case ["run", int(number), int(modules), str(source), dict(arguments)]:
                    arguments = {name: decode(value) for name, value in arguments.items()}
                    self.runs[number] = self.program(modules, source).run(arguments)
                    return self.advance(number, None)
                case ["drop", int(number)]:
                    if number in self.runs:
                        self.runs.pop(number).close()
                    return None
        except ProgramFailure as failure:
            return ["fail", *encode_failure(failure)]
        raise NotAMessage(str(message)[:80])

    def refuse(self, message: list[Any]) -> list[Any]:
        """The reply to a message whose own is too long; a run ends with it."""
        self.runs.pop(message[1], None)
        return ["fail", *encode_failure(LimitExceeded(f"a question or an answer of more than {LONGEST:,} characters"))]

    def advance(self, number: int, value: Any) -> list[Any]:
        """Take a run to its next question or its end."""
        run = self.runs.get(number)
        if run is None:
            raise RuntimeFailure("the run has ended")
        try:
            return encode_requests(run.send(value))
        except StopIteration as stop:
            del self.runs[number]
            return ["done", encode(stop.value)]
        except ProgramFailure as failure:
            del self.runs[number]
            return ["fail", *encode_failure(failure)]


def more_time(seconds: float) -> None:
    """The kernel ends this process where one message takes far longer than a program may."""
    end = int(time.process_time() + 1.5 * seconds) + 2
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (end if hard == resource.RLIM_INFINITY else min(end, hard), hard))


def serve(source: BinaryIO, sink: BinaryIO, limits: Limits, place: mmap.mmap) -> None:
    """Answer messages until ``source`` ends. Replies go out together: at a frame's end, or where they get long or old."""
    server, next_second, made = Server(limits), 0.0, 1  # "ready" was the first
    while len(head := source.read(4)) == 4:
        begun = sent = time.process_time()
        PLACE.pack_into(place, 0, made, True, begun)
        replies: list[str] = []
        size = 0
        for message in unpack(source.read(int.from_bytes(head, "big"))):
            PLACE.pack_into(place, 0, made, True, begun)
            if begun >= next_second:
                next_second = begun + 0.5
                more_time(limits.seconds)
            reply = server.handle(message)
            now = time.process_time()
            if reply is not None:
                text = dump([int(1e6 * (now - begun)), reply])
                if len(text) > LONGEST:
                    text = dump([int(1e6 * (now - begun)), server.refuse(message)])
                replies.append(text)
                size += len(text)
                made += 1
            begun = now
            PLACE.pack_into(place, 0, made, False, begun)  # at rest, until the next message
            if replies and (now - sent > HELD or size > GATHERED):
                send(sink, frame(f"[{','.join(replies)}]"))
                replies, sent, size = [], now, 0
        data = frame(f"[{','.join(replies)}]") if replies else b""
        PLACE.pack_into(place, 0, made, False, begun)  # from here on, nothing that a program did can end this process
        send(sink, data)


def send(sink: BinaryIO, data: bytes) -> None:
    """Write a frame."""
    sink.write(data)
    sink.flush()


def main() -> None:
    """Read limits, shut the door, say so, and serve."""
    source, sink, page = sys.stdin.buffer, sys.stdout.buffer, int(sys.argv[1])
    place = mmap.mmap(page, mmap.PAGESIZE)
    os.closerange(3, page + 2)  # its file, and the copy of it that mmap keeps
    head = source.read(4)
    ((settings, memory),) = unpack(source.read(int.from_bytes(head, "big")))
    limits = Limits(**settings)
    sys.setrecursionlimit(RECURSION)
    granted = lock_in(memory)
    gc.freeze()  # what stands now stays
    gc.set_threshold(10_000)  # programs leave little behind, and little of that in cycles
    PLACE.pack_into(place, 0, 1, False, time.process_time())
    send(sink, frame(dump([[0, ["ready", granted]]])))
    serve(source, sink, limits, place)


if __name__ == "__main__":
    main()
