"""A server on a disk that fails when a test says so, what it answered, and what must be true of its files."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import grpc
from grpc_health.v1 import health_pb2

from eventstore import merkle
from eventstore.event import Event
from eventstore.log import EventLog
from eventstore.reader import LogReader
from projections.store import ProjectionFiles, build, digest_of, open_live
from server.encode import image_frame
from server.gen.imageledger.v1 import source_service_pb2, status_service_pb2
from server.gen.yandex.cloud.operation import operation_pb2
from tests.conformance.api import Api, Code, Refusal, as_of, key, refusal_of
from tests.conformance.sites import until
from tests.failing_disk import FailingDisk
from tests.harness import STATUS, Server, image_of

HEALTH = "grpc.health.v1.Health"
FOLDER = "folder"
BLOB_GRACE_S = 0.05
THREADS = 512
UNKNOWN = "OUTCOME_UNKNOWN"
# What a caller may be told when the disk fails, and what the text must then say.
REFUSALS = {
    "DISK_FULL": (Code.RESOURCE_EXHAUSTED, "; free some space on"),
    "LOG_UNAVAILABLE": (Code.UNAVAILABLE, "left nothing: "),
    "LOG_REOPENED": (Code.UNAVAILABLE, "left nothing: "),
    "LOG_REOPENING": (Code.UNAVAILABLE, "Nothing was written"),
    "BLOB_STORE_UNAVAILABLE": (Code.UNAVAILABLE, "; look at"),
    UNKNOWN: (Code.UNAVAILABLE, "is not known"),
}


# A call, given its idempotency key.
Ask = Callable[[str], Any]


@dataclass(frozen=True, slots=True)
class Attempt:
    """A write: what it asked, and its answer, which is one of the two."""

    ask: Ask
    key: str
    answer: Any
    refusal: Refusal | None

    @property
    def ids(self) -> tuple[str, str]:
        """Of the operation and of what it is about; an upload is answered with no operation."""
        if isinstance(self.answer, operation_pb2.Operation):
            is_deletion = not self.answer.response.value
            return self.answer.id, "" if is_deletion else image_of(self.answer).id
        return "", self.answer.id


class Service:
    """The server, and every write that was asked of it."""

    def __init__(self, data: Path, scratch: Path, library: Path, *options: str) -> None:
        """`scratch` is a folder on a disk that does not fail."""
        self.data = data
        self._copy = scratch / "copy"
        self.disk = FailingDisk(library, scratch / "faults")
        options = (*options, "--blob-grace", f"{BLOB_GRACE_S}s", "--min-free", "0")
        self.server = Server(self.data, *options, environment=self.disk.environment)
        self.attempts: list[Attempt] = []
        self._threads = ThreadPoolExecutor(THREADS)

    def __enter__(self) -> Self:
        self.start()
        self.disk_id = self.api.source(b"\0" * 4096, folder_id=FOLDER).id
        fields = {"disk_id": self.disk_id, "name": "known", "family": "known"}
        self.known_operation, call = self.api.created(FOLDER, **fields)
        self.known = image_of(self.known_operation)
        self.known_position = int(dict(call.trailing_metadata())["x-log-position"])
        self.changing = self.created().id
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown()
        self.api.channel.close()
        self.server.kill()

    def start(self) -> None:
        self.server.start()
        self.api = Api(self.server.address)

    def connected_apart(self) -> Api:
        """A client with a connection of its own: there is a limit to the calls on each."""
        api = Api(self.server.address)
        api.channel.close()
        options = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]
        api.channel = grpc.insecure_channel(self.server.address, options)
        return api

    def kill(self) -> None:
        self.server.kill()
        self.api.channel.close()

    # Writes.

    def created(self) -> Any:
        return image_of(done(self.attempt(self.create)))

    def create(self, idempotency_key: str) -> Any:
        return self.api.create(FOLDER, key(idempotency_key), disk_id=self.disk_id)

    def update(self, idempotency_key: str) -> Any:
        text = {"description": f"said with {idempotency_key}"}
        return self.api.update(self.changing, ["description"], key(idempotency_key), **text)

    def delete(self) -> Ask:
        """The deletion of an image that is there for it."""
        image_id = self.created().id
        return lambda idempotency_key: self.api.delete(image_id, key(idempotency_key))

    def upload(self, body: bytes | None = None) -> Ask:
        body = body or some_bytes()
        header = source_service_pb2.SourceHeader(folder_id=FOLDER, kind=source_service_pb2.DISK)
        return lambda idempotency_key: self.api.upload(header, [body], key(idempotency_key))

    def remove(self, source_id: str) -> Ask:
        return lambda idempotency_key: self.api.remove_source(source_id, key(idempotency_key))

    def attempt(self, ask: Ask, idempotency_key: str = "") -> Attempt:
        idempotency_key = idempotency_key or str(uuid.uuid4())
        answer, refusal = None, None
        try:
            answer = ask(idempotency_key)
        except grpc.RpcError as error:
            refusal = refusal_of(error)
        attempt = Attempt(ask, idempotency_key, answer, refusal)
        self.attempts.append(attempt)
        return attempt

    def begin(self, *asked: Ask) -> list[Future[Attempt]]:
        """Ask at the same time."""
        return [self._threads.submit(self.attempt, ask) for ask in asked]

    def again(self, attempts: Sequence[Attempt]) -> None:
        """What was refused is done when it is asked again with its key."""
        for attempt in attempts:
            if attempt.refusal is not None:
                done(self.attempt(attempt.ask, attempt.key))

    def is_healthy(self) -> bool:
        request, answer = health_pb2.HealthCheckRequest(), health_pb2.HealthCheckResponse
        return bool(self.api.call(HEALTH, "Check", request, answer).status == answer.SERVING)

    def wait_for_a_hit(self, hits: int) -> None:
        until(lambda: len(self.disk.hits()) > hits)

    # What must be true.

    def check_reads(self) -> None:
        """Every kind of question is answered."""
        api, known = self.api, self.known
        assert api.get(known.id) == known
        assert api.get(known.id, as_of(self.known_position)) == known
        assert api.latest(FOLDER, "known") == known
        assert known in api.list(FOLDER, page_size=1000).images
        assert list(api.list(FOLDER, filter="name='known'").images) == [known]
        assert list(api.list(FOLDER, as_of(self.known_position)).images) == [known]
        assert api.operation(self.known_operation.id) == self.known_operation
        assert list(api.operations(known.id).operations) == [self.known_operation]
        assert self.disk_id in [source.id for source in api.sources(FOLDER, page_size=1000).sources]
        assert api.read(known.id)[1] == b"\0" * 4096
        request, answer = status_service_pb2.GetStatusRequest(), status_service_pb2.Status
        assert api.call(STATUS, "Get", request, answer).head > 0

    def check_files(self) -> None:
        """All that the log, the projection and the blobs owe, of the files as a kill would leave them now.

        Needs the server idle. A copy is opened, by the code that a start runs.
        """
        copy = self._copy
        shutil.rmtree(copy, ignore_errors=True)
        ignored = shutil.ignore_patterns("*-shm", "blobs", "lock")
        shutil.copytree(self.data, copy, ignore=ignored)
        with EventLog.open(copy / "log.db") as log:
            events = check_log(log)
            files = ProjectionFiles(copy)
            live = open_live(files, log, encode=image_frame)
            assert digest_of(live) == digest_of(build(files, log, encode=image_frame))
        check_attempts(events, self.attempts)
        check_blobs(self.data, used_blobs(events))

    def check_end(self) -> None:
        """The same after a kill and a start, a stop and `rebuild`; and the sweep leaves no orphan."""
        self.kill()
        self.start()
        self.check_reads()
        with LogReader.open(self.data / "log.db") as log:
            used = used_blobs(list(log.events()))
        until(lambda: stored(self.data) == used)
        until(lambda: not any((self.data / "blobs" / "incoming").iterdir()))
        assert self.server.stop() == 0
        self.check_files()
        command = [sys.executable, "-m", "tools.cli", "rebuild", "--data", str(self.data), "--json"]
        rebuilt = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        assert rebuilt["digest_before"] == rebuilt["digest_after"] is not None
        assert "Traceback" not in self.server.stderr()


def done(attempt: Attempt) -> Any:
    assert attempt.refusal is None, attempt.refusal
    return attempt.answer


def some_bytes(size_bytes: int = 4096) -> bytes:
    return random.randbytes(size_bytes)


def check_refusal(refusal: Refusal) -> None:
    """It says what is wrong, and what to do."""
    code, text = REFUSALS[refusal.reason]
    assert (refusal.code, text in refusal.message) == (code, True), refusal


def check_log(log: LogReader) -> list[Event]:
    """The events: gap-free, and hashed as they should be."""
    events = list(log.events())
    assert [event.position for event in events] == list(range(1, log.head() + 1))
    leaves = [log.leaf(event.position) for event in events]
    _, hashes = merkle.extend(merkle.load_frontier(merkle.TreeSize(0), log.hashes), leaves)
    assert hashes == [log.hashes(event.position) for event in events]
    for event in events:
        source: Any = event.data.get("source", {})
        if event.type == "ImageCreationStarted" and "uri" not in source:
            # Nothing is half-done: the image is born in two events that follow each other, or not at all.
            born = events[event.position]
            assert (born.type, born.operation_id) == ("ImageCreated", event.operation_id)
    return events


def check_attempts(events: Sequence[Event], attempts: Sequence[Attempt]) -> None:
    """What was acknowledged is there once; what was refused is not, unless it was done with its key later."""
    by_key: dict[str, list[Event]] = {}
    for event in events:
        if event.key is not None:
            by_key.setdefault(event.key, []).append(event)
    assert {one: len(found) for one, found in by_key.items() if len(found) > 1} == {}
    answered = {attempt.key for attempt in attempts if attempt.refusal is None}
    for attempt in attempts:
        if attempt.refusal is None:
            [first] = by_key[attempt.key]
            operation_id, resource_id = attempt.ids
            assert operation_id in ("", first.operation_id)
            assert resource_id in ("", first.resource_id)
        # Without a reason it is the word of the client's own side, which lost the connection.
        elif attempt.key not in answered and attempt.refusal.reason not in ("", UNKNOWN):
            check_refusal(attempt.refusal)
            assert attempt.key not in by_key, f"it was refused, and is in the log: {attempt.refusal}"


def used_blobs(events: Sequence[Event]) -> set[str]:
    """The digests that images and sources refer to."""
    used: dict[str, str] = {}
    for event in events:
        resource_id = event.resource_id or ""
        match event.type:
            case "ImageCreated" | "SourceRegistered":
                blob: Any = event.data["blob"]
                used[resource_id] = blob["sha256"]
            case "ImageDeleted" | "SourceRemoved":
                used.pop(resource_id, None)
    return set(used.values())


def stored(data: Path) -> set[str]:
    return {file.name for file in (data / "blobs").glob("??/??/*")}


def check_blobs(data: Path, used: set[str]) -> None:
    """Each that is used is there, whole."""
    for sha256 in used:
        content = (data / "blobs" / sha256[:2] / sha256[2:4] / sha256).read_bytes()
        assert hashlib.sha256(content).hexdigest() == sha256
