"""Blames: each field's event is the one that a walk through all events names, whatever was asked before."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventstore.event import Event
from eventstore.log import EventLog
from eventstore.search import LogSearch
from projections.changes import IMAGE_FIELDS
from server import blames
from server.blames import Blames
from tests.unit.projections.builders import History, Stand, created, image, started, steps, updated


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Stand]:
    made = Stand(tmp_path)
    yield made
    made.close()


def naive(events: list[Event]) -> dict[str, int]:
    """Field by field the position of the event that set it, by walking forward through all of the image's."""
    first, *others = events
    given_ = first.data["given"]
    assert isinstance(given_, list)
    found = dict.fromkeys(IMAGE_FIELDS, first.position)
    for event in others:
        if event.type == "ImageCreated":
            found |= {field: event.position for field in IMAGE_FIELDS if field not in given_}
        elif event.type == "ImageUpdated":
            mask = event.data["update_mask"]
            assert isinstance(mask, list)
            found |= {str(field): event.position for field in mask}
    return {str(field): int(position) for field, position in found.items()}


def blame(asked: Blames, log: LogSearch, image_id: str, at: int) -> dict[str, int]:
    search = asked.begin(log, image_id, at=at)
    while not search.is_done:
        asked.go_on(log, search)
    result = asked.result(search)
    for setter in result.values():
        event = log.event(setter.position)  # type: ignore[arg-type]
        assert setter == (event.position, event.at, event.actor, event.operation_id)
    return {field: setter.position for field, setter in result.items()}


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blames, "EVENTS_MIN", 1)
    monkeypatch.setattr(blames, "EVENTS_MAX", 2)


@settings(deadline=None, max_examples=50)
@given(steps(), st.lists(st.integers(0), min_size=1, max_size=12), st.integers(1, 3))
def test_a_blame_is_that_of_a_walk_through_all_events(
    walk: list[tuple[str, int, int]], questions: list[int], kept_max: int
) -> None:
    history = History(walk)
    events = history.events
    ids = sorted({str(one.resource_id) for one in events if one.type == "ImageCreationStarted"})
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "log.db"
        with EventLog.open(path) as log:
            history.write(log)
        asked = Blames(kept_max=kept_max)
        with LogSearch.open(path) as log:
            for number in questions if ids else ():
                image_id = ids[number % len(ids)]
                own = [one for one in events if one.resource_id == image_id]
                there = range(own[0].position, events[-1].position + 1)
                at = there[number // len(ids) % len(there)]
                until_then = [one for one in own if one.position <= at]
                assert blame(asked, log, image_id, at) == naive(until_then)


@pytest.mark.usefixtures("small_steps")
def test_it_reads_back_as_far_as_it_must(stand: Stand) -> None:
    stand.say([*image("a"), updated("a", labels={}), *(updated("a", name=str(n)) for n in range(9))])
    with LogSearch.open(stand.log.path) as log:
        found = blame(Blames(), log, "a", 13)
    assert (found["labels"], found["name"], found["description"]) == (4, 13, 3)


def test_what_was_given_is_the_beginnings_and_the_rest_the_ends(stand: Stand) -> None:
    stand.say([started("a", name="n", given=["folder_id", "name", "min_disk_size", "uri"]), created("a")])
    with LogSearch.open(stand.log.path) as log:
        asked = Blames()
        begun, finished = blame(asked, log, "a", 2), blame(asked, log, "a", 3)
    assert set(begun.values()) == {2}
    of_the_beginning = {field for field, position in finished.items() if position == 2}
    assert of_the_beginning == {"folder_id", "name", "min_disk_size"}
    assert set(finished.values()) == {2, 3}


def test_setting_the_same_value_is_setting_it(stand: Stand) -> None:
    stand.say([*image("a", name="n"), updated("a", name="n")])
    with LogSearch.open(stand.log.path) as log:
        assert blame(Blames(), log, "a", 4)["name"] == 4


def test_what_is_known_is_not_read_again(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    stand.say([*image("a"), *(updated("a", name=str(n)) for n in range(40))])
    read: list[int] = []
    newest_of_resource = LogSearch.newest_of_resource

    def counted(self: LogSearch, resource_id: str, *, after: int, until: int, limit: int) -> list[Event]:
        found = newest_of_resource(self, resource_id, after=after, until=until, limit=limit)
        read.append(len(found))
        return found

    monkeypatch.setattr(LogSearch, "newest_of_resource", counted)
    with LogSearch.open(stand.log.path) as log:
        asked = Blames()
        blame(asked, log, "a", 40)
        first = sum(read)
        again = blame(asked, log, "a", 43)
        assert first >= 37
        assert sum(read) - first == 3
        # Nor after a question about the past, whose answer is no news.
        blame(asked, log, "a", 20)
        before = sum(read)
        assert blame(asked, log, "a", 43) == again
    assert sum(read) == before
    assert again["name"] == 43
