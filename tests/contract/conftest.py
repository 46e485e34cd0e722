"""The engines that the contract suite runs on. Another engine is another class and a line in ENGINES."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from eventstore.log import EventLog
from eventstore.reader import LogReader


class SqliteEngine:
    """Opens one log, as often as asked; everything still open is closed by `close`."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "log.db"
        self._opened: list[LogReader] = []

    def writer(self) -> EventLog:
        log = EventLog.open(self._path)
        self._opened.append(log)
        return log

    def reader(self) -> LogReader:
        reader = LogReader.open(self._path)
        self._opened.append(reader)
        return reader

    def close(self) -> None:
        for opened in self._opened:
            opened.close()


ENGINES = [pytest.param(SqliteEngine, id="sqlite")]


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SqliteEngine]:
    engine = request.param(tmp_path)
    yield engine
    engine.close()
