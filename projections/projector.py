"""Applies events to a projection: rows and applied position in one transaction."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, cast

from eventstore.database import Connection
from eventstore.event import Event, Position
from eventstore.log import LogReader
from eventstore.upcast import Upcasters, upcast

from .domain.command import Image, Operation, Source
from .domain.evolve import IMAGE_EVENTS, LOG_EVENTS, SOURCE_EVENTS, EventUnknown
from .domain.image import evolve_image
from .domain.operation import evolve_operation
from .domain.source import evolve_source
from .domain.upcasters import UPCASTERS
from .rows import OperationView, crc, left_by, pack, unpack

Encode = Callable[[Image], bytes]
BATCH_EVENTS = 1000

IMAGE_CURRENT = """
SELECT since, until, state, state_crc
FROM image
WHERE id = ?
ORDER BY since DESC
LIMIT 1
"""
IMAGE_NAMED = """
SELECT id
FROM image
WHERE folder_id = ? AND name = ? AND name != '' AND until IS NULL
"""
IMAGE_CLOSE = "UPDATE image SET until = ?, wire = NULL, wire_crc = NULL WHERE since = ?"
IMAGE_INSERT = """
INSERT INTO image (since, until, id, folder_id, name, family, status, created_at, born,
                   state, state_crc, wire, wire_crc)
VALUES (?, NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
LIFE_INSERT = "INSERT INTO image_life (folder_id, id, born, died) VALUES (?, ?, ?, NULL)"
LIFE_CLOSE = "UPDATE image_life SET died = ? WHERE folder_id = ? AND id = ?"
FAMILY_READY = """
SELECT id
FROM image
WHERE folder_id = ? AND family = ? AND family != '' AND until IS NULL AND status = 'READY'
ORDER BY born DESC
LIMIT 1
"""
FAMILY_CURRENT = """
SELECT since, until, image_id
FROM family_latest
WHERE folder_id = ? AND family = ?
ORDER BY since DESC
LIMIT 1
"""
FAMILY_CLOSE = "UPDATE family_latest SET until = ? WHERE folder_id = ? AND family = ? AND since = ?"
FAMILY_INSERT = """
INSERT INTO family_latest (folder_id, family, since, until, image_id)
VALUES (?, ?, ?, NULL, ?)
"""
OPERATION_CURRENT = """
SELECT since, state, state_crc
FROM operation
WHERE id = ?
ORDER BY since DESC
LIMIT 1
"""
OPERATION_KEYED = """
SELECT since, state, state_crc
FROM operation
WHERE key = ? AND key != '' AND actor = ? AND method = ?
ORDER BY first DESC, since DESC
LIMIT 1
"""
OPERATION_CLOSE = "UPDATE operation SET until = ? WHERE since = ?"
OPERATION_INSERT = """
INSERT INTO operation (since, until, id, resource_id, first, actor, method, key, state, state_crc)
VALUES (?, NULL, ?, ?, ?, ?, ?, ?, ?, ?)
"""
SOURCE_CURRENT = """
SELECT since, until, state, state_crc
FROM source
WHERE id = ?
ORDER BY since DESC
LIMIT 1
"""
SOURCE_CLOSE = "UPDATE source SET until = ? WHERE since = ?"
SOURCE_INSERT = """
INSERT INTO source (since, until, id, folder_id, state, state_crc)
VALUES (?, NULL, ?, ?, ?, ?)
"""
APPLIED_UPDATE = "UPDATE applied SET position = ?, leaf = ?, at = ?"


class Applied(NamedTuple):
    """What one event left: its operation, and the image or source as it is now."""

    operation: Operation | None
    resource: Image | Source | None


class Projector:
    """Owns the writing connection of a projection; one thread uses it.

    Between `begin` and `commit` it sees its own rows: this is the State that `decide` reads.
    """

    def __init__(self, connection: Connection, *, encode: Encode, upcasters: Upcasters = UPCASTERS) -> None:
        self._connection = connection
        self._execute = connection.execute
        self._encode = encode
        self._upcasters = upcasters

    def begin(self) -> None:
        self._execute("BEGIN IMMEDIATE")

    def commit(self, *, last: Event, leaf: bytes) -> None:
        """Make the rows visible; not fsynced, since the log can bring them back."""
        self._execute(APPLIED_UPDATE, (last.position, leaf, last.at))
        self._execute("COMMIT")

    def rollback(self) -> None:
        if self._connection.in_transaction:
            self._execute("ROLLBACK")

    def close(self) -> None:
        self.rollback()
        self._connection.close()

    # What `decide` may ask: the State protocol, read through this transaction.

    def image(self, image_id: str) -> Image | None:
        row = self._image_row(image_id)
        return None if row is None else row[1]

    def image_named(self, *, folder_id: str, name: str) -> str | None:
        row = self._execute(IMAGE_NAMED, (folder_id, name)).fetchone()
        return None if row is None else cast("str", row[0])

    def source(self, source_id: str) -> Source | None:
        row = self._source_row(source_id)
        return None if row is None else row[1]

    def operation(self, operation_id: str) -> Operation | None:
        row = self._execute(OPERATION_CURRENT, (operation_id,)).fetchone()
        return None if row is None else _operation(row)

    def operation_keyed(self, *, actor: str, method: str, key: str) -> Operation | None:
        row = self._execute(OPERATION_KEYED, (key, actor, method)).fetchone()
        return None if row is None else _operation(row)

    def view(self, operation: Operation) -> OperationView:
        """The operation with what its last event left."""
        return OperationView(operation, left_by(self._connection, operation))

    def apply(self, event: Event) -> Applied:
        """Write what the event means. Raises EventUnknown and SchemaTooNew: a projection stops there."""
        event = upcast(event, self._upcasters)
        resource: Image | Source | None = None
        if event.type in IMAGE_EVENTS:
            resource = self._apply_image(event)
        elif event.type in SOURCE_EVENTS:
            resource = self._apply_source(event)
        elif event.type not in LOG_EVENTS:
            raise EventUnknown(event)
        return Applied(self._apply_operation(event), resource)

    def _image_row(self, image_id: str) -> tuple[int, Image] | None:
        row = self._execute(IMAGE_CURRENT, (image_id,)).fetchone()
        if row is None or row[1] is not None:
            return None
        since, _, state, state_crc = row
        return since, cast("Image", unpack(state, state_crc, table="image", since=since))

    def _source_row(self, source_id: str) -> tuple[int, Source] | None:
        row = self._execute(SOURCE_CURRENT, (source_id,)).fetchone()
        if row is None or row[1] is not None:
            return None
        since, _, state, state_crc = row
        return since, cast("Source", unpack(state, state_crc, table="source", since=since))

    def _apply_image(self, event: Event) -> Image | None:
        row = self._image_row(event.resource_id or "")
        before = None if row is None else row[1]
        after = evolve_image(before, event)
        if row is not None:
            self._execute(IMAGE_CLOSE, (event.position, row[0]))
        if after is not None:
            self._insert_image(after, event.position)
        there = after or before
        if there is None:
            raise AssertionError(f"position {event.position}: an image event without an image")
        if before is None:
            self._execute(LIFE_INSERT, (there["folder_id"], there["id"], event.position))
        elif after is None:
            self._execute(LIFE_CLOSE, (event.position, there["folder_id"], there["id"]))
        if there["family"] and _is_ready(before) != _is_ready(after):
            self._refresh_family(there, event.position)
        return after

    def _insert_image(self, image: Image, since: Position) -> None:
        state = pack(image)
        wire = self._encode(image)
        self._execute(
            IMAGE_INSERT,
            (
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
                wire,
                crc(wire, since),
            ),
        )

    def _refresh_family(self, image: Image, position: Position) -> None:
        family = (image["folder_id"], image["family"])
        ready = self._execute(FAMILY_READY, family).fetchone()
        current = self._execute(FAMILY_CURRENT, family).fetchone()
        latest = None if ready is None else ready[0]
        if current is not None and current[1] is None:
            if current[2] == latest:
                return
            self._execute(FAMILY_CLOSE, (position, *family, current[0]))
        if latest is not None:
            self._execute(FAMILY_INSERT, (*family, position, latest))

    def _apply_source(self, event: Event) -> Source | None:
        row = self._source_row(event.resource_id or "")
        after = evolve_source(None if row is None else row[1], event)
        if row is not None:
            self._execute(SOURCE_CLOSE, (event.position, row[0]))
        if after is not None:
            state = pack(after)
            since = event.position
            self._execute(SOURCE_INSERT, (since, after["id"], after["folder_id"], state, crc(state, since)))
        return after

    def _apply_operation(self, event: Event) -> Operation | None:
        if event.operation_id is None:
            return None
        # The event that carries the method is an operation's first: nothing to look up.
        before = self.operation(event.operation_id) if event.method is None else None
        after = evolve_operation(before, event)
        if before is not None:
            self._execute(OPERATION_CLOSE, (event.position, before["last"]))
        state = pack(after)
        self._execute(
            OPERATION_INSERT,
            (
                event.position,
                after["id"],
                after["resource_id"],
                after["first"],
                after["created_by"],
                after["method"],
                after["key"],
                state,
                crc(state, event.position),
            ),
        )
        return after


def _is_ready(image: Image | None) -> bool:
    return image is not None and image["status"] == "READY"


def _operation(row: tuple[int, bytes, int]) -> Operation:
    since, state, state_crc = row
    return cast("Operation", unpack(state, state_crc, table="operation", since=since))


def catch_up(
    projector: Projector,
    log: LogReader,
    *,
    after: int,
    on_progress: Callable[[int], None] = lambda position: None,
) -> int:
    """The position reached: everything in the log after `after` is applied, a transaction for each batch."""
    position = after
    last: Event | None = None
    try:
        for event in log.events(after=after):
            if last is None:
                projector.begin()
            projector.apply(event)
            last, position = event, event.position
            if position % BATCH_EVENTS == 0:
                projector.commit(last=event, leaf=log.leaf(event.position))
                last = None
                on_progress(position)
        if last is not None:
            projector.commit(last=last, leaf=log.leaf(last.position))
            on_progress(position)
    except BaseException:
        projector.rollback()
        raise
    return position
