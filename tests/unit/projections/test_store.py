"""The files of a projection: found, caught up, refused, built anew, and never named twice."""

from __future__ import annotations

import os
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from eventstore import database
from eventstore.event import Position
from eventstore.log import EventLog
from projections.domain.evolve import EventUnknown
from projections.schema import PROJECTOR_VERSION
from projections.store import (
    ProjectionFiles,
    ProjectionRefused,
    build,
    check,
    digest_of,
    open_live,
    open_projector,
    rebuild,
)
from tests.unit.projections.builders import (
    LOG_ID,
    Stand,
    change,
    deleted,
    event,
    image,
    lossless,
    registered,
    rows,
    updated,
)

REMEDY = "stop the server and run `imageledger rebuild`"


@pytest.fixture
def filled(stand: Stand) -> Stand:
    """A log of seven events."""
    stand.say([registered("d"), *image("a", family="web"), *image("b", name="x"), deleted("b")])
    return stand


def names(stand: Stand) -> list[str]:
    """The projection files there are, without their write-ahead logs."""
    return sorted(entry.name for entry in stand.files.directory.glob("projections-*.db"))


def test_the_first_start_builds_and_names_it(filled: Stand) -> None:
    progress: list[tuple[int, int]] = []
    path = open_live(
        filled.files, filled.log, encode=lossless, on_progress=lambda p, h: progress.append((p, h))
    )
    assert path.name == "projections-1.db"
    assert (filled.files.directory / "CURRENT").read_text() == "projections-1.db\n"
    assert progress == [(7, 7)]
    assert rows(path, "SELECT log_id, position, leaf, at, projector_version FROM applied") == [
        (LOG_ID, 7, filled.log.leaf(Position(7)), filled.log.at(Position(7)), PROJECTOR_VERSION)
    ]


def test_the_second_start_uses_it_as_it_is(filled: Stand) -> None:
    path = filled.open_live()
    before = path.stat().st_mtime_ns
    assert filled.open_live() == path
    assert (path.stat().st_mtime_ns, names(filled)) == (before, ["projections-1.db"])


def test_what_the_log_has_more_is_caught_up(filled: Stand) -> None:
    path = filled.open_live()
    filled.say([updated("a", name="y")])
    assert check(path, filled.log) == 7
    assert filled.open_live() == path
    assert check(path, filled.log) == 8
    assert digest_of(path) == digest_of(build(filled.files, filled.log, encode=lossless))


def test_a_projection_that_lost_its_tail_is_caught_up(filled: Stand, tmp_path: Path) -> None:
    path = filled.open_live()
    old = tmp_path / "old"
    shutil.copy(path, old)
    filled.say([updated("a", name="y"), *image("c", family="web")])
    filled.open_live()
    full = digest_of(path)
    for entry in filled.files.directory.glob("projections-1.db-*"):
        entry.unlink()
    shutil.copy(old, path)
    assert check(path, filled.log) == 7
    filled.open_live()
    assert (check(path, filled.log), digest_of(path)) == (10, full)


def test_another_projector_version_is_built_anew_under_a_new_name(filled: Stand) -> None:
    old = filled.open_live()
    change(old, "UPDATE applied SET projector_version = projector_version + 1")
    new = filled.open_live()
    assert (new.name, check(new, filled.log)) == ("projections-2.db", 7)
    assert names(filled) == ["projections-2.db"]


def test_a_file_that_is_gone_is_built_anew_under_a_new_name(filled: Stand) -> None:
    filled.open_live().unlink()
    assert filled.open_live().name == "projections-2.db"


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        pytest.param(
            "UPDATE applied SET log_id = 'imageledger-other'",
            f"it is of log imageledger-other (applied position 7), and the log here is {LOG_ID} (head 7)",
            id="wrong-log",
        ),
        pytest.param(
            "UPDATE applied SET log_id = 'imageledger-other', projector_version = 99",
            f"it is of log imageledger-other (applied position 7), and the log here is {LOG_ID} (head 7)",
            id="wrong-log-of-another-version",
        ),
        pytest.param(
            "UPDATE applied SET position = 9",
            "it has applied position 9, and the log ends at 7",
            id="ahead-of-the-log",
        ),
        pytest.param(
            "UPDATE applied SET leaf = zeroblob(32)",
            "its event at position 7 is another one than the log's (head 7)",
            id="wrong-leaf",
        ),
        pytest.param(
            "UPDATE applied SET at = 1",
            "what it says of how far it has come is damaged",
            id="wrong-time",
        ),
        pytest.param("DELETE FROM applied", "it says nothing of how far it has come", id="no-position"),
        pytest.param(
            "DROP TABLE applied",
            "it is not readable as a projection (no such table: applied)",
            id="no-table",
        ),
    ],
)
def test_what_is_not_of_this_log_is_refused_with_both_positions_and_the_remedy(
    filled: Stand, damage: str, text: str
) -> None:
    path = filled.open_live()
    change(path, damage)
    with pytest.raises(ProjectionRefused) as refused:
        filled.open_live()
    assert str(refused.value) == f"projections-1.db: {text}; {REMEDY}"
    assert names(filled) == ["projections-1.db"]
    # The remedy is one.
    assert rebuild(filled.files, filled.log, encode=lossless).digest_before is None
    assert check(filled.open_live(), filled.log) == 7


def test_a_file_that_is_no_database_is_refused(filled: Stand) -> None:
    filled.open_live().write_bytes(
        b"not a database, and long enough to have had a header of a hundred bytes" * 2
    )
    with pytest.raises(ProjectionRefused, match="not readable as a projection"):
        filled.open_live()


@pytest.mark.parametrize(
    "garbage",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\n", id="a-blank-line"),
        pytest.param(b"log.db\n", id="another-file"),
        pytest.param(b"../projections-1.db\n", id="a-way-out"),
        pytest.param(b"projections-1.db\nprojections-2.db\n", id="two-lines"),
        pytest.param(b"projections-1.db\0", id="nul"),
        pytest.param(b"\xff\xfe\x00 \x80", id="no-utf-8"),
        pytest.param(b"x" * 100_000, id="long"),
    ],
)
def test_a_current_that_names_no_projection_is_refused_and_rebuild_mends_it(
    filled: Stand, garbage: bytes
) -> None:
    filled.open_live()
    (filled.files.directory / "CURRENT").write_bytes(garbage)
    with pytest.raises(ProjectionRefused, match=r"CURRENT: it names .*which is no projection") as refused:
        filled.open_live()
    assert len(str(refused.value)) < 400
    rebuilt = rebuild(filled.files, filled.log, encode=lossless)
    assert rebuilt.digest_before is None
    assert filled.open_live().name == "projections-2.db"


# Making another file the live one, with a crash at each step.


class Crash(BaseException):
    """The process ends here."""


def crash(*_: Any, **__: Any) -> None:
    raise Crash


@pytest.mark.parametrize(
    ("where", "then"),
    [
        pytest.param((os, "fsync"), "old", id="before-the-draft-is-synced"),
        pytest.param((Path, "replace"), "old", id="before-the-rename"),
        pytest.param((database, "fsync_directory"), "new", id="before-the-folder-is-synced"),
    ],
)
def test_a_crash_while_another_becomes_live_leaves_the_old_or_the_new_one(
    filled: Stand, monkeypatch: pytest.MonkeyPatch, where: tuple[Any, str], then: str
) -> None:
    old = filled.open_live()
    new = build(filled.files, filled.log, encode=lossless)
    with monkeypatch.context() as patch:
        patch.setattr(*where, crash)
        with pytest.raises(Crash):
            filled.files.make_current(new)
    live = filled.open_live()
    assert live == {"old": old, "new": new}[then]
    assert check(live, filled.log) == 7
    # A second try ends well, over what the first one left.
    again = build(filled.files, filled.log, encode=lossless)
    assert again.name == "projections-3.db"
    filled.files.make_current(again)
    assert filled.open_live() == again


def test_a_crash_before_it_is_removed_leaves_an_old_file_that_the_next_build_removes(
    filled: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled.open_live()
    with monkeypatch.context() as patch:
        patch.setattr(ProjectionFiles, "remove_others", crash)
        with pytest.raises(Crash):
            rebuild(filled.files, filled.log, encode=lossless)
    assert names(filled) == ["projections-1.db", "projections-2.db"]
    assert filled.open_live().name == "projections-2.db"
    rebuild(filled.files, filled.log, encode=lossless)
    assert names(filled) == ["projections-3.db"]


def test_a_crash_in_a_build_leaves_the_live_one_and_its_name_is_not_used_again(
    filled: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = filled.open_live()
    with monkeypatch.context() as patch:
        patch.setattr("projections.build.build_rows", crash)
        with pytest.raises(Crash):
            build(filled.files, filled.log, encode=lossless)
    assert filled.open_live() == live
    assert build(filled.files, filled.log, encode=lossless).name == "projections-3.db"


@pytest.mark.parametrize(
    ("there", "then"),
    [
        pytest.param([], 1, id="nothing"),
        pytest.param(["projections-1.db"], 2, id="one"),
        pytest.param(["projections-2.db", "projections-10.db"], 11, id="numbers-not-texts"),
        pytest.param(["projections-7.db-wal"], 8, id="a-write-ahead-log-alone"),
        pytest.param(["projections-x.db", "log.db"], 1, id="others"),
    ],
)
def test_a_name_is_used_once(tmp_path: Path, there: list[str], then: int) -> None:
    for name in there:
        (tmp_path / name).touch()
    assert ProjectionFiles(tmp_path).unused().name == f"projections-{then}.db"


def test_a_name_that_current_still_holds_is_used(tmp_path: Path) -> None:
    (tmp_path / "CURRENT").write_text("projections-4.db\n")
    assert ProjectionFiles(tmp_path).unused().name == "projections-5.db"


def test_a_name_that_was_reserved_is_used_even_if_no_file_comes(tmp_path: Path) -> None:
    files = ProjectionFiles(tmp_path)
    assert files.reserve().name == "projections-1.db"
    files.make_current(tmp_path / "projections-2.db")
    assert [files.reserve().name for _ in range(2)] == ["projections-3.db", "projections-4.db"]
    assert ProjectionFiles(tmp_path).unused().name == "projections-5.db"
    assert (tmp_path / "CURRENT").read_text() == "projections-2.db\nhighest 4\n"


def test_a_live_file_keeps_its_write_ahead_log_when_others_are_removed(tmp_path: Path) -> None:
    ProjectionFiles(tmp_path).make_current(tmp_path / "projections-1.db")
    kept = {"projections-1.db", "projections-1.db-wal", "projections-1.db-shm", "log.db", "log.db-wal"}
    kept |= {"CURRENT"}
    for name in kept | {"projections-2.db", "projections-2.db-wal", "projections-10.db"}:
        (tmp_path / name).touch()
    ProjectionFiles(tmp_path).remove_others(tmp_path / "projections-1.db")
    assert {entry.name for entry in tmp_path.iterdir()} == kept


# Building anew.


def test_a_rebuild_gives_the_same_digest_and_takes_over(filled: Stand) -> None:
    old = filled.open_live()
    rebuilt = rebuild(filled.files, filled.log, encode=lossless)
    assert rebuilt.digest_before == rebuilt.digest_after == digest_of(filled.open_live())
    assert rebuilt.events == 7
    assert not old.exists()


def test_a_rebuild_catches_the_old_one_up_before_it_compares(filled: Stand) -> None:
    filled.open_live()
    filled.say([updated("a", name="y")])
    rebuilt = rebuild(filled.files, filled.log, encode=lossless)
    assert rebuilt.digest_before == rebuilt.digest_after


def test_a_rebuild_without_an_old_one_has_nothing_to_compare(filled: Stand) -> None:
    assert rebuild(filled.files, filled.log, encode=lossless).digest_before is None


def test_a_wrong_row_is_told_of(filled: Stand) -> None:
    change(filled.open_live(), "UPDATE image_life SET died = 6 WHERE id = 'b'")
    rebuilt = rebuild(filled.files, filled.log, encode=lossless)
    assert rebuilt.digest_before is None
    assert "image_life" in (rebuilt.damage or "")
    assert rebuilt.kept is not None


def test_a_damaged_row_in_the_way_of_catching_up_does_not_stop_a_rebuild(filled: Stand) -> None:
    change(filled.open_live(), "UPDATE image SET state = zeroblob(9) WHERE id = 'a'")
    filled.say([updated("a", name="y")])
    rebuilt = rebuild(filled.files, filled.log, encode=lossless)
    assert rebuilt.digest_before is None
    assert rebuilt.digest_after == digest_of(filled.open_live())


def test_a_projection_that_is_not_what_the_log_says_is_kept(filled: Stand) -> None:
    old = filled.open_live()
    change(old, "DELETE FROM image_life WHERE id = 'b'")
    rebuilt = rebuild(filled.files, filled.log, encode=lossless)
    assert rebuilt.digest_before not in (None, rebuilt.digest_after)
    assert (rebuilt.kept, rebuilt.damage) == (str(old), None)
    assert names(filled) == ["projections-1.db", "projections-2.db"]
    # Neither a start nor a later rebuild removes it, and its name is not used again once it is gone.
    filled.open_live()
    assert rebuild(filled.files, filled.log, encode=lossless).kept is None
    assert names(filled) == ["projections-1.db", "projections-3.db"]
    old.unlink()
    assert rebuild(filled.files, filled.log, encode=lossless).kept is None
    assert names(filled) == ["projections-4.db"]


def test_a_defect_of_ours_is_raised_when_the_new_one_is_live(
    filled: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled.open_live()

    def digest_of(path: Path, **_: Any) -> str:
        if path.name == "projections-1.db":
            raise AssertionError("a defect")
        return "digest"

    monkeypatch.setattr("projections.rebuild.digest_of", digest_of)
    with pytest.raises(AssertionError, match="a defect"):
        rebuild(filled.files, filled.log, encode=lossless)
    assert filled.open_live().name == "projections-2.db"
    assert names(filled) == ["projections-1.db", "projections-2.db"]


def test_another_encoding_is_built_anew(filled: Stand) -> None:
    def encode(image: Any) -> bytes:
        return lossless(image) + b"\0"

    old = filled.open_live()
    assert (check(old, filled.log, encode=lossless), check(old, filled.log, encode=encode)) == (7, None)
    assert open_live(filled.files, filled.log, encode=encode).name == "projections-2.db"


def test_failed_builds_leave_no_file_and_use_no_name_twice(
    filled: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise database.OperationalError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr("projections.build.fill_listing", fails)
        for _ in range(3):
            with pytest.raises(database.OperationalError):
                filled.open_live()
            assert not list(filled.files.directory.glob("projections-*"))
    assert filled.files.current() is None
    assert filled.open_live().name == "projections-4.db"


def test_a_start_removes_what_killed_builds_left_and_does_not_use_their_names(filled: Stand) -> None:
    filled.open_live()
    for name in ("projections-7.db", "projections-7.db-wal", "projections-7.db-shm"):
        (filled.files.directory / name).touch()
    filled.open_live()
    assert names(filled) == ["projections-1.db"]
    assert (filled.files.directory / "CURRENT").read_text() == "projections-1.db\nhighest 7\n"
    assert filled.files.unused().name == "projections-8.db"


def test_an_unknown_event_stops_a_build_and_a_start(filled: Stand) -> None:
    path = filled.open_live()
    filled.say([event("ImagePainted", "a", {}, method="Paint"), registered("e")])
    with pytest.raises(EventUnknown, match="position 8"):
        filled.open_live()
    with pytest.raises(EventUnknown, match="position 8"):
        rebuild(filled.files, filled.log, encode=lossless)
    assert filled.files.current() == path


def test_a_built_file_is_whole_without_its_write_ahead_log(filled: Stand) -> None:
    path = build(filled.files, filled.log, encode=lossless)
    assert not [entry for entry in path.parent.iterdir() if entry.name.startswith(f"{path.name}-")]


def test_a_build_whose_pages_cannot_be_written_is_refused(
    filled: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "checkpoint_truncate", lambda connection: False)
    with pytest.raises(ProjectionRefused, match="could not be written to the disk in full"):
        filled.open_live()
    assert filled.files.current() is None


def test_a_projection_that_the_log_lost_its_tail_under_is_refused(filled: Stand, tmp_path: Path) -> None:
    path = filled.open_live()
    other = tmp_path / "short"
    other.mkdir()
    with closing(Stand(other)) as short:
        short.say([registered("d")])
        with pytest.raises(ProjectionRefused, match=r"applied position 7, and the log ends at 2"):
            check(path, short.log)


def test_reopening_the_writing_side_sees_what_was_committed(filled: Stand) -> None:
    path = filled.open_live()
    with closing(open_projector(path, encode=lossless)) as projector, EventLog.open(filled.log.path) as log:
        assert projector.image("a") is not None
        assert check(path, log) == 7
