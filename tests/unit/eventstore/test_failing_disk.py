"""The log on a disk whose fsync or write fails, by a library put in front of the C library's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import eventstore
from eventstore.event import Position
from eventstore.log import EventLog
from eventstore.reader import LogReader
from tests.failing_disk import FailingDisk, compiled

ROOT = Path(eventstore.__file__).parents[1]

PRELUDE = """
import logging, os, signal, sys
from pathlib import Path
from eventstore.errors import OutcomeUnknown
from eventstore.event import Position, Version
from eventstore.log import EventLog
from eventstore.reader import LogReader

path, rules = Path(sys.argv[1]), Path(os.environ["FAILING_DISK"], "rules")
log = EventLog.open(path)
last = log.event(Position(10))

def append(position):
    event = last._replace(position=position, version=Version(position - 1), at=position * 10)
    log.append([event._replace(operation_id=f"op{position}")], expected_head=Position(position - 1))

def expect_unknown(function, *arguments):
    try:
        function(*arguments)
    except OutcomeUnknown:
        return
    raise AssertionError("no OutcomeUnknown")
"""

# Another connection of the process, as every server has one, keeps the index in shared memory, in which a
# commit that failed is not; a sole connection recovers from the file when it reopens.
FAILED_FSYNC = """
if sys.argv[2] == "beside a reader":
    reader = LogReader.open(path)
    reader.head()
append(11)
rules.write_text("1 fsync 5 before 0 -1 */log.db-wal")
expect_unknown(append, 12)
if sys.argv[3] == "for longer":
    expect_unknown(log.reopen)
    expect_unknown(log.head)
rules.unlink()
log.reopen()
print(log.head(), *(event.position for event in log.events_of_operation("op12")), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""

FAILED_CHECKPOINT = """
logging.basicConfig(format="%(message)s", stream=sys.stdout)
rules.write_text("1 write 5 before 0 -1 */log.db")
for position in range(11, 1111):
    append(position)
rules.unlink()
for position in range(1111, 1611):
    append(position)
print("head", log.head(), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="session")
def failing_disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library, compiled."""
    return compiled(tmp_path_factory.mktemp("failing_disk"))


def run(library: Path, folder: Path, script: str, *arguments: object) -> list[str]:
    """The lines that a script prints before it kills itself."""
    disk = FailingDisk(library, folder / "faults")
    child = subprocess.run(
        [sys.executable, "-c", PRELUDE + script, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **disk.environment},
        check=False,
    )
    assert child.returncode == -9, child.stderr
    return child.stdout.splitlines()


@pytest.mark.parametrize("fails", ["once", "for longer"])
@pytest.mark.parametrize("company", ["alone", "beside a reader"])
def test_what_is_read_after_reopening_is_what_a_crash_leaves(
    failing_disk: Path, log_of_ten: EventLog, path: Path, company: str, fails: str
) -> None:
    log_of_ten.close()
    (told,) = run(failing_disk, path.parent, FAILED_FSYNC, path, company, fails)
    with EventLog.open(path) as log:
        found = [int(log.head()), *(int(event.position) for event in log.events_of_operation("op12"))]
    assert [int(word) for word in told.split()] == found
    assert found[0] in (11, 12)


def test_a_database_that_cannot_be_written_is_told_of_once(
    failing_disk: Path, log_of_ten: EventLog, path: Path
) -> None:
    log_of_ten.close()
    warned, head = run(failing_disk, path.parent, FAILED_CHECKPOINT, path)
    assert "write-ahead log grows" in warned
    assert head == "head 1610"
    with LogReader.open(path) as log:
        assert [event.position for event in log.events()] == list(range(1, 1611))
        assert log.head() == Position(1610)
