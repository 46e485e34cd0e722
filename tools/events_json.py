"""An event as JSON, and as text for people."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

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


def changes_json(changes: Iterable[Change]) -> list[dict[str, Any]]:
    return [change._asdict() for change in changes]


def event_text(event: Event, changes: Iterable[Change] = ()) -> str:
    """The event in a line or two, then a line a change."""
    parts = [f"#{event.position}", format_time(event.at), event.type, event.resource_id, f"by {event.actor}"]
    lines = [shown("  ".join(part for part in parts if part))]
    if event.reason is not None:
        lines.append(f"    reason: {shown(event.reason)}")
    for change in changes:
        lines.append(f"    {change.field}: {_value_text(change.old)} → {_value_text(change.new)}")
    return "\n".join(lines)


def _value_text(value: object) -> str:
    return "-" if value is None else shown(json.dumps(value, ensure_ascii=False))
