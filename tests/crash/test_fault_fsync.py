"""After an fsync of the log has failed, nothing rests on what it left behind, also if the power goes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from eventstore.event import Event
from eventstore.log import EventLog
from eventstore.reader import LogReader
from tests.conformance.sites import until
from tests.crash.faults import Service, check_attempts, check_log, done
from tests.failing_disk import EIO, Fault, Followed, compiled

LOG, LOG_WAL = "*/data/log.db", "*/data/log.db-wal"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    root = tmp_path_factory.mktemp("fsync")
    with Service(root / "data", root, compiled(root)) as service:
        yield service
        service.check_end()


def followed(service: Service) -> Followed:
    return service.disk.follow(service.data / "log.db", service.data / "log.db-wal")


def after_a_power_cut(files: Followed, folder: Path, *, is_lost: bool) -> list[Event]:
    """The events that are there when the power goes now, and comes back."""
    for path, content in files.after_a_power_cut(is_lost=is_lost).items():
        (folder / Path(path).name).write_bytes(content)
    with EventLog.open(folder / "log.db") as log:
        return check_log(log)


def check_any_end(service: Service, files: Followed, folder: Path) -> None:
    """What was acknowledged is there, and what was refused is not: after a kill, and after a power cut."""
    service.check_files()
    for is_lost in (True, False):
        check_attempts(after_a_power_cut(files, folder, is_lost=is_lost), service.attempts)


@pytest.mark.parametrize("when", ["before", "after"])
def test_what_is_acknowledged_later_does_not_stand_on_a_hole(
    service: Service, tmp_path: Path, when: str
) -> None:
    """One commit fails, or seems to; those that follow are durable, and it is not there."""
    files = followed(service)
    done(service.attempt(service.update))
    with service.disk.failing(Fault("fsync", LOG_WAL, EIO, when, times=1)):
        assert service.attempt(service.create).refusal is not None
    check_any_end(service, files, tmp_path)
    for _ in range(3):
        done(service.attempt(service.update))
    check_any_end(service, files, tmp_path)


def test_what_a_restart_serves_is_durable(service: Service, tmp_path: Path) -> None:
    """Killed after the failed fsync, before it could be mended: recovery takes the commit for a good one."""
    files = followed(service)
    done(service.attempt(service.update))
    hits = len(service.disk.hits())
    with service.disk.failing(Fault("fsync", LOG_WAL, EIO)):
        [unknown] = service.begin(service.create)
        until(lambda: len(service.disk.hits()) - hits > 1)
        service.kill()
    attempt = unknown.result()
    service.start()
    with LogReader.open(service.data / "log.db") as log:
        served = list(log.events())
    # Otherwise there would be nothing to lose.
    assert attempt.key in [event.key for event in served]
    done(service.attempt(service.update))
    assert after_a_power_cut(files, tmp_path, is_lost=True)[: len(served)] == served
    check_any_end(service, files, tmp_path)


UPDATES = 250  # Four frames and more each: the thousandth calls for a checkpoint.


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_checkpoint_that_fails_fails_no_write_and_loses_none(
    service: Service, tmp_path: Path, call: str
) -> None:
    files = followed(service)
    hits = len(service.disk.hits())
    with service.disk.failing(Fault(call, LOG, EIO)):
        for _ in range(UPDATES):
            done(service.attempt(service.update))
    assert len(service.disk.hits()) > hits
    check_any_end(service, files, tmp_path)
    assert "the write-ahead log grows" in service.server.stderr()
