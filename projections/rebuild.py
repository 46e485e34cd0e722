"""A projection built anew from the log and compared with the live one: without a server, or beside it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from eventstore import database
from eventstore.reader import LogReader

from .build import build, build_file
from .damage import ProjectionDamaged
from .encoding import Encode
from .files import ProjectionFiles, ProjectionRefused
from .opening import Progress, bring_up, check, digest_beside, digest_of, open_projector
from .projector import catch_up

TAIL_EVENTS = (
    500  # What may be left for the moment in which nothing is written: a few hundredths of a second.
)
ROUNDS_MAX = 20
LAG_S_MAX = 10.0
POLL_S = 0.01


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What a rebuild did: both digests are as of position `events`, and the building took `seconds`.

    `digest_before` is None where no usable old projection was there. `damage` says what was wrong with an old
    one that could not be read to its end. `kept` is the path of an old one that is not what the log says, for
    who wants to know why; nothing removes it but a hand.
    """

    events: int
    seconds: float
    digest_before: str | None
    digest_after: str
    damage: str | None = None
    kept: str | None = None


@dataclass(frozen=True, slots=True)
class Before:
    """The projection that another one replaces: its digest, or why it has none."""

    path: Path | None = None
    digest: str | None = None
    damage: str | None = None
    defect: AssertionError | None = None

    def is_wrong(self, after: str) -> bool:
        """Whether it is not what the log says."""
        return self.damage is not None or self.defect is not None or self.digest not in (None, after)


def rebuild(
    files: ProjectionFiles,
    log: LogReader,
    *,
    encode: Encode,
    on_progress: Progress = lambda done, head: None,
    on_built: Callable[[Path | None, Path], None] = lambda old, new: None,
) -> Rebuilt:
    """Build anew from the log and make it live; the server must not run.

    `on_built` is given the file that was live, whichever version made it, and the new one, before one of them
    goes. The old one is caught up before its digest is taken: a difference means a wrong row, not a late
    one. An old one that is not what the log says is kept. A defect of ours that shows in the old one is
    raised, once the new one is live.
    """
    before = _before(files, log, encode=encode)
    started = time.monotonic()
    path = build(files, log, encode=encode, on_progress=on_progress)
    seconds = time.monotonic() - started
    after = digest_of(path, encode=encode)
    on_built(_live(files), path)
    kept = before.path if before.is_wrong(after) else None
    files.make_current(path, keep=kept)
    files.remove_others(path)
    if before.defect is not None:
        raise before.defect
    return Rebuilt(
        log.head(), seconds, before.digest, after, before.damage, None if kept is None else str(kept)
    )


def _live(files: ProjectionFiles) -> Path | None:
    try:
        return files.current()
    except ProjectionRefused:
        return None


def _before(files: ProjectionFiles, log: LogReader, *, encode: Encode) -> Before:
    path, applied = usable(files, log, encode=encode)
    if path is None:
        return Before()

    def caught_up() -> str:
        bring_up(path, log, applied, encode=encode)
        return digest_of(path, encode=encode)

    return _told(path, caught_up)


def usable(files: ProjectionFiles, log: LogReader, *, encode: Encode) -> tuple[Path | None, int]:
    """The live file and its applied position; None where there is none of this log, version and encoding."""
    try:
        path = files.current()
        applied = None if path is None else check(path, log, encode=encode)
    except ProjectionRefused:
        return None, 0
    return (None, 0) if applied is None else (path, applied)


def _told(path: Path, digest: Callable[[], str | None]) -> Before:
    try:
        return Before(path, digest())
    except AssertionError as error:
        return Before(path, defect=error)
    except ProjectionDamaged as error:
        return Before(path, damage=error.what)
    except (database.Error, UnicodeDecodeError, ProjectionRefused) as error:
        return Before(path, damage=str(error))


def build_beside(
    path: Path,
    live: Path | None,
    log: LogReader,
    *,
    encode: Encode,
    on_progress: Progress,
    on_built: Callable[[], None] = lambda: None,
) -> Rebuilt:
    """Build the file while another process writes the log and `live`, and compare both as of one position.

    That position is the last one of which the new file knows: rows are versions, so those of `live` can be
    read as of it. The file is synced as it grows: else the log's fsyncs would wait behind all of it at the
    end. `kept` is left to whoever makes it live.
    """
    started = time.monotonic()
    build_file(path, log, encode=encode, synchronous="NORMAL", on_progress=on_progress)
    seconds = time.monotonic() - started
    on_built()
    position = check(path, log, encode=encode)
    if position is None:
        raise AssertionError("a file that was just built is of another version")
    after = digest_of(path, encode=encode)
    before = Before() if live is None else _told(live, lambda: _digest_of_live(live, position, log, encode))
    damage = before.damage if before.defect is None else f"{type(before.defect).__name__}: {before.defect}"
    return Rebuilt(position, seconds, before.digest, after, damage)


def _digest_of_live(live: Path, position: int, log: LogReader, encode: Encode) -> str | None:
    """None where the live one does not come so far: its server has stopped, or cannot write."""
    give_up = time.monotonic() + LAG_S_MAX
    # It is a batch behind the log at most; nobody can be asked to say when it is not.
    while (check(live, log, encode=encode) or 0) < position:
        if time.monotonic() > give_up:
            return None
        time.sleep(POLL_S)
    return digest_beside(live, position, encode=encode)


def follow(path: Path, log: LogReader, *, encode: Encode, on_progress: Progress) -> int:
    """Catch up with a log that grows, until little is left, or again and again as much; the position."""
    position = check(path, log, encode=encode) or 0
    projector = open_projector(path, encode=encode)
    try:
        for _ in range(ROUNDS_MAX):
            if log.head() - position <= TAIL_EVENTS:
                break
            position = catch_up(
                projector, log, after=position, on_progress=lambda done: on_progress(done, log.head())
            )
    finally:
        projector.close()
    return position
