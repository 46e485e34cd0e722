"""What every command carries, what deciding gives back, and what deciding may look at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypedDict

from eventstore.event import Value

HOURS_24_NS = 24 * 3600 * 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Who asks for what, and under which ids the answer is found again. Sources: the envelope's keys.

    `request` is the SHA-256 of the request's own fields, there exactly when `key` is.
    """

    actor: str
    auth: str
    request_id: str
    operation_id: str
    method: str
    key: str | None = None
    request: bytes | None = None
    reason: str | None = None


class NewEvent(NamedTuple):
    """An event before the log has given it a position, a version and a time."""

    stream: str
    type: str
    resource_id: str
    data: Mapping[str, Value]
    schema: int = 1


@dataclass(frozen=True, slots=True)
class Repeat:
    """The command was answered before: its answer is this operation as it stands now."""

    operation_id: str


Decision = list[NewEvent] | Repeat


class Image(TypedDict):
    """An image at one position; keys in byte order, so that packing it gives canonical bytes.

    `born` is the position of its ImageCreationStarted, `operation_id` the operation that made it,
    `created_at` in seconds since the epoch; sizes in bytes, 0 where not known yet.
    """

    blob: dict[str, str]
    born: int
    created_at: int
    description: str
    family: str
    folder_id: str
    hardware_generation: dict[str, Value]
    id: str
    labels: dict[str, str]
    min_disk_size: int
    name: str
    operation_id: str
    os: dict[str, Value]
    pooled: bool
    product_ids: list[str]
    size: int
    source: dict[str, str]
    status: str
    storage_size: int
    uri_had_query: bool


class Source(TypedDict):
    """A registered disk or snapshot; keys in byte order. `created_at` in seconds since the epoch."""

    blob: dict[str, str]
    created_at: int
    folder_id: str
    hardware_generation: dict[str, Value]
    id: str
    kind: str
    name: str
    size: int
    storage_size: int


class Operation(TypedDict):
    """An operation as its events left it; keys in byte order. Times in nanoseconds since the epoch.

    `first` and `last` are the positions of its events; `error` is empty unless it failed.
    """

    created_at: int
    created_by: str
    done: bool
    error: dict[str, Value]
    first: int
    id: str
    key: str
    last: int
    method: str
    modified_at: int
    request: bytes
    request_id: str
    resource_id: str


class State(Protocol):
    """What `decide` may ask of the present: memory folded from events, or a projection's rows."""

    def image(self, image_id: str) -> Image | None: ...

    def image_named(self, *, folder_id: str, name: str) -> str | None: ...

    def source(self, source_id: str) -> Source | None: ...

    def operation(self, operation_id: str) -> Operation | None: ...

    def operation_keyed(self, *, actor: str, method: str, key: str) -> Operation | None: ...


def folder_stream(folder_id: str) -> str:
    return f"folder/{folder_id}"


def folder_of(stream: str) -> str:
    """The folder of a stream, empty for the log's own."""
    return stream.removeprefix("folder/") if stream.startswith("folder/") else ""
