"""Opening one projection file: to read, to write, to check whose it is, and to bring it up to the log."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from eventstore import database
from eventstore.event import Position
from eventstore.reader import LogReader

from .damage import damage_told
from .digest import digest, digest_as_of
from .encoding import Encode, fingerprint
from .files import ProjectionRefused
from .projector import Projector, catch_up
from .queries import Queries
from .rows import APPLIED_ROW, is_whole
from .schema import PROJECTOR_VERSION

Progress = Callable[[int, int], None]  # Called with the applied position and the head.


def check(path: Path, log: LogReader, *, encode: Encode | None = None) -> int | None:
    """The applied position; None where another projector version, or another `encode`, made it.

    The log's identity comes first: a file of another log is foreign, whichever version made it.
    Raises ProjectionRefused.
    """
    try:
        connection = database.connect(path, access="read", synchronous="NORMAL")
        try:
            row = connection.execute(
                "SELECT log_id, position, leaf, projector_version FROM applied"
            ).fetchone()
            is_ours = row is not None and row[3] == PROJECTOR_VERSION
            whole = connection.execute(APPLIED_ROW).fetchone() if is_ours else None
        finally:
            connection.close()
    except (database.Error, UnicodeDecodeError) as error:
        raise ProjectionRefused(path, f"it is not readable as a projection ({error})") from error
    if row is None:
        raise ProjectionRefused(path, "it says nothing of how far it has come")
    log_id, position, leaf, _ = row
    head = log.head()
    if log_id != log.log_id:
        raise ProjectionRefused(
            path,
            f"it is of log {log_id} (applied position {position}), and the log here is {log.log_id}"
            f" (head {head})",
        )
    if type(position) is not int or position < 0:
        raise ProjectionRefused(path, "what it says of how far it has come is damaged")
    if position > head:
        raise ProjectionRefused(path, f"it has applied position {position}, and the log ends at {head}")
    if position and log.leaf(Position(position)) != leaf:
        raise ProjectionRefused(
            path, f"its event at position {position} is another one than the log's (head {head})"
        )
    if whole is None:
        return None
    if not is_whole(whole):
        raise ProjectionRefused(path, "what it says of how far it has come is damaged")
    return None if encode is not None and whole[5] != fingerprint(encode) else position


def open_projector(path: Path, *, encode: Encode) -> Projector:
    """The writing side of a live projection."""
    connection = database.connect(path, access="write", synchronous="NORMAL")
    return Projector(connection, encode=encode)


@damage_told
def open_queries(path: Path, *, encode: Encode) -> Queries:
    """A reading side of a live projection, for one thread at a time. Raises ProjectionDamaged, Error."""
    connection = database.connect(path, access="read", synchronous="NORMAL")
    return Queries(connection, encode=encode)


@damage_told
def digest_of(path: Path, *, encode: Encode | None = None) -> str:
    """The digest of a file, see `digest`. Raises ProjectionDamaged, Error."""
    connection = database.connect(path, access="read", synchronous="NORMAL")
    try:
        return digest(connection, encode=encode)
    finally:
        connection.close()


@damage_told
def digest_beside(path: Path, at: int, *, encode: Encode | None = None) -> str:
    """The digest as of a position of a file that others write meanwhile. Raises ProjectionDamaged, Error."""
    connection = database.connect(path, access="read", synchronous="NORMAL")
    try:
        return digest_as_of(connection, at, encode=encode)
    finally:
        connection.close()


def bring_up(
    path: Path,
    log: LogReader,
    applied: int,
    *,
    encode: Encode,
    on_progress: Progress = lambda done, head: None,
) -> int:
    """The position of a file that had applied `applied`, now that it has what the log had when this began."""
    head = log.head()
    if applied == head:
        return applied
    projector = open_projector(path, encode=encode)
    try:
        return catch_up(
            projector, log, after=applied, on_progress=lambda position: on_progress(position, head)
        )
    finally:
        projector.close()
