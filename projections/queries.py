"""Every question the read models answer: now, or as of a position. One connection, one thread at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast
from zlib import crc32

from eventstore import database
from eventstore.database import Connection

from .damage import damage_told, told
from .domain.command import Image, Operation, Source
from .domain.refusals import NotFound
from .encoding import Encode
from .filters import Condition, Order, equality
from .history import FamilyAnswer, family_answers
from .listing import Listing as Listing
from .listing import ListQuestion, listing, named
from .pages import Page, PageTokenInvalid
from .rows import (
    CRC_MAX,
    FAMILY,
    IMAGE,
    IMAGE_VERSION,
    LIFE,
    OPERATION,
    SOURCE,
    OperationView,
    Row,
    RowDamaged,
    blob_use_row,
    check,
    expect,
    left_by,
    of,
    unpack,
)
from .snapshot import Snapshot, applied, applied_position, asked_position, held, is_over

POSITION_DIGITS_MAX = 18  # SQLite's integers end at 19.

# The applied position comes from the same snapshot as the answer.
GET = """
SELECT
  since,
  until,
  wire,
  wire_crc,
  (SELECT position FROM applied),
  (SELECT position_crc FROM applied)
FROM image
WHERE id = ?
ORDER BY since DESC
LIMIT 1
"""
GET_AS_OF = f"""
SELECT {of("v", IMAGE)}
FROM image AS v
WHERE v.since = (SELECT max(since) FROM image WHERE id = :id AND since <= :at)
"""
LATEST = """
SELECT
  f.since,
  f.image_id,
  f.until,
  f.crc,
  v.since,
  v.until,
  v.wire,
  v.wire_crc,
  (SELECT position FROM applied),
  (SELECT position_crc FROM applied)
FROM (
  SELECT since, image_id, until, crc
  FROM family_latest
  WHERE folder_id = ? AND family = ?
  ORDER BY since DESC
  LIMIT 1
) AS f
LEFT JOIN image AS v ON v.since = (SELECT max(since) FROM image WHERE id = f.image_id)
"""
LATEST_AS_OF = f"""
SELECT {FAMILY}
FROM family_latest
WHERE folder_id = ? AND family = ? AND since <= ?
ORDER BY since DESC
LIMIT 1
"""
LIFE_OF = f"SELECT {LIFE} FROM image_life WHERE folder_id = ? AND id = ?"
OPERATION_AS_OF = f"""
SELECT {OPERATION}
FROM operation
WHERE id = :id AND since <= :at
ORDER BY since DESC
LIMIT 1
"""
OPERATIONS = f"""
SELECT {OPERATION}
FROM operation
WHERE resource_id = :id AND first < :before AND since <= :at AND (until IS NULL OR until > :at)
ORDER BY first DESC
LIMIT :limit
"""
UNFINISHED = f"""
SELECT {IMAGE}
FROM image
WHERE until IS NULL AND status = 'CREATING'
ORDER BY since
"""
# What each of the two says who know it: the table of uses, and the columns of those who use.
BLOB_USES = """
SELECT
  (SELECT id FROM blob_use WHERE sha256 = :sha256 ORDER BY id LIMIT 1),
  (SELECT crc FROM blob_use WHERE sha256 = :sha256 ORDER BY id LIMIT 1),
  coalesce(
    (SELECT since FROM image WHERE sha256 = :sha256 AND sha256 != '' AND until IS NULL LIMIT 1),
    (SELECT since FROM source WHERE sha256 = :sha256 AND until IS NULL LIMIT 1)
  )
"""
BORN = "SELECT min(since) FROM image WHERE id = :id"
SOURCE_AS_OF = f"""
SELECT {SOURCE}
FROM source
WHERE id = :id AND since <= :at
ORDER BY since DESC
LIMIT 1
"""
SOURCES = f"""
SELECT {SOURCE}
FROM source
WHERE folder_id = :folder_id AND id > :after AND until IS NULL
ORDER BY id
LIMIT :limit
"""
SOURCES_AS_OF = f"""
SELECT {SOURCE}
FROM source INDEXED BY source_folder_ever
WHERE folder_id = :folder_id AND id > :after AND since <= :at AND (until IS NULL OR until > :at)
ORDER BY id
LIMIT :limit
"""


class Answer(NamedTuple):
    """Ready bytes, and the position they were read at."""

    wire: bytes
    position: int


class Queries:
    """Reads of one projection file. `at` None asks for now, else for the state as of that position.

    Every question raises ProjectionDamaged for a file that is not what was written, mostly as RowDamaged,
    which names the row. What no row can tell is that another one was not found, because a bit of the index
    key that leads to it has changed: a Get, a page or a family may lack it until the digest of a rebuild, or
    a scrub, notices. That an image or an operation ended is believed only where a second row says so, too.
    """

    def __init__(self, connection: Connection, *, encode: Encode) -> None:
        self._connection = connection
        self._execute = connection.execute
        self._encode = encode

    def close(self) -> None:
        self._connection.close()

    def move_to(self, connection: Connection) -> None:
        """Answer from another file of the same position. Between two questions, in the thread that asks."""
        before, self._connection = self._connection, connection
        self._execute = connection.execute
        before.close()

    def interrupt(self) -> None:
        """End the query that another thread runs on this connection."""
        self._connection.interrupt()

    @damage_told
    def applied(self) -> tuple[str, int, int]:
        """The log's id, the applied position, and that event's time in nanoseconds. Raises RowDamaged."""
        row = applied(self._connection)
        return row[0], row[1], row[3]

    def image(self, image_id: str, *, at: int | None = None) -> Answer:
        """The image's ready bytes. Raises NotFound, RowDamaged."""
        if at is not None:
            return Answer(self._encode(self.image_state(image_id, at=at)), at)
        # Not by the decorator, whose call is a thirtieth of the whole answer.
        try:
            row = self._execute(GET, (image_id,)).fetchone()
        except (database.Error, UnicodeDecodeError) as error:
            raise told(error) from None
        if row is None:
            raise NotFound("Image", image_id)
        since, until, wire, wire_crc, position, crc = row
        if until is not None:
            raise self._gone(image_id, since)
        return _answer(wire, wire_crc, since, image_id, position, crc)

    @damage_told
    def image_state(self, image_id: str, *, at: int) -> Image:
        """The image as of a position. Raises NotFound, RowDamaged."""
        row = self._execute(GET_AS_OF, {"id": image_id, "at": at}).fetchone()
        if row is None:
            raise NotFound("Image", image_id)
        image = cast("Image", unpack(row, table="image"))
        expect(image["id"] == image_id and row[0] <= at, table="image", position=row[0])
        if is_over(row[-2], at):
            raise self._gone(image_id, row[0])
        return image

    @damage_told
    def _gone(self, image_id: str, since: int) -> NotFound:
        """That the image ended with the version at `since`, if its life says so, too. Raises RowDamaged."""
        row = self._execute(IMAGE_VERSION, (since,)).fetchone()
        if row is None:
            raise RowDamaged(table="image", position=since)
        image = unpack(row, table="image")
        life = self._execute(LIFE_OF, (image["folder_id"], image["id"])).fetchone()
        if life is None:
            raise RowDamaged(table="image_life", position=image["born"])
        check(life, table="image_life", position=image["born"])
        if image["id"] != image_id or row[-2] != life[3]:
            raise RowDamaged(table="image", position=row[-2] or since)
        return NotFound("Image", image_id)

    @damage_told
    def latest(self, folder_id: str, family: str, *, at: int | None = None) -> Answer:
        """The ready bytes of a family's latest image. Raises NotFound, quoting the family; RowDamaged."""
        if at is not None:
            row = self._execute(LATEST_AS_OF, (folder_id, family, at)).fetchone()
            if row is None:
                raise NotFound("Image", family)
            check(row, table="family_latest", position=row[2])
            expect(row[2] <= at, table="family_latest", position=row[2])
            if is_over(row[-2], at):
                raise NotFound("Image", family)
            return self._resolved(row[3], since=row[2], at=at)
        row = self._execute(LATEST, (folder_id, family)).fetchone()
        if row is None:
            raise NotFound("Image", family)
        born, image_id, ended, crc, since, until, wire, wire_crc, position, applied_crc = row
        check((folder_id, family, born, image_id, ended, crc), table="family_latest", position=born)
        if ended is not None:
            raise NotFound("Image", family)
        if since is None or until is not None:
            raise RowDamaged(table="image", position=since or born)
        return _answer(wire, wire_crc, since, image_id, position, applied_crc)

    @damage_told
    def family_answers(
        self, folder_id: str, family: str, *, at: int, after: int, limit: int
    ) -> list[FamilyAnswer]:
        """What a family resolved to, as `history.family_answers` has it. Raises RowDamaged."""
        return family_answers(
            self._connection, folder_id=folder_id, family=family, at=at, after=after, limit=limit
        )

    def _resolved(self, image_id: str, *, since: int, at: int) -> Answer:
        """The image that a family resolved to then, which must have been there."""
        try:
            return self.image(image_id, at=at)
        except NotFound:
            raise RowDamaged(table="image", position=since) from None

    @damage_told
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

        Raises RowDamaged, PageTokenInvalid.
        """
        if page is None and at is None and len(conditions) == 1:
            name = equality(conditions, "name")
            found = named(self._connection, folder_id, name) if name else None
            if found is not None:
                return found
        asked = ListQuestion(folder_id=folder_id, limit=limit, conditions=conditions, order=order, page=page)
        with Snapshot(self._connection):
            applied = applied_position(self._connection)
            position = asked_position(at=at, page=page, applied=applied)
            return listing(self._connection, asked, position=position, applied=applied, encode=self._encode)

    @damage_told
    def operation(self, operation_id: str, *, at: int | None = None) -> tuple[OperationView, int]:
        """The operation and the position it was read at. Raises NotFound, RowDamaged."""
        with Snapshot(self._connection):
            position = applied_position(self._connection) if at is None else at
            row = self._execute(OPERATION_AS_OF, {"id": operation_id, "at": position}).fetchone()
            if row is None:
                raise NotFound("Operation", operation_id)
            view = self._view(row)
            # An operation never ends: there is a version behind one that does.
            is_it = view.operation["id"] == operation_id and held(row[0], row[-2], position)
            expect(is_it, table="operation", position=row[0])
            return view, position

    @damage_told
    def operations(
        self, image_id: str, *, limit: int, page: Page | None = None, at: int | None = None
    ) -> tuple[list[OperationView], int]:
        """An image's operations, newest first: up to limit + 1, so that the caller sees if more follow.

        A page's last_id is the `first` position of its last operation. Raises NotFound for an id never seen,
        RowDamaged.
        """
        with Snapshot(self._connection):
            position = asked_position(at=at, page=page, applied=applied_position(self._connection))
            born = self._execute(BORN, {"id": image_id}).fetchone()[0]
            if born is None or born > position:
                raise NotFound("Image", image_id)
            before = position + 1 if page is None else _first_position(page)
            values = {"id": image_id, "before": before, "at": position, "limit": limit + 1}
            views = []
            for row in self._execute(OPERATIONS, values).fetchall():
                view = self._view(row)
                first = view.operation["first"]
                is_next = view.operation["resource_id"] == image_id and first < before
                expect(is_next and held(row[0], row[-2], position), table="operation", position=row[0])
                views.append(view)
                before = first
            return views, position

    @damage_told
    def unfinished(self) -> list[tuple[Operation, Image]]:
        """Every operation that is still running, oldest first, with the image it makes. Raises RowDamaged."""
        found: list[tuple[Operation, Image]] = []
        for row in self._execute(UNFINISHED).fetchall():
            image = cast("Image", unpack(row, table="image"))
            is_running = row[-2] is None and image["status"] == "CREATING"
            is_next = not found or found[-1][1]["born"] < image["born"]
            expect(is_running and is_next, table="image", position=row[0])
            try:
                found.append((self.operation(image["operation_id"])[0].operation, image))
            except NotFound:
                raise RowDamaged(table="operation", position=row[0]) from None
        return found

    @damage_told
    def is_blob_used(self, sha256: str) -> bool:
        """Whether a READY image or a registered source refers to the blob.

        No damage to one of the two that know makes this False: where they differ, it is not known.
        Raises RowDamaged.
        """
        user, crc, since = self._execute(BLOB_USES, {"sha256": sha256}).fetchone()
        if user is None and since is None:
            return False
        if user is None or since is None or (sha256, user, crc) != blob_use_row(sha256, user):
            raise RowDamaged(table="blob_use", position=since)
        return True

    def _view(self, row: Row) -> OperationView:
        operation = cast("Operation", unpack(row, table="operation"))
        return OperationView(operation, left_by(self._connection, operation))

    @damage_told
    def source(self, source_id: str, *, at: int | None = None) -> tuple[Source, int]:
        """The source, and the position it was read at. Raises NotFound, RowDamaged."""
        with Snapshot(self._connection):
            position = applied_position(self._connection) if at is None else at
            row = self._execute(SOURCE_AS_OF, {"id": source_id, "at": position}).fetchone()
        if row is None:
            raise NotFound("Source", source_id)
        source = cast("Source", unpack(row, table="source"))
        expect(source["id"] == source_id and row[0] <= position, table="source", position=row[0])
        if is_over(row[-2], position):
            raise NotFound("Source", source_id)
        return source, position

    @damage_told
    def sources(
        self, folder_id: str, *, limit: int, page: Page | None = None, at: int | None = None
    ) -> tuple[list[Source], Page | None, int]:
        """A page of the folder's sources by id, the next page, and the position of both.

        Raises RowDamaged.
        """
        with Snapshot(self._connection):
            applied = applied_position(self._connection)
            position = asked_position(at=at, page=page, applied=applied)
            values: dict[str, Any] = {
                "folder_id": folder_id,
                "after": "" if page is None else page.last_id,
                "limit": limit + 1,
            }
            if position == applied:
                rows = self._execute(SOURCES, values).fetchall()
            else:
                rows = self._execute(SOURCES_AS_OF, values | {"at": position}).fetchall()
        found: list[Source] = []
        after = values["after"]
        for row in rows:
            source = cast("Source", unpack(row, table="source"))
            is_next = source["folder_id"] == folder_id and source["id"] > after
            expect(is_next and held(row[0], row[-2], position), table="source", position=row[0])
            found.append(source)
            after = source["id"]
        more = len(found) > limit
        found = found[:limit]
        return found, Page(position, found[-1]["id"]) if more else None, position


def _answer(wire: bytes, wire_crc: int, since: int, image_id: str, position: int, applied_crc: int) -> Answer:
    """The ready bytes and the position they were read at, both checked; written out, as it is every Get's."""
    if type(position) is not int or crc32(b"%d" % position) != applied_crc:
        raise RowDamaged(table="applied", position=position)
    if type(wire) is not bytes or crc32(wire, crc32(image_id.encode(), since & CRC_MAX)) != wire_crc:
        raise RowDamaged(table="image", position=since)
    return Answer(wire, position)


def _first_position(page: Page) -> int:
    if not page.last_id.isdecimal() or len(page.last_id) > POSITION_DIGITS_MAX:
        raise PageTokenInvalid("it is not one of this method")
    return int(page.last_id)
