"""The projection file that is served, and who reads it: they move to another one together, and never back."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from pathlib import Path

from eventstore import database
from eventstore.event import Position
from eventstore.reader import LogReader
from projections.projector import Projector, catch_up
from projections.queries import Queries
from projections.store import ProjectionFiles, check, open_projector, open_queries
from server.encode import image_frame
from server.readers import Readers


class LiveProjection:
    """The writer's thread writes and replaces it; the event loop asks `queries`, other threads `readers`."""

    def __init__(self, path: Path, log: LogReader) -> None:
        """`log` is the writer's own, and used in its thread."""
        self.path = path
        self.files = ProjectionFiles(path.parent)
        self._log = log
        self.queries = self.open_queries()
        self.readers = Readers(self.open_queries)

    def open_queries(self) -> Queries:
        return open_queries(self.path, encode=image_frame)

    def reopen(self) -> tuple[Projector, int]:
        """In the writer's thread, after a failure: a fresh projector and its applied position."""
        applied = check(self.path, self._log)
        if applied is None:
            raise AssertionError("the projection's version changed while it was served")
        return open_projector(self.path, encode=image_frame), applied

    def move_to(
        self, path: Path, head: Position, *, keep: Path | None, loop: asyncio.AbstractEventLoop
    ) -> tuple[Projector, Future[None]]:
        """In the writer's thread, between two batches: the file's projector, and all who read moved to it.

        The future is done when nobody reads the file before any more. Nothing may be written to that one from
        here on, and nothing to the new one before this returns: so no question that begins after an answer of
        the new one is answered by the old one. `keep` is a file that stays. Raises where all stays as it was.
        """
        with ExitStack() as stack:
            projector = open_projector(path, encode=image_frame)
            stack.callback(projector.close)
            applied = check(path, self._log, encode=image_frame)
            if applied is None or catch_up(projector, self._log, after=applied) != head:
                raise AssertionError(f"{path.name} does not come to position {head}")
            connection = database.connect(path, access="read", synchronous="NORMAL")
            stack.callback(connection.close)
            self.files.make_current(path, keep=keep)
            # A start opens the new one from here on; both have applied the same.
            stack.pop_all()
        self.path = path
        return projector, self._move_readers(connection, loop)

    def _move_readers(self, connection: database.Connection, loop: asyncio.AbstractEventLoop) -> Future[None]:
        moved: Future[Future[None]] = Future()

        def move() -> None:
            try:
                self.queries.move_to(connection)
            finally:
                moved.set_result(self.readers.move())

        with suppress(RuntimeError):
            loop.call_soon_threadsafe(move)
            return moved.result()
        # The loop is closed, and nobody asks any more.
        connection.close()
        return self.readers.move()
