"""Answers from real files: pages that stand still while others write, and rows that were damaged."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import msgpack
import pytest

from eventstore import database
from projections import queries as q
from projections.chunks import FROM
from projections.domain.refusals import NotFound
from projections.filters import Order, parse_filter
from projections.listing import list_sql
from projections.pages import Page, PageTokenInvalid
from projections.projector import catch_up
from projections.queries import Queries
from projections.rows import RowDamaged
from projections.store import open_projector, open_queries
from tests.unit.projections.builders import (
    Stand,
    change,
    created,
    deleted,
    image,
    lossless,
    registered,
    removed,
    rows,
    started,
    updated,
)

BY_ID = Order("id", descending=False)
ORDERS = [
    pytest.param(Order(field, descending=descending), id=f"{field}-{'desc' if descending else 'asc'}")
    for field in ("id", "name", "created_at")
    for descending in (False, True)
]


@pytest.fixture
def queries(stand: Stand) -> Iterator[Queries]:
    """Of images a to e: c is being created, e is READY since 11, d was deleted at 12, the head."""
    made = [*image("a", name="z", family="web"), *image("b", name="y"), started("c"), *image("d")]
    stand.say([registered("s"), *made, *image("e", name="x", family="web"), deleted("d")])
    with closing(stand.queries()) as queries:
        yield queries


def follow(stand: Stand) -> None:
    """Apply what was said since."""
    path = stand.files.current()
    assert path is not None
    with closing(open_projector(path, encode=lossless)) as projector:
        after = rows(path, "SELECT position FROM applied")[0][0]
        catch_up(projector, stand.log, after=after)


def ids(wire: bytes) -> list[str]:
    unpacker = msgpack.Unpacker()
    unpacker.feed(wire)
    return [image["id"] for image in unpacker]


def test_the_position_of_an_answer_is_the_applied_one(queries: Queries) -> None:
    assert queries.image("a").position == 12
    assert queries.latest("f", "web").position == 12
    assert queries.images("f", limit=9, order=BY_ID).position == 12
    assert queries.operation("op-a")[1] == 12
    assert queries.operations("a", limit=9)[1] == 12
    assert queries.source("s")[1] == 12
    assert queries.image("a", at=4).position == 4


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5])
def test_pages_neither_skip_nor_repeat_while_others_write(
    stand: Stand, queries: Queries, order: Order, limit: int
) -> None:
    whole = ids(queries.images("f", limit=1000, order=order).wire)
    assert sorted(whole) == ["a", "b", "c", "e"]
    got: list[str] = []
    page: Page | None = None
    for number in range(9):
        listing = queries.images("f", limit=limit, order=order, page=page)
        got += ids(listing.wire)
        assert listing.position == 12
        if (page := listing.next_page) is None:
            break
        stand.say(updated(one, name=f"{one}{number}") for one in ("a", "b"))
        stand.say([*image(f"bb{number}", name=f"y{number}")])
        if number == 0:
            stand.say([deleted("e")])
        follow(stand)
    assert got == whole


def test_a_list_ends_at_its_limit_exactly(queries: Queries) -> None:
    listing = queries.images("f", limit=4, order=BY_ID)
    assert (ids(listing.wire), listing.next_page) == (["a", "b", "c", "e"], None)
    listing = queries.images("f", limit=3, order=BY_ID)
    assert (ids(listing.wire), listing.next_page) == (["a", "b", "c"], Page(12, "c"))


def test_a_page_ends_before_the_answer_is_too_large(
    stand: Stand, queries: Queries, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = len(queries.image("a").wire)
    monkeypatch.setattr("projections.listing.PAGE_BYTES_MAX", size + 10)
    listing = queries.images("f", limit=9, order=BY_ID)
    assert (ids(listing.wire), listing.next_page) == (["a"], Page(12, "a"))
    monkeypatch.setattr("projections.listing.PAGE_BYTES_MAX", 1)
    assert len(ids(queries.images("f", limit=9, order=BY_ID).wire)) == 1


def test_a_page_of_a_longer_log_is_refused(queries: Queries) -> None:
    with pytest.raises(PageTokenInvalid, match="of position 13, and this log ends at 12"):
        queries.images("f", limit=1, order=BY_ID, page=Page(13, "a"))


@pytest.mark.parametrize("at", [None, 9])
def test_a_filter_holds_now_and_as_of(queries: Queries, at: int | None) -> None:
    conditions = parse_filter('status = "READY" AND name != "y"')
    found = queries.images("f", limit=9, order=BY_ID, conditions=conditions, at=at)
    assert ids(found.wire) == (["a", "e"] if at is None else ["a", "d"])


def test_operations_come_newest_first_in_pages(stand: Stand, queries: Queries) -> None:
    stand.say([updated("a", name=f"n{i}")._replace(operation_id=f"u{i}") for i in range(3)])
    follow(stand)
    views, position = queries.operations("a", limit=2)
    assert [view.operation["id"] for view in views] == ["u2", "u1", "u0"]  # One more than the limit.
    page = Page(position, str(views[1].operation["first"]))
    views, _ = queries.operations("a", limit=2, page=page)
    assert [view.operation["id"] for view in views] == ["u0", "op-a"]


def test_operations_of_a_deleted_image_stay(queries: Queries) -> None:
    views, _ = queries.operations("d", limit=9)
    assert [view.operation["id"] for view in views] == ["op-delete-d", "op-d"]


def test_operations_as_of_are_as_they_stood(stand: Stand, queries: Queries) -> None:
    stand.say([created("c")])
    follow(stand)
    [running], _ = queries.operations("c", limit=9, at=11)
    [finished], _ = queries.operations("c", limit=9)
    assert (running.operation["done"], finished.operation["done"]) == (False, True)
    with pytest.raises(NotFound):
        queries.operations("c", limit=9, at=6)


@pytest.mark.parametrize(
    ("ask", "text"),
    [
        pytest.param(lambda q: q.image("x"), 'Image "x" not found', id="image"),
        pytest.param(lambda q: q.image("d"), 'Image "d" not found', id="deleted-image"),
        pytest.param(lambda q: q.image("a", at=2), 'Image "a" not found', id="image-not-born"),
        pytest.param(lambda q: q.image("d", at=12), 'Image "d" not found', id="image-as-of-its-deletion"),
        pytest.param(lambda q: q.latest("f", "db"), 'Image "db" not found', id="family"),
        pytest.param(lambda q: q.latest("g", "web"), 'Image "web" not found', id="family-of-another-folder"),
        pytest.param(lambda q: q.latest("f", ""), 'Image "" not found', id="empty-family"),
        pytest.param(lambda q: q.latest("f", "web", at=3), 'Image "web" not found', id="family-as-of"),
        pytest.param(lambda q: q.operation("x"), 'Operation "x" not found', id="operation"),
        pytest.param(lambda q: q.operation("op-a", at=2), 'Operation "op-a" not found', id="operation-as-of"),
        pytest.param(lambda q: q.operations("x", limit=1), 'Image "x" not found', id="operations"),
        pytest.param(lambda q: q.source("x"), 'Source "x" not found', id="source"),
        pytest.param(lambda q: q.source("s", at=1), 'Source "s" not found', id="source-as-of"),
    ],
)
def test_what_is_not_there(queries: Queries, ask: Any, text: str) -> None:
    with pytest.raises(NotFound) as missing:
        ask(queries)
    assert str(missing.value) == text


def test_sources_are_listed_in_pages_and_as_of(stand: Stand, queries: Queries) -> None:
    stand.say([registered("t"), registered("u"), removed("s")])
    follow(stand)
    found, page, _ = queries.sources("f", limit=1)
    assert ([one["id"] for one in found], page) == (["t"], Page(15, "t"))
    found, page, _ = queries.sources("f", limit=1, page=page)
    assert ([one["id"] for one in found], page) == (["u"], None)
    found, _, _ = queries.sources("f", limit=9, at=14)
    assert [one["id"] for one in found] == ["s", "t", "u"]


# A byte that another one took the place of. Image a's versions are at 3 and 4, operation op-a's too.

QUESTIONS: dict[str, Any] = {
    "get": lambda q: q.image("a"),
    "get-as-of": lambda q: q.image("a", at=11),
    "state": lambda q: q.image_state("a", at=11),
    "latest": lambda q: q.latest("f", "web"),
    "latest-as-of": lambda q: q.latest("f", "web", at=5),
    "list": lambda q: q.images("f", limit=9, order=Order("name", descending=False)),
    "list-as-of": lambda q: q.images("f", limit=9, order=BY_ID, at=5),
    "operation": lambda q: q.operation("op-a"),
    "operation-result": lambda q: q.operation("op-a"),
    "operations": lambda q: q.operations("a", limit=9),
    "source": lambda q: q.source("s"),
    "sources": lambda q: q.sources("f", limit=9),
}


@pytest.mark.parametrize("byte", [0, -1])
@pytest.mark.parametrize(
    ("table", "column", "since", "question"),
    [
        pytest.param("image", "wire", 4, "get", id="get"),
        pytest.param("image", "state", 4, "get-as-of", id="get-as-of"),
        pytest.param("image", "state", 4, "state", id="image-state"),
        pytest.param("image", "wire", 11, "latest", id="latest"),
        pytest.param("image", "state", 4, "latest-as-of", id="latest-as-of"),
        pytest.param("image", "wire", 4, "list", id="list"),
        pytest.param("image", "state", 4, "list-as-of", id="list-as-of"),
        pytest.param("operation", "state", 4, "operation", id="operation"),
        pytest.param("image", "state", 4, "operation-result", id="operation-result"),
        pytest.param("operation", "state", 4, "operations", id="operations"),
        pytest.param("source", "state", 2, "source", id="source"),
        pytest.param("source", "state", 2, "sources", id="sources"),
    ],
)
def test_a_flipped_byte_is_never_answered_but_named(
    stand: Stand, queries: Queries, table: str, column: str, since: int, question: str, byte: int
) -> None:
    path = stand.files.current()
    assert path is not None
    [(payload,)] = rows(path, f"SELECT {column} FROM {table} WHERE since = {since}")
    flipped = bytearray(payload)
    flipped[byte] ^= 1
    change(path, f"UPDATE {table} SET {column} = ? WHERE since = ?", bytes(flipped), since)
    with pytest.raises(RowDamaged, match=f"table {table} at position {since} is damaged.*rebuild") as damaged:
        QUESTIONS[question](queries)
    assert (damaged.value.table, damaged.value.position) == (table, since)


def test_a_flipped_byte_of_a_plain_list_is_never_answered_but_named(stand: Stand, queries: Queries) -> None:
    path = stand.files.current()
    assert path is not None
    [(wires, ends)] = rows(path, "SELECT wires, ends FROM listing")
    flipped = bytearray(wires)
    # The last byte of the second image.
    flipped[struct.unpack_from("<I", ends, 4)[0] - 1] ^= 1
    change(path, "UPDATE listing SET wires = ?", bytes(flipped))
    [(since,)] = rows(path, "SELECT since FROM image WHERE id = 'b' AND until IS NULL")
    with pytest.raises(RowDamaged, match=f"table listing at position {since} is damaged.*rebuild"):
        queries.images("f", limit=9, order=BY_ID)


def test_two_rows_whose_payloads_changed_places_are_named(stand: Stand, queries: Queries) -> None:
    path = stand.files.current()
    assert path is not None
    change(
        path,
        """
        UPDATE image
        SET (wire, wire_crc) = (SELECT o.wire, o.wire_crc FROM image AS o WHERE o.since = 15 - image.since)
        WHERE since IN (4, 11)
        """,
    )
    with pytest.raises(RowDamaged, match="position 4"):
        queries.image("a")


@pytest.mark.parametrize("table", ["image", "operation", "source"])
def test_what_decides_refuses_a_damaged_row_too(stand: Stand, queries: Queries, table: str) -> None:
    path = stand.files.current()
    assert path is not None
    change(path, f"UPDATE {table} SET state = zeroblob(40)")
    with closing(open_projector(path, encode=lossless)) as projector:
        asks: dict[str, Any] = {
            "image": lambda: projector.image("a"),
            "operation": lambda: projector.operation("op-a"),
            "source": lambda: projector.source("s"),
        }
        with pytest.raises(RowDamaged):
            asks[table]()


def test_readers_do_not_see_what_is_not_committed(stand: Stand, queries: Queries) -> None:
    path = stand.files.current()
    assert path is not None
    stand.say([updated("a", name="new")])
    said = stand.log.event(stand.log.head())
    with (
        closing(open_projector(path, encode=lossless)) as projector,
        closing(open_queries(path, encode=lossless)) as other,
    ):
        projector.begin()
        projector.apply(said)
        for asked in (queries, other):
            assert msgpack.unpackb(asked.image("a").wire)["name"] == "z"
            assert asked.applied()[1] == 12
        projector.commit(last=said, leaf=stand.log.leaf(said.position))
        for asked in (queries, other):
            assert msgpack.unpackb(asked.image("a").wire)["name"] == "new"
            assert asked.image("a").position == 13


# The rows a question reads are bounded by an index.


def plans(stand: Stand, sql: str, values: Any) -> list[str]:
    path = stand.files.current()
    assert path is not None
    with closing(database.connect(path, access="read", synchronous="NORMAL")) as connection:
        return [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}", values)]


NAMED: dict[str, Any] = dict.fromkeys(
    ("id", "at", "folder_id", "after", "limit", "before", "sha256", "last_id", "last_key", "f0"), 1
)


def listed(order: Order, *, as_of: bool = False, text: str = "", resume: Any = None) -> str:
    return list_sql(parse_filter(text), order, as_of=as_of, resume=resume)[0]


@pytest.mark.parametrize(
    ("sql", "values", "indexes"),
    [
        pytest.param(q.GET, (1,), {"image_version"}, id="get"),
        pytest.param(q.GET_AS_OF, NAMED, {"image_version"}, id="get-as-of"),
        pytest.param(q.LATEST, (1, 1), {"PRIMARY KEY", "image_version"}, id="latest"),
        pytest.param(q.LATEST_AS_OF, (1, 1, 1), {"PRIMARY KEY"}, id="latest-as-of"),
        pytest.param(q.LIFE_OF, (1, 1), {"PRIMARY KEY"}, id="life"),
        pytest.param(q.OPERATION_AS_OF, NAMED, {"operation_version"}, id="operation"),
        pytest.param(q.OPERATIONS, NAMED, {"operation_resource"}, id="operations"),
        pytest.param(q.UNFINISHED, (), {"image_creating"}, id="unfinished"),
        pytest.param(q.BLOB_USES, NAMED, {"PRIMARY KEY", "image_blob", "source_blob"}, id="blob"),
        pytest.param(q.BORN, NAMED, {"image_version"}, id="born"),
        pytest.param(q.SOURCE_AS_OF, NAMED, {"source_version"}, id="source"),
        pytest.param(q.SOURCES, NAMED, {"source_folder"}, id="sources"),
        pytest.param(q.SOURCES_AS_OF, NAMED, {"source_folder_ever"}, id="sources-as-of"),
        pytest.param(FROM, NAMED, {"PRIMARY KEY"}, id="page"),
        pytest.param(listed(BY_ID), NAMED, {"image_folder"}, id="list"),
        pytest.param(listed(BY_ID, resume={"last_id": 1}), NAMED, {"image_folder"}, id="list-on"),
        pytest.param(listed(BY_ID, text='name = "a"'), NAMED, {"image_name"}, id="list-of-a-name"),
        pytest.param(listed(BY_ID, text='family = "a"'), NAMED, {"image_family"}, id="list-of-a-family"),
        pytest.param(listed(BY_ID, as_of=True), NAMED, {"PRIMARY KEY", "image_version"}, id="list-as-of"),
    ],
)
def test_a_question_is_bounded_by_an_index(
    stand: Stand, queries: Queries, sql: str, values: Any, indexes: set[str]
) -> None:
    plan = plans(stand, sql, values)
    used = {
        name for name in indexes if any(f"INDEX {name}" in step or f"USING {name}" in step for step in plan)
    }
    assert used == indexes, plan
    for step in plan:
        is_small = "USING INDEX" in step or step.split()[1] in ("applied", "CONSTANT", "f", "(subquery-1)")
        assert is_small or not step.startswith("SCAN")


def test_a_next_page_costs_no_more_when_others_write_elsewhere(
    stand: Stand, queries: Queries, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = queries.images("f", limit=2, order=BY_ID).next_page
    expected = queries.images("f", limit=2, order=BY_ID, page=page)
    stand.say([*image("x", folder_id="g"), registered("t")])
    follow(stand)

    def encode(image: Any) -> bytes:
        raise AssertionError("a version of the past was encoded")

    with monkeypatch.context() as patch:
        patch.setattr(queries, "_encode", encode)
        for order in (BY_ID, Order("name", descending=False)):
            queries.images("f", limit=2, order=order, page=page)
        assert queries.images("f", limit=2, order=BY_ID, page=page) == expected
    stand.say([updated("b", name="new")])
    follow(stand)
    assert queries.images("f", limit=2, order=BY_ID, page=page) == expected
