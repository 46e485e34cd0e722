"""The only wiring: opens what a server needs, in an order in which a refusal leaves the disk as it was."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from secrets import token_bytes

import grpc

from eventstore.lock import DirectoryLock
from eventstore.log import EventLog, LogReader, new_log_id
from projections.moments import format_time
from projections.projector import Projector
from projections.store import ProjectionFiles, check, open_live, open_projector, open_queries
from server.blobs import BlobStore
from server.config import Config, split_address
from server.encode import image_frame
from server.handlers import Gate, Handlers
from server.health import Health, Reflection
from server.identity import REVOKED_FILE, Tokens, load_key
from server.moments import Moments
from server.readers import Readers
from server.services.blobs import BlobService
from server.services.endpoints import ApiEndpointService
from server.services.iam import IamTokenService
from server.services.images import ImageService
from server.services.operations import OperationService
from server.services.sources import SourceService
from server.services.status import SOFTWARE, StatusService
from server.writer import SystemEvent, Writer

CLOCK_BEHIND_NS_MAX = 5 * 60 * 1_000_000_000
DRAIN_S_MAX = 30.0
STOP_GRACE_S = 1.0
BLOB_THREADS = 4

OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", 1024 * 1024),
    ("grpc.max_send_message_length", 16 * 1024 * 1024),
    ("grpc.max_metadata_size", 8 * 1024),
    ("grpc.absolute_max_metadata_size", 8 * 1024),
    ("grpc.max_concurrent_streams", 100),
    # Go clients ping every 30 s, also without streams; the default minimum of 5 minutes sends them away.
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.keepalive_time_ms", 120_000),
    ("grpc.keepalive_timeout_ms", 20_000),
)

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


def serve(config: Config, *, say: Callable[[str], None] = print) -> None:
    """Serve until SIGTERM or SIGINT. `say` gets the line `listening on HOST:PORT` once calls are answered.

    Raises StartRefused, ConfigInvalid, EventStoreError.
    """
    config.check()
    with suppress(ImportError):
        import uvloop

        uvloop.install()
    asyncio.run(_serve(config, say))


async def _serve(config: Config, say: Callable[[str], None]) -> None:
    started_at = time.time_ns()
    gate = Gate(in_flight_max=config.in_flight_max)
    tokens: list[Tokens] = []
    handlers = Handlers(gate, lambda: tokens[0])
    health = Health(lambda: handlers.services)
    handlers.add(health.rpcs())
    handlers.add(Reflection(lambda: handlers.services).rpcs())
    server = grpc.aio.server(options=OPTIONS)
    server.add_generic_rpc_handlers((handlers,))
    port = _bind(server, config)
    with ExitStack() as stack:
        stores = _open_stores(config, stack)
        tokens.append(stores.tokens)
        writer = _add_services(config, stores, handlers, stack, port=port, started_at=started_at)
        writer.start()
        if stores.clock_accepted:
            await writer.note(SystemEvent("ClockAccepted", {"clock": started_at}))
        await writer.note(SystemEvent("ServerStarted", {"software": SOFTWARE}))
        await server.start()
        await health.serving(True)
        host, _ = split_address(config.listen, option="--listen")
        say(f"listening on {_address(host, port)}")
        await _until_told_to_stop()
        await _drain(server, gate, health, writer)


def _bind(server: grpc.aio.Server, config: Config) -> int:
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


def _open_stores(config: Config, stack: ExitStack) -> Stores:
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
    tokens = Tokens(load_key(directory), revoked_path=directory / REVOKED_FILE, clock=time.time_ns)
    return Stores(log, log_path, projection, BlobStore(directory / "blobs"), tokens, clock_accepted)


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
    print(f"projection: {done} of {head} events", file=sys.stderr)


def _add_services(
    config: Config, stores: Stores, handlers: Handlers, stack: ExitStack, *, port: int, started_at: int
) -> Writer:
    clock = time.time_ns
    log_reader = LogReader.open(stores.log_path)
    stack.callback(log_reader.close)
    queries = open_queries(stores.projection, encode=image_frame)
    stack.callback(queries.close)
    readers = Readers(lambda: open_queries(stores.projection, encode=image_frame))
    stack.callback(readers.close)
    threads = ThreadPoolExecutor(BLOB_THREADS, thread_name_prefix="blob")
    stack.callback(threads.shutdown)
    projector = open_projector(stores.projection, encode=image_frame)
    # The writer's thread reopens, so it reads the log that is its own.
    writer = Writer(
        stores.log, projector, clock=clock, open_projector=lambda: _reopen(stores.projection, stores.log)
    )
    stack.callback(writer.close)
    moments = Moments(log_reader, queries, writer, clock=clock)
    address = config.advertise or _address(_reachable(config.listen), port)
    for service in (
        ImageService(queries=queries, readers=readers, writer=writer, moments=moments, clock=clock),
        OperationService(queries=queries, writer=writer, moments=moments),
        ApiEndpointService(lambda: address),
        IamTokenService(stores.tokens),
        SourceService(
            queries=queries,
            writer=writer,
            moments=moments,
            blobs=stores.blobs,
            threads=threads,
            clock=clock,
        ),
        BlobService(queries=queries, moments=moments, blobs=stores.blobs, threads=threads),
        StatusService(
            log=log_reader, queries=queries, blobs=stores.blobs, threads=threads, started_at=started_at
        ),
    ):
        handlers.add(service.rpcs())
    return writer


def _reopen(path: Path, log: LogReader) -> tuple[Projector, int]:
    applied = check(path, log)
    if applied is None:
        raise AssertionError("the projection's version changed while it was served")
    return open_projector(path, encode=image_frame), applied


def _reachable(listen: str) -> str:
    """The host that clients on this machine can dial where the server listens on all addresses."""
    host, _ = split_address(listen, option="--listen")
    return socket.gethostname() if host in ("0.0.0.0", "::") else host


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def _until_told_to_stop() -> None:
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    await told.wait()


async def _drain(server: grpc.aio.Server, gate: Gate, health: Health, writer: Writer) -> None:
    """Refuse what is new, answer what is in flight and in the queue, then stop.

    `server.stop` alone would cancel calls that wait in gRPC's own queue.
    """
    await health.serving(False)
    gate.closed = True
    give_up = time.monotonic() + DRAIN_S_MAX
    while gate.in_flight and time.monotonic() < give_up:
        await asyncio.sleep(0.01)
    await writer.stop()
    # Calls that gRPC had accepted and not handed over yet still get their UNAVAILABLE.
    await asyncio.sleep(0.05)
    await server.stop(STOP_GRACE_S)
