from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from eventstore.event import Event, Position, Version
from eventstore.log import EventLog, new_log_id

LOG_ID = new_log_id(bytes(range(16)))


def build_event(
    position: int, *, version: int | None = None, at: int | None = None, **fields: object
) -> Event:
    """An event of stream s, after a LogCreated: version and stamp follow from the position."""
    event = Event(
        position=Position(position),
        stream="s",
        version=Version(position - 1 if version is None else version),
        type="Said",
        schema=1,
        at=position * 10 if at is None else at,
        operation_id=f"op{position}",
        resource_id=f"r{position % 3}",
        actor="someone",
        auth="dev",
        request_id=None,
        method=None,
        key=None,
        request=None,
        reason=None,
        data={"text": f"word {position}"},
    )
    return event._replace(**fields)


@pytest.fixture
def make_event() -> Callable[..., Event]:
    return build_event


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.db"


@pytest.fixture
def log(path: Path) -> Iterator[EventLog]:
    """A log that holds LogCreated, stamped 1."""
    with EventLog.open(path) as log:
        log.create_if_empty(log_id=LOG_ID, at=1)
        yield log


@pytest.fixture
def log_of_ten(log: EventLog) -> EventLog:
    """A log with positions 1 to 10, position p > 1 stamped 10 p."""
    for position in range(2, 11):
        log.append([build_event(position)], expected_head=Position(position - 1))
    return log
