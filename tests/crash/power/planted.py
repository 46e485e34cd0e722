"""`imageledger` as it is recorded: with checkpoints after few pages, and changed in one way, if one is named.

`python -m tests.crash.power.planted serve …`, with the name of a fault, or OLDER, in the environment.
"""

from __future__ import annotations

import os
import stat
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from eventstore import database
from eventstore import log as log_module
from eventstore.log import EventLog
from server.writer import Writer

CHANGE: Final = "IMAGELEDGER_TEST_CHANGE"
OLDER: Final = "older"
# So few that a short load sees several of them, and that a state is small and quickly checked.
CHECKPOINT_FRAMES: Final = 100


def check_often() -> None:
    """Move both write-ahead logs into their databases every hundred pages."""
    log_module.CHECKPOINT_FRAMES = CHECKPOINT_FRAMES  # type: ignore[misc]
    connect = database.connect

    def connect_and_set(path: Any, **options: Any) -> database.Connection:
        connection = connect(path, **options)
        if path.name != "log.db" and options["access"] == "write":
            connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_FRAMES}")
        return connection

    database.connect = connect_and_set


def older() -> None:
    """Software before this one: its projections are of another version."""
    import tools.cli  # noqa: F401  # So that every module is there.

    for module in list(sys.modules.values()):
        if hasattr(module, "PROJECTOR_VERSION"):
            vars(module)["PROJECTOR_VERSION"] -= 1


def no_blob_fsync() -> None:
    _skip_fsync(lambda path, mode: stat.S_ISREG(mode) and "/blobs/" in path)


def no_folder_fsync() -> None:
    _skip_fsync(lambda path, mode: stat.S_ISDIR(mode))


def no_blob_folder_fsync() -> None:
    _skip_fsync(lambda path, mode: stat.S_ISDIR(mode) and "/blobs" in path)


def no_fsync_above_the_data() -> None:
    _skip_fsync(lambda path, mode: stat.S_ISDIR(mode) and "/imageledger" not in path)


def current_not_synced() -> None:
    _skip_fsync(lambda path, mode: path.endswith("/CURRENT.new"))


def revocation_not_synced() -> None:
    _skip_fsync(lambda path, mode: path.endswith("/tokens.revoked"))


def log_normal() -> None:
    _synchronous("NORMAL", lambda name: name == "log.db")


def projection_off() -> None:
    _synchronous("OFF", lambda name: name != "log.db")


def time_not_closed() -> None:
    """The writer knows that a time is closed, and the log does not."""

    def close_nothing(self: EventLog, at: int) -> None:
        pass

    EventLog.close_time = close_nothing  # type: ignore[method-assign]


def _synchronous(how: database.Synchronous, is_meant: Callable[[str], bool]) -> None:
    connect = database.connect

    def connect_so(path: Any, **options: Any) -> database.Connection:
        if is_meant(path.name):
            options["synchronous"] = how
        return connect(path, **options)

    database.connect = connect_so


def acknowledged_early() -> None:
    """The writer answers its callers while the log's transaction is open, and commits it then."""
    commit, answer = EventLog._commit, Writer._answer

    def commit_later(self: EventLog, connection: database.Connection) -> None:
        if threading.current_thread().name != "writer":
            commit(self, connection)

    def answer_and_commit(self: Writer, batch: Sequence[Any]) -> None:
        answer(self, batch)
        connection = self._log._open_connection()
        if connection.in_transaction:
            database.commit(connection)

    EventLog._commit = commit_later  # type: ignore[method-assign]
    Writer._answer = answer_and_commit  # type: ignore[method-assign]


def _skip_fsync(is_skipped: Callable[[str, int], bool]) -> None:
    """os.fsync does nothing on some files; SQLite's own calls do not come here."""
    fsync = os.fsync

    def fsync_others(descriptor: Any) -> None:
        path = str(Path(f"/proc/self/fd/{descriptor}").readlink())
        if not is_skipped(path, os.fstat(descriptor).st_mode):
            fsync(descriptor)

    os.fsync = fsync_others  # type: ignore[assignment]


FAULTS: Final[dict[str, Callable[[], None]]] = {
    "no blob fsync": no_blob_fsync,
    "no folder fsync": no_folder_fsync,
    "no fsync of blobs' folders": no_blob_folder_fsync,
    "no fsync above the data directory": no_fsync_above_the_data,
    "log at synchronous=NORMAL": log_normal,
    "acknowledged before the commit": acknowledged_early,
    "CURRENT renamed without fsync": current_not_synced,
    "projection at synchronous=OFF": projection_off,
    "revocation without fsync": revocation_not_synced,
    "time closed in memory alone": time_not_closed,
}


def main() -> None:
    check_often()
    if name := os.environ.get(CHANGE):
        {**FAULTS, OLDER: older}[name]()
    from tools.cli import main as run

    run()


if __name__ == "__main__":
    main()
