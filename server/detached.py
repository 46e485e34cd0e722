"""Work that goes on when its caller hangs up, since nobody else would end what it has begun."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

Done = TypeVar("Done")


class Detached:
    """Tasks that are kept until they end. Used from the event loop."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self, work: Coroutine[Any, Any, Done]) -> asyncio.Task[Done]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def to_its_end(self, work: Coroutine[Any, Any, Done]) -> Done:
        """The result of the work, which a caller who hangs up does not stop."""
        task = self.start(work)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            # An error that nobody waits for any more would be logged.
            task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
            raise

    async def wait(self, *, seconds_max: float) -> bool:
        """Whether all of it has ended within the time."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds_max)
        return not self._tasks
