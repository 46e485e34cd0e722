"""A walk along a log: what each event did, and where an image or one of its fields changes next.

Everything is read from the log alone: the events of one resource, found by its index and folded, so that a
step costs as much as its resource has events before it.
"""

from __future__ import annotations

from dataclasses import dataclass

from eventstore.event import Event, Position
from eventstore.reader import LogReader

from .changes import Change, changes
from .domain.command import Image, Source
from .replay import changed, events_until

Found = tuple[str, list[Change]]  # A resource's id, and the fields in which it differs.


@dataclass(frozen=True, slots=True)
class Subject:
    """What a search looks for: a resource, and one field of it or, without one, any."""

    resource_id: str
    field: str | None = None


class Walk:
    """A place in the log up to `last`; position 0 is before the first event."""

    def __init__(self, log: LogReader, *, first: Position, last: Position) -> None:
        self._log = log
        self.last = last
        self.position = first

    def move(self, by: int) -> bool:
        """One step on or back. False at an end, where it stays."""
        return self.go(Position(self.position + by))

    def go(self, position: Position) -> bool:
        """To a position, unless it is not in the log up to `last`."""
        if not 0 <= position <= self.last:
            return False
        self.position = position
        return True

    def event(self) -> Event | None:
        """The event here; None before the first."""
        return self._log.event(self.position) if self.position else None

    def changes(self) -> list[Change]:
        """What the event here changed. Raises EventUnknown, SchemaTooNew."""
        event = self.event()
        if event is None or event.resource_id is None:
            return []
        return self._history(event.resource_id, until=self.position)[-1][1]

    def seek(self, subject: Subject, *, onward: bool) -> bool:
        """To the next (or previous) event that changed the subject. False where there is none: it stays.

        Raises EventUnknown, SchemaTooNew.
        """
        until = self.last if onward else Position(self.position - 1)
        places = [
            position
            for position, found in self._history(subject.resource_id, until=until)
            if subject.field is None or subject.field in {change.field for change in found}
        ]
        if onward:
            places = [place for place in places if place > self.position]
        return bool(places) and self.go(places[0] if onward else places[-1])

    def resource(self, resource_id: str, *, at: int) -> Image | Source | None:
        """The image or source as of a position. Raises EventUnknown, SchemaTooNew."""
        state = None
        for _, change in changed(events_until(self._log, until=at, resource_id=resource_id)):
            state = change.after
        return state

    def difference(self, other: int) -> list[Found]:
        """What differs between another position and this one: the earlier is before, the later after.

        Raises EventUnknown, SchemaTooNew.
        """
        before, after = sorted((other, self.position))
        touched = {
            event.resource_id
            for event in self._log.events(after=before, until=after)
            if event.resource_id is not None
        }
        found = (
            (one, changes(self.resource(one, at=before), self.resource(one, at=after)))
            for one in sorted(touched)
        )
        return [(one, differing) for one, differing in found if differing]

    def _history(self, resource_id: str, *, until: Position) -> list[tuple[Position, list[Change]]]:
        events = events_until(self._log, until=until, resource_id=resource_id)
        return [(event.position, changes(change.before, change.after)) for event, change in changed(events)]
