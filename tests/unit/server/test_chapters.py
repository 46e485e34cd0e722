"""Kept histories: what is given is what encoding everything anew gives, whatever was asked before."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventstore.event import Event
from eventstore.log import EventLog
from eventstore.reader import LogReader
from projections.domain.evolve import MemoryState
from projections.domain.refusals import NotFound
from projections.history import told
from server import chapters
from server.chapters import Chapter, Chapters, Page
from server.encode_history import image_event_frame
from tests.unit.projections.builders import History, Stand, deleted, image, registered, steps, updated


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Stand]:
    made = Stand(tmp_path)
    yield made
    made.close()


def pages(kept: Chapters, log: LogReader, image_id: str, until: int) -> Iterator[Page]:
    """As the service asks for them."""
    previous: Chapter | None = None
    page = kept.first_page(log, image_id, until=until)
    while page is None or not page.is_last:
        if page is not None:
            yield page
            previous = page.chapter
        page = kept.page(log, image_id, previous=previous, until=until)
    yield page


def encoded(events: list[Event]) -> bytes:
    return b"".join(map(image_event_frame, told(None, events)))


SIZES = st.tuples(st.integers(1, 4), st.integers(1, 3), st.sampled_from([1, 300, 10**9]))


@settings(deadline=None, max_examples=50)
@given(steps(), st.lists(st.integers(0), min_size=1, max_size=12), SIZES, st.sampled_from([1, 10**4, 10**9]))
def test_a_history_is_all_of_its_events_up_to_then(
    walk: list[tuple[str, int, int]], questions: list[int], sizes: tuple[int, int, int], bytes_max: int
) -> None:
    history = History(walk)
    events = history.events
    ids = sorted({str(one.resource_id) for one in events if one.type == "ImageCreationStarted"})
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as directory:
        for name, size in zip(("CHAPTER_EVENTS", "FEW_EVENTS", "PAGE_BYTES"), sizes, strict=True):
            patch.setattr(chapters, name, size)
        path = Path(directory) / "log.db"
        with EventLog.open(path) as log:
            history.write(log)
        kept = Chapters(bytes_max=bytes_max)
        with LogReader.open(path) as log:
            for number in questions if ids else ():
                image_id = ids[number % len(ids)]
                own = [one for one in events if one.resource_id == image_id]
                at = number // len(ids) % (events[-1].position + 1)
                if at < own[0].position:
                    with pytest.raises(NotFound):
                        list(pages(kept, log, image_id, at))
                    continue
                found = list(pages(kept, log, image_id, at))
                assert b"".join(page.wire for page in found) == encoded(
                    [one for one in own if one.position <= at]
                )
                check_left(found[-1], events, image_id, at)


def check_left(page: Page, events: list[Event], image_id: str, at: int) -> None:
    """What a page says it left is the image as of then; only where more is known does it say nothing."""
    state = MemoryState()
    for event in events[:at]:
        state.apply(event)
    if page.left_at is not None:
        assert page.left == state.image(image_id)
    else:
        assert page.chapter.last > at


def test_what_comes_later_is_added(stand: Stand) -> None:
    stand.say([*image("a"), updated("a", name="x")])
    kept = Chapters()
    with LogReader.open(stand.log.path) as log:
        (before,) = pages(kept, log, "a", 4)
        stand.say([updated("a", name="y"), deleted("a")])
        (after,) = pages(kept, log, "a", 6)
        assert after.wire.startswith(before.wire)
        assert len(after.wire) > len(before.wire)
        assert (before.left_at, after.left_at, after.left) == (4, 6, None)
        # The page that was given before still says what it said.
        assert before.left is not None
        assert before.left["name"] == "x"
        assert next(pages(kept, log, "a", 4)).wire == before.wire


def test_what_is_kept_is_not_read_again(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    stand.say([*image("a"), *(updated("a", name=str(number)) for number in range(600))])
    read: list[int] = []
    events_of_resource = LogReader.events_of_resource

    def counted(self: LogReader, *arguments: str, **named: int) -> list[Event]:
        found = events_of_resource(self, *arguments, **named)  # type: ignore[arg-type]
        read.append(len(found))
        return found

    monkeypatch.setattr(LogReader, "events_of_resource", counted)
    kept = Chapters()
    with LogReader.open(stand.log.path) as log:
        whole = b"".join(page.wire for page in pages(kept, log, "a", 603))
        assert sum(read) == 602
        assert b"".join(page.wire for page in pages(kept, log, "a", 603)) == whole
        assert sum(read) == 602


@pytest.mark.parametrize("resource_id", ["s", "nobody"])
def test_only_images_have_a_history(stand: Stand, resource_id: str) -> None:
    stand.say([registered("s")])
    kept = Chapters()
    with LogReader.open(stand.log.path) as log, pytest.raises(NotFound, match=f'Image "{resource_id}"'):
        list(pages(kept, log, resource_id, 2))


def test_what_is_kept_has_a_bound(stand: Stand) -> None:
    ids = [f"i{number}" for number in range(20)]
    stand.say([event for image_id in ids for event in image(image_id)])
    kept = Chapters(bytes_max=5 * (chapters.CHAPTER_BYTES + 2000))
    with LogReader.open(stand.log.path) as log:
        for image_id in (one for one in ids for _ in range(2)):
            list(pages(kept, log, image_id, 41))
            assert kept._bytes == sum(chapter.size_bytes for chapter in kept._kept.values())
            assert kept._bytes <= 5 * (chapters.CHAPTER_BYTES + 2000)
    assert 1 < len(kept._kept) < 20
    assert next(reversed(kept._kept)) == ("i19", 0)


def test_while_another_thread_folds_the_event_loop_is_not_held_up(stand: Stand) -> None:
    stand.say(image("a"))
    kept = Chapters()
    with LogReader.open(stand.log.path) as log:
        with kept._lock:
            assert kept.first_page(log, "a", until=3) is None
        assert kept.first_page(log, "a", until=3) is not None
