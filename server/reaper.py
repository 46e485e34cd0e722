"""Unlinks blobs that nothing refers to any more, after a grace time and never before that is durable."""

from __future__ import annotations

import asyncio
import heapq
import logging
import time
from collections.abc import Collection
from contextlib import suppress

from grpc import StatusCode

from projections.queries import Queries
from server.blobs import BlobError, BlobStore
from server.readers import Readers
from server.status import CallRefused

READ_S_MAX = 60.0
AGAIN_S = 60.0

_log = logging.getLogger(__name__)


class Reaper:
    """A schedule of digests to look at. What turns out to be used, or pinned, stays."""

    def __init__(self, blobs: BlobStore, readers: Readers, *, grace_s: float) -> None:
        self._blobs = blobs
        self._readers = readers
        self._grace_s = grace_s
        # When, on the monotonic clock in seconds; of a digest only its last time counts.
        self._due: list[tuple[float, str]] = []
        self._last_due: dict[str, float] = {}
        self._changed = asyncio.Event()
        self._tasks: tuple[asyncio.Task[None], ...] = ()
        self._stopping = False

    def start(self) -> None:
        """Look at everything that is there once the grace time has passed: a crash may have left orphans."""
        self._tasks = (asyncio.create_task(self._run()), asyncio.create_task(self._begin()))

    async def stop(self) -> None:
        # Also said so, because a question that is answered in the same moment loses the cancellation.
        self._stopping = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def freed(self, digests: Collection[str]) -> None:
        """Blobs that lost a use, by an event that is durable, or a pin. Call it in the event loop."""
        due = time.monotonic() + self._grace_s
        for sha256 in digests:
            self._last_due[sha256] = due
            heapq.heappush(self._due, (due, sha256))
        if digests:
            self._changed.set()

    async def _begin(self) -> None:
        """Sweep once. While the disk does not let us, orphans stay, so it is tried again."""
        while not self._stopping:
            try:
                self.freed(await asyncio.get_running_loop().run_in_executor(None, self._sweep))
                return
            except BlobError as error:
                _log.error("the blob store could not be swept", extra={"reason": str(error)})
            await asyncio.sleep(AGAIN_S)

    async def _run(self) -> None:
        while not self._stopping:
            await self._until_due()
            due, sha256 = heapq.heappop(self._due)
            if self._last_due.get(sha256) == due:
                del self._last_due[sha256]
                await self._remove(sha256)

    def _sweep(self) -> list[str]:
        """Every blob that is there; what a crash left of arriving ones is gone."""
        self._blobs.clean_incoming()
        return self._blobs.digests()

    async def _until_due(self) -> None:
        while not self._due or self._due[0][0] > time.monotonic():
            self._changed.clear()
            wait_s = max(0.0, self._due[0][0] - time.monotonic()) if self._due else None
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._changed.wait()

    async def _remove(self, sha256: str) -> None:
        def remove(queries: Queries) -> bool:
            return self._blobs.remove_unused(sha256, lambda one: self._is_used(queries, one))

        try:
            removed = await self._readers.run(remove, deadline=time.monotonic() + READ_S_MAX)
        except (BlobError, CallRefused) as error:
            _log.warning("an unused blob stays for now", extra={"sha256": sha256, "reason": str(error)})
            self._again(sha256)
            return
        except Exception as error:
            # A row that cannot be read, say. The next blob has another one.
            _log.error("whether a blob is used is not known", extra={"sha256": sha256}, exc_info=error)
            self._again(sha256)
            return
        if removed:
            _log.info("an unused blob was removed", extra={"sha256": sha256})

    def _is_used(self, queries: Queries, sha256: str) -> bool:
        """In a reader's thread. Raises CallRefused where the answer may be of a file that nobody writes.

        That is asked after the answer: what was live then was live when it was read.
        """
        used = queries.is_blob_used(sha256)
        if not self._readers.is_live(queries):
            message = "the projection was replaced meanwhile"
            raise CallRefused(StatusCode.UNAVAILABLE, message, reason="PROJECTION_REPLACED")
        return used

    def _again(self, sha256: str) -> None:
        due = time.monotonic() + max(self._grace_s, AGAIN_S)
        self._last_due[sha256] = due
        heapq.heappush(self._due, (due, sha256))
