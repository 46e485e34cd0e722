"""A new projection file, of the whole log: durable and complete, or not there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from sqlite_utils import Database

from eventstore import database
from eventstore.reader import LogReader

from .bulk import Batch, build_rows, fill_listing, folded
from .encoding import Encode, fingerprint
from .files import ProjectionFiles, ProjectionRefused
from .folding import batches
from .opening import Progress
from .rows import APPLIED_INSERT, applied_row
from .schema import create_indexes, migrations


def build(
    files: ProjectionFiles, log: LogReader, *, encode: Encode, on_progress: Progress = lambda done, head: None
) -> Path:
    """A new, complete projection file, durable but not live yet. One that cannot be completed is removed."""
    path = files.unused()
    try:
        # Not synced while it is built: an unfinished one is never named by CURRENT.
        build_file(path, log, encode=encode, synchronous="OFF", batches=batches, on_progress=on_progress)
    except BaseException:
        files.remove(path)
        raise
    return path


def build_file(
    path: Path,
    log: LogReader,
    *,
    encode: Encode,
    synchronous: database.Synchronous,
    batches: Callable[[LogReader], Iterator[Batch]] = folded,
    on_progress: Progress = lambda done, head: None,
) -> None:
    """Make the file, which must not be there. What the log gets meanwhile may be in it, or not."""
    connection = database.connect(path, access="create", synchronous=synchronous)
    try:
        encoding = fingerprint(encode)
        _create(connection, log.log_id, encoding)
        head = log.head()
        build_rows(
            connection,
            log,
            batches(log),
            encode=encode,
            encoding=encoding,
            on_progress=lambda position: on_progress(position, head),
        )
        create_indexes(Database(connection, recursive_triggers=False, execute_plugins=False))
        fill_listing(connection)
        _make_durable(connection, path)
    finally:
        connection.close()


def _make_durable(connection: database.Connection, path: Path) -> None:
    """Get every page of a file that was written without syncs onto the disk, and its name into the folder.

    SQLite syncs the file at a checkpoint that has pages to move; the write before it makes sure of one, as
    automatic checkpoints may have moved all others, unsynced.
    """
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("UPDATE applied SET position = position")
    if not database.checkpoint_truncate(connection):
        raise ProjectionRefused(path, "it could not be written to the disk in full")
    database.fsync_directory(path.parent)


def _create(connection: database.Connection, log_id: str, encoding: bytes) -> None:
    database.migrate(connection, migrations)
    row = applied_row(log_id=log_id, position=0, leaf=b"", at=0, encoding=encoding)
    connection.execute(APPLIED_INSERT, row)
