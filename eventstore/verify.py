"""Is this log still the one that was signed? Checkpoints against its hashes, oldest first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from heapq import merge
from operator import attrgetter
from typing import Final, NamedTuple

from eventstore.checkpoint import Checkpoint, open_note
from eventstore.errors import (
    CheckpointContradicted,
    LogCorrupt,
    NoteMalformed,
    NoteUnverified,
    SignatureWrong,
)
from eventstore.finding import TRUNCATION, Finding
from eventstore.heads import check_log
from eventstore.keys import Verifier
from eventstore.reader import LogReader

SIGNATURE: Final = "SIGNATURE"
# An older state of the same log, whole: what came later was taken away.
ROLLBACK: Final = "ROLLBACK"
# Another history under the same name, whole as well.
FORK: Final = "FORK"


class Note(NamedTuple):
    """A signed note and where it was kept; `outside` is out of reach of whoever can write the log."""

    where: str
    text: str
    outside: bool


class _Said(NamedTuple):
    """What a note that is to be believed says."""

    size: int
    note: Note
    checkpoint: Checkpoint


def checkpoint_findings(
    log: LogReader, outside: Iterable[Note], verifiers: Iterable[Verifier]
) -> Iterator[Finding]:
    """What signed checkpoints, those that the log keeps and those from outside, say against it as it stands.

    A log that is shorter than what was signed lost its end, if it kept that note itself, or is an older state
    put back, if the note was kept outside. One that is as long and has another root is another history; the
    last checkpoint that still holds says from where on. Raises ForeignCheckpoint.
    """
    known = tuple(verifiers)
    found: list[Finding] = []
    elsewhere = sorted(_believed(outside, known, found), key=attrgetter("size"))
    head, holds = log.head(), 0
    for size, note, checkpoint in merge(
        _believed(_kept(log), known, found), elsewhere, key=attrgetter("size")
    ):
        yield from found
        found.clear()
        if size > head:
            kind = ROLLBACK if note.outside else TRUNCATION
            yield Finding(
                kind, head + 1, f"{note.where} vouches for {size} events, and the log ends at {head}"
            )
            continue
        try:
            check_log(log, checkpoint)
            holds = size
        except CheckpointContradicted as error:
            message = (
                f"{note.where} vouches for {size} events with the root {error.root}, here they have"
                f" {error.actual}: what differs is behind position {holds}"
            )
            yield Finding(FORK, holds + 1, message)
        except LogCorrupt as error:
            yield Finding(FORK, error.position, f"{note.where} cannot be compared: {error.reason}")
    yield from found


def _kept(log: LogReader) -> Iterator[Note]:
    """The notes that the log keeps, by size."""
    after = 0
    while page := log.checkpoints(after=after):
        for kept in page:
            yield Note(f"the kept checkpoint of size {kept.size}", kept.note, outside=False)
        after = page[-1].size


def _believed(notes: Iterable[Note], known: tuple[Verifier, ...], found: list[Finding]) -> Iterator[_Said]:
    """What notes say that one of the keys has signed; the others are findings."""
    for note in notes:
        try:
            checkpoint = open_note(note.text, known)
        except (NoteMalformed, NoteUnverified, SignatureWrong) as error:
            found.append(
                Finding(SIGNATURE, None, f"{note.where}: {error}", "take the note from where it was kept")
            )
        else:
            yield _Said(checkpoint.size, note, checkpoint)
