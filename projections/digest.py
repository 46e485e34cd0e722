"""The digest of a projection: equal exactly when two projections answer every question the same.

Rows are versions, so what a file said when it had applied a position can be read of it later, while it goes
on being written: `digest_as_of` does that, a page at a time, since a long read transaction makes the
write-ahead log grow without end.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import cast

from eventstore.database import Connection

from . import chunks
from .damage import ProjectionDamaged, RowDamaged, damage_told
from .domain.command import Image, Operation, Source
from .encoding import Encode
from .rows import (
    BLOB_USE,
    FAMILY,
    FOLDER,
    IMAGE,
    IMAGE_WIDTH,
    LIFE,
    OPERATION,
    SOURCE,
    Row,
    blob_use_row,
    check,
    image_row,
    of,
    operation_row,
    pack,
    ready,
    source_row,
    unpack,
)
from .snapshot import Snapshot, applied_position, held

PAGE_ROWS = 1000

# An image with what repeats it: its entry in the list, and that of the blob it uses.
IMAGES = f"""
SELECT {of("v", IMAGE)}, v.wire, v.wire_crc, u.crc
FROM image AS v
LEFT JOIN blob_use AS u ON v.until IS NULL AND u.sha256 = v.sha256 AND u.id = v.id
WHERE (v.id, v.since) > (?, ?)
ORDER BY v.id, v.since
LIMIT ?
"""
LIVES = f"SELECT {LIFE} FROM image_life WHERE (folder_id, id) > (?, ?) ORDER BY folder_id, id LIMIT ?"
FAMILIES = f"""
SELECT {FAMILY}
FROM family_latest
WHERE (folder_id, family, since) > (?, ?, ?)
ORDER BY folder_id, family, since
LIMIT ?
"""
OPERATIONS = f"SELECT {OPERATION} FROM operation WHERE (id, since) > (?, ?) ORDER BY id, since LIMIT ?"
SOURCES = f"""
SELECT {of("s", SOURCE)}, u.crc
FROM source AS s
LEFT JOIN blob_use AS u ON s.until IS NULL AND u.sha256 = s.sha256 AND u.id = s.id
WHERE (s.id, s.since) > (?, ?)
ORDER BY s.id, s.since
LIMIT ?
"""
BLOB_USES = f"SELECT {BLOB_USE} FROM blob_use WHERE (sha256, id) > (?, ?) ORDER BY sha256, id LIMIT ?"
FOLDERS = f"SELECT {FOLDER} FROM folder WHERE folder_id > ? ORDER BY folder_id LIMIT ?"
BY_VERSION = {1: "", 0: -1}
BY_TWO_IDS = {0: "", 1: ""}
BY_FAMILY = {0: "", 1: "", 2: -1}
BY_FOLDER = {0: ""}
# The first chunk of a folder begins with the empty id.
LISTING = f"""
SELECT {chunks.COLUMNS}
FROM listing
WHERE (folder_id, first) > (?, ?)
ORDER BY folder_id, first
LIMIT ?
"""
PAGE_CHUNKS = 40
AS_MANY_LISTED = """
SELECT (SELECT coalesce(sum(length(ends) / 4), 0) FROM listing) =
  (SELECT count(*) FROM image WHERE until IS NULL)
"""
AS_MANY_USED = """
SELECT (SELECT count(*) FROM blob_use) =
  (SELECT count(*) FROM image WHERE until IS NULL AND sha256 != '')
  + (SELECT count(*) FROM source WHERE until IS NULL)
"""


@damage_told
def digest(connection: Connection, *, encode: Encode | None = None) -> str:
    """SHA-256 over the canonical msgpack of every row, in lower-case hex. Holds no protobuf bytes.

    [table, key…, since, until, state] of every row, table by table, in the order of the keys. What repeats
    something is not in it and is compared instead: each index with its table, the columns with the state,
    and the ready bytes with one another and, where it is given, with what `encode` makes of the state.
    Nobody may write meanwhile. Raises ProjectionDamaged.
    """
    _check_pages(connection)
    applied_position(connection)
    made = _Digest()
    _add_versions(made, connection, encode)
    for row in _rows(connection, BLOB_USES, BY_TWO_IDS):
        check(row, table="blob_use", position=0)
        made.add("blob_use", *row[:2])
    for row in _rows(connection, FOLDERS, BY_FOLDER):
        check(row, table="folder", position=row[1])
        made.add("folder", *row[:2])
    return made.hexdigest()


@damage_told
def digest_as_of(connection: Connection, at: int, *, encode: Encode | None = None) -> str:
    """What `digest` gave, or would have given, when position `at` was applied; others may write meanwhile.

    The tables that hold only the present are compared with the rows that they repeat, and their part in the
    digest is made of those. What it does not do is compare the indexes that it does not read by. Memory grows
    with the images alive. Raises ProjectionDamaged, also for a projection that has not come so far.
    """
    if applied_position(connection) < at:
        raise ProjectionDamaged(f"it has not applied position {at} yet")
    made = _Digest(at)
    _add_versions(made, connection, encode)
    _expect_as_many(connection, AS_MANY_USED, "table blob_use has other uses than tables image and source")
    for use in sorted(made.uses):
        made.add("blob_use", *use)
    _compare_folders(made, connection, at)
    for folder in sorted(made.changed.items()):
        made.add("folder", *folder)
    return made.hexdigest()


@dataclass(slots=True)
class _Digest:
    """The hash of what was added so far; and, as of a position, what no versions of their own are kept of."""

    at: int | None = None
    changed: dict[str, int] = field(default_factory=dict)
    uses: list[tuple[str, str]] = field(default_factory=list)
    _hash: hashlib._Hash = field(default_factory=hashlib.sha256)

    def add(self, *values: object) -> None:
        self._hash.update(pack(values))

    def hexdigest(self) -> str:
        return self._hash.hexdigest()

    def has(self, since: int) -> bool:
        return self.at is None or since <= self.at

    def until(self, until: int | None) -> int | None:
        """When it ended, as it was known then."""
        return until if until is None or self.has(until) else None

    def note_change(self, folder_id: str, row: Row) -> None:
        """A folder changes with each version of its images, and with the end of one that none follows."""
        if self.at is not None and self.has(row[0]):
            last = max(row[0], self.until(row[-2]) or 0)
            self.changed[folder_id] = max(last, self.changed.get(folder_id, 0))

    def note_use(self, sha256: str, row: Row, crc: int | None) -> None:
        """The blob that a version used then. `crc` is what the table of uses has of it now."""
        if self.at is None or not sha256:
            return
        if held(row[0], row[-2], self.at):
            self.uses.append((sha256, row[1]))
        if row[-2] is None and crc != blob_use_row(sha256, row[1])[2]:
            raise RowDamaged(table="blob_use", position=row[0])


def _rows(connection: Connection, sql: str, key: Mapping[int, object]) -> Iterator[Row]:
    """Every row in the order of its key: places in a row, and what is before all values there.

    Each page is a statement of its own, so that no read transaction is open for long.
    """
    last = tuple(key.values())
    while True:
        rows = connection.execute(sql, (*last, PAGE_ROWS)).fetchall()
        for row in rows:
            found = tuple(row[place] for place in key)
            # A wrong entry of an index could lead back, and so for ever.
            if list(map(type, found)) != list(map(type, last)) or found <= last:
                raise ProjectionDamaged(f"a row is out of order behind {last}")
            last = found
            yield row
        if len(rows) < PAGE_ROWS:
            return


def _add_versions(made: _Digest, connection: Connection, encode: Encode | None) -> None:
    _add_images(made, connection, encode)
    for row in _rows(connection, LIVES, BY_TWO_IDS):
        check(row, table="image_life", position=row[2])
        folder_id, image_id, born, died, _ = row
        if made.has(born):
            made.add("image_life", folder_id, image_id, born, made.until(died))
    for row in _rows(connection, FAMILIES, BY_FAMILY):
        check(row, table="family_latest", position=row[2])
        folder_id, family, since, image_id, until, _ = row
        if made.has(since):
            made.add("family_latest", folder_id, family, since, made.until(until), image_id)
    for row in _rows(connection, OPERATIONS, BY_VERSION):
        operation = cast("Operation", unpack(row, table="operation"))
        _compare(row, operation_row(operation, operation["last"]), table="operation")
        _add_version(made, "operation", row)
    _add_sources(made, connection)


def _add_images(made: _Digest, connection: Connection, encode: Encode | None) -> None:
    for columns in _rows(connection, IMAGES, BY_VERSION):
        row, (wire, wire_crc, use_crc) = columns[:IMAGE_WIDTH], columns[IMAGE_WIDTH:]
        image = cast("Image", unpack(row, table="image"))
        _compare(row, image_row(image, row[0]), table="image")
        if row[-2] is None:
            ready(wire, wire_crc, since=row[0], image_id=image["id"])
            if encode is not None and encode(image) != wire:
                raise RowDamaged(table="image", position=row[0])
        elif wire is not None:
            raise RowDamaged(table="image", position=row[0])
        _add_version(made, "image", row)
        made.note_change(image["folder_id"], row)
        made.note_use(image["blob"].get("sha256", ""), row, use_crc)
    _compare_listing(connection)


def _compare_listing(connection: Connection) -> None:
    """Every chunk with its images, and that no image is in none; each is one moment's, while others write."""
    last = ("", "")
    while True:
        with Snapshot(connection):
            rows = connection.execute(LISTING, (*last, PAGE_CHUNKS)).fetchall()
            for row in rows:
                chunks.check(connection, row)
        if not rows:
            break
        last = rows[-1][:2]
    _expect_as_many(connection, AS_MANY_LISTED, "table listing has other images than table image")


def _add_sources(made: _Digest, connection: Connection) -> None:
    for columns in _rows(connection, SOURCES, BY_VERSION):
        row, use_crc = columns[:-1], columns[-1]
        source = cast("Source", unpack(row, table="source"))
        _compare(row, source_row(source, row[0]), table="source")
        _add_version(made, "source", row)
        made.note_use(source["blob"]["sha256"], row, use_crc)


def _add_version(made: _Digest, table: str, row: Row) -> None:
    if made.has(row[0]):
        made.add(table, row[1], row[0], made.until(row[-2]), row[-3])


def _compare_folders(made: _Digest, connection: Connection, at: int) -> None:
    """Where a folder has not changed since, the table must say when it did."""
    missing = set(made.changed)
    for row in _rows(connection, FOLDERS, BY_FOLDER):
        check(row, table="folder", position=row[1])
        missing.discard(row[0])
        if row[1] <= at and row[1] != made.changed.get(row[0]):
            raise RowDamaged(table="folder", position=row[1])
    if missing:
        raise ProjectionDamaged("table folder has other folders than table image")


def _compare(row: Row, derived: Row, *, table: str) -> None:
    if row[:-2] != derived:
        raise RowDamaged(table=table, position=row[0])


def _expect_as_many(connection: Connection, sql: str, otherwise: str) -> None:
    if connection.execute(sql).fetchone() != (1,):
        raise ProjectionDamaged(otherwise)


def _check_pages(connection: Connection) -> None:
    """What no row can say of itself: the file's pages, and every index against its table."""
    (found,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
    if found != "ok":
        raise ProjectionDamaged(str(found))
