"""Disks and snapshots that images are made from: uploaded bytes under an id."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from eventstore.event import Event, Value

from .command import Asked, NewEvent, Source, State, folder_stream
from .image import DEFAULT_HARDWARE, without_defaults
from .refusals import NotFound


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisterSource:
    """Give stored bytes an id. `kind` is DISK or SNAPSHOT; sizes in bytes, `size` the virtual one."""

    asked: Asked
    source_id: str
    folder_id: str
    kind: str
    name: str
    size: int
    storage_size: int
    sha256: str
    format: str
    hardware_generation: Mapping[str, Value] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveSource:
    asked: Asked
    source_id: str


def decide_register(command: RegisterSource) -> list[NewEvent]:
    data = without_defaults(
        {
            "folder_id": command.folder_id,
            "kind": command.kind,
            "name": command.name,
            "size": command.size,
            "storage_size": command.storage_size,
        }
    )
    data["hardware_generation"] = dict(command.hardware_generation or DEFAULT_HARDWARE)
    data["blob"] = {"sha256": command.sha256, "format": command.format}
    return [NewEvent(folder_stream(command.folder_id), "SourceRegistered", command.source_id, data)]


def decide_remove(state: State, command: RemoveSource) -> list[NewEvent]:
    source = state.source(command.source_id)
    if source is None:
        raise NotFound("Source", command.source_id)
    return [NewEvent(folder_stream(source["folder_id"]), "SourceRemoved", command.source_id, {})]


def evolve_source(source: Source | None, event: Event) -> Source | None:
    """The source after the event: None where there is none any more."""
    data: Mapping[str, Any] = event.data
    match event.type:
        case "SourceRegistered":
            return {
                "blob": data["blob"],
                "created_at": event.at // 1_000_000_000,
                "folder_id": data["folder_id"],
                "hardware_generation": data["hardware_generation"],
                "id": event.resource_id or "",
                "kind": data["kind"],
                "name": data.get("name", ""),
                "size": data.get("size", 0),
                "storage_size": data.get("storage_size", 0),
            }
        case "SourceRemoved":
            if source is None:
                raise AssertionError(f"position {event.position}: {event.resource_id} is not there")
            return None
        case _:
            raise AssertionError(f"position {event.position}: {event.type} says nothing of a source")
