"""Questions that no index bounds, off the event loop: a few threads, and a connection for each that asks."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
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


class _Connections:
    """Connections to the live file, lent to one question at a time, and those to files that were live before.

    A question goes on with the connection that it began with.
    """

    def __init__(self, open_queries: Callable[[], Queries]) -> None:
        self._open_queries = open_queries
        self._lock = threading.Lock()
        self._idle: list[Queries] = []
        self._lent: set[Queries] = set()
        self._retired: set[Queries] = set()
        self._until_closed: list[Future[None]] = []
        self._moves = 0

    @contextmanager
    def one(self) -> Iterator[Queries]:
        queries = self._borrow()
        try:
            yield queries
        finally:
            self._give_back(queries)

    def is_live(self, queries: Queries) -> bool:
        with self._lock:
            return queries in self._lent

    def move(self) -> Future[None]:
        """Lend connections to another file from now on; done when none to an earlier one is open any more."""
        with self._lock:
            self._moves += 1
            closing, self._idle = self._idle, []
            self._retired |= self._lent
            self._lent = set()
            closed: Future[None] = Future()
            closed.set_running_or_notify_cancel()  # Whoever stops waiting does not cancel it.
            self._until_closed.append(closed)
        for queries in closing:
            queries.close()
        self._tell_closed()
        return closed

    def interrupt(self) -> None:
        with self._lock:
            for queries in (*self._lent, *self._retired):
                queries.interrupt()

    def close(self) -> None:
        for queries in (*self._idle, *self._lent, *self._retired):
            queries.close()

    def _borrow(self) -> Queries:
        while True:
            with self._lock:
                if self._idle:
                    queries = self._idle.pop()
                    self._lent.add(queries)
                    return queries
                moves = self._moves
            queries = self._open_queries()
            with self._lock:
                # Opened meanwhile, so it may be of either file.
                if moves == self._moves:
                    self._lent.add(queries)
                    return queries
            queries.close()

    def _give_back(self, queries: Queries) -> None:
        with self._lock:
            if queries in self._lent:
                self._lent.discard(queries)
                self._idle.append(queries)
                return
        queries.close()
        with self._lock:
            self._retired.discard(queries)
        self._tell_closed()

    def _tell_closed(self) -> None:
        with self._lock:
            if self._retired:
                return
            told, self._until_closed = self._until_closed, []
        for closed in told:
            closed.set_result(None)


class Readers:
    """A small pool of reading threads. `open_queries` gives a connection to the live file."""

    def __init__(self, open_queries: Callable[[], Queries]) -> None:
        self._connections = _Connections(open_queries)
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

    def move(self) -> Future[None]:
        """What is asked from now on is asked of another file; done when nobody reads an earlier one."""
        return self._connections.move()

    def is_live(self, queries: Queries) -> bool:
        """Whether a question that runs now runs on the file that is live now."""
        return self._connections.is_live(queries)

    def close(self) -> None:
        self._connections.interrupt()
        self._threads.shutdown(cancel_futures=True)
        self._connections.close()

    def _ask(self, ask: Callable[[Queries], Answer], running: _Running) -> Answer:
        try:
            with self._connections.one() as queries, running.by(queries):
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
