"""Questions off the event loop: interrupted at their deadline, and never the wrong one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from grpc import StatusCode

from eventstore.log import EventLog, new_log_id
from projections.queries import Queries
from projections.store import ProjectionFiles, open_live, open_queries
from server.encode import image_frame
from server.readers import READERS, Readers
from server.status import CallRefused

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
