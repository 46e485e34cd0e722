"""Bytes that are not what was written: never answered, named where a row can tell, noticed by the digest."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgpack
import pytest
from grpc import StatusCode

from eventstore import database
from projections.damage import ProjectionDamaged, RowDamaged
from projections.domain.refusals import NotFound
from projections.filters import Order, parse_filter
from projections.pages import Page
from projections.queries import Queries
from projections.store import digest_of, open_projector, open_queries
from server.status import refusal_of
from tests.unit.projections.builders import (
    BLOB,
    Stand,
    change,
    deleted,
    image,
    lossless,
    registered,
    removed,
    started,
    updated,
)

BY_ID = Order("id", descending=False)
BY_NAME = Order("name", descending=False)
SHA256 = str(BLOB["sha256"])
OTHER = "cd" * 32


@pytest.fixture
def path(stand: Stand) -> Path:
    """Images a, b and e are READY, c is being created, d was deleted at 13; of sources s is there, t not."""
    made = [*image("a", name="z", family="web"), *image("b", name="y"), started("c"), *image("d")]
    stand.say([registered("s"), *made, *image("e", name="x", family="web"), updated("b", description="new")])
    stand.say([deleted("d"), registered("t"), removed("t")])
    return stand.open_live()


@pytest.fixture
def queries(path: Path) -> Iterator[Queries]:
    with closing(open_queries(path, encode=lossless)) as queries:
        yield queries


Ask = Callable[[Queries], Any]
ASKS: dict[str, Ask] = {
    "applied": lambda q: q.applied(),
    "get": lambda q: q.image("b"),
    "get-created": lambda q: q.image("c"),
    "get-deleted": lambda q: q.image("d"),
    "get-as-of": lambda q: q.image("b", at=11),
    "latest": lambda q: q.latest("f", "web"),
    "latest-as-of": lambda q: q.latest("f", "web", at=5),
    "list": lambda q: q.images("f", limit=9, order=BY_ID),
    "first-page": lambda q: q.images("f", limit=2, order=BY_ID),
    "next-page": lambda q: q.images("f", limit=2, order=BY_ID, page=Page(14, "a")),
    "list-by-name": lambda q: q.images("f", limit=9, order=BY_NAME),
    "list-filtered": lambda q: q.images("f", limit=9, order=BY_ID, conditions=parse_filter('name = "y"')),
    "list-as-of": lambda q: q.images("f", limit=9, order=BY_ID, at=11),
    "operation": lambda q: q.operation("op-b"),
    "operation-of-a-deletion": lambda q: q.operation("op-delete-d"),
    "operations": lambda q: q.operations("b", limit=9),
    "unfinished": lambda q: q.unfinished(),
    "source": lambda q: q.source("s"),
    "source-removed": lambda q: q.source("t"),
    "sources": lambda q: q.sources("f", limit=9),
    "sources-as-of": lambda q: q.sources("f", limit=9, at=14),
    "blob": lambda q: q.is_blob_used(SHA256),
}


def asked(path: Path, ask: Ask) -> Any:
    """The answer of a fresh connection; NotFound is one, too."""
    with closing(open_queries(path, encode=lossless)) as queries:
        try:
            return ask(queries)
        except NotFound as error:
            return str(error)


# Every column of every row that a question reads.


@pytest.mark.parametrize(
    ("sql", "question"),
    [
        *(
            pytest.param(f"UPDATE applied SET {what}", question, id=f"applied-{what}-{question}")
            for what, questions in {
                "position = 99": ("applied", "get", "latest", "list"),
                "position_crc = 1": ("applied", "get", "latest"),
                "at = 5": ("applied", "list", "operation"),
                "log_id = 'x'": ("applied", "list"),
                "encoding = x'00'": ("applied",),
            }.items()
            for question in questions
        ),
        *(
            pytest.param(
                f"UPDATE image SET {what} WHERE id = 'b' AND until IS NULL", question, id=f"{what}-{question}"
            )
            for what in ("folder_id = 'g'", "name = 'yy'", "family = 'x'", "created_at = 1")
            for question in ("get-as-of-now",)
        ),
        *(
            pytest.param(f"UPDATE image SET {what} WHERE id = 'b' AND until IS NULL", "list-by-name", id=what)
            for what in (
                "name = 'yy'",
                "family = 'x'",
                "status = 'ERROR'",
                "created_at = 1",
                "born = 1",
                "sha256 = 'x'",
                "state = x'80'",
                "crc = 1",
                "wire = x'80'",
                "wire_crc = 1",
                "wire = NULL",
            )
        ),
        pytest.param("UPDATE image SET until = 13 WHERE id = 'b' AND until IS NULL", "get", id="until-get"),
        pytest.param(
            "UPDATE image SET until = 13, wire = NULL WHERE id = 'b' AND until IS NULL",
            "get",
            id="until-wire",
        ),
        pytest.param("UPDATE image SET until = NULL WHERE id = 'd'", "get-deleted", id="deleted-until"),
        pytest.param("UPDATE image SET until = 9 WHERE since = 6", "get-as-of", id="until-as-of"),
        pytest.param("UPDATE image SET id = 'c' WHERE id = 'd'", "get-created", id="another-id"),
        pytest.param("DELETE FROM image WHERE id = 'b' AND until IS NULL", "get", id="newest-version-missed"),
        pytest.param("DELETE FROM image WHERE since = 6", "get-as-of", id="newest-version-missed-as-of"),
        pytest.param("UPDATE image_life SET died = 12 WHERE id = 'd'", "get-deleted", id="died"),
        pytest.param("UPDATE image_life SET died = 14 WHERE id = 'b'", "list-as-of", id="life-as-of"),
        pytest.param("UPDATE image_life SET born = 1 WHERE id = 'b'", "list-as-of", id="born-as-of"),
        pytest.param("UPDATE family_latest SET image_id = 'b' WHERE until IS NULL", "latest", id="resolved"),
        pytest.param("UPDATE family_latest SET until = 13 WHERE until IS NULL", "latest", id="family-until"),
        pytest.param(
            "UPDATE family_latest SET since = 3 WHERE until = 11", "latest-as-of", id="family-since"
        ),
        pytest.param("UPDATE family_latest SET image_id = 'b'", "latest-as-of", id="resolved-as-of"),
        pytest.param("DELETE FROM image WHERE id = 'e'", "latest", id="resolved-to-nothing"),
        *(
            pytest.param(f"UPDATE listing SET {what}", question, id=f"listing-{what}-{question}")
            for what in (
                "wires = CAST(substr(wires, 1, 9) || x'80' || substr(wires, 11) AS BLOB)",
                "ids = replace(ids, 'b', 'bb')",
                "ids = replace(ids, 'b', 'b' || char(10))",
                "ends = x'80'",
                "first = 'a'",
                "crc = 1",
            )
            for question in ("list", "first-page")
        ),
        pytest.param("UPDATE folder SET changed = 3", "next-page-later", id="folder-changed"),
        *(
            pytest.param(
                f"UPDATE operation SET {what} WHERE id = 'op-b' AND until IS NULL", "operation", id=what
            )
            for what in (
                "resource_id = 'a'",
                "first = 1",
                "actor = 'bob'",
                "method = 'x'",
                "key = 'x'",
                "until = 8",
                "state = x'80'",
                "crc = 1",
            )
        ),
        pytest.param("DELETE FROM operation WHERE id = 'op-b' AND until IS NULL", "operation", id="version"),
        pytest.param(
            "UPDATE image SET until = 9 WHERE id = 'd'", "operation-of-a-deletion", id="left-nothing"
        ),
        pytest.param("UPDATE image SET id = 'x' WHERE id = 'b'", "operation", id="left-another"),
        pytest.param("DELETE FROM image WHERE since = 6", "operation", id="left-missed"),
        *(
            pytest.param(f"UPDATE source SET {what} WHERE id = 's'", "source", id=f"source-{what}")
            for what in ("folder_id = 'g'", "sha256 = 'x'", "state = x'80'", "until = 3", "crc = 1")
        ),
        pytest.param("UPDATE source SET until = NULL WHERE id = 't'", "source-removed", id="source-until"),
        pytest.param("UPDATE source SET crc = 1", "sources", id="sources"),
        pytest.param("UPDATE source SET crc = 1", "sources-as-of", id="sources-as-of"),
    ],
)
def test_a_row_with_another_value_in_a_column_is_never_answered(path: Path, sql: str, question: str) -> None:
    more: dict[str, Ask] = {
        "get-as-of-now": lambda q: q.image("b", at=15),
        "next-page-later": lambda q: q.images("f", limit=2, order=BY_ID, page=Page(13, "a")),
    }
    ask = (ASKS | more)[question]
    asked(path, ask)
    change(path, sql)
    with pytest.raises(RowDamaged, match="rebuild"):
        asked(path, ask)


# Blobs are deleted by these answers.


def test_a_blob_is_used_as_long_as_anything_uses_it(path: Path, queries: Queries) -> None:
    assert queries.is_blob_used(SHA256)
    assert not queries.is_blob_used(OTHER)
    with pytest.raises(database.IntegrityError):
        change(path, "INSERT INTO blob_use SELECT * FROM blob_use LIMIT 1")


@pytest.mark.parametrize(
    "sql",
    [
        pytest.param("UPDATE blob_use SET sha256 = 'bb' || substr(sha256, 3)", id="every-use"),
        pytest.param("DELETE FROM blob_use", id="no-use"),
        pytest.param("UPDATE image SET sha256 = ''", id="every-image"),
        pytest.param("UPDATE blob_use SET crc = crc + 1", id="crc"),
        pytest.param("UPDATE blob_use SET id = 'x' || id", id="user"),
    ],
)
def test_a_blob_of_a_ready_image_never_looks_unused(path: Path, queries: Queries, sql: str) -> None:
    change(path, "DELETE FROM source WHERE id = 's'")
    change(path, sql)
    with pytest.raises(RowDamaged, match="blob_use"):
        queries.is_blob_used(SHA256)


def test_a_blob_of_a_source_alone_never_looks_unused(stand: Stand) -> None:
    stand.say([registered("s")])
    path = stand.open_live()
    change(path, "UPDATE blob_use SET sha256 = 'bb' || substr(sha256, 3)")
    with closing(open_queries(path, encode=lossless)) as queries, pytest.raises(RowDamaged):
        queries.is_blob_used(SHA256)


# Errors of SQLite.


def test_a_text_that_is_no_utf_8_is_damage(path: Path) -> None:
    change(path, "UPDATE operation SET actor = CAST(x'ff' AS TEXT)")
    with pytest.raises(ProjectionDamaged, match="rebuild"):
        asked(path, ASKS["operation"])


def test_a_table_that_is_not_there_is_damage(path: Path, queries: Queries) -> None:
    change(path, "DROP TABLE family_latest")
    with pytest.raises(ProjectionDamaged, match="no such table"):
        queries.latest("f", "web")


def test_a_file_that_is_no_database_is_damage(path: Path) -> None:
    path.write_bytes(b"no database at all" * 99)
    with pytest.raises(ProjectionDamaged):
        open_queries(path, encode=lossless)


def test_callers_are_told_of_damage_and_of_a_database_that_cannot_be_read() -> None:
    for error, code in (
        (RowDamaged(table="image", position=4), StatusCode.DATA_LOSS),
        (ProjectionDamaged("no such table"), StatusCode.DATA_LOSS),
        (database.OperationalError("disk I/O error"), StatusCode.UNAVAILABLE),
    ):
        refusal = refusal_of(error)
        assert refusal is not None
        assert refusal.code == code
    assert refusal_of(database.IntegrityError("a defect")) is None


def test_an_interrupted_question_leaves_the_connection_usable(
    queries: Queries, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interrupt comes when the answer is complete but for the end of its transaction."""

    def encode(image: Any) -> bytes:
        queries.interrupt()
        return lossless(image)

    monkeypatch.setattr(queries, "_encode", encode)
    with pytest.raises(database.OperationalError, match="interrupted"):
        queries.images("f", limit=9, order=BY_NAME, at=11)
    assert not queries._connection.in_transaction
    monkeypatch.undo()
    assert len(unpacked(queries.images("f", limit=9, order=BY_NAME, at=11).wire)) == 5


# The digest notices what no question can.


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE image SET name = 'yy' WHERE id = 'b'",
        "UPDATE image SET wire = x'80' WHERE until IS NULL",
        "UPDATE image SET sha256 = ''",
        "UPDATE listing SET wires = x'80'",
        "UPDATE listing SET folder_id = 'g'",
        "DELETE FROM listing",
        "INSERT INTO listing SELECT folder_id, 'x', ids, ends, wires, crc FROM listing",
        "UPDATE operation SET actor = 'bob'",
        "UPDATE source SET sha256 = 'x'",
        "UPDATE applied SET at = 1",
        "UPDATE blob_use SET id = 'x' || id",
        "UPDATE folder SET changed = 1",
        "UPDATE family_latest SET image_id = 'x'",
        "UPDATE image_life SET died = 3",
    ],
)
def test_the_digest_refuses_a_row_that_is_not_what_was_written(path: Path, sql: str) -> None:
    change(path, sql)
    with pytest.raises(ProjectionDamaged):
        digest_of(path, encode=lossless)


@pytest.mark.parametrize("table", ["blob_use", "image_life", "folder", "family_latest", "operation"])
def test_the_digest_differs_where_a_row_is_missing(path: Path, table: str) -> None:
    before = digest_of(path)
    change(path, f"DELETE FROM {table} WHERE crc = (SELECT max(crc) FROM {table})")
    assert digest_of(path) != before


def test_the_digest_compares_the_ready_bytes_with_what_would_be_encoded(path: Path) -> None:
    digest_of(path, encode=lossless)
    with pytest.raises(RowDamaged, match="image"):
        digest_of(path, encode=lambda image: lossless(image) + b"\0")


def test_the_digest_notices_an_index_that_differs_from_its_table(path: Path) -> None:
    connection = database.connect(path, access="write", synchronous="NORMAL")
    connection.execute("PRAGMA writable_schema = ON")
    sql = "UPDATE sqlite_schema SET sql = replace(sql, 'until IS NULL', 'until IS NOT NULL')"
    connection.execute(f"{sql} WHERE name = 'image_folder'")
    connection.close()
    with pytest.raises(ProjectionDamaged):
        digest_of(path)


# Bits flipped anywhere.

FLIPS = 500
# What may come of an index key that has changed: the row it led to is not found.
MISSES = frozenset(
    {"get", "get-created", "get-deleted", "get-as-of", "latest", "latest-as-of", "operation"}
    | {"operation-of-a-deletion", "operations", "source", "source-removed"}
)
LISTS = frozenset(
    {"list", "first-page", "next-page", "list-by-name", "list-filtered", "list-as-of", "sources"}
    | {"sources-as-of", "operations", "unfinished"}
)
# What of a whole list is missed shows in its pages.
PAGES = frozenset({"first-page", "next-page"})


def test_a_flipped_bit_is_never_answered(path: Path, tmp_path: Path) -> None:
    """Each question gives the right answer or an error of the room, but for a key that leads nowhere."""
    seed = random.SystemRandom().randrange(2**32)
    chosen = random.Random(seed)
    whole = path.read_bytes()
    copy = tmp_path / "copy" / "projections-1.db"
    copy.parent.mkdir()
    shutil.copy(path, copy)
    expected = {name: asked(copy, ask) for name, ask in ASKS.items()}
    places = [place for place, byte in enumerate(whole) if byte]
    for _ in range(FLIPS):
        place, bit = chosen.choice(places), chosen.randrange(8)
        damaged = bytearray(whole)
        damaged[place] ^= 1 << bit
        for entry in copy.parent.iterdir():
            entry.unlink()
        copy.write_bytes(damaged)
        for name, ask in ASKS.items():
            try:
                got = asked(copy, ask)
            except ProjectionDamaged:
                continue
            whole_answer = expected["list" if name in PAGES else name]
            assert got == expected[name] or is_miss(name, got, whole_answer), (
                f"seed {seed}, bit {bit} of byte {place}: {name} answered {got}"
            )


def is_miss(name: str, got: Any, expected: Any) -> bool:
    """Whether an answer is less than the right one, and nothing else."""
    if isinstance(got, str):
        return name in MISSES and got.endswith("not found")
    if name not in LISTS:
        return False
    less, all_ = elements(got), elements(expected)
    return len(less) < len(all_) and all(element in all_ for element in less)


def elements(answer: Any) -> list[Any]:
    first = answer[0] if isinstance(answer, tuple) else answer
    return unpacked(first) if isinstance(first, bytes) else list(first)


def unpacked(wires: bytes) -> list[Any]:
    unpacker = msgpack.Unpacker()
    unpacker.feed(wires)
    return list(unpacker)


def test_what_decides_refuses_a_projection_that_does_not_say_where_it_stands(path: Path) -> None:
    change(path, "UPDATE applied SET at = 1")
    with closing(open_projector(path, encode=lossless)) as projector:
        with pytest.raises(RowDamaged, match="applied"):
            projector.begin()
        projector.rollback()
