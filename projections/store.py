"""The files of a projection: which one is live, opening it, and building another one from the log."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sqlite_utils import Database

from eventstore import database
from eventstore.errors import EventStoreError
from eventstore.reader import LogReader

from .bulk import build_rows, fill_listing
from .digest import digest
from .projector import Projector, catch_up
from .queries import Queries
from .rows import Encode, RowDamaged
from .schema import PROJECTOR_VERSION, create_indexes, migrations

CURRENT = "CURRENT"
FILE_NAME = re.compile(r"projections-([0-9]+)\.db")
Progress = Callable[[int, int], None]  # Called with the applied position and the head.


class ProjectionRefused(EventStoreError):
    """A projection that is not of this log as it stands. Nothing is repaired silently."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path.name}: {self.reason}; stop the server and run `imageledger rebuild`"


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What a rebuild did. `digest_before` is None where no usable old projection was there."""

    events: int
    seconds: float
    digest_before: str | None
    digest_after: str


class ProjectionFiles:
    """The projection files in a data directory. A name is never used twice."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def current(self) -> Path | None:
        """The live file, or None where there is none yet or it is gone."""
        name = self._named()
        if name is None:
            return None
        if FILE_NAME.fullmatch(name) is None:
            raise ProjectionRefused(
                self.directory / CURRENT, f"it names {name[:64]!r}, which is no projection"
            )
        path = self.directory / name
        return path if path.is_file() else None

    def unused(self) -> Path:
        """A name that no projection here has, or, as far as the folder tells, had."""
        numbers = [int(found[1]) for name in self._names() if (found := FILE_NAME.match(name))]
        return self.directory / f"projections-{max(numbers, default=0) + 1}.db"

    def make_current(self, path: Path) -> None:
        """Name the live file: written, fsynced, renamed. After the last line a power cut keeps it."""
        draft = self.directory / f"{CURRENT}.new"
        with draft.open("w", encoding="utf-8") as file:
            file.write(path.name + "\n")
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self.directory / CURRENT)
        database.fsync_directory(self.directory)

    def remove_others(self, live: Path) -> None:
        """Remove what older builds, and builds that were killed, left behind."""
        for name in self._names():
            if FILE_NAME.match(name) and not name.startswith(live.name):
                (self.directory / name).unlink(missing_ok=True)

    def _names(self) -> list[str]:
        names = [entry.name for entry in self.directory.iterdir()]
        named = self._named()
        return names if named is None else [*names, named]

    def _named(self) -> str | None:
        """What CURRENT says, whatever bytes it holds; None where there is no such file."""
        try:
            return (self.directory / CURRENT).read_text(encoding="utf-8", errors="replace").strip()
        except FileNotFoundError:
            return None


def open_live(
    files: ProjectionFiles, log: LogReader, *, encode: Encode, on_progress: Progress = lambda done, head: None
) -> Path:
    """The live projection's file, caught up with the log; built first where there is none of this version.

    Raises ProjectionRefused for one of another log, ahead of it, or of another history.
    """
    path = files.current()
    if path is not None:
        applied = check(path, log)
        if applied is not None:
            _catch_up(path, log, applied, encode=encode, on_progress=on_progress)
            return path
    path = build(files, log, encode=encode, on_progress=on_progress)
    files.make_current(path)
    files.remove_others(path)
    return path


def check(path: Path, log: LogReader) -> int | None:
    """The applied position; None where another projector version made it. Raises ProjectionRefused.

    The log's identity comes first: a file of another log is foreign, whichever version made it.
    """
    try:
        connection = database.connect(path, access="read", synchronous="NORMAL")
        try:
            row = connection.execute(
                "SELECT log_id, position, leaf, projector_version FROM applied"
            ).fetchone()
        finally:
            connection.close()
    except database.Error as error:
        raise ProjectionRefused(path, f"it is not readable as a projection ({error})") from error
    if row is None:
        raise ProjectionRefused(path, "it says nothing of how far it has come")
    log_id, position, leaf, version = row
    head = log.head()
    if log_id != log.log_id:
        raise ProjectionRefused(
            path,
            f"it is of log {log_id} (applied position {position}), and the log here is {log.log_id}"
            f" (head {head})",
        )
    if position > head:
        raise ProjectionRefused(path, f"it has applied position {position}, and the log ends at {head}")
    if position and log.leaf(position) != leaf:
        raise ProjectionRefused(
            path, f"its event at position {position} is another one than the log's (head {head})"
        )
    return int(position) if version == PROJECTOR_VERSION else None


def build(
    files: ProjectionFiles, log: LogReader, *, encode: Encode, on_progress: Progress = lambda done, head: None
) -> Path:
    """A new, complete projection file, durable but not live yet."""
    path = files.unused()
    # Not synced while it is built: an unfinished one is never named by CURRENT.
    connection = database.connect(path, access="create", synchronous="OFF")
    try:
        _create(connection, log.log_id)
        head = log.head()
        build_rows(connection, log, encode=encode, on_progress=lambda position: on_progress(position, head))
        create_indexes(Database(connection, recursive_triggers=False, execute_plugins=False))
        fill_listing(connection)
        _make_durable(connection, path)
    finally:
        connection.close()
    return path


def rebuild(
    files: ProjectionFiles, log: LogReader, *, encode: Encode, on_progress: Progress = lambda done, head: None
) -> Rebuilt:
    """Build anew from the log and make it live; the server must not run.

    The old one is caught up before its digest is taken: a difference means a wrong row, not a late one.
    """
    before = _digest_before(files, log, encode=encode)
    started = time.monotonic()
    path = build(files, log, encode=encode, on_progress=on_progress)
    seconds = time.monotonic() - started
    after = digest_of(path)
    files.make_current(path)
    files.remove_others(path)
    return Rebuilt(log.head(), seconds, before, after)


def open_projector(path: Path, *, encode: Encode) -> Projector:
    """The writing side of a live projection."""
    connection = database.connect(path, access="write", synchronous="NORMAL")
    return Projector(connection, encode=encode)


def open_queries(path: Path, *, encode: Encode) -> Queries:
    """A reading side of a live projection, for one thread at a time."""
    connection = database.connect(path, access="read", synchronous="NORMAL")
    return Queries(connection, encode=encode)


def digest_of(path: Path) -> str:
    connection = database.connect(path, access="read", synchronous="NORMAL")
    try:
        return digest(connection)
    finally:
        connection.close()


def _digest_before(files: ProjectionFiles, log: LogReader, *, encode: Encode) -> str | None:
    try:
        path = files.current()
        applied = None if path is None else check(path, log)
    except ProjectionRefused:
        return None
    if path is None or applied is None:
        return None
    try:
        _catch_up(path, log, applied, encode=encode, on_progress=lambda done, head: None)
        return digest_of(path)
    except (database.Error, RowDamaged, AssertionError):
        return None


def _catch_up(path: Path, log: LogReader, applied: int, *, encode: Encode, on_progress: Progress) -> None:
    head = log.head()
    if applied == head:
        return
    projector = open_projector(path, encode=encode)
    try:
        catch_up(projector, log, after=applied, on_progress=lambda position: on_progress(position, head))
    finally:
        projector.close()


def _make_durable(connection: database.Connection, path: Path) -> None:
    """Get every page of a file that was written without syncs onto the disk.

    SQLite syncs the file at a checkpoint that has pages to move; the write before it makes sure of one, as
    automatic checkpoints may have moved all others, unsynced.
    """
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("UPDATE applied SET position = position")
    if not database.checkpoint_truncate(connection):
        raise ProjectionRefused(path, "it could not be written to the disk in full")


def _create(connection: database.Connection, log_id: str) -> None:
    database.migrate(connection, migrations)
    connection.execute(
        """
        INSERT INTO applied (one, log_id, position, leaf, at, projector_version)
        VALUES (1, ?, 0, x'', 0, ?)
        """,
        (log_id, PROJECTOR_VERSION),
    )
