"""A disk that fails under the log or the projection: callers are told, reads go on, nothing is guessed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from eventstore import database
from projections.moments import format_time
from projections.store import ProjectionFiles
from tests.conformance.api import Api, Code, as_of, key, refused
from tests.conformance.sites import until
from tests.crash.faults import FOLDER, Attempt, Service, check_refusal, done
from tests.failing_disk import EIO, ENOSPC, Fault, compiled

LOG, LOG_WAL = "*/data/log.db", "*/data/log.db-wal"
PROJECTION_WAL = "*/data/projections-*.db-wal"
ERRORS = (ENOSPC, EIO)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    root = tmp_path_factory.mktemp("faults")
    with Service(root / "data", root, compiled(root)) as service:
        yield service
        service.check_end()


def once(path: str) -> list[Fault]:
    """Each call of a commit fails once, on both sides of what it does; the fourth write is within a frame."""
    return [
        Fault(call, path, error, when, skip=skip, times=1)
        for error in ERRORS
        for call, when, skip in (
            ("write", "before", 0),
            ("write", "half", 3),
            ("write", "after", 2),
            ("fsync", "before", 0),
            ("fsync", "after", 0),
        )
        if not (call == "fsync" and path == PROJECTION_WAL)
    ]


@pytest.mark.parametrize("fault", once(LOG_WAL), ids=str)
def test_the_log_fails_once(service: Service, fault: Fault) -> None:
    """Some batch fails: its callers are told so, and it is not there; all others are written."""
    asked = (service.create, service.update, service.delete(), service.upload())
    hits = len(service.disk.hits())
    with service.disk.failing(fault):
        attempts = [future.result() for future in service.begin(*asked)]
    assert len(service.disk.hits()) == hits + 1
    refusals = [attempt.refusal for attempt in attempts if attempt.refusal is not None]
    assert refusals
    for refusal in refusals:
        check_refusal(refusal)
    # SQLite has one word, an I/O error, for every fsync that fails.
    if fault.error == ENOSPC and fault.call == "write":
        assert {"DISK_FULL"} <= {refusal.reason for refusal in refusals} <= {"DISK_FULL", "LOG_REOPENING"}
    service.check_files()
    # No waiting: whoever has his answer may ask again.
    service.again(attempts)
    done(service.attempt(service.update))
    service.check_reads()
    service.check_files()


@pytest.mark.parametrize("fault", once(PROJECTION_WAL), ids=str)
def test_the_projection_fails_once_after_the_log_was_written(service: Service, fault: Fault) -> None:
    """What the log has is answered as written, once the projection has caught up; the rest was not tried."""
    asked = (service.create, service.update, service.delete(), service.upload())
    hits = len(service.disk.hits())
    with service.disk.failing(fault):
        attempts = [future.result() for future in service.begin(*asked)]
    assert len(service.disk.hits()) == hits + 1
    refusals = [attempt.refusal for attempt in attempts if attempt.refusal is not None]
    assert len(refusals) < len(attempts)
    assert {refusal.reason for refusal in refusals} <= {"LOG_REOPENING"}
    service.check_files()
    service.again(attempts)
    service.check_reads()
    service.check_files()


FAILED_FSYNC = Fault("fsync", LOG_WAL, EIO, times=1)


@pytest.mark.parametrize(
    "faults",
    [
        *([Fault(call, LOG_WAL, error)] for call in ("write", "fsync") for error in ERRORS),
        *([Fault(call, PROJECTION_WAL, error)] for call in ("write",) for error in ERRORS),
        # The log's fsync failed once, and then it is the reopening that fails.
        *(
            [FAILED_FSYNC, Fault(call, path, error)]
            for call, path, error in (
                ("create", LOG_WAL, ENOSPC),
                ("write", LOG, ENOSPC),
                ("fsync", LOG, EIO),
                ("truncate", LOG_WAL, EIO),
                ("create", PROJECTION_WAL, EIO),
            )
        ),
    ],
    ids=lambda faults: "-then-".join(map(str, faults)),
)
def test_while_it_fails_callers_are_told_and_reads_go_on(service: Service, faults: list[Fault]) -> None:
    hits = len(service.disk.hits())
    with service.disk.failing(*faults):
        [unknown] = service.begin(service.update)
        until(lambda: len(service.disk.hits()) - hits >= len(faults))
        until(lambda: not service.is_healthy())
        service.check_reads()
        attempts = [service.attempt(ask) for ask in (service.update, service.create, service.upload())]
        for attempt in attempts:
            assert attempt.refusal is not None
            assert attempt.refusal.reason == "LOG_REOPENING"
        assert not unknown.done()
    attempts.append(unknown.result())
    # It was the log that had it, or had not.
    assert (attempts[-1].refusal is None) == (faults[0].path == PROJECTION_WAL)
    until(service.is_healthy)
    service.check_files()
    service.again(attempts)
    service.check_reads()
    service.check_files()


def test_a_reopening_that_could_only_read_is_no_reopening(service: Service) -> None:
    """SQLite opens for reading what it cannot open for writing, and says nothing.

    It is the second opening of that file that fails, the one for writing.
    """
    hits = len(service.disk.hits())
    with service.disk.failing(FAILED_FSYNC, Fault("create", PROJECTION_WAL, EIO, skip=1, times=1)):
        attempt = service.attempt(service.update)
    assert len(service.disk.hits()) == hits + 2
    service.again([attempt])
    service.check_files()


def test_a_moment_that_must_be_closed_first_is_refused_and_answered_later(service: Service) -> None:
    """As of a time after the newest event is a read, and yet a write of the log."""
    moment = as_of(format_time(time.time_ns()))
    with service.disk.failing(Fault("fsync", LOG_WAL, EIO, times=1)):
        refusal = refused(lambda: service.api.get(service.known.id, moment))
    assert (refusal.code, refusal.reason) == (Code.UNAVAILABLE, "LOG_REOPENED")
    assert service.api.get(service.changing, moment).description
    before = service.api.get(service.changing, moment)
    done(service.attempt(service.update))
    assert service.api.get(service.changing, moment) == before
    service.check_files()


# Many make more than SQLite keeps in memory, so that the log's file is written to before the COMMIT.
LARGE = {f"k{number}": "v" * 60 for number in range(64)}
CHANNELS, CALLS = 6, 64
ROUNDS_MAX = 5


def test_a_batch_that_fails_before_its_commit_left_nothing(service: Service) -> None:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(service.connected_apart()) for _ in range(CHANNELS)]
        for _ in range(ROUNDS_MAX):
            attempts = ask_together(service, clients)
            refusals = [attempt.refusal for attempt in attempts if attempt.refusal is not None]
            # Not so if the calls came too slowly to make one batch.
            if any("was refused and left nothing" in refusal.message for refusal in refusals):
                break
        else:
            raise AssertionError("no batch failed before its commit")
        assert "DISK_FULL" in {refusal.reason for refusal in refusals}
        service.check_files()
        service.again([attempt for attempt in attempts if attempt.refusal is not None][:3])
    service.check_files()


def ask_together(service: Service, clients: list[Api]) -> list[Attempt]:
    """What became of many large writes: the writer is held up until they wait, and then the disk is full."""
    path = ProjectionFiles(service.data).current()
    assert path is not None
    with contextlib.closing(database.connect(path, access="write", synchronous="OFF")) as holder:
        holder.execute("BEGIN IMMEDIATE")
        [first] = service.begin(service.update)
        futures = [one for client in clients for one in service.begin(*[large(service, client)] * CALLS)]
        # What was sent before it has come in, too.
        for client in clients:
            client.get(service.known.id)
        # The first batch, of one command, writes less than that.
        with service.disk.failing(Fault("write", LOG_WAL, ENOSPC, skip=100, times=1)):
            holder.execute("ROLLBACK")
            attempts = [future.result() for future in (first, *futures)]
    return attempts


def large(service: Service, api: Api) -> Callable[[str], Any]:
    return lambda one: api.create(FOLDER, key(one), disk_id=service.disk_id, labels=LARGE)
