"""Checkpoints that a log keeps: one root for a size, for ever, and none of events that are not there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from eventstore import database
from eventstore.audit import LogAudit
from eventstore.checkpoint import KeptCheckpoint, sign
from eventstore.errors import (
    AppendFailed,
    CheckpointContradicted,
    ForeignCheckpoint,
    NoSuchPosition,
    NoteMalformed,
    NoteUnverified,
    OutcomeUnknown,
    SignatureWrong,
)
from eventstore.event import Position
from eventstore.heads import check_kept, checkpoint_at
from eventstore.keys import generate_key
from eventstore.log import EventLog
from eventstore.merkle import TreeSize
from eventstore.reader import LogReader
from tests.unit.eventstore.conftest import LOG_ID, build_event

SIGNER = generate_key(LOG_ID, bytes(range(32)))
OTHER = generate_key(LOG_ID, bytes(32))
KEYS = (SIGNER.verifier,)


def kept_at(log: LogReader, size: int) -> KeptCheckpoint:
    checkpoint = checkpoint_at(log, TreeSize(size))
    return KeptCheckpoint(checkpoint.size, checkpoint.root, sign(checkpoint, SIGNER), size * 10)


def test_what_is_kept_is_there_after_a_restart(log_of_ten: EventLog, path: Path) -> None:
    given = [kept_at(log_of_ten, size) for size in (3, 7, 10)]
    for kept in given:
        log_of_ten.keep_checkpoint(kept)
        assert log_of_ten.newest_checkpoint() == kept
    log_of_ten.close()
    with LogReader.open(path) as reader:
        assert reader.checkpoints() == given
        assert reader.checkpoints(after=3, limit=1) == [given[1]]
        assert reader.newest_checkpoint() == given[2]


def test_no_checkpoint_is_kept_in_a_new_log(log: EventLog) -> None:
    assert log.newest_checkpoint() is None
    assert log.checkpoints() == []


def test_the_same_again_is_no_second_one(log_of_ten: EventLog) -> None:
    kept = kept_at(log_of_ten, 7)
    for at in (1, 2):
        log_of_ten.keep_checkpoint(kept._replace(at=at))
    assert log_of_ten.checkpoints() == [kept._replace(at=1)]


def test_a_size_has_one_root(log_of_ten: EventLog) -> None:
    kept = kept_at(log_of_ten, 7)
    log_of_ten.keep_checkpoint(kept)
    with pytest.raises(CheckpointContradicted) as refused:
        log_of_ten.keep_checkpoint(kept._replace(root=bytes(32)))
    assert (refused.value.size, refused.value.root) == (7, kept.root.hex())
    assert log_of_ten.checkpoints() == [kept]


def test_none_is_kept_of_events_that_are_not_there(log_of_ten: EventLog) -> None:
    kept = kept_at(log_of_ten, 10)
    with pytest.raises(NoSuchPosition):
        log_of_ten.keep_checkpoint(kept._replace(size=TreeSize(11)))
    assert log_of_ten.checkpoints() == []


def test_sizes_grow(log_of_ten: EventLog) -> None:
    log_of_ten.keep_checkpoint(kept_at(log_of_ten, 7))
    with pytest.raises(AppendFailed):
        log_of_ten.keep_checkpoint(kept_at(log_of_ten, 6))
    assert [kept.size for kept in log_of_ten.checkpoints()] == [7]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE checkpoint SET root = zeroblob(32)",
        "DELETE FROM checkpoint",
        "REPLACE INTO checkpoint (size, root, note, at) VALUES (7, zeroblob(32), '', 1)",
        "INSERT INTO checkpoint (size, root, note, at) VALUES (6, zeroblob(32), '', 1)",
        "INSERT INTO checkpoint (size, root, note, at) VALUES (11, zeroblob(32), '', 1)",
    ],
)
def test_the_file_refuses_what_would_change_it(log_of_ten: EventLog, statement: str) -> None:
    kept = kept_at(log_of_ten, 7)
    log_of_ten.keep_checkpoint(kept)
    with pytest.raises(database.IntegrityError):
        log_of_ten._open_connection().execute(statement)
    assert log_of_ten.checkpoints() == [kept]


@pytest.mark.parametrize("is_durable", [False, True])
def test_a_commit_of_unknown_outcome_stops_the_log(
    log_of_ten: EventLog, monkeypatch: pytest.MonkeyPatch, is_durable: bool
) -> None:
    commit = database.commit

    def fail(connection: database.Connection) -> None:
        if is_durable:
            commit(connection)
        raise OutcomeUnknown("COMMIT failed: disk I/O error")

    kept = kept_at(log_of_ten, 7)
    monkeypatch.setattr(database, "commit", fail)
    with pytest.raises(OutcomeUnknown):
        log_of_ten.keep_checkpoint(kept)
    monkeypatch.undo()
    with pytest.raises(OutcomeUnknown):
        log_of_ten.keep_checkpoint(kept)
    log_of_ten.reopen()
    assert log_of_ten.checkpoints() == ([kept] if is_durable else [])
    log_of_ten.keep_checkpoint(kept)
    assert log_of_ten.checkpoints() == [kept]


@pytest.fixture
def old_path(log_of_ten: EventLog, path: Path) -> Path:
    """A log as the first disk format has it."""
    connection = log_of_ten._open_connection()
    connection.execute("DROP TABLE checkpoint")
    connection.execute("DELETE FROM _sqlite_migrations WHERE name = 'm003_checkpoint'")
    connection.execute("PRAGMA user_version = 1")
    log_of_ten.close()
    return path


def test_a_log_of_the_first_format_is_read_as_it_is(old_path: Path) -> None:
    before = old_path.read_bytes()
    with LogReader.open(old_path) as reader:
        assert reader.head() == 10
        assert reader.newest_checkpoint() is None
        assert reader.checkpoints() == []
    with LogAudit.open(old_path) as audit:
        assert list(audit.findings()) == []
    assert old_path.read_bytes() == before


def test_a_log_of_the_first_format_keeps_checkpoints_once_it_is_written(old_path: Path) -> None:
    with EventLog.open(old_path) as log:
        assert [event.position for event in log.events()] == list(range(1, 11))
        log.keep_checkpoint(kept_at(log, 10))
        log.append([build_event(11)], expected_head=Position(10))
        assert [kept.size for kept in log.checkpoints()] == [10]
    with LogAudit.open(old_path) as audit:
        assert list(audit.findings()) == []


def test_an_audit_misses_the_table_and_its_triggers(log_of_ten: EventLog, path: Path) -> None:
    log_of_ten._open_connection().execute("DROP TRIGGER checkpoint_update")
    log_of_ten.close()
    with LogAudit.open(path) as audit:
        (finding,) = audit.findings()
    assert "checkpoint_update is missing" in finding.message


def test_a_kept_checkpoint_is_checked(log_of_ten: EventLog) -> None:
    kept = kept_at(log_of_ten, 7)
    assert check_kept(log_of_ten, kept, KEYS) == checkpoint_at(log_of_ten, TreeSize(7))


def _signed(log: LogReader, **fields: object) -> KeptCheckpoint:
    """A checkpoint of seven events, with something else in it, signed by the right key."""
    checkpoint = replace(checkpoint_at(log, TreeSize(7)), **fields)  # type: ignore[arg-type]
    return KeptCheckpoint(checkpoint.size, checkpoint.root, sign(checkpoint, SIGNER), 1)


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        pytest.param(lambda log: _signed(log, root=bytes(32)), CheckpointContradicted, id="another-history"),
        pytest.param(lambda log: _signed(log, size=TreeSize(11)), NoSuchPosition, id="cut-off"),
        pytest.param(lambda log: _signed(log, origin="other"), ForeignCheckpoint, id="foreign"),
        pytest.param(
            lambda log: kept_at(log, 7)._replace(note=sign(checkpoint_at(log, TreeSize(7)), OTHER)),
            NoteUnverified,
            id="unknown-key",
        ),
        pytest.param(
            lambda log: kept_at(log, 7)._replace(note=kept_at(log, 7).note.replace("\n7\n", "\n8\n")),
            SignatureWrong,
            id="changed",
        ),
        pytest.param(lambda log: kept_at(log, 7)._replace(note="7"), NoteMalformed, id="no-note"),
        pytest.param(lambda log: kept_at(log, 7)._replace(size=TreeSize(6)), NoteMalformed, id="other-size"),
        pytest.param(lambda log: kept_at(log, 7)._replace(root=bytes(32)), NoteMalformed, id="other-root"),
    ],
)
def test_a_kept_checkpoint_that_is_wrong(
    log_of_ten: EventLog, wrong: Callable[[LogReader], KeptCheckpoint], error: type[Exception]
) -> None:
    with pytest.raises(error):
        check_kept(log_of_ten, wrong(log_of_ten), KEYS)
