"""When an unused blob goes, and what does not keep the others from going."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import cast

import pytest

from projections.queries import Queries
from server import reaper as module
from server.blobs import BlobStore
from server.readers import Readers
from server.reaper import Reaper
from tests.unit.server.disk_images import tiny_qcow2

GRACE_S = 0.05


class Uses:
    """What the projection says: the digests in `used`, and an error for those in `unreadable`."""

    def __init__(self) -> None:
        self.used: set[str] = set()
        self.unreadable: set[str] = set()

    def is_blob_used(self, sha256: str) -> bool:
        if sha256 in self.unreadable:
            raise RuntimeError("the row cannot be read")
        return sha256 in self.used

    def interrupt(self) -> None: ...

    def close(self) -> None: ...


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs")


def blob(store: BlobStore, salt: bytes, *, pinned: bool = False) -> str:
    with store.begin() as writer:
        writer.write(tiny_qcow2(2**20, salt=salt))
        sha256 = writer.commit().sha256
    if not pinned:
        store.release(sha256)
    return sha256


def reaping(store: BlobStore, uses: Uses, work: Callable[[Reaper], Awaitable[None]]) -> None:
    async def main() -> None:
        readers = Readers(lambda: cast("Queries", uses))
        reaper = Reaper(store, readers, grace_s=GRACE_S)
        reaper.start()
        try:
            await work(reaper)
        finally:
            async with asyncio.timeout(5):
                await reaper.stop()
            readers.close()

    asyncio.run(main())


async def gone(store: BlobStore, *digests: str) -> None:
    gives_up_at = time.monotonic() + 10
    while any(store.exists(sha256) for sha256 in digests):
        assert time.monotonic() < gives_up_at
        await asyncio.sleep(0.005)


def test_what_was_there_at_the_start_goes_unless_it_is_used(store: BlobStore) -> None:
    uses, used, unused = Uses(), blob(store, b"used"), blob(store, b"unused")
    uses.used.add(used)
    before = time.monotonic()

    async def work(reaper: Reaper) -> None:
        await gone(store, unused)

    reaping(store, uses, work)
    assert time.monotonic() - before >= GRACE_S
    assert store.digests() == [used]


def test_a_pinned_blob_goes_after_its_pin(store: BlobStore) -> None:
    async def work(reaper: Reaper) -> None:
        pinned, other = blob(store, b"pinned", pinned=True), blob(store, b"other")
        reaper.freed([pinned, other])
        await gone(store, other)
        assert store.exists(pinned)
        store.release(pinned)
        reaper.freed([pinned])
        await gone(store, pinned)

    reaping(store, Uses(), work)


def test_only_the_last_time_of_a_blob_counts(store: BlobStore) -> None:
    async def work(reaper: Reaper) -> None:
        sha256 = blob(store, b"again")
        reaper.freed([sha256])
        await asyncio.sleep(GRACE_S * 0.6)
        last = time.monotonic()
        reaper.freed([sha256])
        await gone(store, sha256)
        assert time.monotonic() - last >= GRACE_S

    reaping(store, Uses(), work)


def test_a_blob_that_nothing_is_known_of_stays_and_the_next_one_goes(
    store: BlobStore, caplog: pytest.LogCaptureFixture
) -> None:
    uses = Uses()

    async def work(reaper: Reaper) -> None:
        unknown = blob(store, b"unknown")
        uses.unreadable.add(unknown)
        reaper.freed([unknown])
        while not caplog.records:
            await asyncio.sleep(0.005)
        other = blob(store, b"other")
        reaper.freed([other])
        await gone(store, other)
        assert store.exists(unknown)

    reaping(store, uses, work)
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


def test_a_store_that_cannot_be_swept_is_told_and_swept_later(
    store: BlobStore, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "AGAIN_S", 0.05)
    orphan = blob(store, b"orphan")
    incoming = store.root / "incoming"
    incoming.rmdir()
    incoming.write_text("no folder")

    async def work(reaper: Reaper) -> None:
        while not caplog.records:
            await asyncio.sleep(0.005)
        incoming.unlink()
        incoming.mkdir()
        await gone(store, orphan)

    reaping(store, Uses(), work)
    assert "could not be swept" in caplog.text


def test_a_stop_in_the_moment_of_a_removal_ends(store: BlobStore) -> None:
    async def work(reaper: Reaper) -> None:
        sha256 = blob(store, b"last")
        reaper.freed([sha256])
        while store.exists(sha256):
            await asyncio.sleep(0)
        # The thread is done by then, and the loop has not heard of it.
        time.sleep(0.02)

    for _ in range(3):
        reaping(store, Uses(), work)
