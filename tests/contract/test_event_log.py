"""What every engine promises: these tests know nothing of how a log is stored."""

from __future__ import annotations

import threading
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from eventstore import merkle
from eventstore.errors import EventMalformed, HeadMoved, NoSuchPosition, StampTooOld
from eventstore.event import Event, Position, Version, encode
from eventstore.log import EventLog, new_log_id

if TYPE_CHECKING:
    from .conftest import SqliteEngine

LOG_ID = new_log_id(bytes(range(16)))


def event(position: int, version: int, at: int, **fields: Any) -> Event:
    return Event(
        position=Position(position),
        stream="s",
        version=Version(version),
        type="Said",
        schema=1,
        at=at,
        operation_id=f"op{at}",
        resource_id=f"r{position % 3}",
        actor="someone",
        auth="dev",
        request_id=None,
        method=None,
        key=None,
        request=None,
        reason=None,
        data={"text": f"word {position}"},
    )._replace(**fields)


# LogCreated at 1 (stamp 10), then a batch of one (20), of three in two streams (30), of two (40).
BATCHES = [
    [event(2, 1, 20)],
    [event(3, 2, 30), event(4, 1, 30, stream="t"), event(5, 3, 30)],
    [event(6, 2, 40, stream="t"), event(7, 3, 40, stream="t")],
]
SAID = [said for batch in BATCHES for said in batch]


@pytest.fixture
def log(engine: SqliteEngine) -> EventLog:
    log = engine.writer()
    log.create_if_empty(log_id=LOG_ID, at=10)
    for batch in BATCHES:
        log.append(batch, expected_head=log.head())
    return log


def test_a_new_log_is_empty(engine: SqliteEngine) -> None:
    log = engine.writer()
    assert log.head() == 0
    assert list(log.events()) == []
    assert log.closed() == 0
    assert log.position_at(10**18) == 0
    assert log.stream_version("s") == 0
    with pytest.raises(NoSuchPosition):
        log.log_id


def test_the_first_event_names_the_log(engine: SqliteEngine) -> None:
    log = engine.writer()
    log.create_if_empty(log_id=LOG_ID, at=10)
    assert log.log_id == LOG_ID == "imageledger-000102030405060708090a0b0c0d0e0f"
    first = log.event(Position(1))
    assert (first.stream, first.version, first.type, first.schema) == ("log", 1, "LogCreated", 1)
    assert (first.at, first.actor, first.auth, first.data) == (
        10,
        "imageledger",
        "system",
        {"log_id": LOG_ID},
    )


def test_a_log_is_named_once(log: EventLog) -> None:
    log.create_if_empty(log_id="imageledger-other", at=99)
    assert log.head() == 7
    assert log.log_id == LOG_ID


def test_what_was_appended_is_read_again(log: EventLog, engine: SqliteEngine) -> None:
    for reader in (log, engine.reader()):
        assert list(reader.events())[1:] == SAID
        assert [reader.event(said.position) for said in SAID] == SAID
        assert [reader.body(said.position) for said in SAID] == [encode(said) for said in SAID]


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize(
    ("after", "until", "positions"),
    [
        pytest.param(0, None, [1, 2, 3, 4, 5, 6, 7], id="all"),
        pytest.param(3, None, [4, 5, 6, 7], id="after"),
        pytest.param(3, 5, [4, 5], id="between"),
        pytest.param(0, 100, [1, 2, 3, 4, 5, 6, 7], id="until-beyond-the-head"),
        pytest.param(7, None, [], id="after-the-head"),
        pytest.param(100, None, [], id="after-beyond-the-head"),
        pytest.param(5, 5, [], id="nothing-between"),
    ],
)
def test_ranges(log: EventLog, chunk: int, after: int, until: int | None, positions: list[int]) -> None:
    assert [said.position for said in log.events(after=after, until=until, chunk=chunk)] == positions


def test_a_reader_waits_for_more_by_asking_again(log: EventLog, engine: SqliteEngine) -> None:
    reader = engine.reader()
    assert reader.head() == 7
    log.append([event(8, 4, 50)], expected_head=Position(7))
    assert reader.head() == 8
    assert list(reader.events(after=7)) == [event(8, 4, 50)]


def test_readers_have_threads_of_their_own(log: EventLog, engine: SqliteEngine) -> None:
    seen: list[int] = []

    def follow() -> None:
        reader = engine.reader()
        while len(seen) < 107:
            seen.extend(said.position for said in reader.events(after=len(seen)))

    thread = threading.Thread(target=follow)
    thread.start()
    for position in range(8, 108):
        log.append([event(position, position - 4, position * 10)], expected_head=Position(position - 1))
    thread.join(60)
    assert seen == list(range(1, 108))


def test_events_of_an_operation(log: EventLog) -> None:
    assert log.events_of_operation("op30") == BATCHES[1]
    assert log.events_of_operation("unknown") == []


@pytest.mark.parametrize(
    ("arguments", "positions"),
    [
        pytest.param({}, [2, 5], id="all"),
        pytest.param({"after": 2}, [5], id="after"),
        pytest.param({"until": 4}, [2], id="until"),
        pytest.param({"limit": 1}, [2], id="limit"),
        pytest.param({"after": 2, "until": 4}, [], id="nothing"),
    ],
)
def test_events_of_a_resource(log: EventLog, arguments: dict[str, int], positions: list[int]) -> None:
    assert [said.position for said in log.events_of_resource("r2", **arguments)] == positions


@pytest.mark.parametrize(
    ("arguments", "positions"),
    [
        pytest.param({}, [2, 3, 5], id="all"),
        pytest.param({"after": 1}, [2, 3, 5], id="after-another-stream"),
        pytest.param({"after": 2}, [3, 5], id="after"),
        pytest.param({"after": 4}, [5], id="after-between"),
        pytest.param({"after": 5}, [], id="after-the-last"),
        pytest.param({"until": 4}, [2, 3], id="until-between"),
        pytest.param({"until": 3}, [2, 3], id="until"),
        pytest.param({"until": 1}, [], id="until-before-the-first"),
        pytest.param({"until": 100}, [2, 3, 5], id="until-beyond-the-head"),
        pytest.param({"limit": 2}, [2, 3], id="limit"),
        pytest.param({"limit": 0}, [], id="limit-zero"),
        pytest.param({"after": 2, "until": 7, "limit": 1}, [3], id="page"),
        pytest.param({"after": 3, "until": 2}, [], id="nothing-between"),
    ],
)
def test_events_of_a_stream(log: EventLog, arguments: dict[str, int], positions: list[int]) -> None:
    assert [said.position for said in log.events_of_stream("s", **arguments)] == positions


def test_an_unknown_stream_has_no_events(log: EventLog) -> None:
    assert log.events_of_stream("unknown") == []
    assert log.events_of_stream("unknown", after=3, until=7, limit=1) == []


def test_stream_versions(log: EventLog) -> None:
    assert [log.stream_version(stream) for stream in ("log", "s", "t", "unknown")] == [1, 3, 3, 0]


@pytest.mark.parametrize(
    ("at", "position"),
    [(0, 0), (9, 0), (10, 1), (19, 1), (20, 2), (29, 2), (30, 5), (39, 5), (40, 7), (10**18, 7)],
)
def test_a_time_is_the_last_position_at_or_before_it(log: EventLog, at: int, position: int) -> None:
    assert log.position_at(at) == position


def test_stamps_grow_from_batch_to_batch(log: EventLog) -> None:
    stamps = [log.at(Position(position)) for position in range(1, 8)]
    assert stamps == [10, 20, 30, 30, 30, 40, 40]
    assert all(one <= other for one, other in pairwise(stamps))


def test_hashes_are_those_of_the_merkle_tree(log: EventLog, engine: SqliteEngine) -> None:
    leaves = [merkle.leaf_hash(log.body(Position(position))) for position in range(1, 8)]
    frontier, rows = merkle.extend(merkle.EMPTY, leaves)
    reader = engine.reader()
    assert [reader.leaf(Position(position)) for position in range(1, 8)] == leaves
    assert [reader.hashes(Position(position)) for position in range(1, 8)] == rows
    assert merkle.load_frontier(merkle.TreeSize(7), reader.hashes) == frontier


@pytest.mark.parametrize("position", [-1, 0, 8, 10**18])
@pytest.mark.parametrize("method", ["event", "body", "leaf", "hashes", "at"])
def test_there_is_nothing_outside_the_log(log: EventLog, method: str, position: int) -> None:
    with pytest.raises(NoSuchPosition) as refused:
        getattr(log, method)(Position(position))
    assert (refused.value.position, refused.value.head) == (position, 7)


@pytest.mark.parametrize(
    ("batch", "expected", "error"),
    [
        pytest.param([event(7, 4, 50)], 6, HeadMoved, id="head-behind"),
        pytest.param([event(9, 4, 50)], 8, HeadMoved, id="head-ahead"),
        pytest.param([event(9, 4, 50)], 7, EventMalformed, id="position-gap"),
        pytest.param([event(7, 4, 50)], 7, EventMalformed, id="position-taken"),
        pytest.param([event(8, 4, 50), event(10, 5, 50)], 7, EventMalformed, id="gap-inside"),
        pytest.param([event(8, 4, 50), event(8, 5, 50)], 7, EventMalformed, id="position-twice"),
        pytest.param([event(8, 5, 50)], 7, EventMalformed, id="version-gap"),
        pytest.param([event(8, 3, 50)], 7, EventMalformed, id="version-taken"),
        pytest.param([event(8, 4, 50), event(9, 4, 50)], 7, EventMalformed, id="version-twice"),
        pytest.param([event(8, 2, 50, stream="new")], 7, EventMalformed, id="version-of-a-new-stream"),
        pytest.param([event(8, 4, 50), event(9, 5, 51)], 7, EventMalformed, id="two-stamps"),
        pytest.param([event(8, 4, 40)], 7, StampTooOld, id="stamp-of-the-last"),
        pytest.param([event(8, 4, 39)], 7, StampTooOld, id="stamp-before-the-last"),
        pytest.param([event(8, 4, 50), event(9, 5, 50, data={"a": None})], 7, EventMalformed, id="no-bytes"),
    ],
)
def test_a_refused_batch_leaves_nothing(
    log: EventLog, batch: list[Event], expected: int, error: type[Exception]
) -> None:
    with pytest.raises(error):
        log.append(batch, expected_head=Position(expected))
    assert list(log.events(after=1)) == SAID
    log.append([event(8, 4, 50)], expected_head=Position(7))
    assert log.head() == 8


def test_a_moved_head_tells_both(log: EventLog) -> None:
    with pytest.raises(HeadMoved) as refused:
        log.append([event(6, 4, 50)], expected_head=Position(5))
    assert (refused.value.expected, refused.value.actual) == (5, 7)


def test_appending_nothing_changes_nothing(log: EventLog) -> None:
    log.append([], expected_head=Position(7))
    assert log.head() == 7


def test_a_closed_time_bounds_every_later_stamp(log: EventLog, engine: SqliteEngine) -> None:
    log.close_time(1000)
    assert log.closed() == engine.reader().closed() == 1000
    for at in (999, 1000):
        with pytest.raises(StampTooOld) as refused:
            log.append([event(8, 4, at)], expected_head=Position(7))
        assert (refused.value.at, refused.value.last, refused.value.closed) == (at, 40, 1000)
    log.append([event(8, 4, 1001)], expected_head=Position(7))


def test_a_closed_time_only_grows(log: EventLog) -> None:
    for at, closed in ((1000, 1000), (500, 1000), (1000, 1000), (2000, 2000)):
        log.close_time(at)
        assert log.closed() == closed


def test_everything_is_there_after_a_restart(log: EventLog, engine: SqliteEngine) -> None:
    log.close_time(1000)
    log.close()
    again = engine.writer()
    assert (again.log_id, again.head(), again.closed()) == (LOG_ID, 7, 1000)
    assert list(again.events(after=1)) == SAID
    again.append([event(8, 4, 1001)], expected_head=Position(7))
    leaves = [again.leaf(Position(position)) for position in range(1, 9)]
    assert again.hashes(Position(8)) == merkle.extend(merkle.EMPTY, leaves)[1][-1]


def test_reopening_keeps_everything(log: EventLog) -> None:
    log.reopen()
    assert list(log.events(after=1)) == SAID
    log.append([event(8, 4, 50)], expected_head=Position(7))


def test_closing_twice_is_harmless(log: EventLog) -> None:
    log.close()
    log.close()


@pytest.mark.parametrize("size", [0, 15, 17])
def test_a_log_id_is_made_of_16_bytes(size: int) -> None:
    with pytest.raises(ValueError, match="16"):
        new_log_id(bytes(size))
