"""Checkpoints in a folder outside: never written over, and a log that does not lead to them is found out."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from eventstore.checkpoint import Checkpoint, KeptCheckpoint, sign
from eventstore.errors import PublishedDiffers, PublishedRefused
from eventstore.event import Position
from eventstore.heads import checkpoint_at
from eventstore.keys import Signer, generate_key
from eventstore.lineage import Lineage, Restored
from eventstore.log import EventLog
from eventstore.merkle import TreeSize
from eventstore.published import contradictions, folder_of, publish, remove_drafts
from tests.unit.eventstore.conftest import LOG_ID, build_event
from tests.unit.eventstore.crashing import deaths

SIGNER = generate_key(LOG_ID, bytes(range(32)))
STRANGER = generate_key(LOG_ID, bytes(32))
KEYS = (SIGNER.verifier,)
NOTHING = Lineage((), ())


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    return folder


@contextmanager
def log_of(path: Path, events: int, *, forked_at: int | None = None) -> Iterator[EventLog]:
    """A log; from one position on its events may be others than those of all other logs here."""
    with EventLog.open(path) as log:
        log.create_if_empty(log_id=LOG_ID, at=1)
        for position in range(2, events + 1):
            data = {"text": "other" if forked_at is not None and position >= forked_at else "said"}
            log.append([build_event(position, data=data)], expected_head=Position(position - 1))
        yield log


def kept(log: EventLog, size: int, signer: Signer = SIGNER) -> KeptCheckpoint:
    checkpoint = checkpoint_at(log, TreeSize(size))
    return KeptCheckpoint(checkpoint.size, checkpoint.root, sign(checkpoint, signer), 1)


def publish_of(log: EventLog, folder: Path, sizes: Sequence[int], signer: Signer = SIGNER) -> None:
    for size in sizes:
        publish(folder, kept(log, size, signer))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Writing.


def test_a_file_holds_the_note_and_is_called_by_its_size(outside: Path, log_of_ten: EventLog) -> None:
    one = kept(log_of_ten, 7)
    publish(outside, one)
    assert names(outside) == ["0000000000000000007.note"]
    assert (outside / "0000000000000000007.note").read_bytes() == one.note.encode()


def test_publishing_again_changes_nothing(outside: Path, log_of_ten: EventLog) -> None:
    publish(outside, kept(log_of_ten, 7))
    before = (outside / "0000000000000000007.note").stat()
    publish(outside, kept(log_of_ten, 7))
    after = (outside / "0000000000000000007.note").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert len(names(outside)) == 1


def test_nothing_is_written_over(outside: Path, log_of_ten: EventLog) -> None:
    path = outside / "0000000000000000007.note"
    path.write_text("somebody else's")
    with pytest.raises(PublishedDiffers):
        publish(outside, kept(log_of_ten, 7))
    assert path.read_text() == "somebody else's"
    assert names(outside) == [path.name]


def test_a_folder_that_is_gone_is_not_made_again(outside: Path, log_of_ten: EventLog) -> None:
    outside.rmdir()
    with pytest.raises(FileNotFoundError):
        publish(outside, kept(log_of_ten, 7))
    assert not outside.exists()


def test_a_restored_log_has_a_folder_of_its_own(outside: Path, log_of_ten: EventLog) -> None:
    said = Lineage((), (Restored(Position(3), bytes(32), TreeSize(7), bytes(32)),))
    folder = folder_of(outside, said)
    assert folder == outside / "3-0000000000000000"
    assert folder_of(outside, NOTHING) == outside
    publish(folder, kept(log_of_ten, 7))
    assert names(folder) == ["0000000000000000007.note"]


def test_a_death_at_any_step_leaves_a_whole_file_or_none(outside: Path, log_of_ten: EventLog) -> None:
    one, deaths_seen = kept(log_of_ten, 7), 0
    for _ in deaths("0000000000000000007.note", lambda: publish(outside, one)):
        deaths_seen += 1
        published = outside / "0000000000000000007.note"
        assert not published.exists() or published.read_bytes() == one.note.encode()
        remove_drafts(outside)
        assert set(names(outside)) <= {published.name}
        published.unlink(missing_ok=True)
    # Before the draft is opened, before it is linked, and before it is removed.
    assert deaths_seen == 3
    assert names(outside) == ["0000000000000000007.note"]


def test_after_a_death_the_same_is_published(outside: Path, log_of_ten: EventLog) -> None:
    """As above, but what a death leaves stays there for the next try."""
    one = kept(log_of_ten, 7)
    for _ in deaths("0000000000000000007.note", lambda: publish(outside, one)):
        pass
    assert names(outside) == ["0000000000000000007.note"]


def test_only_drafts_of_ours_are_removed(outside: Path) -> None:
    for name in (".0000000000000000007.note.draft", ".hidden", "0000000000000000007.note", "draft"):
        (outside / name).touch()
    remove_drafts(outside)
    assert names(outside) == [".hidden", "0000000000000000007.note", "draft"]
    remove_drafts(outside / "absent")


# Holding a log to them.


def told(outside: Path, log: EventLog, said: Lineage = NOTHING) -> list[tuple[str, int, int, int]]:
    """Of each contradiction its kind, the size that was published, the head, and on how many they agree."""
    return [
        (one.kind, int(one.newest.checkpoint.size), one.head, one.common)
        for one in contradictions(outside, log, said, KEYS)
    ]


def test_a_log_that_leads_to_all_of_them(outside: Path, tmp_path: Path) -> None:
    with log_of(tmp_path / "log.db", 10) as log:
        publish_of(log, outside, [1, 2, 7, 10])
        assert told(outside, log) == []
    with log_of(tmp_path / "longer.db", 12) as log:
        assert told(outside, log) == []


def test_an_empty_folder_and_one_with_other_files(outside: Path, tmp_path: Path) -> None:
    with log_of(tmp_path / "log.db", 3) as log:
        assert told(outside, log) == []
        (outside / "README").write_text("kept here since spring")
        (outside / "7.note").write_text("not one of ours")
        (outside / "lost+found").mkdir()
        assert told(outside, log) == []


@pytest.mark.parametrize(
    ("sizes", "common"), [([3, 5, 10], 5), ([10], 0), ([6, 10], 6), ([7, 10], 0), ([1, 2, 3, 8, 9, 10], 3)]
)
def test_a_log_that_ends_before_is_rolled_back(
    outside: Path, tmp_path: Path, sizes: list[int], common: int
) -> None:
    with log_of(tmp_path / "log.db", 10) as log:
        publish_of(log, outside, sizes)
    with log_of(tmp_path / "shorter.db", 6) as log:
        assert told(outside, log) == [("ROLLBACK", 10, 6, common)]


@pytest.mark.parametrize("events", [8, 10, 12])
def test_a_log_that_went_another_way_is_a_fork(outside: Path, tmp_path: Path, events: int) -> None:
    with log_of(tmp_path / "log.db", 10) as log:
        publish_of(log, outside, [2, 4, 5, 7, 8, 10])
    with log_of(tmp_path / "forked.db", events, forked_at=6) as log:
        assert told(outside, log) == [("FORK", 10, events, 5)]


def test_a_forked_log_that_is_too_short_to_tell_is_rolled_back(outside: Path, tmp_path: Path) -> None:
    with log_of(tmp_path / "log.db", 10) as log:
        publish_of(log, outside, [5, 10])
    with log_of(tmp_path / "forked.db", 8, forked_at=6) as log:
        assert told(outside, log) == [("ROLLBACK", 10, 8, 5)]


def test_what_was_given_up_is_no_contradiction(outside: Path, tmp_path: Path) -> None:
    with log_of(tmp_path / "log.db", 10) as log:
        publish_of(log, outside, [5, 10])
        given_up = checkpoint_at(log, TreeSize(10))
    said = Lineage((), (Restored(Position(7), bytes(32), given_up.size, given_up.root),))
    with log_of(tmp_path / "restored.db", 9, forked_at=7) as log:
        assert told(outside, log) == [("ROLLBACK", 10, 9, 5)]
        assert told(outside, log, said) == []
        # What it publishes from then on holds it again.
        publish_of(log, folder_of(outside, said), [8, 9])
        assert told(outside, log, said) == []
    with log_of(tmp_path / "again.db", 8, forked_at=7) as log:
        assert told(outside, log, said) == [("ROLLBACK", 9, 8, 8)]
    # Nor can the history that was given up come back beside it.
    with log_of(tmp_path / "old.db", 10) as log:
        assert told(outside, log) == [("FORK", 9, 10, 0)]


def test_more_from_the_history_that_was_given_up_is_told(outside: Path, tmp_path: Path) -> None:
    with log_of(tmp_path / "log.db", 11) as log:
        publish_of(log, outside, [10])
        given_up = checkpoint_at(log, TreeSize(10))
        said = Lineage((), (Restored(Position(7), bytes(32), given_up.size, given_up.root),))
        # Its server never noticed.
        publish_of(log, outside, [11])
    with log_of(tmp_path / "restored.db", 9, forked_at=7) as log:
        assert told(outside, log, said) == [("ROLLBACK", 11, 9, 0)]


def test_whether_the_key_is_known(outside: Path, tmp_path: Path) -> None:
    with log_of(tmp_path / "log.db", 10) as log:
        publish_of(log, outside, [10], STRANGER)
        assert told(outside, log) == []
    with log_of(tmp_path / "shorter.db", 6) as log:
        (found,) = contradictions(outside, log, NOTHING, KEYS)
        assert not found.newest.is_known
        (found,) = contradictions(outside, log, NOTHING, (STRANGER.verifier,))
        assert found.newest.is_known


def write(outside: Path, size: int, note: bytes) -> None:
    (outside / f"{size:019d}.note").write_bytes(note)


@pytest.mark.parametrize(
    ("note", "reason"),
    [
        pytest.param(b"", "is no checkpoint", id="empty"),
        pytest.param(b"\xff", "not UTF-8", id="bytes"),
        pytest.param(b"x" * 2_000_000, "is no checkpoint", id="endless"),
    ],
)
def test_a_file_that_is_no_checkpoint(outside: Path, tmp_path: Path, note: bytes, reason: str) -> None:
    write(outside, 5, note)
    with log_of(tmp_path / "log.db", 10) as log, pytest.raises(PublishedRefused, match=reason):
        contradictions(outside, log, NOTHING, KEYS)


def test_a_file_that_was_changed(outside: Path, tmp_path: Path) -> None:
    with log_of(tmp_path / "log.db", 10) as log:
        write(outside, 8, kept(log, 7).note.replace("\n7\n", "\n8\n").encode())
        with pytest.raises(PublishedRefused, match="is not what"):
            contradictions(outside, log, NOTHING, KEYS)


def test_a_file_that_was_renamed(outside: Path, tmp_path: Path) -> None:
    with log_of(tmp_path / "log.db", 10) as log:
        write(outside, 8, kept(log, 7).note.encode())
        with pytest.raises(PublishedRefused, match="of 7 events"):
            contradictions(outside, log, NOTHING, KEYS)


@pytest.mark.parametrize("size", [5, 15])
def test_a_checkpoint_of_another_log(outside: Path, tmp_path: Path, size: int) -> None:
    foreign = Checkpoint("other", TreeSize(size), bytes(32))
    write(outside, size, sign(foreign, generate_key("other", bytes(32))).encode())
    with log_of(tmp_path / "log.db", 10) as log, pytest.raises(PublishedRefused, match="of log other"):
        contradictions(outside, log, NOTHING, KEYS)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_cannot_be_read(outside: Path, tmp_path: Path) -> None:
    outside.chmod(0)
    try:
        with log_of(tmp_path / "log.db", 3) as log, pytest.raises(PermissionError):
            contradictions(outside, log, NOTHING, KEYS)
    finally:
        outside.chmod(0o700)


def test_few_files_are_read_of_many(outside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with log_of(tmp_path / "log.db", 200) as log:
        publish_of(log, outside, range(1, 201))
    opened: list[Path] = []
    open_ = Path.open

    def counted(self: Path, *arguments: object, **options: object) -> object:
        opened.append(self)
        return open_(self, *arguments, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", counted)
    with log_of(tmp_path / "forked.db", 180, forked_at=77) as log:
        assert told(outside, log) == [("FORK", 200, 180, 76)]
    assert len(opened) <= 2 + 8
