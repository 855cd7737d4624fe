"""Typed errors: what went wrong, where, and what to do about it."""

from __future__ import annotations


class TutelageError(Exception):
    """The base of every error that this library raises on purpose.

    ``where`` names the file, line or field; ``remedy`` says what the reader can do. The command line prints all three
    and leaves with ``exit_code``.
    """

    exit_code = 1

    def __init__(self, message: str, *, where: object = None, remedy: str | None = None):
        self.message, self.where, self.remedy = message, where, remedy
        super().__init__(message)

    def __reduce__(self) -> tuple[object, ...]:
        return _restored, (type(self), self.message, self.where, self.remedy)

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where is not None else self.message
        return f"{text}\n  remedy: {self.remedy}" if self.remedy else text


def _restored(kind: type[TutelageError], message: str, where: object, remedy: str | None) -> TutelageError:
    """The error as it was, on the other side of a process boundary."""
    return kind(message, where=where, remedy=remedy)


class InputError(TutelageError):
    """Something from outside (a file, a line, a field, an argument) is not what it must be."""

    exit_code = 2


class StaleError(TutelageError):
    """Stored work (a run folder, a cache, a checkpoint) was made by other code, data or settings."""

    exit_code = 3


class StorageError(TutelageError):
    """The disk refused: no space, no permission, or a broken file system."""

    exit_code = 4


class MissingExtra(TutelageError):
    """An optional dependency is not installed; the message names the extra that brings it."""

    exit_code = 5

    def __init__(self, package: str, extra: str):
        self.package, self.extra = package, extra
        super().__init__(f"{package} is not installed", remedy=f"pip install 'tutelage[{extra}]'")

    def __reduce__(self) -> tuple[type[MissingExtra], tuple[str, str]]:
        return type(self), (self.package, self.extra)


class TrainingError(TutelageError):
    """Training cannot go on: a loss is not finite, no gradient flows, or shapes disagree."""

    exit_code = 6


def did_you_mean(word: str, known: list[str]) -> str:
    """``word`` and the known names nearest to it, as a remedy a person can act on."""
    import difflib

    near = difflib.get_close_matches(word, known, n=3)
    return f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(sorted(known))}"
