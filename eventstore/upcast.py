"""The mechanism that lifts data of old schemas when it is read. What is stored is never rewritten."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from eventstore.errors import SchemaTooNew
from eventstore.event import Data, Event

Upcaster: TypeAlias = Callable[[Data], Data]

# The step at (type, schema) lifts data to schema + 1. A type without steps has schema 1 only.
Upcasters: TypeAlias = Mapping[tuple[str, int], Upcaster]


def newest_schema(type: str, upcasters: Upcasters) -> int:
    """The schema to which the data of a type is lifted."""
    schema = 1
    while (type, schema) in upcasters:
        schema += 1
    return schema


def upcast(event: Event, upcasters: Upcasters) -> Event:
    """The event with its data lifted to the newest schema; the same event where it is there already.

    Raises SchemaTooNew for a schema that no step leads from.
    """
    schema = event.schema
    step = upcasters.get((event.type, schema))
    if step is None:
        if schema != 1 and schema > (supported := newest_schema(event.type, upcasters)):
            raise SchemaTooNew(event.type, schema, supported, event.position)
        return event
    data = event.data
    while step is not None:
        data = step(data)
        schema += 1
        step = upcasters.get((event.type, schema))
    return event._replace(schema=schema, data=data)
