"""How an image that is made from a uri ends: the server's own commands, for the one who asked first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from eventstore.event import Value

from .command import Asked, Image, NewEvent, Operation, Repeat, State, folder_stream
from .image import at_least, smallest_disk, without_defaults
from .refusals import ValueRefused

INVALID_ARGUMENT = 3
SYSTEM = "system"


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishImport:
    """The bytes are stored: sizes in bytes, `size` the virtual one."""

    asked: Asked
    size: int
    storage_size: int
    sha256: str
    format: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FailImport:
    """The bytes will not come. `code` is a google.rpc.Code; `reason` and `metadata` are ErrorInfo's."""

    asked: Asked
    code: int
    message: str
    reason: str
    metadata: Mapping[str, str]


def on_behalf(operation: Operation) -> Asked:
    """The server ends an operation in the name of the one who began it."""
    return Asked(
        actor=operation["created_by"],
        auth=SYSTEM,
        request_id=operation["request_id"],
        operation_id=operation["id"],
        method=operation["method"],
    )


def decide_finish(state: State, command: FinishImport) -> list[NewEvent] | Repeat:
    """ImageCreated, or ImageCreationFailed where the size shows that the request cannot be kept.

    An operation that ended meanwhile, by a cancellation, stays as it is.
    """
    image = _unfinished(state, command.asked)
    if image is None:
        return Repeat(command.asked.operation_id)
    try:
        min_disk_size = at_least(image["min_disk_size"] or smallest_disk(command.size), command.size)
    except ValueRefused as error:
        return [_failed(image, INVALID_ARGUMENT, str(error), "VALUE_REFUSED", {"field": error.field})]
    data = without_defaults(
        {
            "size": command.size,
            "storage_size": command.storage_size,
            "min_disk_size": min_disk_size,
            "blob": {"sha256": command.sha256, "format": command.format},
        }
    )
    return [NewEvent(folder_stream(image["folder_id"]), "ImageCreated", image["id"], data)]


def decide_fail(state: State, command: FailImport) -> list[NewEvent] | Repeat:
    image = _unfinished(state, command.asked)
    if image is None:
        return Repeat(command.asked.operation_id)
    return [_failed(image, command.code, command.message, command.reason, command.metadata)]


def _unfinished(state: State, asked: Asked) -> Image | None:
    operation = state.operation(asked.operation_id)
    if operation is None:
        raise AssertionError(f"operation {asked.operation_id} is imported for, and is not there")
    if operation["done"]:
        return None
    image = state.image(operation["resource_id"])
    if image is None:
        raise AssertionError(f"operation {operation['id']} runs, but its image is not there")
    return image


def _failed(image: Image, code: int, message: str, reason: str, metadata: Mapping[str, str]) -> NewEvent:
    error: dict[str, Value] = {
        "code": code,
        "message": message,
        "reason": reason,
        "metadata": {"image_id": image["id"], **metadata},
    }
    stream = folder_stream(image["folder_id"])
    return NewEvent(stream, "ImageCreationFailed", image["id"], {"error": error})
