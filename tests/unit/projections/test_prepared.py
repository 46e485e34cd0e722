"""A projection that newer software makes ahead: found by its own version alone, and checked before use."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from eventstore import database
from eventstore.errors import LogLocked
from eventstore.lock import DirectoryLock
from projections import build as build_module
from projections import opening, prepared, rows
from projections.files import ProjectionFiles, ProjectionRefused
from projections.opening import check, digest_of
from projections.prepared import prepare, prepared_folder
from projections.schema import PROJECTOR_VERSION
from projections.store import build, open_live, rebuild
from tests.unit.projections.builders import Stand, change, deleted, image, lossless, registered, updated


@pytest.fixture
def upgrade(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """From here on this software makes projections of another version, so many later."""

    def by(versions: int) -> None:
        for module in (opening, prepared, rows):
            monkeypatch.setattr(module, "PROJECTOR_VERSION", PROJECTOR_VERSION + versions)

    return by


@pytest.fixture
def serving(stand: Stand) -> Stand:
    """A log with the older software's projection, live."""
    stand.say([registered("d"), *image("a", family="web"), *image("b", name="x"), deleted("b")])
    stand.open_live()
    return stand


def prepare_now(stand: Stand) -> Any:
    return prepare(stand.files.directory, stand.log, encode=lossless)


def folders(stand: Stand) -> list[str]:
    return sorted(entry.name for entry in stand.files.directory.glob("prepared-*"))


def no_building(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the whole log was read")

    monkeypatch.setattr(build_module, "build_rows", refuse)


Upgrade = Callable[[int], None]


def test_the_newer_start_applies_only_what_came_since(
    serving: Stand, upgrade: Upgrade, monkeypatch: pytest.MonkeyPatch
) -> None:
    upgrade(1)
    made = prepare_now(serving)
    assert (made.events, made.digest_before) == (7, None)
    upgrade(0)
    serving.say([updated("a", name="y"), *image("c", family="web")])
    # The older software goes on, and starts again meanwhile.
    assert serving.open_live().name == "projections-1.db"
    upgrade(1)
    progress: list[tuple[int, int]] = []
    with monkeypatch.context() as patch:
        no_building(patch)
        live = open_live(
            serving.files, serving.log, encode=lossless, on_progress=lambda *done: progress.append(done)
        )
    assert progress == [(10, 10)]
    assert (live.name, check(live, serving.log)) == ("projections-2.db", 10)
    assert serving.files.current() == live
    assert (folders(serving), sorted(entry.name for entry in live.parent.glob("projections-1.db*"))) == (
        [],
        [],
    )
    assert digest_of(live, encode=lossless) == digest_of(build(serving.files, serving.log, encode=lossless))


def test_the_older_software_leaves_what_is_prepared_for_a_newer_one(serving: Stand, upgrade: Upgrade) -> None:
    upgrade(1)
    prepare_now(serving)
    there = folders(serving)
    upgrade(0)
    serving.open_live()
    rebuild(serving.files, serving.log, encode=lossless)
    serving.open_live()
    assert folders(serving) == there != []


def test_what_is_prepared_for_another_encoding_is_left(serving: Stand) -> None:
    def other(one: Any) -> bytes:
        return lossless(one) + b"\0"

    prepare(serving.files.directory, serving.log, encode=other)
    there = folders(serving)
    serving.open_live()
    assert folders(serving) == there != []
    assert open_live(serving.files, serving.log, encode=other).name == "projections-2.db"
    assert folders(serving) == []


@pytest.mark.parametrize("versions", [0, 1])
def test_what_is_of_no_use_any_more_is_removed(serving: Stand, upgrade: Upgrade, versions: int) -> None:
    """Of the version that is live already, or of an earlier one."""
    prepare_now(serving)
    upgrade(versions)
    serving.open_live()
    assert folders(serving) == []


def test_a_first_start_uses_one_too(serving: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare_now(serving)
    (serving.files.directory / "CURRENT").unlink()
    no_building(monkeypatch)
    assert serving.open_live().name == "projections-2.db"


def damage_of(what: str) -> Callable[[Path, Stand], None]:
    return lambda path, stand: change(path, what)


def cut(path: Path, stand: Stand) -> None:
    os.truncate(path, path.stat().st_size // 2)


def overwrite(path: Path, stand: Stand) -> None:
    path.write_bytes(b"no database" * 1000)


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        pytest.param(
            damage_of("UPDATE applied SET log_id = 'imageledger-other'"),
            "it is of log imageledger-other",
            id="another-log",
        ),
        pytest.param(
            damage_of("UPDATE applied SET leaf = zeroblob(32)"), "is another one than the log's", id="history"
        ),
        pytest.param(damage_of("UPDATE applied SET position = 99"), "the log ends at", id="ahead"),
        pytest.param(damage_of("UPDATE applied SET at = 1"), "is damaged", id="row"),
        pytest.param(
            damage_of("UPDATE applied SET projector_version = 1"), "not of the version that", id="older"
        ),
        pytest.param(cut, "not readable as a projection", id="cut"),
        pytest.param(overwrite, "not readable as a projection", id="no-database"),
    ],
)
def test_one_that_is_not_of_this_log_and_whole_is_not_used(
    serving: Stand,
    upgrade: Upgrade,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Path, Stand], None],
    text: str,
) -> None:
    upgrade(1)
    prepare_now(serving)
    path = ProjectionFiles(prepared_folder(serving.files.directory, lossless)).current()
    assert path is not None
    damage(path, serving)
    live = serving.open_live()
    assert digest_of(live) == digest_of(build(serving.files, serving.log, encode=lossless))
    [note] = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert note.message == "a prepared projection is not used"
    assert text in note.__dict__["reason"]
    assert folders(serving) == []


def test_an_unfinished_one_is_not_used(
    serving: Stand, upgrade: Upgrade, monkeypatch: pytest.MonkeyPatch
) -> None:
    upgrade(1)

    class Killed(BaseException):
        pass

    def killed(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        # As a SIGKILL leaves it: nothing is tidied up.
        patch.setattr(build_module, "fill_listing", killed)
        patch.setattr(ProjectionFiles, "remove", lambda self, path: None)
        with pytest.raises(Killed):
            prepare_now(serving)
    folder = prepared_folder(serving.files.directory, lossless)
    assert (folder / "projections-1.db").exists()
    # The next one begins anew, and leaves one file.
    prepare_now(serving)
    assert [entry.name for entry in folder.glob("projections-*.db")] == ["projections-2.db"]
    (folder / "CURRENT").unlink()
    assert serving.open_live().name == "projections-2.db"
    assert folders(serving) == []


class Crash(BaseException):
    """The process ends here."""


def crash(*_: Any, **__: Any) -> None:
    raise Crash


@pytest.mark.parametrize(
    ("where", "adopted"),
    [
        pytest.param((prepared, "_empty_wal"), True, id="before-it-is-named"),
        pytest.param((Path, "rename"), True, id="before-it-is-moved"),
        pytest.param((ProjectionFiles, "make_current"), False, id="before-it-is-live"),
        pytest.param((ProjectionFiles, "remove_others"), True, id="when-it-is-live"),
        pytest.param((shutil, "rmtree"), True, id="before-its-folder-is-gone"),
    ],
)
def test_a_crash_at_any_moment_leaves_a_projection_that_is_right(
    serving: Stand, upgrade: Upgrade, monkeypatch: pytest.MonkeyPatch, where: tuple[Any, str], adopted: bool
) -> None:
    upgrade(1)
    prepare_now(serving)
    with monkeypatch.context() as patch:
        patch.setattr(*where, crash)
        with pytest.raises(Crash):
            serving.open_live()
    with monkeypatch.context() as patch:
        if adopted:
            no_building(patch)
        live = serving.open_live()
    assert [entry.name for entry in live.parent.glob("projections-*.db")] == [live.name]
    assert folders(serving) == []
    assert digest_of(live) == digest_of(build(serving.files, serving.log, encode=lossless))


def test_one_that_is_being_prepared_is_not_waited_for(
    serving: Stand, upgrade: Upgrade, caplog: pytest.LogCaptureFixture
) -> None:
    upgrade(1)
    prepare_now(serving)
    folder = prepared_folder(serving.files.directory, lossless)
    with DirectoryLock(folder, command="imageledger rebuild --prepare", since="today"):
        with pytest.raises(LogLocked, match="imageledger rebuild --prepare"):
            prepare_now(serving)
        assert serving.open_live().name == "projections-2.db"
    assert "a projection is still being prepared, and not used" in caplog.messages
    assert folders(serving) == [folder.name]


def test_a_write_ahead_log_that_cannot_be_merged_is_not_left_behind(
    serving: Stand, upgrade: Upgrade, caplog: pytest.LogCaptureFixture
) -> None:
    upgrade(1)
    prepare_now(serving)
    path = ProjectionFiles(prepared_folder(serving.files.directory, lossless)).current()
    assert path is not None
    with closing(database.connect(path, access="read", synchronous="NORMAL")) as reading:
        reading.execute("BEGIN")
        reading.execute("SELECT * FROM applied").fetchone()
        change(path, "PRAGMA user_version = 1")
        live = serving.open_live()
    assert "its write-ahead log cannot be merged into it" in str(
        [record.__dict__.get("reason") for record in caplog.records]
    )
    assert check(live, serving.log) == serving.log.head()


def test_a_live_projection_that_is_refused_is_not_replaced_by_a_prepared_one(serving: Stand) -> None:
    prepare_now(serving)
    live = serving.files.current()
    assert live is not None
    change(live, "UPDATE applied SET leaf = zeroblob(32)")
    with pytest.raises(ProjectionRefused, match="is another one than the log's"):
        serving.open_live()
