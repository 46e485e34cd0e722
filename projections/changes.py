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
    old, new = _columns(before), _columns(after)
    fields = SOURCE_FIELDS if "kind" in (new or old) else IMAGE_FIELDS
    # The states first: most fields of an update are as they were, and need no mapping to tell.
    differing = [name for name in fields if old.get(name) != new.get(name)]
    mapped = [Change(name, _value(name, old.get(name)), _value(name, new.get(name))) for name in differing]
    return [change for change in mapped if change.old != change.new]


def image_json(image: Image) -> dict[str, Json]:
    """The Image message in protobuf's JSON mapping with proto field names; defaults are left out."""
    return _json(IMAGE_FIELDS, image)


def source_json(source: Source) -> dict[str, Json]:
    """The Source message in protobuf's JSON mapping with proto field names."""
    return _json(SOURCE_FIELDS, _columns(source))


def _json(fields: tuple[str, ...], columns: Mapping[str, Any]) -> dict[str, Json]:
    values = ((name, _value(name, columns[name])) for name in fields)
    return {name: value for name, value in values if value is not None}


def _columns(resource: Image | Source | None) -> Mapping[str, Any]:
    """The state with the fields of the message at its top level; empty where there is none."""
    if resource is None:
        return {}
    return {**resource, **resource["blob"]} if "kind" in resource else resource


def _value(name: str, value: Any) -> Json | None:
    """A field as the message's JSON has it, None where it is left out."""
    if name == "created_at":
        # A time is a message, which is there even where it is the epoch itself.
        return None if value is None else format_seconds(value)
    if not value:
        return None
    if name in SIZES:
        return str(value)
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
