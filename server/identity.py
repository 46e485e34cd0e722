"""Who asks. In development mode every token is accepted and names its subject; none is ever stored."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import os
import re
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack

from eventstore.database import fsync_directory

PREFIX = "il1."
LIFETIME_NS = 12 * 3600 * 1_000_000_000
# A revocation outlives its token by so much, since a clock that is set back makes the token young again.
REVOCATION_KEPT_NS = 24 * 3600 * 1_000_000_000
REVOCATIONS_MAX = 100_000
PRUNED_FROM = 1024
KEY_FILE = "token.key"
REVOKED_FILE = "tokens.revoked"
KEY_BYTES = 32
SUBJECT = re.compile(r"[\x20-\x7e]{1,50}")
SUBJECTS_KEPT_MAX = 4096


class TokenRefused(Exception):
    """The text never holds the token."""


class RevocationsFull(Exception):
    """No more tokens can be revoked until earlier ones have expired."""

    def __init__(self) -> None:
        super().__init__(f"The limit on revoked tokens that have not expired has exceeded: {REVOCATIONS_MAX}")


@dataclass(frozen=True, slots=True)
class Issued:
    """A token of ours, and when it ends, in nanoseconds since the epoch."""

    token: str
    expires_at: int


class Tokens:
    """Issues, reads and revokes tokens signed with the data directory's own key.

    `revoke` and `prune` write, and are for worker threads; the rest is for any.
    """

    def __init__(self, key: bytes, *, revoked_path: Path, clock: Callable[[], int]) -> None:
        self._key = key
        self._revoked_path = revoked_path
        self._clock = clock
        self._writing = threading.Lock()
        # By fingerprint, when the token expires.
        self._revoked = _read_revoked(revoked_path)
        self._pruned_from = PRUNED_FROM
        self._subjects: dict[str, str] = {}

    def issue(self, subject: str) -> Issued:
        expires_at = self._clock() + LIFETIME_NS
        payload = msgpack.packb([subject, expires_at, secrets.token_bytes(8)])
        return Issued(_token(payload, self._sign(payload)), expires_at)

    def bearer(self, authorization: str) -> str:
        """The subject that the value of an authorization header names. Raises TokenRefused."""
        subject = self._subjects.get(authorization)
        if subject is not None:
            return subject
        kind, _, token = authorization.partition(" ")
        token = token.strip()
        if kind.lower() != "bearer" or not token:
            raise TokenRefused("The token is invalid: send the metadata `authorization: Bearer <token>`")
        subject = self.subject(token)
        if not token.startswith(PREFIX):
            # One of ours is not kept: it may be revoked, and it expires.
            if len(self._subjects) >= SUBJECTS_KEPT_MAX:
                self._subjects.clear()
            self._subjects[authorization] = subject
        return subject

    def subject(self, token: str) -> str:
        """The subject that a token names. Raises TokenRefused."""
        return self._own(token)[0] if token.startswith(PREFIX) else foreign_subject(token)

    def revoke(self, token: str) -> str:
        """The subject of a token of ours, which is refused from now on, also after a restart.

        Raises TokenRefused, RevocationsFull, OSError.
        """
        with self._writing:
            subject, expires_at = self._own(token)
            if len(self._revoked) >= self._pruned_from:
                self._rewrite()
            if len(self._revoked) >= REVOCATIONS_MAX:
                raise RevocationsFull
            fingerprint = _fingerprint(token)
            _append(self._revoked_path, fingerprint, expires_at)
            # Durable from here on.
            self._revoked[fingerprint] = expires_at
        return subject

    def prune(self) -> None:
        """Forget the revocations of tokens that expired long ago, on disk, too. Raises OSError."""
        with self._writing:
            if any(map(self._is_stale, self._revoked.values())):
                self._rewrite()

    def _is_stale(self, expires_at: int) -> bool:
        return expires_at + REVOCATION_KEPT_NS <= self._clock()

    def _rewrite(self) -> None:
        kept = {
            fingerprint: expires_at
            for fingerprint, expires_at in self._revoked.items()
            if not self._is_stale(expires_at)
        }
        draft = self._revoked_path.with_suffix(".new")
        lines = "".join(_line(fingerprint, expires_at) for fingerprint, expires_at in kept.items())
        with draft.open("w", encoding="ascii") as file:
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())
        # A crash on either side leaves a whole file, the old one or the new one.
        draft.replace(self._revoked_path)
        fsync_directory(self._revoked_path.parent)
        self._revoked = kept
        # Not before there are twice as many, so that a revocation costs its own line, and seldom all lines.
        self._pruned_from = min(max(PRUNED_FROM, 2 * len(kept)), REVOCATIONS_MAX)

    def _own(self, token: str) -> tuple[str, int]:
        try:
            payload_text, signature_text = token.removeprefix(PREFIX).split(".")
            payload, signature = _bytes(payload_text), _bytes(signature_text)
        except (ValueError, binascii.Error):
            raise TokenRefused("The token is invalid") from None
        # One text only: base64 has several for the same bytes, and a revocation names the text.
        if not hmac.compare_digest(signature, self._sign(payload)) or token != _token(payload, signature):
            raise TokenRefused("The token is invalid")
        if _fingerprint(token) in self._revoked:
            raise TokenRefused("The token is invalid")
        subject, expires_at, _ = msgpack.unpackb(payload)
        if self._clock() >= expires_at:
            raise TokenRefused("The token has expired")
        return subject, expires_at

    def _sign(self, payload: bytes) -> bytes:
        return hmac.digest(self._key, payload, "sha256")


def foreign_subject(text: str) -> str:
    """Whom a text that is no token of ours stands for: a JWT's issuer, else a name made of its hash."""
    issuer = _jwt_issuer(text)
    if issuer is not None and SUBJECT.fullmatch(issuer):
        return issuer
    return f"dev-{hashlib.sha256(text.encode('utf-8', 'surrogateescape')).hexdigest()[:16]}"


def load_key(directory: Path) -> bytes:
    """The directory's token key, made on first use with mode 0600. Raises ValueError for a damaged one."""
    path = directory / KEY_FILE
    try:
        key = path.read_bytes()
    except FileNotFoundError:
        return _make_key(path)
    if len(key) != KEY_BYTES:
        raise ValueError(
            f"{path} holds {len(key)} bytes, a token key has {KEY_BYTES}:"
            " remove it to make a new one; tokens issued so far end with it"
        )
    return key


def _make_key(path: Path) -> bytes:
    key = secrets.token_bytes(KEY_BYTES)
    draft = path.with_suffix(".new")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(key)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    fsync_directory(path.parent)
    return key


def _read_revoked(path: Path) -> dict[str, int]:
    """Which tokens are revoked, and when each expires."""
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except FileNotFoundError:
        return {}
    # A line that a power cut tore was never acknowledged.
    found = (line.split(" ") for line in lines)
    return {words[0]: int(words[1]) for words in found if len(words) == 2 and words[1].isdecimal()}


def _append(path: Path, fingerprint: str, expires_at: int) -> None:
    with path.open("a", encoding="ascii") as file:
        file.write(_line(fingerprint, expires_at))
        file.flush()
        os.fsync(file.fileno())
    fsync_directory(path.parent)


def _line(fingerprint: str, expires_at: int) -> str:
    # The line's end comes first: a line that a power cut tore must not swallow the next one.
    return f"\n{fingerprint} {expires_at}"


def _fingerprint(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _jwt_issuer(text: str) -> str | None:
    parts = text.split(".")
    if len(parts) != 3:
        return None
    try:
        header: Any = json.loads(_bytes(parts[0]))
        claims: Any = json.loads(_bytes(parts[1]))
    except (ValueError, binascii.Error, RecursionError):
        return None
    if not isinstance(header, dict) or "alg" not in header or not isinstance(claims, dict):
        return None
    issuer = claims.get("iss")
    return issuer if isinstance(issuer, str) else None


def _token(payload: bytes, signature: bytes) -> str:
    return f"{PREFIX}{_text(payload)}.{_text(signature)}"


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _bytes(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
