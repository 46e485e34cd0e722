from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import eventstore
from eventstore.errors import LogLocked
from eventstore.lock import LOCK_FILE, DirectoryLock

ROOT = Path(eventstore.__file__).parents[1]

HOLD = """
import sys
from pathlib import Path
from eventstore.lock import DirectoryLock
DirectoryLock(Path(sys.argv[1]), command="holder", since="yesterday").acquire()
print("held", flush=True)
sys.stdin.read()
"""


def lock_of(directory: Path) -> DirectoryLock:
    return DirectoryLock(directory, command="imageledger serve", since="2026-01-01T00:00:00Z")


@contextmanager
def holder(directory: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock until the end of the block, at the latest."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_the_second_process_learns_who_holds_it(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        with pytest.raises(LogLocked) as refused:
            lock_of(tmp_path).acquire()
        assert refused.value.path == tmp_path / LOCK_FILE
        assert refused.value.holder == f"pid {process.pid}, holder, since yesterday"


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        with lock_of(tmp_path):
            pass


def test_the_same_process_may_not_hold_it_twice(tmp_path: Path) -> None:
    with lock_of(tmp_path) as lock:
        with pytest.raises(LogLocked, match=f"pid {os.getpid()}, imageledger serve, since 2026"):
            lock_of(tmp_path).acquire()
        with pytest.raises(AssertionError):
            lock.acquire()
    with lock_of(tmp_path):
        pass


def test_closing_another_descriptor_of_the_file_releases_nothing(tmp_path: Path) -> None:
    with lock_of(tmp_path):
        (tmp_path / LOCK_FILE).read_bytes()
        with pytest.raises(LogLocked):
            lock_of(tmp_path).acquire()


def test_releasing_twice_is_harmless(tmp_path: Path) -> None:
    lock = lock_of(tmp_path)
    lock.acquire()
    lock.release()
    lock.release()
    assert (tmp_path / LOCK_FILE).read_bytes() == b""


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent"):
        lock_of(tmp_path / "absent").acquire()
