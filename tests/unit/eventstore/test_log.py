"""What is particular to the engine on SQLite. The promises that every engine makes are in tests/contract."""

from __future__ import annotations

import logging
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import eventstore
from eventstore import database, merkle
from eventstore import log as log_module
from eventstore.errors import (
    AppendFailed,
    EnvelopeTooNew,
    FormatTooNew,
    HeadMoved,
    LogCorrupt,
    LogUnreadable,
    NotALog,
    OutcomeUnknown,
    StampTooOld,
)
from eventstore.event import Event, Position
from eventstore.log import CHECKPOINT_FRAMES, PAGE_BYTES, EventLog
from eventstore.reader import LogReader
from eventstore.schema import APPLICATION_ID, DISK_FORMAT

ROOT = Path(eventstore.__file__).parents[1]
MakeEvent = Callable[..., Event]

# Bypasses every promise, as an operator with a SQLite shell can.
UNLOCK = """
DROP TRIGGER event_update;
DROP TRIGGER event_delete;
DROP TRIGGER event_insert;
"""


@contextmanager
def raw(path: Path) -> Iterator[database.Connection]:
    connection = database.connect(path, access="write", synchronous="FULL")
    try:
        yield connection
    finally:
        connection.close()


@contextmanager
def file_size_limit(size_bytes: int) -> Iterator[None]:
    """Makes every write beyond a size fail with an I/O error."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def process(script: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    child = subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


COLUMNS = "position, stream, version, type, at, operation_id, resource_id, body, hashes"


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE event SET at = 1 WHERE position = 3",
        "UPDATE event SET position = 11 WHERE position = 10",
        "UPDATE OR REPLACE event SET position = 3 WHERE position = 4",
        "DELETE FROM event WHERE position = 10",
        "DELETE FROM event",
        "REPLACE INTO event SELECT * FROM event WHERE position = 3",
        f"REPLACE INTO event ({COLUMNS}) VALUES (10, 's', 10, 'T', 1, NULL, NULL, x'', x'')",
        # REPLACE by the other unique index: the right position, a version that is there already.
        f"REPLACE INTO event ({COLUMNS}) VALUES (11, 's', 3, 'T', 1, NULL, NULL, x'', x'')",
        f"INSERT OR IGNORE INTO event ({COLUMNS}) VALUES (10, 's', 10, 'T', 1, NULL, NULL, x'', x'')",
        f"INSERT INTO event ({COLUMNS}) VALUES (12, 's', 10, 'T', 1, NULL, NULL, x'', x'')",
        f"INSERT INTO event ({COLUMNS}) VALUES (0, 's', 10, 'T', 1, NULL, NULL, x'', x'')",
        f"INSERT INTO event ({COLUMNS}) VALUES (NULL, 's', 10, 'T', 1, NULL, NULL, x'', x'')",
        f"INSERT INTO event ({COLUMNS}) VALUES (11, 's', 11, 'T', 1, NULL, NULL, x'', x'')",
        f"""INSERT INTO event ({COLUMNS}) VALUES (3, 's', 2, 'T', 1, NULL, NULL, x'', x'')
        ON CONFLICT (position) DO UPDATE SET at = 1""",
        "UPDATE closed SET at = at - 1",
        "UPDATE closed SET id = 2",
        "DELETE FROM closed",
        "REPLACE INTO closed (id, at) VALUES (1, 0)",
    ],
)
def test_the_database_itself_refuses(log_of_ten: EventLog, path: Path, statement: str) -> None:
    log_of_ten.close_time(1_000)
    before = list(log_of_ten.events())
    with raw(path) as connection, pytest.raises(database.IntegrityError):
        connection.execute(statement)
    assert list(log_of_ten.events()) == before
    assert log_of_ten.closed() == 1_000


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE event SET body = x'00' WHERE position = 5",
        "UPDATE event SET body = (SELECT body FROM event WHERE position = 6) WHERE position = 5",
        "UPDATE event SET hashes = zeroblob(32) WHERE position = 5",
        "UPDATE event SET hashes = x'' WHERE position = 5",
        """UPDATE event SET body = other.body, hashes = other.hashes
        FROM event AS other WHERE event.position = 5 AND other.position = 6""",
        "DELETE FROM event WHERE position = 5",
    ],
)
def test_a_changed_row_is_named_by_its_position(log_of_ten: EventLog, path: Path, statement: str) -> None:
    with raw(path) as connection:
        connection.executescript(UNLOCK)
        connection.execute(statement)
    with pytest.raises(LogCorrupt) as found:
        list(log_of_ten.events())
    assert found.value.position == 5
    with pytest.raises(LogCorrupt) as found:
        log_of_ten.event(Position(5))
    assert found.value.position == 5
    assert [event.position for event in log_of_ten.events(until=4)] == [1, 2, 3, 4]


def test_an_event_of_newer_software_is_named(log: EventLog, path: Path) -> None:
    body = b"\x81\xa1v\x02"
    row = (2, "s", 1, "T", 20, None, None, body, merkle.leaf_hash(body))
    with raw(path) as connection:
        connection.execute(f"INSERT INTO event ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
    for read in (lambda: list(log.events()), lambda: log.event(Position(2)), lambda: log.at(Position(2))):
        with pytest.raises(EnvelopeTooNew, match="v = 2") as found:
            read()
        assert found.value.position == 2


@pytest.mark.parametrize(
    ("position", "damage"),
    [
        pytest.param(8, lambda row: row[:64], id="short"),
        pytest.param(8, lambda row: row + bytes(32), id="long"),
        pytest.param(8, lambda row: bytes(32) + row[32:], id="leaf"),
        pytest.param(8, lambda row: row[:96] + bytes(32), id="top"),
        pytest.param(8, lambda row: row[:32] + bytes(96), id="all-but-the-leaf"),
        pytest.param(8, lambda row: row[:40] + bytes([row[40] ^ 1]) + row[41:], id="one-bit"),
        pytest.param(4, lambda row: row[:64] + bytes(32), id="on-the-left"),
        pytest.param(6, lambda row: row[:32] + bytes(32), id="on-the-left-of-the-middle"),
        pytest.param(10, lambda row: row[:32] + bytes(32), id="head"),
        pytest.param(9, lambda row: bytes(32), id="leaf-on-the-left"),
    ],
)
def test_damaged_hashes_on_the_way_to_the_head_are_found_at_open(
    log_of_ten: EventLog, path: Path, position: int, damage: Callable[[bytes], bytes]
) -> None:
    row = log_of_ten.hashes(Position(position))
    log_of_ten.close()
    with raw(path) as connection:
        connection.executescript(UNLOCK)
        connection.execute("UPDATE event SET hashes = ? WHERE position = ?", (damage(row), position))
    with pytest.raises(LogCorrupt) as found:
        EventLog.open(path)
    assert found.value.position == position


@pytest.mark.parametrize(
    ("read", "position", "statement"),
    [
        pytest.param(
            lambda log: log.position_at(105),
            9,
            "UPDATE event SET at = 1 << 61 WHERE position = 9",
            id="stamp-later",
        ),
        pytest.param(
            lambda log: log.position_at(55),
            6,
            "UPDATE event SET at = 1 WHERE position = 6",
            id="stamp-earlier",
        ),
        pytest.param(
            lambda log: log.events_of_operation("op3"),
            7,
            "UPDATE event SET operation_id = 'op3' WHERE position = 7",
            id="operation",
        ),
        pytest.param(
            lambda log: log.events_of_resource("r0"),
            7,
            "UPDATE event SET resource_id = 'r0' WHERE position = 7",
            id="resource",
        ),
        pytest.param(
            lambda log: log.stream_version("t"),
            7,
            "UPDATE event SET stream = 't' WHERE position = 7",
            id="stream",
        ),
        pytest.param(
            lambda log: log.stream_version("s"),
            10,
            "UPDATE event SET version = 99 WHERE position = 10",
            id="version",
        ),
        pytest.param(
            lambda log: log.events_of_stream("s"),
            8,  # The first after the gap.
            "UPDATE event SET stream = 't' WHERE position = 7",
            id="missing-in-its-stream",
        ),
        pytest.param(
            lambda log: log.hashes(Position(4)),
            4,
            "UPDATE event SET hashes = substr(hashes, 1, 32) WHERE position = 4",
            id="hashes-short",
        ),
    ],
)
def test_an_index_is_not_believed(
    log_of_ten: EventLog,
    path: Path,
    read: Callable[[EventLog], object],
    position: int | None,
    statement: str,
) -> None:
    read(log_of_ten)
    with raw(path) as connection:
        connection.executescript(UNLOCK)
        connection.execute(statement)
    with pytest.raises(LogCorrupt) as found:
        read(log_of_ten)
    assert found.value.position == position


@pytest.mark.parametrize("until", [5, 6, 7, 8, None])
@pytest.mark.parametrize("chunk", [1, 2, 3, 1000])
def test_a_gap_below_the_end_is_found(
    log_of_ten: EventLog, path: Path, until: int | None, chunk: int
) -> None:
    with raw(path) as connection:
        connection.executescript(UNLOCK)
        connection.execute("DELETE FROM event WHERE position IN (5, 6, 7)")
    with pytest.raises(LogCorrupt) as found:
        list(log_of_ten.events(until=until, chunk=chunk))
    assert found.value.position == 5


def test_the_stamp_of_an_event_is_that_of_its_bytes(
    log_of_ten: EventLog, make_event: MakeEvent, path: Path
) -> None:
    log_of_ten.close()
    with raw(path) as connection:
        connection.executescript(UNLOCK)
        connection.execute("UPDATE event SET at = 1 WHERE position = 10")
    with EventLog.open(path) as log:
        assert log.at(Position(10)) == 100
        with pytest.raises(StampTooOld):
            log.append([make_event(11, at=50)], expected_head=Position(10))


def test_a_flipped_bit_in_the_file_is_never_served(log_of_ten: EventLog, path: Path) -> None:
    log_of_ten.close()
    stored = path.read_bytes()
    index = stored.index(b"word 7")
    path.write_bytes(stored[:index] + b"W" + stored[index + 1 :])
    with LogReader.open(path) as reader, pytest.raises(LogCorrupt) as found:
        list(reader.events())
    assert found.value.position == 7


@pytest.mark.parametrize("opener", [EventLog.open, LogReader.open])
def test_a_newer_format_is_refused(log: EventLog, path: Path, opener: Callable[[Path], object]) -> None:
    log.close()
    with raw(path) as connection:
        connection.execute(f"PRAGMA user_version = {DISK_FORMAT + 1}")
    with pytest.raises(FormatTooNew) as refused:
        opener(path)
    assert refused.value.args == (path, DISK_FORMAT + 1, DISK_FORMAT)


def write_garbage(path: Path) -> None:
    path.write_bytes(b"not a database\n" * 500)


def write_foreign(path: Path) -> None:
    connection = database.connect(path, access="create", synchronous="FULL")
    connection.execute("CREATE TABLE note (text TEXT)")
    connection.close()


def write_directory(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("opener", [EventLog.open, LogReader.open])
@pytest.mark.parametrize("write", [write_garbage, write_foreign, write_directory])
def test_what_is_no_log_is_refused_and_left_alone(
    path: Path, write: Callable[[Path], None], opener: Callable[[Path], object]
) -> None:
    write(path)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(NotALog) as refused:
        opener(path)
    assert refused.value.path == path
    assert (path.read_bytes() if path.is_file() else None) == before


def test_a_reader_needs_a_log(path: Path) -> None:
    with pytest.raises(NotALog, match="no such file"):
        LogReader.open(path)
    assert not path.exists()


def test_a_missing_directory_is_unreadable(tmp_path: Path) -> None:
    with pytest.raises(LogUnreadable, match="absent"):
        EventLog.open(tmp_path / "absent" / "log.db")


def touch(path: Path) -> None:
    path.touch()


def create_wal_only(path: Path) -> None:
    database.connect(path, access="create", synchronous="FULL").close()


@pytest.mark.parametrize("crash", [touch, create_wal_only])
def test_a_file_left_by_a_crash_in_creation_is_completed(path: Path, crash: Callable[[Path], None]) -> None:
    crash(path)
    with pytest.raises(NotALog, match="empty"):
        LogReader.open(path)
    with EventLog.open(path) as log:
        log.create_if_empty(log_id="imageledger-x", at=1)
        assert log.log_id == "imageledger-x"


def test_the_file_tells_what_it_is(log: EventLog, path: Path) -> None:
    log.close()
    header = path.read_bytes()[:100]
    assert int.from_bytes(header[68:72]) == APPLICATION_ID
    assert int.from_bytes(header[60:64]) == DISK_FORMAT


def test_a_clean_close_leaves_everything_in_one_file(
    log_of_ten: EventLog, path: Path, tmp_path: Path
) -> None:
    log_of_ten.close()
    copy = tmp_path / "copy" / "log.db"
    copy.parent.mkdir()
    copy.write_bytes(path.read_bytes())
    with LogReader.open(copy) as reader:
        assert reader.head() == 10


def test_an_append_is_fsynced(log: EventLog) -> None:
    assert log._open_connection().execute("PRAGMA synchronous").fetchone() == (2,)


@pytest.fixture
def checkpoints(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int] | Exception]:
    """Makes every commit end in a checkpoint, and collects their results."""
    results: list[tuple[int, int] | Exception] = []
    checkpoint = database.checkpoint_passive

    def collect(connection: database.Connection) -> tuple[int, int]:
        results.append(checkpoint(connection))
        return checkpoint(connection)

    monkeypatch.setattr(log_module, "CHECKPOINT_FRAMES", 1)
    monkeypatch.setattr(database, "checkpoint_passive", collect)
    return results


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno == logging.WARNING]


def test_checkpoints_are_made_by_the_writer_alone(log_of_ten: EventLog) -> None:
    assert log_of_ten._open_connection().execute("PRAGMA wal_autocheckpoint").fetchone() == (0,)


def test_the_write_ahead_log_stays_small(log: EventLog, make_event: MakeEvent, path: Path) -> None:
    wal = path.with_name(path.name + "-wal")
    for position in range(2, 1500):
        log.append([make_event(position)], expected_head=Position(position - 1))
    assert wal.stat().st_size < 2 * CHECKPOINT_FRAMES * PAGE_BYTES
    for position in range(1500, 1560):
        log.append([big(make_event, position)], expected_head=Position(position - 1))
    assert wal.stat().st_size < 2 * CHECKPOINT_FRAMES * PAGE_BYTES


def test_a_failed_checkpoint_is_told_once_and_fails_no_append(
    log_of_ten: EventLog,
    make_event: MakeEvent,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    checkpoints: list[object],
) -> None:
    def fail(connection: database.Connection) -> tuple[int, int]:
        raise database.OperationalError("disk I/O error")

    position = 10
    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(database, "checkpoint_passive", fail)
            for _ in range(3):
                position += 1
                log_of_ten.append([make_event(position)], expected_head=Position(position - 1))
        assert len(warnings_of(caplog)) == 1
        caplog.clear()
        position += 1
        log_of_ten.append([make_event(position)], expected_head=Position(position - 1))
    assert log_of_ten.head() == position
    assert warnings_of(caplog) == []


def test_a_reader_that_stays_is_told_of_when_it_costs_room(
    log_of_ten: EventLog,
    make_event: MakeEvent,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    checkpoints: list[tuple[int, int]],
) -> None:
    log_of_ten.append([make_event(11)], expected_head=Position(10))
    with raw(path) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM event").fetchone()
        for position in range(12, 16):
            log_of_ten.append([make_event(position)], expected_head=Position(position - 1))
        assert warnings_of(caplog) == []
        frames, moved = checkpoints[-1]
        assert moved < frames
        monkeypatch.setattr(log_module, "FRAMES_LEFT_MAX", frames)
        for position in range(16, 20):
            log_of_ten.append([make_event(position)], expected_head=Position(position - 1))
        assert len(warnings_of(caplog)) == 1


def test_reopening_waits_for_a_reader(log_of_ten: EventLog, make_event: MakeEvent, path: Path) -> None:
    with raw(path) as reader, pytest.MonkeyPatch.context() as patch:
        patch.setattr(database, "BUSY_TIMEOUT_MS", 10)
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM event").fetchone()
        with pytest.raises(OutcomeUnknown, match="emptied"):
            log_of_ten.reopen()
        with pytest.raises(OutcomeUnknown):
            log_of_ten.head()
        reader.execute("COMMIT")
        log_of_ten.reopen()
    log_of_ten.append([make_event(11)], expected_head=Position(10))
    assert_sound(path, head=11)


def big(make_event: MakeEvent, position: int) -> Event:
    return make_event(position, data={"text": "x" * 200_000})


def test_full_before_commit_leaves_nothing(log_of_ten: EventLog, make_event: MakeEvent, path: Path) -> None:
    connection = log_of_ten._open_connection()
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(AppendFailed) as failed:
        log_of_ten.append([make_event(11), big(make_event, 12)._replace(at=110)], expected_head=Position(10))
    assert failed.value.full
    assert log_of_ten.head() == 10
    connection.execute("PRAGMA max_page_count = 1000000")
    log_of_ten.append([big(make_event, 11)], expected_head=Position(10))
    assert_sound(path, head=11)


def test_full_at_commit_is_an_unknown_outcome(
    log_of_ten: EventLog, make_event: MakeEvent, path: Path
) -> None:
    wal = path.with_name(path.name + "-wal")
    with file_size_limit(wal.stat().st_size + 5_000), pytest.raises(OutcomeUnknown):
        log_of_ten.append([big(make_event, 11)], expected_head=Position(10))
    for refused in (
        log_of_ten.head,
        lambda: list(log_of_ten.events()),
        lambda: log_of_ten.close_time(10**6),
        lambda: log_of_ten.append([make_event(11)], expected_head=Position(10)),
    ):
        with pytest.raises(OutcomeUnknown):
            refused()
    log_of_ten.reopen()
    assert log_of_ten.head() == 10
    log_of_ten.append([make_event(11)], expected_head=Position(10))
    assert_sound(path, head=11)


def test_an_error_after_the_commit_is_found_durable(
    log_of_ten: EventLog, make_event: MakeEvent, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def commit_and_fail(connection: database.Connection) -> None:
        connection.execute("COMMIT")
        raise OutcomeUnknown("the answer was lost")

    with monkeypatch.context() as patch:
        patch.setattr(database, "commit", commit_and_fail)
        with pytest.raises(OutcomeUnknown):
            log_of_ten.append([make_event(11)], expected_head=Position(10))
    log_of_ten.reopen()
    assert log_of_ten.head() == 11
    assert [event.position for event in log_of_ten.events_of_operation("op11")] == [11]
    log_of_ten.append([make_event(12)], expected_head=Position(11))
    assert_sound(path, head=12)


def test_a_close_after_an_unknown_outcome_is_quiet(
    log_of_ten: EventLog, make_event: MakeEvent, path: Path
) -> None:
    with file_size_limit(1), pytest.raises(OutcomeUnknown):
        log_of_ten.append([make_event(11)], expected_head=Position(10))
    log_of_ten.close()
    assert_sound(path, head=10)


def test_a_lock_held_by_another_program_is_a_failed_append(
    log_of_ten: EventLog, make_event: MakeEvent, path: Path
) -> None:
    log_of_ten._open_connection().execute("PRAGMA busy_timeout = 0")
    with raw(path) as connection:
        connection.execute("BEGIN IMMEDIATE")
        with pytest.raises(AppendFailed) as failed:
            log_of_ten.append([make_event(11)], expected_head=Position(10))
        assert not failed.value.full
        connection.execute("ROLLBACK")
    log_of_ten.append([make_event(11)], expected_head=Position(10))


def test_a_second_writer_moves_the_head(log_of_ten: EventLog, make_event: MakeEvent, path: Path) -> None:
    with EventLog.open(path) as other:
        other.append([make_event(11)], expected_head=Position(10))
        with pytest.raises(HeadMoved):
            log_of_ten.append([make_event(11)], expected_head=Position(10))
        log_of_ten.append([make_event(12)], expected_head=Position(11))
        other.append([make_event(13)], expected_head=Position(12))
    assert_sound(path, head=13)


def assert_sound(path: Path, *, head: int) -> None:
    """The log on disk has this head, no gap, and the hashes that its bodies have."""
    with LogReader.open(path) as reader:
        assert reader.head() == head
        assert [event.position for event in reader.events()] == list(range(1, head + 1))
        leaves = [merkle.leaf_hash(reader.body(Position(p))) for p in range(1, head + 1)]
        _, rows = merkle.extend(merkle.EMPTY, leaves)
        assert [reader.hashes(Position(p)) for p in range(1, head + 1)] == rows


APPEND_FOR_EVER = """
import sys
from pathlib import Path
from eventstore.event import Event
from eventstore.log import EventLog
log = EventLog.open(Path(sys.argv[1]))
log.create_if_empty(log_id="imageledger-x", at=1)
head = log.head()
while True:
    batch = [
        Event(head + i, "s", head + i - 1, "Said", 1, head * 10, None, None, "a", "dev", *[None] * 5,
              {"text": "x" * 3000})
        for i in range(1, 6)
    ]
    log.append(batch, expected_head=head)
    head += 5
    print(head, flush=True)
"""


def test_what_was_acknowledged_survives_kill_9(path: Path) -> None:
    acknowledged = 1
    for _ in range(3):
        with process(APPEND_FOR_EVER, path) as child:
            assert child.stdout is not None
            for _ in range(40):
                acknowledged = int(child.stdout.readline())
            child.send_signal(signal.SIGKILL)
            rest = child.stdout.read().split("\n")
            child.wait()
        acknowledged = max([acknowledged, *(int(line) for line in rest[:-1])])
        with EventLog.open(path) as log:
            head = log.head()
        assert head >= acknowledged
        assert (head - 1) % 5 == 0
        assert_sound(path, head=head)


def test_what_a_killed_process_left_is_moved_into_the_database(path: Path, tmp_path: Path) -> None:
    with process(APPEND_FOR_EVER, path) as child:
        assert child.stdout is not None
        for _ in range(3):
            child.stdout.readline()
        child.send_signal(signal.SIGKILL)
        child.wait()
    with EventLog.open(path) as log:
        copy = tmp_path / "copy" / "log.db"
        copy.parent.mkdir()
        # In a process of its own: closing the copy's descriptor here would drop the locks of the log.
        subprocess.run(["cp", str(path), str(copy)], check=True)
        assert_sound(copy, head=log.head())


READ_FOR_EVER = """
import sys
from pathlib import Path
from eventstore.reader import LogReader
reader = LogReader.open(Path(sys.argv[1]))
for line in sys.stdin:
    after = int(line)
    print(reader.head(), *(event.position for event in reader.events(after=after)), flush=True)
"""


def test_a_reader_in_another_process_follows_the_writer(
    log: EventLog, make_event: MakeEvent, path: Path
) -> None:
    with process(READ_FOR_EVER, path) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        for position in range(2, 30):
            log.append([make_event(position)], expected_head=Position(position - 1))
            if position == 15:
                assert database.checkpoint_truncate(log._open_connection())
            child.stdin.write(f"{position - 1}\n")
            child.stdin.flush()
            assert child.stdout.readline().split() == [str(position), str(position)]


def test_a_reader_of_a_stopped_log_writes_nothing(log_of_ten: EventLog, path: Path) -> None:
    log_of_ten.close()
    before = path.read_bytes()
    with LogReader.open(path) as reader:
        assert len(list(reader.events())) == 10
        with pytest.raises(database.OperationalError):
            reader._open_connection().execute("UPDATE closed SET at = 5")
    assert path.read_bytes() == before


def test_a_slow_reader_does_not_hold_the_write_ahead_log(
    log: EventLog, make_event: MakeEvent, path: Path
) -> None:
    for position in range(2, 12):
        log.append([make_event(position)], expected_head=Position(position - 1))
    with LogReader.open(path) as reader:
        events = reader.events(chunk=3)
        next(events)
        assert database.checkpoint_truncate(log._open_connection())
        assert len(list(events)) == 10


@pytest.mark.parametrize(
    "query",
    [
        "SELECT body FROM event WHERE operation_id = 'x' ORDER BY position",
        "SELECT body FROM event WHERE resource_id = 'x' AND position > 3 ORDER BY position LIMIT 5",
        "SELECT coalesce(max(version), 0) FROM event WHERE stream = 's'",
    ],
)
def test_every_question_is_one_seek(log: EventLog, query: str) -> None:
    plan = log._open_connection().execute(f"EXPLAIN QUERY PLAN {query}").fetchall()
    details = " ".join(row[3] for row in plan)
    assert "USING" in details
    assert "INDEX event_by" in details
    assert "TEMP B-TREE" not in details
