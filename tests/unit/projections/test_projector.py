"""Rows equal folded events, now and as of every position, and do not depend on how the events came."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, given, note, settings

from eventstore import database
from eventstore.errors import SchemaTooNew
from eventstore.event import Position
from projections.domain.command import HOURS_24_NS
from projections.domain.decide import decide
from projections.domain.evolve import EventUnknown, MemoryState
from projections.domain.refusals import NotFound
from projections.filters import Order
from projections.projector import Projector, catch_up
from projections.queries import Queries
from projections.store import check, digest_of, open_projector, open_queries
from tests.unit.projections.builders import (
    CREATE,
    FAMILIES,
    FOLDERS,
    KEY,
    T0,
    History,
    Stand,
    change_applied,
    created,
    deleted,
    event,
    image,
    lossless,
    prefixes,
    registered,
    rows,
    started,
    steps,
    updated,
)

BY_ID = Order("id", descending=False)
# A folder and a synced log for each example: fewer, and no time limit on one.
on_disk = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@contextmanager
def projected(history: History) -> Iterator[tuple[Stand, Path]]:
    """The history in a log, and a projection built of its bytes."""
    with TemporaryDirectory() as directory, closing(Stand(Path(directory))) as stand:
        history.write(stand.log)
        yield stand, stand.open_live()


def unpacked(wire: bytes) -> Any:
    return msgpack.unpackb(wire)


def unpacked_page(wire: bytes) -> list[Any]:
    unpacker = msgpack.Unpacker()
    unpacker.feed(wire)
    return list(unpacker)


def listed(queries: Queries, folder_id: str, at: int, *, limit: int) -> list[Any]:
    """All pages of a list, every image unpacked."""
    out, page = [], None
    while True:
        listing = queries.images(folder_id, limit=limit, order=BY_ID, page=page, at=None if page else at)
        out += unpacked_page(listing.wire)
        page = listing.next_page
        if page is None:
            return out
        assert listing.wire, "an empty page with a token"


def latest_in(state: MemoryState, folder_id: str, family: str) -> Any:
    """The naive model of GetLatestByFamily: look at every image there is."""
    ready = [
        one
        for one in state.images.values()
        if (one["folder_id"], one["family"], one["status"]) == (folder_id, family, "READY") and family
    ]
    return max(ready, key=lambda one: one["born"], default=None)


def or_none(ask: Any, *arguments: Any, **named: Any) -> Any:
    try:
        return ask(*arguments, **named)
    except NotFound:
        return None


@on_disk
@given(steps())
def test_the_current_rows_are_the_folded_events(walk: list[tuple[str, int, int]]) -> None:
    history = History(walk)
    state = history.state
    with projected(history) as (stand, path), closing(open_projector(path, encode=lossless)) as projector:
        current = rows(path, "SELECT id, state, wire FROM image WHERE until IS NULL")
        assert {row[0]: unpacked(row[1]) for row in current} == state.images
        assert {row[0]: unpacked(row[2]) for row in current} == state.images
        sources = rows(path, "SELECT id, state FROM source WHERE until IS NULL")
        assert {row[0]: unpacked(row[1]) for row in sources} == state.sources
        operations = rows(path, "SELECT id, state FROM operation WHERE until IS NULL")
        assert {row[0]: unpacked(row[1]) for row in operations} == state.operations
        columns = rows(
            path,
            "SELECT id, folder_id, name, family, status, created_at, born FROM image WHERE until IS NULL",
        )
        for image_id, *values in columns:
            names = ("folder_id", "name", "family", "status", "created_at", "born")
            assert values == [state.images[image_id][name] for name in names]  # type: ignore[literal-required]
        # The wire is held by the current version alone.
        assert rows(path, "SELECT count(*) FROM image WHERE (wire IS NULL) <> (until IS NOT NULL)") == [(0,)]
        assert_same_state(projector, history)
        assert check(path, stand.log) == stand.log.head()


def assert_same_state(projector: Projector, history: History) -> None:
    """What `decide` may ask has the same answers from rows and from memory."""
    state = history.state
    ids = {one.resource_id or "" for one in history.events} | {"nobody"}
    for one in ids:
        assert projector.image(one) == state.image(one)
        assert projector.source(one) == state.source(one)
    for folder_id in FOLDERS:
        for name in ("alpha", "beta", "gamma", "nobody"):
            named = {"folder_id": folder_id, "name": name}
            assert projector.image_named(**named) == state.image_named(**named)
    for operation_id in {one.operation_id or "" for one in history.events} | {"nobody"}:
        assert projector.operation(operation_id) == state.operation(operation_id)
    for one_event in history.events:
        keyed = {
            "actor": one_event.actor,
            "method": one_event.method or "",
            "key": one_event.key or "nothing",
        }
        assert projector.operation_keyed(**keyed) == state.operation_keyed(**keyed)


@on_disk
@given(steps())
def test_as_of_every_position_the_answers_are_those_of_the_events_up_to_it(
    walk: list[tuple[str, int, int]],
) -> None:
    history = History(walk)
    ids = sorted({one.resource_id or "" for one in history.events} | {"nobody"})
    operation_ids = sorted({one.operation_id or "" for one in history.events} | {"nobody"})
    with projected(history) as (_, path), closing(open_queries(path, encode=lossless)) as queries:
        for position, state in prefixes(history.events):
            note(f"as of {position}")
            for one in ids:
                got = or_none(queries.image, one, at=position)
                assert (got and unpacked(got.wire)) == state.image(one)
                source = or_none(queries.source, one, at=position)
                assert (source and source[0]) == state.source(one)
            for operation_id in operation_ids:
                found = or_none(queries.operation, operation_id, at=position)
                assert (found and found[0].operation) == state.operation(operation_id)
            for folder_id in FOLDERS:
                expected = sorted(
                    (i for i in state.images.values() if i["folder_id"] == folder_id), key=lambda i: i["id"]
                )
                assert listed(queries, folder_id, position, limit=1000) == expected
                assert listed(queries, folder_id, position, limit=2) == expected
                for family in FAMILIES:
                    got = or_none(queries.latest, folder_id, family, at=position)
                    assert (got and unpacked(got.wire)) == latest_in(state, folder_id, family)


@on_disk
@given(steps())
def test_now_is_as_of_the_head(walk: list[tuple[str, int, int]]) -> None:
    history = History(walk)
    head = history.events[-1].position
    with projected(history) as (_, path), closing(open_queries(path, encode=lossless)) as queries:
        for image_id in history.state.images:
            assert queries.image(image_id) == queries.image(image_id, at=head)
        for folder_id in FOLDERS:
            now = queries.images(folder_id, limit=1000, order=BY_ID)
            assert now == queries.images(folder_id, limit=1000, order=BY_ID, at=head)
            for family in FAMILIES:
                latest = or_none(queries.latest, folder_id, family)
                assert latest == or_none(queries.latest, folder_id, family, at=head)


@on_disk
@given(steps())
def test_an_operation_answers_with_what_its_last_event_left(walk: list[tuple[str, int, int]]) -> None:
    history = History(walk)
    left: dict[str, Any] = {}
    for position, state in prefixes(history.events):
        if position and (operation_id := history.events[position - 1].operation_id):
            resource_id = history.events[position - 1].resource_id or ""
            left[operation_id] = state.image(resource_id) or state.source(resource_id)
    with projected(history) as (_, path), closing(open_queries(path, encode=lossless)) as queries:
        assert {one: queries.operation(one)[0].result for one in left} == left


TABLES = (
    "image",
    "listing",
    "folder",
    "image_life",
    "family_latest",
    "operation",
    "source",
    "blob_use",
    "applied",
)


@on_disk
@given(steps())
def test_applied_live_or_built_from_bytes_every_row_is_the_same(walk: list[tuple[str, int, int]]) -> None:
    history = History(walk)
    with projected(history) as (stand, built):
        live = stand.files.unused()
        make_empty(stand, live)
        with closing(open_projector(live, encode=lossless)) as projector:
            for batch in history.batches:
                projector.begin()
                for one in batch:
                    projector.apply(one)
                projector.commit(last=batch[-1], leaf=stand.log.leaf(batch[-1].position))
        for table in TABLES:
            of_all = f"SELECT * FROM {table} ORDER BY 1, 2"
            assert rows(live, of_all) == rows(built, of_all)
        assert digest_of(live) == digest_of(built)


@on_disk
@given(steps())
def test_stored_states_are_canonical_to_the_last_level(walk: list[tuple[str, int, int]]) -> None:
    with projected(History(walk)) as (_, path):
        for table in ("image", "operation", "source"):
            for (state,) in rows(path, f"SELECT state FROM {table}"):
                assert msgpack.packb(in_order(unpacked(state))) == state


def in_order(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: in_order(value[key]) for key in sorted(value, key=str.encode)}
    if isinstance(value, list):
        return [in_order(item) for item in value]
    return value


def make_empty(stand: Stand, path: Path) -> None:
    """A projection file of this log without an event in it."""
    with TemporaryDirectory() as directory, closing(Stand(Path(directory))) as other:
        other.say([])
        shutil.move(other.open_live(), path)
    change_applied(path, position=0, leaf=b"", at=0)


# What each kind of event leaves in the tables of answers.


@pytest.mark.parametrize(
    ("given", "then"),
    [
        pytest.param(image("a", family="web"), [(3, None, "a")], id="ready"),
        pytest.param([started("a", family="web")], [], id="not-before-it-is-ready"),
        pytest.param(
            [*image("a", family="web"), *image("b", family="web")], [(3, 5, "a"), (5, None, "b")], id="newer"
        ),
        pytest.param(
            [started("a", family="web"), *image("b", family="web"), created("a")],
            [(4, None, "b")],
            id="an-older-one-that-ends-later-changes-nothing",
        ),
        pytest.param(
            [*image("a", family="web"), *image("b", family="web"), deleted("b")],
            [(3, 5, "a"), (5, 6, "b"), (6, None, "a")],
            id="falls-back",
        ),
        pytest.param(
            [*image("a", family="web"), *image("b", family="web"), deleted("a")],
            [(3, 5, "a"), (5, None, "b")],
            id="an-older-one-goes",
        ),
        pytest.param([*image("a", family="web"), deleted("a")], [(3, 4, "a")], id="none-left"),
        pytest.param(
            [*image("a", family="web"), updated("a", name="x")],
            [(3, None, "a")],
            id="an-update-is-no-new-answer",
        ),
    ],
)
def test_family_answers(stand: Stand, given: list[Any], then: list[Any]) -> None:
    stand.say(given)
    path = stand.open_live()
    assert rows(path, "SELECT since, until, image_id FROM family_latest ORDER BY since") == then


def test_lives_of_images(stand: Stand) -> None:
    stand.say([*image("a"), *image("b"), deleted("a"), updated("b", name="x")])
    lives = rows(stand.open_live(), "SELECT folder_id, id, born, died FROM image_life ORDER BY id")
    assert lives == [("f", "a", 2, 6), ("f", "b", 4, None)]


def test_the_file_itself_refuses_a_second_image_of_a_name(stand: Stand) -> None:
    stand.say([*image("a", name="web"), started("b", name="web")])
    with pytest.raises(database.IntegrityError):
        stand.open_live()


def test_a_repeated_key_is_found_through_rows_until_24_hours_later(stand: Stand) -> None:
    from tests.unit.projections.builders import asked, create

    stand.say([registered("d"), started("a")._replace(key=KEY, request=b"\1" * 32, at=T0 + 9 * 10**9)])
    with closing(open_projector(stand.open_live(), encode=lossless)) as projector:
        command = create(disk_id="d", by=asked("second", key=KEY, method=CREATE))
        at = T0 + 9 * 10**9 + HOURS_24_NS
        assert not isinstance(decide(projector, command, at=at - 1), list)
        assert isinstance(decide(projector, command, at=at), list)


# Catching up.


@pytest.mark.parametrize(
    ("stranger", "error"),
    [
        pytest.param(event("ImagePainted", "b", {}, method="Paint"), EventUnknown, id="unknown-type"),
        pytest.param(started("b")._replace(schema=2), SchemaTooNew, id="unknown-schema"),
    ],
)
@pytest.mark.parametrize("before", [0, 3])
def test_an_event_that_cannot_be_applied_stops_it_loudly_with_all_before_applied(
    stand: Stand, stranger: Any, error: type[Exception], before: int
) -> None:
    stand.say([])
    path = stand.open_live()
    stand.say([registered(f"d{i}") for i in range(before)])
    stand.say([stranger, registered("after")])
    reached: list[int] = []
    with closing(open_projector(path, encode=lossless)) as projector:
        with pytest.raises(error, match=f"position {before + 2}"):
            catch_up(projector, stand.log, after=1, on_progress=reached.append)
        # It can go on being asked, and stops there again.
        assert projector.source("after") is None
        with pytest.raises(error):
            catch_up(projector, stand.log, after=before + 1)
    assert reached == ([] if before == 0 else [before + 1])
    assert check(path, stand.log) == before + 1
    assert rows(path, "SELECT count(*) FROM source") == [(before,)]


def test_a_batch_that_fails_in_the_middle_leaves_none_of_its_rows(stand: Stand) -> None:
    stand.say([])
    path = stand.open_live()
    stand.say([registered("d"), created("nobody")])
    with closing(open_projector(path, encode=lossless)) as projector:
        with pytest.raises(AssertionError, match="position 3"):
            catch_up(projector, stand.log, after=1)
        assert projector.source("d") is None
    assert check(path, stand.log) == 1


def test_catching_up_goes_in_batches_and_tells_each(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("projections.projector.BATCH_EVENTS", 2)
    stand.say([])
    path = stand.open_live()
    stand.say([registered(f"d{i}") for i in range(4)])
    reached: list[int] = []
    with closing(open_projector(path, encode=lossless)) as projector:
        assert catch_up(projector, stand.log, after=1, on_progress=reached.append) == 5
    assert reached == [2, 4, 5]


def test_what_is_rolled_back_is_not_there(stand: Stand) -> None:
    stand.say([registered("d")])
    with closing(open_projector(stand.open_live(), encode=lossless)) as projector:
        projector.begin()
        projector.apply(registered("e")._replace(position=Position(3), at=T0))
        assert projector.source("e") is not None
        projector.rollback()
        assert projector.source("e") is None
        projector.rollback()


def test_closing_twice_does_nothing(stand: Stand) -> None:
    stand.say([])
    projector = open_projector(stand.open_live(), encode=lossless)
    projector.close()
    projector.close()
