"""Every question the read models answer: now, or as of a position. One connection, one thread at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

from eventstore.database import Connection

from .domain.command import Image, Operation, Source
from .domain.refusals import NotFound
from .filters import Condition, Order, TextField, equality, to_sql
from .pages import Page, PageTokenInvalid
from .rows import Encode, OperationView, RowDamaged, checked, first_wrong, left_by, unpack

PAGE_BYTES_MAX = 3_670_016  # 3.5 MiB: clients refuse answers over 4 MiB.
POSITION_DIGITS_MAX = 18  # SQLite's integers end at 19.

APPLIED = "SELECT log_id, position, at FROM applied"

# The applied position comes from the same snapshot as the answer.
GET = """
SELECT since, until, wire, wire_crc, (SELECT position FROM applied)
FROM image
WHERE id = ?
ORDER BY since DESC
LIMIT 1
"""
GET_AS_OF = """
SELECT v.since, v.until, v.state, v.state_crc
FROM image AS v
WHERE v.since = (SELECT max(since) FROM image WHERE id = :id AND since <= :at)
"""
LATEST = """
SELECT v.since, v.until, v.wire, v.wire_crc, (SELECT position FROM applied)
FROM (
  SELECT image_id, until
  FROM family_latest
  WHERE folder_id = ? AND family = ?
  ORDER BY since DESC
  LIMIT 1
) AS f
CROSS JOIN image AS v
WHERE f.until IS NULL AND v.id = f.image_id
ORDER BY v.since DESC
LIMIT 1
"""
LATEST_AS_OF = """
SELECT image_id, until
FROM family_latest
WHERE folder_id = ? AND family = ? AND since <= ?
ORDER BY since DESC
LIMIT 1
"""
# A plain list, as one value: making a thousand rows into objects would cost several times as much.
PAGE = """
SELECT count(*), max(id), CAST(group_concat(wire, '') AS BLOB), CAST(group_concat(tag, '') AS BLOB)
FROM (
  SELECT id, wire, tag
  FROM listing
  WHERE folder_id = ? AND id > ?
  ORDER BY id
  LIMIT ?
)
"""
WRONG = """
SELECT (SELECT max(since) FROM image WHERE image.id = listing.id)
FROM listing
WHERE folder_id = ? AND id > ?
ORDER BY id
LIMIT 1 OFFSET ?
"""
MORE = "SELECT 1 FROM listing WHERE folder_id = ? AND id > ? LIMIT 1"
LIST_COLUMNS = "v.since, v.id, v.wire, v.wire_crc"
LIST = """
SELECT {columns}
FROM image AS v
WHERE v.folder_id = :folder_id AND v.until IS NULL{conditions}
ORDER BY {order}
LIMIT :limit
"""
LIST_AS_OF_COLUMNS = "v.since, v.id, v.state, v.state_crc"
LIST_AS_OF = """
SELECT {columns}
FROM image_life AS l
CROSS JOIN image AS v ON v.since = (SELECT max(since) FROM image WHERE id = l.id AND since <= :at)
WHERE l.folder_id = :folder_id AND l.born <= :at AND (l.died IS NULL OR l.died > :at){conditions}
ORDER BY {order}
LIMIT :limit
"""
OPERATION = """
SELECT since, until, state, state_crc
FROM operation
WHERE id = :id AND since <= :at
ORDER BY since DESC
LIMIT 1
"""
OPERATIONS = """
SELECT since, state, state_crc
FROM operation
WHERE resource_id = :id AND first < :before AND since <= :at AND (until IS NULL OR until > :at)
ORDER BY first DESC
LIMIT :limit
"""
UNFINISHED = """
SELECT since, state, state_crc
FROM image
WHERE until IS NULL AND status = 'CREATING'
ORDER BY since
"""
BLOB_USED = "SELECT 1 FROM blob_use WHERE sha256 = :sha256 LIMIT 1"
BORN = "SELECT min(since) FROM image WHERE id = :id"
SOURCE = """
SELECT since, until, state, state_crc
FROM source
WHERE id = :id AND since <= :at
ORDER BY since DESC
LIMIT 1
"""
SOURCES = """
SELECT since, state, state_crc
FROM source
WHERE folder_id = :folder_id AND id > :after AND since <= :at AND (until IS NULL OR until > :at)
ORDER BY id
LIMIT :limit
"""


BY_ID = Order("id", False)

# The fields that have a partial index of their own, without rows where they are empty.
PINNED: tuple[TextField, ...] = ("name", "family")


class Answer(NamedTuple):
    """Ready bytes, and the position they were read at."""

    wire: bytes
    position: int


class Listing(NamedTuple):
    """One page: its images' ready bytes one after the other, the next page if any, and the position."""

    wire: bytes
    next_page: Page | None
    position: int


class Queries:
    """Reads of one projection file. `at` None asks for now, else for the state as of that position."""

    def __init__(self, connection: Connection, *, encode: Encode) -> None:
        self._connection = connection
        self._execute = connection.execute
        self._encode = encode

    def close(self) -> None:
        self._connection.close()

    def interrupt(self) -> None:
        """End the query that another thread runs on this connection."""
        self._connection.interrupt()

    def applied(self) -> tuple[str, int, int]:
        """The log's id, the applied position, and that event's time in nanoseconds."""
        return cast("tuple[str, int, int]", self._execute(APPLIED).fetchone())

    def image(self, image_id: str, *, at: int | None = None) -> Answer:
        """The image's ready bytes. Raises NotFound, RowDamaged."""
        if at is not None:
            return Answer(self._encode(self.image_state(image_id, at=at)), at)
        row = self._execute(GET, (image_id,)).fetchone()
        if row is None or row[1] is not None:
            raise NotFound("Image", image_id)
        since, _, wire, wire_crc, position = row
        return Answer(checked(wire, wire_crc, table="image", since=since), position)

    def image_state(self, image_id: str, *, at: int) -> Image:
        """The image as of a position. Raises NotFound, RowDamaged."""
        row = self._execute(GET_AS_OF, {"id": image_id, "at": at}).fetchone()
        if row is None or _over(row[1], at):
            raise NotFound("Image", image_id)
        return cast("Image", unpack(row[2], row[3], table="image", since=row[0]))

    def latest(self, folder_id: str, family: str, *, at: int | None = None) -> Answer:
        """The ready bytes of a family's latest image. Raises NotFound, quoting the family; RowDamaged."""
        if at is not None:
            row = self._execute(LATEST_AS_OF, (folder_id, family, at)).fetchone()
            if row is None or _over(row[1], at):
                raise NotFound("Image", family)
            return self.image(row[0], at=at)
        row = self._execute(LATEST, (folder_id, family)).fetchone()
        if row is None or row[1] is not None:
            raise NotFound("Image", family)
        since, _, wire, wire_crc, position = row
        return Answer(checked(wire, wire_crc, table="image", since=since), position)

    def images(
        self,
        folder_id: str,
        *,
        limit: int,
        conditions: Sequence[Condition] = (),
        order: Order,
        page: Page | None = None,
        at: int | None = None,
    ) -> Listing:
        """A page of the folder's images, as of `at`, else of the page's position, else of now.

        Raises RowDamaged.
        """
        with _Snapshot(self._connection):
            applied = self.applied()[1]
            position = _position(at=at, page=page, applied=applied)
            if position == applied and not conditions and order == BY_ID:
                plain = self._plain(folder_id, limit=limit, page=page, position=position)
                if plain is not None:
                    return plain
            sql, values = _list_sql(conditions, order, as_of=position != applied)
            values |= {"folder_id": folder_id, "limit": limit + 1, "at": position}
            if page is not None:
                values |= self._resume(page, order, position)
                sql = sql.replace("/* resume */", _resume_sql(order, as_of=position != applied))
            cursor = self._execute(sql, values)
            rows = self._sized(cursor, limit, encode=position != applied)
        return _listing(*rows, position=position)

    def _plain(self, folder_id: str, *, limit: int, page: Page | None, position: int) -> Listing | None:
        """The page of a plain list; None where it would be too large for one answer."""
        after = "" if page is None else page.last_id
        count, last_id, wires, tags = self._execute(PAGE, (folder_id, after, limit)).fetchone()
        if not count:
            return Listing(b"", None, position)
        wrong = first_wrong(wires, tags)
        if wrong is not None:
            raise self._damaged_listing(folder_id, after, wrong)
        if len(wires) > PAGE_BYTES_MAX:
            return None
        more = count == limit and self._execute(MORE, (folder_id, last_id)).fetchone() is not None
        return Listing(wires, Page(position, last_id) if more else None, position)

    def _damaged_listing(self, folder_id: str, after: str, index: int) -> RowDamaged:
        row = self._execute(WRONG, (folder_id, after, index)).fetchone()
        return RowDamaged(table="listing", position=row[0] or 0)

    def _sized(self, cursor: Any, limit: int, *, encode: bool) -> tuple[list[bytes], str, bool]:
        """The wires that fit one answer, the last one's id, and whether more follow."""
        wires: list[bytes] = []
        size = 0
        last_id = ""
        for since, image_id, payload, stored_crc in cursor:
            if encode:
                state = unpack(payload, stored_crc, table="image", since=since)
                payload = self._encode(cast("Image", state))
            else:
                payload = checked(payload, stored_crc, table="image", since=since)
            size += len(payload)
            if len(wires) == limit or (wires and size > PAGE_BYTES_MAX):
                return wires, last_id, True
            wires.append(payload)
            last_id = image_id
        return wires, last_id, False

    def _resume(self, page: Page, order: Order, position: int) -> dict[str, Any]:
        if order.field == "id":
            return {"last_id": page.last_id}
        row = self._execute(GET_AS_OF, {"id": page.last_id, "at": position}).fetchone()
        if row is None:
            raise PageTokenInvalid("its last image is not known here")
        state = unpack(row[2], row[3], table="image", since=row[0])
        return {"last_id": page.last_id, "last_key": state[order.field]}

    def operation(self, operation_id: str, *, at: int | None = None) -> tuple[OperationView, int]:
        """The operation and the position it was read at. Raises NotFound, RowDamaged."""
        with _Snapshot(self._connection):
            position = self.applied()[1] if at is None else at
            row = self._execute(OPERATION, {"id": operation_id, "at": position}).fetchone()
            if row is None:
                raise NotFound("Operation", operation_id)
            return self._view(row[0], row[2], row[3]), position

    def operations(
        self, image_id: str, *, limit: int, page: Page | None = None, at: int | None = None
    ) -> tuple[list[OperationView], int]:
        """An image's operations, newest first: up to limit + 1, so that the caller sees if more follow.

        A page's last_id is the `first` position of its last operation. Raises NotFound for an id never seen.
        """
        with _Snapshot(self._connection):
            position = _position(at=at, page=page, applied=self.applied()[1])
            born = self._execute(BORN, {"id": image_id}).fetchone()[0]
            if born is None or born > position:
                raise NotFound("Image", image_id)
            before = position + 1 if page is None else _first_position(page)
            values = {"id": image_id, "before": before, "at": position, "limit": limit + 1}
            rows = self._execute(OPERATIONS, values).fetchall()
            return [self._view(*row) for row in rows], position

    def unfinished(self) -> list[tuple[Operation, Image]]:
        """Every operation that is still running, oldest first, with the image it makes. Raises RowDamaged."""
        found: list[tuple[Operation, Image]] = []
        for since, state, state_crc in self._execute(UNFINISHED).fetchall():
            image = cast("Image", unpack(state, state_crc, table="image", since=since))
            found.append((self.operation(image["operation_id"])[0].operation, image))
        return found

    def is_blob_used(self, sha256: str) -> bool:
        """Whether a READY image or a registered source refers to the blob."""
        return self._execute(BLOB_USED, {"sha256": sha256}).fetchone() is not None

    def _view(self, since: int, state: bytes, state_crc: int) -> OperationView:
        operation = cast("Operation", unpack(state, state_crc, table="operation", since=since))
        return OperationView(operation, left_by(self._connection, operation))

    def source(self, source_id: str, *, at: int | None = None) -> tuple[Source, int]:
        """The source, and the position it was read at. Raises NotFound, RowDamaged."""
        with _Snapshot(self._connection):
            position = self.applied()[1] if at is None else at
            row = self._execute(SOURCE, {"id": source_id, "at": position}).fetchone()
        if row is None or _over(row[1], position):
            raise NotFound("Source", source_id)
        return cast("Source", unpack(row[2], row[3], table="source", since=row[0])), position

    def sources(
        self, folder_id: str, *, limit: int, page: Page | None = None, at: int | None = None
    ) -> tuple[list[Source], Page | None, int]:
        """A page of the folder's sources by id, the next page, and the position of both."""
        with _Snapshot(self._connection):
            position = _position(at=at, page=page, applied=self.applied()[1])
            values = {
                "folder_id": folder_id,
                "after": "" if page is None else page.last_id,
                "at": position,
                "limit": limit + 1,
            }
            rows = self._execute(SOURCES, values).fetchall()
        found = [
            cast("Source", unpack(state, state_crc, table="source", since=since))
            for since, state, state_crc in rows
        ]
        more = len(found) > limit
        found = found[:limit]
        return found, Page(position, found[-1]["id"]) if more else None, position


class _Snapshot:
    """A read transaction: every question inside it sees one position."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        self._connection.execute("BEGIN")

    def __exit__(self, *_: object) -> None:
        self._connection.execute("COMMIT")


def _over(until: int | None, at: int) -> bool:
    return until is not None and until <= at


def _listing(wires: list[bytes], last_id: str, more: bool, *, position: int) -> Listing:
    return Listing(b"".join(wires), Page(position, last_id) if more else None, position)


def _position(*, at: int | None, page: Page | None, applied: int) -> int:
    """The position a list is answered as of. Raises PageTokenInvalid for a page of a longer log."""
    if at is not None:
        return at
    if page is None:
        return applied
    if page.position > applied:
        raise PageTokenInvalid(f"it is of position {page.position}, and this log ends at {applied}")
    return page.position


def _first_position(page: Page) -> int:
    if not page.last_id.isdecimal() or len(page.last_id) > POSITION_DIGITS_MAX:
        raise PageTokenInvalid("it is not one of this method")
    return int(page.last_id)


def _list_sql(conditions: Sequence[Condition], order: Order, *, as_of: bool) -> tuple[str, dict[str, Any]]:
    where, values = to_sql(conditions, table="v")
    sql = LIST_AS_OF if as_of else LIST
    columns = LIST_AS_OF_COLUMNS if as_of else LIST_COLUMNS
    direction = " DESC" if order.descending else ""
    by = _id_column(as_of=as_of) + direction
    if order.field != "id":
        by = f"v.{order.field}{direction}, {by}"
    # Said again as a constant, since a partial index is used only where its own condition is seen.
    pinned = "".join(f" AND v.{field} != ''" for field in PINNED if not as_of and equality(conditions, field))
    conditions_sql = (f" AND {where}{pinned}" if where else "") + "/* resume */"
    return sql.format(columns=columns, conditions=conditions_sql, order=by), dict(values)


def _resume_sql(order: Order, *, as_of: bool) -> str:
    after = "<" if order.descending else ">"
    column = _id_column(as_of=as_of)
    if order.field == "id":
        return f" AND {column} {after} :last_id"
    return f" AND (v.{order.field}, {column}) {after} (:last_key, :last_id)"


def _id_column(*, as_of: bool) -> str:
    """The id column whose index gives the rows in order."""
    return "l.id" if as_of else "v.id"
