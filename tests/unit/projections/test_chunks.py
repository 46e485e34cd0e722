"""Chunks of ready answers, against a plain dictionary."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventstore import database
from eventstore.database import Connection
from projections import chunks
from projections.damage import RowDamaged
from projections.schema import migrations

Batch = dict[str, bytes | None]

MANY = 5 * chunks.CHUNK_IMAGES_MAX
ids = st.integers(0, MANY).map("id-{:03}".format)
wires = st.sampled_from((b"a", b"bb" * 20, b"c" * 700, b"d" * (chunks.CUT_BYTES + 1)))
batches = st.lists(st.dictionaries(ids, st.none() | wires, max_size=60), max_size=12)


@contextmanager
def empty() -> Iterator[Connection]:
    with TemporaryDirectory() as directory:
        path = Path(directory) / "chunks.db"
        with closing(database.connect(path, access="create", synchronous="OFF")) as connection:
            database.migrate(connection, migrations)
            yield connection


def listed(connection: Connection, *, limit: int, bytes_max: int) -> Iterator[bytes]:
    """Every page of a folder."""
    after = ""
    while True:
        page = chunks.page(connection, "f", after=after, limit=limit, bytes_max=bytes_max)
        yield page.wires
        if not page.has_more:
            return
        assert page.wires
        assert page.last_id > after
        after = page.last_id


def pages(model: dict[str, bytes], *, limit: int, bytes_max: int) -> Iterator[bytes]:
    """The same of a dictionary."""
    page: list[bytes] = []
    for _, wire in sorted(model.items()):
        if page and (len(page) == limit or len(b"".join(page)) + len(wire) > bytes_max):
            yield b"".join(page)
            page = []
        page.append(wire)
    yield b"".join(page)


@settings(max_examples=60)
@given(batches, st.integers(1, MANY), st.sampled_from((1, 900, 40_000, 10_000_000)))
def test_pages_are_those_of_a_dictionary(batches: list[Batch], limit: int, bytes_max: int) -> None:
    model: dict[str, bytes] = {}
    with empty() as connection:
        for batch in batches:
            chunks.change(connection, "f", batch)
            model = {one: wire for one, wire in (model | batch).items() if wire is not None}
            chunks.change(connection, "g", dict.fromkeys(batch, b"other"))
        found = list(listed(connection, limit=limit, bytes_max=bytes_max))
        assert found == list(pages(model, limit=limit, bytes_max=bytes_max))
        rows = connection.execute(f"SELECT {chunks.COLUMNS} FROM listing WHERE folder_id = 'f'").fetchall()
    for _, _, names, _, wires, _ in rows:
        count = names.count("\n") + 1
        assert count <= chunks.CHUNK_IMAGES_MAX
        assert len(wires) <= chunks.CHUNK_BYTES_MAX or count == 1


def test_a_folder_that_grows_at_its_end_is_a_row_for_each_two_dozen_images() -> None:
    with empty() as connection:
        for number in range(500):
            chunks.change(connection, "f", {f"id-{number:03}": b"x"})
        assert (
            connection.execute("SELECT count(*) FROM listing").fetchone()[0] <= 500 // chunks.CUT_IMAGES + 1
        )


@pytest.mark.parametrize("swap", [("id-000", "id-024"), ("id-024", "id-048")])
def test_chunks_in_another_order_are_refused(swap: tuple[str, str]) -> None:
    """Each of them is whole, so only the order tells: an index that leads to another row than it says."""
    with empty() as connection:
        chunks.change(connection, "f", {f"id-{number:03}": b"x" for number in range(60)})
        order = [
            first or "id-000" for (first,) in connection.execute("SELECT first FROM listing ORDER BY first")
        ]
        rows = {
            row[1] or "id-000": row for row in connection.execute(f"SELECT {chunks.COLUMNS} FROM listing")
        }
        for one, other in (swap, swap[::-1]):
            order[order.index(one)] = f"={other}"
        given_rows = [rows[name.removeprefix("=")] for name in order]
        with pytest.raises(RowDamaged):
            list(chunks._opened(connection, given_rows, "f"))


def test_a_write_leaves_a_damaged_chunk_damaged() -> None:
    with empty() as connection:
        connection.execute(
            "INSERT INTO image (since, id, folder_id, name, family, status, created_at, born,"
            " sha256, state, crc, wire) VALUES (7, 'a', 'f', '', '', '', 0, 7, '', x'', 0, x'01')"
        )
        chunks.change(connection, "f", {"a": b"\1", "b": b"\2"})
        connection.execute("UPDATE listing SET wires = x'0302'")
        chunks.change(connection, "f", {"b": b"\4"})
        with pytest.raises(RowDamaged, match="table listing at position 7"):
            chunks.page(connection, "f", after="", limit=9, bytes_max=9)
