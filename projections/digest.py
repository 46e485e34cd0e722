"""The digest of a projection: equal exactly when two projections answer every question the same."""

from __future__ import annotations

import hashlib
from typing import cast

import msgpack

from eventstore.database import Connection

from .damage import ProjectionDamaged, RowDamaged, damage_told
from .domain.command import Image, Operation, Source
from .encoding import Encode
from .rows import (
    APPLIED_ROW,
    BLOB_USE,
    FAMILY,
    FOLDER,
    IMAGE,
    IMAGE_WIDTH,
    LIFE,
    OPERATION,
    SOURCE,
    Row,
    check,
    image_row,
    operation_row,
    ready,
    source_row,
    tag,
    unpack,
)

IMAGES = f"SELECT {IMAGE}, wire, wire_crc FROM image ORDER BY id, since"
LISTED = "SELECT wire, tag FROM listing WHERE folder_id = ? AND id = ?"
LISTED_COUNT = "SELECT count(*) FROM listing"
LIVES = f"SELECT {LIFE} FROM image_life ORDER BY folder_id, id"
FAMILIES = f"SELECT {FAMILY} FROM family_latest ORDER BY folder_id, family, since"
OPERATIONS = f"SELECT {OPERATION} FROM operation ORDER BY id, since"
SOURCES = f"SELECT {SOURCE} FROM source ORDER BY id, since"
BLOB_USES = f"SELECT {BLOB_USE} FROM blob_use ORDER BY sha256, id"
FOLDERS = f"SELECT {FOLDER} FROM folder ORDER BY folder_id"


@damage_told
def digest(connection: Connection, *, encode: Encode | None = None) -> str:
    """SHA-256 over the canonical msgpack of every row, in lower-case hex. Holds no protobuf bytes.

    [table, key…, since, until, state] of every row, table by table, in the order of the keys. What repeats
    something is not in it and is compared instead: each index with its table, the columns with the state,
    and the ready bytes with one another and, where it is given, with what `encode` makes of the state.
    Raises ProjectionDamaged.
    """
    _check_structure(connection)
    digest_ = _Digest()
    _add_images(digest_, connection, encode)
    for folder_id, image_id, born, died, crc in connection.execute(LIVES):
        check((folder_id, image_id, born, died, crc), table="image_life", position=born)
        digest_.add("image_life", folder_id, image_id, born, died)
    for row in connection.execute(FAMILIES):
        check(row, table="family_latest", position=row[2])
        folder_id, family, since, image_id, until, _ = row
        digest_.add("family_latest", folder_id, family, since, until, image_id)
    for row in connection.execute(OPERATIONS):
        operation = cast("Operation", unpack(row, table="operation"))
        _compare(row, operation_row(operation, operation["last"]), table="operation")
        digest_.add("operation", *_version(row))
    for row in connection.execute(SOURCES):
        source = cast("Source", unpack(row, table="source"))
        _compare(row, source_row(source, row[0]), table="source")
        digest_.add("source", *_version(row))
    for table, sql in (("blob_use", BLOB_USES), ("folder", FOLDERS)):
        for row in connection.execute(sql):
            check(row, table=table, position=row[1])
            digest_.add(table, *row[:2])
    return digest_.hexdigest()


class _Digest:
    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self.hexdigest = self._hash.hexdigest

    def add(self, *values: object) -> None:
        self._hash.update(msgpack.packb(values))


def _check_structure(connection: Connection) -> None:
    """What no row can say of itself: the pages, every index against its table, and the applied position."""
    (found,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
    if found != "ok":
        raise ProjectionDamaged(str(found))
    applied = connection.execute(APPLIED_ROW).fetchone()
    if applied is None:
        raise RowDamaged(table="applied", position=0)
    check(applied, table="applied", position=applied[1])


def _add_images(digest_: _Digest, connection: Connection, encode: Encode | None) -> None:
    current = 0
    for columns in connection.execute(IMAGES):
        row, (wire, wire_crc) = columns[:IMAGE_WIDTH], columns[IMAGE_WIDTH:]
        image = cast("Image", unpack(row, table="image"))
        _compare(row, image_row(image, row[0]), table="image")
        if row[-2] is None:
            current += 1
            ready(wire, wire_crc, since=row[0], image_id=image["id"])
            _compare_listing(connection, image, wire, row[0])
            if encode is not None and encode(image) != wire:
                raise RowDamaged(table="image", position=row[0])
        elif wire is not None:
            raise RowDamaged(table="image", position=row[0])
        digest_.add("image", *_version(row))
    if connection.execute(LISTED_COUNT).fetchone() != (current,):
        raise ProjectionDamaged("table listing has other images than table image")


def _compare_listing(connection: Connection, image: Image, wire: bytes, since: int) -> None:
    listed = connection.execute(LISTED, (image["folder_id"], image["id"])).fetchone()
    if listed != (wire, tag(wire, folder_id=image["folder_id"], image_id=image["id"])):
        raise RowDamaged(table="listing", position=since)


def _compare(row: Row, derived: Row, *, table: str) -> None:
    if row[:-2] != derived:
        raise RowDamaged(table=table, position=row[0])


def _version(row: Row) -> tuple[object, object, object, object]:
    """id, since, until and state of a row."""
    return row[1], row[0], row[-2], row[-3]
