"""What every visual program shares, whatever its syntax: calls, signatures, capabilities and typed failures."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

from tutelage.errors import TutelageError

Value = Any
"""An Image, list[Box], list[Object], str, bool, int, float or list of these: see :mod:`tutelage.programs.values`."""


class ProgramFailure(TutelageError):
    """A program could not be answered. ``kind`` is the status its trace carries; ``where`` its line or step."""

    kind: ClassVar[str] = "runtime"


class ParseFailure(ProgramFailure):
    """The text is not a program of its language."""

    kind = "parse"


class ForbiddenSyntax(ProgramFailure):
    """The program uses a construct that the restricted language does not allow."""

    kind = "refused"


class UnknownModule(ProgramFailure):
    """The program calls a module that is not registered."""

    kind = "unknown_module"


class UndefinedVariable(ProgramFailure):
    """The program reads a variable that no earlier step has set."""

    kind = "undefined_var"


class TypeFailure(ProgramFailure):
    """A call has a wrong argument name, or a value of the wrong type."""

    kind = "type"


class RuntimeFailure(ProgramFailure):
    """A module or an expression failed on these values."""

    kind = "runtime"


class LimitExceeded(ProgramFailure):
    """The program used more steps, calls, memory or source than it may."""

    kind = "limit"


class TimeoutFailure(ProgramFailure):
    """The program ran longer than it may."""

    kind = "timeout"


STATUSES = ("ok", "parse", "refused", "unknown_module", "undefined_var", "type", "runtime", "limit", "timeout", "writer")
"""How a run can end; ``writer``: no program was written, so that none ran."""


@dataclass(slots=True)
class Call:
    """One question to one module: its name, its arguments by name, and the program step that asks."""

    module: str
    args: dict[str, Value]
    step: int = 0


@dataclass(frozen=True)
class Signature:
    """Argument names with their types, in order, which of them may be left out, and the type of the answer.

    A type is one of ``image, boxes, objects, text, number, bool, any``.
    """

    args: Mapping[str, str]
    returns: str = "any"
    optional: frozenset[str] = frozenset()


def _supports_all(call: Call) -> bool:
    return True


@dataclass(frozen=True)
class Capabilities:
    """The calls a module or teacher can answer: ``supports(call)``, and in which ``vocabulary`` (None: open)."""

    supports: Callable[[Call], bool] = field(default=_supports_all)
    vocabulary: Sequence[str] | None = None
    describe: str = "every call"


@dataclass(slots=True)
class ModuleOutputs:
    """What a module says to a batch of calls.

    ``values[i]`` answers call i: a value, or a :class:`ProgramFailure` for that call alone. ``distributions[i]`` maps
    each possible answer to its probability (None where there is none). ``out_of_vocabulary[i]`` marks a call whose
    words the module does not know and answered as well as it could. ``heads`` holds the network's raw outputs, batched.
    """

    values: list[Value]
    distributions: list[dict[str, float] | None] | None = None
    out_of_vocabulary: list[bool] | None = None
    heads: Mapping[str, Any] | None = None


@runtime_checkable
class Module(Protocol):
    """Anything a program can call. ``version`` changes whenever its answers may; ``symbolic`` ones have no network and
    are answered at once, the others wait for a batch of at most ``batch_size`` calls."""

    @property
    def name(self) -> str:
        """What programs call it."""
        ...

    @property
    def version(self) -> str:
        """Changes whenever its answers may."""
        ...

    @property
    def signature(self) -> Signature:
        """Its arguments and answer."""
        ...

    @property
    def symbolic(self) -> bool:
        """Whether it has no network and answers at once."""
        ...

    @property
    def batch_size(self) -> int:
        """The most calls it takes at once."""
        ...

    def run(self, calls: Sequence[Call]) -> ModuleOutputs:
        """Answer ``calls``, each as if it stood alone."""
        ...


ProgramRun = Generator[Call | list[Call], Value, Value]
"""A running program: it yields its next call, or several that do not need one another, is sent the value (or a list of
values), and returns its answer."""


class Program(Protocol):
    """A checked program of either language; ``start`` begins a run of it as a generator of calls.

    ``inputs`` are the names of the initial variables it reads: IMAGE, or LEFT and RIGHT.
    """

    @property
    def dsl(self) -> str:
        """Its language: visprog or viper."""
        ...

    @property
    def text(self) -> str:
        """The source."""
        ...

    @property
    def hash(self) -> str:
        """Names the source."""
        ...

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of the initial variables."""
        ...

    def start(self, state: Mapping[str, Value]) -> ProgramRun:
        """Run on ``state``; several runs of one program may be under way at once."""
        ...
