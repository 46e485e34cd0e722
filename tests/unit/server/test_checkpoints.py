"""Checkpoints of a real log: kept before they are given out, shared by who waits, and published meanwhile."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from grpc import StatusCode

from eventstore.checkpoint import KeptCheckpoint, open_note
from eventstore.errors import AppendFailed, CheckpointContradicted
from eventstore.heads import check_kept, checkpoint_at
from eventstore.keys import generate_key
from eventstore.merkle import TreeSize
from eventstore.reader import LogReader
from server import publisher as publisher_module
from server.checkpoints import Checkpoints
from server.publisher import Publisher
from server.status import CallRefused, refusal_of
from server.writer import Keep, SystemEvent, SystemEvents, Written
from tests.unit.server.test_writer import FOREVER, LOG_ID, Rig, new

SIGNER = generate_key(LOG_ID, bytes(range(32)))
KEYS = (SIGNER.verifier,)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.close()


def kept(rig: Rig, size: int = 2) -> KeptCheckpoint:
    checkpoint = checkpoint_at(rig.log, TreeSize(size))
    return KeptCheckpoint(checkpoint.size, checkpoint.root, "note", 1)


# In the writer.


def test_a_checkpoint_is_kept_between_two_batches(rig: Rig) -> None:
    one = kept(rig)
    [[nothing, written], [again]] = rig.run([Keep(one), new(1)], [Keep(one)])
    assert (nothing, again) == (None, None)
    assert isinstance(written, Written)
    assert rig.log.checkpoints() == [one]


def test_a_checkpoint_that_contradicts_one_that_is_kept_fails_alone(rig: Rig) -> None:
    one = kept(rig)
    [[_], [failed, written]] = rig.run([Keep(one)], [Keep(one._replace(root=bytes(32))), new(1)])
    assert isinstance(failed, CheckpointContradicted)
    refusal = refusal_of(failed)
    assert refusal is not None
    assert (refusal.code, refusal.reason) == (StatusCode.DATA_LOSS, "LOG_CONTRADICTED")
    assert isinstance(written, Written)
    assert rig.log.checkpoints() == [one]


@pytest.mark.parametrize("fault", ["durable", "lost"])
def test_a_checkpoint_of_unknown_outcome_is_not_given_out_and_the_service_goes_on(
    rig: Rig, fault: str
) -> None:
    one = kept(rig)
    rig.log.fault = fault
    [[failed], [again, written]] = rig.run([Keep(one)], [Keep(one), new(1)])
    refusal = refusal_of(failed)
    assert refusal is not None
    assert refusal.code is StatusCode.UNAVAILABLE
    assert again is None
    assert isinstance(written, Written)
    assert rig.log.checkpoints() == [one]
    assert rig.reopened == 1


@pytest.mark.parametrize(
    ("fault", "then"), [(None, ["ClockAccepted", "ServerStarted"]), ("refused", []), ("lost", [])]
)
def test_events_of_the_log_are_written_together_or_not_at_all(
    rig: Rig, fault: str | None, then: list[str]
) -> None:
    rig.log.fault = fault
    rig.run([SystemEvents((SystemEvent("ClockAccepted", {}), SystemEvent("ServerStarted", {})))])
    found = rig.events()
    assert [event.type for event in found] == then
    assert len({event.at for event in found}) <= 1


# Made at need.


def run(rig: Rig, work: Callable[[Checkpoints], Awaitable[Any]], **options: Any) -> Any:
    """What the work gives, which has a running writer and checkpoints over it."""

    async def main() -> Any:
        rig.writer.start()
        checkpoints = made(rig, **options)
        try:
            return await work(checkpoints)
        finally:
            await rig.writer.stop()
            checkpoints.close()

    return asyncio.run(main())


def made(rig: Rig, **options: Any) -> Checkpoints:
    return Checkpoints(
        LogReader.open(rig.log.path),
        options.pop("signer", SIGNER),
        **{
            "keep": rig.writer.keep,
            "applied": lambda: rig.writer.applied,
            "clock": rig.clock,
            "interval_s": 3600.0,
            **options,
        },
    )


def test_a_checkpoint_is_of_all_that_is_applied_and_kept_before_it_is_given_out(rig: Rig) -> None:
    async def work(checkpoints: Checkpoints) -> Any:
        return await checkpoints.covering(1), rig.log.checkpoints()

    given, there = run(rig, work)
    assert there == [given]
    assert (given.size, given.at) == (2, rig.clock.now)
    assert check_kept(rig.log, given, KEYS).root == given.root


def test_one_that_covers_it_is_not_made_again(rig: Rig) -> None:
    async def work(checkpoints: Checkpoints) -> Any:
        first = await checkpoints.covering(2)
        await rig.writer.submit(new(1), deadline=FOREVER)
        return first, await checkpoints.covering(2), await checkpoints.covering(3)

    first, same, later = run(rig, work)
    assert first == same
    assert (first.size, later.size) == (2, 4)
    assert [one.size for one in rig.log.checkpoints()] == [2, 4]


def test_what_was_kept_before_a_restart_is_given_out(rig: Rig) -> None:
    async def work(checkpoints: Checkpoints) -> Any:
        return await checkpoints.covering(2)

    before = run(rig, work)
    rig.reopen()
    assert run(rig, work, signer=None) == before


def test_without_a_key_nothing_new_is_signed(rig: Rig) -> None:
    async def work(checkpoints: Checkpoints) -> Any:
        return await checkpoints.covering(2)

    with pytest.raises(CallRefused) as refused:
        run(rig, work, signer=None)
    assert (refused.value.code, refused.value.reason) == (StatusCode.FAILED_PRECONDITION, "NO_SIGNING_KEY")


def test_who_waits_meanwhile_shares_one(rig: Rig) -> None:
    """A hundred want one at once, and another hundred while the first is being kept: two are made."""
    told: list[int] = []

    async def work(checkpoints: Checkpoints) -> Any:
        waiting = [asyncio.ensure_future(checkpoints.covering(2)) for _ in range(100)]
        while not told:
            await asyncio.sleep(0)
        await rig.writer.submit(new(1), deadline=FOREVER)
        waiting += [asyncio.ensure_future(checkpoints.covering(4)) for _ in range(100)]
        return await asyncio.gather(*waiting)

    async def keep(one: KeptCheckpoint) -> None:
        told.append(one.size)
        await rig.writer.keep(one)

    given = run(rig, work, keep=keep)
    assert told == [2, 4]
    assert all(one.size >= wanted for one, wanted in zip(given, [2] * 100 + [4] * 100, strict=True))


def test_one_that_could_not_be_kept_is_not_given_out(rig: Rig) -> None:
    fails = [AppendFailed("no", full=True)]

    async def keep(one: KeptCheckpoint) -> None:
        if fails:
            raise fails.pop()
        await rig.writer.keep(one)

    async def work(checkpoints: Checkpoints) -> Any:
        with pytest.raises(AppendFailed):
            await checkpoints.covering(2)
        return await checkpoints.covering(2)

    assert run(rig, work, keep=keep) == rig.log.newest_checkpoint()


def test_a_caller_who_hangs_up_does_not_stop_the_one_that_others_wait_for(rig: Rig) -> None:
    async def work(checkpoints: Checkpoints) -> Any:
        first, second = (asyncio.ensure_future(checkpoints.covering(2)) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        return await second

    assert run(rig, work) == rig.log.newest_checkpoint()


# Once in a while, and at the end.


def test_one_is_made_at_the_start_and_another_only_when_the_log_has_grown(rig: Rig) -> None:
    async def work(checkpoints: Checkpoints) -> Any:
        checkpoints.begin(None)
        while rig.log.newest_checkpoint() is None:
            await asyncio.sleep(0.001)
        # As often as it likes to, for a while.
        for _ in range(20):
            await asyncio.sleep(0.001)
        await rig.writer.submit(new(1), deadline=FOREVER)
        while len(rig.log.checkpoints()) < 2:
            await asyncio.sleep(0.001)

    run(rig, work, interval_s=0.001)
    assert [one.size for one in rig.log.checkpoints()] == [2, 4]


def test_the_end_makes_the_last_one_and_publishes_it(rig: Rig, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()

    async def work(checkpoints: Checkpoints) -> None:
        checkpoints.begin(Publisher(outside))
        await rig.writer.submit(new(1), deadline=FOREVER)
        await rig.writer.stop()
        await checkpoints.finish(rig.log)

    run(rig, work)
    newest = rig.log.newest_checkpoint()
    assert newest is not None
    assert newest.size == 4
    path = outside / "0000000000000000004.note"
    assert open_note(path.read_text(), KEYS).root == newest.root


# On their way out.


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno == logging.ERROR]


def test_a_folder_that_fails_is_told_of_once_and_tried_again(
    rig: Rig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    outside, one = tmp_path / "outside", kept(rig)

    async def main() -> None:
        publisher = Publisher(outside)
        await publisher.finish(one)
        assert errors(caplog) == [
            "a checkpoint could not be published",
            "the last checkpoint was not published",
        ]
        outside.mkdir()
        await publisher.finish(one)

    asyncio.run(main())
    assert [path.name for path in outside.iterdir()] == ["0000000000000000002.note"]
    assert len(errors(caplog)) == 2


def test_another_file_of_that_size_is_told_loudly_and_left(
    rig: Rig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "0000000000000000002.note"
    path.write_text("of somebody else")

    async def main() -> None:
        publisher = Publisher(tmp_path)
        await publisher.finish(kept(rig))

    asyncio.run(main())
    assert errors(caplog) == ["a published checkpoint is not this log's"]
    assert path.read_text() == "of somebody else"


def test_a_folder_that_hangs_holds_up_neither_the_service_nor_the_stop(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(publisher_module, "STOP_S_MAX", 0.05)
    folder = tmp_path / "outside"
    folder.mkdir()
    # Opening a pipe for writing waits for a reader, and there is none.
    os.mkfifo(folder / ".0000000000000000002.note.draft")

    async def work(checkpoints: Checkpoints) -> Any:
        checkpoints.begin(Publisher(folder))
        given = await checkpoints.covering(2)
        await rig.writer.submit(new(1), deadline=FOREVER)
        await rig.writer.stop()
        await checkpoints.finish(rig.log)
        return given

    assert run(rig, work).size == 2
    assert errors(caplog) == ["the last checkpoint was not published"]
    (folder / ".0000000000000000002.note.draft").unlink()
