"""Reads a whole log and says all that is wrong with it, in bounded memory: for `scrub` and `log verify`.

A reader checks what it is asked for. This checks every row against its bytes, its neighbours, the tree and
the indexes, so it also finds what nobody asked for, and it goes on behind it. A log that was rewritten whole
is whole: only a checkpoint kept elsewhere shows that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, TypeAlias

from eventstore import database, merkle, schema
from eventstore.errors import LogCorrupt, LogUnreadable
from eventstore.finding import COLUMN, EDIT, Finding
from eventstore.indexes import Index, IndexDamaged, unreachable, wrong_entries
from eventstore.reader import LogReader
from eventstore.walk import Row, Walk

# Checking a page is Python code, during which no other thread of the process runs any: so it is a short one.
PAGE_EVENTS: Final = 25

# What the columns and the three indexes have of an event, about, beside its body and hashes.
COLUMNS_BYTES: Final = 200
ENTRY_BYTES: Final = 50

# Hears of how far it has come, and how many bytes the last step read. It may wait, or raise to end it.
OnRead: TypeAlias = Callable[[int, int], None]

INDEXES: Final = tuple(Index.parse(statement, key="position") for statement in schema.INDEXES)


def _nothing(done: int, size_bytes: int) -> None:
    pass


class LogAudit(LogReader):
    """A reader that checks everything. No read transaction is open for longer than a page takes."""

    def findings(self, *, until: int | None = None, on_read: OnRead = _nothing) -> Iterator[Finding]:
        """What is wrong with the file, and with the events up to `until`, or to the head, about in order.

        `on_read` hears of positions. Raises LogUnreadable, and EnvelopeTooNew for an event of newer software.
        """
        yield from self._file_findings()
        end, finding = self._end()
        if finding is not None:
            yield finding
        until = end if until is None else until
        walk, indexes = Walk(self), self._indexes()
        for first in range(1, until + 1, PAGE_EVENTS):
            last = min(first + PAGE_EVENTS - 1, until)
            yield from self._page_findings(walk, first, last, on_read)
            yield from self._unreachable(indexes, first, last)
        yield from walk.finish(until=until)

    def entry_findings(self, *, until: int | None = None, on_read: OnRead = _nothing) -> Iterator[Finding]:
        """Entries of the indexes that lead to another event than they say. `on_read` hears of entries.

        Raises LogUnreadable.
        """
        end = self.last_position() if until is None else until
        read = 0

        def on_page(entries: int) -> None:
            nonlocal read
            read += entries
            on_read(read, entries * ENTRY_BYTES)

        for index in self._indexes():
            try:
                for position in wrong_entries(self._open_connection(), index, until=end, on_page=on_page):
                    message = f"an entry of {index.name} leads to it, and it says something else"
                    yield Finding(COLUMN, position, message)
            except IndexDamaged as error:
                yield Finding(COLUMN, None, f"log.db: {error}")
            except database.READ_ERRORS as error:
                yield Finding(COLUMN, None, f"log.db: {index.name} cannot be read: {_damage(error)}")

    def last_position(self) -> int:
        """The last position, as far as it can be read."""
        return self._end()[0]

    def leaf_stored_at(self, position: int) -> bytes | None:
        """The leaf hash that a row has, unchecked; None where there is none. For a walk."""
        try:
            rows = self._rows(_LEAF, {"position": position})
        except LogCorrupt:
            return None
        return rows[0][0] if rows else None

    def has_version_before(self, stream: str, version: int, position: int) -> bool:
        """Whether a stream has a version below a position; True where that cannot be read. For a walk."""
        try:
            rows = self._rows(_VERSION, {"stream": stream, "version": version, "position": position})
        except LogCorrupt:
            return True
        return bool(rows)

    def _file_findings(self) -> Iterator[Finding]:
        """What the file says of itself: its tables, indexes and triggers, and the closed time."""
        try:
            stored = {name: schema.normal(sql) for name, sql in self._rows(_OBJECTS, {})}
            closed = self._rows("SELECT id, at FROM closed", {})
            disk_format = self._value("PRAGMA user_version")
        except LogCorrupt as error:
            yield Finding(EDIT, None, f"log.db: {error.reason}")
            return
        for name, sql in schema.objects(disk_format).items():
            if stored.get(name) != sql:
                what = "another one" if name in stored else "missing"
                yield Finding(EDIT, None, f"log.db: its {name} is {what}: `{sql[:60]} …`")
        if len(closed) != 1 or type(closed[0][1]) is not int or closed[0][1] < 0:
            yield Finding(EDIT, None, "log.db: the closed time is not one number")

    def _indexes(self) -> list[Index]:
        """Those that are there; the others were told of the file."""
        try:
            names = {name for name, _ in self._rows(_OBJECTS, {})}
        except LogCorrupt:
            return []
        return [index for index in INDEXES if index.name in names]

    def _end(self) -> tuple[int, Finding | None]:
        """The last position; from an index, and with a finding, where the table does not tell."""
        try:
            return self._head(), None
        except LogCorrupt as error:
            finding = Finding(EDIT, None, f"log.db: the last position cannot be read: {error.reason}")
        try:
            return self._value(_LAST_INDEXED), finding
        except LogCorrupt:
            return 0, finding

    def _page_findings(self, walk: Walk, first: int, last: int, on_read: OnRead) -> Iterator[Finding]:
        try:
            rows = self._rows(_PAGE, {"first": first, "last": last})
        except LogCorrupt:
            rows = []
        if len(rows) <= last - first:
            # A damaged position hides those behind it from a scan, and not from a search.
            yield from self._single_findings(walk, first, last, on_read)
            return
        for row in rows:
            yield from walk.take(Row._make(row))
        on_read(last, _size_bytes(rows))

    def _single_findings(self, walk: Walk, first: int, last: int, on_read: OnRead) -> Iterator[Finding]:
        """A page in which something is missing or cannot be read: row by row, one finding a stretch."""
        unread, reason = 0, ""
        for position in range(first, last + 1):
            try:
                rows = self._rows(_PAGE, {"first": position, "last": position})
            except LogCorrupt as error:
                yield from walk.missing(until=position - 1)
                walk.skip(position)
                unread, reason = unread + 1, error.reason
                continue
            yield from _unread(position - unread, unread, reason)
            unread = 0
            for row in rows:
                yield from walk.take(Row._make(row))
            on_read(position, _size_bytes(rows))
        yield from _unread(last + 1 - unread, unread, reason)
        on_read(last, 0)

    def _unreachable(self, indexes: Sequence[Index], first: int, last: int) -> Iterator[Finding]:
        for index in indexes:
            try:
                for position in unreachable(self._open_connection(), index, first=first, last=last):
                    yield Finding(COLUMN, position, f"{index.name} does not lead to it")
            except database.READ_ERRORS as error:
                message = f"{index.name} cannot be read for positions {first} to {last}: {_damage(error)}"
                yield Finding(COLUMN, first, message)


def _unread(first: int, count: int, reason: str) -> Iterator[Finding]:
    if count:
        where = "it" if count == 1 else f"positions {first} to {first + count - 1}"
        yield Finding(EDIT, first, f"{where} cannot be read: {reason}")


def _damage(error: Exception) -> str:
    """What an error says of damaged bytes. Raises LogUnreadable for one that says nothing of them."""
    if database.is_corrupt(error):
        return str(error)
    raise LogUnreadable(str(error)) from error


def _size_bytes(rows: Sequence[tuple[Any, ...]]) -> int:
    """About what these rows and their entries take, whatever is in them."""
    bodies = sum(len(row[-2]) for row in rows if type(row[-2]) is bytes)
    return bodies + len(rows) * (COLUMNS_BYTES + 2 * merkle.HASH_SIZE_BYTES)


_OBJECTS = "SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL"

_PAGE = """
SELECT
    position,
    stream,
    version,
    type,
    at,
    operation_id,
    resource_id,
    body,
    hashes
FROM event NOT INDEXED
WHERE position BETWEEN :first AND :last
ORDER BY position
"""

_LEAF = "SELECT substr(hashes, 1, 32) FROM event WHERE position = :position"

_VERSION = """
SELECT 1
FROM event
WHERE stream = :stream
    AND version = :version
    AND position < :position
"""

_LAST_INDEXED = "SELECT max(position) FROM event INDEXED BY event_by_stream"
