"""Receipts: an event with the proof that a signed checkpoint vouches for it; and proofs that a log only grew.

Made from a log, checked without one: whoever has the public key needs nothing else. `receipt_text.py` writes
and reads them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from eventstore import merkle
from eventstore.checkpoint import Checkpoint, parse_checkpoint, split_note, verify_note
from eventstore.errors import (
    EnvelopeTooNew,
    EventMalformed,
    LogCorrupt,
    NoSuchPosition,
    NoteMalformed,
    NoteUnverified,
    ProofWrong,
    ReceiptWrong,
    SignatureWrong,
)
from eventstore.event import Event, Position, decode
from eventstore.heads import check_log
from eventstore.keys import Verifier
from eventstore.log import LOG_CREATED
from eventstore.merkle import LeafIndex, RowReader, TreeSize
from eventstore.proofs import Proof, check_consistency, check_inclusion, consistency_proof, inclusion_proof
from eventstore.reader import LogReader


@dataclass(frozen=True, slots=True)
class Receipt:
    """An event's canonical bytes and the way from their leaf to the root of a checkpoint, the note's text."""

    position: Position
    index: LeafIndex
    body: bytes
    proof: Proof
    checkpoint: str


@dataclass(frozen=True, slots=True)
class Consistency:
    """The way from the root of a tree of `old_size` leaves to that of a checkpoint, the note's text."""

    old_size: TreeSize
    size: TreeSize
    proof: Proof
    checkpoint: str


class Proven(NamedTuple):
    """What a receipt that holds proves."""

    event: Event
    checkpoint: Checkpoint


class Grown(NamedTuple):
    """What a consistency proof that holds proves: the log of `new` begins with all that `old` vouched for."""

    old: Checkpoint
    new: Checkpoint


def prove(log: LogReader, position: Position, note: str) -> Receipt:
    """The receipt of one event, led to the checkpoint in a note, whose signature is not looked at.

    O(log n) reads. Raises NoSuchPosition for a position that the checkpoint does not cover, NoteMalformed,
    ForeignCheckpoint, CheckpointContradicted; LogCorrupt where a stored hash is not what it covers.
    """
    return prove_all(log, (position,), note)[0]


def prove_all(log: LogReader, positions: Iterable[Position], note: str) -> list[Receipt]:
    """The receipts of several events, in their order, led to one checkpoint. As `prove`, which see.

    They share most of their way, which is read once; it is in memory until the end.
    """
    checkpoint = _checkpoint_of(note)
    read = cache(log.hashes)
    check_log(log, checkpoint)
    return [_prove(log, position, checkpoint, note, read) for position in positions]


def _prove(log: LogReader, position: Position, checkpoint: Checkpoint, note: str, read: RowReader) -> Receipt:
    if not 1 <= position <= checkpoint.size:
        raise NoSuchPosition(position, checkpoint.size)
    index, body = merkle.leaf_index(position), log.body(position)
    proof = inclusion_proof(index, checkpoint.size, read)
    try:
        check_inclusion(
            merkle.leaf_hash(body), proof, index=index, size=checkpoint.size, expected=checkpoint.root
        )
    except ProofWrong as error:
        raise LogCorrupt(position, f"the hashes stored around it prove nothing: {error.reason}") from error
    return Receipt(position, index, body, proof, note)


def prove_consistency(log: LogReader, old: Checkpoint, note: str) -> Consistency:
    """The proof that the log at the checkpoint in a note begins with what an older checkpoint covers.

    No signature is looked at. O(log n) reads. Raises NoSuchPosition where the older one is the newer one, or
    one of them lies beyond the head; NoteMalformed, ForeignCheckpoint, CheckpointContradicted, LogCorrupt.
    """
    checkpoint = _checkpoint_of(note)
    for one in (old, checkpoint):
        check_log(log, one)
    if not 1 <= old.size <= checkpoint.size:
        raise NoSuchPosition(old.size, checkpoint.size)
    proof = consistency_proof(old_size=old.size, size=checkpoint.size, read=log.hashes)
    try:
        check_consistency(
            proof, old_size=old.size, old_root=old.root, size=checkpoint.size, expected=checkpoint.root
        )
    except ProofWrong as error:
        raise LogCorrupt(None, f"the hashes stored prove nothing: {error.reason}") from error
    return Consistency(old.size, checkpoint.size, proof, note)


def check(receipt: Receipt, verifiers: Iterable[Verifier]) -> Proven:
    """What a receipt proves to one who believes these keys, and nothing else.

    Its steps: a key has signed the checkpoint; that key is called like the log; the bytes are an event's;
    it stands at the position that the receipt names; its leaf leads to the root. Raises ReceiptWrong, which
    names the first step that failed.
    """
    checkpoint = _believed(receipt.checkpoint, verifiers, "signature")
    try:
        event = decode(receipt.body)
    except (EventMalformed, EnvelopeTooNew) as error:
        raise ReceiptWrong("event", str(error)) from error
    _check_position(receipt, event)
    try:
        check_inclusion(
            merkle.leaf_hash(receipt.body),
            receipt.proof,
            index=receipt.index,
            size=checkpoint.size,
            expected=checkpoint.root,
        )
    except ProofWrong as error:
        raise ReceiptWrong("inclusion", error.reason) from error
    _check_log_id(event, checkpoint)
    return Proven(event, checkpoint)


def check_grown(consistency: Consistency, old_note: str, verifiers: Iterable[Verifier]) -> Grown:
    """What a consistency proof proves to one who kept an older note and believes these keys.

    Raises ReceiptWrong, which names the first step that failed.
    """
    known = tuple(verifiers)
    new = _believed(consistency.checkpoint, known, "signature")
    old = _believed(old_note, known, "older note")
    if (old.origin, old.size, new.size) != (new.origin, consistency.old_size, consistency.size):
        raise ReceiptWrong(
            "older note",
            f"it leads from {consistency.old_size} to {consistency.size} events; the notes are of "
            f"{old.origin} at {old.size} and {new.origin} at {new.size}",
        )
    try:
        check_consistency(
            consistency.proof, old_size=old.size, old_root=old.root, size=new.size, expected=new.root
        )
    except ProofWrong as error:
        raise ReceiptWrong("consistency", error.reason) from error
    return Grown(old, new)


def _checkpoint_of(note: str) -> Checkpoint:
    """The checkpoint of a note, whoever signed it. Raises NoteMalformed."""
    return parse_checkpoint(split_note(note)[0])


def _believed(note: str, verifiers: Iterable[Verifier], step: str) -> Checkpoint:
    """The checkpoint of a note that was signed by a key called like the log. Raises ReceiptWrong."""
    try:
        text, signers = verify_note(note, verifiers)
        checkpoint = parse_checkpoint(text)
    except (NoteMalformed, NoteUnverified, SignatureWrong) as error:
        raise ReceiptWrong(step, str(error)) from error
    if checkpoint.origin not in {signer.name for signer in signers}:
        names = ", ".join(signer.name for signer in signers)
        raise ReceiptWrong(
            "origin", f"the checkpoint is of log {checkpoint.origin}, the key is that of {names}"
        )
    return checkpoint


def _check_position(receipt: Receipt, event: Event) -> None:
    if event.position != receipt.position or merkle.leaf_index(event.position) != receipt.index:
        raise ReceiptWrong(
            "position",
            f"the event says position {event.position}, the receipt position {receipt.position} and index "
            f"{receipt.index}, counted from 0",
        )


def _check_log_id(event: Event, checkpoint: Checkpoint) -> None:
    """The first event names its log: in a log's own checkpoint it cannot name another one."""
    if event.type == LOG_CREATED and event.data.get("log_id") != checkpoint.origin:
        raise ReceiptWrong(
            "origin",
            f"the event creates log {event.data.get('log_id')}, the checkpoint is of {checkpoint.origin}",
        )
