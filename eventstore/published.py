"""Checkpoints published outside: what a log cannot take back, so that it can be held to it.

A folder has a file for each checkpoint, named by its size in 19 digits, so that names sort as sizes do, and
never written over. A log that was restored and had been published further begins a folder of its own inside,
named by the event that says so: what it gave up stays as it was.
"""

from __future__ import annotations

import os
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, NamedTuple

from eventstore.checkpoint import (
    NOTE_SIZE_MAX_BYTES,
    Checkpoint,
    KeptCheckpoint,
    parse_checkpoint,
    split_note,
    verify_note,
)
from eventstore.database import fsync_directory
from eventstore.errors import (
    CheckpointContradicted,
    NoteMalformed,
    NoteUnverified,
    PublishedDiffers,
    PublishedRefused,
    SignatureWrong,
)
from eventstore.heads import check_log
from eventstore.keys import Verifier
from eventstore.lineage import Lineage, Restored
from eventstore.reader import LogReader

_NOTE: Final = re.compile(r"([0-9]{19})\.note")
_DRAFT: Final = re.compile(r"\.[0-9]{19}\.note\.draft")
_FOLDER: Final = re.compile(r"[1-9][0-9]{0,18}-[0-9a-f]{16}")

_CHANGED: Final = "find out who changed it, and put the original back, or move it away"


class Published(NamedTuple):
    """A checkpoint in a file, and whether one of the known keys has signed it."""

    path: Path
    checkpoint: Checkpoint
    is_known: bool


@dataclass(frozen=True, slots=True)
class Contradiction:
    """A folder whose newest checkpoint a log does not lead to.

    ROLLBACK: the log ends before it, at `head`. FORK: it went another way. Of the checkpoints there, that of
    `common` events is the last one which the log leads to as well; 0 if there is none.
    """

    kind: Literal["ROLLBACK", "FORK"]
    newest: Published
    head: int
    common: int


def folder_of(directory: Path, said: Lineage) -> Path:
    """Where a log publishes: in the directory itself, or, once it was restored, in a folder of that one."""
    return directory / _folder_name(said.restored[-1]) if said.restored else directory


def publish(folder: Path, kept: KeptCheckpoint) -> None:
    """Writes a checkpoint into a folder, durably, and over nothing. One that is there already stays.

    The file is complete before it has its name. A restored log's own folder is made on first use; the
    directory itself is not, for it may be one that is not mounted.
    Raises OSError; PublishedDiffers where there is another one of this size.
    """
    if not folder.is_dir() and _FOLDER.fullmatch(folder.name):
        folder.mkdir(exist_ok=True)
        fsync_directory(folder.parent)
    path, note = _path(folder, kept.size), kept.note.encode()
    draft = folder / f".{path.name}.draft"
    try:
        with draft.open("wb") as file:
            file.write(note)
            file.flush()
            os.fsync(file.fileno())
        # Unlike a rename, this fails where the name is taken.
        os.link(draft, path)
    except FileExistsError:
        if path.read_bytes() != note:
            raise PublishedDiffers(path, kept.size) from None
    finally:
        with suppress(OSError):
            draft.unlink()
    fsync_directory(folder)
    # Durable from here on.


def remove_drafts(folder: Path) -> None:
    """Removes what a crash left of files that never had their names. Raises OSError."""
    for entry in folder.iterdir() if folder.is_dir() else ():
        if _DRAFT.fullmatch(entry.name):
            entry.unlink(missing_ok=True)


def newest_of(directory: Path, verifiers: Iterable[Verifier]) -> Iterator[tuple[Published, list[int]]]:
    """The newest checkpoint of the directory and of each folder in it, and the sizes of all that are there.

    Raises OSError; PublishedRefused for a file that is no checkpoint, or was changed.
    """
    known = tuple(verifiers)
    for folder in _folders(directory):
        if sizes := _sizes(folder):
            yield _read(_path(folder, sizes[-1]), known), sizes


def contradictions(
    directory: Path, log: LogReader, said: Lineage, verifiers: Iterable[Verifier]
) -> list[Contradiction]:
    """The folders that a log does not lead to, and has not given up by an event; none is as it should be.

    Looks at the newest checkpoint of each, and at O(log n) more where that one contradicts the log. Raises
    OSError, PublishedRefused.
    """
    given_up = {(restored.size, restored.root) for restored in said.restored}
    return [
        _contradiction(newest, sizes, log)
        for newest, sizes in newest_of(directory, verifiers)
        if (newest.checkpoint.size, newest.checkpoint.root) not in given_up and not _is_of(log, newest)
    ]


def _contradiction(newest: Published, sizes: list[int], log: LogReader) -> Contradiction:
    head = log.head()
    # Those that the log is long enough for: it leads to them up to some size, and to none from there on.
    before = sizes[: bisect_right(sizes, head)]
    folder = newest.path.parent
    agreeing = bisect_left(before, True, key=lambda size: not _is_of(log, _read(_path(folder, size), ())))
    is_behind = agreeing == len(before) and newest.checkpoint.size > head
    common = before[agreeing - 1] if agreeing else 0
    return Contradiction("ROLLBACK" if is_behind else "FORK", newest, head, common)


def _is_of(log: LogReader, published: Published) -> bool:
    """Whether a log begins with what a checkpoint covers. Raises PublishedRefused for one of another log."""
    checkpoint = published.checkpoint
    if checkpoint.origin != log.log_id:
        raise PublishedRefused(
            published.path,
            f"is of log {checkpoint.origin}, and this is {log.log_id}",
            "each log publishes in a folder of its own: give this one another with --publish-checkpoints",
        )
    if checkpoint.size > log.head():
        return False
    try:
        check_log(log, checkpoint)
    except CheckpointContradicted:
        return False
    return True


def _read(path: Path, known: tuple[Verifier, ...]) -> Published:
    with path.open("rb") as file:
        raw = file.read(NOTE_SIZE_MAX_BYTES + 1)
    try:
        note = raw.decode()
        checkpoint = parse_checkpoint(split_note(note)[0])
        is_known = _is_signed(note, known)
    except UnicodeDecodeError:
        raise PublishedRefused(path, "is no checkpoint: it is not UTF-8 text", _CHANGED) from None
    except NoteMalformed as error:
        raise PublishedRefused(path, f"is no checkpoint: {error.reason}", _CHANGED) from error
    except SignatureWrong as error:
        raise PublishedRefused(path, f"is not what {error.key} signed", _CHANGED) from error
    if path != _path(path.parent, checkpoint.size):
        raise PublishedRefused(path, f"is the checkpoint of {checkpoint.size} events", _CHANGED)
    return Published(path, checkpoint, is_known)


def _is_signed(note: str, known: tuple[Verifier, ...]) -> bool:
    """Whether a known key has signed a note. Raises NoteMalformed, SignatureWrong."""
    try:
        verify_note(note, known)
    except NoteUnverified:
        return False
    return True


def _folders(directory: Path) -> Iterator[Path]:
    yield directory
    with os.scandir(directory) as entries:
        names = sorted(entry.name for entry in entries if _FOLDER.fullmatch(entry.name) and entry.is_dir())
    yield from (directory / name for name in names)


def _sizes(folder: Path) -> list[int]:
    with os.scandir(folder) as entries:
        found = (_NOTE.fullmatch(entry.name) for entry in entries)
        return sorted(int(match[1]) for match in found if match is not None)


def _path(folder: Path, size: int) -> Path:
    return folder / f"{size:019d}.note"


def _folder_name(restored: Restored) -> str:
    # A copy that is restored twice has the event at the same position, and with another leaf hash.
    return f"{restored.position}-{restored.leaf.hex()[:16]}"
