"""Rows of synthetic training data, and the files they come from: JSON lines, one row a line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutelage.datasets.json_records import JsonRecord
from tutelage.errors import InputError
from tutelage.seeds import numpy_rng
from tutelage.storage import read_json_lines, to_plain, write_json_lines

STRATEGIES = ("generate", "translate", "respond")
"""How a teacher makes a row: it writes prompt and response; translates an English prompt and responds; responds."""
REMEDY = 'one JSON object a line: {"prompt", "response", "strategy", "language", "model"}'


@dataclass(frozen=True)
class Row:
    """A prompt and its response, by which strategy, in which language, and by which teacher ``model``."""

    prompt: str
    response: str
    strategy: str
    language: str
    model: str


@dataclass(frozen=True)
class SeedPrompt:
    """A prompt to start from. ``language`` is its own, ``strategies`` those it may serve; ``response``, where there is
    one, is shown with it as an example."""

    prompt: str
    language: str
    strategies: tuple[str, ...] = STRATEGIES
    response: str | None = None


@dataclass(frozen=True)
class TestItem:
    """A question that students are scored on: right is ``response``, among ``choices`` where there are any.

    With choices (knowledge, preferences) the student picks the one of the highest mean log-probability a token; without
    (a number, a word) its greedy answer must be the response, token for token.
    """

    __test__ = False

    prompt: str
    response: str
    language: str
    choices: tuple[str, ...] = ()


def read_rows(path: str | Path) -> list[Row]:
    """The rows of a JSON-lines file.

    Raises:
        InputError: the file holds no row, or a line lacks a field; the message names the line.
    """
    found = []
    for record in _records(path):
        values = {name: record.text(name) for name in ("prompt", "response", "language", "model")}
        found.append(Row(strategy=record.optional_text("strategy") or "respond", **values))
        for name in ("response", "language", "model"):
            if not values[name].strip():
                raise record.error(name, "a text that is not empty")
    return _some(found, path)


def write_rows(path: str | Path, rows: Iterable[Row]) -> Path:
    """Write rows as JSON lines, whole or not at all."""
    return write_json_lines(path, (to_plain(row) for row in rows))


def read_seeds(path: str | Path) -> list[SeedPrompt]:
    """Seed prompts of a JSON-lines file: ``prompt``, ``language``, and where wanted ``strategies`` and ``response``.

    Raises:
        InputError: the file holds none, a field is wrong, or a strategy is not one of :data:`STRATEGIES`.
    """
    found = []
    for record in _records(path):
        given = record.texts("strategies") if "strategies" in record.value else STRATEGIES
        if unknown := [name for name in given if name not in STRATEGIES]:
            raise InputError(f"unknown strategy {unknown[0]!r}", where=record.where, remedy=f"one of {', '.join(STRATEGIES)}")
        found.append(SeedPrompt(record.text("prompt"), record.text("language"), given, record.optional_text("response")))
    return _some(found, path)


def read_test_items(path: str | Path) -> list[TestItem]:
    """Questions of a JSON-lines file: ``prompt``, ``response``, ``language``, and where wanted ``choices``.

    Raises:
        InputError: the file holds none, a field is wrong, or the response is not among the choices.
    """
    found = []
    for record in _records(path):
        choices = record.texts("choices") if "choices" in record.value else ()
        item = TestItem(record.text("prompt"), record.text("response"), record.text("language"), choices)
        if choices and (len(set(choices)) < 2 or item.response not in choices):
            raise record.error("choices", "two or more different texts, the response among them")
        found.append(item)
    return _some(found, path)


def _records(path: str | Path) -> Iterable[JsonRecord]:
    return (JsonRecord(value, f"{path}:{number}") for number, value in read_json_lines(path, remedy=REMEDY))


def _some(found: list[Any], path: str | Path) -> list[Any]:
    if not found:
        raise InputError("the file holds no line", where=path, remedy="give at least one JSON object a line")
    return found


def group_rows(rows: Iterable[Row]) -> dict[tuple[str, str], list[Row]]:
    """Rows by (teacher, language), in the order of first appearance."""
    cells: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        cells.setdefault((row.model, row.language), []).append(row)
    return cells


def balanced_subsample(strategies: Sequence[str], size: int, seed: int = 42) -> list[int]:
    """The positions of ``size`` rows in which the strategies have equal shares, as far as there are rows; all, if fewer.

    Each of c strategies gives ``floor(size / c)`` rows, or all that it has. The strategy with most rows left then gives
    the whole remainder, or all that it has, and so on; of equals the one that came first. The shares are drawn by
    ``seed``, the remainder by ``seed + 1`` (as published: 42 and 43).

    Examples:
        >>> chosen = balanced_subsample(["respond"] * 6 + ["generate"] * 2, size=5)
        >>> len(chosen), sum(place < 6 for place in chosen)
        (5, 3)

    Raises:
        InputError: a size below 1.
    """
    if size < 1:
        raise InputError(f"{size} rows", where="size", remedy="1 or more")
    places: dict[str, list[int]] = {}
    for place, name in enumerate(strategies):
        places.setdefault(name, []).append(place)
    if not places:
        return []
    share = size // len(places)
    chosen, left = list[int](), dict[str, list[int]]()
    for name, own in places.items():
        order = numpy_rng(seed, "balanced subsample", name).permutation(len(own)).tolist()
        chosen += [own[i] for i in order[:share]]
        left[name] = sorted(own[i] for i in order[share:])
    for name in sorted(left, key=lambda one: -len(left[one])):
        order = numpy_rng(seed + 1, "balanced subsample", name).permutation(len(left[name])).tolist()
        chosen += [left[name][i] for i in order[: size - len(chosen)]]
    return sorted(chosen)


def by_language(items: Iterable[TestItem]) -> Mapping[str, list[TestItem]]:
    """Test items by language, in the order of first appearance."""
    found: dict[str, list[TestItem]] = {}
    for item in items:
        found.setdefault(item.language, []).append(item)
    return found
