"""What every kill must leave on disk. Each look goes on from the one before it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from eventstore import merkle
from eventstore.event import Event
from eventstore.reader import LogReader
from projections.store import ProjectionFiles, open_queries
from server.encode import image_frame, operation_bytes
from server.gen.yandex.cloud.operation import operation_pb2

STARTED, CREATED = "ImageCreationStarted", "ImageCreated"
ENDED = (CREATED, "ImageCreationFailed", "ImageCreationCancelled")


class Watch:
    """The log and the blobs of a data directory, as far as they were looked at."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self._frontier = merkle.EMPTY
        self._at = 0
        self.operation_of: dict[str, str] = {}
        self.method_of: dict[str, str] = {}
        self.running: set[str] = set()
        # Of READY images and of sources: the digests of their bytes.
        self.used: dict[str, str] = {}
        self._whole: set[str] = set()

    def look(self) -> None:
        """Check what is new: gap-free, hashed as it should be, every key once; and that no more is gone."""
        with LogReader.open(self._data / "log.db") as log:
            size = self._frontier.size
            assert log.head() >= size, "the log is shorter than it was"
            # The frontier carries from row to row, so that every stored hash is computed anew.
            assert merkle.load_frontier(size, log.hashes) == self._frontier, "the log is another one"
            events = list(log.events(after=size))
            assert [event.position for event in events] == list(range(size + 1, log.head() + 1))
            leaves = [log.leaf(event.position) for event in events]
            self._frontier, hashes = merkle.extend(self._frontier, leaves)
            assert hashes == [log.hashes(event.position) for event in events]
        for event in events:
            assert event.at >= self._at
            self._at = event.at
            self._take(event)

    def _take(self, event: Event) -> None:
        operation_id, resource_id = event.operation_id or "", event.resource_id or ""
        if event.key is not None:
            assert event.key not in self.operation_of, f"position {event.position} repeats a key"
            self.operation_of[event.key] = operation_id
            self.method_of[event.key] = event.method or ""
        if event.type == STARTED:
            self.running.add(operation_id)
        elif event.type in ENDED:
            # Raises KeyError for an operation that ends twice, or was never begun.
            self.running.remove(operation_id)
        data: Mapping[str, object] = event.data
        blob = data.get("blob")
        if isinstance(blob, Mapping):
            self.used[resource_id] = str(blob["sha256"])
        if event.type == "ImageDeleted":
            del self.used[resource_id]

    def check_acknowledged(self, method_of: Mapping[str, str], operation_of: Mapping[str, str]) -> None:
        """Every key that was answered is in the log, as it was answered."""
        for key, operation_id in operation_of.items():
            assert self.operation_of.get(key) == operation_id, f"{method_of[key]} {key} was acknowledged"
            assert self.method_of[key].rpartition("/")[2] == method_of[key]

    def check_blobs(self) -> int:
        """Every blob in use is whole. How many are there that nothing uses. Needs a server that is dead."""
        used = set(self.used.values())
        stored = stored_blobs(self._data)
        assert used <= stored.keys(), "an image has lost its blob"
        for sha256 in used - self._whole:
            assert hashlib.sha256(stored[sha256].read_bytes()).hexdigest() == sha256
        self._whole |= used
        return len(stored.keys() - used)

    def check_operations(self, done: Mapping[str, operation_pb2.Operation]) -> None:
        """Each operation is as it was told, read from the files beside a server."""
        path = ProjectionFiles(self._data).current()
        assert path is not None
        with closing(open_queries(path, encode=image_frame)) as queries:
            for operation_id, operation in done.items():
                found = operation_bytes(queries.operation(operation_id)[0])
                assert operation_pb2.Operation.FromString(found) == operation


def stored_blobs(data: Path) -> dict[str, Path]:
    return {file.name: file for file in (data / "blobs").glob("??/??/*")}
