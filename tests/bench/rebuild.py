"""A rebuild, against the least that could make the same file: scan, unpack, and insert of the ready rows."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import msgpack
from sqlite_utils import Database

from eventstore import database
from eventstore.reader import LogReader
from projections.schema import create_indexes, migrations
from projections.store import ProjectionFiles, build
from server.encode import image_frame
from tests.bench.generate import generate

TABLES = ("image", "listing", "folder", "image_life", "family_latest", "operation", "source", "blob_use")


def ratios(directory: Path, *, events: int, rounds: int) -> tuple[list[float], float, float]:
    """The ratio of each round, and the last round's events a second, ours and raw."""
    log_path = directory / "log.db"
    generate(log_path, events=events)
    found: list[float] = []
    ours = raw = 0.0
    with LogReader.open(log_path) as log:
        for number in range(rounds):
            target = directory / f"round-{number}"
            target.mkdir()
            started = time.perf_counter()
            path = build(ProjectionFiles(target), log, encode=image_frame)
            ours = events / (time.perf_counter() - started)
            rows = _rows(path)
            started = time.perf_counter()
            _insert(log_path, target / "raw.db", rows)
            raw = events / (time.perf_counter() - started)
            found.append(ours / raw)
    return found, ours, raw


def _rows(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    connection = database.connect(path, access="read", synchronous="OFF")
    try:
        return {table: connection.execute(f"SELECT * FROM {table}").fetchall() for table in TABLES}
    finally:
        connection.close()


def _insert(log_path: Path, path: Path, rows: dict[str, list[tuple[Any, ...]]]) -> None:
    log = database.connect(log_path, access="read", synchronous="OFF")
    for (body,) in log.execute("SELECT body FROM event ORDER BY position"):
        msgpack.unpackb(body)
    log.close()
    connection = database.connect(path, access="create", synchronous="OFF")
    database.migrate(connection, migrations)
    connection.execute("BEGIN")
    for table, values in rows.items():
        if values:
            connection.executemany(f"INSERT INTO {table} VALUES ({','.join('?' * len(values[0]))})", values)
    connection.execute("COMMIT")
    create_indexes(Database(connection, recursive_triggers=False, execute_plugins=False))
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("UPDATE applied SET position = position")
    database.checkpoint_truncate(connection)
    connection.close()
