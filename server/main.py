"""The only wiring: which part is given which, from the start to the last answered call."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import grpc

from eventstore.reader import LogReader
from projections.projector import Projector
from projections.queries import Queries
from projections.store import check, open_projector, open_queries
from server.allowlist import AllowList
from server.answers import Answers
from server.config import Config, split_address
from server.encode import image_frame
from server.handlers import Gate, Handlers
from server.health import Health, Reflection
from server.importer import Importer
from server.moments import Moments
from server.readers import Readers
from server.reaper import Reaper
from server.services.blobs import BlobService
from server.services.endpoints import ApiEndpointService
from server.services.iam import IamTokenService
from server.services.images import ImageService
from server.services.operations import OperationService
from server.services.sources import SourceService
from server.services.status import SOFTWARE, StatusService
from server.start import Stores, bind, interruptible, open_stores
from server.wire import Limits
from server.writer import SystemEvent, Writer

DRAIN_S_MAX = 30.0
QUIET_S = 0.25
QUIET_S_MAX = 5.0
STOP_GRACE_S = 1.0
BLOB_THREADS = 4

OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", 1024 * 1024),
    ("grpc.max_send_message_length", 16 * 1024 * 1024),
    ("grpc.max_metadata_size", 8 * 1024),
    ("grpc.absolute_max_metadata_size", 8 * 1024),
    ("grpc.max_concurrent_streams", 100),
    # Else gRPC counts streams that are answered and not freed yet, and refuses callers who keep to the 100.
    ("grpc.http.overload_protection", 0),
    # Go clients ping every 30 s, also without streams; the default minimum of 5 minutes sends them away.
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.keepalive_time_ms", 120_000),
    ("grpc.keepalive_timeout_ms", 20_000),
)


@dataclass(frozen=True, slots=True)
class Parts:
    """What serves calls, each part wired to the others."""

    log: LogReader
    queries: Queries
    readers: Readers
    writer: Writer
    moments: Moments
    importer: Importer
    answers: Answers
    reaper: Reaper
    threads: ThreadPoolExecutor


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
    allowlist = AllowList.parse(config.allow_source, private=config.data)
    gate = Gate(in_flight_max=config.in_flight_max)
    server = grpc.aio.server(options=OPTIONS)
    port = bind(server, config)
    with ExitStack() as stack:
        with interruptible():
            stores = open_stores(config, stack)
        told_to_stop = _stop_signals()
        handlers = Handlers(gate, stores.tokens)
        health = Health(lambda: handlers.services)
        handlers.add(health.rpcs())
        handlers.add(Reflection(lambda: handlers.services).rpcs())
        parts = _wire(config, stores, allowlist, health, stack)
        _add_services(config, stores, parts, handlers, port=port, started_at=started_at)
        server.add_generic_rpc_handlers((handlers,))
        parts.writer.start()
        if stores.clock_accepted:
            await parts.writer.note(SystemEvent("ClockAccepted", {"clock": started_at}))
        await parts.writer.note(SystemEvent("ServerStarted", {"software": SOFTWARE}))
        parts.importer.resume(parts.queries)
        parts.reaper.start()
        await server.start()
        await health.serving(True)
        host, _ = split_address(config.listen, option="--listen")
        say(f"listening on {_address(host, port)}")
        await told_to_stop.wait()
        await _drain(server, gate, health, parts)


def _wire(config: Config, stores: Stores, allowlist: AllowList, health: Health, stack: ExitStack) -> Parts:
    log = LogReader.open(stores.log_path)
    stack.callback(log.close)
    queries = open_queries(stores.projection, encode=image_frame)
    stack.callback(queries.close)
    readers = Readers(lambda: open_queries(stores.projection, encode=image_frame))
    stack.callback(readers.close)
    threads = ThreadPoolExecutor(BLOB_THREADS, thread_name_prefix="blob")
    stack.callback(threads.shutdown)
    answers = Answers()
    reaper = Reaper(stores.blobs, readers, grace_s=config.blob_grace_s)
    writer = Writer(
        stores.log,
        open_projector(stores.projection, encode=image_frame),
        clock=time.time_ns,
        # The writer's thread reopens, so it reads the log that is its own.
        open_projector=lambda: _reopen(stores.projection, stores.log),
        on_freed=reaper.freed,
        answers=answers,
        on_state=health.writing,
    )
    stack.callback(writer.close)
    importer = Importer(
        allowlist=allowlist,
        blobs=stores.blobs,
        writer=writer,
        limits=Limits(size_bytes_max=config.image_bytes_max),
        on_released=reaper.freed,
    )
    moments = Moments(log, queries, writer, clock=time.time_ns)
    return Parts(log, queries, readers, writer, moments, importer, answers, reaper, threads)


def _add_services(
    config: Config, stores: Stores, parts: Parts, handlers: Handlers, *, port: int, started_at: int
) -> None:
    queries, writer, moments, importer = parts.queries, parts.writer, parts.moments, parts.importer
    address = config.advertise or _address(_reachable(config.listen), port)
    for service in (
        ImageService(
            queries=queries,
            readers=parts.readers,
            writer=writer,
            moments=moments,
            importer=importer,
            answers=parts.answers,
            clock=time.time_ns,
        ),
        OperationService(queries=queries, moments=moments, importer=importer),
        ApiEndpointService(lambda: address),
        IamTokenService(stores.tokens),
        SourceService(
            queries=queries,
            writer=writer,
            moments=moments,
            blobs=stores.blobs,
            threads=parts.threads,
            upload_bytes_max=config.image_bytes_max,
            clock=time.time_ns,
            on_released=parts.reaper.freed,
        ),
        BlobService(queries=queries, moments=moments, blobs=stores.blobs, threads=parts.threads),
        StatusService(
            log=parts.log,
            queries=queries,
            blobs=stores.blobs,
            importer=importer,
            threads=parts.threads,
            started_at=started_at,
        ),
    ):
        handlers.add(service.rpcs())


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


def _stop_signals() -> asyncio.Event:
    """Set by SIGTERM or SIGINT from now on; a second one ends the process as it stands."""
    told = asyncio.Event()
    loop = asyncio.get_running_loop()

    def tell(number: signal.Signals) -> None:
        told.set()
        loop.remove_signal_handler(number)
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, tell, number)
    return told


async def _drain(server: grpc.aio.Server, gate: Gate, health: Health, parts: Parts) -> None:
    """Refuse what is new, answer what is in flight (for 30 s at most) and in the queue, then stop.

    `server.stop` cancels calls that wait in gRPC's own queue, so it comes when none has come in for a while:
    whoever is told UNAVAILABLE goes elsewhere, or waits before it tries again.
    """
    await health.serving(False)
    gate.close()
    give_up = time.monotonic() + DRAIN_S_MAX
    while gate.in_flight and time.monotonic() < give_up:
        await asyncio.sleep(0.01)
    # First, because whoever stops gives pins back without knowing what the log has.
    await parts.reaper.stop()
    # The writer first: an import that waits for a log which cannot be reopened would wait for ever.
    parts.importer.begin_stop()
    parts.writer.begin_stop()
    await parts.importer.stop()
    await parts.writer.stop()
    give_up = time.monotonic() + QUIET_S_MAX
    while time.monotonic() - gate.refused_at < QUIET_S and time.monotonic() < give_up:
        await asyncio.sleep(0.01)
    await server.stop(STOP_GRACE_S)
