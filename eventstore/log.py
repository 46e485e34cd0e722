"""The event log: the only truth. A reader and the one writer, each with a connection of its own."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Self

from eventstore import database, merkle, schema
from eventstore.errors import (
    AppendFailed,
    EventMalformed,
    EventStoreError,
    HeadMoved,
    LogCorrupt,
    LogUnreadable,
    NoSuchPosition,
    NotALog,
    OutcomeUnknown,
    StampTooOld,
)
from eventstore.event import Event, Position, Version, encode, load

LOG_STREAM: Final = "log"
LOG_CREATED: Final = "LogCreated"
SYSTEM_ACTOR: Final = "imageledger"
SYSTEM_AUTH: Final = "system"

_INTEGER_MAX: Final = 2**63 - 1

_log = logging.getLogger(__name__)


def new_log_id(random_bytes: bytes) -> str:
    """The name of a new log. Needs 16 random bytes."""
    if len(random_bytes) != 16:
        raise ValueError(f"a log id is made of 16 random bytes, not of {len(random_bytes)}")
    return f"imageledger-{random_bytes.hex()}"


class LogReader:
    """Reads a log, also beside its writer in another process. One thread at a time may use it.

    Every body is checked against its leaf hash before it is given out. No method keeps a transaction open.
    Each of them raises LogCorrupt for stored bytes that are not what was written, and LogUnreadable when the
    disk or the engine fails.
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
        """The last position, 0 in an empty log."""
        return Position(self._value(_HEAD))

    def body(self, position: Position) -> bytes:
        """The canonical bytes of one event. Raises NoSuchPosition."""
        return self._body_and_leaf(position)[0]

    def leaf(self, position: Position) -> bytes:
        """The leaf hash of one event, checked against its bytes. Raises NoSuchPosition."""
        return self._body_and_leaf(position)[1]

    def hashes(self, position: Position) -> bytes:
        """The hashes of all complete subtrees that end there, the leaf first. Raises NoSuchPosition."""
        return bytes(self._row(_HASHES, position)[0])

    def at(self, position: Position) -> int:
        """The stamp of one event. Raises NoSuchPosition."""
        return int(self._row(_AT, position)[0])

    def event(self, position: Position) -> Event:
        """One event. Raises NoSuchPosition."""
        return _event(position, self.body(position))

    def events(self, *, after: int = 0, until: int | None = None, chunk: int = 1000) -> Iterator[Event]:
        """The events from after + 1 to until, or to the head; there may be more of them by the time it ends.

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
                if merkle.leaf_hash(body) != leaf:
                    raise _wrong_leaf(position)
                yield _event(position, body)
            if len(rows) < chunk:
                return

    def events_of_operation(self, operation_id: str) -> list[Event]:
        """All events of one operation, in order; none for an id the log does not know."""
        return self._events(_OF_OPERATION, {"operation_id": operation_id})

    def events_of_resource(
        self, resource_id: str, *, after: int = 0, until: int | None = None, limit: int | None = None
    ) -> list[Event]:
        """The first `limit` events of one resource from after + 1 to until, in order."""
        parameters = {
            "resource_id": resource_id,
            "after": after,
            "until": _INTEGER_MAX if until is None else until,
            "count": _INTEGER_MAX if limit is None else limit,
        }
        return self._events(_OF_RESOURCE, parameters)

    def stream_version(self, stream: str) -> Version:
        """The last version of a stream, 0 for one without events."""
        return Version(self._value(_STREAM_VERSION, {"stream": stream}))

    def position_at(self, at: int) -> Position:
        """The last position stamped at or before a time, 0 if it is before the first.

        Stamps never fall along the positions, so this is O(log n) reads by primary key, and needs no index.
        """
        low, high = 0, int(self.head())
        while low < high:
            middle = (low + high + 1) // 2
            if self.at(Position(middle)) <= at:
                low = middle
            else:
                high = middle - 1
        return Position(low)

    def closed(self) -> int:
        """The highest closed time: nothing will be stamped at or before it any more. 0 if there is none."""
        return self._value(_CLOSED)

    def _events(self, sql: str, parameters: dict[str, Any]) -> list[Event]:
        events = []
        for position, body, leaf in self._rows(sql, parameters):
            if merkle.leaf_hash(body) != leaf:
                raise _wrong_leaf(position)
            events.append(_event(position, body))
        return events

    def _body_and_leaf(self, position: Position) -> tuple[bytes, bytes]:
        body, leaf = self._row(_BODY, position)
        if merkle.leaf_hash(body) != leaf:
            raise _wrong_leaf(position)
        return body, leaf

    def _row(self, sql: str, position: Position) -> tuple[Any, ...]:
        """The one row of a query by position. Raises NoSuchPosition, LogCorrupt for a gap."""
        rows = self._rows(sql, {"position": position}, position=position)
        if rows:
            return rows[0]
        head = self.head()
        if 1 <= position <= head:
            raise LogCorrupt(position, f"the position is missing, the head is {head}")
        raise NoSuchPosition(position, head)

    def _value(self, sql: str, parameters: dict[str, Any] | None = None) -> int:
        """The one number of a query of one row."""
        rows = self._rows(sql, parameters or {})
        if len(rows) != 1:
            raise LogCorrupt(None, f"a query for one row gave {len(rows)}")
        return int(rows[0][0])

    def _rows(
        self, sql: str, parameters: dict[str, Any], *, position: int | None = None
    ) -> list[tuple[Any, ...]]:
        """All rows of a query, in a read transaction that ends with it."""
        try:
            return self._open_connection().execute(sql, parameters).fetchall()
        except database.Error as error:
            raise _read_error(error, position) from error

    def _open_connection(self) -> database.Connection:
        if self._connection is None:
            raise AssertionError("this log was closed")
        return self._connection


class EventLog(LogReader):
    """The one writer of a log. Exactly one process may hold one at a time: see lock.py.

    Once a write ended in OutcomeUnknown, everything but `reopen` and `close` raises that again: what this
    object knows of the head may be wrong, and guessing would be worse than stopping.
    """

    def __init__(self, path: Path, connection: database.Connection) -> None:
        """Use `open`."""
        super().__init__(path, connection)
        self._outcome_unknown = False
        self._frontier = self._load_frontier(self.head())

    @classmethod
    def open(cls, path: Path) -> Self:
        """The writer of a log, which is created if it is absent, or was left empty by a crash.

        Raises NotALog, FormatTooNew, LogCorrupt, LogUnreadable.
        """
        connection = _connect_writer(path)
        try:
            return cls(path, connection)
        except BaseException:
            connection.close()
            raise

    def reopen(self) -> None:
        """Starts again from what is durable: the only way on after OutcomeUnknown. Read before you write."""
        if self._connection is not None:
            self._connection.close()
        self._outcome_unknown = True
        self._connection = _connect_writer(self.path)
        self._outcome_unknown = False
        self._frontier = self._load_frontier(self.head())

    def close(self) -> None:
        """Ends the use of this object, and empties the write-ahead log: then log.db alone is a whole copy."""
        connection = self._connection
        if connection is None:
            return
        if not self._outcome_unknown and not database.checkpoint_truncate(connection):
            _log.warning("the write-ahead log stays, a reader uses it", extra={"path": str(self.path)})
        super().close()

    def create_if_empty(self, *, log_id: str, at: int) -> None:
        """Appends LogCreated, which gives the log its name, unless there is a first event already."""
        if self.head() != 0:
            return
        created = Event(
            position=Position(1),
            stream=LOG_STREAM,
            version=Version(1),
            type=LOG_CREATED,
            schema=1,
            at=at,
            operation_id=None,
            resource_id=None,
            actor=SYSTEM_ACTOR,
            auth=SYSTEM_AUTH,
            request_id=None,
            method=None,
            key=None,
            request=None,
            reason=None,
            data={"log_id": log_id},
        )
        self.append([created], expected_head=Position(0))

    def append(self, events: Sequence[Event], *, expected_head: Position) -> None:
        """Makes these events durable, all of them or none. No events: nothing happens.

        They come numbered: positions from expected_head + 1 on, the versions of each stream from its last one
        on, and one stamp for all, greater than the last event's and than the closed time.
        Raises, with nothing written: HeadMoved, StampTooOld, EventMalformed, AppendFailed, LogCorrupt. Raises
        OutcomeUnknown where only reopening tells what was written.
        """
        if not events:
            return
        bodies = _bodies(events, expected_head)
        leaves = [merkle.leaf_hash(body) for body in bodies]
        with self._before_commit() as connection:
            frontier = self._check_head(events, expected_head)
            frontier, hashes = merkle.extend(frontier, leaves)
            connection.executemany(_INSERT, _event_rows(events, bodies, hashes))
        self._commit(connection)
        # Durable from here on.
        self._frontier = frontier

    def close_time(self, at: int) -> None:
        """Lets nothing be stamped at or before a time any more, durably. It never goes back.

        Raises, with nothing written: AppendFailed, LogCorrupt. Raises OutcomeUnknown.
        """
        with self._before_commit() as connection:
            connection.execute(_CLOSE_TIME, {"at": at})
        self._commit(connection)
        # Durable from here on.

    @contextmanager
    def _before_commit(self) -> Iterator[database.Connection]:
        """A write transaction up to its COMMIT, which is left to the caller.

        An error inside leaves nothing behind. Raises AppendFailed or LogCorrupt for one of the engine's.
        """
        connection = self._open_connection()
        try:
            connection.execute("BEGIN IMMEDIATE")
            yield connection
        except (database.Error, LogUnreadable) as error:
            database.roll_back(connection)
            raise _write_error(error) from error
        except BaseException:
            database.roll_back(connection)
            raise

    def _commit(self, connection: database.Connection) -> None:
        try:
            database.commit(connection)
        except BaseException:
            self._outcome_unknown = True
            raise

    def _check_head(self, events: Sequence[Event], expected_head: Position) -> merkle.Frontier:
        """The frontier at the head, read inside the transaction that appends.

        Raises HeadMoved, StampTooOld, EventMalformed.
        """
        ((head, last, closed),) = self._rows(_BEFORE_APPEND, {})
        if head != expected_head:
            raise HeadMoved(expected_head, head)
        at = events[0].at
        if at <= last or at <= closed:
            raise StampTooOld(at, last, closed)
        versions: dict[str, Version] = {}
        for event in events:
            stream = event.stream
            version = versions[stream] if stream in versions else self.stream_version(stream)
            if event.version != version + 1:
                raise EventMalformed(
                    event.position,
                    f"version {event.version} of stream {stream}: the next one is {version + 1}",
                )
            versions[stream] = event.version
        if self._frontier.size == head:
            return self._frontier
        # Another writer was here; the caller has caught up with it already.
        return self._load_frontier(head)

    def _load_frontier(self, head: Position) -> merkle.Frontier:
        try:
            return merkle.load_frontier(merkle.TreeSize(head), self.hashes)
        except ValueError as error:
            raise LogCorrupt(head, f"the hashes that lead to the head are damaged: {error}") from error

    def _open_connection(self) -> database.Connection:
        if self._outcome_unknown:
            raise OutcomeUnknown("an earlier write ended so, and this log was not reopened")
        return super()._open_connection()


def _connect_reader(path: Path) -> database.Connection:
    if not path.is_file():
        raise NotALog(path, "there is no such file")
    try:
        connection = database.connect(path, access="read", synchronous="FULL")
    except database.Error as error:
        raise _open_error(error, path) from error
    try:
        if not schema.check_format(connection, path):
            raise NotALog(
                path, "it is an empty database: a writer that stopped while it created it must open it"
            )
    except BaseException as error:
        connection.close()
        if isinstance(error, database.Error):
            raise _open_error(error, path) from error
        raise
    return connection


def _connect_writer(path: Path) -> database.Connection:
    if path.exists() and not path.is_file():
        raise NotALog(path, "it is not a file")
    try:
        connection = database.connect(path, access="create", synchronous="FULL")
    except database.Error as error:
        raise _open_error(error, path) from error
    try:
        schema.create_or_upgrade(connection, path)
        # A crash before this line may lose the file, and nothing else: no event is in it yet.
        database.fsync_directory(path.parent)
    except BaseException as error:
        connection.close()
        if isinstance(error, database.Error):
            raise _open_error(error, path) from error
        raise
    return connection


def _bodies(events: Sequence[Event], expected_head: Position) -> list[bytes]:
    """The canonical bytes of a batch. Raises EventMalformed, also for a batch that is not one."""
    at = events[0].at
    position = int(expected_head)
    bodies = []
    for event in events:
        position += 1
        if event.position != position:
            raise EventMalformed(event.position, f"the next position of the batch is {position}")
        if event.at != at:
            raise EventMalformed(
                position, f"its stamp is {event.at}, a batch has one stamp, and that is {at}"
            )
        bodies.append(encode(event))
    return bodies


def _event_rows(
    events: Sequence[Event], bodies: Sequence[bytes], hashes: Sequence[bytes]
) -> Iterator[tuple[Any, ...]]:
    for event, body, row in zip(events, bodies, hashes, strict=True):
        yield (
            event.position,
            event.stream,
            event.version,
            event.type,
            event.at,
            event.operation_id,
            event.resource_id,
            body,
            row,
        )


def _event(position: int, body: bytes) -> Event:
    """The event of checked bytes. Raises LogCorrupt."""
    try:
        event = load(body)
    except EventMalformed as error:
        raise LogCorrupt(position, error.reason) from error
    if event.position != position:
        raise LogCorrupt(position, f"the bytes there are those of position {event.position}")
    return event


def _wrong_leaf(position: int) -> LogCorrupt:
    return LogCorrupt(position, "the bytes do not have the leaf hash stored beside them")


def _read_error(error: database.Error, position: int | None) -> EventStoreError:
    if database.is_corrupt(error):
        return LogCorrupt(position, str(error))
    return LogUnreadable(str(error))


def _write_error(error: database.Error | LogUnreadable) -> EventStoreError:
    """What the caller of a write is told of an error before COMMIT."""
    if database.is_corrupt(error):
        return LogCorrupt(None, str(error))
    return AppendFailed(str(error), full=database.is_full(error))


def _open_error(error: database.Error, path: Path) -> EventStoreError:
    if database.is_foreign(error):
        return NotALog(path, "it is not a SQLite database")
    if database.is_corrupt(error):
        return LogCorrupt(None, f"{path}: {error}")
    return LogUnreadable(f"{path}: {error}")


_HEAD = "SELECT coalesce(max(position), 0) FROM event"

_BODY = "SELECT body, substr(hashes, 1, 32) FROM event WHERE position = :position"

_HASHES = "SELECT hashes FROM event WHERE position = :position"

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

_STREAM_VERSION = "SELECT coalesce(max(version), 0) FROM event WHERE stream = :stream"

_CLOSED = "SELECT at FROM closed"

_CLOSE_TIME = "UPDATE closed SET at = :at WHERE at < :at"

_BEFORE_APPEND = """
SELECT
    coalesce((SELECT max(position) FROM event), 0),
    coalesce((SELECT at FROM event ORDER BY position DESC LIMIT 1), 0),
    (SELECT at FROM closed)
"""

# Positional, as rows of a batch come as tuples.
_INSERT = """
INSERT INTO event (
    position,
    stream,
    version,
    type,
    at,
    operation_id,
    resource_id,
    body,
    hashes
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
