"""`imageledger` with faults that a crash test must notice: python planted.py FAULT[,FAULT] serve …"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from eventstore.event import Position
from eventstore.log import EventLog
from eventstore.reader import LogReader
from projections.projector import Projector
from projections.queries import Queries
from server.answers import Answers
from server.importer import Importer
from server.moments import Moments
from server.reaper import Reaper
from server.writer import Writer
from tools.cli import main

UNWRITTEN_S = 0.02
SLOW_DISK_S = 0.02
UNTOLD_S = 0.02
CLOCK_BEHIND_NS = 30_000_000_000


def acknowledge_first() -> None:
    """The writer answers, and only then appends."""
    deciding: list[Any] = []
    decide, append = Writer._decide, EventLog.append

    def decided(self: Writer, entries: Any, stamp: int) -> Any:
        deciding[:] = [(self, entries)]
        return decide(self, entries, stamp)

    def appended(self: EventLog, events: Any, *, expected_head: Any) -> None:
        for writer, entries in deciding:
            writer._answer(entries)
            time.sleep(UNWRITTEN_S)
        append(self, events, expected_head=expected_head)

    Writer._decide, EventLog.append = decided, appended  # type: ignore[method-assign]


def forget_keys() -> None:
    """A command that is asked again is done again."""
    Projector.operation_keyed = lambda self, **asked: None  # type: ignore[method-assign]


def slow_answer() -> None:
    """No fault: what is written already is told only after a while."""
    answer = Writer._answer

    def answered(self: Writer, batch: Any) -> None:
        time.sleep(UNTOLD_S)
        answer(self, batch)

    Writer._answer = answered  # type: ignore[method-assign]


def resume_nothing() -> None:
    """Imports that a crash came between stay as they are."""
    Importer.resume = lambda self, queries: None  # type: ignore[method-assign]


def sweep_nothing() -> None:
    """What a crash left in the blob store is not looked at."""
    Reaper._sweep = lambda self: []  # type: ignore[method-assign]


def reap_used() -> None:
    """Blobs are removed although images refer to them."""
    Queries.is_blob_used = lambda self, sha256: False  # type: ignore[method-assign]


def keep_answers() -> None:
    """A kept answer is given although a commit has made another one true."""

    def changing(self: Answers, ids: Any) -> None:
        with self._lock:
            self._changes += 1
            self._changing = True

    Answers.changing = changing  # type: ignore[method-assign]


def answer_unsettled() -> None:
    """A time just past is answered at once, and nothing keeps batches from being stamped at or before it."""

    async def at_time(self: Moments, at: int, call: Any) -> int:
        if at > self._clock():
            raise self._in_the_future(str(at))
        return min(self._log.position_at(at), self._queries.applied()[1])

    Moments._at_time = at_time  # type: ignore[method-assign]


def slow_disk() -> None:
    """No fault: every append takes its time."""
    append = EventLog.append

    def appended(self: EventLog, events: Any, *, expected_head: Any) -> None:
        time.sleep(SLOW_DISK_S)
        append(self, events, expected_head=expected_head)

    EventLog.append = appended  # type: ignore[method-assign]


def resolve_early() -> None:
    """A time is taken for the position before the one it names."""
    position_at = LogReader.position_at

    def one_before(self: LogReader, at: int) -> Position:
        return Position(max(1, position_at(self, at) - 1))

    LogReader.position_at = one_before  # type: ignore[method-assign]


def set_clock_back() -> None:
    """No fault: it is half a minute earlier here than where the server was before."""
    time_ns = time.time_ns
    time.time_ns = lambda: time_ns() - CLOCK_BEHIND_NS


def forget_closed() -> None:
    """Up to which time answers were promised is forgotten by a restart."""
    LogReader.closed = lambda self: 0  # type: ignore[method-assign]


FAULTS: dict[str, Callable[[], None]] = {
    plant.__name__: plant
    for plant in (
        acknowledge_first,
        forget_keys,
        slow_answer,
        resume_nothing,
        sweep_nothing,
        reap_used,
        keep_answers,
        answer_unsettled,
        slow_disk,
        resolve_early,
        set_clock_back,
        forget_closed,
    )
}


def program(*faults: Callable[[], None]) -> list[str]:
    """The command that serves with these faults."""
    return [sys.executable, str(Path(__file__)), ",".join(fault.__name__ for fault in faults)]


if __name__ == "__main__":
    for name in sys.argv[1].split(","):
        FAULTS[name]()
    main(sys.argv[2:])
