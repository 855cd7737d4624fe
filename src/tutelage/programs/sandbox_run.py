"""A program in the sandbox, and a run of it: a generator of module calls that can be begun again at any time."""

from __future__ import annotations

import builtins
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from tutelage.programs.types import Call, ProgramFailure, Signature, Value


class Codec(Protocol):
    """How values cross: pictures stay outside, and are numbers inside."""

    def encode(self, value: Value) -> Any:
        """A value from outside as plain data."""
        ...

    def decode(self, data: Any) -> Value:
        """Plain data from inside as a value."""
        ...


class Modules(NamedTuple):
    """Modules as programs may call them: (name, names in programs, (argument, type) pairs, optional arguments) for each."""

    described: tuple[tuple[str, tuple[str, ...], tuple[tuple[str, str], ...], tuple[str, ...]], ...]

    @classmethod
    def of(cls, signatures: Mapping[str, Signature]) -> Modules:
        """Modules of these signatures, under their names and, where Python has no function of that name, in lower case."""
        found = []
        for name, signature in signatures.items():
            lower = () if hasattr(builtins, name.lower()) or name.lower() in signatures else (name.lower(),)
            found.append((name, (name, *lower), tuple(signature.args.items()), tuple(sorted(signature.optional))))
        return cls(tuple(found))


Place = tuple[Modules, str]
"""What programs of one session have in common: the modules they may call, and their client."""


@dataclass(frozen=True, eq=False)
class SandboxProgram:
    """A checked program as the sandbox takes it.

    Args:
        source: its text. entry: the function that is called. first_line: of ``source`` in the program's own text.
        once: its top level changes nothing, so it need not run again before each run of the entry.
        seeded: it draws random numbers, from the same seed in every run.
        private: it defines classes, so no other program may share its session.
    """

    source: str
    entry: str
    first_line: int = 1
    once: bool = True
    seeded: bool = False
    private: bool = False


class Player(Protocol):
    """Where runs go on."""

    @property
    def numbers(self) -> Iterator[int]:
        """Numbers that no two runs share."""
        ...

    def post(self, run: SandboxRun) -> None:
        """Have a run go on in the next round."""
        ...

    def fetch(self, run: SandboxRun) -> tuple[Any, ...] | ProgramFailure:
        """The reply to what was posted to a run."""
        ...

    def begin(self, run: SandboxRun) -> None:
        """Note that a run is under way."""
        ...

    def end(self, run: SandboxRun) -> None:
        """Note that a run is no longer under way."""
        ...

    def drop(self, run: SandboxRun) -> None:
        """Forget a run that is given up."""
        ...


class SandboxRun(Generator[Call | list[Call], Value, Value]):
    """A run of a program: a generator of calls, which can also be sent a value without waiting.

    It keeps what it takes to begin it again: the outputs it was given. ``due``: a value was posted, and the next :meth:`send`
    tells what comes of it.
    """

    def __init__(self, sandbox: Player, program: SandboxProgram, described: tuple[Any, ...], codec: Codec, place: Place):
        self.number = next(sandbox.numbers)
        self.program, self.described, self.codec, self.place = program, described, codec, place
        self.outputs: list[Any] = []
        self.sent, self.session = 0, -1
        self.reply: tuple[Any, ...] | ProgramFailure | None = None
        self.under_way: Future[None] | None = None
        self.seconds = 0.0
        self.due = False
        self._several = 0
        self._sandbox, self.begun, self.ended = sandbox, False, False

    def post(self, value: Value) -> None:
        """Send ``value`` (None to begin) and do not wait: what the next :meth:`send` is given does not count."""
        if self.ended:
            return
        if self.begun:
            try:
                if self._several:
                    self.outputs.extend([self.codec.encode(one) for one in value])
                else:
                    self.outputs.append(self.codec.encode(value))
            except BaseException:
                self.close()
                raise
        else:
            self._sandbox.begin(self)
        self.begun = self.due = True
        self._sandbox.post(self)

    def send(self, value: Value) -> Call | list[Call]:
        """The next call, or calls that are answered together; ``value`` answers the last, where none was posted.

        Raises:
            StopIteration: the program ended; its value is the answer.
            ProgramFailure: whatever stopped the program.
        """
        if not self.due:
            self.post(value)
        if self.ended:
            raise StopIteration
        self.due = False
        try:
            reply = self._sandbox.fetch(self)
            if isinstance(reply, ProgramFailure):
                raise reply
            if reply[1] == "ask":
                calls = [Call(module, self._arguments(args), number) for module, args, number in reply[2]]
                self._several = len(calls) > 1
                return calls if self._several else calls[0]
            answer = self.codec.decode(reply[2])
        except BaseException:
            self.close()
            raise
        self.ended = True
        self._sandbox.end(self)
        raise StopIteration(answer)

    def _arguments(self, args: Mapping[str, Any]) -> dict[str, Value]:
        decode = self.codec.decode
        return {name: arg if type(arg) is str else decode(arg) for name, arg in args.items()}

    def throw(self, *error: Any) -> Any:
        """Give the run up."""
        self.close()
        raise error[0]

    def close(self) -> None:
        """Give the run up; a reply under way is thrown away when it comes."""
        if not self.ended:
            self.ended = True
            self._sandbox.drop(self)

    def __del__(self) -> None:
        if not getattr(self, "ended", True):
            self.ended = True
            self._sandbox.drop(self)
