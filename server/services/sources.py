"""imageledger.v1.SourceService: uploaded disks and snapshots, from which images are created."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from concurrent.futures import Executor
from functools import partial
from typing import TypeVar, cast

from grpc import StatusCode

from eventstore.errors import OutcomeUnknown
from eventstore.event import Value
from projections.domain.source import RegisterSource, RemoveSource
from projections.pages import decode_page, encode_page, question
from projections.queries import Queries
from server import ids
from server.blobs import Blob, BlobStore, BlobWriter
from server.bounds import Bounds
from server.call import Call
from server.detached import Detached
from server.encode import SOURCE_SERVICE, operation_bytes, source_message
from server.gen.imageledger.v1 import source_service_pb2 as pb
from server.handlers import RETRY_AFTER_MS, Rpc
from server.moments import Moments
from server.read_only import AnyWriter
from server.request import fingerprint
from server.status import CallRefused
from server.validate import fields

PAGE_SIZE_DEFAULT = 100
UPLOADS_MAX = 4
BROKEN_OFF_S = 0.02
Done = TypeVar("Done")


class SourceService:
    def __init__(
        self,
        *,
        queries: Queries,
        writer: AnyWriter,
        moments: Moments,
        blobs: BlobStore,
        threads: Executor,
        upload_bytes_max: int,
        bounds: Bounds,
        clock: Callable[[], int],
        on_released: Callable[[Collection[str]], None] = lambda digests: None,
    ) -> None:
        """`on_released` is told, in the event loop, which blobs lost their pin: one may now be an orphan."""
        self._on_released = on_released
        self._work = Detached()
        self._queries = queries
        self._writer = writer
        self._moments = moments
        self._blobs = blobs
        self._threads = threads
        self._upload_bytes_max = upload_bytes_max
        self._bounds = bounds
        self._clock = clock
        self._uploads = 0

    def rpcs(self) -> dict[str, Rpc]:
        return {
            f"{SOURCE_SERVICE}/Upload": Rpc(pb.UploadSourceRequest, upload=self.upload, reads=False),
            f"{SOURCE_SERVICE}/List": Rpc(pb.ListSourcesRequest, self.list),
            f"{SOURCE_SERVICE}/Remove": Rpc(pb.RemoveSourceRequest, self.remove, reads=False),
        }

    async def upload(self, call: Call, parts: AsyncIterator[pb.UploadSourceRequest]) -> bytes:
        if self._uploads >= UPLOADS_MAX:
            raise CallRefused(
                StatusCode.RESOURCE_EXHAUSTED,
                f"The limit on uploads at once has exceeded: {UPLOADS_MAX}",
                reason="TOO_MANY_UPLOADS",
                retry_after_ms=RETRY_AFTER_MS,
            )
        self._uploads += 1
        try:
            window_s, bytes_min = self._bounds.upload_window_s, self._bounds.upload_window_bytes_min
            parts = steady(parts, window_s=window_s, window_bytes_min=bytes_min)
            header = await _header(parts)
            # What is wrong with the headers is said before the bytes are taken.
            call.asked(operation_id="", fingerprint=bytes)
            blob = await self._stored(header, parts)
        finally:
            self._uploads -= 1
        return await self._work.to_its_end(self._register(call, header, blob))

    def _release(self, blob: Blob) -> None:
        self._blobs.release(blob.sha256)
        # Nothing refers to it if the source was refused, or a repeat of an earlier one.
        self._on_released([blob.sha256])

    async def _stored(self, header: pb.SourceHeader, parts: AsyncIterator[pb.UploadSourceRequest]) -> Blob:
        writer = await self._run(self._blobs.begin, undo=BlobWriter.abort)
        try:
            async for part in parts:
                if part.WhichOneof("part") != "chunk":
                    raise _invalid("part", "Only the first message of an upload may be the header")
                size_bytes = writer.written_bytes + len(part.chunk)
                if size_bytes > self._upload_bytes_max or size_bytes > (header.size_bytes or size_bytes):
                    raise self._too_long(header)
                await self._run(partial(writer.write, part.chunk))
            _check_declared(header, writer)
            # To gRPC's reader an upload that broke off ends like one that is whole; the word that it broke
            # off cancels this call in the same moment, and must come before the bytes are kept.
            await asyncio.sleep(BROKEN_OFF_S)
            return await self._run(writer.commit, undo=self._release)
        finally:
            await self._run(writer.abort)

    def _too_long(self, header: pb.SourceHeader) -> CallRefused:
        if 0 < header.size_bytes <= self._upload_bytes_max:
            return _invalid("header.size_bytes", f"More than the declared {header.size_bytes} bytes came")
        return _invalid(
            "chunk", f"An upload has at most {self._upload_bytes_max} bytes here (--max-image-size)"
        )

    async def _run(self, step: Callable[[], Done], *, undo: Callable[[Done], None] | None = None) -> Done:
        """Run a step in a thread; a caller who hangs up is obeyed only once it has ended.

        The next step, which closes the file, would otherwise run beside it. `undo` is for what it made.
        """
        work = asyncio.get_running_loop().run_in_executor(self._threads, step)
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            await asyncio.wait((work,))
            # Asked for in any case: an error that nobody looks at would be logged.
            failed = work.exception()
            if undo is not None and failed is None:
                undo(work.result())
            raise

    async def _register(self, call: Call, header: pb.SourceHeader, blob: Blob) -> bytes:
        values = fields(header)
        kind = pb.SourceKind.Name(header.kind)
        request: dict[str, Value] = {**values, "sha256": blob.sha256, "size_bytes": blob.storage_size}
        hardware = cast("Mapping[str, Value]", values.get("hardware_generation", {}))
        if hardware.get("legacy_features") == {}:
            hardware = {}
        command = RegisterSource(
            asked=call.asked(
                operation_id=self._new_id(ids.OPERATION), fingerprint=lambda: fingerprint(request)
            ),
            source_id=self._new_id(ids.SOURCE[kind]),
            folder_id=header.folder_id,
            kind=kind,
            name=header.name,
            size=blob.size,
            storage_size=blob.storage_size,
            sha256=blob.sha256,
            format=blob.format,
            hardware_generation=hardware or None,
        )
        try:
            written = await self._writer.submit(command, deadline=call.deadline())
        except OutcomeUnknown:
            # The event may yet turn out to be durable, so the bytes stay until the next start.
            raise
        except BaseException:
            self._release(blob)
            raise
        self._release(blob)
        call.position = written.position
        # A repeat may answer for a source that was removed since: its id is still the answer.
        source, _ = self._queries.source(
            written.view.operation["resource_id"], at=written.view.operation["last"]
        )
        return source_message(source).SerializeToString()

    async def list(self, call: Call, request: pb.ListSourcesRequest) -> bytes:
        asked = question("ListSources", request.folder_id, call.text("x-as-of") or "")
        page = decode_page(request.page_token, asked) if request.page_token else None
        at = None if page is not None else await self._moments.position(call)
        limit = request.page_size or PAGE_SIZE_DEFAULT
        found, next_page, call.position = self._queries.sources(
            request.folder_id, limit=limit, page=page, at=at
        )
        return pb.ListSourcesResponse(
            sources=[source_message(source) for source in found],
            next_page_token="" if next_page is None else encode_page(next_page, asked),
        ).SerializeToString()

    async def remove(self, call: Call, request: pb.RemoveSourceRequest) -> bytes:
        command = RemoveSource(
            asked=call.asked(
                operation_id=self._new_id(ids.OPERATION), fingerprint=lambda: fingerprint(fields(request))
            ),
            source_id=request.source_id,
        )
        written = await self._writer.submit(command, deadline=call.deadline())
        call.position = written.position
        return operation_bytes(written.view)

    def _new_id(self, prefix: str) -> str:
        return ids.make(prefix, now_ns=self._clock(), random_bytes=secrets.token_bytes(ids.RANDOM_BYTES))


async def steady(
    parts: AsyncIterator[pb.UploadSourceRequest],
    *,
    window_s: float,
    window_bytes_min: int,
    clock: Callable[[], float] = time.monotonic,
) -> AsyncIterator[pb.UploadSourceRequest]:
    """The parts, while they come at their rate: one who holds a place must use it. Raises CallRefused.

    A caller has `window_s` of our waiting to spend, and `window_bytes_min` bytes earn all of it again. The
    time that our own disk takes is not the caller's.
    """
    left_s = window_s
    while True:
        since = clock()
        try:
            # Not wait_for: it loses a cancellation that comes together with the end of the parts.
            async with asyncio.timeout(left_s):
                part = await anext(parts)
        except StopAsyncIteration:
            return
        except TimeoutError:
            break
        left_s -= clock() - since
        if left_s <= 0:
            break
        left_s = min(window_s, left_s + window_s * len(part.chunk) / window_bytes_min)
        yield part
    raise CallRefused(
        StatusCode.DEADLINE_EXCEEDED,
        f"An upload must bring {window_bytes_min} bytes in {window_s:g} s, and this one is slower",
        reason="UPLOAD_SLOW",
    )


async def _header(parts: AsyncIterator[pb.UploadSourceRequest]) -> pb.SourceHeader:
    async for part in parts:
        if part.WhichOneof("part") != "header":
            break
        return part.header
    raise _invalid("header", "The first message of an upload must be the header")


def _check_declared(header: pb.SourceHeader, writer: BlobWriter) -> None:
    if header.size_bytes and writer.written_bytes != header.size_bytes:
        raise _invalid(
            "header.size_bytes",
            f"The header declares {header.size_bytes} bytes, and {writer.written_bytes} came",
        )
    if header.sha256 and writer.sha256 != header.sha256:
        raise _invalid(
            "header.sha256",
            f"The header declares SHA-256 {header.sha256}, and the bytes have {writer.sha256}",
        )


def _invalid(field: str, message: str) -> CallRefused:
    return CallRefused(StatusCode.INVALID_ARGUMENT, message, reason="UPLOAD_INVALID", field=field)
