"""Messages between the interpreter's child process and its parent, in frames: a length of four bytes, then a list in JSON
of the messages that were gathered.

Both sides check what they read; nothing is ever unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from struct import Struct, iter_unpack, pack
from struct import error as StructError
from typing import Any

from tutelage.programs.interpreter.patches import Asked, Found, Request, Video, View
from tutelage.programs.interpreter.values import SCALARS
from tutelage.programs.types import (
    Call,
    ForbiddenSyntax,
    LimitExceeded,
    ParseFailure,
    ProgramFailure,
    RuntimeFailure,
    Signature,
    TimeoutFailure,
    TypeFailure,
    UndefinedVariable,
    UnknownModule,
    Value,
)

MAX_MESSAGE = 8 << 20
"""Bytes of the longest frame that a parent reads."""
GATHERED = 32 << 10
"""Bytes of messages that are gathered into one frame; the message that passes it is the last."""
LONGEST = MAX_MESSAGE - 2 * GATHERED
"""Bytes of the longest reply: in a frame with others, it is still read."""
PLACE = Struct("<Q?7xd")
"""Where the child is, in the page that it shares with its parent: replies made, whether it is at work, and its processor
time when it began what it is at."""
MAX_WORDS = 1_000
"""Characters of one part of a failure's message."""

dump, _loads = json.JSONEncoder(separators=(",", ":")).encode, json.JSONDecoder().decode

_FAILURES = {
    failure.kind: failure
    for failure in (
        *(ParseFailure, ForbiddenSyntax, UnknownModule, UndefinedVariable, TypeFailure, RuntimeFailure, LimitExceeded),
        TimeoutFailure,
    )
}


class NotAMessage(Exception):
    """The other side sent what no message is."""


def frame(messages: str) -> bytes:
    """A frame of messages: of a list, as :func:`dump` gives it."""
    data = messages.encode()
    return len(data).to_bytes(4, "big") + data


def unpack(data: bytes | bytearray) -> list[Any]:
    """The messages in a frame's ``data``, which is without its length.

    Raises:
        NotAMessage: it is not a list in JSON, or empty.
    """
    try:
        message = _loads(data.decode())
    except (ValueError, RecursionError):
        raise NotAMessage("not JSON") from None
    if not isinstance(message, list) or not message:
        raise NotAMessage("not a list")
    return message


def encode(value: Any) -> Any:
    """A value of the interpreter as JSON holds it."""
    kind = type(value)
    if kind in SCALARS:
        return value
    if kind is View:
        return {"view": written(value)}
    if kind is Found:
        return {"box": list(value)}
    if kind is Video:
        return {"video": [*map(written, value.frames)]}
    if kind is list or kind is tuple:
        if value and {*map(type, value)} == {Found}:
            return encode_boxes(value)
        return [encode(part) for part in value]
    if kind is dict:
        return {"table": [[str(name), encode(part)] for name, part in value.items()]}
    raise TypeFailure(f"{kind.__name__} cannot leave the interpreter")


def written(view: View) -> str:
    """A view's numbers."""
    return "{} {} {} {} {} {} {}".format(*view)


def encode_boxes(boxes: Sequence[tuple[float, float, float, float, float]]) -> dict[str, str]:
    """Boxes with their scores, some, as JSON holds them: exact, and several times as fast as decimal digits."""
    return {"boxes": pack(f"<{5 * len(boxes)}d", *chain.from_iterable(boxes)).hex()}


def decode(data: Any) -> Any:
    """The value that :func:`encode` wrote.

    Raises:
        NotAMessage: another shape.
    """
    kind = type(data)
    if kind in SCALARS:
        return data
    if kind is list:
        return [decode(part) for part in data]
    if kind is dict and len(data) == 1:
        ((name, part),) = data.items()
        if name in _VALUES and type(part) is _VALUES[name][0]:
            return _VALUES[name][1](part)
    raise NotAMessage("not a value")


def _view(numbers: Any) -> View:
    try:
        return View(*map(int, numbers.split()))
    except (AttributeError, TypeError, ValueError):
        raise NotAMessage("not a view") from None


def _box(numbers: list[Any]) -> Found:
    if len(numbers) != 5 or not {*map(type, numbers)} <= {int, float}:
        raise NotAMessage("not a box")
    return Found(*numbers)


def _boxes(digits: str) -> list[Found]:
    try:
        return [Found(*numbers) for numbers in iter_unpack("<5d", bytes.fromhex(digits))]
    except (ValueError, StructError):
        raise NotAMessage("not boxes") from None


def _table(pairs: list[Any]) -> dict[str, Any]:
    if not all(type(pair) is list and len(pair) == 2 for pair in pairs):
        raise NotAMessage("not a table")
    return {str(name): decode(part) for name, part in pairs}


_VALUES: Mapping[str, tuple[type, Callable[[Any], Any]]] = {
    "view": (str, _view),
    "box": (list, _box),
    "boxes": (str, _boxes),
    "video": (list, lambda frames: Video(tuple([_view(frame) for frame in frames]))),
    "table": (list, _table),
}


def encode_requests(asked: Asked) -> list[Any]:
    """A question, or several that go together, as JSON holds them: the word "ask", then each."""
    requests = [asked] if isinstance(asked, Request) else asked
    return ["ask", *[[module, {name: encode(value) for name, value in args.items()}, number] for module, args, number in requests]]


def decode_calls(data: list[Any], argument: Callable[[Any], Value]) -> Call | list[Call]:
    """What :func:`encode_requests` wrote, as calls of the modules; ``argument`` decodes what is no text.

    Raises:
        NotAMessage: another shape.
    """
    calls = []
    for one in data[1:]:
        if type(one) is not list or len(one) != 3:
            raise NotAMessage("not a request")
        module, args, number = one
        if type(module) is not str or type(args) is not dict or type(number) is not int:
            raise NotAMessage("not a request")
        for name, value in args.items():
            if type(value) is not str:
                args[name] = argument(value)
        calls.append(Call(module, args, number))
    if not calls:
        raise NotAMessage("a question of nothing")
    return calls if len(calls) > 1 else calls[0]


def encode_failure(failure: ProgramFailure) -> list[Any]:
    """A failure as JSON holds it."""
    parts = [failure.message, failure.where, failure.remedy]
    return [failure.kind, *[None if part is None else str(part)[:MAX_WORDS] for part in parts]]


def decode_failure(data: Any) -> ProgramFailure:
    """The failure that :func:`encode_failure` wrote.

    Raises:
        NotAMessage: another shape.
    """
    match data:
        case [str(kind), str(message), (str() | None) as where, (str() | None) as remedy] if kind in _FAILURES:
            return _FAILURES[kind](message, where=where, remedy=remedy)
    raise NotAMessage("not a failure")


def encode_signatures(signatures: Mapping[str, Signature]) -> list[Any]:
    """The modules' signatures as JSON holds them."""
    return [[name, list(s.args.items()), s.returns, sorted(s.optional)] for name, s in signatures.items()]


def decode_signatures(data: Any) -> dict[str, Signature]:
    """What :func:`encode_signatures` wrote."""
    return {name: Signature(dict(args), returns, frozenset(optional)) for name, args, returns, optional in data}
