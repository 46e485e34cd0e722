"""Opening what a server needs, in an order in which a refusal leaves the disk as it was."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import signal
import socket
import ssl
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from secrets import token_bytes
from tempfile import TemporaryDirectory
from typing import NoReturn

import grpc

from eventstore import database, schema
from eventstore.errors import AppendFailed, NotALog, OutcomeUnknown
from eventstore.keys import KEY_SIZE_BYTES, Signer
from eventstore.lock import DirectoryLock, no_writer
from eventstore.log import PAGE_BYTES, EventLog, new_log_id
from eventstore.reader import LogReader
from projections.moments import format_time
from projections.store import ProjectionFiles, open_live
from server.blobs import BlobStore, BlobStoreFailed
from server.config import Config, split_address
from server.encode import image_frame
from server.identity import KEY_FILE, REVOKED_FILE, Tokens, load_key
from server.promises import check_kept_one, check_promises, first_events, key_files
from server.signing import KeyFiles
from server.writer import SystemEvent

CLOCK_BEHIND_NS_MAX = 5 * 60 * 1_000_000_000
START_BYTES = 1024 * 1024
READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
FULL = (errno.ENOSPC, errno.EDQUOT)
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

    log: LogReader
    log_path: Path
    projection: Path
    blobs: BlobStore
    tokens: Tokens
    # What writes; None where a copy is served.
    writing: Writing | None


@dataclass(frozen=True, slots=True)
class Writing:
    """What only the one process has that writes the log."""

    log: EventLog
    clock_accepted: bool
    key_files: KeyFiles
    signer: Signer
    # What the log has to say of its past and of that key, before anything else is written.
    first_events: tuple[SystemEvent, ...]


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGINT and SIGTERM end a start that takes long, such as the building of a projection, at once."""

    def interrupt(number: int, frame: object) -> NoReturn:
        if number == signal.SIGTERM:
            sys.exit(0)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def bind(server: grpc.aio.Server, config: Config) -> int:
    """Bind before anything on disk is touched. Raises StartRefused."""
    credentials = _credentials(config)
    _check_address(config.listen)
    try:
        if credentials is None:
            port = server.add_insecure_port(config.listen)
        else:
            port = server.add_secure_port(config.listen, credentials)
    except RuntimeError:
        port = 0
    if port == 0:
        raise _not_bound(config.listen, "the address is in use")
    return port


def _check_address(listen: str) -> None:
    """Ask the system first: of what gRPC cannot bind it tells stderr in lines of its own."""
    host, port = split_address(listen, option="--listen")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise _not_bound(listen, error.strerror or str(error)) from None
    failures = [failure for failure in map(_why_not_bound, found) if failure is not None]
    if len(failures) == len(found):
        raise _not_bound(listen, failures[0])


def _why_not_bound(found: tuple[socket.AddressFamily, socket.SocketKind, int, str, object]) -> str | None:
    family, kind, protocol, _, address = found
    try:
        with socket.socket(family, kind, protocol) as probe:
            # As gRPC does, because connections that are closing do not hold a port.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)  # type: ignore[arg-type]  # What getaddrinfo gave.
    except OSError as error:
        return error.strerror or str(error)
    return None


def _not_bound(listen: str, why: str) -> StartRefused:
    return StartRefused(
        "UNAVAILABLE",
        f"cannot listen on {listen}: {why.lower()};"
        " stop what uses it, or give another --listen (port 0 takes a free one)",
    )


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
    try:
        # gRPC would find out at the first handshake only, and tell nobody why. It asks for no password.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(config.tls_cert, config.tls_key, password=lambda: b"")
    except (OSError, ValueError) as error:
        why = getattr(error, "reason", None) or "no PEM is found there, or the key has a password"
        raise StartRefused(
            "INVALID_ARGUMENT",
            f"{config.tls_cert} and {config.tls_key} are no certificate and its private key ({why});"
            " --tls-cert and --tls-key must be PEM files that belong together, the key without a password",
        ) from None
    return grpc.ssl_server_credentials([(key, certificate)])


def open_stores(config: Config, stack: ExitStack) -> Stores:
    """Everything below the data directory, locked and caught up. Raises StartRefused, EventStoreError."""
    directory = config.data
    log_path = directory / "log.db"
    with refusing(directory):
        _check_room(directory)
        if not log_path.exists():
            check_promises(config, None)
        _make(directory)
        _check_writable(directory)
        _check_key(directory)
        _look(config, log_path)
        since = format_time(time.time_ns())
        stack.enter_context(DirectoryLock(directory, command="imageledger serve", since=since))
        log = EventLog.open(log_path)
        stack.callback(log.close)
        clock_accepted = _check_clock(log, accept=config.accept_clock)
        promises = check_promises(config, log if log.head() else None)
        log.create_if_empty(log_id=new_log_id(token_bytes(16)), at=time.time_ns())
        projection = open_live(ProjectionFiles(directory), log, encode=image_frame, on_progress=_progress)
        blobs = BlobStore(directory / "blobs", min_free=config.min_free)
        tokens = _tokens(directory)
        tokens.prune()
        files = key_files(config)
        signer = promises.signer or files.make(log.log_id, token_bytes(KEY_SIZE_BYTES))
        return Stores(
            log=log,
            log_path=log_path,
            projection=projection,
            blobs=blobs,
            tokens=tokens,
            writing=Writing(
                log=log,
                clock_accepted=clock_accepted,
                key_files=files,
                signer=signer,
                first_events=first_events(promises, signer, reason=config.accept_rollback),
            ),
        )


def open_copy(config: Config, stack: ExitStack) -> Stores:
    """A copy of a data directory, of which nothing is changed: its projection is made elsewhere.

    Raises StartRefused, PromiseBroken, EventStoreError.
    """
    directory, log_path = config.data, config.data / "log.db"
    with refusing(directory):
        if not log_path.is_file():
            raise StartRefused(
                "NOT_FOUND", f"{log_path} is not there, and --read-only serves a log that is: check --data"
            )
        stack.enter_context(no_writer(directory))
        log = LogReader.open(log_path)
        stack.callback(log.close)
        check_kept_one(log)
        return Stores(
            log=log,
            log_path=log_path,
            projection=_projection_of_copy(config, log, stack),
            blobs=BlobStore(directory / "blobs"),
            tokens=_tokens_of_copy(directory),
            writing=None,
        )


def _projection_of_copy(config: Config, log: LogReader, stack: ExitStack) -> Path:
    """The projection in --projection-dir, made or caught up; without one in a folder that goes with us."""
    if config.projection_dir is None:
        directory = Path(stack.enter_context(TemporaryDirectory(prefix="imageledger-")))
    else:
        directory = config.projection_dir
        directory.mkdir(parents=True, exist_ok=True)
        since = format_time(time.time_ns())
        command = "imageledger serve --read-only"
        stack.enter_context(DirectoryLock(directory, command=command, since=since))
    return open_live(ProjectionFiles(directory), log, encode=image_frame, on_progress=_progress)


def _tokens_of_copy(directory: Path) -> Tokens:
    """The tokens of the log's server, if its key came along; else those of this process alone."""
    if (directory / KEY_FILE).exists():
        return _tokens(directory)
    return Tokens(token_bytes(32), revoked_path=directory / REVOKED_FILE, clock=time.time_ns)


@contextmanager
def refusing(directory: Path) -> Iterator[None]:
    """Turn what the disk does not let us do at start into StartRefused."""
    try:
        yield
    except OSError as error:
        raise _refused(Path(error.filename or directory), error.errno, error.strerror or str(error)) from None
    except BlobStoreFailed as error:
        raise _refused(directory / "blobs", error.errno, error.reason) from None
    except (AppendFailed, OutcomeUnknown) as error:
        raise _refused(directory, errno.ENOSPC if error.full else None, error.reason) from None
    except database.Error as error:
        full = database.is_full(error)
        raise _refused(directory, errno.ENOSPC if full else None, str(error)) from None


def _refused(path: Path, number: int | None, why: str) -> StartRefused:
    if number in FULL:
        return StartRefused(
            "RESOURCE_EXHAUSTED", f"{path}: {why}; free some space on its disk, and start again"
        )
    if number in READ_ONLY:
        return StartRefused(
            "PERMISSION_DENIED", f"cannot use {path}: {why}; check --data and its permissions"
        )
    return StartRefused("UNAVAILABLE", f"cannot use {path}: {why}; check --data, and look at its disk")


def _check_room(directory: Path) -> None:
    """Raises StartRefused where the first pages of the files would not fit: half of them would be left."""
    usage = shutil.disk_usage(next(path for path in (directory, *directory.parents) if path.exists()))
    if usage.total and usage.free < START_BYTES:
        free = f"only {usage.free} bytes are free, and a start needs {START_BYTES}"
        raise _refused(directory, errno.ENOSPC, free)


def _make(directory: Path) -> None:
    """The data directory, and each folder above it that was missing, named durably. Raises OSError.

    What is synced in a folder is lost with it where a power cut undoes its name in the folder above.
    """
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    directory.mkdir(mode=0o750, parents=True, exist_ok=True)
    for made in missing:
        database.fsync_directory(made.parent)
    if not missing:
        # An earlier start may have been killed before these lines; a folder that is not ours need not let us.
        with suppress(PermissionError):
            database.fsync_directory(directory.parent)


def _check_writable(directory: Path) -> None:
    """Raises OSError. Asked, not tried: a refused start writes nothing."""
    denied = 0
    if os.statvfs(directory).f_flag & os.ST_RDONLY:
        denied = errno.EROFS
    elif not os.access(directory, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        denied = errno.EACCES
    if denied:
        raise OSError(denied, os.strerror(denied), str(directory))


def _look(config: Config, log_path: Path) -> None:
    """Refuse what a look at the log shows, before anything is locked, made or written.

    Opening a log for writing makes a WAL database of it, whoever's it is.
    Raises StartRefused, EventStoreError, PromiseBroken, RollbackRefused.
    """
    if not log_path.exists():
        return
    if not log_path.is_file():
        raise NotALog(log_path, "it is not a file")
    wal = log_path.with_name(log_path.name + "-wal")
    had_wal = wal.exists()
    try:
        if _is_log(log_path):
            with LogReader.open(log_path) as log:
                check_promises(config, log if log.head() else None)
                _clock_accepted(log, accept=config.accept_clock)
    except Exception:
        # Only a log that was closed well has no such file, and a reader leaves an empty one behind. SQLite
        # removes it with the last connection that could write.
        if not had_wal and wal.exists():
            # What is wrong with the file was said before, and better.
            with suppress(*database.READ_ERRORS):
                database.connect(log_path, access="write", synchronous="FULL").close()
        raise


def _is_log(log_path: Path) -> bool:
    """Whether the log is there; False for what a crash left of its creation. Raises EventStoreError."""
    try:
        with closing(database.connect(log_path, access="read", synchronous="FULL")) as connection:
            return schema.check_format(connection, log_path)
    except database.Error as error:
        # A larger file is not what we made in that transaction, so it is not for us to undo it.
        if database.is_unfinished(error, log_path) and log_path.stat().st_size <= PAGE_BYTES:
            return False
        LogReader.open(log_path).close()  # It says what is wrong.
        raise


def _check_key(directory: Path) -> None:
    if (directory / KEY_FILE).exists():
        _tokens(directory)


def _tokens(directory: Path) -> Tokens:
    try:
        key = load_key(directory)
    except ValueError as error:
        raise StartRefused("DATA_LOSS", str(error)) from None
    try:
        return Tokens(key, revoked_path=directory / REVOKED_FILE, clock=time.time_ns)
    except UnicodeDecodeError:
        raise StartRefused(
            "DATA_LOSS",
            f"{directory / REVOKED_FILE} is damaged: it holds bytes that are no ASCII;"
            " restore it, or remove it together with the token key, which ends all tokens issued so far",
        ) from None


def _check_clock(log: LogReader, *, accept: bool) -> bool:
    """Whether a clock far behind the log was accepted; one that is a little behind is warned of.

    Raises StartRefused.
    """
    accepted = _clock_accepted(log, accept=accept)
    if not accepted and _clock_behind_ns(log) > 0:
        _log.warning(
            "the clock is behind the log; events are stamped with the log's time until it catches up"
        )
    return accepted


def _clock_behind_ns(log: LogReader) -> int:
    return _last_at(log) - time.time_ns()


def _clock_accepted(log: LogReader, *, accept: bool) -> bool:
    behind = _clock_behind_ns(log)
    if behind <= CLOCK_BEHIND_NS_MAX:
        return False
    if not accept:
        raise StartRefused(
            "FAILED_PRECONDITION",
            f"the clock is {behind // 1_000_000_000} s behind the log, whose time is"
            f" {format_time(_last_at(log))}; set the clock, or go on from the log's time with"
            " --accept-clock, which the log records",
        )
    return True


def _last_at(log: LogReader) -> int:
    head = log.head()
    # Nothing may be stamped at or before the closed time, so that is the log's time, too.
    return max(log.at(head) if head else 0, log.closed())


def _progress(done: int, head: int) -> None:
    if head >= PROGRESS_EVENTS_MIN:
        _log.info("the projection is being built", extra={"done": done, "events": head})
