"""Everybody who reads or writes the live projection goes over to another file, or nobody does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from eventstore.event import Position, Version
from eventstore.log import EventLog, new_log_id
from projections.projector import Projector
from projections.queries import Queries
from projections.store import ProjectionFiles, ProjectionRefused, build, check, open_projector
from server.encode import image_frame
from server.live import LiveProjection
from server.writer import Switch, SystemEvent, Writer
from tests.unit.projections.builders import change, event

STARTED = SystemEvent("ServerStarted", {"software": "imageledger"})


class Serving:
    """A log of one event, its live projection, and another one that is built and lacks what comes next."""

    def __init__(self, directory: Path) -> None:
        self.files = ProjectionFiles(directory)
        self.log = EventLog.open(directory / "log.db")
        self.log.create_if_empty(log_id=new_log_id(bytes(16)), at=1)
        self.before = build(self.files, self.log, encode=image_frame)
        self.files.make_current(self.before)
        self.after = build(self.files, self.log, encode=image_frame)
        self.live = LiveProjection(self.before, self.log)
        self.writer = Writer(
            self.log,
            open_projector(self.before, encode=image_frame),
            clock=time.time_ns,
            open_projector=self.live.reopen,
        )
        self.unread: Future[None] | None = None

    async def go_over(self) -> None:
        loop = asyncio.get_running_loop()

        def take_over(before: Projector, head: Position) -> Projector:
            projector, self.unread = self.live.move_to(self.after, head, keep=None, loop=loop)
            before.close()
            return projector

        await self.writer.switch(Switch(take_over))

    async def positions(self) -> tuple[int, int]:
        """What the event loop reads, and a reader's thread."""
        read = await self.live.readers.run(applied, deadline=time.monotonic() + 30)
        return applied(self.live.queries), read

    def close(self) -> None:
        self.writer.close()
        self.live.readers.close()
        self.live.queries.close()
        self.log.close()


def applied(queries: Queries) -> int:
    return queries.applied()[1]


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Serving]:
    made = Serving(tmp_path)
    yield made
    made.close()


def test_all_go_over_and_the_file_before_can_go(serving: Serving) -> None:
    async def main() -> list[tuple[int, int]]:
        serving.writer.start()
        await serving.writer.note(STARTED)
        seen = [await serving.positions()]
        await serving.go_over()
        assert serving.unread is not None
        await asyncio.wait_for(asyncio.wrap_future(serving.unread), 30)
        serving.files.remove_others(serving.after)
        seen.append(await serving.positions())
        await serving.writer.note(STARTED)
        seen.append(await serving.positions())
        await serving.writer.stop()
        return seen

    assert asyncio.run(main()) == [(2, 2), (2, 2), (3, 3)]
    assert serving.files.current() == serving.live.path == serving.after
    assert [entry.name for entry in serving.after.parent.glob("projections-*.db")] == [serving.after.name]
    # What a failed write would open again.
    projector, position = serving.live.reopen()
    projector.close()
    assert position == 3


def of_another_history(serving: Serving, patch: pytest.MonkeyPatch) -> None:
    change(serving.after, "UPDATE applied SET leaf = zeroblob(32)")


def ahead_of_the_writer(serving: Serving, patch: pytest.MonkeyPatch) -> None:
    """As if somebody else had written to the log."""
    said = event("ServerStarted", None, {"software": "x"}, stream="log", position=Position(2))
    serving.log.append([said._replace(version=Version(2), at=2)], expected_head=Position(1))


def without_a_disk(serving: Serving, patch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise OSError(5, "Input/output error")

    patch.setattr(ProjectionFiles, "make_current", fails)


@pytest.mark.parametrize(
    ("fault", "error", "head"),
    [
        pytest.param(of_another_history, ProjectionRefused, 2, id="another-history"),
        pytest.param(ahead_of_the_writer, AssertionError, 3, id="ahead-of-the-writer"),
        pytest.param(without_a_disk, OSError, 2, id="current-cannot-be-written"),
    ],
)
def test_where_it_fails_nobody_goes_over(
    serving: Serving,
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[[Serving, pytest.MonkeyPatch], None],
    error: type[Exception],
    head: int,
) -> None:
    fault(serving, monkeypatch)

    async def main() -> list[tuple[int, int]]:
        serving.writer.start()
        with pytest.raises(error):
            await serving.go_over()
        seen = [await serving.positions()]
        await serving.writer.note(STARTED)
        await serving.writer.stop()
        return [*seen, await serving.positions()]

    assert asyncio.run(main()) == [(1, 1), (head, head)]
    assert serving.files.current() == serving.live.path == serving.before
    assert check(serving.before, serving.log) == head


def test_a_loop_that_is_closed_reads_nothing_any_more(serving: Serving) -> None:
    loop = asyncio.new_event_loop()
    loop.close()
    projector, unread = serving.live.move_to(serving.after, Position(1), keep=None, loop=loop)
    projector.close()
    assert unread.done()
