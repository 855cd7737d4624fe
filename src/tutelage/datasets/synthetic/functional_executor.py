"""Runs GQA's functional programs on a scene graph: the true value of every sub-step.

Names are looked up in the graph; the object ids that arguments carry are not read. ``count``, ``more`` and ``fewer``
are our extensions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from tutelage.datasets.synthetic.oracle import ANYTHING, ATTRIBUTES
from tutelage.errors import InputError

Graph = Mapping[str, Any]
"""A scene graph as GQA writes it: {width, height, objects: {id: {name, x, y, w, h, attributes, relations}}}."""
Value = list[str] | str | bool | int | None
"""Object ids, a word, a truth or a number."""

_IDS = re.compile(r"\s+\([^()]*\)\s*$")


def execute(semantic: Sequence[Any], graph: Graph, kinds: Mapping[str, Sequence[str]] = ATTRIBUTES) -> list[Value]:
    """The value of each operation (anything with ``operation``, ``argument`` and ``dependencies``), in order.

    ``kinds`` maps an attribute type to its values: a scene graph lists attributes without their types.

    Raises:
        InputError: an unknown operation, or one that the graph cannot answer; the step is named.
    """
    values: list[Value] = []
    for number, op in enumerate(semantic):
        name, _, detail = op.operation.partition(" ")
        if name not in _OPERATIONS:
            raise InputError(f"unknown operation {op.operation!r}", where=f"step {number}")
        text = _IDS.sub("", op.argument)
        try:
            inputs = [values[at] for at in op.dependencies]
            values.append(_OPERATIONS[name](graph, kinds, detail, text, inputs))
        except (IndexError, KeyError, TypeError, ValueError, StopIteration) as error:
            message = f"{op.operation}: {op.argument} cannot be answered"
            raise InputError(message, where=f"step {number}", remedy="does the question fit the scene?") from error
    return values


def answer(value: Value) -> str:
    """A step's value as GQA spells an answer."""
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


Operation = Callable[[Graph, Mapping[str, Sequence[str]], str, str, list[Any]], Value]


def _named(graph: Graph, name: str, ids: Sequence[str]) -> list[str]:
    return [i for i in ids if name in ("_", "this", *ANYTHING) or graph["objects"][i]["name"] == name]


def _attribute(graph: Graph, kinds: Mapping[str, Sequence[str]], thing: str, kind: str) -> str:
    if kind in ("name", "shape"):
        return str(graph["objects"][thing]["name"])
    return next(word for word in graph["objects"][thing]["attributes"] if word in kinds[kind])


def _has(graph: Graph, thing: str, word: str) -> bool:
    word, negated = (word[4:-1], True) if word.startswith("not(") else (word, False)
    return (word in graph["objects"][thing]["attributes"] or word == graph["objects"][thing]["name"]) != negated


def _related(graph: Graph, thing: str, name: str, predicate: str, role: str) -> list[str]:
    """Role s: those that stand in the relation to ``thing``; o: those that ``thing`` stands in the relation to."""
    objects = graph["objects"]
    if role == "o":
        found = [r["object"] for r in objects[thing]["relations"] if r["name"] == predicate]
    else:
        wanted = {"name": predicate, "object": thing}
        found = [i for i in objects if any({**r, **wanted} == r for r in objects[i]["relations"])]
    return _named(graph, name, found)


def _select(graph: Graph, kinds: Any, detail: str, text: str, inputs: list[Any]) -> Value:
    return _named(graph, text, list(graph["objects"]))


def _filter(graph: Graph, kinds: Any, detail: str, text: str, inputs: list[Any]) -> Value:
    return [thing for thing in inputs[0] if _has(graph, thing, text)]


def _relate(graph: Graph, kinds: Any, detail: str, text: str, inputs: list[Any]) -> Value:
    name, predicate, role = text.split(",")
    found = (other for thing in inputs[0] for other in _related(graph, thing, name, predicate, role))
    return list(dict.fromkeys(found))


def _verify(graph: Graph, kinds: Any, detail: str, text: str, inputs: list[Any]) -> Value:
    if detail == "rel":
        return bool(_relate(graph, kinds, detail, text, inputs))
    return any(_has(graph, thing, text) for thing in inputs[0])


def _choose(graph: Graph, kinds: Any, detail: str, text: str, inputs: list[Any]) -> Value:
    if detail == "rel":
        name, predicates, role = text.split(",")
        predicate = next(p for p in predicates.split("|") if _related(graph, inputs[0][0], name, p, role))
        return predicate.removeprefix("to the ").removesuffix(" of")
    return next(word for word in text.split("|") if _has(graph, inputs[0][0], word))


def _things(inputs: list[Any]) -> list[str]:
    return [thing for found in inputs for thing in found]


def _same(graph: Graph, kinds: Any, detail: str, text: str, inputs: list[Any]) -> Value:
    return len({_attribute(graph, kinds, thing, detail) for thing in _things(inputs)}) == 1


def _common(graph: Graph, kinds: Any, detail: str, text: str, inputs: list[Any]) -> Value:
    return next(kind for kind in kinds if _shared(graph, kinds, kind, _things(inputs)))


def _shared(graph: Graph, kinds: Any, kind: str, things: list[str]) -> bool:
    try:
        return len({_attribute(graph, kinds, thing, kind) for thing in things}) == 1
    except StopIteration:
        return False


_OPERATIONS: Mapping[str, Operation] = MappingProxyType(
    {
        "select": _select,
        "filter": _filter,
        "relate": _relate,
        "verify": _verify,
        "choose": _choose,
        "same": _same,
        "common": _common,
        "different": lambda graph, kinds, detail, text, inputs: not _same(graph, kinds, detail, text, inputs),
        "query": lambda graph, kinds, detail, text, inputs: _attribute(graph, kinds, inputs[0][0], detail or text),
        "exist": lambda graph, kinds, detail, text, inputs: bool(inputs[0]),
        "and": lambda graph, kinds, detail, text, inputs: all(inputs),
        "or": lambda graph, kinds, detail, text, inputs: any(inputs),
        "count": lambda graph, kinds, detail, text, inputs: len(inputs[0]),
        "more": lambda graph, kinds, detail, text, inputs: inputs[0] > inputs[1],
        "fewer": lambda graph, kinds, detail, text, inputs: inputs[0] < inputs[1],
    }
)
