"""Changes to files, drawn from a seed: bits and pieces of their bytes, and values of their JSON."""

from __future__ import annotations

import json
import random
from typing import Any

BYTES = [
    b"\0",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"9" * 5_000,
    b"[" * 3_000,
    b'{"a":' * 3_000,
    b"\\ud800",
    b"\\u0000",
    b"\n\n",
    b'"',
    b"-",
    b"1e999",
]
VALUES: list[Any] = [
    None,
    True,
    -7,
    0,
    10**12,
    10**18,
    2**63,
    1.5,
    float("inf"),
    float("nan"),
    "",
    "x",
    "a\0b",
    "\ud800",
    "../" * 20,
    "x" * 10_000,
    [],
    [None],
    [[]],
    {},
    {"a": {}},
    [10**12, 10**12],
    ["a", 1],
]


def mutated(draw: random.Random, data: bytes) -> bytes:
    """``data`` with one to three changes; JSON, and lines of JSON, are changed by value half of the time."""
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        if draw.random() < 0.6 and (changed := _changed_json(draw, data)) is not None:
            data = changed
        else:
            data = _changed_bytes(draw, data)
    return data


def _changed_bytes(draw: random.Random, data: bytes) -> bytes:
    at, end = sorted(draw.randrange(len(data) + 1) for _ in range(2))
    match draw.randrange(6):
        case 0 if data:
            changed = bytearray(data)
            changed[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
            return bytes(changed)
        case 1:
            return data[:at]
        case 2:
            return data[:at] + data[end:]
        case 3:
            return data[:end] + data[at:]
        case 4:
            return data[:at] + draw.choice(BYTES) + data[at:]
    return data[:at] + draw.randbytes(draw.randrange(1, 20)) + data[end:]


def _changed_json(draw: random.Random, data: bytes) -> bytes | None:
    try:
        lines = [json.loads(line) for line in data.splitlines()]
        joined = b"\n"
    except (ValueError, RecursionError):
        try:
            lines, joined = [json.loads(data)], b""
        except (ValueError, RecursionError):
            return None
    if not lines:
        return None
    number = draw.randrange(len(lines))
    lines[number] = _changed_value(draw, lines[number])
    try:
        return joined.join(json.dumps(line).encode() for line in lines) + joined
    except (ValueError, RecursionError):
        return None


def _changed_value(draw: random.Random, value: Any) -> Any:
    holder, where, inner = None, None, value
    while isinstance(inner, (dict, list)) and inner and (holder is None or draw.random() < 0.8):
        holder = inner
        where = draw.choice(list(inner)) if isinstance(inner, dict) else draw.randrange(len(inner))
        inner = inner[where]
    if holder is None:
        return draw.choice(VALUES)
    match draw.randrange(4):
        case 0:
            del holder[where]
        case 1 if isinstance(holder, dict):
            holder[draw.choice(("x", "", "\0", str(where) + "s"))] = holder.pop(where)
        case _:
            holder[where] = draw.choice(VALUES)
    return value
