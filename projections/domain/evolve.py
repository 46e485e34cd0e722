"""`evolve` over a whole log, in memory: what replay, tests and models fold with."""

from __future__ import annotations

from typing import NamedTuple

from eventstore.event import Event

from .command import Image, Operation, Source
from .image import evolve_image
from .operation import evolve_operation
from .source import evolve_source

IMAGE_EVENTS = frozenset(
    {
        "ImageCreationStarted",
        "ImageCreated",
        "ImageCreationFailed",
        "ImageCreationCancelled",
        "ImageUpdated",
        "ImageDeleted",
    }
)
SOURCE_EVENTS = frozenset({"SourceRegistered", "SourceRemoved"})
LOG_EVENTS = frozenset({"LogCreated", "ServerStarted", "ClockAccepted", "CheckpointKeyAdded", "LogRestored"})


class EventUnknown(Exception):
    """An event type that this version does not know: nothing after it can be projected."""

    def __init__(self, event: Event) -> None:
        super().__init__(
            f"position {event.position}: event type {event.type!r} (schema {event.schema}) is unknown to"
            " this version; open the log with the version that wrote it, or a newer one"
        )
        self.position = event.position


class Change(NamedTuple):
    """What one event did to one resource; both sides None for an event of the log itself."""

    before: Image | Source | None
    after: Image | Source | None


class MemoryState:
    """The current state of a log, folded in memory; the plainest `State` there is."""

    def __init__(self) -> None:
        self.images: dict[str, Image] = {}
        self.sources: dict[str, Source] = {}
        self.operations: dict[str, Operation] = {}
        self._names: dict[tuple[str, str], str] = {}
        self._keyed: dict[tuple[str, str, str], str] = {}

    def image(self, image_id: str) -> Image | None:
        return self.images.get(image_id)

    def image_named(self, *, folder_id: str, name: str) -> str | None:
        return self._names.get((folder_id, name))

    def source(self, source_id: str) -> Source | None:
        return self.sources.get(source_id)

    def operation(self, operation_id: str) -> Operation | None:
        return self.operations.get(operation_id)

    def operation_keyed(self, *, actor: str, method: str, key: str) -> Operation | None:
        operation_id = self._keyed.get((actor, method, key))
        return None if operation_id is None else self.operations[operation_id]

    def apply(self, event: Event) -> Change:
        """Fold one event in, in order of position. Raises EventUnknown, and changes nothing then."""
        change = self._apply_resource(event)
        if event.operation_id is not None:
            self._apply_operation(event, event.operation_id)
        return change

    def forget(self, operation_id: str) -> None:
        """Let go of an operation, and of its key where no newer one has it."""
        operation = self.operations.pop(operation_id)
        keyed = operation["created_by"], operation["method"], operation["key"]
        if self._keyed.get(keyed) == operation_id:
            del self._keyed[keyed]

    def _apply_resource(self, event: Event) -> Change:
        if event.type in IMAGE_EVENTS:
            return self._apply_image(event)
        if event.type in SOURCE_EVENTS:
            return self._apply_source(event)
        if event.type in LOG_EVENTS:
            return Change(None, None)
        raise EventUnknown(event)

    def _apply_operation(self, event: Event, operation_id: str) -> None:
        operation = evolve_operation(self.operations.get(operation_id), event)
        self.operations[operation_id] = operation
        # Only its first event: an old operation that ends later must not take its key back from a newer one.
        if event.key is not None:
            self._keyed[operation["created_by"], operation["method"], operation["key"]] = operation_id

    def _apply_image(self, event: Event) -> Change:
        before = self.images.get(event.resource_id or "")
        after = evolve_image(before, event)
        if before is not None:
            self._names.pop((before["folder_id"], before["name"]), None)
        if after is None:
            self.images.pop(event.resource_id or "", None)
            return Change(before, after)
        self.images[after["id"]] = after
        if after["name"]:
            self._names[after["folder_id"], after["name"]] = after["id"]
        return Change(before, after)

    def _apply_source(self, event: Event) -> Change:
        before = self.sources.get(event.resource_id or "")
        after = evolve_source(before, event)
        if after is None:
            self.sources.pop(event.resource_id or "", None)
        else:
            self.sources[after["id"]] = after
        return Change(before, after)
