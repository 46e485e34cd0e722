"""All that is wrong with a log is found, at its position and by its name; and nothing where nothing is."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from eventstore import database, merkle
from eventstore.audit import INDEXES, PAGE_EVENTS, LogAudit
from eventstore.errors import EnvelopeTooNew, EventStoreError, LogCorrupt
from eventstore.event import Event, Position, encode
from eventstore.finding import Finding
from eventstore.indexes import Index
from eventstore.log import EventLog
from tests.unit.eventstore.conftest import LOG_ID, build_event

EVENTS = 45
EVERYTHING = "SELECT * FROM event NOT INDEXED"
Found = list[tuple[str, int | None]]


def findings(path: Path) -> list[Finding]:
    with LogAudit.open(path) as audit:
        return [*audit.findings(), *audit.entry_findings()]


def found(path: Path) -> Found:
    """Kind and position of each finding."""
    return [(one.kind, one.position) for one in findings(path)]


def history(count: int = EVENTS) -> list[Event]:
    """Events of three streams behind a LogCreated, in batches of up to three with one stamp each."""
    versions = {"s0": 0, "s1": 0, "s2": 0}
    events = []
    for position in range(2, count + 1):
        stream = f"s{position % 7 % 3}"
        versions[stream] += 1
        events.append(
            build_event(position, stream=stream, version=versions[stream], at=100 + position // 3 * 10)
        )
    return events


@pytest.fixture
def written(path: Path) -> Path:
    """A log with EVENTS positions, closed."""
    with EventLog.open(path) as log:
        log.create_if_empty(log_id=LOG_ID, at=1)
        batch: list[Event] = []
        for event in [*history(), None]:
            if batch and (event is None or event.at != batch[0].at):
                log.append(batch, expected_head=Position(batch[0].position - 1))
                batch = []
            batch += [event] if event is not None else []
    return path


@contextmanager
def behind_its_back(path: Path) -> Iterator[database.Connection]:
    """A connection that may change and delete events; the file is whole again when it is closed."""
    with closing(database.connect(path, access="write", synchronous="OFF")) as connection:
        triggers = connection.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'").fetchall()
        for name, _ in triggers:
            connection.execute(f"DROP TRIGGER {name}")
        yield connection
        for _, sql in triggers:
            connection.execute(sql)


def change(path: Path, sql: str, *values: object) -> None:
    with behind_its_back(path) as connection:
        connection.execute(sql, values)


def rows(path: Path, sql: str, *values: object) -> list[tuple[Any, ...]]:
    with closing(database.connect(path, access="read", synchronous="OFF")) as connection:
        return connection.execute(sql, values).fetchall()


def test_a_whole_log_has_no_findings(written: Path) -> None:
    assert findings(written) == []


@pytest.mark.parametrize("count", [0, 1, 2, 3, PAGE_EVENTS, PAGE_EVENTS + 1])
def test_a_log_of_any_length_has_none(path: Path, count: int) -> None:
    with EventLog.open(path) as log:
        if count:
            log.create_if_empty(log_id=LOG_ID, at=1)
        for position in range(2, count + 1):
            log.append([build_event(position)], expected_head=Position(position - 1))
    assert findings(path) == []


def test_what_is_appended_meanwhile_is_no_finding(log: EventLog, path: Path) -> None:
    for position in range(2, PAGE_EVENTS * 2):
        log.append([build_event(position)], expected_head=Position(position - 1))

    def append(done: int, size_bytes: int) -> None:
        head = log.head()
        log.append([build_event(head + 1)], expected_head=head)

    with LogAudit.open(path) as audit:
        assert list(audit.findings(on_read=append)) == []
        assert list(audit.entry_findings(on_read=append)) == []


def test_no_transaction_is_open_while_it_waits(written: Path) -> None:
    """Each time, what was written can be moved out of the write-ahead log."""
    emptied: list[bool] = []
    with closing(database.connect(written, access="write", synchronous="OFF")) as connection:

        def write(done: int, size_bytes: int) -> None:
            connection.execute("UPDATE closed SET at = at + 1")
            emptied.append(database.checkpoint_truncate(connection))

        with LogAudit.open(written) as audit:
            assert list(audit.findings(on_read=write)) == []
            assert list(audit.entry_findings(on_read=write)) == []
    assert len(emptied) == 2 + len(INDEXES)
    assert all(emptied)


def test_it_hears_of_what_was_read(written: Path) -> None:
    heard: list[tuple[int, int]] = []
    with LogAudit.open(written) as audit:
        assert list(audit.findings(until=40, on_read=lambda *step: heard.append(step))) == []
        assert list(audit.entry_findings(on_read=lambda *step: heard.append(step))) == []
    bodies = sum(len(encode(event)) for event in history()[:39])
    assert [done for done, _ in heard[:2]] == [PAGE_EVENTS, 40]
    assert heard[0][1] + heard[1][1] > bodies
    # All of one index and then of the next: the first event has neither operation nor resource.
    assert [done for done, _ in heard[2:]] == [EVENTS, 2 * EVENTS - 1, 3 * EVENTS - 2]


# One change each, and how it is told.


def set_body(path: Path, event: Event, *, position: int | None = None, hashed: bool = False) -> None:
    """Put an event into a row, with its leaf hash or without."""
    body = encode(event)
    at = event.position if position is None else position
    change(path, "UPDATE event SET body = ? WHERE position = ?", body, at)
    if hashed:
        sql = "UPDATE event SET hashes = CAST(? || substr(hashes, 33) AS BLOB) WHERE position = ?"
        change(path, sql, merkle.leaf_hash(body), at)


def row_of(path: Path, position: int) -> Event:
    with LogAudit.open(path) as audit:
        return audit.event(Position(position))


@pytest.mark.parametrize("position", [2, 7, 8, 32, EVENTS])
def test_an_edited_event_is_one_edit(written: Path, position: int) -> None:
    set_body(written, row_of(written, position)._replace(data={"text": "another"}))
    assert found(written) == [("EDIT", position)]


@pytest.mark.parametrize(
    ("position", "told"), [(6, 6), (7, 8), (8, 8), (32, 32), (33, 34)], ids=lambda value: str(value)
)
def test_an_edit_with_its_leaf_hash_shows_in_the_tree(written: Path, position: int, told: int) -> None:
    """In the first node above it, which has two leaves: the tree does not tell which of them is wrong."""
    set_body(written, row_of(written, position)._replace(data={"text": "another"}), hashed=True)
    assert found(written) == [("EDIT", told)]


@pytest.mark.parametrize("position", [2, 7, 8, 32])
def test_every_damaged_hash_is_one_edit(written: Path, position: int) -> None:
    [(hashes,)] = rows(written, "SELECT hashes FROM event WHERE position = ?", position)
    for index in range(0, len(hashes), 32):
        changed = hashes[:index] + bytes([hashes[index] ^ 1]) + hashes[index + 1 :]
        change(written, "UPDATE event SET hashes = ? WHERE position = ?", changed, position)
        assert found(written) == [("EDIT", position)]


@pytest.mark.parametrize("hashes", [b"", b"x" * 31, None], ids=["none", "short", "one-too-many"])
def test_hashes_of_another_length_are_an_edit(written: Path, hashes: bytes | None) -> None:
    [(stored,)] = rows(written, "SELECT hashes FROM event WHERE position = 12")
    wrong = stored + b"x" * 32 if hashes is None else hashes
    change(written, "UPDATE event SET hashes = ? WHERE position = 12", wrong)
    assert found(written) == [("EDIT", 12)]


def test_hashed_bytes_that_are_no_event_are_an_edit(written: Path) -> None:
    body = b"\x80"
    hashes = merkle.leaf_hash(body)
    change(
        written,
        "UPDATE event SET body = ?, hashes = CAST(? || substr(hashes, 33) AS BLOB) WHERE position = 9",
        body,
        hashes,
    )
    assert ("EDIT", 9) in found(written)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("stream", "other"),
        ("version", 99),
        ("type", "Other"),
        ("at", 1),
        ("operation_id", "other"),
        ("operation_id", None),
        ("resource_id", "other"),
        ("resource_id", None),
    ],
)
def test_a_column_that_says_something_else_is_told(written: Path, column: str, value: object) -> None:
    change(written, f"UPDATE event SET {column} = ? WHERE position = 9", value)
    assert found(written) == [("COLUMN", 9)]


def test_a_missing_event_is_a_truncation(written: Path) -> None:
    change(written, "DELETE FROM event WHERE position = 20")
    assert found(written) == [("TRUNCATION", 20)]


def test_missing_events_are_one_truncation(written: Path) -> None:
    change(written, "DELETE FROM event WHERE position BETWEEN 20 AND 30")
    [one] = findings(written)
    assert (one.kind, one.position) == ("TRUNCATION", 20)
    assert one.message == "positions 20 to 30 are missing, and the log goes on behind"
    assert one.remedy == "restore the log from a backup"


def test_a_missing_event_whose_place_was_closed_is_a_truncation(written: Path) -> None:
    with behind_its_back(written) as connection:
        connection.execute("DELETE FROM event WHERE position = 20")
        for position in range(21, EVENTS + 1):
            connection.execute("UPDATE event SET position = position - 1 WHERE position = ?", (position,))
    [one] = findings(written)
    assert (one.kind, one.position) == ("TRUNCATION", 20)
    assert one.message.startswith(
        "1 fewer than were written: the rows 20 to 44 have the bytes of position 21"
    )


def test_an_event_put_in_between_is_an_insertion(written: Path) -> None:
    _make_room(written, 20)
    put_in = row_of(written, 19)._replace(position=Position(20), version=99, data={"text": "forged"})  # type: ignore[arg-type]
    _insert(written, put_in)
    kinds = found(written)
    assert ("INSERTION", 20) in kinds
    assert {kind for kind, _ in kinds} <= {"INSERTION", "EDIT", "TRUNCATION"}


def _make_room(path: Path, position: int) -> None:
    with behind_its_back(path) as connection:
        for later in range(EVENTS, position - 1, -1):
            connection.execute("UPDATE event SET position = position + 1 WHERE position = ?", (later,))


def _insert(path: Path, event: Event) -> None:
    body = encode(event)
    sql = "INSERT INTO event VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
    columns = event.position, event.stream, event.version, event.type, event.at, event.operation_id
    change(path, sql, *columns, event.resource_id, body, merkle.leaf_hash(body))


def test_an_appended_repetition_is_an_insertion(written: Path) -> None:
    """Of an event that is there: whole in itself, with a version that its stream has already."""
    change(written, "DROP INDEX event_by_stream")
    last = row_of(written, EVENTS)
    _insert(written, last._replace(position=Position(EVENTS + 1)))
    kinds = found(written)
    assert ("INSERTION", EVENTS + 1) in kinds
    assert ("EDIT", None) in kinds  # The index that was in the way.


@pytest.mark.parametrize(("one", "other"), [(9, 10), (5, 40), (EVENTS - 1, EVENTS)])
@pytest.mark.parametrize("what", ["body", "body, hashes", "row"])
def test_two_events_that_changed_places_are_a_reorder(written: Path, one: int, other: int, what: str) -> None:
    with behind_its_back(written) as connection:
        swap(connection, one, other, what)
    assert found(written) == [("REORDER", one), ("REORDER", other)]


def swap(connection: database.Connection, one: int, other: int, what: str) -> None:
    if what == "row":
        for before, after in ((one, -1), (other, one), (-1, other)):
            connection.execute("UPDATE event SET position = ? WHERE position = ?", (after, before))
        return
    select = f"SELECT {what} FROM event WHERE position = ?"
    cells = {position: connection.execute(select, (position,)).fetchone() for position in (one, other)}
    setting = ", ".join(f"{name} = ?" for name in what.split(", "))
    for position, source in ((one, other), (other, one)):
        connection.execute(f"UPDATE event SET {setting} WHERE position = ?", (*cells[source], position))


def rewritten(path: Path, events: Sequence[Event]) -> None:
    """The log anew, of other events, with a tree that is right."""
    path.unlink()
    with EventLog.open(path) as log:
        log.create_if_empty(log_id=LOG_ID, at=1)
    frontier = merkle.Frontier(
        merkle.TreeSize(1), (merkle.leaf_hash(rows(path, "SELECT body FROM event")[0][0]),)
    )
    with behind_its_back(path) as connection:
        for event in events:
            body = encode(event)
            frontier, [hashes] = merkle.extend(frontier, [merkle.leaf_hash(body)])
            columns = event.position, event.stream, event.version, event.type, event.at, event.operation_id
            sql = "INSERT INTO event VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
            connection.execute(sql, (*columns, event.resource_id, body, hashes))


def test_a_stamp_before_that_of_the_event_before_is_a_reorder(written: Path) -> None:
    events = history()
    events[10] = events[10]._replace(at=5)
    rewritten(written, events)
    assert found(written) == [("REORDER", events[10].position)]


def test_a_version_that_is_missing_in_a_whole_tree_is_a_truncation(written: Path) -> None:
    """Where somebody took an event out and made all others anew, but for their versions."""
    gone, *_ = [event for event in history() if event.stream == "s1"][5:]
    kept = [event for event in history() if event != gone]
    rewritten(written, [event._replace(position=Position(2 + n)) for n, event in enumerate(kept)])
    behind = next(event for event in history() if event.stream == "s1" and event.version > gone.version)
    assert found(written) == [("TRUNCATION", behind.position - 1)]


def test_streams_that_were_forgotten_are_looked_up(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eventstore.walk.STREAMS_MAX", 1)
    assert findings(written) == []
    change(written, "DELETE FROM event WHERE position = 20")
    assert found(written) == [("TRUNCATION", 20)]


# The file around the events.


def test_a_trigger_that_is_gone_is_told(written: Path) -> None:
    with closing(database.connect(written, access="write", synchronous="OFF")) as connection:
        connection.execute("DROP TRIGGER event_update")
    [one] = findings(written)
    assert (one.kind, one.position) == ("EDIT", None)
    assert one.message.startswith("log.db: its event_update is missing")


def test_a_closed_time_that_is_none_is_told(written: Path) -> None:
    change(written, "DELETE FROM closed")
    assert found(written) == [("EDIT", None)]


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


@pytest.mark.parametrize("index", INDEXES, ids=lambda index: index.name)
def test_an_event_that_an_index_has_lost_is_told(written: Path, index: Index) -> None:
    change(written, "CREATE TABLE kept AS SELECT * FROM event WHERE position = 9")
    change(written, "DELETE FROM event WHERE position = 9")
    with hidden(written, index.name):
        change(written, "INSERT INTO event SELECT * FROM kept")
    [one] = findings(written)
    assert (one.kind, one.position, one.message) == ("COLUMN", 9, f"{index.name} does not lead to it")


@pytest.mark.parametrize("index", INDEXES, ids=lambda index: index.name)
def test_an_entry_that_leads_astray_is_told(written: Path, index: Index) -> None:
    column = index.columns[0]
    [(value,)] = rows(written, f"SELECT {column} FROM event WHERE position = 9")
    change(written, f"UPDATE event SET {column} = 'wrong' WHERE position = 9")
    with hidden(written, index.name):
        change(written, f"UPDATE event SET {column} = ? WHERE position = 9", value)
    assert sorted(one.message for one in findings(written)) == [
        f"an entry of {index.name} leads to it, and it says something else",
        f"{index.name} does not lead to it",
    ]


def test_pages_that_are_none_are_told_and_the_rest_is_read(written: Path) -> None:
    """Each page of the file in its turn, and then another damage behind it."""
    set_body(written, row_of(written, EVENTS)._replace(data={"text": "another"}))
    whole = written.read_bytes()
    size = int.from_bytes(whole[16:18], "big")
    told = 0
    for page in range(1, len(whole) // size):
        changed = bytearray(whole)
        changed[page * size : (page + 1) * size] = b"\xa5" * size
        written.write_bytes(changed)
        kinds = found(written)
        told += len(kinds) > 1
        assert kinds[-1] == ("EDIT", EVENTS) or {kind for kind, _ in kinds} & {"EDIT", "COLUMN"}, page
    assert told > 5


def test_a_cut_tail_is_told(written: Path) -> None:
    whole = written.read_bytes()
    for left in range(len(whole) - 4096, 4096 * 3, -4096):
        written.write_bytes(whole[:left])
        try:
            assert found(written), left
        except LogCorrupt:
            continue  # It does not even open.


def test_events_of_newer_software_are_no_damage(written: Path) -> None:
    [(body,)] = rows(written, f"SELECT body FROM event WHERE position = {EVENTS}")
    newer = body.replace(b"\xa1v\x01", b"\xa1v\x02", 1)
    sql = "UPDATE event SET body = ?, hashes = CAST(? || substr(hashes, 33) AS BLOB) WHERE position = ?"
    change(written, sql, newer, merkle.leaf_hash(newer), EVENTS)
    with pytest.raises(EnvelopeTooNew):
        findings(written)


def test_any_flipped_bit_that_matters_is_told(written: Path) -> None:
    """It changes what is read of the table, or it is in what no answer depends on."""
    seed = random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    whole = written.read_bytes()
    used = [index for index, byte in enumerate(whole) if byte]
    stored = rows(written, EVERYTHING)
    for _ in range(200):
        index = chance.choice(used)
        changed = bytearray(whole)
        changed[index] ^= 1 << chance.randrange(8)
        written.write_bytes(changed)
        try:
            is_harmless = rows(written, EVERYTHING) == stored
            kinds = found(written)
        except (EventStoreError, *database.READ_ERRORS):
            continue  # It does not open.
        assert kinds or is_harmless, f"byte {index}"
