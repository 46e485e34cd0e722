"""Reads a whole projection beside its writer and says all that is wrong with it, in bounded memory.

Every event of the log is held against the rows that it left: of the version before it, as the projection has
that, the next one is made again, and must be what stands there. So each row is right if the one before it is,
and the first have none before them. What is missing or too much is found at its position, and a wrong row is
a finding there. A digest compared with that of a fold would say only that something differs, somewhere.

What is only of the present, and the indexes, is in `audit_tables.py`. No read transaction is open for longer
than a page takes.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, suppress
from typing import Any, Final, NamedTuple

import msgpack

from eventstore import database
from eventstore.audit import OnRead
from eventstore.database import Connection
from eventstore.errors import LogCorrupt, NoSuchPosition
from eventstore.event import Event, Position
from eventstore.finding import Finding
from eventstore.indexes import Index, unreachable
from eventstore.reader import LogReader
from eventstore.upcast import upcast

from . import schema
from .damage import ProjectionDamaged, RowDamaged, is_damage
from .domain.command import Image
from .domain.evolve import IMAGE_EVENTS, SOURCE_EVENTS
from .domain.image import evolve_image
from .domain.operation import evolve_operation
from .domain.source import evolve_source
from .domain.upcasters import UPCASTERS
from .encoding import Encode
from .ready import Change, ReadyFamilies
from .rows import (
    FAMILY,
    FOLDER,
    IMAGE,
    IMAGE_WIDTH,
    LIFE,
    OPERATION,
    SOURCE,
    STATE,
    Row,
    blob_use_row,
    image_row,
    is_whole,
    of,
    operation_row,
    ready,
    source_row,
)
from .snapshot import applied

PROJECTION: Final = "PROJECTION"
REMEDY: Final = "run `imageledger rebuild --online`"

PAGE_EVENTS: Final = 50
ROW_BYTES: Final = 250  # What a row has, about, beside its state, and in the indexes.

INDEXES: Final = tuple(
    Index.parse(statement, key="since") for statement in schema.INDEXES.split(";\n") if statement.strip()
)

UNTIL: Final = -2

_LOWEST: Final = -(2**63)


class _Versions(NamedTuple):
    """A table with one row a version: how its rows are read and made."""

    table: str
    page: str
    before: str
    width: int
    evolve: Callable[[Any, Event], Any]
    row: Callable[[Any, int], Row]


def _before(table: str, columns: str) -> str:
    return f"SELECT {columns} FROM {table} WHERE id = ? AND since < ? ORDER BY since DESC LIMIT 1"


def _page(table: str, columns: str) -> str:
    return f"SELECT {columns} FROM {table} NOT INDEXED WHERE since BETWEEN ? AND ? ORDER BY since"


# An image with what repeats it: its ready bytes, and its entry among the uses of blobs.
_IMAGE_PAGE = f"""
SELECT {of("v", IMAGE)}, v.wire, v.wire_crc, u.crc
FROM image AS v NOT INDEXED
LEFT JOIN blob_use AS u ON v.until IS NULL AND u.sha256 = v.sha256 AND u.id = v.id
WHERE v.since BETWEEN ? AND ?
ORDER BY v.since
"""
_SOURCE_PAGE = f"""
SELECT {of("v", SOURCE)}, u.crc
FROM source AS v NOT INDEXED
LEFT JOIN blob_use AS u ON v.until IS NULL AND u.sha256 = v.sha256 AND u.id = v.id
WHERE v.since BETWEEN ? AND ?
ORDER BY v.since
"""
IMAGES: Final = _Versions("image", _IMAGE_PAGE, _before("image", IMAGE), IMAGE_WIDTH, evolve_image, image_row)
SOURCES: Final = _Versions(
    "source", _SOURCE_PAGE, _before("source", SOURCE), SOURCE.count(",") + 1, evolve_source, source_row
)
OPERATIONS: Final = _Versions(
    "operation",
    _page("operation", OPERATION),
    _before("operation", OPERATION),
    OPERATION.count(",") + 1,
    evolve_operation,
    operation_row,
)
TABLES: Final = (IMAGES, SOURCES, OPERATIONS)

_LIFE = f"SELECT {LIFE} FROM image_life WHERE folder_id = ? AND id = ?"
_FOLDER = f"SELECT {FOLDER} FROM folder WHERE folder_id = ?"
_ANSWERS = f"""
SELECT {FAMILY}
FROM family_latest
WHERE folder_id = ? AND family = ? AND since <= ?
ORDER BY since DESC
LIMIT 2
"""

Findings = Iterator[Finding]


def finding(position: int | None, message: str) -> Finding:
    return Finding(PROJECTION, position, message, REMEDY)


def damage(error: Exception) -> str:
    """What an error of reading says of damage; the error itself is raised if it says nothing of that."""
    if isinstance(error, ProjectionDamaged) or is_damage(error):
        return str(error)
    raise error


class _Page(NamedTuple):
    """Rows of one table by `since`, each of them whole; and where there is something else."""

    rows: dict[int, Row]
    damaged: set[int]


class ProjectionAudit:
    """One pass over a projection that has applied `at`; what is written meanwhile is not its concern."""

    def __init__(self, connection: Connection, log: LogReader, *, encode: Encode) -> None:
        """Raises ProjectionDamaged for a file of another log, or without its applied position; and Error."""
        self.connection = connection
        self.log = log
        self._encode = encode
        self._applied = applied(connection)
        self.at = int(self._applied[1])
        with suppress(LogCorrupt):  # Told of the log.
            if self._applied[0] != log.log_id:
                raise ProjectionDamaged(f"it is of log {self._applied[0]}, the log is {log.log_id}")
        # How many answers of families the log made; None where an event or a version could not be read.
        self.answers: int | None = 0
        self._changed: dict[str, int] = {}

    def findings(self, *, on_read: OnRead) -> Findings:
        """What is wrong with the rows that events up to `at` left. `on_read` hears of positions."""
        yield from self._end_of_log_findings()
        with closing(ReadyFamilies()) as families:
            for first in range(1, self.at + 1, PAGE_EVENTS):
                last = min(first + PAGE_EVENTS - 1, self.at)
                size_bytes = yield from self._page_findings(families, first, last)
                on_read(last, size_bytes)

    def _end_of_log_findings(self) -> Findings:
        """Whether the event that was applied last is still the log's."""
        with suppress(LogCorrupt, NoSuchPosition):  # Told of the log.
            if self.at and self.log.leaf(Position(self.at)) != self._applied[2]:
                yield finding(self.at, "the event there is another one than was applied")

    def _page_findings(self, families: ReadyFamilies, first: int, last: int) -> Generator[Finding, None, int]:
        """The events of a page and their rows; gives about how many bytes they took."""
        pages: dict[str, _Page] = {}
        for table in TABLES:
            pages[table.table] = yield from self._read(table, _LOWEST if first == 1 else first, last)
        size_bytes = sum(
            ROW_BYTES + len(row[table.width + STATE])
            for table in TABLES
            for row in pages[table.table].rows.values()
        )
        events = self._events(first, last)
        for position in range(first, last + 1):
            event = events.get(position)
            if event is None:
                # Told of the log. What it made of families is not known here any more.
                self.answers = None
                for page in pages.values():
                    page.rows.pop(position, None)
            else:
                yield from _guarded(position, self._event_findings(event, pages, families))
        for table in TABLES:
            for position in pages[table.table].rows:
                yield finding(position, f"no event made its row of table {table.table}")
        yield from _guarded(last, self._folder_findings())
        yield from self._unreachable(first, last)
        return size_bytes

    def _events(self, first: int, last: int) -> dict[int, Event]:
        """The events of a page that can be read."""
        found: dict[int, Event] = {}
        for position in range(first, last + 1):
            try:
                found[position] = upcast(self.log.event(Position(position)), UPCASTERS)
            except (LogCorrupt, NoSuchPosition):
                continue
        return found

    def _read(self, table: _Versions, first: int, last: int) -> Generator[Finding, None, _Page]:
        page = _Page({}, set())
        try:
            rows = self.connection.execute(table.page, (first, last)).fetchall()
        except (database.Error, UnicodeDecodeError) as error:
            damage(error)
            rows = yield from self._read_singly(table, max(first, 1), last, page)
        for row in rows:
            if is_whole(row[: table.width]):
                page.rows[row[0]] = row
            else:
                page.damaged.add(row[0])
                yield finding(row[0], f"its row of table {table.table} is not what was written")
        return page

    def _read_singly(
        self, table: _Versions, first: int, last: int, page: _Page
    ) -> Generator[Finding, None, list[Row]]:
        rows: list[Row] = []
        for position in range(first, last + 1):
            try:
                rows += self.connection.execute(table.page, (position, position)).fetchall()
            except (database.Error, UnicodeDecodeError) as error:
                page.damaged.add(position)
                yield finding(position, f"table {table.table} cannot be read there: {damage(error)}")
        return rows

    def _event_findings(self, event: Event, pages: Mapping[str, _Page], families: ReadyFamilies) -> Findings:
        if event.type in IMAGE_EVENTS:
            is_first = event.type == "ImageCreationStarted"
            yield from self._image_findings(event, pages["image"], families, is_first=is_first)
        elif event.type in SOURCE_EVENTS:
            is_first = event.type == "SourceRegistered"
            states = yield from self._version(SOURCES, event, event.resource_id, pages["source"], is_first)
            if states is not None and states.row is not None:
                yield from _use_findings(states.row, SOURCES.width, states.after["blob"]["sha256"])
        if event.operation_id is not None:
            page, is_first = pages["operation"], event.method is not None
            yield from self._version(OPERATIONS, event, event.operation_id, page, is_first)

    def _image_findings(
        self, event: Event, page: _Page, families: ReadyFamilies, *, is_first: bool
    ) -> Findings:
        states = yield from self._version(IMAGES, event, event.resource_id, page, is_first)
        if states is None:
            self.answers = None
            return
        before, after, row = states
        there: Image = after or before
        self._changed[there["folder_id"]] = event.position
        if row is not None:
            yield from self._wire_findings(row, after)
        if is_first or after is None:
            yield from self._life_findings(event.position, there, is_over=after is None)
        is_ready = after is not None and after["status"] == "READY"
        was_ready = before is not None and before["status"] == "READY"
        if there["family"] and is_ready is not was_ready and self.answers is not None:
            yield from self._family_findings(event.position, there, families, is_ready=is_ready)

    def _version(
        self, table: _Versions, event: Event, resource_id: str | None, page: _Page, is_first: bool
    ) -> Generator[Finding, None, _States | None]:
        """What the event made of a version, and the row that says so, if that is right.

        None where the version before it cannot be known: that was told at its own position.
        """
        position = event.position
        row = page.rows.pop(position, None)
        before = None
        if not is_first:
            last = self.connection.execute(table.before, (resource_id, position)).fetchone()
            before = None if last is None else _known(table, last)
            if before is None or before["id"] != resource_id:
                return None
            if last[UNTIL] != position:
                yield finding(position, f"table {table.table} has the version before it end at {last[UNTIL]}")
        after = table.evolve(before, event)
        fault = _row_fault(table, row, after, position)
        if fault is None:
            if row is not None:
                yield from self._end_findings(table, row, resource_id)
            return _States(before, after, row)
        if position not in page.damaged:
            yield finding(position, fault)
        return _States(before, after, None)

    def _end_findings(self, table: _Versions, row: Row, resource_id: str | None) -> Findings:
        """A version ends with an event of the same resource, or operation."""
        position, until = row[0], row[table.width + UNTIL]
        if until is None or until > self.at:
            return
        try:
            event = self.log.event(Position(until))
            ender = event.operation_id if table is OPERATIONS else event.resource_id
        except LogCorrupt:
            return  # Told of the log.
        except NoSuchPosition:
            ender = None
        if ender != resource_id or until <= position:
            yield finding(position, f"its row of table {table.table} ends at {until}, which is another event")

    def _wire_findings(self, row: Row, image: Image) -> Findings:
        wire, wire_crc, _ = row[IMAGE_WIDTH:]
        if row[IMAGE_WIDTH + UNTIL] is not None:
            if wire is not None:
                yield finding(row[0], "a version that is over has a ready answer")
            return
        try:
            ready(wire, wire_crc, since=row[0], image_id=image["id"])
        except RowDamaged:
            yield finding(row[0], "its ready answer is not what was written")
            return
        if wire != self._encode(image):
            yield finding(row[0], "its ready answer says something else than its version")
        yield from _use_findings(row, IMAGES.width, image["blob"].get("sha256", ""))

    def _life_findings(self, position: int, image: Image, *, is_over: bool) -> Findings:
        life = self.connection.execute(_LIFE, (image["folder_id"], image["id"])).fetchone()
        if life is None:
            yield finding(position, "its image has no row of table image_life")
        elif not is_whole(life):
            yield finding(position, "its image's row of table image_life is not what was written")
        elif life[2] != image["born"] or (is_over and life[3] != position):
            yield finding(position, f"table image_life has its image live from {life[2]} to {life[3]}")

    def _family_findings(
        self, position: int, image: Image, families: ReadyFamilies, *, is_ready: bool
    ) -> Findings:
        """A family resolves to its READY image that was born last."""
        change = families.change(image, is_ready=is_ready)
        is_new = change.before != change.after
        if is_new and change.after is not None and self.answers is not None:
            self.answers += 1
        key = image["folder_id"], image["family"]
        rows = self.connection.execute(_ANSWERS, (*key, position)).fetchall()
        if not all(map(is_whole, rows)):
            yield finding(position, f"a row of table family_latest of {key[1]} is not what was written")
        elif not _is_answered(rows, change, position):
            resolves = f"family {key[1]} resolves to {change.after or 'nothing'} from there on"
            yield finding(position, f"table family_latest does not say that {resolves}")

    def _folder_findings(self) -> Findings:
        """What a folder says of its last change is at or after the events that were read."""
        changed, self._changed = self._changed, {}
        for folder_id, position in changed.items():
            row = self.connection.execute(_FOLDER, (folder_id,)).fetchone()
            if row is None or not is_whole(row) or row[1] < position:
                yield finding(position, f"table folder does not say that folder {folder_id} changed there")

    def _unreachable(self, first: int, last: int) -> Findings:
        for index in INDEXES:
            try:
                positions = unreachable(self.connection, index, first=first, last=last)
            except (database.Error, UnicodeDecodeError) as error:
                yield finding(first, f"{index.name} cannot be read up to position {last}: {damage(error)}")
                continue
            for position in positions:
                yield finding(position, f"{index.name} does not lead to its row of table {index.table}")


class _States(NamedTuple):
    """Before and after an event; and the row of the second, with what stands beside it, if it is right."""

    before: Any
    after: Any
    row: Row | None


def _known(table: _Versions, row: Row) -> Any:
    """The state in a row, None where the row is not what was written of it."""
    try:
        state = msgpack.unpackb(row[STATE]) if is_whole(row) else None
        return state if state is not None and row[:UNTIL] == table.row(state, row[0]) else None
    except (ValueError, TypeError, KeyError, AttributeError, msgpack.UnpackException):
        return None


def _row_fault(table: _Versions, row: Row | None, after: Any, position: int) -> str | None:
    if row is None:
        return None if after is None else f"its row of table {table.table} is missing"
    if after is None:
        return f"it ends what its row of table {table.table} goes on with"
    if row[: table.width + UNTIL] != table.row(after, position):
        return f"its row of table {table.table} says something else than the event"
    return None


def _use_findings(row: Row, width: int, sha256: str) -> Findings:
    """What is current and has a blob is among the uses of that blob."""
    is_current = row[width + UNTIL] is None
    if is_current and sha256 and row[-1] != blob_use_row(sha256, row[1])[2]:
        yield finding(row[0], f"table blob_use does not say that {row[1]} uses blob {sha256}")


def _is_answered(rows: list[Row], change: Change, position: int) -> bool:
    """Whether the last two rows of a family up to a position, newest first, say from what to what."""
    newest, last = (*rows, None, None)[:2]
    if change.after is not None:
        if newest is None or newest[3] != change.after:
            return False
        if newest[UNTIL] is not None and newest[UNTIL] <= position:
            return False
        if change.after == change.before:
            return bool(newest[2] < position)
        if newest[2] != position:
            return False
        newest = last
    if change.before is None:
        return newest is None or newest[UNTIL] is not None
    return newest is not None and newest[3] == change.before and newest[UNTIL] == position


def _guarded(position: int, findings: Findings) -> Findings:
    """The same findings; an error of a damaged file is one, too."""
    try:
        yield from findings
    except (database.Error, UnicodeDecodeError, ProjectionDamaged) as error:
        yield finding(position, damage(error))
