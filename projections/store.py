"""The files of a projection: which one is live, opening it, and building another one from the log."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from sqlite_utils import Database

from eventstore import database
from eventstore.errors import EventStoreError
from eventstore.event import Position
from eventstore.reader import LogReader

from .bulk import build_rows, fill_listing
from .damage import ProjectionDamaged, damage_told
from .digest import digest
from .encoding import Encode, fingerprint
from .projector import Projector, catch_up
from .queries import Queries
from .rows import APPLIED_INSERT, APPLIED_ROW, applied_row, is_whole
from .schema import PROJECTOR_VERSION, create_indexes, migrations

CURRENT = "CURRENT"
NONE_LIVE = "none"
FILE_NAME = re.compile(r"projections-([0-9]+)\.db")
SIDE_FILES = ("", "-wal", "-shm")
Progress = Callable[[int, int], None]  # Called with the applied position and the head.


class ProjectionRefused(EventStoreError):
    """A projection that is not of this log as it stands. Nothing is repaired silently."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path.name}: {self.reason}; stop the server and run `imageledger rebuild`"


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What a rebuild did. `digest_before` is None where no usable old projection was there.

    `damage` says what was wrong with an old one that could not be read to its end. `kept` is the path of an
    old one that is not what the log says, for who wants to know why; nothing removes it but a hand.
    """

    events: int
    seconds: float
    digest_before: str | None
    digest_after: str
    damage: str | None = None
    kept: str | None = None


@dataclass(frozen=True, slots=True)
class Current:
    """What the file CURRENT says, a line each: the live file, then, where there is something to say,
    `highest N`, the highest number that any file had here, and `kept NAME`, a file that no build removes."""

    live: str | None = None
    highest: int = 0
    kept: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Current | None:
        """None for a text that is none of ours."""
        live, *others = text.removesuffix("\n").split("\n")
        highest, kept = 0, []
        for line in others:
            word, _, value = line.partition(" ")
            if word == "highest" and value.isascii() and value.isdigit() and len(value) < 19:
                highest = int(value)
            elif word == "kept" and FILE_NAME.fullmatch(value):
                kept.append(value)
            else:
                return None
        if live == NONE_LIVE:
            return cls(None, highest, tuple(kept))
        return cls(live, highest, tuple(kept)) if FILE_NAME.fullmatch(live) else None

    def text(self) -> str:
        lines = [self.live or NONE_LIVE]
        if self.highest > _number(self.live or ""):
            lines.append(f"highest {self.highest}")
        return "\n".join([*lines, *(f"kept {name}" for name in self.kept)]) + "\n"


class ProjectionFiles:
    """The projection files in a data directory. A name is never used twice."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def current(self) -> Path | None:
        """The live file, or None where there is none yet or it is gone."""
        text = self._text()
        if text is None:
            return None
        current = Current.parse(text)
        if current is None:
            raise ProjectionRefused(
                self.directory / CURRENT, f"it names {text[:64]!r}, which is no projection"
            )
        if current.live is None:
            return None
        path = self.directory / current.live
        return path if path.is_file() else None

    def unused(self) -> Path:
        """A name that no projection here has, or, as far as the folder and CURRENT tell, had."""
        return self.directory / f"projections-{self._highest() + 1}.db"

    def make_current(self, path: Path, *, keep: Path | None = None) -> None:
        """Name the live file: written, fsynced, renamed. After the last line a power cut keeps it.

        `keep` is one that stays when others are removed.
        """
        before = self._said()
        kept = before.kept if keep is None else (*before.kept, keep.name)
        self._write(Current(path.name, before.highest, self._there(kept)))

    def remove_others(self, live: Path) -> None:
        """Remove what older builds, and builds that were killed, left behind."""
        kept = self._said().kept
        self._remove(
            name
            for name in self._names()
            if (found := FILE_NAME.match(name)) and found[0] != live.name and found[0] not in kept
        )

    def remove(self, path: Path) -> None:
        """Remove a file that was never live, with what SQLite keeps beside it."""
        there = set(self._names())
        self._remove(name for ending in SIDE_FILES if (name := path.name + ending) in there)

    def _remove(self, names: Iterable[str]) -> None:
        """Remove files, once it is written down that their numbers were used."""
        going = list(names)
        said, highest = self._said(), max(map(_number, going), default=0)
        if highest > max(said.highest, _number(said.live or "")) and not self._is_garbage():
            self._write(Current(said.live, highest, self._there(said.kept)))
        for name in going:
            (self.directory / name).unlink(missing_ok=True)

    def _write(self, current: Current) -> None:
        draft = self.directory / f"{CURRENT}.new"
        with draft.open("w", encoding="utf-8") as file:
            file.write(current.text())
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self.directory / CURRENT)
        database.fsync_directory(self.directory)

    def _there(self, kept: Iterable[str]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for name in kept if (self.directory / name).is_file()))

    def _highest(self) -> int:
        said = self._said()
        numbers = [_number(name) for name in (*self._names(), *said.kept, said.live or "")]
        return max(said.highest, *numbers)

    def _names(self) -> list[str]:
        return [entry.name for entry in self.directory.iterdir()]

    def _said(self) -> Current:
        """What CURRENT says; nothing where it is not there or holds other bytes."""
        return Current.parse(self._text() or "") or Current()

    def _is_garbage(self) -> bool:
        """Whether CURRENT is a file that we did not write, which only a rebuild may replace."""
        text = self._text()
        return text is not None and Current.parse(text) is None

    def _text(self) -> str | None:
        """What CURRENT says, whatever bytes it holds; None where there is no such file."""
        try:
            return (self.directory / CURRENT).read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return None


def _number(name: str) -> int:
    found = FILE_NAME.match(name)
    return int(found[1]) if found else 0


def open_live(
    files: ProjectionFiles, log: LogReader, *, encode: Encode, on_progress: Progress = lambda done, head: None
) -> Path:
    """The live projection's file, caught up with the log; built first where there is none of this version.

    Raises ProjectionRefused for one of another log, ahead of it, or of another history.
    """
    path = files.current()
    if path is not None:
        applied = check(path, log, encode=encode)
        if applied is not None:
            _catch_up(path, log, applied, encode=encode, on_progress=on_progress)
            files.remove_others(path)
            return path
    path = build(files, log, encode=encode, on_progress=on_progress)
    files.make_current(path)
    files.remove_others(path)
    return path


def check(path: Path, log: LogReader, *, encode: Encode | None = None) -> int | None:
    """The applied position; None where another projector version, or another `encode`, made it.

    The log's identity comes first: a file of another log is foreign, whichever version made it.
    Raises ProjectionRefused.
    """
    try:
        connection = database.connect(path, access="read", synchronous="NORMAL")
        try:
            row = connection.execute(
                "SELECT log_id, position, leaf, projector_version FROM applied"
            ).fetchone()
            is_ours = row is not None and row[3] == PROJECTOR_VERSION
            whole = connection.execute(APPLIED_ROW).fetchone() if is_ours else None
        finally:
            connection.close()
    except (database.Error, UnicodeDecodeError) as error:
        raise ProjectionRefused(path, f"it is not readable as a projection ({error})") from error
    if row is None:
        raise ProjectionRefused(path, "it says nothing of how far it has come")
    log_id, position, leaf, _ = row
    head = log.head()
    if log_id != log.log_id:
        raise ProjectionRefused(
            path,
            f"it is of log {log_id} (applied position {position}), and the log here is {log.log_id}"
            f" (head {head})",
        )
    if type(position) is not int or position < 0:
        raise ProjectionRefused(path, "what it says of how far it has come is damaged")
    if position > head:
        raise ProjectionRefused(path, f"it has applied position {position}, and the log ends at {head}")
    if position and log.leaf(Position(position)) != leaf:
        raise ProjectionRefused(
            path, f"its event at position {position} is another one than the log's (head {head})"
        )
    if whole is None:
        return None
    if not is_whole(whole):
        raise ProjectionRefused(path, "what it says of how far it has come is damaged")
    return None if encode is not None and whole[5] != fingerprint(encode) else position


def build(
    files: ProjectionFiles, log: LogReader, *, encode: Encode, on_progress: Progress = lambda done, head: None
) -> Path:
    """A new, complete projection file, durable but not live yet. One that cannot be completed is removed."""
    path = files.unused()
    try:
        _build(path, log, encode=encode, on_progress=on_progress)
    except BaseException:
        files.remove(path)
        raise
    return path


def _build(path: Path, log: LogReader, *, encode: Encode, on_progress: Progress) -> None:
    # Not synced while it is built: an unfinished one is never named by CURRENT.
    connection = database.connect(path, access="create", synchronous="OFF")
    try:
        encoding = fingerprint(encode)
        _create(connection, log.log_id, encoding)
        head = log.head()
        build_rows(
            connection,
            log,
            encode=encode,
            encoding=encoding,
            on_progress=lambda position: on_progress(position, head),
        )
        create_indexes(Database(connection, recursive_triggers=False, execute_plugins=False))
        fill_listing(connection)
        _make_durable(connection, path)
    finally:
        connection.close()


def rebuild(
    files: ProjectionFiles, log: LogReader, *, encode: Encode, on_progress: Progress = lambda done, head: None
) -> Rebuilt:
    """Build anew from the log and make it live; the server must not run.

    The old one is caught up before its digest is taken: a difference means a wrong row, not a late one. An
    old one that is not what the log says is kept. A defect of ours that shows in the old one is raised, once
    the new one is live.
    """
    before = _before(files, log, encode=encode)
    started = time.monotonic()
    path = build(files, log, encode=encode, on_progress=on_progress)
    seconds = time.monotonic() - started
    after = digest_of(path, encode=encode)
    is_wrong = before.defect is not None or before.damage is not None or before.digest not in (None, after)
    kept = before.path if is_wrong else None
    files.make_current(path, keep=kept)
    files.remove_others(path)
    if before.defect is not None:
        raise before.defect
    return Rebuilt(
        log.head(), seconds, before.digest, after, before.damage, None if kept is None else str(kept)
    )


def open_projector(path: Path, *, encode: Encode) -> Projector:
    """The writing side of a live projection."""
    connection = database.connect(path, access="write", synchronous="NORMAL")
    return Projector(connection, encode=encode)


@damage_told
def open_queries(path: Path, *, encode: Encode) -> Queries:
    """A reading side of a live projection, for one thread at a time. Raises ProjectionDamaged, Error."""
    connection = database.connect(path, access="read", synchronous="NORMAL")
    return Queries(connection, encode=encode)


@damage_told
def digest_of(path: Path, *, encode: Encode | None = None) -> str:
    """The digest of a file, see `digest`. Raises ProjectionDamaged, Error."""
    connection = database.connect(path, access="read", synchronous="NORMAL")
    try:
        return digest(connection, encode=encode)
    finally:
        connection.close()


@dataclass(frozen=True, slots=True)
class _Before:
    """The projection that a rebuild replaces: its digest, or why it has none."""

    path: Path | None = None
    digest: str | None = None
    damage: str | None = None
    defect: AssertionError | None = None


def _before(files: ProjectionFiles, log: LogReader, *, encode: Encode) -> _Before:
    try:
        path = files.current()
        applied = None if path is None else check(path, log, encode=encode)
    except ProjectionRefused:
        return _Before()
    if path is None or applied is None:
        return _Before()
    try:
        _catch_up(path, log, applied, encode=encode, on_progress=lambda done, head: None)
        return _Before(path, digest_of(path, encode=encode))
    except AssertionError as error:
        return _Before(path, defect=error)
    except (database.Error, UnicodeDecodeError, ProjectionDamaged) as error:
        return _Before(path, damage=str(error))


def _catch_up(path: Path, log: LogReader, applied: int, *, encode: Encode, on_progress: Progress) -> None:
    head = log.head()
    if applied == head:
        return
    projector = open_projector(path, encode=encode)
    try:
        catch_up(projector, log, after=applied, on_progress=lambda position: on_progress(position, head))
    finally:
        projector.close()


def _make_durable(connection: database.Connection, path: Path) -> None:
    """Get every page of a file that was written without syncs onto the disk.

    SQLite syncs the file at a checkpoint that has pages to move; the write before it makes sure of one, as
    automatic checkpoints may have moved all others, unsynced.
    """
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("UPDATE applied SET position = position")
    if not database.checkpoint_truncate(connection):
        raise ProjectionRefused(path, "it could not be written to the disk in full")


def _create(connection: database.Connection, log_id: str, encoding: bytes) -> None:
    database.migrate(connection, migrations)
    row = applied_row(log_id=log_id, position=0, leaf=b"", at=0, encoding=encoding)
    connection.execute(APPLIED_INSERT, row)
