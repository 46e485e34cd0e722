"""Operations: what the API calls a job is the chain of events that carry its id."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from eventstore.event import Event, Value

from .command import HOURS_24_NS, Asked, NewEvent, Operation, Repeat, State, folder_stream
from .image import CANCELLED
from .refusals import KeyReused, NotFound

IMAGE_SERVICE = "yandex.cloud.compute.v1.ImageService"
SOURCE_SERVICE = "imageledger.v1.SourceService"

# What an operation says of itself, by the rpc that began it.
DESCRIPTIONS = {
    f"{IMAGE_SERVICE}/Create": "Create image",
    f"{IMAGE_SERVICE}/Update": "Update image",
    f"{IMAGE_SERVICE}/Delete": "Delete image",
    f"{SOURCE_SERVICE}/Upload": "Register source",
    f"{SOURCE_SERVICE}/Remove": "Remove source",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelOperation:
    """End a running operation; `asked.operation_id` names it. A finished one is left as it is."""

    asked: Asked


def repeated(state: State, asked: Asked, *, at: int) -> Repeat | None:
    """The operation that answered this Idempotency-Key in the last 24 hours of log time, if any."""
    if asked.key is None:
        return None
    earlier = state.operation_keyed(actor=asked.actor, method=asked.method, key=asked.key)
    if earlier is None or at - earlier["created_at"] >= HOURS_24_NS:
        return None
    if earlier["request"] != asked.request:
        raise KeyReused(asked.key, earlier["id"])
    return Repeat(earlier["id"])


def decide_cancel(state: State, command: CancelOperation) -> list[NewEvent] | Repeat:
    operation = state.operation(command.asked.operation_id)
    if operation is None:
        raise NotFound("Operation", command.asked.operation_id)
    if operation["done"]:
        return Repeat(operation["id"])
    image = state.image(operation["resource_id"])
    if image is None:
        raise AssertionError(f"operation {operation['id']} runs, but its image is not there")
    error: dict[str, Value] = {
        "code": CANCELLED,
        "message": f'Operation "{operation["id"]}" was cancelled',
        "reason": "OPERATION_CANCELLED",
        "metadata": {"image_id": image["id"]},
    }
    data = {"error": error}
    return [NewEvent(folder_stream(image["folder_id"]), "ImageCreationCancelled", image["id"], data)]


def evolve_operation(operation: Operation | None, event: Event) -> Operation:
    """The operation after one of its events; the first one carries the method that was asked."""
    data: Mapping[str, Any] = event.data
    done = event.type != "ImageCreationStarted"
    error = data.get("error", {})
    if operation is not None:
        return {
            **operation,
            "done": done,
            "error": error,
            "last": event.position,
            "modified_at": event.at,
        }
    if event.method is None:
        raise AssertionError(
            f"position {event.position}: {event.type} goes on with operation {event.operation_id},"
            " which is not there"
        )
    return {
        "created_at": event.at,
        "created_by": event.actor,
        "done": done,
        "error": error,
        "first": event.position,
        "id": event.operation_id or "",
        "key": event.key or "",
        "last": event.position,
        "method": event.method,
        "modified_at": event.at,
        "request": event.request or b"",
        "request_id": event.request_id or "",
        "resource_id": event.resource_id or "",
    }
