"""Signed checkpoints: made when somebody needs one and once in a while, kept before they are given out.

Reading and signing happen in a thread of their own; the writer only keeps what was made, between two batches.
What is signed is applied by then, hence durable, so no crash takes back what a checkpoint says.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

from grpc import StatusCode

from eventstore.checkpoint import KeptCheckpoint, sign
from eventstore.heads import checkpoint_at
from eventstore.keys import Signer
from eventstore.log import EventLog
from eventstore.merkle import TreeSize
from eventstore.reader import LogReader
from server.detached import Detached
from server.publisher import Publisher
from server.status import CallRefused

STOP_S_MAX = 10.0

_log = logging.getLogger(__name__)


class Checkpoints:
    """One is made at a time, and whoever waits meanwhile shares the next one. Used from the event loop."""

    def __init__(
        self,
        log: LogReader,
        signer: Signer | None,
        *,
        keep: Callable[[KeptCheckpoint], Awaitable[None]],
        applied: Callable[[], int],
        clock: Callable[[], int],
        interval_s: float,
    ) -> None:
        """`log` is used by the signing thread alone. Without a signer what is kept already is given out."""
        self._log = log
        self._signer = signer
        self._keep = keep
        self._applied = applied
        self._clock = clock
        self._interval_s = interval_s
        self._newest = log.newest_checkpoint()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._making = asyncio.Lock()
        self._work = Detached()
        self._publisher: Publisher | None = None
        self._periodic: asyncio.Task[None] | None = None
        self._is_failing = False

    def begin(self, publisher: Publisher | None) -> None:
        """Make one now and then again and again. Needs the log to name the key."""
        self._publisher = publisher
        self._periodic = asyncio.create_task(self._run())

    async def covering(self, position: int) -> KeptCheckpoint:
        """The newest checkpoint, if it covers a position that is applied, or else a new one of all that is.

        Raises CallRefused where nothing can be signed, and EventStoreError.
        """
        while self._newest is None or self._newest.size < position:
            await self._work.to_its_end(self._make_unless(position))
        return self._newest

    async def finish(self, log: EventLog) -> None:
        """Make and publish the last one. Needs the writer to have ended: `log` is what it wrote to."""
        if self._periodic is not None:
            self._periodic.cancel()
        # One that could not be kept any more was not given out either.
        await self._work.wait(seconds_max=STOP_S_MAX)
        await self._tried(self._make_last(log))
        if self._publisher is not None:
            await self._publisher.finish(self._newest)

    def close(self) -> None:
        self._thread.shutdown()
        self._log.close()

    async def _make_unless(self, position: int) -> None:
        async with self._making:
            if self._newest is None or self._newest.size < position:
                applied = self._applied()
                made = await self._in_thread(lambda: self._signed(self._log, applied))
                await self._keep(made)
                self._newest = made

    async def _make_last(self, log: EventLog) -> None:
        def make() -> KeptCheckpoint:
            head = log.head()
            if self._newest is not None and self._newest.size >= head:
                return self._newest
            made = self._signed(log, head)
            log.keep_checkpoint(made)
            return made

        if self._signer is not None:
            self._newest = await self._in_thread(make)

    async def _run(self) -> None:
        while True:
            await self._tried(self.covering(self._applied()))
            if self._publisher is not None:
                self._publisher.offer(self._newest)
            await asyncio.sleep(self._interval_s)

    async def _tried(self, work: Awaitable[object]) -> None:
        """Nobody waits for it: a failure is told once, until it goes well again."""
        try:
            await work
        except Exception as error:
            if not self._is_failing:
                _log.error("no checkpoint could be made", extra={"reason": str(error)})
            self._is_failing = True
        else:
            self._is_failing = False

    def _signed(self, log: LogReader, size: int) -> KeptCheckpoint:
        if self._signer is None:
            raise CallRefused(
                StatusCode.FAILED_PRECONDITION,
                "This server has no key to sign a checkpoint with, and the newest one it keeps does not cover"
                " this: ask the server that writes",
                reason="NO_SIGNING_KEY",
            )
        checkpoint = checkpoint_at(log, TreeSize(size))
        return KeptCheckpoint(checkpoint.size, checkpoint.root, sign(checkpoint, self._signer), self._clock())

    async def _in_thread(self, work: Callable[[], KeptCheckpoint]) -> KeptCheckpoint:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)
