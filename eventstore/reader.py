"""Reading a log: every event is checked against its leaf hash, and the question, before it is given out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, Self, cast

from eventstore import database, merkle, schema
from eventstore.checkpoint import KeptCheckpoint
from eventstore.errors import (
    EnvelopeTooNew,
    EventMalformed,
    EventStoreError,
    LogCorrupt,
    LogUnreadable,
    NoSuchPosition,
    NotALog,
)
from eventstore.event import Event, Position, Version, load

_INTEGER_MAX: Final = 2**63 - 1


class LogReader:
    """Reads a log, also beside its writer in another process. One thread at a time may use it.

    Every body is checked against its leaf hash before it is given out, and what an index answered against the
    bodies. No method keeps a transaction open. Each of them raises LogCorrupt for stored bytes that are not
    what was written, EnvelopeTooNew for an event of newer software, and LogUnreadable when the disk or the
    engine fails.
    """

    def __init__(self, path: Path, connection: database.Connection) -> None:
        """Use `open`."""
        self.path = path
        self._connection: database.Connection | None = connection
        self._log_id: str | None = None

    @classmethod
    def open(cls, path: Path) -> Self:
        """A reader of an existing log. Raises NotALog, FormatTooNew."""
        return cls(path, _connect_reader(path))

    def close(self) -> None:
        """Ends the use of this object; a second time does nothing."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def log_id(self) -> str:
        """The log's name, from its first event. Raises NoSuchPosition while the log is empty."""
        if self._log_id is None:
            log_id = self.event(Position(1)).data.get("log_id")
            if not isinstance(log_id, str):
                raise LogCorrupt(1, "the first event names no log_id")
            self._log_id = log_id
        return self._log_id

    def head(self) -> Position:
        """The last position, 0 in an empty log. Its event is checked to be there."""
        head = self._head()
        if head != 0:
            self._indexed_event(head)
        return head

    def body(self, position: Position) -> bytes:
        """The canonical bytes of one event. Raises NoSuchPosition."""
        return self._checked(position)[1]

    def leaf(self, position: Position) -> bytes:
        """The leaf hash of one event, checked against its bytes. Raises NoSuchPosition."""
        return self._checked(position)[2]

    def hashes(self, position: Position) -> bytes:
        """The hashes of all complete subtrees that end there, the leaf first. Raises NoSuchPosition.

        Their number and the leaf are checked, not the nodes above it: those are made of other rows.
        """
        body, hashes = self._row(_BODY_AND_HASHES, position)
        event_of_row(position, body, hashes[: merkle.HASH_SIZE_BYTES] if type(hashes) is bytes else hashes)
        size = merkle.HASH_SIZE_BYTES * merkle.levels_of(position)
        if len(hashes) != size:
            raise LogCorrupt(position, f"{len(hashes)} bytes of hashes stand there instead of {size}")
        return cast("bytes", hashes)

    def at(self, position: Position) -> int:
        """The stamp of one event. Raises NoSuchPosition."""
        return self.event(position).at

    def event(self, position: Position) -> Event:
        """One event. Raises NoSuchPosition."""
        return self._checked(position)[0]

    def events(self, *, after: int = 0, until: int | None = None, chunk: int = 1000) -> Iterator[Event]:
        """The events from after + 1 to until, or to the head; there may be more of them by the time it ends.

        A gap anywhere up to `until` is LogCorrupt; with no `until`, what is missing at the end is not known.
        It reads `chunk` of them at a time, each page in a transaction of its own: a reader held open would
        make the write-ahead log grow without end.
        """
        last = int(after)
        end = _INTEGER_MAX if until is None else until
        while last < end:
            rows = self._rows(_PAGE, {"after": last, "until": end, "count": chunk}, position=last + 1)
            for position, body, leaf in rows:
                last += 1
                if position != last:
                    raise LogCorrupt(last, f"the position is missing, the next one is {position}")
                # As event_of_row, without its call: this runs for every event of a rebuild.
                if type(body) is not bytes or merkle.leaf_hash(body) != leaf:
                    raise _wrong_leaf(position)
                yield _event(position, body)
            if len(rows) == chunk:
                continue
            if until is None or last >= end or last >= self._head():
                return
            if not rows:
                raise LogCorrupt(last + 1, f"the position is missing, the head is {self._head()}")

    def events_of_operation(self, operation_id: str) -> list[Event]:
        """All events of one operation, in order; none for an id the log does not know.

        Each is checked to belong to it. An event that a damaged index does not name is left out unnoticed.
        """
        events = self._events(_OF_OPERATION, {"operation_id": operation_id})
        for event in events:
            if event.operation_id != operation_id:
                raise wrong_index(event.position, "operation_id", operation_id, event.operation_id)
        return events

    def events_of_resource(
        self, resource_id: str, *, after: int = 0, until: int | None = None, limit: int | None = None
    ) -> list[Event]:
        """The first `limit` events of one resource from after + 1 to until, in order.

        Each is checked to belong to it. An event that a damaged index does not name is left out unnoticed:
        only a walk through all events finds that.
        """
        parameters = {
            "resource_id": resource_id,
            "after": after,
            "until": _INTEGER_MAX if until is None else until,
            "count": _INTEGER_MAX if limit is None else limit,
        }
        events = self._events(_OF_RESOURCE, parameters)
        for event in events:
            if event.resource_id != resource_id:
                raise wrong_index(event.position, "resource_id", resource_id, event.resource_id)
        return events

    def events_of_stream(
        self, stream: str, *, after: int = 0, until: int | None = None, limit: int | None = None
    ) -> list[Event]:
        """The first `limit` events of one stream at positions from after + 1 to until, in order.

        Their versions follow each other, which is checked: none but the stream's last ones can be left out
        unnoticed. O(log n) seeks for each bound.
        """
        first = 1 if after <= 0 else self._version_at(stream, after) + 1
        last = int(self.stream_version(stream) if until is None else self._version_at(stream, until))
        if limit is not None:
            last = min(last, first + limit - 1)
        events = self._events(_OF_STREAM, {"stream": stream, "first": first, "last": last})
        for version, event in enumerate(events, first):
            _check_in_stream(event, stream, version)
        if len(events) != max(last - first + 1, 0):
            raise LogCorrupt(None, f"stream {stream} lacks a version from {first} to {last}")
        return events

    def events_of_types(self, stream: str, first: str, second: str) -> list[Event]:
        """The events of two types in a stream, in order. All of it is searched, and no other event read.

        Each is checked to be one of them. One that a damaged index or column does not name is left out
        unnoticed: only a walk through all events finds that.
        """
        events = self._events(_OF_TYPES, {"stream": stream, "first": first, "second": second})
        for event in events:
            _check_in_stream(event, stream, event.version)
            if event.type not in (first, second):
                raise wrong_index(event.position, "type", f"{first} or {second}", event.type)
        return events

    def stream_version(self, stream: str) -> Version:
        """The last version of a stream, 0 for one without events."""
        rows = self._rows(_LAST_OF_STREAM, {"stream": stream})
        if not rows:
            return Version(0)
        position, version = _integers(rows[0])
        _check_in_stream(self._indexed_event(position), stream, version)
        return Version(version)

    def position_at(self, at: int) -> Position:
        """The last position stamped at or before a time, 0 if it is before the first.

        Stamps never fall along the positions, so this is O(log n) reads by primary key, and needs no index.
        They read the column, which is quick; the two bodies around the answer prove it.
        """
        head = self._head()
        low = self._search_stamp(at, head, self._stamp_column)
        is_after = low == 0 or self.at(low) <= at
        is_before = low == head or self.at(Position(low + 1)) > at
        if not (is_after and is_before):
            self._search_stamp(at, head, self._stamp_checked)
            raise LogCorrupt(low, "the stamps around it fall from one event to the next")
        return low

    def _search_stamp(self, at: int, head: Position, stamp: Callable[[Position], int]) -> Position:
        low, high = 0, int(head)
        while low < high:
            middle = (low + high + 1) // 2
            if stamp(Position(middle)) <= at:
                low = middle
            else:
                high = middle - 1
        return Position(low)

    def _stamp_column(self, position: Position) -> int:
        return _integers(self._row(_AT, position))[0]

    def _stamp_checked(self, position: Position) -> int:
        """The stamp of one event. Raises LogCorrupt where the column beside it says otherwise."""
        at = self.at(position)
        column = self._stamp_column(position)
        if at != column:
            raise wrong_index(position, "at", column, at)
        return at

    def _version_at(self, stream: str, position: int) -> Version:
        """The last version of a stream at or before a position, proved by the bodies around it."""
        last = self.stream_version(stream)
        low, high = 0, int(last)
        while low < high:
            middle = (low + high + 1) // 2
            if self._position_of_version(stream, middle) <= position:
                low = middle
            else:
                high = middle - 1
        for version in range(max(low, 1), min(low + 1, last) + 1):
            found = self._position_of_version(stream, version)
            _check_in_stream(self._indexed_event(found), stream, version)
            if (found <= position) is not (version <= low):
                raise LogCorrupt(found, f"the versions of stream {stream} are not in the order of positions")
        return Version(low)

    def _position_of_version(self, stream: str, version: int) -> int:
        """What the index says, unchecked."""
        return self._value(_POSITION_OF_VERSION, {"stream": stream, "version": version})

    def closed(self) -> int:
        """The highest closed time: nothing will be stamped at or before it any more. 0 if there is none."""
        return self._value(_CLOSED)

    def newest_checkpoint(self) -> KeptCheckpoint | None:
        """The kept checkpoint of the most events, as it stands there; None in a log that keeps none."""
        return next(iter(self._checkpoints(_NEWEST_CHECKPOINT, {})), None)

    def checkpoints(self, *, after: int = 0, limit: int = 1000) -> list[KeptCheckpoint]:
        """The first `limit` kept checkpoints of more than `after` events, in order, as they stand there."""
        return self._checkpoints(_CHECKPOINTS, {"after": after, "limit": limit})

    def _checkpoints(self, sql: str, parameters: dict[str, Any]) -> list[KeptCheckpoint]:
        # A log that no newer software has written to has no such table.
        rows = self._rows(sql, parameters) if self._rows(_HAS_CHECKPOINTS, {}) else []
        return [KeptCheckpoint(merkle.TreeSize(size), root, note, at) for size, root, note, at in rows]

    def _head(self) -> Position:
        return Position(self._value(_HEAD))

    def _events(self, sql: str, parameters: dict[str, Any]) -> list[Event]:
        events = []
        for position, body, leaf in self._rows(sql, parameters):
            events.append(event_of_row(position, body, leaf))
        return events

    def _indexed_event(self, position: int) -> Event:
        """The event at a position that an index names. Raises LogCorrupt where there is none."""
        try:
            return self.event(Position(position))
        except NoSuchPosition as error:
            raise LogCorrupt(None, f"an index names position {position}, the head is {error.head}") from error

    def _checked(self, position: Position) -> tuple[Event, bytes, bytes]:
        """One event, its canonical bytes and its leaf hash."""
        body, leaf = self._row(_BODY, position)
        return event_of_row(position, body, leaf), body, leaf

    def _row(self, sql: str, position: Position) -> tuple[Any, ...]:
        """The one row of a query by position. Raises NoSuchPosition, LogCorrupt for a gap."""
        rows = self._rows(sql, {"position": position}, position=position)
        if rows:
            return rows[0]
        head = self._head()
        if 1 <= position <= head:
            raise LogCorrupt(position, f"the position is missing, the head is {head}")
        raise NoSuchPosition(position, head)

    def _value(self, sql: str, parameters: dict[str, Any] | None = None) -> int:
        """The one number of a query of one row."""
        rows = self._rows(sql, parameters or {})
        if len(rows) != 1:
            raise LogCorrupt(None, f"a query for one row gave {len(rows)}")
        return _integers(rows[0])[0]

    def _rows(
        self, sql: str, parameters: dict[str, Any], *, position: int | None = None
    ) -> list[tuple[Any, ...]]:
        """All rows of a query, in a read transaction that ends with it."""
        try:
            return self._open_connection().execute(sql, parameters).fetchall()
        except database.READ_ERRORS as error:
            raise _read_error(error, position) from error

    def _open_connection(self) -> database.Connection:
        if self._connection is None:
            raise AssertionError("this log was closed")
        return self._connection


def _connect_reader(path: Path) -> database.Connection:
    if not path.is_file():
        raise NotALog(path, "there is no such file")
    try:
        connection = database.connect(path, access="read", synchronous="FULL")
    except database.READ_ERRORS as error:
        raise open_error(error, path) from error
    try:
        if not schema.check_format(connection, path):
            raise NotALog(
                path, "it is an empty database: a writer that stopped while it created it must open it"
            )
    except BaseException as error:
        connection.close()
        if isinstance(error, database.READ_ERRORS):
            raise open_error(error, path) from error
        raise
    return connection


def _event(position: int, body: bytes) -> Event:
    """The event of checked bytes. Raises LogCorrupt."""
    try:
        event = load(body)
    except EventMalformed as error:
        raise LogCorrupt(position, error.reason) from error
    except EnvelopeTooNew as error:
        raise EnvelopeTooNew(position, error.found, error.supported) from error
    if event.position != position:
        raise LogCorrupt(position, f"the bytes there are those of position {event.position}")
    return event


def event_of_row(position: int, body: object, leaf: object) -> Event:
    """The event of a stored row. Raises LogCorrupt where bytes, hash or position are not what was written."""
    if type(body) is not bytes or merkle.leaf_hash(body) != leaf:
        raise _wrong_leaf(position)
    return _event(position, body)


def _wrong_leaf(position: int) -> LogCorrupt:
    return LogCorrupt(position, "the bytes do not have the leaf hash stored beside them")


def wrong_index(position: int, column: str, indexed: object, said: object) -> LogCorrupt:
    return LogCorrupt(position, f"it stands under {column} {indexed!r}, its bytes say {said!r}")


def _check_in_stream(event: Event, stream: str, version: int) -> None:
    if event.stream != stream:
        raise wrong_index(event.position, "stream", stream, event.stream)
    if event.version != version:
        raise wrong_index(event.position, "version", version, event.version)


def _integers(row: tuple[Any, ...]) -> tuple[int, ...]:
    """A row of numbers. Raises LogCorrupt where one of them is none."""
    for value in row:
        if type(value) is not int:
            raise LogCorrupt(None, f"a number is stored as {type(value).__name__}")
    return row


def _read_error(error: Exception, position: int | None) -> EventStoreError:
    if database.is_corrupt(error):
        return LogCorrupt(position, str(error))
    return LogUnreadable(str(error))


def open_error(error: Exception, path: Path) -> EventStoreError:
    if database.is_foreign(error):
        return NotALog(path, "it is not a SQLite database")
    if database.is_corrupt(error):
        return LogCorrupt(None, f"{path}: {error}")
    return LogUnreadable(f"{path}: {error}")


_HEAD = "SELECT coalesce(max(position), 0) FROM event"

_BODY = "SELECT body, substr(hashes, 1, 32) FROM event WHERE position = :position"

_BODY_AND_HASHES = "SELECT body, hashes FROM event WHERE position = :position"

_AT = "SELECT at FROM event WHERE position = :position"

_PAGE = """
SELECT
    position,
    body,
    substr(hashes, 1, 32)
FROM event
WHERE position > :after
    AND position <= :until
ORDER BY position
LIMIT :count
"""

_OF_OPERATION = """
SELECT
    position,
    body,
    substr(hashes, 1, 32)
FROM event
WHERE operation_id = :operation_id
ORDER BY position
"""

_OF_RESOURCE = """
SELECT
    position,
    body,
    substr(hashes, 1, 32)
FROM event
WHERE resource_id = :resource_id
    AND position > :after
    AND position <= :until
ORDER BY position
LIMIT :count
"""

_OF_STREAM = """
SELECT
    position,
    body,
    substr(hashes, 1, 32)
FROM event
WHERE stream = :stream
    AND version BETWEEN :first AND :last
ORDER BY version
"""

_OF_TYPES = """
SELECT
    position,
    body,
    substr(hashes, 1, 32)
FROM event
WHERE stream = :stream
    AND type IN (:first, :second)
ORDER BY version
"""

_LAST_OF_STREAM = """
SELECT
    position,
    version
FROM event
WHERE stream = :stream
ORDER BY version DESC
LIMIT 1
"""

_POSITION_OF_VERSION = "SELECT position FROM event WHERE stream = :stream AND version = :version"

_CLOSED = "SELECT at FROM closed"

_HAS_CHECKPOINTS = "SELECT 1 FROM sqlite_schema WHERE name = 'checkpoint'"

_NEWEST_CHECKPOINT = """
SELECT
    size,
    root,
    note,
    at
FROM checkpoint
ORDER BY size DESC
LIMIT 1
"""

_CHECKPOINTS = """
SELECT
    size,
    root,
    note,
    at
FROM checkpoint
WHERE size > :after
ORDER BY size
LIMIT :limit
"""
