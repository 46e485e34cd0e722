"""The one writer, over a real log and a real projection: its answers, and what is true after a failure."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from grpc import StatusCode

from eventstore import database
from eventstore.errors import AppendFailed, LogUnreadable, OutcomeUnknown
from eventstore.event import Event, Position, Version
from eventstore.log import EventLog, new_log_id
from projections.domain.decide import Command
from projections.domain.refusals import KeyReused, NameTaken, NotFound
from projections.projector import Projector
from projections.store import (
    ProjectionFiles,
    build,
    check,
    digest_of,
    open_live,
    open_projector,
    open_queries,
)
from server import writer as module
from server.encode import image_frame, operation_bytes
from server.start import CLOCK_BEHIND_NS_MAX, StartRefused, _check_clock
from server.status import CallRefused, refusal_of
from server.writer import ATTEMPTS_MAX, CloseTime, Keep, SystemEvent, SystemEvents, Writer, Written
from tests.unit.projections.builders import (
    CREATE,
    KEY,
    SECOND_NS,
    T0,
    asked,
    cancel,
    create,
    delete,
    finish,
    registered,
    started,
    update,
)

LOG_ID = new_log_id(bytes(16))
FOREVER = time.monotonic() + 3600


class Clock:
    """A clock that stands still, but for jumps before given calls."""

    def __init__(self) -> None:
        self.now = T0 + 3600 * SECOND_NS
        self.calls = 0
        self.jumps: dict[int, int] = {}

    def __call__(self) -> int:
        self.calls += 1
        self.now += self.jumps.get(self.calls, 0)
        return self.now


class FaultyLog(EventLog):
    """A real log that fails once where a test says: before the append, or on either side of COMMIT."""

    fault: str | None = None

    def append(self, events: Sequence[Event], *, expected_head: Position) -> None:
        if self.fault == "refused":
            self.fault = None
            raise AppendFailed("disk I/O error", full=False)
        super().append(events, expected_head=expected_head)

    def leaf(self, position: Position) -> bytes:
        if self.fault == "leaf":
            self.fault = None
            raise LogUnreadable("disk I/O error")
        return super().leaf(position)

    def _commit(self, connection: database.Connection) -> None:
        fault = self.fault
        if fault in ("durable", "lost"):
            self.fault = None
            if fault == "durable":
                super()._commit(connection)
            self._outcome_unknown = True
            raise OutcomeUnknown("COMMIT failed: disk I/O error")
        super()._commit(connection)


class FaultyConnection:
    """A projection's real connection, on which one statement fails once: before it is run, or after."""

    def __init__(self, connection: database.Connection, begins: str, *, after: bool = False) -> None:
        self._connection = connection
        self._begins = begins
        self._after = after
        self.is_spent = False

    def execute(self, sql: str, *parameters: Any) -> Any:
        fails = not self.is_spent and sql.strip().startswith(self._begins)
        if fails and not self._after:
            self.is_spent = True
            raise database.OperationalError("disk I/O error")
        result = self._connection.execute(sql, *parameters)
        if fails:
            self.is_spent = True
            raise database.OperationalError("disk I/O error")
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


class Rig:
    """A writer with all that it stands on, in a folder. A disk `d` is at position 2."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.files = ProjectionFiles(directory)
        self.clock = Clock()
        self.open()

    def open(self) -> None:
        self.log = FaultyLog.open(self.directory / "log.db")
        self.log.create_if_empty(log_id=LOG_ID, at=T0)
        if self.log.head() == 1:
            self.log.append([at_position(registered("d"), 2, 1)], expected_head=Position(1))
        self.path = open_live(self.files, self.log, encode=image_frame)
        self.reopened = 0
        self.freed: list[list[str]] = []
        self.writer = self.writer_over(open_projector(self.path, encode=image_frame))

    def writer_over(self, projector: Projector) -> Writer:
        return Writer(
            self.log,
            projector,
            clock=self.clock,
            open_projector=lambda: self.open_projector(),
            on_freed=self.freed.append,
        )

    def open_projector(self) -> tuple[Projector, int]:
        self.reopened += 1
        applied = check(self.path, self.log)
        if applied is None:
            raise AssertionError("another version")
        return open_projector(self.path, encode=image_frame), applied

    def fail_on(self, begins: str, *, after: bool = False) -> None:
        """Let a statement of the projection fail."""
        self.writer.close()
        connection = database.connect(self.path, access="write", synchronous="NORMAL")
        faulty: Any = FaultyConnection(connection, begins, after=after)
        self.writer = self.writer_over(Projector(faulty, encode=image_frame))

    def run(
        self, *batches: Sequence[Any], before_start: Callable[[], None] = lambda: None
    ) -> list[list[Any]]:
        """What the writer answered: each batch is queued as a whole, once the one before it is answered."""

        async def main() -> list[list[Any]]:
            answers = []
            for number, batch in enumerate(batches):
                tasks = [asyncio.ensure_future(self.submit(job)) for job in batch]
                await asyncio.sleep(0)
                if number == 0:
                    before_start()
                    self.writer.start()
                answers.append(await asyncio.gather(*tasks, return_exceptions=True))
            await self.writer.stop()
            return answers

        return asyncio.run(main())

    def submit(self, job: Any) -> Awaitable[Any]:
        if isinstance(job, SystemEvents):
            return self.writer.note(*job.events)
        if isinstance(job, Keep):
            return self.writer.keep(job.checkpoint)
        if isinstance(job, CloseTime):
            return self.writer.close_time(job.at, deadline=FOREVER)
        return self.writer.submit(job, deadline=FOREVER)

    def close(self) -> None:
        self.writer.close()
        self.log.close()

    def reopen(self) -> None:
        """As after a restart, with the clock as it is."""
        self.close()
        self.open()

    def events(self) -> list[Event]:
        """What was written after the disk."""
        return list(self.log.events(after=2))

    def types(self) -> list[str]:
        return [event.type for event in self.events()]


def at_position(event: Event, position: int, version: int, *, at: int = 0) -> Event:
    return event._replace(position=Position(position), version=Version(version), at=at or T0 + position)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """Whatever a test does: in the end the live rows are those that the log alone gives."""
    rig = Rig(tmp_path)
    yield rig
    rig.writer.close()
    assert check(rig.path, rig.log) == rig.log.head()
    assert digest_of(rig.path) == digest_of(build(rig.files, rig.log, encode=image_frame))
    rig.log.close()


def new(number: int, **fields: Any) -> Command:
    """Create image `i<number>` of disk d, as operation `o<number>`."""
    key = fields.pop("key", None)
    request = fields.pop("request", b"\1" * 32)
    by = asked(f"o{number}", key=key, request=request if key else None, method=CREATE)
    return create(f"i{number}", by=by, disk_id="d", **fields)


def poisoned() -> Command:
    """A command that no caller can send, and at which `decide` raises an AssertionError."""
    return finish("nobody")


def ids(answers: Sequence[Any]) -> list[str]:
    return [answer.view.operation["id"] for answer in answers]


STARTED_AND_CREATED = ["ImageCreationStarted", "ImageCreated"]


# Batches.


def test_a_command_is_answered_with_its_operation_and_the_position_of_its_last_event(rig: Rig) -> None:
    [[answer]] = rig.run([new(1, name="web")])
    assert answer.position == 4
    assert (answer.view.operation["id"], answer.view.operation["done"]) == ("o1", True)
    assert answer.view.result["name"] == "web"
    assert rig.types() == STARTED_AND_CREATED


def test_what_is_answered_can_be_read_by_the_next_request(rig: Rig) -> None:
    async def main() -> None:
        rig.writer.start()
        with closing(open_queries(rig.path, encode=image_frame)) as queries:
            for number in range(20):
                answer = await rig.writer.submit(new(number), deadline=FOREVER)
                assert queries.image(f"i{number}").position == answer.position
        await rig.writer.stop()

    asyncio.run(main())


def test_a_batch_has_one_stamp_and_gap_free_positions_and_versions(rig: Rig) -> None:
    rig.run([new(1), new(2, folder_id="g"), new(3)], [new(4)])
    said = [(event.position, event.stream, event.version, event.at) for event in rig.events()]
    one, two = rig.clock.now, rig.clock.now + 1
    assert said == [
        (3, "folder/f", 2, one),
        (4, "folder/f", 3, one),
        (5, "folder/g", 1, one),
        (6, "folder/g", 2, one),
        (7, "folder/f", 4, one),
        (8, "folder/f", 5, one),
        (9, "folder/f", 6, two),
        (10, "folder/f", 7, two),
    ]


def test_only_an_operations_first_event_carries_method_and_key(rig: Rig) -> None:
    rig.run([new(1, key=KEY)])
    first, second = rig.events()
    assert (first.method, first.key, first.request) == (CREATE, KEY, b"\1" * 32)
    assert (second.method, second.key, second.request) == (None, None, None)
    assert first.operation_id == second.operation_id == "o1"


def test_a_refused_command_fails_none_of_its_neighbours(rig: Rig) -> None:
    [[one, refused, two]] = rig.run([new(1), delete("nobody"), new(2)])
    assert isinstance(refused, NotFound)
    assert ids([one, two]) == ["o1", "o2"]
    assert rig.types() == STARTED_AND_CREATED * 2


def test_two_commands_of_one_batch_cannot_take_the_same_name(rig: Rig) -> None:
    [[one, other]] = rig.run([new(1, name="web"), new(2, name="web")])
    assert ids([one]) == ["o1"]
    assert isinstance(other, NameTaken)


def test_a_command_sees_what_its_batch_decided_before_it(rig: Rig) -> None:
    [answers] = rig.run([new(1, name="web"), delete("i1", by=asked("o2")), new(3, name="web")])
    assert ids(answers) == ["o1", "o2", "o3"]


def test_a_key_repeated_inside_one_batch_is_one_operation(rig: Rig) -> None:
    [[one, repeat, other]] = rig.run([new(1, key=KEY), new(2, key=KEY), new(3, key=KEY, request=b"\2" * 32)])
    assert ids([one, repeat]) == ["o1", "o1"]
    assert (repeat.position, operation_bytes(repeat.view)) == (one.position, operation_bytes(one.view))
    assert isinstance(other, KeyReused)
    assert rig.types() == STARTED_AND_CREATED


def test_a_repeat_later_answers_the_operation_as_it_stands_now(rig: Rig) -> None:
    uri = create("i1", by=asked("o1", key=KEY, method=CREATE), uri="https://storage.example/x")
    again = replace(uri, asked=replace(uri.asked, operation_id="o2"), image_id="i2")
    [[first], [_], [repeat]] = rig.run([uri], [cancel("o1")], [again])
    assert not first.view.operation["done"]
    assert (repeat.view.operation["id"], repeat.view.operation["error"]["code"]) == ("o1", 1)
    assert repeat.position == 4


def test_a_key_is_free_again_after_24_hours_of_log_time(rig: Rig) -> None:
    [[one]] = rig.run([new(1, key=KEY)])
    rig.reopen()
    rig.clock.now += 24 * 3600 * SECOND_NS - 1
    [[repeat]] = rig.run([new(2, key=KEY)])
    rig.reopen()
    rig.clock.now += 1
    [[fresh]] = rig.run([new(3, key=KEY)])
    assert ids([one, repeat, fresh]) == ["o1", "o1", "o3"]


def test_an_event_of_the_log_itself_goes_into_its_own_stream(rig: Rig) -> None:
    rig.run([SystemEvents((SystemEvent("ServerStarted", {"software": "imageledger 1"}),)), new(1)])
    event = rig.events()[0]
    assert (event.stream, event.version, event.actor, event.auth) == ("log", 2, "imageledger", "system")
    assert (event.operation_id, event.resource_id, event.method) == (None, None, None)


def test_live_rows_do_not_depend_on_the_order_of_keys(rig: Rig) -> None:
    labels = {"z": "1", "a": "2", "m/m": "3"}
    os: Any = {"type": "WINDOWS", "nvidia": {"driver": "d"}}
    rig.run([new(1, labels=labels, os=os)], [update("i1", "labels", labels=dict(reversed(labels.items())))])
    # The rig compares digests when the test ends.
    assert rig.types()[-1] == "ImageUpdated"


# Blobs that lost a use.

SHA256 = "ab" * 32


@pytest.mark.parametrize(
    ("fault", "then"),
    [
        pytest.param(None, [[SHA256, SHA256]], id="written"),
        pytest.param("refused", [], id="refused"),
        pytest.param("lost", [], id="lost"),
        pytest.param("durable", [[SHA256, SHA256]], id="durable"),
    ],
)
def test_a_blob_is_freed_only_by_what_is_durable(rig: Rig, fault: str | None, then: list[list[str]]) -> None:
    rig.run([new(1), new(2)])
    rig.reopen()
    rig.log.fault = fault
    [answers] = rig.run([delete("i1", by=asked("o3")), delete("i2", by=asked("o4")), delete("nobody")])
    assert rig.freed == then
    assert [isinstance(one, Written) for one in answers[:2]] == [fault in (None, "durable")] * 2


# Failures before the commit point: nothing is written, all are told, and the service goes on.


def assert_goes_on(rig: Rig, answer: Any) -> None:
    assert isinstance(answer, Written)
    assert rig.types() == STARTED_AND_CREATED


def test_a_refused_append_fails_the_batch_and_writes_nothing(rig: Rig) -> None:
    rig.log.fault = "refused"
    [failed, [after]] = rig.run([new(1), delete("nobody"), new(2)], [new(3)])
    assert [type(one) for one in failed] == [AppendFailed] * 3
    assert refused_with(failed[0]) == (
        StatusCode.UNAVAILABLE,
        "The write was refused and left nothing: disk I/O error; try again, and look at its disk",
    )
    assert_goes_on(rig, after)
    assert rig.reopened == 0


def test_a_full_disk_fails_the_batch_as_full_and_writes_nothing(rig: Rig) -> None:
    connection = rig.log._open_connection()
    [(pages,)] = connection.execute("PRAGMA page_count").fetchall()
    connection.execute(f"PRAGMA max_page_count = {pages}")
    wide = [
        new(number, description="x" * 256, labels={f"k{i}": "v" * 60 for i in range(64)})
        for number in range(9)
    ]

    async def main() -> list[Any]:
        tasks = [asyncio.ensure_future(rig.submit(job)) for job in wide]
        await asyncio.sleep(0)
        rig.writer.start()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        connection.execute("PRAGMA max_page_count = 1000000")
        answers.append(await rig.submit(new(100)))
        await rig.writer.stop()
        return answers

    *failed, after = asyncio.run(main())
    assert {type(one) for one in failed} == {AppendFailed}
    code, message = refused_with(failed[0])
    assert code is StatusCode.RESOURCE_EXHAUSTED
    assert message.startswith(
        "The write was refused and left nothing: database or disk is full; free some space"
    )
    assert_goes_on(rig, after)


@pytest.mark.parametrize("begins", ["BEGIN", "INSERT INTO image", "INSERT INTO operation"])
def test_a_projection_that_fails_before_the_append_writes_nothing(rig: Rig, begins: str) -> None:
    rig.fail_on(begins)
    [failed, [after]] = rig.run([new(1), new(2)], [new(3)])
    assert [type(one) for one in failed] == [AppendFailed] * 2
    assert_goes_on(rig, after)


def refused_with(error: BaseException) -> tuple[StatusCode, str]:
    refusal = refusal_of(error)
    assert refusal is not None
    return refusal.code, refusal.message


# At the commit point: the outcome is unknown, and is read back.


def test_an_unknown_outcome_that_was_durable_is_answered_as_written(rig: Rig) -> None:
    rig.log.fault = "durable"
    [answers, [after]] = rig.run([new(1, name="web"), new(2), delete("nobody")], [new(3)])
    assert ids(answers[:2]) == ["o1", "o2"]
    assert [one.position for one in answers[:2]] == [4, 6]
    assert answers[0].view.result["name"] == "web"
    # The refusal is not known to hold any more, so it is not repeated.
    assert refused_with(answers[2])[0] is StatusCode.UNAVAILABLE
    assert (after.position, rig.reopened) == (8, 1)


def test_an_unknown_outcome_that_was_lost_is_answered_as_not_written(rig: Rig) -> None:
    rig.log.fault = "lost"
    [failed, [after]] = rig.run([new(1), new(2)], [new(3)])
    for one in failed:
        code, message = refused_with(one)
        assert code is StatusCode.UNAVAILABLE
        assert message.startswith(
            "The write failed and left nothing: COMMIT failed: disk I/O error; try again"
        )
    assert_goes_on(rig, after)


def test_a_cancellation_of_unknown_outcome_is_answered_by_what_the_log_says(rig: Rig) -> None:
    begin = [
        create(f"i{number}", by=asked(f"o{number}", method=CREATE), uri="https://storage.example/x")
        for number in (1, 2)
    ]

    async def main() -> list[Any]:
        rig.writer.start()
        for command in begin:
            await rig.submit(command)
        answers: list[Any] = []
        for number, fault in ((1, "durable"), (2, "lost")):
            rig.log.fault = fault
            answers += await asyncio.gather(rig.submit(cancel(f"o{number}")), return_exceptions=True)
        await rig.writer.stop()
        return answers

    written, lost = asyncio.run(main())
    assert (written.view.operation["done"], written.position) == (True, 5)
    assert refused_with(lost)[0] is StatusCode.UNAVAILABLE
    assert rig.types().count("ImageCreationCancelled") == 1


def test_an_unknown_outcome_of_closing_a_time_is_an_error_and_the_service_goes_on(rig: Rig) -> None:
    rig.log.fault = "lost"
    [[failed], [after], [closed]] = rig.run(
        [CloseTime(rig.clock.now)], [new(1)], [CloseTime(rig.clock.now + 5 * SECOND_NS)]
    )
    assert refused_with(failed)[0] is StatusCode.UNAVAILABLE
    assert isinstance(after, Written)
    assert closed is None
    assert rig.log.closed() >= rig.clock.now + 5 * SECOND_NS


# After the commit point: it is written, whatever happens to the projection.


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_projection_whose_commit_fails_is_caught_up_and_answered(rig: Rig, after: bool) -> None:
    rig.fail_on("COMMIT", after=after)
    [answers, [later]] = rig.run([new(1), new(2)], [new(3)])
    assert ids(answers) == ["o1", "o2"]
    assert (later.position, rig.reopened) == (8, 1)


def test_a_projection_that_cannot_note_its_position_is_caught_up_and_answered(rig: Rig) -> None:
    rig.fail_on("UPDATE applied")
    [answers, [later]] = rig.run([new(1), new(2)], [new(3)])
    assert (ids(answers), later.position) == (["o1", "o2"], 8)


def test_an_event_that_cannot_be_read_back_after_its_commit_is_no_refusal(rig: Rig) -> None:
    rig.log.fault = "leaf"
    [answers, [later]] = rig.run([new(1), new(2)], [new(3)])
    assert (ids(answers), later.position) == (["o1", "o2"], 8)
    assert rig.types() == STARTED_AND_CREATED * 3


def test_until_it_is_reopened_nothing_is_taken(rig: Rig) -> None:
    entered, go = threading.Event(), threading.Event()
    open_again = rig.open_projector

    def held() -> tuple[Projector, int]:
        entered.set()
        go.wait(60)
        return open_again()

    rig.open_projector = held  # type: ignore[method-assign]
    rig.log.fault = "durable"

    async def main() -> list[Any]:
        rig.writer.start()
        first = asyncio.ensure_future(rig.submit(new(1)))
        await asyncio.get_running_loop().run_in_executor(None, entered.wait, 60)
        with pytest.raises(CallRefused) as refused:
            await rig.submit(new(2))
        assert refused_with(refused.value)[0] is StatusCode.UNAVAILABLE
        assert not first.done()
        go.set()
        answers = [await first, await rig.submit(new(3))]
        await rig.writer.stop()
        return answers

    assert ids(asyncio.run(main())) == ["o1", "o3"]


@pytest.mark.parametrize(
    "error", [database.OperationalError("disk I/O error"), AssertionError("a defect"), OSError("gone")]
)
def test_reopening_is_tried_until_it_works(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(module, "REOPEN_S", 0.001)
    open_again = rig.open_projector
    failures = iter([error] * 3)

    def unlucky() -> tuple[Projector, int]:
        if (one := next(failures, None)) is not None:
            raise one
        return open_again()

    rig.open_projector = unlucky  # type: ignore[method-assign]
    rig.log.fault = "durable"
    [answers, [later]] = rig.run([new(1), new(2)], [new(3)])
    assert ids([*answers, later]) == ["o1", "o2", "o3"]


def test_a_stop_ends_a_writer_that_cannot_reopen_and_nobody_is_told_a_guess(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REOPEN_S", 0.001)
    entered = threading.Event()

    def never() -> tuple[Projector, int]:
        entered.set()
        raise database.OperationalError("disk I/O error")

    rig.open_projector = never  # type: ignore[method-assign]
    rig.fail_on("COMMIT")

    async def main() -> list[Any]:
        tasks = [asyncio.ensure_future(rig.submit(new(1)))]
        await asyncio.sleep(0)
        rig.writer.start()
        await asyncio.get_running_loop().run_in_executor(None, entered.wait, 60)
        await rig.writer.stop()
        return list(await asyncio.gather(*tasks, return_exceptions=True))

    [answer] = asyncio.run(main())
    assert isinstance(answer, OutcomeUnknown)
    assert not rig.writer.alive
    del rig.open_projector
    rig.reopen()
    assert rig.types() == STARTED_AND_CREATED


# Another hand on the same log.


def test_a_batch_that_lost_the_race_is_decided_again_on_what_the_other_wrote(rig: Rig) -> None:
    def other() -> None:
        with EventLog.open(rig.log.path) as log:
            log.append([at_position(started("x", name="web"), 3, 2)], expected_head=Position(2))

    [[taken, written]] = rig.run([new(1, name="web"), new(2)], before_start=other)
    assert isinstance(taken, NameTaken)
    assert written.position == 5
    assert [event.at for event in rig.events()] == [T0 + 3, rig.clock.now, rig.clock.now]


def test_a_batch_that_lost_the_race_to_a_later_stamp_is_stamped_after_it(rig: Rig) -> None:
    ahead = rig.clock.now + 60 * SECOND_NS

    def other() -> None:
        with EventLog.open(rig.log.path) as log:
            log.append([at_position(registered("e"), 3, 2, at=ahead)], expected_head=Position(2))

    rig.run([new(1)], before_start=other)
    assert [event.at for event in rig.events()] == [ahead, ahead + 1, ahead + 1]


def test_a_time_that_another_hand_closed_is_stamped_after(rig: Rig) -> None:
    closed = rig.clock.now + 60 * SECOND_NS

    def other() -> None:
        with EventLog.open(rig.log.path) as log:
            log.close_time(closed)

    [[answer]] = rig.run([new(1)], before_start=other)
    assert isinstance(answer, Written)
    assert [event.at for event in rig.events()] == [closed + 1] * 2


# Defects of ours.


def test_a_command_at_which_decide_breaks_fails_alone(rig: Rig) -> None:
    [[one, broken, two], [later]] = rig.run([new(1), poisoned(), new(2)], [new(3)])
    assert ids([one, two, later]) == ["o1", "o2", "o3"]
    assert isinstance(broken, AssertionError)
    assert refusal_of(broken) is None  # INTERNAL, and not shown.
    assert rig.types() == STARTED_AND_CREATED * 3


@pytest.mark.parametrize(
    "odd",
    [
        pytest.param(new(9, description="\ud800"), id="no-canonical-bytes"),
        pytest.param(new(9, labels={"k": None}), id="a-value-of-no-kind"),
        pytest.param(replace(new(9), image_id="i1"), id="an-image-id-twice"),
        pytest.param(replace(new(9), asked=asked("o9", actor="")), id="an-envelope-rule"),
        pytest.param(replace(update("i1", by=asked("o9")), mask=("nonsense",)), id="an-unknown-field"),
    ],
)
def test_a_command_that_the_log_or_the_rows_cannot_take_fails_alone(rig: Rig, odd: Command) -> None:
    [[one, broken, two]] = rig.run([new(1), odd, new(2)])
    assert ids([one, two]) == ["o1", "o2"]
    assert isinstance(broken, Exception)
    assert refusal_of(broken) is None
    assert rig.types() == STARTED_AND_CREATED * 2


# Time.


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_batch_that_took_over_a_second_to_decide_is_stamped_again(rig: Rig, count: int) -> None:
    begun = rig.clock.now
    rig.clock.jumps = {2: SECOND_NS + 1}
    [answers] = rig.run([new(number) for number in range(count)])
    assert ids(answers) == [f"o{number}" for number in range(count)]
    stamps = [event.at for event in rig.events()]
    assert min(stamps) == begun + SECOND_NS + 1
    assert stamps == sorted(stamps)


def test_a_batch_that_took_a_second_is_in_time(rig: Rig) -> None:
    begun = rig.clock.now
    rig.clock.jumps = {2: SECOND_NS}
    rig.run([new(1)])
    assert rig.events()[0].at == begun


def test_a_command_that_is_always_late_fails_in_the_end_and_writes_nothing(rig: Rig) -> None:
    rig.clock.jumps = {2 * attempt: 2 * SECOND_NS for attempt in range(1, ATTEMPTS_MAX + 1)}
    [[failed], [after]] = rig.run([new(1)], [new(2)])
    assert isinstance(failed, AppendFailed)
    assert_goes_on(rig, after)


def test_stamps_grow_although_the_clock_is_set_back(rig: Rig) -> None:
    begun = rig.clock.now
    rig.clock.jumps = {3: -60 * SECOND_NS, 5: -3600 * SECOND_NS}
    rig.run([new(1)], [new(2)], [new(3)])
    assert [event.at for event in rig.events()][::2] == [begun, begun + 1, begun + 2]


def test_stamps_grow_although_the_clock_was_set_back_before_a_restart(rig: Rig) -> None:
    begun = rig.clock.now
    rig.run([new(1)])
    rig.clock.now -= 60 * SECOND_NS
    rig.reopen()
    rig.run([new(2)])
    assert [event.at for event in rig.events()][::2] == [begun, begun + 1]


def test_after_a_closed_time_stamps_are_greater_also_after_a_restart(rig: Rig) -> None:
    at = rig.clock.now + 10 * SECOND_NS + 5
    rounded = rig.clock.now + 11 * SECOND_NS
    [[closed], [_]] = rig.run([CloseTime(at)], [new(1)])
    assert closed is None
    assert (rig.log.closed(), rig.writer.closed_at) == (rounded, rounded)
    rig.reopen()
    rig.run([new(2)])
    rig.reopen()
    rig.clock.now += 60 * SECOND_NS
    rig.run([new(3)])
    assert [event.at for event in rig.events()][::2] == [rounded + 1, rounded + 2, rig.clock.now]


def test_a_closed_time_alone_survives_a_restart(rig: Rig) -> None:
    at = rig.clock.now + 10 * SECOND_NS
    rig.run([CloseTime(at)])
    rig.reopen()
    rig.run([new(1)])
    assert rig.events()[0].at == at + 1


def test_a_time_that_an_event_has_passed_needs_no_closing(rig: Rig) -> None:
    rig.run([new(1), CloseTime(rig.clock.now - 1), CloseTime(rig.clock.now)])
    assert rig.log.closed() == 0


def test_a_time_is_closed_after_what_was_queued_before_it(rig: Rig) -> None:
    rig.run([CloseTime(rig.clock.now + 5 * SECOND_NS), new(1)])
    assert rig.events()[0].at == rig.clock.now
    assert rig.log.closed() == rig.clock.now + 5 * SECOND_NS


@pytest.mark.parametrize(
    ("by", "accept", "then"),
    [
        pytest.param("event", False, None, id="event"),
        pytest.param("event", True, True, id="event-accepted"),
        pytest.param("closed", False, None, id="closed-time"),
        pytest.param("closed", True, True, id="closed-time-accepted"),
        pytest.param("nothing", False, False, id="in-time"),
    ],
)
def test_a_start_with_a_clock_far_behind_the_logs_time_is_refused_unless_accepted(
    rig: Rig, by: str, accept: bool, then: bool | None
) -> None:
    ahead = time.time_ns() + 2 * CLOCK_BEHIND_NS_MAX
    rig.clock.now = ahead
    rig.run([new(1)] if by == "event" else [CloseTime(ahead)] if by == "closed" else [])
    if then is None:
        with pytest.raises(StartRefused, match=r"600 s behind the log|599 s behind the log") as refused:
            _check_clock(rig.log, accept=accept)
        assert "--accept-clock" in str(refused.value)
    else:
        assert _check_clock(rig.log, accept=accept) is then


# Callers who do not wait, queues that are full, and stopping.


def test_a_call_that_was_cancelled_is_not_written(rig: Rig) -> None:
    async def main() -> list[Any]:
        tasks = [asyncio.ensure_future(rig.submit(new(number))) for number in (1, 2, 3)]
        await asyncio.sleep(0)
        tasks[1].cancel()
        await asyncio.sleep(0)
        rig.writer.start()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        await rig.writer.stop()
        return list(answers)

    one, cancelled, three = asyncio.run(main())
    assert ids([one, three]) == ["o1", "o3"]
    assert isinstance(cancelled, asyncio.CancelledError)
    assert [event.operation_id for event in rig.events()] == ["o1", "o1", "o3", "o3"]


def test_a_call_whose_deadline_has_passed_is_not_written(rig: Rig) -> None:
    async def main() -> list[Any]:
        late = asyncio.ensure_future(rig.writer.submit(new(1), deadline=time.monotonic() - 1))
        timely = asyncio.ensure_future(rig.submit(new(2)))
        await asyncio.sleep(0)
        rig.writer.start()
        answers = await asyncio.gather(late, timely, return_exceptions=True)
        await rig.writer.stop()
        return list(answers)

    late, timely = asyncio.run(main())
    assert refused_with(late)[0] is StatusCode.DEADLINE_EXCEEDED
    assert ids([timely]) == ["o2"]
    assert [event.operation_id for event in rig.events()] == ["o2", "o2"]


def test_a_full_queue_refuses_at_once_and_keeps_what_it_has(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "QUEUE_MAX", 2)
    [[one, two, refused], [later]] = rig.run([new(1), new(2), new(3)], [new(4)])
    assert refused_with(refused)[0] is StatusCode.RESOURCE_EXHAUSTED
    assert ids([one, two, later]) == ["o1", "o2", "o4"]


def test_a_long_queue_is_written_in_batches(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH_MAX", 2)
    [answers] = rig.run([new(number) for number in range(5)])
    assert ids(answers) == [f"o{number}" for number in range(5)]
    assert len({event.at for event in rig.events()}) == 3


def test_a_stop_answers_what_is_queued_and_takes_nothing_more(rig: Rig) -> None:
    async def main() -> list[Any]:
        tasks = [asyncio.ensure_future(rig.submit(new(number))) for number in range(700)]
        await asyncio.sleep(0)
        rig.writer.start()
        stopping = asyncio.ensure_future(rig.writer.stop())
        await asyncio.sleep(0)
        with pytest.raises(CallRefused) as refused:
            await rig.submit(new(1000))
        assert refused_with(refused.value) == (StatusCode.UNAVAILABLE, "The server is stopping")
        await stopping
        return list(await asyncio.gather(*tasks))

    assert ids(asyncio.run(main())) == [f"o{number}" for number in range(700)]
    assert not rig.writer.alive


def test_an_idle_writer_stops(rig: Rig) -> None:
    assert rig.run([]) == [[]]
    assert not rig.writer.alive
