"""The tables of a projection that hold only the present, and its indexes: against what they repeat."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from eventstore import database
from eventstore.audit import ENTRY_BYTES, OnRead
from eventstore.errors import LogCorrupt, NoSuchPosition
from eventstore.event import Event, Position
from eventstore.finding import Finding
from eventstore.indexes import IndexDamaged, wrong_entries

from . import chunks
from .audit import INDEXES, ROW_BYTES, ProjectionAudit, damage, finding
from .damage import ProjectionDamaged, RowDamaged
from .digest import AS_MANY_LISTED, LISTING, PAGE_CHUNKS
from .domain.command import folder_stream
from .domain.evolve import IMAGE_EVENTS
from .rows import FAMILY, FOLDER, LIFE, Row, is_whole, of
from .snapshot import Snapshot

PAGE_ROWS = 200

# After these there is no image any more.
ENDINGS = frozenset({"ImageDeleted", "ImageCreationFailed", "ImageCreationCancelled"})

# Each row, and whether the versions bear it out.
_LIVES = f"""
SELECT {of("l", LIFE)}, EXISTS (
  SELECT 1
  FROM image AS v
  WHERE v.since = l.born AND v.born = l.born AND v.id = l.id AND v.folder_id = l.folder_id
)
FROM image_life AS l
WHERE (l.folder_id, l.id) > (?, ?)
ORDER BY l.folder_id, l.id
LIMIT ?
"""
_FAMILIES = f"""
SELECT {FAMILY}
FROM family_latest
WHERE (folder_id, family, since) > (?, ?, ?)
ORDER BY folder_id, family, since
LIMIT ?
"""
_USED_BY = """
coalesce((
  SELECT until IS NULL AND sha256 = u.sha256
  FROM {table}
  WHERE id = u.id
  ORDER BY since DESC
  LIMIT 1
), 0)
"""
_USES = f"""
SELECT sha256, id, NULL, crc, {_USED_BY.format(table="image")} OR {_USED_BY.format(table="source")}
FROM blob_use AS u
WHERE (sha256, id) > (?, ?)
ORDER BY sha256, id
LIMIT ?
"""
_FOLDERS = f"SELECT {FOLDER} FROM folder WHERE folder_id > ? ORDER BY folder_id LIMIT ?"

Findings = Iterator[Finding]


class TablesAudit:
    """What is left to check behind the events of a `ProjectionAudit`."""

    def __init__(self, audit: ProjectionAudit, *, name: str) -> None:
        """`name` is the file's."""
        self._audit = audit
        self._connection = audit.connection
        self._name = name
        self._read = 0

    def findings(self, *, on_read: OnRead) -> Findings:
        """`on_read` hears of rows and entries. Raises Error for one that says nothing of damage."""
        for table, findings in (
            ("image_life", self._lives),
            ("family_latest", self._families),
            ("blob_use", self._uses),
            ("folder", self._folders),
            ("listing", self._listing),
        ):
            try:
                yield from findings(on_read)
            except (database.Error, UnicodeDecodeError, ProjectionDamaged) as error:
                yield self._whole(f"table {table} cannot be read to its end: {damage(error)}")
        yield from self._entries(on_read)

    def _whole(self, message: str) -> Finding:
        return finding(None, f"{self._name}: {message}")

    def _rows(self, sql: str, first: tuple[object, ...], on_read: OnRead) -> Iterator[Row]:
        """Every row behind a key, which is the row's first columns; a page is a statement of its own."""
        last = first
        while rows := self._connection.execute(sql, (*last, PAGE_ROWS)).fetchall():
            for row in rows:
                key = row[: len(first)]
                if list(map(type, key)) != list(map(type, first)) or key <= last:
                    raise ProjectionDamaged(f"a row is out of order behind {last}")
                last = key
                yield row
            self._told(len(rows), ROW_BYTES, on_read)

    def _told(self, count: int, size_bytes: int, on_read: OnRead) -> None:
        self._read += count
        on_read(self._read, count * size_bytes)

    def _lives(self, on_read: OnRead) -> Findings:
        for *columns, is_borne_out in self._rows(_LIVES, ("", ""), on_read):
            _, image_id, born, died, _ = row = tuple(columns)
            if not is_whole(row):
                yield finding(_position(born), "its row of table image_life is not what was written")
            elif born <= self._audit.at and not is_borne_out:
                yield finding(born, f"table image_life has image {image_id} born there, and it was not")
            elif died is not None and died <= self._audit.at and not self._ended(died, image_id):
                yield finding(died, f"table image_life has image {image_id} end there, and it did not")

    def _ended(self, position: int, image_id: str) -> bool:
        """Whether an image ended there; also where the log cannot be read, which is told of the log."""
        event = self._event(position)
        is_it = event is None or (event.resource_id == image_id and event.type in ENDINGS)
        return position > 0 and is_it

    def _changed(self, position: int, folder_id: str) -> bool:
        """Whether an image of a folder changed there; also where the log cannot be read."""
        event = self._event(position)
        is_it = event is None or (event.stream == folder_stream(folder_id) and event.type in IMAGE_EVENTS)
        return position > 0 and is_it

    def _event(self, position: int) -> Event | None:
        try:
            return self._audit.log.event(Position(position))
        except (LogCorrupt, NoSuchPosition):
            return None

    def _families(self, on_read: OnRead) -> Findings:
        """Each answer that the log made was found; so there must be no others."""
        count = 0
        for row in self._rows(_FAMILIES, ("", "", -1), on_read):
            if not is_whole(row):
                yield finding(_position(row[2]), "its row of table family_latest is not what was written")
            count += row[2] <= self._audit.at
        if self._audit.answers is not None and count != self._audit.answers:
            yield self._whole(f"table family_latest has {count} answers, the log made {self._audit.answers}")

    def _uses(self, on_read: OnRead) -> Findings:
        for *columns, is_used in self._rows(_USES, ("", ""), on_read):
            row = tuple(columns)
            if not is_whole(row):
                yield self._whole(f"table blob_use: what it says of {row[1]} is not what was written")
            elif not is_used:
                yield self._whole(f"table blob_use: {row[1]} does not use blob {row[0]}")

    def _folders(self, on_read: OnRead) -> Findings:
        for row in self._rows(_FOLDERS, ("",), on_read):
            folder_id, changed = row[:2]
            if not is_whole(row):
                yield finding(_position(changed), "its row of table folder is not what was written")
            elif changed <= self._audit.at and not self._changed(changed, folder_id):
                yield finding(changed, f"table folder has folder {folder_id} change there, and it did not")

    def _listing(self, on_read: OnRead) -> Findings:
        """Each chunk against its images, as they are in one moment; and that no image is in none."""
        last: tuple[Any, ...] = ("", "")
        while True:
            with Snapshot(self._connection):
                rows = self._connection.execute(LISTING, (*last, PAGE_CHUNKS)).fetchall()
                faults = [fault for row in rows if (fault := self._chunk_fault(row)) is not None]
            yield from faults
            if not rows:
                break
            if [str, str] != [type(column) for column in rows[-1][:2]] or rows[-1][:2] <= last:
                raise ProjectionDamaged(f"a row is out of order behind {last}")
            last = rows[-1][:2]
            self._told(len(rows), ROW_BYTES * chunks.CUT_IMAGES, on_read)
        if self._connection.execute(AS_MANY_LISTED).fetchone() != (1,):
            yield self._whole("table listing has other images than table image")

    def _chunk_fault(self, row: Row) -> Finding | None:
        try:
            chunks.check(self._connection, row)
        except RowDamaged as error:
            message = f"a chunk of folder {row[0]} in table listing is not what its images are"
            return finding(error.position, message) if error.position else self._whole(message)
        return None

    def _entries(self, on_read: OnRead) -> Findings:
        """Every entry of every index."""
        for index in INDEXES:
            try:
                for since in wrong_entries(
                    self._connection,
                    index,
                    until=self._audit.at,
                    on_page=lambda entries: self._told(entries, ENTRY_BYTES, on_read),
                ):
                    message = f"an entry of {index.name} leads to its row of table {index.table}, wrongly"
                    yield finding(since, message)
            except IndexDamaged as error:
                yield self._whole(str(error))
            except (database.Error, UnicodeDecodeError) as error:
                yield self._whole(f"{index.name} cannot be read to its end: {damage(error)}")


def _position(stored: object) -> int | None:
    """A position in a damaged row, if it can be one."""
    return stored if type(stored) is int and stored > 0 else None
