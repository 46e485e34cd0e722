"""Which event gave each field of an image its value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from eventstore.event import Event
from eventstore.search import LogSearch
from eventstore.upcast import upcast

from .changes import IMAGE_FIELDS
from .domain.image import UPDATABLE
from .domain.upcasters import UPCASTERS


class Setter(NamedTuple):
    """The event that set a field."""

    position: int
    at: int
    actor: str
    operation_id: str


Blame = Mapping[str, Setter]


def begun(events: list[Event]) -> Blame:
    """The fields as a creation set them, of the image's first event or its first two.

    What the caller gave is the first one's, the rest the second one's, once that has finished the image.
    """
    started = upcast(events[0], UPCASTERS)
    given: Any = started.data.get("given", [])
    finished = events[-1] if events[-1].type == "ImageCreated" else started
    return {field: _setter(started if field in given else finished) for field in IMAGE_FIELDS}


def updates(
    log: LogSearch, image_id: str, found: dict[str, Setter], *, after: int, until: int, limit: int
) -> int:
    """Adds to `found` the fields that the last events up to `until` set, each by the last one that did.

    It reads `limit` of them backwards, and gives the position to go on from; `after` if that was all.
    """
    events = log.newest_of_resource(image_id, after=after, until=until, limit=limit)
    for event in events:
        if event.type == "ImageUpdated":
            mask: Any = upcast(event, UPCASTERS).data["update_mask"]
            for field in mask:
                found.setdefault(field, _setter(event))
            if is_settled(found):
                break
    return events[-1].position - 1 if len(events) == limit else after


def is_settled(found: Blame) -> bool:
    """Whether nothing that came before can have set a field last."""
    return len(found) >= len(UPDATABLE)


def _setter(event: Event) -> Setter:
    return Setter(event.position, event.at, event.actor, event.operation_id or "")
