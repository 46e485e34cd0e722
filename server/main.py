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

import grpc

from eventstore.lineage import lineage
from eventstore.published import folder_of, remove_drafts
from eventstore.reader import LogReader
from eventstore.search import LogSearch
from projections.queries import Queries
from projections.store import open_projector
from server.allowlist import AllowList
from server.answers import Answers
from server.bounds import REQUEST_BYTES_MAX, Bounds
from server.checkpoints import Checkpoints
from server.config import Config, split_address
from server.connections import raise_file_limit
from server.encode import image_frame
from server.handlers import Gate, Handlers
from server.health import Health, Reflection
from server.importer import Importer
from server.live import LiveProjection
from server.logs import Logs
from server.moments import Moments
from server.proofs import Proofs
from server.publisher import Publisher
from server.read_only import AnyWriter, NoWriter
from server.readers import Readers
from server.reaper import Reaper
from server.rebuilder import Rebuilder
from server.scrubber import Scrubber
from server.services.blobs import BlobService
from server.services.endpoints import ApiEndpointService
from server.services.history import HistoryService
from server.services.iam import IamTokenService
from server.services.images import ImageService
from server.services.operations import OperationService
from server.services.proofs import ProofService
from server.services.rebuild import RebuildService
from server.services.scrub import ScrubService
from server.services.sources import SourceService
from server.services.status import SOFTWARE, StatusService
from server.start import Stores, Writing, bind, interruptible, open_copy, open_stores
from server.waiting import Waiting
from server.watch import Watches
from server.wire import Limits
from server.writer import SystemEvent, Writer

DRAIN_S_MAX = 30.0
QUIET_S = 0.25
QUIET_S_MAX = 5.0
STOP_GRACE_S = 1.0
BLOB_THREADS = 4

OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", REQUEST_BYTES_MAX),
    ("grpc.max_send_message_length", 16 * 1024 * 1024),
    ("grpc.max_metadata_size", 8 * 1024),
    ("grpc.absolute_max_metadata_size", 8 * 1024),
    ("grpc.max_concurrent_streams", 100),
    # Else gRPC counts streams that are answered and not freed yet, and refuses callers who keep to the 100.
    ("grpc.http.overload_protection", 0),
    # Else a stream may bring 4 MiB that nobody has asked for. A read asks for the rest of its message.
    ("grpc.http2.bdp_probe", 0),
    # Go clients ping every 30 s, also without streams; the default minimum of 5 minutes sends them away.
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.keepalive_time_ms", 120_000),
    ("grpc.keepalive_timeout_ms", 20_000),
)


def _bounded(bounds: Bounds, *, files_max: int) -> tuple[tuple[str, int], ...]:
    """What gRPC itself can bound: how many connections there are, and how long one may say nothing."""
    return (
        # A connection too many is closed at once; half of the files are left for databases and blobs.
        ("grpc.max_allowed_incoming_connections", min(bounds.connections_max, files_max // 2)),
        ("grpc.server_handshake_timeout_ms", round(bounds.handshake_s * 1000)),
        ("grpc.max_connection_idle_ms", round(bounds.idle_s * 1000)),
    )


@dataclass(frozen=True, slots=True)
class Parts:
    """What serves calls, each part wired to the others."""

    log: LogSearch
    queries: Queries
    readers: Readers
    logs: Logs
    watches: Watches
    writer: AnyWriter
    moments: Moments
    importer: Importer
    answers: Answers
    reaper: Reaper
    rebuilder: Rebuilder
    scrubber: Scrubber
    threads: ThreadPoolExecutor
    checkpoints: Checkpoints
    proofs: Proofs


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
    server = grpc.aio.server(options=(*OPTIONS, *_bounded(config.bounds, files_max=raise_file_limit())))
    port = bind(server, config)
    with ExitStack() as stack:
        with interruptible():
            stores = open_copy(config, stack) if config.read_only else open_stores(config, stack)
        told_to_stop = _stop_signals()
        handlers = Handlers(gate, stores.tokens, read_only=config.read_only)
        waiting = Waiting(handlers, config.bounds)
        health = Health(lambda: handlers.services)
        waiting.add(health.rpcs())
        waiting.add(Reflection(lambda: handlers.services).rpcs())
        parts = _wire(config, stores, allowlist, health, stack)
        _add_services(config, stores, parts, waiting, port=port, started_at=started_at)
        server.add_generic_rpc_handlers((waiting,))
        if stores.writing is not None:
            await _start(parts.writer, stores.writing, started_at=started_at)
            # From here on the log names the key, which may sign now.
            stores.writing.key_files.settle(stores.writing.signer)
            parts.checkpoints.begin(_publisher(config, parts.log))
            parts.importer.resume(parts.queries)
            parts.reaper.start()
        looking = asyncio.create_task(waiting.look())
        await server.start()
        await health.serving(True)
        host, _ = split_address(config.listen, option="--listen")
        say(f"listening on {_address(host, port)}")
        await told_to_stop.wait()
        await _drain(server, gate, health, stores, parts)
        looking.cancel()


async def _start(writer: AnyWriter, writing: Writing, *, started_at: int) -> None:
    """Start the writer, whose first events say so. Raises CallRefused, EventStoreError, with it stopped."""
    writer.start()
    try:
        if writing.clock_accepted:
            await writer.note(SystemEvent("ClockAccepted", {"clock": started_at}))
        await writer.note(*writing.first_events, SystemEvent("ServerStarted", {"software": SOFTWARE}))
    except BaseException:
        # It may still be trying to reopen a log that nobody else may then close.
        await writer.stop()
        raise


def _wire(config: Config, stores: Stores, allowlist: AllowList, health: Health, stack: ExitStack) -> Parts:
    log = LogSearch.open(stores.log_path)
    stack.callback(log.close)
    live = LiveProjection(stores.projection, stores.log)
    queries, readers = live.queries, live.readers
    stack.callback(queries.close)
    logs = Logs(stores.log_path)
    stack.callback(logs.close)  # After the readers, whose threads use them.
    watches = Watches(LogSearch.open(stores.log_path), applied=lambda: writer.applied)
    stack.callback(watches.close)
    stack.callback(readers.close)
    threads = ThreadPoolExecutor(BLOB_THREADS, thread_name_prefix="blob")
    stack.callback(threads.shutdown)
    answers = Answers()
    reaper = Reaper(stores.blobs, readers, grace_s=config.blob_grace_s)
    writer = _writer(stores, live, reaper, answers, health)
    stack.callback(writer.close)
    importer = Importer(
        allowlist=allowlist,
        blobs=stores.blobs,
        writer=writer,
        limits=Limits(size_bytes_max=config.image_bytes_max),
        on_released=reaper.freed,
    )
    moments = Moments(log, queries, writer, clock=time.time_ns)
    checkpoints = Checkpoints(
        LogReader.open(stores.log_path),
        None if stores.writing is None else stores.writing.signer,
        keep=writer.keep,
        applied=lambda: writer.applied,
        clock=time.time_ns,
        interval_s=config.checkpoint_interval_s,
    )
    stack.callback(checkpoints.close)
    rebuilder = Rebuilder(live, writer, log_path=stores.log_path)
    scrubber = Scrubber(log_path=stores.log_path, live=lambda: live.path, blobs=stores.blobs)
    stack.callback(scrubber.close)
    return Parts(
        log=log,
        queries=queries,
        readers=readers,
        logs=logs,
        watches=watches,
        writer=writer,
        moments=moments,
        importer=importer,
        answers=answers,
        reaper=reaper,
        rebuilder=rebuilder,
        scrubber=scrubber,
        threads=threads,
        checkpoints=checkpoints,
        proofs=Proofs(checkpoints, readers, logs),
    )


def _writer(
    stores: Stores, live: LiveProjection, reaper: Reaper, answers: Answers, health: Health
) -> AnyWriter:
    if stores.writing is None:
        return NoWriter(head=stores.log.head(), clock=time.time_ns)
    return Writer(
        stores.writing.log,
        open_projector(stores.projection, encode=image_frame),
        clock=time.time_ns,
        # The writer's thread reopens, so it reads the log that is its own.
        open_projector=live.reopen,
        on_freed=reaper.freed,
        answers=answers,
        on_state=health.writing,
    )


def _publisher(config: Config, log: LogReader) -> Publisher | None:
    """What publishes, in the folder that the log goes on in. Raises OSError."""
    directory = config.publish_checkpoints
    if directory is None:
        return None
    folder = folder_of(directory, lineage(log))
    remove_drafts(folder)
    return Publisher(folder)


def _add_services(
    config: Config, stores: Stores, parts: Parts, waiting: Waiting, *, port: int, started_at: int
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
        IamTokenService(stores.tokens, threads=parts.threads),
        SourceService(
            queries=queries,
            writer=writer,
            moments=moments,
            blobs=stores.blobs,
            threads=parts.threads,
            upload_bytes_max=config.image_bytes_max,
            bounds=config.bounds,
            clock=time.time_ns,
            on_released=parts.reaper.freed,
        ),
        BlobService(queries=queries, moments=moments, blobs=stores.blobs, threads=parts.threads),
        RebuildService(parts.rebuilder),
        ScrubService(parts.scrubber),
        HistoryService(
            log=parts.log,
            queries=queries,
            readers=parts.readers,
            logs=parts.logs,
            moments=moments,
            watches=parts.watches,
            answers=parts.answers,
            proofs=parts.proofs,
        ),
        ProofService(parts.proofs, moments, applied=lambda: queries.applied()[1]),
        StatusService(
            log=parts.log,
            queries=queries,
            blobs=stores.blobs,
            importer=importer,
            threads=parts.threads,
            started_at=started_at,
            read_only=config.read_only,
        ),
    ):
        waiting.add(service.rpcs())


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


async def _drain(server: grpc.aio.Server, gate: Gate, health: Health, stores: Stores, parts: Parts) -> None:
    """Refuse what is new, answer what is in flight (for 30 s at most) and in the queue, then stop.

    `server.stop` cancels calls that wait in gRPC's own queue, so it comes when none has come in for a while:
    whoever is told UNAVAILABLE goes elsewhere, or waits before it tries again.
    """
    await health.serving(False)
    gate.close()
    await parts.rebuilder.stop()
    await parts.scrubber.stop()
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
    if stores.writing is not None:
        await parts.checkpoints.finish(stores.writing.log)
    # Now that nothing more is written, watchers hear of the last of it.
    await parts.watches.stop()
    give_up = time.monotonic() + QUIET_S_MAX
    while time.monotonic() - gate.refused_at < QUIET_S and time.monotonic() < give_up:
        await asyncio.sleep(0.01)
    await server.stop(STOP_GRACE_S)
