"""Questions that no index bounds, off the event loop: a few threads, each with its own connection."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from grpc import StatusCode

from eventstore import database
from projections.queries import Queries
from server.status import CallRefused

READERS = 2
Answer = TypeVar("Answer")


class _Running:
    """Which connection a question runs on, so that an interrupt never meets the next question there."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queries: Queries | None = None
        self._given_up = False

    @contextmanager
    def by(self, queries: Queries) -> Iterator[None]:
        with self._lock:
            if self._given_up:
                raise _given_up()
            self._queries = queries
        try:
            yield
        finally:
            with self._lock:
                self._queries = None

    def interrupt(self) -> None:
        with self._lock:
            self._given_up = True
            if self._queries is not None:
                self._queries.interrupt()


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
        running = _Running()
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
                running.interrupt()

    def close(self) -> None:
        for queries in self._opened:
            queries.interrupt()
        self._threads.shutdown(cancel_futures=True)
        for queries in self._opened:
            queries.close()

    def _ask(self, ask: Callable[[Queries], Answer], running: _Running) -> Answer:
        queries: Queries | None = getattr(self._local, "queries", None)
        if queries is None:
            queries = self._local.queries = self._open_queries()
            self._opened.append(queries)
        try:
            with running.by(queries):
                return ask(queries)
        except database.Error as error:
            if database.is_interrupted(error):
                raise _given_up() from None
            raise


def _given_up() -> CallRefused:
    return CallRefused(StatusCode.CANCELLED, "The question was given up", reason="GIVEN_UP")


def _swallow(work: asyncio.Future[Answer]) -> None:
    """Nobody waits for an interrupted question any more."""
    if not work.cancelled():
        work.exception()
