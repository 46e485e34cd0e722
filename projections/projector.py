"""Applies events to a projection: rows and applied position in one transaction."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import NamedTuple, cast

from eventstore import database
from eventstore.database import Connection
from eventstore.errors import SchemaTooNew
from eventstore.event import Event, Position
from eventstore.reader import LogReader
from eventstore.upcast import Upcasters, upcast

from . import chunks
from .domain.command import Image, Operation, Source
from .domain.evolve import IMAGE_EVENTS, LOG_EVENTS, SOURCE_EVENTS, EventUnknown
from .domain.image import evolve_image
from .domain.operation import evolve_operation
from .domain.source import evolve_source
from .domain.upcasters import UPCASTERS
from .encoding import Encode
from .rows import (
    APPLIED_ROW,
    APPLIED_UPDATE,
    BLOB_USE_INSERT,
    FAMILY,
    FAMILY_INSERT,
    FOLDER_WRITE,
    IMAGE,
    IMAGE_INSERT,
    LIFE_INSERT,
    OPERATION,
    OPERATION_INSERT,
    SOURCE,
    SOURCE_INSERT,
    OperationView,
    Row,
    RowDamaged,
    applied_row,
    blob_use_row,
    check,
    ended,
    expect,
    folder_row,
    image_row,
    left_by,
    operation_row,
    sealed,
    source_row,
    unpack,
    wire_crc,
)

BATCH_EVENTS = 1000

IMAGE_CURRENT = f"""
SELECT {IMAGE}
FROM image
WHERE id = ?
ORDER BY since DESC
LIMIT 1
"""
IMAGE_NAMED = f"""
SELECT {IMAGE}
FROM image
WHERE folder_id = ? AND name = ? AND name != '' AND until IS NULL
"""
IMAGE_CLOSE = "UPDATE image SET until = ?, crc = ?, wire = NULL, wire_crc = NULL WHERE since = ?"
LIFE_CLOSE = "UPDATE image_life SET died = ?, crc = ? WHERE folder_id = ? AND id = ?"
FAMILY_READY = f"""
SELECT {IMAGE}
FROM image
WHERE folder_id = ? AND family = ? AND family != '' AND until IS NULL AND status = 'READY'
ORDER BY born DESC
LIMIT 1
"""
FAMILY_CURRENT = f"""
SELECT {FAMILY}
FROM family_latest
WHERE folder_id = ? AND family = ?
ORDER BY since DESC
LIMIT 1
"""
FAMILY_CLOSE = "UPDATE family_latest SET until = ?, crc = ? WHERE folder_id = ? AND family = ? AND since = ?"
OPERATION_CURRENT = f"""
SELECT {OPERATION}
FROM operation
WHERE id = ?
ORDER BY since DESC
LIMIT 1
"""
OPERATION_KEYED = f"""
SELECT {OPERATION}
FROM operation
WHERE key = ? AND key != '' AND actor = ? AND method = ?
ORDER BY first DESC, since DESC
LIMIT 1
"""
OPERATION_CLOSE = "UPDATE operation SET until = ?, crc = ? WHERE since = ?"
SOURCE_CURRENT = f"""
SELECT {SOURCE}
FROM source
WHERE id = ?
ORDER BY since DESC
LIMIT 1
"""
SOURCE_CLOSE = "UPDATE source SET until = ?, crc = ? WHERE since = ?"
BLOB_USE_DELETE = "DELETE FROM blob_use WHERE sha256 = ? AND id = ?"
UNTIL, CRC = -2, -1  # Where a row ends.


class _Image(NamedTuple):
    """A current version: its position, what it says, and its row's CRC."""

    since: int
    image: Image
    crc: int


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
        # The log's id and how its ready bytes are encoded: as they are written again with every position.
        self._identity: tuple[str, bytes] | None = None
        # The current versions that this transaction has read or made, and the folders that it has changed.
        self._images: dict[str, _Image | None] = {}
        self._changed: dict[str, int] = {}
        # Ready answers that `commit` writes into the chunks of their folders, each chunk once.
        self._listed: defaultdict[str, dict[str, bytes | None]] = defaultdict(dict)

    def begin(self) -> None:
        """Raises RowDamaged where the file does not say whole how far it has come."""
        self._forget()
        if self._identity is None:
            row = self._execute(APPLIED_ROW).fetchone()
            if row is None:
                raise RowDamaged(table="applied", position=0)
            check(row, table="applied", position=row[1])
            self._identity = row[0], row[5]
        self._execute("BEGIN IMMEDIATE")

    def commit(self, *, last: Event, leaf: bytes) -> None:
        """Make the rows visible; not fsynced, since the log can bring them back."""
        if self._identity is None:
            raise AssertionError("commit without begin")
        for folder_id, position in self._changed.items():
            self._execute(FOLDER_WRITE, folder_row(folder_id, position))
        for folder_id, wires in self._listed.items():
            chunks.change(self._connection, folder_id, wires)
        log_id, encoding = self._identity
        row = applied_row(log_id=log_id, position=last.position, leaf=leaf, at=last.at, encoding=encoding)
        self._execute(APPLIED_UPDATE, row)
        self._execute("COMMIT")

    def rollback(self) -> None:
        """Leave nothing of the transaction. Never raises: its caller already has an error to report."""
        self._forget()
        database.roll_back(self._connection)

    def close(self) -> None:
        """End the use of this object; a second time does nothing."""
        if not self._closed:
            self._closed = True
            self.rollback()
            self._connection.close()

    def _forget(self) -> None:
        self._images.clear()
        self._changed.clear()
        self._listed.clear()

    # What `decide` may ask: the State protocol, read through this transaction.

    def image(self, image_id: str) -> Image | None:
        row = self._image_row(image_id)
        return None if row is None else row.image

    def image_named(self, *, folder_id: str, name: str) -> str | None:
        row = self._execute(IMAGE_NAMED, (folder_id, name)).fetchone()
        if row is None:
            return None
        image = cast("Image", unpack(row, table="image"))
        is_it = (image["folder_id"], image["name"], row[UNTIL]) == (folder_id, name, None)
        expect(is_it, table="image", position=row[0])
        return image["id"]

    def source(self, source_id: str) -> Source | None:
        row = self._source_row(source_id)
        return None if row is None else row[1]

    def operation(self, operation_id: str) -> Operation | None:
        row = self._execute(OPERATION_CURRENT, (operation_id,)).fetchone()
        return None if row is None else _operation(row, operation_id)

    def operation_keyed(self, *, actor: str, method: str, key: str) -> Operation | None:
        row = self._execute(OPERATION_KEYED, (key, actor, method)).fetchone()
        if row is None:
            return None
        operation = _operation(row, row[1])
        found = operation["created_by"], operation["method"], operation["key"]
        expect(found == (actor, method, key), table="operation", position=row[0])
        return operation

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

    def _image_row(self, image_id: str) -> _Image | None:
        """The current version. `decide` and `apply` ask for the same one, so it is kept."""
        if image_id in self._images:
            return self._images[image_id]
        row = self._execute(IMAGE_CURRENT, (image_id,)).fetchone()
        found = None
        if row is not None:
            image = cast("Image", unpack(row, table="image"))
            expect(image["id"] == image_id, table="image", position=row[0])
            found = _Image(row[0], image, row[CRC]) if row[UNTIL] is None else None
        self._images[image_id] = found
        return found

    def _source_row(self, source_id: str) -> tuple[int, Source, int] | None:
        """The current version: its position, what it says, and its row's CRC."""
        row = self._execute(SOURCE_CURRENT, (source_id,)).fetchone()
        if row is None:
            return None
        source = cast("Source", unpack(row, table="source"))
        expect(source["id"] == source_id, table="source", position=row[0])
        return (row[0], source, row[CRC]) if row[UNTIL] is None else None

    def _apply_image(self, event: Event) -> tuple[Image | None, bytes | None, str | None]:
        image_id, position = event.resource_id or "", event.position
        row = self._image_row(image_id)
        before = None if row is None else row.image
        after = evolve_image(before, event)
        there = after or before
        if there is None:
            raise AssertionError(f"position {position}: an image event without an image")
        folder_id = there["folder_id"]
        self._changed[folder_id] = position
        wire = None
        if row is not None:
            self._execute(IMAGE_CLOSE, (position, ended(row.crc, position), row.since))
        if after is None:
            self._images[image_id] = None
            self._listed[folder_id][image_id] = None
        else:
            wire = self._encode(after)
            version = sealed(image_row(after, position))
            self._images[image_id] = _Image(position, after, version[CRC])
            self._execute(IMAGE_INSERT, (*version, wire, wire_crc(wire, since=position, image_id=image_id)))
            self._listed[folder_id][image_id] = wire
        if before is None:
            self._execute(LIFE_INSERT, sealed((folder_id, image_id, position)))
        elif after is None:
            life = sealed((folder_id, image_id, before["born"]), until=position)
            self._execute(LIFE_CLOSE, (position, life[CRC], folder_id, image_id))
        if _is_ready(before) == _is_ready(after):
            return after, wire, None
        if there["family"]:
            self._refresh_family(there, position)
        return after, wire, self._refresh_use(there, is_used=after is not None)

    def _refresh_use(self, resource: Image | Source, *, is_used: bool) -> str | None:
        """The blob that the resource gave up, if it did. Others may use it still."""
        sha256 = resource["blob"]["sha256"]
        if is_used:
            self._execute(BLOB_USE_INSERT, blob_use_row(sha256, resource["id"]))
            return None
        self._execute(BLOB_USE_DELETE, (sha256, resource["id"]))
        return sha256

    def _refresh_family(self, image: Image, position: Position) -> None:
        family = (image["folder_id"], image["family"])
        found = self._execute(FAMILY_READY, family).fetchone()
        current: Row | None = self._execute(FAMILY_CURRENT, family).fetchone()
        latest = None
        if found is not None:
            there = cast("Image", unpack(found, table="image"))
            is_it = (there["folder_id"], there["family"], there["status"]) == (*family, "READY")
            expect(is_it and found[UNTIL] is None, table="image", position=found[0])
            latest = there["id"]
        if current is not None:
            check(current, table="family_latest", position=current[2])
            if current[UNTIL] is None:
                if current[3] == latest:
                    return
                crc = ended(current[CRC], position)
                self._execute(FAMILY_CLOSE, (position, crc, *family, current[2]))
        if latest is not None:
            self._execute(FAMILY_INSERT, sealed((*family, position, latest)))

    def _apply_source(self, event: Event) -> tuple[Source | None, None, str | None]:
        row = self._source_row(event.resource_id or "")
        after = evolve_source(None if row is None else row[1], event)
        if after is not None:
            self._execute(SOURCE_INSERT, sealed(source_row(after, event.position)))
            return after, None, self._refresh_use(after, is_used=True)
        if row is None:
            raise AssertionError(f"position {event.position}: a source event without a source")
        since, source, crc = row
        self._execute(SOURCE_CLOSE, (event.position, ended(crc, event.position), since))
        return after, None, self._refresh_use(source, is_used=False)

    def _apply_operation(self, event: Event) -> Operation | None:
        if event.operation_id is None:
            return None
        # The event that carries the method is an operation's first: nothing to look up.
        row = None
        if event.method is None:
            row = self._execute(OPERATION_CURRENT, (event.operation_id,)).fetchone()
        before = None if row is None else _operation(row, event.operation_id)
        after = evolve_operation(before, event)
        if row is not None:
            self._execute(OPERATION_CLOSE, (event.position, ended(row[CRC], event.position), row[0]))
        self._execute(OPERATION_INSERT, sealed(operation_row(after, event.position)))
        return after


def _is_ready(image: Image | None) -> bool:
    return image is not None and image["status"] == "READY"


def _operation(row: Row, operation_id: str) -> Operation:
    """The newest version of an operation. Raises RowDamaged, also where a newer one was not found."""
    operation = cast("Operation", unpack(row, table="operation"))
    expect(operation["id"] == operation_id, table="operation", position=row[0])
    expect(row[UNTIL] is None, table="operation", position=row[UNTIL])
    return operation


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
