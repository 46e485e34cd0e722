"""Opening what a server needs, in an order in which a refusal leaves the disk as it was."""

from __future__ import annotations

import logging
import socket
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from secrets import token_bytes

import grpc

from eventstore.lock import DirectoryLock
from eventstore.log import EventLog, new_log_id
from projections.moments import format_time
from projections.store import ProjectionFiles, open_live
from server.blobs import BlobStore
from server.config import Config, split_address
from server.encode import image_frame
from server.identity import REVOKED_FILE, Tokens, load_key

CLOCK_BEHIND_NS_MAX = 5 * 60 * 1_000_000_000
PROGRESS_EVENTS_MIN = 20_000  # A shorter log is read before a person could wonder.

_log = logging.getLogger(__name__)


class StartRefused(Exception):
    """The server does not start. One line that names thing, rule and remedy; nothing was changed."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Stores:
    """What lies on disk, opened and caught up."""

    log: EventLog
    log_path: Path
    projection: Path
    blobs: BlobStore
    tokens: Tokens
    clock_accepted: bool


def bind(server: grpc.aio.Server, config: Config) -> int:
    """Bind before anything on disk is touched. Raises StartRefused."""
    credentials = _credentials(config)
    try:
        if credentials is None:
            port = server.add_insecure_port(config.listen)
        else:
            port = server.add_secure_port(config.listen, credentials)
    except RuntimeError:
        port = 0
    if port == 0:
        raise StartRefused(
            "UNAVAILABLE",
            f"cannot listen on {config.listen}: {_why_not_bound(config.listen)};"
            " stop what uses it, or give another --listen (port 0 takes a free one)",
        )
    return port


def _why_not_bound(listen: str) -> str:
    host, port = split_address(listen, option="--listen")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.bind(address)
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return "the address is in use"


def _credentials(config: Config) -> grpc.ServerCredentials | None:
    if config.tls_cert is None or config.tls_key is None:
        return None
    try:
        key, certificate = config.tls_key.read_bytes(), config.tls_cert.read_bytes()
    except OSError as error:
        raise StartRefused(
            "INVALID_ARGUMENT",
            f"cannot read {error.filename}: {error.strerror}; check --tls-cert and --tls-key",
        ) from None
    if b"PRIVATE KEY-----" not in key or b"BEGIN CERTIFICATE-----" not in certificate:
        raise StartRefused(
            "INVALID_ARGUMENT",
            "--tls-cert and --tls-key must be PEM files of a certificate and its private key",
        )
    return grpc.ssl_server_credentials([(key, certificate)])


def open_stores(config: Config, stack: ExitStack) -> Stores:
    """Everything below the data directory, locked and caught up. Raises StartRefused, EventStoreError."""
    directory = config.data
    try:
        directory.mkdir(mode=0o750, parents=True, exist_ok=True)
        since = format_time(time.time_ns())
        stack.enter_context(DirectoryLock(directory, command="imageledger serve", since=since))
    except OSError as error:
        raise StartRefused(
            "PERMISSION_DENIED",
            f"cannot use the data directory {directory}: {error.strerror}; check --data and its permissions",
        ) from None
    log_path = directory / "log.db"
    log = EventLog.open(log_path)
    stack.callback(log.close)
    clock_accepted = _check_clock(log, accept=config.accept_clock)
    log.create_if_empty(log_id=new_log_id(token_bytes(16)), at=time.time_ns())
    projection = open_live(ProjectionFiles(directory), log, encode=image_frame, on_progress=_progress)
    blobs = BlobStore(directory / "blobs", min_free=config.min_free)
    return Stores(log, log_path, projection, blobs, _tokens(directory), clock_accepted)


def _tokens(directory: Path) -> Tokens:
    try:
        key = load_key(directory)
    except ValueError as error:
        raise StartRefused("DATA_LOSS", str(error)) from None
    return Tokens(key, revoked_path=directory / REVOKED_FILE, clock=time.time_ns)


def _check_clock(log: EventLog, *, accept: bool) -> bool:
    """Whether a clock far behind the log was accepted. Raises StartRefused."""
    head = log.head()
    # Nothing may be stamped at or before the closed time, so that is the log's time, too.
    last_at = max(log.at(head) if head else 0, log.closed())
    behind = last_at - time.time_ns()
    if behind <= 0:
        return False
    if behind <= CLOCK_BEHIND_NS_MAX:
        _log.warning(
            "the clock is behind the log; events are stamped with the log's time until it catches up"
        )
        return False
    if not accept:
        raise StartRefused(
            "FAILED_PRECONDITION",
            f"the clock is {behind // 1_000_000_000} s behind the log, whose time is {format_time(last_at)}:"
            " set the clock, or go on from the log's time with --accept-clock, which the log records",
        )
    return True


def _progress(done: int, head: int) -> None:
    if head >= PROGRESS_EVENTS_MIN:
        print(f"projection: {done} of {head} events", file=sys.stderr)
