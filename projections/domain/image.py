"""Images: the commands, the events they become, and what the events make of an image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from eventstore.event import Event, Value

from .command import Asked, Image, NewEvent, Source, State, folder_stream
from .refusals import ImageBusy, NameTaken, NotFound, SourceMissing, ValueRefused

MIN_DISK_SIZE_STEP = 4 * 1024 * 1024
PRODUCT_IDS_MAX = 64
UPDATABLE = ("description", "labels", "min_disk_size", "name")
DEFAULT_HARDWARE: dict[str, Value] = {"legacy_features": {"pci_topology": "PCI_TOPOLOGY_V1"}}
UPLOADED: Mapping[str, Any] = {"hardware_generation": DEFAULT_HARDWARE}  # What a uri has to inherit from.
SOURCE_KINDS = {"image_id": "Image", "disk_id": "Disk", "snapshot_id": "Snapshot"}
CANCELLED = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateImage:
    """Make an image from an image, a disk, a snapshot or a uri. `given` names the fields the caller set.

    `source_id` is the uri without its query where `source_field` says so; `uri_had_query` if it had one.
    `os` and `hardware_generation` are None where the caller left them to be inherited.
    """

    asked: Asked
    image_id: str
    folder_id: str
    source_field: str
    source_id: str
    uri_had_query: bool = False
    given: tuple[str, ...]
    name: str = ""
    description: str = ""
    labels: Mapping[str, str]
    family: str = ""
    min_disk_size: int = 0
    product_ids: tuple[str, ...] = ()
    os: Mapping[str, Value] | None = None
    pooled: bool = False
    hardware_generation: Mapping[str, Value] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateImage:
    """Write the fields of `mask`; an empty mask writes every updatable field."""

    asked: Asked
    image_id: str
    mask: tuple[str, ...]
    values: Mapping[str, Value]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteImage:
    asked: Asked
    image_id: str


def smallest_disk(size_bytes: int) -> int:
    """The default min_disk_size for this virtual size: rounded up to 4 MiB, and at least that."""
    return max(MIN_DISK_SIZE_STEP, -(-size_bytes // MIN_DISK_SIZE_STEP) * MIN_DISK_SIZE_STEP)


def without_defaults(data: Mapping[str, Value]) -> dict[str, Value]:
    """The same without empty text, zero, false and empty collections at the top level."""
    return {key: value for key, value in data.items() if value}


def decide_create(state: State, command: CreateImage) -> list[NewEvent]:
    """Two events: an image from what is already stored is born done. From a uri one: the bytes come later."""
    stream = folder_stream(command.folder_id)
    if command.source_field == "uri":
        _free_name(state, command)
        return [NewEvent(stream, "ImageCreationStarted", command.image_id, _start(command, UPLOADED))]
    parent = _parent(state, command)
    min_disk_size = _min_disk_size(command, parent)
    _free_name(state, command)
    started = _start(command, parent) | {"min_disk_size": min_disk_size}
    created = without_defaults(
        {
            "size": parent["size"],
            "storage_size": parent["storage_size"],
            "min_disk_size": min_disk_size,
            "blob": dict(parent["blob"]),
        }
    )
    return [
        NewEvent(stream, "ImageCreationStarted", command.image_id, started),
        NewEvent(stream, "ImageCreated", command.image_id, created),
    ]


def _free_name(state: State, command: CreateImage) -> None:
    if command.name and state.image_named(folder_id=command.folder_id, name=command.name) is not None:
        raise NameTaken("Image", command.name)


def _start(command: CreateImage, parent: Mapping[str, Any]) -> dict[str, Value]:
    """The data of ImageCreationStarted, all defaults and inheritance resolved."""
    started = without_defaults(
        {
            "folder_id": command.folder_id,
            "name": command.name,
            "description": command.description,
            "labels": dict(command.labels),
            "family": command.family,
            "product_ids": _product_ids(command, parent),
            "pooled": command.pooled,
            "given": cast("list[Value]", sorted(command.given)),
            "min_disk_size": command.min_disk_size,
            "uri_had_query": command.uri_had_query,
        }
    )
    started["source"] = {command.source_field: command.source_id}
    started["os"] = _os(command, parent)
    started["hardware_generation"] = dict(command.hardware_generation or parent["hardware_generation"])
    return started


def decide_update(state: State, command: UpdateImage) -> list[NewEvent]:
    image = ready_image(state, command.image_id)
    mask = sorted(set(command.mask)) or list(UPDATABLE)
    data: dict[str, Value] = {"update_mask": cast("Value", mask)}
    if not command.mask:
        data["mask_empty"] = True
    for field in mask:
        data[field] = command.values[field]
    if "min_disk_size" in mask:
        data["min_disk_size"] = _updated_disk_size(cast("int", data["min_disk_size"]), image)
    if "name" in mask:
        _claim_name(state, image, cast("str", data["name"]))
    return [NewEvent(folder_stream(image["folder_id"]), "ImageUpdated", image["id"], data)]


def decide_delete(state: State, command: DeleteImage) -> list[NewEvent]:
    image = ready_image(state, command.image_id)
    return [NewEvent(folder_stream(image["folder_id"]), "ImageDeleted", image["id"], {})]


def ready_image(state: State, image_id: str) -> Image:
    image = state.image(image_id)
    if image is None:
        raise NotFound("Image", image_id)
    if image["status"] != "READY":
        raise ImageBusy(image_id, image["operation_id"])
    return image


def _parent(state: State, command: CreateImage) -> Image | Source:
    kind = SOURCE_KINDS[command.source_field]
    if kind == "Image":
        image = state.image(command.source_id)
        if image is None:
            raise SourceMissing(kind, command.source_id)
        if image["status"] != "READY":
            raise ImageBusy(command.source_id, image["operation_id"])
        return image
    source = state.source(command.source_id)
    if source is None or source["kind"] != kind.upper():
        raise SourceMissing(kind, command.source_id)
    return source


def _min_disk_size(command: CreateImage, parent: Image | Source) -> int:
    smallest = parent.get("min_disk_size", 0)
    if not isinstance(smallest, int):
        raise AssertionError(f"min_disk_size of {parent['id']} is {smallest!r}")
    if not command.min_disk_size:
        return smallest or smallest_disk(parent["size"])
    return at_least(command.min_disk_size, max(smallest, parent["size"]))


def _updated_disk_size(asked: int, image: Image) -> int:
    return at_least(asked, image["size"]) if asked else smallest_disk(image["size"])


def at_least(asked: int, smallest: int) -> int:
    if asked < smallest:
        raise ValueRefused("min_disk_size", f"Minimal disk size should be greater or equal than {smallest}")
    return asked


def _product_ids(command: CreateImage, parent: Mapping[str, Any]) -> list[Value]:
    inherited = cast("list[str]", parent.get("product_ids", []))
    merged = list(dict.fromkeys([*inherited, *command.product_ids]))
    if len(merged) > PRODUCT_IDS_MAX:
        raise ValueRefused(
            "product_ids",
            f"The image would have {len(merged)} product_ids, with those it inherits;"
            f" at most {PRODUCT_IDS_MAX} are allowed",
        )
    return cast("list[Value]", merged)


def _os(command: CreateImage, parent: Mapping[str, Any]) -> dict[str, Value]:
    inherited = cast("Mapping[str, Value]", parent.get("os", {"type": "LINUX"}))
    if not command.os:
        return dict(inherited)
    return {"type": inherited["type"], **command.os}


def _claim_name(state: State, image: Image, name: str) -> None:
    if not name or name == image["name"]:
        return
    if state.image_named(folder_id=image["folder_id"], name=name) is not None:
        raise NameTaken("Image", name)


def evolve_image(image: Image | None, event: Event) -> Image | None:
    """The image after the event: None where there is none any more."""
    data: Mapping[str, Any] = event.data
    match event.type:
        case "ImageCreationStarted":
            return _started(event, data)
        case "ImageCreated":
            return {
                **_there(image, event),
                "blob": data["blob"],
                "min_disk_size": data["min_disk_size"],
                "size": data.get("size", 0),
                "status": "READY",
                "storage_size": data.get("storage_size", 0),
            }
        case "ImageUpdated":
            written = {field: data[field] for field in data["update_mask"]}
            return cast("Image", {**_there(image, event), **written})
        case "ImageDeleted" | "ImageCreationFailed" | "ImageCreationCancelled":
            _there(image, event)
            return None
        case _:
            raise AssertionError(f"position {event.position}: {event.type} says nothing of an image")


def _there(image: Image | None, event: Event) -> Image:
    if image is None:
        raise AssertionError(
            f"position {event.position}: {event.type} of {event.resource_id}, which is not there"
        )
    return image


def _started(event: Event, data: Mapping[str, Any]) -> Image:
    return {
        "blob": {},
        "born": event.position,
        "created_at": event.at // 1_000_000_000,
        "description": data.get("description", ""),
        "family": data.get("family", ""),
        "folder_id": data["folder_id"],
        "hardware_generation": data["hardware_generation"],
        "id": event.resource_id or "",
        "labels": data.get("labels", {}),
        "min_disk_size": data.get("min_disk_size", 0),
        "name": data.get("name", ""),
        "operation_id": event.operation_id or "",
        "os": data["os"],
        "pooled": data.get("pooled", False),
        "product_ids": data.get("product_ids", []),
        "size": 0,
        "source": data["source"],
        "status": "CREATING",
        "storage_size": 0,
        "uri_had_query": data.get("uri_had_query", False),
    }
