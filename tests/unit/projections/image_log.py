"""A log in which everything happens that can happen to images, written event by event."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from eventstore.event import Event, Position, Version, canonical
from eventstore.log import EventLog, new_log_id
from projections.domain.operation import IMAGE_SERVICE, SOURCE_SERVICE

START_NS = 1_700_000_000_000_000_000
STEP_NS = 1_000_000_007
LOG_ID = new_log_id(bytes(range(16)))
MIB = 1024 * 1024
BLOB = {"sha256": "ab" * 32, "format": "raw"}
LEGACY = {"legacy_features": {"pci_topology": "PCI_TOPOLOGY_V1"}}


class ImageLog:
    """A log at `directory`/log.db, written by a test: one batch a call."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(exist_ok=True)
        self.path = directory / "log.db"
        self.log = EventLog.open(self.path)
        self.log.create_if_empty(log_id=LOG_ID, at=START_NS)
        self._operations = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.log.close()

    def operation(self) -> str:
        self._operations += 1
        return f"op{self._operations:04}"

    def add(
        self, *news: tuple[str, Mapping[str, Any]], of: str, folder: str, method: str, **envelope: Any
    ) -> str:
        """The first operation of a batch of events of one resource. Without `continues`, it is a new one.

        An event that neither begins a creation nor ends it has an operation of its own.
        """
        head = self.log.head()
        operation_id = envelope.pop("continues", None)
        first = operation_id is None
        current = operation_id = operation_id or self.operation()
        version = self.log.stream_version(f"folder/{folder}")
        events = []
        for offset, (type_, data) in enumerate(news, start=1):
            is_first = first if offset == 1 else news[offset - 2][0] != "ImageCreationStarted"
            if is_first and offset > 1:
                current = self.operation()
            event = Event(
                position=Position(head + offset),
                stream=f"folder/{folder}",
                version=Version(version + offset),
                type=type_,
                schema=1,
                at=START_NS + head * STEP_NS,
                operation_id=current,
                resource_id=of,
                actor="alice",
                auth="dev",
                request_id=f"request-{current}",
                method=method if is_first else None,
                key=None,
                request=None,
                reason=None,
                data=canonical(data),
            )
            events.append(event._replace(**envelope) if offset == 1 else event)
        self.log.append(events, expected_head=head)
        return operation_id

    def register(self, source_id: str, *, folder: str = "f1", kind: str = "DISK") -> str:
        data = {
            "folder_id": folder,
            "kind": kind,
            "name": "data",
            "size": MIB,
            "storage_size": 4096,
            "hardware_generation": LEGACY,
            "blob": BLOB,
        }
        return self.add(
            ("SourceRegistered", data), of=source_id, folder=folder, method=f"{SOURCE_SERVICE}/Upload"
        )

    def start(self, image_id: str, *, folder: str = "f1", **data: Any) -> str:
        """Begins a creation that takes its time, as from a uri."""
        data["source"] = {"uri": "https://storage.example/images/disk.raw"}
        return self.add(
            ("ImageCreationStarted", _started(folder, data)),
            of=image_id,
            folder=folder,
            method=f"{IMAGE_SERVICE}/Create",
        )

    def create(self, image_id: str, *, folder: str = "f1", **data: Any) -> str:
        return self.add(
            ("ImageCreationStarted", _started(folder, data)),
            ("ImageCreated", _created()),
            of=image_id,
            folder=folder,
            method=f"{IMAGE_SERVICE}/Create",
        )

    def finish(self, image_id: str, operation_id: str, *, folder: str = "f1") -> str:
        return self.add(
            ("ImageCreated", _created()), of=image_id, folder=folder, method="", continues=operation_id
        )

    def end(self, image_id: str, operation_id: str, how: str, *, folder: str = "f1") -> str:
        """Ends a creation: `how` is Failed or Cancelled."""
        error = {
            "code": 9,
            "message": f"it {how}",
            "reason": "SOURCE_BAD",
            "metadata": {"image_id": image_id},
        }
        return self.add(
            (f"ImageCreation{how}", {"error": error}),
            of=image_id,
            folder=folder,
            method="",
            continues=operation_id,
        )

    def update(self, image_id: str, *, folder: str = "f1", reason: str | None = None, **written: Any) -> str:
        data = {"update_mask": sorted(written), **written}
        return self.add(
            ("ImageUpdated", data),
            of=image_id,
            folder=folder,
            method=f"{IMAGE_SERVICE}/Update",
            reason=reason,
            key="0b9dcb1c-8a52-4c6e-9a4e-6f1c2d3e4f50",
            request=b"\xab" * 32,
        )

    def delete(self, image_id: str, *, folder: str = "f1") -> str:
        return self.add(("ImageDeleted", {}), of=image_id, folder=folder, method=f"{IMAGE_SERVICE}/Delete")

    def remove(self, source_id: str, *, folder: str = "f1") -> str:
        return self.add(("SourceRemoved", {}), of=source_id, folder=folder, method=f"{SOURCE_SERVICE}/Remove")


def _started(folder: str, data: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "folder_id": folder,
        "source": {"disk_id": "disk1"},
        "given": ["folder_id", "disk_id"],
        "os": {"type": "LINUX"},
        "hardware_generation": LEGACY,
        **data,
    }


def _created() -> dict[str, Any]:
    return {"size": MIB, "storage_size": 4096, "min_disk_size": 4 * MIB, "blob": BLOB}


def write_everything(directory: Path) -> int:
    """The head of a new log: families fall back, imports fail, are cancelled and overtake each other."""
    with ImageLog(directory) as log:
        log.register("disk1")
        log.register("snap1", folder="f2", kind="SNAPSHOT")
        log.create("img-b", name="web-1", family="web", labels={"env": "prod", "я": "да"}, pooled=True)
        log.create(
            "img-a",
            name="web-2",
            family="web",
            description="a\x1b[31m line\nand – more",
            product_ids=["p2", "p1"],
            os={"type": "WINDOWS", "nvidia": {"driver": "550"}},
            hardware_generation={"generation2_features": {"vtpm_enabled": True}},
        )
        log.create("img-c", folder="f2", family="web", hardware_generation={"generation2_features": {}})
        log.update("img-b", name="web-one", labels={}, reason="назвать иначе")
        log.update("img-b", description="", min_disk_size=8 * MIB)
        overtaken = log.start("img-d", name="slow", family="web")
        log.create("img-e", family="web", os={"type": "LINUX", "nvidia": {}})
        log.finish("img-d", overtaken)
        log.delete("img-e")
        log.end("img-f", log.start("img-f", family="web"), "Failed")
        log.end("img-g", log.start("img-g", name="gone", min_disk_size=4 * MIB), "Cancelled")
        log.start("img-h", family="db")
        log.delete("img-d")
        log.delete("img-a")
        log.delete("img-b")
        log.remove("disk1")
        log.create("img-i", name="web-1", family="web")
        return int(log.log.head())


def write_at_random(directory: Path, *, events: int, seed: int) -> int:
    """The head of a new log: few families, many images that come, change and go, some of them slowly."""
    chosen = random.Random(seed)
    ready: list[tuple[str, str]] = []
    running: list[tuple[str, str, str]] = []
    with ImageLog(directory) as log:
        while log.log.head() < events:
            image_id, folder = f"i{chosen.randrange(10**9):09}", chosen.choice(["f1", "f2"])
            family = {"family": chosen.choice(["web", "db", "я"])} if chosen.random() < 0.8 else {}
            match chosen.randrange(6):
                case 0:
                    log.create(image_id, folder=folder, **family)
                    ready.append((image_id, folder))
                case 1:
                    running.append((image_id, folder, log.start(image_id, folder=folder, **family)))
                case 2 | 3 if running:
                    image_id, folder, operation_id = running.pop(chosen.randrange(len(running)))
                    if chosen.random() < 0.3:
                        log.end(image_id, operation_id, chosen.choice(["Failed", "Cancelled"]), folder=folder)
                    else:
                        log.finish(image_id, operation_id, folder=folder)
                        ready.append((image_id, folder))
                case 4 if ready:
                    image_id, folder = chosen.choice(ready)
                    log.update(image_id, folder=folder, description=f"{log.log.head()}")
                case 5 if ready:
                    image_id, folder = ready.pop(chosen.randrange(len(ready)))
                    log.delete(image_id, folder=folder)
                case _:
                    pass
        return int(log.log.head())
