"""Programs that nobody vouches for run in a child process that has nothing to misuse.

One warm child serves many programs at once. It holds handles in place of images and asks over a pipe. Messages are
gathered, and the child works on them while its parent goes on; replies come in the order of the messages. A program
that kills or blocks the child fails alone: the others are run again in a new child up to where they were, which costs no
module call, since their answers are known and programs are deterministic.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Mapping
from functools import cache
from itertools import count
from typing import Any

from tutelage.programs.channel import Child, Recipient
from tutelage.programs.handles import Handles
from tutelage.programs.interpreter.meter import Limits
from tutelage.programs.interpreter.reader import shape_within
from tutelage.programs.interpreter.wire import NotAMessage, decode_calls, decode_failure, encode, encode_signatures
from tutelage.programs.types import Call, ProgramFailure, RuntimeFailure, Signature, Value

SHAPES = 1024
"""Checks that are remembered."""


class IsolatedRun(Recipient, Generator[Call | list[Call], Value, Value]):
    """A run of a program in a sandbox: a generator of calls, which can also be sent a value without waiting.

    It keeps what it takes to begin it again: its arguments, and the answers it has been given. ``due``: a value was
    posted, and the next :meth:`send` tells what comes of it.
    """

    __slots__ = ("number", "modules", "source", "arguments", "answers", "child", "due", "_handles", "_sandbox", "_begun", "_ended")

    def __init__(self, sandbox: Sandbox, number: int, modules: int, source: str, arguments: dict[str, Any], handles: Handles):
        super().__init__()
        self.number, self.modules, self.source, self.arguments = number, modules, source, arguments
        self.answers: list[Any] = []
        self.child: Child | None = None
        self._handles, self._sandbox, self._begun, self._ended = handles, sandbox, False, False
        self.due = False

    def post(self, value: Value) -> None:
        """Send ``value`` (None to begin) and do not wait: what the next :meth:`send` is given does not count."""
        if self._ended:
            return
        if self._begun:
            try:
                self.answers.append(self._handles.encoded(value))
            except BaseException:
                self.close()
                raise
        self._begun = self.due = True
        self._sandbox._post(self)

    def send(self, value: Value) -> Call | list[Call]:
        """The next call, or calls that are answered together; ``value`` answers the last, where none was posted.

        Raises:
            StopIteration: the program ended; its value is the answer.
            ProgramFailure: whatever stopped the program.
        """
        if not self.due:
            self.post(value)
        if self._ended:
            raise StopIteration
        self.due = False
        reply, self.reply = self.reply, None
        if reply is None:  # not here yet
            reply = self._sandbox._fetch(self)
        try:
            if type(reply) is list and reply[0] == "ask":
                return decode_calls(reply, self._handles.decoded)
            match reply:
                case ["done", data]:
                    answer = self._handles.decoded(data)
                case ["fail", *data]:
                    raise decode_failure(data)
                case ProgramFailure():
                    raise reply
                case _:
                    raise NotAMessage("no reply to a run")
        except (NotAMessage, RecursionError) as error:
            self.close()
            raise RuntimeFailure(f"the isolated process sent nonsense: {error}") from None
        except BaseException:
            self.close()
            raise
        self._ended = True
        raise StopIteration(answer)

    def throw(self, *error: Any) -> Any:
        """Give the run up."""
        self.close()
        raise error[0]

    def close(self) -> None:
        """Give the run up; a reply under way is thrown away when it comes."""
        if not self._ended:
            self._ended = True
            self._sandbox._drop(self)

    def __del__(self) -> None:
        self.close()


class Sandbox:
    """Runs restricted programs in a child process; give it back with :meth:`close`, or use it in ``with``.

    ``limits`` are those of each program; ``memory_mib`` is what the child may grow by, all its programs together.
    """

    def __init__(self, limits: Limits | None = None, memory_mib: int = 256):
        self.limits = limits or Limits()
        self._memory = memory_mib << 20
        self._numbers = count()
        self._lock = threading.RLock()
        self._current: Child | None = None
        self._modules: list[list[Any]] = []
        self._checked: dict[tuple[int, str], tuple[tuple[str, ...], tuple[str, ...]]] = {}

    def modules(self, signatures: Mapping[str, Signature]) -> int:
        """The number by which :meth:`check` and :meth:`run` know these modules."""
        data = encode_signatures(signatures)
        with self._lock:
            if data not in self._modules:
                self._modules.append(data)
            return self._modules.index(data)

    def check(self, source: str, modules: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The initial variables a program reads, and the arguments it takes. Programs that differ in their texts alone
        share them, and the child is asked once.

        Raises:
            ProgramFailure: it is no program of the language.
        """
        shape = shape_within(source, self.limits)
        if shape is not None and (known := self._checked.get((modules, shape[0]))) is not None:
            return known
        with self._lock:
            asker = Recipient()
            child = self._ready(modules)
            child.post(asker, ["check", modules, source])
            while asker.reply is None:
                if child.dead:  # it ended before it read this
                    child = self._ready(modules)
                    child.post(asker, ["check", modules, source])
                child.receive()
        match asker.reply:
            case ["inputs", list(inputs), list(args), bool(shared)]:
                found = tuple(map(str, inputs)), tuple(map(str, args))
                if shared and shape is not None:
                    if len(self._checked) >= SHAPES:
                        self._checked.clear()
                    self._checked[modules, shape[0]] = found
                return found
            case ["fail", *data]:
                raise decode_failure(data)
            case ProgramFailure():
                raise asker.reply
        raise RuntimeFailure("the isolated process sent no answer to a check")

    def run(self, source: str, modules: int, arguments: Mapping[str, Any], handles: Handles) -> IsolatedRun:
        """Run a program: gives calls, is sent values, returns the answer. ``arguments`` are as the interpreter holds them."""
        encoded = {name: encode(value) for name, value in arguments.items()}
        return IsolatedRun(self, next(self._numbers), modules, source, encoded, handles)

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

    def _ready(self, modules: int | None) -> Child:
        """The living child, told of these modules."""
        child = self._current
        if child is None or child.dead:
            child = self._current = Child(self.limits, self._memory)
        if modules is not None and modules not in child.told:
            child.tell(["modules", modules, self._modules[modules]])
            child.told.add(modules)
        return child

    def _post(self, run: IsolatedRun) -> None:
        with self._lock:
            child = run.child
            if child is None:
                self._begin(run)
            elif not child.dead:
                child.post(run, ["answer", run.number, run.answers[-1]])

    def _fetch(self, run: IsolatedRun) -> list[Any] | ProgramFailure:
        with self._lock:
            while run.reply is None:
                child = run.child
                if child is not None and not child.dead:
                    child.receive()
                else:  # it died under another program
                    self._begin(run)
            reply, run.reply = run.reply, None
            return reply

    def _begin(self, run: IsolatedRun) -> None:
        """Begin a run, and take it to where it was."""
        run.child = child = self._ready(run.modules)
        run.used, run.behind = 0.0, len(run.answers)
        child.post(run, ["run", run.number, run.modules, run.source, run.arguments])
        for answer in run.answers:
            child.post(run, ["answer", run.number, answer])

    def _drop(self, run: IsolatedRun) -> None:
        child = run.child
        if child is not None and not child.dead:
            child.tell(["drop", run.number])


@cache
def shared_sandbox(limits: Limits) -> Sandbox:
    """The sandbox of this process for programs with these limits, made on first use."""
    return Sandbox(limits)
