"""The fingerprint of a request: what makes a repeated Idempotency-Key the same request."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import msgpack

from eventstore.event import Value, canonical


def fingerprint(request: Mapping[str, Value]) -> bytes:
    """SHA-256 of the canonical msgpack of the validated request's own fields, mapped as in `data`."""
    return hashlib.sha256(msgpack.packb(canonical(request))).digest()
