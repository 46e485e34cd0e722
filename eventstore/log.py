"""The event log: the only truth. A reader and the one writer, each with a connection of its own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Self, cast

from eventstore import database, merkle, schema
from eventstore.errors import (
    AppendFailed,
    EnvelopeTooNew,
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

# As SQLite's automatic checkpoint, whose failures nobody sees. A batch writes to each of four trees, and on
# average to some two more pages an event, or less; what an event adds to the file is about its body twice.
CHECKPOINT_FRAMES: Final = 1000
FRAMES_A_COMMIT: Final = 4
PAGE_BYTES: Final = 4096
# Readers leave frames behind as a matter of course; so many of them mean one that stays.
FRAMES_LEFT_MAX: Final = 16 * CHECKPOINT_FRAMES

_log = logging.getLogger(__name__)


def new_log_id(random_bytes: bytes) -> str:
    """The name of a new log. Needs 16 random bytes."""
    if len(random_bytes) != 16:
        raise ValueError(f"a log id is made of 16 random bytes, not of {len(random_bytes)}")
    return f"imageledger-{random_bytes.hex()}"


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
        _event_of_row(position, body, hashes[: merkle.HASH_SIZE_BYTES] if type(hashes) is bytes else hashes)
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
                # As _event_of_row, without its call: this runs for every event of a rebuild.
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
                raise _wrong_index(event.position, "operation_id", operation_id, event.operation_id)
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
                raise _wrong_index(event.position, "resource_id", resource_id, event.resource_id)
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
            raise _wrong_index(position, "at", column, at)
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

    def _head(self) -> Position:
        return Position(self._value(_HEAD))

    def _events(self, sql: str, parameters: dict[str, Any]) -> list[Event]:
        events = []
        for position, body, leaf in self._rows(sql, parameters):
            events.append(_event_of_row(position, body, leaf))
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
        return _event_of_row(position, body, leaf), body, leaf

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
        self._last_at = self._stamp_of(self._frontier)
        self._frames = 0  # About so many were written since the last checkpoint.
        self._is_checkpoint_failing = False

    @classmethod
    def open(cls, path: Path) -> Self:
        """The writer of a log, which is created if it is absent, or was left empty by a crash.

        Raises NotALog, FormatTooNew, LogCorrupt, LogUnreadable.
        """
        connection = _connect_writer(path)
        try:
            log = cls(path, connection)
            log._settle()
            return log
        except BaseException:
            connection.close()
            raise

    def reopen(self) -> None:
        """Starts again from what is durable: the only way on after OutcomeUnknown. Read before you write.

        What is read afterwards is what a crash would leave, see database.restart_wal. Raises OutcomeUnknown
        where that cannot be had yet, for a reader in the way or a disk that still fails: try again.
        """
        if self._connection is not None:
            self._connection.close()
        self._outcome_unknown = True
        self._connection = _connect_writer(self.path)
        if not database.restart_wal(self._connection):
            raise OutcomeUnknown("the write-ahead log could not be emptied, see the warning before this")
        self._outcome_unknown = False
        self._frames = 0
        try:
            self._frontier = self._load_frontier(self.head())
            self._last_at = self._stamp_of(self._frontier)
        except BaseException:
            self._outcome_unknown = True
            raise

    def _settle(self) -> None:
        """Makes durable what a process left that was killed: it may have been killed after a failed fsync.

        Recovery takes such a commit for one that succeeded, and readers would be told of it. A reader in the
        way leaves it to the next append's fsync, which is enough unless the disk had failed.
        """
        try:
            frames, _ = database.checkpoint_passive(self._open_connection())
        except database.READ_ERRORS as error:
            self._checkpoint_failed(str(error))
            return
        if frames > 0 and not database.restart_wal(self._open_connection()):
            _log.warning("the write-ahead log of an earlier process stays", extra={"path": str(self.path)})

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
        self._last_at = events[0].at
        self._wrote(FRAMES_A_COMMIT + 2 * len(events) + 2 * sum(map(len, bodies)) // PAGE_BYTES)

    def close_time(self, at: int) -> None:
        """Lets nothing be stamped at or before a time any more, durably. It never goes back.

        Raises, with nothing written: AppendFailed, LogCorrupt. Raises OutcomeUnknown.
        """
        with self._before_commit() as connection:
            connection.execute(_CLOSE_TIME, {"at": at})
        self._commit(connection)
        # Durable from here on.
        self._wrote(1)

    @contextmanager
    def _before_commit(self) -> Iterator[database.Connection]:
        """A write transaction up to its COMMIT, which is left to the caller.

        An error inside leaves nothing behind. Raises AppendFailed or LogCorrupt for one of the engine's.
        """
        connection = self._open_connection()
        try:
            connection.execute("BEGIN IMMEDIATE")
            yield connection
        except (*database.READ_ERRORS, LogUnreadable) as error:
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

    def _wrote(self, frames: int) -> None:
        """Moves the write-ahead log into the database once it has grown by so much. Raises nothing.

        What was committed stays durable in the write-ahead log however this ends, so its failure is no
        error of the append; but it must be seen, since the log would grow until the disk is full.
        """
        self._frames += frames
        if self._frames < CHECKPOINT_FRAMES:
            return
        self._frames = 0
        try:
            left, moved = database.checkpoint_passive(self._open_connection())
        except database.READ_ERRORS as error:
            self._checkpoint_failed(str(error))
            return
        if moved == left:
            self._is_checkpoint_failing = False
        elif left >= FRAMES_LEFT_MAX:
            self._checkpoint_failed(f"a reader holds {left - moved} of {left} frames")

    def _checkpoint_failed(self, reason: str) -> None:
        """Warns once for a series of failures, which the next success ends."""
        if not self._is_checkpoint_failing:
            self._is_checkpoint_failing = True
            _log.warning(
                "the write-ahead log grows: it could not be moved into the database",
                extra={"path": str(self.path), "reason": reason},
            )

    def _check_head(self, events: Sequence[Event], expected_head: Position) -> merkle.Frontier:
        """The frontier at the head, read inside the transaction that appends.

        Raises HeadMoved, StampTooOld, EventMalformed.
        """
        head, closed = self._head(), self.closed()
        if head != expected_head:
            raise HeadMoved(expected_head, head)
        frontier, last = self._frontier, self._last_at
        if frontier.size != merkle.TreeSize(head):
            # Another writer was here; the caller has caught up with it already.
            frontier = self._load_frontier(head)
            last = self._stamp_of(frontier)
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
        return frontier

    def _load_frontier(self, head: Position) -> merkle.Frontier:
        """The frontier at the head, each node checked against those it is made of.

        Every later node is made of these, so a damaged one would be built in for ever. O(log² head) reads.
        """
        size = merkle.TreeSize(head)
        for _, position in merkle.frontier_positions(size):
            damaged = merkle.damaged_row(position, self.hashes)
            if damaged is not None:
                raise LogCorrupt(damaged, "a hash there is not that of the two below it")
        return merkle.load_frontier(size, self.hashes)

    def _stamp_of(self, frontier: merkle.Frontier) -> int:
        """The stamp of the last event, 0 if there is none."""
        return self.at(Position(frontier.size)) if frontier.size else 0

    def _open_connection(self) -> database.Connection:
        if self._outcome_unknown:
            raise OutcomeUnknown("an earlier write ended so, and this log was not reopened")
        return super()._open_connection()


def _connect_reader(path: Path) -> database.Connection:
    if not path.is_file():
        raise NotALog(path, "there is no such file")
    try:
        connection = database.connect(path, access="read", synchronous="FULL")
    except database.READ_ERRORS as error:
        raise _open_error(error, path) from error
    try:
        if not schema.check_format(connection, path):
            raise NotALog(
                path, "it is an empty database: a writer that stopped while it created it must open it"
            )
    except BaseException as error:
        connection.close()
        if isinstance(error, database.READ_ERRORS):
            raise _open_error(error, path) from error
        raise
    return connection


def _connect_writer(path: Path) -> database.Connection:
    if path.exists() and not path.is_file():
        raise NotALog(path, "it is not a file")
    try:
        connection = database.connect(path, access="create", synchronous="FULL")
    except database.READ_ERRORS as error:
        raise _open_error(error, path) from error
    try:
        # An automatic checkpoint fails in silence: see EventLog._wrote.
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        schema.create_or_upgrade(connection, path)
        # A crash before this line may lose the file, and nothing else: no event is in it yet.
        database.fsync_directory(path.parent)
    except BaseException as error:
        connection.close()
        if isinstance(error, database.READ_ERRORS):
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
    except EnvelopeTooNew as error:
        raise EnvelopeTooNew(position, error.found, error.supported) from error
    if event.position != position:
        raise LogCorrupt(position, f"the bytes there are those of position {event.position}")
    return event


def _event_of_row(position: int, body: object, leaf: object) -> Event:
    """The event of a stored row. Raises LogCorrupt where bytes, hash or position are not what was written."""
    if type(body) is not bytes or merkle.leaf_hash(body) != leaf:
        raise _wrong_leaf(position)
    return _event(position, body)


def _wrong_leaf(position: int) -> LogCorrupt:
    return LogCorrupt(position, "the bytes do not have the leaf hash stored beside them")


def _wrong_index(position: int, column: str, indexed: object, said: object) -> LogCorrupt:
    return LogCorrupt(position, f"it stands under {column} {indexed!r}, its bytes say {said!r}")


def _check_in_stream(event: Event, stream: str, version: int) -> None:
    if event.stream != stream:
        raise _wrong_index(event.position, "stream", stream, event.stream)
    if event.version != version:
        raise _wrong_index(event.position, "version", version, event.version)


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


def _write_error(error: Exception) -> EventStoreError:
    """What the caller of a write is told of an error before COMMIT."""
    if database.is_corrupt(error):
        return LogCorrupt(None, str(error))
    return AppendFailed(str(error), full=database.is_full(error))


def _open_error(error: Exception, path: Path) -> EventStoreError:
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

_CLOSE_TIME = "UPDATE closed SET at = :at WHERE at < :at"

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
