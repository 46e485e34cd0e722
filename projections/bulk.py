"""A whole projection from a whole log: folded in memory, every row written once, indexes made at the end.

The live projector closes a version with an UPDATE; here a row is held back until its successor says when it
ended. The two are independent ways to the same rows, and their digests are compared at every rebuild.

Folding is half of the work and SQLite's inserts are the other half: of a long log a process of its own does
the first, see `folding.py`.
"""

from __future__ import annotations

import gc
from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple, cast

import msgpack

from eventstore.database import Connection
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
WHOLE_STATE = -3  # Where a sealed one has it.


class Batch(NamedTuple):
    """Rows that the events up to a position, whose time is `at`, have made: a list for each of TABLES, then
    the current versions of images, which have no ready bytes yet."""

    position: int
    at: int
    rows: list[list[Row]]
    current: list[Row]


class Fold:
    """Folds events into rows; `finish` gives what is still current. Memory grows with the images alive."""

    def __init__(self, upcasters: Upcasters = UPCASTERS) -> None:
        self._upcasters = upcasters
        self._images: dict[str, Row] = {}
        self._sources: dict[str, tuple[Row, Source]] = {}
        self._running: dict[str, Operation] = {}
        self._answers: dict[tuple[str, str], Row] = {}
        self._ready: dict[tuple[str, str], list[tuple[int, str]]] = defaultdict(list)
        self._changed: dict[str, int] = {}
        self._out: dict[str, list[Row]] = {sql: [] for sql in TABLES}
        self._current: list[Row] = []
        self._held = 0
        self._position, self._at = 0, 0

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
        self._position, self._at = event.position, event.at

    @property
    def is_full(self) -> bool:
        """Whether it is time to take a batch."""
        return self._held >= ROWS_MAX

    def take(self) -> Batch:
        """The rows that are complete, which it forgets."""
        batch = Batch(self._position, self._at, list(self._out.values()), self._current)
        self._out = {sql: [] for sql in TABLES}
        self._current = []
        self._held = 0
        return batch

    def finish(self) -> Iterator[Batch]:
        """Every row that is current at the end."""
        for row in self._images.values():
            image = cast("Image", msgpack.unpackb(row[STATE]))
            self._current.append(sealed(row))
            self._add(LIFE_INSERT, sealed((image["folder_id"], image["id"], image["born"])))
            self._use(image)
            if self.is_full:
                yield self.take()
        for folder_id, position in self._changed.items():
            self._add(FOLDER_WRITE, folder_row(folder_id, position))
        for operation in self._running.values():
            self._add(OPERATION_INSERT, sealed(operation_row(operation, operation["last"])))
        for row, source in self._sources.values():
            self._add(SOURCE_INSERT, sealed(row))
            self._use(source)
        for answer in self._answers.values():
            self._add(FAMILY_INSERT, sealed(answer))
        yield self.take()

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


def folded(log: LogReader) -> Iterator[Batch]:
    """Batches of all rows that the log's events make. Raises EventUnknown, SchemaTooNew, LogCorrupt."""
    fold = Fold()
    for event in log.events():
        fold.apply(event)
        if fold.is_full:
            yield fold.take()
    yield from fold.finish()


def build_rows(
    connection: Connection,
    log: LogReader,
    batches: Iterable[Batch],
    *,
    encode: Encode,
    encoding: bytes,
    on_progress: Callable[[int], None] = lambda position: None,
) -> None:
    """Every row of the batches, which are those of this log, in tables without indexes."""
    last: Batch | None = None
    with uncollected():
        for last in batches:
            _write(connection, last, encode)
            on_progress(last.position)
        if last is None or not last.position:
            return
        leaf = log.leaf(Position(last.position))
        row = applied_row(log_id=log.log_id, position=last.position, leaf=leaf, at=last.at, encoding=encoding)
        connection.execute(APPLIED_UPDATE, row)


def _write(connection: Connection, batch: Batch, encode: Encode) -> None:
    connection.execute("BEGIN IMMEDIATE")
    for sql, rows in zip(TABLES, batch.rows, strict=True):
        # By key: an insert beside the one before it finds its page without a search.
        rows.sort()
        connection.executemany(sql, rows)
    connection.executemany(IMAGE_INSERT, (_with_wire(row, encode) for row in batch.current))
    connection.execute("COMMIT")


def _with_wire(row: Row, encode: Encode) -> Row:
    image = cast("Image", msgpack.unpackb(row[WHOLE_STATE]))
    wire = encode(image)
    return (*row, wire, wire_crc(wire, since=row[0], image_id=image["id"]))


def fill_listing(connection: Connection) -> None:
    """The ready answers in the order of a plain list, in which an index gives them."""
    connection.execute("BEGIN IMMEDIATE")
    rows = connection.execute(IN_ORDER)
    for folder_id, images in groupby(rows, itemgetter(0)):
        elements = ((image_id, wire) for _, image_id, wire in images)
        connection.executemany(chunks.WRITE, chunks.cut(folder_id, elements))
    connection.execute("COMMIT")


@contextmanager
def uncollected() -> Iterator[None]:
    """No cycle is made here, and looking for some among millions of rows takes a third of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
