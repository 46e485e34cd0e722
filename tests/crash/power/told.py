"""What callers were told, and when: each of it must be true of every state that a later power cut leaves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from server.gen.imageledger.v1 import source_service_pb2
from server.gen.yandex.cloud.operation import operation_pb2


@dataclass(frozen=True, slots=True)
class OperationTold:
    """An operation as an answer had it, at a position; `at_ns` is the clock after the answer had arrived."""

    at_ns: int
    position: int
    operation: operation_pb2.Operation


@dataclass(frozen=True, slots=True)
class SourceTold:
    at_ns: int
    position: int
    source: source_service_pb2.Source


@dataclass(frozen=True, slots=True)
class PositionTold:
    """Any other answer, which was read at a position."""

    at_ns: int
    position: int


@dataclass(frozen=True, slots=True)
class TimeTold:
    """An answer as of a time: nothing may be stamped at or before it any more."""

    at_ns: int
    position: int
    closed_ns: int


@dataclass(frozen=True, slots=True)
class TokenTold:
    """A token that names a subject; or, where that is None, one that was revoked."""

    at_ns: int
    position: int
    token: str
    subject: str | None


Told: TypeAlias = OperationTold | SourceTold | PositionTold | TimeTold | TokenTold
