"""The digest of a projection: equal exactly when two projections answer every question the same."""

from __future__ import annotations

import hashlib

import msgpack

from eventstore.database import Connection

# [table, key…, since, until, state] of every row, table by table, in the order of the keys.
TABLES = {
    "image": "SELECT id, since, until, state FROM image ORDER BY id, since",
    "image_life": "SELECT folder_id, id, born, died FROM image_life ORDER BY folder_id, id",
    "family_latest": """
        SELECT folder_id, family, since, until, image_id
        FROM family_latest
        ORDER BY folder_id, family, since
    """,
    "operation": "SELECT id, since, until, state FROM operation ORDER BY id, since",
    "source": "SELECT id, since, until, state FROM source ORDER BY id, since",
}


def digest(connection: Connection) -> str:
    """SHA-256 over the canonical msgpack of every row, in lower-case hex. Holds no protobuf bytes."""
    hashed = hashlib.sha256()
    for table, sql in TABLES.items():
        for row in connection.execute(sql):
            hashed.update(msgpack.packb([table, *row]))
    return hashed.hexdigest()
