"""Scrubs, one at a time: from the event loop into the thread that reads, and back."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from grpc import StatusCode

from eventstore.finding import Finding
from server.blobs import BlobStore
from server.pace import Pace
from server.scrub import Checked, Listener, Part, Scrub
from server.status import CallRefused

BYTES_PER_SECOND = 64 * 1024 * 1024
STOP_S_MAX = 10.0

_log = logging.getLogger(__name__)


class Stopped(Exception):
    """A scrub that was ended before it had read everything."""


class Scrubber:
    """Used from the event loop."""

    def __init__(self, *, log_path: Path, live: Callable[[], Path], blobs: BlobStore) -> None:
        """`live` gives the projection file that is served; it is asked in the thread that reads."""
        self._log_path = log_path
        self._live = live
        self._blobs = blobs
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="scrub")
        self._scrub: asyncio.Task[Checked] | None = None
        self._ended = threading.Event()
        self._stopping = False

    def begin(self, listener: Listener, *, bytes_per_second: int = BYTES_PER_SECOND) -> asyncio.Task[Checked]:
        """A task that ends when everything was read, or with Stopped. `listener` is told in the event loop.

        Raises CallRefused while there is one already: two would only take twice as long.
        """
        if self._stopping:
            raise CallRefused(StatusCode.UNAVAILABLE, "The server is stopping", reason="STOPPING")
        if self._scrub is not None and not self._scrub.done():
            raise CallRefused(
                StatusCode.FAILED_PRECONDITION,
                "A scrub is under way already: wait until it has ended",
                reason="SCRUB_UNDER_WAY",
            )
        self._ended = threading.Event()
        scrub = Scrub(
            log_path=self._log_path,
            live=self._live,
            blobs=self._blobs,
            pace=Pace(bytes_per_second, wait=_waiting(self._ended)),
            listener=_InLoop(listener, asyncio.get_running_loop()),
        )
        self._scrub = asyncio.create_task(self._run(scrub))
        # What a scrub ends with that nobody waits for would be logged.
        self._scrub.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        return self._scrub

    def give_up(self, scrub: asyncio.Task[Checked]) -> None:
        """End a scrub that nobody waits for."""
        if scrub is self._scrub:
            self._ended.set()

    async def stop(self) -> None:
        """End what is under way; another one is refused."""
        self._stopping = True
        self._ended.set()
        if self._scrub is not None:
            await asyncio.wait((self._scrub,), timeout=STOP_S_MAX)

    def close(self) -> None:
        self._ended.set()
        self._thread.shutdown()

    async def _run(self, scrub: Scrub) -> Checked:
        def run() -> Checked:
            scrub.check_checkpoints()
            return scrub.run()

        return await asyncio.get_running_loop().run_in_executor(self._thread, run)


class _InLoop:
    """A listener's words, carried from the thread that reads into the event loop."""

    def __init__(self, listener: Listener, loop: asyncio.AbstractEventLoop) -> None:
        self._listener = listener
        self._loop = loop

    def progress(self, part: Part, done: int, total: int) -> None:
        self._loop.call_soon_threadsafe(self._listener.progress, part, done, total)

    def finding(self, part: Part, found: Finding) -> None:
        _log.error(
            "a scrub found damage",
            extra={"part": part, "kind": found.kind, "position": found.position, "reason": found.message},
        )
        self._loop.call_soon_threadsafe(self._listener.finding, part, found)


def _waiting(ended: threading.Event) -> Callable[[float], None]:
    def wait(seconds: float) -> None:
        if ended.wait(seconds):
            raise Stopped

    return wait
