"""A server that is killed again and again under load: what was acknowledged is there, and only once."""

from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
import sys
import threading
import time
import uuid
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from eventstore import merkle
from eventstore.event import Event
from eventstore.reader import LogReader
from projections.store import ProjectionFiles, open_queries
from server.encode import image_frame, operation_bytes
from server.gen.yandex.cloud.compute.v1 import image_pb2
from server.gen.yandex.cloud.compute.v1 import image_service_pb2 as pb
from server.gen.yandex.cloud.operation import operation_pb2
from server.gen.yandex.cloud.operation import operation_service_pb2 as operation_pb
from tests.harness import IMAGES, OPERATIONS, Client, Server, image_of

KILLS = 20
WRITERS = 4
LOAD_S_MAX = 0.4
# The caller does not know what became of the call, and asks again with the same key.
UNKNOWN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)


@dataclass
class Place:
    """Where the server is now, and whether the writers shall go on."""

    address: str = ""
    is_over: bool = False
    moved: threading.Condition = field(default_factory=threading.Condition)

    def move_to(self, address: str) -> None:
        with self.moved:
            self.address = address
            self.moved.notify_all()

    def other_than(self, address: str) -> str:
        """The address, once it is another one."""
        with self.moved:
            if not self.moved.wait_for(lambda: self.address != address, timeout=60):
                raise AssertionError("the server did not come back")
            return self.address


class Writing(threading.Thread):
    """One caller: creates, updates and deletes images of its own, each call again until it is answered."""

    def __init__(self, place: Place, disk_id: str, number: int, seed: int) -> None:
        super().__init__(name=f"writing-{number}")
        self.place = place
        self.disk_id = disk_id
        self.folder_id = f"folder-{number}"
        self.choices = random.Random(seed * 100 + number)
        self.address = place.address
        self.client = Client(self.address)
        self.images: dict[str, image_pb2.Image] = {}
        self.gone: set[str] = set()
        self.acknowledged: dict[str, tuple[str, operation_pb2.Operation]] = {}
        self.asked_again = 0
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            while not self.place.is_over:
                self.write()
        except BaseException as error:
            self.failure = error
        finally:
            self.client.channel.close()

    def write(self) -> None:
        kind = self.choices.choice(("create", "create", "update", "delete"))
        if kind == "create" or not self.images:
            request = pb.CreateImageRequest(
                folder_id=self.folder_id, disk_id=self.disk_id, family="web", labels={"b": "1", "a": "2"}
            )
            image = image_of(self.until_answered("Create", request))
            self.images[image.id] = image
            return
        image_id = self.choices.choice(sorted(self.images))
        if kind == "update":
            update = pb.UpdateImageRequest(image_id=image_id, description=str(self.choices.random()))
            update.update_mask.paths.append("description")
            image = image_of(self.until_answered("Update", update))
            assert image.description == update.description
            self.images[image_id] = image
        else:
            self.until_answered("Delete", pb.DeleteImageRequest(image_id=image_id))
            del self.images[image_id]
            self.gone.add(image_id)

    def until_answered(
        self,
        method: str,
        request: pb.CreateImageRequest | pb.UpdateImageRequest | pb.DeleteImageRequest,
    ) -> operation_pb2.Operation:
        key = str(uuid.UUID(int=self.choices.getrandbits(128), version=4))
        metadata = [("idempotency-key", key)]
        while True:
            try:
                operation = self.client.call(
                    IMAGES, method, request, operation_pb2.Operation, metadata, timeout=20
                )
            except grpc.RpcError as error:
                if error.code() not in UNKNOWN:  # type: ignore[attr-defined]
                    raise
                self.asked_again += 1
                self.follow()
                continue
            assert operation.done
            self.acknowledged[key] = (method, operation)
            return operation

    def follow(self) -> None:
        self.client.channel.close()
        self.address = self.place.other_than(self.address)
        self.client = Client(self.address)


def test_what_was_acknowledged_survives_every_kill(tmp_path: Path) -> None:
    seed = int(os.environ.get("IMAGELEDGER_TEST_SEED", random.SystemRandom().randrange(2**32)))
    print(f"IMAGELEDGER_TEST_SEED={seed}")
    choices = random.Random(seed)
    server = Server(tmp_path / "data").start()
    place = Place(server.address)
    with Client(server.address) as client:
        disk_id = client.disk("folder")
    writers = [Writing(place, disk_id, number, seed) for number in range(WRITERS)]
    checked: set[str] = set()
    try:
        for writer in writers:
            writer.start()
        for _ in range(KILLS):
            # Not a wait for something: the moment of the kill is the input of this test.
            time.sleep(choices.uniform(0.02, LOAD_S_MAX))
            server.kill()
            before = acknowledged(writers)
            check_log(tmp_path / "data", before)
            server.start()
            check_operations(tmp_path / "data", before)
            with Client(server.address) as client:
                check_answers(client, {key: before[key] for key in before.keys() - checked})
            checked |= before.keys()
            place.move_to(server.address)
        place.is_over = True
        for writer in writers:
            writer.join(60)
        assert not [writer.failure for writer in writers if writer.failure is not None]
        with Client(server.address) as client:
            check_answers(client, acknowledged(writers))
            check_images(client, writers)
    finally:
        place.is_over = True
        place.move_to(server.address)
        code = server.stop()
    assert code == 0
    check_log(tmp_path / "data", acknowledged(writers))
    check_operations(tmp_path / "data", acknowledged(writers))
    check_digests(tmp_path / "data")
    # Otherwise this test would have tested nothing.
    assert all(len(writer.acknowledged) > KILLS and writer.asked_again > KILLS // 2 for writer in writers)


Acknowledged = dict[str, tuple[str, operation_pb2.Operation]]


def acknowledged(writers: list[Writing]) -> Acknowledged:
    return {key: answer for writer in writers for key, answer in dict(writer.acknowledged).items()}


def check_log(data: Path, answers: Acknowledged) -> None:
    """Gap-free, hashed as it should be, every key once, and every answer in it."""
    with LogReader.open(data / "log.db") as log:
        events = list(log.events())
        assert [event.position for event in events] == list(range(1, log.head() + 1))
        # The frontier carries from row to row, so that every stored hash is computed anew.
        leaves = [log.leaf(event.position) for event in events]
        _, hashes = merkle.extend(merkle.load_frontier(merkle.TreeSize(0), log.hashes), leaves)
        assert hashes == [log.hashes(event.position) for event in events]
    assert all(one.at <= other.at for one, other in itertools.pairwise(events))
    check_keys(events, answers)


def check_keys(events: list[Event], answers: Acknowledged) -> None:
    by_key: dict[str, list[Event]] = {}
    for event in events:
        if event.key is not None:
            by_key.setdefault(event.key, []).append(event)
    assert {key: len(first) for key, first in by_key.items() if len(first) > 1} == {}
    for key, (method, operation) in answers.items():
        [first] = by_key[key]
        assert (first.operation_id, first.method) == (operation.id, f"{IMAGES}/{method}")
    # Nothing is half-done: an image of a disk is born in two events, or not at all.
    started = [event.operation_id for event in events if event.type == "ImageCreationStarted"]
    assert started == [event.operation_id for event in events if event.type == "ImageCreated"]


def check_operations(data: Path, answers: Acknowledged) -> None:
    """All of them, from the files beside the server: there are too many to ask for each after every kill."""
    path = ProjectionFiles(data).current()
    assert path is not None
    with closing(open_queries(path, encode=image_frame)) as queries:
        for _, operation in answers.values():
            found = operation_pb2.Operation.FromString(operation_bytes(queries.operation(operation.id)[0]))
            assert found == operation


def check_answers(client: Client, answers: Acknowledged) -> None:
    for _, operation in answers.values():
        request = operation_pb.GetOperationRequest(operation_id=operation.id)
        assert client.call(OPERATIONS, "Get", request, operation_pb2.Operation) == operation


def check_images(client: Client, writers: list[Writing]) -> None:
    for writer in writers:
        listed: dict[str, image_pb2.Image] = {}
        request = pb.ListImagesRequest(folder_id=writer.folder_id, page_size=1000)
        while True:
            page = client.call(IMAGES, "List", request, pb.ListImagesResponse)
            listed |= {image.id: image for image in page.images}
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
        assert listed == writer.images
        assert not listed.keys() & writer.gone


def check_digests(data: Path) -> None:
    command = [sys.executable, "-m", "tools.cli", "rebuild", "--data", str(data), "--json"]
    rebuilt = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert rebuilt["digest_before"] == rebuilt["digest_after"] is not None
