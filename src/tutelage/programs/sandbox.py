"""Runs programs that nobody vouches for, many at a time, in worker processes that have nothing to misuse.

A run is a generator of module calls. Between two of its calls a program is not suspended: it is run again from its beginning
with the outputs that are known (see :mod:`~tutelage.programs.sandbox_driver`). So a worker keeps nothing that could be lost:
when it dies, or a program uses it up, the others go on in another, and no module is called twice. Programs that wait for
their turn go to the worker together, in rounds; full rounds run in a thread beside the caller's.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import count
from typing import Any

from tutelage.programs.sandbox_process import Limits, check_home
from tutelage.programs.sandbox_run import Codec, Modules, Place, SandboxProgram, SandboxRun
from tutelage.programs.sandbox_worker import SessionLost, Worker
from tutelage.programs.types import (
    ForbiddenSyntax,
    LimitExceeded,
    ParseFailure,
    ProgramFailure,
    RuntimeFailure,
    TimeoutFailure,
    TypeFailure,
    UndefinedVariable,
    UnknownModule,
)

ROUND = 64
"""Programs that go to the worker at once: it costs as much for each as 512 do, and a bad one sends fewer back."""
RENEW = 2_000
"""Programs after which a session is renewed: the code of all that ran in it is kept until then."""
SESSIONS = 4
"""Sessions that are kept at once: for clients, and for sets of modules."""
REPLAY = 2
"""All runs of a program from its beginning may take so many times its limit of time."""
ROUND_SHARE, ROUND_LEAST = 0.25, 0.25
"""A round may take this share of a program's own seconds, and at least so many: it usually takes milliseconds."""


class Sandbox:
    """Runs restricted programs in worker processes; give them back with :meth:`close`, or use it in ``with``.

    ``limits`` are those of each program.
    """

    def __init__(self, limits: Limits | None = None):
        self.limits = limits or Limits()
        self.numbers = count()
        self._lock, self._turn = threading.Lock(), threading.RLock()
        self._posted: list[SandboxRun] = []
        self._under_way: set[int] = set()
        self._dropped: list[tuple[int, int]] = []
        self._workers: OrderedDict[Place | str, Worker] = OrderedDict()
        self._thread: ThreadPoolExecutor | None = None
        self._states: dict[tuple[Modules, float], bytes] = {}

    def run(
        self,
        program: SandboxProgram,
        modules: Modules,
        codec: Codec,
        positional: Sequence[Any] = (),
        named: Mapping[str, Any] | None = None,
        names: Mapping[str, Any] | None = None,
        client: str = "",
    ) -> SandboxRun:
        """A run of ``program``, which may call these ``modules``.

        Its entry is called with ``positional`` and ``named`` arguments, and ``names`` are variables of its top level; all are
        as ``codec.encode`` gives them. Programs of different ``client``s never share a session.
        """
        how = (program.source, program.once and not names, program.seeded, program.entry)
        described = (*how, list(positional), dict(named or {}), dict(names or {}))
        return SandboxRun(self, program, described, codec, (modules, client))

    @property
    def granted(self) -> dict[str, bool]:
        """Which measures that need the system's leave the workers were granted; empty: the wall could not be raised."""
        with self._turn:
            return self._any_worker().granted

    @property
    def pid(self) -> int | None:
        """A worker process that serves now, where its number is known."""
        with self._turn:
            return self._any_worker().pid

    @property
    def pids(self) -> set[int]:
        """All worker processes that serve now, as far as their numbers are known."""
        with self._turn:
            return {worker.pid for worker in self._workers.values() if worker.pid is not None}

    def close(self) -> None:
        """End the workers."""
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None
        with self._turn:
            while self._workers:
                self._workers.popitem()[1].close()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # What runs ask for

    def post(self, run: SandboxRun) -> None:
        """Have ``run`` go on in the next round."""
        with self._lock:
            self._posted.append(run)
            if len(self._posted) < ROUND:
                return
            batch, self._posted = self._posted, []
            if self._thread is None:
                self._thread = ThreadPoolExecutor(1, "sandbox")
            future = self._thread.submit(self._play, batch)
            for posted in batch:
                posted.under_way = future

    def fetch(self, run: SandboxRun) -> tuple[Any, ...] | ProgramFailure:
        """The reply to what was posted to ``run``; programs that wait for their turn go on with it."""
        while run.reply is None:
            future, run.under_way = run.under_way, None
            if future is not None:
                future.result()
                continue
            with self._lock:
                batch, self._posted = self._posted, []
            self._play(batch if run in batch else [*batch, run])
        reply, run.reply = run.reply, None
        return reply

    def begin(self, run: SandboxRun) -> None:
        """Note that ``run`` is under way."""
        self._under_way.add(run.number)

    def end(self, run: SandboxRun) -> None:
        """Note that ``run`` is no longer under way. (No lock: it may be called wherever memory is freed.)"""
        self._under_way.discard(run.number)

    def drop(self, run: SandboxRun) -> None:
        """Forget ``run``, which is given up."""
        self.end(run)
        self._dropped.append((run.number, run.session))

    # Rounds

    def _play(self, runs: Sequence[SandboxRun]) -> None:
        """Take ``runs`` as far as they go. Each has its reply afterwards, if it has not ended meanwhile."""
        with self._turn:
            places: dict[Place, list[SandboxRun]] = {}
            for run in runs:
                if run.ended or run.reply is not None:
                    continue
                if run.program.private:
                    self._play_alone(run)
                else:
                    places.setdefault(run.place, []).append(run)
            for place, group in places.items():
                self._play_together(place, group)

    def _play_together(self, place: Place, group: Sequence[SandboxRun]) -> None:
        seconds = min(self.limits.seconds, max(ROUND_LEAST, ROUND_SHARE * self.limits.seconds))
        live = self._under_way == {group[0].number}  # nobody else needs the worker until this one is answered
        try:
            worker = self._worker(place, place, seconds)
            if worker.suspended is not None and not (live and worker.suspended == group[0].number):
                worker = self._worker(place, place, seconds, fresh=True)
            self._exchange(worker, group, live)
        except SessionLost:  # by one of them, or by no fault of theirs: each shows alone
            self._leave(place)
            for run in group:
                if run.reply is None:
                    self._play_alone(run)
        except ProgramFailure as failure:
            for run in group:
                run.reply = failure
        except BaseException:  # Ctrl-C: what the session is at nobody knows
            self._leave(place)
            raise

    def _play_alone(self, run: SandboxRun) -> None:
        """One program in a session of its own."""
        for attempt in (1, 2):
            used = 0.0
            worker = None
            try:
                worker = self._worker("alone", run.place, self.limits.seconds, fresh=True)
                used = worker.cpu_seconds() or 0.0
                self._exchange(worker, [run])
                worker.leave()
                return
            except SessionLost as loss:
                spent = (worker.cpu_seconds() or 0.0) - used if worker is not None else 0.0
                self._leave("alone")
                if attempt == 1 and (loss.kind == "crash" or (loss.kind == "timeout" and 0 < spent < 0.8 * self.limits.seconds)):
                    continue  # another process killed the worker, or it got no processor
                run.reply = self._blamed(run, loss)
                return
            except ProgramFailure as failure:
                run.reply = failure
                return
            except BaseException:
                self._leave("alone")
                raise

    def _exchange(self, worker: Worker, group: Sequence[SandboxRun], live: bool = False) -> None:
        session = worker.session
        opened, items = [], []
        for run in group:
            if run.session != session:
                run.session, run.sent = session, 0
                opened.append((run.number, run.described))
            items.append((run.number, run.outputs[run.sent :]))
            run.sent = len(run.outputs)
        dropped, self._dropped = self._dropped, []
        try:
            if live:
                replies = [worker.live(opened, *items[0])]
            else:
                replies = worker.play(opened, items, [number for number, where in dropped if where == session])
        except BaseException:
            for run in group:
                run.session = -1
            raise
        for run, reply in zip(group, replies, strict=True):
            run.seconds += reply[0]
            if reply[1] == "fail":
                run.reply = self._failure(worker, run, reply)
            elif run.seconds > REPLAY * self.limits.seconds:
                run.reply = self._late()
            else:
                run.reply = reply

    def _failure(self, worker: Worker, run: SandboxRun, reply: tuple[Any, ...]) -> ProgramFailure:
        failure = typed_failure(reply[2], reply[3])
        try:
            return self._located(failure, run, worker.line_of(run.number))
        except SessionLost:
            run.reply = failure
            raise

    def _blamed(self, run: SandboxRun, loss: SessionLost) -> ProgramFailure:
        match loss.kind:
            case "timeout":
                return self._located(self._late(), run, loss.line)
            case "memory":
                memory = LimitExceeded(f"more than {self.limits.memory_mib} MiB of memory", remedy="make fewer and shorter values")
                return self._located(memory, run, loss.line)
            case "crash":
                return LimitExceeded("the program ended the worker process", remedy="does it nest too deeply?")
        return self._located(RuntimeFailure(loss.message), run, loss.line)

    def _late(self) -> ProgramFailure:
        message = f"more than {self.limits.seconds:g} s of the program's own time"
        return TimeoutFailure(message, remedy="does a loop never end?")

    @staticmethod
    def _located(failure: ProgramFailure, run: SandboxRun, line: int | None) -> ProgramFailure:
        if line is not None:
            failure.where = f"line {line + run.program.first_line - 1}"
        return failure

    # Workers

    def _worker(self, key: Place | str, place: Place, seconds: float, fresh: bool = False) -> Worker:
        """The worker under ``key`` with a session for ``place``; a new session where there is none, or where it is worn."""
        check_home()
        worker = self._workers.get(key)
        if worker is not None and not fresh and worker.programs < RENEW:
            self._workers.move_to_end(key)
            return worker
        if worker is not None and worker.worn:
            self._leave(key)
            worker = None
        if worker is None and len(self._workers) >= SESSIONS:
            _, worker = self._workers.popitem(last=False)
        if worker is None:
            worker = Worker(self.limits)
        self._workers[key] = worker
        self._workers.move_to_end(key)
        try:
            state = self._states.get((place[0], seconds))
            self._states[place[0], seconds] = worker.open(next(self.numbers), place[0].described, seconds, state)
        except BaseException:
            self._leave(key)
            raise
        return worker

    def _leave(self, key: Place | str) -> None:
        """Give a session up, and its process with it."""
        worker = self._workers.pop(key, None)
        if worker is not None:
            worker.close()

    def _any_worker(self) -> Worker:
        if not self._workers:
            place = (Modules(()), "")
            return self._worker(place, place, self.limits.seconds)
        return next(reversed(self._workers.values()))


_KINDS: dict[str, Callable[[str], ProgramFailure]] = {
    "TypeError": TypeFailure,
    "AttributeError": TypeFailure,
    "NameError": UndefinedVariable,
    "UnboundLocalError": UndefinedVariable,
    "LimitExceeded": LimitExceeded,
    "UnknownModule": lambda text: UnknownModule(text, remedy=f"register {text.split('the module ')[-1].split(',')[0]}"),
    "RecursionError": lambda text: LimitExceeded("functions call each other too deeply", remedy="does a function call itself?"),
    "MemoryError": lambda text: LimitExceeded("out of memory"),
    "OverflowError": LimitExceeded,
    "ModuleNotFoundError": ForbiddenSyntax,
    "ImportError": ForbiddenSyntax,
    "SyntaxError": lambda text: LimitExceeded(text) if "deeply nested" in text else ParseFailure(f"not Python: {text}"),
}


def typed_failure(name: str, message: str) -> ProgramFailure:
    """The typed failure for an exception that ended a program."""
    if name == "NotImplementedError" and "syntax parser" in message:
        return ForbiddenSyntax(message.split("support ")[-1] + ": the sandbox has no such construct", remedy="write it another way")
    make = _KINDS.get(name)
    if make is not None:
        return make(message)
    return RuntimeFailure(f"{name}: {'no key ' if name == 'KeyError' else ''}{message}")


@cache
def shared_sandbox(limits: Limits) -> Sandbox:
    """The sandbox of this process for programs with these limits, made on first use."""
    return Sandbox(limits)
