"""The rows of an export as of a position, and the digest over all of them.

The rows come from the projection's versions where it has come that far, else from the log folded in memory,
which holds the whole state at that position there. Both give the same rows.

What a row leaves out: empty text, maps and lists, and numbers that are 0, as an image's sizes are while it
is created. Booleans and times are always there. `os` is its type alone. A time is an integer of nanoseconds
since the epoch here, as the digest takes it, and RFC 3339 text in a file: see `in_text`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import msgpack

from eventstore.database import Connection
from eventstore.event import Event, Value, canonical
from eventstore.reader import LogReader
from eventstore.upcast import upcast

from .changes import IMAGE_FIELDS
from .domain.command import Image, Operation
from .domain.evolve import IMAGE_EVENTS, Change, MemoryState
from .domain.operation import DESCRIPTIONS, IMAGE_SERVICE
from .domain.upcasters import UPCASTERS
from .moments import NANOSECONDS, format_time
from .rows import FAMILY, IMAGE, OPERATION, RowDamaged, check, of, unpack

Row: TypeAlias = dict[str, Value]

TIMES = ("created_at", "modified_at")
PAGE_ROWS = 1000

# The newest version of each id at or before the position, page by page in the order of the ids.
IMAGES = f"""
SELECT newest.id, {of("v", IMAGE)}
FROM (
  SELECT id, max(since) AS since
  FROM image
  WHERE id > :after AND since <= :at
  GROUP BY id
  ORDER BY id
  LIMIT :limit
) AS newest
CROSS JOIN image AS v ON v.since = newest.since
ORDER BY newest.id
"""
OPERATIONS = f"""
SELECT newest.id, {of("v", OPERATION)}
FROM (
  SELECT id, max(since) AS since
  FROM operation
  WHERE id > :after AND since <= :at
  GROUP BY id
  ORDER BY id
  LIMIT :limit
) AS newest
CROSS JOIN operation AS v ON v.since = newest.since
ORDER BY newest.id
"""
# The event at `since` is of the operation that has a version there.
FAMILIES = f"""
SELECT o.id, {of("f", FAMILY)}
FROM family_latest AS f
LEFT JOIN operation AS o ON o.since = f.since
WHERE (f.folder_id, f.family) > (:folder_id, :family)
  AND f.since <= :at AND (f.until IS NULL OR f.until > :at)
ORDER BY f.folder_id, f.family
LIMIT :limit
"""


@dataclass(frozen=True, slots=True)
class Rows:
    """Every row there is as of one position, of all folders. Each call reads them anew, in their order.

    images and operations by id, families by folder_id and family; all by UTF-8 bytes.
    """

    images: Callable[[], Iterator[Row]]
    families: Callable[[], Iterator[Row]]
    operations: Callable[[], Iterator[Row]]


def state_digest(rows: Rows) -> str:
    """SHA-256 over the canonical msgpack of [kind, row], one after the other, in lower-case hex."""
    hashed = hashlib.sha256()
    for kind, some in (("image", rows.images), ("family", rows.families), ("operation", rows.operations)):
        for row in some():
            hashed.update(msgpack.packb([kind, canonical(row)]))
    return hashed.hexdigest()


def in_text(row: Row) -> Row:
    """The row as a file has it: times in RFC 3339 with nine digits."""
    texts = {name: format_time(at) for name in TIMES if isinstance(at := row.get(name), int)}
    return {**row, **texts}


def image_row(image: Image) -> Row:
    columns: dict[str, Any] = {
        **image,
        "created_at": image["created_at"] * NANOSECONDS,
        "os": image["os"]["type"],
    }
    return _filled({name: columns[name] for name in IMAGE_FIELDS})


def family_row(*, folder_id: str, family: str, image_id: str, since: int, operation_id: str) -> Row:
    """What a family resolves to, and since which position."""
    return {
        "folder_id": folder_id,
        "family": family,
        "image_id": image_id,
        "since": since,
        "operation_id": operation_id,
    }


def operation_row(operation: Operation) -> Row:
    """An operation. That of a source has no image_id; `error` is the map that its event holds."""
    of_image = operation["method"].startswith(f"{IMAGE_SERVICE}/")
    return _filled(
        {
            "id": operation["id"],
            "image_id": operation["resource_id"] if of_image else "",
            "description": DESCRIPTIONS[operation["method"]],
            "created_at": operation["created_at"],
            "created_by": operation["created_by"],
            "modified_at": operation["modified_at"],
            "done": operation["done"],
            "error": operation["error"],
        }
    )


def _filled(columns: Row) -> Row:
    return {name: value for name, value in columns.items() if value or type(value) is bool or name in TIMES}


def rows_of_projection(connection: Connection, *, at: int) -> Rows:
    """The rows as of a position that the projection has applied, also while a server writes it.

    Each page is read in a transaction of its own: what was so as of a position never changes.
    Raises RowDamaged while they are read, database.Error.
    """
    return Rows(
        images=lambda: _images(connection, at),
        families=lambda: _families(connection, at),
        operations=lambda: _operations(connection, at),
    )


def _images(connection: Connection, at: int) -> Iterator[Row]:
    for _, *row in _by_id(connection, IMAGES, at):
        image, until = unpack(tuple(row), table="image"), row[-2]
        if until is None or until > at:
            yield image_row(cast("Image", image))


def _operations(connection: Connection, at: int) -> Iterator[Row]:
    for _, *row in _by_id(connection, OPERATIONS, at):
        yield operation_row(cast("Operation", unpack(tuple(row), table="operation")))


def _by_id(connection: Connection, sql: str, at: int) -> Iterator[tuple[Any, ...]]:
    after = ""
    while page := connection.execute(sql, {"after": after, "at": at, "limit": PAGE_ROWS}).fetchall():
        yield from page
        after = page[-1][0]


def _families(connection: Connection, at: int) -> Iterator[Row]:
    last = {"folder_id": "", "family": ""}
    while page := connection.execute(FAMILIES, {**last, "at": at, "limit": PAGE_ROWS}).fetchall():
        for operation_id, *row in page:
            folder_id, family, since, image_id, _, _ = row
            check(tuple(row), table="family_latest", position=since)
            if operation_id is None:
                raise RowDamaged(table="family_latest", position=since)
            yield family_row(
                folder_id=folder_id,
                family=family,
                image_id=image_id,
                since=since,
                operation_id=operation_id,
            )
        last = {"folder_id": folder_id, "family": family}


def rows_of_log(log: LogReader, *, at: int) -> Rows:
    """The rows as of a position, folded from the log. Raises EventUnknown, SchemaTooNew, LogCorrupt."""
    state = MemoryState()
    families = _Families()
    # There are as many operations as there were writes: those that have ended are kept packed.
    done: dict[str, bytes] = {}
    for stored in log.events(until=at):
        event = upcast(stored, UPCASTERS)
        change = state.apply(event)
        if event.type in IMAGE_EVENTS:
            families.apply(event, change)
        operation = None if event.operation_id is None else state.operation(event.operation_id)
        if operation is not None and operation["done"]:
            done[operation["id"]] = msgpack.packb(operation_row(operation))
            state.forget(operation["id"])
    running = {one["id"]: msgpack.packb(operation_row(one)) for one in state.operations.values()}
    return Rows(
        images=lambda: (image_row(image) for _, image in sorted(state.images.items())),
        families=lambda: (row for _, row in sorted(families.latest.items())),
        operations=lambda: (msgpack.unpackb(row) for _, row in sorted((done | running).items())),
    )


class _Families:
    """What every family resolves to: of its READY images the one whose creation started last."""

    def __init__(self) -> None:
        self.latest: dict[tuple[str, str], Row] = {}
        self._ready: dict[tuple[str, str], dict[str, int]] = {}

    def apply(self, event: Event, change: Change) -> None:
        before, after = cast("Image | None", change.before), cast("Image | None", change.after)
        image = after or before
        was, is_now = (side is not None and side["status"] == "READY" for side in (before, after))
        if image is None or not image["family"] or was == is_now:
            return
        family = (image["folder_id"], image["family"])
        ready = self._ready.setdefault(family, {})
        if is_now:
            ready[image["id"]] = image["born"]
        else:
            del ready[image["id"]]
        self._resolve(family, ready, event)
        if not ready:
            del self._ready[family]

    def _resolve(self, family: tuple[str, str], ready: dict[str, int], event: Event) -> None:
        latest = max(ready, key=ready.__getitem__, default=None)
        current = self.latest.get(family)
        if latest is None:
            self.latest.pop(family, None)
        elif current is None or current["image_id"] != latest:
            self.latest[family] = family_row(
                folder_id=family[0],
                family=family[1],
                image_id=latest,
                since=event.position,
                operation_id=event.operation_id or "",
            )
