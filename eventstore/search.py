"""Finding events by what they say, a stretch of the log at a time.

No stretch looks at more than a window of events, so whoever asks can stop between two of them. By stream,
operation and resource there is an index; by type or actor alone the log is scanned, in SQLite, which decodes
nothing on its way: every append would have to pay for an index that few questions need.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import msgpack

from eventstore.errors import EnvelopeTooNew, LogCorrupt
from eventstore.event import Event
from eventstore.reader import LogReader, event_of_row, wrong_index

WINDOW_EVENTS: Final = 20_000


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which events: those that meet everything that is given."""

    stream: str | None = None
    resource_id: str | None = None
    operation_id: str | None = None
    actor: str | None = None
    type: str | None = None

    def admits(self, event: Event) -> bool:
        return (
            (self.stream is None or event.stream == self.stream)
            and (self.resource_id is None or event.resource_id == self.resource_id)
            and (self.operation_id is None or event.operation_id == self.operation_id)
            and (self.actor is None or event.actor == self.actor)
            and (self.type is None or event.type == self.type)
        )


EVERYTHING: Final = Wanted()


class Record(NamedTuple):
    """The canonical bytes at a position, and the event; None where newer software wrote the envelope."""

    position: int
    body: bytes
    event: Event | None


class Stretch(NamedTuple):
    """Wanted events in order, and the position up to which no other one is wanted."""

    records: list[Record]
    reached: int


class LogSearch(LogReader):
    """A reader that finds events, and shows also those that only newer software can read."""

    def stretch(self, wanted: Wanted, *, after: int, until: int, limit: int) -> Stretch:
        """At most `limit` wanted events from after + 1 on, and how far that leads; until <= head.

        Each is checked to be wanted, and a plain stretch to be without gaps. An event that a damaged index or
        column does not name is left out unnoticed: only a walk through all events finds that.
        """
        way, values = self._bounds(wanted, after, until)
        end = self._window_end(way, values)
        narrowed = values | {
            "until": end,
            "limit": limit,
            "type": wanted.type,
            "actor": _needle(wanted.actor),
        }
        found = self._rows(_STRETCH[way].format(narrowing=_narrowing(wanted)), narrowed)
        records = [_record(*row) for row in found]
        if wanted == EVERYTHING:
            _check_gaps(records, after, end, limit)
        reached = records[-1].position if len(records) == limit else end
        return Stretch([record for record in records if _admitted(record, wanted, way)], reached)

    def newest(self) -> int:
        """The last position, whatever software wrote the event there; 0 in an empty log."""
        return self._head()

    def newest_of_resource(self, resource_id: str, *, after: int, until: int, limit: int) -> list[Event]:
        """The last `limit` events of one resource from after + 1 to until, the newest first."""
        values = {"resource_id": resource_id, "after": after, "until": until, "limit": limit}
        events = self._events(_NEWEST_OF_RESOURCE, values)
        for event in events:
            if event.resource_id != resource_id:
                raise wrong_index(event.position, "resource_id", resource_id, event.resource_id)
        return events

    def resources(self, *, stream: str | None = None, after: int, until: int) -> tuple[set[str], int]:
        """The ids of resources with events from after + 1 on, of a stream where it is named, and how far
        that leads.

        They are what the columns say, unchecked: an id too many is one more to look at.
        """
        way, values = self._bounds(Wanted(stream=stream), after, until)
        values["until"] = self._window_end(way, values)
        return {str(row[0]) for row in self._rows(_RESOURCES[way], values)}, values["until"]

    def positions_of_stream(self, stream: str, *, after: int, until: int, limit: int) -> list[int]:
        """Of the first `limit` events of a stream from after + 1 to until, as the index has them."""
        _, values = self._bounds(Wanted(stream=stream), after, until)
        return [int(row[0]) for row in self._rows(_POSITIONS_OF_STREAM, values | {"limit": limit})]

    def _bounds(self, wanted: Wanted, after: int, until: int) -> tuple[str, dict[str, Any]]:
        """By which index to go, and where it begins and ends."""
        values: dict[str, Any] = {"after": after, "until": until, "window": WINDOW_EVENTS - 1}
        if wanted.operation_id is not None:
            return "operation", values | {"operation_id": wanted.operation_id}
        if wanted.resource_id is not None:
            return "resource", values | {"resource_id": wanted.resource_id}
        if wanted.stream is None:
            return "position", values
        newest = self._value(_NEWEST_VERSION, {"stream": wanted.stream})
        first = self._version_before(wanted.stream, after, newest)
        last = self._version_before(wanted.stream, until, newest)
        return "stream", values | {"stream": wanted.stream, "first": first, "last": last}

    def _version_before(self, stream: str, position: int, newest: int) -> int:
        """The last version of a stream at or before a position, as the index has it.

        What it leads to is checked. An event that only newer software can read is no obstacle, as it is to
        `_version_at`.
        """
        return bisect_right(
            range(1, newest + 1), position, key=lambda version: self._position_of_version(stream, version)
        )

    def _window_end(self, way: str, values: dict[str, Any]) -> int:
        if way == "position":
            return min(int(values["until"]), int(values["after"]) + WINDOW_EVENTS)
        rows = self._rows(_WINDOW[way], values)
        return int(rows[0][0]) if rows else int(values["until"])


def _narrowing(wanted: Wanted) -> str:
    terms = [_OF_TYPE] if wanted.type is not None else []
    return "".join(terms + ([_OF_ACTOR] if wanted.actor is not None else []))


def _needle(actor: str | None) -> bytes | None:
    """The bytes of an actor with its key, which no event of theirs lacks; others may hold them in a text."""
    if actor is None:
        return None
    packed: bytes = msgpack.packb("actor") + msgpack.packb(actor)
    return packed


def _record(position: int, body: object, leaf: object) -> Record:
    try:
        event = event_of_row(position, body, leaf)
    except EnvelopeTooNew:
        event = None
    # The leaf hash of anything but bytes is wrong.
    return Record(position, body if isinstance(body, bytes) else b"", event)


def _admitted(record: Record, wanted: Wanted, way: str) -> bool:
    """Whether a record is wanted: what a column led to and an event does not say is damage.

    Of an event that only newer software can read, the columns are all there is to go by.
    """
    event = record.event
    if event is None:
        return True
    columns = {"type": wanted.type}
    if way in ("operation", "resource"):
        columns[f"{way}_id"] = getattr(wanted, f"{way}_id")
    elif way == "stream":
        columns["stream"] = wanted.stream
    for column, value in columns.items():
        said = getattr(event, column)
        if value is not None and said != value:
            raise wrong_index(record.position, column, value, said)
    return wanted.admits(event)


def _check_gaps(records: list[Record], after: int, end: int, limit: int) -> None:
    for expected, record in enumerate(records, after + 1):
        if record.position != expected:
            raise LogCorrupt(expected, f"the position is missing, the next one is {record.position}")
    last = after + len(records)
    if len(records) < limit and last < end:
        raise LogCorrupt(last + 1, "the position is missing, and it is not after the head")


_BETWEEN: Final = "position > :after AND position <= :until"

# Each way to go: the index, which is named since other ways tempt SQLite, the conditions, and the order of
# the index, which is that of positions, too.
_WAYS: Final = {
    "operation": (
        "INDEXED BY event_by_operation",
        f"operation_id = :operation_id AND {_BETWEEN}",
        "position",
    ),
    "resource": ("INDEXED BY event_by_resource", f"resource_id = :resource_id AND {_BETWEEN}", "position"),
    "position": ("NOT INDEXED", _BETWEEN, "position"),
    "stream": (
        "INDEXED BY event_by_stream",
        f"stream = :stream AND version > :first AND version <= :last AND {_BETWEEN}",
        "version",
    ),
}

_OF_TYPE: Final = "\n    AND type = :type"

_OF_ACTOR: Final = "\n    AND instr(body, :actor) > 0"

_STRETCH: Final = {
    way: f"""
SELECT
    position,
    body,
    substr(hashes, 1, 32)
FROM event {index}
WHERE {condition}{{narrowing}}
ORDER BY {order}
LIMIT :limit
"""
    for way, (index, condition, order) in _WAYS.items()
}

# An index alone is read for it.
_WINDOW: Final = {
    way: f"""
SELECT position
FROM event {index}
WHERE {condition}
ORDER BY {order}
LIMIT 1 OFFSET :window
"""
    for way, (index, condition, order) in _WAYS.items()
}

_RESOURCES: Final = {
    way: f"""
SELECT DISTINCT resource_id
FROM event {index}
WHERE {condition}
    AND resource_id IS NOT NULL
"""
    for way, (index, condition, _) in _WAYS.items()
}

_NEWEST_OF_RESOURCE: Final = """
SELECT
    position,
    body,
    substr(hashes, 1, 32)
FROM event
WHERE resource_id = :resource_id
    AND position > :after
    AND position <= :until
ORDER BY position DESC
LIMIT :limit
"""

_NEWEST_VERSION: Final = "SELECT coalesce(max(version), 0) FROM event WHERE stream = :stream"

_POSITIONS_OF_STREAM: Final = """
SELECT position
FROM event
WHERE stream = :stream
    AND version > :first
    AND version <= :last
ORDER BY version
LIMIT :limit
"""
