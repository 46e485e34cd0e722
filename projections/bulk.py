"""A whole projection from a whole log: folded in memory, every row written once, indexes made at the end.

The live projector closes a version with an UPDATE; here a row is held back until its successor says when it
ended. The two are independent ways to the same rows, and their digests are compared at every rebuild.
"""

from __future__ import annotations

import gc
from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import groupby
from operator import itemgetter
from typing import cast

import msgpack

from eventstore.database import Connection
from eventstore.event import Event
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
    APPLIED_UPDATE,
    BLOB_USE_INSERT,
    FAMILY_INSERT,
    FOLDER_WRITE,
    IMAGE_INSERT,
    LIFE_INSERT,
    OPERATION_INSERT,
    SOURCE_INSERT,
    Row,
    applied_row,
    blob_use_row,
    folder_row,
    image_row,
    operation_row,
    sealed,
    source_row,
    wire_crc,
)

ROWS_MAX = 20_000  # Rows held before they are written: a few tens of megabytes.
PROGRESS_EVENTS = 10_000

IN_ORDER = "SELECT folder_id, id, wire FROM image WHERE until IS NULL ORDER BY folder_id, id"

TABLES = (
    IMAGE_INSERT,
    LIFE_INSERT,
    FOLDER_WRITE,
    FAMILY_INSERT,
    OPERATION_INSERT,
    SOURCE_INSERT,
    BLOB_USE_INSERT,
)
STATE = -1  # Where image_row has the packed state.


class BulkProjector:
    """Folds events into rows; `finish` writes what is still current. Memory grows with the images alive."""

    def __init__(self, connection: Connection, *, encode: Encode, upcasters: Upcasters = UPCASTERS) -> None:
        self._connection = connection
        self._encode = encode
        self._upcasters = upcasters
        self._images: dict[str, Row] = {}
        self._sources: dict[str, tuple[Row, Source]] = {}
        self._running: dict[str, Operation] = {}
        self._answers: dict[tuple[str, str], Row] = {}
        self._ready: dict[tuple[str, str], list[tuple[int, str]]] = defaultdict(list)
        self._changed: dict[str, int] = {}
        self._out: dict[str, list[Row]] = {sql: [] for sql in TABLES}
        self._held = 0

    def apply(self, event: Event) -> None:
        """Fold one event in, in order of position. Raises EventUnknown, SchemaTooNew."""
        event = upcast(event, self._upcasters)
        if event.type in IMAGE_EVENTS:
            self._apply_image(event)
        elif event.type in SOURCE_EVENTS:
            self._apply_source(event)
        elif event.type not in LOG_EVENTS:
            raise EventUnknown(event)
        if event.operation_id is not None:
            self._apply_operation(event, event.operation_id)
        if self._held >= ROWS_MAX:
            self._write()

    def finish(self) -> None:
        """Write every row that is current at the end."""
        for row in self._images.values():
            image = cast("Image", msgpack.unpackb(row[STATE]))
            wire = self._encode(image)
            crc = wire_crc(wire, since=row[0], image_id=image["id"])
            self._add(IMAGE_INSERT, (*sealed(row), wire, crc))
            self._add(LIFE_INSERT, sealed((image["folder_id"], image["id"], image["born"])))
            self._use(image)
            if self._held >= ROWS_MAX:
                self._write()
        for folder_id, position in self._changed.items():
            self._add(FOLDER_WRITE, folder_row(folder_id, position))
        for operation in self._running.values():
            self._add(OPERATION_INSERT, sealed(operation_row(operation, operation["last"])))
        for row, source in self._sources.values():
            self._add(SOURCE_INSERT, sealed(row))
            self._use(source)
        for answer in self._answers.values():
            self._add(FAMILY_INSERT, sealed(answer))
        self._write()

    def _apply_image(self, event: Event) -> None:
        image_id = event.resource_id or ""
        row = self._images.get(image_id)
        before = None if row is None else cast("Image", msgpack.unpackb(row[STATE]))
        after = evolve_image(before, event)
        if row is not None:
            self._add(IMAGE_INSERT, (*sealed(row, until=event.position), None, None))
        if after is None:
            del self._images[image_id]
        else:
            self._images[image_id] = image_row(after, event.position)
        there = after or before
        if there is None:
            raise AssertionError(f"position {event.position}: an image event without an image")
        self._changed[there["folder_id"]] = event.position
        if after is None:
            life = (there["folder_id"], image_id, there["born"])
            self._add(LIFE_INSERT, sealed(life, until=event.position))
        if there["family"]:
            was_ready = before is not None and before["status"] == "READY"
            is_ready = after is not None and after["status"] == "READY"
            if was_ready != is_ready:
                self._refresh_family(there, event.position, is_ready=is_ready)

    def _refresh_family(self, image: Image, position: int, *, is_ready: bool) -> None:
        family = (image["folder_id"], image["family"])
        ready, entry = self._ready[family], (image["born"], image["id"])
        if is_ready:
            insort(ready, entry)
        else:
            del ready[bisect_left(ready, entry)]
        latest = ready[-1][1] if ready else None
        if not ready:
            del self._ready[family]
        answer = self._answers.get(family)
        if answer is not None:
            if answer[3] == latest:
                return
            self._add(FAMILY_INSERT, sealed(answer, until=position))
            del self._answers[family]
        if latest is not None:
            self._answers[family] = (*family, position, latest)

    def _apply_source(self, event: Event) -> None:
        source_id = event.resource_id or ""
        row, before = self._sources.pop(source_id, (None, None))
        after = evolve_source(before, event)
        if row is not None:
            self._add(SOURCE_INSERT, sealed(row, until=event.position))
        if after is not None:
            self._sources[source_id] = (source_row(after, event.position), after)

    def _apply_operation(self, event: Event, operation_id: str) -> None:
        before = self._running.pop(operation_id, None)
        after = evolve_operation(before, event)
        if before is not None:
            row = operation_row(before, before["last"])
            self._add(OPERATION_INSERT, sealed(row, until=event.position))
        if after["done"]:
            self._add(OPERATION_INSERT, sealed(operation_row(after, event.position)))
        else:
            self._running[operation_id] = after

    def _use(self, resource: Image | Source) -> None:
        if resource["blob"]:
            self._add(BLOB_USE_INSERT, blob_use_row(resource["blob"]["sha256"], resource["id"]))

    def _add(self, sql: str, row: Row) -> None:
        self._out[sql].append(row)
        self._held += 1

    def _write(self) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        for sql, rows in self._out.items():
            # By key: an insert beside the one before it finds its page without a search.
            rows.sort()
            self._connection.executemany(sql, rows)
            rows.clear()
        self._connection.execute("COMMIT")
        self._held = 0


def build_rows(
    connection: Connection,
    log: LogReader,
    *,
    encode: Encode,
    encoding: bytes,
    on_progress: Callable[[int], None] = lambda position: None,
) -> None:
    """Every row that the log's events make, in tables without indexes. Raises EventUnknown, LogCorrupt."""
    projector = BulkProjector(connection, encode=encode)
    last: Event | None = None
    with _uncollected():
        for event in log.events():
            projector.apply(event)
            last = event
            if event.position % PROGRESS_EVENTS == 0:
                on_progress(event.position)
        if last is not None:
            projector.finish()
            leaf = log.leaf(last.position)
            row = applied_row(
                log_id=log.log_id, position=last.position, leaf=leaf, at=last.at, encoding=encoding
            )
            connection.execute(APPLIED_UPDATE, row)
            on_progress(last.position)


def fill_listing(connection: Connection) -> None:
    """The ready answers in the order of a plain list, in which an index gives them."""
    connection.execute("BEGIN IMMEDIATE")
    rows = connection.execute(IN_ORDER)
    for folder_id, images in groupby(rows, itemgetter(0)):
        elements = ((image_id, wire) for _, image_id, wire in images)
        connection.executemany(chunks.WRITE, chunks.cut(folder_id, elements))
    connection.execute("COMMIT")


@contextmanager
def _uncollected() -> Iterator[None]:
    """No cycle is made here, and looking for some among millions of rows takes a third of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
