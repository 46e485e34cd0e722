"""A disk that fails under a start: one line, exit 1, and the next start has everything."""

from __future__ import annotations

from pathlib import Path

import pytest

from eventstore.log import EventLog
from eventstore.reader import LogReader
from tests.conformance.api import Api
from tests.conformance.test_start import serve
from tests.crash.faults import check_log
from tests.failing_disk import EIO, ENOSPC, FailingDisk, Fault, compiled
from tests.harness import serving

# In the order in which a start comes to them: each finds what the one before it has left.
NEW = [
    Fault("write", "*/data/log.db", ENOSPC),
    Fault("fsync", "*/data/log.db-wal", EIO),
    Fault("write", "*/data/projections-*.db", ENOSPC),
    Fault("fsync", "*/data/projections-*.db", EIO),
    Fault("rename", "*/data/CURRENT.new", EIO),
    Fault("fsync", "*/data/blobs", EIO),
    # ServerStarted is the last thing before it listens.
    Fault("fsync", "*/data/log.db-wal", EIO, skip=1, times=1),
]
USED = [
    # SQLite then opens it for reading.
    Fault("create", "*/data/log.db", EIO),
    Fault("create", "*/data/projections-*.db-wal", EIO),
    Fault("write", "*/data/log.db-wal", ENOSPC),
    Fault("fsync", "*/data/log.db-wal", EIO),
]


@pytest.fixture
def disk(tmp_path: Path) -> FailingDisk:
    return FailingDisk(compiled(tmp_path), tmp_path / "faults")


def test_a_first_start_goes_on_where_the_one_before_it_failed(disk: FailingDisk, tmp_path: Path) -> None:
    data = tmp_path / "data"
    for fault in NEW:
        check_fails(data, disk, fault)
    check_serves(data)


def test_no_start_that_fails_costs_anything(disk: FailingDisk, tmp_path: Path) -> None:
    data = tmp_path / "data"
    with serving(data) as server, Api(server.address) as api:
        disk_id = api.disk("folder")
    for fault in USED:
        check_fails(data, disk, fault)
    check_serves(data)
    with LogReader.open(data / "log.db") as log:
        assert disk_id in [event.resource_id for event in log.events()]


def test_a_start_trusts_nothing_that_it_cannot_make_durable(disk: FailingDisk, tmp_path: Path) -> None:
    """A server was killed; what its write-ahead log holds may be on no disk, and the disk fails again."""
    data = tmp_path / "data"
    with serving(data) as server:
        with Api(server.address) as api:
            api.disk("folder")
        server.kill()
    # Only the first look at it fails; nothing that follows would.
    check_fails(data, disk, Fault("fsync", "*/data/log.db-wal", EIO, times=1))
    check_serves(data)


def check_fails(data: Path, disk: FailingDisk, fault: Fault) -> None:
    hits = len(disk.hits())
    with disk.failing(fault):
        told = serve(data, environment=disk.environment)
    assert len(disk.hits()) > hits
    assert (told.code, told.stdout) == (1, ""), fault
    # The server's own log may come before.
    error, remedy = [line for line in told.stderr.splitlines() if " ERROR " not in line]
    code = error.removeprefix("error: ").partition(":")[0]
    assert code in ("UNAVAILABLE", "RESOURCE_EXHAUSTED"), told.stderr
    assert "again" in remedy or "disk" in remedy


def check_serves(data: Path) -> None:
    with serving(data) as server, Api(server.address) as api:
        api.get(api.image("folder", disk_id=api.disk("folder")).id)
    with EventLog.open(data / "log.db") as log:
        check_log(log)
