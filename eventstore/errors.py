"""What this room can refuse or report: errors that carry data, and a text with thing, rule, value, remedy."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class EventStoreError(Exception):
    """The root of every error of this room.

    The arguments of the constructor are `args`, so that an error survives pickling between processes.
    """


class EventMalformed(EventStoreError):
    """An event that breaks a rule of the envelope or of the bytes, or does not follow its predecessor."""

    def __init__(self, position: int | None, reason: str) -> None:
        super().__init__(position, reason)
        self.position = position
        self.reason = reason

    def __str__(self) -> str:
        where = "an event" if self.position is None else f"the event at position {self.position}"
        return f"{where} is malformed: {self.reason}"


class SchemaTooNew(EventStoreError):
    """An event whose data was written by newer software than this."""

    def __init__(self, type: str, schema: int, supported: int, position: int) -> None:
        super().__init__(type, schema, supported, position)
        self.type = type
        self.schema = schema
        self.supported = supported
        self.position = position

    def __str__(self) -> str:
        return (
            f"the event at position {self.position} is {self.type} schema {self.schema}, this software reads "
            f"up to schema {self.supported}; run the version that wrote it, or a later one"
        )


class EnvelopeTooNew(EventStoreError):
    """An event whose envelope was written by newer software than this. `position` is None in bytes alone."""

    def __init__(self, position: int | None, found: int, supported: int) -> None:
        super().__init__(position, found, supported)
        self.position = position
        self.found = found
        self.supported = supported

    def __str__(self) -> str:
        where = "an event" if self.position is None else f"the event at position {self.position}"
        return (
            f"{where} was written by newer software: its envelope has v = {self.found}, this software reads "
            f"up to v = {self.supported}; run the version that wrote it, or a later one"
        )


class HeadMoved(EventStoreError):
    """The log's head is not the one an append was decided on; nothing was written."""

    def __init__(self, expected: int, actual: int) -> None:
        super().__init__(expected, actual)
        self.expected = expected
        self.actual = actual

    def __str__(self) -> str:
        return (
            f"the head of the log is {self.actual}, the append expected {self.expected}: "
            "nothing was written; catch up from the log and decide again"
        )


class StampTooOld(EventStoreError):
    """A stamp that is not later than the last event's, or than the closed time; nothing was written."""

    def __init__(self, at: int, last: int, closed: int) -> None:
        super().__init__(at, last, closed)
        self.at = at
        self.last = last
        self.closed = closed

    def __str__(self) -> str:
        return (
            f"the stamp {self.at} must be greater than the last event's {self.last} and than the closed time "
            f"{self.closed}: nothing was written; stamp the batch again"
        )


class NoSuchPosition(EventStoreError):
    """A position beyond the head, or below 1."""

    def __init__(self, position: int, head: int) -> None:
        super().__init__(position, head)
        self.position = position
        self.head = head

    def __str__(self) -> str:
        return f"the log has no position {self.position}: its positions are 1 to {self.head}"


class AppendFailed(EventStoreError):
    """An append that certainly left nothing behind. `full`: there was no room for it."""

    def __init__(self, reason: str, full: bool) -> None:
        super().__init__(reason, full)
        self.reason = reason
        self.full = full

    def __str__(self) -> str:
        remedy = "free space on the log's disk and try again" if self.full else "try again"
        return f"the append failed and nothing was written: {self.reason}; {remedy}"


class OutcomeUnknown(EventStoreError):
    """An error after COMMIT was sent: what was to be written may be durable, or not.

    `full`: there was no room; a full disk often shows only here.
    """

    def __init__(self, reason: str, full: bool = False) -> None:
        super().__init__(reason, full)
        self.reason = reason
        self.full = full

    def __str__(self) -> str:
        return f"whether the last write is durable is unknown: {self.reason}; reopen, read, then write again"


class LogCorrupt(EventStoreError):
    """Stored bytes are not what was written. `position` is None where the file does not tell."""

    def __init__(self, position: int | None, reason: str) -> None:
        super().__init__(position, reason)
        self.position = position
        self.reason = reason

    def __str__(self) -> str:
        where = "the log" if self.position is None else f"the log at position {self.position}"
        return f"{where} is corrupt: {self.reason}; it is not repaired here: restore it from a backup"


class LogUnreadable(EventStoreError):
    """The disk or the engine failed while the log was read; this says nothing about what is stored."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"the log could not be read: {self.reason}; look at its disk and folder, then try again"


class LogLocked(EventStoreError):
    """Another process holds the data directory."""

    def __init__(self, path: Path, holder: str) -> None:
        super().__init__(path, holder)
        self.path = path
        self.holder = holder

    def __str__(self) -> str:
        return f"{self.path} is held by {self.holder}: one process at a time may write; stop that one first"


class FormatTooNew(EventStoreError):
    """A file written by newer software than this."""

    def __init__(self, path: Path, found: int, supported: int) -> None:
        super().__init__(path, found, supported)
        self.path = path
        self.found = found
        self.supported = supported

    def __str__(self) -> str:
        return (
            f"{self.path} has disk format {self.found}, this software reads up to {self.supported}; "
            "run the version that wrote it, or a later one"
        )


class NotALog(EventStoreError):
    """A path at which there is no event log."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path} is not an event log: {self.reason}; check the data directory"


class ProofWrong(EventStoreError):
    """A Merkle proof that does not lead where it must. `kind` is inclusion or consistency."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(kind, reason)
        self.kind = kind
        self.reason = reason

    def __str__(self) -> str:
        return f"the {self.kind} proof proves nothing: {self.reason}; believe nothing that rests on it"


class NoteMalformed(EventStoreError):
    """A text that is no signed note, or a note whose text is no checkpoint."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"this is no signed checkpoint: {self.reason}; take the note byte for byte as it was published"


class NoteUnverified(EventStoreError):
    """A note that none of the keys given has signed. Keys are written name+id, as at the start of a vkey."""

    def __init__(self, signed_by: tuple[str, ...], known: tuple[str, ...]) -> None:
        super().__init__(signed_by, known)
        self.signed_by = signed_by
        self.known = known

    def __str__(self) -> str:
        return (
            f"the note is signed by {', '.join(self.signed_by)}, and by none of the keys to believe "
            f"({', '.join(self.known)}); check that note and key are of the same log"
        )


class SignatureWrong(EventStoreError):
    """A note with a signature under a known key that is not of this text. `key` is written name+id."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key

    def __str__(self) -> str:
        return f"the note is not what {self.key} signed: text or signature was changed; take the original"


class KeyMalformed(EventStoreError):
    """A text that is no key. It may be a secret, so no error quotes it."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(kind, reason)
        self.kind = kind
        self.reason = reason

    def __str__(self) -> str:
        return f"this is no {self.kind}: {self.reason}; give the text as it was made, on one line"


class KeyFileRefused(EventStoreError):
    """A key file that cannot be made, or must not be used. `remedy` says what to do with it."""

    def __init__(self, path: Path, reason: str, remedy: str) -> None:
        super().__init__(path, reason, remedy)
        self.path = path
        self.reason = reason
        self.remedy = remedy

    def __str__(self) -> str:
        return f"the key file {self.path} {self.reason}; {self.remedy}"


class ForeignCheckpoint(EventStoreError):
    """A checkpoint of another log."""

    def __init__(self, origin: str, log_id: str) -> None:
        super().__init__(origin, log_id)
        self.origin = origin
        self.log_id = log_id

    def __str__(self) -> str:
        return f"the checkpoint is of log {self.origin}, this is {self.log_id}; give one of this log"


class CheckpointContradicted(EventStoreError):
    """A log whose first `size` events are not those that a checkpoint of it vouches for. Hashes in hex."""

    def __init__(self, size: int, root: str, actual: str) -> None:
        super().__init__(size, root, actual)
        self.size = size
        self.root = root
        self.actual = actual

    def __str__(self) -> str:
        return (
            f"the first {self.size} events have the root {self.actual}, the checkpoint says {self.root}: "
            "the log is not the one that was signed; verify it, and restore it from a backup"
        )


class ReceiptMalformed(EventStoreError):
    """A document that is no receipt and no consistency proof."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"this is no receipt: {self.reason}; give what `log prove` printed, unchanged"


class ReceiptWrong(EventStoreError):
    """A receipt or consistency proof that does not hold.

    `step` is the first that failed: signature, origin, event, position, inclusion; older note, consistency.
    """

    def __init__(self, step: str, reason: str) -> None:
        super().__init__(step, reason)
        self.step = step
        self.reason = reason

    def __str__(self) -> str:
        return f"the proof fails at its {self.step}: {self.reason}; it proves nothing, ask for another one"


class EntryTooLarge(EventStoreError):
    """An event that the entry bundles of tlog-tiles have no room for."""

    def __init__(self, position: int, size_bytes: int, size_bytes_max: int) -> None:
        super().__init__(position, size_bytes, size_bytes_max)
        self.position = position
        self.size_bytes = size_bytes
        self.size_bytes_max = size_bytes_max

    def __str__(self) -> str:
        return (
            f"the event at position {self.position} has {self.size_bytes} bytes, an entry bundle takes "
            f"{self.size_bytes_max} each; export it in another format"
        )


class TilesRefused(EventStoreError):
    """A folder whose tiles are of another log, or ahead of what was to be written."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"no tiles are written into {self.path}: {self.reason}; give another folder"


class PublishedDiffers(EventStoreError):
    """A published checkpoint that is not the one to be published under its name; nothing was written."""

    def __init__(self, path: Path, size: int) -> None:
        super().__init__(path, size)
        self.path = path
        self.size = size

    def __str__(self) -> str:
        return (
            f"{self.path} is another checkpoint of {self.size} events than this log's: two logs of one name "
            "publish there, or one of the two was changed; find out which one is true"
        )


class PublishedRefused(EventStoreError):
    """A file or folder in which published checkpoints of this log cannot be. `remedy`: what to do with it."""

    def __init__(self, path: Path, reason: str, remedy: str) -> None:
        super().__init__(path, reason, remedy)
        self.path = path
        self.reason = reason
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.path} {self.reason}; {self.remedy}"
