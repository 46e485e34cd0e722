"""What an event changed, field by field, as the API's JSON has the fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias, cast

from .domain.command import Image, Source
from .moments import format_seconds

Json: TypeAlias = "str | bool | list[Json] | dict[str, Json]"

# In the order of the API's messages.
IMAGE_FIELDS = (
    "id",
    "folder_id",
    "created_at",
    "name",
    "description",
    "labels",
    "family",
    "storage_size",
    "min_disk_size",
    "product_ids",
    "status",
    "os",
    "pooled",
    "hardware_generation",
    "size",
)
SOURCE_FIELDS = (
    "id",
    "folder_id",
    "created_at",
    "kind",
    "name",
    "size",
    "storage_size",
    "hardware_generation",
    "sha256",
    "format",
)
SIZES = frozenset({"storage_size", "min_disk_size", "size"})
UNSPECIFIED = frozenset({"TYPE_UNSPECIFIED", "PCI_TOPOLOGY_UNSPECIFIED"})


class Change(NamedTuple):
    """One field that an event changed. A side is None where the field is absent there."""

    field: str
    old: Json | None
    new: Json | None


def changes(before: Image | Source | None, after: Image | Source | None) -> list[Change]:
    """The public fields that differ, in the API's order.

    A creation changes every field that it sets from None, and what ends an image or a source changes every
    field that was set to None, `id` and `status` included.
    """
    old = {} if before is None else resource_json(before)
    new = {} if after is None else resource_json(after)
    there = after or before
    order = SOURCE_FIELDS if there is not None and "kind" in there else IMAGE_FIELDS
    return [Change(name, old.get(name), new.get(name)) for name in order if old.get(name) != new.get(name)]


def resource_json(resource: Image | Source) -> dict[str, Json]:
    if "kind" in resource:
        return source_json(cast("Source", resource))
    return image_json(resource)


def image_json(image: Image) -> dict[str, Json]:
    """The Image message in protobuf's JSON mapping with proto field names; defaults are left out."""
    return _json(IMAGE_FIELDS, image)


def source_json(source: Source) -> dict[str, Json]:
    """The Source message in protobuf's JSON mapping with proto field names."""
    return _json(SOURCE_FIELDS, {**source, **source["blob"]})


def _json(fields: tuple[str, ...], state: Mapping[str, Any]) -> dict[str, Json]:
    # A time is a message, which is there even where it is the epoch itself.
    return {name: _value(name, state[name]) for name in fields if state[name] or name == "created_at"}


def _value(name: str, value: Any) -> Json:
    if name in SIZES:
        return str(value)
    if name == "created_at":
        return format_seconds(value)
    return _message(value) if name in ("os", "hardware_generation") else cast("Json", value)


def _message(value: Mapping[str, Any]) -> Json:
    """A message as data has it, without defaults that it may still name; a set message stays, even empty."""
    kept: dict[str, Json] = {}
    for name, item in value.items():
        if isinstance(item, dict):
            kept[name] = _message(item)
        elif item and item not in UNSPECIFIED:
            kept[name] = item
    return kept
