"""How fast a long reading goes: so many bytes a second, and no more than half of the time."""

from __future__ import annotations

import time
from collections.abc import Callable

BURST_S = 0.1


class Pace:
    """A token bucket with room for what a tenth of a second brings. One thread uses it.

    It counts the time, too: one thread of a process runs Python code at a time, so whoever works beside those
    who answer calls rests as long as it worked.
    """

    def __init__(
        self,
        bytes_per_second: int,
        *,
        wait: Callable[[float], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`wait` lets seconds pass, or raises to end the reading; `clock` is monotonic, in seconds."""
        self._bytes_per_second = bytes_per_second
        self._wait = wait
        self._clock = clock
        self._began = clock()
        # When the next byte may be read. It lags behind by what the bucket holds.
        self._due = self._began

    def took(self, size_bytes: int) -> None:
        """So many bytes were read since the last time: wait until they were due."""
        now = self._clock()
        self._due = max(self._due, now - BURST_S) + size_bytes / self._bytes_per_second
        self._wait(max(self._due - now, now - self._began))
        self._began = self._clock()
