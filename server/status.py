"""The one table from errors to gRPC statuses. What is not in it is INTERNAL, and is not shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.message import Message
from grpc import StatusCode

from eventstore import database
from eventstore.errors import (
    AppendFailed,
    CheckpointContradicted,
    EnvelopeTooNew,
    LogCorrupt,
    LogUnreadable,
    OutcomeUnknown,
)
from projections.damage import ProjectionDamaged, RowDamaged
from projections.domain.refusals import (
    ImageBusy,
    KeyReused,
    NameTaken,
    NotFound,
    SourceMissing,
    ValueRefused,
)
from projections.errors import QuestionInvalid
from server.allowlist import SourceRefused, UriMalformed
from server.blobs import BlobDamaged, BlobMissing, BlobStoreFailed, BlobStoreFull, DiskLow
from server.formats import FormatRefused
from server.gen.google.rpc import error_details_pb2, status_pb2
from server.identity import TokenRefused
from server.validate import RequestInvalid, RequestUnreadable, Violation

DOMAIN = "imageledger"
TYPE_PREFIX = "type.googleapis.com/"
DETAILS_KEY = "grpc-status-details-bin"
# They travel in the trailers as plain text and twice more in base64, and gRPC drops trailers over 8 KiB.
VIOLATIONS_CHARACTERS_MAX = 1500


class CallRefused(Exception):
    """A refusal that the server itself decides on: limits, headers, moments, shutting down.

    `field` names the request field or header; `retry_after_ms` asks a client to come back later.
    """

    def __init__(
        self,
        code: StatusCode,
        message: str,
        *,
        reason: str,
        field: str | None = None,
        retry_after_ms: int | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.field = field
        self.retry_after_ms = retry_after_ms


@dataclass(frozen=True, slots=True)
class Refusal:
    """A status before it meets its request: code, text, ErrorInfo's reason, and field violations."""

    code: StatusCode
    message: str
    reason: str
    violations: tuple[tuple[str, str], ...] = field(default=())
    retry_after_ms: int | None = None


def _invalid(message: str, field_name: str, reason: str) -> Refusal:
    return Refusal(StatusCode.INVALID_ARGUMENT, message, reason, ((field_name, message),))


def _question_invalid(error: QuestionInvalid) -> Refusal:
    field_name = error.field
    if field_name == "x-as-of":
        return _invalid(error.message, field_name, "QUESTION_INVALID")
    told = RequestInvalid((Violation(field_name, error.message),))
    return Refusal(StatusCode.INVALID_ARGUMENT, str(told), "QUESTION_INVALID", ((field_name, error.message),))


def _call_refused(error: CallRefused) -> Refusal:
    violations = () if error.field is None else ((error.field, str(error)),)
    return Refusal(error.code, str(error), error.reason, violations, error.retry_after_ms)


def _request_invalid(error: RequestInvalid) -> Refusal:
    kept, room = 0, VIOLATIONS_CHARACTERS_MAX
    for violation in error.violations:
        room -= len(violation.field) + len(violation.description)
        if kept and room < 0:
            break
        kept += 1
    omitted = error.omitted + len(error.violations) - kept
    told = RequestInvalid(error.violations[:kept], omitted=omitted)
    violations = tuple((violation.field, violation.description) for violation in told.violations)
    return Refusal(StatusCode.INVALID_ARGUMENT, str(told), "REQUEST_INVALID", violations)


def _append_failed(error: AppendFailed) -> Refusal:
    message = f"The write was refused and left nothing: {error.reason}"
    if error.full:
        remedy = "free some space on its disk, and try again"
        return Refusal(StatusCode.RESOURCE_EXHAUSTED, f"{message}; {remedy}", "DISK_FULL")
    remedy = "try again, and look at its disk"
    return Refusal(StatusCode.UNAVAILABLE, f"{message}; {remedy}", "LOG_UNAVAILABLE")


def _outcome_unknown(error: OutcomeUnknown) -> Refusal:
    message = (
        f"Whether the write is durable is not known: {error.reason};"
        " read what it was to change, or ask again with the same idempotency-key"
    )
    return Refusal(StatusCode.UNAVAILABLE, message, "OUTCOME_UNKNOWN")


TABLE: dict[type[Exception], Callable[[Any], Refusal]] = {
    CallRefused: _call_refused,
    RequestInvalid: _request_invalid,
    RequestUnreadable: lambda e: Refusal(StatusCode.INVALID_ARGUMENT, str(e), "REQUEST_UNREADABLE"),
    QuestionInvalid: _question_invalid,
    TokenRefused: lambda e: Refusal(StatusCode.UNAUTHENTICATED, str(e), "TOKEN_REFUSED"),
    NotFound: lambda e: Refusal(StatusCode.NOT_FOUND, str(e), "NOT_FOUND"),
    NameTaken: lambda e: Refusal(StatusCode.ALREADY_EXISTS, str(e), "NAME_TAKEN"),
    SourceMissing: lambda e: Refusal(StatusCode.FAILED_PRECONDITION, str(e), "SOURCE_MISSING"),
    ImageBusy: lambda e: Refusal(StatusCode.FAILED_PRECONDITION, str(e), "IMAGE_BUSY"),
    ValueRefused: lambda e: _invalid(str(e), e.field, "VALUE_REFUSED"),
    KeyReused: lambda e: _invalid(str(e), "idempotency-key", "KEY_REUSED"),
    FormatRefused: lambda e: Refusal(StatusCode.INVALID_ARGUMENT, str(e), "FORMAT_REFUSED"),
    BlobMissing: lambda e: Refusal(StatusCode.DATA_LOSS, str(e), "BLOB_MISSING"),
    BlobDamaged: lambda e: Refusal(StatusCode.DATA_LOSS, str(e), "BLOB_DAMAGED"),
    UriMalformed: lambda e: _invalid(str(e), "uri", "URI_MALFORMED"),
    SourceRefused: lambda e: Refusal(StatusCode.FAILED_PRECONDITION, str(e), "SOURCE_REFUSED"),
    DiskLow: lambda e: Refusal(StatusCode.RESOURCE_EXHAUSTED, str(e), "DISK_LOW"),
    BlobStoreFull: lambda e: Refusal(StatusCode.RESOURCE_EXHAUSTED, str(e), "DISK_FULL"),
    BlobStoreFailed: lambda e: Refusal(StatusCode.UNAVAILABLE, str(e), "BLOB_STORE_UNAVAILABLE"),
    RowDamaged: lambda e: Refusal(StatusCode.DATA_LOSS, str(e), "ROW_DAMAGED"),
    ProjectionDamaged: lambda e: Refusal(StatusCode.DATA_LOSS, str(e), "PROJECTION_DAMAGED"),
    # What the disk or a lock does to a read. A broken constraint or a wrong statement stays a defect of ours.
    database.OperationalError: lambda e: Refusal(
        StatusCode.UNAVAILABLE, "The projection cannot be read", "PROJECTION_UNAVAILABLE"
    ),
    LogCorrupt: lambda e: Refusal(StatusCode.DATA_LOSS, str(e), "LOG_CORRUPT"),
    EnvelopeTooNew: lambda e: Refusal(StatusCode.FAILED_PRECONDITION, str(e), "LOG_TOO_NEW"),
    LogUnreadable: lambda e: Refusal(StatusCode.UNAVAILABLE, "The log cannot be read", "LOG_UNAVAILABLE"),
    CheckpointContradicted: lambda e: Refusal(StatusCode.DATA_LOSS, str(e), "LOG_CONTRADICTED"),
    OutcomeUnknown: _outcome_unknown,
    AppendFailed: _append_failed,
}


def refusal_of(error: BaseException) -> Refusal | None:
    """What the caller is told; None for an error that is ours and must be logged instead."""
    for kind in type(error).__mro__:
        make = TABLE.get(kind)
        if make is not None:
            return make(error)
    return None


INTERNAL = Refusal(StatusCode.INTERNAL, "Internal error", "INTERNAL")


def details(refusal: Refusal, *, request_id: str) -> bytes:
    """The google.rpc.Status of the refusal, for the trailing metadata."""
    messages: list[Message] = [
        error_details_pb2.ErrorInfo(reason=refusal.reason, domain=DOMAIN),
        error_details_pb2.RequestInfo(request_id=request_id),
    ]
    if refusal.violations:
        bad = error_details_pb2.BadRequest()
        for name, description in refusal.violations:
            bad.field_violations.add(field=name, description=description)
        messages.append(bad)
    status = status_pb2.Status(code=refusal.code.value[0], message=refusal.message)
    for message in messages:
        added = status.details.add()
        added.type_url = TYPE_PREFIX + message.DESCRIPTOR.full_name
        added.value = message.SerializeToString()
    return status.SerializeToString()
