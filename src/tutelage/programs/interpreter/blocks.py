"""Statements in order, as one function of a frame; a failure among them learns its line here."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

from tutelage.programs.interpreter.pieces import as_failure, at_line
from tutelage.programs.interpreter.values import Frame


def plain_block(steps: list[tuple[Callable[[Frame], Any], int]], weight: int) -> Callable[[Frame], Any]:
    """Statements that ask no module, with their lines; ``weight`` is what they count together."""
    if len(steps) == 1:
        ((only, its_line),) = steps

        def single(frame: Frame) -> Any:
            meter = frame[1]
            try:
                meter.steps -= weight
                if meter.steps < meter.check:
                    meter.tick()
                return only(frame)
            except Exception as error:
                raise at_line(as_failure(error), its_line) from None

        return single

    def several(frame: Frame) -> Any:
        meter, line = frame[1], steps[0][1]
        try:
            meter.steps -= weight
            if meter.steps < meter.check:
                meter.tick()
            for run, line in steps:  # noqa: B007
                signal = run(frame)
                if signal is not None:
                    return signal
        except Exception as error:
            raise at_line(as_failure(error), line) from None
        return None

    return several


def flow_block(steps: list[tuple[Callable[[Frame], Any], bool, int]], weight: int) -> Callable[[Frame], Any]:
    """Statements of which some (the flag) may ask a module."""

    def flow(frame: Frame) -> Generator[Any, Any, Any]:
        meter, line = frame[1], steps[0][2]
        try:
            meter.steps -= weight
            if meter.steps < meter.check:
                meter.tick()
            for run, yields, line in steps:  # noqa: B007
                signal = (yield from run(frame)) if yields else run(frame)
                if signal is not None:
                    return signal
        except Exception as error:
            raise at_line(as_failure(error), line) from None
        return None

    return flow
