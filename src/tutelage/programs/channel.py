"""The child process in which programs run, as its parent holds it: messages posted, replies received in their order."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
import os
import select
import signal
import subprocess
import sys
import time
import weakref
from collections import deque
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from tutelage.programs.interpreter import child as child_program
from tutelage.programs.interpreter.meter import Limits
from tutelage.programs.interpreter.wire import MAX_MESSAGE, PLACE, NotAMessage, dump, frame, unpack
from tutelage.programs.types import LimitExceeded, ProgramFailure, RuntimeFailure, TimeoutFailure

START_SECONDS = 30.0
GRACE = 1.05
"""The child stops a program at its limit; where it cannot, it is killed at this many times the limit."""

WALL = 20.0
"""Where the machine is so busy that the child gets no processor: its wall time may be this many times its limit."""

MESSAGES = 64
"""Messages that are gathered before they are sent, unless something is waited for."""

PIPE = 1 << 20
"""Bytes asked of the system for each pipe: neither side should often wait for the other to read."""

FOLLOW = 64
"""Messages between two looks at which processor the child should be on."""

_current_processor = getattr(ctypes.CDLL(None), "sched_getcpu", None)


class Recipient:
    """Whoever waits for a reply. ``used``: processor time it took so far; ``behind``: replies that it knows already."""

    __slots__ = ("reply", "used", "behind", "__weakref__")

    def __init__(self) -> None:
        self.reply: list[Any] | ProgramFailure | None = None
        self.used, self.behind = 0.0, 0

    def take(self, reply: list[Any], seconds: float) -> None:
        """Note what the child said; a known reply counts only where the run ended with it."""
        self.used += seconds
        if self.behind:
            self.behind -= 1
            if reply[0] == "ask":
                return
        if self.reply is None:
            self.reply = reply


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def _leave(child: weakref.ref[Child]) -> None:
    """After a fork: the process is the parent's, and this side must start its own."""
    if (its := child()) is not None:
        its.dead = True
        its.close.detach()


class Child:
    """One process. Messages are posted, and replies received later, in their order; it says in a shared page which
    message it is at, so that the one that kills or blocks it is known."""

    def __init__(self, limits: Limits, memory: int):
        self.dead = False
        self.told: set[int] = set()
        self._limits = limits
        self._outbox: list[list[Any]] = []
        self._waiting: deque[Recipient] = deque()
        self._inbox = bytearray()
        self._posted = self._delivered = self._frames = 0
        page = os.memfd_create("place", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(page, mmap.PAGESIZE)
        fcntl.fcntl(page, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        self._place = mmap.mmap(page, mmap.PAGESIZE)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-B", str(Path(child_program.__file__).resolve()), str(page)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={},
                cwd="/",
                close_fds=True,
                pass_fds=(page,),
                start_new_session=True,  # Ctrl-C at the terminal is the parent's to handle
                bufsize=0,
            )
        finally:
            os.close(page)
        self.pid = self._process.pid
        assert self._process.stdin is not None and self._process.stdout is not None
        self._in, self._out = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._in, False)
        for pipe in (self._in, self._out):
            with contextlib.suppress(OSError):
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE)
        self._readable, self._either = select.poll(), select.poll()
        self._readable.register(self._out, select.POLLIN)
        self._either.register(self._out, select.POLLIN)
        self._either.register(self._in, select.POLLOUT)
        self._processors = os.sched_getaffinity(0)
        self._settled: set[int] = set()
        self.close = weakref.finalize(self, _end, self._process)
        os.register_at_fork(after_in_child=partial(_leave, weakref.ref(self)))
        starting = Recipient()
        starting.used = GRACE * limits.seconds - START_SECONDS
        self.post(starting, [asdict(limits), memory])
        while starting.reply is None:
            if self.dead:
                raise RuntimeFailure("the isolated process did not start")
            self.receive()
        if isinstance(starting.reply, ProgramFailure):
            raise RuntimeFailure(f"the isolated process did not start: {starting.reply.message}")
        self.granted: dict[str, bool] = starting.reply[1]

    def tell(self, message: list[Any]) -> None:
        """A message that has no reply; it goes with the next ones."""
        self._outbox.append(message)

    def post(self, recipient: Recipient, message: list[Any]) -> None:
        """A message whose reply goes to ``recipient``, once it is received."""
        if self._posted % FOLLOW == 0:
            self._settle()
        self._posted += 1
        self._outbox.append(message)
        self._waiting.append(recipient)
        if len(self._outbox) >= MESSAGES:
            self.flush()

    def flush(self) -> None:
        """Send what was gathered. Replies are taken in meanwhile, so that neither side waits for the other for ever."""
        messages, self._outbox = self._outbox, []
        if not messages or self.dead:
            return
        data, moved = memoryview(frame(dump(messages))), time.monotonic()
        while data:
            try:
                data = data[os.write(self._in, data) :]
            except BlockingIOError:
                moved = self._wait(self._either, moved)
            except OSError:
                return self._fallen()
            if self.dead:
                return

    def receive(self) -> None:
        """Wait for replies and hand out those that came. If the child ends or blocks meanwhile, it is ``dead``, whoever
        is at fault has its failure, and the others have nothing."""
        self.flush()
        moved = time.monotonic()
        while not self.dead and not self._deliver():
            moved = self._wait(self._readable, moved)

    def end(self) -> None:
        """Kill it."""
        self.dead = True
        self.close()

    def _wait(self, poll: select.poll, moved: float) -> float:
        """Wait until a pipe is ready, and take in what can be read; ``moved`` is when the child last got on."""
        done, _, begun = self._at()
        allowed = GRACE * self._limits.seconds - (self._waiting[done].used if done < len(self._waiting) else 0.0)
        left = allowed - (self._processor_time() - begun)
        ready = poll.poll(1000 * max(0.02, left))
        for pipe, _ in ready:
            if pipe == self._out:
                part = os.read(self._out, PIPE)
                if not part:
                    self._fallen()
                self._inbox += part
        if ready:
            return time.monotonic()
        now_done, busy, now_begun = self._at()
        if now_done != done or now_begun != begun:
            return time.monotonic()
        late = busy and self._processor_time() - begun >= allowed
        if late or time.monotonic() - moved > WALL * max(0.02, allowed):  # it hangs, or the machine is too busy
            self._blame(TimeoutFailure(f"more than {self._limits.seconds:g} s of the program's own time"), done)
            self.end()
        return moved

    def _deliver(self) -> bool:
        """Hand out the replies of the first frame that is there whole; False if none is."""
        inbox = self._inbox
        size = int.from_bytes(inbox[:4], "big")
        try:
            if size > MAX_MESSAGE:
                raise NotAMessage("too long")
            if len(inbox) < 4 + size or not size:
                return False
            replies = unpack(inbox[4 : 4 + size])
            del inbox[: 4 + size]
            waiting = self._waiting
            for reply in replies:
                if not waiting or type(reply) is not list or len(reply) != 2:
                    raise NotAMessage("not a reply")
                used, said = reply
                if type(used) is not int or type(said) is not list or not said or type(said[0]) is not str:
                    raise NotAMessage("not a reply")
                self._delivered += 1
                waiting.popleft().take(said, used * 1e-6)
        except NotAMessage as error:
            self._blame(LimitExceeded(f"the program ended the isolated process (a reply that is none: {error})"), 0)
            self.end()
        self._frames += 1
        return True

    def _fallen(self) -> None:
        """The child ended: by itself, by the kernel, or by somebody's hand."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)
        self._process.kill()
        code = self._process.wait()
        while part := os.read(self._out, PIPE):  # what it said before is true
            self._inbox += part
        while not self.dead and self._deliver():
            pass
        if self.dead:
            return
        done, busy, _ = self._at()
        if busy:
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            if code == -signal.SIGXCPU:
                self._blame(TimeoutFailure(f"more than {self._limits.seconds:g} s of the program's own time"), done)
            else:
                self._blame(LimitExceeded(f"the program ended the isolated process ({how})", remedy="too much memory?"), done)
        self.end()

    def _at(self) -> tuple[int, bool, float]:
        """Which of those who wait the child is at, whether it is at work, and its processor time when it began that."""
        while True:
            done, busy, begun = PLACE.unpack_from(self._place)
            if PLACE.unpack_from(self._place) == (done, busy, begun):
                return max(0, done - self._delivered), busy, begun

    def _blame(self, failure: ProgramFailure, place: int) -> None:
        """The program that is in this place among those who wait has failed."""
        if self._waiting:
            self._waiting[min(place, len(self._waiting) - 1)].reply = failure

    def _settle(self) -> None:
        """Choose the child's processor. Asked one question at a time, it is on this thread's: one waits while the other
        works, and a switch on the spot takes a tenth of the time that waking another processor takes. Asked many at
        once, it works beside its parent."""
        if _current_processor is not None:
            one_by_one = 2 * self._frames > FOLLOW or not self._posted
            wanted = {_current_processor()} if one_by_one else self._processors
            if wanted != self._settled:
                self._settled = wanted
                with contextlib.suppress(OSError):
                    os.sched_setaffinity(self.pid, wanted)
        self._frames = 0

    def _processor_time(self) -> float:
        """Seconds of processor time used so far (Linux: MAKE_PROCESS_CPUCLOCK of another process)."""
        try:
            return time.clock_gettime((~self.pid << 3) | 2)
        except OSError:
            return 0.0  # it is dead, which the pipe will tell
