"""Lists of images: plain ones from ready chunks, the others row by row, now or as of a position."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from eventstore.database import Connection

from . import chunks
from .domain.command import Image
from .encoding import Encode
from .filters import Condition, Order, TextField, equality, matches, to_sql
from .pages import Page, PageTokenInvalid
from .rows import (
    FOLDER,
    IMAGE,
    IMAGE_WIDTH,
    LIFE,
    Row,
    check,
    expect,
    of,
    position_crc,
    ready,
    unpack,
)
from .snapshot import held

PAGE_BYTES_MAX = 3_670_016  # 3.5 MiB: clients refuse answers over 4 MiB.

CHANGED = f"SELECT {FOLDER} FROM folder WHERE folder_id = ?"
NAMED = f"""
SELECT
  {of("v", IMAGE)},
  v.wire,
  v.wire_crc,
  (SELECT position FROM applied),
  (SELECT position_crc FROM applied)
FROM image AS v
WHERE v.folder_id = ? AND v.name = ? AND v.name != '' AND v.until IS NULL
"""
LIST = f"""
SELECT {of("v", IMAGE)}, v.wire, v.wire_crc
FROM image AS v
WHERE v.folder_id = :folder_id AND v.until IS NULL{{conditions}}
ORDER BY {{order}}
LIMIT :limit
"""
LIST_AS_OF = f"""
SELECT {of("v", IMAGE)}, {of("l", LIFE)}
FROM image_life AS l
CROSS JOIN image AS v ON v.since = (SELECT max(since) FROM image WHERE id = l.id AND since <= :at)
WHERE l.folder_id = :folder_id AND l.born <= :at AND (l.died IS NULL OR l.died > :at){{conditions}}
ORDER BY {{order}}
LIMIT :limit
"""
LAST = f"""
SELECT {of("v", IMAGE)}
FROM image AS v
WHERE v.since = (SELECT max(since) FROM image WHERE id = :id AND since <= :at)
"""

BY_ID = Order("id", False)

# The fields that have a partial index of their own, without rows where they are empty.
PINNED: tuple[TextField, ...] = ("name", "family")


class Listing(NamedTuple):
    """One page: its images' ready bytes one after the other, the next page if any, and the position."""

    wire: bytes
    next_page: Page | None
    position: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ListQuestion:
    """Which images of a folder: up to `limit` that meet `conditions`, in `order`, from behind `page`."""

    folder_id: str
    limit: int
    conditions: Sequence[Condition]
    order: Order
    page: Page | None


def listing(
    connection: Connection, asked: ListQuestion, *, position: int, applied: int, encode: Encode
) -> Listing:
    """The page as of a position, inside a snapshot. Raises RowDamaged, PageTokenInvalid.

    Where the folder has not changed since that position, its current rows are the answer: a page that follows
    another costs as much as the first one, whatever is written elsewhere.
    """
    is_current = position == applied or _unchanged(connection, asked.folder_id, position)
    if is_current and not asked.conditions and asked.order == BY_ID:
        return _plain(connection, asked, position)
    last = None if asked.page is None else _last(connection, asked.page, asked.order, position)
    sql, values = list_sql(asked.conditions, asked.order, as_of=not is_current, resume=last)
    values |= {"folder_id": asked.folder_id, "limit": asked.limit + 1, "at": position}
    wires: list[bytes] = []
    size, last_id = 0, ""
    with closing(connection.execute(sql, values)) as rows:
        found = _current(rows) if is_current else _past(rows, position, encode)
        for row, wire in _as_asked(found, asked, last):
            size += len(wire)
            if len(wires) == asked.limit or (wires and size > PAGE_BYTES_MAX):
                return Listing(b"".join(wires), Page(position, last_id), position)
            wires.append(wire)
            last_id = row[1]
    return Listing(b"".join(wires), None, position)


def named(connection: Connection, folder_id: str, name: str) -> Listing | None:
    """The list of the one image of this name, now and in one statement; None where there is none.

    Raises RowDamaged.
    """
    columns = connection.execute(NAMED, (folder_id, name)).fetchone()
    if columns is None:
        return None
    row, (wire, wire_crc, position, applied_crc) = columns[:IMAGE_WIDTH], columns[IMAGE_WIDTH:]
    check(row, table="image", position=row[0])
    is_it = (row[2], row[3], row[-2]) == (folder_id, name, None)
    expect(is_it, table="image", position=row[0])
    is_whole = type(position) is int and position_crc(position) == applied_crc
    expect(is_whole, table="applied", position=position)
    return Listing(ready(wire, wire_crc, since=row[0], image_id=row[1]), None, position)


def _unchanged(connection: Connection, folder_id: str, position: int) -> bool:
    """Whether the folder's images are as they were. A folder without a row is not known to be."""
    row = connection.execute(CHANGED, (folder_id,)).fetchone()
    if row is None:
        return False
    check(row, table="folder", position=row[1])
    return bool(row[1] <= position)


def _plain(connection: Connection, asked: ListQuestion, position: int) -> Listing:
    """The page of a plain list."""
    after = "" if asked.page is None else asked.page.last_id
    page = chunks.page(connection, asked.folder_id, after=after, limit=asked.limit, bytes_max=PAGE_BYTES_MAX)
    return Listing(page.wires, Page(position, page.last_id) if page.has_more else None, position)


def _as_asked(
    found: Iterable[tuple[Row, bytes]], asked: ListQuestion, last: dict[str, Any] | None
) -> Iterator[tuple[Row, bytes]]:
    """The same rows, each of them one that was asked for, and in order. Raises RowDamaged.

    SQLite takes an index's word for both, and an entry may have come to lead to another row.
    """
    column = IMAGE.split(", ").index(asked.order.field)
    before = None if last is None else (last.get("last_key", last["last_id"]), last["last_id"])
    for row, wire in found:
        key = (row[column], row[1])
        is_next = before is None or (key < before if asked.order.descending else key > before)
        expect(is_next and row[2] == asked.folder_id, table="image", position=row[0])
        if asked.conditions:
            expect(matches(asked.conditions, _fields(row)), table="image", position=row[0])
        yield row, wire
        before = key


def _fields(row: Row) -> dict[str, Any]:
    _, image_id, _, name, family, status, created_at, *_ = row
    return {"id": image_id, "name": name, "family": family, "status": status, "created_at": created_at}


def _current(rows: Any) -> Iterator[tuple[Row, bytes]]:
    """Current versions and their ready bytes."""
    for columns in rows:
        row, (wire, wire_crc) = columns[:IMAGE_WIDTH], columns[IMAGE_WIDTH:]
        check(row, table="image", position=row[0])
        expect(row[-2] is None, table="image", position=row[0])
        yield row, ready(wire, wire_crc, since=row[0], image_id=row[1])


def _past(rows: Any, at: int, encode: Encode) -> Iterator[tuple[Row, bytes]]:
    """The versions of a position, which are those of images that lived then, and their ready bytes."""
    for columns in rows:
        row, life = columns[:IMAGE_WIDTH], columns[IMAGE_WIDTH:]
        image = cast("Image", unpack(row, table="image"))
        check(life, table="image_life", position=life[2])
        expect(held(row[0], row[-2], at), table="image", position=row[0])
        expect(row[1] == life[1] and held(life[2], life[3], at), table="image_life", position=life[2])
        yield row, encode(image)


def _last(connection: Connection, page: Page, order: Order, position: int) -> dict[str, Any]:
    """Behind what a page goes on, as parameters."""
    if order.field == "id":
        return {"last_id": page.last_id}
    row = connection.execute(LAST, {"id": page.last_id, "at": position}).fetchone()
    if row is None:
        raise PageTokenInvalid("its last image is not known here")
    return {"last_id": page.last_id, "last_key": unpack(row, table="image")[order.field]}


def list_sql(
    conditions: Sequence[Condition], order: Order, *, as_of: bool, resume: dict[str, Any] | None = None
) -> tuple[str, dict[str, Any]]:
    """The statement and its parameters but folder_id, limit and at; `resume` is behind what it goes on."""
    # The id column whose index gives the rows in order.
    by = "l.id" if as_of else "v.id"
    key, last = (
        (by, ":last_id") if order.field == "id" else (f"(v.{order.field}, {by})", "(:last_key, :last_id)")
    )
    terms, values = [], {}
    if conditions:
        term, found = to_sql(conditions, table="v")
        terms, values = [term], dict(found)
    pinned = [] if as_of else [field for field in PINNED if equality(conditions, field)]
    # Said again as a constant, since a partial index is used only where its own condition is seen.
    terms += [f"v.{field} != ''" for field in pinned]
    if resume is not None:
        terms.append(f"{key} {'<' if order.descending else '>'} {last}")
        values |= resume
    direction = " DESC" if order.descending else ""
    # With a sign, the index of the order is none: that of a pinned field has fewer rows.
    sign = "+" if pinned else ""
    columns = [f"{sign}{by}"] if order.field == "id" else [f"{sign}v.{order.field}", f"{sign}{by}"]
    sql = (LIST_AS_OF if as_of else LIST).format(
        conditions="".join(f" AND {term}" for term in terms),
        order=", ".join(f"{column}{direction}" for column in columns),
    )
    return sql, values
