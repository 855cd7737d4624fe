"""How modules are asked: one call at once, or a batch of those that wait."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tutelage.programs.types import Call, Module, ProgramFailure, RuntimeFailure, Value
from tutelage.programs.value_types import TYPE_CHECKS, describe_value

MAX_MESSAGE = 4_000
"""Characters of an error's text that are kept."""

Result = tuple[Value, dict[str, float] | None, bool]
"""What :class:`~tutelage.programs.result_cache.Stored` names: a value, its distribution, whether words were unknown."""

PendingCall = tuple[Call, Hashable | None, Any, int | None, list[tuple[Any, Call, int | None]] | None]
"""A call, its key, the run that waits for its answer with the call's position among those that it asked at once (None: alone),
and the other runs that wait for it, each with its own equal call and that call's position (None: no other)."""


@dataclass(slots=True)
class ModuleQueue:
    """The calls that wait for one module; ``size`` 0: it is symbolic, and none waits."""

    module: Module
    version: str
    size: int
    waiting: dict[Hashable, PendingCall] = field(default_factory=dict)
    makes_image: bool = field(init=False)
    has_type: Callable[[Value], bool] | None = field(init=False)
    run_one: Callable[[Call], Value] | None = field(init=False)

    def __post_init__(self) -> None:
        returns = self.module.signature.returns
        self.makes_image = returns == "image"
        self.has_type = TYPE_CHECKS.get(returns)
        self.run_one = getattr(self.module, "run_one", None)


def to_failure(error: Exception, source: str) -> ProgramFailure:
    """``error`` if it is a program's failure, else a RuntimeFailure that names its type and what raised it."""
    if isinstance(error, ProgramFailure):
        return error
    failure = RuntimeFailure(f"{source} raised {type(error).__name__}: {error}"[:MAX_MESSAGE])
    failure.__cause__ = error
    return failure


def wrong_type(module: Module, value: Value) -> RuntimeFailure:
    """The failure of a module whose output is not of the type that it declares."""
    declared = module.signature.returns
    message = f"{module.name} declares that it returns {declared}, and returned {describe_value(value)}"
    return RuntimeFailure(message, remedy=f"correct the module {module.name}, or the type that it declares")


def run_batch(module: Module, calls: Sequence[Call]) -> list[Result]:
    """The module's outputs; one that is not of the type that the module declares is a failure of its call.

    If a batch raises, each call is run alone, so that only those at fault fail.
    """
    results = _run_batch(module, calls)
    has_type = TYPE_CHECKS.get(module.signature.returns)
    if has_type is None:
        return results
    return [
        result if has_type(result[0]) or isinstance(result[0], ProgramFailure) else (wrong_type(module, result[0]), None, False)
        for result in results
    ]


def _run_batch(module: Module, calls: Sequence[Call]) -> list[Result]:
    try:
        return results_of(module, calls)
    except Exception as error:
        if len(calls) > 1:
            return [_run_batch(module, [call])[0] for call in calls]
        return [(to_failure(error, module.name), None, False)]


def results_of(module: Module, calls: Sequence[Call]) -> list[Result]:
    """What ``module`` says to ``calls``, one result a call.

    Raises:
        RuntimeFailure: it gave another number of answers. What the module raises passes.
    """
    answers = module.run(calls)
    values, distributions, unknown = answers.values, answers.distributions, answers.out_of_vocabulary
    if len(values) != len(calls):
        raise RuntimeFailure(f"{module.name} gave {len(values)} answers to {len(calls)} calls")
    if distributions is None and unknown is None:
        return [(value, None, False) for value in values]
    none = [None] * len(values)
    return list(zip(values, distributions or none, unknown or [False] * len(values), strict=True))
