"""Clients that write while a server is killed: each call again, with its key, until it is answered."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grpc

from server.gen.yandex.cloud.compute.v1 import image_pb2
from server.gen.yandex.cloud.compute.v1 import image_service_pb2 as pb
from server.gen.yandex.cloud.operation import operation_pb2
from server.gen.yandex.cloud.operation import operation_service_pb2 as operation_pb
from tests.conformance.sites import Site
from tests.crash.callers import UNKNOWN, Caller, Place
from tests.harness import IMAGES, OPERATIONS, image_of
from tests.unit.server.disk_images import tiny_raw
from tests.unit.server.misbehaving import Answer, dripping, head, whole

BODY_BYTES = 64 * 1024
PIECE_BYTES = 8 * 1024
DRIP_S = 0.02
UNDER_WAY_MAX = 6
IMPORT_FOLDERS = ("a", "b", "c", "d", "e")
QUERY = "?X-Amz-Signature=5ecre7"
CANCELLED, FAILED_PRECONDITION = (
    code.value[0] for code in (grpc.StatusCode.CANCELLED, grpc.StatusCode.FAILED_PRECONDITION)
)

Request = pb.CreateImageRequest | pb.UpdateImageRequest | pb.DeleteImageRequest


class Keyed(Caller):
    """Writes with keys, and remembers what it was told of each."""

    def __init__(self, place: Place, name: str, seed: int) -> None:
        super().__init__(place, name, seed)
        self.images: dict[str, image_pb2.Image] = {}
        self.gone: set[str] = set()
        # By key: the rpc that was answered, and the operation that it named.
        self.method_of: dict[str, str] = {}
        self.operation_of: dict[str, str] = {}
        # By id: operations that were told to be done, so that they must stay as they were told.
        self.done: dict[str, operation_pb2.Operation] = {}
        # The key of the call that has no answer yet; and by key, what a dead server's log had of such a call.
        self.pending = ""
        self.settled: dict[str, str] = {}
        self.asked_again = 0

    def until_answered(self, method: str, request: Request) -> operation_pb2.Operation:
        key = str(uuid.UUID(int=self.choices.getrandbits(128), version=4))
        self.pending = key
        operation = self.until(
            lambda: self.client.call(
                IMAGES, method, request, operation_pb2.Operation, [("idempotency-key", key)], timeout=20
            )
        )
        # What the log had when the server died is the outcome, however often it is asked for.
        assert self.settled.get(key, operation.id) == operation.id, f"{method} {key} was done twice"
        self.told(operation)
        self.method_of[key] = method
        self.operation_of[key] = operation.id
        return operation

    def until(self, ask: Callable[[], operation_pb2.Operation]) -> operation_pb2.Operation:
        """The answer, from whichever server gives it. Nothing that is asked here is ever rightly refused."""
        while True:
            try:
                return ask()
            except grpc.RpcError as error:
                if error.code() not in UNKNOWN:
                    raise AssertionError(f"it was refused: {error.details()}") from error
                self.asked_again += 1
                self.follow()

    def told(self, operation: operation_pb2.Operation) -> None:
        if operation.done:
            assert self.done.setdefault(operation.id, operation) == operation

    def delete_one(self) -> None:
        image_id = self.choices.choice(sorted(self.images))
        self.until_answered("Delete", pb.DeleteImageRequest(image_id=image_id))
        del self.images[image_id]
        self.gone.add(image_id)


class Writing(Keyed):
    """Creates images of a disk in a folder of its own, updates and deletes them."""

    def __init__(self, place: Place, name: str, seed: int, *, disk_id: str) -> None:
        super().__init__(place, name, seed)
        self.disk_id = disk_id

    def turn(self) -> None:
        kind = self.choices.choice(("create", "create", "update", "delete"))
        if kind == "create" or not self.images:
            request = pb.CreateImageRequest(
                folder_id=self.name, disk_id=self.disk_id, family="web", labels={"b": "1", "a": "2"}
            )
            image = image_of(self.until_answered("Create", request))
            self.images[image.id] = image
        elif kind == "update":
            image_id = self.choices.choice(sorted(self.images))
            update = pb.UpdateImageRequest(image_id=image_id, description=str(self.choices.random()))
            update.update_mask.paths.append("description")
            image = image_of(self.until_answered("Update", update))
            assert image.description == update.description
            self.images[image_id] = image
        else:
            self.delete_one()


@dataclass(frozen=True, slots=True)
class Begun:
    """An import under way: the digest of its bytes, None if they are no disk, and how else it may end."""

    sha256: str | None
    may_fail: bool
    was_cancelled: bool = False


class Importing(Keyed):
    """Creates images from sources quick or slow, signed or broken, new or seen before; cancels some."""

    def __init__(self, place: Place, name: str, seed: int, *, site: Site, files: Path) -> None:
        super().__init__(place, name, seed)
        self.site = site
        self.files = files
        self.common = [self.body() for _ in range(3)]
        self.begun: dict[str, Begun] = {}
        self.sha256_of: dict[str, str] = {}
        self.ended_after_a_kill = 0

    def turn(self) -> None:
        if len(self.begun) >= UNDER_WAY_MAX:
            self.look(next(iter(self.begun)))
        elif self.images and self.choices.random() < 0.3:
            self.delete_one()
        else:
            self.begin()

    def begin(self) -> None:
        uri, begun = self.some_source()
        request = pb.CreateImageRequest(folder_id=self.choices.choice(IMPORT_FOLDERS), uri=uri, family="web")
        operation = self.until_answered("Create", request)
        if self.choices.random() < 0.15:
            begun = Begun(begun.sha256, begun.may_fail, was_cancelled=True)
            asked = operation_pb.CancelOperationRequest(operation_id=operation.id)
            operation = self.until(
                lambda: self.client.call(OPERATIONS, "Cancel", asked, operation_pb2.Operation, timeout=20)
            )
        self.begun[operation.id] = begun
        self.end(operation)

    def look(self, operation_id: str) -> None:
        asked = operation_pb.GetOperationRequest(operation_id=operation_id)
        before = self.asked_again
        operation = self.until(
            lambda: self.client.call(OPERATIONS, "Get", asked, operation_pb2.Operation, timeout=20)
        )
        self.ended_after_a_kill += operation.done and self.asked_again > before
        self.end(operation)

    def end(self, operation: operation_pb2.Operation) -> None:
        """If it has ended: rightly, and for ever."""
        if not operation.done:
            return
        begun = self.begun.pop(operation.id)
        self.told(operation)
        if operation.HasField("response"):
            image = image_of(operation)
            assert image.status == image_pb2.Image.READY
            assert begun.sha256 is not None
            self.images[image.id] = image
            self.sha256_of[image.id] = begun.sha256
            return
        codes = {CANCELLED} if begun.was_cancelled else set()
        codes |= {FAILED_PRECONDITION} if begun.may_fail else set()
        assert operation.error.code in codes, (operation, begun)

    def body(self) -> bytes:
        return tiny_raw(BODY_BYTES, salt=self.choices.randbytes(16))

    def some_source(self) -> tuple[str, Begun]:
        body = self.choices.choice(self.common) if self.choices.random() < 0.3 else self.body()
        sha256 = hashlib.sha256(body).hexdigest()
        kind = self.choices.randrange(6)
        path = f"/images/{uuid.UUID(int=self.choices.getrandbits(128))}"
        if kind == 0:
            file = self.files / path.rpartition("/")[2]
            file.write_bytes(body)
            return file.as_uri(), Begun(sha256, may_fail=False)
        if kind == 1:
            return self.site.put(path, whole(b"no disk")), Begun(None, may_fail=True)
        if kind == 2:
            # Where a kill comes between, its query is nowhere.
            return self.site.put(path, slow(body)) + QUERY, Begun(sha256, may_fail=True)
        return self.site.put(path, slow(body) if kind < 5 else body), Begun(sha256, may_fail=False)


def slow(body: bytes) -> Answer:
    pieces = [body[start : start + PIECE_BYTES] for start in range(0, len(body), PIECE_BYTES)]
    return dripping(head(200, {"Content-Length": len(body)}), pieces, seconds=DRIP_S)
