"""Rows and the state inside them: packed, and checked when read."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import msgpack

from eventstore.database import Connection

from .domain.command import Image, Operation, Source

Encode = Callable[[Image], bytes]
_TAG = struct.Struct("<II")

# One insert a table, the same for a live projection and a rebuild; the columns of the *_row functions first.
IMAGE_INSERT = """
INSERT INTO image (since, id, folder_id, name, family, status, created_at, born, state, state_crc,
                   until, wire, wire_crc)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
LISTING_WRITE = """
INSERT INTO listing (folder_id, id, wire, tag)
VALUES (?, ?, ?, ?)
ON CONFLICT (folder_id, id) DO UPDATE SET wire = excluded.wire, tag = excluded.tag
"""
LIFE_INSERT = "INSERT INTO image_life (folder_id, id, born, died) VALUES (?, ?, ?, ?)"
FAMILY_INSERT = "INSERT INTO family_latest (folder_id, family, since, image_id, until) VALUES (?, ?, ?, ?, ?)"
OPERATION_INSERT = """
INSERT INTO operation (since, id, resource_id, first, actor, method, key, state, state_crc, until)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
SOURCE_INSERT = "INSERT INTO source (since, id, folder_id, state, state_crc, until) VALUES (?, ?, ?, ?, ?, ?)"
APPLIED_UPDATE = "UPDATE applied SET position = ?, leaf = ?, at = ?"

BLOB_USE_INSERT = "INSERT INTO blob_use (sha256, id) VALUES (?, ?)"
IMAGE_VERSION = "SELECT state, state_crc FROM image WHERE since = ?"
SOURCE_VERSION = "SELECT state, state_crc FROM source WHERE since = ?"


class RowDamaged(Exception):
    """A stored row that is not what was written. The log still has the truth."""

    def __init__(self, *, table: str, position: int) -> None:
        super().__init__(
            f"the projection's row of table {table} at position {position} is damaged:"
            " stop the server and run `imageledger rebuild`"
        )
        self.table = table
        self.position = position


def pack(state: Image | Operation | Source) -> bytes:
    """Canonical msgpack: the state's keys are in byte order by construction."""
    return cast("bytes", msgpack.packb(state))


def crc(payload: bytes, since: int) -> int:
    """CRC-32 of a payload in the row of this position, so that swapped rows differ, too."""
    return zlib.crc32(payload, since & 0xFFFFFFFF)


def checked(payload: bytes | None, stored_crc: int, *, table: str, since: int) -> bytes:
    """The payload of a row. Raises RowDamaged, also for one that is not there."""
    if payload is None or zlib.crc32(payload, since & 0xFFFFFFFF) != stored_crc:
        raise RowDamaged(table=table, position=since)
    return payload


def tag(payload: bytes) -> bytes:
    """Length and CRC-32 of a payload, 8 bytes: many of them in a row still say where each payload ends."""
    return _TAG.pack(len(payload), zlib.crc32(payload))


def first_wrong(payloads: bytes, tags: bytes) -> int | None:
    """The index of the first payload that is not what its tag says; None if all are."""
    view, start, crc32 = memoryview(payloads), 0, zlib.crc32
    for index, (length, expected) in enumerate(_TAG.iter_unpack(tags)):
        end = start + length
        if crc32(view[start:end]) != expected:
            return index
        start = end
    return None if start == len(payloads) else len(tags) // _TAG.size - 1


def unpack(payload: bytes, stored_crc: int, *, table: str, since: int) -> Mapping[str, Any]:
    """The state in a row. Raises RowDamaged."""
    whole = checked(payload, stored_crc, table=table, since=since)
    return cast("Mapping[str, Any]", msgpack.unpackb(whole))


def image_row(image: Image, since: int) -> tuple[Any, ...]:
    """The columns of a version that do not change when it is followed by another."""
    state = pack(image)
    return (
        since,
        image["id"],
        image["folder_id"],
        image["name"],
        image["family"],
        image["status"],
        image["created_at"],
        image["born"],
        state,
        crc(state, since),
    )


def operation_row(operation: Operation, since: int) -> tuple[Any, ...]:
    state = pack(operation)
    return (
        since,
        operation["id"],
        operation["resource_id"],
        operation["first"],
        operation["created_by"],
        operation["method"],
        operation["key"],
        state,
        crc(state, since),
    )


def source_row(source: Source, since: int) -> tuple[Any, ...]:
    state = pack(source)
    return (since, source["id"], source["folder_id"], state, crc(state, since))


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
            return cast("Image | Source", unpack(row[0], row[1], table=table, since=since))
    return None
