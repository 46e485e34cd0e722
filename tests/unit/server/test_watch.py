"""Watches over a real log: no event twice, none left out, and nothing held for those who do not read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from grpc import StatusCode

from eventstore.errors import LogCorrupt
from eventstore.search import EVERYTHING, LogSearch
from server import watch
from server.gen.imageledger.v1 import history_service_pb2 as pb
from server.services import history
from server.status import CallRefused
from server.watch import Batch, Watches, read_batch
from tests.unit.projections.builders import Stand, image

FLUSH_S = 0.001


class Watched:
    """Watches of a log whose events count as applied up to `applied`."""

    def __init__(self, stand: Stand, **settings: Any) -> None:
        self.stand = stand
        self.applied = stand.log.head()
        self._log = LogSearch.open(stand.log.path)
        self.reads: list[int] = []
        self.watches = Watches(
            LogSearch.open(stand.log.path), applied=lambda: self.applied, flush_s=FLUSH_S, **settings
        )

    def close(self) -> None:
        self.watches.close()
        self._log.close()

    def say(self, *ids: str) -> None:
        """Two events an image."""
        for image_id in ids:
            self.stand.say(image(image_id))
        self.applied = self.stand.log.head()

    async def read(self, first: int, last: int) -> Batch:
        self.reads.append(first)
        return read_batch(self._log, first, last)

    def watch(self, position: int) -> AsyncIterator[Batch]:
        return self.watches.watch(position, read=self.read)


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    """Of a log of 5 events."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watch, "BATCH_EVENTS", 3)
        stand = Stand(tmp_path)
        stand.say([*image("a"), *image("b")])
        made = Watched(stand)
        yield made
        made.close()
        stand.close()


def positions(batch: Batch) -> list[int]:
    answer = pb.WatchResponse.FromString(batch.wire)
    assert answer.next_position == batch.next == answer.events[-1].position + 1
    return [event.position for event in answer.events]


async def until(batches: AsyncIterator[Batch], position: int) -> list[int]:
    """What comes up to and with a position."""
    found: list[int] = []
    while not found or found[-1] < position:
        found += positions(await anext(batches))
    return found


async def _collected(batches: Any, position: int) -> list[int]:
    async with aclosing(batches):
        return await until(batches, position)


def test_from_the_beginning_and_then_live(watched: Watched) -> None:
    async def run() -> None:
        async with aclosing(watched.watch(1)) as batches:
            assert await until(batches, 5) == [1, 2, 3, 4, 5]
            coming = asyncio.create_task(until(batches, 9))
            watched.say("c", "d")
            assert await coming == [6, 7, 8, 9]

    asyncio.run(run())
    # The first two are read for this watcher alone; what comes later for all.
    assert watched.reads == [1, 4]


def test_the_next_one_is_waited_for(watched: Watched) -> None:
    async def run() -> None:
        async with aclosing(watched.watch(6)) as batches:
            coming = asyncio.create_task(until(batches, 6))
            await asyncio.sleep(0)
            assert not coming.done()
            watched.say("c")
            assert (await coming)[0] == 6

    asyncio.run(run())
    assert watched.reads == []


def test_only_what_is_applied_is_told(watched: Watched) -> None:
    async def run() -> None:
        async with aclosing(watched.watch(6)) as batches:
            coming = asyncio.create_task(until(batches, 6))
            watched.stand.say(image("c"))
            for _ in range(20):
                await asyncio.sleep(FLUSH_S)
            assert not coming.done()
            watched.applied = 6
            assert await coming == [6]

    asyncio.run(run())


def test_watchers_from_anywhere_beside_a_writer_get_each_event_once(watched: Watched) -> None:
    last = 5 + 2 * 40

    async def write() -> None:
        for number in range(40):
            watched.say(f"i{number}")
            await asyncio.sleep(0)

    async def late(position: int, after: int) -> list[int]:
        while watched.applied < after:
            await asyncio.sleep(0)
        return await _collected(watched.watch(position), last)

    async def run() -> list[list[int]]:
        starts = [(1, 0), (3, 0), (6, 0), (1, 30), (20, 30), (31, 30), (5, 60), (61, 60), (2, last)]
        found = [asyncio.create_task(late(*start)) for start in starts]
        await write()
        return await asyncio.gather(*found)

    found = asyncio.run(run())
    assert found == [list(range(start, last + 1)) for start in (1, 3, 6, 1, 20, 31, 5, 61, 2)]


def test_bytes_are_made_once_for_all(watched: Watched) -> None:
    async def run() -> list[bytes]:
        watchers = [watched.watch(6) for _ in range(5)]
        first = [asyncio.create_task(anext(one)) for one in watchers]
        await asyncio.sleep(0)
        watched.say("c")
        wires = [batch.wire for batch in await asyncio.gather(*first)]
        for one in watchers:
            await one.aclose()  # type: ignore[attr-defined]
        return wires

    wires = asyncio.run(run())
    assert all(wire is wires[0] for wire in wires)


@pytest.fixture
def narrow(tmp_path: Path) -> Iterator[Watched]:
    """Keeps the last two batches or so."""
    stand = Stand(tmp_path)
    stand.say([*image("a"), *image("b")])
    made = Watched(stand, kept_bytes=2500)
    yield made
    made.close()
    stand.close()


def test_a_slow_watcher_is_told_where_to_go_on_and_nothing_is_kept_for_it(narrow: Watched) -> None:
    async def run() -> CallRefused:
        slow, quick = narrow.watch(6), narrow.watch(6)
        async with aclosing(slow), aclosing(quick):
            seen = [asyncio.create_task(until(one, 7)) for one in (slow, quick)]
            await asyncio.sleep(0)
            narrow.say("c")
            assert await asyncio.gather(*seen) == [[6, 7]] * 2
            for number in range(20):
                narrow.say(f"i{number}")
                await until(quick, narrow.applied)
                assert narrow.watches._kept_bytes <= 2500
            with pytest.raises(CallRefused) as refused:
                await anext(slow)
        # It goes on from there, and misses nothing.
        assert await _collected(narrow.watch(8), 47) == list(range(8, 48))
        return refused.value

    refusal = asyncio.run(run())
    assert (refusal.code, refusal.reason) == (StatusCode.RESOURCE_EXHAUSTED, "WATCH_TOO_SLOW")
    assert "go on from position 8" in str(refusal)


def test_who_reads_the_past_is_not_too_slow(narrow: Watched) -> None:
    async def run() -> None:
        async with aclosing(narrow.watch(1)) as old, aclosing(narrow.watch(6)) as live:
            coming = asyncio.create_task(until(live, 45))
            found = positions(await anext(old))
            for number in range(20):
                narrow.say(f"i{number}")
                await asyncio.sleep(2 * FLUSH_S)
            await coming
            assert found + await until(old, 45) == list(range(1, 46))

    asyncio.run(run())


def test_at_a_stop_watchers_hear_of_the_last_event_and_then_where_to_go_on(watched: Watched) -> None:
    async def run() -> CallRefused:
        async with aclosing(watched.watch(6)) as batches:
            coming = asyncio.create_task(until(batches, 7))
            await asyncio.sleep(0)
            watched.say("c")
            await watched.watches.stop()
            assert await coming == [6, 7]
            with pytest.raises(CallRefused) as refused:
                await anext(batches)
            return refused.value

    refusal = asyncio.run(run())
    assert (refusal.code, refusal.reason) == (StatusCode.UNAVAILABLE, "STOPPING")
    assert "from position 8" in str(refusal)


def test_at_a_stop_the_past_is_not_read_to_its_end(watched: Watched) -> None:
    async def run() -> str:
        async with aclosing(watched.watch(1)) as batches:
            assert positions(await anext(batches)) == [1, 2, 3]
            await watched.watches.stop()
            with pytest.raises(CallRefused) as refused:
                await anext(batches)
            return str(refused.value)

    assert "from position 4" in asyncio.run(run())


def test_a_damaged_log_ends_every_watch_and_the_next_one_begins_anew(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> Batch:
        raise LogCorrupt(6, "bits have changed")

    async def run() -> None:
        watchers = [watched.watch(6), watched.watch(6)]
        coming = [asyncio.create_task(anext(one)) for one in watchers]
        await asyncio.sleep(0)
        with monkeypatch.context() as patch:
            patch.setattr(watch, "read_batch", broken)
            watched.say("c")
            failures = await asyncio.gather(*coming, return_exceptions=True)
        assert [type(failure) for failure in failures] == [LogCorrupt] * 2
        assert await _collected(watched.watch(6), 7) == [6, 7]

    asyncio.run(run())


def test_while_nobody_watches_nothing_is_read(watched: Watched) -> None:
    asked: list[int] = []
    applied: Callable[[], int] = watched.watches._applied

    def counted() -> int:
        asked.append(1)
        return applied()

    async def run() -> None:
        watched.watches._applied = counted
        await _collected(watched.watch(5), 5)
        follower = watched.watches._follower
        assert follower is not None
        await follower
        before = len(asked)
        watched.say("c")
        assert await _collected(watched.watch(6), 7) == [6, 7]
        assert before > 0

    asyncio.run(run())
    # What was written while nobody watched was read for the one who asked, not kept.
    assert watched.reads == [5, 6]


@pytest.mark.parametrize("size", [1, 800, 10**6])
def test_a_message_ends_before_clients_stop_reading_and_the_next_one_goes_on(
    watched: Watched, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(watch, "BATCH_BYTES", size)
    watched.say("c", "d")
    assert asyncio.run(_collected(watched.watch(1), 9)) == list(range(1, 10))
    found, after = [], 0
    with LogSearch.open(watched.stand.log.path) as log:
        while after < 9:
            wire, after = one_page(log, after)
            page = pb.ReadEventsResponse.FromString(wire)
            assert len(page.events) == 1 or len(wire) <= size
            found += [event.position for event in page.events]
    assert found == list(range(1, 10))


def one_page(log: LogSearch, after: int) -> tuple[bytes, int]:
    queries: Any = None  # Events are the log's own.
    return history._events(queries, log, EVERYTHING, after, 9)


def test_a_stop_waits_for_no_watch() -> None:
    """It would wait for half a minute, which the wire cannot tell from a slow machine."""
    rpcs = object.__new__(history.HistoryService).rpcs()
    assert [name.rpartition("/")[2] for name, rpc in rpcs.items() if rpc.stays] == ["Watch"]
