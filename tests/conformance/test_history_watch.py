"""Watches over the wire, and times that are still young."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from projections.moments import format_time
from server.gen.imageledger.v1 import history_service_pb2 as pb
from tests.conformance.api import Api, Code, as_of, position_of, refused
from tests.conformance.history import HISTORY, at, events
from tests.harness import Metadata, Server, serving

pytestmark = pytest.mark.usefixtures("quiet")


class Watch:
    """A watch that is read one answer after the other."""

    def __init__(self, api: Api, metadata: Metadata = (), **fields: Any) -> None:
        stub = api.channel.unary_stream(
            f"/{HISTORY}/Watch", pb.WatchRequest.SerializeToString, pb.WatchResponse.FromString
        )
        self.call: Any = stub(pb.WatchRequest(**fields), metadata=api.metadata(metadata), timeout=60)
        first = next(self.call)
        assert not first.events
        self.next = first.next_position

    def until(self, position: int) -> list[int]:
        found: list[int] = []
        while not found or found[-1] < position:
            answer = next(self.call)
            found += [event.position for event in answer.events]
            assert answer.next_position == found[-1] + 1
        return found

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.call.cancel()


def test_a_watch_begins_with_what_comes_next(api: Api, disk: Any, folder: str) -> None:
    with Watch(api) as watch:
        image = api.image(folder, disk_id=disk.id)
        own = events(api, resource_id=image.id)
        found = watch.until(own[-1].position)
        assert found == list(range(watch.next, own[-1].position + 1))
        assert own[0].position in found


def test_a_watch_from_a_position_begins_with_it(api: Api, disk: Any, folder: str) -> None:
    last = position_of(api.created(folder, disk_id=disk.id)[1])
    with Watch(api, from_moment=at(last - 1)) as watch:
        assert watch.until(last) == [last - 1, last]
    with Watch(api, from_moment=at(0)) as watch:
        assert watch.until(2)[:2] == [1, 2]
    with Watch(api, from_moment={"head": {}}) as watch:
        assert watch.until(last) == [last]


def test_a_watch_may_begin_with_the_next_position_and_with_none_after_it(
    server: Server, tmp_path: Path
) -> None:
    with serving(tmp_path / "data") as alone, Api(alone.address) as api:
        (*_, last) = events(api)
        head = last.position
        with Watch(api, from_moment=at(head + 1)) as watch:
            assert watch.next == head + 1
            api.disk("f")
            assert watch.until(head + 1) == [head + 1]
        refusal = refused(lambda: Watch(api, from_moment=at(head + 3)))
        assert refusal.code == Code.OUT_OF_RANGE
        assert refusal.message == f"Position {head + 3} is beyond the head of the log, {head + 1}"


def test_watchers_beside_writers_get_every_event_once(
    api: Api, server: Server, disk: Any, folder: str
) -> None:
    image = api.image(folder, disk_id=disk.id)
    with Api(server.address) as other, Watch(api) as one, Watch(other) as two:
        for number in range(50):
            last = position_of(api.updated(image.id, ["name"], name=f"n{number}")[1])
        with Watch(other, from_moment=at(one.next)) as late:
            found = [watch.until(last) for watch in (one, two, late)]
    assert [positions[0] for positions in found] == [one.next, two.next, one.next]
    for positions in found:
        assert positions == list(range(positions[0], positions[-1] + 1))


def test_a_watch_is_of_what_comes_and_not_as_of(api: Api) -> None:
    refusal = refused(lambda: Watch(api, as_of(1)))
    assert (refusal.code, refusal.fields) == (Code.INVALID_ARGUMENT, ["x-as-of"])


def test_a_stop_tells_watchers_where_to_go_on_and_does_not_wait_for_them(tmp_path: Path) -> None:
    server = Server(tmp_path / "data").start()
    with Api(server.address) as api, Watch(api) as watch:
        api.disk("f")
        last = watch.next
        assert watch.until(last) == [last]
        assert server.stop() == 0
        refusal = refused(lambda: watch.until(last + 1))
    assert (refusal.code, refusal.reason) == (Code.UNAVAILABLE, "STOPPING")
    assert refusal.message.endswith(f"watch again from position {last + 1}")
    assert refusal.trailing["x-log-position"] == str(last)


def test_a_time_that_is_still_young_is_waited_for(api: Api, disk: Any, folder: str) -> None:
    last = position_of(api.created(folder, disk_id=disk.id)[1])
    asked = time.time_ns()
    found = events(
        api, from_moment=at(last), to_moment={"time": {"seconds": asked // 10**9, "nanos": asked % 10**9}}
    )
    assert found[0].position == last
    assert all(one.at <= asked for one in found), format_time(asked)
