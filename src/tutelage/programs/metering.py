"""What one run may take: items, characters and bytes of all that its steps read and answer, counted before it is kept.

Every value that a step passes on is kept by the run, named by a key and written into the trace: so each use counts.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from tutelage.programs.types import Call, LimitExceeded, Value
from tutelage.programs.values import Box, Image, Object

MAX_ITEMS = 50_000
"""Entries of lists and dictionaries, over all steps of a run."""
MAX_CHARACTERS = 1_000_000
"""Characters of texts, over all steps of a run."""
MAX_BYTES = 512 << 20
"""Bytes of pictures and masks that the steps of a run make; what they cut from a picture takes none."""
MAX_RUNS = 4_000_000
"""Stretches of equal pixels, row after row, in the masks that steps read and answer: so masks are written into a trace."""
MAX_BITS = 10_000
"""Bits of one integer: about 3,000 digits, which Python and JSON still read and write."""
MAX_LEVELS = 32
"""Lists in lists."""

SHORT = 100
"""Items of the lists that are looked at first for the common case: boxes."""

FREE = frozenset({bool, float, type(None)})
"""Types of which every value is small."""
BOXES = frozenset({Box})
SMALL = FREE | {Image}
"""The same for arguments: the pixels of an image in a call are there already."""


class Meter:
    """What a run has left. :meth:`charge` takes from it, and raises where there is not enough.

    Examples:
        >>> meter = Meter(items=3)
        >>> meter.charge(["red", "blue"])
        >>> meter.items
        1
    """

    __slots__ = ("items", "characters", "bytes", "runs", "_seen")

    def __init__(self, items: int = MAX_ITEMS, characters: int = MAX_CHARACTERS, bytes: int = MAX_BYTES):
        self.items, self.characters, self.bytes = items, characters, bytes
        self.runs = MAX_RUNS
        self._seen: dict[int, tuple[np.ndarray, int]] | None = None

    def charge_call(self, call: Call) -> None:
        """Count the arguments of ``call``.

        Raises:
            LimitExceeded: as :meth:`charge`.
        """
        for value in call.args.values():
            kind = type(value)
            if kind in SMALL:
                continue
            if kind is dict:  # what an EVAL reads
                for part in value.values():
                    if type(part) not in FREE:
                        self.charge(part)
            elif not isinstance(value, Image):
                self.charge(value)

    def reserve_image(self, call: Call) -> None:
        """Make sure of room for an image as large as those in ``call``, of whose pixels crops take nothing.

        Raises:
            LimitExceeded: there is not enough left.
        """
        for value in call.args.values():
            if isinstance(value, Image):
                if type(value) is Image:
                    self._seen = self._seen or {}
                    self._seen[id(value.root)] = value.root, 0
                if 3 * value.width * value.height > self.bytes:
                    raise LimitExceeded(f"the steps make more than {MAX_BYTES >> 20:,} MiB of pictures")

    def charge(self, value: Value) -> None:
        """Count ``value`` and what it holds; the search ends where too much is found.

        Raises:
            LimitExceeded: more than is left, an integer of more than 10,000 bits, or lists nested too deeply.
        """
        kind = type(value)
        if kind in FREE:
            return
        if kind is list and len(value) <= SHORT and BOXES.issuperset(map(type, value)):
            self._take_items(len(value))
        elif kind is str or isinstance(value, str):
            self.characters -= len(value)
            if self.characters < 0:
                raise LimitExceeded(f"the steps pass on texts of more than {MAX_CHARACTERS:,} characters in all")
        elif kind is Image:
            self._take_bytes(value.root)
        elif isinstance(value, int):
            if value.bit_length() > MAX_BITS:
                raise LimitExceeded(f"an integer of {value.bit_length():,} bits; at most {MAX_BITS:,} are kept")
        else:
            self._charge_parts(value)

    def _charge_parts(self, value: Any) -> None:
        """Count ``value`` and all that it holds, level by level; it may hold one thing many times."""
        level, depth = [value], 0
        while level:
            if depth > MAX_LEVELS:
                raise LimitExceeded(f"lists nested more than {MAX_LEVELS} levels deep")
            inner: list[Any] = []
            for part in level:
                if type(part) is Box:
                    continue
                if isinstance(part, (list, tuple, dict)):
                    self._take_items(len(part))
                    inner.extend(part.values() if isinstance(part, dict) else part)
                    if isinstance(part, dict):
                        inner.extend(part)
                elif type(part) is Image:  # others hold no pixels: they lie in a file
                    self._take_bytes(part.root)
                elif isinstance(part, Object):
                    self._take_object(part)
                elif isinstance(part, np.ndarray):
                    self._take_bytes(part)
                else:
                    self._charge_one(part)
            level, depth = inner, depth + 1

    def _charge_one(self, part: Any) -> None:
        if isinstance(part, (str, int)):
            self.charge(part)

    def _take_object(self, thing: Object) -> None:
        self.charge(thing.category)
        self.charge(thing.class_name)
        if thing.mask is not None:
            self.runs -= self._take_bytes(thing.mask)
            if self.runs < 0:
                raise LimitExceeded(f"masks of more than {MAX_RUNS:,} stretches of pixels in all")
        if thing.extra:
            self._take_items(len(thing.extra))

    def _take_items(self, number: int) -> None:
        self.items -= number
        if self.items < 0:
            raise LimitExceeded(f"the steps pass on more than {MAX_ITEMS:,} items of lists in all")

    def _take_bytes(self, pixels: np.ndarray) -> int:
        """Count an array's bytes once, however often it is passed on. Returns the runs of a mask."""
        if self._seen is None:
            self._seen = {}
        seen = self._seen.get(id(pixels))
        if seen is None:
            self.bytes -= pixels.nbytes
            if self.bytes < 0:
                raise LimitExceeded(f"the steps make more than {MAX_BYTES >> 20:,} MiB of pictures and masks")
            flat = pixels.ravel()
            seen = pixels, int(np.count_nonzero(flat[1:] != flat[:-1])) if pixels.dtype == bool else 0
            self._seen[id(pixels)] = seen
        return seen[1]


def measure(values: Iterable[Value], items: int, characters: int) -> None:
    """Refuse values that hold more than so many items or characters in all.

    Raises:
        LimitExceeded: they do.
    """
    meter = Meter(items, characters, 1 << 62)
    try:
        for value in values:
            meter.charge(value)
    except LimitExceeded:
        if meter.items < 0:
            raise LimitExceeded(f"a list of more than {items:,} items") from None
        if meter.characters < 0:
            raise LimitExceeded(f"a text of more than {characters:,} characters") from None
        raise


def check_bytes(number: int, what: str) -> None:
    """Refuse to make ``what``, of ``number`` bytes, where no run may hold so much.

    Raises:
        LimitExceeded: more than 512 MiB.
    """
    if number > MAX_BYTES:
        raise LimitExceeded(f"{what} would take {number >> 20:,} MiB; a run may make {MAX_BYTES >> 20:,}")
