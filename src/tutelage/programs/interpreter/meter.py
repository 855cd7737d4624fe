"""What a restricted program may use, and the meter that counts it."""

from __future__ import annotations

from dataclasses import dataclass
from time import thread_time

from tutelage.programs.types import LimitExceeded, TimeoutFailure

TICK = 512
"""Steps between two looks at the clock."""


@dataclass(frozen=True)
class Limits:
    """The most that one run of a program may use; each limit is a typed failure when it is passed.

    ``source``: bytes of text. ``steps``: statements, turns of a loop and calls, long expressions and bulk operations
    weighing more. ``calls``: questions to modules. ``depth``: calls within calls, and levels of syntax. ``seconds``:
    processor time of the program itself; waiting for a module is free. ``bits``: of one integer. ``length``: of one
    text or sequence. ``items``: list items, table entries and characters allocated in all, freed or not.
    """

    source: int = 20_000
    steps: int = 100_000
    calls: int = 1_000
    depth: int = 64
    seconds: float = 5.0
    bits: int = 512
    length: int = 100_000
    items: int = 1_000_000


class Meter:
    """Counts one run against its :class:`Limits`; ``steps`` and ``items`` count down. ``texts`` are the run's constants."""

    __slots__ = (
        "limits",
        "texts",
        "steps",
        "check",
        "items",
        "calls",
        "depth",
        "deepest",
        "low",
        "big",
        "length",
        "_deadline",
        "_left",
    )

    def __init__(self, limits: Limits, texts: tuple[str, ...] = ()):
        self.limits, self.texts = limits, texts
        self.steps, self.items, self.calls, self.depth = limits.steps, limits.items, 0, 0
        self.check = max(0, limits.steps - TICK)
        self.big, self.length = 1 << limits.bits, limits.length
        self.low, self.deepest = -self.big, limits.depth
        self._left = limits.seconds
        self._deadline = thread_time() + limits.seconds

    def resume(self) -> None:
        """The program's own time runs from here."""
        self._deadline = thread_time() + self._left

    def pause(self) -> None:
        """The program waits: its time stands still.

        Raises:
            TimeoutFailure: it ran too long before it asked.
        """
        self._left = self._deadline - thread_time()
        if self._left < 0:
            self._late()

    def tick(self) -> None:
        """Called when ``steps`` falls below ``check``: is there anything left, of steps and of time?

        Raises:
            LimitExceeded: no step is left.
            TimeoutFailure: the program ran too long.
        """
        if self.steps < 0:
            raise LimitExceeded(f"more than {self.limits.steps:,} steps", remedy="does a loop never end?")
        if thread_time() > self._deadline:
            self._late()
        self.check = max(0, self.steps - TICK)

    def work(self, amount: int) -> None:
        """Count a bulk operation over ``amount`` items or characters as steps."""
        self.steps -= amount >> 4
        if self.steps < self.check:
            self.tick()

    def allocate(self, amount: int) -> None:
        """Count ``amount`` new items or characters, which form one text or sequence.

        Raises:
            LimitExceeded: too long for one, or too many in all.
        """
        if amount > self.length:
            raise LimitExceeded(f"a text or sequence longer than {self.length:,}")
        self.items -= amount + 8
        if self.items < 0:
            raise LimitExceeded(f"more than {self.limits.items:,} items and characters allocated")
        self.work(amount)

    def asked(self) -> None:
        """Count one question to a module."""
        self.calls += 1
        if self.calls > self.limits.calls:
            raise LimitExceeded(f"more than {self.limits.calls:,} module calls")

    def entered(self) -> None:
        """Called on entering a function when ``depth`` passes ``deepest``, or for :meth:`tick`."""
        if self.depth <= self.deepest:
            return self.tick()
        raise LimitExceeded(f"functions call each other more than {self.limits.depth} deep")

    def _late(self) -> None:
        raise TimeoutFailure(f"more than {self.limits.seconds:g} s of the program's own time")
