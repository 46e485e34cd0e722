"""One process at a time writes: an OS lock on a file of its own in the data directory."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from eventstore.errors import LogLocked

LOCK_FILE: Final = "lock"
_HOLDER_SIZE_MAX_BYTES: Final = 1024


@contextmanager
def no_writer(directory: Path) -> Iterator[None]:
    """While it lasts, nobody takes the lock of a directory that is only read. Raises LogLocked.

    A directory without the lock's file has never been written in, or is a copy that left it out; one in a
    folder that cannot be written is locked all the same.
    """
    try:
        descriptor = os.open(directory / LOCK_FILE, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        holder = os.pread(descriptor, _HOLDER_SIZE_MAX_BYTES, 0).decode(errors="replace")
        raise LogLocked(directory / LOCK_FILE, holder or "another process that has just started") from error
    finally:
        os.close(descriptor)


class DirectoryLock:
    """The right to write in a data directory, from `acquire` (or `with`) to `release`.

    flock and not a POSIX record lock: that one would drop when this process closes any descriptor of the
    file. The kernel releases it when the process dies, however it dies. A forked child shares it; a program
    that this process starts does not.
    """

    def __init__(self, directory: Path, *, command: str, since: str) -> None:
        """`command` and `since` are what a second process is told about the holder."""
        self.path = directory / LOCK_FILE
        self._holder = f"pid {os.getpid()}, {command}, since {since}"
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Takes the lock without waiting. Raises LogLocked, which says who holds it."""
        if self._descriptor is not None:
            raise AssertionError("this lock is held by this object already")
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, self._holder.encode(), 0)
        except BlockingIOError as error:
            holder = os.pread(descriptor, _HOLDER_SIZE_MAX_BYTES, 0).decode(errors="replace")
            os.close(descriptor)
            raise LogLocked(self.path, holder or "another process that has just started") from error
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor

    def release(self) -> None:
        """Gives the lock back. The file stays: without it two processes could lock two files of one name."""
        if self._descriptor is None:
            return
        os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)
        self._descriptor = None

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
