"""A log's checkpoints: what it says of itself at a size, and whether what it once said still holds."""

from __future__ import annotations

from collections.abc import Iterable

from eventstore import merkle
from eventstore.checkpoint import Checkpoint, KeptCheckpoint, open_note
from eventstore.errors import CheckpointContradicted, ForeignCheckpoint, LogCorrupt, NoteMalformed
from eventstore.keys import Verifier
from eventstore.merkle import TreeSize
from eventstore.reader import LogReader


def checkpoint_at(log: LogReader, size: TreeSize) -> Checkpoint:
    """The checkpoint of the first `size` events, to be signed.

    Every hash that it is made of is checked against those below it, as a signature would make a damaged one
    binding for ever: O(log² size) reads. Raises NoSuchPosition, LogCorrupt.
    """
    for _, position in merkle.frontier_positions(size):
        damaged = merkle.damaged_row(position, log.hashes)
        if damaged is not None:
            raise LogCorrupt(damaged, "a hash there is not that of the two below it")
    return Checkpoint(log.log_id, size, _root(log, size))


def check_log(log: LogReader, checkpoint: Checkpoint) -> None:
    """Returns if a checkpoint is of this log, as far as its stored hashes say: O(log n) reads.

    Raises ForeignCheckpoint, NoSuchPosition for one beyond the head, CheckpointContradicted.
    """
    if checkpoint.origin != log.log_id:
        raise ForeignCheckpoint(checkpoint.origin, log.log_id)
    actual = _root(log, checkpoint.size)
    if actual != checkpoint.root:
        raise CheckpointContradicted(checkpoint.size, checkpoint.root.hex(), actual.hex())


def check_kept(log: LogReader, kept: KeptCheckpoint, verifiers: Iterable[Verifier]) -> Checkpoint:
    """What a kept checkpoint says, if one of these keys has signed it and it is of this log: O(log n) reads.

    Raises NoteMalformed, NoteUnverified, SignatureWrong, and what check_log raises.
    """
    checkpoint = open_note(kept.note, verifiers)
    if (checkpoint.size, checkpoint.root) != (kept.size, kept.root):
        raise NoteMalformed(f"it is kept as that of {kept.size} events and says {checkpoint.size}")
    check_log(log, checkpoint)
    return checkpoint


def _root(log: LogReader, size: TreeSize) -> bytes:
    return merkle.root(merkle.load_frontier(size, log.hashes))
