"""Which blobs something current refers to, in order of their digests: one seek each."""

from __future__ import annotations

from collections.abc import Iterator
from heapq import merge
from itertools import groupby
from typing import Any, NamedTuple, cast

import msgpack

from eventstore.database import Connection

from .rows import IMAGE, SOURCE, STATE, is_whole

# One user of each blob is enough, and that one of the three tables knows of it: they are compared elsewhere.
_BY_IMAGE = f"""
SELECT sha256, {IMAGE}
FROM image INDEXED BY image_blob
WHERE until IS NULL AND sha256 != '' AND sha256 > ?
ORDER BY sha256
LIMIT 1
"""
_BY_SOURCE = f"""
SELECT sha256, {SOURCE}
FROM source INDEXED BY source_blob
WHERE until IS NULL AND sha256 > ?
ORDER BY sha256
LIMIT 1
"""
_BY_USE = "SELECT sha256, id FROM blob_use WHERE sha256 > ? ORDER BY sha256 LIMIT 1"


class BlobReference(NamedTuple):
    """A blob, one that uses it and since which position; position and size are None where no row tells."""

    sha256: str
    user: str
    position: int | None
    storage_size: int | None


def blob_references(connection: Connection) -> Iterator[BlobReference]:
    """Every blob that is referred to, once. No transaction is open between two of them. Raises Error."""
    found = merge(
        _versions(connection, _BY_IMAGE),
        _versions(connection, _BY_SOURCE),
        _uses(connection),
        key=lambda one: one[0],
    )
    for _, references in groupby(found, key=lambda one: one[0]):
        same = list(references)
        yield next((one for one in same if one.storage_size is not None), same[0])


def _versions(connection: Connection, sql: str) -> Iterator[BlobReference]:
    for sha256, *columns in _each(connection, sql):
        if not is_whole(tuple(columns)):
            # Told of the table. Its size may be wrong, and its blob is checked.
            yield BlobReference(sha256, str(columns[1]), None, None)
            continue
        state = cast("dict[str, Any]", msgpack.unpackb(columns[STATE]))
        yield BlobReference(sha256, state["id"], columns[0], state["storage_size"])


def _uses(connection: Connection) -> Iterator[BlobReference]:
    for sha256, user in _each(connection, _BY_USE):
        yield BlobReference(sha256, str(user), None, None)


def _each(connection: Connection, sql: str) -> Iterator[tuple[Any, ...]]:
    last = ""
    while row := connection.execute(sql, (last,)).fetchone():
        if not isinstance(row[0], str) or row[0] <= last:
            return  # The index is out of order, which is told of the index.
        last = row[0]
        yield row
