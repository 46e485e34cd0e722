"""A scrub in its thread: whole files that contradict each other, and what happens while it reads."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from eventstore import database
from eventstore.event import Event, Value
from eventstore.finding import Finding
from projections.store import build, open_live
from server.blobs import BlobStore
from server.encode import image_frame
from server.pace import Pace
from server.scrub import Checked, Part, Scrub
from server.scrubber import Scrubber, Stopped
from server.status import CallRefused
from tests.unit.projections.builders import Stand, deleted, image, registered, removed, updated

BYTES = b"\3" * 4096


class Heard:
    """All that a listener was told."""

    def __init__(self) -> None:
        self.findings: list[tuple[Part, Finding]] = []
        self.parts: list[Part] = []

    def progress(self, part: Part, done: int, total: int) -> None:
        self.parts.append(part)

    def finding(self, part: Part, found: Finding) -> None:
        self.findings.append((part, found))

    def said(self) -> list[tuple[Part, str, int | None]]:
        return [(part, found.kind, found.position) for part, found in self.findings]


class Place:
    """A data directory without its server."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.stand = Stand(directory)
        self.blobs = BlobStore(directory / "blobs")
        with self.blobs.begin() as writer:
            writer.write(BYTES)
            self.blob = writer.commit()
        self.blobs.release(self.blob.sha256)
        said = [registered("s"), *image("a", family="web"), *image("b", name="b")]
        self.stand.say(self._with_bytes(event) for event in said)
        self.live = open_live(self.stand.files, self.stand.log, encode=image_frame)

    def _with_bytes(self, event: Event) -> Event:
        """The event, of our blob where it has one."""
        if "blob" not in event.data:
            return event
        blob: Value = {"sha256": self.blob.sha256, "format": "raw"}
        return event._replace(data={**event.data, "blob": blob, "storage_size": len(BYTES)})

    @property
    def log_path(self) -> Path:
        return self.stand.log.path

    def scrub(
        self,
        heard: Heard,
        *,
        live: Callable[[], Path] | None = None,
        wait: Callable[[float], None] | None = None,
    ) -> Checked:
        return Scrub(
            log_path=self.log_path,
            live=live or (lambda: self.live),
            blobs=self.blobs,
            pace=Pace(10**12, wait=wait or (lambda seconds: None)),
            listener=heard,
        ).run()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    (tmp_path / "data").mkdir()
    place = Place(tmp_path / "data")
    yield place
    place.stand.close()


@pytest.fixture
def heard() -> Heard:
    return Heard()


def test_a_whole_directory_has_no_findings(place: Place, heard: Heard) -> None:
    checked = place.scrub(heard)
    assert heard.findings == []
    assert (checked.position, checked.blobs, checked.blob_bytes) == (6, 1, len(BYTES))
    assert list(dict.fromkeys(heard.parts)) == [
        "LOG",
        "LOG_INDEXES",
        "PROJECTION",
        "PROJECTION_INDEXES",
        "BLOBS",
    ]


# Files that do not belong together.


def test_a_log_that_lost_its_end_is_a_truncation(place: Place, heard: Heard) -> None:
    with closing(database.connect(place.log_path, access="write", synchronous="OFF")) as connection:
        [(sql,)] = connection.execute("SELECT sql FROM sqlite_schema WHERE name = 'event_delete'")
        connection.execute("DROP TRIGGER event_delete")
        connection.execute("DELETE FROM event WHERE position > 4")
        connection.execute(sql)
    place.scrub(heard)
    assert heard.said()[0] == ("LOG", "TRUNCATION", 5)
    assert heard.findings[0][1].message == "the log ends at 4, and the projection has applied position 6"


def test_a_log_without_events_is_a_truncation(place: Place, heard: Heard) -> None:
    with closing(database.connect(place.log_path, access="write", synchronous="OFF")) as connection:
        [(sql,)] = connection.execute("SELECT sql FROM sqlite_schema WHERE name = 'event_delete'")
        connection.execute("DROP TRIGGER event_delete")
        connection.execute("DELETE FROM event")
        connection.execute(sql)
    place.scrub(heard)
    assert heard.said() == [("LOG", "TRUNCATION", None)]


def test_a_projection_of_another_log_is_told(place: Place, heard: Heard, tmp_path: Path) -> None:
    """Of its identity alone: with so much that is foreign, no row of it is worth a word."""
    other = Path(shutil.copytree(place.directory, tmp_path / "other"))
    (other / "log.db").unlink()
    with closing(Stand(other)) as stand:
        stand.log.create_if_empty(log_id="imageledger-" + "7" * 32, at=1)
        stand.say([registered("s")])
    place.scrub(Heard())
    Scrub(
        log_path=other / "log.db",
        live=lambda: place.live,
        blobs=place.blobs,
        pace=Pace(10**12, wait=lambda seconds: None),
        listener=heard,
    ).run()
    assert [one for one in heard.said() if one[0] != "BLOBS"] == [("PROJECTION", "PROJECTION", None)]
    assert "it is of log" in heard.findings[0][1].message


@pytest.mark.parametrize(
    "content", [None, b"", b"no database at all " * 400], ids=["gone", "empty", "foreign"]
)
@pytest.mark.parametrize("name", ["log.db", "projections-1.db"])
def test_a_file_that_is_none_is_told_and_the_others_are_read(
    place: Place, heard: Heard, name: str, content: bytes | None
) -> None:
    path = place.directory / name
    for ending in ("-wal", "-shm"):
        path.with_name(name + ending).unlink(missing_ok=True)
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    checked = place.scrub(heard)
    assert heard.findings
    part, found = heard.findings[0]
    assert (part, found.position) == ("LOG" if name == "log.db" else "PROJECTION", None)
    assert found.message.startswith(f"{name}: ")
    assert checked.position == 0
    assert checked.blobs == (1 if name == "log.db" else 0)


def test_so_many_findings_are_enough(place: Place, heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.scrub.FINDINGS_MAX", 10)
    place.stand.say([updated("b", description=str(number)) for number in range(20)])
    open_live(place.stand.files, place.stand.log, encode=image_frame)
    with closing(database.connect(place.live, access="write", synchronous="OFF")) as connection:
        connection.execute("UPDATE operation SET actor = 'mallory'")
    checked = place.scrub(heard)
    assert [part for part, _ in heard.findings].count("PROJECTION") == 10
    assert checked.gave_up
    assert checked.blobs == 1


# What happens while it reads.


def test_a_projection_that_is_replaced_is_read_from_its_start(place: Place, heard: Heard) -> None:
    """It goes over to the new one at the next page, and its findings are of that."""
    new = build(place.stand.files, place.stand.log, encode=image_frame)
    with closing(database.connect(new, access="write", synchronous="OFF")) as connection:
        connection.execute("UPDATE operation SET actor = 'mallory' WHERE since = 2")
    asked = iter([place.live, new])
    checked = place.scrub(heard, live=lambda: next(asked, new))
    assert {found.position for _, found in heard.findings} == {2}
    assert checked.position == 6


def test_a_projection_that_never_stays_is_given_up(place: Place, heard: Heard) -> None:
    new = build(place.stand.files, place.stand.log, encode=image_frame)
    asked = [place.live, new] * 50
    with pytest.raises(CallRefused, match="replaced 5 times"):
        place.scrub(heard, live=asked.pop)


class Freeing(BlobStore):
    """A store whose blob loses its users and its file just before it is read."""

    def __init__(self, place: Place) -> None:
        super().__init__(place.blobs.root)
        self._place = place

    def read(self, sha256: str, **options: Any) -> Iterator[bytes]:
        stand = self._place.stand
        stand.say([deleted("a"), deleted("b"), removed("s")])
        open_live(stand.files, stand.log, encode=image_frame)
        assert self.remove_unused(sha256, lambda sha256: False)
        return super().read(sha256, **options)


def test_a_blob_that_is_freed_before_it_is_read_is_no_finding(place: Place, heard: Heard) -> None:
    place.blobs = Freeing(place)
    checked = place.scrub(heard)
    assert heard.findings == []
    assert (checked.blobs, checked.blob_bytes, checked.unused_blobs) == (1, 0, 0)


def test_what_the_pace_raises_ends_it(place: Place, heard: Heard) -> None:
    def wait(seconds: float) -> None:
        if heard.parts[-1] == "PROJECTION":
            raise Stopped

    with pytest.raises(Stopped):
        place.scrub(heard, wait=wait)
    assert "BLOBS" not in heard.parts


# From the event loop.


def run_two(place: Place) -> list[str]:
    """How two scrubs end, of which the second begins while the first is under way."""

    async def run() -> list[str]:
        scrubber = Scrubber(log_path=place.log_path, live=lambda: place.live, blobs=place.blobs)
        first = scrubber.begin(Heard(), bytes_per_second=1)
        with pytest.raises(CallRefused) as refused:
            scrubber.begin(Heard())
        scrubber.give_up(first)
        ended = await asyncio.gather(first, return_exceptions=True)
        second = await scrubber.begin(Heard(), bytes_per_second=10**12)
        assert asdict(second)["position"] == 6
        third = scrubber.begin(Heard(), bytes_per_second=1)
        await scrubber.stop()
        stopped = await asyncio.gather(third, return_exceptions=True)
        with pytest.raises(CallRefused) as late:
            scrubber.begin(Heard())
        scrubber.close()
        return [*(type(end).__name__ for end in (*ended, *stopped)), refused.value.reason, late.value.reason]

    return asyncio.run(run())


def test_there_is_one_at_a_time_and_both_ways_to_end_it(place: Place) -> None:
    assert run_two(place) == ["Stopped", "Stopped", "SCRUB_UNDER_WAY", "STOPPING"]
    assert "scrub" not in {thread.name.partition("_")[0] for thread in threading.enumerate()}
