"""Is this log still the one that was signed? Checkpoints against its hashes, oldest first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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


class Kept(NamedTuple):
    """A note with where it was kept; `outside` is out of reach of whoever can write the log."""

    where: str
    note: str
    outside: bool


def opened(
    notes: Iterable[Kept], verifiers: Iterable[Verifier]
) -> Iterator[tuple[Kept, Checkpoint | Finding]]:
    """The checkpoint of each note, or why it is not to be believed."""
    known = tuple(verifiers)
    for kept in notes:
        try:
            yield kept, open_note(kept.note, known)
        except (NoteMalformed, NoteUnverified, SignatureWrong) as error:
            yield (
                kept,
                Finding(SIGNATURE, None, f"{kept.where}: {error}", "take the note from where it was kept"),
            )


def checkpoint_findings(
    log: LogReader, notes: Iterable[Kept], verifiers: Iterable[Verifier]
) -> Iterator[Finding]:
    """What signed checkpoints say against the log as it stands, and against one another.

    A log that is shorter than what was signed lost its end, if it kept that note itself, or is an older state
    put back, if the note was kept outside. One that is as long and has another root is another history; the
    last checkpoint that still holds says from where on. Raises ForeignCheckpoint.
    """
    found: list[tuple[Kept, Checkpoint]] = []
    for kept, what in opened(notes, verifiers):
        if isinstance(what, Finding):
            yield what
        else:
            found.append((kept, what))
    head, holds = log.head(), 0
    for kept, checkpoint in sorted(found, key=lambda one: one[1].size):
        size = checkpoint.size
        if size > head:
            kind = ROLLBACK if kept.outside else TRUNCATION
            message = f"{kept.where} vouches for {size} events, and the log ends at {head}"
            yield Finding(kind, head + 1, message)
            continue
        try:
            check_log(log, checkpoint)
            holds = max(holds, size)
        except CheckpointContradicted as error:
            message = (
                f"{kept.where} vouches for {size} events with the root {error.root}, here they have"
                f" {error.actual}: what differs is behind position {holds}"
            )
            yield Finding(FORK, holds + 1, message)
        except LogCorrupt as error:
            message = f"{kept.where} cannot be compared: {error.reason}"
            yield Finding(FORK, error.position, message)
