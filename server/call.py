"""One call: what its metadata says, and what goes back beside the answer."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable
from itertools import count
from random import getrandbits
from typing import Any

from grpc import StatusCode

from projections.domain.command import Asked
from server.status import CallRefused

IDS = frozenset({"x-client-request-id", "x-request-id", "x-client-trace-id"})
REQUEST_ID = re.compile(r"[\x20-\x7e]{1,64}")
UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
REASON_MAX = 256
DEADLINE_S_MAX = 3600.0


# What the ids of one process begin with; a count of its calls follows, from a random one.
_PROCESS = str(uuid.UUID(int=getrandbits(128), version=4))[:24]
_numbers = count(getrandbits(47))


def new_request_id() -> str:
    """A UUID (version 4) for a call that brings none. It guards nothing, so it need not be hard to guess."""
    return f"{_PROCESS}{next(_numbers):012x}"


ServicerContext = Any  # grpc.aio's context; its stubs know no type that fits both kinds of handler.


class Call:
    """The metadata of one call, read once, and the identity behind it."""

    __slots__ = (
        "_sent_initial",
        "actor",
        "context",
        "has_ids",
        "initial",
        "metadata",
        "method",
        "position",
        "request_id",
        "trace_id",
        "trailing",
    )

    def __init__(self, method: str, context: ServicerContext) -> None:
        self.method = method
        self.context = context
        self.metadata: dict[str, Any] = dict(context.invocation_metadata() or ())
        self.actor = ""
        self.position: int | None = None
        self.initial: list[tuple[str, str]] = []
        self.trailing: list[tuple[str, str]] = []
        self._sent_initial = False
        # Most callers send none of the three, and then one look says so.
        self.has_ids = False
        if IDS.isdisjoint(self.metadata):
            self.request_id = self.trace_id = new_request_id()
            return
        asked = self._text_id("x-client-request-id") or self._text_id("x-request-id")
        traced = self._text_id("x-client-trace-id")
        self.request_id = asked or new_request_id()
        self.trace_id = traced or self.request_id
        self.has_ids = asked is not None or traced is not None

    def _text_id(self, key: str) -> str | None:
        value = self.metadata.get(key)
        return value if isinstance(value, str) and REQUEST_ID.fullmatch(value) else None

    def text(self, key: str) -> str | None:
        """A header's text, None where it was not sent."""
        value = self.metadata.get(key)
        return value if isinstance(value, str) else None

    @property
    def asks_moment(self) -> bool:
        """Whether the caller wants another answer than the present one of this node."""
        return "x-as-of" in self.metadata or "x-min-position" in self.metadata

    @property
    def names_position(self) -> bool:
        """Whether the caller names the position to read at least."""
        return "x-min-position" in self.metadata

    def deadline(self) -> float:
        """When the caller stops waiting, on the monotonic clock in seconds."""
        remaining = self.context.time_remaining()
        return time.monotonic() + (DEADLINE_S_MAX if remaining is None else min(remaining, DEADLINE_S_MAX))

    async def send_initial(self) -> None:
        """Send the initial metadata if there is any; a caller without ids is spared the extra batch."""
        if self._sent_initial or not (self.has_ids or self.initial):
            return
        self._sent_initial = True
        ids = self._ids() if self.has_ids else []
        await self.context.send_initial_metadata((*ids, *self.initial))

    def closing(self) -> tuple[tuple[str, str | bytes], ...]:
        """The trailing metadata of every answer."""
        ids = self._ids()
        if self.position is not None:
            ids.append(("x-log-position", str(self.position)))
        return (*ids, *self.trailing) if self.trailing else tuple(ids)

    def _ids(self) -> list[tuple[str, str]]:
        return [("x-request-id", self.request_id), ("x-server-trace-id", self.trace_id)]

    def asked(self, *, operation_id: str, fingerprint: Callable[[], bytes] | None = None) -> Asked:
        """Who asks for what, for a command. `fingerprint` hashes the request, if a key was sent.

        Without it the key is checked and not kept. Raises CallRefused for a malformed key or reason.
        """
        key = self._idempotency_key()
        if fingerprint is None:
            key = None
        return Asked(
            actor=self.actor,
            auth="dev",
            request_id=self.request_id,
            operation_id=operation_id,
            method=self.method,
            key=key,
            request=fingerprint() if fingerprint is not None and key is not None else None,
            reason=self._reason(),
        )

    def _idempotency_key(self) -> str | None:
        text = self.text("idempotency-key")
        if text is None:
            return None
        if UUID.fullmatch(text) is None:
            raise _refused("idempotency-key", f"Idempotency-Key must be a UUID, like {uuid.UUID(int=1)}")
        return text.lower()

    def _reason(self) -> str | None:
        raw = self.metadata.get("x-change-reason-bin")
        text = self.text("x-change-reason")
        header = "x-change-reason"
        if isinstance(raw, bytes):
            header = "x-change-reason-bin"
            try:
                text = raw.decode()
            except UnicodeDecodeError:
                raise _refused(header, f"{header} must be UTF-8 text") from None
        elif text is not None and not (text.isascii() and text.isprintable()):
            raise _refused(header, f"{header} must be printable ASCII; send {header}-bin for more")
        if text is not None and len(text) > REASON_MAX:
            raise _refused(header, f"{header} has {len(text)} characters; at most {REASON_MAX} are kept")
        return text or None


def _refused(field: str, message: str) -> CallRefused:
    return CallRefused(StatusCode.INVALID_ARGUMENT, message, reason="HEADER_INVALID", field=field)
