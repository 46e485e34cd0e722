"""Images from URIs: fetched in the background, one event at the end, nothing left hanging by a crash."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import TypeVar, cast

from grpc import StatusCode

from eventstore.errors import EventStoreError
from projections.domain.command import Image, Operation
from projections.domain.image import CreateImage
from projections.domain.imports import FailImport, FinishImport, on_behalf
from projections.domain.operation import CancelOperation
from projections.queries import Queries
from projections.rows import OperationView
from server.allowlist import AllowList, Location, SourceNotAllowed, UriMalformed
from server.blobs import Blob, BlobError, BlobStore, BlobStoreFailed, BlobStoreFull, DiskLow
from server.detached import Detached
from server.fetch import fetch
from server.formats import FormatRefused
from server.read_only import AnyWriter
from server.status import CallRefused
from server.wire import FetchFailed, FetchStopped, Limits
from server.writer import Written

IMPORTS_MAX = 4
PENDING_MAX = 256
STOP_S_MAX = 10.0
QUERY_GONE = (
    "The server was restarted, and the query of the URI, which is never stored, is gone with it:"
    " create the image again, with a fresh URI"
)
FAILED_PRECONDITION = 9
RESOURCE_EXHAUSTED = 8
SUBMIT_S_MAX = 3600.0
INTERNAL = 13
UNAVAILABLE = 14
RETRY_S = 1.0
Done = TypeVar("Done")

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Import:
    """One image that is being made from a URI. `location` has the query; nothing that is kept has it."""

    operation: Operation
    image_id: str
    folder_id: str
    location: Location
    fetched_bytes: int = 0
    total_bytes: int | None = None
    running: bool = False
    stop_reason: str | None = field(default=None)


class Importer:
    """At most four imports at once, and one a folder; the others wait in order. Used from the event loop."""

    def __init__(
        self,
        *,
        allowlist: AllowList,
        blobs: BlobStore,
        writer: AnyWriter,
        limits: Limits,
        on_released: Callable[[Collection[str]], None] = lambda digests: None,
    ) -> None:
        """`on_released` is told, in the event loop, which blobs lost their pin: one may now be an orphan."""
        self._on_released = on_released
        self._allowlist = allowlist
        self._blobs = blobs
        self._writer = writer
        self._limits = limits
        self._imports: dict[str, Import] = {}
        self._work = Detached()
        self._threads = ThreadPoolExecutor(IMPORTS_MAX, thread_name_prefix="import")
        self._stopping = False

    def admit(self, uri: str) -> Location:
        """Where the bytes are. Raises UriMalformed, SourceNotAllowed: nothing is read for those."""
        return self._allowlist.admit(uri)

    async def begin(self, command: CreateImage, location: Location, *, deadline: float) -> Written:
        """The durable operation, whose import is queued. Raises Refused, CallRefused, EventStoreError.

        A caller who hangs up meanwhile does not come between the two: nobody else would queue it.
        """

        if len(self._imports) >= PENDING_MAX:
            raise CallRefused(
                StatusCode.RESOURCE_EXHAUSTED,
                f"The limit on imports under way has exceeded: {PENDING_MAX}",
                reason="TOO_MANY_IMPORTS",
            )

        async def run() -> Written:
            written = await self._writer.submit(command, deadline=deadline)
            if not written.view.operation["done"]:
                self._add(written.view, location)
            return written

        return await self._work.to_its_end(run())

    async def cancel(self, command: CancelOperation, *, deadline: float) -> Written:
        """The operation, which has ended, durably; its import stops. Raises as `begin` does.

        A caller who hangs up meanwhile does not come between the two, either.
        """

        async def run() -> Written:
            written = await self._writer.submit(command, deadline=deadline)
            self._stop(written.view.operation["id"])
            return written

        return await self._work.to_its_end(run())

    def _add(self, view: OperationView, location: Location) -> None:
        """Queue the import of a durable operation; a second time for the same one does nothing."""
        operation, image = view.operation, cast("Image", view.result)
        if operation["id"] in self._imports or self._stopping:
            return
        self._imports[operation["id"]] = Import(operation, image["id"], image["folder_id"], location)
        self._start_next()

    def resume(self, queries: Queries) -> None:
        """Begin again what a crash or a stop has left unfinished, at byte 0."""
        for operation, image in queries.unfinished():
            uri = image["source"].get("uri", "")
            try:
                location = self._allowlist.admit(uri)
            except (UriMalformed, SourceNotAllowed) as error:
                self._not_resumed(operation, str(error))
                continue
            if image["uri_had_query"]:
                self._not_resumed(operation, QUERY_GONE)
            else:
                self._add(OperationView(operation, image), location)

    def _not_resumed(self, operation: Operation, message: str) -> None:
        self._work.start(self._fail(operation, FAILED_PRECONDITION, message, "IMPORT_NOT_RESUMED"))

    def _stop(self, operation_id: str) -> None:
        """Stop fetching for an operation that has ended."""
        entry = self._imports.get(operation_id)
        if entry is None:
            return
        entry.stop_reason = "the operation was cancelled"
        if not entry.running:
            del self._imports[operation_id]

    def progress(self, operation_id: str) -> str:
        """`bytes/total` of a running operation; the total is `?` while the source has not said it."""
        entry = self._imports.get(operation_id)
        if entry is None:
            return "0/?"
        total = "?" if entry.total_bytes is None else str(entry.total_bytes)
        return f"{entry.fetched_bytes}/{total}"

    def under_way(self) -> list[Import]:
        return list(self._imports.values())

    def begin_stop(self) -> None:
        """Stop fetching. What is unfinished begins again at the next start."""
        self._stopping = True
        for entry in self._imports.values():
            entry.stop_reason = "the server stops"

    async def stop(self) -> None:
        """Wait for what is being stopped; a source that never returns is left behind."""
        self.begin_stop()
        ended = await self._work.wait(seconds_max=STOP_S_MAX)
        self._threads.shutdown(wait=ended, cancel_futures=True)

    def _start_next(self) -> None:
        running = [entry for entry in self._imports.values() if entry.running]
        folders = {entry.folder_id for entry in running}
        for entry in self._imports.values():
            if len(folders) >= IMPORTS_MAX or self._stopping:
                return
            if not entry.running and entry.folder_id not in folders:
                entry.running = True
                folders.add(entry.folder_id)
                self._work.start(self._run(entry))

    async def _run(self, entry: Import) -> None:
        loop = asyncio.get_running_loop()
        try:
            blob = await loop.run_in_executor(self._threads, self._store, entry)
        except FetchStopped:
            pass
        except (FetchFailed, FormatRefused, SourceNotAllowed) as error:
            await self._fail(entry.operation, FAILED_PRECONDITION, str(error), "IMPORT_FAILED")
        except (BlobStoreFull, DiskLow) as error:
            await self._fail(entry.operation, RESOURCE_EXHAUSTED, str(error), "DISK_FULL")
        except BlobStoreFailed as error:
            await self._fail(entry.operation, UNAVAILABLE, str(error), "BLOB_STORE_UNAVAILABLE")
        except BlobError as error:
            await self._fail(entry.operation, FAILED_PRECONDITION, str(error), "BLOB_STORE_FAILED")
        except Exception as error:
            _log.error(
                "an import failed for a reason of ours",
                extra={"operation_id": entry.operation["id"]},
                exc_info=error,
            )
            await self._fail(entry.operation, INTERNAL, "Internal error", "INTERNAL")
        else:
            await self._finish(entry, blob)
        finally:
            self._imports.pop(entry.operation["id"], None)
            self._start_next()

    def _store(self, entry: Import) -> Blob:
        """In a thread: the bytes, fetched, inspected and stored, durable and pinned."""

        def told_total(total: int | None) -> None:
            entry.total_bytes = total

        pieces = fetch(
            entry.location,
            self._allowlist,
            limits=self._limits,
            stop=lambda: entry.stop_reason,
            on_total=told_total,
        )
        with closing(pieces) as chunks, self._blobs.begin() as writer:
            for chunk in chunks:
                writer.write(chunk)
                entry.fetched_bytes += len(chunk)
            if entry.stop_reason is not None:
                raise FetchStopped(entry.stop_reason)
            return writer.commit()

    async def _finish(self, entry: Import, blob: Blob) -> None:
        command = FinishImport(
            asked=on_behalf(entry.operation),
            size=blob.size,
            storage_size=blob.storage_size,
            sha256=blob.sha256,
            format=blob.format,
        )
        if await self._submit(command):
            self._blobs.release(blob.sha256)
            # Nothing refers to it if the operation was cancelled, or the image needs a larger disk.
            self._on_released([blob.sha256])

    async def _fail(self, operation: Operation, code: int, message: str, reason: str) -> None:
        await self._submit(
            FailImport(asked=on_behalf(operation), code=code, message=message, reason=reason, metadata={})
        )

    async def _submit(self, command: FinishImport | FailImport) -> bool:
        """Whether the ending is written. What the log cannot take now is tried again, until the server stops.

        If False, nobody knows what became of it before the next start, so the blob keeps its pin.
        """
        operation_id = command.asked.operation_id
        while True:
            try:
                await self._writer.submit(command, deadline=time.monotonic() + SUBMIT_S_MAX)
                return True
            except (CallRefused, EventStoreError) as error:
                if self._stopping:
                    return False
                _log.warning(
                    "the ending of an import is not written yet",
                    extra={"operation_id": operation_id, "reason": str(error)},
                )
                await asyncio.sleep(RETRY_S)
            except Exception as error:
                _log.error(
                    "the ending of an import cannot be written",
                    extra={"operation_id": operation_id},
                    exc_info=error,
                )
                return False
