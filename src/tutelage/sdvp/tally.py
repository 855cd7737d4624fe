"""How many programs ran to their end, and why the others failed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tutelage.programs.trace import Trace

EXAMPLE_LENGTH = 200
"""Characters of an example's error that are kept."""


class SdvpWarning(UserWarning):
    """Less was collected or learned than the call asked for."""


@dataclass
class ProgramTally:
    """Counts of programs that were run to collect calls.

    Attributes:
        programs: All of them.
        calls: The distinct calls that were collected.
        failures: Those that failed, by the kind of failure.
        examples: Of each kind the first one: the question's id and the error.
    """

    programs: int = 0
    calls: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, trace: Trace) -> None:
        """Count one run."""
        self.programs += 1
        if trace.status != "ok":
            self.failures[trace.status] += 1
            error = " ".join((trace.error or "").split()).removeprefix(f"{trace.id}: ")
            self.examples.setdefault(trace.status, f"{trace.id}: {error}"[:EXAMPLE_LENGTH])

    def merge(self, other: ProgramTally) -> None:
        """Count the runs of another tally, which come after these."""
        self.programs += other.programs
        self.calls += other.calls
        self.failures.update(other.failures)
        self.examples = {**other.examples, **self.examples}

    @property
    def failed(self) -> int:
        """How many programs failed."""
        return sum(self.failures.values())

    @property
    def mostly_failed(self) -> bool:
        """Whether more than half of the programs failed."""
        return 2 * self.failed > self.programs

    def __str__(self) -> str:
        if not self.failed:
            return f"all {self.programs} programs ran"
        lines = [f"{self.failed} of {self.programs} programs failed"]
        lines += [f"  {count} {kind}, such as {self.examples.get(kind, '')}" for kind, count in self.failures.most_common()]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """{programs, calls, failures: {kind: count}, examples: {kind: text}}."""
        return {"programs": self.programs, "calls": self.calls, "failures": dict(self.failures), "examples": self.examples}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ProgramTally:
        """What :meth:`to_json` gave."""
        return cls(int(data["programs"]), int(data["calls"]), Counter(data["failures"]), dict(data["examples"]))
