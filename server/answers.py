"""Whole list answers, kept while their folder is unchanged.

A list of 1000 costs four times its echo to read, and nothing to give again. What is given is never older than
what any other read has seen: the writer closes a folder before its commit makes the change visible, and only
then may it be kept anew.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Collection
from typing import NamedTuple

BYTES_MAX = 32 * 1024 * 1024
ANSWER_BYTES_MAX = 4 * 1024 * 1024

Key = tuple[str, int, str, str]  # Folder, page size, filter, order.


class Kept(NamedTuple):
    wire: bytes
    position: int


class Answers:
    """Used by the event loop and by the writer's thread; every method holds the lock for microseconds."""

    def __init__(self, *, bytes_max: int = BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._lock = threading.Lock()
        self._kept: OrderedDict[Key, Kept] = OrderedDict()
        self._keys: dict[str, set[Key]] = {}
        self._bytes = 0
        self._changing = False
        self._changes = 0
        self._position = 0

    def find(self, key: Key) -> Kept | None:
        """The answer, with the newest position of which it is known to be right; None if it must be read."""
        with self._lock:
            kept = self._kept.get(key)
            if kept is None:
                return None
            self._kept.move_to_end(key)
            return Kept(kept.wire, max(kept.position, self._position))

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
            self._keys.setdefault(key[0], set()).add(key)
            self._bytes += len(kept.wire)
            while self._bytes > self._bytes_max:
                self._forget(next(iter(self._kept)))

    def changing(self, folders: Collection[str]) -> None:
        """Before a commit makes changes of these folders visible."""
        with self._lock:
            self._changes += 1
            self._changing = True
            for folder_id in folders:
                for key in tuple(self._keys.get(folder_id, ())):
                    self._forget(key)

    def changed(self, position: int) -> None:
        """After that commit, which made this the applied position."""
        with self._lock:
            self._changing = False
            self._position = position

    def forget_all(self) -> None:
        """When nobody knows which folders have changed. Nothing is kept until the next `changed`."""
        with self._lock:
            self._changes += 1
            self._changing = True
            self._kept.clear()
            self._keys.clear()
            self._bytes = 0

    def _forget(self, key: Key) -> None:
        self._bytes -= len(self._kept.pop(key).wire)
        keys = self._keys[key[0]]
        keys.discard(key)
        if not keys:
            del self._keys[key[0]]
