"""Rows and the state inside them: packed, sealed when they are written, and checked when they are read.

A row's `crc` is the CRC-32 of all its columns but `until` (or `died`), as one packed array, and goes on over
`until` where there is one: to end a version, its old CRC is enough for the new one. Everywhere in this room a
row is a tuple of the sealed columns, then `until`, then `crc`. Any type can be packed, so a column whose type
has changed is a wrong CRC, too.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import msgpack

from eventstore.database import Connection
from eventstore.packing import packer

from .damage import RowDamaged as RowDamaged
from .domain.command import Image, Operation, Source
from .encoding import Encode as Encode
from .schema import PROJECTOR_VERSION

Row = tuple[Any, ...]
CRC_MAX = 0xFFFFFFFF

# The columns of whole rows, in the order of the *_row functions.
IMAGE = "since, id, folder_id, name, family, status, created_at, born, sha256, state, until, crc"
OPERATION = "since, id, resource_id, first, actor, method, key, state, until, crc"
SOURCE = "since, id, folder_id, sha256, state, until, crc"
LIFE = "folder_id, id, born, died, crc"
FAMILY = "folder_id, family, since, image_id, until, crc"
APPLIED = "log_id, position, leaf, at, projector_version, encoding, position_crc, NULL, crc"
FOLDER = "folder_id, changed, NULL, crc"
BLOB_USE = "sha256, id, NULL, crc"
IMAGE_WIDTH = 12
STATE = -3  # Where the rows that have a state hold it.


def of(alias: str, columns: str) -> str:
    """The columns as those of an alias."""
    return ", ".join(f"{alias}.{column}" for column in columns.split(", "))


# One insert a table, the same for a live projection and a rebuild.
IMAGE_INSERT = f"""
INSERT INTO image ({IMAGE}, wire, wire_crc)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
FOLDER_WRITE = """
INSERT INTO folder (folder_id, changed, crc)
VALUES (?, ?, ?)
ON CONFLICT (folder_id) DO UPDATE SET changed = excluded.changed, crc = excluded.crc
"""
LIFE_INSERT = f"INSERT INTO image_life ({LIFE}) VALUES (?, ?, ?, ?, ?)"
FAMILY_INSERT = f"INSERT INTO family_latest ({FAMILY}) VALUES (?, ?, ?, ?, ?, ?)"
OPERATION_INSERT = f"INSERT INTO operation ({OPERATION}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
SOURCE_INSERT = f"INSERT INTO source ({SOURCE}) VALUES (?, ?, ?, ?, ?, ?, ?)"
BLOB_USE_INSERT = "INSERT INTO blob_use (sha256, id, crc) VALUES (?, ?, ?)"
APPLIED_INSERT = """
INSERT INTO applied (one, log_id, position, leaf, at, projector_version, encoding, position_crc, crc)
VALUES (1, ?, ?, ?, ?, ?, ?, ?, ?)
"""
APPLIED_UPDATE = """UPDATE applied
SET log_id = ?, position = ?, leaf = ?, at = ?, projector_version = ?, encoding = ?, position_crc = ?, crc = ?
"""
APPLIED_ROW = f"SELECT {APPLIED} FROM applied"
IMAGE_VERSION = f"SELECT {IMAGE} FROM image WHERE since = ?"
ENDED_BY = """
SELECT 1
FROM image AS v
CROSS JOIN image_life AS l ON l.folder_id = v.folder_id AND l.id = v.id
WHERE v.id = :id AND v.until = :until AND l.died = :until
UNION ALL
SELECT 1
FROM source
WHERE id = :id AND until = :until
"""
SOURCE_VERSION = f"SELECT {SOURCE} FROM source WHERE since = ?"


# Canonical msgpack: a state's keys are in byte order by construction.
pack = packer()


def seal(columns: Sequence[Any]) -> int:
    """The CRC of a row that has not ended."""
    return zlib.crc32(pack(columns))


def ended(crc: int, until: int) -> int:
    """The CRC of a row that ends now; `crc` is the one it had until then."""
    return zlib.crc32(pack(until), crc)


def sealed(columns: Row, *, until: int | None = None) -> Row:
    """The whole row: its columns, until and CRC."""
    crc = seal(columns)
    return (*columns, until, crc if until is None else ended(crc, until))


def is_whole(row: Row) -> bool:
    """Whether a row is what was written."""
    until, stored = row[-2:]
    crc = zlib.crc32(pack(row[:-2]))
    return bool((crc if until is None else ended(crc, until)) == stored)


def check(row: Row, *, table: str, position: object) -> None:
    """Raises RowDamaged for a row that is not what was written."""
    if not is_whole(row):
        raise RowDamaged(table=table, position=position)


def expect(holds: bool, *, table: str, position: object) -> None:
    """Raises RowDamaged where a row is not one that was asked for: a wrong entry of an index led to it."""
    if not holds:
        raise RowDamaged(table=table, position=position)


def unpack(row: Row, *, table: str) -> Mapping[str, Any]:
    """The state in a row, which begins with its position. Raises RowDamaged."""
    if not is_whole(row):
        raise RowDamaged(table=table, position=row[0])
    return cast("Mapping[str, Any]", msgpack.unpackb(row[STATE]))


def wire_crc(wire: bytes, *, since: int, image_id: str) -> int:
    """CRC-32 of ready bytes in the row of this position and image, so that swapped rows differ, too."""
    return zlib.crc32(wire, zlib.crc32(image_id.encode(), since & CRC_MAX))


def ready(wire: Any, stored: int, *, since: int, image_id: str) -> bytes:
    """The ready bytes of a current row. Raises RowDamaged, also where there are none."""
    if type(wire) is not bytes or zlib.crc32(wire, zlib.crc32(image_id.encode(), since & CRC_MAX)) != stored:
        raise RowDamaged(table="image", position=since)
    return wire


def position_crc(position: int) -> int:
    """CRC-32 of an applied position, beside which it is read without the rest of its row."""
    return zlib.crc32(b"%d" % position)


def applied_row(*, log_id: str, position: int, leaf: bytes, at: int, encoding: bytes) -> Row:
    """The row of `applied`, as its insert and its update take it."""
    columns = (log_id, position, leaf, at, PROJECTOR_VERSION, encoding, position_crc(position))
    return (*columns, seal(columns))


def folder_row(folder_id: str, changed: int) -> Row:
    return (folder_id, changed, seal((folder_id, changed)))


def blob_use_row(sha256: str, resource_id: str) -> Row:
    return (sha256, resource_id, seal((sha256, resource_id)))


def image_row(image: Image, since: int) -> Row:
    """The columns of a version that do not change when it is followed by another."""
    return (
        since,
        image["id"],
        image["folder_id"],
        image["name"],
        image["family"],
        image["status"],
        image["created_at"],
        image["born"],
        image["blob"].get("sha256", ""),
        pack(image),
    )


def operation_row(operation: Operation, since: int) -> Row:
    return (
        since,
        operation["id"],
        operation["resource_id"],
        operation["first"],
        operation["created_by"],
        operation["method"],
        operation["key"],
        pack(operation),
    )


def source_row(source: Source, since: int) -> Row:
    return (since, source["id"], source["folder_id"], source["blob"]["sha256"], pack(source))


class OperationView(NamedTuple):
    """An operation, and what its last event left: the image or source version, or None."""

    operation: Operation
    result: Image | Source | None
    wire: bytes | None = None  # The ready bytes of the result, where they are known.


def left_by(connection: Connection, operation: Operation) -> Image | Source | None:
    """The version that an operation's last event made, if it made one. Raises RowDamaged."""
    since = operation["last"]
    for table, sql in (("image", IMAGE_VERSION), ("source", SOURCE_VERSION)):
        row = connection.execute(sql, (since,)).fetchone()
        if row is not None:
            left = cast("Image | Source", unpack(row, table=table))
            if left["id"] == operation["resource_id"]:
                return left
            raise RowDamaged(table=table, position=since)
    # It left nothing, and so there is something that it ended.
    if connection.execute(ENDED_BY, {"id": operation["resource_id"], "until": since}).fetchone() is None:
        raise RowDamaged(table="operation", position=since)
    return None
