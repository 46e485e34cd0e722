from __future__ import annotations

import logging
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from sqlite_utils import Database
from sqlite_utils.migrations import Migrations

import eventstore
from eventstore import database
from eventstore.database import (
    checkpoint_truncate,
    connect,
    file_marks,
    has_wal_reset_bug,
    is_corrupt,
    is_empty,
    is_full,
    migrate,
    restart_wal,
    transaction,
)
from eventstore.errors import OutcomeUnknown

ROOT = Path(eventstore.__file__).parents[1]


@pytest.fixture
def connection(path: Path) -> database.Connection:
    connection = connect(path, access="create", synchronous="FULL")
    connection.execute("CREATE TABLE word (text TEXT) STRICT")
    return connection


def words(connection: database.Connection) -> list[str]:
    return [text for (text,) in connection.execute("SELECT text FROM word ORDER BY rowid")]


def test_a_transaction_is_kept(connection: database.Connection) -> None:
    with transaction(connection):
        connection.execute("INSERT INTO word VALUES ('a')")
    assert words(connection) == ["a"]
    assert not connection.in_transaction


def test_an_error_inside_leaves_nothing(connection: database.Connection) -> None:
    def fail() -> None:
        with transaction(connection):
            connection.execute("INSERT INTO word VALUES ('a')")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert words(connection) == []
    assert not connection.in_transaction


def test_an_error_of_commit_is_an_unknown_outcome(connection: database.Connection, path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fail() -> None:
        with transaction(connection):
            connection.execute("INSERT INTO word VALUES ('a')")
            resource.setrlimit(resource.RLIMIT_FSIZE, (1, hard))

    try:
        with pytest.raises(OutcomeUnknown):
            fail()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    connection.close()
    assert words(connect(path, access="read", synchronous="FULL")) == []


def test_modes(connection: database.Connection, path: Path) -> None:
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
    assert connection.execute("PRAGMA foreign_keys").fetchone() == (0,)
    assert connection.execute("PRAGMA trusted_schema").fetchone() == (0,)
    normal = connect(path, access="write", synchronous="NORMAL")
    assert normal.execute("PRAGMA synchronous").fetchone() == (1,)


def test_a_reader_writes_nothing(connection: database.Connection, path: Path) -> None:
    reader = connect(path, access="read", synchronous="FULL")
    with pytest.raises(database.OperationalError):
        reader.execute("INSERT INTO word VALUES ('a')")


def test_a_reader_sees_what_is_committed_meanwhile(connection: database.Connection, path: Path) -> None:
    reader = connect(path, access="read", synchronous="FULL")
    connection.execute("INSERT INTO word VALUES ('a')")
    assert words(reader) == ["a"]


@pytest.mark.parametrize("access", ["write", "read"])
def test_only_create_creates(tmp_path: Path, access: database.Access) -> None:
    with pytest.raises(database.OperationalError):
        connect(tmp_path / "absent.db", access=access, synchronous="FULL")
    assert list(tmp_path.iterdir()) == []


def test_a_path_is_not_read_as_a_uri(tmp_path: Path) -> None:
    path = tmp_path / "a%20b?mode=memory#c d.db"
    connect(path, access="create", synchronous="OFF").execute("CREATE TABLE word (text TEXT) STRICT")
    assert path.is_file()


@pytest.mark.parametrize("access", ["create", "read"])
def test_garbage_is_no_database(tmp_path: Path, access: database.Access) -> None:
    path = tmp_path / "garbage.db"
    path.write_bytes(b"garbage " * 1000)
    with pytest.raises(database.DatabaseError) as refused:
        connect(path, access=access, synchronous="FULL")
    assert is_corrupt(refused.value)
    assert not is_full(refused.value)


def test_full(connection: database.Connection) -> None:
    connection.execute("PRAGMA max_page_count = 2")
    with pytest.raises(database.OperationalError) as refused:
        connection.execute("INSERT INTO word VALUES (printf('%.*c', 100000, 'x'))")
    assert is_full(refused.value)
    assert not is_corrupt(refused.value)


def test_checkpoint_says_whether_a_reader_was_in_the_way(connection: database.Connection, path: Path) -> None:
    connection.execute("PRAGMA busy_timeout = 0")
    reader = connect(path, access="read", synchronous="FULL")
    connection.execute("INSERT INTO word VALUES ('a')")
    reader.execute("BEGIN")
    words(reader)
    connection.execute("INSERT INTO word VALUES ('b')")
    assert not checkpoint_truncate(connection)
    reader.execute("COMMIT")
    assert checkpoint_truncate(connection)
    assert path.with_name(path.name + "-wal").stat().st_size == 0
    reader.close()


def test_a_restarted_write_ahead_log_holds_one_page_under_a_new_salt(
    connection: database.Connection, path: Path
) -> None:
    wal = path.with_name(path.name + "-wal")
    connection.execute("PRAGMA user_version = 7")
    reader = connect(path, access="read", synchronous="FULL")
    for _ in range(10):
        connection.execute("INSERT INTO word VALUES ('a')")
    before = wal.read_bytes()
    assert restart_wal(connection)
    after = wal.read_bytes()
    assert len(after) == 32 + 24 + 4096
    assert after[16:24] != before[16:24]
    assert file_marks(connection) == (0, 7)
    assert words(reader) == words(connection) == ["a"] * 10
    reader.execute("BEGIN")
    words(reader)
    connection.execute("PRAGMA busy_timeout = 0")
    assert not restart_wal(connection)
    reader.close()


def test_migrations_run_once_and_all_or_nothing(path: Path) -> None:
    migrations = Migrations("test")
    runs: list[str] = []

    @migrations()
    def m001(db: Database) -> None:
        runs.append("m001")
        db.execute("CREATE TABLE one (x INTEGER) STRICT")

    connection = connect(path, access="create", synchronous="FULL")
    assert is_empty(connection)
    migrate(connection, migrations, application_id=7, user_version=1)
    migrate(connection, migrations, application_id=7, user_version=1)
    assert runs == ["m001"]
    assert file_marks(connection) == (7, 1)
    assert not is_empty(connection)

    @migrations()
    def m002(db: Database) -> None:
        db.execute("CREATE TABLE two (x INTEGER) STRICT")

    @migrations()
    def m003(db: Database) -> None:
        raise KeyError

    with pytest.raises(KeyError):
        migrate(connection, migrations, application_id=7, user_version=2)
    assert file_marks(connection) == (7, 1)
    assert connection.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'two'").fetchone() == (0,)
    assert not connection.in_transaction


@pytest.mark.parametrize(
    ("version", "buggy"),
    [("3.40.1", True), ("3.51.2", True), ("3.51.3", False), ("3.53.0", False), ("4.0.0", False)],
)
def test_versions_with_the_wal_reset_bug(version: str, buggy: bool) -> None:
    assert has_wal_reset_bug(version) is buggy


def test_a_buggy_version_is_warned_of_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(database, "has_wal_reset_bug", lambda: True)
    monkeypatch.setattr(database, "_warned", set())
    with caplog.at_level(logging.WARNING):
        for name in ("a.db", "b.db"):
            connect(tmp_path / name, access="create", synchronous="OFF").close()
    assert len(caplog.records) == 1


def test_the_room_imports_without_grpc() -> None:
    script = (
        "import sys\n"
        "for name in ('grpc', 'google', 'google.protobuf'): sys.modules[name] = None\n"
        "import eventstore, eventstore.log, eventstore.lock, eventstore.upcast\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)
