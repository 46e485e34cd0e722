"""The disk format of log.db. Table event and its columns position, body and hashes are a public contract.

Format 1 had no table checkpoint. A reader takes such a file as it is, the next writer adds the table.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sqlite_utils.migrations import Migrations

from eventstore import database
from eventstore.errors import FormatTooNew, NotALog

if TYPE_CHECKING:
    from sqlite_utils import Database

# "ilog" in ASCII, at byte 68 of the file: `file log.db` shows it.
APPLICATION_ID: Final = 0x696C6F67
DISK_FORMAT: Final = 2

migrations = Migrations("log")


@migrations()
def m001_event(db: Database) -> None:
    for statement in (_EVENT, *_INDEXES):
        db.execute(statement)
    for statement in (_EVENT_INSERT, _EVENT_UPDATE, _EVENT_DELETE):
        db.execute(statement)


@migrations()
def m002_closed(db: Database) -> None:
    for statement in (_CLOSED, _CLOSED_ROW, _CLOSED_INSERT, _CLOSED_UPDATE, _CLOSED_DELETE):
        db.execute(statement)


@migrations()
def m003_checkpoint(db: Database) -> None:
    for statement in _CHECKPOINTS:
        db.execute(statement)


_EVENT = """
CREATE TABLE event (
    -- 1, 2, 3 … without gaps.
    position INTEGER PRIMARY KEY,
    -- The columns up to resource_id repeat what body says, for indexes only.
    stream TEXT NOT NULL,
    version INTEGER NOT NULL,
    type TEXT NOT NULL,
    at INTEGER NOT NULL,
    operation_id TEXT,
    resource_id TEXT,
    -- The canonical bytes.
    body BLOB NOT NULL,
    -- The hashes of all complete subtrees that end here, the leaf first, 32 bytes each.
    hashes BLOB NOT NULL
) STRICT
"""

_EVENT_BY_STREAM = """
-- Finds the last version of a stream when a batch is appended, and refuses the same version twice.
CREATE UNIQUE INDEX event_by_stream ON event (stream, version)
"""

_EVENT_BY_OPERATION = """
-- An operation is its events: reading one is one seek, also after a commit whose outcome is unknown.
CREATE INDEX event_by_operation ON event (operation_id, position) WHERE operation_id IS NOT NULL
"""

_EVENT_BY_RESOURCE = """
-- The history of one image, in pages.
CREATE INDEX event_by_resource ON event (resource_id, position) WHERE resource_id IS NOT NULL
"""

# REPLACE deletes the row in its way without asking a DELETE trigger. The two conditions leave no row in its
# way: neither one with the same position, nor one with the same stream and version.
_EVENT_INSERT = """
CREATE TRIGGER event_insert BEFORE INSERT ON event
WHEN NEW.position <> coalesce((SELECT max(position) FROM event), 0) + 1
    OR NEW.version <> coalesce((SELECT max(version) FROM event WHERE stream = NEW.stream), 0) + 1
BEGIN
    SELECT raise(ABORT, 'the log is append-only: position and version must each be the last one plus 1');
END
"""

_EVENT_UPDATE = """
CREATE TRIGGER event_update BEFORE UPDATE ON event
BEGIN
    SELECT raise(ABORT, 'the log is append-only: an event is never changed');
END
"""

_EVENT_DELETE = """
CREATE TRIGGER event_delete BEFORE DELETE ON event
BEGIN
    SELECT raise(ABORT, 'the log is append-only: an event is never deleted');
END
"""

_CLOSED = """
-- One row: the highest time at or before which nothing may be stamped any more, as it was answered as of.
CREATE TABLE closed (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    at INTEGER NOT NULL
) STRICT
"""

_CLOSED_ROW = "INSERT INTO closed (id, at) VALUES (1, 0)"

_CLOSED_INSERT = """
CREATE TRIGGER closed_insert BEFORE INSERT ON closed
BEGIN
    SELECT raise(ABORT, 'the closed time has its row already');
END
"""

_CLOSED_UPDATE = """
CREATE TRIGGER closed_update BEFORE UPDATE ON closed
WHEN NEW.at < OLD.at OR NEW.id <> OLD.id
BEGIN
    SELECT raise(ABORT, 'the closed time only grows');
END
"""

_CLOSED_DELETE = """
CREATE TRIGGER closed_delete BEFORE DELETE ON closed
BEGIN
    SELECT raise(ABORT, 'the closed time only grows');
END
"""

_CHECKPOINT = """
-- Signed checkpoints as they were given out, in the file whose events they vouch for: so no crash leaves one
-- of events that are not there. They are no events: what signs the log cannot be in what is signed.
CREATE TABLE checkpoint (
    -- How many events: a size has one root for ever.
    size INTEGER PRIMARY KEY,
    root BLOB NOT NULL,
    -- The signed note.
    note TEXT NOT NULL,
    -- When it was made, in nanoseconds since the epoch.
    at INTEGER NOT NULL
) STRICT
"""

# As sizes only grow, no row is in the way of REPLACE.
_CHECKPOINT_INSERT = """
CREATE TRIGGER checkpoint_insert BEFORE INSERT ON checkpoint
WHEN NEW.size <= coalesce((SELECT max(size) FROM checkpoint), 0)
    OR NEW.size > coalesce((SELECT max(position) FROM event), 0)
BEGIN
    SELECT raise(ABORT, 'a checkpoint covers more events than the last one, and none that are not there');
END
"""

_CHECKPOINT_UPDATE = """
CREATE TRIGGER checkpoint_update BEFORE UPDATE ON checkpoint
BEGIN
    SELECT raise(ABORT, 'what was signed is never changed');
END
"""

_CHECKPOINT_DELETE = """
CREATE TRIGGER checkpoint_delete BEFORE DELETE ON checkpoint
BEGIN
    SELECT raise(ABORT, 'what was signed is never deleted');
END
"""

_CHECKPOINTS: Final = (_CHECKPOINT, _CHECKPOINT_INSERT, _CHECKPOINT_UPDATE, _CHECKPOINT_DELETE)

_INDEXES: Final = (_EVENT_BY_STREAM, _EVENT_BY_OPERATION, _EVENT_BY_RESOURCE)

_COMMENT: Final = re.compile(r"--[^\n]*")


def normal(statement: str) -> str:
    """A statement of ours, or one in sqlite_schema, without what has no meaning."""
    return " ".join(_COMMENT.sub("", statement).split())


# For whoever checks all of the file: the indexes of table event.
INDEXES: Final = tuple(map(normal, _INDEXES))

_FIRST_OBJECTS: Final = (
    *(_EVENT, *_INDEXES, _EVENT_INSERT, _EVENT_UPDATE, _EVENT_DELETE),
    *(_CLOSED, _CLOSED_INSERT, _CLOSED_UPDATE, _CLOSED_DELETE),
)


def objects(disk_format: int) -> dict[str, str]:
    """What must be in a file of this format, by name."""
    statements = map(normal, _FIRST_OBJECTS if disk_format < 2 else (*_FIRST_OBJECTS, *_CHECKPOINTS))
    return {
        statement.removeprefix("CREATE UNIQUE ").removeprefix("CREATE ").split()[1]: statement
        for statement in statements
    }


def check_format(connection: database.Connection, path: Path) -> bool:
    """Whether the file is a log of a format that can be read; False for one that is still empty.

    Raises NotALog, FormatTooNew.
    """
    application_id, disk_format = database.file_marks(connection)
    if application_id == APPLICATION_ID:
        if disk_format > DISK_FORMAT:
            raise FormatTooNew(path, disk_format, DISK_FORMAT)
        return True
    if application_id == 0 and disk_format == 0 and database.is_empty(connection):
        return False
    raise NotALog(
        path, f"it is a SQLite database of another application (application_id {application_id:#x})"
    )


def create_or_upgrade(connection: database.Connection, path: Path) -> None:
    """Leaves the file at this software's disk format. Raises NotALog, FormatTooNew."""
    if check_format(connection, path) and database.file_marks(connection)[1] == DISK_FORMAT:
        return
    database.migrate(connection, migrations, application_id=APPLICATION_ID, user_version=DISK_FORMAT)
