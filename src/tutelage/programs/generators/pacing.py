"""A limit on how often something may begin, shared by threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Pace:
    """Lets at most ``per_minute`` begin in a minute, evenly spaced; None: no limit. ``clock`` gives seconds."""

    def __init__(self, per_minute: float | None = None, clock: Callable[[], float] = time.monotonic):
        self._gap = 60.0 / per_minute if per_minute is not None else 0.0
        self._clock, self._next, self._lock = clock, clock(), threading.Lock()

    def start(self, wait: Callable[[float], object] = time.sleep) -> None:
        """Wait for one's turn; ``wait`` lets seconds pass."""
        with self._lock:
            turn = max(self._next, self._clock())
            self._next = turn + self._gap
        delay = turn - self._clock()
        if delay > 0:
            wait(delay)

    def hold(self, seconds: float) -> None:
        """Nothing begins for so many seconds."""
        with self._lock:
            self._next = max(self._next, self._clock() + seconds)
