"""Everything that is wrong with a projection is found, at its position; and nothing where nothing is."""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from eventstore import database
from eventstore.finding import Finding
from eventstore.indexes import Index
from projections.audit import INDEXES, ProjectionAudit
from projections.audit_tables import TablesAudit
from projections.damage import RowDamaged
from projections.rows import (
    BLOB_USE,
    FAMILY,
    FAMILY_INSERT,
    FOLDER,
    IMAGE,
    LIFE,
    OPERATION,
    SOURCE,
    ended,
    seal,
    sealed,
    wire_crc,
)
from projections.store import build
from tests.unit.projections.builders import (
    History,
    Stand,
    change,
    change_applied,
    deleted,
    image,
    lossless,
    registered,
    removed,
    rows,
    started,
    steps,
    updated,
)

OTHER = "cd" * 32


def findings(stand: Stand, path: Path) -> list[Finding]:
    """All that both parts of an audit find."""
    with closing(database.connect(path, access="read", synchronous="NORMAL")) as connection:
        audit = ProjectionAudit(connection, stand.log, encode=lossless)
        found = list(audit.findings(on_read=lambda position, size_bytes: None))
        tables = TablesAudit(audit, name=path.name)
        return found + list(tables.findings(on_read=lambda count, size_bytes: None))


@pytest.fixture
def path(stand: Stand) -> Path:
    """Images a, b and e are READY, c is being created, d was deleted at 13; of sources s is there, t not."""
    stand.say([registered("s"), *image("a", name="z", family="web"), *image("b", name="y"), started("c")])
    stand.say(
        [*image("d", family="web"), *image("e", name="x", family="web"), updated("b", description="new")]
    )
    stand.say([deleted("d"), registered("t"), removed("t")])
    return stand.open_live()


# Found nothing where there is nothing.


@settings(deadline=None, max_examples=20)
@given(steps())
def test_a_projection_of_any_history_is_whole(walk: list[tuple[str, int, int]]) -> None:
    """As it was written event by event, and as it is built at once."""
    with tempfile.TemporaryDirectory() as folder, closing(Stand(Path(folder))) as stand:
        history = History(walk)
        stand.log.append(history.batches[0], expected_head=0)  # type: ignore[arg-type]
        path = stand.open_live()
        for batch in history.batches[1:]:
            stand.log.append(batch, expected_head=batch[0].position - 1)  # type: ignore[arg-type]
        assert stand.open_live() == path
        assert findings(stand, path) == []
        assert findings(stand, build(stand.files, stand.log, encode=lossless)) == []


def test_what_is_written_meanwhile_is_no_damage(stand: Stand, path: Path) -> None:
    """Behind each page that was read, versions end, blobs are given up and folders change."""
    more = iter([updated("a", name="q"), deleted("e"), removed("s"), *image("f", family="web"), deleted("a")])
    stand.say([updated("b", description=str(number)) for number in range(120)])
    stand.open_live()

    def write(count: int, size_bytes: int) -> None:
        stand.say([event] if (event := next(more, None)) else [])
        stand.open_live()

    with closing(database.connect(path, access="read", synchronous="NORMAL")) as connection:
        audit = ProjectionAudit(connection, stand.log, encode=lossless)
        found = list(audit.findings(on_read=write))
        found += TablesAudit(audit, name=path.name).findings(on_read=write)
    assert found == []
    assert next(more, None) is None


def test_no_transaction_is_open_while_it_waits(stand: Stand, path: Path) -> None:
    """Each time, what was written can be moved out of the write-ahead log."""
    emptied: list[bool] = []
    with closing(database.connect(path, access="write", synchronous="OFF")) as connection:

        def write(count: int, size_bytes: int) -> None:
            connection.execute("UPDATE applied SET at = at")
            emptied.append(database.checkpoint_truncate(connection))

        with closing(database.connect(path, access="read", synchronous="NORMAL")) as reading:
            audit = ProjectionAudit(reading, stand.log, encode=lossless)
            found = list(audit.findings(on_read=write))
            found += TablesAudit(audit, name=path.name).findings(on_read=write)
    assert found == []
    # The events, five tables, and the indexes.
    assert len(emptied) > 1 + 5 + len(INDEXES) // 2
    assert all(emptied)


def test_it_hears_of_what_was_read(stand: Stand, path: Path) -> None:
    stand.say([updated("b", description=str(number)) for number in range(200)])
    stand.open_live()
    heard: list[tuple[int, int]] = []
    with closing(database.connect(path, access="read", synchronous="NORMAL")) as connection:
        audit = ProjectionAudit(connection, stand.log, encode=lossless)
        assert not list(audit.findings(on_read=lambda *step: heard.append(step)))
    assert [position for position, _ in heard] == [50, 100, 150, 200, stand.log.head()]
    assert all(size_bytes > 50 * 300 for _, size_bytes in heard[:4])


# Every cell of every table: with its CRC left as it was, and with one that fits, as a defect would leave it.

COLUMNS = {
    "image": IMAGE,
    "operation": OPERATION,
    "source": SOURCE,
    "image_life": LIFE,
    "family_latest": FAMILY,
    "folder": FOLDER,
    "blob_use": BLOB_USE,
}
KEYS = {"image_life": ("folder_id", "id"), "family_latest": ("folder_id", "family", "since")}
KEYS |= {"folder": ("folder_id",), "blob_use": ("sha256", "id")}

Cells = dict[str, Any]


def table_rows(path: Path, table: str) -> list[Cells]:
    names = COLUMNS[table].split(", ")
    return [dict(zip(names, row, strict=True)) for row in rows(path, f"SELECT {COLUMNS[table]} FROM {table}")]


def where(table: str, cells: Cells) -> tuple[str, list[object]]:
    keys = KEYS.get(table, ("since",))
    return " AND ".join(f"{key} = ?" for key in keys), [cells[key] for key in keys]


def fitting_crc(cells: Cells) -> int:
    """The CRC of a row; its last column but one is `until`, or stands where that would be."""
    *columns, until, _ = cells.values()
    return seal(columns) if until is None else ended(seal(columns), until)


def other(value: object) -> object:
    match value:
        case None:
            return 11
        case int():
            return value + 1
        case str():
            return value + "x"
        case bytes():
            return bytes([value[0] ^ 1]) + value[1:]
        case _:
            raise AssertionError(f"no other value than {value!r}")


def write(path: Path, table: str, cells: Cells, column: str, *, is_sealed: bool) -> bool:
    """Change a cell; whether that was possible: not where another row has that key."""
    changed = cells | {column: other(cells[column])}
    crc = fitting_crc(changed) if is_sealed else cells["crc"]
    condition, keys = where(table, cells)
    sql = f"UPDATE {table} SET {column} = ?, crc = ? WHERE {condition}"
    try:
        change(path, sql, changed[column], crc, *keys)
    except database.IntegrityError:
        return False
    return True


@pytest.mark.parametrize("is_sealed", [False, True], ids=["as-it-was", "sealed"])
@pytest.mark.parametrize("table", COLUMNS)
def test_every_changed_cell_is_found(stand: Stand, path: Path, table: str, is_sealed: bool) -> None:
    whole = path.read_bytes()
    missed = []
    for cells in table_rows(path, table):
        for column in cells:
            if column in ("NULL", "crc") or not write(path, table, cells, column, is_sealed=is_sealed):
                continue
            found = findings(stand, path)
            # It is told where the row's event is, or where the row says that it is.
            places = {cells.get(name) for name in ("since", "born", "died", "until", "changed")}
            places.add(other(cells[column]) if isinstance(cells[column], int | None) else None)
            if not any(one.position in places for one in found):
                missed.append((column, cells, found))
            path.write_bytes(whole)
    assert missed == []


@pytest.mark.parametrize("column", ["wire", "wire_crc"])
def test_a_changed_ready_answer_is_found(stand: Stand, path: Path, column: str) -> None:
    whole = path.read_bytes()
    for since, value in rows(path, f"SELECT since, {column} FROM image WHERE until IS NULL"):
        for changed in (other(value), None):
            change(path, f"UPDATE image SET {column} = ? WHERE since = ?", changed, since)
            assert since in [one.position for one in findings(stand, path)]
            path.write_bytes(whole)


def test_a_ready_answer_that_was_made_wrongly_is_found(stand: Stand, path: Path) -> None:
    [(since, wire)] = rows(path, "SELECT since, wire FROM image WHERE id = 'b' AND until IS NULL")
    wrong = wire.replace(b"new", b"old")
    crc = wire_crc(wrong, since=since, image_id="b")
    change(path, "UPDATE image SET wire = ?, wire_crc = ? WHERE since = ?", wrong, crc, since)
    found = findings(stand, path)
    assert (since, "its ready answer says something else than its version") in said(found)


def said(found: list[Finding]) -> list[tuple[int | None, str]]:
    return [(one.position, one.message) for one in found]


# Rows that are missing, and rows too many.


@pytest.mark.parametrize("table", [*COLUMNS, "listing"])
def test_every_missing_row_is_found(stand: Stand, path: Path, table: str) -> None:
    whole = path.read_bytes()
    keys = KEYS.get(table, ("folder_id", "first") if table == "listing" else ("since",))
    for row in rows(path, f"SELECT {', '.join(keys)} FROM {table}"):
        change(path, f"DELETE FROM {table} WHERE {' AND '.join(f'{key} = ?' for key in keys)}", *row)
        assert findings(stand, path), f"{table} without {row}"
        path.write_bytes(whole)


def test_a_missing_version_is_found_once_and_at_its_position(stand: Stand, path: Path) -> None:
    [(since,)] = rows(path, "SELECT since FROM operation WHERE id = 'op-delete-d'")
    change(path, "DELETE FROM operation WHERE since = ?", since)
    assert said(findings(stand, path)) == [(since, "its row of table operation is missing")]


@pytest.mark.parametrize(
    ("table", "key", "value"),
    [
        ("image", "since", 16),  # That of a source.
        ("image", "since", -3),
        ("operation", "since", 1),
        ("source", "since", 5),
        ("image_life", "id", "nobody"),
        ("family_latest", "family", "db"),
        ("folder", "folder_id", "other"),
        ("blob_use", "sha256", OTHER),
        ("blob_use", "id", "nobody"),
    ],
)
def test_a_row_too_many_is_found(stand: Stand, path: Path, table: str, key: str, value: object) -> None:
    """With a CRC that fits, and a name that no index forbids."""
    cells = table_rows(path, table)[-1] | {key: value}
    if "name" in cells:
        cells["name"] = ""
    kept = {column: cell for column, cell in cells.items() if column != "NULL"}
    kept["crc"] = fitting_crc(cells)
    sql = f"INSERT INTO {table} ({', '.join(kept)}) VALUES ({', '.join('?' * len(kept))})"
    change(path, sql, *kept.values())
    assert findings(stand, path)


def test_an_answer_too_many_has_no_position(stand: Stand, path: Path) -> None:
    row = sealed(("f", "db", 5, "a"), until=6)
    change(path, FAMILY_INSERT, *row)
    [found] = findings(stand, path)
    assert found.kind == "PROJECTION"
    assert found.position is None
    assert found.message == f"{path.name}: table family_latest has 4 answers, the log made 3"
    assert "rebuild" in found.remedy


def test_a_family_that_fell_back_to_the_wrong_image_is_found(stand: Stand) -> None:
    """As a lost entry of an index would have it: every row is whole, and one was decided wrongly."""
    stand.say([registered("s"), *(one for name in "abc" for one in image(name, name=name, family="web"))])
    stand.say([deleted("c")])
    path = stand.open_live()
    [(since, fallback)] = rows(path, "SELECT since, image_id FROM family_latest WHERE until IS NULL")
    assert fallback == "b"
    row = sealed(("f", "web", since, "a"))
    change(path, "UPDATE family_latest SET image_id = 'a', crc = ? WHERE since = ?", row[-1], since)
    message = "table family_latest does not say that family web resolves to b from there on"
    assert said(findings(stand, path)) == [(since, message)]


# Indexes, whose entries no row can tell of.


@contextmanager
def hidden(path: Path, index: str) -> Iterator[None]:
    """While it lasts, writes do not reach the index."""
    find = "SELECT type, name, tbl_name, rootpage, sql FROM sqlite_schema WHERE name = ?"
    with closing(database.connect(path, access="write", synchronous="OFF")) as connection:
        [entry] = connection.execute(find, (index,)).fetchall()
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("DELETE FROM sqlite_schema WHERE name = ?", (index,))
    yield
    with closing(database.connect(path, access="write", synchronous="OFF")) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("INSERT INTO sqlite_schema VALUES (?, ?, ?, ?, ?)", entry)


def indexed_row(path: Path, index: Index) -> int:
    [(since,)] = rows(path, f"SELECT min({index.key}) FROM {index.table} WHERE {index.where}")
    assert since is not None, f"no row for {index.name}"
    return int(since)


@pytest.fixture
def indexed(stand: Stand, path: Path) -> Path:
    """As `path`, with a row for every index: an operation that was asked for with a key, too."""
    stand.say([started("k")._replace(key="key", request=b"1")])
    return stand.open_live()


@pytest.mark.parametrize("index", INDEXES, ids=lambda index: index.name)
def test_a_row_that_an_index_has_lost_is_found(stand: Stand, indexed: Path, index: Index) -> None:
    since = indexed_row(indexed, index)
    change(indexed, f"CREATE TABLE kept AS SELECT * FROM {index.table} WHERE {index.key} = {since}")
    change(indexed, f"DELETE FROM {index.table} WHERE {index.key} = {since}")
    with hidden(indexed, index.name):
        change(indexed, f"INSERT INTO {index.table} SELECT * FROM kept")
    message = f"{index.name} does not lead to its row of table {index.table}"
    assert (since, message) in said(findings(stand, indexed))


# One of them has nothing but positions.
NAMING = [index for index in INDEXES if index.columns != (index.key,)]


@pytest.mark.parametrize("index", NAMING, ids=lambda index: index.name)
def test_an_entry_that_leads_astray_is_found(stand: Stand, indexed: Path, index: Index) -> None:
    """A second entry for a row, beside the right one."""
    since = indexed_row(indexed, index)
    column = index.columns[0]
    [(value,)] = rows(indexed, f"SELECT {column} FROM {index.table} WHERE {index.key} = {since}")
    condition = f"WHERE {index.key} = {since}"
    change(indexed, f"CREATE TABLE kept AS SELECT * FROM {index.table} {condition}")
    change(indexed, f"UPDATE {index.table} SET {column} = ? {condition}", other(value))
    with hidden(indexed, index.name):
        change(indexed, f"DELETE FROM {index.table} {condition}")
    change(indexed, f"INSERT INTO {index.table} SELECT * FROM kept")
    message = f"an entry of {index.name} leads to its row of table {index.table}, wrongly"
    assert (since, message) in said(findings(stand, indexed))


# The file itself.


def test_a_projection_of_another_event_is_found(stand: Stand, path: Path) -> None:
    change_applied(path, leaf=b"x" * 32)
    head = stand.log.head()
    assert said(findings(stand, path)) == [(head, "the event there is another one than was applied")]


def test_a_projection_that_does_not_say_how_far_it_came_is_damaged(stand: Stand, path: Path) -> None:
    change(path, "UPDATE applied SET crc = 1")
    with pytest.raises(RowDamaged):
        findings(stand, path)


def test_a_page_that_is_no_page_is_found_and_the_rest_is_read(stand: Stand, path: Path) -> None:
    """Each page of the file in its turn."""
    stand.say([updated("b", description=f"{number} {'x' * 200}") for number in range(60)])
    assert stand.open_live() == path
    whole = path.read_bytes()
    size = int.from_bytes(whole[16:18], "big")
    # What sqlite-utils notes of the migrations is not read again, and fits a page for each of its trees.
    notes = "SELECT rootpage - 1 FROM sqlite_schema WHERE tbl_name = '_sqlite_migrations'"
    pages = (
        set(range(1, len(whole) // size)) - free_pages(whole, size) - {page for (page,) in rows(path, notes)}
    )
    for page in pages:
        changed = bytearray(whole)
        changed[page * size : (page + 1) * size] = b"\xa5" * size
        path.write_bytes(changed)
        try:
            found = findings(stand, path)
        except (RowDamaged, database.DatabaseError):
            continue  # The page of table applied, or one of the schema.
        assert found, f"page {page + 1}"
        assert all(one.kind == "PROJECTION" for one in found)


def free_pages(whole: bytes, size: int) -> set[int]:
    """The pages that nothing uses, counted from 0. Source: https://www.sqlite.org/fileformat.html §1.5."""
    found = set()
    [trunk] = struct.unpack_from(">I", whole, 32)
    while trunk:
        start = (trunk - 1) * size
        following, count = struct.unpack_from(">II", whole, start)
        leaves = struct.unpack_from(f">{count}I", whole, start + 8)
        found |= {page - 1 for page in (trunk, *leaves)}
        trunk = following
    return found


def test_where_the_log_cannot_be_read_nothing_is_said_of_the_projection(stand: Stand, path: Path) -> None:
    """One damage is one finding, and the log's is told of the log."""
    for statement in (
        "DROP TRIGGER event_update",
        "UPDATE event SET body = x'00' WHERE position IN (3, 5, 13)",
    ):
        change(stand.log.path, statement)
    assert findings(stand, path) == []
