"""Checkpoints on their way out of here: into a folder that a log cannot take them back from."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from eventstore.checkpoint import KeptCheckpoint
from eventstore.errors import PublishedDiffers
from eventstore.published import publish

STOP_S_MAX = 10.0

_log = logging.getLogger(__name__)


class Publisher:
    """Publishes what it is offered, one at a time; what failed is tried again when the next one is offered.

    The service goes on whatever the folder does. Used from the event loop.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._done_size = 0
        self._task: asyncio.Task[None] | None = None
        self._is_failing = False

    def offer(self, kept: KeptCheckpoint | None) -> None:
        """Publish it, unless it is there. While another one is on its way, nothing: there is a next time."""
        if kept is None or kept.size <= self._done_size or (self._task is not None and not self._task.done()):
            return
        self._task = asyncio.create_task(self._publish(kept))

    async def finish(self, kept: KeptCheckpoint | None) -> None:
        """Publish the last one, after the one that is on its way; a folder that hangs is not waited for."""
        for _ in range(2):
            self.offer(kept)
            if self._task is not None:
                await asyncio.wait([self._task], timeout=STOP_S_MAX)
        if kept is not None and kept.size > self._done_size:
            _log.error("the last checkpoint was not published", extra=self._extra(kept))

    async def _publish(self, kept: KeptCheckpoint) -> None:
        try:
            await _in_daemon(lambda: publish(self._folder, kept))
        except PublishedDiffers as error:
            _log.error("a published checkpoint is not this log's", extra={"reason": str(error)})
        except OSError as error:
            if not self._is_failing:
                why = {"reason": error.strerror or str(error)}
                _log.error("a checkpoint could not be published", extra=self._extra(kept) | why)
            self._is_failing = True
            return
        if self._is_failing:
            _log.info("checkpoints are published again", extra=self._extra(kept))
        self._is_failing = False
        self._done_size = kept.size

    def _extra(self, kept: KeptCheckpoint) -> dict[str, object]:
        return {"folder": str(self._folder), "size": int(kept.size)}


async def _in_daemon(work: Callable[[], None]) -> None:
    """Done in a thread that keeps nobody from ending: a file system elsewhere may hang for ever."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def tell(error: Exception | None) -> None:
        if not done.done():
            done.set_result(None) if error is None else done.set_exception(error)

    def run() -> None:
        error: Exception | None = None
        try:
            work()
        except Exception as raised:
            error = raised
        with suppress(RuntimeError):  # The loop is closed.
            loop.call_soon_threadsafe(tell, error)

    threading.Thread(target=run, name="publisher", daemon=True).start()
    await done
