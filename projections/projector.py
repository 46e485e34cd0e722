"""Applies events to a projection: rows and applied position in one transaction."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, cast

from eventstore import database
from eventstore.database import Connection
from eventstore.errors import SchemaTooNew
from eventstore.event import Event, Position
from eventstore.reader import LogReader
from eventstore.upcast import Upcasters, upcast

from .domain.command import Image, Operation, Source
from .domain.evolve import IMAGE_EVENTS, LOG_EVENTS, SOURCE_EVENTS, EventUnknown
from .domain.image import evolve_image
from .domain.operation import evolve_operation
from .domain.source import evolve_source
from .domain.upcasters import UPCASTERS
from .rows import (
    APPLIED_UPDATE,
    BLOB_USE_INSERT,
    FAMILY_INSERT,
    IMAGE_INSERT,
    LIFE_INSERT,
    LISTING_WRITE,
    OPERATION_INSERT,
    SOURCE_INSERT,
    Encode,
    OperationView,
    crc,
    image_row,
    left_by,
    operation_row,
    source_row,
    tag,
    unpack,
)

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
LISTING_DELETE = "DELETE FROM listing WHERE folder_id = ? AND id = ?"
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
SOURCE_CURRENT = """
SELECT since, until, state, state_crc
FROM source
WHERE id = ?
ORDER BY since DESC
LIMIT 1
"""
SOURCE_CLOSE = "UPDATE source SET until = ? WHERE since = ?"
BLOB_USE_DELETE = "DELETE FROM blob_use WHERE sha256 = ? AND id = ?"


class Applied(NamedTuple):
    """What one event left: its operation, the image or source as it is now, and the blob it gave up."""

    operation: Operation | None
    resource: Image | Source | None
    wire: bytes | None
    freed: str | None


class Projector:
    """Owns the writing connection of a projection; one thread uses it.

    Between `begin` and `commit` it sees its own rows: this is the State that `decide` reads.
    """

    def __init__(self, connection: Connection, *, encode: Encode, upcasters: Upcasters = UPCASTERS) -> None:
        self._connection = connection
        self._execute = connection.execute
        self._encode = encode
        self._upcasters = upcasters
        self._closed = False
        # The current versions that this transaction has read or made.
        self._images: dict[str, tuple[int, Image] | None] = {}

    def begin(self) -> None:
        self._images.clear()
        self._execute("BEGIN IMMEDIATE")

    def commit(self, *, last: Event, leaf: bytes) -> None:
        """Make the rows visible; not fsynced, since the log can bring them back."""
        self._execute(APPLIED_UPDATE, (last.position, leaf, last.at))
        self._execute("COMMIT")

    def rollback(self) -> None:
        """Leave nothing of the transaction. Never raises: its caller already has an error to report."""
        self._images.clear()
        database.roll_back(self._connection)

    def close(self) -> None:
        """End the use of this object; a second time does nothing."""
        if not self._closed:
            self._closed = True
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
        left: tuple[Image | Source | None, bytes | None, str | None] = (None, None, None)
        if event.type in IMAGE_EVENTS:
            left = self._apply_image(event)
        elif event.type in SOURCE_EVENTS:
            left = self._apply_source(event)
        elif event.type not in LOG_EVENTS:
            raise EventUnknown(event)
        return Applied(self._apply_operation(event), *left)

    def _image_row(self, image_id: str) -> tuple[int, Image] | None:
        """The current version and its position. `decide` and `apply` ask for the same one, so it is kept."""
        if image_id in self._images:
            return self._images[image_id]
        row = self._execute(IMAGE_CURRENT, (image_id,)).fetchone()
        found = None
        if row is not None and row[1] is None:
            since, _, state, state_crc = row
            found = since, cast("Image", unpack(state, state_crc, table="image", since=since))
        self._images[image_id] = found
        return found

    def _source_row(self, source_id: str) -> tuple[int, Source] | None:
        row = self._execute(SOURCE_CURRENT, (source_id,)).fetchone()
        if row is None or row[1] is not None:
            return None
        since, _, state, state_crc = row
        return since, cast("Source", unpack(state, state_crc, table="source", since=since))

    def _apply_image(self, event: Event) -> tuple[Image | None, bytes | None, str | None]:
        image_id, position = event.resource_id or "", event.position
        row = self._image_row(image_id)
        before = None if row is None else row[1]
        after = evolve_image(before, event)
        wire = None
        if row is not None:
            self._execute(IMAGE_CLOSE, (position, row[0]))
        if after is None:
            self._images[image_id] = None
            self._execute(LISTING_DELETE, (before["folder_id"] if before else "", image_id))
        else:
            self._images[image_id] = position, after
            wire = self._encode(after)
            self._execute(IMAGE_INSERT, (*image_row(after, position), None, wire, crc(wire, position)))
            self._execute(LISTING_WRITE, (after["folder_id"], image_id, wire, tag(wire)))
        there = after or before
        if there is None:
            raise AssertionError(f"position {position}: an image event without an image")
        if before is None:
            self._execute(LIFE_INSERT, (there["folder_id"], image_id, position, None))
        elif after is None:
            self._execute(LIFE_CLOSE, (position, there["folder_id"], image_id))
        if _is_ready(before) == _is_ready(after):
            return after, wire, None
        if there["family"]:
            self._refresh_family(there, position)
        return after, wire, self._refresh_use(there, is_used=after is not None)

    def _refresh_use(self, resource: Image | Source, *, is_used: bool) -> str | None:
        """The blob that the resource gave up, if it did. Others may use it still."""
        sha256 = resource["blob"]["sha256"]
        self._execute(BLOB_USE_INSERT if is_used else BLOB_USE_DELETE, (sha256, resource["id"]))
        return None if is_used else sha256

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
            self._execute(FAMILY_INSERT, (*family, position, latest, None))

    def _apply_source(self, event: Event) -> tuple[Source | None, None, str | None]:
        row = self._source_row(event.resource_id or "")
        after = evolve_source(None if row is None else row[1], event)
        if after is not None:
            self._execute(SOURCE_INSERT, (*source_row(after, event.position), None))
            return after, None, self._refresh_use(after, is_used=True)
        if row is None:
            raise AssertionError(f"position {event.position}: a source event without a source")
        self._execute(SOURCE_CLOSE, (event.position, row[0]))
        return after, None, self._refresh_use(row[1], is_used=False)

    def _apply_operation(self, event: Event) -> Operation | None:
        if event.operation_id is None:
            return None
        # The event that carries the method is an operation's first: nothing to look up.
        before = self.operation(event.operation_id) if event.method is None else None
        after = evolve_operation(before, event)
        if before is not None:
            self._execute(OPERATION_CLOSE, (event.position, before["last"]))
        self._execute(OPERATION_INSERT, (*operation_row(after, event.position), None))
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
    """The position reached: everything in the log after `after` is applied, a transaction for each batch.

    `on_progress` hears of every position that is committed, also where an event stops it: what came before an
    unknown event stays applied. Raises EventUnknown, SchemaTooNew, EventStoreError, Error.
    """
    position = after
    last: Event | None = None

    def commit(event: Event) -> None:
        projector.commit(last=event, leaf=log.leaf(event.position))
        on_progress(event.position)

    try:
        for event in log.events(after=after):
            if last is None:
                projector.begin()
            projector.apply(event)
            last, position = event, event.position
            if position % BATCH_EVENTS == 0:
                commit(event)
                last = None
        if last is not None:
            commit(last)
    except (EventUnknown, SchemaTooNew):
        # Such an event is refused before a row of it is written, so the rows are those up to `last`.
        if last is not None:
            commit(last)
        raise
    finally:
        projector.rollback()
    return position
