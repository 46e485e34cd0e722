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
            f"up to schema {self.supported}: run the version that wrote it, or a later one"
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
            f"up to v = {self.supported}: run the version that wrote it, or a later one"
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
            f"{self.path} has disk format {self.found}, this software reads up to {self.supported}: "
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
