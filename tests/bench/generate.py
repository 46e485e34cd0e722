"""Realistic logs of any size, from a seed: many small folders, a few large ones, long-lived images.

Events go through `decide` and the log's own append, so every one is what a server would have written.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from eventstore.event import Event, Position, Version, canonical
from eventstore.log import EventLog, new_log_id
from projections.domain.command import Asked, NewEvent
from projections.domain.decide import Command, decide
from projections.domain.evolve import MemoryState
from projections.domain.image import CreateImage, DeleteImage, UpdateImage
from projections.domain.source import RegisterSource

START_NS = 1_700_000_000_000_000_000
BATCH = 1000
LARGE_FOLDERS = 4
SERVICE = "yandex.cloud.compute.v1.ImageService"


def generate(path: Path, *, events: int, seed: int = 1, one_folder: str | None = None) -> None:
    """A log of this many events, or one or two more; with all images in one folder where it is named."""
    with EventLog.open(path) as log:
        log.create_if_empty(log_id=new_log_id(random.Random(seed).randbytes(16)), at=START_NS)
        _Generator(log, random.Random(seed), one_folder).run(events)


class _Generator:
    def __init__(self, log: EventLog, random_: random.Random, one_folder: str | None) -> None:
        self._log = log
        self._one_folder = one_folder
        self._random = random_
        self._state = MemoryState()
        self._versions: dict[str, int] = {}
        self._images: list[str] = []
        self._favourites: list[str] = []
        self._serial = 0
        self._disk = ""

    def run(self, events: int) -> None:
        batch: list[Event] = []
        position = self._log.head()
        at = START_NS
        for command in self._commands():
            at += 1_000_000
            decided = decide(self._state, command, at=at)
            if not isinstance(decided, list):
                raise AssertionError("a generated command was a repeat")
            for first, new in zip((True, False), decided, strict=False):
                position = Position(position + 1)
                event = self._event(new, command, position, first=first)
                self._state.apply(event._replace(at=at))
                batch.append(event)
            # Operations are looked up by nobody here, and would only fill the memory.
            self._state.operations.clear()
            if len(batch) >= BATCH or position >= events:
                self._log.append([event._replace(at=at) for event in batch], expected_head=self._log.head())
                batch = []
                if position >= events:
                    return

    def _event(self, new: NewEvent, command: Command, position: Position, *, first: bool) -> Event:
        version = self._versions[new.stream] = self._versions.get(new.stream, 0) + 1
        asked = command.asked
        return Event(
            position=position,
            stream=new.stream,
            version=Version(version),
            type=new.type,
            schema=1,
            at=1,
            operation_id=asked.operation_id,
            resource_id=new.resource_id,
            actor=asked.actor,
            auth=asked.auth,
            request_id=asked.request_id,
            method=asked.method if first else None,
            key=None,
            request=None,
            reason=asked.reason,
            data=canonical(new.data),
        )

    def _commands(self) -> Iterator[Command]:
        self._disk = self._id("fdd")
        yield RegisterSource(
            asked=replace(self._asked(""), method="imageledger.v1.SourceService/Upload"),
            source_id=self._disk,
            folder_id="standard-images",
            kind="DISK",
            name="",
            size=10 * 1024**3,
            storage_size=1024**3,
            sha256="0" * 64,
            format="qcow2",
        )
        while True:
            chance = self._random.random()
            if chance < 0.5 or len(self._images) < 10:
                yield self._create()
            elif chance < 0.9:
                yield self._update()
            else:
                yield self._delete()

    def _create(self) -> CreateImage:
        image_id = self._id("fd8")
        self._images.append(image_id)
        if len(self._favourites) < 50 or self._random.random() < 0.001:
            self._favourites.append(image_id)
        return CreateImage(
            asked=self._asked("Create"),
            image_id=image_id,
            folder_id=self._folder(),
            source_field="disk_id",
            source_id=self._disk,
            given=("disk_id", "family", "folder_id", "labels", "name"),
            name=f"web-{self._serial}",
            description="Nightly build of the base system",
            labels={"build": str(self._serial), "team": self._random.choice(["core", "web", "data"])},
            family=self._random.choice(["web", "db", "worker", ""]),
            os={"type": "LINUX"},
        )

    def _update(self) -> UpdateImage:
        pool = self._favourites if self._random.random() < 0.5 else self._images
        image_id = self._random.choice(pool)
        if self._state.image(image_id) is None:
            image_id = self._random.choice(self._images)
        labels = {"build": str(self._serial), "stage": self._random.choice(["test", "live"])}
        return UpdateImage(
            asked=self._asked("Update"), image_id=image_id, mask=("labels",), values={"labels": labels}
        )

    def _delete(self) -> DeleteImage:
        # Swap and pop: the newest takes the place of one that is deleted.
        index = self._random.randrange(len(self._images))
        self._images[index], self._images[-1] = self._images[-1], self._images[index]
        return DeleteImage(asked=self._asked("Delete"), image_id=self._images.pop())

    def _folder(self) -> str:
        if self._one_folder is not None:
            return self._one_folder
        if self._random.random() < 0.3:
            return f"large-{self._random.randrange(LARGE_FOLDERS)}"
        return f"folder-{int(self._random.paretovariate(0.6)) % 100_000}"

    def _id(self, prefix: str) -> str:
        self._serial += 1
        return f"{prefix}{self._serial:017d}"

    def _asked(self, method: str) -> Asked:
        return Asked(
            actor=f"builder-{self._random.randrange(20)}",
            auth="dev",
            request_id=f"{self._random.getrandbits(128):032x}",
            operation_id=self._id("fdo"),
            method=f"{SERVICE}/{method}",
        )
