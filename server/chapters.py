"""Histories of images as ready bytes: what was told never changes, so it is folded and encoded once."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import NamedTuple

from eventstore.reader import LogReader
from projections.domain.command import Image
from projections.domain.refusals import NotFound
from projections.history import is_of_image, told
from server.encode_history import image_event_frame

CHAPTER_EVENTS = 256
FEW_EVENTS = 8  # So many are read and folded in the event loop.
PAGE_BYTES = 256 * 1024
BYTES_MAX = 32 * 1024 * 1024
ENTRY_BYTES = 80  # What an event takes in memory beside its bytes.
CHAPTER_BYTES = 4096  # What a chapter takes beside its events: the image that it leaves, above all.


@dataclass(slots=True)
class Chapter:
    """Up to CHAPTER_EVENTS events of an image in a row, those behind `after`, framed one after the other.

    `image` is what the last of them left. No event of the image lies between that one and `read_to`.
    """

    after: int
    image: Image | None
    read_to: int
    positions: list[int] = field(default_factory=list)
    wire: bytes = b""
    ends: list[int] = field(default_factory=list)  # Where each of them ends in `wire`.

    @property
    def last(self) -> int:
        return self.positions[-1] if self.positions else self.after

    @property
    def is_full(self) -> bool:
        return len(self.positions) >= CHAPTER_EVENTS

    def upto(self, until: int) -> bytes:
        """Those of its events up to a position."""
        count = bisect_right(self.positions, until)
        return self.wire[: self.ends[count - 1]] if count else b""

    @property
    def size_bytes(self) -> int:
        return CHAPTER_BYTES + len(self.wire) + ENTRY_BYTES * len(self.positions)


class Page(NamedTuple):
    """Framed events, the chapter they end in, and whether they are the last ones.

    `left` is the image that they left, if they left one, at `left_at`. Where the chapter goes on behind the
    question's end neither is known, and `left_at` is None.
    """

    wire: bytes
    chapter: Chapter
    is_last: bool
    left_at: int | None
    left: Image | None


class Chapters:
    """The chapters that were asked for last. Used by several threads, each with a reader of its own."""

    def __init__(self, *, bytes_max: int = BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, int], Chapter] = OrderedDict()
        self._bytes = 0

    def page(self, log: LogReader, image_id: str, *, previous: Chapter | None, until: int) -> Page:
        """The events behind a chapter, or the first ones, up to a position at or before the head.

        It folds one new chapter at most, so it takes milliseconds. Raises NotFound, EventStoreError.
        """
        with self._lock:
            page = self._page(log, image_id, previous, until, CHAPTER_EVENTS)
        if page is None:
            raise AssertionError("a chapter's room was not enough for its events")
        return page

    def first_page(self, log: LogReader, image_id: str, *, until: int) -> Page | None:
        """The same from the beginning, if it takes no more than a Get does; None if `page` must be asked.

        Raises NotFound, EventStoreError.
        """
        if not self._lock.acquire(blocking=False):
            return None
        try:
            return self._page(log, image_id, None, until, FEW_EVENTS)
        finally:
            self._lock.release()

    def _page(
        self, log: LogReader, image_id: str, previous: Chapter | None, until: int, events_max: int
    ) -> Page | None:
        parts: list[bytes] = []
        size = 0
        while True:
            chapter, is_new = self._chapter(log, image_id, previous, until, events_max)
            if chapter.read_to < until and not chapter.is_full:
                return None
            is_whole = chapter.last <= until
            part = chapter.wire if is_whole else chapter.upto(until)
            parts.append(part)
            size += len(part)
            is_last = not (is_whole and chapter.is_full)
            if is_last or is_new or size >= PAGE_BYTES:
                break
            previous = chapter
        if not size and previous is None:
            raise NotFound("Image", image_id)
        return Page(b"".join(parts), chapter, is_last, chapter.last if is_whole else None, chapter.image)

    def _chapter(
        self, log: LogReader, image_id: str, previous: Chapter | None, until: int, events_max: int
    ) -> tuple[Chapter, bool]:
        """The chapter behind another one, read up to a position, or `events_max` events further.

        The second value is whether there were any to read.
        """
        key = (image_id, 0 if previous is None else previous.last)
        chapter = self._kept.pop(key, None)
        if chapter is None:
            chapter = Chapter(key[1], None if previous is None else previous.image, key[1])
        else:
            self._bytes -= chapter.size_bytes
        is_new = not chapter.is_full and chapter.read_to < until
        if is_new:
            _read_on(chapter, log, image_id, until, events_max)
        if chapter.positions:
            self._keep(key, chapter)
        return chapter, is_new and bool(chapter.positions)

    def _keep(self, key: tuple[str, int], chapter: Chapter) -> None:
        self._kept[key] = chapter
        self._bytes += chapter.size_bytes
        while self._bytes > self._bytes_max:
            _, forgotten = self._kept.popitem(last=False)
            self._bytes -= forgotten.size_bytes


def _read_on(chapter: Chapter, log: LogReader, image_id: str, until: int, events_max: int) -> None:
    limit = min(CHAPTER_EVENTS - len(chapter.positions), events_max)
    events = log.events_of_resource(image_id, after=chapter.last, until=until, limit=limit)
    if events and chapter.after == 0 and not chapter.positions and not is_of_image(events[0]):
        raise NotFound("Image", image_id)
    parts, end = [chapter.wire], len(chapter.wire)
    for one in told(chapter.image, events):
        parts.append(image_event_frame(one))
        end += len(parts[-1])
        chapter.image = one.after
        chapter.positions.append(one.event.position)
        chapter.ends.append(end)
    chapter.wire = b"".join(parts)
    # There may be more of them behind the last one, for the next call, or for the next chapter.
    chapter.read_to = until if len(events) < limit else chapter.last
