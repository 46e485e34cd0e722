"""An event as JSON, and as text for people."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import msgpack

from eventstore.event import ENVELOPE_VERSION, Event
from projections.changes import Change
from projections.moments import format_time
from tools.output import shown


def event_json(event: Event) -> dict[str, Any]:
    """The event under the keys of its envelope, in their order, those that do not apply left out.

    `at` is RFC 3339 with nine digits, since a 19-digit number is rounded by many readers of JSON; `request`
    is lower-case hex.
    """
    fields: dict[str, Any] = {"v": ENVELOPE_VERSION}
    fields |= {name: value for name, value in event._asdict().items() if value is not None}
    fields["at"] = format_time(event.at)
    if event.request is not None:
        fields["request"] = event.request.hex()
    return fields


def unreadable_json(body: bytes) -> dict[str, Any]:
    """The stored bytes of an event in an envelope of newer software, by the same rules as far as they go."""
    fields = msgpack.unpackb(body, strict_map_key=False)
    if not isinstance(fields, dict):
        return {"body": body.hex()}
    made: dict[str, Any] = {str(key): _plain(value) for key, value in fields.items()}
    if type(made.get("at")) is int:
        made["at"] = format_time(made["at"])
    return made


def _plain(value: Any) -> Any:
    """What JSON has no word for, as text."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        return value.hex()
    return value if value is None or isinstance(value, str | int | float) else repr(value)


def changes_json(changes: Iterable[Change]) -> list[dict[str, Any]]:
    return [change._asdict() for change in changes]


def event_text(event: Event, changes: Iterable[Change] = ()) -> str:
    """The event in a line or two, then a line a change."""
    parts = [f"#{event.position}", format_time(event.at), event.type, event.resource_id, f"by {event.actor}"]
    lines = [shown("  ".join(part for part in parts if part))]
    if event.reason is not None:
        lines.append(f"    reason: {shown(event.reason)}")
    lines += [f"    {change_text(change)}" for change in changes]
    return "\n".join(lines)


def change_text(change: Change) -> str:
    """`field: old → new`."""
    return f"{change.field}: {value_text(change.old)} → {value_text(change.new)}"


def value_text(value: object) -> str:
    """A value as JSON on one line, harmless to a terminal; `-` where there is none."""
    return "-" if value is None else shown(json.dumps(value, ensure_ascii=False))
