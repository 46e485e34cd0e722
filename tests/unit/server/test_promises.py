"""What a start checks of its log's past, and what it has to say of it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from eventstore import database
from eventstore.checkpoint import KeptCheckpoint, sign
from eventstore.errors import KeyFileRefused, PublishedRefused
from eventstore.event import Position, Version
from eventstore.heads import checkpoint_at
from eventstore.keys import create_key_file, format_vkey, generate_key
from eventstore.log import EventLog
from eventstore.merkle import TreeSize
from eventstore.published import publish
from eventstore.reader import LogReader
from server.config import Config
from server.promises import KEY_LOST, PromiseBroken, RollbackRefused, check_promises, first_events
from server.signing import KEY_FILE
from server.writer import SystemEvent
from tests.unit.eventstore.conftest import LOG_ID, build_event

SIGNER = generate_key(LOG_ID, bytes(range(32)))
OTHER = generate_key(LOG_ID, bytes(32))
ADDED = SystemEvent("CheckpointKeyAdded", {"public_key": format_vkey(SIGNER.verifier)})


def make(path: Path, events: int, *, word: str = "said") -> Path:
    """A log whose second event is its key's; the others may be others than those of other logs here."""
    with EventLog.open(path) as log:
        log.create_if_empty(log_id=LOG_ID, at=1)
        key = build_event(2, version=2, stream="log", type=ADDED.type, data=dict(ADDED.data))
        log.append([key], expected_head=Position(1))
        for position in range(3, events + 1):
            event = build_event(position, version=Version(position - 2), data={"text": word})
            log.append([event], expected_head=Position(position - 1))
    return path


def kept(path: Path, size: int) -> KeptCheckpoint:
    with LogReader.open(path) as log:
        checkpoint = checkpoint_at(log, TreeSize(size))
        return KeptCheckpoint(checkpoint.size, checkpoint.root, sign(checkpoint, SIGNER), size * 10**9)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    create_key_file(folder / KEY_FILE, SIGNER)
    return folder


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    return folder


def check(data: Path, **options: Any) -> tuple[SystemEvent, ...]:
    """The events that a start of this log begins with, signed by the key at hand or a new one."""
    config = Config(data=data, listen="127.0.0.1:0", **options)
    config.check()
    with LogReader.open(data / "log.db") as log:
        promises = check_promises(config, log)
    return first_events(promises, promises.signer or OTHER, reason=config.accept_rollback)


def write(path: Path, *statements: str) -> None:
    with closing(database.connect(path, access="write", synchronous="OFF")) as connection:
        for statement in statements:
            connection.execute(statement)


# What it keeps.


def test_a_log_that_leads_to_what_it_keeps(data: Path) -> None:
    make(data / "log.db", 10)
    with EventLog.open(data / "log.db") as log:
        log.keep_checkpoint(kept(data / "log.db", 7))
    assert check(data) == ()


def cut(path: Path) -> None:
    write(path, "DROP TRIGGER event_delete", "DELETE FROM event WHERE position > 5")


def rewrite(path: Path) -> None:
    """Another history under the same checkpoints: the file of another log, with this one's table."""
    other = make(path.with_name("other.db"), 10, word="never said")
    with closing(database.connect(other, access="write", synchronous="OFF")) as connection:
        connection.execute("ATTACH DATABASE :path AS old", {"path": str(path)})
        connection.execute("INSERT INTO main.checkpoint SELECT * FROM old.checkpoint")
    for ending in ("", "-wal", "-shm"):
        path.with_name(path.name + ending).unlink(missing_ok=True)
    other.replace(path)


def forge(path: Path) -> None:
    write(
        path,
        "DROP TRIGGER checkpoint_update",
        "UPDATE checkpoint SET note = replace(note, char(10) || '7', char(10) || '6')",
    )


def deface(path: Path) -> None:
    write(path, "DROP TRIGGER checkpoint_update", "UPDATE checkpoint SET root = zeroblob(32)")


@pytest.mark.parametrize(
    ("spoil", "texts"),
    [
        pytest.param(cut, ["TRUNCATION: the log ends at position 5", "of 7 events"], id="cut-off"),
        pytest.param(rewrite, ["FORK: the first 7 events", "their root is"], id="another-history"),
        pytest.param(forge, ["SIGNATURE: its checkpoint of 7 events", "changed"], id="forged"),
        pytest.param(deface, ["SIGNATURE: its checkpoint of 7 events"], id="another-root"),
    ],
)
def test_a_log_that_does_not_lead_to_what_it_keeps(
    data: Path, spoil: Callable[[Path], None], texts: list[str]
) -> None:
    path = make(data / "log.db", 10)
    with EventLog.open(path) as log:
        log.keep_checkpoint(kept(path, 7))
    spoil(path)
    with pytest.raises(PromiseBroken) as broken:
        check(data, accept_rollback="no reason helps")
    for text in (*texts, "signed at 1970-01-01T00:00:07.000000000Z", "; do not serve it: restore the log"):
        assert text in str(broken.value)


# What is said of the key.


def test_a_log_of_older_software_gets_its_first_key(data: Path) -> None:
    with EventLog.open(data / "log.db") as log:
        log.create_if_empty(log_id=LOG_ID, at=1)
    assert check(data) == (ADDED,)


def test_a_log_without_its_key_says_so_and_gets_a_new_one(data: Path) -> None:
    make(data / "log.db", 5)
    (data / KEY_FILE).unlink()
    new = SystemEvent("CheckpointKeyAdded", {"public_key": format_vkey(OTHER.verifier)})
    assert check(data) == (SystemEvent("LogRestored", {"reason": KEY_LOST}), new)
    told = SystemEvent("LogRestored", {"reason": "from the backup of Friday"})
    assert check(data, accept_rollback="from the backup of Friday") == (told, new)


def test_a_rotation_is_no_restoration(data: Path) -> None:
    make(data / "log.db", 5)
    new = SystemEvent("CheckpointKeyAdded", {"public_key": format_vkey(OTHER.verifier)})
    assert check(data, rotate_checkpoint_key=True) == (new,)


# What was published.


def test_a_log_that_leads_to_what_was_published(data: Path, outside: Path) -> None:
    path = make(data / "log.db", 10)
    publish(outside, kept(path, 10))
    assert check(data, publish_checkpoints=outside) == ()
    # What need not be accepted is not.
    assert check(data, publish_checkpoints=outside, accept_rollback="just in case") == ()


@pytest.mark.parametrize(
    ("events", "word", "texts"),
    [
        pytest.param(6, "said", ["ROLLBACK: the log ends at position 6", "first 4 events"], id="rollback"),
        pytest.param(12, "other", ["FORK: the log, at position 12", "first 2 events"], id="fork"),
    ],
)
def test_a_log_that_does_not_is_refused_until_that_is_accepted(
    data: Path, outside: Path, tmp_path: Path, events: int, word: str, texts: list[str]
) -> None:
    published = make(tmp_path / "published.db", 10)
    for size in (2, 4, 10) if events < 10 else (2, 10):
        publish(outside, kept(published, size))
    make(data / "log.db", events, word=word)
    with pytest.raises(RollbackRefused) as refused:
        check(data, publish_checkpoints=outside)
    newest = outside / "0000000000000000010.note"
    for text in (*texts, str(newest), "--accept-rollback REASON"):
        assert text in str(refused.value)
    assert "does not know" not in str(refused.value)
    given_up = kept(published, 10)
    told = SystemEvent("LogRestored", {"reason": "lost", "size": given_up.size, "root": given_up.root.hex()})
    assert check(data, publish_checkpoints=outside, accept_rollback="lost") == (told,)
    # It is the whole story for a log whose key is lost, too.
    (data / KEY_FILE).unlink()
    assert [event.type for event in check(data, publish_checkpoints=outside, accept_rollback="lost")] == [
        "LogRestored",
        "CheckpointKeyAdded",
    ]


def test_a_key_that_came_later_is_said_to_be_unknown(data: Path, outside: Path, tmp_path: Path) -> None:
    published = make(tmp_path / "published.db", 10)
    with LogReader.open(published) as log:
        checkpoint = checkpoint_at(log, TreeSize(10))
    publish(outside, kept(published, 10)._replace(note=sign(checkpoint, OTHER)))
    make(data / "log.db", 6)
    with pytest.raises(RollbackRefused, match="a key that this log does not know"):
        check(data, publish_checkpoints=outside)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        pytest.param(lambda outside: outside.rmdir(), "no such file", id="absent"),
        pytest.param(lambda outside: (outside.rmdir(), outside.touch()), "not a directory", id="a-file"),
    ],
)
def test_a_folder_that_cannot_take_them(
    data: Path, outside: Path, spoil: Callable[[Path], object], reason: str
) -> None:
    make(data / "log.db", 3)
    spoil(outside)
    with pytest.raises(PublishedRefused, match=reason):
        check(data, publish_checkpoints=outside)


# A log that is not there any more.


def new_log(data: Path, **options: Any) -> None:
    check_promises(Config(data=data, listen="127.0.0.1:0", **options), None)


def test_a_new_log_does_not_take_the_place_of_one_that_has_a_key_here(data: Path) -> None:
    with pytest.raises(KeyFileRefused, match="there is no log here"):
        new_log(data)
    (data / KEY_FILE).unlink()
    new_log(data)


def test_a_new_log_takes_no_key_of_another(data: Path, tmp_path: Path) -> None:
    (data / KEY_FILE).rename(tmp_path / "mine.key")
    with pytest.raises(KeyFileRefused, match="there is no log here"):
        new_log(data, checkpoint_key=tmp_path / "mine.key")


def test_a_new_log_does_not_publish_where_another_one_has(data: Path, outside: Path, tmp_path: Path) -> None:
    (data / KEY_FILE).unlink()
    new_log(data, publish_checkpoints=outside)
    publish(outside, kept(make(tmp_path / "published.db", 5), 5))
    with pytest.raises(PublishedRefused, match="there is no log here"):
        new_log(data, publish_checkpoints=outside, accept_rollback="lost")
