"""Finding events: what is found is what reading everything and choosing by hand finds."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eventstore import database, merkle
from eventstore.errors import LogCorrupt
from eventstore.event import Event, Position, Version, encode
from eventstore.log import EventLog
from eventstore.search import EVERYTHING, LogSearch, Wanted
from tests.unit.eventstore.conftest import LOG_ID, build_event

STREAMS, RESOURCES, OPERATIONS = ("s", "t"), ("r0", "r1", None), ("o0", "o1", "o2", None)
# The second one's name is part of the first one's, and both may stand in a text.
ACTORS, TYPES = ("someone", "some"), ("Said", "Sung")


@st.composite
def logs(draw: st.DrawFn) -> list[Event]:
    """What follows a LogCreated."""
    count = draw(st.integers(0, 40))
    versions = dict.fromkeys(STREAMS, 0)
    events = []
    for position in range(2, count + 2):
        stream = draw(st.sampled_from(STREAMS))
        versions[stream] += 1
        event = build_event(
            position,
            version=versions[stream],
            stream=stream,
            resource_id=draw(st.sampled_from(RESOURCES)),
            operation_id=draw(st.sampled_from(OPERATIONS)),
            actor=draw(st.sampled_from(ACTORS)),
            type=draw(st.sampled_from(TYPES)),
            data={"actor": draw(st.sampled_from(ACTORS))},
        )
        events.append(event)
    return events


def some(values: Iterable[str | None]) -> st.SearchStrategy[str | None]:
    return st.none() | st.sampled_from([value for value in values if value] + ["nobody"])


WANTED = st.builds(
    Wanted,
    stream=some(STREAMS),
    resource_id=some(RESOURCES),
    operation_id=some(OPERATIONS),
    actor=some(ACTORS),
    type=some(TYPES),
)


@pytest.fixture
def small_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that these short logs have many."""
    monkeypatch.setattr("eventstore.search.WINDOW_EVENTS", 7)


def written(directory: str, events: Iterable[Event]) -> Path:
    path = Path(directory) / "log.db"
    with EventLog.open(path) as log:
        log.create_if_empty(log_id=LOG_ID, at=1)
        log.append([event._replace(at=2) for event in events], expected_head=Position(1))
    return path


@pytest.mark.usefixtures("small_window")
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(logs(), st.lists(st.tuples(WANTED, st.integers(0, 42), st.integers(0, 42)), max_size=12))
def test_stretches_find_what_reading_everything_finds(
    events: list[Event], questions: list[tuple[Wanted, int, int]]
) -> None:
    with tempfile.TemporaryDirectory() as directory, LogSearch.open(written(directory, events)) as log:
        everything = list(log.events())
        for wanted, after, until in questions:
            until = min(until, len(everything))
            for limit in (1, 3, 100):
                found = list(walk(log, wanted, after=after, until=until, limit=limit))
                expected = [one for one in everything if after < one.position <= until and wanted.admits(one)]
                assert found == [(one.position, encode(one), one) for one in expected]


def walk(
    log: LogSearch, wanted: Wanted, *, after: int, until: int, limit: int
) -> Iterator[tuple[int, bytes, Event | None]]:
    while after < until:
        stretch = log.stretch(wanted, after=after, until=until, limit=limit)
        assert stretch.reached > after
        assert len(stretch.records) <= limit
        yield from stretch.records
        after = stretch.reached


@pytest.mark.usefixtures("small_window")
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(logs(), st.lists(st.tuples(some(STREAMS), st.integers(0, 42), st.integers(0, 42)), max_size=12))
def test_resources_and_positions_are_those_of_the_events(
    events: list[Event], questions: list[tuple[str | None, int, int]]
) -> None:
    with tempfile.TemporaryDirectory() as directory, LogSearch.open(written(directory, events)) as log:
        everything = list(log.events())
        for stream, after, until in questions:
            until = min(until, len(everything))
            there = [
                one
                for one in everything
                if after < one.position <= until and (stream is None or one.stream == stream)
            ]
            resources: set[str] = set()
            reached = after
            while reached < until:
                found, reached = log.resources(stream=stream, after=reached, until=until)
                resources |= found
            assert resources == {one.resource_id for one in there if one.resource_id}
            if stream is not None:
                positions = [one.position for one in there]
                assert log.positions_of_stream(stream, after=after, until=until, limit=100) == positions
                assert log.positions_of_stream(stream, after=after, until=until, limit=2) == positions[:2]


def test_the_newest_of_a_resource_come_first(log_of_ten: EventLog) -> None:
    with LogSearch.open(log_of_ten.path) as log:
        found = log.newest_of_resource("r0", after=3, until=9, limit=9)
        assert [one.position for one in found] == [9, 6]
        assert [one.position for one in log.newest_of_resource("r0", after=0, until=8, limit=1)] == [6]
        assert log.newest() == 10


def test_an_envelope_of_newer_software_is_passed_on(log_of_ten: EventLog) -> None:
    body = msgpack.packb({"v": 2, "position": 11, "words": ["new"]})
    append_raw(log_of_ten, body, type="Said", resource_id="r1")
    with LogSearch.open(log_of_ten.path) as log:
        assert log.newest() == 11
        for wanted in (EVERYTHING, Wanted(resource_id="r1"), Wanted(type="Said"), Wanted(stream="s")):
            *_, last = log.stretch(wanted, after=9, until=11, limit=9).records
            assert last == (11, body, None)
        assert log.stretch(Wanted(actor="someone"), after=10, until=11, limit=9).records == []


def append_raw(log: EventLog, body: bytes, *, type: str, resource_id: str) -> None:
    """An event that this software cannot read, at position 11."""
    _, (hashes,) = merkle.extend(
        merkle.load_frontier(merkle.TreeSize(10), log.hashes), [merkle.leaf_hash(body)]
    )
    with closing(database.connect(log.path, access="write", synchronous="FULL")) as connection:
        connection.execute(
            "INSERT INTO event (position, stream, version, type, at, operation_id, resource_id, body, hashes)"
            " VALUES (11, 's', 10, ?, 110, NULL, ?, ?, ?)",
            (type, resource_id, body, hashes),
        )


def damage(path: Path, sql: str) -> None:
    with closing(database.connect(path, access="write", synchronous="FULL")) as connection:
        for trigger in ("event_update", "event_delete"):
            connection.execute(f"DROP TRIGGER {trigger}")
        connection.execute(sql)


@pytest.mark.parametrize(
    ("column", "wanted"),
    [
        ("stream = 'other', version = 1", Wanted(stream="other")),
        ("resource_id = 'other'", Wanted(resource_id="other")),
        ("operation_id = 'other'", Wanted(operation_id="other")),
        ("type = 'Other'", Wanted(type="Other")),
    ],
)
def test_a_column_that_says_something_else_is_damage(
    log_of_ten: EventLog, column: str, wanted: Wanted
) -> None:
    damage(log_of_ten.path, f"UPDATE event SET {column} WHERE position = 10")
    with LogSearch.open(log_of_ten.path) as log, pytest.raises(LogCorrupt, match="its bytes say") as raised:
        log.stretch(wanted, after=0, until=10, limit=9)
    assert raised.value.position == 10


def test_a_resource_that_an_index_alone_knows_is_damage(log_of_ten: EventLog) -> None:
    damage(log_of_ten.path, "UPDATE event SET resource_id = 'other' WHERE position = 5")
    with LogSearch.open(log_of_ten.path) as log, pytest.raises(LogCorrupt, match="its bytes say"):
        log.newest_of_resource("other", after=0, until=10, limit=9)


@pytest.mark.parametrize("position", [4, 10])
def test_a_plain_stretch_has_no_gaps(log_of_ten: EventLog, position: int) -> None:
    damage(log_of_ten.path, f"DELETE FROM event WHERE position = {position}")
    with LogSearch.open(log_of_ten.path) as log, pytest.raises(LogCorrupt, match="missing") as raised:
        log.stretch(EVERYTHING, after=2, until=10, limit=99)
    assert raised.value.position == position


def test_a_changed_body_is_never_given_out(log_of_ten: EventLog) -> None:
    damage(log_of_ten.path, "UPDATE event SET body = x'80' WHERE position = 4")
    with LogSearch.open(log_of_ten.path) as log, pytest.raises(LogCorrupt, match="leaf hash"):
        log.stretch(Wanted(resource_id="r1"), after=0, until=10, limit=9)


def test_versions_are_no_positions() -> None:
    """A stream's bounds are found by position, also where others have written between."""
    events = [build_event(p, stream="st"[p % 2], version=Version(p // 2)) for p in range(2, 12)]
    with tempfile.TemporaryDirectory() as directory, LogSearch.open(written(directory, events)) as log:
        found = log.stretch(Wanted(stream="t"), after=4, until=9, limit=99)
        assert ([one.position for one in found.records], found.reached) == ([5, 7, 9], 9)
