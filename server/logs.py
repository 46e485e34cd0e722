"""A reader of the log for each thread that asks: one thread at a time may use one."""

from __future__ import annotations

import threading
from pathlib import Path

from eventstore.search import LogSearch


class Logs:
    """Opened where they are first wanted, and closed together."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._local = threading.local()
        self._opened: list[LogSearch] = []

    def get(self) -> LogSearch:
        """This thread's reader. Raises EventStoreError."""
        log: LogSearch | None = getattr(self._local, "log", None)
        if log is None:
            log = self._local.log = LogSearch.open(self._path)
            self._opened.append(log)
        return log

    def close(self) -> None:
        """Needs all threads that asked to be idle for good."""
        for log in self._opened:
            log.close()
