"""Questions off the event loop: interrupted at their deadline, and never the wrong one."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from grpc import StatusCode

from eventstore.event import Event, Position, Version
from eventstore.log import EventLog, new_log_id
from projections.queries import Queries
from projections.store import ProjectionFiles, build, open_live, open_queries
from server.blobs import BlobStore
from server.encode import image_frame
from server.readers import READERS, Readers
from server.reaper import Reaper
from server.status import CallRefused
from tests.unit.projections.builders import event
from tests.unit.server.disk_images import tiny_qcow2

ENDLESS = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n"


@pytest.fixture
def readers(tmp_path: Path) -> Iterator[Readers]:
    log = EventLog.open(tmp_path / "log.db")
    log.create_if_empty(log_id=new_log_id(bytes(16)), at=1)
    projection = open_live(ProjectionFiles(tmp_path), log, encode=image_frame)
    made = Readers(lambda: open_queries(projection, encode=image_frame))
    yield made
    made.close()
    log.close()


def endless(queries: Queries) -> object:
    return queries._connection.execute(ENDLESS).fetchone()


def head(queries: Queries) -> int:
    return queries.applied()[1]


async def refusal_of(readers: Readers, seconds: float) -> StatusCode:
    with pytest.raises(CallRefused) as refusal:
        await readers.run(endless, deadline=time.monotonic() + seconds)
    return refusal.value.code


def test_a_question_ends_at_its_deadline_and_frees_its_thread(readers: Readers) -> None:
    async def ask() -> tuple[list[StatusCode], int]:
        told = await asyncio.gather(*(refusal_of(readers, 0.05) for _ in range(READERS)))
        return told, await readers.run(head, deadline=time.monotonic() + 5)

    assert asyncio.run(ask()) == ([StatusCode.DEADLINE_EXCEEDED] * READERS, 1)


def test_a_question_that_still_waits_for_a_thread_is_never_asked(readers: Readers) -> None:
    async def ask() -> list[StatusCode]:
        return await asyncio.gather(*(refusal_of(readers, 0.05) for _ in range(READERS * 4)))

    began = time.monotonic()

    assert asyncio.run(ask()) == [StatusCode.DEADLINE_EXCEEDED] * READERS * 4
    assert time.monotonic() - began < 2


def test_giving_up_never_meets_the_next_question(readers: Readers) -> None:
    async def ask() -> list[int]:
        async def one(number: int) -> int:
            if number % 2:
                await refusal_of(readers, 0.001)
            return await readers.run(head, deadline=time.monotonic() + 30)

        return await asyncio.gather(*(one(number) for number in range(200)))

    assert asyncio.run(ask()) == [1] * 200


# Moving to another file.


class Files:
    """Two projections of one log, the second one ahead; the live one is chosen by a test."""

    def __init__(self, directory: Path) -> None:
        self.log = EventLog.open(directory / "log.db")
        self.log.create_if_empty(log_id=new_log_id(bytes(16)), at=1)
        files = ProjectionFiles(directory)
        self.before = build(files, self.log, encode=image_frame)
        self.log.append([started_event(2)], expected_head=Position(1))
        self.after = build(files, self.log, encode=image_frame)
        self.live = self.before
        self.closed: list[Path] = []
        self.readers = Readers(self.open_queries)

    def open_queries(self) -> Queries:
        path, queries = self.live, open_queries(self.live, encode=image_frame)
        close = queries.close

        def told() -> None:
            self.closed.append(path)
            close()

        queries.close = told  # type: ignore[method-assign]
        return queries


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Files]:
    made = Files(tmp_path)
    yield made
    made.readers.close()
    made.log.close()


def started_event(position: int) -> Event:
    data = {"software": "imageledger"}
    said = event("ServerStarted", None, data, stream="log", position=Position(position), version=Version(2))
    return said._replace(at=2)


def test_what_is_asked_after_a_move_is_asked_of_the_new_file(files: Files) -> None:
    async def ask() -> tuple[list[int], list[int]]:
        deadline = time.monotonic() + 30
        old = [await files.readers.run(head, deadline=deadline) for _ in range(READERS + 1)]
        files.live = files.after
        files.readers.move().result(timeout=30)
        return old, [await files.readers.run(head, deadline=deadline) for _ in range(READERS + 1)]

    assert asyncio.run(ask()) == ([1] * (READERS + 1), [2] * (READERS + 1))
    assert set(files.closed) == {files.before}


def test_a_question_under_way_ends_on_the_file_that_it_began_with(files: Files) -> None:
    asking, moved = threading.Event(), threading.Event()

    def slow(queries: Queries) -> tuple[int, bool, bool]:
        was_live = files.readers.is_live(queries)
        asking.set()
        assert moved.wait(30)
        return head(queries), was_live, files.readers.is_live(queries)

    async def ask() -> tuple[tuple[int, bool, bool], int, bool]:
        deadline = time.monotonic() + 30
        slowly = asyncio.ensure_future(files.readers.run(slow, deadline=deadline))
        await asyncio.to_thread(asking.wait, 30)
        files.live = files.after
        unread = files.readers.move()
        again = files.readers.move()
        meanwhile = await files.readers.run(head, deadline=deadline)
        was_open = unread.done() or again.done() or bool(files.closed)
        moved.set()
        answer = await slowly
        await asyncio.wait_for(asyncio.wrap_future(unread), 30)
        await asyncio.wait_for(asyncio.wrap_future(again), 30)
        return answer, meanwhile, was_open

    assert asyncio.run(ask()) == ((1, True, False), 2, False)
    assert files.closed == [files.before]


def test_a_connection_that_is_opened_during_a_move_is_to_the_new_file(files: Files) -> None:
    opening, moved = threading.Event(), threading.Event()

    class Slow(Readers):
        def __init__(self) -> None:
            super().__init__(self.open_slowly)

        def open_slowly(self) -> Queries:
            queries = files.open_queries()
            opening.set()
            assert moved.wait(30)
            return queries

    async def ask() -> int:
        readers = Slow()
        answer = asyncio.ensure_future(readers.run(head, deadline=time.monotonic() + 30))
        await asyncio.to_thread(opening.wait, 30)
        files.live = files.after
        readers.move()
        moved.set()
        try:
            return await answer
        finally:
            readers.close()

    assert asyncio.run(ask()) == 2


def test_a_blob_is_not_removed_by_the_word_of_a_file_that_was_replaced(files: Files, tmp_path: Path) -> None:
    """Its use may be in the new file alone, and its pin given back since."""
    asked, moved = threading.Event(), threading.Event()
    store = BlobStore(tmp_path / "blobs")
    with store.begin() as writer:
        writer.write(tiny_qcow2(2**20))
        sha256 = writer.commit().sha256
    store.release(sha256)

    async def reap() -> bool:
        reaper = Reaper(store, files.readers, grace_s=0)
        is_blob_used = Queries.is_blob_used

        def slow(queries: Queries, one: str) -> bool:
            used = is_blob_used(queries, one)
            asked.set()
            assert moved.wait(30)
            return used

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Queries, "is_blob_used", slow)
            removing = asyncio.ensure_future(reaper._remove(sha256))
            await asyncio.to_thread(asked.wait, 30)
            files.live = files.after
            files.readers.move()
            moved.set()
            await removing
        kept = store.exists(sha256)
        await reaper._remove(sha256)
        return kept and not store.exists(sha256)

    assert asyncio.run(reap())
