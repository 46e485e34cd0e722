"""Whole answers, kept while what they tell of is unchanged; those about the past while there is room.

A list of 1000 costs its echo again to read, and nothing to give again; a Get saves what SQLite costs. What is
given is never older than what any other read has seen: the writer ends the answers about a folder and its
images before its commit makes a change visible, and only then may they be kept anew.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Collection, Hashable
from typing import Any, NamedTuple

BYTES_MAX = 32 * 1024 * 1024
ANSWER_BYTES_MAX = 4 * 1024 * 1024
ENTRY_BYTES = 800  # What keeping an answer takes beside its bytes: key, tuple, set and three dict entries.

# First the id of the folder or image whose change ends the answer, then the rest of the question.
Key = tuple[Hashable, ...]


class Kept(NamedTuple):
    """An answer and its position; one about the past is right for ever, and as of that position alone."""

    wire: bytes
    position: int
    is_past: bool = False


class Answers:
    """Used by the event loop and by the writer's thread; every method holds the lock for microseconds."""

    def __init__(self, *, bytes_max: int = BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._lock = threading.Lock()
        self._kept: OrderedDict[Key, Kept] = OrderedDict()
        self._keys: dict[Hashable, set[Key]] = {}
        self._bytes = 0
        self._changing = False
        self._changes = 0
        self._position = 0

    def find(self, key: Key) -> tuple[bytes, int] | None:
        """The answer, with the newest position of which it is known to be right; None if it must be read."""
        with self._lock:
            kept = self._kept.get(key)
            if kept is None or (self._changing and not kept.is_past):
                # A read may have seen the change already, and told its position, which is not known here yet.
                return None
            self._kept.move_to_end(key)
            wire, position, is_past = kept
            return wire, position if is_past or position > self._position else self._position

    def begin(self) -> int:
        """What `keep` wants to know: ask for it before the answer is read."""
        with self._lock:
            return self._changes

    def keep(self, key: Key, kept: Kept, *, begun: int) -> None:
        """Keep an answer, unless anything has changed, or is changing, since it was begun."""
        with self._lock:
            if begun != self._changes or self._changing:
                return
            if len(kept.wire) > ANSWER_BYTES_MAX or key in self._kept:
                return
            self._kept[key] = kept
            if not kept.is_past:
                self._keys.setdefault(key[0], set()).add(key)
            self._bytes += len(kept.wire) + ENTRY_BYTES
            while self._bytes > self._bytes_max:
                self._forget(next(iter(self._kept)))

    def changing(self, ids: Collection[Any]) -> None:
        """Before a commit makes changes of these folders and images visible."""
        with self._lock:
            self._changes += 1
            self._changing = True
            for one in ids:
                for key in tuple(self._keys.get(one, ())):
                    self._forget(key)

    def changed(self, position: int) -> None:
        """After that commit, which made this the applied position."""
        with self._lock:
            self._changing = False
            # Whoever began to read while the commit was under way may have read what was before it.
            self._changes += 1
            self._position = position

    def forget_all(self) -> None:
        """When nobody knows what has changed. Nothing is kept until the next `changed`."""
        with self._lock:
            self._changes += 1
            self._changing = True
            self._kept.clear()
            self._keys.clear()
            self._bytes = 0

    def _forget(self, key: Key) -> None:
        kept = self._kept.pop(key)
        self._bytes -= len(kept.wire) + ENTRY_BYTES
        if kept.is_past:
            return
        keys = self._keys[key[0]]
        keys.discard(key)
        if not keys:
            del self._keys[key[0]]
