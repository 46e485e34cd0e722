"""Short spellings of events and commands, and random histories: what the domain's tests are written with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
from hypothesis import strategies as st

from eventstore import database
from eventstore.event import Event, Position, Value, Version, canonical
from eventstore.log import EventLog
from projections.domain.command import Asked, Image, NewEvent, Repeat
from projections.domain.decide import Beginning, Command, decide
from projections.domain.evolve import MemoryState
from projections.domain.image import CreateImage, DeleteImage, UpdateImage
from projections.domain.imports import FailImport, FinishImport, on_behalf
from projections.domain.operation import CancelOperation
from projections.domain.refusals import Refused
from projections.domain.source import RegisterSource, RemoveSource
from projections.queries import Queries
from projections.rows import APPLIED_ROW, position_crc, seal
from projections.store import ProjectionFiles, open_live, open_queries

LOG_ID = "imageledger-" + "0" * 32
MIB = 1024 * 1024
SECOND_NS = 1_000_000_000
T0 = 1_767_225_600 * SECOND_NS
LEGACY: dict[str, Value] = {"legacy_features": {"pci_topology": "PCI_TOPOLOGY_V1"}}
LEGACY_2: dict[str, Value] = {"legacy_features": {"pci_topology": "PCI_TOPOLOGY_V2"}}
BLOB: dict[str, Value] = {"format": "raw", "sha256": "ab" * 32}
KEY = "00000000-0000-4000-8000-000000000001"
CREATE = "yandex.cloud.compute.v1.ImageService/Create"
UPDATE = "yandex.cloud.compute.v1.ImageService/Update"
DELETE = "yandex.cloud.compute.v1.ImageService/Delete"
UPLOAD = "imageledger.v1.SourceService/Upload"
REMOVE = "imageledger.v1.SourceService/Remove"


def lossless(image: Image) -> bytes:
    """An `encode` that loses nothing, so that an answer can be compared with a state."""
    packed: bytes = msgpack.packb(image)
    return packed


# Events, before `numbered` gives them their place.


def event(type: str, resource_id: str | None, data: Mapping[str, Any], **fields: Any) -> Event:
    """An event of folder f, of ann's operation `op-<resource>`, later than all others given."""
    made = Event(
        position=Position(0),
        stream="folder/f",
        version=Version(0),
        type=type,
        schema=1,
        at=0,
        operation_id=None if resource_id is None else f"op-{resource_id}",
        resource_id=resource_id,
        actor="ann",
        auth="dev",
        request_id="r",
        method=None,
        key=None,
        request=None,
        reason=None,
        data=dict(data),
    )
    return made._replace(**fields)


def started(image_id: str, *, folder_id: str = "f", **data: Any) -> Event:
    """A creation that goes on: ImageCreationStarted alone."""
    full = {
        "folder_id": folder_id,
        "given": ["folder_id", "uri"],
        "source": {"uri": "https://storage.example/x"},
        "os": {"type": "LINUX"},
        "hardware_generation": LEGACY,
        **data,
    }
    return event("ImageCreationStarted", image_id, full, stream=f"folder/{folder_id}", method=CREATE)


def created(image_id: str, *, size: int = 4 * MIB, min_disk_size: int = 4 * MIB) -> Event:
    data = {"size": size, "storage_size": 4096, "min_disk_size": min_disk_size, "blob": BLOB}
    return event("ImageCreated", image_id, data)


def image(
    image_id: str, *, size: int = 4 * MIB, min_disk_size: int = 4 * MIB, folder_id: str = "f", **data: Any
) -> list[Event]:
    """A READY image, in two events."""
    return [
        started(image_id, folder_id=folder_id, min_disk_size=min_disk_size, **data),
        created(image_id, size=size, min_disk_size=min_disk_size),
    ]


def ended(image_id: str, type: str, **fields: Any) -> Event:
    """The failure or the cancellation of a creation."""
    error = {"code": 9, "message": "no", "reason": "NO", "metadata": {"image_id": image_id}}
    return event(type, image_id, {"error": error}, **fields)


def deleted(image_id: str) -> Event:
    return event("ImageDeleted", image_id, {}, operation_id=f"op-delete-{image_id}", method=DELETE)


def updated(image_id: str, **data: Any) -> Event:
    data = {"update_mask": sorted(data), **data}
    return event("ImageUpdated", image_id, data, operation_id=f"op-update-{image_id}", method=UPDATE)


def registered(source_id: str, *, kind: str = "DISK", size: int = 4 * MIB, **data: Any) -> Event:
    full = {
        "folder_id": "f",
        "kind": kind,
        "size": size,
        "storage_size": 4096,
        "hardware_generation": LEGACY,
        "blob": BLOB,
        **data,
    }
    return event("SourceRegistered", source_id, full, method=UPLOAD)


def removed(source_id: str) -> Event:
    return event("SourceRemoved", source_id, {}, operation_id=f"op-remove-{source_id}", method=REMOVE)


def numbered(events: Iterable[Event], *, first: int = 1) -> list[Event]:
    """The events with positions and versions of their own; a stamp of 0 becomes one second a position."""
    versions: dict[str, int] = {}
    out = []
    for position, one in enumerate(events, first):
        version = versions[one.stream] = versions.get(one.stream, 0) + 1
        at = one.at or T0 + position * SECOND_NS
        out.append(one._replace(position=Position(position), version=Version(version), at=at))
    return out


def folded(events: Iterable[Event]) -> MemoryState:
    state = MemoryState()
    for one in events:
        state.apply(one)
    return state


# Commands.


def asked(operation_id: str = "op", **fields: Any) -> Asked:
    given: dict[str, Any] = {"actor": "ann", "auth": "dev", "request_id": "r", "method": CREATE, **fields}
    if given.get("key") is not None:
        given.setdefault("request", b"\1" * 32)
    return Asked(operation_id=operation_id, **given)


def create(new_id: str = "new", /, *, by: Asked | None = None, **fields: Any) -> CreateImage:
    """Create image `new` in folder f, from the one of the four sources that is given."""
    source_field = next(name for name in ("disk_id", "snapshot_id", "image_id", "uri") if name in fields)
    source_id = fields.pop(source_field)
    return CreateImage(
        **{
            "asked": by or asked(),
            "image_id": new_id,
            "folder_id": "f",
            "source_field": source_field,
            "source_id": source_id,
            "given": ("folder_id", source_field),
            "labels": {},
            **fields,
        }
    )


def update(image_id: str, *mask: str, by: Asked | None = None, **values: Value) -> UpdateImage:
    defaults: dict[str, Value] = {"description": "", "labels": {}, "min_disk_size": 0, "name": ""}
    by = by or asked(method=UPDATE)
    return UpdateImage(asked=by, image_id=image_id, mask=mask, values={**defaults, **values})


def delete(image_id: str, *, by: Asked | None = None) -> DeleteImage:
    return DeleteImage(asked=by or asked(method=DELETE), image_id=image_id)


def register(source_id: str = "new", *, by: Asked | None = None, **fields: Any) -> RegisterSource:
    given: dict[str, Any] = {
        "folder_id": "f",
        "kind": "DISK",
        "name": "",
        "size": 4 * MIB,
        "storage_size": 4096,
        "sha256": "ab" * 32,
        "format": "raw",
        **fields,
    }
    return RegisterSource(asked=by or asked(method=UPLOAD), source_id=source_id, **given)


def remove(source_id: str, *, by: Asked | None = None) -> RemoveSource:
    return RemoveSource(asked=by or asked(method=REMOVE), source_id=source_id)


def cancel(operation_id: str, *, actor: str = "bob") -> CancelOperation:
    method = "yandex.cloud.operation.OperationService/Cancel"
    return CancelOperation(asked=asked(operation_id, actor=actor, method=method))


def finish(operation_id: str, *, size: int = 4 * MIB) -> FinishImport:
    by = asked(operation_id, auth="system")
    return FinishImport(asked=by, size=size, storage_size=4096, sha256="ab" * 32, format="raw")


def fail(operation_id: str) -> FailImport:
    by = asked(operation_id, auth="system")
    return FailImport(asked=by, code=9, message="no", reason="NO", metadata={"found": "iso"})


# Random histories.

FOLDERS = ("f", "g")
FAMILIES = ("", "web", "db")
NAMES = ("", "alpha", "beta", "gamma")
LABELS: tuple[dict[str, str], ...] = ({}, {"z": "1", "a": "2"}, {"env": "prod", "b/b": "", "b": "-"})


class History:
    """Events in batches of one stamp each, as a writer would make them from steps of three numbers."""

    def __init__(self, steps: Iterable[tuple[str, int, int]]) -> None:
        self.state = MemoryState()
        self.batches: list[list[Event]] = []
        self._versions: dict[str, int] = {}
        self._head = 0
        self._operations = 0
        self._resources = 0
        # Not by a step: an upload with no folder chosen by chance, so that most creations have a source.
        self._say([_log_created()], None)
        self._decide(register("d0", by=self._asked(UPLOAD, 0, 0)))
        for kind, x, y in steps:
            self._step(kind, x, y)

    @property
    def events(self) -> list[Event]:
        return [one for batch in self.batches for one in batch]

    def write(self, log: EventLog) -> None:
        """Append the batches to an empty log."""
        for batch in self.batches:
            log.append(batch, expected_head=Position(batch[0].position - 1))

    def _step(self, kind: str, x: int, y: int) -> None:
        match kind:
            case "register":
                source_id = self._new_id("d")
                hardware = LEGACY_2 if x % 2 else None
                by = self._asked(UPLOAD, x, y)
                folder_id, size = FOLDERS[x % 2], 512 * (1 + x * 97 + y)
                self._decide(
                    register(source_id, by=by, folder_id=folder_id, size=size, hardware_generation=hardware)
                )
            case "remove":
                self._decide(remove(_pick(self.state.sources, x), by=self._asked(REMOVE, x, y)))
            case "create":
                self._create(x, y)
            case "start":
                self._start(x, y)
            case "finish":
                self._finish(x, y)
            case "update":
                self._update(x, y)
            case "delete":
                self._decide(delete(_pick(self.state.images, x), by=self._asked(DELETE, x, y)))
            case "cancel":
                self._decide(cancel(_pick(self.state.operations, x)))
            case _:
                raise AssertionError(f"no step {kind}")

    def _create(self, x: int, y: int) -> None:
        from_image = y % 3 == 0 and self.state.images
        source = (
            {"image_id": _pick(self.state.images, x)}
            if from_image
            else {"disk_id": _pick(self.state.sources, x)}
        )
        self._decide(
            create(
                self._new_id("i"),
                by=self._asked(CREATE, x, y),
                folder_id=FOLDERS[x % 2],
                name=NAMES[y % 4],
                family=FAMILIES[(x + y) % 3],
                labels=LABELS[x % 3],
                description="text" if y % 2 else "",
                product_ids=("p1", "p2")[: x % 3],
                os={"type": "WINDOWS", "nvidia": {"driver": "d"}} if x % 5 == 0 else None,
                pooled=x % 4 == 1,
                **source,
            )
        )

    def _start(self, x: int, y: int) -> None:
        """A creation that is not born done."""
        self._decide(
            create(
                self._new_id("i"),
                by=self._asked(CREATE, x, y),
                folder_id=FOLDERS[x % 2],
                name=NAMES[y % 4],
                family=FAMILIES[x % 3],
                min_disk_size=(0, 8 * MIB)[y % 2],
                uri="https://storage.example/x",
                uri_had_query=x % 2 == 1,
            )
        )

    def _finish(self, x: int, y: int) -> None:
        running = {k: v for k, v in self.state.operations.items() if not v["done"]}
        if not running:
            return
        by = on_behalf(running[_pick(running, x)])
        if y % 3 == 0:
            self._decide(replace(fail(""), asked=by))
        else:
            # One of the sizes is more than the disk that was asked for.
            self._decide(replace(finish("", size=(512, 9 * MIB)[y % 2]), asked=by))

    def _update(self, x: int, y: int) -> None:
        masks = ((), ("labels",), ("name",), ("min_disk_size", "description"), ("description", "labels"))
        values: dict[str, Value] = {
            "description": f"text {x}",
            "labels": dict(LABELS[y % 3]),
            "min_disk_size": 0 if x % 2 else 512 * MIB,
            "name": NAMES[x % 4],
        }
        image_id = _pick(self.state.images, x)
        self._decide(update(image_id, *masks[y % 5], by=self._asked(UPDATE, x, y), **values))

    def _new_id(self, prefix: str) -> str:
        self._resources += 1
        return f"{prefix}{self._resources}"

    def _asked(self, method: str, x: int, y: int) -> Asked:
        self._operations += 1
        key = f"key-{x % 4}" if y % 4 == 0 else None
        actor = "ann" if x % 3 else "bob"
        return asked(
            f"op{self._operations}", method=method, actor=actor, key=key, request=b"1" if key else None
        )

    def _decide(self, command: Command) -> None:
        try:
            decision = decide(self.state, command, at=self._stamp())
        except Refused:
            return
        if not isinstance(decision, Repeat):
            self._say(decision, command.asked, first=isinstance(command, Beginning))

    def _stamp(self) -> int:
        # 5 hours apart, so that keys fall out of their 24 hours within a history.
        return T0 + len(self.batches) * (5 * 3600 * SECOND_NS + 7)

    def _say(self, new: Sequence[NewEvent], by: Asked | None, *, first: bool = True) -> None:
        at = self._stamp()
        batch = []
        for one in new:
            version = self._versions[one.stream] = self._versions.get(one.stream, 0) + 1
            self._head += 1
            asked_first = by if first else None
            said = event(
                one.type,
                one.resource_id or None,
                canonical(one.data),
                position=Position(self._head),
                version=Version(version),
                stream=one.stream,
                at=at,
                operation_id=by and by.operation_id,
                actor=by.actor if by else "imageledger",
                method=asked_first and asked_first.method,
                key=asked_first and asked_first.key,
                request=asked_first and asked_first.request,
            )
            first = False
            batch.append(said)
            self.state.apply(said)
        self.batches.append(batch)


def _log_created() -> NewEvent:
    return NewEvent("log", "LogCreated", "", {"log_id": LOG_ID})


def _pick(things: Mapping[str, Any], index: int) -> str:
    """One of the ids there are, or one that nobody has."""
    ids = sorted(things)
    return ids[index % len(ids)] if ids else "nobody"


STEPS = (
    "register",
    "remove",
    "create",
    "create",
    "create",
    "start",
    "finish",
    "update",
    "update",
    "delete",
    "cancel",
)


def steps() -> st.SearchStrategy[list[tuple[str, int, int]]]:
    """Steps of a history, many of them more often than chance alone would have it."""
    step = st.tuples(st.sampled_from(STEPS), st.integers(0, 40), st.integers(0, 40))
    return st.lists(step, max_size=20) | st.lists(step, min_size=30, max_size=60)


def prefixes(events: Sequence[Event]) -> Iterator[tuple[int, MemoryState]]:
    """Position 0 and the empty state, then every position and the state up to it, one after the other."""
    state = MemoryState()
    yield 0, state
    for one in events:
        state.apply(one)
        yield one.position, state


class Stand:
    """A log and its projection in a folder: what has to be on a real disk to be tested."""

    def __init__(self, directory: Path) -> None:
        self.files = ProjectionFiles(directory)
        self.log = EventLog.open(directory / "log.db")

    def say(self, events: Iterable[Event]) -> None:
        """Append events, each in a batch of its own, after what is there; they are numbered here."""
        said = list(events)
        if self.log.head() == 0:
            said.insert(0, event("LogCreated", None, {"log_id": LOG_ID}, stream="log"))
        for one in said:
            position = Position(self.log.head() + 1)
            version = Version(self.log.stream_version(one.stream) + 1)
            at = one.at or T0 + position * SECOND_NS
            self.log.append(
                [one._replace(position=position, version=version, at=at)],
                expected_head=Position(position - 1),
            )

    def open_live(self) -> Path:
        return open_live(self.files, self.log, encode=lossless)

    def queries(self) -> Queries:
        return open_queries(self.open_live(), encode=lossless)

    def close(self) -> None:
        self.log.close()


def rows(path: Path, sql: str) -> list[tuple[Any, ...]]:
    connection = database.connect(path, access="read", synchronous="NORMAL")
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


def change(path: Path, sql: str, *values: object) -> None:
    """Change a projection's file behind its back."""
    connection = database.connect(path, access="write", synchronous="NORMAL")
    try:
        connection.execute(sql, values)
    finally:
        connection.close()


def change_applied(path: Path, **columns: object) -> None:
    """Let a projection say something else of how far it has come, as if that had been written."""
    names = ("log_id", "position", "leaf", "at", "projector_version", "encoding", "position_crc")
    [row] = rows(path, APPLIED_ROW)
    values = dict(zip(names, row, strict=False)) | columns
    if isinstance(values["position"], int):
        values["position_crc"] = position_crc(values["position"])
    values["crc"] = seal([values[name] for name in names])
    change(path, f"UPDATE applied SET {', '.join(f'{name} = ?' for name in values)}", *values.values())
