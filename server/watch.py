"""Events as they are written: one reader of the log for all watchers, and bytes made once for all."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import NamedTuple

from grpc import StatusCode

from eventstore.search import EVERYTHING, LogSearch, Record
from server.encode_history import event_frame
from server.gen.imageledger.v1 import history_service_pb2 as pb
from server.status import CallRefused

# Watchers hear of a commit within 20 ms: this long is waited, and then there is something to do.
FLUSH_S = 0.018
BATCH_EVENTS = 512
BATCH_BYTES = 1024 * 1024  # Clients refuse messages over 4 MiB.
KEPT_BYTES = 8 * 1024 * 1024
BATCH_OVERHEAD_BYTES = 400  # What keeping a batch takes beside its bytes.


class Batch(NamedTuple):
    """A WatchResponse as bytes, and the position that comes next."""

    wire: bytes
    next: int


Read = Callable[[int, int], Awaitable[Batch]]  # The events from a position on, up to another one.


class Watches:
    """All watches of a server. Used from the event loop; the log is read in a thread of its own.

    A watcher has no buffer: it takes one batch after the other, at its own pace, from those that are kept for
    all. So none can make the server hold more than `kept_bytes`, and one whose next batch is gone is told so.
    """

    def __init__(
        self,
        log: LogSearch,
        *,
        applied: Callable[[], int],
        kept_bytes: int = KEPT_BYTES,
        flush_s: float = FLUSH_S,
    ) -> None:
        """`applied` is the position up to which events may be told: what is told is readable, too."""
        self._log = log
        self._applied = applied
        self._kept_bytes_max = kept_bytes
        self._flush_s = flush_s
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="watch")
        self._kept: OrderedDict[int, Batch] = OrderedDict()  # By the position of its first event.
        self._kept_bytes = 0
        self._next = 0
        self._watchers = 0
        self._waiting: list[asyncio.Future[None]] = []
        self._follower: asyncio.Task[None] | None = None
        self._failure: Exception | None = None
        self._stopping = False

    async def watch(self, position: int, *, read: Read) -> AsyncGenerator[Batch, None]:
        """Every event from a position on, for ever. `read` gives those that were there before.

        Needs 1 <= position <= applied + 1. Raises CallRefused, naming the position to go on from, for a
        watcher who is too slow and when the server stops; and whatever reading the log raises.
        """
        self._watchers += 1
        try:
            self._ensure_follower()
            is_live = False
            while True:
                batch = self._kept.get(position)
                # From then on the next batch begins where the last one ended.
                is_live = is_live or batch is not None
                if batch is None and position < self._next:
                    self._check_behind(position, is_live=is_live)
                    batch = await read(position, self._next - 1)
                if batch is None:
                    await self._wait(position)
                    continue
                yield batch
                position = batch.next
        finally:
            self._watchers -= 1

    async def stop(self) -> None:
        """Tell watchers what there is to tell, and then where to go on. Needs the writer stopped."""
        follower = self._follower
        if follower is not None and not follower.done():
            follower.cancel()
            with suppress(asyncio.CancelledError):
                await follower
            try:
                await self._publish()
            except Exception as error:
                self._failure = error
        self._stopping = True
        self._wake()

    def close(self) -> None:
        self._thread.shutdown()
        self._log.close()

    def _ensure_follower(self) -> None:
        if self._follower is None or self._follower.done():
            self._kept.clear()
            self._kept_bytes = 0
            self._failure = None
            self._next = self._applied() + 1
            self._follower = asyncio.create_task(self._follow())

    def _check_behind(self, position: int, *, is_live: bool) -> None:
        if self._stopping:
            raise _stopping(position)
        if is_live:
            raise CallRefused(
                StatusCode.RESOURCE_EXHAUSTED,
                f"This watch fell behind by more than the {self._kept_bytes_max} bytes that are kept:"
                f" go on from position {position}",
                reason="WATCH_TOO_SLOW",
            )

    async def _wait(self, position: int) -> None:
        """Until there is something new. Raises CallRefused at a stop, and what ended reading the log."""
        if self._failure is not None:
            raise self._failure
        if self._stopping:
            raise _stopping(position)
        # An asyncio.Event would do, at twice the cost.
        news: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(news)
        await news

    async def _follow(self) -> None:
        """While anybody watches. A failure is every watcher's; the next one begins anew."""
        try:
            while self._watchers:
                await asyncio.sleep(self._flush_s)
                await self._publish()
        except Exception as error:
            self._failure = error
            self._wake()

    async def _publish(self) -> None:
        applied = self._applied()
        loop = asyncio.get_running_loop()
        while self._next <= applied:
            batch = await loop.run_in_executor(self._thread, read_batch, self._log, self._next, applied)
            self._keep(batch)
            self._next = batch.next
            self._wake()

    def _keep(self, batch: Batch) -> None:
        self._kept[self._next] = batch
        self._kept_bytes += len(batch.wire) + BATCH_OVERHEAD_BYTES
        while self._kept_bytes > self._kept_bytes_max and len(self._kept) > 1:
            _, gone = self._kept.popitem(last=False)
            self._kept_bytes -= len(gone.wire) + BATCH_OVERHEAD_BYTES

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for news in waiting:
            # One that hung up has cancelled its own.
            if not news.done():
                news.set_result(None)


def read_batch(log: LogSearch, position: int, until: int) -> Batch:
    """The events from a position on, as many as a batch may have; position <= until <= head."""
    records = log.stretch(EVERYTHING, after=position - 1, until=until, limit=BATCH_EVENTS).records
    wire, count = framed(records)
    following = records[count - 1].position + 1
    return Batch(pb.WatchResponse(next_position=following).SerializeToString() + wire, following)


def framed(records: list[Record]) -> tuple[bytes, int]:
    """The framed events that one message has room for, at least one where there is one, and their number."""
    frames: list[bytes] = []
    size = 0
    for record in records:
        frame = event_frame(record)
        size += len(frame)
        if frames and size > BATCH_BYTES:
            break
        frames.append(frame)
    return b"".join(frames), len(frames)


def _stopping(position: int) -> CallRefused:
    return CallRefused(
        StatusCode.UNAVAILABLE,
        f"The server is stopping: watch again from position {position}",
        reason="STOPPING",
    )
