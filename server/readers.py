"""Questions that no index bounds, off the event loop: a few threads, each with its own connection."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from grpc import StatusCode

from eventstore import database
from projections.queries import Queries
from server.status import CallRefused

READERS = 2
Answer = TypeVar("Answer")


class Readers:
    """A small pool of reading threads. `open_queries` is called once in each."""

    def __init__(self, open_queries: Callable[[], Queries]) -> None:
        self._open_queries = open_queries
        self._local = threading.local()
        self._opened: list[Queries] = []
        self._threads = ThreadPoolExecutor(READERS, thread_name_prefix="reader")

    async def run(self, ask: Callable[[Queries], Answer], *, deadline: float) -> Answer:
        """The answer, or DEADLINE_EXCEEDED: the query is interrupted then. `deadline`: monotonic seconds.

        A caller who hangs up interrupts it, too.
        """
        running: list[Queries] = []
        work = asyncio.get_running_loop().run_in_executor(self._threads, self._ask, ask, running)
        try:
            return await asyncio.wait_for(asyncio.shield(work), max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            raise CallRefused(
                StatusCode.DEADLINE_EXCEEDED,
                "The deadline passed while the question was being answered",
                reason="DEADLINE",
            ) from None
        finally:
            if not work.done():
                work.add_done_callback(_swallow)
                for queries in running:
                    queries.interrupt()

    def close(self) -> None:
        for queries in self._opened:
            queries.interrupt()
        self._threads.shutdown(cancel_futures=True)
        for queries in self._opened:
            queries.close()

    def _ask(self, ask: Callable[[Queries], Answer], running: list[Queries]) -> Answer:
        queries: Queries | None = getattr(self._local, "queries", None)
        if queries is None:
            queries = self._local.queries = self._open_queries()
            self._opened.append(queries)
        running.append(queries)
        try:
            return ask(queries)
        except database.Error as error:
            if database.is_interrupted(error):
                raise CallRefused(
                    StatusCode.CANCELLED, "The question was given up", reason="GIVEN_UP"
                ) from None
            raise
        finally:
            running.remove(queries)


def _swallow(work: asyncio.Future[Answer]) -> None:
    """Nobody waits for an interrupted question any more."""
    if not work.cancelled():
        work.exception()
