"""The one place that opens SQLite.

POSIX locks drop when any descriptor of a file closes in the same process: two SQLite libraries, or a plain
open().close() of a -shm file, have lost an acknowledged row. So a serving process opens no database, -wal or
-shm file but here, and this module picks one library for all of them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from sqlite_utils import Database

from eventstore.errors import OutcomeUnknown

if TYPE_CHECKING:
    import sqlite3

    from sqlite_utils.migrations import Migrations
else:
    try:
        import pysqlite3 as sqlite3
    except ImportError:
        import sqlite3

Connection: TypeAlias = sqlite3.Connection
Error = sqlite3.Error
DatabaseError = sqlite3.DatabaseError
IntegrityError = sqlite3.IntegrityError
OperationalError = sqlite3.OperationalError

# What a statement on a damaged file may raise: the driver decodes SQLite's error texts, which may quote it.
READ_ERRORS: Final = (Error, UnicodeDecodeError)


class UnmergedWal(OperationalError):
    """A file in a folder that cannot be written, whose write-ahead log holds what the file lacks."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"{path.name}-wal holds what is not in {path.name} yet, and {path.parent} cannot be written:"
            " copy both into a folder that can, or stop the server before the copy is made"
        )


Access: TypeAlias = Literal["create", "write", "read"]
Synchronous: TypeAlias = Literal["FULL", "NORMAL", "OFF"]

sqlite_version: Final[str] = sqlite3.sqlite_version

BUSY_TIMEOUT_MS: Final = 5_000
# A longer WAL is cut back when it is next reset, so that one large batch does not hold its space for ever.
WAL_SIZE_MAX_BYTES: Final = 64 * 1024 * 1024

_log = logging.getLogger(__name__)
_warned: set[str] = set()

# Primary result codes, https://www.sqlite.org/rescode.html; older libraries export no names for them.
_CODE_BUSY = 5
_CODE_CANTOPEN = 14
_CODE_CORRUPT = 11
_CODE_FULL = 13
_CODE_INTERRUPT = 9
_CODE_NOT_A_DATABASE = 26
_CODE_READONLY = 8

# What the driver says of a value that is stored as text and is none.
_NOT_UTF_8 = "Could not decode to UTF-8"


def connect(
    path: Path, *, access: Access, synchronous: Synchronous, cached_statements: int = 256
) -> Connection:
    """A connection in autocommit mode: transactions are the caller's, see `transaction`.

    create: the file may be absent, and is then created with a write-ahead log. read: nothing can be written,
    and a writer may be at work meanwhile, also in another process; in a folder that cannot be written, where
    none can be, the file is all that is read. One thread at a time may use it.
    Raises Error, also for a file that is no database, and UnmergedWal.
    """
    _warn_of_wal_reset_bug()
    mode = {"create": "rwc", "write": "rw", "read": "ro"}[access]
    if access == "read" and _is_still(path):
        mode += "&immutable=1"
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        timeout=BUSY_TIMEOUT_MS / 1000,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=cached_statements,
    )
    try:
        _configure(connection, access, synchronous)
    except BaseException:
        connection.close()
        raise
    return connection


def _is_still(path: Path) -> bool:
    """Whether a file lies in a folder that nobody here can write. Raises UnmergedWal.

    SQLite reads a database with a write-ahead log only where it can make the files beside it, unless it is
    told that nothing changes; and then it does not see what is in the log and not in the file yet.
    """
    if os.access(path.parent, os.W_OK) or not path.exists():
        return False
    wal = path.with_name(path.name + "-wal")
    if wal.exists() and wal.stat().st_size > 0:
        raise UnmergedWal(path)
    return True


def scratch() -> Connection:
    """A database for one connection, in memory and, as it grows, in a temporary file without a name."""
    return sqlite3.connect("", isolation_level=None, check_same_thread=False)


def _configure(connection: Connection, access: Access, synchronous: Synchronous) -> None:
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA foreign_keys = OFF")
    if access == "read":
        connection.execute("PRAGMA query_only = ON")
        # The first read is what finds out that a file is no database.
        connection.execute("PRAGMA schema_version").fetchone()
        return
    # Only where it is not so already, since setting it needs a lock that a reader beside us may deny.
    if connection.execute("PRAGMA journal_mode").fetchone() != ("wal",):
        (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise OperationalError(f"the file system allows no write-ahead log: journal mode is {mode}")
    # A PRAGMA takes no parameters; both values are constants of this module.
    connection.execute(f"PRAGMA synchronous = {synchronous}")
    connection.execute(f"PRAGMA journal_size_limit = {WAL_SIZE_MAX_BYTES}")
    _check_writable(connection)


def _check_writable(connection: Connection) -> None:
    """Raises OperationalError for a connection that can only read.

    Where a file could not be opened for writing, if only at that moment, SQLite opens it for reading and says
    nothing; every write would be refused, for as long as the connection lives. Nothing is written.
    """
    try:
        connection.execute("BEGIN IMMEDIATE")
        # To BEGIN it is no error.
        _write_a_page(connection)
    except OperationalError as error:
        # Another writer who is at work is no obstacle to this one's later turn.
        if _code(error) != _CODE_BUSY:
            raise
    finally:
        roll_back(connection)


@contextmanager
def transaction(connection: Connection) -> Iterator[None]:
    """A write transaction: COMMIT at the end, ROLLBACK on any error inside, which goes on to the caller.

    BEGIN IMMEDIATE, since a deferred one that reads and then writes fails at once with BUSY_SNAPSHOT.
    Raises OutcomeUnknown for an error of COMMIT itself: close the connection, open another one and look.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        roll_back(connection)
        raise
    commit(connection)


def commit(connection: Connection) -> None:
    """Sends COMMIT. Raises OutcomeUnknown for its error, after which only closing the connection is safe."""
    try:
        connection.execute("COMMIT")
    except Error as error:
        raise OutcomeUnknown(f"COMMIT failed: {error}", is_full(error)) from error


def roll_back(connection: Connection) -> None:
    """Ends a transaction without a trace, also one that SQLite has rolled back by itself."""
    if not connection.in_transaction:
        return
    try:
        connection.execute("ROLLBACK")
    except Error as error:
        # Nothing of it reaches the file without a COMMIT; closing the connection rolls back again.
        _log.warning("rollback failed", extra={"error": str(error)})


def migrate(
    connection: Connection,
    migrations: Migrations,
    *,
    application_id: int | None = None,
    user_version: int | None = None,
) -> None:
    """Applies what is pending and marks the file, in one transaction: a crash leaves all of it or nothing."""
    database = Database(connection, recursive_triggers=False, execute_plugins=False)
    with transaction(connection):
        # sqlite-utils sees the open transaction and uses savepoints inside it.
        migrations.apply(database)
        if application_id is not None:
            connection.execute(f"PRAGMA application_id = {application_id:d}")
        if user_version is not None:
            connection.execute(f"PRAGMA user_version = {user_version:d}")


def file_marks(connection: Connection) -> tuple[int, int]:
    """The application_id and the user_version in a file's header; both 0 in a new one."""
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    (user_version,) = connection.execute("PRAGMA user_version").fetchone()
    return application_id, user_version


def is_empty(connection: Connection) -> bool:
    """Whether a database has no table or other object yet."""
    (count,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    return bool(count == 0)


def checkpoint_truncate(connection: Connection) -> bool:
    """Moves the write-ahead log into the database and empties it; False where that was not possible in full.

    A reader in the way, and a failed write, show only in the result: what is committed stays committed.
    """
    try:
        return _truncate_wal(connection)
    except Error as error:
        _log.warning("checkpoint failed", extra={"error": str(error)})
        return False


def _truncate_wal(connection: Connection) -> bool:
    """Whether the write-ahead log is empty now; False for a reader in the way. Raises Error."""
    busy, frames, moved = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    return bool(busy == 0 and frames == moved)


def checkpoint_passive(connection: Connection) -> tuple[int, int]:
    """The frames of the write-ahead log, and how many of them are in the database after moving what can be.

    It waits for nobody: a reader of an old state, or another checkpoint, leaves frames behind. Raises Error.
    """
    _, frames, moved = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
    return int(frames), int(moved)


def restart_wal(connection: Connection) -> bool:
    """Leaves nothing in the write-ahead log that a later recovery could bring back; False for a reader that
    is in the way. Raises Error.

    After a COMMIT that failed in its fsync, its frames stand in the file with valid checksums. A connection
    that finds the index of an older state in shared memory does not see them, but recovery after a crash
    reads the file and would; a transaction that changes nothing writes nothing over them.
    So the file is emptied; and then one page is committed, unchanged: its fsync makes a new header durable,
    to which frames before it do not belong, even if a power cut undoes the truncation. It also proves that
    the log can be made durable again.

    Where this is the only connection, it has recovered those frames itself, and they count as committed.
    Their fsync failed, and Linux may have marked their pages clean, so that a later fsync of the write-ahead
    log promises nothing of them; but the checkpoint has copied them into the database and fsynced that. Once
    this function has returned True, what the connection reads is durable. A power cut before that may find
    the old write-ahead log with a hole in it beside a newer database; nobody was told of the write by then.
    """
    if not _truncate_wal(connection):
        return False
    _write_a_page(connection)
    return True


def _write_a_page(connection: Connection) -> None:
    """Changes nothing, but writes a page: unlike an UPDATE to the same value, this does so always."""
    (user_version,) = connection.execute("PRAGMA user_version").fetchone()
    connection.execute(f"PRAGMA user_version = {user_version:d}")


def fsync_directory(directory: Path) -> None:
    """Makes the names in a folder durable: a new file's own fsync does not."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_full(error: BaseException) -> bool:
    """Whether an error says that there is no room left."""
    return _code(error) == _CODE_FULL


def is_corrupt(error: BaseException) -> bool:
    """Whether an error says that stored bytes are not what SQLite wrote."""
    # An error text that has no UTF-8 form quotes damaged bytes; the driver's own errors have no code.
    if isinstance(error, UnicodeDecodeError) or str(error).startswith(_NOT_UTF_8):
        return True
    return _code(error) in (_CODE_CORRUPT, _CODE_NOT_A_DATABASE)


def is_foreign(error: BaseException) -> bool:
    """Whether an error says that a file is no database at all."""
    return _code(error) == _CODE_NOT_A_DATABASE


def is_unfinished(error: BaseException, path: Path) -> bool:
    """Whether an error says that a reader may not undo what a crash left of a transaction.

    A write-ahead log needs no undoing: the journal is that of the transaction which made a new file use one.
    """
    # Not every driver tells the extended code, SQLITE_READONLY_ROLLBACK.
    return _code(error) == _CODE_READONLY and path.with_name(f"{path.name}-journal").exists()


def is_interrupted(error: BaseException) -> bool:
    """Whether an error is that of Connection.interrupt."""
    return _code(error) == _CODE_INTERRUPT


def has_wal_reset_bug(version: str = sqlite_version) -> bool:
    """Whether a version of SQLite can corrupt a database in WAL mode: up to 3.51.2."""
    return tuple(int(part) for part in version.split(".")) <= (3, 51, 2)


def _code(error: BaseException) -> int:
    """The primary result code of an error, 0 if it has none."""
    return int(getattr(error, "sqlite_errorcode", 0) or 0) & 0xFF


def _warn_of_wal_reset_bug() -> None:
    if has_wal_reset_bug() and sqlite_version not in _warned:
        _warned.add(sqlite_version)
        _log.warning(
            "this SQLite can corrupt a database when its write-ahead log is reset: use 3.51.3 or later",
            extra={"sqlite_version": sqlite_version},
        )
