"""The event log: the only truth. `reader.py` reads it; this is the one writer."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Self

from eventstore import database, merkle, schema
from eventstore.checkpoint import KeptCheckpoint
from eventstore.errors import (
    AppendFailed,
    CheckpointContradicted,
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
from eventstore.event import Event, Position, Version, encode
from eventstore.reader import LogReader, open_error

LOG_STREAM: Final = "log"

LOG_CREATED: Final = "LogCreated"

SYSTEM_ACTOR: Final = "imageledger"

SYSTEM_AUTH: Final = "system"

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
        try:
            is_restarted = database.restart_wal(self._connection)
        except database.READ_ERRORS as error:
            reason = f"the write-ahead log could not be emptied: {error}"
            raise OutcomeUnknown(reason, database.is_full(error)) from error
        if not is_restarted:
            raise OutcomeUnknown("the write-ahead log could not be emptied: a reader uses it")
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
        way leaves it to the next append's fsync, which is enough unless the disk had failed. A disk that
        fails now may have failed then, so it is no warning: nothing that this file shows is to be trusted.
        """
        connection = self._open_connection()
        try:
            frames, _ = database.checkpoint_passive(connection)
            is_restarted = frames == 0 or database.restart_wal(connection)
        except database.READ_ERRORS as error:
            raise open_error(error, self.path) from error
        if not is_restarted:
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

    def keep_checkpoint(self, kept: KeptCheckpoint) -> None:
        """Keeps a signed checkpoint, durably and for ever. The newest one again is no second one.

        Raises, with nothing written: NoSuchPosition for one of events that are not there,
        CheckpointContradicted where another root is kept for its size, AppendFailed, LogCorrupt; AppendFailed
        also for one of fewer events than the newest one. Raises OutcomeUnknown.
        """
        newest = self.newest_checkpoint()
        if newest is not None and newest.size == kept.size:
            if newest.root != kept.root:
                raise CheckpointContradicted(kept.size, newest.root.hex(), kept.root.hex())
            return
        if kept.size > (head := self._head()):
            raise NoSuchPosition(kept.size, head)
        with self._before_commit() as connection:
            connection.execute(_KEEP_CHECKPOINT, kept._asdict())
        self._commit(connection)
        # Durable from here on.
        self._wrote(FRAMES_A_COMMIT)

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


def _connect_writer(path: Path) -> database.Connection:
    if path.exists() and not path.is_file():
        raise NotALog(path, "it is not a file")
    try:
        connection = database.connect(path, access="create", synchronous="FULL")
    except database.READ_ERRORS as error:
        raise open_error(error, path) from error
    try:
        # An automatic checkpoint fails in silence: see EventLog._wrote.
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        schema.create_or_upgrade(connection, path)
        # A crash before this line may lose the file, and nothing else: no event is in it yet.
        database.fsync_directory(path.parent)
    except BaseException as error:
        connection.close()
        if isinstance(error, database.READ_ERRORS):
            raise open_error(error, path) from error
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


def _write_error(error: Exception) -> EventStoreError:
    """What the caller of a write is told of an error before COMMIT."""
    if database.is_corrupt(error):
        return LogCorrupt(None, str(error))
    return AppendFailed(str(error), full=database.is_full(error))


_CLOSE_TIME = "UPDATE closed SET at = :at WHERE at < :at"

_KEEP_CHECKPOINT = "INSERT INTO checkpoint (size, root, note, at) VALUES (:size, :root, :note, :at)"

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
