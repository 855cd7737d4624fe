"""An entropy coder in exact integers: whole numbers to bytes and back, at nearly the bits that their probabilities say.

Asymmetric numeral systems (Duda, 2013, arXiv 1311.2540), one state of 63 bits, words of 32 bits, frequencies that sum to
2^16. Example::

    table = FrequencyTable.from_probabilities([np.array([0.25, 0.5, 0.25])], lowest=[-1])
    data = encode(symbols, rows, table)      # symbols [n] integers; rows [n]: which row of the table each one follows
    symbols = decode(data, rows, table)
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tutelage.errors import InputError

PRECISION = 16
_TOTAL = 1 << PRECISION
_LOW = 1 << 31  # the state lies in 2^31..2^63 - 1 between symbols
_REMEDY = "the bytes are cut short or damaged, or belong to another model"


@dataclass(frozen=True)
class FrequencyTable:
    """Rows of cumulative frequencies, each from 0 to 2^16.

    ``lowest[r]`` is the first symbol of row r. The last entry of a row stands for every symbol outside it: such a symbol
    is written in full beside the stream.
    """

    edges: tuple[tuple[int, ...], ...]
    lowest: tuple[int, ...]

    @classmethod
    def from_probabilities(cls, rows: Sequence[np.ndarray], lowest: Sequence[int]) -> FrequencyTable:
        """The table of probabilities [symbols] a row; what is missing to 1 is the probability of all other symbols.

        Every symbol gets a frequency of at least 1, so that all can be coded.

        Raises:
            InputError: a row that is empty, too long for 2^16, negative, not finite, or sums to more than 1.
        """
        edges = []
        for number, row in enumerate(rows):
            row = np.asarray(row, dtype=np.float64)
            fits = 0 < len(row) < _TOTAL // 2 and bool(np.isfinite(row).all()) and row.min() >= 0 and row.sum() <= 1 + 1e-6
            if not fits:
                raise InputError("no probabilities", where=f"row {number}", remedy="numbers in 0..1 whose sum is at most 1")
            shares = np.append(row, max(0.0, 1.0 - row.sum()))
            counts = 1 + np.floor(shares / shares.sum() * (_TOTAL - len(shares))).astype(np.int64)
            counts[counts.argmax()] += _TOTAL - counts.sum()
            edges.append((0, *np.cumsum(counts).tolist()))
        return cls(tuple(edges), tuple(int(value) for value in lowest))


def encode(symbols: np.ndarray, rows: np.ndarray, table: FrequencyTable) -> bytes:
    """The bytes of integer ``symbols`` [n], each coded by its row [n] of the ``table``.

    Raises:
        InputError: symbols and rows differ in number, or a row that the table does not have.
    """
    if symbols.shape != rows.shape or (len(rows) and not 0 <= rows.min() <= rows.max() < len(table.edges)):
        raise InputError("each symbol needs one row of the table", where="rows", remedy="0 .. number of rows - 1")
    outside: list[int] = []
    places = []
    for symbol, row in zip(symbols.tolist(), rows.tolist(), strict=True):
        place, last = symbol - table.lowest[row], len(table.edges[row]) - 2
        if not 0 <= place < last:
            outside.append(symbol)
            place = last
        places.append((table.edges[row][place], table.edges[row][place + 1]))
    state, words = _LOW, []
    for first, end in reversed(places):
        frequency = end - first
        if state >= frequency << (63 - PRECISION):
            words.append(state & 0xFFFFFFFF)
            state >>= 32
        quotient, rest = divmod(state, frequency)
        state = (quotient << PRECISION) + rest + first
    written = bytearray(_varint(len(outside)))
    for symbol in outside:
        written += _varint(symbol << 1 if symbol >= 0 else (-symbol << 1) - 1)
    return bytes(written) + state.to_bytes(8, "big") + np.array(words[::-1], dtype=">u4").tobytes()


def decode(data: bytes, rows: np.ndarray, table: FrequencyTable) -> np.ndarray:
    """The symbols [n] int64 that :func:`encode` wrote with the same ``rows`` [n] and ``table``.

    Raises:
        InputError: bytes that are cut short or damaged, or were written with other rows or another table (as far as
            this shows: the coder's state must end where it began, and nothing may be left).
    """
    count, at = _read_varint(data, 0)
    if count > len(rows):
        raise InputError(f"{count} symbols outside their tables, of {len(rows)}", where="bitstream", remedy=_REMEDY)
    outside = []
    for _ in range(count):
        value, at = _read_varint(data, at)
        outside.append(value >> 1 if value % 2 == 0 else -((value + 1) >> 1))
    if len(data) < at + 8 or (len(data) - at) % 4:
        raise InputError(f"{len(data)} bytes are no whole stream", where="bitstream", remedy=_REMEDY)
    state = int.from_bytes(data[at : at + 8], "big")
    words = iter(np.frombuffer(data, dtype=">u4", offset=at + 8).tolist())
    escaped = iter(outside)
    symbols = []
    for row in rows.tolist():
        edges = table.edges[row]
        slot = state & (_TOTAL - 1)
        place = bisect_right(edges, slot) - 1
        state = (edges[place + 1] - edges[place]) * (state >> PRECISION) + slot - edges[place]
        if state < _LOW:
            word = next(words, None)
            if word is None:
                raise InputError("the stream ends too early", where="bitstream", remedy=_REMEDY)
            state = (state << 32) | word
        symbol = table.lowest[row] + place if place < len(edges) - 2 else next(escaped, None)
        if symbol is None:
            raise InputError("a symbol outside its table is missing", where="bitstream", remedy=_REMEDY)
        symbols.append(symbol)
    if state != _LOW or next(words, None) is not None or next(escaped, None) is not None:
        raise InputError("the stream does not end where it should", where="bitstream", remedy=_REMEDY)
    return np.array(symbols, dtype=np.int64)


def table_bits(symbols: np.ndarray, rows: np.ndarray, table: FrequencyTable) -> float:
    """``-sum log2`` of the frequencies: what :func:`encode` takes, but for its 9 bytes and symbols outside their rows."""
    total = 0.0
    for symbol, row in zip(symbols.tolist(), rows.tolist(), strict=True):
        edges = table.edges[row]
        place = min(max(symbol - table.lowest[row], -1), len(edges) - 2)
        place = place if place >= 0 else len(edges) - 2
        total -= math.log2((edges[place + 1] - edges[place]) / _TOTAL)
    return total


def _varint(value: int) -> bytes:
    """A natural number in groups of 7 bits, the lowest first; the top bit says that more follow (LEB128)."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 56:
            raise InputError("a number in the stream is cut short", where="bitstream", remedy=_REMEDY)
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
