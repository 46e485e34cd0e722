"""What a person reads when a command fails: one line with code, thing and rule, then the remedy."""

from __future__ import annotations

from eventstore import database
from eventstore.errors import (
    AppendFailed,
    CheckpointContradicted,
    EntryTooLarge,
    EnvelopeTooNew,
    EventStoreError,
    ForeignCheckpoint,
    FormatTooNew,
    KeyFileRefused,
    KeyMalformed,
    LogCorrupt,
    LogLocked,
    LogUnreadable,
    NoSuchPosition,
    NotALog,
    NoteMalformed,
    NoteUnverified,
    ProofWrong,
    PublishedDiffers,
    PublishedRefused,
    ReceiptMalformed,
    ReceiptWrong,
    SchemaTooNew,
    SignatureWrong,
    TilesRefused,
)
from projections.domain.evolve import EventUnknown
from projections.errors import QuestionInvalid
from projections.rows import RowDamaged
from projections.store import ProjectionRefused
from server.blobs import BlobError, BlobStoreFailed, BlobStoreFull, DiskLow
from server.config import ConfigInvalid
from server.promises import PromiseBroken, RollbackRefused
from server.start import StartRefused
from server.status import CallRefused


class CommandFailed(Exception):
    """A command that ends with exit code 1. `code` is a gRPC status name; the remedy is a line of its own."""

    def __init__(self, code: str, message: str, *, remedy: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.remedy = remedy


CODES: dict[type[Exception], str] = {
    AppendFailed: "UNAVAILABLE",
    BlobError: "DATA_LOSS",
    BlobStoreFailed: "UNAVAILABLE",
    BlobStoreFull: "RESOURCE_EXHAUSTED",
    DiskLow: "RESOURCE_EXHAUSTED",
    ConfigInvalid: "INVALID_ARGUMENT",
    EnvelopeTooNew: "FAILED_PRECONDITION",
    EventUnknown: "FAILED_PRECONDITION",
    FormatTooNew: "FAILED_PRECONDITION",
    LogCorrupt: "DATA_LOSS",
    LogLocked: "FAILED_PRECONDITION",
    LogUnreadable: "UNAVAILABLE",
    NoSuchPosition: "OUT_OF_RANGE",
    NotALog: "NOT_FOUND",
    ProjectionRefused: "FAILED_PRECONDITION",
    QuestionInvalid: "INVALID_ARGUMENT",
    RowDamaged: "DATA_LOSS",
    SchemaTooNew: "FAILED_PRECONDITION",
    CheckpointContradicted: "DATA_LOSS",
    EntryTooLarge: "FAILED_PRECONDITION",
    ForeignCheckpoint: "FAILED_PRECONDITION",
    KeyFileRefused: "FAILED_PRECONDITION",
    KeyMalformed: "INVALID_ARGUMENT",
    NoteMalformed: "INVALID_ARGUMENT",
    NoteUnverified: "FAILED_PRECONDITION",
    PromiseBroken: "DATA_LOSS",
    ProofWrong: "DATA_LOSS",
    PublishedDiffers: "DATA_LOSS",
    PublishedRefused: "FAILED_PRECONDITION",
    RollbackRefused: "FAILED_PRECONDITION",
    ReceiptMalformed: "INVALID_ARGUMENT",
    ReceiptWrong: "DATA_LOSS",
    SignatureWrong: "DATA_LOSS",
    TilesRefused: "FAILED_PRECONDITION",
    EventStoreError: "INTERNAL",
}


def explain(error: Exception) -> tuple[str, str, str | None] | None:
    """Code, message and remedy; None for an error that is a defect of ours."""
    if isinstance(error, CommandFailed):
        return error.code, str(error), error.remedy
    if isinstance(error, StartRefused):
        return (error.code, *_split(str(error)))
    if isinstance(error, CallRefused):
        return (error.code.name, *_split(str(error)))
    if isinstance(error, database.Error):
        return "UNAVAILABLE", f"SQLite says: {error}", "look at the disk and its files, then try again"
    for kind in type(error).__mro__:
        if kind in CODES:
            return (CODES[kind], *_split(str(error)))
    if isinstance(error, UnicodeEncodeError):
        return "INVALID_ARGUMENT", f"not UTF-8 text: {ascii(error.object)[:100]}", None
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return "UNAVAILABLE", f"{where}{error.strerror or error}", None
    return None


def _split(message: str) -> tuple[str, str | None]:
    """The message and, after its last semicolon, the remedy."""
    what, separator, remedy = message.rpartition("; ")
    return (what, remedy) if separator else (message, None)
