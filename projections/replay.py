"""The log folded in memory: what changed at each event, and the state that the events lead to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from eventstore.event import Event
from eventstore.reader import LogReader
from eventstore.upcast import upcast

from .domain.evolve import Change, MemoryState
from .domain.upcasters import UPCASTERS

CHUNK_EVENTS = 1000


def events_until(log: LogReader, *, until: int, resource_id: str | None = None) -> Iterator[Event]:
    """The events up to a position; those of one resource alone, read through its index, where it is named."""
    if resource_id is None:
        yield from log.events(until=until, chunk=CHUNK_EVENTS)
        return
    after = 0
    while True:
        events = log.events_of_resource(resource_id, after=after, until=until, limit=CHUNK_EVENTS)
        yield from events
        if len(events) < CHUNK_EVENTS:
            return
        after = events[-1].position


def changed(events: Iterable[Event]) -> Iterator[tuple[Event, Change]]:
    """Each event as it is stored, and what it did to its resource.

    The events must be complete from the first on, at least those of each resource. What is kept in memory is
    what is there at the time. Raises EventUnknown, SchemaTooNew.
    """
    return _folded(MemoryState(), events)


def state_after(events: Iterable[Event]) -> MemoryState:
    """The state that these events lead to, without operations that are done. Raises as `changed` does."""
    state = MemoryState()
    for _ in _folded(state, events):
        pass
    return state


def _folded(state: MemoryState, events: Iterable[Event]) -> Iterator[tuple[Event, Change]]:
    for event in events:
        change = state.apply(upcast(event, UPCASTERS))
        _forget_if_done(state, event.operation_id)
        yield event, change


def _forget_if_done(state: MemoryState, operation_id: str | None) -> None:
    """A finished operation gets no more events, and there are as many of them as there were writes."""
    operation = None if operation_id is None else state.operation(operation_id)
    if operation is not None and operation["done"]:
        state.forget(operation["id"])
